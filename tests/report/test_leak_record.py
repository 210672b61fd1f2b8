"""The leak checks on fitted models of the small market: honest pipelines pass, and every check catches a leak planted for it."""
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from qlib.data.dataset.handler import DataHandlerLP
from qlib.utils import init_instance_by_config
from qlib.utils.exceptions import LoadObjectError

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report import leak_rebuild, leak_record, leak_variants
from qlib_ext.report.leak_checks import CHECKS, delayed
from qlib_ext.report.leak_record import LeakCheckRecord
from small_market import LABEL, SEGMENTS, build_store, start_qlib
from small_panels import QUIET

LINEAR = {"class": "LinearModel", "module_path": "qlib.contrib.model.linear"}
GRU = {"class": "GRU", "module_path": "qlib_ext.models.gru",
       "kwargs": {"hidden_size": 4, "num_layers": 1, "trainer": {**QUIET, "epochs": 1, "days_per_epoch": 20, "seed": 1, "resume": False}}}
LGB = {"class": "LGBModel", "module_path": "qlib.contrib.model.gbdt",
       "kwargs": {"num_boost_round": 20, "early_stopping_rounds": 10, "num_leaves": 8, "num_threads": 1, "seed": 0}}
ONLINE = {**GRU, "kwargs": {**GRU["kwargs"], "rule": {"name": "doubleadapt", "task_length": 15}}}
NEXT_DAY = "Ref($close,-2)/Ref($close,-1)-1"
BRIEF = {"cuts": 2, "days": 1, "days_per_epoch": 20, "min_pairs": 20}


def task(model: dict, kind: str = "DatasetH", extra: dict | None = None, infer: list = (), **options) -> dict:
    """A task on the handler of five features; `extra` features, more processors."""
    fill = {"class": "Fillna", "kwargs": {"fields_group": "feature"}}
    of_labels = {"module_path": "qlib_ext.data.processor", "kwargs": {"fields_group": "label"}}
    learn = [{"class": "DropnaLabel", "kwargs": {"fields_group": "label"}}, {"class": "CSZScoreNorm", **of_labels}]
    handler = {"class": "LeanFiveFeatures", "module_path": "small_market", "kwargs": {
        "instruments": "all", "start_time": "2015-03-02", "end_time": "2016-12-30", "extra": extra, "infer_processors": [fill, *infer],
        "learn_processors": learn}}
    kwargs = {"handler": handler, "segments": {name: list(span) for name, span in SEGMENTS.items()}, **options}
    module = "qlib_ext.data.dataset" if kind == "PanelDatasetH" else "qlib.data.dataset"
    return {"model": model, "dataset": {"class": kind, "module_path": module, "kwargs": kwargs}}


def leaky(name: str) -> dict:
    return {"class": name, "module_path": "leaky"}


class Kept(dict):
    """As much of a recorder as the checks read."""

    def load_object(self, name: str):
        if name not in self:
            raise LoadObjectError(name)
        return self[name]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build_store(tmp_path_factory.getbasetemp() / "small_market")


@pytest.fixture(scope="module", autouse=True)
def here(store):
    """Qlib on the store; a rebuild runs in this process, which shows the same and is faster."""
    start_qlib(store)
    MADE.clear()

    def run(folder, timeout):
        try:
            leak_rebuild.main(folder)
        finally:
            start_qlib(store)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(leak_rebuild, "_run", run)
        yield


MADE: dict = {}


def made(config: dict):
    """(recorder, model, dataset) of a task, fitted and scored as a workflow does; made once, the recorder is the caller's own."""
    key = json.dumps(config)
    if key not in MADE:
        MADE[key] = fitted(config)
    recorder, model, dataset = MADE[key]
    return Kept(recorder), model, dataset


def fitted(config: dict):
    model, dataset = init_instance_by_config(config["model"]), init_instance_by_config(config["dataset"])
    with leak_variants.unrecorded():
        model.fit(dataset)
        scores = model.predict(dataset)
    labels = dataset.prepare("test", col_set="label", data_key=DataHandlerLP.DK_R)
    return Kept({"task": config, "pred.pkl": scores.to_frame("score"), "label.pkl": labels}), model, dataset


