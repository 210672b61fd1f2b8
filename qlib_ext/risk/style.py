"""Style exposures from descriptors: winsorised, standardised, combined, orthogonalised, filled.

Per day, on the estimation universe (other stocks get values by the same numbers):

1. each descriptor is cut at median +- 3 robust deviations, then scaled to cap-weighted mean 0 and equally weighted deviation 1;
2. a style is the sum of its descriptors by weight, the weights renormalised over those a stock has, and scaled again;
3. a style that less than half of the members have is unknown on the day; else, where a stock has none of them, the style is what its
   industry and its size would suggest (`fill`);
4. residual volatility is made orthogonal to beta and size, the cube of size and its square to size, by least squares with the
   regression's weights, the square root of cap; every style is scaled once more.

Cap-weighted mean 0 is the scale of portfolio bounds: the benchmark of all stocks has exposure 0. Source: Barra CNE5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.risk.descriptor import DESCRIPTORS, EXTRAS, STYLES, Descriptor
from qlib_ext.risk.weighted import fill, orthogonalize, standardize, winsorize

POWERS = {"nonlinear_size": 3, "size_squared": 2}
ORTHOGONAL = {"residual_volatility": ("beta", "size"), "nonlinear_size": ("size",), "size_squared": ("size",)}
"""Styles and the styles they are made orthogonal to (those of them that there are)."""
SIZE = [one for one in DESCRIPTORS if one.style == "size"]
LEAST_SHARE = 0.5
"""Share of the members that must have a style of their own: what is filled for more is a mixture of industries and size."""
STOCKS, DAYS = 48, 32
"""Worked on at a time: stocks over all days, days over all stocks."""


@dataclass(frozen=True)
class StyleExposures:
    """Exposures and how they came about.

    Args:
        names: the ``k`` styles.
        values: float64 ``[t, n, k]``, standard deviations; NaN where a stock has no cap, or the style is unknown on the day.
        own: bool ``[t, n, k]``, whether from the stock's own descriptors, not filled.
        descriptors: style -> its descriptors that the fields allow.
        missing: style -> why it cannot be had.
    """

    names: tuple[str, ...]
    values: np.ndarray
    own: np.ndarray
    descriptors: dict[str, tuple[str, ...]]
    missing: dict[str, str]


def possible(fields: Sequence[str], styles: Sequence[str] | None = None) -> tuple[dict[str, list[Descriptor]], dict[str, str]]:
    """Styles that some fields allow with their descriptors, and the others with the reason.

    Args:
        fields: names at hand. styles: those wanted, CNE5's and the extras'; None: the ten of CNE5.

    Raises:
        ConfigError: an unknown style.
    """
    wanted = list(STYLES if styles is None else styles)
    everything = {one.style: [] for one in (*DESCRIPTORS, *EXTRAS)}
    for one in (*DESCRIPTORS, *EXTRAS):
        everything[one.style].append(one)
    unknown = [name for name in wanted if name not in everything]
    if unknown:
        raise ConfigError(f"unknown styles {unknown}; there are {list(everything)}")
    found, missing = {}, {}
    for style in wanted:
        able = [one for one in everything[style] if set(one.needs) <= set(fields)]
        if able:
            found[style] = able
        else:
            lacks = [f"{one.name} lacks {', '.join(sorted(set(one.needs) - set(fields)))}" for one in everything[style]]
            missing[style] = "; ".join(lacks)
    return found, missing


def style_exposures(fields: Mapping[str, np.ndarray], cap: np.ndarray, members: np.ndarray, industry: np.ndarray | None = None,
                    styles: Sequence[str] | None = None, origin: int = 0, first: int = 0, run: Callable = map) -> StyleExposures:
    """The styles on the days from row `first` on.

    Args:
        fields: ``[t, n]`` arrays as `qlib_ext.risk.descriptor.Descriptor` names them; `market` ``[t]``, the market's return.
            What is not there leaves its descriptors out.
        cap: ``[t, n]``, weights of means and (their root) of regressions; a stock without one has no exposures. Usually `cap` of the
            fields; ones where the store has no market values.
        members: bool ``[t, n]``, the estimation universe.
        industry: ``[t, n]`` numbers, NaN unknown; None: there are none.
        styles: which; None for the ten of CNE5.
        origin: place of the first row on the calendar.
        run: `map`, or something like it that uses threads.

    Raises:
        ConfigError: an unknown style. ShapeError: arrays of other shapes. DataError: no style can be had.
    """
    _check_shapes(fields, cap, members, industry)
    found, missing = possible(list(fields), styles)
    if not found:
        raise DataError(f"no style can be had: {missing}")
    helpers = sorted({name for style in found for name in ORTHOGONAL.get(style, ()) if name not in found})
    wanted = {**possible(list(fields), helpers)[0], **found}
    parts = list(dict.fromkeys(one for style, needed in {"size": SIZE if "cap" in fields else [], **wanted}.items()
                               for one in needed if style not in POWERS))
    raw = _descriptors(fields, parts, origin, first, run)
    cap, members = np.asarray(cap, np.float64)[first:], members[first:]
    group = np.zeros(members.shape, np.int64) if industry is None else _groups(industry[first:])
    names = tuple(found)
    values, own = np.empty((*cap.shape, len(names))), np.empty((*cap.shape, len(names)), bool)

    def work(rows: slice) -> None:
        section = _Section({name: part[rows] for name, part in raw.items()}, cap[rows], members[rows], group[rows], "cap" in fields)
        values[rows], own[rows] = section.styles(wanted, names)

    list(run(work, [slice(begin, begin + DAYS) for begin in range(0, len(cap), DAYS)]))
    return StyleExposures(names, values, own, {name: tuple(one.name for one in parts) for name, parts in found.items()}, missing)


def _descriptors(fields: Mapping[str, np.ndarray], parts: list[Descriptor], origin: int, first: int, run: Callable) -> dict[str, np.ndarray]:
    """Descriptors by name from row `first` on, some stocks at a time, whose arrays stay in the processor's cache."""
    days, stocks = next(part.shape for part in fields.values() if part.ndim == 2)
    out = {one.name: np.empty((days - first, stocks)) for one in parts}
    needed = {name for one in parts for name in one.needs}

    def work(columns: slice) -> None:
        mine = {name: part if part.ndim == 1 else np.ascontiguousarray(part[:, columns], np.float64)
                for name, part in fields.items() if name in needed}
        shared: dict = {}
        for one in parts:
            if one.part is None:
                value = one.compute(mine, origin)
            else:
                if one.compute not in shared:
                    shared[one.compute] = one.compute(mine, origin)
                value = shared[one.compute][one.part]
            out[one.name][:, columns] = value[first:]

    list(run(work, [slice(begin, begin + STOCKS) for begin in range(0, stocks, STOCKS)]))
    return out


