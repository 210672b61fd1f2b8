"""Weekly problems of an index enhancement on a generated market, and the direct Clarabel solve every method is compared with.

The problem of a week, in weights `w [n]` with active weights `d = w - benchmark` and trades `w - current`:

    maximise   alpha'w - cost * sum(buys) - cost * sum(sells)
    subject to sum(w) = 1, lower <= w <= upper, |B'd| <= bands, sum(buys) + sum(sells) <= 2 * turnover,
               sqrt(252 * d' (B F B' + diag(D)) d) <= tracking_error, sum(w of members) >= member_share

Stock caps are min(3 %, max(5 * benchmark, floor)). A stock that drifted over its cap may only be sold; where it cannot be sold
either, what is held stays. Alpha, B, D, the benchmark and the book change every week: the book of a week is the optimum of the
week before, moved by the returns in between. Week 0 starts from the benchmark, without a limit of turnover.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Iterator, NamedTuple

import clarabel
import numpy as np
from scipy import sparse

STYLES, INDUSTRIES = 10, 30
YEAR = 252
STYLE_SHARE = {300: 0.07, 800: 0.12, 1000: 0.38, 5000: 0.02}
"""Share of the variance of alpha that styles explain: with it the limit of 5 % binds in half of the weeks of 300 stocks, in a
third of those of 800 and 1,000, and in none of 5,000."""
DUST = 1e-6


@dataclass(frozen=True)
class Instance:
    """The problem of one week.

    Args:
        week: 0, 1, ...
        alpha: ``[n]`` expected returns of the week, fractions.
        benchmark, current: ``[n]`` weights, each summing to 1.
        exposure: ``[n, 40]``, 10 styles in standard deviations, then 30 industries 0 or 1.
        factor_cov: ``[40, 40]`` covariance of daily factor returns.
        specific_var: ``[n]`` variances of daily specific returns.
        no_buy, no_sell: ``[n]`` bool; suspended is both.
        members: ``[n]`` bool, in the benchmark.
        tracking_error: limit a year, fraction.
        turnover: limit one way, fraction, inf without one.
        floor: the cap of a stock is at least this, fraction.
        member_share: least weight of the members together, 0 without a limit.
    """

    week: int
    alpha: np.ndarray
    benchmark: np.ndarray
    current: np.ndarray
    exposure: np.ndarray
    factor_cov: np.ndarray
    specific_var: np.ndarray
    no_buy: np.ndarray
    no_sell: np.ndarray
    members: np.ndarray
    tracking_error: float
    turnover: float
    floor: float
    member_share: float
    largest: float = 0.03
    multiple: float = 5.0
    style: float = 0.5
    industry: float = 0.02
    cost: float = 0.001

    @property
    def cap(self) -> np.ndarray:
        """``[n]`` cap of each stock, whatever is held."""
        return np.minimum(self.largest, np.maximum(self.multiple * self.benchmark, self.floor))

    @property
    def lower(self) -> np.ndarray:
        """``[n]`` least weight: what is held and cannot be sold."""
        return np.where(self.no_sell, self.current, 0.0)

    @property
    def upper(self) -> np.ndarray:
        """``[n]`` largest weight: the cap, or what is held where that is more or nothing can be bought."""
        return np.where(self.no_buy, self.current, np.maximum(self.cap, self.current))

    @property
    def bands(self) -> np.ndarray:
        """``[40]`` largest absolute active exposure."""
        return np.repeat([self.style, self.industry], [STYLES, INDUSTRIES])

    def objective(self, weights: np.ndarray) -> float:
        """Expected return after costs of ``weights [n]``."""
        return float(self.alpha @ weights - self.cost * np.abs(weights - self.current).sum())

    def active_risk(self, weights: np.ndarray) -> float:
        """Tracking error a year of ``weights [n]``, fraction."""
        active = weights - self.benchmark
        loading = self.exposure.T @ active
        return float(np.sqrt(YEAR * (loading @ self.factor_cov @ loading + self.specific_var @ active**2)))

    def violations(self, weights: np.ndarray) -> dict[str, float]:
        """By how much ``weights [n]`` break each constraint, in the constraint's own unit; at most 0 where it is kept."""
        active = np.abs(self.exposure.T @ (weights - self.benchmark)) - self.bands
        return {"budget": abs(float(weights.sum()) - 1), "lower": float((self.lower - weights).max()),
                "upper": float((weights - self.upper).max()), "style": float(active[:STYLES].max()),
                "industry": float(active[STYLES:].max()),
                "turnover": float(np.abs(weights - self.current).sum() - 2 * self.turnover),
                "tracking error": self.active_risk(weights) - self.tracking_error,
                "members": self.member_share - float(weights[self.members].sum())}


