"""Transforms against pandas, plain loops and scipy; what they promise about NaN and small days."""
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qlib_ext.data.transform import (cs_extreme_mask, cs_neutralize, cs_robust_zscore, cs_winsorize, cs_zscore, robust_apply,
                                      robust_fit)
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


# ---- winsorize, neutralize -----------------------------------------------------------------------------------------------------
def winsorized_by_loops(values, day, method, limits, mask):
    result = values.copy()
    for one in np.unique(day):
        for column in range(values.shape[1]):
            here, known = day == one, values[(day == one) & mask & np.isfinite(values[:, column]), column]
            counted = values[(day == one) & mask & ~np.isnan(values[:, column]), column]  # medians count infinite values
            if method == "quantile":
                low, high = np.quantile(known, [limits, 1 - limits]) if known.size else (-np.inf, np.inf)
            elif method == "mad" and not (counted.size and np.median(np.abs(counted - np.median(counted))) == 0):
                center = np.median(counted) if counted.size else np.nan
                reach = limits * 1.4826 * np.median(np.abs(counted - center)) if counted.size else np.nan
                low, high = (center - reach, center + reach) if counted.size else (-np.inf, np.inf)
            else:
                reach = limits * known.std(ddof=1) if known.size > 1 else np.inf
                low, high = (known.mean() - reach, known.mean() + reach) if known.size else (-np.inf, np.inf)
            result[here, column] = np.clip(values[here, column], low, high)
    return result


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("method, limits", [("quantile", 0.1), ("quantile", 0.013), ("mad", 1.5), ("std", 1.2),
                                            ("quantile", None)])
def test_winsorize_equals_loops(rows, method, limits, masked):
    values, day, mask = rows
    values = np.c_[values, np.full((900, 30), 2.0)]  # more columns than a block
    values[::50, 1], values[1::50, 0] = np.inf, -np.inf
    values[day == 3, 2], values[(day == 4) & mask, 2] = np.nan, np.nan
    values[np.flatnonzero((day == 5) & mask)[1:], 2] = np.nan  # one member
    mask = mask if masked else np.ones(900, bool)
    copy = values.copy()
    result = cs_winsorize(values, day, method, limits, mask if masked else None)
    np.testing.assert_allclose(result, winsorized_by_loops(values, day, method, limits or 0.01, mask), rtol=1e-9)
    np.testing.assert_array_equal(values, copy)
    np.testing.assert_array_equal(cs_winsorize(values[:, 1], day, method, limits, mask), result[:, 1])
    assert (result != values)[~np.isnan(values)].mean() > 0.001
    assert np.isfinite(result[:, :2]).sum() == (~np.isnan(values[:, :2])).sum()
    single = cs_winsorize(values.astype(np.float32), day, method, limits, mask)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, cs_winsorize(values, day, method, limits, mask), rtol=1e-5, atol=1e-6)


def test_a_column_most_of_which_is_alike_keeps_what_differs():
    """MAD 0: limits of standard deviations, not all others to the median."""
    draw = np.random.default_rng(0)
    flag, share = np.r_[np.ones(55), np.zeros(46)], np.r_[np.zeros(60), draw.normal(size=40), 500.0]
    made = cs_winsorize(np.c_[flag, share], np.zeros(101, int), "mad", 3.0)
    np.testing.assert_array_equal(made[:, 0], flag)
    np.testing.assert_array_equal(made[:100, 1], share[:100])
    assert made[100, 1] == pytest.approx(share.mean() + 3 * share.std(ddof=1))


def neutral_rows(seed=0, size=900):
    generator = np.random.default_rng(seed)
    day, industry = generator.integers(0, 12, size), generator.integers(0, 5, size)
    industry[generator.random(size) < 0.03] = -1
    industry[day == 2] = generator.choice([0, 4], (day == 2).sum())
    exposures = generator.normal(size=(size, 2)) * [1, 1e4] + [0, 3e5]
    exposures[generator.random((size, 2)) < 0.02] = np.nan
    values = generator.normal(size=(size, 3)) + np.c_[industry, np.nan_to_num(exposures) / [1, 1e4]]
    values[generator.random((size, 3)) < 0.1] = np.nan
    values[::90, 0] = np.inf
    weight = generator.random(size) + 0.05
    weight[generator.random(size) < 0.03] = np.nan
    weight[::70] = 0
    return values, day, exposures, industry, weight, generator.random(size) < 0.7


