"""Inputs of networks from intraday bars and trades: features of a day, and of each block of a day.

The reports that use such inputs publish no list of them; these are this project's choice. Log returns r lie within the day: the first bar's
is from its own open, and the night is in none. The opening auction (minute 0), where it stands apart, counts in the day's volume and
amount and nowhere else. Features do not change when prices and amounts, or volumes and amounts, are multiplied by one number; where a name
begins with ``log_``, they move by its logarithm, if at all. Null: it cannot be computed; nothing becomes 0 for want of data. A value uses
its stock's own day alone, the later part of it too: it is known after the close.

Of the options count ``bar_minutes``, ``returns``, ``demean``, ``open_minutes``, ``tail_minutes``, ``closing_auction`` (outside: nothing
after 14:57 is used), ``min_traded`` (all features of a day that traded less are null), ``large_deviations`` and ``large_scale``.
"""

from __future__ import annotations

from typing import Callable, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np
import polars as pl

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.intraday_bars import stock_days
from qlib_ext.factors.intraday_options import IntradayOptions
from qlib_ext.factors.session import LAST_CONTINUOUS, OPENING, SESSION, bar_end, session_minute

DAY_FEATURES: Tuple[str, ...] = (
    "log_variance", "variance_open", "variance_tail", "skew", "kurtosis", "down_share", "down_share_open", "down_share_mid",
    "down_share_tail", "intraday_return", "return_open", "return_tail", "volume_open", "volume_tail", "volume_concentration",
    "log_illiquidity", "vwap_deviation", "vwap_open", "vwap_tail", "price_volume_corr", "price_volume_corr_open", "price_volume_corr_mid",
    "price_volume_corr_tail", "trade_size_open", "trade_size_tail", "trade_size_falling", "net_active_buy", "net_active_buy_open",
    "net_active_buy_mid", "net_active_buy_tail", "large_order_share", "large_order_net")
BLOCK_FEATURES: Tuple[str, ...] = (
    "open", "high", "low", "close", "return", "vwap", "volume_share", "amount_share", "volume_concentration", "log_variance",
    "variance_share", "skew", "kurtosis", "down_share", "price_volume_corr", "trend", "log_illiquidity", "trade_size",
    "trade_size_falling", "net_active_buy")
WHOLE_DAY_UNKNOWN = ("vwap", "volume_share", "amount_share", "variance_share", "trade_size")
"""Block features that compare a block with its day: null where the block is the day."""
LEAST_RETURNS = {"skew": 3, "kurtosis": 4, "price_volume_corr": 3}
"""Returns that a feature needs; fewer give the same number always. Others that tell how returns spread need two."""
NO_SPREAD = 1e-20
"""Sum of squares from the mean, over the sum of squares, up to which values count as all the same."""
_KEY = ("date", "instrument")
_PIECE_ROWS = 100_000  # arrays of a piece stay in the processor's cache
Arrays = Dict[str, np.ndarray]


