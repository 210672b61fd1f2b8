"""`python -m qlib_ext check`: every kind of fault is found and named, several at once, without touching anything."""

import copy
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

from qlib_ext import check as module
from qlib_ext.__main__ import main as commands
from qlib_ext.check import check_workflow, examine_workflow
from qlib_ext.models.master import MASTERNet
from qlib_ext.models.master import _PUBLISHED as PUBLISHED
from qlib_ext.signatures import keywords

DAYS = pd.bdate_range("2018-01-01", "2024-12-31")
FIELDS = ("open", "high", "low", "close", "vwap", "volume", "amount", "factor", "change")


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """What `check` reads of a store: calendar, instruments, and which feature files exist (each holds one value)."""
    root = tmp_path_factory.mktemp("check") / "store"
    for part in ("calendars", "instruments", "features"):
        (root / part).mkdir(parents=True)
    (root / "calendars" / "day.txt").write_text("".join(f"{day:%Y-%m-%d}\n" for day in DAYS))
    codes = [f"SH6000{i:02d}" for i in range(4)]
    for name, members in {"all": codes, "csi1000": codes[:3], "csi300": codes[3:]}.items():
        (root / "instruments" / f"{name}.txt").write_text("".join(f"{c}\t2018-01-01\t2024-12-31\n" for c in members))
    for name, span in {"late": "2024-01-01\t2024-12-31", "later": "2018-02-01\t2024-12-31", "ends": "2018-01-01\t2024-10-31",
                       "almost": "2018-01-12\t2024-12-18"}.items():
        (root / "instruments" / f"{name}.txt").write_text(f"{codes[0]}\t{span}\n")
    for code in [*codes, "SH000852", "SH000300"]:
        (root / "features" / code.lower()).mkdir()
        for field in FIELDS:
            (root / "features" / code.lower() / f"{field}.day.bin").write_bytes(np.array([0, 1], "<f4").tobytes())
    return root


@pytest.fixture
def good(store, tmp_path):
    """A workflow without faults, as a dictionary to spoil."""
    return {
        "qlib_init": {"provider_uri": str(store), "region": "cn",
                      "exp_manager": {"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
                                      "kwargs": {"uri": f"sqlite:///{tmp_path}/home/tracking.db", "default_exp_name": "x"}}},
        "task": {
            "model": {"class": "MASTER", "module_path": "qlib_ext.models.master",
                      "kwargs": {"d_model": 16, "loss": {"name": "weighted_mse"}, "trainer": {"epochs": 1, "metric": "rank_ic"}}},
            "dataset": {"class": "PanelDatasetH", "module_path": "qlib_ext.data.dataset", "kwargs": {
                "universe": "csi1000", "window": 8,
                "aux": {"market": {"class": "MarketStateLoader", "module_path": "qlib_ext.data.loader", "kwargs": {
                    "instruments": ["SH000852"], "fit_start_time": "2018-01-01", "fit_end_time": "2021-12-31"}}},
                "segments": {"train": ["2018-01-01", "2021-12-31"], "valid": ["2022-01-01", "2022-12-31"],
                             "test": ["2023-01-01", "2024-12-31"]},
                "handler": {"class": "Alpha158", "module_path": "qlib_ext.data.handler", "kwargs": {
                    "instruments": "all", "start_time": "2018-01-01", "end_time": "2024-12-31", "fit_start_time": "2018-01-01",
                    "fit_end_time": "2021-12-31", "drop_raw": True,
                    "label": [["Ref($close, -6) / Ref($close, -1) - 1"], ["LABEL0"]],
                    "infer_processors": [{"class": "RobustZScoreNorm",
                                          "kwargs": {"fields_group": "feature", "clip_outlier": True}}],
                    "learn_processors": [{"class": "CSZScoreNorm", "module_path": "qlib_ext.data.processor",
                                          "kwargs": {"fields_group": "label", "universe": "csi1000"}}]}}}},
            "record": [
                {"class": "SignalRecord", "module_path": "qlib.workflow.record_temp",
                 "kwargs": {"model": "<MODEL>", "dataset": "<DATASET>"}},
                {"class": "PortAnaRecord", "module_path": "qlib.workflow.record_temp", "kwargs": {"config": {
                    "strategy": {"class": "TopkDropoutStrategy", "module_path": "qlib.contrib.strategy",
                                 "kwargs": {"signal": "<PRED>", "topk": 2, "n_drop": 1}},
                    "backtest": {"start_time": "2023-01-01", "end_time": "2024-12-27", "account": 100000000,
                                 "benchmark": "SH000852",
                                 "exchange_kwargs": {"deal_price": "close", "open_cost": 0.0005}}}}}]}}


