"""Records of Qlib workflows that make reports: put them behind `SignalRecord` and `PortfolioRecord`, or run them on a finished recorder."""

from __future__ import annotations

import inspect
import json
import pickle
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Mapping, Optional, Sequence

import numpy as np
import pandas as pd
from qlib.log import get_module_logger
from qlib.workflow.record_temp import RecordTemp

from qlib_ext.data.segments import label_offset
from qlib_ext.data.universe import list_universes, member_spans
from qlib_ext.demo.truth import STATEMENT
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.compare import common_pairs, generated_statement
from qlib_ext.report.factor import factor_report
from qlib_ext.report.factor_view import FactorOptions
from qlib_ext.report.leak_checks import label_days
from qlib_ext.report.portfolio import PortfolioOptions, portfolio_report
from qlib_ext.report.runs import Origin, Run, Runs, first_column
from qlib_ext.report.saved import CARD, FOLDERS, Artefacts, save
from qlib_ext.report.table import Report, Table
from qlib_ext.report.view import ENTRIES, STYLES, check_scores, factor_view, index_code, index_prices, industry_names, portfolio_view
from qlib_ext.store.schema import INDEX_CODES

logger = get_module_logger("qlib_ext.report")
ANALYSIS = "portfolio_analysis"
REPORT, POSITIONS = "report_normal_1day.pkl", "positions_normal_1day.pkl"
PACKAGES = ("qlib_ext", "pyqlib", "numpy", "pandas", "torch")


class _ReportRecord(RecordTemp):
    """What the records of reports share: options that are checked first, facts about the run, saving, metrics, a printed table."""

    kind = ""

    def __init__(self, recorder, unknown: Optional[Mapping[str, Any]] = None):
        if unknown:
            raise self._refused(unknown)
        super().__init__(recorder)

    @classmethod
    def _refused(cls, unknown: Mapping[str, Any]) -> ConfigError:
        valid = sorted(set(inspect.signature(cls.__init__).parameters) - {"self", "recorder", "model", "dataset", "unknown"})
        return ConfigError(f"{cls.__name__} does not take {sorted(unknown)}; valid keywords: {valid}")

    def list(self) -> list[str]:
        """Names of what is saved; the tables besides are named in it."""
        return [CARD]

    def _finish(self, tables: Report, facts: Mapping[str, Any], shown: Sequence[str], title: str) -> Report:
        save(self.recorder, self.get_path(), tables, self.kind, facts)
        self.recorder.log_metrics(**{f"{self.get_path().replace('/', '.')}.{name}": value for name, value in self._metrics(tables).items()})
        print(f"{title} ({self.get_path()} of recorder {self.recorder.id})")
        for name in shown:
            print_table(tables[name])
        for note in facts["notes"]:
            print(f"Note: {note}.")
        if facts["statement"]:
            print(facts["statement"])
        return tables


