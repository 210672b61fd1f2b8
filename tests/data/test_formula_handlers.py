"""The four handlers as drop-ins: instruments in all forms, own expressions, labels, processors, what is shared and what is refused."""

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.data import handler as theirs
from qlib.contrib.data.loader import Alpha158DL
from qlib.data import D
from qlib.data.dataset import processor as qlib_processor
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.filter import ExpressionDFilter, NameDFilter
from qlib.data.inst_processor import InstProcessor

from nasty_market import CALM, DAYS, FIT, PLAIN, ROBUST, alike, build
from qlib_ext.data import handler as ours
from qlib_ext.data import processor
from qlib_ext.data.array_loader import ArrayLoader
from qlib_ext.data.dataset import PanelDatasetH
from qlib_ext.errors import ConfigError, DataError
from tiny_market_store import start_qlib, write_store

@pytest.fixture(autouse=True)
def started(nasty):
    start_qlib(nasty)


class Few(theirs.Alpha158):
    """A user's subclass with other windows and no candle formulas."""

    def get_feature_config(self):
        return Alpha158DL.get_feature_config({"volume": {"windows": [0, 3]}, "price": {"windows": [1, 2], "feature": ["CLOSE"]},
                                              "rolling": {"windows": [4, 33], "exclude": ["WVMA"]}})


class OurFew(ours.Alpha158):
    get_feature_config = Few.get_feature_config


@pytest.mark.parametrize("options", [
    {"instruments": "some"}, {"instruments": CALM, "start_time": "2020-05-01"}, {"instruments": tuple(CALM), "end_time": "2020-05-01"},
    {"instruments": "all", "filter_pipe": [NameDFilter(name_rule_re="SH60000[023]")]},
    {"instruments": "some", "filter_pipe": [ExpressionDFilter(rule_expression="$close>Ref($close,1)")]},
    {"instruments": {"market": "some", "filter_pipe": []}},
    {"instruments": {"SH600000": [("2020-03-02", "2020-03-31"), ("2020-05-04", "2020-12-31")]}},
], ids=["market", "list", "tuple", "names", "expression", "config", "spans"])
def test_instruments_in_all_forms(options):
    found, expected = (getattr(module, "Alpha158")(**options, **PLAIN)._data for module in (ours, theirs))
    pd.testing.assert_index_equal(found.index, expected.index)
    usual = ~found.columns.get_level_values(1).str.contains("WVMA|VSTD")
    alike(found.loc[:, usual], expected.loc[:, usual])


def test_a_subclass_chooses_its_formulas():
    alike(OurFew(CALM, **PLAIN)._data, Few(CALM, **PLAIN)._data)


class Half(InstProcessor):
    """Every second day of a stock."""

    def __call__(self, df, instrument, *args, **kwargs):
        return df.iloc[::2]


def test_what_only_qlib_can_do_is_left_to_it():
    options = {"instruments": CALM[:3], "inst_processors": [Half()], **PLAIN}
    assert not ours.Alpha158(**options).data_loader.is_array()
    pd.testing.assert_frame_equal(ours.Alpha158(**options)._data, theirs.Alpha158(**options)._data)


