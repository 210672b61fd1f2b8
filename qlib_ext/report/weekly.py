"""The brokers' weekly table: what factors and models earned this week, this month, this year and since their start, a row each.

The table of a day is made of that day's prices and earlier ones only. Axis letters: t trading day, n stock.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from html import escape
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Optional, Sequence

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data import D
from tqdm import tqdm

from qlib_ext.data.segments import label_offset
from qlib_ext.data.universe import member_spans, trading_calendar
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.intraday_options import FACTORS, SIGNS
from qlib_ext.report.cells import cell, kind_of
from qlib_ext.report.factor import RANK_MAE, forward_returns
from qlib_ext.report.factor_view import FactorView
from qlib_ext.report.metrics import REPORT_MIN_PAIRS, day_figures
from qlib_ext.report.page import Voice, card, document, toolbar
from qlib_ext.report.periods import broker_windows, period_excess, period_means, period_returns, rebalance_days
from qlib_ext.report.quantile import held_portfolios, quantile_groups
from qlib_ext.report.runs import Runs, first_column
from qlib_ext.report.saved import Artefacts
from qlib_ext.report.view import check_scores, factor_view
from qlib_ext.report.words import both
from qlib_ext.signatures import did_you_mean
from qlib_ext.store.metadata import as_day

TENTHS = 10
FACTS = ("sign", "first day", "names")
FIGURES = ("IC", RANK_MAE, "long-short", "long-only excess")
SHORT = {"Week": ("Week", "本周"), "Month to date": ("Month", "本月"), "Year to date": ("Year", "今年"),
         "Since inception": ("Start", "成立")}
"""Periods as a page heads their columns."""
VARIANTS = ("orth", "mean", "day")
"""Of a factor: orthogonalised mean over some days, that mean, the day's own value."""
COMMAND = "python -m qlib_ext.store build-intraday"
UNUSED = ("no styles", "the store has no market values", "the store has no float_cap")
"""Beginnings of notes on what the table does not use."""
_EMPTY = "no value on any day: choose other days, or, for an intraday factor, run build-intraday with the tables that it needs"
LATE = 5
"""Calendar days after the last trading day of a store that still mean that day."""
SENTENCES = (
    "Nothing later than the close of {day} is used.",
    "IC and exp(-RankMAE): means over the days of the scores whose return, over {horizon_days} from the {entry} of the next day on, ended "
    "in the period.",
    "Tenths of equal weight by the score of the last trading day of each week, bought at the {entry} of the next day and held; a day's "
    "return runs from the {entry} of the day before to its own; before cost.",
    "Long-short: highest tenth less lowest tenth, daily differences, compounded; long-only excess: return of the highest tenth less that "
    "of all scored stocks alike.",
    "Each period ends on that day; a row that begins inside a period (first day) has only its own days in it.",
    "Sign \N{MINUS SIGN}1: the score is multiplied by \N{MINUS SIGN}1, since low values are expected to foretell high returns.",
)


class Weekly(NamedTuple):
    """The table of a day (columns: `FACTS` under "", then figure and period), the sentences under it, and notes."""

    frame: pd.DataFrame
    day: np.datetime64
    convention: str
    notes: list[str]


