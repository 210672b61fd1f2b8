#!/usr/bin/env bash
# Makes .venv if absent, installs what the tests need, runs the fast suite. Arguments go to pytest (-m slow, a path ...).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

make_environment
install_project "[test]"
cd "$ROOT"
exec "$VENV/bin/python" -m pytest "$@"
