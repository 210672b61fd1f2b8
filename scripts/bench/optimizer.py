"""Time, objective and violations of the index enhancer against a direct Clarabel solve and other libraries, week by week.

    python scripts/bench/optimizer.py [--weeks 52] [--sizes 300,1000,5000] [--limits 0.05,0.03] [--peers all] [--seed 0]
    python scripts/bench/optimizer.py --first [--peers ours]          # the first problem of 5,000 stocks in a fresh process

Every week all methods solve the same problem (`optimizer_instances.py`), one after the other, in an order that rotates. A ratio is
the median over weeks of (seconds of a method / seconds of the baseline in that week); quartiles stand beside. Week 0, where
problems are compiled, is kept apart. The gap is (best - objective) / |best| with the best of Clarabel at a tolerance of 1e-9;
where a method leaves out a part of the problem there is no gap, and its violations say what that costs. One thread.

--peers: a list among ours, cvxpy-dpp, cvxpy-rebuilt, qlib, skfolio, cvxportfolio, riskfolio; a peer without its package is skipped.
"""

from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")                                                  # read when numpy is loaded

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import pickle  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Callable, Mapping, NamedTuple, Sequence  # noqa: E402

import numpy as np  # noqa: E402
from optimizer_instances import INDUSTRIES, STYLES, Instance, solve_direct, weeks  # noqa: E402

BARS = {(300, 0.05): 0.80, (1000, 0.05): 0.45, (5000, 0.05): 0.15, (300, 0.03): 0.90, (1000, 0.03): 0.75, (5000, 0.03): 0.25}
"""Ratios that ours must not exceed, by stocks and limit of tracking error."""
FIRST_SECONDS, FIRST_BYTES = 1.0, 2**30
BASELINE, OURS = "baseline", "ours"
EXACT = 1e-6
"""A violation above this is a fault of the solution, not of arithmetic."""


class Baseline:
    """The direct Clarabel solve."""

    name, leaves_out = BASELINE, ""

    def prepare(self, one: Instance) -> Instance:
        """As it is."""
        return one

    def solve(self, one: Instance) -> np.ndarray:
        """Weights ``[n]``."""
        return solve_direct(one).weights


class Ours:
    """`qlib_ext.portfolio.optimizer.IndexEnhancer`; the snapshot of the risk model is there before the clock starts."""

    name, leaves_out = OURS, ""

    def __init__(self):
        self.enhancers = {}

    def prepare(self, one: Instance) -> tuple:
        """The enhancer, made once, and what it is asked each week."""
        from qlib_ext.portfolio.optimizer import IndexEnhancer
        from qlib_ext.risk.snapshot import INDUSTRY, RiskSnapshot

        if one.turnover not in self.enhancers:
            limits = {"cap": one.largest, "benchmark_multiple": {"multiple": one.multiple, "floor": one.floor}, "style": one.style,
                      "industry": one.industry, "tracking_error": one.tracking_error}
            limits |= {"turnover": one.turnover} if np.isfinite(one.turnover) else {}
            limits |= {"member_share": one.member_share} if one.member_share else {}
            self.enhancers[one.turnover] = IndexEnhancer(constraints=limits, cost_aversion=1.0, standardize=False, ladder=None)
        names = [f"style{place:02d}" for place in range(STYLES)] + [f"{INDUSTRY}{place:02d}" for place in range(INDUSTRIES)]
        risk = RiskSnapshot(np.datetime64("2020-01-03") + 7 * one.week, np.array([f"S{place:05d}" for place in range(len(one.alpha))]),
                            tuple(names), one.exposure, one.factor_cov, one.specific_var)
        return self.enhancers[one.turnover], one, risk

    def solve(self, asked: tuple) -> np.ndarray:
        """Weights ``[n]``."""
        enhancer, one, risk = asked
        return enhancer.solve(one.alpha, risk, one.benchmark, one.current, no_buy=one.no_buy, no_sell=one.no_sell,
                              cost=(one.cost, one.cost), members=one.members).weights


class Record(NamedTuple):
    """One method in one week; NaN where it failed. `broken` names the constraint of the worst violation, `risk` is the tracking error."""

    method: str
    week: int
    seconds: float
    ratio: float
    gap: float
    violation: float
    broken: str
    risk: float


