"""The descriptors of the Barra CNE5 styles as functions of ``[day, stock]`` arrays, and those of the strict portfolios' extras.

Every function takes and gives ``[t, n]``, NaN where a value is unknown or the history too short, and uses rows up to t for row t.
``origin`` is the place of the first row on the calendar (`qlib_ext.risk.weighted`). Returns are fractions a day, NaN on days without
trading, which are left out of means and count as 0 in sums of log returns. The risk-free rate is taken as 0: a rate that is the same
for all stocks moves none of these after standardising.

Windows, half-lives and weights: MSCI's CNE5 descriptor note of July 2012 as reproduced publicly; the shortest histories are our choice
(a half-life, or half a window).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Mapping

import numpy as np

from qlib_ext.risk.weighted import enough, known, weighted_mean, weighted_regression, weighted_std, weighted_sum

MONTH, YEAR, TWO_YEARS = 21, 252, 504
MONTHS = 12
MOMENTUM_LAG = 21
FISCAL_YEARS = 5
Fields = Mapping[str, np.ndarray]


def lncap(cap: np.ndarray) -> np.ndarray:
    """Logarithm of the market value."""
    return _log(cap)


def beta(returns: np.ndarray, market: np.ndarray, origin: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """BETA and HSIGMA: slope of a stock's on the market's return ``[t]``, and the deviation of its residual; 252 days, half-life 63."""
    return weighted_regression(returns, market, YEAR, 63, 63, origin)


def rstr(returns: np.ndarray, origin: int = 0) -> np.ndarray:
    """Relative strength: weighted mean log return of the 504 days that ended 21 days ago, half-life 126; at least 126 days traded."""
    return weighted_mean(_before(_log(1 + returns), MOMENTUM_LAG), TWO_YEARS, 126, 126, origin)


def dastd(returns: np.ndarray, origin: int = 0) -> np.ndarray:
    """Deviation of daily returns, 252 days, half-life 42; at least 42 days traded."""
    return weighted_std(returns, YEAR, 42, 42, origin)


def cmra(returns: np.ndarray, origin: int = 0) -> np.ndarray:
    """Cumulative range: largest less smallest of the log returns over the last 1, 2, .. 12 months; at least 126 days traded.

    The published ln(1 + Zmax) - ln(1 + Zmin) of these log returns has no value once a stock has lost two thirds; Zmax - Zmin has.
    """
    x, mask = known(_log(1 + returns))
    monthly = weighted_sum(x, MONTH, np.inf, origin)
    total, highest, lowest = np.zeros(x.shape), np.full(x.shape, -np.inf), np.full(x.shape, np.inf)
    for back in range(0, min(MONTHS * MONTH, len(x)), MONTH):
        total[back:] += monthly[:len(monthly) - back]
        np.maximum(highest, total, out=highest)
        np.minimum(lowest, total, out=lowest)
    return np.where(enough(mask, MONTHS * MONTH, 126, origin), highest - lowest, np.nan)


def share_turnover(turnover: np.ndarray, months: int, origin: int = 0) -> np.ndarray:
    """STOM (1), STOQ (3), STOA (12 months): log of the mean monthly turnover, volume over float shares.

    Args:
        turnover: fraction of the float traded in a day, 0 on days without trading, NaN unknown (before the listing). Half of the
            window must be known; a shorter history counts as if it went on alike.
    """
    return _log(MONTH * weighted_mean(turnover, months * MONTH, np.inf, months * MONTH // 2, origin))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient; NaN where the denominator is not above 0."""
    return numerator / np.where(denominator > 0, denominator, np.nan)


