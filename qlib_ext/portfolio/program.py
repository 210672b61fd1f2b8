"""An index-enhancement problem as arrays: what is maximised, what limits it, whether weights keep to it, and how good they can get.

    maximise   mu'w - buy_cost'(w - w0)+ - sell_cost'(w0 - w)+ - risk_aversion x 252 d'Sd - pull / 2 |w - anchor|^2
    subject to low <= w <= high,  bands on X'd,  sum(w) in a band,  0.5 |w - w0|_1 <= turnover,  sqrt(252 d'Sd) <= tracking

with ``d = w - b`` and ``S = X F X' + D`` (letters as in `qlib_ext.portfolio.constraint`). Source: methods.md of the brokers' reports
gives the limits; Lagrangian bounds are textbook convex duality.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from qlib_ext.risk.snapshot import INDUSTRY

DAYS_A_YEAR = 252


@dataclass
class Case:
    """One rebalance, all arrays in the order of `instruments` ``[n]``.

    Args:
        day: of the decision. alpha: ``[n]`` finite. benchmark, current: weights ``[n]`` >= 0; the benchmark sums to 1.
        exposure ``[n, k]``, factors ``[k]``, factor_cov ``[k, k]``, specific_var ``[n]``: the risk of daily returns.
        extras: further style columns ``[n]`` by name. no_buy, no_sell, members, sell_all: bool ``[n]``.
        buy_cost, sell_cost: ``[n]`` fractions of the value traded. scale: how much absolute caps grow.
    """

    day: str
    instruments: np.ndarray
    alpha: np.ndarray
    benchmark: np.ndarray
    current: np.ndarray
    exposure: np.ndarray
    factors: tuple[str, ...]
    factor_cov: np.ndarray
    specific_var: np.ndarray
    no_buy: np.ndarray
    no_sell: np.ndarray
    members: np.ndarray
    buy_cost: np.ndarray
    sell_cost: np.ndarray
    sell_all: np.ndarray | None = None
    extras: dict[str, np.ndarray] = field(default_factory=dict)
    scale: float = 1.0

    @cached_property
    def groups(self) -> tuple[list[str], np.ndarray] | None:
        """Industries ``[g]`` and each stock's place among them ``[n]``, -1 without one; None where exposures are no memberships."""
        place = [k for k, name in enumerate(self.factors) if name.startswith(INDUSTRY)]
        if not place:
            return [], np.full(len(self.alpha), -1)
        block = self.exposure[:, place]
        group = block.argmax(axis=1)
        top = block[np.arange(len(block)), group]
        if not np.array_equal(block.sum(axis=1), top) or not np.isin(top, (0.0, 1.0)).all() or np.count_nonzero(block) != top.sum():
            return None
        return [self.factors[k] for k in place], np.where(top == 1, group, -1)


@dataclass
class Prices:
    """Multipliers of a program's limits: what one unit more of a limit would add to the objective.

    `invested`, `bands [c]`: positive for an upper, negative for a lower limit. `turnover`, `tracking`: not negative. `cone`: the vector
    ``(factors [r], stocks [n])`` of the tracking cone, no longer than `tracking`; None: the direction of the weights' own risk.
    """

    invested: float = 0.0
    bands: np.ndarray | float = 0.0
    turnover: float = 0.0
    tracking: float = 0.0
    cone: tuple[np.ndarray, np.ndarray] | None = None


class Bound(NamedTuple):
    """What `Program.bound` finds: the `value`; what each stock adds to the gap, `missed [n]`; the price of a first bit more of it than its
    lower limit, `edge [n]` (negative: worth buying)."""

    value: float
    missed: np.ndarray
    edge: np.ndarray


