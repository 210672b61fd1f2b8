"""Groups of stocks by score, and the portfolios that hold them between rebalances.

Axis letters: t trading day, n stock, q group, p portfolio. The score of day t is known at its close and traded at the entry of t+1;
a return dated t is earned from the entry of t-1 to the entry of t.
"""

from __future__ import annotations

from typing import NamedTuple, Optional

import numpy as np

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.report.metrics import ROUNDING, rank_rows

STALE = 60
"""Trading days without a price after which a name counts as delisted."""


class Held(NamedTuple):
    """What portfolios earned and traded: Q1 to the top group, then the equal-weighted and the cap-weighted universe.

    `returns [t, p]` simple daily returns, NaN until the portfolio holds something; `turnover [t, p]` one-way at the entry of the day,
    ``0.5 sum |weight after - weight before|``, NaN on days without a rebalance and at the first purchase; `names [t, p]` how many
    names are held after the entry of the day.
    """

    returns: np.ndarray
    turnover: np.ndarray
    names: np.ndarray


def quantile_groups(score: np.ndarray, quantiles: int, min_count: int = 2) -> np.ndarray:
    """Group of each stock on each day, 0 (lowest score) to quantiles - 1; -1 for none.

    With r the rank from 0 (ties at their average, so they stay together) among m scored stocks, ``ceil(r quantiles / (m - 1)) - 1``:
    the groups of `pandas.qcut` where no two scores are equal.

    Args:
        score: ``[t, n]``, NaN = not scored.
        quantiles: how many groups.
        min_count: stocks a day needs, and never fewer than `quantiles`; a day with fewer, or with a constant score, has no groups.

    Returns:
        int16 ``[t, n]``.

    Raises:
        ConfigError: `quantiles` is not an integer above 1. ShapeError: `score` is no matrix.
    """
    if isinstance(quantiles, bool) or not isinstance(quantiles, (int, np.integer)) or not 1 < quantiles < 1000:
        raise ConfigError(f"quantiles {quantiles!r}: give an integer from 2 to 999")
    score = np.asarray(score, dtype=np.float64)
    if score.ndim != 2:
        raise ShapeError(f"score must be [t, n], got {score.shape}")
    known = ~np.isnan(score)
    count = known.sum(axis=1, keepdims=True)
    twice = np.where(known, 2 * rank_rows(score) - 2, 0).astype(np.int64)            # exact: ranks are halves
    group = np.maximum(-(-twice * quantiles // np.maximum(2 * count - 2, 1)) - 1, 0)
    lowest = np.where(known, score, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    highest = np.where(known, score, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    grouped = (count >= max(quantiles, min_count, 2)) & (highest > lowest)
    return np.where(known & grouped, group, -1).astype(np.int16)


def group_means(values: np.ndarray, groups: np.ndarray, quantiles: int) -> np.ndarray:
    """Mean of the known `values [t, n]` of each group on each day, ``[t, q]``; NaN for a group without one."""
    values, groups = np.asarray(values, dtype=np.float64), np.asarray(groups)
    if values.shape != groups.shape or values.ndim != 2:
        raise ShapeError(f"values {values.shape} and groups {groups.shape} must be matrices [t, n] of one shape")
    row, column = np.nonzero((groups >= 0) & ~np.isnan(values))
    cell = row * quantiles + groups[row, column]
    cells = len(values) * quantiles
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(cell, values[row, column], cells) / np.bincount(cell, minlength=cells)
    return mean.reshape(len(values), quantiles)


def last_known(prices: np.ndarray) -> np.ndarray:
    """Prices ``[t, n]`` with the last known one where there is none; NaN before the first."""
    prices = np.asarray(prices, dtype=np.float64)
    place = np.maximum.accumulate(np.where(np.isnan(prices), 0, np.arange(len(prices))[:, None]), axis=0)
    return np.take_along_axis(prices, place, axis=0)


def held_portfolios(groups: np.ndarray, quantiles: int, formation: np.ndarray, entry: np.ndarray, buyable: np.ndarray,
                    sellable: np.ndarray, cap: Optional[np.ndarray] = None) -> Held:
    """Equal-weighted groups, and the universe of all grouped names equal- and cap-weighted, formed on some days and held between.

    Targets that are not buyable at the entry are left out and the others share their part; a name that is not sellable keeps its weight,
    and so does one held already that is not buyable. Weights drift between rebalances; a day without groups, or without anything to
    buy, leaves the portfolio as it is; a name without a price keeps its last one, and is sold at it at the first rebalance after `STALE`
    days without one (delisted). Cap weights are those of the formation day; names of
    unknown cap are not in that portfolio. No cost.

    Args:
        groups: ``[t, n]`` of `quantile_groups`.
        formation: bool ``[t]``; the groups of such a day are traded at the next day's entry.
        entry: ``[t, n]`` prices traded at, adjusted, above 0; NaN = not traded.
        buyable, sellable: bool ``[t, n]`` at that day's entry; a name without an entry price is neither.
        cap: ``[t, n]``; None: that portfolio stays NaN.

    Returns:
        `Held` with ``quantiles + 2`` portfolios.

    Raises:
        ShapeError: arrays of other shapes.
    """
    groups, entry = np.asarray(groups), np.asarray(entry, dtype=np.float64)
    cap = np.full(entry.shape, np.nan) if cap is None else np.asarray(cap, dtype=np.float64)
    shapes = {array.shape for array in (groups, entry, buyable, sellable, cap)}
    if len(shapes) > 1 or groups.ndim != 2 or np.shape(formation) != groups.shape[:1]:
        raise ShapeError(f"groups, entry, buyable, sellable and cap must be [t, n], formation [t]; got {shapes} and {np.shape(formation)}")
    prices, traded = last_known(entry), ~np.isnan(entry)
    place = np.arange(len(entry))[:, None]
    gone = place - np.maximum.accumulate(np.where(traded, place, -1), axis=0) >= STALE
    days, count = len(entry), quantiles + 2
    returns, turnover, names = (np.full((days, count), np.nan) for _ in range(3))
    weight, holds = np.zeros((count, entry.shape[1])), np.zeros(count, dtype=bool)
    for t in range(1, days):
        growth = prices[t] / prices[t - 1]
        growth[np.isnan(growth)] = 1.0                                               # no price yet, so not held
        value = weight @ growth
        returns[t, holds] = value[holds] - 1
        weight *= growth
        weight[holds] /= value[holds, None]
        if formation[t - 1] and (groups[t - 1] >= 0).any():
            target = _targets(groups[t - 1], cap[t - 1], quantiles)
            after = _rebalanced(weight, target, buyable[t] & traded[t], (sellable[t] & traded[t]) | gone[t])
            turnover[t, holds] = 0.5 * np.abs(after - weight).sum(axis=1)[holds]
            weight, holds = after, after.any(axis=1)
        names[t, holds] = (weight[holds] > 0).sum(axis=1)
    return Held(returns, turnover, names)


def _targets(groups: np.ndarray, cap: np.ndarray, quantiles: int) -> np.ndarray:
    """Target weights ``[p, n]`` of one day, each row in proportion only."""
    target = np.zeros((quantiles + 2, groups.size))
    member = np.flatnonzero(groups >= 0)
    target[groups[member], member] = 1.0
    target[quantiles, member] = 1.0
    target[quantiles + 1, member] = np.where(cap[member] > 0, cap[member], 0.0)      # NaN: 0
    return target


def _rebalanced(weight: np.ndarray, target: np.ndarray, buyable: np.ndarray, sellable: np.ndarray) -> np.ndarray:
    """Weights ``[p, n]`` after trading towards targets; a portfolio with nothing to buy, or nothing to buy it with, is left as it is."""
    stays = (weight > 0) & (~sellable | ((target > 0) & ~buyable))
    kept = np.where(stays, weight, 0.0)
    bought = np.where(stays | ~buyable, 0.0, target)
    total, free = bought.sum(axis=1, keepdims=True), 1.0 - kept.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        after = kept + bought * (free / total)
    return np.where((total > 0) & (free > ROUNDING), after, weight)


def turnover_a_year(turnover: np.ndarray, returns: np.ndarray, days_a_year: int = 252) -> float:
    """One-way turnover a year of one portfolio: sum of its `turnover [t]` over the days with a return, times days a year over days."""
    held = ~np.isnan(returns)
    known = turnover[held & ~np.isnan(turnover)]
    return float(known.sum() * days_a_year / held.sum()) if known.size else float("nan")
