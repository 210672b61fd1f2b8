"""The input tables a store keeps: read as they were ingested, as they were known on a day."""

import os
from pathlib import Path
from typing import Dict, Union

import pandas as pd

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.fields import LOOK_AHEAD_METHODS
from qlib_ext.store.metadata import METADATA_FILE, as_day, check_store, digest, read_metadata
from qlib_ext.store.schema import FIELDS, KINDS, TABLES

_LEARNT_LATER = ("end", "delist_date")  # days nobody knows before they come
_NEEDED = ("vwap", "index_names", "index_sizes", "generated", "history", "fields", "spans", "tables", "table_digests")


def read_table(store: Union[str, Path], name: str, until=None) -> pd.DataFrame:
    """An input table as the store keeps it: the columns of `qlib_ext.store.schema.TABLES`, dates as datetime64, NaN unknown.

    With a day `until` (YYYY-MM-DD text, date or time stamp): the rows known at its close, by `announcement` where the table has
    it, else by its first date (date, month, start, ex_date, list_date); an end of a span or of a listing after `until` is NaT;
    float shares of a method that looks ahead are left out.

    Raises
    ------
    DataError
        Not a store, or it keeps no such table.
    ConfigError
        `until` is no day, or `name` no table of the schema.
    """
    if name not in TABLES:
        raise ConfigError(f"unknown table {name!r}; known are {list(TABLES)}")
    path = check_store(store)
    file = path / "tables" / f"{name}.parquet"
    if not file.is_file():
        there = sorted(found.stem for found in file.parent.glob("*.parquet"))
        raise DataError(f"store {path} keeps no table {name}; it keeps {there}: ingest it with that table among the input")
    frame = pd.read_parquet(file)
    if until is None:
        return frame
    day = pd.Timestamp(as_day(until))
    known = frame[known_by(name)] <= day
    if "method" in frame:
        known &= ~frame["method"].isin(LOOK_AHEAD_METHODS)
    frame = frame[known].reset_index(drop=True)
    for column in _LEARNT_LATER:
        if column in frame:
            frame[column] = frame[column].where(frame[column] <= day)
    return frame


def known_by(name: str) -> str:
    """Column of a table that says from when a row is known."""
    dates = TABLES[name].dates
    return "announcement" if "announcement" in dates else dates[0]


def kept_tables(store: Path) -> Dict[str, pd.DataFrame]:
    """All tables of a store that an append can continue.

    Raises
    ------
    DataError
        No metadata or an incomplete one, a format without tables, or a kept table that is missing or not the published one.
    """
    metadata = read_metadata(store)
    if metadata is None:
        raise DataError(f"store {store} was not made by qlib_ext and keeps no tables to compute new days from; ingest all days")
    if metadata["format"] < 2:
        raise DataError(f"store {store} has format {metadata['format']}, which keeps no tables to compute new days from; "
                        "ingest all days again")  # fmt: skip
    lacks = [key for key in _NEEDED if key not in metadata]
    if lacks:
        raise DataError(f"{store / METADATA_FILE} lacks {lacks}; ingest all days again")
    frames = {}
    for name, published in metadata["table_digests"].items():
        file = store / "tables" / f"{name}.parquet"
        if not file.is_file() or digest(file.read_bytes()) != published:
            raise DataError(f"{file} is missing or was changed after the store was published; ingest all days again")
        frames[name] = pd.read_parquet(file)
    return frames


def check_own_files(store: Path, metadata: dict) -> None:
    """Refuse a store with files of somebody else: a new store in its place would not hold them.

    Raises
    ------
    DataError
        A file or folder in the store that this package did not write; all are counted, some named.
    """
    lists = {f"{name}.txt" for name in ("all", *KINDS[1:], *metadata["index_names"])}
    files = [store / "instruments" / name for name in sorted(lists)]
    lines = [line for file in files if file.is_file() for line in file.read_text(encoding="utf-8").splitlines()]
    codes = {line.split("\t")[0].lower() for line in lines}
    ours = {"": {"calendars", "instruments", "features", "tables", METADATA_FILE}, "calendars": {"day.txt"}, "instruments": lists,
            "tables": {f"{name}.parquet" for name in metadata["table_digests"]}, "features": codes}  # fmt: skip
    fields = {f"{name}.day.bin" for name in (*FIELDS, "vwap", *(f"{index}_weight" for index in metadata["index_names"]),
                                         *(metadata.get("intraday") or {}).get("fields", ()))}  # fmt: skip
    ours.update({f"features/{code}": fields for code in codes if (store / "features" / code).is_dir()})
    strange = sorted(os.path.join(folder, name) for folder, names in ours.items()
                     for name in os.listdir(store / folder) if name not in names)  # fmt: skip
    if strange:
        raise DataError(f"store {store} holds {len(strange)} files or folders not written by this package, first {strange[:5]}: "
                        "an append would drop them; move them out")  # fmt: skip
