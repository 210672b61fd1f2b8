"""How often each special case happens in a demo market."""

import numpy as np
import pandas as pd

from qlib_ext.demo.fundamentals import deadlines, fundamentals_table
from qlib_ext.demo.market import Market
from qlib_ext.market_rules import limit_prices, price_limits


def allowed_prices(market: Market) -> tuple[np.ndarray, np.ndarray]:
    """Highest and lowest price allowed [t, n] by `market_rules`; NaN without a limit and on the first day."""
    adjusted = market.close * market.factor
    reference = np.vstack([np.full((1, adjusted.shape[1]), np.nan), adjusted[:-1]]) / market.factor
    limits = price_limits(market.board, market.is_st, market.listed_days, market.days[:, None])
    return limit_prices(reference, *limits)


def special_cases(market: Market) -> dict[str, int]:
    """Stock-days or events by name: closes at a limit by board and side, days of one price at a limit, days without a limit,
    suspensions, ex-dates, listings, delistings, special treatment, moves between industries, reports."""
    high, low = allowed_prices(market)
    up, down = market.trading & (market.close == high), market.trading & (market.close == low)
    entered, left = market.listed[1:] & ~market.listed[:-1], ~market.listed[1:] & market.listed[:-1]
    unlimited = market.trading[1:] & market.listed[:-1] & np.isnan(high[1:])
    moved = (market.industry[1:] != market.industry[:-1]) & market.listed[1:] & market.listed[:-1]
    counts = {}
    for board in ("main", "chinext", "star"):
        counts[f"limit_up_{board}"] = up[:, market.board == board]
        counts[f"limit_down_{board}"] = down[:, market.board == board]
    counts |= {
        "one_price_at_limit": (up | down) & (market.high == market.low),
        "days_without_limit": unlimited,
        "suspended_days": market.listed & ~market.trading,
        "ex_dates_cash": np.nan_to_num(market.cash) > 0,
        "ex_dates_bonus": np.nan_to_num(market.bonus) > 0,
        "listings": entered,
        "delistings": left,
        "delistings_of_members": left & (market.member[:-1] >= 0),
        "st_days": market.is_st,
        "industry_moves": moved,
    }
    return {name: int(cases.sum()) for name, cases in counts.items()} | _report_cases(market)


def _report_cases(market: Market) -> dict[str, int]:
    table = fundamentals_table(market)
    listed = pd.Series(market.static["list_date"], index=market.instruments).loc[table["instrument"]].to_numpy()
    first = ~table.duplicated(["instrument", "period_end"]).to_numpy()
    announced = table["announcement"].to_numpy().astype("datetime64[D]")
    late = announced > deadlines(table["period_end"].to_numpy().astype("datetime64[D]"))
    late &= first & (announced > listed)
    return {"reports": len(table), "reports_late": int(late.sum()), "reports_restated": int((~first).sum())}