class FactorReportRecord(_ReportRecord):
    """What a signal is worth: IC and its decay, groups, calendar tables as brokers print them, exposures, IC after neutralisation.

    Needs `pred.pkl`; `label.pkl` where there is one. Tables go to ``factor_report`` (`qlib_ext.report.factor` says what they are).

    Args:
        entry: price traded at on the day after a score: vwap, open or close.
        horizons: trading days of the decay. quantiles: number of groups. rebalance: ``week`` or a number of trading days.
        min_count: stocks a day needs for its figures. neutral: what the IC is cleaned of; None: all that the data allow.
        horizon: trading days the label covers; None: as the run's label expression says.
        universe: universe whose members of the day are looked at; None: all that were scored.
        index: universe name or code of the index to hold it against; auto: that of the universe; None: none.
        styles: True makes risk snapshots where days are missing, auto takes those there are. snapshots: their folder; None: the store's.
        model, dataset: offered by Qlib's trainer, not used.

    Raises:
        ConfigError: an unknown keyword, entry, universe or index. DataError: predictions that cannot be ranked.
    """

    artifact_path, kind = FOLDERS["factor"], "factor"

    def __init__(self, recorder, model=None, dataset=None, entry: str = "vwap", horizons: Sequence[int] = (1, 5, 10, 20),
                 quantiles: int = 10, rebalance: str | int = "week", min_count: int = 30, neutral: Optional[Sequence[str]] = None,
                 horizon: Optional[int] = None, universe: Optional[str] = None, index: Optional[str] = "auto", styles: bool | str = "auto",
                 snapshots: Optional[str] = None, **unknown):
        if unknown:
            raise self._refused(unknown)
        super().__init__(recorder)
        if entry not in ENTRIES or styles not in STYLES:
            raise ConfigError(f"entry={entry!r} must be one of {list(ENTRIES)}, styles={styles!r} one of {list(STYLES)}")
        if universe is not None:
            member_spans(universe)
        given = {"horizons": tuple(horizons), "quantiles": quantiles, "rebalance": rebalance, "min_count": min_count,
                 **({} if neutral is None else {"neutral": tuple(neutral)})}
        if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
            raise ConfigError(f"horizon={horizon!r}: trading days that the label covers, a whole number above 0")
        self.options, self.horizon = FactorOptions(**given), horizon
        self.entry, self.universe, self.index, self.styles, self.snapshots = entry, universe, index, styles, snapshots

    def generate(self, **kwargs) -> Report:
        """Make and save the report; its tables."""
        facts, origin = run_facts(self.recorder)
        pred, label = (_object(self.recorder, name) for name in ("pred.pkl", "label.pkl"))
        if pred is None:
            raise DataError(f"recorder {self.recorder.id} has no pred.pkl: put SignalRecord before FactorReportRecord")
        scores, notes = check_scores(pred, self.options.min_count, self.universe)
        index, said = self._index(facts, scores)
        raw = None if label is None else first_column(label).reindex(scores.index)
        if raw is None or not np.isfinite(raw).any():
            raw, notes = None, [*notes, "no raw labels (label.pkl): figures rest on returns from the store alone"]
        horizon, told = (self.horizon, []) if self.horizon else _horizon(facts["label"])
        view, found = factor_view(scores, raw, self.entry, max(*self.options.horizons, horizon), index, self.styles, self.snapshots,
                                  horizon)
        days = pd.DatetimeIndex(scores.index.get_level_values(0))
        universe = self.universe or facts["universe"]
        facts |= {"universe": universe, "best_possible_ic": (facts["best_possible_ics"] or {}).get(str(universe).lower()),
                  "index": None if index is None else index_code(index), "entry": self.entry, "industry_names": industry_names(),
                  "scored": [f"{days.min():%Y-%m-%d}", f"{days.max():%Y-%m-%d}"], "data_until": str(view.days[-1]),
                  "statement": self._statement(facts, origin, scores, raw), "notes": [*notes, *said, *told, *found]}
        return self._finish(factor_report(view, self.options), facts, ("summary", "broker"), "Factor report")

    def _statement(self, facts: Mapping[str, Any], origin: Origin, scores: pd.Series, label: Optional[pd.Series]) -> Optional[str]:
        """What must be said of a generated market: with labels, the best possible IC on the very same pairs."""
        if not facts["generated"] or label is None:
            return statement(facts)
        name = str(facts["experiment"])
        return " ".join(generated_statement({name: origin}, common_pairs([Run(name, scores, label)])[0], self.options.min_count))

    def _index(self, facts: Mapping[str, Any], scores: pd.Series) -> tuple[Optional[str], list[str]]:
        """The index to hold the signal against. What was named must be there; what was not may be absent."""
        if self.index != "auto":
            return self.index, []
        found = INDEX_CODES.get(str(self.universe or facts["universe"]).lower())
        if found is None:
            return None, ["no index: name one (index: csi300) to hold the signal against it"]
        try:
            index_prices(found, self.entry, np.unique(scores.index.get_level_values(0).to_numpy().astype("datetime64[D]")))
        except ConfigError as error:
            return None, [f"no index: {error}"]
        return found, []

    @staticmethod
    def _metrics(tables: Report) -> dict[str, float]:
        """The figures of the summary in Qlib's spelling (``Rank IC``)."""
        return _finite({name.replace("Rank", "Rank ").replace("Rank MAE", "RankMAE"): value
                        for name, value in tables["summary"].frame["value"].items()})


