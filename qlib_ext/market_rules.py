"""Trading rules of the Chinese exchanges as dated data: price limits, lots, ticks, taxes and fees, T+1, closures.

Every rule is a `Rule` with its first day and its source. Sources name the exchange's or ministry's text; they were compared with
public tables that quote those texts. What could not be compared says `not verified`, what replaces an unknown says `stand-in`.

Words: `board` is main, chinext, star or bse (of an ETF: the board its members trade on, "" if several); `kind` is stock, etf,
bond (convertible) or index. All functions broadcast: codes, boards and kinds are str or str arrays, days datetime64[D] or what
numpy converts to it. Not held here: the delisting period, whose first day has no limit since 2020-12-31, and days of relisting.
"""

import re
from dataclasses import dataclass
from typing import Dict, Iterable, Tuple

import numpy as np

from qlib_ext.errors import DataError

BOARDS = ("main", "chinext", "star", "bse")
KINDS = ("stock", "etf", "bond", "index")


@dataclass(frozen=True)
class Rule:
    """A value in force from the day `start` on, until the next rule of its tuple starts."""

    start: str
    value: float
    source: str


Rules = Tuple[Rule, ...]

# ---- price limits: fractions of the reference price ---------------------------------------------------------------------------
_LIMITS_1996 = "CSRC notice on price limits for shares and funds of 1996-12-13, SSE [1996] 036"
_BOND_2022 = "SSE and SZSE detailed rules for trading convertible bonds of 2022-07-29"
_CHINEXT_2020 = "SZSE special trading rules for ChiNext of 2020-06-12"
_STAR_2019 = "SSE special trading rules for STAR, SSE [2019] 23"
_BSE_2021 = "BSE trading rules (trial), BSE [2021] 15"
_CHINEXT_2009 = Rule("2009-10-30", 0.10, "SZSE trading rules as of ChiNext's opening")
_TEN_1996 = Rule("1996-12-16", 0.10, _LIMITS_1996)
PRICE_LIMITS: Dict[str, Rules] = {
    "main": (_TEN_1996,),
    "chinext": (_CHINEXT_2009, Rule("2020-08-24", 0.20, _CHINEXT_2020)),
    "star": (Rule("2019-07-22", 0.20, _STAR_2019),),
    "bse": (Rule("2021-11-15", 0.30, _BSE_2021),),
    "etf": (_TEN_1996,),
    "etf of star": (_TEN_1996, Rule("2020-08-21", 0.20, "SSE [2020] 61 on funds of STAR shares")),
    "etf of chinext": (_TEN_1996, Rule("2020-08-24", 0.20, _CHINEXT_2020)),
    "bond": (Rule("2022-08-01", 0.20, _BOND_2022),),
}
"""Up and down alike; no limit before the first rule, and for indices."""

ST_PRICE_LIMITS: Dict[str, Rules] = {
    "main": (
        _TEN_1996,
        Rule("1998-04-22", 0.05, "SSE and SZSE notices on special treatment of 1998-04-22"),
        Rule("2026-07-06", 0.10, "SSE [2026] 41, SZSE [2026] 551: trading rules revised 2026-04-24"),
    ),
    "chinext": (
        Rule("2009-10-30", 0.05, "SZSE trading rules; restated in SZSE [2020] 620"),
        Rule("2020-08-24", 0.20, "SZSE [2020] 620 on risk-warned shares of ChiNext"),
    ),
}
"""Of shares under special treatment (ST, *ST, risk warning) where they differ from the board's other shares."""

FREE_DAYS: Dict[str, Rules] = {
    "main": (
        Rule("1996-12-16", 1, "stand-in: none before 2013-12-13 (SSE) and 2014-06-13 (SZSE); then +44 % / -36 % of the issue "
             "price, which is not known here (SSE [2013] 47, SZSE [2014] 54)"),
        Rule("2023-04-10", 5, "SSE and SZSE trading rules (revised 2023-02-17), SSE [2023] 32"),
    ),
    "chinext": (
        Rule("2009-10-30", 1, "stand-in: none; from 2014-06-13 +44 % / -36 % of the issue price, which is not known here"),
        Rule("2020-08-24", 5, _CHINEXT_2020),
    ),
    "star": (Rule("2019-07-22", 5, _STAR_2019),),
    "bse": (Rule("2021-11-15", 1, _BSE_2021),),
}  # fmt: skip
"""Trading days from the listing on without a limit, by the day of listing."""