def test_stocks_with_uneven_or_missing_files(tmp_path, said):
    rng = np.random.default_rng(1)
    days = DAYS[:90]

    def bars(count=90):
        close = 10 + rng.random(count)
        return {**{name: close * (1 + 0.01 * rng.random(count)) for name in ("open", "high", "low", "vwap")}, "close": close,
                "volume": 1e5 * (1 + rng.random(count)), "factor": np.ones(count), "change": np.zeros(count)}
    codes = [f"SH60000{k}" for k in range(5)]
    write_store(tmp_path, days, {code: bars() for code in codes[:4]}, {"all": [(code, "2020-01-01", "2020-12-31") for code in codes]})
    (tmp_path / "features" / "sh600001" / "vwap.day.bin").unlink()
    np.r_[20.0, 10 + rng.random(70)].astype("<f4").tofile(tmp_path / "features" / "sh600002" / "high.day.bin")
    start_qlib(tmp_path)
    found = ours.Alpha158("all", **PLAIN)._data
    assert "no bars of SH600004 in" in said[0] and "SH600002 do not cover" in said[1]
    expected = theirs.Alpha158("all", **PLAIN)._data
    alike(found, expected)
    assert found.xs("SH600001", level="instrument")[("feature", "VWAP0")].isna().all()
    np.r_[0.0, 10 + rng.random(70)].astype("<f4").tofile(tmp_path / "features" / "sh600002" / "volume.day.bin")
    (tmp_path / "features" / "sh600003" / "close.day.bin").unlink()
    with pytest.raises(DataError, match="SH600002, SH600003.*same days"):  # Qlib's Corr cannot
        ours.Alpha158("all", **PLAIN)


def test_fewer_days_than_the_longest_window(tmp_path, said):
    write_store(tmp_path, DAYS[:40], {"SH600000": {name: 10 + np.random.default_rng(0).random(40) for name in
                                                   ("open", "high", "low", "close", "vwap", "volume", "factor", "change")}},
                {"all": [("SH600000", "2020-01-01", "2020-12-31")]})
    start_qlib(tmp_path)
    found = ours.Alpha158("all", **PLAIN)._data
    assert "the store has 40 trading days, the longest window looks 60 days back" in said[0]
    alike(found, theirs.Alpha158("all", **PLAIN)._data)


@pytest.mark.parametrize("options, error, words", [
    ({"start_time": "2031-01-01"}, ConfigError, "no trading day"), ({"instruments": ["SH999999"]}, DataError, "SH999999|no instrument"),
    ({"instruments": "nobody"}, ConfigError, "nobody"), ({"instruments": CALM[-2:-1], "start_time": "2020-10-01"}, DataError, "none of"),
])
def test_what_cannot_be_loaded_is_named(options, error, words):
    with pytest.raises(error, match=words):
        ours.Alpha158(**{"instruments": "all", **options}, **PLAIN)


# ---- own expressions, labels --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("extra, names", [({"A": "Std($close, 7)", "B": "$open/$close"}, ["A", "B"]),
                                          ([["Std($close, 7)", "$open/$close"], ["A", "B"]], ["A", "B"]),
                                          (["Std($close, 7)", "EMA($close, 5)"], ["Std($close, 7)", "EMA($close, 5)"])])
def test_expressions_of_the_user(extra, names):
    frame = ours.Alpha158(CALM, extra_fields=extra, **PLAIN)._data["feature"]
    assert list(frame.columns[-2:]) == names and frame.shape[1] == 160
    texts = list(extra.values()) if isinstance(extra, dict) else extra[0] if isinstance(extra[0], list) else extra
    expected = D.features(CALM, texts).swaplevel().sort_index()
    alike(frame[names], expected.set_axis(names, axis=1))


@pytest.mark.parametrize("extra, words", [({"KMID": "$open"}, "KMID"), ([["$open"], ["A", "B"]], "1 expressions, 2 names"), (7, "give"),
                                          ({"A": "Maen($close, 5)"}, "parsed"), ({"A": "Delta($close, -3)"}, "negative")])
def test_wrong_expressions_are_named(extra, words):
    with pytest.raises(ConfigError, match=words):
        ours.Alpha158("all", extra_fields=extra, **PLAIN)


def test_an_expression_that_looks_ahead_is_refused_by_the_dataset():
    config = {"class": "Alpha158", "module_path": "qlib_ext.data.handler", "kwargs": {"extra_fields": {"A": "Ref($close, -1)/$close"}, **PLAIN}}
    with pytest.raises(ConfigError, match="looks 1 trading days ahead"):
        PanelDatasetH(config, {"train": ["2020-02-03", "2020-05-29"], "test": ["2020-07-01", "2020-09-30"]})


