"""Exponentially weighted statistics of trailing windows, and cross-sectional scaling, on ``[t, n]`` arrays.

The weight of a day is ``2^(-age / half_life)``, age 0 for the newest day, inside a window of so many days; what is not finite is not
counted and the weights of the rest are normalised to 1. A window that reaches back beyond the first row holds fewer days.

Sums are made in one pass over time without ever taking a day out again: days lie in blocks as long as the window, and a window is the
end of one block (summed from its last day backwards) and the beginning of the next (summed forwards). So a value depends on its window
and on where the blocks begin alone; with ``origin``, the place of the first row on a calendar, it is the same to the last bit whatever
the first row is.
"""

from __future__ import annotations

import numpy as np

from qlib_ext.errors import ShapeError
from qlib_ext.jit import compiled

MAD_TO_STD = 1.4826


@compiled
def _sum(values, powers, window, origin, out):
    """out[t] = sum of powers[age] * values[t - age] over the window; `powers` [window + 1], of age 0 .. window."""
    days, stocks = values.shape
    begin, after, suffix = np.zeros(stocks), np.zeros(stocks), np.zeros((window, stocks))
    for t in range(days):
        place = (origin + t) % window
        if place == 0 and t > 0:  # the block before is complete: what is left of it after each of its days
            after[:] = 0.0
            for j in range(window - 1, -1, -1):
                suffix[j, :] = after
                row = t - window + j
                if row < 0:
                    suffix[:j, :] = after
                    break
                for n in range(stocks):
                    after[n] += powers[window - 1 - j] * values[row, n]
        if place == 0:
            begin[:] = 0.0
        for n in range(stocks):
            begin[n] = begin[n] * powers[1] + values[t, n]
            out[t, n] = begin[n] + powers[place + 1] * suffix[place, n]


def weighted_sum(values: np.ndarray, window: int, half_life: float = np.inf, origin: int = 0) -> np.ndarray:
    """Sum of ``2^(-age / half_life) x`` over the last `window` days, not normalised.

    Args:
        values: ``[t, n]`` or ``[t]``, finite (0 where unknown).
        window: days. half_life: days; inf weighs all days alike.
        origin: place of the first row on the calendar.

    Returns:
        float64, shaped as `values`.
    """
    values = np.asarray(values, np.float64)
    wide = np.ascontiguousarray(values.reshape(len(values), -1))
    out = np.empty_like(wide)
    _sum(wide, np.exp2(-np.arange(window + 1) / half_life), window, origin, out)
    return out.reshape(values.shape)


