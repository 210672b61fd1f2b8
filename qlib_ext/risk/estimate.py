"""From exposures to risk: regressions day by day, then covariances and specific variances of every day that is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator, NamedTuple, Sequence

import numpy as np
import pandas as pd

from qlib_ext.errors import DataError
from qlib_ext.risk.covariance import CovarianceOptions, FactorCovariance, specific_forecast, specific_variances
from qlib_ext.risk.regression import regress
from qlib_ext.risk.snapshot import COUNTRY, INDUSTRY, RiskDay, RiskSnapshot


@dataclass
class Exposed:
    """Exposures and returns on consecutive days.

    Args:
        days: datetime64[D] ``[t]``; `origin`, the place of the first on the calendar. codes: ``[n]``, ascending.
        styles: ``k`` names. style: float32 ``[t, n, k]``, NaN unknown.
        industry: ``[t, n]`` industry codes as numbers, NaN unknown; None: no industries.
        cap: ``[t, n]``. members: bool ``[t, n]``, the estimation universe. returns: ``[t, n]``, NaN without trading.
    """

    days: np.ndarray
    origin: int
    codes: np.ndarray
    styles: tuple[str, ...]
    style: np.ndarray
    industry: np.ndarray | None
    cap: np.ndarray
    members: np.ndarray
    returns: np.ndarray

    def __post_init__(self):
        self.there = np.isfinite(self.style).any(axis=1)                                    # [t, k] styles known on a day
        complete = np.ones(self.cap.shape, bool)
        for k in range(self.style.shape[2]):
            complete &= np.isfinite(self.style[:, :, k]) | ~self.there[:, k, None]
        self.present = complete & (self.cap > 0) & self.there.any(axis=1)[:, None]          # [t, n] stocks of a day's snapshot
        self.industries = [] if self.industry is None else np.unique(self.industry[np.isfinite(self.industry)]).tolist()
        self.group = np.full(self.cap.shape, -1)
        if self.industries:
            place = np.searchsorted(self.industries, self.industry)
            self.group = np.where(np.isfinite(self.industry), place, -1)

        codes = [f"{code:g}" if code != int(code) else str(int(code)) for code in self.industries]
        self.factors = [COUNTRY, *(INDUSTRY + code for code in codes), *self.styles]        # names of all factors of the days


class Regressions(NamedTuple):
    """Per day: `factor_return` DataFrame (day x factor), `residual` float32 ``[t, n]``, `r_squared [t]`, `faults` day -> reason."""

    factor_return: pd.DataFrame
    residual: np.ndarray
    r_squared: np.ndarray
    faults: dict


def regressions(exposed: Exposed) -> Regressions:
    """Every day's return on the exposures of the day before; nothing for the first day.

    A residual is kept for stocks that are still in the model at the close of the day.
    """
    days, count = exposed.cap.shape[0], len(exposed.industries)
    factor_return = np.full((days, len(exposed.factors)), np.nan)
    residual, r_squared, faults = np.full(exposed.cap.shape, np.nan, np.float32), np.full(days, np.nan), {}
    for t in range(1, days):
        held = np.flatnonzero(exposed.present[t - 1])
        if not len(held):
            continue
        day = regress(exposed.returns[t, held], exposed.style[t - 1, held].astype(np.float64), exposed.group[t - 1, held], count,
                      exposed.cap[t - 1, held], exposed.members[t - 1, held])
        factor_return[t], r_squared[t] = day.factor_return, day.r_squared
        residual[t, held] = day.residual
        if day.fault:
            faults[str(exposed.days[t])] = day.fault
    residual[~exposed.present] = np.nan
    return Regressions(pd.DataFrame(factor_return, index=exposed.days, columns=exposed.factors), residual, r_squared, faults)


class History(NamedTuple):
    """What was learnt up to the first day of some exposures, which is included: `factor_return` DataFrame of all days from the first
    on, `residual` float32 DataFrame (day x code) of the last days."""

    factor_return: pd.DataFrame
    residual: pd.DataFrame

    def extended(self, exposed: Exposed, learnt: Regressions, keep: int) -> "History":
        """With what the days after the first of some exposures taught; `keep` days of residuals."""
        later = pd.DataFrame(learnt.residual[1:], index=exposed.days[1:], columns=exposed.codes)
        return History(pd.concat([self.factor_return, learnt.factor_return.iloc[1:]]), pd.concat([self.residual, later]).iloc[-keep:])

    @classmethod
    def first(cls, exposed: Exposed, learnt: Regressions, keep: int) -> "History":
        """Of the first days of all."""
        return cls(learnt.factor_return, pd.DataFrame(learnt.residual, index=exposed.days, columns=exposed.codes).iloc[-keep:])


def days_kept(options: CovarianceOptions) -> int:
    """Days of residuals that specific variances reach back to."""
    return options.specific_window + options.specific_lags


def risk_days(exposed: Exposed, learnt: Regressions, history: History | None, wanted: Sequence[int],
              options: CovarianceOptions = CovarianceOptions()) -> Iterator[RiskDay]:
    """Snapshots of some days, in order.

    Args:
        exposed, learnt: the days and their regressions.
        history: what was learnt up to row 0 (included); None where row 0 is the first day of all.
        wanted: rows of `exposed`, from 1 on where there is a history.

    A day on which nothing can be forecast yet (no factor or no stock with a history) is left out.

    Raises:
        DataError: a forecast that is not finite.
    """
    if not len(wanted):
        return
    past, residual, before = learnt.factor_return, learnt.residual, 0
    if history is not None:
        before = len(history.factor_return) - 1
        past = pd.concat([history.factor_return, learnt.factor_return.iloc[1:]])
        earlier = history.residual.reindex(columns=exposed.codes).to_numpy(np.float32)
        residual = np.concatenate([earlier, learnt.residual[1:]])
    names = _ordered(past.columns)
    past, shift, lowest = past[names].to_numpy(), len(residual) - len(exposed.days), min(wanted)
    variance, count = specific_variances(residual, options, exposed.origin - shift, first=shift + lowest)
    factors = {int(t): _in_force(exposed, np.isfinite(past[before + t]), names, t) for t in wanted}
    model = FactorCovariance(past, options)
    for row, factor_cov in model.forecasts({before + t: columns for t, columns in factors.items()}):
        t = row - before
        made = None if factor_cov is None else _risk_day(exposed, learnt, t, [names[k] for k in factors[t]], factor_cov,
                                                         variance[t - lowest], count[t - lowest], past[row, factors[t]], options)
        if made is not None:
            yield made


def _ordered(names) -> list[str]:
    """Country, industries by code, styles as they come."""
    industries = sorted((name for name in names if name.startswith(INDUSTRY)), key=lambda name: float(name[len(INDUSTRY):]))
    return [COUNTRY, *industries, *(name for name in names if name != COUNTRY and not name.startswith(INDUSTRY))]


def _in_force(exposed: Exposed, earned: np.ndarray, names: list[str], t: int) -> np.ndarray:
    """Positions of the factors of a day: industries with a stock, styles that are known, and what has a return today.

    Nobody is exposed to a factor of the last kind; its return is kept with the day that earned it.
    """
    groups = np.bincount(exposed.group[t][exposed.present[t] & (exposed.group[t] >= 0)], minlength=len(exposed.industries)) > 0
    own = exposed.factors
    here = {COUNTRY, *(name for name, there in zip(own[1:], groups) if there)}
    here |= {name for name, there in zip(exposed.styles, exposed.there[t]) if there}
    here |= {name for name, known in zip(names, earned) if known}
    return np.array([k for k, name in enumerate(names) if name in here])


def _risk_day(exposed: Exposed, learnt: Regressions, t: int, factors: list[str], factor_cov: np.ndarray, variance: np.ndarray,
              count: np.ndarray, earned: np.ndarray, options: CovarianceOptions) -> RiskDay | None:
    held = np.flatnonzero(exposed.present[t])
    if not len(held):
        return None
    there, own = exposed.there[t], exposed.factors
    style = np.ascontiguousarray(exposed.style[t, held][:, there], np.float64)
    group, place = exposed.group[t, held], {name: k for k, name in enumerate(factors)}
    exposure = np.zeros((len(held), len(factors)))
    exposure[:, place[COUNTRY]] = 1.0
    exposure[:, [place[name] for name in np.array(exposed.styles)[there]]] = style
    column = np.array([place.get(name, -1) for name in own[1:1 + len(exposed.industries)]], dtype=np.int64)
    inside = np.flatnonzero(group >= 0)
    exposure[inside, column[group[inside]]] = 1.0
    specific = specific_forecast(variance[held], count[held], style, group, len(exposed.industries), exposed.cap[t, held], options)
    if specific is None:
        return None
    if not np.isfinite(factor_cov).all() or not np.isfinite(specific).all():
        raise DataError(f"{exposed.days[t]}: the forecast of the factor covariance or of specific variances is not finite")
    snapshot = RiskSnapshot(exposed.days[t], exposed.codes[held], tuple(factors), exposure, factor_cov, specific)
    return RiskDay(snapshot, earned, learnt.residual[t, held], learnt.r_squared[t], exposed.members[t, held])
