"""The peer of `risk.py`: six styles of prices and turnover, factor returns and covariances with pandas' own vectorised windows.

Frames are [day x stock]. An exponentially weighted window is pandas' endless one less its own value so many days ago. What has no
vectorised form (regressions) loops over days in numpy. Numbers are those of `qlib_ext.risk`; there is no eigenvalue adjustment.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from qlib_ext.risk.covariance import CovarianceOptions

Frame = pd.DataFrame
MONTH, YEAR, TWO_YEARS = 21, 252, 504


# ---- windows --------------------------------------------------------------------------------------------------------------------
def window_sum(frame: Frame, window: int, half_life: float) -> Frame:
    """Sum of 2^(-age / half_life) x over a window; no NaN."""
    whole = frame.ewm(halflife=half_life).sum()
    return whole - 0.5 ** (window / half_life) * whole.shift(window, fill_value=0.0)


def window_count(mask: Frame, window: int) -> Frame:
    """Days known in a window."""
    total = mask.cumsum()
    return total - total.shift(window, fill_value=0.0)


def market_return(returns: Frame, cap: Frame, members: Frame) -> pd.Series:
    """Return of the members, weighted by the cap of the day before; NaN on the first day."""
    weight = cap.where(members).shift(1)
    return (weight * returns).sum(axis=1) / weight.where(returns.notna()).sum(axis=1)


def volatilities(returns: Frame, market: pd.Series) -> dict[str, Frame]:
    """BETA, HSIGMA and DASTD."""
    mask, x = returns.notna().astype(float), returns.fillna(0.0)
    squares, count = x * x, window_count(mask, YEAR)
    weight, first, second = (window_sum(part, YEAR, 42) for part in (mask, x, squares))
    dastd = np.sqrt((second / weight - (first / weight) ** 2).clip(lower=0.0)).where(count >= 42)
    there, market = market.notna().astype(float), market.fillna(0.0)
    mask, x, squares = (part.mul(there, axis=0) for part in (mask, x, squares))
    count = window_count(mask, YEAR)
    other = mask.mul(market, axis=0)
    parts = (mask, other, x, other.mul(market, axis=0), x.mul(market, axis=0), squares)
    weight, sx, sy, sxx, sxy, syy = (window_sum(part, YEAR, 63) for part in parts)
    mx, my = sx / weight, sy / weight
    vx, cov, vy = sxx / weight - mx * mx, sxy / weight - mx * my, syy / weight - my * my
    slope = (cov / vx).where((count >= 63) & (vx > 1e-12 * sxx / weight))
    return {"BETA": slope, "HSIGMA": np.sqrt((vy - slope * cov).clip(lower=0.0)), "DASTD": dastd}


def log_return_descriptors(returns: Frame) -> dict[str, Frame]:
    """RSTR and CMRA."""
    logs = np.log1p(returns)
    mask, x = logs.notna().astype(float), logs.fillna(0.0)
    before, known = x.shift(MONTH, fill_value=0.0), mask.shift(MONTH, fill_value=0.0)
    rstr = window_sum(before, TWO_YEARS, 126) / window_sum(known, TWO_YEARS, 126)
    path = x.cumsum()
    highest = lowest = path.shift(MONTH, fill_value=0.0)
    for months in range(2, 13):
        earlier = path.shift(months * MONTH, fill_value=0.0)
        highest, lowest = np.maximum(highest, earlier), np.minimum(lowest, earlier)
    return {"RSTR": rstr.where(window_count(known, TWO_YEARS) >= 126),
            "CMRA": (highest - lowest).where(window_count(mask, YEAR) >= 126)}


def turnover_descriptor(turnover: Frame, months: int) -> Frame:
    """STOM (1), STOQ (3), STOA (12)."""
    mean = MONTH * turnover.rolling(months * MONTH, min_periods=months * MONTH // 2).mean()
    return np.log(mean.where(mean > 0))


# ---- across stocks --------------------------------------------------------------------------------------------------------------
def winsorize(value: Frame, members: Frame) -> Frame:
    """Cut at the members' median +- 3 robust deviations."""
    held = value.where(members).to_numpy()
    center = np.nanmedian(held, axis=1, keepdims=True)                      # numpy's, which is faster than `DataFrame.median`
    reach = 3 * 1.4826 * np.nanmedian(np.abs(held - center), axis=1, keepdims=True)
    low, high = (np.where(reach > 0, center + side * reach, side * np.inf) for side in (-1, 1))
    return Frame(np.clip(value.to_numpy(), low, high), value.index, value.columns)


