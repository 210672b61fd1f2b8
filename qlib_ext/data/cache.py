"""A disk cache of float32 tables that grow by days: memory-mapped, all or nothing, shared by processes, bounded in size."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple, dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np

from qlib_ext.data.threads import run
from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.home import home
from qlib_ext.jit import compiled

logger = logging.getLogger(__name__)

FORMAT = 1
LIMIT_GB = 20.0
MANIFEST = "manifest.json"
BLOCK = 4 * 2**20  # bytes that are checked, or written, at a time
_KEYS = np.random.PCG64(20240229).random_raw(1024) | np.uint64(1)  # odd: a changed word always changes the sum of its stripe
_OURS = re.compile(r"manifest\.json(\.aside)?|values-[0-9a-f]+\.f32")
_KEY = re.compile(r"[0-9a-f]{8,128}")


class CacheDamaged(DataError):
    """What was stored is not what was written; the entry is empty now, and its rows have to be computed again."""


@dataclass(frozen=True)
class Segment:
    """Rows written at once: how many, of which days, the caller's sign that they still hold, and the checksum of their bytes."""

    rows: int
    first_day: str
    last_day: str
    guard: str
    checksum: str


class Stored(NamedTuple):
    """An entry as `FeatureCache.entries` lists it."""

    key: str
    description: str
    bytes: int
    last_used: datetime


def default_cache() -> FeatureCache | None:
    """The cache that the environment names: a folder in QLIB_EXT_CACHE, none for ``off``, ``0`` or ``false``.

    Raises:
        ConfigError: QLIB_EXT_CACHE_GB is not a positive number.
    """
    place = os.environ.get("QLIB_EXT_CACHE", "").strip()
    return None if place.lower() in ("off", "0", "false") else FeatureCache(place or None)


class FeatureCache:
    """Tables in one folder, of which those least recently used are dropped when together they exceed the limit.

    Args:
        folder: made when needed; default ``cache`` in QLIB_EXT_HOME (``~/.qlib_ext``).
        limit_gb: how many 10^9 bytes all entries may take together; default QLIB_EXT_CACHE_GB, or 20.

    Raises:
        ConfigError: the limit is not a positive number.
    """

    def __init__(self, folder: str | Path | None = None, limit_gb: float | None = None):
        self.folder = Path(folder or home() / "cache").expanduser().absolute()
        self.limit = _limit(limit_gb)
        self._warned = False

    @contextmanager
    def entry(self, key: str, width: int, description: str) -> Iterator[CacheEntry]:
        """The entry of a key, held alone for the time of the block; a thread that holds one must not wait for another.

        Args:
            key: hex digest of all that determines the values.
            width: columns.
            description: for people, in messages and lists.

        Raises:
            ConfigError: the key is no hex digest.
            ShapeError: a width below 1.
        """
        if not _KEY.fullmatch(key):
            raise ConfigError(f"cache key {key!r}: 8 to 128 hex digits in lower case are expected")
        if width < 1:
            raise ShapeError(f"cache entry {description}: width {width}, at least one column is expected")
        entry, lock = CacheEntry(self, key, width, description), self.folder / f"{key}.lock"
        with ExitStack() as stack:
            with entry.tolerant():
                stack.enter_context(locked(lock, f"another process or thread computes {description} ({key[:12]})"))
                stack.callback(entry.close, lock)
                entry.usable = True
                entry.recover()
            yield entry

    def entries(self) -> list[Stored]:
        """What is stored, least recently used first."""
        found = []
        for key in self._keys():
            description, used, sizes = "not readable", 0.0, []
            with suppress(OSError, DataError):  # dropped meanwhile, or damaged
                sizes = [path.stat().st_size for path in _files(self.folder / key)]
                used = (self.folder / key / MANIFEST).stat().st_mtime
                description = _manifest(self.folder / key)["description"]
            if sizes:
                found.append(Stored(key, description, sum(sizes), datetime.fromtimestamp(used)))
        return sorted(found, key=lambda stored: stored.last_used)

    def clear(self) -> int:
        """Remove all entries but those in use now; returns how many were removed."""
        return sum(self._drop(key) for key in self._keys())

    def refusal(self, key: str, size: int) -> str:
        """Why an entry may not grow to `size` bytes, "" if it may; drops others for it. Call it under ``room.lock``."""
        if size > self.limit:
            return f"its {size / 1e9:.3g} GB alone exceed the limit of {self.limit / 1e9:.3g} GB (QLIB_EXT_CACHE_GB)"
        others = [stored for stored in self.entries() if stored.key != key]
        excess = sum(stored.bytes for stored in others) + size - self.limit
        for stored in others:
            if excess > 0 and self._drop(stored.key):
                logger.info("cache: dropped %s (%s), which was used least recently", stored.description, stored.key[:12])
                excess -= stored.bytes
        return "" if excess <= 0 else f"entries in use now fill the limit of {self.limit / 1e9:.3g} GB (QLIB_EXT_CACHE_GB)"

    def trouble(self, error: OSError) -> None:
        """Say once that the cache does not work, why, and what to do."""
        if not self._warned:
            logger.warning("the cache in %s cannot be used (%s); features are computed and not kept: name another folder with "
                           "QLIB_EXT_CACHE, make room in this one, or switch the cache off (`cache: false`)", self.folder, error)
        self._warned = True

    def _keys(self) -> list[str]:
        with suppress(OSError):
            return sorted({name.removesuffix(".lock") for name in os.listdir(self.folder)
                           if _KEY.fullmatch(name.removesuffix(".lock"))})
        return []

    def _drop(self, key: str) -> bool:
        """Remove an entry, and nothing else; False if it is in use or may not be removed. Those who have it mapped keep it."""
        lock = self.folder / f"{key}.lock"
        with suppress(OSError), locked(lock) as held:
            if held:
                found = _remove(self.folder / key)
                lock.unlink(missing_ok=True)
                return found
        return False


