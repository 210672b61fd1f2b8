"""Set-up scripts fail early with a sentence, and the constraints are plain pins."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("scripts/quickstart.sh", "scripts/test.sh", ".ci/run")


def run(script: str, tmp_path: Path, **variables: str) -> subprocess.CompletedProcess:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "QLIB_EXT_VENV": str(tmp_path / "venv"),
                   **variables}
    return subprocess.run(["bash", str(ROOT / script)], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_wrong_interpreter_is_named(script, tmp_path):
    done = run(script, tmp_path, PYTHON="/bin/false")
    assert done.returncode == 1 and "PYTHON=/bin/false does not start or is not Python 3.11 or 3.12" in done.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_python_is_said(script, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "realpath", "df", "awk", "env"):
        source = next(Path(folder, name) for folder in os.environ["PATH"].split(os.pathsep) if Path(folder, name).exists())
        (tools / name).symlink_to(source)
    done = run(script, tmp_path, PATH=str(tools))
    assert done.returncode == 1 and "no Python 3.11 or 3.12 found" in done.stderr


def test_a_python_without_venv_is_said(tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$2" in *version_info*) exit 0;; *) exit 1;; esac\n')
    fake.chmod(0o755)
    done = run("scripts/test.sh", tmp_path, PYTHON=str(fake))
    assert done.returncode == 1 and "has no venv module" in done.stderr


def test_missing_constraints_are_said(tmp_path):
    done = run("scripts/test.sh", tmp_path, QLIB_EXT_CONSTRAINTS=str(tmp_path / "none.txt"))
    assert done.returncode == 1 and "constraints file" in done.stderr


def pins(name: str) -> dict[str, str]:
    lines = [line for line in (ROOT / "scripts" / name).read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.\-]+==[\w.!]+", line) for line in lines), "plain pins only: no address, no local version"
    return dict(line.split("==") for line in lines)


def test_constraints_are_plain_pins_of_the_two_pandas():
    newest, older = pins("constraints.txt"), pins("constraints-pandas2.txt")
    assert newest["pandas"].startswith("3.") and older["pandas"].startswith("2.2.")
    assert newest["pyqlib"] == older["pyqlib"] == "0.9.7" and newest["torch"] == older["torch"]
