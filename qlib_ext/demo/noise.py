"""Own noise of stocks, and daily price limits that leave the conditional mean of a return as it is; arrays are [t, n]."""

import numpy as np
from scipy.special import ndtr

REVERSAL = -0.45
JUMP_CHANCE = 0.05
JUMP_MEAN = 2.7
JUMP_DEVIATION = 1.7
LARGEST_CENTER = 0.8


def own_shocks(pressure_shocks: np.ndarray, calm: np.ndarray, jump: np.ndarray) -> np.ndarray:
    """Shocks of mean 0 and variance 1: the pressure's shocks turned round (a reversal) and skewed news.

    Args:
        pressure_shocks, calm: standard normal draws. jump: uniform draws; below JUMP_CHANCE the news comes from the wide, upward
            part of a mixture of two normal distributions.
    """
    (chance, mean, deviation), (_, calm_mean, calm_deviation) = _mixture()
    news = np.where(jump < chance, mean + deviation * calm, calm_mean + calm_deviation * calm)
    return REVERSAL * pressure_shocks + np.sqrt(1.0 - REVERSAL**2) * news


def limited_returns(center: np.ndarray, width: np.ndarray, shocks: np.ndarray, up: np.ndarray, down: np.ndarray):
    """Returns cut at the price limits, with a conditional mean of `center` all the same.

    The cut takes more from one tail than from the other, so the distribution is moved first by the c that solves
    E[cut(center + c + width * shock)] = center, in closed form for the mixture of `own_shocks`: nothing in a stock's width or
    limits foretells its return. Centers beyond 0.8 of a limit are drawn back to it.

    Args:
        center, width: fractions. shocks: of `own_shocks`. up, down: limits as positive fractions, inf for none.

    Returns:
        (returns, uncut): the uncut return says how far beyond the limit the price wanted to go.
    """
    center = np.clip(center, -LARGEST_CENTER * down, LARGEST_CENTER * up)
    move = np.zeros_like(center)
    touched = np.minimum(up - center, down + center) < 9.0 * width
    move[touched] = _compensation(*(np.broadcast_to(values, center.shape)[touched] for values in (center, width, up, down)))
    uncut = center + move + width * shocks
    return np.clip(uncut, -down, up), uncut


def _mixture() -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """(weight, mean, standard deviation) of the two kinds of news; mean 0 and variance 1 together."""
    calm = 1.0 - JUMP_CHANCE
    mean = -JUMP_CHANCE * JUMP_MEAN / calm
    variance = (1.0 - JUMP_CHANCE * (JUMP_DEVIATION**2 + JUMP_MEAN**2)) / calm - mean**2
    return (JUMP_CHANCE, JUMP_MEAN, JUMP_DEVIATION), (calm, mean, float(np.sqrt(variance)))


def _compensation(center: np.ndarray, width: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """The c of `limited_returns` by Newton's method, [m]."""
    move = np.zeros_like(center)
    for _ in range(8):
        mean, inside = _cut_mean(center + move, width, up, down)
        move = move + (center - mean) / np.maximum(inside, 0.1)
    return move


def _cut_mean(center: np.ndarray, width: np.ndarray, up: np.ndarray, down: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of center + width * shock cut at [-down, up], and the chance that it lies inside; both [m]."""
    mean, inside = np.zeros_like(center), np.zeros_like(center)
    for chance, location, deviation in _mixture():
        spread = width * np.sqrt(REVERSAL**2 + (1.0 - REVERSAL**2) * deviation**2)
        middle = center + width * np.sqrt(1.0 - REVERSAL**2) * location
        low, high = (-down - middle) / spread, (up - middle) / spread
        below, above = ndtr(low), ndtr(-high)
        density = (np.exp(-0.5 * low**2) - np.exp(-0.5 * high**2)) / np.sqrt(2.0 * np.pi)
        here = 1.0 - below - above
        mean += chance * (up * above - down * below + middle * here + spread * density)
        inside += chance * here
    return mean, inside
