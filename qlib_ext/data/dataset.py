"""PanelDatasetH: a Qlib dataset whose segments are panels, one day a batch."""

from __future__ import annotations

import copy
import inspect
from dataclasses import replace

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.data.dataset import DatasetH
from qlib.data.dataset.handler import DataHandlerLP
from qlib.log import get_module_logger
from qlib.utils import init_instance_by_config

from qlib_ext.data.aux_values import aux_loaders, load_aux, window_sizes
from qlib_ext.data.leaks import feature_faults, processor_faults, refuse
from qlib_ext.data.panel import MISSING_ROWS, Block, Panel
from qlib_ext.data.segments import SPARE_DAYS, embargo_days, is_embargo, label_offset, segment_positions, trim_segments
from qlib_ext.data.threads import run
from qlib_ext.data.universe import trading_calendar, universe_grid, universe_mask
from qlib_ext.data.window import window_transform as find_transform
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.metadata import check_store, fingerprint

logger = get_module_logger("qlib_ext.dataset")
_NO_RAW_LABEL = ("{} drops its raw labels (drop_raw: true), and evaluation needs them: use the handlers of qlib_ext.data.handler, "
                 "or drop_raw: false")


class PanelDatasetH(DatasetH):
    """Features from the inference table, training labels from the learning table, evaluation labels raw.

    `prepare` answers as any `DatasetH` (for LightGBM, `SignalRecord`), on the trimmed segments and the universe's rows; `panel`
    gives what our models train on.

    Args:
        handler: a `DataHandlerLP` or its configuration. Statistics are fitted on its rows, windows use all the history it loads.
        segments: name -> [start, end]. ``train`` and ``valid`` are trimmed by the embargo and the trim is logged.
        universe: market name; who is sampled and scored on a day. None = everybody who was loaded.
        window: days in a window.
        missing_rows: what a window shows where a stock has no row: ``nan``, or ``ffill_bfill`` (see `Panel`).
        aux: name -> configuration of a loader with ``load(days) -> (values [t, m], names)``, e.g. the market's state, or, where it
            says ``per_stock = True``, ``load(days, instruments) -> (values [t, n, k], names)``, e.g. style exposures.
        aux_windows: per-stock entries that are inputs too: windows of them stand beside the features, as blocks. A list of names, with
            the dataset's window; or name -> ``{window: days, bars: bars a day}``, either of which may be left out: the dataset's window,
            and the bars that the loader says it makes (its attribute `bars`, else 1), whose columns are ``a@1, b@1, a@2 ...``.
        embargo: ``auto`` = the label's furthest look ahead; a number of trading days may only be larger.
        window_transform: name of what is done with the windows of a day when they are cut (`qlib_ext.data.window`).
        keep_frames: False frees Qlib's frames as soon as the panel is made; `prepare` then serves the raw label only.

    Raises:
        ConfigError: segments empty, overlapping or without room for the embargo; train or valid labels past the end of the data;
            unknown universe, aux loader or option; a learn processor that touches features.
        DataError: store missing; infinite features; duplicate rows. All but the last two come before any data are loaded.
    """

    def __init__(self, handler, segments: dict, universe: str | None = None, window: int = 8, missing_rows: str = "nan",
                 aux: dict | None = None, embargo: str | int = "auto", keep_frames: bool = True, fetch_kwargs: dict | None = None,
                 aux_windows: list[str] | dict[str, dict] | None = None, window_transform: str | None = None, **unknown):
        if unknown:
            valid = sorted(set(inspect.signature(PanelDatasetH.__init__).parameters) - {"self", "unknown"})
            raise ConfigError(f"PanelDatasetH does not take {sorted(unknown)}; valid keywords: {valid}")
        if missing_rows not in MISSING_ROWS:
            raise ConfigError(f"missing_rows={missing_rows!r} is unknown; choose one of {MISSING_ROWS}")
        if type(window) is not int or window < 1:
            raise ConfigError(f"window={window!r} must be a whole number of days, at least 1")
        if not is_embargo(embargo):
            raise ConfigError(f"embargo={embargo!r}: 'auto' or a number of trading days")
        if not isinstance(segments, dict) or not segments:
            raise ConfigError(f"segments={segments!r}: give name: [start, end] pairs")
        check_store(C.dpm.get_data_uri("day"))
        self.universe, self.window, self.missing_rows = universe, window, missing_rows
        self.embargo, self.keep_frames, self.window_transform = embargo, keep_frames, window_transform
        self.aux = aux_loaders(aux or {})
        self.aux_windows = window_sizes(aux_windows, self.aux, window)
        handler, loaded = _unloaded(handler)
        refuse(processor_faults(handler))
        refuse(feature_faults(_expressions(handler, "feature") or []))
        find_transform(window_transform, _expressions(handler, "feature", names=True))
        _check_fit_spans(handler, self.aux, segments)
        if handler.drop_raw and type(handler)._get_df_by_key is DataHandlerLP._get_df_by_key:
            raise ConfigError(_NO_RAW_LABEL.format(type(handler).__name__))
        self.asked_segments = dict(segments)
        trimmed = self._trim(handler, self.asked_segments)
        if universe is not None:
            universe_grid(trading_calendar()[:1], np.array([], dtype=str), universe)
        super().__init__(handler=handler, segments=trimmed, fetch_kwargs=fetch_kwargs or {})
        if not loaded:
            handler.setup_data()
        if not keep_frames:
            self.panel()

    def config(self, handler_kwargs: dict | None = None, **kwargs) -> None:
        """Qlib's `config`; new segments are trimmed too. With new `handler_kwargs` the panel is made anew, after `setup_data`."""
        if "segments" in kwargs:
            self.asked_segments = dict(kwargs["segments"])
            kwargs["segments"] = self._trim(self.handler, self.asked_segments)
        panel = None if handler_kwargs is not None else getattr(self, "_panel", None)
        super().config(handler_kwargs=handler_kwargs, **kwargs)
        if panel is not None and "segments" in kwargs:
            panel = replace(panel, segments={name: _loaded_span(name, pair, panel.days) for name, pair in self.segments.items()})
        self._panel = panel

    def setup_data(self, handler_kwargs: dict | None = None, **kwargs) -> None:
        """Qlib's `setup_data`; the panel is made anew."""
        self._panel = None
        super().setup_data(handler_kwargs=handler_kwargs, **kwargs)

    def panel(self, segment: str | tuple | slice | None = None) -> Panel:
        """The panel of everything loaded (None), or its view on a segment's name or a pair of dates.

        Raises:
            ConfigError: unknown segment, or the handler's data are not loaded (after unpickling: `setup_data` first).
        """
        if getattr(self, "_panel", None) is None:
            self._panel = self._build()
        if segment is None:
            return self._panel
        if isinstance(segment, str):
            return self._panel.view(segment)
        days = self._panel.days
        first, last = segment_positions({"asked for": segment}, days)["asked for"]
        return self._panel.view((first, last + 1))

    def _prepare_seg(self, slc, **kwargs):
        if not self.keep_frames and kwargs.get("data_key") != DataHandlerLP.DK_R:
            raise ConfigError("the frames were freed (keep_frames: false): set keep_frames: true for models that read frames")
        frame = super()._prepare_seg(slc, **kwargs)
        return frame if self.universe is None else frame[universe_mask(frame.index, self.universe)]

    # ---- segments ---------------------------------------------------------------------------------------------------------
    def _trim(self, handler, segments: dict) -> dict[str, tuple[pd.Timestamp, pd.Timestamp]]:
        calendar = trading_calendar()
        offset = embargo_days(self.embargo, _label_offset_of(handler), handler, "the dataset")
        positions = segment_positions(segments, calendar)
        trimmed = trim_segments(positions, offset, calendar)
        for name, (first, last) in trimmed.items():
            cut = positions[name][1] - last
            note = f", cut by {cut} trading days (embargo {offset})" if cut else ""
            logger.info(f"segment {name}: {calendar[first]} .. {calendar[last]}{note}")
        self.offset = offset
        return {name: (pd.Timestamp(calendar[first]), pd.Timestamp(calendar[last])) for name, (first, last) in trimmed.items()}

    # ---- the panel --------------------------------------------------------------------------------------------------------
    def _build(self) -> Panel:
        handler = self.handler
        if getattr(handler, "_infer", None) is None:
            raise ConfigError("the handler holds no features: a pickled dataset needs setup_data(handler_kwargs={'init_type': "
                              "'load_state'}) first; a handler whose frames were freed (keep_frames: false) serves one dataset only")
        index = _RowIndex(handler._infer.index)
        raw, learned = _labels(handler, DataHandlerLP.DK_R), _labels(handler, DataHandlerLP.DK_L)["label"]
        evaluated = raw
        for processor in handler.learn_processors:
            if processor.is_for_infer():
                evaluated = processor(evaluated.copy())
        label = index.align(learned)
        label_raw = index.align(raw["label"])
        _check_labels_untouched(index.align(handler._infer["label"]), label_raw, handler)
        label_eval = index.align(evaluated["label"])
        values, names = _features(handler)
        block = Block(values, self.window, names, find_transform(self.window_transform, names))
        if not self.keep_frames:
            _release(handler)
        days, instruments = index.days, index.instruments
        universe = np.ones(index.rows.shape, bool) if self.universe is None else universe_grid(days, instruments, self.universe)
        segments = {name: _loaded_span(name, pair, days) for name, pair in self.segments.items()}
        day_aux, stock_aux, columns = load_aux(self.aux, index)
        windows = {name: Block(stock_aux[name], size["window"], columns[name], bars=size["bars"])
                   for name, size in self.aux_windows.items()}
        panel = Panel(blocks={"stock": block, **windows}, rows=index.rows, days=days, instruments=instruments, universe=universe,
                      label=label, label_eval=label_eval, label_raw=label_raw, label_names=[str(c) for c in learned.columns],
                      day_aux=day_aux, stock_aux=stock_aux, missing_rows=self.missing_rows, segments=segments,
                      meta={**self._facts(days), "aux_columns": columns})
        for name in segments:
            if len(panel.view(name).scored_days()) == 0:
                raise DataError(f"segment {name!r}: no stock of universe {self.universe!r} has a row; check instruments, universe and "
                                "the handler's dates")
        return panel

    def _facts(self, days: np.ndarray) -> dict:
        uri = C.dpm.get_data_uri("day")
        cut = {"window_transform": self.window_transform} if self.window_transform else {}
        if any(size != {"window": self.window, "bars": 1} for size in self.aux_windows.values()):
            cut["aux_windows"] = self.aux_windows
        return {**cut, "store": fingerprint(uri), "universe": self.universe, "window": self.window, "missing_rows": self.missing_rows,
                "embargo": self.offset, "label": _expressions(self.handler, "label"), "loaded": [str(days[0]), str(days[-1])],
                "handler": f"{type(self.handler).__module__}.{type(self.handler).__name__}",
                "processors": [f"{type(p).__name__}{_plain(vars(p))}" for p in self.handler.get_all_processors()]}


