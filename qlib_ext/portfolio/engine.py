"""A fast daily back-test on arrays, and the rule that turns target weights into trades.

The rule (`plan_trades`) is one function: the strategy calls it in Qlib's loop, `simulate` calls it here, and both give the same
fills, cash and report. Units are Qlib's: prices x factor, amounts = shares / factor, so a split changes neither value nor amount.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Callable, NamedTuple

import numpy as np
import pandas as pd

from qlib_ext.errors import DataError, ShapeError
from qlib_ext.jit import compiled

ROUNDS = 2
"""Estimates of a rebalance's cost: each is the cost of the trades planned with the one before."""
SHARE = 1e-6
"""Part of a share by which floating point may miss a whole number of lots."""
NEAR = 2e-5
"""A sale that leaves less than this part of a position takes all of it: Qlib's `Position` forgets what is left below 1e-5."""
_DAILY = ("close", "buy_price", "sell_price", "factor", "can_buy", "can_sell", "lot_minimum", "lot_step", "duty_buy", "duty_sell")


def last_known(values: np.ndarray) -> np.ndarray:
    """Values ``[t, n]`` with each NaN replaced by the last value before it in its column; NaN before the first."""
    place = np.where(np.isfinite(values), np.arange(len(values))[:, None], -1)
    place = np.maximum.accumulate(place, axis=0)
    return np.where(place < 0, np.nan, np.take_along_axis(values, np.maximum(place, 0), axis=0))


@dataclass(frozen=True)
class Quotes:
    """What can be traded when, and what it costs. Arrays are ``[t, n]`` (day, stock) or broadcast to it; prices are x factor.

    Cost of an order: max(commission x value, minimum_commission) + duty x value; 0 when nothing was dealt.

    Args:
        days: datetime64[D] ``[t]``, ascending. instruments: str ``[n]``, ascending.
        close: NaN where suspended or not listed.
        buy_price, sell_price: what a purchase and a sale deal at, slippage included; NaN where there is no price.
        factor: real shares = amount x factor; carried through suspensions, NaN before the listing.
        can_buy, can_sell: bool; True only where price, factor and close are known.
        lot_minimum, lot_step: smallest order and step above it, in real shares.
        commission: fractions of the value (buying, selling). minimum_commission: CNY an order.
        duty_buy, duty_sell: fractions of the value on top of the commission.

    Raises:
        ShapeError: an array does not broadcast to ``[t, n]``. DataError: days or instruments not ascending, a price or factor that is
            not positive where trading is allowed, lots below 1, negative costs.
    """

    days: np.ndarray
    instruments: np.ndarray
    close: np.ndarray
    buy_price: np.ndarray
    sell_price: np.ndarray
    factor: np.ndarray
    can_buy: np.ndarray
    can_sell: np.ndarray
    lot_minimum: np.ndarray
    lot_step: np.ndarray
    commission: tuple[float, float]
    minimum_commission: float
    duty_buy: np.ndarray | float = 0.0
    duty_sell: np.ndarray | float = 0.0

    def __post_init__(self):
        kept = {"days": np.asarray(self.days, "datetime64[D]"), "instruments": np.asarray(self.instruments, str)}
        shape = len(kept["days"]), len(kept["instruments"])
        for name in _DAILY:
            values = np.atleast_2d(np.asarray(getattr(self, name), bool if name.startswith("can_") else np.float64))
            if values.ndim > 2 or any(size not in (1, whole) for size, whole in zip(values.shape, shape)):
                raise ShapeError(f"quotes: {name} has shape {values.shape}; give [t, n] = {shape}, or what broadcasts to it")
            kept[name] = np.broadcast_to(np.ascontiguousarray(np.broadcast_to(values, (len(values), shape[1]))), shape)
        for name, values in kept.items():
            object.__setattr__(self, name, values)
        self._check()

    def _check(self) -> None:
        for name in ("days", "instruments"):
            values = getattr(self, name)
            if values.ndim != 1 or not len(values) or (values[1:] <= values[:-1]).any():
                raise DataError(f"quotes: {name} must be a non-empty list in ascending order, each once")
        for allowed, price in ((self.can_buy, self.buy_price), (self.can_sell, self.sell_price)):
            bad = allowed & ~((price > 0) & (price < np.inf) & (self.factor > 0) & (self.factor < np.inf) & (self.close > 0))
            if bad.any():
                t, n = np.argwhere(bad)[0]
                raise DataError(f"quotes: {self.instruments[n]} on {self.days[t]} may be traded at price {price[t, n]} with factor "
                                f"{self.factor[t, n]} and close {self.close[t, n]} ({bad.sum()} such cells): where one is unknown, "
                                "can_buy and can_sell must be False")
        lowest = {"lot_minimum": 1, "lot_step": 1, "duty_buy": 0, "duty_sell": 0, "commission": 0, "minimum_commission": 0}
        for name, least in lowest.items():
            if not (np.asarray(getattr(self, name)) >= least).all() or np.shape(self.commission) != (2,):
                raise DataError(f"quotes: {name} must be known and at least {least} everywhere; commission is a pair (buying, selling)")

    @cached_property
    def last_close(self) -> np.ndarray:
        """Close of the day, else the last one before it; NaN before the first. ``[t, n]``"""
        return last_known(self.close)

    def between(self, start, end) -> Quotes:
        """The days from `start` to `end`, both included.

        Raises:
            DataError: there is none.
        """
        first, stop = np.searchsorted(self.days, np.datetime64(start, "D")), np.searchsorted(self.days, np.datetime64(end, "D"), "right")
        if first >= stop:
            raise DataError(f"no quotes from {start} to {end}: they run from {self.days[0]} to {self.days[-1]}")
        part = {one.name: getattr(self, one.name) for one in fields(self)}
        return Quotes(**{**part, **{name: part[name][first:stop] for name in ("days", *_DAILY)}})