BOND_FIRST_DAY = {"up": Rule("2022-08-01", 0.573, _BOND_2022), "down": Rule("2022-08-01", 0.433, _BOND_2022)}
"""Limits of a convertible bond's first day, as fractions of its issue price (100)."""

# ---- lots, ticks, settlement --------------------------------------------------------------------------------------------------
_LOTS = "SSE and SZSE trading rules, 2006-05-15 and later"
LOT_MINIMUM: Dict[str, Rules] = {
    **{name: (Rule("1990-12-19", 100, _LOTS),) for name in ("main", "chinext", "etf")},
    "star": (Rule("2019-07-22", 200, _STAR_2019),),
    "bse": (Rule("2021-11-15", 100, _BSE_2021),),
    "bond": (Rule("1990-12-19", 10, _LOTS + "; not verified"),),
}
LOT_STEP: Dict[str, Rules] = {
    **LOT_MINIMUM, "star": (Rule("2019-07-22", 1, _STAR_2019),), "bse": (Rule("2021-11-15", 1, _BSE_2021),)
}  # fmt: skip
TICKS: Dict[str, Rules] = {
    "stock": (Rule("2006-07-01", 0.01, "SSE 3.4.11 and SZSE 3.3.12, trading rules of 2006-05-15"),),
    "etf": (Rule("2006-07-01", 0.001, "SSE and SZSE trading rules of 2006-05-15"),),
    "bond": (Rule("2006-07-01", 0.001, "SSE and SZSE trading rules; Shanghai's 0.01 before 2022-08-01 left out, not verified"),),
}
HOLDING_DAYS: Dict[str, Rules] = {
    "stock": (Rule("1995-01-01", 1, "SSE and SZSE trading rules, 3.1.4: T+1 since 1995"),),
    "etf": (Rule("2006-07-01", 1, "SSE and SZSE trading rules of 2006-05-15; funds of bonds, gold, money: 0"),),
    "bond": (Rule("2006-07-01", 0, "SSE and SZSE trading rules of 2006-05-15, 3.1.5"),),
}
"""Trading days between a purchase and the first sale of what was bought; 0 = the same day."""

