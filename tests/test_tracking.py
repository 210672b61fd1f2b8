"""The experiment manager for a sqlite file that need not exist yet."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from qlib.config import C
from qlib.utils.exceptions import ExpAlreadyExistError

from qlib_ext.tracking import SqliteExpManager, data_tags, database_path, resolve_uri

ROOT = Path(__file__).resolve().parents[1]


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


RUN = """
import json, sys
import qlib
from qlib.workflow import R
store, uri = sys.argv[1:]
qlib.init(provider_uri=store, region="cn", kernels=1, exp_manager={
    "class": "SqliteExpManager", "module_path": "qlib_ext.tracking", "kwargs": {"uri": uri, "default_exp_name": "x"}})
with R.start(experiment_name="x"):
    identifier = R.get_recorder().id
tags = R.get_recorder(recorder_id=identifier, experiment_name="x").list_tags()
print(json.dumps({name: value for name, value in tags.items() if name.startswith("qlib_ext.")}))
"""


def small_store(folder: Path, **about) -> Path:
    for name in ("calendars", "instruments", "features/sh600000"):
        (folder / name).mkdir(parents=True)
    (folder / "calendars" / "day.txt").write_text("2023-01-03\n")
    (folder / "instruments" / "all.txt").write_text("SH600000\t2023-01-03\t2023-01-03\n")
    if about:
        metadata = {"format": 1, "fingerprint": "f", "spans": {"calendar": ["2023-01-03", "2023-01-03", 1]}, **about}
        (folder / "qlib_ext_store.json").write_text(json.dumps(metadata))
    return folder


def test_a_run_is_tagged_with_what_its_data_are(tmp_path):
    store = small_store(tmp_path / "market", generated=True)
    (tmp_path / "market.truth.parquet").write_bytes(b"")
    truth = {"store_fingerprint": "f", "best_possible_ic": {"csi1000": {"2023": 0.2, "total": 0.1}}}
    (tmp_path / "market.truth.json").write_text(json.dumps(truth))
    done = subprocess.run([sys.executable, "-c", RUN, str(store), f"sqlite:///{tmp_path}/t.db"], cwd=ROOT, text=True,
                          capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "qlib_ext.store": str(store), "qlib_ext.store_fingerprint": "f", "qlib_ext.generated": "true",
        "qlib_ext.best_possible_ic": '{"csi1000": 0.1}'}


def test_tags_of_other_data(tmp_path):
    elsewhere, real = small_store(tmp_path / "elsewhere"), small_store(tmp_path / "real", generated=False)
    for store in (elsewhere, tmp_path / "nothing"):
        assert data_tags(store) == {"qlib_ext.store": str(store)}
    assert data_tags(real)["qlib_ext.generated"] == "false" and "qlib_ext.best_possible_ic" not in data_tags(real)
