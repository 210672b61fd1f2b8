"""New days for a store that is there: everything is computed again, and what was published stays as it is, byte for byte."""

import logging
import os
import time
from pathlib import Path
from typing import Dict, List, Mapping, Set, Tuple, Union

import numpy as np
import pandas as pd

from qlib_ext.errors import DataError
from qlib_ext.market_rules import missing_trading_days
from qlib_ext.store.checks import check_tables
from qlib_ext.store.disk import real_path
from qlib_ext.store.ingest import Settings, publish_store
from qlib_ext.store.intraday_fields import carry
from qlib_ext.store.kept import check_own_files, kept_tables, known_by
from qlib_ext.store.metadata import check_store, is_intraday, read_metadata
from qlib_ext.store.schema import KINDS, TABLES
from qlib_ext.store.tables import Table, TableSource, read_tables
from qlib_ext.store.writer import StoreLock, StoreWriter

logger = logging.getLogger("qlib_ext.store")
_NEW_DAYS = ("bars", "index_bars")
_SPAN_KEYS = {"membership": ("instrument", "index", "start"), "industry": ("instrument", "start"), "instruments": ("instrument",)}
_KEY_TEXTS = ("index", "member", "fund")
_TOLERANCE = 1e-6  # relative; numbers that went through text or 32 bits
_MANY = 3  # instruments that no longer trade from one day to the next; fewer may all be suspended in a small store
_OF_BARS = ("all",) + KINDS  # instruments files whose spans are those of the bars


def append(tables: TableSource, store: Union[str, Path], columns: Union[str, Path, Mapping, None] = None) -> Path:
    """Add new days to a store, all or nothing, and return its folder. The result equals one ingestion of all days.

    Arguments
    ---------
    tables : as in `ingest`. bars and index_bars hold days after the store's last one only, both the same. The others may be left
        out: spans (membership, industry, instruments) replace the stored ones of the same key (instrument, index, start), so that
        an end can be set; all others add rows, rows the store has already are dropped.
    store : folder of a store of format 2; its settings (vwap, indices and their sizes, generated) are kept
    columns : column mapping, as in `ingest`

    Every file of the store must be the beginning of the new one, so that what was computed from it stays valid
    (`fingerprint(store, until)`). Fields of `build-intraday` stay too, unknown on the new days until it is run again.

    Raises
    ------
    DataError
        No store that can be continued, files in it that this package did not write, days the store has already, no new day,
        trading days or half the market left out, a column left out that the stored table has, a row that contradicts a stored
        one, new rows that would change the past; and as `ingest`.
    """
    started = time.time()
    out = real_path(store)
    if not out.parent.is_dir():
        check_store(out)
    with StoreLock(out):
        stored, metadata = kept_tables(out), read_metadata(out)
        check_own_files(out, metadata)
        settings = Settings(metadata["vwap"], tuple(metadata["index_names"]), metadata["index_sizes"], metadata["generated"])
        given = read_tables(tables, columns, required=_NEW_DAYS)
        check_tables(given, settings.vwap)
        calendar = np.array((out / "calendars" / "day.txt").read_text().split(), dtype="datetime64[D]")
        _check_days(given, calendar)
        _check_market(stored["bars"], given["bars"], calendar[-1])
        _check_indices(stored["index_bars"], given["index_bars"], calendar[-1])
        data = read_tables(_merge(stored, {name: table.frame() for name, table in given.items()}, calendar[-1]))
        del stored
        new = publish_store(out, data, settings, metadata["history"], AppendWriter, started)
    _report(metadata, new, data["bars"])
    return out


