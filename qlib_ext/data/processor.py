"""Qlib processors: cross-sectional ones that know the universe of the day, and two of Qlib's with a small memory.

They take Qlib's frames: rows (datetime, instrument), columns (group, name) such as ("label", "LABEL0"). They never write into the
frame they are given (`readonly()` is True, which spares Qlib a copy).
"""

from __future__ import annotations

from typing import List, Optional, Sequence, Union

import numpy as np
import pandas as pd
from qlib.data.dataset.processor import EPS, Processor
from qlib.data.dataset.processor import Fillna as QlibFillna
from qlib.data.dataset.processor import RobustZScoreNorm as QlibRobustZScoreNorm

from qlib_ext.data.transform import cs_extreme_mask, cs_robust_zscore, cs_zscore
from qlib_ext.data.universe import index_levels, universe_mask
from qlib_ext.errors import ConfigError, DataError


def _group_positions(columns: pd.Index, fields_group: Union[None, str, Sequence[str]]) -> np.ndarray:
    """Column positions of one or several groups; None means every column."""
    groups: List[Optional[str]] = list(fields_group) if isinstance(fields_group, (list, tuple)) else [fields_group]
    first = columns.get_level_values(0)
    unknown = [group for group in groups if group is not None and group not in first]
    if unknown:
        raise ConfigError(f"fields_group {unknown} is not among the frame's groups {sorted(set(map(str, first)))}")
    chosen = np.zeros(len(columns), dtype=bool)
    for group in groups:
        chosen |= True if group is None else np.asarray(first == group)
    return np.flatnonzero(chosen)


def _member_rows(frame: pd.DataFrame, universe: Optional[str]) -> Optional[np.ndarray]:
    """Universe mask of the frame's rows, None for all rows; an empty universe is an error."""
    if universe is None:
        return None
    mask = universe_mask(frame.index, universe)
    if len(mask) and not mask.any():
        days = frame.index.get_level_values(index_levels(frame.index)[0])
        raise DataError(f"no row of the frame ({days.min():%Y-%m-%d} to {days.max():%Y-%m-%d}) belongs to universe {universe!r}: "
                        "check the dates of its instruments file and what the handler loads")
    return mask


def _with_columns(frame: pd.DataFrame, positions: np.ndarray, values: np.ndarray) -> pd.DataFrame:
    """A frame with some columns replaced, sharing the others; `frame` keeps its values."""
    if len(positions) == frame.shape[1]:
        return pd.DataFrame(values, index=frame.index, columns=frame.columns)
    result = frame.copy(deep=False)
    for number, position in enumerate(positions):
        result.isetitem(position, values[:, number])  # never writes in place, with or without copy-on-write
    return result


def _median(values: np.ndarray) -> np.floating:
    """Median of what is known; NaN, without numpy's warning, where nothing is (the handler has named the field)."""
    return values.dtype.type(np.nan) if np.isnan(values).all() else np.nanmedian(values)


class CSZScoreNorm(Processor):
    """Daily z-score of columns; with `universe` its members of the day make the statistics and every row is scaled by them.

    Without `universe` it gives Qlib's `CSZScoreNorm` (ddof 1), but for: infinite values, which Qlib lets spoil their day and
    which here are not counted and become NaN; days of equal values, which are always NaN here (in Qlib rounding decides); and,
    for "robust", days whose MAD is 0, which are NaN here (in Qlib NaN and +-3). NaN stays NaN. Days with fewer than two finite
    universe values are NaN.

    Args:
        fields_group: group of columns, list of groups, or None for all columns.
        universe: name of an instruments file of the store (`csi1000`), or None for all rows of the frame.
        method: "zscore", or "robust" (median, 1.4826 MAD, clipped to +-3).

    Raises:
        ConfigError: unknown method; when called: unknown group or universe. DataError: no row belongs to the universe.
    """

    def __init__(self, fields_group: Union[None, str, Sequence[str]] = None, universe: Optional[str] = None,
                 method: str = "zscore") -> None:
        if method not in ("zscore", "robust"):
            raise ConfigError(f"CSZScoreNorm: method must be 'zscore' or 'robust', got {method!r}")
        self.fields_group = fields_group
        self.universe = universe
        self.method = method

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        positions = _group_positions(df.columns, self.fields_group)
        day = np.asarray(df.index.codes[index_levels(df.index)[0]])
        transform = cs_zscore if self.method == "zscore" else cs_robust_zscore
        values = transform(df.iloc[:, positions].to_numpy(), day, _member_rows(df, self.universe))
        return _with_columns(df, positions, values)

    def readonly(self) -> bool:
        return True


