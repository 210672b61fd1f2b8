"""From daily intraday values to factors: means over days, and what is left of them beside size, industry and the like.

Axis letters: t day, n stock, k regressor. Every value of day t is made of days up to t, by sums over the window alone, so that it does
not depend on where the history begins or ends.
"""

from __future__ import annotations

import math
from typing import Mapping, NamedTuple, Optional

import numpy as np

from qlib_ext.data.columns import robust_moments
from qlib_ext.data.transform import cs_neutralize, cs_winsorize, cs_zscore
from qlib_ext.errors import ConfigError, ShapeError

VALID_SHARE = 0.6
"""Least share of a window's days that must be known."""
KNOWN_SHARE = 0.5
"""Least share of a day's stocks that must know a regressor: below, it is left out that day."""
REGRESSOR_DAYS = 20
REGRESSORS = ("ln_cap", "reversal", "turnover", "volatility", "ln_bp")


def days_mean(values: np.ndarray, days: int = 5, valid: float = VALID_SHARE) -> np.ndarray:
    """Mean of the known values of the last `days` trading days, today's among them: ``sum_known / count_known``.

    Args:
        values: ``[t, n]``, NaN unknown. days: length of the window. valid: share of its days that must be known.

    Returns:
        float64 ``[t, n]``; NaN with fewer than ``valid x days`` known ones, so also on the first days of all.

    Raises:
        ConfigError: `days` is no whole number from 1 on, or `valid` outside (0, 1]. ShapeError: not ``[t, n]``.

    Source: common rules of the ten high-frequency factors; the share of valid days is this project's choice.
    """
    total, count = _sums(_grid(values, "values"), days, valid)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count >= _least(days, valid), total / count, np.nan)


def days_deviation(values: np.ndarray, days: int = REGRESSOR_DAYS, valid: float = VALID_SHARE) -> np.ndarray:
    """Standard deviation (ddof 1) of the known values of the last `days` trading days; arguments and NaN as `days_mean`."""
    values = _grid(values, "values")
    mean = days_mean(values, days, valid)
    square, count = np.zeros(values.shape), np.zeros(values.shape)
    for back in range(min(days, len(values))):
        past = values[:len(values) - back] - mean[back:]
        known = np.isfinite(past)
        square[back:] += np.where(known, past, 0.0) ** 2
        count[back:] += known
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where((count >= _least(days, valid)) & (count > 1), np.sqrt(square / (count - 1)), np.nan)


def carried(values: np.ndarray) -> np.ndarray:
    """Each stock's last known value ``[t, n]``; NaN before its first one."""
    values = _grid(values, "values")
    place = np.maximum.accumulate(np.where(np.isfinite(values), np.arange(len(values))[:, None], 0), axis=0)
    return np.take_along_axis(values, place, axis=0)


def regressors(fields: Mapping[str, np.ndarray], days: int = REGRESSOR_DAYS) -> dict[str, np.ndarray]:
    """What factors are orthogonalised on beside industries, as far as the fields allow. This choice is the project's own.

        ln_cap     = ln(float_cap), else ln(total_cap)
        reversal   = close_t / close_{t-days} - 1, closes carried through suspensions
        turnover   = mean over `days` of volume x factor / float_shares, else of turnover (percent)
        volatility = standard deviation over `days` of the daily change
        ln_bp      = ln((equity - preferred_equity) / total_cap), unknown where equity is not above 0

    Args:
        fields: store fields by name, ``[t, n]``, NaN unknown; those that a regressor needs may lack.
        days: trading days of the windows.

    Returns:
        Name -> float64 ``[t, n]`` in the order of `REGRESSORS`, NaN unknown, without those whose fields lack.
    """
    have, found = set(fields), {}
    cap = next((name for name in ("float_cap", "total_cap") if name in have), None)
    if cap:
        found["ln_cap"] = _log(fields[cap])
    if "close" in have:
        close = carried(fields["close"])
        found["reversal"] = np.full(close.shape, np.nan)
        found["reversal"][days:] = close[days:] / close[:-days] - 1
    if {"volume", "factor", "float_shares"} <= have:
        with np.errstate(invalid="ignore", divide="ignore"):
            part = _grid(fields["volume"], "volume") * fields["factor"] / fields["float_shares"]
        found["turnover"] = days_mean(np.where(np.isfinite(part), part, np.nan), days)
    elif "turnover" in have:
        found["turnover"] = days_mean(fields["turnover"], days)
    if "change" in have:
        found["volatility"] = days_deviation(fields["change"], days)
    if {"equity", "total_cap"} <= have:
        preferred = np.nan_to_num(fields["preferred_equity"]) if "preferred_equity" in have else 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            found["ln_bp"] = _log((_grid(fields["equity"], "equity") - preferred) / fields["total_cap"])
    return found


