"""The feature cache: what is loaded is what was stored, whoever kills, damages, shares, fills or forbids it."""

import errno
import fcntl
import json
import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from qlib_ext.data import cache as module
from qlib_ext.data.cache import CacheDamaged, FeatureCache, checksum, default_cache, locked
from qlib_ext.errors import ConfigError, ShapeError

ROOT = Path(__file__).resolve().parents[2]
KEY = "0123456789abcdef"
WIDTH = 5
FIRST, SECOND = ("2020-01-01", "2020-01-31", "guard 1"), ("2020-02-03", "2020-02-28", "guard 2")
THIRD = ("2020-03-02", "2020-03-31", "guard 3")


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


def table(rows: int, seed: int = 0, width: int = WIDTH) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)
    values[rows // 2, 0] = np.nan
    return values


def opened(cache, key=KEY, width=WIDTH):
    return cache.entry(key, width, "Alpha5 of csi300")


def fill(cache, *tables, key=KEY):
    with opened(cache, key) as entry:
        for values, days in zip(tables, (FIRST, SECOND, THIRD)):
            assert entry.append(values, *days)


def stored(cache, key=KEY) -> np.ndarray:
    with opened(cache, key) as entry:
        return np.array(entry.load(entry.rows))


def values_file(cache, key=KEY) -> Path:
    [path] = (cache.folder / key).glob("values-*")
    return path


def same(found: np.ndarray, *tables) -> bool:
    """Whether a loaded table holds these rows, bit for bit, and the row of NaN."""
    wanted = np.concatenate([*tables, np.full((1, WIDTH), np.nan, np.float32)])
    return found.shape == wanted.shape and np.array_equal(found, wanted, equal_nan=True)


# ---- what is stored is what is loaded ------------------------------------------------------------------------------------------
def test_round_trip(cache):
    first, second = table(40), table(7, 1)
    with opened(cache) as entry:
        assert entry.usable and entry.segments == () and entry.load(0).shape == (1, WIDTH)
        assert entry.append(first, *FIRST)
        assert entry.append(second, np.datetime64("2020-02-03"), np.datetime64("2020-02-28"), "guard 2")
    with opened(cache) as entry:
        assert [(part.rows, part.first_day, part.last_day, part.guard) for part in entry.segments] == [(40, *FIRST), (7, *SECOND)]
        loaded = entry.load(47)
        assert entry.rows == 47 and same(loaded, first, second)
        for rows in (0, 1, 39, 40, 41, 46):
            assert same(entry.load(rows), np.concatenate([first, second])[:rows])
        for rows in (-1, 48):
            with pytest.raises(ShapeError, match="47 are stored"):
                entry.load(rows)
    assert type(loaded) is np.ndarray and same(pickle.loads(pickle.dumps(loaded)), first, second)
    loaded[:] = 0  # in memory only
    assert same(stored(cache), first, second)
    assert np.isnan(np.fromfile(values_file(cache), np.float32)[-WIDTH:]).all()


def test_any_memory_layout_and_many_blocks(cache, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 100)
    wide = table(60, width=2 * WIDTH)
    columns, transposed = wide[:, ::2], np.asfortranarray(table(21, 3))
    fill(cache, columns, transposed, np.empty((0, WIDTH), np.float32))
    assert same(stored(cache), columns, transposed)
    assert checksum(columns) == checksum(columns.copy())


@pytest.mark.parametrize("values", [table(3, width=4), table(3).astype(np.float64), table(3)[0], table(3)[None]])
def test_wrong_tables_are_named(cache, values):
    fill(cache, table(4))
    with opened(cache) as entry, pytest.raises(ShapeError, match=r"Alpha5 of csi300: float.* was given, float32 \[rows, 5\]"):
        entry.append(values, *SECOND)
    assert same(stored(cache), table(4))


@pytest.mark.parametrize("key, width, error", [("../etc", 5, ConfigError), ("ABCDEF0123", 5, ConfigError), (KEY, 0, ShapeError)])
def test_wrong_keys_are_named(cache, key, width, error):
    with pytest.raises(error), cache.entry(key, width, "x"):
        pass


def test_nothing_can_be_done_behind_the_block(cache):
    with opened(cache) as entry:
        entry.append(table(4), *FIRST)
    assert not entry.usable and not entry.segments and not entry.append(table(4), *FIRST)
    assert same(stored(cache), table(4))


def test_an_empty_entry_leaves_nothing(cache):
    with opened(cache):
        pass
    assert not cache.folder.exists() or os.listdir(cache.folder) == []


# ---- those who have it mapped --------------------------------------------------------------------------------------------------
def test_what_is_mapped_stays(cache):
    first, second = table(40), table(700, 1)
    fill(cache, first)
    with opened(cache) as entry:
        part, whole = entry.load(11), entry.load(40)
        untouched = np.memmap(values_file(cache), np.float32, "r", shape=(40, WIDTH))  # what another process sees
        before = values_file(cache)
        entry.append(second, *SECOND)
        assert values_file(cache) == before and same(entry.load(740), first, second)
    assert same(part, first[:11]) and same(whole, first) and np.array_equal(untouched, first, equal_nan=True)


@pytest.mark.parametrize("again", [True, False])
def test_truncate_and_append_leave_mapped_rows_alone(cache, again):
    """Also when the process that truncates ends before it appends."""
    first, second, other, more = table(40), table(30, 1), table(30, 2), table(9, 3)
    fill(cache, first, second)
    before = values_file(cache)
    mapped = np.memmap(before, np.float32, "r", shape=(70, WIDTH))
    with opened(cache) as entry:
        loaded = entry.load(70)
        entry.truncate(5)
        assert entry.rows == 70
        entry.truncate(1)
        assert entry.rows == 40 and same(entry.load(40), first)
        if again:
            entry.append(other, *SECOND)
            assert values_file(cache) != before  # the only one: the old name is gone at once
    with opened(cache) as entry:
        assert len(entry.segments) == 1 + again
        if not again:
            entry.append(other, *SECOND)
        entry.append(more, *THIRD)
    assert same(stored(cache), first, other, more) and values_file(cache) != before
    assert same(loaded, first, second) and np.array_equal(mapped, np.concatenate([first, second]), equal_nan=True)


def test_truncate_to_nothing(cache):
    fill(cache, table(40))
    with opened(cache) as entry:
        entry.truncate(0)
        assert entry.rows == 0 and entry.load(0).shape == (1, WIDTH)
        entry.append(table(3, 1), *FIRST)
    assert same(stored(cache), table(3, 1))


# ---- damage --------------------------------------------------------------------------------------------------------------------
def flip(path: Path, place: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def swap(path: Path, one: int, other: int, size: int) -> None:
    content = bytearray(path.read_bytes())
    one, other = slice(one * size, (one + 1) * size), slice(other * size, (other + 1) * size)
    content[one], content[other] = content[other], content[one]
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [
    lambda path: flip(path, 0), lambda path: flip(path, 4 * WIDTH * 39 + 19, 7), lambda path: flip(path, 4 * WIDTH * 40, 3),
    lambda path: flip(path, 4 * WIDTH * 70 - 1, 6), lambda path: swap(path, 3, 4, 4 * WIDTH), lambda path: swap(path, 3, 4, 4),
    lambda path: swap(path, 45, 50, 4 * WIDTH)])
@pytest.mark.parametrize("block", [module.BLOCK, 100])
def test_damaged_values_are_found(cache, monkeypatch, caplog, damage, block):
    monkeypatch.setattr(module, "BLOCK", block)
    first, second = table(40), table(30, 1)
    fill(cache, first, second)
    damage(values_file(cache))
    with opened(cache) as entry:
        with pytest.raises(CacheDamaged, match="the rows of 2020-0.* are damaged"):
            entry.load(70)
        assert entry.usable and entry.segments == () and len(caplog.records) == 1
        assert entry.append(first, *FIRST) and same(entry.load(40), first)
    assert same(stored(cache), first)


def test_only_the_segments_in_use_are_checked_but_those_as_a_whole(cache):
    fill(cache, table(40), table(30, 1))
    flip(values_file(cache), 4 * WIDTH * 69)
    with opened(cache) as entry:
        assert same(entry.load(40), table(40))
        with pytest.raises(CacheDamaged):
            entry.load(41)
        assert not (cache.folder / KEY).exists()


def test_order_counts_everywhere():
    """Words, stripes of the kernel, blocks of a thread: no two may change places; every bit of a word counts."""
    words = np.random.default_rng(0).integers(0, 2**32, 3 * 2**20, dtype=np.uint32)  # three blocks
    sums = {checksum(words.view(np.float32)[:, None])}
    for one, other, size in [(0, 1, 1), (5, 1029, 1), (0, 2**20, 1), (0, 1, 1024), (3, 700, 1024), (0, 1, 2**20), (1, 2, 2**20)]:
        changed = words.copy().reshape(-1, size)
        changed[[one, other]] = changed[[other, one]]
        sums.add(checksum(changed.reshape(-1, 1).view(np.float32)))
    for bit in range(32):
        changed = words.copy()
        changed[1234567] ^= np.uint32(1 << bit)
        sums.add(checksum(changed.view(np.float32)[:, None]))
    zeros = np.zeros((2000, 1), np.float32)
    sums |= {checksum(zeros[:rows]) for rows in (0, 1, 2, 1024, 1025, 2000)}
    assert len(sums) == 1 + 7 + 32 + 6


def manifest(cache) -> Path:
    return cache.folder / KEY / "manifest.json"


def rewrite(cache, **changes) -> None:
    content = json.loads(manifest(cache).read_text())
    del content["digest"]
    content.update(changes)
    manifest(cache).write_text(json.dumps({**content, "digest": module._digest(content)}))


@pytest.mark.parametrize("damage, why", [
    (lambda cache: os.truncate(values_file(cache), 40 * 4 * WIDTH), "its values are gone in part"),
    (lambda cache: values_file(cache).unlink(), "its values are gone"),
    (lambda cache: manifest(cache).write_bytes(b""), "its manifest is damaged"),
    (lambda cache: manifest(cache).write_bytes(b"\xff\x00garbage"), "its manifest is damaged"),
    (lambda cache: manifest(cache).write_text("[1, 2]"), "its manifest is damaged"),
    (lambda cache: manifest(cache).write_text("[" * 100_000), "its manifest is damaged"),
    (lambda cache: manifest(cache).write_text("{}"), "its manifest is damaged"),
    (lambda cache: manifest(cache).write_text(manifest(cache).read_text().replace("guard 1", "guard 2")), "its manifest is dam"),
    (lambda cache: rewrite(cache, format=2), "it is of format 2, this version reads 1"),
    (lambda cache: rewrite(cache, width=4), "it has 4 columns, 5 are expected")])
def test_a_damaged_entry_begins_anew(cache, caplog, damage, why):
    fill(cache, table(40))
    damage(cache)
    assert [found.key for found in cache.entries()] == [KEY]
    with opened(cache) as entry:
        assert entry.usable and entry.segments == () and len(caplog.records) == 1
        assert f"Alpha5 of csi300 ({KEY[:12]}) is computed again: {why}" in caplog.text
        assert entry.append(table(6, 1), *FIRST)
    assert same(stored(cache), table(6, 1)) and len(os.listdir(cache.folder / KEY)) == 2


def test_values_that_vanish_in_the_block(cache):
    fill(cache, table(40))
    with opened(cache) as entry:
        values_file(cache).unlink()
        with pytest.raises(CacheDamaged, match="cannot be mapped"):
            entry.load(40)
        assert entry.append(table(40), *FIRST)
    assert same(stored(cache), table(40))


# ---- kills and several processes -----------------------------------------------------------------------------------------------
WRITER = """
import sys
import numpy as np
from qlib_ext.data.cache import FeatureCache, checksum
values = np.load(sys.argv[2])
cache = FeatureCache(sys.argv[1])
checksum(values)  # loads what numba compiled
print("ready", flush=True)
while True:
    with cache.entry(sys.argv[3], values.shape[1], "killed") as entry:
        if len(entry.segments) > 2:
            entry.truncate(1)
        k = len(entry.segments)
        entry.append(values + np.float32(k), "2020-01-01", "2020-01-02", str(k))
"""


def start(*arguments) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE)  # fmt: skip
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def test_kills_leave_the_old_entry_or_the_new_one(cache, tmp_path, caplog):
    values = table(20_000)
    np.save(tmp_path / "values.npy", values)
    counts = set()
    for attempt in range(10):
        process = start(WRITER, cache.folder, tmp_path / "values.npy", KEY)
        time.sleep(random.Random(attempt).uniform(0.0, 0.1))
        process.kill()
        process.communicate()
        with opened(cache) as entry:
            found = entry.load(entry.rows)
            assert [part.guard for part in entry.segments] == [str(k) for k in range(len(entry.segments))]
            assert same(found, *[values + np.float32(k) for k in range(len(entry.segments))])
            counts.add(len(entry.segments))
            names = os.listdir(cache.folder / KEY) if entry.segments else []
            assert len(names) in (0, 2) and not any("aside" in name for name in names)
            if names:
                assert values_file(cache).stat().st_size in ((len(found) + 20_000 * k) * 4 * WIDTH for k in range(3))
    assert not caplog.records and len(counts) > 1, counts


