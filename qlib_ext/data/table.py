"""One table of the rows that are present: float32 values by group of columns, and which day and stock each row is."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import pandas as pd

# how pandas 2 is told to put frames together without copying them; pandas 3 always does
_SHARING = [] if int(pd.__version__.split(".")[0]) >= 3 else ["mode.copy_on_write", True]


def side_by_side(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Frames of the same rows as one frame, sharing their memory."""
    with pd.option_context(*_SHARING) if _SHARING else nullcontext():
        return parts[0] if len(parts) == 1 else pd.concat(parts, axis=1)


@dataclass
class Table:
    """Rows ordered by day, then by instrument.

    Args:
        values: group -> ``[r+1, c]`` float32; NaN = not known; the last row is all NaN (a `Panel` shows it for absent rows).
        names: group -> the ``c`` names.
        index: the ``r`` rows, levels (datetime, instrument).
        origin: hash of the rows and of the field values they were made of.
    """

    values: dict[str, np.ndarray]
    names: dict[str, list[str]]
    index: pd.MultiIndex
    origin: str

    def arrays(self) -> dict[str, np.ndarray]:
        """group -> ``[r, c]``, without the last row; the same memory."""
        return {group: values[:-1] for group, values in self.values.items()}

    def frame(self) -> pd.DataFrame:
        """The table as Qlib's frame, sharing its memory."""
        return side_by_side([pd.DataFrame(values, index=self.index, columns=pd.MultiIndex.from_product([[group], self.names[group]]),
                                          copy=False) for group, values in self.arrays().items()])


@dataclass
class Rows:
    """Which stock-days make a table, and where each of them stands in it.

    Args:
        days: the ``t`` trading days of the span asked for.
        codes: ``[n]`` instruments, ascending.
        places: ``[n, t]`` int32 row of each stock-day, -1 = none.
        count: number of rows.
    """

    days: pd.DatetimeIndex
    codes: list[str]
    places: np.ndarray
    count: int

    @classmethod
    def of(cls, days: pd.DatetimeIndex, codes: list[str], present: np.ndarray) -> "Rows":
        """Number the stock-days of ``present [n, t]`` (bool) by day, then by stock."""
        flat = np.flatnonzero(present.T.ravel())
        places = np.full(present.shape[::-1], -1, np.int32)
        places.ravel()[flat] = np.arange(len(flat), dtype=np.int32)
        return cls(days, codes, np.ascontiguousarray(places.T), len(flat))

    def index(self) -> pd.MultiIndex:
        """The rows as (datetime, instrument); only days with rows are among the levels."""
        flat = np.flatnonzero((self.places >= 0).T.ravel())
        day, stock = np.divmod(flat, len(self.codes)) if self.codes else (flat, flat)
        used = np.zeros(len(self.days), bool)
        used[day] = True
        levels = [self.days[used], pd.Index(self.codes, dtype=pd.Index(["a"]).dtype)]
        return pd.MultiIndex(levels, [(np.cumsum(used) - 1)[day], stock], names=["datetime", "instrument"], verify_integrity=False)

    def part(self, first: int, stop: int) -> "Rows":
        """The rows of days `first` to before `stop`, numbered anew."""
        return Rows.of(self.days[first:stop], self.codes, self.places[:, first:stop] >= 0)