# ---- figures --------------------------------------------------------------------------------------------------------------------
def weekly_figures(view: FactorView, min_count: int = REPORT_MIN_PAIRS) -> dict[tuple[str, str], float]:
    """(figure, period) -> value of one score, for the periods that end on the view's last day, which is the last one known.

    A score of day t counts in the period in which its return ended (t + 1 + horizon), so that no period waits for later prices.

    Raises:
        DataError: no day has stocks for ten groups.
    """
    first, ahead = view.span()[0], view.horizon + 1
    windows = broker_windows(view.days[first:])
    groups = quantile_groups(view.score, TENTHS, min_count)
    if not (groups >= 0).any():
        raise DataError(f"no day has {max(TENTHS, min_count)} scored stocks that differ, as ten groups need: score more stocks, or lower "
                        "min_count")
    daily = day_figures(view.score, forward_returns(view.entry, view.horizon), min_count)
    held = held_portfolios(groups, TENTHS, rebalance_days(view.days, "week"), view.entry, view.buyable, view.sellable).returns[first:]
    top, found = held[:, TENTHS - 1], {}
    for name, values in (("IC", daily.ic), (RANK_MAE, daily.exp_rank_mae)):
        ended = np.full(len(values), np.nan)
        ended[ahead:] = values[:-ahead]
        found[name] = period_means(ended[first:], windows)
    found["long-short"] = period_returns(top - held[:, 0], windows)
    found["long-only excess"] = period_excess(top, held[:, TENTHS], windows)
    return {(name, window.label): value for name in FIGURES for window, value in zip(windows, found[name])}


def weekly_table(scores: Mapping[str, pd.Series], as_of: Optional[str] = None, horizon: int = 5, entry: str = "vwap",
                 universe: Optional[str] = None, min_count: int = REPORT_MIN_PAIRS, signs: Mapping[str, int] = {},
                 optional: Sequence[str] = ()) -> Weekly:
    """The table of some scores.

    Args:
        scores: name -> scores on (datetime, instrument), NaN = not scored.
        as_of: day of the table, or a day without trading after it; None: the last day that all of them score.
        horizon: trading days of the returns that IC and exp(-RankMAE) hold scores against.
        entry: price traded at on the day after a score: vwap, open or close.
        universe: universe whose members of the day are looked at; None: all that are scored.
        min_count: stocks that a day needs.
        signs: name -> what to multiply by; 1 where absent.
        optional: names that are left out, with a note, where they score too few stocks, or none on the day.

    Raises:
        ConfigError: unknown universe or entry. DataError: a day outside, which some score lacks, too few stocks, or scores alike.
    """
    if not scores:
        raise ConfigError("weekly table: name at least one field or recorder")
    checked, day, notes = _checked(scores, as_of, universe, min_count, optional)
    market, said = factor_view(_corners(checked.values()), None, entry, -1, None, False, None, horizon)
    rows = {}
    for name, column in tqdm(checked.items(), "weekly table", unit=" rows", disable=None):
        grid = column.unstack().reindex(index=pd.DatetimeIndex(market.days), columns=market.instruments).to_numpy()
        sign = signs.get(name, 1)
        view = dataclasses.replace(market, score=sign * grid)
        facts = {("", "sign"): sign, ("", "first day"): column.index.get_level_values(0).min(),
                 ("", "names"): int(np.isfinite(grid[-1]).sum())}
        rows[name] = facts | _named(name, view, min_count)
    days = f"{horizon} trading day{'s' * (horizon != 1)}"
    convention = " ".join(SENTENCES[:5 + (-1 in signs.values())]).format(day=day, horizon_days=days, entry=entry)
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("score")
    return Weekly(frame, day, convention, [*notes, *(one for one in said if not one.startswith(UNUSED))])


def _checked(scores: Mapping[str, pd.Series], as_of: Optional[str], universe: Optional[str], min_count: int,
             optional: Sequence[str]) -> tuple[dict[str, pd.Series], np.datetime64, list[str]]:
    """The scores up to the day of the table, that day, and notes."""
    checked, faults, notes = {}, {}, []
    for name, column in scores.items():
        try:
            checked[name], odd = check_scores(column, min_count, universe)
            notes += [f"{name}: {one}" for one in odd]
        except DataError as error:
            faults[name] = str(error) if len(column) else _EMPTY
    day = _day(as_of, checked, [name for name in checked if name not in optional])
    faults |= {name: fault for name, column in checked.items() if (fault := _lacks(column, day))}
    for fault in dict.fromkeys(faults.values()):
        names = [name for name, said in faults.items() if said == fault]
        if not set(names) <= set(optional) or len(faults) == len(scores):
            raise DataError(f"{', '.join(names)}: {fault}")
        notes.append(f"left out: {', '.join(names)}: {fault}")
    kept = {name: column[column.index.get_level_values(0) <= pd.Timestamp(day)] for name, column in checked.items()
            if name not in faults}
    return kept, day, notes


