"""The planted signal of the demo market: its latent states, what they pay, and the true expectation of the 5-day label.

The drift of day t+1, known at the close of t, is the sum of five parts, each times its pay-off factor f_part[t] (1; with the
switch `drift` a fixed path of the date, with `null` 0; with `size_groups` 2 for the groups, which are then bands of size). All AR(1)
states are Gaussian, stationary, of mean 0 and variance 1.

    state     scale[n] * (PAY_S (1 + .5 tanh h[t]) s[t, n] + PAY_V (1 - .5 tanh h[t]) v[t, n] + PAY_SV s[t, n] v[t, n])
    temporal  scale[n] * PAY_T * q[t, n],      q[t] = rho q[t-1] + sqrt(1 - rho^2) u[t] u[t-3]
    lead_lag  scale[n] * PAY_L * l[t, industry of n], 0 for the leaders themselves
    group     PAY_G * z[t, hidden group of n]
    style     PAY_Y * sum_k x[t, n, k] * p[t, k],  k = size, value, volatility, liquidity, momentum

`s` (pressure), `v` (attention) of each stock and `h` (log volatility) of the market are AR(1). `s` shows under noise in the
shadows of the bar, and its shocks push the price the other way on their day: a reversal. `v` shows in volume. `u` is independent
N(0, 1) and shows in the overnight gap: `q` needs the order of days. `l` is an average of the past own shocks of the industry's
largest stocks (at the start). `z` is AR(1); its shocks show in a return that the group shares. The premia `p` are AR(1) with a
half-life of 50 days, so that they change sign; their shocks show in the style's return: styles that won go on, then reverse.
Exposures `x` are fixed (size, volatility, liquidity) or slow AR(1): value shows in book to price, momentum in past own shocks.

Nothing here reads a file or needs Qlib. The constants are fixed: results on the demo market compare only while they stay.
"""

import numpy as np

PARTS = ("state", "temporal", "lead_lag", "group", "style")
STYLES = ("size", "value", "volatility", "liquidity", "momentum")
HALF_LIFE_S = 10.0
HALF_LIFE_V = 8.0
HALF_LIFE_H = 25.0
HALF_LIFE_T = 4.0
HALF_LIFE_L = 4.0
HALF_LIFE_G = 15.0
HALF_LIFE_PREMIUM = 50.0
HALF_LIFE_EXPOSURE = {"size": np.inf, "value": 250.0, "volatility": np.inf, "liquidity": np.inf, "momentum": 60.0}
ORDER_LAG = 3
PAY_S = 0.0305
PAY_V = 0.0159
PAY_SV = 0.0086
PAY_T = 0.0221
PAY_L = 0.0242
PAY_G = 0.00045
PAY_Y = 0.00021
SIZE_GROUPS_PAY = 2.0
STATE_TILT = 0.5
ROTATION_YEARS = 8.0
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


def order_products(marks: np.ndarray) -> np.ndarray:
    """u[t] * u[t-3] of the marks u [t, n], 0 on the first three days: the shocks of `q`, uncorrelated over days."""
    products = np.zeros_like(marks)
    products[ORDER_LAG:] = marks[ORDER_LAG:] * marks[:-ORDER_LAG]
    return products


def payoff_path(days: np.ndarray, drift: bool = False, null: bool = False, size_groups: bool = False) -> np.ndarray:
    """Pay-off factors [t, parts] on days datetime64[D]: 1; with `drift` (1 + cos) / sqrt(1.5) of the date, a fifth of a turn apart for
    each part, mean square 1 over a turn and over the parts of a day, the same for every seed; with `null` 0; with `size_groups` 2 for
    the groups.

    A turn takes eight years, so that what paid best in four years of training pays least in the two that follow a year later: who
    knows the mean pay-offs of 2018-2021 alone has .5 to .6 of the best possible IC in 2023-2024.
    """
    turn = (days - np.datetime64("2015-01-01")).astype(float)[:, None] / (365.25 * ROTATION_YEARS)
    path = (1.0 + np.cos(2.0 * np.pi * (turn + np.arange(len(PARTS)) / len(PARTS)))) / np.sqrt(1.5)
    if not drift:
        path = np.full_like(path, 0.0 if null else 1.0)
    if size_groups:
        path[:, PARTS.index("group")] *= SIZE_GROUPS_PAY
    return path


