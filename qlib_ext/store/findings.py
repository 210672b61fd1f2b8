"""What the parts of the doctor hand back: figures, readable lines, notes and warnings under one title."""

from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Sequence

import numpy as np


@dataclass
class Section:
    """One part of a report: `figures` for machines, `lines` for people, `notes`, and `warnings` as (kind, sentence)."""

    title: str
    figures: dict = field(default_factory=dict)
    lines: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    warnings: List[Dict[str, str]] = field(default_factory=list)

    def warn(self, kind: str, text: str) -> None:
        """Add a warning; `kind` names its sort, the text says what, where, and what follows."""
        self.warnings.append({"kind": kind, "text": text})

    def table(self, header: Sequence[str], rows: Sequence[Sequence]) -> None:
        """Add rows as aligned columns."""
        cells = [[str(cell) for cell in row] for row in [header, *rows]]
        widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
        self.lines += ["  ".join([row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])])
                       for row in cells]


def percent(share: float) -> str:
    """A share as whole percent, `-` where it is unknown; never 100 unless nothing lacks, never 0 unless nothing is there."""
    if not np.isfinite(share):
        return "-"
    rounded = round(100 * share)
    return str(99 if rounded == 100 and share < 0.995 else max(rounded, 1) if share > 0 else 0)


def named(items: Iterable, most: int = 5) -> str:
    """The first few of a list, and how many others there are."""
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} others" if len(items) > most else "")


def year_span(years: Sequence[int]) -> str:
    """Years in order, runs joined: 2018-2020, 2023."""
    years, runs = sorted(int(year) for year in years), []
    for year in years:
        if runs and year == runs[-1][1] + 1:
            runs[-1][1] = year
        else:
            runs.append([year, year])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
