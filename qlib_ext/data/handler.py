"""Qlib's feature handlers with a smaller memory: change ``module_path`` and nothing else.

With ``drop_raw: true`` Qlib loses the raw labels, so that `SignalRecord` stores no label and no metric can be made; these
subclasses keep that one column. And where the learn processors touch labels only (`fields_group: label`), the learning table shares the
features of the inference table: it is put together when somebody asks for it, not held as a second copy.

Before anything is loaded they hold their expressions against the store, where Qlib would go on with columns of NaN that `Fillna`
turns into 0. Refused: no $factor (nobody can say whether prices are adjusted), no price or no volume, a field that a label or
every feature needs, a name that the schema does not know, a damaged close, volume or factor, a universe without members. Warned
of by name: features that need any other field ($vwap: Alpha158's VWAP0), and a store without $change (Qlib's exchange then knows
no price limits).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Callable, Iterable

import pandas as pd
from qlib.config import C
from qlib.contrib.data import handler as qlib_handler
from qlib.data import D
from qlib.data.dataset.handler import DataHandlerLP
from qlib.log import get_module_logger

from qlib_ext.data.universe import list_universes, member_spans
from qlib_ext.errors import DataError
from qlib_ext.store.feature_files import damage, first_few, has_values
from qlib_ext.store.schema import FIELDS, INDEX_NAMES, PRICES

logger = get_module_logger("qlib_ext.handler")
NEEDED = {*PRICES, "volume", "factor"}
NO_CHANGE = "no instrument has $change: Qlib's exchange would let every order pass the price limits"


def field_names(expressions: Iterable) -> set[str]:
    """Names of the store's fields in some expressions."""
    return {name.lower() for expression in expressions for name in re.findall(r"(?<!\$)\$(\w+)", str(expression))}


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
    """Mixin for a `DataHandlerLP`; `label_frame(key)` gives the raw or the learning labels without the features."""

    needs = ("factor",)

    def setup_data(self, *arguments, **options) -> None:
        """Qlib's `setup_data`, after a look at the store.

        Raises:
            ConfigError: the store has no universe of the name of `instruments`.
            DataError: the universe has no members, no instrument has a field that is needed, or a close, volume or factor is
                damaged; see the module's text.
        """
        self.check_store()
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

    def process_data(self, with_fit: bool = False) -> None:
        """Qlib's `process_data`; see the module's text for what differs."""
        self._raw_label = self._data[["label"]].copy() if self.drop_raw else None
        self._learned = None
        processors = self.learn_processors
        if self.process_type != self.PTYPE_A or any(getattr(p, "fields_group", None) != "label" for p in processors):
            super().process_data(with_fit=with_fit)
            return
        self.learn_processors = []
        try:
            super().process_data(with_fit=with_fit)  # without learn processors the learning table is the inference table
        finally:
            self.learn_processors = processors
        if self.drop_raw:  # an untouched column would keep the whole raw table alive
            for column in self._infer[["label"]].columns:
                self._infer.isetitem(self._infer.columns.get_loc(column), self._infer[column].to_numpy(copy=True))
        self._learned = self._run_proc_l(self._infer[["label"]].copy(), processors, with_fit=with_fit, check_for_infer=False)

    def label_frame(self, data_key: str) -> pd.DataFrame:
        """Columns ``("label", ...)`` of the raw (DK_R) or learning table (DK_L).

        Raises:
            AttributeError: DK_R was dropped before it could be kept.
        """
        if data_key == self.DK_R and self.drop_raw:
            if getattr(self, "_raw_label", None) is None:
                raise AttributeError("the raw labels were not kept: call setup_data")
            return self._raw_label
        if data_key == self.DK_L and getattr(self, "_learned", None) is not None:
            return self._learned
        return self._get_df_by_key(data_key)[["label"]]

    def release_features(self) -> None:
        """Free every feature; the labels stay."""
        if not self.drop_raw:
            self._data = self._data[["label"]].copy()
        self._infer = self._learn = None

    def _get_df_by_key(self, data_key: str = DataHandlerLP.DK_I) -> pd.DataFrame:
        if data_key != self.DK_L or getattr(self, "_learned", None) is None:
            return super()._get_df_by_key(data_key)
        learned = self._learned
        frame = self._infer if len(learned) == len(self._infer) else self._infer.loc[learned.index]
        frame = frame.copy(deep=False)
        for column in learned.columns:
            frame.isetitem(frame.columns.get_loc(column), learned[column].to_numpy())
        return frame

    def fetch(self, selector=slice(None, None), level="datetime", col_set=DataHandlerLP.CS_ALL, data_key=DataHandlerLP.DK_I,
              **kwargs) -> pd.DataFrame:
        """Qlib's `fetch`; with ``drop_raw=True`` it still answers ``col_set="label", data_key=DK_R``.

        Raises:
            AttributeError: raw columns other than the label were asked for with ``drop_raw=True`` (the error Qlib raises).
        """
        if col_set == "label" and data_key in (self.DK_R, self.DK_L):
            labels = self.label_frame(data_key)
            return self._fetch_data(labels, selector=selector, level=level, col_set=col_set, **kwargs).copy()
        return super().fetch(selector, level=level, col_set=col_set, data_key=data_key, **kwargs)


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


class Alpha158(LeanHandler, qlib_handler.Alpha158):
    """Qlib's Alpha158 (same keywords, columns and values)."""


class Alpha158vwap(LeanHandler, qlib_handler.Alpha158vwap):
    """Qlib's Alpha158vwap: label from vwap to vwap."""


class Alpha360(LeanHandler, qlib_handler.Alpha360):
    """Qlib's Alpha360 (same keywords, columns and values)."""


class Alpha360vwap(LeanHandler, qlib_handler.Alpha360vwap):
    """Qlib's Alpha360vwap: label from vwap to vwap."""
