"""The factors of bars: one compiled pass over the rows of a day makes all of them.

Expressions of a data frame library need a group for every sum and a sort for the push-up, which costs four to five scans of the bars; this
costs little more than one.
"""

from __future__ import annotations

import numpy as np
import polars as pl

from qlib_ext.errors import DataError, ShapeError
from qlib_ext.factors.intraday_options import BAR_FACTORS, NEEDS, PROXIES, IntradayOptions, named
from qlib_ext.factors.session import LAST_CONTINUOUS, OPENING, SESSION
from qlib_ext.jit import compiled

_COLUMNS = ("open", "close", "volume", "amount")
_SIZED = ("hf_outflow_share", "hf_push_up", "hf_outflow_share_proxy", "hf_push_up_proxy")
"""Factors that read amounts."""
_PLACE = {name: number for number, name in enumerate(("hf_skew", "hf_down_share", "hf_improved_reversal", "hf_tail_share", *_SIZED))}
NO_SPREAD = 1e-20
"""Variance of returns, over their mean square, up to which they count as all the same."""


def bar_values(bars: pl.LazyFrame, options: IntradayOptions | None = None, names=None) -> pl.LazyFrame:
    """The factors of bars, one row for each (date, instrument), with ``bars_traded``, the number of bars that traded.

        hf_skew              sqrt(M) sum (r - mean r)^3 / (sum (r - mean r)^2)^1.5                 M returns
        hf_down_share        sum r^2 [r < 0] / sum r^2
        hf_improved_reversal ln(close at 15:00 / close at 10:00): its sum over days is the reversal without nights and first half hours
        hf_tail_share        volume of the last half hour / volume of the day
        hf_outflow_share     (amount / trades in falling bars) / (amount / trades in all bars)
        hf_push_up           product of (1 + bar return) over the 30 % of traded bars with the largest amount per trade, less 1; of equals
                             the earlier ones

    r are log returns within the day. The opening auction (minute 0) is in the day's volume, and nowhere else. A bar without a price is
    passed over; one that nobody traded in, with the last close as its prices, has the return 0. Null: too few bars traded
    (``min_traded``), a denominator of 0, no bar that ends at 10:00 or 15:00, an unknown volume, amount or number of trades where it is
    needed.

    Args:
        bars: columns date, instrument, minute, open, close, volume, amount and, for two of the factors, n_trades; rows of a stock's day
            stand together, by minute.
        names: of `intraday.BAR_FACTORS`; None: the factors that the columns allow.

    Raises:
        ConfigError: an unknown factor. DataError: a column lacks that a factor named needs. When collected: rows out of order, a minute
        twice, or minutes that are no ends of bars.
    """
    options = options or IntradayOptions()
    held = bars.collect_schema()
    lacks = [name for name in ("date", "instrument", "minute", *_COLUMNS) if name not in held]
    if lacks:
        raise DataError(f"bars lack the columns {lacks}: give the form of qlib_ext.store.intraday")
    counted = "n_trades" in held
    if names is None:
        names = [name for name in named(None, BAR_FACTORS, options) if counted or "n_trades" not in NEEDS[name]]
    names = named(names, BAR_FACTORS, options)
    blind = [name for name in names if "n_trades" in {**NEEDS, **PROXIES}[name] and not counted]
    if blind:
        raise DataError(f"{blind} need the number of trades of each bar, column n_trades, which the bars lack: leave them out, or use "
                        f"{[name + '_proxy' for name in blind]} with proxy: true, which are other factors")
    needs = {need for name in names for need in {**NEEDS, **PROXIES}[name]}
    sized = ["amount"] if set(_SIZED) & set(names) else []
    columns = ["date", "instrument", "minute", "open", "close", "volume", *sized, *(["n_trades"] if "n_trades" in needs else [])]
    schema = {"date": held["date"], "instrument": held["instrument"], **dict.fromkeys(names, pl.Float64), "bars_traded": pl.Int16}
    return bars.select(columns).map_batches(lambda frame: _values(frame, options, names), schema=schema, predicate_pushdown=False,
                                            projection_pushdown=False, slice_pushdown=False)


