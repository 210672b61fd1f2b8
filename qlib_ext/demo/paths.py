"""Latent paths of the demo market and the returns made of them, before any price; arrays are [t, n] unless said."""

import numpy as np

from qlib_ext.demo import signal
from qlib_ext.demo.noise import limited_returns, own_shocks
from qlib_ext.demo.stocks import GROUPS, INDUSTRIES
from qlib_ext.demo.streams import stream
from qlib_ext.market_rules import price_limits

MARKET_VOLATILITY = 0.0138
INDUSTRY_VOLATILITY = 0.006
GROUP_VOLATILITY = 0.005
STYLE_VOLATILITY = 0.003
TELLING = 0.6
SLOW_VOLATILITY, BURST_VOLATILITY = 0.50, 0.56
SHADOW_TILT, SHADOW_NOISE = 0.21, 0.45
GAP_OF_RETURN, GAP_OF_MARK = 0.3, 0.35
FREE_DAY_WIDTH, ST_WIDTH = 2.5, 1.25


def make_paths(seed: int, days: np.ndarray, static: dict, status: dict, path: np.ndarray) -> dict:
    """Everything that happens to returns, and what it shows in.

    Args:
        days: [t]. static: of `stocks.draw_stocks`. status: `is_st`, `listed_days`, `board` [n].
        path: [t + 5, parts] pay-off factors.

    Returns:
        states: of `signal`. returns: fractions. beyond: how far beyond a limit the price wanted to go, negative inside.
        gap, upper, lower: fractions of the reference price, of the body's ends. move: |return| in the stock's volatilities, cut
        at 4. middle: standard normal draws for the average price. parts: expected label by part.
    """
    shape = (len(days), len(static["volatility"]))
    bar = stream(seed, "bar").standard_normal((shape[0], 4, shape[1]))
    shocks, pressure_shocks = _shocks(seed, shape)
    states = {
        "pressure": signal.autoregress(pressure_shocks, signal.HALF_LIFE_S),
        "attention": signal.autoregress(stream(seed, "attention").standard_normal(shape), signal.HALF_LIFE_V),
        "market_state": signal.autoregress(stream(seed, "market_state").standard_normal(shape[0]), signal.HALF_LIFE_H),
        "order": signal.autoregress(signal.order_products(bar[:, 0]), signal.HALF_LIFE_T),
        "lead": _leads(shocks, static),
        "exposure": {
            **static["style"],
            "value": signal.autoregress(stream(seed, "value").standard_normal(shape), signal.HALF_LIFE_EXPOSURE["value"]),
            "momentum": signal.autoregress(shocks, signal.HALF_LIFE_EXPOSURE["momentum"]),
        },
    }
    common = _common(seed, static, states, shape)
    center = signal.MEAN_RETURN + common
    center[1:] += sum(signal.daily_parts(states, static["volatility"], path[: shape[0]]).values())[:-1]
    width = _width(seed, static, states, shape)
    up, down = price_limits(status["board"], status["is_st"], status["listed_days"], days[:, None])
    width = width * np.where(np.isinf(up), FREE_DAY_WIDTH, 1.0) * np.where(status["is_st"], ST_WIDTH, 1.0)
    returns, uncut = limited_returns(center, width, shocks, up, down)
    return {
        "states": states,
        "returns": returns,
        "beyond": np.maximum(uncut - up, -down - uncut),
        "gap": GAP_OF_RETURN * returns + GAP_OF_MARK * width * bar[:, 0],
        "upper": 0.45 * width * np.exp(-SHADOW_TILT * states["pressure"] + SHADOW_NOISE * bar[:, 1]),
        "lower": 0.45 * width * np.exp(SHADOW_TILT * states["pressure"] + SHADOW_NOISE * bar[:, 2]),
        "move": np.minimum(np.abs(returns) / static["volatility"], 4.0),
        "middle": bar[:, 3],
        "parts": signal.expected_parts(states, static["volatility"], path),
    }


def _shocks(seed: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Own shocks of the returns, and the pressure's shocks within them."""
    pressure = stream(seed, "pressure").standard_normal(shape)
    return own_shocks(pressure, stream(seed, "noise").standard_normal(shape), stream(seed, "jump").random(shape)), pressure


def _leads(shocks: np.ndarray, static: dict) -> np.ndarray:
    """The average of past own shocks of the leaders of a stock's industry (at the start), of variance 1; 0 for the leaders."""
    follows = np.zeros((INDUSTRIES, len(shocks[0])))
    mean = np.zeros((len(shocks), INDUSTRIES))
    for number in range(INDUSTRIES):
        inside = static["industry"] == number
        leaders = np.flatnonzero(inside & static["leader"])
        if len(leaders):
            mean[:, number] = shocks[:, leaders].sum(axis=1) / np.sqrt(len(leaders))
        follows[number, inside & ~static["leader"]] = 1.0
    return signal.autoregress(mean, signal.HALF_LIFE_L) @ follows


def _common(seed: int, static: dict, states: dict, shape: tuple[int, int]) -> np.ndarray:
    """Returns shared with others: market, industry, hidden group, styles. Adds `group` and `premium` to the states."""
    h = states["market_state"]
    market = MARKET_VOLATILITY * np.exp(0.35 * h - 0.06) * stream(seed, "market").standard_t(6, shape[0]) * np.sqrt(4 / 6)
    draws = stream(seed, "industry").standard_normal((shape[0], INDUSTRIES))
    industry = INDUSTRY_VOLATILITY * np.exp(0.2 * h - 0.02)[:, None] * draws
    group, group_returns = _told(stream(seed, "group").standard_normal((shape[0], 2, GROUPS)), signal.HALF_LIFE_G)
    premium, style_returns = _told(stream(seed, "premium").standard_normal((shape[0], 2, 5)), signal.HALF_LIFE_PREMIUM)
    states["group"], states["premium"] = group[:, static["group"]], premium
    common = static["beta"] * market[:, None] + static["industry_beta"] * industry[:, static["industry"]]
    common += GROUP_VOLATILITY * group_returns[:, static["group"]]
    for k, name in enumerate(signal.STYLES):
        exposure = np.broadcast_to(states["exposure"][name], shape)
        common[1:] += STYLE_VOLATILITY * style_returns[1:, k, None] * exposure[:-1]
    return common


def _told(draws: np.ndarray, half_life: float) -> tuple[np.ndarray, np.ndarray]:
    """AR(1) states [t, k] and returns of variance 1 that tell their shocks under noise, from draws [t, 2, k]."""
    returns = TELLING * draws[:, 0] + np.sqrt(1.0 - TELLING**2) * draws[:, 1]
    return signal.autoregress(np.ascontiguousarray(draws[:, 0]), half_life), returns


def _width(seed: int, static: dict, states: dict, shape: tuple[int, int]) -> np.ndarray:
    """Daily standard deviation of the own noise, mean square the stock's: it clusters slowly, in bursts, with the market."""
    slow = signal.autoregress(stream(seed, "volatility").standard_normal(shape), 40.0)
    burst = signal.autoregress(stream(seed, "burst").standard_normal(shape), 2.0)
    log_width = 0.2 * states["market_state"][:, None] + SLOW_VOLATILITY * slow + BURST_VOLATILITY * burst
    return static["volatility"] * np.exp(log_width - 0.2**2 - SLOW_VOLATILITY**2 - BURST_VOLATILITY**2)
