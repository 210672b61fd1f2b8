#!/usr/bin/env python
"""Stylised facts of one or more stores side by side: `python scripts/market_facts.py STORE [STORE ...]`.

A store without limit prices gets them from the exchanges' rules; turnover is volume over float shares, in percent, where the
store knows them, else its own field. A generated store is named as such, with its best possible IC. No Qlib session is started.
"""

import argparse
import sys
from datetime import date
from pathlib import Path
from typing import Dict, List

import numpy as np

from qlib_ext import market_rules
from qlib_ext.demo.build import best_ic_text, read_truth
from qlib_ext.errors import DataError, ExtError
from qlib_ext.report.market_facts import market_facts
from qlib_ext.store.metadata import read_metadata
from qlib_ext.store.reading import StoreFiles

FIELDS = ("close", "volume", "factor", "change", "turnover", "float_shares", "float_cap", "is_st", "limit_up", "limit_down")
LONG_AGO = 1000


def read_store(store: Path, start: str, end: str) -> Dict[str, np.ndarray]:
    """Arrays [t, n] of the stocks of a known board between two days, as `market_facts` takes them; prices raw, in CNY."""
    files = StoreFiles(store)
    chosen = (files.days >= np.datetime64(start)) & (files.days <= np.datetime64(end))
    board = market_rules.board_of(files.codes)
    codes = files.codes[board != ""]
    if not chosen.any() or not len(codes):
        raise DataError(f"store {store} has no stock or no day from {start} to {end}; it ends on {files.days[-1]}")
    whole = {name: files.panel(name, codes).T.astype(np.float64) for name in FIELDS}
    market = {name: values[chosen] for name, values in whole.items()}
    market["board"], market["returns"] = board[board != ""], market["change"]
    market["listed"] = files.membership("all", codes).T[chosen]
    if np.isfinite(market["float_shares"]).any():
        market["turnover"] = 100 * market["volume"] * market["factor"] / market["float_shares"]
    market["close"] = market["close"] / market["factor"]
    if np.isfinite(market["limit_up"]).any():
        limits = (market[name] / market["factor"] for name in ("limit_up", "limit_down"))
    else:
        first = np.isfinite(whole["close"]).argmax(axis=0)
        age = np.where(first == 0, LONG_AGO, np.arange(len(files.days))[:, None] - first)  # the first day of all is no listing
        known = market_rules.price_limits(market["board"], whole["is_st"], age, files.days[:, None])
        limits = (prices[chosen] for prices in market_rules.limit_prices(_reference(whole), *known))
    market["limit_up"], market["limit_down"] = limits
    return market


def _reference(whole: Dict[str, np.ndarray]) -> np.ndarray:
    """Last traded close before each day in the day's own price level (on an ex-day the ex-right price), CNY. [t, n]"""
    adjusted = whole["close"]
    place = np.where(np.isfinite(adjusted), np.arange(len(adjusted))[:, None], -1)
    place = np.vstack([np.full((1, place.shape[1]), -1), np.maximum.accumulate(place, axis=0)[:-1]])
    last = np.where(place >= 0, np.take_along_axis(adjusted, np.maximum(place, 0), axis=0), np.nan)
    return last / whole["factor"]


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


def day(text: str) -> str:
    """A day of the command line, YYYY-MM-DD."""
    return date.fromisoformat(text).isoformat()


def main(arguments: List[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", type=Path, metavar="STORE")
    parser.add_argument("--start", type=day, default="2018-01-01", help="first day (default: %(default)s)")
    parser.add_argument("--end", type=day, default="2024-12-31", help="last day (default: %(default)s)")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table")
    options = parser.parse_args(arguments)
    try:
        columns, notes = {}, []
        for store in options.stores:
            generated = (read_metadata(store) or {}).get("generated", False)
            name = f"{store}{' (generated)' if generated else ''}"
            truth = read_truth(store) if generated else None
            notes += [f"{name}: {best_ic_text(truth) if truth else 'best possible IC unknown'}"] * generated
            columns[name] = market_facts(read_store(store, options.start, options.end))
    except ExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join([*table(columns, options.markdown), *[""] * bool(notes), *notes]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
