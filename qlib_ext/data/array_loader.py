"""Qlib's data loader with the formulas of `qlib_ext.factors` where it knows them: field files in, one float32 table out."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from typing import Iterable, Sequence

import numpy as np
import pandas as pd
from qlib.data import D
from qlib.data.data import DatasetD, FeatureD, LocalDatasetProvider, LocalFeatureProvider
from qlib.data.dataset.loader import QlibDataLoader
from qlib.log import get_module_logger

from qlib_ext.data.cache import CacheDamaged, CacheEntry, default_cache
from qlib_ext.data.field_reader import FieldReader
from qlib_ext.data.table import Rows, Table
from qlib_ext.data.threads import run
from qlib_ext.errors import DataError
from qlib_ext.factors.alpha158 import Plan, read_plan
from qlib_ext.jit import FORMULAS, source_digest
from qlib_ext.store.feature_files import first_few

logger = get_module_logger("qlib_ext.array_loader")


class ArrayLoader(QlibDataLoader):
    """`QlibDataLoader` (same keywords) whose Alpha158 and Alpha360 expressions, and ratios of fields, no Qlib operator evaluates.

    Other expressions are evaluated by Qlib and joined, as are all expressions of stocks whose field files do not cover the same days.
    Minute data, instrument processors and remote stores are Qlib's altogether.

    Computed columns that look at nothing after their day are kept in the disk cache (`qlib_ext.data.cache`) under the expressions, the
    instruments and the first day; a stored part holds as long as the hash of the values that it was made of, up to its last day.
    """

    cache = True
    in_place = False  # whether processors will write all over the table: a copy is faster then than a page fault for each page
    _loaded: Table | None = None

    @classmethod
    def like(cls, loader: QlibDataLoader) -> "ArrayLoader":
        """An array loader with the settings of one of Qlib's."""
        made = cls.__new__(cls)
        made.__dict__.update(loader.__dict__)
        return made

    def is_array(self) -> bool:
        """Whether a table can be made; everything else is Qlib's work."""
        return bool(self.is_group and self.freq == "day" and not self.inst_processors and self.swap_level and _reads_files())

    def load(self, instruments=None, start_time=None, end_time=None) -> pd.DataFrame:
        """Qlib's `load`: rows (datetime, instrument), columns (group, name)."""
        if not self.is_array():
            return super().load(instruments, start_time, end_time)
        self._loaded = self.load_table(instruments, start_time, end_time)
        return self._loaded.frame()

    def take_table(self) -> Table | None:
        """The table behind the frame of the last `load`, once; None where that was Qlib's work."""
        table, self._loaded = self._loaded, None
        return table

    def load_table(self, instruments=None, start_time=None, end_time=None) -> Table:
        """The rows of the instruments from `start_time` to `end_time`, both included.

        Raises:
            ConfigError: no trading day between the two. DataError: no instrument has a bar there, or a field file is damaged.
        """
        plans = {group: read_plan(expressions) for group, (expressions, _) in self.fields.items()}
        reader = FieldReader(self._spans(instruments), start_time, end_time, _fields(self.fields, plans))
        rows = reader.rows()
        longest = max(plan.back for plan in plans.values())
        if len(reader.calendar) <= longest:
            logger.warning(f"the store has {len(reader.calendar)} trading days, the longest window looks {longest} days back: windows "
                           "that would begin before the first day are shorter")
        values = {group: self._values(group, plans[group], instruments, reader, rows) for group in self.fields}
        table = Table(values, {group: [str(name) for name in names] for group, (_, names) in self.fields.items()}, rows.index(),
                      reader.digest(rows, len(rows.days)))
        self._fill_by_qlib(plans, reader, rows, table)
        return table

    def _spans(self, instruments) -> dict:
        """code -> [(first day, last day), ...] as Qlib understands `instruments`."""
        if instruments is None:
            warnings.warn("`instruments` is not set, will load all stocks")
            instruments = "all"
        if isinstance(instruments, str):
            instruments = D.instruments(instruments, filter_pipe=self.filter_pipe)
        elif self.filter_pipe is not None:
            warnings.warn("`filter_pipe` is not None, but it will not be used with `instruments` as list")
        if isinstance(instruments, dict):
            return D.list_instruments(instruments, freq="day", as_list=False) if "market" in instruments else instruments
        everything = [(pd.Timestamp("1900-01-01"), pd.Timestamp("2200-01-01"))]
        return {code: everything for code in instruments}

    # ---- formulas ---------------------------------------------------------------------------------------------------------
    def _values(self, group: str, plan: Plan, instruments, reader: FieldReader, rows: Rows) -> np.ndarray:
        """``[r+1, c]`` of a group, its last row NaN; what Qlib has to evaluate is not set yet."""
        everything = self.fields[group][0]
        columns, width = [k for k in range(len(everything)) if k not in plan.unknown], len(everything)
        cached = self.cache and _FORMULAS and plan.back > 1 and not plan.ahead and not reader.uneven
        cache = default_cache() if cached else None
        if cache is None:
            return _computed(plan, reader, rows, width)
        expressions = [str(everything[k]) for k in columns]
        key = {"expressions": expressions, "instruments": repr(_as_text(instruments)), "filter": repr(_as_text(self.filter_pipe)),
               "start": str(reader.start), "fields": reader.fields, "formulas": _FORMULAS}
        key = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).hexdigest()
        with cache.entry(key, len(expressions), f"{len(expressions)} features of {str(instruments)[:40]} from {reader.start:%Y-%m-%d}") \
                as entry:
            values = _cached(entry, read_plan(expressions), reader, rows)
            if len(columns) < width or (self.in_place and not values.flags.owndata):
                values = _copied(values, width, columns)
        return values

    # ---- what Qlib evaluates ----------------------------------------------------------------------------------------------
    def _fill_by_qlib(self, plans: dict[str, Plan], reader: FieldReader, rows: Rows, table: Table) -> None:
        """Columns that are none of our formulas, and all columns of stocks with uneven files."""
        uneven = [code for code in rows.codes if code in reader.uneven]
        if uneven:
            logger.warning(f"the field files of {first_few(uneven)} do not cover the same days: Qlib evaluates their features, slowly")
        for group, (expressions, names) in self.fields.items():
            for columns, codes in ((plans[group].unknown, rows.codes), (range(len(names)), uneven)):
                if not len(columns) or not len(codes):
                    continue
                try:
                    frame = _unfiltered(self).load_group_df(
                        {code: reader.spans[code] for code in codes}, [expressions[k] for k in columns],
                        [names[k] for k in columns], reader.start, reader.end, group)
                except ValueError as error:
                    if codes is not uneven:
                        raise
                    raise DataError(f"Qlib cannot evaluate features of {first_few(uneven)}, whose field files do not cover the same days "
                                    f"({error}): write their files anew") from error
                _align(frame, rows, list(columns), codes, table.values[group])