@pytest.mark.parametrize("step, number, done", [("posix_fallocate", 1, False), ("pwrite", 1, False), ("pwrite", 2, False),
                                                ("fsync", 1, False), ("fsync", 2, False), ("replace", 1, False),
                                                ("replace", 1, True)])
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("killed", [False, True])
def test_a_stop_at_any_step_of_an_append(cache, monkeypatch, step, number, done, truncated, killed):
    """Killed: nothing is cleaned up, the next one finds what lies there."""
    fill(cache, table(40), table(30, 1))
    with opened(cache) as entry:
        entry.truncate(2 - truncated)
    original, recover, calls = getattr(os, step), module.CacheEntry.recover, []

    def stop(*arguments):
        calls.append(arguments)
        if len(calls) == number + (truncated and step == "pwrite"):  # where what is kept is written first
            _ = done and original(*arguments)
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, step, stop)
        patch.setattr(module.CacheEntry, "recover", lambda entry: None if killed and calls else recover(entry))
        with opened(cache) as entry:
            entry.append(table(9, 2), *THIRD)
    kept = [table(40)] if truncated else [table(40), table(30, 1)]
    if not killed:
        assert len(os.listdir(cache.folder / KEY)) == 2
    assert same(stored(cache), *kept, *[table(9, 2)] * done)
    assert len(os.listdir(cache.folder / KEY)) == 2


