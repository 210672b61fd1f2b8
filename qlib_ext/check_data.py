"""The part of `check` that holds a workflow against the store: fields, universes, segments, embargo, back-test."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
from qlib.data.dataset.handler import DataHandler, DataHandlerLP

from qlib_ext.data.handler import LeanHandler, absent_fields
from qlib_ext.data.loader import MarketStateLoader
from qlib_ext.data.segments import FITTED, SPARE_DAYS
from qlib_ext.data.universe import read_spans
from qlib_ext.data.winner_loader import WinnerStyleLoader
from qlib_ext.errors import DataError
from qlib_ext.signatures import did_you_mean
from qlib_ext.store.feature_files import damage, first_few, has_values

SLACK = np.timedelta64(10, "D")
"""Dates may lie this far outside the store's calendar: the longest closure of the exchanges is shorter."""


@contextmanager
def no_loading():
    """Handlers are built without their data."""
    with ExitStack() as patches:
        for handler in (DataHandler, DataHandlerLP, LeanHandler):
            patches.enter_context(mock.patch.object(handler, "setup_data", lambda self, *a, **k: None))
        yield


class StoreView:
    """Calendar, universes and fields of a Qlib store, read from its files without initialising Qlib."""

    def __init__(self, path: Path):
        self.path = Path(path)

    @cached_property
    def calendar(self) -> np.ndarray:
        """`[c]` datetime64[D], the daily calendar."""
        return np.array((self.path / "calendars" / "day.txt").read_text().split(), dtype="datetime64[D]")

    @cached_property
    def universes(self) -> list[str]:
        """Names of the instruments files."""
        return sorted(file.stem for file in (self.path / "instruments").glob("*.txt"))

    def spans(self, universe: str) -> pd.DataFrame:
        """Members of a universe: columns code, start, end; raises DataError for a malformed file."""
        return read_spans(self.path / "instruments" / f"{universe.lower()}.txt")

    def has_bars(self, code: str) -> bool:
        """Whether the store has a close of this instrument."""
        return self.has_field(code, "close")

    def has_field(self, code: str, field: str) -> bool:
        """Whether one instrument has a daily field, with at least one value."""
        return has_values(self.path / "features", code, field)

    def missing_fields(self, fields: set[str], codes: list[str]) -> list[str]:
        """Fields that none of the codes has; a sample is asked first."""
        step = max(len(codes) // 40, 1)
        left = {f for f in fields if not any(self.has_field(code, f) for code in codes[::step])}
        return sorted(f for f in left if not any(self.has_field(code, f) for code in codes))

    def fields(self, code: str) -> list[str]:
        """All daily fields of one instrument."""
        return sorted(file.name[:-len(".day.bin")] for file in (self.path / "features" / code.lower()).glob("*.day.bin"))

    def positions(self, pair) -> tuple[int, int]:
        """First and last calendar position inside [start, end]; None stands for the calendar's own end."""
        start = self.calendar[0] if pair[0] is None else as_day(pair[0])
        end = self.calendar[-1] if pair[1] is None else as_day(pair[1])
        return int(np.searchsorted(self.calendar, start)), int(np.searchsorted(self.calendar, end, side="right")) - 1


def as_day(value) -> np.datetime64:
    """A date of a workflow as datetime64[D]; raises ValueError or TypeError for what is no date."""
    if isinstance(value, (bool, int, float)):
        raise TypeError(f"{value!r} is a number")
    stamp = pd.Timestamp(value)
    if stamp is pd.NaT:
        raise ValueError(f"{value!r} is empty")
    return stamp.to_datetime64().astype("datetime64[D]")


def check_fields(add, warn, where: str, handler, store: StoreView, codes: list[str]) -> None:
    """Fields that no instrument has, and damaged files: refused or warned of, as our handlers do before they load."""
    groups = getattr(getattr(handler, "data_loader", None), "fields", None)
    groups = groups if isinstance(groups, dict) else {}
    refused, empty = absent_fields(groups, lambda names: store.missing_fields(names, codes), getattr(handler, "needs", ()),
                                   store.universes)
    have = next(filter(None, map(store.fields, codes)), [])
    advice = f"the store has {', '.join(have)}" if have else "the store has no file of these instruments; ingest their bars"
    for name, columns in refused.items():
        reason = "" if columns else ", without which nobody can say whether prices are adjusted"
        add(where, f"no instrument has field ${name}{did_you_mean(name, have)}{reason}", advice)
    for name, columns in empty.items():
        warn(where, f"no instrument has field ${name}: {', '.join(columns)} would be NaN on every row, a constant after Fillna",
             advice)
    damaged = damage(store.path / "features", codes, len(store.calendar))
    if damaged:
        add(where, damaged, "write the files anew; `python -m qlib_ext.store doctor` lists them")


def check_market_states(add, warn, built: dict, store: StoreView) -> None:
    """The indices of every computed market state have bars, and amounts or volumes; `built`: what could be made, by its place."""
    for where, loader in built.items():
        if not isinstance(loader, MarketStateLoader) or loader.path is not None:
            continue
        place = f"{where}.kwargs.instruments"
        absent = [code for code in loader.instruments if not store.has_bars(code)]
        if absent:
            add(place, f"no bars of {absent} in the store",
                "name indices the store has (21 columns each, the model's width follows), or ingest the bars")
        for code in [code for code in loader.instruments if code not in absent and not store.has_field(code, "amount")]:
            if store.has_field(code, "volume"):
                warn(place, f"index {code} has no $amount in the store", "$volume stands in for it")
            else:
                add(place, f"index {code} has neither $amount nor $volume in the store",
                    "name another index, or ingest its volume")


def check_winner_styles(add, warn, built: dict, store: StoreView, segments: dict) -> None:
    """The universes of every winner style have members, and a folder of snapshots that is named holds some."""
    for where, loader in built.items():
        if isinstance(loader, WinnerStyleLoader):
            for universe in [*(loader.universes or ()), *({"all"} - set(store.universes))]:
                check_universe(add, warn, f"{where}.kwargs.universes", universe, store, segments)
            try:
                loader.check_snapshots()
            except DataError as error:
                text, _, advice = str(error).removeprefix("winner style: ").partition(": ")
                add(f"{where}.kwargs.snapshots", text, advice or "correct the folder")


def check_universe(add, warn, where: str, universe, store: StoreView, segments: dict) -> None:
    """A named universe exists and has members with bars in every segment; listed codes have bars."""
    if isinstance(universe, dict):
        universe = universe.get("market")
    if isinstance(universe, (list, tuple)):
        absent = [str(code) for code in universe if not store.has_bars(code)]
        if absent:
            add(where, f"no bars of {absent[:5]}{' and others' if len(absent) > 5 else ''} in the store",
                "name instruments the store has")
        return
    if universe is None:
        return
    if not isinstance(universe, str) or universe.lower() not in store.universes:
        add(where, f"universe {universe!r} is not in the store{did_you_mean(universe, store.universes)}",
            f"use one of {store.universes}, or ingest its members")
        return
    try:
        spans = store.spans(universe)
    except DataError as error:
        add(where, *str(error).rsplit(": ", 1))
        return
    if not len(spans):
        add(where, f"universe {universe!r} has no members in the store", "ingest its members, or use another universe")
        return
    codes = sorted(set(spans["code"]))
    absent = [code for code in codes if not store.has_bars(code)]
    if absent:
        tell = add if len(absent) == len(codes) else warn
        tell(where, f"{len(absent)} of {len(codes)} members of universe {universe!r} have no bars in the store: {first_few(absent)}",
             "ingest their bars, or correct the codes")
    _check_members(add, where, universe, spans, store, segments)


def _check_members(add, where: str, universe: str, spans: pd.DataFrame, store: StoreView, segments: dict) -> None:
    for name, (start, end) in segments.items():
        if not ((spans["start"] <= pd.Timestamp(end)) & (spans["end"] >= pd.Timestamp(start))).any():
            add(where, f"universe {universe!r} has no member in segment {name!r}", "choose other dates or another universe")
            continue
        (asked_first, asked_last), (first, last) = (store.positions(pair) for pair in (
            (start, end), (spans["start"].min(), spans["end"].max())))
        if first - asked_first > SPARE_DAYS or asked_last - last > SPARE_DAYS:
            known = f"{store.calendar[first]} to {store.calendar[last]}"
            add(where, f"universe {universe!r} has members from {known}, segment {name!r} is {start} to {end}",
                "shorten the segment, or ingest the members of the missing days")


def read_segments(add, where: str, segments, store: StoreView) -> dict[str, tuple[np.datetime64, np.datetime64]]:
    """Segments that are pairs of dates with trading days inside: name -> (start, end); the rest is reported."""
    good = {}
    if not isinstance(segments, dict) or not segments:
        add(where, "no segments", "give train, valid and test, each [start, end]")
        return good
    for name, pair in segments.items():
        place, calendar = f"{where}.{name}", store.calendar
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            add(place, f"{pair!r} is not a pair of dates", "write [2018-01-01, 2021-12-31]")
            continue
        try:
            start = calendar[0] if pair[0] is None else as_day(pair[0])
            end = calendar[-1] if pair[1] is None else as_day(pair[1])
        except (ValueError, TypeError) as error:
            add(place, f"{pair!r} are not dates ({error})", "write [2018-01-01, 2021-12-31]")
            continue
        first, last = store.positions((start, end))
        if start > end or first > last:
            add(place, f"empty: no trading day from {start} to {end}",
                f"the store's calendar runs from {calendar[0]} to {calendar[-1]}")
            continue
        if start < calendar[0] - SLACK or end > calendar[-1] + SLACK:
            add(place, f"{start} to {end} leaves the store's calendar ({calendar[0]} to {calendar[-1]})",
                "change the dates or the store")
        good[name] = (start, end)
    return good


def check_embargo(add, where: str, segments: dict, ahead: int, store: StoreView, trims: bool, embargo) -> None:
    """Segments share no day, and no label of one looks into another or past the data.

    `trims`: the dataset cuts its own segments; `embargo` is its setting then.
    """
    positions = {name: store.positions(pair) for name, pair in segments.items()}
    ordered = sorted(positions.items(), key=lambda item: item[1])
    if trims and embargo not in (None, "auto"):
        if not isinstance(embargo, int) or isinstance(embargo, bool):
            add(f"{where}.embargo", f"{embargo!r} is no number of trading days", "write auto, or a whole number")
        elif embargo < ahead:
            add(f"{where}.embargo", f"{embargo} trading days, but the label looks {ahead} ahead: a leak",
                f"write auto, or at least {ahead}")
        else:
            ahead = embargo
    for (name, (first, last)), (following, (start, _)) in zip(ordered, ordered[1:]):
        if last >= start:
            add(f"{where}.segments", f"{name!r} and {following!r} overlap from {store.calendar[start]}",
                "give every day to one segment")
        elif not trims and start - last <= ahead:
            latest = store.calendar[max(start - 1 - ahead, 0)]
            add(f"{where}.segments.{name}",
                f"no embargo: labels look {ahead} trading days ahead, {following!r} begins {start - last} after "
                f"its end, and this dataset does not trim", f"end it on {latest} or before, or use PanelDatasetH")
        elif trims and name in FITTED and start - 1 - ahead < first:
            add(f"{where}.segments.{name}", f"{last - first + 1} trading days, the embargo of {ahead} leaves none",
                "make it longer")
    for name in FITTED:
        if name in positions:
            _check_reach(add, f"{where}.segments.{name}", positions, name, ahead, store.calendar, trims)


def _check_reach(add, where: str, positions: dict, name: str, ahead: int, calendar: np.ndarray, trims: bool) -> None:
    last = positions[name][1]
    starts = [start for start, _ in positions.values() if start > last]
    if trims and starts:
        last = min(last, min(starts) - 1 - ahead)
    if last + ahead >= len(calendar):
        latest = calendar[max(len(calendar) - 1 - ahead, 0)]
        add(where, f"labels look {ahead} trading days past {calendar[last]}, the data end on {calendar[-1]}",
            f"end it on {latest} or before")


def check_handler_dates(add, where: str, kwargs: dict, segments: dict) -> None:
    """The handler loads every segment, and fits its statistics before the first segment that follows train."""
    try:
        start, end = (None if kwargs.get(key) is None else as_day(kwargs[key]) for key in ("start_time", "end_time"))
    except (ValueError, TypeError) as error:
        add(where, f"start_time or end_time is no date ({error})", "write 2018-01-01")
        return
    for name, (first, last) in segments.items():
        if (start is not None and first < start) or (end is not None and last > end):
            add(where, f"loads {start} to {end}, segment {name!r} is {first} to {last}", "load all of it, or shorten the segment")


def check_fit_span(add, where: str, kwargs: dict, segments: dict) -> None:
    """Statistics must not be fitted on a day of a segment that comes after train."""
    try:
        start, end = (None if kwargs.get(key) is None else as_day(kwargs[key]) for key in ("fit_start_time", "fit_end_time"))
    except (ValueError, TypeError) as error:
        add(where, f"fit_start_time or fit_end_time is no date ({error})", "write 2018-01-01")
        return
    if start is not None and end is not None and start > end:
        add(where, f"fit span {start} to {end} is empty", "fit on the days of train")
    if end is None or "train" not in segments:
        return
    later = [pair[0] for name, pair in segments.items() if name != "train" and pair[0] > segments["train"][0]]
    if later and end >= min(later):
        add(f"{where}.fit_end_time", f"{end} lies in a segment after train (it begins {min(later)}): a leak",
            "end the fit with train")


def check_backtest(add, where: str, backtest: dict, store: StoreView, segments: dict, codes: list[str]) -> None:
    """Dates on the calendar with a day to spare, inside the scored segment; benchmark and deal price in the store."""
    calendar = store.calendar
    try:
        start, end = (None if backtest.get(key) is None else as_day(backtest[key]) for key in ("start_time", "end_time"))
    except (ValueError, TypeError) as error:
        add(where, f"start_time or end_time is no date ({error})", "write 2023-01-01")
        return
    if start is not None and end is not None and start > end:
        add(where, f"from {start} to {end}: nothing to trade", "swap the dates")
    elif end is not None and (end >= calendar[-1] or (start is not None and start < calendar[0] - SLACK)):
        add(where,
            f"{start} to {end} does not fit the calendar ({calendar[0]} to {calendar[-1]}; Qlib needs a day more after the last)",
            f"end it on {calendar[-2]} or before" if end >= calendar[-1] else f"start it on {calendar[0]} or after")
    test = segments.get("test")
    if test and ((start is not None and start < test[0] - SLACK) or (end is not None and end > test[1] + SLACK)):
        add(where, f"{start} to {end}, but scores are made for the test segment {test[0]} to {test[1]}", "stay inside it")
    benchmark = backtest.get("benchmark", "SH000300")
    for code in benchmark if isinstance(benchmark, (list, tuple)) else [benchmark] if isinstance(benchmark, str) else []:
        if not store.has_bars(code):
            add(f"{where}.benchmark", f"no bars of {code} in the store", "ingest the index or name one that is there")
    if isinstance((backtest.get("exchange_kwargs") or {}).get("exchange"), dict):
        return                                          # an exchange with needs of its own (check_portfolio)
    prices = (backtest.get("exchange_kwargs") or {}).get("deal_price")
    prices = {str(p).lstrip("$") for p in (prices if isinstance(prices, (list, tuple)) else [prices] if prices else [])}
    for name in store.missing_fields(prices | {"close", "change", "factor"}, codes):
        what = f"the back-test needs field {name!r}, the store has none"
        if name == "change":  # Qlib does not stop
            what = f"must not run: {what}, and the run would go to its end with orders passing the price limits"
        add(f"{where}.exchange_kwargs", what, "ingest the store with it")