def day_features(bars: pl.LazyFrame, trades: Optional[pl.LazyFrame] = None,
                 options: Optional[IntradayOptions] = None) -> pl.LazyFrame:
    """Features of a day, one row for each (date, instrument) of the bars.

    ``_open`` is the part after the open (30 minutes), ``_tail`` the last 30, ``_mid`` between; without one: the day. Where an ``_open`` and
    a ``_tail`` are shares of the day, the rest is the middle.

        log_variance            ln sum r^2
        variance_*              sum r^2 of the part / of the day
        skew, kurtosis          sqrt(n) sum d^3 / (sum d^2)^1.5;  n sum d^4 / (sum d^2)^2;  d = r - mean r
        down_share              sum r^2 [r < 0] / sum r^2
        intraday_return, return_*   sum r
        volume_*                volume of the part / of the day
        volume_concentration    sum v^2 / (sum v)^2 over bars
        log_illiquidity         ln(sum |r| / amount in CNY)
        vwap_deviation          ln(last price / mean price of the day)
        vwap_*                  ln(mean price of the part / of the day)
        price_volume_corr       correlation of ln close and volume over bars
        trade_size_*            amount per trade in the part (``falling``: in bars with r < 0) / in the day. Needs ``n_trades``
        net_active_buy          (active buys - active sells) / (both), amounts. Needs trades
        large_order_share       amount of large orders / of all, buying and selling ones. Needs order numbers
        large_order_net         (amount of large buying orders - large selling ones) / of all. Needs order numbers

    An order is large above ``exp(mean ln a + k std ln a)`` of the day's own orders a (buying and selling ones of the stock, each with what
    it traded on the day): a measure of how uneven a day's orders are, unlike `hf_large_buy_share`, whose threshold is of past days. A trade
    without a side takes it from its order numbers before the closing auction.

    Args:
        bars: columns date, instrument, minute, open, close, volume, amount, perhaps n_trades, in the form of `qlib_ext.store.intraday`;
            rows of a stock's day stand together, by minute. A bar without prices has no return; one nobody traded in has the return 0.
        trades: columns date, instrument, millisecond, price, quantity, side, buy_order, sell_order; None: their features are null.
        options: `IntradayOptions`; None: its defaults.

    Returns:
        date, instrument and `DAY_FEATURES`, Float64.

    Raises:
        DataError: the bars or trades lack a column. When collected, as `intraday_bars.stock_days`.
    """
    options = options or IntradayOptions()
    parts = {"": (OPENING + 1, SESSION), "_open": (OPENING + 1, options.open_minutes),
             "_mid": (options.open_minutes + 1, SESSION - options.tail_minutes), "_tail": (SESSION - options.tail_minutes + 1, SESSION)}
    made = _of_bars(bars, ("open", "close", "volume", "amount"), DAY_FEATURES, options,
                    lambda rows: _day_values(rows, parts, options.demean))
    if trades is not None:
        trades = _checked_trades(trades, made, options)
        inside = {f"net_active_buy{part}": pl.col("minute").is_between(*ends) for part, ends in parts.items()}
        active = _sided(trades).group_by(*_KEY).agg(_net(pl.col("flow").filter(mask)).alias(name) for name, mask in inside.items())
        made = _with(_with(made, active, _KEY), _large_orders(trades, options), _KEY)
    return _finished(made, _KEY, DAY_FEATURES)


def block_features(bars: pl.LazyFrame, minutes: int, trades: Optional[pl.LazyFrame] = None,
                   options: Optional[IntradayOptions] = None) -> pl.LazyFrame:
    """Features of each block of `minutes` of a day: one row for each (date, instrument, minute) that has a bar, minute being its last.

        open, high, low, close  ln(price / mean price of the block), of the bars in it that traded
        return                  sum r: from the last price before the block, in the first block from its own open
        vwap                    ln(mean price of the block / of the day)
        volume_share, amount_share, variance_share   of the block / of the day
        trend                   sum r / sum |r|
        trade_size              amount per trade in the block / in the day

    and as in `day_features`, over the block: volume_concentration, log_variance, skew, kurtosis, down_share, price_volume_corr,
    log_illiquidity, trade_size_falling, net_active_buy. What tells how returns spread is null in a block of a single bar; what compares
    with the day (`WHOLE_DAY_UNKNOWN`) is null in a block of 240 minutes. Compared is with the whole day, which is known after the close.

    Args:
        bars: as `day_features`, and high, low.
        minutes: of a block: whole bars, a divisor of 240.

    Returns:
        date, instrument, minute Int16 and `BLOCK_FEATURES`, Float64.

    Raises:
        ConfigError: such minutes make no blocks. DataError: as `day_features`.
    """
    options = options or IntradayOptions()
    if type(minutes) is not int or minutes < 1 or SESSION % minutes or minutes % options.bar_minutes:
        raise ConfigError(f"minutes={minutes!r} of a block must be whole bars of {options.bar_minutes} minutes and divide {SESSION}")
    key = (*_KEY, "minute")
    made = _of_bars(bars, ("open", "high", "low", "close", "volume", "amount"), BLOCK_FEATURES, options,
                    lambda rows: _block_values(rows, minutes, options.demean), minutes)
    if trades is not None:
        sided = _sided(_checked_trades(trades, made, options)).with_columns(bar_end(pl.col("minute"), minutes))  # an auction joins no block
        made = _with(made, sided.group_by(*key).agg(net_active_buy=_net(pl.col("flow"))), key)
    return _finished(made, key, BLOCK_FEATURES)


