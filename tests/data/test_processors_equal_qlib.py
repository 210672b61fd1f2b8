"""Every processor with a twin in Qlib 0.9.7 gives its numbers, on many random frames with all that is awkward in them."""

import math
import pickle
import warnings
from functools import partial

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset import processor as qlib_processor

from qlib_ext.data import columns
from qlib_ext.data import processor as ours

SPAN = dict(fit_start_time="2021-01-05", fit_end_time="2021-01-14")
DTYPES = (np.float32, np.float64)


def random_frame(seed, dtype, infinite=0.02, constant_days=True, stocks=None):
    """Days of different sizes: one stock only, nothing known; columns: constant, never known, equal values, far from 0."""
    generator = np.random.default_rng(seed)
    days, stocks = pd.bdate_range("2021-01-01", periods=12), stocks or int(generator.integers(2, 60))
    index = pd.MultiIndex.from_product([days, [f"SH{600000 + i}" for i in range(stocks)]], names=["datetime", "instrument"])
    names = [("feature", f"F{i}") for i in range(20)] + [("label", "LABEL0"), ("label", "LABEL1")]
    values = generator.standard_t(3, (len(index), 22)) * 10.0 ** generator.integers(-2, 3, 22)
    values[generator.random(values.shape) < infinite] = np.inf
    values[generator.random(values.shape) < infinite] *= -1
    values[:, 3] = np.round(generator.normal(size=len(index)))
    values[:, 2], values[:, 4], values[:, 5] = 0.1, np.nan, values[:, 5] + 50
    values[generator.random(values.shape) < 0.15] = np.nan
    values[:, 6][generator.random(len(index)) < 0.95] = np.nan
    day = index.codes[0]
    values[day == 3] = np.nan
    values[(day == 4), ::3] = np.nan
    if constant_days:
        values[np.ix_(day == 5, [0, 1, 6, 7, 8])] = 0.3
    frame = pd.DataFrame(values.astype(dtype), index, pd.MultiIndex.from_tuples(names))
    keep = generator.random(len(frame)) < 0.9
    keep[(day == 6)] = np.arange(stocks) == stocks // 2
    return frame[keep]


