"""Other libraries on the problems of `optimizer_instances.py`: each as its own users would write it, built once where it can be.

A peer says the package it needs, up to how many stocks it is run, and what of the problem it cannot express (`leaves_out`); where
that is nothing, its objective is compared. `prepare` is outside the clock, `solve` inside.
"""

from __future__ import annotations

import importlib.util
import warnings
from typing import Sequence

import cvxpy as cp
import numpy as np
import pandas as pd
from optimizer_instances import STYLES, YEAR, Instance


class Peer:
    """A library that solves instances; `instances` are all that will come, of one size."""

    name, package, largest, leaves_out = "", "cvxpy", 5000, ""

    def __init__(self, instances: Sequence[Instance]):
        self.instances = instances

    def prepare(self, one: Instance):
        """What `solve` takes."""
        return one

    def solve(self, one) -> np.ndarray:
        """Weights ``[n]``."""
        raise NotImplementedError


class CvxpyRebuilt(Peer):
    """cvxpy in the factor form (active weights, buys and active exposures as variables), written anew each week, Clarabel."""

    name = "cvxpy-rebuilt"

    @staticmethod
    def arrays(one: Instance) -> dict[str, np.ndarray]:
        """What changes from week to week; `turnover` bounds twice the buys (2, all sold and all bought, limits nothing)."""
        return {"alpha": one.alpha, "style": one.exposure[:, :STYLES].T, "spread": np.sqrt(YEAR * one.specific_var),
                "root": np.linalg.cholesky(YEAR * one.factor_cov).T, "low": one.lower - one.benchmark, "high": one.upper - one.benchmark,
                "held": one.current - one.benchmark, "turnover": np.array(min(2 * one.turnover, 2.0) + 1 - one.current.sum())}

    def problem(self, one: Instance, data: dict) -> cp.Problem:
        """The problem, with `data` as constants or as parameters; industries stay as they are in all weeks."""
        n = len(one.alpha)
        self.active, buys, loading = cp.Variable(n), cp.Variable(n, nonneg=True), cp.Variable(len(one.bands))
        industry = one.exposure[:, STYLES:].T
        limits = [cp.sum(self.active) == 0, self.active >= data["low"], self.active <= data["high"], buys >= self.active - data["held"],
                  2 * cp.sum(buys) <= data["turnover"], loading[:STYLES] == data["style"] @ self.active,
                  loading[STYLES:] == cp.Constant(_sparse(industry)) @ self.active, cp.abs(loading) <= one.bands,
                  cp.SOC(cp.Constant(one.tracking_error),
                         cp.hstack([data["root"] @ loading, cp.multiply(data["spread"], self.active)]))]
        if one.member_share:
            limits.append(cp.sum(self.active[np.flatnonzero(one.members)]) >= one.member_share - one.benchmark[one.members].sum())
        return cp.Problem(cp.Maximize(data["alpha"] @ self.active - 2 * one.cost * cp.sum(buys)), limits)

    def solve(self, one: Instance) -> np.ndarray:
        """Weights."""
        self.problem(one, self.arrays(one)).solve(solver=cp.CLARABEL, max_threads=1)
        return self.active.value + one.benchmark


class CvxpyParameters(CvxpyRebuilt):
    """The same compiled once, with parameters (DPP); above 1,000 stocks `ignore_dpp`: the compiled form would take 12 GB."""

    name = "cvxpy-dpp"

    def __init__(self, instances: Sequence[Instance]):
        super().__init__(instances)
        self.data = {name: cp.Parameter(value.shape, nonneg=name in ("spread", "turnover"))
                     for name, value in self.arrays(instances[0]).items()}
        self.built = self.problem(instances[0], self.data)

    def solve(self, one: Instance) -> np.ndarray:
        """Weights."""
        for name, value in self.arrays(one).items():
            self.data[name].value = value
        self.built.solve(solver=cp.CLARABEL, max_threads=1, ignore_dpp=len(one.alpha) > 1000)
        return self.active.value + one.benchmark


