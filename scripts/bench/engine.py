"""Time of a back-tested day: Qlib's executor against `qlib_ext.portfolio.engine.simulate`, and of loading an exchange.

    python scripts/bench/engine.py [--stocks 300,1000] [--held 200] [--days 250] [--rounds 5]

A generated store, targets of `held` names of which a tenth is replaced at each rebalance. Peers take turns in one process, medians
are compared; loading is timed apart and belongs to no loop. `executor` is Qlib's loop on `AShareExchange` with the trades of
`plan_trades`: it must end with the account of `simulate`, to 1e-9, or the script stops. `qlib` is Qlib's own: its `Exchange` and its
`OrderGenWInteract`, which knows neither boards nor sides and ends with another account.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import qlib
from qlib.backtest import backtest
from qlib.backtest.decision import Order, TradeDecisionWO
from qlib.backtest.exchange import Exchange
from qlib.contrib.strategy.order_generator import OrderGenWInteract
from qlib.strategy.base import BaseStrategy

from qlib_ext.portfolio.engine import plan_trades, simulate
from qlib_ext.portfolio.exchange import AShareExchange

CASH = 1e8
EXECUTOR = {"class": "SimulatorExecutor", "module_path": "qlib.backtest.executor",
            "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True}}
PREFIXES = ("SH60", "SZ00", "SZ30", "SH68")


def write_store(folder: Path, stocks: int, days: int, seed: int = 0) -> Path:
    """A random market as a Qlib store: one stock-day in fifty is a halt, prices end at the limit of 9.9 % now and then."""
    draw, calendar = np.random.default_rng(seed), pd.bdate_range("2021-01-04", periods=days + 3)
    codes = sorted(f"{PREFIXES[n % len(PREFIXES)]}{n:04d}" for n in range(stocks))
    for part in ("calendars", "instruments"):
        (folder / part).mkdir(parents=True)
    (folder / "calendars" / "day.txt").write_text("".join(f"{day:%Y-%m-%d}\n" for day in calendar))
    (folder / "instruments" / "all.txt").write_text("".join(f"{code}\t{calendar[0]:%Y-%m-%d}\t{calendar[-1]:%Y-%m-%d}\n" for code in codes))
    for code in codes:
        change = np.clip(draw.standard_t(4, len(calendar)) * 0.02, -0.099, 0.099)
        close = draw.uniform(5, 50) * np.cumprod(1 + change)
        before = np.append(np.nan, close[:-1])
        fields = {"close": close, "open": before * (1 + change / 2), "change": change, "volume": draw.uniform(1e6, 1e7, len(close)),
                  "factor": np.full(len(close), draw.uniform(0.5, 5)), "limit_up": before * 1.099, "limit_down": before * 0.901}
        halted = draw.random(len(close)) < 0.02
        place = folder / "features" / code.lower()
        place.mkdir(parents=True)
        for name, values in fields.items():
            gone = halted if name in ("close", "open", "change", "volume") else np.zeros(len(close), bool)
            np.r_[0.0, np.where(gone, np.nan, values)].astype("<f4").tofile(place / f"{name}.day.bin")
    return folder


def targets(stocks: int, held: int, days: int, every: int) -> list[np.ndarray | None]:
    """Target weights of each day, None between rebalances."""
    draw, out = np.random.default_rng(1), []
    names = draw.permutation(stocks)
    for t in range(days):
        if t % every:
            out.append(None)
            continue
        part, rest = names[:held], names[held:]
        leaving = draw.permutation(held)[:min(held // 10, len(rest))]
        coming = draw.permutation(len(rest))[:len(leaving)]
        part[leaving], rest[coming] = rest[coming].copy(), part[leaving].copy()
        weight = np.zeros(stocks)
        weight[names[:held]] = draw.uniform(0.5, 1.5, held)
        out.append(0.95 * weight / weight.sum())
    return out


class PlannedStrategy(BaseStrategy):
    """The trades of `plan_trades` in Qlib's loop."""

    def __init__(self, plan: list, **options):
        super().__init__(**options)
        self.plan = plan

    def generate_trade_decision(self, execute_result=None):
        """Orders of the day, sales first."""
        t = self.trade_calendar.get_trade_step()
        if self.plan[t] is None:
            return TradeDecisionWO([], self)
        start, end = self.trade_calendar.get_step_time(t)
        quotes, position, place = self.trade_exchange.quotes, self.trade_position, self.trade_exchange.quote.stocks
        codes, amount, last = quotes.instruments, np.zeros(len(place)), np.full(len(place), np.nan)
        for code in position.get_stock_list():
            amount[place[code]], last[place[code]] = position.get_stock_amount(code), position.get_stock_price(code)
        trade = plan_trades(self.plan[t], amount, position.get_cash(), quotes, t, last)
        return TradeDecisionWO([Order(codes[n], abs(trade[n]), Order.BUY if trade[n] > 0 else Order.SELL, start, end)
                                for n in np.r_[np.flatnonzero(trade < 0), np.flatnonzero(trade > 0)]], self)