COMPUTER = """
import logging, sys, time
import numpy as np
from qlib_ext.data.cache import FeatureCache
logging.basicConfig(format="%(message)s")
print("ready", flush=True)
with FeatureCache(sys.argv[1]).entry(sys.argv[2], 5, "Alpha5 of csi300") as entry:
    if entry.segments:
        print("found", entry.rows, float(entry.load(entry.rows)[0, 0]), flush=True)
    else:
        print("computes", flush=True)
        time.sleep(1)
        entry.append(np.full((100, 5), 7, np.float32), "2020-01-01", "2020-01-31", "g")
"""


def test_two_processes_compute_once(cache):
    first = start(COMPUTER, cache.folder, KEY)
    assert first.stdout.readline() == "computes\n"
    second = start(COMPUTER, cache.folder, KEY)
    out, log = second.communicate(timeout=30)
    assert out == "found 100 7.0\n"
    assert log == f"waiting: another process or thread computes Alpha5 of csi300 ({KEY[:12]})\n"
    assert first.communicate(timeout=30) == ("", "")


def test_threads_exclude_each_other(cache):
    inside, most = [], []

    def work(number: int) -> None:
        for _ in range(5):
            with opened(cache) as entry:
                inside.append(number)
                most.append(len(inside))
                time.sleep(0.002)
                entry.append(table(3, entry.rows), *FIRST)
                inside.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert max(most) == 1 and len(most) == 20 and same(stored(cache), *[table(3, 3 * k) for k in range(20)])


