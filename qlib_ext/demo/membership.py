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
    days: np.ndarray, float_cap: np.ndarray, first_cap: np.ndarray, listed: np.ndarray, index_sizes: tuple[int, ...]
) -> np.ndarray:
    """Disjoint members by float cap rank, renewed half-yearly; [t, n] int8, -1 for none.

    A list uses caps up to the last trading day of the month before: their mean over at most 120 days. Stocks listed for fewer
    than 60 trading days are not eligible unless members lack.

    Args:
        float_cap: [t, n] CNY, NaN before listing. first_cap: [n] CNY, for the list of day 0.
    """
    member = np.full(listed.shape, -1, dtype=np.int8)
    edges = np.append(rebalance_days(days), len(days))
    months = days.astype("datetime64[M]")
    for begin, finish in zip(edges[:-1], edges[1:], strict=True):
        known = int(np.searchsorted(months, months[begin]))
        score = np.where(listed[begin], first_cap, 0.0)
        if begin and known:
            window = float_cap[max(known - CAP_DAYS, 0) : known]
            count = np.isfinite(window).sum(axis=0)
            mean = np.nansum(window, axis=0) / np.maximum(count, 1)
            seasoned = listed[:known].sum(axis=0) >= min(SEASONING_DAYS, known)
            score = np.where(seasoned, mean + 1.0, np.where(listed[begin], 0.0, -1.0))
        order = np.argsort(-score, kind="stable")
        taken = 0
        for index, size in enumerate(index_sizes):
            member[begin:finish, order[taken : taken + size]] = index
            taken += size
    return member


def index_bars(market) -> list[dict]:
    """Daily bars of the three indices from their members, weighted by float cap at the last close.

    Returns are those of adjusted prices: dividends are reinvested, so that excess returns of stocks over the index carry no
    dividend. Members reach their highs at different times: the index takes half of their joint range beyond its body.

    Returns:
        per index a dict of [t] arrays open, high, low, close (points), volume (shares).
    """
    previous = np.vstack([market.close[:1], market.close[:-1]]) * np.vstack([market.factor[:1], market.factor[:-1]])
    cap = np.vstack([market.close[:1] * market.float_shares[:1], (market.close * market.float_shares_after)[:-1]])
    result = []
    for index, base in enumerate(INDEX_BASES):
        weight = np.where((market.member == index) & np.isfinite(cap), np.nan_to_num(cap), 0.0)
        weight /= weight.sum(axis=1, keepdims=True)
        parts = {}
        for name in ("open", "high", "low", "close"):
            growth = getattr(market, name) * market.factor / previous
            parts[name] = np.where(weight > 0, weight * np.nan_to_num(growth), 0.0).sum(axis=1)
        top, bottom = np.maximum(parts["open"], parts["close"]), np.minimum(parts["open"], parts["close"])
        parts["high"], parts["low"] = top + 0.5 * (parts["high"] - top).clip(0), bottom - 0.5 * (bottom - parts["low"]).clip(0)
        close = base * np.cumprod(parts["close"])
        before = np.append(base, close[:-1])
        bars = {name: before * values for name, values in parts.items()}
        bars["close"] = close
        bars["volume"] = np.where(market.member == index, market.volume, 0).sum(axis=1).astype(float)
        result.append(bars)
    return result