def _named(name: str, view: FactorView, min_count: int) -> dict:
    try:
        return weekly_figures(view, min_count)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _day(as_of: Optional[str], scores: Mapping[str, pd.Series], required: Sequence[str]) -> np.datetime64:
    """The trading day of the table; by default the last one that all required scores have, or where none is, any."""
    calendar, ends = trading_calendar(), {name: column.index.get_level_values(0).max() for name, column in scores.items()}
    ended = min(ends[name] for name in required) if required else max(ends.values(), default=calendar[-1])
    wanted = np.datetime64(as_day(ended if as_of is None else as_of, "as of"))
    if not calendar[0] <= wanted <= calendar[-1] + LATE:
        raise DataError(f"as of {wanted} is outside the store, which runs from {calendar[0]} to {calendar[-1]}: choose a day inside")
    return calendar[np.searchsorted(calendar, wanted, side="right") - 1]


def _lacks(column: pd.Series, day: np.datetime64) -> str:
    """What is wrong with scores that do not have a day."""
    days = column.index.get_level_values(0)
    return "" if (days == pd.Timestamp(day)).any() else (f"no stock is scored on {day}, scores run from {days.min():%Y-%m-%d} to "
                                                         f"{days.max():%Y-%m-%d}: choose a day that all rows score, or leave the row out")


def _corners(scores: Sequence[pd.Series]) -> pd.Series:
    """Some scores with the days and stocks of all of them: the first and the last day, every stock on the last."""
    days = [column.index.get_level_values(0) for column in scores]
    first, last = min(one.min() for one in days), max(one.max() for one in days)
    codes = sorted(set().union(*(column.index.get_level_values(1).unique() for column in scores)))
    pairs = [(last, code) for code in codes] + ([(first, codes[0])] if first < last else [])
    return pd.Series(np.arange(len(pairs), dtype=float), pd.MultiIndex.from_tuples(pairs, names=["datetime", "instrument"]))