def test_the_lock_may_be_removed_while_another_waits(tmp_path):
    """Who waited for the removed file has to wait for the new one too."""
    got, path = [], tmp_path / "x.lock"

    def wait() -> None:
        with locked(path, ""):
            got.append(path.exists())

    with ExitStack() as first, ExitStack() as second:
        first.enter_context(locked(path))
        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        path.unlink()
        assert second.enter_context(locked(path))
        first.close()
        time.sleep(0.1)
        assert not got
    thread.join(10)
    assert got == [True]


def test_a_child_that_inherited_the_lock_does_not_keep_it(cache):
    fill(cache, table(4))
    reading, writing = os.pipe()
    with opened(cache):
        child = os.fork()
        if child == 0:
            os.close(writing)
            os.read(reading, 1)  # until the parent closes its end
            os._exit(0)
    with locked(cache.folder / f"{KEY}.lock") as held:
        assert held
    os.close(writing)
    os.waitpid(child, 0)
    os.close(reading)


# ---- the bound -----------------------------------------------------------------------------------------------------------------
KEYS = [f"{k:016x}" for k in range(5)]
SIZE = 101 * 4 * WIDTH  # of the values of an entry of 100 rows


def bounded(tmp_path, entries: float) -> FeatureCache:
    return FeatureCache(tmp_path / "cache", limit_gb=entries * (SIZE + 600) / 1e9)


