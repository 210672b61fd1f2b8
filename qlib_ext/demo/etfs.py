"""ETFs of the demo market: sector and broad ones with monthly baskets, made of its stocks after all else is drawn.

Nothing here moves a stock: ETFs read the finished market and draw from a stream of their own. An index holds float-cap weights
with a cap, renewed at month ends; an ETF follows its index less a fee, within a small premium. Cash dividends of the members stay
in the ETF (its factor is 1). Axes: `t` trading day, `n` stock, `e` ETF.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from qlib_ext.demo.market import Market
from qlib_ext.demo.membership import INDEX_CODES
from qlib_ext.demo.signal import autoregress
from qlib_ext.demo.streams import stream
from qlib_ext.market_rules import limit_prices, tick_size

SECTOR_INDUSTRIES = (2,) * 5 + (3,) * 7
"""Industries of each sector index, in the order of their numbers."""
LARGEST, SEASONED = 40, 60
CAPS = {"sector": 0.15, "broad": 0.10}
FEE = 0.006 / 244
PREMIUM, PREMIUM_DAYS = 0.0006, 2.0
AMOUNT_WAVE, AMOUNT_DAYS, AMOUNT_NOISE = 0.35, 40.0, 0.30
LONG_AGO = "2012-05-28"


@dataclass(frozen=True)
class Fund:
    """An ETF: its code, tracked index, class, usual amount a day in CNY, first day of listing."""

    code: str
    index: str
    kind: str
    amount: float
    listing: str = LONG_AGO


FUNDS = (
    *(Fund(code, index, "broad", amount)
      for code, index, amount in zip(("SH510300", "SH510500", "SH512100"), INDEX_CODES, (8e8, 4e8, 1.5e8))),
    *(Fund(f"SH512{number:03d}", f"SECTOR{number:02d}", "sector", amount)
      for number, amount in enumerate((3e8, 1e8, 6e7, 2.2e7, 9e7, 4e7), 1)),
    Fund("SH512007", "SECTOR07", "sector", 5e7, "2016-03-01"),
    Fund("SH512008", "SECTOR08", "sector", 4e6),
    *(Fund(f"SH512{number:03d}", f"SECTOR{number:02d}", "sector", amount)
      for number, amount in enumerate((1.6e8, 1.9e7, 7e7), 9)),
    Fund("SH512012", "SECTOR12", "sector", 8e7, "2023-05-04"),
    Fund("SZ159901", "SECTOR01", "sector", 1.2e8),
    Fund("SZ159905", "SECTOR05", "sector", 8e7),
)
"""Twelve sector indices, two of them tracked by two ETFs (those of SECTOR05 trade about as much); SH512004 and SH512010 trade around
the usual limit of 20 million a day, SH512008 never reaches it; two are listed late."""


@dataclass(frozen=True)
class Index:
    """A made index: `open`, `high`, `low`, `close` [t] levels, and its baskets (day, members, weights) by month end."""

    levels: dict[str, np.ndarray]
    baskets: list[tuple[int, np.ndarray, np.ndarray]]


def add_etfs(tables: dict[str, pd.DataFrame], market: Market) -> dict[str, pd.DataFrame]:
    """The tables of `demo.tables.make_tables` with the ETFs' rows behind those of the stocks, and table `etf_baskets`."""
    indices = make_indices(market)
    start = {fund: int(np.searchsorted(market.days, np.datetime64(fund.listing))) for fund in FUNDS}
    funds = [fund for fund in FUNDS if fund.index in indices and start[fund] < len(market.days)]
    bars = _bars(market, indices, funds, start)
    first = [pd.Timestamp(fund.listing) for fund in funds]
    about = pd.DataFrame({"instrument": [fund.code for fund in funds], "kind": "etf", "list_date": first, "delist_date": pd.NaT,
                          "name": [f"{fund.index} fund" for fund in funds], "tracked_index": [fund.index for fund in funds],
                          "etf_class": [fund.kind for fund in funds]})
    about = about.astype({name: tables["instruments"][name].dtype for name in ("list_date", "delist_date")})
    stocks = tables["instruments"].assign(tracked_index=None, etf_class=None)
    return {**tables, "bars": _below(tables["bars"], bars), "instruments": pd.concat([stocks, about], ignore_index=True),
            "etf_baskets": _baskets(market, indices, funds, start)}


def make_indices(market: Market) -> dict[str, Index]:
    """Sector and broad indices by name; a sector without a stock on the first day is left out."""
    edges = np.append(0, np.cumsum(SECTOR_INDUSTRIES))
    inside = {f"SECTOR{k + 1:02d}": (market.industry >= edges[k]) & (market.industry < edges[k + 1]) for k in range(len(edges) - 1)}
    inside.update({code: market.member == k for k, code in enumerate(INDEX_CODES)})
    prices = {name: _carried(getattr(market, name) * market.factor) for name in ("open", "high", "low", "close")}
    kinds = {fund.index: fund.kind for fund in FUNDS}
    return {name: _index(market, mine, kinds[name], prices) for name, mine in inside.items() if (mine & market.listed)[0].any()}


