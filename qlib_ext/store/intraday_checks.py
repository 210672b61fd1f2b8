"""A day of a source made into rows of the intraday folder, and what is wrong with it: faults by stock-day.

Left out and reported:   unknown_code, no_time, out_of_session, off_grid, repeated_rows (all but one), impossible (a price missing or not
                         positive, a negative volume or amount, high and low that do not hold open and close), duplicate_minutes (the
                         whole stock-day), cancels and other_kinds (of trades and orders)
Kept and reported:       missing_bars, suspended (no volume all day), amount_outside_prices, fractional_volume (rounded), auction_apart
                         (though the table's auctions are inside), auction_not_apart (one line a day: nobody has a bar of the auction,
                         though the table's auctions are apart); of ticks no_side (in continuous trading), side_against_orders,
                         no_order_number, same_sequence
Against the daily bars:  volume_differs, amount_differs, open_differs, high_differs, low_differs, close_differs, not_in_store, no_bars (one
                         line a day: stocks that traded and are not in the table), day_not_in_store

Refused: a day of whose traded rows more than a quarter lie out of session or off the grid.

A day flat at its limit is sound. Bars that only repeat a border of the session without volume (13:00 beside 11:30) go without a word.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Optional, Union

import numpy as np
import polars as pl

from qlib_ext.errors import DataError
from qlib_ext.factors.session import CLOSING, OPENING, SESSION
from qlib_ext.factors.ticks import daily_from_bars, daily_from_trades
from qlib_ext.market_rules import kind_of
from qlib_ext.store.feature_files import first_few
from qlib_ext.store.intraday_mapping import PRICES, SIDES
from qlib_ext.store.intraday_units import BACK, CLOSE, NOON, OPEN, PARTS, check_units
from qlib_ext.store.reading import StoreFiles

FINDINGS = {"date": pl.Date, "instrument": pl.String, "fault": pl.String, "count": pl.Int64, "detail": pl.String}
ROWS = "rows_written"
"""Not a fault: the row of a day that says it is done; its detail is the number of the source's rows and a digest of its instruments."""
_AUCTION = 555  # 09:15
_TICK = 0.005
_TELLING = ("open", "sequence", "buy_order", "order")
"""Columns of which one must be known for two equal rows to be one row twice: two trades of a millisecond may be alike."""
_AMOUNT_SLACK, _VOLUME_SLACK = 1e-3, 1e-3
_MINUTE = 60_000
_FEW, _QUARTER = 20, 0.25
_CONTINUOUS = pl.col("millisecond").is_between(OPEN * _MINUTE, 897 * _MINUTE, closed="left")


class Findings:
    """Collects the faults of a day."""

    def __init__(self, day):
        self.day, self.parts = day, []

    def add(self, fault: str, rows: pl.DataFrame, detail: Optional[pl.Expr] = None, name: str = "instrument") -> None:
        """One finding per instrument of `rows`, with their number and the first one's detail."""
        if not len(rows):
            return
        detail = pl.lit("") if detail is None else detail
        self.parts.append(rows.with_columns(detail=detail.cast(pl.String)).group_by(name, maintain_order=True).agg(
            count=pl.len().cast(pl.Int64), detail=pl.col("detail").first()).select(
            pl.lit(self.day).alias("date"), pl.col(name).cast(pl.String).alias("instrument"), pl.lit(fault).alias("fault"),
            "count", "detail"))

    def add_counts(self, fault: str, counts: pl.DataFrame) -> None:
        """Findings whose numbers are known: columns instrument, count, detail."""
        self.parts.append(counts.select(pl.lit(self.day).alias("date"), pl.col("instrument").cast(pl.String), pl.lit(fault).alias("fault"),
                                        pl.col("count").cast(pl.Int64), pl.col("detail").cast(pl.String)))

    def take_out(self, frame: pl.DataFrame, fault: str, wrong: pl.Expr, detail: Optional[pl.Expr] = None) -> pl.DataFrame:
        """The rows without those that are `wrong`, which are reported."""
        bad = frame.filter(wrong)
        if not len(bad):
            return frame
        self.add(fault, bad, detail)
        return frame.filter(~wrong.fill_null(False))

    def frame(self) -> pl.DataFrame:
        """All of them."""
        return pl.concat(self.parts).cast(FINDINGS) if self.parts else pl.DataFrame(schema=FINDINGS)