def quality(one: Instance, weights: np.ndarray, best: float) -> tuple[float, float, str]:
    """Gap against the best objective, worst violation (0 where all is kept) and the name of the constraint.

    Raises:
        ValueError: weights ``[n]`` of another length or not finite.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != one.alpha.shape or not np.isfinite(weights).all():
        raise ValueError(f"week {one.week}: weights {weights.shape} for {len(one.alpha)} stocks, or not finite")
    amounts = one.violations(weights)
    worst = max(amounts, key=amounts.get)
    return (best - one.objective(weights)) / abs(best), max(amounts[worst], 0.0), worst


def race(instances: Sequence[Instance], methods: Mapping[str, object], clock: Callable[[], float] = time.perf_counter) -> list[Record]:
    """Solve all instances with all methods, the baseline among them, in rotated order. A week that a method fails is said."""
    records = []
    for one in instances:
        turn = one.week % len(methods)
        order = [*list(methods)[turn:], *list(methods)[:turn]]
        asked, spent, found = {name: methods[name].prepare(one) for name in order}, {}, {}
        for name in order:
            started = clock()
            try:
                found[name] = methods[name].solve(asked[name])
            except Exception as error:                                      # a peer may raise anything: the race goes on
                print(f"{name}, week {one.week}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
            spent[name] = clock() - started
        best = solve_direct(one, 1e-9)
        if best.status != "Solved":
            raise RuntimeError(f"week {one.week}: Clarabel at 1e-9 ends as {best.status}")
        for name in order:
            if name not in found:
                records.append(Record(name, one.week, np.nan, np.nan, np.nan, np.nan, "failed", np.nan))
                continue
            records.append(Record(name, one.week, spent[name], spent[name] / spent[BASELINE],
                                  *quality(one, found[name], best.objective), one.active_risk(found[name])))
    return records


def table(records: Sequence[Record], methods: Mapping[str, object], bar: float | None) -> list[str]:
    """A line for each method: ratio and its quartiles, milliseconds, week 0, largest gap, worst violation, weeks."""
    lines = [f"{'method':14s} {'ratio':>6s} {'quartiles':>13s} {'ms':>8s} {'week 0':>8s} {'gap':>8s} {'violation':>9s} {'of':15s} weeks"]
    for name, method in methods.items():
        mine = [record for record in records if record.method == name]
        first = [record.seconds for record in mine if record.week == 0]
        later = [record for record in mine if record.week and np.isfinite(record.seconds)]
        if not later:
            lines.append(f"{name:14s} no week solved")
            continue
        low, middle, high = np.percentile([record.ratio for record in later], [25, 50, 75])
        worst = max(later, key=lambda record: record.violation)
        gap = "-" if method.leaves_out else f"{max(record.gap for record in later):.1e}"
        failed = sum(not np.isfinite(record.seconds) for record in mine)
        line = (f"{name:14s} {middle:6.3f} {low:6.3f}-{high:6.3f} {1e3 * np.median([record.seconds for record in later]):8.1f} "
                f"{1e3 * first[0] if first else np.nan:8.1f} {gap:>8s} {worst.violation:9.1e} "
                f"{worst.broken if worst.violation > EXACT else '':15s} {len(later)}{f', {failed} failed' if failed else ''}")
        if name == OURS and bar is not None:
            line += f"   bar {bar:.2f}: {'kept' if middle <= bar else 'MISSED'}"
        lines.append(line)
    for name, method in methods.items():
        if method.leaves_out:
            most = max((record.risk for record in records if record.method == name and record.violation >= 0), default=np.nan)
            lines.append(f"  {name} leaves out: {method.leaves_out}; its tracking error is {most:.1%} at most")
    return lines


def compare(n: int, limit: float, options: argparse.Namespace) -> None:
    """Print the table of one size and one limit."""
    instances = list(weeks(options.weeks, n, options.seed, limit))
    loads = [os.getloadavg()[0]]
    methods, skipped = entrants(options.peers, instances)
    records = race(instances, methods)
    loads.append(os.getloadavg()[0])
    binding = sum(record.risk > 0.999 * limit for record in records if record.method == BASELINE and record.week)
    print(f"\n{n:,} stocks, tracking error {limit:.0%} (binds in {binding} of {len(instances) - 1} weeks), "
          f"load {loads[0]:.1f} to {loads[1]:.1f}")
    print("\n".join([*table(records, methods, BARS.get((n, limit))), *(f"  {line}" for line in skipped)]), flush=True)


def entrants(names: Sequence[str], instances: Sequence[Instance]) -> tuple[dict[str, object], list[str]]:
    """Baseline, ours and peers by name, and lines of those that cannot run."""
    methods = {BASELINE: Baseline()} | ({OURS: Ours()} if OURS in names else {})
    others = [name for name in names if name != OURS]
    if not others:
        return methods, []
    from optimizer_peers import chosen                                                 # cvxpy is loaded only where it is asked

    peers, skipped = chosen(others, instances)
    return methods | peers, skipped


# ---- the first problem ----------------------------------------------------------------------------------------------------------
def memory(name: str) -> int:
    """VmRSS, resident bytes of this process, or VmHWM, the most there were since the mark was set back."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def first_here(name: str, path: str) -> None:
    """Print seconds and bytes of one problem solved by a method in this process, imports apart."""
    one = pickle.loads(Path(path).read_bytes())
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")                                  # the high-water mark begins anew
    before, begun = memory("VmRSS"), time.perf_counter()
    if name == OURS:
        import qlib_ext.portfolio.optimizer  # noqa: F401
    elif name != BASELINE:
        import optimizer_peers  # noqa: F401
    started = time.perf_counter()
    method = entrants([name] if name != BASELINE else [], [one])[0][name]
    method.solve(method.prepare(one))
    print(json.dumps({"imports": started - begun, "seconds": time.perf_counter() - started, "bytes": memory("VmHWM") - before}))


