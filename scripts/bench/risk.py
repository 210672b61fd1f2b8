"""Seconds and memory of style exposures, factor returns and covariances: ours, and the same in pandas (`risk_pandas.py`).

    python scripts/bench/risk.py [--stocks 2875] [--days 1700] [--rounds 3] [--peers ours,pandas,groupby]   # a generated market
    python scripts/bench/risk.py --store STORE [--rounds 3]                                            # a Qlib store

Every measurement is a process of its own, peers take turns, medians are compared. Each peer makes a small market before, which
reads (at first: makes) compiled code. `styles`, `regressions` and `covariances` are all days at once; `one more day` is the
last day alone, given what the days before taught, from the last 527 rows; its numbers are checked against those of all days.
Memory is what a stage adds at its peak. All peers start from the same arrays in memory: reading a store is printed apart, and
belongs to none. pandas works on one thread, ours makes styles on all (QLIB_EXT_THREADS=1: on one).

On a busy machine set OPENBLAS_NUM_THREADS=1: threads that wait for each other over small matrices cost more than they save.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Callable

import numpy as np
import pandas as pd
import risk_pandas as peer

from qlib_ext.data.threads import thread_count
from qlib_ext.risk.covariance import CovarianceOptions
from qlib_ext.risk.descriptor import LONGEST
from qlib_ext.risk.estimate import History, days_kept, regressions, risk_days
from qlib_ext.risk.market import LISTED_DAYS, MarketArrays, MarketReader
from qlib_ext.risk.model import expose

STYLES = ("size", "beta", "momentum", "residual_volatility", "nonlinear_size", "liquidity")
STAGES = ("styles", "regressions", "covariances")
TAIL = LONGEST + 2
INDUSTRIES = 31


def random_market(stocks: int, days: int, seed: int = 0) -> MarketArrays:
    """A third of the stocks are listed late, one in twenty ends early, one stock-day in a hundred has no trading, one industry in
    a hundred is unknown."""
    rng = np.random.default_rng(seed)
    begin = np.where(rng.random(stocks) < 1 / 3, rng.integers(0, days, stocks), 0)
    end = np.where(rng.random(stocks) < 0.05, rng.integers(0, days, stocks), days)
    place, group = np.arange(days)[:, None], rng.integers(0, INDUSTRIES, stocks)
    inside = (place >= begin) & (place < np.maximum(end, begin + 1))
    returns = rng.normal(0, 0.01, (days, 1)) * rng.normal(1, 0.3, stocks) + rng.normal(0, 0.006, (days, INDUSTRIES))[:, group]
    returns += rng.standard_t(4, (days, stocks)) * np.exp(rng.normal(-4.2, 0.3, stocks))
    returns = np.clip(returns, -0.1, 0.1)
    cap = np.exp(rng.normal(22.5, 1.1, stocks) + np.log1p(returns).cumsum(axis=0))
    traded = inside & (rng.random(inside.shape) > 0.01)
    turnover = np.where(traded, np.exp(rng.normal(-4, 0.7, stocks) + rng.normal(0, 0.6, inside.shape)), 0.0)
    industry = np.where(inside & (rng.random(stocks) > 0.01), 801000.0 + 10 * group, np.nan)
    returns = np.where(traded & (place > begin), returns, np.nan)
    cap, turnover = (np.where(inside, values, np.nan) for values in (cap, turnover))
    members = inside & ((place - begin >= LISTED_DAYS) | (begin == 0)) & (rng.random(stocks) > 0.02)
    codes = np.array([f"SH{600000 + n}" for n in range(stocks)])
    calendar = pd.bdate_range("2015-01-05", periods=days).to_numpy().astype("datetime64[D]")
    fields = {"returns": returns, "daily_returns": returns, "cap": cap, "turnover": turnover}
    return MarketArrays(calendar, 0, codes, fields, cap, members, industry, "float_cap")


def tail(market: MarketArrays, rows: int) -> MarketArrays:
    """The last days."""
    first = max(len(market.days) - rows, 0)
    fields = {name: values[first:] for name, values in market.fields.items()}
    return MarketArrays(market.days[first:], market.origin + first, market.codes, fields, market.cap[first:],
                        market.members[first:], market.industry[first:], market.cap_field)


class Ours:
    """The stages of `qlib_ext.risk`."""

    def __init__(self, market: MarketArrays, options: CovarianceOptions = CovarianceOptions()):
        self.market, self.options, self.last = market, options, None

    def styles(self) -> None:
        """Exposures of all days."""
        self.exposed = expose(self.market, STYLES)

    def regressions(self) -> None:
        """Factor returns of all days."""
        self.learnt = regressions(self.exposed)

    def covariances(self) -> None:
        """Snapshots of all days, of which the last is kept."""
        for self.last in risk_days(self.exposed, self.learnt, None, range(len(self.market.days)), self.options):
            pass

    def history(self) -> History:
        """What was known the day before the last."""
        early = History.first(self.exposed, self.learnt, days_kept(self.options) + 1)
        return History(early.factor_return.iloc[:-1], early.residual.iloc[:-1])

    def one_day(self, market: MarketArrays, history: History):
        """The last day of a market, given the history up to the day before."""
        exposed = expose(market, STYLES, len(market.days) - 2)
        return list(risk_days(exposed, regressions(exposed), history, [1], self.options))[-1]

    def numbers(self, day=None) -> dict[str, np.ndarray]:
        """The last day, or another one, to compare; exposures are those to styles."""
        day = self.last if day is None else day
        return {"exposures": day.snapshot.exposure[:, -len(STYLES):], "factor returns": day.factor_return,
                "covariance": day.snapshot.factor_cov, "specific variances": day.snapshot.specific_var}


class Pandas:
    """The stages of `risk_pandas`."""

    def __init__(self, market: MarketArrays, options: CovarianceOptions = CovarianceOptions()):
        self.market, self.options = self.frames(market), options

    @staticmethod
    def frames(market: MarketArrays) -> dict[str, pd.DataFrame]:
        """The arrays as frames, not copied."""
        parts = {**{name: market.fields[name] for name in ("returns", "daily_returns", "turnover")}, "cap": market.cap,
                 "members": market.members, "industry": market.industry}
        return {name: pd.DataFrame(part, pd.DatetimeIndex(market.days), market.codes, copy=False) for name, part in parts.items()}

    @staticmethod
    def expose(frames: dict[str, pd.DataFrame], first: int = 0, industries: pd.Index | None = None) -> peer.Exposed:
        """Styles and what regressions need."""
        styles, rest = peer.style_exposures(**frames, first=first), {name: part.iloc[first:] for name, part in frames.items()}
        styles = {name: styles[name] for name in STYLES}
        return peer.Exposed(styles, rest["daily_returns"], rest["cap"], rest["members"], rest["industry"], industries)

    def styles(self) -> None:
        """Exposures of all days."""
        self.exposed = self.expose(self.market)

    def regressions(self) -> None:
        """Factor returns of all days."""
        self.learnt = peer.regressions(self.exposed)

    def covariances(self) -> None:
        """Covariances and specific variances of all days."""
        self.risk = peer.risk_days(self.exposed, self.learnt, np.arange(len(self.exposed.days)), self.options)

    def history(self) -> peer.Regressions:
        """What was known the day before the last."""
        factor_return, residual, r_squared = (part.iloc[:-1] for part in self.learnt)
        return peer.Regressions(factor_return, residual.iloc[-days_kept(self.options):], r_squared)

    def one_day(self, market: MarketArrays, history: peer.Regressions) -> tuple:
        """The last day of a market, given the history up to the day before."""
        exposed = self.expose(self.frames(market), len(market.days) - 2, self.exposed.names)
        past = peer.Regressions(*(pd.concat([before, new.iloc[1:]]) for before, new in zip(history, peer.regressions(exposed))))
        return exposed, past, peer.risk_days(exposed, past, [1], self.options)

    def numbers(self, day=None) -> dict[str, np.ndarray]:
        """The last day, or another one, to compare."""
        exposed, past, risk = (self.exposed, self.learnt, self.risk) if day is None else day
        factors, matrix, held, specific = risk[exposed.days[-1]]
        return {"exposures": exposed.style[-1, held], "factor returns": past.factor_return.iloc[-1][factors].to_numpy(),
                "covariance": matrix, "specific variances": specific}


def grouped_regressions(exposed: peer.Exposed) -> peer.Regressions:
    """`risk_pandas.regressions` as one writes them on a long frame: groupby the day, dummies of the industries, `lstsq`."""
    known = exposed.present[:-1] & np.isfinite(exposed.returns[1:])
    day, stock = np.nonzero(known)
    style = {name: exposed.style[day, stock, k] for k, name in enumerate(exposed.factors[1 + exposed.industries:])}
    group, fit = exposed.group[day, stock], exposed.members[day, stock] & (exposed.group[day, stock] >= 0)
    frame = pd.DataFrame({"day": day + 1, "stock": stock, "y": exposed.returns[day + 1, stock], "cap": exposed.cap[day, stock],
                          "industry": group, "fit": fit, **style})
    factor_return, residual = np.full((len(exposed.days), len(exposed.factors)), np.nan), np.full(exposed.cap.shape, np.nan)
    r_squared = np.full(len(exposed.days), np.nan)

    def one(part: pd.DataFrame) -> None:
        t, fit = part.name, part["fit"].to_numpy()
        there = [name for name in style if part[name].notna().any()]
        dummies = pd.get_dummies(part["industry"], dtype=float)
        dummies = dummies[[code for code in dummies if code >= 0 and dummies.loc[fit, code].any()]]
        if fit.sum() <= 1 + dummies.shape[1] + len(there):
            return
        x, y, cap = np.column_stack([np.ones(len(part)), dummies, part[there]]), part["y"].to_numpy(), part["cap"].to_numpy()
        root = np.sqrt(np.sqrt(cap[fit]))
        found = np.linalg.lstsq(x[fit] * root[:, None], y[fit] * root, rcond=None)[0]
        count, industries = dummies[fit].sum(), slice(1, 1 + dummies.shape[1])
        shift = (cap[fit] @ dummies[fit].to_numpy()) @ found[industries] / cap[fit].sum()
        found[0], found[industries] = found[0] + shift, found[industries] - shift                  # the industries' caps sum to 0
        factor_return[t, [0, *(1 + code for code in dummies), *(exposed.factors.index(name) for name in there)]] = found
        left, weight = y - x @ found, np.sqrt(cap[fit])
        r_squared[t] = 1 - weight @ left[fit] ** 2 / (weight @ (y[fit] - weight @ y[fit] / weight.sum()) ** 2)
        alone = fit & part["industry"].map(count).eq(1).to_numpy()
        held = part["industry"].isin(dummies.columns).to_numpy() | (part["industry"] < 0).to_numpy()
        residual[t, part["stock"]] = np.where(held & ~alone, left, np.nan)

    frame.groupby("day").apply(one)
    residual[~exposed.present] = np.nan
    return peer.Regressions(pd.DataFrame(factor_return, exposed.days, exposed.factors),
                            pd.DataFrame(residual, exposed.days, exposed.codes), pd.Series(r_squared, exposed.days))


class Grouped(Pandas):
    """`Pandas` with its regressions on a long frame, by groupby: those of `Pandas` are a loop in numpy."""

    def regressions(self) -> None:
        """Factor returns of all days."""
        self.learnt = grouped_regressions(self.exposed)


PEERS = {"ours": Ours, "pandas": Pandas, "groupby": Grouped}


# ---- one process ----------------------------------------------------------------------------------------------------------------
def memory(name: str) -> int:
    """VmRSS, resident bytes of this process, or VmHWM, the most there were since the mark was set back."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def staged(function: Callable, *arguments) -> tuple[dict[str, float], object]:
    """Seconds and added peak bytes of a call, and what it gives."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")                               # the high-water mark begins anew
    before, started = memory("VmRSS"), time.perf_counter()
    made = function(*arguments)
    return {"seconds": time.perf_counter() - started, "peak": memory("VmHWM") - before}, made


def differences(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest distance of each number, over the largest number of its kind but for exposures."""
    size = {name: 1.0 if name == "exposures" else np.nanmax(np.abs(values)) for name, values in left.items()}
    return {name: float(np.nanmax(np.abs(left[name] - right[name])) / size[name]) for name in left}


