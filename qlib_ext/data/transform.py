"""Cross-sectional and time-series transforms of plain arrays; no frames, no files.

Long arrays: one row per (day, stock) pair in any order, `day [r]` holds small integers from 0 on (level codes of an index, say).
`mask [r]` marks the universe: its rows make the statistics, every row gets a value.
Axis letters: r row, t day, c or m column.
"""

from __future__ import annotations

from numbers import Real
from typing import Optional, Tuple

import numpy as np

from qlib_ext.data.columns import (clip, column_blocks, cross_products, days_of, group_sums, moments, ordered, residuals,
                                   robust_moments)
from qlib_ext.errors import ConfigError, DataError, ShapeError

ROBUST_SCALE = 1.4826
"""Standard deviation over median absolute deviation of a normal distribution."""
TINY = 1e-20
"""An exposure varies within industries if this share of its square does; below, it is rounding."""


def _check_rows(values: np.ndarray, day: np.ndarray, mask: Optional[np.ndarray]) -> int:
    """Check that rows agree; the number of day groups."""
    rows = values.shape[0]
    if day.shape != (rows,) or (mask is not None and (mask.shape != (rows,) or mask.dtype != np.bool_)):
        said = None if mask is None else f"{mask.shape} {mask.dtype}"
        raise ShapeError(f"values {values.shape}, day {day.shape}, mask {said}: day must be [r] and mask a bool [r]")
    if not np.issubdtype(day.dtype, np.integer) or (rows and day.min() < 0):
        raise DataError("day must hold integers from 0 on")
    return int(day.max()) + 1 if rows else 0


