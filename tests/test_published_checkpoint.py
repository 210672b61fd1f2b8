"""The CSI300 network published by MASTER's authors: its scores, and its IC on real data through our store and workflow."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from qlib_ext.models.master import MASTERNet
from qlib_ext.report.metrics import ic, rank_ic

pytestmark = pytest.mark.realdata

WORKFLOW = Path(__file__).resolve().parents[1] / "workflows" / "master_published_csi300.yaml"
# Qlib's own Alpha158 and the authors' network on the same tables; the allowed distance.
EXPECTED = {"IC": (0.0641, 0.002), "ICIR": (0.427, 0.015), "RankIC": (0.0696, 0.002), "RankICIR": (0.450, 0.015)}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_scores_of_the_published_network(real_data, dtype, tolerance, fused):
    expected = np.load(real_data / "master" / "csi300_opensource_0.expected.npz")
    net = MASTERNet.from_published(real_data / "master" / "csi300_opensource_0.pt").to(dtype)
    for block in (net.temporal, net.stock):
        block.attention.fused = fused
    with torch.no_grad():
        score = net(torch.from_numpy(expected["features"]).to(dtype), torch.from_numpy(expected["market"]).to(dtype))
    assert np.abs(score.double().numpy() - expected["score"]).max() < tolerance
    assert np.std(expected["score"]) > 1000 * 1e-5


@pytest.fixture(scope="module")
def published_run(real_data, tmp_path_factory) -> Path:
    """Folder of the recorder's artefacts after `qrun` of the workflow on a store made of the CSI300 part of the tables.

    Rows after 2023-01 and stocks that were never in CSI300 cannot matter: the handler loads members until 2022-12-31, Alpha158
    looks at one stock at a time, statistics are fitted on members, and a label reaches 5 days ahead.
    """
    folder = tmp_path_factory.mktemp("published")
    tables = csi300_tables(real_data / "ashare_daily", "2023-01-31", folder / "tables")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QLIB_EXT_HOME": str(folder / "home"),
                   "QLIB_DATA": str(folder / "store"), "QLIB_EXT_DEVICE": "cpu", "PYTHONPATH": str(WORKFLOW.parents[1]),
                   "QLIB_EXT_MASTER_MARKET": str(real_data / "master" / "market_information.parquet"),
                   "QLIB_EXT_MASTER_CHECKPOINT": str(real_data / "master" / "csi300_opensource_0.pt")}
    for command in (["qlib_ext.store", "ingest", "--tables", str(tables), "--out", str(folder / "store"), "--vwap", "amount"],
                    ["qlib.cli.run", str(WORKFLOW)]):
        done = subprocess.run([sys.executable, "-m", *command], env=environment, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return next((folder / "home" / "artifacts").rglob("pred.pkl")).parent


def csi300_tables(source: Path, last: str, folder: Path) -> Path:
    """The tables of CSI300's members (at any time) up to a day, written to `folder`."""
    membership = pd.read_parquet(source / "membership.parquet")
    membership = membership[membership["index"] == "csi300"]
    bars = pd.read_parquet(source / "bars.parquet", filters=[("date", "<=", pd.Timestamp(last))])
    index_bars = pd.read_parquet(source / "index_bars.parquet")
    folder.mkdir()
    membership.to_parquet(folder / "membership.parquet", index=False)
    index_bars[index_bars["date"] <= last].to_parquet(folder / "index_bars.parquet", index=False)
    bars = bars[bars["instrument"].isin(set(membership["instrument"]))]
    bars.astype({"instrument": str}).to_parquet(folder / "bars.parquet", index=False)
    return folder


def daily_metrics(folder: Path) -> dict[str, np.ndarray]:
    """IC and RankIC of every day, from the recorder's predictions and raw labels."""
    score = pd.read_pickle(folder / "pred.pkl")["score"]
    label = pd.read_pickle(folder / "label.pkl").iloc[:, 0].reindex(score.index)
    days = [(part.to_numpy(), label.loc[part.index].to_numpy()) for _, part in score.groupby(level="datetime")]
    return {"IC": np.array([ic(*day) for day in days]), "RankIC": np.array([rank_ic(*day) for day in days])}


@pytest.mark.slow
def test_the_workflow_reaches_the_published_figures(published_run):
    daily = daily_metrics(published_run)
    found = {name: float(np.nanmean(values)) for name, values in daily.items()}
    found.update({f"{name}IR": float(np.nanmean(values) / np.nanstd(values, ddof=1)) for name, values in daily.items()})
    print({name: round(value, 5) for name, value in found.items()}, "days", len(daily["IC"]))
    assert len(daily["IC"]) == 611
    for name, (value, tolerance) in EXPECTED.items():
        assert abs(found[name] - value) < tolerance, (name, found[name], value)


@pytest.mark.slow
def test_every_member_with_a_row_is_scored(published_run):
    score = pd.read_pickle(published_run / "pred.pkl")["score"]
    assert np.isfinite(score).all() and score.groupby(level="datetime").size().between(280, 300).all()
    assert (published_run / "portfolio_analysis").is_dir() or any(published_run.rglob("port_analysis*.pkl"))
