"""The ten high-frequency factors as plain loops over rows, to compare with."""

import math
from collections import defaultdict


def slow_bars(rows, options) -> dict:
    """Factors of one stock's day from its bars: dicts with minute, open, close, volume, amount, n_trades (None = unknown)."""
    least = options.min_traded * 240 / options.bar_minutes
    if sum(row["minute"] > 0 and row["volume"] > 0 for row in rows) < least:
        return {}
    end = 237 if options.closing_auction == "outside" else 240
    found, returns, at = {}, [], {}
    last = None
    for row in (row for row in rows if row["minute"] > 0):
        first = row["open"] if options.returns == "bar" or last is None else last
        if row["close"] is None or first is None:
            continue
        last = at[row["minute"]] = row["close"]
        returns.append((math.log(row["close"] / first), row))
    r = [x for x, _ in returns]
    mean = sum(r) / len(r) if options.demean else 0.0
    second, third = sum((x - mean) ** 2 for x in r), sum((x - mean) ** 3 for x in r)
    total = sum(x * x for x in r)
    if second > 1e-20 * total:
        found["hf_skew"] = math.sqrt(len(r)) * third / second**1.5
    if total > 0 and options.downside == "squares":
        found["hf_down_share"] = sum(x * x for x in r if x < 0) / total
    if options.open_minutes in at and 240 in at:
        found["hf_improved_reversal"] = math.log(at[240] / at[options.open_minutes])
    day = sum(row["volume"] for row in rows if row["minute"] <= end)
    if day and rows[-1]["minute"] == 240:
        found["hf_tail_share"] = sum(row["volume"] for row in rows if 240 - options.tail_minutes < row["minute"] <= end) / day
    falling = [row for x, row in returns if x < 0]
    amount, low = sum(row["amount"] for _, row in returns), sum(row["amount"] for row in falling)
    if amount:
        found["hf_outflow_share_proxy"] = low / amount
    counts = [row["n_trades"] if row["volume"] > 0 else 0 for _, row in returns]
    traded = [row for _, row in returns if row["volume"] > 0 and row["open"] is not None]
    found["hf_push_up_proxy"] = _push(traded, lambda row: row["amount"], options)
    if None not in counts:
        if amount and sum(row["n_trades"] for row in falling if row["volume"] > 0):
            found["hf_outflow_share"] = (low / sum(row["n_trades"] for row in falling if row["volume"] > 0)) / (amount / sum(counts))
        found["hf_push_up"] = _push([row for row in traded if row["n_trades"]], lambda row: row["amount"] / row["n_trades"], options)
    return {name: value for name, value in found.items() if value is not None}


def _push(rows, size, options):
    if not rows:
        return None
    chosen = sorted(rows, key=lambda row: (-size(row), row["minute"]))[:max(math.ceil(options.push_share * len(rows) - 1e-9), 1)]
    return math.prod(row["close"] / row["open"] for row in chosen) - 1


def slow_minute(millisecond) -> int:
    if millisecond < 34_200_000:
        return 0
    if millisecond < 46_800_000:
        return min((millisecond - 34_200_000) // 60_000 + 1, 120)
    return min((millisecond - 46_800_000) // 60_000 + 121, 240)


def slow_trades(trades, orders, bars, threshold, options) -> dict:
    """Factors of one stock's day from its trades, orders (None or dicts) and bars."""
    ends = lambda millisecond: -(-slow_minute(millisecond) // options.bar_minutes) * options.bar_minutes  # noqa: E731
    if sum(row["minute"] > 0 and row["volume"] > 0 for row in bars) < options.min_traded * 240 / options.bar_minutes:
        return {}
    grid = {minute: {"amount": 0.0, "volume": 0} for minute in range(options.bar_minutes, options.open_minutes + 1, options.bar_minutes)}
    grid |= {row["minute"]: row for row in bars if row["minute"] in grid}
    active, ordered, large, sizes = (defaultdict(float) for _ in range(4))
    sided = counted = 0
    for trade in trades:
        amount = trade["price"] * trade["quantity"]
        if options.order_size == "day" or slow_minute(trade["millisecond"]) <= options.open_minutes:
            sizes["buy", trade["buy_order"]] += amount
            sizes["sell", trade["sell_order"]] += amount
    for trade in trades:
        minute = ends(trade["millisecond"])
        if minute not in grid:
            continue
        amount, side = trade["price"] * trade["quantity"], trade["side"]
        if side == 0 and trade["buy_order"] is not None and trade["sell_order"] is not None:
            side = (trade["buy_order"] > trade["sell_order"]) - (trade["buy_order"] < trade["sell_order"])
        sided, counted = sided + (side != 0), counted + 1
        active[minute] += amount * side
        if threshold is not None:
            large[minute] += amount * ((sizes["buy", trade["buy_order"]] > threshold) - (sizes["sell", trade["sell_order"]] > threshold))
    any_order = False
    for order in orders or ():
        minute = ends(order["millisecond"])
        if minute in grid and order["side"] and (order["kind"] > 0 or options.cancels):
            any_order, bar = True, grid[minute]
            price = order["price"] if order["price"] is not None else bar["amount"] / bar["volume"] if bar["volume"] else 0.0
            ordered[minute] += price * order["quantity"] * order["side"] * order["kind"]
    money = sum(row["amount"] for row in grid.values())
    found = {}
    if 2 * sided >= counted > 0 and any_order:
        found |= _share_and_intensity("hf_buy_intention", [active[m] + options.buy_intention_sign * ordered[m] for m in grid], money)
    if threshold is not None and all(trade["buy_order"] is not None and trade["sell_order"] is not None for trade in trades):
        found |= _share_and_intensity("hf_large_buy", [large[m] for m in grid], money)
    return found


def _share_and_intensity(name, values, money) -> dict:
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))
    found = {f"{name}_share": sum(values) / money} if money else {}
    return found | ({f"{name}_intensity": mean / spread} if spread > 1e-12 * max(map(abs, values)) else {})
