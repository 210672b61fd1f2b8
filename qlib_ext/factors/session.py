"""The clock of a trading session: minutes 1 to 240, each the minute at the end of its bar; 0 is the opening auction."""

from __future__ import annotations

import polars as pl

SESSION = 240
OPENING, CLOSING = 0, 240
LAST_CONTINUOUS = 237
"""Last minute before the closing auction."""
_MORNING, _AFTERNOON = 1000 * (9 * 3600 + 30 * 60), 1000 * 13 * 3600


def session_minute(millisecond):
    """Minute of the session whose bar holds a time in milliseconds since midnight, of a whole number or of a polars expression.

    What is stamped before 09:30 is 0, 09:30:00.000 to 09:30:59.999 is 1; what is stamped 11:30 or in the break belongs to 120, what is
    stamped 15:00 or later to 240.
    """
    if isinstance(millisecond, pl.Expr):
        morning = ((millisecond - _MORNING) // 60_000 + 1).clip(1, 120)
        afternoon = ((millisecond - _AFTERNOON) // 60_000 + 121).clip(121, CLOSING)
        minute = pl.when(millisecond < _MORNING).then(OPENING).when(millisecond < _AFTERNOON).then(morning).otherwise(afternoon)
        return minute.cast(pl.Int16)
    if millisecond < _MORNING:
        return OPENING
    if millisecond < _AFTERNOON:
        return min((millisecond - _MORNING) // 60_000 + 1, 120)
    return min((millisecond - _AFTERNOON) // 60_000 + 121, CLOSING)


def bar_end(minute: pl.Expr, minutes: int) -> pl.Expr:
    """Minute at the end of the bar of `minutes` that holds a minute; 0 stays 0."""
    return ((minute + (minutes - 1)) // minutes * minutes).cast(pl.Int16)


def clock_time(minute: int) -> str:
    """``HH:MM`` of the end of a bar; the opening auction is 09:25."""
    if minute == OPENING:
        return "09:25"
    clock = 9 * 60 + 30 + minute if minute <= 120 else 13 * 60 + minute - 120
    return f"{clock // 60:02d}:{clock % 60:02d}"
