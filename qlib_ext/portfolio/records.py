"""The record of a back-test with three benchmarks, the certificates of its rebalances, and a fast engine."""

from __future__ import annotations

import warnings
from typing import Any, Mapping

import numpy as np
import pandas as pd
from qlib.backtest.position import Position
from qlib.contrib.evaluate import risk_analysis
from qlib.data import D
from qlib.log import get_module_logger
from qlib.utils import fill_placeholder, flatten_dict, get_date_by_shift, init_instance_by_config
from qlib.workflow.record_temp import PortAnaRecord

from qlib_ext.errors import ConfigError
from qlib_ext.portfolio.closes import Closes
from qlib_ext.portfolio.engine import Result
from qlib_ext.portfolio.program import DAYS_A_YEAR
from qlib_ext.portfolio.strategy import IndexEnhancementStrategy, ScheduledStrategy
from qlib_ext.report.metrics import excess_figures

logger = get_module_logger("qlib_ext.portfolio")
ENGINES = ("qlib", "fast")


class _Named:
    """A recorder whose metrics carry a portfolio's name, so that several portfolios do not overwrite each other's."""

    def __init__(self, recorder, name: str):
        self._recorder, self._name = recorder, name

    def __getattr__(self, attribute: str):
        return getattr(self._recorder, attribute)

    def log_metrics(self, step=None, **metrics) -> None:
        self._recorder.log_metrics(step=step, **{f"{self._name}.{key}": value for key, value in metrics.items()})


class PortfolioRecord(PortAnaRecord):
    """Qlib's `PortAnaRecord` (all its artefacts and metrics), with more to compare and prove.

    Besides, in the same folder: `certificates.parquet`, `exposures.parquet` and `decisions.parquet` of the strategy, `benchmarks.pkl`
    (daily returns of the portfolio before and after costs and of three benchmarks) and `benchmark_analysis.pkl` (what it earned over
    each). The
    benchmarks: `price_index`, as the back-test's `benchmark` gives it (a price index leaves dividends out, which flatters);
    `total_return`, the members with their weights; `equal_weight`, the members alike.

    Args:
        config: as in Qlib: strategy, executor, backtest. engine: ``qlib``, or ``fast`` for strategies of `qlib_ext.portfolio.strategy`
            on an `AShareExchange` (same fills; Qlib's indicators are not made).
        index: universe whose members make the other benchmarks; None: the strategy's `index` or `universe`.
        name: results go to ``portfolio_analysis/<name>``, so that one recorder can hold several portfolios.

    Raises:
        ConfigError: an unknown engine, or one that cannot run the strategy.
    """

    def __init__(self, recorder, config=None, engine: str = "qlib", index: str | None = None, name: str | None = None,
                 risk_analysis_freq=None,
                 indicator_analysis_freq=None, indicator_analysis_method=None, skip_existing: bool = False):
        if engine not in ENGINES:
            raise ConfigError(f"engine={engine!r}: choose one of {list(ENGINES)}")
        super().__init__(recorder=recorder, config=config, risk_analysis_freq=risk_analysis_freq,
                         indicator_analysis_freq=indicator_analysis_freq,
                         indicator_analysis_method=indicator_analysis_method, skip_existing=skip_existing)
        self.engine, self.index, self.name = engine, index, name
        if name is not None:
            self._recorder = _Named(recorder, name)

    def check(self, include_self: bool = False, parents: bool = True) -> None:
        """Predictions are all that is needed (Qlib's record asks for labels too)."""
        if include_self:
            super().check(include_self=True, parents=False)
        if parents and "pred.pkl" not in self.recorder.list_artifacts():
            raise FileNotFoundError("pred.pkl")

    def get_path(self, path=None):
        return "/".join(part for part in (self.artifact_path, self.name, path) if part)

    def save(self, **kwargs) -> None:
        self.recorder.save_objects(artifact_path=self.get_path(), **kwargs)

    def _generate(self, **kwargs) -> dict[str, Any]:
        pred = self.load("pred.pkl")
        strategy = init_instance_by_config(fill_placeholder(self.strategy_config, {"<PRED>": pred}))
        ours = isinstance(strategy, ScheduledStrategy)
        if self.engine == "fast" and not ours:
            raise ConfigError(f"engine: fast runs strategies of qlib_ext.portfolio.strategy, not {type(strategy).__name__}: leave engine "
                              "out")
        if ours:
            strategy.artifact_path = None                              # saved here, once
        try:
            if self.engine == "fast":
                made = self._fast(strategy, pred.index.get_level_values("datetime"))
            else:
                self.strategy_config = {"class": lambda: strategy, "kwargs": {}}
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)      # Qlib's indicators of days without orders
                    made = super()._generate(**kwargs)
        finally:
            if ours:
                strategy.save(self.recorder, self.get_path())
        try:
            made.update(self._benchmarks(made["report_normal_1day.pkl"], strategy))
        except Exception:
            self.save(**made)                                          # the back-test is done, whatever is wrong with the benchmarks
            raise
        return made

    def _fast(self, strategy: ScheduledStrategy, scored: pd.DatetimeIndex) -> dict[str, Any]:
        """Report, positions and analysis as Qlib's record has them; without dates from the first day scored to the day after the last."""
        options = dict(self.backtest_config)
        start, end = options.get("start_time") or scored.min(), options.get("end_time") or get_date_by_shift(scored.max(), 1)
        exchange = (options.get("exchange_kwargs") or {}).get("exchange")
        if exchange is None:
            raise ConfigError("engine: fast needs backtest.exchange_kwargs.exchange: "
                              "{class: AShareExchange, module_path: qlib_ext.portfolio.exchange}")
        bench = index_returns(options.get("benchmark", "SH000300"), start, end)      # Qlib's default
        result = strategy.simulate(init_instance_by_config(exchange), start, end, options.get("account", 1e9), bench)
        report = result.report
        analysis = pd.concat({name: risk_analysis(returns, freq="1day") for name, returns in (
            ("excess_return_without_cost", report["return"] - report["bench"]),
            ("excess_return_with_cost", report["return"] - report["bench"] - report["cost"]))})
        self.recorder.log_metrics(**{f"1day.{key}": value for key, value in flatten_dict(analysis["risk"].unstack().T.to_dict()).items()})
        return {"report_normal_1day.pkl": report, "positions_normal_1day.pkl": _positions(result), "port_analysis_1day.pkl": analysis}

    def _benchmarks(self, report: pd.DataFrame, strategy) -> dict[str, Any]:
        """Daily returns side by side, and the figures over each benchmark."""
        index = self.index or getattr(strategy, "index", None) or getattr(strategy, "universe", None)
        own = strategy.closes if isinstance(strategy, IndexEnhancementStrategy) else getattr(strategy, "pool", None)
        closes = own if index is None or own is not None and own.index == index.lower() else Closes(index.lower())
        frame = daily_returns(report, closes)
        table = over_benchmarks(frame)
        certificates = strategy.table("certificates") if isinstance(strategy, ScheduledStrategy) else pd.DataFrame()
        if "tracking_error" in certificates:
            table["forecast tracking error"] = float(certificates["tracking_error"].mean())
        table["turnover a year"] = float(report["turnover"].sum() / 2 * DAYS_A_YEAR / len(report))
        self.recorder.log_metrics(**{f"{name}.{key.replace(' ', '_')}": float(value)
                                     for name, row in table.iterrows() for key, value in row.items() if np.isfinite(value)})
        print(f"{self.name or index or ''} over three benchmarks (excess compounded, IR of daily differences, after cost unless said; "
              f"{len(frame)} days):")
        print(table.T.to_string(float_format="{:.4f}".format))
        return {"benchmarks.pkl": frame, "benchmark_analysis.pkl": table}

    def list(self) -> list[str]:
        own = ["report_normal_1day.pkl", "positions_normal_1day.pkl", "port_analysis_1day.pkl"] if self.engine == "fast" else super().list()
        return [*own, "benchmarks.pkl", "benchmark_analysis.pkl"]


