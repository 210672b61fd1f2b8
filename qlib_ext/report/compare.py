"""Runs side by side, every row on the identical set of (day, stock, raw label).

Signal columns come from the artefacts `pred.pkl` and `label.pkl`, portfolio columns from
`portfolio_analysis/report_normal_1day.pkl`. Conventions:

- IC is the mean over days of the cross-sectional correlation, ICIR its ratio to its standard deviation (daily, not annualised).
- With e = return - cost - benchmark of a day, IR = mean(e) / std(e) * sqrt(252).
- Excess a year is compounded: W = prod((1 + return - cost) / (1 + benchmark)), 252 days a year (Qlib's own report sums);
  drawdown is the largest fall of W; turnover is the mean per day of (bought + sold) / account.
- Excess over a price index is flattered by the dividends that adjusted prices carry.
- Runs on a generated market say so, with the best possible figures: those of the true expected return on the very same pairs.
- Runs of one experiment, those named in one `--group`, and with `--members` the members of an ensemble are a group (seeds): mean and
  standard deviation of their figures. Groups are tested against `--baseline` by the Newey-West t of the daily difference of the
  groups' mean IC.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Mapping, Optional

import numpy as np
import pandas as pd

from qlib_ext.demo.build import read_truth, truth_paths
from qlib_ext.demo.truth import STATEMENT
from qlib_ext.errors import ConfigError, DataError, ExtError
from qlib_ext.home import named_store
from qlib_ext.report.choice import DEFAULT_LAG, add_members, choose, headings_of, is_strict, lag_of, row_names, seed_groups
from qlib_ext.report.metrics import REPORT_MIN_PAIRS, excess_figures, summarize
from qlib_ext.report.paired import PAIRED, daily_correlations, group_figures, paired_table
from qlib_ext.report.runs import Origin, Run, Runs
from qlib_ext.store.metadata import read_metadata

LABEL_TOLERANCE = 1e-5
SIGNAL = ("IC", "ICIR", "RankIC", "RankICIR", "days", "pairs")
PORTFOLIO = ("excess a year", "IR", "drawdown", "turnover")
GROUPED = ("IC", "ICIR", "RankIC", "RankICIR", "excess a year", "IR")
_STYLE = {**{name: "{:.4f}".format for name in ("IC", "RankIC", "IC difference", "RankIC difference")},
          **{name: "{:.3f}".format for name in ("ICIR", "RankICIR", "turnover")},
          **{name: "{:.2f}".format for name in ("IR", "IC t", "RankIC t")},
          **{name: "{:.2%}".format for name in ("excess a year", "drawdown")},
          **{name: "{:.0f}".format for name in ("days", "pairs", "dropped", "runs", "paired days")}}


def common_pairs(runs: list[Run], members: Optional[pd.DataFrame] = None) -> tuple[pd.DataFrame, dict[str, int]]:
    """The pairs that every run has.

    Args:
        runs: at least one.
        members: rows (code, start, end) of a universe; None keeps every pair.

    Returns:
        Frame on (datetime, instrument) with the columns "label" and one score column per run name, all values finite; and how
        many usable pairs of each run were left out.

    Raises:
        DataError: a run lists a pair twice, nothing is common to all, or the raw labels differ (the largest difference is named).
    """
    usable = {}
    for run in runs:
        if run.score.index.has_duplicates or run.label.index.has_duplicates:
            raise DataError(f"{run.name}: a (day, stock) occurs twice in its predictions or labels; make the run again")
        frame = pd.concat({"score": run.score, "label": run.label}, axis=1, join="inner").astype(np.float64)
        usable[run.name] = frame[np.isfinite(frame).all(axis=1)]
    index = None
    for frame in usable.values():
        index = frame.index if index is None else index.intersection(frame.index)
    if members is not None:
        index = index[_is_member(index, members)]
    if not len(index):
        raise DataError(f"no (day, stock) is common to {list(usable)}: compare runs with the same test segment and universe")
    index = index.sort_values()
    labels = pd.DataFrame({name: frame["label"].reindex(index) for name, frame in usable.items()})
    _same_labels(labels)
    table = pd.DataFrame({"label": labels.iloc[:, 0], **{name: frame["score"].reindex(index) for name, frame in usable.items()}})
    return table, {name: len(frame) - len(index) for name, frame in usable.items()}


def _is_member(index: pd.MultiIndex, members: pd.DataFrame) -> np.ndarray:
    days, codes = index.get_level_values("datetime"), index.get_level_values("instrument")
    keep = np.zeros(len(index), dtype=bool)
    for code, rows in members.groupby("code"):
        mine = np.flatnonzero(codes == code)
        for start, end in zip(rows["start"], rows["end"]):
            keep[mine[(days[mine] >= start) & (days[mine] <= end)]] = True
    return keep


def _same_labels(labels: pd.DataFrame) -> None:
    first = labels.columns[0]
    for name in labels.columns[1:]:
        difference = (labels[name] - labels[first]).abs()
        if (difference > LABEL_TOLERANCE * (1 + labels[first].abs())).any():
            day, stock = difference.idxmax()
            raise DataError(f"raw labels of {first!r} and {name!r} differ by up to {difference.max():.6g} "
                            f"({stock} on {day:%Y-%m-%d}): compare runs with the same label expression and store")


def signal_figures(table: pd.DataFrame, name: str, min_pairs: int = REPORT_MIN_PAIRS) -> dict[str, float]:
    """IC, ICIR, RankIC, RankICIR, days and pairs of one score column of `common_pairs`; days with fewer pairs are left out."""
    daily = daily_correlations(table, name, min_pairs)
    plain, rank = (summarize(daily[kind].to_numpy()) for kind in PAIRED)
    return {"IC": plain["mean"], "ICIR": plain["icir"], "RankIC": rank["mean"], "RankICIR": rank["icir"], "days": plain["n"],
            "pairs": len(table)}


def portfolio_figures(report: pd.DataFrame) -> dict[str, float]:
    """Excess a year, IR, drawdown and turnover of Qlib's daily report (return before cost, cost, bench, turnover; fractions)."""
    figures = excess_figures(report["return"] - report["cost"], report["bench"])
    return {**{name: figures[name] for name in PORTFOLIO[:-1]}, "turnover": float(report["turnover"].mean())}


