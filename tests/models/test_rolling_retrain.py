"""Rolling retraining: equal to the plain model where it must be, blind to what comes after a task begins, resumable, recorded apart."""
import copy
import pickle
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.model.linear import LinearModel
from qlib.data.dataset import DatasetH, TSDatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.workflow import R

from qlib_ext.data import dataset as dataset_module
from qlib_ext.data.dataset import PanelDatasetH
from qlib_ext.data.universe import trading_calendar
from qlib_ext.errors import ConfigError, NotFittedError
from qlib_ext.models import member as member_module
from qlib_ext.models import rolling as module
from qlib_ext.models.rolling import RollingRetrain, with_segments
from qlib_ext.models.gru import GRU
from small_market import SEGMENTS, start_qlib
from small_panels import QUIET

LINEAR = {"class": "LinearModel", "module_path": "qlib.contrib.model.linear", "kwargs": {"include_valid": True}}
SMALL_GRU = {"class": "GRU", "module_path": "qlib_ext.models.gru",
             "kwargs": {"hidden_size": 4, "num_layers": 1, "trainer": {**QUIET, "epochs": 1, "days_per_epoch": 10, "seed": 1}}}
FITTED: list = []


class Watched(LinearModel):
    """Remembers datasets it was fitted on; fails when `stop_after` fits were made."""

    stop_after = 99

    def fit(self, dataset, reweighter=None):
        if len(FITTED) >= self.stop_after:
            raise KeyboardInterrupt
        FITTED.append(dataset)
        return super().fit(dataset, reweighter)


WATCHED = {"class": "Watched", "module_path": __name__}


@pytest.fixture(autouse=True)
def qlib_here(store, tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path / "home"))
    FITTED.clear()
    start_qlib(store)


@pytest.fixture
def plain(loaded):
    return DatasetH(handler=loaded, segments=dict(SEGMENTS))


@pytest.fixture
def paneled(loaded):
    return PanelDatasetH(handler=loaded, segments=dict(SEGMENTS), window=3)


def place(day) -> int:
    return int(np.searchsorted(trading_calendar(), np.datetime64(str(day)[:10])))


# ---- equalities ----------
@pytest.mark.parametrize("window", ["expanding", "sliding"])
def test_every_task_is_the_plain_model_on_its_own_segments(plain, loaded, window):
    model = RollingRetrain(LINEAR, step=60, window=window).fit(plain)
    assert len(model.tasks_) == len(model.models_) == 3
    calendar, parts = trading_calendar(), []
    test = range(place("2016-06-01"), place("2016-12-30") + 1)
    for number in range(3):
        mine, shift = test[number * 60:(number + 1) * 60], number * 60
        segments = {"train": (calendar[place("2015-03-02") + shift * (window == "sliding")], calendar[place("2016-01-01") - 7 + shift]),
                    "valid": (calendar[place("2016-01-01") + shift], calendar[test[0] - 7 + shift]),
                    "test": (calendar[mine[0]], calendar[mine[-1]])}
        alone = DatasetH(handler=loaded, segments={name: [str(day) for day in pair] for name, pair in segments.items()})
        assert model.tasks_[number] == {name: tuple(str(day) for day in pair) for name, pair in segments.items()}
        parts.append(LinearModel(include_valid=True).fit(alone).predict(alone))
    expected = pd.concat(parts)
    found = model.predict(plain)
    assert found.name == "score" and found.index.is_monotonic_increasing
    pd.testing.assert_series_equal(found, expected.sort_index(), check_names=False, check_exact=True)


