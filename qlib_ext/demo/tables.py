"""The demo market as tables: the columns and types of the daily A-share tables that `qlib_ext.store` ingests."""

from pathlib import Path

import numpy as np
import pandas as pd

from qlib_ext.demo.etfs import add_etfs
from qlib_ext.demo.fundamentals import fundamentals_table
from qlib_ext.demo.market import Market
from qlib_ext.demo.membership import INDEX_CODES, INDEX_NAMES, index_bars
from qlib_ext.demo.stocks import INDUSTRIES


def make_tables(market: Market) -> dict[str, pd.DataFrame]:
    """All tables of the stocks and indices by name, as `store.schema` describes them."""
    return {
        "bars": bars_table(market),
        "index_bars": index_bars_table(market),
        "membership": membership_table(market),
        "index_weights": index_weights_table(market),
        "industry": industry_table(market),
        "float_shares_monthly": float_shares_table(market),
        "fundamentals": fundamentals_table(market),
        "dividends": dividends_table(market),
        "instruments": instruments_table(market),
    }


def write_tables(market: Market, folder: str | Path, etfs: bool = False) -> Path:
    """Write every table of `make_tables`, with `etfs` those of `add_etfs`, as `<name>.parquet` into `folder` (made if absent); same
    market, same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = make_tables(market)
    for name, table in (add_etfs(tables, market) if etfs else tables).items():
        table.to_parquet(folder / f"{name}.parquet", index=False)
    return folder


def bars_table(market: Market) -> pd.DataFrame:
    """One row per stock and listed day, stock by stock: raw OHLC and amount in CNY, volume in shares, turnover in % of float.

    Prices and factor keep all digits, so that ex-right prices that lie between two ticks are rounded as the exchange does.
    """
    stock, day = np.nonzero(market.listed.T)
    turnover = 100.0 * market.volume / np.where(market.listed, market.float_shares, 1.0)
    columns = {"date": market.days[day].astype("datetime64[ms]"), "instrument": instrument_column(market, stock)}
    for name in ("open", "high", "low", "close"):
        columns[name] = getattr(market, name)[day, stock]
    columns["volume"] = market.volume[day, stock]
    columns["amount"] = market.amount[day, stock].astype(np.float32)
    columns["turnover"] = turnover[day, stock].astype(np.float32)
    columns["factor"] = market.factor[day, stock]
    columns["is_st"] = market.is_st[day, stock].astype(np.int8)
    return pd.DataFrame(columns)


def dividends_table(market: Market) -> pd.DataFrame:
    """One row per stock and ex-date: cash in CNY before tax and new shares, both per share held before."""
    stock, day = np.nonzero((np.nan_to_num(market.cash) > 0).T | (np.nan_to_num(market.bonus) > 0).T)
    columns = {"instrument": np.array(market.instruments, dtype=object)[stock]}
    columns["ex_date"] = market.days[day].astype("datetime64[us]")
    return pd.DataFrame({**columns, "cash": market.cash[day, stock], "bonus": market.bonus[day, stock]})


def instruments_table(market: Market) -> pd.DataFrame:
    """One row per stock listed so far: kind, day of listing, last day if it has been delisted, a made-up name."""
    stocks = np.flatnonzero(market.listed.any(axis=0))
    last = market.days[market.last_listed()[stocks]]
    columns = {"instrument": np.array(market.instruments, dtype=object)[stocks], "kind": "stock"}
    first = market.days[np.argmax(market.listed, axis=0)[stocks]]
    listed = np.where(first > market.days[0], first, market.static["list_date"][stocks])
    columns["list_date"] = listed.astype("datetime64[us]")
    columns["delist_date"] = np.where(last < market.days[-1], last, np.datetime64("NaT")).astype("datetime64[us]")
    columns["name"] = [f"Company {stock + 1:03d}" for stock in stocks]
    return pd.DataFrame(columns)


def index_bars_table(market: Market) -> pd.DataFrame:
    """Index bars in points, volume in shares and amount in CNY of all members, `change_pct` in percent (NaN on the first day)."""
    parts = []
    for code, name, bars in zip(INDEX_CODES, ("CSI300", "CSI500", "CSI1000"), index_bars(market), strict=True):
        change = np.append(np.nan, 100.0 * (bars["close"][1:] / bars["close"][:-1] - 1.0))
        columns = {"date": market.days.astype("datetime64[us]"), "instrument": code}
        columns.update({field: bars[field].astype(np.float32) for field in ("open", "high", "low", "close", "volume", "amount")})
        parts.append(pd.DataFrame({**columns, "name": name, "change_pct": change.astype(np.float32)}))
    return pd.concat(parts, ignore_index=True)


def membership_table(market: Market) -> pd.DataFrame:
    """Spans of membership; `end` is the last calendar day before the next list (or the last day of the market)."""
    rows = []
    days = market.days.astype("datetime64[us]")
    for stock, instrument in enumerate(market.instruments):
        series = market.member[:, stock]
        edges = np.flatnonzero(np.diff(series)) + 1
        starts, stops = np.append(0, edges), np.append(edges, len(series))
        for begin, stop in zip(starts, stops, strict=True):
            if series[begin] >= 0:
                end = days[stop] - np.timedelta64(1, "D") if stop < len(days) else days[-1]
                rows.append((instrument, INDEX_NAMES[series[begin]], days[begin], end, True))
    table = pd.DataFrame(rows, columns=["instrument", "index", "start", "end", "has_bars"])
    return table.astype({"start": "datetime64[us]", "end": "datetime64[us]"})


def index_weights_table(market: Market) -> pd.DataFrame:
    """Weights of csi300 by float cap at the close, in percent: on the first day and every month's last trading day."""
    parts = []
    for day in np.flatnonzero(market.month_end | (np.arange(len(market.days)) == 0)):
        members = np.flatnonzero(market.member[day] == 0)
        cap = market.close[day, members] * market.float_shares[day, members]
        codes = [market.instruments[stock] for stock in members]
        weight = np.round(100.0 * cap / cap.sum(), 4)
        date = market.days[day].astype("datetime64[us]")
        parts.append(pd.DataFrame({"date": date, "index": INDEX_NAMES[0], "instrument": codes, "weight": weight}))
    return pd.concat(parts, ignore_index=True)


