"""Calendar windows, compounding, annualisation and drawdowns of daily simple returns.

Days are trading days, datetime64[D], rising. A return dated t is earned from the trading day before t to t, so the returns of a
calendar week compound to its return from last trading day to last trading day. NaN returns are left out; a window without a known
return is NaN. Axis letters: t day, k series, w window.
"""

from __future__ import annotations

from typing import List, NamedTuple, Sequence, Union

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError, ShapeError

DAYS_A_YEAR = 252
WEEKS_A_YEAR = 52
PERIODS = ("week", "month", "year")
TO_DATE = {"Week": "week", "Month to date": "month", "Year to date": "year"}
DRAWDOWN_COLUMNS = ("start", "trough", "end", "depth", "days")


class Window(NamedTuple):
    """The days ``[start, stop)`` (places, not dates) of a calendar window, and what it is called."""

    label: str
    start: int
    stop: int


# ---- windows ------------------------------------------------------------------------------------------------------------------
def trading_days(days) -> np.ndarray:
    """`days` as datetime64[D] ``[t]``.

    Raises:
        DataError: no day, a missing one, or days that do not rise.
    """
    days = np.asarray(days, dtype="datetime64[D]")
    if days.ndim != 1 or not days.size or np.isnat(days).any() or (np.diff(days) <= np.timedelta64(0, "D")).any():
        raise DataError(f"days must be at least one date, each later than the one before; got {days.size} of shape {days.shape}")
    return days


def _period_numbers(days: np.ndarray, period: str) -> np.ndarray:
    """An integer per day that changes where a calendar period ends. Weeks are Monday to Sunday (1970-01-01 was a Thursday)."""
    if period == "week":
        return (days.astype(np.int64) + 3) // 7
    if period in PERIODS:
        return days.astype(f"datetime64[{period[0].upper()}]").astype(np.int64)
    raise ConfigError(f"period {period!r}: choose one of {list(PERIODS)}")


def calendar_windows(days, period: str) -> List[Window]:
    """All calendar weeks, months or years with a trading day, in order; the first and the last may be incomplete.

    Labels: ISO week ``2024-W05``, ``2024-02``, ``2024``.

    Raises:
        ConfigError: another period. DataError: see `trading_days`.
    """
    days = trading_days(days)
    number = _period_numbers(days, period)
    starts = np.flatnonzero(np.r_[True, number[1:] != number[:-1]])
    return [Window(_label(days[start], period), int(start), int(stop)) for start, stop in zip(starts, np.r_[starts[1:], days.size])]


def _label(day: np.datetime64, period: str) -> str:
    if period == "week":
        year, week, _ = day.item().isocalendar()
        return f"{year}-W{week:02d}"
    return str(day.astype(f"datetime64[{period[0].upper()}]"))


def broker_windows(days) -> List[Window]:
    """The rows of a broker's weekly as of the last day: Week, Month to date, Year to date, Since inception."""
    days = trading_days(days)
    last = [Window(name, calendar_windows(days, period)[-1].start, days.size) for name, period in TO_DATE.items()]
    return last + [Window("Since inception", 0, days.size)]


def week_ends(days) -> np.ndarray:
    """Bool ``[t]``: the next trading day lies in another calendar week; False on the last day, whose next day is not known."""
    days = trading_days(days)
    number = _period_numbers(days, "week")
    return np.r_[number[1:] != number[:-1], False]


def rebalance_days(days, rebalance: Union[str, int], first: int = 0) -> np.ndarray:
    """Bool ``[t]``: days whose scores make a portfolio: last trading days of weeks, or every n-th day from place `first` on.

    Raises:
        ConfigError: `rebalance` is neither "week" nor an integer above 0.
    """
    if rebalance == "week":
        return week_ends(days)
    if isinstance(rebalance, bool) or not isinstance(rebalance, (int, np.integer)) or rebalance < 1:
        raise ConfigError(f"rebalance {rebalance!r}: 'week' (last trading day of the week), or a number of trading days above 0")
    place = np.arange(len(days)) - first
    return (place >= 0) & (place % int(rebalance) == 0)


def window_dates(days, windows: Sequence[Window]) -> pd.DataFrame:
    """A row a window, named by its label: `first day`, `last day` (dates), `days` (how many trading days)."""
    days = trading_days(days)
    start, stop = (np.array([window[place] for window in windows], dtype=np.int64) for place in (1, 2))
    return pd.DataFrame({"first day": pd.DatetimeIndex(days[start]), "last day": pd.DatetimeIndex(days[stop - 1]), "days": stop - start},
                        index=pd.Index([window.label for window in windows], name="period"))


# ---- returns ------------------------------------------------------------------------------------------------------------------
def _returns(returns) -> np.ndarray:
    returns = np.asarray(returns, dtype=np.float64)
    if returns.ndim not in (1, 2):
        raise ShapeError(f"returns must be [t] or [t, k], got {returns.shape}")
    return returns


