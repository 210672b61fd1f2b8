"""A plain Qlib folder as Qlib's own dump scripts write one: bars, factor, instruments, index bars, nothing of this package."""

from pathlib import Path

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from qlib_ext.workflow import load_workflow

ROOT = Path(__file__).resolve().parents[2]
DAYS = pd.bdate_range("2019-01-01", "2020-06-30")
CODES = [f"SH6000{i:02d}" for i in range(18)] + [f"SZ3000{i:02d}" for i in range(12)]
FIELDS = ("open", "high", "low", "close", "volume", "factor", "change")
SEGMENTS = {"train": ["2019-03-01", "2019-12-20"], "valid": ["2020-01-01", "2020-03-20"], "test": ["2020-04-01", "2020-06-29"]}
FIT = {"fit_start_time": "2019-03-01", "fit_end_time": "2019-12-20"}


def write_foreign_store(folder: Path, fields=FIELDS, universes=("csi300", "csi500"), indices=("SH000300", "SH000905"),
                        lower=False) -> Path:
    """30 stocks of random walks over a year and a half; all of them in every universe; half of them pay a split (factor)."""
    for part in ("calendars", "instruments"):
        (folder / part).mkdir(parents=True)
    (folder / "calendars" / "day.txt").write_text("".join(f"{day:%Y-%m-%d}\n" for day in DAYS))
    for name, codes in [("all", [*CODES, *indices])] + [(name, CODES) for name in universes]:
        lines = (f"{code.lower() if lower else code}\t{DAYS[0]:%Y-%m-%d}\t{DAYS[-1]:%Y-%m-%d}\n" for code in codes)
        (folder / "instruments" / f"{name}.txt").write_text("".join(lines))
    generator = np.random.default_rng(11)
    for place, code in enumerate([*CODES, *indices]):
        change = generator.normal(0, 0.015, len(DAYS)).clip(-0.04, 0.04)
        close = 20 * np.exp(np.cumsum(change))
        open_ = close * np.exp(generator.normal(0, 0.003, len(DAYS)))
        bars = {"open": open_, "close": close, "high": np.maximum(open_, close) * 1.004, "low": np.minimum(open_, close) * 0.996,
                "volume": np.exp(generator.normal(14, 0.3, len(DAYS))),
                "factor": np.where(np.arange(len(DAYS)) < 150, 1, 1 + place % 2),
                "change": np.append(np.nan, close[1:] / close[:-1] - 1)}
        bars["vwap"], bars["amount"] = (bars["high"] + bars["low"] + close) / 3, bars["volume"] * close
        place = folder / "features" / code.lower()
        place.mkdir(parents=True)
        for field in fields:
            np.r_[0.0, bars[field]].astype("<f4").tofile(place / f"{field}.day.bin")
    return folder


def short_workflow(name: str, path: Path, change=lambda config: None) -> Path:
    """A workflow of the project as it is, with shorter dates and what `change` changes; sizes come from the environment."""
    config = load_workflow(ROOT / "workflows" / f"{name}.yaml")
    dataset = config["task"]["dataset"]["kwargs"]
    dataset["segments"] = SEGMENTS
    dataset["handler"]["kwargs"].update(start_time="2019-01-01", end_time="2020-06-30", **FIT)
    for loader in (dataset.get("aux") or {}).values():
        for part in loader["kwargs"].get("parts", [loader]):
            part["kwargs"].update(FIT)
    portfolio = next(record["kwargs"]["config"] for record in config["task"]["record"] if "config" in record.get("kwargs", {}))
    portfolio["backtest"].update(start_time="2020-04-01", end_time="2020-06-24")
    strategy = portfolio["strategy"]
    strategy["kwargs"].update({"topk": 5, "n_drop": 1} if strategy["class"] == "TopkDropoutStrategy" else {})
    change(config)
    config.pop("BASE_CONFIG_PATH")
    with open(path, "w") as file:
        YAML(typ="safe", pure=True).dump(config, file)
    return path
