"""Ensembles: averages against slow loops, where seeds go, members kept and recorded, what is refused."""
import copy
import pickle

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.model.linear import LinearModel
from qlib.data.dataset import DatasetH
from qlib.workflow import R

from qlib_ext.data.dataset import PanelDatasetH
from qlib_ext.errors import ConfigError, DataError, NotFittedError
from qlib_ext.models import ensemble as module
from qlib_ext.models.ensemble import Ensemble, average_scores
from qlib_ext.models.gru import GRU
from qlib_ext.models.member import model_class
from qlib_ext.models.rolling import RollingRetrain
from small_market import SEGMENTS, start_qlib
from small_panels import QUIET

BOOSTED = {"class": "LGBModel", "module_path": "qlib.contrib.model.gbdt",
           "kwargs": {"num_boost_round": 3, "num_leaves": 6, "subsample": 0.5, "subsample_freq": 1}}
SMALL_GRU = {"class": "GRU", "module_path": "qlib_ext.models.gru",
             "kwargs": {"hidden_size": 4, "num_layers": 1, "trainer": {**QUIET, "epochs": 1, "days_per_epoch": 10}}}
WINDOWED = {"class": "GRU", "module_path": "qlib.contrib.model.pytorch_gru_ts"}
LINEAR = {"class": "LinearModel", "module_path": "qlib.contrib.model.linear"}
FITTED: list = []


class Partial(LinearModel):
    """Scores tied to one feature; leaves out days and stocks, stops after some fits."""

    stop_after = 99

    def __init__(self, feature: int = 0, seed: int = 0, days: int = 0, stocks: int = 0, value: float = 1.0):
        super().__init__()
        self.feature, self.seed, self.days, self.stocks, self.value = feature, seed, days, stocks, value

    def fit(self, dataset, reweighter=None):
        if len(FITTED) >= self.stop_after:
            raise KeyboardInterrupt
        FITTED.append(self.seed)
        self.coef_, self.intercept_ = np.eye(5)[self.feature] * self.value, 0.0
        return self

    def predict(self, dataset, segment="test"):
        scores = super().predict(dataset, segment)
        days, stocks = (scores.index.get_level_values(name).unique().sort_values() for name in ("datetime", "instrument"))
        kept = scores.index.get_level_values("datetime").isin(days[self.days:])
        return scores[kept & scores.index.get_level_values("instrument").isin(stocks[self.stocks:])]


def partial(**kwargs) -> dict:
    return {"class": "Partial", "module_path": __name__, "kwargs": kwargs}


def rolling(model, **options) -> dict:
    return {"class": "RollingRetrain", "module_path": "qlib_ext.models.rolling", "kwargs": {"model": model, "step": 75, **options}}


def tracked_in(store, folder) -> None:
    start_qlib(store, exp_manager={"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
                                   "kwargs": {"uri": f"sqlite:///{folder}/tracking.db", "default_exp_name": "t"}})


@pytest.fixture(scope="module")
def tracking(tmp_path_factory):
    return tmp_path_factory.mktemp("tracking")


