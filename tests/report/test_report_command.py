"""Tear sheets of recorders: the record that ends a workflow, and the command that makes pages again or side by side."""

import os
import re
from io import BytesIO

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from sheet_tables import facts, factor_tables, leak_tables, portfolio_tables

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report import __main__ as command
from qlib_ext.report.saved import Artefacts, load, save
from qlib_ext.report.sheet_record import TearSheetRecord, saved_reports
from qlib_ext.report.table import Table
from qlib_ext.report.tearsheet import tear_sheet


def few(tables: dict, *names: str) -> dict:
    return {name: tables[name] for name in names}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """Uri of a tracking database, and runs: two with reports, one without, one whose report is damaged."""
    from qlib.workflow.recorder import MLflowRecorder
    folder = tmp_path_factory.mktemp("tracking")
    uri = f"sqlite:///{folder}/tracking.db"
    client, made = MlflowClient(tracking_uri=uri), {}
    places = {name: client.create_experiment(name, artifact_location=str(folder / name)) for name in ("alpha", "beta")}
    for number, (name, experiment) in enumerate({"one": "alpha", "two": "beta", "bare": "beta", "hurt": "beta"}.items()):
        run = client.create_run(places[experiment], start_time=number)
        made[name] = MLflowRecorder(run.info.experiment_id, uri, mlflow_run=run)
        if name != "bare":
            save(made[name], "factor_report", few(factor_tables(40, number), "summary", "broker", "by_month", "decay", "daily"), "factor",
                 facts(experiment=experiment, recorder=run.info.run_id))
        if name == "one":
            save(made[name], "portfolio_report/cost", few(portfolio_tables(40), "summary", "daily"), "portfolio", facts(portfolio="cost"))
            save(made[name], "leak_check", leak_tables(), "leaks", facts())
        client.set_terminated(run.info.run_id)
    next((folder / "beta" / made["hurt"].id).rglob("decay.pkl")).write_bytes(b"x")
    return uri, made


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- the record ---------------------------------------------------------------------------------------------------------------
def test_the_record_saves_page_and_plots(database):
    _, made = database
    page = TearSheetRecord(made["one"], model=object(), dataset=object()).generate()
    found = Artefacts(made["one"])
    assert found.path("tearsheet.html").read_text(encoding="utf-8") == page == tear_sheet(saved_reports(found))
    names = set(found.list("plots/factor_report")) | set(found.list("plots/portfolio_report/cost"))
    assert {"plots/factor_report/decay.png", "plots/portfolio_report/cost/nav.png"} <= names
    assert Image.open(BytesIO(found.path("plots/factor_report/decay.png").read_bytes())).width == 1200
    assert "Portfolio" in page and "cost" in page and TearSheetRecord(made["one"]).list() == ["tearsheet.html"]
    assert found.reports() == ["factor_report", "portfolio_report/cost", "leak_check"], "page and plots are not taken for reports"


