"""Hostile index-enhancement problems: does the optimiser ever give a wrong answer without saying so?

    python scripts/optimizer_faults.py [--count 5000] [--seed 0] [--processes 2] [--show 5]

Most problems (`hostile_problems.py`) are made around hidden weights that keep all limits, so that an optimal answer must exist and be no
worse than they are; in others a limit is cut until there may be none, or the input is broken. Limits, risk and objective are computed here
anew, from the dense covariance and stock by stock; claims that a problem has no solution, or that weights are the best, are compared with
a plain cvxpy problem. Prints how instances of each kind ended; exits with 1 where an answer was wrong or an unnamed error was raised.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from functools import partial
from multiprocessing import get_context
from typing import Any

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import cvxpy  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from hostile_problems import Instance, benchmark, covariance, make  # noqa: E402

from qlib_ext.errors import ExtError, InfeasibleError, SolverError  # noqa: E402
from qlib_ext.portfolio.optimizer import IndexEnhancer, Solution  # noqa: E402
from qlib_ext.risk.snapshot import RiskSnapshot  # noqa: E402

TOLERANCE, WORSE = 1e-7, 1e-5
"""Limits may be overstepped by `TOLERANCE`, objectives be worse by `WORSE` (relative)."""
LADDER_END = {"turnover": np.inf, "style": 2.0, "industry": 2.0, "tracking_error": 1.25}


# ---- formulas of the check ------------------------------------------------------------------------------------------------------
def score(instance: Instance) -> np.ndarray:
    """Alpha as the optimiser should read it: cut z-scores, gaps at their mean."""
    alpha = np.asarray(instance.inputs["alpha"], float)
    known = alpha[~np.isnan(alpha)]
    if instance.options.get("standardize", True):
        spread = known.std()
        known = np.clip((known - known.mean()) / spread, -3, 3) if spread > 0 else np.zeros(len(known))
    filled = np.full(len(alpha), known.mean())
    filled[~np.isnan(alpha)] = known
    return filled


def unit(instance: Instance) -> float:
    """Size of an alpha that matters."""
    return 1.0 if instance.options.get("standardize", True) else abs(score(instance)).max() or 1.0


def box(instance: Instance) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest weight of each stock, one stock after the other."""
    limits, inputs, b = instance.limits, instance.inputs, benchmark(instance)
    low, high = np.zeros(len(b)), np.ones(len(b))
    for i, held in enumerate(inputs["current"]):
        multiple = limits.get("benchmark_multiple", {"multiple": np.inf})
        width = limits.get("active_weight", np.inf)
        cap = min(limits.get("cap", 1.0), max(multiple["multiple"] * b[i] if b[i] else 0.0, multiple.get("floor", 0.0))
                  if "benchmark_multiple" in limits else 1.0, b[i] + width, 1.0)
        cap = 0.0 if inputs["sell_all"][i] else cap
        floor = max(b[i] - width, 0.0)
        most = held if 0 < cap < held else cap
        if inputs["no_buy"][i] or np.isnan(inputs["alpha"][i]):
            most = min(most, held)
        low[i] = min(floor, most)
        if inputs["no_sell"][i]:
            low[i] = max(low[i], held)
        high[i] = max(most, low[i])
    return low, high


def columns(instance: Instance) -> dict[str, tuple[str, np.ndarray, float]]:
    """Name of each band -> its family, column ``[n]`` and width."""
    risk, found = instance.risk, {}
    for k, name in enumerate(risk["factors"]):
        if name.startswith("industry:") and "industry" in instance.limits:
            found[name] = ("industry", risk["exposure"][:, k], instance.limits["industry"])
    for name, width in instance.limits.get("style", {}).items():
        column = risk["exposure"][:, risk["factors"].index(name)] if name in risk["factors"] else instance.inputs["extras"][name]
        found[name] = ("style", column, width)
    return found


def overstepped(instance: Instance, w: np.ndarray, factors: dict[str, float]) -> dict[str, float]:
    """By how much weights overstep each limit; `factors` widen families (for turnover: the limit itself)."""
    limits, b, held = instance.limits, benchmark(instance), instance.inputs["current"]
    low, high = box(instance)
    band = limits.get("investment", {"low": 1.0, "high": 1.0})
    over = {"weights": max((low - w).max(), (w - high).max()), "investment": max(band["low"] - w.sum(), w.sum() - band["high"])}
    for name, (family, column, width) in columns(instance).items():
        over[name] = abs(sum(column * (w - b))) - width * factors.get(family, 1.0)
    if "member_share" in limits:
        over["member_share"] = limits["member_share"] - w[b > 0].sum()
    if "tracking_error" in limits:
        over["tracking_error"] = np.sqrt(max((w - b) @ covariance(instance) @ (w - b), 0)) \
            - max(limits["tracking_error"], 1e-6) * factors.get("tracking_error", 1.0)
    if "turnover" in limits and held.any():
        over["turnover"] = abs(w - held).sum() / 2 - factors.get("turnover", limits["turnover"])
    return over


