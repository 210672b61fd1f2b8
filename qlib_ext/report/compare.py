"""Runs side by side, every row on the identical set of (day, stock, raw label).

Signal columns come from the artefacts `pred.pkl` and `label.pkl`, portfolio columns from
`portfolio_analysis/report_normal_1day.pkl`. Conventions:

- IC is the mean over days of the cross-sectional correlation, ICIR its ratio to its standard deviation (daily, not annualised).
- With e = return - cost - benchmark of a day, IR = mean(e) / std(e) * sqrt(252).
- Excess a year is compounded: W = prod((1 + return - cost) / (1 + benchmark)), 252 days a year (Qlib's own report sums);
  drawdown is the largest fall of W; turnover is the mean per day of (bought + sold) / account.
- Excess over a price index is flattered by the dividends that adjusted prices carry.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Optional

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError, ExtError
from qlib_ext.report.metrics import REPORT_MIN_PAIRS, daily_ic, daily_rank_ic, summarize

DAYS_A_YEAR = 252
LABEL_TOLERANCE = 1e-5
SIGNAL = ("IC", "ICIR", "RankIC", "RankICIR", "days", "pairs")
PORTFOLIO = ("excess a year", "IR", "drawdown", "turnover")
REPORT = "portfolio_analysis/report_normal_1day.pkl"


@dataclass
class Run:
    """One finished run: `score` and raw `label` on (datetime, instrument), NaN = unknown; `report` is Qlib's daily report."""

    name: str
    score: pd.Series
    label: pd.Series
    report: Optional[pd.DataFrame] = None


# ---- numbers ----------------------------------------------------------------------------------------------------------------
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
    day = pd.factorize(table.index.get_level_values("datetime"), sort=True)[0]
    score, label = table[name].to_numpy(), table["label"].to_numpy()
    plain, rank = (summarize(f(score, label, day, min_pairs)) for f in (daily_ic, daily_rank_ic))
    return {"IC": plain["mean"], "ICIR": plain["icir"], "RankIC": rank["mean"], "RankICIR": rank["icir"], "days": plain["n"],
            "pairs": len(table)}


def portfolio_figures(report: pd.DataFrame) -> dict[str, float]:
    """Excess a year, IR, drawdown and turnover of Qlib's daily report (return before cost, cost, bench, turnover; fractions)."""
    net, bench = report["return"] - report["cost"], report["bench"]
    excess = net - bench
    wealth = ((1 + net) / (1 + bench)).cumprod()
    peak = np.maximum(wealth.cummax(), 1.0)
    spread = excess.std(ddof=1)
    return {"excess a year": float(wealth.iloc[-1] ** (DAYS_A_YEAR / len(wealth)) - 1),
            "IR": float(excess.mean() / spread * np.sqrt(DAYS_A_YEAR)) if spread > 0 else float("nan"),
            "drawdown": float((wealth / peak - 1).min()), "turnover": float(report["turnover"].mean())}


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
    style = {**{name: "{:.4f}".format for name in ("IC", "RankIC")},
             **{name: "{:.3f}".format for name in ("ICIR", "RankICIR", "turnover")},
             "IR": "{:.2f}".format, "excess a year": "{:.2%}".format, "drawdown": "{:.2%}".format,
             **{name: "{:.0f}".format for name in ("days", "pairs", "dropped")}}
    return table.to_string(formatters=style, na_rep="-")


