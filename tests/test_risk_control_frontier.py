"""The frontier of Meta_RiskControl: exposures and figures against plain loops, reversals that were planted, and a run on a small panel."""
import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError
from small_panels import small_panel

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import incremental_evidence as evidence  # noqa: E402
import risk_control_frontier as frontier  # noqa: E402
from incremental_table import read_cells  # noqa: E402

STYLES = ["size", "beta"]
SECTION = {"class": "MetaRiskControl", "module_path": "qlib_ext.models.alstm", "kwargs": {
    "hidden_size": 64, "num_layers": 2, "style_input": "head", "loss": {"name": "style_ic", "lam_dev": 1.0, "lam_mom": 0.5},
    "rule": {"name": "doubleadapt", "adapt_y": False}, "trainer": {"epochs": 40, "device": "cpu", "resume": False, "metric": "loss"}}}
SMALL = Namespace(hidden=4, layers=1, epochs=1, rule="static", threads=1)


def panel():
    whole = small_panel(days=44, stocks=14, segments={"train": (0, 20), "valid": (22, 32), "test": (34, 44)})
    style = np.random.default_rng(2).normal(size=(len(whole.label), 2)).astype(np.float32)
    style[-1] = np.nan
    whole.stock_aux["style"] = style
    whole.meta.update(embargo=2, aux_columns={"style": STYLES})
    return whole


def test_exposures_are_the_correlations_of_each_day():
    draw = np.random.default_rng(0)
    day = np.repeat([3, 4, 9], [20, 15, 12])
    score, style = draw.normal(size=47), draw.normal(size=(47, 2))
    found = frontier.exposures_of(score, style, day)
    for row, one in zip(found, (3, 4, 9)):
        expected = [np.corrcoef(score[day == one], style[day == one, k])[0, 1] for k in range(2)]
        np.testing.assert_allclose(row, expected, atol=1e-6)
    style[:5, 1], score[day == 9] = np.nan, 2.0
    found = frontier.exposures_of(score, style, day)
    assert np.isfinite(found).all() and (found[2] == 0).all()


def test_cells_differ_in_the_weight_alone(tmp_path, monkeypatch):
    """Two weights and a seed: cells are kept, made once, and say how their scores lean."""
    whole = panel()
    learn = frontier.learner(2)
    for weights in ((0, 3), (0.0, 3.0)):
        for penalty in weights:
            section = frontier.configured(SECTION, SMALL, penalty, 1)
            evidence.run_cell(whole, learn, section, tmp_path, "penalty", f"{penalty:g}", 1, False, 2)
        monkeypatch.setattr(frontier, "learner", None)
    cells = read_cells(tmp_path)
    assert [cell.record["cell"] for cell in cells] == ["penalty.0.s1", "penalty.3.s1"]
    options = [cell.record["configuration"]["model"]["kwargs"] for cell in cells]
    assert [(one["loss"]["lam_dev"], one["loss"]["lam_mom"]) for one in options] == [(0, 0), (3, 1.5)]
    assert options[0]["hidden_size"] == 4 and options[0]["rule"] == {"name": "static"} and options[0]["trainer"]["metric"] == "loss"
    for cell in cells:
        days = cell.scores.index.get_level_values("datetime").unique()
        rows = []
        for day in days:
            own = cell.scores.xs(day, level="datetime")["score"]
            t, n = int(np.flatnonzero(whole.days == np.datetime64(day, "D"))[0]), np.searchsorted(whole.instruments, own.index)
            style = whole.stock_aux["style"][whole.rows[t, n]]
            rows.append([np.corrcoef(own, style[:, k])[0, 1] for k in range(2)])
        leaning = cell.record["leaning"]
        assert leaning["largest"] == pytest.approx(np.abs(rows).max(axis=1).mean(), abs=1e-4)
        assert leaning["standing"] == pytest.approx(np.abs(np.mean(rows, axis=0)).max(), abs=1e-4)
        assert list(leaning["styles"]) == STYLES and {"IC", "RankIC"} <= set(leaning) and leaning != cell.record["valid"]
    assert len((tmp_path / "test_openings.log").read_text().splitlines()) == 2, "each cell once"


def test_choosing_never_opens_the_test_years(tmp_path):
    evidence.run_cell(panel(), frontier.learner(2), frontier.configured(SECTION, SMALL, 1, 0), tmp_path, "penalty", "1", 0, True, 2)
    record = json.loads(next((tmp_path / "choose").glob("*.json")).read_text())
    assert np.isfinite(record["valid"]["standing"]) and "leaning" not in record and not (tmp_path / "test_openings.log").exists()


def test_another_loss_is_refused():
    with pytest.raises(ConfigError, match="style_ic"):
        frontier.configured({**SECTION, "kwargs": {**SECTION["kwargs"], "loss": "mse"}}, SMALL, 1, 0)