def daily_returns(report: pd.DataFrame, closes: Closes | None = None) -> pd.DataFrame:
    """A portfolio's daily returns before and after costs (`gross`, `net`) beside those of its benchmarks; fractions, NaN unknown."""
    frame = pd.DataFrame({"gross": report["return"], "net": report["return"] - report["cost"], "price_index": report["bench"]})
    return frame if closes is None else frame.join(closes.benchmarks(report.index.to_numpy()))


def over_benchmarks(frame: pd.DataFrame) -> pd.DataFrame:
    """`excess_figures` of `daily_returns`, before and after costs, a row a benchmark, over the days both have."""
    rows = {}
    for name in frame.columns[2:]:
        known = frame.dropna(subset=[name])
        if len(known):
            rows[name] = {**{f"{key} before cost": value for key, value in excess_figures(known["gross"], known[name]).items()},
                          **excess_figures(known["net"], known[name])}
    return pd.DataFrame.from_dict(rows, orient="index")


def index_returns(code: str | None, start, end) -> pd.Series | None:
    """Daily returns of an index, fractions."""
    if code is None:
        return None
    frame = D.features([code], ["$close / Ref($close, 1) - 1"], start_time=start, end_time=end)
    if not len(frame):
        raise ConfigError(f"benchmark {code} has no bars from {start} to {end} in the store: ingest its bars, or name another")
    return frame.droplevel(0).iloc[:, 0].astype(float)


def _positions(result: Result) -> dict[pd.Timestamp, Position]:
    """Qlib's `positions_normal`: what is held at each close."""
    weights, names, last = result.weights(), result.quotes.instruments.tolist(), result.quotes.last_close
    found = {}
    for t, (day, row) in enumerate(result.report.iterrows()):
        held = np.flatnonzero(result.positions[t])
        position = Position(cash=float(row["cash"]), position_dict={
            names[n]: {"amount": float(result.positions[t, n]), "price": float(last[t, n]), "weight": float(weights[t, n])} for n in held})
        position.position["now_account_value"] = float(row["account"])
        found[day] = position
    return found


def backtest_config(strategy: Mapping[str, Any], start_time, end_time, benchmark: str, exchange: Mapping[str, Any] | None = None,
                    account: float = 1e8) -> dict[str, Any]:
    """Config of a `PortfolioRecord` on an `AShareExchange`: `strategy` is class, module_path and kwargs; `exchange` its keywords."""
    exchange = {"start_time": None if start_time is None else str(pd.Timestamp(start_time).date()), **(exchange or {})}
    return {"strategy": dict(strategy),
            "executor": {"class": "SimulatorExecutor", "module_path": "qlib.backtest.executor",
                         "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True}},
            "backtest": {"start_time": start_time, "end_time": end_time, "account": account, "benchmark": benchmark, "exchange_kwargs": {
                "exchange": {"class": "AShareExchange", "module_path": "qlib_ext.portfolio.exchange", "kwargs": exchange}}}}
