"""All or nothing: interruptions, the lock, a full disk, replacing a store."""

import ctypes
import errno
import fcntl
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store import check_store, fingerprint
from qlib_ext.store import disk, writer
from qlib_ext.store import ingest as ingest_module
from qlib_ext.store.append import append
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
    with pytest.raises(DataError, match="another command .* is writing"):
        ingest(source, tmp_path / "place" / "store")
    assert time.time() - started < 2
    ingest(source, tmp_path / "place" / "other")
    process.kill()
    process.wait(timeout=20)
    process.stdout.close()


def test_the_lock_holds_within_a_process_too(tmp_path):
    with StoreLock(tmp_path / "store"):
        with pytest.raises(DataError, match="another command"):
            StoreLock(tmp_path / "store").__enter__()
    with StoreLock(tmp_path / "store"):
        pass
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("error, named", [
    (OSError(errno.ENOSPC, "No space left on device"), "no space left on the device for .*needs about 1 MB, [0-9]+ MB are free"),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), r"no space left .*nothing was changed: make room.*\(Disk quota exceeded\)"),
    (PermissionError(errno.EACCES, "Permission denied", "/place"), "no permission to write /place"),
    (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    (RuntimeError("other"), "other")])  # fmt: skip
@pytest.mark.parametrize("part", ["features", "table", "publish"])
def test_an_error_midway_leaves_nothing_and_keeps_the_old_store(tables, small_store, tmp_path, monkeypatch, error, named, part):
    store = shutil.copytree(small_store, tmp_path / "store")
    before = fingerprint(store)

    def fail(self, *arguments):
        raise error

    monkeypatch.setattr(StoreWriter, part, fail)
    kind = type(error) if error.args[0] in (errno.EIO, "other") else DataError
    for out in (store, tmp_path / "new"):
        with pytest.raises(kind, match=named):
            ingest(tables, out, overwrite=True)
    assert fingerprint(store) == before and not (tmp_path / "new").exists() and hidden(tmp_path) == []


def test_too_little_room_is_noticed_before_writing(tables, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=70_000))
    monkeypatch.setattr(StoreWriter, "features", lambda *arguments: pytest.fail("wrote something"))
    with pytest.raises(DataError, match="no space left on the device for .*store: needs about 1 MB, 0 MB are free; nothing was"):
        ingest(tables, tmp_path / "store")
    assert hidden(tmp_path) == [] and not (tmp_path / "store").exists()


def test_the_estimate_of_the_room_is_about_right(small_store, tables, tmp_path, monkeypatch):
    needs = []
    monkeypatch.setattr(disk, "check_room", lambda out, needed: needs.append(needed))
    monkeypatch.setattr(writer, "check_room", disk.check_room)
    store = ingest(tables, tmp_path / "store")
    took = sum(4096 * -(-file.stat().st_size // 4096) for file in store.rglob("*.bin"))
    assert 0.5 < needs[0] / took < 2


FULL_DISK = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))  # no file may grow beyond
from qlib_ext.store.__main__ import main
sys.exit(main(["ingest", "--tables", sys.argv[1], "--out", sys.argv[2]]))
"""


@pytest.mark.parametrize("limit", [0, 150, 2_000])
def test_a_file_that_may_not_grow(tables, tmp_path, limit):
    """A real refusal of the system: at the first file, at a feature file, at a kept table."""
    save(tables, tmp_path / "tables")
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "tables"), str(tmp_path / "place" / "store"), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "error: no space left on the device for" in done.stderr, done.stderr[-2000:]
    assert list((tmp_path / "place").iterdir()) == []


def test_a_place_nobody_may_write(tables):
    """The kernel's own folder takes no folders, whoever asks."""
    with pytest.raises(DataError, match="no permission to write /sys/qlib_ext_nowhere"):
        ingest(tables, "/sys/qlib_ext_nowhere/store")


# ---- links --------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def link(small_store, tmp_path):
    """A link to a copy of a store on another folder."""
    shutil.copytree(small_store, tmp_path / "disk" / "store")
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "store")
    return tmp_path / "link"


