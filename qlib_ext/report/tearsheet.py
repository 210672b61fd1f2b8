"""A run's reports as one self-contained HTML page, and several runs side by side."""

from __future__ import annotations

import json
from html import escape
from typing import Mapping, Optional, Sequence

import numpy as np
import pandas as pd

from qlib_ext.demo.truth import STATEMENT
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.cells import cell, kind_of
from qlib_ext.report.drawing import PAGE, Entry, legend, svg
from qlib_ext.report.page import LANGUAGES, Voice, card, document, keys_html, table_html, toolbar
from qlib_ext.report.plots import BENCHMARKS, PLOTS, available, compared, excess_column, excess_nav, named
from qlib_ext.report.saved import Saved
from qlib_ext.report.table import Table
from qlib_ext.report.words import both

ORDER = ("leaks", "factor", "portfolio")
FIRST = ("broker", "by_year", "by_month")
"""Tables that stand before the plots."""
LATEST_FIRST = ("by_year", "by_month", "by_week", "RankIC by month", "Excess by month")
MOST_ROWS = 600
HALF = 5
"""Columns of a table that needs half a page's width."""
KEYS = {"factor": ("IC", "RankIC", "ICIR", "ICIR annualised", "IC t", "exp(-RankMAE)", "IC win rate", "long-short a year",
                   "long-only excess a year"),
        "portfolio": ("return a year", "excess a year", "excess a year (geometric)", "tracking error", "IR", "max drawdown",
                      "excess max drawdown", "turnover a year", "cost a year")}
FACTS = ("experiment", "recorder", "model", "universe", "index", "label", "test", "scored", "span", "entry", "data_until", "store",
         "best_possible_ic", "versions")


def tear_sheet(reports: Sequence[Saved], language: str = "both") -> str:
    """One HTML page: header, leak checks, key figures, tables as brokers print them, plots, the other tables.

    Args:
        reports: of one run, in any order. language: ``en``, ``zh``, or ``both`` with a switch.

    Raises:
        ConfigError: unknown language. DataError: nothing to report.
    """
    voice = _voice(language)
    if not reports:
        raise DataError("nothing to report: put FactorReportRecord, PortfolioReportRecord or LeakCheckRecord before the tear sheet")
    ordered = sorted(map(named, reports), key=lambda report: (ORDER.index(report.kind), report.folder))
    facts = _facts(ordered)
    sections = [(f"s{number}", *_section(report, voice, f"s{number}")) for number, report in enumerate(ordered, 1)]
    body = [toolbar(voice), _header(facts, voice, "tear sheet"), _banner(facts, voice), _facts_html(facts, voice), _notes(ordered, voice),
            _nav([(mark, title) for mark, title, _ in sections], voice)]
    body += [f'<h2 id="{mark}">{title}</h2>\n{content}' for mark, title, content in sections]
    title = " · ".join(str(facts[name]) for name in ("experiment", "model") if facts.get(name)) or "qlib_ext"
    return document(f"{title} · {'研究报告单' if language == 'zh' else 'Tear sheet'}", "\n".join(filter(None, body)), language)


def compare_sheet(runs: Sequence[tuple[str, Sequence[Saved]]], language: str = "both") -> str:
    """Runs side by side on one page: facts, key figures, RankIC by month, running sums and excess net values on one plot each.

    Args:
        runs: (name, its reports), two or more; names differ.

    Raises:
        ConfigError: unknown language, fewer than two runs, or a name twice. DataError: a run without a factor or portfolio report.
    """
    voice, names = _voice(language), [name for name, _ in runs]
    if len(runs) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"runs {names}: give two or more, with different names")
    bare = [name for name, reports in runs if not any(report.kind in ("factor", "portfolio") for report in reports)]
    if bare:
        raise DataError(f"runs {bare} have no factor or portfolio report: run FactorReportRecord or PortfolioReportRecord on them")
    runs = [(name if both(name) == (name, name) else f"“{name}”", reports) for name, reports in runs]      # no word of ours: not translated
    facts = {name: _facts(reports) for name, reports in runs}
    body = [toolbar(voice), _header({"experiment": " · ".join(names)}, voice, "comparison")]
    body += [_banner(one, voice) for one in _different(facts.values(), ("generated", "best_possible_ic"))]
    body += [_same_test(facts, voice), card("Facts", table_html(_facts_frame(facts), voice, "facts"), "", voice)]
    body += [_compare_kind(kind, runs, voice) for kind in ("factor", "portfolio")]
    return document(f"{' · '.join(names)} · {'模型对比' if language == 'zh' else 'Comparison'}", "\n".join(filter(None, body)), language)


