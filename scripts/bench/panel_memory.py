"""Resident memory of a panel over the bytes of its value array, once the frames it came from are freed.

    python scripts/bench/panel_memory.py --store STORE [--stocks 2500] [--days 1700] [--features 158]

STORE is any Qlib store with enough trading days (the demo market has 2,400); only its calendar is used.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import time

import numpy as np
import pandas as pd
import qlib
from qlib.data import D
from qlib.data.dataset.handler import DataHandlerLP

from qlib_ext.data.dataset import PanelDatasetH


class FrameHandler(DataHandlerLP):
    """A handler whose frames are random numbers: `stocks` x `days` x `features`, one row in fifty missing."""

    def __init__(self, stocks: int, days: int, features: int, init_data: bool = True):
        self.size = stocks, days, features
        loader = {"class": "QlibDataLoader", "kwargs": {"config": {"feature": ["$close"], "label": ["Ref($close,-6)/Ref($close,-1)-1"]}}}
        super().__init__(instruments="all", data_loader=loader, init_data=init_data)

    def setup_data(self, **kwargs) -> None:
        """Make the frame; the raw, inference and learning tables are one and the same."""
        stocks, days, features = self.size
        rng = np.random.default_rng(0)
        calendar = pd.DatetimeIndex(D.calendar(freq="day")[-days - 20:-20])
        index = pd.MultiIndex.from_product([calendar, [f"SH{600000 + k}" for k in range(stocks)]], names=["datetime", "instrument"])
        index = index[rng.random(len(index)) > 0.02]
        columns = pd.MultiIndex.from_tuples([("feature", f"f{k}") for k in range(features)] + [("label", "LABEL0")])
        values = np.empty((len(columns), len(index)), np.float32)
        for column in values:
            rng.standard_normal(out=column, dtype=np.float32)
        self._data = self._infer = self._learn = pd.DataFrame(values.T, index=index, columns=columns, copy=False)


def resident() -> int:
    """Resident bytes of this process, after freed memory was handed back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Build, free, measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", required=True)
    for name, default in (("stocks", 2500), ("days", 1700), ("features", 158)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    qlib.init(provider_uri=options.store, region="cn", logging_level=40)
    calendar = D.calendar(freq="day")
    spans = {"train": (calendar[-options.days], calendar[-500]), "valid": (calendar[-499], calendar[-300]),
             "test": (calendar[-299], calendar[-30])}
    before = resident()
    started = time.perf_counter()
    handler = {"class": FrameHandler, "kwargs": {"stocks": options.stocks, "days": options.days, "features": options.features}}
    dataset = PanelDatasetH(handler, spans, keep_frames=False)
    panel = dataset.panel()
    seconds, used = time.perf_counter() - started, resident() - before
    values = panel.blocks["stock"].values.nbytes
    print(f"value array {values / 2**30:.3f} GiB, panel arrays {panel.nbytes() / values:.3f} of it, resident {used / values:.3f} of it "
          f"({seconds:.1f} s with making the frame; {panel.rows.shape[1]} stocks x {panel.rows.shape[0]} days)")


if __name__ == "__main__":
    main()
