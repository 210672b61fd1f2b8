"""What a portfolio must keep to: short objects that write their limits into a `Program`.

Letters: ``w`` weights, ``b`` benchmark weights, ``w0`` the current book, ``d = w - b``; all ``[n]``, fractions of the account. Four
families may be relaxed by the optimiser's ladder (`FAMILIES`); all other limits never are.
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any, Mapping

import numpy as np

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.portfolio.program import Case, Program
from qlib_ext.risk.snapshot import INDUSTRY, style_names

FAMILIES = ("turnover", "style", "industry", "tracking_error")
"""What the ladder may relax."""


def _number(name: str, value: Any, low: float = 0.0, high: float = np.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{name} must be a number from {low:g} to {high:g}, got {value!r}")
    return float(value)


class Constraint:
    """One kind of limit; `name` is its key in a YAML's ``constraints``, `apply` writes it into a program."""

    name = ""
    scales = False

    def apply(self, program: Program, factor: float = 1.0) -> None:
        """Write the limit, widened by `factor` (only for those in `FAMILIES`)."""
        raise NotImplementedError


class Investment(Constraint):
    """``low <= sum(w) <= high``: 1 and 1 for full investment; lower for a band of cash."""

    name = "investment"

    def __init__(self, low: float = 1.0, high: float = 1.0):
        self.low, self.high = _number("investment: low", low, 0, 1), _number("investment: high", high, 0, 1)
        if self.low > self.high:
            raise ConfigError(f"investment: low {low} is above high {high}")

    def apply(self, program: Program, factor: float = 1.0) -> None:
        program.invested = (self.low, self.high)


class Cap(Constraint):
    """``w_i <= limit``. Grows with `Case.scale` where an index has fewer members than the real one."""

    name, scales = "cap", True

    def __init__(self, limit: float):
        self.limit = _number("cap: limit", limit, 0, 1)

    def apply(self, program: Program, factor: float = 1.0) -> None:
        program.cap(np.full(len(program.case.alpha), min(self.limit * program.case.scale, 1.0)))


class BenchmarkMultiple(Constraint):
    """``w_i <= max(multiple x b_i, floor)``: with floor 0 nothing outside the index (a member that left must be sold)."""

    name = "benchmark_multiple"

    def __init__(self, multiple: float, floor: float = 0.0):
        self.multiple, self.floor = _number("benchmark_multiple: multiple", multiple), _number("benchmark_multiple: floor", floor, 0, 1)

    def apply(self, program: Program, factor: float = 1.0) -> None:
        program.cap(np.maximum(self.multiple * program.case.benchmark, self.floor * program.case.scale))


class ActiveWeight(Constraint):
    """``|w_i - b_i| <= width``. Grows with `Case.scale`."""

    name, scales = "active_weight", True

    def __init__(self, width: float):
        self.width = _number("active_weight: width", width, 0, 1)

    def apply(self, program: Program, factor: float = 1.0) -> None:
        width = self.width * program.case.scale
        program.cap(program.case.benchmark + width)
        program.floor(program.case.benchmark - width)


class _Named(Constraint):
    """``|x_k' (w - b)| <= width_k`` for columns x_k found by name; `default` is the width of those not named (None: free)."""

    def __init__(self, default: float | None = None, **widths: float):
        self.default = None if default is None else _number(f"{self.name}: default", default)
        self.widths = {str(name): _number(f"{self.name}: {name}", width) for name, width in widths.items()}
        if self.default is None and not self.widths:
            raise ConfigError(f"{self.name} needs a width, or widths by name")

    def known(self, case: Case) -> list[str]:
        raise NotImplementedError

    def column(self, name: str) -> str:
        return name

    def missing(self, case: Case) -> list[str]:
        """Names that were asked for and that the case does not have."""
        known = {*case.factors, *case.extras}
        return [name for name in self.widths if self.column(name) not in known]

    def apply(self, program: Program, factor: float = 1.0) -> None:
        missing = self.missing(program.case)
        widths = {name: self.default for name in self.known(program.case) if self.default is not None}
        widths.update({self.column(name): width for name, width in self.widths.items() if name not in missing})
        for name, width in widths.items():
            program.band(name, -width * factor, width * factor)


class Style(_Named):
    """``|s_k' (w - b)| <= width_k``: styles in cross-sectional standard deviations; `default` covers those of the risk model, extras
    (`size_squared`, `roe`, `sue`, `volatility_60`, `bp`) must be named."""

    name = "style"

    def known(self, case: Case) -> list[str]:
        return style_names(case.factors)


class Industry(_Named):
    """``|sum_{i in industry} (w_i - b_i)| <= width``; widths of single industries by code."""

    name = "industry"

    def known(self, case: Case) -> list[str]:
        return [name for name in case.factors if name.startswith(INDUSTRY)]

    def column(self, name: str) -> str:
        return name if name.startswith(INDUSTRY) else INDUSTRY + name