def compare(runs: list[Run], members: Optional[pd.DataFrame] = None, min_pairs: int = REPORT_MIN_PAIRS) -> pd.DataFrame:
    """One row per run; signal figures on the same pairs, portfolio figures on the same days, `dropped` = a run's other pairs.

    Raises:
        DataError: see `common_pairs`.
    """
    table, dropped = common_pairs(runs, members)
    days = None
    for run in runs:
        if run.report is not None:
            days = run.report.index if days is None else days.intersection(run.report.index)
    rows = {}
    for run in runs:
        figures = signal_figures(table, run.name, min_pairs)
        if run.report is not None and len(days):
            figures.update(portfolio_figures(run.report.loc[days]))
        rows[run.name] = {**figures, "dropped": dropped[run.name]}
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=[*SIGNAL, *PORTFOLIO, "dropped"])


def format_table(table: pd.DataFrame) -> str:
    """The comparison as text."""
    return table.to_string(formatters=_STYLE, na_rep="-")


def format_groups(table: pd.DataFrame) -> str:
    """The groups as text: mean +- standard deviation of every figure, then the paired tests, where there are any."""
    shown = pd.DataFrame({"runs": table["runs"]})
    for name in GROUPED:
        mean, spread = (table[column].map(lambda value, form=_STYLE[name]: form(value) if np.isfinite(value) else "-")
                        for column in (name, f"{name} std"))
        shown[name] = mean.where(spread == "-", mean + " +- " + spread)
    text = shown.to_string()
    if "paired days" in table:
        tests = table.loc[table["paired days"].notna(), [column for column in table if column.startswith(("IC ", "RankIC ", "paired"))
                                                         and not column.endswith("std")]]
        text += "\n\n" + format_table(tests)
    return text