@pytest.mark.parametrize("price", ["close", "open", "vwap"])
def test_labels_of_several_horizons(price):
    frame = ours.Alpha158(CALM, label={"price": price, "horizons": [5, 10]}, **PLAIN)._data["label"]
    texts = [f"Ref(${price},-{h + 1})/Ref(${price},-1)-1" for h in (5, 10)]
    expected = D.features(CALM, texts).swaplevel().sort_index()
    pd.testing.assert_frame_equal(frame, expected.set_axis(["LABEL5D", "LABEL10D"], axis=1), check_exact=True)


@pytest.mark.parametrize("label, words", [({"price": "high"}, "high"), ({"horizons": []}, "whole numbers"), ({"horizons": [5, 5]}, "each once"),
                                          ({"horizons": 0}, "from 1 on"), ({"entry": 0}, "from 1 on"), ({"days": 5}, "days"),
                                          ({"horizons": [1.5]}, "whole numbers")])
def test_wrong_labels_are_named(label, words):
    with pytest.raises(ConfigError, match=words):
        ours.Alpha158("all", label=label, **PLAIN)


# ---- processors ---------------------------------------------------------------------------------------------------------------
def test_qlibs_processors_become_ours_with_their_settings():
    learn = [{"class": "DropnaLabel"}, {"class": "CSZScoreNorm", "kwargs": {"fields_group": "label", "method": "robust"}}]
    handler = ours.Alpha158("all", **FIT, infer_processors=[*ROBUST, "TanhProcess"], learn_processors=learn, init_data=False)
    made = [*handler.infer_processors, *handler.learn_processors]
    kinds = [processor.RobustZScoreNorm, processor.Fillna, processor.TanhProcess, processor.DropnaLabel, processor.CSZScoreNorm]
    assert [type(one) for one in made] == kinds
    assert made[0].fit_end_time == FIT["fit_end_time"] and made[0].fields_group == "feature" and made[4].method == "robust"
    assert [type(p).__module__.startswith("qlib_ext") for p in ours.Alpha360("all", **FIT, init_data=False).infer_processors] == [True] * 3
    fitted = qlib_processor.ZScoreNorm(**FIT)
    fitted.cols = []
    kept = ours.Alpha158("all", infer_processors=[fitted, Doubled()], learn_processors=[], init_data=False).infer_processors
    assert kept[0] is fitted and type(kept[1]) is Doubled


class Doubled(qlib_processor.Processor):
    """A user's processor, on frames and in place."""

    def __call__(self, df):
        df[df["feature"].columns.map(lambda name: ("feature", name))] *= 2
        return df


TABLES = {
    "defaults": {}, "robust": {"infer_processors": ROBUST}, "drop_raw": {"infer_processors": ROBUST, "drop_raw": True},
    "independent": {"infer_processors": ROBUST, "process_type": "independent"}, "own processor": {"infer_processors": [*ROBUST, Doubled()]},
    "learn features": {"infer_processors": ROBUST, "learn_processors": [{"class": "DropnaProcessor", "kwargs": {"fields_group": "feature"}}]},
    "shared": {"infer_processors": ROBUST, "shared_processors": [{"class": "CSZFillna", "kwargs": {"fields_group": "feature"}}]},
}


@pytest.mark.parametrize("name, case", [*(("Alpha158", case) for case in TABLES), ("Alpha360", "robust"),
                                        pytest.param("Alpha360", "defaults", marks=pytest.mark.slow)])
