"""Index enhancement: the best weights under the limits of an index-enhancement desk, with a certificate of every solve."""

from __future__ import annotations

import copy
import difflib
import json
import logging
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError, InfeasibleError, ShapeError, SolverError
from qlib_ext.portfolio.constraint import FAMILIES, Style, check_missing, make_constraints
from qlib_ext.portfolio.preset import preset_constraints
from qlib_ext.portfolio.program import DAYS_A_YEAR, Case, Program
from qlib_ext.portfolio.solver import Answer, least_turnover, relative_gap, solve
from qlib_ext.risk.snapshot import COUNTRY, RiskSnapshot

logger = logging.getLogger("qlib_ext.portfolio")
LADDER = ({"turnover": None}, {"style": 1.5}, {"style": 2.0}, {"industry": 1.5}, {"industry": 2.0}, {"tracking_error": 1.25})
"""What is relaxed, one rung after the other, until there are weights; turnover as far as needed. Earlier rungs stay."""
WINSOR = 3.0
MOST_UNKNOWN = 0.1
ROUNDING_ROUNDS = 40
SOLVERS = ("auto", "clarabel", "cvxpy")


@dataclass
class Solution:
    """Weights and the proof that comes with them.

    Args:
        day, instruments ``[n]``, weights ``[n]`` (fractions of the account, exact zeros for what is not held), current ``[n]``.
        status: ``optimal``, or ``relaxed`` where the ladder was used. solver: who found it.
        objective: in units of the alpha. gap: proved distance from the best, relative (with `minimum_position` or `minimum_trade`: what
            rounding cost). violation: the largest overstepping of any limit in force.
        tracking_error: forecast a year. turnover: one way. cost: fraction of the account, from the costs given.
        columns: factor, extra or further column -> (active exposure, low, high, price) of the limits in force; `exposures` as a frame.
        active: limits that bind and what one unit more of each would add to the objective.
        relaxed: family -> factor of its widths; turnover: the limit it took. slack: by how much the limits as given are overstepped.
        notes: what was done to the input (stocks without alpha or risk, benchmark sum, missing styles, scale, locks, stocks over the cap).
    """

    day: str
    instruments: np.ndarray
    weights: np.ndarray
    current: np.ndarray
    benchmark: np.ndarray
    status: str
    solver: str
    objective: float
    gap: float
    violation: float
    tracking_error: float
    turnover: float
    cost: float
    columns: dict[str, tuple[float, float, float, float]]
    active: dict[str, float]
    relaxed: dict[str, float] = field(default_factory=dict)
    slack: dict[str, float] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def exposures(self) -> pd.DataFrame:
        """Active exposures, their limits (infinite where free) and the limits' prices, a row a column of the program or the risk model."""
        return pd.DataFrame.from_dict(self.columns, orient="index", columns=["exposure", "low", "high", "price"])

    @property
    def held(self) -> dict[str, float]:
        """Weights above 0 by instrument."""
        at = np.flatnonzero(self.weights > 0)
        return dict(zip(self.instruments[at].tolist(), self.weights[at].tolist()))

    def certificate(self) -> dict[str, Any]:
        """One flat row; mappings as JSON."""
        return {"day": self.day, "status": self.status, "solver": self.solver, "objective": self.objective, "gap": self.gap,
                "violation": self.violation, "tracking_error": self.tracking_error, "turnover": self.turnover, "cost": self.cost,
                "names": int((self.weights > 0).sum()), "invested": float(self.weights.sum()),
                "member_share": float(self.weights[self.benchmark > 0].sum()), "relaxed": json.dumps(self.relaxed), "slack": json.dumps(self.slack),
                "active": json.dumps(self.active), "notes": json.dumps(self.notes)}