@pytest.fixture(autouse=True)
def qlib_here(store, tracking, tmp_path, monkeypatch):
    """Qlib with one tracking database (making one takes seconds)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path / "home"))
    FITTED.clear()
    tracked_in(store, tracking)


@pytest.fixture
def dataset(loaded):
    return DatasetH(handler=loaded, segments={**SEGMENTS, "train": ["2015-03-02", "2015-12-20"], "valid": ["2016-01-01", "2016-05-20"]})


@pytest.fixture
def said(monkeypatch):
    texts = []
    monkeypatch.setattr(module.logger, "warning", texts.append)
    return texts


# ---- averages ----------
def scores(seed=0, days=7, stocks=9, ties=True) -> pd.DataFrame:
    draw = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([pd.bdate_range("2023-01-02", periods=days), [f"S{k}" for k in range(stocks)]],
                                       names=["datetime", "instrument"])
    table = pd.DataFrame(draw.normal(3, 5, (len(index), 3)), index, ["a", "b", "c"])
    if ties:
        table["b"] = table["b"].round(-1)
        table.iloc[:stocks, 2] = 0.1                                   # a day on which c says nothing
    return table.drop(index[stocks:2 * stocks - 1])                    # a day with one stock


@pytest.mark.parametrize("average", ["rank", "z"])
def test_averages_against_a_slow_loop(average):
    table = scores()
    found = average_scores(table, average)
    for day, frame in table.groupby(level="datetime"):
        for pair in frame.index:
            parts = []
            for name in table:
                mine, all_of_day = frame.loc[pair, name], frame[name].to_numpy()
                if average == "rank":
                    below, ties = sum(all_of_day < mine), sum(all_of_day == mine)
                    parts.append((below + (ties - 1) / 2) / (len(frame) - 1) if len(frame) > 1 else 0.5)
                else:
                    spread = np.sqrt(np.mean((all_of_day - all_of_day.mean()) ** 2))
                    parts.append((mine - all_of_day.mean()) / spread if len(set(all_of_day)) > 1 else 0.0)
            assert found[pair] == pytest.approx(np.mean(parts), abs=1e-12)
    assert found.name == "score" and found.index.equals(table.index)
    assert found.between(0, 1).all() or average == "z"


def test_what_averages_do_not_depend_on():
    table = scores(ties=False)
    for average, change in (("rank", lambda values: np.exp(values / 10)), ("z", lambda values: 5 * values - 40)):
        other = table.assign(a=change(table["a"]))
        np.testing.assert_allclose(average_scores(other, average), average_scores(table, average), atol=1e-12)
    assert not np.allclose(average_scores(table.assign(a=-table["a"]), "rank"), average_scores(table, "rank"))
    constant = table.assign(a=np.float32(0.1), b=np.float32(0.1), c=np.float32(0.1))
    assert (average_scores(constant, "z") == 0).all() and (average_scores(constant, "rank") == 0.5).all()


# ---- seeds ----------
@pytest.mark.parametrize("model, place", [
    (SMALL_GRU, ["trainer", "seed"]), (BOOSTED, ["seed"]), (WINDOWED, ["seed"]), (partial(), ["seed"]),
    (rolling(BOOSTED), ["model", "kwargs", "seed"]), (rolling(SMALL_GRU), ["model", "kwargs", "trainer", "seed"]),
])
def test_seeds_go_where_the_model_takes_them(model, place):
    before = copy.deepcopy(model)
    made = Ensemble(model, seeds=[3, 8])
    assert list(made.members) == ["seed_3", "seed_8"] and model == before
    for name, config in made.members.items():
        found = config["kwargs"]
        for part in place:
            found = found[part]
        assert found == int(name[5:])
        del (config["kwargs"] if len(place) == 1 else _inside(config["kwargs"], place[:-1]))[place[-1]]
    same = {**before, "kwargs": before.get("kwargs", {})}
    assert made.members["seed_3"] == made.members["seed_8"] == same, "nothing else changes"


def _inside(found, place):
    for part in place:
        found = found[part]
    return found


def test_a_seed_key_is_used_and_must_be_taken():
    made = Ensemble(partial(seed=5), seeds=[1, 2], seed_key="feature")
    assert [config["kwargs"] for config in made.members.values()] == [{"seed": 5, "feature": 1}, {"seed": 5, "feature": 2}]
    for model, key, text in ((LINEAR, None, "where LinearModel takes its seed is not known"), (LINEAR, "seed", "does not take 'seed'"),
                             (SMALL_GRU, "trainer.sed", "'sed'"), (SMALL_GRU, "hidden_size.seed", "which holds no keywords"),
                             (BOOSTED, "num_leaves.seed", "which holds no keywords")):
        with pytest.raises(ConfigError, match=text):
            Ensemble(model, seeds=[1], seed_key=key)


# ---- fits ----------
@pytest.mark.parametrize("average", ["rank", "z"])
def test_an_ensemble_is_the_average_of_its_members(dataset, average):
    pytest.importorskip("lightgbm")
    from qlib.contrib.model.gbdt import LGBModel
    with R.start(experiment_name="t"):
        made = Ensemble(BOOSTED, seeds=[1, 2], average=average).fit(dataset)
        found = made.predict(dataset)
        members = {}
        for seed in (1, 2):
            model = LGBModel(**BOOSTED["kwargs"], seed=seed)
            model.fit(dataset)
            members[f"seed_{seed}"] = model.predict(dataset)
        again = Ensemble(BOOSTED, seeds=[1, 2], average=average).fit(dataset).predict(dataset)
        R.save_objects(**{"params.pkl": made})
        recorder = R.get_recorder()
        identifier = recorder.id
    table = pd.DataFrame(members).sort_index()
    assert not np.allclose(table["seed_1"], table["seed_2"])
    pd.testing.assert_series_equal(found, average_scores(table, average), check_exact=True)
    pd.testing.assert_series_equal(again, found, check_exact=True)
    recorder = R.get_recorder(recorder_id=identifier, experiment_name="t")
    assert {"seed_1.l2.train", "seed_2.l2.valid"} <= set(recorder.list_metrics())
    for name, raw in members.items():
        kept = recorder.load_object(f"members/pred_{name}.pkl")
        pd.testing.assert_series_equal(kept["score"], raw.sort_index(), check_names=False, check_exact=True)
    pd.testing.assert_series_equal(recorder.load_object("params.pkl").predict(dataset, "valid"), made.predict(dataset, "valid"))


def test_networks_and_rolling_retraining(loaded, store, tmp_path):
    tracked_in(store, tmp_path)
    panels = PanelDatasetH(handler=loaded, segments=dict(SEGMENTS), window=3)
    made = Ensemble(rolling(SMALL_GRU), seeds=[0, 4]).fit(panels)
    table = {}
    for seed in (0, 4):
        inner = copy.deepcopy(SMALL_GRU)
        inner["kwargs"]["trainer"]["seed"] = seed
        table[f"seed_{seed}"] = RollingRetrain(inner, step=75).fit(panels).predict(panels)
    found = made.predict(panels)
    pd.testing.assert_series_equal(found, average_scores(pd.DataFrame(table), "rank"), check_exact=True)
    pd.testing.assert_series_equal(pickle.loads(pickle.dumps(made)).predict(panels), found, check_exact=True)
    part = made.predict(panels, ("2016-08-01", "2016-08-31"))
    pd.testing.assert_series_equal(part, found.loc["2016-08-01":"2016-08-31"], check_exact=True, check_index_type=False)
    assert not (tmp_path / "tracking.db").exists(), "outside a run nothing is recorded"


def test_an_ensemble_inside_rolling_retraining(dataset):
    inner = {"class": "Ensemble", "module_path": "qlib_ext.models.ensemble",
             "kwargs": {"members": [partial(feature=0), partial(feature=3)], "average": "z"}}
    with R.start(experiment_name="t"):
        found = RollingRetrain(inner, step=75).fit(dataset).predict(dataset)
        identifier = R.get_recorder().id
    plain = Ensemble(**inner["kwargs"]).fit(dataset).predict(dataset)
    pd.testing.assert_series_equal(found, plain, check_exact=True)
    recorder = R.get_recorder(recorder_id=identifier, experiment_name="t")
    kept = recorder.load_object("tasks/task_01/members/pred_1_Partial.pkl")
    assert str(kept.index[-1][0].date()) == "2016-12-30" and kept.index[0][0] > pd.Timestamp("2016-09-01")


def test_finished_members_are_used_again(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Partial, "stop_after", 2)
    with pytest.raises(KeyboardInterrupt):
        Ensemble(partial(), seeds=[5, 6, 7]).fit(dataset)
    monkeypatch.setattr(Partial, "stop_after", 99)
    Ensemble(partial(), seeds=[5, 6, 7]).fit(dataset)
    assert FITTED == [5, 6, 7] and not list((tmp_path / "home" / "ensembles").iterdir())


def test_named_members_may_be_ensembles_of_seeds(dataset):
    """Seeds averaged inside, what is averaged outside: each under its own name in the recorder."""
    parts = {"first": partial(), "third": partial(feature=2)}
    seeds = {name: {"class": "Ensemble", "module_path": "qlib_ext.models.ensemble",
                    "kwargs": {"model": model, "seeds": [1, 2], "average": "z"}} for name, model in parts.items()}
    with R.start(experiment_name="t"):
        made = Ensemble(members=seeds, average="z").fit(dataset)
        found, identifier = made.predict(dataset), R.get_recorder().id
    inner = {name: Ensemble(**config["kwargs"]).fit(dataset).predict(dataset) for name, config in seeds.items()}
    pd.testing.assert_series_equal(found, average_scores(pd.DataFrame(inner), "z"), check_exact=True)
    recorder = R.get_recorder(recorder_id=identifier, experiment_name="t")
    for name in inner:
        kept = recorder.load_object(f"members/pred_{name}.pkl")["score"]
        pd.testing.assert_series_equal(kept, inner[name], check_exact=True)
    assert len(recorder.load_object("members/third/members/pred_seed_2.pkl"))


# ---- what members score ----------
def test_stocks_that_a_member_leaves_out(dataset, said):
    made = Ensemble(members=[partial(), partial(feature=2, stocks=4)]).fit(dataset)
    found = made.predict(dataset)
    stocks = made.models_["1_Partial"].predict(dataset)
    assert found.index.equals(stocks.sort_index().index) and len(said) == 1 and "pairs are left out" in said[0]
    assert found.groupby("datetime").size().max() < 90


def test_days_that_a_member_leaves_out_are_refused(dataset):
    with pytest.raises(DataError, match="'0_Partial' and '1_Partial' score different days, 2 of them, first 2016-06-01"):
        Ensemble(members=[partial(), partial(days=2)]).fit(dataset).predict(dataset)
    with pytest.raises(DataError, match="1_Partial: the score of .* is infinite"):
        Ensemble(members=[partial(), partial(value=1e308, feature=4)]).fit(dataset).predict(dataset)


def test_seeds_without_effect_are_named(dataset, said):
    Ensemble(partial(), seeds=[1, 2]).fit(dataset).predict(dataset)
    assert len(said) == 1 and "'seed_1' and 'seed_2' give the same scores" in said[0]


@pytest.mark.parametrize("options, text", [
    ({}, "either model and seeds, or members"), ({"model": BOOSTED, "members": [BOOSTED]}, "either"),
    ({"members": [BOOSTED], "seeds": [1]}, "either"), ({"model": BOOSTED}, "seeds=None"), ({"model": BOOSTED, "seeds": []}, r"seeds=\[\]"),
    ({"model": BOOSTED, "seeds": [1, 1]}, "name a seed twice"), ({"model": BOOSTED, "seeds": [0.5]}, "whole numbers"),
    ({"model": BOOSTED, "seeds": 3}, "seeds=3"), ({"members": []}, r"members=\[\]"), ({"members": [LINEAR, LINEAR]}, "member 1 .* same"),
    ({"model": BOOSTED, "seeds": [1], "average": "mean"}, "average='mean' is unknown"), ({"members": [{"class": 1}]}, "is no model"),
    ({"members": {"a": LINEAR, "b": LINEAR}}, "member b .* same"), ({"members": {"a/b": LINEAR}}, "'a/b' names files"),
    ({"members": [partial(sede=1)]}, "does not take 'sede' .did you mean 'seed'"),
])
def test_bad_options(options, text):
    with pytest.raises(ConfigError, match=text):
        Ensemble(**options)


def test_before_a_fit(dataset):
    with pytest.raises(NotFittedError):
        Ensemble(BOOSTED, seeds=[1]).predict(dataset)
    assert model_class(SMALL_GRU, "x") is GRU