# ---- runs in the tracking database ------------------------------------------------------------------------------------------
class Runs:
    """Finished runs of a tracking database.

    Raises:
        DataError: the database does not exist.
    """

    def __init__(self, uri: Optional[str] = None):
        from mlflow.tracking import MlflowClient

        from qlib_ext.tracking import database_path, resolve_uri
        self.uri = resolve_uri(uri or f"sqlite:///{_home()}/tracking.db")
        path = database_path(self.uri)
        if path is not None and not path.is_file():
            raise DataError(f"there is no tracking database {path}: run a workflow first, or name another with --uri")
        self.client = MlflowClient(tracking_uri=self.uri)
        self.experiments = {e.experiment_id: e.name for e in self.client.search_experiments()}

    def finished(self, experiment: Optional[str] = None) -> list:
        """Finished runs with predictions, latest first, of one experiment or of all.

        Raises:
            ConfigError: no experiment of that name.
        """
        wanted = [i for i, name in self.experiments.items() if experiment in (None, name)]
        if not wanted:
            raise ConfigError(f"no experiment {experiment!r} in {self.uri}; it has {sorted(self.experiments.values())}")
        found = self.client.search_runs(wanted, "attributes.status = 'FINISHED'", order_by=["attributes.start_time DESC"],
                                        max_results=1000)
        return [run for run in found if self._path(run, "pred.pkl") is not None]

    def unusable(self) -> list[str]:
        """A sentence for every experiment that has runs which did not finish, or finished without predictions or raw labels."""
        lines = []
        for identifier, name in sorted(self.experiments.items(), key=lambda item: item[1]):
            reasons = {}
            for run in self.client.search_runs([identifier], max_results=1000):
                if run.info.status != "FINISHED":
                    reasons.setdefault(run.info.status.lower(), []).append(run.info.run_id[:8])
                elif not self.complete(run):
                    reasons.setdefault("no predictions or raw labels", []).append(run.info.run_id[:8])
            for reason, runs in sorted(reasons.items()):
                lines.append(f"skipped: {len(runs)} of {name} ({reason}): {', '.join(runs[:3])}{' ...' if len(runs) > 3 else ''}")
        return lines

    def complete(self, run) -> bool:
        """Whether a run kept predictions and raw labels."""
        return all(self._path(run, name) is not None for name in ("pred.pkl", "label.pkl"))

    def universe(self, run) -> str:
        """Whom a run scored: the universe of its run card, else of its task's dataset, else what its handler loaded."""
        card, task = self._path(run, "run_card.json"), self._path(run, "task")
        name = ((json.loads(card.read_text()).get("panel") or {}).get("universe")) if card is not None else None
        if name is None and task is not None:
            options = (pd.read_pickle(task).get("dataset") or {}).get("kwargs") or {}
            handler = options.get("handler")
            handler = (handler.get("kwargs") or {}) if isinstance(handler, dict) else {}
            name = options.get("universe") or handler.get("instruments")
            name = name.get("market") if isinstance(name, dict) else name
        if isinstance(name, (list, tuple)):
            return f"{len(name)} listed instruments"
        return "unknown universe" if name is None else str(name)

    def named(self, name: str):
        """A run by its recorder id, or the latest finished one of an experiment.

        Raises:
            ConfigError: no such run or experiment. DataError: the experiment has no finished run.
        """
        if re.fullmatch(r"[0-9a-f]{32}", name):
            from mlflow.exceptions import MlflowException
            try:
                return self.client.get_run(name)
            except MlflowException as error:
                raise ConfigError(f"no run {name} in {self.uri}; give a recorder id or an experiment name") from error
        runs = self.finished(name)
        if not runs:
            raise DataError(f"experiment {name!r} has no finished run with predictions: run its workflow to the end")
        return runs[0]

    def _path(self, run, name: str) -> Optional[Path]:
        """Local path of an artefact, or None."""
        from mlflow.exceptions import MlflowException
        root = run.info.artifact_uri
        local = Path(root[len("file://"):] if root.startswith("file://") else root)
        if local.is_dir():
            return local / name if (local / name).is_file() else None
        if "://" not in root:
            return None
        try:
            return Path(self.client.download_artifacts(run.info.run_id, name))
        except (MlflowException, OSError):
            return None

    def load(self, run, name: str) -> Run:
        """The frames of a run.

        Raises:
            DataError: it has no predictions or no labels (a handler that dropped its raw labels).
        """
        paths = {artefact: self._path(run, artefact) for artefact in ("pred.pkl", "label.pkl", REPORT)}
        for artefact in ("pred.pkl", "label.pkl"):
            if paths[artefact] is None:
                raise DataError(f"run {name} ({run.info.run_id}) has no {artefact}: it did not finish, or its handler drops "
                                "raw labels")
        score, label = (_first_column(pd.read_pickle(paths[artefact])) for artefact in ("pred.pkl", "label.pkl"))
        report = None if paths[REPORT] is None else pd.read_pickle(paths[REPORT])
        return Run(name, score, label, report)

    def experiment_of(self, run) -> str:
        """Name of a run's experiment."""
        return self.experiments.get(run.info.experiment_id, run.info.experiment_id)

    def describe(self, run) -> str:
        """Where a recorder lies."""
        return (f"experiment {self.experiment_of(run)}, recorder {run.info.run_id}\n"
                f"    tracking database  {self.uri}\n    artefacts          {run.info.artifact_uri}")


