"""Factor covariances and specific variances against explicit weights, and their properties on every day."""
import numpy as np
import pytest

from qlib_ext.errors import ConfigError
from qlib_ext.risk.covariance import (
    CovarianceOptions,
    FactorCovariance,
    eigen_adjusted,
    nearest_correlation,
    specific_forecast,
    specific_variances,
)

PLAIN = CovarianceOptions(volatility_half_life=40, correlation_half_life=90, volatility_lags=0, correlation_lags=0, regime_half_life=None,
                          least=5)


@pytest.fixture(scope="module")
def returns():
    draw = np.random.default_rng(0)
    mix = draw.normal(0, 0.004, (6, 6)) + np.diag([0.012, 0.006, 0.006, 0.004, 0.003, 0.003])
    f = draw.standard_normal((400, 6)) @ mix.T
    f[:150, 4], f[300:, 3], f[[20, 77]] = np.nan, np.nan, np.nan      # comes later, goes earlier, days that failed
    return f


def explicit(f, t, half_life, lag=0):
    """sum w f_s f_{s-lag}' / sum w over the pairs known, weights by the age of s."""
    x, m = np.nan_to_num(f[:t + 1]), np.isfinite(f[:t + 1]).astype(float)
    w = 2.0 ** (-np.arange(t, -1, -1) / half_life)[lag:, None]
    late, early = slice(lag, None), slice(0, t + 1 - lag)
    return ((w * x[late]).T @ x[early]) / np.maximum((w * m[late]).T @ m[early], 1e-300)


def forecast(f, options, t, factors=None):
    factors = np.arange(f.shape[1]) if factors is None else factors
    return dict(FactorCovariance(f, options).forecasts({t: factors}))[t]


@pytest.mark.parametrize("t", [60, 299, 399])
def test_equals_explicit_weights(returns, t):
    known = np.flatnonzero(np.isfinite(returns[:t + 1]).sum(axis=0) >= 5)
    made = forecast(returns, PLAIN, t, known)
    variance = np.diag(explicit(returns, t, 40.0))[known]
    np.testing.assert_allclose(np.diag(made), variance, rtol=1e-10)
    c = explicit(returns, t, 90.0)[np.ix_(known, known)]
    np.testing.assert_allclose(made / np.sqrt(np.outer(np.diag(made), np.diag(made))), c / np.sqrt(np.outer(np.diag(c), np.diag(c))), atol=1e-6)


def test_serial_correlation_is_bartlett_weighted(returns):
    options = CovarianceOptions(volatility_half_life=40, correlation_half_life=90, volatility_lags=3, correlation_lags=1,
                                regime_half_life=None, least=5)
    t = 399
    made, plain = forecast(returns, options, t), np.diag(explicit(returns, t, 40.0))
    total = plain + sum(2 * (1 - lag / 4) * np.diag(explicit(returns, t, 40.0, lag)) for lag in (1, 2, 3))
    np.testing.assert_allclose(np.diag(made), np.maximum(total, 0.25 * plain), rtol=1e-10)
    c = explicit(returns, t, 90.0)
    one = explicit(returns, t, 90.0, 1)
    always = np.array([0, 1, 2, 5])
    c = (c + 0.5 * (one + one.T))[np.ix_(always, always)]
    expected, made = c / np.sqrt(np.outer(np.diag(c), np.diag(c))), forecast(returns, options, t, always)
    np.testing.assert_allclose(made / np.sqrt(np.outer(np.diag(made), np.diag(made))), expected, atol=1e-6)


def test_a_smoothed_series_is_riskier_over_weeks_and_an_alternating_one_less():
    draw = np.random.default_rng(1)
    noise = draw.normal(0, 0.01, (3001, 1))
    smooth, jumpy = (noise[1:] + noise[:-1]) / 2, noise[1:] - noise[:-1]
    options = CovarianceOptions(volatility_half_life=1000, volatility_lags=5, regime_half_life=None)
    for series, long_run in ((smooth, 1e-4), (jumpy, 0.0)):
        made = float(forecast(series, options, 2999)[0, 0])
        weekly = series.reshape(-1, 5).sum(axis=1).var() / 5
        plain = series.var()
        assert abs(made - weekly) < abs(plain - weekly) / 2          # nearer to the variance of weeks than the plain one
    assert made > 0                                                  # limited from below


