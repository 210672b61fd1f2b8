"""The cells of a store: every instrument's days from its first to its last bar, laid out one instrument after the other."""

from copy import copy
from typing import Optional

import numpy as np

from qlib_ext.store.tables import Table


class Grid:
    """Cells of a table of bars on a calendar.

    Attributes
    ----------
    calendar : datetime64[D] [t]
    codes : str [n], sorted
    start, length, offset : int [n]; instrument i owns the cells `offset[i] : offset[i] + length[i]`, the first of them on
        calendar day `start[i]`; days without a row inside an instrument's span are cells too
    stock, day : int32 [c], instrument and calendar day of each cell
    """

    def __init__(self, table: Table, calendar: np.ndarray):
        position = np.searchsorted(calendar, table.dates["date"])
        self.calendar, self.codes = calendar, table.codes
        self.start = np.full(len(self.codes), len(calendar), dtype=np.int64)
        last = np.full(len(self.codes), -1, dtype=np.int64)
        np.minimum.at(self.start, table.code, position)
        np.maximum.at(last, table.code, position)
        self._lay(last - self.start + 1)
        self.place = self.offset[table.code] + position - self.start[table.code]  # cell of each table row

    def _lay(self, length: np.ndarray) -> None:
        self.length = length
        self.offset = np.concatenate([[0], np.cumsum(length)[:-1]])
        self.size = int(length.sum())
        self.stock = np.repeat(np.arange(len(self.codes), dtype=np.int32), length)
        self.day = (np.arange(self.size) - np.repeat(self.offset - self.start, length)).astype(np.int32)

    def open_ended(self) -> "Grid":
        """A grid whose instruments all go on to the calendar's last day, for on a day without a row nobody knows whether the
        instrument will come back. Its `place` are this grid's cells: `expand` takes those, `values[place]` gives them back."""
        whole = copy(self)
        whole._lay(len(self.calendar) - self.start)
        whole.place = whole.offset[self.stock] + self.day - self.start[self.stock]
        return whole

    def expand(self, values: np.ndarray) -> np.ndarray:
        """Table rows [r] to cells [c] float64; NaN in cells without a row."""
        cells = np.full(self.size, np.nan)
        cells[self.place] = values
        return cells

    def carry(self, cells: np.ndarray) -> np.ndarray:
        """Replace NaN by the instrument's last earlier value; NaN stays before its first one. [c]"""
        source = np.where(np.isnan(cells), -1, np.arange(self.size))
        np.maximum.accumulate(source, out=source)
        known = source >= self.offset[self.stock]
        return np.where(known, cells[source], np.nan)

    def latest_event(self, stock: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Number of the event [e] that each cell [c] last saw, -1 before its instrument's first one.

        An event counts from its calendar position on, until the instrument's next event. Events must come in time order within an
        instrument (of several at one place the last counts); `stock` -1 is left out; an event before the instrument's first day
        counts from that day.
        """
        position = np.maximum(position, self.start[stock])
        kept = np.flatnonzero((stock >= 0) & (position < (self.start + self.length)[stock]))
        latest = np.full(self.size, -1, dtype=np.int64)
        np.maximum.at(latest, self.offset[stock[kept]] + position[kept] - self.start[stock[kept]], kept)
        event = self.carry(np.where(latest < 0, np.nan, latest))
        return np.where(np.isnan(event), -1, event).astype(np.int64)

    def from_events(self, stock: np.ndarray, position: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Cells [c] holding the value of their `latest_event`; NaN before it. A value NaN ends what was known."""
        return np.append(value, np.nan)[self.latest_event(stock, position)]

    def to_days(self, cells: np.ndarray, stocks: np.ndarray, first: int, last: int) -> np.ndarray:
        """Cells of some instruments as [t, n] over the calendar days first..last; NaN outside an instrument's span."""
        dense = np.full((last - first + 1, len(stocks)), np.nan)
        column = np.full(len(self.codes), -1, dtype=np.int64)
        column[stocks] = np.arange(len(stocks))
        inside = (column[self.stock] >= 0) & (self.day >= first) & (self.day <= last)
        dense[self.day[inside] - first, column[self.stock[inside]]] = cells[inside]
        return dense

    def from_days(self, dense: np.ndarray, stocks: np.ndarray, first: int, kept: Optional[np.ndarray] = None) -> np.ndarray:
        """The inverse of `to_days`: [t, n] to cells [c] where `kept [t, n]` (default: finite); NaN elsewhere."""
        cells = np.full(self.size, np.nan)
        day, column = np.nonzero(np.isfinite(dense) if kept is None else kept)
        stock = stocks[column]
        cells[self.offset[stock] + day + first - self.start[stock]] = dense[day, column]
        return cells
