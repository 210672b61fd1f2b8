"""Compiled loops over the columns of long tables, in place, and statistics of columns; numpy and numba only.

A table `values [r, c]` is float32 or float64, row-major and large, so that nothing here copies more than `WIDTH` of its columns.
`rows [n]` (int32) are the rows a loop reads or writes: those of a day, say. NaN is "unknown". Statistics are made and kept in
float64 except medians, which are numpy's: the middle value, or the mean of the two in the middle, in the dtype of the table.
"""

from __future__ import annotations

from typing import List, Sequence, Tuple

import numpy as np

from qlib_ext.jit import compiled

WIDTH = 16
"""Columns to treat at a time where columns are copied: a cache line of float32."""
CHUNK = 256
"""Rows whose cache lines stay at hand while their columns are read one after the other."""
SAMPLE = 8192
PLACES = np.random.default_rng(0).random(SAMPLE)
BLOCK = 1 << 14
"""Rows a thread takes at a time."""


@compiled
def gather(values, rows, first, out):
    """Copy what is known of `values[rows, first:first + k]` to the front of the rows of `out [k, n]`; the counts `[k]`."""
    count = np.zeros(out.shape[0], np.int64)
    for start in range(0, len(rows), CHUNK):
        for column in range(out.shape[0]):
            place = count[column]
            for row in rows[start:start + CHUNK]:
                value = values[row, first + column]
                out[column, place] = value
                place += value == value
            count[column] = place
    return count


@compiled
def scale(values, rows, center, divisor, limit):
    """`(x - center [c]) / divisor [c]`, then clipped to `[-limit, limit]`."""
    limit = values.dtype.type(limit)
    for row in rows:
        for column in range(values.shape[1]):
            value = (values[row, column] - center[column]) / divisor[column]
            value = limit if value > limit else value
            values[row, column] = -limit if value < -limit else value


@compiled
def replace(values, rows, infinite, by):
    """Write `by [c]` where a value is NaN, or with `infinite` where it is infinite."""
    for row in rows:
        for column in range(values.shape[1]):
            value = values[row, column]
            if np.isinf(value) if infinite else value != value:
                values[row, column] = by[column]


@compiled
def totals(values, rows, most):
    """Count, sum, least, greatest `[4, c]` of the values from `-most` to `most` (inf: all known); of nothing 0, 0, inf, -inf."""
    out = np.zeros((4, values.shape[1]))
    out[2], out[3] = np.inf, -np.inf
    for row in rows:
        for column in range(out.shape[1]):
            value = np.float64(values[row, column])
            value = value if abs(value) <= most else np.nan
            out[0, column] += 1.0 if value == value else 0.0
            out[1, column] += value if value == value else 0.0
            out[2, column] = value if value < out[2, column] else out[2, column]
            out[3, column] = value if value > out[3, column] else out[3, column]
    return out


@compiled
def squares(values, rows, most, mean):
    """Sum `[c]` of the squared distances from `mean [c]` of the values from `-most` to `most`."""
    out = np.zeros(len(mean))
    for row in rows:
        for column in range(len(mean)):
            value = np.float64(values[row, column])
            rest = value - mean[column]
            out[column] += rest * rest if abs(value) <= most else 0.0
    return out


@compiled
def between(values, low, high, out):
    """Copy the values from `low` to `high` to the front of `out`; how many are below, how many were copied."""
    below, inside = 0, 0
    for value in values:
        out[inside] = value
        below += value < low
        inside += low <= value <= high
    return below, inside


@compiled
def clip(values, rows, low, high):
    """Values below `low [c]` become `low`, those above `high [c]` become `high`; a NaN border is none."""
    for row in rows:
        for column in range(values.shape[1]):
            value = values[row, column]
            value = low[column] if value < low[column] else value
            values[row, column] = high[column] if value > high[column] else value