class Program:
    """Limits and objective of a case; constraints write into it, `close` ends that.

    Args:
        case: the rebalance. risk_aversion: per annual active variance. cost_aversion: times the cases' costs. pull: see the module; the
            anchor is the current book, or the benchmark where there is none. unit: size of an alpha that matters; None: the largest.
    """

    def __init__(self, case: Case, risk_aversion: float = 0.0, cost_aversion: float = 0.0, pull: float = 0.0, unit: float | None = None):
        n = len(case.alpha)
        self.unit = max(float(np.abs(case.alpha).max(initial=0.0)), 1e-12) if unit is None else unit
        self.case, self.risk_aversion, self.pull = case, risk_aversion, pull
        self.alpha, self.buy_cost, self.sell_cost = case.alpha, cost_aversion * case.buy_cost, cost_aversion * case.sell_cost
        self.anchor = case.current if case.current.any() else case.benchmark
        self.low, self.high = np.zeros(n), np.ones(n)
        self.invested, self.turnover, self.tracking = (0.0, 1.0), None, None
        self.minimum_position, self.minimum_trade = 0.0, 0.0
        self._bands: dict[str, tuple[float, float]] = {}
        self._columns = dict(case.extras)

    def cap(self, values: np.ndarray) -> None:
        """``w <= values``."""
        self.high = np.minimum(self.high, values)

    def floor(self, values: np.ndarray) -> None:
        """``w >= values``, where that can be bought."""
        self.low = np.maximum(self.low, values)

    def column(self, name: str, values: np.ndarray) -> None:
        """A further column ``[n]`` for `band`."""
        self._columns[name] = values

    def band(self, name: str, low: float, high: float) -> None:
        """``low <= x'd <= high`` of a column: a factor, an extra or one of `column`."""
        self._bands[name] = (low, high)

    def close(self) -> "Program":
        """Lay locks over caps, and columns side by side.

        A name over a positive cap after drift may be sold only; over a cap of 0 it must be sold. A name that cannot be sold stays, over
        any cap; one that cannot be bought stays below, under any floor. What is over its cap is not bought, whatever a floor says.
        """
        case = self.case
        if case.sell_all is not None:
            self.high = np.where(case.sell_all, 0.0, self.high)
        self.limit = self.high
        self.over = (case.current > self.high) & (self.high > 0)
        self.high = np.where(self.over, case.current, self.limit)
        self.high = np.where(case.no_buy, np.minimum(self.high, case.current), self.high)
        self.low = np.minimum(self.low, self.high)
        self.low = np.where(case.no_sell, np.maximum(self.low, case.current), self.low)
        self.high = np.maximum(self.high, self.low)
        self._lay_columns()
        return self

    @property
    def needs_risk(self) -> bool:
        """Whether the covariance enters."""
        return self.tracking is not None or self.risk_aversion > 0

    def _lay_columns(self) -> None:
        """`dense [n, c0]` and one-hot `group [n]` columns, names of both, bands, and the root of the factor covariance on them."""
        case = self.case
        groups = case.groups
        industries, self.group = ([], np.full(len(case.alpha), -1)) if groups is None else groups
        kept = [name for name in case.factors if name not in industries and (name in self._bands or self.needs_risk and self._moves(name))]
        place = {name: k for k, name in enumerate(case.factors)}
        others = [name for name in self._bands if name not in place]
        if not self.needs_risk and not any(name in self._bands for name in industries):
            industries, self.group = [], np.full(len(case.alpha), -1)
        self.names = [*kept, *others, *industries]
        self.dense = np.column_stack([*(case.exposure[:, place[name]] for name in kept), *(self._columns[name] for name in others)]) \
            if kept or others else np.empty((len(case.alpha), 0))
        free = (-np.inf, np.inf)
        self.band_low, self.band_high = (np.array([self._bands.get(name, free)[side] for name in self.names]) for side in (0, 1))
        self.risky = np.array([k for k, name in enumerate(self.names) if name in place] if self.needs_risk else [], dtype=int)
        order = [place[self.names[k]] for k in self.risky]
        self.factor_cov = case.factor_cov[np.ix_(order, order)]
        self.root = _root(self.factor_cov)

    def _moves(self, name: str) -> bool:
        """False for a factor whose active exposure is 0 whatever the weights: equal for all stocks under full investment."""
        column = self.case.exposure[:, self.case.factors.index(name)]
        return bool(column.min() < column.max()) or self.invested != (1.0, 1.0)

    # ---- what weights are worth ------------------------------------------------------------------------------------------------
    def exposures(self, active: np.ndarray) -> np.ndarray:
        """``X'd``, ``[c]`` in the order of `names`."""
        found = np.bincount(self.group[self.group >= 0], active[self.group >= 0], len(self.names) - self.dense.shape[1])
        return np.append(active @ self.dense, found)

    def spread(self, prices: np.ndarray) -> np.ndarray:
        """``X p``, ``[n]``."""
        c0 = self.dense.shape[1]
        return self.dense @ prices[:c0] + np.append(prices[c0:], 0.0)[self.group]

    def active_risk(self, active: np.ndarray) -> float:
        """Forecast tracking error a year."""
        loading = self.root.T @ self.exposures(active)[self.risky]
        return float(np.sqrt(DAYS_A_YEAR * (loading @ loading + self.case.specific_var @ active**2)))

    def active_risk_of(self, weights: np.ndarray) -> float:
        """Forecast tracking error a year, from all factors whether or not they limit anything."""
        active = weights - self.case.benchmark
        loading = active @ self.case.exposure
        return float(np.sqrt(DAYS_A_YEAR * (loading @ self.case.factor_cov @ loading + self.case.specific_var @ active**2)))

    def risk_gradient(self, active: np.ndarray) -> np.ndarray:
        """``S d``, ``[n]``."""
        prices = np.zeros(len(self.names))
        prices[self.risky] = self.factor_cov @ self.exposures(active)[self.risky]
        return self.spread(prices) + self.case.specific_var * active

    def objective(self, weights: np.ndarray) -> float:
        """What is maximised."""
        trade = weights - self.case.current
        value = self.alpha @ weights - self.buy_cost @ np.maximum(trade, 0) - self.sell_cost @ np.maximum(-trade, 0)
        if self.risk_aversion:
            value -= self.risk_aversion * self.active_risk(weights - self.case.benchmark) ** 2
        return float(value - self.pull / 2 * np.sum((weights - self.anchor) ** 2))

    def one_way(self, weights: np.ndarray) -> float:
        """Half the sum of absolute trades."""
        return float(np.abs(weights - self.case.current).sum() / 2)

    def violations(self, weights: np.ndarray) -> dict[str, float]:
        """How far each limit is overstepped in its own unit, 0 where it is kept."""
        active, total = weights - self.case.benchmark, weights.sum()
        exposure = self.exposures(active)
        over = {"weights": max(float((self.low - weights).max()), float((weights - self.high).max())),
                "investment": float(max(self.invested[0] - total, total - self.invested[1]))}
        over.update(zip(self.names, np.maximum(self.band_low - exposure, exposure - self.band_high)))
        if self.turnover is not None:
            over["turnover"] = self.one_way(weights) - self.turnover
        if self.tracking is not None:
            over["tracking_error"] = self.active_risk(active) - self.tracking
        return {name: max(float(value), 0.0) for name, value in over.items()}

    def bound(self, prices: Prices, weights: np.ndarray | None) -> Bound:
        """No weights that keep all limits are worth more than this, for any prices.

        The Lagrangian at `prices` splits by stock into a convex function of ``w_i`` with one kink, whose best value on [low, high] is at
        an end or at the kink; concave parts of the objective and the tracking cone are replaced by tangents at `weights`, which lie above.
        Without weights the objective counts as 0: a negative bound then proves that no weights keep all limits.
        """
        case, bands = self.case, np.broadcast_to(prices.bands, len(self.names))
        slope, constant = self.spread(bands) + prices.invested, -bands @ self.exposures(case.benchmark)
        limits = np.where(bands > 0, self.band_high, self.band_low)
        constant -= (bands[bands != 0] * limits[bands != 0]).sum() + prices.invested * self.invested[int(prices.invested > 0)]
        if self.tracking is not None and prices.tracking > 0:
            cone = self._cone(prices, weights)
            slope, constant = slope + cone, constant - cone @ case.benchmark - prices.tracking * self.tracking
        half = 0.0 if self.turnover is None else prices.turnover / 2
        buy, sell = np.full(len(slope), half), np.full(len(slope), half)
        constant -= 2 * half * (self.turnover or 0.0)
        if weights is not None:
            buy, sell = buy + self.buy_cost, sell + self.sell_cost
            gradient = -self.alpha + self.pull * (weights - self.anchor)
            constant -= -self.pull / 2 * np.sum((weights - self.anchor) ** 2) + self.pull * (weights - self.anchor) @ weights
            if self.risk_aversion:
                scale, active = self.risk_aversion * DAYS_A_YEAR, weights - case.benchmark
                risk = 2 * scale * self.risk_gradient(active)
                gradient, constant = gradient + risk, constant + risk @ active / 2 - risk @ weights
            slope = slope + gradient
        cost = lambda w: slope * w + buy * np.maximum(w - case.current, 0) + sell * np.maximum(case.current - w, 0)  # noqa: E731
        least = np.minimum(np.minimum(cost(self.low), cost(self.high)), cost(np.clip(case.current, self.low, self.high)))
        edge = slope + np.where(self.low >= case.current, buy, -sell)
        return Bound(-float(least.sum() + constant), np.zeros(len(slope)) if weights is None else cost(weights) - least, edge)

    def _cone(self, prices: Prices, weights: np.ndarray | None) -> np.ndarray:
        """Slope ``[n]`` of a line in ``d`` that lies under ``prices.tracking x tracking error``."""
        if prices.cone is None:
            active = weights - self.case.benchmark
            return prices.tracking * DAYS_A_YEAR * self.risk_gradient(active) / max(self.active_risk(active), 1e-12)
        spread = np.zeros(len(self.names))
        spread[self.risky] = self.root @ prices.cone[0]
        return (self.spread(spread) + np.sqrt(self.case.specific_var) * prices.cone[1]) * np.sqrt(DAYS_A_YEAR)


def _root(matrix: np.ndarray) -> np.ndarray:
    """``R`` with ``R R' = matrix``, lower triangular where the matrix has full rank."""
    try:
        return np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        value, vector = np.linalg.eigh(matrix)
        return vector * np.sqrt(np.maximum(value, 0))
