#!/usr/bin/env python
"""Stylised facts of one or more stores side by side: `python scripts/market_facts.py STORE [STORE ...]`.

A store without limit prices gets them from the exchanges' rules; turnover is volume over float shares, in percent, where the
store knows them, else its own field. Stocks of `instruments/all.txt`; no Qlib session is started.
"""

import argparse
import sys
from pathlib import Path
from typing import Dict, List

import numpy as np

from qlib_ext import market_rules
from qlib_ext.errors import DataError, ExtError
from qlib_ext.report.market_facts import market_facts
from qlib_ext.store.metadata import check_store, read_metadata

FIELDS = ("close", "volume", "factor", "change", "turnover", "float_shares", "float_cap", "is_st", "limit_up", "limit_down")
LONG_AGO = 1000


def read_store(store: Path, start: str, end: str) -> Dict[str, np.ndarray]:
    """Arrays [t, n] of a store's stocks between two days, in the units of `market_facts`; prices raw, in CNY."""
    calendar = np.loadtxt(check_store(store) / "calendars" / "day.txt", dtype="datetime64[D]")
    first, last = np.searchsorted(calendar, np.datetime64(start)), np.searchsorted(calendar, np.datetime64(end), side="right")
    spans = [line.split("\t") for line in (store / "instruments" / "all.txt").read_text().splitlines() if line]
    spans = [span for span in spans if market_rules.kind_of(span[0]) == "stock"]
    if first >= last or not spans:
        raise DataError(f"store {store} has no stock or no day from {start} to {end} (it has {calendar[0]} .. {calendar[-1]})")
    days, codes = calendar[first:last], [span[0] for span in spans]
    market = {name: np.column_stack([_field(store, code, name, first, last) for code in codes]) for name in FIELDS}
    begins, ends = (np.array([span[part] for span in spans], dtype="datetime64[D]") for part in (1, 2))
    market["listed"] = (days[:, None] >= begins) & (days[:, None] <= ends)
    market["returns"], market["board"] = market["change"], market_rules.board_of(codes)
    known = np.isfinite(market["float_shares"]).any()
    if known:
        market["turnover"] = 100 * market["volume"] * market["factor"] / market["float_shares"]
    market["close"] = market["close"] / market["factor"]
    if np.isfinite(market["limit_up"]).any():
        market["limit_up"], market["limit_down"] = (market[name] / market["factor"] for name in ("limit_up", "limit_down"))
    else:
        age = np.maximum(np.searchsorted(calendar, days)[:, None] - np.searchsorted(calendar, begins), 0)
        age = np.where(begins == begins.min(), LONG_AGO, age)  # bars that begin with the store say nothing of the listing
        limits = market_rules.price_limits(market["board"], market["is_st"], age, days[:, None])
        market["limit_up"], market["limit_down"] = market_rules.limit_prices(_reference(market), *limits)
    return market


def _field(store: Path, code: str, name: str, first: int, last: int) -> np.ndarray:
    """One field of one stock on the calendar's days first .. last - 1; NaN where the store has none. [t]"""
    result, file = np.full(last - first, np.nan), store / "features" / code.lower() / f"{name}.day.bin"
    if file.is_file():
        values = np.fromfile(file, dtype="<f4")
        begin, values = int(values[0]), values[1:]
        low, high = max(first, begin), min(last, begin + len(values))
        if low < high:
            result[low - first:high - first] = values[low - begin:high - begin]
    return result


def _reference(market: Dict[str, np.ndarray]) -> np.ndarray:
    """Last traded close before each day in the day's own price level (on an ex-day the ex-right price), CNY. [t, n]"""
    adjusted = market["close"] * market["factor"]
    place = np.where(np.isfinite(adjusted), np.arange(len(adjusted))[:, None], -1)
    place = np.vstack([np.full((1, place.shape[1]), -1), np.maximum.accumulate(place, axis=0)[:-1]])
    last = np.where(place >= 0, np.take_along_axis(adjusted, np.maximum(place, 0), axis=0), np.nan)
    return last / market["factor"]


def table(columns: Dict[str, Dict[str, float]], markdown: bool) -> List[str]:
    """A line per fact, a column per store; numbers with four significant digits, - for what a store cannot tell."""
    names = list(next(iter(columns.values())))
    rows = [["fact"] + list(columns)]
    rows += [[name] + [f"{facts[name]:.4g}" if np.isfinite(facts[name]) else "-" for facts in columns.values()] for name in names]
    if markdown:
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return [lines[0], "|---" + "|---:" * len(columns) + "|"] + lines[1:]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [row[0].ljust(widths[0]) + "".join(cell.rjust(width + 2) for cell, width in zip(row[1:], widths[1:])) for row in rows]


def main(arguments: List[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE")
    parser.add_argument("--start", default="2018-01-01", help="first day (default: %(default)s)")
    parser.add_argument("--end", default="2024-12-31", help="last day (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args(arguments)
    try:
        columns = {}
        for store in options.stores:
            generated = (read_metadata(store) or {}).get("generated", False)
            name = f"{store}{' (generated)' if generated else ''}"
            columns[name] = market_facts(read_store(store, options.start, options.end))
    except ExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(table(columns, options.markdown)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