@compiled
def rank(values, rows, first, inside, block, order):
    """`(rank / N - 0.5) * 3.46` among the N members with a value; equal ones share their mean rank, NaN stays NaN.

    `block [k, n]` holds `values[rows, first:first + k]` with inf for NaN, `order` its `argsort`, `inside [n]` the members.
    """
    for column in range(len(block)):
        members = 0
        for place in range(len(rows)):
            value = values[rows[place], first + column]
            members += inside[place] and value == value
        below, start = 0, 0
        while start < len(rows):
            end, equal, value = start, 0, block[column, order[column, start]]
            while end < len(rows) and block[column, order[column, end]] == value:
                place = order[column, end]
                cell = values[rows[place], first + column]
                equal += inside[place] and cell == cell
                end += 1
            share = (below + (equal + 1) / 2) / members if members else np.nan
            for place in order[column, start:end]:
                cell = values[rows[place], first + column]
                values[rows[place], first + column] = (share - 0.5) * 3.46 if cell == cell else cell
            below += equal
            start = end


@compiled
def group_sums(values, rows, x, group, weight, groups):
    """Sums over rows with a finite value and a weight, `[groups, c, 3 + k]`: weight, 1, weight * value, weight * `x [n, k]`."""
    out = np.zeros((groups, values.shape[1], 3 + x.shape[1]))
    for place in range(len(rows)):
        if weight[place] > 0:
            for column in range(values.shape[1]):
                value = np.float64(values[rows[place], column])
                if abs(value) < np.inf:
                    cell = out[group[place], column]
                    cell[0] += weight[place]
                    cell[1] += 1
                    cell[2] += weight[place] * value
                    for k in range(x.shape[1]):
                        cell[3 + k] += weight[place] * x[place, k]
    return out


@compiled
def cross_products(values, rows, x, group, weight, means):
    """Sums over the same rows, `[c, k, 1 + k]`: `weight * x * (value, x)`, each less its `means [groups, c, 1 + k]`."""
    size = x.shape[1]
    out = np.zeros((values.shape[1], size, 1 + size))
    rest = np.empty(1 + size)
    for place in range(len(rows)):
        if weight[place] > 0:
            for column in range(values.shape[1]):
                value = np.float64(values[rows[place], column])
                if abs(value) < np.inf:
                    mean = means[group[place], column]
                    rest[0] = value - mean[0]
                    for k in range(size):
                        rest[1 + k] = x[place, k] - mean[1 + k]
                    for k in range(size):
                        for other in range(1 + size):
                            out[column, k, other] += weight[place] * rest[1 + k] * rest[other]
    return out


@compiled
def residuals(values, rows, x, group, means, beta):
    """`value - mean - (x - mean of x) beta [c, k]` in place; NaN where the value is infinite."""
    for place in range(len(rows)):
        for column in range(values.shape[1]):
            mean = means[group[place], column]
            value = values[rows[place], column] - mean[0]
            for k in range(x.shape[1]):
                value -= (x[place, k] - mean[1 + k]) * beta[column, k]
            values[rows[place], column] = value if abs(value) < np.inf else np.nan


