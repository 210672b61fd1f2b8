"""Means over days and what is left beside industries and exposures, against plain loops, pandas and least squares."""

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.factors.intraday_average import REGRESSORS, carried, days_deviation, days_mean, orthogonalise, regressors

RNG = np.random.default_rng(9)


@pytest.fixture
def values() -> np.ndarray:
    values = RNG.standard_normal((40, 7))
    values[RNG.random(values.shape) < 0.3] = np.nan
    return values


@pytest.mark.parametrize("days", [1, 5, 20, 60])
def test_mean_and_deviation_equal_a_plain_loop(values, days):
    mean, deviation = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
    for t in range(len(values)):
        for n in range(values.shape[1]):
            known = [x for x in values[max(t - days + 1, 0):t + 1, n] if np.isfinite(x)]
            if len(known) >= 0.6 * days:
                mean[t, n] = np.mean(known)
                deviation[t, n] = np.std(known, ddof=1) if len(known) > 1 else np.nan
    np.testing.assert_allclose(days_mean(values, days), mean, rtol=1e-12)
    np.testing.assert_allclose(days_deviation(values, days), deviation, rtol=1e-12)


def test_three_of_five_days_are_enough_two_are_not():
    values = np.array([[1.0], [np.nan], [2.0], [np.nan], [6.0], [np.nan], [np.nan]])
    assert days_mean(values, 5)[:, 0].tolist()[4:5] == [3.0]
    assert np.isnan(days_mean(values, 5)[[0, 1, 2, 3, 5, 6], 0]).all()


def test_a_window_is_added_up_on_its_own(values):
    """Neither what came before the window nor what comes after it changes a bit."""
    whole = days_mean(values, 5)
    np.testing.assert_array_equal(days_mean(values[10:], 5)[4:], whole[14:])
    changed = values.copy()
    changed[25:] = 1e12
    changed[:10] *= 1e9
    np.testing.assert_array_equal(days_mean(changed, 5)[14:25], whole[14:25])


@pytest.mark.parametrize("days, valid", [(0, 0.6), (2.0, 0.6), (True, 0.6), (5, 0.0), (5, 1.1)])
def test_bad_windows(values, days, valid):
    with pytest.raises(ConfigError, match="days|valid"):
        days_mean(values, days, valid)


def test_carried_equals_pandas(values):
    np.testing.assert_array_equal(carried(values), pd.DataFrame(values).ffill().to_numpy())


def test_regressors_by_hand():
    t, n = 30, 4
    grid = lambda low, high: RNG.uniform(low, high, (t, n))  # noqa: E731
    fields = {"float_cap": grid(1e9, 2e9), "total_cap": grid(2e9, 3e9), "close": grid(5, 10), "volume": grid(1e5, 2e5),
              "factor": grid(1, 2), "float_shares": grid(1e8, 2e8), "change": grid(-.1, .1), "equity": grid(1e9, 2e9),
              "preferred_equity": np.full((t, n), np.nan)}
    fields["close"][25, 0] = np.nan
    fields["equity"][7, 1] = -1.0
    found = regressors(fields)
    assert tuple(found) == REGRESSORS
    assert found["ln_cap"][3, 2] == np.log(fields["float_cap"][3, 2])
    assert found["reversal"][25, 0] == fields["close"][24, 0] / fields["close"][5, 0] - 1     # carried through the suspension
    assert np.isnan(found["reversal"][:20]).all()
    shares = fields["volume"] * fields["factor"] / fields["float_shares"]
    np.testing.assert_allclose(found["turnover"][29], shares[10:30].mean(axis=0))
    np.testing.assert_allclose(found["volatility"][29], fields["change"][10:30].std(axis=0, ddof=1))
    assert np.isnan(found["ln_bp"][7, 1]) and found["ln_bp"][7, 0] == np.log(fields["equity"][7, 0] / fields["total_cap"][7, 0])
    assert list(regressors({"total_cap": fields["total_cap"], "turnover": grid(1, 2)})) == ["ln_cap", "turnover"]
    assert regressors({}) == {}


