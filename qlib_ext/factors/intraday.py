"""The ten high-frequency factors: what each is, its options, and its value of one day. Pure formulas, no files.

A day's value uses that day alone (large orders: thresholds from days before). Means over days, orthogonalisation and the sign with which a
report prints a factor come later (`qlib_ext.factors.intraday_average`, `SIGNS`). Null: it cannot be computed; nothing becomes 0 for want
of data. Bars, trades and orders are frames in the form of `qlib_ext.store.intraday`, with a column ``date``.

Sources: public summaries of the Haitong series on high-frequency factors (numbers 19, 25, 64 and two reports on orders and trades of 2019);
what they leave open is an option, and its default this project's choice.
"""

from __future__ import annotations

from qlib_ext.factors.intraday_bars import bar_values
from qlib_ext.factors.intraday_features import BLOCK_FEATURES, DAY_FEATURES, block_features, day_features
from qlib_ext.factors.intraday_options import (BAR_FACTORS, FACTORS, LARGE_ORDER_FACTORS, NEEDS, PROXIES, SIGNS, TRADE_FACTORS, VERSION,
                                               IntradayOptions, named)
from qlib_ext.factors.intraday_trades import order_sizes, thresholds, trade_values, without_auction

__all__ = ["BAR_FACTORS", "BLOCK_FEATURES", "DAY_FEATURES", "FACTORS", "LARGE_ORDER_FACTORS", "NEEDS", "PROXIES", "SIGNS", "TRADE_FACTORS",
           "VERSION", "IntradayOptions", "bar_values", "block_features", "day_features", "named", "order_sizes", "thresholds",
           "trade_values", "without_auction"]
