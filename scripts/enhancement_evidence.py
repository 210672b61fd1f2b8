"""What index enhancement makes of a fitted model's scores: settings chosen on the validation year, shown on the test years.

    python scripts/enhancement_evidence.py baseline_lightgbm_enhanced_csi1000 --index csi1000 [--store STORE] [--uri URI]

Takes the model of an experiment's latest run, scores its validation and test segments, and holds portfolios against three benchmarks:
presets as they stand, one with limits of turnover (the best on the validation year is marked), top-k lists, Qlib's TopkDropout, and
Qlib's own enhanced indexing where ECOS is installed (it cannot solve without). All trade at the close with the brokers' 0.2 % for both
ways.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import tempfile

import numpy as np
import pandas as pd

COLUMNS = ["excess before cost", "excess", "IR", "drawdown", "TE", "forecast TE", "bands kept", "relaxed", "turnover a year"]
TURNOVER = (None, 0.3, 0.2, 0.1, 0.05)


def predictions(experiment: str) -> pd.Series:
    """Scores of the validation and test segments by the model of the latest run."""
    from qlib.utils import init_instance_by_config
    from qlib.workflow import R

    from qlib_ext.portfolio.signal import find_recorder
    name, test = find_recorder(experiment)
    recorder = R.get_recorder(recorder_id=name, experiment_name=experiment)
    dataset = init_instance_by_config(recorder.load_object("task")["dataset"])
    valid = recorder.load_object("params.pkl").predict(dataset, segment="valid")
    return pd.concat([valid.rename("score"), test["score"]])


def row(report: pd.DataFrame, closes, strategy=None) -> dict:
    """Figures of a back-test over the total-return index, and the price and equal-weighted ones' excess after cost."""
    from qlib_ext.portfolio.records import daily_returns, over_benchmarks
    table = over_benchmarks(daily_returns(report, closes))
    total = table.loc["total_return"]
    found = {"excess before cost": total["excess a year before cost"], "excess": total["excess a year"], "IR": total["IR"],
             "drawdown": total["drawdown"], "TE": total["tracking error"], "over price index": table.loc["price_index", "excess a year"],
             "over equal weights": table.loc["equal_weight", "excess a year"],
             "turnover a year": report["turnover"].sum() / 2 * 252 / len(report)}
    certificates = strategy.table("certificates") if strategy is not None else pd.DataFrame()
    if len(certificates):
        exposures = strategy.table("exposures").merge(certificates[["day", "relaxed"]], on="day")
        strict = exposures[(exposures["relaxed"] == "{}") & np.isfinite(exposures["high"])]
        found |= {"forecast TE": certificates["tracking_error"].mean(),
                  "bands kept": (strict["exposure"].between(strict["low"] - 1e-8, strict["high"] + 1e-8)).mean(),
                  "relaxed": int((certificates["status"] != "optimal").sum()), "rebalances": len(certificates),
                  "worst violation": certificates["violation"].max(), "worst gap": certificates["gap"].max()}
    return found


def ours(scores, index: str, snapshots, missing: str) -> dict:
    """name -> a maker of strategies."""
    from qlib_ext.portfolio.strategy import IndexEnhancementStrategy, TopKStrategy

    def enhanced(preset: str, **constraints):
        return lambda: IndexEnhancementStrategy(signal=scores, index=index, snapshots=snapshots,
                                                optimizer={"preset": preset, "missing_styles": missing, "constraints": constraints})
    makers = {f"dl_em, turnover {limit or 'free'}": enhanced("dl_em", turnover=limit) for limit in TURNOVER}
    makers |= {preset: enhanced(preset) for preset in ("meta", "ai_wide", "ai_strict")}
    makers["top 200, weekly"] = lambda: TopKStrategy(signal=scores, topk=200, universe=index)
    makers["top 200, buffer 0.5"] = lambda: TopKStrategy(signal=scores, topk=200, buffer=0.5, universe=index)
    return makers


def weekly(kind):
    """A Qlib strategy that trades on the first day of a week only."""
    from qlib.backtest.decision import TradeDecisionWO

    class Weekly(kind):
        def generate_trade_decision(self, execute_result=None):
            step = self.trade_calendar.get_trade_step()
            before, now = (self.trade_calendar.get_step_time(step, shift=shift)[0].isocalendar()[:2] for shift in (1, 0))
            return super().generate_trade_decision(execute_result) if step == 0 or before != now else TradeDecisionWO([], self)
    return Weekly


