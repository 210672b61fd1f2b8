"""Segments on the trading calendar, and the embargo that a label's reach into the future demands."""

from __future__ import annotations

import numpy as np
import pandas as pd
from qlib.data.base import Expression
from qlib.data.data import ExpressionD
from qlib.data.ops import Ref, Rolling

from qlib_ext.errors import ConfigError

FITTED = ("train", "valid")
SPARE_DAYS = 10
"""Trading days that may be missing at an end of a segment before it is an error: nobody may have traded."""


def label_offset(expressions: list[str], kind: str = "label") -> int:
    """The furthest trading day after t that any of the Qlib expressions looks at; 6 for ``Ref($close,-6)/Ref($close,-1)-1``.

    Raises:
        ConfigError: an expression Qlib cannot parse, or one whose look ahead Qlib does not count (``Delta($close, -5)``).
    """
    offsets = []
    for expression in expressions:
        try:
            parsed = ExpressionD.get_expression_instance(str(expression))
            offsets.append(int(parsed.get_extended_window_size()[1]))
        except Exception as error:
            raise ConfigError(f"{kind} expression {expression!r} cannot be parsed by Qlib: {error}") from error
        if _looks_ahead_uncounted(parsed):
            raise ConfigError(f"{kind} expression {expression!r} has a window of negative length, whose look ahead Qlib does not count: "
                              "write it with Ref(..., -n)")
    return max(offsets)


def _looks_ahead_uncounted(expression: Expression) -> bool:
    """Whether a rolling operator other than Ref has a negative window anywhere in the expression."""
    if isinstance(expression, Rolling) and not isinstance(expression, Ref) and expression.N < 0:
        return True
    return any(_looks_ahead_uncounted(part) for part in vars(expression).values() if isinstance(part, Expression))


def segment_positions(segments: dict, calendar: np.ndarray) -> dict[str, tuple[int, int]]:
    """First and last position of every segment on the calendar ``[c]`` datetime64[D].

    Args:
        segments: name -> (start, end), both inclusive; None means the calendar's own end.

    Raises:
        ConfigError: not a pair of dates, start after end, no trading day inside, or two segments that share days.
    """
    found: dict[str, tuple[int, int]] = {}
    for name, pair in segments.items():
        if isinstance(pair, slice):
            pair = (pair.start, pair.stop)
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ConfigError(f"segment {name!r} is {pair!r}: give [start, end]")
        try:
            start, end = (edge if date is None else _day(date) for date, edge in zip(pair, (calendar[0], calendar[-1])))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"segment {name!r} is {pair!r}: not dates ({error})") from error
        first, last = int(np.searchsorted(calendar, start)), int(np.searchsorted(calendar, end, side="right")) - 1
        if start > end or first > last:
            raise ConfigError(f"segment {name!r} [{pair[0]}, {pair[1]}] is empty: the store's calendar runs from {calendar[0]} to "
                              f"{calendar[-1]}")
        found[name] = (first, last)
    ordered = sorted(found.items(), key=lambda item: item[1])
    for (name, (_, last)), (following, (first, _)) in zip(ordered, ordered[1:]):
        if last >= first:
            raise ConfigError(f"segments {name!r} and {following!r} overlap from {calendar[first]} to "
                              f"{calendar[min(last, found[following][1])]}: each day belongs to one segment")
    return found


def _day(value) -> np.datetime64:
    """A date as datetime64[D]; raises ValueError or TypeError for what is none (a bare number counts nanoseconds to pandas)."""
    if isinstance(value, (bool, int, float)):
        raise TypeError(f"{value!r} is a number; write it as 2018-01-31")
    day = pd.Timestamp(value).to_datetime64().astype("datetime64[D]")
    if np.isnat(day):
        raise ValueError(f"{value!r} is empty")
    return day


def is_embargo(embargo) -> bool:
    """Whether an option is ``auto`` or a number of trading days."""
    return embargo == "auto" or type(embargo) is int and embargo >= 0


def embargo_days(embargo: str | int, needed: int | None, handler, owner: str) -> int:
    """Trading days between a label's day and the last close it needs: ``auto`` is what the label says, a number may only be larger.

    Args:
        needed: the label's look ahead; None where the handler's label cannot be read.
        handler, owner: named in errors: whose label, and who takes ``embargo``.

    Raises:
        ConfigError: it is unknown, or shorter than the look ahead.
    """
    if embargo == "auto":
        if needed is None:
            raise ConfigError(f"the label expression of {type(handler).__name__} cannot be read: give {owner} `embargo: <trading days>`")
        return needed
    if needed is not None and embargo < needed:
        raise ConfigError(f"embargo={embargo} is shorter than the label's look ahead of {needed} trading days: that is a leak")
    return embargo


def trim_segments(positions: dict[str, tuple[int, int]], offset: int, calendar: np.ndarray) -> dict[str, tuple[int, int]]:
    """End ``train`` and ``valid`` early enough that no label in them sees a day of the segment that follows.

    A label of day t looks at the close of t + offset, which must come before the next segment's first day.

    Raises:
        ConfigError: nothing is left of a segment, or its labels reach past the end of the calendar.
    """
    trimmed = dict(positions)
    for name in FITTED:
        if name not in positions:
            continue
        first, last = positions[name]
        starts = [start for start, _ in positions.values() if start > last]
        if starts:
            last = min(last, min(starts) - 1 - offset)
        if last < first:
            raise ConfigError(f"segment {name!r} has {positions[name][1] - first + 1} trading days, the embargo of {offset} leaves none: "
                              "make it longer")
        if last + offset >= len(calendar):
            reach = len(calendar) - 1 - offset
            raise ConfigError(f"labels of segment {name!r} reach {offset} trading days past {calendar[last]}, but the data end on "
                              f"{calendar[-1]}: end it on {calendar[max(reach, 0)]} or before")
        trimmed[name] = (first, last)
    return trimmed
