"""An exchange for Qlib's back-tests with the rules of the Chinese exchanges: limits by side and board, lots, dated costs.

In a YAML, under ``backtest``:

    exchange_kwargs:
      exchange: {class: AShareExchange, module_path: qlib_ext.portfolio.exchange, kwargs: {deal_price: open, costs: dated}}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Iterable, Mapping

import numpy as np
import pandas as pd
from qlib.backtest.decision import Order, OrderDir
from qlib.backtest.exchange import Exchange
from qlib.backtest.high_performance_ds import BaseQuote, NumpyQuote
from qlib.backtest.position import BasePosition
from qlib.log import get_module_logger
from qlib.utils.index_data import SingleData

from qlib_ext.data.field_reader import FieldReader
from qlib_ext.data.universe import member_spans, trading_calendar
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.market_rules import board_of, kind_of, limit_prices, lot_rule, price_limits, tick_size, trading_costs
from qlib_ext.portfolio.engine import Quotes, order_cost, round_lots, sale_amount
from qlib_ext.store.feature_files import first_few
from qlib_ext.store.limits import LONG_AGO, RATIO_TOLERANCE

logger = get_module_logger("qlib_ext.exchange")
NOISE = 1e-9
"""Part of the cash by which an order may exceed it: sums of the same numbers in another order."""


@dataclass(frozen=True)
class Costs:
    """Costs of an order: max(commission x value, minimum), and the dated stamp duty and transfer fee on top if `duty`.

    Args:
        commission: fractions of the value (buying, selling). minimum: CNY an order.
    """

    commission: tuple[float, float]
    minimum: float = 5.0
    duty: bool = False


COSTS = {"broker": Costs((0.0005, 0.0015)), "dated": Costs((0.00025, 0.00025), duty=True)}
"""What brokers' reports charge (0.2 % both ways), and what an investor pays: a commission, and the duties in force on the day."""


