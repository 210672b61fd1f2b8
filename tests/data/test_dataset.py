"""PanelDatasetH: tables and labels from the right frames, segments, universe, pickling, and faults named before loading."""
import pickle

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import QlibDataLoader, StaticDataLoader
from qlib.data.dataset.processor import DropnaProcessor, Processor
from qlib.utils import init_instance_by_config

from qlib_ext.data.dataset import PanelDatasetH, _RowIndex
from qlib_ext.data.processor import CSZScoreNorm, DropExtremeLabel
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, DataError
from small_market import FEATURES, LABEL, SEGMENTS, FiveFeatures, LeanFiveFeatures, market, start_qlib

KEYS = {"label": DataHandlerLP.DK_L, "label_raw": DataHandlerLP.DK_R}
UNIVERSE = "csi1000"
INFER = [{"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature", "fit_start_time": "2015-01-01",
                                                  "fit_end_time": "2015-12-31", "clip_outlier": True}},
         {"class": "Fillna", "kwargs": {"fields_group": "feature"}}]
LEARN = [{"class": "DropExtremeLabel", "module_path": "qlib_ext.data.processor", "kwargs": {"fraction": 0.2, "min_count": 5}},
         {"class": "CSZScoreNorm", "module_path": "qlib_ext.data.processor", "kwargs": {"fields_group": "label"}}]
MARKET = {"class": "MarketStateLoader", "module_path": "qlib_ext.data.loader",
          "kwargs": {"instruments": ["SH000300"], "fit_start_time": "2015-01-01", "fit_end_time": "2015-12-31"}}


def handler_config(name="FiveFeatures", **options):
    base = {"instruments": "all", "start_time": "2015-01-01", "end_time": "2016-12-30", "infer_processors": INFER,
            "learn_processors": LEARN}
    return {"class": name, "module_path": "small_market", "kwargs": {**base, **options}}


def make(handler=None, segments=None, universe=UNIVERSE, **options) -> PanelDatasetH:
    segments = SEGMENTS if segments is None else segments
    return PanelDatasetH(handler or handler_config(), segments, universe=universe, **{"window": 5, **options})


@pytest.fixture(scope="module")
def made(small_store):
    """One dataset for all tests that only read it."""
    start_qlib(small_store)
    return make(aux={"market": MARKET})


@pytest.fixture(autouse=True)
def qlib_started(small_market):
    return small_market


@pytest.fixture
def no_loading(monkeypatch):
    """Loading data fails the test: faults have to be named before."""
    def load(*arguments, **options):
        raise AssertionError("data were loaded before the fault was named")
    monkeypatch.setattr(QlibDataLoader, "load", load)
    monkeypatch.setattr(QlibDataLoader, "load_group_df", load)


def grid(panel, frame) -> np.ndarray:
    """`[t, n, c]` of a frame, cell by cell; NaN where it has no row."""
    found = np.full((*panel.rows.shape, frame.shape[1]), np.nan, np.float32)
    place_t = {pd.Timestamp(day): k for k, day in enumerate(panel.days)}
    place_n = {code: k for k, code in enumerate(panel.instruments)}
    for (day, code), values in zip(frame.index, frame.to_numpy(np.float32)):
        found[place_t[day], place_n[code]] = values
    return found


def tables(panel, values) -> np.ndarray:
    """`[t, n, c]` of a panel's table by its row map."""
    return values[panel.rows]


# ---- what the panel holds ----------
def test_features_are_the_inference_table(made):
    panel, frame = made.panel(), made.handler.fetch(col_set="feature", data_key=DataHandlerLP.DK_I)
    assert panel.blocks["stock"].columns == list(FEATURES) and panel.blocks["stock"].window == 5
    assert list(panel.instruments) == sorted(set(frame.index.get_level_values("instrument")))
    assert panel.days.tolist() == sorted(set(frame.index.get_level_values("datetime").date))
    assert np.count_nonzero(panel.rows >= 0) == len(frame) and len(panel.label) == len(frame) + 1
    np.testing.assert_array_equal(tables(panel, panel.blocks["stock"].values), grid(panel, frame))
    assert (panel.rows < 0).any(), "the market must have late listings, or this shows little"