def qlib_result(name, frame, **options):
    """Qlib's processor, fitted where it learns, without its warnings and its worker processes."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setattr(qlib_processor, "datetime_groupby_apply", partial(qlib_processor.datetime_groupby_apply, n_jobs=1))
        theirs = getattr(qlib_processor, name)(**options)
        theirs.fit(frame.copy())
        return theirs, theirs(frame.copy())


def our_result(name, frame, **options):
    """Ours, by way of a pickle; it neither warns nor writes into the frame."""
    processor, kept = getattr(ours, name)(**options), frame.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor.fit(frame)
        result = pickle.loads(pickle.dumps(processor))(frame)
    assert processor.readonly()
    pd.testing.assert_frame_equal(frame, kept, check_exact=True)
    assert result.columns.equals(frame.columns)
    return processor, result


def assert_same(result, expected, rtol=1e-5, atol=1e-6):
    assert result.index.equals(expected.index)
    left, right = result.to_numpy(np.float64), expected.to_numpy(np.float64)
    np.testing.assert_array_equal(np.isnan(left), np.isnan(right))
    np.testing.assert_array_equal(np.where(np.isinf(left), left, 0), np.where(np.isinf(right), right, 0))
    finite = np.isfinite(left)
    off = np.abs(left - right, where=finite, out=np.zeros(left.shape)) - np.where(finite, atol + rtol * np.abs(right), 0)
    assert (off <= 0).all(), (np.argwhere(off > 0)[:5], off.max())


CASES = [("ProcessInf", {}), ("TanhProcess", {}), ("CSZFillna", {}), ("CSZFillna", {"fields_group": "feature"}),
         ("CSRankNorm", {}), ("CSRankNorm", {"fields_group": "label"}),
         ("CSZScoreNorm", {"fields_group": "feature", "method": "robust"}),
         ("Fillna", {"fields_group": "feature", "fill_value": -1.5}), ("Fillna", {}),
         ("MinMaxNorm", {**SPAN, "fields_group": "feature"}),
         ("RobustZScoreNorm", {**SPAN, "fields_group": "feature"}), ("RobustZScoreNorm", {**SPAN, "clip_outlier": False}),
         ("MinMaxNorm", SPAN), ("DropnaLabel", {}), ("DropnaLabel", {"fields_group": "feature"})]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name, options", CASES)
def test_equals_qlib(name, options, dtype):
    for seed in range(12):
        frame = random_frame(seed, dtype)
        _, expected = qlib_result(name, frame, **options)
        assert_same(our_result(name, frame, **options)[1], expected)


@pytest.mark.parametrize("name, options", [case for case in CASES if case[0] in ("RobustZScoreNorm", "Fillna")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_robust_zscore_and_fillna_equal_qlib_to_the_bit(name, options, dtype):
    for seed in range(6):
        frame = random_frame(seed, dtype)
        (_, expected), (_, result) = qlib_result(name, frame, **options), our_result(name, frame, **options)
        pd.testing.assert_frame_equal(result, expected, check_exact=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_long_columns_have_numpys_median_to_the_bit(dtype):
    """Columns of more rows than the median samples: smooth, of few values, of halves that the sample misjudges, infinite."""
    generator, size = np.random.default_rng(0), 50_001
    half = np.where(np.arange(size) < size // 2 + 1, 1.0, 2.0)
    columns = [generator.standard_t(2, size), np.round(generator.normal(size=size)), half, np.full(size, np.inf), np.arange(size),
               np.where(generator.random(size) < 0.6, -np.inf, 1.0), np.where(generator.random(size) < 0.3, np.nan, 7.0)]
    values = np.column_stack(columns).astype(dtype)
    values[0] = np.nan
    index = pd.MultiIndex.from_product([[pd.Timestamp("2021-01-05")], range(size)], names=["datetime", "instrument"])
    frame = pd.DataFrame(values, index, pd.MultiIndex.from_product([["feature"], [f"F{k}" for k in range(values.shape[1])]]))
    for rows in (size, size - 1):
        result, expected = (of("RobustZScoreNorm", frame[:rows], **SPAN)[0] for of in (our_result, qlib_result))
        np.testing.assert_array_equal(result.mean_train, expected.mean_train)
        np.testing.assert_array_equal(result.std_train, expected.std_train)


@pytest.mark.parametrize("dtype", DTYPES)
def test_median_where_the_sample_misleads(dtype):
    """The rows that the median samples are all above, or all below, where it lies."""
    size = 50_000
    for odd in (0, 1):
        values = np.random.default_rng(2).normal(size=size + odd).astype(dtype)
        for shift in (-100, 100):
            trap = values.copy()
            trap[(columns.PLACES * len(trap)).astype(int)] += shift
            assert abs(np.median(trap)) < 2 and columns.median(trap) == np.median(trap)


@pytest.mark.parametrize("dtype", DTYPES)
def test_cs_zscore_equals_qlib_but_for_days_of_equal_values(dtype):
    """The rule is stated on the input: a day whose known values of a column are all equal is NaN."""
    seen = 0
    for seed in range(12):
        frame = random_frame(seed, dtype)
        result, expected = our_result("CSZScoreNorm", frame)[1], qlib_result("CSZScoreNorm", frame)[1]
        days = frame.groupby("datetime")
        equal = (days.transform("min") == days.transform("max")).to_numpy()
        assert result.to_numpy()[equal].size and np.isnan(result.to_numpy()[equal]).all()
        seen += np.isfinite(result.to_numpy()).sum()
        # where values lie far from 0 beside their spread, a unit in the last place of the mean is more than 1e-6 of the result
        unit = 2 * np.finfo(dtype).eps * (days.transform("mean").abs() / days.transform("std")).to_numpy()
        assert_same(result.mask(equal), expected.mask(equal), atol=np.nan_to_num(1e-6 + unit, nan=0, posinf=0))
    assert seen > 10_000


@pytest.mark.parametrize("infinite", (0, 0.02))
def test_zscore_equals_qlib_in_float64(infinite):
    for seed in range(12):
        frame = random_frame(seed, np.float64, infinite)
        inside = frame.loc["2021-01-05":"2021-01-14"]
        equal = (inside.min() == inside.max()).to_numpy()  # Qlib rounds their mean, so that the deviation is not 0
        (theirs, expected), (processor, result) = (of("ZScoreNorm", frame, **SPAN) for of in (qlib_result, our_result))
        assert_same(result.loc[:, ~equal], expected.loc[:, ~equal], rtol=1e-9, atol=1e-12)
        assert equal[2] and result.loc[:, equal].equals(frame.loc[:, equal])
        same = np.isfinite(theirs.std_train) & ~equal
        np.testing.assert_array_equal(processor.ignore, equal)
        np.testing.assert_allclose(processor.mean_train[same], theirs.mean_train[same], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(processor.std_train[same], theirs.std_train[same], rtol=1e-9)


def test_zscore_in_float32_is_nearer_to_exact_arithmetic_than_qlib():
    """Ours is the exact result rounded once; Qlib adds up in float32."""
    generator, size = np.random.default_rng(1), 100_000
    values = (generator.normal(size=(size, 8)) + generator.normal(size=8) * 30).astype(np.float32)
    values[:, 7] = 0.1
    index = pd.MultiIndex.from_product([[pd.Timestamp("2021-01-05")], range(size)], names=["datetime", "instrument"])
    frame = pd.DataFrame(values, index, pd.MultiIndex.from_product([["feature"], list("abcdefgh")]))
    theirs, processor = qlib_result("ZScoreNorm", frame, **SPAN)[0], our_result("ZScoreNorm", frame, **SPAN)[0]
    off = 0
    for column in range(7):
        exact = values[:, column].tolist()
        mean = math.fsum(exact) / size
        std = math.sqrt(math.fsum((value - mean) ** 2 for value in exact) / size)
        assert processor.mean_train[column] == np.float32(mean) and processor.std_train[column] == np.float32(std)
        off += (theirs.mean_train[column] != np.float32(mean)) + (theirs.std_train[column] != np.float32(std))
        np.testing.assert_allclose(theirs.std_train[column], std, rtol=1e-4)
    assert off >= 5
    assert processor.ignore.tolist() == 7 * [False] + [True] and not theirs.ignore[7]