class QlibStrategy(BaseStrategy):
    """The same targets through Qlib's order generator."""

    def __init__(self, plan: list, codes: list, **options):
        super().__init__(**options)
        self.plan, self.codes, self.generator = plan, codes, OrderGenWInteract()

    def generate_trade_decision(self, execute_result=None):
        """Orders of the day."""
        t = self.trade_calendar.get_trade_step()
        if self.plan[t] is None:
            return TradeDecisionWO([], self)
        start, end = self.trade_calendar.get_step_time(t)
        weights = {self.codes[n]: self.plan[t][n] for n in np.flatnonzero(self.plan[t])}
        return TradeDecisionWO(self.generator.generate_order_list_from_target_weight_position(
            self.trade_position, self.trade_exchange, weights, 1.0, start, end, start, end), self)


def timed(run) -> tuple[float, object]:
    """Seconds, and what came of it; progress bars and warnings of NaN prices are kept off the screen."""
    with contextlib.redirect_stderr(io.StringIO()):
        begin = time.perf_counter()
        result = run()
        return time.perf_counter() - begin, result


def race(ours: AShareExchange, theirs: Exchange, plan: list, rounds: int) -> dict[str, float]:
    """Median milliseconds a day of each peer."""
    span = ours.quotes.days[0], ours.quotes.days[len(plan) - 1]
    quotes, codes = ours.quotes.between(*span), ours.quotes.instruments.tolist()
    bench = pd.Series(0.0, index=pd.DatetimeIndex(quotes.days.astype("datetime64[ns]")))

    def loop(strategy: BaseStrategy, exchange: Exchange) -> float:
        return backtest(*map(pd.Timestamp, span), strategy, EXECUTOR, bench, CASH, {"exchange": exchange})[0]["1day"][0]["account"].iloc[-1]

    peers = {"executor": lambda: loop(PlannedStrategy(plan), ours), "qlib": lambda: loop(QlibStrategy(plan, codes), theirs),
             "simulate": lambda: simulate(quotes, lambda t, weight, value: plan[t], CASH, bench).report["account"].iloc[-1]}
    seconds, ends = {name: [] for name in peers}, {}
    for _ in range(rounds):
        for name, run in peers.items():
            spent, ends[name] = timed(run)
            seconds[name].append(spent)
    if abs(ends["executor"] / ends["simulate"] - 1) > 1e-9:
        raise SystemExit(f"executor and simulate end with different accounts: {ends}")
    return {name: 1000 * statistics.median(spent) / len(plan) for name, spent in seconds.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--stocks", default="300,1000")
    for name, default in (("held", 200), ("days", 250), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    print(f"{options.held} names held, {options.days} days, medians of {options.rounds} rounds, load {os.getloadavg()[0]:.1f}")
    print(f"{'stocks':>6s} {'rebalance':>9s} {'executor':>12s} {'qlib':>12s} {'simulate':>13s} {'executor / simulate':>20s}")
    loads = []
    for stocks in map(int, options.stocks.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            qlib.init(provider_uri=str(write_store(Path(folder) / "store", stocks, options.days)), region="cn", kernels=1, logging_level=50,
                      expression_cache=None, dataset_cache=None)
            spent = {"ours": [], "qlib": []}
            for _ in range(options.rounds):
                seconds, ours = timed(lambda: AShareExchange(deal_price="open"))
                spent["ours"].append(seconds)
                seconds, theirs = timed(lambda: Exchange(codes="all", deal_price="open", limit_threshold=0.095))
                spent["qlib"].append(seconds)
            loads.append((stocks, *(statistics.median(spent[name]) for name in ("ours", "qlib"))))
            for name, every in (("weekly", 5), ("daily", 1)):
                found = race(ours, theirs, targets(stocks, options.held, options.days, every), options.rounds)
                print(f"{stocks:6d} {name:>9s} {found['executor']:9.2f} ms {found['qlib']:9.2f} ms {found['simulate']:10.3f} ms "
                      f"{found['executor'] / found['simulate']:20.0f}", flush=True)
    for stocks, mine, peer in loads:
        print(f"loading {stocks} stocks: AShareExchange {mine:.2f} s, Exchange {peer:.2f} s, ratio {peer / mine:.1f}")


if __name__ == "__main__":
    main()
