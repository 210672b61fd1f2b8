"""What a store says about itself: its metadata file, its fingerprint, and whether it is one (standard library only)."""

import hashlib
import json
from pathlib import Path
from typing import Dict, Optional, Union

from qlib_ext.errors import DataError

METADATA_FILE = "qlib_ext_store.json"
FORMAT = 1
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

    Raises
    ------
    DataError
        Not a store, or its metadata file cannot be read or has another format.
    """
    file = check_store(path) / METADATA_FILE
    if not file.is_file():
        return None
    try:
        metadata = json.loads(file.read_text(encoding="utf-8"))
        found = metadata["format"]
        metadata["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__}: {error}); ingest the tables again") from error
    if found != FORMAT:
        raise DataError(f"{file} has format {found}, this version reads format {FORMAT}; ingest the tables again")
    return metadata


def fingerprint(path: Union[str, Path]) -> str:
    """Fingerprint of a store: the recorded hash of its contents (same tables, same fingerprint, wherever and whenever ingested).

    A store from elsewhere gets a hash of its calendars, its instruments files, and the names and sizes of its feature files.

    Raises
    ------
    DataError
        As `read_metadata`.
    """
    metadata = read_metadata(path)
    if metadata is not None:
        return metadata["fingerprint"]
    store = check_store(path)
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
