"""The array loader where a store or a request is odd: short files, doubled codes, dated filters, an entry in parts."""

import logging
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.data import handler as theirs
from qlib.data import D
from qlib.data.data import LocalDatasetProvider, LocalFeatureProvider
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.filter import ExpressionDFilter, NameDFilter

from nasty_market import CALM, DAYS, FIT, PLAIN, ROBUST, alike, same
from qlib_ext.data import array_loader, field_reader
from qlib_ext.data import handler as ours
from qlib_ext.data.array_loader import ArrayLoader
from qlib_ext.data.dataset import PanelDatasetH
from qlib_ext.errors import DataError
from tiny_market_store import start_qlib

PAIR = ["SH600000", "SH600002"]
DATED = "$close>10", "2020-04-01", "2020-07-01"
SEGMENTS = {"train": ["2020-02-03", "2020-06-30"], "test": ["2020-08-03", "2020-10-30"]}
KEYS = (DataHandlerLP.DK_I, DataHandlerLP.DK_L, DataHandlerLP.DK_R)


@pytest.fixture(autouse=True)
def started(nasty):
    start_qlib(nasty)


@pytest.fixture
def store(nasty, tmp_path) -> Path:
    """A copy that may be changed; Qlib reads it."""
    shutil.copytree(nasty, tmp_path / "store")
    start_qlib(tmp_path / "store")
    return tmp_path / "store"


def rewrite(store: Path, code: str, field: str, first: int, values: np.ndarray) -> None:
    np.r_[np.float32(first), values].astype("<f4").tofile(store / "features" / code.lower() / f"{field}.day.bin")


def stored(store: Path, code: str, field: str) -> np.ndarray:
    return np.fromfile(store / "features" / code.lower() / f"{field}.day.bin", "<f4")[1:]


def both(name: str = "Alpha158", **options) -> None:
    """The raw tables are alike, but for two formulas in which Qlib's rounding shows."""
    found, expected = (getattr(module, name)(**options, **PLAIN)._data for module in (ours, theirs))
    usual = ~expected.columns.get_level_values(1).str.contains("WVMA|VSTD")
    alike(found.loc[:, usual], expected.loc[:, usual])


def load(instruments="some", start="2020-02-03", end="2020-09-30", **options) -> pd.DataFrame:
    return ours.Alpha158(instruments, start, end, **{**PLAIN, **options})._infer


# ---- requests -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [
    {"instruments": ["sh600000", "SH600002"]}, {"instruments": ["SH600002", "SH600000", "SH600002"]},
    {"instruments": np.array(PAIR)}, {"instruments": pd.Index(PAIR)},
    {"instruments": PAIR, "start_time": "2020-03-02 10:00", "end_time": pd.Timestamp("2020-07-03 09:00")},
    {"instruments": CALM, "start_time": "2020-05-04", "end_time": "2020-05-04"},
    {"instruments": "all", "start_time": "2020-06-01", "filter_pipe": [ExpressionDFilter(*DATED)]},
    {"instruments": "all", "start_time": "2020-06-01", "filter_pipe": [ExpressionDFilter(*DATED, True)]},
], ids=["lower case", "doubled", "array", "index", "hours", "one day", "dated filter", "dated filter that keeps"])
def test_requests(options):
    both(**options)


def test_a_config_of_two_filters():
    both(instruments=D.instruments("all", [NameDFilter("SH60000[023]"), ExpressionDFilter("$close>Ref($close,1)")]))


@pytest.mark.parametrize("change", [{"freq": "1min"}, {"freq": {"feature": "day", "label": "day"}}, {"swap_level": False},
                                    {"is_group": False}, {"inst_processors": [len]}, {"inst_processors": {"feature": [len]}}])
def test_what_is_left_to_qlib(change):
    loader = ArrayLoader.like(theirs.Alpha158(CALM, init_data=False, **PLAIN).data_loader)
    assert loader.is_array()
    for name, value in change.items():
        setattr(loader, name, value)
    assert not loader.is_array()