# ---- taxes and fees: fractions of the value traded ----------------------------------------------------------------------------
COSTS_SINCE = "2005-01-24"
_DUTY_2005 = Rule(COSTS_SINCE, 0.001, "Ministry of Finance, duty cut from 0.2 % on both sides (as reported by the press)")
_DUTY_2007 = Rule("2007-05-30", 0.003, "Ministry of Finance, duty raised on both sides (as reported by the press)")
_DUTY_2008 = Rule("2008-04-24", 0.001, "Ministry of Finance, duty cut on both sides (as reported by the press)")
_SELLERS = "Ministry of Finance, sellers only from 2008-09-19 on"
STAMP_DUTY: Dict[str, Rules] = {
    "buy": (_DUTY_2005, _DUTY_2007, _DUTY_2008, Rule("2008-09-19", 0.0, _SELLERS)),
    "sell": (_DUTY_2005, _DUTY_2007, _DUTY_2008, Rule("2008-09-19", 0.001, _SELLERS),
             Rule("2023-08-28", 0.0005, "Ministry of Finance and State Taxation Administration, announcement 39 of 2023")),
}  # fmt: skip
_TRANSFER = (
    Rule(COSTS_SINCE, 0.00002, "stand-in: before 2015-08-01 Shanghai charged by face value, Shenzhen 0.00255 %"),
    Rule("2015-08-01", 0.00002, "ChinaClear notice of 2015-07-09"),
    Rule("2022-04-29", 0.00001, "ChinaClear notice of 2022-04-28"),
)
TRANSFER_FEE: Dict[str, Rules] = {
    **{board: _TRANSFER for board in ("main", "chinext", "star")},
    "bse": (Rule(COSTS_SINCE, 0.000025, "ChinaClear fees of 2021; not verified"), _TRANSFER[-1]),
}
_HANDLING = (
    Rule(COSTS_SINCE, 0.0000696, "SSE and SZSE rate of 2012-09-01 (third-party report, not verified); stand-in before it"),
    Rule("2015-08-01", 0.0000487, "SSE and SZSE notices of 2015-07; the day is a third-party report, not verified"),
    Rule("2023-08-28", 0.0000341, "SSE [2023] 137, SZSE [2023] 768"),
)
HANDLING_FEE: Dict[str, Rules] = {
    **{board: _HANDLING for board in ("main", "chinext", "star")},
    "bse": (
        Rule(COSTS_SINCE, 0.0005, "BSE fees of 2021: twice those of 2022-12; not verified"),
        Rule("2022-12-01", 0.00025, "BSE, halved in 2022-12; the day is not verified"),
        Rule("2023-08-28", 0.000125, "BSE [2023] 54, CSRC notice of 2023-08-18"),
    ),
    "etf": (Rule(COSTS_SINCE, 0.0000487, "SZSE's rate of 2015 (SSE 0.0000450); stand-in for the days before it; not verified"),
            Rule("2021-07-19", 0.00004, "SSE and SZSE notices on fund fees of 2021-06-30")),
    "bond": (Rule(COSTS_SINCE, 0.00004, "SZSE fee schedule, not verified; Shanghai charges less"),),
}
_REGULATORY = (Rule(COSTS_SINCE, 0.00004, "rate before 2012; stand-in, not verified"),
               Rule("2012-09-01", 0.00002, "NDRC [2012] 2119; start not verified"))  # fmt: skip
REGULATORY_FEE: Dict[str, Rules] = {board: _REGULATORY for board in BOARDS}


# ---- codes --------------------------------------------------------------------------------------------------------------------
_CODE = re.compile(r"(SH|SZ|BJ)[0-9]{6}")
_BOARD_CODES = {"main": ("SH60", "SZ000", "SZ001", "SZ002", "SZ003", "SZ004"), "chinext": ("SZ30",), "star": ("SH68",),
                "bse": ("BJ4", "BJ83", "BJ87", "BJ88", "BJ92")}  # fmt: skip
_KIND_CODES = {
    "stock": tuple(code for codes in _BOARD_CODES.values() for code in codes),
    "etf": ("SH51", "SH52", "SH53", "SH55", "SH56", "SH58", "SZ15", "SZ16"),
    "bond": ("SH110", "SH111", "SH113", "SH118", "SZ123", "SZ127", "SZ128"),
    "index": ("SH000", "SZ399", "BJ899"),
}
_ETF_BOARD_CODES = {"star": ("SH588", "SH589")}


def board_of(codes, chinext_etfs: Iterable[str] = ()) -> np.ndarray:
    """Board of each code such as `SH600000`: main, chinext, star, bse; "" for others, indices and bonds among them.

    Args:
        codes: str array of any shape.
        chinext_etfs: ETFs of ChiNext shares (20 % limits), which no code shows; ETFs of STAR shares (SH588, SH589) are known.
    """
    codes = np.asarray(codes, dtype=str)
    board = np.where(np.isin(codes, list(chinext_etfs)), "chinext", _by_prefix(codes, _ETF_BOARD_CODES))
    return np.where(board == "", _by_prefix(codes, _BOARD_CODES), board)


def kind_of(codes) -> np.ndarray:
    """Kind of each code: stock, etf, bond, index; "" for what is none of them (B shares, closed funds, REITs, other bonds)."""
    return _by_prefix(np.asarray(codes, dtype=str), _KIND_CODES)


def _by_prefix(codes: np.ndarray, prefixes: Dict[str, Tuple[str, ...]]) -> np.ndarray:
    names, place = np.unique(codes, return_inverse=True)
    found = [next((key for key, starts in prefixes.items() if _CODE.fullmatch(name) and name.startswith(starts)), "")
             for name in names]  # fmt: skip
    return np.array(found, dtype="<U7")[place].reshape(codes.shape)


