"""Trades and orders of one demo stock-day made from its minute bars: added up, trades give every bar back; arrays are flat.

A minute whose price moves has one trade at its open, high, low and close each; all else is traded at two prices beside each other,
so that the amount comes out. An order either takes (a run of trades of one active side within a minute) or waits (a run of trades
against it at its price): it came before the first of them, so of a trade's two orders the later one, with the larger number, is the
active one. Orders nobody met wait beside the market; what is left of an order is cancelled, or stays. No order book is kept: only
trades and numbers agree. Times are milliseconds, in the session (0 at 09:30, lunch left out) or since midnight.
"""

import numpy as np

from qlib_ext.demo.intraday_bars import COUNT, LAST, POST_OPEN, slot_size

MINUTE, NOON, CANCELS_END = 60_000, 7_200_000, LAST * 60_000
OPENED, AUCTION, CLOSED, LUNCH = 34_200_000, 33_900_000, 54_000_000, 5_400_000
CALLS = {0: (AUCTION - 600_000, 600_000), COUNT - 1: (CLOSED - 180_000, 180_000)}
"""Auction minute -> start and length of the time in which its orders come."""
SPLIT, SAME_SIDE, TICK_SIDE = 0.8, 0.6, 0.25
SMALL_ENDS, LARGE_ENDS, LARGE_CHANCE = 0.7, 0.05, 0.12
ACTIVE, ORDER, LARGE = 0.045, 0.06, 0.32
WAIT, CANCEL_AFTER, STALE = 20_000.0, 60_000.0, 600_000.0
MORE_CHANCE, UNMET, UNMET_CANCELLED, MARKET_ORDERS = 0.15, 0.3, 0.6, 0.03


def make_ticks(bars: dict, unit: int, tilts: dict, limits: tuple, generator: np.random.Generator) -> tuple[dict, dict]:
    """Trades and orders of one stock-day.

    Args:
        bars: of `intraday_bars.Bars` [m]: prices in ticks, volume, amount in ticks x shares, n_trades. unit: of `lot_unit`.
        tilts: `active`, `order`, `large` of `intraday_shape`. limits: lowest and highest price allowed, in ticks.

    Returns:
        trades: millisecond, price (ticks), quantity, side, buy_order, sell_order, sequence. orders: millisecond, price (ticks; NaN:
        market order), quantity, side, order, kind, sequence. `sequence` counts the events of both; an order's number is that of its
        entry.
    """
    trades = _trades(bars, unit, generator)
    block = np.cumsum(np.append(True, (np.diff(trades["minute"]) != 0) | (np.diff(trades["group"]) != 0))) - 1
    morning = ((trades["minute"] >= 1) & (trades["minute"] <= POST_OPEN)).astype(float)
    trades["side"] = _sides(trades, block, ACTIVE * tilts["active"] * morning, limits, generator)
    lean = LARGE * tilts["large"] * morning
    ends = {side: _ends(block, LARGE_CHANCE * np.exp(side * lean), generator) for side in (1, -1)}
    times, groups = _times(trades, ends, generator)
    orders = _met_orders(trades, times, groups, generator)
    orders = _joined(orders, _unmet_orders(bars, ORDER * tilts["order"], limits, generator))
    return _numbered(trades, orders, generator)