def verdict(config: dict, check: str, **options):
    return LeakCheckRecord(*made(config), checks=[check], **{**BRIEF, **options}).verdicts()[check]


# ---- segment_end ----------
@pytest.mark.parametrize("config", [task(LINEAR), task(GRU, "PanelDatasetH", window=3),
                                    pytest.param(task(ONLINE, "PanelDatasetH", window=3), marks=pytest.mark.slow)],
                         ids=["linear", "gru", "online"])
def test_honest_scores_do_not_know_the_segments_end(config):
    recorder, model, dataset = made(config)
    before = pickle.dumps(model)
    found = LeakCheckRecord(recorder, model, dataset, checks="segment_end", **BRIEF).verdicts()["segment_end"]
    assert found.passed and found.figure <= 1e-6 and "of 148 days" in found.sample, found
    assert pickle.dumps(model) == before and dataset.segments["test"][1] in ("2016-12-30", pd.Timestamp("2016-12-30"))


def test_scores_over_the_whole_segment_are_caught():
    found = verdict(task(leaky("WholeSegment")), "segment_end")
    assert found.passed is False and found.figure > 1e-3 and "depend on later days" in found.what


@pytest.mark.parametrize("name, reason", [("Restless", "two predictions of the same days differ"), ("Deaf", "make predict follow")])
def test_scores_that_show_nothing_are_not_a_pass(name, reason):
    found = verdict(task(leaky(name)), "segment_end")
    assert found.passed is None and reason in found.what and found.what.startswith("not run")


# ---- shuffled_labels ----------
ROLLING = {"class": "RollingRetrain", "module_path": "qlib_ext.models.rolling", "kwargs": {"model": LINEAR, "step": 70}}
SEEDS = {"class": "Ensemble", "module_path": "qlib_ext.models.ensemble", "kwargs": {"model": LGB, "seeds": [0, 1]}}


@pytest.mark.parametrize("config, said", [
    (task(LINEAR), "LinearModel"), (task(LGB), "LGBModel (num_boost_round 20)"),
    (task(GRU, "PanelDatasetH", window=3, keep_frames=False), "GRU (epochs 1, days_per_epoch 20)"),
    pytest.param(task(LGB, "PanelDatasetH"), "LGBModel", marks=pytest.mark.slow),
    pytest.param(task(ROLLING), "LinearModel (its own sizes)", marks=pytest.mark.slow),
    pytest.param(task(SEEDS), "LGBModel (num_boost_round 20)", marks=pytest.mark.slow)],
    ids=["linear", "lightgbm", "gru", "lightgbm on panels", "rolling", "ensemble"])
def test_honest_models_learn_nothing_from_shuffled_labels(config, said):
    found = verdict(config, "shuffled_labels")
    assert found.passed and said in found.sample and found.figure < 0.1, found


@pytest.mark.parametrize("config", [
    task(LINEAR, extra={"NOW": LABEL}), task(leaky("Peeking")), task(leaky("Remembering")),
    pytest.param(task(GRU, "PanelDatasetH", infer=[leaky("LabelInside")], window=2), marks=pytest.mark.slow)],
    ids=["label as feature", "reads labels", "reads prices", "processor"])
def test_labels_that_reach_the_scores_are_caught(config):
    found = verdict(config, "shuffled_labels", shuffles=3)
    assert found.passed is False and found.figure > 1.3 * found.limit, found