def read_costs(costs: str | Mapping[str, Any] | Costs) -> Costs:
    """Costs by name, or from ``{commission: x or [buying, selling], minimum: 5, duty: bool}``.

    Raises:
        ConfigError: an unknown name or key, or a number that cannot be one of these.
    """
    if isinstance(costs, Costs):
        return costs
    if isinstance(costs, str):
        if costs not in COSTS:
            raise ConfigError(f"costs={costs!r} is unknown: choose one of {sorted(COSTS)}, or give commission, minimum and duty")
        return COSTS[costs]
    if not isinstance(costs, Mapping) or "commission" not in costs or set(costs) - {"commission", "minimum", "duty"}:
        raise ConfigError(f"costs={costs!r}: give one of {sorted(COSTS)}, or a mapping with commission and, if you like, minimum and duty")
    commission, minimum, duty = costs["commission"], costs.get("minimum", 5.0), costs.get("duty", False)
    pair = tuple(commission) if isinstance(commission, (list, tuple)) else (commission, commission)
    if len(pair) != 2 or not all(_is_number(one) and 0 <= one < 0.1 for one in pair):
        raise ConfigError(f"commission={commission!r}: give a fraction of the value below 0.1, or a pair [buying, selling]")
    if not (_is_number(minimum) and minimum >= 0) or not isinstance(duty, bool):
        raise ConfigError(f"minimum={minimum!r} must be CNY an order, duty={duty!r} true or false")
    return Costs((float(pair[0]), float(pair[1])), float(minimum), duty)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class AShareExchange(Exchange):
    """Qlib's exchange with Chinese rules, read from the store in use; the quotes of all days are arrays (`quotes`).

    A stock cannot be bought when the deal price stands at the upper limit, nor sold at the lower one, each by the price at which it
    would be dealt, not by the close. It cannot be traded when the close or the deal price is NaN or the volume 0. Orders are
    rounded to the lots of the board, but all of a position can always be sold. A stock that leaves the universe `codes` stays
    tradable.

    Args:
        start_time, end_time: both included; None = the calendar's own.
        codes: a universe of the store, or a list of codes.
        deal_price: close, open, vwap or any price field of the store, or a pair (buying, selling).
        costs: see `read_costs`. slippage: fraction the price moves against the order, never beyond the limits.

    Raises:
        ConfigError: an unknown universe, cost or frequency. DataError: the store lacks the codes or the field of the deal price.
    """

    def __init__(self, start_time=None, end_time=None, codes: str | Iterable[str] = "all", deal_price: str | tuple[str, str] = "close",
                 costs: str | Mapping[str, Any] = "broker", slippage: float = 0.0, freq: str = "day"):
        if freq != "day":
            raise ConfigError(f"freq={freq!r}: AShareExchange trades daily bars, leave out freq")
        if not (_is_number(slippage) and 0 <= slippage < 0.1):
            raise ConfigError(f"slippage={slippage!r}: give a fraction of the price below 0.1")
        self.costs, self.slippage, self.freq, self.logger = read_costs(costs), slippage, freq, logger
        names = [name.removeprefix("$") for name in ([deal_price] * 2 if isinstance(deal_price, str) else deal_price)]
        if len(names) != 2:
            raise ConfigError(f"deal_price={deal_price!r}: give a price field, or a pair (buying, selling)")
        bars = Bars(_codes(codes, start_time, end_time), start_time, end_time, names)
        prices = {name: bars.lay(name) for name in dict.fromkeys(names)}
        self.quotes = _quotes(bars, prices[names[0]], prices[names[1]], self.costs, slippage)
        self.codes, (self.start_time, self.end_time) = self.quotes.instruments.tolist(), (bars.reader.start, bars.reader.end)
        self._set_qlib_names(names)
        self.quote = _Quote(self.quotes, {**{f"${name}": values for name, values in prices.items()}, "$volume": bars.lay("volume")})

    def _set_qlib_names(self, names: list[str]) -> None:
        """What Qlib's strategies, indicators and the base class look at."""
        quotes = self.quotes
        self.buy_price, self.sell_price = (f"${name}" for name in names)
        duties = quotes.duty_buy, quotes.duty_sell
        self.open_cost, self.close_cost = (float(rate + duty.mean()) for rate, duty in zip(quotes.commission, duties))
        self.min_cost, self.impact_cost, self.trade_unit, self.trade_w_adj_price = quotes.minimum_commission, 0.0, 100, False
        self.limit_threshold = self.volume_threshold = self.buy_vol_limit = self.sell_vol_limit = self.extra_quote = None
        self.limit_type = self.LT_NONE

    def get_deal_price(self, stock_id: str, start_time, end_time, direction: OrderDir, method: str | None = "ts_data_last"):
        """Price x factor at which an order is dealt, slippage included; the last known close where it cannot be dealt."""
        field = {OrderDir.BUY: "buy_price", OrderDir.SELL: "sell_price"}[OrderDir(direction)]
        price = self.quote.get_data(stock_id, start_time, end_time, field, method)
        if method is not None and (price is None or np.isnan(price)):
            price = self.quote.get_data(stock_id, start_time, end_time, "last_close", method)
        return price

    def get_amount_of_trade_unit(self, factor=None, stock_id: str | None = None, start_time=None, end_time=None) -> float | None:
        """Smallest order of a stock on a day; None without a stock: lots go by board."""
        if stock_id is None:
            return None
        cell = self.quote.cell(stock_id, start_time, end_time)
        return float(self.quotes.lot_minimum[cell] / (self.quotes.factor[cell] if factor is None else factor))

    def round_amount_by_trade_unit(self, deal_amount: float, factor=None, stock_id: str | None = None, start_time=None, end_time=None):
        """Amount rounded down to the lots of the stock's board; without a stock as it is (`deal_order` rounds)."""
        if stock_id is None:
            return deal_amount
        known, minimum, step = self._lots(self.quote.cell(stock_id, start_time, end_time))
        return round_lots(float(deal_amount), known if factor is None else float(factor), minimum, step)

    def _lots(self, cell: tuple[int, int]) -> tuple[float, float, float]:
        return self.quotes.factor[cell], self.quotes.lot_minimum[cell], self.quotes.lot_step[cell]

    def _calc_trade_info_by_order(self, order: Order, position: BasePosition | None,
                                  dealt_order_amount: dict) -> tuple[float, float, float]:
        """Price, value and cost of an order; sets its factor and deal_amount. Never more than is held, nor than the cash pays for."""
        cell = self.quote.cell(order.stock_id, order.start_time, order.end_time)
        price = float(self.get_deal_price(order.stock_id, order.start_time, order.end_time, order.direction))
        sell = order.direction == Order.SELL
        lots, order.factor = self._lots(cell), float(self.quotes.factor[cell])
        duty = (self.quotes.duty_sell if sell else self.quotes.duty_buy)[cell]
        rate, least, wanted = float(self.quotes.commission[sell]), float(self.quotes.minimum_commission), float(order.amount)
        cash = np.inf if position is None else position.get_cash()
        if sell:
            held = np.inf if position is None else float(position.get_stock_amount(order.stock_id))
            amount = sale_amount(min(wanted, held), held, *lots)
            if cash + amount * price < order_cost(amount * price, rate, least, duty):
                amount = 0.0
        else:
            amount = round_lots(wanted, *lots)
            if amount * price + order_cost(amount * price, rate, least, duty) > cash + NOISE * abs(cash):
                paid = min(cash / (1 + rate + duty), (cash - least) / (1 + duty)) / price
                amount = round_lots(min(wanted, max(paid, 0.0)), *lots)
        order.deal_amount = amount
        return price, amount * price, order_cost(amount * price, rate, least, duty)