def worth(instance: Instance, w: np.ndarray) -> float:
    options, held = instance.options, instance.inputs["current"]
    buy, sell = (options.get("cost_aversion", 0.0) * one for one in instance.inputs["cost"])
    anchor, mu, d = held if held.any() else benchmark(instance), score(instance), w - benchmark(instance)
    pull = 1e-6 * unit(instance)
    risk = options.get("risk_aversion", 0.0) * (d @ covariance(instance) @ d if options.get("risk_aversion") else 0.0)
    return mu @ w - buy * np.maximum(w - held, 0).sum() - sell * np.maximum(held - w, 0).sum() - risk - pull / 2 * ((w - anchor) ** 2).sum()


def reference(instance: Instance, factors: dict[str, float], shrink: float = 0.0) -> np.ndarray | None:
    """The best weights by plain cvxpy, every width smaller by a part `shrink`; None where it finds none."""
    limits, b, held, mu = instance.limits, benchmark(instance), instance.inputs["current"], score(instance)
    w, (low, high) = cvxpy.Variable(len(b)), box(instance)
    band, less = limits.get("investment", {"low": 1.0, "high": 1.0}), 1 - shrink
    kept = [w >= low, w <= high, cvxpy.sum(w) >= band["low"], cvxpy.sum(w) <= band["high"]]
    for family, column, width in columns(instance).values():
        kept += [side * (column @ w - column @ b) <= less * width * factors.get(family, 1.0) for side in (1, -1)]
    if "member_share" in limits:
        kept.append(cvxpy.sum(w[b > 0]) >= limits["member_share"] + shrink * (1 - limits["member_share"]))
    turnover = factors.get("turnover", limits.get("turnover", np.inf))
    if held.any() and turnover < np.inf:
        kept.append(cvxpy.norm1(w - held) <= 2 * turnover * less)
    options = instance.options
    buy, sell = (options.get("cost_aversion", 0.0) * one for one in instance.inputs["cost"])
    scale = abs(mu).max() or 1.0
    value = (mu / scale) @ w - cvxpy.sum(cvxpy.pos(w - held)) * (buy / scale) - cvxpy.sum(cvxpy.pos(held - w)) * (sell / scale)
    linear = "tracking_error" not in limits and not options.get("risk_aversion")
    if not linear:
        vectors = np.linalg.eigh(covariance(instance))
        root = vectors[1] * np.sqrt(np.maximum(vectors[0], 0))
        if "tracking_error" in limits:
            limit = max(limits["tracking_error"], 1e-6) * factors.get("tracking_error", 1.0) * less
            kept.append(cvxpy.norm(root.T @ (w - b)) <= limit)
        value -= options.get("risk_aversion", 0.0) / scale * cvxpy.sum_squares(root.T @ (w - b))
    try:
        cvxpy.Problem(cvxpy.Maximize(value), kept).solve(solver=cvxpy.HIGHS if linear else cvxpy.CLARABEL)
    except (cvxpy.error.SolverError, ValueError):
        return None
    return w.value


# ---- one trial ------------------------------------------------------------------------------------------------------------------
def _named(instance: Instance, twice: bool) -> dict[str, Any]:
    """Inputs by name: shuffled, without zeros; with one stock named twice where that is the fault."""
    names, given, rng = instance.risk["instruments"], {}, np.random.default_rng(len(instance.risk["instruments"]))
    for key, values in instance.inputs.items():
        if key in ("cost", "extras"):
            given[key] = {name: pd.Series(one, names) for name, one in values.items()} if key == "extras" else values
            continue
        one = pd.Series(values, names)
        one = one.dropna() if key == "alpha" else one[one != 0]
        given[key] = one.iloc[rng.permutation(len(one))]
    if twice:
        given["alpha"] = pd.concat([given["alpha"], given["alpha"].iloc[:1]])
    return given


