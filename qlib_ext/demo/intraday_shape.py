"""What the shape of a demo day knows of the returns to come: one tilt for each planted intraday effect.

    tilt_k[t, n] = STRENGTH * g[t, n] + sqrt(1 - STRENGTH^2) * noise_k[t, n]

`g` is the expected label at the close of t under pay-offs of 1, standardised across the listed stocks of the day and cut at 3; `noise_k`
is a Gaussian AR(1) of variance 1 of the tilt's own. A null market has the same tilts and shapes: there nothing pays, so they tell
nothing. Under `drift` they tell what usually pays. Daily bars are made before and do not know of them. Axes: `t` day, `n` stock.
"""

import numpy as np

from qlib_ext.demo import signal
from qlib_ext.demo.market import Market
from qlib_ext.demo.streams import stream

STRENGTH = 0.40
NOISE_DAYS = 10.0
EFFECTS = {
    "skew": ("hf_skew -, hf_down_share +", "large falls, small rises among the minute returns"),
    "early": ("hf_improved_reversal -", "the price rises until 10:00, and gives it back"),
    "tail": ("hf_tail_share -", "a smaller share of the volume after 14:30"),
    "falling": ("hf_outflow_share +", "larger trades in minutes that fall"),
    "rising": ("hf_push_up -", "smaller trades, the more a minute rises"),
    "active": ("hf_buy_intention_share +, hf_buy_intention_intensity +", "more active buying from 09:30 to 10:00"),
    "order": ("hf_buy_intention_share +, hf_buy_intention_intensity +", "more new buy orders from 09:30 to 10:00"),
    "large": ("hf_large_buy_share +, hf_large_buy_intensity +", "larger buy orders, smaller sell orders from 09:30 to 10:00"),
}
"""tilt -> (factors it moves with the sign of their IC, what a high tilt does)."""


def known_returns(market: Market) -> np.ndarray:
    """g [t, n] of the module's formula; NaN outside the listing."""
    ones = np.ones((len(market.days) + len(signal.LABEL_LAGS), len(signal.PARTS)))
    total = sum(signal.expected_parts(market.states, market.static["volatility"], ones).values())
    total = np.where(market.listed, total, np.nan)
    mean, deviation = np.nanmean(total, axis=1, keepdims=True), np.nanstd(total, axis=1, keepdims=True)
    return np.clip((total - mean) / deviation, -3.0, 3.0)


def draw_tilts(market: Market) -> dict[str, np.ndarray]:
    """tilt -> [t, n] about N(0, 1), NaN outside the listing; the beginning of a longer market has the same."""
    known, tilts = known_returns(market), {}
    for number, name in enumerate(EFFECTS):
        noise = signal.autoregress(stream(market.seed, "shape", number).standard_normal(known.shape), NOISE_DAYS)
        tilts[name] = STRENGTH * known + np.sqrt(1.0 - STRENGTH**2) * noise
    return tilts
