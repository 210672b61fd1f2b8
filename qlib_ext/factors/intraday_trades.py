"""The factors of single trades and orders: buying intention, and the net buying of large orders, both after the open.

Collected with ``engine="in-memory"`` the values are the same to the last bit in every run; the streaming engine adds in any order.
"""

from __future__ import annotations

from datetime import date as Date

import polars as pl

from qlib_ext.errors import DataError
from qlib_ext.factors.intraday_options import LARGE_ORDER_FACTORS, TRADE_FACTORS, IntradayOptions, named
from qlib_ext.factors.session import OPENING, SESSION, bar_end, session_minute

KEY = ("date", "instrument")
_INTENTION = ("hf_buy_intention_share", "hf_buy_intention_intensity", "hf_buy_intention_share_proxy", "hf_buy_intention_intensity_proxy")
_MONEY = pl.col("price") * pl.col("quantity")
ROUNDING = 1e-9
"""By how much, as a share, an order must be above the threshold: where all are alike, none is large."""


def trade_values(trades: pl.LazyFrame, orders: pl.LazyFrame | None, bars: pl.LazyFrame, thresholds: pl.DataFrame | None = None,
                 options: IntradayOptions | None = None, names=None, limits: pl.DataFrame | None = None) -> pl.LazyFrame:
    """The factors of trades, one row for each (date, instrument) that has trades and bars.

    Over the bars j after the open (09:30 to 10:00), A_j their amounts in CNY:

        hf_buy_intention_share      sum B_j / sum A_j        B_j = active buys - active sells + new buy orders - new sell orders
        hf_buy_intention_intensity  mean B_j / std B_j       (divided by the number of bars)
        hf_large_buy_share          sum L_j / sum A_j        L_j = amount whose buy order is large - amount whose sell order is large
        hf_large_buy_intensity      mean L_j / std L_j

    An order is as large as what it bought or sold on the whole day, known after the close. A trade without a side takes it from its order
    numbers, the later order being the active one. A bar that lacks is one without trades. Null: a denominator of 0, an unknown amount,
    too few bars of the day that traded (``min_traded``), fewer than half of the sides known, no order of a known side after the open, no
    threshold, an order number missing.

    Args:
        trades, orders: forms of `qlib_ext.store.intraday`. The amount of an order without a price is that of the bar's mean price, and
            nothing where the bar has none. What an exchange does not publish is not in it: Shanghai leaves out what an order trades at
            once.
        bars: columns date, instrument, minute, amount, volume, of the whole day.
        thresholds: columns instrument, threshold and, for proxies, trade_threshold, in CNY (see `thresholds`).
        names: of `intraday.TRADE_FACTORS`; None: the factors that the frames allow.
        limits: columns date, instrument, limit_up, limit_down in raw CNY: bars that lie at a limit all the time are left out of B_j and
            its A_j, since the side of their trades means nothing (of large trades, which stand in for large orders, too). Needs the columns
            high and low in bars.

    Raises:
        ConfigError: an unknown factor. DataError: a frame lacks that a factor named needs.
    """
    options = options or IntradayOptions()
    if names is None:
        names = [name for name in named(None, TRADE_FACTORS, options)
                 if (name not in _INTENTION or orders is not None) and (name in _INTENTION or thresholds is not None)]
    names = named(names, TRADE_FACTORS, options)
    needed = {"orders": (orders, set(_INTENTION[:2])), "thresholds of large orders": (thresholds, set(LARGE_ORDER_FACTORS))}
    for what, (given, users) in needed.items():
        if given is None and users & set(names):
            raise DataError(f"{sorted(users & set(names))} need {what}: give them, or leave these factors out")
    grid = _open_bars(bars, options, limits)
    flows = [_active(trades, options)]
    if orders is not None and set(names) & set(_INTENTION[:2]):
        flows.append(_ordered(orders, grid, options))
    if set(names) & set(LARGE_ORDER_FACTORS):
        flows.append(_large(trades, thresholds.lazy(), options))
    for flow in flows:
        grid = grid.join(flow, on=[*KEY, "minute"], how="left", maintain_order="left")
    if "ordered" not in grid.collect_schema():
        grid = grid.with_columns(ordered=pl.lit(None, pl.Float64))
    active, free = pl.col("active").fill_null(0.0), ~pl.col("locked")
    sums = {"intention_proxy": pl.when(free).then(active),
            "intention": pl.when(free).then(active + options.buy_intention_sign * pl.col("ordered").fill_null(0.0))}
    if "large" in grid.collect_schema():
        sums |= {"large": pl.col("large").fill_null(0.0), "large_proxy": pl.when(free).then(pl.col("large_proxy").fill_null(0.0))}
    parts = {"money": pl.col("amount"), "free_money": pl.col("amount").filter(free)}
    sided = pl.col("sided").filter(free).sum()
    made = grid.with_columns(**sums).group_by(*KEY, maintain_order=True).agg(
        *(pl.when(one.null_count() == 0).then(one.sum()).alias(name) for name, one in parts.items()),
        ((sided > 0) & (2 * sided >= pl.col("traded").filter(free).sum())).alias("has_sides"),
        pl.col("ordered").filter(free).is_not_null().any().alias("has_orders"),
        *(pl.col(one).sum().alias(f"{one}_sum") for one in sums), *(_intensity(one).alias(f"{one}_intensity") for one in sums))
    made = made.join(_traded_stocks(bars, options), on=list(KEY))
    found = _known_stocks(trades, made, thresholds, names, options)
    return found.select(*KEY, *(_value(name).alias(name) for name in names)).sort(*KEY)


