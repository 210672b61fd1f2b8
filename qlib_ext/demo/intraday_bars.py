"""Minute bars of the demo market made from its daily bars, and equal to them when added up; arrays are [n, m], all prices in ticks.

Axes: `n` stock, `m` minute 0..240: 0 the opening auction, 1..237 continuous trading, 238 and 239 without trades, 240 the closing
auction. A day is made in four steps. Volume: a U-shaped profile under noise, in whole lots. Prices: a random walk tied to the open,
the high, the low and the close, bent until its average price is that of the day. Trades: volume over a size of trade. Amounts: every
minute's lies between what its prices allow, at one distance from the middle, so that they add up to the day's.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from qlib_ext.demo.streams import stream

COUNT, LAST, POST_OPEN, TAIL = 241, 237, 30, 211
LEAST_TRADES = 6
"""Lots and trades of a minute whose price moves: one at the open, high, low, close each, and two prices beside each other."""
TRADES_A_DAY, TIE_LOTS, ATTEMPTS = 3000, 12, 12
WALK_WIDTH, CLOSING_GAP, SPREAD, COARSE = 0.45, 0.02, 12, 6
VOLUME_NOISE, VOLUME_MOVE, SIZE_NOISE = 0.5, 0.2, 0.3
SKEW, EARLY, EARLY_NOISE, TAIL_SHARE, FALLING, RISING = 0.22, 0.8, 0.4, 0.12, 0.045, 0.06
TICK = 0.01


@dataclass(frozen=True)
class Quotes:
    """Daily bars of n stocks on one day: prices in ticks, volume in shares, amount in ticks x shares (all int64 [n]), and the usual
    size of a trade in shares."""

    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    amount: np.ndarray
    trade_size: np.ndarray


@dataclass(frozen=True)
class Bars:
    """Minute bars [n, m] int64: prices in ticks, volume in shares, amount in ticks x shares, number of trades."""

    open: np.ndarray
    high: np.ndarray
    low: np.ndarray
    close: np.ndarray
    volume: np.ndarray
    amount: np.ndarray
    n_trades: np.ndarray


def draw_day(seed: int, stocks: np.ndarray, day: np.datetime64) -> tuple[np.ndarray, np.ndarray]:
    """Normal draws [n, 4, m] and uniform ones [n, 3, m] of one day, from a stream of each stock-day's own."""
    number = int(day.astype("datetime64[D]").astype(int))
    normal, uniform = np.empty((len(stocks), 4, COUNT)), np.empty((len(stocks), 3, COUNT))
    for row, stock in enumerate(stocks):
        generator = stream(seed, "minute", int(stock), number)
        generator.standard_normal(out=normal[row])
        generator.random(out=uniform[row])
    return normal, uniform


def make_bars(quotes: Quotes, tilts: dict[str, np.ndarray], normal: np.ndarray, uniform: np.ndarray) -> Bars:
    """Minute bars of one day.

    Args:
        quotes: of stocks that trade. tilts: of `intraday_shape`, [n]. normal, uniform: of `draw_day`.
    """
    times = _extremes(quotes, uniform[:, 2, -3:])
    lots, unit = _lots(quotes, tilts, normal, times)
    moves = (lots >= LEAST_TRADES) & (quotes.high > quotes.low)[:, None]
    moves[:, [0, LAST + 1, LAST + 2, COUNT - 1]] = False
    volume = lots * unit[:, None]
    path, ties = _walk(quotes, tilts, normal, times)
    goal = (quotes.amount - volume[:, 0] * quotes.open - volume[:, -1] * quotes.close).astype(float)
    aim, hard = goal, np.zeros(len(goal), dtype=bool)
    for attempt in range(ATTEMPTS):
        bent = _bend(quotes, path, np.where(hard[:, None], 1.0, np.minimum(ties / 4.0, 1.0)), volume, aim)
        prices = _prices(quotes, bent, lots, moves, times, hard, normal[:, 3], uniform)
        trades = _trades(quotes, tilts, prices, lots, volume, moves, normal[:, 2])
        least, middle, most = _amounts(prices, volume, trades, moves, unit)
        short = goal - middle[:, 1:-1].sum(axis=1)
        room = np.where((short > 0)[:, None], most - middle, middle - least)[:, 1:-1].sum(axis=1)
        far = np.abs(short) > room
        if not far.any():
            break
        becomes_hard = far & ~hard & (attempt > 1)
        aim, hard = np.where(far, np.where(becomes_hard, goal, aim + short * np.where(hard, 0.5, 1.0)), aim), hard | becomes_hard
    share = np.clip(np.divide(short, room, out=np.zeros_like(short), where=room > 0), -1.0, 1.0)[:, None]
    wanted = middle + np.where(share > 0, share * (most - middle), share * (middle - least))
    return Bars(**prices, volume=volume, amount=_whole(least, wanted, most, unit), n_trades=trades)


