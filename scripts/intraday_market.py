"""A daily store for minute bars that no daily tables go with.

    python scripts/intraday_market.py --bars FOLDER --out STORE          # FOLDER as `qlib_ext.store ingest-intraday` makes it

Daily bars are made of the minute bars: first open, highest high, lowest low, last close, sums of volume and amount. What such bars cannot
tell is not made up: no adjustment factors (all are 1), no shares, industries, members or ST. All stocks are one pool, universe `pool`, and
its index SH999999 is the mean of their daily returns, without returns that no price limit allows: those are days on which a price was
adjusted. `jumps` finds them, so that labels across them can be left out; smaller adjustments, as of most cash dividends, stay in.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

from qlib_ext.errors import DataError, ExtError

INDEX, POOL = "SH999999", "pool"
LIMIT, TICK = 0.10, 0.01


def daily_bars(bars: pl.LazyFrame) -> pd.DataFrame:
    """Daily bars of bars in the form of `qlib_ext.store.intraday`, by instrument and date; days without a trade are left out."""
    made = (bars.filter(pl.col("volume") > 0).group_by("instrument", "date")
            .agg(open=pl.col("open").sort_by("minute").first(), high=pl.col("high").max(), low=pl.col("low").min(),
                 close=pl.col("close").sort_by("minute").last(), volume=pl.col("volume").sum(), amount=pl.col("amount").sum())
            .with_columns(instrument=pl.col("instrument").cast(pl.String)).sort("instrument", "date").collect())
    frame = pd.DataFrame({name: made[name].to_numpy() for name in made.columns})
    return frame.assign(date=frame["date"].astype("datetime64[ms]"), factor=1.0)


def jumps(close: np.ndarray, opened: np.ndarray) -> np.ndarray:
    """Days ``[t, n]`` bool on which a stock opens further from its last close than the main board's price limit allows.

    Args:
        close, opened: ``[t, n]`` raw CNY, NaN on days without a bar.
    """
    last = pd.DataFrame(close).ffill().shift(1).to_numpy()
    return np.abs(opened - last) > LIMIT * last + TICK


def pool_index(bars: pd.DataFrame) -> pd.DataFrame:
    """Bars of the pool's index, in points from 1,000: the mean return of the day, jumps left out; flat within the day."""
    wide = {name: bars.pivot(index="date", columns="instrument", values=name) for name in ("open", "close", "volume", "amount")}
    returns = (wide["close"] / wide["close"].ffill().shift(1) - 1).mask(jumps(wide["close"].to_numpy(), wide["open"].to_numpy()))
    level = (1 + returns.mean(axis=1).fillna(0.0)).cumprod().to_numpy() * 1000
    prices = dict.fromkeys(("open", "high", "low", "close"), level)
    return pd.DataFrame({"date": wide["close"].index, "instrument": INDEX, **prices, "volume": wide["volume"].sum(axis=1).to_numpy(),
                         "amount": wide["amount"].sum(axis=1).to_numpy()})


def daily_tables(bars: pl.LazyFrame) -> dict[str, pd.DataFrame]:
    """The tables bars, index_bars and membership of a store.

    Raises:
        DataError: no bar with a trade.
    """
    made = daily_bars(bars)
    if made.empty:
        raise DataError("the minute bars hold no trade: nothing can be made of them")
    spans = made.groupby("instrument")["date"].agg(["min", "max"]).reset_index()
    members = pd.DataFrame({"instrument": spans["instrument"], "index": POOL, "start": spans["min"], "end": spans["max"]})
    return {"bars": made, "index_bars": pool_index(made), "membership": members}


def build(folder: str, out: str) -> Path:
    """The store; see the head of this file. Errors are those of `IntradayFolder` and `qlib_ext.store.ingest.ingest`."""
    from qlib_ext.store.ingest import ingest
    from qlib_ext.store.intraday import IntradayFolder
    source = IntradayFolder(folder)
    tables = [name for name in source.tables() if name.startswith("bars_")]
    if not tables:
        raise DataError(f"{folder} holds no bars ({source.tables()}): run python -m qlib_ext.store ingest-intraday --table bars")
    with tempfile.TemporaryDirectory() as aside:
        for name, frame in daily_tables(source.scan(min(tables, key=len))).items():
            frame.to_parquet(Path(aside, f"{name}.parquet"), index=False)
        return ingest(aside, out, index_names=[POOL])


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bars", required=True, help="folder of minute bars")
    parser.add_argument("--out", required=True, help="folder of the store to make")
    options = parser.parse_args(arguments)
    try:
        print(build(options.bars, options.out))
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