class QlibEnhancedIndexing(Peer):
    """Qlib's optimiser as shipped (ECOS)."""

    name, package = "qlib", "ecos"
    leaves_out = "limit of tracking error (penalty lamb 0.1), caps (3 % around the benchmark), costs, one-sided locks, member share"

    def __init__(self, instances: Sequence[Instance]):
        from qlib.contrib.strategy.optimizer import EnhancedIndexingOptimizer

        super().__init__(instances)
        turnover = 2 * instances[-1].turnover                       # week 0 has none: it is solved with the limit of the others
        self.optimizer = EnhancedIndexingOptimizer(lamb=0.1, delta=turnover if np.isfinite(turnover) else None, b_dev=0.03,
                                                   f_dev=instances[0].bands)

    def solve(self, one: Instance) -> np.ndarray:
        """Weights."""
        return self.optimizer(one.alpha, one.exposure, one.factor_cov, one.specific_var, one.current, one.benchmark,
                              mfh=one.no_buy & one.no_sell)


class Skfolio(Peer):
    """skfolio's `MeanRisk` with a given factor model; total turnover, bands and member share by `add_constraints`."""

    name, package, largest = "skfolio", "skfolio", 1000

    def solve(self, one: Instance) -> np.ndarray:
        """Weights."""
        from skfolio.measures import RiskMeasure
        from skfolio.optimization import MeanRisk, ObjectiveFunction

        def limits(w: cp.Variable) -> list:
            exposure = cp.Constant(_sparse(one.exposure.T)) @ (w - one.benchmark)
            more = [cp.norm1(w - one.current) <= 2 * one.turnover] if np.isfinite(one.turnover) else []
            more += [cp.sum(w[np.flatnonzero(one.members)]) >= one.member_share] if one.member_share else []
            return [cp.abs(exposure) <= one.bands, *more]

        model = MeanRisk(objective_function=ObjectiveFunction.MAXIMIZE_RETURN, risk_measure=RiskMeasure.STANDARD_DEVIATION,
                         prior_estimator=_skfolio_prior(one), min_weights=one.lower, max_weights=one.upper,
                         transaction_costs=one.cost, previous_weights=one.current, target_weights=one.benchmark,
                         max_standard_deviation=one.tracking_error / np.sqrt(YEAR), add_constraints=limits,
                         solver="CLARABEL", solver_params={"max_threads": 1})
        return model.fit(np.zeros((2, len(one.alpha)))).weights_


def _skfolio_prior(one: Instance):
    from skfolio.prior import BasePrior, FactorModel, ReturnDistribution

    class Given(BasePrior):
        """The risk of an instance."""

        def __init__(self, week: int = one.week):
            self.week = week

        def fit(self, X, y=None, **fit_params):
            """Build the distribution, with the full covariance that skfolio asks for beside the factors."""
            names = [np.array([f"{letter}{place}" for place in range(size)]) for letter, size in zip("sf", one.exposure.shape)]
            factors = FactorModel(np.arange(len(X)).astype(str), *names, None, one.exposure, None, one.factor_cov,
                                  np.zeros(len(one.factor_cov)), None, one.specific_var, None, None, None)
            covariance = one.exposure @ one.factor_cov @ one.exposure.T + np.diag(one.specific_var)
            self.return_distribution_ = ReturnDistribution(one.alpha, covariance, X, factor_model=factors)
            return self

    return Given()


class Cvxportfolio(Peer):
    """cvxportfolio's single-period policy, compiled once with the data of all weeks, then asked week by week (Clarabel)."""

    name, package, largest = "cvxportfolio", "cvxportfolio", 300

    def __init__(self, instances: Sequence[Instance]):
        import cvxportfolio as cvx

        super().__init__(instances)
        one, n = instances[0], len(instances[0].alpha)
        self.stocks, factors = [f"S{place:05d}" for place in range(n)], [f"F{place}" for place in range(len(one.bands))]
        self.days = pd.date_range("2020-01-03", periods=len(instances), freq="7D")
        dated = lambda rows, names: pd.DataFrame(list(rows), self.days, names)  # noqa: E731
        stacked = lambda parts, names, columns: pd.concat(  # noqa: E731
            {day: pd.DataFrame(part, names, columns) for day, part in zip(self.days, parts)})
        anchor = dated((each.exposure.T @ each.benchmark for each in instances), factors)
        exposure = stacked((each.exposure for each in instances), self.stocks, factors)
        risk = cvx.FactorModelCovariance(F=stacked((each.exposure.T for each in instances), factors, self.stocks),
                                         d=dated((each.specific_var for each in instances), self.stocks),
                                         Sigma_F=pd.DataFrame(one.factor_cov, factors, factors))
        limits = [cvx.MinWeights(dated((each.lower for each in instances), self.stocks)), cvx.NoCash(),
                  cvx.MaxWeights(dated((each.upper for each in instances), self.stocks)), risk <= one.tracking_error**2 / YEAR,
                  cvx.TurnoverLimit(pd.Series([min(each.turnover, 1.0) for each in instances], self.days)),
                  cvx.FactorMaxLimit(exposure, anchor + one.bands), cvx.FactorMinLimit(exposure, anchor - one.bands)]
        if one.member_share:
            limits.append(cvx.FactorMinLimit(pd.Series(one.members.astype(float), self.stocks), one.member_share))
        benchmark = dated((np.append(each.benchmark, 0.0) for each in instances), [*self.stocks, "cash"])
        gain = cvx.ReturnsForecast(dated((each.alpha for each in instances), self.stocks)) - cvx.TransactionCost(a=one.cost, b=None)
        self.policy = cvx.SinglePeriodOptimization(gain, limits, include_cash_return=False, benchmark=benchmark, solver="CLARABEL",
                                                   max_threads=1)
        self.policy.initialize_estimator_recursive(universe=benchmark.columns, trading_calendar=self.days)

    def prepare(self, one: Instance) -> dict:
        """The day, and the book with its cash."""
        held = pd.Series(np.append(one.current, 1 - one.current.sum()), [*self.stocks, "cash"])
        return {"t": self.days[one.week], "current_weights": held, "current_portfolio_value": 1.0, "past_returns": None,
                "past_volumes": None, "current_prices": None}

    def solve(self, one: dict) -> np.ndarray:
        """Weights."""
        return self.policy.values_in_time_recursive(**one).to_numpy()[:-1]