class PortfolioReportRecord(_ReportRecord):
    """What a back-test is worth: over three benchmarks, by calendar, drawdowns, where the active return is from, exposures.

    Needs what `PortfolioRecord` leaves; of Qlib's own `PortAnaRecord` too (then with one benchmark). Tables go to ``portfolio_report``, or
    ``portfolio_report/<name>`` (`qlib_ext.report.portfolio` says what they are).

    Args:
        name: of the portfolio, where `PortfolioRecord` has one.
        index: universe whose weights are the benchmark of active weights; auto: that of the strategy; None: no active weights.
        styles, snapshots: as `FactorReportRecord`. drawdown_rows: deepest falls that are listed.
        model, dataset: offered by Qlib's trainer, not used.

    Raises:
        ConfigError: an unknown keyword or index. DataError: there is no back-test in the recorder.
    """

    artifact_path, kind = FOLDERS["portfolio"], "portfolio"

    def __init__(self, recorder, model=None, dataset=None, name: Optional[str] = None, index: Optional[str] = "auto",
                 styles: bool | str = "auto", snapshots: Optional[str] = None, drawdown_rows: int = 5, **unknown):
        if unknown:
            raise self._refused(unknown)
        super().__init__(recorder)
        if styles not in STYLES:
            raise ConfigError(f"styles={styles!r}: choose one of {list(STYLES)}")
        if index not in (None, "auto"):
            member_spans(index)
        self.name, self.index, self.styles, self.snapshots = name, index, styles, snapshots
        self.options = PortfolioOptions(drawdown_rows=drawdown_rows)

    def get_path(self, path=None):
        return "/".join(part for part in (self.artifact_path, self.name, path) if part)

    def generate(self, **kwargs) -> Report:
        """Make and save the report; its tables."""
        facts, folder = run_facts(self.recorder)[0], "/".join(part for part in (ANALYSIS, self.name) if part)
        report, positions, benchmarks = (_object(self.recorder, f"{folder}/{name}") for name in (REPORT, POSITIONS, "benchmarks.pkl"))
        if report is None or positions is None:
            has = sorted({"/".join(name.split("/")[:2]) for name in Artefacts(self.recorder).list(ANALYSIS) if "." not in name})
            raise DataError(f"recorder {self.recorder.id} has no daily back-test in {folder}" + (f" (named ones: {has})" if has else "") +
                            ": put PortfolioRecord (qlib_ext.portfolio.records) before PortfolioReportRecord, with the same name")
        path = Artefacts(self.recorder).path(f"{folder}/certificates.parquet")
        certificates = None if path is None else pd.read_parquet(path)
        index, notes = self._index(certificates)
        view, found = portfolio_view(report, positions, benchmarks, certificates, index, self.styles, self.snapshots)
        facts |= {"portfolio": self.name, "index": index, "span": [f"{report.index[0]:%Y-%m-%d}", f"{report.index[-1]:%Y-%m-%d}"],
                  "industry_names": industry_names(), "statement": statement(facts), "notes": [*notes, *found]}
        tables = portfolio_report(view, self.options)
        shown = [name for name in ("summary", "broker", "attribution") if name in tables]
        return self._finish(tables, facts, shown, f"Portfolio report{f' of {self.name}' if self.name else ''}")

    def _index(self, certificates: Optional[pd.DataFrame]) -> tuple[Optional[str], list[str]]:
        """The universe that is the benchmark: as named, else of the certificates, the portfolio's name, or the task's back-tests."""
        if self.index != "auto":
            return self.index, []
        source = "" if certificates is None or "benchmark_weights" not in certificates else str(certificates["benchmark_weights"].iloc[-1])
        task = _task_indices((_object(self.recorder, "task") or {}).get("record") or [], self.name)
        for name in (source.removesuffix("_weight").removeprefix("equal weights of "), self.name, *task):
            if name and name.lower() in list_universes():
                return name.lower(), []
        return None, ["no active weights: the index of the strategy is not known; name it (index: csi300)"]

    @staticmethod
    def _metrics(tables: Report) -> dict[str, float]:
        return _finite({f"{bench}.{name.replace(' ', '_')}": value for bench, column in tables["summary"].frame.items()
                        for name, value in column.items()})


