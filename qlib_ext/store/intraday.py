"""The intraday folder: minute bars, trades and orders as Parquet, one file a day, and the clock of a session."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, List, Optional, Union

import numpy as np
import polars as pl

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.session import CLOSING, OPENING, SESSION, bar_end, clock_time, session_minute  # noqa: F401  (for readers)

FORMAT = 1
ABOUT = "intraday.json"
BAR_MINUTES = (1, 5, 15, 30, 60)
_PRICES = {name: pl.Float64 for name in ("open", "high", "low", "close")}
BARS = {"instrument": pl.Categorical, "minute": pl.Int16, **_PRICES, "volume": pl.Int64, "amount": pl.Float64}
TABLES = {
    **{f"bars_{minutes}min": BARS for minutes in BAR_MINUTES},
    "trades": {"instrument": pl.Categorical, "millisecond": pl.Int32, "price": pl.Float64, "quantity": pl.Int64, "side": pl.Int8,
               "buy_order": pl.Int64, "sell_order": pl.Int64, "sequence": pl.Int64},
    "orders": {"instrument": pl.Categorical, "millisecond": pl.Int32, "price": pl.Float64, "quantity": pl.Int64, "side": pl.Int8,
               "order": pl.Int64, "kind": pl.Int8, "sequence": pl.Int64},
}
"""Columns of each table: raw prices in CNY, volume and quantity in shares, amount in CNY; null = unknown.

`minute` is the minute of the session at the bar's end: 09:31 is 1, 11:30 and 13:00 are 120, 15:00 is 240; 0 is the opening auction where
the source has it apart. `millisecond` counts from midnight. `side` is 1 for an active buy (or a buy order), -1 for a sale, 0 for
auctions and unknown ones; `kind` is 1 for a new order, -1 for a cancellation. The date is in the folder's name."""
OPTIONAL = {"n_trades": pl.Int32}
"""Further columns of bars, there or not for a whole day."""
Day = Union[str, np.datetime64]


def bar_minutes(table: str) -> int:
    """Minutes of a table of bars.

    Raises:
        ConfigError: the table is none of bars.
    """
    for minutes in BAR_MINUTES:
        if table == f"bars_{minutes}min":
            return minutes
    raise ConfigError(f"{table!r} is no table of bars; those are {[name for name in TABLES if name.startswith('bars_')]}")


def check_table(table: str) -> str:
    """The table's name.

    Raises:
        ConfigError: none of `TABLES`.
    """
    if table not in TABLES:
        raise ConfigError(f"table {table!r} is unknown; an intraday folder has {list(TABLES)}")
    return table


class IntradayFolder:
    """Reads an intraday folder.

    Args:
        path: the folder, as `write_day` makes it.

    Raises:
        DataError: there is no such folder, it holds no table, or its description is damaged or of a later format.
    """

    def __init__(self, path: Union[str, Path]):
        self.path = Path(path).expanduser().absolute()
        if not self.path.is_dir():
            raise DataError(f"intraday folder {self.path} does not exist: make it with python -m qlib_ext.store ingest-intraday")
        if not self.tables():
            raise DataError(f"{self.path} holds no intraday table ({', '.join(TABLES)}): make it with python -m qlib_ext.store "
                            "ingest-intraday")
        self.about = read_about(self.path)

    def tables(self) -> List[str]:
        """Names of the tables that have a day, in the order of `TABLES`."""
        return [name for name in TABLES if any((self.path / name).glob("date=*/part.parquet"))]

    def days(self, table: str) -> np.ndarray:
        """``[t]`` datetime64[D] of a table, ascending."""
        found = sorted(file.parent.name[5:] for file in (self.path / check_table(table)).glob("date=*/part.parquet"))
        return np.array(found, dtype="datetime64[D]")

    def path_of(self, table: str, day: Day) -> Path:
        """The file of a day, there or not."""
        return day_file(self.path, table, day)

    def settings(self, table: str) -> dict:
        """What is written about a table: units and stamps of its source, whether it is generated; empty where nothing is."""
        return self.about.get("tables", {}).get(check_table(table), {})

    def scan(self, table: str, first: Optional[Day] = None, last: Optional[Day] = None) -> pl.LazyFrame:
        """The rows of a table by date, instrument and time, with a column ``date``; `first` and `last` are both in it.

        Raises:
            DataError: the table has no day of the span, or a day's file is damaged or has other columns.
        """
        days = self.days(table)
        if first is not None:
            days = days[days >= np.datetime64(first, "D")]
        if last is not None:
            days = days[days <= np.datetime64(last, "D")]
        if not len(days):
            raise DataError(f"{self.path}: table {table} has no day from {first or 'the first'} to {last or 'the last'}; it holds "
                            f"{len(self.days(table))} days")
        found = {name for day in days for name in self.check_file(table, day)}
        schema = {**TABLES[table], **{name: kind for name, kind in OPTIONAL.items() if name in found}}
        return pl.scan_parquet([self.path_of(table, day) for day in days], schema=schema, hive_partitioning=True,
                               hive_schema={"date": pl.Date}, missing_columns="insert")

    def read(self, table: str, day: Day) -> pl.DataFrame:
        """The rows of one day, with ``date``. Raises as `scan`."""
        return self.scan(table, day, day).collect()

    def check_file(self, table: str, day: Day) -> List[str]:
        """Columns of a day's file, from its head.

        Raises:
            DataError: it is no whole Parquet file, or lacks columns.
        """
        file = self.path_of(table, day)
        try:
            found = pl.read_parquet_schema(file)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{file} cannot be read ({type(error).__name__}: {str(error).splitlines()[0]}): delete it and ingest the day "
                            "again") from error
        lacks = [name for name in TABLES[table] if name not in found]
        if lacks:
            raise DataError(f"{file} lacks the columns {lacks}: delete it and ingest the day again")
        return list(found)