# ---- rules in force -----------------------------------------------------------------------------------------------------------
def price_limits(board, is_st, listed_days, day, kind="stock") -> Tuple[np.ndarray, np.ndarray]:
    """How far a price may rise and fall on a day, as fractions of the reference price; np.inf where there is no limit.

    Args:
        board, kind: as of `board_of`, `kind_of`; an ETF's board "" means 10 %.
        is_st: 1 or True under special treatment; 0, -1 and NaN (unknown) count as none.
        listed_days: trading days since the listing, 0 on its day; anything large when it is long ago.
        day: the trading day.

    Returns:
        (up, down), float64 in the broadcast shape. A bond's first day is limited against its issue price (100), all else against
        the reference price of `limit_prices`.

    Raises:
        DataError: unknown kind, or a stock of unknown board.
    """
    venue, listed_days, day = _venue(board, kind), np.asarray(listed_days), _days(day)
    up = np.where(np.asarray(is_st) == 1, _values(ST_PRICE_LIMITS, venue, day, np.nan), np.nan)
    up = np.where(np.isnan(up), _values(PRICE_LIMITS, venue, day, np.inf), up)
    up = np.where(_is_free(venue, listed_days, day), np.inf, up)
    first = (venue == "bond") & (listed_days == 0) & (day >= np.datetime64(BOND_FIRST_DAY["up"].start))
    return np.where(first, BOND_FIRST_DAY["up"].value, up), np.where(first, BOND_FIRST_DAY["down"].value, up)