def print_table(table: Table) -> None:
    """A table and its convention on the screen."""
    print(table.frame.to_string(float_format="{:.4f}".format, na_rep="-"))
    print(f"  ({table.convention})\n")


def _finite(figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures as MLflow takes them: names of letters, digits, blanks and ``_ - . /``, finite numbers."""
    numbers = {re.sub(r"[^\w\-. /]", "", str(name)): pd.to_numeric(value, errors="coerce") for name, value in figures.items()}
    return {name: float(value) for name, value in numbers.items() if np.isfinite(value)}


def _object(recorder, name: str):
    """An object of a recorder; None where it has none of the name.

    Raises:
        DataError: the file cannot be read.
    """
    path = Artefacts(recorder).path(name)
    try:
        return None if path is None else pickle.loads(path.read_bytes())
    except Exception as error:                                         # whatever a damaged pickle raises
        raise DataError(f"{path} cannot be read ({error}): run the record that made it again") from error


# ---- facts ----------------------------------------------------------------------------------------------------------------------
def statement(facts: Mapping[str, Any]) -> Optional[str]:
    """What must be said of a run on a generated market; None for others."""
    if not facts["generated"]:
        return None
    best = json.dumps(facts["best_possible_ics"]) if facts["best_possible_ics"] else "not known"
    return f"Generated market; best possible IC over all years: {best}. {STATEMENT}"


def run_facts(recorder) -> tuple[dict[str, Any], Origin]:
    """What is known of a run: experiment, recorder, model, universe, label, segments, data and versions (None: not known); its data."""
    runs = Runs(recorder.uri)
    run = runs.client.get_run(recorder.id)
    origin, task = runs.origin(run), _object(recorder, "task") or {}
    part = lambda name: task.get(name) or {}  # noqa: E731
    universe = runs.universe(run)
    universe = None if universe == "unknown universe" else universe
    segments = (part("dataset").get("kwargs") or {}).get("segments") or {}
    facts = {"experiment": runs.experiment_of(run), "recorder": recorder.id, "model": part("model").get("class"), "universe": universe,
            "label": runs.label_expression(run), "segments": {name: [str(day) for day in span] for name, span in segments.items()},
            "store": None if origin.store is None else str(origin.store), "generated": origin.generated,
            "best_possible_ic": (origin.best or {}).get(str(universe).lower()), "best_possible_ics": origin.best,
            "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}}
    return facts, origin


def _task_indices(records: Any, portfolio: Optional[str]) -> list[str]:
    """Universes that the back-tests of a name in a task name: the record's `index`, the strategy's `index` or `universe`, that of the
    benchmark."""
    found, universe_of = [], {code: name for name, code in INDEX_CODES.items()}
    for record in records if isinstance(records, list) else [records]:
        kwargs = record.get("kwargs") or {}
        config = kwargs.get("config") if kwargs.get("name") == portfolio else None
        if isinstance(config, dict):
            strategy, backtest = ((config.get(name) or {}) for name in ("strategy", "backtest"))
            own = (strategy.get("kwargs") or {}) if isinstance(strategy, dict) else {}
            found += [kwargs.get("index"), own.get("index"), own.get("universe"), universe_of.get(str(backtest.get("benchmark")).upper())]
    return [name for name in found if isinstance(name, str)]


def _version(name: str) -> Optional[str]:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _horizon(label: Optional[str]) -> tuple[int, list[str]]:
    """Trading days that a label covers from its purchase at the next entry on; 5, and a note, where it is not known."""
    if label is not None:
        try:
            return label_days(label) or max(label_offset([label]) - 1, 1), []
        except ConfigError:
            pass
    return 5, ["the label of the run is not known: taken as a return over 5 trading days (horizon: n says otherwise)"]