@pytest.mark.parametrize("name", sorted(KEYS))
def test_labels_come_from_their_own_table(made, name):
    panel, frame = made.panel(), made.handler.fetch(col_set="label", data_key=KEYS[name])
    np.testing.assert_array_equal(tables(panel, getattr(panel, name)), grid(panel, frame))
    assert np.isnan(getattr(panel, name)[-1]).all() and panel.label_names == ["LABEL0"]


def test_raw_labels_are_the_returns_of_the_market(made):
    """From the generator's own prices: bought at the next close, sold five trading days later; NaN past the end of the data."""
    panel, truth = made.panel(), market()
    close = truth.adjusted_close()
    expected = np.full(close.shape, np.nan)
    expected[:-6] = close[6:] / close[1:-5] - 1
    expected = expected[:, [truth.instruments.index(code) for code in panel.instruments]]
    found = tables(panel, panel.label_raw)[..., 0]
    assert np.isnan(found[-6:]).all() and np.isfinite(found[-7]).any()
    present = panel.rows >= 0
    np.testing.assert_array_equal(np.isnan(found[present]), np.isnan(expected[present]))
    np.testing.assert_allclose(found[present], expected[present], atol=2e-5)


def test_evaluation_labels_keep_everybody_and_are_normalised_like_training(made):
    panel = made.panel()
    raw, training, evaluation = (tables(panel, t)[..., 0] for t in (panel.label_raw, panel.label, panel.label_eval))
    np.testing.assert_array_equal(np.isnan(evaluation), np.isnan(raw))
    dropped = np.isfinite(raw) & np.isnan(training)
    assert 0.1 < dropped.sum() / np.isfinite(raw).sum() < 0.3
    for day in (40, 300):
        known = raw[day][np.isfinite(raw[day])]
        np.testing.assert_allclose(evaluation[day][np.isfinite(raw[day])], (known - known.mean()) / known.std(ddof=1), atol=1e-5)


def test_universe_of_each_day(made, small_store):
    spans = [line.split() for line in (small_store / "instruments" / f"{UNIVERSE}.txt").read_text().splitlines()]
    panel = made.panel()
    expected = np.array([[any(code == c and np.datetime64(a) <= day <= np.datetime64(b) for c, a, b in spans)
                          for code in panel.instruments] for day in panel.days])
    np.testing.assert_array_equal(panel.universe, expected)
    assert 0 < expected.sum() < expected.size and (expected != expected[0]).any()
    assert make(universe=None).panel().universe.all()


def test_market_state_of_each_day(made):
    panel = made.panel()
    values, names = init_instance_by_config(MARKET).load(panel.days)
    np.testing.assert_array_equal(panel.day_aux["market"], values)
    assert panel.day_aux["market"].shape == (len(panel.days), len(names))


def test_facts_for_the_run_card(made):
    facts = made.panel().meta
    assert facts["embargo"] == 6 and facts["label"] == [LABEL] and facts["universe"] == UNIVERSE and len(facts["store"]) >= 32
    assert [p.split("{")[0] for p in facts["processors"]] == ["RobustZScoreNorm", "Fillna", "DropExtremeLabel", "CSZScoreNorm"]


def test_several_labels_and_a_longer_embargo():
    labels = [LABEL, "Ref($close,-11)/Ref($close,-1)-1"]
    dataset = make(handler_config(label=labels, learn_processors=[]))
    panel = dataset.panel()
    assert panel.label.shape[1] == 2 and dataset.offset == 11
    np.testing.assert_array_equal(tables(panel, panel.label_raw), grid(panel, dataset.handler.fetch(col_set="label")))


# ---- segments ----------
def test_trimmed_segments_keep_labels_apart(made, qlib_started):
    """Counted on the calendar file: the close of day + 6 comes before the first day of the next segment, with none to spare."""
    calendar = (qlib_started / "calendars" / "day.txt").read_text().split()
    panel = made.panel()
    for name, following in (("train", "valid"), ("valid", "test")):
        last, start = (str(panel.days[k]) for k in (panel.segments[name][1] - 1, panel.segments[following][0]))
        assert calendar.index(last) + 6 == calendar.index(start) - 1
        assert str(made.segments[name][1].date()) == last
    assert panel.view("test").span[1] == len(panel.days)
    assert np.isnan(panel.label_raw[panel.rows[-1, panel.stocks(len(panel.days) - 1)]]).all(), "test may reach past the data: NaN"