# ---- one order: compiled, float by float -------------------------------------------------------------------------------------------
@compiled
def order_cost(value: float, commission: float, minimum: float, duty: float) -> float:
    """Cost in CNY of an order of `value` CNY: max(commission x value, minimum) + duty x value; 0 where nothing was dealt."""
    return max(commission * value, minimum) + duty * value if value > 0 else 0.0


@compiled
def round_lots(amount: float, factor: float, minimum: float, step: float) -> float:
    """Amount rounded down to what an exchange takes: nothing, or `minimum` real shares and `step` more any number of times.

    Rounding what was rounded changes nothing.
    """
    shares = amount * factor + SHARE
    return (minimum + np.floor((shares - minimum) / step) * step) / factor if shares >= minimum else 0.0


@compiled
def sale_amount(wanted: float, held: float, factor: float, minimum: float, step: float) -> float:
    """Amount that a sale of `wanted` deals: lots, rounded down; all of a position (odd lots too) where all, or nearly all, is wanted."""
    return held if wanted >= held * (1 - NEAR) else round_lots(wanted, factor, minimum, step)


# ---- all orders of a day ------------------------------------------------------------------------------------------------------------
def plan_trades(weight: np.ndarray, amount: np.ndarray, cash: float, quotes: Quotes, t: int, last_price: np.ndarray) -> np.ndarray:
    """Signed amounts to trade on a day (negative = sell), to be dealt sales first.

    The account is worth V = cash + sum amount x price: the sell price of the day, without one the last price known. A name's target is
    weight x (V - estimated cost of the trades). Names that cannot be traded on the side needed are held, and their weight is not
    spread over others. Sales are rounded down to lots, but a target of 0 sells all. Purchases are rounded down to lots; when the cash
    of the day (sales less their costs included) does not pay for all, one ratio scales every purchase before rounding.

    Args:
        weight: ``[n]`` target, fractions of the account; the rest of 1 stays cash.
        amount: ``[n]`` held. cash: CNY.
        t: position of the day in `quotes`. last_price: ``[n]`` last known price x factor before the day, NaN where none.

    Raises:
        ShapeError: not ``[n]``. DataError: a weight is NaN or negative, their sum above 1, or a position has no price at all.
    """
    trade, plan = np.zeros(len(quotes.instruments)), _plan(weight, amount, cash, quotes, t, last_price)
    trade[plan.names] = plan.trade
    return trade


class _Plan(NamedTuple):
    """What is dealt on a day: stocks ``[m]``, then ``[m]`` signed amount, price, value and cost; `cash` when all is done."""

    names: np.ndarray
    trade: np.ndarray
    price: np.ndarray
    value: np.ndarray
    cost: np.ndarray
    cash: float


def _plan(weight: np.ndarray, amount: np.ndarray, cash: float, quotes: Quotes, t: int, last_price: np.ndarray) -> _Plan:
    weight, amount, last_price = (np.array(values, np.float64) for values in (weight, amount, last_price))
    _check_target(weight, amount, last_price, quotes, t)
    buy, sell = quotes.buy_price[t], quotes.sell_price[t]
    lots = quotes.factor[t], quotes.lot_minimum[t], quotes.lot_step[t]
    sides = (buy, quotes.duty_buy[t]), (sell, quotes.duty_sell[t])
    trade, cost = np.zeros(len(weight)), np.zeros(len(weight))
    left = _deal(weight, amount, float(cash), last_price, quotes.can_buy[t], quotes.can_sell[t], lots, *sides,
                 (*map(float, quotes.commission), float(quotes.minimum_commission)), trade, cost)
    if np.isnan(left):
        lost = quotes.instruments[(amount > 0) & np.isnan(last_price) & np.isnan(sell)]
        raise DataError(f"{quotes.days[t]}: {', '.join(lost[:5])} held, but no price is known up to that day: value it in last_price")
    names = np.flatnonzero(trade)
    trade = trade[names]
    price = np.where(trade > 0, buy[names], sell[names])
    return _Plan(names, trade, price, np.abs(trade) * price, cost[names], left)


