"""Shares and market values of stocks: monthly values, grown on ex-dates until the next one."""

from typing import Callable, Dict, NamedTuple, Optional, Tuple

import numpy as np

from qlib_ext.store.fields import LOOK_AHEAD_METHODS, StockFields
from qlib_ext.store.grid import Grid
from qlib_ext.store.tables import Table

FAR = 1_000_000  # days


class ShareFields(NamedTuple):
    """`fields` float32 [c]; `float_cap` float64 on the cells of `grid.open_ended()`, NaN where unknown; `counts`."""

    fields: Dict[str, np.ndarray]
    float_cap: np.ndarray
    counts: Dict[str, int]


class _Growth(NamedTuple):
    """What one share has become: on each cell's day and on the last day traded up to it, both [c], and `until` (stock, day)."""

    today: np.ndarray
    last_traded: np.ndarray
    until: Callable[[np.ndarray, np.ndarray], np.ndarray]


def share_fields(table: Table, grid: Grid, prices: StockFields, dividends: Optional[Table]) -> ShareFields:
    """`float_shares`, `total_shares` (shares) and `float_cap`, `total_cap` (CNY) of the columns the table has.

    A value dated d counts from the first trading day after d until the next value counts. With `dividends` it grows by
    1 + bonus on each ex-date after d, without them it stays as published. The cap is the value x the unadjusted close of the last
    day traded x growth from d to that day: by the ex-dates, or without `dividends` by the factor since the last day traded up to
    d, which also carries cash (a percent or two until the next value). Rows whose method looks ahead (`snapshot_bfill`) are left
    out: NaN before the first other value. Rows without the number say nothing.
    """
    whole = grid.open_ended()
    raw_close = whole.carry(whole.expand(prices.raw_close))
    growth = _by_factor(whole, prices) if dividends is None else _by_bonus(whole, prices, dividends)
    fields, counts = {}, {}
    float_cap = np.full(whole.size, np.nan)
    for kind in ("float", "total"):
        name = f"{kind}_shares"
        if name not in table.numbers:
            continue
        rows, counts[f"{name}_look_ahead_rows_left_out"] = _published(table, name)
        stock, month = rows.with_codes(grid.codes), rows.dates["month"]
        event = whole.latest_event(stock, np.searchsorted(grid.calendar, month, side="right"))
        held = np.append(rows.numbers[name] / growth.until(stock, month), np.nan)[event]
        shares = np.append(rows.numbers[name], np.nan)[event] if dividends is None else held * growth.today
        cap = held * growth.last_traded * raw_close
        fields[name], fields[f"{kind}_cap"] = (cells[whole.place].astype(np.float32) for cells in (shares, cap))
        float_cap = cap if kind == "float" else float_cap
        counts[f"{name}_unknown_cells"] = int(np.isnan(fields[name]).sum())
    return ShareFields(fields, float_cap, counts)


def _published(table: Table, name: str) -> Tuple[Table, int]:
    """Rows with the number, in order of stock and month; how many that look ahead were left out."""
    ahead = np.isin(table.texts.get("method", np.empty(len(table), dtype=object)).astype(str), LOOK_AHEAD_METHODS)
    table = table.take(np.flatnonzero(~ahead & ~np.isnan(table.numbers[name])))
    return table.take(np.lexsort((table.dates["month"], table.code))), int(ahead.sum())


def _by_bonus(whole: Grid, prices: StockFields, dividends: Table) -> _Growth:
    """Product of 1 + bonus over a stock's ex-dates up to a day, whether it has a cell on them or not."""
    rows = dividends.take(np.flatnonzero(dividends.with_codes(whole.codes) >= 0))
    rows = rows.take(np.lexsort((rows.dates["ex_date"], rows.code)))
    owner = rows.with_codes(whole.codes)
    parts = np.split(1 + np.nan_to_num(rows.numbers["bonus"]), np.flatnonzero(np.diff(owner)) + 1)
    product = np.append(1.0, np.concatenate([np.cumprod(part) for part in parts]))
    key = owner * FAR + rows.dates["ex_date"].astype(np.int64)

    def until(stock: np.ndarray, day: np.ndarray) -> np.ndarray:
        place = np.searchsorted(key, stock * FAR + day.astype(np.int64), side="right")
        return np.where(np.append(-1, owner)[place] == stock, product[place], 1.0)

    today = until(whole.stock.astype(np.int64), whole.calendar[whole.day])
    return _Growth(today, whole.carry(np.where(whole.expand(prices.traded) > 0, today, np.nan)), until)


def _by_factor(whole: Grid, prices: StockFields) -> _Growth:
    """The factor of the last day traded; before the first one its factor."""
    factor = whole.carry(whole.expand(prices.close / prices.raw_close))
    known = np.flatnonzero(np.isfinite(factor))
    stocks, first = np.unique(whole.stock[known], return_index=True)
    begin = whole.offset.copy()
    begin[stocks] = known[first]

    def until(stock: np.ndarray, day: np.ndarray) -> np.ndarray:
        position = np.searchsorted(whole.calendar, day, side="right") - 1
        return factor[np.maximum(whole.offset[stock] + position - whole.start[stock], begin[stock])]

    return _Growth(np.ones(whole.size), factor, until)
