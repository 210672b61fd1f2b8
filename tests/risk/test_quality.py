"""Measures of risk forecasts on draws from a known covariance, and the script's measurement without a store."""
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from qlib_ext.errors import ShapeError
from qlib_ext.risk.quality import (
    active_portfolios,
    bias_band,
    bias_statistic,
    minimum_variance,
    minimum_variance_of_factors,
    portfolio_volatility,
    qlike,
    random_portfolios,
)

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "risk_quality.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("risk_quality", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model():
    draw = np.random.default_rng(0)
    exposure, root = draw.standard_normal((80, 4)), draw.standard_normal((4, 4)) / 100
    specific = draw.uniform(1e-4, 9e-4, 80)
    return exposure, root @ root.T, specific, exposure @ (root @ root.T) @ exposure.T + np.diag(specific)


def test_right_forecasts_are_recognised_and_wrong_ones_too(model):
    draw, covariance = np.random.default_rng(1), model[3]
    returns = draw.multivariate_normal(np.zeros(80), covariance, 400)
    weights = random_portfolios(draw, 80, 30, 10)
    forecast = np.broadcast_to(portfolio_volatility(weights, covariance), (400, 30))
    realised, band = returns @ weights.T, bias_band(400)
    assert band == pytest.approx((1 - 0.0707, 1 + 0.0707), abs=1e-3)
    assert band[0] < bias_statistic(realised, forecast) < band[1]
    for factor in (0.7, 1.4):
        assert not band[0] < bias_statistic(realised, forecast * factor) < band[1]
        assert bias_statistic(realised, forecast * factor) == pytest.approx(bias_statistic(realised, forecast) / factor)
        assert qlike(realised, forecast * factor) > qlike(realised, forecast) + 0.05
    best = min(np.linspace(0.8, 1.2, 41), key=lambda factor: qlike(realised, forecast * factor))
    assert best == pytest.approx(bias_statistic(realised, forecast), abs=0.011)             # it is least where the bias is 1
    with_hole = np.where(np.arange(30) == 3, np.nan, realised)
    assert bias_statistic(with_hole, forecast) == pytest.approx(bias_statistic(np.delete(realised, 3, 1), np.delete(forecast, 3, 1)))
    with pytest.raises(ShapeError):
        qlike(realised, forecast[:, 0])
    assert np.isnan(qlike(np.array([np.nan]), np.ones(1)))


def test_minimum_variance_portfolios(model):
    exposure, factor_cov, specific, covariance = model
    weights = minimum_variance(covariance)
    np.testing.assert_allclose(minimum_variance_of_factors(exposure, factor_cov, specific), weights, rtol=1e-8)
    assert weights.sum() == pytest.approx(1)
    draw = np.random.default_rng(2)
    for _ in range(50):
        other = weights + (move := draw.standard_normal(80) / 50) - move.mean()
        assert weights @ covariance @ weights < other @ covariance @ other


def test_random_and_active_portfolios():
    draw, benchmark = np.random.default_rng(3), np.random.default_rng(4).dirichlet(np.ones(60))
    weights = random_portfolios(draw, 60, 20, 15)
    assert ((weights > 0).sum(axis=1) == 15).all() and weights.sum(axis=1) == pytest.approx(np.ones(20))
    active = active_portfolios(draw, benchmark, 20, 15)
    assert active.sum(axis=1) == pytest.approx(np.zeros(20), abs=1e-12) and ((active + benchmark) > -1e-15).all()
    assert (((active + benchmark) > 1e-12).sum(axis=1) == 15).all()


def dates(script, seed=0, count=12, change=None):
    """Dates of a made-up market whose past returns, outcomes and covariance come from one model."""
    draw = np.random.default_rng(seed)
    root = draw.standard_normal((40, 3)) / 100
    covariance = root @ root.T + np.diag(draw.uniform(1e-4, 4e-4, 40))
    returns = draw.multivariate_normal(np.zeros(40), covariance, 120 + 5 * count)
    if change is not None:
        returns[change:] += 0.5
    for number in range(count):
        t = 120 + 5 * number
        yield script.Date(np.datetime64("2020-01-01") + 7 * number, returns[t - 120:t], np.prod(1 + returns[t:t + 5], axis=0) - 1,
                          np.full(40, 1 / 40), covariance)


def test_the_script_measures_every_model_on_the_same_portfolios(script):
    table, seconds = script.measure(dates(script), script.estimators(), 5, 8, 0)
    assert set(table["model"]) == {"snapshots", *script.estimators()} and set(seconds) == set(table["model"])
    for kind, rows in {"random": 96, "active": 96, "minimum variance": 12, "single stocks": 480}.items():
        parts = [part for _, part in table[table["kind"] == kind].groupby("model")]
        assert all(len(part) == rows for part in parts)
        if kind != "minimum variance":
            assert all((part["realised"].to_numpy() == parts[0]["realised"].to_numpy()).all() for part in parts)
    found = script.summary(table, 5)
    assert list(dict.fromkeys(found["kind"])) == list(script.KINDS)
    ours = found[found["model"] == "snapshots"].set_index("kind")
    assert 0.8 < ours.loc["single stocks", "bias"] < 1.2 and ours["QLIKE"].notna().all()


def test_forecasts_do_not_see_what_comes(script):
    table, later = (script.measure(dates(script, change=change), script.estimators(), 5, 8, 0)[0] for change in (None, 150))
    day = table["day"] < np.unique(table["day"])[7]                                          # 120 + 5 * 6 = 150: the seventh date's future
    forecast = lambda frame: frame.loc[day & (frame["kind"] != "minimum variance"), "forecast"].to_numpy()  # noqa: E731
    np.testing.assert_array_equal(forecast(table), forecast(later))
    assert not np.array_equal(table.loc[day, "realised"], later.loc[day, "realised"])


def test_a_forecast_that_is_no_number_stops_the_script(script):
    with pytest.raises(SystemExit, match="broken on 2020-01-01"):
        script.measure(dates(script, count=1), {"broken": lambda window: np.full((40, 40), np.nan)}, 5, 2, 0)