def test_what_cannot_be_retrained_is_not_a_pass():
    recorder, model, dataset = made(task(LINEAR))
    del recorder["task"]
    found = LeakCheckRecord(recorder, model, dataset, checks=["shuffled_labels", "future_corrupted"]).verdicts()
    assert [one.passed for one in found.values()] == [None, None] and "give `task`" in found["shuffled_labels"].what
    own = LeakCheckRecord(recorder, model, dataset, checks="shuffled_labels", task=task(LINEAR), **BRIEF).verdicts()
    assert own["shuffled_labels"].passed
    recorder["label.pkl"] = None
    found = LeakCheckRecord(recorder, model, dataset, checks=["delayed_features", "too_good"]).verdicts()
    assert all(one.passed is None and "no raw labels" in one.what for one in found.values())


def test_all_labels_are_shuffled_and_nothing_else():
    dataset = init_instance_by_config(task(GRU, "PanelDatasetH", window=3, universe="csi1000")["dataset"])
    frames = {key: dataset.prepare("train", col_set=["feature", "label"], data_key=key) for key in ("learn", "infer", "raw")}
    other = leak_variants.with_shuffled_labels(dataset, 1)
    for key, true in frames.items():
        shown = other.prepare("train", col_set=["feature", "label"], data_key=key)
        assert shown["feature"].equals(true["feature"]) and shown.index.equals(true.index)
        pair = pd.concat({"a": true["label"].iloc[:, 0], "b": shown["label"].iloc[:, 0]}, axis=1).dropna()
        assert (pair["a"] != pair["b"]).mean() > 0.9
    true, shown = dataset.panel(), other.panel()
    assert shown.blocks is true.blocks and shown.rows is true.rows and dataset.panel() is true
    for day in true.scored_days()[::50]:
        for mine in (true.universe[day], ~true.universe[day]):
            rows = true.rows[day][mine & (true.rows[day] >= 0)]
            for name in ("label", "label_eval", "label_raw"):
                a, b = getattr(true, name)[rows, 0], getattr(shown, name)[rows, 0]
                assert np.array_equal(np.sort(a), np.sort(b), equal_nan=True) and np.array_equal(np.isnan(a), np.isnan(b))
    assert dataset.prepare("train", col_set=["feature", "label"], data_key="learn").equals(frames["learn"]), "the dataset itself stays"


def test_a_retraining_is_small_and_begins_anew():
    rule = {"name": "doubleadapt", "task_length": 15, "pretrain_epochs": 5}
    config = {**GRU, "kwargs": {**GRU["kwargs"], "checkpoint": "x.pt", "rule": rule,
                                "trainer": {"epochs": 40, "days_per_epoch": None, "lr": 0.1}}}
    found = leak_variants.smaller_model(config, 2, 30, {"trainer": {"lr": 0.5}, "dropout": 0.1})["kwargs"]
    assert found["trainer"] == {"epochs": 2, "days_per_epoch": 30, "lr": 0.5, "patience": None, "resume": False, "progress": False}
    assert "checkpoint" not in found and found["rule"]["pretrain_epochs"] == 1 and found["dropout"] == 0.1
    assert config["kwargs"]["trainer"]["epochs"] == 40 and leak_variants.smaller_model(LGB, 1, 9, {})["kwargs"]["num_boost_round"] == 20
    rolling = {**GRU, "kwargs": {"rule": "rolling_retrain"}}
    assert leak_variants.smaller_model(rolling, 1, 9, {})["kwargs"]["rule"] == "static"


# ---- delayed_features ----------
def test_a_look_at_the_next_day_collapses_with_a_delay():
    found = verdict(task(LINEAR, extra={"NEXT": NEXT_DAY}), "delayed_features")
    assert found.passed is False and abs(found.figure) < 0.2 and "next day's bar" in found.what, found
    honest = verdict(task(LINEAR), "delayed_features")
    assert honest.passed, honest


