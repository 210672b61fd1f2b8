"""Prices, corporate actions, suspensions and volume of the demo market, day by day from the latent paths; arrays are [t, n]."""

import numpy as np

from qlib_ext.demo import signal
from qlib_ext.market_rules import limit_prices, price_limits

SUSPENSION_RATE = 0.0009
LOCKED_BEYOND = 0.10
LEAST_PRICE, LEAST_PRICE_DAYS = 1.0, 20
CASH_CHANCE, CASH_SHARE = 0.04, 0.04
VOLUME_TILT, VOLUME_NOISE, VOLUME_MOVE, VOLUME_INTEREST = 0.36, 0.30, 0.30, 0.45
LARGEST_TURNOVER = 0.45
KEPT = ("open", "high", "low", "close", "factor", "cash", "bonus")
KEPT += ("float_shares", "float_shares_after", "total_shares", "total_shares_after")
PATHS = ("returns", "gap", "upper", "lower", "beyond")


def trade(days: np.ndarray, month_end: np.ndarray, listed: np.ndarray, static: dict, status: dict, paths: dict, draws) -> dict:
    """Walk through the days and make raw bars.

    Cash dividends go ex in June and July, once a year at most. Bonus shares are decided at a month's last close and go ex on
    the next trading day, on which the stock trades for certain. On an ex-date the factor grows by the last close over the
    ex-right price (close - cash) / (1 + bonus). A suspended day repeats the last close. No price leaves the day's limits
    (`market_rules`); a day that wants to go far beyond one has a single price. Twenty closes in a row below 1 CNY end a listing.

    Args:
        days, month_end: [t]. static: attributes by stock. status, paths: as of `paths.make_paths`.
        listed: [t, n], apart from the listings that low prices end. draws: [t, 8, n] uniform numbers for the events.

    Returns:
        listed, trading and KEPT, NaN outside the listing; cash and bonus per old share on the ex-date, else 0.
    """
    month, years = days.astype("datetime64[M]").astype(int) % 12 + 1, days.astype("datetime64[Y]").astype(int)
    up, down = price_limits(status["board"], status["is_st"], status["listed_days"], days[:, None])
    count = listed.shape[1]
    close, factor, floating, total = static["price"].copy(), np.ones(count), static["float_shares"], static["total_shares"]
    remaining, paid_year, cheap, bonus = np.zeros((4, count))
    result = {name: np.full(listed.shape, np.nan) for name in KEPT}
    result.update(listed=np.zeros(listed.shape, dtype=bool), trading=np.zeros(listed.shape, dtype=bool))
    for day, draw in enumerate(draws):
        here = listed[day] & (cheap < LEAST_PRICE_DAYS)
        seasoned = here & (listed[day - 1] if day else False)
        starts = seasoned & (remaining == 0) & (bonus == 0) & (draw[0] < SUSPENSION_RATE)
        remaining = np.where(starts, 1 + np.floor(-6.0 * np.log1p(-draw[1])), remaining)
        trading, remaining = here & (remaining == 0), np.maximum(remaining - 1, 0)
        pays = trading & seasoned & (bonus == 0) & (paid_year != years[day]) & (month[day] in (6, 7)) & (draw[2] < CASH_CHANCE)
        cash = np.where(pays, np.round(close * CASH_SHARE * draw[3] ** 2, 2), 0.0)
        paid_year = np.where(cash > 0, years[day], paid_year)
        base = (close - cash) / (1.0 + bonus)
        factor = np.where(trading & (close != base), factor * (close / base), factor)
        prices = _bar(base, (up[day], down[day]), {name: paths[name][day] for name in PATHS})
        close = np.where(trading, prices["close"], close)
        cheap = np.where(trading, np.where(close < LEAST_PRICE, cheap + 1, 0), cheap)
        known = {name: np.where(trading, price, close) for name, price in prices.items()}
        known.update(factor=factor, cash=cash, bonus=bonus, float_shares=floating, total_shares=total)
        bonus = np.zeros(count)
        if month_end[day]:
            stays = trading & (static["last_day"] > days[day] + 14) & (cheap == 0)
            bonus, unlocked = _new_shares(month[day], close, stays, draw)
            total = np.round(total * (1.0 + bonus))
            floating = np.minimum(np.round(floating * (1.0 + bonus) * (1.0 + unlocked)), total)
        known.update(float_shares_after=floating, total_shares_after=total)
        result["listed"][day], result["trading"][day] = here, trading
        for name in KEPT:
            result[name][day] = np.where(here, known[name], np.nan)
    return result