def _first_column(frame) -> pd.Series:
    column = frame.iloc[:, 0] if isinstance(frame, pd.DataFrame) else frame
    if list(column.index.names) == ["instrument", "datetime"]:
        column = column.swaplevel()
    return column.rename_axis(["datetime", "instrument"])


def _names(runs: Runs, chosen: list) -> Mapping[str, object]:
    """Row names: the experiment, with the beginning of the recorder id where that is not enough."""
    experiments = [runs.experiment_of(run) for run in chosen]
    return {name if experiments.count(name) == 1 else f"{name} {run.info.run_id[:8]}": run for name,
            run in zip(experiments, chosen)}


def _choose(runs: Runs, options) -> list:
    chosen = [runs.named(name) for name in options.run]
    for name in options.experiment or []:
        chosen += runs.finished(name)
    if options.last:
        chosen += runs.finished()[:1]
    if not (options.run or options.experiment or options.last):
        latest = {}
        for run in runs.finished():
            if run.info.experiment_id not in latest and runs.complete(run):
                latest[run.info.experiment_id] = run
        chosen = list(latest.values())
    if not chosen:
        raise DataError(f"{runs.uri} has no finished run with predictions: run a workflow first")
    return list({run.info.run_id: run for run in chosen}.values())


def _groups(runs: Runs, chosen: Mapping[str, object], loaded: Mapping[str, Run]) -> dict[str, list[str]]:
    """Names of runs that can share a table: heading (universe, first and last scored day) -> names."""
    groups = {}
    for name, run in chosen.items():
        days = loaded[name].score.index.get_level_values("datetime")
        span = f"{days.min():%Y-%m-%d} to {days.max():%Y-%m-%d}" if len(days) else "no days"
        groups.setdefault(f"{runs.universe(run)}, {span}", []).append(name)
    return dict(sorted(groups.items()))


def _home() -> str:
    return os.environ.get("QLIB_EXT_HOME") or "~/.qlib_ext"


def _members(options) -> Optional[pd.DataFrame]:
    if options.universe is None:
        return None
    from qlib_ext.check_data import StoreView
    from qlib_ext.store.metadata import check_store
    store = StoreView(check_store(options.store or os.environ.get("QLIB_DATA") or f"{_home()}/demo/cn_data"))
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
    runs, strict = Runs(options.uri), bool(options.run or options.experiment or options.last)
    for line in [] if strict else runs.unusable():
        print(line)
    chosen = _names(runs, _choose(runs, options))
    loaded = {name: runs.load(run, name) for name, run in chosen.items()}
    groups = {"": list(chosen)} if strict else _groups(runs, chosen, loaded)
    members, tables, status = _members(options), {}, 0
    for heading, names in groups.items():
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
        tables[heading] = table
        print(format_table(table))
        pairs = int(table["pairs"].iloc[0])
        print(f"Every row on the same {pairs} pairs of (day, stock, raw label); 'dropped' counts the others a run had.")
        for name in names:
            print(f"{name}: {runs.describe(chosen[name])}")
    print("ICIR per day; excess after cost, compounded relative to the benchmark; turnover = (bought + sold) / account per day.")
    if options.csv and tables:
        several = len(tables) > 1
        frames = [table.assign(group=heading) if several else table for heading, table in tables.items()]
        pd.concat(frames).rename_axis("run").to_csv(options.csv)
    return status
