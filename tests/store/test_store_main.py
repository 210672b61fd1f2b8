"""Command line of the store: what each subcommand does, and that contradictions are named before anything is read."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from foreign import short_workflow, write_foreign_store
from store_market import business_days, make_tables

from qlib_ext.store import __main__ as module
from qlib_ext.store.__main__ import main
from qlib_ext.store.metadata import read_metadata
from qlib_ext.store.schema import FIELDS, TABLES, schema_page

INDICES = ["--indices", "csi300", "csi500"]


@pytest.fixture
def folder(tmp_path):
    """The first 40 days of the small market as a folder of tables, and the last five as another."""
    tables = make_tables()
    border = business_days("2020-01-02", 45)[39]
    for name, part in (("tables", lambda rows: rows["date"] <= border), ("more", lambda rows: rows["date"] > border)):
        (tmp_path / name).mkdir()
        for table, frame in tables.items():
            if "date" in frame and table.endswith("bars"):
                frame[part(frame)].to_parquet(tmp_path / name / f"{table}.parquet")
            elif name == "tables":
                frame.to_parquet(tmp_path / name / f"{table}.parquet")
    return tmp_path


def test_ingest_then_append(folder, capsys):
    store = folder / "store"
    assert main(["ingest", "--tables", str(folder / "tables"), "--out", str(store), *INDICES]) == 0
    assert capsys.readouterr().out == f"{store}\n"
    before = read_metadata(store)["spans"]["stocks"][1]
    assert main(["ingest", "--append", "--tables", str(folder / "more"), "--out", str(store)]) == 0
    assert read_metadata(store)["spans"]["stocks"][1] > before
    assert main(["ingest", "--append", "--tables", str(folder / "more"), "--out", str(store)]) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize("flags, named", [(["--overwrite"], "--overwrite"), (["--vwap", "typical"], "--vwap"),
                                          (INDICES, "--indices"), (["--vwap", "amount", "--overwrite"], "--vwap, --overwrite")])
def test_append_takes_no_settings(tmp_path, capsys, flags, named):
    assert main(["ingest", "--append", "--tables", str(tmp_path), "--out", str(tmp_path / "store"), *flags]) == 1
    assert f"error: --append takes no {named}: a store is extended as it was made" in capsys.readouterr().err


def test_options_reach_ingest(folder, monkeypatch):
    seen = {}

    def ingest(tables, out, **options):
        seen.update(options, tables=tables, out=out)
        return out

    monkeypatch.setattr("qlib_ext.store.ingest.ingest", ingest)
    settings = ["--vwap", "amount", "--columns", "map.yaml", "--overwrite", *INDICES]
    assert main(["ingest", "--tables", "t", "--out", "o", *settings]) == 0
    assert seen == {"tables": "t", "out": "o", "vwap": "amount", "columns": "map.yaml", "overwrite": True,
                    "index_names": ["csi300", "csi500"]}
    seen.clear()
    assert main(["ingest", "--tables", "t", "--out", "o"]) == 0
    assert seen == {"tables": "t", "out": "o", "columns": None}, "defaults are those of the function"


@pytest.mark.parametrize("arguments", [[], ["ingest"], ["doctor"], ["ingest", "--tables", "t", "--out", "o", "--vwap", "mean"],
                                       ["doktor", "store"]])
def test_wrong_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2 and "usage: python -m qlib_ext.store" in capsys.readouterr().err


def test_interruption_is_said(monkeypatch, capsys):
    def interrupted(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_schema", interrupted)
    assert main(["schema"]) == 130 and "interrupted; nothing was written" in capsys.readouterr().err


def test_schema_lists_all_tables_and_fields(capsys):
    assert main(["schema"]) == 0
    out = capsys.readouterr().out
    assert all(f"| `{name}`" in out for name in [*TABLES, *FIELDS])


def test_doctor_of_what_is_no_store(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "none")]) == 1
    assert "error: store" in capsys.readouterr().err


def test_doctor_with_warnings_gives_zero(small_store, capsys):
    assert main(["doctor", str(small_store)]) == 0
    out = capsys.readouterr().out
    assert f"store {small_store}" in out and "too few members" in out
    assert out.split("\n\n")[-1].startswith(tuple("123456789"))


def test_doctor_takes_workflows_before_and_after_the_store(tmp_path, capsys):
    store, path = str(write_foreign_store(tmp_path / "store")), str(short_workflow("gru_csi300", tmp_path / "w.yaml"))
    for arguments in (["--for", path, store], [store, "--for", path], ["--for", path, store, "--for", path]):
        assert main(["doctor", *arguments]) == 0
        assert f"workflow {path}: can run" in capsys.readouterr().out


def test_doctor_names_an_absent_workflow_before_it_reads(tmp_path, capsys):
    assert main(["doctor", str(tmp_path / "no store"), "--for", str(tmp_path / "no.yaml")]) == 1
    assert "error: workflow files that do not exist: " in capsys.readouterr().err


def test_a_path_that_cannot_be_written_is_an_error_with_its_name(monkeypatch, capsys):
    def refused(options):
        open("/proc/1/none/none", "w")

    monkeypatch.setattr(module, "_ingest", refused)
    assert main(["ingest", "--tables", "t", "--out", "/proc/1/none"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: /proc/1/none/none cannot be read or written (No such file") and "permissions" in said


def test_a_closed_pipe_gives_no_traceback():
    root = Path(__file__).resolve().parents[2]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "qlib_ext.store", "schema"], cwd=root, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 141 and done.stderr == b""


def test_the_readme_holds_the_schema():
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    assert schema_page() in readme, "put the output of `python -m qlib_ext.store schema` between the schema marks of the README"
