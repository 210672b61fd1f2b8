"""RobustZScoreNorm and Fillna against Qlib's, to the bit, in the frame and inside a handler."""

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset import processor as qlib_processor

from qlib_ext.data.processor import Fillna, RobustZScoreNorm
from qlib_ext.errors import DataError


def frame_of(dtype, seed=0):
    generator = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([pd.bdate_range("2020-01-01", periods=30), [f"SH60000{k}" for k in range(7)]],
                                       names=["datetime", "instrument"])
    columns = pd.MultiIndex.from_tuples([("feature", f"f{k}") for k in range(6)] + [("label", "LABEL0")])
    values = generator.standard_t(3, (len(index), 7)).astype(dtype)
    values[generator.random(values.shape) < 0.1] = np.nan
    values[:, 3] = 5.0
    values[::9, 4] = np.inf
    return pd.DataFrame(values, index=index, columns=columns)


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
@pytest.mark.parametrize("clip", (True, False))
@pytest.mark.parametrize("group", ("feature", None))
def test_robust_zscore_equals_qlib(dtype, clip, group):
    frame = frame_of(dtype)
    options = dict(fit_start_time="2020-01-06", fit_end_time="2020-01-31", fields_group=group, clip_outlier=clip)
    ours, theirs = RobustZScoreNorm(**options), qlib_processor.RobustZScoreNorm(**options)
    ours.fit(frame)
    theirs.fit(frame.copy())
    kept = frame.copy()
    result, expected = ours(frame), theirs(frame.copy())
    pd.testing.assert_frame_equal(result, expected, check_exact=True)
    pd.testing.assert_frame_equal(frame, kept, check_exact=True)  # the input is not written
    np.testing.assert_array_equal(ours.mean_train, theirs.mean_train)
    np.testing.assert_array_equal(ours.std_train, theirs.std_train)


def test_statistics_ignore_days_outside_the_fit_span():
    frame = frame_of(np.float64)
    options = dict(fit_start_time="2020-01-01", fit_end_time="2020-01-20", fields_group="feature")
    first, second = RobustZScoreNorm(**options), RobustZScoreNorm(**options)
    first.fit(frame)
    frame.loc[pd.Timestamp("2020-01-21"):] = 1e6
    second.fit(frame)
    np.testing.assert_array_equal(first.mean_train, second.mean_train)
    frame.loc[pd.Timestamp("2020-01-20")] = 1e6  # inside: now they differ
    second.fit(frame)
    assert (first.mean_train != second.mean_train).any()


def test_a_fit_span_without_rows_is_an_error():
    with pytest.raises(DataError, match="no row between 2030"):
        RobustZScoreNorm("2030-01-01", "2030-12-31").fit(frame_of(np.float64))


@pytest.mark.parametrize("group, value", (("feature", 0), (None, 0), ("label", -1.5)))
def test_fillna_equals_qlib(group, value):
    frame = frame_of(np.float32)
    kept = frame.copy()
    result = Fillna(fields_group=group, fill_value=value)(frame)
    expected = qlib_processor.Fillna(fields_group=group, fill_value=value)(frame.copy())
    pd.testing.assert_frame_equal(result, expected, check_exact=True)
    pd.testing.assert_frame_equal(frame, kept, check_exact=True)