def test_a_store_behind_a_link_is_replaced_behind_it(tables, link, small_store):
    tables["bars"]["turnover"] *= 1.001
    for _ in range(2):
        assert ingest(tables, link, overwrite=True) == link.resolve()
        assert link.is_symlink() and fingerprint(link) == fingerprint(link.resolve()) != fingerprint(small_store)
        assert hidden(link.parent) == [] and [path.name for path in link.resolve().parent.iterdir()] == ["store"]


def test_a_store_has_one_lock_by_all_its_names(link):
    with StoreLock(link.resolve()):
        with pytest.raises(DataError, match="another command .* is writing"):
            StoreLock(link).__enter__()


def test_a_link_that_leads_nowhere(tables, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for out in (tmp_path / "link", tmp_path / "link" / "store"):
        with pytest.raises(DataError, match="link is a link to .*nowhere, which is not there"):
            ingest(tables, out)
        with pytest.raises(DataError, match="which is not there"):
            append(tables, out)
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", [".store.old-1", ".store.building-1", ".store.replaced-1-1"])
def test_leftovers_that_are_links_are_removed_alone(small_store, tmp_path, name):
    (tmp_path / name).symlink_to(small_store)
    with StoreLock(tmp_path / "store"):
        pass
    assert list(tmp_path.iterdir()) == [] and check_store(small_store)


# ---- replacing ----------------------------------------------------------------------------------------------------------------
def folders(place: Path) -> tuple:
    for name in ("first", "second"):
        (place / name).mkdir()
        (place / name / name).touch()
    return place / "first", place / "second"


def test_two_folders_are_exchanged(tmp_path):
    first, second = folders(tmp_path)
    assert disk.exchange(first, second)
    assert (first / "second").exists() and (second / "first").exists()
    with pytest.raises(FileNotFoundError):
        disk.exchange(first, tmp_path / "third")


class _Library:
    """A C library whose renameat2 fails with one error number."""

    def __init__(self, number: int):
        self.number = number

    def renameat2(self, *arguments) -> int:
        ctypes.set_errno(self.number)
        return -1


@pytest.mark.parametrize("library", [object(), _Library(errno.EINVAL), _Library(errno.ENOSYS), _Library(errno.ENOTSUP)])
def test_a_system_without_exchange_renames_twice(tables, small_store, tmp_path, monkeypatch, library):
    monkeypatch.setattr(disk.ctypes, "CDLL", lambda *arguments, **keywords: library)
    first, second = folders(tmp_path)
    assert not disk.exchange(first, second) and (first / "first").exists()
    store = shutil.copytree(small_store, tmp_path / "store")
    tables["bars"]["turnover"] *= 1.001
    ingest(tables, store, overwrite=True)
    assert fingerprint(store) != fingerprint(small_store) and hidden(tmp_path) == []


def test_an_exchange_that_fails_keeps_the_old_store(tables, small_store, tmp_path, monkeypatch):
    store = shutil.copytree(small_store, tmp_path / "store")
    monkeypatch.setattr(disk.ctypes, "CDLL", lambda *arguments, **keywords: _Library(errno.ENOSPC))
    with pytest.raises(DataError, match="no space left on the device"):
        ingest(tables, store, overwrite=True)
    assert fingerprint(store) == fingerprint(small_store) and hidden(tmp_path) == []


def test_a_store_is_there_at_every_instant(tmp_path):
    """Published 100 times while another thread looks without pause."""
    out, stop, seen = tmp_path / "store", threading.Event(), Counter()

    def look():
        while not stop.is_set():
            try:
                seen[json.loads((out / "qlib_ext_store.json").read_text())["number"]] += 1
            except FileNotFoundError:
                seen["missing"] += out.exists() is False

    watcher = threading.Thread(target=look)
    for number in range(100):
        with StoreLock(out), StoreWriter(out) as one:
            one.publish({"number": number, "spans": {"calendar": ["", "2020-01-02", 1]}}, {})
        if number == 0:
            watcher.start()
    stop.set()
    watcher.join()
    assert len(seen) > 20 and not seen["missing"]


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


@pytest.mark.parametrize("supported", [True, False])
def test_the_replaced_store_is_removed_when_others_may_write_again(tables, small_store, tmp_path, monkeypatch, supported):
    store, removed, original = shutil.copytree(small_store, tmp_path / "store"), [], writer.remove

    def look(folder, **options):
        assert not (tmp_path / ".store.lock").exists()
        removed.append((folder.name.split("-")[0], fingerprint(folder)))
        original(folder, **options)

    monkeypatch.setattr(writer, "remove", look)
    if not supported:
        monkeypatch.setattr(writer, "exchange", lambda *folders: False)
    before = fingerprint(store)
    tables["bars"]["turnover"] *= 1.001
    ingest(tables, store, overwrite=True)
    assert removed == [(".store.replaced", before)] and hidden(tmp_path) == []


def test_a_lock_whose_file_its_last_holder_removed_is_taken_again(tmp_path, monkeypatch):
    """The file goes between our open and our lock: what we then hold keeps nobody out."""
    taken, original = [], fcntl.flock

    def late(file, how):
        if not taken:
            os.unlink(file.name)
        taken.append(original(file, how))

    monkeypatch.setattr(fcntl, "flock", late)
    with StoreLock(tmp_path / "store") as lock:
        assert len(taken) == 2 and lock.path.exists()
        with pytest.raises(DataError, match="another command"):
            StoreLock(tmp_path / "store").__enter__()


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
    monkeypatch.setattr(ingest_module, "read_tables", lambda *arguments: pytest.fail("read the tables first"))
    with pytest.raises(DataError, match="there is a store"):
        ingest(tables, small_store)


@pytest.mark.parametrize("names, match", [
    ("csi300", r"index_names='csi300' is one text; give a list of names, \['csi300'\]"), ((), "no index name"),
    (("csi300", "csi300"), r"index names \['csi300'\] are given more than once"),
    *((("csi300", name), r"index names \[.*\]: give names of a-z, 0-9 and _ other than \['all', 'bond', 'etf', 'index', 'sto")
      for name in ("all", "index", "etf", "bond", "stock", "a/b", "../evil", "", "CSI500", "csi500\n", None))])  # fmt: skip
def test_names_of_indices_are_checked_before_anything_is_read(tables, tmp_path, monkeypatch, names, match):
    monkeypatch.setattr(ingest_module, "read_tables", lambda *arguments: pytest.fail("read the tables first"))
    with pytest.raises(ConfigError, match=match):
        ingest(tables, tmp_path / "place" / "store", index_names=names)
    assert not (tmp_path / "place").exists()


# ---- kills --------------------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_kills_leave_the_old_store_or_the_new_one(tmp_path):
    command = [sys.executable, ROOT / "scripts" / "kill_store.py", "--times", "4", "--stocks", "30", "--place", tmp_path]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and "mixtures 0" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("part", ["features/sz000001", "features/sz000001/close.day.bin", "calendars", "instruments/csi300.txt",
                                  "tables", "tables/bars.parquet", "qlib_ext_store.json"])  # fmt: skip
def test_the_kill_script_would_notice_a_mixture(tables, small_store, tmp_path, part):
    specification = importlib.util.spec_from_file_location("kill_store", ROOT / "scripts" / "kill_store.py")
    script = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(script)
    last = tables["bars"]["date"].max()
    for name in ("bars", "index_bars"):
        tables[name] = tables[name][tables[name]["date"] < last]
    tables["bars"]["close"] *= 1.001
    tables["membership"].loc[2, "end"] = last
    other = ingest(tables, tmp_path / "other", index_names=("csi300", "csi500"))
    known = {script.hash_of(small_store): "old store", script.hash_of(other): "new store"}
    mixed = shutil.copytree(small_store, tmp_path / "mixed")
    assert script.state_of(mixed, known) == "old store" and script.state_of(other, known) == "new store"
    if (mixed / part).is_dir():
        shutil.rmtree(mixed / part)
        shutil.copytree(other / part, mixed / part)
    else:
        shutil.copy(other / part, mixed / part)
    assert script.state_of(mixed, known).startswith("MIXTURE")
    shutil.rmtree(mixed / "features")
    assert script.state_of(mixed, known).startswith("MIXTURE")