def growth(*years: np.ndarray) -> np.ndarray:
    """Slope over the fiscal years of an annual number (latest first), over its mean absolute value; at least three years known.

    Numbers are as reported: earnings per share are not adjusted for bonus shares, and sales are those of the company, because shares
    of past years are not known (dividing by today's changes nothing).
    """
    values = np.stack(years)                                                          # [y, t, n]
    time = -np.arange(len(years), dtype=np.float64)[:, None, None] * np.ones_like(values)
    there = np.isfinite(values)
    count = there.sum(axis=0)
    x, y = np.where(there, time, 0.0), np.where(there, values, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = np.where(there, x - x.sum(axis=0) / count, 0.0)
        slope = (x * y).sum(axis=0) / (x * x).sum(axis=0)
        level = np.abs(y).sum(axis=0) / count
    return np.where(count >= 3, ratio(slope, level), np.nan)


def market_leverage(cap: np.ndarray, preferred: np.ndarray, debt: np.ndarray) -> np.ndarray:
    """MLEV: (market value + preferred equity + long-term debt) / market value."""
    return ratio(cap + preferred + debt, cap)


def book_leverage(equity: np.ndarray, preferred: np.ndarray, debt: np.ndarray) -> np.ndarray:
    """BLEV: (common book equity + preferred equity + long-term debt) / common book equity; NaN where that is not above 0."""
    return ratio(equity + debt, equity - preferred)


def volatility_60(returns: np.ndarray, origin: int = 0) -> np.ndarray:
    """Deviation of the last 60 daily returns, equal weights; at least 30 days traded."""
    return weighted_std(returns, 60, np.inf, 30, origin)


def return_on_equity(profit: np.ndarray, equity: np.ndarray) -> np.ndarray:
    """Net profit of four quarters over the mean of the equity known now and 252 trading days ago (now, where that is unknown)."""
    before = _before(equity, YEAR)
    return ratio(profit, np.where(np.isfinite(before), (equity + before) / 2, equity))


def earnings_surprise(quarters: np.ndarray) -> np.ndarray:
    """SUE: the latest quarter's change on its year-ago one, less the mean of the eight changes before, over their deviation.

    Args:
        quarters: ``[13, ...]`` single-quarter profits, latest first, NaN unknown.

    Returns:
        ``[...]``; NaN where fewer than six of the eight changes are known, or they do not vary (ddof 1).
    """
    change = quarters[:9] - quarters[4:13]
    past = change[1:]
    count = np.isfinite(past).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(past, axis=0) / count
        deviation = np.sqrt(np.nansum((past - mean) ** 2, axis=0) / (count - 1))
        return np.where((count >= 6) & (deviation > 1e-9 * np.abs(mean)), (change[0] - mean) / deviation, np.nan)


def _before(values: np.ndarray, days: int) -> np.ndarray:
    """The values so many rows earlier; NaN where there are none."""
    out = np.full(values.shape, np.nan)
    out[days:] = values[:max(len(values) - days, 0)]
    return out


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(np.where(values > 0, values, np.nan))


# ---- which fields make which descriptor -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Descriptor:
    """A descriptor of a style: its weight, the fields it needs (names of `Fields`), and its function of (fields, origin).

    Fields besides those of a store: `returns` since the last day traded, `daily_returns`, the same without those over long suspensions
    (what momentum and range have to hold would spoil volatilities and betas), `turnover`, `market` ``[t]``, and `cap`, the total
    market value or, where there is none, that of the float: good for size, while values and debts of the whole company go with
    `total_cap` alone. A function that gives several arrays is
    shared by descriptors, which take a `part` each.
    """

    style: str
    name: str
    weight: float
    needs: tuple[str, ...]
    compute: Callable[[Fields, int], np.ndarray]
    part: int | None = None


def _annual(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_y{year}" for year in range(FISCAL_YEARS))


def _turnover(months: int) -> Callable[[Fields, int], np.ndarray]:
    return lambda fields, origin: share_turnover(fields["turnover"], months, origin)


def _over_cap(name: str) -> Callable[[Fields, int], np.ndarray]:
    return lambda fields, _: ratio(fields[name], fields["total_cap"])


def _growth(name: str) -> Callable[[Fields, int], np.ndarray]:
    return lambda fields, _: growth(*(fields[year] for year in _annual(name)))


def _regression(fields: Fields, origin: int) -> tuple[np.ndarray, np.ndarray]:
    return beta(fields["daily_returns"], fields["market"], origin)


def _plain(name: str) -> Callable[[Fields, int], np.ndarray]:
    return lambda fields, _: fields[name]


_BALANCE = ("equity", "preferred_equity", "long_term_debt")
DESCRIPTORS: tuple[Descriptor, ...] = (
    Descriptor("size", "LNCAP", 1.0, ("cap",), lambda f, _: lncap(f["cap"])),
    Descriptor("beta", "BETA", 1.0, ("daily_returns", "market"), _regression, 0),
    Descriptor("momentum", "RSTR", 1.0, ("returns",), lambda f, o: rstr(f["returns"], o)),
    Descriptor("residual_volatility", "DASTD", 0.74, ("daily_returns",), lambda f, o: dastd(f["daily_returns"], o)),
    Descriptor("residual_volatility", "CMRA", 0.16, ("returns",), lambda f, o: cmra(f["returns"], o)),
    Descriptor("residual_volatility", "HSIGMA", 0.10, ("daily_returns", "market"), _regression, 1),
    Descriptor("nonlinear_size", "NLSIZE", 1.0, ("cap",), lambda f, _: lncap(f["cap"])),   # the cube is taken after standardising
    Descriptor("book_to_price", "BTOP", 1.0, ("equity", "preferred_equity", "total_cap"),
               lambda f, _: ratio(f["equity"] - f["preferred_equity"], f["total_cap"])),
    Descriptor("liquidity", "STOM", 0.35, ("turnover",), _turnover(1)),
    Descriptor("liquidity", "STOQ", 0.35, ("turnover",), _turnover(3)),
    Descriptor("liquidity", "STOA", 0.30, ("turnover",), _turnover(12)),
    Descriptor("earnings_yield", "EPFWD", 0.68, ("consensus_earnings", "total_cap"), _over_cap("consensus_earnings")),
    Descriptor("earnings_yield", "CETOP", 0.21, ("operating_cash_flow_ttm", "total_cap"), _over_cap("operating_cash_flow_ttm")),
    Descriptor("earnings_yield", "ETOP", 0.11, ("net_profit_ttm", "total_cap"), _over_cap("net_profit_ttm")),
    Descriptor("growth", "EGRLF", 0.18, ("consensus_growth_long",), _plain("consensus_growth_long")),
    Descriptor("growth", "EGRSF", 0.11, ("consensus_growth_short",), _plain("consensus_growth_short")),
    Descriptor("growth", "EGRO", 0.24, _annual("eps"), _growth("eps")),
    Descriptor("growth", "SGRO", 0.47, _annual("sales"), _growth("sales")),
    Descriptor("leverage", "MLEV", 0.38, ("total_cap", "preferred_equity", "long_term_debt"),
               lambda f, _: market_leverage(f["total_cap"], f["preferred_equity"], f["long_term_debt"])),
    Descriptor("leverage", "DTOA", 0.35, ("total_debt", "total_assets"), lambda f, _: ratio(f["total_debt"], f["total_assets"])),
    Descriptor("leverage", "BLEV", 0.27, _BALANCE, lambda f, _: book_leverage(*(f[name] for name in _BALANCE))),
)
"""The ten styles of CNE5 by their 21 descriptors. Consensus fields are the user's: earnings of the next 12 months (CNY), growth."""

EXTRAS: tuple[Descriptor, ...] = (
    Descriptor("size_squared", "SIZE2", 1.0, ("cap",), lambda f, _: lncap(f["cap"])),      # the square is taken after standardising
    Descriptor("roe", "ROE", 1.0, ("net_profit_ttm", "equity"), lambda f, _: return_on_equity(f["net_profit_ttm"], f["equity"])),
    Descriptor("sue", "SUE", 1.0, ("earnings_surprise",), _plain("earnings_surprise")),
    Descriptor("volatility_60", "STD60", 1.0, ("daily_returns",), lambda f, o: volatility_60(f["daily_returns"], o)),
    Descriptor("bp", "BP", 1.0, ("equity", "preferred_equity", "total_cap"),
               lambda f, _: ratio(f["equity"] - f["preferred_equity"], f["total_cap"])),
)
"""What the AI-enhanced strict portfolios bound besides size; bounds on PB are those on -bp. Not factors of the risk model."""

STYLES = tuple(dict.fromkeys(one.style for one in DESCRIPTORS))
"""Names of the ten styles."""
EXTRA_STYLES = tuple(one.style for one in EXTRAS)
"""Names of the extras."""
LONGEST = TWO_YEARS + MOMENTUM_LAG
"""Rows before a day that its descriptors reach back to."""
