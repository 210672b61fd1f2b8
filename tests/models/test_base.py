"""The adapter: fitting, scores as Qlib wants them, pickles and checkpoints, interrupted fits, what the recorder gets."""
import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import qlib_ext
from qlib_ext.data.dataset import PanelDatasetH
from qlib_ext.errors import ConfigError, DataError, NotFittedError, ShapeError
from qlib_ext.home import home
from qlib_ext.models.base import TorchModel
from qlib_ext.models.gru import GRU
from qlib_ext.models.master import MASTER
from qlib_ext.training.rule import SupervisedRule
from small_market import SEGMENTS, start_qlib
from small_panels import QUIET, small_panel

ROOT = Path(qlib_ext.__file__).resolve().parents[1]
TRAINER = {**QUIET, "epochs": 3, "lr": 0.01, "seed": 2, "patience": None}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def gru(trainer=None, **options) -> GRU:
    return GRU(**{"hidden_size": 5, "num_layers": 2, "dropout": 0.3, "trainer": {**TRAINER, **(trainer or {})}, **options})


def weights(model) -> bytes:
    return b"".join(value.cpu().numpy().tobytes() for value in model.net_.state_dict().values())


def scores(model, panel=None, segment="test") -> np.ndarray:
    return model.predict_panel((panel or small_panel()).view(segment))[2]


# ---- keywords and sizes ----------
def test_unknown_keywords_list_the_valid_ones():
    with pytest.raises(ConfigError, match=r"GRU does not take \['hidden', 'lr'\].*d_feat.*hidden_size.*loss.*trainer"):
        GRU(hidden=3, lr=0.1)
    with pytest.raises(ConfigError, match=r"MASTER does not take \['n_heads'\].*beta.*d_model.*temporal_heads"):
        MASTER(n_heads=3)
    with pytest.raises(ConfigError, match=r"GRU's trainer does not take \['epoch'\].*'epochs'.*'seed'"):
        GRU(trainer={"epoch": 3})
    for options, said in (({"loss": "msee"}, "msee"), ({"loss": {"name": "mse", "tau": 1}}, "tau"), ({"rule": "mamml"}, "mamml"),
                          ({"trainer": {"optimizer": "adamm"}}, "adamm")):
        with pytest.raises(ConfigError, match=said):
            GRU(**options)


def test_constructors_store_and_build_nothing():
    model = gru()
    assert not hasattr(model, "net_") and not hasattr(model, "history_")
    trainer = {"epochs": 1}
    GRU(trainer=trainer)
    assert trainer == {"epochs": 1}


def test_sizes_follow_the_panel_or_are_insisted_on():
    model = gru({"epochs": 0}).fit_panel(small_panel())
    assert model.sizes_ == {"d_feat": 3} and model.net_.d_feat == 3
    gru({"epochs": 0}, d_feat=3).fit_panel(small_panel())
    with pytest.raises(ShapeError, match="d_feat=158.*dataset gives 3"):
        gru({"epochs": 0}, d_feat=158).fit_panel(small_panel())


def test_scoring_features_of_another_width(tmp_path):
    model = gru({"epochs": 1}).fit_panel(small_panel())
    with pytest.raises(ShapeError, match="3.*5"):
        scores(model, small_panel(features=5))
    model.save(tmp_path / "net.pt")
    with pytest.raises(ShapeError, match="net.pt.*checkpoint 3, dataset 5"):
        gru({"epochs": 0}, checkpoint=str(tmp_path / "net.pt")).fit_panel(small_panel(features=5))


def test_before_fit():
    with pytest.raises(NotFittedError, match="GRU.*fit"):
        scores(gru())
    with pytest.raises(NotFittedError, match="nothing to save"):
        gru().save("nowhere")


def test_what_fit_refuses():
    with pytest.raises(ConfigError, match="weighted"):
        gru().fit(small_panel(), reweighter=object())
    with pytest.raises(ConfigError, match="dict has no panel.*PanelDatasetH"):
        gru().fit({})
    panel = small_panel()
    del panel.segments["train"]
    with pytest.raises(ConfigError, match=r"'train'.*test.*valid"):
        gru().fit_panel(panel)


