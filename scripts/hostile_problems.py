"""Hostile index-enhancement problems for `optimizer_faults.py`: most are made around hidden weights that keep all limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Callable

import numpy as np

YEAR = 252


@dataclass
class Instance:
    """One problem, arrays in the order of ``risk["instruments"]``.

    Args:
        limits: constraints as in a YAML. inputs: of `IndexEnhancer.solve`; risk: of `RiskSnapshot`. options: of `IndexEnhancer`.
        hidden: ``[n]`` weights that keep all limits, None where none are known. refused: broken input that must be refused.
        series: inputs are given by name, shuffled and without zeros.
    """

    kind: str
    limits: dict[str, Any]
    inputs: dict[str, Any]
    risk: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    hidden: np.ndarray | None = None
    refused: bool = False
    series: bool = False


def benchmark(instance: Instance) -> np.ndarray:
    return instance.inputs["benchmark"] / instance.inputs["benchmark"].sum()


def covariance(instance: Instance) -> np.ndarray:
    risk = instance.risk
    return YEAR * (risk["exposure"] @ risk["factor_cov"] @ risk["exposure"].T + np.diag(risk["specific_var"]))


def base(rng: np.random.Generator, n: int) -> Instance:
    """A problem around hidden weights: some locks, and each kind of limit by a coin, as wide as the hidden weights need and a margin."""
    styles, industries = int(rng.integers(1, 4)), int(rng.integers(1, min(n, 6) + 1))
    group = rng.integers(industries, size=n)
    exposure = np.column_stack([np.ones(n), np.eye(industries)[group], rng.standard_normal((n, styles))])
    factors = ["country", *(f"industry:{k}" for k in range(industries)), *("size", "beta", "momentum")[:styles]]
    spread = rng.standard_normal((len(factors), len(factors))) * 0.01
    risk = {"date": "2024-01-05", "instruments": [f"S{i:03d}" for i in range(n)], "factors": factors, "exposure": exposure,
            "factor_cov": spread @ spread.T / len(factors), "specific_var": rng.uniform(0.005, 0.03, n) ** 2}
    b, held, hidden = (_weights(rng, n) for _ in range(3))
    mix = rng.uniform()
    hidden = mix * hidden + (1 - mix) * (b if rng.uniform() < 0.5 else held)
    still = rng.uniform(size=n) < rng.choice([0.0, 0.2])
    if 0 < held[still].sum() < 1 and hidden[~still].sum() > 0:
        hidden = np.where(still, held, hidden * (1 - held[still].sum()) / hidden[~still].sum())
        still &= True
    else:
        still[:] = False
    locks = rng.uniform(size=(2, n)) < rng.choice([0.0, 0.3])
    alpha, extra = rng.standard_normal(n), rng.standard_normal(n)
    inputs = {"alpha": alpha, "benchmark": b, "current": held, "no_buy": still | locks[0] & (hidden <= held),
              "no_sell": still | locks[1] & (hidden >= held), "sell_all": (hidden == 0) & locks[0],
              "cost": tuple(rng.choice([0.0, 0.001, 0.002], 2)), "extras": {"size_squared": extra}}
    options = {"cost_aversion": float(rng.choice([0.0, 1.0, 20.0])), "risk_aversion": float(rng.choice([0.0, 0.0, 5.0]))}
    made = Instance("", {}, inputs, risk, options, hidden)
    made.limits = limits_around(rng, made)
    return made


def _weights(rng: np.random.Generator, n: int) -> np.ndarray:
    w = rng.dirichlet(np.full(n, rng.choice([0.2, 1.0, 5.0]))) * (rng.uniform(size=n) < rng.choice([0.5, 1.0]))
    return w / w.sum() if w.sum() > 1e-3 else np.full(n, 1 / n)


def limits_around(rng: np.random.Generator, made: Instance, chance: float = 0.5,
                  margins: tuple[float, ...] = (1.0, 0.1, 1e-3, 1e-6)) -> dict[str, Any]:
    """Limits that the hidden weights keep, each with one of some margins (relative)."""
    margin = lambda: 1 + float(rng.choice(margins))  # noqa: E731
    coin = lambda: rng.uniform() < chance  # noqa: E731
    w, b, held = made.hidden, benchmark(made), made.inputs["current"]
    bought, limits = w > held, {}
    if coin():
        limits["cap"] = min(max(w[bought].max(initial=0.0), 0.01) * margin(), 1.0)
    if coin():
        inside = b > 0
        limits["benchmark_multiple"] = {"multiple": (w[inside & bought] / b[inside & bought]).max(initial=1.0) * margin(),
                                        "floor": min(w[~inside].max(initial=0.0) * margin(), 1.0)}
    if coin():
        limits["active_weight"] = min(abs(w - b).max() * margin(), 1.0)
    exposure = made.risk["exposure"].T @ (w - b)
    by_name = dict(zip(made.risk["factors"], abs(exposure)))
    if coin():
        limits["industry"] = float(max(value for name, value in by_name.items() if name.startswith("industry"))) * margin()
    styles = [name for name in made.risk["factors"] if name in ("size", "beta", "momentum") and coin()]
    if styles:
        limits["style"] = {name: float(by_name[name]) * margin() for name in styles}
        if coin():
            limits["style"]["size_squared"] = abs(float(made.inputs["extras"]["size_squared"] @ (w - b))) * margin()
    if coin():
        limits["member_share"] = float(w[b > 0].sum()) / margin()
    if coin():
        limits["tracking_error"] = float(np.sqrt((w - b) @ covariance(made) @ (w - b))) * margin()
        if limits["tracking_error"] > 3:                         # no limit that is taken
            del limits["tracking_error"]
    if coin():
        limits["turnover"] = float(abs(w - held).sum() / 2) * margin()
    if rng.uniform() < 0.2:
        limits["investment"] = {"low": max(w.sum() * 0.9, 0.0), "high": min(w.sum(), 1.0) if w.sum() > 1 else 1.0}
    return limits


def unlock(made: Instance) -> None:
    """Every stock may be bought and sold."""
    for key in ("no_buy", "no_sell", "sell_all"):
        made.inputs[key] = np.zeros(len(made.inputs["alpha"]), bool)


def _small(rng: np.random.Generator) -> int:
    return int(rng.integers(2, 31))


def plain(rng):
    return base(rng, _small(rng))


def one_stock(rng):
    return base(rng, 1)


def all_tight(rng):
    made = base(rng, _small(rng))
    made.limits = limits_around(rng, made, 1.0)
    return made


def zero_widths(rng):
    """Only the benchmark, or what has its exposures, is left."""
    made = base(rng, _small(rng))
    made.hidden = benchmark(made)
    unlock(made)
    made.limits = {"style": {"size": 0.0}, "industry": 0.0}
    if rng.uniform() < 0.3:
        made.limits["tracking_error"] = float(rng.choice([0.0, 1e-4, 0.02]))
    return made


def no_trade(rng):
    """Nothing may be traded, by locks or by turnover; the book keeps all limits."""
    made = base(rng, _small(rng))
    made.hidden = made.inputs["current"]
    made.inputs["sell_all"][:] = False
    made.limits = limits_around(rng, made)
    if rng.uniform() < 0.5:
        made.inputs["no_buy"], made.inputs["no_sell"] = (np.ones(len(made.hidden), bool) for _ in range(2))
    else:
        made.limits["turnover"] = float(rng.choice([0.0, 1e-9, 1e-6, 1e-4]))
    return made


def nan_alpha(rng):
    made = base(rng, _small(rng))
    gone = (rng.uniform(size=len(made.hidden)) < 0.4) & (made.hidden <= made.inputs["current"])
    gone[int(rng.integers(len(gone)))] = False
    made.inputs["alpha"] = np.where(gone, np.nan, made.inputs["alpha"])
    return made


def by_name(rng):
    made = base(rng, _small(rng)) if rng.uniform() < 0.5 else nan_alpha(rng)
    made.series = True
    return made


def benchmark_097(rng):
    made = base(rng, _small(rng))
    made.inputs["benchmark"] = made.inputs["benchmark"] * float(rng.choice([0.97, 1.03, 0.92]))
    return made


def empty_book(rng):
    made = base(rng, _small(rng))
    made.inputs["current"] = np.zeros(len(made.hidden))
    unlock(made)
    made.limits = limits_around(rng, made)
    return made


def extreme_scales(rng):
    """Alpha of any size and unstandardised, variances far apart, covariance of low rank or nothing."""
    made = base(rng, _small(rng))
    made.options["standardize"] = bool(rng.uniform() < 0.5)
    made.inputs["alpha"] = made.inputs["alpha"] * 10.0 ** rng.integers(-8, 9)
    made.options["risk_aversion"] = 0.0
    made.options["cost_aversion"] = 0.0
    made.risk["specific_var"] = made.risk["specific_var"] * 10.0 ** rng.integers(-4, 3, len(made.hidden))
    if rng.uniform() < 0.5:
        vector = rng.standard_normal(len(made.risk["factors"])) * 0.01
        made.risk["factor_cov"] = np.outer(vector, vector) * float(rng.choice([0.0, 1.0]))
    made.limits = limits_around(rng, made)
    return made


def ties(rng):
    made = base(rng, _small(rng))
    made.inputs["alpha"] = np.round(made.inputs["alpha"]) * float(rng.choice([0.0, 1.0])) + 1.0
    return made


def over_cap(rng):
    """A book with stocks far over their caps, some of them locked."""
    made = base(rng, _small(rng))
    made.inputs["current"] = held = rng.dirichlet(np.full(len(made.hidden), 0.15))
    made.inputs["no_buy"] = (rng.uniform(size=len(held)) < 0.2) & (made.hidden <= held)
    made.inputs["no_sell"] = (rng.uniform(size=len(held)) < 0.2) & (made.hidden >= held)
    made.limits = limits_around(rng, made)
    made.limits["cap"] = max(made.hidden[made.hidden > held].max(initial=0.0), 0.01)
    return made


def minimum(rng):
    made = base(rng, _small(rng))
    made.limits["minimum_position"] = float(rng.uniform(0, 0.05))
    if rng.uniform() < 0.5:
        made.limits["minimum_trade"] = float(rng.uniform(0, 0.03))
    return made


def many(rng):
    """Enough stocks to be solved on few of them first."""
    made = base(rng, int(rng.integers(160, 260)))
    if rng.uniform() < 0.5:
        made.inputs["current"] = np.zeros(len(made.hidden))
        unlock(made)
        made.limits = limits_around(rng, made)
    if rng.uniform() < 0.7:
        made.limits.pop("active_weight", None)                 # it keeps nearly all names
    return made


def cut(rng):
    """A limit, or several, cut to a part of what the hidden weights need: solvable or not."""
    made = over_cap(rng) if rng.uniform() < 0.5 else all_tight(rng)
    made.hidden = None
    keys = [key for key in made.limits if key not in ("investment", "benchmark_multiple", "member_share", "style")]
    for key in rng.choice(keys, int(rng.integers(1, len(keys) + 1)), replace=False):
        made.limits[key] = made.limits[key] * float(rng.choice([0.9, 0.5, 0.1, 0.01]))
    if "style" in made.limits and rng.uniform() < 0.5:
        made.limits["style"] = {name: width * float(rng.choice([0.9, 0.5, 0.1])) for name, width in made.limits["style"].items()}
    return made


def no_ladder(rng):
    made = cut(rng)
    made.options["ladder"] = None
    return made


def wrong_locks(rng):
    """Locks at random, against caps and bands."""
    made = all_tight(rng)
    made.hidden = None
    share = rng.choice([0.3, 0.8, 1.0])
    made.inputs["no_buy"], made.inputs["no_sell"] = (rng.uniform(size=len(made.inputs["alpha"])) < share for _ in range(2))
    return made


def broken(rng):
    """Input that no answer may be given to."""
    made = base(rng, max(_small(rng), 3))
    made.hidden, made.refused, inputs, risk = None, True, made.inputs, made.risk
    i = int(rng.integers(len(inputs["alpha"])))

    def put(values: np.ndarray, value: float) -> np.ndarray:
        values = values.copy()
        values[i] = value
        return values

    def swap(where: dict, key: str, value: Any) -> Callable[[], None]:
        return lambda: where.__setitem__(key, value)

    faults = [swap(inputs, "alpha", put(inputs["alpha"], np.inf)), swap(inputs, "alpha", np.full(len(inputs["alpha"]), np.nan)),
              swap(inputs, "benchmark", put(inputs["benchmark"], -0.1)), swap(inputs, "benchmark", put(inputs["benchmark"], np.nan)),
              swap(inputs, "benchmark", inputs["benchmark"] * 0.5), swap(inputs, "benchmark", inputs["benchmark"] * 0),
              swap(inputs, "current", put(inputs["current"], -0.01)), swap(inputs, "current", inputs["current"] * 2),
              swap(inputs, "current", put(inputs["current"], np.inf)), swap(inputs, "alpha", inputs["alpha"][:-1]),
              swap(inputs, "cost", (np.nan, 0.0)), swap(inputs, "cost", (0.0, -0.001)),
              swap(risk, "specific_var", put(risk["specific_var"], -1e-4)), swap(risk, "specific_var", put(risk["specific_var"], 0.0)),
              swap(risk, "exposure", np.full_like(risk["exposure"], np.nan)),
              swap(risk, "instruments", [risk["instruments"][0]] * len(inputs["alpha"])),
              swap(risk, "factor_cov", risk["factor_cov"] - 0.1 * np.eye(len(risk["factors"]))),
              swap(made.limits, "style", {"value": 0.1}), swap(inputs, "extras", {"size_squared": np.full(len(inputs["alpha"]), np.nan)})]
    faults[int(rng.integers(len(faults)))]()
    if rng.uniform() < 0.1:
        made = base(rng, 5)
        made.hidden, made.refused, made.series = None, True, True
        made.options["twice"] = True
    return made


KINDS = [plain, many, one_stock, all_tight, zero_widths, no_trade, nan_alpha, by_name, benchmark_097, empty_book, extreme_scales, ties,
         over_cap, minimum, cut, no_ladder, wrong_locks, broken]


def make(seed: int, number: int) -> Instance:
    """Instance `number` of a seed."""
    rng = np.random.default_rng([seed, number])
    kind = KINDS[number % len(KINDS)]
    made = kind(rng)
    made.kind = kind.__name__
    return made
