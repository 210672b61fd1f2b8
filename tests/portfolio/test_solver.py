"""The fast path gives what cvxpy and HiGHS give; screened is whole; what cannot be verified is refused; infeasible only with a proof."""
import copy
from dataclasses import replace

import numpy as np
import pytest
from optimizer_cases import ALPHA, BENCHMARK, faults, five_program, hostile, program_of, random_problem
from scipy.optimize import linprog

from qlib_ext.errors import SolverError
from qlib_ext.portfolio import conic, solver
from qlib_ext.portfolio.program import Prices
from qlib_ext.portfolio.solver import GAP, VIOLATION, Answer, polish, solve, verified


def scale_of(program, value: float) -> float:
    return max(abs(value), 0.01 * abs(program.alpha).max())


# ---- against other solvers ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed, n", [(seed, n) for seed in range(3) for n in (5, 12, 30, 60)])
def test_clarabel_alone_gives_what_cvxpy_gives(seed, n):
    made = random_problem(seed, n, chance=0.85)
    program = program_of(made)
    fast, slow = solve(program, "clarabel"), solve(program, "cvxpy")
    assert (fast.solver, slow.solver) == ("clarabel", "cvxpy")
    best = program.objective(slow.weights)
    assert abs(program.objective(fast.weights) - best) <= 2 * GAP * scale_of(program, best)
    for answer in (fast, slow):
        assert max(faults.overstepped(made, answer.weights, {}).values()) <= VIOLATION and answer.gap <= GAP
        assert program.objective(answer.weights) >= program.objective(made.hidden) - GAP * scale_of(program, best)


def linear_best(made) -> float:
    """The best objective without tracking error and pull by HiGHS: weights, buys and sells as variables."""
    n, inputs, b = len(made.inputs["alpha"]), made.inputs, hostile.benchmark(made)
    held, (low, high) = inputs["current"], faults.box(made)
    buy, sell = (made.options["cost_aversion"] * cost for cost in inputs["cost"])
    eye, zero = np.eye(n), np.zeros(n)
    above, limits = [], []                                     # rows of A x <= limits, x = (w, buys, sells)

    def limit(row: np.ndarray, most: float) -> None:
        above.append(row)
        limits.append(most)

    for family, column, width in faults.columns(made).values():
        limit(np.concatenate([column, zero, zero]), column @ b + width)
        limit(np.concatenate([-column, zero, zero]), width - column @ b)
    if "member_share" in made.limits:
        limit(np.concatenate([-(b > 0).astype(float), zero, zero]), -made.limits["member_share"])
    if "turnover" in made.limits:
        limit(np.concatenate([zero, zero + 0.5, zero + 0.5]), made.limits["turnover"])
    band = made.limits.get("investment", {"low": 1.0, "high": 1.0})
    limit(np.concatenate([zero + 1, zero, zero]), band["high"])
    limit(np.concatenate([zero - 1, zero, zero]), -band["low"])
    worst, trades = np.concatenate([-faults.score(made), zero + buy, zero + sell]), np.hstack([eye, -eye, eye])
    found = linprog(worst, np.array(above), limits, trades, held, [*zip(low, high), *[(0, None)] * (2 * n)], method="highs")
    assert found.status == 0
    return -found.fun


@pytest.mark.parametrize("seed", range(10))
def test_without_tracking_error_it_is_the_linear_program(seed):
    made = random_problem(seed, 6 + 4 * seed, chance=0.85)
    made.limits.pop("tracking_error", None)
    made.options.update(risk_aversion=0.0, cost_aversion=float(seed % 3) * 10)
    program, best = program_of(made, pull=0.0), linear_best(made)
    assert program.objective(solve(program, "clarabel").weights) == pytest.approx(best, abs=2 * GAP * scale_of(program, best))


# ---- screening --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rough", [False, True], ids=["fine", "rough first"])
@pytest.mark.parametrize("seed", [0, 3])
def test_few_columns_give_what_all_give(monkeypatch, seed, rough):
    made = random_problem(seed, 400, chance=1.0, margin=(0.1, 1.0))
    made.limits.pop("active_weight")                           # with it nearly all names are held
    program = program_of(made)
    free = np.count_nonzero(program.low < program.high)
    monkeypatch.setattr(solver, "SCREEN_FROM", 50)
    monkeypatch.setattr(solver, "SCREEN_NAMES", 20)
    monkeypatch.setattr(solver, "ROUGH_FROM", 100 if rough else 10_000)
    few, whole = solver._screened(program), solver._whole(program)
    assert few.columns < 0.8 * free and whole.columns == free
    best = program.objective(whole.weights)
    assert abs(program.objective(few.weights) - best) <= 2 * GAP * scale_of(program, best)
    assert max(faults.overstepped(made, few.weights, {}).values()) <= VIOLATION


