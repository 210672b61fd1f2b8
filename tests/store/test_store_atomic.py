"""All or nothing: interruptions, the lock, replacing a store."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qlib_ext.errors import DataError
from qlib_ext.store import check_store, fingerprint
from qlib_ext.store import ingest as ingest_module
from qlib_ext.store.ingest import ingest
from qlib_ext.store.writer import StoreLock, StoreWriter

ROOT = Path(__file__).resolve().parents[2]
SLOW_WRITER = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started in the background hands on an ignored SIGINT
from qlib_ext.store import writer
from qlib_ext.store.__main__ import main
original = writer.StoreWriter.features
def slow(self, *arguments):
    original(self, *arguments)
    print("wrote", flush=True)
    time.sleep(60)
writer.StoreWriter.features = slow
sys.exit(main(["ingest", "--tables", sys.argv[1], "--out", sys.argv[2]]))
"""


def save(tables: dict, folder: Path) -> Path:
    folder.mkdir()
    for name, frame in tables.items():
        frame.to_parquet(folder / f"{name}.parquet")
    return folder


def start_slow(tables: Path, out: Path) -> subprocess.Popen:
    """An ingestion that has written one instrument and then waits."""
    process = subprocess.Popen([sys.executable, "-c", SLOW_WRITER, str(tables), str(out)], cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.DEVNULL, text=True)  # fmt: skip
    assert process.stdout.readline() == "wrote\n"
    return process


def hidden(folder: Path) -> list:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_ingestion_leaves_no_store(tables, tmp_path, number):
    source = save(tables, tmp_path / "tables")
    place = tmp_path / "place"
    process = start_slow(source, place / "store")
    assert any("building" in name for name in hidden(place))
    process.send_signal(number)
    assert process.wait(timeout=20) != 0
    process.stdout.close()
    assert not (place / "store").exists()
    if number != signal.SIGKILL:
        assert hidden(place) == []
    ingest(source, place / "store")  # leftovers of the dead one are removed
    assert hidden(place) == [] and check_store(place / "store")


def test_two_ingestions_into_one_place(tables, tmp_path):
    source = save(tables, tmp_path / "tables")
    process = start_slow(source, tmp_path / "place" / "store")
    started = time.time()
    with pytest.raises(DataError, match="another ingestion is writing"):
        ingest(source, tmp_path / "place" / "store")
    assert time.time() - started < 2
    ingest(source, tmp_path / "place" / "other")
    process.kill()
    process.wait(timeout=20)
    process.stdout.close()


def test_the_lock_holds_within_a_process_too(tmp_path):
    with StoreLock(tmp_path / "store"):
        with pytest.raises(DataError, match="another ingestion"):
            StoreLock(tmp_path / "store").__enter__()
    with StoreLock(tmp_path / "store"):
        pass
    assert hidden(tmp_path) == []


def test_an_error_midway_leaves_nothing_and_keeps_the_old_store(tables, tmp_path, monkeypatch):
    store = ingest(tables, tmp_path / "store")
    before = fingerprint(store)
    tables["bars"]["close"] *= 1.001

    def fail(self, *arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(StoreWriter, "features", fail)
    for out in (store, tmp_path / "new"):
        with pytest.raises(OSError, match="no space"):
            ingest(tables, out, overwrite=True)
    assert fingerprint(store) == before and not (tmp_path / "new").exists() and hidden(tmp_path) == []


def test_an_existing_store_is_replaced_only_on_request(tables, tmp_path):
    store = ingest(tables, tmp_path / "store")
    before = fingerprint(store)
    tables["bars"]["close"] *= 1.001
    with pytest.raises(DataError, match="give --overwrite"):
        ingest(tables, store)
    assert fingerprint(store) == before
    ingest(tables, store, overwrite=True)
    assert fingerprint(store) != before and hidden(tmp_path) == []


def test_a_replacement_that_died_between_its_renames_is_undone(tables, tmp_path, monkeypatch):
    store = ingest(tables, tmp_path / "store")
    os.rename(store, tmp_path / ".store.old-1")
    with StoreLock(store):
        assert check_store(store)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_that_is_no_store_is_never_touched(tables, tmp_path, overwrite):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("words")
    with pytest.raises(DataError, match="not empty and not a Qlib store"):
        ingest(tables, tmp_path / "thesis", overwrite=overwrite)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "words"
    (tmp_path / "file").write_text("words")
    with pytest.raises(DataError, match="is a file"):
        ingest(tables, tmp_path / "file", overwrite=overwrite)


def test_nothing_is_computed_before_the_goal_is_checked(tables, small_store, monkeypatch):
    monkeypatch.setattr(ingest_module, "read_tables", lambda source: pytest.fail("read the tables first"))
    with pytest.raises(DataError, match="there is a store"):
        ingest(tables, small_store)
