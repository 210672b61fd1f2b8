"""Solving a `Program`: straight to Clarabel with few columns and a proof, and through cvxpy word for word.

An answer counts only when its weights keep all limits and its `Prices` prove, in plain numpy and over all stocks, that nothing better
exists (`Program.bound`). A program without weights counts as infeasible only when prices prove that too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import cvxpy
import numpy as np
from scipy import sparse

from qlib_ext.errors import SolverError
from qlib_ext.portfolio.conic import Matrices
from qlib_ext.portfolio.program import DAYS_A_YEAR, Bound, Prices, Program

GAP, VIOLATION, SNAP = 2e-6, 1e-8, (1e-6, 1e-9, 0.0)
"""What an answer may be short of the best (relative), overstep a limit by, and be away from a bound to be put on it."""
SCREEN_FROM, SCREEN_NAMES, SCREEN_ROUNDS = 150, 40, 6
ROUGH_FROM, ROUGH, FINE, PRECISE = 2000, 1e-3, 1e-8, 1e-11


@dataclass
class Answer:
    """Weights ``[n]`` (None: there are none that keep all limits), their prices, who found them, and the relative gap that was proved."""

    weights: np.ndarray | None
    prices: Prices
    solver: str
    gap: float = 0.0
    columns: int = 0


def solve(program: Program, solver: str = "auto") -> Answer:
    """The best weights of a program, or a proof that there are none.

    `solver`: ``clarabel`` (screened, then whole), ``cvxpy``, or ``auto``: the first, and the second where that fails.

    Raises:
        SolverError: no solver gave an answer that can be verified.
    """
    direct = (_screened, _whole, _impossible, _precise)
    ways = {"auto": (*direct, _cvxpy), "clarabel": direct, "cvxpy": (_cvxpy, _refuted, _impossible)}[solver]
    if not (program.low < program.high).any():
        return _fixed(program)
    faults = []
    for way in ways:
        answer = way(program)
        if isinstance(answer, Answer):
            return answer
        faults.append(f"{way.__name__.strip('_')}: {answer}")
    raise SolverError(f"{program.case.day}: no solver gave weights that can be verified ({'; '.join(faults)}): look for limits or "
                      "covariances of very different sizes among the inputs")


def solve_or_none(program: Program, solver: str = "auto") -> Answer | None:
    """`solve`, None where no answer can be verified."""
    try:
        return solve(program, solver)
    except SolverError:
        return None


def _fixed(program: Program) -> Answer:
    """All weights are given by locks: they keep the limits or nothing does, and the limits overstepped are the proof."""
    over = program.violations(program.low)
    prices = Prices(bands=np.array([over[name] for name in program.names]))
    return Answer(program.low.copy() if max(over.values()) <= VIOLATION else None, prices, "locks")


def tidied(program: Program, weights: np.ndarray, prices: Prices, solver: str, columns: int) -> tuple[Answer | str, np.ndarray]:
    """`verified` polished weights, with less put on bounds where that is too much; and the weights."""
    for near in SNAP:
        tidy = polish(program, weights, prices, near) if near else np.clip(weights, program.low, program.high)
        answer = verified(program, tidy, prices, solver, columns)
        if isinstance(answer, Answer):
            break
    return answer, tidy


def verified(program: Program, weights: np.ndarray, prices: Prices, solver: str, columns: int) -> Answer | str:
    """An `Answer`, or why it is none."""
    over = program.violations(weights)
    worst = max(over, key=over.get)
    if over[worst] > VIOLATION:
        return f"{worst} overstepped by {over[worst]:.1e}"
    gap = relative_gap(program, weights, program.bound(prices, weights).value)
    return Answer(weights, prices, solver, gap, columns) if gap <= GAP else f"gap {gap:.1e}"


def relative_gap(program: Program, weights: np.ndarray, bound: float) -> float:
    """How far the objective may be from the best, relative to it (where it is near 0: to a hundredth of the
    program's unit)."""
    value = program.objective(weights)
    return max(bound - value, 0.0) / max(abs(value), 0.01 * program.unit)


# ---- Clarabel -------------------------------------------------------------------------------------------------------------------
def _whole(program: Program) -> Answer | str:
    return _solve_columns(program, program.low < program.high).answer


def _precise(program: Program) -> Answer | str:
    return _solve_columns(program, program.low < program.high, PRECISE).answer


def least_turnover(program: Program) -> Program:
    """The same limits but that of turnover, and turnover as what is minimised."""
    least = _without_objective(program)
    least.turnover, least.buy_cost, least.sell_cost = None, np.full(len(program.alpha), 0.5), np.full(len(program.alpha), 0.5)
    return least


def _least_risk(program: Program) -> Program:
    """The same limits but that of tracking error, and the active variance as what is minimised."""
    least = _without_objective(program)
    least.tracking, least.risk_aversion, least.unit = None, 1.0, program.tracking**2
    return least


def _without_objective(program: Program) -> Program:
    bare, zeros = copy.copy(program), np.zeros(len(program.alpha))
    bare.alpha, bare.buy_cost, bare.sell_cost, bare.risk_aversion, bare.pull, bare.unit = zeros, zeros, zeros, 0.0, 0.0, 1.0
    return bare


def _refuted(program: Program) -> Answer | str:
    """Clarabel's own proof that there are no weights."""
    found = _whole(program)
    return found if isinstance(found, Answer) and found.weights is None else "not refuted"


def _impossible(program: Program) -> Answer | str:
    """A proof that there are no weights where Clarabel's own is too rough: the least turnover, or tracking error, that all other limits
    allow is above the limit."""
    for limit, least, measure in ((program.turnover, least_turnover, lambda f: -f), (program.tracking, _least_risk,
                                                                                     lambda f: np.sqrt(max(-f, 0)))):
        if limit is not None:
            found = _whole(least(program))
            if isinstance(found, Answer) and (found.weights is None or
                                              measure(least(program).bound(found.prices, found.weights).value) > limit + VIOLATION):
                return Answer(None, found.prices, "clarabel", columns=len(program.alpha))
    return "not proved to be infeasible"


def _screened(program: Program) -> Answer | str:
    """The program on few columns, the others at their lower limits; prices then say which of these would have improved it, until none does.

    Among many names a rough solve finds prices first, by which the columns are chosen.
    """
    free, held = program.low < program.high, program.case.current > program.low
    if np.count_nonzero(free) <= SCREEN_FROM:
        return "few columns"
    chosen = free & held | _promising(program, free, held)
    if np.count_nonzero(free) > ROUGH_FROM:
        found = _solve_columns(program, chosen, ROUGH)
        if found.bound is None:
            return "no rough weights"
        chosen = _by_prices(program, free, found, SCREEN_NAMES)
    for _ in range(SCREEN_ROUNDS):
        if np.count_nonzero(chosen) > 0.8 * np.count_nonzero(free):
            return "most columns needed"
        found = _solve_columns(program, chosen)
        if isinstance(found.answer, Answer) or found.bound is None or not found.bound.missed[free & ~chosen].any():
            return found.answer
        chosen = _by_prices(program, free, found, SCREEN_NAMES // 2) | free & (found.bound.missed > 0)
    return "too many rounds"


def _by_prices(program: Program, free: np.ndarray, found: _Found, more: int) -> np.ndarray:
    """What was bought, and as many of the others as are worth most at the prices found."""
    bought = free & (found.weights > program.low + 1e-5)
    edge = np.where(free & ~bought, found.bound.edge, np.inf)
    return bought | free & ~bought & (edge <= np.partition(edge, min(more, len(edge) - 1))[min(more, len(edge) - 1)])


def _promising(program: Program, free: np.ndarray, held: np.ndarray) -> np.ndarray:
    """A first guess of who might be bought, the best by three scores: alpha, alpha less what exposures explain of it, and alpha less the
    price of risk times what the stock adds to the current book's. That price is what makes alphas of the held fit their limits best."""
    case, news = program.case, free & ~held
    traded = 1.0 if program.turnover is None else min(program.turnover, 1.0)
    count = min(SCREEN_NAMES + int(traded / max(np.median(program.high[free]), 1e-4)), 600, np.count_nonzero(news))
    if not count:
        return news
    scores, columns = [program.alpha], np.column_stack([np.ones(len(free)), program.dense])
    inside = free | (case.benchmark > 0)
    scores.append(program.alpha - columns @ np.linalg.lstsq(columns[inside], program.alpha[inside], rcond=None)[0])
    if program.tracking is not None and held.any():
        risk = program.risk_gradient(case.current - case.benchmark)
        group = program.group[held][:, None] == np.arange(len(program.names) - program.dense.shape[1])
        fit = np.linalg.lstsq(np.column_stack([columns[held], group, risk[held]]), program.alpha[held], rcond=None)[0]
        scores.append(program.alpha - max(fit[-1], 0.0) * risk)
    chosen = np.zeros(len(free), bool)
    for score in scores:
        chosen[np.argpartition(-np.where(news, score, -np.inf), count - 1)[:count]] = True
    return chosen & news


@dataclass
class _Found:
    """An answer, or what is wrong with it and the weights found with their bound (None where none were)."""

    answer: Answer | str
    weights: np.ndarray | None = None
    bound: Bound | None = None


def _solve_columns(program: Program, chosen: np.ndarray, tolerance: float = FINE) -> _Found:
    """The program with weights that are not `chosen [n]` at their lower limits; a rough tolerance gives prices, and no answer."""
    matrices = Matrices(program, chosen)
    status, x, z = matrices.solve(tolerance)
    prices, count, whole = matrices.prices(z), len(matrices.place), np.array_equal(chosen, program.low < program.high)
    if status in ("Solved", "AlmostSolved", "InsufficientProgress", "MaxIterations"):
        weights = program.low.copy()
        weights[matrices.place] = x[:count]
        if tolerance == ROUGH:
            return _Found("rough", weights, program.bound(prices, np.clip(weights, program.low, program.high)))
        answer, tidy = tidied(program, weights, prices, "clarabel", count)
        if isinstance(answer, Answer):
            return _Found(answer)
        if not whole or not _proves(program, prices):
            return _Found(answer, tidy, program.bound(prices, tidy))
    if whole and _proves(program, prices):                 # whatever Clarabel calls it
        return _Found(Answer(None, prices, "clarabel", columns=count))
    return _Found(status)


def _proves(program: Program, prices: Prices) -> bool:
    """Whether prices prove that no weights keep all limits (to be sure of rounding, brought to a largest of 1)."""
    size = max(abs(prices.invested), np.abs(prices.bands).max(initial=0.0), prices.turnover, prices.tracking)
    if not 0 < size < np.inf:
        return False
    cone = None if prices.cone is None else (prices.cone[0] / size, prices.cone[1] / size)
    scaled = Prices(prices.invested / size, prices.bands / size, prices.turnover / size, prices.tracking / size, cone)
    return program.bound(scaled, None).value < -1e-9


def polish(program: Program, weights: np.ndarray, prices: Prices, near: float = 1e-6) -> np.ndarray:
    """Weights that a solver left a hair (`near`, of their span) away from their limits, put on them; the others moved by least squares
    so that sums and active limits hold to rounding. Returned as they were where that makes anything worse."""
    case = program.case
    low, high = program.low, program.high
    near = near * np.maximum(high - low, 1e-3)
    before = np.clip(weights, low, high)
    kept = np.where(before - low < near, low, np.where(high - before < near, high, before))
    kept = np.where(np.abs(kept - case.current) < near, np.clip(case.current, low, high), kept)
    inside = (kept > low) & (kept < high) & (kept != case.current)
    best, worst = before, max(program.violations(before).values())
    for step in range(4):
        found = max(program.violations(kept).values())
        if found < max(worst, VIOLATION / 10):
            best, worst = kept, found
        if found < 1e-12 or step == 3 or not inside.any():
            break
        rows, gaps = _active_rows(program, kept, prices)
        rows = rows[:, inside]
        moved = kept.copy()
        moved[inside] += np.linalg.lstsq(rows @ rows.T, gaps, rcond=1e-13)[0] @ rows
        kept, inside = np.clip(moved, low, high), inside & (moved >= low) & (moved <= high)
    return best


def _active_rows(program: Program, weights: np.ndarray, prices: Prices) -> tuple[np.ndarray, np.ndarray]:
    """Gradients ``[a, n]`` of the limits that bind, and how far the weights are from them ``[a]``."""
    case = program.case
    active, total = weights - case.benchmark, weights.sum()
    exposure, rows, gaps = program.exposures(active), [], []

    def bind(row: np.ndarray, value: float, low: float, high: float, price: float) -> None:
        limit = high if value > high or price > 0 and value >= low else low
        near = abs(price) > 1e-8 * program.unit and abs(value - limit) < 1e-6 * max(abs(limit), 1.0)
        if np.isfinite(limit) and (low == high or value > high or value < low or near):
            rows.append(row)
            gaps.append(limit - value)

    bind(np.ones(len(weights)), total, *program.invested, prices.invested)
    unit = np.zeros(len(program.names))
    for k in np.flatnonzero(np.isfinite(program.band_low) | np.isfinite(program.band_high)):
        unit[k] = 1.0
        bind(program.spread(unit), exposure[k], program.band_low[k], program.band_high[k], prices.bands[k])
        unit[k] = 0.0
    if program.turnover is not None:
        bind(np.sign(weights - case.current) / 2, program.one_way(weights), -np.inf, program.turnover, prices.turnover)
    if program.tracking is not None:
        risk = program.active_risk(active)
        if risk > 0:
            bind(DAYS_A_YEAR * program.risk_gradient(active) / risk, risk, -np.inf, program.tracking, prices.tracking)
    return np.array(rows).reshape(-1, len(weights)), np.array(gaps)


# ---- cvxpy ----------------------------------------------------------------------------------------------------------------------
def _cvxpy(program: Program) -> Answer | str:
    """The module's formulas word for word."""
    case = program.case
    w = cvxpy.Variable(len(case.alpha))
    d, trade = w - case.benchmark, w - case.current
    columns = [program.dense, sparse.csr_matrix(program.group[:, None] == np.arange(len(program.names) - program.dense.shape[1]))]
    matrix = sparse.hstack(columns).tocsr() if len(program.names) else None
    limits = {"low": w >= program.low, "high": w <= program.high, "invested": cvxpy.sum(w) <= program.invested[1],
              "uninvested": cvxpy.sum(w) >= program.invested[0]}
    upper, lower = np.flatnonzero(np.isfinite(program.band_high)), np.flatnonzero(np.isfinite(program.band_low))
    if len(upper):
        limits["upper"] = matrix[:, upper].T @ d <= program.band_high[upper]
    if len(lower):
        limits["lower"] = matrix[:, lower].T @ d >= program.band_low[lower]
    if program.turnover is not None:
        limits["turnover"] = 0.5 * cvxpy.norm1(trade) <= program.turnover
    deviation = np.sqrt(case.specific_var)
    value = case.alpha @ w - program.buy_cost @ cvxpy.pos(trade) - program.sell_cost @ cvxpy.pos(-trade)
    value -= program.pull / 2 * cvxpy.sum_squares(w - program.anchor)
    if program.needs_risk:
        risk = cvxpy.hstack([program.root.T @ (matrix[:, program.risky].T @ d), cvxpy.multiply(deviation, d)])
        if program.tracking is not None:
            limits["tracking"] = np.sqrt(DAYS_A_YEAR) / program.tracking * cvxpy.norm(risk) <= 1
        if program.risk_aversion:
            value -= program.risk_aversion * DAYS_A_YEAR * cvxpy.sum_squares(risk)
    problem = cvxpy.Problem(cvxpy.Maximize(value), list(limits.values()))
    try:
        problem.solve(solver=cvxpy.CLARABEL, tol_gap_abs=1e-10, tol_gap_rel=1e-10, tol_feas=1e-10)
    except (cvxpy.error.SolverError, ValueError) as error:
        return str(error).split("\n")[0]
    if w.value is None:
        return problem.status
    price = {name: np.asarray(limit.dual_value, dtype=float) for name, limit in limits.items()}
    prices = Prices(float(price["invested"] - price["uninvested"]), np.zeros(len(program.names)), float(price.get("turnover", 0.0)))
    if len(upper):
        prices.bands[upper] += price["upper"]
    if len(lower):
        prices.bands[lower] -= price["lower"]
    if program.tracking is not None:
        prices.tracking = float(price["tracking"]) / program.tracking
    return tidied(program, w.value, prices, "cvxpy", len(case.alpha))[0]