def test_the_first_task_is_the_plain_model_of_this_package(paneled, capsys):
    model = RollingRetrain(SMALL_GRU, step=60).fit(paneled)
    alone = GRU(**SMALL_GRU["kwargs"]).fit(paneled)
    first, other = (m.net_.state_dict() for m in model.models_[:2])
    assert all(np.array_equal(value.numpy(), first[name].numpy()) for name, value in alone.net_.state_dict().items())
    assert any(not np.array_equal(value.numpy(), first[name].numpy()) for name, value in other.items())
    span = model.tasks_[0]["test"]
    pd.testing.assert_series_equal(model.predict(paneled, span), alone.predict(paneled, span), check_exact=True)
    assert model.predict(paneled).index.equals(alone.predict(paneled).index)
    assert "task 2 of 3: train 2015-03-02 to 2016-03-" in capsys.readouterr().out


def test_days_outside_belong_to_the_nearest_task(plain):
    model = RollingRetrain(LINEAR, step=100).fit(plain)
    before = model.predict(plain, "valid")
    pd.testing.assert_series_equal(before, model.models_[0].predict(plain, "valid"), check_names=False, check_index_type=False)
    shorter = DatasetH(handler=plain.handler, segments={**SEGMENTS, "test": ["2016-06-01", "2016-08-31"]})
    early = RollingRetrain(LINEAR, step=30).fit(shorter)
    assert len(early.models_) == 3
    pd.testing.assert_series_equal(early.predict(plain, ("2016-10-10", "2016-12-30")),
                                   early.models_[2].predict(plain, slice("2016-10-10", "2016-12-30")), check_names=False)
    with pytest.raises(ConfigError, match="'later' is not in the dataset"):
        early.predict(plain, "later")
    with pytest.raises(NotFittedError):
        RollingRetrain(LINEAR).predict(plain)


def test_a_pickle_scores_the_same(plain):
    model = RollingRetrain(LINEAR, step=60).fit(plain)
    pd.testing.assert_series_equal(pickle.loads(pickle.dumps(model)).predict(plain), model.predict(plain), check_exact=True)


def test_windows_of_qlib(loaded):
    """A model of Qlib that takes no segment, on Qlib's dataset of windows."""
    config = {"class": "GRU", "module_path": "qlib.contrib.model.pytorch_gru_ts",
              "kwargs": {"d_feat": 5, "hidden_size": 2, "num_layers": 1, "n_epochs": 1, "batch_size": 400, "n_jobs": 0, "GPU": -1,
                         "seed": 0}}
    segments = {"train": ["2016-03-01", "2016-04-20"], "valid": ["2016-05-03", "2016-05-20"], "test": ["2016-06-01", "2016-06-30"]}
    dataset = TSDatasetH(step_len=2, handler=loaded, segments=segments)
    model = RollingRetrain(config, step=15).fit(dataset)
    scores = model.predict(dataset)
    days = [day for day in trading_calendar() if "2016-06-01" <= str(day) <= "2016-06-30"]
    assert sorted(set(scores.index.get_level_values("datetime"))) == list(pd.DatetimeIndex(days)) and scores.notna().all()
    assert dataset.segments == segments


# ---- nothing is copied ----------
def test_tasks_share_handler_and_panel(paneled, monkeypatch):
    assert getattr(paneled, "_panel", None) is None
    made, build = [], PanelDatasetH._build
    monkeypatch.setattr(PanelDatasetH, "_build", lambda self: made.append(1) or build(self))
    seen, fit = [], GRU.fit
    monkeypatch.setattr(GRU, "fit", lambda self, dataset, **options: seen.append(dataset) or fit(self, dataset, **options))
    model = RollingRetrain(SMALL_GRU, step=60).fit(paneled)
    model.predict(paneled)
    assert len(made) == 1 and len(seen) == 3
    values = paneled.panel().blocks["stock"].values
    for task, dataset in zip(model.tasks_, seen):
        assert dataset.handler is paneled.handler and dataset.panel().blocks["stock"].values is values
        days, spans = paneled.panel().days, dataset.panel().segments
        if task is model.tasks_[-1]:      # shorter than a step: its model is fitted without a test
            assert "test" not in spans and np.count_nonzero((days >= np.datetime64(task["test"][0]))) < 60
        else:
            assert tuple(str(days[place]) for place in (spans["test"][0], spans["test"][1] - 1)) == task["test"]
    assert paneled.segments["test"] == tuple(map(pd.Timestamp, SEGMENTS["test"])) and paneled.panel().segments["train"][0] == 0