def test_labels_past_the_data_are_an_error_in_train_and_valid(no_loading):
    for segments in ({"train": ["2015-03-02", None]}, {"train": SEGMENTS["train"], "valid": ["2016-01-01", "2016-12-30"]}):
        with pytest.raises(ConfigError, match="reach 6 trading days past"):
            make(segments=segments)


def test_the_trim_is_told(monkeypatch):
    messages = []
    monkeypatch.setattr("qlib_ext.data.dataset.logger", type("Log", (), {"info": messages.append}))
    make()
    assert sorted(m.split(":")[0] for m in messages) == ["segment test", "segment train", "segment valid"]
    told = {m.split(":")[0].split()[1]: m for m in messages}
    assert all("cut by 6 trading days (embargo 6)" in told[name] for name in ("train", "valid")) and "cut" not in told["test"]
    assert "2015-03-02 .. 2015-12-2" in told["train"]


def test_new_segments_are_trimmed_and_the_panel_follows(small_market):
    dataset = make(handler_config(learn_processors=[]))
    before = dataset.panel()
    dataset.config(segments={"train": ["2015-02-02", "2015-06-30"], "test": ["2015-07-01", "2015-12-31"]})
    after = dataset.panel()
    assert set(after.segments) == {"train", "test"} and after is not before
    assert after.segments["test"][0] - after.segments["train"][1] == 6
    with pytest.raises(ConfigError, match="overlap"):
        dataset.config(segments={"train": ["2015-02-02", "2015-07-30"], "test": ["2015-07-01", "2015-12-31"]})


def test_a_span_of_dates_as_a_view(made):
    panel = made.panel(("2016-02-01", "2016-02-29"))
    days = panel.days[panel.span[0]:panel.span[1]]
    assert str(days[0]) >= "2016-02-01" and str(days[-1]) <= "2016-02-29" and len(days) > 10
    assert made.panel(slice("2016-02-01", "2016-02-29")).span == panel.span
    assert panel.blocks is made.panel().blocks
    with pytest.raises(ConfigError, match="'tset'"):
        made.panel("tset")


def test_windows_reach_before_the_segment_and_before_membership(made):
    panel = made.panel("valid")
    first = panel.span[0]
    batch = DaySampler(panel).batch(first)
    frame = grid(made.panel(), made.handler.fetch(col_set="feature", data_key=DataHandlerLP.DK_I))
    np.testing.assert_array_equal(batch.x.numpy(), frame[first - 4:first + 1, batch.stocks].transpose(1, 0, 2))
    joined = [(t, n) for t in range(30, len(panel.days)) for n in np.flatnonzero(panel.universe[t] & ~panel.universe[t - 1])]
    day, stock = joined[0]
    batch = DaySampler(panel).batch(day)
    window = batch.x[list(batch.stocks).index(stock)]
    np.testing.assert_array_equal(window.numpy(), frame[day - 4:day + 1, stock])
    assert np.isfinite(window.numpy()).all(), "history from before it joined"


# ---- prepare ----------
def test_prepare_gives_universe_rows_of_the_trimmed_segment(made):
    panel = made.panel()
    for name, key in (("train", DataHandlerLP.DK_L), ("valid", DataHandlerLP.DK_I), ("test", DataHandlerLP.DK_R)):
        frame = made.prepare(name, col_set=["feature", "label"], data_key=key)
        first, last = panel.segments[name]
        whole = made.handler.fetch(col_set=["feature", "label"], data_key=key)
        expected = {(pd.Timestamp(panel.days[t]), panel.instruments[n]) for t in range(first, last) for n in panel.stocks(t)}
        expected &= set(whole.index)
        assert set(frame.index) == expected and len(frame) == len(expected) > 0
        pd.testing.assert_frame_equal(frame, whole.loc[frame.index])
    both = made.prepare(["train", "valid"], col_set="label", data_key=DataHandlerLP.DK_R)
    assert [len(f) > 0 for f in both] == [True, True]
    everybody = make(handler_config(learn_processors=[]), universe=None)
    assert len(everybody.prepare("test")) == len(everybody.handler.fetch(slice(*everybody.segments["test"])))


