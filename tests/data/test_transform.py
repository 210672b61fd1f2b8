"""Transforms against pandas, plain loops and scipy; what they promise about NaN and small days."""
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qlib_ext.data.transform import cs_extreme_mask, cs_robust_zscore, cs_zscore, robust_apply, robust_fit
from qlib_ext.errors import ConfigError, DataError, ShapeError


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    day = generator.permutation(np.repeat(np.arange(15), 60))
    values = generator.normal(size=(900, 3)) * [1, 1e-3, 1e4] + [0, 5, 1e6]
    values[generator.random((900, 3)) < 0.15] = np.nan
    return values, day, generator.random(900) < 0.4


@pytest.mark.parametrize("masked", [False, True])
def test_zscore_equals_pandas(rows, masked):
    values, day, mask = rows
    used = np.where(mask[:, None], values, np.nan) if masked else values
    groups = pd.DataFrame(used).groupby(day)
    expected = (values - groups.mean().to_numpy()[day]) / groups.std().to_numpy()[day]
    result = cs_zscore(values, day, mask if masked else None)
    np.testing.assert_allclose(result, expected, rtol=1e-9, atol=1e-9)
    assert np.array_equal(np.isnan(result), np.isnan(values))
    if masked:  # the universe itself has mean 0 and std 1, the whole day has not
        inner = pd.DataFrame(result[mask]).groupby(day[mask])
        np.testing.assert_allclose(inner.std(), 1, atol=1e-9)
        assert (pd.DataFrame(result).groupby(day).mean().abs() > 1e-3).any(axis=None)
    np.testing.assert_array_equal(cs_zscore(values[:, 1], day), cs_zscore(values, day)[:, 1])


def test_robust_zscore_equals_scipy_per_day(rows):
    values, day, mask = rows
    result = cs_robust_zscore(values, day, mask)
    for one in range(15):
        for column in range(3):
            known = values[(day == one) & mask, column]
            known = known[~np.isnan(known)]
            expected = (values[day == one, column] - np.median(known)) / (1.4826 * stats.median_abs_deviation(known))
            np.testing.assert_allclose(result[day == one, column], np.clip(expected, -3, 3), rtol=1e-9)
    assert np.nanmax(np.abs(result)) == 3.0


@pytest.mark.parametrize("transform", [cs_zscore, cs_robust_zscore])
def test_small_constant_and_empty_days(transform):
    nan, inf = np.nan, np.inf
    values = np.array([5.0,   0.1, 0.1, 0.1,   nan, nan,   1.0, nan,   1.0, 2.0, inf, 4.0])
    day = np.array([0,   1, 1, 1,   2, 2,   3, 3,   5, 5, 5, 5])
    result = transform(values, day)
    assert np.isnan(result[:8]).all() and np.isnan(result[10])
    expected = transform(np.array([1.0, 2.0, 4.0]), np.zeros(3, dtype=int))
    np.testing.assert_allclose(result[[8, 9, 11]], expected)
    assert np.isfinite(expected).all()
    assert transform(np.empty((0, 2)), np.empty(0, dtype=int)).shape == (0, 2)
    spread_outside = transform(np.array([1.0, 1.0, 9.0]), np.zeros(3, dtype=int), np.array([True, True, False]))
    assert np.isnan(spread_outside).all()  # and never infinite


def test_constant_days_are_found_whatever_the_rounding():
    generator = np.random.default_rng(1)
    for value in generator.normal(size=200) * 10.0 ** generator.integers(-8, 8, 200):
        count = int(generator.integers(2, 2000))
        assert np.isnan(cs_zscore(np.full(count, value), np.zeros(count, dtype=int))).all()