def standardize(value: Frame, members: Frame, cap: Frame) -> Frame:
    """Members' cap-weighted mean 0, deviation 1; `cap` is NaN but for members."""
    weight = cap.where(value.notna())
    center, deviation = (weight * value).sum(axis=1) / weight.sum(axis=1), value.where(members).std(axis=1, ddof=0)
    return value.sub(center, axis=0).div(deviation.where(deviation > 1e-9 * center.abs()), axis=0)


def orthogonalize(value: Frame, others: list[Frame], members: Frame, root: Frame) -> Frame:
    """Residual of the day's regression on a constant and other exposures, weights `root` (of the cap), fitted on the members."""
    used = members & value.notna()
    for other in others:
        used &= other.notna()
    weight = root.where(used)
    scaled = [weight, *(weight * other for other in others)]
    squared = np.empty((len(value), len(scaled), len(scaled)))
    for a, left in enumerate(scaled):
        for b in range(a, len(scaled)):
            squared[:, a, b] = squared[:, b, a] = (left if b == 0 else left * others[b - 1]).sum(axis=1)
    mixed = np.stack([(left * value).sum(axis=1) for left in scaled], axis=1)
    beta = (np.linalg.pinv(squared, rcond=1e-12, hermitian=True) @ mixed[:, :, None])[:, :, 0]
    left = value.sub(beta[:, 0], axis=0)
    for other, slope in zip(others, beta.T[1:]):
        left -= other.mul(slope, axis=0)
    return left


def fill(value: Frame, size: Frame, group: np.ndarray, members: Frame, root: Frame) -> Frame:
    """Holes from the day's regression on industry and size: sums by day and industry, slope within industries."""
    hole = np.nonzero((value.isna() & size.notna()).to_numpy())
    used = np.nonzero((members & value.notna() & size.notna()).to_numpy())
    groups, width = group.max() + 1, len(value)
    x, y, weight = size.to_numpy()[used], value.to_numpy()[used], root.to_numpy()[used]
    sums = Frame({"w": weight, "x": weight * x, "y": weight * y, "xx": weight * x * x, "xy": weight * x * y})
    sums = sums.groupby(used[0] * groups + group[used], sort=False).sum().reindex(np.arange(width * groups), fill_value=0.0)
    w, sx, sy, sxx, sxy = sums.to_numpy().reshape(width, groups, 5).transpose(2, 0, 1)          # [t, g] each
    with np.errstate(invalid="ignore", divide="ignore"):
        whole = w.sum(axis=1, keepdims=True)
        mean_x, mean_y = (np.where(w > 0, part / w, part.sum(axis=1, keepdims=True) / whole) for part in (sx, sy))
        spread = (sxx - sx * mean_x).sum(axis=1)
        slope = np.where(spread > 1e-12 * whole[:, 0], (sxy - sx * mean_y).sum(axis=1) / spread, 0.0)
    day, mine = hole[0], group[hole]
    out = value.to_numpy(copy=True)
    out[hole] = mean_y[day, mine] + slope[day] * (size.to_numpy()[hole] - mean_x[day, mine])
    return Frame(out, value.index, value.columns)


