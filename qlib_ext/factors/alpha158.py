"""Alpha158 and Alpha360 (Qlib 0.9.7) on arrays: which Qlib expressions these formulas are, and the formulas, compiled with numba.

`read_plan` takes expressions as `qlib.contrib.data.loader` writes them (any windows, any subset, any order) and says which of them it
does not know; `compute` fills columns of a table with the others. Values are those of Qlib's operators: what is elementwise runs in
float32, step by step as there; window statistics run in float64, without the rounding that Qlib's and pandas' running sums carry
along (see `factors.rolling`).

Axis letters: k field, n stock, s place on the padded calendar, t day asked for, w window, r row of the table, f column.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from qlib_ext.errors import ShapeError
from qlib_ext.factors.rolling import (FLAT, deviation, extremes, known, moments, pair_moments, places, quantiles, sums,
                                      trend_moments)
from qlib_ext.jit import compiled

BARS = ("open", "high", "low", "close", "volume")
KBAR = (
    ("KMID", "($close-$open)/$open"), ("KLEN", "($high-$low)/$open"), ("KMID2", "($close-$open)/($high-$low+1e-12)"),
    ("KUP", "($high-Greater($open,$close))/$open"), ("KUP2", "($high-Greater($open,$close))/($high-$low+1e-12)"),
    ("KLOW", "(Less($open,$close)-$low)/$open"), ("KLOW2", "(Less($open,$close)-$low)/($high-$low+1e-12)"),
    ("KSFT", "(2*$close-$high-$low)/$open"), ("KSFT2", "(2*$close-$high-$low)/($high-$low+1e-12)"),
)
_UP, _DOWN, _ALL = "Sum(Greater(@-Ref(@,1),0),#)", "Sum(Greater(Ref(@,1)-@,0),#)", "(Sum(Abs(@-Ref(@,1)),#)+1e-12)"
_MOVES = (("SUMP", f"{_UP}/{_ALL}"), ("SUMN", f"{_DOWN}/{_ALL}"), ("SUMD", f"({_UP}-{_DOWN})/{_ALL}"))
_JUMP = "Abs($close/Ref($close,1)-1)*$volume"
ROLLING = (
    ("MA", "Mean($close,#)/$close"), ("STD", "Std($close,#)/$close"), ("BETA", "Slope($close,#)/$close"),
    ("RSQR", "Rsquare($close,#)"), ("RESI", "Resi($close,#)/$close"), ("MAX", "Max($high,#)/$close"), ("MIN", "Min($low,#)/$close"),
    ("QTLU", "Quantile($close,#,0.8)/$close"), ("QTLD", "Quantile($close,#,0.2)/$close"), ("RANK", "Rank($close,#)"),
    ("RSV", "($close-Min($low,#))/(Max($high,#)-Min($low,#)+1e-12)"), ("IMAX", "IdxMax($high,#)/#"), ("IMIN", "IdxMin($low,#)/#"),
    ("IMXD", "(IdxMax($high,#)-IdxMin($low,#))/#"), ("CORR", "Corr($close,Log($volume+1),#)"),
    ("CORD", "Corr($close/Ref($close,1),Log($volume/Ref($volume,1)+1),#)"), ("CNTP", "Mean($close>Ref($close,1),#)"),
    ("CNTN", "Mean($close<Ref($close,1),#)"), ("CNTD", "Mean($close>Ref($close,1),#)-Mean($close<Ref($close,1),#)"),
    *((name, text.replace("@", "$close")) for name, text in _MOVES),
    ("VMA", "Mean($volume,#)/($volume+1e-12)"), ("VSTD", "Std($volume,#)/($volume+1e-12)"),
    ("WVMA", f"Std({_JUMP},#)/(Mean({_JUMP},#)+1e-12)"),
    *((f"V{name}", text.replace("@", "$volume")) for name, text in _MOVES),
)
(MA, STD, BETA, RSQR, RESI, MAX, MIN, QTLU, QTLD, RANK, RSV, IMAX, IMIN, IMXD, CORR, CORD, CNTP, CNTN, CNTD, SUMP, SUMN, SUMD, VMA,
 VSTD, WVMA, VSUMP, VSUMN, VSUMD) = range(28)
MAX_WINDOW = 250
BLOCK = 512
_SIDE = r"(?:\$(\w+)|Ref\(\$(\w+),(-?[1-9]\d*)\))"
_RATIO = re.compile(rf"{_SIDE}/(?:{_SIDE}|\({_SIDE}\+1e-12\))(-1)?")
_KBAR = {text: code for code, (_, text) in enumerate(KBAR)}


def _pattern(text: str) -> re.Pattern:
    """A formula as a pattern; the first # is the window, the others repeat it."""
    first, *others = re.escape(text).split(re.escape("#"))
    return re.compile(first + r"([1-9]\d*)" + r"\1".join(others))


