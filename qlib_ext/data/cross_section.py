"""Cross-sectional processors: each day by itself, with the members of a universe as the crowd that makes the statistics.

`days` are the rows of each day, found by the codes of the index; days are shared among threads.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence

import numpy as np
import pandas as pd
from qlib.data import D

from qlib_ext.data.arrays import ArrayProcessor, Arrays, Columns, Group, chosen_groups, member_rows
from qlib_ext.data.columns import column_blocks, days_of, mean_of, moments, rank, replace, robust_moments, scale, totals
from qlib_ext.data.leaks import feature_faults, refuse
from qlib_ext.data.threads import run
from qlib_ext.data.transform import ROBUST_SCALE, neutralize_rows, winsorize_limits, winsorize_rows
from qlib_ext.data.universe import index_levels
from qlib_ext.errors import ConfigError, DataError


class DayProcessor(ArrayProcessor):
    """Treats the arrays day by day: a subclass says in `treat` how a day is."""

    def __init__(self, fields_group: Group = None, universe: Optional[str] = None) -> None:
        self.fields_group = fields_group
        self.universe = universe

    def treat(self, values: np.ndarray, rows: np.ndarray, members: np.ndarray) -> None:
        """Process `values[rows]` in place; `members` are those of `rows` that make the statistics."""
        raise NotImplementedError

    def apply_arrays(self, arrays: Arrays, index: pd.MultiIndex, columns: Columns) -> None:
        member = member_rows(index, self.universe)
        days = days_of(np.asarray(index.codes[index_levels(index)[0]]))
        for group in self.groups(list(arrays)):
            values = arrays[group]
            run(lambda rows: self.treat(values, rows, rows if member is None else rows[member[rows]]), days)


class ProcessInf(DayProcessor):
    """The day's mean of the column's finite values where a value is infinite, as Qlib's; NaN where the day has none.

    The rows keep their order (Qlib sorts them).

    Args:
        fields_group: group of columns, list of groups, or None for all columns.
        universe: name of an instruments file of the store: its members of the day make the mean.

    Raises:
        ConfigError: when called: unknown group or universe. DataError: no row belongs to the universe.
    """

    def treat(self, values: np.ndarray, rows: np.ndarray, members: np.ndarray) -> None:
        total = totals(values, members, np.finfo(values.dtype).max)
        replace(values, rows, True, mean_of(total).astype(values.dtype))


class CSZFillna(DayProcessor):
    """The day's mean of the column where a value is NaN, as Qlib's; NaN where the day has no value.

    Infinite values count (a day with one is filled with it), so put `ProcessInf` before. Arguments and errors as `ProcessInf`.
    """

    def treat(self, values: np.ndarray, rows: np.ndarray, members: np.ndarray) -> None:
        replace(values, rows, False, mean_of(totals(values, members, np.inf)).astype(values.dtype))


class CSZScoreNorm(DayProcessor):
    """Daily z-score of columns; with `universe` its members of the day make the statistics and every row is scaled by them.

    "zscore": `(x - mean) / std` with ddof 1; "robust": `(x - median) / (1.4826 MAD)` clipped to +-3. Without `universe` it gives
    Qlib's `CSZScoreNorm`, but for one rule of "zscore": a day whose known values are all equal is NaN (in Qlib rounding decides
    between NaN, 0 and infinity). As in Qlib an infinite value spoils the day of its column for "zscore" (all NaN; put
    `ProcessInf` before), and with "robust" it counts and becomes +-3, and so does on a day with MAD 0 whatever is not the median.
    NaN stays NaN. "zscore" is NaN on days with fewer than two known values.

    Args:
        fields_group: group of columns, list of groups, or None for all columns.
        universe: name of an instruments file of the store (`csi1000`), or None for all rows of the frame.
        method: "zscore" or "robust".

    Raises:
        ConfigError: unknown method; when called: unknown group or universe. DataError: no row belongs to the universe.
    """

    def __init__(self, fields_group: Group = None, universe: Optional[str] = None, method: str = "zscore") -> None:
        if method not in ("zscore", "robust"):
            raise ConfigError(f"CSZScoreNorm: method must be 'zscore' or 'robust', got {method!r}")
        super().__init__(fields_group, universe)
        self.method = method

    def treat(self, values: np.ndarray, rows: np.ndarray, members: np.ndarray) -> None:
        if self.method == "robust":
            center, spread = robust_moments(values, members)
            scale(values, rows, center, (spread * ROBUST_SCALE).astype(values.dtype), 3.0)
        else:
            mean, std = moments(values, members)
            std[std == 0] = np.nan
            scale(values, rows, mean.astype(values.dtype), std.astype(values.dtype), np.inf)


class CSRankNorm(DayProcessor):
    """`(rank / N - 0.5) * 3.46` of the day, equal values sharing their mean rank, as Qlib's; the dtype stays (Qlib's is float64).

    With `universe` N is the number of its members with a value, and any row's rank is
    `members below it + (members equal to it + 1) / 2`: for a member its mean rank, for another row the rank of the members it
    equals, or else the place half way between its neighbours. NaN stays NaN; a day without a known member is NaN.
    Arguments and errors as `ProcessInf`.
    """

    def treat(self, values: np.ndarray, rows: np.ndarray, members: np.ndarray) -> None:
        inside = np.isin(rows, members)
        for first, last in column_blocks(values.shape[1], len(rows)):
            block = np.ascontiguousarray(values[:, first:last][rows].T)
            block[np.isnan(block)] = np.inf
            rank(values, rows, first, inside, block, block.argsort(axis=1))


class CSWinsorize(DayProcessor):
    """Clip each day's columns to limits made by its members, see `winsorize_rows`; NaN stays NaN.

    Args:
        fields_group: group of columns, list of groups, or None for all columns.
        universe: name of an instruments file of the store, or None for all rows of the frame.
        method: "quantile" (limits q and 1 - q), "mad" (median +- k 1.4826 MAD) or "std" (mean +- k std).
        limits: q in [0, 0.5), or k above 0; by default 0.01, or 3.

    Raises:
        ConfigError: unknown method, limits out of range; when called: unknown group or universe. DataError: no row belongs to it.
    """

    def __init__(self, fields_group: Group = None, universe: Optional[str] = None, method: str = "quantile",
                 limits: Optional[float] = None) -> None:
        super().__init__(fields_group, universe)
        self.method = method
        self.limits = winsorize_limits(method, limits)

    def treat(self, values: np.ndarray, rows: np.ndarray, members: np.ndarray) -> None:
        winsorize_rows(values, rows, members, self.method, self.limits)


class CSNeutralize(DayProcessor):
    """Replace columns by what industries and exposures leave of them: residuals of a weighted regression of the day.

    The regression has a constant, one mean for each industry and the exposures; members with a known value, known exposures and a
    positive weight estimate it, and every row with known exposures gets a residual (others NaN). `cs_neutralize` says how days
    with few members, empty industries and exposures that repeat each other are treated.

    Args:
        fields_group: group of columns, list of groups, or None for all columns.
        industry: Qlib expression of a number for each industry, or None for one constant.
        exposures: Qlib expressions ("Log($float_cap)") or columns of the frame as (group, name).
        weight: Qlib expression ("Power($float_cap, 0.5)"), or None for equal weights.
        universe: name of an instruments file of the store, or None for all rows of the frame.

    Raises:
        ConfigError: no expressions where they belong; when called: unknown group, column or universe, an expression that Qlib
            cannot read or that looks ahead. DataError: no row belongs to the universe, or no row has an expression's value.
    """

    def __init__(self, fields_group: Group = None, industry: Optional[str] = "$industry", exposures: Sequence = (),
                 weight: Optional[str] = None, universe: Optional[str] = None) -> None:
        super().__init__(fields_group, universe)
        texts = [one for one in exposures if isinstance(one, str)] if not isinstance(exposures, str) else None
        pairs = [one for one in exposures if isinstance(one, (list, tuple)) and len(one) == 2]
        if texts is None or len(texts) + len(pairs) < len(exposures):
            raise ConfigError("CSNeutralize: exposures must be a list of Qlib expressions and (group, name) pairs, "
                              f"got {exposures!r}")
        for name, value in (("industry", industry), ("weight", weight)):
            if value is not None and not isinstance(value, str):
                raise ConfigError(f"CSNeutralize: {name} must be a Qlib expression or None, got {value!r}")
        self.industry = industry
        self.exposures = [one if isinstance(one, str) else tuple(one) for one in exposures]
        self.weight = weight

    def reads(self, names: Sequence[str]) -> List[str]:
        return chosen_groups([one[0] for one in self.exposures if not isinstance(one, str)], names)

    def apply_arrays(self, arrays: Arrays, index: pd.MultiIndex, columns: Columns) -> None:
        wanted = [one for one in [self.industry, self.weight, *self.exposures] if isinstance(one, str)]
        stored = store_values(index, list(dict.fromkeys(wanted)))
        exposures = np.empty((len(index), len(self.exposures)))
        for number, one in enumerate(self.exposures):
            exposures[:, number] = stored[one] if isinstance(one, str) else _column(arrays, columns, *one)
        industry = np.zeros(len(index), np.int64)
        if self.industry is not None:
            known = np.isfinite(stored[self.industry])
            industry[:] = np.where(known, stored[self.industry], -1)
        weight = np.ones(len(index)) if self.weight is None else stored[self.weight]
        member = member_rows(index, self.universe)
        if member is not None:
            weight = np.where(member, weight, 0)
        days = days_of(np.asarray(index.codes[index_levels(index)[0]]))
        for group in self.groups(list(arrays)):
            run(lambda rows: neutralize_rows(arrays[group], rows, exposures, industry, weight), days)


def _column(arrays: Arrays, columns: Columns, group: str, name: str) -> np.ndarray:
    if name not in columns[group]:
        raise ConfigError(f"CSNeutralize: group {group!r} has no column {name!r} to take as an exposure")
    return arrays[group][:, columns[group].index(name)]


def store_values(index: pd.MultiIndex, expressions: List[str]) -> Dict[str, np.ndarray]:
    """Values `[r]` (float64, NaN where the store has none) of Qlib expressions on the rows of an index.

    Raises:
        ConfigError: an expression cannot be read or looks ahead. DataError: it has no value on any row.
    """
    if not expressions or not len(index):
        return {one: np.empty(len(index)) for one in expressions}
    refuse(feature_faults(expressions))
    day, stock = index_levels(index)
    days, stocks = index.levels[day], index.levels[stock]
    ends = days[np.unique(index.codes[day])[[0, -1]]]
    table = D.features(list(stocks[np.unique(index.codes[stock])]), expressions, *ends, freq="day")
    place = np.full((len(days) + 1, len(stocks)), -1, np.int32)  # the last row takes days that the index has not
    place[days.get_indexer(table.index.get_level_values("datetime")),
          stocks.get_indexer(table.index.get_level_values("instrument"))] = np.arange(len(table))
    rows = place[index.codes[day], index.codes[stock]]
    found = {}
    for number, one in enumerate(expressions):
        found[one] = np.where(rows >= 0, table.iloc[:, number].to_numpy(np.float64)[rows] if len(table) else np.nan, np.nan)
        if np.isnan(found[one]).all():
            raise DataError(f"CSNeutralize: no row has a value of {one!r}: ingest a store with its fields, or neutralise "
                            "without it")
    return found