def test_remote_stores_are_left_to_qlib(monkeypatch):
    loader = ArrayLoader.like(theirs.Alpha158(CALM, init_data=False, **PLAIN).data_loader)
    for dataset, features, array in ((SimpleNamespace(), LocalFeatureProvider(), False),
                                     (LocalDatasetProvider(), SimpleNamespace(), False),
                                     (SimpleNamespace(provider=LocalDatasetProvider()), LocalFeatureProvider(), True),
                                     (LocalDatasetProvider(), LocalFeatureProvider(backend={"class": "Other"}), False)):
        monkeypatch.setattr(array_loader, "DatasetD", SimpleNamespace(_provider=dataset))
        monkeypatch.setattr(array_loader, "FeatureD", SimpleNamespace(_provider=features))
        assert loader.is_array() == array


# ---- stores -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("field", ["open", "high", "low", "vwap"])
@pytest.mark.parametrize("name", ["Alpha158", "Alpha360"])
def test_a_field_that_one_stock_lacks(store, name, field):
    (store / "features" / "sh600002" / f"{field}.day.bin").unlink()
    both(name, instruments=PAIR, start_time="2020-03-02", end_time="2020-06-30")


@pytest.mark.parametrize("name, field, first, count", [
    ("Alpha158", "open", 20, 100), ("Alpha158", "low", 5, 225), ("Alpha158", "vwap", 100, 30), ("Alpha360", "close", 10, 200),
    ("Alpha360", "volume", 0, 90), ("Alpha360", "high", 70, 160)])
def test_a_field_that_covers_fewer_days(store, said, name, field, first, count):
    rewrite(store, "SH600002", field, first, stored(store, "SH600002", field)[first:first + count])
    both(name, instruments=PAIR, start_time="2020-03-02", end_time="2020-06-30")
    assert any("SH600002 do not cover the same days" in text for text in said) and not any("SH600000" in text for text in said)


@pytest.mark.parametrize("field, first, count", [("close", 10, 220), ("close", 20, 100), ("volume", 20, 210), ("volume", 0, 200)])
def test_what_qlib_cannot_evaluate_is_named(store, field, first, count):
    rewrite(store, "SH600002", field, first, stored(store, "SH600002", field)[first:first + count])
    with pytest.raises(DataError, match="SH600002.*write their files anew"):
        ours.Alpha158(PAIR, **PLAIN)


def test_a_store_that_is_replaced_while_it_is_read(monkeypatch):
    marks = iter([(1, 1, 1), (1, 2, 1)])
    monkeypatch.setattr(field_reader, "_identity", lambda folder: next(marks))
    with pytest.raises(DataError, match="replaced while it was read"):
        load()


@pytest.mark.parametrize("threads", ["1", "2", "5"])
def test_threads_do_not_matter(monkeypatch, threads):
    expected = load("all")
    monkeypatch.setenv("QLIB_EXT_THREADS", threads)
    monkeypatch.setattr(field_reader, "PIECE", 3)
    same(load("all"), expected)


# ---- expressions of the user --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name, width", [("Alpha158", 158), ("Alpha360", 360)])
def test_a_field_of_the_user_with_bars_of_its_own(store, name, width):
    """Fields that only some stocks have, on other days than their prices: rows are Qlib's, columns the last ones."""
    rewrite(store, "SH600002", "turnover", 100, np.arange(60))
    rewrite(store, "SH600000", "turnover", 0, np.arange(230))
    extra = {"T5": "Mean($turnover, 5)", "T": "$turnover", "B": "$open / $close"}
    frame = getattr(ours, name)(CALM, "2020-03-02", "2020-09-30", extra_fields=extra, **PLAIN)._data["feature"]
    assert list(frame.columns[width:]) == list(extra)
    expected = D.features(CALM, list(extra.values()), "2020-03-02", "2020-09-30").swaplevel().sort_index()
    alike(frame[list(extra)], expected.set_axis(list(extra), axis=1).reindex(frame.index))
    assert frame["T"].notna().sum() > 150
    rest = getattr(ours, name)(CALM, "2020-03-02", "2020-09-30", **PLAIN)._data["feature"]
    alike(frame.iloc[:, :width], rest.reindex(frame.index), atol=1e-4, rtol=1e-4)  # Qlib evaluates SH600002 now


