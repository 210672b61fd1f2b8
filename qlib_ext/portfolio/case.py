"""What a user gives an optimiser, aligned, checked and filled as a `Case`, and what was done to it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.portfolio.program import Case
from qlib_ext.risk.snapshot import COUNTRY, RiskSnapshot

WINSOR = 3.0
"""Standard deviations at which standardised alphas are cut."""
MOST_UNKNOWN = 0.1
"""Share of the benchmark that the risk model need not know."""


def make_case(given: dict[str, Any], risk: RiskSnapshot, instruments: np.ndarray | None, standardize: bool, scale: float,
              day: str | None) -> tuple[Case, dict[str, Any]]:
    """Everything in one order; and what was done to it.

    Args:
        given: what `IndexEnhancer.solve` takes by stock, by its names; `cost` is a pair, `extras` a mapping or None.
        risk, instruments, scale, day: as there. standardize: z-score the alphas.

    Raises:
        ConfigError, ShapeError, DataError: unusable input, named.
    """
    day = str(risk.date) if day is None else str(day)
    names = risk.instruments if instruments is None else np.asarray(instruments).astype(str)
    if not np.isfinite(scale) or scale < 1:
        raise ConfigError(f"scale must be a number from 1 up, got {scale!r}")
    extras, cost = given.pop("extras") or {}, given.pop("cost")
    given = {**given, "cost": cost[0], "cost of selling": cost[1], **{f"extras: {name}": values for name, values in extras.items()}}
    series = {name: values for name, values in given.items() if isinstance(values, pd.Series)}
    for name, values in series.items():
        if values.index.has_duplicates:
            raise DataError(f"{day}: {name} names {values.index[values.index.duplicated()][0]} twice: every stock may have one row")
    arrays = [name for name, values in given.items() if not (values is None or np.isscalar(values) or name in series)]
    if series and arrays and instruments is None:
        raise ShapeError(f"{day}: {arrays[0]} is an array and {next(iter(series))} a Series: give Series by instrument everywhere, or "
                         "arrays everywhere, or name the instruments of the arrays")
    if (names[1:] <= names[:-1]).any():
        raise DataError(f"{day}: instruments must be in ascending order, each once")
    if series and instruments is None:
        owned = [values.index[values.to_numpy() > 0] for name, values in series.items() if name in ("benchmark", "current")]
        scored = series["alpha"].index[np.isfinite(series["alpha"].to_numpy(dtype=float))] if "alpha" in series else ()
        scored = [] if not len(scored) else np.asarray(scored).astype(str)[risk.rows(scored) >= 0]
        names = np.unique(np.concatenate([np.asarray(one).astype(str) for one in (*owned, scored)]))
        if not len(names):
            raise DataError(f"{day}: no stock has an alpha with exposures, a benchmark weight or a holding")
    rows = risk.rows(names)
    unknown = rows < 0

    def take(name: str, missing, kind=np.float64) -> np.ndarray:
        values = given[name]
        if values is None or np.isscalar(values):
            return np.full(len(names), missing if values is None else values, dtype=kind)
        if isinstance(values, pd.Series):
            return values.reindex(names).fillna(missing).to_numpy(dtype=kind) if values.dtype != bool else \
                values.reindex(names, fill_value=missing).to_numpy(dtype=kind)
        values = np.asarray(values)
        if values.shape != (len(names),):
            raise ShapeError(f"{day}: {name} has shape {values.shape} for {len(names)} stocks: give a Series by instrument, or an array "
                             "in the order of instruments (without them: risk.instruments)")
        return values.astype(kind)

    notes: dict[str, Any] = {}
    weights = take("benchmark", 0.0)
    _check_weights(day, "benchmark", weights)
    total = float(weights.sum())
    if not 0.9 <= total <= 1.1:
        raise DataError(f"{day}: benchmark weights sum to {total:.4f}, not 1: give weights as fractions of all members known on the day")
    if abs(total - 1) > 1e-6:
        notes["benchmark_sum"] = round(total, 6)
    held = take("current", 0.0)
    _check_weights(day, "current", held)
    if held.sum() > 1.1:
        raise DataError(f"{day}: current weights sum to {held.sum():.4f}: give shares of the whole account, cash apart")
    score, unscored = _scores(day, take("alpha", np.nan), standardize)
    if unknown.any():
        lost = float(weights[unknown].sum())
        if lost > MOST_UNKNOWN:
            raise DataError(f"{day}: the risk model does not know {int(unknown.sum())} stocks with {lost:.1%} of the benchmark (the first "
                            f"{names[unknown][:3].tolist()}): build snapshots of all members")
        notes["without_risk"] = {"stocks": int(unknown.sum()), "benchmark": round(lost, 6)}
    if unscored.any():
        notes["without_alpha"] = {"stocks": int(unscored.sum()), "benchmark": round(float(weights[unscored].sum() / total), 6)}
    exposure, specific = _filled(risk, rows)
    columns = {name: take(f"extras: {name}", np.nan) for name in extras}
    for name, values in columns.items():
        if (~np.isfinite(values[weights > 0])).mean() > 0.5:
            raise DataError(f"{day}: style {name} is unknown for most of the benchmark")
        columns[name] = np.where(np.isfinite(values), values, 0.0)
    case = Case(day, names, score, weights / total, held, exposure, risk.factors, risk.factor_cov, specific,
                take("no_buy", False, bool) | unscored | unknown, take("no_sell", False, bool),
                weights > 0 if given["members"] is None else take("members", False, bool), take("cost", 0.0),
                take("cost of selling", 0.0), take("sell_all", False, bool), columns, float(scale))
    for name, values in (("cost", case.buy_cost), ("cost of selling", case.sell_cost)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise DataError(f"{day}: {name} holds values below 0 or not finite")
    return case, notes


def _check_weights(day: str, name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all() or (values < 0).any():
        raise DataError(f"{day}: {name} weights hold {int((~np.isfinite(values)).sum())} that are not finite and "
                        f"{int((values < 0).sum())} below 0")


def _scores(day: str, alpha: np.ndarray, standardize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Alpha without gaps (the mean stands in), and where the gaps were."""
    known = ~np.isnan(alpha)
    if not known.any() or np.isinf(alpha).any():
        raise DataError(f"{day}: alpha is {'infinite for some stocks' if known.any() else 'unknown for all stocks'}: look at the signal "
                        "of the day")
    values = alpha[known]
    if standardize:
        scale = values.std()
        values = (values - values.mean()) / scale if scale > 0 else np.zeros(len(values))
        values = np.clip(values, -WINSOR, WINSOR)
    filled = np.full(len(alpha), values.mean())
    filled[known] = values
    return filled, ~known


def _filled(risk: RiskSnapshot, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exposures and specific variances; of unknown stocks country 1, else 0, and the 90th percentile."""
    if np.array_equal(rows, np.arange(len(risk.instruments))):
        return risk.exposure, risk.specific_var
    exposure, specific = risk.exposure[rows], risk.specific_var[rows]
    exposure[rows < 0] = [1.0 if name == COUNTRY else 0.0 for name in risk.factors]
    specific[rows < 0] = np.quantile(risk.specific_var, 0.9)
    return exposure, specific
