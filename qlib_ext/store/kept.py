"""The input tables a store keeps: read as they were ingested, as they were known on a day."""

from pathlib import Path
from typing import Dict, Union

import pandas as pd

from qlib_ext.errors import DataError
from qlib_ext.store.metadata import as_day, check_store, digest, read_metadata
from qlib_ext.store.schema import TABLES

_LEARNT_LATER = ("end", "delist_date")  # days nobody knows before they come


def read_table(store: Union[str, Path], name: str, until=None) -> pd.DataFrame:
    """An input table as the store keeps it: the columns of `qlib_ext.store.schema.TABLES`, dates as datetime64, NaN unknown.

    With a day `until` (YYYY-MM-DD text, date or time stamp): the rows known at its close, by `announcement` where the table has
    it, else by its first date (date, month, start, ex_date, list_date); an end of a span or of a listing after `until` is NaT.

    Raises
    ------
    DataError
        Not a store, or it keeps no such table.
    ConfigError
        `until` is no day.
    """
    path = check_store(store)
    file = path / "tables" / f"{name}.parquet"
    if not file.is_file():
        there = sorted(found.stem for found in file.parent.glob("*.parquet"))
        raise DataError(f"store {path} keeps no table {name}; it keeps {there}: ingest it with that table among the input")
    frame = pd.read_parquet(file)
    if until is None:
        return frame
    day, dates = pd.Timestamp(as_day(until)), TABLES[name].dates
    frame = frame[frame["announcement" if "announcement" in dates else dates[0]] <= day].reset_index(drop=True)
    for column in _LEARNT_LATER:
        if column in frame:
            frame[column] = frame[column].where(frame[column] <= day)
    return frame


def kept_tables(store: Path) -> Dict[str, pd.DataFrame]:
    """All tables of a store that an append can continue.

    Raises
    ------
    DataError
        No metadata, a format without tables, or a kept table that is missing or not the published one.
    """
    metadata = read_metadata(store)
    if metadata is None:
        raise DataError(f"store {store} was not made by qlib_ext and keeps no tables to compute new days from; ingest all days")
    if metadata["format"] < 2:
        raise DataError(f"store {store} has format {metadata['format']}, which keeps no tables to compute new days from; "
                        "ingest all days again")  # fmt: skip
    frames = {}
    for name, published in metadata["table_digests"].items():
        file = store / "tables" / f"{name}.parquet"
        if not file.is_file() or digest(file.read_bytes()) != published:
            raise DataError(f"{file} is missing or was changed after the store was published; ingest all days again")
        frames[name] = pd.read_parquet(file)
    return frames
