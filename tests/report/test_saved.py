"""Reports in a recorder: what comes back is what was saved, from a recorder and from a run; damage has a name."""
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.runs import Runs
from qlib_ext.report.saved import CARD, Artefacts, load, plain, save
from qlib_ext.report.table import Table

DAYS = pd.date_range("2024-01-02", periods=4)
FACTS = {"model": None, "days": np.int64(4), "ic": np.float32(0.5), "bad": float("nan"), "span": (DAYS[0], DAYS[-1]), "文": "中证"}


def tables() -> dict:
    daily = pd.DataFrame({"ic": [0.1, np.nan, 0.3, 0.2]}, index=DAYS.rename("datetime"))
    falls = pd.DataFrame({"end": [DAYS[1], pd.NaT], "depth": [-0.1, -0.2]}, index=pd.MultiIndex.from_tuples([("net", 1), ("net", 2)]))
    return {"daily": Table(daily, "per day"), "drawdowns": Table(falls, "deepest falls"),
            "checks": Table(pd.DataFrame({"passed": [True], "what": ["a sentence"]}), "samples")}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Uri and a client of an empty tracking database."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/tracking.db"
    return uri, MlflowClient(tracking_uri=uri)


@pytest.fixture
def recorder(database, tmp_path):
    """A Qlib recorder of a fresh run."""
    from qlib.workflow.recorder import MLflowRecorder
    uri, client = database
    run = client.create_run(client.create_experiment(tmp_path.name, artifact_location=str(tmp_path / "artefacts")))
    return MLflowRecorder(run.info.experiment_id, uri, mlflow_run=run)


def same(saved, expected: dict) -> None:
    assert list(saved.tables) == list(expected)
    for name, table in expected.items():
        pd.testing.assert_frame_equal(saved.tables[name].frame, table.frame)
        assert saved.tables[name].convention == table.convention


def test_round_trip_from_recorder_and_run(recorder):
    save(recorder, "portfolio_report/csi300", tables(), "portfolio", FACTS)
    save(recorder, "factor_report", {}, "factor", {})
    saved = load(Artefacts(recorder), "portfolio_report/csi300")
    same(saved, tables())
    assert saved.kind == "portfolio" and saved.folder == "portfolio_report/csi300"
    assert saved.facts == {"model": None, "days": 4, "ic": 0.5, "bad": None, "span": [str(DAYS[0]), str(DAYS[-1])], "文": "中证"}
    runs = Runs(recorder.uri)
    artefacts = Artefacts(runs, runs.client.get_run(recorder.id))
    same(load(artefacts, "portfolio_report/csi300"), tables())
    assert artefacts.reports() == ["factor_report", "portfolio_report/csi300"]
    pd.testing.assert_frame_equal(recorder.load_object("portfolio_report/csi300/daily.pkl"), tables()["daily"].frame)
    elsewhere = Artefacts(SimpleNamespace(client=recorder.client, id=recorder.id, artifact_uri="s3://elsewhere"))
    same(load(elsewhere, "portfolio_report/csi300"), tables())                        # through MLflow, as for a store that is not local


def test_a_later_report_replaces_an_earlier_one(recorder):
    save(recorder, "leak_check", tables(), "leaks", {})
    fewer = {"checks": tables()["checks"]}
    save(recorder, "leak_check", fewer, "leaks", {"second": True})
    saved = load(Artefacts(recorder), "leak_check")
    same(saved, fewer)
    assert saved.facts == {"second": True}


def test_damage_is_named(recorder):
    artefacts = Artefacts(recorder)
    with pytest.raises(DataError, match="has no report in factor_report; it has none: run FactorReportRecord"):
        load(artefacts, "factor_report")
    save(recorder, "factor_report", tables(), "factor", {})
    file, card = (artefacts.path(f"factor_report/{name}") for name in ("daily.pkl", CARD))
    whole, text = file.read_bytes(), card.read_text()
    with pytest.raises(DataError, match=r"no report in portfolio_report; it has \['factor_report'\]"):
        load(artefacts, "portfolio_report")
    for damaged in (whole[:-3], whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match="daily.pkl is damaged.*FactorReportRecord"):
            load(artefacts, "factor_report")
    file.unlink()
    with pytest.raises(DataError, match="has lost factor_report/daily.pkl"):
        load(artefacts, "factor_report")
    file.write_bytes(whole)
    about = json.loads(text)
    for wrong in (text[:-20], "[]", json.dumps({**about, "format": 99}), json.dumps({**about, "order": ["daily", "other"]})):
        card.write_text(wrong)
        with pytest.raises(DataError, match="report.json is damaged"):
            load(artefacts, "factor_report")
    card.write_text(text)
    same(load(artefacts, "factor_report"), tables())


def test_unknown_kind_and_plain_values(recorder):
    with pytest.raises(ConfigError, match="kind='factors'"):
        save(recorder, "x", {}, "factors", {})
    assert plain({1: np.array([1.5, np.inf]), "b": (np.bool_(True), pd.NaT)}) == {"1": [1.5, None], "b": [True, None]}
