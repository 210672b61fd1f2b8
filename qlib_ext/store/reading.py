"""A Qlib folder read straight from its files, whoever wrote it: calendar, instruments, fields as arrays. Qlib is not needed."""

from functools import cached_property
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import pandas as pd

from qlib_ext.errors import DataError
from qlib_ext.market_rules import board_of, kind_of
from qlib_ext.store.metadata import check_store, read_metadata

SUFFIX = ".day.bin"
NOT_INDICES = ("all", "index", "etf", "bond")


def parse_spans(text: str) -> Tuple[pd.DataFrame, List[Tuple[int, str]]]:
    """Rows of an instruments file: columns code, start, end (datetime64, both days included); and the lines, with their numbers,
    that are not code, first day and last day with tabs between."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    table = pd.DataFrame([f"{line}\t\t".split("\t")[:3] for _, line in lines], columns=["code", "start", "end"], dtype=str)
    for column in ("start", "end"):
        table[column] = pd.to_datetime(table[column], format="mixed", errors="coerce")
    return table, [lines[place] for place in np.flatnonzero(table.isna().any(axis=1))]


class StoreFiles:
    """Arrays of a store: `codes` [n] are the stocks, `days` [t] the calendar from the first day with a stock's close on.

    Codes are upper case, whatever the files say. `damaged` collects files that cannot be what they should be; they read as NaN.

    Raises
    ------
    DataError
        No store, a calendar that is not in order, an instruments file that cannot be read, or no stock with a close.
    """

    def __init__(self, path: Union[str, Path]):
        self.path = check_store(path)
        self.metadata: dict = read_metadata(self.path) or {}
        self.damaged: List[str] = []
        self.calendar = self._calendar()
        self.folders = {folder.name.upper(): folder for folder in sorted((self.path / "features").iterdir()) if folder.is_dir()}
        names = np.array(sorted(self.folders), dtype=str)
        kinds = dict(zip(names, kind_of(names))) if len(names) else {}
        for kind in ("index", "etf", "bond"):
            kinds.update({code: kind for code in self.spans(kind)["code"]} if self._instruments(kind).is_file() else {})
        self.indices = [code for code in names if kinds[code] == "index"]
        self.kinds = {kind: sum(found == kind for found in kinds.values()) for kind in sorted(set(kinds.values()))}
        self.codes = np.array([code for code in names if kinds[code] not in ("index", "etf", "bond")], dtype=str)
        self.first = 0
        close = self.panel("close", self.codes)
        self.first = int(np.isfinite(close).any(axis=0).argmax()) if close.size else 0
        self.close = close[:, self.first:]
        if not np.isfinite(self.close).any():
            raise DataError(f"store {self.path}: no stock has a close (features/<code>/close{SUFFIX}); ingest the bars")
        self.days = self.calendar[self.first:]

    def _calendar(self) -> np.ndarray:
        file = self.path / "calendars" / "day.txt"
        try:
            days = np.array(file.read_text().split("\n"), dtype=str)
            days = np.array([day.strip() for day in days if day.strip()], dtype="datetime64[D]")
        except (OSError, ValueError) as error:
            raise DataError(f"store {self.path}: calendars/day.txt cannot be read ({error})") from error
        if not len(days) or (np.diff(days).astype(int) <= 0).any():
            raise DataError(f"store {self.path}: the days of calendars/day.txt are not in increasing order")
        return days

    def _instruments(self, name: str) -> Path:
        return self.path / "instruments" / f"{name}.txt"

    # ---- instruments --------------------------------------------------------------------------------------------------------
    @cached_property
    def universes(self) -> List[str]:
        """Names of the instruments files."""
        return sorted(file.stem for file in (self.path / "instruments").glob("*.txt"))

    def text(self, universe: str) -> str:
        """An instruments file as it is."""
        try:
            return self._instruments(universe).read_text()
        except (OSError, ValueError) as error:
            raise DataError(f"store {self.path}: instruments/{universe}.txt cannot be read ({error})") from error

    def spans(self, universe: str) -> pd.DataFrame:
        """Rows of an instruments file: code (upper case), start, end (datetime64, both inclusive)."""
        table, wrong = parse_spans(self.text(universe))
        if wrong:
            number, line = wrong[0]
            raise DataError(f"store {self.path}: instruments/{universe}.txt, line {number} ({len(wrong)} such lines), is "
                            f"{line!r}, not code, first and last day with tabs between; write tabs, Qlib reads no other "
                            "separator")
        return table.assign(code=table["code"].str.strip().str.upper())

    def membership(self, universe: str, codes: Sequence[str]) -> np.ndarray:
        """Who belongs to a universe on which day. bool [len(codes), t]"""
        place = {code: row for row, code in enumerate(codes)}
        member = np.zeros((len(codes), len(self.days)), dtype=bool)
        for code, start, end in self.spans(universe).itertuples(index=False):
            if code in place:
                begin = np.searchsorted(self.days, np.datetime64(start, "D"), side="left")
                member[place[code], begin:np.searchsorted(self.days, np.datetime64(end, "D"), side="right")] = True
        return member

    # ---- fields -------------------------------------------------------------------------------------------------------------
    @cached_property
    def fields(self) -> List[str]:
        """Daily fields that at least one stock has."""
        return sorted({file.name[:-len(SUFFIX)] for code in self.codes for file in self.folders[code].glob(f"*{SUFFIX}")})

    def panel(self, field: str, codes: Optional[Sequence[str]] = None) -> np.ndarray:
        """A field of some instruments (default: all stocks), NaN where there is no file or no value. float32 [n, t]"""
        codes = self.codes if codes is None else codes
        values = np.full((len(codes), len(self.calendar) - self.first), np.nan, dtype=np.float32)
        for row, code in enumerate(codes):
            folder = self.folders.get(code)
            file = None if folder is None else folder / f"{field}{SUFFIX}"
            raw = None if file is None or not file.exists() else self._values(file)
            if raw is None:
                continue
            begin = int(raw[0]) - self.first
            skip, stop = max(-begin, 0), begin + len(raw) - 1
            if stop > 0:
                values[row, begin + skip:stop] = raw[1 + skip:]
        values[np.isinf(values)] = np.nan
        return values

    def _values(self, file: Path) -> Optional[np.ndarray]:
        """First position and values of a feature file; None, and its name in `damaged`, where it cannot be one."""
        try:
            raw = np.fromfile(file, dtype="<f4")
        except OSError:
            raw = np.empty(0, dtype="<f4")
        start = raw[0] if len(raw) else np.nan
        if np.isfinite(start) and start >= 0 and start == int(start) and start + len(raw) - 1 <= len(self.calendar):
            return raw
        name = file.relative_to(self.path).as_posix()
        if name not in self.damaged:
            self.damaged.append(name)
        return None

    def read_others(self) -> None:
        """Read what no array holds, so that `damaged` is complete: all fields of what is no stock."""
        for code in set(self.folders) - set(self.codes):
            for file in sorted(self.folders[code].glob(f"*{SUFFIX}")):
                self._values(file)

    # ---- what every check needs ---------------------------------------------------------------------------------------------
    @cached_property
    def boards(self) -> np.ndarray:
        """Board of each stock, '' where the code tells none. str [n]"""
        return np.asarray(board_of(self.codes), dtype=str)

    @cached_property
    def traded(self) -> np.ndarray:
        """A close, and volume where the store has volumes. bool [n, t]"""
        finite = np.isfinite(self.close)
        return finite & (self.panel("volume") > 0) if "volume" in self.fields else finite

    @cached_property
    def bounds(self) -> np.ndarray:
        """Positions of each stock's first and last traded day, (t, -1) for a stock that never trades. int [n, 2]"""
        some = self.traded.any(axis=1)
        first = np.where(some, self.traded.argmax(axis=1), len(self.days))
        return np.stack([first, np.where(some, len(self.days) - 1 - self.traded[:, ::-1].argmax(axis=1), -1)], axis=1)

    @cached_property
    def listed(self) -> np.ndarray:
        """Days from a stock's first to its last traded one. bool [n, t]"""
        day = np.arange(len(self.days))
        return (day >= self.bounds[:, :1]) & (day <= self.bounds[:, 1:])

    @cached_property
    def previous(self) -> np.ndarray:
        """Position of the last traded day before each day, -1 without one. int32 [n, t]"""
        at = np.where(self.traded, np.arange(len(self.days), dtype=np.int32), np.int32(-1))
        at = np.maximum.accumulate(at, axis=1)
        return np.concatenate([np.full((len(at), 1), -1, dtype=np.int32), at[:, :-1]], axis=1)

    @cached_property
    def years(self) -> np.ndarray:
        """Year of each day. int [t]"""
        return self.days.astype("datetime64[Y]").astype(int) + 1970

    def by_year(self, cells: np.ndarray) -> Dict[int, np.ndarray]:
        """Number of true cells of each stock in each year: year -> [n]"""
        edges = np.flatnonzero(np.append(True, np.diff(self.years) > 0))
        return dict(zip(self.years[edges].tolist(), np.add.reduceat(cells, edges, axis=1, dtype=np.int64).T))