class Riskfolio(Peer):
    """Riskfolio-Lib's classic optimisation, limits as rows of `A w <= b`."""

    name, package, largest = "riskfolio", "riskfolio", 300
    leaves_out = "forecast tracking error (realised one of 252 drawn days instead), total turnover, costs"

    def prepare(self, one: Instance) -> tuple:
        """The instance and daily returns drawn from its risk."""
        rng = np.random.default_rng(one.week)
        draws = rng.multivariate_normal(np.zeros(len(one.factor_cov)), one.factor_cov, YEAR) @ one.exposure.T
        return one, pd.DataFrame(draws + rng.normal(size=draws.shape) * np.sqrt(one.specific_var))

    def solve(self, one: tuple) -> np.ndarray:
        """Weights."""
        import riskfolio

        one, returns = one
        shift, eye = one.exposure.T @ one.benchmark, np.eye(len(one.alpha))
        rows = [(eye, one.upper), (-eye, -one.lower), (one.exposure.T, shift + one.bands), (-one.exposure.T, one.bands - shift)]
        rows += [(-one.members[None].astype(float), np.array([-one.member_share]))] if one.member_share else []
        book = riskfolio.Portfolio(returns=returns, allowTE=True, TE=one.tracking_error / np.sqrt(YEAR), kindbench=False,
                                   benchindex=(returns @ one.benchmark).to_frame(), ainequality=np.vstack([row for row, _ in rows]),
                                   binequality=np.concatenate([bound for _, bound in rows])[:, None])
        book.mu = pd.DataFrame(one.alpha[None], columns=returns.columns)
        covariance = one.exposure @ one.factor_cov @ one.exposure.T + np.diag(one.specific_var)
        book.cov = pd.DataFrame(covariance, returns.columns, returns.columns)
        found = book.optimization(model="Classic", rm="MV", obj="MaxRet", hist=True)
        if found is None:
            raise RuntimeError("Riskfolio-Lib returns no weights")
        return found["weights"].to_numpy()


def _sparse(matrix: np.ndarray):
    from scipy import sparse

    return sparse.csr_matrix(matrix)


PEERS = {peer.name: peer for peer in (CvxpyParameters, CvxpyRebuilt, QlibEnhancedIndexing, Skfolio, Cvxportfolio, Riskfolio)}


def chosen(names: Sequence[str], instances: Sequence[Instance]) -> tuple[dict[str, Peer], list[str]]:
    """The peers that can run here, built, by name; and a line for each that cannot."""
    warnings.simplefilter("ignore")
    runs, lines = {}, []
    for name in names:
        peer, n = PEERS[name], len(instances[0].alpha)
        if importlib.util.find_spec(peer.package) is None:
            lines.append(f"{name}: skipped, the package {peer.package} is not installed")
        elif n > peer.largest:
            lines.append(f"{name}: skipped, run up to {peer.largest:,} stocks only (time and memory)")
        else:
            runs[name] = peer(instances)
    return runs, lines
