"""Total-return and price versions of each index, made of its members."""

import logging
import math
from typing import Dict, NamedTuple, Optional

import numpy as np

from qlib_ext.store.fields import Dividends
from qlib_ext.store.grid import Grid
from qlib_ext.store.schema import INDEX_CODES

logger = logging.getLogger("qlib_ext.store")
BASE = 1000.0
DAYS_PER_YEAR = 365.25


class Derived(NamedTuple):
    """One derived index: `level [t]` on calendar days from `start` on, float64, NaN on days without a weight before."""

    start: int
    level: np.ndarray

    def fields(self) -> Dict[str, np.ndarray]:
        """What is stored, float32 [t]: close, change since the last level, factor 1."""
        level = self.level
        last = np.maximum.accumulate(np.where(np.isfinite(level), np.arange(len(level)), 0))
        change = np.append(np.nan, level[1:] / level[last[:-1]] - 1)
        fields = {"close": level, "change": change, "factor": np.ones(len(level))}
        return {name: values.astype(np.float32) for name, values in fields.items()}


def member_returns(grid: Grid, close: np.ndarray, raw_close: np.ndarray, traded: np.ndarray,
                   dividends: Optional[Dividends]) -> Dict[str, np.ndarray]:  # fmt: skip
    """Returns since the last traded close, 0 on days without a trade, float64 [c]: `TR` and, with dividends, `PR`.

    `TR` moves as the adjusted close. `PR` too, but where an ex-date lies after the last traded close it is
    close x (1 + bonus) / that close - 1 of unadjusted closes: the cash is lost, as in a price index.
    """
    at = np.flatnonzero(traded)
    same = grid.stock[at[1:]] == grid.stock[at[:-1]]
    before, now = at[:-1][same], at[1:][same]
    total = np.zeros(grid.size)
    total[now] = close[now] / close[before] - 1
    if dividends is None:
        return {"TR": total}
    ex_dates = np.append(0, np.cumsum(dividends.ex_date))
    between = ex_dates[now + 1] > ex_dates[before + 1]
    price = total.copy()
    for start, end in zip(before[between], now[between]):
        growth = np.prod(1 + dividends.bonus[start + 1 : end + 1])
        price[end] = raw_close[end] * growth / raw_close[start] - 1
    return {"TR": total, "PR": price}


def index_level(grid: Grid, weights: np.ndarray, returns: np.ndarray) -> Optional[Derived]:
    """Level of an index from 1000 on the first day with weights: each day it grows by the sum over members of the weight known at
    the close before (`weights [c]`, NaN for non-members) x the day's return `[c]`; a member without a cell returns 0. NaN, and
    the last level carried over, after a day without weights. None if there are no weights at all.

    Sums are exact, so that stocks that join later leave earlier levels bit by bit as they are.
    """
    held = np.isfinite(weights)
    if not held.any():
        return None
    start, stop = int(grid.day[held].min()), int((grid.start + grid.length).max())
    cells = np.flatnonzero(held)
    cells = cells[np.argsort(grid.day[cells], kind="stable")]
    products = (weights[cells] * _next(grid, returns)[cells]).tolist()
    edges = np.searchsorted(grid.day[cells], np.arange(start, stop + 1)).tolist()
    level, current = np.full(stop - start, np.nan), BASE
    level[0] = BASE
    for place, (first, end) in enumerate(zip(edges[:-2], edges[1:-1]), start=1):
        if first < end:
            current *= 1 + math.fsum(products[first:end])
            level[place] = current
    return Derived(start, level)


def _next(grid: Grid, values: np.ndarray) -> np.ndarray:
    """Each cell's value of the instrument's next cell, 0 for its last one. [c]"""
    following = np.append(values[1:], 0.0)
    following[grid.offset + grid.length - 1] = 0.0
    return following


def against_bars(name: str, derived: Derived, days: np.ndarray, closes: Optional[np.ndarray]) -> dict:
    """What the metadata say of a derived index, compared with the bars of the index on the days both have.

    `closes [t]` are those of the official (price) index on the days of `derived`, None or NaN without bars. `annual_difference`:
    growth a year, derived - official; `tracking_difference`: standard deviation of the daily difference of returns.
    """
    about = {"base": BASE, "base_day": str(days[0])}
    both = np.isfinite(derived.level) & (np.isfinite(closes) if closes is not None else False)
    if np.count_nonzero(both) < 2:
        return about
    at = np.flatnonzero(both)
    years = (days[at[-1]] - days[at[0]]).astype(int) / DAYS_PER_YEAR
    mine, theirs = derived.level[at], closes[at]
    growth = [(levels[-1] / levels[0]) ** (1 / years) - 1 for levels in (mine, theirs)]
    daily = mine[1:] / mine[:-1] - theirs[1:] / theirs[:-1]
    about.update(against=INDEX_CODES[name], compared=[str(days[at[0]]), str(days[at[-1]]), len(at)],
                 annual_difference=float(growth[0] - growth[1]), tracking_difference=float(daily.std()))  # fmt: skip
    return about
