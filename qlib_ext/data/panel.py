"""The Panel: rows present, one map from (day, stock) to row, windows as one gather.

Axis letters used in the whole project: ``r`` table row, ``t`` day, ``n`` stock, ``l`` lag in the window, ``f`` feature,
``h`` label horizon (or hidden), ``m`` market column, ``k`` style factor, ``q`` quantile.

Needs numpy and torch only: a packed panel trains where neither Qlib nor pandas is installed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import Callable

import numpy as np
import torch

from qlib_ext.errors import ConfigError, DataError, ShapeError

MISSING_ROWS = ("nan", "ffill_bfill")


@dataclass
class Block:
    """A named table of inputs and the length of the window that is cut from it.

    Args:
        values: ``[r+1, f]`` float32; NaN means unknown; the last row is all NaN and stands for every absent row. With several bars
            a row holds them one after the other, ``[r+1, bars * f]``.
        window: number of days ``l`` in one window; 1 gives ``[n, 1, f]``.
        columns: the ``f`` names; with several bars ``a@1, b@1, a@2, b@2, ...`` (any text behind the last ``@``, the same for a bar).
        transform: optional function on one gathered day, ``[n, l, f] -> [n, ...]`` (a named function, so that it pickles).
        bars: bars of a day: windows come out as ``[n, l * bars, f]``, oldest bar first.

    Raises:
        ShapeError, DataError, ConfigError: values, names, window and bars that do not fit each other.
    """

    values: np.ndarray
    window: int
    columns: list[str]
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    bars: int = 1

    def __post_init__(self):
        if self.values.ndim != 2 or self.values.shape[1] != len(self.columns):
            raise ShapeError(f"block values must be [r+1, f] with one name a column; got {self.values.shape} "
                             f"and {len(self.columns)} names")
        if self.window < 1:
            raise ConfigError(f"window must be at least 1 day, got {self.window}")
        if len(self.values) == 0 or not np.isnan(self.values[-1]).all():
            raise DataError("the last row of a block must be all NaN: it stands for every absent row")
        self.features  # noqa: B018  (it refuses names that are not in order of bars)

    @property
    def features(self) -> list[str]:
        """Names of what one step of a window shows."""
        return bar_features(self.columns, self.bars)

    @property
    def steps(self) -> int:
        """Steps of a window: days times bars."""
        return self.window * self.bars


def bar_features(columns: list[str], bars: int) -> list[str]:
    """The feature names of columns that hold `bars` bars one after the other, each with the same features in the same order.

    Raises:
        ConfigError: bars that is no whole number above 0, or columns that are not so.
    """
    if type(bars) is not int or bars < 1:
        raise ConfigError(f"bars={bars!r} must be a whole number of bars a day, at least 1")
    if bars == 1:
        return list(columns)
    names = [str(column).rpartition("@") for column in columns]
    width = len(names) // bars
    day = [names[k * width:(k + 1) * width] for k in range(bars)]
    features = [name for name, _, _ in day[0]]
    labels = [{label for _, _, label in bar} for bar in day]
    alike = all([name for name, _, _ in bar] == features for bar in day) and all(len(one) == 1 for one in labels)
    if not width or len(names) != bars * width or not alike or len(set.union(*labels)) != bars or "" in features:
        raise ConfigError(f"{len(columns)} columns ({list(columns)[:3]} ...) are not {bars} bars of the same features one after the other, "
                          "named a@1, b@1, a@2, b@2 ...: give the bars that the loader makes")
    return features


@dataclass
class Panel:
    """All days and stocks that were loaded, and the days to work on.

    Args:
        blocks: named blocks, all with the same rows.
        rows: ``[t, n]`` int32 row of each (day, stock); -1 where the stock has no row that day.
        days: ``[t]`` datetime64[D], trading days, ascending, without holes.
        instruments: ``[n]`` str.
        universe: ``[t, n]`` bool, who may be sampled and scored on a day.
        label: ``[r+1, h]`` float32 training labels (processed, NaN = not a training sample).
        label_eval: ``[r+1, h]`` processed like the training labels, but nobody dropped: the validation loss uses it.
        label_raw: ``[r+1, h]`` raw labels: every metric uses it.
        label_names: the ``h`` names.
        day_aux: values that are the same for all stocks of a day, each ``[t, m]`` float32.
        stock_aux: values per stock and day, each ``[r+1, k]`` float32, last row NaN.
        missing_rows: what a window shows where the stock has no row: ``nan`` (a NaN row), or ``ffill_bfill`` (its last earlier
            row, else its next one; the next one is never later than the scored day, because a scored stock has a row on that day).
        segments: name -> (first, last + 1) day positions.
        span: the (first, last + 1) days this view works on; windows still reach into earlier days.
        training: whether batches carry ``label`` (training) or ``label_eval``.
        meta: free, JSON-able facts (store fingerprint, spans) for the run card.
    """

    blocks: dict[str, Block]
    rows: np.ndarray
    days: np.ndarray
    instruments: np.ndarray
    universe: np.ndarray
    label: np.ndarray
    label_eval: np.ndarray
    label_raw: np.ndarray
    label_names: list[str]
    day_aux: dict[str, np.ndarray] = field(default_factory=dict)
    stock_aux: dict[str, np.ndarray] = field(default_factory=dict)
    missing_rows: str = "nan"
    segments: dict[str, tuple[int, int]] = field(default_factory=dict)
    span: tuple[int, int] | None = None
    training: bool = False
    meta: dict = field(default_factory=dict)
    lookup: np.ndarray | None = None

    def __post_init__(self):
        t, n = self.rows.shape
        if self.missing_rows not in MISSING_ROWS:
            raise ConfigError(f"missing_rows={self.missing_rows!r} is unknown; choose one of {MISSING_ROWS}")
        if self.days.shape != (t,) or self.instruments.shape != (n,) or self.universe.shape != (t, n):
            raise ShapeError(f"rows is [t={t}, n={n}], but days {self.days.shape}, instruments {self.instruments.shape}, "
                             f"universe {self.universe.shape}")
        if self.label.ndim != 2 or not self.label.shape == self.label_eval.shape == self.label_raw.shape:
            raise ShapeError(f"labels must all be [r+1, h]: label {self.label.shape}, label_eval {self.label_eval.shape}, "
                             f"label_raw {self.label_raw.shape}")
        r = len(self.label) - 1
        if self.lookup is None and self.rows.size and self.rows.max() >= r:
            raise ShapeError(f"rows names row {self.rows.max()}, the labels have {r}")
        for name, block in self.blocks.items():
            if len(block.values) != r + 1:
                raise ShapeError(f"block {name!r} has {len(block.values) - 1} rows, the labels have {r}")
        for name, values in self.day_aux.items():
            if values.shape[0] != t or values.ndim != 2:
                raise ShapeError(f"day_aux {name!r} must be [t={t}, m], got {values.shape}")
        for name, values in self.stock_aux.items():
            if values.shape[0] != r + 1 or values.ndim != 2:
                raise ShapeError(f"stock_aux {name!r} must be [r+1={r + 1}, k], got {values.shape}")
        if self.span is None:
            self.span = (0, t)
        if self.lookup is None:
            self.lookup = window_lookup(self.rows, r, self.missing_rows)

    def view(self, segment: str | tuple[int, int], training: bool = False) -> "Panel":
        """A view on a named segment or on day positions ``(first, last + 1)``; shares every array.

        Raises:
            ConfigError: the segment is not one of this panel's.
        """
        if isinstance(segment, str):
            if segment not in self.segments:
                raise ConfigError(f"segment {segment!r} is not in this panel; it has {sorted(self.segments)}")
            segment = self.segments[segment]
        return replace(self, span=tuple(segment), training=training)

    def of(self, names: str | list[str] | None) -> "Panel":
        """A view with some of the blocks, in the order named; shares every array. None: all of them.

        Raises:
            ConfigError: a block that is not there.
        """
        if names is None:
            return self
        names = [names] if isinstance(names, str) else list(names)
        absent = [name for name in names if name not in self.blocks]
        if absent or not names:
            raise ConfigError(f"block {absent or names} is not in this panel; it has {sorted(self.blocks)}: give the dataset aux_windows, "
                              "or name one of these")
        return replace(self, blocks={name: self.blocks[name] for name in names})

    @property
    def n_features(self) -> int:
        """Number of features of the only block (ConfigError with several)."""
        if len(self.blocks) != 1:
            raise ConfigError(f"this panel has the blocks {sorted(self.blocks)}: ask for one by name (block: ... of the model)")
        return len(next(iter(self.blocks.values())).features)

    def stocks(self, day: int) -> np.ndarray:
        """Positions ``[n]`` of the stocks scored on a day: in the universe, with a row; unlabelled ones included."""
        return np.flatnonzero(self.universe[day] & (self.rows[day] >= 0))

    def scored_days(self) -> np.ndarray:
        """Day positions of this view that have at least one stock to score."""
        first, last = self.span
        return first + np.flatnonzero((self.universe[first:last] & (self.rows[first:last] >= 0)).any(axis=1))

    def labelled_days(self) -> np.ndarray:
        """Day positions of this view on which at least two stocks carry a label of the kind its batches show."""
        label = self.label if self.training else self.label_eval
        first, last = self.span
        labelled = np.isfinite(label[self.rows[first:last]]).any(axis=2)       # False in the last row, which is that of absent stocks
        count = (labelled & self.universe[first:last]).sum(axis=1)
        return first + np.flatnonzero(count >= 2)

    def position(self, day) -> int:
        """Position of a trading day.

        Raises:
            DataError: the day was not loaded.
        """
        day = np.datetime64(day, "D")
        place = int(np.searchsorted(self.days, day))
        if place == len(self.days) or self.days[place] != day:
            raise DataError(f"{day} is no day of the panel ({self.days[0]} .. {self.days[-1]}): load a span that holds it")
        return place

    @property
    def label_reach(self) -> int:
        """Trading days from t to the last close that the label of t needs: when it becomes known.

        Raises:
            ConfigError: the panel does not say (``meta["embargo"]``).
        """
        if "embargo" not in self.meta:
            raise ConfigError("the panel does not say when its labels become known: give meta={'embargo': <trading days>}")
        return int(self.meta["embargo"])

    def window_rows(self, day: int, stocks: np.ndarray, window: int) -> np.ndarray:
        """Rows ``[n, l]`` of the windows that end on ``day``; r (the NaN row) where nothing is known."""
        first = day - window + 1
        found = self.lookup[max(first, 0):day + 1, stocks].T
        if first >= 0:
            return found
        absent = len(self.label) - 1
        edge = found[:, :1] if self.missing_rows == "ffill_bfill" else np.full((len(stocks), 1), absent, found.dtype)
        return np.concatenate([np.repeat(edge, -first, axis=1), found], axis=1)

    def digest(self) -> str:
        """Hex digest of the content (feature values by a sample of some 50,000 rows)."""
        digest = hashlib.blake2b(digest_size=16)
        arrays = [self.rows, self.universe, self.label, self.label_eval, self.label_raw, *self.day_aux.values(),
                  *self.stock_aux.values(), *(block.values[::len(block.values) // 50_000 + 1] for block in self.blocks.values())]
        for array in arrays:
            digest.update(np.ascontiguousarray(array).view(np.uint8))
        windows = [f"{name}:{block.window}" + f"x{block.bars}" * (block.bars > 1) for name, block in self.blocks.items()]
        digest.update("|".join([str(self.days[0]), str(self.days[-1]), self.missing_rows, *windows, *self.instruments]).encode())
        return digest.hexdigest()

    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        arrays = [b.values for b in self.blocks.values()] + list(self.day_aux.values()) + list(self.stock_aux.values())
        arrays += [self.label, self.label_eval, self.label_raw, self.rows, self.lookup, self.universe]
        return sum(a.nbytes for a in {id(a): a for a in arrays}.values())


def window_lookup(rows: np.ndarray, absent: int, missing_rows: str) -> np.ndarray:
    """The row each (day, stock) shows inside a window: ``[t, n]`` int32, ``absent`` (the NaN row) where nothing is known.

    Args:
        rows: ``[t, n]``, -1 = the stock has no row that day.
        absent: position of the all-NaN row.
        missing_rows: ``nan`` or ``ffill_bfill``, see `Panel`.
    """
    present = rows >= 0
    if missing_rows == "nan":
        return np.where(present, rows, absent).astype(np.int32)
    t = np.arange(len(rows), dtype=np.int32)[:, None]
    last = np.maximum.accumulate(np.where(present, t, -1), axis=0)
    following = np.minimum.accumulate(np.where(present, t, len(rows))[::-1], axis=0)[::-1]
    source = np.where(last >= 0, last, following)
    known = source < len(rows)
    found = np.take_along_axis(rows, np.where(known, source, 0), axis=0)
    return np.where(known, found, absent).astype(np.int32)
