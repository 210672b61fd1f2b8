"""The tear sheet: valid, self-contained, in two languages, with every figure, the same each time; and in a real headless browser."""

import json
import re
import shutil
import subprocess
from html import escape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sheet_tables import DAYS_SHORT, facts, factor_tables, leak_tables, portfolio_tables, reports

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report import factor_text, sentences
from qlib_ext.report.cells import cell, kind_of
from qlib_ext.report.page import Voice, table_html
from qlib_ext.report.plots import PLOTS
from qlib_ext.report.saved import Saved
from qlib_ext.report.table import Table
from qlib_ext.report.tearsheet import compare_sheet, tear_sheet
from qlib_ext.report.words import both, known

VOID = {"meta", "link", "input", "br"}


class Reader(HTMLParser):
    """Checks that all tags are closed in order; gathers texts, addresses, identifiers and tables."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.open, self.faults, self.addresses, self.marks, self.texts, self.tables = [], [], [], [], [], []
        self.feed(page)
        self.faults += [f"{tag} stays open" for tag in self.open]

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href", "srcset", "action", "data")]
        self.marks += [value for name, value in attributes if name == "id"]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing")

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_data(self, text):
        self.texts.append(text)
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += text


@pytest.fixture(scope="module")
def saved():
    return reports(DAYS_SHORT)


@pytest.fixture(scope="module")
def page(saved):
    return tear_sheet(saved)


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


# ---- the page as text ---------------------------------------------------------------------------------------------------------
def test_the_page_is_valid_small_and_asks_for_nothing(page, read):
    assert not read.faults and page.startswith("<!DOCTYPE html>") and len(page.encode()) < 5e6
    assert all(address.startswith("#") or address == "data:," for address in read.addresses)
    assert "://" not in page and "@import" not in page and not re.search(r"url\((?!#)", page)
    assert page.count("<script>") == 1 and "<svg" in page and 'name="viewport"' in page and "default-src 'none'" in page
    assert len(read.marks) == len(set(read.marks))
    wanted = {address[1:] for address in read.addresses if address.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", page))
    assert wanted <= set(read.marks)
    assert not any(words in page.lower() for words in ("<script src", "<iframe", "<object"))


def test_the_parser_of_this_test_finds_faults():
    assert Reader("<div><p>x</div>").faults and Reader("<div>").faults and not Reader("<div><br><p>x</p></div>").faults


def test_the_same_reports_make_the_same_bytes(saved, page):
    again = [Saved(one.kind, dict(one.tables), dict(one.facts), one.folder) for one in reversed(saved)]
    assert tear_sheet(again) == page


def test_every_figure_of_every_table_is_in_the_page(saved, read):
    rows = {tuple(text for text in row) for table in read.tables for row in table}
    daily = ("daily", "quantile_daily", "exposure", "attribution_daily")
    for report in saved:
        for name, table in report.tables.items():
            if name in daily:
                continue
            for number, key in enumerate(table.frame.index):
                last = key[-1] if isinstance(key, tuple) else key
                keys = [str(one) for one in (key if isinstance(key, tuple) else [key])]
                columns = sorted(table.frame, key=lambda column: name in ("broker", "by_week", "by_month", "by_year") and "day" in column)
                figures = [cell(table.frame[column].iloc[number], kind_of(last, column, name)) for column in columns]
                said = tuple("".join(dict.fromkeys(both(text))) for text in [*keys, *figures])
                assert said in rows, (name, said)


def test_conventions_and_statement_are_printed(saved, page):
    for report in saved:
        for name, table in report.tables.items():
            assert escape(table.convention) in page and escape(both(table.convention)[1]) in page, name
    assert "This market is generated" in page and "0.1100" in page and "本市场为程序生成" in page
    assert "the store has no volume" in page
    badges = re.findall(r'class="badge([ a-z]*)"><span lang="en">([^<]*)<', page)
    assert badges == [("", "pass"), (" unknown", "not run"), (" bad", "FAIL")]


def test_data_that_are_not_generated_and_data_of_unknown_origin():
    one = [Saved("leaks", leak_tables(), facts(generated=False))]
    assert "generated" not in tear_sheet(one, "en").lower().replace("generated data", "")
    assert "is not known" in tear_sheet([Saved("leaks", leak_tables(), facts(generated=None))], "en")
    null = facts(best_possible_ic=None, best_possible_ics={"all": None})
    assert "the best possible IC is 0" in tear_sheet([Saved("leaks", leak_tables(), null)], "en")


def test_names_are_escaped(saved):
    bad = "<script>alert(1)</script>&\"'"
    about = facts(experiment=bad, model=bad, portfolio=bad, notes=[bad], store=bad)
    tables = {**leak_tables(), "checks": Table(leak_tables()["checks"].frame.rename(index={"too_good": bad}), bad)}
    frame = factor_tables(9)["by_board"].frame.rename(index={"main": bad}, columns={"IC": bad})
    made = tear_sheet([Saved("leaks", tables, about), Saved("factor", {"by_board": Table(frame, bad)}, about),
                       Saved("portfolio", {"summary": portfolio_tables(9)["summary"]}, about)])
    assert "<script>alert" not in made and "&lt;script&gt;alert" in made and not Reader(made).faults
    styles = factor_tables(9)["style_exposure"].frame.rename(index={"size": bad})
    drawn = tear_sheet([Saved("factor", {"style_exposure": Table(styles, "")}, facts())])
    assert "<script>alert" not in drawn and not Reader(drawn).faults
    side = compare_sheet([(bad, saved), ("b", saved)])
    assert "<script>alert" not in side and not Reader(side).faults


def test_absent_tables_and_reports_are_left_out(saved, page):
    factor = {name: table for name, table in saved[0].tables.items() if name not in ("decay", "by_week", "quantile_daily", "summary")}
    made = tear_sheet([Saved("factor", factor, facts(label=None))])
    assert "Decay over horizons" in page and not any(title in made for title in ("Decay over horizons", "By week", "Net value by group"))
    assert "Portfolio" not in made and "Leak checks" not in made and not Reader(made).faults
    assert tear_sheet([Saved("factor", {}, {})]) and tear_sheet([Saved("leaks", {}, {})])


def test_named_portfolios_have_sections_of_their_own(saved):
    tables = {name: table for name, table in portfolio_tables(9).items() if "daily" not in name}
    named = [Saved("portfolio", tables, facts(portfolio=name), f"portfolio_report/{name}") for name in ("cost 0", "cost 20")]
    read = Reader(tear_sheet(named))
    assert [mark for mark in read.marks if re.fullmatch(r"s\d", mark)] == ["s1", "s2"] and "cost 20" in " ".join(read.texts)
    assert len(read.marks) == len(set(read.marks))


@pytest.mark.parametrize("call, error", [
    (lambda: tear_sheet([]), DataError), (lambda: tear_sheet(reports(9), "fr"), ConfigError),
    (lambda: compare_sheet([("a", reports(9))]), ConfigError), (lambda: compare_sheet([("a", reports(9)), ("a", reports(9))]), ConfigError),
    (lambda: compare_sheet([("a", reports(9)), ("b", [Saved("leaks", leak_tables(), {})])]), DataError),
])
def test_what_cannot_be_made_is_refused(call, error):
    with pytest.raises(error):
        call()


def test_several_runs_side_by_side(saved):
    other = [Saved("factor", factor_tables(60, 7), facts(universe="csi1000", generated=False), "factor_report")]
    made = compare_sheet([("one", saved), ("two", other)])
    read = Reader(made)
    assert not read.faults and "These runs do not share one test" in made and "This market is generated" in made
    keys = next(table for table in read.tables if any(row[0] == "ICIR" for row in table))
    assert [row for row in keys if row[0] == "ICIR"] == [["ICIR", "0.51", "0.51"]]
    months = next(table for table in read.tables if any(row[0] == "2023-02" for row in table))
    shown = {row[0]: row[1:] for row in months}
    first, second = (one[0].tables["by_month"].frame["RankIC"] for one in (saved, other))
    assert shown["2023-02"] == [cell(one["2023-02"], "ic") for one in (first, second)] and shown["2023-05"][1] == "–"
    same = compare_sheet([("one", saved), ("two", saved)])
    assert "do not share one test" not in same and "Excess net value" in same and same == compare_sheet([("one", saved), ("two", saved)])


# ---- figures as text ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value, row, column, table, text", [
    (0.05123, "2024", "IC", "by_year", "0.0512"), (-0.00001, "2024", "RankIC", "by_year", "0.0000"),
    (0.3312, "raw", "exp(-RankMAE)", "", "0.3312"),
    (-0.0512, "Week", "excess over price_index", "broker", "−5.12%"), (2.035, "IR", "return", "broker", "2.04"),
    (1.5, "raw", "IC t", "", "1.50"),
    (0.51, "ICIR", "value", "summary", "0.51"), (28.41, "turnover of the top group a year", "value", "summary", "28.41×"),
    (480.0, "days", "value", "summary", "480"), (1234.5, "main", "names", "by_board", "1,234.5"),
    (0.00123, "Q1", "mean forward return", "", "0.123%"),
    (0.02, "银行", "top group", "industry_exposure", "2.00%"), (0.02, "size", "top group", "style_exposure", "0.020"),
    (np.nan, "a", "IC", "", "–"), (None, "a", "IC", "", "–"), (pd.NaT, "1", "end", "", "–"),
    (pd.Timestamp("2024-01-31"), "1", "end", "", "2024-01-31"),
    (np.inf, "IR", "x", "", "∞"), (2.2e-16, "largest gap", "value", "certificates", "2.2e−16"),
    (0.0412, "forecast tracking error, mean", "value", "certificates", "4.12%"),
    (True, "a", "passed", "", "yes"), ("text", "a", "IC", "", "text"), (0.2, "volatility_60", "t", "attribution", "0.20"),
])
def test_figures_are_written_by_their_kind(value, row, column, table, text):
    assert cell(value, kind_of(row, column, table)) == text


def test_long_tables_say_what_they_leave_out():
    frame = pd.DataFrame({"IC": np.arange(700) / 1e4}, index=pd.Index([f"row {n}" for n in range(700)], name="x"))
    made = tear_sheet([Saved("factor", {"new": Table(frame, "")}, {})], "en")
    assert "The last 600 of 700 rows" in made and "row 699" in made and "row 99<" not in made


# ---- two languages ------------------------------------------------------------------------------------------------------------
def test_both_languages_are_complete(saved, page):
    less = [Saved(one.kind, {name: table for name, table in one.tables.items() if "daily" not in name}, one.facts) for one in saved]
    english, chinese = tear_sheet(less, "en"), tear_sheet(less, "zh")
    assert 'lang="zh"' not in english and 'lang="en"' not in chinese and "<script" not in english + chinese
    assert page.count('lang="en"') == page.count('lang="zh"') + 1                                          # that of the page itself
    assert not re.search("[\u4e00-\u9fff]", english)
    words = set(re.findall(r"[a-z]{3,}", " ".join(Reader(chinese).texts[20:])))
    assert "因子评价" in chinese and not words & {"return", "excess", "score", "month", "trading"}, words


def test_every_name_of_tables_and_plots_has_chinese(saved):
    names = {plot.title for plot in PLOTS.values()}
    for report in saved:
        for name, table in report.tables.items():
            keys = [one for key in table.frame.index for one in (key if isinstance(key, tuple) else [key])]
            names |= {name, *map(str, table.frame.columns), *(str(key) for key in keys if not isinstance(key, pd.Timestamp))}
    assert not sorted(name for name in names if not known(name))
    assert not known("a word nobody knows") and both("a word nobody knows") == ("a word nobody knows",) * 2


def test_every_sentence_of_the_real_reports_has_chinese():
    from test_factor import make_view
    from test_portfolio_report import view

    from qlib_ext.report.factor import factor_report
    from qlib_ext.report.portfolio import portfolio_report
    few = {"quantiles": 5, "min_count": 10}
    bare = make_view(styles={}, benchmark=None, industry=None, horizon=1)
    made = [factor_report(make_view(), few), factor_report(bare, {**few, "rebalance": 3}), portfolio_report(view())]
    for report in made:
        names = {table.convention for table in report.values()}
        for name, table in report.items():
            names |= {name, *table.frame.columns, *(text for text in table.frame.to_numpy().ravel() if isinstance(text, str))}
            names |= {str(level) for level in table.frame.index.names if level}
        assert not sorted(name for name in names if not known(str(name)))
        for table in report.values():
            chinese = both(table.convention)[1]
            assert not re.search(r"[a-z]{5,} [a-z]{3,}", chinese), chinese


def test_translated_sentences_hold_the_values_of_the_english_ones():
    assert set(sentences.FACTOR_CHINESE) == set(factor_text.SENTENCES)
    pairs = [(factor_text.SENTENCES[name], chinese) for name, chinese in sentences.FACTOR_CHINESE.items()] + sentences.OTHERS
    for english, chinese in pairs:
        assert set(re.findall(r"\{(\w+)\}", english)) >= set(re.findall(r"\{(\w+)\}", chinese)), english
    assert both("After cost, to 2024-01-31. Turnover is one-way.")[1] == "费后，截至2024-01-31。换手为单边。"


def test_a_voice_of_one_language_has_no_marks():
    frame = pd.DataFrame({"return": [0.1]}, index=pd.Index(["Week"], name="period"))
    assert "lang=" not in table_html(frame, Voice("en")) and "10.00%" in table_html(frame, Voice("zh"))
    assert Voice("both").html("Week") == '<span lang="en">Week</span><span lang="zh">本周</span>'
    said = Voice("both").html("not run: <b>&")
    assert said == '<span lang="en">not run: &lt;b&gt;&amp;</span><span lang="zh">未进行：&lt;b&gt;&amp;</span>'


# ---- in a browser -------------------------------------------------------------------------------------------------------------
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync", "--disable-extensions", "--enable-logging=stderr", "--virtual-time-budget=4000")
PROBE = """<script>
const bad = [];
addEventListener("securitypolicyviolation", e => bad.push(e.blockedURI)); addEventListener("error", e => bad.push(e.message));
addEventListener("load", () => setTimeout(() => {
  const shown = s => [...document.querySelectorAll(s)].filter(e => e.getClientRects().length).length, page = document.querySelector("main");
  const wide = [...document.querySelectorAll("main *")]
    .filter(e => !e.closest(".scroll,svg") && e.getBoundingClientRect().right > innerWidth + 1);
  const before = [shown("[lang=en]"), shown("span[lang=zh]")]; document.getElementById("lang-zh").checked = true;
  parent.postMessage({width: innerWidth, scroll: document.scrollingElement.scrollWidth,
    asked: performance.getEntriesByType("resource").length, wide: wide.length, bad: bad, english: before,
    chinese: [shown("main [lang=en]"), shown("span[lang=zh]")],
    colour: getComputedStyle(page).backgroundColor,
    columns: getComputedStyle(document.querySelector(".plots")).gridTemplateColumns.split(" ").length,
    letters: Math.min(...[...document.querySelectorAll("svg text")].map(e => e.getBoundingClientRect().height)),
    boxes: [...document.querySelectorAll(".scroll")].filter(e => e.clientWidth > e.parentNode.clientWidth ||
      e.scrollWidth > e.clientWidth && getComputedStyle(e).overflowX != "auto").length}, "*");
}, 200));</script></main>"""


def browse(tmp_path, *more) -> subprocess.CompletedProcess:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on this machine")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *map(str, more)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CONSOLE" not in done.stderr, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done


def probed(page: str, tmp_path, *flags) -> list[dict]:
    """What the page says of itself, shown 1280 and 390 pixels wide."""
    (tmp_path / "sheet.html").write_text(page.replace("</main>", PROBE), encoding="utf-8")
    frames = "".join(f'<iframe src="sheet.html" style="width:{width}px;height:900px;border:0"></iframe>' for width in (1280, 390))
    (tmp_path / "frames.html").write_text("<!DOCTYPE html><pre></pre><script>onmessage = e => document.querySelector('pre').append("
                                          f"JSON.stringify(e.data) + '\\n')</script>{frames}", encoding="utf-8")
    done = browse(tmp_path, "--window-size=1700,1000", *flags, "--dump-dom", (tmp_path / "frames.html").as_uri())
    lines = re.search(r"<pre>(.*?)</pre>", done.stdout, re.S)[1].strip().splitlines()
    return sorted((json.loads(line.replace("&lt;", "<").replace("&amp;", "&")) for line in lines), key=lambda found: -found["width"])


def test_the_page_in_a_browser(page, tmp_path):
    desk, phone = probed(page, tmp_path)
    assert (desk["width"], phone["width"]) == (1280, 390)
    for found in (desk, phone):
        assert found["scroll"] <= found["width"] and not found["wide"] and not found["boxes"]
        assert not found["asked"] and not found["bad"]
        assert found["english"][0] > 100 and not found["english"][1] and found["chinese"][1] > 100 and not found["chinese"][0]
        assert found["letters"] > 8, found["letters"]
        assert found["colour"] == "rgb(246, 247, 249)"
    assert desk["columns"] == 2 and phone["columns"] == 1


def test_the_probe_finds_a_wide_page_and_a_request(page, tmp_path):
    fault = '<main><p style="width:2000px">wide</p><img src="https://example.org/x.png">'
    broken = page.replace("<main>", fault, 1).replace("overflow-x:clip", "")
    command_fails = False
    try:
        desk, phone = probed(broken, tmp_path)
    except AssertionError as error:
        command_fails = "CONSOLE" in str(error)
    assert command_fails or (phone["wide"] and phone["scroll"] > phone["width"] and phone["bad"])


def test_the_page_is_dark_where_the_reader_is(page, tmp_path):
    desk, phone = probed(page, tmp_path, "--force-dark-mode")
    assert desk["colour"] == phone["colour"] == "rgb(15, 19, 23)"


def test_the_page_prints(page, tmp_path):
    (tmp_path / "sheet.html").write_text(page, encoding="utf-8")
    made = tmp_path / "sheet.pdf"
    browse(tmp_path, "--force-dark-mode", f"--print-to-pdf={made}", "--no-pdf-header-footer", (tmp_path / "sheet.html").as_uri())
    content = made.read_bytes()
    assert content.startswith(b"%PDF") and 3 <= len(re.findall(rb"/Type\s*/Page\b", content)) < 30
