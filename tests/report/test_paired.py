"""Groups of runs: means and spreads by hand, paired tests against statsmodels and in closed form."""
import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import DataError, ShapeError
from qlib_ext.report.paired import daily_correlations, group_figures, paired_difference, paired_table


def series(seed=0, runs=3, days=80) -> np.ndarray:
    """Daily figures ``[s, t]`` with what is common to a day's runs, and memory of some days."""
    draw = np.random.default_rng(seed)
    return np.convolve(draw.normal(0.05, 0.1, days + 4), np.ones(5) / 5, "valid") + draw.normal(0, 0.02, (runs, days))


def test_a_group_is_the_mean_and_spread_of_its_runs():
    figures = pd.DataFrame({"IC": [0.02, 0.04, 0.09, 0.01], "IR": [1.0, np.nan, 2.0, 3.0]}, ["a", "b", "c", "d"])
    found = group_figures(figures, {"net": ["a", "b", "c"], "tree": ["d"], "part": ["c", "a"]})
    assert found["runs"].to_dict() == {"net": 3, "tree": 1, "part": 2}
    assert found.loc["net", "IC"] == pytest.approx(0.05) and found.loc["net", "IC std"] == pytest.approx(np.sqrt(0.0026 / 2))
    assert found.loc["part", "IR"] == 1.5 and found.loc["part", "IR std"] == pytest.approx(np.sqrt(0.5))
    assert np.isnan(found.loc["net", "IR"]) and np.isnan(found.loc["net", "IR std"]), "a run without a portfolio is not left out in silence"
    assert found.loc["tree", "IC"] == 0.01 and np.isnan(found.loc["tree", "IC std"])


def test_the_paired_t_in_closed_form():
    """d = m + (-1)^t over n days: g_0 = 1, g_1 = -(n - 1) / n, so lag 0 gives t = m sqrt(n), lag 1 gives t = m n."""
    count, mean = 40, 0.3
    base = series(runs=2, days=count)
    group = base + mean + (-1.0) ** np.arange(count)
    for lag, expected in ((0, mean * np.sqrt(count)), (1, mean * count)):
        assert paired_difference(group, base, lag) == {"difference": pytest.approx(mean), "t": pytest.approx(expected), "days": count}


@pytest.mark.parametrize("lag", [0, 1, 5, 20])
def test_the_paired_t_is_that_of_statsmodels(lag):
    regression = pytest.importorskip("statsmodels.regression.linear_model")
    group, base = series(1, 3), series(2, 2)
    difference = group.mean(axis=0) - base.mean(axis=0)
    fitted = regression.OLS(difference, np.ones(len(difference))).fit(cov_type="HAC", cov_kwds={"maxlags": lag, "use_correction": False})
    found = paired_difference(group, base, lag)
    assert found["t"] == pytest.approx(fitted.tvalues[0], rel=1e-10) and found["difference"] == pytest.approx(fitted.params[0])
    assert paired_difference(base, group, lag)["t"] == pytest.approx(-found["t"])


def test_what_is_common_to_the_days_cancels():
    base = series(3, 3, 400)
    better = base + 0.002 + np.random.default_rng(4).normal(0, 0.01, base.shape)
    other = series(5, 3, 400)
    assert paired_difference(better, base, 5)["t"] > 4 > abs(paired_difference(better - base.mean() + other.mean(), other, 5)["t"])


def test_a_day_counts_where_every_run_has_a_figure():
    group, base = series(1), series(2)
    group[1, 7] = base[0, 9] = np.nan
    found = paired_difference(group, base, 3)
    kept = np.delete(np.arange(group.shape[1]), [7, 9])
    assert found == paired_difference(group[:, kept], base[:, kept], 3) and found["days"] == len(kept)
    assert np.isnan(paired_difference(base, base, 3)["t"]), "no difference, no test"
    empty = paired_difference(group * np.nan, base, 3)
    assert np.isnan(empty["t"]) and np.isnan(empty["difference"]) and empty["days"] == 0
    with pytest.raises(ShapeError, match="same days"):
        paired_difference(group, base[:, :-1], 3)
    with pytest.raises(DataError, match="lag 80"):
        paired_difference(series(1), series(2), 80)


def test_daily_correlations_and_the_table_of_tests():
    draw = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([pd.bdate_range("2023-01-02", periods=30), range(12)], names=["datetime", "instrument"])
    table = pd.DataFrame(draw.normal(size=(len(index), 5)), index, ["label", "a", "b", "c", "d"]).sample(frac=1, random_state=1)
    daily = {name: daily_correlations(table, name, 2) for name in "abcd"}
    for kind, method in (("IC", "pearson"), ("RankIC", "spearman")):
        expected = table.groupby(level="datetime").apply(lambda day: day["a"].corr(day["label"], method=method))
        np.testing.assert_allclose(daily["a"][kind], expected, atol=1e-12)
    found = paired_table(daily, {"x": ["a", "b"], "base": ["c"], "y": ["d"]}, "base", 2)
    assert list(found.index) == ["x", "y"] and (found["paired days"] == 30).all()
    mine = (daily["a"]["RankIC"] + daily["b"]["RankIC"]) / 2 - daily["c"]["RankIC"]
    assert found.loc["x", "RankIC difference"] == pytest.approx(mine.mean())
    assert found.loc["x", "RankIC t"] == paired_difference(mine.to_numpy(), np.zeros(30), 2)["t"]
