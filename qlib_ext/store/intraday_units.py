"""Which stamps and units a source of minute bars or ticks has: told from one day of it, and held against what the user says.

Nothing is guessed: what the day cannot tell is asked for.
"""

from __future__ import annotations

from itertools import product
from typing import Optional, Union

import numpy as np
import polars as pl

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.market_rules import kind_of
from qlib_ext.store.intraday_mapping import PRICES, Vendor

PARTS = {"price": {"yuan": 1, "cent": 100, "mil": 10_000}, "volume": {"shares": 1, "lots": 100},
         "amount": {"yuan": 1, "thousand": 1_000, "wan": 10_000}}
"""Price: how many of the unit are a yuan; volume and amount: how many shares or yuan the unit is."""
OPEN, NOON, BACK, CLOSE = 570, 690, 780, 900  # minutes since midnight: 09:30, 11:30, 13:00, 15:00
NEAR = 1.3
_LEAST_STAMPS = 20
_LEAST_PRICE = 0.2
_LEAST_WHOLE = 20
"""So many different prices in yuan would not all be whole."""
_MANY_TICKS, _FEW_ROUND = 50, 0.1
"""Of so many quantities in shares at least this part are multiples of 100."""
_LEAP = 30.0
"""No day's prices are so many times those of the day before; another unit is 100 times."""


def settle(sample: pl.DataFrame, vendor: Vendor, minutes: int, known: dict) -> dict:
    """Stamps and units of a source.

    Args:
        sample: one day of it, of `intraday_mapping.open_source`, with ``instrument``.
        vendor: its `units` are what the user says. minutes: of the bars. known: what an earlier ingestion of the folder found.

    Returns:
        stamp (start or end), opening_auction (apart or inside), price, volume, amount; of ticks price and volume only.

    Raises:
        ConfigError: what the day contradicts, or cannot tell and nobody says; all at once.
    """
    given = {name: value for name, value in {**known, **vendor.units}.items() if value not in (None, "auto")}
    faults: list[str] = []
    bars = vendor.kind == "bars"
    found = _clock(sample, given, vendor.units.get("opening_auction"), minutes, faults) if bars else {}
    found |= _bar_units(sample, given, faults) if bars else _tick_units(sample, given, faults)
    if faults:
        raise ConfigError(f"the source cannot be taken as it is described (told from {sample['day'][0]}):\n  " + "\n  ".join(faults))
    return found


