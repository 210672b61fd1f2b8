"""Processors against Qlib's own, with holes, small days and a universe; their place in a handler."""
import pickle

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import StaticDataLoader
from qlib.data.dataset import processor as qlib_processor

from qlib_ext.data.processor import CSZScoreNorm, DropExtremeLabel
from qlib_ext.data.transform import cs_extreme_mask
from qlib_ext.errors import ConfigError, DataError
from tiny_market_store import start_qlib, write_store

DAYS = pd.bdate_range("2021-01-01", periods=8)
STOCKS = [f"SH{600000 + i}" for i in range(120)]
MEMBERS = set(STOCKS[:50])


def random_frame(seed=0, labels=1, dtype=np.float64):
    generator = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([DAYS, STOCKS], names=["datetime", "instrument"])
    columns = [("feature", f"F{i}") for i in range(3)] + [("label", f"LABEL{i}") for i in range(labels)]
    frame = pd.DataFrame(generator.normal(size=(len(index), len(columns))), index, pd.MultiIndex.from_tuples(columns))
    frame = frame.mask(generator.random(frame.shape) < 0.1).astype(dtype)
    keep = generator.random(len(frame)) < 0.9
    keep[2 * 120:3 * 120] = np.arange(120) == 4  # a day of one stock
    return frame[keep]


def on_day(frame, number):
    return frame.loc[[DAYS[number]]]


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    spans = [(stock, "2020-01-01", "2022-01-01") for stock in STOCKS]
    write_store(folder, DAYS, {}, {"all": spans, "small": spans[:50], "nobody": [("SZ000001", "2020-01-01", "2022-01-01")]})
    start_qlib(folder)


@pytest.mark.parametrize("group", [None, "label", "feature", ["feature", "label"]])
@pytest.mark.parametrize("method", ["zscore", "robust"])
def test_equals_qlib_without_universe(group, method):
    frame = random_frame(labels=2)
    result = CSZScoreNorm(fields_group=group, method=method)(frame)
    expected = qlib_processor.CSZScoreNorm(fields_group=group, method=method)(frame.copy())
    pd.testing.assert_frame_equal(result, expected, rtol=1e-9, atol=1e-9)
    assert on_day(result, 2)[group].isna().all(axis=None) if isinstance(group, str) else True


def test_equals_qlib_in_float32():
    frame = random_frame(dtype=np.float32)
    result = CSZScoreNorm(fields_group="label")(frame)
    expected = qlib_processor.CSZScoreNorm(fields_group="label")(frame.copy())
    assert (result.dtypes == np.float32).all()
    pd.testing.assert_frame_equal(result, expected, atol=1e-5, check_dtype=False)


def test_differences_from_qlib_are_the_documented_ones():
    frame = random_frame()
    label = frame[("label", "LABEL0")]
    first = (label.index.get_level_values(0) == DAYS[0]) & label.notna()
    constant, infinite = frame.copy(), frame.copy()
    constant.loc[first, ("label", "LABEL0")] = 0.1
    infinite.loc[label[first].index[3], ("label", "LABEL0")] = np.inf
    ours, theirs = CSZScoreNorm("label"), qlib_processor.CSZScoreNorm("label")
    assert on_day(ours(constant), 0)["label"].isna().all(axis=None)
    assert not on_day(theirs(constant.copy()), 0)["label"].isna().all(axis=None)  # rounding decided
    pd.testing.assert_frame_equal(ours(constant).loc[DAYS[1]:], theirs(constant.copy()).loc[DAYS[1]:], rtol=1e-9, atol=1e-9)
    result = ours(infinite)  # no difference: one infinite value costs both the day
    pd.testing.assert_frame_equal(result, theirs(infinite.copy()), rtol=1e-9, atol=1e-9)
    assert on_day(result, 0)["label"].isna().all(axis=None) and on_day(result, 1)["label"].notna().any(axis=None)


@pytest.mark.parametrize("method", ["zscore", "robust"])
def test_universe_makes_the_statistics_and_scales_everybody(method):
    frame = random_frame()
    result = CSZScoreNorm("label", universe="small", method=method)(frame)
    member = frame.index.get_level_values(1).isin(MEMBERS)
    expected = qlib_processor.CSZScoreNorm("label", method=method)(frame[member].copy())
    pd.testing.assert_frame_equal(result[member], expected, rtol=1e-9, atol=1e-9)
    outside = result[~member]["label"]
    assert outside.isna().to_numpy().sum() < len(outside) / 2  # outsiders keep values ...
    moved = frame.copy()
    moved.loc[~member, ("label", "LABEL0")] += 100
    again = CSZScoreNorm("label", universe="small", method=method)(moved)
    pd.testing.assert_frame_equal(again[member], result[member])  # ... and do not move the members
    assert not np.allclose(CSZScoreNorm("label", method=method)(moved)[member]["label"], result[member]["label"], equal_nan=True)


def test_drop_extreme_label_drops_what_it_says():
    frame = random_frame()
    for universe in (None, "small"):
        result = DropExtremeLabel(universe=universe)(frame)
        member = frame.index.get_level_values(1).isin(MEMBERS if universe else STOCKS)
        label = frame[("label", "LABEL0")]
        for number, day in enumerate(DAYS):
            here = label.xs(day).dropna()
            counted = label[member].xs(day).dropna()
            tail = max(1, int(0.025 * len(counted))) if len(counted) >= 40 else 0
            ranked = counted.sort_values().index
            gone = set(ranked[:tail]) | set(ranked[len(ranked) - tail:])
            assert set(result.xs(day).index) == set(here.index) - gone, (universe, number)
        assert {len(label[member].xs(day).dropna()) >= 40 for day in DAYS} == ({True, False})  # both kinds of day are seen
        pd.testing.assert_frame_equal(result, frame.loc[result.index])  # values and order are those of the input


