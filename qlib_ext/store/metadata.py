"""What a store says about itself: its metadata file, its fingerprint, and whether it is one (standard library only)."""

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Dict, Optional, Union

from qlib_ext.errors import ConfigError, DataError

METADATA_FILE = "qlib_ext_store.json"
FORMAT = 2  # 1: without the input tables and the history
READABLE_FORMATS = (1, 2)
DIGEST_BYTES = 16
_ADVICE = "make one with `python -m qlib_ext.store ingest --tables DIR --out STORE`, or name another folder"


def check_store(path: Union[str, Path]) -> Path:
    """Return the folder of a Qlib store, or say why it is none (Qlib itself only logs).

    Raises
    ------
    DataError
        The path is missing, no folder, empty, or lacks a calendar, an instruments file or features.
    """
    store = Path(path).expanduser()
    if not store.exists():
        raise DataError(f"store {store} does not exist; {_ADVICE}")
    if not store.is_dir():
        raise DataError(f"store {store} is a file, not a folder; {_ADVICE}")
    if not any(store.iterdir()):
        raise DataError(f"store {store} is an empty folder; {_ADVICE}")
    lacks = []
    calendars, instruments = store / "calendars", store / "instruments"
    if not any(file.stat().st_size for file in calendars.glob("*.txt")):
        lacks.append("a calendar (calendars/day.txt)")
    if not any(file.stat().st_size for file in instruments.glob("*.txt")):
        lacks.append("an instruments file (instruments/all.txt)")
    features = store / "features"
    if not features.is_dir() or not any(features.iterdir()):
        lacks.append("features (features/<code>/<field>.day.bin)")
    if lacks:
        raise DataError(f"folder {store} is not a Qlib store: it lacks {', '.join(lacks)}; {_ADVICE}")
    return store


def read_metadata(path: Union[str, Path]) -> Optional[dict]:
    """Metadata of a store written by this package; None for a Qlib store from elsewhere.

    `history` lists {"end": last calendar day, "fingerprint": ...} of the ingestion and of every append, oldest first.

    Raises
    ------
    DataError
        Not a store, or its metadata file cannot be read or has an unknown format.
    """
    file = check_store(path) / METADATA_FILE
    if not file.is_file():
        return None
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        found = metadata["format"]
        if "history" not in metadata:
            metadata["history"] = [{"end": metadata["spans"]["calendar"][1], "fingerprint": metadata["fingerprint"]}]
        metadata["fingerprint"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__}: {error}); ingest the tables again") from error
    if found not in READABLE_FORMATS:
        raise DataError(f"{file} has format {found}, this version reads the formats {READABLE_FORMATS}; ingest the tables again")
    return metadata


def fingerprint(path: Union[str, Path], until=None) -> str:
    """Fingerprint of a store: the recorded hash of its contents (same tables, same fingerprint, wherever and whenever ingested).

    With a day `until` (YYYY-MM-DD text, date or time stamp): the fingerprint of the store when its calendar first reached that
    day. As long as it stays the same, what is computed from days up to `until` of the fields and tables the store then had stays
    valid: appends leave them as they were. A field or kept table given for the first time with an append may reach back before
    `until` without a change here: what depends on which of them a store has must record their names itself.
    The fields of `build-intraday` are not among what is asked for here: they have a digest of their own in the metadata, which
    enters the fingerprint of the whole store.
    A store from elsewhere gets a hash of its calendars, its instruments files, and the names and sizes of its feature files,
    whatever `until` is.

    Raises
    ------
    DataError
        As `read_metadata`, or the store ends before `until`.
    ConfigError
        `until` is no day.
    """
    metadata = read_metadata(path)
    if metadata is None:
        return _fingerprint_from_elsewhere(check_store(path))
    if until is None:
        return metadata["fingerprint"]
    day = as_day(until)
    reached = [entry["fingerprint"] for entry in metadata["history"] if entry["end"] >= day]
    if not reached:
        end = metadata["history"][-1]["end"]
        raise DataError(f"store {path} ends on {end}, before {day}: append the days up to then, or ask for an earlier day")
    return reached[0]