class DropExtremeLabel(Processor):
    """Drop, per day, the unlabelled rows and the share of the universe whose labels are most extreme. For training only.

    Of the N labelled members of the day `max(1, floor(fraction / 2 * N))` go at each end, if N is at least `min_count`. Rows
    outside the universe are kept when labelled. With several label columns each column is treated by itself: an extreme label
    becomes NaN, and a row goes when it has no label left. Infinite labels count as missing.

    It refuses inference (`is_for_infer()` is False, and Qlib raises TypeError when it stands among `infer_processors` or
    `shared_processors`). Qlib runs it over every segment of the learning table, so evaluation must take its labels from the raw
    table. Follow it with `CSZScoreNorm`, in this order.

    Args:
        fraction: share to drop, both tails together.
        min_count: days with fewer labelled members keep all of them.
        universe: name of an instruments file of the store, or None for all rows of the frame.
        fields_group: the label group.

    Raises:
        ConfigError: values out of range; when called: unknown group or universe. DataError: no row belongs to the universe.

    Source: Li et al. 2024 (MASTER), training labels; small days and missing labels are treated as described instead.
    """

    def __init__(self, fraction: float = 0.05, min_count: int = 40, universe: Optional[str] = None,
                 fields_group: str = "label") -> None:
        if not 0 <= fraction < 1 or min_count < 1:
            raise ConfigError(f"DropExtremeLabel: fraction must lie in [0, 1) and min_count be at least 1, "
                              f"got {fraction!r} and {min_count!r}")
        self.fraction = fraction
        self.min_count = min_count
        self.universe = universe
        self.fields_group = fields_group

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        positions = _group_positions(df.columns, self.fields_group)
        day = np.asarray(df.index.codes[index_levels(df.index)[0]])
        labels = df.iloc[:, positions].to_numpy(copy=True)
        member = _member_rows(df, self.universe)
        for column in range(labels.shape[1]):
            gone = cs_extreme_mask(labels[:, column], day, self.fraction, self.min_count, member)
            labels[gone | ~np.isfinite(labels[:, column]), column] = np.nan
        keep = ~np.isnan(labels).all(axis=1)
        if labels.shape[1] == 1:
            return df[keep]
        return _with_columns(df, positions, labels)[keep]

    def is_for_infer(self) -> bool:
        return False

    def readonly(self) -> bool:
        return True


class RobustZScoreNorm(QlibRobustZScoreNorm):
    """Qlib's `RobustZScoreNorm`, the same numbers, one column at a time.

    Per column: median and 1.4826 MAD of the rows from `fit_start_time` to `fit_end_time`, clipped to +-3 if `clip_outlier`. NaN stays
    NaN. It does not write into the frame it is given, and needs memory for one column beside the result, where Qlib's needs several
    copies of the frame.
    """

    def fit(self, df: pd.DataFrame = None) -> None:
        positions = _group_positions(df.columns, self.fields_group)
        days = df.index.get_level_values("datetime")
        start, end = (None if time is None else pd.Timestamp(time) for time in (self.fit_start_time, self.fit_end_time))
        inside = np.ones(len(df), bool) if start is None else np.asarray(days >= start)
        inside &= True if end is None else np.asarray(days <= end)
        if not inside.any():
            raise DataError(f"RobustZScoreNorm: no row between {self.fit_start_time} and {self.fit_end_time} to fit on; "
                            f"the frame runs from {days.min():%Y-%m-%d} to {days.max():%Y-%m-%d}")
        self.cols = df.columns[positions]
        center, scale = [], []
        for position in positions:
            values = df.iloc[:, position].to_numpy()[inside]
            center.append(_median(values))
            scale.append(_median(np.abs(values - center[-1])))
        self.mean_train = np.asarray(center)
        self.std_train = (np.asarray(scale) + EPS).astype(self.mean_train.dtype)
        self.std_train *= 1.4826

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        result = df.copy(deep=False)
        for position, center, scale in zip(df.columns.get_indexer(self.cols), self.mean_train, self.std_train):
            values = df.iloc[:, position].to_numpy() - center
            values /= scale
            if self.clip_outlier:
                np.clip(values, -3, 3, out=values)
            result.isetitem(position, values)
        return result

    def readonly(self) -> bool:
        return True


class Fillna(QlibFillna):
    """Qlib's `Fillna`, one column at a time, without writing into the frame it is given; inf is left alone."""

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        result = df.copy(deep=False)
        for position in _group_positions(df.columns, self.fields_group):
            values = df.iloc[:, position].to_numpy()
            unknown = np.isnan(values)
            if unknown.any():
                result.isetitem(position, np.where(unknown, values.dtype.type(self.fill_value), values))
        return result

    def readonly(self) -> bool:
        return True
