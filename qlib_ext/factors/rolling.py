"""Statistics of trailing windows of one series, for several windows at once; compiled with numba, no Qlib, no files.

A value depends on nothing but what is in its window: sums run over the window from its newest day to its oldest, in float64, around
the window's last known value, so neither the days before the window nor the day on which a computation begins leave a trace (pandas
and Qlib carry one running sum along, whose rounding errors stay). A window of d days that ends on day t holds days t-d+1 .. t; what
is not finite is not counted.

Series are long arrays with at least `windows[-1]` places in front of the first day; `first` is the place of the first day asked for,
`days` their number. Axis letters: w window, t day asked for.
"""

from __future__ import annotations

import numpy as np

from qlib_ext.jit import compiled

FLAT = 2e-05
"""Qlib's Corr and Rsquare are NaN where a standard deviation is this small, or smaller."""


@compiled
def known(series):
    """A float32 series ``[s]`` split into what the window sums below need.

    Returns:
        value (float64, 0 for what is not finite), mask (1.0 or 0.0), last (the last finite value at or before each place), each
        ``[s]``; count, index, square, each ``[s+1]`` int64: running numbers, sums of places and of squared places of what is finite.
    """
    size, latest = len(series), 0.0
    value, mask, last = np.zeros(size), np.zeros(size), np.empty(size)
    count, index, square = np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64)
    for s in range(size):
        there = 0
        if np.isfinite(series[s]):
            there, latest = 1, np.float64(series[s])
            value[s], mask[s] = latest, 1.0
        last[s] = latest
        count[s + 1] = count[s] + there
        index[s + 1] = index[s] + there * s
        square[s + 1] = square[s] + there * s * s
    return value, mask, last, count, index, square


@compiled
def sums(value, first, days, windows, total):
    """Sums of `value` (0 where unknown) over each window. `total`: ``[w, t]``"""
    running, w = np.zeros(days), 0
    for lag in range(windows[-1]):
        part = value[first - lag:first - lag + days]
        for t in range(days):
            running[t] += part[t]
        if lag + 1 == windows[w]:
            total[w, :days] = running
            w += 1


@compiled
def moments(value, mask, last, first, days, windows, s1, s2):
    """Sums of ``d`` and ``d^2`` over each window, with ``d = value - last[t]``. `s1`, `s2`: ``[w, t]``"""
    one, two, w = np.zeros(days), np.zeros(days), 0
    center = last[first:first + days]
    for lag in range(windows[-1]):
        part, there = value[first - lag:first - lag + days], mask[first - lag:first - lag + days]
        for t in range(days):
            d = (part[t] - center[t]) * there[t]
            one[t] += d
            two[t] += d * d
        if lag + 1 == windows[w]:
            s1[w, :days] = one
            s2[w, :days] = two
            w += 1


@compiled
def trend_moments(value, mask, last, first, days, windows, s1, s2, sx):
    """`moments`, and the sums of ``lag * d``. `sx`: ``[w, t]``"""
    one, two, cross, w = np.zeros(days), np.zeros(days), np.zeros(days), 0
    center = last[first:first + days]
    for lag in range(windows[-1]):
        part, there = value[first - lag:first - lag + days], mask[first - lag:first - lag + days]
        for t in range(days):
            d = (part[t] - center[t]) * there[t]
            one[t] += d
            two[t] += d * d
            cross[t] += lag * d
        if lag + 1 == windows[w]:
            s1[w, :days] = one
            s2[w, :days] = two
            sx[w, :days] = cross
            w += 1


