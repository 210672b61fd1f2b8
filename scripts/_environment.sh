# Shared by quickstart.sh and test.sh: finds Python, makes the environment, installs when something changed.
# Environment variables: PYTHON (interpreter), QLIB_EXT_VENV (default .venv), QLIB_EXT_CONSTRAINTS (default scripts/constraints.txt).

say() { printf '%s\n' "$*"; }
die() { printf 'Stopped: %s\n' "$*" >&2; exit 1; }

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$(realpath -m "${QLIB_EXT_VENV:-$ROOT/.venv}")"
CONSTRAINTS="$(realpath -m "${QLIB_EXT_CONSTRAINTS:-$ROOT/scripts/constraints.txt}")"

is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1; }

find_python() {
    local name
    if [ -n "${PYTHON:-}" ]; then
        is_supported "$PYTHON" || die "PYTHON=$PYTHON does not start or is not Python 3.11 or 3.12; name another interpreter."
        printf '%s\n' "$PYTHON"
        return
    fi
    for name in python3.11 python3.12 python3 python; do
        if is_supported "$name"; then printf '%s\n' "$name"; return; fi
    done
    die "no Python 3.11 or 3.12 found. Install one (Debian and Ubuntu: python3.11 python3.11-venv), or name it: PYTHON=/path/to/python3.11"
}

# need_space FOLDER MEBIBYTES WHAT: stops when the file system of FOLDER (or of its nearest existing parent) has less.
need_space() {
    local folder="$1" free
    while [ ! -d "$folder" ]; do folder="$(dirname "$folder")"; done
    free="$(df -Pk "$folder" | awk 'NR == 2 {print int($4 / 1024)}')"
    [ "$free" -ge "$2" ] || die "$folder has $free MiB free and $3 needs about $2 MiB; free some space first."
}

make_environment() {
    local python
    [ -f "$CONSTRAINTS" ] || die "constraints file $CONSTRAINTS not found (QLIB_EXT_CONSTRAINTS)."
    if [ -x "$VENV/bin/python" ] && is_supported "$VENV/bin/python" && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    [ ! -e "$VENV" ] || say "$VENV is not a working environment of Python 3.11 or 3.12: making it anew."
    python="$(find_python)"
    "$python" -c 'import ensurepip, venv' >/dev/null 2>&1 ||
        die "$python has no venv module. Install it (Debian and Ubuntu: apt-get install python3-venv), then run this again."
    need_space "$VENV" 3000 "the environment"
    say "Making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
}

# The constraints; a torch that is already in the environment (a CPU-only or another GPU build, say) is kept as it is.
active_constraints() {
    local torch
    torch="$("$VENV/bin/python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null || true)"
    if [ -n "$torch" ]; then
        sed '/^torch==/d' "$CONSTRAINTS"
        printf 'torch==%s\n' "$torch"
    else
        cat "$CONSTRAINTS"
    fi
}

# install_project EXTRAS ("" or "[test]"): skipped when nothing it depends on has changed since the last time.
install_project() {
    local extras="$1" stamp="$VENV/.qlib_ext-installed${1}" pinned wanted
    wanted="$(cat "$ROOT/setup.cfg" "$ROOT/pyproject.toml" "$CONSTRAINTS" <(printf '%s' "$ROOT$extras") | sha256sum | cut -d' ' -f1)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        say "Environment $VENV is up to date."
        return
    fi
    if ! "$VENV/bin/python" -c 'import torch' >/dev/null 2>&1; then
        need_space "$VENV" 3000 "the installation (up to 9000 where pip takes a GPU build of torch)"
        say "torch is not installed yet: pip takes the default build for this machine (README, section Torch, for another one)."
    fi
    say "Installing the project and its dependencies (some minutes the first time) ..."
    pinned="$(mktemp)"
    active_constraints > "$pinned"
    if ! "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check -c "$pinned" -e "$ROOT$extras"; then
        rm -f "$pinned"
        die "the installation failed (pip's message is above). It needs a reachable package index; run this again to go on."
    fi
    rm -f "$pinned"
    printf '%s\n' "$wanted" > "$stamp"
}