class Solved(NamedTuple):
    """What a method found: ``weights [n]``, expected return after costs, wall seconds, the solver's own word."""

    weights: np.ndarray
    objective: float
    seconds: float
    status: str


# ---- the baseline ---------------------------------------------------------------------------------------------------------------
def direct_problem(one: Instance) -> tuple:
    """``q, A, b, cones`` of the factor form for Clarabel: minimise q'x where b - A x is in the cones.

    x holds weights ``[n]``, buys ``[n]`` and active exposures ``y [k]`` = B'(w - benchmark). Sells are buys - sum(w) + sum(current).
    Industries are one-hot, thus sparse; the second-order cone is (tracking_error, L'y, sd * (w - benchmark)) with L L' = F.
    """
    n, k = one.exposure.shape
    lower, upper = one.lower, one.upper
    fixed = upper - lower <= 1e-12
    locked, free, all_names = np.flatnonzero(fixed), np.flatnonzero(~fixed), np.arange(n)
    root, spread = np.linalg.cholesky(one.factor_cov * YEAR), np.sqrt(one.specific_var * YEAR)
    name, factor = np.nonzero(one.exposure)
    line, column = np.nonzero(root.T)
    entries, rhs, used = [], [], 0

    def rows(bound, *parts) -> int:
        """Append len(bound) rows made of (row, column, value) triplets."""
        nonlocal used
        bound = np.atleast_1d(bound)
        entries.extend((used + row, column, np.broadcast_to(value, np.shape(column))) for row, column, value in parts)
        rhs.append(bound)
        used += len(bound)
        return len(bound)

    each, ones, y = np.arange(len(free)), np.zeros(n, dtype=int), 2 * n + np.arange(k)
    zero = rows(1.0, (ones, all_names, 1.0))
    zero += rows(-one.exposure.T @ one.benchmark, (np.arange(k), y, 1.0), (factor, name, -one.exposure[name, factor]))
    zero += rows(lower[locked], (np.arange(len(locked)), locked, 1.0))
    above = rows(upper[free], (each, free, 1.0)) + rows(-lower[free], (each, free, -1.0))
    above += rows(np.zeros(n), (all_names, n + all_names, -1.0))
    above += rows(one.current, (all_names, all_names, 1.0), (all_names, n + all_names, -1.0))
    above += rows(one.bands, (np.arange(k), y, 1.0)) + rows(one.bands, (np.arange(k), y, -1.0))
    if np.isfinite(one.turnover):
        above += rows(2 * one.turnover - one.current.sum(), (ones, n + all_names, 2.0), (ones, all_names, -1.0))
    if one.member_share:
        inside = np.flatnonzero(one.members)
        above += rows(-one.member_share, (ones[inside], inside, -1.0))
    rows(np.concatenate([[one.tracking_error], np.zeros(k), -spread * one.benchmark]),
         (1 + line, 2 * n + column, -root.T[line, column]), (1 + k + all_names, all_names, -spread))
    row, column, value = (np.concatenate(part) for part in zip(*entries))
    matrix = sparse.csc_matrix((value, (row, column)), shape=(used, 2 * n + k))
    gain = np.concatenate([-one.alpha - one.cost, np.full(n, 2 * one.cost), np.zeros(k)])
    cones = [clarabel.ZeroConeT(zero), clarabel.NonnegativeConeT(above), clarabel.SecondOrderConeT(1 + k + n)]
    return gain, matrix, np.concatenate(rhs), cones


def solve_direct(one: Instance, tolerance: float = 1e-8) -> Solved:
    """The baseline: matrices built, Clarabel set up and run, from nothing, on one thread."""
    started = time.perf_counter()
    gain, matrix, rhs, cones = direct_problem(one)
    settings = clarabel.DefaultSettings()
    settings.verbose, settings.max_threads = False, 1
    settings.tol_gap_abs = settings.tol_gap_rel = settings.tol_feas = tolerance
    found = clarabel.DefaultSolver(sparse.csc_matrix((len(gain), len(gain))), gain, matrix, rhs, cones, settings).solve()
    weights = np.array(found.x[:len(one.alpha)])
    return Solved(weights, one.objective(weights), time.perf_counter() - started, str(found.status))


