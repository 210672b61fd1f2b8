"""The first half of `build-intraday`: the values of each day of the intraday folder, one file a day, only where it lacks.

    <folder>/daily/<key>/date=2024-01-02/part.parquet            instrument, factors, `hi_` features, bars_traded
    <folder>/blocks/<minutes>min-<key>/date=.../part.parquet     instrument, `<feature>@<bar>` with all features of bar 1 first
    <folder>/order_sizes/<key>/date=.../part.parquet             sums from which the thresholds of large orders are made

The key is a digest of the options, the formulas' version and the table; in each file stands what it was made of (size and time of
the source files), so that a day whose bars were ingested again is computed again. Files are written aside and renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Iterator, NamedTuple, Optional, Sequence

import numpy as np
import polars as pl

from qlib_ext.errors import DataError, ExtError
from qlib_ext.factors import intraday as formulas
from qlib_ext.factors.intraday_features import BLOCK_FEATURES, DAY_FEATURES, block_features, day_features
from qlib_ext.store.intraday import IntradayFolder, beside, day_file

SOURCE, GONE = "source", "gone"
PART = "part.parquet"
PIECE_ROWS = 5_000_000
"""Rows of ticks and bars that are looked at together."""
STALE_SECONDS = 3600.0
"""What a killed run wrote aside is removed when it is this old."""
_TEXT = pl.col("instrument").cast(pl.String)


@dataclass(frozen=True)
class DayPlan:
    """What is computed of each day.

    Attributes:
        folder: of the intraday tables. table: of bars. options: of the formulas.
        names: factors. features: whether the daily inputs of networks are made too. blocks: minutes of the bars of blocks.
        trades, orders: whether those tables are read (where a day has them). auction_inside: whether the first bar holds the opening
        auction. left_out: factors that cannot be made, and why.
    """

    folder: str
    table: str
    options: formulas.IntradayOptions = field(default_factory=formulas.IntradayOptions)
    names: tuple[str, ...] = ()
    features: bool = True
    blocks: tuple[int, ...] = ()
    trades: bool = False
    orders: bool = False
    auction_inside: bool = False
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def key(self) -> str:
        """Digest of what decides the daily values, the source files apart."""
        return _digest([formulas.VERSION, asdict(self.options), self.table, sorted(self.names), self.features, self.trades, self.orders,
                        self.auction_inside])

    @property
    def block_key(self) -> str:
        """Digest of what decides the blocks."""
        return _digest([formulas.VERSION, asdict(self.options), self.table, self.trades])

    @property
    def size_key(self) -> str:
        """Digest of what decides the sums of order sizes."""
        return _digest([formulas.VERSION, asdict(self.options)])

    @property
    def needs_thresholds(self) -> bool:
        """Whether any factor asks which orders are large."""
        return self.trades and bool(set(self.names) & set(formulas.LARGE_ORDER_FACTORS))

    def places(self) -> dict[str, Path]:
        """Folders of the results by kind: `daily`, `sizes`, and the blocks by minutes."""
        root = Path(self.folder)
        found = {f"{minutes}": root / "blocks" / f"{minutes}min-{self.block_key}" for minutes in self.blocks}
        if self.names or self.features:
            found["daily"] = root / "daily" / self.key
        if self.needs_thresholds:
            found["sizes"] = root / "order_sizes" / self.size_key
        return found


class Limits:
    """Price limits of a store's stocks in raw CNY: `up` and `down` ``[t, n]`` of `days [t]` and `codes [n]`, NaN unknown."""

    def __init__(self, days: np.ndarray, codes: np.ndarray, up: np.ndarray, down: np.ndarray):
        self.days, self.codes, self.up, self.down = days, codes, up, down

    def frame(self, day: np.datetime64) -> pl.DataFrame:
        """Columns date, instrument, limit_up, limit_down of the stocks that have both on a day."""
        place = min(int(np.searchsorted(self.days, day)), len(self.days) - 1)
        known = np.isfinite(self.up[place]) & np.isfinite(self.down[place]) & (self.days[place] == day)
        return pl.DataFrame({"instrument": self.codes[known], "limit_up": self.up[place, known], "limit_down": self.down[place, known]}
                            ).select(pl.lit(day.item()).alias("date"), pl.all())


class Task(NamedTuple):
    """What is to be computed of a day: kind of result -> what it is made of, the days of its thresholds, and the day's price limits
    where they are asked for."""

    day: np.datetime64
    sources: dict[str, str]
    past: Sequence[np.datetime64] = ()
    limits: Optional[pl.DataFrame] = None


