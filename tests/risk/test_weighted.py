"""Exponentially weighted windows against pandas with the explicit weights, scaling against its definition."""
import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ShapeError
from qlib_ext.risk.weighted import (
    orthogonalize,
    standardize,
    weighted_mean,
    weighted_regression,
    weighted_std,
    weighted_sum,
    winsorize,
)

CASES = [(252, 63), (252, 42), (21, np.inf), (504, 126), (5, 2)]


@pytest.fixture(scope="module")
def series():
    draw = np.random.default_rng(0)
    x = draw.normal(0, 0.02, (700, 6))
    x[draw.random(x.shape) < 0.1] = np.nan
    x[:300, 1], x[400:, 2], x[:, 3] = np.nan, np.nan, np.nan
    x[350, 0], x[351, 0] = 1e6, np.inf                   # a burst that leaves, and an infinite value
    return x


def rolling(x, window, function):
    """pandas, a window at a time: `function(weights, values)` of what is known."""
    def one(values, half_life):
        weight = 2.0 ** (-np.arange(len(values))[::-1] / half_life)
        there = np.isfinite(values)
        return function(weight[there], values[there]) if there.any() else np.nan
    return lambda half_life: pd.DataFrame(x).replace(np.inf, np.nan).rolling(window, min_periods=1).apply(
        one, raw=True, kwargs={"half_life": half_life}).to_numpy()


@pytest.mark.parametrize("window, half_life", CASES)
def test_mean_and_deviation_equal_pandas_with_explicit_weights(series, window, half_life):
    mean = rolling(series, window, lambda w, v: (w * v).sum() / w.sum())(half_life)
    np.testing.assert_allclose(weighted_mean(series, window, half_life), mean, rtol=1e-12, atol=1e-17)
    std = rolling(series, window, lambda w, v: np.sqrt((w * (v - (w * v).sum() / w.sum()) ** 2).sum() / w.sum()))(half_life)
    count = pd.DataFrame(series).replace(np.inf, np.nan).rolling(window, min_periods=1).count().to_numpy()
    ours = weighted_std(series, window, half_life, least=3)
    np.testing.assert_array_equal(np.isnan(ours), count < 3)
    np.testing.assert_allclose(ours, np.where(count < 3, np.nan, std), rtol=1e-9, atol=1e-12)


def test_a_burst_leaves_no_trace(series):
    calm = series.copy()
    calm[350:352, 0] = np.nan
    np.testing.assert_array_equal(weighted_std(series, 21, 10.0)[372:], weighted_std(calm, 21, 10.0)[372:])
    running = [np.cumsum(np.nan_to_num(part[:, 0], posinf=0.0) ** 2) for part in (series, calm)]
    kept = [(total[21:] - total[:-21])[380:] for total in running]
    assert np.abs(kept[0] - kept[1]).max() > 1e-6                                # a running sum that takes days out again keeps one


def test_half_life_is_where_the_weight_has_halved():
    pulse = np.zeros((200, 1))
    pulse[100] = 1.0
    out = weighted_sum(pulse, 100, 20.0)[:, 0]
    assert out[100] == 1.0 and out[120] == pytest.approx(0.5) and out[140] == pytest.approx(0.25)
    assert (out[:100] == 0).all() and (out[200:] == 0).all() and out[199] > 0


@pytest.mark.parametrize("cut", [1, 100, 137, 251, 252, 300])
def test_values_depend_on_the_window_alone_to_the_bit(series, cut):
    whole = weighted_std(series, 252, 63.0)
    part = weighted_std(series[cut:], 252, 63.0, origin=cut)
    np.testing.assert_array_equal(part[251:], whole[cut + 251:])
    noisy = series.copy()
    noisy[500:] = 7.0
    np.testing.assert_array_equal(weighted_std(noisy, 252, 63.0)[:500], whole[:500])


