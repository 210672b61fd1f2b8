"""Factor returns by daily cross-sectional regressions.

On each day, with the exposures X of the trading day before, over the estimation universe:

    r_n = f_country + sum_j D_nj f_j + sum_k X_nk f_k + u_n,    weights sqrt(cap),    sum_j c_j f_j = 0

D are the industries in force (those with members in the regression), c_j their share of the members' cap: the country factor is then
the market, and industries earn what they earn beside it. Source: Barra CNE5.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_solve, cholesky

from qlib_ext.errors import ShapeError

PIVOT = 1e-5
"""Smallest Cholesky pivot of normal equations of unit diagonal: below it a column is a combination of the others."""


def constrained_least_squares(exposure: np.ndarray, values: np.ndarray, weight: np.ndarray,
                              constraint: np.ndarray | None = None) -> np.ndarray | None:
    """Coefficients of a weighted least squares regression under one linear constraint ``constraint @ f = 0``.

    Args:
        exposure: ``[n, k]``. values: ``[n]``. weight: ``[n]``, not negative. constraint: ``[k]``; None or all 0: none.

    Returns:
        ``[k]``; None where the solution is not unique.
    """
    root = np.sqrt(weight)
    scaled = exposure * root[:, None]
    squared, mixed = scaled.T @ scaled, scaled.T @ (values * root)
    free = np.eye(len(squared))
    if constraint is not None and constraint.any():
        pivot = int(np.abs(constraint).argmax())
        free[pivot] = -constraint / constraint[pivot]
        free = np.delete(free, pivot, axis=1)                       # f = free @ g satisfies the constraint for every g
        squared, mixed = free.T @ squared @ free, free.T @ mixed
    size = np.sqrt(np.diag(squared))
    if not (size > 0).all():
        return None
    try:
        factor = cholesky(squared / np.outer(size, size), lower=True, check_finite=False)
    except LinAlgError:
        return None
    if np.diag(factor).min() < PIVOT:
        return None
    return free @ (cho_solve((factor, True), mixed / size, check_finite=False) / size)


class Regression(NamedTuple):
    """One day: `factor_return [k]` of country, industries, styles (NaN: not in force, or unknown on the day); `residual [n]` of all
    stocks with a return and exposures, NaN for the others and for stocks that alone make their industry; `r_squared`, the weighted
    share of the members' dispersion that is explained; `fault`, why nothing could be estimated (else None)."""

    factor_return: np.ndarray
    residual: np.ndarray
    r_squared: float
    fault: str | None


def design(style: np.ndarray, industry: np.ndarray, industries: int) -> np.ndarray:
    """Exposures ``[n, 1 + industries + k]`` to country, industries (number in `industry`, -1 none) and styles."""
    exposure = np.zeros((len(style), 1 + industries + style.shape[1]))
    exposure[:, 0] = 1.0
    exposure[:, 1 + industries:] = style
    inside = np.flatnonzero(industry >= 0)
    exposure[inside, 1 + industry[inside]] = 1.0
    return exposure


def regress(returns: np.ndarray, style: np.ndarray, industry: np.ndarray, industries: int, cap: np.ndarray,
            members: np.ndarray) -> Regression:
    """The regression of one day.

    Args:
        returns: ``[n]`` of the day, fractions, NaN unknown.
        style: ``[n, k]`` exposures at the close before, NaN unknown; a style that no member has is left out of the day.
        industry: ``[n]`` int, number of the industry, -1 unknown (such stocks make no factor return where there are industries).
        industries: how many numbers there are.
        cap: ``[n]`` at the close before. members: bool ``[n]``, the estimation universe.

    Raises:
        ShapeError: lengths differ.
    """
    n, k = style.shape
    if not returns.shape == industry.shape == cap.shape == members.shape == (n,):
        raise ShapeError(f"style [{n}, {k}], but returns {returns.shape}, industry {industry.shape}, cap {cap.shape}, members "
                         f"{members.shape}")
    width = 1 + industries + k
    exposure = design(style, industry, industries)
    members = members & (cap > 0) & np.isfinite(returns)
    if industries:
        members = members & (industry >= 0)
    there = np.isfinite(style[members]).any(axis=0) if members.any() else np.zeros(k, bool)
    complete = np.isfinite(style[:, there]).all(axis=1)
    used = members & complete
    count = np.bincount(industry[used], minlength=industries)[:industries] if industries else np.zeros(0, int)
    column = np.concatenate([[True], count > 0, there])
    factor_return, residual = np.full(width, np.nan), np.full(n, np.nan)
    needed = int(column.sum())
    if used.sum() <= needed:
        return Regression(factor_return, residual, np.nan, f"{int(used.sum())} stocks for {needed} factors")
    inside = cap[used]
    share = np.bincount(industry[used], inside, minlength=industries)[:industries] / inside.sum() if industries else np.zeros(0)
    constraint = np.concatenate([[0.0], share, np.zeros(k)])[column]
    weight = np.sqrt(inside)
    fitted = constrained_least_squares(exposure[used][:, column], returns[used], weight, constraint)
    if fitted is None:
        return Regression(factor_return, residual, np.nan, "styles that are constant, or combinations of others")
    factor_return[column] = fitted
    explained = np.isfinite(returns) & complete
    if industries:
        explained &= np.where(industry >= 0, count[np.maximum(industry, 0)] > 0, True)
    rows = np.flatnonzero(explained)
    residual[rows] = returns[rows] - exposure[rows][:, column] @ fitted
    left = (weight * residual[used] ** 2).sum()
    mean = (weight * returns[used]).sum() / weight.sum()
    total = (weight * (returns[used] - mean) ** 2).sum()
    if industries:
        residual[used & (count[np.maximum(industry, 0)] == 1)] = np.nan
    return Regression(factor_return, residual, float(1 - left / total) if total > 0 else np.nan, None)