def _check_days(given: Dict[str, Table], calendar: np.ndarray) -> None:
    """New days only, the same in both tables, none of them left out."""
    faults, last = [], calendar[-1]
    for name in _NEW_DAYS:
        dates = given[name].dates["date"]
        old = dates <= last
        if old.any():
            row = int(np.argmax(old))
            faults.append(f"table {name}: {int(old.sum())} rows on or before {last}, the store's last day, first "
                          f"{given[name].instrument(row)} on {dates[row]}; give the days after it only")  # fmt: skip
    stocks, indices = (np.unique(given[name].dates["date"]) for name in _NEW_DAYS)
    days, apart = np.union1d(stocks, indices), np.setxor1d(stocks, indices)
    if not faults and len(apart):
        has, lacks = _NEW_DAYS if apart[0] in stocks else _NEW_DAYS[::-1]
        count = len(np.setdiff1d(apart, given[lacks].dates["date"]))
        faults.append(f"table {lacks} lacks {count} days that table {has} has, first {apart[0]}; give the same days in both, "
                      "since nothing can be added later on or before the last one")  # fmt: skip
    if not (days > last).any():
        faults.append(f"nothing new: the tables hold no day after {last}")
    missing = missing_trading_days(np.union1d(calendar, days))
    missing = missing[missing > last]
    if len(missing):
        faults.append(f"{len(missing)} trading days are left out between {last}, the store's last day, and {days[-1]}, first "
                      f"{missing[0]}; give all of them")  # fmt: skip
    if faults:
        raise DataError("the tables cannot be appended:\n  " + "\n  ".join(faults))


def _check_market(stored: pd.DataFrame, given: Table, last: np.datetime64) -> None:
    """No day without half the market: its rows could never be added later."""
    columns = ["instrument", "date", "volume"]
    rows = pd.concat([stored.loc[stored["date"] == pd.Timestamp(last), columns], given.frame()[columns]])
    rows = rows[rows["volume"] > 0]
    days, codes = np.append(last, np.unique(given.dates["date"])), pd.factorize(rows["instrument"])
    traded = np.zeros((len(days), len(codes[1])), dtype=bool)
    traded[np.searchsorted(days, rows["date"].to_numpy().astype("datetime64[D]")), codes[0]] = True
    before, still = traded[:-1].sum(axis=1), (traded[:-1] & traded[1:]).sum(axis=1)
    thin = np.flatnonzero((2 * still < before) & (before - still >= _MANY))
    if len(thin):
        day = thin[0]
        raise DataError(
            f"the tables cannot be appended: on {len(thin)} days fewer than half of the instruments trade that traded the day "
            f"before, first on {days[day + 1]}: {still[day]} of the {before[day]} of {days[day]}; suspended stocks may be left "
            "out, but not half the market: give all rows of the day")  # fmt: skip


def _check_indices(stored: pd.DataFrame, given: Table, last: np.datetime64) -> None:
    """Every index with a bar on the store's last day goes on: its bars could never be added later."""
    days = np.unique(given.dates["date"])
    rows = pd.crosstab(given.codes[given.code], given.dates["date"].astype("datetime64[s]"))
    rows = rows.reindex(stored.loc[stored["date"] == pd.Timestamp(last), "instrument"].astype(str), fill_value=0)
    lacks = rows[(rows == 0).any(axis=1)]
    if len(lacks):
        day = days[np.argmax(lacks.iloc[0].to_numpy() == 0)]
        raise DataError(f"the tables cannot be appended: {len(lacks)} indices of the store lack bars on new days, first "
                        f"{lacks.index[0]} on {day}; give them, or ingest all days again without the index")  # fmt: skip


# ---- merging ------------------------------------------------------------------------------------------------------------------
def _merge(stored: Dict[str, pd.DataFrame], given: Dict[str, pd.DataFrame], last: np.datetime64) -> Dict[str, pd.DataFrame]:
    """Stored tables, known up to the day `last`, with the given rows."""
    merged, faults = dict(stored), []
    for name, frame in given.items():
        if name not in stored:
            merged[name] = frame
            continue
        lacks = [column for column in stored[name] if column not in frame]
        if lacks:
            faults.append(f"table {name} lacks the columns {lacks}, which the store has; give them, empty where unknown")
        elif name in _NEW_DAYS:
            merged[name] = pd.concat([stored[name], frame], ignore_index=True)
        elif name in _SPAN_KEYS:
            merged[name] = _replace_spans(name, stored[name], frame, faults)
        else:
            merged[name] = _add_events(name, stored[name], frame, faults)
            if TABLES[name].kept:
                _check_known(name, stored[name], frame, last, faults)
    if faults:
        raise DataError("the tables cannot be appended:\n  " + "\n  ".join(faults))
    return merged


