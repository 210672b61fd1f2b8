"""A table of a report: its figures, and how they are defined."""

from dataclasses import dataclass
from typing import Dict

import pandas as pd


@dataclass(frozen=True)
class Table:
    """A frame, and the sentences printed under it: entry price, horizon, weighting, annualisation, benchmark, overlap."""

    frame: pd.DataFrame
    convention: str


Report = Dict[str, Table]
"""Tables by name, in the order in which they are printed."""
