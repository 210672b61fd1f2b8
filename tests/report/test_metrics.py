"""Metrics against scipy and pandas, closed forms and invariances."""
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qlib_ext.errors import DataError, ShapeError
from qlib_ext.report import metrics


@pytest.fixture
def panel():
    generator = np.random.default_rng(7)
    day = generator.permutation(np.repeat(np.arange(12), 40))
    label = generator.normal(size=day.size)
    score = np.round(0.4 * label + generator.normal(size=day.size), 1)  # ties
    score[generator.random(day.size) < 0.1] = np.nan
    label[generator.random(day.size) < 0.1] = np.nan
    label[day == 3] = np.nan            # a day without pairs
    score[day == 5] = 0.1               # a constant day
    day[day == 8] = 0                   # an absent day
    return score, label, day


@pytest.mark.parametrize("method, single, many", [("pearson", metrics.ic, metrics.daily_ic),
                                                  ("spearman", metrics.rank_ic, metrics.daily_rank_ic)])
def test_daily_equals_pandas_and_scipy(panel, method, single, many):
    score, label, day = panel
    result = many(score, label, day, day_count=14)
    assert result.shape == (14,) and many(score, label, day).shape == (12,)
    frame = pd.DataFrame({"day": day, "score": score, "label": label})
    expected = frame.groupby("day").apply(lambda x: x["score"].corr(x["label"], method=method)).reindex(range(14))
    expected[5] = np.nan
    np.testing.assert_allclose(result, expected, atol=1e-12)
    assert np.isnan(result[[3, 5, 8, 12, 13]]).all() and np.isfinite(result[[0, 1, 11]]).all()
    one = frame[frame.day == 1]
    assert single(one.score, one.label) == pytest.approx(result[1], abs=1e-13)
    known = one.dropna()
    library = stats.pearsonr if method == "pearson" else stats.spearmanr
    assert single(one.score, one.label) == pytest.approx(library(known.score, known.label)[0], abs=1e-12)


def test_rank_average_equals_scipy_and_keeps_nan():
    values = np.array([2.0, np.nan, 2.0, -np.inf, 9.0, np.nan, 2.0, np.inf])
    np.testing.assert_array_equal(metrics.rank_average(values), stats.rankdata(values, nan_policy="omit"))
    assert metrics.rank_average([]).size == 0
    with pytest.raises(ShapeError):
        metrics.rank_average(np.zeros((2, 2)))


def test_few_pairs_and_constants_are_nan():
    nan = np.nan
    for function in (metrics.ic, metrics.rank_ic, metrics.exp_rank_mae):
        assert np.isnan(function([1.0], [2.0])) and np.isnan(function([], []))
        assert np.isnan(function([1.0, nan, 3.0], [nan, 2.0, 1.0]))
        assert np.isnan(function([0.1] * 7, np.arange(7))) and np.isnan(function(np.arange(7), [0.1] * 7))
        assert np.isfinite(function(np.arange(5), [1, 0, 3, 2, 5]))
        assert np.isnan(function(np.arange(5), [1, 0, 3, 2, 5], min_count=6))
    generator = np.random.default_rng(5)
    for value in generator.normal(size=100) * 10.0 ** generator.integers(-8, 8, 100):
        count = int(generator.integers(2, 2000))
        assert np.isnan(metrics.ic(np.full(count, value), np.arange(count)))  # whatever the rounding of the mean
    assert metrics.ic([1.0, 2.0], [5.0, 1.0]) == -1.0 and metrics.rank_ic([1.0, 2.0], [5.0, 9.0], min_count=0) == 1.0


def test_rank_ic_ignores_monotone_transforms_and_order():
    generator = np.random.default_rng(1)
    score, label = generator.normal(size=(2, 200))
    order = generator.permutation(200)
    assert metrics.rank_ic(np.exp(4 * score), label ** 3) == pytest.approx(metrics.rank_ic(score, label), abs=1e-14)
    assert metrics.rank_ic(score[order], label[order]) == pytest.approx(metrics.rank_ic(score, label), abs=1e-14)
    assert metrics.ic(3 * score - 1, -2 * label) == pytest.approx(-metrics.ic(score, label), abs=1e-14)
    assert metrics.ic(score + 1e9, label) == pytest.approx(metrics.ic(score, label), abs=1e-5)


def test_infinite_values_rank_but_do_not_correlate():
    score, label = np.array([1.0, np.inf, 2.0, 0.0]), np.array([1.0, 4.0, 2.0, 3.0])
    assert metrics.rank_ic(score, label) == pytest.approx(stats.spearmanr([1, 9, 2, 0], label)[0])
    assert np.isnan(metrics.ic(score, label))


def test_inputs_are_not_changed(panel):
    copies = [array.copy() for array in panel]
    for function in (metrics.daily_ic, metrics.daily_rank_ic, metrics.daily_exp_rank_mae):
        function(*panel)
    for array, copy in zip(panel, copies):
        np.testing.assert_array_equal(array, copy)


def test_wrong_shapes_and_days_are_refused():
    with pytest.raises(ShapeError):
        metrics.daily_ic(np.zeros(3), np.zeros((3, 1)), np.zeros(3, dtype=int))
    with pytest.raises(ShapeError):
        metrics.ic(np.zeros(3), np.zeros(4))
    for bad in (np.array([0, -1, 1]), np.array([0.0, 1.0, 2.0])):
        with pytest.raises(DataError):
            metrics.daily_rank_ic(np.zeros(3), np.zeros(3), bad)
    with pytest.raises(DataError):
        metrics.daily_ic(np.zeros(3), np.zeros(3), np.arange(3), day_count=2)