@pytest.mark.slow
def test_qlibs_lightgbm_learns_from_it(small_store, tmp_path):
    from qlib.contrib.model.gbdt import LGBModel
    from qlib.workflow import R
    tracking = {"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
                "kwargs": {"uri": f"sqlite:///{tmp_path}/tracking.db", "default_exp_name": "t"}}
    start_qlib(small_store, exp_manager=tracking)
    dataset = make()
    model = LGBModel(num_boost_round=5, num_threads=1, num_leaves=4)
    with R.start(experiment_name="t"):
        model.fit(dataset)
    score = model.predict(dataset)
    panel = dataset.panel("test")
    assert len(score) == sum(len(panel.stocks(day)) for day in panel.scored_days()) and score.std() > 0


# ---- memory and pickling ----------
@pytest.mark.parametrize("name", ["FiveFeatures", "LeanFiveFeatures"])
def test_freed_frames_leave_the_panel_and_the_raw_label(made, name):
    dataset = make(handler_config(name, drop_raw=name == "LeanFiveFeatures"), keep_frames=False)
    assert getattr(dataset.handler, "_infer", None) is None and getattr(dataset.handler, "_learn", None) is None
    panel, expected = dataset.panel(), made_without_aux(made)
    if name == "LeanFiveFeatures":  # its STD5 is a formula of this package, equal to Qlib's but for the last digits
        np.testing.assert_allclose(panel.blocks["stock"].values, expected.blocks["stock"].values, rtol=1e-5, atol=1e-5)
        expected.blocks["stock"].values = panel.blocks["stock"].values
    assert panel.digest() == expected.digest()
    label = dataset.prepare("test", col_set="label", data_key=DataHandlerLP.DK_R)
    pd.testing.assert_frame_equal(label, made.prepare("test", col_set="label", data_key=DataHandlerLP.DK_R))
    for key in (DataHandlerLP.DK_I, DataHandlerLP.DK_L):
        with pytest.raises(ConfigError, match="keep_frames: true"):
            dataset.prepare("test", col_set="feature", data_key=key)


def made_without_aux(made):
    from dataclasses import replace
    panel = made.panel()
    return replace(panel, day_aux={}, blocks={name: replace(block) for name, block in panel.blocks.items()})


@pytest.mark.parametrize("name, keep_frames", [("FiveFeatures", True), ("LeanFiveFeatures", False)])
def test_a_pickled_dataset_gives_the_same_panel(name, keep_frames):
    dataset = make(handler_config(name, drop_raw=not keep_frames), keep_frames=keep_frames, aux={"market": MARKET})
    digest, segments = dataset.panel().digest(), dict(dataset.segments)
    dataset.config(dump_all=False, recursive=True)
    content = pickle.dumps(dataset)
    assert len(content) < 100_000, "data must not be pickled"
    back = pickle.loads(content)
    with pytest.raises(ConfigError, match="load_state"):
        back.panel()
    back.setup_data(handler_kwargs={"init_type": "load_state"})
    assert back.panel().digest() == digest and back.segments == segments
    back.config(handler_kwargs={"end_time": "2016-10-31"}, segments={"test": ["2016-06-01", "2016-10-31"]})
    back.setup_data(handler_kwargs={"init_type": "load_state"})
    assert str(back.panel().days[-1]) == "2016-10-31" and set(back.panel().segments) == {"test"}


@pytest.mark.parametrize("name", ["FiveFeatures", "LeanFiveFeatures"])
def test_drop_raw_needs_a_handler_that_keeps_the_labels(name, made, request):
    if name == "FiveFeatures":
        request.getfixturevalue("no_loading")
        with pytest.raises(ConfigError, match="drop_raw.*qlib_ext.data.handler"):
            make(handler_config(name, drop_raw=True))
        return
    panel = make(handler_config(name, drop_raw=True)).panel()
    np.testing.assert_array_equal(panel.label_raw, made.panel().label_raw)
    np.testing.assert_array_equal(panel.label_eval, made.panel().label_eval)


def test_drop_raw_of_a_loaded_handler():
    handler = init_instance_by_config(handler_config(drop_raw=True))
    with pytest.raises(ConfigError, match="drop_raw"):
        make(handler).panel()


def test_a_loaded_handler_is_taken_as_it_is(made, monkeypatch):
    monkeypatch.setattr(DataHandlerLP, "setup_data", lambda *a, **k: pytest.fail("loaded twice"))
    dataset = make(made.handler)
    assert dataset.handler is made.handler and dataset.panel().digest() == made_without_aux(made).digest()


