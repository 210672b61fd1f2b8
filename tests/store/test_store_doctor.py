"""The doctor: silent on a healthy store, names every planted fault, and its figures are those of the tables."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from foreign import short_workflow, write_foreign_store
from healthy_market import CHANGES, CODES, DAYS, ENDS, INDICES, SIZES, SPLIT, day, edit, make_tables, put

from qlib_ext.demo.build import build_demo
from qlib_ext.errors import DataError
from qlib_ext.store import doctor, doctor_bars, doctor_etfs, doctor_intraday, doctor_members
from qlib_ext.store.doctor import Report, examine
from qlib_ext.store.findings import ADVICE, Section, percent
from qlib_ext.store.ingest import ingest
from qlib_ext.store.reading import StoreFiles

CHINEXT = [code for code in CODES if code.startswith("SZ30")]
STAR = [code for code in CODES if code.startswith("SH688")]
YEARS = DAYS.year


@pytest.fixture(scope="module")
def tables():
    return make_tables()


@pytest.fixture(scope="module")
def healthy(tables, tmp_path_factory):
    return ingest(tables, tmp_path_factory.mktemp("healthy") / "store", index_sizes=SIZES)


@pytest.fixture(scope="module")
def report(healthy):
    return examine(healthy)


def edit_members(store, name: str, change) -> None:
    file = store / "instruments" / f"{name}.txt"
    rows = [change(*line.split("\t")) for line in file.read_text().splitlines()]
    file.write_text("".join("\t".join(row) + "\n" for row in rows if row))


def plant_members(store) -> None:
    """csi300 never changes and has two codes too many, csi500 changes ten days late, csi1000 loses six codes in 2019."""
    members = sorted({line.split("\t")[0] for line in (store / "instruments" / "csi300.txt").read_text().splitlines()})[:32]
    (store / "instruments" / "csi300.txt").write_text("".join(f"{code}\t2018-06-01\t2020-12-31\n" for code in members))

    def late(code, start, end):
        shift = [DAYS[day(text) + 10] if pd.Timestamp(text) + pd.Timedelta(ahead, "D") in CHANGES else pd.Timestamp(text)
                 for text, ahead in ((start, 0), (end, 3))]  # a span ends on the Friday before a change
        return code, f"{shift[0]:%Y-%m-%d}", f"{shift[1]:%Y-%m-%d}"

    edit_members(store, "csi500", late)
    gone = sorted({line.split("\t")[0] for line in (store / "instruments" / "csi1000.txt").read_text().splitlines()})[12:18]

    def leave(code, start, end):
        if code not in gone:
            return code.lower(), start, end
        return (code.lower(), start, min(end, "2019-03-29")) if start < "2019-03-29" else None

    edit_members(store, "csi1000", leave)
    with open(store / "instruments" / "csi1000.txt", "a") as file:
        file.write("sh699999\t2018-06-01\t2018-06-29\n")


def plant_prices(store) -> None:
    """One stock for each fault of bars."""
    edit(store, "SH600010", ("open", "high", "low", "close"), put(slice(day("2019-08-01"), None), lambda v: 1.5 * v))
    edit(store, "SH600011", "high", put(day("2019-05-06"), lambda v: 1.2 * v))
    edit(store, "SH600012", "low", put(day("2019-05-07"), lambda v: 1.1 * v))
    edit(store, "SH600017", "low", put(day("2019-05-09"), 0))
    edit(store, "SH600013", "vwap", put(day("2019-05-08"), lambda v: 1.1 * v))
    flat = slice(day("2020-02-03"), day("2020-02-03") + 25)
    edit(store, "SH600014", ("open", "high", "low", "close"), put(flat, 20.0))
    for code in CODES[:160]:
        if code not in ENDS:
            edit(store, code, "volume", put(day("2020-09-01"), np.nan))
    (store / "features" / "sh600015" / "open.day.bin").write_bytes(b"")
    np.zeros(len(DAYS) + 9, "<f4").tofile(store / "features" / "sh600016" / "low.day.bin")


def plant_fields(store) -> None:
    """Fields that thin out, are absent or in another unit; index bars with holes; a calendar with a hole and a Saturday."""
    for code in CODES:
        edit(store, code, "amount", lambda v: v / 1000)
        edit(store, code, "is_st", put(YEARS == 2020, np.nan))
        edit(store, code, "report_age", put(YEARS == 2019, lambda v: v + 200))
        (store / "features" / code.lower() / "change.day.bin").unlink()
    for code in CHINEXT:
        edit(store, code, "amount", put(YEARS == 2020, np.nan))
    for code in STAR:
        (store / "features" / code.lower() / "turnover.day.bin").unlink()
    for place, code in enumerate(CODES[:10]):
        edit(store, code, "industry", put(slice(None), 900 + place))
    for code in CODES[40:80]:
        edit(store, code, "csi500_weight", put(day("2019-09-02"), lambda v: 2 * v))
    for code in CODES:
        edit(store, code, "csi1000_weight", put([5, 6, 7], np.nan))
    edit(store, "SH000905", "close", put([20, 30, 40], np.nan))
    for field in ("amount", "volume"):
        (store / "features" / "sh000852" / f"{field}.day.bin").unlink()
    calendar = store / "calendars" / "day.txt"
    calendar.write_text(calendar.read_text().replace("2019-03-06\n2019-03-07\n2019-03-08", "2019-03-07\n2019-03-08\n2019-03-09"))


@pytest.fixture(scope="module")
def sick_report(healthy, tmp_path_factory):
    """A copy with all faults at once."""
    store = tmp_path_factory.mktemp("sick") / "store"
    shutil.copytree(healthy, store)
    plant_members(store)
    plant_prices(store)
    plant_fields(store)
    for code in ENDS:
        shutil.rmtree(store / "features" / code.lower())
    for file in (store / "features" / "sh600020").iterdir():
        file.write_bytes(file.read_bytes()[:4 * (1 + day("2020-03-02"))])
    return examine(store)


@pytest.fixture(scope="module")
def sick(sick_report):
    return {(one["kind"], one["text"]) for one in sick_report.warnings}


def test_a_healthy_store_gives_no_warnings(report):
    assert report.warnings == [] and report.text().endswith("\nno warnings") and report.can_run


@pytest.mark.parametrize("kind, text", [
    ("no change of members", "csi300 has no new members around 2018-12-17, 2019-06-17, 2019-12-16, 2020-06-15"),
    ("too many members", "csi300 has more than 30 members on 675 days"),
    ("membership dates", "csi500: 4 of 4 half-yearly changes are late, by 10 to 10 trading days (median 10)"),
    ("too few members", "csi1000 has fewer than 95 % of its 80 members on "),
    ("too few members", "fewest on 2019-04-01: 74"),
    ("members lack", "csi1000 lacks on average 5 members in 2019, 6 members in 2020"),
    ("members without bars", "1 codes of csi1000 have no bars in the store: SH699999"),
    ("weights of non-members", "csi500 has weights on "),
    ("weights do not sum to 1", "csi500: on 1 days, worst 2019-09-02: "),
    ("weights of ended members", "because bars of 1 members end before their membership: SH600020"),
    ("days without weights", "csi1000: 3 days with members have no weight: 2018-06-08, 2018-06-11, 2018-06-12"),
    ("index incomplete", "SH000905 has no close on 3 days of the stocks: 2018-06-29, 2018-07-13, 2018-07-27"),
    ("index without volume", "SH000852 has neither amount nor volume"),
    ("calendar hole", "1 weekdays are missing that no known holiday explains: 2019-03-06"),
    ("weekend", "1 days of the calendar are Saturdays or Sundays: 2019-03-09"),
    ("thin day", "on 1 days fewer than half of the listed stocks trade: 2020-09-01 ("),
    ("jump", "3 moves of 2 stocks (2019-2020) exceed the day's price limit: a missing or wrong factor"),
    ("jump", "SH600010 2019-08-01 +"),
    ("outside limits", "SH600010 2019-08-01"),
    ("outside limits", "SH600011 2019-05-06"),
    ("prices", "2 bars have open or close outside [low, high], or a price of 0 or less (2019, 2 stocks): SH600012 2019-05-07"),
    ("prices", "SH600017 2019-05-09"),
    ("vwap", "SH600013 2019-05-08"),
    ("stale prices", "1 runs of more than 20 traded days at one and the same price: SH600014 from 2020-02-04 (24 days)"),
    ("units", "amount / (volume x close) is 0.001, not about 1: amount in thousands"),
    ("ST unknown", "is_st is unknown for 100 % in 2020"),
    ("stale fundamentals", "ended more than 270 days ago for "),
    ("industry count", "41 industries are in force on 675 days"),
    ("survivorship", "next to no stock is ever delisted (1 of 236 in "),
    ("stocks that stop", "1 stocks stop early (last trade) without a delisting on record: SH600020 (2020-02-28)"),
    ("coverage drop", "amount thins out on board chinext: 100 % in 2019 to 0 % in 2020"),
    ("board without a field", "turnover is absent on board star (2018-2020), other boards have it"),
    ("field absent", "no stock has $change: Qlib's exchange would let every order pass the price limits"),
    ("damaged files", "2 feature files are empty, unreadable or do not fit the calendar, and were read as unknown: "),
    ("spelling of codes", "instruments files ['csi1000'] spell codes in lower case"),
])
def test_every_planted_fault_is_named(sick, kind, text):
    assert any(kind == found and text in said for found, said in sick), sorted(said for found, said in sick if found == kind)


def test_nothing_else_is_reported(sick):
    """Every kind of warning is one that was planted."""
    planted = {mark.args[1][k][0] for mark in test_every_planted_fault_is_named.pytestmark for k in range(len(mark.args[1]))}
    assert {kind for kind, _ in sick} == planted


def test_figures_are_those_of_the_tables(report, tables):
    sections = {section.title: section.figures for section in report.sections}
    bars = tables["bars"]
    spans = bars.groupby("instrument")["date"].agg(["min", "max"])
    listed = sum(len(DAYS[(DAYS >= low) & (DAYS <= high) & (YEARS == 2019)]) for low, high in spans.itertuples(index=False))
    suspended = 1 - len(bars[bars["date"].dt.year == 2019]) / listed
    assert sections["Calendar and suspensions"]["suspended"][2019] == pytest.approx(suspended)
    coverage = sections["Coverage"]["limit_up"]["all"][2018]
    assert 0 < coverage < 1
    members = tables["membership"]
    for name, size in SIZES.items():
        count = [((members["index"] == name) & (members["start"] <= one) & (members["end"] >= one)).sum() for one in DAYS]
        assert sections["Members of indices"][name]["fewest"] == min(count) == size
    assert sections["Survivors and stocks that stop"]["stops"] == {code: str(DAYS[ENDS[code] - 1].date()) for code in ENDS}
    turnover = sections["Coverage"]["turnover"]
    assert turnover["star"] == {2018: 1, 2019: 1, 2020: 1} and set(turnover) == {"all", "main", "chinext", "star"}


def test_members_against_bars_is_the_plain_sum(healthy, report):
    """Yearly difference of one index, by a loop over days."""
    files = StoreFiles(healthy)
    weight, close = files.panel("csi300_weight").astype(float), files.panel("close").astype(float)
    index = files.panel("close", [INDICES["csi300"]])[0].astype(float)
    close = pd.DataFrame(close).ffill(axis=1).to_numpy()
    gaps = []
    for k in range(1, len(DAYS)):
        move = np.nan_to_num(close[:, k] / close[:, k - 1] - 1)
        gaps.append(np.nansum(weight[:, k - 1] * move) - (index[k] / index[k - 1] - 1))
    figures = next(section.figures for section in report.sections if section.title == "Index weights")["csi300"]
    assert figures["return_over_index_bars"] == pytest.approx(np.mean(gaps) * 244, abs=1e-4)
    assert figures["tracking_error"] == pytest.approx(np.std(gaps) * 244**0.5, abs=1e-4)


def test_arrays_are_the_files(healthy, tables):
    files = StoreFiles(healthy)
    rows = tables["bars"].query("instrument == @SPLIT").set_index("date")
    place = list(files.codes).index(SPLIT)
    expected = (rows["close"] * rows["factor"]).reindex(DAYS).to_numpy()
    np.testing.assert_allclose(files.close[place], expected, rtol=1e-6)
    assert files.traded[place].sum() == len(rows) and files.kinds["stock"] == len(CODES)
    assert list(np.unique(files.boards)) == ["chinext", "main", "star"]
    late = list(files.codes).index("SZ300056")
    assert files.bounds[late].tolist() == [150, len(DAYS) - 1] and not files.listed[late, 149]


def test_json_is_plain(report):
    content = json.loads(report.json())
    assert content["warnings"] == [] and content["can_run"] is True and len(content["sections"]) == len(report.sections)


def test_json_has_null_for_what_is_not_finite():
    day = np.datetime64("2020-01-02")
    figures = {"a": float("nan"), 2019: np.float32(np.inf), "b": [np.int64(3), (np.nan, None, True)], "c": day}
    found = json.loads(Report("s", [Section("one", figures)]).json(), parse_constant=pytest.fail)
    assert found["sections"][0]["figures"] == {"a": None, "2019": None, "b": [3, [None, None, True]], "c": "2020-01-02"}


def test_one_workflow_that_cannot_run_is_enough():
    fine, faulty = {"faults": [], "warnings": []}, {"faults": ["f"], "warnings": []}
    assert Report("s", []).can_run and Report("s", [], {"a": fine}).can_run
    assert not Report("s", [], {"a": fine, "b": faulty}).can_run


@pytest.mark.parametrize("share, said", [(0.99999, "99"), (1.0, "100"), (1e-6, "1"), (0, "0"), (0.985, "98"), (np.nan, "-")])
def test_percent_is_100_and_0_only_where_it_is_so(share, said):
    assert percent(share) == said


def test_text_is_100_wide_and_says_what_to_do(sick_report):
    assert max(map(len, sick_report.text().splitlines())) <= 100
    text = " ".join(sick_report.text().split())
    for one in sick_report.warnings:
        assert " ".join(f"WARNING {one['kind']}: {one['text']}".split()) in text and f"-> {one['advice']}" in text


def test_every_kind_has_advice():
    sources = "".join(Path(module.__file__).read_text() for module in (doctor, doctor_bars, doctor_etfs, doctor_intraday,
                                                                           doctor_members))
    kinds = set(re.findall(r'(?:warn\(|_warn_cells\(section, )"([^"]+)"', sources))
    assert len(kinds) > 30 and kinds == set(ADVICE)


def test_damaged_and_upper_case_files_stop_a_workflow(tmp_path, monkeypatch):
    """An empty file of a stock, a folder in the place of an index file, a folder in upper case."""
    monkeypatch.setenv("QLIB_EXT_DEVICE", "cpu")
    store, workflow = write_foreign_store(tmp_path / "store"), short_workflow("gru_csi300", tmp_path / "w.yaml")
    assert examine(store, [workflow]).can_run
    (store / "features" / "sh600005" / "close.day.bin").write_bytes(b"")
    (store / "features" / "sh000300" / "open.day.bin").unlink()
    (store / "features" / "sh000300" / "open.day.bin").mkdir()
    found = examine(store, [workflow])
    assert not found.can_run and examine(store).can_run
    assert any("2 feature files are empty" in one and "sh600005/close" in one and "sh000300/open" in one
               for one in found.workflows[str(workflow)]["faults"])
    shutil.rmtree(store / "features" / "sh600005")
    (store / "features" / "sh600007").rename(store / "features" / "SH600007")
    found = examine(store, [workflow])
    assert any(one.startswith("folders not lower case: 1 folders") and "SH600007" in one
               for one in found.workflows[str(workflow)]["faults"])


@pytest.mark.parametrize("line", ["SH600001,2019-01-01,2020-06-30", "SH600001 2019-01-01 2020-06-30", "SH600001\t2019-01-01",
                                  "SH600001\t2019-01-01\tlater"])
def test_a_malformed_line_of_an_instruments_file_is_named(tmp_path, line):
    store = write_foreign_store(tmp_path / "store")
    file = store / "instruments" / "csi300.txt"
    file.write_text("\n" + file.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"instruments/csi300.txt, line 32 \(1 such lines\), is 'SH600001"):
        examine(store)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="instruments/csi300.txt cannot be read"):
        examine(store)


def test_what_is_no_store_is_refused(tmp_path, healthy):
    with pytest.raises(DataError, match="does not exist"):
        examine(tmp_path / "none")
    broken = tmp_path / "broken"
    shutil.copytree(healthy, broken, ignore=shutil.ignore_patterns("sz30*", "sh68*", "sh601*"))
    (broken / "calendars" / "day.txt").write_text("2020-01-02\n2020-01-01\n")
    with pytest.raises(DataError, match="not in increasing order"):
        examine(broken)
    (broken / "calendars" / "day.txt").write_text("2020-01-02\nmonday\n")
    with pytest.raises(DataError, match="cannot be read"):
        examine(broken)
    (broken / "calendars" / "day.txt").write_text("".join(f"{one:%Y-%m-%d}\n" for one in DAYS))
    for file in (broken / "features").rglob("close.day.bin"):
        file.unlink()
    with pytest.raises(DataError, match="no stock has a close"):
        examine(broken)


@pytest.mark.slow
def test_the_demo_gives_no_warnings(tmp_path):
    found = examine(build_demo(tmp_path / "demo"))
    assert found.warnings == [] and "the data are generated" in found.text()