# ---- the clock of bars --------------------------------------------------------------------------------------------------------
def stamp_told(frame: pl.DataFrame, borders: bool = False) -> Optional[str]:
    """`start` or `end`, as the stamps of the bars somebody traded in tell; None where they do not.

    A bar stamped 13:00 is stamped at its start, one stamped 11:30 at its end; with `borders`, where neither or both are there, 09:30
    without 15:00 tells the start, 15:00 without 09:30 the end (unless an auction apart hides it, so this asks for a well filled day).
    """
    stamps = set((frame.filter(pl.col("volume") > 0)["clock"].unique() // 60_000).to_list())
    pairs = ((NOON, BACK), (CLOSE, OPEN)) if borders and len(stamps) >= _LEAST_STAMPS else ((NOON, BACK),)
    return next(("end" if end in stamps else "start" for end, start in pairs if (end in stamps) != (start in stamps)), None)


def _clock(sample: pl.DataFrame, given: dict, asked: Optional[str], minutes: int, faults: list[str]) -> dict:
    told, stamp = stamp_told(sample, borders=True), given.get("stamp")
    stamps = (sample["clock"].drop_nulls().unique() // 60_000).unique().sort()
    inside = stamps.filter((stamps >= OPEN) & (stamps <= NOON))
    spacing = int(inside.diff().min()) if len(inside) > 1 else minutes
    if not len(stamps.filter((stamps >= OPEN - 15) & (stamps <= CLOSE))):
        faults.append("every bar lies outside the session of 09:15 to 15:00: stamps must be Beijing's time (are these UTC?)")
    if spacing != minutes:
        faults.append(f"the bars are {spacing} minutes apart, not {minutes}: give --minutes {spacing}")
    elif stamp is None and told is None:
        faults.append("the stamps do not tell whether they are the bars' starts or ends: give --stamp start or --stamp end")
    elif stamp is not None and told not in (None, stamp):
        faults.append(f"stamp={stamp} cannot be: a bar is stamped {_proof(stamps, told)}; give --stamp {told}")
    stamp = stamp or told or "end"
    early = sample.filter((pl.col("volume") > 0) & (pl.col("clock") < OPEN * 60_000 + (stamp == "end")))
    seen = "apart" if len(early) else "inside"
    said = given.get("opening_auction", seen)
    if said == "inside" and len(early):
        faults.append("opening_auction=inside cannot be: there are bars of the auction before the first minute; give apart")
    elif said != seen and said == asked:
        faults.append("opening_auction=apart cannot be: no bar lies before the first minute; give inside, or auto")
    return {"stamp": stamp, "opening_auction": said}


def _proof(stamps: pl.Series, told: str) -> str:
    text = {"end": "11:30 and none 13:00" if NOON in stamps else "15:00 and none 09:30",
            "start": "13:00 and none 11:30" if BACK in stamps else "09:30 and none 15:00"}
    return text[told]


# ---- units --------------------------------------------------------------------------------------------------------------------
def _bar_units(sample: pl.DataFrame, given: dict, faults: list[str]) -> dict:
    traded = sample.filter((pl.col("volume") > 0) & pl.all_horizontal(pl.col(name) > 0 for name in PRICES))
    price = _price_unit(traded.select(PRICES).to_numpy().ravel(), given, faults)
    has_amount = sample["amount"].null_count() < len(sample)
    found = {"price": price, "volume": given.get("volume"), "amount": given.get("amount", "yuan") if has_amount else None}
    ratio = amount_ratio(traded)
    if price is None:
        return found
    if ratio is None:
        if found["volume"] is None:
            faults.append("without amounts (of stocks) the unit of volume cannot be told: give --volume shares or --volume lots")
        return found
    usual = {"volume": list(PARTS["volume"]), "amount": ["yuan", "thousand", *(["wan"] if price == "yuan" else [])]}
    choices = {name: [given[name]] if name in given else usual[name] for name in usual}  # 0.0001 yuan as cents would be lots and wan
    fits = [pair for pair in product(*choices.values()) if 1 / NEAR < ratio / _expected(price, *pair) < NEAR]
    if len(fits) == 1:
        return found | dict(zip(choices, fits[0]))
    others = [f"price {p}, volume {v}, amount {a}" for p, v, a in product(*PARTS.values())
              if 1 / NEAR < ratio / _expected(p, v, a) < NEAR]
    said = ", ".join(f"{name} {value}" for name, value in [("price", price), *((n, given[n]) for n in choices if n in given)])
    faults.append(f"amount / volume is {ratio:.4g} times the price as written, which cannot be with {said}; it can be with: "
                  f"{'; '.join(others) or 'none of the units, so are the prices adjusted? Raw prices are needed'}")
    return found


def amount_ratio(bars: pl.DataFrame) -> Optional[float]:
    """Median of amount / volume / price, of bars of stocks and funds; 1 in our units, None where no amount is known."""
    codes = bars["instrument"].drop_nulls().unique()
    kinds = kind_of(codes.to_numpy().astype(str)) if len(codes) else np.empty(0, str)
    codes = codes.filter(pl.Series(kinds != "index", dtype=pl.Boolean)).to_list()
    known = bars.filter((pl.col("volume") > 0) & (pl.col("amount") > 0) & pl.col("instrument").is_in(codes))
    return (known["amount"] / known["volume"] / ((known["high"] + known["low"] + known["close"]) / 3)).median()


def check_units(bars: pl.DataFrame, day) -> None:
    """Hold a day in our units against itself.

    Raises:
        DataError: amount / volume is not near the price, so the source's units are others than on the day they were told from.
    """
    ratio = amount_ratio(bars)
    if ratio is not None and not 1 / NEAR < ratio < NEAR:
        raise DataError(f"amount / volume is {ratio:.4g} times the price on {day}: the units are others there than those the table is "
                        "made with (or prices are adjusted); ingest such days apart, or correct the source")


def _expected(price: str, volume: str, amount: str) -> float:
    """Amount / volume / price, as written."""
    return PARTS["volume"][volume] / PARTS["price"][price] / PARTS["amount"][amount]


def _price_unit(prices: np.ndarray, given: dict, faults: list[str]) -> Optional[str]:
    whole, unit = bool((prices == np.round(prices)).all()), given.get("price")
    if not len(prices):
        faults.append("no bar or trade has a price and a volume, so that nothing can be told of units: give another span of days")
    elif unit is None and whole:
        faults.append("all prices are whole numbers, which may be cents or 0.0001 yuan: give --price cent, mil or yuan")
    elif unit == "yuan" and whole and len(np.unique(prices)) >= _LEAST_WHOLE:
        faults.append("price=yuan cannot be: all prices are whole numbers; give --price cent or mil")
    elif unit in ("cent", "mil") and not whole:
        faults.append(f"price={unit} cannot be: prices such as {prices[prices != np.round(prices)][0]:g} have fractions; give --price yuan")
    elif unit in ("cent", "mil") and (middle := float(np.median(prices)) / PARTS["price"][unit]) < _LEAST_PRICE:
        faults.append(f"price={unit} cannot be: half of the prices would be below {middle:g} yuan; give --price cent or yuan")
    return unit or (None if whole else "yuan")


def _tick_units(sample: pl.DataFrame, given: dict, faults: list[str]) -> dict:
    """Price and volume: quantities in shares are mostly multiples of 100, which a board lot is."""
    traded = sample.filter((pl.col("price") > 0) & (pl.col("quantity") > 0))
    price = _price_unit(traded["price"].to_numpy(), given, faults)
    round_lots = float((traded["quantity"] % 100 == 0).mean() or 0.0)
    volume = given.get("volume") or ("shares" if round_lots > 0.5 else None)
    if volume is None:
        faults.append(f"{100 * round_lots:.0f} % of the quantities are multiples of 100, which does not tell their unit: give --volume "
                      "shares or --volume lots")
    elif volume == "lots" and round_lots > 0.5:
        faults.append(f"volume=lots cannot be: {100 * round_lots:.0f} % of the quantities are multiples of 100; give --volume shares")
    elif volume == "shares" and round_lots < _FEW_ROUND and len(traded) >= _MANY_TICKS:
        faults.append(f"volume=shares cannot be: {100 * round_lots:.0f} % of the quantities are multiples of 100; give --volume lots")
    return {"price": price, "volume": volume}


def middle_prices(ticks: Union[pl.DataFrame, pl.LazyFrame], unit: str = "yuan") -> dict[str, float]:
    """Instrument -> median price in yuan, of trades or orders with a price."""
    key = pl.col("instrument").cast(pl.String)
    middle = ticks.lazy().filter(pl.col("price") > 0).group_by(key).agg(pl.col("price").median() / PARTS["price"][unit])
    return dict(middle.collect().iter_rows())


def check_tick_units(ticks: pl.DataFrame, settings: dict, before: dict[str, float], day) -> None:
    """Hold a day of trades or orders, as written, against the units of its table, by the rules they were told by.

    Args:
        before: `middle_prices` of the days before; those of the day are put into it.

    Raises:
        DataError: the day is in other units than `settings` say, as far as its prices and quantities tell.
    """
    ticks = ticks.filter(pl.col("instrument").is_not_null() & (pl.col("price") > 0) & (pl.col("quantity") > 0))
    faults: list[str] = []
    if len(ticks) >= _MANY_TICKS:
        _tick_units(ticks, settings, faults)
    now = middle_prices(ticks, settings["price"])
    ratio = float(np.median([now[code] / before[code] for code in now if code in before] or [1.0]))
    if not 1 / _LEAP < ratio < _LEAP:
        faults.append(f"its prices are {ratio:.4g} times those of the days before")
    if faults:
        raise DataError(f"{day} is in other units than the table, which is made with price {settings['price']}, volume "
                        f"{settings['volume']} ({'; '.join(fault.split('; give ')[0] for fault in faults)}): correct the source, or "
                        "ingest such days into another --out")
    before.update(now)