# ---- faults before loading ----------
@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("options, said", [
    ({"universe": "csi9"}, "'csi9'.*csi300"), ({"universe": 300}, "300"), ({"missing_rows": "zero"}, "'zero'.*ffill_bfill"),
    ({"window": 0}, "window=0"), ({"window": 2.5}, "window=2.5"),
    ({"window": "8"}, "window='8'"), ({"window": True}, "window=True"),
    ({"embargo": 5}, "embargo=5.*6 trading days.*leak"), ({"embargo": "off"}, "'off'"), ({"embargo": -1}, "embargo=-1"),
    ({"embargo": True}, "embargo=True"), ({"embargo": 7.0}, "embargo=7.0"), ({"embargo": None}, "embargo=None"),
    ({"windows": 8}, r"\['windows'\].*embargo.*window"),
    ({"keep_frame": True, "step_len": 8}, r"keep_frame.*step_len.*keep_frames"),
    ({"segments": {"train": ["2015-03-02", "2016-01-10"], "valid": ["2016-01-01", None]}}, "overlap from 2016-01-0"),
    ({"segments": {"train": ["2016-03-02", "2016-03-01"]}}, "'train'.*empty"), ({"segments": []}, "segments"),
    ({"segments": {}}, "segments"),
    ({"segments": {"train": ["2015-12-28", "2015-12-31"], "test": ["2016-01-01", None]}}, "leaves none"),
    ({"segments": {"train": "2015"}}, "start, end"), ({"segments": {"test": ["2018-01-01", "2018-02-01"]}}, "empty"),
    ({"aux": {"market": {**MARKET, "class": "MarketStateLoaderr"}}}, "market.*MarketStateLoaderr"),
    ({"aux": {"market": {**MARKET, "module_path": "qlib_ext.data.loaders"}}}, "market.*qlib_ext.data.loaders"),
    ({"aux": {"market": {**MARKET, "kwargs": {"instrument": ["SH000300"]}}}}, "market.*instrument"),
    ({"aux": {"market": {"class": "PanelDatasetHH"}}}, "market"), ({"aux": {"market": 5}}, "market"),
    ({"aux": {"market": {"class": "dict", "module_path": "builtins"}}}, "market.*load"), ({"aux": ["market"]}, "aux"),
    ({"handler": handler_config(learn_processors=[{"class": "DropnaProcessor", "kwargs": {"fields_group": "feature"}}])},
     "DropnaProcessor.*'feature'.*infer_processors"),
    ({"handler": handler_config(learn_processors=[{"class": "CSZScoreNorm"}])}, "CSZScoreNorm.*None"),
    ({"handler": handler_config(label="Ref($close,-6")}, "cannot be parsed"),
])
def test_fault_is_named_before_anything_is_loaded(options, said):
    with pytest.raises(ConfigError, match=said):
        make(**options)


def test_the_guard_against_loading_works(no_loading):
    with pytest.raises(AssertionError, match="data were loaded"):
        make()


def test_a_missing_store(tmp_path, small_store):
    import qlib
    qlib.init(provider_uri=str(tmp_path / "nowhere"), region="cn", kernels=1, expression_cache=None, dataset_cache=None,
              logging_level=50)
    with pytest.raises(DataError, match="nowhere"):
        make()


def test_a_larger_embargo_is_kept():
    dataset = make(handler_config(learn_processors=[]), embargo=10)
    segments = dataset.panel().segments
    assert segments["valid"][0] - segments["train"][1] == 10 and dataset.panel().meta["embargo"] == 10


def test_infinite_features_are_counted_by_column():
    with pytest.raises(DataError, match=r"'INF': \d+.*clip_outlier"):
        make(handler_config(infer_processors=[], extra={"INF": "$close/($close-$close)"})).panel()


# ---- frames of other makers ----------
def static_handler(frame, **options) -> DataHandlerLP:
    return DataHandlerLP(data_loader=StaticDataLoader(frame), **options)


def small_frame(qlib_started, count=30, codes=("SH600001", "SH600002", "SH600003")):
    days = pd.DatetimeIndex((qlib_started / "calendars" / "day.txt").read_text().split()[:count])
    index = pd.MultiIndex.from_product([days, codes], names=["datetime", "instrument"])
    values = np.arange(3.0 * len(index)).reshape(-1, 3)
    return pd.DataFrame(values, index, pd.MultiIndex.from_tuples([("feature", "A"), ("feature", "B"), ("label", "L")]))