# ---- leaks ----------
def poisoned_handler(handler, day: str):
    """Features after the day changed, and every label that needs a price of the day or later."""
    calendar, twin = trading_calendar(), copy.copy(handler)
    vars(twin).update(vars(handler))
    known = pd.Timestamp(calendar[place(day) - 7])
    for name in ("_infer", "_learn"):
        frame = getattr(handler, name).copy()
        when = frame.index.get_level_values("datetime")
        draw = np.random.default_rng(5)
        for rows, group in ((when > day, "feature"), (when > known, "label")):
            frame.loc[rows, group] = draw.normal(0, 50, (rows.sum(), frame[group].shape[1])).astype(np.float32)
        setattr(twin, name, frame)
    return twin


def leaks(model, clean, poison) -> list[int]:
    """Tasks whose model or whose scores of the first day differ when the future of their first test day is another."""
    expected, found = model.fit(clean), []
    for number, task in enumerate(expected.tasks_):
        day = task["test"][0]
        other = RollingRetrain(model.model, step=model.step, window=model.window).fit(poison(day))
        pairs = [(expected, clean), (other, poison(day))]
        scores = [fitted.predict(data, (day, day)).to_numpy() for fitted, data in pairs]
        later = other.predict(poison(day), (other.tasks_[-1]["test"][1],) * 2)
        assert not np.array_equal(later, expected.predict(clean, (expected.tasks_[-1]["test"][1],) * 2)), "the poison works"
        if not np.array_equal(*scores):
            found.append(number)
    return found


@pytest.mark.parametrize("window", ["expanding", "sliding"])
def test_a_task_does_not_see_what_comes_after_it_begins(plain, loaded, monkeypatch, window):
    def poison(day):
        return DatasetH(handler=poisoned_handler(loaded, day), segments=dict(SEGMENTS))
    model = RollingRetrain(LINEAR, step=50, window=window)
    assert leaks(model, plain, poison) == []
    monkeypatch.setattr(module, "_label_offset_of", lambda handler: 5)
    assert leaks(model, plain, poison) == [0, 1, 2], "a look ahead read too short by one day is caught"


def test_nor_does_a_task_on_panels(loaded, monkeypatch):
    def dataset(poison_after=None):
        found = PanelDatasetH(handler=loaded, segments=segments, window=3)
        panel = found.panel()
        if poison_after is not None:
            first, draw = int(np.searchsorted(panel.days, np.datetime64(poison_after))), np.random.default_rng(5)
            rows = {name: np.unique(panel.rows[after:]) for name, after in (("values", first + 1), ("label", first - 6))}
            rows = {name: found[found >= 0] for name, found in rows.items()}
            new = {name: getattr(panel, name).copy() for name in ("label", "label_eval", "label_raw")}
            for table in new.values():
                table[rows["label"]] = draw.normal(0, 50, (len(rows["label"]), 1))
            block = copy.copy(panel.blocks["stock"])
            block.values = block.values.copy()
            block.values[rows["values"]] = draw.normal(0, 50, (len(rows["values"]), 5))
            found._panel = replace(panel, blocks={"stock": block}, **new)
        return found
    every_day = copy.deepcopy(SMALL_GRU)
    every_day["kwargs"]["trainer"]["days_per_epoch"] = None
    model = RollingRetrain(every_day, step=30)
    segments = {"train": ["2016-05-03", "2016-05-31"], "test": ["2016-06-01", "2016-08-10"]}
    assert leaks(model, dataset(), dataset) == []
    monkeypatch.setattr(dataset_module, "label_offset", lambda expressions: 5)
    assert leaks(model, dataset(), dataset) == [0, 1], "a look ahead read too short by one day is caught"