def _values(frame: pl.DataFrame, options, names: list[str]) -> pl.DataFrame:
    frame = frame.rechunk()
    starts = stock_days(frame, options.bar_minutes)
    minute, keys = frame["minute"].to_numpy(), frame.select("date", "instrument")[starts[:-1]]
    numbers = [frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy() if name in frame.columns else np.empty(0)
               for name in (*_COLUMNS, "n_trades")]
    found, traded = np.empty((len(starts) - 1, len(_PLACE))), np.zeros(len(starts) - 1, np.int16)
    tail = np.array([SESSION - options.tail_minutes, LAST_CONTINUOUS if options.closing_auction == "outside" else SESSION])
    wanted = np.array([name in names for name in _PLACE])
    r = np.empty(frame.height)
    _growth(starts, minute, *numbers[:2], options.returns == "bar", r)
    np.log(r, out=r)  # by many at once, which the compiled loops cannot
    _measure(starts, minute, r, *numbers, options.demean, options.downside == "squares", options.open_minutes, tail, options.push_share,
             options.min_traded * SESSION / options.bar_minutes, wanted, found, traded)
    return keys.with_columns(*(pl.Series(name, found[:, _PLACE[name]], nan_to_null=True) for name in names),
                             pl.Series("bars_traded", traded))


def stock_days(frame: pl.DataFrame, bar: int) -> np.ndarray:
    """First row of every stock's day ``[g]`` of bars of `bar` minutes, and the number of rows.

    Raises:
        ShapeError: an unknown minute. DataError: a minute twice, out of order or no end of a bar; a stock's day in two places.
    """
    if frame["minute"].null_count():
        raise ShapeError("bars: column minute holds unknown values")
    if frame.height == 0:
        return np.zeros(1, np.int64)
    day, code = frame["date"].to_physical().to_numpy(), frame["instrument"]
    code = (code if code.dtype == pl.Categorical else code.cast(pl.Categorical)).to_physical().to_numpy()
    starts = np.r_[0, np.flatnonzero((day[1:] != day[:-1]) | (code[1:] != code[:-1])) + 1, frame.height]
    _check_minutes(frame, starts, bar)
    keys = day[starts[:-1]].astype(np.int64) << 32 | code[starts[:-1]]
    ordered = np.sort(keys)
    again = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(again):
        row = frame.row(int(starts[np.flatnonzero(keys == again[0])[1]]), named=True)
        raise DataError(f"bars of {row['instrument']} on {row['date']} do not stand together: sort them by instrument and minute")
    return starts


def _check_minutes(frame: pl.DataFrame, starts: np.ndarray, bar: int) -> None:
    minute = frame["minute"].to_numpy()
    wrong = _first_wrong(starts, minute, bar)
    if wrong < 0:
        return
    row = frame.row(wrong, named=True)
    of = f"bars of {row['instrument']} on {row['date']}: minute {row['minute']}"
    if wrong not in starts and minute[wrong] <= minute[wrong - 1]:
        what = "stands twice" if minute[wrong] == minute[wrong - 1] else "is out of order"
        raise DataError(f"{of} {what}: sort them by instrument and minute, each once")
    raise DataError(f"{of} is no end of a bar of {bar} minutes: say bar_minutes, or ingest the bars again")


# ---- compiled -------------------------------------------------------------------------------------------------------------------
@compiled
def _first_wrong(starts, minute, bar):
    """The first row whose minute does not come after the one before, or is no end of a bar; -1: none."""
    for g in range(len(starts) - 1):
        last = -1
        for i in range(starts[g], starts[g + 1]):
            if minute[i] <= last or minute[i] < OPENING or minute[i] > SESSION or minute[i] % bar != 0:
                return i
            last = minute[i]
    return -1


@compiled
def _growth(starts, minute, opened, close, own_open, growth):
    """Close over the price before (the first bar's own open), NaN in the auction and in bars without a price."""
    for g in range(len(starts) - 1):
        last = np.nan
        for i in range(starts[g], starts[g + 1]):
            growth[i] = np.nan
            first = opened[i] if own_open or not last > 0 else last
            if minute[i] != OPENING and close[i] > 0 and first > 0:
                last = close[i]
                growth[i] = last / first


@compiled
def _measure(starts, minute, r, opened, close, volume, amount, trades, demean, squares, open_end, tail, push_share, least_traded, wanted,
             found, traded):
    """All values of all stocks' days, NaN where unknown, from log returns `r`; see `bar_values`."""
    size, gain, work = np.empty(SESSION + 1), np.empty(SESSION + 1), np.empty(SESSION + 1)
    found[:] = np.nan
    for g in range(len(starts) - 1):
        s, e = starts[g], starts[g + 1]
        bars = 0
        for i in range(s, e):
            bars += minute[i] != OPENING and volume[i] > 0
        traded[g] = bars
        if bars < least_traded:
            continue
        x, o, c, v, a, n = r[s:e], opened[s:e], close[s:e], volume[s:e], amount[s:e], trades[s:e]
        found[g, 0], found[g, 1] = _shape(x, demean, squares)
        found[g, 2] = _late_return(minute[s:e], x, c, open_end)
        found[g, 3] = _tail_share(minute[s:e], v, tail)
        if wanted[4] or wanted[6]:
            found[g, 4], found[g, 6] = _outflow(x, v, a, n)
        if wanted[5]:
            found[g, 5] = _push_up(x, o, c, v, a, n, push_share, size, gain, work)
        if wanted[7]:
            found[g, 7] = _push_up(x, o, c, v, a, n[:0], push_share, size, gain, work)


