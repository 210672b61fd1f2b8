#!/usr/bin/env python
"""How well risk is forecast on a store: the risk model's snapshots beside Qlib's estimators, on the same days and stocks.

    python scripts/risk_quality.py --store STORE --snapshots FOLDER --universe csi1000 --start 2020-01-01 --end 2024-12-31

Every `--horizon` trading days each model forecasts the variance of the return over the next `--horizon` days, of the same random
and index-active portfolios, of the minimum-variance portfolio by its own lights, and of single stocks. Stocks are the members of
the universe that the snapshot of the day knows and that have a return on nine tenths of the last `--window` days, which Qlib's
estimators learn from. A day without a return counts as 0 for all. A model that fails on a date ends the run. Bias statistics pool
the portfolios of all dates; portfolios of a date are not independent, so their band goes by the number of dates.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Protocol, Tuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from qlib_ext.errors import ConfigError, DataError, ExtError
from qlib_ext.risk.quality import (
    active_portfolios,
    bias_band,
    bias_statistic,
    minimum_variance,
    minimum_variance_factor,
    qlike,
    random_portfolios,
)
from qlib_ext.risk.snapshot import RiskSnapshot

OURS = "snapshots"
KINDS = ["random", "active", "minimum variance", "single stocks"]
SHARE_TRADED, YEAR = 0.9, 252


class Market(NamedTuple):
    """Days `[t]`, codes `[n]` ascending; `[t, n]`: returns (NaN without one), membership (bool), index weights (NaN outside)."""

    days: np.ndarray
    codes: np.ndarray
    returns: np.ndarray
    member: np.ndarray
    weight: np.ndarray


class Date(NamedTuple):
    """A date: `window [w, n]` returns up to it, `realised [n]` after it, `benchmark [n]` weights, `snapshot` of the n stocks."""

    day: np.datetime64
    window: np.ndarray
    realised: np.ndarray
    benchmark: np.ndarray
    snapshot: RiskSnapshot


class Forecast(Protocol):
    """Variances of daily returns."""

    def variance(self, weights: np.ndarray) -> np.ndarray:
        """``[p]`` of portfolios ``[p, n]``."""

    def stocks(self) -> np.ndarray:
        """``[n]`` of single stocks."""

    def minimum(self) -> np.ndarray:
        """``[n]`` weights of least variance."""


class Dense(NamedTuple):
    """`Forecast` of a matrix ``[n, n]``."""

    covariance: np.ndarray

    def variance(self, weights: np.ndarray) -> np.ndarray:
        return np.einsum("pn,pn->p", weights @ self.covariance, weights)

    def stocks(self) -> np.ndarray:
        return np.diag(self.covariance)

    def minimum(self) -> np.ndarray:
        return minimum_variance(self.covariance)


class Factors(NamedTuple):
    """`Forecast` of a snapshot, without its matrix."""

    snapshot: RiskSnapshot

    def variance(self, weights: np.ndarray) -> np.ndarray:
        return self._common(weights @ self.snapshot.exposure) + weights**2 @ self.snapshot.specific_var

    def stocks(self) -> np.ndarray:
        return self._common(self.snapshot.exposure) + self.snapshot.specific_var

    def minimum(self) -> np.ndarray:
        return minimum_variance_factor(self.snapshot.exposure, self.snapshot.factor_cov, self.snapshot.specific_var)

    def _common(self, loading: np.ndarray) -> np.ndarray:
        return np.einsum("pk,pk->p", loading @ self.snapshot.factor_cov, loading)


def ours(date: Date) -> Forecast:
    """The snapshot of the date."""
    return Factors(date.snapshot)


def qlib_models() -> Dict[str, Callable[[Date], Forecast]]:
    """Qlib's estimators on the window of a date."""
    from qlib.model.riskmodel import POETCovEstimator, ShrinkCovEstimator, StructuredCovEstimator
    estimators = {"Qlib POET, 10 factors": POETCovEstimator(num_factors=10, scale_return=False),
                  "Qlib shrinkage, Ledoit-Wolf to single factor": ShrinkCovEstimator("lw", "single_factor", scale_return=False),
                  "Qlib structured, 10 PCA factors": StructuredCovEstimator("pca", 10, scale_return=False)}
    return {name: lambda date, one=one: Dense(_real(one.predict(date.window.copy(), is_price=False)))
            for name, one in estimators.items()}


def _real(covariance: np.ndarray) -> np.ndarray:
    """Without the zero imaginary part that POET has after `np.linalg.eig`."""
    if np.abs(covariance.imag).max() > 1e-9 * np.abs(covariance.real).max():
        raise DataError("the covariance is complex")
    return np.ascontiguousarray(covariance.real)