def test_several_label_columns_are_treated_one_by_one():
    frame = random_frame(labels=2)
    result = DropExtremeLabel()(frame)
    for column in range(2):
        single = frame.drop(columns=[("label", f"LABEL{1 - column}")])
        alone = DropExtremeLabel()(single)[("label", f"LABEL{column}")]
        pd.testing.assert_series_equal(result[("label", f"LABEL{column}")].dropna(), alone)
    assert result["label"].notna().any(axis=1).all() and result["label"].isna().any(axis=None)


def test_inputs_are_never_written():
    for frame in (random_frame(), random_frame(labels=2), random_frame(dtype=np.float32)):
        copy = frame.copy(deep=True)
        for processor in (CSZScoreNorm(), CSZScoreNorm("label"), CSZScoreNorm(["label", "feature"], "small"),
                          DropExtremeLabel(), DropExtremeLabel(universe="small")):
            result = processor(frame)
            assert processor.readonly() and result is not frame
            if isinstance(processor, CSZScoreNorm):
                assert list(result.columns) == list(frame.columns) and result.index.equals(frame.index)
            pd.testing.assert_frame_equal(frame, copy)


def test_rows_in_any_order():
    frame = random_frame()
    mixed = frame.iloc[np.random.default_rng(1).permutation(len(frame))]
    for processor in (CSZScoreNorm("label", "small"), DropExtremeLabel(universe="small")):
        pd.testing.assert_frame_equal(processor(mixed).sort_index(), processor(frame).sort_index(), rtol=1e-9)
    swapped = frame.swaplevel().sort_index()
    pd.testing.assert_frame_equal(CSZScoreNorm("label", "small")(swapped).swaplevel().sort_index(),
                                  CSZScoreNorm("label", "small")(frame), rtol=1e-9)


def handler(frame, infer=(), learn=(), shared=()):
    return DataHandlerLP(data_loader=StaticDataLoader(frame), infer_processors=list(infer), learn_processors=list(learn),
                         shared_processors=list(shared))


def named(cls, **kwargs):
    return {"class": cls.__name__, "module_path": "qlib_ext.data.processor", "kwargs": kwargs}


def test_in_a_handler_the_learning_table_is_thinned_and_the_others_are_whole():
    frame = random_frame()
    scaling = named(CSZScoreNorm, fields_group="label", universe="small")
    made = handler(frame, learn=[named(DropExtremeLabel, universe="small"), scaling])
    learn, infer = made.fetch(data_key="learn", col_set="__raw"), made.fetch(data_key="infer", col_set="__raw")
    raw = made.fetch(data_key="raw", col_set="__raw")
    pd.testing.assert_frame_equal(infer, frame)
    pd.testing.assert_frame_equal(raw, frame)
    by_hand = CSZScoreNorm("label", "small")(DropExtremeLabel(universe="small")(frame))
    pd.testing.assert_frame_equal(learn, by_hand)
    day = learn[learn.index.get_level_values(1).isin(MEMBERS)].loc[[DAYS[1]], ("label", "LABEL0")]
    assert abs(day.mean()) < 1e-12 and day.std() == pytest.approx(1)  # scaled after dropping
    assert 0 < len(learn) < frame["label"].notna().to_numpy().sum()


def test_dropping_refuses_inference():
    frame = random_frame()
    for place in ("infer", "shared"):
        with pytest.raises(TypeError, match="usable for inference"):
            handler(frame, **{place: [named(DropExtremeLabel)]})
    assert CSZScoreNorm().is_for_infer() and not DropExtremeLabel().is_for_infer()
    handler(frame, infer=[named(CSZScoreNorm, fields_group="feature")])


def test_wrong_settings():
    frame = random_frame()
    for make in (lambda: CSZScoreNorm(method="rank"), lambda: DropExtremeLabel(fraction=1.5),
                 lambda: DropExtremeLabel(min_count=0)):
        with pytest.raises(ConfigError):
            make()
    for processor in (CSZScoreNorm("labels"), DropExtremeLabel(fields_group="target")):
        with pytest.raises(ConfigError, match="feature.*label"):
            processor(frame)
    for processor in (CSZScoreNorm("label", "csi7"), DropExtremeLabel(universe="csi7")):
        with pytest.raises(ConfigError, match="small"):
            processor(frame)
    for processor in (CSZScoreNorm("label", "nobody"), DropExtremeLabel(universe="nobody")):
        with pytest.raises(DataError, match="nobody"):
            processor(frame)


def test_pickle_round_trip():
    frame = random_frame()
    for processor in (CSZScoreNorm("label", "small", "robust"), DropExtremeLabel(0.1, 20, "small")):
        again = pickle.loads(pickle.dumps(processor))
        pd.testing.assert_frame_equal(again(frame), processor(frame))


def test_empty_frame():
    empty = random_frame()[:0]
    assert len(CSZScoreNorm("label", "small")(empty)) == len(DropExtremeLabel(universe="small")(empty)) == 0


def test_the_rule_is_the_pure_one():
    frame = random_frame()
    gone = cs_extreme_mask(frame[("label", "LABEL0")].to_numpy(), np.asarray(frame.index.codes[0]), 0.2, 10)
    expected = frame[~gone & frame[("label", "LABEL0")].notna()]
    pd.testing.assert_frame_equal(DropExtremeLabel(0.2, 10)(frame), expected)