class _Quote(BaseQuote):
    """Qlib's view of the quotes: a value of a stock on a day, or an aggregate over days."""

    def __init__(self, quotes: Quotes, fields: Mapping[str, np.ndarray]):
        self.days, self.stocks = quotes.days, {code: n for n, code in enumerate(quotes.instruments.tolist())}
        self.fields = {"$close": quotes.close, "$factor": quotes.factor, "last_close": quotes.last_close, "limit_buy": ~quotes.can_buy,
                       "limit_sell": ~quotes.can_sell, **fields, "buy_price": quotes.buy_price, "sell_price": quotes.sell_price}
        self._rows: dict[tuple, tuple[int, int]] = {}

    def get_all_stock(self):
        return self.stocks.keys()

    def rows(self, start_time, end_time) -> tuple[int, int]:
        """Positions of the first day and behind the last one."""
        key = start_time, end_time
        if key not in self._rows:
            first, last = (np.datetime64(pd.Timestamp(time), "D") for time in key)
            self._rows[key] = int(np.searchsorted(self.days, first)), int(np.searchsorted(self.days, last, "right"))
        return self._rows[key]

    def cell(self, stock_id: str, start_time, end_time) -> tuple[int, int]:
        """Position of the last of the days, and of the stock.

        Raises:
            DataError: the exchange does not know them.
        """
        first, stop = self.rows(start_time, end_time)
        if stock_id not in self.stocks or first >= stop:
            raise DataError(f"the exchange has no quotes of {stock_id} from {start_time} to {end_time}: "
                            "widen its codes, start_time or end_time")
        return stop - 1, self.stocks[stock_id]

    def get_data(self, stock_id, start_time, end_time, field, method=None):
        if field not in self.fields:
            raise ConfigError(f"the exchange has no field {field}: it has {sorted(self.fields)}")
        first, stop = self.rows(start_time, end_time)
        if stock_id not in self.stocks or first >= stop:
            return None
        values = self.fields[field][first:stop, self.stocks[stock_id]]
        if stop - first == 1:
            return values[0]
        data = SingleData(values.astype(float), pd.DatetimeIndex(self.days[first:stop].astype("datetime64[ns]")))
        return data if method is None else NumpyQuote._agg_data(data, method)


# ---- from the store -------------------------------------------------------------------------------------------------------------
def _codes(codes: str | Iterable[str], start_time, end_time) -> list[str]:
    """Stocks, ETFs and bonds among the codes, or among a universe's members in the span."""
    if isinstance(codes, str):
        edges = zip((start_time, end_time), trading_calendar()[[0, -1]])
        start, end = (pd.Timestamp(own if time is None else time) for time, own in edges)
        universe, spans = codes, member_spans(codes)
        codes = [code for code, parts in spans.items() if any(a <= end and b >= start for a, b in parts)]
        if not codes:
            raise DataError(f"universe {universe!r} has no member from {start:%Y-%m-%d} to {end:%Y-%m-%d}: check start_time and end_time")
    codes = np.array(sorted(set(codes)), dtype=str)
    kept = codes[~np.isin(kind_of(np.char.upper(codes)), ("", "index"))] if len(codes) else codes
    if not len(kept):
        raise DataError(f"none of {first_few(codes.tolist()) or 'the codes'} is a stock, an ETF or a bond: codes look like SH600000")
    return kept.tolist()


