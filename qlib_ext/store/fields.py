"""From tables to stored fields: adjustment, suspensions, and what is known when."""

from typing import Dict, NamedTuple, Optional, Tuple

import numpy as np

from qlib_ext.store.grid import Grid
from qlib_ext.store.schema import AMOUNT_TOLERANCE, PRICES
from qlib_ext.store.tables import Table

LOOK_AHEAD_METHODS = ("snapshot_bfill",)
FIRST_OTHER_INDUSTRY = 10_000_000  # float32 holds integers exactly up to 16,777,216


class StockFields(NamedTuple):
    """`fields` name -> float32 [c]; `close` adjusted and `raw_close` unadjusted, float64 [c], carried through suspensions;
    `traded` bool [c]."""

    fields: Dict[str, np.ndarray]
    close: np.ndarray
    raw_close: np.ndarray
    traded: np.ndarray
    counts: Dict[str, int]


def stock_fields(table: Table, grid: Grid, vwap: str) -> StockFields:
    """Price, volume and status fields of stocks (ETFs, bonds).

    Prices x factor, volume / factor; on suspended days (volume 0, or no row inside the stock's span) prices, vwap, volume,
    amount, change and turnover are NaN, factor and is_st are the row's own or carried on.
    """
    numbers = table.numbers
    volume, factor = grid.expand(numbers["volume"]), grid.expand(numbers["factor"])
    traded = volume > 0
    hide = np.where(traded, 1.0, np.nan)  # x hide: NaN on suspended days
    raw = {name: grid.expand(numbers[name]) * hide for name in PRICES}
    fields = {name: (raw[name] * factor).astype(np.float32) for name in PRICES}
    fields["volume"] = (volume / factor * hide).astype(np.float32)
    for name in ("amount", "turnover"):
        if name in numbers:
            fields[name] = (grid.expand(numbers[name]) * hide).astype(np.float32)
    counts = {"suspended_cells": int(grid.size - np.count_nonzero(traded)), "cells_without_row": int(grid.size - len(table))}
    price = (raw["high"] + raw["low"] + raw["close"]) / 3
    if vwap == "amount":
        amount = grid.expand(numbers["amount"])
        price = np.where(amount > 0, amount, np.nan) / np.where(traded, volume, np.nan)
        outside = (price > raw["high"] * (1 + AMOUNT_TOLERANCE)) | (price < raw["low"] * (1 - AMOUNT_TOLERANCE))
        counts["vwap_unknown_cells"] = int(np.count_nonzero(traded & np.isnan(price)))
        counts["vwap_outside_low_high"] = int(np.count_nonzero(outside))
    fields["vwap"] = (price * factor).astype(np.float32)
    close = raw["close"] * factor
    fields["change"] = _change(close, grid)
    fields["factor"] = grid.carry(factor).astype(np.float32)
    if "is_st" in numbers:
        status = np.where(numbers["is_st"] < 0, np.nan, numbers["is_st"])
        fields["is_st"] = _carry_rows(grid, status).astype(np.float32)
        counts["is_st_unknown_cells"] = int(np.count_nonzero(np.isnan(fields["is_st"])))
    return StockFields(fields, grid.carry(close), grid.carry(raw["close"]), traded, counts)


def index_fields(table: Table, grid: Grid) -> Dict[str, np.ndarray]:
    """Fields of indices, float32 [c]: factor 1, typical price as vwap; volume and amount NaN where 0 or unknown."""
    prices = {name: grid.expand(table.numbers[name]) for name in PRICES}
    fields = dict(prices)
    for name in ("volume", "amount"):
        if name in table.numbers:
            values = grid.expand(table.numbers[name])
            fields[name] = np.where(values > 0, values, np.nan)
    fields["vwap"] = (prices["high"] + prices["low"] + prices["close"]) / 3
    fields["change"] = _change(prices["close"], grid)
    fields["factor"] = np.ones(grid.size)
    return {name: values.astype(np.float32) for name, values in fields.items()}


class Dividends(NamedTuple):
    """`cash` CNY per share and `bonus` new shares per share on ex-dates, 0 elsewhere; `ex_date` marks them. [c]"""

    cash: np.ndarray
    bonus: np.ndarray
    ex_date: np.ndarray
    counts: Dict[str, int]


