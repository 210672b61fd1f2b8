"""Index-enhanced portfolios of predictions that are in a recorder: `python -m qlib_ext.portfolio EXPERIMENT --index csi300 csi500
csi1000`."""

from __future__ import annotations

import argparse
import sys

import pandas as pd
import qlib
from qlib.workflow import R

from qlib_ext.data.universe import trading_calendar
from qlib_ext.errors import DataError, ExtError
from qlib_ext.home import home, named_store
from qlib_ext.portfolio.preset import PRESETS
from qlib_ext.portfolio.records import ENGINES, PortfolioRecord, backtest_config
from qlib_ext.portfolio.signal import find_recorder
from qlib_ext.store.metadata import check_store
from qlib_ext.store.schema import INDEX_CODES


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0, or 1 with the error's sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m qlib_ext.portfolio", description="Portfolios of one recorder's predictions, one for "
                                     "each index; results go into that recorder, under portfolio_analysis/<index>.")
    parser.add_argument("experiment", help="experiment whose predictions are used")
    parser.add_argument("--recorder", help="its recorder; default: the latest finished one")
    parser.add_argument("--index", nargs="+", default=list(INDEX_CODES), choices=list(INDEX_CODES),
                        help="indices to enhance; default: all three")
    parser.add_argument("--preset", default="meta", choices=list(PRESETS), help="set of constraints (default meta)")
    parser.add_argument("--missing-styles", default="error", choices=("error", "drop"), help="what a band on a style the store lacks means")
    parser.add_argument("--engine", default="fast", choices=ENGINES)
    parser.add_argument("--costs", default="broker", choices=("broker", "dated"))
    parser.add_argument("--deal-price", default="close")
    parser.add_argument("--account", type=float, default=1e8)
    parser.add_argument("--start", help="first day traded; default: the first one after the first prediction")
    parser.add_argument("--end", help="last day traded; default: the last one that the predictions allow")
    parser.add_argument("--snapshots", help="folder of risk snapshots; default: those of the store, made where days are missing")
    parser.add_argument("--store", help="default QLIB_DATA, else the demo market")
    parser.add_argument("--uri", help="tracking uri; default sqlite:///QLIB_EXT_HOME/tracking.db")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _run(options) -> int:
    store = check_store(named_store(options.store))
    manager = {"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
               "kwargs": {"uri": options.uri or f"sqlite:///{home()}/tracking.db", "default_exp_name": options.experiment}}
    qlib.init(provider_uri=str(store), region="cn", exp_manager=manager)
    recorder, scores = find_recorder(options.experiment, options.recorder)
    start, end = _span(scores, options.start, options.end)
    faults = 0
    for index in options.index:
        strategy = {"class": "IndexEnhancementStrategy", "module_path": "qlib_ext.portfolio.strategy", "kwargs": {
            "signal": "<PRED>", "index": index, "snapshots": options.snapshots,
            "optimizer": {"preset": options.preset, "missing_styles": options.missing_styles}}}
        config = backtest_config(strategy, start, end, INDEX_CODES[index], {"deal_price": options.deal_price, "costs": options.costs},
                                 options.account)
        record = PortfolioRecord(R.get_recorder(recorder_id=recorder, experiment_name=options.experiment), config, engine=options.engine,
                                 index=index, name=index)
        try:
            if record.generate() is None:
                raise DataError(f"recorder {recorder} has no predictions any more: run the workflow of {options.experiment!r} again")
        except ExtError as error:                                  # the other indices may do
            print(f"{index}: {type(error).__name__}: {error}", file=sys.stderr)
            faults += 1
    return int(faults > 0)


def _span(scores: pd.DataFrame, start: str | None, end: str | None) -> tuple[str, str]:
    """First and last day traded: from the day after the first scores to the second day after the last ones (Qlib needs a day more)."""
    calendar = pd.DatetimeIndex(trading_calendar().astype("datetime64[ns]"))
    days = scores.index.get_level_values("datetime")
    first = calendar.searchsorted(pd.Timestamp(start)) if start else calendar.searchsorted(days.min(), side="right")
    last = (calendar.searchsorted(pd.Timestamp(end), side="right") if end else calendar.searchsorted(days.max(), side="right") + 1) - 1
    last = min(last, len(calendar) - 2)
    if first > last:
        raise DataError(f"no trading day from {start or days.min()} to {end or days.max()} in the store, which ends on "
                        f"{calendar[-1]:%Y-%m-%d}")
    return str(calendar[first].date()), str(calendar[last].date())


if __name__ == "__main__":
    sys.exit(main())
