"""Style exposures from descriptors: winsorised, standardised, combined, orthogonalised, filled.

Per day, on the estimation universe (other stocks get values by the same numbers):

1. each descriptor is cut at median +- 3 robust deviations, then scaled to cap-weighted mean 0 and equally weighted deviation 1;
2. a style is the sum of its descriptors by weight, the weights renormalised over those a stock has, and scaled again;
3. where a stock has none of them, the style is what its industry and its size would suggest (`fill`);
4. residual volatility is made orthogonal to beta and size, the cube of size and its square to size, by least squares with the
   regression's weights, the square root of cap; every style is scaled once more.

Cap-weighted mean 0 is the scale of portfolio bounds: the benchmark of all stocks has exposure 0. Source: Barra CNE5.
"""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.risk.descriptor import DESCRIPTORS, EXTRAS, STYLES, Descriptor
from qlib_ext.risk.weighted import orthogonalize, standardize, winsorize

POWERS = {"nonlinear_size": 3, "size_squared": 2}
ORTHOGONAL = {"residual_volatility": ("beta", "size"), "nonlinear_size": ("size",), "size_squared": ("size",)}
"""Styles and the styles they are made orthogonal to (those of them that there are)."""
SIZE = [one for one in DESCRIPTORS if one.style == "size"]


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
        fields: ``[t, n]`` arrays: `returns`, `cap`, `turnover`, fundamentals of the store; `market` ``[t]``, the market's return.
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
    cap, rows = np.asarray(cap, np.float64)[first:], slice(first, None)
    members = members[rows] & (cap > 0)
    group = np.zeros(members.shape, np.int64) if industry is None else _groups(industry[rows])
    raw = _Composites(fields, members, cap, origin, first)
    size = raw.style(SIZE) if "cap" in fields else np.where(cap > 0, 0.0, np.nan)

    def make(style: str) -> tuple[np.ndarray, np.ndarray]:
        value = size if style == "size" else standardize(size**POWERS[style], members, cap) if style in POWERS else raw.style(wanted[style])
        return (value if style in ("size", *POWERS) else fill(value, size, group, members, cap)), np.isfinite(value)

    made = dict(zip(wanted, run(make, list(wanted))))

    def finish(style: str) -> np.ndarray:
        value = made[style][0]
        if style in ORTHOGONAL:
            others = [made[name][0] for name in ORTHOGONAL[style] if name in made]
            value = _orthogonal(value, others, members, np.sqrt(np.where(cap > 0, cap, 0.0)), style in POWERS)
        return np.where(cap > 0, standardize(value, members, cap), np.nan)

    names = tuple(found)
    values = np.stack(list(run(finish, names)), axis=2)
    own = np.stack([made[name][1] for name in names], axis=2) & np.isfinite(values)
    return StyleExposures(names, values, own, {name: tuple(one.name for one in parts) for name, parts in found.items()}, missing)


def _orthogonal(value, others, members, weight, again: bool) -> np.ndarray:
    """Residual of the regression on the others; powers of size have long tails, which are cut before a second regression."""
    value = orthogonalize(value, others, members, weight)
    return orthogonalize(winsorize(value, members), others, members, weight) if again else value


class _Composites:
    """Descriptors, scaled and combined, from row `first` on."""

    def __init__(self, fields, members, cap, origin: int, first: int):
        self.fields, self.members, self.cap, self.origin, self.first = fields, members, cap, origin, first
        self._shared, self._lock = {}, Lock()

    def descriptor(self, one: Descriptor) -> np.ndarray:
        if one.part is None:
            value = one.compute(self.fields, self.origin)
        else:
            with self._lock:
                if one.compute not in self._shared:
                    self._shared[one.compute] = one.compute(self.fields, self.origin)
            value = self._shared[one.compute][one.part]
        value = np.asarray(value[self.first:], np.float64)
        return standardize(winsorize(value, self.members), self.members, self.cap)

    def style(self, parts: list[Descriptor]) -> np.ndarray:
        """Weighted mean of the descriptors a stock has, scaled."""
        total, weight = np.zeros(self.cap.shape), np.zeros(self.cap.shape)
        for one in parts:
            value = self.descriptor(one)
            there = np.isfinite(value)
            total += one.weight * np.where(there, value, 0.0)
            weight += one.weight * there
        return standardize(total / np.where(weight > 0, weight, np.nan), self.members, self.cap)


def fill(value: np.ndarray, size: np.ndarray, group: np.ndarray, members: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """A style with its holes filled by the day's regression on industry and size.

    The slope on size is fitted within industries, weighted by the square root of cap, on the members that have the style; an industry
    without any has the mean of all. Days on which no member has it stay NaN, as do stocks without size.

    Args:
        value, size, cap: ``[t, n]``. group: ``[t, n]`` numbers 0.. of the industries.
    """
    out, groups = value.copy(), int(group.max(initial=0)) + 1
    hollow = ~np.isfinite(value) & np.isfinite(size)
    for t in np.flatnonzero(hollow.any(axis=1)):
        used = members[t] & np.isfinite(value[t]) & np.isfinite(size[t])
        if not used.any():
            continue
        mine = group[t]
        weight = np.where(used, np.sqrt(np.where(cap[t] > 0, cap[t], 0.0)), 0.0)
        parts = [weight * np.where(used, part, 0.0) for part in (1.0, size[t], value[t])]
        sums = [np.bincount(mine, part, groups) for part in parts]
        total = [_in_order(part) for part in parts]
        empty = sums[0] <= 0
        mean_size, mean_value = (np.where(empty, whole / total[0], part / np.where(empty, 1.0, sums[0]))
                                 for part, whole in zip(sums[1:], total[1:]))
        x, y = size[t] - mean_size[mine], np.where(used, value[t], 0.0) - mean_value[mine]
        spread = _in_order(weight * np.where(used, x * x, 0.0))
        slope = _in_order(weight * np.where(used, x * y, 0.0)) / spread if spread > 1e-12 * total[0] else 0.0
        out[t, hollow[t]] = (mean_value[mine] + slope * x)[hollow[t]]
    return out


def _in_order(values: np.ndarray) -> float:
    """The sum from first to last: zeros of stocks that are not there change nothing (numpy's own sum goes by pairs)."""
    return float(np.bincount(np.zeros(len(values), np.int64), values)[0])


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
