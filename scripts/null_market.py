#!/usr/bin/env python
"""No model may find a signal where there is none: `python scripts/null_market.py --out FOLDER [--seeds 0 1 2 3 4]`.

For every seed a generated market without any signal is built, every model that has a workflow is trained on it by that workflow,
and the t of its mean daily IC over the test years is printed (Newey-West, 10 lags; the 5-day labels overlap). Exits with 1 when
some |t| reaches 3. Finished (market, seed, model) lines stay in FOLDER/results.csv and are skipped by the next call with the same
sizes. `--planted` takes the market with its planted signal instead, to see that the same figures do find one.
Sizes are small; QLIB_EXT_EPOCHS and the other variables of the workflows change them.
"""

import argparse
import csv
import logging
import multiprocessing
import os
import sys
from pathlib import Path
from typing import Dict, List

import numpy as np
import pandas as pd

from qlib_ext.demo.build import build_demo, read_truth
from qlib_ext.errors import DataError, ExtError
from qlib_ext.report.metrics import daily_ic, newey_west_t
from qlib_ext.workflow import load_workflow

MODELS = {"MASTER": "meta_master", "GRU": "gru", "LightGBM of Qlib": "baseline_lightgbm", "GRU of Qlib": "baseline_gru"}
SIZES = {"QLIB_EXT_D_MODEL": "32", "QLIB_EXT_EPOCHS": "2", "QLIB_EXT_LR": "0.001", "QLIB_EXT_PATIENCE": "2",
         "QLIB_EXT_DAYS_PER_EPOCH": "240", "QLIB_EXT_DEVICE": "cpu"}  # fmt: skip
WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
LABEL = "Ref($close, -6) / Ref($close, -1) - 1"
LAG, LIMIT = 10, 3.0
COLUMNS = ("market", "seed", "model", "sizes", "days", "mean_ic", "t")


def score_days(score: pd.Series, label: pd.Series) -> np.ndarray:
    """IC of every day that has scores and labels; 0 on days with equal scores, which say nothing. [t]

    Args:
        score, label: on (datetime, instrument); pairs that lack one are left out.

    Raises:
        DataError: no pair at all.
    """
    pairs = pd.concat({"score": score, "label": label}, axis=1, join="inner").dropna()
    if not len(pairs):
        raise DataError("predictions and labels have no (day, stock) in common")
    day = pd.factorize(pairs.index.get_level_values("datetime"), sort=True)[0]
    values = daily_ic(pairs["score"].to_numpy(), pairs["label"].to_numpy(), day)
    spread = pairs["score"].groupby(day).agg(np.ptp).to_numpy()
    return np.where(spread == 0, 0.0, values)


def summary(daily: np.ndarray) -> Dict[str, float]:
    """Days, mean IC and its t; a series of zeros (a model that says nothing) has t 0."""
    t = 0.0 if not daily.any() else newey_west_t(daily, LAG)
    return {"days": int(np.isfinite(daily).sum()), "mean_ic": float(np.nanmean(daily)), "t": t}


