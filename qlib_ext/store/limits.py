"""Highest and lowest prices allowed on each day: from the table of bars, else by `qlib_ext.market_rules`."""

from typing import Dict, NamedTuple, Optional

import numpy as np

from qlib_ext.market_rules import board_of, limit_prices, price_limits, tick_size
from qlib_ext.store.fields import StockFields
from qlib_ext.store.grid import Grid
from qlib_ext.store.tables import Table

LIMITS = ("limit_up", "limit_down")
LONG_AGO = 1_000_000  # trading days since a listing
RATIO_TOLERANCE = 2e-7  # of two factors of 24 bits


class Limits(NamedTuple):
    """`fields` limit_up and limit_down x factor, float32 [c]; `counts` for the metadata."""

    fields: Dict[str, np.ndarray]
    counts: Dict[str, int]


def limit_fields(bars: Table, grid: Grid, kinds: np.ndarray, prices: StockFields, instruments: Optional[Table]) -> Limits:
    """Limit prices of every cell.

    A column the table of bars has is taken as it is, row by row. Else by the rules: the reference is the last
    traded close before the day x the last factor / the day's factor; the limits are those of board, kind, special treatment
    (unknown counts as none) and trading days since the listing, rounded to the tick; they stand on suspended days too. NaN: no
    limit, no earlier close, an index, or a stock of no known board.

    The listing is `list_date` of table `instruments`; without it the first bar, but an instrument with a bar on the first day of
    all bars counts as listed long ago.

    Arguments: `kinds [n]` of `grid.codes`; `prices` of `stock_fields`.
    """
    factor = grid.carry(grid.expand(bars.numbers["factor"]))
    given = {name: grid.expand(bars.numbers[name]) for name in LIMITS if name in bars.numbers}
    if len(given) == len(LIMITS):
        return Limits({name: (price * factor).astype(np.float32) for name, price in given.items()}, {})
    is_st = prices.fields.get("is_st")
    unknown = np.ones(grid.size, dtype=bool) if is_st is None else np.isnan(is_st)
    special = ~unknown if is_st is None else is_st == 1
    first = np.append(True, grid.stock[1:] != grid.stock[:-1])
    reference = np.where(first, np.nan, _ex_right(prices, factor))
    listed = grid.day - _listing(grid, instruments)[grid.stock]
    boards = board_of(grid.codes)
    limits = {name: np.full(grid.size, np.nan) for name in LIMITS}
    for board, kind in sorted(set(zip(boards.tolist(), kinds.tolist()))):
        if kind == "index" or (kind == "stock" and not board):
            continue
        cells = np.flatnonzero(((boards == board) & (kinds == kind))[grid.stock])
        days = grid.calendar[grid.day[cells]]
        up, down = price_limits(board, special[cells], listed[cells], days, kind)
        prices = limit_prices(reference[cells], up, down, tick_size(kind, days))
        for name, price in zip(LIMITS, prices):
            limits[name][cells] = price
    known = np.isfinite(limits["limit_up"])
    limits.update(given)
    counts = {"limit_cells": int(known.sum()), "limit_st_unknown_cells": int((known & unknown).sum())}
    return Limits({name: (price * factor).astype(np.float32) for name, price in limits.items()}, counts)


def _ex_right(prices: StockFields, factor: np.ndarray) -> np.ndarray:
    """Last traded close before the day, in the day's shares. [c]

    Tables often hold prices and factors with 24 bits: the close is taken back to its tick, a ratio of factors to its half tick.
    """
    close = np.append(np.nan, np.round(prices.raw_close[:-1], 3))
    ratio = np.append(np.nan, (prices.close / prices.raw_close)[:-1]) / factor
    return np.where(np.abs(ratio - 1) < RATIO_TOLERANCE, close, close * ratio * (1 + RATIO_TOLERANCE))


def _listing(grid: Grid, instruments: Optional[Table]) -> np.ndarray:
    """Calendar position of each instrument's listing, negative before the calendar. int [n]"""
    listing = np.where(grid.start == grid.start.min(), -LONG_AGO, grid.start)
    if instruments is None:
        return listing
    calendar, day = grid.calendar, instruments.dates["list_date"]
    position = np.searchsorted(calendar, day)
    early = day < calendar[0]
    position[early] = -np.busday_count(day[early], calendar[0])
    stock = instruments.with_codes(grid.codes)
    listing[stock[stock >= 0]] = position[stock >= 0]
    return listing