def industry_table(market: Market) -> pd.DataFrame:
    """Industry in force by span. Codes and names are made up (`l1_code` 01..31); `l1_latest`, the last one, looks ahead."""
    rows = []
    for stock in np.flatnonzero(market.listed.any(axis=0)):
        series = market.industry[:, stock]
        first = int(np.argmax(market.listed[:, stock]))
        edges = [first, *(np.flatnonzero(np.diff(series[first:])) + first + 1)]
        for position, begin in enumerate(edges):
            is_last = position + 1 == len(edges)
            end = np.datetime64("2099-12-31") if is_last else market.days[edges[position + 1]] - np.timedelta64(1, "D")
            code = int(series[begin]) + 1
            rows.append((market.instruments[stock], market.days[begin], end, code, int(series[-1]) + 1))
    table = pd.DataFrame(rows, columns=["instrument", "start", "end", "code", "latest"])
    names = np.array([f"Industry {number:02d}" for number in range(INDUSTRIES + 1)])
    name = names[table["code"]]
    return pd.DataFrame(
        {
            "instrument": table["instrument"],
            "start": table["start"].astype("datetime64[us]"),
            "end": table["end"].astype("datetime64[us]"),
            "sw_code": [f"{code:02d}0101" for code in table["code"]],
            "l1_code": [f"{code:02d}" for code in table["code"]],
            "l1_name": name,
            "l2": name,
            "l3": name,
            "l1_latest": names[table["latest"]],
            "in_sw2021_table": False,
            "updated": table["start"].dt.strftime("%Y-%m-%d %H:%M:%S"),
        }
    )


def float_shares_table(market: Market) -> pd.DataFrame:
    """Float and total shares known after the close of each complete month (`month` is its last day), from the month before the
    first bar.

    The values are those of the month's last close: with shares unlocked for the next day, without bonus shares that go ex on it,
    which table `dividends` adds on the ex-date.
    """
    month = market.days.astype("datetime64[M]")
    ends = np.flatnonzero(market.month_end)
    last = market.last_listed()
    parts = []
    for stock in np.flatnonzero(market.listed.any(axis=0)):
        first = int(np.argmax(market.listed[:, stock]))
        later = ends[(ends >= first) & (ends <= last[stock])]
        months = np.append(month[first] - 1, month[later])
        last_day = (months + 1).astype("datetime64[D]") - np.timedelta64(1, "D")
        columns = {"month": last_day.astype("datetime64[us]"), "instrument": market.instruments[stock]}
        growth = market.total_shares_after[later, stock] / market.total_shares[later, stock]
        for name in ("float_shares", "total_shares"):
            before = np.round(getattr(market, f"{name}_after")[later, stock] / growth)
            columns[name] = np.append(getattr(market, name)[first, stock], before)
        parts.append(pd.DataFrame({**columns, "method": "turnover"}))
    return pd.concat(parts, ignore_index=True)


def instrument_column(market: Market, stock: np.ndarray) -> pd.Categorical:
    """Codes of the stocks at positions `stock` as a categorical, as in real bars."""
    return pd.Categorical.from_codes(stock.astype(np.int16), categories=market.instruments)
