"""Figures without pyplot: colours of a theme, axes as all plots have them, and a figure as PNG or as a small inline SVG."""

from __future__ import annotations

import io
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, Mapping, NamedTuple, Sequence

import matplotlib
import matplotlib.dates as dates
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import Formatter, MaxNLocator

from qlib_ext.report.cells import signed
from qlib_ext.report.words import english

WIDTH, HEIGHT = 430, 240
"""CSS pixels at which a figure is drawn; the page scales it."""
MAX_POINTS = 600
SERIES, RAMP, HEAT = 6, 10, 9
DASHES = ((), (5, 2), (1.5, 1.5))
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "WenQuanYi Micro Hei", "Microsoft YaHei", "PingFang SC", "SimHei")
"""For names that have no English, where one of them is installed."""
SETTINGS = {"font.size": 11, "axes.titlesize": 12, "axes.linewidth": 0.8, "lines.linewidth": 1.5,
            "lines.solid_joinstyle": "round", "xtick.major.width": 0.8, "ytick.major.width": 0.8, "axes.unicode_minus": True,
            "svg.fonttype": "none", "svg.hashsalt": "qlib_ext", "path.simplify": True, "path.simplify_threshold": 0.3}


def _ramp(low: str, middle: str, high: str, count: int) -> list[str]:
    stops = np.array([to_rgb(colour) for colour in (low, middle, high)])
    return [to_hex([np.interp(at, [0, 0.5, 1], stops[:, part]) for part in range(3)]) for at in np.linspace(0, 1, count)]


def _colours(plain: str, series: str, ramp: Sequence[str], heat: Sequence[str]) -> dict[str, str]:
    found = dict(zip(("page", "card", "text", "muted", "grid", "line", "accent"), plain.split()))
    found |= {f"c{number}": colour for number, colour in enumerate(series.split(), 1)}
    found |= {f"q{number}": colour for number, colour in enumerate(_ramp(*ramp, RAMP))}
    return found | {f"h{number}": colour for number, colour in enumerate(_ramp(*heat, HEAT))}


