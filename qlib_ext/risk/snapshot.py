"""The risk of a day: exposures, factor covariance and specific variances, as known at its close. Pure arrays, for all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from qlib_ext.errors import DataError, ShapeError

COUNTRY = "country"
"""Name of the factor that every stock is exposed to by 1."""
INDUSTRY = "industry:"
"""Beginning of the names of industry factors, ``industry:801010``; what is neither country nor industry is a style."""


def style_names(factors: Sequence[str]) -> list[str]:
    """Those of some factors that are styles, in their order."""
    return [name for name in factors if name != COUNTRY and not name.startswith(INDUSTRY)]


@dataclass(frozen=True)
class RiskSnapshot:
    """Covariance of daily returns as ``exposure @ factor_cov @ exposure.T + diag(specific_var)``.

    Args:
        date: datetime64[D]; everything is known at its close.
        instruments: ``[n]`` str, ascending.
        factors: ``[k]`` names.
        exposure: ``[n, k]``; styles in standard deviations, country and industries 0 or 1. No NaN.
        factor_cov: ``[k, k]`` covariance of daily factor returns (fractions, squared); symmetric, positive semi-definite.
        specific_var: ``[n]`` variance of daily specific returns, above 0.

    Raises:
        ShapeError: the shapes do not fit each other.
        DataError: a value that is not finite, a specific variance that is not positive, a matrix that is not symmetric or has a
            negative eigenvalue, instruments that are not in ascending order.
    """

    date: np.datetime64
    instruments: np.ndarray
    factors: tuple[str, ...]
    exposure: np.ndarray
    factor_cov: np.ndarray
    specific_var: np.ndarray

    def __post_init__(self):
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731  (the dataclass is frozen)
        put("date", np.datetime64(self.date, "D"))
        put("instruments", np.asarray(self.instruments).astype(str))
        put("factors", tuple(str(name) for name in self.factors))
        for name in ("exposure", "factor_cov", "specific_var"):
            put(name, np.asarray(getattr(self, name), dtype=np.float64))
        n, k = len(self.instruments), len(self.factors)
        if self.exposure.shape != (n, k) or self.factor_cov.shape != (k, k) or self.specific_var.shape != (n,):
            raise ShapeError(f"risk of {self.date}: {n} instruments and {k} factors, but exposure {self.exposure.shape}, factor_cov "
                             f"{self.factor_cov.shape}, specific_var {self.specific_var.shape}")
        self._check_values()

    def _check_values(self) -> None:
        where = f"risk of {self.date}"
        if (self.instruments[1:] <= self.instruments[:-1]).any():
            raise DataError(f"{where}: instruments must be in ascending order, each once")
        for name in ("exposure", "factor_cov", "specific_var"):
            if not np.isfinite(getattr(self, name)).all():
                raise DataError(f"{where}: {name} holds values that are not finite")
        if not (self.specific_var > 0).all():
            raise DataError(f"{where}: {int((self.specific_var <= 0).sum())} specific variances are not above 0")
        scale = np.abs(self.factor_cov).max(initial=0.0)
        if np.abs(self.factor_cov - self.factor_cov.T).max(initial=0.0) > 1e-9 * scale:
            raise DataError(f"{where}: factor_cov is not symmetric")
        try:
            np.linalg.cholesky(self.factor_cov + 1e-9 * scale * np.eye(len(self.factors)) if scale else np.eye(1))
        except np.linalg.LinAlgError as error:
            raise DataError(f"{where}: factor_cov has a negative eigenvalue") from error

    def rows(self, instruments: Sequence[str]) -> np.ndarray:
        """Row ``[m]`` of each instrument; -1 where the model does not know it."""
        wanted = np.asarray(instruments).astype(str)
        place = np.minimum(np.searchsorted(self.instruments, wanted), len(self.instruments) - 1)
        return np.where(self.instruments[place] == wanted, place, -1) if len(self.instruments) else np.full(len(wanted), -1)

    def select(self, instruments: Sequence[str]) -> "RiskSnapshot":
        """The same for some instruments, in ascending order.

        Raises:
            DataError: instruments the model does not know (named).
        """
        instruments = np.unique(np.asarray(instruments).astype(str))
        rows = self.rows(instruments)
        if (rows < 0).any():
            unknown = instruments[rows < 0].tolist()
            raise DataError(f"risk of {self.date}: {len(unknown)} instruments without exposures, the first {unknown[:5]}: leave them "
                            "out, or give them a cap and an industry in the store")
        return RiskSnapshot(self.date, instruments, self.factors, self.exposure[rows], self.factor_cov, self.specific_var[rows])

    def covariance(self) -> np.ndarray:
        """``[n, n]`` covariance of daily returns."""
        return self.exposure @ self.factor_cov @ self.exposure.T + np.diag(self.specific_var)

    def factor_exposure(self, weights: np.ndarray) -> np.ndarray:
        """``[k]`` exposures of a portfolio (or of active weights) ``[n]``."""
        return self.exposure.T @ self._checked(weights)

    def variance(self, weights: np.ndarray) -> float:
        """Variance of the daily return of a portfolio ``weights [n]``; of active weights the squared tracking error."""
        weights = self._checked(weights)
        loading = self.exposure.T @ weights
        return float(loading @ self.factor_cov @ loading + self.specific_var @ weights**2)

    def volatility(self, weights: np.ndarray) -> float:
        """Standard deviation of the daily return of a portfolio ``[n]``."""
        return float(np.sqrt(self.variance(weights)))

    def _checked(self, weights: np.ndarray) -> np.ndarray:
        weights = np.asarray(weights, dtype=np.float64)
        if weights.shape != self.specific_var.shape:
            raise ShapeError(f"risk of {self.date}: weights {weights.shape} for {len(self.instruments)} instruments")
        if not np.isfinite(weights).all():
            raise DataError(f"risk of {self.date}: weights that are not finite")
        return weights


@dataclass(frozen=True)
class RiskDay:
    """A snapshot, and what its day taught: returns of the day explained by the exposures of the trading day before.

    Args:
        snapshot: the day's.
        factor_return: ``[k]`` returns of `snapshot.factors` on the day; NaN where they could not be estimated.
        residual: ``[n]`` specific returns of `snapshot.instruments` on the day; NaN without a return (suspended, new) or where
            the stock alone makes its industry.
        r_squared: weighted share of the day's return dispersion that the factors explain; NaN where not estimated.
        estimation: ``[n]`` bool, in the estimation universe of the day.
    """

    snapshot: RiskSnapshot
    factor_return: np.ndarray
    residual: np.ndarray
    r_squared: float
    estimation: np.ndarray

    def __post_init__(self):
        put = lambda name, kind: object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=kind))  # noqa: E731
        put("factor_return", np.float64)
        put("residual", np.float64)
        put("estimation", bool)
        n, k = self.snapshot.exposure.shape
        if self.factor_return.shape != (k,) or self.residual.shape != (n,) or self.estimation.shape != (n,):
            raise ShapeError(f"risk of {self.snapshot.date}: [n={n}, k={k}], but factor_return {self.factor_return.shape}, residual "
                             f"{self.residual.shape}, estimation {self.estimation.shape}")
