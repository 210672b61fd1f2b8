"""Who belongs to an index on which day, read from the instruments files of the Qlib store in use."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data import D

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.reading import parse_spans


def list_universes() -> List[str]:
    """Names of the instruments files of the store in use.

    Raises:
        ConfigError: when `qlib.init` has not been called.
    """
    if not C.registered:
        raise ConfigError("Qlib is not initialised: call qlib.init(provider_uri=...) before asking for a universe")
    return sorted(path.stem for path in (Path(C.dpm.get_data_uri("day")) / "instruments").glob("*.txt"))


def trading_calendar() -> np.ndarray:
    """Trading days of the store in use, datetime64[D], ascending."""
    return np.asarray(D.calendar(freq="day"), dtype="datetime64[ns]").astype("datetime64[D]")


def read_spans(file: Path) -> pd.DataFrame:
    """Rows of an instruments file: columns code, start, end (datetime64, both days included).

    Raises:
        DataError: a line is not code, first day and last day with tabs between; the message names file and line.
    """
    table, bad = parse_spans(file.read_text())
    if bad:
        number, line = bad[0]
        raise DataError(f"{file.parent.name}/{file.name}, line {number}: {line[:60]!r} is not code, first day and last day with tabs "
                        f"between ({len(bad)} such lines): write the file with tabs, as Qlib reads it")
    return table


def universe_spans(universe: str) -> dict:
    """`{code: [(first day, last day), ...]}` of a universe, both days included, cut to the calendar.

    Raises:
        ConfigError: when the store has no instruments file of that name; the message lists those it has.
        DataError: as `read_spans`.
    """
    known = list_universes()
    if not isinstance(universe, str) or universe.lower() not in known:
        raise ConfigError(f"universe {universe!r} is not in the store; it has {known}. "
                          "Choose one of these or ingest its members first")
    read_spans(Path(C.dpm.get_data_uri("day")) / "instruments" / f"{universe.lower()}.txt")
    return D.list_instruments(D.instruments(universe), as_list=False)


def member_spans(universe: str) -> dict:
    """`universe_spans` of a universe that must have members.

    Raises:
        ConfigError, DataError: as `universe_spans`; DataError: no members.
    """
    spans = universe_spans(universe)
    if not spans:
        raise DataError(f"universe {universe!r} has no members in the store: ingest them, or choose another universe")
    return spans


def universe_grid(days: Sequence, instruments: Sequence[str], universe: str) -> np.ndarray:
    """Membership `[t, n]` (bool) of `instruments [n]` on `days [t]` (anything numpy reads as dates, in any order).

    Raises:
        ConfigError: unknown universe. DataError: it has no members, or its file is malformed.
    """
    days = np.asarray(days, dtype="datetime64[ns]")
    spans = member_spans(universe)
    grid = np.zeros((len(days), len(instruments)), dtype=bool)
    for column, code in enumerate(instruments):
        for first, last in spans.get(code, ()):
            grid[:, column] |= (days >= np.datetime64(first, "ns")) & (days <= np.datetime64(last, "ns"))
    return grid


def index_levels(index: pd.MultiIndex) -> List[int]:
    """Positions of the (datetime, instrument) levels of an index: by name, else in that order.

    Raises:
        DataError: when the index does not have exactly two levels, or a row has no day or no instrument.
    """
    if not isinstance(index, pd.MultiIndex) or index.nlevels != 2:
        raise DataError("the frame must be indexed by (datetime, instrument), as Qlib's handlers give it")
    levels = [1, 0] if list(index.names) == ["instrument", "datetime"] else [0, 1]
    if any(len(codes) and codes.min() < 0 for codes in index.codes):
        raise DataError("the frame's index has rows without a day or an instrument")
    return levels


def universe_mask(index: pd.MultiIndex, universe: str) -> np.ndarray:
    """Membership `[r]` (bool) of each (datetime, instrument) row of an index.

    Raises:
        ConfigError: unknown universe. DataError: as `universe_grid`; the index is not one of (datetime, instrument).
    """
    day, stock = index_levels(index)
    grid = universe_grid(index.levels[day], list(index.levels[stock]), universe)
    return grid[index.codes[day], index.codes[stock]]
