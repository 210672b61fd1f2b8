"""Qlib's optimiser of the same name and call, on this package's solver."""

from __future__ import annotations

from typing import Any, Mapping

import numpy as np

from qlib_ext.errors import DataError
from qlib_ext.portfolio.optimizer import IndexEnhancer
from qlib_ext.portfolio.program import DAYS_A_YEAR
from qlib_ext.risk.snapshot import RiskSnapshot


class EnhancedIndexingOptimizer:
    """Qlib's optimiser of the same name, call for call: ``max d'r - lamb (d'F cov_b F'd + var_u'd^2)`` with ``d = w - wb``.

    Beyond Qlib's: it always solves (or raises), keeps the turnover limit, and cuts small weights without breaking the limits; what
    drifted above ``wb + b_dev`` may stay and is only sold (there the problem would often have no solution).

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
        """Weights ``[n]``. Arguments as Qlib's: r, var_u, w0, wb ``[n]`` (or columns ``[n, 1]``), F ``[n, k]``, cov_b ``[k, k]``, bool
        masks: mfh must be held as it is, mfs must be sold (which goes before mfh).

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
