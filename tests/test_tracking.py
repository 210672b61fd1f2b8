"""The experiment manager for a sqlite file that need not exist yet."""

import subprocess
import sys
from pathlib import Path

import pytest
from qlib.config import C
from qlib.utils.exceptions import ExpAlreadyExistError

from qlib_ext.tracking import SqliteExpManager, database_path, resolve_uri


@pytest.fixture
def manager(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setitem(C, "exp_manager", {"kwargs": {}})
    return SqliteExpManager("sqlite:///~/new folder/tracking.db", "default")


def test_uris_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///~/a/b.db") == f"sqlite:///{tmp_path}/a/b.db" == resolve_uri("sqlite:///a/b.db")
    assert resolve_uri("http://localhost:5000") == "http://localhost:5000" and database_path("http://localhost:5000") is None


def test_nothing_is_written_before_tracking_begins(manager, tmp_path):
    assert manager.uri == f"sqlite:///{tmp_path}/new folder/tracking.db" and not list(tmp_path.iterdir())


def test_artefacts_lie_beside_the_database_and_experiments_are_found_again(manager, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    experiment = manager.create_exp("a b/c")
    location = manager.client.get_experiment(experiment.id).artifact_location
    assert Path(location.removeprefix("file://")) == tmp_path / "new folder" / "artifacts" / "a_b_c"
    assert manager.get_exp(experiment_name="a b/c", create=False).id == experiment.id
    with pytest.raises(ExpAlreadyExistError):
        manager.create_exp("a b/c")
    assert not list(elsewhere.iterdir())


def test_another_folder_for_artefacts(tmp_path, monkeypatch):
    monkeypatch.setitem(C, "exp_manager", {"kwargs": {}})
    manager = SqliteExpManager(f"sqlite:///{tmp_path}/t.db", "default", artifacts=str(tmp_path / "big disk"))
    assert manager.artifact_location("x") == str(tmp_path / "big disk" / "x")
    monkeypatch.setitem(C, "exp_manager", {"kwargs": {}})
    assert SqliteExpManager("http://localhost:5000").artifact_location("x") is None


def test_runs_that_start_together_share_a_new_database(tmp_path):
    """Without the lock MLflow's table creation fails in one of them."""
    code = ("import sys\nfrom qlib.config import C\nC['exp_manager'] = {'kwargs': {}}\n"
            "from qlib_ext.tracking import SqliteExpManager\n"
            "m = SqliteExpManager(sys.argv[1])\nprint('ready', flush=True)\nsys.stdin.readline()\nm.client.search_experiments()\n")
    runs = [subprocess.Popen([sys.executable, "-c", code, f"sqlite:///{tmp_path}/new/t.db"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for run in runs:
        assert run.stdout.readline().strip() == "ready"
    for run in runs:  # all at once
        run.stdin.write("go\n")
        run.stdin.flush()
    for run in runs:
        errors = run.communicate(timeout=240)[1]
        assert run.returncode == 0, errors[-2000:]
