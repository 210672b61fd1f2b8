"""Reports of the demo market's companies as published: quarterly, lagged inside the legal windows, some late, some restated."""

import numpy as np
import pandas as pd

from qlib_ext.demo import signal
from qlib_ext.demo.market import Market
from qlib_ext.demo.streams import stream

FIRST_PERIOD = 2010
PROSPECTUS_QUARTERS, PROSPECTUS_DAYS = 12, 20
BOOK_LEVEL, BOOK_OF_VALUE, BOOK_SPEED, BOOK_TREND = np.log(0.45), 0.75, 0.25, 0.015
LATE_CHANCE, RESTATED_CHANCE = 0.006, 0.012
# By quarter of the year: months from the period's end to the end of the legal window, length of the window in use (days).
WINDOW_MONTHS = np.array([1, 2, 1, 4])
WINDOW_DAYS = np.array([22, 47, 21, 100])


def period_ends(last: np.datetime64) -> np.ndarray:
    """Last days of the quarters from 2010 up to `last`, datetime64[D] [q]."""
    months = np.arange(np.datetime64(f"{FIRST_PERIOD}-01"), last.astype("datetime64[M]") + 2)[2::3]
    ends = (months + 1).astype("datetime64[D]") - 1
    return ends[ends <= last]


def deadlines(ends: np.ndarray) -> np.ndarray:
    """Last day on which a report of a period may be published by law: 30 April, 31 August, 31 October, 30 April (annual)."""
    months = ends.astype("datetime64[M]")
    return (months + WINDOW_MONTHS[months.astype(int) // 3 % 4] + 1).astype("datetime64[D]") - 1


def fundamentals_table(market: Market) -> pd.DataFrame:
    """All reports announced up to the market's last day, restated ones as further rows; columns of the schema.

    Book equity follows the market value of the past year or so and the latent value exposure: cheap companies by latent
    value are those of high book to price. Companies under special treatment lost money in the two years before. Reports of the
    three years before a late listing come with the prospectus. Same period, same numbers in a longer market.
    """
    ends = period_ends(market.days[-1])
    shape = (len(ends), len(market.instruments))
    normal = stream(market.seed, "report").standard_normal((shape[0], 8, shape[1]))
    uniform = stream(market.seed, "announcement").random((shape[0], 6, shape[1]))
    numbers = _numbers(market, ends, normal)
    announced = _announcements(market, ends, uniform)
    restated = announced + 40 + (200 * uniform[:, 3]).astype(int)
    parts = []
    for rows, day, error in ((None, announced, 0.0), (uniform[:, 2] < RESTATED_CHANCE, restated, 0.4 * uniform[:, 4] - 0.3)):
        known = _published(market, ends, day) & (True if rows is None else rows)
        quarter, stock = np.nonzero(known)
        table = {"instrument": np.array(market.instruments)[stock], "period_end": ends[quarter], "announcement": day[known]}
        table.update({name: _restate(name, values, numbers, error)[known] for name, values in numbers.items()})
        parts.append(pd.DataFrame(table))
    table = pd.concat(parts, ignore_index=True).sort_values(["instrument", "period_end", "announcement"], ignore_index=True)
    return table.astype({"period_end": "datetime64[us]", "announcement": "datetime64[us]"})


def _numbers(market: Market, ends: np.ndarray, normal: np.ndarray) -> dict[str, np.ndarray]:
    """Every number of the schema [q, n]: balances of the period's end, flows and eps year to date."""
    place = np.searchsorted(market.days, ends, side="right") - 1
    inside = (place >= 0)[:, None] & market.listed[np.maximum(place, 0)]
    static = market.static
    price = np.where(inside, market.close[place], static["price"])
    shares = np.where(inside, market.total_shares[place], static["total_shares"])
    value = market.states["exposure"]["value"][np.maximum(place, 0)]
    trend = BOOK_TREND * np.minimum(np.arange(len(ends)) - np.searchsorted(ends, market.days[0]), 0)[:, None]
    equity = _follow(np.log(price * shares) + BOOK_LEVEL + BOOK_OF_VALUE * value + trend, normal[:, 0])
    fixed = normal[0]  # the first quarter's other draws are the company's own
    return_on_equity = 0.08 + 0.05 * fixed[1] + 0.04 * signal.autoregress(np.ascontiguousarray(normal[:, 2]), 8.0)
    age = (static["st_start"] - ends[:, None]).astype(int)
    return_on_equity = np.where((age > 0) & (age < 760), -0.12 - 0.03 * np.abs(fixed[1]), return_on_equity)
    profit = equity * (return_on_equity / 4 + 0.004 * normal[:, 3])
    sales = equity * np.exp(np.log(1.1) + 0.6 * fixed[4]) / 4 * np.exp(0.06 * normal[:, 4])
    cash_flow = 1.1 * profit + 0.012 * equity * normal[:, 5]
    liabilities = equity * (1.0 / (1.0 - np.clip(0.42 + 0.17 * fixed[6], 0.08, 0.85)) - 1.0) * np.exp(0.02 * normal[:, 6])
    debt = liabilities * np.clip(0.5 + 0.12 * fixed[7], 0.1, 0.9)
    preferred = np.where(fixed[5] > 2.0, 0.06, 0.0) * equity
    flows = {"net_profit": profit, "sales": sales, "operating_cash_flow": cash_flow}
    flows = {name: _year_to_date(flow) for name, flow in flows.items()}
    balances = {"equity": equity, "total_assets": equity + liabilities, "total_debt": debt, "long_term_debt": 0.4 * debt,
                "preferred_equity": preferred}  # fmt: skip
    numbers = {name: np.round(part, 2) for name, part in (balances | flows).items()}
    return {**numbers, "eps": np.round(flows["net_profit"] / shares, 4)}


def _follow(target: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Book equity [q, n]: each quarter its logarithm goes a part of the way to the target."""
    equity = np.empty_like(target)
    equity[0] = target[0]
    for quarter in range(1, len(target)):
        equity[quarter] = equity[quarter - 1] + BOOK_SPEED * (target[quarter] - equity[quarter - 1]) + 0.01 * noise[quarter]
    return np.exp(equity)


def _year_to_date(flow: np.ndarray) -> np.ndarray:
    """Sums within each year of quarterly flows [q, n] that begin with a first quarter."""
    total = flow.copy()
    for quarter in range(len(flow)):
        if quarter % 4:
            total[quarter] += total[quarter - 1]
    return total


def _announcements(market: Market, ends: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Day of first publication [q, n], crowded towards the deadline; a few come up to two months after it. By law the report of a
    first quarter does not come before that of the year before."""
    quarter = ends.astype("datetime64[M]").astype(int) // 3 % 4
    early = (WINDOW_DAYS[quarter][:, None] * uniform[:, 0] ** 2).astype(int)
    late = 3 + (60 * uniform[:, 5]).astype(int)
    day = deadlines(ends)[:, None] + np.where(uniform[:, 1] < LATE_CHANCE, late, -early)
    day[4::4] = np.maximum(day[4::4], day[3:-1:4])
    prospectus = market.static["list_date"] - PROSPECTUS_DAYS
    return np.where(market.static["list_date"] > market.days[0], np.maximum(day, prospectus), day)


def _published(market: Market, ends: np.ndarray, day: np.ndarray) -> np.ndarray:
    """Which reports come out: up to the market's and the stock's last day, three years back from a late listing. [q, n]"""
    last = np.where(market.listed.any(axis=0), market.days[market.last_listed()], ends[0])
    is_late = market.static["list_date"] > market.days[0]
    first = market.static["list_date"] - 92 * PROSPECTUS_QUARTERS
    return (day <= last) & (~is_late | (ends[:, None] >= first))


def _restate(name: str, values: np.ndarray, numbers: dict, error) -> np.ndarray:
    """A number after the correction: profit and eps change by the fraction `error` [q, n], equity by as much money."""
    if name in ("net_profit", "eps"):
        return np.round(values * (1.0 + error), 2 if name == "net_profit" else 4)
    return np.round(values + error * numbers["net_profit"], 2) if name in ("equity", "total_assets") else values