def test_a_fit_without_validation():
    panel = small_panel()
    del panel.segments["valid"]
    assert gru().fit_panel(panel).history_.best_epoch == 2


def test_training_and_validation_see_their_own_labels_and_days(monkeypatch):
    """Labels of the test span, and evaluation labels of the training span, do not move the weights."""
    expected = weights(gru().fit_panel(small_panel()))
    panel = small_panel()
    for day in range(24, 30):
        for table in (panel.label, panel.label_eval, panel.label_raw):
            table[panel.rows[day][panel.rows[day] >= 0]] = 7.0
    for day in range(18):
        panel.label_eval[panel.rows[day][panel.rows[day] >= 0]] = -3.0
    assert weights(gru().fit_panel(panel)) == expected
    panel.label[panel.rows[5][panel.rows[5] >= 0]] = 7.0
    assert weights(gru().fit_panel(panel)) != expected


# ---- scores ----------
def test_a_score_for_every_stock_of_the_universe_labelled_or_not():
    panel = small_panel()
    days, stocks, values = gru().fit_panel(panel).predict_panel(panel.view("test"))
    expected = [(day, stock) for day in range(24, 30) for stock in panel.stocks(day)]
    assert list(zip(days, stocks)) == expected and values.dtype == np.float32 and np.isfinite(values).all()
    nobody = small_panel(universe=np.zeros((30, 12), bool))
    assert [len(part) for part in gru({"epochs": 0}).fit_panel(nobody).predict_panel(nobody.view("test"))] == [0, 0, 0]


def test_dropout_is_off_in_scores():
    model = gru().fit_panel(small_panel())
    model.net_.train()
    assert scores(model).tobytes() == scores(model).tobytes()


# ---- pickle and checkpoint ----------
@pytest.mark.parametrize("dump_all", [False, True])
def test_a_pickle_scores_the_same(tmp_path, dump_all):
    model = gru().fit_panel(small_panel())
    model.to_pickle(tmp_path / "params.pkl", dump_all=dump_all)
    back = pickle.loads((tmp_path / "params.pkl").read_bytes())
    assert scores(back).tobytes() == scores(model).tobytes()
    assert back.history_ == model.history_ and back.run_card_ == model.run_card_ and back.options == model.options
    assert b"torch._" not in (tmp_path / "params.pkl").read_bytes(), "plain arrays: it opens whatever torch is there"
    assert weights(back.fit_panel(small_panel())) == weights(model), "and it can be fitted again"
    assert pickle.loads(pickle.dumps(gru())).net_options == gru().net_options


def test_a_pickle_from_a_machine_with_a_gpu_opens_here(monkeypatch, capsys):
    with monkeypatch.context() as here:
        here.setattr(torch.cuda, "is_available", lambda: True)
        here.setattr(torch.cuda, "device_count", lambda: 8)
        content = pickle.dumps(gru({"device": "cuda:7"}))
    back = pickle.loads(content)
    assert back.trainer.device_name == "auto" and "cuda:7" in capsys.readouterr().err


def test_a_checkpoint_gives_weights_back(tmp_path):
    model = gru().fit_panel(small_panel())
    model.save(tmp_path / "deep" / "net.pt")
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["net.pt"]
    stored = torch.load(tmp_path / "deep" / "net.pt", weights_only=True)
    assert stored["sizes"] == {"d_feat": 3} and json.loads(stored["run_card"])["seed"] == 2
    options = {"checkpoint": str(tmp_path / "deep" / "net.pt")}
    same = gru({"epochs": 0, "seed": 99}, **options).fit_panel(small_panel())
    assert weights(same) == weights(model) and scores(same).tobytes() == scores(model).tobytes()
    gru({"epochs": 0}, dropout=0.0, **options).fit_panel(small_panel())
    assert weights(gru({"epochs": 1}, **options).fit_panel(small_panel())) != weights(model), "training goes on from it"
    with pytest.raises(ConfigError, match=r"hidden_size.*5, 6"):
        gru({"epochs": 0}, hidden_size=6, **options).fit_panel(small_panel())
    with pytest.raises(ConfigError, match="holds a GRU"):
        MASTER(d_model=8, d_market=0, trainer={**QUIET, "epochs": 0}, **options).fit_panel(small_panel())


