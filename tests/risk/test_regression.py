"""The daily regression against statsmodels under the constraint, and on days that cannot be estimated."""
import numpy as np
import pytest
import statsmodels.api as sm
from risk_market import design, planted

from qlib_ext.errors import ShapeError
from qlib_ext.risk.estimate import regressions
from qlib_ext.risk.regression import constrained_least_squares, regress


@pytest.fixture
def day():
    draw = np.random.default_rng(0)
    n = 200
    style, industry, cap = draw.standard_normal((n, 4)), draw.integers(0, 6, n), np.exp(draw.normal(22, 1.5, n))
    returns = draw.normal(0, 0.02, n) + 0.01 * style[:, 0] + 0.005 * industry
    returns[:5] = np.nan
    style[5:8, 1] = np.nan
    industry[8:10] = -1
    members = draw.random(n) < 0.9
    return returns, style, industry, cap, members


def by_statsmodels(returns, style, industry, cap, members, industries=6):
    used = members & np.isfinite(returns) & np.isfinite(style).all(axis=1) & (industry >= 0)
    x = design(style[used], industry[used], industries)
    share = np.bincount(industry[used], cap[used], industries) / cap[used].sum()
    model = sm.GLM(returns[used], x, var_weights=np.sqrt(cap[used]))
    return model.fit_constrained((np.r_[0.0, share, np.zeros(style.shape[1])][None], np.zeros(1))).params


def test_equals_statsmodels_under_the_constraint(day):
    returns, style, industry, cap, members = day
    ours = regress(returns, style, industry, 6, cap, members)
    np.testing.assert_allclose(ours.factor_return, by_statsmodels(*day), rtol=1e-8, atol=1e-12)
    used = members & np.isfinite(returns) & np.isfinite(style).all(axis=1) & (industry >= 0)
    share = np.bincount(industry[used], cap[used], 6) / cap[used].sum()
    assert abs(share @ ours.factor_return[1:7]) < 1e-15 and ours.fault is None
    x = design(style[used], industry[used], 6)
    w, left = np.sqrt(cap[used]), returns[used] - x @ ours.factor_return
    np.testing.assert_allclose(ours.residual[used], left, atol=1e-14)
    total = w @ (returns[used] - w @ returns[used] / w.sum()) ** 2
    assert ours.r_squared == pytest.approx(1 - (w @ left**2) / total)
    outside = ~members & np.isfinite(returns) & np.isfinite(style).all(axis=1) & (industry >= 0)
    assert np.isfinite(ours.residual[outside]).all() and np.isnan(ours.residual[:8]).all()


def test_without_industries_it_is_weighted_least_squares(day):
    returns, style, industry, cap, members = day
    ours = regress(returns, style, np.full(len(cap), -1), 0, cap, members)
    used = members & np.isfinite(returns) & np.isfinite(style).all(axis=1)
    expected = sm.WLS(returns[used], sm.add_constant(style[used]), weights=np.sqrt(cap[used])).fit()
    np.testing.assert_allclose(ours.factor_return, expected.params, rtol=1e-9)
    assert ours.r_squared == pytest.approx(expected.rsquared)


def test_the_order_of_stocks_does_not_matter(day):
    order = np.random.default_rng(1).permutation(len(day[0]))
    returns, style, industry, cap, members = (part[order] for part in day)
    a, b = regress(*day[:3], 6, *day[3:]), regress(returns, style, industry, 6, cap, members)
    np.testing.assert_allclose(a.factor_return, b.factor_return, rtol=1e-9)
    np.testing.assert_allclose(a.residual[order], b.residual, atol=1e-14)


