"""Loaders of style exposures, a row for each stock and day, and of the trend of style returns; both read risk snapshots."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import pandas as pd

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.snapshots import SnapshotStore

logger = logging.getLogger(__name__)

LEAST_DAYS = 60
"""Days of trends that are seen before one is measured against them."""


class StyleColumns:
    """What the two loaders share: which styles, in which order, of which snapshots.

    Args:
        styles: names, in the order of the columns; None: all that the snapshots were made with, in the risk model's order.
        snapshots: folder of risk snapshots, which is only read; None = the default one of the store in use, where missing days are
            made first.

    Raises:
        ConfigError: styles that are none, or named twice.
    """

    def __init__(self, styles: Optional[Sequence[str]] = None, snapshots: Optional[str] = None) -> None:
        if styles is not None and (isinstance(styles, str) or not styles or len(set(styles)) < len(styles)):
            raise ConfigError(f"{type(self).__name__}: styles must list different names, got {styles!r}; leave the line out for all")
        self.styles, self.snapshots = None if styles is None else list(styles), snapshots

    def check(self) -> None:
        """A folder that is named holds snapshots, with the styles that are named.

        Raises:
            DataError: it does not.
        """
        if self.snapshots is not None:
            self._names(SnapshotStore(self.snapshots))

    def width(self) -> Optional[int]:
        """Number of columns; None where it is known only when the default snapshots are there."""
        if self.styles is not None:
            return len(self.styles)
        return None if self.snapshots is None else len(self._names(SnapshotStore(self.snapshots)))

    def _opened(self) -> SnapshotStore:
        from qlib_ext.risk.model import open_snapshots, prepare_snapshots
        return prepare_snapshots() if self.snapshots is None else open_snapshots(self.snapshots)

    def _names(self, store: SnapshotStore) -> List[str]:
        if not len(store.days):
            raise DataError(f"styles: {store.folder} holds no risk snapshots: correct `snapshots`, or leave it out to have them made")
        there = list(store.settings.get("styles", ()))
        absent = sorted(set(self.styles or there) - set(there))
        if absent or not there:
            raise DataError(f"styles: the risk snapshots in {Path(store.folder).name} have no {absent or 'styles'}, they have {there}: "
                            "name some of these, or give the store the fields that the others need")
        return list(self.styles or there)


class StyleLoader(StyleColumns):
    """Style exposures of a risk model, as known at the close of each day: cross-sectional standard deviations, NaN unknown.

    Unknown are days before the risk model begins (with a warning) and stocks that it does not know. The arguments are
    `StyleColumns`'s.
    """

    per_stock = True

    def load(self, days: Sequence, instruments: Sequence[str]) -> Tuple[np.ndarray, List[str]]:
        """float32 `[t, n, k]` of `days [t]` and `instruments [n]`, and the k names.

        Raises:
            DataError: no snapshots, a style they lack, or exposures on none of the days.
        """
        store = self._opened()
        names = self._names(store)
        values, _ = store.exposures(days, instruments, names)
        dark = np.flatnonzero(~np.isfinite(values).any(axis=(1, 2)))
        if len(dark) == len(values):
            raise DataError(f"styles: the risk snapshots ({store.days[0]} to {store.days[-1]}) know none of {len(instruments)} instruments "
                            f"on any of {len(values)} days: they were made of another store, or of other days")
        if len(dark):
            logger.warning("styles: no exposures on %d of %d days (%s to %s): models see 0 there, losses have no style penalty",
                           len(dark), len(values), days[dark[0]], days[dark[-1]])
        return values, names


class StyleTrendLoader(StyleColumns):
    """How well each style has done of late, `[k]` a day: the sum of its last `window` daily factor returns as a z-score.

        m_t = (c_t - mean(c_s, s <= t)) / std(c_s, s <= t),     c_t = sum of the factor returns of t - window + 1 .. t

    Mean and standard deviation are those of all days up to t, at least 60. The factor return of a day is known at its close. NaN:
    before that, and where half of the window's returns are not known. z-scores of the whole past are this project's choice.

    Args:
        styles, snapshots: see `StyleColumns`; the same as those of the `StyleLoader` beside it.
        window: trading days.

    Raises:
        ConfigError: a window that is not a whole number above 0.
    """

    def __init__(self, styles: Optional[Sequence[str]] = None, snapshots: Optional[str] = None, window: int = 20) -> None:
        super().__init__(styles, snapshots)
        if type(window) is not int or window < 1:
            raise ConfigError(f"StyleTrendLoader: window={window!r} must be a whole number of days, at least 1")
        self.window = window

    def load(self, days: Sequence) -> Tuple[np.ndarray, List[str]]:
        """float32 `[t, k]` of `days [t]`, and the k names; NaN on days without a snapshot.

        Raises:
            DataError: no snapshots, or a style they lack.
        """
        store = self._opened()
        names = self._names(store)
        trend = style_trend(store.factor_returns().reindex(columns=names), self.window)
        return trend.reindex(np.asarray(days, dtype="datetime64[D]")).to_numpy(np.float32), names


def style_trend(returns: pd.DataFrame, window: int = 20) -> pd.DataFrame:
    """The z-scores of `StyleTrendLoader` of daily factor returns (day x style, ascending, NaN unknown)."""
    summed = returns.rolling(window, min_periods=(window + 1) // 2).sum()
    seen = summed.expanding(min_periods=LEAST_DAYS)
    spread = seen.std(ddof=0)
    return (summed - seen.mean()) / spread.where(spread > 0)