# ---- the market -----------------------------------------------------------------------------------------------------------------
def _scored(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(axis=0)) / values.std(axis=0)


class Market:
    """A market that moves week by week; every draw comes from `seed`."""

    def __init__(self, n: int, seed: int, style_share: float):
        self.rng = rng = np.random.default_rng([seed, n])
        self.n, self.style_share = n, style_share
        self.members = np.arange(n) < 1000
        self.benchmark = np.where(self.members, np.exp(rng.normal(0, 0.9, n)), 0.0)
        self.benchmark /= self.benchmark.sum()
        self.style, self.industry = _scored(rng.normal(size=(n, STYLES))), np.eye(INDUSTRIES)[rng.integers(0, INDUSTRIES, n)]
        self.calm = rng.uniform(0.25, 0.45, n)                                             # specific volatility a year
        volatility = np.concatenate([rng.uniform(0.025, 0.065, STYLES), rng.uniform(0.06, 0.14, INDUSTRIES)])
        common = rng.normal(size=(STYLES + INDUSTRIES, 5)) / 5
        covariance = common @ common.T + np.eye(STYLES + INDUSTRIES)
        scale = volatility / np.sqrt(np.diag(covariance) * YEAR)
        self.factor_cov = covariance * np.outer(scale, scale)
        self.tilt, self.view = rng.normal(size=STYLES), rng.normal(size=n)

    def move(self) -> np.ndarray:
        """Draw the next week; the returns ``[n]`` of the week before it."""
        rng, week = self.rng, 5.0
        factor = rng.multivariate_normal(np.zeros(len(self.factor_cov)), self.factor_cov * week)
        returns = np.concatenate([self.style, self.industry], axis=1) @ factor
        returns += rng.normal(size=self.n) * self.calm * np.sqrt(week / YEAR)
        self.benchmark = self.benchmark * (1 + returns) / (self.benchmark @ (1 + returns))
        self.style = _scored(0.97 * self.style + np.sqrt(1 - 0.97**2) * rng.normal(size=self.style.shape))
        self.tilt = 0.9 * self.tilt + np.sqrt(1 - 0.9**2) * rng.normal(size=STYLES)
        self.view = 0.6 * self.view + 0.8 * rng.normal(size=self.n)
        return returns

    def instance(self, week: int, current: np.ndarray, tracking_error: float) -> Instance:
        """The problem of the week for a book ``[n]``."""
        rng = self.rng
        draw, calm = rng.random(self.n), self.calm * np.exp(rng.normal(0, 0.05, self.n))
        suspended = draw < 0.01
        style = self.style @ self.tilt
        score = np.sqrt(self.style_share) * style / style.std() + np.sqrt(1 - self.style_share) * self.view
        return Instance(week, 0.002 * score, self.benchmark, current, np.concatenate([self.style, self.industry], axis=1),
                        self.factor_cov, calm**2 / YEAR, suspended | ((draw > 0.01) & (draw < 0.02)),
                        suspended | ((draw > 0.02) & (draw < 0.03)), self.members, tracking_error,
                        0.15 if week else np.inf, 0.005 if self.n >= 5000 else 0.002, 0.8 if self.n > 1000 else 0.0)


def weeks(count: int = 52, n: int = 300, seed: int = 0, tracking_error: float = 0.05,
          style_share: float | None = None) -> Iterator[Instance]:
    """The problems of `count` weeks.

    Args:
        count: weeks, week 0 among them.
        n: stocks; above 1,000 the first 1,000 are the members of the benchmark and hold 80 % of the book at least.
        seed: of all draws.
        tracking_error: limit a year; each limit has a path of its own from week 0.
        style_share: of the variance of alpha, None = as calibrated for the size.

    Raises:
        RuntimeError: the baseline does not solve a week, thus there is no book for the next.
    """
    sizes = np.array(sorted(STYLE_SHARE))
    market = Market(n, seed, STYLE_SHARE[int(sizes[np.abs(sizes - n).argmin()])] if style_share is None else style_share)
    current = market.benchmark
    for week in range(count):
        one = market.instance(week, current, tracking_error)
        yield one
        if week + 1 == count:
            return
        found = solve_direct(one)
        if found.status != "Solved":
            raise RuntimeError(f"{n} stocks, seed {seed}, week {week}: the baseline ends as {found.status}")
        held = np.where(found.weights < DUST, 0.0, found.weights) * (1 + market.move())
        current = held / held.sum()