def test_old_scores_are_scores_of_old_inputs():
    """What the check takes for scores of inputs one day older, against a panel whose windows are one day older."""
    recorder, model, dataset = made(task(GRU, "PanelDatasetH", window=3))
    panel = dataset.panel()
    model = pickle.loads(pickle.dumps(model))
    older = np.concatenate([np.full((1, panel.lookup.shape[1]), len(panel.label) - 1, panel.lookup.dtype), panel.lookup[:-1]])
    delayed_dataset = leak_variants.with_test_end(dataset, pd.Timestamp("2016-12-30"))
    delayed_dataset._panel = replace(panel, lookup=older)
    scores = model.predict(delayed_dataset)
    shifted = delayed(recorder["pred.pkl"]["score"], panel.days, 1)
    both = pd.concat({"a": scores, "b": shifted}, axis=1, join="inner")
    assert len(both) > 0.95 * len(scores) and np.array_equal(both["a"], both["b"])


# ---- future_corrupted ----------
def test_a_store_with_a_noisy_future(store, tmp_path):
    calendar = (store / "calendars" / "day.txt").read_text().split()
    known = calendar.index("2016-08-10")
    copied = leak_rebuild.corrupted_copy(store, tmp_path / "copy", known, np.random.default_rng(0))
    names = {path.relative_to(store) for path in store.rglob("*") if path.is_file()}
    assert {path.relative_to(copied) for path in copied.rglob("*") if path.is_file()} == names
    bars, same = 0, 0
    for name in names:
        true, other = (store / name).read_bytes(), (copied / name).read_bytes()
        if name.name.removesuffix(".day.bin") not in leak_rebuild.BARS:
            assert true == other
            continue
        true, other = np.frombuffer(true, "<f4"), np.frombuffer(other, "<f4")
        later = max(int(known + 1 - true[0]) + 1, 1)
        assert np.array_equal(true[:later], other[:later], equal_nan=True) and np.array_equal(np.isnan(true), np.isnan(other))
        nonzero = np.isfinite(true[later:]) & (true[later:] != 0)
        same, bars = same + (true[later:] == other[later:])[nonzero].sum(), bars + nonzero.sum()
    assert bars > 50_000 and same < 10
    index = Path("features", "sh000300", "close.day.bin")
    assert (store / index).read_bytes() != (copied / index).read_bytes()


MARKET = {"market": {"class": "MarketStateLoader", "module_path": "qlib_ext.data.loader",
                     "kwargs": {"fit_start_time": "2015-03-02", "fit_end_time": "2015-12-31"}}}


def test_default_risk_snapshots_are_those_of_the_store():
    """A copy of the store has none, and making them would take longer than the run."""
    style, winner = ({"class": name, "module_path": f"qlib_ext.data.{module}", "kwargs": {"snapshots": folder} if folder else {}}
                     for name, module, folder in (("StyleLoader", "style_loader", "own"), ("WinnerStyleLoader", "winner_loader", None)))
    joined = {"class": "JoinedLoader", "module_path": "qlib_ext.data.winner_loader", "kwargs": {"parts": [winner, MARKET["market"]]}}
    config = task(GRU, "PanelDatasetH", aux={"style": style, "market": joined})["dataset"]
    asked = SimpleNamespace(snapshots=None, _opened=lambda: SimpleNamespace(folder=Path("default")))
    dataset = SimpleNamespace(aux={"style": SimpleNamespace(snapshots="own"), "market": SimpleNamespace(parts=[asked])})
    aux = leak_rebuild._with_snapshots(leak_rebuild._ending(config, pd.Timestamp("2016-08-10")), dataset)["kwargs"]["aux"]
    assert aux["market"]["kwargs"]["parts"][0]["kwargs"] == {"snapshots": "default"} and aux["style"]["kwargs"] == {"snapshots": "own"}
    assert aux["market"]["kwargs"]["parts"][1] == MARKET["market"] and winner["kwargs"] == {}, "the task's own configuration stays"


@pytest.mark.parametrize("config", [
    task(LINEAR), pytest.param(task(ONLINE, "PanelDatasetH", window=3, universe="csi1000", keep_frames=False, aux=MARKET),
                               marks=pytest.mark.slow)], ids=["linear", "online"])
def test_honest_inputs_do_not_know_the_future(config):
    found = verdict(config, "future_corrupted", days=1)
    assert found.passed and found.figure == 0 and " input values of later days change" in found.what, found


