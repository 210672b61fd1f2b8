"""Small rebalances for tests of the optimiser: five stocks to work by hand, and random ones from `scripts/hostile_problems.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from qlib_ext.portfolio.constraint import make_constraints
from qlib_ext.portfolio.optimizer import IndexEnhancer, Solution
from qlib_ext.portfolio.program import Case, Program
from qlib_ext.risk.snapshot import RiskSnapshot

SCRIPTS = str(Path(__file__).resolve().parents[2] / "scripts")
sys.path.insert(0, SCRIPTS)
try:
    import hostile_problems as hostile
    import optimizer_faults as faults
finally:
    sys.path.remove(SCRIPTS)

NAMES = ["A", "B", "C", "D", "E"]
BENCHMARK = np.array([0.30, 0.25, 0.20, 0.15, 0.10])
ALPHA = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
SIZE = np.array([2.0, 1.0, 0.0, -1.0, -2.0])
SPECIFIC = np.full(5, 0.02**2)


def five_risk(names: list[str] = NAMES) -> RiskSnapshot:
    """A and B in industry x, C, D and E in y; style size; uncorrelated factors of 1 % a day, specific risks of 2 %."""
    exposure = np.column_stack([np.ones(5), [1, 1, 0, 0, 0], [0, 0, 1, 1, 1], SIZE])
    factors = ("country", "industry:x", "industry:y", "size")
    return RiskSnapshot(np.datetime64("2024-01-05"), names, factors, exposure, 1e-4 * np.eye(4), SPECIFIC)


def five(constraints: dict[str, Any] | None = None, options: dict[str, Any] | None = None, **inputs: Any) -> Solution:
    """A solution of the five stocks, their alphas taken as they are."""
    given = {"alpha": ALPHA, "benchmark": BENCHMARK, **inputs}
    return IndexEnhancer(constraints=constraints, **{"standardize": False, "pull": 0.0, **(options or {})}).solve(risk=five_risk(), **given)


def five_program(limits: dict[str, Any], **changes: Any) -> Program:
    """A program of the five stocks."""
    risk, free = five_risk(), np.zeros(5, bool)
    given = {"alpha": ALPHA, "benchmark": BENCHMARK, "current": BENCHMARK, "no_buy": free, "no_sell": free, "members": BENCHMARK > 0,
             "buy_cost": np.zeros(5), "sell_cost": np.zeros(5), **changes}
    case = Case("2024-01-05", np.array(NAMES), exposure=risk.exposure, factors=risk.factors, factor_cov=risk.factor_cov,
                specific_var=risk.specific_var, **given)
    return closed(Program(case), limits)


def closed(program: Program, limits: dict[str, Any]) -> Program:
    """A program with limits written into it."""
    for one in make_constraints(limits):
        one.apply(program)
    return program.close()


def random_problem(seed: int, n: int, chance: float = 0.7, margin: tuple[float, ...] = (1.0, 0.1, 1e-3)) -> "hostile.Instance":
    """A problem around hidden weights, each kind of limit with a `chance`; costs and risk aversion by a coin."""
    rng = np.random.default_rng([seed, n])
    made = hostile.base(rng, n)
    made.limits = hostile.limits_around(rng, made, chance, margin)
    return made


def program_of(made: "hostile.Instance", pull: float = 1e-6) -> Program:
    """The program of a random problem."""
    inputs, risk, n = made.inputs, made.risk, len(made.inputs["alpha"])
    benchmark = inputs["benchmark"] / inputs["benchmark"].sum()
    case = Case("2024-01-05", np.array(risk["instruments"]), faults.score(made), benchmark, inputs["current"], risk["exposure"],
                tuple(risk["factors"]), risk["factor_cov"], risk["specific_var"], inputs["no_buy"] | np.isnan(inputs["alpha"]),
                inputs["no_sell"], benchmark > 0, *(np.full(n, cost) for cost in inputs["cost"]), sell_all=inputs["sell_all"],
                extras=inputs["extras"])
    objective = {name: made.options.get(name, 0.0) for name in ("risk_aversion", "cost_aversion")}
    return closed(Program(case, **objective, pull=pull), made.limits)


def feasible_points(made: "hostile.Instance", seed: int, count: int) -> np.ndarray:
    """Weights ``[count, n]`` that keep all limits by the script's own formulas: steps away from the hidden ones, cut until they do."""
    rng, found = np.random.default_rng(seed), [made.hidden]
    low, high = faults.box(made)
    while len(found) < count:
        start = found[rng.integers(len(found))]
        target = np.clip(rng.dirichlet(np.full(len(low), rng.choice([0.1, 1.0]))), low, high)
        moves = target - start
        buys, sells = np.maximum(moves, 0), np.maximum(-moves, 0)
        if min(buys.sum(), sells.sum()) > 0:                   # the sum of weights stays
            moves = buys / buys.sum() * min(buys.sum(), sells.sum()) - sells / sells.sum() * min(buys.sum(), sells.sum())
        else:
            moves = np.zeros(len(low))
        for part in (1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 0.0):
            if part == 0 or max(faults.overstepped(made, start + part * moves, {}).values()) <= 0:
                found.append(start + part * moves)
                break
    return np.array(found)