def used(cache, key: str, when: int) -> None:
    os.utime(cache.folder / key / "manifest.json", (when, when))


def test_the_least_recently_used_are_dropped(tmp_path):
    cache = bounded(tmp_path, 3)
    for k, when in ((0, 300), (1, 100), (2, 200)):
        fill(cache, table(100, k), key=KEYS[k])
        used(cache, KEYS[k], when)
    assert [found.key for found in cache.entries()] == [KEYS[1], KEYS[2], KEYS[0]]
    with opened(cache, KEYS[1]) as entry:
        mapped = entry.load(100)  # and with that, used last
    fill(cache, table(100, 3), key=KEYS[3])
    assert [found.key for found in cache.entries()] == [KEYS[0], KEYS[1], KEYS[3]]
    fill(cache, table(100, 4), table(100, 5), key=KEYS[4])
    assert [found.key for found in cache.entries()] == [KEYS[3], KEYS[4]]
    assert sum(found.bytes for found in cache.entries()) <= cache.limit
    assert same(mapped, table(100, 1)) and same(stored(cache, KEYS[4]), table(100, 4), table(100, 5))
    assert sorted(os.listdir(cache.folder)) == sorted([KEYS[3], KEYS[3] + ".lock", KEYS[4], KEYS[4] + ".lock", "room.lock"])


def test_entries_in_use_are_not_dropped(tmp_path, caplog):
    cache = bounded(tmp_path, 3)
    for k in range(3):
        fill(cache, table(100, k), key=KEYS[k])
        used(cache, KEYS[k], 100 + k)
    with open(cache.folder / f"{KEYS[0]}.lock") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        fill(cache, table(100, 3), key=KEYS[3])
        assert [found.key for found in cache.entries()] == [KEYS[0], KEYS[2], KEYS[3]]
        with opened(cache, KEYS[4]) as entry:
            assert not entry.append(table(280, 4), *FIRST) and entry.usable
    assert "is not stored: entries in use now fill the limit" in caplog.text and KEYS[0] in [x.key for x in cache.entries()]


