"""A small hand-made market for the tests of the store."""

import numpy as np
import pandas as pd

STOCKS = ["SH600000", "SH688001", "SZ000001", "SZ300001"]
FLOAT_SHARES = [1e6, 5e5, 2e6, 8e5]


def business_days(first: str, count: int) -> pd.DatetimeIndex:
    return pd.bdate_range(first, periods=count)


def make_bars(days: pd.DatetimeIndex) -> pd.DataFrame:
    """Four stocks: SH688001 lists on day 10, SZ300001 is suspended on days 12-14 (volume 0) and lacks rows on days 20-21.

    Day 15 is everybody's ex-date: the factor rises by 0.3 and the unadjusted prices fall by as much.
    """
    generator = np.random.default_rng(7)
    pieces = []
    for place, code in enumerate(STOCKS):
        factor = np.where(np.arange(len(days)) < 15, 1.5, 1.8) + place
        close = 10 * (place + 1) * np.exp(np.cumsum(0.02 * generator.standard_normal(len(days)))) * factor[0] / factor
        prices = {"open": close * 0.995, "high": close * 1.02, "low": close * 0.98, "close": close}
        frame = pd.DataFrame({"date": days, "instrument": code, **prices})
        frame["volume"] = generator.integers(1_000, 9_000, len(days))
        frame["amount"] = frame["volume"] * close * 1.001
        frame["turnover"] = 100 * frame["volume"] / FLOAT_SHARES[place]
        frame["factor"] = factor
        frame["is_st"] = 0
        pieces.append(frame)
    pieces[1] = pieces[1].iloc[10:]
    pieces[0].loc[5, "is_st"] = 1
    pieces[2].loc[25:, "is_st"] = -1
    pieces[2].loc[7, "amount"] = np.nan
    flat = pieces[3].loc[11, "close"]
    pieces[3].loc[12:14, ["open", "high", "low", "close"]] = flat
    pieces[3].loc[12:14, ["volume", "amount", "turnover"]] = 0
    pieces[3] = pieces[3].drop(index=[20, 21])
    return pd.concat(pieces, ignore_index=True)


def make_index_bars(days: pd.DatetimeIndex) -> pd.DataFrame:
    frames = []
    for code, level in (("SH000300", 4000.0), ("SH000852", 6000.0)):
        close = level * (1 + 0.001 * np.arange(len(days)))
        prices = {"open": close, "high": close + 5, "low": close - 5, "close": close}
        frames.append(pd.DataFrame({"date": days, "instrument": code, **prices}))
        frames[-1]["volume"] = 1e8
    return pd.concat(frames, ignore_index=True)


REPORTS = """
SH600000 2014-12-31 2015-04-28  50  60 500 0.10
SH600000 2015-12-31 2016-04-28  52  64 520 0.11
SH600000 2016-12-31 2017-04-28  55  70 560 0.12
SH600000 2017-12-31 2018-04-27  58  80 600 0.14
SH600000 2018-09-30 2018-10-30  60  66 450 0.12
SH600000 2018-12-31 2019-04-26  61  90 640 0.15
SH600000 2019-09-30 2019-10-30  64  75 510 0.13
SH600000 2019-09-30 2020-01-14  63  70 505 0.12
SH600000 2019-12-31 2020-01-30  66 100 700 0.17
SZ000001 2017-12-31 2018-03-15 200  20 900 0.02
SZ000001 2018-09-30 2018-10-25 205  18 700 0.02
SZ000001 2018-12-31 2019-03-14 210  25 950 0.03
SZ000001 2019-09-30 2020-01-20 212 -10 690 -0.01
SZ000001 2019-12-31 2020-02-01 208 -12 940 -0.01
SZ300001 2018-12-31 2019-04-30  30   5  80 0.05
"""


def make_fundamentals() -> pd.DataFrame:
    """Reports in CNY. SH600000 restates its third quarter of 2019, SZ000001 publishes it 81 days late (and its year on a
    Saturday), SZ300001 has one report without debt, SH688001 none."""
    columns = ["instrument", "period_end", "announcement", "equity", "net_profit", "sales", "eps"]
    frame = pd.DataFrame([line.split() for line in REPORTS.split("\n") if line], columns=columns)
    frame[columns[3:]] = frame[columns[3:]].astype(float)
    for name in columns[3:6]:
        frame[name] *= 1e4
    has_debt = frame["instrument"] != "SZ300001"
    frame["total_assets"] = 3 * frame["equity"]
    frame["total_debt"] = (2 * frame["equity"]).where(has_debt)
    frame["long_term_debt"] = (0.5 * frame["equity"]).where(has_debt)
    frame["preferred_equity"] = np.where(frame["instrument"] == "SZ000001", 1e5, 0.0)
    frame["operating_cash_flow"] = 1.25 * frame["net_profit"]
    return frame