@compiled
def _late_return(minute, r, close, open_end):
    """Log return from the end of the period after the open to 15:00; both bars must have a price."""
    last = len(minute) - 1
    if minute[last] != SESSION or not r[last] == r[last]:
        return np.nan
    for j in range(last):
        if minute[j] == open_end and r[j] == r[j]:
            return np.log(close[last] / close[j])
        if minute[j] >= open_end:
            break
    return np.nan


@compiled
def _shape(r, demean, squares):
    """Skewness, and the downside's share."""
    n = falls = 0
    total = down = mean = fall = second = third = 0.0
    for x in r:
        if x == x:
            n += 1
            mean += x
            total += x * x
            under = min(x, 0.0)  # without a branch: half of the bars fall
            falls += x < 0
            fall += under
            down += under * under
    if not total > 0:
        return np.nan, np.nan
    mean /= n
    centre = mean if demean else 0.0
    for x in r:
        if x == x:
            rest = x - centre
            second += rest * rest
            third += rest * rest * rest
    skew = np.sqrt(n) * third / second**1.5 if second > NO_SPREAD * total else np.nan
    if squares:
        return skew, down / total
    spread = total / n - mean * mean
    if falls == 0 or not spread > NO_SPREAD * total:
        return skew, np.nan
    return skew, np.sqrt(max(down / falls - (fall / falls) ** 2, 0.0) / spread)


@compiled
def _tail_share(minute, volume, tail):
    """Share of the day's volume after the first of the minutes `tail`; nothing after the second one counts. The day must be whole: its
    last bar is there."""
    late = day = 0.0
    if minute[-1] != SESSION:
        return np.nan
    for j in range(len(minute)):
        if minute[j] <= tail[1]:
            day += volume[j]
            if minute[j] > tail[0]:
                late += volume[j]
    return late / day if day > 0 else np.nan


@compiled
def _outflow(r, volume, amount, trades):
    """Amount per trade in falling bars over that in all, and the share of amount in falling bars."""
    money = fall_money = count = fall_count = 0.0
    for j in range(len(r)):
        if r[j] == r[j]:
            number = trades[j] if len(trades) and volume[j] != 0 else 0.0
            if volume[j] != volume[j]:
                number = np.nan
            money += amount[j]
            count += number
            falls = 1.0 if r[j] < 0 else 0.0
            fall_money += falls * amount[j]
            fall_count += falls * number
    if not money > 0:
        return np.nan, np.nan
    return fall_money / fall_count / (money / count) if fall_count > 0 and count > 0 else np.nan, fall_money / money


@compiled
def _push_up(r, opened, close, volume, amount, trades, share, size, gain, work):
    """Product of the gains of the `share` of bars with the largest amount per trade (without trades: amount), less 1; of equals the
    earlier ones."""
    count, unknown, counted = 0, False, len(trades) > 0
    for j in range(len(r)):  # what is not used is written over: half of the time of branches
        number = trades[j] if counted else 1.0
        used = (r[j] == r[j]) & (volume[j] > 0) & (opened[j] > 0)
        unknown |= (volume[j] != volume[j]) | (used & ~((number >= 0) & (amount[j] >= 0)))
        size[count], gain[count] = amount[j] / number, close[j] / opened[j]
        count += used & (number > 0)
    if unknown or count == 0:
        return np.nan
    k = max(int(np.ceil(share * count - 1e-9)), 1)
    work[:count] = size[:count]
    least = _kth_largest(work, count, k - 1)
    chosen = 0
    for j in range(count):
        work[chosen] = gain[j]
        chosen += size[j] > least
    product = 1.0
    for j in range(chosen):
        product *= work[j]
    for j in range(count):
        if size[j] == least and chosen < k:
            product *= gain[j]
            chosen += 1
    return product - 1.0


@compiled
def _kth_largest(values, count, k):
    """The k-th largest (from 0) of the first `count` values, which it reorders; the loops do not branch on the values."""
    low, high = 0, count
    while True:
        a, b, c = values[low], values[(low + high) // 2], values[high - 1]
        pivot = max(min(a, b), min(max(a, b), c))
        larger = low
        for i in range(low, high):
            value = values[i]
            values[i] = values[larger]
            values[larger] = value
            larger += value > pivot
        if k < larger:
            high = larger
            continue
        equal = larger
        for i in range(larger, high):
            value = values[i]
            values[i] = values[equal]
            values[equal] = value
            equal += value == pivot
        if k < equal:
            return pivot
        low = equal