@pytest.mark.parametrize("transform", [cs_zscore, cs_robust_zscore])
def test_transform_properties(rows, transform):
    values, day, mask = rows
    copy = values.copy()
    result = transform(values, day, mask)
    np.testing.assert_array_equal(values, copy)
    order = np.random.default_rng(2).permutation(len(day))
    np.testing.assert_allclose(transform(values[order], day[order], mask[order]), result[order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(transform(3 * values - 2, day, mask), result, rtol=1e-7, atol=1e-7)
    changed = values.copy()
    changed[day == 4] = 99.0  # other days do not notice
    np.testing.assert_array_equal(transform(changed, day, mask)[day != 4], result[day != 4])
    changed = np.where(mask[:, None], values, values + 50.0)  # nor does the universe notice outsiders
    np.testing.assert_array_equal(transform(changed, day, mask)[mask], result[mask])
    single = transform(values.astype(np.float32)[:, 0], day, mask)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, result[:, 0], atol=1e-5)
    assert transform(np.arange(6), np.zeros(6, dtype=int)).dtype == np.float64


def brute_force_extremes(values, day, fraction, min_count, mask):
    gone = np.zeros(len(values), dtype=bool)
    for one in np.unique(day):
        here = [i for i in np.flatnonzero(day == one) if mask[i] and np.isfinite(values[i])]
        if len(here) >= min_count:
            count = max(1, int(fraction * 1000 * len(here) + 1e-6) // 2000)
            ranked = sorted(here, key=lambda i: (values[i], i))
            gone[ranked[:count]] = gone[ranked[-count:]] = True
    return gone


@pytest.mark.parametrize("size", [39, 40, 41, 79, 80, 120, 280])
@pytest.mark.parametrize("masked", [False, True])
def test_extremes_equal_brute_force(size, masked):
    generator = np.random.default_rng(size)
    day = generator.permutation(np.repeat(np.arange(4), 2 * size))
    values = np.round(generator.normal(size=day.size), 1)  # ties at the border
    values[generator.random(day.size) < 0.1] = np.nan
    values[:3] = [np.inf, -np.inf, np.nan]
    mask = np.zeros(day.size, dtype=bool)
    for one in range(4):  # exactly `size` labelled members on each day
        mask[generator.choice(np.flatnonzero((day == one) & np.isfinite(values)), size, replace=False)] = True
    result = cs_extreme_mask(values, day, mask=mask if masked else None)
    expected = brute_force_extremes(values, day, 0.05, 40, mask if masked else np.ones(day.size, bool))
    np.testing.assert_array_equal(result, expected)
    if masked:
        tail = max(1, size // 40) if size >= 40 else 0
        assert [int(result[day == one].sum()) for one in range(4)] == [2 * tail] * 4
    assert not result[~np.isfinite(values)].any()


def test_nan_labels_do_not_displace_the_top_tail():
    values = np.r_[np.arange(40.0), np.full(10, np.nan)]
    gone = cs_extreme_mask(values, np.zeros(50, dtype=int))
    assert np.flatnonzero(gone).tolist() == [0, 39]


def test_extreme_ties_go_by_row_order_and_fraction_has_limits():
    assert np.flatnonzero(cs_extreme_mask(np.ones(40), np.zeros(40, dtype=int))).tolist() == [0, 39]
    assert not cs_extreme_mask(np.arange(100.0), np.zeros(100, dtype=int), fraction=0).any()
    rounding = cs_extreme_mask(np.arange(100.0), np.zeros(100, dtype=int), fraction=0.58)  # 0.29 * 100 is just below 29
    assert int(rounding.sum()) == 58
    assert cs_extreme_mask(np.arange(3.0), np.zeros(3, dtype=int), min_count=1).tolist() == [True, False, True]
    assert cs_extreme_mask(np.arange(1.0), np.zeros(1, dtype=int), min_count=1).tolist() == [True]
    assert cs_extreme_mask(np.empty(0), np.empty(0, dtype=int)).shape == (0,)
    for wrong in ({"fraction": 1}, {"fraction": -0.1}, {"min_count": 0}):
        with pytest.raises(ConfigError):
            cs_extreme_mask(np.arange(3.0), np.zeros(3, dtype=int), **wrong)


def test_wrong_rows_are_refused():
    day = np.zeros(4, dtype=int)
    for call in (lambda: cs_zscore(np.zeros(5), day), lambda: cs_zscore(np.zeros(4), day, np.ones(4)),
                 lambda: cs_zscore(np.zeros((4, 1, 1)), day), lambda: cs_extreme_mask(np.zeros((4, 1)), day),
                 lambda: cs_extreme_mask(np.zeros(4), day, mask=np.ones(3, bool)), lambda: robust_fit(np.zeros(4)),
                 lambda: robust_apply(np.zeros((4, 2)), np.zeros(3), np.zeros(3))):
        with pytest.raises(ShapeError):
            call()
    for bad in (day - 1, day.astype(float)):
        with pytest.raises(DataError):
            cs_zscore(np.zeros(4), bad)


def test_robust_fit_and_apply():
    generator = np.random.default_rng(4)
    table = np.c_[generator.normal(3, 2, 500), generator.standard_t(2, 500), np.ones(500), np.full(500, np.nan)]
    table[::7, 0] = np.nan
    median, scale = robust_fit(table)
    for column in (0, 1):
        known = table[~np.isnan(table[:, column]), column]
        assert median[column] == np.median(known)
        assert scale[column] == pytest.approx(stats.median_abs_deviation(known) * 1.4826)
    assert median[2] == 1 and np.isnan(scale[2]) and np.isnan(median[3]) and np.isnan(scale[3])
    result = robust_apply(table, median, scale)
    np.testing.assert_allclose(result[:, :2], np.clip((table[:, :2] - median[:2]) / scale[:2], -3, 3))
    assert np.isnan(result[:, 2:]).all() and np.nanmax(np.abs(result)) == 3
    assert np.nanmax(np.abs(robust_apply(table, median, scale, clip=None))) > 3