_ROLLING = [_pattern(text) for _, text in ROLLING]


@dataclass
class Plan:
    """What `compute` has to do for a list of expressions.

    Args:
        fields: store fields that are read, without ``$``.
        windows: ascending window lengths.
        rolling: ``[28, w]`` column of each formula of `ROLLING`, -1 = not asked for.
        kbar: ``[9]`` column of each formula of `KBAR`.
        ratios: ``[m, 7]``: numerator's field and lag, denominator's, 1 where 1e-12 is added below, 1 where 1 is subtracted, column.
        unknown: positions of the expressions that are none of these formulas.
        copies: (column, column it repeats) of expressions that stand there twice.
    """

    fields: list[str]
    windows: np.ndarray
    rolling: np.ndarray
    kbar: np.ndarray
    ratios: np.ndarray
    unknown: list[int]
    copies: list[tuple[int, int]]

    @property
    def back(self) -> int:
        """Days before the first one asked for that are read."""
        longest = int(self.windows[-1]) if len(self.windows) else 0
        return max([longest, *self.ratios[:, [1, 3]].ravel().tolist()])

    @property
    def ahead(self) -> int:
        """Days after the last one asked for that are read (labels)."""
        return -min([0, *self.ratios[:, [1, 3]].ravel().tolist()])


def read_plan(expressions: Sequence[str]) -> Plan:
    """Which of the formulas each Qlib expression is; white space does not matter.

    Args:
        expressions: one per column.

    Returns:
        the plan; its `unknown` lists what has to be evaluated elsewhere. Windows above 250 days count as unknown.
    """
    fields, rolling, kbar, ratios, unknown, copies, seen = [], {}, np.full(len(KBAR), -1), [], [], [], {}
    for column, expression in enumerate(expressions):
        text = re.sub(r"\s", "", str(expression))
        if text in seen:
            copies.append((column, seen[text]))
            continue
        seen[text] = column
        match = _RATIO.fullmatch(text)
        code, window = next(((code, int(found[1])) for code, pattern in enumerate(_ROLLING) if (found := pattern.fullmatch(text))),
                            (None, None))
        if match:
            ratios.append([*_ratio(match, fields), column])
        elif text in _KBAR:
            kbar[_KBAR[text]] = column
        elif code is not None and window <= MAX_WINDOW:
            rolling[code, window] = column
        else:
            unknown.append(column)
    unknown += [column for column, original in copies if original in unknown]
    copies = [(column, original) for column, original in copies if original not in unknown]
    if rolling or (kbar >= 0).any():
        fields += [name for name in BARS if name not in fields]
    windows = np.array(sorted({window for _, window in rolling}), np.int64)
    grid = np.full((len(ROLLING), len(windows)), -1)
    for (code, window), column in rolling.items():
        grid[code, np.searchsorted(windows, window)] = column
    return Plan(fields, windows, grid, kbar, np.array(ratios, np.int64).reshape(-1, 7), sorted(unknown), copies)


def _ratio(match: re.Match, fields: list[str]) -> list[int]:
    """Numerator's field and lag, denominator's, whether 1e-12 is added, whether 1 is subtracted."""
    parts = match.groups()
    found = []
    for plain, named, lag in (parts[:3], parts[3:6] if any(parts[3:6]) else parts[6:9]):
        name = (plain or named).lower()
        if name not in fields:
            fields.append(name)
        found += [fields.index(name), int(lag or 0)]
    return [*found, int(any(parts[6:9])), int(parts[9] is not None)]