def qlib_rows(scores, index: str, benchmark: str, span, exchange, closes, snapshots) -> dict:
    """Qlib's own strategies in Qlib's loop, on the same exchange."""
    from qlib.backtest import backtest
    from qlib.contrib.strategy import EnhancedIndexingStrategy, TopkDropoutStrategy

    from qlib_ext.store.snapshots import SnapshotStore, export_qlib
    executor = {"class": "SimulatorExecutor", "module_path": "qlib.backtest.executor",
                "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True}}
    run = lambda strategy: backtest(start_time=span[0], end_time=span[1], strategy=strategy, executor=executor, benchmark=benchmark,
                                    # noqa: E731
                                    account=1e8, exchange_kwargs={"exchange": exchange})[0]["1day"][0]
    rows = {"Qlib TopkDropout 50/5": row(run(TopkDropoutStrategy(signal=scores, topk=50, n_drop=5)), closes)}
    if importlib.util.find_spec("ecos") is None:
        print("Qlib's enhanced indexing: skipped, ECOS is not installed")
        return rows
    with tempfile.TemporaryDirectory() as root:
        export_qlib(SnapshotStore(snapshots), root)
        strategy = weekly(EnhancedIndexingStrategy)(signal=scores, riskmodel_root=root, market=index, risk_degree=1.0)
        rows["Qlib EnhancedIndexing, weekly"] = row(run(strategy), closes)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment")
    parser.add_argument("--index", default="csi1000")
    parser.add_argument("--snapshots", required=True, help="folder of risk snapshots")
    parser.add_argument("--valid", nargs=2, default=["2022-01-05", "2022-12-30"])
    parser.add_argument("--test", nargs=2, default=["2023-01-04", "2024-12-27"])
    parser.add_argument("--missing-styles", default="drop")
    parser.add_argument("--only", choices=("ours", "qlib"), help="leave the other's strategies out (Qlib's take minutes)")
    parser.add_argument("--store", help="default QLIB_DATA")
    parser.add_argument("--uri", help="tracking uri; default sqlite:///QLIB_EXT_HOME/tracking.db")
    parser.add_argument("--csv", help="write the table there")
    options = parser.parse_args()
    import qlib

    from qlib_ext.home import home
    manager = {"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
               "kwargs": {"uri": options.uri or f"sqlite:///{home()}/tracking.db", "default_exp_name": options.experiment}}
    qlib.init(provider_uri=options.store or os.environ["QLIB_DATA"], region="cn", exp_manager=manager, logging_level=logging.ERROR)
    from qlib_ext.portfolio.exchange import AShareExchange
    from qlib_ext.portfolio.records import index_returns
    from qlib_ext.portfolio.closes import Closes
    from qlib_ext.store.schema import INDEX_CODES
    scores, benchmark, closes = predictions(options.experiment), INDEX_CODES[options.index], Closes(options.index)
    exchange = AShareExchange(options.valid[0], None)
    rows = {}
    for years, span in (("valid", options.valid), ("test", options.test)):
        bench = index_returns(benchmark, *span)
        makers = {} if options.only == "qlib" else ours(scores, options.index, options.snapshots, options.missing_styles)
        for name, make in makers.items():
            strategy = make()
            rows[years, name] = row(strategy.simulate(exchange, *span, 1e8, bench).report, closes, strategy)
            print(years, name, json.dumps({key: round(float(value), 6) for key, value in rows[years, name].items()}), flush=True)
        if options.only != "ours":
            rows |= {(years, name): one for name, one in qlib_rows(scores, options.index, benchmark, span, exchange, closes,
                                                                   options.snapshots).items()}
    table = pd.DataFrame.from_dict(rows, orient="index")
    print(table.to_string(float_format="{:.4f}".format))
    if options.only != "qlib":
        choice = table.loc["valid"].filter(like="dl_em", axis=0)["excess"].idxmax()
        print(f"Chosen on the validation year, by the excess after cost over the total-return index: {choice}")
    if options.csv:
        table.to_csv(options.csv)


if __name__ == "__main__":
    main()
