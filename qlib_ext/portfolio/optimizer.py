"""Index enhancement: the best weights under the limits of an index-enhancement desk, with a certificate of every solve."""

from __future__ import annotations

import copy
import difflib
import json
from dataclasses import dataclass, field
from typing import Any, Mapping, Sequence

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, InfeasibleError
from qlib_ext.portfolio.case import make_case
from qlib_ext.portfolio.constraint import FAMILIES, Style, check_missing, make_constraints
from qlib_ext.portfolio.preset import preset_constraints
from qlib_ext.portfolio.program import Case, Program
from qlib_ext.portfolio.rounding import round_small
from qlib_ext.portfolio.solver import Answer, least_turnover, relative_gap, solve, solve_or_none
from qlib_ext.risk.snapshot import RiskSnapshot

LADDER = ({"turnover": None}, {"style": 1.5}, {"style": 2.0}, {"industry": 1.5}, {"industry": 2.0}, {"tracking_error": 1.25})
"""What is relaxed, one rung after the other, until there are weights; turnover as far as needed. Earlier rungs stay."""
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
                "member_share": float(self.weights[self.benchmark > 0].sum()), "relaxed": json.dumps(self.relaxed),
                "slack": json.dumps(self.slack), "active": json.dumps(self.active), "notes": json.dumps(self.notes)}


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
        given = {"alpha": alpha, "benchmark": benchmark, "current": current, "no_buy": no_buy, "no_sell": no_sell, "sell_all": sell_all,
                 "members": members, "cost": cost, "extras": extras}
        case, notes = make_case(given, risk, instruments, self.standardize, scale, day)
        notes.update(check_missing(self.constraints, case, self.missing_styles))
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
        raise InfeasibleError(f"{case.day}: no weights keep all of: {', '.join(names)}, with locks, caps and full investment as they "
                              f"are{tried}. Widen one of them, or give a (longer) ladder")

    def _try(self, case: Case, strict: Program, relaxed: dict[str, float]) -> tuple[Program, Answer] | None:
        """Program and weights with some families relaxed; an open turnover is limited to little more than the least that is needed."""
        limit, factor = strict.turnover, relaxed.get("turnover", 1.0)
        if factor == np.inf:
            least = least_turnover(self._program(case, relaxed))
            answer = solve_or_none(least, self.solver)
            if answer is None or answer.weights is None:
                return None
            limit = max(1.01 * least.one_way(answer.weights), least.one_way(answer.weights) + 1e-3, strict.turnover)
        elif limit is not None:
            limit = limit * factor
        program = self._program(case, relaxed, limit)
        answer = solve_or_none(program, self.solver)
        return None if answer is None or answer.weights is None else (program, answer)

    def _solution(self, program: Program, answer: Answer, relaxed: dict[str, float], notes: dict[str, Any]) -> Solution:
        weights, case, gap = answer.weights, program.case, answer.gap
        if program.minimum_position or program.minimum_trade:
            best = program.bound(answer.prices, weights).value
            weights, left = round_small(program, weights, self.solver)
            gap = relative_gap(program, weights, best)
            if left:
                notes["smaller_than_minimum"] = left
        notes.update(locked=int((case.no_buy & case.no_sell).sum()), no_buy=int(case.no_buy.sum()), no_sell=int(case.no_sell.sum()))
        over = np.flatnonzero(program.over & (weights > program.limit))
        if len(over):
            notes["over_cap"] = {str(case.instruments[n]): round(float(weights[n]), 8) for n in over}
        trade = weights - case.current
        return Solution(
            day=case.day, instruments=case.instruments, weights=weights, current=case.current, benchmark=case.benchmark,
            status="relaxed" if relaxed else "optimal", solver=answer.solver, objective=program.objective(weights), gap=gap,
            violation=max(program.violations(weights).values()), tracking_error=program.active_risk_of(weights),
            turnover=program.one_way(weights), active=_active(program, answer), notes=notes,
            cost=float(case.buy_cost @ np.maximum(trade, 0) + case.sell_cost @ np.maximum(-trade, 0)),
            columns=_exposures(program, weights, np.broadcast_to(answer.prices.bands, len(program.names))),
            relaxed={name: float(value) for name, value in relaxed.items()})


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


def _check_room(program: Program) -> None:
    """Limits that never relax must leave room for the money, and for the least position."""
    if program.minimum_position > program.high.max():
        raise InfeasibleError(f"{program.case.day}: minimum_position {program.minimum_position:g} is above every cap "
                              f"({program.high.max():g} at most)")
    low, high = program.low.sum(), program.high.sum()
    if high < program.invested[0] - 1e-9 or low > program.invested[1] + 1e-9:
        side = f"caps and locks allow {high:.4f} at most" if high < program.invested[0] else f"locks hold {low:.4f} at least"
        raise InfeasibleError(f"{program.case.day}: investment {program.invested} cannot be had: {side}. Raise the caps, give more "
                              "stocks, or allow a band of cash (investment: {low: ..})")


# ---- when there are no weights ------------------------------------------------------------------------------------------------------
def conflict(program: Program, failed: Answer, solver: str) -> list[str]:
    """A set of limits that together leave no weights, each of which matters: those that carry the proof, less those that can go."""
    prices = np.abs(np.broadcast_to(failed.prices.bands, len(program.names)))
    names = [name for name, price in zip(program.names, prices) if price > 1e-6 * max(prices.max(initial=0.0), 1e-300)]
    names += [name for name, there in (("turnover", program.turnover is not None), ("tracking_error",
                                                                                    program.tracking is not None)) if there]
    def impossible(some: list[str]) -> bool:
        found = solve_or_none(_only(program, some), solver)
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
