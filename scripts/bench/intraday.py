"""Seconds and memory of the high-frequency factors against a bare scan of the same files and against pandas.

    python scripts/bench/intraday.py [--folder DIR] [--data ../shared/data] [--rounds 5] [--parts real,month,memory,features,ticks]
                                     [--stocks 5000] [--days 22]

real      the four factors of the real 15-minute bars (300 days x 250 stocks), one file a day
month     the six factors of a generated month of 1-minute bars, one file a day
memory    greatest memory of processes of their own that read more and more of those days
features  the inputs of networks of one of those days
ticks     trades a second: thresholds and the factors of trades and orders, real ticks of a few stock-days many times over

Files are in the form of the intraday folder, made under --folder (default: a temporary one) where they are not there yet. `scan` is a
polars scan that sums every column of numbers, by the faster of its two engines; `factors` reads the same files, some days at a time on two
threads; the pandas versions are vectorised groupbys that make the same values, checked to be equal, of as many days at a time as have a
million rows (the real bars at once, the month day by day). Peers take turns; medians are compared, and all are warmed once (file cache,
compiled code).
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import numpy as np
import pandas as pd
import polars as pl

from qlib_ext.factors.intraday import (FACTORS, IntradayOptions, bar_values, block_features, day_features, order_sizes, thresholds,
                                       trade_values)
from qlib_ext.factors.ticks import bars_from_trades
from qlib_ext.store.intraday import IntradayFolder, write_day

THREADS, PIECE_ROWS, PANDAS_ROWS = 2, 600_000, 1_000_000
NUMBERS = ("minute", "open", "high", "low", "close", "volume", "amount", "n_trades")


# ---- data ---------------------------------------------------------------------------------------------------------------------
def generate(folder: Path, stocks: int, days: int) -> None:
    """A month of one-minute random walks on the tick grid, with idle bars; amounts are prices times volumes."""
    for number, day in enumerate(pd.bdate_range("2024-01-01", periods=days)):
        if (folder / "bars_1min" / f"date={day:%Y-%m-%d}" / "part.parquet").is_file():
            continue
        rng, size = np.random.default_rng(number), (stocks, 240)
        traded = rng.random(size) > 0.05
        path = 20 * np.exp(rng.normal(0, 0.02, (stocks, 1)) + np.cumsum(rng.normal(0, 8e-4, size) * traded, axis=1))
        close = np.round(path, 2)
        opened = np.where(traded, np.round(np.c_[path[:, :1], path[:, :-1]] * (1 + rng.normal(0, 2e-4, size)), 2), close)
        top, bottom = (np.round(far(opened, close) * (1 + sign * traded * rng.random(size) * 5e-4), 2)
                       for far, sign in ((np.maximum, 1), (np.minimum, -1)))
        volume = 100 * rng.integers(1, 500, size) * traded
        frame = pl.DataFrame({
            "instrument": np.repeat([f"SH{600000 + k}" for k in range(stocks)], 240), "minute": np.tile(np.arange(1, 241), stocks),
            "open": opened.ravel(), "high": top.ravel(), "low": bottom.ravel(), "close": close.ravel(), "volume": volume.ravel(),
            "amount": (volume * (opened + close) / 2).ravel(), "n_trades": (np.ceil(volume / 800)).astype(np.int32).ravel()})
        write_day(folder, "bars_1min", f"{day:%Y-%m-%d}", frame)


def convert(folder: Path, data: Path) -> None:
    """The real 15-minute bars in the form of the folder."""
    if (folder / "bars_15min").is_dir():
        return
    bars = pl.read_parquet(data / "minute" / "ashare_15min.parquet")
    clock = pl.col("datetime").dt.hour().cast(pl.Int32) * 60 + pl.col("datetime").dt.minute()
    minute = pl.when(clock <= 720).then(clock - 570).otherwise(clock - 660)
    made = bars.select(pl.col("datetime").dt.date().alias("date"), pl.col("symbol").alias("instrument"), minute.alias("minute"),
                       *((pl.col(f"{name}_c") / 100).alias(name) for name in ("open", "high", "low", "close")), "volume",
                       pl.col("amount").cast(pl.Float64))
    for (day,), part in made.group_by("date", maintain_order=True):
        write_day(folder, "bars_15min", str(day), part.drop("date"))


# ---- peers --------------------------------------------------------------------------------------------------------------------
def scan(files: list[Path], engine: str) -> pl.DataFrame:
    """The least that anything has to do: read all columns of numbers and add them up."""
    frame = pl.scan_parquet(files, hive_partitioning=True, hive_schema={"date": pl.Date})
    held = frame.collect_schema()
    return frame.select(pl.col([name for name in NUMBERS if name in held]).sum()).collect(engine=engine)


def factors(files: list[Path], options: IntradayOptions) -> list[pl.DataFrame]:
    """All factors of the bars on two threads, some days at a time."""
    def some(part: list[Path]) -> pl.DataFrame:
        return bar_values(pl.scan_parquet(part, hive_partitioning=True, hive_schema={"date": pl.Date}), options).collect()

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(some, pieces(files, PIECE_ROWS)))


def pieces(files: list[Path], rows: int) -> list[list[Path]]:
    """Files of days, some at a time: as many as have `rows`."""
    days = max(round(rows / pl.scan_parquet(files[0]).select(pl.len()).collect().item()), 1) if files else 1
    return [files[first:first + days] for first in range(0, len(files), days)]


def read_pandas(files: list[Path]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(file).assign(date=file.parent.name[5:]) for file in files], ignore_index=True)


def pandas_factors(frame: pd.DataFrame, options: IntradayOptions) -> pd.DataFrame:
    """The same values as one would write them in pandas: vectorised, a groupby by date and instrument for each sum."""
    key = ["date", "instrument"]

    def total(values: pd.Series, how: str = "sum") -> pd.Series:
        return values.groupby([frame[one] for one in key], observed=True, sort=False).agg(how)

    before = frame.groupby(key, observed=True, sort=False)["close"].shift(1).fillna(frame["open"])
    r = np.log(frame["close"] / before)
    fall, minute = r < 0, frame["minute"]
    rest = r - r.groupby([frame[one] for one in key], observed=True, sort=False).transform("mean")
    found = {"hf_skew": np.sqrt(total(r, "count")) * total(rest**3) / total(rest**2) ** 1.5,
             "hf_down_share": total((r**2).where(fall, 0.0)) / total(r**2),
             "hf_improved_reversal": np.log(total(frame["close"].where(minute == 240), "last")
                                            / total(frame["close"].where(minute == options.open_minutes), "last")),
             "hf_tail_share": total(frame["volume"].where(minute > 240 - options.tail_minutes, 0)) / total(frame["volume"])}
    if "n_trades" in frame:
        amount, trades = frame["amount"], frame["n_trades"]
        found["hf_outflow_share"] = (total(amount.where(fall, 0)) / total(trades.where(fall, 0))) / (total(amount) / total(trades))
        ranked = frame[key].assign(size=amount / trades, gain=np.log(frame["close"] / frame["open"]))[trades > 0]
        ranked = ranked.sort_values("size", ascending=False, kind="stable")
        groups = ranked.groupby(key, observed=True, sort=False)
        chosen = ranked[groups.cumcount() < np.ceil(options.push_share * groups["size"].transform("size") - 1e-9)]
        found["hf_push_up"] = np.expm1(chosen.groupby(key, observed=True, sort=False)["gain"].sum())
    return pd.DataFrame(found).where(total(frame["volume"] > 0) >= options.min_traded * 240 / options.bar_minutes)


def tuned_pandas_factors(frame: pd.DataFrame, options: IntradayOptions) -> pd.DataFrame:
    """The same values by the fastest pandas we know: groups numbered once, one groupby of plain sums, one sort by numbers."""
    key = pd.Series(frame.groupby(["date", "instrument"], observed=True, sort=False).ngroup())
    before = frame["close"].shift(1).where(key.eq(key.shift(1)), frame["open"])
    r = np.log(frame["close"] / before)
    fall, minute, volume, amount = r < 0, frame["minute"], frame["volume"], frame["amount"]
    rest = r - r.groupby(key).transform("mean")
    columns = {"n": r.notna(), "square": r**2, "down": (r**2).where(fall, 0.0), "second": rest**2, "third": rest**3, "volume": volume,
               "tail": volume.where(minute > 240 - options.tail_minutes, 0), "traded": volume > 0,
               "open": frame["close"].where(minute == options.open_minutes), "last": frame["close"].where(minute == 240)}
    if "n_trades" in frame:
        trades = frame["n_trades"]
        columns |= {"amount": amount, "trades": trades, "fall_amount": amount.where(fall, 0), "fall_trades": trades.where(fall, 0)}
    total = pd.DataFrame(columns).groupby(key).sum()
    found = {"hf_skew": np.sqrt(total["n"]) * total["third"] / total["second"] ** 1.5, "hf_down_share": total["down"] / total["square"],
             "hf_improved_reversal": np.log(total["last"] / total["open"]), "hf_tail_share": total["tail"] / total["volume"]}
    if "n_trades" in frame:
        found["hf_outflow_share"] = (total["fall_amount"] / total["fall_trades"]) / (total["amount"] / total["trades"])
        ranked = pd.DataFrame({"key": key, "size": -(amount / trades), "gain": np.log(frame["close"] / frame["open"])})[trades > 0]
        ranked = ranked.sort_values(["key", "size"], kind="stable")
        place, count = ranked.groupby("key").cumcount(), ranked.groupby("key")["size"].transform("size")
        found["hf_push_up"] = np.expm1(ranked[place < np.ceil(options.push_share * count - 1e-9)].groupby("key")["gain"].sum())
    return pd.DataFrame(found).where(total["traded"] >= options.min_traded * 240 / options.bar_minutes)


def compare(files: list[Path], options: IntradayOptions) -> None:
    """Whether pandas and ours agree.

    Raises:
        SystemExit: they do not; nothing is worth measuring then.
    """
    ours = pl.concat(factors(files, options))
    for version in (pandas_factors, tuned_pandas_factors):
        theirs = pd.concat([version(read_pandas(part), options) for part in pieces(files, PANDAS_ROWS)])
        for name in theirs:
            a, b = ours[name].to_numpy().astype(float), theirs[name].to_numpy()
            held = np.isfinite(b)
            if (np.isnan(a) == held).any() or not np.allclose(a[held], b[held], rtol=1e-7, atol=1e-10):
                raise SystemExit(f"{name}: pandas and ours differ")
    print(f"  pandas and ours agree on {ours.height} stock-days x {len(theirs.columns)} factors")


# ---- measuring ------------------------------------------------------------------------------------------------------------------
def turns(peers: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median seconds of peers that take turns, after one warm-up each; printed with the seconds that all threads computed."""
    times: dict[str, list[float]] = {name: [] for name in peers}
    busy: dict[str, list[float]] = {name: [] for name in peers}
    for number in range(rounds + 1):
        for name, run in peers.items():
            start, begun = time.perf_counter(), time.process_time()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
                busy[name].append(time.process_time() - begun)
    for name, found in times.items():
        print(f"  {name:<18} median {statistics.median(found):7.3f} s, computing {statistics.median(busy[name]):7.3f} s   "
              f"({' '.join(f'{one:.3f}' for one in sorted(found))})", flush=True)
    return {name: statistics.median(found) for name, found in times.items()}


