"""The planted signal of the demo market: its latent states, what they pay, and the true expectation of the 5-day label.

Two latent states per stock, `s` ("pressure") and `v` ("attention"), and one of the whole market, `h` (log volatility), are
independent stationary Gaussian AR(1) processes with unit variance. The drift of day t+1, known at the close of t, is

    alpha[t, n] = scale[n] * (PAY_S * (1 + 0.5 tanh h[t]) * s[t, n]
                              + PAY_V * (1 - 0.5 tanh h[t]) * v[t, n] + PAY_SV * s[t, n] * v[t, n])

so the pay-off is mostly linear, its mixture follows the market's state, and heavy attention makes pressure pay more. `s` shows,
under noise, in the shadows of the daily bar and in past returns (its shocks push the price the other way on their day: a
reversal); `v` shows in volume. Nothing here reads a file or needs Qlib. The constants are fixed: results on the demo market
compare only while they stay as they are.
"""

import numpy as np

HALF_LIFE_S = 10.0
HALF_LIFE_V = 8.0
HALF_LIFE_H = 25.0
PAY_S = 0.0505
PAY_V = 0.026
PAY_SV = 0.014
STATE_TILT = 0.5
MEAN_RETURN = 0.0005
LABEL = "Ref($close,-6)/Ref($close,-1)-1"
LABEL_LAGS = (1, 2, 3, 4, 5)


def persistence(half_life: float) -> float:
    """Coefficient of an AR(1) process whose memory halves in `half_life` days."""
    return float(0.5 ** (1.0 / half_life))


def autoregress(shocks: np.ndarray, half_life: float) -> np.ndarray:
    """Stationary AR(1) of unit variance along axis 0.

    Args:
        shocks: [t, ...] independent standard normal draws; day 0 starts from the stationary distribution.
        half_life: trading days.

    Returns:
        [t, ...] states; day t uses shocks up to t only.
    """
    coefficient = persistence(half_life)
    innovation = np.sqrt(1.0 - coefficient**2)
    states = np.empty_like(shocks)
    states[0] = shocks[0]
    for day in range(1, len(shocks)):
        states[day] = coefficient * states[day - 1] + innovation * shocks[day]
    return states


def drift(pressure: np.ndarray, attention: np.ndarray, market: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Expected idiosyncratic return of the NEXT day.

    Args:
        pressure: [t, n] state s. attention: [t, n] state v. market: [t] state h. scale: [n] daily volatility of the stock.

    Returns:
        [t, n] return as a fraction per day, known at the close of day t.
    """
    tilt = STATE_TILT * np.tanh(market)[:, None]
    linear = PAY_S * (1.0 + tilt) * pressure + PAY_V * (1.0 - tilt) * attention
    return scale * (linear + PAY_SV * pressure * attention)


def expected_label(pressure: np.ndarray, attention: np.ndarray, market: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """True conditional expectation, at the close of day t, of the return from the close of t+1 to the close of t+6.

    Sum over the five label days of E[alpha | states at t]: the stock states decay geometrically, E[tanh h] comes by
    Gauss-Hermite quadrature, and the products separate because the states are independent. First order: compounding within the
    week (some 1e-5, much alike for all stocks) and the symmetric clipping of returns at the price limit are left out. It is
    conditional on trading (a suspended day returns zero).

    Args:
        pressure, attention: [t, n]. market: [t]. scale: [n], as in `drift`.

    Returns:
        [t, n] return over five days, as a fraction.
    """
    decay_s, decay_v, decay_h = persistence(HALF_LIFE_S), persistence(HALF_LIFE_V), persistence(HALF_LIFE_H)
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()
    total_s, total_v, total_sv = np.zeros(len(market)), np.zeros(len(market)), 0.0
    for lag in LABEL_LAGS:
        carried = decay_h**lag
        future = carried * market[:, None] + np.sqrt(1.0 - carried**2) * nodes
        tilt = STATE_TILT * (np.tanh(future) * weights).sum(axis=1)
        total_s += decay_s**lag * (1.0 + tilt)
        total_v += decay_v**lag * (1.0 - tilt)
        total_sv += (decay_s * decay_v) ** lag
    linear = PAY_S * total_s[:, None] * pressure + PAY_V * total_v[:, None] * attention
    return len(LABEL_LAGS) * MEAN_RETURN + scale * (linear + PAY_SV * total_sv * pressure * attention)


def realised_label(adjusted_close: np.ndarray) -> np.ndarray:
    """`Ref($close,-6)/Ref($close,-1)-1` on [t, n] adjusted closes (NaN when not traded); NaN on the last six days."""
    label = np.full(adjusted_close.shape, np.nan)
    label[:-6] = adjusted_close[6:] / adjusted_close[1:-5] - 1.0
    return label
