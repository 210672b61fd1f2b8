"""Covariance of factor returns and variances of specific returns, exponentially weighted, per day.

Units: variances of daily returns (fractions, squared), for a horizon of several days where serial correlation is corrected for: the
variance of a sum of days over their number. Means are taken as 0. Source: Menchero, Orr and Wang 2011 (Barra USE4 methodology). The
defaults were chosen on forecasts of five days in 2019 (CSI1000), starting from theirs (84, 504, 5 and 2 lags).
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass, fields
from typing import Callable, Iterator, Mapping

import numpy as np

from qlib_ext.errors import ConfigError
from qlib_ext.risk.regression import explain, fit
from qlib_ext.risk.weighted import enough, known, weighted_sum

FLOOR = 0.25
"""Least share of the plain variance that the correction for serial correlation may leave."""


@dataclass(frozen=True)
class CovarianceOptions:
    """How risk is forecast.

    Args:
        volatility_half_life, correlation_half_life: of the factors' variances and correlations, in days.
        volatility_lags, correlation_lags: days of serial correlation (Newey-West, weights 1 - lag / (lags + 1)); 0 for none.
        eigen_simulations: simulations of the eigenvalue adjustment (Menchero, Wang and Orr 2011), 0 for none; `eigen_scale` widens it.
        regime_half_life: of the volatility-regime adjustment (the level follows how large recent standardised returns were), None
            for none.
        specific_window, specific_half_life, specific_lags: of specific variances, in days.
        specific_shrinkage: pull of each specific volatility towards the mean of its size decile, 0 for none.
        least: days a factor or a stock must have before its own history counts.
        seed: of the simulations.

    Raises:
        ConfigError: a value out of range.
    """

    volatility_half_life: float = 42.0
    correlation_half_life: float = 252.0
    volatility_lags: int = 0
    correlation_lags: int = 0
    eigen_simulations: int = 0
    eigen_scale: float = 1.4
    regime_half_life: float | None = 42.0
    specific_window: int = 252
    specific_half_life: float = 84.0
    specific_lags: int = 0
    specific_shrinkage: float = 0.1
    least: int = 42
    seed: int = 0

    def __post_init__(self):
        for one in fields(self):
            value, whole = getattr(self, one.name), isinstance(one.default, int)
            if value is None and one.name == "regime_half_life":
                continue
            positive = one.name.endswith(("half_life", "window", "least", "scale"))
            kind = numbers.Integral if whole else numbers.Real
            if isinstance(value, bool) or not isinstance(value, kind) or not 0 <= value < np.inf or (positive and not value > 0):
                raise ConfigError(f"covariance option {one.name}={value!r} must be a {'whole ' if whole else ''}number "
                                  f"{'above 0' if positive else 'from 0 on'}")


class FactorCovariance:
    """Covariances of factor returns as known at the close of each day.

    Args:
        returns: ``[t, k]`` factor returns from the first day on, NaN unknown (pairs of factors count on the days that both have).
        options: see `CovarianceOptions`.

    Attributes:
        variance: ``[t, k]`` forecasts before the regime adjustment; NaN before `least` days.
        regime: ``[t]`` squared multiplier of the regime adjustment, 1 where it is off.
    """

    def __init__(self, returns: np.ndarray, options: CovarianceOptions = CovarianceOptions()):
        self.options, self.returns = options, np.asarray(returns, np.float64)
        x, mask = known(self.returns)
        self._x, self._mask = x, mask
        decay = 0.5 ** (1 / options.volatility_half_life)
        variance = _corrected(x, mask, options.volatility_lags, lambda values: _decayed(values, decay))
        self.variance = np.where(mask.cumsum(axis=0) >= options.least, variance, np.nan)
        self.regime = self._regime()

    def _regime(self) -> np.ndarray:
        """Weighted mean over the past of the mean squared standardised return, each with the variance forecast the day before."""
        level = np.ones(len(self._x))
        if self.options.regime_half_life is None or len(level) < 2:
            return level
        daily, there = np.zeros(len(level)), np.zeros(len(level))
        for t in range(1, len(level)):                              # row by row: factors of other days do not change a sum
            squared = self.returns[t] ** 2 / self.variance[t - 1]
            squared = squared[np.isfinite(squared)]
            if len(squared):
                daily[t], there[t] = squared.mean(), 1.0
        decay = 0.5 ** (1 / self.options.regime_half_life)
        weight = _decayed(there, decay)
        return np.where(weight > 0, _decayed(daily, decay) / np.where(weight > 0, weight, 1.0), 1.0)

    def forecasts(self, wanted: Mapping[int, np.ndarray]) -> Iterator[tuple[int, np.ndarray | None]]:
        """(row, forecast ``[k', k']`` at the close of the day for some factors), in order of days.

        Args:
            wanted: row -> positions of the factors. A factor of fewer than `least` days has the median variance of the others and no
                correlation; None comes for a day on which no factor has a history.
        """
        lags, decay = [(0, 1.0), *_bartlett(self.options.correlation_lags)], 0.5 ** (1 / self.options.correlation_half_life)
        size = self._x.shape[1]
        total, weight = np.zeros((len(lags), size, size)), np.zeros((len(lags), size, size))
        for t in range(max(wanted, default=-1) + 1):
            total *= decay
            weight *= decay
            for place, (lag, _) in enumerate(lags):
                if lag <= t:
                    total[place] += self._x[t][:, None] * self._x[t - lag]
                    weight[place] += self._mask[t][:, None] * self._mask[t - lag]
            if t in wanted:
                chosen = np.ix_(range(len(lags)), wanted[t], wanted[t])
                mean = np.nan_to_num(_ratio(total[chosen], weight[chosen]))
                mixed = mean[0].copy()
                for part, (_, share) in zip(mean[1:], lags[1:]):
                    mixed += share * (part + part.T)
                yield t, self._forecast(t, wanted[t], mixed, mean[0])

    def _forecast(self, row: int, factors: np.ndarray, mixed: np.ndarray, plain: np.ndarray) -> np.ndarray | None:
        variance = self.variance[row][factors]
        young = ~np.isfinite(variance)
        if young.all():
            return None
        variance = np.where(young, np.median(variance[~young]), variance)
        correlation = nearest_correlation(mixed, plain, young)
        matrix = correlation * np.sqrt(np.outer(variance, variance))
        if self.options.eigen_simulations:
            matrix = eigen_adjusted(matrix, self._effective_days(row), self.options, self.options.seed + row)
        return matrix * self.regime[row]

    def _effective_days(self, row: int) -> float:
        decay = 0.5 ** (1 / self.options.correlation_half_life)
        return float(_decayed(np.ones(row + 1), decay)[-1] ** 2 / _decayed(np.ones(row + 1), decay**2)[-1])


def nearest_correlation(covariance: np.ndarray, plain: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """The correlations of a covariance whose eigenvalues need not be positive: those that are not are lifted, the diagonal is 1.

    Args:
        covariance: ``[k, k]``. plain: ``[k, k]`` without serial correlation, whose diagonal limits the other's from below.
        apart: bool ``[k]``, factors to leave uncorrelated.
    """
    size = np.sqrt(np.maximum(np.diag(covariance), FLOOR * np.diag(plain)))
    matrix = covariance / np.where(np.outer(size, size) > 0, np.outer(size, size), 1.0)
    matrix[apart] = 0.0
    matrix[:, apart] = 0.0
    np.fill_diagonal(matrix, 1.0)
    value, vector = np.linalg.eigh(matrix)
    matrix = (vector * np.maximum(value, 1e-6)) @ vector.T
    size = np.sqrt(np.diag(matrix))
    matrix = matrix / np.outer(size, size)
    return (matrix + matrix.T) / 2


def eigen_adjusted(covariance: np.ndarray, days: float, options: CovarianceOptions, seed: int) -> np.ndarray:
    """A covariance whose small eigenvalues are raised by the bias that sample eigenvalues have, found by simulation.

    Samples of as many days as the weights amount to are drawn from the matrix itself; v_k^2 is the mean ratio of the true to the
    estimated variance of the k-th sample eigenvector, and the k-th eigenvalue is multiplied by (scale (v_k - 1) + 1)^2.
    Source: Menchero, Wang and Orr 2011 (Improving risk forecasts for optimized portfolios).
    """
    value, vector = np.linalg.eigh(covariance)
    value = np.maximum(value, 1e-12 * value[-1])
    size, count = len(value), max(int(round(days)), len(value) + 2)
    draw = np.random.default_rng(seed)
    lower = np.tril(draw.standard_normal((options.eigen_simulations, size, size)), -1)      # Bartlett: a Wishart draw is L L'
    degrees = np.arange(count, count - size, -1)
    lower[:, np.arange(size), np.arange(size)] = np.sqrt(draw.chisquare(degrees, (options.eigen_simulations, size)))
    lower *= np.sqrt(value / count)[:, None]
    estimated, turned = np.linalg.eigh(lower @ lower.transpose(0, 2, 1))
    true = np.einsum("mik,i,mik->mk", turned, value, turned)
    bias = np.sqrt((true / np.maximum(estimated, 1e-12 * value[-1])).mean(axis=0))
    adjusted = value * (options.eigen_scale * (bias - 1) + 1) ** 2
    matrix = (vector * adjusted) @ vector.T
    return (matrix + matrix.T) / 2


def specific_variances(residual: np.ndarray, options: CovarianceOptions, origin: int = 0, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Weighted variances of specific returns over the window that ends at each day from `first` on.

    Args:
        residual: ``[t, n]`` specific returns, NaN unknown. origin: place of the first row on the calendar.

    Returns:
        variance ``[t - first, n]``, NaN where fewer than `least` days are known; days known in the window ``[t - first, n]``.
    """
    x, mask = known(residual)
    window, half_life = options.specific_window, options.specific_half_life
    weigh = lambda values: weighted_sum(values, window, half_life, origin)[first:]  # noqa: E731
    variance = _corrected(x, mask, options.specific_lags, weigh)
    count = weighted_sum(mask, window, np.inf, origin)[first:]
    there = enough(mask, window, options.least, origin)[first:] & (variance > 0)
    return np.where(there, variance, np.nan), np.rint(count)