def faults_of(config, tmp_path) -> list[str]:
    path = tmp_path / "workflow.yaml"
    with open(path, "w") as file:
        YAML(typ="safe", pure=True).dump(config, file)
    return [str(fault) for fault in check_workflow(path)]


def put(config: dict, place: str, value) -> dict:
    """A copy with one value changed; `place` is dotted, numbers index lists."""
    config = copy.deepcopy(config)
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = config
    for part in way:
        target = target[part]
    target[last] = value
    return config


KWARGS = "task.dataset.kwargs"
HANDLER = f"{KWARGS}.handler.kwargs"
BACKTEST = "task.record.1.kwargs.config.backtest"


def test_a_good_workflow_has_no_faults_and_leaves_nothing_behind(good, tmp_path):
    from qlib.config import C

    before = C.registered
    assert faults_of(good, tmp_path) == []
    assert C.registered == before and not (tmp_path / "home").exists()


@pytest.mark.parametrize("place, value, expected", [
    ("task.model.kwargs.d_modle", 8, "task.model.kwargs.d_modle: MASTER does not take 'd_modle' (did you mean 'd_model'?)"),
    ("task.model.kwargs.trainer.epohs", 8, "'epohs'"),
    ("task.model.kwargs.loss", "mae", "task.model.kwargs: MASTER refuses this (ConfigError"),
    ("task.model.class", "MASTR", "has no 'MASTR' (did you mean 'MASTER'?)"),
    ("task.model.module_path", "qlib_ext.models.mastr", "module 'qlib_ext.models.mastr' cannot be imported"),
    (f"{KWARGS}.windw", 9, "PanelDatasetH does not take 'windw' (did you mean 'window'?)"),
    (f"{HANDLER}.labl", 9, "Alpha158 does not take 'labl' (did you mean 'label'?)"),
    (f"{HANDLER}.learn_processors.0.kwargs.universe", "csi100",
     "universe 'csi100' is not in the store (did you mean 'csi1000'?)"),
    (f"{HANDLER}.infer_processors.0.class", "RobustZScore", "has no 'RobustZScore' (did you mean 'RobustZScoreNorm'?)"),
    (f"{HANDLER}.infer_processors.0.kwargs.clip", True, "RobustZScoreNorm does not take 'clip'"),
    (f"{HANDLER}.infer_processors.0.kwargs", {"fields_group": "feature", "clip_outlier": True, "fit_end_time": "2022-06-30"},
     "infer_processors[0].kwargs.fit_end_time: 2022-06-30 lies in a segment after train"),
    (f"{HANDLER}.label", [["Ref($clsoe, -6) / $close - 1"], ["LABEL0"]],
     "no instrument has field $clsoe (did you mean 'close'?)"),
    (f"{HANDLER}.label", [["Reff($close, -6) / $close - 1"], ["LABEL0"]],
     f"{HANDLER}.label: label expression 'Reff($close, -6) / $close - 1' cannot be parsed"),
    (f"{HANDLER}.label", [["Delta($close, -6) / $close"], ["LABEL0"]],
     f"{HANDLER}.label: label expression 'Delta($close, -6) / $close' has a window of negative length, whose look ahead Qlib "
     "does not count; write it with Ref"),
    (f"{HANDLER}.infer_processors.0.kwargs.fields_group", "label", "RobustZScoreNorm touches labels (fields_group 'label')"),
    (f"{HANDLER}.infer_processors.0.kwargs.fields_group", ["feature", "label"],
     "infer_processors[0]: RobustZScoreNorm touches labels (fields_group ['feature', 'label'])"),
    (f"{HANDLER}.infer_processors.0", {"class": "Fillna"}, "infer_processors[0]: Fillna touches labels (fields_group None)"),
    (f"{HANDLER}.infer_processors.0", {"class": "DropnaProcessor"},
     "infer_processors[0]: DropnaProcessor touches labels (fields_group None)"),
    (f"{HANDLER}.infer_processors.0", {"class": "ProcessInf", "kwargs": {}}, "infer_processors[0]: ProcessInf"),
    (f"{HANDLER}.instruments", "later",
     "universe 'later' has members from 2018-02-01 to 2024-12-31, segment 'train' is 2018-01-01"),
    (f"{HANDLER}.instruments", "ends", "universe 'ends' has members from 2018-01-01 to 2024-10-31, segment 'test' is 2023-01-01"),
    (f"{KWARGS}.universe", "ends", "segment 'test' is 2023-01-01"),
    (f"{KWARGS}.window", 0, f"{KWARGS}.window: 0 is no whole number of days"),
    (f"{KWARGS}.window", "8", f"{KWARGS}.window: '8' is no whole number of days"),
    (f"{KWARGS}.missing_rows", "ffil", f"{KWARGS}.missing_rows: 'ffil' is unknown; choose one of nan, ffill_bfill"),
    ("task.record.1.kwargs.config.strategy.kwargs.topk", "abc", "strategy.kwargs.topk: 'abc' is no whole number"),
    ("task.record.1.kwargs.config.strategy.kwargs.n_drop", 1.5, "strategy.kwargs.n_drop: 1.5 is no whole number"),
    ("task.record.1.kwargs.config.strategy.kwargs.risk_degree", "most", "strategy.kwargs.risk_degree: 'most' is no number"),
    ("task.record.1.kwargs.config.strategy.kwargs.hold_thresh", "1d", "strategy.kwargs.hold_thresh: '1d' is no whole number"),
    (f"{BACKTEST}.exchange_kwargs.open_cost", "5bp", "exchange_kwargs.open_cost: '5bp' is no number"),
    (f"{BACKTEST}.account", "much", "backtest.account: 'much' is no number"),
    (f"{KWARGS}.aux", {}, "MASTER refuses this dataset (ConfigError: MASTER needs the market's state"),
    (f"{KWARGS}.aux", {"state": {"class": "MarketStateLoader", "module_path": "qlib_ext.data.loader", "kwargs": {
        "instruments": ["SH000852"], "normalize": False}}},
     "MASTER refuses this dataset (ConfigError: MASTER needs the market's state"),
    ("task.model.kwargs.d_feat", 20, "(ShapeError: MASTER was asked for d_feat=20, the dataset gives 158)"),
    ("task.model.kwargs.d_market", 63, "(ShapeError: MASTER was asked for d_market=63, the dataset gives 21)"),
    ("task.model.kwargs.temporal_heads", 3, "d_model=16 must be divisible by the number of heads, 3"),
    ("task.model.kwargs.beta", 0, "the gate's temperature beta=0 must be positive"),
    ("task.model.kwargs.dropout", 1.5, "dropout=1.5 must lie in [0, 1)"),
    (f"{KWARGS}.window", 500, "ShapeError: windows of 500 days"),
    (f"{HANDLER}.instruments", "csi2000", "universe 'csi2000' is not in the store (did you mean 'csi1000'?)"),
    (f"{HANDLER}.instruments", ["SH600000", "SH699999"], "no bars of ['SH699999']"),
    (f"{HANDLER}.start_time", "2019-01-01", "segment 'train' is 2018-01-01 to 2021-12-31; load all of it"),
    (f"{HANDLER}.start_time", "soon", "start_time or end_time is no date"),
    (f"{HANDLER}.fit_end_time", "2022-03-31", f"{HANDLER}.fit_end_time: 2022-03-31 lies in a segment after train"),
    (f"{KWARGS}.handler.module_path", "qlib.contrib.data.handler", "drops its raw labels too"),
    (f"{HANDLER}.learn_processors.0.kwargs.fields_group", "feature", "touches features"),
    (f"{KWARGS}.universe", "late", "universe 'late' has no member in segment 'train'"),
    (f"{KWARGS}.aux.market.kwargs.instruments", ["SH000905"], "no bars of ['SH000905']"),
    (f"{KWARGS}.aux.market.kwargs.fit_end_time", "2023-06-30",
     "aux.market.kwargs.fit_end_time: 2023-06-30 lies in a segment after"),
    (f"{KWARGS}.aux.market.kwargs.path", "/nowhere/market.parquet", "there is no file /nowhere/market.parquet"),
    ("task.model.kwargs.checkpoint", "/nowhere/net.pt", "task.model.kwargs.checkpoint: there is no file /nowhere/net.pt"),
    ("task.model.kwargs.checkpoint", "", "task.model.kwargs.checkpoint: empty"),
    ("task.model.kwargs.rule", {"name": "doubleadapt", "task_length": 3}, "task.model.kwargs.rule: rule 'doubleadapt': task_length=3 is "
                                                                          "not above"),
    ("task.model.kwargs.rule", {"name": "incremental", "task_length": 4000}, "trading days, a task 4000; make the segment longer"),
    ("task.model.kwargs.rule", {"name": "maml", "lrr": 1}, "does not take ['lrr']"),
    ("task.model.kwargs.online_state", "/nowhere/online.pt", "task.model.kwargs.online_state: there is no file /nowhere/online.pt"),
    (f"{KWARGS}.segments.valid", ["2021-12-01", "2022-12-31"], "'train' and 'valid' overlap from 2021-12-01"),
    (f"{KWARGS}.segments.valid", ["2022-12-31", "2022-01-01"], "segments.valid: empty"),
    (f"{KWARGS}.segments.valid", ["2022-01-01", "2022-01-02"], "segments.valid: empty: no trading day"),
    (f"{KWARGS}.segments.valid", ["2022-01-01", "2022-32-01"], "are not dates"),
    (f"{KWARGS}.segments.valid", "2022", "is not a pair of dates"),
    (f"{KWARGS}.segments.test", ["2023-01-01", "2025-12-31"], "leaves the store's calendar (2018-01-01 to 2024-12-31)"),
    (f"{KWARGS}.segments", {"train": ["2018-01-01", "2021-12-31"], "valid": ["2022-01-01", "2024-12-31"]},
     "labels look 6 trading days past 2024-12-31, the data end on 2024-12-31; end it on 2024-12-23 or before"),
    (f"{KWARGS}.segments", {"train": ["2018-01-01", "2018-01-05"], "test": ["2018-01-08", "2024-12-31"]},
     "5 trading days, the embargo of 6 leaves none"),
    (f"{KWARGS}.segments", {}, "no segments"),
    (f"{KWARGS}.embargo", 5, "5 trading days, but the label looks 6 ahead: a leak"),
    (f"{KWARGS}.embargo", "none", "'none' is no number of trading days"),
    ("task.record.0.kwargs.model", "<MODL>", "unknown placeholder <MODL> (did you mean '<MODEL>'?)"),
    ("task.record.0.class", "SignlRecord", "has no 'SignlRecord' (did you mean 'SignalRecord'?)"),
    ("task.record.1.kwargs.config.strategy.kwargs.top", 3, "TopkDropoutStrategy does not take 'top'"),
    ("task.record.1.kwargs.config.strategy.kwargs", {"signal": "<PRED>", "topk": 2}, "TopkDropoutStrategy needs 'n_drop'"),
    (f"{BACKTEST}.acount", 1, "backtest does not take 'acount' (did you mean 'account'?)"),
    (f"{BACKTEST}.benchmark", "SH000905", "benchmark: no bars of SH000905"),
    (f"{BACKTEST}.end_time", "2024-12-31", "Qlib needs a day more after the last); end it on 2024-12-30 or before"),
    (f"{BACKTEST}.start_time", "2017-12-01", "2017-12-01 to 2024-12-27 does not fit the calendar (2018-01-01 to 2024-12-31"),
    (f"{BACKTEST}.start_time", "2021-01-01", "scores are made for the test segment 2023-01-01 to 2024-12-31"),
    (f"{BACKTEST}.exchange_kwargs.open_cst", 1, "Exchange does not take 'open_cst' (did you mean 'open_cost'?)"),
    (f"{BACKTEST}.exchange_kwargs.deal_price", "$twap", "the back-test needs field 'twap'"),
    ("task.record", [], "task.record: no records"),
    ("qlib_init.provider_uri", "/nowhere/store", "qlib_init.provider_uri: store /nowhere/store does not exist"),
    ("qlib_init.provder", "x", "Qlib does not know 'provder'"),
    ("qlib_init.exp_manager.class", "SqliteManager", "has no 'SqliteManager' (did you mean 'SqliteExpManager'?)"),
])
def test_each_fault_is_named(good, tmp_path, place, value, expected):
    found = faults_of(put(good, place, value), tmp_path)
    assert any(expected in fault for fault in found), found
    assert all(": " in fault and "; " in fault for fault in found)


