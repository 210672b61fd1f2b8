"""Prices, corporate actions, suspensions and volume of the demo market, day by day from the latent paths; arrays are [t, n]."""

import numpy as np

RETURN_LIMIT = 0.099
SUSPENSION_RATE = 0.0007
VOLUME_TILT = 0.36
VOLUME_NOISE = 0.36


def trade(days: np.ndarray, month_end: np.ndarray, listed: np.ndarray, static: dict, paths: dict, draws: np.ndarray) -> dict:
    """Walk through the days and make raw bars.

    Cash dividends go ex in June and July, once a year at most. Bonus shares are decided at a month's last close and go ex on
    the next trading day, on which the stock trades for certain. A suspended day repeats the last close.

    Args:
        days, month_end: [t]. listed: [t, n]. static: attributes by stock. paths: latent paths by day and stock.
        draws: [t, 8, n] uniform numbers for the events.

    Returns:
        trading, open, high, low, close, factor, float_shares, float_shares_after, each [t, n]; prices NaN before listing.
    """
    shape = listed.shape
    names = ("open", "high", "low", "close", "factor", "float_shares", "float_shares_after")
    result = {name: np.full(shape, np.nan) for name in names}
    result["trading"] = np.zeros(shape, dtype=bool)
    calendar_month = days.astype("datetime64[M]").astype(int) % 12 + 1
    years = days.astype("datetime64[Y]").astype(int)
    close, factor, shares = static["price"].copy(), np.ones(shape[1]), static["shares"].copy()
    remaining, paid_year, bonus = np.zeros(shape[1], dtype=int), np.zeros(shape[1], dtype=int), np.zeros(shape[1])
    for day in range(shape[0]):
        draw, here = draws[day], listed[day]
        seasoned = here & (listed[day - 1] if day else False)
        start = seasoned & (remaining == 0) & (bonus == 0) & (draw[0] < SUSPENSION_RATE)
        remaining = np.where(start, 1 + np.floor(-6.0 * np.log1p(-draw[1])).astype(int), remaining)
        trading = here & (remaining == 0)
        remaining = np.maximum(remaining - 1, 0)
        pays = trading & seasoned & (bonus == 0) & (paid_year != years[day]) & (calendar_month[day] in (6, 7)) & (draw[2] < 0.04)
        paid_year = np.where(pays, years[day], paid_year)
        cash = np.where(pays, np.round(close * 0.04 * draw[3] ** 2, 2), 0.0)
        base = (close - cash) / (1.0 + bonus)
        factor = np.where(trading & (close != base), factor * close / base, factor)
        prices = _bar(base, {name: paths[name][day] for name in ("returns", "gap", "upper", "lower")})
        close = np.where(trading, prices["close"], close)
        for name, value in prices.items():
            result[name][day] = np.where(trading, value, np.where(here, close, np.nan))
        result["trading"][day] = trading
        result["factor"][day] = np.where(here, factor, np.nan)
        result["float_shares"][day] = np.where(here, shares, np.nan)
        bonus = np.zeros(shape[1])
        if month_end[day]:
            bonus, unlocked = _new_shares(calendar_month[day], close, trading, draw)
            shares = np.round(shares * (1.0 + bonus) * (1.0 + unlocked))
        result["float_shares_after"][day] = np.where(here, shares, np.nan)
    return result


def _bar(base: np.ndarray, path: dict) -> dict:
    """Rounded OHLC [n] around the reference price, all within 10 % of it."""
    ceiling, floor = np.floor(base * 110.0) / 100.0, np.maximum(np.ceil(base * 90.0) / 100.0, 0.01)
    close, start = (np.maximum(np.minimum(np.round(base * (1.0 + path[name]), 2), ceiling), floor) for name in ("returns", "gap"))
    top, bottom = np.maximum(start, close), np.minimum(start, close)
    high = np.minimum(np.round(top * (1.0 + path["upper"]), 2), ceiling)
    low = np.maximum(np.round(bottom * (1.0 - path["lower"]), 2), floor)
    return {"open": start, "high": np.maximum(high, top), "low": np.minimum(low, bottom), "close": close}


def _new_shares(month: int, close: np.ndarray, trading: np.ndarray, draw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bonus shares per share (April to June, likelier at high prices) and the fraction of shares unlocked, both [n]."""
    chance = np.where(close > 60.0, 0.35, np.where(close > 15.0, 0.05, 0.0)) * (month in (4, 5, 6))
    ratio = np.where(close > 60.0, 1.0, np.where(draw[5] < 0.5, 0.3, 0.5))
    bonus = np.where(trading & (draw[4] < chance), ratio, 0.0)
    return bonus, np.where(trading & (draw[6] < 0.006), 0.05 + 0.25 * draw[7], 0.0)


def turn_over(bars: dict, static: dict, paths: dict, draws: np.ndarray) -> dict:
    """Volume (shares, int64) and amount (CNY), [t, n], 0 when not trading.

    Log turnover: the stock's own level, the market's state and a slow common wave, the size of the day's move, attention, noise.

    Args:
        bars: result of `trade`. draws: [t, n + 1] standard normal numbers; the last column drives the common wave.
    """
    wave = np.empty(len(draws))
    level = 0.0
    for day, shock in enumerate(draws[:, -1]):
        level = 0.95 * level + 0.06 * shock
        wave[day] = level
    move = np.minimum(np.abs(paths["returns"]) / static["volatility"], 4.0)
    log_turnover = (wave + 0.15 * paths["market_state"])[:, None] + 0.25 * (move - 0.9)
    log_turnover = log_turnover + VOLUME_TILT * paths["attention"] + VOLUME_NOISE * draws[:, :-1]
    trading = bars["trading"]
    shares = np.where(trading, bars["float_shares"], 0.0) * static["turnover"] * np.exp(log_turnover)
    volume = np.where(trading, np.maximum(np.round(shares / 100.0), 1.0) * 100.0, 0.0)
    middle = (bars["open"] + bars["high"] + bars["low"] + bars["close"]) / 4.0
    price = np.clip(middle + 0.08 * paths["middle"] * (bars["high"] - bars["low"]), bars["low"], bars["high"])
    return {"volume": volume.astype(np.int64), "amount": np.where(trading, volume * np.nan_to_num(price), 0.0)}
