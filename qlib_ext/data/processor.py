"""Qlib's processors under Qlib's names, quick and with a small memory; most take a `universe` besides.

Their frames are Qlib's: rows (datetime, instrument), columns (group, name) such as ("label", "LABEL0"). They never write into the
frame they are given (`readonly()` is True). With `universe` None they give what Qlib 0.9.7 gives, save for rules that are stated.
All but those that drop rows are `ArrayProcessor`s, which a handler can let work in place. The cross-sectional ones are in
`cross_section`.
"""

from __future__ import annotations

from numbers import Real
from typing import Optional, Tuple

import numpy as np
import pandas as pd
from qlib.data.dataset.processor import EPS, Processor

from qlib_ext.data.arrays import (ArrayProcessor, Arrays, Columns, FittedProcessor, Group, chosen_groups, group_positions,
                                  member_rows, row_pieces)
from qlib_ext.data.columns import (column_blocks, gather, joined, mean_of, median_and_deviation, replace, row_blocks, squares,
                                   std_of, totals)
from qlib_ext.data.cross_section import CSNeutralize, CSRankNorm, CSWinsorize, CSZFillna, CSZScoreNorm, ProcessInf
from qlib_ext.data.threads import run
from qlib_ext.data.transform import cs_extreme_mask
from qlib_ext.data.universe import index_levels
from qlib_ext.errors import ConfigError

__all__ = ["ArrayProcessor", "CSNeutralize", "CSRankNorm", "CSWinsorize", "CSZFillna", "CSZScoreNorm", "DropExtremeLabel",
           "DropnaLabel", "Fillna", "MinMaxNorm", "ProcessInf", "RobustZScoreNorm", "TanhProcess", "ZScoreNorm"]


def _label_positions(df: pd.DataFrame, fields_group: Group) -> np.ndarray:
    positions = group_positions(df.columns)
    return np.concatenate([positions[group] for group in chosen_groups(fields_group, list(positions))])


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
        positions = _label_positions(df, self.fields_group)
        day = np.asarray(df.index.codes[index_levels(df.index)[0]])
        labels = df.iloc[:, positions].to_numpy(copy=True)
        member = member_rows(df.index, self.universe)
        for column in range(labels.shape[1]):
            gone = cs_extreme_mask(labels[:, column], day, self.fraction, self.min_count, member)
            labels[gone | ~np.isfinite(labels[:, column]), column] = np.nan
        keep = ~np.isnan(labels).all(axis=1)
        if labels.shape[1] == 1:
            return df[keep]
        result = df.copy(deep=False)
        for number, position in enumerate(positions):
            result.isetitem(position, labels[:, number])  # never writes in place, with or without copy-on-write
        return result[keep]

    def is_for_infer(self) -> bool:
        return False

    def readonly(self) -> bool:
        return True


