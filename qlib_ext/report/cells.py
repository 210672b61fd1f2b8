"""Figures as text: which kind of figure a row and a column hold, and how such a figure is written."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd

NOTHING = "\N{EN DASH}"
FORMS = {"ic": "{:.4f}", "ratio": "{:.2f}", "percent": "{:.2%}", "fine": "{:.3%}", "times": "{:.2f}×",
         "exposure": "{:.3f}", "tiny": "{:.1e}",
         "other": "{:,.4g}"}
RULES = [
    ("count", r"days|names(, mean)?|count|n|pairs|rebalances|runs|rank|horizon|(status|relaxed|binding): .*"),
    ("ratio", r".*\bicir\b.*|.*rankicir.*|.*\bt|ir|ir .*|calmar.*|sharpe.*|.*ratio"),
    ("times", r".*turnover.* a year.*"),
    ("fine", r".*forward return.*"),
    ("tiny", r".*violation.*|.*\bgap\b.*"),
    ("percent", r".*(win rate|coverage|return|excess|long.short|volatility|drawdown|depth|cost|share|tracking.error|invested|deviation"
                r"|turnover|annualised|price_index|total_return|equal_weight|universe_equal|universe_cap"
                r"|benchmark).*|gross|net|sum|a year|q\d+"),
    ("ic", r".*\b(rank)?ic\b.*|rank_ic|exp\(.*|exp_rank.*|.*autocorrelation.*|best_possible_ic.*"),
    ("exposure", r"mean|std|top.*|mean z-score"),
]
ROWS = {"IR": "ratio", "Calmar": "ratio", "days": "count", "Days": "count"}
"""Rows that say what they hold whatever their column says."""


def kind_of(row: Any, column: Any, table: str = "") -> str:
    """The kind of figure in a cell, from its column or, where that says nothing (a run, a benchmark of a summary), its row."""
    if row in ROWS:
        return ROWS[row]
    if (table, column) == ("industry_exposure", "top group"):
        return "percent"
    if table in ("RankIC by month", "Excess by month"):                                          # columns are runs
        return "ic" if table.startswith("RankIC") else "percent"
    order = (row, column) if table in ("summary", "certificates", "key") else (column, row)
    return next((kind for name in order if (kind := _named(str(name)))), "other")


def _named(name: str) -> str:
    low = name.lower()
    return next((kind for kind, rule in RULES if re.fullmatch(rule, low)), "")


def cell(value: Any, kind: str) -> str:
    """A value as text: days as 2024-01-31, a missing one as a dash, minus signs true ones, no minus before a rounded zero."""
    if isinstance(value, str):
        return value
    if value is None or value is pd.NaT or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return NOTHING
    if isinstance(value, (pd.Timestamp, np.datetime64)):
        return f"{pd.Timestamp(value):%Y-%m-%d}"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if not isinstance(value, (int, float, np.integer, np.floating)):
        return str(value)
    if np.isinf(value):
        return "∞" if value > 0 else "\N{MINUS SIGN}∞"
    if kind == "count" or (kind == "other" and float(value).is_integer()):
        return signed(value, "{:,.0f}" if float(value).is_integer() else "{:,.1f}")
    return signed(value, FORMS[kind])


def signed(value: float, form: str) -> str:
    """A number in a format, with a true minus sign, and none before a rounded zero."""
    found = form.format(value)
    if found.startswith("-") and not re.search("[1-9]", found.split("e")[0]):
        found = found[1:]
    return found.replace("-", "\N{MINUS SIGN}")
