"""Minute bars of part of the demo market, trades and orders of a few stocks, as an intraday folder, with the truth beside it.

Made of the finished daily bars and equal to them when added up: the first open, highest high, lowest low, last close, volume and
amount of a stock-day are those of the market to the last share and cent. Every stock-day has streams of its own, so it is the same
whatever other stocks and days are made. A day on which a stock does not trade has no rows.
"""

import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Optional

import numpy as np
import polars as pl

from qlib_ext.demo.counts import allowed_prices
from qlib_ext.demo.intraday_bars import COUNT, TICK, TRADES_A_DAY, Bars, Quotes, draw_day, lot_unit, make_bars
from qlib_ext.demo.intraday_shape import EFFECTS, NOISE_DAYS, STRENGTH, draw_tilts
from qlib_ext.demo.intraday_ticks import make_ticks
from qlib_ext.demo.market import GENERATOR, Market, make_market
from qlib_ext.demo.streams import stream
from qlib_ext.demo.truth import STATEMENT
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.intraday import describe, read_about, write_day

logger = logging.getLogger("qlib_ext.demo")

INTRADAY_GENERATOR = 1
PRICES = ("open", "high", "low", "close")
SETTINGS = {
    "bars_1min": {"bar_minutes": 1, "opening_auction": "apart", "closing_auction": "in the last bars"},
    "trades": {"order_numbers": True, "side": True},
    "orders": {"cancels": True},
}
"""What `intraday.json` says of each table, with `generated`."""


@dataclass(frozen=True)
class IntradayPart:
    """The part of the market that gets intraday data.

    Attributes:
        stocks: how many get minute bars; a smaller number gives the first of a larger one.
        first, last: first and last calendar day (last None: the market's).
        tick_stocks: how many of them (at most) get trades and orders too. tick_days: on the last so many trading days of the span.

    Raises:
        ConfigError: a number below what makes sense, a date that is none, or last before first.
    """

    stocks: int = 100
    first: str = "2022-01-01"
    last: Optional[str] = None
    tick_stocks: int = 8
    tick_days: int = 60

    def __post_init__(self) -> None:
        if self.stocks < 1 or self.tick_stocks < 0 or self.tick_days < 0:
            raise ConfigError(f"demo intraday: stocks must be 1 or more, tick_stocks and tick_days 0 or more, not {self.stocks}, "
                              f"{self.tick_stocks} and {self.tick_days}")  # fmt: skip
        for name in ("first", "last"):
            if not (name == "last" and self.last is None or _is_day(getattr(self, name))):
                raise ConfigError(f"demo intraday: {name} must be a date such as 2022-01-04, not {getattr(self, name)!r}")
        if self.last is not None and np.datetime64(self.last, "D") < np.datetime64(self.first, "D"):
            raise ConfigError(f"demo intraday: last {self.last} lies before first {self.first}")

    def days(self, market: Market) -> np.ndarray:
        """Positions of the trading days in the span.

        Raises:
            ConfigError: there are none.
        """
        last = market.days[-1] if self.last is None else np.datetime64(self.last, "D")
        found = np.flatnonzero((market.days >= np.datetime64(self.first, "D")) & (market.days <= last))
        if not len(found):
            raise ConfigError(f"demo intraday: no trading day from {self.first} to {last}; the market has {market.days[0]} to "
                              f"{market.days[-1]}")  # fmt: skip
        return found

    def chosen(self, market: Market) -> np.ndarray:
        """Positions of the stocks, in an order of their own that does not depend on how many are asked for.

        Raises:
            ConfigError: the market has fewer.
        """
        if self.stocks > len(market.instruments):
            raise ConfigError(f"demo intraday: {self.stocks} stocks asked of {len(market.instruments)}")
        return np.argsort(stream(market.seed, "minute").random(len(market.instruments)), kind="stable")[: self.stocks]