def test_the_record_refuses_what_cannot_work(database):
    _, made = database
    with pytest.raises(DataError, match="FactorReportRecord"):
        TearSheetRecord(made["bare"]).generate()
    with pytest.raises(DataError, match="damaged"):
        TearSheetRecord(made["hurt"]).generate()
    for wrong in ({"language": "fr"}, {"theme": "pink"}, {"langage": "en"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            TearSheetRecord(made["one"], **wrong)


def test_plots_can_be_left_out(database):
    _, made = database
    assert 'lang="zh"' not in TearSheetRecord(made["two"], language="en", png=False).generate()
    assert not Artefacts(made["two"]).list("plots")


def test_industries_are_shown_by_the_names_of_the_store(database):
    from qlib_ext.report.plots import named
    from qlib_ext.report.saved import Saved
    table = factor_tables(5)["industry_exposure"]
    coded = Table(table.frame.set_axis([str(n) for n in range(len(table.frame))]), "")
    report = Saved("factor", {"industry_exposure": coded}, facts(industry_names={"0": "银行", "1": "煤炭"}))
    page = tear_sheet([report], "en")
    assert ">Banks<" in page and ">Coal<" in page and ">2<" in page
    assert list(named(Saved("factor", report.tables, {})).tables["industry_exposure"].frame.index) == list(coded.frame.index)


# ---- the command --------------------------------------------------------------------------------------------------------------
def test_the_command_makes_the_page_of_a_run(database, here, capsys):
    uri, made = database
    assert command.main(["--recorder", made["one"].id, "--uri", uri, "--png", "pictures"]) == 0
    name = f"tearsheet_{made['one'].id[:8]}.html"
    printed = capsys.readouterr().out.split()
    assert printed[0] == name and (here / name).read_text(encoding="utf-8") == tear_sheet(saved_reports(Artefacts(made["one"])))
    assert (here / "pictures/factor_report/rank_ic.png").is_file() and "pictures/portfolio_report/cost/nav.png" in printed
    assert sorted(path.name for path in here.iterdir()) == ["pictures", name], "nothing is left beside"
    assert oct(os.stat(here / name).st_mode)[-3:] == "644"


@pytest.mark.parametrize("name", ["prefix", "experiment"])
def test_runs_are_found_by_first_letters_and_by_experiment(database, here, name):
    uri, made = database
    given = {"prefix": made["one"].id[:10], "experiment": made["one"].id}[name]
    assert command.main(["--recorder", given, "--experiment", "alpha", "--uri", uri, "--out", "x.html", "--language", "zh"]) == 0
    assert 'lang="en"' not in (here / "x.html").read_text(encoding="utf-8")


def test_the_command_puts_runs_side_by_side(database, here, capsys):
    uri, made = database
    assert command.main(["--compare", made["one"].id, made["two"].id, "--uri", uri]) == 0
    page = (here / "comparison.html").read_text(encoding="utf-8")
    assert capsys.readouterr().out.strip() == "comparison.html" and ">alpha<" in page and ">“beta”<" in page and "贝塔" not in page
    months = re.findall(r"2023-01</th><td>([^<]*)</td><td>([^<]*)</td>", page)[0]
    expected = [load(Artefacts(made[name]), "factor_report").tables["by_month"].frame["RankIC"].iloc[0] for name in ("one", "two")]
    assert [float(text.replace("\N{MINUS SIGN}", "-")) for text in months] == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("arguments, said", [
    (["--recorder", "0" * 32], "no run"), (["--recorder", "abc"], "at least six"), (["--recorder", "bare"], "FactorReportRecord"),
    (["--recorder", "hurt"], "damaged"), (["--recorder", "one", "--experiment", "gamma"], "no experiment"),
    (["--recorder", "one", "--experiment", "beta"], "no run"), (["--recorder", "beta", "--experiment", "alpha"], "no run"),
    (["--recorder", "one", "--out", "nowhere/x.html"], "folder that exists"), (["--recorder", "one", "--out", "."], "folder that exists"),
    (["--compare", "one"], "two runs"), (["--compare", "one", "one"], "named twice"), (["--compare", "one", "bare"], "FactorReportRecord"),
    (["--compare", "one", "two", "--png", "x"], "--png goes with"),
    (["--recorder", "one", "--uri", "sqlite:///nowhere.db"], "no tracking database"),
])
def test_failures_are_one_line(database, here, capsys, arguments, said):
    uri, made = database
    given = [made[word].id if word in made else word for word in arguments]
    assert command.main([*given, *([] if "--uri" in given else ["--uri", uri])]) == 1
    told = capsys.readouterr()
    assert not told.out and told.err.count("\n") == 1 and said in told.err and not list(here.iterdir())


def test_a_page_that_cannot_be_written_leaves_the_old_one(here, monkeypatch):
    (here / "x.html").write_text("old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device", "x.html")))
    with pytest.raises(OSError):
        command.write("new", here / "x.html")
    assert (here / "x.html").read_text() == "old" and [path.name for path in here.iterdir()] == ["x.html"]
