"""Plots of report tables: what their lines and bars show, what is left out, and figures as small SVG and PNG."""

import re
import subprocess
import sys
import warnings
from io import BytesIO

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sheet_tables import days, factor_tables, portfolio_tables

from qlib_ext.report import drawing, plots
from qlib_ext.report.drawing import DARK, LIGHT, PAGE, Ticks, legend, png, svg, thin
from qlib_ext.report.table import Table

TABLES = {"factor": factor_tables(200), "portfolio": portfolio_tables(200)}


def curves(figure, panel: int = 0) -> dict:
    return {one.get_label(): one.get_ydata() for one in figure.axes[panel].lines if not one.get_label().startswith("_")}


def with_table(kind: str, name: str, frame: pd.DataFrame) -> dict:
    return {**TABLES[kind], name: Table(frame, "")}


# ---- every plot ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", plots.PLOTS)
def test_every_plot_is_a_small_svg_in_variables_and_the_same_each_time(name):
    plot = plots.PLOTS[name]
    assert name in plots.available(plot.kind, TABLES[plot.kind])
    first, second = (svg(plot.draw(TABLES[plot.kind], PAGE), f"x-{name}") for _ in range(2))
    assert first == second and len(first) < 120_000
    assert not re.search(r"#[0-9a-f]{6}\b", first) and "://" not in first and "font-family" not in first
    assert set(re.findall(r"var\(--(\w+)\)", first)) <= set(LIGHT.colours) and "var(--muted)" in first
    marks = re.findall(r' id="([^"]+)"', first)
    assert len(marks) == len(set(marks)) and all(mark.startswith(f"x-{name}-") for mark in marks)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', first)) == set(marks)
    assert plot.draw(TABLES[plot.kind], LIGHT).axes and plot.title