def _rows_in(frame: pd.DataFrame, other: pd.DataFrame, key: List[str]) -> np.ndarray:
    """Rows whose key is in another table. bool [r]"""
    return pd.MultiIndex.from_frame(frame[key]).isin(pd.MultiIndex.from_frame(other[key]))


def _replace_spans(name: str, stored: pd.DataFrame, given: pd.DataFrame, faults: List[str]) -> pd.DataFrame:
    """Stored spans, replaced by the given ones of the same key, and the other given ones."""
    key = list(_SPAN_KEYS[name])
    stored = stored[~_rows_in(stored, given, key)]
    if name == "membership":
        both = stored.merge(given, on=["instrument", "index"], suffixes=("", " (new)"))
        both = both[(both["start"] < both["start (new)"]) & (both["start (new)"] <= both["end"])]
        if len(both):
            first = both.iloc[0]
            start, end, new = (f"{first[column]:%Y-%m-%d}" for column in ("start", "end", "start (new)"))
            faults.append(f"table {name}: {len(both)} spans begin within a stored one of the same index, first "
                          f"{first['instrument']} in {first['index']}: {start}..{end} is stored, one from {new} on is given; "
                          "give the stored span again with its end too")  # fmt: skip
    return pd.concat([stored, given], ignore_index=True)


def _event_key(name: str) -> List[str]:
    return ["instrument", *TABLES[name].dates, *(text for text in TABLES[name].texts if text in _KEY_TEXTS)]


def _check_known(name: str, stored: pd.DataFrame, given: pd.DataFrame, last: np.datetime64, faults: List[str]) -> None:
    """No new row that would have been known before: nothing is computed from a kept table here that could show the change."""
    new = given[~_rows_in(given, stored, _event_key(name))]
    early = new[new[known_by(name)] <= pd.Timestamp(last)]
    if len(early):
        where = ", ".join(f"{part} {str(early[part].iloc[0])[:10]}" for part in _event_key(name))
        faults.append(f"table {name}: {len(early)} rows that the store lacks and that were known on {last}, its last day, first "
                      f"{where}; leave them out, or ingest all days again to change the past")  # fmt: skip


def _add_events(name: str, stored: pd.DataFrame, given: pd.DataFrame, faults: List[str]) -> pd.DataFrame:
    """Stored rows, with what only the given ones of the same key know, and the new rows."""
    key = _event_key(name)
    both = stored.merge(given, on=key, suffixes=("", " (new)"))
    for column in stored.columns.difference(key, sort=False):
        old, new = both[column], both[f"{column} (new)"]
        equal = (old == new) | (old.isna() & new.isna())
        if pd.api.types.is_float_dtype(old) and pd.api.types.is_float_dtype(new):
            equal |= np.isclose(old, new, rtol=_TOLERANCE, atol=0)
        if not equal.all():
            row = int(np.argmin(equal))
            where = ", ".join(f"{part} {str(both[part][row])[:10]}" for part in key)
            faults.append(f"table {name}: {int((~equal).sum())} rows change the past in column {column}, first {where}: "
                          f"{old[row]} stored, {new[row]} given; give the stored value, or a later row if it was revised")
    more = list(given.columns.difference(stored.columns, sort=False))
    known = stored.merge(given[key + more], on=key, how="left") if more else stored
    return pd.concat([known, given[~_rows_in(given, stored, key)]], ignore_index=True)


