"""A Qlib folder made elsewhere is taken as it is: what it lacks is named, by `check` and `doctor` and by the run itself."""

import json
import logging
import os
import subprocess
import sys
import warnings
from unittest import mock

import numpy as np
import pytest
import qlib
from foreign import CODES, FIELDS, ROOT, short_workflow, write_foreign_store
from qlib.utils import init_instance_by_config

from qlib_ext.check import examine_workflow
from qlib_ext.data.handler import LeanHandler
from qlib_ext.data.handler import logger as qlib_handler_logger
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.__main__ import main
from qlib_ext.workflow import load_workflow

TWO = ["SH000300", "SH000905"]
ALL_RUN = ("meta_master_csi300", "gru_csi300", "baseline_lightgbm_csi300", "baseline_gru_csi300")


def two_indices(config) -> None:
    """What a user writes whose store has two of the three indices."""
    aux = config["task"]["dataset"]["kwargs"].get("aux")
    if aux:
        aux["market"]["kwargs"]["parts"][0]["kwargs"]["instruments"] = TWO


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return write_foreign_store(tmp_path_factory.mktemp("foreign") / "store")


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Tiny sizes, and a home in the temporary folder."""
    for name in ("QLIB_EXT_LR", "QLIB_EXT_PATIENCE", "QLIB_EXT_DROPOUT", "QLIB_EXT_SEED"):
        monkeypatch.delenv(name, raising=False)
    sizes = {"MISSING_STYLES": "drop", "HOME": str(tmp_path / "home"), "D_MODEL": "16", "EPOCHS": "1", "DAYS_PER_EPOCH": "5", "DEVICE": "cpu"}
    for name, value in sizes.items():
        monkeypatch.setenv(f"QLIB_EXT_{name}", value)
    return tmp_path


def load_dataset(store, workflow):
    """The dataset of a workflow as `qrun` makes it."""
    qlib.init(provider_uri=str(store), region="cn", kernels=1, expression_cache=None, dataset_cache=None, logging_level=30)
    return init_instance_by_config(load_workflow(workflow)["task"]["dataset"])


@pytest.mark.parametrize("name", ALL_RUN)
def test_what_a_plain_store_lacks_is_a_warning(plain, small, name):
    faults, warnings = examine_workflow(short_workflow(name, small / "w.yaml", two_indices), plain)
    assert faults == []
    text = "\n".join(map(str, warnings))
    assert "no instrument has field $vwap: VWAP0 would be NaN on every row" in text
    assert ("index SH000300 has no $amount in the store; $volume stands in" in text) == name.startswith("meta_master")
    assert ("no field csi300_weight: members weigh alike" in text) == name.startswith("meta_master")
    assert len(warnings) == (4 if name.startswith("meta_master") else 1)


def test_an_absent_index_is_refused_with_the_alternative(plain, small):
    workflow = short_workflow("meta_master_csi300", small / "w.yaml")
    faults, _ = examine_workflow(workflow, plain)
    assert len(faults) == 1 and "no bars of ['SH000852']" in str(faults[0]) and "the model's width follows" in str(faults[0])
    with pytest.raises(DataError, match=r"of \['SH000852'\]; its indices are \['SH000300', 'SH000905'\]. Name some of these"):
        load_dataset(plain, workflow)


@pytest.mark.parametrize("name", ["gru_csi1000", "baseline_lightgbm_csi1000"])
def test_no_members_of_csi1000(plain, small, name):
    workflow = short_workflow(name, small / "w.yaml")
    assert any("'csi1000' is not in the store" in str(fault) for fault in examine_workflow(workflow, plain)[0])
    with pytest.raises(ConfigError, match="'csi1000' is not in the store"):
        load_dataset(plain, workflow)
    assert not (plain / "instruments" / "csi1000.txt").exists(), "Qlib writes an empty file where it is asked for a universe"


@pytest.mark.parametrize("name", ["baseline_lightgbm_csi300", "gru_csi300"])
def test_an_empty_list_of_members(small, name):
    store = write_foreign_store(small / "store")
    (store / "instruments" / "csi300.txt").write_text("")
    workflow = short_workflow(name, small / "w.yaml")
    assert any("'csi300' has no members" in str(fault) for fault in examine_workflow(workflow, store)[0])
    with pytest.raises(DataError, match="universe 'csi300'"):
        load_dataset(store, workflow)


@pytest.mark.parametrize("content", [b"", b"\0" * 4, b"\0" * 9, np.float32([9999, 1]).tobytes(), np.float32([-1, 1]).tobytes(),
                                     np.float32([np.nan, 1]).tobytes()])
def test_damaged_files_are_refused_before_anything_loads(small, content):
    store = write_foreign_store(small / "store")
    for code, field in zip(CODES[3:5], ("close", "volume")):
        (store / "features" / code.lower() / f"{field}.day.bin").write_bytes(content)
    workflow = short_workflow("gru_csi300", small / "w.yaml")
    said = f"close, volume or factor of {CODES[3]}, {CODES[4]} is damaged"
    assert any(said in str(fault) for fault in examine_workflow(workflow, store)[0])
    with pytest.raises(DataError, match=said):
        load_dataset(store, workflow)


def test_files_without_a_value_are_no_field(small):
    store = write_foreign_store(small / "store", fields=[*FIELDS, "vwap"])
    for file in [*store.rglob("vwap.day.bin"), *store.rglob("change.day.bin")]:
        file.write_bytes(b"")
    faults, found = examine_workflow(short_workflow("gru_csi300", small / "w.yaml"), store)
    assert ["must not run" in str(fault) for fault in faults] == [True]
    assert any("no instrument has field $vwap" in str(warning) for warning in found)


def test_a_universe_of_the_dataset_without_members_stops_before_loading(small):
    store = write_foreign_store(small / "store")
    (store / "instruments" / "csi500.txt").write_text("")

    def change(config):
        config["task"]["dataset"]["kwargs"]["universe"] = "csi500"

    workflow = short_workflow("gru_csi300", small / "w.yaml", change)
    with mock.patch.object(LeanHandler, "setup_data", side_effect=AssertionError("loaded")):
        with pytest.raises(DataError, match="universe 'csi500' has no members"):
            load_dataset(store, workflow)


@pytest.mark.parametrize("field, said", [("factor", "without it nobody can say whether prices are adjusted"),
                                         ("volume", "needed by CORR5"), ("open", "needed by KMID")])
def test_fields_that_are_needed_are_refused_before_anything_loads(small, field, said):
    store = write_foreign_store(small / "store", fields=[name for name in FIELDS if name != field])
    workflow = short_workflow("gru_csi300", small / "w.yaml")
    assert any(f"no instrument has field ${field}" in str(fault) for fault in examine_workflow(workflow, store)[0])
    with pytest.raises(DataError, match=rf"no instrument of the store has \${field} \({said}"):
        load_dataset(store, workflow)


def test_a_label_by_vwap_is_refused(plain, small):
    def change(config):
        config["task"]["dataset"]["kwargs"]["handler"]["kwargs"]["label"] = [["Ref($vwap, -2) / Ref($vwap, -1) - 1"], ["LABEL0"]]

    workflow = short_workflow("gru_csi300", small / "w.yaml", change)
    assert any("no instrument has field $vwap" in str(fault) for fault in examine_workflow(workflow, plain)[0])
    with pytest.raises(DataError, match=r"has \$vwap \(needed by VWAP0, LABEL0\)"):
        load_dataset(plain, workflow)


def test_the_run_warns_by_name(small, caplog):
    """No vwap: a constant column; no amount: volume stands in; no change: no limits in the back-test, which `check` refuses."""
    store = write_foreign_store(small / "store", fields=[name for name in FIELDS if name != "change"])
    workflow = short_workflow("meta_master_csi300", small / "w.yaml", two_indices)
    assert examine_workflow(workflow, store)[0] == [], "our exchange finds limits without it"
    fault, = map(str, examine_workflow(short_workflow("gru_csi300", small / "gru.yaml"), store)[0])
    assert "must not run: the back-test needs field 'change', the store has none, and the run would go to its end" in fault
    assert "with orders passing the price limits" in fault
    caplog.set_level(logging.WARNING)
    with mock.patch.object(qlib_handler_logger, "warning", logging.getLogger("test").warning):
        with warnings.catch_warnings():  # numpy has nothing to add
            warnings.simplefilter("error", RuntimeWarning)
            panel = load_dataset(store, workflow).panel()
    text = caplog.text
    assert "no instrument has $vwap: VWAP0 will be NaN on every row" in text
    assert "no instrument has $change: Qlib's exchange would let every order pass the price limits" in text
    assert "index SH000300 has no $amount in the store, $volume stands in for it" in text
    block = panel.blocks["stock"]
    column = block.values[:-1, block.columns.index("VWAP0")]
    assert (column == 0).all() and panel.day_aux["market"].shape[1] == 42 + 3 * 12  # beta, momentum, residual volatility: no caps


@pytest.mark.parametrize("lower", [False, True])
def test_doctor_reads_it(small, lower, capsys):
    store = write_foreign_store(small / "store", lower=lower)
    good = short_workflow("gru_csi300", small / "good.yaml")
    bad = short_workflow("meta_master_csi300", small / "bad.yaml")
    assert main(["doctor", str(store), "--json", "--for", str(good)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["can_run"] and report["workflows"][str(good)]["faults"] == []
    figures = {section["title"]: section["figures"] for section in report["sections"]}
    assert figures["Folder"]["kinds"] == {"index": 2, "stock": len(CODES)}
    assert figures["Members of indices"]["csi300"]["most"] == 30
    kinds = {warning["kind"] for warning in report["warnings"]}
    assert {"indices among stocks", "field absent", "index absent", "no members", "no weights"} <= kinds
    assert not {"jump", "prices", "spelling of codes", "calendar hole", "damaged files"} & kinds
    assert main(["doctor", str(store), "--for", str(good), "--for", str(bad)]) == 1
    out = capsys.readouterr().out
    assert f"workflow {good}: can run" in out and f"workflow {bad}: cannot run, 1 faults" in out
    assert "no bars of ['SH000852']" in out


def run(workflow, store, folder):
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "QLIB_DATA": str(store),
                 "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run([sys.executable, "-m", "qlib.cli.run", str(workflow)], cwd=folder, env=variables, capture_output=True,
                          text=True, timeout=600)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_RUN)
@pytest.mark.parametrize("lower", [False, True])
def test_every_model_runs_on_it(small, name, lower, monkeypatch):
    store = write_foreign_store(small / "store", lower=lower)
    monkeypatch.setenv("QLIB_DATA", str(store))
    done = run(short_workflow(name, small / "w.yaml", two_indices), store, small)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "no instrument has $vwap: VWAP0" in done.stdout + done.stderr
    assert "Portfolio analysis record" in done.stdout + done.stderr