def compute(plan: Plan, bars: np.ndarray, start: np.ndarray, rows: np.ndarray, pad: int, out: np.ndarray) -> None:
    """Fill the plan's columns of a table for some stocks.

    Args:
        plan: of `read_plan`.
        bars: ``[k, n, s]`` float32, the plan's fields; NaN = not known, and before a stock's first bar and after its last.
        start: ``[n]`` place of each stock's first bar: windows that would reach beyond are shorter, as in Qlib.
        rows: ``[n, t]`` int32 row of the table for each stock and day asked for, -1 = not asked for.
        pad: place of the first day asked for; at least ``plan.back``, and ``s >= pad + t + plan.ahead``.
        out: ``[r, f]`` float32; only the plan's columns of the named rows are written. NaN = nothing known.

    Raises:
        ShapeError: arrays that do not fit each other.
    """
    k, n, s = bars.shape
    if k != len(plan.fields) or start.shape != (n,) or rows.shape[0] != n or pad < plan.back or s < pad + rows.shape[1] + plan.ahead:
        raise ShapeError(f"bars {bars.shape} for {len(plan.fields)} fields, start {start.shape}, rows {rows.shape}, pad {pad} (needs "
                         f"{plan.back}): give [k, n, s], [n], [n, t] with s >= pad + t + {plan.ahead}")
    if len(plan.ratios):
        _fill_ratios(bars, rows, pad, plan.ratios, out)
    if len(plan.windows) or (plan.kbar >= 0).any():
        _fill_bars(bars, np.array([plan.fields.index(name) for name in BARS]), *_logs(plan, bars), start, rows, pad, plan.windows,
                   plan.rolling, plan.kbar, out)
    for column, original in plan.copies:
        _copy(rows, original, column, out)