@pytest.mark.parametrize("horizons, names", [(5, ["LABEL5D"]), ((1, 20), ["LABEL1D", "LABEL20D"])])
def test_labels_take_one_horizon_or_several(horizons, names):
    frame = ours.Alpha158(CALM, label={"price": "vwap", "horizons": horizons, "entry": 2}, **PLAIN)._data["label"]
    texts = [f"Ref($vwap,-{int(name[5:-1]) + 2})/Ref($vwap,-2)-1" for name in names]
    same(frame, D.features(CALM, texts).swaplevel().sort_index().set_axis(names, axis=1))


# ---- processors ---------------------------------------------------------------------------------------------------------------
LEARN = [{"class": "DropnaLabel"}, {"class": "CSZScoreNorm", "kwargs": {"fields_group": "label", "method": "robust"}}]


def tables_alike(found, expected, **options) -> None:
    for key in KEYS:
        one, two = (handler.fetch(col_set=["feature", "label"], data_key=key) for handler in (found, expected))
        pd.testing.assert_index_equal(one.columns, two.columns)
        usual = [column for column in two.columns if not ("WVMA" in column[1] or "VSTD" in column[1])]
        alike(one[usual], two[usual], rtol=1e-3, atol=1e-3, obj=key, **options)


@pytest.mark.parametrize("init_type", [DataHandlerLP.IT_FIT_SEQ, DataHandlerLP.IT_FIT_IND])
@pytest.mark.parametrize("steps", [ROBUST, [*ROBUST, {"class": "FilterCol", "kwargs": {"col_list": ["KMID", "MA5"]}}]],
                         ids=["arrays", "Qlib's own"])
def test_processors_fitted_each_for_itself(init_type, steps):
    options = {"instruments": CALM[:4], "start_time": "2020-02-03", "end_time": "2020-05-29", **FIT, "infer_processors": steps,
               "learn_processors": LEARN, "init_data": False}
    found, expected = (module.Alpha158(**options) for module in (ours, theirs))
    for handler in (found, expected):
        handler.setup_data(init_type=init_type)
    assert (found.feature_values() is None) == (len(steps) == 3)
    tables_alike(found, expected)


def test_a_pickled_handler_goes_on_to_later_days_without_fitting():
    options = {"instruments": CALM[:4], "start_time": "2020-02-03", "end_time": "2020-05-29", **FIT, "infer_processors": ROBUST,
               "learn_processors": LEARN}
    loaded = []
    for module in (ours, theirs):
        handler = module.Alpha158(**options)
        handler.config(dump_all=False)
        handler = pickle.loads(pickle.dumps(handler))
        handler.config(start_time="2020-06-01", end_time="2020-07-31")
        handler.setup_data(init_type=DataHandlerLP.IT_LS)
        loaded.append(handler)
    assert loaded[0].fetch(col_set="feature").index.get_level_values(0).min() == pd.Timestamp("2020-06-01")
    assert loaded[0].feature_values() is not None
    tables_alike(*loaded)


def test_raw_features_come_back_from_the_cache(store, folder, computed):
    handler = ours.Alpha158("some", "2020-02-03", "2020-09-30", infer_processors=ROBUST, learn_processors=[], **FIT)
    processed = handler.fetch(col_set="feature").copy()
    raw = handler.fetch(col_set="feature", data_key=DataHandlerLP.DK_R)
    assert len(computed) == 1
    same(raw, load(cache=False)["feature"])
    same(handler.fetch(col_set="feature"), processed)