def test_what_alone_exceeds_the_limit_is_not_stored(tmp_path, caplog):
    cache = bounded(tmp_path, 2)
    fill(cache, table(100), key=KEYS[0])
    with opened(cache, KEYS[1]) as entry:
        assert entry.append(table(50, 1), *FIRST)
        assert not entry.append(table(300, 2), *SECOND)
        assert same(entry.load(50), table(50, 1))
    assert len(caplog.records) == 1 and "alone exceed the limit" in caplog.text and "QLIB_EXT_CACHE_GB" in caplog.text
    assert same(stored(cache, KEYS[0]), table(100)) and same(stored(cache, KEYS[1]), table(50, 1))


def test_listing_and_clearing_touch_nothing_else(cache):
    fill(cache, table(100), key=KEYS[0])
    fill(cache, table(10), key=KEYS[1])
    foreign = cache.folder / "deadbeefdeadbeef" / "thesis.txt"
    foreign.parent.mkdir()
    foreign.write_text("mine")
    (cache.folder / KEYS[0] / "note.txt").write_text("mine")
    [first, second] = cache.entries()
    assert first[:2] == (KEYS[0], "Alpha5 of csi300") and SIZE < first.bytes < SIZE + 600
    assert abs(second.last_used.timestamp() - time.time()) < 60
    with opened(cache, KEYS[1]):
        assert cache.clear() == 1
    assert [found.key for found in cache.entries()] == [KEYS[1]]
    assert cache.clear() == 1 and cache.entries() == [] and foreign.read_text() == "mine"
    assert (cache.folder / KEYS[0]).exists() and not (cache.folder / KEYS[1]).exists()
    assert FeatureCache(cache.folder / "absent").entries() == [] and FeatureCache(cache.folder / "absent").clear() == 0


# ---- what the disk refuses -----------------------------------------------------------------------------------------------------
def check_unusable(cache, caplog, reason: str) -> None:
    for key in KEYS[:2]:
        with opened(cache, key) as entry:
            assert not entry.usable and entry.segments == ()
            assert not entry.append(table(4), *FIRST) and entry.rows == 0
            entry.truncate(0)
    assert len(caplog.records) == 1 and caplog.records[0].levelno == logging.WARNING
    for part in (str(cache.folder), reason, "QLIB_EXT_CACHE", "`cache: false`"):
        assert part in caplog.text