class IntradayMaker:
    """Intraday tables of one market, day by day; `largest_gap` is the largest relative distance of an amount from the daily one met so
    far (0: a day whose average price no path can have was not met)."""

    def __init__(self, market: Market) -> None:
        self.market, self.tilts, self.largest_gap = market, draw_tilts(market), 0.0
        self.codes = pl.Series("instrument", market.instruments, dtype=pl.Categorical)
        self.limits = [np.where(np.isnan(price), other, price) for price, other in zip(allowed_prices(market), (1e7, TICK))]

    def bars(self, day: int, stocks: np.ndarray) -> tuple[np.ndarray, Bars]:
        """Minute bars on the day at position `day`: (those of `stocks` that trade, by code; their bars)."""
        market, stocks = self.market, np.sort(stocks)
        stocks = stocks[market.trading[day, stocks] & (market.volume[day, stocks] > 0)]
        usual = market.float_shares[day, stocks] * market.static["turnover"][stocks] / TRADES_A_DAY
        prices = {name: _ticks(getattr(market, name)[day, stocks]) for name in PRICES}
        quotes = Quotes(**prices, volume=market.volume[day, stocks], amount=_ticks(market.amount[day, stocks]),
                        trade_size=np.maximum(usual, 1.0))  # fmt: skip
        tilts = {name: values[day, stocks] for name, values in self.tilts.items()}
        bars = make_bars(quotes, tilts, *draw_day(market.seed, stocks, market.days[day]))
        gap = np.abs(bars.amount.sum(axis=1) - quotes.amount) / np.maximum(quotes.amount, 1)
        self.largest_gap = max(self.largest_gap, float(gap.max(initial=0.0)))
        return stocks, bars

    def frames(self, day: int, stocks: np.ndarray, ticks: np.ndarray) -> dict[str, pl.DataFrame]:
        """Tables of one day: `bars_1min` of `stocks`, `trades` and `orders` of `ticks` among them; empty ones are left out."""
        found, bars = self.bars(day, stocks)
        frames = {"bars_1min": self._bars_frame(found, bars)}
        rows = np.flatnonzero(np.isin(found, ticks))
        made = [self._ticks_of(day, found[row], bars, row) for row in rows]
        for number, table in enumerate(("trades", "orders")):
            parts = [self._ticks_frame(found[row], both[number]) for row, both in zip(rows, made, strict=True)]
            frames |= {table: pl.concat(parts)} if parts else {}
        return {table: frame for table, frame in frames.items() if len(frame)}

    def _bars_frame(self, stocks: np.ndarray, bars: Bars) -> pl.DataFrame:
        columns = {"instrument": self.codes.gather(np.repeat(stocks, COUNT)),
                   "minute": pl.Series(np.tile(np.arange(COUNT, dtype=np.int16), len(stocks)))}  # fmt: skip
        columns |= {name: getattr(bars, name).ravel() / 100.0 for name in PRICES}
        columns |= {"volume": bars.volume.ravel(), "amount": bars.amount.ravel() / 100.0}
        columns["n_trades"] = bars.n_trades.ravel().astype(np.int32)
        return pl.DataFrame(columns)

    def _ticks_of(self, day: int, stock: int, bars: Bars, row: int) -> tuple[dict, dict]:
        market = self.market
        high, low = (int(_ticks(prices[day, stock])) for prices in self.limits)
        tilts = {name: self.tilts[name][day, stock] for name in ("active", "order", "large")}
        unit = int(lot_unit(bars.volume[row].sum(keepdims=True))[0])
        generator = stream(market.seed, "tick", int(stock), int(market.days[day].astype(int)))
        return make_ticks({name: getattr(bars, name)[row] for name in bars.__dataclass_fields__}, unit, tilts, (low, high), generator)

    def _ticks_frame(self, stock: int, columns: dict[str, np.ndarray]) -> pl.DataFrame:
        types = {"millisecond": pl.Int32, "side": pl.Int8, "kind": pl.Int8}
        frame = pl.DataFrame({**columns, "price": columns["price"] / 100.0}).with_columns(pl.col("price").fill_nan(None))
        codes = self.codes.gather(np.full(len(frame), stock))
        return frame.cast({name: kind for name, kind in types.items() if name in columns}).insert_column(0, codes)


def build_intraday(store: str | Path, folder: Optional[str | Path] = None, part: Optional[IntradayPart] = None,
                   seed: int = 0, overwrite: bool = False, **switches: bool) -> Path:
    """Write the intraday folder of the demo store `store`; returns it.

    The folder is made aside and renamed; the truth file `<folder>.truth.json` (which effects are planted and how strongly) is written
    last, so an interrupted build is made again, and a finished one of the same seed, switches and part is left as it is.

    Args:
        store: the demo store. folder: default `<store>.intraday`. part: stocks and days.
        seed, switches: of the store's market (`make_market`). overwrite: replace generated intraday data of another seed or part.

    Raises:
        ConfigError: the market has no such stocks or days.
        DataError: the folder holds data that are not generated, or finished ones of another seed, switches or part while `overwrite`
            is false.
    """
    folder, part = intraday_folder(store, folder), part or IntradayPart()
    wanted = {"seed": seed, "switches": {name: bool(switches.get(name)) for name in ("drift", "null", "size_groups")},
              "part": asdict(part)}  # fmt: skip
    if _is_finished(folder, wanted, overwrite):
        logger.info("intraday folder %s is there already; nothing to do", folder)
        return folder
    market = make_market(seed, **switches)
    days, stocks = part.days(market), part.chosen(market)
    folder.parent.mkdir(parents=True, exist_ok=True)
    truth_file = intraday_truth_path(folder)
    truth_file.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.demo-", dir=folder.parent) as aside:
        made, old = Path(aside) / "made", Path(aside) / "old"
        maker = IntradayMaker(market)
        rows = _write_days(made, maker, days, stocks, part)
        if folder.exists():
            os.replace(folder, old)
        os.replace(made, folder)
        summary = _summary(market, wanted, days, stocks, part) | {"rows": rows, "largest_amount_gap": maker.largest_gap}
        text = json.dumps(summary, indent=1) + "\n"
        (Path(aside) / "truth.json").write_text(text, encoding="utf-8")
        os.replace(Path(aside) / "truth.json", truth_file)
    logger.info("intraday folder %s: %s. %s", folder, ", ".join(f"{count:,} rows of {table}" for table, count in rows.items()), STATEMENT)
    return folder