def as_day(day, name: str = "until") -> str:
    """A day as YYYY-MM-DD text, from text, a date or a time stamp; `name` is what errors call it.

    Raises
    ------
    ConfigError
        It is no day.
    """
    try:
        return date.fromisoformat(str(day)[:10]).isoformat()
    except ValueError as error:
        raise ConfigError(f"{name} {day!r} is no day; write it as YYYY-MM-DD") from error


def check_files(path: Union[str, Path]) -> None:
    """Compare every file of a store of format 2 with what its metadata record (all files are read).

    Raises
    ------
    DataError
        As `read_metadata`; no metadata or format 1; a file was changed, added or removed since the store was published.
    """
    metadata, store = read_metadata(path), Path(path).expanduser()
    if metadata is None or metadata["format"] < 2:
        raise DataError(f"store {store} does not record what its files held; ingest the tables again")
    found = (file for folder in ("calendars", "instruments", "features") for file in (store / folder).rglob("*"))
    digests = {file.relative_to(store).as_posix(): digest(file.read_bytes()) for file in found if file.is_file()}
    tables = {file.stem: digest(file.read_bytes()) for file in (store / "tables").glob("*")}
    intraday = {name: digests.pop(name) for name in list(digests) if is_intraday(name)}
    faults = [] if combine(digests, metadata["settings"]) == own_fingerprint(metadata) else ["calendars, instruments and features"]
    about = metadata.get("intraday")
    if (intraday or about) and combine(intraday, {}) != (about or {}).get("fingerprint"):
        faults.append("fields of build-intraday")
    faults += [f"table {name}" for name in sorted(set(tables) | set(metadata["table_digests"]))
               if tables.get(name) != metadata["table_digests"].get(name)]
    if faults:
        raise DataError(f"store {store} was changed after it was published: {', '.join(faults)}; ingest the tables again")


INTRADAY = ("hf_", "hi_")
"""Beginnings of the names of fields that are kept for `build-intraday`."""


def is_intraday(name: str) -> bool:
    """Whether a field, or a feature file by its name or path in the store, is one that `build-intraday` writes."""
    folder, _, field = name.rpartition("/")
    return field.startswith(INTRADAY) and (not folder or folder.startswith("features/"))


def own_fingerprint(metadata: dict) -> str:
    """Fingerprint of what was ingested into a store, without the fields of `build-intraday`."""
    return metadata["history"][-1]["fingerprint"]


def with_intraday(own: str, intraday: Optional[dict]) -> str:
    """Fingerprint of a whole store: of its own contents, and of what the metadata say under `intraday`."""
    return own if intraday is None else combine({"store": own, "intraday": intraday["fingerprint"]}, {})


def _fingerprint_from_elsewhere(store: Path) -> str:
    digests = {}
    for folder in ("calendars", "instruments"):
        for file in sorted((store / folder).glob("*.txt")):
            digests[f"{folder}/{file.name}"] = digest(file.read_bytes())
    for file in sorted((store / "features").rglob("*.bin")):
        digests[file.relative_to(store).as_posix()] = str(file.stat().st_size)
    return combine(digests, {})


def digest(content: bytes) -> str:
    """Hash of the bytes of one file."""
    return hashlib.blake2b(content, digest_size=DIGEST_BYTES).hexdigest()


def combine(digests: Dict[str, str], settings: dict) -> str:
    """Hash of a set of files (relative name -> digest) and of the settings that give them meaning; in any order."""
    lines = [f"{name} {digests[name]}" for name in sorted(digests)]
    lines.append(json.dumps(settings, sort_keys=True, ensure_ascii=False))
    return hashlib.blake2b("\n".join(lines).encode("utf-8"), digest_size=DIGEST_BYTES).hexdigest()