# ---- resuming ----------
def test_an_interrupted_fit_goes_on_behind_the_finished_tasks(plain, tmp_path, monkeypatch):
    expected = RollingRetrain(WATCHED, step=40).fit(plain).predict(plain)
    assert len(FITTED) == 4 and not list((tmp_path / "home" / "rolling").iterdir())
    FITTED.clear()
    monkeypatch.setattr(Watched, "stop_after", 2)
    with pytest.raises(KeyboardInterrupt):
        RollingRetrain(WATCHED, step=40).fit(plain)
    kept = sorted(file.name for file in (tmp_path / "home" / "rolling").glob("*/*.pkl"))
    assert kept == ["task_00.pkl", "task_01.pkl"] and len(FITTED) == 2
    monkeypatch.setattr(Watched, "stop_after", 99)
    said = []
    monkeypatch.setattr(member_module.logger, "warning", said.append)
    (next((tmp_path / "home" / "rolling").glob("*/task_01.pkl"))).write_bytes(b"half a file")
    found = RollingRetrain(WATCHED, step=40).fit(plain).predict(plain)
    assert len(FITTED) == 2 + 3, "only the first is used again: the second cannot be read"
    assert len(said) == 1 and "task_01.pkl cannot be read" in said[0] and "fitted anew" in said[0]
    pd.testing.assert_series_equal(found, expected, check_exact=True)
    assert not list((tmp_path / "home" / "rolling").iterdir())


@pytest.mark.parametrize("change", ["nothing", "step", "kwargs", "segments", "labels", "features"])
def test_another_fit_does_not_use_what_was_left(plain, loaded, monkeypatch, change):
    monkeypatch.setattr(Watched, "stop_after", 1)
    with pytest.raises(KeyboardInterrupt):
        RollingRetrain(WATCHED, step=60).fit(plain)
    monkeypatch.setattr(Watched, "stop_after", 99)
    config, step, handler, segments = dict(WATCHED), 60, loaded, dict(SEGMENTS)
    if change == "step":
        step = 61
    elif change == "kwargs":
        config["kwargs"] = {"include_valid": True}
    elif change == "segments":
        segments["train"] = ["2015-03-03", SEGMENTS["train"][1]]
    elif change in ("labels", "features"):
        handler = copy.copy(loaded)
        vars(handler).update(vars(loaded))
        handler._learn = loaded._learn.copy()
        column = ("label", "LABEL0") if change == "labels" else ("feature", "ROC5")
        handler._learn[column] *= 1.001
    FITTED.clear()
    RollingRetrain(config, step=step).fit(DatasetH(handler=handler, segments=segments))
    assert len(FITTED) == (2 if change == "nothing" else 3)


def test_values_beside_the_frames_decide_a_fit_too(loaded):
    """Two market states of the same dates: the frames are the same, the panels are not."""
    def key(seed):
        dataset = PanelDatasetH(handler=loaded, segments=dict(SEGMENTS), window=3)
        dataset.aux = {"market": RandomState(seed)}
        return member_module.fit_key(dataset, [LINEAR], 1)
    assert key(1) == key(1) != key(2)


class RandomState:
    """Two columns a day."""

    def __init__(self, seed: int):
        self.seed = seed

    def load(self, days):
        return np.random.default_rng(self.seed).normal(size=(len(days), 2)), ["a", "b"]