def _bar(base: np.ndarray, limits: tuple, path: dict) -> dict:
    """Rounded OHLC [n] around the reference price, inside the limit prices; a return at its limit closes at the limit price."""
    highest, lowest = limit_prices(base, *limits)
    ceiling, floor = np.where(np.isnan(highest), np.inf, highest), np.where(np.isnan(lowest), 0.01, lowest)
    close = np.clip(np.round(base * (1.0 + path["returns"]), 2), floor, ceiling)
    close = np.where(path["returns"] >= limits[0], ceiling, np.where(path["returns"] <= -limits[1], floor, close))
    start = np.clip(np.round(base * (1.0 + path["gap"]), 2), floor, ceiling)
    top, bottom = np.maximum(start, close), np.minimum(start, close)
    high = np.maximum(np.minimum(np.round(top * (1.0 + path["upper"]), 2), ceiling), top)
    low = np.minimum(np.maximum(np.round(bottom * (1.0 - path["lower"]), 2), floor), bottom)
    locked = path["beyond"] > LOCKED_BEYOND
    bar = {"open": start, "high": high, "low": low}
    return {**{name: np.where(locked, close, price) for name, price in bar.items()}, "close": close}


def _new_shares(month: int, close: np.ndarray, trading: np.ndarray, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bonus shares per share (April to June, likelier at high prices) and the fraction of the float unlocked, both [n]."""
    chance = np.where(close > 60.0, 0.35, np.where(close > 15.0, 0.02, 0.0)) * (month in (4, 5, 6))
    ratio = np.where(close > 60.0, 1.0, np.where(draw[5] < 0.5, 0.3, 0.5))
    bonus = np.where(trading & (draw[4] < chance), ratio, 0.0)
    return bonus, np.where(trading & (draw[6] < 0.012), 0.05 + 0.45 * draw[7], 0.0)


def turn_over(bars: dict, static: dict, paths: dict, draws: np.ndarray, interest: np.ndarray) -> dict:
    """Volume (shares, int64) and amount (CNY), [t, n], 0 when not trading.

    Log turnover: the stock's own level, the market's state and a slow common wave, a slow interest of its own, the size of the
    day's move, attention, noise.

    Args:
        bars: result of `trade`. draws: [t, n + 1] standard normal numbers; the last column drives the common wave.
        interest: [t, n] standard normal numbers.
    """
    wave = 0.25 * signal.autoregress(np.ascontiguousarray(draws[:, -1]), 14.0)
    log_turnover = (wave + 0.15 * paths["states"]["market_state"])[:, None] + VOLUME_MOVE * (paths["move"] - 0.9)
    log_turnover += VOLUME_TILT * paths["states"]["attention"] + VOLUME_NOISE * draws[:, :-1]
    log_turnover += VOLUME_INTEREST * signal.autoregress(interest, 60.0)
    trading = bars["trading"]
    usual = np.minimum(static["turnover"] * np.exp(log_turnover), LARGEST_TURNOVER)
    shares = np.where(trading, bars["float_shares"], 0.0) * usual
    volume = np.where(trading, np.maximum(np.round(shares / 100.0), 1.0) * 100.0, 0.0)
    middle = (bars["open"] + bars["high"] + bars["low"] + bars["close"]) / 4.0
    price = np.clip(middle + 0.08 * paths["middle"] * (bars["high"] - bars["low"]), bars["low"], bars["high"])
    return {"volume": volume.astype(np.int64), "amount": np.where(trading, volume * np.nan_to_num(price), 0.0)}
