"""Weights without positions and trades that are too small, all other limits kept."""

from __future__ import annotations

import copy

import numpy as np

from qlib_ext.portfolio.program import Program
from qlib_ext.portfolio.solver import solve_or_none

ROUNDS = 40


def round_small(program: Program, weights: np.ndarray, solver: str) -> tuple[np.ndarray, int]:
    """Weights without positions and trades that are too small, and how many are left where other limits want them.

    What is too small goes to the nearest span of sizes allowed and stays
    there while the others are solved again; where that leaves no weights, half as many are moved, and a single one is given up.
    """
    fixed, best, left = copy.copy(program), weights, np.zeros(len(weights), bool)
    for _ in range(ROUNDS):
        wrong = _too_small(program, best) & ~left
        if not wrong.any():
            break
        low, high, far = _allowed(program, best)
        left |= wrong & np.isinf(far)
        order = np.flatnonzero(wrong & ~left)
        order = order[np.argsort(far[order], kind="stable")]
        count = len(order)
        while count:
            tried, some = copy.copy(fixed), order[:count]
            tried.low, tried.high = fixed.low.copy(), fixed.high.copy()
            tried.low[some], tried.high[some] = low[some], high[some]
            room = tried.low.sum() <= program.invested[1] and tried.high.sum() >= program.invested[0]
            answer = solve_or_none(tried, solver) if room else None
            if answer is not None and answer.weights is not None:
                fixed, best = tried, answer.weights
                break
            count //= 2
        left[order[:1]] |= not count
    return best, int(_too_small(program, best).sum())


def _too_small(program: Program, weights: np.ndarray) -> np.ndarray:
    """Positions below the least position, and trades below the least trade (but for selling all), that locks do not hold there."""
    trade = np.abs(weights - program.case.current)
    small = weights < program.minimum_position - 1e-12
    short = (trade > 0) & (trade < program.minimum_trade - 1e-12)
    return (small | short) & (weights > 0) & (program.low < program.high)


def _allowed(program: Program, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ends ``[n]`` of the nearest span of sizes allowed, and how far it is: nothing, no trade, at least the least trade up, or down."""
    current, position, least = program.case.current, program.minimum_position, program.minimum_trade
    low, high = program.low, program.high
    spans = [(low, np.where(low > 0, -1.0, 0.0)), (current, np.where((current == 0) | (current >= position), current, -1.0)),
             (np.maximum(np.maximum(position, current + least), low), high), (np.maximum(position, low), np.minimum(current - least, high))]
    ends = np.array([(first, np.where((first <= last) & (first >= low) & (last <= high), last, -1.0)) for first,
                     last in spans])   # [4, 2, n]
    far = np.where(ends[:, 1] < 0, np.inf, np.maximum(np.maximum(ends[:, 0] - weights, weights - ends[:, 1]), 0.0))
    nearest = far.argmin(axis=0)
    at = np.arange(len(weights))
    return ends[nearest, 0, at], ends[nearest, 1, at], far[nearest, at]
