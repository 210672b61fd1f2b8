"""The fast engine and Qlib's executor on `AShareExchange`: the same fills, cash, positions and report, day by day."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import qlib
from qlib.backtest import backtest
from qlib.backtest.decision import Order, TradeDecisionWO
from qlib.strategy.base import BaseStrategy
from test_exchange import start_qlib, write_store

from qlib_ext.market_rules import board_of, limit_prices, price_limits
from qlib_ext.portfolio.engine import plan_trades, simulate
from qlib_ext.portfolio.exchange import AShareExchange

CODES = np.array(sorted([f"SH60000{n}" for n in range(6)] + [f"SZ00000{n}" for n in range(4)] + [f"SZ30000{n}" for n in range(5)]
                        + [f"SH68800{n}" for n in range(5)] + [f"BJ83000{n}" for n in range(3)]))
LISTED = {"SH600005": 20, "SH688004": 10, "SZ300004": 30}
ENDS = {"SZ000003": 40}


def random_bars(seed: int, days: np.ndarray) -> dict:
    """Six fields of 23 stocks: limits hit and locked all day, halts, ex-days (some during a halt), ST, listings, an end."""
    draw, bars = np.random.default_rng(seed), {}
    for code in CODES:
        first, stop = LISTED.get(code, 0), ENDS.get(code, len(days))
        made = {name: np.full(len(days), np.nan) for name in ("open", "close", "vwap", "factor", "volume", "is_st")}
        price, factor, special, halt = np.round(np.exp(draw.normal(2.3, 0.6)), 2), draw.choice([1.0, 0.7, 12.3]), draw.random() < 0.25, 0
        for t in range(first, stop):
            special ^= draw.random() < 0.03
            if draw.random() < 0.05:
                price, factor = np.round(price / 1.3, 2), factor * 1.3
            halt = max(halt - 1, 0) or (draw.integers(1, 8) if draw.random() < 0.03 and t > first else 0)
            made["factor"][t], made["is_st"][t] = factor, special
            if halt:
                continue
            up, down = price_limits(board_of(code), special, t - first if first else 10**6, days[t])
            high, low = (float(one) for one in limit_prices(price, up, down))
            high, low = (high, low) if np.isfinite(high) else (price * 2, price / 2)
            opened = np.round(np.clip(price * (1 + draw.normal(0, 0.04)), low, high), 2)
            closed = np.round(np.clip(opened * (1 + draw.normal(0, 0.05)), low, high), 2)
            if draw.random() < 0.04:
                opened = closed = draw.choice([low, high])
            vwap = np.round((opened + closed) / 2, 3) if draw.random() > 0.03 else np.nan
            made["open"][t], made["close"][t], made["vwap"][t] = opened * factor, closed * factor, vwap * factor
            made["volume"][t], price = 1e6 / factor, closed
        bars[code] = {name: values.astype(np.float32) for name, values in made.items()}
    return bars


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    days = pd.bdate_range("2023-07-03", periods=64)                                        # the duty is halved on 2023-08-28
    folder = tmp_path_factory.mktemp("market")
    write_store(folder, days, random_bars(1, days.to_numpy().astype("datetime64[D]")))
    start_qlib(folder)
    return days


class TargetStrategy(BaseStrategy):
    """What `simulate` does, in Qlib's loop."""

    def __init__(self, decide, first: int, **options):
        super().__init__(**options)
        self.decide, self.first = decide, first

    def generate_trade_decision(self, execute_result=None):
        step = self.trade_calendar.get_trade_step()
        start, end = self.trade_calendar.get_step_time(step)
        quotes, position = self.trade_exchange.quotes, self.trade_position
        codes, t = quotes.instruments, self.first + step
        assert quotes.days[t] == np.datetime64(start, "D")
        amount, last, weight = np.zeros(len(codes)), np.full(len(codes), np.nan), np.zeros(len(codes))
        value = position.calculate_value()
        for code in position.get_stock_list():
            n = self.trade_exchange.quote.stocks[code]
            amount[n], last[n] = position.get_stock_amount(code), position.get_stock_price(code)
            weight[n] = amount[n] * last[n] / value
        target = self.decide(step, weight, value)
        if target is None:
            return TradeDecisionWO([], self)
        trade = plan_trades(target, amount, position.get_cash(), quotes, t, last)
        return TradeDecisionWO([Order(codes[n], abs(trade[n]), Order.BUY if trade[n] > 0 else Order.SELL, start, end)
                                for n in np.r_[np.flatnonzero(trade < 0), np.flatnonzero(trade > 0)]], self)


def random_decisions(seed: int, every: int, names: int = 8):
    """Targets of a few names, all of the account or less of it; the same for the same step whatever was asked before."""
    def decide(step, weight, value):
        draw = np.random.default_rng([seed, step])
        if step % every:
            return None
        target = np.zeros(len(weight))
        target[draw.choice(len(weight), min(names, len(weight)), replace=False)] = draw.exponential(size=min(names, len(weight)))
        return 0.5 * target / target.sum() * draw.choice([1.0, 1.9, 2.0]) + 0.0 * weight
    return decide


