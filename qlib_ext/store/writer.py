"""Writing a Qlib store all or nothing: a folder beside the goal is filled, then put in its place; a lock keeps writers apart."""

import fcntl
import glob
import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data.storage import CalendarStorage
from qlib.data.storage.file_storage import FileCalendarStorage, FileFeatureStorage
from qlib.utils.time import Freq

from qlib_ext.errors import DataError
from qlib_ext.store.disk import check_room, disk_fault, exchange, real_path, remove
from qlib_ext.store.metadata import METADATA_FILE, check_store, combine, digest, with_intraday

logger = logging.getLogger("qlib_ext.store")
_DAY = Freq("day")


class _WithoutInit:
    """Lets Qlib's file storages work on a folder without `qlib.init` (they ask the global configuration for mount paths).

    Qlib derives a storage's folder from its class name: subclasses must end in FeatureStorage, CalendarStorage.
    """

    _support_freq = [_DAY]

    @property
    def dpm(self):
        return C.DataPathManager(self._provider_uri, dict.fromkeys(self._provider_uri))


class _PlainFeatureStorage(_WithoutInit, FileFeatureStorage):
    pass


class _PlainCalendarStorage(_WithoutInit, FileCalendarStorage):
    def __init__(self, root: str):  # Qlib's constructor asks the global configuration for a region
        CalendarStorage.__init__(self, "day", False)
        self._provider_uri = C.DataPathManager.format_provider_uri(root)
        self._freq_file_cache = _DAY


