"""What must hold for any problem: limits kept, nothing better, tighter never better, order and scale of no matter, the same bits again."""
import copy

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from optimizer_cases import faults, feasible_points, hostile, random_problem

from qlib_ext.errors import InfeasibleError
from qlib_ext.portfolio.optimizer import IndexEnhancer
from qlib_ext.portfolio.preset import CNE5, PRESETS
from qlib_ext.risk.snapshot import RiskSnapshot

FEW = settings(max_examples=15, deadline=None, derandomize=True)
SEEDS, SIZES = st.integers(0, 10_000), st.integers(2, 25)


def value_of(made, solution) -> float:
    return faults.worth(made, solution.weights)


def slack(made, value: float) -> float:
    return 5e-6 * max(abs(value), 0.01)


def test_the_benchmark_is_beaten_where_it_may_be_held():
    for seed in range(12):
        made = random_problem(seed, 15)
        made.hidden = hostile.benchmark(made)
        hostile.unlock(made)
        made.limits = hostile.limits_around(np.random.default_rng(seed), made, 0.8, (1.0, 0.1))
        solution = faults.answer(made)
        best = value_of(made, solution)
        assert solution.status == "optimal" and best >= faults.worth(made, made.hidden) - slack(made, best)


@FEW
@given(SEEDS, SIZES)
def test_limits_are_kept_and_no_point_within_them_is_better(seed, n):
    made = random_problem(seed, n)
    solution = faults.answer(made)
    assert solution.status == "optimal" and max(faults.overstepped(made, solution.weights, {}).values()) <= 1e-6
    best = value_of(made, solution)
    others = [faults.worth(made, w) for w in feasible_points(made, seed, 70)]
    assert max(others) <= best + slack(made, best)


def test_a_thousand_points_within_the_limits_are_no_better():
    made = random_problem(5, 12)
    best = value_of(made, faults.answer(made))
    others = np.array([faults.worth(made, w) for w in feasible_points(made, 0, 1000)])
    assert len(np.unique(others)) > 500 and others.max() <= best + slack(made, best)


@FEW
@given(SEEDS, SIZES, st.floats(0.3, 0.99))
def test_a_tighter_limit_never_raises_the_objective(seed, n, part):
    made = random_problem(seed, n, margin=(1.0, 0.3))
    made.options["ladder"] = None
    best = value_of(made, faults.answer(made))
    for name in [name for name in made.limits if name not in ("investment", "member_share")]:
        tighter, old = copy.copy(made), made.limits[name]
        tighter.limits = {**made.limits, name: {key: value * part for key, value in old.items()} if isinstance(old, dict) else old * part}
        try:
            found = faults.answer(tighter)
        except InfeasibleError:
            continue
        assert value_of(made, found) <= best + slack(made, best), name


def test_strict_is_no_better_than_wide():
    rng, n = np.random.default_rng(1), 240
    values = {}
    made = hostile.base(rng, n)
    made.risk["exposure"] = np.column_stack([np.ones(n), np.eye(4)[np.arange(n) % 4], rng.standard_normal(n)])
    made.risk["factors"], made.risk["factor_cov"] = ["country", *(f"industry:{k}" for k in range(4)), "size"], np.eye(6) * 1e-5
    hostile.unlock(made)
    made.inputs.update(benchmark=np.full(n, 1 / n), current=np.full(n, 1 / n))
    made.inputs["extras"] = {name: rng.standard_normal(n) for name in ("size_squared", "roe", "sue", "volatility_60")}
    made.options = {}
    for preset in ("ai_wide", "ai_strict"):
        made.limits = PRESETS[preset]
        values[preset] = value_of(made, faults.answer(made))
    assert 0 < values["ai_strict"] < values["ai_wide"]


@FEW
@given(SEEDS, SIZES)
def test_without_turnover_the_book_stays(seed, n):
    made = random_problem(seed, n)
    made.hidden = made.inputs["current"]
    made.inputs["sell_all"][:] = False
    made.limits = {**hostile.limits_around(np.random.default_rng(seed), made), "turnover": 0.0}
    solution = faults.answer(made)
    assert solution.status == "optimal"
    np.testing.assert_allclose(solution.weights, made.inputs["current"], atol=2e-8)


@FEW
@given(SEEDS, SIZES)
def test_bands_of_zero_give_exposures_of_zero(seed, n):
    made = random_problem(seed, n)
    hostile.unlock(made)
    styles = [name for name in made.risk["factors"] if name in ("size", "beta", "momentum")]
    made.limits, made.hidden = {"style": dict.fromkeys(styles, 0.0), "industry": 0.0}, hostile.benchmark(made)
    solution = faults.answer(made)
    assert solution.status == "optimal" and abs(made.risk["exposure"].T @ (solution.weights - made.hidden)).max() < 1e-8
    assert value_of(made, solution) >= faults.worth(made, made.hidden) - slack(made, 0)


def reordered(made, order: np.ndarray):
    """The same problem with the stocks in another order (instruments keep theirs, ascending)."""
    other = copy.deepcopy(made)
    for key in ("alpha", "benchmark", "current", "no_buy", "no_sell", "sell_all"):
        other.inputs[key] = made.inputs[key][order]
    other.inputs["extras"] = {name: values[order] for name, values in made.inputs["extras"].items()}
    for key in ("exposure", "specific_var"):
        other.risk[key] = made.risk[key][order]
    return other