def daily_parts(states: dict, scale: np.ndarray, path: np.ndarray) -> dict[str, np.ndarray]:
    """Drift of the NEXT day by part, [t, n] as fractions, known at the close of t.

    Args:
        states: pressure, attention, order, lead, group [t, n]; market_state [t]; premium [t, 5]; exposure: style -> [n], [t, n].
        scale: [n] daily volatility of a stock's own noise.
        path: [t, parts] pay-off factors.
    """
    tilt = STATE_TILT * np.tanh(states["market_state"])
    ones = np.ones(len(tilt))
    styles = {name: ones for name in STYLES}
    return _pay(states, scale, (1.0 + tilt, 1.0 - tilt, ones, ones, ones, ones, styles), path)


def expected_parts(states: dict, scale: np.ndarray, path: np.ndarray) -> dict[str, np.ndarray]:
    """True conditional expectation by part, at the close of day t, of the return from the close of t+1 to the close of t+6.

    Sum over the five label days of E[drift | states at t]: every AR(1) state decays geometrically, independent ones multiply
    (s v, x p), E[tanh h] comes by Gauss-Hermite quadrature, and of q only rho^k q remains, because every product to come holds a
    future u of mean 0. First order: compounding within the week (some 1e-5, much alike for all stocks) is left out. Price limits
    do not bend it: `demo.noise` keeps the mean of a clipped return. It is conditional on trading (a suspended day returns zero).

    Args:
        states, scale: as of `daily_parts`. path: [t + 5, parts], the five days after the last one included.

    Returns:
        part -> [t, n] return over five days, as a fraction; the label's expectation is their sum + 5 MEAN_RETURN.
    """
    count = len(states["market_state"])
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    weights = weights / weights.sum()
    h = states["market_state"][:, None]
    half_lives = {"temporal": HALF_LIFE_T, "lead_lag": HALF_LIFE_L, "group": HALF_LIFE_G}
    s, v, sv, others = 0.0, 0.0, 0.0, {name: 0.0 for name in half_lives}
    styles = {name: 0.0 for name in STYLES}
    decay_s, decay_v = persistence(HALF_LIFE_S), persistence(HALF_LIFE_V)
    for lag in LABEL_LAGS:
        factor = dict(zip(PARTS, path[lag : lag + count].T, strict=True))
        carried = persistence(HALF_LIFE_H) ** lag
        tilt = STATE_TILT * (np.tanh(carried * h + np.sqrt(1.0 - carried**2) * nodes) * weights).sum(axis=1)
        s = s + factor["state"] * decay_s**lag * (1.0 + tilt)
        v = v + factor["state"] * decay_v**lag * (1.0 - tilt)
        sv = sv + factor["state"] * (decay_s * decay_v) ** lag
        others = {name: others[name] + factor[name] * persistence(half_lives[name]) ** lag for name in others}
        for name in STYLES:
            decay = persistence(HALF_LIFE_PREMIUM) * persistence(HALF_LIFE_EXPOSURE[name])
            styles[name] = styles[name] + factor["style"] * decay**lag
    sums = (s, v, sv, others["temporal"], others["lead_lag"], others["group"], styles)
    return _pay(states, scale, sums, np.ones((count, len(PARTS))))


def _pay(states: dict, scale: np.ndarray, sums: tuple, path: np.ndarray) -> dict[str, np.ndarray]:
    """The five parts from coefficients [t] of s, v, s v, q, l, z and of each style's x p."""
    s, v, sv, order, lead, group, styles = sums
    factor = dict(zip(PARTS, path.T[:, :, None], strict=True))
    pressure, attention = states["pressure"], states["attention"]
    linear = PAY_S * s[:, None] * pressure + PAY_V * v[:, None] * attention
    style = sum((styles[name] * states["premium"][:, k])[:, None] * states["exposure"][name] for k, name in enumerate(STYLES))
    return {
        "state": factor["state"] * scale * (linear + PAY_SV * sv[:, None] * pressure * attention),
        "temporal": factor["temporal"] * scale * PAY_T * order[:, None] * states["order"],
        "lead_lag": factor["lead_lag"] * scale * PAY_L * lead[:, None] * states["lead"],
        "group": factor["group"] * PAY_G * group[:, None] * states["group"],
        "style": factor["style"] * PAY_Y * style,
    }


def realised_label(adjusted_close: np.ndarray) -> np.ndarray:
    """`Ref($close,-6)/Ref($close,-1)-1` on [t, n] adjusted closes (NaN when not traded); NaN on the last six days."""
    label = np.full(adjusted_close.shape, np.nan)
    label[:-6] = adjusted_close[6:] / adjusted_close[1:-5] - 1.0
    return label
