"""On the demo market MASTER at quickstart's sizes learns at least 0.8 of what LightGBM learns (slow; three seeds)."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[1]

TRAIN = """
import sys
import qlib
from qlib.utils import init_instance_by_config
from qlib.workflow import R
from qlib_ext.workflow import load_workflow
config = load_workflow(sys.argv[1])
qlib.init(**config["qlib_init"])
task = config["task"]
dataset = init_instance_by_config(task["dataset"])
for seed in map(int, sys.argv[3:]):
    if "trainer" in task["model"]["kwargs"]:
        task["model"]["kwargs"]["trainer"]["seed"] = seed
    with R.start(experiment_name="demo"):
        model = init_instance_by_config(task["model"])
        model.fit(dataset)
        model.predict(dataset).rename("score").to_frame().to_parquet(f"{sys.argv[2]}.{seed}.parquet")
dataset.handler.fetch(col_set="label", data_key="raw").to_parquet(f"{sys.argv[2]}.label.parquet")
"""


def small_sizes() -> dict:
    """The sizes quickstart.sh sets."""
    text = (ROOT / "scripts" / "quickstart.sh").read_text()
    return dict(re.findall(r'\$\{(QLIB_EXT_[A-Z_]+):=([^}]+)\}', text))


def daily_ic(score: pd.Series, label: pd.Series) -> float:
    pairs = pd.concat({"score": score, "label": label}, axis=1).dropna()
    return pairs.groupby(level="datetime").apply(lambda day: day["score"].corr(day["label"])).mean()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_master_reaches_eight_tenths_of_lightgbm(tmp_path, monkeypatch):
    pytest.importorskip("lightgbm")
    from qlib_ext.demo.build import build_demo

    store = build_demo(tmp_path / "store")
    monkeypatch.setenv("QLIB_DATA", str(store))
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path / "home"))
    sizes = small_sizes()
    assert {"QLIB_EXT_D_MODEL", "QLIB_EXT_EPOCHS", "QLIB_EXT_LR"} <= set(sizes)
    for name, value in sizes.items():
        monkeypatch.setenv(name, value)
    for workflow, seeds in (("meta_master_csi1000", "0 1 2"), ("baseline_lightgbm_csi1000", "0")):
        out = tmp_path / workflow
        subprocess.run([sys.executable, "-c", TRAIN, str(ROOT / "workflows" / f"{workflow}.yaml"), str(out), *seeds.split()],
                       check=True, cwd=tmp_path)
    label = pd.read_parquet(tmp_path / "meta_master_csi1000.label.parquet").iloc[:, 0]
    lightgbm = pd.read_parquet(tmp_path / "baseline_lightgbm_csi1000.0.parquet")["score"]
    runs = [pd.read_parquet(tmp_path / f"meta_master_csi1000.{seed}.parquet")["score"] for seed in (0, 1, 2)]
    common = lightgbm.index.intersection(runs[0].index)
    assert len(common) > 0.99 * len(lightgbm)
    reference = daily_ic(lightgbm[common], label)
    values = np.array([daily_ic(run[common], label) for run in runs])
    print(f"demo IC: LightGBM {reference:.4f}, MASTER {values.round(4)} mean {values.mean():.4f}, ratio {values.mean() / reference:.2f}")
    assert values.mean() >= 0.8 * reference
