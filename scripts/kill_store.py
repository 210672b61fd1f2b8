#!/usr/bin/env python
"""Kill ingestions and appends at random moments, and show that the store is then the old one or the new one, never a mixture.

Each round starts with the old store, lets a child run `python -m qlib_ext.store ingest` with --overwrite or --append (in turns),
kills it (SIGKILL) at a random moment, and compares every byte of the store with the old and the new one, made without a kill.
Two rounds of four are killed at any moment of the whole duration, two within NEAR seconds of the metadata being written, which
is just before the stores are exchanged. Then a complete ingestion of the old tables must bring the old store back and clear what
the dead one left. Exit status 1 at the first mixture. Run: `python scripts/kill_store.py [--times 50]`
"""

import argparse
import hashlib
import os
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

import qlib_ext.store.append  # noqa: F401  (imported before the children are forked, so that they begin at once)
from qlib_ext.errors import DataError
from qlib_ext.store import check_files, check_store
from qlib_ext.store.__main__ import main as store_command
from qlib_ext.store.metadata import METADATA_FILE

DAYS = pd.bdate_range("2020-01-02", periods=160)
CUT = DAYS[120]  # the append adds the days after it
NEAR = 0.03


def make_tables(stocks: int, seed: int) -> dict:
    """Prices, two indices and their members: random, the same for the same seed."""
    generator = np.random.default_rng(seed)
    days, codes = np.tile(DAYS, stocks), np.repeat([f"SH{600000 + k}" for k in range(stocks)], len(DAYS))
    close = 20 * np.exp(np.cumsum(0.01 * generator.standard_normal((stocks, len(DAYS))), axis=1)).ravel()
    bars = pd.DataFrame({"date": days, "instrument": codes, "open": close, "high": close * 1.01, "low": close * 0.99,
                         "close": close, "volume": generator.integers(1e5, 1e6, len(close)), "factor": 1.0})  # fmt: skip
    level = 4000.0 + np.arange(len(DAYS))
    index_bars = pd.DataFrame({"date": DAYS, "instrument": "SH000300", "open": level, "high": level, "low": level, "close": level,
                               "volume": 1e8})  # fmt: skip
    members = pd.DataFrame({"instrument": np.unique(codes), "index": np.resize(["csi300", "csi500"], stocks),
                            "start": DAYS[0], "end": pd.Timestamp("2030-12-31")})  # fmt: skip
    return {"bars": bars, "index_bars": index_bars, "membership": members}


def save(tables: dict, folder: Path, first=DAYS[0], last=DAYS[-1]) -> Path:
    """Write the tables of the days first..last."""
    folder.mkdir(parents=True)
    for name, frame in tables.items():
        rows = frame if "date" not in frame else frame[(frame["date"] >= first) & (frame["date"] <= last)]
        rows.to_parquet(folder / f"{name}.parquet")
    return folder


def start(arguments: list, log: Path) -> int:
    """Run the store's command line in a child process; returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os._exit(store_command([str(argument) for argument in arguments]))
    except BaseException:  # a child never returns into what its parent does
        traceback.print_exc()
        os._exit(1)


def finish(arguments: list, log: Path) -> float:
    """Run a child to its end; returns its seconds."""
    started = time.monotonic()
    if os.waitpid(start(arguments, log), 0)[1]:
        sys.exit(f"a run without a kill failed:\n{log.read_text()[-2000:]}")
    return time.monotonic() - started


def hash_of(store: Path) -> str:
    """Hash of the names and the bytes of all files of a folder."""
    total = hashlib.sha256()
    for file in sorted(path for path in store.rglob("*") if path.is_file()):
        total.update(f"{file.relative_to(store)} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def state_of(store: Path, known: dict) -> str:
    """`known[hash]` of a whole store; a sentence that begins with MIXTURE for anything else."""
    try:
        check_store(store)
        check_files(store)
    except DataError as error:
        return f"MIXTURE: {error}"
    return known.get(hash_of(store), "MIXTURE: whole, but neither the old nor the new store")


def leftovers(place: Path) -> list:
    """Hidden names beside the store."""
    return sorted(path.name for path in place.iterdir() if path.name.startswith("."))


def rehearse(place: Path, stocks: int, log: Path) -> tuple:
    """The commands as (name, arguments, seconds, hash -> state), and the arguments that make the old store."""
    tables = make_tables(stocks, seed=1)
    old, new = save(tables, place / "old", last=CUT), save(tables, place / "new", first=CUT + pd.Timedelta(days=1))
    other, out, commands = save(make_tables(stocks, seed=2), place / "other"), place / "stores" / "store", []
    restore = ["ingest", "--tables", old, "--out", out, "--overwrite"]
    for name, tables, flag in (("overwrite", other, "--overwrite"), ("append", new, "--append")):
        finish(restore, log)
        before = hash_of(out)
        arguments = ["ingest", "--tables", tables, "--out", out, flag]
        seconds = finish(arguments, log)
        commands.append((name, arguments, seconds, {before: "old store", hash_of(out): "new store"}))
    finish(restore, log)
    return commands, restore


def wait(child: int, out: Path, seconds: float, near: bool, generator: random.Random) -> float:
    """Sleep until the moment to kill; returns the seconds since the start."""
    started, moment = time.monotonic(), generator.uniform(0, 1.2 * seconds)
    if near:
        written = out.parent / f".{out.name}.building-{child}" / METADATA_FILE
        replaced = f".{out.name}.replaced-{child}-*"
        while not (written.exists() or any(out.parent.glob(replaced)) or os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            time.sleep(0.0002)
        moment = generator.uniform(0, NEAR)
    time.sleep(moment)
    return time.monotonic() - started


def run(place: Path, times: int, seed: int, stocks: int) -> int:
    """All rounds; 0 if every store was whole."""
    log, generator, found = place / "log.txt", random.Random(seed), Counter()
    commands, restore = rehearse(place, stocks, log)
    out = restore[restore.index("--out") + 1]
    print(f"{'round':>5}  {'command':9}  {'killed at':>9}  {'of about':>8}  {'state':9}  left beside it")
    for number in range(times):
        name, arguments, seconds, known = commands[number % 2]
        child = start(arguments, log)
        moment = wait(child, out, seconds, number % 4 > 1, generator)
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)[1] == 0
        state = state_of(out, known)
        beside = re.sub(f"-{child}[-0-9]*", "", ", ".join(leftovers(out.parent))) or "nothing"
        print(f"{number + 1:>5}  {name:9}  {moment:7.2f} s  {seconds:6.2f} s  {state:9}  {beside}{' (had ended)' * ended}",
              flush=True)  # fmt: skip
        found[f"{name}: {state}"] += 1
        if not state.startswith("MIXTURE"):
            finish(restore, log)
            state = state_of(out, {next(iter(known)): "old store"})
            state = f"MIXTURE: the next run left {leftovers(out.parent)}" if leftovers(out.parent) else state
        if state.startswith("MIXTURE"):
            print(state)
            return 1
    print(", ".join(f"{name} {count}" for name, count in sorted(found.items())) + "; mixtures 0")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--stocks", type=int, default=120, help="size of the market (default: %(default)s)")
    parser.add_argument("--place", help="folder for the stores, removed at the end (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.place, ignore_cleanup_errors=True) as folder:
        sys.exit(run(Path(folder), options.times, options.seed, options.stocks))