def read(options: argparse.Namespace, found: dict) -> MarketArrays:
    """The market, generated or of the store; the seconds of reading it go to `found`."""
    if not options.store:
        return random_market(options.stocks, options.days)
    import qlib
    qlib.init(provider_uri=options.store, region="cn", logging_level=40)
    found["reading"], market = staged(lambda: (lambda reader: reader.arrays(0, len(reader.calendar)))(MarketReader()))
    if market.industry is None or not {"cap", "turnover"} <= set(market.fields):
        raise SystemExit("the comparison needs the fields industry, float_shares (or turnover) and market values")
    return market


def one_more_day(runner, market: MarketArrays, history, options: argparse.Namespace, found: dict):
    """The last day, from arrays, and from the store."""
    def from_store():
        reader = MarketReader()
        return runner.one_day(reader.arrays(len(reader.calendar) - TAIL, len(reader.calendar)), history)

    found["one more day"], day = staged(runner.one_day, tail(market, TAIL), history)
    if options.store:
        found["one more day, read"] = staged(from_store)[0]
    return day


def measure_here(name: str, options: argparse.Namespace) -> None:
    """Print what one process measured; its numbers of the last day go to the folder `out`."""
    warnings.simplefilter("ignore")
    found: dict = {}
    small = PEERS[name](random_market(200, 400))
    started = time.perf_counter()
    for stage in STAGES:
        getattr(small, stage)()
    found["small market before"] = {"seconds": time.perf_counter() - started, "peak": 0}
    market = read(options, found)
    runner = PEERS[name](market)
    for stage in STAGES:
        found[stage] = staged(getattr(runner, stage))[0]
    numbers = runner.numbers()
    alone = differences(numbers, runner.numbers(one_more_day(runner, market, runner.history(), options, found)))
    if not max(alone.values()) < 1e-6:
        raise SystemExit(f"{name}: the last day alone has other numbers than among all days: {alone}")
    np.savez(Path(options.out) / f"{name}.npz", **numbers)
    print(json.dumps({"stages": found, "shape": market.cap.shape, "whole": memory("VmRSS")}))