_FORMULAS = source_digest(FORMULAS)


def _as_text(config):
    """What a configuration says, without addresses and abbreviations."""
    if isinstance(config, (str, dict, type(None))):
        return config
    return [str(one) if isinstance(one, str) else one.to_config() if hasattr(one, "to_config") else one for one in config]


def _computed(plan: Plan, reader: FieldReader, rows: Rows, width: int) -> np.ndarray:
    values = np.empty((rows.count + 1, width), np.float32)
    values[-1] = np.nan
    reader.fill(plan, rows, values)
    return values


def _cached(entry: CacheEntry, plan: Plan, reader: FieldReader, rows: Rows) -> np.ndarray:
    """The plan's columns, from the disk as far as it holds them; days that it lacks are computed and stored."""
    width = entry.width
    ends = [reader.place(segment.last_day, "right") - reader.first for segment in entry.segments]
    wide = reader.rows(max([reader.stop, *(reader.first + end for end in ends)]))
    held = next((k for k in range(len(ends), 0, -1) if entry.segments[k - 1].guard == reader.digest(wide, ends[k - 1])), 0)
    entry.truncate(held)
    done, asked = ([0, *ends][held], len(rows.days))
    try:
        if done < asked:
            new = wide.part(done, asked)
            values = _computed(plan, reader, new, width)
            stored = entry.append(values[:-1], f"{new.days[0]:%Y-%m-%d}", f"{new.days[-1]:%Y-%m-%d}", reader.digest(wide, asked))
            if done == 0:
                return values
            if not stored:
                return np.concatenate([entry.load(entry.rows)[:-1], values])
        return entry.load(rows.count)
    except CacheDamaged:
        return _cached(entry, plan, reader, rows)


def _copied(values: np.ndarray, width: int, columns: list[int]) -> np.ndarray:
    """The columns of a table at their places in a new one, by all threads; the others are NaN."""
    copy = np.empty((len(values), width), np.float32)

    def fill(part: slice) -> None:
        if len(columns) == width:
            copy[part] = values[part]
        else:
            copy[part] = np.nan
            copy[part, columns] = values[part]
    run(fill, [slice(k, k + 16384) for k in range(0, len(values), 16384)])
    return copy


def _unfiltered(loader: ArrayLoader) -> QlibDataLoader:
    """Qlib's loader without the filter pipe, which has done its work on the spans."""
    made = QlibDataLoader.__new__(QlibDataLoader)
    made.__dict__.update(loader.__dict__, filter_pipe=None)
    return made


def _reads_files() -> bool:
    """Whether Qlib is started on field files of this machine."""
    dataset, features = (getattr(one, "_provider", None) for one in (DatasetD, FeatureD))
    dataset = getattr(dataset, "provider", dataset)  # behind Qlib's own disk cache
    return type(dataset) is LocalDatasetProvider and type(features) is LocalFeatureProvider and not features.backend


def field_names(expressions: Iterable) -> set[str]:
    """Names of the store's fields in some expressions."""
    return {name.lower() for expression in expressions for name in re.findall(r"(?<!\$)\$(\w+)", str(expression))}


def _fields(groups: dict, plans: dict[str, Plan]) -> list[str]:
    """All fields that the expressions name; rows are there where any of them has a file."""
    named = {name for expressions, _ in groups.values() for name in field_names(expressions)}
    return sorted(named.union(*(plan.fields for plan in plans.values())))


def _align(frame: pd.DataFrame, rows: Rows, columns: list[int], codes: Sequence[str], values: np.ndarray) -> None:
    """Put a frame's columns to the rows they belong to; rows of `codes` that it lacks are NaN."""
    place = {code: k for k, code in enumerate(rows.codes)}
    wanted = rows.places[[place[code] for code in codes]]
    values[np.ix_(wanted[wanted >= 0], columns)] = np.nan
    if len(frame):
        index = frame.index.remove_unused_levels()
        day = rows.days.get_indexer(index.levels[0])[index.codes[0]]
        stock = np.array([place[code] for code in index.levels[1]])[index.codes[1]]
        row = np.where(day >= 0, rows.places[stock, day], -1)
        values[np.ix_(row[row >= 0], columns)] = frame.to_numpy(np.float32)[row >= 0]  # none where no field has a file