def limit_prices(reference, up, down, tick=0.01) -> Tuple[np.ndarray, np.ndarray]:
    """Highest and lowest price allowed, rounded half up to the tick as the exchanges do, exact in integers.

    A limit is at least one tick away from the reference, and no lower than one tick (SZSE since 2011, SSE since 2023-04-10).

    Args:
        reference: last close, on an ex-day the ex-right price, in CNY; rounded to the tick first.
        up, down: fractions of `price_limits`.
        tick: smallest step of the price in CNY (`TICKS`).

    Returns:
        (high, low) in CNY; NaN where there is no limit or no reference.
    """
    per_unit = np.rint(1.0 / np.asarray(tick, dtype=float))
    reference, up, down = (np.asarray(values, dtype=float) for values in (reference, up, down))
    limited = np.isfinite(reference * up * down * per_unit)
    ticks = np.floor(np.where(limited, reference, 1.0) * per_unit + 0.5 + 1e-6).astype(np.int64)
    rise, fall = (np.rint(np.where(limited, part, 0.0) * 1000).astype(np.int64) for part in (up, down))
    high = np.maximum((ticks * (1000 + rise) + 500) // 1000, ticks + 1)
    low = np.maximum(np.minimum((ticks * (1000 - fall) + 500) // 1000, ticks - 1), 1)
    return np.where(limited, high / per_unit, np.nan), np.where(limited, low / per_unit, np.nan)


def lot_rule(board, kind, day) -> Tuple[np.ndarray, np.ndarray]:
    """Smallest order and step above it, in shares (bonds: pieces). Selling all that is left of a position is always allowed.

    Raises:
        DataError: unknown kind or board, or an index, which does not trade.
    """
    venue, day = _trading_venue(board, kind), _days(day)
    return _values(LOT_MINIMUM, venue, day, None).astype(int), _values(LOT_STEP, venue, day, None).astype(int)


def tick_size(kind, day) -> np.ndarray:
    """Smallest step of a price in CNY."""
    return _values(TICKS, _trading_kind(kind), _days(day), None)


def holding_days(kind, day) -> np.ndarray:
    """Trading days between a purchase and the first sale of it: 1 for stocks and ETFs (T+1), 0 for bonds."""
    return _values(HOLDING_DAYS, _trading_kind(kind), _days(day), None).astype(int)


def trading_costs(side, day, board, kind="stock") -> Dict[str, np.ndarray]:
    """Taxes and fees of a trade, as fractions of its value, without the broker's own commission.

    `stamp_duty` and `transfer_fee` come on top of a broker's quoted commission. `handling_fee` and `regulatory_fee` are usually
    inside it ("all-in" commission): add them only to a commission quoted net. ETFs and bonds pay the handling fee alone.

    Args:
        side: "buy" or "sell".

    Returns:
        {"stamp_duty", "transfer_fee", "handling_fee", "regulatory_fee"}, each in the broadcast shape.

    Raises:
        DataError: unknown side, kind or board, an index, or a day before 2005-01-24, where no rates are held.
    """
    side, day, venue = np.asarray(side, dtype=str), _days(day), _trading_venue(board, kind)
    _check_names(side, ("buy", "sell"), "side")
    if (day < np.datetime64(COSTS_SINCE)).any():
        raise DataError(f"costs of trades on {day.min()} are not known: the rates held start on {COSTS_SINCE}")
    duty = np.where(np.isin(venue, BOARDS), _values(STAMP_DUTY, side, day, 0.0), 0.0)
    fees = {"transfer_fee": TRANSFER_FEE, "handling_fee": HANDLING_FEE, "regulatory_fee": REGULATORY_FEE}
    costs = {name: np.broadcast_to(_values(rules, venue, day, 0.0), duty.shape) for name, rules in fees.items()}
    return {"stamp_duty": duty, **costs}


def _days(day) -> np.ndarray:
    return np.asarray(day, dtype="datetime64[D]")


def _check_names(values: np.ndarray, known: Iterable[str], what: str) -> None:
    unknown = sorted(set(np.unique(values).tolist()) - set(known))
    if unknown:
        raise DataError(f"market rules: unknown {what} {unknown[0]!r}; known: {', '.join(known)}")


def _venue(board, kind) -> np.ndarray:
    """What the rule tables are keyed by: a stock's board, "etf", "etf of star", "bond", "index"."""
    board, kind = np.broadcast_arrays(np.asarray(board, dtype=str), np.asarray(kind, dtype=str))
    _check_names(kind, KINDS, "kind")
    _check_names(board[kind == "stock"], BOARDS, "board of a stock")
    fund = np.where(np.isin(board, ("star", "chinext")), np.char.add("etf of ", board), "etf")
    return np.where(kind == "stock", board, np.where(kind == "etf", fund, kind))


def _trading_venue(board, kind) -> np.ndarray:
    venue = _venue(board, kind)
    _check_names(venue[venue == "index"], ("stock", "etf", "bond"), "kind to trade")
    return np.where(np.char.startswith(venue, "etf"), "etf", venue)


def _trading_kind(kind) -> np.ndarray:
    kind = np.asarray(kind, dtype=str)
    _check_names(kind, ("stock", "etf", "bond"), "kind to trade")
    return kind


def _values(table: Dict[str, Rules], names: np.ndarray, day: np.ndarray, before: float | None) -> np.ndarray:
    """Value in force by name and day; `before` for other names and before the first rule (None: there the first rule's value)."""
    result = np.full(np.broadcast_shapes(names.shape, day.shape), np.nan if before is None else before)
    for name, rules in table.items():
        here = names == name
        if here.any():
            starts = np.array([rule.start for rule in rules], dtype="datetime64[D]")
            values = np.array([rules[0].value if before is None else before] + [rule.value for rule in rules], dtype=float)
            result = np.where(here, values[np.searchsorted(starts, day, side="right")], result)
    return result


def _is_free(venue: np.ndarray, listed_days: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Days without a limit after a listing; the day of listing is `listed_days` weekdays ago or, after a holiday, earlier."""
    young = np.broadcast_arrays((listed_days >= 0) & (listed_days < 5), venue, day)[0]
    free = np.zeros(young.shape, dtype=bool)
    venue, listed_days, day = (np.broadcast_to(values, young.shape)[young] for values in (venue, listed_days, day))
    listed = np.busday_offset(day, -listed_days.astype(int), roll="backward")
    free[young] = listed_days < _values(FREE_DAYS, venue, listed, 0.0)
    return free


# ---- closures -----------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Closure:
    """A holiday of the exchanges: at most `days` weekdays in a row, from `before` days before its date to `after` days after.

    `dates`: MM-DD of every year or, where the lunar calendar rules, YYYY-MM-DD (held from 2005 or 2008 to 2030).
    """

    name: str
    dates: Tuple[str, ...]
    before: int
    after: int
    days: int


def _lunar(first_year: int, days: str) -> Tuple[str, ...]:
    return tuple(f"{first_year + place}-{day}" for place, day in enumerate(days.split()))


_SPRING = _lunar(2005, "02-09 01-29 02-18 02-07 01-26 02-14 02-03 01-23 02-10 01-31 02-19 02-08 01-28 02-16 02-05 01-25 02-12 "
                       "02-01 01-22 02-10 01-29 02-17 02-06 01-26 02-13 02-03")  # fmt: skip
_DRAGON = _lunar(2008, "06-08 05-28 06-16 06-06 06-23 06-12 06-02 06-20 06-09 05-30 06-18 06-07 06-25 06-14 06-03 06-22 06-10 "
                       "05-31 06-19 06-09 05-28 06-16 06-05")  # fmt: skip
_AUTUMN = _lunar(2008, "09-14 10-03 09-22 09-12 09-30 09-19 09-08 09-27 09-15 10-04 09-24 09-13 10-01 09-21 09-10 09-29 09-17 "
                       "10-06 09-25 09-15 10-03 09-22 09-12")  # fmt: skip
CLOSURES = (
    Closure("New Year", ("01-01",), 3, 3, 3),
    Closure("Spring Festival", _SPRING, 12, 23, 6),
    Closure("Qingming", ("04-05",), 3, 3, 3),
    Closure("Labour Day", ("05-01",), 3, 6, 5),
    Closure("Dragon Boat Festival", _DRAGON, 3, 3, 3),
    Closure("Mid-Autumn Festival", _AUTUMN, 3, 3, 3),
    Closure("National Day", ("10-01",), 3, 7, 6),
    Closure("parade of 2015", ("2015-09-03",), 0, 1, 2),
)
"""State Council notices of each year; compared with the days of the CSI 300 from 2010 to 2024. The span around the Spring
Festival is wide enough for generated calendars that close a fixed week of February."""


def missing_trading_days(days) -> np.ndarray:
    """Weekdays absent from a trading calendar that no holiday explains. A lost day that touches a holiday may pass as part of it.

    Args:
        days: trading days in any order; weekdays between the first and the last are examined.

    Returns:
        datetime64[D] in order. Each holiday explains one run of weekdays a year, the nearest to its date; a run longer than the
        holiday may last is missing as a whole.
    """
    days = np.unique(_days(days))
    if not days.size:
        return days
    weekdays = np.arange(days[0], days[-1] + 1)
    absent = np.setdiff1d(weekdays[np.is_busday(weekdays)], days)
    runs = np.split(absent, np.flatnonzero(np.busday_count(absent[:-1], absent[1:]) > 1) + 1)
    years = range(days[0].astype(object).year, days[-1].astype(object).year + 2)
    dates = [(closure, np.datetime64(date if len(date) > 5 else f"{year}-{date}"))
             for closure in CLOSURES for date in closure.dates for year in (years if len(date) == 5 else [0])]  # fmt: skip
    explained = {_explained(closure, date, runs) for closure, date in dates}
    return np.concatenate([run for place, run in enumerate(runs) if place not in explained] or [absent[:0]])


def _explained(closure: Closure, date: np.datetime64, runs: list) -> int:
    """Place of the run that a holiday of this date explains, -1 for none."""
    fits = [(-max(int((run[0] - date).astype(int)), int((date - run[-1]).astype(int))), place) for place, run in enumerate(runs)
            if 0 < len(run) <= closure.days and run[0] >= date - closure.before and run[-1] <= date + closure.after]  # fmt: skip
    return max(fits)[1] if fits else -1