def specific_forecast(variance: np.ndarray, count: np.ndarray, style: np.ndarray, group: np.ndarray, industries: int, cap: np.ndarray,
                      options: CovarianceOptions) -> np.ndarray | None:
    """One day's specific variances for every stock: own history, structure where that is short, shrunk within size deciles.

    The structural volatility is ``s exp(X b)``, b from a regression of log volatility on country, industries and styles over the stocks
    with a long history, s such that it has their mean; a stock's own volatility counts by ``(days - 60) / 120``, between 0 and 1.

    Args:
        variance, count: ``[n]`` of `specific_variances`. style: ``[n, k]``, no NaN. group: ``[n]`` int, number of the industry of
            `industries`, -1 none. cap: ``[n]``.

    Returns:
        ``[n]``, above 0; None where no stock has a history yet.
    """
    own = np.sqrt(variance)
    trust = np.where(np.isfinite(own), np.clip((count - 60) / 120, 0.0, 1.0), 0.0)
    long = trust >= 1.0
    if not long.any():
        long = np.isfinite(own)
    if not long.any():
        return None
    logs = np.log(np.where(long, own, 1.0))
    beta = None
    if long.sum() > 2 + style.shape[1] + len(np.unique(group[long])):
        there = (style[long] != 0).any(axis=0)
        beta, _ = fit(logs, style, group, industries, long.astype(np.float64), cap, long, there)
    if beta is None:
        structural = np.full(len(own), np.median(own[long]))
    else:
        fitted = np.exp(np.clip(explain(beta, style, group, industries), logs[long].min(), logs[long].max()))
        structural = fitted * own[long].mean() / fitted[long].mean()
    volatility = trust * np.where(trust > 0, own, 0.0) + (1 - trust) * structural
    return _shrunk(volatility, cap, options.specific_shrinkage) ** 2