class _RowIndex:
    """Where each row of a frame indexed by (datetime, instrument) stands on the calendar and in the list of instruments."""

    def __init__(self, index: pd.MultiIndex):
        if len(index) == 0:
            raise DataError("the handler loaded no rows: check its instruments and dates")
        index = index.remove_unused_levels()
        level, codes = index.levels[index.names.index("datetime")], index.codes[index.names.index("datetime")]
        days = level.values.astype("datetime64[D]")
        calendar = trading_calendar()
        self.days = calendar[(calendar >= days.min()) & (calendar <= days.max())]
        place = np.searchsorted(self.days, days)
        stock = index.names.index("instrument")
        names = index.levels[stock].to_numpy().astype(str)
        order = np.argsort(names)
        self.instruments = names[order]
        where = np.empty(len(names), np.int64)
        where[order] = np.arange(len(names))
        self.day, self.stock = place[codes], where[index.codes[stock]]
        self.rows = np.full((len(self.days), len(names)), -1, np.int32)
        self.rows[self.day, self.stock] = np.arange(len(index), dtype=np.int32)
        if np.count_nonzero(self.rows >= 0) != len(index):
            raise DataError(f"{len(index) - np.count_nonzero(self.rows >= 0)} duplicate (datetime, instrument) rows in the handler's frame")
        self.index = index

    def align(self, frame: pd.DataFrame) -> np.ndarray:
        """``[r+1, h]`` float32 in this index' row order; NaN for rows the frame lacks and in the last row.

        Rows of the frame that this index lacks (dropped by an inference processor) are left out.
        """
        aligned = np.full((len(self.index) + 1, frame.shape[1]), np.nan, np.float32)
        if frame.index is self.index or (len(frame) == len(self.index) and frame.index.equals(self.index)):
            aligned[:-1] = frame.to_numpy(np.float32)
            return aligned
        other = _RowIndex(frame.index)
        day, stock = _place(other.days, self.days)[other.day], _place(other.instruments, self.instruments)[other.stock]
        row = np.where((day >= 0) & (stock >= 0), self.rows[day, stock], -1)
        aligned[row[row >= 0]] = frame.to_numpy(np.float32)[row >= 0]
        return aligned