def _known(values) -> np.ndarray:
    """The values of one series that are not NaN."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ShapeError(f"a figure of one series needs [t], got {values.shape}")
    return values[~np.isnan(values)]


def _common(returns, benchmark) -> tuple:
    """Both as float64, NaN wherever one of them is."""
    returns, benchmark = _returns(returns), _returns(benchmark)
    if returns.shape != benchmark.shape:
        raise ShapeError(f"returns {returns.shape} and benchmark {benchmark.shape} must have one shape")
    unknown = np.isnan(returns) | np.isnan(benchmark)
    return np.where(unknown, np.nan, returns), np.where(unknown, np.nan, benchmark)


def wealth(returns) -> np.ndarray:
    """``cumprod(1 + r)`` ``[t]`` or ``[t, k]``, 1 before the first day; NaN days leave it where it is."""
    return np.cumprod(1 + np.nan_to_num(_returns(returns)), axis=0)


def period_returns(returns, windows: Sequence[Window]) -> np.ndarray:
    """Compounded return of each window, ``prod(1 + r) - 1`` over its known days.

    Args:
        returns: ``[t]`` or ``[t, k]``, fractions.

    Returns:
        ``[w]`` or ``[w, k]``; NaN where the window has no known day.
    """
    returns = _returns(returns)
    return np.array([np.where(np.isnan(part).all(axis=0), np.nan, np.nanprod(1 + part, axis=0) - 1)
                     for part in (returns[window.start:window.stop] for window in windows)]).reshape(len(windows), *returns.shape[1:])


def period_means(values, windows: Sequence[Window]) -> np.ndarray:
    """Mean of the known days of each window, ``[w]`` or ``[w, k]``; NaN where there is none."""
    values = _returns(values)
    parts = [values[window.start:window.stop] for window in windows]
    count = np.array([(~np.isnan(part)).sum(axis=0) for part in parts], dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return (np.array([np.nansum(part, axis=0) for part in parts]) / count).reshape(len(windows), *values.shape[1:])


def period_excess(returns, benchmark, windows: Sequence[Window]) -> np.ndarray:
    """Difference of the compounded returns of each window, ``prod(1 + r) - prod(1 + b)`` over the days known of both.

    Raises:
        ShapeError: other shapes.
    """
    returns, benchmark = _common(returns, benchmark)
    return period_returns(returns, windows) - period_returns(benchmark, windows)


def win_rate(values) -> float:
    """Share of the known values that are above 0; NaN without any."""
    known = _known(values)
    return float((known > 0).mean()) if known.size else float("nan")


# ---- a year -------------------------------------------------------------------------------------------------------------------
def annual_return(returns, periods_a_year: float = DAYS_A_YEAR) -> float:
    """``prod(1 + r) ** (periods_a_year / n) - 1`` over the n known periods; -1 where all is lost, NaN without any."""
    known = _known(returns)
    if not known.size:
        return float("nan")
    return float(max(np.prod(1 + known), 0.0) ** (periods_a_year / known.size) - 1)


def annual_excess(returns, benchmark, periods_a_year: float = DAYS_A_YEAR) -> float:
    """Growth a year of the ratio of the two net values (geometric), over the periods known of both; NaN without any.

    Raises:
        ShapeError: other shapes.
    """
    returns, benchmark = _common(returns, benchmark)
    with np.errstate(invalid="ignore", divide="ignore"):
        return annual_return((1 + returns) / (1 + benchmark) - 1, periods_a_year)


def annual_volatility(returns, periods_a_year: float = DAYS_A_YEAR) -> float:
    """Standard deviation (ddof 1) of the known periods times ``sqrt(periods_a_year)``; 0 for equal ones, NaN with fewer than two."""
    known = _known(returns)
    if known.size < 2:
        return float("nan")
    return float(known.std(ddof=1) * np.sqrt(periods_a_year)) if known.max() > known.min() else 0.0


# ---- drawdowns ----------------------------------------------------------------------------------------------------------------
def underwater(nav) -> np.ndarray:
    """Fall of a net value ``[t]`` from its highest so far, ``nav / max(1, running maximum) - 1``: it starts from 1 before day one."""
    nav = np.asarray(nav, dtype=np.float64)
    return nav / np.maximum(np.maximum.accumulate(nav), 1.0) - 1 if nav.size else nav


def drawdowns(nav: pd.Series, count: int = 5) -> pd.DataFrame:
    """The deepest falls of a net value, the deepest first.

    Args:
        nav: by day, no NaN; 1 before its first day (`wealth`).
        count: rows at most.

    Returns:
        Index `rank` from 1 on; `start` (day of the high it fell from; the first day where it fell from the 1 before it), `trough`,
        `end` (first day back at that high; NaT: not yet), `depth` (below 0, a fraction of the high), `days` (trading days from the
        high to the end, or to the last day). Empty where it never fell.

    Raises:
        DataError: NaN, or days that do not rise.
    """
    days, value = trading_days(nav.index), nav.to_numpy(dtype=np.float64)
    if np.isnan(value).any():
        raise DataError(f"drawdowns: net value is NaN on {int(np.isnan(value).sum())} days: fill or drop them first")
    fall = underwater(value)
    below = np.r_[False, fall < 0, False]
    starts = np.flatnonzero(below[1:] & ~below[:-1])                         # first day below the high
    ends = np.flatnonzero(~below[1:] & below[:-1])                           # first day back at it; t if there is none
    rows = []
    for start, end in zip(starts, ends):
        trough = start + int(fall[start:end].argmin())
        back = end < days.size
        rows.append((days[max(start - 1, 0)], days[trough], days[end] if back else np.datetime64("NaT", "D"), fall[trough],
                     min(end, days.size - 1) - start + 1))
    rows = sorted(rows, key=lambda row: row[3])[:count]
    frame = pd.DataFrame(rows, columns=list(DRAWDOWN_COLUMNS), index=pd.RangeIndex(1, len(rows) + 1, name="rank"))
    types = {name: "datetime64[s]" for name in DRAWDOWN_COLUMNS[:3]}
    return frame.astype({**types, "depth": np.float64, "days": np.int64})
