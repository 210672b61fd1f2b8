"""Every workflow resolves on a small market, and the main one runs to its end from another folder with tiny sizes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_market import start_qlib

from qlib_ext.check import check_workflow, examine_workflow
from qlib_ext.models.master import MASTERNet
from qlib_ext.models.master import _PUBLISHED as PUBLISHED
from qlib_ext.report.compare import Runs, compare
from qlib_ext.report.saved import Artefacts
from qlib_ext.store.metadata import METADATA_FILE, READABLE_FORMATS
from qlib_ext.store.snapshots import SnapshotStore
from qlib_ext.workflow import load_workflow

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted(path for path in (ROOT / "workflows").glob("*.yaml") if not path.name.startswith("_"))
AI = [f"ai_enhanced_{index}_{kind}" for index in ("csi500", "csi1000") for kind in ("wide", "strict")]
INTRADAY = ("gru_nn_all", "res_attn_lstm_all", "multi_granularity_all", "hf_factors_all", *AI)
APART = ("deep_risk", "decomp_gru_top200", "decomp_gru_etf", *INTRADAY)
PORTFOLIOS = [path for path in WORKFLOWS if path.stem not in APART]     # those that trade against one index
SIZES = ("QLIB_EXT_D_MODEL", "QLIB_EXT_EPOCHS", "QLIB_EXT_LR", "QLIB_EXT_PATIENCE", "QLIB_EXT_DROPOUT", "QLIB_EXT_DAYS_PER_EPOCH",
         "QLIB_EXT_SEED", "QLIB_EXT_SEEDS", "QLIB_EXT_HIDDEN", "QLIB_EXT_WINDOW", "QLIB_EXT_DEVICE", "QLIB_EXT_HOME",
         "QLIB_EXT_PRETRAIN_EPOCHS", "QLIB_DATA", *(f"QLIB_EXT_{name}" for name in ("START", "TRAIN", "VALID", "TEST", "BACKTEST", "LABELS",
                                                                                    "BLOCKS", "INTRADAY", "FACTORS", "RULE")))
STOCKS, INDICES = 30, ("SH000300", "SH000905", "SH000852")
ETFS = ("SH512001", "SH512002", "SZ159003")


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """A Qlib store of random walks with the dates of the workflows: 30 stocks, three indices of the same members, ETFs of ten each."""
    root = tmp_path_factory.mktemp("workflows") / "store"
    days = pd.bdate_range("2017-09-01", "2024-12-31")
    codes = [f"SH60{i:04d}" for i in range(STOCKS)]
    for part in ("calendars", "instruments"):
        (root / part).mkdir(parents=True)
    (root / "calendars" / "day.txt").write_text("".join(f"{day:%Y-%m-%d}\n" for day in days))
    for name in ("all", "csi300", "csi500", "csi1000"):
        (root / "instruments" / f"{name}.txt").write_text("".join(f"{code}\t2017-09-01\t2024-12-31\n" for code in codes))
    _write_baskets(root, codes)
    generator = np.random.default_rng(7)
    for code in [*codes, *INDICES, *ETFS]:
        change = generator.normal(0, 0.02, len(days))
        close = 10 * np.exp(np.cumsum(change))
        bars = {"close": close, "open": close * np.exp(generator.normal(0, 0.005, len(days))), "high": close * 1.01,
                "low": close * 0.985,
                "vwap": close, "volume": np.exp(generator.normal(14, 0.3, len(days))), "factor": np.ones(len(days)),
                "change": change}
        if code in ETFS:
            bars["amount"] = np.full(len(days), 1e8)
        folder = root / "features" / code.lower()
        folder.mkdir(parents=True)
        for field, values in bars.items():
            np.r_[0.0, values].astype("<f4").tofile(folder / f"{field}.day.bin")
    return root


def _write_baskets(root: Path, codes: list) -> None:
    """Instruments file, kinds and monthly baskets of the ETFs."""
    (root / "instruments" / "etf.txt").write_text("".join(f"{code}\t2017-09-01\t2024-12-31\n" for code in ETFS))
    (root / "tables").mkdir()
    pd.DataFrame({"instrument": ETFS, "kind": "etf", "list_date": pd.Timestamp("2017-09-01"), "tracked_index": ["a", "b", "c"],
                  "etf_class": "sector"}).to_parquet(root / "tables" / "instruments.parquet")
    rows = [(code, date, member, 0.1) for k, code in enumerate(ETFS) for date in pd.date_range("2022-01-01", "2024-12-31", freq="MS")
            for member in codes[10 * k:10 * k + 10]]
    table = pd.DataFrame(rows, columns=["instrument", "date", "member", "weight"])
    table.to_parquet(root / "tables" / "etf_baskets.parquet")


def _portfolios(task: dict) -> list[dict]:
    """Keywords of the records that hold a back-test."""
    return [record["kwargs"] for record in task["record"] if "config" in record.get("kwargs", {})]


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """A state dict and market columns of the published shapes, by the variables that name them."""
    folder = tmp_path_factory.mktemp("published")
    checkpoint, columns = folder / "net.pt", folder / "market.parquet"
    names = {new: old for old, new in PUBLISHED}
    torch.save({names[name]: value for name, value in MASTERNet(158, 63).state_dict().items()}, checkpoint)
    days = pd.bdate_range("2017-09-01", "2024-12-31")
    pd.DataFrame(np.zeros((len(days), 63), np.float32), days, [f"m{i}" for i in range(63)]).to_parquet(columns)
    return {"QLIB_EXT_MASTER_CHECKPOINT": checkpoint, "QLIB_EXT_MASTER_MARKET": columns}


@pytest.fixture(scope="session")
def intraday_market(market, tmp_path_factory):
    """The market again, with industries, market values, intraday fields and blocks of bars, all of them noise."""
    root = tmp_path_factory.mktemp("intraday") / "store"
    shutil.copytree(market, root, copy_function=os.link)
    draw, days = np.random.default_rng(1), (root / "calendars" / "day.txt").read_text().split()
    inputs, factors = ["hi_intraday_return", "hi_skew"], ["hf_skew_1d", "hf_skew", "hf_skew_orth"]
    for number in range(STOCKS):
        fields = {**{name: 0.01 * draw.normal(size=len(days)) for name in inputs + factors}, "industry": np.full(len(days), number % 2),
                  "float_cap": np.exp(draw.normal(23, 1, len(days)))}
        for field, values in fields.items():
            np.r_[0.0, values].astype("<f4").tofile(root / "features" / f"sh60{number:04d}" / f"{field}.day.bin")
    about = {"format": READABLE_FORMATS[-1], "fingerprint": "noise", "history": [{"end": days[-1], "fingerprint": "noise"}],
             "intraday": {"fields": inputs + factors}}
    (root / METADATA_FILE).write_text(json.dumps(about))
    for minutes in (60, 30):
        place = root.parent / "store.intraday" / "blocks" / f"{minutes}min-key"
        names = [f"{name}@{bar}" for bar in range(1, 240 // minutes + 1) for name in ("return", "skew")]
        for day in (day for day in days if day >= "2022-01-01"):
            frame = pd.DataFrame(draw.normal(size=(STOCKS, len(names))), columns=names)
            (place / f"date={day}").mkdir(parents=True)
            frame.assign(instrument=[f"SH60{i:04d}" for i in range(STOCKS)]).to_parquet(place / f"date={day}" / "part.parquet")
        (place / "about.json").write_text(json.dumps({"features": ["return", "skew"]}))
    return root


@pytest.fixture
def environment(market, published, tmp_path, monkeypatch):
    """The variables a workflow reads: the store, a home in the temporary folder, no sizes, existing files for the anchor."""
    for name in SIZES:
        monkeypatch.delenv(name, raising=False)
    for name, path in published.items():
        monkeypatch.setenv(name, str(path))
    monkeypatch.setenv("QLIB_DATA", str(market))
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("QLIB_EXT_MISSING_STYLES", "drop")     # a plain Qlib folder has no market values, thus no size
    return tmp_path


BENCHMARK = {"csi300": "SH000300", "csi500": "SH000905", "csi1000": "SH000852"}


def test_all_workflows_are_there():
    names = {path.stem for path in WORKFLOWS}
    kinds = ("meta_master", "meta_risk_control", "gru", "baseline_gru", "baseline_lightgbm", "baseline_lightgbm_enhanced",
             "rolling_lightgbm")
    for index in ("csi300", "csi500", "csi1000"):
        assert {f"{kind}_{index}" for kind in kinds} <= names
    assert {"meta_master_all", "master_published_csi300", "ensemble_gru_csi300", "decomp_gru_top200", "decomp_gru_etf", *INTRADAY} <= names


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_workflow_resolves(path, environment, request, monkeypatch):
    monkeypatch.chdir(environment)
    if path.stem in INTRADAY:
        monkeypatch.setenv("QLIB_DATA", str(request.getfixturevalue("intraday_market")))
    assert [str(fault) for fault in check_workflow(path)] == []


@pytest.mark.parametrize("path", PORTFOLIOS, ids=lambda path: path.stem)
def test_workflows_hold_together(path, environment):
    """One market per file, its own experiment, costs, and the store and tracking that the environment names."""
    config = load_workflow(path)
    market, task = config["market"], config["task"]
    assert path.stem.endswith(market) and config["experiment_name"] == path.stem
    assert config["qlib_init"]["provider_uri"] == os.environ["QLIB_DATA"]
    assert config["qlib_init"]["exp_manager"]["kwargs"]["uri"] == f"sqlite:///{os.environ['QLIB_EXT_HOME']}/tracking.db"
    portfolios = [kwargs["config"] for kwargs in _portfolios(task)]
    held = ["csi300", "csi500", "csi1000"] if market == "all" else [market]
    assert [one["backtest"]["benchmark"] for one in portfolios] == [BENCHMARK[index] for index in held]
    assert config.get("benchmark", BENCHMARK.get(market)) == BENCHMARK.get(market)
    for index, portfolio in zip(held, portfolios):
        exchange = portfolio["backtest"]["exchange_kwargs"]
        if "exchange" in exchange:
            assert exchange["exchange"]["kwargs"]["costs"] == "broker" and portfolio["strategy"]["kwargs"]["index"] == index
        else:
            assert exchange["close_cost"] == 0.0015
    handler = task["dataset"]["kwargs"]["handler"]["kwargs"]
    assert handler["drop_raw"] is True and "ProcessInf" not in json.dumps(handler, default=str)
    if "universe" in task["dataset"]["kwargs"]:
        assert task["dataset"]["kwargs"]["universe"] == market
    else:
        assert handler["instruments"] == market


def test_the_main_workflow_asks_for_the_styles_it_bounds(environment, monkeypatch):
    monkeypatch.delenv("QLIB_EXT_MISSING_STYLES")
    found = [str(fault) for fault in check_workflow(ROOT / "workflows" / "meta_master_csi1000.yaml")]
    assert len(found) == 2 and "bands on size" in found[0] and "no field industry" in found[1] and "missing_styles: drop" in found[0]


def test_published_sizes_stand_in_the_main_workflow(environment):
    model = load_workflow(ROOT / "workflows" / "meta_master_csi1000.yaml")["task"]["model"]["kwargs"]
    assert {name: model[name] for name in ("d_model", "temporal_heads", "stock_heads", "dropout", "beta")} == {
        "d_model": 256, "temporal_heads": 4, "stock_heads": 2, "dropout": 0.5, "beta": 5}
    trainer = model["trainer"]
    assert (trainer["lr"], trainer["epochs"], trainer["patience"], trainer["metric"]) == (1e-5, 40, 8, "rank_ic")
    assert trainer["days_per_epoch"] is None and trainer["seed"] == 0 and trainer["device"] == "auto"


def test_the_two_portfolios_of_all_stocks_differ_in_their_costs_alone(environment, monkeypatch):
    config = load_workflow(ROOT / "workflows" / "decomp_gru_top200.yaml")
    task, portfolios = config["task"], _portfolios(config["task"])
    costs = [one["config"]["backtest"]["exchange_kwargs"]["exchange"]["kwargs"].pop("costs") for one in portfolios]
    assert costs == [{"commission": 0.0, "minimum": 0.0}, "broker"]
    assert [one.pop("name") for one in portfolios] == ["without_costs", "with_costs"] and portfolios[0] == portfolios[1]
    strategy = portfolios[0]["config"]["strategy"]["kwargs"]
    assert (strategy["topk"], strategy["out_of"], strategy["replace_blocked"], strategy["rebalance"]) == (200, 5000, True, "week")
    assert portfolios[0]["index"] == task["dataset"]["kwargs"]["universe"] == config["market"] == "all"
    members = task["model"]["kwargs"]["members"]
    assert {name: member["kwargs"]["model"]["kwargs"].pop("loss") for name, member in members.items()} == {
        "ic": "ic", "weighted_mse": "weighted_mse"}
    assert members["ic"] == members["weighted_mse"] and members["ic"]["kwargs"]["seeds"] == [0, 1, 2, 3, 4]
    assert task["dataset"]["kwargs"]["window"] == 150 and task["dataset"]["kwargs"]["handler"]["kwargs"]["infer_processors"] == []
    for name, value in {"WINDOW": "60", "SEEDS": "[3]", "HIDDEN": "8"}.items():
        monkeypatch.setenv(f"QLIB_EXT_{name}", value)
    task = load_workflow(ROOT / "workflows" / "decomp_gru_top200.yaml")["task"]
    inner = task["model"]["kwargs"]["members"]["ic"]["kwargs"]
    assert (task["dataset"]["kwargs"]["window"], inner["seeds"], inner["model"]["kwargs"]["hidden_size"]) == (60, [3], 8)


def test_the_rotation_takes_its_scores_from_the_model_of_all_stocks(environment, market, tmp_path):
    """Same model and data as the TOP200, an exchange of ETFs; a store without ETFs is refused before training."""
    stocks, etfs = (load_workflow(ROOT / "workflows" / f"decomp_gru_{name}.yaml") for name in ("top200", "etf"))
    assert etfs["task"]["model"] == stocks["task"]["model"] and etfs["task"]["dataset"] == stocks["task"]["dataset"]
    config = _portfolios(etfs["task"])[0]["config"]
    assert config["strategy"]["class"] == "ETFRotationStrategy"
    assert config["backtest"]["exchange_kwargs"]["exchange"]["kwargs"] == {"codes": "etf", "deal_price": "close", "costs": "dated"}
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("calendars", "instruments", "features"):
        (shutil.copytree if name == "instruments" else os.symlink)(market / name, bare / name)
    (bare / "instruments" / "etf.txt").unlink()
    found = [str(fault) for fault in examine_workflow(ROOT / "workflows" / "decomp_gru_etf.yaml", bare)[0]]
    assert len(found) == 4 and "no universe etf; ingest bars of ETFs" in found[0] and "no table etf_baskets" in found[1]


@pytest.mark.parametrize("name", INTRADAY)
def test_intraday_workflows_say_what_to_build(environment, name):
    found = [str(fault) for fault in check_workflow(ROOT / "workflows" / f"{name}.yaml")]
    assert any("run `python -m qlib_ext.store build-intraday" in fault for fault in found)


def test_intraday_workflows_are_checked_whatever_store_is_in_use(environment, market, intraday_market, monkeypatch):
    start_qlib(market)                                                  # without intraday fields
    monkeypatch.setenv("QLIB_DATA", str(intraday_market))
    assert [str(fault) for fault in check_workflow(ROOT / "workflows" / "hf_factors_all.yaml")] == []


def test_the_ai_portfolios_differ_in_index_and_constraints_alone(environment, monkeypatch):
    """Their alpha is the 10-day half of the multi-granularity model, or all of it; scores are of all stocks."""
    configs = {name: load_workflow(ROOT / "workflows" / f"{name}.yaml") for name in AI}
    granular = load_workflow(ROOT / "workflows" / "multi_granularity_all.yaml")["task"]
    members = granular["model"]["kwargs"]["members"]
    assert list(members) == ["days_5", "days_10"] and granular["dataset"]["kwargs"]["handler"]["kwargs"]["label"]["horizons"] == [5, 10]
    for kind in members.values():
        models = {name: member["kwargs"]["model"]["kwargs"] for name, member in kind["kwargs"]["members"].items()}
        assert {name: model["block"] for name, model in models.items()} == {name: name for name in ("stock", "m60", "m30")}
    assert granular["dataset"]["kwargs"]["aux_windows"] == {"m60": {"window": 20}, "m30": {"window": 10}}
    for name, config in configs.items():
        task, (portfolio,) = config["task"], _portfolios(config["task"])
        dataset, model = task["dataset"]["kwargs"], task["model"]["kwargs"]["members"]
        assert dataset["universe"] == "all" and dataset["handler"]["kwargs"].pop("label") == {"price": "vwap", "horizons": [10]}
        assert list(model) == ["days_10"] and config["experiment_name"] == name
        ten = json.loads(json.dumps(members["days_10"]).replace('"horizon": 1', '"horizon": 0'))                # its label is the only one
        assert model["days_10"] == ten
        index, kind = name.split("_")[2:]
        strategy, backtest = portfolio["config"]["strategy"]["kwargs"], portfolio["config"]["backtest"]
        found = strategy.pop("index"), backtest.pop("benchmark"), strategy["optimizer"].pop("preset")
        assert found == (index, BENCHMARK[index], f"ai_{kind}")
        assert task == configs[AI[0]]["task"]
    monkeypatch.setenv("QLIB_EXT_LABELS", "5 10")
    half = load_workflow(ROOT / "workflows" / f"{AI[0]}.yaml")["task"]
    assert granular["dataset"]["kwargs"]["handler"]["kwargs"].pop("filter_pipe"), "an index holds stocks without intraday data too"
    assert half["model"] == granular["model"] and half["dataset"] == granular["dataset"]


def test_dates_and_granularities_of_intraday_workflows_come_from_the_environment(environment, monkeypatch):
    for name, value in {"TRAIN": "2018-03-01 2021-06-30", "VALID": "2021-07-01 2021-12-31", "TEST": "2022-01-01 2022-06-30",
                        "START": "2018-01-02", "BLOCKS": "stock m15", "LABELS": "10 20", "BACKTEST": "2022-02-01 2022-05-31"}.items():
        monkeypatch.setenv(f"QLIB_EXT_{name}", value)
    for name in INTRADAY:
        task = load_workflow(ROOT / "workflows" / f"{name}.yaml")["task"]
        dataset = task["dataset"]["kwargs"]
        assert {part: [str(day) for day in days] for part, days in dataset["segments"].items()} == {
            "train": ["2018-03-01", "2021-06-30"], "valid": ["2021-07-01", "2021-12-31"], "test": ["2022-01-01", "2022-06-30"]}
        handler = dataset["handler"]["kwargs"]
        spans = ("start_time", "2018-01-02"), ("end_time", "2022-06-30"), ("fit_start_time", "2018-03-01"), ("fit_end_time", "2021-06-30")
        assert all(str(handler[key]) == value for key, value in spans)
        if "aux" in dataset:
            assert list(dataset["aux"]) == ["m15"] and dataset["aux_windows"] == {"m15": {"window": 5}}
            assert list(task["model"]["kwargs"]["members"]) == ["days_10", "days_20"] and handler["label"]["horizons"] == [10, 20]
        if name in AI:
            backtest = _portfolios(task)[0]["config"]["backtest"]
            assert [str(backtest[key]) for key in ("start_time", "end_time")] == ["2022-02-01", "2022-05-31"]
    monkeypatch.setenv("QLIB_EXT_BLOCKS", "stock")
    dataset = load_workflow(ROOT / "workflows" / "multi_granularity_all.yaml")["task"]["dataset"]["kwargs"]
    assert "aux" not in dataset and "aux_windows" not in dataset


@pytest.mark.parametrize("index", ["csi300", "csi500", "csi1000"])
def test_the_main_workflows_see_indices_and_recent_winners(environment, index):
    dataset = load_workflow(ROOT / "workflows" / f"meta_master_{index}.yaml")["task"]["dataset"]["kwargs"]
    parts = dataset["aux"]["market"]["kwargs"]["parts"]
    assert [part["class"] for part in parts] == ["MarketStateLoader", "WinnerStyleLoader"]
    for kwargs in (part["kwargs"] for part in parts):
        assert [kwargs["fit_start_time"], kwargs["fit_end_time"]] == dataset["segments"]["train"]


@pytest.mark.parametrize("plain, wrapped, options", [
    *((f"baseline_lightgbm_{index}", f"rolling_lightgbm_{index}", {"step": 60, "window": "expanding"})
      for index in ("csi300", "csi500", "csi1000")), ("gru_csi300", "ensemble_gru_csi300", {"seeds": [0, 1, 2], "average": "rank"})])
def test_wrapped_models_are_those_of_the_plain_workflows(environment, plain, wrapped, options):
    """Same model, data and records, so that a comparison shows retraining, or averaging, alone."""
    plain, wrapped = (load_workflow(ROOT / "workflows" / f"{name}.yaml")["task"] for name in (plain, wrapped))
    assert wrapped["dataset"] == plain["dataset"] and wrapped["record"] == plain["record"]
    inner = wrapped["model"]["kwargs"].pop("model")
    assert wrapped["model"]["kwargs"] == options
    if "seeds" in options:
        plain["model"]["kwargs"]["trainer"].pop("seed")
    assert inner == plain["model"]


def test_sizes_come_from_the_environment(environment, monkeypatch):
    for name, value in {"D_MODEL": "16", "EPOCHS": "2", "PRETRAIN_EPOCHS": "1", "LR": "1e-3", "PATIENCE": "2", "DROPOUT": "0.1",
                        "DAYS_PER_EPOCH": "5", "SEED": "3", "DEVICE": "cpu"}.items():
        monkeypatch.setenv(f"QLIB_EXT_{name}", value)
    model = load_workflow(ROOT / "workflows" / "meta_master_csi1000.yaml")["task"]["model"]["kwargs"]
    assert (model["d_model"], model["dropout"], model["rule"]["pretrain_epochs"]) == (16, 0.1, 1)
    expected = {"epochs": 2, "lr": 0.001, "patience": 2, "days_per_epoch": 5, "seed": 3, "device": "cpu"}
    assert {name: model["trainer"][name] for name in expected} == expected


def test_the_home_folder_is_the_default(environment, monkeypatch):
    for name in ("QLIB_DATA", "QLIB_EXT_HOME"):
        monkeypatch.delenv(name)
    start = load_workflow(ROOT / "workflows" / "meta_master_csi1000.yaml")["qlib_init"]
    assert start["provider_uri"] == "~/.qlib_ext/demo/cn_data"
    assert start["exp_manager"]["kwargs"]["uri"] == "sqlite:///~/.qlib_ext/tracking.db"


def test_the_anchor_asks_for_its_files(environment, monkeypatch):
    monkeypatch.delenv("QLIB_EXT_MASTER_CHECKPOINT")
    found = [str(fault) for fault in check_workflow(ROOT / "workflows" / "master_published_csi300.yaml")]
    assert len(found) == 1 and "set the environment variable QLIB_EXT_MASTER_CHECKPOINT" in found[0]


def qrun(name: str, environment: Path) -> subprocess.CompletedProcess:
    """Run a workflow with tiny sizes from another folder."""
    elsewhere = environment / "elsewhere"
    elsewhere.mkdir()
    variables = {**os.environ, "QLIB_EXT_D_MODEL": "16", "QLIB_EXT_EPOCHS": "2", "QLIB_EXT_LR": "0.001",
                 "QLIB_EXT_DAYS_PER_EPOCH": "10", "QLIB_EXT_PRETRAIN_EPOCHS": "1",
                 "QLIB_EXT_HIDDEN": "8", "QLIB_EXT_WINDOW": "20", "QLIB_EXT_SEEDS": "[0]", "QLIB_EXT_DEVICE": "cpu",
                 "OMP_NUM_THREADS": "1",
                 "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, "-m", "qlib.cli.run", str(ROOT / "workflows" / f"{name}.yaml")]
    done = subprocess.run(command, cwd=elsewhere, env=variables, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    assert not list(elsewhere.iterdir()), "nothing may be left in the folder the run was started from"
    return done


@pytest.mark.slow
def test_deep_risk_ends_in_a_snapshot_store(environment):
    done = qrun("deep_risk", environment)
    store = SnapshotStore(environment / "home" / "risk" / "deep")
    shot = store.read(store.days[-1])
    assert shot.factors == ("country", *(f"deep_{k:02d}" for k in range(10))) and len(shot.instruments) == STOCKS
    assert len(store.days) > 1500 and "epoch 1: train_loss" in done.stdout and "rank_ic" not in done.stdout
    assert len(list((environment / "home" / "artifacts" / "deep_risk").glob("*/artifacts/risk/risk_snapshots.pkl"))) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name, said, members", [("rolling_lightgbm_csi300", "task 9 of 9:", []),
                                                 ("ensemble_gru_csi300", "member 3 of 3:", ["seed_0", "seed_1", "seed_2"]),
                                                 ("decomp_gru_top200", "member 2 of 2: weighted_mse", ["ic", "weighted_mse"]),
                                                 ("decomp_gru_etf", "etf_rotation over three benchmarks", ["ic", "weighted_mse"])])
def test_retrained_and_averaged_models_run_to_their_end(environment, name, said, members):
    done = qrun(name, environment)
    runs = Runs(f"sqlite:///{environment / 'home'}/tracking.db")
    run = runs.named(name)
    loaded = runs.load(run, name)
    assert compare([loaded], min_pairs=STOCKS).loc[name, "days"] == 516 and loaded.score.notna().all() and said in done.stdout
    assert list(runs.members(run)) == members and runs.label_expression(run).startswith("Ref($close, -6)")
    assert not [file for kind in ("rolling", "ensembles", "fits") for file in (environment / "home" / kind).glob("*")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gru_nn_all", "res_attn_lstm_all", "hf_factors_all", "multi_granularity_all"])
def test_intraday_workflows_run_to_their_end(environment, intraday_market, monkeypatch, name):
    monkeypatch.setenv("QLIB_DATA", str(intraday_market))
    qrun(name, environment)
    runs = Runs(f"sqlite:///{environment / 'home'}/tracking.db")
    run = runs.named(name)
    score = runs.load(run, name).score
    assert score.notna().all() and score.index.get_level_values("instrument").nunique() == STOCKS
    kept = set(Artefacts(runs, run).list())
    assert {"tearsheet.html", "factor_report", "leak_check"} <= kept


def test_main_workflow_runs_to_its_end_from_another_folder(environment, monkeypatch):
    done = qrun("meta_master_csi1000", environment)
    home = environment / "home"
    runs = Runs(f"sqlite:///{home}/tracking.db")
    run = runs.named("meta_master_csi1000")
    assert Path(run.info.artifact_uri.removeprefix("file://")).is_relative_to(home / "artifacts" / "meta_master_csi1000")
    loaded = runs.load(run, "main")
    assert loaded.score.index.get_level_values("instrument").nunique() == STOCKS
    assert str(loaded.score.index.get_level_values("datetime").min().date()) == "2023-01-02"
    row = compare([loaded], min_pairs=STOCKS).loc["main"]
    assert np.isfinite(row[["IC", "RankIC", "IR", "drawdown", "turnover"]].astype(float)).all()
    assert row["days"] == 516, "every test day but the last six, whose label is not known yet"
    folder = home / "artifacts" / "meta_master_csi1000" / run.info.run_id / "artifacts" / "portfolio_analysis"
    certificates = pd.read_parquet(folder / "certificates.parquet")
    assert len(certificates) == 104 and (certificates["violation"] <= 1e-8).all()
    assert {"benchmarks.pkl", "benchmark_analysis.pkl", "exposures.parquet",
            "decisions.parquet"} <= {path.name for path in folder.iterdir()}
    assert "epoch 1:" in done.stdout and "cut by 6 trading days" in done.stdout + done.stderr
    assert not list((home / "fits").iterdir()), "a finished fit leaves nothing to resume"