def _index(market: Market, inside: np.ndarray, kind: str, prices: dict[str, np.ndarray]) -> Index:
    """One index; a basket counts from the day after its date on."""
    dates, baskets = np.flatnonzero(market.month_end | (np.arange(len(market.days)) == 0)), []
    levels = {name: np.ones(len(market.days)) for name in prices}
    for date, end in zip(dates, np.append(dates[1:], len(market.days) - 1)):
        fit = inside[date] & market.listed[date]
        seasoned = fit & ~market.is_st[date] & (market.listed_days[date] >= SEASONED)
        members = np.flatnonzero(seasoned if seasoned.any() else fit)
        if len(members):
            cap = market.close[date, members] * market.float_shares[date, members]
            members = members[np.sort(np.argsort(-cap, kind="stable")[:LARGEST if kind == "sector" else len(cap)])]
            cap = market.close[date, members] * market.float_shares[date, members]
            baskets.append((int(date), members, np.round(capped_weights(cap, CAPS[kind]), 5)))
        _, members, weights = baskets[-1]
        units = weights / prices["close"][date, members]
        days = slice(date + 1, end + 1)
        for name, price in prices.items():
            levels[name][days] = levels["close"][date] * (price[days][:, members] @ units) / weights.sum()
    return Index(levels, baskets)


def capped_weights(cap: np.ndarray, limit: float) -> np.ndarray:
    """Weights in proportion to `cap` [n], none above `limit` (above 1 / n where n is too small for it)."""
    limit, weights, full = max(limit, 1 / len(cap)), cap / cap.sum(), np.zeros(len(cap), dtype=bool)
    while (weights > limit + 1e-12).any():
        full |= weights > limit
        weights[full] = limit
        if not full.all():
            weights[~full] = cap[~full] / cap[~full].sum() * (1 - limit * full.sum())
    return weights


def _carried(prices: np.ndarray) -> np.ndarray:
    """Prices [t, n] with the last one after the end of a listing; 0 before its start."""
    return pd.DataFrame(prices).ffill().fillna(0.0).to_numpy()


def _bars(market: Market, indices: dict[str, Index], funds: list[Fund], start: dict[Fund, int]) -> pd.DataFrame:
    """Bars of the ETFs: net value less fee, times a premium that comes back, to ticks inside the price limits; fund by fund."""
    shape = len(market.days), len(FUNDS)
    draws = stream(market.seed, "etf").standard_normal((shape[0], 3, shape[1]))
    premium = 1.0 + PREMIUM * autoregress(draws[:, 0], PREMIUM_DAYS)
    wave = AMOUNT_WAVE * autoregress(draws[:, 1], AMOUNT_DAYS) + AMOUNT_NOISE * draws[:, 2]
    parts = []
    for fund in funds:
        k, days = FUNDS.index(fund), slice(start[fund], None)
        levels, days_held = indices[fund.index].levels, np.arange(shape[0] - start[fund])
        value = np.exp(-FEE * days_held) * premium[days, k] / levels["close"][start[fund]]
        bar = _within_limits(market.days[days], {name: levels[name][days] * value for name in levels})
        price = sum(bar.values()) / 4
        volume = np.maximum(np.round(fund.amount * np.exp(wave[days, k]) / price / 100), 1.0) * 100
        parts.append(pd.DataFrame({"date": market.days[days].astype("datetime64[ms]"), "instrument": fund.code, **bar,
                                   "volume": volume.astype(np.int64), "amount": (volume * price).astype(np.float32),
                                   "turnover": np.float32(np.nan), "factor": 1.0, "is_st": np.int8(0)}))
    return pd.concat(parts, ignore_index=True)


def _within_limits(days: np.ndarray, wanted: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Bars [t] in ticks; what would pass a day's limit stands at it. Members reach their highs at different times: half their joint
    range beyond the body counts."""
    top, bottom = (edge(wanted["open"], wanted["close"]) for edge in (np.maximum, np.minimum))
    wanted = {**wanted, "high": top + 0.5 * (wanted["high"] - top).clip(0), "low": bottom - 0.5 * (bottom - wanted["low"]).clip(0)}
    ticks = tick_size("etf", days)
    bar = {name: np.round(values / ticks) * ticks for name, values in wanted.items()}
    for t in range(1, len(days)):
        high, low = limit_prices(bar["close"][t - 1], 0.1, 0.1, ticks[t])
        for name in bar:
            bar[name][t] = np.clip(bar[name][t], low, high)
    bar = {name: np.round(values, 3) for name, values in bar.items()}
    return {name: bar[name] for name in ("open", "high", "low", "close")}


def _below(stocks: pd.DataFrame, etfs: pd.DataFrame) -> pd.DataFrame:
    """Bars of stocks, then of ETFs, with the stocks' types."""
    known = stocks["instrument"].cat.categories
    codes = pd.CategoricalDtype([*known, *pd.unique(etfs["instrument"])])
    both = [stocks.assign(instrument=stocks["instrument"].astype(codes)), etfs.assign(instrument=etfs["instrument"].astype(codes))]
    return pd.concat(both, ignore_index=True)[list(stocks)]


def _baskets(market: Market, indices: dict[str, Index], funds: list[Fund], start: dict[Fund, int]) -> pd.DataFrame:
    """One row per ETF, month end since its listing, and member."""
    codes, parts = np.array(market.instruments, dtype=object), []
    for fund in funds:
        for date, members, weights in indices[fund.index].baskets:
            if date >= start[fund]:
                parts.append(pd.DataFrame({"instrument": fund.code, "date": market.days[date].astype("datetime64[us]"),
                                           "member": codes[members], "weight": weights}))
    return pd.concat(parts, ignore_index=True)