def test_exp_rank_mae_closed_forms():
    generator = np.random.default_rng(2)
    score, label = generator.normal(size=(2, 100_000))
    assert metrics.exp_rank_mae(score, score) == pytest.approx(1.0)
    assert metrics.exp_rank_mae(score, np.exp(score)) == pytest.approx(1.0)
    assert metrics.exp_rank_mae(score, -score) == pytest.approx(np.exp(-np.sqrt(3)), abs=1e-4)
    assert metrics.exp_rank_mae(score, label) == pytest.approx(np.exp(-2 / np.sqrt(3)), abs=0.004)
    small, other = score[:50].round(1), label[:50].round(1)
    u, v = stats.zscore(stats.rankdata(small)), stats.zscore(stats.rankdata(other))
    assert metrics.exp_rank_mae(small, other) == pytest.approx(np.exp(-np.mean(abs(u - v))))
    both = metrics.daily_exp_rank_mae(np.r_[small, small], np.r_[other, small], np.repeat([0, 1], 50))
    np.testing.assert_allclose(both, [metrics.exp_rank_mae(small, other), 1.0])


def test_summary():
    daily = np.array([0.1, np.nan, 0.3, -0.2, 0.05])
    known = daily[~np.isnan(daily)]
    result = metrics.summarize(daily)
    assert result["mean"] == pytest.approx(known.mean()) and result["std"] == pytest.approx(pd.Series(daily).std())
    assert result["icir"] == pytest.approx(known.mean() / known.std(ddof=1)) and result["n"] == 4
    assert result["t"] == pytest.approx(stats.ttest_1samp(known, 0)[0])
    empty, single, constant = (metrics.summarize(x) for x in ([], [0.2], [0.1, 0.1, 0.1]))
    assert empty["n"] == 0 and np.isnan(empty["mean"]) and np.isnan(single["std"]) and single["mean"] == 0.2
    assert np.isnan(constant["icir"]) and np.isnan(constant["t"]) and constant["std"] == pytest.approx(0)


def test_newey_west():
    generator = np.random.default_rng(3)
    series = generator.normal(0.1, 1, size=400)
    count, centred = 400, series - series.mean()
    assert metrics.newey_west_t(series, 0) == pytest.approx(series.mean() / (series.std() / np.sqrt(count)))
    # the Bartlett sum as a quadratic form: a slower way to the same number
    gap = abs(np.arange(count)[:, None] - np.arange(count)[None, :])
    kernel = np.clip(1 - gap / 6, 0, None)
    expected = series.mean() / (np.sqrt(centred @ kernel @ centred) / count)
    assert metrics.newey_west_t(series, 5) == pytest.approx(expected)
    overlapping = np.convolve(generator.normal(0.02, 1, 2000), np.ones(5), "valid")
    assert abs(metrics.newey_west_t(overlapping, 10)) < 0.65 * abs(metrics.newey_west_t(overlapping, 0))
    assert metrics.newey_west_t(np.r_[series, np.nan], 5) == pytest.approx(expected)
    assert np.isnan(metrics.newey_west_t([1.0], 0)) and np.isnan(metrics.newey_west_t([1.0, 1.0, 1.0], 1))
    for lag in (-1, 400):
        with pytest.raises(DataError):
            metrics.newey_west_t(series, lag)


def test_matrices_are_long_vectors_by_day():
    generator = np.random.default_rng(8)
    label = generator.normal(size=(9, 60)).round(1)
    score = (0.4 * label + generator.normal(size=label.shape)).round(1)
    score[generator.random(score.shape) < 0.1] = np.nan
    label[generator.random(score.shape) < 0.1] = np.nan
    score[2], label[3], score[4, 2], label[5, 40:] = 0.1, np.nan, np.inf, np.nan
    day = np.repeat(np.arange(9), 60)
    found = metrics.day_figures(score, label, 30)
    for name, function in (("ic", metrics.daily_ic), ("rank_ic", metrics.daily_rank_ic), ("exp_rank_mae", metrics.daily_exp_rank_mae)):
        np.testing.assert_allclose(getattr(found, name), function(score.ravel(), label.ravel(), day, 30), atol=1e-14)
    np.testing.assert_array_equal(found.count, (~np.isnan(score) & ~np.isnan(label)).sum(axis=1))
    assert np.isnan(found.rank_ic[[2, 3]]).all() and np.isnan(found.ic[4]) and np.isfinite(found.rank_ic[4])
    np.testing.assert_array_equal(metrics.row_correlation(score, label, 30), found.ic)
    values = np.where(generator.random(score.shape) < 0.1, np.inf, score)
    values[0, :3] = -np.inf
    np.testing.assert_array_equal(metrics.rank_rows(values), stats.rankdata(values, axis=1, nan_policy="omit"))
    np.testing.assert_allclose(metrics.standardise_rows(score)[0], stats.zscore(score[0], nan_policy="omit"), atol=1e-13)
    for bad in (score[0], score[:, 1:]):
        with pytest.raises(ShapeError):
            metrics.day_figures(bad, label)


def test_a_report_goes_on_where_a_t_has_too_few_days():
    daily = np.array([0.1, np.nan, 0.3, -0.2, 0.05])
    assert metrics.cautious_t(daily, 2) == metrics.newey_west_t(daily, 2) and np.isnan(metrics.cautious_t(daily, 3))
