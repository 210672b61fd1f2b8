"""Qlib's feature handlers at memory speed: change ``module_path`` and nothing else.

They hold one float32 table of the rows that are present (`qlib_ext.data.table`), filled by the compiled formulas of
`qlib_ext.factors` (expressions that are none of these are Qlib's work and are joined), processed in place, and shown as Qlib's frames
where somebody asks. Qlib's processors are replaced by those of the same name in `qlib_ext.data.processor`; with any other processor
(your own, say), or learn processors that touch features, tables are frames and are copied as Qlib does.

- The raw features are overwritten; who asks for them (DK_R) gets them loaded again. The raw labels are always kept: with
  ``drop_raw: true`` Qlib loses them, so that `SignalRecord` stores no label and no metric can be made.
- Where the learn processors touch labels only (`fields_group: label`), the learning table shares the features of the inference
  table: it is put together when somebody asks for it.

Before anything is loaded the expressions are held against the store, where Qlib would go on with columns of NaN that `Fillna`
turns into 0. Refused: no $factor (nobody can say whether prices are adjusted), no price or no volume, a field that a label or
every feature needs, a name that the schema does not know, a damaged close, volume or factor, a universe without members. Warned
of by name: features that need any other field ($vwap: Alpha158's VWAP0), and a store without $change (Qlib's exchange then knows
no price limits).
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Callable, Iterable

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.contrib.data import handler as qlib_handler
from qlib.data import D
from qlib.data.dataset import processor as qlib_processor
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import QlibDataLoader
from qlib.log import TimeInspector, get_module_logger

from qlib_ext.data import processor as own_processor
from qlib_ext.data.array_loader import ArrayLoader, field_names
from qlib_ext.data.arrays import ArrayProcessor, FittedProcessor
from qlib_ext.data.segments import label_offset
from qlib_ext.data.table import Table
from qlib_ext.data.universe import list_universes, member_spans
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.feature_files import damage, first_few, has_values
from qlib_ext.store.schema import FIELDS, INDEX_NAMES, PRICES

logger = get_module_logger("qlib_ext.handler")
NEEDED = {*PRICES, "volume", "factor"}
NO_CHANGE = "no instrument has $change: Qlib's exchange would let every order pass the price limits"


def absent_fields(groups: dict, lacks: Callable[[set], Iterable[str]], needs: Iterable[str] = (),
                  universes: Iterable[str] = ()) -> tuple[dict, dict]:
    """What expressions need and no instrument has.

    Args:
        groups: name -> (expressions, column names), as `QlibDataLoader.fields`.
        lacks: those of a set of fields that no instrument has.
        needs: fields to ask for besides.
        universes: names of the store's universes, each of which may have a field `<name>_weight`.

    Returns:
        two mappings of field -> columns that need it: those to refuse, and those whose columns would be NaN on every row.
    """
    pairs = [(group, str(name), field_names([one])) for group, (ones, names) in groups.items() for one, name in zip(ones, names)]
    absent = set(lacks({name for _, _, names in pairs for name in names} | set(needs)))
    users = {field: [column for _, column, names in pairs if field in names] for field in sorted(absent)}
    labels = {name for group, _, names in pairs for name in names if group == "label"}
    features = [names for group, _, names in pairs if group != "label"]
    void = bool(features) and all(names & absent for names in features)
    known = {*FIELDS, "vwap"} | {f"{name}_weight" for name in (*INDEX_NAMES, *universes)}
    refused = {field for field in absent if void or field in NEEDED | labels or field not in known}
    return ({field: users[field] for field in users if field in refused},
            {field: users[field] for field in users if field not in refused})


class LeanHandler:
    """Mixin for a `DataHandlerLP` on a `QlibDataLoader`; see the module's text. `label_frame(key)` gives labels without features."""

    needs = ("factor",)
    _table: Table | None = None
    _raw: pd.DataFrame | None = None
    _raw_label = _learned = _learn_frame = origin_ = None

    def setup_data(self, *arguments, **options) -> None:
        """Qlib's `setup_data`, after a look at the store.

        Raises:
            ConfigError: the store has no universe of the name of `instruments`, or the dates hold no trading day.
            DataError: the universe has no members, nobody has a row, no instrument has a field that is needed, or a field file is
                damaged; see the module's text.
        """
        self.check_store()
        if type(self.data_loader) is QlibDataLoader:
            self.data_loader = ArrayLoader.like(self.data_loader)
        if isinstance(self.data_loader, ArrayLoader):
            self.data_loader.in_place = bool(self.shared_processors or self.infer_processors)
        self._table = self._raw = self._infer = self._learn = self._raw_label = self._learned = None
        self.loaded_ = self.instruments, self.start_time, self.end_time
        super().setup_data(*arguments, **options)

    def check_store(self) -> None:
        """Hold universe and expressions against the store's files; raises and warns as `setup_data`, loads nothing."""
        loader = self.data_loader
        groups = getattr(loader, "fields", None)
        features = Path(C.dpm.get_data_uri("day")) / "features" if C.registered else None
        if not isinstance(groups, dict) or getattr(loader, "freq", None) != "day" or features is None or not features.is_dir():
            return
        codes = _codes(self.instruments) or [folder.name for folder in features.iterdir()]

        def lacks(names):
            return [name for name in names if not any(has_values(features, code, name) for code in codes)]

        refused, empty = absent_fields(groups, lacks, self.needs, list_universes())
        if refused:
            raise DataError("no instrument of the store has " + "; ".join(
                f"${name} ({_needed_by(name, columns)})" for name, columns in refused.items())
                + ": ingest a store with it, or write the files; `python -m qlib_ext.store doctor` says what the store has")
        damaged = damage(features, codes, len(D.calendar(freq="day")))
        if damaged:
            raise DataError(f"{damaged}: write the files anew; `python -m qlib_ext.store doctor` lists them")
        for name, columns in empty.items():
            logger.warning(f"no instrument has ${name}: {', '.join(columns)} will be NaN on every row, a constant after Fillna")
        if lacks({"change"}):
            logger.warning(NO_CHANGE)

    # ---- the raw table ----------------------------------------------------------------------------------------------------
    @property
    def _data(self) -> pd.DataFrame:
        """The raw table; loaded again where processors overwrote it (DataError if the store has changed meanwhile)."""
        if self._raw is None:
            if self.drop_raw or getattr(self, "_infer", None) is None:
                raise AttributeError("the raw table was dropped (drop_raw: true), or setup_data was not called")
            self._load_again()
        return self._raw

    def _load_again(self) -> Table | None:
        """The raw table that processors overwrote, in `_raw` and as it is."""
        logger.info("the raw features are loaded again: processors work in place")
        self._raw = self.data_loader.load(*self.loaded_)
        table = self.data_loader.take_table()
        if table is None or table.origin != self.origin_:
            self._raw = None
            raise DataError("the store changed after these features were computed: call setup_data again")
        return table

    @_data.setter
    def _data(self, frame: pd.DataFrame) -> None:
        self._raw = frame

    @_data.deleter
    def _data(self) -> None:
        self._raw = None

    @property
    def _learn(self) -> pd.DataFrame | None:
        """The learning table; put together where it shares the features of the inference table."""
        learned, frame = self._learned, getattr(self, "_infer", None)
        if learned is None or frame is None:
            return self._learn_frame
        frame = frame if len(learned) == len(frame) else frame.take(_places(learned.index, frame.index))
        frame = frame.copy(deep=False)
        for column in learned.columns:
            frame.isetitem(frame.columns.get_loc(column), learned[column].to_numpy())
        return frame

    @_learn.setter
    def _learn(self, frame: pd.DataFrame | None) -> None:
        self._learn_frame = frame

    def __getstate__(self) -> dict:
        return {name: value for name, value in super().__getstate__().items() if name != "_table"}

    # ---- processing -------------------------------------------------------------------------------------------------------
    def process_data(self, with_fit: bool = False) -> None:
        """Qlib's `process_data`; see the module's text for what differs."""
        table = self.data_loader.take_table() if isinstance(self.data_loader, ArrayLoader) else None
        if self._raw is None and not self.drop_raw and self.origin_ is not None:  # processed a second time
            table = self._load_again()
        self._raw_label = self._data[["label"]].copy() if "label" in self._data else None
        self._learned = self._table = self.origin_ = None
        labels_only = self._raw_label is not None and all(
            getattr(p, "fields_group", None) == "label" for p in self.learn_processors)
        if table is not None and labels_only and self._processes_in_place():
            self._process_table(table, with_fit)
        elif labels_only and self.process_type == self.PTYPE_A:
            self._process_features(with_fit)
        else:
            super().process_data(with_fit=with_fit)
            return
        self._learn = None
        self._learned = self._run_proc_l(self._infer[["label"]].copy(), self.learn_processors, with_fit=with_fit,
                                         check_for_infer=False)

    def _processes_in_place(self) -> bool:
        """Whether the processors before the learning table work on arrays, and both tables share their features."""
        return (all(_works_on_arrays(p) for p in [*self.shared_processors, *self.infer_processors])
                and (self.process_type == self.PTYPE_A or not self.infer_processors))

    def _process_table(self, table: Table, with_fit: bool) -> None:
        """Shared and infer processors on the table itself."""
        processors = [*self.shared_processors, *self.infer_processors]
        self._raw = None if processors else self._raw
        arrays = table.arrays()
        for processor in processors:
            if not processor.is_for_infer():
                raise TypeError("Only processors usable for inference can be used in `infer_processors` ")
            with TimeInspector.logt(type(processor).__name__):
                if with_fit:
                    processor.fit_arrays(arrays, table.index, table.names)
                processor.apply_arrays(arrays, table.index, table.names)
        self._table, self.origin_ = table, table.origin
        self._infer = table.frame()
        if self.drop_raw:
            del self._data

    def _process_features(self, with_fit: bool) -> None:
        """Shared and infer processors on frames; without learn processors the learning table is the inference table."""
        processors, self.learn_processors = self.learn_processors, []
        try:
            super().process_data(with_fit=with_fit)
        finally:
            self.learn_processors = processors
        if self.drop_raw:  # an untouched column would keep the whole raw table alive
            for column in self._infer[["label"]].columns:
                self._infer.isetitem(self._infer.columns.get_loc(column), self._infer[column].to_numpy(copy=True))

    # ---- what is asked for ------------------------------------------------------------------------------------------------
    def feature_values(self) -> np.ndarray | None:
        """The features of the inference table, ``[r+1, f]`` float32 with a NaN row at the end, without a copy; None where they are
        held in frames only."""
        return None if self._table is None else self._table.values["feature"]

    def label_frame(self, data_key: str) -> pd.DataFrame:
        """Columns ``("label", ...)`` of the raw (DK_R) or learning table (DK_L).

        Raises:
            AttributeError: nothing was loaded.
        """
        if data_key == self.DK_R:
            if self._raw_label is None:
                raise AttributeError("there are no raw labels: call setup_data")
            return self._raw_label
        if data_key == self.DK_L and self._learned is not None:
            return self._learned
        return self._get_df_by_key(data_key)[["label"]]

    def release_features(self) -> None:
        """Free every feature; the labels stay."""
        self._raw = self._infer = self._learn = self._table = None

    def _get_df_by_key(self, data_key: str = DataHandlerLP.DK_I) -> pd.DataFrame:
        frame = super()._get_df_by_key(data_key)
        if frame is None:
            raise AttributeError("the features were released (keep_frames: false) or not loaded: call setup_data")
        return frame

    def fetch(self, selector=slice(None, None), level="datetime", col_set=DataHandlerLP.CS_ALL, data_key=DataHandlerLP.DK_I,
              **kwargs) -> pd.DataFrame:
        """Qlib's `fetch`; labels alone are the caller's own, and raw ones are there without the features and with ``drop_raw=True``.

        Raises:
            AttributeError: raw columns other than the label were asked for with ``drop_raw=True`` (the error Qlib raises).
        """
        if col_set == "label" and self._raw_label is not None and kwargs.get("proc_func") is None:
            labels = self.label_frame(data_key)
            return self._fetch_data(labels, selector=selector, level=level, col_set=col_set, **kwargs).copy()
        return super().fetch(selector, level=level, col_set=col_set, data_key=data_key, **kwargs)