class DayStocks:
    """The instruments of each day of a source: a bit each, as there may be thousands on thousands of days."""

    def __init__(self):
        self.places: dict[str, int] = {}
        self.bits: dict = {}

    def add(self, days: pl.DataFrame) -> None:
        """Put in a file's: day, instrument (lists)."""
        for day, codes in days.select("day", pl.col("instrument").list.drop_nulls()).iter_rows():
            bits = self.bits.get(day, 0)
            for code in codes:
                bits |= 1 << self.places.setdefault(code, len(self.places))
            self.bits[day] = bits

    def digest(self, day) -> str:
        """A short text that tells a day's instruments from others."""
        codes = sorted(code for code, place in self.places.items() if self.bits[day] >> place & 1)
        return hashlib.blake2b(",".join(codes).encode(), digest_size=8).hexdigest()


def _time_text(clock: str) -> pl.Expr:
    """``HH:MM:SS`` of milliseconds since midnight."""
    return (pl.col(clock).cast(pl.Int64) * 1_000_000).cast(pl.Time).dt.strftime("%H:%M:%S")


def _start(frame: pl.DataFrame, found: Findings) -> pl.DataFrame:
    """Rows of known codes at known times, each once."""
    strange = frame.filter(pl.col("instrument").is_null())
    found.add("unknown_code", strange, name="code")
    frame = frame.filter(pl.col("instrument").is_not_null())
    frame = found.take_out(frame, "no_time", pl.col("clock").is_null())
    names = [name for name in frame.columns if name not in ("code", "exchange")]
    key = [name for name in ("instrument", "clock", "sequence") if name in names]
    if not any(frame[name].count() for name in _TELLING if name in names) or frame.select(key).n_unique() == len(frame):
        return frame
    return found.take_out(frame, "repeated_rows", ~pl.struct(names).is_first_distinct(), _time_text("clock"))


# ---- bars ---------------------------------------------------------------------------------------------------------------------
def session_bars(frame: pl.DataFrame, minutes: int, settings: dict, found: Findings) -> pl.DataFrame:
    """Rows of a table of bars from a day of a source (`intraday_mapping.open_source` with ``instrument``).

    Raises:
        DataError: the day is in other units than `settings` say.
    """
    frame = _start(frame, found)
    frame = _in_units(frame, settings, found)
    frame = _on_clock(frame, minutes, settings["stamp"], found)
    if settings["opening_auction"] == "inside":  # some vendors ship an empty bar of 09:30
        frame = frame.filter((pl.col("minute") != OPENING) | (pl.col("volume") != 0))
    auction = (pl.col("minute") == OPENING) & (pl.col("volume") > 0)
    twice = frame.filter(pl.struct("instrument", "clock").is_duplicated() | (auction & (auction.sum().over("instrument") > 1)))
    found.add("duplicate_minutes", twice, _time_text("clock"))
    frame = frame.filter(~pl.col("instrument").is_in(twice["instrument"].unique().to_list()))
    traded = pl.col("volume") > 0
    priced = pl.all_horizontal(pl.col(name) > 0 for name in PRICES).fill_null(False)
    ordered = (pl.col("low") <= pl.min_horizontal("open", "close")) & (pl.col("high") >= pl.max_horizontal("open", "close"))
    negative = (pl.col("volume").fill_null(-1) < 0) | (pl.col("amount") < 0).fill_null(False)
    frame = found.take_out(frame, "impossible", negative | (traded & ~priced) | (priced & ~ordered), _time_text("clock"))
    frame = _one_a_minute(frame.with_columns(pl.when(priced).then(pl.col(name)).alias(name) for name in PRICES))
    if settings["opening_auction"] == "inside":
        found.add("auction_apart", frame.filter(auction))
    elif len(frame) and not len(frame.filter(auction)):
        traded_codes = frame.filter(traded)["instrument"].n_unique()
        found.add_counts("auction_not_apart", pl.DataFrame({"instrument": [""], "count": [traded_codes], "detail": [
            "nobody has a bar of the auction: is it inside the first bar?"]}))
    check_units(frame, found.day)
    _report_bars(frame, minutes, found)
    return frame