def date_of(market: Market, t: int, snapshot: RiskSnapshot, horizon: int, window: int) -> Date:
    """Date `t` of a market, which sees returns of days ``t - window + 1`` to ``t`` (and, as outcome, to ``t + horizon``).

    Raises:
        DataError: too few days before or after, no stocks, or no index weights of them.
    """
    if t + 1 < window or t + horizon >= len(market.days):
        raise DataError(f"{market.days[t]} has {t + 1} days up to it and {len(market.days) - t - 1} after it: {window} and "
                        f"{horizon} are needed, choose other dates")
    past, after = market.returns[t + 1 - window:t + 1], market.returns[t + 1:t + 1 + horizon]
    held = market.member[t] & (snapshot.rows(market.codes) >= 0) & (np.isfinite(past).mean(axis=0) >= SHARE_TRADED)
    weight = np.nan_to_num(market.weight[t, held])
    if not weight.sum() > 0:
        raise DataError(f"{market.days[t]}: {int(held.sum())} of {int(market.member[t].sum())} members are in the snapshot and "
                        f"traded on {SHARE_TRADED:.0%} of the {window} days before, and the store has no index weights of them")
    realised = np.prod(1 + np.nan_to_num(after[:, held]), axis=0) - 1
    window_returns, known = np.nan_to_num(past[:, held]), snapshot.select(market.codes[held])
    return Date(market.days[t], window_returns, realised, weight / weight.sum(), known)


def measure(date: Date, models: Dict[str, Callable[[Date], Forecast]], horizon: int, portfolios: int, size: int,
            seed: int) -> Tuple[List[pd.DataFrame], Dict[str, float]]:
    """Tables (model, kind, day, realised, forecast variance) of one date, and seconds by model; portfolios: by date and seed.

    Raises:
        DataError: a model failed, or a forecast is not a number above 0; model and date are named.
    """
    rng = np.random.default_rng([seed, int(date.day.astype("datetime64[D]").astype(int))])
    common = {"random": random_portfolios(rng, len(date.realised), portfolios, size),
              "active": active_portfolios(rng, date.benchmark, portfolios, size)}
    parts, seconds = [], {}
    for name, model in models.items():
        began = time.perf_counter()
        try:
            forecast = model(date)
            weights = {**common, "minimum variance": forecast.minimum()[None]}
        except (np.linalg.LinAlgError, DataError) as error:
            raise DataError(f"{name} failed on {date.day}: {error}") from error
        pairs = {kind: (weight @ date.realised, forecast.variance(weight)) for kind, weight in weights.items()}
        pairs["single stocks"] = date.realised, forecast.stocks()
        seconds[name] = time.perf_counter() - began
        for kind, (realised, variance) in pairs.items():
            if not (np.isfinite(variance) & (variance > 0)).all():
                raise DataError(f"{name} on {date.day}: variances of {kind} that are not numbers above 0")
            parts.append(pd.DataFrame({"model": pd.Categorical([name] * len(realised), list(models)),
                                       "kind": pd.Categorical([kind] * len(realised), KINDS),
                                       "day": date.day.astype("datetime64[s]"), "realised": realised,
                                       "variance": variance * horizon}))
    return parts, seconds


def evaluate(dates: Iterator[Date], models: Dict[str, Callable[[Date], Forecast]], horizon: int, portfolios: int, size: int,
             seed: int) -> Tuple[pd.DataFrame, pd.Series]:
    """`measure` of all dates: one table, and mean seconds a date by model."""
    found = [measure(date, models, horizon, portfolios, size, seed) for date in dates]
    table = pd.concat([part for parts, _ in found for part in parts], ignore_index=True)
    return table, pd.DataFrame([seconds for _, seconds in found]).mean()