class IndexEnhancer:
    """Maximise ``alpha'w`` under named limits (formulas: `qlib_ext.portfolio.constraint`, `qlib_ext.portfolio.program`).

    Args:
        preset: a broker's set (`qlib_ext.portfolio.preset`). constraints: name -> number or keywords, laid over the preset's; null leaves
            one out. Without `investment` the account is fully invested.
        ladder: rungs ``{family: factor}`` for problems without a solution; a null factor (turnover only) means as little as needed. An
            empty ladder or null raises instead, naming a conflicting set.
        missing_styles: ``error`` or ``drop`` for bands on styles that the risk model lacks; dropped ones are in the notes.
        standardize: alpha is cut at 3 standard deviations and z-scored; False takes it as it is.
        risk_aversion: per annual active variance, in units of the (standardised) alpha. cost_aversion: likewise per unit of cost.
        pull: quadratic pull to the current book (without one: the benchmark), in units of alpha, so that ties do not jitter.
        solver: ``auto`` (Clarabel on few columns with a dual check, then whole, then cvxpy), ``clarabel`` or ``cvxpy``.

    Raises:
        ConfigError: unknown names, numbers out of range.
    """

    def __init__(self, preset: str | None = None, constraints: Mapping[str, Any] | None = None, *,
                 ladder: Sequence[Mapping[str, float | None]] | None = LADDER, missing_styles: str = "error", standardize: bool = True,
                 risk_aversion: float = 0.0, cost_aversion: float = 0.0, pull: float = 1e-6, solver: str = "auto"):
        self.constraints = make_constraints(preset_constraints(preset, dict(constraints or {})))
        self.preset, self.ladder = preset, [_rung(one) for one in ladder or ()]
        for name, value, known in (("missing_styles", missing_styles, ("error", "drop")), ("solver", solver, SOLVERS)):
            if value not in known:
                near = difflib.get_close_matches(str(value), known, 1)
                raise ConfigError(f"{name}={value!r}{f' (did you mean {near[0]}?)' if near else ''}: choose one of {list(known)}")
        for name, value in (("risk_aversion", risk_aversion), ("cost_aversion", cost_aversion), ("pull", pull)):
            if not 0 <= value < np.inf:
                raise ConfigError(f"{name} must be a number from 0 up, got {value!r}")
        self.missing_styles, self.standardize, self.solver = missing_styles, standardize, solver
        self.risk_aversion, self.cost_aversion, self.pull = risk_aversion, cost_aversion, pull

    def solve(self, alpha, risk: RiskSnapshot, benchmark, current=None, *, no_buy=None, no_sell=None, sell_all=None, cost=(0.0, 0.0),
              members=None, extras: Mapping[str, Any] | None = None, scale: float = 1.0, day: str | None = None,
              instruments: np.ndarray | None = None) -> Solution:
        """The best weights of one rebalance.

        Inputs by stock are pandas Series (aligned here: all stocks with a benchmark weight, a holding, or an alpha and exposures), or
        arrays in the order of `instruments` (ascending; None: ``risk.instruments``).

        Args:
            alpha: higher is better; a stock without one (NaN, absent) is not bought and counts as the mean.
            risk: of the day; a stock that it does not know is not bought, and counts with style 0 and a high specific risk.
            benchmark: weights that sum to 1 within a tenth (they are scaled to 1). current: the book's weights; None or zeros: none yet.
            no_buy, no_sell: bool; suspended is both, limit-up and blacklist are no_buy, limit-down is no_sell.
            sell_all: bool; stocks that must go (those of no_sell stay).
            cost: (buying, selling) fractions, numbers or by stock. members: bool, for `member_share`; None: a benchmark weight above 0.
            extras: further style columns by name. scale: how many times larger the real index is than this store's.

        Raises:
            ShapeError, DataError: unusable input, named. InfeasibleError: no weights keep all limits, and the ladder is at its end.
            SolverError: no solver's answer could be verified.
        """
        case, notes = _align(instruments, self.standardize, alpha, risk, benchmark, current, no_buy, no_sell, sell_all, cost, members, extras or {}, scale,
                             day)
        absent = check_missing(self.constraints, case, self.missing_styles)
        if absent:
            notes["missing_styles"] = absent
        if scale != 1:
            notes["scale"] = {"factor": scale, "of": [one.name for one in self.constraints if one.scales]}
        program = self._program(case, {})
        _check_room(program)
        answer, relaxed = solve(program, self.solver), {}
        if answer.weights is None:
            program, answer, relaxed = self._relax(case, program, answer)
        solution = self._solution(program, answer, relaxed, notes)
        if relaxed:
            overstepped = self._program(case, {}).violations(solution.weights)
            solution.slack = {name: value for name, value in overstepped.items() if value > 1e-7}
        return solution

    def style_names(self) -> list[str]:
        """Styles that its bands name; those that a risk model does not hold are asked for as `extras`."""
        return [name for one in self.constraints if isinstance(one, Style) for name in one.widths]

    def _program(self, case: Case, relaxed: Mapping[str, float], turnover: float | None = None) -> Program:
        """The program with some families' widths multiplied, and another limit of turnover where one is given."""
        unit = 1.0 if self.standardize else float(np.abs(case.alpha).max(initial=0.0)) or 1.0
        program = Program(case, self.risk_aversion, self.cost_aversion, self.pull * unit, unit)
        for one in self.constraints:
            one.apply(program, 1.0 if one.name == "turnover" else relaxed.get(one.name, 1.0))
        program.turnover = program.turnover if turnover is None else turnover
        return program.close()

    def _relax(self, case: Case, strict: Program, failed: Answer) -> tuple[Program, Answer, dict[str, float]]:
        """Go up the ladder until there are weights, then take back what was relaxed without need."""
        families, relaxed = {one.name for one in self.constraints}, {}
        for family, factor in self.ladder:
            if family not in families or family == "turnover" and strict.turnover is None:
                continue
            relaxed[family] = np.inf if factor is None else factor
            found = self._try(case, strict, relaxed)
            if found is not None:
                for other in [one for one in relaxed if one != family]:
                    for less in (1.0, *(value for name, value in self.ladder if name == other and value and value < relaxed[other])):
                        fewer = {**relaxed, other: less}
                        again = self._try(case, strict, fewer)
                        if again is not None:
                            relaxed, found = {name: value for name, value in fewer.items() if value > 1}, again
                            break
                if "turnover" in relaxed:
                    relaxed["turnover"] = found[0].turnover
                return *found, relaxed
        names = conflict(strict, failed, self.solver)
        tried = f"; the ladder was tried up to {dict(relaxed)}" if relaxed else ""
        raise InfeasibleError(f"{case.day}: no weights keep all of: {', '.join(names)}, with locks, caps and full investment as they are{tried}. "
                              "Widen one of them, or give a (longer) ladder")

    def _try(self, case: Case, strict: Program, relaxed: dict[str, float]) -> tuple[Program, Answer] | None:
        """Program and weights with some families relaxed; an open turnover is limited to little more than the least that is needed."""
        limit = strict.turnover if strict.turnover is None else strict.turnover * relaxed.get("turnover", 1.0)
        if limit == np.inf:
            least = least_turnover(self._program(case, relaxed))
            answer = solve(least, self.solver)
            if answer.weights is None:
                return None
            limit = max(1.01 * least.one_way(answer.weights), least.one_way(answer.weights) + 1e-3, strict.turnover)
        program = self._program(case, relaxed, limit)
        answer = solve(program, self.solver)
        return None if answer.weights is None else (program, answer)

    def _solution(self, program: Program, answer: Answer, relaxed: dict[str, float], notes: dict[str, Any]) -> Solution:
        weights, case, gap = answer.weights, program.case, answer.gap
        if program.minimum_position or program.minimum_trade:
            best = program.bound(answer.prices, weights).value
            weights, left = _round(program, weights, self.solver)
            gap = relative_gap(program, weights, best)
            if left:
                notes["smaller_than_minimum"] = left
        trade = weights - case.current
        bands = np.broadcast_to(answer.prices.bands, len(program.names))
        exposures = _exposures(program, weights, bands)
        notes.update(locked=int((case.no_buy & case.no_sell).sum()), no_buy=int(case.no_buy.sum()), no_sell=int(case.no_sell.sum()))
        if program.over.any():
            notes["over_cap"] = {str(name): round(float(weights[n]), 8) for n, name in zip(np.flatnonzero(program.over), case.instruments[program.over])
                                 if weights[n] > program.limit[n]}
        return Solution(case.day, case.instruments, weights, case.current, case.benchmark, "relaxed" if relaxed else "optimal", answer.solver,
                        program.objective(weights), gap, max(program.violations(weights).values()), program.active_risk_of(weights),
                        program.one_way(weights), float(case.buy_cost @ np.maximum(trade, 0) + case.sell_cost @ np.maximum(-trade, 0)), exposures,
                        _active(program, answer), {name: float(value) for name, value in relaxed.items()}, notes=notes)


