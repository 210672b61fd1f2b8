"""Plots of the report tables: each takes the tables of one report and a theme, and answers a matplotlib figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Callable, Mapping, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator

from qlib_ext.report.cells import signed
from qlib_ext.report.drawing import LIGHT, Theme, calendar, close, dress, line, numbers, panels, png, thin, zero
from qlib_ext.report.saved import Saved
from qlib_ext.report.table import Report, Table
from qlib_ext.report.words import english

BENCHMARKS = ("total_return", "equal_weight", "price_index")
MAX_LINES = 12


class Plot(NamedTuple):
    """`draw(tables, theme)`; `kind` of report; `table`: the one shown, whose convention stands under it; its title.

    `columns`: each must hold a figure; of a tuple, one must; after a ``~``, one whose name has the rest in it.
    """

    draw: Callable[[Report, Theme], Figure]
    kind: str
    table: str
    title: str
    columns: tuple = ()


# ---- factor -------------------------------------------------------------------------------------------------------------------
def quantile_nav(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Net values of the groups held, from the lowest score to the highest, and of the equal-weighted universe."""
    frame = tables["quantile_daily"].frame
    groups = [column for column in frame if str(column).startswith("Q")]
    figure, (axes,) = panels(theme, "Net value by group", 252)
    for number, group in enumerate(groups):
        edge = number in (0, len(groups) - 1)
        line(axes, _nav(frame[group]), group, color=theme.ramp(number, len(groups)), linewidth=2.0 if edge else 1.1)
    if "universe_equal" in frame:
        line(axes, _nav(frame["universe_equal"]), "universe_equal", color=theme["text"], dashes=(4, 2), linewidth=1.2)
    return _over_time(figure, frame.index, theme, base=1.0, columns=6)