def intraday_folder(store: str | Path, folder: Optional[str | Path] = None) -> Path:
    """The intraday folder of a store: `folder` where given, else `<store>.intraday`."""
    store = Path(store).expanduser().absolute()
    return Path(folder).expanduser().absolute() if folder else store.with_name(f"{store.name}.intraday")


def intraday_truth_path(folder: str | Path) -> Path:
    """`<folder>.truth.json` of an intraday folder."""
    folder = Path(folder).expanduser().absolute()
    return folder.with_name(f"{folder.name}.truth.json")


def _write_days(folder: Path, maker: IntradayMaker, days: np.ndarray, stocks: np.ndarray, part: IntradayPart) -> dict[str, int]:
    """Write all days; returns rows by table. Says how far it is ten times."""
    rows: dict[str, int] = {}
    with_ticks = set(days[len(days) - min(part.tick_days, len(days)) :])
    for number, day in enumerate(days, 1):
        ticks = stocks[: part.tick_stocks] if day in with_ticks else stocks[:0]
        for table, frame in maker.frames(day, stocks, ticks).items():
            write_day(folder, table, maker.market.days[day], frame)
            if table not in rows:
                describe(folder, table, {"generated": True, "source": "qlib_ext.demo", "columns": frame.columns, **SETTINGS[table]})
            rows[table] = rows.get(table, 0) + len(frame)
        if number * 10 // len(days) > (number - 1) * 10 // len(days):
            logger.info("intraday: %d of %d days, up to %s", number, len(days), maker.market.days[day])
    return rows


def _summary(market: Market, wanted: dict, days: np.ndarray, stocks: np.ndarray, part: IntradayPart) -> dict:
    codes = np.array(market.instruments, dtype=object)
    return {
        "statement": STATEMENT,
        "generator": GENERATOR,
        "intraday_generator": INTRADAY_GENERATOR,
        **wanted,
        "span": [str(market.days[days[0]]), str(market.days[days[-1]])],
        "instruments": sorted(codes[stocks]),
        "tick_instruments": sorted(codes[stocks[: part.tick_stocks]]),
        "definition": "tilt = strength * g + sqrt(1 - strength^2) * noise; g = the expected label under pay-offs of 1, standardised "
                      "across listed stocks, cut at 3; noise = AR(1) of each effect's own; see qlib_ext.demo.intraday_shape",
        "strength": STRENGTH,
        "noise_half_life_days": NOISE_DAYS,
        "pays": not market.switches["null"],
        "effects": {name: {"moves": moves, "high_tilt": text} for name, (moves, text) in EFFECTS.items()},
    }  # fmt: skip


def _is_finished(folder: Path, wanted: dict, overwrite: bool) -> bool:
    """Whether the finished folder of what is wanted is there and may stay; refuses one of data that are not generated."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file, not a folder of intraday data; give --intraday another place")
    if folder.is_dir() and any(folder.iterdir()) and not _is_generated(folder):
        raise DataError(f"{folder} holds data that are not generated; it is left alone: give --intraday another folder")
    try:
        summary = json.loads(intraday_truth_path(folder).read_text(encoding="utf-8"))
        versions = summary["generator"], summary["intraday_generator"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if overwrite or not folder.is_dir():
        return False
    if versions != (GENERATOR, INTRADAY_GENERATOR):
        logger.warning("the intraday data at %s were made by versions %s of the generators; they are generated and are replaced by those "
                       "of versions %s", folder, versions, (GENERATOR, INTRADAY_GENERATOR))  # fmt: skip
        return False
    found = {name: summary.get(name) for name in wanted}
    if found != wanted:
        raise DataError(f"the intraday data at {folder} have {found}, asked are {wanted}; give --overwrite to replace them, or another "
                        "folder to --intraday")  # fmt: skip
    return True


def _is_generated(folder: Path) -> bool:
    """Whether an intraday folder holds tables made here, and no others."""
    tables = read_about(folder).get("tables", {})
    return bool(tables) and all(settings.get("generated") is True for settings in tables.values())


def _is_day(text: str) -> bool:
    try:
        return not np.isnat(np.datetime64(text, "D"))
    except ValueError:
        return False


def _ticks(prices: np.ndarray) -> np.ndarray:
    return np.rint(prices / TICK).astype(np.int64)
