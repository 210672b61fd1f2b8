"""Loader of the style of recent winners, and the loader that puts the columns of several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import pandas as pd
from qlib.utils import init_instance_by_config

from qlib_ext.data.field_reader import FieldReader
from qlib_ext.data.loader import FittedColumns
from qlib_ext.data.universe import member_spans, universe_grid
from qlib_ext.errors import ConfigError, DataError, ExtError
from qlib_ext.factors.winner_style import STATISTICS, WINDOWS, check_quantile, winner_style, winner_style_names
from qlib_ext.risk.market import INDEX, LISTED_DAYS
from qlib_ext.store.snapshots import SnapshotStore

PRESETS = {
    "ten_styles": (WINDOWS, STATISTICS, None),
    "winner_mean_5_windows": ((5, 10, 20, 30, 60), ("winner_mean",), None),
    "winner_mean_6_windows": ((5, 10, 20, 30, 60, 120), ("winner_mean",), None),
    "index_universes": (WINDOWS, ("winner_mean",), ("csi300", "csi500", "csi1000")),
}
"""Windows, statistics and universes by name; with 10, 24, 20 and 10 styles each gives 120 columns."""
_LIMIT = 1e-4  # a close this near to its limit is at it: prices have 24 bits and are rounded to a cent


class WinnerStyleLoader(FittedColumns):
    """The style of recent winners as `qlib_ext.factors.winner_style` defines it, from a store's closes and a risk model's styles.

    Every day is computed, from the whole history of the store, so a day's values do not depend on which days are asked for;
    they are normalised as `FittedColumns` says. The stocks that count are those listed for more than 120 trading days (from their
    first bar; with a bar on the first day of all a stock counts as listed long ago) and not in special treatment (`$is_st`;
    unknown is none), or the members of a universe. A close is locked within 1e-4 of `$limit_up` or `$limit_down`, where the
    store has them.

    Args:
        fit_start_time, fit_end_time: first and last day of the fit span, both included; needed when `normalize` is on.
        snapshots: folder of risk snapshots, which is only read; None = the default one of the store in use, where missing days
            are made first.
        preset: windows, statistics and universes by one name, see `PRESETS`.
        windows, statistics, universes: replace the preset's. With universes all columns are made for the members of each, and
            named `csi300/winner_mean_5:beta`.
        quantile: share of stocks that are winners, and losers.
        normalize, clip: see `FittedColumns`.

    Raises:
        ConfigError: an unknown preset or statistic, windows that are none, universes that are empty or named twice, a quantile
            outside (0, 0.5], no fit span.
    """

    title = "winner style"
    advice = "choose a span in which the risk snapshots have this style, or other windows, statistics or universes"

    def __init__(self, fit_start_time: Optional[str] = None, fit_end_time: Optional[str] = None, snapshots: Optional[str] = None,
                 preset: str = "ten_styles", windows: Optional[Sequence[int]] = None, statistics: Optional[Sequence[str]] = None,
                 universes: Optional[Sequence[str]] = None, quantile: float = 0.1, normalize: bool = True,
                 clip: Optional[float] = 3.0) -> None:
        super().__init__(fit_start_time, fit_end_time, normalize, clip)
        if not isinstance(preset, str) or preset not in PRESETS:
            raise ConfigError(f"WinnerStyleLoader: preset {preset!r} is unknown; choose one of {list(PRESETS)}")
        given = [usual if value is None else value for value, usual in zip((windows, statistics, universes), PRESETS[preset])]
        self.windows, self.statistics, self.universes = (
            value if value is None else list(value) if isinstance(value, (list, tuple)) else [value] for value in given)
        winner_style_names((), self.windows, self.statistics)
        if self.universes is not None and (not self.universes or len(set(self.universes)) < len(self.universes)):
            raise ConfigError(f"WinnerStyleLoader: universes must name different universes, got {self.universes}; "
                              "leave the line out for all stocks")
        self.snapshots, self.preset, self.quantile = snapshots, preset, check_quantile(quantile)

    def check(self) -> None:
        """What can be said before anything is loaded: the universes have members, a folder that is named holds snapshots.

        Raises:
            ConfigError: a universe that the store does not have. DataError: one without members; no snapshots in the folder.
        """
        for universe in ["all", *(self.universes or ())]:
            member_spans(universe)  # fails with a sentence when Qlib is not initialised
        self.check_snapshots()

    def check_snapshots(self) -> None:
        """The folder that is named holds snapshots.

        Raises:
            DataError: it does not.
        """
        if self.snapshots is not None and not len(SnapshotStore(self.snapshots).days):
            raise DataError(f"winner style: {SnapshotStore(self.snapshots).folder} holds no risk snapshots: correct `snapshots`, "
                            "or leave it out to have them made")

    def _opened(self) -> SnapshotStore:
        """The snapshots; the default ones are brought up to date."""
        from qlib_ext.risk.model import open_snapshots, prepare_snapshots
        return prepare_snapshots(None) if self.snapshots is None else open_snapshots(self.snapshots)

    def _source(self) -> str:
        return "the risk snapshots" + (f" in {Path(self.snapshots).name}" if self.snapshots is not None else "")

    def _table(self) -> pd.DataFrame:
        """All days of the calendar that the snapshots reach x the columns."""
        self.check()
        store = self._opened()
        stocks = {code: spans for code, spans in member_spans("all").items() if not INDEX.fullmatch(code.upper())}
        reader = FieldReader(stocks, None, None, ["close", "limit_up", "limit_down", "is_st"])
        codes = list(reader.content)
        exposure, factors, known = _exposures(store, reader.calendar, codes)
        close, locked = _prices(reader)
        blocks, names = [], []
        for universe in self.universes or [None]:
            eligible = _seasoned(reader, close) if universe is None else universe_grid(reader.calendar, codes, universe)
            blocks.append(winner_style(close, exposure, eligible, locked, self.windows, self.statistics, self.quantile))
            prefix = "" if universe is None else f"{universe}/"
            names += [prefix + name for name in winner_style_names(factors, self.windows, self.statistics)]
        reached = min(known + min(self.windows), len(reader.calendar) - 1) + 1  # exposures are those from before the window
        return pd.DataFrame(np.concatenate(blocks, axis=1)[:reached], index=reader.calendar[:reached], columns=names)


def _exposures(store: SnapshotStore, calendar: pd.DatetimeIndex, codes: List[str]) -> Tuple[np.ndarray, List[str], int]:
    """Styles float32 `[t, n, k]` on the calendar, their names, and the position of the last day that has some."""
    places = calendar.get_indexer(pd.DatetimeIndex(store.days))
    if not (places >= 0).any():
        raise DataError(f"winner style: the risk snapshots ({len(places)} days) have no day of the store's calendar "
                        f"({calendar[0]:%Y-%m-%d} to {calendar[-1]:%Y-%m-%d}): they were made of another store")
    exposure, found = store.exposures(calendar.to_numpy().astype("datetime64[D]"), codes)
    order = store.settings.get("styles", found)
    factors = sorted(found, key=lambda name: order.index(name) if name in order else len(order))
    exposure = exposure[:, :, [found.index(name) for name in factors]]
    if not factors:
        raise DataError("winner style: the risk snapshots hold no styles: make them with some")
    return exposure, factors, int(places.max())


def _grid(reader: FieldReader, field: str) -> np.ndarray:
    """One field float32 `[t, n]` of the reader's stocks, NaN where there is none."""
    grid = np.full((len(reader.calendar), len(reader.content)), np.nan, np.float32)
    for column, content in enumerate(reader.content.values()):
        if field in content:
            start, values = content[field]
            grid[start:start + len(values), column] = values
    return grid