def _columns(values: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """`values` as a float `[r, c]` and an empty result of its own shape and dtype (float64 for integers)."""
    values = np.asarray(values)
    if values.ndim not in (1, 2):
        raise ShapeError(f"values must be [r] or [r, c], got {values.shape}")
    dtype = values.dtype if np.issubdtype(values.dtype, np.floating) else np.float64
    result = np.empty_like(values, dtype=dtype)
    return (values[:, None] if values.ndim == 1 else values), result


def _zscore_column(column: np.ndarray, day: np.ndarray, days: int, used: np.ndarray) -> np.ndarray:
    """z-score of a float64 `[r]` by the statistics of its `used` rows; NaN on days without spread."""
    value, group = column[used], day[used]
    with np.errstate(invalid="ignore", divide="ignore"):
        count = np.bincount(group, minlength=days).astype(np.float64)
        mean = np.bincount(group, value, days) / count
        rest = value - mean[group]
        shift = np.bincount(group, rest, days) / count
        rest -= shift[group]
        std = np.sqrt(np.bincount(group, rest * rest, days) / (count - 1))
    std[~(std > 0)] = np.nan  # the second centring is exact for equal values, so that their std is 0 and not a rounding error
    return (column - (mean + shift)[day]) / std[day]


def cs_zscore(values: np.ndarray, day: np.ndarray, mask: Optional[np.ndarray] = None) -> np.ndarray:
    """`(x - mean) / std` per day and column, std with ddof 1 (as pandas and Qlib's `CSZScoreNorm`).

    Args:
        values: `[r]` or `[r, c]`; NaN stays NaN and is not counted; an infinite value is not counted and becomes NaN.
        day: `[r]` integers from 0 on.
        mask: `[r]` bool, the universe whose rows make mean and std (all rows by default); the others are scaled by them.

    Returns:
        New array of the shape and float dtype of `values`. Days on which the universe has fewer than two finite values, or only
        equal ones, are NaN: nothing can be compared there. The result is never infinite.

    Raises:
        ShapeError: rows disagree. DataError: `day` is not made of integers from 0 on.
    """
    return _by_column(values, day, mask, _zscore_column)


def cs_robust_zscore(values: np.ndarray, day: np.ndarray, mask: Optional[np.ndarray] = None, clip: float = 3.0) -> np.ndarray:
    """`(x - median) / (1.4826 MAD)` per day and column, clipped to `[-clip, clip]`; arguments as in `cs_zscore`.

    Days on which more than half of the universe shares one value (MAD 0) are NaN, like days with fewer than two finite values.
    """
    result = _by_column(values, day, mask, _robust_column)
    return np.clip(result, -clip, clip, out=result)


def _by_column(values: np.ndarray, day: np.ndarray, mask: Optional[np.ndarray], transform) -> np.ndarray:
    """Apply `transform(column, day, days, used rows)` to each column in float64, column by column to save memory."""
    table, result = _columns(values)
    day = np.asarray(day)
    mask = None if mask is None else np.asarray(mask)
    days = _check_rows(table, day, mask)
    target = result[:, None] if result.ndim == 1 else result
    for position in range(table.shape[1]):
        column = table[:, position].astype(np.float64)
        finite = np.isfinite(column)
        column[~finite] = np.nan
        target[:, position] = transform(column, day, days, finite if mask is None else finite & mask)
    return result


def _group_median(value: np.ndarray, group: np.ndarray, days: int) -> np.ndarray:
    """Median of each group `[days]`, NaN for empty groups; no NaN in `value`."""
    median = np.full(days, np.nan)
    ordered = value[np.lexsort((value, group))]
    count = np.bincount(group, minlength=days)
    start = np.cumsum(count) - count
    known = np.flatnonzero(count)
    low, high = start[known] + (count[known] - 1) // 2, start[known] + count[known] // 2
    median[known] = (ordered[low] + ordered[high]) / 2
    return median


def _robust_column(column: np.ndarray, day: np.ndarray, days: int, used: np.ndarray) -> np.ndarray:
    value, group = column[used], day[used]
    median = _group_median(value, group, days)
    spread = _group_median(np.abs(value - median[group]), group, days)
    spread[(np.bincount(group, minlength=days) < 2) | ~(spread > 0)] = np.nan
    return (column - median[day]) / (ROBUST_SCALE * spread[day])


def cs_extreme_mask(values: np.ndarray, day: np.ndarray, fraction: float = 0.05, min_count: int = 40,
                    mask: Optional[np.ndarray] = None) -> np.ndarray:
    """The most extreme rows of each day: `k = max(1, floor(fraction / 2 * N))` at each end of the N finite universe values.

    Args:
        values: `[r]`; NaN and infinite values are neither counted nor marked.
        day: `[r]` integers from 0 on.
        fraction: share of the day to mark, both tails together, in [0, 1); 0 marks nothing.
        min_count: days with fewer finite universe values are left whole.
        mask: `[r]` bool, the universe; rows outside are neither counted nor marked.

    Returns:
        bool `[r]`, True = extreme. Equal values at the border are taken in row order (the earlier row counts as the smaller one).

    Raises:
        ConfigError: `fraction` or `min_count` out of range. ShapeError, DataError: as in `cs_zscore`.
    """
    if not 0 <= fraction < 1 or min_count < 1:
        raise ConfigError(f"fraction must lie in [0, 1) and min_count be at least 1, got {fraction!r} and {min_count!r}")
    values, day = np.asarray(values), np.asarray(day)
    if values.ndim != 1:
        raise ShapeError(f"cs_extreme_mask takes one label column [r], got {values.shape}")
    days = _check_rows(values, day, None if mask is None else np.asarray(mask))
    extreme = np.zeros(values.shape[0], dtype=bool)
    used = np.flatnonzero(np.isfinite(values) if mask is None else np.isfinite(values) & mask)
    if fraction == 0 or not used.size:
        return extreme
    group = day[used]
    order = np.lexsort((values[used], group))
    count = np.bincount(group, minlength=days)
    position = np.arange(used.size) - (np.cumsum(count) - count)[group[order]]
    # the small number keeps 0.025 * 280 from falling below 7
    tail = np.maximum(1, np.floor(fraction / 2 * count + 1e-9).astype(np.int64))
    tail = np.where(count >= min_count, np.minimum(tail, count), 0)
    size, tail = count[group[order]], tail[group[order]]
    extreme[used[order]] = (position < tail) | (position >= size - tail)
    return extreme


def robust_fit(values: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Median and `1.4826 * MAD` of each column of a table `[t, m]`, over its finite values.

    Returns:
        `(median [m], scale [m])` in float64. A column without finite values has NaN in both; one without spread has NaN as scale,
        so that `robust_apply` leaves it unknown instead of infinite.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2:
        raise ShapeError(f"robust_fit takes a table [t, m], got {values.shape}")
    median, scale = np.full(values.shape[1], np.nan), np.full(values.shape[1], np.nan)
    for position in range(values.shape[1]):
        column = values[np.isfinite(values[:, position]), position]
        if column.size:
            median[position] = np.median(column)
            spread = np.median(np.abs(column - median[position]))
            scale[position] = ROBUST_SCALE * spread if spread > 0 else np.nan
    return median, scale


def robust_apply(values: np.ndarray, median: np.ndarray, scale: np.ndarray, clip: Optional[float] = 3.0) -> np.ndarray:
    """`(values - median) / scale` of a table `[t, m]`, clipped to `[-clip, clip]` unless `clip` is None.

    NaN stays NaN; float64.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or np.shape(median) != values.shape[1:] or np.shape(scale) != values.shape[1:]:
        raise ShapeError(f"values {values.shape}, median {np.shape(median)}, scale {np.shape(scale)}: need [t, m], [m], [m]")
    result = (values - median) / scale
    return result if clip is None else np.clip(result, -clip, clip)


def winsorize_limits(method: str, limits: Optional[float]) -> float:
    """`limits`, or the usual ones of the method (0.01 for "quantile", 3 for "mad" and "std").

    Raises:
        ConfigError: unknown method, or a number the method cannot use.
    """
    if method not in ("quantile", "mad", "std"):
        raise ConfigError(f"winsorize: method must be 'quantile', 'mad' or 'std', got {method!r}")
    value = (0.01 if method == "quantile" else 3.0) if limits is None else limits
    fits = isinstance(value, Real) and (0 <= value < 0.5 if method == "quantile" else 0 < value < np.inf)
    if not fits:
        needed = "a quantile from 0 to below 0.5" if method == "quantile" else "a number above 0"
        raise ConfigError(f"winsorize: limits of method {method!r} must be {needed}, got {limits!r}")
    return float(value)


def winsorize_rows(values: np.ndarray, rows: np.ndarray, members: np.ndarray, method: str, limits: float) -> None:
    """Clip `values[rows]` (of `[r, c]`, in place) to limits made by `values[members]`, column by column.

    "quantile": the q-th and (1 - q)-th, linear between values; "mad": median +- k 1.4826 MAD, in columns where that is 0 (more than half
    of the members are alike) as "std", since all others would become the median; "std": mean +- k std (ddof 1).
    NaN stays NaN; an infinite value counts in the medians only, and is clipped as any other. Where nothing can be made of the
    members (none has a value; for "std" fewer than two) all stay.
    """
    if method == "quantile":
        low, high = np.concatenate([_quantiles(*ordered(values, members, first, last), limits)
                                    for first, last in column_blocks(values.shape[1], len(members))], axis=1)
    else:
        by_std = method == "std"
        center, spread = moments(values, members, np.finfo(values.dtype).max) if by_std else robust_moments(values, members)
        reach = spread.astype(np.float64) * (limits if by_std else limits * ROBUST_SCALE)
        alike = np.flatnonzero(spread == 0)
        if len(alike) and not by_std:
            means, stds = moments(np.ascontiguousarray(values[:, alike]), members, np.finfo(values.dtype).max)
            center[alike], reach[alike] = means, stds.astype(np.float64) * limits
        with np.errstate(invalid="ignore"):
            low, high = center - reach, center + reach
    clip(values, rows, low.astype(values.dtype), high.astype(values.dtype))


def _quantiles(known: np.ndarray, count: np.ndarray, share: float) -> np.ndarray:
    """The `share` and `1 - share` quantiles `[2, k]` of the finite ones of ascending values `[k, n]`; NaN where there is none."""
    line, first, finite = np.arange(len(known)), (known == -np.inf).sum(axis=1), np.isfinite(known).sum(axis=1)
    result = np.full((2, len(known)), np.nan)
    for number, quantile in enumerate((share, 1 - share)):
        place = quantile * np.maximum(finite - 1, 0)
        lower = place.astype(np.int64)
        upper = np.minimum(lower + 1, np.maximum(finite - 1, 0))
        low, high = (known[line, np.minimum(first + at, known.shape[1] - 1)].astype(np.float64) for at in (lower, upper))
        with np.errstate(invalid="ignore"):
            result[number] = np.where(finite > 0, low + (place - lower) * (high - low), np.nan)
    return result


def cs_winsorize(values: np.ndarray, day: np.ndarray, method: str = "quantile", limits: Optional[float] = None,
                 mask: Optional[np.ndarray] = None) -> np.ndarray:
    """Each day's columns clipped to limits made by its universe, see `winsorize_rows`.

    Args:
        values: `[r]` or `[r, c]`; NaN stays NaN.
        day: `[r]` integers from 0 on.
        method, limits: as `winsorize_limits`.
        mask: `[r]` bool, the universe that makes the limits (all rows by default); the others are clipped to them.

    Returns:
        New array of the shape and float dtype of `values`.

    Raises:
        ConfigError: as `winsorize_limits`. ShapeError, DataError: as in `cs_zscore`.
    """
    limits = winsorize_limits(method, limits)
    table, result, day, mask = _whole(values, day, mask)
    for rows in days_of(day):
        winsorize_rows(table, rows, rows if mask is None else rows[mask[rows]], method, limits)
    return result


def _whole(values: np.ndarray, day: np.ndarray, mask: Optional[np.ndarray]) -> tuple:
    """A float copy of `values`, as a table `[r, c]` and in its own shape over the same memory; `day` and `mask` checked."""
    values, day, mask = np.asarray(values), np.asarray(day), None if mask is None else np.asarray(mask)
    if values.ndim not in (1, 2):
        raise ShapeError(f"values must be [r] or [r, c], got {values.shape}")
    _check_rows(values, day, mask)
    result = np.array(values, np.float32 if values.dtype == np.float32 else np.float64, order="C")
    return (result[:, None] if result.ndim == 1 else result), result, day, mask


def cs_neutralize(values: np.ndarray, day: np.ndarray, exposures: np.ndarray, industry: Optional[np.ndarray] = None,
                  weight: Optional[np.ndarray] = None, mask: Optional[np.ndarray] = None) -> np.ndarray:
    """Residuals of a weighted least squares regression on constant, industries and exposures, day by day and column by column.

    `x = a_industry + exposures b + residual`, where `a` and `b` make `sum(weight residual^2)` of the estimating rows least: rows
    of the universe with a finite value and a positive weight. See `neutralize_rows` for rows outside and for small days.

    Args:
        values: `[r]` or `[r, c]`; NaN and infinite values are not counted and become NaN.
        day: `[r]` integers from 0 on.
        exposures: `[r, k]`, k may be 0; a row that lacks one is NaN.
        industry: `[r]` integers, -1 = unknown, whose rows are NaN; None: one constant for all.
        weight: `[r]`; rows with NaN or not above 0 do not estimate; None: equal weights.
        mask: `[r]` bool, the universe (all rows by default).

    Returns:
        New array of the shape and float dtype of `values`.

    Raises:
        ShapeError: rows disagree. DataError: `day` is not made of integers from 0 on.
    """
    table, result, day, mask = _whole(values, day, mask)
    exposures = np.ascontiguousarray(exposures, np.float64)
    industry = np.zeros(len(day), np.int64) if industry is None else np.asarray(industry)
    weight = np.ones(len(day)) if weight is None else np.asarray(weight, np.float64)
    if exposures.ndim != 2 or {len(exposures), *industry.shape, *weight.shape} - {len(day)} or industry.ndim + weight.ndim != 2:
        raise ShapeError(f"values {result.shape}, exposures {exposures.shape}, industry {industry.shape}, weight {weight.shape}: "
                         "need [r] or [r, c], [r, k], [r], [r]")
    if mask is not None:
        weight = np.where(mask, weight, 0)
    for rows in days_of(day):
        neutralize_rows(table, rows, exposures, industry, weight)
    return result


def neutralize_rows(values: np.ndarray, rows: np.ndarray, exposures: np.ndarray, industry: np.ndarray,
                    weight: np.ndarray) -> None:
    """`cs_neutralize` of one day's `rows` of `values [r, c]`, in place; rows with a weight above 0 estimate.

    The industries' means are taken out first, then the exposures by normal equations. Exposures that are combinations of others
    (or of the industries) share one effect: the solution of least norm in units of the exposures' spread. A row outside whose
    industry no row estimates is measured from the day's mean instead. A column is NaN on a day with fewer estimating rows than
    coefficients (one an occupied industry, one an exposure) and one.
    """
    known = np.isfinite(exposures[rows]).all(axis=1) & (industry[rows] >= 0)
    values[rows[~known]] = np.nan
    rows = rows[known]
    if not len(rows):
        return
    x, group = exposures[rows], np.unique(industry[rows], return_inverse=True)[1]
    with np.errstate(invalid="ignore"):
        share = np.where((weight[rows] > 0) & np.isfinite(weight[rows]), weight[rows], 0.0)
    sums = group_sums(values, rows, x, group, share, group.max() + 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(sums[..., :1] > 0, sums[..., 2:], sums[..., 2:].sum(axis=0)) / np.where(
            sums[..., :1] > 0, sums[..., :1], sums[..., :1].sum(axis=0))
    size = (sums[..., :1] * means[..., 1:] ** 2).sum(axis=0)  # [c, k], what the industries' means hold of the exposures
    products = cross_products(values, rows, x, group, share, means)
    beta = _least_norm(products[..., 1:], products[..., 0], size)
    short = sums[..., 1].sum(axis=0) <= (sums[..., 0] > 0).sum(axis=0) + x.shape[1]
    means[:, short] = np.nan
    residuals(values, rows, x, group, means, beta)


def _least_norm(squared: np.ndarray, mixed: np.ndarray, size: np.ndarray) -> np.ndarray:
    """`b [c, k]` of `squared [c, k, k] b = mixed [c, k]`; exposures without a spread beside `size [c, k]` get 0."""
    spread = np.einsum("ckk->ck", squared)
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = np.where(spread > TINY * (spread + size), 1 / np.sqrt(spread), 0.0)
    scaled = squared * unit[:, :, None] * unit[:, None, :]
    return (np.linalg.pinv(scaled, rcond=1e-10, hermitian=True) @ (mixed * unit)[..., None])[..., 0] * unit
