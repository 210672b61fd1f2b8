"""Qlib's feature handlers, keeping the raw label when the raw frame is dropped.

With ``drop_raw: true`` Qlib frees a third of the memory and loses the raw labels, so that `SignalRecord` stores no label and no
metric can be made. These subclasses keep that one column: change ``module_path`` and nothing else.
"""

from __future__ import annotations

import pandas as pd
from qlib.contrib.data import handler as qlib_handler
from qlib.data.dataset.handler import DataHandlerLP


class KeepsRawLabel:
    """Mixin for a `DataHandlerLP`: ``fetch(col_set="label", data_key=DK_R)`` works with ``drop_raw=True`` too."""

    def process_data(self, with_fit: bool = False) -> None:
        """Qlib's `process_data`, after the label columns were put aside."""
        if self.drop_raw:
            self._raw_label = self._data[["label"]].copy()
        super().process_data(with_fit=with_fit)

    def _get_df_by_key(self, data_key: str = DataHandlerLP.DK_I) -> pd.DataFrame:
        if data_key == self.DK_R and self.drop_raw and hasattr(self, "_raw_label"):
            return self._raw_label
        return super()._get_df_by_key(data_key)

    def fetch(self, selector=slice(None, None), level="datetime", col_set=DataHandlerLP.CS_ALL, data_key=DataHandlerLP.DK_I,
              **kwargs) -> pd.DataFrame:
        """Qlib's `fetch`.

        Raises:
            AttributeError: raw columns other than the label were asked for with ``drop_raw=True`` (the error Qlib raises).
        """
        if data_key == self.DK_R and self.drop_raw and col_set != "label":
            raise AttributeError("drop_raw=True keeps the raw label only: ask col_set='label', or set drop_raw: false")
        return super().fetch(selector, level=level, col_set=col_set, data_key=data_key, **kwargs)


class Alpha158(KeepsRawLabel, qlib_handler.Alpha158):
    """Qlib's Alpha158 (same keywords, columns and values)."""


class Alpha158vwap(KeepsRawLabel, qlib_handler.Alpha158vwap):
    """Qlib's Alpha158vwap: label from vwap to vwap."""


class Alpha360(KeepsRawLabel, qlib_handler.Alpha360):
    """Qlib's Alpha360 (same keywords, columns and values)."""


class Alpha360vwap(KeepsRawLabel, qlib_handler.Alpha360vwap):
    """Qlib's Alpha360vwap: label from vwap to vwap."""