def bars_part(title: str, files: list[Path], options: IntradayOptions, rounds: int) -> None:
    rows = pl.scan_parquet(files).select(pl.len()).collect().item()
    print(f"{title}: {len(files)} days, {rows / 1e6:.1f} M rows, {sum(one.stat().st_size for one in files) / 1e6:.0f} MB", flush=True)
    compare(files, options)
    peers = {"scan (streaming)": lambda: scan(files, "streaming"), "scan (in memory)": lambda: scan(files, "in-memory"),
             "factors": lambda: factors(files, options)}
    found = turns(peers, rounds)
    least = min(found["scan (streaming)"], found["scan (in memory)"])
    print(f"  factors / scan = {found['factors'] / least:.2f}   ({rows / found['factors'] / 1e6:.1f} M rows a second)", flush=True)
    parts = pieces(files, PANDAS_ROWS)
    held, ours = read_pandas(parts[0]), pl.scan_parquet(parts[0], hive_partitioning=True, hive_schema={"date": pl.Date}).collect()
    found = turns({"factors": lambda: factors(files, options),
                   "pandas": lambda: [pandas_factors(read_pandas(part), options) for part in parts],
                   "pandas, tuned": lambda: [tuned_pandas_factors(read_pandas(part), options) for part in parts],
                   "factors in memory": lambda: bar_values(ours.lazy(), options).collect(),
                   "pandas in memory": lambda: pandas_factors(held, options),
                   "tuned in memory": lambda: tuned_pandas_factors(held, options)}, max(rounds // 2, 3))
    print(f"  pandas / factors = {found['pandas'] / found['factors']:.1f}, tuned {found['pandas, tuned'] / found['factors']:.1f}; "
          f"{len(held)} rows in memory, one thread: {found['pandas in memory'] / found['factors in memory']:.1f}, tuned "
          f"{found['tuned in memory'] / found['factors in memory']:.1f}", flush=True)


def memory_part(folder: Path, files: list[Path]) -> None:
    print("greatest memory of processes of their own (0 days: the libraries alone)")
    for count in sorted({0, min(5, len(files)), len(files) // 2, len(files)}):
        code = (f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nimport intraday as bench\n"
                f"bench.factors(bench.day_files(bench.Path({str(folder)!r}), 'bars_1min')[:{count}], bench.IntradayOptions())\n"
                "print(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])")
        made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(f"  {count:3d} days {int(made.stdout) // 1024:6d} MB", flush=True)


def features_part(files: list[Path], arguments: argparse.Namespace) -> None:
    print("inputs of networks, one generated day")
    bars = pl.scan_parquet(files[0], hive_partitioning=True, hive_schema={"date": pl.Date})
    peers = {"32 of the day": lambda: day_features(bars).collect(), "20 of 4 blocks": lambda: block_features(bars, 60).collect(),
             "20 of 8 blocks": lambda: block_features(bars, 30).collect()}
    turns(peers, arguments.rounds)


def ticks(data: Path, copies: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Trades, orders and one-minute bars of the real ticks of one day, as if of many stocks."""
    def put(name: str, columns: dict[str, str]) -> pl.DataFrame:
        time_of = pl.col("time")
        clock = (time_of.dt.hour().cast(pl.Int32) * 3600 + time_of.dt.minute().cast(pl.Int32) * 60 + time_of.dt.second()) * 1000
        side = pl.col("side").cast(pl.String).replace_strict({"B": 1, "S": -1}, default=0, return_dtype=pl.Int8)
        kind = pl.col("kind").cast(pl.String).replace_strict({"A": 1, "D": -1}, default=0, return_dtype=pl.Int8)
        one = pl.read_parquet(data / "minute" / name).filter(pl.col("time").dt.year() == 2023).select(
            pl.col("time").dt.date().alias("date"), pl.col("symbol").cast(pl.String).alias("instrument"),
            (clock + time_of.dt.millisecond()).cast(pl.Int32).alias("millisecond"), pl.col("price").cast(pl.Float64),
            pl.col("qty").cast(pl.Int64).alias("quantity"), side.alias("side"), kind.alias("kind"),
            *(pl.col(old).cast(pl.Int64).alias(new) for old, new in columns.items()), pl.col("seq").alias("sequence"))
        return pl.concat([one.with_columns(instrument=pl.col("instrument") + f"_{k:03d}") for k in range(copies)]).sort(
            "instrument", "millisecond", "sequence").with_columns(pl.col("instrument").cast(pl.Categorical))

    trades = put("l2_trades.parquet", {"buy_no": "buy_order", "sell_no": "sell_order"}).filter(pl.col("kind") == 0).drop("kind")
    orders = put("l2_orders.parquet", {"order_no": "order"})
    bars = bars_from_trades(trades.lazy()).collect()
    return trades, orders, bars


def ticks_part(data: Path, arguments: argparse.Namespace) -> None:
    trades, orders, bars = ticks(data, arguments.copies)
    options = IntradayOptions(min_threshold_days=1)
    sizes = order_sizes(trades.lazy(), options).collect()
    day = trades["date"][0] + pd.Timedelta(days=1)
    edges = thresholds(sizes, day, options)
    print(f"ticks: {len(trades) / 1e6:.1f} M trades, {len(orders) / 1e6:.1f} M orders of {sizes.height} stocks")
    peers = {"order sizes": lambda: order_sizes(trades.lazy(), options).collect(),
             "four factors": lambda: trade_values(trades.lazy(), orders.lazy(), bars.lazy(), edges, options, list(FACTORS[2:6])).collect(),
             "features": lambda: day_features(bars.lazy(), trades.lazy()).collect()}
    for name, seconds in turns(peers, arguments.rounds).items():
        print(f"  {name}: {len(trades) / seconds / 1e6:.1f} M trades a second")


def day_files(folder: Path, table: str) -> list[Path]:
    source = IntradayFolder(folder)
    return [source.path_of(table, day) for day in source.days(table)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
    parser.add_argument("--parts", default="real,month,memory,features,ticks")
    for name, default in {"rounds": 5, "stocks": 5000, "days": 22, "copies": 10}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    print(f"polars {pl.__version__}, {pl.thread_pool_size()} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if "real" in parts:
            convert(folder, arguments.data)
            files = day_files(folder, "bars_15min")
            bars_part("real 15-minute bars", files, IntradayOptions(bar_minutes=15), arguments.rounds)
        if {"month", "memory", "features"} & set(parts):
            generate(folder, arguments.stocks, arguments.days)
            files = day_files(folder, "bars_1min")
            if "month" in parts:
                bars_part("generated 1-minute bars", files, IntradayOptions(), arguments.rounds)
            if "memory" in parts:
                memory_part(folder, files)
            if "features" in parts:
                features_part(files, arguments)
        if "ticks" in parts:
            ticks_part(arguments.data, arguments)
    print(f"greatest memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MB")


if __name__ == "__main__":
    main()
