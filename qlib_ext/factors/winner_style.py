"""The style of recent winners: which exposures the best (and the worst) stocks of the last days had before they moved.

For each window w, with S the exposures and U the stocks that count on day t:

    R_i = close_{i,t} / close_{i,t-w} - 1
    E_i = (S_{i,t-w} - mean_U S) / std_U S                       per factor, equal weights, ddof 0
    winner_mean = mean of E over the ceil(q |U|) highest R       loser_mean = the same over the lowest R
    winner_std = std of E over the winners, ddof 0

U holds the stocks that are eligible on t, had a close by t-w and an exposure on t-w, traded on at least 0.8 w of the w days up to
t, and did not close at a price limit on every day they traded. A suspended stock keeps its last close: R is what a holder earned.
Stocks that tie at the border of a group share the places that are left in it evenly, so that the order of stocks means nothing.
Exposures are those from before the window: later ones already contain the move. Our choice; the broker's report leaves it open.
"""

from __future__ import annotations

from typing import List, Sequence

import numpy as np

from qlib_ext.errors import ConfigError, ShapeError

WINDOWS = (5, 10, 20, 60)
"""Look-back lengths in trading days."""
STATISTICS = ("winner_mean", "loser_mean", "winner_std")
MIN_STOCKS = 20
"""With fewer stocks in U a row is NaN; with fewer that have a factor, that factor is."""
TRADED_SHARE = 0.8
_TINY = 1e-12  # a spread this small beside the mean is rounding


def winner_style_names(factors: Sequence[str], windows: Sequence[int] = WINDOWS,
                       statistics: Sequence[str] = STATISTICS) -> List[str]:
    """Names of the columns, `winner_mean_5:beta`: window by window, then statistic, then factor.

    Raises:
        ConfigError: no window, one that is no whole number from 1 on, an unknown statistic, or something twice.
    """
    windows, statistics = list(windows), list(statistics)
    if not windows or any(isinstance(w, bool) or not isinstance(w, (int, np.integer)) or w < 1 for w in windows):
        raise ConfigError(f"winner style: windows must be whole numbers of trading days from 1 on, got {windows}")
    if not statistics or not set(statistics) <= set(STATISTICS):
        raise ConfigError(f"winner style: statistics must be some of {list(STATISTICS)}, got {statistics}")
    for given in (windows, statistics, list(factors)):
        if len(set(given)) < len(given):
            raise ConfigError(f"winner style: {given} names something twice")
    return [f"{statistic}_{window}:{factor}" for window in windows for statistic in statistics for factor in factors]


def check_quantile(quantile: float) -> float:
    """The share of stocks in a group as a float.

    Raises:
        ConfigError: it does not lie in (0, 0.5].
    """
    if isinstance(quantile, bool) or not isinstance(quantile, (int, float, np.number)) or not 0 < quantile <= 0.5:
        raise ConfigError(f"winner style: quantile must lie above 0 and at most at 0.5, got {quantile!r}")
    return float(quantile)


