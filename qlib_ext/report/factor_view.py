"""What a factor report is made from: matrices of one market, and its options. No Qlib, no files.

Axis letters: t trading day, n stock.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Mapping, Optional, Tuple, Union

import numpy as np

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.report.metrics import REPORT_MIN_PAIRS
from qlib_ext.report.periods import rebalance_days, trading_days

NEUTRAL_PARTS = ("industry", "cap", "styles")


@dataclass(frozen=True)
class FactorView:
    """A score and the market it is judged on; arrays are ``[t, n]`` unless said otherwise, NaN = unknown.

    The score of day t is known at its close and traded at the entry of t+1, so `days` should run on after the last scored day by the
    longest horizon and one.

    Args:
        days: ``[t]`` trading days. instruments: ``[n]`` names.
        score: NaN = not scored.
        entry: adjusted price traded at (`entry_name`: vwap, open or close); close: adjusted; both NaN on days without trading.
        buyable, sellable: bool, at that day's entry: traded, and not locked at the limit.
        cap: float market value in CNY.
        board: ``[n]`` names. industry: names, "" = unknown; None: not given.
        styles: name -> exposure. benchmark: ``[t]`` index price of the same entry; None: not given.
        label: raw label of the run; None: the return of `horizon` days from the entry of t+1 on.
        horizon: trading days that the label covers.

    Raises:
        ShapeError: an array of another shape, or a mask that is not bool. DataError: days that do not rise, prices not above 0, nothing
        scored, a score that is constant on every day, a label without a value. ConfigError: horizon below 1.
    """

    days: np.ndarray
    instruments: np.ndarray
    score: np.ndarray
    entry: np.ndarray
    close: np.ndarray
    buyable: np.ndarray
    sellable: np.ndarray
    cap: np.ndarray
    board: np.ndarray
    industry: Optional[np.ndarray] = None
    styles: Mapping[str, np.ndarray] = field(default_factory=dict)
    benchmark: Optional[np.ndarray] = None
    label: Optional[np.ndarray] = None
    entry_name: str = "vwap"
    horizon: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "days", trading_days(self.days))
        shape = (len(self.days), len(self.instruments))
        for name in ("score", "entry", "close", "cap", "label"):
            self._matrix(name, getattr(self, name), shape, np.float64)
        for name in ("buyable", "sellable"):
            self._matrix(name, getattr(self, name), shape, np.bool_)
        self._matrix("industry", self.industry, shape, object)
        styles = {name: _shaped(f"style {name}", style, shape, np.float64) for name, style in self.styles.items()}
        object.__setattr__(self, "styles", styles)
        for name, wanted, kind in (("board", shape[1:], object), ("benchmark", shape[:1], np.float64)):
            self._matrix(name, getattr(self, name), wanted, kind)
        if isinstance(self.horizon, bool) or not isinstance(self.horizon, (int, np.integer)) or self.horizon < 1:
            raise ConfigError(f"horizon {self.horizon!r}: trading days that the label covers, an integer above 0")
        self._content()

    def _matrix(self, name: str, values: Any, shape: tuple, kind: type) -> None:
        if values is not None:
            object.__setattr__(self, name, _shaped(name, values, shape, kind))

    def _content(self) -> None:
        for name in ("entry", "close", "benchmark"):
            values = getattr(self, name)
            if values is not None and (values <= 0).any():
                raise DataError(f"{name}: {int((values <= 0).sum())} prices are not above 0: give adjusted prices, NaN for days without "
                                "trading")
        known = ~np.isnan(self.score)
        if not known.any():
            raise DataError(f"no stock is scored on any of the {len(self.days)} days: the predictions and the market do not overlap")
        low, high = np.where(known, self.score, np.inf).min(axis=1), np.where(known, self.score, -np.inf).max(axis=1)
        if not (high > low).any():
            widest = int(known.sum(axis=1).max())
            why = "at most one stock is scored a day" if widest < 2 else "the score is the same for all stocks on every day"
            raise DataError(f"{why}: there is nothing to rank; look at the predictions of the model")
        if self.label is not None and not (known & ~np.isnan(self.label)).any():
            raise DataError("no scored stock has a label: give label None to use returns of the entry price, or predictions of days whose "
                            "labels are known")

    def span(self) -> Tuple[int, int]:
        """Places of the first scored day, and of the last one plus 1."""
        scored = np.flatnonzero((~np.isnan(self.score)).any(axis=1))
        return int(scored[0]), int(scored[-1]) + 1


def _shaped(name: str, values: Any, shape: tuple, kind: type) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != shape:
        raise ShapeError(f"{name} has shape {values.shape}, the view needs {shape} (days {shape[0]})")
    if kind is np.bool_ and values.dtype != np.bool_:
        raise ShapeError(f"{name} must be bool, got {values.dtype}")
    return values.astype(kind, copy=False)


@dataclass(frozen=True)
class FactorOptions:
    """How a factor report is made.

    Args:
        quantiles: groups by score. horizons: trading days of the decay table.
        rebalance: "week" (score of its last trading day), or every so many trading days.
        min_count: pairs a day needs to count.
        neutral: what to take out of the score, each some of industry, cap and styles joined by "+".
        cap_groups: groups by market value. days_a_year, weeks_a_year: for annual figures.

    Raises:
        ConfigError: a value out of range (the valid ones are named).
    """

    quantiles: int = 10
    horizons: Tuple[int, ...] = (1, 5, 10, 20)
    rebalance: Union[str, int] = "week"
    min_count: int = REPORT_MIN_PAIRS
    neutral: Tuple[str, ...] = ("industry", "industry+cap", "styles")
    cap_groups: int = 3
    days_a_year: int = 252
    weeks_a_year: int = 52

    def __post_init__(self) -> None:
        for name, least in (("quantiles", 2), ("min_count", 2), ("cap_groups", 2), ("days_a_year", 1), ("weeks_a_year", 1)):
            _whole(name, getattr(self, name), least)
        for name in ("horizons", "neutral"):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), (list, tuple)):
                raise ConfigError(f"{name} {getattr(self, name)!r}: give a list")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for horizon in self.horizons:
            _whole("horizons", horizon, 1)
        rebalance_days(np.zeros(1, "datetime64[D]"), self.rebalance)
        for wanted in self.neutral:
            parts = wanted.split("+") if isinstance(wanted, str) else []
            if not parts or set(parts) - set(NEUTRAL_PARTS) or len(set(parts)) < len(parts):
                raise ConfigError(f"neutral {wanted!r}: some of {list(NEUTRAL_PARTS)}, joined by '+'")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name} {value!r}: an integer, {least} or more")


def make_options(options: Union[None, Mapping[str, Any], FactorOptions]) -> FactorOptions:
    """Options as they are, from a mapping, or the defaults.

    Raises:
        ConfigError: unknown names (the valid ones are listed), or values out of range.
    """
    if isinstance(options, FactorOptions):
        return options
    valid = [one.name for one in fields(FactorOptions)]
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options of a factor report: a mapping of some of {valid}, got {options!r}")
    unknown = sorted(set(options or {}) - set(valid), key=str)
    if unknown:
        raise ConfigError(f"options of a factor report: {unknown} are not known; they are {valid}")
    return FactorOptions(**(options or {}))