def test_all_tables_equal_qlibs(name, case):
    options = TABLES[case]
    options = {"instruments": CALM[:5], "start_time": "2020-06-01", "end_time": "2020-07-15", **FIT, **options}
    if name == "Alpha158" and not options.get("infer_processors"):
        options["infer_processors"] = [{"class": "ProcessInf"}, {"class": "ZScoreNorm"}, {"class": "Fillna"}]
    found, expected = (getattr(module, name)(**options) for module in (ours, theirs))
    for key in (DataHandlerLP.DK_I, DataHandlerLP.DK_L, DataHandlerLP.DK_R):
        for columns in ("label", "feature", ["feature", "label"]):
            if key == DataHandlerLP.DK_R and options.get("drop_raw") and columns != "label":
                with pytest.raises(AttributeError):
                    found.fetch(col_set=columns, data_key=key)
                continue
            if key == DataHandlerLP.DK_R and options.get("drop_raw"):
                assert len(found.fetch(col_set=columns, data_key=key))
                continue
            span = slice("2020-06-10", "2020-07-08")
            one, two = (handler.fetch(span, col_set=columns, data_key=key) for handler in (found, expected))
            pd.testing.assert_index_equal(one.index, two.index)
            usual = one.columns if columns == "label" else [c for c in one.columns if not ("WVMA" in str(c) or "VSTD" in str(c))]
            alike(one[usual], two[usual], rtol=1e-3, atol=1e-3, obj=f"{key} {columns}")


def test_raw_features_are_loaded_again_and_a_changed_store_is_noticed(tmp_path):
    start_qlib(build(tmp_path / "store"))
    options = {"instruments": "all", "learn_processors": [], **FIT}
    handler = ours.Alpha158(infer_processors=ROBUST, **options)
    raw = ours.Alpha158(infer_processors=[], **options)._data
    pd.testing.assert_frame_equal(handler.fetch(col_set=DataHandlerLP.CS_RAW, data_key=DataHandlerLP.DK_R), raw, check_exact=True)
    handler = ours.Alpha158(infer_processors=ROBUST, **options)
    file = tmp_path / "store" / "features" / "sh600000" / "close.day.bin"
    values = np.fromfile(file, "<f4")
    values[50] += 1
    values.tofile(file)
    with pytest.raises(DataError, match="changed after"):
        handler.fetch(data_key=DataHandlerLP.DK_R)
    assert len(handler.fetch(col_set="label", data_key=DataHandlerLP.DK_R)) == len(raw)


def test_processing_twice_starts_from_the_raw_table():
    handler = ours.Alpha158("all", infer_processors=ROBUST, learn_processors=[], **FIT)
    first = handler.fetch().copy()
    handler.process_data()
    alike(handler.fetch(), first, rtol=0, atol=0)
    handler.config(processor_kwargs={"fit_end_time": "2020-04-30"})
    handler.fit_process_data()
    assert not np.allclose(handler.fetch()["KMID"], first["KMID"])
    np.testing.assert_array_equal(handler.feature_values()[:-1], handler.fetch(col_set="feature").to_numpy())  # what the panel takes


def test_a_cast_handler_carries_the_learning_table():
    options = {"instruments": CALM, "start_time": "2020-06-01", **FIT, "infer_processors": ROBUST}
    found, expected = (DataHandlerLP.cast(module.Alpha158(**options)) for module in (ours, theirs))
    for key in (DataHandlerLP.DK_I, DataHandlerLP.DK_L, DataHandlerLP.DK_R):
        alike(found.fetch(col_set="label", data_key=key), expected.fetch(col_set="label", data_key=key))
        assert len(found.fetch(col_set="feature", data_key=key)) == len(expected.fetch(col_set="feature", data_key=key))


class Constant(processor.Fillna):
    """One of ours whose work on frames a user replaced."""

    def __call__(self, df):
        return df * 0 + 42


class Shifted(processor.RobustZScoreNorm):
    """One of ours with another fit."""

    def fit(self, df=None):
        super().fit(df)
        self.mean_train = self.mean_train * 0 + 100


