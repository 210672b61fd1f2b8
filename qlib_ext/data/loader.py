"""Loaders of values that belong to a day rather than to a stock."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data import D

from qlib_ext.data.transform import robust_apply, robust_fit
from qlib_ext.data.universe import list_universes, universe_spans
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.market_state import market_state, market_state_names
from qlib_ext.store.feature_files import has_values

logger = logging.getLogger(__name__)

_DATE_COLUMNS = ("date", "datetime")
_INDEX_CODE = re.compile(r"^(SH000|SZ399)\d{3}$")


class FittedColumns:
    """Columns of a day out of a table of all days, normalised by what is fitted on a span of it.

    With `normalize` each column becomes `clip((x - median) / (1.4826 MAD))`, both fitted on the days from `fit_start_time` to
    `fit_end_time`, and what is unknown becomes 0, its neutral value, with a warning. Subclasses give `_table` and `_source`.

    Args:
        fit_start_time, fit_end_time: first and last day of the fit span, both included; needed when `normalize` is on.
        normalize: False leaves values and NaN as they are.
        clip: largest absolute value after normalisation, None for no limit.

    Raises:
        ConfigError: no fit span, or an empty one; a clip that is not above 0.
    """

    title = "columns"
    """What they are, as errors and warnings call them."""
    advice = "choose another span"
    """What helps where a column cannot be fitted."""

    def __init__(self, fit_start_time: Optional[str], fit_end_time: Optional[str], normalize: bool,
                 clip: Optional[float]) -> None:
        name = type(self).__name__
        self.normalize, self.clip = bool(normalize), clip
        if clip is not None and not clip > 0:
            raise ConfigError(f"{name}: clip must be above 0 or None, got {clip!r}")
        if self.normalize and (fit_start_time is None or fit_end_time is None):
            raise ConfigError(f"{name}: normalising needs fit_start_time and fit_end_time (the training days), "
                              "otherwise set normalize: false")
        self.fit_start_time = None if fit_start_time is None else pd.Timestamp(fit_start_time)
        self.fit_end_time = None if fit_end_time is None else pd.Timestamp(fit_end_time)
        if self.normalize and self.fit_start_time > self.fit_end_time:
            raise ConfigError(f"{name}: the fit span {fit_start_time} to {fit_end_time} is empty")

    def _table(self) -> pd.DataFrame:
        """All days there are x the columns, before normalisation."""
        raise NotImplementedError

    def _source(self) -> str:
        """Where the days of the table come from."""
        return "the store's calendar"

    def load(self, days: Sequence) -> Tuple[np.ndarray, List[str]]:
        """The columns on the given days.

        Args:
            days: `[t]` dates in any order.

        Returns:
            float32 `[t, m]` and the m column names.

        Raises:
            DataError: a day that the source does not have, a column without spread in the fit span, and what the source lacks.
        """
        table = self._table()
        values = table.to_numpy(dtype=np.float64)
        wanted = pd.DatetimeIndex(np.asarray(days, dtype="datetime64[D]"))
        rows = table.index.get_indexer(wanted)
        if (rows < 0).any():
            absent = wanted[rows < 0]
            first, last = table.index.min(), table.index.max()
            raise DataError(f"{self.title}: {len(absent)} of {len(wanted)} days are absent from {self._source()}, the first is "
                            f"{absent.min():%Y-%m-%d}; it reaches from {first:%Y-%m-%d} to {last:%Y-%m-%d}")
        chosen = values[rows]
        if self.normalize:
            chosen = robust_apply(chosen, *self._fit(table, values), clip=self.clip)
            self._report_unknown(wanted, chosen, table.columns)
            chosen = np.nan_to_num(chosen, nan=0.0)
        return chosen.astype(np.float32), list(table.columns)

    def _fit(self, table: pd.DataFrame, values: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
        """Median and scale of every column over the fit span."""
        inside = (table.index >= self.fit_start_time) & (table.index <= self.fit_end_time)
        median, scale = robust_fit(values[inside])
        if not np.isfinite(scale).all():
            flat = [name for name, known in zip(table.columns, np.isfinite(scale)) if not known]
            raise DataError(f"{self.title}: {len(flat)} columns have no values or no spread in the fit span "
                            f"{self.fit_start_time:%Y-%m-%d} to {self.fit_end_time:%Y-%m-%d} ({int(inside.sum())} days), "
                            f"first {flat[0]!r}: {self.advice}")
        return median, scale

    def _report_unknown(self, days: pd.DatetimeIndex, values: np.ndarray, names: pd.Index) -> None:
        unknown = np.isnan(values)
        if unknown.any():
            rows = np.flatnonzero(unknown.any(axis=1))
            logger.warning("%s: unknown values on %d of %d days (%s to %s, first in %s) become 0", self.title, len(rows),
                           len(days), days[rows].min().date(), days[rows].max().date(), names[int(unknown.any(axis=0).argmax())])


class MarketStateLoader(FittedColumns):
    """The market-state columns of a day: 21 per index, computed from the store's index bars, or ready ones from a Parquet file.

    Computed columns come from the whole history of the store (see `qlib_ext.factors.market_state`), so a day's values do not
    depend on which other days are asked for. They are normalised as `FittedColumns` says; the first days of an index are
    unknown. An index without `$amount` uses `$volume`, with a warning that names it.

    Args:
        instruments: index codes, in the order of the columns. Not used with `path`.
        fit_start_time, fit_end_time: first and last day of the fit span, both included; needed when `normalize` is on.
        path: Parquet file of ready columns whose index or column `date` (or `datetime`) holds the day, one row a day (an
            exact repetition of a row is allowed). Its columns are taken in the order of the file.
        normalize: True by default for computed columns; has to be said with `path`, whose columns may be normalised already.
            Computed columns that are not normalised keep their NaN.
        clip: largest absolute value after normalisation, None for no limit.

    Raises:
        ConfigError: no instruments, no fit span, or `normalize` not said with `path`.
    """

    title = "market state"
    advice = "choose another span or index"

    def __init__(self, instruments: Sequence[str] = ("SH000300", "SH000905", "SH000852"), fit_start_time: Optional[str] = None,
                 fit_end_time: Optional[str] = None, path: Optional[str] = None, normalize: Optional[bool] = None,
                 clip: Optional[float] = 3.0) -> None:
        if path is not None and normalize is None:
            raise ConfigError("MarketStateLoader: with `path` say `normalize: false` (columns as they are) or `normalize: true`")
        super().__init__(fit_start_time, fit_end_time, True if normalize is None else normalize, clip)
        self.instruments = [instruments] if isinstance(instruments, str) else list(instruments)
        self.path = path
        if path is None and (not self.instruments or len(set(self.instruments)) < len(self.instruments)):
            raise ConfigError(f"MarketStateLoader: instruments must name different indices, got {self.instruments}")

    def load(self, days: Sequence) -> Tuple[np.ndarray, List[str]]:
        """float32 `[t, m]` of `days [t]` and the m names (`SH000300:return_1`, ... or those of the file).

        Raises:
            DataError: an index that the store does not have, a day that the calendar or the file does not have, a column without
                spread in the fit span, a missing or malformed file, a hole in ready columns that are taken as they are.
        """
        values, names = super().load(days)
        if self.path is not None and not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            day = pd.Timestamp(days[row])
            raise DataError(f"market state: {self._source()} has no finite {names[column]!r} on {day:%Y-%m-%d}; fill the "
                            "file, or set normalize: true, which puts 0 there")
        return values, names

    def _table(self) -> pd.DataFrame:
        return self._computed_table() if self.path is None else self._ready_table()

    def _source(self) -> str:
        return super()._source() if self.path is None else f"the file {Path(self.path).name}"

    def _computed_table(self) -> pd.DataFrame:
        """All days of the calendar x 21 columns per index."""
        self.check()
        calendar = pd.DatetimeIndex(D.calendar(freq="day"))
        bars = D.features(self.instruments, ["$close", "$amount", "$volume"], freq="day")
        blocks, names = [], []
        for code in self.instruments:
            bar = bars.xs(code, level="instrument").reindex(calendar)
            activity = bar["$amount"]
            if activity.isna().all():
                logger.warning("market state: index %s has no $amount in the store, $volume stands in for it", code)
                activity = bar["$volume"]
            blocks.append(market_state(bar["$close"].to_numpy(), activity.to_numpy()))
            names += market_state_names(code)
        return pd.DataFrame(np.concatenate(blocks, axis=1), index=calendar, columns=names)

    def check(self) -> None:
        """What can be said before anything is loaded: the file is there, or every index has a close, and an amount or a volume.

        Raises:
            DataError: it is not; the message names the indices the store has.
        """
        if self.path is not None:
            if not Path(self.path).expanduser().is_file():
                raise DataError(f"market state: there is no file {Path(self.path).expanduser()}")
            return
        universes = list_universes()  # fails with a sentence when Qlib is not initialised
        features = Path(C.dpm.get_data_uri("day")) / "features"

        def lacking(*fields):
            return [code for code in self.instruments
                    if not any(has_values(features, code, name) for name in fields)]

        missing, silent = lacking("close"), lacking("amount", "volume")
        if missing:
            if "index" in universes:
                known = sorted(universe_spans("index"))
            else:
                known = sorted(entry.name.upper() for entry in features.glob("s*") if _INDEX_CODE.match(entry.name.upper()))
            raise DataError(f"market state: the store has no bars of {missing}; its indices are {known}. Name some of these in "
                            "`instruments` (21 columns each, the model's width follows) or ingest the bars of the missing ones")
        if silent:
            raise DataError(f"market state: {silent} have neither $amount nor $volume in the store: name other indices in "
                            "`instruments`, or ingest their volume")

    def _ready_table(self) -> pd.DataFrame:
        """The file as a table of days x numeric columns."""
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise DataError(f"market state: there is no file {path}")
        table = pd.read_parquet(path)
        named = [column for column in table.columns if str(column).lower() in _DATE_COLUMNS]
        if named:
            table = table.set_index(named[0])
        try:
            if table.index.dtype.kind in "iufb":  # row numbers are not days
                raise ValueError
            table.index = pd.DatetimeIndex(table.index)
        except (TypeError, ValueError):
            table.index = pd.DatetimeIndex([None] * len(table))
        if table.index.hasnans or not len(table):
            raise DataError(f"market state: {path.name} needs a day in every row, "
                            "in its index or in a column `date` or `datetime`")
        table.index = table.index.tz_localize(None).normalize()
        table.columns = [str(column) for column in table.columns]
        words = [name for name, kind in table.dtypes.items() if kind.kind not in "fiu"]
        if words or not table.shape[1]:
            raise DataError(f"market state: {path.name} must hold numeric columns besides the day; not numeric: {words}")
        return self._one_row_a_day(table, path.name)

    @staticmethod
    def _one_row_a_day(table: pd.DataFrame, name: str) -> pd.DataFrame:
        """Drop rows that repeat another row exactly; two different rows of a day are an error."""
        table = table[~(table.index.duplicated() & table.reset_index().duplicated().to_numpy())]
        twice = table.index[table.index.duplicated()]
        if len(twice):
            raise DataError(f"market state: {name} has different rows for {len(twice.unique())} days, "
                            f"the first is {twice.min():%Y-%m-%d}: keep one row a day")
        return table.sort_index()