@pytest.mark.parametrize("make, said", [
    (lambda path: None, "does not exist"), (lambda path: path.write_bytes(b"no"), "cannot be read"),
    (lambda path: torch.save([1], path), "holds a list"),
    (lambda path: torch.save({"a": torch.ones(1)}, path), "TorchModel.save"),
])
def test_what_is_no_checkpoint(tmp_path, make, said):
    make(tmp_path / "net.pt")
    with pytest.raises(DataError, match=f"net.pt.*{said}"):
        gru({"epochs": 0}, checkpoint=str(tmp_path / "net.pt")).fit_panel(small_panel())


# ---- interrupted fits ----------
class Broken(Exception):
    pass


@pytest.fixture
def break_at(monkeypatch):
    """Break the n-th training step from now on off; None lets it run."""
    original, count = SupervisedRule.step, [0, None]

    def step(self, *arguments):
        count[0] += 1
        if count[0] == count[1]:
            raise Broken
        return original(self, *arguments)

    def arm(number):
        count[:] = [0, number]
        return count

    monkeypatch.setattr(SupervisedRule, "step", step)
    return arm


def fits(folder: Path) -> list:
    return sorted(folder.glob("fits/*"))


def test_an_interrupted_fit_goes_on_and_leaves_nothing(break_at, own_home):
    whole = gru().fit_panel(small_panel())
    assert fits(own_home) == [], "removed when finished"
    break_at(50)
    with pytest.raises(Broken):
        gru().fit_panel(small_panel())
    folder, = fits(own_home)
    (folder / ".state.pt.12345").write_bytes(b"half-written by a process that was killed")
    break_at(None)
    other = gru({"seed": 3}).fit_panel(small_panel())
    changed = small_panel()
    changed.label[::2] += 0.1
    third, fourth = gru().fit_panel(changed), gru(num_layers=1).fit_panel(small_panel())
    assert [m.history_.resumed_from for m in (other, third, fourth)] == [0, 0, 0], "other fits do not take it"
    assert fits(own_home) == [folder]
    resumed = gru({"progress": True, "threads": 1}).fit_panel(small_panel())
    assert resumed.history_.resumed_from == 2 == resumed.run_card_["resumed_from"]
    assert weights(resumed) == weights(whole) and scores(resumed).tobytes() == scores(whole).tobytes()
    assert fits(own_home) == []


@pytest.mark.parametrize("file", ["layers.py", "trainer.py", "sampler.py"])
def test_other_code_is_another_fit(break_at, monkeypatch, file):
    break_at(50)
    with pytest.raises(Broken):
        gru().fit_panel(small_panel())
    break_at(None)
    real = Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: real(self) + b"#" * (self.name == file))
        assert gru().fit_panel(small_panel()).history_.resumed_from == 0
    assert gru().fit_panel(small_panel()).history_.resumed_from == 2


def test_another_file_under_the_name_of_the_checkpoint_is_another_fit(break_at, tmp_path):
    gru({"epochs": 1}).fit_panel(small_panel()).save(tmp_path / "net.pt")
    break_at(50)
    with pytest.raises(Broken):
        gru(checkpoint=str(tmp_path / "net.pt")).fit_panel(small_panel())
    break_at(None)
    gru({"epochs": 1, "seed": 9}).fit_panel(small_panel()).save(tmp_path / "net.pt")
    assert gru(checkpoint=str(tmp_path / "net.pt")).fit_panel(small_panel()).history_.resumed_from == 0


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
import torch
torch.set_num_threads(1)
from test_base import gru, small_panel
from qlib_ext.training.rule import SupervisedRule
step, count = SupervisedRule.step, [0]
def killing(self, *arguments):
    count[0] += 1
    if count[0] == 50:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *arguments)
