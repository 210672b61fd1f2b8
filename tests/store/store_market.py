"""A small hand-made market for the tests of the store."""

import numpy as np
import pandas as pd

STOCKS = ["SH600000", "SH688001", "SZ000001", "SZ300001"]


def business_days(first: str, count: int) -> pd.DatetimeIndex:
    return pd.bdate_range(first, periods=count)


def make_bars(days: pd.DatetimeIndex) -> pd.DataFrame:
    """Four stocks: SH688001 lists on day 10, SZ300001 is suspended on days 12-14 (volume 0) and lacks rows on days 20-21."""
    generator = np.random.default_rng(7)
    pieces = []
    for place, code in enumerate(STOCKS):
        close = 10 * (place + 1) * np.exp(np.cumsum(0.02 * generator.standard_normal(len(days))))
        prices = {"open": close * 0.995, "high": close * 1.02, "low": close * 0.98, "close": close}
        frame = pd.DataFrame({"date": days, "instrument": code, **prices})
        frame["volume"] = generator.integers(1_000, 9_000, len(days))
        frame["amount"] = frame["volume"] * close * 1.001
        frame["turnover"] = generator.uniform(0.1, 3, len(days))
        frame["factor"] = np.where(np.arange(len(days)) < 15, 1.5, 1.8) + place
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
        ("2019-12-31", "SH600000", 1000.0, "turnover"),
        ("2020-01-31", "SH600000", 1100.0, "turnover"),
        ("2020-01-31", "SH688001", 500.0, "snapshot_bfill"),
        ("2019-12-31", "SZ000001", 2000.0, "turnover"),
        ("2020-01-31", "SZ000001", 2000.0, "ffill"),
        ("2019-12-31", "SZ300001", 900.0, "snapshot_bfill"),
        ("2020-01-15", "SZ300001", 800.0, "turnover"),
        ("2020-01-15", "SH605000", 1.0, "turnover"),
    ]
    industry = [
        ("SH600000", "2000-01-01", "2099-12-31", "48", "bank"),
        ("SZ000001", "2000-01-01", day(9), "43", "property"),
        ("SZ000001", day(10), "2099-12-31", "49", "finance"),
        ("SZ300001", "2000-01-01", day(3), "27", "electronics"),
    ]
    frames = {
        "bars": make_bars(days),
        "index_bars": make_index_bars(business_days("2019-12-19", 55)),
        "membership": pd.DataFrame(spans, columns=["instrument", "index", "start", "end"]),
        "index_weights": pd.DataFrame(weights, columns=["date", "index", "instrument", "weight"]),
        "float_shares_monthly": pd.DataFrame(shares, columns=["month", "instrument", "float_shares", "method"]),
        "industry": pd.DataFrame(industry, columns=["instrument", "start", "end", "l1_code", "l1_name"]),
    }
    for frame in frames.values():
        for name in ("date", "start", "end", "month"):
            if name in frame:
                frame[name] = pd.to_datetime(frame[name])
    return frames


def read_field(store, code: str, field: str) -> pd.Series:
    """One field straight from its file, by day: independent of Qlib and of the writer."""
    days = pd.to_datetime((store / "calendars" / "day.txt").read_text().split())
    raw = np.fromfile(store / "features" / code.lower() / f"{field}.day.bin", dtype="<f4")
    start = int(raw[0])
    return pd.Series(raw[1:], index=days[start : start + len(raw) - 1])
