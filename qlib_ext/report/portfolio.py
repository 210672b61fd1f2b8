"""A back-test in numbers: what it earned over three benchmarks, by calendar, where from, with which exposures, turnover and cost.

Axis letters: t day, n stock, k style. Arrays on closes have one row more than there are days: the close before the first day. Plain
arrays in, tables out; qlib_ext.report.view reads them from a store and a recorder.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Dict, List, Optional, Tuple

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.report import periods
from qlib_ext.report.metrics import summarize
from qlib_ext.report.table import Report, Table
from qlib_ext.risk.snapshot import COUNTRY

BENCHMARKS = {"price_index": "the index as quoted, without dividends (which adjusted prices of stocks carry, so it flatters)",
              "total_return": "the members with their weights, dividends included",
              "equal_weight": "the members alike, dividends included"}
MAIN = ("total_return", "equal_weight", "price_index")
"""Benchmarks, the fairest first."""
MADE_OF = ("gross", "net", "cost", "turnover", "price_index")
PARTS = ("industries", "country", "selection", "cost", "other")
ALONE = ("return a year", "volatility", "max drawdown", "turnover a year", "cost a year", "days")
"""Figures of a portfolio that need no benchmark."""
TINY = 1e-12
"""A tracking error below it is that of equal differences."""


@dataclass(frozen=True)
class PortfolioView:
    """A back-test and what lies beside it.

    Args:
        daily: by day, fractions: gross, net, cost, turnover (bought + sold), price_index, and total_return, equal_weight where known.
        closes: datetime64[D] ``[t + 1]``. instruments: ``[n]``. held: ``[t + 1, n]`` weights in the account at the closes.
        bench: ``[t + 1, n]`` weights of the benchmark; None: not known.
        style: ``[t + 1, n, k]`` exposures at the closes, NaN unknown, of `style_names`; None: no risk model.
        industry: ``[t + 1, n]`` names of the industry factors, "" unknown. factor_returns: day x factor, NaN not estimated.
        residual: ``[t, n]`` specific returns, NaN unknown. certificates: a row a rebalance, or None.

    Raises:
        ShapeError: shapes that do not fit. DataError: a column of `daily` lacks.
    """

    daily: pd.DataFrame
    closes: np.ndarray
    instruments: np.ndarray
    held: np.ndarray
    bench: Optional[np.ndarray] = None
    style_names: Tuple[str, ...] = ()
    style: Optional[np.ndarray] = None
    industry: Optional[np.ndarray] = None
    factor_returns: Optional[pd.DataFrame] = None
    residual: Optional[np.ndarray] = None
    certificates: Optional[pd.DataFrame] = None

    def __post_init__(self):
        lacks = [name for name in MADE_OF if name not in self.daily]
        if lacks or not len(self.daily):
            raise DataError(f"a portfolio report needs daily returns with {list(MADE_OF)}; {lacks or 'all days'} lack")
        t, n = len(self.daily), len(self.instruments)
        due = {"closes": (t + 1,), "held": (t + 1, n), "bench": (t + 1, n), "style": (t + 1, n, len(self.style_names)),
               "industry": (t + 1, n), "residual": (t, n)}
        wrong = {name: np.shape(getattr(self, name)) for name, shape in due.items()
                 if getattr(self, name) is not None and np.shape(getattr(self, name)) != shape}
        if wrong or (self.factor_returns is not None and len(self.factor_returns) != t):
            raise ShapeError(f"{t} days, {n} stocks and {len(self.style_names)} styles, but {wrong or 'factor_returns of other days'}")

    @property
    def benchmarks(self) -> List[str]:
        """Benchmarks with a return on any day."""
        return [name for name in BENCHMARKS if name in self.daily and self.daily[name].notna().any()]

    @property
    def main(self) -> Optional[str]:
        """The benchmark that is attributed and whose drawdowns are shown: the first known of `MAIN`; None without any."""
        return next((name for name in MAIN if name in self.benchmarks), None)


@dataclass(frozen=True)
class PortfolioOptions:
    """drawdown_rows: deepest falls that are listed. days_a_year: of all annual figures."""

    drawdown_rows: int = 5
    days_a_year: int = periods.DAYS_A_YEAR

    def __post_init__(self):
        if self.drawdown_rows < 1 or self.days_a_year < 1:
            raise ConfigError(f"drawdown_rows={self.drawdown_rows} and days_a_year={self.days_a_year} must be above 0")


def portfolio_report(view: PortfolioView, options: PortfolioOptions = PortfolioOptions()) -> Report:
    """The tables of a portfolio, in printing order; those whose inputs are absent are left out."""
    tables = {"summary": _summary(view, options), "broker": _broker(view, options),
              **{f"by_{period}": _by(view, period) for period in reversed(periods.PERIODS)},
              "drawdowns": _drawdowns(view, options)}
    parts = active_parts(view)
    if parts is not None:
        tables["attribution"], tables["attribution_daily"] = _attribution(view, parts, options), _attribution_daily(view, parts)
    tables["exposure"] = _exposure(view)
    if view.certificates is not None and len(view.certificates):
        tables["certificates"] = _certificates(view.certificates)
    shown = [*MADE_OF[:4], *view.benchmarks]
    tables["daily"] = Table(view.daily[shown].rename_axis("datetime"), "Simple returns of a day; net = gross - cost; turnover is bought + "
                            "sold over the account. " + _benchmark_text(view))
    return tables


def _benchmark_text(view: PortfolioView) -> str:
    return "Benchmarks: " + ("; ".join(f"{name} = {BENCHMARKS[name]}" for name in view.benchmarks) or "none") + "."


# ---- what it earned -------------------------------------------------------------------------------------------------------------
def excess_summary(daily: pd.DataFrame, benchmark: str, days_a_year: int = periods.DAYS_A_YEAR) -> Dict[str, float]:
    """The figures of a portfolio (`daily` as in `PortfolioView`) over one of its benchmarks, on the days known of both."""
    known = daily[daily[benchmark].notna() & daily["net"].notna()]
    if not len(known):
        return {}
    net, bench = known["net"].to_numpy(), known[benchmark].to_numpy()
    excess, error = periods.annual_excess(net, bench, days_a_year), tracking_error(net, bench, days_a_year)
    year, bench_year = periods.annual_return(net, days_a_year), periods.annual_return(bench, days_a_year)
    fall = _deepest((1 + net) / (1 + bench) - 1)
    weeks = periods.calendar_windows(known.index, "week")
    mean = float((net - bench).mean() * days_a_year)
    return {"return a year": year, "benchmark a year": bench_year, "excess a year (geometric)": excess,
            "excess a year (difference)": year - bench_year,
            "excess a year before cost": periods.annual_excess(known["gross"].to_numpy(), bench, days_a_year),
            "tracking error": error, "IR": _ratio(excess, error), "IR of daily differences": _ratio(mean, error),
            "volatility": periods.annual_volatility(net, days_a_year), "max drawdown": _deepest(net), "excess max drawdown": fall,
            "Calmar": _ratio(excess, -fall), "weekly win rate": periods.win_rate(periods.period_excess(net, bench, weeks)),
            "turnover a year": float(known["turnover"].mean() / 2 * days_a_year), "cost a year": float(known["cost"].mean() * days_a_year),
            "days": float(len(known))}


def tracking_error(net: np.ndarray, bench: np.ndarray, days_a_year: int = periods.DAYS_A_YEAR) -> float:
    """``std(net - bench) * sqrt(days_a_year)`` (ddof 1); 0 for differences that are equal but for rounding."""
    error = periods.annual_volatility(np.asarray(net) - np.asarray(bench), days_a_year)
    return 0.0 if error < TINY else error


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else float("nan")


def _deepest(returns: np.ndarray) -> float:
    return float(periods.underwater(periods.wealth(returns)).min(initial=0.0))


def _summary(view: PortfolioView, options: PortfolioOptions) -> Table:
    found = {name: excess_summary(view.daily, name, options.days_a_year) for name in view.benchmarks}
    if not found:                                                                            # held against cash, and of that what is alone
        alone = excess_summary(view.daily.assign(cash=0.0), "cash", options.days_a_year)
        found = {"none": {name: alone[name] for name in ALONE}}
    frame = pd.DataFrame(found).rename_axis("figure")
    return Table(frame, f"After cost unless said; {options.days_a_year} days a year. Returns a year are compounded; excess (geometric) is "
                 "the growth a year of net value / benchmark, excess (difference) the difference of the two returns a year. Tracking "
                 "error: standard deviation of daily differences, a year; IR = excess (geometric) / tracking error, IR of daily "
                 "differences = their mean / standard deviation, a year. Calmar = excess (geometric) / drawdown of net value / "
                 "benchmark. Turnover is one-way. " + _benchmark_text(view))


# ---- by calendar ----------------------------------------------------------------------------------------------------------------
def _windows_frame(view: PortfolioView, windows: List[periods.Window], benchmarks: bool) -> pd.DataFrame:
    """Return of each window, of the benchmarks if asked for, and the difference (over the days known of both)."""
    net, names = view.daily["net"].to_numpy(), view.benchmarks
    columns = {"return": periods.period_returns(net, windows)}
    if benchmarks:
        columns.update({name: periods.period_returns(view.daily[name].to_numpy(), windows) for name in names})
    columns.update({f"excess over {name}": periods.period_excess(net, view.daily[name].to_numpy(), windows) for name in names})
    return pd.DataFrame(columns, index=pd.Index([window.label for window in windows], name="period"))


def _broker(view: PortfolioView, options: PortfolioOptions) -> Table:
    frame = _windows_frame(view, periods.broker_windows(view.daily.index), False)
    net = view.daily["net"].dropna().to_numpy()
    year = periods.annual_return(net, options.days_a_year)
    more = {"return": (year, _ratio(year, periods.annual_volatility(net, options.days_a_year)), _deepest(net))}
    for name in view.benchmarks:
        found = excess_summary(view.daily, name, options.days_a_year)
        more[f"excess over {name}"] = tuple(found[key] for key in ("excess a year (geometric)", "IR", "excess max drawdown"))
    frame = pd.concat([frame, pd.DataFrame(more, index=["Annualised", "IR", "Max drawdown"])]).rename_axis("period")
    return Table(frame, f"After cost, to {view.daily.index[-1]:%Y-%m-%d}. Week, month and year to date: compounded return from the last "
                 "trading day before the period; excess is the difference of two compounded returns. Annualised excess and its drawdown "
                 "are those of net value / benchmark; IR = annualised excess / tracking error (under return: annualised return / "
                 "volatility).")


def _by(view: PortfolioView, period: str) -> Table:
    windows = periods.calendar_windows(view.daily.index, period)
    frame = _windows_frame(view, windows, True)
    text = f"After cost, compounded from the last trading day before the {period}; excess is the difference of two compounded returns."
    if view.main is not None:
        relative = ((1 + view.daily["net"]) / (1 + view.daily[view.main]) - 1).to_numpy()
        frame["excess drawdown"] = [_deepest(relative[window.start:window.stop]) for window in windows]
        text += f" Excess drawdown: the largest fall of net value / {view.main} inside the {period}."
    return Table(frame, text)


def _drawdowns(view: PortfolioView, options: PortfolioOptions) -> Table:
    known = view.daily.dropna(subset=["net", *([view.main] if view.main else [])])
    series = {"net value": known["net"]}
    if view.main is not None:
        series[f"excess over {view.main}"] = (1 + known["net"]) / (1 + known[view.main]) - 1
    frame = pd.concat({name: periods.drawdowns(pd.Series(periods.wealth(one.to_numpy()), one.index), options.drawdown_rows)
                       for name, one in series.items()}, names=["of", "rank"])
    return Table(frame, "The deepest falls after cost: from the day of the high (start) to the day back at it (end; none: not yet); days "
                 "are trading days." + (f" Excess: of net value / {view.main}." if view.main else ""))


# ---- where from -----------------------------------------------------------------------------------------------------------------
def active_parts(view: PortfolioView) -> Optional[pd.DataFrame]:
    """The day's active return in parts that add to it: day x (styles, `PARTS`, total); None without risk model or benchmark weights.

    With active weights a and exposures x of the close before, factor returns f and residuals u of the day, over the stocks the model
    knows on both (a suspended stock has no residual): style k ``sum_n a x_k f_k``, industries and country likewise, selection
    ``sum_n a u``, cost what was paid, total = net - benchmark; other is what remains: trades of the day, other stocks, drift.
    """
    if any(one is None for one in (view.style, view.bench, view.factor_returns, view.residual, view.industry, view.main)):
        return None
    returns, t = view.factor_returns, len(view.daily)
    names, earned = list(view.style_names), view.factor_returns.reindex(columns=list(view.style_names)).to_numpy()      # [t, k]
    exposure = view.style[:-1].astype(np.float64)
    there = np.isfinite(earned) & np.isfinite(exposure).any(axis=1)                          # [t, k] styles of the day
    known = np.isfinite(view.residual) & there.any(axis=1)[:, None] & (np.isfinite(exposure) | ~there[:, None]).all(axis=2)
    active = np.where(known, view.held[:-1] - view.bench[:-1], 0.0)
    styles = np.einsum("tn,tnk->tk", active, np.nan_to_num(exposure)) * np.where(there, earned, 0.0)
    found, place = np.unique(view.industry[:-1], return_inverse=True)
    industry = returns.reindex(columns=found).fillna(0.0).to_numpy()[np.arange(t)[:, None], place.reshape(known.shape)]  # [t, n]
    country = returns[COUNTRY].fillna(0.0).to_numpy() if COUNTRY in returns else np.zeros(t)
    parts = pd.DataFrame(styles, index=view.daily.index, columns=names)
    parts["industries"], parts["country"] = (active * industry).sum(axis=1), active.sum(axis=1) * country
    parts["selection"] = (active * np.where(known, view.residual, 0.0)).sum(axis=1)
    parts["cost"], total = -view.daily["cost"], view.daily["net"] - view.daily[view.main]
    parts["other"] = total - parts.sum(axis=1)
    return parts.assign(total=total).dropna(subset=["total"])


def linked(parts: pd.DataFrame, net: np.ndarray, bench: np.ndarray) -> pd.Series:
    """Sums of daily parts, weighed so that they add to the difference of the compounded returns.

    ``sum_t part_t k_t / K`` with ``k_t = (ln(1 + net) - ln(1 + bench)) / (net - bench)`` and K the same of the compounded returns.
    Source: Carino 1999.
    """
    whole = [np.prod(1 + one) - 1 for one in (net, bench)]
    return parts.mul(_log_slope(net, bench) / _log_slope(*whole), axis=0).sum()


def _log_slope(net, bench):
    step = (np.asarray(net) - bench) / (1 + np.asarray(bench))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.abs(step) < 1e-8, 1 - step / 2, np.log1p(step) / step) / (1 + np.asarray(bench))


def _attribution(view: PortfolioView, parts: pd.DataFrame, options: PortfolioOptions) -> Table:
    known = view.daily.loc[parts.index]
    frame = pd.DataFrame({"return": linked(parts, known["net"].to_numpy(), known[view.main].to_numpy()), "sum": parts.sum(),
                          "a year": parts.mean() * options.days_a_year,
                          "t": [summarize(parts[name].to_numpy())["t"] for name in parts]}).rename_axis("part")
    return Table(frame, f"Active return over {view.main} after cost, in parts of each day: active weights x exposures of the close before "
                 "x factor returns of the day; selection: active weights x specific returns; other: trades of the day, stocks the risk "
                 "model does not know, drift. `return` is linked (Carino), so that the parts add to the difference of the compounded "
                 f"returns; `sum` adds up days; a year = daily mean x {options.days_a_year}; t of the daily mean.")


def _attribution_daily(view: PortfolioView, parts: pd.DataFrame) -> Table:
    frame = parts[[*PARTS, "total"]].rename_axis("datetime")
    frame.insert(0, "styles", parts[list(view.style_names)].sum(axis=1))
    return Table(frame, f"Parts of the day's active return over {view.main} (as in attribution), fractions; they add to total.")


def _exposure(view: PortfolioView) -> Table:
    columns = {}
    if view.bench is not None:
        active = view.held[1:] - view.bench[1:]
        if view.style is not None:
            values = np.einsum("tn,tnk->tk", active, np.nan_to_num(view.style[1:].astype(np.float64)))
            values[~np.isfinite(view.style[1:]).any(axis=1)] = np.nan
            columns.update(zip(view.style_names, values.T))
        if view.industry is not None:
            columns["industry deviation"] = sum(np.abs(np.where(view.industry[1:] == name, active, 0.0).sum(axis=1))
                                                for name in np.unique(view.industry) if name)
        columns["active share"] = np.abs(active).sum(axis=1) / 2
    columns |= {"names": (view.held[1:] > 0).sum(axis=1), "invested": view.held[1:].sum(axis=1)}
    frame = pd.DataFrame(columns, index=view.daily.index).rename_axis("datetime")
    return Table(frame, "At the close of the day, portfolio minus index weights: styles in standard deviations (stocks without exposures "
                 "count as 0), industry deviation = sum over industries of |active weight|, active share = half the sum over stocks; "
                 "names held, and the part of the account that is invested.")


# ---- certificates ---------------------------------------------------------------------------------------------------------------
def _certificates(rows: pd.DataFrame) -> Table:
    """What the certificates of the rebalances say, a row a fact."""
    said = {"rebalances": len(rows)}
    if "status" in rows:
        said.update({f"status: {name}": int(count) for name, count in rows["status"].value_counts().items()})
    for column, what in (("relaxed", "relaxed: {}"), ("active", "binding: {}")):
        counts: Dict[str, int] = {}
        for text in rows[column].dropna() if column in rows else ():
            for name in dict.fromkeys(str(name).split(":")[0] for name in _names(text)):
                counts[name] = counts.get(name, 0) + 1
        said.update({what.format(name): count for name, count in sorted(counts.items(), key=lambda pair: -pair[1])})
        if column == "relaxed" and not counts:
            said["relaxed: none"] = 0
    for column, name, figure in (("violation", "largest violation of a constraint", "max"), ("gap", "largest gap", "max"),
                                 ("tracking_error", "forecast tracking error, mean", "mean"),
                                 ("tracking_error", "forecast tracking error, largest", "max"),
                                 ("turnover", "turnover of a rebalance, mean", "mean"), ("cost", "cost of a rebalance, mean", "mean"),
                                 ("names", "names, mean", "mean"), ("invested", "invested, least", "min"),
                                 ("member_share", "share in index members, least", "min")):
        if column in rows and pd.to_numeric(rows[column], errors="coerce").notna().any():
            said[name] = float(getattr(pd.to_numeric(rows[column], errors="coerce"), figure)())
    frame = pd.DataFrame({"value": pd.Series(said, dtype=float)}).rename_axis("what")
    return Table(frame, "Of the certificates that the optimiser leaves with every rebalance: counts of rebalances by status, with a "
                 "relaxed constraint, with a binding one (of a family); violation and gap as solved, forecast tracking error a year.")


def _names(text) -> List[str]:
    try:
        return list(json.loads(text))
    except (TypeError, ValueError):
        return []