def style_exposures(returns: Frame, daily_returns: Frame, turnover: Frame, cap: Frame, members: Frame, industry: Frame,
                    first: int = 0) -> dict[str, Frame]:
    """The six styles from row `first` on."""
    market = market_return(daily_returns, cap, members & (cap > 0))
    raw = {**volatilities(daily_returns, market), **log_return_descriptors(returns)}
    raw.update({name: turnover_descriptor(turnover, months) for name, months in (("STOM", 1), ("STOQ", 3), ("STOA", 12))})
    cap, members = cap.iloc[first:], members.iloc[first:]
    members = members & (cap > 0)
    held, root = cap.where(members), np.sqrt(cap.where(members))

    def scaled(value: Frame) -> Frame:
        return standardize(value, members, held)

    codes, names = pd.factorize(industry.iloc[first:].to_numpy().ravel())
    group = np.where(codes < 0, len(names), codes).reshape(cap.shape)
    raw = {name: scaled(winsorize(value.iloc[first:], members)) for name, value in raw.items()}

    def combined(**weights: float) -> Frame:
        total = sum(weight * raw[name].fillna(0.0) for name, weight in weights.items())
        return scaled(total / sum(weight * raw[name].notna() for name, weight in weights.items()).replace(0.0, np.nan))

    def common(value: Frame) -> Frame:                      # unknown on days on which fewer than half of the members have it
        rare = (value.notna() & members).sum(axis=1) < 0.5 * members.sum(axis=1)
        return value.mask(rare, axis=0) if rare.any() else value

    size = scaled(winsorize(np.log(cap.where(cap > 0)), members))
    filled = {name: fill(common(value), size, group, members, root) for name, value in (
        ("beta", raw["BETA"]), ("momentum", raw["RSTR"]), ("liquidity", combined(STOM=0.35, STOQ=0.35, STOA=0.30)),
        ("residual_volatility", combined(DASTD=0.74, CMRA=0.16, HSIGMA=0.10)))}
    cube = winsorize(orthogonalize(size**3, [size], members, root), members)
    residual = orthogonalize(filled["residual_volatility"], [filled["beta"], size], members, root)
    made = {"size": size, "beta": scaled(filled["beta"]), "momentum": scaled(filled["momentum"]),
            "residual_volatility": scaled(residual), "nonlinear_size": scaled(orthogonalize(cube, [size], members, root)),
            "liquidity": scaled(filled["liquidity"])}
    return {name: value.where(cap > 0) for name, value in made.items()}


# ---- factor returns -------------------------------------------------------------------------------------------------------------
class Exposed:
    """What days are regressed on: `style [t, n, k]`, `group [t, n]` (-1: none) of the industries `names` (None: the days'),
    `present [t, n]`; the arrays of the frames."""

    def __init__(self, styles: dict[str, Frame], returns: Frame, cap: Frame, members: Frame, industry: Frame, names=None):
        self.days, self.codes = cap.index, cap.columns
        self.style = np.stack([frame.to_numpy() for frame in styles.values()], axis=2)
        kinds = pd.Categorical(industry.to_numpy().ravel(), names)
        self.names, self.group = kinds.categories, kinds.codes.reshape(cap.shape).astype(int)
        self.industries, self.members = len(self.names), (members & (cap > 0)).to_numpy()
        self.returns, self.cap, known = returns.to_numpy(), cap.to_numpy(), np.isfinite(self.style)
        self.there = known.any(axis=1)
        self.present = (known | ~self.there[:, None]).all(axis=2) & (self.cap > 0) & self.there.any(axis=1)[:, None]
        self.factors = ["country", *(f"industry:{name:g}" for name in self.names), *styles]

    def design(self, t: int, rows: np.ndarray) -> np.ndarray:
        """Exposures ``[m, 1 + industries + k]``."""
        out = np.zeros((len(rows), len(self.factors)))
        out[:, 0], out[:, 1 + self.industries:] = 1.0, np.nan_to_num(self.style[t, rows])
        inside = np.flatnonzero(self.group[t, rows] >= 0)
        out[inside, 1 + self.group[t, rows[inside]]] = 1.0
        return out

    def in_force(self, factor_return: np.ndarray) -> np.ndarray:
        """Factors of each day, bool ``[t, k]``: industries with a stock, styles that are known, and what has a return."""
        day, stock = np.nonzero(self.present & (self.group >= 0))
        count = np.bincount(day * self.industries + self.group[day, stock], minlength=len(self.days) * self.industries)
        stocks = count.reshape(len(self.days), self.industries) > 0
        return np.hstack([np.ones((len(self.days), 1), bool), stocks, self.there]) | np.isfinite(factor_return)