@pytest.mark.parametrize("config, said", [
    (task(LINEAR, extra={"NEXT": "Ref($close,-1)/$close-1"}), "the inputs NEXT of days"),
    (task(LINEAR, infer=[leaky("WholeSpan")]), "the inputs KMID, ROC5, STD5, VOL, TURN of days"),
    pytest.param(task(GRU, "PanelDatasetH", infer=[leaky("WholeSpan")], window=2), "the inputs KMID, ROC5, STD5", marks=pytest.mark.slow),
    pytest.param(task(leaky("Remembering")), "the scores of days", marks=pytest.mark.slow)],
    ids=["feature", "all dates", "all dates, panel", "prices"])
def test_the_future_is_caught(config, said):
    found = verdict(config, "future_corrupted", days=1)
    assert found.passed is False and said in found.what and found.figure > 0, found


@pytest.mark.slow
def test_noise_that_reaches_nothing_is_not_a_pass(monkeypatch):
    monkeypatch.setattr(leak_rebuild, "BARS", ())
    monkeypatch.setattr(leak_rebuild, "field_names", lambda expressions: set())
    found = verdict(task(LINEAR), "future_corrupted", days=1)
    assert found.passed is None and "reached no input" in found.what


# ---- too_good ----------
def test_a_score_above_the_best_possible_one_is_caught(tmp_path, monkeypatch):
    recorder, model, dataset = made(task(LINEAR))
    gone = LeakCheckRecord(recorder, model, dataset, checks="too_good").verdicts()["too_good"]
    assert gone.passed is None and gone.what.startswith("not run: the market is generated")
    recorder["pred.pkl"] = recorder["label.pkl"].rename(columns=lambda name: "score")
    record = LeakCheckRecord(recorder, model, dataset, checks="too_good", **BRIEF)
    days, codes = (recorder["label.pkl"].index.get_level_values(name) for name in ("datetime", "instrument"))
    expected = recorder["label.pkl"].iloc[:, 0].to_numpy() + np.random.default_rng(0).normal(0, 0.3, len(days))
    truth = pd.DataFrame({"date": days, "instrument": codes, "expected": expected}).astype({"instrument": "category"})
    truth.to_parquet(tmp_path / "truth.parquet")
    monkeypatch.setattr(leak_record, "truth_paths", lambda store: (None, tmp_path / "truth.parquet"))
    monkeypatch.setattr(leak_record, "_store", lambda store: ({"generated": True}, {"switches": {"null": False}}))
    found = record.verdicts()["too_good"]
    assert found.passed is False and found.figure == pytest.approx(1) and 0.1 < found.limit < 0.3 and "true expectation" in found.what
    monkeypatch.setattr(leak_record, "_store", lambda store: (None, None))
    assert "above 0.1000 (0.10, more than labels over 5 days" in record.verdicts()["too_good"].what
    honest, *rest = made(task(LINEAR))
    assert LeakCheckRecord(honest, *rest, checks="too_good", **BRIEF).verdicts()["too_good"].passed


# ---- the record ----------
@pytest.mark.parametrize("options, said", [
    ({"checks": ["segment_ends"]}, "did you mean 'segment_end'"), ({"checks": []}, "choose from"), ({"on_fail": "stop"}, "mark"),
    ({"check": "too_good"}, "valid keywords: .*'checks'"), ({"days": 0}, "days"), ({"cuts": "3"}, "cuts"), ({"seed": -1}, "seed"),
    ({"tolerance": -1.0}, "tolerance")])
def test_bad_options_are_named_before_any_work(options, said):
    with pytest.raises(ConfigError, match=said):
        LeakCheckRecord(None, None, None, **options)


def test_check_knows_the_keywords():
    from qlib_ext.signatures import keywords
    taken = keywords(LeakCheckRecord)
    assert taken.unknown({"check": 1, "days": 2}) == ["check"] and taken.required == {"recorder", "model", "dataset"}


