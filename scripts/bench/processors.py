"""Seconds of our processors and of Qlib's as calls on one frame, as ratios inside one run.

    python scripts/bench/processors.py [--stocks 300] [--days 60] [--features 158] [--rounds 5] [--only ProcessInf,Fillna]
                                       [--rows 0]

The two are interleaved, the medians of the rounds are compared; ours is called once before on a small frame, which compiles it
(or reads the compiled code from disk): those seconds are printed apart. Fitted processors are timed with their `fit`. With
`--rows` ours work in place on one array of so many rows instead, and Qlib's are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Callable

import numpy as np
import pandas as pd
from qlib.data.dataset import processor as qlib_processor

from qlib_ext.data import processor as our_processor

SPAN = {"fit_start_time": "2015-01-01", "fit_end_time": "2100-01-01"}
CASES = [("RobustZScoreNorm", {**SPAN, "fields_group": "feature"}), ("ZScoreNorm", {**SPAN, "fields_group": "feature"}),
         ("MinMaxNorm", {**SPAN, "fields_group": "feature"}), ("Fillna", {"fields_group": "feature"}), ("TanhProcess", {}),
         ("ProcessInf", {}), ("CSZFillna", {"fields_group": "feature"}), ("CSRankNorm", {"fields_group": "feature"}),
         ("CSZScoreNorm", {"fields_group": "feature"}), ("CSZScoreNorm", {"fields_group": "feature", "method": "robust"}),
         ("DropnaLabel", {}), ("CSWinsorize", {"fields_group": "feature"}),
         ("CSNeutralize", {"fields_group": "feature", "industry": None, "exposures": [("feature", "f0")]})]


def make_frame(stocks: int, days: int, features: int) -> pd.DataFrame:
    """Random float32 columns, one value in twenty missing, a few infinite."""
    rng = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([pd.bdate_range("2015-01-05", periods=days), [f"SH{600000 + k}" for k in range(stocks)]],
                                       names=["datetime", "instrument"])
    columns = pd.MultiIndex.from_tuples([("feature", f"f{k}") for k in range(features)] + [("label", "LABEL0")])
    values = np.empty((len(columns), len(index)), np.float32)
    for column in values:
        rng.standard_normal(out=column, dtype=np.float32)
        column[rng.integers(0, len(index), len(index) // 20)] = np.nan
        column[rng.integers(0, len(index), len(index) // 2000 + 1)] = np.inf
    return pd.DataFrame(values.T, index=index, columns=columns, copy=False)


def seconds(function: Callable, *arguments) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def on_frame(processor, frame: pd.DataFrame) -> None:
    """Fit and call."""
    processor.fit(frame)
    processor(frame)


def on_array(processor, frame: pd.DataFrame, features: np.ndarray) -> None:
    """Fit and apply in place."""
    columns = {"feature": frame.columns.get_level_values(1)[:-1].tolist()}
    processor.fit_arrays({"feature": features}, frame.index, columns)
    processor.apply_arrays({"feature": features}, frame.index, columns)


def main() -> None:
    """Print one line a processor."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("stocks", 300), ("days", 60), ("features", 158), ("rounds", 5), ("rows", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default="", help="names of processors, with commas between")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    days = -(-options.rows // options.stocks) if options.rows else options.days
    frame, small = make_frame(options.stocks, days, options.features), make_frame(10, 5, 3)
    for name, keywords in CASES:
        if options.only and name not in options.only.split(","):
            continue
        ours, theirs = getattr(our_processor, name), getattr(qlib_processor, name, None)
        first = seconds(on_frame, ours(**keywords), small)
        title = f"{name}{' robust' if keywords.get('method') == 'robust' else ''}"
        if options.rows:
            array_line(title, ours(**keywords), frame, options)
        else:
            frame_line(title, first, [cls and (lambda cls=cls: cls(**keywords)) for cls in (ours, theirs)], frame, options)


def frame_line(title: str, first: float, makers: list, frame: pd.DataFrame, options) -> None:
    """Time both on copies of the frame, in turn."""
    times = [[], []]
    for _ in range(options.rounds):
        for spent, make in zip(times, makers):
            if make:
                spent.append(seconds(on_frame, make(), frame.copy()))
    ours, theirs = (statistics.median(spent) if spent else float("nan") for spent in times)
    print(f"{title:22s} Qlib's / ours = {theirs / ours:7.1f}   (ours {ours * 1e3:8.1f} ms, Qlib's {theirs * 1e3:9.1f} ms; "
          f"{options.days} days x {options.stocks} stocks x {options.features}; first call {first:.2f} s)", flush=True)


def array_line(title: str, processor, frame: pd.DataFrame, options) -> None:
    """Time ours in place on the features of the frame."""
    if isinstance(processor, our_processor.ArrayProcessor) and processor.groups(["feature", "label"]):
        features = np.ascontiguousarray(frame["feature"].to_numpy())
        spent = [seconds(on_array, processor, frame, features.copy()) for _ in range(options.rounds)]
        print(f"{title:22s} {statistics.median(spent):6.2f} s on [{len(frame)}, {options.features}] float32", flush=True)


if __name__ == "__main__":
    main()
