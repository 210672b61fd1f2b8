"""Cross-sectional metrics on plain arrays: IC, RankIC, their summaries and exp(-RankMAE).

One implementation serves a single day, a long panel and a matrix `[t, n]`: long arrays hold one row per (day, stock) pair and an
integer day, in any order. NaN in score or label drops the pair. An infinite score or label keeps its place in a rank, and makes the
Pearson IC of its day NaN. Axis letters: r row (day, stock), t day, n stock.
"""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Tuple

import numpy as np

from qlib_ext.errors import DataError, ShapeError

MIN_PAIRS = 2
"""Pairs a day needs for a number by default: what the formula needs. Reports should ask for more."""

REPORT_MIN_PAIRS = 30
"""Pairs a day should have in a report of a real universe; pass it as `min_count`."""

ROUNDING = 1e-12
"""What is below this share of its size is rounding."""


class DayFigures(NamedTuple):
    """Figures of score and label on each day, float64 `[t]`; `count` is the number of pairs, known on every day."""

    ic: np.ndarray
    rank_ic: np.ndarray
    exp_rank_mae: np.ndarray
    count: np.ndarray


def rank_rows(values: np.ndarray) -> np.ndarray:
    """Ranks 1..n inside each row of a matrix, ties at their average; NaN stays NaN and is not counted. float64 `[t, n]`."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ShapeError(f"rank_rows takes a matrix, got shape {values.shape}")
    days, width = values.shape
    if not values.size:
        return np.empty(values.shape)
    unknown = np.isnan(values)
    last = values if np.isposinf(values).any() else np.where(unknown, np.inf, values)   # numpy sorts NaN three times as slowly
    order = np.argsort(last, axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    new_run = np.ones(values.shape, dtype=bool)
    new_run[:, 1:] = ordered[:, 1:] != ordered[:, :-1]                              # NaN, the last of a row, is its own run
    placed = np.broadcast_to(np.arange(1.0, width + 1), values.shape)
    if not new_run.all():
        run_start = np.flatnonzero(new_run)
        run_end = np.r_[run_start[1:], values.size]
        run_rank = (run_start % width + (run_end - 1 - run_start) / 2.0) + 1.0
        placed = np.repeat(run_rank, run_end - run_start).reshape(days, width)
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, placed, axis=1)
    ranks[unknown] = np.nan
    return ranks


def rank_average(values: np.ndarray) -> np.ndarray:
    """Ranks 1..n of a vector, ties at their average; NaN stays NaN and is not counted. float64 `[r]`."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ShapeError(f"rank_average takes a vector, got shape {values.shape}")
    return rank_rows(values[None])[0]


def standardise_rows(values: np.ndarray) -> np.ndarray:
    """z-score of each row of a matrix (standard deviation divided by n). `[t, n]`

    NaN stays NaN and is not counted; a row whose known values are all equal, or one of which is infinite, is NaN.
    """
    values = np.asarray(values, dtype=np.float64)
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        count = known.sum(axis=1, keepdims=True)
        centred = values - np.where(known, values, 0.0).sum(axis=1, keepdims=True) / count
        centred -= np.where(known, centred, 0.0).sum(axis=1, keepdims=True) / count
        deviation = np.sqrt(np.where(known, centred * centred, 0.0).sum(axis=1, keepdims=True) / count)
        deviation[~(deviation > 0)] = np.nan  # the second centring is exact for equal values: 0, not a rounding error
        return centred / deviation


def _figure(score: np.ndarray, label: np.ndarray, known: np.ndarray, min_count: int, distance: bool) -> np.ndarray:
    """Mean over the pairs of each row of the product, or exp(-mean distance), of standardised rows; NaN with too few pairs. `[t]`"""
    count = known.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        term = np.abs(score - label) if distance else score * label
        result = np.where(known, term, 0.0).sum(axis=1) / count
    result[count < max(min_count, MIN_PAIRS)] = np.nan
    return np.exp(-result) if distance else np.clip(result, -1.0, 1.0)