def test_a_screen_that_leaves_out_the_best_name_is_seen(monkeypatch):
    """Planted fault: the first choice of columns without the names that the best weights buy; prices bring them in."""
    made = random_problem(3, 400, chance=1.0, margin=(0.1, 1.0))
    made.limits.pop("active_weight")
    program = program_of(made)
    whole = solver._whole(program)
    bought, best = whole.weights > program.low + 1e-6, program.objective(whole.weights)
    monkeypatch.setattr(solver, "SCREEN_FROM", 50)
    real = solver._promising
    monkeypatch.setattr(solver, "_promising", lambda program, *rest: real(program, *rest) & ~bought)
    found = solver._screened(program)
    assert isinstance(found, Answer) and abs(program.objective(found.weights) - best) <= 2 * GAP * scale_of(program, best)


# ---- only verified answers ---------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def solved():
    made = random_problem(38, 20, chance=1.0)                  # bands, turnover, tracking error and investment all have prices
    program = program_of(made)
    return program, solve(program, "clarabel")


def test_a_right_answer_is_taken(solved):
    program, answer = solved
    assert isinstance(verified(program, answer.weights, answer.prices, "x", 1), Answer)


def test_moved_weights_are_refused(solved):
    program, answer = solved
    order = np.argsort(answer.weights)
    moved = answer.weights.copy()
    moved[order[-1]] -= 1e-4
    assert "overstepped" in verified(program, moved, answer.prices, "x", 1)                  # no longer invested in full
    mixed = 0.99 * answer.weights + 0.01 * program.case.current
    if max(program.violations(mixed).values()) <= VIOLATION:                                 # within all limits, and worse
        assert verified(program, mixed, answer.prices, "x", 1).startswith("gap")


def test_weights_that_keep_all_limits_and_are_not_the_best_are_refused():
    program = five_program({"turnover": 0.1})
    prices = solve(program, "clarabel").prices
    assert verified(program, BENCHMARK, prices, "x", 1).startswith("gap")
    assert verified(program, BENCHMARK + [-0.1, 0, 0, 0.1, 0], prices, "x", 1).startswith("gap")
    assert isinstance(verified(program, BENCHMARK + [-0.1, 0, 0, 0, 0.1], prices, "x", 1), Answer)


@pytest.mark.parametrize("wrong", [
    lambda p: Prices(),
    lambda p: replace(p, invested=-p.invested),
    lambda p: replace(p, bands=-2 * p.bands),
    lambda p: replace(p, turnover=0.0, tracking=0.0, cone=None, bands=0.0),
    lambda p: replace(p, invested=p.invested + 0.1),
], ids=["none", "investment turned", "bands turned", "investment alone", "a little more"])
def test_wrong_prices_prove_nothing(solved, wrong):
    program, answer = solved
    assert verified(program, answer.weights, wrong(answer.prices), "x", 1).startswith("gap")


def garbage(change):
    """Clarabel, its weights changed before anybody sees them."""
    real = conic._clarabel

    def changed(*arguments):
        result = real(*arguments)
        return type("Result", (), {"status": "Solved", "z": result.z, "x": change(np.array(result.x))})
    return changed


@pytest.mark.parametrize("change", [lambda x: np.abs(np.sin(np.arange(len(x)))) / 20, lambda x: x * 0, lambda x: x[::-1].copy(),
                                    lambda x: x * np.nan], ids=["moved", "nothing", "reversed", "nan"])
def test_what_clarabel_gets_wrong_is_not_used(monkeypatch, solved, change):
    program, answer = solved
    monkeypatch.setattr(conic, "_clarabel", garbage(change))
    with pytest.raises(SolverError, match="no solver gave weights that can be verified"):
        solve(program, "clarabel")
    again = solve(program)                                     # auto goes on to cvxpy
    assert again.solver == "cvxpy"
    np.testing.assert_allclose(program.objective(again.weights), program.objective(answer.weights), rtol=1e-5)


def test_a_false_claim_of_infeasibility_is_not_believed(monkeypatch, solved):
    program, _ = solved
    real = conic._clarabel

    def liar(*arguments):
        result = real(*arguments)
        return type("Result", (), {"status": "PrimalInfeasible", "z": result.z, "x": result.x})
    monkeypatch.setattr(conic, "_clarabel", liar)
    with pytest.raises(SolverError):
        solve(program, "clarabel")
    assert solve(program).solver == "cvxpy"


# ---- infeasible ----------------------------------------------------------------------------------------------------------------
EVERY = np.ones(5, bool)