class DayWork:
    """Says which days lack a result of a plan, and computes them.

    Args:
        calendar: trading days of the store, which thresholds count; None (where days are computed only): those of the bars.
        limits: of the store where it has them.
    """

    def __init__(self, plan: DayPlan, calendar: Optional[np.ndarray] = None, limits: Optional[Limits] = None):
        self.plan, self.folder, self.limits = plan, IntradayFolder(plan.folder), limits
        self.places = plan.places()
        self.days = {table: self.folder.days(table) for table in self._tables()}
        bars = self.days[plan.table]
        self.calendar = bars if calendar is None else np.union1d(calendar, bars[bars < calendar[0]])
        self._sets = {table: set(days.tolist()) for table, days in self.days.items()}

    def _tables(self) -> list[str]:
        return [self.plan.table, *(("trades",) if self.plan.trades else ()), *(("orders",) if self.plan.orders else ())]

    # ---- what is there ----------------------------------------------------------------------------------------------------
    def source(self, kind: str, day: np.datetime64) -> str:
        """What a result of a day is made of: names, sizes and times of the source files, as text."""
        tables = ["trades"] if kind == "sizes" else [self.plan.table, *(("trades",) if self.plan.trades else ())]
        if kind == "daily" and self.plan.orders:
            tables.append("orders")
        parts = [self._identity(table, day) for table in tables if self._has(table, day)]
        if kind == "daily" and self.plan.needs_thresholds and self._has("trades", day):
            parts.append(_digest([self._identity("trades", past) for past in self.past(day)]))
        if kind == "daily" and self._asks_limits(day):
            parts.append("limits:" + _digest(self.limits.frame(day).rows()))
        return " ".join(parts)

    def past(self, day: np.datetime64) -> np.ndarray:
        """Those of the trading days before `day`, as many as the option says, that have trades, of whose orders its thresholds are made."""
        stop = int(np.searchsorted(self.calendar, day))
        return np.intersect1d(self.calendar[max(stop - self.plan.options.threshold_days, 0):stop], self.days["trades"])

    def tasks(self, kinds: Sequence[str], days: Sequence[np.datetime64], others: Sequence[np.datetime64] = ()) -> list[Task]:
        """What the days lack of some kinds of results, or have of other source files; of the `others` only the latter."""
        asked, found = set(days), []
        for day in sorted({*days, *others}):
            sources = {kind: self.source(kind, day) for kind in kinds if day in asked or self.file(kind, day).is_file()}
            sources = {kind: source for kind, source in sources.items() if written_source(self.file(kind, day)) != source}
            if sources:
                daily = "daily" in sources
                past = self.past(day) if daily and self.plan.needs_thresholds else ()
                found.append(Task(day, sources, past, self.limits.frame(day) if daily and self._asks_limits(day) else None))
        return found

    def made(self, days: Sequence[np.datetime64]) -> dict[np.datetime64, str]:
        """Those of the days whose daily values were made of the source files that are there now, and what these are."""
        written = {day: written_source(self.file("daily", day)) for day in days}
        return {day: source for day, source in written.items() if source is not None and source == self.source("daily", day)}

    def has(self, need: str, day: np.datetime64) -> bool:
        """Whether a day has a table, or its bars a column, that factors need."""
        return "n_trades" in columns_of(self.folder.path_of(self.plan.table, day)) if need == "n_trades" else self._has(need, day)

    def _asks_limits(self, day: np.datetime64) -> bool:
        return self.limits is not None and bool(set(self.plan.names) & set(formulas.TRADE_FACTORS)) and self._has("trades", day)

    def file(self, kind: str, day: np.datetime64) -> Path:
        return self.places[kind] / f"date={day}" / PART

    def scan(self, table: str, day: np.datetime64) -> pl.LazyFrame:
        """The rows of one day as `IntradayFolder.scan`, without a look at all other days."""
        self.folder.check_file(table, day)
        return pl.scan_parquet(self.folder.path_of(table, day), hive_partitioning=True, hive_schema={"date": pl.Date})

    def _has(self, table: str, day: np.datetime64) -> bool:
        return day.item() in self._sets.get(table, ())

    def _identity(self, table: str, day: np.datetime64) -> str:
        return _identity(table, self.folder.path_of(table, day))

    # ---- one day ----------------------------------------------------------------------------------------------------------
    def compute(self, task: Task) -> None:
        """Compute and write the results of a day.

        Raises:
            DataError: the files of the day cannot be read or used; the message names them.
        """
        day, kinds = task.day, list(task.sources)
        try:
            tables = {table: self.scan(table, day) for table in self._tables() if self._has(table, day)}
            found = [self._frames(task, piece) for piece in pieces(tables, PIECE_ROWS)]
            for kind in kinds:
                frame = pl.concat([one[kind] for one in found], how="vertical_relaxed").sort("instrument")
                write_aside(self.file(kind, day), frame, {SOURCE: task.sources[kind]})
        except (ExtError, pl.exceptions.PolarsError, OSError) as error:
            files = ", ".join(str(self.folder.path_of(table, day)) for table in self._tables() if self._has(table, day))
            raise DataError(f"{day}: {files} cannot be used ({type(error).__name__}: {str(error)[:300]}); ingest the day again, or "
                            "remove its folder; the other days are done") from error

    def _frames(self, task: Task, tables: dict[str, pl.LazyFrame]) -> dict[str, pl.DataFrame]:
        """Results by kind, all scans of one table shared."""
        kinds, plan = list(task.sources), self.plan
        bars, trades, orders = (tables.get(name) for name in (plan.table, "trades", "orders"))
        if kinds == ["sizes"]:
            return {"sizes": formulas.order_sizes(trades, plan.options).drop("date").with_columns(_TEXT).collect(engine="in-memory")}
        lazy: dict[tuple[str, int], pl.LazyFrame] = {}
        lacks = {"orders"} if orders is None else set()                                       # of this day; what needs it stays unknown
        if bars is not None and "n_trades" not in bars.collect_schema():
            lacks.add("n_trades")
        makes = [name for name in plan.names if not lacks & set({**formulas.NEEDS, **formulas.PROXIES}[name])]
        bar_names = [name for name in makes if name in formulas.BAR_FACTORS]
        tick_names = [name for name in makes if name in formulas.TRADE_FACTORS]
        if "daily" in kinds:
            lazy["daily", 0] = formulas.bar_values(bars, plan.options, bar_names)
            if plan.features:
                features = day_features(bars, trades, plan.options)
                lazy["daily", 1] = features.rename({name: f"hi_{name}" for name in DAY_FEATURES})
            if tick_names and trades is not None:
                single = formulas.without_auction(bars, trades, plan.options.bar_minutes) if plan.auction_inside else bars
                lazy["daily", 2] = formulas.trade_values(trades, orders, single, self._thresholds(task), plan.options, tick_names,
                                                         task.limits)
        for minutes in plan.blocks:
            if f"{minutes}" in kinds:
                lazy[f"{minutes}", 0] = block_features(bars, minutes, trades, plan.options)
        frames = dict(zip(lazy, pl.collect_all(list(lazy.values()), engine="in-memory")))
        results = {}
        if "daily" in kinds:
            results["daily"] = _joined([frame for (kind, _), frame in frames.items() if kind == "daily"], self._columns())
        for minutes in plan.blocks:
            if f"{minutes}" in kinds:
                results[f"{minutes}"] = wide(frames[f"{minutes}", 0], minutes)
        return results

    def _columns(self) -> list[str]:
        return [*self.plan.names, *((f"hi_{name}" for name in DAY_FEATURES) if self.plan.features else ())]

    def _thresholds(self, task: Task) -> Optional[pl.DataFrame]:
        """Thresholds of large orders from the sums of past days."""
        if not self.plan.needs_thresholds:
            return None
        day, files = task.day, {one: self.file("sizes", one) for one in task.past}
        frames = [pl.read_parquet(file, hive_partitioning=False).with_columns(date=pl.lit(one.item())) for one, file in files.items()]
        if not frames:
            frames = [formulas.order_sizes(self.scan("trades", day), self.plan.options).collect().clear()]
        return formulas.thresholds(pl.concat(frames, how="vertical_relaxed"), day.item(), self.plan.options)


