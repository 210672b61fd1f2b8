#!/usr/bin/env bash
# From nothing to a result: environment, installation, demo market (or the store named by QLIB_DATA), main workflow, table.
# Run it again at any time: what is done is skipped. Variables that are set (README, section Environment variables) are respected.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

WORKFLOW="$ROOT/workflows/meta_master_csi1000.yaml"
HOME_FOLDER="${QLIB_EXT_HOME:-${HOME:?HOME is not set; set QLIB_EXT_HOME to a folder for results}/.qlib_ext}"
HOME_FOLDER="${HOME_FOLDER/#\~/${HOME:-}}"
export QLIB_EXT_HOME="$(realpath -m "$HOME_FOLDER")"
export MLFLOW_DISABLE_TELEMETRY="${MLFLOW_DISABLE_TELEMETRY:-true}" MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false

need_space "$QLIB_EXT_HOME" 2000 "the demo market with its results"
make_environment
install_project ""
PY="$VENV/bin/python"

if [ -n "${QLIB_DATA:-}" ]; then
    export QLIB_DATA="$(realpath -m "${QLIB_DATA/#\~/${HOME:-}}")"
    "$PY" -m qlib_ext check --store "$QLIB_DATA" || die "QLIB_DATA=$QLIB_DATA is not a usable store (see above); unset it to run on the demo market."
    say "Store: $QLIB_DATA"
else
    export QLIB_DATA="$QLIB_EXT_HOME/demo/cn_data"
    say "Store: the demo market $QLIB_DATA"
    "$PY" -m qlib_ext.demo --out "$QLIB_DATA" || die "the demo market could not be made (see above)."
fi

# Small sizes for a machine without a GPU; the workflow file itself carries the published ones.
: "${QLIB_EXT_D_MODEL:=32}" "${QLIB_EXT_EPOCHS:=7}" "${QLIB_EXT_PRETRAIN_EPOCHS:=4}" "${QLIB_EXT_LR:=0.001}" "${QLIB_EXT_PATIENCE:=3}" "${QLIB_EXT_DROPOUT:=0.5}"
: "${QLIB_EXT_DAYS_PER_EPOCH:=320}" "${QLIB_EXT_SEED:=0}" "${QLIB_EXT_DEVICE:=auto}"
say "Sizes of this run (set them yourself to change them; published values in the workflow file):"
for name in D_MODEL EPOCHS PRETRAIN_EPOCHS LR PATIENCE DROPOUT DAYS_PER_EPOCH SEED DEVICE; do
    variable="QLIB_EXT_$name"
    export "${variable?}"
    say "    $variable=${!variable}"
done

cd "$ROOT"
"$PY" -m qlib_ext check "$WORKFLOW" || die "the check above found faults; nothing was trained."
"$VENV/bin/qrun" "$WORKFLOW" || die "the workflow failed (see above); run this again, an interrupted fit goes on from its last epoch."

say ""
"$PY" "$ROOT/scripts/compare.py" --last
say "The report is tearsheet.html among the artefacts: open it in a browser."