@compiled
def _deal(weight, amount, cash, last_price, can_buy, can_sell, lots, buy, sell, rates, trade, cost):
    """The rule of `plan_trades`: fills trade and cost ``[n]``, returns the cash left; NaN where the account has no value.

    `lots`: factor, minimum, step. `buy`, `sell`: price, duty. `rates`: commission buying, selling, minimum.
    """
    worth, change, total, estimate, left = np.zeros(len(weight)), np.zeros(len(weight)), cash, 0.0, cash
    for n in range(len(weight)):
        if amount[n] > 0:
            worth[n] = amount[n] * (last_price[n] if np.isnan(sell[0][n]) else sell[0][n])
            total += worth[n]
    if np.isnan(total):
        return total
    for _ in range(ROUNDS + 1):
        for n in range(len(weight)):
            change[n] = weight[n] * max(total - estimate, 0.0) - worth[n]
            if not (can_buy[n] if change[n] > 0 else can_sell[n]):
                change[n] = 0.0
        budget = _sell(change, weight, amount, cash, lots, sell, rates, trade, cost)
        left = budget - _buy_within(change, budget, lots, buy, rates, trade, cost)
        estimate = cost.sum()
    return left


@compiled
def _sell(change, weight, amount, cash, lots, sell, rates, trade, cost):
    """Sales for `change` CNY (negative = sell); returns the cash after them."""
    price, duty = sell
    losses, budget = 0.0, cash
    for n in range(len(change)):
        trade[n] = cost[n] = 0.0
        if change[n] < 0:
            wanted = amount[n] if weight[n] == 0 else -change[n] / price[n]
            trade[n] = -sale_amount(wanted, amount[n], lots[0][n], lots[1][n], lots[2][n])
            cost[n] = order_cost(-trade[n] * price[n], rates[1], rates[2], duty[n])
            losses += min(-trade[n] * price[n] - cost[n], 0.0)
    for n in range(len(change)):
        net = -trade[n] * price[n] - cost[n] if trade[n] < 0 else 0.0
        if net < 0 and cash + losses < 0:                            # it costs more than it brings, and no cash for it
            trade[n] = cost[n] = net = 0.0
        budget += net
    return budget


@compiled
def _buy_within(change, budget, lots, buy, rates, trade, cost):
    """Purchases for `change` CNY (positive = buy), all scaled by one ratio where the budget needs it; returns the cash spent."""
    spent, ratio = _buy(change, 1.0, lots, buy, rates, trade, cost), 1.0
    if spent <= budget:
        return spent
    for n in range(len(change)):
        if trade[n] == 0:                                            # less than a lot even unscaled
            change[n] = 0.0
    for _ in range(3):                                               # every second ratio is one that can be paid
        wanted = paid = 0.0
        for n in range(len(change)):
            if change[n] > 0:
                wanted += change[n]
                paid += order_cost(change[n] * ratio, rates[0], rates[2], buy[1][n])
        ratio = max(budget - paid, 0.0) / wanted
    spent = _buy(change, ratio, lots, buy, rates, trade, cost)
    while spent > max(budget, 0.0):                                  # by the tolerance of `round_lots`
        ratio *= 1 - 1e-6
        spent = _buy(change, ratio, lots, buy, rates, trade, cost)
    return spent


@compiled
def _buy(change, ratio, lots, buy, rates, trade, cost):
    price, duty = buy
    spent = 0.0
    for n in range(len(change)):
        if change[n] > 0:
            trade[n] = round_lots(change[n] * ratio / price[n], lots[0][n], lots[1][n], lots[2][n])
            cost[n] = order_cost(trade[n] * price[n], rates[0], rates[2], duty[n])
            spent += trade[n] * price[n] + cost[n]
    return spent


def _check_target(weight: np.ndarray, amount: np.ndarray, last_price: np.ndarray, quotes: Quotes, t: int) -> None:
    shape = (len(quotes.instruments),)
    for name, values in (("weight", weight), ("amount", amount), ("last_price", last_price)):
        if np.shape(values) != shape:
            raise ShapeError(f"{quotes.days[t]}: {name} has shape {np.shape(values)}; give one number for each of {shape[0]} instruments")
    total = weight.sum()
    if not total <= 1 + 1e-5 or not weight.min() >= 0:
        bad = quotes.instruments[~(weight >= 0)]
        what = f"weights of {', '.join(bad[:5])} are NaN or negative" if len(bad) else f"weights sum to {total:.6g}, more than 1"
        raise DataError(f"{quotes.days[t]}: target {what}; give fractions of the account, 0 for what is not wanted")