class MemberShare(Constraint):
    """``sum_{i in index} w_i >= share``; members are those with a benchmark weight unless they are given."""

    name = "member_share"

    def __init__(self, share: float):
        self.share = _number("member_share: share", share, 0, 1)

    def apply(self, program: Program, factor: float = 1.0) -> None:
        case = program.case
        program.column("member_share", case.members.astype(float))
        program.band("member_share", self.share - case.benchmark[case.members].sum(), np.inf)


class TrackingError(Constraint):
    """``sqrt(252 d' (X F X' + D) d) <= limit``: forecast tracking error a year, from the factor form of the risk model. A limit below
    a millionth counts as a millionth."""

    name = "tracking_error"

    def __init__(self, limit: float):
        self.limit = _number("tracking_error: limit", limit, 0, 3)

    def apply(self, program: Program, factor: float = 1.0) -> None:
        program.tracking = max(self.limit * factor, 1e-6)


class Turnover(Constraint):
    """``0.5 x sum_i |w_i - w0_i| <= limit``, one way (0.3 is Qlib's delta 0.6). The first rebalance has no limit."""

    name = "turnover"

    def __init__(self, limit: float):
        self.limit = _number("turnover: limit", limit, 0, 2)

    def apply(self, program: Program, factor: float = 1.0) -> None:
        if program.case.current.any():
            program.turnover = self.limit * factor


class MinimumPosition(Constraint):
    """A name is not held below ``weight``: small ones are sold or filled up after the solve, all other limits kept."""

    name, scales = "minimum_position", True

    def __init__(self, weight: float):
        self.weight = _number("minimum_position: weight", weight, 0, 1)

    def apply(self, program: Program, factor: float = 1.0) -> None:
        program.minimum_position = self.weight * program.case.scale


class MinimumTrade(Constraint):
    """A name does not trade less than ``weight``: smaller trades are left out after the solve, all other limits kept."""

    name, scales = "minimum_trade", True

    def __init__(self, weight: float):
        self.weight = _number("minimum_trade: weight", weight, 0, 1)

    def apply(self, program: Program, factor: float = 1.0) -> None:
        program.minimum_trade = self.weight * program.case.scale


KINDS = {one.name: one for one in (Investment, Cap, BenchmarkMultiple, ActiveWeight, Industry, Style, MemberShare, TrackingError, Turnover,
                                   MinimumPosition, MinimumTrade)}


def make_constraints(config: Mapping[str, Any]) -> list[Constraint]:
    """Constraints of a YAML mapping: name -> its one number, or a mapping of its keywords; null leaves it out.

    Raises:
        ConfigError: an unknown name or keyword, or a number out of range.
    """
    made = []
    for name, value in config.items():
        if name not in KINDS:
            near = difflib.get_close_matches(str(name), KINDS, 1)
            raise ConfigError(f"constraint {name!r} is unknown{f' (did you mean {near[0]}?)' if near else ''}; choose from {sorted(KINDS)}")
        if value is None:
            continue
        kind = KINDS[name]
        if not isinstance(value, Mapping):
            made.append(kind(value))
            continue
        names = set(inspect.signature(kind).parameters)
        unknown = [] if issubclass(kind, _Named) else sorted(set(value) - names)
        if unknown:
            raise ConfigError(f"constraint {name}: unknown keyword {unknown[0]!r}; it takes {sorted(names)}")
        try:
            made.append(kind(**{str(key): one for key, one in value.items()}))
        except TypeError as error:
            raise ConfigError(f"constraint {name}: it takes {sorted(names)}, got {dict(value)}") from error
    if not any(isinstance(one, Investment) for one in made):
        made.insert(0, Investment())
    return made


def check_missing(constraints: list[Constraint], case: Case, missing_styles: str) -> dict[str, list[str]]:
    """What the bands ask for and the case does not have: `missing_styles`, and `missing_industries` (single ones, without stocks on the
    day).

    Raises:
        DataError: a style is missing, or there are no industries (no styles) at all to band, and `missing_styles` is ``error``.
    """
    styles = [name for one in constraints if isinstance(one, Style) for name in one.missing(case)]
    bare = [one.name for one in constraints if isinstance(one, _Named) and one.default is not None and not one.known(case)]
    if (styles or bare) and missing_styles == "error":
        lacks = f"no style {', '.join(styles)}" if styles else f"no factors for {' and '.join(bare)} bands"
        raise DataError(f"{case.day}: the risk model has {lacks} (its styles: {', '.join(style_names(case.factors)) or 'none'}): give "
                        "the store the fields it needs, or set missing_styles: drop")
    industries = [name for one in constraints if isinstance(one, Industry) for name in one.missing(case)]
    found = {"missing_styles": styles + [f"all of {name}" for name in bare], "missing_industries": industries}
    return {name: names for name, names in found.items() if names}
