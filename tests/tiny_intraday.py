"""A tiny market with 15-minute bars: 24 stocks, 30 days; what the tests of intraday fields are made on."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

from qlib_ext.store.ingest import ingest
from qlib_ext.store.intraday import write_day

CODES = [f"SH600{k:03d}" for k in range(24)]
DAYS = pd.bdate_range("2020-01-02", periods=30)
INDEX = ("csi300",)


def tables(days: pd.DatetimeIndex = DAYS) -> dict:
    """Daily tables, the same on a day whichever days are asked for: three industries, float shares; SH600003 lists on day 12."""
    draw = np.random.default_rng(3)
    steps, volume = draw.normal(0, 0.02, (len(DAYS), len(CODES))), draw.integers(1_000, 9_000, (len(DAYS), len(CODES)))
    close = 10 * np.exp(np.cumsum(steps, axis=0))
    grid = pd.DataFrame({"date": np.repeat(DAYS, len(CODES)), "instrument": np.tile(CODES, len(DAYS)), "close": close.ravel()})
    for name, part in (("open", 1.0), ("high", 1.01), ("low", 0.99)):
        grid[name] = grid["close"] * part
    grid["volume"], grid["factor"] = volume.ravel(), 1.0
    grid = grid[(grid["instrument"] != CODES[3]) | (grid["date"] >= DAYS[12])]
    index = pd.DataFrame({"date": DAYS, "instrument": "SH000300", **dict.fromkeys(("open", "high", "low", "close"), 4000.0), "volume": 1e8})
    members = pd.DataFrame({"instrument": CODES, "index": "csi300", "start": pd.Timestamp("2019-01-01"), "end": pd.Timestamp("2021-01-01")})
    industry = pd.DataFrame({"instrument": CODES, "start": pd.Timestamp("2019-01-01"), "end": pd.Timestamp("2021-01-01"),
                             "l1_code": [str(10 + k % 3) for k in range(len(CODES))]})
    shares = pd.DataFrame({"instrument": CODES, "month": pd.Timestamp("2019-12-31"), "float_shares": draw.uniform(1e6, 9e6, len(CODES))})
    return {"bars": grid[grid["date"].isin(days)].reset_index(drop=True), "index_bars": index[index["date"].isin(days)],
            "membership": members, "industry": industry, "float_shares_monthly": shares}


def build_store(place: Path, days: pd.DatetimeIndex = DAYS) -> Path:
    return ingest(tables(days), place, index_names=INDEX)


def bars(day: pd.Timestamp, codes: list = CODES) -> pl.DataFrame:
    """15-minute bars of a day, which depend on nothing else."""
    draw, count = np.random.default_rng(int(day.value // 10**9)), 16 * len(codes)
    opened = draw.uniform(9, 11, count)
    close = opened * np.exp(draw.normal(0, 0.005, count))
    volume = draw.integers(100, 9_000, count)
    frame = pl.DataFrame({"instrument": np.repeat(codes, 16), "minute": np.tile(np.arange(15, 241, 15, dtype=np.int16), len(codes)),
                          "open": opened, "high": np.maximum(opened, close), "low": np.minimum(opened, close), "close": close,
                          "volume": volume, "amount": volume * close})
    return frame.with_columns(pl.col("instrument").cast(pl.Categorical))


def build_folder(place: Path, days: pd.DatetimeIndex = DAYS) -> Path:
    """An intraday folder of `bars_15min`."""
    for day in days:
        write_day(place, "bars_15min", np.datetime64(day, "D"), bars(day))
    return place


def trades(day: pd.Timestamp, codes: list = CODES[:6], count: int = 60) -> pl.DataFrame:
    """Trades of some stocks between 09:30 and 10:30, each order in several of them."""
    draw, rows = np.random.default_rng(int(day.value // 10**9) + 1), count * len(codes)
    frame = pl.DataFrame({"instrument": np.repeat(codes, count), "millisecond": draw.integers(34_200_000, 37_800_000, rows),
                          "price": draw.uniform(9, 11, rows).round(2), "quantity": 100 * draw.integers(1, 50, rows),
                          "side": draw.choice([-1, 1], rows), "buy_order": draw.integers(1, 20, rows),
                          "sell_order": draw.integers(21, 40, rows)})
    return frame.sort("instrument", "millisecond").with_columns(sequence=pl.int_range(pl.len()).over("instrument"))