@compiled
def pair_moments(left, right, mask, last_left, last_right, first, days, windows, out):
    """Sums over what both series know: d, e, d^2, e^2, d e, around their last jointly known values. `out`: ``[5, w, t]``"""
    d1, e1, d2, e2, de, w = np.zeros(days), np.zeros(days), np.zeros(days), np.zeros(days), np.zeros(days), 0
    center_left, center_right = last_left[first:first + days], last_right[first:first + days]
    for lag in range(windows[-1]):
        a, b = left[first - lag:first - lag + days], right[first - lag:first - lag + days]
        there = mask[first - lag:first - lag + days]
        for t in range(days):
            d = (a[t] - center_left[t]) * there[t]
            e = (b[t] - center_right[t]) * there[t]
            d1[t] += d
            e1[t] += e
            d2[t] += d * d
            e2[t] += e * e
            de[t] += d * e
        if lag + 1 == windows[w]:
            out[0, w, :days] = d1
            out[1, w, :days] = e1
            out[2, w, :days] = d2
            out[3, w, :days] = e2
            out[4, w, :days] = de
            w += 1


@compiled
def extremes(series, first, days, start, windows, sign, extreme, age):
    """Largest known value (smallest with sign -1) and the age in days of the first place numpy's argmax would take.

    As in Qlib's IdxMax, a window with unknown values from `start` on (the first bar) has its oldest unknown one as its extreme; of
    equal ones the oldest counts.
    `extreme` ``[w, t]`` (-inf times sign where nothing is known), `age` ``[w, t]`` int32, 0 = the day itself.
    """
    best, top, place, w = np.full(days, -np.inf), np.full(days, -np.inf), np.zeros(days, np.int32), 0
    for lag in range(windows[-1]):
        part = series[first - lag:first - lag + days]
        for t in range(days):
            x = sign * np.float64(part[t])
            finite = np.isfinite(x)
            low = x if finite else -np.inf
            high = x if finite else (np.inf if first - lag + t >= start else -np.inf)
            best[t] = low if low > best[t] else best[t]
            place[t] = lag if high >= top[t] else place[t]
            top[t] = high if high >= top[t] else top[t]
        if lag + 1 == windows[w]:
            for t in range(days):
                extreme[w, t] = sign * best[t]
                age[w, t] = place[t]
            w += 1


@compiled
def places(series, first, days, windows, below, equal):
    """How many of a window's values lie below its last one, and how many equal it (itself included). int32 ``[w, t]``"""
    less, same, w = np.zeros(days, np.int32), np.zeros(days, np.int32), 0
    today = series[first:first + days]
    for lag in range(windows[-1]):
        part = series[first - lag:first - lag + days]
        for t in range(days):
            less[t] += np.int32((part[t] < today[t]) & (part[t] != -np.inf))
            same[t] += np.int32(part[t] == today[t])
        if lag + 1 == windows[w]:
            below[w, :days] = less
            equal[w, :days] = same
            w += 1


@compiled
def _position(ordered, size, x):
    """Where `x` stands, or would stand, among the first `size` ascending values."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        if ordered[middle] < x:
            low = middle + 1
        else:
            high = middle
    return low


@compiled
def quantiles(series, first, days, window, low, high, lower, upper):
    """Two quantiles of each window, interpolated as pandas does; NaN where nothing is known. `lower`, `upper`: ``[t]`` float64"""
    ordered, size = np.empty(window + 1, np.float32), 0
    for t in range(1 - window, days):
        x = series[first + t]
        if np.isfinite(x):
            place = _position(ordered, size, x)
            for k in range(size, place, -1):
                ordered[k] = ordered[k - 1]
            ordered[place] = x
            size += 1
        if t < 0:
            continue
        lower[t], upper[t] = _quantile(ordered, size, low), _quantile(ordered, size, high)
        x = series[first + t - window + 1]
        if np.isfinite(x):
            size -= 1
            for k in range(_position(ordered, size + 1, x), size):
                ordered[k] = ordered[k + 1]


@compiled
def _quantile(ordered, size, share):
    if size == 0:
        return np.nan
    place = share * (size - 1)
    below = int(place)
    if below == size - 1:
        return np.float64(ordered[below])
    return ordered[below] + (np.float64(ordered[below + 1]) - ordered[below]) * (place - below)


@compiled
def deviation(s1, s2, n):
    """Sample standard deviation (ddof 1) from sums around any centre; NaN for fewer than two values."""
    if n < 2:
        return np.nan
    return np.sqrt(max(s2 - s1 * s1 / n, 0.0) / (n - 1))