def _in_units(frame: pl.DataFrame, settings: dict, found: Findings) -> pl.DataFrame:
    volume = pl.col("volume") * PARTS["volume"][settings["volume"]]
    found.add("fractional_volume", frame.filter((volume - volume.round()).abs() > 1e-6), _time_text("clock"))
    unit = PARTS["amount"][settings["amount"] or "yuan"]
    amount = pl.col("amount") if unit == 1 else (pl.col("amount") * unit).round(3)
    prices = (_yuan(name, settings["price"]) for name in PRICES)
    return frame.with_columns(*prices, volume.round().cast(pl.Int64, strict=False), amount)


def _yuan(name: str, unit: str) -> pl.Expr:
    """Prices in yuan; rounded, since polars divides by multiplying with the inverse: 328 cents would be 3.2800000000000002."""
    return pl.col(name) if unit == "yuan" else (pl.col(name) / PARTS["price"][unit]).round(4)


def _on_clock(frame: pl.DataFrame, minutes: int, stamp: str, found: Findings) -> pl.DataFrame:
    """Rows with ``minute``, without those that lie in no bar."""
    clock, late = pl.col("clock") // _MINUTE, 0 if stamp == "end" else minutes
    last_auction = OPEN if stamp == "end" else OPEN - 1
    morning = clock.is_between(OPEN + 1 - (late > 0), NOON - (late > 0))
    afternoon = clock.is_between(BACK + 1 - (late > 0), CLOSE - (late > 0))
    minute = (pl.when(clock.is_between(_AUCTION, last_auction)).then(0).when(morning).then(clock - OPEN + late)
              .when(afternoon).then(clock - BACK + SESSION // 2 + late).when((clock == CLOSE) & (late > 0)).then(CLOSING)
              .when((clock == NOON) & (late > 0)).then(SESSION // 2))
    frame = frame.with_columns(minute=minute.cast(pl.Int16))
    frame = frame.filter(pl.col("minute").is_not_null() | (pl.col("volume") != 0) | ~clock.is_in([NOON, BACK, CLOSE]))
    frame = _on_time(frame, "out_of_session", pl.col("minute").is_null(), found)
    return _on_time(frame, "off_grid", (pl.col("clock") % _MINUTE != 0) | (pl.col("minute") % minutes != 0), found)


def _on_time(frame: pl.DataFrame, fault: str, wrong: pl.Expr, found: Findings, clock: str = "clock", size: str = "volume") -> pl.DataFrame:
    """The rows without those that are `wrong` by their clock.

    Raises:
        DataError: these are so many that the clock must be another one.
    """
    traded = frame.filter(pl.col(size) > 0)
    lost = traded.filter(wrong)
    if len(lost) >= _FEW and len(lost) > _QUARTER * len(traded):
        first, code = lost.select(_time_text(clock).alias("at"), "instrument").row(0)
        where = {"out_of_session": "outside the session (is its clock one of 12 hours, or of another zone?)",
                 "off_grid": "between the ends of its bars (are seconds, or the length of the bars, others?)"}[fault]
        raise DataError(f"{len(lost)} of {len(traded)} traded rows of {found.day} lie {where}, the first at {first} of {code}: correct the "
                        "source, or leave the day out")
    return found.take_out(frame, fault, wrong, _time_text(clock))


def _one_a_minute(frame: pl.DataFrame) -> pl.DataFrame:
    """Bars of the same minute (an auction apart, and the bar it belongs to) merged; quiet ones without prices take the last close."""
    frame = frame.sort("instrument", "minute", "clock")
    key, traded = ["instrument", "minute"], pl.col("volume") > 0
    if frame.select(pl.struct(key).is_duplicated().any()).item():
        told = frame.filter(traded | (pl.len().over(key) == 1) | ~traded.any().over(key))
        sums = [pl.when(pl.col(name).count() > 0).then(pl.col(name).sum()).alias(name) for name in ("volume", "amount", "n_trades")]
        frame = told.group_by(key, maintain_order=True).agg(pl.col("open").first(), pl.col("high").max(), pl.col("low").min(),
                                                            pl.col("close").last(), *sums)
    frame = frame.with_columns(close=pl.col("close").forward_fill().over("instrument"))
    frame = frame.with_columns(pl.col(name).fill_null(pl.col("close")) for name in ("open", "high", "low"))
    columns = [*key, *PRICES, "volume", "amount"]
    if frame["n_trades"].null_count() < len(frame):
        columns.append("n_trades")
    return frame.select(columns)


def _report_bars(frame: pl.DataFrame, minutes: int, found: Findings) -> None:
    count = SESSION // minutes
    minute = pl.col("minute")
    days = frame.group_by("instrument", maintain_order=True).agg(
        count=count - (minute > 0).sum().cast(pl.Int64), quiet=(pl.col("volume") == 0).all(),
        minutes=minute.filter(minute > 0), bars=pl.len())
    short = days.filter(pl.col("count") > 0)
    lacks = [next(one for one in range(minutes, SESSION + 1, minutes) if one not in have) for have in map(set, short["minutes"].to_list())]
    found.add_counts("missing_bars", short.with_columns(detail=pl.format("first: minute {}", pl.Series(lacks, dtype=pl.Int64))))
    found.add_counts("suspended", days.filter(pl.col("quiet")).select("instrument", count="bars", detail=pl.lit("no volume all day")))
    mean = pl.col("amount") / pl.col("volume")
    outside = (mean < pl.col("low") * (1 - _AMOUNT_SLACK) - _TICK) | (mean > pl.col("high") * (1 + _AMOUNT_SLACK) + _TICK)
    found.add("amount_outside_prices", frame.filter((pl.col("volume") > 0) & outside),
              pl.format("minute {}: {} beside {} to {}", minute, mean.round(4), "low", "high"))


# ---- ticks --------------------------------------------------------------------------------------------------------------------
def clean_ticks(frame: pl.DataFrame, kind: str, settings: dict, words: dict, found: Findings) -> pl.DataFrame:
    """Rows of trades or orders from a day of a source; `words`: column -> the vendor's word -> ours."""
    frame = _start(frame, found)
    usual = "trade" if kind == "trades" else "new"
    if words["kind"]:
        kinds = pl.col("kind").replace_strict(words["kind"], default=usual, return_dtype=pl.String)
    else:  # Shenzhen writes cancellations among trades, at price 0
        kinds = pl.when(pl.col("price") == 0).then(pl.lit("cancel" if kind == "trades" else usual)).otherwise(pl.lit(usual))
    side = pl.col("side").replace_strict({word: SIDES[ours] for word, ours in words["side"].items()}, default=0, return_dtype=pl.Int8)
    side = side if words["side"] else pl.lit(0, pl.Int8)
    frame = frame.with_columns(kinds.fill_null(usual).alias("kind"), side.fill_null(0).alias("side"),
                               price=_yuan("price", settings["price"]),
                               quantity=(pl.col("quantity") * PARTS["volume"][settings["volume"]]).round().cast(pl.Int64, strict=False))
    frame = found.take_out(frame, "other_kinds", pl.col("kind") == "none")
    if kind == "trades":
        frame = found.take_out(frame, "cancels", pl.col("kind") == "cancel")
    frame = _on_time(frame.rename({"clock": "millisecond"}), "out_of_session", ~_in_session(kind), found, "millisecond", "quantity")
    bad_price = pl.col("price").fill_null(0) <= 0 if kind == "trades" else (pl.col("price") < 0).fill_null(False)
    frame = found.take_out(frame, "impossible", (pl.col("quantity").fill_null(0) <= 0) | bad_price, _time_text("millisecond"))
    return _trades(frame, found) if kind == "trades" else _orders(frame, found)


def _in_session(kind: str) -> pl.Expr:
    """Trades from 09:25, orders from 09:15; a minute after each half to spare, as stamps lag."""
    first = OPEN - (5 if kind == "trades" else 15)
    clock = pl.col("millisecond") // _MINUTE
    return clock.is_between(first, NOON) | clock.is_between(BACK, CLOSE)


def _numbered(frame: pl.DataFrame, found: Findings) -> pl.DataFrame:
    """Rows in time; those of a source without sequence are numbered as they stand."""
    if frame["sequence"].null_count() == len(frame):
        frame = frame.sort("instrument", "millisecond", maintain_order=True)
        return frame.with_columns(sequence=pl.int_range(pl.len()).over("instrument"))
    found.add("same_sequence", frame.filter(~pl.struct("instrument", "sequence").is_first_distinct()), pl.col("sequence"))
    return frame


def _trades(frame: pl.DataFrame, found: Findings) -> pl.DataFrame:
    orders = ("buy_order", "sell_order")
    frame = _numbered(frame, found).with_columns(pl.when(pl.col(name) > 0).then(pl.col(name)).alias(name) for name in orders)
    found.add("no_side", frame.filter(_CONTINUOUS & (pl.col("side") == 0)), _time_text("millisecond"))
    found.add("no_order_number", frame.filter(pl.any_horizontal(pl.col(name).is_null() for name in orders)), _time_text("millisecond"))
    against = (pl.col("side") != 0) & ((pl.col("side") > 0) != (pl.col("buy_order") > pl.col("sell_order")))
    found.add("side_against_orders", frame.filter(against), _time_text("millisecond"))
    return frame.select("instrument", "millisecond", "price", "quantity", "side", *orders, "sequence")


def _orders(frame: pl.DataFrame, found: Findings) -> pl.DataFrame:
    frame = _numbered(frame, found).with_columns(order=pl.when(pl.col("order") > 0).then(pl.col("order")),
                                                 price=pl.when(pl.col("price") > 0).then(pl.col("price")),
                                                 kind=pl.when(pl.col("kind") == "cancel").then(-1).otherwise(1).cast(pl.Int8))
    found.add("no_side", frame.filter(pl.col("side") == 0), _time_text("millisecond"))
    found.add("no_order_number", frame.filter(pl.col("order").is_null()), _time_text("millisecond"))
    return frame.select("instrument", "millisecond", "price", "quantity", "side", "order", "kind", "sequence")


# ---- the daily bars -----------------------------------------------------------------------------------------------------------
class DailyBars:
    """Daily bars of a Qlib store in raw prices: `frame(day)`."""

    def __init__(self, store: Union[str, Path]):
        files = StoreFiles(store)
        codes = np.array(sorted(files.folders), dtype=str)
        self.codes = codes[kind_of(codes) != "index"]
        self.days = files.days
        self.panels = {name: files.panel(name, self.codes).T for name in (*PRICES, "volume", "amount", "factor")}

    def frame(self, day) -> Optional[pl.DataFrame]:
        """Instruments that traded on a day; None where the store does not know the day."""
        place = int(np.searchsorted(self.days, np.datetime64(day, "D")))
        if place == len(self.days) or self.days[place] != np.datetime64(day, "D"):
            return None
        rows = np.flatnonzero(self.panels["volume"][place] > 0)
        values = {name: panel[place, rows].astype(np.float64) for name, panel in self.panels.items()}
        factor = values.pop("factor")
        values |= {name: values[name] / factor for name in PRICES} | {"volume": values["volume"] * factor}
        return pl.DataFrame({"instrument": self.codes[rows], **values}, nan_to_null=True)


def against_daily(frame: pl.DataFrame, daily: Optional[pl.DataFrame], day, found: Findings) -> None:
    """Hold a day of bars or trades against the daily bars of a store.

    Args:
        frame: rows of the table. daily: columns instrument, open, high, low, close in raw CNY, volume in shares, amount in CNY, of what was
            traded on the day; None where the store does not have the day.
    """
    if daily is None:
        found.add("day_not_in_store", frame.select(pl.lit("").alias("instrument")), pl.lit("nothing compared"))
        return
    rows = frame.lazy().with_columns(pl.lit(day).alias("date"))
    made = (daily_from_trades(rows) if "millisecond" in frame.columns else daily_from_bars(rows)).collect()
    both = made.filter(pl.col("volume") > 0).join(daily, on="instrument", how="inner", suffix="_daily")
    for name, slack in (("volume", _VOLUME_SLACK), ("amount", 10 * _VOLUME_SLACK)):
        ratio = pl.col(name) / pl.col(f"{name}_daily")
        found.add(f"{name}_differs", both.filter((ratio - 1).abs() > slack), pl.format("{} times the daily bar's", ratio.round(4)))
    for name in PRICES:
        other = pl.col(f"{name}_daily")
        found.add(f"{name}_differs", both.filter((pl.col(name) - other).abs() > _TICK + 1e-6 * other),
                  pl.format("{} beside {} of the daily bar", pl.col(name).round(4), other.round(4)))
    strange = made.filter(pl.col("volume") > 0).join(daily, on="instrument", how="anti")
    found.add("not_in_store", strange)


def report_absent(seen: set, daily: Optional[pl.DataFrame], found: Findings) -> None:
    """Report what traded on the day by the daily bars and is not among the instruments `seen`."""
    lacks = pl.Series([] if daily is None else sorted(set(daily["instrument"]) - seen), dtype=pl.String)
    if len(lacks):
        found.add_counts("no_bars", pl.DataFrame({"instrument": [""], "count": [len(lacks)], "detail": [first_few(lacks.to_list())]}))