class Orthogonal(NamedTuple):
    """`values` float64 ``[t, n]``; `days` on how many days with a value each regressor was used, by name (`industry` among them)."""

    values: np.ndarray
    days: dict[str, int]


def orthogonalise(values: np.ndarray, exposures: Mapping[str, np.ndarray], industry: Optional[np.ndarray] = None,
                  limit: float = 3.0) -> Orthogonal:
    """What is left of a factor beside industries and exposures, day by day on same-day data, as z-scores.

        w = clip(x, median +- limit 1.4826 MAD),   w = a_industry + sum_k b_k e_k + residual,   z = residual / std(residual)

    The exposures are clipped in the same way; what more than half of the stocks share (MAD 0) is not clipped. An exposure, or the
    industries, that fewer than half of the day's stocks with a factor know is left out that day; a stock that lacks one of the others
    is NaN, and so is one that alone makes its industry.

    Args:
        values: ``[t, n]``, NaN unknown. exposures: name -> ``[t, n]``, NaN unknown.
        industry: ``[t, n]`` numbers, NaN unknown; None: one constant for all.
        limit: of the winsorising, in robust standard deviations.

    Returns:
        `Orthogonal`; NaN where nothing can be compared: too few stocks for the coefficients, or nothing but rounding left.

    Raises:
        ShapeError: other shapes.
    """
    values = _grid(values, "values")
    for name, part in {**exposures, **({} if industry is None else {"industry": industry})}.items():
        if np.shape(part) != values.shape:
            raise ShapeError(f"{name} {np.shape(part)} and values {values.shape} must both be [t, n]")
    out, used = np.full(values.shape, np.nan), dict.fromkeys([*exposures, *(() if industry is None else ("industry",))], 0)
    for day in range(len(values)):
        stocks = np.flatnonzero(np.isfinite(values[day]))
        if len(stocks) < 2:
            continue
        parts = {name: np.asarray(part[day, stocks], np.float64) for name, part in exposures.items()}
        groups = None if industry is None else np.asarray(industry[day, stocks], np.float64)
        enough = {name for name, part in {**parts, **({} if groups is None else {"industry": groups})}.items()
                  if np.isfinite(part).mean() >= KNOWN_SHARE}
        out[day, stocks] = _residual(values[day, stocks], [part for name, part in parts.items() if name in enough],
                                     groups if "industry" in enough else None, limit)
        for name in enough if np.isfinite(out[day, stocks]).any() else ():
            used[name] += 1
    return Orthogonal(out, used)


def _residual(values: np.ndarray, parts: list[np.ndarray], industry: Optional[np.ndarray], limit: float) -> np.ndarray:
    """One day of `orthogonalise`, all ``[n]``."""
    day = np.zeros(len(values), np.int64)
    raw = np.column_stack([values, *parts])
    alike = robust_moments(raw, np.arange(len(raw)))[1] == 0
    table = cs_zscore(np.where(alike, raw, cs_winsorize(raw, day, "mad", limit)), day)
    flat = ~np.isfinite(table[:, 1:]).any(axis=0)                   # an exposure without spread explains nothing
    exposures, groups = table[:, 1:][:, ~flat], np.zeros(len(values), np.int64)
    if industry is not None:
        groups = np.where(np.isfinite(industry), np.nan_to_num(industry), -1).astype(np.int64)
    rest = cs_neutralize(table[:, 0], day, exposures, groups)
    place = np.unique(np.where(np.isfinite(rest), groups, -1), return_inverse=True)[1]
    rest[np.bincount(place)[place] < 2] = np.nan
    known = np.isfinite(rest)
    if not known.any() or not np.sqrt(np.mean(rest[known] ** 2)) > 1e-9:
        return np.full(len(values), np.nan)
    return cs_zscore(rest, day)


def _sums(values: np.ndarray, days: int, valid: float) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the known values of each window ``[t, n]``, each window added up on its own."""
    if type(days) is not int or days < 1:
        raise ConfigError(f"days={days!r} must be a whole number of trading days, at least 1")
    if not 0 < valid <= 1:
        raise ConfigError(f"valid={valid!r} must be a share of the days, above 0 and at most 1")
    total, count = np.zeros(values.shape), np.zeros(values.shape)
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    for back in range(min(days, len(values))):
        total[back:] += filled[:len(values) - back]
        count[back:] += known[:len(values) - back]
    return total, count


def _least(days: int, valid: float) -> int:
    return math.ceil(days * valid - 1e-9)


def _grid(values: np.ndarray, name: str) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim != 2:
        raise ShapeError(f"{name} {values.shape} must be [t, n]")
    return values


def _log(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(values > 0, np.log(values), np.nan)