def residual_by_lstsq(value, exposures, industry, weight, mask):
    """One day, one column: dummies of the industries that rows estimate, and exposures, by numpy's least squares."""
    known = np.isfinite(exposures).all(axis=1) & (industry >= 0)
    used = known & mask & (np.nan_to_num(weight) > 0) & np.isfinite(value)
    names = np.unique(industry[used])
    if used.sum() <= len(names) + exposures.shape[1]:
        return np.full(len(value), np.nan)
    design = np.c_[industry[:, None] == names, exposures].astype(float)
    root = np.sqrt(weight[used])
    scale = np.linalg.norm(design[used] * root[:, None], axis=0)
    effects = np.linalg.lstsq(design[used] / scale * root[:, None], value[used] * root, rcond=None)[0] / scale
    residual = value - design @ effects
    share = weight[used] / weight[used].sum()
    new = known & ~np.isin(industry, names)  # measured from the mean of the day
    slope = effects[len(names):]
    residual[new] = value[new] - share @ value[used] - (exposures[new] - share @ exposures[used]) @ slope
    residual[~known | ~np.isfinite(value)] = np.nan
    return residual


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("industries", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_neutralize_equals_lstsq(seed, industries, weighted):
    values, day, exposures, industry, weight, mask = neutral_rows(seed)
    mask[(day == 1) & (industry == 3)] = False  # an industry no row estimates
    mask[day == 4] = np.arange((day == 4).sum()) < 7  # just too few, or just enough, for what is known
    mask[day == 5] = False
    used_weight, used_industry = weight if weighted else np.ones(900), industry if industries else np.zeros(900)
    result = cs_neutralize(values, day, exposures, industry if industries else None, weight if weighted else None, mask)
    for one in range(12):
        here = day == one
        for column in range(3):
            expected = residual_by_lstsq(values[here, column], exposures[here], used_industry[here], used_weight[here],
                                         mask[here])
            np.testing.assert_allclose(result[here, column], expected, rtol=1e-7, atol=1e-8)
    assert np.isnan(result[day == 5]).all() and np.isfinite(result[~mask]).any()
    if industries:
        assert np.isfinite(result[(day == 1) & (industry == 3)]).any()
    assert not np.isinf(result).any()


def test_residuals_are_orthogonal_and_neutralising_twice_changes_nothing():
    values, day, exposures, industry, weight, mask = neutral_rows(9)
    result = cs_neutralize(values, day, exposures, industry, weight, mask)
    np.testing.assert_allclose(cs_neutralize(result, day, exposures, industry, weight, mask), result, rtol=1e-8, atol=1e-9)
    for one in range(12):
        for column in range(3):
            used = (day == one) & mask & (np.nan_to_num(weight) > 0) & np.isfinite(result[:, column])
            weighted = weight[used] * result[used, column]
            np.testing.assert_allclose(weighted @ exposures[used] / [1, 3e5], 0, atol=1e-8)
            for name in np.unique(industry[used]):
                assert abs(weighted[industry[used] == name].sum()) < 1e-9
    single = cs_neutralize(values[:, 1].astype(np.float32), day, exposures, industry, weight, mask)
    assert single.dtype == np.float32 and single.shape == (900,)
    np.testing.assert_allclose(single, result[:, 1], rtol=1e-4, atol=1e-4)
    moved = values.copy()
    moved[~mask] += 7  # those outside do not move the others
    np.testing.assert_array_equal(cs_neutralize(moved, day, exposures, industry, weight, mask)[mask], result[mask])


def test_repeated_constant_and_absent_exposures():
    values, day, exposures, industry, weight, mask = neutral_rows(5)
    expected = cs_neutralize(values, day, exposures, industry, weight, mask)
    repeated = np.c_[exposures, exposures[:, 0], 2 * exposures[:, 0] - 3e-4 * exposures[:, 1], np.full(900, 0.1), industry == 3]
    result = cs_neutralize(values, day, repeated, industry, weight, mask)
    assert 0 < np.isfinite(result).sum() <= np.isfinite(expected).sum()  # more coefficients: some small days are gone
    both = np.isfinite(result) & ~((day == 2)[:, None])
    np.testing.assert_allclose(result[both], expected[both], rtol=1e-6, atol=1e-7)
    only = cs_neutralize(values, day, np.empty((900, 0)), industry)
    known = np.isfinite(values[:, 1]) & (industry >= 0)
    groups = pd.Series(values[known, 1]).groupby([day[known], industry[known]])
    np.testing.assert_allclose(only[known, 1], values[known, 1] - groups.transform("mean"), atol=1e-12)
    of_industry = cs_neutralize(values, day, np.c_[exposures, 0.1 * industry + 0.7], industry, weight, mask & (industry != 3))
    without = cs_neutralize(values, day, exposures, industry, weight, mask & (industry != 3))
    both = np.isfinite(of_industry)  # an exposure that the industries hold already has no effect, not even outside of them
    np.testing.assert_allclose(of_industry[both], without[both], rtol=1e-7, atol=1e-8)
    assert both[industry == 3].sum() > 100
    few = cs_neutralize(np.arange(5.0), np.array([0, 0, 0, 1, 1]), np.empty((5, 0)), np.array([0, 1, 1, 0, 1]))
    np.testing.assert_allclose(few, [0, -0.5, 0.5, np.nan, np.nan])
    assert cs_neutralize(np.empty((0, 2)), np.empty(0, int), np.empty((0, 1))).shape == (0, 2)


def test_winsorize_and_neutralize_refuse_wrong_rows():
    values, day = np.zeros((4, 2)), np.zeros(4, int)
    for call in (lambda: cs_winsorize(values, day[:3]), lambda: cs_winsorize(values[None], day),
                 lambda: cs_neutralize(values, day, values[:3]), lambda: cs_neutralize(values, day, values[:, 0]),
                 lambda: cs_neutralize(values, day, values, day[:2]),
                 lambda: cs_neutralize(values, day, values, None, np.ones(5)),
                 lambda: cs_neutralize(values, day, values, mask=np.ones(4))):
        with pytest.raises(ShapeError):
            call()
    for call in (lambda: cs_winsorize(values, day - 1), lambda: cs_neutralize(values, day - 1, values)):
        with pytest.raises(DataError):
            call()
    for method, limits in (("rank", None), ("quantile", 0.5), ("mad", -1), ("std", np.inf), ("std", "a")):
        with pytest.raises(ConfigError):
            cs_winsorize(values, day, method, limits)