class StoreLock:
    """Holds the right to write one store, `out` with its links followed; on entry also clears what dead writers left behind, on
    exit, when others may write again, removes the stores that were replaced.

    Raises
    ------
    DataError
        A link that leads nowhere; another writer, in this process or another, holds the lock; or the folder around the store may
        not be written.
    """

    def __init__(self, out: Path):
        self.out = real_path(out)
        self.path = self.out.parent / f".{self.out.name}.lock"
        self._file = None

    def __enter__(self) -> "StoreLock":
        try:
            return self._acquire()
        except OSError as error:
            raise disk_fault(error, self.out) from error

    def _acquire(self) -> "StoreLock":
        self.out.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = open(self.path, "a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError) as error:
                file.close()
                raise DataError(f"another command (ingest or build-intraday) is writing {self.out} now: wait until it is done, or name "
                                "another store") from error
            if self._still_there(file):
                break
            file.close()  # its last holder removed the file between our open and our lock
        self._file = file
        try:
            self._clear()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(self, *exception) -> None:
        self._release()
        for folder in self._beside("replaced"):  # tens of thousands of small files: can take longer than writing them
            logger.info("removing %s, the store that was replaced, which can take minutes on a slow disk", folder)
            remove(folder, ignore_errors=True)  # another writer may be at it too

    def _release(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()

    def _still_there(self, file) -> bool:
        try:
            return os.fstat(file.fileno()).st_ino == os.stat(self.path).st_ino
        except FileNotFoundError:
            return False

    def _clear(self) -> None:
        replaced = self._beside("old")
        if replaced and not self.out.exists() and not replaced[-1].is_symlink():  # died between the two renames of a replacement
            replaced.pop().rename(self.out)
        for folder in replaced + self._beside("building"):
            logger.info("removing %s, which an interrupted ingestion left behind", folder)
            remove(folder)

    def _beside(self, what: str) -> List[Path]:
        """Folders of one purpose that writers made beside the store."""
        return sorted(self.out.parent.glob(f".{glob.escape(self.out.name)}.{what}-*"))


def check_goal(out: Path, overwrite: bool) -> None:
    """Refuse a goal that must not be replaced.

    Raises
    ------
    DataError
        `out` is a file, a non-empty folder that is no store, or a store while `overwrite` is false.
    """
    if not out.exists():
        return
    if not out.is_dir():
        raise DataError(f"{out} is a file; give a folder that does not exist yet")
    if not any(out.iterdir()):
        return
    try:
        check_store(out)
    except DataError as error:
        raise DataError(f"folder {out} is not empty and not a Qlib store; it is left alone: give another --out") from error
    if not overwrite:
        raise DataError(f"there is a store at {out} already; give --overwrite to replace it, or another --out")


class StoreWriter:
    """Fills a folder beside `out`; `publish` puts it in the place of `out`, leaving without it removes the folder. The store that
    was replaced is removed by the `StoreLock`. `needed`: about how many bytes will be written.

    Use inside a `StoreLock`. Feature and calendar files go through Qlib's own storage classes; instruments files are written
    here, since Qlib 0.9.7 writes their columns in an order it cannot read back (start, end, code).

    Raises
    ------
    DataError
        On entry: less than `needed` bytes are free. From then on: no space left, or no permission to write.
    """

    def __init__(self, out: Path, needed: int = 0):
        self.out, self.needed = out, needed
        self.folder = out.parent / f".{out.name}.building-{os.getpid()}"
        self.digests: Dict[str, str] = {}
        self.table_digests: Dict[str, str] = {}
        self._old = out.parent / f".{out.name}.old-{os.getpid()}"  # between two renames: the only whole store there is
        self._replaced = out.parent / f".{out.name}.replaced-{os.getpid()}-{time.time_ns()}"

    def __enter__(self) -> "StoreWriter":
        check_room(self.out, self.needed)
        try:
            for name in ("calendars", "instruments", "features", "tables"):
                (self.folder / name).mkdir(parents=True)
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise disk_fault(error, self.out, self.needed) from error
        self._uri = str(self.folder)
        return self

    def __exit__(self, kind, error, trace) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise disk_fault(error, self.out, self.needed) from error

    def calendar(self, days: np.ndarray) -> None:
        """Write the calendar: datetime64[D] [t], ascending."""
        _PlainCalendarStorage(self._uri).extend([str(day) for day in days])
        self._note("calendars/day.txt")

    def instruments(self, name: str, spans: Dict[str, List[Tuple[np.datetime64, np.datetime64]]]) -> None:
        """Write an instruments file: code -> list of (start, end inclusive)."""
        lines = [f"{code}\t{start}\t{end}\n" for code in sorted(spans) for start, end in spans[code]]
        (self.folder / "instruments" / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
        self._note(f"instruments/{name}.txt")

    def features(self, code: str, start: int, fields: Dict[str, np.ndarray]) -> None:
        """Write one instrument's fields, float32 [days] from calendar position `start` on."""
        (self.folder / "features" / code.lower()).mkdir()
        for name, values in fields.items():
            storage = _PlainFeatureStorage(code, name, "day", provider_uri=self._uri)
            storage.write(values, index=start)
            content = np.float32(start).astype("<f4").tobytes() + values.astype("<f4", copy=False).tobytes()
            self.digests[f"features/{storage.file_name}"] = digest(content)

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Keep an input table."""
        file = self.folder / "tables" / f"{name}.parquet"
        frame.to_parquet(file, index=False, compression="zstd")
        self.table_digests[name] = digest(file.read_bytes())

    def publish(self, metadata: dict, settings: dict, history: Sequence[dict] = ()) -> dict:
        """Put the folder in place of `out`; returns the metadata, with fingerprint and history."""
        found = combine(self.digests, settings)
        end = metadata["spans"]["calendar"][1]
        metadata.update(fingerprint=with_intraday(found, metadata.get("intraday")), settings=settings, table_digests=self.table_digests,
                        history=[*history, {"end": end, "fingerprint": found}])  # fmt: skip
        self.place(metadata)
        return metadata

    def place(self, metadata: dict) -> None:
        """Write the metadata and put the folder in place of `out`.

        Where the system can exchange two folders, `out` is at every instant the old store or the new one. Elsewhere it is missing
        between two renames; a writer that dies there is undone by the next `StoreLock`.
        """
        text = json.dumps(metadata, indent=1, ensure_ascii=False)
        (self.folder / METADATA_FILE).write_text(text + "\n", encoding="utf-8")
        if not self.out.exists():
            self.folder.rename(self.out)
        elif exchange(self.folder, self.out):
            self.folder.rename(self._replaced)
        else:
            self._replace()

    def _replace(self) -> None:
        """Put the folder in place of `out` by two renames."""
        self.out.rename(self._old)
        try:
            self.folder.rename(self.out)
        except BaseException:
            self._old.rename(self.out)
            raise
        self._old.rename(self._replaced)

    def _note(self, name: str) -> None:
        self.digests[name] = digest((self.folder / name).read_bytes())