# ---- writing ------------------------------------------------------------------------------------------------------------------
class AppendWriter(StoreWriter):
    """Publishes only what leaves the past of the store at `out` as it is.

    Raises
    ------
    DataError
        On `publish`: a file of the store is not the beginning of the new one, or has none.
    """

    def __enter__(self) -> "AppendWriter":
        super().__enter__()
        self._past = np.array((self.out / "calendars" / "day.txt").read_text().split(), dtype="datetime64[D]")
        self._codes = {entry.name.upper() for entry in os.scandir(self.out / "features")}
        self._changed: List[str] = []
        return self

    def calendar(self, days: np.ndarray) -> None:
        super().calendar(days)
        if not np.array_equal(days[: len(self._past)], self._past):
            self._changed.append("the calendar has new days among the old ones")

    def instruments(self, name: str, spans: Dict[str, List[Tuple[np.datetime64, np.datetime64]]]) -> None:
        super().instruments(name, spans)
        file = self.out / "instruments" / f"{name}.txt"
        if not file.is_file():
            return
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
        last = str(self._past[-1])
        old = {(code, start): end for code, start, end in rows if start <= last}
        new = {(code, str(start)): str(end) for code in spans if code in self._codes for start, end in spans[code]}
        self._changed += [f"{code} would leave {name} from {start} on" for code, start in old if (code, start) not in new]
        if name in _OF_BARS:
            return
        self._changed += [f"{code} would join {name} on {start}" for code, start in new
                          if (code, start) not in old and start <= last]  # fmt: skip
        self._changed += [f"{code} would be in {name} until {new[code, start]}, not {end}" for (code, start), end in old.items()
                          if (code, start) in new and min(end, last) != min(new[code, start], last)]  # fmt: skip

    def features(self, code: str, start: int, fields: Dict[str, np.ndarray]) -> None:
        super().features(code, start, fields)
        for name in fields:
            place = f"features/{code.lower()}/{name}.day.bin"
            if (self.out / place).is_file():
                self._compare(code, name, (self.out / place).read_bytes(), (self.folder / place).read_bytes())

    def _compare(self, code: str, name: str, old: bytes, new: bytes) -> None:
        """Note where a file does not begin as the old one does."""
        if new.startswith(old):
            return
        before, after = np.frombuffer(old, "<f4"), np.frombuffer(new, "<f4")
        shared = min(len(before), len(after))
        at = np.append(before[:shared].view("<u4") != after[:shared].view("<u4"), True).argmax()
        what = f"{before[at]:.9g} stored, {after[at]:.9g} now" if at < shared else "a shorter file"
        if at == 0:
            self._changed.append(f"{name} of {code} would begin on another day")
        else:
            self._changed.append(f"{name} of {code} on {self._past[int(before[0]) + at - 1]}: {what}")

    def publish(self, metadata: dict, settings: dict, history=()) -> dict:
        faults = []
        if self._changed:
            faults.append(f"{len(self._changed)} changes in {self.out} up to {self._past[-1]}, its last day, first: "
                          f"{self._changed[0]}. Append takes what is new only; to change the past ingest all days again")
        gone = sorted(self._files() - set(self.digests))
        if gone:
            faults.append(f"{len(gone)} files of {self.out} would be gone, first {gone[0]}: the new rows take away what it was "
                          "computed from; ingest all days again")  # fmt: skip
        if faults:
            raise DataError("the past changed; nothing was appended:\n  " + "\n  ".join(faults))
        about = carry(self.out, self.folder)
        if about is not None:
            metadata["intraday"] = about
        return super().publish(metadata, settings, history)

    def _files(self) -> Set[str]:
        """Feature and instruments files of the store at `out`."""
        found = {f"instruments/{entry.name}" for entry in os.scandir(self.out / "instruments")}
        for folder in os.scandir(self.out / "features"):
            found |= {f"features/{folder.name}/{entry.name}" for entry in os.scandir(folder) if not is_intraday(entry.name)}
        return found


def _report(old: dict, new: dict, bars: Table) -> None:
    """Log what was added."""
    last = np.datetime64(old["history"][-1]["end"])
    first, final = np.full(len(bars.codes), np.datetime64("2262-01-01")), np.full(len(bars.codes), np.datetime64("1700-01-01"))
    np.minimum.at(first, bars.code, bars.dates["date"])
    np.maximum.at(final, bars.code, bars.dates["date"])
    listed, stopped = bars.codes[first > last], bars.codes[final <= last]
    days = new["spans"]["calendar"][2] - old["spans"]["calendar"][2]
    logger.info("appended %d days, %s..%s, %d rows: %d instruments are new%s", days, last + 1, new["spans"]["calendar"][1],
                len(bars) - old["tables"]["bars"], len(listed), f", first {listed[0]}" if len(listed) else "")  # fmt: skip
    if len(stopped):
        logger.info("%d instruments have no row after %s, first %s", len(stopped), last, stopped[0])
    for name in sorted(set(new["fields"]) - set(old["fields"])):
        logger.info("field %s is new", name)
    if "intraday" in new:
        logger.warning("the intraday fields are unknown on the new days: run `python -m qlib_ext.store build-intraday` again")