# ---- from bars: sums over runs of rows ------------------------------------------------------------------------------------------
class _Rows:
    """Whole stock-days as arrays, a row for each bar; what did not trade has volume, amount and trades 0, what is unknown NaN."""

    def __init__(self, frame: pl.DataFrame, starts: np.ndarray, returns: str):
        self.starts, self.count = starts[:-1], len(starts) - 1
        self.day = np.repeat(np.arange(self.count), np.diff(starts))
        self.minute = frame["minute"].to_numpy()
        read = {name: frame[name].cast(pl.Float64).fill_null(np.nan).to_numpy() for name in frame.columns if name not in (*_KEY, "minute")}
        self.opened, self.close = read["open"], read["close"]
        self.high, self.low = read.get("high", self.close), read.get("low", self.close)
        self.traded = read["volume"] > 0
        self.volume, self.amount, self.trades = (np.where(self.traded | np.isnan(read["volume"]), read.get(name, np.nan), 0.0)
                                                 for name in ("volume", "amount", "n_trades"))
        self._price(returns)

    def _price(self, returns: str) -> None:
        """`priced` (1: has a return), `r` and `log_close`, both 0 where not."""
        closed, opened = (self.minute > OPENING) & (self.close > 0), self.opened > 0
        index, begin = np.arange(len(closed)), self.starts[self.day]
        priced, before = closed & opened, np.full(len(closed), -1)
        if returns == "close":
            priced = closed & (_last_true(priced) >= begin)
            before[1:] = _last_true(priced)[:-1]
        follows = before >= begin
        self.log_close = np.log(self.close, out=np.zeros(len(closed)), where=priced)
        own = np.log(self.opened, out=np.zeros(len(closed)), where=priced & ~follows)
        self.r = np.where(priced, self.log_close - np.where(follows, self.log_close[np.where(follows, before, index)], own), 0.0)
        self.priced = priced.astype(float)


def _last_true(mask: np.ndarray) -> np.ndarray:
    """Index of the last true row up to each row, -1 before the first."""
    return np.maximum.accumulate(np.where(mask, np.arange(len(mask)), -1))


def _sums(rows: _Rows, where: np.ndarray, key: np.ndarray, demean: bool) -> Arrays:
    """Sums over runs of equal `key` among the rows `where`, an entry for each, with its key, first row, and that one's place in `where`."""
    start = np.flatnonzero(np.diff(key, prepend=-1))
    length = np.diff(np.append(start, len(key)))
    priced, r, x = (one[where] for one in (rows.priced, rows.r, rows.log_close))
    volume, amount, trades = (one[where] for one in (rows.volume, rows.amount, rows.trades))

    def total(values):
        return np.add.reduceat(values, start) if len(start) else np.zeros(0)

    def rest(values, mean):
        return (values - np.repeat(mean, length)) * priced

    n, squares, falling = total(priced), r * r, r < 0
    d = rest(r, total(r) / n if demean else np.zeros(len(n)))
    dx, dv, square = rest(x, total(x) / n), rest(volume, total(volume * priced) / n), d * d
    return {
        "key": key[start], "row": where[start], "place": start, "n": n, "r": total(r), "moved": total(np.abs(r)),
        "squares": total(squares), "down": total(squares * falling), "second": total(square), "third": total(square * d),
        "fourth": total(square * square), "volume": total(volume), "volume_squares": total(volume * volume), "amount": total(amount),
        "trades": total(trades), "falling_amount": total(np.where(falling, amount, 0.0)),
        "falling_trades": total(np.where(falling, trades, 0.0)), "xx": total(dx * dx), "vv": total(dv * dv), "xv": total(dx * dv),
        "x_squares": total(x * x), "v_squares": total(volume * volume * priced), "bars": total(rows.traded[where].astype(float))}


