"""What the risk model reads of the Qlib store in use, as ``[day, stock]`` arrays."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from qlib.config import C
from qlib.data import D
from qlib.log import get_module_logger

from qlib_ext.data.field_reader import FieldReader
from qlib_ext.data.universe import trading_calendar, universe_grid
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.risk.descriptor import DESCRIPTORS, EXTRAS, earnings_surprise
from qlib_ext.store.feature_files import feature_file, read_field
from qlib_ext.store.fundamentals import KnownReports
from qlib_ext.store.kept import read_table
from qlib_ext.store.tables import Table, read_tables

logger = get_module_logger("qlib_ext.risk")
CAPS = ("total_cap", "float_cap")
LISTED_DAYS = 120
LONGEST_GAP = 5
"""Trading days since the last one traded, beyond which a return is no daily one."""
_BASIC = ("change", "close", "volume", "factor", "float_shares", "turnover", "industry", "is_st", *CAPS)
_MADE = {"returns", "daily_returns", "market", "cap", "turnover", "earnings_surprise"}
_STORED = sorted({name for one in (*DESCRIPTORS, *EXTRAS) for name in one.needs} - _MADE)
FIELDS = tuple(dict.fromkeys((*_BASIC, *_STORED)))
"""Fields of a store that the risk model uses where they are."""
INDEX = re.compile(r"(SH000|SZ399)\d{3}")
"""Codes of indices, which folders from elsewhere list among all instruments."""


@dataclass
class MarketArrays:
    """A stretch of the calendar.

    Args:
        days: datetime64[D] ``[t]``. origin: place of the first on the calendar. codes: ``[n]``, ascending.
        fields: what `style_exposures` takes, without `market`.
        cap: ``[t, n]`` float64, NaN where unknown or the stock has no row; ones where the store has no market values.
        members: bool ``[t, n]``, the estimation universe. industry: ``[t, n]`` numbers, NaN unknown; None without the field.
        cap_field: `total_cap`, `float_cap`, or `equal`.
    """

    days: np.ndarray
    origin: int
    codes: np.ndarray
    fields: dict[str, np.ndarray]
    cap: np.ndarray
    members: np.ndarray
    industry: np.ndarray | None
    cap_field: str

    def market(self) -> np.ndarray:
        """``[t]`` return of the estimation universe, weighted by the cap of the day before; NaN on the first day."""
        returns, out = self.fields["daily_returns"], np.full(len(self.days), np.nan)
        for t in range(1, len(out)):
            used = self.members[t - 1] & np.isfinite(returns[t]) & (self.cap[t - 1] > 0)
            if used.any():
                weight = self.cap[t - 1, used]
                out[t] = (weight * returns[t, used]).sum() / weight.sum()
        return out


def stock_codes() -> list[str]:
    """All instruments of the store in use that are no indices."""
    return [code for code in D.list_instruments(D.instruments("all"), as_list=True) if not INDEX.fullmatch(code.upper())]


def store_fields() -> list[str]:
    """Fields of the risk model that any stock of the store in use has."""
    features, files = Path(C.dpm.get_data_uri("day")) / "features", set()
    for code in stock_codes():
        with suppress(FileNotFoundError):
            files.update(os.listdir(features / code.lower()))
    return [name for name in FIELDS if f"{name}.day.bin" in files]


def choose_cap(cap: str, fields: list[str]) -> str:
    """The field of market values: `auto` takes total_cap, else float_cap, else (with a warning) weighs all stocks alike.

    Raises:
        ConfigError: an unknown name. DataError: the store has no such field.
    """
    if cap not in ("auto", "equal", *CAPS):
        raise ConfigError(f"cap={cap!r} is unknown; choose auto, equal or one of {list(CAPS)}")
    if cap == "equal" or (cap != "auto" and cap in fields):
        return cap
    if cap != "auto":
        raise DataError(f"the store has no field {cap}: ingest float_shares_monthly, or choose cap: auto")
    found = next((name for name in CAPS if name in fields), "equal")
    if found == "equal":
        logger.warning("the store has no market values (total_cap, float_cap): all stocks weigh alike, and there are no size, "
                       "nonlinear_size and value styles; ingest float_shares_monthly to have them")
    return found


def at_hand(fields: list[str], cap: str) -> list[str]:
    """What descriptors may ask for, given the store's fields and a choice of `choose_cap`."""
    have = {"returns", "daily_returns", "market", *fields} - {"total_cap"} | ({"cap"} if cap != "equal" else set())
    have |= {"total_cap"} & set(fields) if cap != "equal" else set()
    have |= {"turnover"} if {"volume", "float_shares"} <= set(fields) else set()
    return sorted(have | ({"preferred_equity"} if "equity" in fields else set()))


