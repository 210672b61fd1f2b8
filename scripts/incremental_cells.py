"""Panels and models of `incremental_evidence.py`: what a cell learns from, how it is fitted, what it scores."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Callable

import numpy as np
import pandas as pd
from incremental_table import figures

from qlib_ext.data.pack import load_panel, pack_panel
from qlib_ext.data.panel import Panel
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.metadata import fingerprint
from qlib_ext.training.split import rolling_segments

ROLLING = "rolling_retrain"
STEP = 60


# ---- the panel ----------------------------------------------------------------------------------------------------------------
def shipped_panel(workflow: Path, store: str, cache: str | Path, change: Callable[[dict], None] | None = None) -> Panel:
    """The panel of a workflow's dataset on a store, from the pack in `cache` if that was made of both as they are now.

    Args:
        change: what is done to the configuration of the dataset first.

    Raises:
        DataError: the pack says that it is of another store.
    """
    from qlib_ext.workflow import load_workflow

    os.environ["QLIB_DATA"] = str(store)
    dataset, print_of_store = load_workflow(workflow)["task"]["dataset"], fingerprint(store)
    if change is not None:
        change(dataset)
    blocks = sorted(Path(f"{store}.intraday", "blocks").glob("*/*/*.parquet"))                       # not in the store's fingerprint
    made_of = [dataset, print_of_store, *([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in blocks)]
    pack = Path(cache, f"{Path(store).name}-{workflow.stem}-{digest(made_of)}.npz")
    started = time.perf_counter()
    if not pack.is_file():
        import qlib
        from qlib.utils import init_instance_by_config
        qlib.init(provider_uri=str(store), region="cn", logging_level=logging.ERROR)
        dataset["kwargs"]["keep_frames"] = False
        pack_panel(members_only(init_instance_by_config(dataset).panel()), pack)
        say(f"made {pack.name}, {pack.stat().st_size / 2**20:.0f} MiB, in {time.perf_counter() - started:.0f} s")
        started = time.perf_counter()
    panel = load_panel(pack)
    if panel.meta["store"] != print_of_store:
        raise DataError(f"{pack} was made of store {panel.meta['store']}, {store} is {print_of_store}: delete it")
    say(f"{pack.name}: {len(panel.days)} days {panel.days[0]} .. {panel.days[-1]}, {len(panel.instruments)} stocks, "
        f"{panel.nbytes() / 2**20:.0f} MiB, loaded in {time.perf_counter() - started:.1f} s; " + ", ".join(
            f"{name} {panel.days[a]} .. {panel.days[b - 1]} ({b - a} days)" for name, (a, b) in panel.segments.items()))
    return panel


def members_only(panel: Panel) -> Panel:
    """The panel without stocks that are never in the universe: the same batches from fewer rows."""
    keep = panel.universe.any(axis=0)
    old = panel.rows[:, keep]
    present = old >= 0
    wanted = np.r_[old[present], len(panel.label) - 1]                    # the NaN row stays last
    rows = np.full(old.shape, -1, np.int32)
    rows[present] = np.arange(present.sum(), dtype=np.int32)
    return with_tables(panel, lambda values: values[wanted], rows=rows, instruments=panel.instruments[keep],
                       universe=panel.universe[:, keep])


def blinded(panel: Panel) -> Panel:
    """The panel as it is known before the first test day: no row and no value of later days, no label that needs their prices; calendar
    and segments stay."""
    first = panel.segments["test"][0]
    rows, universe, labels = panel.rows.copy(), panel.universe.copy(), ("label", "label_eval", "label_raw")
    rows[first:], universe[first:] = -1, False
    later, reaching = (panel.rows[day:][panel.rows[day:] >= 0] for day in (first, first - panel.meta.get("embargo", 0)))
    known = with_tables(panel, lambda values: without(values, later), rows=rows, universe=universe,
                        day_aux={name: without(values, slice(first, None)) for name, values in panel.day_aux.items()})
    return replace(known, **{name: without(getattr(panel, name), reaching) for name in labels})


def with_tables(panel: Panel, change: Callable[[np.ndarray], np.ndarray], **others) -> Panel:
    """The panel with every table of rows changed (one that stands in two places once), and with other fields."""
    made: dict[int, np.ndarray] = {}

    def once(values: np.ndarray) -> np.ndarray:
        if id(values) not in made:
            made[id(values)] = change(values)
        return made[id(values)]
    return replace(panel, blocks={name: replace(block, values=once(block.values)) for name, block in panel.blocks.items()}, lookup=None,
                   label=once(panel.label), label_eval=once(panel.label_eval), label_raw=once(panel.label_raw),
                   stock_aux={name: once(values) for name, values in panel.stock_aux.items()}, **others)


def without(values: np.ndarray, places) -> np.ndarray:
    """A copy with NaN in some rows."""
    values = values.copy()
    values[places] = np.nan
    return values


# ---- models -------------------------------------------------------------------------------------------------------------------
def learn_torch(panel: Panel, section: dict, score: bool) -> tuple[dict, tuple | None]:
    """Fits a `TorchModel`; with `score` it scores the test segment too.

    Returns:
        The facts of the fit; day positions, stock positions and scores.
    """
    from qlib_ext.training.__main__ import build_model
    model, started = build_model(section), time.perf_counter()
    model.fit_panel(panel)
    history, facts = model.history_, {"fit_seconds": time.perf_counter() - started}
    best = history.epochs[history.best_epoch] if history.epochs else {}
    facts |= {"epochs": len(history.epochs), "best_epoch": None if history.best_epoch is None else history.best_epoch + 1,
              "valid_ic": best.get("valid_ic"), "valid_rank_ic": best.get("valid_rank_ic"), "valid_adaptation": best.get("adaptation"),
              "epoch_seconds": np.mean([row["seconds"] for row in history.epochs]) if history.epochs else None,
              "parameters": model.run_card_["parameters"]}
    if not score:
        return facts, None
    started = time.perf_counter()
    scored = model.predict_panel(panel.view("test"))
    first = str(panel.days[panel.segments["test"][0]])
    tasks = [row for row in getattr(model.rule, "report", []) if row["date"] >= first]
    norms = [row["adaptation"] for row in tasks if "adaptation" in row]
    return facts | {"predict_seconds": time.perf_counter() - started, "tasks": len(tasks),
                    "adaptation": float(np.mean(norms)) if norms else None}, scored


def learn_lightgbm(panel: Panel, section: dict, score: bool) -> tuple[dict, tuple | None]:
    """`learn_torch` for LightGBM on the features of the day; `section` is the model section of a LightGBM workflow with a rule.

    Raises:
        ConfigError: another rule than static and rolling retraining, or an option it does not have.
    """
    import lightgbm
    options = dict(section["kwargs"])
    rule, trainer = options.pop("rule"), options.pop("trainer")
    if rule["name"] not in ("static", ROLLING) or set(rule) - ({"name", "task_length", "window"} if rule["name"] == ROLLING else {"name"}):
        raise ConfigError(f"LightGBM learns by static, or {ROLLING} with task_length and window, not by {rule}")
    rounds, patience = options.pop("num_boost_round", 1000), options.pop("early_stopping_rounds", 50)
    params = {"objective": options.pop("loss", "mse"), "verbosity": -1, **options, "seed": trainer["seed"],
              "num_threads": trainer["threads"]}

    def fit(segments):
        train, valid = (lightgbm.Dataset(*day_rows(panel, segments[name], label)[:2])
                        for name, label in (("train", panel.label), ("valid", panel.label_eval)))
        return lightgbm.train(params, train, rounds, valid_sets=[valid],
                              callbacks=[lightgbm.early_stopping(patience, verbose=False), lightgbm.log_evaluation(0)])

    started = time.perf_counter()
    booster = fit(panel.segments)
    features, _, days, stocks = day_rows(panel, panel.segments["valid"])
    checked = figures(framed(panel, days, stocks, booster.predict(features)), 2)
    facts = {"fit_seconds": time.perf_counter() - started, "epochs": booster.current_iteration(), "best_epoch": booster.best_iteration,
             "valid_ic": checked["IC"], "valid_rank_ic": checked["RankIC"], "parameters": None, "adaptation": None}
    if not score:
        return facts, None
    started, tasks = time.perf_counter(), [panel.segments]
    if rule["name"] == ROLLING:
        tasks = rolling_segments(panel.segments, rule.get("task_length", STEP), rule.get("window", "expanding"))
    scored = []
    for number, task in enumerate(tasks):
        booster = fit(task) if number else booster
        features, _, days, stocks = day_rows(panel, task["test"])
        scored.append((days, stocks, booster.predict(features)))
    return facts | {"predict_seconds": time.perf_counter() - started, "tasks": len(tasks)}, tuple(map(np.concatenate, zip(*scored)))


def day_rows(panel: Panel, span: tuple[int, int], label: np.ndarray | None = None) -> tuple:
    """Features ``[p, f]`` and labels ``[p]`` (None without) of the (day, stock) pairs of a span in order, and their positions; with
    labels only the pairs that have one."""
    first, last = span
    days, stocks = np.nonzero(panel.universe[first:last] & (panel.rows[first:last] >= 0))
    rows = panel.rows[first + days, stocks]
    if label is not None:
        known = np.isfinite(label[rows, 0])
        days, stocks, rows = days[known], stocks[known], rows[known]
    values = next(iter(panel.blocks.values())).values
    return values[rows], None if label is None else label[rows, 0], first + days, stocks


def framed(panel: Panel, days, stocks, scores, column: int = 0) -> pd.DataFrame:
    """``score`` and raw ``label`` by (datetime, instrument)."""
    index = pd.MultiIndex.from_arrays([panel.days[days].astype("datetime64[ns]"), panel.instruments[stocks]],
                                      names=["datetime", "instrument"])
    return pd.DataFrame({"score": np.asarray(scores, np.float32), "label": panel.label_raw[panel.rows[days, stocks], column]},
                        index=index).sort_index()


def keep_memory() -> None:
    """Has glibc keep large buffers for the next use: attention over 1,000 stocks takes a third less time on the CPU."""
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 2**28)):      # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD
            library.mallopt(option, value)


# ---- what both files use -----------------------------------------------------------------------------------------------------
def digest(content) -> str:
    """Ten hex digits of what JSON makes of it."""
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=5).hexdigest()


def say(text: str) -> None:
    print(text, flush=True)