# ---- reversals and portfolios -----------------------------------------------------------------------------------------------------
DAYS = pd.bdate_range("2022-01-03", periods=400)


def planted(turn: int = 250) -> pd.DataFrame:
    """Quiet factor returns, but for a run of `size` over 60 days that is lost in the 20 days from `turn` on."""
    returns = pd.DataFrame(1e-4 * np.random.default_rng(1).normal(size=(400, 2)), DAYS, STYLES)
    returns.iloc[turn - 60:turn, 0] += 0.001
    returns.iloc[turn:turn + 20, 0] -= 0.003
    return returns


def test_a_planted_reversal_is_found():
    first = frontier.reversals(planted(), DAYS[100], DAYS[390])[0]
    assert abs(DAYS.get_loc(first["start"]) - 250) <= 1 and DAYS.get_loc(first["end"]) - DAYS.get_loc(first["start"]) == 19
    was, then = first["styles"]["size"]
    assert was == pytest.approx(0.06, abs=0.01) and then == pytest.approx(-0.06, abs=0.01)
    found = frontier.reversals(planted(), DAYS[100], DAYS[390], count=5)
    spans = sorted((one["start"], one["end"]) for one in found)
    assert len(found) > 1 and all(a[1] < b[0] for a, b in zip(spans, spans[1:]))
    assert [one["lost"] for one in found] == sorted((one["lost"] for one in found), reverse=True)


def test_reversals_end_inside_the_span():
    for turn in frontier.reversals(planted(), DAYS[100], DAYS[260], count=9):
        assert DAYS[100] <= turn["start"] and turn["end"] <= DAYS[260]
    assert not frontier.reversals(planted(), DAYS[250], DAYS[260])


def test_figures_of_a_portfolio_against_a_loop():
    draw, returns = np.random.default_rng(4), planted()
    daily = pd.DataFrame({"net": 0.01 * draw.normal(size=400), "bench": 0.01 * draw.normal(size=400), "turnover": 0.1}, DAYS)
    daily[STYLES] = draw.normal(size=(400, 2))
    windows = [(DAYS[250], DAYS[269]), ("2030-01-01", "2030-02-01")]
    found = frontier.portfolio_figures(daily, returns, windows)
    earned = [0.0] + [sum(daily[style].iloc[t - 1] * returns[style].iloc[t] for style in STYLES) for t in range(1, 400)]
    worst, peak, total = 0.0, 0.0, 0.0
    for one in earned:
        total += one
        peak = max(peak, total)
        worst = min(worst, total - peak)
    assert found["style drawdown"] == pytest.approx(worst) and found["style return"] == pytest.approx(np.mean(earned) * 252)
    assert found["style risk"] == pytest.approx(np.std(earned, ddof=1) * 252**0.5)
    assert found["window 1 styles"] == pytest.approx(sum(earned[250:270]))
    ratio = np.prod([(1 + a) / (1 + b) for a, b in zip(daily["net"].iloc[250:270], daily["bench"].iloc[250:270])])
    assert found["window 1"] == pytest.approx(ratio - 1) and found["window 1 drawdown"] <= min(ratio - 1, 0) and "window 2" not in found
    assert found["largest exposure"] == pytest.approx(daily[STYLES].abs().max(axis=1).mean())
    assert found["size exposure"] == pytest.approx(daily["size"].abs().mean()) and found["turnover a year"] == pytest.approx(12.6)


def test_table_and_plot(tmp_path):
    draw = np.random.default_rng(0)
    scores = pd.DataFrame([{"penalty": p, "seed": s, **dict(zip(frontier.SCORE, draw.random(6)))} for p in (0, 0.3, 1) for s in (0, 1)])
    names = ["largest exposure", "drawdown", "style drawdown", "window 1 drawdown"]
    held = pd.DataFrame([{"penalty": p, "seed": s, "portfolio": name, **dict(zip(names, draw.random(4)))}
                         for p in (0, 0.3, 1) for s in (0, 1) for name in frontier.PORTFOLIOS])
    tables = frontier.over_seeds(scores, ["penalty"]), frontier.over_seeds(held, ["portfolio", "penalty"])
    assert tables[0].loc[0.3, ("IC", "mean")] == pytest.approx(scores.loc[scores["penalty"] == 0.3, "IC"].mean())
    assert tables[1].loc[("top", 1), ("drawdown", "std")] == pytest.approx(
        held.loc[(held["portfolio"] == "top") & (held["penalty"] == 1), "drawdown"].std())
    frontier.plot(*tables, tmp_path / "frontier.png", "title")
    assert (tmp_path / "frontier.png").stat().st_size > 20_000