def _value(name: str) -> pl.Expr:
    """A factor from the sums of a stock's day."""
    kind = "intention" if name in _INTENTION else "large"
    column = f"{kind}_proxy" if name.endswith("_proxy") else kind
    known = {"intention": pl.col("has_sides") & pl.col("has_orders"), "intention_proxy": pl.col("has_sides"),
             "large": pl.col("has_threshold"), "large_proxy": pl.col("has_trade_threshold") & pl.col("has_sides")}[column]
    money = pl.col("money" if column == "large" else "free_money")
    share = pl.when(money > 0).then(pl.col(f"{column}_sum") / money)
    value = share if "_share" in name else pl.col(f"{column}_intensity")
    return pl.when(known).then(value)


def _intensity(name: str) -> pl.Expr:
    spread = pl.col(name).std(ddof=0)
    return pl.when(spread > 1e-12 * pl.col(name).abs().max()).then(pl.col(name).mean() / spread)


def _open_bars(bars: pl.LazyFrame, options, limits: pl.DataFrame | None) -> pl.LazyFrame:
    """All bars after the open, also those that lack, with their amount and mean price, and whether they lie at a price limit."""
    ends = pl.DataFrame({"minute": range(options.bar_minutes, options.open_minutes + 1, options.bar_minutes)}, {"minute": pl.Int16}).lazy()
    bars = bars.with_columns(pl.col("instrument").cast(pl.String))
    every = bars.group_by(*KEY, maintain_order=True).agg().join(ends, how="cross", maintain_order="left_right")
    bars = every.join(bars.with_columns(there=True), on=[*KEY, "minute"], how="left", maintain_order="left")
    bars = bars.with_columns(pl.when(pl.col("there").is_null()).then(0.0).otherwise("amount").alias("amount"), locked=pl.lit(False))
    if limits is not None:
        edges = limits.lazy().select(pl.col("date"), pl.col("instrument").cast(pl.String), "limit_up", "limit_down")
        bars = bars.join(edges, on=list(KEY), how="left", maintain_order="left")
        tick = 0.005
        locked = (pl.col("low") >= pl.col("limit_up") - tick) | (pl.col("high") <= pl.col("limit_down") + tick)
        bars = bars.with_columns(locked=locked.fill_null(False))
    price = pl.when(pl.col("volume") > 0).then(pl.col("amount") / pl.col("volume"))
    return bars.select(*KEY, "minute", "amount", "locked", mean_price=price)