def generated_statement(origins: Mapping[str, Origin], table: pd.DataFrame, min_pairs: int) -> list[str]:
    """What a table of results must say of generated markets.

    Args:
        origins: run name -> the data it read.
        table: `common_pairs` of the runs.

    Returns:
        Lines; none where all data are known not to be generated.
    """
    lines = [_origin_line(name, origin, table, min_pairs) for name, origin in origins.items()]
    return list(dict.fromkeys(line for line in lines if line))


def _origin_line(name: str, origin: Origin, table: pd.DataFrame, min_pairs: int) -> str:
    """The statement on one run; empty for data that are not generated."""
    now, generated = _store_now(origin), origin.generated
    if generated is None:  # not recorded: the store as it is now must tell
        if now is None:
            return f"Whether the data of {name} were generated is not known: its store is not there any more, or another one."
        generated = now.get("generated", False)
    if not generated:
        return ""
    place, truth = f"Generated market ({origin.store}", None if now is None else read_truth(origin.store)
    if truth is None:
        recorded = json.dumps(origin.best) if origin.best else "not known any more"
        return f"{place}, made anew or gone since {name} ran): best possible IC over all years {recorded}. {STATEMENT}"
    if truth.get("switches", {}).get("null"):
        return f"{place}; no signal at all: best possible IC 0). {truth['statement']}"
    expected = pd.read_parquet(truth_paths(origin.store)[1]).set_index(["date", "instrument"])["expected"]
    expected.index = expected.index.set_levels(expected.index.levels[1].astype(str), level=1)
    best = signal_figures(table.assign(best=expected.reindex(table.index).to_numpy()).dropna(), "best", min_pairs)
    if not np.isfinite(best["IC"]):
        return f"{place}; best possible IC: no day has {min_pairs} pairs). {truth['statement']}"
    label = truth.get("label", "the planted label")
    return (f"{place}; best possible on these pairs, by the true expectation of {label}: IC {best['IC']:.4f}, RankIC "
            f"{best['RankIC']:.4f}). {truth['statement']}")


def _store_now(origin: Origin) -> Optional[dict]:
    """Metadata of the run's store if it is still the one it read ({} for a folder made elsewhere), else None."""
    try:
        metadata = None if origin.store is None else read_metadata(origin.store) or {}
    except DataError:
        return None
    same = metadata is None or origin.fingerprint is None or origin.fingerprint == metadata.get("fingerprint", origin.fingerprint)
    return metadata if same else None