STATIC = {"segments": {"train": ["2015-01-05", "2015-01-16"], "test": ["2015-01-19", "2015-02-10"]}, "universe": None}


def test_a_label_of_unknown_reach_needs_an_embargo(qlib_started):
    handler = static_handler(small_frame(qlib_started))
    with pytest.raises(ConfigError, match="embargo: <trading days>"):
        make(handler, **STATIC)
    assert make(handler, embargo=2, **STATIC).panel().segments["train"] == (0, 8)


def test_rows_that_stand_twice(qlib_started):
    frame = small_frame(qlib_started)
    with pytest.raises(DataError, match="2 duplicate"):
        make(static_handler(pd.concat([frame, frame.iloc[[5, 9]]]).sort_index()), embargo=2, **STATIC).panel()


def test_a_handler_without_rows(qlib_started):
    with pytest.raises(DataError, match="no rows"):
        make(static_handler(small_frame(qlib_started).iloc[:0]), embargo=2, **STATIC).panel()


def test_rows_that_inference_drops_take_no_label_of_another(qlib_started):
    """A stock, a day and single rows without features go; every row that stays keeps its own labels."""
    frame = small_frame(qlib_started)
    day, code = (frame.index.get_level_values(k) for k in (0, 1))
    gone = (code == "SH600002") | (day == day[9]) | (day == day[-1]) | ((day == day[30]) & (code == "SH600003"))
    frame.loc[gone, ("feature", "A")] = np.nan
    handler = static_handler(frame, infer_processors=[DropnaProcessor("feature")])
    panel = make(handler, embargo=2, **STATIC).panel()
    assert list(panel.instruments) == ["SH600001", "SH600003"]
    expected = {key: value for key, value in frame[~gone]["label", "L"].items()}
    found = {(pd.Timestamp(panel.days[t]), panel.instruments[n]): panel.label_raw[row, 0]
             for (t, n), row in np.ndenumerate(panel.rows) if row >= 0}
    assert found == expected
    assert np.isnan(panel.label_raw[-1]).all() and np.isnan(panel.label_eval[-1]).all()


def test_rows_in_any_order_and_instrument_first(qlib_started):
    frame = small_frame(qlib_started)
    ordered = make(static_handler(frame), embargo=2, **STATIC).panel()
    other = make(static_handler(frame.swaplevel().sort_index()), embargo=2, **STATIC).panel()
    np.testing.assert_array_equal(tables(ordered, ordered.blocks["stock"].values), tables(other, other.blocks["stock"].values))
    np.testing.assert_array_equal(tables(ordered, ordered.label), tables(other, other.label))


def test_row_map_of_an_index_with_unsorted_levels(qlib_started):
    days = pd.DatetimeIndex((qlib_started / "calendars" / "day.txt").read_text().split()[:3])
    index = pd.MultiIndex(levels=[days[[2, 0, 1]], ["C", "A", "B", "unused"]], codes=[[0, 1, 1, 2], [2, 0, 1, 1]],
                          names=["datetime", "instrument"])
    found = _RowIndex(index)
    assert found.instruments.tolist() == ["A", "B", "C"] and len(found.days) == 3
    named = {(days[t], found.instruments[n]): row for (t, n), row in np.ndenumerate(found.rows) if row >= 0}
    assert named == {key: row for row, key in enumerate(index)}


def test_a_segment_that_was_not_loaded(qlib_started):
    handler = static_handler(small_frame(qlib_started))
    with pytest.raises(ConfigError, match="'test'.*loaded.*2015-01-05"):
        make(handler, {"test": ["2016-05-01", "2016-06-01"]}, universe=None, embargo=2).panel()


def test_a_universe_without_anybody_loaded(qlib_started):
    codes = ("SH999991", "SH999992")
    with pytest.raises(DataError, match="'train'.*'csi300'"):
        make(static_handler(small_frame(qlib_started, codes=codes)), STATIC["segments"], "csi300", embargo=2).panel()


def test_processors_of_ours_hold_no_panel_state():
    assert DropExtremeLabel().is_for_infer() is False and CSZScoreNorm("label").is_for_infer()
    assert issubclass(LeanFiveFeatures, FiveFeatures)


LATE_FIT = [{**INFER[0], "kwargs": {**INFER[0]["kwargs"], "fit_end_time": "2016-06-01"}}]
OPEN_FIT = [{**INFER[0], "kwargs": {**INFER[0]["kwargs"], "fit_end_time": None}}]