def least_squares(exposure: np.ndarray, values: np.ndarray, weight: np.ndarray | None,
                  constraint: np.ndarray) -> np.ndarray | None:
    """Coefficients ``[k]`` under ``constraint @ f = 0``, by the normal equations; None where they have no solution."""
    scaled = exposure if weight is None else exposure * weight[:, None]
    squared, mixed = scaled.T @ exposure, scaled.T @ values
    unit = np.diag(squared).mean()
    whole, side = squared / unit, constraint[:, None]
    whole = np.block([[whole, side], [side.T, np.zeros((1, 1))]]) if constraint.any() else whole
    try:
        return np.linalg.solve(whole, np.append(mixed / unit, 0.0)[:len(whole)])[:len(mixed)]
    except np.linalg.LinAlgError:
        return None


class Regressions(NamedTuple):
    """`factor_return` (day x factor), `residual` (day x stock), `r_squared` by day."""

    factor_return: Frame
    residual: Frame
    r_squared: pd.Series


def regressions(exposed: Exposed) -> Regressions:
    """Each day's return on the exposures of the day before."""
    factor_return, residual = np.full((len(exposed.days), len(exposed.factors)), np.nan), np.full(exposed.cap.shape, np.nan)
    r_squared = np.full(len(exposed.days), np.nan)
    for t in range(1, len(exposed.days)):
        group, returns = exposed.group[t - 1], exposed.returns[t]
        known = exposed.present[t - 1] & np.isfinite(returns)
        used = known & exposed.members[t - 1] & (group >= 0)
        count = np.bincount(group[used], minlength=exposed.industries)
        column = np.concatenate([[True], count > 0, exposed.there[t - 1]])
        rows = np.flatnonzero(known & ((group < 0) | (count[group] > 0)))
        fit = used[rows]
        if fit.sum() <= column.sum():
            continue
        design = exposed.design(t - 1, rows)[:, column]
        cap, y, x, values = exposed.cap[t - 1, rows[fit]], returns[rows], design[fit], returns[rows[fit]]
        share = np.bincount(group[rows[fit]], cap, exposed.industries) / cap.sum()
        constraint, weight = np.concatenate([[0.0], share, np.zeros(len(column) - 1 - exposed.industries)])[column], np.sqrt(cap)
        fitted = least_squares(x, values, weight, constraint)
        if fitted is None:
            continue
        factor_return[t, column] = fitted
        left = y - design @ fitted
        total = weight @ (values - weight @ values / weight.sum()) ** 2
        r_squared[t] = 1 - weight @ left[fit] ** 2 / total
        residual[t, rows] = np.where(fit & (count[group[rows]] == 1), np.nan, left)
    residual[~exposed.present] = np.nan
    return Regressions(Frame(factor_return, exposed.days, exposed.factors), Frame(residual, exposed.days, exposed.codes),
                       pd.Series(r_squared, exposed.days))


# ---- covariances ----------------------------------------------------------------------------------------------------------------
def bartlett(lags: int) -> list[tuple[int, float]]:
    """(lag, weight) of Newey-West."""
    return [(lag, 1 - lag / (lags + 1)) for lag in range(1, lags + 1)]


def ewm_mean(values: Frame | pd.Series, half_life: float) -> Frame | pd.Series:
    """Weighted mean of all days so far."""
    return values.ewm(halflife=half_life).mean()


