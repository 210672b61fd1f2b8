"""Descriptors against their definitions on series that have a closed form, and against pandas."""
import numpy as np
import pandas as pd
import pytest

from qlib_ext.risk import descriptor as d
from qlib_ext.risk.descriptor import DESCRIPTORS, EXTRAS, STYLES


@pytest.fixture(scope="module")
def returns():
    draw = np.random.default_rng(0)
    r = draw.normal(0.0003, 0.02, (620, 8))
    r[draw.random(r.shape) < 0.03] = np.nan
    return r


def test_there_are_ten_styles_of_21_descriptors_whose_weights_sum_to_1():
    assert len(STYLES) == 10 and len(DESCRIPTORS) == 21 and len(EXTRAS) == 5
    for style in STYLES:
        assert sum(one.weight for one in DESCRIPTORS if one.style == style) == pytest.approx(1.0)
    known = {"earnings_yield": (0.656, 0.344), "growth": (0.338, 0.662)}                   # published, without consensus
    for style, expected in known.items():
        parts = [one.weight for one in DESCRIPTORS if one.style == style and not any("consensus" in need for need in one.needs)]
        assert np.round(np.array(parts) / sum(parts), 3) == pytest.approx(expected)


def test_a_planted_beta_is_recovered():
    draw = np.random.default_rng(1)
    market = draw.normal(0, 0.012, 400)
    stocks = np.stack([1.3 * market, 0.6 * market + draw.normal(0, 0.02, 400)], axis=1)
    slope, rest = d.beta(stocks, market)
    assert slope[300:, 0] == pytest.approx(1.3, abs=1e-9) and np.abs(slope[300:, 1] - 0.6).max() < 0.5
    assert rest[300:, 0] == pytest.approx(0.0, abs=1e-8) and rest[300:, 1] == pytest.approx(0.02, rel=0.25)
    assert np.isnan(slope[:62]).all() and np.isfinite(slope[62:]).all()                    # 63 days at least


def test_momentum_ignores_the_last_21_days_and_equals_its_definition(returns):
    changed = returns.copy()
    changed[-21:] = 0.5
    np.testing.assert_array_equal(d.rstr(changed)[-1], d.rstr(returns)[-1])
    changed[-22] = 0.5
    assert (d.rstr(changed)[-1] != d.rstr(returns)[-1]).all()
    for t in (160, 619):
        end = t - 21
        part = np.log1p(returns[max(end - 503, 0):end + 1])
        weight = 2.0 ** (-np.arange(len(part))[::-1] / 126)[:, None] * np.isfinite(part)
        np.testing.assert_allclose(d.rstr(returns)[t], (weight * np.nan_to_num(part)).sum(axis=0) / weight.sum(axis=0), rtol=1e-10)


def test_daily_deviation_weighs_by_a_half_life_of_42(returns):
    part = returns[-252:]
    weight = 2.0 ** (-np.arange(252)[::-1] / 42)[:, None] * np.isfinite(part)
    mean = (weight * np.nan_to_num(part)).sum(axis=0) / weight.sum(axis=0)
    expected = np.sqrt((weight * np.nan_to_num(part - mean) ** 2).sum(axis=0) / weight.sum(axis=0))
    np.testing.assert_allclose(d.dastd(returns)[-1], expected, rtol=1e-10)


def test_cumulative_range_survives_a_crash(returns):
    crash = returns.copy()
    crash[-100, 0] = -0.9                                                                  # a log return of -2.3: ln(1 + Z) has no value
    for t in (619, 400):
        log = np.log1p(np.nan_to_num(crash[t - 251:t + 1]))
        sums = np.stack([log[-21 * m:].sum(axis=0) for m in range(1, 13)])
        np.testing.assert_allclose(d.cmra(crash)[t], sums.max(axis=0) - sums.min(axis=0), rtol=1e-9)
    assert np.isfinite(d.cmra(crash)[-1]).all() and d.cmra(crash)[-1, 0] > 2


