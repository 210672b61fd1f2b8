"""The null-market script: its figures against pandas, what it skips, and when it fails."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import DataError
from qlib_ext.report.metrics import newey_west_t

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "null_market.py"
SPEC = importlib.util.spec_from_file_location("null_market", SCRIPT)
null_market = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(null_market)


@pytest.fixture
def pairs() -> tuple[pd.Series, pd.Series]:
    days = pd.bdate_range("2023-01-02", periods=60)
    index = pd.MultiIndex.from_product([days, list("abcdefgh")], names=["datetime", "instrument"])
    random = np.random.default_rng(0)
    score, label = (pd.Series(random.standard_normal(len(index)), index) for _ in range(2))
    score.iloc[:8] = 1.0  # a constant day
    label.iloc[20] = np.nan
    return score, label


def test_figures_equal_pandas(pairs):
    score, label = pairs
    frame = pd.concat({"score": score, "label": label}, axis=1)
    expected = frame.groupby(level="datetime").apply(lambda day: day["score"].corr(day["label"])).fillna(0.0)
    daily = null_market.score_days(score.sample(frac=1, random_state=1), label)
    np.testing.assert_allclose(daily, expected, atol=1e-12)
    found = null_market.summary(daily)
    assert found == {"days": 60, "mean_ic": pytest.approx(expected.mean()), "t": pytest.approx(newey_west_t(expected, 10))}


def test_a_signal_shows_and_a_silent_model_does_not(pairs):
    score, label = pairs
    assert null_market.summary(null_market.score_days(score + 0.5 * label, label))["t"] > 5
    assert null_market.summary(null_market.score_days(score * 0, label)) == {"days": 60, "mean_ic": 0.0, "t": 0.0}
    with pytest.raises(DataError, match="in common"):
        null_market.score_days(score, label.rename(lambda day: day + pd.Timedelta(days=900), level="datetime"))


@pytest.mark.parametrize("largest, status", [(2.9, 0), (-3.1, 1), (float("nan"), 1)])
def test_finished_lines_are_skipped_and_judged(tmp_path, capsys, largest, status):
    """All lines are there: nothing is built or trained."""
    sizes = f"csi1000 {null_market.sizes_in_force()}"
    for seed in (0, 1):
        for name in null_market.MODELS:
            t = largest if (seed, name) == (1, "GRU") else 0.5
            null_market.add_result(tmp_path / "results.csv", {"market": "null", "seed": seed, "model": name, "sizes": sizes,
                                                              "days": 478, "mean_ic": 0.001, "t": t})  # fmt: skip
    assert null_market.main(["--out", str(tmp_path), "--seeds", "0", "1"]) == status
    out = capsys.readouterr().out
    assert out.count("(t +0.50)") == 7 and f"{largest:+.2f}" in out
    assert null_market.main(["--out", str(tmp_path), "--seeds", "0"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.csv"]


def test_a_market_that_fails_is_said(tmp_path):
    """Other sizes are other results: the line does not count, and the folder in the market's place cannot be built over."""
    null_market.add_result(tmp_path / "results.csv", {"market": "planted", "seed": 7, "model": "GRU", "sizes": "csi1000 others",
                                                      "days": 478, "mean_ic": 0.001, "t": 0.1})  # fmt: skip
    (tmp_path / "planted_7").mkdir()
    (tmp_path / "planted_7" / "notes.txt").write_text("mine")
    words = [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--seeds", "7", "--models", "GRU", "--planted"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}, capture_output=True, text=True)
    assert done.returncode == 2 and "market of seed 7 stopped" in done.stderr and str(tmp_path / "planted_7") in done.stderr
    assert (tmp_path / "planted_7" / "notes.txt").read_text() == "mine"
