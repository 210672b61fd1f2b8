"""From exposures to risk days: planted risk comes back, parts add up to the whole, and nothing later is used."""
import numpy as np
import pytest
from risk_market import planted

from qlib_ext.errors import DataError, ShapeError
from qlib_ext.risk.covariance import CovarianceOptions
from qlib_ext.risk.estimate import History, days_kept, regressions, risk_days
from qlib_ext.risk.snapshot import RiskSnapshot, style_names

OPTIONS = CovarianceOptions(volatility_half_life=120, correlation_half_life=250, regime_half_life=None, specific_window=200)


@pytest.fixture(scope="module")
def market():
    return planted(days=420, stocks=200)


@pytest.fixture(scope="module")
def days(market):
    exposed = market[0]
    return list(risk_days(exposed, regressions(exposed), None, range(len(exposed.days)), OPTIONS))


def same(a, b) -> bool:
    left, right = a.snapshot, b.snapshot
    return (left.date == right.date and left.factors == right.factors and (left.instruments == right.instruments).all()
            and all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("exposure", "factor_cov", "specific_var"))
            and np.array_equal(a.factor_return, b.factor_return, equal_nan=True) and np.array_equal(a.residual, b.residual, equal_nan=True))


def test_days_begin_when_there_is_a_history_and_are_complete(market, days):
    exposed = market[0]
    assert days[0].snapshot.date == exposed.days[42] and len(days) == 420 - 42          # 42 returns are needed
    for day in days:
        assert day.snapshot.factors[0] == "country" and style_names(day.snapshot.factors) == ["style0", "style1", "style2"]
        assert np.linalg.eigvalsh(day.snapshot.covariance())[0] > 0
        assert (day.snapshot.exposure[:, 1:6].sum(axis=1) == 1).all() and np.isfinite(day.factor_return).all()


def test_planted_risk_comes_back(market, days):
    exposed, factor, specific = market
    last = days[-1].snapshot
    true_factor = np.cov(factor[1:].T)
    weights = np.random.default_rng(0).dirichlet(np.ones(200), 50)
    true = np.einsum("pn,nk,kl,ml,pm->p", weights, last.exposure, true_factor, last.exposure, weights) + weights**2 @ specific.var(axis=0)
    got = np.array([last.variance(w) for w in weights])
    np.testing.assert_allclose(got, true, rtol=0.25)
    assert np.corrcoef(last.specific_var, specific.var(axis=0))[0, 1] > 0.8
    assert np.sqrt(last.specific_var).mean() == pytest.approx(specific.std(axis=0).mean(), rel=0.1)
    np.testing.assert_allclose([last.variance(w) for w in weights], [w @ last.covariance() @ w for w in weights], rtol=1e-10)
    np.testing.assert_allclose(last.factor_exposure(weights[0]), last.exposure.T @ weights[0])


@pytest.mark.parametrize("cut", [100, 250, 419])
def test_days_made_in_pieces_equal_those_made_at_once(market, days, cut):
    exposed = market[0]

    def piece(first, stop):
        part = slice(first, stop)
        return type(exposed)(exposed.days[part], exposed.origin + first, exposed.codes, exposed.styles, exposed.style[part],
                             exposed.industry[part], exposed.cap[part], exposed.members[part], exposed.returns[part])

    early, late, keep = piece(0, cut), piece(cut - 1, 420), days_kept(OPTIONS)
    history = History.first(early, regressions(early), keep)
    assert len(history.residual) == min(cut, keep)
    made = list(risk_days(late, regressions(late), history, range(1, 420 - cut + 1), OPTIONS))
    assert len(made) == 420 - cut
    assert all(same(a, b) for a, b in zip(made, days[cut - 42:]))
    extended = history.extended(late, regressions(late), keep)
    whole = History.first(exposed, regressions(exposed), keep)
    np.testing.assert_array_equal(extended.factor_return, whole.factor_return)
    np.testing.assert_array_equal(extended.residual, whole.residual)


def test_nothing_later_is_used(market, days):
    exposed, _, _ = planted(days=420, stocks=200)
    t = 300
    draw = np.random.default_rng(1)
    exposed.returns[t + 1:], exposed.style[t + 1:] = draw.normal(0, 1, (119, 200)), draw.standard_normal((119, 200, 3))
    exposed.cap[t + 1:], exposed.industry[t + 1:] = 1e9, 70.0
    exposed.__post_init__()
    made = list(risk_days(exposed, regressions(exposed), None, range(250, 304), OPTIONS))
    assert all(same(a, b) for a, b in zip(made[:t - 250 + 1], days[250 - 42:]))
    assert not same(made[t - 250 + 1], days[t + 1 - 42])


