"""Stylised facts of a market from plain arrays: tails, clustering, dispersion, co-movement, turnover, limits, suspensions.

Axes: `t` trading day, `n` stock. NaN = absent (not listed, suspended, unknown) and is left out; a fact without data is NaN.
"""

from typing import Dict, Mapping, Tuple

import numpy as np

from qlib_ext.errors import DataError, ShapeError

TRADING_DAYS_A_YEAR = 252
MIN_DAYS = 250
"""Days a stock needs for facts that are taken per stock."""

LAGS = (1, 5, 20)


def standardise(returns: np.ndarray) -> np.ndarray:
    """Each stock's returns minus their mean, over their standard deviation (divided by n). [t, n]; short or constant: NaN."""
    returns = _matrix(returns)
    count = np.isfinite(returns).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = returns - np.nansum(returns, axis=0) / count
        deviation = np.sqrt(np.nansum(centred**2, axis=0) / count)
        return np.where((count >= MIN_DAYS) & (deviation > 0), centred / deviation, np.nan)


def tail_index(returns: np.ndarray, share: float = 0.05) -> float:
    """Hill estimate of the tail index of |returns|, standardised by stock and pooled: 1 / mean ln(x / threshold) of the top ones.

    Smaller is fatter: about 3 for daily stock returns, far above it for normal ones. Source: Hill 1975.
    """
    pooled = np.abs(standardise(returns))
    pooled = np.sort(pooled[np.isfinite(pooled)])
    top = int(share * pooled.size)
    return float(1.0 / np.log(pooled[-top:] / pooled[-top - 1]).mean()) if top else float("nan")


def excess_kurtosis(returns: np.ndarray) -> float:
    """Fourth moment of returns standardised by stock and pooled, minus 3 (0 for normal ones)."""
    pooled = standardise(returns)
    return _mean(pooled**4) - 3.0


def absolute_autocorrelation(returns: np.ndarray, lag: int) -> float:
    """Correlation of |return| with that of `lag` rows earlier, mean over stocks: how much volatility clusters."""
    size = np.abs(_matrix(returns))
    return _mean(_column_correlation(size[lag:], size[:-lag]))


def dispersion(returns: np.ndarray) -> float:
    """Standard deviation of returns across stocks (ddof 1), mean over days."""
    returns = _matrix(returns)
    count = np.isfinite(returns).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        centred = returns - (np.nansum(returns, axis=1) / count)[:, None]
        return _mean(np.where(count > 1, np.sqrt(np.nansum(centred**2, axis=1) / (count - 1)), np.nan))


def mean_pairwise_correlation(returns: np.ndarray) -> float:
    """Mean correlation of returns over all pairs of stocks, without forming the pairs.

    With z the returns standardised by stock, sum_{i != j} z_i z_j = (sum z)^2 - sum z^2 on every day; its sum over days, divided
    by the number of pairs present, is the mean of the off-diagonal correlations when no value is absent, and close to it else.
    """
    z = standardise(returns)
    count = np.isfinite(z).sum(axis=1)
    products = np.nansum(z, axis=1) ** 2 - np.nansum(z**2, axis=1)
    pairs = float((count * (count - 1)).sum())
    return float(products.sum()) / pairs if pairs else float("nan")


def volume_and_moves(returns: np.ndarray, volume: np.ndarray) -> float:
    """Correlation of |return| with the change of log volume since the row before, mean over stocks."""
    returns, volume = _matrix(returns), _matrix(volume)
    with np.errstate(invalid="ignore", divide="ignore"):
        change = np.diff(np.log(np.where(volume > 0, volume, np.nan)), axis=0)
    return _mean(_column_correlation(np.abs(returns[1:]), change))


def market_volatility(returns: np.ndarray) -> float:
    """Standard deviation of the equal-weighted mean return, a year's."""
    returns = _matrix(returns)
    days = returns[np.isfinite(returns).any(axis=1)]
    return float(np.nanmean(days, axis=1).std(ddof=1) * np.sqrt(TRADING_DAYS_A_YEAR)) if len(days) > 1 else float("nan")


def stock_volatility(returns: np.ndarray) -> np.ndarray:
    """Standard deviation of each stock's returns, a year's. [n]; NaN with fewer than `MIN_DAYS` returns."""
    returns = _matrix(returns)
    count = np.isfinite(returns).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.nansum((returns - np.nansum(returns, axis=0) / count) ** 2, axis=0) / (count - 1)
    return np.where(count >= MIN_DAYS, np.sqrt(variance * TRADING_DAYS_A_YEAR), np.nan)


def limit_hits(close: np.ndarray, limit_up: np.ndarray, limit_down: np.ndarray) -> Tuple[float, float]:
    """Share of stock-days that close at the upper and at the lower limit, of those that have a close and a limit.

    All three in one unit; equal within 2e-6 of the price, the rounding of stored prices.
    """
    close, limit_up, limit_down = _matrix(close), _matrix(limit_up), _matrix(limit_down)
    counted = np.isfinite(close) & np.isfinite(limit_up) & np.isfinite(limit_down)
    if not counted.any():
        return float("nan"), float("nan")
    up, down = (close >= limit_up * (1 - 2e-6)) & counted, (close <= limit_down * (1 + 2e-6)) & counted
    return float(up.sum() / counted.sum()), float(down.sum() / counted.sum())


