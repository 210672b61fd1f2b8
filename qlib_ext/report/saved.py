"""Reports in a recorder: each table as a pickled frame, and `report.json`, which says what they are."""

from __future__ import annotations

import json
import math
import pickle
import tempfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping, Optional

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.table import Report, Table

CARD = "report.json"
FORMAT = 1
FOLDERS = {"factor": "factor_report", "portfolio": "portfolio_report", "leaks": "leak_check"}
"""Kind of report -> its folder in a recorder; a named portfolio's lies in a folder of that name below."""
RECORDS = {"factor_report": "FactorReportRecord", "portfolio_report": "PortfolioReportRecord", "leak_check": "LeakCheckRecord"}


@dataclass(frozen=True)
class Saved:
    """A report as it was saved: `kind` (a key of `FOLDERS`), tables in printing order, facts (JSON; null: not known), where it lay."""

    kind: str
    tables: Report
    facts: dict = field(default_factory=dict)
    folder: str = ""


class Artefacts:
    """Files of one run: ``Artefacts(recorder)`` of a Qlib recorder, ``Artefacts(runs, run)`` of `qlib_ext.report.runs`."""

    def __init__(self, source: Any, run: Any = None):
        self.client, self.run_id, place = source.client, *((source.id, source.artifact_uri) if run is None else
                                                           (run.info.run_id, run.info.artifact_uri))
        self.root = Path(str(place).removeprefix("file://"))

    def path(self, name: str) -> Optional[Path]:
        """Local path of a file; None where there is none."""
        from mlflow.exceptions import MlflowException
        if self.root.is_dir():
            return self.root / name if (self.root / name).is_file() else None
        try:
            path = Path(self.client.download_artifacts(self.run_id, name))
        except (MlflowException, OSError):
            return None
        return path if path.is_file() else None

    def list(self, folder: Optional[str] = None) -> list[str]:
        """Names in a folder, each with its folder."""
        return [file.path for file in self.client.list_artifacts(self.run_id, folder)]

    def reports(self) -> list[str]:
        """Folders with a report: `factor_report`, `portfolio_report`, `portfolio_report/<name>` ..., `leak_check`."""
        found = []
        for folder in FOLDERS.values():
            names = self.list(folder)
            found += [folder] * (f"{folder}/{CARD}" in names)
            below = [name for name in sorted(names) if not name.endswith((".pkl", ".json", ".png"))]
            found += [name for name in below if f"{name}/{CARD}" in self.list(name)]
        return found


def save(recorder: Any, folder: str, tables: Report, kind: str, facts: Mapping[str, Any]) -> None:
    """Put a report into a recorder; `report.json` comes last and holds the check sums of what belongs together.

    Raises:
        ConfigError: an unknown kind.
    """
    if kind not in FOLDERS:
        raise ConfigError(f"kind={kind!r}: a report is one of {list(FOLDERS)}")
    with tempfile.TemporaryDirectory() as made:
        aside, sums = Path(made, "tables"), {}
        aside.mkdir()
        for name, table in tables.items():
            content = pickle.dumps(table.frame, protocol=4)
            (aside / f"{name}.pkl").write_bytes(content)
            sums[name] = zlib.crc32(content)
        card = {"format": FORMAT, "kind": kind, "order": list(tables), "facts": plain(facts), "sums": sums,
                "conventions": {name: table.convention for name, table in tables.items()}}
        Path(made, CARD).write_text(json.dumps(card, ensure_ascii=False, indent=1, allow_nan=False))
        if tables:
            recorder.save_objects(local_path=str(aside), artifact_path=folder)
        recorder.save_objects(local_path=str(Path(made, CARD)), artifact_path=folder)


def load(artefacts: Artefacts, folder: str) -> Saved:
    """A report of a recorder.

    Raises:
        DataError: there is none in the folder, or a file of it is missing or damaged.
    """
    card = artefacts.path(f"{folder}/{CARD}")
    again = f"run {RECORDS.get(folder.split('/')[0], 'its record')} on the recorder again"
    if card is None:
        raise DataError(f"recorder {artefacts.run_id} has no report in {folder}; it has {artefacts.reports() or 'none'}: {again}")
    try:
        about = json.loads(card.read_text())
        order, texts, sums = ([*about["order"]], {**about["conventions"]}, {**about["sums"]})
        if about["format"] != FORMAT or about["kind"] not in FOLDERS or set(texts) != set(order) or set(sums) != set(order):
            raise ValueError("not what this version writes")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{card} is damaged ({error}): {again}") from error
    tables = {name: Table(_frame(artefacts, f"{folder}/{name}.pkl", sums[name], again), texts[name]) for name in order}
    return Saved(about["kind"], tables, about.get("facts") or {}, folder)


def _frame(artefacts: Artefacts, name: str, check_sum: int, again: str) -> pd.DataFrame:
    path = artefacts.path(name)
    if path is None:
        raise DataError(f"recorder {artefacts.run_id} has lost {name}: {again}")
    content = path.read_bytes()
    if zlib.crc32(content) != check_sum:
        raise DataError(f"{path} is damaged, or of another report than the {CARD} beside it: {again}")
    try:
        return pickle.loads(content)
    except Exception as error:                                         # of another pandas: anything can come
        raise DataError(f"{path} cannot be read with pandas {pd.__version__} ({error}): {again}") from error


def plain(value: Any) -> Any:
    """A value as JSON has it: numbers of numpy as Python's, days and whatever else as text, NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple, set, np.ndarray)):
        return [plain(one) for one in value]
    if value is None or isinstance(value, (bool, str, int)):
        return value
    if isinstance(value, (np.bool_, np.integer)):
        return value.item()
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return None if value is pd.NaT else str(value)
