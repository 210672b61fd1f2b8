"""How good forecasts of risk are: bias statistic and QLIKE, and the portfolios they are measured on."""

from __future__ import annotations

import numpy as np

from qlib_ext.errors import ConfigError, DataError, ShapeError


def bias_statistic(realised: np.ndarray, forecast: np.ndarray) -> float:
    """Standard deviation of ``realised / forecast``: 1 for right forecasts, above 1 where risk was forecast too low.

    ``std(r / sigma, ddof=1)``, the mean of the ratios taken off.

    Args:
        realised: returns, any shape. forecast: volatilities over the same horizon, shaped alike. Pairs with a NaN are left out.

    Returns:
        NaN with fewer than two pairs.

    Raises:
        ShapeError: the shapes differ. DataError: a forecast that is not above 0, or an infinite value.

    Source: Menchero, Orr and Wang, The Barra US Equity Model (USE4), 2011.
    """
    realised, forecast = _pairs(realised, forecast)
    return float(np.std(realised / forecast, ddof=1)) if realised.size > 1 else float("nan")


def bias_band(count: int) -> tuple[float, float]:
    """``1 -+ sqrt(2 / count)``: holds the bias statistic of right forecasts of `count` independent Gaussian returns in 95 %."""
    half = float(np.sqrt(2.0 / count))
    return 1 - half, 1 + half


def rolling_bias(realised: np.ndarray, forecast: np.ndarray, window: int) -> np.ndarray:
    """`bias_statistic` of every `window` rows in a row, column by column.

    Args:
        realised: ``[t, ...]`` returns. forecast: volatilities, shaped alike. A window with a NaN gives NaN.

    Returns:
        ``[t - window + 1, ...]``; its mean distance from 1 is Barra's MRAD.

    Raises:
        ShapeError: the shapes differ, or fewer than `window` rows. ConfigError: a window below 2.
    """
    realised, forecast = _alike(realised, forecast)
    if window < 2:
        raise ConfigError(f"rolling_bias: window must be 2 or more, got {window}")
    if len(realised) < window:
        raise ShapeError(f"rolling_bias: {len(realised)} rows for a window of {window}")
    return np.lib.stride_tricks.sliding_window_view(realised / forecast, window, axis=0).std(axis=-1, ddof=1)


def qlike(realised: np.ndarray, forecast_variance: np.ndarray) -> float:
    """Mean of ``log(variance) + return^2 / variance``; in expectation the true variance has the least.

    Args:
        realised: returns, any shape. forecast_variance: shaped alike. Pairs with a NaN are left out; NaN without any.

    Raises:
        ShapeError, DataError: as `bias_statistic`.

    Source: Patton, Volatility forecast comparison using imperfect volatility proxies, 2011.
    """
    realised, variance = _pairs(realised, forecast_variance)
    return float(np.mean(np.log(variance) + realised**2 / variance)) if realised.size else float("nan")


def random_portfolios(rng: np.random.Generator, n: int, count: int, size: int) -> np.ndarray:
    """``[count, n]`` portfolios of `size` random names, each with weight ``1 / size``.

    Raises:
        ConfigError: `size` is not between 1 and `n`.
    """
    return _spread(rng, np.arange(n), n, count, size) / size


def active_portfolios(rng: np.random.Generator, benchmark_weights: np.ndarray, count: int, size: int) -> np.ndarray:
    """``[count, n]`` active weights, sum 0: portfolios of `size` random members, less the benchmark.

    A portfolio holds its names in proportion to ``benchmark * tilt``, where the tilts are drawn from an exponential distribution.

    Args:
        benchmark_weights: ``[n]``, sum 1, none below 0; only names above 0 are held.

    Raises:
        DataError: other benchmark weights. ConfigError: `size` is not between 1 and the number of names above 0.
    """
    benchmark = np.asarray(benchmark_weights, dtype=np.float64)
    if not (benchmark >= 0).all() or abs(benchmark.sum() - 1) > 1e-6:
        raise DataError(f"benchmark weights must be 0 or more and sum to 1: the least is {benchmark.min():.3g}, the sum "
                        f"{benchmark.sum():.6g}")
    held = _spread(rng, np.flatnonzero(benchmark > 0), len(benchmark), count, size) * benchmark
    held *= rng.exponential(1.0, held.shape)
    return held / held.sum(axis=1, keepdims=True) - benchmark / benchmark.sum()


def minimum_variance(cov: np.ndarray) -> np.ndarray:
    """``[n]`` weights of least variance, sum 1, short positions allowed: ``inv(cov) 1 / (1' inv(cov) 1)``.

    Raises:
        DataError: `cov` is not positive definite, so there is no such portfolio.
    """
    try:
        np.linalg.cholesky(cov)
    except np.linalg.LinAlgError as error:
        raise DataError(f"covariance {cov.shape} is not positive definite: it has no minimum-variance portfolio") from error
    weights = np.linalg.solve(cov, np.ones(len(cov)))
    return weights / weights.sum()


def minimum_variance_factor(exposure: np.ndarray, factor_cov: np.ndarray, specific_var: np.ndarray) -> np.ndarray:
    """`minimum_variance` of ``exposure @ factor_cov @ exposure.T + diag(specific_var)`` without that matrix (Woodbury identity).

    Args:
        exposure: ``[n, k]``. factor_cov: ``[k, k]``, positive semi-definite, may be singular. specific_var: ``[n]``, above 0.
    """
    value, vector = np.linalg.eigh(factor_cov)
    loading = exposure @ (vector * np.sqrt(np.maximum(value, 0.0)))          # loading @ loading.T is the factors' part
    scaled = loading / specific_var[:, None]
    inner = np.eye(loading.shape[1]) + loading.T @ scaled
    weights = 1 / specific_var - scaled @ np.linalg.solve(inner, scaled.sum(axis=0))
    return weights / weights.sum()


def _spread(rng: np.random.Generator, names: np.ndarray, n: int, count: int, size: int) -> np.ndarray:
    """``[count, n]`` of 1 for `size` of the names, drawn without replacement, else 0."""
    if not 1 <= size <= len(names):
        raise ConfigError(f"a portfolio of {size} names out of {len(names)}: choose a size from 1 to {len(names)}")
    held = np.zeros((count, n))
    for row in held:
        row[rng.choice(names, size, replace=False)] = 1.0
    return held


def _alike(realised: np.ndarray, forecast: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    realised, forecast = np.asarray(realised, dtype=np.float64), np.asarray(forecast, dtype=np.float64)
    if realised.shape != forecast.shape:
        raise ShapeError(f"realised {realised.shape} and forecast {forecast.shape} must be shaped alike")
    if np.isinf(realised).any() or np.isinf(forecast).any() or (forecast <= 0).any():
        raise DataError(f"risk forecasts: {int((forecast <= 0).sum())} of {forecast.size} are not above 0, "
                        f"{int(np.isinf(forecast).sum() + np.isinf(realised).sum())} values are infinite")
    return realised, forecast


def _pairs(realised: np.ndarray, forecast: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    realised, forecast = _alike(realised, forecast)
    known = ~(np.isnan(realised) | np.isnan(forecast))
    return realised[known], forecast[known]
