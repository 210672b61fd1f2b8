"""`python -m qlib_ext.store doctor STORE`: what is in a Qlib folder, what is not, and what of it cannot be right.

Any folder of Qlib's format is read straight from its files, whoever made it. Nothing is repaired or written.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Sequence, Union

import numpy as np
from tqdm import tqdm

from qlib_ext.store import doctor_bars, doctor_members
from qlib_ext.store.findings import Section, named
from qlib_ext.store.reading import StoreFiles

CHECKS = (doctor_members.members, doctor_members.rebalances, doctor_members.weights, doctor_bars.index_bars, doctor_bars.calendar,
          doctor_bars.jumps, doctor_bars.limits, doctor_bars.prices, doctor_bars.special_treatment, doctor_bars.fundamentals,
          doctor_members.industries, doctor_members.survivors, doctor_bars.coverage)


@dataclass
class Report:
    """Sections of an examined store, and what `check` says of the workflows that were named: file -> faults, warnings."""

    store: str
    sections: List[Section]
    workflows: Dict[str, Dict[str, List[str]]] = field(default_factory=dict)

    @property
    def warnings(self) -> List[Dict[str, str]]:
        """All warnings, as {section, kind, text}."""
        return [{"section": section.title, **one} for section in self.sections for one in section.warnings]

    @property
    def can_run(self) -> bool:
        """Whether every named workflow can run on the store."""
        return not any(found["faults"] for found in self.workflows.values())

    def text(self) -> str:
        """The report for people: figures by section, then all warnings, then the workflows."""
        lines = [f"store {self.store}"]
        for section in self.sections:
            lines += ["", section.title, "-" * len(section.title), *section.lines]
            lines += [f"note: {note}" for note in section.notes]
            lines += [f"WARNING {one['kind']}: {one['text']}" for one in section.warnings]
        count = len(self.warnings)
        kinds = sorted({one["kind"] for one in self.warnings})
        lines += ["", f"{count} warnings: {', '.join(kinds)}" if count else "no warnings"]
        for path, found in self.workflows.items():
            lines += ["", f"workflow {path}: " + (f"cannot run, {len(found['faults'])} faults" if found["faults"] else "can run")]
            lines += [f"fault: {fault}" for fault in found["faults"]] + [f"warning: {one}" for one in found["warnings"]]
        return "\n".join(lines)

    def json(self) -> str:
        """The report for machines."""
        sections = [{"title": one.title, "figures": one.figures, "notes": one.notes, "warnings": one.warnings}
                    for one in self.sections]
        return json.dumps({"store": self.store, "warnings": self.warnings, "can_run": self.can_run, "workflows": self.workflows,
                           "sections": sections}, indent=1, ensure_ascii=False, default=_plain)


def examine(store: Union[str, Path], workflows: Sequence[Union[str, Path]] = (), progress: bool = False) -> Report:
    """Examine a store, and whether the workflows can run on it (their own `provider_uri` is not used).

    Raises
    ------
    DataError
        The folder is no Qlib store, its calendar is out of order, or no stock has a close.
    """
    files = StoreFiles(store)
    sections = [_folder(files)]
    for check in tqdm(CHECKS, desc="examining", unit=" checks", disable=not progress):
        sections.append(check(files))
    if files.damaged:
        sections[0].warn("damaged files", f"{len(files.damaged)} feature files are empty or do not fit the calendar, and were "
                         f"read as unknown: {named(files.damaged)}")
    report = Report(str(files.path), sections)
    for path in workflows:
        report.workflows[str(path)] = _try_workflow(path, files.path)
    return report


def _folder(files: StoreFiles) -> Section:
    """Who made the store, what kinds of instruments it has, how codes are spelt."""
    section, about = Section("Folder"), files.metadata
    maker = f"format {about['format']} of this package, vwap {about.get('vwap')}" if about else "made elsewhere, without metadata"
    section.lines.append(f"{maker}; " + ", ".join(f"{count} {kind or 'other'}" for kind, count in files.kinds.items()))
    section.figures = {"format": about.get("format"), "generated": about.get("generated"), "kinds": files.kinds}
    if about.get("generated"):
        section.notes.append("the data are generated: results on them say nothing about a market")
    mixed = sorted(set(files.spans("all")["code"]) & set(files.indices)) if "all" in files.universes else []
    if mixed:
        section.warn("indices among stocks", f"instruments file all lists {len(mixed)} indices: {named(mixed)}; a handler on "
                     "`all` loads them as stocks: give the dataset a `universe`, or the handler an index's members")
    lower = {name for name in files.universes if (files.path / "instruments" / f"{name}.txt").read_text()[:2].islower()}
    if lower and lower != set(files.universes):
        section.warn("spelling of codes", f"instruments files {sorted(lower)} spell codes in lower case, "
                     f"{sorted(set(files.universes) - lower)} in upper case: to Qlib these are different stocks")
    return section


def _try_workflow(path: Union[str, Path], store: Path) -> dict:
    from qlib_ext.check import examine_workflow  # imports Qlib
    faults, warnings = examine_workflow(path, store)
    return {"faults": [str(fault) for fault in faults], "warnings": [str(one) for one in warnings]}


def _plain(value):
    return value.item() if isinstance(value, np.generic) else str(value)