class MarketReader:
    """The fields of all stocks of the store, read once.

    Args:
        cap: see `choose_cap`. universe: estimation universe; None: all stocks but those in special treatment (unknown counts as none)
            and those listed for fewer than 120 trading days (stocks with bars on the first day of all count as old).
        extras: also the fields of the extras' descriptors.

    Attributes:
        calendar: datetime64[D]. begin: place of the first bar of any stock. codes: stocks with bars.

    Raises:
        ConfigError: an unknown universe or cap. DataError: no returns, no stocks, damaged files.
    """

    def __init__(self, cap: str = "auto", universe: str | None = None, extras: bool = False):
        fields = store_fields()
        if not {"change", "close"} & set(fields):
            raise DataError("the risk model needs returns: the store has neither field `change` nor `close`; ingest the tables with "
                            "`python -m qlib_ext.store ingest`")
        self.cap_field, self.universe, self.extras = choose_cap(cap, fields), universe, extras
        self.calendar = trading_calendar()
        spans = {code: [(self.calendar[0], self.calendar[-1])] for code in stock_codes()}
        needed = {name for one in (*DESCRIPTORS, *(EXTRAS if extras else ())) for name in one.needs} | set(_BASIC)
        unused = ({"turnover"} if "float_shares" in fields else set()) | {"close"}
        unused |= set(CAPS) if self.cap_field == "equal" else set(CAPS) - {self.cap_field, "total_cap"}
        self.reader = FieldReader(spans, None, None, [name for name in fields if name in needed - unused])
        self.codes = np.array(list(self.reader.content))
        if not len(self.codes):
            raise DataError("no stock of universe all has a bar in the store")
        for code, content in self.reader.content.items():
            if "change" not in content:
                content["change"] = self._returns(code)
            start, returns = content["change"]
            content["daily_returns"] = start, _daily(returns)
        self.bounds = np.array([self._bounds(code) for code in self.codes])                  # [n, 2] first place, and behind the last
        self.begin = int(self.bounds[:, 0].min())

    def _bounds(self, code: str) -> tuple[int, int]:
        """Places of a stock's first bar and behind its last row; files of other makers may begin with NaN."""
        first, stop = self.reader.bounds(code)
        start, returns = self.reader.content[code]["change"]
        known = np.isfinite(returns)
        return (max(first, start + int(known.argmax()) - 1) if known.any() else first), stop

    def _returns(self, code: str) -> tuple[int, np.ndarray]:
        """Returns of a stock without field `change`, from its closes."""
        features = Path(C.dpm.get_data_uri("day")) / "features"
        start, close = read_field(feature_file(features, code, "close"), len(self.calendar)) or (0, np.empty(0, np.float32))
        return start, _returns(close)

    def arrays(self, first: int, stop: int) -> MarketArrays:
        """The days at places [first, stop) of the calendar, from the first bar of any stock on; stocks without a row there are left out."""
        first = max(first, self.begin)
        there = (self.bounds[:, 0] < stop) & (self.bounds[:, 1] > first)
        codes = self.codes[there]
        laid = _Layout(self.reader.content, codes, self.bounds[there], first, stop, self.begin)
        found = laid.fields(self.cap_field)
        days = self.calendar[first:stop]
        if self.extras:
            found.update(_surprises(codes, days))
        weights = np.ones(laid.inside.shape) if self.cap_field == "equal" else laid.get(self.cap_field)
        weights = np.full(laid.inside.shape, np.nan) if weights is None else weights
        weights = np.where(laid.inside & np.isfinite(weights) & (weights > 0), weights, np.nan)
        members = universe_grid(days, codes.tolist(), self.universe) if self.universe else laid.old_enough()
        members &= (weights > 0) & laid.inside
        return MarketArrays(days, first, codes, found, weights, members, laid.get("industry"), self.cap_field)