def winner_style(close: np.ndarray, exposure: np.ndarray, eligible: np.ndarray, locked: np.ndarray | None = None,
                 windows: Sequence[int] = WINDOWS, statistics: Sequence[str] = STATISTICS, quantile: float = 0.1) -> np.ndarray:
    """The columns of every day.

    Args:
        close: `[t, n]` adjusted closes on consecutive trading days; NaN (or not above zero) when not traded.
        exposure: `[t, n, k]` style exposures as known at the close; NaN unknown.
        eligible: `[t, n]` bool, by what is known on the day.
        locked: `[t, n]` bool, closed at a price limit; None = never.
        windows, statistics: those wanted, in their order.
        quantile: share q of U in a group.

    Returns:
        float64 `[t, len(windows) * len(statistics) * k]` in the order of `winner_style_names`, in standard deviations. NaN in the
        first w days, on days with fewer than 20 stocks in U, and for a factor that fewer than 20 of them have, or have all alike.
        Row t uses rows t-w to t only, and the last closes before them.

    Raises:
        ConfigError: as `winner_style_names`; quantile outside (0, 0.5]. ShapeError: arrays that do not fit each other.
    """
    winner_style_names((), windows, statistics)
    quantile = check_quantile(quantile)
    close, exposure, eligible = np.asarray(close, np.float64), np.asarray(exposure), np.asarray(eligible, bool)
    locked = np.zeros(close.shape, bool) if locked is None else np.asarray(locked, bool)
    if close.ndim != 2 or exposure.ndim != 3 or {exposure.shape[:2], eligible.shape, locked.shape} != {close.shape}:
        raise ShapeError(f"close {close.shape}, exposure {exposure.shape}, eligible {eligible.shape}, locked {locked.shape}: "
                         "need [t, n], [t, n, k], [t, n], [t, n]")
    with np.errstate(invalid="ignore"):
        traded = (close > 0) & np.isfinite(close)
    last, traded_days, free_days = _carried(close, traded), _counts(traded), _counts(traded & ~locked)
    known = np.array([np.isfinite(day).any(axis=1) for day in exposure]).reshape(close.shape)
    result = np.full((len(close), len(windows), len(statistics), exposure.shape[2]), np.nan)
    for place, window in enumerate(windows):
        needed = int(np.ceil(TRADED_SHARE * window - 1e-9))
        for day in range(window, len(close)):
            start, before = day - window, day + 1 - window
            inside = (eligible[day] & known[start] & (traded_days[day + 1] - traded_days[before] >= needed)
                      & (free_days[day + 1] > free_days[before]) & (last[start] > 0))
            rows = np.flatnonzero(inside)
            if len(rows) >= MIN_STOCKS:
                returns = last[day].take(rows) / last[start].take(rows) - 1
                result[day, place] = _statistics(returns, exposure[start].take(rows, axis=0), statistics, quantile)
    return result.reshape(len(close), len(windows) * len(statistics) * exposure.shape[2])


def _carried(close: np.ndarray, traded: np.ndarray) -> np.ndarray:
    """The last close at or before each day, NaN before the first one."""
    if not close.size:
        return close
    day = np.where(traded, np.arange(len(close), dtype=np.int32)[:, None], np.int32(0))
    carried = np.take_along_axis(close, np.maximum.accumulate(day, axis=0), axis=0)
    return np.where(np.logical_or.accumulate(traded, axis=0), carried, np.nan)


def _counts(flags: np.ndarray) -> np.ndarray:
    """`[t+1, n]`: in row t how many of the rows before t are set."""
    counts = np.zeros((len(flags) + 1, flags.shape[1]), np.int32)
    np.cumsum(flags, axis=0, out=counts[1:])
    return counts


def _statistics(returns: np.ndarray, exposure: np.ndarray, statistics: Sequence[str], quantile: float) -> np.ndarray:
    """`[s, k]` of one day's stocks `returns [u]`, `exposure [u, k]`; rows lie along the last axis, where sums are fast."""
    values = np.ascontiguousarray(exposure.T, dtype=np.float64)
    known = np.isfinite(values)
    count = known.sum(axis=1)
    values[~known] = 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = values.sum(axis=1) / count
        values -= mean[:, None]
        values[~known] = 0.0
        scale = np.sqrt(np.einsum("ku,ku->k", values, values) / count)
        scale[~(scale > _TINY * np.abs(mean)) | (count < MIN_STOCKS)] = np.nan
        size, found = int(np.ceil(quantile * len(returns) - 1e-9)), {}
        for side in {name.split("_")[0] for name in statistics}:
            weight = _shares(returns if side == "winner" else -returns, size)
            group = np.flatnonzero(weight)
            weights = weight[group] * known[:, group]
            inside, total = values[:, group], weights.sum(axis=1)
            average = (weights * inside).sum(axis=1) / total
            found[f"{side}_mean"] = average / scale
            found[f"{side}_std"] = np.sqrt((weights * (inside - average[:, None]) ** 2).sum(axis=1) / total) / scale
    return np.array([found[name] for name in statistics])


def _shares(returns: np.ndarray, size: int) -> np.ndarray:
    """Weights `[u]` of a group of the `size` highest returns: 1 inside, at the border an even share of what is left."""
    border = np.partition(returns, len(returns) - size)[len(returns) - size]
    above, tied = returns > border, returns == border
    return above + tied * ((size - np.count_nonzero(above)) / np.count_nonzero(tied))