def _voice(language: str) -> Voice:
    if language not in (*LANGUAGES, "both"):
        raise ConfigError(f"language={language!r}: choose one of {[*LANGUAGES, 'both']}")
    return Voice(language)


# ---- header -------------------------------------------------------------------------------------------------------------------
def _facts(reports: Sequence[Saved]) -> dict:
    """What the reports say of their run: the first that knows a thing."""
    found: dict = {}
    for report in reports:
        found |= {name: value for name, value in report.facts.items() if found.get(name) is None}
    if found.get("test") is None:
        found["test"] = (found.get("segments") or {}).get("test")
    return found


def _header(facts: Mapping, voice: Voice, kind: str) -> str:
    below = " · ".join(escape(_fact(facts[name])) for name in ("model", "universe", "test") if facts.get(name))
    return (f'<header><p class="kicker">{voice.html(kind)}</p><h1>{escape(str(facts.get("experiment") or "–"))}</h1>'
            f'<p class="sub">{below}</p></header>')


def _fact(value) -> str:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(one, str) for one in value):
        return f"{value[0][:10]} … {value[1][:10]}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(one)}" for name, one in value.items() if one is not None)
    return cell(value, "ic") if isinstance(value, float) else str(value)


def _banner(facts: Mapping, voice: Voice) -> str:
    """The statement on generated data; a warning where it is not known."""
    if facts.get("generated"):
        if facts.get("statement"):
            return _warning(voice.html("generated market"), voice.html(facts["statement"]))
        best, every = facts.get("best_possible_ic"), facts.get("best_possible_ics")
        best = f"{voice.html('best_possible_ic')}: {escape(_fact(best))}" if best is not None else ""
        if not best and every and all(one is None for one in every.values()):
            best = voice.html("Nothing can be known in it: the best possible IC is 0.")
        return _warning(voice.html("generated market"), voice.html(STATEMENT), best)
    if facts.get("generated") is None:
        return _warning("", voice.html(facts.get("statement") or "Whether the data were generated is not known."))
    return ""


def _warning(title: str, *lines: str) -> str:
    """A framed notice from parts that are markup already."""
    shown = [f"<b>{title}</b>" if title else "", *lines]
    return '<div class="banner" role="note">' + "".join(f"<p>{line}</p>" for line in shown if line) + "</div>"