# ---- writing ------------------------------------------------------------------------------------------------------------------
def day_file(folder: Union[str, Path], table: str, day: Day) -> Path:
    """Where a day of a table lies, or of a folder of results below the intraday folder."""
    return Path(folder) / table / f"date={np.datetime64(day, 'D')}" / "part.parquet"


def write_day(folder: Union[str, Path], table: str, day: Day, frame: pl.DataFrame) -> Path:
    """Write a day of a table, aside and then renamed; columns are cast to those of `TABLES`, rows come in their order.

    Raises:
        DataError: columns are missing, too many, or hold what does not fit.
    """
    schema = TABLES[check_table(table)]
    lacks, strange = [name for name in schema if name not in frame.columns], set(frame.columns) - {*schema, *OPTIONAL, "date"}
    if lacks or strange:
        raise DataError(f"{table} of {day}: columns {lacks} are missing, {sorted(strange)} are unknown; it has {list(schema)}")
    schema = {**schema, **{name: kind for name, kind in OPTIONAL.items() if name in frame.columns}}
    order = ["minute"] if table.startswith("bars_") else ["millisecond", "sequence"]
    try:
        made = frame.select(pl.col(name).cast(kind) for name, kind in schema.items())
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{table} of {day}: {str(error).splitlines()[0]}") from error
    return write_parquet(day_file(folder, table, day), made.sort(pl.col("instrument").cast(pl.String), *order).lazy(), table)


def write_parquet(file: Path, frame: pl.LazyFrame, table: str = "") -> Path:
    """Write a frame aside, then rename it; its folder is made. Bars, which are read again and again, are packed to be read fast (LZ4: 1.6
    times the bytes, half of the time); all else to be small."""
    packed = {"compression": "lz4"} if table.startswith("bars_") else {"compression": "zstd", "compression_level": 1}
    with beside(file) as aside:
        frame.sink_parquet(aside, **packed)
    return file


@contextmanager
def beside(file: Path) -> Iterator[Path]:
    """A name of its own beside a file, renamed to it at the end: who reads sees all of it or nothing, whoever else writes it too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}-{time.time_ns()}")
    try:
        yield aside
        os.replace(aside, file)
    finally:
        aside.unlink(missing_ok=True)


def read_about(folder: Union[str, Path]) -> dict:
    """The description of a folder; empty where there is none.

    Raises:
        DataError: it is damaged, or of a later format.
    """
    file = Path(folder) / ABOUT
    if not file.is_file():
        return {}
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        later = about["format"] > FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {error}): delete it and ingest again with --overwrite") from error
    if later:
        raise DataError(f"{file} has format {about['format']}, this version reads {FORMAT}: update qlib_ext")
    return about


def describe(folder: Union[str, Path], table: str, settings: dict) -> None:
    """Put the settings of a table into the description of a folder."""
    with folder_lock(folder):
        about = read_about(folder) or {"format": FORMAT, "tables": {}}
        about["tables"][check_table(table)] = settings
        with beside(Path(folder) / ABOUT) as aside:
            aside.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")


@contextmanager
def folder_lock(folder: Union[str, Path]) -> Iterator[None]:
    """One writer of the folder's description at a time; the folder is made."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with open(Path(folder) / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---- coarser bars -------------------------------------------------------------------------------------------------------------
AUCTIONS = ("merge", "keep", "drop")


def resample(bars: pl.LazyFrame, minutes: int, auction: str = "merge") -> pl.LazyFrame:
    """Coarser bars of bars with ``date``: first open, highest high, lowest low, last close, sums, by (date, instrument, minute).

    Prices are those of the minutes somebody traded in; a bar nobody traded in is flat at its last close, null where that is unknown. A sum
    is null where none of its parts is known.

    Args:
        bars: columns of `BARS` and ``date``; each bar must lie in one coarse bar.
        minutes: 5, 15, 30 or 60.
        auction: what becomes of minute 0: it is merged into the first bar, kept, or dropped.

    Raises:
        ConfigError: other minutes, or an unknown `auction`.
    """
    if minutes not in BAR_MINUTES or auction not in AUCTIONS:
        raise ConfigError(f"minutes={minutes!r} must be one of {BAR_MINUTES}, auction={auction!r} one of {AUCTIONS}")
    end = bar_end(pl.col("minute"), minutes)
    if auction == "merge":
        end = pl.max_horizontal(end, pl.lit(minutes, pl.Int16))
    elif auction == "drop":
        bars = bars.filter(pl.col("minute") > OPENING)
    names = bars.collect_schema().names()
    sums = [pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()) for name in ("volume", "amount", *OPTIONAL) if name in names]
    traded, last = pl.col("volume") > 0, pl.col("close").drop_nulls().last()
    prices = [pl.col("open").filter(traded).first().fill_null(last), pl.col("high").filter(traded).max().fill_null(last),
              pl.col("low").filter(traded).min().fill_null(last), last]
    made = bars.with_columns(minute=end).group_by("date", "instrument", "minute", maintain_order=True).agg(*prices, *sums)
    return made.select(name for name in names if name in made.collect_schema().names())
