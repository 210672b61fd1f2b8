"""Measures of risk forecasts on draws from known covariances, and the script's measurement of made-up markets."""
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.risk.quality import (
    active_portfolios,
    bias_band,
    bias_statistic,
    minimum_variance,
    minimum_variance_factor,
    qlike,
    random_portfolios,
    rolling_bias,
)
from qlib_ext.risk.snapshot import RiskSnapshot

SPEC = importlib.util.spec_from_file_location("risk_quality", Path(__file__).resolve().parents[2] / "scripts" / "risk_quality.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)
HORIZON, WINDOW, N = 3, 60, 40


@pytest.fixture(scope="module")
def model():
    """Exposures, factor covariance, specific variances and the whole covariance of 40 stocks."""
    draw = np.random.default_rng(0)
    exposure, root = np.c_[np.ones(N), draw.standard_normal((N, 2))], draw.standard_normal((3, 3)) / 150
    specific = draw.uniform(1e-4, 9e-4, N)
    return exposure, root @ root.T, specific, exposure @ (root @ root.T) @ exposure.T + np.diag(specific)


def snapshot(day, exposure, factor_cov, specific):
    codes = [f"SH{600000 + n}" for n in range(len(exposure))]
    return RiskSnapshot(day, codes, ("country", "a", "b"), exposure, factor_cov, specific)


def market(model, days=400, seed=1):
    """Returns drawn from the model, some missing; the last stock is no member, the first one leaves half-way."""
    draw = np.random.default_rng(seed)
    returns = draw.multivariate_normal(np.zeros(N), model[3], days)
    returns[draw.random(returns.shape) < 0.01] = np.nan
    member = np.ones((days, N), bool)
    member[:, -1], member[days // 2:, 0] = False, False
    dates = np.arange(np.datetime64("2019-06-03"), np.datetime64("2019-06-03") + days)
    codes = np.array([f"SH{600000 + n}" for n in range(N)])
    return script.Market(dates, codes, returns, member, np.where(member, draw.dirichlet(np.ones(N)), np.nan))


# ---- measures -----------------------------------------------------------------------------------------------------------------
def test_closed_forms():
    realised, volatility = np.array([[0.02, -0.01], [np.nan, 0.03]]), np.array([[0.01, 0.02], [0.01, np.nan]])
    assert bias_statistic(realised, volatility) == pytest.approx(np.sqrt(2) * 1.25)                     # ratios 2 and -.5
    assert qlike(realised, volatility**2) == pytest.approx((np.log(1e-4) + 4 + np.log(4e-4) + 0.25) / 2)
    assert np.isnan(bias_statistic(realised[:1, :1], volatility[:1, :1])) and np.isnan(qlike(realised[1], volatility[1]))
    assert bias_band(50) == pytest.approx((0.8, 1.2))


@pytest.mark.parametrize("measure", [bias_statistic, qlike, lambda r, s: rolling_bias(r, s, 2)])
def test_bad_pairs_are_refused(measure):
    with pytest.raises(ShapeError, match="alike"):
        measure(np.ones((3, 2)), np.ones(3))
    for bad in (0.0, -1.0, np.inf):
        with pytest.raises(DataError, match="risk forecasts"):
            measure(np.ones(3), np.array([1.0, bad, np.nan]))


def test_right_forecasts_are_in_the_band_and_wrong_ones_are_not(model):
    draw, covariance = np.random.default_rng(1), model[3]
    realised = draw.multivariate_normal(np.zeros(N), covariance, 4000) @ random_portfolios(draw, N, 1, 10).T
    variance = np.full((4000, 1), realised.var())
    low, high = bias_band(4000)
    assert low < bias_statistic(realised, np.sqrt(variance)) < high
    for scale in (0.5, 2.0):
        assert not low < bias_statistic(realised, np.sqrt(variance * scale)) < high
    scales = np.linspace(0.5, 2.0, 61)
    assert scales[np.argmin([qlike(realised, variance * scale) for scale in scales])] == pytest.approx(1, abs=0.03)


def test_qlike_is_least_at_the_true_covariance(model):
    draw, covariance = np.random.default_rng(2), model[3]
    weights = random_portfolios(draw, N, 30, 10)
    realised = draw.multivariate_normal(np.zeros(N), covariance, 4000) @ weights.T
    scores = [qlike(realised, np.broadcast_to(script.Dense(covariance * scale).variance(weights), realised.shape))
              for scale in (0.5, 0.8, 1.0, 1.25, 2.0)]
    assert np.argmin(scores) == 2


def test_the_band_holds_nineteen_of_twenty():
    low, high = bias_band(200)
    found = [bias_statistic(draw, np.ones(200)) for draw in np.random.default_rng(3).standard_normal((2000, 200))]
    assert np.mean([low < one < high for one in found]) == pytest.approx(0.95, abs=0.02)


def test_rolling_bias_equals_pandas():
    draw = np.random.default_rng(4)
    realised, forecast = draw.standard_normal((50, 3)), draw.uniform(0.5, 2, (50, 3))
    realised[20, 1] = np.nan
    expected = pd.DataFrame(realised / forecast).rolling(12).std().to_numpy()[11:]
    np.testing.assert_allclose(rolling_bias(realised, forecast, 12), expected)
    with pytest.raises(ShapeError, match="50 rows"):
        rolling_bias(realised, forecast, 51)
    with pytest.raises(ConfigError):
        rolling_bias(realised, forecast, 1)


# ---- portfolios ---------------------------------------------------------------------------------------------------------------
def test_minimum_variance(model):
    exposure, factor_cov, specific, covariance = model
    weights = minimum_variance(covariance)
    assert weights.sum() == pytest.approx(1) and np.ptp(covariance @ weights) < 1e-12    # all marginal risks alike: the optimum
    np.testing.assert_allclose(minimum_variance_factor(exposure, factor_cov, specific), weights, rtol=1e-9)
    singular = np.diag([4e-4, 0.0, 0.0])
    np.testing.assert_allclose(minimum_variance_factor(exposure, singular, specific),
                               minimum_variance(exposure @ singular @ exposure.T + np.diag(specific)), rtol=1e-9)
    with pytest.raises(DataError, match="not positive definite"):
        minimum_variance(covariance - 0.01 * np.eye(N))


def test_random_and_active_portfolios():
    rng, benchmark = np.random.default_rng(5), np.random.default_rng(6).dirichlet(np.ones(60))
    benchmark[:5] = 0
    benchmark /= benchmark.sum()
    weights = random_portfolios(rng, 60, 20, 15)
    assert ((weights == 1 / 15).sum(axis=1) == 15).all() and ((weights != 0).sum(axis=1) == 15).all()
    active = active_portfolios(rng, benchmark, 20, 15)
    np.testing.assert_allclose(active.sum(axis=1), 0, atol=1e-12)
    whole = active + benchmark
    assert (whole > -1e-15).all() and ((whole > 1e-15).sum(axis=1) == 15).all() and (active[:, :5] == 0).all()
    assert len(np.unique(active, axis=0)) == 20
    for make in (lambda: random_portfolios(rng, 60, 2, 61), lambda: active_portfolios(rng, benchmark, 2, 56)):
        with pytest.raises(ConfigError, match="choose a size"):
            make()
    with pytest.raises(DataError, match="sum to 1"):
        active_portfolios(rng, benchmark * 2, 2, 5)


# ---- the script ---------------------------------------------------------------------------------------------------------------
def test_factor_form_equals_dense(model):
    one, dense = script.Factors(snapshot("2020-01-01", *model[:3])), script.Dense(model[3])
    weights = np.random.default_rng(7).standard_normal((9, N))
    np.testing.assert_allclose(one.variance(weights), dense.variance(weights), rtol=1e-9)
    np.testing.assert_allclose(one.stocks(), dense.stocks(), rtol=1e-9)
    np.testing.assert_allclose(one.minimum(), dense.minimum(), rtol=1e-9)


def test_a_date_equals_a_slow_loop(model):
    made, t = market(model), 250
    made.returns[t - 6:t + 1, 4], made.returns[t - 5:t + 1, 5], made.returns[t + 2:, 6] = np.nan, 0.01, np.nan
    fewer = snapshot(made.days[t], model[0][:-3], model[1], model[2][:-3])
    date = script.date_of(made, t, fewer, HORIZON, WINDOW)
    kept, realised = [], []
    for n in range(N):
        past = made.returns[t - WINDOW + 1:t + 1, n]
        if n not in (0, N - 1, N - 2, N - 3) and np.isfinite(past).sum() >= 0.9 * WINDOW:    # left, no member, unknown
            kept.append(made.codes[n])
            realised.append(np.prod([1 + r for r in made.returns[t + 1:t + HORIZON + 1, n] if np.isfinite(r)]) - 1)
    assert 4 not in [list(made.codes).index(code) for code in kept] and len(kept) > 30
    assert date.snapshot.instruments.tolist() == kept
    np.testing.assert_allclose(date.realised, realised)
    assert date.window.shape == (WINDOW, len(kept)) and np.isfinite(date.window).all()
    columns = np.searchsorted(made.codes, kept)
    np.testing.assert_allclose(date.benchmark, made.weight[t, columns] / made.weight[t, columns].sum())
    for place in (WINDOW - 2, len(made.days) - HORIZON):
        with pytest.raises(DataError, match="days up to it"):
            script.date_of(made, place, snapshot(made.days[place], *model[:3]), HORIZON, WINDOW)
    with pytest.raises(DataError, match="no index weights"):
        script.date_of(made._replace(weight=made.weight * np.nan), t, snapshot(made.days[t], *model[:3]), HORIZON, WINDOW)


def trailing(returns, t, days=30):
    """Specific variances from the days up to t."""
    return np.nanvar(returns[t + 1 - days:t + 1], axis=0)


def measured(made, model, t, variances=trailing):
    shot = snapshot(made.days[t], model[0], model[1], variances(made.returns, t))
    date = script.date_of(made, t, shot, HORIZON, WINDOW)
    return pd.concat(script.measure(date, {"snapshots": script.ours, **script.qlib_models()}, HORIZON, 4, 8, 0)[0])


def changed(made, rows):
    returns = made.returns.copy()
    returns[rows] *= -3
    return made._replace(returns=returns)


def sees_ahead(model, variances, t=250):
    """Whether forecasts of date t change with the returns after it."""
    made = market(model)
    before, after = (measured(one, model, t, variances) for one in (made, changed(made, slice(t + 1, None))))
    return not (before["variance"] == after["variance"]).all()


def test_no_look_ahead(model):
    made, t = market(model), 250
    before = measured(made, model, t)
    pd.testing.assert_frame_equal(before, measured(changed(made, slice(t + HORIZON + 1, None)), model, t))
    pd.testing.assert_frame_equal(before, measured(changed(made, slice(0, t - WINDOW + 1)), model, t))
    outcome = measured(changed(made, slice(t + 1, t + 2)), model, t)
    pd.testing.assert_frame_equal(before.drop(columns="realised"), outcome.drop(columns="realised"))
    assert (before["realised"].to_numpy() != outcome["realised"].to_numpy()).mean() > 0.9
    edge = measured(changed(made, slice(t, t + 1)), model, t)    # the day itself is known
    assert (before["variance"].to_numpy() != edge["variance"].to_numpy()).mean() > 0.9
    assert not sees_ahead(model, trailing)
    assert sees_ahead(model, lambda returns, t: trailing(returns, t + 1))    # a planted leak of one day is seen


def test_right_snapshots_pass_and_doubled_ones_do_not(model):
    made = market(model, days=1300)
    places = range(WINDOW, 1300 - HORIZON, HORIZON)
    models = {"right": script.ours, "twice": lambda date: script.Dense(2 * date.snapshot.covariance())}
    dates = (script.date_of(made, t, snapshot(made.days[t], *model[:3]), HORIZON, WINDOW) for t in places)
    table, seconds = script.evaluate(dates, models, HORIZON, 10, 8, 0)
    found = script.summary(table, HORIZON)
    whole = found[found["year"] == "all"].set_index(["kind", "model"])
    low, high = bias_band(len(places))
    for kind in script.KINDS:
        assert low < whole.loc[(kind, "right"), "bias"] < high and not low < whole.loc[(kind, "twice"), "bias"] < high
        assert whole.loc[(kind, "right"), "QLIKE"] < whole.loc[(kind, "twice"), "QLIKE"]
        pairs = [table[(table["kind"] == kind) & (table["model"] == name)]["realised"].to_numpy() for name in models]
        np.testing.assert_allclose(*pairs, rtol=1e-9, atol=1e-12)    # the same portfolios for all models
    assert set(seconds.index) == set(models) and (whole["dates"] == len(places)).all()
    part = table[(table["kind"] == "minimum variance") & (table["model"] == "right")]
    volatility = whole.loc[("minimum variance", "right"), "min-variance volatility"]
    assert volatility == pytest.approx(part["realised"].std() * np.sqrt(252 / HORIZON))
    years = found[(found["year"] != "all") & (found["kind"] == "random") & (found["model"] == "right")]
    assert years["year"].tolist() == sorted(table["day"].dt.year.astype(str).unique()) and years["dates"].sum() == len(places)
    assert whole.loc[("random", "right"), "yearly |bias - 1|"] == pytest.approx((years["bias"] - 1).abs().mean())


def test_portfolios_of_a_date_do_not_hang_on_other_dates(model):
    made = market(model)
    tables = [script.evaluate((script.date_of(made, t, snapshot(made.days[t], *model[:3]), HORIZON, WINDOW) for t in places),
                              {"snapshots": script.ours}, HORIZON, 4, 8, 0)[0] for places in ([100, 250], [250])]
    pd.testing.assert_frame_equal(tables[0][tables[0]["day"] == tables[1]["day"].iloc[0]].reset_index(drop=True), tables[1])


@pytest.mark.parametrize("bad, message", [
    (lambda date: script.Dense(np.full((len(date.realised),) * 2, np.nan)), "broken"),
    (lambda date: script.Dense(np.diag(np.arange(len(date.realised)) - 1e-3)), "broken failed on 2020-02-08: .*definite"),
    (lambda date: script.Dense(script._real(np.eye(len(date.realised)) * (1 + 1j))), "broken failed on 2020-02-08: .*complex"),
])
def test_a_model_that_fails_is_an_error(model, bad, message):
    made, t = market(model), 250
    date = script.date_of(made, t, snapshot(made.days[t], *model[:3]), HORIZON, WINDOW)
    with pytest.raises(DataError, match=message):
        script.measure(date, {"snapshots": script.ours, "broken": bad}, HORIZON, 4, 8, 0)
