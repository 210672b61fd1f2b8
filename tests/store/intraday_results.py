"""What the tests of intraday fields read of a store and its folder of days."""

from pathlib import Path

import numpy as np
from store_market import read_field
from tiny_intraday import DAYS

TABLE = "bars_15min"


def fields(store: Path) -> dict:
    """Bytes of all intraday fields by file."""
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in sorted(store.glob("features/*/h[fi]_*.bin"))}


def results(store: Path) -> dict:
    """Times of the files of days."""
    return {file.parent.name[5:]: file.stat().st_mtime_ns for file in Path(f"{store}.intraday").glob("daily/*/date=*/part.parquet")}


def series(store: Path, code: str, name: str) -> np.ndarray:
    """A field of a stock on all days."""
    return read_field(store, code, name).reindex(DAYS).to_numpy()
