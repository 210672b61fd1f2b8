"""Fields of `build-intraday` in a store: written all or nothing beside what it holds, and carried on when days are appended."""

import os
import shutil
from pathlib import Path
from typing import Dict, Optional

import numpy as np

from qlib_ext.errors import DataError
from qlib_ext.store.disk import disk_fault
from qlib_ext.store.metadata import METADATA_FILE, combine, digest, is_intraday, own_fingerprint, read_metadata, with_intraday
from qlib_ext.store.writer import StoreWriter

_FEATURES = "features"


class IntradayWriter(StoreWriter):
    """The store at `out` again, with other intraday fields; all else of it is taken over as it is (by hard links where the disk
    has them). Use inside a `StoreLock`; `publish_intraday` puts it in place, leaving without it leaves the store as it was.

    `changed`: values that the store had and that are others now, or unknown; `first_changed`: field and instrument of the first.

    Raises
    ------
    DataError
        As `StoreWriter`.
    """

    changed = 0
    first_changed = ""

    def __enter__(self) -> "IntradayWriter":
        super().__enter__()
        try:
            _link_tree(self.out, self.folder)
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise disk_fault(error, self.out, self.needed) from error
        return self

    def field(self, name: str, code: str, start: int, values: np.ndarray) -> None:
        """Write one field of one instrument, float32 [days] from calendar position `start` on."""
        place = f"{_FEATURES}/{code.lower()}/{name}.day.bin"
        self.digests.update(_write(self.folder, place, start, values))
        self._compare(self.out / place, f"${name} of {code}", values)

    def _compare(self, file: Path, name: str, values: np.ndarray) -> None:
        """Count the values of the store that are others now."""
        before = np.fromfile(file, "<f4")[1:] if file.is_file() else np.empty(0, "<f4")
        shared = min(len(before), len(values))
        other = int((np.isfinite(before[:shared]) & (before[:shared] != values[:shared])).sum())
        if other and not self.changed:
            self.first_changed = name
        self.changed += other

    def publish_intraday(self, about: dict) -> dict:
        """Put the store in place; returns its metadata, with `about` and the fields' digest under `intraday`."""
        metadata = read_metadata(self.out)
        metadata["intraday"] = {**about, "fingerprint": combine(self.digests, {})}
        metadata["fingerprint"] = with_intraday(own_fingerprint(metadata), metadata["intraday"])
        self.place(metadata)
        return metadata


def carry(old: Path, new: Path) -> Optional[dict]:
    """Copy the intraday fields of a store to the folder that will replace it, with NaN on the days that it has more; returns what
    its metadata say of them, with the new digest, or None where it has none.

    Raises
    ------
    DataError
        The fields are not those that were published.
    """
    about = read_metadata(old).get("intraday")
    if about is None:
        return None
    files = [f"{_FEATURES}/{folder.name}/{entry.name}" for folder in os.scandir(old / _FEATURES)
             for entry in os.scandir(folder) if is_intraday(entry.name)]  # fmt: skip
    before: Dict[str, str] = {}
    after: Dict[str, str] = {}
    for name in files:
        content = (old / name).read_bytes()
        before[name] = digest(content)
        days = os.stat((new / name).parent / "close.day.bin").st_size // 4 - 1
        values = np.frombuffer(content[:len(content) // 4 * 4], "<f4")
        values = np.concatenate([values[1:], np.full(max(days - len(values) + 1, 0), np.nan, "<f4")])
        after.update(_write(new, name, int(np.frombuffer(content[:4], "<f4")[0]), values) if content else {})
    if combine(before, {}) != about["fingerprint"]:
        raise DataError(f"the intraday fields of store {old} were changed after they were written; nothing was appended: run "
                        "`python -m qlib_ext.store build-intraday` again, then append")
    return {**about, "fingerprint": combine(after, {})}


def _write(folder: Path, name: str, start: int, values: np.ndarray) -> Dict[str, str]:
    """Write a feature file; its name and digest."""
    content = np.float32(start).astype("<f4").tobytes() + values.astype("<f4", copy=False).tobytes()
    (folder / name).write_bytes(content)
    return {name: digest(content)}


def _link_tree(source: Path, goal: Path, inside: str = "") -> None:
    """All files of a store but its metadata and intraday fields, at another place of the same disk; `inside`: which of its folders the
    source lies in."""
    for entry in os.scandir(source):
        place = goal / entry.name
        if entry.is_dir():
            place.mkdir(exist_ok=True)
            _link_tree(Path(entry.path), place, inside or entry.name)
        elif entry.name != METADATA_FILE and not (inside == _FEATURES and is_intraday(entry.name)):
            try:
                os.link(os.path.realpath(entry.path), place)
            except OSError:  # another disk behind a link, or a file system without hard links
                shutil.copy2(entry.path, place)