def _members(options) -> Optional[pd.DataFrame]:
    if options.universe is None:
        return None
    from qlib_ext.check_data import StoreView
    from qlib_ext.store.metadata import check_store
    store = StoreView(check_store(named_store(options.store)))
    if options.universe.lower() not in store.universes:
        raise ConfigError(f"universe {options.universe!r} is not in {store.path}; it has {store.universes}")
    return store.spans(options.universe)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0, or 1 with the error's sentence on stderr."""
    parser = argparse.ArgumentParser(description="Compare finished runs on the identical set of (day, stock, raw label).")
    parser.add_argument("run", nargs="*",
                        help="recorder id, or experiment name for its latest finished run; default: latest of each experiment, "
                             "one table for each universe and test span")
    parser.add_argument("--experiment", action="append", metavar="NAME",
                        help="all finished runs of an experiment (may be repeated)")
    parser.add_argument("--group", action="append", metavar="NAME=RUN,RUN",
                        help="runs that differ in their seeds (may be repeated); runs of one experiment are a group by themselves")
    parser.add_argument("--members", action="store_true", help="the members of ensembles too, as a group")
    parser.add_argument("--baseline", metavar="GROUP",
                        help="test the daily IC of the other groups against this one (an experiment's name, or that of a --group)")
    parser.add_argument("--lag", type=int,
                        help=f"of the Newey-West t; default: days over which labels overlap, {DEFAULT_LAG} where unknown")
    parser.add_argument("--last", action="store_true", help="the run finished last")
    parser.add_argument("--universe", help="keep members of this index only (read from --store)")
    parser.add_argument("--store", help="store for --universe; default QLIB_DATA, else the demo market")
    parser.add_argument("--min-pairs", type=int, default=REPORT_MIN_PAIRS,
                        help=f"pairs a day needs to count (default {REPORT_MIN_PAIRS})")
    parser.add_argument("--uri", help="tracking uri; default sqlite:///QLIB_EXT_HOME/tracking.db")
    parser.add_argument("--csv", metavar="FILE", help="write the table there too")
    options = parser.parse_args(arguments)
    try:
        return _report(options)
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _report(options) -> int:
    """Tables of the runs asked for; without any asked for, one table for each universe and test span."""
    runs, strict = Runs(options.uri), is_strict(options)
    for line in [] if strict else runs.unusable():
        print(line)
    chosen = row_names(runs, choose(runs, options))
    loaded, seeds = {name: runs.load(run, name) for name, run in chosen.items()}, seed_groups(runs, options, chosen)
    rows = add_members(runs, chosen, loaded, seeds) if options.members else chosen
    if options.baseline is not None and options.baseline not in seeds:
        raise ConfigError(f"--baseline {options.baseline!r} is not among the groups {list(seeds)}")
    lag = lag_of(runs, options, chosen) if options.baseline else 0
    headings = {"": list(rows)} if strict else headings_of(runs, rows, loaded)
    members, tables, grouped, status = _members(options), {}, {}, 0
    for heading, names in headings.items():
        if heading:
            print(f"\n== {heading}")
        try:
            table = compare([loaded[name] for name in names], members, options.min_pairs)
        except DataError as error:
            if strict:
                raise
            print(f"DataError in {heading}: {error}; name the runs that belong together", file=sys.stderr)
            status = 1
            continue
        print(format_table(table))
        pairs = int(table["pairs"].iloc[0])
        pair_table, _ = common_pairs([loaded[name] for name in names], members)
        own = [name for name in names if name in chosen]
        statements = generated_statement({name: runs.origin(chosen[name]) for name in own}, pair_table, options.min_pairs)
        tables[heading] = table.assign(data="; ".join(statements))
        for line in statements:
            print(line)
        print(f"Every row on the same {pairs} pairs of (day, stock, raw label); 'dropped' counts the others a run had.")
        mine = {group: [row for row in found if row in names] for group, found in seeds.items() if set(found) & set(names)}
        if options.group or options.baseline in mine or max(map(len, mine.values())) > 1:
            grouped[heading] = _report_groups(mine, table, pair_table, options, lag)
        for name in own:
            print(f"{name}: {runs.describe(chosen[name])}")
    print("ICIR per day; excess after cost, compounded relative to the benchmark; turnover = (bought + sold) / account per day.")
    _write(options.csv, tables, "run")
    _write(options.csv and f"{Path(options.csv).with_suffix('')}_groups{Path(options.csv).suffix}", grouped, "group")
    return status


def _report_groups(groups: Mapping[str, list[str]], table: pd.DataFrame, pair_table: pd.DataFrame, options,
                   lag: int) -> pd.DataFrame:
    """Print and answer the groups' figures, with paired tests where the baseline is among them."""
    found = group_figures(table[list(GROUPED)], groups)
    tested = options.baseline in groups and len(groups) > 1
    if tested:
        days = {row: daily_correlations(pair_table, row, options.min_pairs) for rows in groups.values() for row in rows}
        found = found.join(paired_table(days, groups, options.baseline, lag))
    print(f"\nGroups, mean +- standard deviation over their runs:\n{format_groups(found)}")
    if tested:
        print(f"Differences: mean over days of the group's mean IC (RankIC) less that of {options.baseline}; t by Newey and West, "
              f"lag {lag}.")
    for group, rows in groups.items():
        same = [row for number, row in enumerate(rows) if any(pair_table[row].equals(pair_table[other]) for other in rows[:number])]
        if same:
            print(f"{group}: {', '.join(same)} scores as an earlier run of the group does: its spread is too small")
    return found


def _write(path: Optional[str], tables: Mapping[str, pd.DataFrame], kind: str) -> None:
    if path and tables:
        several = len(tables) > 1
        frames = [table.assign(heading=heading) if several else table for heading, table in tables.items()]
        pd.concat(frames).rename_axis(kind).to_csv(path)
