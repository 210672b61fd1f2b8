"""Strategies that turn scores into weights on a schedule, inside Qlib's back-test or the fast engine.

A decision uses what was known at a close, and is traded on the next trading day. Target weights become orders by `plan_trades`: the
weight of what cannot be traded is not spread over the rest.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import Any, Mapping, Sequence

import numpy as np
import pandas as pd
from qlib.backtest.decision import Order, TradeDecisionWO
from qlib.backtest.exchange import Exchange
from qlib.contrib.strategy import EnhancedIndexingStrategy as QlibEnhancedIndexingStrategy
from qlib.contrib.strategy.signal_strategy import BaseSignalStrategy
from qlib.log import get_module_logger
from qlib.utils import init_instance_by_config
from qlib.workflow import R
from tqdm import tqdm

from qlib_ext.data.universe import member_spans, trading_calendar, universe_grid
from qlib_ext.errors import ConfigError, DataError, ExtError, InfeasibleError, SolverError
from qlib_ext.portfolio.closes import STALE, Close, Closes, index_scale
from qlib_ext.portfolio.engine import Quotes, Result, plan_trades, simulate
from qlib_ext.portfolio.enhanced_indexing import EnhancedIndexingOptimizer
from qlib_ext.portfolio.optimizer import IndexEnhancer, Solution
from qlib_ext.portfolio.signal import make_signal

logger = get_module_logger("qlib_ext.strategy")
LEAST_INVESTED = 0.95
"""Share of what was wanted that should be invested."""
LEAST_SCORED = 0.5
"""Share of the benchmark that a signal must score."""


def week_of(day: np.datetime64) -> int:
    """Number of the week (from Monday) that a day lies in."""
    return int((day.astype("datetime64[D]").astype(int) + 3) // 7)


class Schedule:
    """When to decide: on the last trading day of each week, every n trading days, or on given dates.

    Args:
        rebalance: ``week``, a number of trading days, or dates (the last trading day up to each counts).

    Raises:
        ConfigError: none of these.
    """

    def __init__(self, rebalance: str | int | Sequence[str]):
        self.dates = None
        if isinstance(rebalance, bool) or isinstance(rebalance, str) and rebalance != "week" or isinstance(rebalance,
                                                                                                           int) and rebalance < 1:
            raise ConfigError(f"rebalance={rebalance!r}: choose week, a number of trading days, or a list of dates")
        if not isinstance(rebalance, (str, int)):
            try:
                self.dates = np.unique(np.array([str(pd.Timestamp(str(one)).date()) for one in rebalance], dtype="datetime64[D]"))
            except (TypeError, ValueError) as error:
                raise ConfigError(f"rebalance={rebalance!r}: dates look like 2024-06-28 ({error})") from error
            if not len(self.dates):
                raise ConfigError("rebalance: the list of dates is empty")
        self.rebalance, self.first = rebalance, None

    def due(self, step: int, decided: np.datetime64, traded: np.datetime64) -> bool:
        """Whether the close of `decided` is one to decide on, for trades of the next trading day `traded`; `step` counts days traded.

        The first portfolio is built at once (but for given dates): `started` tells when that is done.
        """
        if self.dates is not None:
            return bool(((self.dates >= decided) & (self.dates < traded)).any())
        if self.first is None:
            return True
        return week_of(decided) != week_of(traded) if self.rebalance == "week" else (step - self.first) % self.rebalance == 0

    def started(self, step: int) -> None:
        """A first portfolio was decided on."""
        self.first = step if self.first is None else self.first


class ScheduledStrategy(BaseSignalStrategy):
    """Weights decided on a schedule; subclasses give `target`.

    Args:
        signal: predictions (``<PRED>``), a (model, dataset), or ``{class: RecorderSignal | BlendedSignal, module_path:
            qlib_ext.portfolio.signal, kwargs}``. rebalance: see `Schedule`.
        risk_degree: share of the account that the weights are fractions of; 1 is fully invested.
        blacklist: codes that may only be sold. buy_special: stocks in special treatment may be bought. listed_days: trading days since its
            first bar from which a stock may be bought.

    Raises:
        ConfigError: a value that is none of these.
    """

    index: str | None = None
    artifact_path: str | None = "portfolio_analysis"
    """Where the tables of decisions go in the recorder that is active when the back-test ends; None: nowhere."""

    def __init__(self, *, signal, rebalance: str | int | Sequence[str] = "week", risk_degree: float = 1.0, blacklist: Sequence[str] = (),
                 buy_special: bool = False, listed_days: int = 60, trade_exchange=None, level_infra=None, common_infra=None):
        if not 0 < risk_degree <= 1:
            raise ConfigError(f"risk_degree={risk_degree!r}: give a share of the account above 0, at most 1")
        if isinstance(blacklist, str):
            raise ConfigError(f"blacklist={blacklist!r}: give a list of codes")
        Schedule(rebalance)
        super().__init__(signal=make_signal(signal), risk_degree=risk_degree, trade_exchange=trade_exchange, level_infra=level_infra,
                         common_infra=common_infra)
        self.rebalance, self.blacklist = rebalance, [str(code) for code in blacklist]
        self.buy_special, self.listed_days = buy_special, listed_days
        self.begin()

    @cached_property
    def closes(self) -> Closes:
        """What is known at each close; with the weights of `index`, where there is one."""
        return Closes(self.index, self.buy_special, self.listed_days)

    def begin(self) -> None:
        """Forget everything of a back-test."""
        self.schedule, self.tables, self._warned = Schedule(self.rebalance), {}, set()
        self._calendar, self._wanted, self._said_idle = trading_calendar(), 0.0, False

    def target(self, decided: np.datetime64, traded: np.datetime64, scores: pd.Series, held: pd.Series, exchange) -> pd.Series:
        """Weights wanted, by instrument.

        Args:
            decided: day whose close is known. traded: the next trading day. scores: of `decided`, by instrument.
            held: weights at the close of `decided`, by instrument (those held only).
        """
        raise NotImplementedError

    def decide(self, step: int, decided: np.datetime64, traded: np.datetime64, held: pd.Series, exchange) -> pd.Series | None:
        """`target` on days of the schedule, None on others and where the signal has no scores of the day."""
        if held.sum() < LEAST_INVESTED * self._wanted and not self._said_idle:
            self._said_idle = True
            logger.warning(f"{held.sum():.0%} of the account were invested at the close of {decided}, not {self._wanted:.0%}: orders "
                           "were blocked, or lots are too large for the account (said once)")
        if not self.schedule.due(step, decided, traded):
            return None
        scores = self.signal.get_signal(pd.Timestamp(decided), pd.Timestamp(decided) + pd.Timedelta(hours=23, minutes=59))
        scores = scores.iloc[:, 0] if isinstance(scores, pd.DataFrame) else scores
        if scores is None or not len(scores):
            if self.schedule.first is not None:
                logger.warning(f"the signal has no scores of {decided}: the portfolio stays as it is")
            return None
        try:
            weights = self.target(decided, traded, scores, held, exchange)
        except ExtError:
            self.save()
            raise
        self.schedule.started(step)
        if weights is None:
            return None
        self._wanted = float(weights.sum() * self.risk_degree)
        return weights * self.risk_degree

    def note_stale(self, close: Close, current: np.ndarray) -> dict[str, dict[str, float]]:
        """Stocks held that have had no bar for long (delisted, it seems); each is warned of once."""
        stale = {str(close.codes[n]): round(float(current[n]), 6) for n in np.flatnonzero((current > 0) & close.stale)}
        for code in set(stale) - self._warned:
            logger.warning(f"{code} has had no bar for {STALE} trading days: {stale[code]:.2%} of the account stay valued at its last "
                           "close")
        self._warned |= set(stale)
        return {"without_bars": stale} if stale else {}

    # ---- Qlib's loop -----------------------------------------------------------------------------------------------------------
    def reset(self, *args, **kwargs) -> None:
        super().reset(*args, **kwargs)
        self.begin()

    def generate_trade_decision(self, execute_result=None) -> TradeDecisionWO:
        """Orders of the day, sales first; none on most days."""
        step = self.trade_calendar.get_trade_step()
        start, end = self.trade_calendar.get_step_time(step)
        decided, traded = (np.datetime64(self.trade_calendar.get_step_time(step, shift=shift)[0], "D") for shift in (1, 0))
        position = self.trade_position
        if decided >= traded:
            raise DataError(f"the back-test starts on {traded}, the first day of the store: nothing is known on the day before")
        weights = self.decide(step, decided, traded, pd.Series(position.get_stock_weight_dict(), dtype=float), self.trade_exchange)
        if weights is None:
            return TradeDecisionWO([], self)
        amounts = position.get_stock_amount_dict()
        quotes, t, last = day_quotes(self.trade_exchange, start, end, [*amounts, *weights.index], position)
        place = {code: n for n, code in enumerate(quotes.instruments.tolist())}
        held = np.zeros(len(place))
        for code, amount in amounts.items():
            held[place[code]] = amount
        trades = plan_trades(laid_on(weights, quotes), held, position.get_cash(), quotes, t, last)
        orders = [Order(stock_id=str(quotes.instruments[n]), amount=abs(float(trades[n])), start_time=start, end_time=end,
                        direction=Order.BUY if trades[n] > 0 else Order.SELL) for n in np.argsort(trades > 0, kind="stable") if trades[n]]
        return TradeDecisionWO(orders, self)

    def post_upper_level_exe_step(self) -> None:
        """The back-test is over: the tables of decisions go into the active recorder."""
        self.save()
        self._check_decided()

    # ---- the fast engine -------------------------------------------------------------------------------------------------------
    def simulate(self, exchange, start_time, end_time, account: float = 1e8, bench: pd.Series | None = None) -> Result:
        """The same back-test on arrays (`qlib_ext.portfolio.engine.simulate`), with the quotes of an `AShareExchange`.

        Raises:
            ConfigError: another exchange. DataError: no trading day in the span.
        """
        quotes = getattr(exchange, "quotes", None)
        if not isinstance(quotes, Quotes):
            raise ConfigError("the fast engine trades on the quotes of an AShareExchange: name it in exchange_kwargs.exchange")
        self.begin()
        quotes = quotes.between(start_time, end_time)
        first, stop = (int(np.searchsorted(self._calendar, np.datetime64(pd.Timestamp(day), "D"), side=side))
                       for day, side in ((start_time, "left"), (end_time, "right")))
        if not np.array_equal(self._calendar[first:stop], quotes.days):
            raise DataError(f"the exchange has quotes from {quotes.days[0]} to {quotes.days[-1]}, the back-test runs from {start_time} to "
                            f"{end_time}: leave start_time and end_time of the exchange out, or widen them")
        if first == 0:
            raise DataError(f"the back-test starts on {quotes.days[0]}, the first day of the store: nothing is known on the day before")
        names = quotes.instruments

        bar = tqdm(total=len(quotes.days), desc="fast back-test", mininterval=1.0)

        def decide(t: int, weight: np.ndarray, value: float) -> np.ndarray | None:
            bar.update()
            place = np.flatnonzero(weight)
            held = pd.Series(weight[place], index=names[place])
            wanted = self.decide(t, self._calendar[first + t - 1], quotes.days[t], held, exchange)
            return None if wanted is None else laid_on(wanted, quotes)

        returns = None if bench is None else bench.reindex(pd.DatetimeIndex(quotes.days.astype("datetime64[ns]"))).to_numpy()
        with bar:
            result = simulate(quotes, decide, account, returns)
        self.save()
        self._check_decided()
        return result

    def _check_decided(self) -> None:
        """Raise where a whole back-test had nothing to decide on."""
        if self.schedule.first is None:
            days = getattr(self.signal, "days", ())
            span = f" (it scores {str(days[0])[:10]} to {str(days[-1])[:10]})" if len(days) else ""
            raise DataError(f"nothing was decided: the signal has no scores{span} of any day of the schedule (rebalance: {self.rebalance}) "
                            "inside the back-test; correct its dates or the signal")

    # ---- decisions -------------------------------------------------------------------------------------------------------------
    def keep(self, name: str, rows: pd.DataFrame) -> None:
        """Add rows to the table `name` of the decisions."""
        self.tables.setdefault(name, []).append(rows)

    def table(self, name: str) -> pd.DataFrame:
        """A table of the decisions so far: `decisions` (weights), for index enhancement `certificates` and `exposures` too."""
        return pd.concat(self.tables[name], ignore_index=True) if name in self.tables else pd.DataFrame()

    def save(self, recorder=None, artifact_path: str | None = None) -> None:
        """Write the tables as Parquet into a recorder; without one into the active one, if there is any and `artifact_path` of the class
        says where."""
        if recorder is None:
            experiment = getattr(getattr(R, "exp_manager", None), "active_experiment", None)
            recorder, artifact_path = getattr(experiment, "active_recorder", None), self.artifact_path
        if recorder is None or artifact_path is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            for name in self.tables:
                file = Path(folder) / f"{name}.parquet"
                self.table(name).to_parquet(file)
                recorder.save_objects(local_path=str(file), artifact_path=artifact_path)


def laid_on(weights: pd.Series, quotes: Quotes) -> np.ndarray:
    """Target weights in the order of the quotes ``[n]``.

    Raises:
        DataError: the quotes do not hold a stock that is wanted.
    """
    laid = weights.reindex(quotes.instruments).fillna(0.0).to_numpy()
    if len(weights) and abs(laid.sum() - weights.sum()) > 1e-9:
        lost = weights[~weights.index.isin(quotes.instruments)]
        raise DataError(f"the exchange has no quotes of {len(lost)} stocks that are wanted with {lost.sum():.1%} of the account (the first "
                        f"{lost.index[:3].tolist()}): widen its codes")
    return laid


def day_quotes(exchange: Exchange, start, end, codes: Sequence[str], position) -> tuple[Quotes, int, np.ndarray]:
    """Quotes of a trading day, its place in them, and the last price known before it ``[n]``: an `AShareExchange`'s own, or one day's
    asked of Qlib's exchange, stock by stock."""
    quotes, day = getattr(exchange, "quotes", None), np.datetime64(start, "D")
    if isinstance(quotes, Quotes):
        t = int(np.searchsorted(quotes.days, day))
        if t == len(quotes.days) or quotes.days[t] != day:
            raise DataError(f"the exchange has no quotes of {day}, they run from {quotes.days[0]} to {quotes.days[-1]}: leave start_time "
                            "and end_time of the exchange out, or widen them")
        last = quotes.last_close[t - 1].copy() if t else np.full(len(quotes.instruments), np.nan)
        return quotes, t, last
    codes = np.array(sorted(set(codes)), dtype=str)
    ask = lambda what, *rest: np.array([_number(what(code, start, end, *rest)) for code in codes])  # noqa: E731
    can = {side: np.array([exchange.is_stock_tradable(code, start, end, side) for code in codes]) for side in (Order.BUY, Order.SELL)}
    there = ~np.array([exchange.check_stock_suspended(code, start, end) for code in codes])
    price = {side: np.where(there, ask(exchange.get_deal_price, side), np.nan) if there.any() else np.full(len(codes),
                                                                                                           np.nan) for side in can}
    factor = np.ones(len(codes)) if exchange.trade_w_adj_price else ask(exchange.get_factor)
    unit = np.ones(len(codes)) if exchange.trade_w_adj_price or exchange.trade_unit is None else np.full(len(codes),
                                                                                                         float(exchange.trade_unit))
    known = there & (factor > 0)
    row = lambda values: np.asarray(values)[None]  # noqa: E731
    quotes = Quotes(day[None], codes, row(ask(exchange.get_close)), row(price[Order.BUY]), row(price[Order.SELL]), row(factor),
                    row(can[Order.BUY] & known & (price[Order.BUY] > 0)), row(can[Order.SELL] & known & (price[Order.SELL] > 0)), row(unit),
                    row(unit), (exchange.open_cost, exchange.close_cost), exchange.min_cost)
    held = position.get_stock_amount_dict()
    return quotes, 0, np.array([position.get_stock_price(code) if code in held else np.nan for code in codes], dtype=float)


