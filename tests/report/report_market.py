"""The small generated market with risk snapshots, a signal with raw labels, and a recorder that holds a back-test of it."""
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from small_market import LABEL

FIRST, LAST = "2016-08-01", "2016-10-28"


@lru_cache(maxsize=None)
def signal(store: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions that know a little of the labels, some missing, and the labels, of every stock; Qlib runs on the store."""
    from qlib.data import D
    frame = D.features(D.instruments("all"), [LABEL], start_time="2016-07-20", end_time=LAST).swaplevel().sort_index()
    frame.columns, draw = ["LABEL0"], np.random.default_rng(3)
    scores = (frame["LABEL0"].fillna(0) * 5 + draw.normal(size=len(frame))).where(draw.random(len(frame)) > 0.02)
    return scores.to_frame("score"), frame


def manager(uri: str) -> dict:
    """Tracking of a run, for `start_qlib`."""
    return {"class": "SqliteExpManager", "module_path": "qlib_ext.tracking", "kwargs": {"uri": uri, "default_exp_name": "Experiment"}}
