"""The six daily fields as they are, for models that read raw bars, and the groups that their stocks are put in."""

from __future__ import annotations

from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.contrib.data.handler import _DEFAULT_LEARN_PROCESSORS, check_transform_proc
from qlib.data.dataset.handler import DataHandlerLP
from qlib.log import get_module_logger

from qlib_ext.data.field_reader import FieldReader
from qlib_ext.data.handler import _FormulaHandler
from qlib_ext.data.universe import universe_spans
from qlib_ext.data.window import PRICE_VOLUME
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.feature_files import has_values

logger = get_module_logger("qlib_ext.price_volume")
AMOUNT_DAYS = 60
"""Trading days whose mean amount stands in for a market value; a third of them must be known."""
LABEL = ["Ref($close, -6) / Ref($close, -1) - 1"], ["LABEL0"]
SIZES = {"float_cap": ("float_cap",), "total_cap": ("total_cap",), "amount": ("close", "volume")}


class _SixFields(DataHandlerLP):
    """The columns `PRICE_VOLUME`, and the 5-day label."""

    def __init__(self, instruments="all", start_time=None, end_time=None, freq="day", infer_processors=(),
                 learn_processors=_DEFAULT_LEARN_PROCESSORS, fit_start_time=None, fit_end_time=None, process_type=DataHandlerLP.PTYPE_A,
                 filter_pipe=None, inst_processors=None, label=LABEL, **kwargs):
        infer, learn = (check_transform_proc(list(one), fit_start_time, fit_end_time) for one in (infer_processors, learn_processors))
        loader = {"class": "QlibDataLoader", "kwargs": {
            "config": {"feature": ([f"${name.lower()}" for name in PRICE_VOLUME], list(PRICE_VOLUME)), "label": label},
            "filter_pipe": filter_pipe, "freq": freq, "inst_processors": inst_processors}}
        super().__init__(instruments=instruments, start_time=start_time, end_time=end_time, data_loader=loader, infer_processors=infer,
                         learn_processors=learn, process_type=process_type, **kwargs)


class PriceVolume(_FormulaHandler, _SixFields):
    """Open, high, low, close, vwap and volume of the day, adjusted and otherwise as stored; NaN on suspended days.

    Keywords are those of `qlib_ext.data.handler.Alpha158`. The levels mean nothing across stocks: give the dataset
    ``window_transform: price_volume_zscore`` and no infer processors. Values before the first day of training fill its windows:
    let `start_time` lie as many trading days before.
    """


class _StockValues:
    """A loader of one value for each stock and day, from field files."""

    per_stock = True
    column = ""

    def _fields(self) -> Tuple[str, ...]:
        raise NotImplementedError

    def _values(self, reader: FieldReader, codes: Sequence[str]) -> np.ndarray:
        """``[t, n]`` of all days of the reader."""
        raise NotImplementedError

    def load(self, days: Sequence, instruments: Sequence[str]) -> Tuple[np.ndarray, List[str]]:
        """float32 `[t, n, 1]` of `days [t]` (trading days) and `instruments [n]`, and the name of the column; NaN unknown.

        Raises:
            DataError: none of the instruments has a value on any of the days, or a field file is damaged.
        """
        reader = FieldReader({code: [] for code in instruments}, None, pd.Timestamp(max(days)), list(self._fields()))
        values = self._values(reader, instruments)[reader.calendar.get_indexer(pd.DatetimeIndex(np.asarray(days, "datetime64[ns]")))]
        if not np.isfinite(values).any():
            raise DataError(f"{type(self).__name__}: none of {len(instruments)} instruments has {' and '.join(self._fields())} on any of "
                            f"{len(values)} days: ingest a store with it, or group by something else")
        return values[..., None].astype(np.float32), [self.column]


class MarketCapLoader(_StockValues):
    """Logarithm of a stock's market value in CNY at the close, for groups by size; NaN unknown.

    A suspended stock keeps the value of its last close.

    Args:
        by: ``float_cap`` or ``total_cap`` (fields of the store), ``amount`` (mean value traded in the last 60 trading days, close x
            volume, from 20 known ones on), or ``auto``: the first of these that the store has, with a warning where it is `amount`.

    Raises:
        ConfigError: none of these. DataError (`check`): a field that no stock has.
    """

    column = "log_cap"

    def __init__(self, by: str = "auto") -> None:
        if by != "auto" and by not in SIZES:
            raise ConfigError(f"MarketCapLoader: by={by!r} is unknown; choose auto or one of {list(SIZES)}")
        self.by = by

    def check(self) -> None:
        """The store has what is asked for."""
        if self.by in ("float_cap", "total_cap") and not _held(self.by):
            raise DataError(f"MarketCapLoader: no stock of the store has {self.by}: ingest float_shares_monthly, or choose by: auto")

    def _fields(self) -> Tuple[str, ...]:
        if self.by != "auto":
            return SIZES[self.by]
        found = next((name for name in ("float_cap", "total_cap") if _held(name)), "amount")
        if found == "amount":
            logger.warning(f"the store has no market values (float_cap, total_cap): stocks are grouped by what was traded of them in "
                           f"{AMOUNT_DAYS} days")
        return SIZES[found]

    def _values(self, reader: FieldReader, codes: Sequence[str]) -> np.ndarray:
        if len(reader.fields) == 1:
            values = reader.lay(reader.fields[0], codes, carried=True)
        else:                                               # adjusted close x adjusted volume: the factors cancel
            traded = pd.DataFrame(reader.lay("close", codes) * reader.lay("volume", codes))
            values = traded.rolling(AMOUNT_DAYS, min_periods=AMOUNT_DAYS // 3).mean().to_numpy()
        return np.log(np.where(values > 0, values, np.nan))


class IndustryLoader(_StockValues):
    """Number of a stock's industry (field `industry` of the store) plus 1, so that none of them is 0; NaN unknown."""

    column = "industry"

    def check(self) -> None:
        """The store has industries.

        Raises:
            DataError: it has not.
        """
        if not _held("industry"):
            raise DataError("IndustryLoader: no stock of the store has the field industry: ingest the table industry")

    def _fields(self) -> Tuple[str, ...]:
        return ("industry",)

    def _values(self, reader: FieldReader, codes: Sequence[str]) -> np.ndarray:
        return reader.lay("industry", codes, carried=True) + 1


def _held(field: str) -> bool:
    """Whether any stock of the store in use has a field."""
    features = Path(C.dpm.get_data_uri("day")) / "features"
    return any(has_values(features, code, field) for code in universe_spans("all"))
