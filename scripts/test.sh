#!/usr/bin/env bash
# Makes .venv if absent, installs what the tests need, runs the fast suite. Arguments go to pytest (-m slow, a path ...).
# QLIB_EXT_TEST_PROCESSES (2): test files that run at a time.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

make_environment
install_project "[test]"
cd "$ROOT"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" OPENBLAS_NUM_THREADS="${OPENBLAS_NUM_THREADS:-1}"
exec "$VENV/bin/python" -m pytest -n "${QLIB_EXT_TEST_PROCESSES:-2}" --dist loadfile "$@"
