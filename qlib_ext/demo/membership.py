"""Members and bars of the three indices of the demo market ([t, n] arrays, axes of `demo.market`)."""

import numpy as np

INDEX_NAMES = ("csi300", "csi500", "csi1000")
INDEX_CODES = ("SH000300", "SH000905", "SH000852")
INDEX_BASES = (3500.0, 5300.0, 5700.0)
CAP_DAYS = 120
SEASONING_DAYS = 60


def rebalance_days(days: np.ndarray) -> np.ndarray:
    """Positions in `days` of new lists: day 0 and the first trading day after the second Friday of June and December."""
    positions = {0}
    months = np.unique(days.astype("datetime64[M]"))
    for month in months[np.isin(months.astype(int) % 12 + 1, (6, 12))]:
        weekday = (month.astype("datetime64[D]").astype(int) + 3) % 7
        second_friday = month.astype("datetime64[D]") + (4 - weekday) % 7 + 7
        position = int(np.searchsorted(days, second_friday, side="right"))
        if 0 < position < len(days):
            positions.add(position)
    return np.array(sorted(positions))


def assign_members(
    days: np.ndarray,
    float_cap: np.ndarray,
    first_cap: np.ndarray,
    listed: np.ndarray,
    is_st: np.ndarray,
    index_sizes: tuple[int, ...],
) -> np.ndarray:
    """Disjoint members by float cap rank, renewed half-yearly; [t, n] int8, -1 for none.

    A list uses caps up to the last trading day of the month before: their mean over at most 120 days. Stocks listed for fewer
    than 60 trading days and those under special treatment are not eligible unless members lack. On the trading day after the
    last one of a member the list is drawn again from the same ranking without it: the best of the next index moves up.

    Args:
        float_cap: [t, n] CNY, NaN outside the listing. first_cap: [n] CNY, for the list of day 0.
    """
    member = np.full(listed.shape, -1, dtype=np.int8)
    renewed = rebalance_days(days)
    edges = np.append(renewed, len(days))
    months = days.astype("datetime64[M]")
    left = np.append(False, (listed[:-1] & ~listed[1:]).any(axis=1))
    for begin, finish in zip(edges[:-1], edges[1:], strict=True):
        known = int(np.searchsorted(months, months[begin]))
        score = first_cap
        if begin and known:
            window = float_cap[max(known - CAP_DAYS, 0) : known]
            count = np.isfinite(window).sum(axis=0)
            mean = np.nansum(window, axis=0) / np.maximum(count, 1)
            seasoned = listed[:known].sum(axis=0) >= min(SEASONING_DAYS, known)
            score = np.where(seasoned & ~is_st[begin - 1], mean + 1.0, 0.0)
        for day in [begin, *(begin + 1 + np.flatnonzero(left[begin + 1 : finish]))]:
            order = np.argsort(-np.where(listed[day], score, -1.0), kind="stable")
            member[day:finish] = -1
            taken = 0
            for index, size in enumerate(index_sizes):
                member[day:finish, order[taken : taken + size]] = index
                taken += size
    return member


def index_bars(market) -> list[dict]:
    """Daily bars of the three indices from their members, weighted by float cap: price indices.

    An index grows by the value of the members' shares of the day over their value at the last close; bonus shares are part of
    it, cash dividends are not reinvested. Members reach their highs at different times: the index takes half of their joint
    range beyond its body.

    Returns:
        per index a dict of [t] arrays open, high, low, close (points), volume (shares), amount (CNY).
    """
    before = np.vstack([market.close[:1], market.close[:-1]]) / (1.0 + market.bonus)
    result = []
    for index, base in enumerate(INDEX_BASES):
        shares = np.where(market.member == index, np.nan_to_num(market.float_shares), 0.0)
        value = (shares * np.nan_to_num(before)).sum(axis=1)
        prices = {name: np.nan_to_num(getattr(market, name)) for name in ("open", "high", "low", "close")}
        parts = {name: (shares * price).sum(axis=1) / value for name, price in prices.items()}
        top, bottom = np.maximum(parts["open"], parts["close"]), np.minimum(parts["open"], parts["close"])
        parts["high"], parts["low"] = top + 0.5 * (parts["high"] - top).clip(0), bottom - 0.5 * (bottom - parts["low"]).clip(0)
        close = base * np.cumprod(parts["close"])
        bars = {name: np.append(base, close[:-1]) * values for name, values in parts.items()}
        bars["close"] = close
        for name in ("volume", "amount"):
            bars[name] = np.where(market.member == index, getattr(market, name), 0).sum(axis=1).astype(float)
        result.append(bars)
    return result