def dividends(table: Table, grid: Grid) -> Dividends:
    """Distributions on their ex-dates, suspended or not; an ex-date on which the stock has no cell is left out and counted."""
    stock, ex_date = table.with_codes(grid.codes), table.dates["ex_date"]
    position = np.searchsorted(grid.calendar, ex_date)
    trading = np.append(grid.calendar, np.datetime64("NaT"))[position] == ex_date
    inside = trading & (stock >= 0) & (position >= grid.start[stock]) & (position < (grid.start + grid.length)[stock])
    cell = (grid.offset - grid.start)[stock[inside]] + position[inside]
    laid = {name: np.zeros(grid.size) for name in ("cash", "bonus")}
    for name, cells in laid.items():
        np.add.at(cells, cell, np.nan_to_num(table.numbers[name][inside]))
    marks = np.zeros(grid.size, dtype=bool)
    marks[cell] = True
    return Dividends(**laid, ex_date=marks, counts={"ex_dates": int(inside.sum()), "ex_dates_left_out": int((~inside).sum())})


def industry(table: Table, grid: Grid) -> Tuple[np.ndarray, Dict[str, dict], Dict[str, int]]:
    """Level-1 industry in force on each day as a number, float64 [c], with the meaning of the numbers.

    A code counts from its start date, inclusive, to its end date, inclusive, or to the start of the stock's next code if that is
    earlier. NaN where none is in force. The number is the code itself if that is a number of up to seven digits; other codes
    get 10000000 + k, the k-th of them to start first, so that later codes do not renumber earlier ones.
    """
    table = table.take(np.lexsort((table.dates["start"], table.code)))
    numbers, meaning = _industry_numbers(table)
    stock = table.with_codes(grid.codes)
    start, end = table.dates["start"], table.dates["end"]
    same = table.code[1:] == table.code[:-1]
    overlaps = int(np.count_nonzero(same & (end[:-1] >= start[1:])))
    ends = np.flatnonzero(np.append(~same | (end[:-1] + 1 < start[1:]), True))  # spans followed by a hole or by nothing
    event_stock = np.concatenate([stock, stock[ends]])
    event_day = np.concatenate([start, end[ends] + 1])
    value = np.concatenate([numbers, np.full(len(ends), np.nan)])
    order = np.lexsort((event_day, event_stock))
    position = np.searchsorted(grid.calendar, event_day[order], side="left")
    cells = grid.from_events(event_stock[order], position, value[order])
    counts = {"industry_spans": len(table), "industry_overlaps_cut": overlaps,
              "industry_unknown_cells": int(np.count_nonzero(np.isnan(cells)))}
    return cells, meaning, counts


def _industry_numbers(table: Table) -> Tuple[np.ndarray, Dict[str, dict]]:
    """Number of each row's code [r], and number -> {code, name}; a code of later rows never changes an earlier code's number."""
    codes = table.texts["l1_code"].astype(str)
    number: Dict[str, int] = {}
    names: Dict[str, Optional[str]] = {}
    others = 0
    for row in np.lexsort((codes, table.dates["start"])):
        code = codes[row]
        if code not in number:
            plain = code.isdecimal() and len(code) <= 7 and str(int(code)) == code
            number[code] = int(code) if plain else FIRST_OTHER_INDUSTRY + others
            others += not plain
        name = table.texts["l1_name"][row] if "l1_name" in table.texts else None
        names[code] = name or names.get(code)
    meaning = {str(number[code]): {"code": code, "name": names[code]} for code in sorted(number, key=number.get)}
    return np.array([number[code] for code in codes], dtype=np.float64), meaning


def _carry_rows(grid: Grid, values: np.ndarray) -> np.ndarray:
    """Table rows [r] to cells [c]: a cell without a row takes the instrument's previous row, NaN included."""
    row = grid.carry(grid.expand(np.arange(len(values))))
    return values[row.astype(np.int64)]  # every instrument's first cell has a row


def _change(close: np.ndarray, grid: Grid) -> np.ndarray:
    """Close over the instrument's previous finite close, minus 1; NaN without one. float32 [c]"""
    change = np.full(grid.size, np.nan, dtype=np.float32)
    at = np.flatnonzero(np.isfinite(close))
    same = grid.stock[at[1:]] == grid.stock[at[:-1]]
    change[at[1:][same]] = (close[at[1:]] / close[at[:-1]] - 1)[same]
    return change