class _Layout:
    """Field files of some stocks laid on days."""

    def __init__(self, content: dict, codes: np.ndarray, bounds: np.ndarray, first: int, stop: int, oldest: int):
        self.content, self.codes, self.begin, self.first, self.stop, self.oldest = content, codes, bounds[:, 0], first, stop, oldest
        places = np.arange(first, stop)[:, None]
        self.inside = (places >= self.begin) & (places < bounds[:, 1])

    def get(self, name: str) -> np.ndarray | None:
        """``[t, n]`` float64, NaN where a stock has no value; None where no stock has the field."""
        laid, found = np.full((len(self.codes), self.stop - self.first), np.nan), False
        for n, code in enumerate(self.codes):
            if name in self.content[code]:
                start, values = self.content[code][name]
                low, high = max(start, self.first), min(start + len(values), self.stop)
                if low < high:
                    laid[n, low - self.first:high - self.first] = values[low - start:high - start]
                    found = True
        return np.ascontiguousarray(laid.T) if found else None

    def fields(self, cap_field: str) -> dict[str, np.ndarray]:
        """Arrays under the names that descriptors ask for."""
        found = {"returns": self.get("change"), "daily_returns": self.get("daily_returns")}
        volume, shares = self.get("volume"), self.get("float_shares")
        if volume is not None and shares is not None:
            factor = self.get("factor")
            traded = np.where(np.isfinite(volume), volume * (1.0 if factor is None else factor), 0.0)
            found["turnover"] = np.where(self.inside, traded / np.where(shares > 0, shares, np.nan), np.nan)
        else:
            turnover = self.get("turnover")
            if turnover is not None:
                halted = self.inside & ~np.isfinite(volume) if volume is not None else np.zeros(self.inside.shape, bool)
                turnover = np.where(halted, 0.0, turnover / 100)
            found["turnover"] = turnover
        if cap_field != "equal":
            value = self.get("total_cap")
            found["cap"] = self.get(cap_field) if value is None else value
            if found["cap"] is None:                              # a stretch before the first market value
                found["cap"] = np.full(self.inside.shape, np.nan)
        found.update({name: self.get(name) for name in _STORED if name != "total_cap" or cap_field != "equal"})
        if found.get("preferred_equity") is None and found.get("equity") is not None:
            found["preferred_equity"] = np.zeros(self.inside.shape)
        return {name: values for name, values in found.items() if values is not None}

    def old_enough(self) -> np.ndarray:
        """Stocks listed long enough and not in special treatment, bool ``[t, n]``."""
        age = np.arange(self.first, self.stop)[:, None] - self.begin
        members = self.inside & ((age >= LISTED_DAYS) | (self.begin == self.oldest))
        is_st = self.get("is_st")
        return members if is_st is None else members & ~(is_st == 1)


def _returns(close: np.ndarray) -> np.ndarray:
    """Returns since the last close ``[s]``, NaN without one."""
    out, known = np.full(len(close), np.nan), np.flatnonzero(close > 0)
    out[known[1:]] = close[known[1:]].astype(np.float64) / close[known[:-1]] - 1
    return out


def _daily(returns: np.ndarray) -> np.ndarray:
    """Returns ``[s]`` without those over more than `LONGEST_GAP` trading days: what happened in months of suspension is no day's news."""
    out, known = returns.copy(), np.flatnonzero(np.isfinite(returns))
    out[known[np.diff(known, prepend=-1) > LONGEST_GAP]] = np.nan
    return out


def _surprises(codes: np.ndarray, days: np.ndarray) -> dict[str, np.ndarray]:
    """`earnings_surprise` ``[t, n]`` of the reports announced before each day, from the tables the store keeps; nothing without them."""
    path = Path(C.dpm.get_data_uri("day"))
    if not (path / "tables" / "fundamentals.parquet").is_file():
        return {}
    frame = read_table(path, "fundamentals")
    if "net_profit" not in frame:
        return {}
    laid = np.full((len(days), len(codes)), np.nan)
    stock, announced, value = announced_surprises(read_tables({"fundamentals": frame}, required=())["fundamentals"], codes)
    for n, begin, one in zip(stock, np.searchsorted(days, announced, side="right"), value):
        laid[begin:, n] = one                                # in order of announcement: the last one known stays
    return {"earnings_surprise": laid}


def announced_surprises(table: Table, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Standardised unexpected earnings of the latest quarter known with each announcement, in order of stock and announcement.

    Returns:
        position of the stock in `codes` ``[e]``, announcement datetime64[D] ``[e]``, value ``[e]``, NaN where quarters are missing.
    """
    known = KnownReports(table, codes)

    def quarter(back: int) -> np.ndarray:
        period = known.latest - back
        before = np.where(period % 4 == 0, 0.0, known.value("net_profit", period - 1))      # flows are year to date
        return known.value("net_profit", period) - before

    value, there = earnings_surprise(np.stack([quarter(back) for back in range(13)])), known.stock >= 0
    return known.stock[there], known.announcement[there], value[there]