def _trades(bars: dict, unit: int, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """minute, price, quantity and group (of trades at one price within a minute) of every trade, in order."""
    count, volume = bars["n_trades"], bars["volume"]
    moving = bars["high"] > bars["low"]
    slot = np.where(moving, slot_size(volume, count, np.int64(unit)), 0)
    rest = volume - 4 * slot
    left = bars["amount"] - slot * (bars["open"] + bars["high"] + bars["low"] + bars["close"])
    base = left // np.maximum(rest, 1)
    above, others = left - base * rest, count - 4 * moving
    least = np.maximum(above > 0, others - (rest - above))
    wanted = np.rint(others * above / np.maximum(rest, 1)).astype(np.int64)
    upper = np.where(moving, np.clip(wanted, least, np.maximum(np.minimum(above, others - 1), 0)), 0)
    minute = np.repeat(np.arange(COUNT), count)
    place = np.arange(len(minute)) - np.repeat(np.cumsum(count) - count, count)
    last, is_moving = (count - 1)[minute], moving[minute]
    inner = np.where(place < 3 + (others - upper)[minute], 3, 4)
    group = np.where(is_moving, np.where(place < 3, place, np.where(place == last, 5, inner)), 3)
    levels = np.stack([bars["open"], bars["high"], bars["low"], np.where(moving, base, bars["open"]), base + 1, bars["close"]])
    quantity = slot[minute]
    totals, pieces = np.stack([rest - above, above], axis=1), np.stack([others - upper, upper], axis=1)
    quantity[(group == 3) | (group == 4)] = _split(totals.ravel(), pieces.ravel(), generator)
    first = generator.random(COUNT)[minute]
    key = np.choose(group, [-1.0, generator.random(len(minute)), generator.random(len(minute)), first, 1.0 - first, 2.0])
    order = np.lexsort((key, minute))
    return {"minute": minute, "price": levels[group, minute][order], "quantity": quantity[order], "group": group[order]}


def _split(totals: np.ndarray, pieces: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Shares of each of `pieces` [g] trades that add up to `totals` [g], in lots of 100 where they suffice; group by group."""
    totals, pieces = totals[pieces > 0], pieces[pieces > 0]
    ends = np.cumsum(pieces)
    group = np.repeat(np.arange(len(pieces)), pieces)
    weight = np.cumsum(np.exp(SPLIT * generator.standard_normal(ends[-1])))
    before = np.append(0.0, weight[ends[:-1] - 1])
    unit = np.where(totals // 100 >= pieces, 100, 1)
    lots = totals // unit
    share = (weight - before[group]) / (weight[ends - 1] - before)[group]
    place = np.arange(1, ends[-1] + 1) - (ends - pieces)[group]
    dealt = np.floor(share * (lots - pieces)[group]).astype(np.int64) + place
    dealt[ends - 1] = lots
    quantity = np.diff(dealt, prepend=0)
    quantity[ends[:-1]] = dealt[ends[:-1]]
    quantity *= unit[group]
    quantity[ends - 1] += totals - lots * unit
    return quantity


def _sides(trades: dict, block: np.ndarray, lean: np.ndarray, limits: tuple, generator: np.random.Generator) -> np.ndarray:
    """Active side of every trade: 0 in auctions; sellers at the highest price allowed, buyers at the lowest; else more often that of
    the last change of price, alike within a block, leaning to buyers by `lean`."""
    price, auction = trades["price"], np.isin(trades["minute"], list(CALLS))
    own, shared = generator.random((2, len(block)))
    draw = np.where(generator.random(len(block)) < SAME_SIDE, shared[block], own)
    side = np.where(draw < 0.5 + TICK_SIDE * np.sign(np.diff(price, prepend=price[0])) + lean, 1, -1)
    side = np.where(price >= limits[1], -1, np.where(price <= limits[0], 1, side))
    return np.where(auction, 0, side)


def _ends(block: np.ndarray, large: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Whether an order ends before a trade by chance: seldom in the blocks of a large order."""
    is_large = generator.random(block[-1] + 1)[block] < large
    return generator.random(len(block)) < np.where(is_large, LARGE_ENDS, SMALL_ENDS)


def _times(trades: dict, ends: dict, generator: np.random.Generator) -> tuple[np.ndarray, dict]:
    """Session times of trades, in steps of 10 ms, alike within a taking order; the start of every run of trades by (kind, side)."""
    minute, price, side = trades["minute"], trades["price"], trades["side"]
    starts, change = np.append(True, np.diff(minute) != 0), np.diff(price, prepend=price[0])
    starts |= (np.diff(side, prepend=side[0]) != 0) | (change * side < 0) | np.where(side > 0, ends[1], ends[-1])
    times = np.sort(minute - 1 + generator.random(len(minute))) * MINUTE
    times = np.floor(np.minimum(times, minute * float(MINUTE) - 1.0) / 10.0).astype(np.int64) * 10
    times = times[np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))]
    groups = {("takes", direction): (np.flatnonzero(side == direction), starts) for direction in (1, -1)}
    for direction in (1, -1):
        here = np.flatnonzero(side == -direction)
        breaks = np.zeros(len(minute), dtype=bool)
        breaks[here] = np.append(True, np.diff(price[here]) != 0)[: len(here)] | ends[direction][here]
        groups["waits", direction] = here, breaks
        here = np.flatnonzero(side == 0)
        breaks = np.zeros(len(minute), dtype=bool)
        breaks[here] = np.append(True, np.diff(minute[here]) != 0)[: len(here)] | ends[direction][here]
        groups["calls", direction] = here, breaks
    return times, groups


