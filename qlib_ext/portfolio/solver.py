"""Solving a `Program`: straight to Clarabel with few columns and a proof, and through cvxpy word for word.

An answer counts only when its weights keep all limits and its `Prices` prove, in plain numpy and over all stocks, that nothing better
exists (`Program.bound`). A program without weights counts as infeasible only when prices prove that too.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import clarabel
import cvxpy
import numpy as np
from scipy import sparse

from qlib_ext.errors import SolverError
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
    ways = {"auto": (*direct, _cvxpy), "clarabel": direct, "cvxpy": (_cvxpy, _impossible)}[solver]
    if not (program.low < program.high).any():
        return _fixed(program)
    faults = []
    for way in ways:
        answer = way(program)
        if isinstance(answer, Answer):
            return answer
        faults.append(f"{way.__name__.strip('_')}: {answer}")
    raise SolverError(f"{program.case.day}: no solver gave weights that can be verified ({'; '.join(faults)}): look for limits or "
                      "covariances "
                      "of very different sizes among the inputs")


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


def _impossible(program: Program) -> Answer | str:
    """A proof that there are no weights: Clarabel's own or, where that is too rough, that the least turnover, or tracking error, that all
    other limits allow is above the limit."""
    found = _whole(program)
    if isinstance(found, Answer) and found.weights is None:
        return found
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


class _Rows:
    """Entries of a sparse matrix, block by block; every block's right side goes into `right`."""

    def __init__(self):
        self.row, self.column, self.value, self.right, self.count = [], [], [], [], 0

    def add(self, right: np.ndarray, *entries: tuple) -> slice:
        """A block of rows ``right - sum of entries in its cone``; entries are (row in the block, column, value), broadcast."""
        for row, column, value in entries:
            row, column, value = np.broadcast_arrays(np.asarray(row) + self.count, column, value)
            self.row.append(row.ravel())
            self.column.append(column.ravel())
            self.value.append(value.ravel())
        self.right.append(np.atleast_1d(right))
        self.count += len(self.right[-1])
        return slice(self.count - len(self.right[-1]), self.count)

    def matrix(self, columns: int) -> sparse.csc_matrix:
        join = np.concatenate
        return sparse.csc_matrix((join(self.value), (join(self.row), join(self.column))), shape=(self.count, columns))


@dataclass
class _Found:
    """An answer or what is wrong with it; the weights and their bound, None where none were found."""

    answer: Answer | str
    weights: np.ndarray | None = None
    bound: Bound | None = None


def _solve_columns(program: Program, chosen: np.ndarray, tolerance: float = FINE) -> _Found:
    """The program with weights that are not `chosen [n]` at their lower limits; a rough tolerance gives prices, and no answer."""
    matrices = _Matrices(program, chosen)
    status, x, z = matrices.solve(tolerance)
    prices, count, whole = matrices.prices(z), len(matrices.place), np.array_equal(chosen, program.low < program.high)
    if status in ("Solved", "AlmostSolved", "InsufficientProgress", "MaxIterations"):
        weights = program.low.copy()
        weights[matrices.place] = x[:count]
        if tolerance == ROUGH:
            return _Found("rough", weights, program.bound(prices, np.clip(weights, program.low, program.high)))
        answer, tidy = tidied(program, weights, prices, "clarabel", count)
        if isinstance(answer, Answer) or not whole or not _proves(program, prices):
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


