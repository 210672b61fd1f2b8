"""A small market whose factor returns are known: exposures, industries, caps and returns as arrays."""
import numpy as np

from qlib_ext.risk.estimate import Exposed


def planted(days=300, stocks=150, industries=5, styles=3, noise=0.02, seed=0, hole=0.02):
    """(Exposed, true factor returns [t, 1 + industries + styles], specific returns [t, n]); returns of day t come from exposures of t-1.

    Industry returns obey the constraint on the caps of the day before.
    """
    draw = np.random.default_rng(seed)
    cap = np.exp(draw.normal(22, 1.2, stocks)) * np.exp(np.cumsum(draw.normal(0, 0.01, (days, stocks)), axis=0))
    group = draw.integers(0, industries, stocks)
    style = draw.standard_normal((1, stocks, styles)) + 0.2 * np.cumsum(draw.standard_normal((days, stocks, styles)) / 10, axis=0)
    size = np.array([0.012] + [0.006] * industries + [0.003] * styles)
    factor = draw.standard_normal((days, 1 + industries + styles)) * size
    specific = noise * draw.standard_normal((days, stocks)) * np.exp(draw.normal(0, 0.3, stocks))
    returns = np.full((days, stocks), np.nan)
    style = style.astype(np.float32)
    for t in range(1, days):
        share = np.bincount(group, cap[t - 1], industries) / cap[t - 1].sum()
        factor[t, 1:1 + industries] -= share @ factor[t, 1:1 + industries]
        returns[t] = factor[t, 0] + factor[t, 1 + group] + style[t - 1].astype(float) @ factor[t, 1 + industries:] + specific[t]
    returns[draw.random(returns.shape) < hole] = np.nan
    codes = np.array([f"SH{600000 + n}" for n in range(stocks)])
    exposed = Exposed(np.datetime64("2020-01-01") + np.arange(days), 40, codes, tuple(f"style{k}" for k in range(styles)), style,
                      np.broadcast_to(10.0 * (1 + group), cap.shape).copy(), cap, np.ones(cap.shape, bool), returns)
    return exposed, factor, specific


def design(style: np.ndarray, industry: np.ndarray, industries: int) -> np.ndarray:
    """Exposures ``[n, 1 + industries + k]`` to country, industries (number in `industry`, -1 none) and styles."""
    exposure = np.zeros((len(style), 1 + industries + style.shape[1]))
    exposure[:, 0] = 1.0
    exposure[:, 1 + industries:] = style
    inside = np.flatnonzero(industry >= 0)
    exposure[inside, 1 + industry[inside]] = 1.0
    return exposure
