"""What a store tells at the close of a day: who can be traded, what the benchmark weighs, what its members earned."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.log import get_module_logger

from qlib_ext.data.universe import member_spans, universe_grid
from qlib_ext.errors import DataError
from qlib_ext.market_rules import kind_of
from qlib_ext.portfolio.engine import last_known
from qlib_ext.portfolio.exchange import Bars, limits
from qlib_ext.store.metadata import read_metadata
from qlib_ext.store.schema import INDEX_SIZES

logger = get_module_logger("qlib_ext.closes")
RECENT = 250
"""Trading days since the last close within which a stock counts as listed."""
STALE = 60
"""Trading days without a close after which a holding is said to be stale."""


@dataclass
class Close:
    """What the store tells at the close of a day, arrays ``[n]`` by `codes`: no_buy and no_sell (suspended is both), of the former
    `barred` for what they are (listed lately, in special treatment), benchmark weights; `listed` with a close in the last year, `stale` without one for `STALE` days."""

    codes: np.ndarray
    listed: np.ndarray
    stale: np.ndarray
    barred: np.ndarray
    no_buy: np.ndarray
    no_sell: np.ndarray
    benchmark: np.ndarray | None

    def lay(self, values: pd.Series, missing: float) -> np.ndarray:
        """A series by instrument on `codes` ``[n]``; what it names besides is left out."""
        names = values.index.to_numpy(dtype=str)
        place = np.minimum(self.codes.searchsorted(names), len(self.codes) - 1)
        known, laid = self.codes[place] == names, np.full(len(self.codes), missing)
        laid[place[known]] = values.to_numpy(dtype=float)[known]
        return laid


class Closes:
    """Closes of the store's stocks, or ETFs, read once.

    Args:
        index: universe whose weights (field `<index>_weight`) are the benchmark; without the field its members weigh alike (`source` says
            so). None: no benchmark.
        buy_special: stocks in special treatment may be bought. listed_days: trading days since its first bar from which a stock may be
            bought (those with a bar on the first day of all were listed long ago).
        kind: ``stock``, those of universe `all`, or ``etf``, those of universe `etf`.
    """

    def __init__(self, index: str | None, buy_special: bool = False, listed_days: int = 60, kind: str = "stock"):
        self.field, self.index, self.buy_special = f"{index}_weight", index, buy_special
        codes = [code for code in member_spans("all" if kind == "stock" else kind) if kind_of(code.upper()) == kind]
        bars = Bars(codes, None, None, ["close"], [self.field] if index else [])
        self.codes, self.days = bars.codes, bars.days
        self.close, self.special, listed = bars.lay("close"), bars.lay("is_st") == 1, bars.listed_days()
        self.young = (listed >= 0) & (listed < listed_days)
        up, down, half = limits(bars, bars.factor())
        self.at_upper, self.at_lower = self.close >= up - half, self.close <= down + half
        days = np.arange(len(self.days))[:, None]
        age = days - np.maximum.accumulate(np.where(self.close > 0, days, -RECENT), axis=0)
        self.listed, self.stale = age < RECENT, age >= STALE
        self.weights = bars.lay(self.field) if index else None
        self.weighted = index is not None and bool(np.isfinite(self.weights).any())
        if index is not None and not self.weighted:
            logger.warning(f"the store has no field {self.field}: the members of {index} weigh alike in the benchmark")
            member = universe_grid(self.days, self.codes.tolist(), index)
            self.weights = np.where(member & self.listed, 1.0, np.nan)
            self.weights /= np.maximum(np.nansum(self.weights, axis=1, keepdims=True), 1.0)

    @property
    def source(self) -> str:
        """Where benchmark weights come from."""
        return self.field if self.weighted else f"equal weights of {self.index}"

    def benchmarks(self, days: np.ndarray) -> pd.DataFrame:
        """Daily returns of the index made of its members: `total_return`, weighted as at the close before, and `equal_weight`.

        Without weights in the store only the latter. Adjusted closes, dividends included; suspended stocks return 0. NaN on days without weights the day before.
        """
        last = last_known(np.where(self.close > 0, self.close, np.nan))
        found = np.full((len(days), 2), np.nan)
        for row, t in enumerate(np.searchsorted(self.days, np.asarray(days, "datetime64[D]"))):
            weight = np.nan_to_num(self.weights[t - 1]) if t else np.zeros(1)
            if weight.any():
                moved = np.where(self.close[t] > 0, self.close[t] / last[t - 1] - 1, 0.0)
                moved = np.where(np.isfinite(moved), moved, 0.0)
                found[row] = weight @ moved / weight.sum(), moved[weight > 0].mean()
        frame = pd.DataFrame(found, index=pd.DatetimeIndex(np.asarray(days, "datetime64[ns]")), columns=["total_return", "equal_weight"])
        return frame if self.weighted else frame[["equal_weight"]]

    def at(self, day: np.datetime64) -> Close:
        """The close of a day.

        Raises:
            DataError: the benchmark has no weights on the day, or it is no trading day.
        """
        t = int(np.searchsorted(self.days, day))
        if t == len(self.days) or self.days[t] != day:
            raise DataError(f"{day} is no trading day of the store, which runs from {self.days[0]} to {self.days[-1]}")
        suspended = ~(self.close[t] > 0)
        barred = self.young[t] | (self.special[t] & (not self.buy_special))
        benchmark = None
        if self.index is not None:
            benchmark = np.nan_to_num(self.weights[t])
            if not benchmark.any():
                raise DataError(f"{self.index} has no weights on {day}: choose a later start, or ingest its weights")
        return Close(self.codes, self.listed[t], self.stale[t], barred, suspended | self.at_upper[t] | barred, suspended | self.at_lower[t], benchmark)


def index_scale(index: str) -> float:
    """How many times larger the real index is than this store's; 1 where the store does not say."""
    metadata = read_metadata(Path(C.dpm.get_data_uri("day"))) or {}
    size = metadata.get("index_sizes", {}).get(index)
    return max(INDEX_SIZES[index] / size, 1.0) if size and index in INDEX_SIZES else 1.0