def without_auction(bars: pl.LazyFrame, trades: pl.LazyFrame, minutes: int) -> pl.LazyFrame:
    """Bars of so many minutes whose first one may hold the opening auction, with that one's volume and amount as its trades tell them,
    where the stock has trades on the day; prices stay."""
    first = session_minute(pl.col("millisecond")).is_between(OPENING + 1, minutes)
    own = trades.with_columns(pl.col("instrument").cast(pl.String)).group_by(*KEY, maintain_order=True).agg(
        own_amount=_MONEY.filter(first).sum(), own_volume=pl.col("quantity").filter(first).sum())
    bars = bars.with_columns(pl.col("instrument").cast(pl.String)).join(own, on=list(KEY), how="left", maintain_order="left")
    known = (pl.col("minute") == minutes) & pl.col("own_volume").is_not_null()
    return bars.with_columns(pl.when(known).then(f"own_{name}").otherwise(name).alias(name) for name in ("amount", "volume")).drop(
        "own_amount", "own_volume")


def _traded_stocks(bars: pl.LazyFrame, options) -> pl.LazyFrame:
    """The stocks of which enough bars of the day traded."""
    traded = ((pl.col("minute") > OPENING) & (pl.col("volume") > 0)).sum()
    counts = bars.with_columns(pl.col("instrument").cast(pl.String)).group_by(*KEY).agg(bars_traded=traded)
    return counts.filter(pl.col("bars_traded") >= options.min_traded * SESSION / options.bar_minutes).select(*KEY)


def _minute(options) -> pl.Expr:
    return bar_end(session_minute(pl.col("millisecond")), options.bar_minutes).alias("minute")


def _after_open(frame: pl.LazyFrame, options) -> pl.LazyFrame:
    frame = frame.with_columns(_minute(options)).filter(pl.col("minute").is_between(OPENING + 1, options.open_minutes))
    return frame.with_columns(pl.col("instrument").cast(pl.String))


def _active(trades: pl.LazyFrame, options) -> pl.LazyFrame:
    """Active buys less active sells in CNY, the number of trades whose side is known, and of all, by bar."""
    derived = (pl.col("buy_order") - pl.col("sell_order")).sign().fill_null(0)
    side = pl.when(pl.col("side") != 0).then(pl.col("side")).otherwise(derived)
    return (_after_open(trades, options).with_columns(side=side).group_by(*KEY, "minute", maintain_order=True)
            .agg(active=(_MONEY * pl.col("side")).sum(), sided=(pl.col("side") != 0).sum(), traded=pl.len()))


def _ordered(orders: pl.LazyFrame, grid: pl.LazyFrame, options) -> pl.LazyFrame:
    """New buy orders less new sell orders in CNY by bar; cancelled ones are taken off, or passed over."""
    orders = _after_open(orders, options).filter(pl.col("side") != 0)
    if not options.cancels:
        orders = orders.filter(pl.col("kind") > 0)
    orders = orders.join(grid.select(*KEY, "minute", "mean_price"), on=[*KEY, "minute"], how="left", maintain_order="left")
    money = pl.coalesce("price", "mean_price") * pl.col("quantity") * pl.col("side") * pl.col("kind")
    return orders.group_by(*KEY, "minute", maintain_order=True).agg(ordered=money.sum())


def _order_amounts(trades: pl.LazyFrame, options) -> pl.LazyFrame:
    """Amount of every order that traded: date, instrument, order, size; in the trades' order, so that sums have the same last bits."""
    if options.order_size == "observed":
        trades = trades.filter(_minute(options) <= options.open_minutes)
    parts = [trades.group_by(*KEY, pl.col(column).alias("order"), maintain_order=True).agg(size=_MONEY.sum())
             for column in ("buy_order", "sell_order")]
    return pl.concat(parts).filter(pl.col("order").is_not_null())


def _large(trades: pl.LazyFrame, thresholds: pl.LazyFrame, options) -> pl.LazyFrame:
    """What large orders bought less what they sold, and the same of large single trades, in CNY by bar."""
    edges = thresholds.with_columns(pl.col("instrument").cast(pl.String))
    if "trade_threshold" not in edges.collect_schema():
        edges = edges.with_columns(trade_threshold=pl.lit(None, pl.Float64))
    counts = _minute(options) <= options.open_minutes if options.order_size == "observed" else pl.lit(True)
    traded = trades.with_columns(counted=pl.when(counts).then(_MONEY).otherwise(0.0)).with_columns(
        pl.when(pl.col(order).is_not_null()).then(pl.col("counted").sum().over(*KEY, order)).alias(f"{order}_size")
        for order in ("buy_order", "sell_order"))
    after = _after_open(traded, options).join(edges, on="instrument", how="left", maintain_order="left")
    edge = pl.col("threshold") * (1 + ROUNDING)
    net = (pl.col("buy_order_size") > edge).cast(pl.Int8) - (pl.col("sell_order_size") > edge).cast(pl.Int8)
    large_trade = (_MONEY > pl.col("trade_threshold") * (1 + ROUNDING)).cast(pl.Int8) * pl.col("side")
    return after.group_by(*KEY, "minute", maintain_order=True).agg(large=(_MONEY * net).sum(), large_proxy=(_MONEY * large_trade).sum())