def test_positive_semi_definite_on_every_day_and_symmetric(returns):
    for options in (CovarianceOptions(least=5), CovarianceOptions(least=5, volatility_lags=10, correlation_lags=10, correlation_half_life=15),
                    CovarianceOptions(least=5, eigen_simulations=20)):
        days = {t: np.arange(6) for t in range(6, 400, 1 if options.eigen_simulations == 0 else 40)}
        for t, matrix in FactorCovariance(returns, options).forecasts(days):
            assert np.isfinite(matrix).all() and (matrix == matrix.T).all(), t
            assert np.linalg.eigvalsh(matrix)[0] > 0, t


def test_the_repair_is_needed_and_the_nearest_correlation_keeps_a_sound_one():
    broken = np.array([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
    assert np.linalg.eigvalsh(broken)[0] < -0.5
    mended = nearest_correlation(broken, np.eye(3), np.zeros(3, bool))
    assert np.linalg.eigvalsh(mended)[0] > 0 and np.diag(mended) == pytest.approx(1.0)
    sound = np.array([[4.0, 1.0], [1.0, 1.0]])
    np.testing.assert_allclose(nearest_correlation(sound, sound, np.zeros(2, bool)), [[1, 0.5], [0.5, 1]], rtol=1e-12)


def test_a_young_factor_has_the_median_variance_and_no_correlation(returns):
    made = forecast(returns, PLAIN, 152)
    others = np.delete(np.diag(made), 4)
    assert made[4, 4] == pytest.approx(np.median(others)) and np.abs(np.delete(made[4], 4)).max() < 1e-18
    assert forecast(np.full((10, 2), np.nan), PLAIN, 9) is None


def test_later_days_change_nothing_to_the_bit(returns):
    noisy, options = returns.copy(), CovarianceOptions(least=5, eigen_simulations=5)
    noisy[200:] *= 3
    wide = np.c_[noisy[:, :2], np.full(400, np.nan), noisy[:, 2:]]
    wide[250:, 2] = 0.01                                             # a factor that comes later
    now = forecast(returns, options, 199)
    np.testing.assert_array_equal(forecast(noisy, options, 199), now)
    np.testing.assert_array_equal(forecast(wide, options, 199, np.array([0, 1, 3, 4, 5, 6])), now)
    assert not np.array_equal(forecast(noisy, options, 200), forecast(returns, options, 200))


def test_the_regime_multiplier_follows_the_level():
    draw = np.random.default_rng(2)
    f = draw.normal(0, 0.01, (700, 20))
    f[400:] *= 2
    options = CovarianceOptions(volatility_half_life=250, regime_half_life=20, volatility_lags=0)
    model = FactorCovariance(f, options)
    assert model.regime[399] == pytest.approx(1.0, abs=0.15) and model.regime[460] > 2
    off = FactorCovariance(f, CovarianceOptions(volatility_half_life=250, regime_half_life=None, volatility_lags=0))
    assert (off.regime == 1).all()
    got, plain = (dict(m.forecasts({460: np.arange(20)}))[460] for m in (model, off))
    np.testing.assert_allclose(got, plain * model.regime[460], rtol=1e-12)
    true = np.full(20, 4e-4)
    assert np.abs(np.diag(got) / true - 1).mean() < np.abs(np.diag(plain) / true - 1).mean() / 2


def test_the_eigenvalue_adjustment_removes_the_bias_of_minimum_variance_portfolios():
    draw = np.random.default_rng(3)
    true = np.diag(np.linspace(1, 9, 20)) * 1e-4
    ratio, adjusted_ratio = [], []
    for seed in range(30):
        sample = draw.standard_normal((80, 20)) @ np.sqrt(true)
        covariance = sample.T @ sample / 80
        for matrix, kept in ((covariance, ratio), (eigen_adjusted(covariance, 80, CovarianceOptions(eigen_simulations=200, eigen_scale=1.0),
                                                                  seed), adjusted_ratio)):
            w = np.linalg.solve(matrix, np.ones(20))
            w /= w.sum()
            kept.append((w @ true @ w) / (w @ matrix @ w))
    assert np.mean(ratio) > 1.25 and abs(np.mean(adjusted_ratio) - 1) < (np.mean(ratio) - 1) / 2
    again = eigen_adjusted(covariance, 80, CovarianceOptions(eigen_simulations=200, eigen_scale=1.0), 29)
    np.testing.assert_array_equal(matrix, again)


def test_specific_variances_equal_explicit_weights():
    draw = np.random.default_rng(4)
    u = draw.normal(0, 0.02, (300, 4))
    u[draw.random(u.shape) < 0.1] = np.nan
    u[:280, 3] = np.nan
    options = CovarianceOptions(specific_window=120, specific_half_life=40, specific_lags=2, least=30)
    made, count = specific_variances(u, options, origin=17, first=250)
    for t in (250, 299):
        for n in range(3):
            def mean(lag):
                s = np.arange(t - 119, t + 1)
                product = u[s, n] * u[s - lag, n]
                ok = np.isfinite(product)
                w = 2.0 ** (-(t - s) / 40.0) * ok
                return (w * np.nan_to_num(product)).sum() / w.sum()
            total = mean(0) + 2 * (2 / 3 * mean(1) + 1 / 3 * mean(2))
            assert made[t - 250, n] == pytest.approx(max(total, 0.25 * mean(0)), rel=1e-9)
            assert count[t - 250, n] == np.isfinite(u[t - 119:t + 1, n]).sum()
    assert np.isnan(made[:, 3]).all()
    part, _ = specific_variances(u[100:], options, origin=117, first=150)
    np.testing.assert_array_equal(part, made)                        # to the bit, whatever the first row


def test_a_new_name_gets_what_its_exposures_suggest():
    draw = np.random.default_rng(5)
    n = 400
    style, group, cap = draw.standard_normal(n), draw.integers(0, 3, n), np.exp(draw.normal(22, 1, n))
    structure = style[:, None], group, 3, cap
    true = 0.02 * np.exp(0.3 * style + 0.2 * (group - 1))
    variance, count = true**2 * draw.chisquare(200, n) / 200, np.full(n, 250.0)
    new = np.arange(0, n, 8)
    variance[new], count[new] = np.nan, 0.0
    options = CovarianceOptions(specific_shrinkage=0.0)
    made = np.sqrt(specific_forecast(variance, count, *structure, options))
    np.testing.assert_allclose(made[new], true[new], rtol=0.08)
    old = np.setdiff1d(np.arange(n), new)
    np.testing.assert_array_equal(made[old] ** 2, np.sqrt(variance[old]) ** 2)
    variance[new[0]], count[new[0]] = (3 * true[new[0]]) ** 2, 120.0  # half trusted
    mixed = np.sqrt(specific_forecast(variance, count, *structure, options))[new[0]]
    assert mixed == pytest.approx(0.5 * 3 * true[new[0]] + 0.5 * made[new[0]], rel=1e-3)
    assert specific_forecast(np.full(n, np.nan), 0 * count, *structure, options) is None


def test_shrinkage_pulls_to_the_size_decile_and_outliers_the_most():
    n = 200
    cap, variance = np.arange(1.0, n + 1), np.full(n, 4e-4)
    variance[3] = 36e-4
    args = (variance, np.full(n, 250.0), np.empty((n, 0)), np.full(n, -1), 0, cap)
    made = np.sqrt(specific_forecast(*args, CovarianceOptions(specific_shrinkage=1.0)))
    off = np.sqrt(specific_forecast(*args, CovarianceOptions(specific_shrinkage=0.0)))
    assert off[3] == pytest.approx(0.06) and 0.02 < made[3] < 0.04 and made[100] == pytest.approx(0.02)


@pytest.mark.parametrize("wrong", [{"volatility_half_life": 0}, {"volatility_lags": -1}, {"least": 1.5}, {"specific_window": "252"},
                                   {"regime_half_life": -3.0}, {"eigen_simulations": True}])
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CovarianceOptions(**wrong)