def factor_variances(returns: Frame, options: CovarianceOptions) -> tuple[Frame, np.ndarray]:
    """Variances (day x factor), NaN before there are enough days, and the regime's squared multiplier by day."""
    plain = total = ewm_mean(returns**2, options.volatility_half_life)
    for lag, share in bartlett(options.volatility_lags):
        total = total + 2 * share * ewm_mean(returns * returns.shift(lag), options.volatility_half_life).fillna(0.0)
    variance = np.maximum(total, 0.25 * plain).where(returns.notna().cumsum() >= options.least)
    if options.regime_half_life is None:
        return variance, np.ones(len(returns))
    daily = (returns**2 / variance.shift(1)).mean(axis=1)
    return variance, ewm_mean(daily, options.regime_half_life).fillna(1.0).to_numpy()


def correlations(returns: Frame, options: CovarianceOptions, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean products ``[w, k, k]`` on the days wanted, with and without serial correlation."""
    x, size = returns.to_numpy(), returns.shape[1]

    def products(a: np.ndarray, b: np.ndarray, left: np.ndarray) -> np.ndarray:
        return ewm_mean(Frame(left[:, a] * x[:, b]), options.correlation_half_life).to_numpy()[wanted]

    a, b = np.triu_indices(size)
    plain = np.empty((len(wanted), size, size))
    plain[:, a, b] = plain[:, b, a] = np.nan_to_num(products(a, b, x))
    mixed, (a, b) = plain.copy(), np.indices((size, size)).reshape(2, -1)
    for lag, share in bartlett(options.correlation_lags):
        part = np.nan_to_num(products(b, a, returns.shift(lag).to_numpy())).reshape(plain.shape)
        mixed += share * (part + part.transpose(0, 2, 1))
    return mixed, plain


def factor_covariances(returns: Frame, in_force: np.ndarray, wanted: np.ndarray, options: CovarianceOptions) -> dict[int, tuple]:
    """Row -> (positions of the factors in force, covariance ``[k', k']``); days with the same factors are worked on together.

    Args:
        returns: day x factor from the first day on. in_force: bool ``[w, k]`` of the days `wanted`, which are rows of `returns`.
    """
    variance, regime = factor_variances(returns, options)
    mixed, plain = correlations(returns, options, wanted)
    variance, found = variance.to_numpy()[wanted], {}
    patterns, which = np.unique(np.hstack([in_force, np.isnan(variance)]), axis=0, return_inverse=True)
    for number, pattern in enumerate(patterns):
        factors, rows = np.flatnonzero(pattern[:returns.shape[1]]), np.flatnonzero(which.ravel() == number)
        young = pattern[returns.shape[1]:][factors]
        if young.all():
            continue
        chosen, own = np.ix_(rows, factors, factors), variance[np.ix_(rows, factors)]
        own = np.where(young, np.median(own[:, ~young], axis=1)[:, None], own)
        diagonal = np.arange(len(factors))
        size = np.sqrt(np.maximum(mixed[chosen][:, diagonal, diagonal], 0.25 * plain[chosen][:, diagonal, diagonal]))
        outer = size[:, :, None] * size[:, None, :]
        matrix = mixed[chosen] / np.where(outer > 0, outer, 1.0)
        matrix[:, young], matrix[:, :, young] = 0.0, 0.0
        matrix[:, diagonal, diagonal] = 1.0
        value, vector = np.linalg.eigh(matrix)
        matrix = (vector * np.maximum(value, 1e-6)[:, None]) @ vector.transpose(0, 2, 1)
        size = np.sqrt(own / matrix[:, diagonal, diagonal]) * np.sqrt(regime[wanted[rows]])[:, None]
        matrix *= size[:, :, None] * size[:, None, :]
        found.update(zip(wanted[rows].tolist(), ((factors, one) for one in matrix)))
    return found


def specific_variances(residual: Frame, options: CovarianceOptions, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted variances and days known in the window ``[w, n]`` on the days wanted."""
    window, half_life = options.specific_window, options.specific_half_life

    def mean(values: Frame) -> Frame:
        total, weight = (window_sum(part, window, half_life) for part in (values.fillna(0.0), values.notna().astype(float)))
        return total / weight

    count = window_count(residual.notna().astype(float), window)
    plain = total = mean(residual**2)
    for lag, share in bartlett(options.specific_lags):
        product = residual * residual.shift(lag)
        total = total + 2 * share * mean(product).where(window_count(product.notna().astype(float), window) > 0, 0.0)
    variance = np.maximum(total, 0.25 * plain).where((count >= options.least) & (plain > 0))
    return variance.to_numpy()[wanted], count.to_numpy()[wanted]


def specific_forecast(variance: np.ndarray, count: np.ndarray, design: np.ndarray, industries: int, cap: np.ndarray,
                      options: CovarianceOptions) -> np.ndarray | None:
    """A day's specific variances ``[n]``: own history, structure where it is short, shrunk within size deciles."""
    own = np.sqrt(variance)
    trust = np.where(np.isfinite(own), np.clip((count - 60) / 120, 0.0, 1.0), 0.0)
    long = trust >= 1.0 if (trust >= 1.0).any() else np.isfinite(own)
    if not long.any():
        return None
    x, logs = design[long], np.log(own[long])
    column = (x != 0).any(axis=0)
    constraint = np.zeros(design.shape[1])
    constraint[1:1 + industries] = cap @ design[:, 1:1 + industries] / cap.sum()
    beta = least_squares(x[:, column], logs, None, constraint[column]) if long.sum() > column.sum() + 1 else None
    structural = np.full(len(own), np.median(own[long]))
    if beta is not None:
        fitted = np.exp(np.clip(design[:, column] @ beta, logs.min(), logs.max()))
        structural = fitted * own[long].mean() / fitted[long].mean()
    volatility = np.where(trust > 0, trust * own, 0.0) + (1 - trust) * structural
    if not options.specific_shrinkage or len(cap) < 20:
        return volatility**2
    decile = np.empty(len(cap), np.int64)
    decile[np.argsort(cap, kind="stable")] = 10 * np.arange(len(cap)) // len(cap)
    mean = (np.bincount(decile, cap * volatility) / np.bincount(decile, cap))[decile]
    away = np.abs(volatility - mean)
    spread, pull = np.sqrt(np.bincount(decile, away**2) / np.bincount(decile))[decile], options.specific_shrinkage * away
    pull /= np.where(spread > 0, spread + pull, 1.0)
    return (pull * mean + (1 - pull) * volatility) ** 2


def risk_days(exposed: Exposed, past: Regressions, wanted: np.ndarray, options: CovarianceOptions) -> dict:
    """Day -> (factor names, factor covariance, positions of the stocks, specific variances).

    Args:
        exposed: days that end with those of `past`. past: `factor_return` from the first day on, `residual` of the last days.
        wanted: rows of `exposed`.
    """
    if options.eigen_simulations:
        raise ValueError("the peer has no eigenvalue adjustment")
    if list(past.factor_return) != exposed.factors:
        raise ValueError(f"the history has other factors than the days: {set(past.factor_return) ^ set(exposed.factors)}")
    days, wanted = len(exposed.days), np.asarray(wanted)
    shift = len(past.factor_return) - days
    earned = past.factor_return.to_numpy()[shift:]
    factors = factor_covariances(past.factor_return, exposed.in_force(earned)[wanted], wanted + shift, options)
    variance, count = specific_variances(past.residual, options, wanted + len(past.residual) - days)
    found = {}
    for place, t in enumerate(wanted):
        held = np.flatnonzero(exposed.present[t])
        if not len(held) or t + shift not in factors:
            continue
        specific = specific_forecast(variance[place, held], count[place, held], exposed.design(t, held), exposed.industries,
                                     exposed.cap[t, held], options)
        if specific is not None:
            column, matrix = factors[t + shift]
            found[exposed.days[t]] = [exposed.factors[k] for k in column], matrix, held, specific
    return found