def _met_orders(trades: dict, times: np.ndarray, groups: dict, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Orders that trades met. Sets `buy` and `sell` of the trades to their positions among these and `millisecond`."""
    trades["millisecond"] = _clock(times)
    for minute, (start, length) in CALLS.items():
        trades["millisecond"][trades["minute"] == minute] = start + length
    trades["buy"], trades["sell"] = np.empty((2, len(times)), dtype=np.int64)
    parts, known = [], 0
    for (kind, side), (here, starts) in groups.items():
        if not len(here):
            continue
        first = np.flatnonzero(starts[here])
        trades["buy" if side > 0 else "sell"][here] = known + np.cumsum(starts[here]) - 1
        orders = _order_times(kind, times[here[first]], times[here[np.append(first[1:], len(here)) - 1]], trades["minute"][here[first]],
                              generator)
        edge = np.maximum if side > 0 else np.minimum
        filled = np.add.reduceat(trades["quantity"][here], first)
        more = np.where(generator.random(len(first)) < MORE_CHANCE, 100 * np.ceil(generator.exponential(5.0, len(first))), 0.0)
        more = more.astype(np.int64) + (-filled % 100 if side > 0 else 0)
        orders |= {"price": edge.reduceat(trades["price"][here], first).astype(float), "quantity": filled + more, "left": more,
                   "side": np.full(len(first), side)}
        if kind == "takes":
            orders["price"][generator.random(len(first)) < MARKET_ORDERS] = np.nan
        parts.append(orders)
        known += len(first)
    return _joined(*parts)


def _order_times(kind: str, first: np.ndarray, last: np.ndarray, minute: np.ndarray, generator: np.random.Generator) -> dict:
    """Entry, rank among events of the same time, and cancellation of what is left (0: stays) of orders met from `first` to `last`."""
    wait, after = (np.ceil(generator.exponential((WAIT, CANCEL_AFTER), (len(first), 2)) / 10.0).astype(np.int64) * 10 + 10).T
    cancel = last + after
    if kind == "calls":
        entry = np.zeros(len(first), dtype=np.int64)
        for number, (start, length) in CALLS.items():
            here = minute == number
            entry[here] = start + generator.integers(0, length // 10, here.sum()) * 10
        cancel = np.where(minute == 0, np.maximum(after, 10), CANCELS_END)
    else:
        entry = _clock(first - wait if kind == "waits" else first)
    return {"millisecond": entry, "rank": np.full(len(first), int(kind == "takes")),
            "cancel": np.where(cancel < CANCELS_END, _clock(cancel), 0)}


def _unmet_orders(bars: dict, lean: float, limits: tuple, generator: np.random.Generator) -> dict[str, np.ndarray]:
    """Orders beside the market in the continuous minutes, more of them from buyers before 10:00 by `lean`; most are cancelled."""
    count = generator.poisson(UNMET * bars["n_trades"][1 : LAST + 1])
    minute = np.repeat(np.arange(1, LAST + 1), count)
    buys = generator.random(len(minute)) < 0.5 + lean * (minute <= POST_OPEN)
    low, high = bars["low"][minute], bars["high"][minute]
    buys = np.where(high >= limits[1], True, np.where(low <= limits[0], False, buys))
    away = 1 + np.floor(generator.exponential(3.0, len(minute))).astype(np.int64)
    price = np.where(buys, np.maximum(low - away, min(limits[0], low.min(initial=1))), np.minimum(high + away, limits[1]))
    usual = bars["volume"].sum() / bars["n_trades"].sum() / 100.0
    quantity = 100 * np.ceil(usual * generator.lognormal(0.0, 1.0, len(minute))).astype(np.int64)
    entry = ((minute - 1) * MINUTE + generator.integers(0, MINUTE // 10, len(minute)) * 10).astype(np.int64)
    cancel = entry + 10 + np.ceil(generator.exponential(STALE, len(minute)) / 10.0).astype(np.int64) * 10
    stays = (generator.random(len(minute)) > UNMET_CANCELLED) | (cancel >= CANCELS_END)
    return {"millisecond": _clock(entry), "rank": np.zeros(len(minute), dtype=np.int64), "cancel": np.where(stays, 0, _clock(cancel)),
            "price": price.astype(float), "quantity": quantity, "left": quantity, "side": np.where(buys, 1, -1)}


def _numbered(trades: dict, orders: dict, generator: np.random.Generator) -> tuple[dict, dict]:
    """Both tables with `sequence`: entries, trades and cancellations in the order of time."""
    gone = np.flatnonzero((orders["left"] > 0) & (orders["cancel"] > 0))
    counts = len(orders["side"]), len(trades["side"]), len(gone)
    time = np.concatenate([orders["millisecond"], trades["millisecond"], orders["cancel"][gone]])
    rank = np.concatenate([orders["rank"], np.repeat([2, 3], counts[1:])])
    sequence = np.empty(len(time), dtype=np.int64)
    sequence[np.lexsort((rank, time))] = np.arange(1, len(time) + 1)
    number, of_trades, of_gone = np.split(sequence, np.cumsum(counts)[:2])
    traded = {name: trades[name] for name in ("millisecond", "price", "quantity", "side")}
    traded |= {"buy_order": number[trades["buy"]], "sell_order": number[trades["sell"]], "sequence": of_trades}
    entered = {name: orders[name] for name in ("millisecond", "price", "quantity", "side")}
    entered |= {"order": number, "kind": np.ones(counts[0], dtype=np.int64), "sequence": number}
    cancelled = {"millisecond": orders["cancel"][gone], "price": orders["price"][gone], "quantity": orders["left"][gone],
                 "side": orders["side"][gone], "order": number[gone], "kind": np.full(len(gone), -1), "sequence": of_gone}
    both = _joined(entered, cancelled)
    order = np.argsort(both["sequence"])
    return traded, {name: values[order] for name, values in both.items()}


def _clock(session: np.ndarray) -> np.ndarray:
    """Milliseconds since midnight of session times; what lies before 09:30 falls into the call of the opening auction."""
    before = np.maximum(AUCTION - 10 + session, CALLS[0][0])
    return np.where(session < 0, before, OPENED + session + np.where(session >= NOON, LUNCH, 0)).astype(np.int64)


def _joined(*parts: dict) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
