"""`scripts/optimizer_faults.py`: hostile problems end well, its own formulas agree with cvxpy, and it sees wrong answers."""
import re
from dataclasses import replace

import numpy as np
import pytest
from optimizer_cases import faults, hostile

from qlib_ext.errors import DataError, InfeasibleError, SolverError

COUNT = 4 * len(hostile.KINDS)


@pytest.mark.parametrize("number", range(COUNT))
def test_hostile_problems_end_well(number):
    kind, outcome, wrong = faults.trial(11, number)
    assert wrong == "", f"{kind}: {outcome}"


def test_all_outcomes_are_among_them():
    outcomes = {faults.trial(11, number)[1] for number in range(COUNT) if hostile.KINDS[number % len(hostile.KINDS)].__name__
                in ("cut", "broken", "wrong_locks", "plain")}
    assert {"optimal", "relaxed", "InfeasibleError", "DataError"} <= outcomes


@pytest.fixture
def solved():
    """A problem with all kinds of limits, and its answer."""
    made = hostile.all_tight(np.random.default_rng(3))
    made.limits = hostile.limits_around(np.random.default_rng(3), made, 1.0, (0.1,))
    return made, faults.answer(made)


def two_largest(weights: np.ndarray) -> tuple[int, int]:
    return tuple(np.argsort(weights)[-2:])


def test_hidden_weights_keep_the_limits_of_all_kinds():
    for number in range(10 * len(hostile.KINDS)):
        made = hostile.make(5, number)
        if made.hidden is not None:
            assert max(faults.overstepped(made, made.hidden, {}).values()) < 1e-9, made.kind


def test_the_right_answer_has_no_fault(solved):
    assert faults.fault(*solved) == ""


def moved(found, by: float):
    first, second = two_largest(found.weights)
    weights = found.weights.copy()
    weights[first] += by
    weights[second] -= by
    return replace(found, weights=weights)


@pytest.mark.parametrize("plant, says", [
    (lambda made, found: moved(found, 1e-4), "overstepped|objective is stated"),
    (lambda made, found: replace(found, weights=found.weights * 0.999), "overstepped"),
    (lambda made, found: replace(found, weights=found.weights * np.nan), "not finite"),
    (lambda made, found: replace(found, weights=made.hidden), "objective is stated"),
    (lambda made, found: replace(found, weights=made.hidden, objective=faults.worth(made, made.hidden)), "worse than the cvxpy weights"),
    (lambda made, found: replace(found, objective=found.objective + 1e-4), "objective is stated"),
    (lambda made, found: replace(found, gap=1e-3), "gap 1.0e-03"),
    (lambda made, found: replace(found, status="relaxed"), "status relaxed with relaxed {}"),
    (lambda made, found: replace(found, status="relaxed", relaxed={"style": 1.5}), "solvable, but relaxed"),
    (lambda made, found: replace(found, relaxed={"style": 1.5}), "status optimal with relaxed"),
    (lambda made, found: InfeasibleError("none"), "solvable, but InfeasibleError"),
    (lambda made, found: SolverError("none"), "solvable, but SolverError"),
    (lambda made, found: ZeroDivisionError("x"), "crash: ZeroDivisionError"),
])
def test_planted_wrong_answers_are_seen(solved, plant, says):
    made, found = solved
    assert re.search(says, faults.fault(made, plant(made, found))), faults.fault(made, plant(made, found))


@pytest.mark.parametrize("claim", [InfeasibleError("none"), "relaxed"])
def test_false_claims_are_seen_without_hidden_weights(solved, claim):
    made, found = solved
    made.hidden = None
    if claim == "relaxed":
        wrong = faults.fault(made, replace(found, status="relaxed", relaxed={"style": 1.5}))
        assert wrong == "style relaxed, but there are weights that keep all limits"
    else:
        assert faults.fault(made, claim) == "infeasible, but there are weights that keep all limits"


def test_a_limit_that_is_not_listed_as_relaxed_is_seen(solved):
    """Weights that need style x 1.5 and turnover, of which only one is listed."""
    made, found = solved
    made.hidden = None
    first, second = two_largest(found.weights)
    over = replace(moved(found, -0.05), status="relaxed", relaxed={"style": 100.0, "industry": 100.0, "tracking_error": 100.0})
    listed = faults.overstepped(made, over.weights, over.relaxed)
    assert max(listed, key=listed.get) in ("turnover", "weights", "size_squared", "member_share")
    assert "overstepped" in faults.fault(made, over)


def test_broken_input_may_not_be_answered(solved):
    made, found = solved
    made.refused, made.hidden = True, None
    assert faults.fault(made, found) == "broken input was answered" and faults.fault(made, DataError("x")) == ""


def test_a_wrong_optimiser_makes_the_script_fail(monkeypatch, capsys):
    class Here:
        """A pool of this process, so that what is planted is seen."""
        def __init__(self, processes): pass
        def __enter__(self): return self
        def __exit__(self, *error): pass
        def map(self, function, items, chunksize): return [function(item) for item in items]

    monkeypatch.setattr(faults, "get_context", lambda kind: type("Context", (), {"Pool": Here}))
    assert faults.main(["--count", "18", "--seed", "11"]) == 0 and "18 instances, 0 wrong" in capsys.readouterr().out
    real = faults.answer
    monkeypatch.setattr(faults, "answer", lambda made: moved(real(made), 0.01) if made.kind in ("plain", "ties") else real(made))
    assert faults.main(["--count", "18", "--seed", "11"]) == 1
    assert "2 wrong" in capsys.readouterr().out