@contextmanager
def locked(path: Path, waiting: str | None = None) -> Iterator[bool]:
    """Keep other processes and threads out (flock); the holder may remove the file.

    Args:
        path: the lock file.
        waiting: what to say when it has to be waited for ("": nothing); None: do not wait, but give False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    yield False
                    return
                if waiting:
                    logger.warning("waiting: %s", waiting)
                fcntl.flock(file, fcntl.LOCK_EX)
            if os.fstat(file.fileno()).st_nlink:  # else its last holder removed it between our open and our lock
                try:
                    yield True
                finally:
                    fcntl.flock(file, fcntl.LOCK_UN)  # closing is not enough where a child process has inherited it
                return


class CacheEntry:
    """One table of a `FeatureCache`, float32 [rows, width]; NaN is a value like any other.

    Attributes:
        usable: whether rows can be stored; false when the disk refuses, after one warning per cache.
        segments: what is stored, in order.
    """

    def __init__(self, cache: FeatureCache, key: str, width: int, description: str):
        self.key, self.width, self.description = key, width, description
        self.usable = False
        self.segments: tuple[Segment, ...] = ()
        self._cache, self._folder = cache, cache.folder / key
        self._file = ""
        self._extent = 0  # rows of the file that others may have mapped

    def close(self, lock: Path) -> None:
        """Nothing may be done with the entry from here on; leave no trace of it if nothing is stored."""
        self.usable, self.segments = False, ()
        with suppress(OSError):
            if not self._folder.exists():
                lock.unlink(missing_ok=True)

    @property
    def rows(self) -> int:
        """Rows stored."""
        return sum(segment.rows for segment in self.segments)

    def truncate(self, count: int) -> None:
        """Keep the first `count` segments."""
        if count < len(self.segments):
            self.segments = self.segments[:count]
            with self.tolerant():
                self._commit(self._file, self.segments, self._extent)

    def append(self, values: np.ndarray, first_day, last_day, guard: str) -> bool:
        """Store rows behind those that are there, all or nothing.

        Args:
            values: float32 [k, width].
            first_day, last_day: of these rows, datetime64[D] or text.
            guard: by which the caller will know whether the rows still hold.

        Returns:
            Whether they were stored: not if the entry is not usable, the disk refuses, or the limit is too small.

        Raises:
            ShapeError: another shape or dtype.
        """
        if values.dtype != np.float32 or values.ndim != 2 or values.shape[1] != self.width:
            raise ShapeError(f"cache entry {self.description}: {values.dtype} {list(values.shape)} was given, float32 "
                             f"[rows, {self.width}] is expected")
        if not self.usable:
            return False
        with self.tolerant():
            try:
                return self._store(values, Segment(len(values), str(first_day), str(last_day), guard, checksum(values)))
            except BaseException:
                with suppress(OSError):
                    self.recover()
                raise
        return False

    def load(self, rows: int) -> np.ndarray:
        """The first `rows` rows and one of NaN behind them, float32 [rows + 1, width], mapped: changes stay in memory.

        Raises:
            ShapeError: more rows than are stored.
            CacheDamaged: the file is not what was written; the entry is empty now.
        """
        ends = [0, *accumulate(segment.rows for segment in self.segments)]
        if not 0 <= rows <= self.rows:
            raise ShapeError(f"cache entry {self.description}: {rows} rows were asked for, {self.rows} are stored")
        if rows == 0:
            return np.full((1, self.width), np.nan, np.float32)
        used = next(k for k, end in enumerate(ends) if end >= rows)
        try:
            table = np.asarray(np.memmap(self._folder / self._file, np.float32, "c", shape=(ends[used] + 1, self.width)))
        except (OSError, ValueError) as error:
            raise self._reset(f"cannot be mapped ({error})") from error
        for segment, start in zip(self.segments[:used], ends):
            if checksum(table[start:start + segment.rows]) != segment.checksum:
                raise self._reset(f"the rows of {segment.first_day} to {segment.last_day} are damaged")
        table[rows] = np.nan
        with suppress(OSError):
            os.utime(self._folder / MANIFEST)
        return table[:rows + 1]

    def _store(self, values: np.ndarray, segment: Segment) -> bool:
        rows, line = self.rows, 4 * self.width
        behind = rows + len(values)
        fresh = not self._file or self._extent > rows  # never write where others may read
        name = f"values-{time.time_ns():x}.f32" if fresh else self._file
        with locked(self._cache.folder / "room.lock", ""):
            refusal = self._cache.refusal(self.key, (behind + 1) * line)
            if refusal:
                logger.warning("cache: %s (%s) is not stored: %s", self.description, self.key[:12], refusal)
                return False
            self._folder.mkdir(exist_ok=True)
            with open(self._folder / name, "ab") as file:
                _reserve(file.fileno(), 0 if fresh else rows * line, (behind + 1) * line)
        with open(self._folder / name, "r+b", buffering=0) as file:
            if fresh and rows:
                _write(file.fileno(), 0, np.memmap(self._folder / self._file, np.float32, "r", shape=(rows, self.width)))
            _write(file.fileno(), rows * line, values)
            _write(file.fileno(), behind * line, np.full((1, self.width), np.nan, np.float32))
            os.fsync(file.fileno())
        self._commit(name, (*self.segments, segment), behind)
        return True

    def _commit(self, file: str, segments: tuple[Segment, ...], extent: int) -> None:
        """Make these segments of this file what is stored, at one instant."""
        content = {"format": FORMAT, "width": self.width, "description": self.description, "file": file, "extent": extent,
                   "segments": [astuple(segment) for segment in segments]}
        aside = self._folder / f"{MANIFEST}.aside"
        with open(aside, "w", encoding="utf-8") as stream:
            json.dump({**content, "digest": _digest(content)}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, self._folder / MANIFEST)
        self._file, self._extent, self.segments = file, extent, segments
        with suppress(OSError):  # from here on it is stored
            _remove(self._folder, keep=(MANIFEST, file))

    def recover(self) -> None:
        """Take up what is stored; remove what writers left that were killed or failed."""
        self._file, self._extent, self.segments = "", 0, ()
        try:
            content = _manifest(self._folder)
            file, extent = content["file"], content["extent"]
            size = (extent + 1) * 4 * self.width
            if content["width"] != self.width:
                raise DataError(f"it has {content['width']} columns, {self.width} are expected")
            if not (self._folder / file).is_file() or (self._folder / file).stat().st_size < size:
                raise DataError("its values are gone in part or as a whole")
        except FileNotFoundError:
            _remove(self._folder)
        except DataError as error:
            self._reset(str(error))
        else:
            _remove(self._folder, keep=(MANIFEST, file))
            os.truncate(self._folder / file, size)
            self._file, self._extent, self.segments = file, extent, tuple(Segment(*parts) for parts in content["segments"])

    def _reset(self, why: str) -> CacheDamaged:
        """Begin anew; returns the error for a caller who counted on what was there."""
        logger.warning("cache: %s (%s) is computed again: %s", self.description, self.key[:12], why)
        self._file, self._extent, self.segments = "", 0, ()
        with self.tolerant():
            _remove(self._folder)
        return CacheDamaged(f"cache entry {self.description} ({self.key[:12]}): {why}")

    @contextmanager
    def tolerant(self) -> Iterator[None]:
        """What the disk refuses makes the entry unusable, and stops nothing."""
        try:
            yield
        except OSError as error:
            self.usable = False
            self._cache.trouble(error)


def checksum(values: np.ndarray) -> str:
    """Checksum of the bytes of a float32 table [k, width] and of their order."""
    sums = run(_block_sum, _blocks(values))
    return hashlib.blake2b(np.array(sums, np.uint64).tobytes(), digest_size=16).hexdigest()


def _block_sum(block: np.ndarray) -> int:
    return _sum(np.ascontiguousarray(block).reshape(-1).view(np.uint32), _KEYS)


@compiled
def _sum(words, keys):
    """Sums of stripes of uint32 words times their keys (which the compiler spreads over lanes), mixed in their order."""
    total = np.uint64(words.size)
    for start in range(0, words.size, keys.size):
        stripe = words[start:start + keys.size]
        part = np.uint64(0)
        for i in range(stripe.size):
            part += np.uint64(stripe[i]) * keys[i]
        total = (total ^ part) * np.uint64(0x9E3779B97F4A7C15)
        total ^= total >> np.uint64(32)
    return total


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    step = max(1, BLOCK // (4 * values.shape[1]))
    return [values[start:start + step] for start in range(0, len(values), step)]


def _write(file: int, offset: int, values: np.ndarray) -> None:
    for block in _blocks(values):
        left = memoryview(np.ascontiguousarray(block)).cast("B")
        while left:
            done = os.pwrite(file, left, offset)
            left, offset = left[done:], offset + done


def _reserve(file: int, start: int, size: int) -> None:
    """Let the disk refuse now what it has no room for."""
    try:
        os.posix_fallocate(file, start, size - start)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        os.ftruncate(file, size)  # a file system that cannot reserve: others see at least what will be needed


def _manifest(folder: Path) -> dict:
    """Raises: FileNotFoundError without one; DataError if it is damaged, or of another format."""
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
        whole = content.pop("digest") == _digest(content)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise DataError("its manifest is damaged")
    if content["format"] != FORMAT:
        raise DataError(f"it is of format {content['format']}, this version reads {FORMAT}")
    return content


def _digest(content: dict) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.glob("*") if _OURS.fullmatch(path.name)]


def _remove(folder: Path, keep: tuple[str, ...] = ()) -> bool:
    """Remove what the cache wrote here but for `keep`, then the folder if it is empty; whether there was anything."""
    found = [path for path in _files(folder) if path.name not in keep]
    for path in found:
        path.unlink(missing_ok=True)
    if not keep:
        with suppress(OSError):
            folder.rmdir()
    return bool(found)


def _limit(limit_gb: float | None) -> float:
    """Bytes."""
    name = "QLIB_EXT_CACHE_GB" if limit_gb is None else "limit_gb"
    value = os.environ.get(name) or LIMIT_GB if limit_gb is None else limit_gb
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not number > 0:
        raise ConfigError(f"{name}={value!r}: a positive number of GB is expected (QLIB_EXT_CACHE=off switches the cache off)")
    return number * 1e9