@dataclass(frozen=True)
class Theme:
    """Colours by role: page, card, text, muted, grid, line, accent, series c1.., low to high q0.., heat h0.. (minus to plus).

    `standalone` figures carry their title and legend; others leave both to the page around them.
    """

    name: str
    colours: Mapping[str, str]
    standalone: bool = True

    def __getitem__(self, role: str) -> str:
        return self.colours[role]

    def series(self, number: int) -> dict:
        """Line colour and dashes of the series of that number, from 0: told apart in print without colours too."""
        dash = DASHES[number // SERIES % len(DASHES)]
        return {"color": self[f"c{number % SERIES + 1}"], **({"dashes": dash} if dash else {})}

    def ramp(self, number: int, count: int) -> str:
        """Colour of the group of that number, from 0 (low) to count - 1 (high)."""
        return self[f"q{round(number * (RAMP - 1) / max(count - 1, 1))}"]

    def heat(self, value: float, limit: float) -> str:
        """Colour of a value between -limit and limit."""
        if not np.isfinite(value) or not limit > 0:
            return self["card"]
        return self[f"h{round((np.clip(value / limit, -1, 1) + 1) / 2 * (HEAT - 1))}"]


# Okabe and Ito's colours, which the colour-blind can tell apart; darker on white, lighter on black, for contrast.
LIGHT = Theme("light", _colours("#f6f7f9 #ffffff #1b1f24 #59636e #e4e7eb #9aa4af #0b5c96",
                                "#0072b2 #d55e00 #00855f #b4578c #a97400 #56646f",
                                ("#c04a00", "#b4bac0", "#005a92"), ("#f3ac7c", "#ffffff", "#8cc2e8")))
DARK = Theme("dark", _colours("#0f1317 #181d23 #e6e9ed #9ba6b2 #2a313a #56616d #6fb9ee",
                              "#56b0ea #ff8f52 #3ec79b #e593c3 #f0b94a #a9b4bf",
                              ("#ff9a5e", "#6a747e", "#6fc0f7"), ("#8a4314", "#181d23", "#17598c")))
PAGE = Theme("page", {role: f"#fe{number:04x}" for number, role in enumerate(LIGHT.colours)}, standalone=False)
"""Stands for the variables of a page's style sheet: `svg` writes ``var(--role)`` for its colours."""


def css_variables(theme: Theme) -> str:
    """The colours of a theme as declarations of a style sheet."""
    return "".join(f"--{role}:{colour};" for role, colour in theme.colours.items())


@contextmanager
def _settings() -> Iterator[None]:
    """Our settings, whatever a user's matplotlibrc says; letters that no font has are drawn as boxes without a warning each."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *(name for name in CJK_FONTS if name in installed)]
        yield


# ---- axes ---------------------------------------------------------------------------------------------------------------------
def panels(theme: Theme, title: str, height: int = HEIGHT, ratios: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure with panels one above another that share their x axis; `height` in CSS pixels, without title and legend."""
    with _settings():
        figure = Figure(figsize=(WIDTH / 72, (height + 48 * theme.standalone) / 72), layout="constrained", facecolor=theme["card"])
        FigureCanvasAgg(figure)
        figure.get_layout_engine().set(w_pad=5 / 72, h_pad=5 / 72)
        found = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": list(ratios)})[:, 0]
        for axes in found:
            dress(axes, theme)
        if theme.standalone:
            figure.suptitle(english(title), x=0.01, ha="left", color=theme["text"], fontweight="bold", fontsize=12)
    return figure, list(found)


def dress(axes: Axes, theme: Theme, grid: str = "y") -> None:
    """Quiet axes: no frame, thin grid behind the data, few ticks."""
    axes.set_facecolor(theme["card"])
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme["line"])
    axes.grid(True, axis=grid, color=theme["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme["muted"], length=0, pad=4)
    axes.tick_params(axis="x", length=3 if grid == "y" else 0, color=theme["line"])


class Ticks(Formatter):
    """Tick labels with as many decimals as tell them apart, as numbers or in percent, with a true minus sign."""

    def __init__(self, percent: bool):
        self.scale, self.unit = (100, "%") if percent else (1, "")

    def format_ticks(self, values: Sequence[float]) -> list[str]:
        shown = np.asarray(values, np.float64) * self.scale
        places = next((places for places in range(5) if np.allclose(np.round(shown, places), shown, rtol=0, atol=1e-7)), 5)
        return [signed(value, f"{{:.{places}f}}") + self.unit for value in shown]

    def __call__(self, value: float, position: int | None = None) -> str:
        return self.format_ticks([value])[0]


def numbers(axes: Axes, percent: bool = False, which: str = "y") -> None:
    """Tick labels as `Ticks` writes them."""
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
    axis.set_major_formatter(Ticks(percent))


def zero(axes: Axes, theme: Theme, at: float = 0.0) -> None:
    """The line from which bars start, or at which a net value starts."""
    axes.axhline(at, color=theme["line"], linewidth=0.8, zorder=1)


def calendar(axes: Axes, days: pd.DatetimeIndex) -> None:
    """A time axis of at most seven ticks, numbers only (no month names, so it reads alike in every language)."""
    start, end = days[0], days[-1]
    months = max((end.year - start.year) * 12 + end.month - start.month, 1)
    step = next((step for step in (1, 2, 3, 6) if months / step <= 6.5), None)
    if len(days) < 30:
        axes.xaxis.set_major_locator(dates.AutoDateLocator(minticks=2, maxticks=6))
        axes.xaxis.set_major_formatter(dates.DateFormatter("%m-%d"))
    elif step is None:
        axes.xaxis.set_major_locator(dates.YearLocator(max(1, round(months / 84))))
        axes.xaxis.set_major_formatter(dates.DateFormatter("%Y"))
    else:
        axes.xaxis.set_major_locator(dates.MonthLocator(bymonth=range(1, 13, step)))
        axes.xaxis.set_major_formatter(dates.DateFormatter("%Y-%m"))
    margin = max((end - start) / 80, pd.Timedelta(days=1))
    axes.set_xlim(start - margin, end + margin)


def line(axes: Axes, series: pd.Series, label: str, **style) -> None:
    """A line through the values of a series, thinned for the eye; NaN leave gaps; nothing for a series without values."""
    series = thin(series)
    if series.notna().any():
        axes.plot(series.index, series.to_numpy(), label=english(label), **style)


def thin(series: pd.Series, limit: int = MAX_POINTS) -> pd.Series:
    """At most `limit` + 2 points: the lowest and highest of each stretch, so that extremes stay, with the first and last."""
    if len(series) <= limit:
        return series
    values = series.to_numpy(np.float64)
    edges = np.linspace(0, len(values), limit // 2 + 1).astype(int)
    keep = {0, len(values) - 1}
    for start, stop in zip(edges[:-1], edges[1:]):
        part = values[start:stop]
        if np.isfinite(part).any():
            keep |= {start + int(np.nanargmin(part)), start + int(np.nanargmax(part))}
        else:
            keep.add(start)
    return series.iloc[sorted(keep)]


# ---- output -------------------------------------------------------------------------------------------------------------------
class Entry(NamedTuple):
    """One entry of a legend: text, colour, whether it is a line, whether the line is broken."""

    label: str
    colour: str
    is_line: bool
    broken: bool


def legend(figure: Figure) -> list[Entry]:
    """The labelled lines and bars of a figure, in drawing order, each once."""
    found: dict[str, Entry] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            is_line = hasattr(handle, "get_linestyle") and hasattr(handle, "get_xdata")
            patch = handle.patches[0] if hasattr(handle, "patches") and handle.patches else handle
            colour = to_hex(handle.get_color() if is_line else _first(patch.get_facecolor()))
            broken = bool(is_line and (handle.is_dashed() or handle.get_linestyle() not in ("-", "solid")))
            found.setdefault(label, Entry(label, colour, is_line, broken))
    return list(found.values())


def _first(colour):
    return colour[0] if np.ndim(colour) == 2 else colour


def close(figure: Figure, theme: Theme, columns: int = 4) -> Figure:
    """A legend below the panels of a standalone figure that has labelled parts."""
    handles = {label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels())}
    if theme.standalone and handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, frameon=False, fontsize=10,
                      labelcolor=theme["text"], handlelength=1.6, columnspacing=1.4)
    return figure


def png(figure: Figure, pixels: int = 1200) -> bytes:
    """A figure as PNG of that width."""
    content = io.BytesIO()
    with _settings():
        figure.savefig(content, format="png", dpi=pixels / figure.get_figwidth(), facecolor=figure.get_facecolor(),
                       metadata={"Software": None})
    return content.getvalue()


def svg(figure: Figure, prefix: str, theme: Theme = PAGE) -> str:
    """A figure drawn with `theme` as SVG to put into a page: text as text, colours ``var(--role)``, no outside name.

    Args:
        prefix: begins the identifiers inside, so that several figures of one page do not share any.
    """
    content = io.StringIO()
    with _settings():
        figure.savefig(content, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    found = content.getvalue()
    found = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style.*?</style>", "", found[found.index("<svg"):], flags=re.S)
    width, height = (re.search(rf'<svg[^>]*\b{side}="([\d.]+)pt"', found).group(1) for side in ("width", "height"))
    found = re.sub(r"<svg[^>]*>", f'<svg viewBox="0 0 {width} {height}" aria-hidden="true">', found, count=1)
    used = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', found))
    found = re.sub(r'\s+id="([^"]+)"', lambda match: f' id="{prefix}-{match[1]}"' if match[1] in used else "", found)
    found = re.sub(r'xlink:href="#|url\(#', lambda match: f'{match[0].removeprefix("xlink:")}{prefix}-', found)
    found = re.sub(r' (d|x|y|width|height|transform|points)="([^"]*)"', _rounded, found)
    found = re.sub(r"font: ?(?:[a-z]+ )?([\d.]+px)[^;\"]*", r"font-size:\1", found)
    found = re.sub(r"font-family:[^;\"]*;?| transform=\"rotate\(-?0 [^\"]*\"", "", found)
    for role, colour in theme.colours.items():
        found = found.replace(colour, f"var(--{role})")
    return re.sub(r"\s*\n\s*", " ", found).replace("> <", "><").strip()


def _rounded(match: re.Match) -> str:
    digits = 3 if match[1] == "transform" else 1
    numbers = re.sub(r"-?\d+\.\d+", lambda one: f"{float(one[0]):.{digits}f}".rstrip("0").rstrip("."), match[2])
    return f' {match[1]}="{numbers.strip()}"'