def _rung(one: Mapping[str, float | None]) -> tuple[str, float | None]:
    """A rung of the ladder as (family, factor)."""
    if not isinstance(one, Mapping) or len(one) != 1:
        raise ConfigError(f"ladder: each rung is one family and its factor, such as {{style: 1.5}}; got {one!r}")
    family, factor = next(iter(one.items()))
    if family not in FAMILIES:
        raise ConfigError(f"ladder: {family!r} cannot be relaxed; choose from {list(FAMILIES)} (caps, locks and investment never are)")
    if factor is None and family != "turnover" or factor is not None and not factor > 1:
        raise ConfigError(f"ladder: {family} needs a factor above 1{' or null' if family == 'turnover' else ''}, got {factor!r}")
    return family, None if factor is None else float(factor)


# ---- input ----------------------------------------------------------------------------------------------------------------------
def _align(instruments: np.ndarray | None, standardize: bool, alpha, risk: RiskSnapshot, benchmark, current, no_buy, no_sell, sell_all, cost, members, extras, scale,
           day) -> tuple[Case, dict[str, Any]]:
    """Everything in one order; and what was done to it."""
    day, names = str(risk.date) if day is None else str(day), risk.instruments if instruments is None else np.asarray(instruments).astype(str)
    if not np.isfinite(scale) or scale < 1:
        raise ConfigError(f"scale must be a number from 1 up, got {scale!r}")
    given = {"alpha": alpha, "benchmark": benchmark, "current": current, "no_buy": no_buy, "no_sell": no_sell, "sell_all": sell_all, "members": members,
             "cost": cost[0], "cost of selling": cost[1], **{f"extras: {name}": values for name, values in extras.items()}}
    series = {name: values for name, values in given.items() if isinstance(values, pd.Series)}
    for name, values in series.items():
        if values.index.has_duplicates:
            raise DataError(f"{day}: {name} names {values.index[values.index.duplicated()][0]} twice: every stock may have one row")
    arrays = [name for name, values in given.items() if not (values is None or np.isscalar(values) or name in series)]
    if series and arrays and instruments is None:
        raise ShapeError(f"{day}: {arrays[0]} is an array and {next(iter(series))} a Series: give Series by instrument everywhere, or arrays everywhere, "
                         "or name the instruments of the arrays")
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
            raise ShapeError(f"{day}: {name} has shape {values.shape} for {len(names)} stocks: give a Series by instrument, or an array in the order "
                             "of instruments (without them: risk.instruments)")
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
                weights > 0 if members is None else take("members", False, bool), take("cost", 0.0), take("cost of selling", 0.0), take("sell_all", False, bool), columns, float(scale))
    for name, values in (("cost", case.buy_cost), ("cost of selling", case.sell_cost)):
        if not np.isfinite(values).all() or (values < 0).any():
            raise DataError(f"{day}: {name} holds values below 0 or not finite")
    return case, notes