@FEW
@given(SEEDS, SIZES)
def test_the_order_of_stocks_does_not_matter(seed, n):
    made = random_problem(seed, n)
    order = np.random.default_rng(seed).permutation(n)
    first, second = faults.answer(made), faults.answer(reordered(made, order))
    assert second.objective == pytest.approx(first.objective, abs=slack(made, first.objective))
    if not made.options["risk_aversion"] and "tracking_error" not in made.limits:    # a vertex, and the pull where there are several
        np.testing.assert_allclose(second.weights, first.weights[order], atol=2e-4)


@FEW
@given(SEEDS, SIZES, st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_a_linear_program_does_not_see_scale_and_level_of_alpha(seed, n, a, b):
    made = random_problem(seed, n)
    assume(made.inputs["alpha"].std() > 1e-3)
    made.limits.pop("tracking_error", None)
    made.limits.pop("investment", None)                        # with cash the level would matter
    for standardize in (True, False):
        made.options = {"standardize": standardize}
        other = copy.copy(made)
        other.inputs = {**made.inputs, "alpha": a * made.inputs["alpha"] + b}
        first, second = faults.answer(made), faults.answer(other)
        lost = faults.worth(made, first.weights) - faults.worth(made, second.weights)
        # the gap is relative to the objective, which a level far above the spread makes coarser
        assert abs(lost) <= slack(made, first.objective) * (1 + (0 if standardize else abs(b) / a))


@FEW
@given(SEEDS, SIZES)
def test_the_same_input_gives_the_same_bits(seed, n):
    made = random_problem(seed, n)
    before = copy.deepcopy(made.inputs)
    first, second = faults.answer(made), faults.answer(made)
    assert first.weights.tobytes() == second.weights.tobytes() and first.certificate() == second.certificate()
    for key in ("alpha", "benchmark", "current", "no_buy", "no_sell", "sell_all"):
        np.testing.assert_array_equal(made.inputs[key], before[key])       # and is left as it was


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_ties_do_not_jitter(noise):
    """All alphas alike: without need nothing trades; with need, the trades are spread by the pull, not drawn."""
    made = random_problem(2, 20)
    made.inputs["alpha"] = np.repeat([0.0, 1.0], 10) + noise * np.random.default_rng(0).standard_normal(20)
    hostile.unlock(made)
    made.inputs.update(current=np.full(20, 0.05), benchmark=np.full(20, 0.05))
    made.options, made.limits = {}, {"turnover": 0.1}
    w = faults.answer(made).weights
    np.testing.assert_allclose(w, np.repeat([0.04, 0.06], 10), atol=2e-3)
    made.inputs["alpha"] = np.ones(20)
    np.testing.assert_allclose(faults.answer(made).weights, made.inputs["current"], atol=1e-9)


def test_infeasible_input_raises():
    made = random_problem(4, 10, chance=1.0)
    made.options["ladder"] = None
    made.limits["turnover"] *= 1e-3
    made.limits["tracking_error"] *= 1e-3
    made.hidden = None
    with pytest.raises(InfeasibleError):
        faults.answer(made)
    assert faults.reference(made, {}) is None                  # cvxpy agrees


# ---- presets --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset, limits", [
    ("dl_em", {"cap": 0.03, "style": 0.5, "styles": CNE5, "industry": 0.02, "risk": 0.05}),
    ("meta", {"multiple": 5, "style": 0.5, "styles": ["size"], "industry": 0.02}),
    ("ai_wide", {"cap": 0.01, "style": 0.3, "styles": ["size"], "industry": 0.01, "turnover": 0.3}),
    ("ai_strict", {"cap": 0.01, "style": 0.1, "styles": ["size", "size_squared"], "industry": 0.01, "turnover": 0.3, "share": 0.8,
                   "others": ["roe", "sue", "volatility_60"]}),
])
def test_weights_of_the_presets_keep_what_the_reports_say(preset, limits):
    rng, n = np.random.default_rng(3), 240
    exposure = np.column_stack([np.ones(n), np.eye(6)[np.arange(n) % 6], rng.standard_normal((n, 10))])
    factors = ("country", *(f"industry:{k}" for k in range(6)), *CNE5)
    names = [f"S{i:03d}" for i in range(n)]
    risk = RiskSnapshot(np.datetime64("2024-01-05"), names, factors, exposure, np.eye(17) * 2e-5, np.full(n, 4e-4))
    benchmark = np.where(np.arange(n) < 200, rng.uniform(0.5, 1.5, n), 0)
    benchmark /= benchmark.sum()
    extras = {name: rng.standard_normal(n) for name in ("size_squared", "roe", "sue", "volatility_60")}
    solution = IndexEnhancer(preset).solve(rng.standard_normal(n), risk, benchmark, benchmark, extras=extras)
    w, d = solution.weights, solution.weights - benchmark
    columns = dict(zip(factors, exposure.T)) | extras
    assert solution.status == "optimal" and w.sum() == pytest.approx(1) and w.min() >= 0 and solution.objective > solution.gap
    assert w.max() <= limits.get("cap", 1) + 1e-8
    assert "multiple" not in limits or (w <= limits["multiple"] * benchmark + 1e-8).all() and (w[200:] == 0).all()
    assert max(abs(columns[name] @ d) for name in limits["styles"]) <= limits["style"] + 1e-8
    assert max(abs(columns[f"industry:{k}"] @ d) for k in range(6)) <= limits["industry"] + 1e-8
    assert max((abs(columns[name] @ d) for name in limits.get("others", ())), default=0) <= 0.3 + 1e-8
    assert abs(d).sum() / 2 <= limits.get("turnover", 1) + 1e-8 and w[:200].sum() >= limits.get("share", 0) - 1e-8
    assert np.sqrt(252 * risk.variance(d)) <= limits.get("risk", np.inf) + 1e-8