def both(start, end, decide, cash: float, **options):
    """Qlib's (report, positions, fills) and ours over the same days."""
    exchange = AShareExchange(**options)
    quotes = exchange.quotes.between(start, end)
    first = int(np.searchsorted(exchange.quotes.days, np.datetime64(start, "D")))
    days = pd.DatetimeIndex(quotes.days.astype("datetime64[ns]"))
    bench = pd.Series(np.random.default_rng(0).normal(0, 0.01, len(days)), index=days)
    executor = {"class": "SimulatorExecutor", "module_path": "qlib.backtest.executor",
                "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True}}
    found, indicators = backtest(start, end, TargetStrategy(decide, first), executor, benchmark=bench, account=cash,
                                 exchange_kwargs={"exchange": exchange})
    report, positions = found["1day"]
    return report, positions, indicators["1day"][1].order_indicator_his, simulate(quotes, decide, cash, bench.to_numpy())


def check_equal(report, positions, orders, ours) -> None:
    pd.testing.assert_frame_equal(report.set_axis(report.index.as_unit("ns")), ours.report, rtol=1e-9, atol=1e-9, check_freq=False)
    codes = ours.quotes.instruments
    for t, day in enumerate(report.index):
        theirs, held = positions[day].get_stock_amount_dict(), ours.positions[t] > 0
        assert set(theirs) == set(codes[held]), day
        np.testing.assert_allclose([theirs[code] for code in codes[held]], ours.positions[t][held], rtol=1e-9)
    mine = {day: part.set_index("instrument") for day, part in ours.fills.groupby("datetime")}
    for day, told in orders.items():
        names = {"deal_amount": "amount", "trade_price": "price", "trade_cost": "cost"}
        fields = {name: pd.Series(told.get_index_data(name).to_dict(), dtype=float) for name in names}
        if not len(fields["deal_amount"]):
            assert day not in mine
            continue
        part = mine[day]
        assert set(part.index) == set(fields["deal_amount"].index) and (fields["deal_amount"] != 0).all()      # none was clipped to nothing
        for name, column in names.items():
            np.testing.assert_allclose(fields[name][part.index], part[column], rtol=1e-9)


@pytest.mark.parametrize("every, cash, options", [
    (1, 1e8, {"deal_price": "open", "costs": "dated", "slippage": 0.002}), (1, 2e5, {"deal_price": "close"}),
    (3, 1e6, {"deal_price": "vwap", "costs": {"commission": [0.001, 0.002], "minimum": 20, "duty": True}}),
    (2, 1e6, {"deal_price": ["open", "close"], "costs": {"commission": 0, "minimum": 0}}),
    (1, 2e4, {"deal_price": "open", "costs": "dated"})])
def test_equal_over_the_tricky_days(store, every, cash, options):
    report, positions, orders, ours = both(store[0], store[-3], random_decisions(7, every), cash, **options)
    check_equal(report, positions, orders, ours)
    assert len(ours.fills) > 30 and (report["cash"] >= -1e-6).all() and (ours.report["cash"] >= 0).all()
    quotes = ours.quotes
    halted = (ours.positions > 0) & np.isnan(quotes.close)
    known = np.isfinite(quotes.close)
    assert halted.any() and (known & ~quotes.can_buy).sum() > 20 and (known & ~quotes.can_sell).sum() > 20


def test_the_comparison_sees_a_fault(store):
    """Another cash, cost, position or fill is not taken for equal, nor a market in which one lot rule or one closed side differs."""
    start, end, decide = store[0], store[20], random_decisions(7, 1)
    report, positions, orders, ours = both(start, end, decide, 1e7)
    check_equal(report, positions, orders, ours)
    quotes = ours.quotes
    n = int(np.flatnonzero(ours.positions.any(axis=0) & (board_of(quotes.instruments) == "star"))[0])
    lots, shut = quotes.lot_step.copy(), quotes.can_buy.copy()
    lots[:, n], shut[:, n] = 100, False
    for other in (replace(ours, report=ours.report.assign(cash=ours.report["cash"] + 1e-2)), replace(ours, fills=ours.fills.iloc[:-1]),
                  replace(ours, fills=ours.fills.assign(cost=ours.fills["cost"] * (1 + 1e-6))),
                  replace(ours, positions=ours.positions * (1 + 1e-6)),
                  *(simulate(replace(quotes, **change), decide, 1e7, ours.report["bench"].to_numpy())
                    for change in ({"lot_step": lots}, {"can_buy": shut}, {"commission": (0.0005, 0.00150001)}))):
        with pytest.raises((AssertionError, KeyError)):
            check_equal(report, positions, orders, other)


@pytest.mark.slow
def test_equal_on_the_whole_generated_market(tmp_path):
    """Ten years of 440 generated stocks, weekly random weights of 100 of them."""
    from qlib_ext.demo.market import make_market
    from qlib_ext.demo.tables import write_tables
    from qlib_ext.store.ingest import ingest
    from qlib_ext.store.schema import INDEX_NAMES

    market = make_market()
    ingest(write_tables(market, tmp_path / "tables"), tmp_path / "store", generated=True,
           index_sizes=dict(zip(INDEX_NAMES, market.index_sizes)))
    qlib.init(provider_uri=str(tmp_path / "store"), region="cn", kernels=1, logging_level=40)
    report, positions, orders, ours = both(market.days[0], market.days[-3], random_decisions(3, 5, names=100), 1e8, deal_price="open",
                                           costs="dated", slippage=0.001)
    check_equal(report, positions, orders, ours)
    assert len(report) > 2400 and len(ours.fills) > 50_000
