"""Seconds and memory of loading Alpha158 or Alpha360 with their processors: ours, Qlib's, and the least that any loader has to do.

    python scripts/bench/features.py --store STORE [--market csi1000] [--start 2018-01-01] [--end 2024-12-31]
                                     [--handler Alpha158] [--rounds 3] [--peers ours,qlib,limit]
    python scripts/bench/features.py --growth [--rounds 3]                   # random markets: stocks 250-4000, years 2-14
    python scripts/bench/features.py --stocks 5000 --days 2430 --peers ours  # one random market; memory

Every measurement is a process of its own, peers take turns, medians are compared. Both handlers run RobustZScoreNorm and Fillna; Qlib
is started with a worker for each processor (its default leaves two unused). `limit` reads the raw field files and writes an array as
large as the result once.
"compiled" is the first load of a process, which reads our compiled code from disk, "again" the second one; run the script twice after
an installation, the first time compiles (the seconds are printed). The disk cache is off, but for `--peers cached`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

FIELDS = ("open", "high", "low", "close", "volume", "vwap", "factor", "change")


def random_market(folder: Path, stocks: int, days: int) -> Path:
    """A Qlib store of random walks without gaps."""
    rng, calendar = np.random.default_rng(0), pd.bdate_range("2010-01-04", periods=days)
    for part in ("calendars", "instruments", "features"):
        (folder / part).mkdir(parents=True)
    (folder / "calendars" / "day.txt").write_text("".join(f"{day:%Y-%m-%d}\n" for day in calendar))
    codes = [f"SH{600000 + k}" for k in range(stocks)]
    spans = "".join(f"{code}\t{calendar[0]:%Y-%m-%d}\t{calendar[-1]:%Y-%m-%d}\n" for code in codes)
    (folder / "instruments" / "all.txt").write_text(spans)
    for code in codes:
        close = 10 * np.exp(np.cumsum(rng.normal(0, 0.02, days)))
        high, low = close * (1 + rng.random(days) * 0.02), close * (1 - rng.random(days) * 0.02)
        bars = (close * (1 + rng.normal(0, 0.005, days)), high, low, close, np.exp(rng.normal(15, 1, days)), (high + low + close) / 3,
                np.ones(days), np.r_[np.nan, close[1:] / close[:-1] - 1])
        (folder / "features" / code.lower()).mkdir()
        for name, values in zip(FIELDS, bars):
            np.r_[0.0, values].astype("<f4").tofile(folder / "features" / code.lower() / f"{name}.day.bin")
    return folder


def load(peer: str, options: argparse.Namespace) -> tuple[int, int]:
    """Load once; rows and columns of the result."""
    from qlib.contrib.data import handler as theirs
    if peer == "limit":
        return read_and_write(options)
    if peer == "qlib":
        module = theirs
    else:
        from qlib_ext.data import handler as module
    fit = {"fit_start_time": options.start, "fit_end_time": options.fit_end}
    processors = [{"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature", "clip_outlier": True}},
                  {"class": "Fillna", "kwargs": {"fields_group": "feature"}}]
    label = [["Ref($close, -6) / Ref($close, -1) - 1"], ["LABEL0"]]
    handler = getattr(module, options.handler)(options.market, options.start, options.end, **fit, infer_processors=processors,
                                               learn_processors=[], drop_raw=True, label=label)
    return handler._infer.shape


def read_and_write(options: argparse.Namespace) -> tuple[int, int]:
    """The raw fields of the formulas from their files, and one pass over a result array."""
    from qlib.data import D

    from qlib_ext.data.field_reader import FieldReader
    spans = D.list_instruments(D.instruments(options.market), as_list=False)
    rows = FieldReader(spans, options.start, options.end, ["close", "high", "low", "open", "volume", "vwap"]).rows().count
    width = 158 if options.handler == "Alpha158" else 360
    np.empty((rows, width), np.float32)[:] = 1.0
    return rows, width


def measure_here(peer: str, options: argparse.Namespace) -> None:
    """What one process prints: seconds of two loads, rows, columns, bytes above what it held before, bytes of the result."""
    import qlib
    os.environ["QLIB_EXT_CACHE"] = options.cache if peer == "cached" else "off"
    qlib.init(provider_uri=options.store, region="cn", logging_level=40, kernels=len(os.sched_getaffinity(0)))
    importlib.import_module("qlib.contrib.data.handler" if peer == "qlib" else "qlib_ext.data.handler")
    peaks, took = [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss], []
    for _ in range(1 if peer == "qlib" else 2):
        started = time.perf_counter()
        rows, columns = load(peer, options)
        took.append(time.perf_counter() - started)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    before, peak = peaks[:2]
    print(json.dumps({"seconds": took, "rows": rows, "columns": columns, "peak": (peak - before) * 1024,
                      "whole": peak * 1024, "result": rows * columns * 4}))


def measure(peer: str, arguments: list[str]) -> dict:
    """`measure_here` in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--once", peer, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def compare(peers: list[str], rounds: int, arguments: list[str], title: str) -> None:
    """Peers in turns; one line each."""
    found: dict[str, list[dict]] = {peer: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            found[peer].append(measure(peer, arguments))
    base = {peer: statistics.median(one["seconds"][0] for one in runs) for peer, runs in found.items()}
    for peer, runs in found.items():
        again = statistics.median(one["seconds"][-1] for one in runs)
        one = runs[-1]
        compared = "qlib" in base and peer != "qlib"
        ratio = f", qlib takes {base['qlib'] / base[peer]:.1f} (again {base['qlib'] / again:.1f}) times as long" if compared else ""
        print(f"{title} {peer}: {one['rows']:,} rows x {one['columns']}, compiled {base[peer]:.2f} s, again {again:.2f} s{ratio}; "
              f"peak {one['peak'] / one['result']:.2f} of the result's {one['result'] / 2**30:.2f} GiB, whole process "
              f"{one['whole'] / 2**30:.2f} GiB", flush=True)


def on_random(stocks: int, days: int, options: argparse.Namespace) -> None:
    """The comparison on a random market."""
    with tempfile.TemporaryDirectory() as folder:
        store = random_market(Path(folder) / "store", stocks, days)
        end = pd.bdate_range("2010-01-04", periods=days)[days // 2]
        compare(options.peers, options.rounds, ["--store", str(store), "--market", "all", "--start", "2010-01-04", "--end", "2100-01-01",
                                                "--fit-end", f"{end:%Y-%m-%d}", "--handler", options.handler],
                f"{stocks} stocks x {days} days")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("store", None), ("market", "csi1000"), ("start", "2018-01-01"), ("end", "2024-12-31"),
                          ("fit-end", "2021-12-31"), ("handler", "Alpha158"), ("peers", "ours,qlib,limit"), ("once", None)):
        parser.add_argument(f"--{name}", default=default)
    for name, default in (("rounds", 3), ("stocks", 0), ("days", 2430)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--cache", default="")
    options = parser.parse_args()
    if options.once:
        measure_here(options.once, options)
        return
    options.peers = options.peers.split(",")
    if options.growth:
        options.peers = [peer for peer in options.peers if peer == "ours"]
        for stocks, days in ((250, 1215), (1000, 1215), (4000, 1215), (1000, 486), (1000, 3402)):
            on_random(stocks, days, options)
    elif options.stocks:
        on_random(options.stocks, options.days, options)
    else:
        with tempfile.TemporaryDirectory() as cache:
            arguments = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in ("store", "market", "start", "end", "fit-end",
                                                                                             "handler")]
            compare(options.peers, options.rounds, [*arguments, f"--cache={cache}"], options.market)


if __name__ == "__main__":
    main()