def test_later_days_of_the_store_do_not_change_the_raw_features(store):
    """What was written after the last day asked for is no change of what was computed, but for labels, which look ahead."""
    handler = ours.Alpha158("some", "2020-02-03", "2020-06-30", infer_processors=ROBUST, learn_processors=[], **FIT)
    values = stored(store, "SH600001", "close")
    values[-3:] += 1
    rewrite(store, "SH600001", "close", 0, values)
    assert len(handler.fetch(data_key=DataHandlerLP.DK_R)) == len(handler.fetch())


# ---- the panel ----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("cached", [False, True])
def test_a_panel_of_stored_and_joined_features_is_no_copy(store, folder, cached):
    config = {"class": "Alpha158", "module_path": "qlib_ext.data.handler",
              "kwargs": {"instruments": "some", **FIT, "infer_processors": ROBUST, "learn_processors": [], "cache": cached,
                         "extra_fields": {"MINE": "Std($close, 7)/$close"}}}
    expected = None
    for _ in range(2):
        dataset = PanelDatasetH(config, SEGMENTS, keep_frames=True)
        values = dataset.panel().blocks["stock"].values
        assert np.shares_memory(values, dataset.handler.feature_values()) and values.shape[1] == 159
        assert np.shares_memory(values, dataset.handler.fetch(col_set="feature").to_numpy())
        assert np.isnan(values[-1]).all() and not np.isnan(values[:-1]).any()
        expected = values.copy() if expected is None else expected
        np.testing.assert_array_equal(values, expected)
    assert folder.exists() == cached


# ---- the cache ----------------------------------------------------------------------------------------------------------------
def entries(folder: Path) -> int:
    return len(list(folder.glob("*/manifest.json")))


@pytest.mark.parametrize("options", [
    {"instruments": CALM}, {"instruments": np.array(CALM)},
    {"instruments": {code: [("2020-03-02", "2020-12-31")] for code in CALM}},
    {"filters": lambda: [NameDFilter("SH60000[0-9]")]}, {"filters": lambda: [ExpressionDFilter("$close>Ref($close,1)")]},
    {"config": lambda: D.instruments("some", [NameDFilter("SH60000[0-9]")])},
], ids=["list", "array", "spans", "names", "expression", "config"])
def test_the_same_request_is_computed_once(store, folder, computed, options):
    """Also where it is written with objects that are made anew, as another process does."""
    loaded = []
    for _ in range(2):
        instruments = options["config"]() if "config" in options else options.get("instruments", "some")
        pipe = options["filters"]() if "filters" in options else None
        loaded.append((load(instruments, filter_pipe=pipe), pipe))  # kept: memory is not used again
    same(loaded[0][0], loaded[1][0])
    assert len(computed) == 1 and entries(folder) == 1


@pytest.mark.parametrize("first, second", [(NameDFilter("SH60000[0-3]"), NameDFilter("SH60000[4-9]")),
                                           (None, NameDFilter("SH60000[4-9]"))])
def test_other_filters_are_other_requests(store, folder, first, second):
    for one in (first, second, first):
        pipe = None if one is None else [one]
        same(load(filter_pipe=pipe), load(filter_pipe=pipe, cache=False))


def test_a_stock_that_comes_back_has_rows_in_between(store, folder, computed):
    """SH600021 ends on day 100 and trades again from day 200 on: the days between become rows, of past days."""
    (store / "instruments" / "mine.txt").write_text("SH600000\t2020-01-01\t2020-12-31\nSH600021\t2020-01-01\t2020-12-31\n")
    start_qlib(store)
    before = load("mine", end="2020-08-31")
    for field in ("open", "high", "low", "close", "volume", "vwap", "factor", "change"):
        values = stored(store, "SH600021", field)
        rewrite(store, "SH600021", field, 0, np.r_[values[:101], np.full(99, np.nan), values[71:101]])
    start_qlib(store)
    after = load("mine", end="2020-08-31")
    assert len(after) - len(before) == (DAYS <= "2020-08-31").sum() - 101 and len(computed) == 2
    same(after, load("mine", end="2020-08-31", cache=False))


