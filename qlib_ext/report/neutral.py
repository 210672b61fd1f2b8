"""What of a score is industry, size and style: scores orthogonalised day by day, and exposures of scores and groups.

Axis letters: t day, n stock, k exposure, j industry.
"""

from __future__ import annotations

from typing import Mapping, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from qlib_ext.data.transform import cs_neutralize
from qlib_ext.errors import ShapeError
from qlib_ext.report.metrics import cautious_t, rank_rows, row_correlation, standardise_rows, summarize

ROUNDING = 1e-9
"""A residual with less than this share of the score's deviation is rounding: the exposures explain the score of that day."""


def industry_codes(industry: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Integers ``[t, n]`` for industry names (-1 where the name is "", None or NaN), and the names in order ``[j]``."""
    industry = np.asarray(industry, dtype=object)
    codes, names = pd.factorize(industry.ravel())
    order = sorted((str(name), place) for place, name in enumerate(names) if str(name).strip())
    number = np.full(len(names) + 1, -1)                                             # the last place serves code -1
    number[[place for _, place in order]] = np.arange(len(order))
    return number[codes].reshape(industry.shape), np.array([name for name, _ in order], dtype=object)


def neutral_score(score: np.ndarray, exposures: Sequence[np.ndarray] = (), industry: Optional[np.ndarray] = None) -> np.ndarray:
    """Residuals of the score on a constant, industry dummies and exposures, by ordinary least squares of each day.

    Exposures that repeat each other or the industries share one effect (least norm), which leaves the residuals unique.

    Args:
        score: ``[t, n]``, NaN = not scored.
        exposures: matrices ``[t, n]``; a stock that lacks one is NaN that day.
        industry: ``[t, n]`` integers, -1 = unknown (NaN that day); None: no industries.

    Returns:
        float64 ``[t, n]``; NaN on days with a constant score, with too few stocks for the coefficients, and where nothing but rounding
        is left.

    Raises:
        ShapeError: other shapes.
    """
    score = np.asarray(score, dtype=np.float64)
    parts = [np.asarray(part) for part in (*exposures, *(() if industry is None else (industry,)))]
    if score.ndim != 2 or any(part.shape != score.shape for part in parts):
        raise ShapeError(f"score {score.shape}, exposures and industry {[part.shape for part in parts]} must be [t, n]")
    scaled = standardise_rows(score)
    row, column = np.nonzero(~np.isnan(scaled))
    table = np.empty((row.size, len(exposures)))
    for place, part in enumerate(parts[:len(exposures)]):
        table[:, place] = part[row, column]
    rest = np.full(score.shape, np.nan)
    rest[row, column] = cs_neutralize(scaled[row, column], row, table, None if industry is None else parts[-1][row, column])
    known = ~np.isnan(rest)
    with np.errstate(invalid="ignore", divide="ignore"):
        deviation = np.sqrt(np.where(known, rest**2, 0.0).sum(axis=1) / known.sum(axis=1))
    rest[~(deviation > ROUNDING)] = np.nan
    return rest


def style_exposure(score: np.ndarray, top: np.ndarray, styles: Mapping[str, np.ndarray], lag: int, min_count: int) -> pd.DataFrame:
    """How the score leans on styles.

    Args:
        score: ``[t, n]``, NaN = not scored. top: bool ``[t, n]``, the top group.
        styles: name -> ``[t, n]``, NaN = unknown.
        lag: of the Newey-West t.
        min_count: days with fewer pairs do not count.

    Returns:
        A row a style: `mean`, `std`, `t` of the daily correlation of the score's rank with the style; `top group`: mean style of the
        top group less that of the scored stocks, mean over days.
    """
    rank, scored = rank_rows(score), ~np.isnan(score)
    rows = {}
    for name, style in styles.items():
        daily = row_correlation(rank, style, min_count)
        figures = summarize(daily)
        lean = _row_mean(style, top) - _row_mean(style, scored)
        rows[name] = {"mean": figures["mean"], "std": figures["std"], "t": cautious_t(daily, lag), "top group": summarize(lean)["mean"]}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("style")


def industry_exposure(score: np.ndarray, top: np.ndarray, codes: np.ndarray, names: Sequence[str]) -> pd.DataFrame:
    """How the score leans on industries.

    Args:
        score: ``[t, n]``, NaN = not scored. top: bool ``[t, n]``, the top group. codes, names: of `industry_codes`.

    Returns:
        A row an industry with a scored stock: `mean z-score` of its stocks (daily z-score of the score), and `top group`: its share of
        the names of the top group less its share of the scored ones; means over days. Stocks of unknown industry are left out.
    """
    scaled, days = standardise_rows(score), np.arange(len(score))[:, None]
    count = len(names)

    def by_industry(member: np.ndarray, values: Optional[np.ndarray] = None) -> np.ndarray:
        inside = member & (codes >= 0)
        cell = (days * count + codes)[inside]
        return np.bincount(cell, None if values is None else values[inside], len(score) * count).reshape(-1, count).astype(float)

    known = ~np.isnan(scaled)
    scored, chosen, total = by_industry(known), by_industry(top), by_industry(known, scaled)
    with np.errstate(invalid="ignore", divide="ignore"):
        lean = chosen / chosen.sum(axis=1, keepdims=True) - scored / scored.sum(axis=1, keepdims=True)
        frame = pd.DataFrame({"mean z-score": _column_mean(total / scored), "top group": _column_mean(lean)},
                             index=pd.Index(list(names), name="industry"))
    return frame[scored.sum(axis=0) > 0].sort_values("mean z-score", ascending=False)


def _row_mean(values: np.ndarray, member: np.ndarray) -> np.ndarray:
    """Mean of the known values of members on each day ``[t]``."""
    inside = member & ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(inside, values, 0.0).sum(axis=1) / inside.sum(axis=1)


def _column_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the known days ``[j]``."""
    known = ~np.isnan(values)
    return np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
