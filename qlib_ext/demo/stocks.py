"""The companies of the demo market: codes, boards, sizes, listing, special treatment, delisting. All arrays are [n]."""

import numpy as np

from qlib_ext.demo.streams import stream

INDUSTRIES = 31
GROUPS = 12
LEADERS = 3
NEVER = np.datetime64("2200-01-01")
STAR_OPENING = np.datetime64("2019-07-22")


def draw_stocks(seed: int, stocks: int, start: np.datetime64) -> dict:
    """Attributes of each stock.

    Returns:
        instruments (codes), list_date, listing (first day in the market), st_start, st_end (first day after the spell), last_day
        (last day of listing), reclassified: datetime64[D], NEVER where it does not happen. industry, industry_after, group: int;
        leader: bool. volatility: daily, of the own noise. turnover: usual share of the float traded a day. beta, industry_beta,
        price (CNY), total_shares, float_shares at the start; style: name -> standardised fixed exposure.
    """
    draw = stream(seed, "stock").standard_normal((stocks, 8))
    uniform = stream(seed, "spell").random((stocks, 16))
    late = stocks * 45 // 440
    instruments = _codes(stocks, late)
    is_late = np.arange(stocks) >= stocks - late
    size = draw[:, 0] - 0.6 * is_late
    price = np.round(np.clip(np.exp(3.2 + 0.40 * draw[:, 1]), 6.0, 90.0), 2)
    industry = (uniform[:, 0] * INDUSTRIES).astype(int)
    leader = _leaders(industry, size, is_late)
    volatility = 0.0252 * np.exp(0.19 * draw[:, 2] - 0.13 * size)
    turnover = 0.0118 * np.exp(0.70 * draw[:, 5] - 0.20 * size)
    total_shares = np.round(8e9 * np.exp(0.9 * size) / price, -4)
    moved = uniform[:, 1] < 0.05
    result = {
        "instruments": instruments,
        "industry": industry,
        "industry_after": np.where(moved, (industry + 7) % INDUSTRIES, industry),
        "reclassified": np.where(moved, _day("2016-01-01", 2900 * uniform[:, 2]), NEVER),
        "group": (uniform[:, 3] * GROUPS).astype(int),
        "leader": leader,
        "volatility": volatility,
        "turnover": turnover,
        "beta": np.clip(1.0 + 0.22 * draw[:, 3], 0.3, 1.8),
        "industry_beta": np.clip(1.0 + 0.2 * draw[:, 4], 0.3, 1.8),
        "price": price,
        "total_shares": total_shares,
        "float_shares": np.round(total_shares * np.where(is_late, 0.25, 0.4 + 0.6 * uniform[:, 4]), -4),
        "style": {"size": size, "volatility": np.log(volatility), "liquidity": np.log(turnover)},
        **_listing(instruments, is_late, start, uniform[:, 5]),
        **_endings(size, is_late | leader, uniform[:, 6:]),
    }
    result["style"] = {name: np.clip((x - x.mean()) / x.std(), -3.0, 3.0) for name, x in result["style"].items()}
    return result


def size_bands(static: dict) -> np.ndarray:
    """Bands of float cap at the start, `GROUPS` of equal number, the smallest first: groups that can be seen."""
    rank = np.argsort(np.argsort(static["price"] * static["float_shares"], kind="stable"), kind="stable")
    return rank * GROUPS // len(rank)


def _codes(stocks: int, late: int) -> list[str]:
    """Codes by board; SH68 exists only among late listings, as the real board opened in 2019."""
    early = stocks - late
    sizes = {"SH600": early * 46 // 100, "SZ300": early * 22 // 100}
    sizes["SZ000"] = early - sum(sizes.values())
    codes = [f"{board}{number:03d}" for board in ("SH600", "SZ000", "SZ300") for number in range(1, sizes[board] + 1)]
    boards = ("SH688", "SZ301", "SH688", "SH603", "SZ002")
    return codes + [f"{boards[k % 5]}{k // 5 * 2 + (k % 5 == 2) + 1:03d}" for k in range(late)]


def _listing(instruments: list[str], is_late: np.ndarray, start: np.datetime64, uniform: np.ndarray) -> dict:
    """Late stocks enter through the years, STAR from its opening on; the others were listed long before the market starts."""
    is_star = np.array([code.startswith("SH68") for code in instruments])
    opened = np.where(is_star, STAR_OPENING, np.datetime64("2015-04-01"))
    span = (np.datetime64("2024-06-28") - opened).astype(int)
    listing = opened + (uniform * span).astype(int)
    before = start - 400 - (uniform * 5000).astype(int)
    return {"listing": np.where(is_late, listing, start), "list_date": np.where(is_late, listing, before)}


def _endings(size: np.ndarray, kept: np.ndarray, uniform: np.ndarray) -> dict:
    """Spells of special treatment (about one stock in ten); some of them end with the delisting, and a few larger companies
    that are merged away leave without one. `kept` ones meet neither."""
    begin, length = _day("2015-07-01", 2900 * uniform[:, 1]), (250 + 400 * uniform[:, 2]).astype(int)
    has_spell = (uniform[:, 0] < 0.14) & ~kept
    candidate = has_spell & (begin + length < np.datetime64("2024-06-30"))
    delisted = candidate & _smallest(np.where(candidate, uniform[:, 3], 2.0), max(len(size) // 70, 1))
    middle = ~has_spell & ~kept & (size > 0.2)
    merged = middle & _smallest(np.where(middle, uniform[:, 4], 2.0), max(len(size) // 140, 1))
    last_day = np.where(delisted, begin + length, np.where(merged, _day("2016-03-01", 2900 * uniform[:, 5]), NEVER))
    return {
        "st_start": np.where(has_spell, begin, NEVER),
        "st_end": np.where(delisted, NEVER, np.where(has_spell, begin + length, NEVER)),
        "last_day": last_day,
    }


def _leaders(industry: np.ndarray, size: np.ndarray, is_late: np.ndarray) -> np.ndarray:
    """The three largest stocks of each industry at the start, one in four in small industries. bool"""
    leader = np.zeros(len(size), dtype=bool)
    for number in range(INDUSTRIES):
        stocks = np.flatnonzero((industry == number) & ~is_late)
        count = min(LEADERS, max(1, len(stocks) // 4))
        leader[stocks[np.argsort(-size[stocks], kind="stable")[:count]]] = True
    return leader


def _smallest(values: np.ndarray, count: int) -> np.ndarray:
    chosen = np.zeros(len(values), dtype=bool)
    chosen[np.argsort(values, kind="stable")[:count]] = True
    return chosen


def _day(first: str, offset: np.ndarray) -> np.ndarray:
    return np.datetime64(first) + offset.astype(int)