class RobustZScoreNorm(FittedProcessor):
    """`(x - median) / (1.4826 MAD)` per column, clipped to +-3 if `clip_outlier`; to the bit what Qlib's gives.

    Args:
        fit_start_time, fit_end_time: first and last day of the fit span, None for no border.
        fields_group: group of columns, list of groups, or None for all columns.
        clip_outlier: clip or not.
        universe: name of an instruments file of the store: its members of the day make the statistics, and every row is scaled.

    NaN stays NaN, and a column without a value in the fit span becomes NaN.

    Raises:
        ConfigError: when called: unknown group or universe. DataError: no row to fit on, new columns. NotFittedError: not fitted.
    """

    def __init__(self, fit_start_time, fit_end_time, fields_group: Group = None, clip_outlier: bool = True,
                 universe: Optional[str] = None) -> None:
        super().__init__(fit_start_time, fit_end_time, fields_group, universe)
        self.clip_outlier = clip_outlier

    @property
    def limit(self) -> float:
        return 3.0 if self.clip_outlier else np.inf

    def learn(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        def block(borders):
            known = np.empty((borders[1] - borders[0], len(rows)), values.dtype)
            counts = gather(values, rows, borders[0], known)
            return [median_and_deviation(column[:count]) for column, count in zip(known, counts)]

        blocks = run(block, column_blocks(values.shape[1], len(rows)))
        return np.array([pair for pairs in blocks for pair in pairs], values.dtype).T

    def keep(self, first: np.ndarray, second: np.ndarray) -> None:
        self.mean_train = first
        self.std_train = second + EPS
        self.std_train *= 1.4826


class ZScoreNorm(FittedProcessor):
    """`(x - mean) / std` (ddof 0) per column; a column of equal values in the fit span is left as it is, as by Qlib's.

    One rule differs: sums are made in float64, while Qlib's float32 sums drift on long tables, so that its numbers are less exact
    and a constant column may be taken for one that varies. Infinite values spoil their column (NaN), so put `ProcessInf` before.
    Arguments, NaN and errors as `RobustZScoreNorm`, without `clip_outlier`.
    """

    def learn(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        pieces = row_blocks(rows)
        total = joined(run(lambda piece: totals(values, piece, np.inf), pieces))
        mean = mean_of(total)
        squared = np.sum(run(lambda piece: squares(values, piece, np.inf, mean), pieces), axis=0)
        return np.stack([mean, std_of(total, squared, 0)]).astype(values.dtype)

    def keep(self, first: np.ndarray, second: np.ndarray) -> None:
        self.ignore = second == 0
        self.mean_train = np.where(self.ignore, 0, first).astype(first.dtype)
        self.std_train = np.where(self.ignore, 1, second).astype(second.dtype)


class MinMaxNorm(FittedProcessor):
    """`(x - min) / (max - min)` per column, as Qlib's; a column of equal values in the fit span is left as it is.

    Arguments, NaN and errors as `ZScoreNorm`.
    """

    def learn_any(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        def ends(piece):
            whole = piece[-1] - piece[0] == len(piece) - 1
            part = values[piece[0]:piece[-1] + 1] if whole else values[piece]
            return np.fmin.reduce(part, axis=0), np.fmax.reduce(part, axis=0)

        low, high = zip(*run(ends, row_blocks(rows)))
        return np.stack([np.fmin.reduce(low), np.fmax.reduce(high)])

    def keep(self, first: np.ndarray, second: np.ndarray) -> None:
        self.ignore = first == second
        self.min_val = np.where(self.ignore, 0, first).astype(first.dtype)
        self.max_val = np.where(self.ignore, 1, second).astype(second.dtype)

    def scaling(self) -> Tuple[np.ndarray, np.ndarray]:
        with np.errstate(invalid="ignore"):
            return self.min_val, self.max_val - self.min_val


class Fillna(ArrayProcessor):
    """`fill_value` where a value is NaN, to the bit what Qlib's gives; infinite values are left alone.

    Args:
        fields_group: group of columns, list of groups, or None for all columns.
        fill_value: a number.
        universe: name of an instruments file of the store: rows of others are left alone.

    Raises:
        ConfigError: `fill_value` is not a number; when called: unknown group or universe. DataError: no row belongs to the
            universe.
    """

    def __init__(self, fields_group: Group = None, fill_value: float = 0, universe: Optional[str] = None) -> None:
        if not isinstance(fill_value, Real):
            raise ConfigError(f"Fillna: fill_value must be a number, got {fill_value!r}")
        self.fields_group = fields_group
        self.fill_value = fill_value
        self.universe = universe

    def apply_arrays(self, arrays: Arrays, index: pd.MultiIndex, columns: Columns) -> None:
        member = member_rows(index, self.universe)
        for group in self.groups(list(arrays)):
            values = arrays[group]
            by = np.full(values.shape[1], self.fill_value, values.dtype)
            run(lambda rows: replace(values, rows, False, by), row_pieces(len(values), member))


class TanhProcess(ArrayProcessor):
    """`tanh(x - 1)`, as Qlib's; NaN stays NaN.

    Args:
        fields_group: group of columns or list of groups; None for all columns whose name does not contain LABEL.
        universe: name of an instruments file of the store: rows of others are left alone.

    Raises:
        ConfigError: when called: unknown group or universe. DataError: no row belongs to the universe.
    """

    def __init__(self, fields_group: Group = None, universe: Optional[str] = None) -> None:
        self.fields_group = fields_group
        self.universe = universe

    def apply_arrays(self, arrays: Arrays, index: pd.MultiIndex, columns: Columns) -> None:
        pieces = row_pieces(len(index), member_rows(index, self.universe), 2048)
        for group in self.groups(list(arrays)):
            values = arrays[group]
            every = self.fields_group is not None
            chosen = [number for number, name in enumerate(columns[group]) if every or "LABEL" not in name]

            def treat(rows, values=values, chosen=chosen):
                part = values[rows]
                part -= 1
                np.tanh(part, out=part)
                if len(chosen) < values.shape[1]:
                    values[np.ix_(rows, chosen)] = part[:, chosen]
                else:
                    values[rows] = part

            run(treat, pieces)


class DropnaLabel(Processor):
    """Drop the rows that lack a value in a column of `fields_group`, as Qlib's, and those outside `universe`. For training only.

    Args:
        fields_group: group of columns, list of groups, or None for all columns.
        universe: name of an instruments file of the store, or None for all rows of the frame.

    Raises:
        ConfigError: when called: unknown group or universe. DataError: no row belongs to the universe.
    """

    def __init__(self, fields_group: Group = "label", universe: Optional[str] = None) -> None:
        self.fields_group = fields_group
        self.universe = universe

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        keep = df.iloc[:, _label_positions(df, self.fields_group)].notna().to_numpy().all(axis=1)
        member = member_rows(df.index, self.universe)
        return df[keep if member is None else keep & member]

    def is_for_infer(self) -> bool:
        return False

    def readonly(self) -> bool:
        return True