@pytest.mark.parametrize("count", [1, 25])
def test_short_reports_draw_without_a_warning(count):
    tables = {"factor": factor_tables(count), "portfolio": portfolio_tables(count)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, plot in plots.PLOTS.items():
            if name in plots.available(plot.kind, tables[plot.kind]):
                svg(plot.draw(tables[plot.kind], PAGE), name)


def test_pngs_are_pictures_of_the_asked_width():
    found = plots.png_files("portfolio", {"daily": TABLES["portfolio"]["daily"]}, DARK)
    assert set(found) == {"nav.png", "excess.png", "drawdown.png", "turnover.png"}
    picture = Image.open(BytesIO(found["nav.png"]))
    assert picture.width == 1200 and picture.convert("RGB").getpixel((2, 2)) == tuple(bytes.fromhex(DARK["card"][1:]))
    assert found == plots.png_files("portfolio", {"daily": TABLES["portfolio"]["daily"]}, DARK)


def test_a_standalone_figure_has_title_and_legend_and_a_page_figure_has_neither():
    alone, page = (plots.nav(TABLES["portfolio"], theme) for theme in (LIGHT, PAGE))
    assert alone._suptitle.get_text() == "Net value" and len(alone.legends) == 1
    assert page._suptitle is None and not page.legends
    assert [one.label for one in legend(page)] == ["After cost", "Before cost", "Total return", "Equal weights", "Price index"]
    assert [one.broken for one in legend(page)] == [False, True, False, False, False]


# ---- what they show -----------------------------------------------------------------------------------------------------------
def test_net_values_are_products_of_daily_returns():
    frame, found = TABLES["portfolio"]["daily"].frame, curves(plots.nav(TABLES["portfolio"], PAGE))
    value, slow = 1.0, []
    for one in frame["net"]:
        value *= 1 + one
        slow.append(value)
    assert found["After cost"] == pytest.approx(slow)
    over = curves(plots.excess(TABLES["portfolio"], PAGE))["After cost / Total return"]
    assert over[-1] == pytest.approx(np.prod(1 + frame["net"]) / np.prod(1 + frame["total_return"]))
    fall = next(one.get_ydata() for one in plots.drawdown(TABLES["portfolio"], PAGE).axes[0].lines if one.get_label() == "After cost")
    assert fall == pytest.approx([slow[t] / max(slow[:t + 1]) - 1 for t in range(len(slow))])


def test_a_missing_return_is_none_and_a_late_start_starts_at_one():
    frame = TABLES["factor"]["quantile_daily"].frame.copy()
    frame.iloc[:10] = np.nan
    frame.iloc[20, 0] = np.nan
    found = curves(plots.quantile_nav(with_table("factor", "quantile_daily", frame), PAGE))["Q1"]
    assert np.isnan(found[:10]).all() and np.isfinite(found[10:]).all() and found[20] == found[19]
    assert found[10] == pytest.approx(1 + frame["Q1"].iloc[10])


def test_bars_of_months_and_running_sum_of_rank_ic():
    series, figure = TABLES["factor"]["daily"].frame["rank_ic"], plots.rank_ic(TABLES["factor"], PAGE)
    bars = [patch.get_height() for patch in figure.axes[0].patches]
    assert bars == pytest.approx([part.mean() for _, part in series.groupby([series.index.year, series.index.month])])
    assert curves(figure, 1)["RankIC, running sum (right)"][-1] == pytest.approx(series.sum())
    heights = [axes.transData.transform((0, 0))[1] for axes in figure.axes]
    assert heights[0] == pytest.approx(heights[1])                                        # both scales have 0 at one height


def test_the_heat_table_prints_each_month_and_colours_by_sign():
    figure = plots.monthly_excess(TABLES["portfolio"], LIGHT)
    frame = TABLES["portfolio"]["by_month"].frame["excess over total_return"]
    written = [text.get_text() for text in figure.axes[0].texts]
    assert [f"{round(value * 100, 1) + 0.0:.1f}".replace("-", "\N{MINUS SIGN}") for value in frame] == [text for text in written[:-1]]
    assert LIGHT.heat(0.05, 0.05) == LIGHT["h8"] and LIGHT.heat(-9, 0.05) == LIGHT["h0"] and LIGHT.heat(0, 1) == LIGHT["h4"]
    assert LIGHT.heat(np.nan, 1) == LIGHT["card"]


def test_exposures_begin_with_holdings_and_show_the_largest():
    figure = plots.exposure(TABLES["portfolio"], PAGE)
    frame = TABLES["portfolio"]["exposure"].frame
    found = curves(figure)
    assert len(found["Size"]) == len(frame) - 1 and found["Size"] == pytest.approx(frame["size"].iloc[1:])
    assert "Industry deviation" in curves(figure, 1) and "names" not in curves(figure, 1)
    only = plots.exposure(with_table("portfolio", "exposure", frame[["names", "invested"]]), PAGE)
    assert len(only.axes) == 1 and list(curves(only)) == ["Invested"]


def test_chinese_industries_have_english_names_and_unknown_ones_do_not_warn():
    figure = plots.industry_exposure(TABLES["factor"], LIGHT)
    shown = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    frame = TABLES["factor"]["industry_exposure"].frame
    assert "Banks" in shown and not any("\u4e00" <= letter <= "\u9fff" for letter in "".join(shown))
    lengths = [patch.get_width() for patch in figure.axes[0].patches]
    assert lengths == sorted(lengths, reverse=True) and lengths == pytest.approx(sorted(frame["top group"], reverse=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png(plots.industry_exposure(with_table("factor", "industry_exposure", frame.rename(index={"银行": "未名行业"})), LIGHT))


# ---- what is left out ---------------------------------------------------------------------------------------------------------
def test_a_plot_without_its_table_or_figures_is_left_out():
    tables = dict(TABLES["factor"])
    del tables["decay"]
    assert set(plots.available("factor", TABLES["factor"])) - set(plots.available("factor", tables)) == {"decay"}
    empty = TABLES["factor"]["daily"].frame.assign(rank_ic=np.nan)
    assert "rank_ic" not in plots.available("factor", with_table("factor", "daily", empty))
    assert "autocorrelation" in plots.available("factor", with_table("factor", "daily", empty))
    bare = TABLES["portfolio"]["daily"].frame[["net", "cost", "turnover"]]
    assert set(plots.available("portfolio", {"daily": Table(bare, "")})) == {"nav", "drawdown", "turnover"}
    assert not plots.available("leaks", {}) and not plots.available("factor", {})


def test_a_column_without_figures_draws_no_line():
    frame = TABLES["portfolio"]["daily"].frame.assign(equal_weight=np.nan)
    assert "Equal weights" not in curves(plots.nav(with_table("portfolio", "daily", frame), PAGE))


# ---- drawing ------------------------------------------------------------------------------------------------------------------
def test_thinned_lines_keep_ends_and_extremes():
    draw = np.random.default_rng(0)
    series = pd.Series(draw.normal(size=5000).cumsum(), days(5000))
    series.iloc[1000:1300] = np.nan
    few = thin(series, 200)
    assert len(few) <= 202 and few.index.is_monotonic_increasing
    assert few.max() == series.max() and few.min() == series.min()
    assert few.iloc[0] == series.iloc[0] and few.iloc[-1] == series.iloc[-1] and few.isna().any()
    assert thin(series, 5000) is series


def test_ten_years_of_days_stay_small():
    tables = factor_tables(2430)
    assert len(svg(plots.quantile_nav(tables, PAGE), "x")) < 150_000


def test_tick_labels_tell_ticks_apart():
    assert Ticks(False).format_ticks([0.0, 0.015, 0.03, -0.015]) == ["0.000", "0.015", "0.030", "\N{MINUS SIGN}0.015"]
    assert Ticks(True).format_ticks([-0.025, 0.0, 0.05]) == ["\N{MINUS SIGN}2.5%", "0.0%", "5.0%"]


def test_a_users_settings_change_nothing_and_stay():
    plain = svg(plots.decay(TABLES["factor"], PAGE), "x")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path", "lines.linewidth": 9}):
        assert svg(plots.decay(TABLES["factor"], PAGE), "x") == plain
        assert matplotlib.rcParams["font.size"] == 30 and matplotlib.rcParams["svg.fonttype"] == "path"


def test_pyplot_and_windows_are_not_touched():
    script = ("import sys; from qlib_ext.report import plots; import sheet_tables as s;"
              "plots.png_files('factor', {'decay': s.factor_tables(9)['decay']});"
              "assert 'matplotlib.pyplot' not in sys.modules, 'pyplot'; assert 'plotly' not in sys.modules, 'plotly'")
    done = subprocess.run([sys.executable, "-c", script], cwd=__file__.rpartition("/")[0], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1000:]


def test_colours_differ_enough_from_their_background():
    def light(colour):
        parts = [int(colour[place:place + 2], 16) / 255 for place in (1, 3, 5)]
        return sum(weight * (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4)
                   for weight, part in zip((0.2126, 0.7152, 0.0722), parts))
    for theme in (LIGHT, DARK):
        for role, least in (("text", 10), ("muted", 4.5), ("accent", 4.5), *((f"c{n}", 3) for n in range(1, drawing.SERIES + 1))):
            low, high = sorted((light(theme[role]), light(theme["card"])))
            assert (high + 0.05) / (low + 0.05) >= least, (theme.name, role)
        for number in range(drawing.HEAT):
            low, high = sorted((light(theme["text"]), light(theme[f"h{number}"])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (theme.name, number)