def answer(instance: Instance) -> Solution:
    """What the optimiser gives."""
    options = dict(instance.options)
    twice = options.pop("twice", False)
    risk = RiskSnapshot(**instance.risk)
    inputs = _named(instance, twice) if instance.series else instance.inputs
    return IndexEnhancer(constraints=instance.limits, **options).solve(risk=risk, **inputs)


def fault(instance: Instance, found: Solution | Exception) -> str:
    """What is wrong with an outcome; empty where nothing is."""
    if isinstance(found, Exception):
        if not isinstance(found, ExtError):
            return f"crash: {type(found).__name__}: {found}"
        if instance.hidden is not None:
            return f"solvable, but {type(found).__name__}: {found}"
        if not isinstance(found, InfeasibleError) or instance.refused:
            return ""
        return _false_claim(instance, {} if instance.options.get("ladder", 1) is None else LADDER_END, "infeasible")
    if instance.refused:
        return "broken input was answered"
    w = pd.Series(found.weights, found.instruments).reindex(instance.risk["instruments"]).fillna(0.0).to_numpy()
    if not np.isfinite(found.weights).all() or len(found.weights) > len(w):
        return "weights that are not finite, or unknown"
    over = overstepped(instance, w, found.relaxed)
    worst = max(over, key=over.get)
    if over[worst] > TOLERANCE:
        return f"{found.status}: {worst} overstepped by {over[worst]:.1e}"
    if (found.status == "optimal") != (not found.relaxed):
        return f"status {found.status} with relaxed {found.relaxed}"
    if found.relaxed and instance.hidden is not None:
        return "solvable, but relaxed"
    for family in found.relaxed:                               # none of the families could have been left as it was
        others = {name: np.inf if name == "turnover" else factor for name, factor in found.relaxed.items() if name != family}
        claim = _false_claim(instance, others, f"{family} relaxed")
        if claim:
            return claim
    return _worse(instance, w, found)


def _worse(instance: Instance, w: np.ndarray, found: Solution) -> str:
    """Whether hidden or cvxpy's weights are better; after rounding to minimum sizes what it cost must be stated as the gap."""
    value = worth(instance, w)
    scale = max(abs(value), 0.01 * unit(instance))
    if abs(value - found.objective) > 1e-7 * scale:
        return f"objective is stated as {found.objective}, not {value}"
    for name, other in (("hidden", instance.hidden), ("cvxpy", reference(instance, found.relaxed))):
        if other is not None and max(overstepped(instance, other, found.relaxed).values()) < 1e-8:
            lost = (worth(instance, other) - value) / scale
            if lost > found.gap + WORSE:
                return f"worse than the {name} weights by {lost:.1e}, gap stated {found.gap:.1e}"
    if "minimum_position" not in instance.limits and found.gap > 2e-6:
        return f"gap {found.gap:.1e}"
    return ""


def _false_claim(instance: Instance, factors: dict[str, float], claim: str) -> str:
    """Whether weights keep all limits although it was claimed that there are none (with a thousandth to spare)."""
    other = reference(instance, factors, 1e-3)
    feasible = other is not None and max(overstepped(instance, other, factors).values()) < 1e-9
    return f"{claim}, but there are weights that keep all limits" if feasible else ""


def trial(seed: int, number: int) -> tuple[str, str, str]:
    """Kind, outcome and fault of one instance."""
    instance = make(seed, number)
    try:
        found: Solution | Exception = answer(instance)
    except Exception as error:  # noqa: BLE001  (crashes are what is looked for)
        found = error
    outcome = type(found).__name__ if isinstance(found, Exception) else found.status
    return instance.kind, outcome, fault(instance, found)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, value in (("count", 5000), ("seed", 0), ("processes", 2), ("show", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args(arguments)
    with get_context("spawn").Pool(options.processes) as pool:
        trials = pool.map(partial(trial, options.seed), range(options.count), chunksize=max(1, min(50, options.count // 8)))
    counts = Counter((kind, outcome) for kind, outcome, _ in trials)
    for kind in sorted({kind for kind, _ in counts}):
        print(f"{kind:15s}", ", ".join(f"{outcome} {count}" for (one, outcome), count in sorted(counts.items()) if one == kind))
    wrong = [(number, *one) for number, one in enumerate(trials) if one[2]]
    print(f"{len(trials)} instances, {len(wrong)} wrong, {sum(one[1] == SolverError.__name__ for one in trials)} without a verified answer")
    for number, kind, outcome, text in wrong[:options.show]:
        print(f"  --seed {options.seed} number {number}, {kind}, {outcome}: {text}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
