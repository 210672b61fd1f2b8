"""The market-state vector of an index: 21 numbers a day from its closes and traded amounts.

For windows d in 5, 10, 20, 30, 60 with `r_t = close_t / close_{t-1} - 1`:

    return_1 = r_t
    return_mean_d = mean(r, d)      return_std_d = std(r, d)
    amount_mean_d = mean(amount, d) / amount_t      amount_std_d = std(amount, d) / amount_t

Windows end at t, standard deviations have ddof 1 (as Qlib's `Std`). Source: Li et al. 2024 (MASTER), the published market columns
`$close/Ref($close,1)-1`, `Mean(...,d)`, `Std(...,d)`, `Mean($amount,d)/$amount`, `Std($amount,d)/$amount`, in that order.
"""

from __future__ import annotations

from typing import List

import numpy as np

from qlib_ext.errors import ShapeError

WINDOWS = (5, 10, 20, 30, 60)
"""Look-back lengths in trading days."""

_TERMS = ("return_mean", "return_std", "amount_mean", "amount_std")
STATE_SIZE = 1 + len(_TERMS) * len(WINDOWS)
"""Columns per index: 21."""


def market_state_names(index_code: str) -> List[str]:
    """Names of the 21 columns of an index, `SH000300:return_1`, `SH000300:return_mean_5`, ..."""
    return [f"{index_code}:return_1"] + [f"{index_code}:{term}_{window}" for window in WINDOWS for term in _TERMS]


def _rolling(values: np.ndarray, window: int) -> np.ndarray:
    """Windows `[t, window]` that end at each day; incomplete ones are NaN."""
    padded = np.concatenate([np.full(window - 1, np.nan), values])
    return np.lib.stride_tricks.sliding_window_view(padded, window)


def market_state(close: np.ndarray, amount: np.ndarray) -> np.ndarray:
    """The 21 columns of one index.

    Args:
        close: `[t]` closing level on consecutive trading days, in any unit.
        amount: `[t]` traded amount (or another measure of activity, such as volume), in any unit.

    Returns:
        float64 `[t, 21]` in the order of `market_state_names`; returns are fractions per day, the rest ratios. A value is NaN
        where its window is incomplete or holds a NaN; a close or amount that is not above zero counts as NaN. Row t uses rows up
        to t only.

    Raises:
        ShapeError: when the two are not vectors of one length.
    """
    close, amount = np.array(close, dtype=np.float64), np.array(amount, dtype=np.float64)
    if close.ndim != 1 or close.shape != amount.shape:
        raise ShapeError(f"close {close.shape} and amount {amount.shape} must be vectors of one length")
    close[~(close > 0)], amount[~(amount > 0)] = np.nan, np.nan
    if not close.size:
        return np.empty((0, STATE_SIZE))
    daily = np.full(close.shape, np.nan)
    daily[1:] = close[1:] / close[:-1] - 1
    columns = [daily]
    for window in WINDOWS:
        returns, amounts = _rolling(daily, window), _rolling(amount, window)
        columns += [returns.mean(axis=1), returns.std(axis=1, ddof=1)]
        columns += [amounts.mean(axis=1) / amount, amounts.std(axis=1, ddof=1) / amount]
    return np.stack(columns, axis=1)
