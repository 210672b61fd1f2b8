"""Factor returns on the demo market against the planted ones: equal where noise is absent, unbiased with it."""
import numpy as np
import pytest
from small_market import market

from qlib_ext.demo import paths, signal
from qlib_ext.demo.stocks import GROUPS, INDUSTRIES
from qlib_ext.demo.streams import stream
from qlib_ext.risk.regression import constrained_least_squares

BURN = 5


@pytest.fixture(scope="module")
def planted():
    """True exposures ``[t, n, k]`` (beta, industries, groups, styles of the day before) and their returns ``[t, k]``, drawn again."""
    made = market()
    seed, static, days, stocks = made.seed, made.static, len(made.days), len(made.instruments)
    level = made.states["market_state"]
    returns = [(paths.MARKET_VOLATILITY * np.exp(0.35 * level - 0.06) * stream(seed, "market").standard_t(6, days) * np.sqrt(4 / 6))[:, None],
               paths.INDUSTRY_VOLATILITY * np.exp(0.2 * level - 0.02)[:, None] * stream(seed, "industry").standard_normal((days, INDUSTRIES)),
               paths.GROUP_VOLATILITY * paths._told(stream(seed, "group").standard_normal((days, 2, GROUPS)), signal.HALF_LIFE_G)[1],
               paths.STYLE_VOLATILITY * paths._told(stream(seed, "premium").standard_normal((days, 2, 5)), signal.HALF_LIFE_PREMIUM)[1]]
    exposure = np.zeros((days, stocks, 1 + INDUSTRIES + GROUPS + 5))
    exposure[:, :, 0] = static["beta"]
    exposure[:, np.arange(stocks), 1 + static["industry"]] = static["industry_beta"]
    exposure[:, np.arange(stocks), 1 + INDUSTRIES + static["group"]] = 1.0
    for k, name in enumerate(signal.STYLES):
        style = np.broadcast_to(made.states["exposure"][name], (days, stocks))
        exposure[1:, :, 1 + INDUSTRIES + GROUPS + k] = style[:-1]
    return made, exposure, np.concatenate(returns, axis=1)


def estimate(exposure, returns, weight):
    """Coefficients of the factors anybody is exposed to, and which they are; groups sum to a constant that nothing else gives."""
    there = (exposure != 0).any(axis=0)
    return constrained_least_squares(exposure[:, there], returns, weight), there


def test_without_noise_true_exposures_give_the_planted_returns_back(planted):
    made, exposure, factor = planted
    common = paths._common(made.seed, made.static, {**made.states}, exposure.shape[:2])
    found = 0
    for t in range(BURN, len(factor), 23):
        np.testing.assert_allclose(exposure[t] @ factor[t], common[t], atol=1e-12)          # these are the planted returns
        got, there = estimate(exposure[t], common[t], np.sqrt(made.static["volatility"]))
        if got is not None:
            np.testing.assert_allclose(got, factor[t, there], atol=1e-9)
            found += 1
    assert found > 10


def test_with_noise_the_errors_are_those_that_least_squares_promises(planted):
    made, exposure, factor = planted
    prices = made.adjusted_close()
    score = []
    for t in range(BURN + 1, len(factor)):
        returns = prices[t] / prices[t - 1] - 1
        used = np.isfinite(returns) & ~made.is_st[t] & (np.abs(returns) < 0.09)
        x = exposure[t, used]
        there = (x != 0).sum(axis=0) > 1
        x = x[:, there]
        weight = 1 / made.static["volatility"][used] ** 2
        got = constrained_least_squares(x, returns[used], weight)
        if got is None:
            continue
        left = returns[used] - x @ got
        spread = (weight @ left**2) / (used.sum() - x.shape[1])
        error = np.sqrt(np.diag(np.linalg.inv((x * weight[:, None]).T @ x)) * spread)
        score.append(((got - factor[t, there]) / error)[np.r_[0, -5:0]])                     # the market and the five styles
    score = np.array(score)
    assert len(score) > 200 and np.abs(score[:, 1:].mean(axis=0)).max() < 4 / np.sqrt(len(score)) + 0.25   # the signal's drift is in it
    assert 0.7 < score.std() < 1.4