def slot_size(volume: np.ndarray, n_trades: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Shares of each of the four trades at a moving minute's open, high, low and close."""
    return np.maximum(volume // (8 * np.maximum(n_trades, 1)) // unit * unit, unit)


def lot_unit(volume: np.ndarray) -> np.ndarray:
    """Shares in which a day's volume [n] is dealt out to minutes: 100; 1 where the day has few."""
    return np.where((volume >= 10_000) & (volume % 100 == 0), 100, 1)


def _extremes(quotes: Quotes, uniform: np.ndarray) -> np.ndarray:
    """Minutes [n, 2] of the high and the low, SPREAD from each other, the ends and POST_OPEN at least, more often near the ends; the
    low is first on most days that rise."""
    place, skipped = 0.5 * uniform[:, :2] + 0.5 * np.sin(0.5 * np.pi * uniform[:, :2]) ** 2, 2 * SPREAD - 1
    pair = np.sort(np.floor((LAST - 3 * SPREAD - skipped) * place).astype(int), axis=1) + [SPREAD, 2 * SPREAD]
    pair += skipped * (pair > POST_OPEN - SPREAD)
    low_first = uniform[:, 2] < np.where(quotes.close > quotes.open, 0.75, 0.25)
    return np.where(low_first[:, None], pair[:, ::-1], pair)


def _lots(quotes: Quotes, tilts: dict, normal: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lots [n, m] of every minute that add up to the day's, TIE_LOTS at least at the four ties; shares of a lot [n]."""
    minute = np.arange(COUNT)
    profile = 1.0 + 2.0 * np.exp(-minute / 18.0) + 0.8 * np.exp((minute - LAST) / 20.0)
    profile[[0, LAST + 1, LAST + 2, COUNT - 1]] = 4.0, 0.0, 0.0, 6.0
    log_weight = VOLUME_NOISE * normal[:, 1] + VOLUME_MOVE * np.abs(normal[:, 0])
    log_weight[:, TAIL:] -= TAIL_SHARE * tilts["tail"][:, None]
    unit = lot_unit(quotes.volume)
    rows, count = np.arange(len(unit)), quotes.volume // unit
    shares = np.cumsum(profile * np.exp(log_weight), axis=1)
    dealt = np.floor(shares / shares[:, -1:] * (count - 4 * TIE_LOTS)[:, None] + 0.5).astype(np.int64)
    lots = np.diff(dealt, axis=1, prepend=0)
    for minute in (0, COUNT - 1, times[:, 0], times[:, 1]):
        lots[rows, minute] += TIE_LOTS
    return lots, unit


def _walk(quotes: Quotes, tilts: dict, normal: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unrounded prices [n, 0..237] that start at the open, touch high and low at their minutes, end near the close and stay between
    high and low; minutes [n, 0..237] from the nearest of these ties."""
    minute, rows = np.arange(LAST + 1), np.arange(len(times))[:, None]
    width = (quotes.high - quotes.low)[:, None].astype(float)
    scale = 1.0 + 1.2 * np.exp(-minute / 25.0)
    scale *= WALK_WIDTH / np.sqrt((scale**2).sum())
    lean = np.clip(SKEW * tilts["skew"], -0.45, 0.45)[:, None]
    draws = normal[:, 0, : LAST + 1]
    steps = scale * (draws - lean * (draws**2 - 1.0))
    steps[:, 0] = 0.0
    walk = width * np.cumsum(steps, axis=1)
    early = _early_price(quotes, tilts["early"], normal[:, 3, -1])
    end = np.clip(np.round(quotes.close + CLOSING_GAP * width[:, 0] * normal[:, 0, -1]), quotes.low, quotes.high)
    fixed = np.broadcast_to([0, POST_OPEN, LAST], (len(times), 3))
    ties, values = np.hstack([times, fixed]), np.column_stack([quotes.high, quotes.low, quotes.open, early, end])
    order = np.argsort(ties, axis=1, kind="stable")
    ties, values = np.take_along_axis(ties, order, axis=1), np.take_along_axis(values, order, axis=1)
    miss = values - walk[rows, ties]
    part = (minute >= ties[:, 1:-1, None]).sum(axis=1)
    start, stop = ties[rows, part], ties[rows, part + 1]
    walk += miss[rows, part] + (miss[rows, part + 1] - miss[rows, part]) * (minute - start) / (stop - start)
    folded = np.abs((walk - quotes.low[:, None] + width) % (2.0 * np.maximum(width, 1.0)) - width)
    return quotes.low[:, None] + folded, np.minimum(minute - start, stop - minute)


def _early_price(quotes: Quotes, tilt: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Price [n] at 10:00: the open's place between low and high, moved by the tilt and by chance."""
    width = np.maximum(quotes.high - quotes.low, 1)
    place = ndtri(np.clip((quotes.open - quotes.low) / width, 0.15, 0.85)) + EARLY * tilt + EARLY_NOISE * noise
    return quotes.low + (quotes.high - quotes.low) * ndtr(place)


def _bend(quotes: Quotes, path: np.ndarray, ties: np.ndarray, volume: np.ndarray, aim: np.ndarray) -> np.ndarray:
    """The path drawn towards high or low, not at its ties, so that the continuous minutes have the amount `aim` [n]."""
    weight, middle = volume[:, 1 : LAST + 1], 0.5 * (path[:, 1:] + path[:, :-1])
    short = aim - (weight * middle).sum(axis=1)
    goal = np.where(short > 0, quotes.high, quotes.low)[:, None]
    pull = ties * (goal - path)
    gain = (weight * 0.5 * (pull[:, 1:] + pull[:, :-1])).sum(axis=1)
    share = np.divide(short, gain, out=np.zeros_like(short), where=gain != 0)
    return path + np.clip(share, 0.0, 1.0)[:, None] * pull


def _prices(quotes: Quotes, path: np.ndarray, lots: np.ndarray, moves: np.ndarray, times: np.ndarray, hard: np.ndarray,
            gaps: np.ndarray, uniform: np.ndarray) -> dict:
    """Open, high, low, close [n, m] in ticks; a minute without trades repeats the last close, one of few lots has a single price.

    Where the day's range is a few ticks, or where `hard` [n], prices are rounded up or down by chance, so that they average what the
    path says; where `hard`, no bar opens beside the last close, and the high and the low are touched but not closed at.
    """
    low, high = quotes.low[:, None], quotes.high[:, None]
    rows, traded = np.arange(len(low))[:, None], (lots > 0) & (np.arange(COUNT) <= LAST)
    close = np.empty(moves.shape, dtype=np.int64)
    half = np.where(hard[:, None] | (high - low <= COARSE), uniform[:, 2, : LAST + 1], 0.5)
    close[:, : LAST + 1] = np.clip(np.floor(path + half), low, high)
    close[:, 0], at_high, at_low = quotes.open, (rows[:, 0], times[:, 0]), (rows[:, 0], times[:, 1])
    close[at_high] = np.where(hard, close[rows[:, 0], times[:, 0] - 1], quotes.high)
    close[at_low] = np.where(hard, close[rows[:, 0], times[:, 1] - 1], quotes.low)
    last = np.maximum.accumulate(np.where(traded, np.arange(COUNT), 0), axis=1)
    close = close[rows, last]
    before = np.column_stack([quotes.open, close[:, :-1]])
    gaps = np.where(hard[:, None], 0, np.rint(0.6 * gaps).astype(np.int64))
    start = np.where(moves, np.clip(before + gaps, low, high), close)
    reach = 0.03 * (high - low)
    above = np.minimum(np.maximum(start, close) + np.floor(-reach * np.log1p(-uniform[:, 0])).astype(np.int64), high)
    below = np.maximum(np.minimum(start, close) - np.floor(-reach * np.log1p(-uniform[:, 1])).astype(np.int64), low)
    prices = {"open": start, "high": np.where(moves, above, start), "low": np.where(moves, below, start), "close": close}
    prices["high"][at_high], prices["low"][at_low] = quotes.high, quotes.low
    average = quotes.amount / quotes.volume
    reach = (np.minimum(average - quotes.low, quotes.high - average) > 0.02).astype(np.int64)
    prices["low"][at_high] = np.minimum(prices["low"][at_high], quotes.high - reach)
    prices["high"][at_low] = np.maximum(prices["high"][at_low], quotes.low + reach)
    for values in prices.values():
        values[:, -1] = quotes.close
    return prices


def _trades(quotes: Quotes, tilts: dict, prices: dict, lots: np.ndarray, volume: np.ndarray, moves: np.ndarray, noise: np.ndarray):
    """Number of trades [n, m]: volume over a size that leans on the minute's return; LEAST_TRADES at least where the price moves."""
    change = np.diff(prices["close"], axis=1, prepend=quotes.open[:, None]).astype(float)
    usual = 0.05 * np.maximum(quotes.high - quotes.low, 1)[:, None]
    log_size = SIZE_NOISE * noise + FALLING * tilts["falling"][:, None] * (change < 0)
    log_size -= RISING * tilts["rising"][:, None] * np.tanh(change / usual)
    wanted = np.rint(volume / (quotes.trade_size[:, None] * np.exp(log_size))).astype(np.int64)
    return np.where(lots > 0, np.clip(wanted, np.where(moves, LEAST_TRADES, 1), np.maximum(lots, 1)), 0)


def _amounts(prices: dict, volume: np.ndarray, trades: np.ndarray, moves: np.ndarray, unit: np.ndarray) -> tuple:
    """Least, middle and largest amount [n, m] of a minute's prices: four slots at its prices, all else between low and high."""
    slot = np.where(moves, slot_size(volume, trades, unit[:, None]), 0)
    fixed = slot * (prices["open"] + prices["high"] + prices["low"] + prices["close"])
    rest = volume - 4 * slot
    average = (prices["open"] + prices["high"] + prices["low"] + prices["close"]) / 4.0
    return fixed + rest * prices["low"], fixed + rest * average, fixed + rest * prices["high"]


def _whole(least: np.ndarray, wanted: np.ndarray, most: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Amounts between the bounds, above `least` by whole lots, so that few trades are odd; what rounding leaves is carried from minute
    to minute, and at last given to the minute with most room."""
    above, rows = np.cumsum(wanted - least, axis=1), np.arange(len(least))
    dealt = np.diff(np.floor(above / unit[:, None] + 0.5).astype(np.int64) * unit[:, None], axis=1, prepend=0)
    odd = np.rint(above[:, -1]).astype(np.int64) - dealt.sum(axis=1)
    room = np.where((odd > 0)[:, None], most - least - dealt, dealt)
    dealt[rows, room.argmax(axis=1)] += odd
    return least + dealt