class _Matrices:
    """A program in Clarabel's form: minimise ``x'Px / 2 + q'x`` with ``b - Ax`` in its cones.

    ``x`` holds the weights that are chosen, then the purchases of those that may be bought or sold (others only buy, or only sell: their
    trade is linear in w), then the active exposures y that are limited or risky. What is not chosen stands in the right sides.
    """

    def __init__(self, program: Program, chosen: np.ndarray):
        case, self.program = program.case, program
        self.place = np.flatnonzero(chosen)
        self.rest = np.where(chosen, 0.0, program.low) - case.benchmark       # active weights, of the chosen less w
        self.trade = np.where(chosen, 0.0, program.low - case.current)        # trades of the others
        self.w0, self.names = case.current[self.place], np.arange(len(self.place))
        self.low, self.high = program.low[self.place], program.high[self.place]
        trades = program.turnover is not None or (program.buy_cost + program.sell_cost).any()
        self.both = np.flatnonzero((self.w0 > self.low) & (self.w0 < self.high)) if trades else np.empty(0, int)
        self.buying = np.where(self.w0 <= self.low, 1.0, 0.0)
        limited = np.isfinite(program.band_low) | np.isfinite(program.band_high)
        limited[program.risky] = True
        self.used = np.flatnonzero(limited)
        self.buys = len(self.place) + np.arange(len(self.both))
        self.y = len(self.place) + len(self.both) + np.arange(len(self.used))
        self.risky = self.y[np.searchsorted(self.used, program.risky)]
        self.width = len(self.place) + len(self.both) + len(self.used)
        self.rows, self.marks = _Rows(), {}
        self._add_exposures()
        self._add_sums()
        self._add_bounds()
        self.nonnegative = self.rows.count - self.zeros
        if program.tracking is not None:
            self.marks["cone"], self.fixed_risk = _add_cone(program, self.rows, self.place, self.rest, self.risky)

    def _add_exposures(self) -> None:
        """``y - X'w = X'd`` of the rest."""
        program, c0 = self.program, self.program.dense.shape[1]
        dense = self.used[self.used < c0]
        entries = [(np.arange(len(dense))[:, None], self.names[None], -program.dense[np.ix_(self.place, dense)].T),
                   (np.arange(len(self.used)), self.y, 1.0)]
        if len(self.used) > len(dense):
            row_of = np.full(len(program.names) + 1, -1)
            row_of[self.used] = np.arange(len(self.used))
            row = np.where(program.group[self.place] >= 0, row_of[c0 + program.group[self.place]], -1)
            entries.append((row[row >= 0], np.flatnonzero(row >= 0), -1.0))
        self.rows.add(program.exposures(self.rest)[self.used], *entries)

    def _add_sums(self) -> None:
        """What is invested: one equation, or two limits."""
        low, high = self.program.invested
        rest = self.rest.sum() + self.program.case.benchmark.sum()
        if low == high:
            self.marks["invested"] = self.rows.add(high - rest, (0, self.names, 1.0))
        self.zeros = self.rows.count
        if low < high:
            self.marks["invested"] = self.rows.add(high - rest, (0, self.names, 1.0))
            self.marks["uninvested"] = self.rows.add(rest - low, (0, self.names, -1.0))

    def _add_bounds(self) -> None:
        """Weights, purchases, turnover (``buys - (sum w - sum w0) / 2``) and bands."""
        program, rows, names, both = self.program, self.rows, self.names, self.both
        rows.add(-self.low, (names, names, -1.0))
        rows.add(self.high, (names, names, 1.0))
        if len(both):
            each = np.arange(len(both))
            rows.add(np.zeros(len(both)), (each, self.buys, -1.0))
            rows.add(self.w0[both], (each, both, 1.0), (each, self.buys, -1.0))
        if program.turnover is not None:
            bought = self.w0[self.w0 <= self.low].sum()
            right = program.turnover - np.abs(self.trade).sum() / 2 + bought - self.w0.sum() / 2
            self.marks["turnover"] = rows.add(right, (0, names, self.buying - 0.5), (0, self.buys, 1.0))
        for mark, side, sign in self._sides():
            at = np.flatnonzero(np.isfinite(side[self.used]))
            self.marks[mark] = rows.add(sign * side[self.used][at], (np.arange(len(at)), self.y[at], sign))

    def _sides(self):
        return ("upper", self.program.band_high, 1.0), ("lower", self.program.band_low, -1.0)

    def solve(self, tolerance: float) -> tuple[str, np.ndarray, np.ndarray]:
        """Clarabel's status, x, and the multipliers of the rows, in units of the objective."""
        square, linear = _objective(self.program, self.place, self.both, self.risky, self.width, self.buying)
        scale = np.abs(linear).max(initial=0.0) or 1.0
        cones = [clarabel.ZeroConeT(self.zeros), clarabel.NonnegativeConeT(self.nonnegative)]
        if "cone" in self.marks:
            cones.append(clarabel.SecondOrderConeT(self.rows.count - self.zeros - self.nonnegative))
        result = _clarabel(square / scale, linear / scale, self.rows.matrix(self.width), np.concatenate(self.rows.right), cones, tolerance)
        return str(result.status), np.array(result.x), np.array(result.z) * scale

    def prices(self, z: np.ndarray) -> Prices:
        """The multipliers by limit."""
        program, marks = self.program, self.marks
        prices = Prices(float(z[marks["invested"]][0]), np.zeros(len(program.names)))
        if "uninvested" in marks:
            prices.invested -= float(z[marks["uninvested"]][0])
        for mark, side, sign in self._sides():
            prices.bands[self.used[np.isfinite(side[self.used])]] += sign * z[marks[mark]]
        if "turnover" in marks:
            prices.turnover = max(float(z[marks["turnover"]][0]), 0.0)
        if "cone" in marks:
            prices.tracking, prices.cone = _cone_price(program, z[marks["cone"]], self.place, self.rest, self.fixed_risk)
        return prices