def _logs(plan: Plan, bars: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log(volume + 1) and log(volume / volume before + 1) by numpy's own float32 logarithm, as Qlib takes them. ``[n, s]`` each"""
    volume = bars[plan.fields.index("volume")]
    ratio = np.full_like(volume, np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        np.divide(volume[:, 1:], volume[:, :-1], out=ratio[:, 1:])
        return np.log(volume + np.float32(1)), np.log(ratio + np.float32(1))


@compiled
def _copy(rows, original, column, out):
    for n in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            if rows[n, t] >= 0:
                out[rows[n, t], column] = out[rows[n, t], original]


@compiled
def _fill_ratios(bars, rows, pad, ratios, out):
    """Numerator over denominator, each some days ago."""
    tiny, one = np.float32(1e-12), np.float32(1)
    for n in range(rows.shape[0]):
        for t in range(rows.shape[1]):
            row = rows[n, t]
            if row < 0:
                continue
            for m in range(len(ratios)):
                x = bars[ratios[m, 2], n, pad + t - ratios[m, 3]]
                x = bars[ratios[m, 0], n, pad + t - ratios[m, 1]] / (x + tiny if ratios[m, 4] == 1 else x)
                out[row, ratios[m, 6]] = x - one if ratios[m, 5] == 1 else x


@compiled
def _fill_bars(bars, fields, logs, log_ratios, start, rows, pad, windows, rolling, kbar, out):
    """Candle and window formulas; a block of days of one stock at a time, so that everything stays in the processor's cache."""
    columns = np.concatenate((kbar[kbar >= 0], rolling.ravel()[rolling.ravel() >= 0]))
    block = np.empty((out.shape[1], BLOCK + 16), np.float32)
    longest = windows[-1] if len(windows) else 0
    for n in range(rows.shape[0]):
        asked = np.flatnonzero(rows[n] >= 0)
        if len(asked) == 0:
            continue
        low, high = pad + asked[0] - longest, pad + asked[-1] + 1
        bar = bars[:, n, low:high]
        o, h, l, c, v = bar[fields[0]], bar[fields[1]], bar[fields[2]], bar[fields[3]], bar[fields[4]]
        series = _series(c, v, logs[n, low:high], log_ratios[n, low:high])
        day, last = asked[0], asked[-1] + 1
        while day < last:
            if rows[n, day] < 0:
                day += 1
                continue
            end = min(day + BLOCK, last)
            while rows[n, end - 1] < 0:
                end -= 1
            first, days = pad + day - low, end - day
            _kbar(o, h, l, c, first, days, kbar, block)
            if longest > 0:
                _close(c, series, first, days, windows, rolling, block)
                _range(h, l, c, first, days, start[n] - low, windows, rolling, block)
                _order(c, series, first, days, windows, rolling, block)
                _correlations(series, first, days, windows, rolling, block)
                _moves(series, first, days, start[n] - low, windows, rolling, block)
                _volume(v, series, first, days, windows, rolling, block)
            _scatter(block, columns, rows[n, day:end], out)
            day = end


@compiled
def _series(c, v, log, log_ratio):
    """What the window formulas need of close, volume and what is made of them, split by `known`."""
    size = len(c)
    change, jump = np.full(size, np.float32(np.nan)), np.full(size, np.float32(np.nan))
    moves = np.full((4, size), np.float32(np.nan))  # close up, close down, volume up, volume down
    ups, downs = np.zeros(size + 1, np.int64), np.zeros(size + 1, np.int64)
    zero = np.float32(0)
    for s in range(1, size):
        change[s] = c[s] / c[s - 1]
        jump[s] = abs(change[s] - np.float32(1)) * v[s]
        d, e = c[s] - c[s - 1], v[s] - v[s - 1]
        moves[0, s], moves[1, s] = (d if d > zero or np.isnan(d) else zero), (-d if d < zero or np.isnan(d) else zero)
        moves[2, s], moves[3, s] = (e if e > zero or np.isnan(e) else zero), (-e if e < zero or np.isnan(e) else zero)
        ups[s + 1] = ups[s] + (1 if c[s] > c[s - 1] else 0)
        downs[s + 1] = downs[s] + (1 if c[s] < c[s - 1] else 0)
    return (known(c), known(v), known(jump), known(log), known(change), known(log_ratio), known(moves[0]), known(moves[1]),
            known(moves[2]), known(moves[3]), ups, downs)


@compiled
def _scatter(block, columns, rows, out):
    """Columns of a block to the rows of the table, sixteen days at a time."""
    for first in range(0, len(rows), 16):
        for column in columns:
            for t in range(first, min(first + 16, len(rows))):
                if rows[t] >= 0:
                    out[rows[t], column] = block[column, t]


@compiled
def _kbar(o, h, l, c, first, days, kbar, block):
    tiny, two, nan = np.float32(1e-12), np.float32(2), np.float32(np.nan)
    for code in range(len(kbar)):
        if kbar[code] < 0:
            continue
        for t in range(days):
            s = first + t
            missing = np.isnan(o[s]) or np.isnan(c[s])
            if code == 0 or code == 2:
                x = c[s] - o[s]
            elif code == 1:
                x = h[s] - l[s]
            elif code == 3 or code == 4:
                x = h[s] - (nan if missing else max(o[s], c[s]))
            elif code == 5 or code == 6:
                x = (nan if missing else min(o[s], c[s])) - l[s]
            else:
                x = two * c[s] - h[s] - l[s]
            block[kbar[code], t] = x / (h[s] - l[s] + tiny if code == 2 or code == 4 or code == 6 or code == 8 else o[s])


@compiled
def _wanted(rolling, first, last):
    """Whether any formula of a range of codes is asked for."""
    return (rolling[first:last + 1] >= 0).any()


@compiled
def _put(block, column, t, value):
    if column >= 0:
        block[column, t] = value


@compiled
def _close(c, series, first, days, windows, rolling, block):
    """Mean, deviation and straight line of the closes."""
    if not _wanted(rolling, MA, RESI):
        return
    value, mask, last, count, index, square = series[0]
    shape = (len(windows), days)
    s1, s2, sx = np.empty(shape), np.empty(shape), np.empty(shape)
    trend_moments(value, mask, last, first, days, windows, s1, s2, sx)
    for w in range(len(windows)):
        for t in range(days):
            s = first + t
            n = count[s + 1] - count[s + 1 - windows[w]]
            if n == 0:
                for code in range(MA, RESI + 1):
                    _put(block, rolling[code, w], t, np.nan)
                continue
            close, mean, std = np.float64(c[s]), s1[w, t] / n, deviation(s1[w, t], s2[w, t], n)
            placed = index[s + 1] - index[s + 1 - windows[w]]
            x1 = np.float64(placed - s * n)  # places counted from the last day: 0, -1, ...
            x2 = np.float64(square[s + 1] - square[s + 1 - windows[w]] - 2 * s * placed + s * s * n)
            xx, xy, yy = n * x2 - x1 * x1, -n * sx[w, t] - x1 * s1[w, t], n * s2[w, t] - s1[w, t] * s1[w, t]
            slope = xy / xx
            _put(block, rolling[MA, w], t, (last[s] + mean) / close)
            _put(block, rolling[STD, w], t, std / close)
            _put(block, rolling[BETA, w], t, slope / close)
            _put(block, rolling[RSQR, w], t, np.nan if std <= FLAT else xy * xy / (xx * yy))
            _put(block, rolling[RESI, w], t, (slope * x1 / n - mean) / close)


@compiled
def _range(h, l, c, first, days, start, windows, rolling, block):
    """Highest and lowest prices, where the close stands between them, and how long ago they were."""
    if not (_wanted(rolling, MAX, MIN) or _wanted(rolling, RSV, IMXD)):
        return
    shape = (len(windows), days)
    top, bottom, top_age, bottom_age = np.empty(shape), np.empty(shape), np.empty(shape, np.int32), np.empty(shape, np.int32)
    extremes(h, first, days, start, windows, 1.0, top, top_age)
    extremes(l, first, days, start, windows, -1.0, bottom, bottom_age)
    for w in range(len(windows)):
        for t in range(days):
            close, length = np.float64(c[first + t]), min(windows[w], first + t - start + 1)
            high, low = top[w, t], bottom[w, t]
            high, low = (high if np.isfinite(high) else np.nan), (low if np.isfinite(low) else np.nan)
            up = np.nan if np.isnan(high) else np.float64(length - top_age[w, t])
            down = np.nan if np.isnan(low) else np.float64(length - bottom_age[w, t])
            _put(block, rolling[MAX, w], t, high / close)
            _put(block, rolling[MIN, w], t, low / close)
            _put(block, rolling[RSV, w], t, (close - low) / (high - low + 1e-12))
            _put(block, rolling[IMAX, w], t, up / windows[w])
            _put(block, rolling[IMIN, w], t, down / windows[w])
            _put(block, rolling[IMXD, w], t, (up - down) / windows[w])


@compiled
def _order(c, series, first, days, windows, rolling, block):
    """Quantiles of the closes, and the rank of the last one."""
    count = series[0][3]
    if _wanted(rolling, QTLU, QTLD):
        lower, upper = np.empty(days), np.empty(days)
        for w in range(len(windows)):
            if rolling[QTLU, w] < 0 and rolling[QTLD, w] < 0:
                continue
            quantiles(c, first, days, windows[w], 0.2, 0.8, lower, upper)
            for t in range(days):
                _put(block, rolling[QTLU, w], t, upper[t] / np.float64(c[first + t]))
                _put(block, rolling[QTLD, w], t, lower[t] / np.float64(c[first + t]))
    if _wanted(rolling, RANK, RANK):
        below, equal = np.empty((len(windows), days), np.int32), np.empty((len(windows), days), np.int32)
        places(c, first, days, windows, below, equal)
        for w in range(len(windows)):
            for t in range(days):
                s = first + t
                n = count[s + 1] - count[s + 1 - windows[w]]
                rank = (below[w, t] + 0.5 * (equal[w, t] + 1)) / n
                _put(block, rolling[RANK, w], t, rank if np.isfinite(c[s]) else np.nan)


@compiled
def _averages(split, first, days, windows):
    """Mean and standard deviation of each window of a series split by `known`; NaN where it knows too few values. ``[w, t]`` each"""
    value, mask, last, count = split[0], split[1], split[2], split[3]
    mean, std = np.empty((len(windows), days)), np.empty((len(windows), days))
    moments(value, mask, last, first, days, windows, mean, std)  # the sums, which their statistics replace
    for w in range(len(windows)):
        for t in range(days):
            s = first + t
            n, s1, s2 = count[s + 1] - count[s + 1 - windows[w]], mean[w, t], std[w, t]
            mean[w, t] = last[s] + s1 / n if n > 0 else np.nan
            std[w, t] = deviation(s1, s2, n)
    return mean, std


@compiled
def _correlations(series, first, days, windows, rolling, block):
    """Of close with volume, and of their changes."""
    if _wanted(rolling, CORR, CORR):
        _correlation(series[0], series[3], first, days, windows, rolling[CORR], block)
    if _wanted(rolling, CORD, CORD):
        _correlation(series[4], series[5], first, days, windows, rolling[CORD], block)


@compiled
def _correlation(left, right, first, days, windows, columns, block):
    """Correlation over what both know; NaN where either deviates by no more than `FLAT`."""
    x, x_mask, y, y_mask = left[0], left[1], right[0], right[1]
    x_std, y_std = _averages(left, first, days, windows)[1], _averages(right, first, days, windows)[1]
    both = x_mask * y_mask
    count = np.zeros(len(x) + 1, np.int64)
    joint = np.empty((2, len(x)))
    joint_x = joint_y = 0.0
    for s in range(len(x)):
        if both[s] > 0:
            joint_x, joint_y = x[s], y[s]
        joint[0, s], joint[1, s] = joint_x, joint_y
        count[s + 1] = count[s] + np.int64(both[s])
    sums_ = np.empty((5, len(windows), days))
    pair_moments(x, y, both, joint[0], joint[1], first, days, windows, sums_)
    for w in range(len(windows)):
        for t in range(days):
            end, begin = first + t + 1, first + t + 1 - windows[w]
            n = count[end] - count[begin]
            d1, e1, d2, e2, de = sums_[0, w, t], sums_[1, w, t], sums_[2, w, t], sums_[3, w, t], sums_[4, w, t]
            value = np.nan
            if n > 1:
                spread = np.sqrt((d2 - d1 * d1 / n) * (e2 - e1 * e1 / n))
                value = (de - d1 * e1 / n) / spread if spread > 0 else np.nan
            if x_std[w, t] <= FLAT or y_std[w, t] <= FLAT:
                value = np.nan
            _put(block, columns[w], t, value)


@compiled
def _moves(series, first, days, start, windows, rolling, block):
    """Counts of rises and falls, and their sums, of closes and volumes."""
    ups, downs = series[10], series[11]
    if _wanted(rolling, CNTP, CNTD):
        for w in range(len(windows)):
            for t in range(days):
                end, begin = first + t + 1, first + t + 1 - windows[w]
                length = min(windows[w], first + t - start + 1)
                rise, fall = (ups[end] - ups[begin]) / length, (downs[end] - downs[begin]) / length
                _put(block, rolling[CNTP, w], t, rise)
                _put(block, rolling[CNTN, w], t, fall)
                _put(block, rolling[CNTD, w], t, rise - fall)
    if _wanted(rolling, SUMP, SUMD):
        _shares(series[6], series[7], first, days, windows, rolling[SUMP:SUMD + 1], block)
    if _wanted(rolling, VSUMP, VSUMD):
        _shares(series[8], series[9], first, days, windows, rolling[VSUMP:VSUMD + 1], block)


@compiled
def _shares(up, down, first, days, windows, columns, block):
    """Rises, falls and their difference, as shares of all moves."""
    rises, falls = np.empty((len(windows), days)), np.empty((len(windows), days))
    sums(up[0], first, days, windows, rises)
    sums(down[0], first, days, windows, falls)
    count = up[3]
    for w in range(len(windows)):
        for t in range(days):
            end = first + t + 1
            nothing = count[end] == count[end - windows[w]]
            moved = np.nan if nothing else rises[w, t] + falls[w, t] + 1e-12
            _put(block, columns[0, w], t, rises[w, t] / moved)
            _put(block, columns[1, w], t, falls[w, t] / moved)
            _put(block, columns[2, w], t, (rises[w, t] - falls[w, t]) / moved)


@compiled
def _volume(v, series, first, days, windows, rolling, block):
    """Mean and deviation of the volume, and of price changes weighted by it."""
    if _wanted(rolling, VMA, VSTD):
        mean, std = _averages(series[1], first, days, windows)
        for w in range(len(windows)):
            for t in range(days):
                today = np.float64(v[first + t] + np.float32(1e-12))
                _put(block, rolling[VMA, w], t, mean[w, t] / today)
                _put(block, rolling[VSTD, w], t, std[w, t] / today)
    if _wanted(rolling, WVMA, WVMA):
        mean, std = _averages(series[2], first, days, windows)
        for w in range(len(windows)):
            for t in range(days):
                _put(block, rolling[WVMA, w], t, std[w, t] / (mean[w, t] + 1e-12))