def _works_on_arrays(processor) -> bool:
    """Whether its work on arrays is all that it does: a subclass may do something else with frames."""
    kind = type(processor)
    return (isinstance(processor, ArrayProcessor) and kind.__call__ is ArrayProcessor.__call__
            and kind.fit in (qlib_processor.Processor.fit, FittedProcessor.fit))


def _places(kept: pd.MultiIndex, index: pd.MultiIndex) -> np.ndarray:
    """Positions of some rows of an index, both ordered alike."""
    if all(one.equals(other) for one, other in zip(kept.levels, index.levels)):
        width = len(index.levels[1])
        numbers = [i.codes[0].astype(np.int64) * width + i.codes[1] for i in (index, kept)]
        if (np.diff(numbers[0]) > 0).all():
            return np.searchsorted(*numbers)
    return index.get_indexer(kept)


def _codes(instruments) -> list[str]:
    """Codes of the handler's instruments; empty where they are not told."""
    market = instruments.get("market") if isinstance(instruments, dict) else instruments
    if isinstance(market, str):
        return sorted(member_spans(market))
    return [str(code) for code in market] if isinstance(market, (list, tuple)) else []


def _needed_by(name: str, columns: list[str]) -> str:
    if not columns:
        return "without it nobody can say whether prices are adjusted"
    return "needed by " + first_few(columns)


