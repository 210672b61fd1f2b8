"""A `Program` as Clarabel takes it: sparse matrices and cones, and the multipliers that come back as prices."""

from __future__ import annotations

import clarabel
import numpy as np
from scipy import sparse

from qlib_ext.portfolio.program import DAYS_A_YEAR, Prices, Program


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


class Matrices:
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