def pieces(tables: dict[str, pl.LazyFrame], rows: int) -> Iterator[dict[str, pl.LazyFrame]]:
    """Tables of a day, ordered by instrument, in parts of whole instruments, so that memory stays small where ticks are many.

    (A streaming engine would bound memory too, but its sums depend in their last bits on how many threads it has.)

    Raises:
        DataError: a table's rows are not together by instrument.
    """
    if sum(frame.select(pl.len()).collect().item() for frame in tables.values()) <= rows:
        yield tables
        return
    runs = {}
    for name, frame in tables.items():
        run = frame.select(pl.col("instrument").rle()).unnest("instrument").with_columns(pl.col("value").cast(pl.String)).collect()
        runs[name] = dict(zip(run["value"], zip(run["len"].cum_sum() - run["len"], run["len"])))
        if len(runs[name]) < len(run):
            raise DataError(f"table {name} is not ordered by instrument")
    size = {code: sum(run[code][1] for run in runs.values() if code in run) for code in sorted(set().union(*runs.values()))}
    part = np.cumsum(list(size.values())) // rows
    for number in np.unique(part):
        codes = [code for code, mine in zip(size, part == number) if mine]
        found = {}
        for name, frame in tables.items():
            there = [runs[name][code] for code in codes if code in runs[name]]
            found[name] = frame.slice(there[0][0] if there else 0, sum(length for _, length in there))
        yield found