def test_stocks_that_come_later_change_no_bit(market, days):
    exposed = market[0]
    wide = lambda part, empty: np.concatenate([part, np.full((*part.shape[:1], 30, *part.shape[2:]), empty, part.dtype)], axis=1)  # noqa: E731
    codes = np.concatenate([exposed.codes, [f"SZ{300000 + n}" for n in range(30)]])
    more = type(exposed)(exposed.days, exposed.origin, codes, exposed.styles, wide(exposed.style, np.nan), wide(exposed.industry, np.nan),
                         wide(exposed.cap, np.nan), wide(exposed.members, False), wide(exposed.returns, np.nan))
    made = list(risk_days(more, regressions(more), None, range(410, 420), OPTIONS))
    assert all(same(a, b) for a, b in zip(made, days[410 - 42:]))


def test_a_day_without_factor_returns_is_bridged(market):
    exposed, _, _ = planted(days=120)
    exposed.returns[100, 20:] = np.nan                                                    # nine factors, some 20 stocks: still enough
    exposed.returns[101, 8:] = np.nan
    learnt = regressions(exposed)
    assert list(learnt.faults) == [str(exposed.days[101])] and "factors" in learnt.faults[str(exposed.days[101])]
    made = {str(day.snapshot.date): day for day in risk_days(exposed, learnt, None, range(99, 104))}
    assert len(made) == 5
    day = made[str(exposed.days[101])]
    assert np.isnan(day.factor_return).all() and np.isnan(day.residual).all() and np.isnan(day.r_squared)


def test_an_industry_that_appears_and_one_that_goes():
    exposed, _, _ = planted(days=150, stocks=120)
    exposed.industry[100:, :10] = 99.0
    exposed.industry[120:][exposed.industry[120:] == 20.0] = 30.0
    exposed.__post_init__()
    made = {int(np.flatnonzero(exposed.days == day.snapshot.date)[0]): day for day in
            risk_days(exposed, regressions(exposed), None, range(95, 130))}
    assert "industry:99" not in made[99].snapshot.factors and "industry:99" in made[100].snapshot.factors
    k = made[100].snapshot.factors.index("industry:99")
    assert np.isnan(made[100].factor_return[k]) and np.isfinite(made[101].factor_return[k])
    others = np.delete(np.diag(made[110].snapshot.factor_cov), k)
    assert made[110].snapshot.factor_cov[k, k] == pytest.approx(np.median(others))          # too young for a variance of its own
    assert "industry:20" in made[120].snapshot.factors                                     # its last return is today's
    gone = made[120].snapshot.factors.index("industry:20")
    assert np.isfinite(made[120].factor_return[gone]) and (made[120].snapshot.exposure[:, gone] == 0).all()
    assert "industry:20" not in made[121].snapshot.factors


def test_snapshots_refuse_what_cannot_be():
    good = dict(date=np.datetime64("2020-01-02"), instruments=np.array(["A", "B"]), factors=("country",), exposure=np.ones((2, 1)),
                factor_cov=np.array([[1e-4]]), specific_var=np.array([1e-4, 2e-4]))
    snapshot = RiskSnapshot(**good)
    assert snapshot.select(["B"]).specific_var.tolist() == [2e-4] and snapshot.rows(["B", "C"]).tolist() == [1, -1]
    for change, error in (({"exposure": np.ones((3, 1))}, ShapeError), ({"specific_var": np.array([0.0, 1e-4])}, DataError),
                          ({"factor_cov": np.array([[-1e-4]])}, DataError), ({"exposure": np.array([[1.0], [np.nan]])}, DataError),
                          ({"instruments": np.array(["B", "A"])}, DataError)):
        with pytest.raises(error, match="2020-01-02"):
            RiskSnapshot(**{**good, **change})
    with pytest.raises(DataError, match="'C'"):
        snapshot.select(["A", "C"])
    with pytest.raises(ShapeError):
        snapshot.variance(np.ones(3))
    with pytest.raises(DataError):
        snapshot.variance(np.array([np.nan, 1.0]))
