"""Orthogonalised scores against least squares of numpy and statsmodels, exposures against scipy and slow loops."""
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qlib_ext.errors import ShapeError
from qlib_ext.report.metrics import newey_west_t
from qlib_ext.report.neutral import industry_codes, industry_exposure, neutral_score, style_exposure

NAMES = np.array(["bank", "coal", "steel", "", "media"], dtype=object)


def panel(seed=0, days=8, stocks=60) -> dict:
    """Scores that lean on two exposures and industries; a tenth of everything is unknown."""
    draw = np.random.default_rng(seed)
    size, beta = draw.normal(23, 1, (days, stocks)), draw.normal(size=(days, stocks))
    place = draw.integers(0, len(NAMES), (days, stocks))
    score = draw.normal(size=(days, stocks)) + 0.5 * size - beta + place
    for values in (size, beta, score):
        values[draw.random(values.shape) < 0.1] = np.nan
    return {"score": score, "size": size, "beta": beta, "industry": NAMES[place]}


def residuals(score, exposures, industry=None) -> np.ndarray:
    """z-score of each day, and what least squares with dummies leave of it, stock by stock."""
    result = np.full(score.shape, np.nan)
    for t, row in enumerate(score):
        row = (row - np.nanmean(row)) / np.nanstd(row)
        known = ~np.isnan(row) & np.all([~np.isnan(one[t]) for one in exposures] or [np.ones(len(row), bool)], axis=0)
        if industry is not None:
            known &= industry[t] != ""
        design = np.column_stack([np.ones(known.sum()), *(one[t][known] for one in exposures)])
        if industry is not None:
            design = np.column_stack([design, *((industry[t][known] == name).astype(float) for name in np.unique(industry[t][known]))])
        result[t, known] = row[known] - design @ np.linalg.lstsq(design, row[known], rcond=None)[0]
    return result


@pytest.mark.parametrize("used, grouped", [((), True), (("size",), False), (("size", "beta"), True)])
def test_residuals_are_those_of_least_squares(used, grouped):
    parts = panel()
    exposures, industry = [parts[name] for name in used], parts["industry"] if grouped else None
    codes = industry_codes(industry)[0] if grouped else None
    found = neutral_score(parts["score"], exposures, codes)
    np.testing.assert_allclose(found, residuals(parts["score"], exposures, industry), atol=1e-10)
    assert np.isfinite(found).mean() > 0.5


def test_residuals_are_those_of_statsmodels():
    api = pytest.importorskip("statsmodels.formula.api")
    parts = panel(1)
    found = neutral_score(parts["score"], [parts["size"]], industry_codes(parts["industry"])[0])
    for t in range(3):
        frame = pd.DataFrame({name: values[t] for name, values in parts.items()})
        frame["score"] = (frame["score"] - frame["score"].mean()) / frame["score"].std(ddof=0)
        frame = frame[frame["industry"] != ""].dropna(subset=["score", "size"])
        fitted = api.ols("score ~ size + C(industry)", frame).fit()
        np.testing.assert_allclose(found[t][frame.index], fitted.resid, atol=1e-10)
        assert np.isnan(np.delete(found[t], frame.index)).all()


def test_a_neutral_score_has_nothing_of_the_exposures():
    parts = panel(2)
    codes, names = industry_codes(parts["industry"])
    found = neutral_score(parts["score"], [parts["size"], parts["beta"]], codes)
    for t in range(len(found)):
        known = ~np.isnan(found[t])
        for exposure in (parts["size"], parts["beta"]):
            assert abs(stats.pearsonr(found[t][known], exposure[t][known])[0]) < 1e-10
        for place in range(len(names)):
            assert abs(found[t][known & (codes[t] == place)].mean()) < 1e-10


def test_exposures_that_repeat_each_other_leave_the_same():
    parts = panel(3)
    codes = industry_codes(parts["industry"])[0]
    once = neutral_score(parts["score"], [parts["size"]], codes)
    twice = neutral_score(parts["score"], [parts["size"], 2 * parts["size"] + 1, np.ones(codes.shape), (codes == 1).astype(float)], codes)
    np.testing.assert_allclose(once, twice, atol=1e-8)


def test_a_score_that_exposures_explain_is_unknown():
    """Rounding is no score: a constant score, a score made of the exposures, and a day with fewer stocks than coefficients."""
    parts = panel(4)
    codes = industry_codes(parts["industry"])[0]
    explained = 3 * parts["size"] - parts["beta"] + codes
    explained[0] = parts["score"][0]
    explained[1] = 0.1
    explained[2, 5:] = np.nan
    found = neutral_score(explained, [parts["size"], parts["beta"]], codes)
    assert np.isfinite(found[0]).any() and np.isnan(found[1:]).all()
    before = parts["score"].copy()
    neutral_score(parts["score"], [parts["size"]])
    np.testing.assert_array_equal(parts["score"], before)
    with pytest.raises(ShapeError):
        neutral_score(parts["score"], [parts["size"][:, 1:]])


def test_industry_codes():
    codes, names = industry_codes(np.array([["steel", "", None], ["bank", "steel", np.nan]], dtype=object))
    assert names.tolist() == ["bank", "steel"] and codes.tolist() == [[1, -1, -1], [0, 1, -1]]
    codes, names = industry_codes(np.array([["b", "a"]]))
    assert names.tolist() == ["a", "b"] and codes.tolist() == [[1, 0]]
    assert industry_codes(np.full((2, 2), ""))[1].size == 0


def test_style_exposures_are_those_of_scipy():
    parts = panel(5, days=30)
    score, size = parts["score"], parts["size"]
    top = score > np.nanquantile(score, 0.8, axis=1, keepdims=True)
    found = style_exposure(score, top, {"size": size, "none": np.full(size.shape, np.nan)}, 4, 30)
    daily, lean = [], []
    for row, style, chosen in zip(score, size, top):
        ranks = pd.Series(row).rank()
        known = ranks.notna() & ~np.isnan(style)
        daily.append(stats.pearsonr(ranks[known], style[known])[0])
        lean.append(np.nanmean(style[chosen]) - np.nanmean(style[~np.isnan(row)]))
    expected = [np.mean(daily), np.std(daily, ddof=1), newey_west_t(np.array(daily), 4), np.mean(lean)]
    np.testing.assert_allclose(found.loc["size", ["mean", "std", "t", "top group"]].astype(float), expected, atol=1e-12)
    assert found.loc["none"].isna().all() and found.loc["size", "mean"] > 0.15


def test_industry_exposures_by_a_slow_loop():
    parts = panel(6)
    codes, names = industry_codes(parts["industry"])
    top = parts["score"] > np.nanquantile(parts["score"], 0.7, axis=1, keepdims=True)
    found = industry_exposure(parts["score"], top, codes, names)
    assert found["mean z-score"].is_monotonic_decreasing and sorted(found.index) == sorted(names)
    for place, name in enumerate(names):
        means, lean = [], []
        for row, group, chosen in zip(parts["score"], codes, top):
            known = ~np.isnan(row)
            inside, placed = known & (group == place), known & (group >= 0)
            means.append(stats.zscore(row, nan_policy="omit")[inside].mean())
            lean.append((chosen & inside).sum() / (chosen & placed).sum() - inside.sum() / placed.sum())
        np.testing.assert_allclose(found.loc[name].astype(float), [np.mean(means), np.mean(lean)], atol=1e-12)
    assert found["top group"].sum() == pytest.approx(0.0, abs=1e-12)