def test_a_few_days_without_members_are_no_fault(good, tmp_path):
    assert faults_of(put(good, f"{HANDLER}.instruments", "almost"), tmp_path) == []


@pytest.mark.parametrize("expression, expected", [
    ("Ref($close, -1) / $close", "feature 'Ref($close, -1) / $close' looks 1 trading days ahead: a leak"),
    ("Delta($close, -3)", "feature expression 'Delta($close, -3)' has a window of negative length"),
    ("Ref($close, 1) / $close", None)])
def test_features_that_look_ahead(good, tmp_path, expression, expected):
    kwargs = good["task"]["dataset"]["kwargs"]["handler"]["kwargs"]
    loader = {"class": "QlibDataLoader", "kwargs": {"config": {"feature": [[expression, "$open"], ["A", "B"]],
                                                               "label": kwargs["label"]}}}
    processors = {key: kwargs[key] for key in ("infer_processors", "learn_processors")}
    processors["infer_processors"] = put(processors["infer_processors"][0], "kwargs", {
        "fields_group": "feature", "fit_start_time": "2018-01-01", "fit_end_time": "2021-12-31"}),
    config = put(good, f"{KWARGS}.handler", {"class": "DataHandlerLP", "module_path": "qlib.data.dataset.handler", "kwargs": {
        "instruments": "all", "start_time": "2018-01-01", "end_time": "2024-12-31", "data_loader": loader,
        **{key: list(value) for key, value in processors.items()}}})
    found = faults_of(config, tmp_path)
    assert found == [] if expected is None else any(expected in fault for fault in found), found


