"""Qlib's feature handlers with a smaller memory: change ``module_path`` and nothing else.

With ``drop_raw: true`` Qlib loses the raw labels, so that `SignalRecord` stores no label and no metric can be made; these subclasses
keep that one column. And where the learn processors touch labels only (`fields_group: label`), the learning table shares the
features of the inference table: it is put together when somebody asks for it, not held as a second copy.
"""

from __future__ import annotations

import pandas as pd
from qlib.contrib.data import handler as qlib_handler
from qlib.data.dataset.handler import DataHandlerLP


class LeanHandler:
    """Mixin for a `DataHandlerLP`; `label_frame(key)` gives the raw or the learning labels without the features."""

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


class Alpha158(LeanHandler, qlib_handler.Alpha158):
    """Qlib's Alpha158 (same keywords, columns and values)."""


class Alpha158vwap(LeanHandler, qlib_handler.Alpha158vwap):
    """Qlib's Alpha158vwap: label from vwap to vwap."""


class Alpha360(LeanHandler, qlib_handler.Alpha360):
    """Qlib's Alpha360 (same keywords, columns and values)."""


class Alpha360vwap(LeanHandler, qlib_handler.Alpha360vwap):
    """Qlib's Alpha360vwap: label from vwap to vwap."""
