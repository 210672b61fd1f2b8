"""The factor report: how well a score ranks stocks, and what groups of stocks by score earned.

`factor_report` gives tables; each carries the sentences that define its figures (`factor_text`). Axis letters: t trading day, n stock.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.factor_text import conventions, weeks_between
from qlib_ext.report.factor_view import FactorOptions, FactorView, make_options
from qlib_ext.report.metrics import DayFigures, cautious_t, day_figures, summarize
from qlib_ext.report.neutral import industry_codes, industry_exposure, neutral_score, style_exposure
from qlib_ext.report.periods import (annual_excess, annual_return, annual_volatility, broker_windows, calendar_windows, period_excess,
                                     period_means, period_returns, rebalance_days, week_ends, win_rate, window_dates)
from qlib_ext.report.quantile import group_means, held_portfolios, last_known, quantile_groups, turnover_a_year
from qlib_ext.report.table import Report, Table

EXPOSURE_LAG = 20
"""Lag of the t of style exposures, which move slowly."""
RANK_MAE = "exp(-RankMAE)"
UNIVERSES = {"universe_equal": "equal", "universe_cap": "cap", "index": "index"}
"""Column of the table `quantile_daily` -> its word in `excess (..)`."""
PART_COLUMNS = ("IC", "ICIR", "RankIC", "RankICIR", RANK_MAE, "days", "names")


def factor_report(view: FactorView, options: Union[None, Mapping[str, Any], FactorOptions] = None) -> Report:
    """Tables of the factor report, in printing order; tables whose inputs are absent are left out, and `summary` says so.

    Raises:
        ConfigError: options that are unknown or out of range. DataError: no day has enough stocks for groups, or no score has a return.
    """
    numbers = _Numbers(view, make_options(options))
    frames = {"summary": _summary(numbers), "daily": numbers.daily, "decay": _decay(numbers),
              "non_overlapping": _non_overlapping(numbers), "quantile_daily": numbers.returns, "quantiles": _quantiles(numbers),
              "broker": _windows(numbers, broker_windows(numbers.days)),
              **{f"by_{one}": _windows(numbers, calendar_windows(numbers.days, one)) for one in ("week", "month", "year")},
              "by_board": _by_board(numbers), "by_cap": _by_cap(numbers), "style_exposure": _style_exposure(numbers),
              "industry_exposure": _industry_exposure(numbers), "neutral": _neutral(numbers)}
    said = conventions(view, numbers.options, bool(numbers.formed), numbers.left_out, numbers.exposure_lag)
    return {name: Table(frame, said[name]) for name, frame in frames.items() if frame is not None}


def forward_returns(entry: np.ndarray, horizon: int) -> np.ndarray:
    """Return from the entry of t+1 to the entry of t+1+horizon, ``[t, n]``; NaN where either is not traded or beyond the data.

    Raises:
        ConfigError: horizon below 1.
    """
    if horizon < 1:
        raise ConfigError(f"horizon {horizon!r}: an integer above 0")
    result = np.full(entry.shape, np.nan)
    if len(entry) > horizon + 1:
        result[:-horizon - 1] = entry[1 + horizon:] / entry[1:-horizon] - 1
    return result


class _Numbers:
    """What several tables need: the days scored, daily figures, groups, returns of held portfolios, and what is left out."""

    def __init__(self, view: FactorView, options: FactorOptions) -> None:
        self.view, self.options = view, options
        self.span = slice(*view.span())
        self.days = view.days[self.span]
        self.scored = ~np.isnan(view.score)
        self.label = forward_returns(view.entry, view.horizon) if view.label is None else view.label
        self.figures = day_figures(view.score, self.label, options.min_count)
        self.exposure_lag = max(EXPOSURE_LAG, view.horizon)
        if not self.figures.count.any():
            raise DataError(f"no scored stock has a return over {view.horizon} days from the {view.entry_name} of the next day on: let the "
                            "days run on after the last scored day")
        self.groups = quantile_groups(view.score, options.quantiles, options.min_count)
        self.top = self.groups == options.quantiles - 1
        if not (self.groups >= 0).any():
            raise DataError(f"no day has {max(options.quantiles, options.min_count)} scored stocks that differ (at most "
                            f"{int(self.scored.sum(axis=1).max())} stocks are scored): set quantiles={options.quantiles} and "
                            f"min_count={options.min_count} lower")
        self.names = [f"Q{q + 1}" for q in range(options.quantiles)]
        formation = rebalance_days(view.days, options.rebalance, self.span.start)[self.span]
        grouped = (self.groups >= 0).any(axis=1)[self.span]
        self.formed, self.missed = int((formation & grouped)[:-1].sum()), int((formation & ~grouped)[:-1].sum())
        self.has_cap = bool((self.scored & (view.cap > 0)).any())
        self.has_index = view.benchmark is not None and not np.isnan(view.benchmark).all()
        self.absent = {"industry": self.industries is None, "cap": not self.has_cap, "styles": not view.styles}

    @cached_property
    def industries(self) -> Optional[tuple]:
        """Codes and names of industries; None where no scored stock has one."""
        found = None if self.view.industry is None else industry_codes(self.view.industry)
        return found if found is not None and (self.scored & (found[0] >= 0)).any() else None

    @cached_property
    def held(self):
        """Portfolios up to the last scored day."""
        view, span = self.view, slice(0, self.span.stop)
        formation = rebalance_days(view.days, self.options.rebalance, self.span.start)
        return held_portfolios(self.groups[span], self.options.quantiles, formation[span], view.entry[span], view.buyable[span],
                               view.sellable[span], view.cap[span])

    @cached_property
    def returns(self) -> pd.DataFrame:
        """The table `quantile_daily`."""
        frame = pd.DataFrame(self.held.returns[self.span], pd.DatetimeIndex(self.days, name="datetime"),
                             [*self.names, "universe_equal", "universe_cap"])
        frame.insert(len(self.names), "long_short", frame[self.names[-1]] - frame[self.names[0]])
        if not self.has_cap:
            frame = frame.drop(columns="universe_cap")
        if self.has_index:
            price = last_known(np.asarray(self.view.benchmark)[:, None])[:, 0]       # a missing price moves its change to the next
            frame["index"] = np.where(frame["universe_equal"].isna(), np.nan, np.r_[np.nan, price[1:] / price[:-1] - 1][self.span])
        return frame

    @cached_property
    def daily(self) -> pd.DataFrame:
        """The table `daily`."""
        score, figures, span = self.view.score, self.figures, self.span
        before = np.r_[np.nan, day_figures(score[1:], score[:-1], self.options.min_count).rank_ic] if len(score) > 1 else np.array([np.nan])
        return pd.DataFrame({"ic": figures.ic[span], "rank_ic": figures.rank_ic[span], "exp_rank_mae": figures.exp_rank_mae[span],
                             "count": figures.count[span], "autocorrelation": before[span]}, pd.DatetimeIndex(self.days, name="datetime"))

    @property
    def left_out(self) -> List[str]:
        """What the report lacks, and why."""
        found = [] if self.has_index else ["the index (no benchmark price)"]
        found += [] if self.has_cap else ["the cap-weighted universe and by_cap (no market value)"]
        found += [] if any(str(one) for one in self.view.board) else ["by_board (no board)"]
        found += ["style_exposure (no styles)"] * self.absent["styles"] + ["industry_exposure (no industry)"] * self.absent["industry"]
        return found + [f"neutral to {wanted} (no {' and no '.join(lacking)})" for wanted in self.options.neutral
                        if (lacking := self.lacking(wanted))]

    def lacking(self, wanted: str) -> List[str]:
        """Parts of a `neutral` option that are not there."""
        return [part for part in wanted.split("+") if self.absent[part]]

    def series(self, column: str) -> np.ndarray:
        """A column of `returns`; NaN where it is left out."""
        return self.returns[column].to_numpy() if column in self.returns else np.full(len(self.days), np.nan)


def _correlations(figures: DayFigures, lag: int) -> Dict[str, float]:
    """IC, ICIR, IC t (plain for lag 0), those of RankIC, the mean of exp(-RankMAE), days, and pairs a day over the days that count."""
    found, counted = {}, ~np.isnan(figures.rank_ic)
    for name, daily in (("IC", figures.ic), ("RankIC", figures.rank_ic)):
        summary = summarize(daily)
        found.update({name: summary["mean"], f"{name}IR": summary["icir"], f"{name} t": cautious_t(daily, lag) if lag else summary["t"]})
    return {**found, RANK_MAE: summarize(figures.exp_rank_mae)["mean"], "days": int(counted.sum()),
            "names": summarize(figures.count[counted])["mean"]}


def _rows(rows: Mapping[Any, Mapping[str, Any]], name: str, columns: Sequence[str]) -> pd.DataFrame:
    index = pd.Index(list(rows), name=name)
    return pd.DataFrame([[row[column] for column in columns] for row in rows.values()], index, list(columns))


# ---- correlations -------------------------------------------------------------------------------------------------------------
def _decay(numbers: _Numbers) -> pd.DataFrame:
    view, rows = numbers.view, {}
    for horizon in numbers.options.horizons:
        rows[horizon] = _correlations(day_figures(view.score, forward_returns(view.entry, horizon), numbers.options.min_count), horizon)
    return _rows(rows, "horizon", ["IC", "ICIR", "IC t", "RankIC", "RankICIR", "RankIC t", RANK_MAE, "days"])


def _non_overlapping(numbers: _Numbers) -> pd.DataFrame:
    """Figures on every h-th day, by the day it starts from, and on last trading days of weeks."""
    horizon, options, rows = numbers.view.horizon, numbers.options, {}
    place, weeks = np.arange(len(numbers.days)), weeks_between(horizon)
    chosen = {f"offset {offset + 1}": (place % horizon == offset, options.days_a_year / horizon) for offset in range(horizon)}
    ends = np.flatnonzero(week_ends(numbers.view.days)[numbers.span])[::weeks]
    chosen["week ends"] = (np.isin(place, ends), options.weeks_a_year / weeks)
    for name, (used, a_year) in chosen.items():
        found = _correlations(DayFigures(*(values[numbers.span][used] for values in numbers.figures)), 0)
        rows[name] = {**found, "n": found["days"], "ICIR annualised": found["ICIR"] * np.sqrt(a_year),
                      "RankICIR annualised": found["RankICIR"] * np.sqrt(a_year)}
    columns = [name + what for name in ("IC", "RankIC") for what in ("", "IR", "IR annualised", " t")]
    return _rows(rows, "evaluated", [*columns, RANK_MAE, "n"])


# ---- groups -------------------------------------------------------------------------------------------------------------------
def _quantiles(numbers: _Numbers) -> pd.DataFrame:
    returns, span, a_year = numbers.returns, numbers.span, numbers.options.days_a_year
    forward = [summarize(mean)["mean"] for mean in group_means(numbers.label, numbers.groups, len(numbers.names)).T]
    rows = {}
    for q, (name, column) in enumerate(zip([*numbers.names, "long-short"], [*numbers.names, "long_short"])):
        rows[name] = {"return a year": annual_return(returns[column], a_year), "volatility": annual_volatility(returns[column], a_year),
                      "mean forward return": forward[-1] - forward[0], "excess a year": np.nan, "names": np.nan, "turnover a year": np.nan}
        if name != "long-short":
            rows[name].update({"excess a year": annual_excess(returns[column], returns["universe_equal"], a_year),
                               "mean forward return": forward[q], "names": summarize(numbers.held.names[span, q])["mean"],
                               "turnover a year": turnover_a_year(numbers.held.turnover[span, q], returns[column].to_numpy(), a_year)})
    return _rows(rows, "group", ["return a year", "excess a year", "volatility", "mean forward return", "names", "turnover a year"])


def _windows(numbers: _Numbers, windows: Sequence) -> pd.DataFrame:
    frame, top = window_dates(numbers.days, windows), numbers.series(numbers.names[-1])
    for name, column in (("IC", "ic"), ("RankIC", "rank_ic"), (RANK_MAE, "exp_rank_mae")):
        frame[name] = period_means(numbers.daily[column], windows)
    frame["long-short"] = period_returns(numbers.returns["long_short"], windows)
    for column, word in UNIVERSES.items():
        if column in numbers.returns:
            frame[f"excess ({word})"] = period_excess(top, numbers.returns[column], windows)
    return frame.assign(**{"top group return": period_returns(top, windows)})


# ---- parts of the universe, exposures -----------------------------------------------------------------------------------------
def _part(numbers: _Numbers, score: np.ndarray, label: np.ndarray) -> Dict[str, float]:
    return _correlations(day_figures(score, label, numbers.options.min_count), numbers.view.horizon)


def _by_board(numbers: _Numbers) -> Optional[pd.DataFrame]:
    board, score = np.array([str(one) for one in numbers.view.board]), numbers.view.score
    rows = {name: _part(numbers, score[:, board == name], numbers.label[:, board == name])
            for name in sorted(set(board) - {""}) if numbers.scored[:, board == name].any()}
    return _rows(rows, "board", PART_COLUMNS) if rows else None


def _by_cap(numbers: _Numbers) -> Optional[pd.DataFrame]:
    if not numbers.has_cap:
        return None
    view, count = numbers.view, numbers.options.cap_groups
    groups = quantile_groups(np.where(numbers.scored, view.cap, np.nan), count)
    names = ("small", "middle", "large") if count == 3 else [f"C{place + 1}" for place in range(count)]
    rows = {name: _part(numbers, np.where(groups == place, view.score, np.nan), numbers.label) for place, name in enumerate(names)}
    return _rows(rows, "cap group", PART_COLUMNS)


def _style_exposure(numbers: _Numbers) -> Optional[pd.DataFrame]:
    if numbers.absent["styles"]:
        return None
    return style_exposure(numbers.view.score, numbers.top, numbers.view.styles, numbers.exposure_lag, numbers.options.min_count)


def _industry_exposure(numbers: _Numbers) -> Optional[pd.DataFrame]:
    return None if numbers.absent["industry"] else industry_exposure(numbers.view.score, numbers.top, *numbers.industries)


def _neutral(numbers: _Numbers) -> pd.DataFrame:
    """Correlations of the score, and of what least squares leave of it."""
    view, rows = numbers.view, {"raw": _correlations(numbers.figures, numbers.view.horizon)}
    for wanted in numbers.options.neutral:
        if numbers.lacking(wanted):
            continue
        parts = wanted.split("+")
        exposures = [np.log(np.where(view.cap > 0, view.cap, np.nan))] if "cap" in parts else []
        exposures += list(view.styles.values()) if "styles" in parts else []
        rest = neutral_score(view.score, exposures, numbers.industries[0] if "industry" in parts else None)
        rows[wanted] = _part(numbers, rest, numbers.label)
    return _rows(rows, "score", ["IC", "ICIR", "IC t", "RankIC", "RankICIR", "RankIC t", "days", "names"])


# ---- summary ------------------------------------------------------------------------------------------------------------------
def _summary_of(name: str, daily: np.ndarray, numbers: _Numbers) -> List[tuple]:
    horizon, a_year = numbers.view.horizon, numbers.options.days_a_year
    found = summarize(daily)
    root = f"ICIR x sqrt({a_year})" if horizon == 1 else f"ICIR x sqrt({a_year} / {horizon}), as many labels a year do not overlap"
    return [(name, found["mean"], "mean over days"), (f"{name}IR", found["icir"], "per day, not annualised: mean / standard deviation"),
            (f"{name}IR annualised", found["icir"] * np.sqrt(a_year / horizon), root),
            (f"{name} t", cautious_t(daily, horizon), f"Newey-West, lag {horizon}"),
            (f"{name} win rate", win_rate(daily), "share of days above 0")]


def _summary(numbers: _Numbers) -> pd.DataFrame:
    figures, a_year, top = numbers.figures, numbers.options.days_a_year, numbers.series(numbers.names[-1])
    rows = _summary_of("IC", figures.ic, numbers) + _summary_of("RankIC", figures.rank_ic, numbers)
    rows += [(RANK_MAE, summarize(figures.exp_rank_mae)["mean"], "mean over days; 0.3151 for a random score, 1 for a perfect one"),
             ("long-short a year", annual_return(numbers.returns["long_short"], a_year), "daily differences, compounded, before cost")]
    for column, word in UNIVERSES.items():
        note = "growth of the ratio of net values, before cost" if column in numbers.returns else (
            "no benchmark price" if word == "index" else "no market value")
        rows.append((f"long-only excess a year ({word})", annual_excess(top, numbers.series(column), a_year), note))
    turnover = turnover_a_year(numbers.held.turnover[numbers.span, len(numbers.names) - 1], top, a_year)
    scored = numbers.scored[numbers.span]
    rated, priced = scored.any(axis=1), ~np.isnan(numbers.view.close[numbers.span])
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(rated, (scored & priced).sum(axis=1) / priced.sum(axis=1), np.nan)
    counted = ~np.isnan(figures.rank_ic)
    rows += [("turnover of the top group a year", turnover, "one-way, without the first purchase"),
             ("autocorrelation of ranks", summarize(numbers.daily["autocorrelation"])["mean"], "with those of the trading day before"),
             ("coverage", summarize(share)["mean"], "scored share of those with a price that day among all ever scored, mean over days"),
             ("names", summarize(figures.count[counted])["mean"], "pairs of score and label a day, over the days that count"),
             ("days", int(counted.sum()), "days with a RankIC"),
             ("days without a score", int((~rated).sum()), f"of the {len(rated)} trading days from the first to the last scored day"),
             ("rebalances without groups", numbers.missed, "the portfolios were kept as they were")]
    return pd.DataFrame(rows, columns=["figure", "value", "note"]).set_index("figure").astype({"value": np.float64})
