"""`python -m qlib_ext.store doctor STORE`: what is in a Qlib folder, what is not, and what of it cannot be right.

Any folder of Qlib's format is read straight from its files, whoever made it. Nothing is repaired or written.
"""

import json
import math
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Sequence, Union

import numpy as np
from tqdm import tqdm

from qlib_ext.errors import ConfigError
from qlib_ext.store import doctor_bars, doctor_etfs, doctor_intraday, doctor_members
from qlib_ext.store.findings import Section, named
from qlib_ext.store.reading import StoreFiles

CHECKS = (doctor_members.members, doctor_members.rebalances, doctor_members.weights, doctor_bars.index_bars, doctor_bars.calendar,
          doctor_bars.jumps, doctor_bars.limits, doctor_bars.prices, doctor_bars.special_treatment, doctor_bars.fundamentals,
          doctor_members.industries, doctor_members.survivors, doctor_etfs.etfs, doctor_intraday.intraday,
          doctor_bars.coverage)

CANNOT_RUN = ("damaged files", "folders not lower case")  # Qlib crashes on the former and finds nothing in the latter
WIDTH = 100


@dataclass
class Report:
    """Sections of an examined store, and what `check` says of the workflows that were named: file -> faults, warnings."""

    store: str
    sections: List[Section]
    workflows: Dict[str, Dict[str, List[str]]] = field(default_factory=dict)

    @property
    def warnings(self) -> List[Dict[str, str]]:
        """All warnings, as {section, kind, text, advice}."""
        return [{"section": section.title, **one} for section in self.sections for one in section.warnings]

    @property
    def can_run(self) -> bool:
        """Whether every named workflow can run on the store."""
        return not any(found["faults"] for found in self.workflows.values())

    def text(self) -> str:
        """The report for people: figures by section, then all warnings, then the workflows."""
        lines = [f"store {self.store}"]
        for section in self.sections:
            lines += ["", section.title, "-" * len(section.title)]
            lines += [line if "\n" in line else _wrapped(line) for line in section.lines]  # tables as they are
            lines += [_wrapped(f"note: {note}") for note in section.notes]
            for kind in dict.fromkeys(one["kind"] for one in section.warnings):
                mine = [one for one in section.warnings if one["kind"] == kind]
                lines += [_wrapped(f"WARNING {kind}: {one['text']}") for one in mine] + [_wrapped(f"  -> {mine[0]['advice']}")]
        count = len(self.warnings)
        kinds = sorted({one["kind"] for one in self.warnings})
        lines += ["", _wrapped(f"{count} warnings: {', '.join(kinds)}" if count else "no warnings")]
        for path, found in self.workflows.items():
            lines += ["", f"workflow {path}: " + (f"cannot run, {len(found['faults'])} faults" if found["faults"] else "can run")]
            lines += [_wrapped(f"{word}: {one}") for word in ("fault", "warning") for one in found[f"{word}s"]]
        return "\n".join(lines)

    def json(self) -> str:
        """The report for machines: strict JSON, null for what is not finite."""
        sections = [{"title": one.title, "figures": one.figures, "notes": one.notes, "warnings": one.warnings}
                    for one in self.sections]
        content = {"store": self.store, "warnings": self.warnings, "can_run": self.can_run, "workflows": self.workflows,
                   "sections": sections}
        return json.dumps(_plain(content), indent=1, ensure_ascii=False, allow_nan=False)


def examine(store: Union[str, Path], workflows: Sequence[Union[str, Path]] = (), progress: bool = False) -> Report:
    """Examine a store, and whether the workflows can run on it (their own `provider_uri` is not used).

    `progress` shows a bar where standard error is a terminal.

    Raises
    ------
    ConfigError
        A workflow file does not exist.
    DataError
        The folder is no Qlib store, its calendar or an instruments file cannot be read, or no stock has a close.
    """
    absent = [str(path) for path in workflows if not Path(path).is_file()]
    if absent:
        raise ConfigError(f"workflow files that do not exist: {named(absent)}; give paths of YAML files after --for")
    files = StoreFiles(store)
    sections = [_folder(files)]
    for check in tqdm(CHECKS, desc="examining", unit=" checks", disable=None if progress else True):
        sections.append(check(files))
    files.read_others()
    if files.damaged:
        sections[0].warn("damaged files", f"{len(files.damaged)} feature files are empty, unreadable or do not fit the calendar, "
                         f"and were read as unknown: {named(files.damaged)}")
    report = Report(str(files.path), sections)
    for path in workflows:
        found = report.workflows[str(path)] = _try_workflow(path, files.path)
        found["faults"] += [f"{one['kind']}: {one['text']}" for one in report.warnings if one["kind"] in CANNOT_RUN]
    return report


def _folder(files: StoreFiles) -> Section:
    """Who made the store, what kinds of instruments it has, how codes are spelt."""
    section, about = Section("Folder"), files.metadata
    maker = f"format {about['format']} of this package, vwap {about.get('vwap')}" if about else "made elsewhere, without metadata"
    section.lines.append(f"{maker}; " + ", ".join(f"{count} {kind or 'other'}" for kind, count in files.kinds.items()))
    section.figures = {"format": about.get("format"), "generated": about.get("generated"), "kinds": files.kinds}
    if about.get("generated"):
        section.notes.append("the data are generated: results on them say nothing about a market")
    _left_out(section, about)
    mixed = sorted(set(files.spans("all")["code"]) & set(files.indices)) if "all" in files.universes else []
    if mixed:
        section.warn("indices among stocks", f"instruments file all lists {len(mixed)} indices: {named(mixed)}; a handler on "
                     "`all` loads them as stocks")
    upper = [folder.name for folder in files.folders.values() if folder.name != folder.name.lower()]
    if upper:
        section.warn("folders not lower case", f"{len(upper)} folders of features are not spelt in lower case: {named(upper)}; "
                     "Qlib on Linux looks for lower case only and reads nothing from them")
    lower = {name for name in files.universes if files.text(name)[:2].islower()}
    if lower and lower != set(files.universes):
        section.warn("spelling of codes", f"instruments files {sorted(lower)} spell codes in lower case, "
                     f"{sorted(set(files.universes) - lower)} in upper case: to Qlib these are different stocks")
    return section


def _left_out(section: Section, about: dict) -> None:
    """What the ingest left out, by its counts."""
    counts = about.get("counts", {})
    ahead = counts.get("float_shares_look_ahead_rows_left_out")
    if ahead:
        section.warn("look-ahead rows", f"{ahead} of {about.get('tables', {}).get('float_shares_monthly', '?')} rows of table "
                     "float_shares_monthly look ahead (method snapshot_bfill) and were left out: float_shares, float_cap and "
                     "weights estimated from them are unknown or older there")
    malformed = {table: count for table, count in (counts.get("malformed_codes_of_the_past") or {}).items() if count}
    if malformed:
        section.warn("malformed codes", "codes that are no codes, of the past, were left out: "
                     + ", ".join(f"{count} in table {table}" for table, count in malformed.items()))


def _try_workflow(path: Union[str, Path], store: Path) -> dict:
    from qlib_ext.check import examine_workflow  # imports Qlib
    faults, warnings = examine_workflow(path, store)
    return {"faults": [str(fault) for fault in faults], "warnings": [str(one) for one in warnings]}


def _wrapped(text: str) -> str:
    """A sentence in lines of 100 characters, indented from the second on."""
    return textwrap.fill(text, WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _plain(value):
    """What JSON can say: plain numbers, null for NaN and infinities, text for all else."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