def _add_cone(program: Program, rows: _Rows, place: np.ndarray, rest: np.ndarray, y: np.ndarray) -> tuple[slice, float]:
    """Rows ``(1, R'y, sd d, what is fixed) / limit``; also the fixed part."""
    unit = np.sqrt(DAYS_A_YEAR) / program.tracking
    deviation = np.sqrt(program.case.specific_var)
    others = np.ones(len(rest), bool)
    others[place] = False
    fixed = float(np.sqrt(np.sum((deviation * rest)[others] ** 2)))
    k = program.root.shape[1]
    at, factor = np.nonzero(program.root.T)
    names = np.arange(len(place))
    right = np.concatenate([[1.0], np.zeros(k), unit * (deviation * rest)[place], [unit * fixed]])
    mark = rows.add(right, (1 + at, y[factor], -unit * program.root.T[at, factor]), (1 + k + names, names, -unit * deviation[place]))
    return mark, fixed


def _cone_price(program: Program, z: np.ndarray, place: np.ndarray, rest: np.ndarray, fixed: float) -> tuple[float, tuple]:
    """Price of the tracking cone, and its vector on factors and on all stocks: what is fixed shares the price of its row in proportion."""
    k, stocks = program.root.shape[1], np.zeros(len(rest))
    if fixed > 0:
        stocks = z[-1] * np.sqrt(program.case.specific_var) * rest / fixed
    stocks[place] = z[1 + k:-1]
    size = max(z[0], np.linalg.norm(z[1:]))                # in the cone, whatever rounding says
    return float(size) / program.tracking, (-z[1:1 + k] / program.tracking, -stocks / program.tracking)


def _objective(program: Program, place: np.ndarray, both: np.ndarray, y: np.ndarray, width: int, buying: np.ndarray):
    """Quadratic (upper half) and linear part of what is minimised."""
    case, n = program.case, len(place)
    cost = program.buy_cost + program.sell_cost
    linear = np.zeros(width)
    linear[:n] = -program.alpha[place] - program.pull * program.anchor[place] + cost[place] * buying - program.sell_cost[place]
    linear[n:n + len(both)] = cost[place][both]
    row, column, value = [np.arange(n)], [np.arange(n)], [np.full(n, program.pull)]
    if program.risk_aversion:
        scale = 2 * program.risk_aversion * DAYS_A_YEAR
        value[0] = value[0] + scale * case.specific_var[place]
        linear[:n] -= scale * case.specific_var[place] * case.benchmark[place]
        i, j = np.triu_indices(len(y))
        row, column, value = [*row, y[i]], [*column, y[j]], [*value, scale * program.factor_cov[i, j]]
    square = sparse.csc_matrix((np.concatenate(value), (np.concatenate(row), np.concatenate(column))), shape=(width, width))
    return square, linear


def _clarabel(square, linear, matrix, right, cones, tolerance):
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads, settings.presolve_enable = False, 1, False
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    return clarabel.DefaultSolver(square, linear, matrix, right, cones, settings).solve()


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