def median(values: np.ndarray) -> np.floating:
    """`np.median` of `values [n]` without NaN, to the bit, in one pass where n is large; NaN where n is 0.

    A sample says between which two values the median lies, most surely; only the values between them are ordered. If it does not
    lie there after all, all are.
    """
    size = len(values)
    if not size:
        return values.dtype.type(np.nan)
    below, inside, middle = 0, size, (size - 1) // 2
    if size > SAMPLE:
        count = min(SAMPLE, size // 8)
        sample = values[(PLACES[:count] * size).astype(np.int64)]
        sample.sort()
        margin = 2 * int(count**0.5)  # four standard deviations of the rank of the median in the sample
        out = np.empty_like(values)
        below, inside = between(values, sample[count // 2 - margin], sample[count // 2 + margin], out)
        if below <= middle and size // 2 < below + inside:
            values = out[:inside]
        else:
            below = 0
    ordered = np.partition(values, sorted({middle - below, size // 2 - below}))
    with np.errstate(over="ignore", invalid="ignore"):
        return (ordered[middle - below] + ordered[size // 2 - below]) / 2


def median_and_deviation(values: np.ndarray) -> Tuple[np.floating, np.floating]:
    """Median of `values [n]` without NaN, and median of the absolute distances from it; overwrites `values`."""
    center = median(values)
    with np.errstate(over="ignore", invalid="ignore"):
        np.abs(np.subtract(values, center, out=values), out=values)
    return center, median(values if np.isfinite(center) else values[~np.isnan(values)])


def joined(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The `totals` of rows from those of their parts."""
    table = np.stack(parts)
    return np.stack([*table[:, :2].sum(axis=0), table[:, 2].min(axis=0), table[:, 3].max(axis=0)])


def mean_of(total: np.ndarray) -> np.ndarray:
    """Means `[c]` from `totals`; NaN where nothing is known."""
    with np.errstate(invalid="ignore"):
        return total[1] / total[0]


def std_of(total: np.ndarray, squared: np.ndarray, ddof: int) -> np.ndarray:
    """Standard deviations `[c]` from `totals` and `squares`: exactly 0 where all are equal, NaN where `ddof` leaves nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        std = np.sqrt(squared / (total[0] - ddof))
    std[(total[2] == total[3]) & np.isfinite(std)] = 0
    return std


def moments(values: np.ndarray, rows: np.ndarray, most: float = np.inf) -> Tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (ddof 1) `[c]` of the values from `-most` to `most` in some rows, as `mean_of` and `std_of`."""
    total = totals(values, rows, most)
    mean = mean_of(total)
    return mean, std_of(total, squares(values, rows, most, mean), 1)


def ordered(values: np.ndarray, rows: np.ndarray, first: int, last: int) -> Tuple[np.ndarray, np.ndarray]:
    """What is known of `values[rows, first:last]`, ascending along the rows of `[k, n]`, inf or NaN behind; the counts `[k]`."""
    known = np.full((last - first, max(len(rows), 1)), np.inf, values.dtype)
    count = gather(values, rows, first, known)
    known.sort(axis=1)
    return known, count


def middle(known: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Medians `[k]` of the first `count [k]` values of rows that ascend; NaN where there are none."""
    line = np.arange(len(known))
    with np.errstate(over="ignore", invalid="ignore"):
        median = (known[line, (count - 1) // 2] + known[line, count // 2]) / 2
    return np.where(count > 0, median, np.nan).astype(known.dtype)


def robust_moments(values: np.ndarray, rows: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Median and median absolute deviation `[c]` of what is known in some rows, in the dtype of the table; inf counts."""
    result = np.empty((2, values.shape[1]), values.dtype)
    for first, last in column_blocks(values.shape[1], len(rows)):
        known, count = ordered(values, rows, first, last)
        result[0, first:last] = center = middle(known, count)
        with np.errstate(invalid="ignore"):
            known -= center[:, None]
        np.abs(known, out=known)
        known.sort(axis=1)
        result[1, first:last] = middle(known, count)
    return result[0], result[1]


def column_blocks(width: int, rows: int, cells: int = 1 << 16) -> List[Tuple[int, int]]:
    """Borders of blocks of `WIDTH` columns, or of more where `rows` of them are no more than `cells`."""
    step = max(WIDTH, cells // max(rows, 1))
    return [(first, min(first + step, width)) for first in range(0, width, step)]


def row_blocks(rows: np.ndarray, size: int = BLOCK) -> List[np.ndarray]:
    """`rows` in pieces of at most `size`."""
    return [rows[first:first + size] for first in range(0, len(rows), size)]


def days_of(day: np.ndarray) -> List[np.ndarray]:
    """Rows of each day that has rows; `day [r]` holds integers from 0 on."""
    ordered = bool((day[1:] >= day[:-1]).all())
    order = np.arange(len(day), dtype=np.int32) if ordered else np.argsort(day, kind="stable").astype(np.int32)
    ends = np.cumsum(np.bincount(day))
    return [rows for rows in np.split(order, ends[:-1]) if len(rows)]