def test_share_turnover(returns):
    constant = np.full((300, 2), 0.02)
    month, quarter, year = (d.share_turnover(constant, m) for m in (1, 3, 12))
    assert month[-1] == pytest.approx(np.log(21 * 0.02)) and quarter[-1] == pytest.approx(month[-1]) and year[-1] == pytest.approx(month[-1])
    varying = np.abs(returns) + 0.001
    varying = np.where(np.isfinite(varying), varying, 0.0)                                 # days without trading
    months = np.stack([varying[620 - 21 * (m + 1):620 - 21 * m].sum(axis=0) for m in range(12)])
    np.testing.assert_allclose(d.share_turnover(varying, 1)[-1], np.log(months[0]), rtol=1e-10)
    np.testing.assert_allclose(d.share_turnover(varying, 3)[-1], np.log(months[:3].mean(axis=0)), rtol=1e-10)
    np.testing.assert_allclose(d.share_turnover(varying, 12)[-1], np.log(months.mean(axis=0)), rtol=1e-10)
    late = constant.copy()
    late[:280] = np.nan
    assert d.share_turnover(late, 1)[-1] == pytest.approx(np.log(0.42)) and np.isnan(d.share_turnover(late, 3)[-1]).all()
    assert np.isnan(d.share_turnover(np.zeros((300, 1)), 1)).all()                         # never traded


def test_growth_is_the_slope_over_the_mean_level():
    years = [np.array([[value]]) for value in (5.0, 4.0, 3.0, 2.0, 1.0)]                   # latest first
    assert d.growth(*years)[0, 0] == pytest.approx(1 / 3)
    losses = [np.array([[value]]) for value in (-1.0, -2.0, -3.0, -4.0, -5.0)]
    assert d.growth(*losses)[0, 0] == pytest.approx(1 / 3)                                 # losses that shrink are growth
    gap = [years[0], np.full((1, 1), np.nan), *years[2:]]
    expected = np.polyfit([0, -2, -3, -4], [5, 3, 2, 1], 1)[0] / np.mean([5, 3, 2, 1])
    assert d.growth(*gap)[0, 0] == pytest.approx(expected)
    assert np.isnan(d.growth(*years[:2], *[np.full((1, 1), np.nan)] * 3)).all()


def test_leverage_and_ratios():
    cap, preferred, debt, equity = (np.array([[value]]) for value in (100.0, 5.0, 45.0, 35.0))
    assert d.market_leverage(cap, preferred, debt)[0, 0] == 1.5
    assert d.book_leverage(equity, preferred, debt)[0, 0] == pytest.approx((30 + 5 + 45) / 30)
    assert np.isnan(d.book_leverage(np.array([[4.0]]), preferred, debt)).all() and np.isnan(d.ratio(cap, 0 * cap)).all()


def test_return_on_equity_uses_the_mean_of_a_year():
    equity = np.linspace(100, 200, 400)[:, None]
    roe = d.return_on_equity(np.full((400, 1), 15.0), equity)
    assert roe[399, 0] == pytest.approx(15 / ((equity[399, 0] + equity[147, 0]) / 2)) and roe[100, 0] == pytest.approx(15 / equity[100, 0])


def test_earnings_surprise_against_pandas():
    draw = np.random.default_rng(5)
    quarters = pd.Series(draw.normal(10, 3, 13))                                           # oldest first
    change = quarters.diff(4).dropna()
    expected = (change.iloc[-1] - change.iloc[:-1].mean()) / change.iloc[:-1].std()
    latest_first = quarters.to_numpy()[::-1].copy()
    assert d.earnings_surprise(latest_first[:, None])[0] == pytest.approx(expected)
    latest_first[11:] = np.nan
    assert np.isfinite(d.earnings_surprise(latest_first[:, None])[0])                      # six of eight changes
    latest_first[10] = np.nan
    assert np.isnan(d.earnings_surprise(latest_first[:, None])[0])
    assert np.isnan(d.earnings_surprise(np.arange(13.0)[:, None])[0])                      # changes that never vary


def test_volatility_60_equals_pandas(returns):
    expected = pd.DataFrame(returns).rolling(60, min_periods=30).std(ddof=0).to_numpy()
    np.testing.assert_allclose(d.volatility_60(returns), expected, rtol=1e-9)


def test_a_months_hole_in_the_bars_is_skipped_not_filled(returns):
    hole = returns.copy()
    hole[400:422] = np.nan
    for made in (d.dastd(hole), d.rstr(hole), d.cmra(hole), d.beta(hole, np.nanmean(returns, axis=1))[0]):
        assert np.isfinite(made[300:]).all() and np.isfinite(made[-1]).all()
    np.testing.assert_allclose(d.dastd(hole)[-1], d.dastd(returns)[-1], rtol=0.3)