def first(options: argparse.Namespace, n: int = 5000) -> None:
    """Each method's first problem of 5,000 stocks, each in a process of its own."""
    for limit in options.limits:
        one = list(weeks(2, n, options.seed, limit))[1]
        skipped = entrants(options.peers, [one])[1]
        print(f"\nfirst problem of {n:,} stocks, tracking error {limit:.0%}, in a fresh process")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "instance.pickle"
            path.write_bytes(pickle.dumps(one))
            for name in [BASELINE, *(name for name in options.peers if not any(line.startswith(f"{name}:") for line in skipped))]:
                done = subprocess.run([sys.executable, __file__, "--once", name, str(path)], capture_output=True, text=True)
                if done.returncode:
                    print(f"{name:14s} failed: {done.stderr.strip().splitlines()[-1]}")
                    continue
                found = json.loads(done.stdout.splitlines()[-1])
                kept = found["seconds"] <= FIRST_SECONDS and found["bytes"] <= FIRST_BYTES
                verdict = f"   ceiling {FIRST_SECONDS:g} s, 1 GiB: {'kept' if kept else 'MISSED'}" if name == OURS else ""
                print(f"{name:14s} {found['seconds']:6.2f} s (imports {found['imports']:5.2f} s before) {found['bytes'] / 2**30:6.2f} GiB "
                      f"added at the peak, imports among it{verdict}")
        for line in skipped:
            print(f"  {line}")


def main() -> None:
    """Command line."""
    everything = "ours,cvxpy-dpp,cvxpy-rebuilt,qlib,skfolio,cvxportfolio,riskfolio"
    listed = lambda kind: lambda text: [kind(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weeks", type=int, default=52)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sizes", type=listed(int), default=[300, 1000, 5000])
    parser.add_argument("--limits", type=listed(float), default=[0.05, 0.03])
    parser.add_argument("--peers", type=lambda text: (everything if text == "all" else text).split(","), default=everything.split(","))
    parser.add_argument("--first", action="store_true")
    parser.add_argument("--once", nargs=2, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.peers) - set(everything.split(",")):
        parser.error(f"unknown peers {sorted(unknown)}; there are {everything}")
    if options.weeks < 2:
        parser.error("--weeks must be 2 at least: week 0 is kept apart")
    if options.once:
        first_here(*options.once)
    elif options.first:
        first(options)
    else:
        for limit in options.limits:
            for n in options.sizes:
                compare(n, limit, options)


if __name__ == "__main__":
    main()