# ---- the recorder ----------
def test_tasks_are_recorded_apart(store, plain, paneled, tmp_path, monkeypatch):
    pytest.importorskip("lightgbm")
    monkeypatch.chdir(tmp_path)
    start_qlib(store, exp_manager={"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
                                   "kwargs": {"uri": f"sqlite:///{tmp_path}/tracking.db", "default_exp_name": "t"}})
    config = {"class": "LGBModel", "module_path": "qlib.contrib.model.gbdt", "kwargs": {"num_boost_round": 2, "num_leaves": 4, "seed": 0}}
    with R.start(experiment_name="t"):
        boosted = RollingRetrain(config, step=75).fit(plain)
        own = RollingRetrain(SMALL_GRU, step=75).fit(paneled)
        R.save_objects(**{"params.pkl": boosted})
        recorder = R.get_recorder()
        identifier = recorder.id
    recorder = R.get_recorder(recorder_id=identifier, experiment_name="t")
    for name in ("task_00.l2.train", "task_01.l2.valid", "task_01.valid_rank_ic"):
        history = recorder.client.get_metric_history(identifier, name)
        assert [m.step for m in history] == list(range(2 if "l2" in name else 1)), "one value a step: tasks do not mix"
    assert not {"l2.train", "valid_rank_ic"} & set(recorder.list_metrics())
    assert recorder.list_artifacts("tasks") == ["tasks/task_00", "tasks/task_01"]
    assert set(recorder.list_artifacts("tasks/task_01")) == {"tasks/task_01/net.pt", "tasks/task_01/run_card.json"}
    pd.testing.assert_series_equal(recorder.load_object("params.pkl").predict(plain), boosted.predict(plain), check_exact=True)
    assert own.predict(paneled).notna().all()


# ---- what is refused ----------
@pytest.mark.parametrize("options, said", [
    ({"step": 0}, "step=0"), ({"step": "60"}, "step='60'"), ({"window": "rolling"}, "window 'rolling' is unknown"),
    ({"embargo": -1}, "embargo=-1"), ({"model": "GRU"}, "'GRU' is no model"), ({"model": {"class": "GRU", "module": "x"}}, "is no model"),
    ({"model": {"class": "Linear", "module_path": "qlib.contrib.model.linear"}}, "no 'Linear' .did you mean 'LinearModel'"),
    ({"model": {**LINEAR, "kwargs": {"alfa": 1}}}, "LinearModel does not take 'alfa' .did you mean 'alpha'"),
    ({"model": {**SMALL_GRU, "kwargs": {"trainer": {"epoch": 1}}}}, r"GRU's trainer does not take \['epoch'\]"),
])
def test_bad_options(options, said):
    with pytest.raises(ConfigError, match=said):
        RollingRetrain(**{"model": LINEAR, **options})


def test_bad_datasets(plain, loaded):
    def fit(segments, **options):
        return RollingRetrain(LINEAR, **options).fit(DatasetH(handler=loaded, segments=segments))
    with pytest.raises(ConfigError, match=r"missing \['test'\]"):
        fit({name: SEGMENTS[name] for name in ("train", "valid")})
    with pytest.raises(ConfigError, match=r"missing \['train'\]"):
        fit({name: SEGMENTS[name] for name in ("test", "valid")})
    with pytest.raises(ConfigError, match="the test segment has 149 trading days, one task has 200|one task has 200"):
        fit(dict(SEGMENTS), step=200)
    with pytest.raises(ConfigError, match="embargo=5 is shorter than the label's look ahead of 6"):
        fit(dict(SEGMENTS), embargo=5)


def test_a_label_that_cannot_be_read_needs_an_embargo(plain, loaded):
    class Unread(DataHandlerLP):
        data_loader = None
    handler = copy.copy(loaded)
    vars(handler).update(vars(loaded))
    handler.data_loader = object()
    dataset = DatasetH(handler=handler, segments=dict(SEGMENTS))
    with pytest.raises(ConfigError, match="label expression of FiveFeatures cannot be read: give RollingRetrain `embargo"):
        RollingRetrain(LINEAR).fit(dataset)
    assert RollingRetrain(LINEAR, embargo=6).tasks(dataset) == RollingRetrain(LINEAR).tasks(plain)
    assert RollingRetrain(LINEAR, embargo=9).tasks(dataset)[0]["train"][1] < RollingRetrain(LINEAR).tasks(plain)[0]["train"][1]


def test_other_segments_of_a_dataset_stay(plain):
    own = with_segments(plain, {"test": ("2016-07-01", "2016-07-31")})
    assert own.handler is plain.handler and set(plain.segments) == {"train", "valid", "test"} and set(own.segments) == {"test"}