def test_residuals_equal_least_squares():
    """Residuals on dummies and clipped exposures by lstsq, scaled; uncorrelated with each."""
    t, n = 3, 200
    industry = RNG.integers(0, 5, (t, n)).astype(float)
    first, second = RNG.standard_normal((t, n)), RNG.exponential(size=(t, n))
    values = 2 * first - second + industry + RNG.standard_normal((t, n))
    values[1, 5] = 1e6
    found = orthogonalise(values, {"a": first, "b": second}, industry)
    assert found.days == {"a": 3, "b": 3, "industry": 3}

    def clipped(x):
        median = np.median(x)
        reach = 3 * 1.4826 * np.median(np.abs(x - median))
        return np.clip(x, median - reach, median + reach)

    for day in range(t):
        x = np.column_stack([clipped(first[day]), clipped(second[day]), *(industry[day] == k for k in range(5))]).astype(float)
        y = clipped(values[day])
        rest = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        np.testing.assert_allclose(found.values[day], rest / rest.std(ddof=1), atol=1e-9)
        assert np.abs(x.T @ found.values[day]).max() < 1e-8 * n


def test_only_the_same_day_counts():
    industry, exposure, values = RNG.integers(0, 3, (6, 50)).astype(float), RNG.standard_normal((6, 50)), RNG.standard_normal((6, 50))
    before = orthogonalise(values, {"a": exposure}, industry).values
    for part in (industry, exposure, values):
        part[4:] = 7 * part[4:] + 1
    after = orthogonalise(values, {"a": exposure}, industry).values
    np.testing.assert_array_equal(after[:4], before[:4])
    values[4:] = np.nan
    assert np.isnan(orthogonalise(values, {"a": exposure}, industry).values[4:]).all()


def test_unknown_exposures():
    """A stock without an exposure is NaN; an exposure that most stocks lack is left out that day, and so are industries."""
    values, exposure, industry = RNG.standard_normal((2, 60)), RNG.standard_normal((2, 60)), np.zeros((2, 60))
    exposure[0, :5] = np.nan
    exposure[1, :31] = np.nan
    industry[1] = np.nan
    found = orthogonalise(values, {"a": exposure}, industry)
    assert found.days == {"a": 1, "industry": 1}
    assert np.isnan(found.values[0, :5]).all() and np.isfinite(found.values[0, 5:]).all() and np.isfinite(found.values[1]).all()


def test_nothing_left():
    """What the exposures explain altogether is NaN, a constant factor too, and so is a day with fewer stocks than coefficients."""
    exposure = RNG.uniform(-1, 1, (1, 50))
    for values, parts in ((3 * exposure + 1, {"a": exposure}), (np.ones((1, 50)), {"a": exposure}),
                          (exposure[:, :3], {"a": RNG.random((1, 3)), "b": RNG.random((1, 3))})):
        assert np.isnan(orthogonalise(values, parts).values).all()


def test_a_stock_alone_in_its_industry_is_unknown():
    values, industry = RNG.standard_normal((1, 30)), np.arange(30)[None] % 4
    industry[0, 7] = 9
    found = orthogonalise(values, {"a": RNG.standard_normal((1, 30))}, industry.astype(float)).values
    assert np.isnan(found[0, 7]) and np.isfinite(np.delete(found[0], 7)).all()


def test_what_most_stocks_share_is_not_clipped():
    values = np.zeros((1, 30))
    values[0, :8] = np.arange(1, 9)
    for largest in (8, 800):
        values[0, 7] = largest
        np.testing.assert_allclose(orthogonalise(values, {}).values[0], (values[0] - values.mean()) / values.std(ddof=1))


def test_shapes():
    with pytest.raises(ShapeError, match=r"a \(2, 3\) and values \(2, 4\)"):
        orthogonalise(np.zeros((2, 4)), {"a": np.zeros((2, 3))})
    with pytest.raises(ShapeError, match=r"must be \[t, n\]"):
        days_mean(np.zeros(3))
