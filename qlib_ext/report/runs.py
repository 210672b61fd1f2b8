"""Runs in the tracking database: which finished, what they kept, which store they read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

import pandas as pd

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.home import home
from qlib_ext.report.saved import Artefacts

REPORT = "portfolio_analysis/report_normal_1day.pkl"


@dataclass
class Run:
    """One finished run: `score` and raw `label` on (datetime, instrument), NaN = unknown; `report` is Qlib's daily report."""

    name: str
    score: pd.Series
    label: pd.Series
    report: Optional[pd.DataFrame] = None


class Origin(NamedTuple):
    """The data of a run; None: not known. `best`: universe -> best possible IC of a generated market, over all years."""

    store: Optional[Path]
    fingerprint: Optional[str]
    generated: Optional[bool]
    best: Optional[dict]


class Runs:
    """Finished runs of a tracking database.

    Raises:
        DataError: the database does not exist.
    """

    def __init__(self, uri: Optional[str] = None):
        from mlflow.tracking import MlflowClient

        from qlib_ext.tracking import database_path, resolve_uri
        self.uri = resolve_uri(uri or f"sqlite:///{home()}/tracking.db")
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
        return Artefacts(self, run).path(name)

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
        score, label = (first_column(pd.read_pickle(paths[artefact])) for artefact in ("pred.pkl", "label.pkl"))
        report = None if paths[REPORT] is None else pd.read_pickle(paths[REPORT])
        return Run(name, score, label, report)

    def members(self, run) -> dict[str, pd.Series]:
        """Scores of an ensemble's members, name -> Series on (datetime, instrument); empty for another run."""
        places = {file.path: self._path(run, file.path) for file in self.client.list_artifacts(run.info.run_id, "members")}
        found = {re.fullmatch(r"members/pred_(.+)\.pkl", place): path for place, path in sorted(places.items()) if path is not None}
        return {match.group(1): first_column(pd.read_pickle(path)) for match, path in found.items() if match}

    def label_expression(self, run) -> Optional[str]:
        """The label (the first of several) of a run card or a task; None where neither names it."""
        card, task = self._path(run, "run_card.json"), self._path(run, "task")
        found = None if card is None else (json.loads(card.read_text()).get("panel") or {}).get("label")
        if not found and task is not None:
            handler = ((pd.read_pickle(task).get("dataset") or {}).get("kwargs") or {}).get("handler")
            found = (handler.get("kwargs") or {}).get("label") if isinstance(handler, dict) else None
            if isinstance(found, dict):
                from qlib_ext.data.handler import label_fields
                found = label_fields(**found)
        while isinstance(found, (list, tuple)) and found:  # [[expressions], [names]], [expressions], or one
            found = found[0]
        return found if isinstance(found, str) else None

    def origin(self, run) -> Origin:
        """What data a run read: from its tags, else (a run of another tracking manager) from its configuration and run card."""
        from qlib_ext.tracking import TAG
        tags = {name[len(TAG):]: value for name, value in run.data.tags.items() if name.startswith(TAG)}
        config, card = self._path(run, "config"), self._path(run, "run_card.json")
        store, fingerprint = tags.get("store"), tags.get("store_fingerprint")
        if store is None and config is not None:
            uri = ((pd.read_pickle(config) or {}).get("qlib_init") or {}).get("provider_uri")
            store = uri.get("day") if isinstance(uri, dict) else uri
        if fingerprint is None and card is not None:
            fingerprint = (json.loads(card.read_text()).get("panel") or {}).get("store")
        generated, best = (json.loads(tags[name]) if name in tags else None for name in ("generated", "best_possible_ic"))
        if "store" in tags and generated is None:
            generated = False  # made elsewhere: our generator tags its own
        return Origin(None if store is None else Path(str(store)).expanduser(), fingerprint, generated, best)

    def experiment_of(self, run) -> str:
        """Name of a run's experiment."""
        return self.experiments.get(run.info.experiment_id, run.info.experiment_id)

    def describe(self, run) -> str:
        """Where a recorder lies."""
        return (f"experiment {self.experiment_of(run)}, recorder {run.info.run_id}\n"
                f"    tracking database  {self.uri}\n    artefacts          {run.info.artifact_uri}")


def first_column(frame: pd.DataFrame | pd.Series) -> pd.Series:
    """The first column, or the series, on (datetime, instrument)."""
    column = frame.iloc[:, 0] if isinstance(frame, pd.DataFrame) else frame
    if list(column.index.names) == ["instrument", "datetime"]:
        column = column.swaplevel()
    return column.rename_axis(["datetime", "instrument"])