@pytest.mark.parametrize("limits, changes", [
    ({"cap": 0.1}, {"current": np.zeros(5)}),                                                  # 5 x 0.1 < 1
    ({"cap": 0.0}, {}),
    ({"turnover": 0.05, "style": {"size": 0.0}}, {"current": np.array([0.6, 0.4, 0, 0, 0])}),
    ({"tracking_error": 0.01}, {"current": np.array([1.0, 0, 0, 0, 0]), "no_buy": EVERY, "no_sell": EVERY}),
    ({"tracking_error": 0.02, "turnover": 0.05}, {"current": np.array([0.6, 0.4, 0, 0, 0])}),
    ({"member_share": 0.9}, {"members": np.array([1, 0, 0, 0, 0], bool), "current": BENCHMARK, "no_buy": EVERY}),
    ({"style": {"size": 0.01}, "industry": 0.01, "benchmark_multiple": 0.9}, {"current": np.zeros(5)}),
    ({"investment": {"low": 0.5, "high": 0.8}}, {"no_sell": EVERY}),
])
@pytest.mark.parametrize("how", ["clarabel", "cvxpy", "auto"])
def test_what_has_no_weights_is_proved_to_have_none(limits, changes, how):
    assert solve(five_program(limits, **changes), how).weights is None


def test_the_proof_is_the_prices():
    program = five_program({"style": {"size": 0.0}, "turnover": 0.05}, current=np.array([0.6, 0.4, 0, 0, 0]))
    answer = solve(program)
    relaxed = copy.copy(program)
    relaxed.turnover = 0.5
    if program.bound(answer.prices, None).value >= 0:          # proved by the least turnover instead
        least = solver.least_turnover(program)
        found = solve(least)
        assert least.one_way(found.weights) > 0.05 + VIOLATION
    assert relaxed.bound(answer.prices, None).value >= 0 and solve(relaxed).weights is not None


@pytest.mark.parametrize("seed", range(15))
def test_what_has_weights_is_never_said_to_have_none(seed):
    """Limits as tight as hidden weights need, and a millionth."""
    made = random_problem(seed, 4 + 2 * seed, chance=1.0, margin=(1e-3, 1e-6))
    answer = solve(program_of(made), "clarabel")
    assert answer.weights is not None and max(faults.overstepped(made, answer.weights, {}).values()) <= VIOLATION


# ---- polish ----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", [0, 2, 5, 10, 14, 21])
def test_polish_leaves_exact_zeros_and_keeps_limits(seed):
    program = program_of(random_problem(seed, 30, chance=0.8))
    answer = solve(program, "clarabel")
    dust = answer.weights[answer.weights < 1e-9]
    assert np.isin(dust, [0.0, *program.case.current]).all()  # what is held is meant, or was there before
    noise = np.random.default_rng(seed).uniform(-1e-10, 1e-10, 30)
    tidy = polish(program, answer.weights + noise, answer.prices)
    assert max(program.violations(tidy).values()) <= VIOLATION and abs(tidy - answer.weights).max() < 1e-6
    np.testing.assert_array_equal(tidy == program.low, answer.weights == program.low)


def test_polish_of_a_vertex_is_exact():
    program = five_program({"cap": 0.4, "turnover": 0.2})
    exact = BENCHMARK + [-0.2, 0, 0, 0, 0.2]
    answer = solve(program, "clarabel")
    np.testing.assert_allclose(answer.weights, exact, atol=1e-12)
    assert answer.weights[1] == BENCHMARK[1]                   # what is not traded is the book, bit for bit
    assert program.objective(answer.weights) == pytest.approx(ALPHA @ exact)


@pytest.mark.parametrize("status", ["MaxIterations", "NumericalError", "PrimalInfeasible"])
def test_a_proof_counts_whatever_clarabel_calls_it(monkeypatch, status):
    """Clarabel runs away from some problems without weights and says MaxIterations: its last prices are a proof all the same."""
    program = five_program({"industry": {"x": 0.0, "y": 0.0}, "style": {"size": 0.0}, "member_share": 1.0, "cap": 0.3},
                           no_buy=EVERY, current=np.array([0.2, 0.2, 0.2, 0.2, 0.2]))
    program.band_low, program.band_high = program.band_low + 0.3, program.band_high + 0.3
    real = conic._clarabel

    def renamed(*arguments):
        result = real(*arguments)
        return type("Result", (), {"status": status, "z": np.array(result.z) * 1e20, "x": np.full(len(result.x), 1e10)})
    monkeypatch.setattr(conic, "_clarabel", renamed)
    monkeypatch.setattr(solver, "_impossible", lambda program: "not asked")
    assert solve(program, "clarabel").weights is None