# ---- all processes --------------------------------------------------------------------------------------------------------------
def measure(name: str, options: argparse.Namespace, out: str) -> dict:
    """`measure_here` in a process of its own."""
    chosen = ["--store", options.store] if options.store else ["--stocks", str(options.stocks), "--days", str(options.days)]
    done = subprocess.run([sys.executable, __file__, "--once", name, "--out", out, *chosen], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    return json.loads(done.stdout.splitlines()[-1])


def table(found: dict[str, list[dict]]) -> list[str]:
    """A line for each stage: medians of seconds and added memory of each peer, and how many times ours the other takes."""
    seconds, lines = {}, []
    for stage in next(iter(found.values()))[0]["stages"]:
        line = f"{stage:20s}"
        for name, runs in found.items():
            spent, peak = (statistics.median(one["stages"][stage][kind] for one in runs) for kind in ("seconds", "peak"))
            seconds[name, stage] = spent
            line += f"  {name} {spent:8.3f} s {peak / 2**30:6.2f} GiB"
        lines.append(line + _ratio(seconds, stage))
    for name in found:
        seconds[name, "total"] = sum(seconds[name, stage] for stage in STAGES)
    totals = "".join(f"  {name} {seconds[name, 'total']:8.3f} s {'':10s}" for name in found)
    return [*lines, f"{'total of all days':20s}{totals}{_ratio(seconds, 'total')}"]


def _ratio(seconds: dict, stage: str) -> str:
    others = [name for name, one in seconds if one == stage and name != "ours" and ("ours", stage) in seconds]
    return "".join(f"   {name} / ours = {seconds[name, stage] / seconds['ours', stage]:5.2f}" for name in others)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("stocks", 2875), ("days", 1700), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("store", ""), ("peers", "ours,pandas,groupby"), ("once", ""), ("out", "")):
        parser.add_argument(f"--{name}", default=default)
    options = parser.parse_args()
    if options.once:
        measure_here(options.once, options)
        return
    names, loads = options.peers.split(","), [os.getloadavg()[0]]
    found: dict[str, list[dict]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as out:
        for _ in range(options.rounds):
            for name in names:
                found[name].append(measure(name, options, out))
            loads.append(os.getloadavg()[0])
        last = {name: dict(np.load(Path(out) / f"{name}.npz")) for name in names}
    days, stocks = found[names[0]][0]["shape"]
    print(f"{stocks:,} stocks x {days:,} days, {options.rounds} rounds, {thread_count()} threads, pandas {pd.__version__}, "
          f"load {min(loads):.1f} to {max(loads):.1f} (ours among it)")
    print("\n".join(table(found)))
    for name in names[1:]:
        apart = differences(last[names[0]], last[name])
        print(f"largest differences of {name}, last day: " + ", ".join(f"{kind} {value:.1e}" for kind, value in apart.items()))


if __name__ == "__main__":
    main()