def _facts_html(facts: Mapping, voice: Voice) -> str:
    shown = [(name, _fact(facts[name])) for name in FACTS if facts.get(name) is not None]
    boxes = "".join(f"<div><dt>{voice.html(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in shown)
    return f'<dl class="facts">{boxes}</dl>'


def _notes(reports: Sequence[Saved], voice: Voice) -> str:
    notes = list(dict.fromkeys(note for report in reports for note in report.facts.get("notes") or []))
    return "".join(f'<p class="note">{voice.html("Note:")} {voice.html(note)}</p>' for note in notes)


def _nav(sections: Sequence[tuple[str, str]], voice: Voice) -> str:
    return "<nav>" + "".join(f'<a href="#{mark}">{title}</a>' for mark, title in sections) + "</nav>" if len(sections) > 1 else ""


# ---- one report ---------------------------------------------------------------------------------------------------------------
def _section(report: Saved, voice: Voice, mark: str) -> tuple[str, str]:
    """Title and content of a report."""
    name = report.facts.get("portfolio") if report.kind == "portfolio" else None
    title = voice.html(report.kind) + (f" · {escape(str(name))}" if name else "")
    if report.kind == "leaks":
        return title, _leaks(report, voice)
    names = available(report.kind, report.tables)
    plotted = {PLOTS[plot].table for plot in names}
    plots = "".join(plot_html(PLOTS[plot].draw(report.tables, PAGE), PLOTS[plot].title, f"{mark}-{plot}",
                              report.tables[PLOTS[plot].table].convention, voice) for plot in names)
    before = [table for table in FIRST if table in report.tables]
    after = [table for table, one in report.tables.items()
             if table not in before and not (table in plotted and isinstance(one.frame.index, pd.DatetimeIndex))]
    half = [table for table in after if _is_small(report.tables[table].frame)]
    half = half[:len(half) // 2 * 2]                                                    # two of them share a row
    after = [(table, "half") for table in half] + [(table, "full") for table in after if table not in half]
    first = "".join(_table(table, report.tables[table], voice) for table in before)
    last = "".join(_table(table, report.tables[table], voice, width) for table, width in after)
    boxes = [f'<div class="{kind}">{content}</div>' for kind, content in (("plots", plots), ("tables", last)) if content]
    return title, "\n".join(filter(None, [_keys(report, voice), first, *boxes]))


def _is_small(frame: pd.DataFrame) -> bool:
    return frame.shape[1] + frame.index.nlevels <= HALF


def _table(name: str, table: Table, voice: Voice, width: str = "full") -> str:
    frame, left = table.frame.iloc[::-1] if name in LATEST_FIRST else table.frame, ""
    if name in (*FIRST, *LATEST_FIRST):                                                # what a window is comes after what it earned
        frame = frame[sorted(frame, key=lambda column: column in ("first day", "last day", "days"))]
    if len(frame) > MOST_ROWS:
        frame = frame.iloc[:MOST_ROWS] if name in LATEST_FIRST else frame.iloc[-MOST_ROWS:]
        left = f'<p class="note">{voice.html(f"The last {MOST_ROWS} of {len(table.frame)} rows; the recorder has all.")}</p>'
    return card(name, table_html(frame, voice, name) + left, table.convention, voice, f"{'short' if len(frame) <= 20 else 'long'} {width}")


def plot_html(figure, title: str, mark: str, note: str, voice: Voice) -> str:
    """A figure drawn for the page with its title above, its legend and what its table's convention says below."""
    entries = "".join(f"<li>{_swatch(one)}<span>{voice.html(one.label)}</span></li>" for one in legend(figure))
    return (f'<figure class="plot" aria-label="{escape(both(title)[0])}"><h3>{voice.html(title)}</h3>{voice.drawing(svg(figure, mark))}'
            + (f'<ul class="legend">{entries}</ul>' if entries else "")
            + f'<figcaption class="note">{voice.html(note)}</figcaption></figure>')


def _swatch(entry: Entry) -> str:
    """A short line, broken where the plot's is, or a box, in the colour of a legend's entry."""
    colour = next((f"var(--{role})" for role, one in PAGE.colours.items() if one == entry.colour), entry.colour)
    if not entry.is_line:
        return f'<i class="box" style="background:{colour}"></i>'
    return f'<i class="{"broken" if entry.broken else "whole"}" style="border-color:{colour}"></i>'


def _keys(report: Saved, voice: Voice) -> str:
    figures = key_figures(report)
    return keys_html([(name, cell(value, kind_of(name, "", "key")), over) for name, over, value in figures], voice)


def key_figures(report: Saved) -> list[tuple[str, str, float]]:
    """(figure, what it is over, value) of a factor or portfolio report's summary; over the first benchmark that it has."""
    if "summary" not in report.tables:
        return []
    frame = report.tables["summary"].frame
    columns = [name for name in ("value", *BENCHMARKS) if name in frame] or list(frame.columns[:1])
    alone = ("return a year", "max drawdown", "turnover a year", "cost a year", "volatility")
    rows = [row for key in KEYS[report.kind] for row in frame.index
            if row == key or (key == "long-only excess a year" and str(row).startswith(key))]
    first = columns[0]
    return [(str(row), "" if first == "value" or row in alone else first, frame.at[row, first]) for row in dict.fromkeys(rows)]


def _leaks(report: Saved, voice: Voice) -> str:
    """Leak checks with a badge each."""
    table = report.tables.get("checks")
    if table is None or not len(table.frame):
        return f"<p>{voice.html('none')}</p>"
    good = "".join(f"<li>{_badge(passed, voice)} <span>{voice.html(name)}</span></li>" for name, passed in table.frame["passed"].items())
    return f'<ul class="legend checks">{good}</ul>' + card("checks", table_html(table.frame, voice, "checks"), table.convention, voice)


def _badge(passed, voice: Voice) -> str:
    """Passed, failed, or (NaN) not run."""
    mark, word = (" unknown", "not run") if pd.isna(passed) else ("", "pass") if passed else (" bad", "fail")
    return f'<span class="badge{mark}">{voice.html(word)}</span>'


# ---- runs side by side --------------------------------------------------------------------------------------------------------
def _different(facts, names: Sequence[str]) -> list[dict]:
    """One of each kind of facts that differ in some names."""
    return list({json.dumps([one.get(name) for name in names], sort_keys=True, default=str): one for one in facts}.values())


def _same_test(facts: Mapping[str, dict], voice: Voice) -> str:
    odd = [name for name in ("universe", "label", "test", "store") if len(_different(facts.values(), (name,))) > 1]
    if not odd:
        return ""
    return _warning(voice.html("not the same test"), f'{voice.html("They differ in:")} {", ".join(voice.html(name) for name in odd)}')


def _facts_frame(facts: Mapping[str, dict]) -> pd.DataFrame:
    shown = [name for name in FACTS if any(one.get(name) is not None for one in facts.values()) and name != "versions"]
    return pd.DataFrame({run: [_fact(one[name]) if one.get(name) is not None else None for name in shown] for run, one in facts.items()},
                        index=shown, dtype=object)


def _chosen(kind: str, reports: Sequence[Saved]) -> Optional[Saved]:
    """A run's report of a kind; of several portfolios the one without a name, else the first."""
    found = sorted((report for report in reports if report.kind == kind), key=lambda report: report.folder)
    return found[0] if found else None


def _compare_kind(kind: str, runs: Sequence[tuple[str, Sequence[Saved]]], voice: Voice) -> str:
    chosen = {name: report for name, reports in runs if (report := _chosen(kind, reports)) is not None}
    if not chosen:
        return ""
    figures = {name: {(figure, over): value for figure, over, value in key_figures(report)} for name, report in chosen.items()}
    rows = list(dict.fromkeys(row for one in figures.values() for row in one))
    frame = pd.DataFrame({name: [one.get(row, np.nan) for row in rows] for name, one in figures.items()},
                         index=pd.MultiIndex.from_tuples(rows, names=["figure", "over"]).swaplevel() if kind == "portfolio" else
                         pd.Index([row for row, _ in rows], name="figure"))
    first = next(iter(chosen.values()))
    note = first.tables["summary"].convention if "summary" in first.tables else ""
    keys = card("key figures", table_html(frame, voice, "key"), note, voice) if rows else ""
    return "\n".join([f"<h2>{voice.html(kind)}</h2>", keys, *(_compare_factor if kind == "factor" else _compare_portfolio)(chosen, voice)])


def _compare_factor(chosen: Mapping[str, Saved], voice: Voice) -> list[str]:
    parts, daily = [], {name: report.tables["daily"] for name, report in chosen.items() if "daily" in report.tables}
    if daily:
        figure = compared({name: table.frame["rank_ic"].cumsum() for name, table in daily.items()}, PAGE, "Running sum of RankIC", 0.0)
        note = next(iter(daily.values())).convention
        parts.append(f'<div class="plots">{plot_html(figure, "Running sum of RankIC", "rank-ic", note, voice)}</div>')
    monthly = {name: report.tables["by_month"] for name, report in chosen.items() if "by_month" in report.tables}
    if monthly:
        frame = pd.DataFrame({name: table.frame["RankIC"] for name, table in monthly.items()}).sort_index()
        parts.append(_table("RankIC by month", Table(frame.rename_axis("period"), next(iter(monthly.values())).convention), voice))
    return parts


def _compare_portfolio(chosen: Mapping[str, Saved], voice: Voice) -> list[str]:
    chosen = {name: report for name, report in chosen.items() if "excess" in available(report.kind, report.tables)}
    daily = {name: report.tables for name, report in chosen.items()}
    lines = {name: excess_nav(tables) for name, tables in daily.items()}
    if not lines:
        return []
    figure = compared({f"{name} / {benchmark}": line for name, (benchmark, line) in lines.items()}, PAGE, "Excess net value", 1.0)
    note = next(iter(daily.values()))["daily"].convention
    monthly = {name: report.tables["by_month"] for name, report in chosen.items() if "by_month" in report.tables}
    frame = pd.DataFrame({name: table.frame[excess_column(table.frame)] for name, table in monthly.items()}).sort_index()
    table = _table("Excess by month", Table(frame.rename_axis("period"), next(iter(monthly.values())).convention), voice) if monthly else ""
    return [table, f'<div class="plots">{plot_html(figure, "Excess net value", "excess", note, voice)}</div>']
