"""Processors that work on arrays, one for each group of columns, in place; Qlib's frames are served through them.

A processor is given `arrays`, group of columns ("feature", "label") -> float32 or float64 `[r, c]`, row-major; `index`, the
(datetime, instrument) of the rows; and `columns`, group -> the names of its columns.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple, Union

import numpy as np
import pandas as pd
from qlib.data.dataset.processor import Processor

from qlib_ext.data.columns import BLOCK, column_blocks, row_blocks, scale
from qlib_ext.data.table import side_by_side
from qlib_ext.data.threads import run
from qlib_ext.data.universe import index_levels, universe_mask
from qlib_ext.errors import ConfigError, DataError, NotFittedError

Arrays = Dict[str, np.ndarray]
Columns = Dict[str, List[str]]
Group = Union[None, str, Sequence[str]]


def group_positions(columns: pd.Index) -> Dict[str, np.ndarray]:
    """Positions of the columns of each group, groups in the order of the frame."""
    codes, names = pd.factorize(columns.get_level_values(0))
    return {name: np.flatnonzero(codes == code) for code, name in enumerate(names)}


def chosen_groups(fields_group: Group, names: Sequence[str]) -> List[str]:
    """Those of `names` that `fields_group` says: one, several, or None for all.

    Raises:
        ConfigError: a group is not among them.
    """
    asked = list(fields_group) if isinstance(fields_group, (list, tuple)) else [fields_group]
    unknown = [group for group in asked if group is not None and group not in names]
    if unknown:
        raise ConfigError(f"fields_group {unknown} is not among the frame's groups {sorted(map(str, names))}")
    return [name for name in names if name in asked or None in asked]


def member_rows(index: pd.MultiIndex, universe: Optional[str]) -> Optional[np.ndarray]:
    """Universe mask of rows, None for all rows.

    Raises:
        ConfigError: unknown universe. DataError: no row belongs to it.
    """
    if universe is None:
        return None
    mask = universe_mask(index, universe)
    if len(mask) and not mask.any():
        raise DataError(f"no row of the frame ({_span(index)}) belongs to universe {universe!r}: "
                        "check the dates of its instruments file and what the handler loads")
    return mask


def _span(index: pd.MultiIndex) -> str:
    days = index.get_level_values(index_levels(index)[0])
    return f"{days.min():%Y-%m-%d} to {days.max():%Y-%m-%d}" if len(index) else "no rows"


def row_pieces(count: int, member: Optional[np.ndarray] = None, size: int = BLOCK) -> List[np.ndarray]:
    """The rows of a table (of members only), in pieces for threads."""
    return row_blocks(np.arange(count, dtype=np.int32) if member is None else np.flatnonzero(member).astype(np.int32), size)


def _values(df: pd.DataFrame, positions: np.ndarray) -> np.ndarray:
    """Some columns `[r, c]`, as a view where pandas can give one; it may be read-only."""
    first, last = positions[0], positions[-1] + 1
    return df.iloc[:, slice(first, last) if last - first == len(positions) else positions].to_numpy()


def _copy(values: np.ndarray) -> np.ndarray:
    """Row-major copy in a dtype the loops know: float32 stays, anything else becomes float64."""
    result = np.empty(values.shape, np.float32 if values.dtype == np.float32 else np.float64)
    pieces = [slice(first, first + 4096) for first in range(0, len(values), 4096)]
    run(lambda piece: np.copyto(result[piece], values[piece], casting="unsafe"), pieces)
    return result


def _put_together(df: pd.DataFrame, positions: Dict[str, np.ndarray], arrays: Arrays) -> pd.DataFrame:
    """`df` with the columns of some groups taken from `arrays`, without copying these or the others."""
    place = np.full((df.shape[1], 2), -1)  # number of the array, and of the column in it
    for number, group in enumerate(arrays):
        place[positions[group]] = np.column_stack([np.full(len(positions[group]), number), np.arange(len(positions[group]))])
    tables, parts = list(arrays.values()), []
    borders = np.flatnonzero(place[1:, 0] != place[:-1, 0]) + 1
    for first, last in zip([0, *borders], [*borders, df.shape[1]]):
        number, column = place[first]
        parts.append(df.iloc[:, first:last] if number < 0 else
                     pd.DataFrame(tables[number][:, column:column + last - first], index=df.index, copy=False))
    result = side_by_side(parts)
    result.columns = df.columns
    return result


class ArrayProcessor(Processor):
    """A processor that treats each column of the groups it touches by itself, in place on arrays.

    As a frame processor it keeps Qlib's contract: `fit(df)`, then `df = processor(df)`. It never writes into the frame it is
    given (`readonly()` is True, which spares Qlib a copy) and keeps the order of its rows and the dtype of floating columns; the
    columns of untouched groups are shared.
    """

    fields_group: Group = None
    universe: Optional[str] = None

    def groups(self, names: Sequence[str]) -> List[str]:
        """Which of the groups `names` it writes.

        Raises:
            ConfigError: a group of `fields_group` is not among them.
        """
        return chosen_groups(self.fields_group, names)

    def reads(self, names: Sequence[str]) -> List[str]:
        """Which of the groups `names` it reads besides."""
        return []

    def fit_arrays(self, arrays: Arrays, index: pd.MultiIndex, columns: Columns) -> None:
        """Learn what `apply_arrays` needs; `arrays` are not written."""

    def apply_arrays(self, arrays: Arrays, index: pd.MultiIndex, columns: Columns) -> None:
        """Process in place."""
        raise NotImplementedError

    def __call__(self, df: pd.DataFrame) -> pd.DataFrame:
        positions = group_positions(df.columns)
        written = self.groups(list(positions))
        arrays = {group: _copy(_values(df, positions[group])) for group in written}
        read = {group: _values(df, positions[group]) for group in self.reads(list(positions)) if group not in arrays}
        self.apply_arrays({**arrays, **read}, df.index, _names(df, positions))
        return _put_together(df, positions, arrays)

    def readonly(self) -> bool:
        return True


def _names(df: pd.DataFrame, positions: Dict[str, np.ndarray]) -> Columns:
    names = df.columns.get_level_values(-1)
    return {group: names[chosen].tolist() for group, chosen in positions.items()}


class FittedProcessor(ArrayProcessor):
    """`(x - center) / divisor`, clipped to `[-limit, limit]`, with numbers learned per column in the fit span.

    A subclass says in `learn` how two numbers a column are made and in `keep` what they are called; `scaling` takes Qlib's names
    for a mean and a deviation. `cols` are the (group, name) of the columns learned.
    """

    limit = np.inf

    def __init__(self, fit_start_time, fit_end_time, fields_group: Group = None, universe: Optional[str] = None) -> None:
        self.fit_start_time = fit_start_time
        self.fit_end_time = fit_end_time
        self.fields_group = fields_group
        self.universe = universe

    def learn(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Two numbers a column `[2, c]` from some rows of an array, in its dtype."""
        raise NotImplementedError

    def keep(self, first: np.ndarray, second: np.ndarray) -> None:
        """Store what was learned of all columns, under Qlib's names."""
        raise NotImplementedError

    def scaling(self) -> Tuple[np.ndarray, np.ndarray]:
        """Center and divisor of each of `cols`."""
        return self.mean_train, self.std_train

    def fit(self, df: pd.DataFrame = None) -> None:
        positions = group_positions(df.columns)
        arrays = {group: _values(df, positions[group]) for group in self.groups(list(positions))}
        self.fit_arrays(arrays, df.index, _names(df, positions))

    def fit_arrays(self, arrays: Arrays, index: pd.MultiIndex, columns: Columns) -> None:
        rows = self._fit_rows(index)
        groups = self.groups(list(arrays))
        first, second = np.concatenate([self.learn_any(arrays[group], rows) for group in groups], axis=1)
        self.cols = pd.MultiIndex.from_tuples([(group, name) for group in groups for name in columns[group]])
        self.keep(first, second)

    def learn_any(self, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """`learn` from an array of any layout and number type, of which it copies a few columns at a time."""
        if values.flags.c_contiguous and values.flags.writeable and values.dtype in (np.float32, np.float64):
            return self.learn(values, rows)
        blocks = column_blocks(values.shape[1], len(values), 1 << 20)
        return np.concatenate(run(lambda block: self.learn(_copy(values[:, slice(*block)]), rows), blocks), axis=1)

    def _fit_rows(self, index: pd.MultiIndex) -> np.ndarray:
        """The rows of the fit span, of members if there is a universe."""
        name, level = type(self).__name__, index_levels(index)[0]
        days = pd.Series(np.arange(len(index.levels[level])), index.levels[level]).sort_index()
        inside = np.isin(index.codes[level], days.loc[self.fit_start_time:self.fit_end_time])
        if not inside.any():
            raise DataError(f"{name}: no row between {self.fit_start_time} and {self.fit_end_time} to fit on; "
                            f"the frame has {_span(index)}")
        member = member_rows(index, self.universe)
        if member is not None and not (inside & member).any():
            raise DataError(f"{name}: no row between {self.fit_start_time} and {self.fit_end_time} belongs to universe "
                            f"{self.universe!r}, so there is nothing to fit on: check the dates of its instruments file")
        return np.flatnonzero(inside if member is None else inside & member).astype(np.int32)

    def apply_arrays(self, arrays: Arrays, index: pd.MultiIndex, columns: Columns) -> None:
        if not hasattr(self, "cols"):
            raise NotFittedError(f"{type(self).__name__} has not been fitted: call fit, or let the handler do it")
        center, divisor = self.scaling()
        for group in self.groups(list(arrays)):
            learned = self.cols.get_indexer(pd.MultiIndex.from_product([[group], columns[group]]))
            if (learned < 0).any():
                new = [name for name, place in zip(columns[group], learned) if place < 0]
                raise DataError(f"{type(self).__name__}: columns {new[:5]} of group {group!r} were not there when it was fitted: "
                                "fit it on the same columns")
            values = arrays[group]
            parts = [part[learned].astype(values.dtype) for part in (center, divisor)]
            run(lambda rows: scale(values, rows, *parts, self.limit), row_pieces(len(values)))