class _FormulaHandler(LeanHandler):
    """Keywords beside Qlib's.

    Args:
        label: as Qlib takes it, or ``{price: close | open | vwap, horizons: [5, 10]}``, see `label_fields`.
        extra_fields: Qlib expressions of your own beside the formulas: ``{NAME: expression}``, or Qlib's ``[expressions, names]``.
        cache: False keeps the computed features of this handler off the disk cache (README, Cache).
    """

    def __init__(self, *args, extra_fields=None, cache: bool = True, init_data: bool = True, **kwargs) -> None:
        if isinstance(kwargs.get("label"), dict):
            kwargs["label"] = label_fields(**kwargs["label"])
        super().__init__(*args, init_data=False, **kwargs)
        for name in ("shared_processors", "infer_processors", "learn_processors"):
            setattr(self, name, [_own(processor) for processor in getattr(self, name)])
        self.data_loader = ArrayLoader.like(self.data_loader)
        self.data_loader.cache = bool(cache)
        if extra_fields is not None:
            self.data_loader.fields["feature"] = _with_extra(*self.data_loader.fields["feature"], extra_fields)
        if init_data:
            with TimeInspector.logt("Init data"):
                self.setup_data()


def label_fields(price: str = "close", horizons: int | Iterable[int] = 1, entry: int = 1, **unknown) -> tuple[list[str], list[str]]:
    """Labels of several horizons: bought `entry` trading days after the signal, sold `h` trading days later, at the same kind of price.

    ``Ref($price, -(entry + h)) / Ref($price, -entry) - 1``, a fraction, named ``LABEL<h>D``.

    Args:
        price: ``close``, ``open`` or ``vwap``.
        horizons: trading days held.
        entry: 1 = the next trading day.

    Raises:
        ConfigError: another price; horizons or entry that are no whole numbers from 1 on, or twice the same horizon; another keyword.
    """
    if unknown:
        raise ConfigError(f"label does not take {sorted(unknown)}; it takes price, horizons and entry")
    wanted = [horizons] if isinstance(horizons, int) else list(horizons)
    if price not in ("close", "open", "vwap"):
        raise ConfigError(f"label: price {price!r} is none of close, open, vwap")
    if not wanted or any(type(h) is not int or h < 1 for h in [*wanted, entry]) or len(set(wanted)) < len(wanted):
        raise ConfigError(f"label: horizons {horizons!r} and entry {entry!r} must be whole numbers of trading days from 1 on, each once")
    return [f"Ref(${price}, -{entry + h}) / Ref(${price}, -{entry}) - 1" for h in wanted], [f"LABEL{h}D" for h in wanted]