SupervisedRule.step = killing
gru().fit_panel(small_panel())
"""


def test_a_killed_process_is_taken_up_by_the_next(own_home):
    paths = [str(ROOT), str(Path(__file__).parent), str(Path(__file__).parents[1])]
    done = subprocess.run([sys.executable, "-c", KILLED.format(paths=paths)], env={**os.environ, "OMP_NUM_THREADS": "1"},
                          capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(fits(own_home)) == 1
    resumed = gru().fit_panel(small_panel())
    assert resumed.history_.resumed_from == 2 and fits(own_home) == []
    assert weights(resumed) == weights(gru({"resume": False}).fit_panel(small_panel()))


def test_the_same_fit_twice_at_once(break_at, own_home, monkeypatch, capsys):
    """The second one runs without a state file and disturbs nothing."""
    inner = []
    original = SupervisedRule.step

    def step(self, *arguments):
        if not inner:
            inner.append(None)
            inner[0] = gru().fit_panel(small_panel())
            torch.manual_seed(2 * 1_000_003)               # the inner fit drew from the same generator
            assert len(fits(own_home)) == 1
        return original(self, *arguments)

    monkeypatch.setattr(SupervisedRule, "step", step)
    outer = gru().fit_panel(small_panel())
    assert "the same fit is running" in capsys.readouterr().err
    assert weights(outer) == weights(inner[0]) and fits(own_home) == []


def test_without_resume_nothing_is_written(break_at, own_home):
    break_at(50)
    with pytest.raises(Broken):
        gru({"resume": False}).fit_panel(small_panel())
    assert not own_home.exists() and home() == own_home


# ---- with Qlib ----------
@pytest.fixture(scope="module")
def dataset(store):
    start_qlib(store)
    handler = {"class": "LeanFiveFeatures", "module_path": "small_market",
               "kwargs": {"instruments": "all", "start_time": "2015-01-01", "end_time": "2016-12-30", "drop_raw": True,
                          "learn_processors": [{"class": "CSZScoreNorm", "kwargs": {"fields_group": "label"}}]}}
    return PanelDatasetH(handler, SEGMENTS, universe="csi500", window=3, keep_frames=False)


ONE_EPOCH = {"epochs": 2, "days_per_epoch": 5, "lr": 1e-3}


def test_predictions_as_qlib_wants_them(store, dataset):
    start_qlib(store)
    model = gru(ONE_EPOCH).fit(dataset)
    found = model.predict(dataset)
    assert isinstance(found, pd.Series) and found.name == "score" and found.dtype == np.float32
    assert found.index.names == ["datetime", "instrument"] and found.index.is_monotonic_increasing and found.index.is_unique
    assert found.index.levels[0].dtype.kind == "M"
    panel = dataset.panel("test")
    expected = {(pd.Timestamp(panel.days[day]), panel.instruments[n]) for day in panel.scored_days() for n in panel.stocks(day)}
    assert set(found.index) == expected and str(found.index[-1][0].date()) == "2016-12-30"
    label = dataset.prepare("test", col_set="label", data_key="raw")
    assert label.reindex(found.index).notna().mean().item() > 0.8, "the index is that of Qlib's label frame"
    part = model.predict(dataset, ("2016-08-01", "2016-08-31"))
    pd.testing.assert_series_equal(part, found.loc["2016-08-01":"2016-08-31"], check_index_type=False)
    assert 20 < part.index.get_level_values(0).nunique() < 24


def test_run_card(store, dataset):
    start_qlib(store)
    card = gru(ONE_EPOCH).fit(dataset).run_card_
    panel = dataset.panel()
    assert card["model"] == "GRU" and card["seed"] == 2 and card["sizes"] == {"d_feat": 5} and card["epochs_run"] == 2
    assert {"python", "torch", "numpy", "qlib", "pandas", "qlib_ext"} <= set(card["versions"])
    assert card["versions"]["torch"] == torch.__version__ and card["options"]["trainer"]["lr"] == 1e-3
    assert card["spans"]["test"] == ["2016-06-01", "2016-12-30"] and card["spans"]["train"][0] == "2015-03-02"
    assert card["panel"]["store"] == json.loads((store / "qlib_ext_store.json").read_text())["fingerprint"] == panel.meta["store"]
    assert card["parameters"] == sum(p.numel() for p in gru(ONE_EPOCH).build_net({"d_feat": 5}).parameters())
    assert json.loads(json.dumps(card)) is not None and card["best_epoch"] in (0, 1)


def test_the_recorder_gets_metrics_weights_and_the_card(store, dataset, tmp_path, monkeypatch):
    from qlib.workflow import R
    monkeypatch.chdir(tmp_path)
    start_qlib(store, exp_manager={"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
                                   "kwargs": {"uri": f"sqlite:///{tmp_path}/tracking.db", "default_exp_name": "t"}})
    with R.start(experiment_name="t"):
        model = gru(ONE_EPOCH).fit(dataset)
        R.save_objects(**{"params.pkl": model})
        recorder = R.get_recorder()
        identifier = recorder.id
    recorder = R.get_recorder(recorder_id=identifier, experiment_name="t")
    history = {m.step: m.value for m in recorder.client.get_metric_history(identifier, "valid_rank_ic")}
    assert history == pytest.approx({k: row["valid_rank_ic"] for k, row in enumerate(model.history_.epochs)})
    assert {"train_loss", "valid_loss", "valid_ic", "valid_rank_ic", "seconds"} <= set(recorder.list_metrics())
    files = set(recorder.list_artifacts())
    assert {"run_card.json", "net.pt", "params.pkl"} <= files
    local = Path(recorder.get_local_dir())
    found = {file.name: file for file in local.rglob("*") if file.is_file()}
    assert json.loads(found["run_card.json"].read_text())["panel"]["store"] == model.run_card_["panel"]["store"]
    loaded = gru({"epochs": 0}, checkpoint=str(found["net.pt"])).fit_panel(dataset.panel())
    assert weights(loaded) == weights(model)
    back = recorder.load_object("params.pkl")
    pd.testing.assert_series_equal(back.predict(dataset), model.predict(dataset))
    assert not (tmp_path / "mlruns").exists()


def test_outside_a_run_no_recorder_is_made(store, dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start_qlib(store, exp_manager={"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
                                   "kwargs": {"uri": f"sqlite:///{tmp_path}/tracking.db", "default_exp_name": "t"}})
    gru(ONE_EPOCH).fit(dataset)
    assert not (tmp_path / "tracking.db").exists() and not (tmp_path / "mlruns").exists()


def test_a_subclass_names_its_network_only():
    assert issubclass(GRU, TorchModel) and GRU.net_class.__name__ == "GRUNet"


def test_an_online_run_goes_on_from_its_recorder(store, dataset, tmp_path, monkeypatch):
    """A run up to September; later the same workflow with the state it left and three months more."""
    from qlib.workflow import R
    monkeypatch.chdir(tmp_path)
    start_qlib(store, exp_manager={"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
                                   "kwargs": {"uri": f"sqlite:///{tmp_path}/tracking.db", "default_exp_name": "t"}})
    rule = {"name": "doubleadapt", "task_length": 10}
    dataset.config(segments={**SEGMENTS, "test": ["2016-06-01", "2016-09-14"]})
    try:
        with R.start(experiment_name="t"):
            model = gru(ONE_EPOCH, rule=rule).fit(dataset)
            first, recorder = model.predict(dataset), R.get_recorder()
        metrics = recorder.list_metrics()
    finally:
        dataset.config(segments=SEGMENTS)
    found = {file.name: file for file in Path(recorder.get_local_dir()).rglob("*") if file.is_file()}
    tasks = pd.read_csv(found["online_tasks.csv"])
    assert metrics["online_adaptation"] == pytest.approx(tasks["adaptation"][tasks["days"] > 0].mean()) and tasks["date"].is_monotonic_increasing
    assert "2016-06-01" in set(tasks["date"]) and {"support_loss", "query_loss", "query_loss_before"} <= set(tasks)
    later = gru(ONE_EPOCH, rule=rule, online_state=str(found["online_state.pt"])).fit(dataset)
    second = later.predict(dataset, ("2016-09-15", "2016-12-30"))
    whole = model.predict(dataset)                   # the fitted model over all days
    pd.testing.assert_series_equal(pd.concat([first, second]), whole, check_exact=True)
    begun = tasks["date"].iloc[-1]                   # the task in which the first run ended is scored anew
    pd.testing.assert_series_equal(later.predict(dataset), whole.loc[begun:], check_exact=True)