def published(path, d_feat=158, d_market=21, d_model=16):
    """A state dict under the authors' names."""
    net = MASTERNet(d_feat, d_market, d_model)
    names = {new: old for old, new in PUBLISHED}
    torch.save({names[name]: value for name, value in net.state_dict().items()}, path)
    return str(path)


def test_checkpoints_are_held_against_the_dataset(good, tmp_path):
    def found(path):
        return "\n".join(faults_of(put(good, "task.model.kwargs.checkpoint", str(path)), tmp_path))

    assert found(published(tmp_path / "fits.pt")) == ""
    assert "d_feat: checkpoint 20, dataset 158" in found(published(tmp_path / "narrow.pt", d_feat=20))
    assert "d_market: checkpoint 63, dataset 21" in found(published(tmp_path / "three.pt", d_market=63))
    assert "has d_model 32, the model was asked for 16" in found(published(tmp_path / "wide.pt", d_model=32))
    (tmp_path / "empty.pt").write_bytes(b"")
    assert "DataError: checkpoint" in found(tmp_path / "empty.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    assert "was not written by TorchModel.save" in found(tmp_path / "other.pt")


def test_the_width_of_ready_columns_comes_from_their_schema(good, tmp_path):
    path = tmp_path / "market.parquet"
    config = put(good, f"{KWARGS}.aux.market.kwargs", {"path": str(path), "normalize": False})
    config = put(config, "task.model.kwargs.d_market", 5)
    columns = [f"c{number}" for number in range(5)]
    frame = pd.DataFrame(np.zeros((len(DAYS), 5)), DAYS, columns)
    for table in (frame, frame.rename_axis("date"), frame.rename_axis("date").reset_index()):
        table.to_parquet(path)
        assert faults_of(config, tmp_path) == []
    frame.iloc[:, :4].to_parquet(path)
    assert any("d_market=5, the dataset gives 4" in fault for fault in faults_of(config, tmp_path))
    frame.assign(word="a").to_parquet(path)
    assert any("besides the day; not numeric: ['word']" in fault for fault in faults_of(config, tmp_path))
    path.write_bytes(b"no table")
    assert any("market.parquet is no Parquet file" in fault for fault in faults_of(config, tmp_path))


def joined(good: dict, **winner) -> dict:
    """The same workflow with the styles of recent winners beside the market state."""
    market = good["task"]["dataset"]["kwargs"]["aux"]["market"]
    span = {key: market["kwargs"][key] for key in ("fit_start_time", "fit_end_time")}
    style = {"class": "WinnerStyleLoader", "module_path": "qlib_ext.data.winner_loader", "kwargs": {**span, **winner}}
    return put(good, f"{KWARGS}.aux.market", {"class": "JoinedLoader", "module_path": "qlib_ext.data.winner_loader",
                                              "kwargs": {"parts": [market, style]}})


def test_joined_loaders_are_checked_part_by_part(good, tmp_path):
    assert faults_of(joined(good, universes=["csi300", "csi1000"]), tmp_path) == []
    place = f"{KWARGS}.aux.market.kwargs.parts"
    for winner, expected in (
            ({"preset": "ten"}, ": WinnerStyleLoader refuses this (ConfigError: WinnerStyleLoader: preset 'ten' is unknown"),
            ({"quantil": 0.2}, ".quantil: WinnerStyleLoader does not take 'quantil' (did you mean 'quantile'?)"),
            ({"fit_end_time": "2022-06-30"}, ".fit_end_time: 2022-06-30 lies in a segment after train"),
            ({"universes": ["csi100"]}, ".universes: universe 'csi100' is not in the store (did you mean 'csi"),
            ({"universes": "ends"}, ".universes: universe 'ends' has members from 2018-01-01 to 2024-10-31, segment 'test' is"),
            ({"snapshots": str(tmp_path / "none")}, f".snapshots: {tmp_path}/none holds no risk snapshots; correct `snapshots`")):
        found = faults_of(joined(good, **winner), tmp_path)
        assert len(found) == 1 and found[0].startswith(f"{place}[1].kwargs{expected}"), found
    found = faults_of(put(joined(good), f"{place}.0.kwargs.instruments", ["SH000905"]), tmp_path)
    assert len(found) == 1 and found[0].startswith(f"{place}[0].kwargs.instruments: no bars of ['SH000905']")
    found = faults_of(put(joined(good), place, []), tmp_path)
    assert len(found) == 1 and "JoinedLoader refuses this (ConfigError: JoinedLoader: parts must list loaders" in found[0]


def test_the_width_of_joined_loaders(good, tmp_path):
    """Known where all parts say theirs; the number of styles is the snapshots' business."""
    assert faults_of(put(joined(good), "task.model.kwargs.d_market", 99), tmp_path) == []
    assert any("dropout=1.5" in fault for fault in faults_of(put(joined(good), "task.model.kwargs.dropout", 1.5), tmp_path))
    config = joined(good)
    parts = config["task"]["dataset"]["kwargs"]["aux"]["market"]["kwargs"]["parts"]
    parts[1] = put(parts[0], "kwargs.instruments", ["SH000300"])
    assert faults_of(put(config, "task.model.kwargs.d_market", 42), tmp_path) == []
    assert any("d_market=41, the dataset gives 42" in fault
               for fault in faults_of(put(config, "task.model.kwargs.d_market", 41), tmp_path))


def test_filtered_features_are_counted(good, tmp_path):
    place = f"{HANDLER}.infer_processors"
    kept = [*good["task"]["dataset"]["kwargs"]["handler"]["kwargs"]["infer_processors"],
            {"class": "FilterCol", "kwargs": {"fields_group": "feature", "col_list": ["KMID", "ROC5", "MA5"]}}]
    config = put(put(good, place, kept), "task.model.kwargs.d_feat", 3)
    assert faults_of(config, tmp_path) == []
    config = put(config, "task.model.kwargs.d_feat", 4)
    assert any("d_feat=4, the dataset gives 3" in fault for fault in faults_of(config, tmp_path))


def test_our_models_need_a_panel(good, tmp_path):
    config = put(baseline(good), "task.model", good["task"]["model"])
    assert any("task.dataset: MASTER needs a dataset with panels" in fault for fault in faults_of(config, tmp_path))


def baseline(good: dict) -> dict:
    """The same workflow on Qlib's own dataset, which does not trim."""
    config = put(good, "task.dataset", {"class": "DatasetH", "module_path": "qlib.data.dataset", "kwargs": {
        key: good["task"]["dataset"]["kwargs"][key] for key in ("handler", "segments")}})
    return put(config, "task.model", {"class": "LGBModel", "module_path": "qlib.contrib.model.gbdt",
                                      "kwargs": {"loss": "mse", "num_leaves": 31, "colsample_bytree": 0.9, "subsample_freq": 1}})


def test_a_dataset_that_does_not_trim_needs_an_embargo(good, tmp_path):
    config = baseline(good)
    found = faults_of(config, tmp_path)
    assert len(found) == 2 and all("no embargo: labels look 6 trading days ahead" in fault for fault in found)
    # the advice is exact: the last days that are allowed pass, one day more does not
    ends = [fault.split("end it on ")[1].split(" ")[0] for fault in found]
    assert ends == ["2021-12-23", "2022-12-22"]
    for place, end in zip((f"{KWARGS}.segments.train.1", f"{KWARGS}.segments.valid.1"), ends):
        config = put(config, place, end)
    assert faults_of(config, tmp_path) == []
    found = faults_of(put(config, f"{KWARGS}.segments.train.1", "2021-12-24"), tmp_path)
    assert len(found) == 1 and "no embargo" in found[0]


def test_lightgbm_parameters_are_held_against_lightgbm(good, tmp_path):
    found = faults_of(put(baseline(good), "task.model.kwargs.num_leafs", 3), tmp_path)
    assert any("LGBModel does not take 'num_leafs' (did you mean 'num_leaf" in fault for fault in found)


def test_several_faults_are_listed_at_once(good, tmp_path):
    config = put(good, "task.model.kwargs.d_modle", 8)
    config = put(config, f"{HANDLER}.learn_processors.0.class", "CSZScorNorm")
    config = put(config, f"{KWARGS}.segments.valid", ["2021-12-01", "2022-12-31"])
    config = put(config, f"{KWARGS}.universe", "csi100")
    config = put(config, f"{BACKTEST}.benchmark", "SH000999")
    config = put(config, "task.record.0.kwargs.dataset", "<DATA>")
    found = "\n".join(faults_of(config, tmp_path))
    for part in ("d_modle", "CSZScorNorm", "overlap", "csi100", "SH000999", "<DATA>"):
        assert part in found


def test_qlibs_default_tracking_is_refused(good, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    config = copy.deepcopy(good)
    del config["qlib_init"]["exp_manager"]
    assert any("refuses to track into a folder of files" in fault for fault in faults_of(config, tmp_path))
    config = put(good, "qlib_init.exp_manager", {"class": "MLflowExpManager", "module_path": "qlib.workflow.expm", "kwargs": {
        "uri": "sqlite:///~/nowhere/tracking.db", "default_exp_name": "x"}})
    assert any("does not exist (sqlite neither makes it" in fault for fault in faults_of(config, tmp_path))


def test_templates_base_files_and_unset_variables(good, store, tmp_path, monkeypatch):
    yaml = YAML(typ="safe", pure=True)
    base = copy.deepcopy(good)
    del base["qlib_init"]["provider_uri"]
    with open(tmp_path / "base.yaml", "w") as file:
        yaml.dump(base, file)
    child = tmp_path / "child.yaml"
    child.write_text('BASE_CONFIG_PATH: base.yaml\nqlib_init:\n  provider_uri: "{{ MY_STORE }}"\n'
                     "task:\n  model:\n    kwargs:\n      d_model: {{ MY_SIZE }}\n")
    monkeypatch.delenv("MY_STORE", raising=False)
    monkeypatch.delenv("MY_SIZE", raising=False)
    found = "\n".join(map(str, check_workflow(child)))
    assert "set the environment variable MY_STORE" in found and "the environment variable MY_SIZE is not set" in found
    monkeypatch.setenv("MY_STORE", str(store))
    monkeypatch.setenv("MY_SIZE", "16")
    assert check_workflow(child) == []
    child.write_text("BASE_CONFIG_PATH: nobase.yaml\n")
    assert "base file 'nobase.yaml'" in str(check_workflow(child)[0])
    child.write_text("a: [1\n")
    assert "is not valid YAML" in str(check_workflow(child)[0])
    child.write_text("a: {{ x\n")
    assert "is not a valid template" in str(check_workflow(child)[0])
    assert "does not exist" in str(check_workflow(tmp_path / "none.yaml")[0])


def test_command_line(good, store, tmp_path, capsys):
    good_file, bad_file = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    yaml = YAML(typ="safe", pure=True)
    for path, config in ((good_file, good), (bad_file, put(good, "task.model.kwargs.d_modle", 8))):
        with open(path, "w") as file:
            yaml.dump(config, file)
    assert module.main([str(good_file)]) == 0
    assert capsys.readouterr().out == f"{good_file}: OK\n"
    assert module.main([str(good_file), str(bad_file)]) == 1
    out = capsys.readouterr().out
    assert f"{bad_file}: 1 fault\n" in out and "did you mean 'd_model'" in out
    base = tmp_path / "_base.yaml"
    base.write_text("qlib_init:\n  region: cn\ntask:\n  dataset:\n    kwargs: {}\n")
    assert module.main([str(base), str(good_file)]) == 0
    assert f"{base}: only a base for workflows" in capsys.readouterr().out
    assert module.main(["--store", str(store)]) == 0
    assert module.main(["--store", str(tmp_path / "none")]) == 1
    for command in (["qlib_ext", "check"], ["qlib_ext.check"]):
        done = subprocess.run([sys.executable, "-m", *command, str(tmp_path / "none.yaml")], capture_output=True, text=True)
        assert done.returncode == 1 and "does not exist" in done.stdout, done.stderr


def test_what_degrades_is_a_warning(good, store, tmp_path, capsys):
    """Fields that a stand-in or a constant replaces do not fail the check, and are named."""
    thin = tmp_path / "thin"
    shutil.copytree(store, thin)
    for file in [*thin.rglob("vwap.day.bin"), *thin.rglob("amount.day.bin")]:
        file.unlink()
    path = tmp_path / "w.yaml"
    with open(path, "w") as file:
        YAML(typ="safe", pure=True).dump(good, file)
    assert examine_workflow(path) == ([], [])
    faults, warnings = examine_workflow(path, thin)  # another store than the file names
    text = "\n".join(map(str, warnings))
    assert faults == [] and "no instrument has field $vwap: VWAP0 would be NaN" in text
    assert "aux.market.kwargs.instruments: index SH000852 has no $amount in the store; $volume stands in for it" in text
    for file in thin.rglob("sh000852/volume.day.bin"):
        file.unlink()
    assert any("neither $amount nor $volume" in str(fault) for fault in examine_workflow(path, thin)[0])
    with open(path, "w") as file:
        YAML(typ="safe", pure=True).dump(put(good, "qlib_init.provider_uri", str(thin)), file)
    assert module.main([str(path)]) == 1
    out = capsys.readouterr().out
    assert "warning: task.dataset.kwargs.handler: no instrument has field $vwap" in out and out.endswith(": 1 fault\n")


def test_members_without_bars(good, store, tmp_path):
    """Some: a warning with their number; all: a fault, whose advice names fields of an instrument that has some."""
    thin = tmp_path / "thin"
    shutil.copytree(store, thin)
    path = tmp_path / "w.yaml"
    with open(path, "w") as file:
        YAML(typ="safe", pure=True).dump(good, file)
    shutil.rmtree(thin / "features" / "sh600000")
    for file in thin.rglob("volume.day.bin"):
        file.unlink()
    faults, warnings = (list(map(str, found)) for found in examine_workflow(path, thin))
    assert any("1 of 4 members of universe 'all' have no bars in the store: SH600000" in warning for warning in warnings)
    assert any("1 of 3 members of universe 'csi1000' have no bars" in warning for warning in warnings)
    assert any("has field $volume; the store has amount, change, close" in fault for fault in faults)
    assert not any("have no bars" in fault for fault in faults)
    for place in (thin / "features").glob("sh6*"):
        shutil.rmtree(place)
    faults = list(map(str, examine_workflow(path, thin)[0]))
    assert any("4 of 4 members of universe 'all' have no bars" in fault for fault in faults)
    assert any("the store has no file of these instruments" in fault for fault in faults)


@pytest.mark.parametrize("separator", [",", " "])
def test_a_malformed_instruments_file_is_a_fault(good, store, tmp_path, separator):
    spoilt = tmp_path / "spoilt"
    shutil.copytree(store, spoilt)
    (spoilt / "instruments" / "all.txt").write_text(separator.join(("SH600000", "2018-01-01", "2024-12-31\n")))
    found = faults_of(put(good, "qlib_init.provider_uri", str(spoilt)), tmp_path)
    assert [fault.split("; ")[0] for fault in found] == [
        f"{HANDLER}.instruments: instruments/all.txt, line 1: 'SH600000{separator}2018-01-01{separator}2024-12-31' is not code, "
        "first day and last day with tabs between (1 such lines)"]


def test_the_command_line_checks_against_the_store_it_names(good, store, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("QLIB_DATA", str(tmp_path / "nowhere"))
    path = tmp_path / "w.yaml"
    with open(path, "w") as file:
        YAML(typ="safe", pure=True).dump(put(good, "qlib_init.provider_uri", str(tmp_path / "nowhere")), file)
    assert module.main([str(path)]) == 1 and "nowhere does not exist" in capsys.readouterr().out
    assert module.main([str(path), "--store", str(store)]) == 0


def test_interrupting_leaves_no_traceback(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "main", interrupted)
    assert commands(["check", "w.yaml"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


class Base:
    def __init__(self, alpha, beta=1, **rest):
        self.rest = rest


class Forwarding(Base):
    def __init__(self, gamma=0, **kwargs):
        self.delta = kwargs.pop("delta", None)
        super().__init__(3, **kwargs)


class Silent:
    def __init__(self, alpha=1, **kwargs):
        pass


class Refusing:
    def __init__(self, alpha=1, **kwargs):
        if kwargs:
            raise TypeError(kwargs)


def test_keywords_follow_what_constructors_do_with_theirs():
    assert keywords(Base).anything and keywords(Base).required == {"alpha"}
    forwarding = keywords(Forwarding)
    assert forwarding.names == {"gamma", "delta", "beta"} and not forwarding.required and forwarding.anything
    for closed in (Silent, Refusing):
        assert keywords(closed).unknown(["alpha", "alhpa"]) == ["alhpa"]
    assert keywords(np.full).required == {"shape", "fill_value"}
