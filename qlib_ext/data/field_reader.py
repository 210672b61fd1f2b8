"""Field files of many stocks over a span of the calendar, and the formulas of `qlib_ext.factors` on them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Iterable

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data.data import Cal
from qlib.log import get_module_logger

from qlib_ext.data.table import Rows
from qlib_ext.data.threads import run
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.alpha158 import Plan, compute
from qlib_ext.store.feature_files import feature_file, first_few, read_field

logger = get_module_logger("qlib_ext.field_reader")
PIECE = 32
"""Stocks in one piece of work."""


class FieldReader:
    """Reads each file once and holds it as it is (24 bytes per stock-day for the six fields of Alpha158).

    Args:
        spans: code -> [(first day, last day), ...], both included.
        start_time, end_time: both included; None = the calendar's own.
        fields: store fields, without ``$``.

    Attributes:
        first, stop: positions of the span on the calendar; `start`, `end`: its first and last trading day.
        uneven: codes whose files do not begin and end on the same days, or that lack a close.

    Raises:
        ConfigError: no trading day in the span. DataError: a file is damaged, or the store was replaced while it was read.
    """

    def __init__(self, spans: dict, start_time, end_time, fields: list[str]):
        self.calendar = pd.DatetimeIndex(list(Cal.calendar(freq="day")))
        start, end = (pd.Timestamp(self.calendar[edge] if time is None else time) for time, edge in ((start_time, 0), (end_time, -1)))
        self.first, self.stop = self.place(start), self.place(end, "right")
        if self.first >= self.stop:
            raise ConfigError(f"no trading day from {start:%Y-%m-%d} to {end:%Y-%m-%d}: the store's calendar runs from "
                              f"{self.calendar[0]:%Y-%m-%d} to {self.calendar[-1]:%Y-%m-%d}")
        self.start, self.end = self.calendar[self.first], self.calendar[self.stop - 1]
        self.spans, self.fields, self.uneven = spans, fields, set()
        self.content: dict[str, dict[str, tuple[int, np.ndarray]]] = {}
        self._digests: dict[int, str] = {}
        features = Path(C.dpm.get_data_uri("day")) / "features"
        before = _identity(features)
        self._read(features)
        if _identity(features) != before:
            raise DataError(f"store {features.parent} was replaced while it was read: run this again")

    def place(self, day, side: str = "left") -> int:
        """Position of a day on the calendar (side "right": behind it)."""
        return int(self.calendar.searchsorted(pd.Timestamp(day), side=side))

    def _read(self, features: Path) -> None:
        absent = []
        for code in sorted(self.spans):
            found = {name: read_field(feature_file(features, code, name), len(self.calendar)) for name in self.fields}
            found = {name: content for name, content in found.items() if content is not None}
            if not found:
                absent.append(str(code))
                continue
            self.content[code] = found
            if len({(start, len(values)) for start, values in found.values()}) > 1 or ("close" in self.fields and "close" not in found):
                self.uneven.add(code)
        if absent:
            logger.warning(f"no bars of {first_few(absent)} in the store: they have no rows")

    def bounds(self, code: str) -> tuple[int, int]:
        """Calendar positions of a stock's first bar and behind its last one."""
        found = self.content[code].values()
        return min(start for start, _ in found), max(start + len(values) for start, values in found)

    def lay(self, name: str, codes: Iterable[str], back: int = 0, carried: bool = False) -> np.ndarray:
        """A field `back` trading days before each day of the span, float64 ``[t, n]``; NaN where a stock has no value.

        `carried`: a missing value is the stock's last known one, also from before the span.
        """
        codes, first, stop = list(codes), self.first - back, self.stop - back
        laid = np.full((len(codes), stop - first), np.nan)
        for row, code in zip(laid, codes):
            start, values = self.content.get(code, {}).get(name, (0, np.empty(0)))
            low, high = max(start, first), min(start + len(values), stop)
            if low < high:
                row[low - first:high - first] = values[low - start:high - start]
            if carried:
                _carry(row, values[:max(low - start, 0)])
        return np.ascontiguousarray(laid.T)

    def rows(self, stop: int | None = None) -> Rows:
        """The stock-days inside the spans, from each stock's first bar to its last one; `stop` replaces the end of the span.

        Raises:
            DataError: there is none.
        """
        stop = self.stop if stop is None else stop
        present = np.zeros((len(self.content), stop - self.first), bool)
        for n, code in enumerate(self.content):
            low, high = self.bounds(code)
            for begin, end in self.spans[code]:
                begin, end = max(self.place(begin), low, self.first), min(self.place(end, "right"), high)
                present[n, begin - self.first:max(end - self.first, 0)] = True
        kept = present.any(axis=1)
        if not kept.any():
            raise DataError(f"none of the {len(self.spans)} instruments has a bar from {self.start:%Y-%m-%d} to {self.end:%Y-%m-%d}: "
                            "check instruments, dates and store")
        return Rows.of(self.calendar[self.first:stop], [code for code, keep in zip(self.content, kept) if keep], present[kept])

    def digest(self, rows: Rows, days: int) -> str:
        """Hash of the first `days` days of `rows`, and of all values of their stocks up to then: what features of them rest on.

        `rows` are those of this reader up to any day, which changes nothing before it: a hash is made once.
        """
        if days in self._digests:
            return self._digests[days]
        stocks = np.flatnonzero((rows.places[:, :days] >= 0).any(axis=1))
        parts = run(lambda part: b"".join(self._digest(rows.codes[n], rows.places[n, :days] >= 0) for n in part),
                    [stocks[first:first + PIECE] for first in range(0, len(stocks), PIECE)])
        self._digests[days] = hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()
        return self._digests[days]

    def _digest(self, code: str, present: np.ndarray) -> bytes:
        found = hashlib.blake2b(f"{code} {self.start} {len(present)}".encode() + np.packbits(present).tobytes(), digest_size=16)
        for name, (start, values) in self.content[code].items():
            known = values[:max(self.first + len(present) - start, 0)]
            found.update(f"{name} {start} {len(known)}".encode() + known.tobytes())
        return found.digest()

    def fill(self, plan: Plan, rows: Rows, out: np.ndarray) -> None:
        """Fill the plan's columns of ``out [r, f]``; the days of `rows` may begin later than the span."""
        origin = self.place(rows.days[0])
        pieces = [slice(first, first + PIECE) for first in range(0, len(rows.codes), PIECE)]
        run(lambda piece: self._fill(plan, origin, rows.codes[piece], rows.places[piece], out), pieces)

    def _fill(self, plan: Plan, origin: int, codes: list[str], places: np.ndarray, out: np.ndarray) -> None:
        origin, length = origin - plan.back, plan.back + places.shape[1] + plan.ahead
        bars = np.full((len(plan.fields), len(codes), length), np.nan, np.float32)
        start = np.empty(len(codes), np.int64)
        for n, code in enumerate(codes):
            start[n] = max(self.bounds(code)[0] - origin, 0)
            for k, name in enumerate(plan.fields):
                if name in self.content[code]:
                    first, values = self.content[code][name]
                    low, high = max(first, origin), min(first + len(values), origin + length)
                    if low < high:
                        bars[k, n, low - origin:high - origin] = values[low - first:high - first]
        compute(plan, bars, start, places, plan.back, out)


def _carry(row: np.ndarray, before: np.ndarray) -> None:
    """Fill NaN of a row with the last value before it, in place; before the first one with the last of `before`."""
    known = np.flatnonzero(np.isfinite(before))
    place = np.maximum.accumulate(np.where(np.isfinite(row), np.arange(len(row)), -1))
    row[:] = np.where(place < 0, before[known[-1]] if len(known) else np.nan, row[np.maximum(place, 0)])


def _identity(folder: Path) -> tuple[int, int, int]:
    """Changes when an ingestion exchanges the store, or files of a new instrument come."""
    status = folder.stat()
    return status.st_dev, status.st_ino, status.st_mtime_ns
