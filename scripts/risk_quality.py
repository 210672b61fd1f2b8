"""How well risk is forecast on a store: this project's snapshots beside Qlib's covariance estimators on the same days and stocks.

    python scripts/risk_quality.py --store STORE --snapshots FOLDER --universe csi1000 --start 2020-01-01 --end 2024-12-31

Every `--horizon` trading days each model forecasts the variance of the next `--horizon` days' return of random, index-active and
minimum-variance portfolios (each model its own) and of single stocks; members of the universe that are in the snapshot and traded on
nine tenths of the `--window` days before. Suspended days count as return 0. Qlib's estimators see the returns of that window.
"""

from __future__ import annotations

import argparse
import time
from typing import Callable, NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from qlib_ext.risk.quality import (
    active_portfolios,
    bias_statistic,
    minimum_variance,
    portfolio_volatility,
    qlike,
    random_portfolios,
)

KINDS = ("random", "active", "minimum variance", "single stocks")


class Date(NamedTuple):
    """What one date is measured on: `window [w, n]` past returns, `realised [n]`, `benchmark [n]` weights, `ours [n, n]` daily covariance."""

    day: np.datetime64
    window: np.ndarray
    realised: np.ndarray
    benchmark: np.ndarray
    ours: np.ndarray


def estimators() -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Name -> covariance of daily returns ``[n, n]`` from past returns ``[w, n]``."""
    from qlib.model.riskmodel import POETCovEstimator, ShrinkCovEstimator, StructuredCovEstimator
    made = {"Qlib POET (10 factors)": POETCovEstimator(num_factors=10, scale_return=False),
            "Qlib shrinkage (Ledoit-Wolf, single factor)": ShrinkCovEstimator(alpha="lw", target="single_factor", scale_return=False),
            "Qlib structured (PCA, 10 factors)": StructuredCovEstimator(num_factors=10, scale_return=False)}
    return {name: lambda window, one=one: np.real(one.predict(window.copy(), is_price=False)) for name, one in made.items()}


def measure(dates, models: dict, horizon: int, portfolios: int, seed: int) -> tuple[pd.DataFrame, dict]:
    """Rows (model, kind, day, portfolio, realised, forecast) of every date, and seconds by model.

    Args:
        dates: of `Date`s. models: as `estimators`; the snapshots' covariance comes under the name `snapshots`.
    """
    rows, seconds, draw = [], {}, np.random.default_rng(seed)
    for date in dates:
        common = {"random": random_portfolios(draw, len(date.realised), portfolios, 100),
                  "active": active_portfolios(draw, date.benchmark, portfolios, 100)}
        for name, model in {"snapshots": None, **models}.items():
            began = time.perf_counter()
            covariance = (date.ours if model is None else model(date.window)) * horizon
            weights = {**common, "minimum variance": minimum_variance(covariance)[None]}
            for kind, weight in weights.items():
                rows.append(_rows(name, kind, date.day, weight @ date.realised, portfolio_volatility(weight, covariance)))
            rows.append(_rows(name, "single stocks", date.day, date.realised, np.sqrt(np.diag(covariance))))
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - began
    return pd.concat(rows, ignore_index=True), seconds


def _rows(model: str, kind: str, day, realised: np.ndarray, forecast: np.ndarray) -> pd.DataFrame:
    if not (np.isfinite(forecast).all() and (forecast > 0).all()):
        raise SystemExit(f"{model} on {day}: a forecast for {kind} portfolios is no positive number")
    return pd.DataFrame({"model": model, "kind": kind, "day": day, "realised": realised, "forecast": forecast})


def summary(table: pd.DataFrame, horizon: int) -> pd.DataFrame:
    """Bias statistic, its mean distance from 1 over calendar years, QLIKE and annualised realised volatility by kind and model."""
    found, year = [], pd.DatetimeIndex(table["day"]).year
    for (kind, model), part in table.groupby(["kind", "model"], sort=False):
        yearly = [bias_statistic(one["realised"], one["forecast"]) for _, one in part.groupby(year[part.index])]
        found.append({"kind": kind, "model": model, "bias": bias_statistic(part["realised"], part["forecast"]),
                      "yearly |bias - 1|": np.abs(np.array(yearly) - 1).mean(), "QLIKE": qlike(part["realised"], part["forecast"]),
                      "volatility a year": float(np.sqrt((part["realised"] ** 2).mean() * 252 / horizon)), "forecasts": len(part)})
    return pd.DataFrame(found).sort_values("kind", key=lambda k: k.map(KINDS.index), kind="stable")


def dates_of(options: argparse.Namespace):
    """The dates of a store, one after the other."""
    from qlib_ext.data.universe import universe_grid
    from qlib_ext.risk.market import MarketReader
    from qlib_ext.store.snapshots import SnapshotStore
    reader, store = MarketReader(), SnapshotStore(options.snapshots)
    calendar = reader.calendar
    first, stop = np.searchsorted(calendar, np.array([options.start, options.end], "datetime64[D]"))
    market = reader.arrays(first - options.window, len(calendar))
    returns, member = market.fields["returns"], universe_grid(market.days, market.codes.tolist(), options.universe)
    weight = benchmark_weights(reader, market, options.universe)
    begin = max(options.window - 1, 0) + first - options.window - market.origin + 1
    last = min(stop - market.origin, len(market.days) - options.horizon - 1)
    for t in tqdm(range(begin, last, options.horizon), desc="dates"):
        shot = store.read(market.days[t])
        row = shot.rows(market.codes)
        window, after = returns[t - options.window + 1:t + 1], returns[t + 1:t + 1 + options.horizon]
        held = np.flatnonzero(member[t] & (row >= 0) & (np.isfinite(window).mean(axis=0) >= 0.9))
        covariance = shot.select(market.codes[held]).covariance()
        share = np.nan_to_num(weight[t, held])
        yield Date(market.days[t], np.nan_to_num(window[:, held]), np.prod(1 + np.nan_to_num(after[:, held]), axis=0) - 1,
                   share / share.sum(), covariance)


def benchmark_weights(reader, market, universe: str) -> np.ndarray:
    """``[t, n]`` weights of the index; its members' caps where the store has no weights."""
    from qlib.data import D
    frame = D.features(D.instruments(universe), [f"${universe}_weight"], str(market.days[0]), str(market.days[-1]), freq="day")
    wide = frame.iloc[:, 0].unstack(level="instrument").reindex(index=pd.DatetimeIndex(market.days), columns=market.codes)
    return wide.to_numpy() if wide.notna().any(axis=None) else market.cap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--snapshots", required=True)
    parser.add_argument("--universe", default="csi1000")
    parser.add_argument("--start", default="2020-01-01")
    parser.add_argument("--end", default="2024-12-31")
    parser.add_argument("--horizon", type=int, default=5)
    parser.add_argument("--window", type=int, default=252)
    parser.add_argument("--portfolios", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ours-only", action="store_true", help="leave Qlib's estimators out")
    parser.add_argument("--csv", help="write every forecast and its outcome")
    options = parser.parse_args()
    import qlib
    qlib.init(provider_uri=options.store, region="cn", kernels=1, logging_level=30)
    table, seconds = measure(dates_of(options), {} if options.ours_only else estimators(), options.horizon, options.portfolios, options.seed)
    if options.csv:
        table.to_csv(options.csv, index=False)
    print(summary(table, options.horizon).to_string(index=False, float_format="%.4f"))
    days = table["day"].nunique()
    print(f"\n{days} dates from {table['day'].min():%Y-%m-%d} to {table['day'].max():%Y-%m-%d}, {options.horizon} days ahead; seconds a date: "
          + ", ".join(f"{name} {value / days:.2f}" for name, value in seconds.items()))


if __name__ == "__main__":
    main()