def test_a_failed_check_is_saved_logged_and_may_stop_the_run(monkeypatch, caplog, capsys):
    recorder, model, dataset = made(task(leaky("Peeking")))
    kept, metrics, tags = {}, {}, {}
    monkeypatch.setattr(leak_record, "save", lambda recorder, folder, tables, kind, facts: kept.update({folder: (tables, kind, facts)}))
    monkeypatch.setattr(leak_record, "run_facts", lambda recorder: ({"generated": False, "best_possible_ics": None}, None))
    recorder.log_metrics, recorder.set_tags = lambda **values: metrics.update(values), lambda **values: tags.update(values)
    checks = ["shuffled_labels", "delayed_features"]
    with pytest.raises(DataError, match="leak check shuffled_labels failed: Trained on labels"):
        LeakCheckRecord(recorder, model, dataset, checks=checks, on_fail="raise", **BRIEF).generate()
    tables, kind, facts = kept["leak_check"]
    frame = tables["checks"].frame
    assert kind == "leaks" and frame["passed"].tolist() == [False, True] and list(frame.index) == checks
    assert facts["scored"] == ["2016-06-01", "2016-12-22"]
    assert metrics["leak.shuffled_labels"] == 0 and metrics["leak.delayed_features"] == 1 and metrics["leak.shuffled_labels.figure"] > 0.9
    assert tags == {"qlib_ext.leak_check": "failed", "qlib_ext.leak_check_failed": "shuffled_labels"}
    assert "shuffled_labels   FAILED" in capsys.readouterr().out
    del recorder["pred.pkl"]
    with pytest.raises(DataError, match="list SignalRecord before"):
        LeakCheckRecord(recorder, model, dataset).generate()


@pytest.mark.slow
def test_in_a_workflow(store, tmp_path):
    """`qrun` with all checks, each rebuild in a process of its own; the run ends with its results and one recorder."""
    from qlib_ext.report.runs import Runs
    from qlib_ext.report.saved import Artefacts, load
    config = task(GRU, "PanelDatasetH", window=3, universe="csi1000", keep_frames=False)
    uri, here = f"sqlite:///{tmp_path}/tracking.db", Path(__file__).resolve().parent
    config["record"] = [{"class": "SignalRecord", "kwargs": {}},
                        {"class": "LeakCheckRecord", "module_path": "qlib_ext.report.leak_record", "kwargs": {"days": 1, "min_pairs": 20}}]
    manager = {"class": "SqliteExpManager", "module_path": "qlib_ext.tracking", "kwargs": {"uri": uri, "default_exp_name": "leaks"}}
    start = {"provider_uri": str(store), "region": "cn", "kernels": 1, "exp_manager": manager}
    (tmp_path / "run.yaml").write_text(json.dumps({"qlib_init": start, "experiment_name": "leaks", "task": config}))
    (tmp_path / "elsewhere").mkdir()
    path = os.pathsep.join([str(here), str(here.parent), str(here.parents[1])])
    variables = {**os.environ, "PYTHONPATH": path, "QLIB_EXT_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "qlib.cli.run", str(tmp_path / "run.yaml")], cwd=tmp_path / "elsewhere", env=variables,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = Runs(uri)
    assert len(runs.finished()) == len(runs.client.search_runs(list(runs.experiments))) == 1, "retrainings leave no runs"
    run = runs.named("leaks")
    saved = load(Artefacts(runs, run), "leak_check")
    frame = saved.tables["checks"].frame
    assert list(frame.index) == list(CHECKS) and frame["passed"].tolist()[:4] == [True] * 4, frame.to_string()
    assert frame.loc["too_good", "what"].startswith("not run: the market is generated") and saved.facts["universe"] == "csi1000"
    assert run.data.metrics["leak.future_corrupted"] == 1 and run.data.tags["qlib_ext.leak_check"] == "not all run"
    assert "Leak checks (sampled)" in done.stdout and not list((tmp_path / "elsewhere").iterdir())