def blocked_on(exchange, day: np.datetime64, close: Close) -> tuple[np.ndarray, np.ndarray]:
    """Whom a day of trading keeps from being bought, and from being sold: bool ``[n]`` by the codes of `close`.

    Raises:
        ConfigError: an exchange that has no quotes of all stocks. DataError: none of the day.
    """
    quotes = getattr(exchange, "quotes", None)
    if not isinstance(quotes, Quotes):
        raise ConfigError("replace_blocked: true needs the quotes of an AShareExchange: name it in exchange_kwargs.exchange")
    t = int(np.searchsorted(quotes.days, day))
    if t == len(quotes.days) or quotes.days[t] != day:
        raise DataError(f"the exchange has no quotes of {day}, only {quotes.days[0]} to {quotes.days[-1]}: widen its start_time and end_time")
    return tuple(close.lay(pd.Series(can[t], index=quotes.instruments), 0.0) == 0 for can in (quotes.can_buy, quotes.can_sell))


def _number(value) -> float:
    return np.nan if value is None else float(value)


class IndexEnhancementStrategy(ScheduledStrategy):
    """Weights of an `IndexEnhancer`, with a certificate of every rebalance.

    Suspended, limit-up, limit-down and ST are those of the close decided on; exposures and covariance come from the risk snapshots of
    that day, benchmark weights from the store's drifting ones.

    Args:
        index: universe that is enhanced (``csi300``, ``csi500``, ``csi1000``). optimizer: keywords of `IndexEnhancer`, such as
            ``{preset: meta}`` or ``{constraints: {cap: 0.03, tracking_error: 0.05}, ladder: [..]}``.
        snapshots: folder of risk snapshots; None: those of the store, made where days are missing.
        infeasible: ``raise``, or ``hold`` to keep the portfolio where even the ladder finds no weights (the certificate says so).
        scale: times the real index is larger (absolute caps grow); None: as the store says. signal, kwargs: see `ScheduledStrategy`.

    Raises:
        ConfigError: unknown keywords and names.
    """

    def __init__(self, *, signal, index: str, optimizer: Mapping[str, Any], snapshots: str | None = None, infeasible: str = "raise",
                 scale: float | None = None, **kwargs):
        if infeasible not in ("raise", "hold"):
            raise ConfigError(f"infeasible={infeasible!r}: choose raise or hold")
        member_spans(index)
        try:
            self.enhancer = IndexEnhancer(**optimizer)
        except TypeError as error:
            said = str(error).replace("IndexEnhancer.__init__() ", "")
            raise ConfigError(f"optimizer: {said}; it takes the keywords of IndexEnhancer") from error
        self.index, self.snapshots, self.infeasible = index.lower(), snapshots, infeasible
        self.scale = index_scale(self.index) if scale is None else scale
        super().__init__(signal=signal, **kwargs)

    @cached_property
    def risk(self):
        """The risk model's days (`qlib_ext.risk.model.RiskDays`), made through Qlib: portfolio and risk do not know each other."""
        return init_instance_by_config({"class": "RiskDays", "module_path": "qlib_ext.risk.model", "kwargs": {"snapshots": self.snapshots}})

    def target(self, decided, traded, scores, held, exchange) -> pd.Series | None:
        close, risk = self.closes.at(decided), self.risk.read(decided)
        alpha, current = close.lay(scores, np.nan), close.lay(held / self.risk_degree, 0.0)
        alpha[~close.listed] = np.nan
        scored = close.benchmark[np.isfinite(alpha)].sum() / close.benchmark.sum()
        if scored < LEAST_SCORED:
            raise DataError(f"{decided}: the signal scores {scored:.0%} of the weight of {self.index}: give predictions for its members "
                            "(another universe in the dataset), or enhance the index that was scored")
        used = np.flatnonzero((np.isfinite(alpha) & (risk.rows(close.codes) >= 0)) | (close.benchmark > 0) | (current > 0))
        codes, stale = close.codes[used], self.note_stale(close, current)
        no_buy = close.no_buy | np.isin(close.codes, self.blacklist)
        extras = self.risk.extras(decided, self.enhancer.style_names(), missing=self.enhancer.missing_styles)
        try:
            solution = self.enhancer.solve(
                alpha[used], risk, close.benchmark[used], current[used], no_buy=no_buy[used], no_sell=close.no_sell[used],
                cost=self._costs(exchange, decided, codes), extras={name: close.lay(one, np.nan)[used] for name, one in extras.items()},
                scale=self.scale, day=str(decided), instruments=codes)
        except (InfeasibleError, SolverError) as error:
            self.keep("certificates", pd.DataFrame([{"day": str(decided), "trade_day": str(traded), "notes": str(error),
                                                     "status": "infeasible" if isinstance(error, InfeasibleError) else "unsolved"}]))
            if self.infeasible == "raise":
                raise
            logger.warning(f"{error}; the portfolio stays as it is")
            return None
        lacking = {name: solution.notes[name] for name in ("missing_styles", "missing_industries") if name in solution.notes}
        if lacking and not self.tables.get("certificates"):
            logger.warning(f"{decided}: bands that the risk model cannot bind are left out: {lacking} (said once; certificates have them "
                           "all)")
        solution.notes.update(stale)
        self._keep(solution, traded)
        return pd.Series(solution.held, dtype=float)

    def _costs(self, exchange, day: np.datetime64, codes: np.ndarray) -> tuple:
        """Fractions (buying, selling) of some stocks ``[n]``, as they stand on the day; a stock without quotes costs what most do."""
        quotes = getattr(exchange, "quotes", None)
        if not isinstance(quotes, Quotes):
            return float(exchange.open_cost), float(exchange.close_cost)
        t = max(int(np.searchsorted(quotes.days, day, side="right")) - 1, 0)
        place = np.minimum(quotes.instruments.searchsorted(codes), len(quotes.instruments) - 1)
        return tuple(rate + np.where(quotes.instruments[place] == codes, duty[t][place], np.median(duty[t]))
                     for rate, duty in zip(quotes.commission, (quotes.duty_buy, quotes.duty_sell)))

    def _keep(self, solution: Solution, traded: np.datetime64) -> None:
        row = solution.certificate()
        self.keep("certificates", pd.DataFrame([{"day": row.pop("day"), "trade_day": str(traded), **row,
                                                 "benchmark_weights": self.closes.source,
                                                 "scale": self.scale}]))
        self.keep("exposures", solution.exposures.rename_axis("column").reset_index().assign(day=solution.day))
        shown = np.flatnonzero((solution.weights > 0) | (solution.current > 0) | (solution.benchmark > 0))
        self.keep("decisions", pd.DataFrame({"day": solution.day, "instrument": solution.instruments[shown],
                                             "weight": solution.weights[shown],
                                             "current": solution.current[shown], "benchmark": solution.benchmark[shown]}))