def _complete(score: np.ndarray, label: np.ndarray) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two matrices with NaN wherever one of them is, and where both are known."""
    score, label = np.asarray(score, dtype=np.float64), np.asarray(label, dtype=np.float64)
    if score.ndim != 2 or score.shape != label.shape:
        raise ShapeError(f"score {score.shape} and label {label.shape} must be matrices [t, n] of one shape")
    known = ~(np.isnan(score) | np.isnan(label))
    return np.where(known, score, np.nan), np.where(known, label, np.nan), known


def day_figures(score: np.ndarray, label: np.ndarray, min_count: int = MIN_PAIRS) -> DayFigures:
    """IC, RankIC and exp(-RankMAE) of each row of `score` and `label` `[t, n]`, as `daily_ic` and its kin give them.

    Raises:
        ShapeError: not two matrices of one shape.
    """
    score, label, known = _complete(score, label)
    raw = standardise_rows(score), standardise_rows(label)
    ranked = standardise_rows(rank_rows(score)), standardise_rows(rank_rows(label))
    return DayFigures(_figure(*raw, known, min_count, False), _figure(*ranked, known, min_count, False),
                      _figure(*ranked, known, min_count, True), known.sum(axis=1))


def row_correlation(left: np.ndarray, right: np.ndarray, min_count: int = MIN_PAIRS) -> np.ndarray:
    """Pearson correlation of each row of two matrices `[t, n]`, `[t]`; NaN as in `daily_ic`.

    Raises:
        ShapeError: not two matrices of one shape.
    """
    left, right, known = _complete(left, right)
    return _figure(standardise_rows(left), standardise_rows(right), known, min_count, False)


def _pairs(score: np.ndarray, label: np.ndarray, day_index: np.ndarray,
           day_count: Optional[int]) -> Tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Checked float64 vectors without NaN pairs, their days, and the number of days."""
    score, label = np.asarray(score, dtype=np.float64), np.asarray(label, dtype=np.float64)
    day_index = np.asarray(day_index)
    if score.ndim != 1 or score.shape != label.shape or score.shape != day_index.shape:
        raise ShapeError(f"score {score.shape}, label {label.shape} and day {day_index.shape} must be vectors of one length")
    if day_index.size and (not np.issubdtype(day_index.dtype, np.integer) or day_index.min() < 0):
        raise DataError("day_index must hold integers from 0 on (a row without a day has no place in a daily metric)")
    reach = int(day_index.max()) + 1 if day_index.size else 0
    if day_count is not None and day_count < reach:
        raise DataError(f"day_index reaches {reach - 1}, but day_count is {day_count}")
    known = ~(np.isnan(score) | np.isnan(label))
    return score[known], label[known], day_index[known].astype(np.int64), reach if day_count is None else day_count


def _daily(score: np.ndarray, label: np.ndarray, day_index: np.ndarray, min_count: int, day_count: Optional[int],
           ranked: bool, distance: bool) -> np.ndarray:
    """`_figure` of long vectors: the pairs of each day are laid out as a row, filled up with NaN."""
    score, label, day, days = _pairs(score, label, day_index, day_count)
    result = np.full(days, np.nan)
    if not day.size:
        return result
    order = np.argsort(day, kind="stable")
    present, row, count = np.unique(day[order], return_inverse=True, return_counts=True)
    place = np.arange(day.size) - np.repeat(np.cumsum(count) - count, count)
    table = np.full((2, present.size, count.max()), np.nan)
    table[0, row, place], table[1, row, place] = score[order], label[order]
    known = ~np.isnan(table[0])
    left, right = (standardise_rows(rank_rows(side) if ranked else side) for side in table)
    result[present] = _figure(left, right, known, min_count, distance)
    return result


def daily_ic(score: np.ndarray, label: np.ndarray, day_index: np.ndarray, min_count: int = MIN_PAIRS,
             day_count: Optional[int] = None) -> np.ndarray:
    """Pearson correlation of score and label on every day.

    Args:
        score, label: `[r]`, NaN drops the pair.
        day_index: `[r]` integers from 0 on, in any order.
        min_count: days with fewer pairs (or with a constant score or label) are NaN; never below 2.
        day_count: length of the result, the largest day + 1 by default; days without rows are NaN.

    Returns:
        float64 `[t]`, clipped to [-1, 1].

    Raises:
        ShapeError: lengths differ. DataError: negative or non-integer days, or `day_count` too small.
    """
    return _daily(score, label, day_index, min_count, day_count, False, False)


def daily_rank_ic(score: np.ndarray, label: np.ndarray, day_index: np.ndarray, min_count: int = MIN_PAIRS,
                  day_count: Optional[int] = None) -> np.ndarray:
    """Spearman correlation (average ties) of score and label on every day; arguments and result as in `daily_ic`."""
    return _daily(score, label, day_index, min_count, day_count, True, False)


def daily_exp_rank_mae(score: np.ndarray, label: np.ndarray, day_index: np.ndarray, min_count: int = MIN_PAIRS,
                       day_count: Optional[int] = None) -> np.ndarray:
    """`exp(-mean_i |u_i - v_i|)` per day, u and v the z-scored (divided by n) average-tie ranks of score and label.

    1 for identical ranks, `exp(-2/sqrt(3)) = 0.3151` for independent ones, `exp(-sqrt(3)) = 0.177` for reversed ones (many
    stocks). Arguments and result as in `daily_ic`. Source: reconstructed from published values, no formula is public.
    """
    return _daily(score, label, day_index, min_count, day_count, True, True)