def test_a_store_that_lost_its_last_days(store, folder, computed):
    whole = load(end=None)
    calendar = (store / "calendars" / "day.txt").read_text().splitlines()[:200]
    (store / "calendars" / "day.txt").write_text("\n".join(calendar) + "\n")
    for file in (store / "features").rglob("*.bin"):
        values = np.fromfile(file, "<f4")
        values[:max(200 - int(values[0]), 0) + 1].tofile(file)
    start_qlib(store)
    found = load(end=None)
    same(found[["feature"]], whole[["feature"]][:DAYS[199]])
    same(found, load(end=None, cache=False))


@pytest.mark.parametrize("segment", [0, 1])
def test_damage_in_either_part(store, folder, computed, segment, caplog):
    early, late = load(end="2020-05-29").copy(), load().copy()  # a mapped table would show the damage
    [file] = folder.rglob("values-*.f32")
    content = bytearray(file.read_bytes())
    content[4 * 158 * len(early) + (8 if segment else -8)] ^= 64
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        same(load(), late)
    assert "damaged" in caplog.text and computed[2:] == [len(late)]
    same(load(end="2020-05-29"), early)
    assert len(computed) == 3


def test_days_that_find_no_room_are_computed_and_joined(store, folder, computed, monkeypatch, caplog):
    early = load(end="2020-05-29")
    monkeypatch.setenv("QLIB_EXT_CACHE_GB", str((len(early) + 10) * 158 * 4 / 1e9))
    with caplog.at_level(logging.WARNING):
        late = load()
    assert "is not stored" in caplog.text and computed == [len(early), len(late) - len(early)]
    same(late, load(cache=False))
    same(load(end="2020-05-29"), early)
    robust = {"infer_processors": ROBUST, "learn_processors": [], **FIT}
    same(load(**robust), load(**robust, cache=False))


def test_a_segment_that_no_longer_holds_keeps_those_before(store, folder, computed):
    """A close changed between two stored parts: the first part stays."""
    early, late = load(end="2020-05-29"), load()
    place = int(DAYS.searchsorted(pd.Timestamp("2020-07-01")))
    values = stored(store, "SH600001", "close")
    values[place] *= 1.5
    rewrite(store, "SH600001", "close", 0, values)
    start_qlib(store)
    found = load()
    assert computed[2:] == [len(late) - len(early)] and not found.equals(late)
    same(found, load(cache=False))


def test_a_raw_table_that_was_mapped_survives_what_others_write(store, folder):
    """Frames of one load keep their values while later days are appended to the entry, and while it is cleared."""
    load(end="2020-05-29")
    mapped = load(end="2020-05-29")
    kept = mapped.copy()
    load(end="2020-07-31")
    same(mapped, kept)
    array_loader.default_cache().clear()
    load()
    same(mapped, kept)


def test_windows_longer_than_the_history_are_stored_alike(store, folder, computed, said):
    """The first days of the store: windows are shorter there, from the cache and without it."""
    first = load(start=None, end="2020-02-28")
    same(load(start=None, end="2020-02-28"), first)
    assert computed == [len(first)]
    expected = theirs.Alpha158("some", None, "2020-02-28", **PLAIN)._data
    calm = first.index.get_level_values(1).isin(CALM)
    usual = ~expected.columns.get_level_values(1).str.contains("WVMA|VSTD")
    alike(first.loc[calm, usual], expected.loc[calm, usual])


def test_the_cache_is_off_in_tests():
    assert os.environ["QLIB_EXT_CACHE"] == "off"