def _shrunk(volatility: np.ndarray, cap: np.ndarray, strength: float) -> np.ndarray:
    """Each volatility pulled to the cap-weighted mean of its size decile, the more the farther it lies from it."""
    if not strength or len(cap) < 20:
        return volatility
    decile = np.empty(len(cap), np.int64)
    decile[np.argsort(cap, kind="stable")] = 10 * np.arange(len(cap)) // len(cap)
    mean = np.bincount(decile, cap * volatility) / np.bincount(decile, cap)
    away = np.abs(volatility - mean[decile])
    spread = np.sqrt(np.bincount(decile, away**2) / np.bincount(decile))[decile]
    pull = strength * away / np.where(spread > 0, spread + strength * away, 1.0)
    return pull * mean[decile] + (1 - pull) * volatility


def _corrected(x: np.ndarray, mask: np.ndarray, lags: int, weigh: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Weighted mean squares with Newey-West's correction, from below limited by `FLOOR`.

    Args:
        x, mask: ``[t, n]`` of `known`. weigh: weighted sums over the past of each row.
    """
    plain = _ratio(weigh(x * x), weigh(mask))
    total = plain.copy()
    for lag, share in _bartlett(lags):
        product, both = np.zeros_like(x), np.zeros_like(x)
        product[lag:], both[lag:] = x[lag:] * x[:-lag], mask[lag:] * mask[:-lag]
        total += 2 * share * np.nan_to_num(_ratio(weigh(product), weigh(both)))
    return np.maximum(total, FLOOR * plain)


def _bartlett(lags: int) -> list[tuple[int, float]]:
    return [(lag, 1 - lag / (lags + 1)) for lag in range(1, lags + 1)]


def _decayed(values: np.ndarray, decay: float) -> np.ndarray:
    """Running sum over rows, the past multiplied by `decay` at each."""
    out = np.array(values, np.float64)
    for t in range(1, len(out)):
        out[t] += decay * out[t - 1]
    return out


def _ratio(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return total / np.where(weight > 0, weight, np.nan)