def _by_day(sums: Arrays, count: int) -> Arrays:
    """Sums of runs with an entry for each stock-day; NaN where it has no run."""
    found = {}
    for name, values in sums.items():
        found[name] = np.full(count, np.nan)
        found[name][sums["key"]] = values
    return found


def _over(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; NaN where whole is not above 0."""
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(values, out=np.full(len(values), np.nan), where=values > 0)


def _from(least: int, sums: Arrays, values: np.ndarray) -> np.ndarray:
    return np.where(sums["n"] >= least, values, np.nan)


def _shape(s: Arrays) -> Arrays:
    """Features that a day and a block have in common, of one part."""
    spread = np.where(s["second"] > NO_SPREAD * s["squares"], s["second"], np.nan)
    both = np.where((s["xx"] > NO_SPREAD * s["x_squares"]) & (s["vv"] > NO_SPREAD * s["v_squares"]), s["xx"] * s["vv"], np.nan)
    size = _over(s["amount"], s["trades"])
    found = {"skew": np.sqrt(s["n"]) * s["third"] / spread**1.5, "kurtosis": s["n"] * s["fourth"] / spread**2,
             "price_volume_corr": np.clip(s["xv"] / np.sqrt(both), -1, 1), "log_variance": _log(s["squares"]),
             "down_share": _over(s["down"], s["squares"]), "trend": _over(s["r"], s["moved"]),
             "log_illiquidity": _log(_over(s["moved"], s["amount"])),
             "trade_size_falling": _over(_over(s["falling_amount"], s["falling_trades"]), size),
             "volume_concentration": _over(s["volume_squares"], s["volume"] ** 2)}
    found = {name: _from(LEAST_RETURNS.get(name, 2), s, values) for name, values in found.items()}
    return {**found, "return": _from(1, s, s["r"]), "size": size, "log_vwap": _log(_over(s["amount"], s["volume"]))}


def _whole_days(rows: _Rows, demean: bool) -> Tuple[Arrays, Arrays]:
    """Sums and features of the days: ``day_volume``, ``day_amount`` and ``day_vwap`` are with the opening auction."""
    where = np.flatnonzero(rows.minute > OPENING)
    sums = _by_day(_sums(rows, where, rows.day[where], demean), rows.count)
    volume, amount = np.add.reduceat(rows.volume, rows.starts), np.add.reduceat(rows.amount, rows.starts)
    return sums, {**_shape(sums), "day_volume": volume, "day_amount": amount, "day_vwap": _log(_over(amount, volume))}


def _last_price(rows: _Rows) -> np.ndarray:
    """ln close of each day's last bar that traded in the session."""
    last = np.maximum.reduceat(np.where(rows.traded & (rows.minute > OPENING), np.arange(len(rows.minute)), -1), rows.starts)
    return np.where(last >= 0, _log(rows.close[last]), np.nan)


def _day_values(rows: _Rows, parts: Dict[str, Tuple[int, int]], demean: bool) -> Tuple[np.ndarray, np.ndarray, Arrays]:
    """First row of each day, its bars that traded, its features."""
    sums, day = _whole_days(rows, demean)
    found = {**day, "intraday_return": day["return"], "vwap_deviation": _last_price(rows) - day["day_vwap"]}
    for part, (first, last) in parts.items():
        if not part:
            continue
        where = np.flatnonzero((rows.minute >= first) & (rows.minute <= last))
        own = _by_day(_sums(rows, where, rows.day[where], demean), rows.count)
        shape = _shape(own)
        found.update({f"variance{part}": _from(2, own, _over(own["squares"], sums["squares"])), f"return{part}": shape["return"],
                      f"volume{part}": _over(own["volume"], day["day_volume"]), f"vwap{part}": shape["log_vwap"] - day["day_vwap"],
                      f"trade_size{part}": _over(shape["size"], day["size"]),
                      **{f"{name}{part}": shape[name] for name in ("down_share", "price_volume_corr")}})
    return rows.starts, sums["bars"], found


def _block_values(rows: _Rows, minutes: int, demean: bool) -> Tuple[np.ndarray, np.ndarray, Arrays]:
    """First row of each block, its day's bars that traded, its features."""
    whole, day = _whole_days(rows, demean)
    where = np.flatnonzero(rows.minute > OPENING)
    blocks = SESSION // minutes
    sums = _sums(rows, where, rows.day[where] * blocks + (rows.minute[where] - 1) // minutes, demean)
    shape, of = _shape(sums), sums["key"] // blocks
    prices = _block_prices(rows, where, sums["place"])
    found = {**shape, **{name: _log(price) - shape["log_vwap"] for name, price in prices.items()},
             "vwap": shape["log_vwap"] - day["day_vwap"][of], "volume_share": _over(sums["volume"], day["day_volume"][of]),
             "amount_share": _over(sums["amount"], day["day_amount"][of]),
             "variance_share": _from(2, sums, _over(sums["squares"], whole["squares"][of])),
             "trade_size": _over(shape["size"], day["size"][of])}
    if blocks == 1:
        found.update(dict.fromkeys(WHOLE_DAY_UNKNOWN, np.full(len(of), np.nan)))
    return sums["row"], whole["bars"][of], found


def _block_prices(rows: _Rows, where: np.ndarray, start: np.ndarray) -> Arrays:
    """Prices of runs of rows that begin at `start` of `where`: of the bars that traded; NaN where none did."""
    if not len(start):
        return dict.fromkeys(("open", "high", "low", "close"), np.zeros(0))
    traded, index = rows.traded[where], np.arange(len(where))
    first = np.minimum.reduceat(np.where(traded, index, len(where)), start)
    last = np.maximum.reduceat(np.where(traded, index, -1), start)
    any_, first, last = last >= 0, np.minimum(first, len(where) - 1), np.maximum(last, 0)
    return {"open": np.where(any_, rows.opened[where][first], np.nan), "close": np.where(any_, rows.close[where][last], np.nan),
            "high": np.fmax.reduceat(np.where(traded, rows.high[where], np.nan), start),
            "low": np.fmin.reduceat(np.where(traded, rows.low[where], np.nan), start)}


def _of_bars(bars: pl.LazyFrame, columns: Sequence[str], names: Sequence[str], options: IntradayOptions, build: Callable,
             minutes: int = 0) -> pl.LazyFrame:
    """Key columns, the features of `names` (null those that need trades) and whether the day traded enough, ``kept``."""
    held = bars.collect_schema()
    lacks = [name for name in (*_KEY, "minute", *columns) if name not in held]
    if lacks:
        raise DataError(f"bars lack the columns {lacks}: give the form of qlib_ext.store.intraday")
    used = [*_KEY, "minute", *columns, *(["n_trades"] if "n_trades" in held else [])]
    if options.closing_auction == "outside":
        bars = bars.filter(pl.col("minute") <= LAST_CONTINUOUS)
    keys = {"date": held["date"], "instrument": held["instrument"], **({"minute": pl.Int16} if minutes else {})}
    schema = pl.Schema({**keys, **dict.fromkeys(names, pl.Float64), "kept": pl.Boolean})
    return bars.select(used).map_batches(lambda frame: _values(frame, schema, options, build, minutes), schema=schema,
                                         predicate_pushdown=False, projection_pushdown=False, slice_pushdown=False)


def _values(frame: pl.DataFrame, schema: pl.Schema, options: IntradayOptions, build: Callable, minutes: int) -> pl.DataFrame:
    starts, found = stock_days(frame, options.bar_minutes), []
    for first, last in _pieces(starts):
        piece = frame[int(starts[first]):int(starts[last])]
        with np.errstate(invalid="ignore", divide="ignore"):
            rows, bars, values = build(_Rows(piece, starts[first:last + 1] - starts[first], options.returns))
        keys = piece[rows].select(name for name in (*_KEY, "minute") if name in schema)
        if minutes:
            keys = keys.with_columns(bar_end(pl.col("minute"), minutes))
        features = [name for name in schema if name not in (*keys.columns, "kept")]
        none = np.full(len(rows), np.nan)
        found.append(keys.with_columns(*(pl.Series(name, values.get(name, none), nan_to_null=True) for name in features),
                                       pl.Series("kept", bars >= max(options.min_traded * SESSION / options.bar_minutes, 1))))
    return pl.concat(found) if found else schema.to_frame()


def _pieces(starts: np.ndarray) -> Iterator[Tuple[int, int]]:
    """First and last + 1 stock-day of parts of about `_PIECE_ROWS` rows."""
    first, days = 0, len(starts) - 1
    while first < days:
        last = max(int(np.searchsorted(starts, starts[first] + _PIECE_ROWS, "right")) - 1, first + 1)
        yield first, min(last, days)
        first = last


# ---- from trades --------------------------------------------------------------------------------------------------------------
def _checked_trades(trades: pl.LazyFrame, made: pl.LazyFrame, options: IntradayOptions) -> pl.LazyFrame:
    """date, instrument as in the bars, minute, amount, side, buy_order, sell_order."""
    held, needed = trades.collect_schema(), ("date", "instrument", "millisecond", "price", "quantity", "side", "buy_order", "sell_order")
    lacks = [name for name in needed if name not in held]
    if lacks:
        raise DataError(f"trades lack the columns {lacks}: give the form of qlib_ext.store.intraday")
    trades = trades.select("date", pl.col("instrument").cast(made.collect_schema()["instrument"]), "side", "buy_order", "sell_order",
                           minute=session_minute(pl.col("millisecond")), amount=pl.col("price") * pl.col("quantity"))
    return trades.filter(pl.col("minute") <= LAST_CONTINUOUS) if options.closing_auction == "outside" else trades


def _sided(trades: pl.LazyFrame) -> pl.LazyFrame:
    """date, instrument, minute and ``flow``: amount of active buys, less than 0 of active sells; null where neither is known."""
    later = (pl.col("buy_order") - pl.col("sell_order")).sign()
    side = pl.when(pl.col("side") != 0).then(pl.col("side")).when(pl.col("minute").is_between(OPENING + 1, LAST_CONTINUOUS)).then(later)
    return trades.select(*_KEY, "minute", flow=pl.col("amount") * pl.when(side != 0).then(side))


def _net(flow: pl.Expr) -> pl.Expr:
    both = flow.abs().sum()
    return pl.when(both > 0).then(flow.sum() / both)


def _large_orders(trades: pl.LazyFrame, options: IntradayOptions) -> pl.LazyFrame:
    """large_order_share and large_order_net by date and instrument; null where an order number is missing."""
    amount = pl.col("amount")
    sides = [trades.group_by(*_KEY, pl.col(name).alias("order"), maintain_order=True).agg(amount.sum()).with_columns(buys=pl.lit(buys))
             for name, buys in (("buy_order", 1), ("sell_order", -1))]
    scaled = amount.log() if options.large_scale == "log" else amount
    edge = scaled.mean() + options.large_deviations * scaled.std(ddof=0)
    large = scaled > edge + 1e-9 * scaled.abs().max()  # of equal sizes none is large, whatever the rounding
    known = pl.col("order").is_not_null().all()
    return pl.concat(sides).filter(amount > 0).group_by(*_KEY, maintain_order=True).agg(
        large_order_share=pl.when(known).then(amount.filter(large).sum() / amount.sum()),
        large_order_net=pl.when(known).then((amount * pl.col("buys")).filter(large).sum() / amount.sum()))


def _with(made: pl.LazyFrame, features: pl.LazyFrame, key: Sequence[str]) -> pl.LazyFrame:
    """Put features of trades in place of the null columns of their names."""
    names = [name for name in features.collect_schema() if name not in key]
    return made.drop(names).join(features, on=list(key), how="left", maintain_order="left")


def _finished(made: pl.LazyFrame, key: Sequence[str], names: Sequence[str]) -> pl.LazyFrame:
    return made.select(*key, *(pl.when(pl.col("kept")).then(pl.col(name)).alias(name) for name in names))
