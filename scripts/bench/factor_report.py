"""Seconds of our factor report and of the numbers of alphalens-reloaded's full tear sheet, as a ratio inside one run.

    python scripts/bench/factor_report.py [--stocks 1000] [--days 500] [--rounds 5] [--groups 28] [--by-group]

Both get the same scores (a Series), prices, industries; ours also makes held portfolios, exposures, neutralised scores and tables
by week, month, year, board and market value, which alphalens has not. Theirs is what `create_full_tear_sheet` computes, without its
plots; with `--by-group` also what it computes for each industry. The two are interleaved, the medians of the rounds are compared;
each runs once before on a small market, which compiles and imports. RankIC and mean returns of groups must agree to 1e-10, or the
script fails.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import time
import warnings
from typing import Callable, NamedTuple

import numpy as np
import pandas as pd

from qlib_ext.report.factor import FactorOptions, FactorView, factor_report, forward_returns
from qlib_ext.report.metrics import day_figures
from qlib_ext.report.quantile import group_means, quantile_groups

HORIZONS, QUANTILES, TOLERANCE = (1, 5, 10, 20), 10, 1e-10


class Market(NamedTuple):
    """`factor` on (date, asset), `prices` and `cap` by day and stock; `industry` by stock."""

    factor: pd.Series
    prices: pd.DataFrame
    cap: pd.DataFrame
    industry: pd.Series


def make_market(stocks: int, days: int, groups: int) -> Market:
    """Independent returns, scores that know a little of the next ones; prices run on after the last score."""
    draw = np.random.default_rng(0)
    index = pd.bdate_range("2020-01-01", periods=days + max(HORIZONS) + 2, name="date")
    names = pd.Index([f"SH{600000 + place}" for place in range(stocks)], name="asset")
    change = draw.normal(0, 0.02, (len(index), stocks))
    prices = pd.DataFrame(10 * np.exp(change.cumsum(axis=0)), index, names)
    score = pd.DataFrame(draw.normal(size=(days, stocks)) + 2.5 * change[2:days + 2], index[:days], names)
    cap = prices * np.exp(draw.normal(20, 1, stocks))
    return Market(score.stack(), prices, cap, pd.Series([f"I{place % groups:02d}" for place in range(stocks)], names))


def view_of(market: Market) -> FactorView:
    """The market as matrices."""
    score = market.factor.unstack().reindex(index=market.prices.index, columns=market.prices.columns).to_numpy()
    prices, free = market.prices.to_numpy(), np.ones(score.shape, dtype=bool)
    return FactorView(days=market.prices.index.to_numpy(), instruments=market.prices.columns.to_numpy(), score=score, entry=prices,
                      close=prices, buyable=free, sellable=free, cap=market.cap.to_numpy(), board=np.full(score.shape[1], "main"),
                      industry=np.broadcast_to(market.industry.to_numpy(dtype=object), score.shape), benchmark=prices.mean(axis=1),
                      horizon=5)


def ours(market: Market) -> dict:
    """The factor report."""
    return factor_report(view_of(market), FactorOptions(quantiles=QUANTILES, horizons=HORIZONS))


def theirs(market: Market, by_group: bool = False) -> tuple:
    """All that alphalens' full tear sheet computes; its table of pairs and its daily correlations."""
    from alphalens import performance, utils
    prices, industry = market.prices.shift(-1).iloc[:-1], market.industry.to_dict()  # it enters at the price of the score's day
    with contextlib.redirect_stdout(io.StringIO()):
        data = utils.get_clean_factor_and_forward_returns(market.factor, prices, groupby=industry, quantiles=QUANTILES, periods=HORIZONS)
    data.groupby("factor_quantile")["factor"].agg(["min", "max", "mean", "std", "count"])
    returns = performance.factor_returns(data, True, False)
    performance.mean_return_by_quantile(data, demeaned=True)
    daily, spread = performance.mean_return_by_quantile(data, by_date=True, demeaned=True)
    performance.factor_alpha_beta(data, returns, True, False)
    performance.compute_mean_returns_spread(daily, QUANTILES, 1, std_err=spread)
    performance.cumulative_returns(returns["1D"])
    correlations = performance.factor_information_coefficient(data, False)
    if by_group:
        performance.mean_return_by_quantile(data, by_group=True, demeaned=True)
        performance.mean_information_coefficient(data, by_group=True)
    else:
        performance.mean_information_coefficient(data, by_time=pd.offsets.MonthEnd())
    for period in HORIZONS:
        pd.concat([performance.quantile_turnover(data["factor_quantile"], group, period) for group in range(1, QUANTILES + 1)], axis=1)
        performance.factor_rank_autocorrelation(data, period)
    return data, correlations


def check(market: Market, data: pd.DataFrame, correlations: pd.DataFrame) -> float:
    """Largest difference of RankIC and of mean returns of groups.

    Raises:
        SystemExit: above the tolerance.
    """
    from alphalens import performance
    view = view_of(market)
    groups, days = quantile_groups(view.score, QUANTILES), len(correlations)
    means, largest = performance.mean_return_by_quantile(data, by_date=True, demeaned=False)[0], 0.0
    for horizon in HORIZONS:
        returns = forward_returns(view.entry, horizon)
        pairs = [(day_figures(view.score, returns).rank_ic[:days], correlations[f"{horizon}D"].to_numpy()),
                 (group_means(returns, groups, QUANTILES)[:days], means[f"{horizon}D"].unstack(level=0).to_numpy())]
        largest = max([largest, *(float(np.abs(left - right).max()) for left, right in pairs)])
    if not largest < TOLERANCE:
        raise SystemExit(f"RankIC or mean returns of groups differ from those of alphalens by {largest:.1e}")
    return largest


def seconds(function: Callable, *arguments) -> tuple:
    """Wall-clock seconds of a call, and its answer."""
    started = time.perf_counter()
    answer = function(*arguments)
    return time.perf_counter() - started, answer


def main() -> None:
    """Print the ratio of the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("stocks", 1000), ("days", 500), ("rounds", 5), ("groups", 28)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--by-group", action="store_true", help="alphalens also computes each industry")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for function in (ours, theirs):
        function(make_market(60, 40, 3))
    market, spent = make_market(options.stocks, options.days, options.groups), ([], [])
    for _ in range(options.rounds):
        spent[0].append(seconds(ours, market)[0])
        taken, answer = seconds(theirs, market, options.by_group)
        spent[1].append(taken)
    mine, other = (f"{statistics.median(times):.2f} s ({min(times):.2f} to {max(times):.2f})" for times in spent)
    print(f"alphalens / ours = {statistics.median(spent[1]) / statistics.median(spent[0]):.1f}   ours {mine}; alphalens {other}; "
          f"{options.days} days x {options.stocks} stocks, {options.rounds} rounds; RankIC and groups differ by "
          f"{check(market, *answer):.1e} at most")


if __name__ == "__main__":
    main()