def _check_weights(day: str, name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all() or (values < 0).any():
        raise DataError(f"{day}: {name} weights hold {int((~np.isfinite(values)).sum())} that are not finite and {int((values < 0).sum())} below 0")


def _scores(day: str, alpha: np.ndarray, standardize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Alpha without gaps (the mean stands in), and where the gaps were."""
    known = ~np.isnan(alpha)
    if not known.any() or np.isinf(alpha).any():
        raise DataError(f"{day}: alpha is {'infinite for some stocks' if known.any() else 'unknown for all stocks'}: look at the signal of the day")
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


def _check_room(program: Program) -> None:
    """Limits that never relax must leave room for the money."""
    low, high = program.low.sum(), program.high.sum()
    if high < program.invested[0] - 1e-9 or low > program.invested[1] + 1e-9:
        side = f"caps and locks allow {high:.4f} at most" if high < program.invested[0] else f"locks hold {low:.4f} at least"
        raise InfeasibleError(f"{program.case.day}: investment {program.invested} cannot be had: {side}. Raise the caps, give more stocks, or allow "
                              "a band of cash (investment: {low: ..})")


# ---- when there are no weights ------------------------------------------------------------------------------------------------------
def conflict(program: Program, failed: Answer, solver: str) -> list[str]:
    """A set of limits that together leave no weights, each of which matters: those that carry the proof, less those that can go."""
    prices = np.abs(np.broadcast_to(failed.prices.bands, len(program.names)))
    names = [name for name, price in zip(program.names, prices) if price > 1e-6 * max(prices.max(initial=0.0), 1e-300)]
    names += [name for name, there in (("turnover", program.turnover is not None), ("tracking_error", program.tracking is not None)) if there]
    def impossible(some: list[str]) -> bool:
        found = _solved(_only(program, some), solver)
        return found is not None and found.weights is None

    if not impossible(names):
        names = [*program.names, *(name for name in ("turnover", "tracking_error") if name in names)]
    for name in list(names):
        fewer = [one for one in names if one != name]
        if impossible(fewer):
            names = fewer
    return names or ["caps, locks and investment"]


def _only(program: Program, names: Sequence[str]) -> Program:
    """A program with the limits of some names, and bounds and investment."""
    fewer = copy.copy(program)
    kept = np.isin(program.names, names)
    fewer.band_low, fewer.band_high = np.where(kept, program.band_low, -np.inf), np.where(kept, program.band_high, np.inf)
    fewer.turnover = program.turnover if "turnover" in names else None
    fewer.tracking = program.tracking if "tracking_error" in names else None
    return fewer


# ---- rounding -------------------------------------------------------------------------------------------------------------------
def _round(program: Program, weights: np.ndarray, solver: str) -> tuple[np.ndarray, int]:
    """Weights without positions and trades that are too small, and how many are left where other limits want them.

    What is too small goes to the nearest span of sizes allowed and stays
    there while the others are solved again; where that leaves no weights, half as many are moved, and a single one is given up.
    """
    fixed, best, left = copy.copy(program), weights, np.zeros(len(weights), bool)
    for _ in range(ROUNDING_ROUNDS):
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
            answer = _solved(tried, solver) if room else None
            if answer is not None and answer.weights is not None:
                fixed, best = tried, answer.weights
                break
            count //= 2
        left[order[:1]] |= not count
    return best, int(_too_small(program, best).sum())


def _solved(program: Program, solver: str) -> Answer | None:
    """`solve`, None where no answer can be verified."""
    try:
        return solve(program, solver)
    except SolverError:
        return None


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
    ends = np.array([(first, np.where((first <= last) & (first >= low) & (last <= high), last, -1.0)) for first, last in spans])   # [4, 2, n]
    far = np.where(ends[:, 1] < 0, np.inf, np.maximum(np.maximum(ends[:, 0] - weights, weights - ends[:, 1]), 0.0))
    nearest = far.argmin(axis=0)
    at = np.arange(len(weights))
    return ends[nearest, 0, at], ends[nearest, 1, at], far[nearest, at]


# ---- report ---------------------------------------------------------------------------------------------------------------------
def _exposures(program: Program, weights: np.ndarray, prices: np.ndarray) -> dict[str, tuple[float, float, float, float]]:
    """Active exposure of every factor, extra and further column, with its limits and price."""
    case, active = program.case, weights - program.case.benchmark
    found = {name: (value, -np.inf, np.inf, 0.0) for name, value in zip(case.factors, (active @ case.exposure).tolist())}
    found.update({name: (float(active @ values), -np.inf, np.inf, 0.0) for name, values in case.extras.items()})
    rows = np.column_stack([program.exposures(active), program.band_low, program.band_high, prices]).tolist()
    found.update({name: tuple(row) for name, row in zip(program.names, rows)})
    return found


def _active(program: Program, answer: Answer) -> dict[str, float]:
    """Limits with a price that matters."""
    prices = answer.prices
    found = dict(zip(program.names, np.abs(np.broadcast_to(prices.bands, len(program.names)))))
    found.update(turnover=prices.turnover, tracking_error=prices.tracking)
    least = 1e-5 * max(np.abs(program.alpha).max(initial=0.0), 1e-300)
    return {name: float(price) for name, price in found.items() if price > least}


# ---- in place of Qlib's ---------------------------------------------------------------------------------------------------------------
class EnhancedIndexingOptimizer:
    """Qlib's optimiser of the same name, call for call: ``max d'r - lamb (d'F cov_b F'd + var_u'd^2)`` with ``d = w - wb``.

    Beyond Qlib's: it always solves (or raises), keeps the turnover limit, and cuts small weights without breaking the limits.

    Args:
        lamb: risk aversion, per daily variance. delta: two-way turnover ``sum |w - w0|``; None: no limit. b_dev: active weight; None: free.
        f_dev: active factor exposure, one number or one a factor; None: free. scale_return: as in Qlib, r gets the cross-section's mean
            volatility. epsilon: no weight between 0 and this. solver_kwargs: not used (there is no choice to make).
        ladder: as in `IndexEnhancer`; by default none: a problem without a solution is an error.

    Raises:
        ConfigError: numbers out of range.
    """

    def __init__(self, lamb: float = 1, delta: float | None = 0.2, b_dev: float | None = 0.01, f_dev=None, scale_return: bool = True,
                 epsilon: float = 5e-5, solver_kwargs: Mapping[str, Any] | None = None, ladder=None):
        self.lamb, self.f_dev, self.scale_return = lamb, f_dev, scale_return
        self.limits = {"turnover": None if delta is None else delta / 2, "active_weight": b_dev, "minimum_position": epsilon or None}
        self.ladder = ladder
        self._enhancer(0 if f_dev is None else np.size(f_dev))

    def _enhancer(self, factors: int) -> IndexEnhancer:
        widths = {} if self.f_dev is None else {f"f{k}": float(width) for k, width in enumerate(np.broadcast_to(self.f_dev, factors))}
        return IndexEnhancer(constraints={**self.limits, "style": widths or None}, ladder=self.ladder, standardize=False,
                             risk_aversion=self.lamb / DAYS_A_YEAR, pull=0.0)

    def __call__(self, r, F, cov_b, var_u, w0, wb, mfh=None, mfs=None) -> np.ndarray:
        """Weights ``[n]``. Arguments as Qlib's: r, var_u, w0, wb ``[n]`` (or columns ``[n, 1]``), F ``[n, k]``, cov_b ``[k, k]``, bool masks: mfh must be held as it is,
        mfs must be sold (which goes before mfh).

        Raises:
            ShapeError, DataError: unusable arrays. InfeasibleError: no weights keep all limits. SolverError.
        """
        r, var_u, w0, wb = (np.asarray(one, dtype=np.float64).ravel() for one in (r, var_u, w0, wb))
        F, cov_b = np.asarray(F, dtype=np.float64), np.asarray(cov_b, dtype=np.float64)
        names = np.array([f"{place:06d}" for place in range(len(r))])
        risk = RiskSnapshot(np.datetime64("1970-01-01"), names, [f"f{k}" for k in range(F.shape[1])], F, cov_b, var_u)
        if self.scale_return:
            if not r.std() > 0:
                raise DataError("all expected returns are equal: there is nothing to scale (scale_return: false takes them as they are)")
            r = r / r.std() * np.sqrt(np.mean(np.einsum("nk,kl,nl->n", F, cov_b, F) + var_u))
        hold, out = (np.zeros(len(r), bool) if one is None else np.asarray(one, dtype=bool) for one in (mfh, mfs))
        hold = hold & ~out
        enhancer = self._enhancer(F.shape[1])
        solution = enhancer.solve(r, risk, wb, w0, no_buy=hold, no_sell=hold, sell_all=out)
        return solution.weights