def test_a_path_below_a_file(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    check_unusable(FeatureCache(tmp_path / "file" / "cache"), caplog, "Not a directory")


def test_a_path_that_is_a_file(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    check_unusable(FeatureCache(tmp_path / "file"), caplog, "File exists")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(cache, caplog, monkeypatch, number):
    def refuse(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    check_unusable(cache, caplog, os.strerror(number))


@pytest.mark.parametrize("broken", ["mkdir", "truncate"])
def test_a_read_only_file_system(cache, caplog, monkeypatch, broken):
    for key in KEYS[:2]:
        fill(cache, table(4), key=key)
    if broken == "mkdir":
        shutil.rmtree(cache.folder)

    def refuse(path, *arguments, **keywords):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, broken, refuse)
    check_unusable(cache, caplog, "Read-only file system")


@pytest.mark.parametrize("part, after", [("posix_fallocate", 0), ("pwrite", 0), ("pwrite", 3), ("fsync", 0), ("fsync", 1),
                                         ("replace", 0)])
@pytest.mark.parametrize("truncated", [False, True])
def test_a_full_disk_keeps_what_was_stored(cache, caplog, monkeypatch, part, after, truncated):
    monkeypatch.setattr(module, "BLOCK", 100)
    fill(cache, table(40), table(30, 1))
    with opened(cache) as entry:
        entry.truncate(2 - truncated)
    kept = [table(40)] if truncated else [table(40), table(30, 1)]
    size, original, calls = values_file(cache).stat().st_size, getattr(os, part), []

    def refuse(*arguments):
        calls.append(arguments)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, part, refuse)
        with opened(cache) as entry:
            assert not entry.append(table(50, 2), *THIRD) and not entry.usable and not entry.append(table(50, 2), *THIRD)
            assert len(caplog.records) == 1 and "No space left on device" in caplog.text
            assert values_file(cache).stat().st_size == size and len(os.listdir(cache.folder / KEY)) == 2
            assert same(entry.load(entry.rows), *kept)
        with opened(cache, KEYS[1]) as entry:
            assert not entry.append(table(50, 2), *THIRD)
    assert len(caplog.records) == 1 and not (cache.folder / KEYS[1]).exists()
    with opened(cache) as entry:
        assert entry.append(table(50, 2), *THIRD)
    assert same(stored(cache), *kept, table(50, 2))


def test_a_file_that_may_not_grow(cache):
    """A real refusal of the system, in another process."""
    fill(cache, table(40))
    script = ("import resource, sys\nimport numpy as np\nfrom qlib_ext.data import cache as module\n"
              "module._reserve = lambda *arguments: None\nprint('ready', flush=True)\n"
              "with module.FeatureCache(sys.argv[1]).entry(sys.argv[2], 5, 'x') as entry:\n"
              "    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))\n"
              "    print(entry.append(np.ones((1000, 5), np.float32), '', '', ''), entry.rows)\n")
    out, log = start(script, cache.folder, KEY).communicate(timeout=30)
    assert out == "False 40\n" and "File too large" in log
    assert values_file(cache).stat().st_size == 41 * 4 * WIDTH and same(stored(cache), table(40))


def test_a_file_system_that_cannot_reserve(cache, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    fill(cache, table(40), table(30, 1))
    assert same(stored(cache), table(40), table(30, 1))


def test_writes_that_the_system_cuts_short(cache, monkeypatch):
    original = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: original(file, data[:13], place))
    fill(cache, table(40), table(30, 1))
    assert same(stored(cache), table(40), table(30, 1))


def test_an_error_of_the_caller_is_not_taken_for_trouble(cache, caplog):
    with pytest.raises(OSError, match="mine"), opened(cache) as entry:
        entry.append(table(4), *FIRST)
        raise OSError("mine")
    assert same(stored(cache), table(4)) and not caplog.records


# ---- the environment -----------------------------------------------------------------------------------------------------------
def test_the_environment_decides(tmp_path, monkeypatch):
    for name in ("QLIB_EXT_CACHE", "QLIB_EXT_CACHE_GB"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path))
    assert default_cache().folder == FeatureCache().folder == tmp_path / "cache" and default_cache().limit == 20e9
    for word in ("off", "0", "false", "OFF", " False "):
        monkeypatch.setenv("QLIB_EXT_CACHE", word)
        assert default_cache() is None
    monkeypatch.setenv("QLIB_EXT_CACHE", str(tmp_path / "other"))
    monkeypatch.setenv("QLIB_EXT_CACHE_GB", "0.5")
    assert default_cache().folder == tmp_path / "other" and default_cache().limit == 5e8
    assert FeatureCache(limit_gb=3).limit == 3e9
    for bad in ("much", "-1", "0", "nan"):
        monkeypatch.setenv("QLIB_EXT_CACHE_GB", bad)
        with pytest.raises(ConfigError, match="QLIB_EXT_CACHE_GB"):
            default_cache()
        with pytest.raises(ConfigError, match="limit_gb"):
            FeatureCache(limit_gb=bad)
    monkeypatch.delenv("QLIB_EXT_HOME")
    monkeypatch.setenv("QLIB_EXT_CACHE_GB", "")
    assert FeatureCache().folder == Path.home() / ".qlib_ext" / "cache" and not (tmp_path / "cache").exists()