def _known_stocks(trades: pl.LazyFrame, made: pl.LazyFrame, thresholds, names, options) -> pl.LazyFrame:
    """Says of which stocks the thresholds and all order numbers are known; only stocks with trades are kept."""
    unknown = (pl.col("buy_order").is_null() | pl.col("sell_order").is_null()).any()
    stocks = trades.group_by(*KEY, maintain_order=True).agg(unnumbered=unknown).with_columns(pl.col("instrument").cast(pl.String))
    found = stocks.join(made, on=list(KEY))
    if not set(names) & set(LARGE_ORDER_FACTORS):
        return found
    edges = thresholds.lazy().with_columns(pl.col("instrument").cast(pl.String))
    if "trade_threshold" not in edges.collect_schema():
        edges = edges.with_columns(trade_threshold=pl.lit(None, pl.Float64))
    found = found.join(edges, on="instrument", how="left")
    return found.with_columns(has_threshold=pl.col("threshold").is_not_null() & ~pl.col("unnumbered"),
                              has_trade_threshold=pl.col("trade_threshold").is_not_null())


# ---- how large is large --------------------------------------------------------------------------------------------------------
def order_sizes(trades: pl.LazyFrame, options: IntradayOptions | None = None) -> pl.LazyFrame:
    """Sums of a day's order amounts and trade amounts, of which `thresholds` are made: no trade needs to be read again.

    Returns:
        date, instrument, count, total, squares (of the amounts of orders that traded, buying and selling ones, or their logarithms) and
        the same of single trades, trade_count, trade_total, trade_squares.
    """
    options = options or IntradayOptions()
    scaled = (lambda amount: amount.log()) if options.large_scale == "log" else (lambda amount: amount)
    parts = []
    for prefix, frame in (("", _order_amounts(trades, options).select(*KEY, "size")), ("trade_", trades.select(*KEY, size=_MONEY))):
        size = scaled(pl.col("size"))
        parts.append(frame.filter(pl.col("size") > 0).group_by(*KEY, maintain_order=True).agg(
            pl.len().cast(pl.Int64).alias(f"{prefix}count"), size.sum().alias(f"{prefix}total"),
            (size * size).sum().alias(f"{prefix}squares")))
    return parts[1].join(parts[0], on=list(KEY), how="left").select(
        "date", pl.col("instrument").cast(pl.String), "count", "total", "squares", "trade_count", "trade_total", "trade_squares").sort(*KEY)


def thresholds(sizes: pl.DataFrame, day: Date, options: IntradayOptions | None = None) -> pl.DataFrame:
    """From which amount an order is large on a day: ``exp(mean(ln a) + k std(ln a))`` of the orders of past days, all pooled.

    Args:
        sizes: rows of `order_sizes` of several days; of those before `day` the last ``threshold_days`` count.

    Returns:
        instrument, threshold, trade_threshold in CNY; null with fewer than ``min_threshold_days`` days.
    """
    options = options or IntradayOptions()
    past = sizes.filter(pl.col("date") < day)
    days = past["date"].unique().sort().tail(options.threshold_days)
    past = past.filter(pl.col("date").is_in(days.implode()))
    made = []
    for prefix in ("", "trade_"):
        count, total, squares = (pl.col(f"{prefix}{name}").sum() for name in ("count", "total", "squares"))
        mean = total / count
        edge = mean + options.large_deviations * (squares / count - mean * mean).clip(0).sqrt()
        edge = edge.exp() if options.large_scale == "log" else edge
        known = pl.col(f"{prefix}count").is_not_null().sum() >= options.min_threshold_days
        made.append(pl.when(known).then(edge).alias(f"{prefix}threshold"))
    return past.group_by("instrument", maintain_order=True).agg(made).sort("instrument")
