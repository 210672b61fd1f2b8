"""The peers of `scripts/bench/risk.py` compute what `qlib_ext.risk` does, so that the race is between equals."""
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qlib_ext.risk.covariance import CovarianceOptions
from qlib_ext.risk.estimate import risk_days

pytestmark = pytest.mark.filterwarnings("ignore:All-NaN slice")
BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
OPTIONS = {"defaults": CovarianceOptions(),
           "lags": CovarianceOptions(volatility_lags=5, correlation_lags=2, specific_lags=3, regime_half_life=None,
                                     specific_window=120)}
"""Without the first, half of the peer's covariance would not be looked at: the defaults have no lags."""


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        import risk
        yield risk
    finally:
        sys.path.remove(str(BENCH))
        for name in ("risk", "risk_pandas"):
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def market(bench):
    """600 days, of which 540 have every style; 5 industries, one of them of a single stock, one that ends."""
    made = bench.random_market(120, 600, seed=3)
    industry = 801000.0 + 10 * (np.arange(120) % 4) + 0.0 * made.industry
    industry[:, np.flatnonzero(made.members.all(axis=0))[0]] = 801990.0
    industry[:, 11::20] = np.nan
    industry[400:][industry[400:] == 801030] = 801000
    fields = {name: values.copy() for name, values in made.fields.items()}
    fields["turnover"][200:260, 30] = 0.0                                           # a stop of three months
    fields["returns"][200:260, 30], fields["daily_returns"][200:261, 30] = np.nan, np.nan
    return replace(made, industry=industry, fields=fields)


@pytest.fixture(scope="module")
def made(bench, market):
    """Each peer after its first two stages."""
    found = {name: bench.PEERS[name](market) for name in bench.PEERS}
    for runner in found.values():
        runner.styles()
        runner.regressions()
    return found


@pytest.mark.parametrize("name", ["pandas", "groupby"])
def test_exposures_and_factor_returns(market, made, name):
    ours, peer = made["ours"], made[name]
    assert tuple(peer.exposed.factors) == tuple(ours.exposed.factors)
    np.testing.assert_allclose(peer.exposed.style, ours.exposed.style, rtol=0, atol=1e-6)              # NaN at the same places
    for k, style in enumerate(ours.exposed.styles):
        assert 1e-3 < np.nanstd(ours.exposed.style[-1, :, k]) < 10, style          # there is something to compare
    np.testing.assert_allclose(peer.learnt.factor_return, ours.learnt.factor_return, rtol=0, atol=1e-8)
    np.testing.assert_allclose(peer.learnt.residual, ours.learnt.residual, rtol=0, atol=1e-7)           # ours are float32
    np.testing.assert_allclose(peer.learnt.r_squared, ours.learnt.r_squared, rtol=0, atol=1e-6)
    assert np.isfinite(ours.learnt.factor_return.to_numpy()[300:, -6:]).all()
    alone = np.flatnonzero(market.industry[-1] == 801990)
    assert ours.exposed.present[300:, alone].all() and np.isnan(peer.learnt.residual.to_numpy()[:, alone]).all()


@pytest.mark.parametrize("options", OPTIONS)
def test_covariances_and_specific_variances(bench, made, options):
    ours, peer = made["ours"], made["pandas"]
    chosen, count = OPTIONS[options], len(ours.market.days)
    theirs = bench.peer.risk_days(peer.exposed, peer.learnt, np.arange(count), chosen)
    days = list(risk_days(ours.exposed, ours.learnt, None, range(count), chosen))
    assert len(days) > 500
    assert [day.snapshot.date for day in days] == [day.to_datetime64().astype("datetime64[D]") for day in theirs]
    for day, (factors, matrix, held, specific) in zip(days, theirs.values()):
        assert list(day.snapshot.factors) == factors and (day.snapshot.instruments == ours.market.codes[held]).all()
        scale = np.abs(day.snapshot.factor_cov).max()
        np.testing.assert_allclose(matrix, day.snapshot.factor_cov, rtol=0, atol=1e-8 * max(scale, 1e-3))
        np.testing.assert_allclose(specific, day.snapshot.specific_var, rtol=1e-6)
    assert len({tuple(day.snapshot.factors) for day in days}) > 1                                       # industries came or went


@pytest.mark.parametrize("name", ["ours", "pandas"])
def test_one_more_day_has_the_numbers_of_all_days(bench, made, market, name):
    runner = made[name]
    runner.covariances()
    day = runner.one_day(bench.tail(market, bench.TAIL), runner.history())
    apart = bench.differences(runner.numbers(), runner.numbers(day))
    assert max(apart.values()) < 1e-9
    returns = market.fields["daily_returns"] * np.r_[np.ones(599), 2.0][:, None]
    changed = replace(market, fields={**market.fields, "daily_returns": returns})
    other = runner.one_day(bench.tail(changed, bench.TAIL), runner.history())
    assert bench.differences(runner.numbers(), runner.numbers(other))["factor returns"] > 0.1     # and would show a difference