def _place(wanted: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    """Position of each wanted value in an ordered array; -1 where it is not there."""
    found = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[found] == wanted, found, -1)


def _loaded_span(name: str, pair, days: np.ndarray) -> tuple[int, int]:
    """(first, last + 1) of a segment among the loaded days; a few days may lack at either end, where nobody traded."""
    calendar = trading_calendar()
    asked = segment_positions({name: pair}, calendar)[name]
    loaded = np.searchsorted(calendar, days[[0, -1]])
    if max(loaded[0] - asked[0], asked[1] - loaded[1]) > SPARE_DAYS:
        raise ConfigError(f"segment {name!r} [{calendar[asked[0]]}, {calendar[asked[1]]}] lies outside what was loaded ({days[0]} to "
                          f"{days[-1]}): change the handler's start_time and end_time, or the segment")
    first, last = segment_positions({name: pair}, days)[name]
    return first, last + 1


def _features(handler) -> tuple[np.ndarray, list[str]]:
    """Values ``[r+1, f]`` float32 with the NaN row, the handler's own array where it has one, and the names of the columns."""
    values = handler.feature_values() if hasattr(handler, "feature_values") else None
    if values is None:
        features = handler._infer["feature"]
        return _table(features), [str(name) for name in features.columns]
    names = handler._infer.columns[handler._infer.columns.get_loc("feature")].get_level_values(1)
    parts = np.array_split(values, max(len(values) // 16384, 1))
    _refuse_infinite(np.sum(run(lambda part: np.isinf(part).sum(axis=0), parts), axis=0), names)
    return values, [str(name) for name in names]


def _refuse_infinite(counts: np.ndarray, columns: pd.Index) -> None:
    if counts.any():
        found = {str(columns[k]): int(counts[k]) for k in np.flatnonzero(counts)}
        raise DataError(f"infinite features (rows by column): {found}; clip them (RobustZScoreNorm clip_outlier) or drop the columns")


def _table(frame: pd.DataFrame) -> np.ndarray:
    """``[r+1, f]`` float32 with the NaN row, copied some columns at a time."""
    values = np.full((len(frame) + 1, frame.shape[1]), np.nan, np.float32)
    for first in range(0, frame.shape[1], 16):
        part = frame.iloc[:, first:first + 16].to_numpy(np.float32)
        _refuse_infinite(np.isinf(part).sum(axis=0), frame.columns[first:first + 16])
        values[:-1, first:first + 16] = part
    return values


def _release(handler) -> None:
    if hasattr(handler, "release_features"):
        handler.release_features()
        return
    handler._infer = handler._learn = None
    if hasattr(handler, "_data"):
        handler._data = handler._data[["label"]].copy()


def _labels(handler, data_key: str) -> pd.DataFrame:
    """The columns ``("label", ...)`` of the raw or the learning table."""
    try:
        return handler.label_frame(data_key) if hasattr(handler, "label_frame") else handler._get_df_by_key(data_key)[["label"]]
    except AttributeError as error:
        raise ConfigError(_NO_RAW_LABEL.format(type(handler).__name__)) from error


def _check_labels_untouched(inferred: np.ndarray, raw: np.ndarray, handler) -> None:
    """Processors without a `fields_group` show what they did to the labels only afterwards."""
    changed = np.count_nonzero(~((inferred == raw) | (np.isnan(inferred) & np.isnan(raw))))
    if changed:
        names = [type(p).__name__ for p in [*handler.shared_processors, *handler.infer_processors]]
        raise ConfigError(f"the infer processors {names} changed {changed} labels: labels are for learn processors; let them touch "
                          "features only")


def _check_fit_spans(handler, loaders: dict, segments: dict) -> None:
    """Nothing may be fitted on days of a segment that follows ``train``."""
    calendar = trading_calendar()
    positions = segment_positions(segments, calendar)
    if "train" not in positions:
        return
    later = [first for first, _ in positions.values() if first > positions["train"][1]]
    if not later:
        return
    border = pd.Timestamp(calendar[min(later)])
    fitted = {f"processor {type(p).__name__}": p for p in handler.get_all_processors() if hasattr(p, "fit_end_time")}
    fitted.update({f"aux {name!r}": loader for name, loader in loaders.items()
                   if hasattr(loader, "fit_end_time") and getattr(loader, "normalize", True)})
    for name, holder in fitted.items():
        end = holder.fit_end_time
        if end is None or pd.Timestamp(end) >= border:
            raise ConfigError(f"{name} is fitted up to {end or 'the end of the data'}, which reaches into the segment that begins on "
                              f"{border:%Y-%m-%d}: set fit_end_time to the end of train")


def _unloaded(handler):
    """(handler, whether its data are loaded): a configuration is built without loading, so that faults show first."""
    if not isinstance(handler, dict):
        return init_instance_by_config(handler, accept_types=DataHandlerLP), True
    config = copy.deepcopy(handler)
    config["kwargs"] = {**(config.get("kwargs") or {}), "init_data": False}
    try:
        return init_instance_by_config(config, accept_types=DataHandlerLP), False
    except TypeError as error:
        if "init_data" not in str(error):
            raise
    return init_instance_by_config(handler, accept_types=DataHandlerLP), True  # it cannot be built without loading


def _expressions(handler, group: str, names: bool = False) -> list[str] | None:
    """Expressions of a group of columns, or their names; None where the handler does not tell."""
    fields = getattr(getattr(handler, "data_loader", None), "fields", None)
    return [str(one) for one in fields[group][int(names)]] if isinstance(fields, dict) and group in fields else None


def _label_offset_of(handler) -> int | None:
    expressions = _expressions(handler, "label")
    return None if expressions is None else label_offset(expressions)


def _plain(options: dict) -> dict:
    return {k: v for k, v in options.items() if isinstance(v, (str, int, float, bool, type(None)))}