@pytest.mark.parametrize("options, said", [
    ({"handler": handler_config(infer_processors=LATE_FIT)}, "RobustZScoreNorm is fitted up to 2016-06-01, which reaches into"),
    ({"handler": handler_config(infer_processors=OPEN_FIT)}, "fitted up to the end of the data"),
    ({"aux": {"market": {**MARKET, "kwargs": {**MARKET["kwargs"], "fit_end_time": "2016-12-30"}}}}, "aux 'market' is fitted up to"),
    ({"aux": {"market": {**MARKET, "kwargs": {**MARKET["kwargs"], "instruments": ["SH000999"]}}}}, "no bars of .*SH000999"),
    ({"handler": handler_config(extra={"NEXT": "Ref($close,-1)/$close"})}, "1 trading days ahead: a leak"),
    ({"handler": handler_config(infer_processors=[{"class": "Fillna"}])}, "Fillna touches labels"),
    ({"handler": handler_config(infer_processors=[{"class": "CSRankNorm", "kwargs": {"fields_group": "label"}}])}, "CSRankNorm touches labels"),
])
def test_look_ahead_and_touched_labels_are_named_before_loading(options, said, no_loading):
    with pytest.raises((ConfigError, DataError), match=said):
        make(**options)


def test_statistics_up_to_the_last_day_before_the_next_segment_are_fine():
    fit = [{**INFER[0], "kwargs": {**INFER[0]["kwargs"], "fit_end_time": "2015-12-31"}}]
    assert make(handler_config(infer_processors=fit)).panel() is not None


class Shifts(Processor):
    """An infer processor without `fields_group` that moves every column."""

    def __call__(self, df):
        return df + 1.0


def test_labels_changed_by_an_infer_processor_are_noticed():
    with pytest.raises(ConfigError, match="infer processors .*Shifts.* changed [0-9]+ labels"):
        make(handler_config(infer_processors=[Shifts()])).panel()


@pytest.mark.parametrize("name, pair", [("train", ["2015-01-05", "2015-12-31"]), ("test", ["2016-06-01", "2016-12-30"])])
def test_a_segment_wider_than_what_was_loaded_is_an_error(name, pair):
    handler = handler_config(start_time="2015-04-01", end_time="2016-11-01")
    segments = {"train": ["2015-04-01", "2015-12-31"], "valid": SEGMENTS["valid"], "test": ["2016-06-01", "2016-10-31"], name: pair}
    with pytest.raises(ConfigError, match=f"segment '{name}' .*outside what was loaded"):
        make(handler, segments).panel()


class LoadsAtOnce(LeanFiveFeatures):
    """A handler that knows nothing of `init_data`."""

    def __init__(self, instruments, start_time, end_time, infer_processors, learn_processors):
        super().__init__(instruments=instruments, start_time=start_time, end_time=end_time, infer_processors=infer_processors,
                         learn_processors=learn_processors)


def test_a_handler_that_cannot_be_built_without_loading(made):
    config = {**handler_config(), "class": LoadsAtOnce}
    config.pop("module_path")
    panel = make(config).panel()
    np.testing.assert_array_equal(panel.label_raw, made.panel().label_raw)


def test_new_segments_after_the_frames_were_freed(small_market):
    dataset = make(keep_frames=False)
    dataset.config(segments={"train": ["2015-03-02", "2015-10-30"], "test": ["2016-06-01", "2016-12-30"]})
    panel = dataset.panel("train")
    assert panel.days[panel.span[1] - 1] <= np.datetime64("2015-10-30") and set(panel.segments) == {"train", "test"}


def test_a_loaded_handler_whose_label_processor_was_applied_is_accepted(small_market):
    """Qlib's own CSZScoreNorm turns its fields_group into a list when it is applied: still labels only."""
    from qlib.utils import init_instance_by_config
    handler = init_instance_by_config(handler_config(learn_processors=[{"class": "CSZScoreNorm", "kwargs": {"fields_group": "label"}}]))
    assert handler.learn_processors[0].fields_group == ["label"]
    PanelDatasetH(handler, SEGMENTS, universe=UNIVERSE, window=5)
    handler.learn_processors[0].fields_group = ["label", "feature"]
    with pytest.raises(ConfigError, match="touches features"):
        PanelDatasetH(handler, SEGMENTS, universe=UNIVERSE, window=5)
