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
from qlib_ext.jit import compiled

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
    scaled = exposure * weight[:, None]
    return _solve(scaled.T @ exposure, scaled.T @ values, np.zeros(exposure.shape[1]) if constraint is None else constraint)


def _solve(squared: np.ndarray, mixed: np.ndarray, constraint: np.ndarray) -> np.ndarray | None:
    """Solution of normal equations under the constraint; None where it is not unique."""
    pivot = int(np.abs(constraint).argmax()) if constraint.any() else -1
    if pivot >= 0:                                                  # f_pivot = ratio @ (the others)
        rest = np.delete(np.arange(len(mixed)), pivot)
        ratio = -constraint[rest] / constraint[pivot]
        cross = squared[rest, pivot]
        mixed = mixed[rest] + ratio * mixed[pivot]
        squared = squared[np.ix_(rest, rest)] + np.outer(ratio, cross) + np.outer(cross, ratio) + squared[pivot, pivot] * np.outer(ratio, ratio)
    size = np.sqrt(np.diag(squared))
    if not (size > 0).all():
        return None
    try:
        factor = cholesky(squared / np.outer(size, size), lower=True, check_finite=False)
    except LinAlgError:
        return None
    if np.diag(factor).min() < PIVOT:
        return None
    solved = cho_solve((factor, True), mixed / size, check_finite=False) / size
    return solved if pivot < 0 else np.insert(solved, pivot, ratio @ solved)


@compiled
def _normal_equations(style, group, industries, values, weight, used, squared, mixed):
    """X'WX and X'Wy of country, industries (one each stock) and styles, summed over the stocks used in their order."""
    base, k = 1 + industries, style.shape[1]
    for n in range(len(values)):
        if not used[n]:
            continue
        w, y, g = weight[n], values[n], group[n]
        squared[0, 0] += w
        mixed[0] += w * y
        if g >= 0:
            squared[1 + g, 1 + g] += w
            mixed[1 + g] += w * y
        for a in range(k):
            x = w * style[n, a]
            mixed[base + a] += x * y
            squared[0, base + a] += x
            if g >= 0:
                squared[1 + g, base + a] += x
            for b in range(a, k):
                squared[base + a, base + b] += x * style[n, b]
    for g in range(industries):
        squared[0, 1 + g] = squared[1 + g, 1 + g]
    for a in range(len(mixed)):
        for b in range(a):
            squared[a, b] = squared[b, a]


@compiled
def explain(coefficient, style, group, industries):
    """What country, industry and styles explain of each stock; a coefficient that is NaN explains nothing."""
    base, k = 1 + industries, style.shape[1]
    out = np.empty(len(style))
    for n in range(len(style)):
        total = coefficient[0]
        if group[n] >= 0 and coefficient[1 + group[n]] == coefficient[1 + group[n]]:
            total += coefficient[1 + group[n]]
        for a in range(k):
            if coefficient[base + a] == coefficient[base + a]:
                total += coefficient[base + a] * style[n, a]
        out[n] = total
    return out


def fit(values: np.ndarray, style: np.ndarray, group: np.ndarray, industries: int, weight: np.ndarray, cap: np.ndarray, used: np.ndarray,
        there: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
    """Least squares of values on country, industries and styles under the constraint on the industries' caps.

    Args:
        values, weight: ``[n]``. style: ``[n, k]``. group: ``[n]`` int, number of the industry, -1 none. cap: ``[n]``, not negative,
            whose shares make the constraint. used: bool ``[n]``, whose values are known. there: bool ``[k]``, styles to use; they are
            known for all that are used.

    Returns:
        coefficients ``[1 + industries + k]``, NaN for what is not used (industries of nobody, styles), or None where there is no
        unique solution; which of them are used, bool.
    """
    width = 1 + industries + style.shape[1]
    squared, mixed = np.zeros((width, width)), np.zeros(width)
    _normal_equations(style, group, industries, values, weight, used, squared, mixed)
    count = np.diag(squared)[1:1 + industries] > 0
    column = np.concatenate([[True], count, there])
    constraint = np.zeros(width)
    if industries:
        constraint[1:1 + industries] = np.bincount(group[group >= 0], cap[group >= 0], industries)
    chosen = np.flatnonzero(column)
    solved = _solve(squared[np.ix_(chosen, chosen)], mixed[chosen], constraint[chosen] / max(cap.sum(), 1e-300))
    if solved is None:
        return None, column
    coefficient = np.full(width, np.nan)
    coefficient[chosen] = solved
    return coefficient, column


class Regression(NamedTuple):
    """One day: `factor_return [k]` of country, industries, styles (NaN: not in force, or unknown on the day); `residual [n]` of all
    stocks with a return and exposures, NaN for the others and for stocks that alone make their industry; `r_squared`, the weighted
    share of the members' dispersion that is explained; `fault`, why nothing could be estimated (else None)."""

    factor_return: np.ndarray
    residual: np.ndarray
    r_squared: float
    fault: str | None


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
    factor_return, residual = np.full(1 + industries + k, np.nan), np.full(n, np.nan)
    members = members & (cap > 0) & np.isfinite(returns)
    if industries:
        members = members & (industry >= 0)
    known = np.isfinite(style)
    there = known[members].any(axis=0)
    complete = known.all(axis=1) if there.all() else known[:, there].all(axis=1)
    used = members & complete
    count = np.bincount(industry[used], minlength=industries)[:industries] if industries else np.zeros(0, int)
    needed = 1 + np.count_nonzero(count) + np.count_nonzero(there)
    if np.count_nonzero(used) <= needed:
        return Regression(factor_return, residual, np.nan, f"{np.count_nonzero(used)} stocks for {needed} factors")
    weight = np.sqrt(np.where(used, cap, 0.0))
    fitted, _ = fit(returns, style, industry, industries, weight, np.where(used, cap, 0.0), used, there)
    if fitted is None:
        return Regression(factor_return, residual, np.nan, "styles that are constant, or combinations of others")
    explained = np.isfinite(returns) & complete
    if industries:
        explained &= (industry < 0) | (count[industry] > 0)
    residual = np.where(explained, returns - explain(fitted, style, industry, industries), np.nan)
    weight, held = weight[used], returns[used]
    left, mean = (weight * residual[used] ** 2).sum(), (weight * held).sum() / weight.sum()
    total = (weight * (held - mean) ** 2).sum()
    if industries:
        residual[used & (count[industry] == 1)] = np.nan
    return Regression(fitted, residual, float(1 - left / total) if total > 0 else np.nan, None)