def known(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values with 0 for what is not finite, and a mask of 1.0 and 0.0."""
    mask = np.isfinite(values)
    return np.where(mask, values, 0.0), mask.astype(np.float64)


def enough(mask: np.ndarray, window: int, least: int, origin: int = 0) -> np.ndarray:
    """Whether at least so many days of the window are known, bool shaped as `mask`."""
    return weighted_sum(mask, window, np.inf, origin) >= least - 0.5


def weighted_mean(values: np.ndarray, window: int, half_life: float = np.inf, least: int = 1, origin: int = 0) -> np.ndarray:
    """Weighted mean of what is known in the window; NaN where that is fewer than `least` days. Shaped as `values`."""
    x, mask = known(values)
    total, weight = (weighted_sum(part, window, half_life, origin) for part in (x, mask))
    return np.where(enough(mask, window, least, origin), total / np.where(weight > 0, weight, 1.0), np.nan)


def weighted_std(values: np.ndarray, window: int, half_life: float = np.inf, least: int = 2, origin: int = 0) -> np.ndarray:
    """Root of the weighted mean squared distance from the weighted mean; NaN where fewer than `least` days are known."""
    x, mask = known(values)
    weight, first, second = (weighted_sum(part, window, half_life, origin) for part in (mask, x, x * x))
    weight = np.where(enough(mask, window, least, origin) & (weight > 0), weight, np.nan)
    return np.sqrt(np.maximum(second / weight - (first / weight) ** 2, 0.0))


def weighted_regression(left: np.ndarray, right: np.ndarray, window: int, half_life: float = np.inf, least: int = 3,
                        origin: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Slope of the weighted least squares line of each stock's `left` on `right`, and the weighted deviation of its residual.

    Args:
        left: ``[t, n]``. right: ``[t]``, the same for all stocks. A day counts where both are known.
        least: days that must be known.

    Returns:
        slope and residual standard deviation (its weighted mean square, not corrected for the two coefficients), ``[t, n]`` each;
        NaN where fewer days are known, or `right` is constant.
    """
    if right.shape != left.shape[:1]:
        raise ShapeError(f"left {left.shape} needs right [{len(left)}], got {right.shape}")
    both = np.where(np.isfinite(right)[:, None], left, np.nan)
    y, mask = known(both)
    x = known(right)[0][:, None] * mask
    weight, sx, sy, sxx, sxy, syy = (weighted_sum(part, window, half_life, origin) for part in (mask, x, y, x * x, x * y, y * y))
    weight = np.where(enough(mask, window, least, origin) & (weight > 0), weight, np.nan)
    mx, my = sx / weight, sy / weight
    vx, cov, vy = sxx / weight - mx * mx, sxy / weight - mx * my, syy / weight - my * my
    slope = cov / np.where(vx > 1e-12 * sxx / weight, vx, np.nan)
    return slope, np.sqrt(np.maximum(vy - slope * cov, 0.0))


# ---- across stocks --------------------------------------------------------------------------------------------------------------
@compiled
def _middle(values):
    """Median of a vector of finite values; NaN for an empty one. The vector is reordered."""
    size = len(values)
    if size == 0:
        return np.nan
    half = np.partition(values, size // 2)
    upper = half[size // 2]
    if size % 2:
        return upper
    lower = half[0]
    for i in range(1, size // 2):
        lower = half[i] if half[i] > lower else lower
    return (lower + upper) / 2


@compiled
def _winsorize(values, members, limit, out):
    days, stocks = values.shape
    held = np.empty(stocks)
    for t in range(days):
        count = 0
        for n in range(stocks):
            if members[t, n] and np.isfinite(values[t, n]):
                held[count] = values[t, n]
                count += 1
        center = _middle(held[:count])
        for i in range(count):
            held[i] = abs(held[i] - center)
        reach = _middle(held[:count]) * limit
        for n in range(stocks):
            value = values[t, n] if np.isfinite(values[t, n]) else np.nan
            if reach > 0:
                value = min(max(value, center - reach), center + reach) if value == value else value
            out[t, n] = value


def winsorize(values: np.ndarray, members: np.ndarray, limit: float = 3.0) -> np.ndarray:
    """Each day's values cut at the members' median +- `limit` x 1.4826 x their median absolute deviation.

    Args:
        values: ``[t, n]``; infinite counts as unknown.
        members: bool ``[t, n]``, whose values make the limits; everybody's are cut. A day without spread is left as it is.
    """
    values = np.ascontiguousarray(values, np.float64)
    out = np.empty_like(values)
    _winsorize(values, members, limit * MAD_TO_STD, out)
    return out


@compiled
def _standardize(values, members, cap, out):
    days, stocks = values.shape
    for t in range(days):
        weight, center, count, mean, most = 0.0, 0.0, 0, 0.0, 0.0
        for n in range(stocks):
            value = values[t, n]
            if members[t, n] and np.isfinite(value) and cap[t, n] > 0:
                weight += cap[t, n]
                center += cap[t, n] * value
                mean += value
                count += 1
                most = max(most, abs(value))
        center, mean, squares = center / max(weight, 1e-300), mean / max(count, 1), 0.0
        for n in range(stocks):
            value = values[t, n]
            if members[t, n] and np.isfinite(value) and cap[t, n] > 0:
                squares += (value - mean) ** 2
        deviation = np.sqrt(squares / max(count, 1))
        if count < 2 or not deviation > 1e-9 * most:
            deviation = np.nan
        for n in range(stocks):
            out[t, n] = (values[t, n] - center) / deviation if np.isfinite(values[t, n]) else np.nan


def standardize(values: np.ndarray, members: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """Each day's values shifted and scaled so that the members have cap-weighted mean 0 and equally weighted deviation 1 (ddof 0).

    Args:
        values: ``[t, n]``, NaN unknown. members: bool ``[t, n]``. cap: ``[t, n]``, weights of the members.

    Returns:
        float64 ``[t, n]`` for everybody; NaN where the value is, and on days on which the members have no spread, or fewer than
        two a value. Source: Barra CNE5.
    """
    values = np.ascontiguousarray(values, np.float64)
    out = np.empty_like(values)
    _standardize(values, members, np.asarray(cap, np.float64), out)
    return out


@compiled
def _normal_equations(columns, values, members, weight, squared, mixed):
    """Sums over the members of a day in the order of stocks, so that columns of stocks that are not there change nothing."""
    count, days, stocks = columns.shape
    for t in range(days):
        for n in range(stocks):
            complete = members[t, n] and weight[t, n] > 0 and np.isfinite(values[t, n])
            for a in range(count):
                complete = complete and np.isfinite(columns[a, t, n])
            if not complete:
                continue
            for a in range(count):
                left = weight[t, n] * columns[a, t, n]
                mixed[t, a] += left * values[t, n]
                for b in range(count):
                    squared[t, a, b] += left * columns[b, t, n]


def orthogonalize(values: np.ndarray, others: list[np.ndarray], members: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Residual of each day's weighted least squares regression on a constant and other exposures, fitted on the members.

    Args:
        values: ``[t, n]``. others: exposures ``[t, n]``. members: bool ``[t, n]``. weight: ``[t, n]``, regression weights.

    Returns:
        float64 ``[t, n]`` for everybody; NaN where a value or an exposure is. Exposures that explain nothing new on a day (constant,
        or combinations of the others) are left out of it.
    """
    columns = np.stack([np.ones(values.shape), *others])                        # [c, t, n]
    count, days, _ = columns.shape
    squared, mixed = np.zeros((days, count, count)), np.zeros((days, count))
    _normal_equations(columns, np.asarray(values, np.float64), members, np.asarray(weight, np.float64), squared, mixed)
    beta = (np.linalg.pinv(squared, rcond=1e-12, hermitian=True) @ mixed[:, :, None])[:, :, 0]
    left = values.copy()
    for column, slope in zip(columns, beta.T):
        left -= column * slope[:, None]
    return left


@compiled
def _fill(out, size, group, groups, members, cap):
    days, stocks = out.shape
    for t in range(days):
        hollow = False
        for n in range(stocks):
            hollow = hollow or (not np.isfinite(out[t, n]) and np.isfinite(size[t, n]))
        if not hollow:
            continue
        weight, x, y = np.zeros(groups + 1), np.zeros(groups + 1), np.zeros(groups + 1)      # the last: all
        for n in range(stocks):
            if members[t, n] and cap[t, n] > 0 and np.isfinite(out[t, n]) and np.isfinite(size[t, n]):
                w = np.sqrt(cap[t, n])
                for g in (group[t, n], groups):
                    weight[g] += w
                    x[g] += w * size[t, n]
                    y[g] += w * out[t, n]
        if not weight[groups] > 0:
            continue
        mean_x, mean_y = np.empty(groups + 1), np.empty(groups + 1)
        for g in range(groups + 1):
            of = g if weight[g] > 0 else groups
            mean_x[g], mean_y[g] = x[of] / weight[of], y[of] / weight[of]
        spread, common = 0.0, 0.0
        for n in range(stocks):
            if members[t, n] and cap[t, n] > 0 and np.isfinite(out[t, n]) and np.isfinite(size[t, n]):
                w, away = np.sqrt(cap[t, n]), size[t, n] - mean_x[group[t, n]]
                spread += w * away * away
                common += w * away * (out[t, n] - mean_y[group[t, n]])
        slope = common / spread if spread > 1e-12 * weight[groups] else 0.0
        for n in range(stocks):
            if not np.isfinite(out[t, n]) and np.isfinite(size[t, n]):
                out[t, n] = mean_y[group[t, n]] + slope * (size[t, n] - mean_x[group[t, n]])


def fill(value: np.ndarray, size: np.ndarray, group: np.ndarray, members: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """A style with its holes filled by the day's regression on industry and size.

    The slope on size is fitted within industries, weighted by the square root of cap, on the members that have the style; an industry
    without any has the mean of all. Days on which no member has it stay NaN, as do stocks without size.

    Args:
        value, size, cap: ``[t, n]``. group: ``[t, n]`` numbers 0.. of the industries. members: bool ``[t, n]``.
    """
    out = np.where(np.isfinite(value), value, np.nan)
    _fill(out, size, group, int(group.max(initial=0)) + 1, members, cap)
    return out