def read_results(path: Path) -> List[Dict[str, str]]:
    """Lines of the results file; none when there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def add_result(path: Path, row: Dict[str, object]) -> None:
    """Append a line; the file and its header are made first when absent."""
    new = not path.is_file()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def sizes_in_force() -> str:
    """The sizes as one line, so that results of other sizes are not taken for finished."""
    return " ".join(f"{name.removeprefix('QLIB_EXT_').lower()}={os.environ.get(name) or value}" for name, value in SIZES.items())


def run_market(out: Path, market: str, seed: int, universe: str, models: List[str]) -> None:
    """Build one market and train the models on it, one result line each; meant for a process of its own (one `qlib.init`)."""
    import qlib
    from qlib.data import D
    from qlib.utils import init_instance_by_config
    from qlib.workflow import R

    switches = {} if market == "planted" else {"null": True}
    store = build_demo(out / f"{market}_{seed}", seed=seed, **switches)
    os.environ.update(QLIB_DATA=str(store), QLIB_EXT_HOME=str(out / "home"), QLIB_EXT_SEED=str(seed))
    for name, value in SIZES.items():
        os.environ[name] = os.environ.get(name) or value
    datasets, label = {}, None
    for model_name in models:
        config = load_workflow(WORKFLOWS / f"{MODELS[model_name]}_{universe}.yaml")
        task = config["task"]
        if label is None:
            qlib.init(**config["qlib_init"], logging_level=logging.WARNING)
            first, last = task["dataset"]["kwargs"]["segments"]["test"]
            label = D.features(D.instruments(universe), [LABEL], first, last).iloc[:, 0].swaplevel().sort_index()
        kind = task["dataset"]["class"]
        if kind not in datasets:  # MASTER's data hold what this project's GRU needs
            datasets[kind] = init_instance_by_config(task["dataset"])
        with R.start(experiment_name="null_market"):
            model = init_instance_by_config(task["model"])
            model.fit(datasets[kind])
            score = model.predict(datasets[kind])
        score = score.iloc[:, 0] if isinstance(score, pd.DataFrame) else score
        found = summary(score_days(score, label))
        row = {"market": market, "seed": seed, "model": model_name, "sizes": f"{universe} {sizes_in_force()}", **found}
        add_result(out / "results.csv", row)
        print(f"{market} market, seed {seed}, {model_name}: mean IC {row['mean_ic']:+.4f}, t {row['t']:+.2f}", flush=True)


def best_possible(out: Path, market: str, options) -> str:
    """The best possible IC of every seed, all years, from the truth beside the stores."""
    if market == "null":
        return "no signal at all: best possible IC 0"
    truths = {seed: read_truth(out / f"{market}_{seed}") for seed in options.seeds}
    found = {seed: truth["best_possible_ic"][options.universe]["total"] for seed, truth in truths.items() if truth}
    return "best possible IC " + ", ".join(f"{found[seed]:.4f} (seed {seed})" for seed in found)


def report(rows: List[Dict[str, str]], models: List[str], seeds: List[int]) -> List[str]:
    """A line per model: mean IC and t of every seed, and the largest |t|."""
    cells = {(row["model"], int(row["seed"])): (float(row["mean_ic"]), float(row["t"])) for row in rows}
    lines = ["model".ljust(18) + "".join(f"seed {seed}".rjust(18) for seed in seeds) + "  largest |t|"]
    for name in models:
        values = [cells[name, seed] for seed in seeds]
        lines.append(name.ljust(18) + "".join(f"{mean:+.4f} (t {t:+.2f})".rjust(18) for mean, t in values)
                     + f"{max(abs(t) for _, t in values):13.2f}")  # fmt: skip
    return lines


def main(arguments: List[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the markets and of results.csv")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--universe", choices=("csi300", "csi500", "csi1000"), default="csi1000")
    parser.add_argument("--planted", action="store_true", help="the market with its signal, as a counter-check")
    options = parser.parse_args(arguments)
    out, market = options.out.expanduser().absolute(), "planted" if options.planted else "null"
    out.mkdir(parents=True, exist_ok=True)
    sizes, results = f"{options.universe} {sizes_in_force()}", out / "results.csv"

    def finished() -> List[Dict[str, str]]:
        return [row for row in read_results(results) if row["market"] == market and row["sizes"] == sizes]

    for seed in options.seeds:
        done = {row["model"] for row in finished() if int(row["seed"]) == seed}
        missing = [name for name in options.models if name not in done]
        if missing:
            process = multiprocessing.get_context("spawn").Process(
                target=run_market, args=(out, market, seed, options.universe, missing))  # fmt: skip
            process.start()
            process.join()
            if process.exitcode:
                print(f"error: the {market} market of seed {seed} stopped (see above); call again to go on", file=sys.stderr)
                return 2
    rows = finished()
    print(f"Generated market, {market}, {best_possible(out, market, options)}; {sizes}")
    print("\n".join(report(rows, options.models, options.seeds)))
    asked = [float(row["t"]) for row in rows if row["model"] in options.models and int(row["seed"]) in options.seeds]
    return int(not all(abs(t) < LIMIT for t in asked))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ExtError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