def test_regression_equals_weighted_least_squares(series):
    draw = np.random.default_rng(1)
    market = draw.normal(0, 0.01, len(series))
    market[[5, 400]] = np.nan
    known = np.where(np.isfinite(series), series, np.nan)
    known[350, 0] = 0.5
    slope, rest = weighted_regression(known, market, 252, 63.0, least=30)
    for t in (29, 250, 251, 399, 400, 699):
        for n in range(6):
            y, x = known[max(t - 251, 0):t + 1, n], market[max(t - 251, 0):t + 1]
            w = 2.0 ** (-np.arange(len(y))[::-1] / 63.0)
            ok = np.isfinite(y) & np.isfinite(x)
            if ok.sum() < 30:
                assert np.isnan(slope[t, n]) and np.isnan(rest[t, n])
                continue
            fit = np.polyfit(x[ok], y[ok], 1, w=np.sqrt(w[ok]))
            left = y[ok] - np.polyval(fit, x[ok])
            assert slope[t, n] == pytest.approx(fit[0], rel=1e-9)
            assert rest[t, n] == pytest.approx(np.sqrt((w[ok] * left**2).sum() / w[ok].sum()), rel=1e-7)
    assert np.isnan(weighted_regression(known, np.zeros(len(known)), 252, 63.0)[0]).all()     # a market that does not move
    with pytest.raises(ShapeError):
        weighted_regression(known, market[1:], 252)


@pytest.fixture
def section():
    draw = np.random.default_rng(2)
    values = draw.standard_t(3, (40, 300))
    values[draw.random(values.shape) < 0.05] = np.nan
    values[3, 7], values[4] = np.inf, 2.5
    members, cap = draw.random(values.shape) < 0.8, np.exp(draw.normal(0, 1.5, values.shape))
    return values, members, cap


def test_winsorize_cuts_at_three_robust_deviations_of_the_members(section):
    values, members, _ = section
    out = winsorize(values, members)
    for t in (0, 3, 17):
        row = np.where(np.isfinite(values[t]), values[t], np.nan)
        inside = row[members[t] & np.isfinite(row)]
        center = np.median(inside)
        reach = 3 * 1.4826 * np.median(np.abs(inside - center))
        np.testing.assert_allclose(out[t], np.clip(row, center - reach, center + reach), rtol=1e-12)
    np.testing.assert_array_equal(out[4], values[4])                                   # no spread: left as it is
    assert np.isnan(out[3, 7])


def test_standardize_gives_cap_weighted_mean_0_and_deviation_1(section):
    values, members, cap = section
    out = standardize(values, members, cap)
    used = members & np.isfinite(values)
    for t in set(range(40)) - {4}:
        assert abs((cap[t] * np.where(used[t], out[t], 0)).sum() / cap[t][used[t]].sum()) < 1e-12
        assert np.std(out[t][used[t]]) == pytest.approx(1.0, abs=1e-12)
        outside = ~members[t] & np.isfinite(values[t])
        slope = np.ptp(out[t][used[t]]) / np.ptp(values[t][used[t]])
        np.testing.assert_allclose(np.diff(out[t][outside]), slope * np.diff(values[t][outside]), rtol=1e-9, atol=1e-9)
    assert np.isnan(out[4]).all()                                                      # constant
    alone = members.copy()
    alone[5] = False
    alone[5, 3] = True
    assert np.isnan(standardize(values, alone, cap)[5]).all()


def test_orthogonalize_leaves_nothing_of_the_others(section):
    values, members, cap = section
    draw = np.random.default_rng(3)
    other = draw.standard_normal(values.shape)
    other[6] = 1.0                                                                     # constant: left out, not an error
    left = orthogonalize(values, [other], members, np.sqrt(cap))
    for t in (0, 3, 6, 20):
        used = members[t] & np.isfinite(values[t])
        w = np.sqrt(cap[t][used])
        assert abs((w * left[t][used]).sum()) < 1e-9 * w.sum() and abs((w * left[t][used] * other[t][used]).sum()) < 1e-9 * w.sum()
    twice = orthogonalize(values, [other, 2 * other], members, np.sqrt(cap))
    np.testing.assert_allclose(twice, left, atol=1e-9)


def test_stocks_that_are_not_there_change_no_bit(section):
    values, members, cap = section
    wide = np.full((40, 300 + 37), np.nan)
    place = np.sort(np.random.default_rng(4).permutation(337)[:300])
    spread = {}
    for name, part in {"values": values, "cap": cap}.items():
        spread[name] = wide.copy()
        spread[name][:, place] = part
    inside = np.zeros(wide.shape, bool)
    inside[:, place] = members
    np.testing.assert_array_equal(winsorize(spread["values"], inside)[:, place], winsorize(values, members))
    np.testing.assert_array_equal(standardize(spread["values"], inside, spread["cap"])[:, place], standardize(values, members, cap))
    np.testing.assert_array_equal(orthogonalize(spread["values"], [spread["cap"]], inside, spread["cap"])[:, place],
                                  orthogonalize(values, [cap], members, cap))