def _with_extra(expressions: list[str], names: list[str], extra) -> tuple[list[str], list[str]]:
    """Qlib's columns and the user's behind them."""
    if isinstance(extra, dict):
        added = list(extra.values()), list(extra)
    elif isinstance(extra, (list, tuple)) and len(extra) == 2 and all(isinstance(part, (list, tuple)) for part in extra):
        added = list(extra[0]), list(extra[1])
    elif isinstance(extra, (list, tuple)) and all(isinstance(part, str) for part in extra):
        added = list(extra), list(extra)
    else:
        raise ConfigError(f"extra_fields={extra!r}: give {{NAME: expression}}, or [[expressions], [names]]")
    twice = [name for name in added[1] if (names + added[1]).count(name) > 1]
    if len(added[0]) != len(added[1]) or twice:
        raise ConfigError(f"extra_fields: {len(added[0])} expressions, {len(added[1])} names; names that are taken already: {twice}: "
                          "give every expression a name of its own")
    for expression in added[0] if C.registered else []:  # a check without Qlib reads them later
        label_offset([expression], "extra_fields")
    return [*expressions, *added[0]], [*names, *added[1]]


def _own(processor):
    """The processor of `qlib_ext.data.processor` with the settings of one of Qlib's; others, and fitted ones, are left as they are."""
    kind = type(processor)
    if kind.__module__ != qlib_processor.__name__ or hasattr(processor, "cols") or not hasattr(own_processor, kind.__name__):
        return processor
    ours = getattr(own_processor, kind.__name__)
    settings = {name: getattr(processor, name) for name in inspect.signature(ours.__init__).parameters if hasattr(processor, name)}
    if getattr(processor, "zscore_func", None) is not None:
        settings["method"] = "robust" if processor.zscore_func is qlib_processor.robust_zscore else "zscore"
    return ours(**settings)


class Alpha158(_FormulaHandler, qlib_handler.Alpha158):
    """Qlib's Alpha158 (same keywords, columns and values)."""


class Alpha158vwap(_FormulaHandler, qlib_handler.Alpha158vwap):
    """Qlib's Alpha158vwap: label from vwap to vwap."""


class Alpha360(_FormulaHandler, qlib_handler.Alpha360):
    """Qlib's Alpha360 (same keywords, columns and values)."""


class Alpha360vwap(_FormulaHandler, qlib_handler.Alpha360vwap):
    """Qlib's Alpha360vwap: label from vwap to vwap."""