def test_what_a_subclass_does_with_frames_counts():
    handler = ours.Alpha158(CALM, infer_processors=[Constant("feature")], learn_processors=[])
    assert (handler.fetch(col_set="feature").stack().dropna() == 42).all()
    shifted = ours.Alpha158(CALM, infer_processors=[Shifted(**FIT, fields_group="feature")], learn_processors=[])
    assert (shifted.infer_processors[0].mean_train == 100).all() and (shifted.fetch(col_set="feature")["KMID"].dropna() == -3).all()


def test_nothing_of_an_earlier_load_is_served_after_a_failed_one():
    handler = ours.Alpha158(CALM, infer_processors=ROBUST, **FIT)
    handler.config(start_time="2031-01-01", end_time="2031-02-01")
    with pytest.raises(ConfigError, match="no trading day"):
        handler.setup_data()
    for key in (DataHandlerLP.DK_I, DataHandlerLP.DK_L, DataHandlerLP.DK_R):
        with pytest.raises(AttributeError, match="setup_data"):
            handler.fetch(col_set="label", data_key=key)


def test_hooks_see_all_columns_and_released_features_are_named():
    handler, theirs_ = (module.Alpha158(CALM, infer_processors=ROBUST, **FIT) for module in (ours, theirs))
    hook = {"col_set": "label", "data_key": DataHandlerLP.DK_L, "proc_func": lambda df: df[df[("feature", "KMID")] > 0]}
    alike(handler.fetch(**hook), theirs_.fetch(**hook))
    handler.config(end_time="2020-05-29")  # not loaded yet: what is asked for is still what was loaded
    assert len(handler.fetch(data_key=DataHandlerLP.DK_R)) == len(handler.fetch())
    handler.release_features()
    for key in (DataHandlerLP.DK_I, DataHandlerLP.DK_L):
        with pytest.raises(AttributeError, match="released"):
            handler.fetch(col_set="feature", data_key=key)


# ---- what is shared -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("keep_frames", [True, False])
def test_the_panel_takes_the_table_as_it_is(keep_frames, monkeypatch):
    config = {"class": "Alpha158", "module_path": "qlib_ext.data.handler",
              "kwargs": {"instruments": "all", **FIT, "infer_processors": ROBUST, "learn_processors": []}}
    seen = []
    release = ours.LeanHandler.release_features
    monkeypatch.setattr(ours.LeanHandler, "release_features", lambda self: (seen.append(self.feature_values()), release(self)))
    dataset = PanelDatasetH(config, {"train": ["2020-02-03", "2020-06-30"], "test": ["2020-08-03", "2020-10-30"]}, keep_frames=keep_frames)
    values = dataset.panel().blocks["stock"].values
    held = dataset.handler.feature_values() if keep_frames else seen[0]
    assert values is held and values.flags.c_contiguous and np.isnan(values[-1]).all() and not np.isnan(values[:-1]).any()
    if keep_frames and pd.__version__ >= "3":  # pandas 2 copies a group that it takes out of a frame
        assert np.shares_memory(dataset.handler.fetch(col_set="feature").to_numpy(), values)


def test_infinite_features_are_named(tmp_path):
    store = build(tmp_path / "store")
    file = store / "features" / "sh600000" / "open.day.bin"
    values = np.fromfile(file, "<f4")
    values[60] = 0
    values.tofile(file)
    start_qlib(store)
    config = {"class": "Alpha158", "module_path": "qlib_ext.data.handler", "kwargs": {"instruments": "all", **PLAIN}}
    with pytest.raises(DataError, match="KMID.*: 1"):
        PanelDatasetH(config, {"train": ["2020-01-01", "2020-06-30"], "test": ["2020-08-03", "2020-10-30"]}).panel()


def test_a_loader_that_was_made_from_qlibs():
    loader = theirs.Alpha158(CALM, init_data=False, **PLAIN).data_loader
    assert isinstance(ArrayLoader.like(loader), type(loader)) and ArrayLoader.like(loader).is_array()
    assert ArrayLoader.like(loader).take_table() is None