def market_facts(market: Mapping[str, np.ndarray]) -> Dict[str, float]:
    """All facts of one market, name -> value; rates and volatilities as fractions, turnover as it comes.

    Args:
        market: [t, n] arrays `returns` (fraction since the last close traded), `close`, `limit_up`, `limit_down` (one unit),
            `volume`, `turnover`, `float_cap`, `is_st` (1, else), `listed` (bool), and `board` [n] (`market_rules.board_of`).
            Returns of days without a limit are left out of all facts on returns: first days of listing are another market.

    Raises:
        DataError: an array lacks. ShapeError: shapes differ.
    """
    _check(market)
    returns = np.where(np.isfinite(market["limit_up"]), market["returns"], np.nan)
    volatility = stock_volatility(returns)
    facts = {"tail index (Hill, top 5 %)": tail_index(returns), "excess kurtosis": excess_kurtosis(returns)}
    facts.update({f"autocorrelation of absolute returns, lag {lag}": absolute_autocorrelation(returns, lag) for lag in LAGS})
    facts["dispersion across stocks, a day"] = dispersion(returns)
    facts["mean pairwise correlation"] = mean_pairwise_correlation(returns)
    facts["volatility of the equal-weighted market, a year"] = market_volatility(returns)
    facts["volatility of the median stock, a year"] = _median(volatility)
    with np.errstate(invalid="ignore", divide="ignore"):
        size = np.log(_row_median(np.asarray(market["float_cap"], dtype=float)))
    facts["correlation of log cap and volatility"] = _mean(_column_correlation(size[:, None], volatility[:, None], 2))
    facts["turnover, mean"], facts["turnover, median"] = _mean(market["turnover"]), _median(market["turnover"])
    facts["correlation of absolute return and log volume change"] = volume_and_moves(returns, market["volume"])
    facts.update(_limit_facts(market))
    traded = np.isfinite(market["close"])
    listed = np.asarray(market["listed"], dtype=bool)
    facts["suspended stock-days"] = float((listed & ~traded).sum() / listed.sum()) if listed.any() else float("nan")
    return facts


def _limit_facts(market: Mapping[str, np.ndarray]) -> Dict[str, float]:
    """Limit-hit rates of all stocks, by board, and of ST stocks of the main board."""
    board = np.asarray(market["board"])
    is_st = np.asarray(market["is_st"], dtype=float) == 1
    groups = {"all": np.ones(is_st.shape, dtype=bool)}
    groups.update({name: (board == name) & ~is_st for name in ("main", "chinext", "star", "bse")})
    groups["main, ST"] = (board == "main") & is_st
    facts = {}
    for name, group in groups.items():
        close = np.where(group, market["close"], np.nan)
        up, down = limit_hits(close, market["limit_up"], market["limit_down"])
        facts[f"closes at the upper limit, {name}"], facts[f"closes at the lower limit, {name}"] = up, down
    return facts


def _check(market: Mapping[str, np.ndarray]) -> None:
    names = ("returns", "close", "limit_up", "limit_down", "volume", "turnover", "float_cap", "is_st", "listed")
    lacks = [name for name in names + ("board",) if name not in market]
    if lacks:
        raise DataError(f"market facts need {', '.join(lacks)} too")
    shapes = {name: np.shape(market[name]) for name in names}
    if len(set(shapes.values())) > 1 or len(shapes["returns"]) != 2 or np.shape(market["board"]) != shapes["returns"][1:]:
        raise ShapeError(f"market facts need [t, n] arrays of one shape and a board of each stock, got {shapes}")


def _matrix(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 2:
        raise ShapeError(f"days x stocks expected, got shape {values.shape}")
    return values


def _column_correlation(left: np.ndarray, right: np.ndarray, least: int = MIN_DAYS) -> np.ndarray:
    """Pearson correlation of two arrays by column over the rows both have. [n]; NaN with fewer than `least` rows."""
    known = np.isfinite(left) & np.isfinite(right)
    count = known.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (np.where(known, side, 0.0) for side in (left, right))
        left, right = (np.where(known, side - side.sum(axis=0) / count, 0.0) for side in (left, right))
        result = (left * right).sum(axis=0) / np.sqrt((left**2).sum(axis=0) * (right**2).sum(axis=0))
    return np.where(count >= least, result, np.nan)


def _row_median(values: np.ndarray) -> np.ndarray:
    """Median of each stock over its days. [n]; NaN for a stock without any."""
    some = np.isfinite(values).any(axis=0)
    return np.where(some, np.nanmedian(np.where(some, values, 0.0), axis=0), np.nan)


def _mean(values: np.ndarray) -> float:
    values = np.asarray(values, dtype=float)
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else float("nan")


def _median(values: np.ndarray) -> float:
    values = np.asarray(values, dtype=float)
    return float(np.median(values[np.isfinite(values)])) if np.isfinite(values).any() else float("nan")
