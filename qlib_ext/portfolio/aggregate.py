"""From scores of stocks to a ranking of ETFs, and who is held of it. Arrays ``[n]`` are stocks, ``[e]`` ETFs.

The rule of one ETF per index and the limits on turnover are those of the DecompGRU weeklies; the rest (the formula of a score, entry
and exit) is our choice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from qlib_ext.errors import DataError, ShapeError

MOST_WEIGHT = 1.05
"""What a basket may sum to, but for rounding."""


class Aggregate(NamedTuple):
    """Scores of ETFs ``[e]``: `score` after the shrink, NaN unknown; `raw` before it; `covered`, the weight of scored members; `names`,
    their effective number."""

    score: np.ndarray
    raw: np.ndarray
    covered: np.ndarray
    names: np.ndarray


def zscores(score: np.ndarray) -> np.ndarray:
    """(score - mean) / standard deviation over the stocks scored ``[n]``; NaN for the others, and for all where scores do not differ."""
    known, found = np.isfinite(score), np.full(len(score), np.nan)
    if known.any() and np.ptp(score[known]) > 1e-12 * np.abs(score[known]).max():
        found[known] = (score[known] - score[known].mean()) / score[known].std()
    return found


def aggregate_scores(score: np.ndarray, weights: np.ndarray, min_coverage: float = 0.8, breadth: float = 10.0) -> Aggregate:
    """Scores of ETFs from those of their members.

        A_e = sum_i w_ei z_i / sum_i w_ei  over the scored members i,   z: `zscores` of the day over all stocks scored
        score_e = A_e sqrt(m) / sqrt(m + breadth),   m = 1 / sum_i w_ei^2  with the w of the scored members made to sum to 1

    Args:
        score: of the day's stocks ``[n]``, NaN not scored. weights: ``[e, n]``, fractions of the ETF, 0 or NaN for others than members.
        min_coverage: weight of scored members below which an ETF has no score. breadth: names at which a score is shrunk by half its
            variance; 0 leaves it.

    Raises:
        ShapeError: the two do not fit. DataError: a negative weight, or a basket that sums to more than 1.
    """
    score, weights = np.asarray(score, float), np.nan_to_num(np.asarray(weights, float))
    if score.ndim != 1 or weights.ndim != 2 or weights.shape[1] != len(score):
        raise ShapeError(f"score has shape {score.shape}, weights {weights.shape}; give [n] stocks and [e, n] baskets of the same stocks")
    sums = weights.sum(axis=1)
    if (weights < 0).any() or (sums > MOST_WEIGHT).any():
        e = int(np.argmax((weights < 0).any(axis=1) | (sums > MOST_WEIGHT)))
        raise DataError(f"basket {e} has weights from {weights[e].min():g} that sum to {sums[e]:g}; give fractions of the ETF, from 0 up, "
                        "that sum to 1 (or less, where a part is cash)")
    z = zscores(score)
    known = np.isfinite(z)
    part = weights[:, known]
    covered = part.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        raw = np.where(covered >= min_coverage - 1e-9, part @ z[known] / covered, np.nan)
        names = covered**2 / (part**2).sum(axis=1)
        return Aggregate(raw * np.sqrt(names / (names + breadth)), raw, covered, names)


def one_per_index(liquid: np.ndarray, amount: np.ndarray, index: np.ndarray, held: np.ndarray | None = None) -> np.ndarray:
    """Who stands for each index, bool ``[e]``: the ETF traded most among the liquid ones, but one that is held stays.

    Args:
        liquid: bool ``[e]``. amount: mean value traded a day ``[e]``. index: name of the index tracked, str ``[e]``. held: bool ``[e]``.
    """
    rest = np.zeros(len(liquid), bool) if held is None else np.asarray(held, bool)
    order = np.lexsort((np.arange(len(liquid)), -np.nan_to_num(amount), ~rest))
    order = order[np.asarray(liquid, bool)[order]]
    chosen = np.zeros(len(liquid), bool)
    chosen[order[np.unique(np.asarray(index)[order], return_index=True)[1]]] = True
    return chosen


def ranks(score: np.ndarray) -> np.ndarray:
    """1 for the highest score, 0 where it is NaN; ties go by position. int ``[e]``"""
    found = np.zeros(len(score), int)
    order = np.argsort(-score, kind="stable")[:np.isfinite(score).sum()]
    found[order] = np.arange(1, len(order) + 1)
    return found


def rotate(score: np.ndarray, held: np.ndarray, threshold: float, can_buy: np.ndarray, enter_rank: int = 6, exit_rank: int = 10,
           min_holdings: int = 2, max_holdings: int = 6) -> np.ndarray:
    """Who is held next, bool ``[e]``.

    Who is held stays down to rank `exit_rank`; who is not enters with a score from `threshold` up and rank `enter_rank` or better, best
    first, up to `max_holdings`. Where fewer than `min_holdings` are left, the best ranked fill up whatever their score.

    Args:
        score: ``[e]``, NaN for who is in no pool or unknown (is sold). held, can_buy: bool ``[e]``. threshold: NaN unknown, nobody enters
            by it.
    """
    rank = ranks(score)
    order = np.argsort(np.where(rank > 0, rank, len(rank) + 1), kind="stable")[:np.count_nonzero(rank)]
    stay = [n for n in order if held[n] and rank[n] <= exit_rank][:max_holdings]
    enter = [n for n in order if can_buy[n] and n not in stay and rank[n] <= enter_rank and score[n] >= threshold]
    chosen = stay + enter[:max_holdings - len(stay)]
    fill = [n for n in order if n not in chosen and (held[n] or can_buy[n])]
    chosen += fill[:max(min_holdings - len(chosen), 0)]
    found = np.zeros(len(rank), bool)
    found[chosen] = True
    return found