def wide(frame: pl.DataFrame, minutes: int) -> pl.DataFrame:
    """Block features of a day (instrument, minute, features) as one row a stock: `<feature>@<bar>`, all of bar 1 first."""
    count = 240 // minutes
    frame = frame.with_columns(_TEXT)
    out = frame.select("instrument").unique().sort("instrument")
    for bar in range(1, count + 1):
        part = frame.filter(pl.col("minute") == bar * minutes).select(
            "instrument", *(pl.col(name).cast(pl.Float32).alias(f"{name}@{bar}") for name in BLOCK_FEATURES))
        out = out.join(part, on="instrument", how="left", maintain_order="left")
    return out


def _joined(frames: list[pl.DataFrame], columns: list[str]) -> pl.DataFrame:
    """Frames of one day side by side by instrument, in order, with NaN as null and null columns for what the day lacks."""
    out = None
    for frame in frames:
        frame = frame.drop("date", strict=False).with_columns(_TEXT)
        out = frame if out is None else out.join(frame, on="instrument", how="full", coalesce=True)
    lacks = [pl.lit(None, pl.Float64).alias(name) for name in columns if name not in out.columns]
    kept = ["instrument", "bars_traded", *columns]
    return out.with_columns(lacks).select(kept).with_columns(
        pl.col(columns).cast(pl.Float64).fill_nan(None)).sort("instrument")


# ---- files --------------------------------------------------------------------------------------------------------------------
def written_source(file: Path) -> Optional[str]:
    """What a result was made of; None where there is none, or none that can be read."""
    try:
        return pl.read_parquet_metadata(file).get(SOURCE)
    except (OSError, pl.exceptions.PolarsError):
        return None


def is_outdated(file: Path, folder: Path, trades: bool) -> bool:
    """Whether bars or trades that a block is made of are there and are others now, or came later; `folder` of the intraday tables,
    `trades`: whether blocks of this kind read trades."""
    parts = (written_source(file) or "").split()
    known = {part.partition(":")[0]: part for part in parts}
    for table in {*known, *(["trades"] if trades else [])}:
        now = _identity(table, day_file(folder, table, file.parent.name.partition("=")[2]))
        if now not in (known.get(table), f"{table}:{GONE}"):
            return True
    return False


def _identity(table: str, file: Path) -> str:
    try:
        status = os.stat(file)
    except FileNotFoundError:                               # removed since the days were listed
        return f"{table}:{GONE}"
    return f"{table}:{status.st_size}:{status.st_mtime_ns}"


def columns_of(file: Path) -> list[str]:
    """Columns of a Parquet file, from its head; none where it cannot be read."""
    try:
        return list(pl.read_parquet_schema(file))
    except (OSError, pl.exceptions.PolarsError):
        return []


def write_aside(file: Path, frame: pl.DataFrame, metadata: dict[str, str]) -> None:
    """Write a Parquet file beside its place and rename it: who reads sees all of it or nothing, whoever else writes it too."""
    with beside(file) as aside:
        frame.write_parquet(aside, compression="zstd", metadata=metadata)


def write_text_aside(file: Path, text: str) -> None:
    """The same with a text."""
    with beside(file) as aside:
        aside.write_text(text + "\n", encoding="utf-8")


def clear_stale(place: Path) -> None:
    """Remove what runs wrote aside that were killed an hour ago or earlier."""
    for aside in place.glob(f"date=*/.{PART}.*"):
        with suppress(OSError):
            if time.time() - aside.stat().st_mtime > STALE_SECONDS:
                aside.unlink()


def _digest(content) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