def _one_day(metric, score: np.ndarray, label: np.ndarray, min_count: int) -> float:
    score = np.asarray(score, dtype=np.float64)
    return float(metric(score, label, np.zeros(score.shape, dtype=np.int64), min_count, 1)[0])


def ic(score: np.ndarray, label: np.ndarray, min_count: int = MIN_PAIRS) -> float:
    """Pearson correlation of one day; NaN with fewer than `min_count` complete pairs or a constant side."""
    return _one_day(daily_ic, score, label, min_count)


def rank_ic(score: np.ndarray, label: np.ndarray, min_count: int = MIN_PAIRS) -> float:
    """Spearman correlation (average ties) of one day; NaN with fewer than `min_count` complete pairs or a constant side."""
    return _one_day(daily_rank_ic, score, label, min_count)


def exp_rank_mae(score: np.ndarray, label: np.ndarray, min_count: int = MIN_PAIRS) -> float:
    """`daily_exp_rank_mae` of one day."""
    return _one_day(daily_exp_rank_mae, score, label, min_count)


def summarize(daily: np.ndarray) -> Dict[str, float]:
    """Mean, standard deviation (ddof 1), ratio and t of a daily series; NaN days are left out.

    Returns:
        `mean`, `std`, `icir = mean / std` (per period, not annualised), `t = icir * sqrt(n)` (assumes independent days: with
        overlapping labels use `newey_west_t`), `n` days counted. What is undefined (n = 0; std of one day; ratio of a constant)
        is NaN.
    """
    values = np.asarray(daily, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    count = values.size
    mean = float(values.mean()) if count else float("nan")
    std = float(values.std(ddof=1)) if count > 1 else float("nan")
    icir = mean / std if count > 1 and values.max() > values.min() else float("nan")
    return {"mean": mean, "std": std, "icir": icir, "t": icir * float(np.sqrt(count)), "n": count}


def excess_figures(net: np.ndarray, bench: np.ndarray, days_a_year: int = 252) -> Dict[str, float]:
    """What daily returns `net [t]` earn over `bench [t]` (fractions, no NaN).

    Returns:
        `excess a year`: W[-1] ** (days_a_year / t) - 1 with W = prod((1 + net) / (1 + bench)); `IR`: mean / std (ddof 1) of the daily
        differences x sqrt(days_a_year); `drawdown`: the largest fall of W from its peak (which starts at 1); `tracking error`: that std
        x sqrt(days_a_year), 0 for equal differences. NaN where undefined.

    Raises:
        ShapeError: lengths differ, or there is no day.
    """
    net, bench = np.asarray(net, dtype=np.float64), np.asarray(bench, dtype=np.float64)
    if net.ndim != 1 or net.shape != bench.shape or not net.size:
        raise ShapeError(f"returns {net.shape} and benchmark {bench.shape} must be vectors of one length above 0")
    difference, wealth = net - bench, np.cumprod((1 + net) / (1 + bench))
    spread = float(difference.std(ddof=1)) if net.size > 1 else float("nan")
    if np.ptp(difference) <= ROUNDING * np.abs(difference).max():
        spread *= 0.0                                                               # equal but for rounding
    return {"excess a year": float(wealth[-1] ** (days_a_year / net.size) - 1),
            "IR": float(difference.mean() / spread * np.sqrt(days_a_year)) if spread > 0 else float("nan"),
            "drawdown": float((wealth / np.maximum(np.maximum.accumulate(wealth), 1.0) - 1).min()),
            "tracking error": spread * float(np.sqrt(days_a_year))}


def newey_west_t(series: np.ndarray, lag: int) -> float:
    """t of the mean of a series with Bartlett weights up to `lag`: `mean / sqrt((g_0 + 2 sum_j (1 - j/(lag+1)) g_j) / n)`.

    `g_j` are autocovariances divided by n. NaN days are left out and the rest moves together. For labels that overlap over d days
    take `lag = d - 1` or more. NaN with fewer than two values or a constant series.

    Raises:
        DataError: when `lag` is negative or not below the number of values.

    Source: Newey and West 1987.
    """
    values = np.asarray(series, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    count = values.size
    if lag < 0 or (count > 1 and lag >= count):
        raise DataError(f"newey_west_t: lag {lag} must lie between 0 and the {count} values minus one")
    if count < 2 or values.max() == values.min():
        return float("nan")
    centred = values - values.mean()
    variance = centred @ centred
    for step in range(1, lag + 1):
        variance += 2 * (1 - step / (lag + 1)) * (centred[step:] @ centred[:-step])
    return float(values.mean() / np.sqrt(variance) * count)


def cautious_t(series: np.ndarray, lag: int) -> float:
    """`newey_west_t`, NaN where the series has no more known values than `lag` + 1 (a report goes on, a test would stop)."""
    count = int((~np.isnan(np.asarray(series, dtype=np.float64))).sum())
    return newey_west_t(series, lag) if count > lag + 1 else float("nan")