class _Section:
    """Some days of descriptors ``raw[name] [t, n]``, to be made styles."""

    def __init__(self, raw: dict, cap: np.ndarray, members: np.ndarray, group: np.ndarray, has_size: bool):
        self.raw, self.cap, self.members, self.group = raw, cap, members & (cap > 0), group
        self.size = self.style(SIZE) if has_size else np.where(cap > 0, 0.0, np.nan)

    def styles(self, wanted: dict[str, list[Descriptor]], names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Exposures ``[t, n, k]`` to the styles of `names`, and whether they are a stock's own."""
        made, own = {}, {}
        for style, parts in wanted.items():
            value = self.size if style == "size" else self.scaled(self.size**POWERS[style]) if style in POWERS else self.style(parts)
            own[style] = np.isfinite(value) & (self.cap > 0)
            rare = (own[style] & self.members).sum(axis=1) < LEAST_SHARE * self.members.sum(axis=1)
            value = np.where(rare[:, None], np.nan, value)
            made[style] = value if style in ("size", *POWERS) else fill(value, self.size, self.group, self.members, self.cap)
        root = np.sqrt(np.where(self.cap > 0, self.cap, 0.0))
        finished = []
        for style in names:
            value = made[style]
            if style in ORTHOGONAL:
                others = [made[name] for name in ORTHOGONAL[style] if name in made]
                value = orthogonalize(value, others, self.members, root)
                if style in POWERS:                             # long tails, which are cut before a second regression
                    value = orthogonalize(winsorize(value, self.members), others, self.members, root)
            finished.append(np.where(self.cap > 0, self.scaled(value), np.nan))
        values = np.stack(finished, axis=2)
        return values, np.stack([own[name] for name in names], axis=2) & np.isfinite(values)

    def scaled(self, value: np.ndarray) -> np.ndarray:
        return standardize(value, self.members, self.cap)

    def style(self, parts: list[Descriptor]) -> np.ndarray:
        """Weighted mean of the descriptors a stock has, scaled."""
        total, weight = np.zeros(self.cap.shape), np.zeros(self.cap.shape)
        for one in parts:
            value = self.scaled(winsorize(self.raw[one.name], self.members))
            there = np.isfinite(value)
            total += one.weight * np.where(there, value, 0.0)
            weight += one.weight * there
        return self.scaled(total / np.where(weight > 0, weight, np.nan))


def _groups(industry: np.ndarray) -> np.ndarray:
    """Numbers 0.. of the industries ``[t, n]``; unknown ones share the last."""
    codes, names = pd.factorize(industry.ravel())
    return np.where(codes < 0, len(names), codes).reshape(industry.shape)


def _check_shapes(fields: Mapping[str, np.ndarray], cap: np.ndarray, members: np.ndarray, industry: np.ndarray | None) -> None:
    shape = members.shape
    fields = {**fields, "weights": cap}
    wrong = {name: part.shape for name, part in fields.items() if part.shape != (shape[:1] if name == "market" else shape)}
    if industry is not None and industry.shape != shape:
        wrong["industry"] = industry.shape
    if wrong or members.dtype != bool:
        raise ShapeError(f"members {members.dtype} {shape} must be bool [t, n], and the fields like it; others: {wrong}")


def coverage(exposures: StyleExposures, members: np.ndarray, days: np.ndarray) -> list[dict]:
    """Share of the estimation universe that has a style by descriptors of its own, by style and year.

    Args:
        members: bool ``[t, n]`` and days: datetime64 ``[t]`` of the exposures.

    Returns:
        rows {style, descriptors, year, own, filled, members}: shares, and the mean number of members a day.
    """
    years, rows = days.astype("datetime64[Y]").astype(int) + 1970, []
    for k, style in enumerate(exposures.names):
        for year in np.unique(years):
            inside = members & (years == year)[:, None]
            count = max(int(inside.sum()), 1)
            own = int((exposures.own[:, :, k] & inside).sum())
            known = int((np.isfinite(exposures.values[:, :, k]) & inside).sum())
            rows.append({"style": style, "descriptors": "+".join(exposures.descriptors[style]), "year": int(year), "own": own / count,
                         "filled": (known - own) / count, "members": inside.sum() / max(int((years == year).sum()), 1)})
    return rows
