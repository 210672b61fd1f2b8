"""The small generated market with its risk snapshots and a signal, made once a session."""
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

FIRST, LAST = "2016-05-03", "2016-10-28"
LIMITS = {"benchmark_multiple": 5.0, "industry": 0.15, "style": {"size": 0.5}, "turnover": 0.3}


@lru_cache(maxsize=None)
def scores(store: Path) -> pd.DataFrame:
    """Random scores of every stock on every trading day of the span, some missing."""
    from qlib.data import D
    frame = D.features(D.instruments("all"), ["$close"], start_time="2016-04-25", end_time=LAST).swaplevel().sort_index()
    draw = np.random.default_rng(3)
    values = draw.normal(size=len(frame))
    values[draw.random(len(frame)) < 0.02] = np.nan
    return pd.DataFrame({"score": values}, index=frame.index)


def backtest(strategy, exchange, end: str = LAST, benchmark: str = "SH000852"):
    """Qlib's report and positions of a strategy on an exchange."""
    from qlib.backtest import backtest as run
    executor = {"class": "SimulatorExecutor", "module_path": "qlib.backtest.executor",
                "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True}}
    found = run(start_time=FIRST, end_time=end, strategy=strategy, executor=executor, benchmark=benchmark, account=1e7,
                exchange_kwargs={"exchange": exchange})
    return found[0]["1day"]
