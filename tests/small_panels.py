"""A small random panel with a learnable signal, and trainer options that keep tests quiet."""
import numpy as np

from qlib_ext.data.panel import Block, Panel

QUIET = {"device": "cpu", "progress": False}


def small_panel(days=30, stocks=12, features=3, window=4, seed=0, holes=0.15, unlabelled=0.15, horizons=1, missing_rows="nan",
                **changes) -> Panel:
    """Absent rows (`holes`), unlabelled stocks, a changing universe; the label is the first feature of the day plus noise."""
    draw = np.random.default_rng(seed)
    present = draw.random((days, stocks)) >= holes
    present[: days // 3, 0] = False                       # listed late
    present[days // 2:, 1] = False                        # gone early
    count = int(present.sum())
    rows = np.full((days, stocks), -1, np.int32)
    rows[present] = draw.permutation(count).astype(np.int32)
    values = draw.standard_normal((count + 1, features)).astype(np.float32)
    raw = (0.02 * values[:, :1] + 0.01 * draw.standard_normal((count + 1, horizons))).astype(np.float32)
    raw[draw.random(count + 1) < unlabelled] = np.nan
    label_eval = (50 * raw).astype(np.float32)
    label = label_eval.copy()
    label[draw.random(count + 1) < 0.1] = np.nan          # dropped from training alone
    for table in (values, raw, label_eval, label):
        table[-1] = np.nan
    options = dict(
        blocks={"stock": Block(values, window, [f"F{k}" for k in range(features)])}, rows=rows,
        days=np.datetime64("2020-01-01") + np.arange(days), instruments=np.array([f"SH60{k:04d}" for k in range(stocks)]),
        universe=draw.random((days, stocks)) < 0.85, label=label, label_eval=label_eval, label_raw=raw,
        label_names=[f"LABEL{h}" for h in range(horizons)], missing_rows=missing_rows,
        day_aux={"market": draw.standard_normal((days, 2)).astype(np.float32)},
        segments={"train": (0, 18), "valid": (18, 24), "test": (24, days)}, meta={"made_for": "tests"})
    return Panel(**{**options, **changes})
