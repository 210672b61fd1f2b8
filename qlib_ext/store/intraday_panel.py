"""The second half of `build-intraday`: from files of days to daily fields of the Qlib store.

Axis letters: t day of the calendar, n stock, c column.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence

import numpy as np
import polars as pl
from tqdm import tqdm

from qlib_ext.errors import DataError
from qlib_ext.factors.intraday_average import days_mean, orthogonalise, regressors
from qlib_ext.store.feature_files import first_few
from qlib_ext.store.intraday_days import DayWork, Limits
from qlib_ext.store.intraday_fields import IntradayWriter
from qlib_ext.store.reading import StoreFiles
from qlib_ext.store.schema import describe_fields

logger = logging.getLogger("qlib_ext.store")
_COLUMNS_AT_ONCE = 8
EMPTY = "no stock of the store has a value of them on any day"
FEW_DAYS = "no stock has a value on enough of {mean} trading days in a row"
FEW_STOCKS = "no day has enough stocks with a value beside industries and regressors"
_FIELDS = ("float_cap", "total_cap", "close", "volume", "factor", "float_shares", "turnover", "change", "equity", "preferred_equity")


class Market(NamedTuple):
    """Stocks of a store: `codes [n]`, `start [n]` and `length [n]` of their files on the calendar `days [t]`; `exposures` name ->
    ``[t, n]``, `industry` ``[t, n]`` or None."""

    codes: np.ndarray
    start: np.ndarray
    length: np.ndarray
    days: np.ndarray
    exposures: dict
    industry: np.ndarray | None


def read_market(store: Path, orthogonal: bool = True) -> Market:
    """What a store says of its stocks; the regressors too where they will be asked for.

    Raises:
        DataError: damaged files.
    """
    files = StoreFiles(store)
    heads = [np.fromfile(files.folders[code] / "close.day.bin", "<f4", 1) for code in files.codes]
    length = np.array([(files.folders[code] / "close.day.bin").stat().st_size // 4 - 1 for code in files.codes])
    before = np.full((files.first, len(files.codes)), np.nan)

    def grid(name: str) -> np.ndarray:
        return np.concatenate([before, files.panel(name).T])

    exposures, industry = {}, None
    if orthogonal:
        exposures = regressors({name: grid(name) for name in _FIELDS if name in files.fields})
        industry = grid("industry") if "industry" in files.fields else None
    if files.damaged:
        raise DataError(f"store {store}: {first_few(files.damaged)} cannot be read: write them again, or ingest again")
    return Market(files.codes, np.concatenate(heads).astype(int), length, files.calendar, exposures, industry)


def read_limits(store: Path, market: Market) -> Limits | None:
    """Price limits of a store in raw CNY; None where it has none."""
    files = StoreFiles(store)
    if not {"limit_up", "limit_down", "factor"} <= set(files.fields):
        return None
    factor = files.panel("factor").T.astype(np.float64)
    up, down = (np.round(files.panel(name).T / factor, 3) for name in ("limit_up", "limit_down"))
    return Limits(market.days[files.first:], market.codes, up, down)


class DayPanels:
    """Columns of the files of days on a store's calendar and stocks.

    Attributes:
        stocks: positions in the market of those that any file has. days: positions on the calendar of the days that have a file.
        unknown: codes in files that the market does not have.
    """

    def __init__(self, work: DayWork, market: Market, days: Sequence[np.datetime64]):
        self.market, self.unknown = market, set()
        self.files = [(int(np.searchsorted(market.days, day)), work.file("daily", day)) for day in days]
        self.days = np.array([place for place, _ in self.files], np.int64)
        self.stocks = np.empty(0, np.int64)
        self._order = np.argsort(market.codes)
        self._sorted = market.codes[self._order]

    def columns(self, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Name and float64 ``[t, n]`` of each column, NaN unknown; some columns are read in one pass over the files."""
        for first in range(0, len(names), _COLUMNS_AT_ONCE):
            group = list(names[first:first + _COLUMNS_AT_ONCE])
            panel = np.full((len(group), len(self.market.days), len(self.market.codes)), np.nan)
            seen = np.zeros(len(self.market.codes), bool)
            for place, file in self.files:
                frame = _read(file, group)
                row, at = self._places(frame["instrument"].to_numpy().astype(str))
                panel[:, place, at] = frame.select(group).to_numpy().astype(np.float64, copy=False).T[:, row]
                seen[at] = True
            panel[~np.isfinite(panel)] = np.nan
            self.stocks = np.union1d(self.stocks, np.flatnonzero(seen))
            yield from zip(group, panel)

    def _places(self, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows of a file whose instrument is a stock of the market, and which one it is."""
        found = np.minimum(np.searchsorted(self._sorted, codes), len(self._sorted) - 1)
        known = self._sorted[found] == codes
        self.unknown.update(codes[~known].tolist())
        row = np.flatnonzero(known)
        return row, self._order[found[row]]


def _read(file: Path, names: list[str]) -> pl.DataFrame:
    try:
        return pl.read_parquet(file, columns=["instrument", *names], hive_partitioning=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(f"{file} cannot be read ({type(error).__name__}): remove it and run build-intraday again") from error


def write_fields(writer: IntradayWriter, panels: DayPanels, names: Sequence[str], features: Sequence[str], mean: int,
                 valid: float) -> dict:
    """Write all fields; returns what the metadata say of them: `fields`, `regressors`, `left_out`.

    Args:
        panels: the days' values. names: factors. features: columns that become fields as they are.
        mean: days of the mean. valid: share of them that must be known.

    Raises:
        DataError: no column has any value.
    """
    market, fields, left_out, used = panels.market, [], {}, {}
    for name, values in tqdm(panels.columns([*names, *features]), total=len(names) + len(features), desc="writing", unit=" columns",
                             mininterval=1, disable=None):
        if not np.isfinite(values).any():
            left_out[name] = EMPTY
            continue
        if name in features:
            _write(writer, panels, name, values)
            fields.append(name)
            continue
        average = _on_days(days_mean(values, mean, valid), panels.days)
        rest = orthogonalise(average, market.exposures, market.industry)
        few = FEW_DAYS.format(mean=mean)
        for ending, grid, lacks in (("_1d", values, EMPTY), ("", average, few),
                                    ("_orth", rest.values, FEW_STOCKS if np.isfinite(average).any() else few)):
            if not np.isfinite(grid).any():
                left_out[name + ending] = lacks
                continue
            _write(writer, panels, name + ending, grid)
            fields.append(name + ending)
        used = {part: max(days, used.get(part, 0)) for part, days in rest.days.items()}
    if not fields:
        raise DataError(f"none of {len(names) + len(features)} columns has a value of a stock of the store: the intraday bars of these "
                        "stocks are too few a day, or the options ask for too much")
    for why in dict.fromkeys(left_out.values()):
        names = [name for name, said in left_out.items() if said == why]
        logger.warning("%d fields are left out, since %s: %s", len(names), why, ", ".join(names))
    if panels.unknown:
        logger.warning("%d instruments of the intraday folder are no stocks of the store and have no fields: %s", len(panels.unknown),
                       first_few(sorted(panels.unknown)))
    return {"fields": describe_fields(fields, "typical"), "regressors": used, "left_out": left_out}


def _on_days(values: np.ndarray, days: np.ndarray) -> np.ndarray:
    """Unknown on days without a file: a mean of days before would look like news of that day."""
    kept = np.full(values.shape, np.nan)
    kept[days] = values[days]
    return kept


def _write(writer: IntradayWriter, panels: DayPanels, name: str, values: np.ndarray) -> None:
    market = panels.market
    for n in panels.stocks:
        start = market.start[n]
        writer.field(name, market.codes[n], start, values[start:start + market.length[n], n].astype(np.float32))


