"""How good forecasts of risk are: bias statistic, QLIKE, and the portfolios they are measured on."""

from __future__ import annotations

import numpy as np

from qlib_ext.errors import ShapeError


def bias_statistic(realised: np.ndarray, forecast: np.ndarray) -> float:
    """Root mean square of realised returns over forecast volatilities; 1 for a forecast that is right, above 1 for one too low.

    Args:
        realised: returns, any shape. forecast: volatilities of the same horizon, shaped alike. Pairs with a NaN are left out.

    Source: Menchero, Orr and Wang 2011, with the mean taken as 0 (returns over a few days have next to none).
    """
    score = _pairs(realised, forecast)
    return float(np.sqrt(np.mean(score[0] ** 2 / score[1] ** 2))) if score.size else float("nan")


def qlike(realised: np.ndarray, forecast: np.ndarray) -> float:
    """Mean of ``log(variance) + return^2 / variance``; the true variance has the least expected value.

    Source: Patton 2011 (Volatility forecast comparison using imperfect volatility proxies). Arguments as `bias_statistic`.
    """
    realised, forecast = _pairs(realised, forecast)
    return float(np.mean(2 * np.log(forecast) + realised**2 / forecast**2)) if realised.size else float("nan")


def bias_band(count: int) -> tuple[float, float]:
    """95 % interval of the bias statistic of right forecasts of `count` independent Gaussian returns."""
    half = np.sqrt(2.0 / count)
    return 1 - half, 1 + half


def random_portfolios(draw: np.random.Generator, stocks: int, count: int, size: int) -> np.ndarray:
    """``[count, n]`` equally weighted portfolios of `size` random names."""
    weights = np.zeros((count, stocks))
    for row in weights:
        row[draw.choice(stocks, min(size, stocks), replace=False)] = 1.0 / min(size, stocks)
    return weights


def active_portfolios(draw: np.random.Generator, benchmark: np.ndarray, count: int, size: int) -> np.ndarray:
    """``[count, n]`` active weights, sum 0: random portfolios of `size` names, benchmark weight times a random tilt, less the benchmark."""
    weights = np.zeros((count, len(benchmark)))
    for row in weights:
        names = draw.choice(len(benchmark), min(size, len(benchmark)), replace=False)
        row[names] = benchmark[names] * draw.exponential(1.0, len(names))
        row /= row.sum()
    return weights - benchmark


def minimum_variance(covariance: np.ndarray) -> np.ndarray:
    """``[n]`` fully invested weights of least variance, short positions allowed."""
    weights = np.linalg.solve(covariance, np.ones(len(covariance)))
    return weights / weights.sum()


def minimum_variance_of_factors(exposure: np.ndarray, factor_cov: np.ndarray, specific_var: np.ndarray) -> np.ndarray:
    """`minimum_variance` of ``exposure @ factor_cov @ exposure.T + diag(specific_var)`` without that matrix (Woodbury)."""
    value, vector = np.linalg.eigh(factor_cov)
    loading = exposure @ (vector * np.sqrt(np.maximum(value, 0.0)))
    scaled = loading / specific_var[:, None]
    inner = np.eye(loading.shape[1]) + loading.T @ scaled
    weights = 1 / specific_var - scaled @ np.linalg.solve(inner, scaled.sum(axis=0))
    return weights / weights.sum()


def portfolio_volatility(weights: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Volatilities ``[p]`` of portfolios ``[p, n]``."""
    return np.sqrt(np.einsum("pn,pn->p", weights @ covariance, weights))


def _pairs(realised: np.ndarray, forecast: np.ndarray) -> np.ndarray:
    realised, forecast = np.asarray(realised, float), np.asarray(forecast, float)
    if realised.shape != forecast.shape:
        raise ShapeError(f"realised {realised.shape} and forecast {forecast.shape} must be shaped alike")
    there = np.isfinite(realised) & np.isfinite(forecast) & (forecast > 0)
    return np.stack([realised[there], forecast[there]])