@dataclass(frozen=True)
class Result:
    """What a back-test leaves.

    Args:
        report: index datetime; account, return (before costs), total_turnover, turnover, total_cost, cost, value, cash, bench, as
            Qlib's `report_normal` defines them; bench is NaN without one.
        positions: ``[t, n]`` amounts after the day's trades.
        fills: one row an order dealt: datetime, instrument, amount (negative = sold), price, value and cost in CNY.
        quotes: what was traded on.
    """

    report: pd.DataFrame
    positions: np.ndarray
    fills: pd.DataFrame
    quotes: Quotes

    def weights(self) -> np.ndarray:
        """Fractions of the account at the close, ``[t, n]``; suspended stocks at their last close. The rest of 1 is cash."""
        held = self.positions > 0
        return np.where(held, self.positions * self.quotes.last_close, 0.0) / self.report["account"].to_numpy()[:, None]


Decide = Callable[[int, np.ndarray, float], "np.ndarray | None"]


def simulate(quotes: Quotes, decide: Decide, cash: float, bench: np.ndarray | None = None) -> Result:
    """Trade day by day from cash: `decide`, the trades of `plan_trades` (sales first), then the account at the close.

    Args:
        decide: ``(t, weight [n], value)`` -> target weights ``[n]``, or None to leave the portfolio alone. It is called before the trades
            of day t, with the weights and the account value at the close before.
        cash: CNY at the start. bench: ``[t]`` returns of a benchmark.

    Raises:
        ShapeError: bench is not ``[t]``. DataError: cash is not positive; as `plan_trades`.
    """
    if not 0 < cash < np.inf:
        raise DataError(f"a back-test starts with a positive amount of cash, got {cash!r}")
    shape = len(quotes.days), len(quotes.instruments)
    if bench is not None and np.shape(bench) != shape[:1]:
        raise ShapeError(f"bench has shape {np.shape(bench)}; give one return for each of the {shape[0]} days")
    amount, held, start = np.zeros(shape[1]), np.zeros(0, int), float(cash)
    cash = account = start
    positions, plans, days, book = np.zeros(shape), [], [], np.empty((shape[0], 5))
    last = quotes.last_close
    for t in range(shape[0]):
        before = last[t - 1] if t else np.full(shape[1], np.nan)
        weight, turnover, cost = np.zeros(shape[1]), 0.0, 0.0
        weight[held] = amount[held] * before[held] / account
        target = decide(t, weight, account)
        if target is not None:
            plan = _plan(target, amount, cash, quotes, t, before)
            amount[plan.names] += plan.trade
            cash, turnover, cost, held = plan.cash, plan.value.sum(), plan.cost.sum(), np.flatnonzero(amount)
            plans.append(plan)
            days.append(t)
        positions[t] = amount
        value = (amount[held] * last[t][held]).sum()
        account = value + cash
        book[t] = account, turnover, cost, value, cash
    return Result(_report(quotes, book, start, bench), positions, _fills(quotes, plans, days), quotes)


def _report(quotes: Quotes, book: np.ndarray, start: float, bench: np.ndarray | None) -> pd.DataFrame:
    """Qlib's `report_normal` of account, turnover, cost, value and cash ``[t, 5]`` of the days; `start`: the account before them."""
    account, turnover, cost, value, cash = book.T
    before = np.append(start, account[:-1])
    columns = {"account": account, "return": (account - before + cost) / before, "total_turnover": turnover.cumsum(),
               "turnover": turnover / before, "total_cost": cost.cumsum(), "cost": cost / before, "value": value, "cash": cash,
               "bench": np.full(len(book), np.nan) if bench is None else np.asarray(bench, np.float64)}
    return pd.DataFrame(columns, index=_stamps(quotes.days).rename("datetime"))


def _fills(quotes: Quotes, plans: list[_Plan], days: list[int]) -> pd.DataFrame:
    def column(name: str) -> np.ndarray:
        return np.concatenate([np.zeros(0), *(getattr(plan, name) for plan in plans)])

    day = np.repeat(np.array(days, int), [len(plan.names) for plan in plans])
    codes = pd.Series(quotes.instruments).array.take(column("names").astype(int))
    return pd.DataFrame({"datetime": _stamps(quotes.days[day]), "instrument": codes, "amount": column("trade"),
                         **{name: column(name) for name in ("price", "value", "cost")}})


def _stamps(days: np.ndarray) -> pd.DatetimeIndex:
    return pd.DatetimeIndex(days.astype("datetime64[ns]"))