def long_nav(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Net value of long-short, and of the top group over the universe and the index."""
    frame = tables["quantile_daily"].frame
    top = [column for column in frame if str(column).startswith("Q")][-1]
    figure, (axes,) = panels(theme, "Long-short and long-only excess", 252)
    if "long_short" in frame:
        line(axes, _nav(frame["long_short"]), "long_short", **theme.series(0))
    for number, other in enumerate(("universe_equal", "universe_cap", "index"), 1):
        if other in frame:
            line(axes, _nav(frame[top]) / _nav(frame[other]), f"{top} / {other}", **theme.series(number))
    return _over_time(figure, frame.index, theme, base=1.0, columns=2)


def rank_ic(tables: Report, theme: Theme = LIGHT) -> Figure:
    """RankIC by month (by day for a short test) as bars, its running sum as a line."""
    frame = tables["daily"].frame
    figure, (axes,) = panels(theme, "RankIC", 252)
    daily, monthly = frame["rank_ic"], len(frame) > 60
    if monthly:
        _month_bars(axes, daily, "mean", "RankIC, mean of the month", theme)
    else:
        axes.bar(daily.index, daily, width=0.7, color=theme["c1"], alpha=0.75, label="RankIC")
    zero(axes, theme)
    numbers(axes)
    right = axes.twinx()
    dress(right, theme, grid="both")
    right.grid(False)
    right.spines["bottom"].set_visible(False)
    line(right, daily.cumsum(), "RankIC, running sum (right)", **theme.series(1))
    numbers(right)
    _share_zero(axes, right)
    calendar(axes, frame.index)
    return close(figure, theme, 2)


def decay(tables: Report, theme: Theme = LIGHT) -> Figure:
    """IC and RankIC by horizon."""
    frame = tables["decay"].frame
    return _bars(frame[_known(frame, "IC", "RankIC")], theme, "Decay over horizons")


def ic_by_year(tables: Report, theme: Theme = LIGHT) -> Figure:
    """IC and RankIC by year."""
    frame = tables["by_year"].frame
    return _bars(frame[_known(frame, "IC", "RankIC")], theme, "IC by year")


def quantile_bars(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Return a year of each group over the universe, or its return where no excess is known."""
    frame = tables["quantiles"].frame
    frame = frame[[str(row).startswith("Q") for row in frame.index]]
    column = _known(frame, "excess a year", "return a year")[0]
    figure, (axes,) = panels(theme, "Groups from low to high score")
    for number, (group, value) in enumerate(frame[column].items()):
        last = {"label": english(column)} if number == len(frame) - 1 else {}
        axes.bar(number, value, width=0.7, color=theme.ramp(number, len(frame)), **last)
    axes.set_xticks(range(len(frame)), [str(group) for group in frame.index])
    zero(axes, theme)
    numbers(axes, percent=True)
    return close(figure, theme)


def style_exposure(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Mean correlation of the score with each style, and styles of the top group."""
    frame = tables["style_exposure"].frame
    return _rows(frame[_known(frame, "mean", "top group")], theme, "Style exposure")


def industry_exposure(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Share of the top group in each industry over that of the universe, largest deviations first."""
    frame = tables["industry_exposure"].frame
    column = frame.columns[-1]
    ordered = frame[[column]].dropna().sort_values(column, ascending=False)
    return _rows(ordered, theme, "Industry exposure", percent=True)


def autocorrelation(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Correlation of a day's ranks with those before, and its mean over 20 days."""
    series = tables["daily"].frame["autocorrelation"]
    figure, (axes,) = panels(theme, "Autocorrelation of ranks")
    line(axes, series, "autocorrelation", color=theme["line"], linewidth=0.9)
    line(axes, series.rolling(20, min_periods=5).mean(), "mean of 20 days", color=theme["c1"])
    numbers(axes)
    calendar(axes, series.index)
    return close(figure, theme)


def neutral(tables: Report, theme: Theme = LIGHT) -> Figure:
    """IC and RankIC of the score, raw and with industries, size or styles taken out."""
    frame = tables["neutral"].frame
    return _bars(frame[_known(frame, "IC", "RankIC")], theme, "IC after neutralisation")


# ---- portfolio ----------------------------------------------------------------------------------------------------------------
def nav(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Net value of the portfolio, before cost too, and of its benchmarks."""
    frame = tables["daily"].frame
    figure, (axes,) = panels(theme, "Net value", 252)
    line(axes, _nav(frame["net"]), "net", color=theme["c1"], linewidth=2.0)
    if "gross" in frame:
        line(axes, _nav(frame["gross"]), "gross", color=theme["c1"], dashes=(2, 2), linewidth=1.1)
    for number, benchmark in enumerate(_known(frame, *BENCHMARKS), 1):
        line(axes, _nav(frame[benchmark]), benchmark, **theme.series(number))
    return _over_time(figure, frame.index, theme, base=1.0, columns=3)


def excess(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Net value over each benchmark's, and the fall of each ratio from its highest."""
    frame = tables["daily"].frame
    figure, (upper, lower) = panels(theme, "Excess net value and its drawdown", 306, (2, 1))
    for number, benchmark in enumerate(_known(frame, *BENCHMARKS), 1):
        ratio = _nav(frame["net"]) / _nav(frame[benchmark])
        line(upper, ratio, f"net / {benchmark}", **theme.series(number))
        _fall(lower, ratio, theme.series(number), theme, fill=number == 1)
    zero(upper, theme, 1.0)
    numbers(upper)
    return _over_time(figure, frame.index, theme, columns=2)


def drawdown(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Fall of the net value from its highest so far."""
    frame = tables["daily"].frame
    figure, (axes,) = panels(theme, "Drawdown of net value", 200)
    _fall(axes, _nav(frame["net"]), {"color": theme["c1"], "label": "net"}, theme)
    return _over_time(figure, frame.index, theme)


def monthly_excess(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Excess of each month, and of the year, as a table of colours; over the first benchmark that the table has."""
    by_month, column = tables["by_month"].frame, excess_column(tables["by_month"].frame)
    months = pd.PeriodIndex([str(label)[:7] for label in by_month.index], freq="M")
    values = pd.Series(by_month[column].to_numpy(np.float64), index=months)
    years = sorted(set(months.year))
    yearly = tables["by_year"].frame[column] if "by_year" in tables and column in tables["by_year"].frame else pd.Series(dtype=float)
    yearly.index = [str(label)[:4] for label in yearly.index]
    figure, (axes,) = panels(theme, column, 40 + 24 * len(years))
    limit = np.nanquantile(values.abs(), 0.95) if values.notna().any() else np.nan
    for row, year in enumerate(years):
        cells = [(month - 1, values.get(pd.Period(year=year, month=month, freq="M"), np.nan), limit) for month in range(1, 13)]
        for place, value, scale in [*cells, (12.4, yearly.get(str(year), np.nan), limit * np.sqrt(12))]:
            axes.add_patch(Rectangle((place, row), 0.94, 0.92, facecolor=theme.heat(value, scale), edgecolor="none"))
            if np.isfinite(value):
                axes.text(place + 0.47, row + 0.48, signed(value * 100, "{:.1f}"), ha="center", va="center", fontsize=9.5,
                          color=theme["text"])
    dress(axes, theme, grid="x")
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    axes.set(xlim=(0, 13.4), ylim=(len(years), 0))
    axes.set_xticks([*np.arange(0.47, 12), 12.87], [*map(str, range(1, 13)), "1-12"])
    axes.set_yticks(np.arange(0.48, len(years)), [str(year) for year in years])
    axes.xaxis.tick_top()
    return close(figure, theme)


def turnover(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Turnover by month as bars, and the running sum of cost."""
    frame = tables["daily"].frame
    figure, (upper, lower) = panels(theme, "Turnover and cost", 256, (1, 1))
    _month_bars(upper, frame["turnover"], "sum", "turnover of the month", theme)
    numbers(upper, percent=True)
    line(lower, frame["cost"].cumsum(), "cost, running sum", **theme.series(1))
    numbers(lower, percent=True)
    return _over_time(figure, frame.index, theme)


def exposure(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Active style exposures from the first day with holdings on, the largest first; industry deviation, active share, cash used below."""
    frame = tables["exposure"].frame.select_dtypes("number")
    if "invested" in frame and frame["invested"].gt(0).any():
        frame = frame[frame["invested"].gt(0).cummax()]
    shares = _known(frame, "industry deviation", "active share", "invested")
    styles = frame.drop(columns=[column for column in frame if column in (*shares, "names")]).dropna(axis=1, how="all")
    figure, found = panels(theme, "Active exposures", 324 if len(styles.columns) else 216, (2, 1) if len(styles.columns) else (1,))
    order = styles.abs().mean().sort_values(ascending=False, kind="stable").index[:MAX_LINES]
    for number, style in enumerate(order):
        line(found[0], styles[style], str(style), **{"linewidth": 1.2, **theme.series(number)})
    if len(order):
        zero(found[0], theme)
        numbers(found[0])
    for column, dashes in zip(shares, ((), (4, 2), (1.5, 1.5))):
        line(found[-1], frame[column], column, color=theme["text"], linewidth=1.2, **({"dashes": dashes} if dashes else {}))
    numbers(found[-1], percent=bool(shares))
    return _over_time(figure, frame.index, theme, columns=3)


def attribution(tables: Report, theme: Theme = LIGHT) -> Figure:
    """What each part earned over the whole test, as in the table, in its order."""
    frame = tables["attribution"].frame
    return _rows(frame[_known(frame, "return")], theme, "Attribution of excess", percent=True)


def attribution_nav(tables: Report, theme: Theme = LIGHT) -> Figure:
    """Running sums of the parts of the daily excess."""
    frame = tables["attribution_daily"].frame.select_dtypes("number")
    figure, (axes,) = panels(theme, "Attribution over time", 252)
    for number, part in enumerate(frame.columns[:MAX_LINES]):
        style = {"color": theme["text"], "linewidth": 2.0} if part == "total" else theme.series(number)
        line(axes, frame[part].cumsum(), str(part), **style)
    zero(axes, theme)
    numbers(axes, percent=True)
    return _over_time(figure, frame.index, theme, columns=5)


# ---- runs side by side --------------------------------------------------------------------------------------------------------
def compared(lines: Mapping[str, pd.Series], theme: Theme, title: str, base: float | None) -> Figure:
    """Lines of several runs on one time axis, in their order."""
    figure, (axes,) = panels(theme, title, 270)
    for number, (name, series) in enumerate(lines.items()):
        line(axes, series, name, **theme.series(number))
    numbers(axes)
    days = pd.DatetimeIndex(sorted(set().union(*(series.index for series in lines.values()))))
    return _over_time(figure, days, theme, base=base, columns=2)


def excess_nav(tables: Report) -> tuple[str, pd.Series]:
    """The first benchmark a portfolio report has, and the net value over it."""
    frame = tables["daily"].frame
    benchmark = _known(frame, *BENCHMARKS)[0]
    return benchmark, _nav(frame["net"]) / _nav(frame[benchmark])


# ---- parts --------------------------------------------------------------------------------------------------------------------
def _nav(returns: pd.Series) -> pd.Series:
    """Net value from daily returns; a NaN return counts as none once the series has begun."""
    first = returns.first_valid_index()
    return (1 + returns.loc[first:].fillna(0)).cumprod().reindex(returns.index) if first is not None else returns


def _known(frame: pd.DataFrame, *columns: str) -> list[str]:
    return [column for column in columns if column in frame and frame[column].notna().any()]


def excess_column(frame: pd.DataFrame) -> str:
    """The excess that is shown where there is room for one: over the first of `BENCHMARKS`."""
    columns = [str(column) for column in frame if "excess" in str(column) and "drawdown" not in str(column)]
    return min(columns, key=lambda column: next((place for place, name in enumerate(BENCHMARKS) if name in column), len(BENCHMARKS)))


def _month_bars(axes, daily: pd.Series, how: str, label: str, theme: Theme) -> None:
    """A bar for each month, in the middle of its days, as wide as they allow."""
    months = daily.index.to_period("M")
    ends = daily.index.to_series().groupby(months).agg(["min", "max"])
    span = ends["max"] - ends["min"]
    axes.bar(ends["min"] + span / 2, daily.groupby(months).agg(how), width=np.clip(span.dt.days * 0.7, 1, 20), color=theme["c1"],
             alpha=0.75, label=english(label))


def _fall(axes, value: pd.Series, style: Mapping, theme: Theme, fill: bool = True) -> None:
    fall = value / value.cummax() - 1
    line(axes, fall, style.get("label", "_"), **{"linewidth": 1.0, **{key: one for key, one in style.items() if key != "label"}})
    if fill:
        axes.fill_between(thin(fall).index, thin(fall).to_numpy(np.float64), 0, color=style["color"], alpha=0.14, linewidth=0)
    zero(axes, theme)
    numbers(axes, percent=True)


def _over_time(figure: Figure, days: pd.DatetimeIndex, theme: Theme, base: float | None = None, columns: int = 4) -> Figure:
    for axes in figure.axes:
        calendar(axes, days)
        if base is not None:
            zero(axes, theme, base)
            numbers(axes)
    return close(figure, theme, columns)


def _share_zero(left, right) -> None:
    """Put the zeros of two scales at one height."""
    spans = [axes.get_ylim() for axes in (left, right)]
    below = max(max(-low, 0) / max(high - min(low, 0), 1e-12) for low, high in spans)
    below = min(max(below, 0.0), 0.9)
    for axes, (low, high) in zip((left, right), spans):
        high = max(high, -low * (1 - below) / below if below > 0 and low < 0 else high, 1e-12)
        axes.set_ylim(-high * below / (1 - below), high)


def _bars(frame: pd.DataFrame, theme: Theme, title: str) -> Figure:
    """Upright bars: rows along the axis, columns side by side."""
    figure, (axes,) = panels(theme, title)
    width = 0.76 / max(frame.shape[1], 1)
    for number, column in enumerate(frame):
        places = np.arange(len(frame)) + (number - (frame.shape[1] - 1) / 2) * width
        axes.bar(places, frame[column].to_numpy(np.float64), width=width * 0.92, color=theme[f"c{number + 1}"], label=english(column))
    axes.set_xticks(range(len(frame)), [english(row) for row in frame.index])
    axes.set_xlim(-0.7, max(len(frame), 3) - 0.3)
    zero(axes, theme)
    numbers(axes)
    return close(figure, theme)


def _rows(frame: pd.DataFrame, theme: Theme, title: str, percent: bool = False) -> Figure:
    """Lying bars: one row for each row of the frame from the top, columns side by side."""
    figure, (axes,) = panels(theme, title, 44 + ((16 if len(frame) < 20 else 13) + 6 * (frame.shape[1] - 1)) * len(frame))
    dress(axes, theme, grid="x")
    axes.spines["bottom"].set_visible(False)
    width = 0.74 / max(frame.shape[1], 1)
    for number, column in enumerate(frame):
        places = np.arange(len(frame)) + (number - (frame.shape[1] - 1) / 2) * width
        axes.barh(places, frame[column].to_numpy(np.float64), height=width * 0.92, color=theme[f"c{number + 1}"], label=english(column))
    axes.yaxis.set_major_locator(FixedLocator(range(len(frame))))
    axes.set_yticks(range(len(frame)), [english(row) for row in frame.index])
    axes.set_ylim(len(frame) - 0.4, -0.6)
    axes.axvline(0, color=theme["line"], linewidth=0.8)
    numbers(axes, percent, "x")
    return close(figure, theme)


PLOTS: dict[str, Plot] = {
    "quantile_nav": Plot(quantile_nav, "factor", "quantile_daily", "Net value by group", ("~Q",)),
    "long_nav": Plot(long_nav, "factor", "quantile_daily", "Long-short and long-only excess", ("~Q",)),
    "rank_ic": Plot(rank_ic, "factor", "daily", "RankIC", ("rank_ic",)),
    "quantile_bars": Plot(quantile_bars, "factor", "quantiles", "Groups from low to high score", (("excess a year", "return a year"),)),
    "decay": Plot(decay, "factor", "decay", "Decay over horizons", (("IC", "RankIC"),)),
    "ic_by_year": Plot(ic_by_year, "factor", "by_year", "IC by year", (("IC", "RankIC"),)),
    "neutral": Plot(neutral, "factor", "neutral", "IC after neutralisation", (("IC", "RankIC"),)),
    "autocorrelation": Plot(autocorrelation, "factor", "daily", "Autocorrelation of ranks", ("autocorrelation",)),
    "style_exposure": Plot(style_exposure, "factor", "style_exposure", "Style exposure", (("mean", "top group"),)),
    "industry_exposure": Plot(industry_exposure, "factor", "industry_exposure", "Industry exposure", ("~",)),
    "nav": Plot(nav, "portfolio", "daily", "Net value", ("net",)),
    "excess": Plot(excess, "portfolio", "daily", "Excess net value and its drawdown", ("net", BENCHMARKS)),
    "monthly_excess": Plot(monthly_excess, "portfolio", "by_month", "Excess by month", ("~excess",)),
    "drawdown": Plot(drawdown, "portfolio", "daily", "Drawdown of net value", ("net",)),
    "exposure": Plot(exposure, "portfolio", "exposure", "Active exposures", ("~",)),
    "attribution": Plot(attribution, "portfolio", "attribution", "Attribution of excess", ("return",)),
    "attribution_nav": Plot(attribution_nav, "portfolio", "attribution_daily", "Attribution over time", ("~",)),
    "turnover": Plot(turnover, "portfolio", "daily", "Turnover and cost", ("turnover", "cost")),
}
"""Name -> plot; the first of the list come first on a page."""


def available(kind: str, tables: Report) -> list[str]:
    """Names of the plots whose table is there, with a figure in the columns that they show."""
    return [name for name, plot in PLOTS.items() if plot.kind == kind and plot.table in tables
            and all(_has(tables[plot.table].frame, wanted) for wanted in plot.columns)]


def _has(frame: pd.DataFrame, wanted) -> bool:
    if isinstance(wanted, tuple):
        return any(_has(frame, one) for one in wanted)
    if wanted.startswith("~"):
        return any(wanted[1:] in str(column) and frame[column].notna().any() for column in frame.select_dtypes("number"))
    return wanted in frame and bool(frame[wanted].notna().any())


def named(report: Saved) -> Saved:
    """A report with industries by name where its facts know the names of the store's codes."""
    names, table = report.facts.get("industry_names") or {}, report.tables.get("industry_exposure")
    if table is None or not names:
        return report
    frame = table.frame.rename(index=lambda code: names.get(str(code), str(code)))
    return replace(report, tables={**report.tables, "industry_exposure": Table(frame, table.convention)})


def png_files(kind: str, tables: Report, theme: Theme = LIGHT) -> dict[str, bytes]:
    """The plots of a report as PNG: file name -> content."""
    return {f"{name}.png": png(PLOTS[name].draw(tables, theme)) for name in available(kind, tables)}
