"""Window statistics against numpy, window by window, and the reading of Qlib's expressions."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from qlib.contrib.data.loader import Alpha158DL, Alpha360DL

from qlib_ext import jit
from qlib_ext.errors import ShapeError
from qlib_ext.factors import alpha158, rolling
from qlib_ext.factors.alpha158 import compute, read_plan

WINDOWS = np.array([2, 5, 9])
PAD, DAYS = 12, 60


def series(seed: int = 0, holes: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(10, 2, PAD + DAYS), 1).astype(np.float32)  # rounded: ties
    values[rng.random(len(values)) < holes] = np.nan
    values[rng.integers(PAD, PAD + DAYS, 2)] = np.inf
    values[40:52] = np.nan
    return values


def by_window(values: np.ndarray, statistic) -> np.ndarray:
    """``[w, t]``: `statistic` of the finite values of each window (NaN where there is none)."""
    result = np.full((len(WINDOWS), DAYS), np.nan)
    for w, window in enumerate(WINDOWS):
        for t in range(DAYS):
            part = values[PAD + t - window + 1:PAD + t + 1].astype(np.float64)
            if np.isfinite(part).any():
                result[w, t] = statistic(part)
    return result


def finite(part: np.ndarray) -> np.ndarray:
    return part[np.isfinite(part)]


def moments_of(values: np.ndarray) -> tuple:
    split, shape = rolling.known(values), (len(WINDOWS), DAYS)
    s1, s2, sx, again1, again2 = (np.empty(shape) for _ in range(5))
    rolling.trend_moments(*split[:3], PAD, DAYS, WINDOWS, s1, s2, sx)
    rolling.moments(*split[:3], PAD, DAYS, WINDOWS, again1, again2)
    np.testing.assert_array_equal((s1, s2), (again1, again2))
    return split, s1, s2, sx


def counts(running: np.ndarray) -> np.ndarray:
    ends = PAD + np.arange(DAYS) + 1
    return np.stack([running[ends] - running[ends - window] for window in WINDOWS])


@pytest.mark.parametrize("seed", range(4))
def test_moments(seed):
    values = series(seed)
    split, s1, s2, sx = moments_of(values)
    n = counts(split[3])
    np.testing.assert_array_equal(n, np.nan_to_num(by_window(values, lambda p: len(finite(p)))))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = split[2][PAD:PAD + DAYS] + s1 / n
    np.testing.assert_allclose(mean, by_window(values, lambda p: finite(p).mean()), rtol=1e-13)
    deviation = [[rolling.deviation(s1[w, t], s2[w, t], n[w, t]) for t in range(DAYS)] for w in range(len(WINDOWS))]
    np.testing.assert_allclose(deviation, by_window(values, lambda p: finite(p).std(ddof=1) if len(finite(p)) > 1 else np.nan),
                               rtol=1e-12, atol=1e-14)


def test_sums_and_pairs():
    left, right = series(1), series(2)
    a, b = rolling.known(left), rolling.known(right)
    total = np.empty((len(WINDOWS), DAYS))
    rolling.sums(a[0], PAD, DAYS, WINDOWS, total)
    np.testing.assert_allclose(total, np.nan_to_num(by_window(left, lambda p: finite(p).sum())), rtol=1e-13)
    both = a[1] * b[1]
    joint = np.where(both > 0, left, np.nan).astype(np.float32), np.where(both > 0, right, np.nan).astype(np.float32)
    x, y = rolling.known(joint[0]), rolling.known(joint[1])
    out = np.empty((5, len(WINDOWS), DAYS))
    rolling.pair_moments(a[0], b[0], both, x[2], y[2], PAD, DAYS, WINDOWS, out)
    for k, power in enumerate([(1, 0), (0, 1), (2, 0), (0, 2), (1, 1)]):
        expected = np.zeros((len(WINDOWS), DAYS))
        for w, window in enumerate(WINDOWS):
            for t in range(DAYS):
                cut = slice(PAD + t - window + 1, PAD + t + 1)
                d, e = joint[0][cut].astype(float) - x[2][PAD + t], joint[1][cut].astype(float) - y[2][PAD + t]
                expected[w, t] = np.nansum(d ** power[0] * e ** power[1] * np.where(np.isfinite(d), 1, np.nan))
        np.testing.assert_allclose(out[k], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sign, function", [(1.0, np.max), (-1.0, np.min)])
@pytest.mark.parametrize("seed", range(3))
def test_extremes(sign, function, seed):
    values = series(seed)
    extreme, age = np.empty((len(WINDOWS), DAYS)), np.empty((len(WINDOWS), DAYS), np.int32)
    rolling.extremes(values, PAD, DAYS, 0, WINDOWS, sign, extreme, age)
    expected = by_window(values, lambda p: function(finite(p)))
    np.testing.assert_array_equal(np.where(np.isfinite(extreme), extreme, np.nan), expected)
    for w, window in enumerate(WINDOWS):
        for t in range(DAYS):
            part = np.where(np.isfinite(values), values, np.nan)[PAD + t - window + 1:PAD + t + 1]
            assert age[w, t] == window - 1 - (np.argmax(part) if sign > 0 else np.argmin(part))  # numpy: the first NaN, if any


@pytest.mark.parametrize("seed", range(3))
def test_order_statistics(seed):
    values = series(seed)
    for w, window in enumerate(WINDOWS):
        lower, upper = np.empty(DAYS), np.empty(DAYS)
        rolling.quantiles(values, PAD, DAYS, window, 0.2, 0.8, lower, upper)
        np.testing.assert_allclose(lower, by_window(values, lambda p: np.quantile(finite(p), 0.2))[w], rtol=1e-13)
        np.testing.assert_allclose(upper, by_window(values, lambda p: np.quantile(finite(p), 0.8))[w], rtol=1e-13)
    below, equal = np.empty((len(WINDOWS), DAYS), np.int32), np.empty((len(WINDOWS), DAYS), np.int32)
    rolling.places(values, PAD, DAYS, WINDOWS, below, equal)
    np.testing.assert_array_equal(below, np.nan_to_num(by_window(values, lambda p: (p < p[-1]).sum())))
    np.testing.assert_array_equal(equal, np.nan_to_num(by_window(values, lambda p: (p == p[-1]).sum())))


def wild(seed: int) -> np.ndarray:
    """`series` with both infinities, and nothing known at the beginning."""
    values = series(seed)
    values[::11], values[5::13], values[:PAD + 3] = -np.inf, np.inf, np.nan
    return values


@pytest.mark.parametrize("seed", range(3))
def test_running_numbers(seed):
    values = wild(seed)
    value, mask, last, count, index, square = rolling.known(values)
    there, places = np.isfinite(values), np.arange(len(values))
    np.testing.assert_array_equal(value, np.where(there, values, 0))
    np.testing.assert_array_equal(mask, there)
    np.testing.assert_array_equal(last, [next((x for x in values[s::-1] if np.isfinite(x)), 0) for s in places])
    for running, part in ((count, there), (index, there * places), (square, there * places ** 2)):
        np.testing.assert_array_equal(running, [part[:s].sum() for s in range(len(values) + 1)])


@pytest.mark.parametrize("seed", range(3))
def test_sums_of_lags(seed):
    values = wild(seed)
    split, s1, s2, sx = moments_of(values)
    for w, window in enumerate(WINDOWS):
        for t in range(DAYS):
            part = values[PAD + t - window + 1:PAD + t + 1].astype(np.float64)
            lag, there = np.arange(window)[::-1], np.isfinite(part)
            d = part[there] - split[2][PAD + t]
            expected = [d.sum(), (d * d).sum(), (lag[there] * d).sum()]
            np.testing.assert_allclose([s1[w, t], s2[w, t], sx[w, t]], expected, 1e-12, 1e-12)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("start", [0, PAD, PAD + 20])
def test_extremes_of_a_stock_that_begins_late(sign, start):
    """Before its first bar a stock has no unknown days: windows are shorter there."""
    values = wild(1)
    values[:start] = np.nan
    extreme, age = np.empty((len(WINDOWS), DAYS)), np.empty((len(WINDOWS), DAYS), np.int32)
    rolling.extremes(values, PAD, DAYS, start, WINDOWS, sign, extreme, age)
    for w, window in enumerate(WINDOWS):
        for t in range(max(start - PAD, 0), DAYS):
            part = sign * np.where(np.isfinite(values), values, np.nan)[max(PAD + t - window + 1, start):PAD + t + 1]
            assert age[w, t] == len(part) - 1 - np.argmax(part)
            assert sign * extreme[w, t] == (-np.inf if np.isnan(part).all() else np.nanmax(part))


@pytest.mark.parametrize("infinity", [np.inf, -np.inf])
def test_places_count_what_is_finite_only(infinity):
    """Of windows whose last value is known; the others have no rank."""
    values = series(0)
    values[::11] = infinity
    below, equal = np.empty((len(WINDOWS), DAYS), np.int32), np.empty((len(WINDOWS), DAYS), np.int32)
    rolling.places(values, PAD, DAYS, WINDOWS, below, equal)
    known = np.isfinite(values[PAD:])
    expected = np.nan_to_num(by_window(values, lambda p: (finite(p) < p[-1]).sum()))
    np.testing.assert_array_equal(equal[:, known], np.nan_to_num(by_window(values, lambda p: (p == p[-1]).sum()))[:, known])
    np.testing.assert_array_equal(below[:, known], expected[:, known])


@pytest.mark.parametrize("windows", [[1], [1, 2, 3], [13]])
def test_other_windows(windows, monkeypatch):
    """One day, neighbours, and one that reaches to the first place."""
    monkeypatch.setitem(globals(), "WINDOWS", np.array(windows))
    test_moments(0)
    test_sums_and_pairs()
    test_extremes(1.0, np.max, 0)
    test_extremes_of_a_stock_that_begins_late(-1.0, PAD + 20)
    values, lower, upper = wild(0), np.empty(DAYS), np.empty(DAYS)
    for w, window in enumerate(windows):
        rolling.quantiles(values, PAD, DAYS, window, 0.2, 0.8, lower, upper)
        np.testing.assert_allclose(lower, by_window(values, lambda p: np.quantile(finite(p), 0.2))[w], rtol=1e-13)
        np.testing.assert_allclose(upper, by_window(values, lambda p: np.quantile(finite(p), 0.8))[w], rtol=1e-13)


# ---- the formulas -------------------------------------------------------------------------------------------------------------
def bars(fields: list[str], days: int, seed: int = 0) -> np.ndarray:
    """``[k, 3, s]`` plausible bars with gaps."""
    rng = np.random.default_rng(seed)
    close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, (3, days)), axis=1))
    made = {"close": close, "open": close * 1.001, "high": close * 1.01, "low": close * 0.98, "vwap": close, "volume": 1e5 + 1e4 * close}
    made = {name: np.where(rng.random((3, days)) < 0.05, np.nan, values) for name, values in made.items()}
    return np.stack([made[name] for name in fields]).astype(np.float32)


def table(plan, values: np.ndarray, pad: int, days: int, start: int = 0) -> np.ndarray:
    rows = np.arange(3 * days, dtype=np.int32).reshape(3, days)
    out = np.empty((3 * days, 158), np.float32)
    compute(plan, values, np.full(3, start), rows, pad, out)
    return out.reshape(3, days, 158)


def test_a_value_depends_on_its_window_only():
    """Bit for bit: other days in front, another first day, other blocks of days."""
    plan = read_plan(Alpha158DL.get_feature_config()[0])
    days = alpha158.BLOCK + 100
    values = bars(plan.fields, plan.back + days)
    whole = table(plan, values, plan.back, days)
    for first in (1, 77, alpha158.BLOCK - 1, alpha158.BLOCK + 3):
        other = values.copy()
        other[:, :, :first] = 1e6
        np.testing.assert_array_equal(table(plan, other[:, :, first:], plan.back, days - first), whole[:, first:])
    assert np.isfinite(whole).mean() > 0.8
    other = values.copy()
    other[:, :, plan.back + 300] *= 1.5  # a day is seen by the 60 windows that hold it, and by no other
    changed = (table(plan, other, plan.back, days) != whole) & ~np.isnan(whole)
    assert changed[:, 300:361].any(axis=2).all() and not changed[:, :300].any() and not changed[:, 361:].any()


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [5, -1, -1, 8], [-1, -1, -1, -1], [-1, 4, 4000, -1]])
def test_only_the_rows_asked_for_are_written(rows):
    plan = read_plan(Alpha158DL.get_feature_config()[0])
    values = bars(plan.fields, plan.back + 4)
    whole = table(plan, values, plan.back, 4)
    places, out = np.full((3, 4), -1, np.int32), np.full((4001, 158), 7, np.float32)
    places[1] = rows
    compute(plan, values, np.zeros(3, int), places, plan.back, out)
    for t, row in enumerate(rows):
        if row >= 0:
            np.testing.assert_array_equal(out[row], whole[1, t])
    untouched = np.ones(len(out), bool)
    untouched[[row for row in rows if row >= 0]] = False
    assert (out[untouched] == 7).all()


@pytest.mark.parametrize("config", [None, {"kbar": {}, "price": {"windows": [0, 1, 4]}, "volume": {"windows": [0, 2]},
                                           "rolling": {"windows": [3, 250], "include": ["ROC", "MA", "RANK", "VSUMD"]}}])
def test_qlibs_configurations_are_known(config):
    expressions = Alpha158DL.get_feature_config() if config is None else Alpha158DL.get_feature_config(config)
    assert read_plan(expressions[0]).unknown == []
    assert read_plan(Alpha360DL.get_feature_config()[0]).unknown == []


@pytest.mark.parametrize("expression", ["Mean($close, 251)/$close", "Ref($close, 0)/$close", "Mean($open, 5)/$close", "EMA($close, 5)/$close",
                                        "Quantile($close, 5, 0.5)/$close", "IdxMax($high, 5)/6", "Mean($close,5)/$open", "$close",
                                        "Ref($close,1)/($close+1e-6)", "Std($close, 5)/$close+0", "Mean($$close,5)/$close"])
def test_other_expressions_are_not_ours(expression):
    assert read_plan(["$open/$close", expression]).unknown == [1]


def test_plans():
    plan = read_plan(["Ref($vwap, -2)/Ref($vwap, -1) - 1", "Ref($vwap,-2)/Ref($vwap,-1)-1", "foo", "foo", "$Open / $close"])
    assert (plan.unknown, plan.copies, plan.back, plan.ahead) == ([2, 3], [(1, 0)], 0, 2)
    assert plan.fields == ["vwap", "open", "close"]
    values, out = bars(plan.fields, 12), np.zeros((3, 5), np.float32)
    rows = np.array([[0], [1], [2]], np.int32)
    compute(plan, values, np.zeros(3, int), rows, 4, out)
    np.testing.assert_array_equal(out[:, 0], values[0, :, 6] / values[0, :, 5] - np.float32(1))
    np.testing.assert_array_equal(out[:, 1], out[:, 0])
    assert (out[:, 2:4] == 0).all()
    with pytest.raises(ShapeError, match="needs"):
        compute(plan, values, np.zeros(3, int), rows, 10, out)


# ---- compiled code ------------------------------------------------------------------------------------------------------------
def test_every_file_with_compiled_functions_is_known():
    package = Path(jit.__file__).parent
    users = {str(file.relative_to(package)) for file in package.rglob("*.py") if "from qlib_ext.jit import compiled" in file.read_text()}
    assert users | {"jit.py"} == set(jit.KERNELS)


@pytest.mark.slow
def test_a_change_in_one_file_renews_the_code_of_the_others(tmp_path):
    """numba alone would go on with machine code of `alpha158` that holds the old `rolling`."""
    copy = tmp_path / "qlib_ext"
    shutil.copytree(Path(jit.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    script = ("import numpy as np; from qlib_ext.factors.alpha158 import compute, read_plan\n"
              "out = np.empty((1, 1), np.float32); plan = read_plan(['Mean($close,5)/$close'])\n"
              "bars = np.arange(1, 1 + 5 * 9, dtype=np.float32).reshape(5, 1, 9)\n"
              "compute(plan, bars, np.zeros(1, int), np.zeros((1, 1), np.int32), 5, out); print(out[0, 0])")

    def value() -> str:
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(tmp_path)})
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.strip()
    first = value()
    assert value() == first
    file = copy / "factors" / "rolling.py"
    file.write_text(file.read_text().replace("            one[t] += d\n", "            one[t] += 100 * d\n"))
    assert value() != first