def test_an_industry_of_one_leaves_its_stock_no_residual(day):
    returns, style, industry, cap, members = day
    used = members & np.isfinite(returns) & np.isfinite(style).all(axis=1) & (industry >= 0)
    alone = np.flatnonzero(used)[0]
    industry[industry == 5] = 4
    industry[alone] = 5
    made = regress(returns, style, industry, 6, cap, members)
    assert made.fault is None and np.isnan(made.residual[alone]) and np.isfinite(made.factor_return).all()
    fitted = made.factor_return[0] + made.factor_return[6] + style[alone] @ made.factor_return[7:]
    assert fitted == pytest.approx(returns[alone], abs=1e-12)
    np.testing.assert_allclose(made.factor_return, by_statsmodels(returns, style, industry, cap, members), rtol=1e-7, atol=1e-11)


def test_an_industry_nobody_is_in_and_a_style_nobody_has_are_left_out_of_the_day(day):
    returns, style, industry, cap, members = day
    style[:, 2] = np.nan
    industry[industry == 3] = 2
    made = regress(returns, style, industry, 6, cap, members)
    assert np.isnan(made.factor_return[[4, 9]]).all() and np.isfinite(np.delete(made.factor_return, [4, 9])).all()
    assert np.isfinite(made.residual[members & (industry >= 0) & np.isfinite(returns) & np.isfinite(style[:, 1])]).all()


@pytest.mark.parametrize("spoil, reason", [("few", "11 stocks for 11 factors"), ("constant", "constant"), ("twins", "combinations")])
def test_days_that_cannot_be_estimated_say_why(day, spoil, reason):
    returns, style, industry, cap, members = day
    if spoil == "few":
        members[:] = False
        industry[20:31] = np.arange(11) % 6
        members[20:31] = True
    elif spoil == "constant":
        style[:, 2] = 1.0
    else:
        style[:, 3] = style[:, 0] + 2 * style[:, 2]
    made = regress(returns, style, industry, 6, cap, members)
    assert reason in made.fault and np.isnan(made.factor_return).all() and np.isnan(made.residual).all() and np.isnan(made.r_squared)


def test_a_constraint_without_weight_is_none_and_singular_matrices_give_none():
    draw = np.random.default_rng(2)
    x, y, w = draw.standard_normal((50, 3)), draw.standard_normal(50), np.ones(50)
    np.testing.assert_allclose(constrained_least_squares(x, y, w, np.zeros(3)), np.linalg.lstsq(x, y)[0], rtol=1e-9)
    assert constrained_least_squares(np.c_[x, x[:, 0]], y, w) is None and constrained_least_squares(np.c_[x, 0 * y], y, w) is None


def test_lengths_that_differ_are_refused(day):
    returns, style, industry, cap, members = day
    with pytest.raises(ShapeError):
        regress(returns[1:], style, industry, 6, cap, members)


def test_planted_factor_returns_come_back():
    exposed, factor, specific = planted(noise=0.0, hole=0.0)
    np.testing.assert_allclose(regressions(exposed).factor_return.to_numpy()[1:], factor[1:], atol=1e-9)
    exposed, factor, specific = planted(days=400, stocks=400, noise=0.02)
    made = regressions(exposed)
    error = made.factor_return.to_numpy()[1:] - factor[1:]
    assert (np.abs(error.mean(axis=0)) < 4 * error.std(axis=0) / np.sqrt(399)).all()       # unbiased
    for k in range(factor.shape[1]):
        assert np.corrcoef(made.factor_return.to_numpy()[1:, k], factor[1:, k])[0, 1] > 0.85
    assert np.isnan(made.factor_return.to_numpy()[0]).all() and np.isnan(made.residual[0]).all()
    known = np.isfinite(made.residual)
    assert np.corrcoef(made.residual[known], specific[known])[0, 1] > 0.95


def test_exposures_of_the_day_itself_are_not_used():
    exposed, _, _ = planted(days=60)
    before = regressions(exposed)
    exposed.style[40] = np.random.default_rng(0).standard_normal(exposed.style[40].shape)
    exposed.cap[40] *= 2
    after = regressions(exposed)
    np.testing.assert_array_equal(after.factor_return.to_numpy()[:41], before.factor_return.to_numpy()[:41])
    assert not np.array_equal(after.factor_return.to_numpy()[41], before.factor_return.to_numpy()[41])