def make_dividends(bars: pd.DataFrame, day: pd.Timestamp) -> pd.DataFrame:
    """What explains three of the four factor jumps: new factor / old = close before x (1 + bonus) / (close before - cash)."""
    traded = bars[(bars["date"] < day) & (bars["volume"] > 0)]
    close = traded.groupby("instrument")["close"].last()
    rows = [("SH600000", 0.0, 0.2), ("SZ000001", close["SZ000001"] * (1 - 3.5 / 3.8), 0.0),
            ("SZ300001", close["SZ300001"] * (1 - 1.05 * 4.5 / 4.8), 0.05)]
    return pd.DataFrame(rows, columns=["instrument", "cash", "bonus"]).assign(ex_date=day)


def make_tables() -> dict:
    """Stock bars on 45 business days from 2020-01-02, index bars from 10 business days earlier."""
    days = business_days("2020-01-02", 45)
    day = lambda k: days[k]  # noqa: E731
    spans = [
        ("SH600000", "csi300", "2019-01-01", "2020-12-31"),
        ("SZ000001", "csi300", "2019-01-01", day(29)),
        ("SZ300001", "csi300", day(18), "2020-12-31"),
        ("SH600999", "csi300", "2019-01-01", "2020-12-31"),  # no bars
        ("SH688001", "csi500", day(15), "2020-12-31"),
        ("SZ000001", "csi500", day(5), day(8)),
        ("SZ000001", "csi500", day(30), "2020-12-31"),
    ]
    weights = [
        ("2019-12-31", "csi300", "SH600000", 60.0),
        ("2019-12-31", "csi300", "SZ000001", 30.0),
        ("2019-12-31", "csi300", "SH600999", 10.0),
        (day(24), "csi300", "SH600000", 50.0),
        (day(24), "csi300", "SZ000001", 25.0),
        (day(24), "csi300", "SZ300001", 15.0),
        (day(24), "csi300", "SH600999", 10.0),
    ]
    shares = [
        ("2019-12-31", "SH600000", 1000e3, 1500e3, "turnover"),
        ("2020-01-31", "SH600000", 1100e3, 1500e3, "turnover"),
        ("2020-01-31", "SH688001", 500e3, 900e3, "snapshot_bfill"),
        ("2019-12-31", "SZ000001", 2000e3, 2000e3, "turnover"),
        ("2020-01-31", "SZ000001", 2000e3, 2000e3, "ffill"),
        ("2019-12-31", "SZ300001", 900e3, np.nan, "snapshot_bfill"),
        ("2020-01-15", "SZ300001", 800e3, np.nan, "turnover"),
        ("2020-01-15", "SH605000", 1.0, 1.0, "turnover"),
    ]
    industry = [
        ("SH600000", "2000-01-01", "2099-12-31", "48", "bank"),
        ("SZ000001", "2000-01-01", day(9), "43", "property"),
        ("SZ000001", day(10), "2099-12-31", "49", "finance"),
        ("SZ300001", "2000-01-01", day(3), "27", "electronics"),
    ]
    instruments = [
        ("SH600000", "stock", "1999-11-10", None, "Bank"),
        ("SH688001", "stock", day(10), None, "Chips"),
        ("SZ000001", "stock", "1991-04-03", None, "Property"),
        ("SZ300001", "stock", "2009-10-30", None, "Electronics"),
        ("SZ000002", "stock", "1991-01-29", "2019-06-28", "Gone"),  # delisted, no bars
    ]
    bars = make_bars(days)
    frames = {
        "bars": bars,
        "index_bars": make_index_bars(business_days("2019-12-19", 55)),
        "membership": pd.DataFrame(spans, columns=["instrument", "index", "start", "end"]),
        "index_weights": pd.DataFrame(weights, columns=["date", "index", "instrument", "weight"]),
        "float_shares_monthly": pd.DataFrame(shares, columns=["month", "instrument", "float_shares", "total_shares", "method"]),
        "industry": pd.DataFrame(industry, columns=["instrument", "start", "end", "l1_code", "l1_name"]),
        "fundamentals": make_fundamentals(),
        "dividends": make_dividends(bars, day(15)),
        "instruments": pd.DataFrame(instruments, columns=["instrument", "kind", "list_date", "delist_date", "name"]),
    }
    for frame in frames.values():
        for name in ("date", "start", "end", "month", "period_end", "announcement", "ex_date", "list_date", "delist_date"):
            if name in frame:
                frame[name] = pd.to_datetime(frame[name])
    return frames


def read_field(store, code: str, field: str) -> pd.Series:
    """One field straight from its file, by day: independent of Qlib and of the writer."""
    days = pd.to_datetime((store / "calendars" / "day.txt").read_text().split())
    raw = np.fromfile(store / "features" / code.lower() / f"{field}.day.bin", dtype="<f4")
    start = int(raw[0])
    return pd.Series(raw[1:], index=days[start : start + len(raw) - 1])