# ---- fields of the store ----------------------------------------------------------------------------------------------------------
def choose_fields(wanted: Sequence[str], variant: str = "orth") -> tuple[list[str], list[str]]:
    """Expressions of Qlib for what was asked: ``hf`` (all ten factors), names of factors, or ``$fields`` and expressions as they are.

    A factor's name stands for its `variant`; where the store lacks the orthogonalised one, the mean is taken. Fields are written small,
    as Qlib reads them.

    Returns:
        The expressions, and notes on factors that ``hf`` left out.

    Raises:
        ConfigError: an unknown variant, or a field that the store lacks; the message lists those it has.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant {variant!r}: choose one of {list(VARIANTS)}")
    endings = {"orth": ("_orth", ""), "mean": ("",), "day": ("_1d",)}[variant]
    chosen, absent = [], []
    for name in (re.sub(r"^\w+$|\$\w+", lambda found: found[0].lower(), one.strip()) for one in wanted):
        for factor in FACTORS if name == "hf" else [name]:
            there = [f"${factor}{ending}" for ending in endings if _is_there(factor + ending)] if factor in FACTORS else []
            if there or factor not in FACTORS:
                chosen.append(there[0] if there else _expression(factor))
            elif name == "hf":
                absent.append(factor)
            else:
                raise _no_field(factor + endings[0])
    if wanted and not chosen:
        raise _no_field(f"hf_*{endings[0]}")
    left_out = [f"the store lacks {', '.join(absent)}: `{COMMAND}` makes those that its intraday tables allow"] if absent else []
    return list(dict.fromkeys(chosen)), left_out


def _expression(text: str) -> str:
    """A field or an expression as Qlib reads it; all its fields are there."""
    text = text if "$" in text else f"${text}"
    for name in re.findall(r"\$(\w+)", text):
        if not _is_there(name):
            raise _no_field(name)
    return text


def _features() -> Path:
    return Path(C.dpm.get_data_uri("day")) / "features"


def _is_there(name: str) -> bool:
    return next(_features().glob(f"*/{name}.day.bin"), None) is not None


def _no_field(name: str) -> ConfigError:
    known = sorted({path.name.removesuffix(".day.bin") for path in _features().glob("*/*.day.bin")})
    own = [one for one in known if one.startswith("hf_")]
    has = f"its intraday factors are {own}" if own else "it has no intraday factors"
    return ConfigError(f"the store has no field {name}{did_you_mean(name, known)}; {has}: run `{COMMAND} STORE` (README, Intraday), "
                       "or name a field that is there")


def sign_of(field: str) -> int:
    """1 or -1 as a factor is expected to foretell returns, whatever its variant; 1 for expressions and other fields."""
    found = re.fullmatch(r"\$(\w+?)(?:_proxy)?(?:_orth|_1d)?", field.lower())
    return (SIGNS.get(found.group(1)) or 1) if found else 1


def field_scores(fields: Sequence[str], first: Optional[str] = None, last: Optional[str] = None,
                 universe: Optional[str] = None) -> dict[str, pd.Series]:
    """Daily values of fields and expressions as scores, name (without ``$``) -> values on (datetime, instrument), NaN dropped.

    Raises:
        ConfigError: unknown universe, no date, or an expression that Qlib does not read or that looks at later days.
    """
    member_spans(universe or "all")
    first = first and as_day(first, "from")
    for field in fields:
        if ahead := label_offset([field], "field"):
            raise ConfigError(f"{field} looks {ahead} trading day{'s' * (ahead > 1)} ahead, and a score must be known at the close of its "
                              "day: leave it out, or take earlier values (Ref with a positive number)")
    try:
        frame = D.features(D.instruments(universe or "all"), list(fields), start_time=first, end_time=last, freq="day")
    except (SyntaxError, NameError, AttributeError, TypeError) as error:
        raise ConfigError(f"Qlib cannot read one of the expressions {list(fields)}: {error}") from error
    frame = frame.swaplevel().rename_axis(["datetime", "instrument"])
    frame.columns = [name.removeprefix("$") for name in fields]
    return {name: frame[name].dropna() for name in frame}


def run_scores(runs: Runs, run: Any, first: Optional[str] = None) -> pd.Series:
    """Predictions of a run on (datetime, instrument), from a day on.

    Raises:
        DataError: it kept none.
    """
    path = Artefacts(runs, run).path("pred.pkl")
    if path is None:
        raise DataError(f"run {run.info.run_id} of {runs.experiment_of(run)} has no pred.pkl: it did not finish, or lacks SignalRecord")
    column = first_column(pd.read_pickle(path))
    return column if first is None else column[column.index.get_level_values(0) >= pd.Timestamp(as_day(first, "from"))]


def other_stores(runs: Optional[Runs], chosen: Mapping[str, Any], store: Path) -> list[str]:
    """Notes on runs, by name, that were made on another store than the one the prices are from."""
    places = {name: runs.origin(run).store for name, run in chosen.items()}
    return [f"{name} was made on the store {place}, its prices here are those of {store}" for name, place in places.items()
            if place is not None and place.resolve() != Path(store).resolve()]


# ---- printed --------------------------------------------------------------------------------------------------------------------
def write_weekly(table: Weekly, kind: str = "txt", language: str = "en") -> str:
    """The table as text of a kind: txt, md, csv (figures unrounded) or html.

    Args:
        language: en, zh, or both (html: with a switch; else English).

    Raises:
        ConfigError: another kind.
    """
    if kind not in KINDS:
        raise ConfigError(f"weekly table as {kind!r}: choose one of {list(KINDS)}")
    return KINDS[kind](table, language)


def _texts(table: Weekly) -> pd.DataFrame:
    """Every figure as text."""
    form = {column: kind_of("", "excess" if "excess" in column[0] else column[0] or column[1]) for column in table.frame}
    texts = {column: [cell(value, form[column]) for value in table.frame[column]] for column in table.frame}
    return pd.DataFrame(texts, table.frame.index).set_axis(table.frame.columns, axis=1)


def _heads(table: Weekly, language: str) -> list[str]:
    place = int(language == "zh")
    return [" ".join(both(part)[place] for part in column if part) for column in table.frame]


def _said(table: Weekly, language: str) -> list[str]:
    place = int(language == "zh")
    return [both(table.convention)[place], *(f"{both('Note:')[place]} {both(note)[place]}" for note in table.notes)]


def _text(table: Weekly, language: str) -> str:
    place = int(language == "zh")
    heads = pd.MultiIndex.from_tuples([tuple(both(part)[place] if part else "" for part in column) for column in table.frame])
    lines = [line for one in _said(table, language) for line in textwrap.wrap(one, 140)]
    return "\n".join([_texts(table).set_axis(heads, axis=1).rename_axis(None).to_string(), *lines]) + "\n"


def _markdown(table: Weekly, language: str) -> str:
    lines = ["| " + " | ".join(["", *_heads(table, language)]) + " |", "|---" + "|---:" * table.frame.shape[1] + "|"]
    for name, values in _texts(table).iterrows():
        lines.append("| " + " | ".join([str(name).replace("|", "\\|"), *values]) + " |")
    return "\n".join([*lines, "", *_said(table, language)]) + "\n"


def _csv(table: Weekly, language: str) -> str:
    return table.frame.set_axis(_heads(table, language), axis=1).to_csv(index_label="score")


def _html(table: Weekly, language: str) -> str:
    voice, columns = Voice(language), [column for column in table.frame if column[0]]
    texts = _texts(table)
    heads = "".join(f'<th class="group" colspan="{len(columns) // len(FIGURES)}">{voice.html(name)}</th>' for name in FIGURES)
    below = "".join(f"<th>{voice.pair(*SHORT[period])}</th>" for _, period in columns)
    rows = [f'<tr><th scope="row" class="long">{_title(str(name), facts, voice)}</th>'
            f'{"".join(f"<td>{escape(one)}</td>" for one in values)}</tr>'
            for name, facts, values in zip(table.frame.index, texts[""].to_numpy(), texts[columns].to_numpy())]
    head = f'<tr><th class="head" rowspan="2">{voice.html("score")}</th>{heads}</tr><tr>{below}</tr>'
    lines = "\n".join(rows)
    body = f'<div class="scroll" tabindex="0"><table class="tight"><thead>{head}</thead>\n<tbody>\n{lines}\n</tbody></table></div>'
    notes = "".join(f'<p class="note">{voice.html("Note:")} {voice.html(note)}</p>' for note in table.notes)
    title = voice.pair(f"Weekly table, {table.day}", f"因子与模型周报，{table.day}", "span")
    page = "\n".join([toolbar(voice), f"<header><h1>{title}</h1></header>", card("broker", body + notes, table.convention, voice)])
    return document(f"{'因子与模型周报' if language == 'zh' else 'Weekly table'} · {table.day}", page, language)


def _title(name: str, facts: Sequence[str], voice: Voice) -> str:
    """A factor's name in words with its field, or the name of a model or another field; sign, first day and stocks below."""
    base, (sign, first, names) = re.sub(r"(_proxy)?(_orth|_1d)?$", "", name), facts
    lines = [voice.html(base)] if base in FACTORS else []
    lines.append(escape(name) + " × \N{MINUS SIGN}1" * (sign != "1"))
    lines.append(voice.pair(f"from {first}, {names} stocks", f"自{first}起，{names}只"))
    return lines[0] + "".join(f'<br><small class="none">{line}</small>' for line in lines[1:])


KINDS: dict[str, Any] = {"txt": _text, "md": _markdown, "csv": _csv, "html": _html}