class TopKStrategy(ScheduledStrategy):
    """The best stocks with equal weights; who is held stays while ranked within ``topk x (1 + buffer)``.

    A stock that cannot be sold keeps its weight and its place, one that cannot be bought is passed over or not added to; the others share
    the rest alike. Who that is tells the close decided on, with `replace_blocked` the day of trading instead.

    Args:
        topk: how many; fewer on a store whose index is smaller than the real one. buffer: 0 sells whatever leaves the best.
        universe: candidates are its members of the day; None: all that the signal scores.
        out_of: number of candidates that `topk` is meant for: where there are fewer, as many fewer are held. None: `topk` as it is.
        replace_blocked: the next in rank stands in for whom the day of trading keeps from being bought (suspended, or at the upper limit
            at the price dealt), and who cannot be sold then keeps its place; both are seen as orders go out. Needs an `AShareExchange`.
            False: the weight of such a stock stays cash until the next decision.
        signal, kwargs: see `ScheduledStrategy`.
    """

    def __init__(self, *, signal, topk: int, buffer: float = 0.0, universe: str | None = None, out_of: int | None = None,
                 replace_blocked: bool = False, **kwargs):
        if isinstance(topk, bool) or not isinstance(topk, int) or topk < 1 or not 0 <= buffer < np.inf:
            raise ConfigError(f"topk={topk!r} must be a whole number above 0, buffer={buffer!r} a number from 0 up")
        if out_of is not None and (type(out_of) is not int or out_of < topk):
            raise ConfigError(f"out_of={out_of!r} must be a whole number of candidates, at least topk={topk}")
        if out_of is not None and universe is not None and index_scale(universe) > 1:
            raise ConfigError(f"out_of={out_of} and universe {universe!r} both scale topk: leave one of them out")
        if universe is not None:
            member_spans(universe)
            universe = universe.lower()
        self.topk = topk if universe is None else max(round(topk / index_scale(universe)), 1)
        self.buffer, self.universe, self.out_of, self.replace_blocked = buffer, universe, out_of, replace_blocked
        super().__init__(signal=signal, **kwargs)

    def target(self, decided, traded, scores, held, exchange) -> pd.Series:
        close = self.closes.at(decided)
        alpha, current = close.lay(scores, np.nan), close.lay(held / self.risk_degree, 0.0)
        self.note_stale(close, current)
        inside = close.listed if self.universe is None else universe_grid(np.array([decided]), close.codes.tolist(), self.universe)[0]
        ranked = np.argsort(np.where(inside, -alpha, np.nan), kind="stable")[:np.count_nonzero(inside & np.isfinite(alpha))]
        if not len(ranked):
            raise DataError(f"{decided}: the signal scores no candidate of universe {self.universe or 'all'}: check its universe and days")
        topk = self.topk if self.out_of is None else max(round(self.topk * min(len(ranked) / self.out_of, 1)), 1)
        no_buy, no_sell = close.no_buy, close.no_sell
        if self.replace_blocked:                               # the day of trading says, not the close before
            no_buy, no_sell = blocked_on(exchange, traded, close)
            no_buy = no_buy | close.barred
        no_buy = no_buy | np.isin(close.codes, self.blacklist)
        locked = np.flatnonzero((current > 0) & no_sell)
        movable = (current > 0) & ~no_sell
        kept = [n for n in ranked[:int(topk * (1 + self.buffer))] if movable[n]][:max(topk - len(locked), 0)]
        there = set(kept)                                      # next in rank: new, or held behind the buffer
        bought = [n for n in ranked if n not in there and (movable[n] or current[n] == 0 and not no_buy[n])]
        bought = bought[:max(topk - len(locked) - len(kept), 0)]
        weights = np.zeros(len(alpha))
        weights[locked] = current[locked]
        alike = [*kept, *bought]
        while alike:                                          # who may not be bought stays below an equal share
            share = max(1 - weights.sum(), 0.0) / len(alike)
            below = [n for n in alike if no_buy[n] and current[n] < share]
            if not below:
                weights[alike] = share
                break
            weights[below] = current[below]
            alike = [n for n in alike if n not in below]
        at = np.flatnonzero(weights)
        self.keep("decisions", pd.DataFrame({"day": str(decided), "instrument": close.codes[at], "weight": weights[at]}))
        return pd.Series(weights[at], index=close.codes[at])


class EnhancedIndexingStrategy(QlibEnhancedIndexingStrategy):
    """Qlib's `EnhancedIndexingStrategy`, all its keywords, with an optimiser that solves or says why not (`EnhancedIndexingOptimizer`)."""

    def __init__(self, *, riskmodel_root, market="csi500", turn_limit=None, name_mapping={}, optimizer_kwargs={}, verbose=False, **kwargs):
        if turn_limit is not None:
            raise ConfigError("turn_limit does nothing in Qlib's strategy either: set optimizer_kwargs: {delta: ..}, two ways")
        super().__init__(riskmodel_root=riskmodel_root, market=market, name_mapping=name_mapping, verbose=verbose,
                         **kwargs)
        self.optimizer = EnhancedIndexingOptimizer(**optimizer_kwargs)