class Bars:
    """Field files of the codes that have bars in the span, laid on its days."""

    def __init__(self, codes: list[str], start_time, end_time, prices: list[str], others: Iterable[str] = ()):
        fields = list(dict.fromkeys(["close", *prices, "factor", "volume", "limit_up", "limit_down", "is_st", *others]))
        self.reader = FieldReader({code: [] for code in codes}, start_time, end_time, fields)
        first, stop = self.reader.first, self.reader.stop
        content, bounds = self.reader.content, self.reader.bounds
        self.codes = np.array([code for code in content if bounds(code)[0] < stop and bounds(code)[1] > first], dtype=str)
        self.days = self.reader.calendar[first:stop].to_numpy().astype("datetime64[D]")
        if not len(self.codes):
            raise DataError(f"none of the {len(codes)} codes has a bar from {self.days[0]} to {self.days[-1]}: "
                            "check codes, dates and store")
        for name in ("close", *prices):
            if not self.has(name).any():
                raise DataError(f"the store has no field {name}: prices can be dealt at open, close, vwap or any field that was ingested")
        self.kinds, self.boards = (find(np.char.upper(self.codes)) for find in (kind_of, board_of))       # some folders have sh600000
        self.groups, self.group = np.unique(np.char.add(np.char.add(self.kinds, "/"), self.boards), return_inverse=True)

    def has(self, name: str) -> np.ndarray:
        return np.array([name in self.reader.content[code] for code in self.codes])

    def lay(self, name: str, carried: bool = False, back: int = 0) -> np.ndarray:
        """See `FieldReader.lay`, ``[t, n]``."""
        return self.reader.lay(name, self.codes, back, carried)

    def factor(self, back: int = 0) -> np.ndarray:
        """The factor carried through suspensions ``[t, n]``; 1 where the store has none."""
        return self.lay("factor", True, back) if self.has("factor").any() else np.ones((len(self.days), len(self.codes)))

    def by_group(self, values: np.ndarray) -> np.ndarray:
        """``[t, group]`` laid on ``[t, n]``; one row where all days are alike."""
        values = values[:1] if (values == values[:1]).all() else values
        return values[:, self.group]

    def listed_days(self) -> np.ndarray:
        """Trading days since the first bar ``[t, n]``; stocks there from the first bar of all on were listed long ago."""
        begin = np.array([self.reader.bounds(code)[0] for code in self.codes])
        oldest = min(self.reader.bounds(code)[0] for code in self.reader.content)
        return np.arange(self.reader.first, self.reader.stop)[:, None] - np.where(begin == oldest, -LONG_AGO, begin)


def _quotes(bars: Bars, buy: np.ndarray, sell: np.ndarray, costs: Costs, slippage: float) -> Quotes:
    days, kind, board = bars.days[:, None], *np.array([name.split("/") for name in bars.groups]).T
    close, factor = bars.lay("close"), bars.factor()
    if not bars.has("factor").any():
        logger.warning("the store has no field factor: lots are rounded and limits found as if prices were not adjusted")
    up, down, half = limits(bars, factor)
    open_ = (close > 0) & (factor > 0) & (bars.lay("volume") != 0)
    buy_price = np.minimum(buy * (1 + slippage), np.fmax(np.where(np.isnan(up), np.inf, up), buy))
    sell_price = np.maximum(sell * (1 - slippage), np.fmin(np.where(np.isnan(down), 0.0, down), sell))
    minimum, step = lot_rule(board[None], kind[None], days)
    duty = {"buy": 0.0, "sell": 0.0}
    if costs.duty:
        for side in duty:
            rates = trading_costs(side, days, board[None], kind[None])
            duty[side] = bars.by_group(rates["stamp_duty"] + rates["transfer_fee"])
    return Quotes(days=bars.days, instruments=bars.codes, close=np.where(close > 0, close, np.nan),
                  buy_price=buy_price, sell_price=sell_price, factor=factor,
                  can_buy=open_ & (buy > 0) & ~(buy >= up - half), can_sell=open_ & (sell > 0) & ~(sell <= down + half),
                  lot_minimum=bars.by_group(minimum), lot_step=bars.by_group(step), commission=costs.commission,
                  minimum_commission=costs.minimum, duty_buy=duty["buy"], duty_sell=duty["sell"])


def limits(bars: Bars, factor: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Upper and lower limit x factor ``[t, n]``, NaN where none: the store's, for stocks without them by the market's rules; and half a
    tick, within which a price stands at its limit."""
    up, down = bars.lay("limit_up"), bars.lay("limit_down")
    kind = np.array([name.split("/")[0] for name in bars.groups])
    half = 0.5 * tick_size(kind[None], bars.days[:, None])[:, bars.group] * factor
    without = ~(bars.has("limit_up") & bars.has("limit_down"))
    if not without.any():
        return up, down, half
    before, former, special = bars.lay("close", True, 1), bars.factor(1), bars.lay("is_st")
    raw, ratio = np.round(before / former, 3), former / factor
    reference = np.where(np.abs(ratio - 1) < RATIO_TOLERANCE, raw, raw * ratio * (1 + RATIO_TOLERANCE))
    listed = bars.listed_days()
    for g in range(len(bars.groups)):
        names = np.flatnonzero(without & (bars.group == g))
        if len(names):
            kind, board, days = bars.kinds[names[0]], bars.boards[names[0]], bars.days[:, None]
            rise, fall = price_limits(board, special[:, names], listed[:, names], days, kind)
            high, low = limit_prices(reference[:, names], rise, fall, tick_size(kind, days))
            up[:, names], down[:, names] = high * factor[:, names], low * factor[:, names]
    return up, down, half