def summary(table: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """A row per year (`all` first), kind and model: bias, mean |bias - 1| of years, QLIKE, annualised min-variance volatility."""
    table = table.assign(year=table["day"].dt.year.astype(str))
    years = [_figures(part, horizon).assign(year=year) for year, part in table.groupby("year")]
    whole = _figures(table, horizon).assign(year="all")
    away = pd.concat(years).assign(away=lambda frame: (frame["bias"] - 1).abs())
    away = away.groupby(["kind", "model"], observed=True)["away"].mean()
    whole["yearly |bias - 1|"] = [away[row.kind, row.model] for row in whole.itertuples()]
    columns = ["year", "kind", "model", "dates", "forecasts", "bias", "yearly |bias - 1|", "QLIKE", "min-variance volatility"]
    return pd.concat([whole, *years], ignore_index=True)[columns]


def _figures(table: pd.DataFrame, horizon: int) -> pd.DataFrame:
    rows = []
    for (kind, model), part in table.groupby(["kind", "model"], observed=True):
        realised, variance = part["realised"].to_numpy(), part["variance"].to_numpy()
        one_portfolio = kind == "minimum variance" and len(part) > 1
        volatility = np.std(realised, ddof=1) * np.sqrt(YEAR / horizon) if one_portfolio else np.nan
        rows.append({"kind": kind, "model": model, "dates": part["day"].nunique(), "forecasts": len(part),
                     "bias": bias_statistic(realised, np.sqrt(variance)), "QLIKE": qlike(realised, variance),
                     "min-variance volatility": volatility})
    return pd.DataFrame(rows)


def read_market(universe: str, start: str, end: str, horizon: int, window: int) -> Tuple[Market, range]:
    """Market of all that were ever members, from `window` days before, and the places of the dates whose outcome the store has.

    Raises:
        ConfigError: no such universe, or no date. DataError: too few days before `start`, no returns or no index weights.
    """
    from qlib.data import D

    from qlib_ext.data.universe import member_spans, universe_grid
    calendar = np.asarray(D.calendar(freq="day"), "datetime64[ns]").astype("datetime64[D]")
    first, stop = np.searchsorted(calendar, np.datetime64(start)), np.searchsorted(calendar, np.datetime64(end), side="right")
    stop = min(stop, len(calendar) - horizon)
    if first >= stop:
        raise ConfigError(f"no date from {start} to {end} with {horizon} days after it: the store runs from {calendar[0]} to "
                          f"{calendar[-1]}")
    if first + 1 < window:
        raise DataError(f"{calendar[first]} has {first + 1} days up to it, the window needs {window}: choose a later --start")
    days = calendar[first + 1 - window:stop + horizon]
    fields = ["$change", f"${universe.lower()}_weight"]
    frame = D.features(sorted(member_spans(universe)), fields, str(days[0]), str(days[-1]), freq="day")
    empty = [name for name in fields if not frame[name].notna().any()]
    if empty:
        raise DataError(f"the store has no {empty} of {universe} from {days[0]} to {days[-1]}: ingest returns and index weights")
    returns, weight = (frame[name].unstack("instrument").reindex(pd.DatetimeIndex(days)).sort_index(axis=1) for name in fields)
    codes = returns.columns.to_numpy().astype(str)
    member = universe_grid(days, codes.tolist(), universe)
    return (Market(days, codes, returns.to_numpy(np.float64), member, weight.to_numpy(np.float64)),
            range(window - 1, window - 1 + stop - first, horizon))


def run(options: argparse.Namespace) -> None:
    """Measure and print.

    Raises:
        ConfigError, DataError: as the parts.
    """
    import qlib

    from qlib_ext.store.metadata import check_store
    from qlib_ext.store.snapshots import SnapshotStore
    qlib.init(provider_uri=str(check_store(options.store)), region="cn", kernels=1, logging_level=30)
    market, places = read_market(options.universe, options.start, options.end, options.horizon, options.window)
    store, models = SnapshotStore(options.snapshots), {OURS: ours, **({} if options.ours_only else qlib_models())}
    dates = (date_of(market, t, store.read(market.days[t]), options.horizon, options.window) for t in tqdm(places, desc="dates"))
    table, seconds = evaluate(dates, models, options.horizon, options.portfolios, options.size, options.seed)
    found = summary(table, options.horizon)
    if options.csv:
        found.to_csv(options.csv, index=False)
    for year, part in found.groupby("year", sort=False):
        low, high = bias_band(part["dates"].iloc[0])
        print(f"\n{year}: {part['dates'].iloc[0]} dates, {options.horizon} days ahead; right forecasts of Gaussian returns: "
              f"bias {low:.3f} to {high:.3f}")
        shown = part.drop(columns=["year", "dates"]).dropna(axis=1, how="all")
        print(shown.to_string(index=False, float_format="%.4f", na_rep="-"))
    print("\nseconds a date (snapshots were made before): " + ", ".join(f"{name} {value:.3f}" for name, value in seconds.items()))


def main(arguments: List[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True, help="folder of the Qlib store")
    parser.add_argument("--snapshots", required=True, help="folder of `python -m qlib_ext.risk build`")
    parser.add_argument("--universe", default="csi1000")
    parser.add_argument("--start", default="2020-01-01", help="first date of a forecast")
    parser.add_argument("--end", default="2024-12-31", help="last date of a forecast; its outcome comes after")
    for name, value, text in (("horizon", 5, "trading days ahead, and between dates"),
                              ("window", YEAR, "days that Qlib's estimators see"),
                              ("portfolios", 50, "random and active ones a date, each"), ("size", 100, "names in a portfolio"),
                              ("seed", 0, "of the portfolios")):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default: %(default)s)")
    parser.add_argument("--ours-only", action="store_true", help="leave Qlib's estimators out")
    parser.add_argument("--csv", help="write the table, years included")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except ExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