def _prices(reader: FieldReader) -> Tuple[np.ndarray, np.ndarray]:
    """Closes `[t, n]`, and whether they lie at a price limit."""
    close = _grid(reader, "close").astype(np.float64)
    with np.errstate(invalid="ignore"):
        locked = (close >= _grid(reader, "limit_up") * (1 - _LIMIT)) | (close <= _grid(reader, "limit_down") * (1 + _LIMIT))
    return close, locked


def _seasoned(reader: FieldReader, close: np.ndarray) -> np.ndarray:
    """`[t, n]` bool: listed for more than 120 trading days, not in special treatment."""
    traded = np.isfinite(close)
    first = np.where(traded.any(axis=0), traded.argmax(axis=0), len(close))
    listed = np.arange(len(close))[:, None] - first + 1
    return ((listed > LISTED_DAYS) | (first == first.min())) & (_grid(reader, "is_st") != 1)


class JoinedLoader:
    """The columns of several loaders side by side.

    Args:
        parts: loaders, or their configurations `{class, module_path, kwargs}`, in the order of their columns.

    Attributes:
        normalize, fit_end_time: whether any part is fitted, and the last day any is fitted on (None: the end of the data).

    Raises:
        ConfigError: no parts, or one that cannot be made or has no `load(days)`.
    """

    def __init__(self, parts: Sequence) -> None:
        if not isinstance(parts, (list, tuple)) or not parts:
            raise ConfigError(f"JoinedLoader: parts must list loaders, each {{class, module_path, kwargs}}, got {parts!r}")
        self.parts = [_loader(f"parts[{number}]", part) for number, part in enumerate(parts)]
        fitted = [part.fit_end_time for part in self.parts if hasattr(part, "fit_end_time") and getattr(part, "normalize", True)]
        self.normalize = bool(fitted)
        self.fit_end_time = None if not fitted or None in fitted else max(map(pd.Timestamp, fitted))

    def load(self, days: Sequence) -> Tuple[np.ndarray, List[str]]:
        """float32 `[t, m]` of `days [t]`, and the m names.

        Raises:
            ConfigError: two parts give a column of one name. What the parts raise.
        """
        blocks, names = zip(*(part.load(days) for part in self.parts))
        joined = [name for part in names for name in part]
        twice = sorted({name for name in joined if joined.count(name) > 1})
        if twice:
            raise ConfigError(f"JoinedLoader: {len(twice)} columns come from two parts, the first is {twice[0]!r}: name each "
                              "loader once, with different columns")
        return np.concatenate(blocks, axis=1).astype(np.float32, copy=False), joined

    def check(self) -> None:
        """What the parts can say before they load; raises what they raise."""
        for part in self.parts:
            if callable(getattr(part, "check", None)):
                part.check()


def _loader(place: str, config):
    """A part as it is, or made from its configuration."""
    if isinstance(config, dict):
        try:
            config = init_instance_by_config(config)
        except ExtError:
            raise
        except Exception as error:  # Qlib gives what the import or the call raised
            raise ConfigError(f"JoinedLoader: {place} cannot be made ({type(error).__name__}: {error})") from error
    if not callable(getattr(config, "load", None)) or getattr(config, "per_stock", False):
        raise ConfigError(f"JoinedLoader: {place} is a {type(config).__name__}, which has no load(days)")
    return config
