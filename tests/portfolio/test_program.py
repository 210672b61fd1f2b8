"""Limits, objective and risk against plain numpy; the bound, for any prices, never below weights that keep all limits; locks by hand."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optimizer_cases import ALPHA, BENCHMARK, SIZE, faults, feasible_points, five_program, hostile, program_of, random_problem

from qlib_ext.portfolio.program import Case, Prices, Program

FEW = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 10_000)


# ---- what weights are worth -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(12))
def test_violations_and_objective_are_their_formulas(seed):
    made = random_problem(seed, 3 + seed, chance=0.8)
    program, rng = program_of(made), np.random.default_rng(seed)
    cash = made.limits.get("investment", {"low": 1.0})["low"] < 1    # else the risk is that of full investment only
    for w in (made.hidden, rng.dirichlet(np.ones(3 + seed)), rng.uniform(0, 1, 3 + seed) if cash else made.hidden[::-1]):
        over, expected = program.violations(w), faults.overstepped(made, w, {})
        for name, value in expected.items():
            if name in over:
                assert over[name] == pytest.approx(max(value, 0), abs=1e-12), name
            else:
                assert name == "turnover" and not made.inputs["current"].any()
        assert program.objective(w) == pytest.approx(faults.worth(made, w), rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("seed", range(6))
def test_risk_is_that_of_the_dense_covariance(seed):
    made = random_problem(seed, 8, chance=1.0)
    program, covariance = program_of(made), hostile.covariance(made)
    assert program.tracking is not None
    w = np.random.default_rng(seed).dirichlet(np.ones(8))
    d = w - hostile.benchmark(made)
    assert program.active_risk(d) == pytest.approx(np.sqrt(d @ covariance @ d), rel=1e-9)
    assert program.active_risk_of(w) == pytest.approx(np.sqrt(d @ covariance @ d), rel=1e-9)
    apart = program.risk_gradient(d) - covariance @ d / 252
    if "country" not in program.names:                         # left out under full investment: no trade that keeps the sum sees it
        apart = apart - apart.mean()
    np.testing.assert_allclose(apart, 0, atol=1e-15)


@pytest.mark.parametrize("whole", [True, False], ids=["memberships", "fractions"])
def test_exposures_are_columns_times_active_weights_and_spread_is_their_transpose(whole):
    made = random_problem(3, 9, chance=1.0)
    if not whole:
        made.risk["exposure"][:, 1:3] *= 0.5                  # no longer memberships: kept as plain columns
    program, rng = program_of(made), np.random.default_rng(0)
    assert (program.case.groups is not None) == whole
    d, prices = rng.standard_normal(9), rng.standard_normal(len(program.names))
    by_name = dict(zip(made.risk["factors"], made.risk["exposure"].T)) | made.inputs["extras"]
    by_name["member_share"] = (hostile.benchmark(made) > 0).astype(float)
    np.testing.assert_allclose(program.exposures(d), [by_name[name] @ d for name in program.names], atol=1e-12)
    np.testing.assert_allclose(program.spread(prices), sum(price * by_name[name] for name, price in zip(program.names, prices)), atol=1e-12)


# ---- the bound ------------------------------------------------------------------------------------------------------------------
def random_prices(program: Program, rng: np.random.Generator) -> Prices:
    """Any prices: of all sizes and both signs, the cone's vector anywhere within its price, or none."""
    size = lambda: 10.0 ** rng.uniform(-6, 2) * (rng.uniform() < 0.8)  # noqa: E731
    # a price on a side without a limit means nothing: the bound is for limits that exist
    bands = rng.standard_normal(len(program.names)) * np.array([size() for _ in program.names])
    bands = np.where(np.isfinite(np.where(bands > 0, program.band_high, program.band_low)), bands, 0.0)
    tracking, cone = size(), None
    if rng.uniform() < 0.7:
        vector = rng.standard_normal(program.root.shape[1] + len(program.alpha))
        vector *= tracking * rng.choice([0.0, 0.5, 1.0]) / np.linalg.norm(vector)
        cone = vector[:program.root.shape[1]], vector[program.root.shape[1]:]
    return Prices(rng.standard_normal() * size(), bands, size(), tracking, cone)


@FEW
@given(SEEDS, st.integers(1, 12))
def test_no_weights_within_the_limits_beat_the_bound_whatever_the_prices(seed, n):
    made, rng = random_problem(seed, n), np.random.default_rng(seed)
    program, points = program_of(made, pull=float(rng.choice([0.0, 1e-6, 0.5]))), feasible_points(made, seed, 8)
    values = np.array([program.objective(w) for w in points])
    for _ in range(20):
        prices = random_prices(program, rng)
        # tangents anywhere, also outside the limits
        tangent = points[rng.integers(len(points))] if rng.uniform() < 0.5 else rng.dirichlet(np.ones(n))
        bound = program.bound(prices, tangent)
        assert (values <= bound.value + 1e-9 * (1 + abs(bound.value))).all(), (seed, n, prices)
        assert (bound.missed[(tangent >= program.low) & (tangent <= program.high)] >= -1e-9 * (1 + abs(bound.value))).all()
        if prices.cone is not None or program.tracking is None:
            # there are weights: nothing may prove that there are none
            assert program.bound(prices, None).value >= -1e-9 * (1 + abs(bound.value)), (seed, n, prices)


@FEW
@given(SEEDS, st.integers(1, 10))
def test_what_stocks_miss_and_the_prices_leave_adds_up_to_the_gap(seed, n):
    """gap = sum(missed) + prices x room left; so a bound is the objective where nothing is missed and no priced limit has room."""
    made, rng = random_problem(seed, n), np.random.default_rng(seed)
    program, w = program_of(made), made.hidden
    prices = random_prices(program, rng)
    prices.cone = None                                         # the direction of the weights' own risk
    d = w - program.case.benchmark
    exposure, limit = program.exposures(d), np.where(prices.bands > 0, program.band_high, program.band_low)
    priced = prices.bands != 0
    room = (prices.bands[priced] * (limit[priced] - exposure[priced])).sum()
    room += prices.invested * (program.invested[int(prices.invested > 0)] - w.sum())
    room += prices.turnover * (program.turnover - program.one_way(w)) if program.turnover is not None else 0.0
    if program.tracking is not None:
        room += prices.tracking * (program.tracking - program.active_risk(d))
    bound = program.bound(prices, w)
    left = bound.value - program.objective(w) - bound.missed.sum()
    if program.active_risk(d) > 1e-6:
        assert left == pytest.approx(room, rel=1e-6, abs=1e-9 * (1 + abs(bound.value)))


def test_a_wrong_bound_would_be_seen():
    """0.1 of A's 1 a unit becomes E's 5: a bound of 2.5 + 0.4; one that takes the limit for half of what it is lies below the best."""
    program, best = five_program({"turnover": 0.1}), BENCHMARK + [-0.1, 0, 0, 0, 0.1]
    prices = Prices(invested=3.0, turnover=4.0)
    assert program.bound(prices, best).value == pytest.approx(program.objective(best)) == pytest.approx(ALPHA @ BENCHMARK + 0.4)
    program.turnover = 0.05
    assert program.bound(prices, best).value == pytest.approx(program.objective(best) - 0.2)


def test_a_bound_by_hand():
    """Best of B and C at a cap of 0.6: 0.6 x 3 + 0.4 x 2 = 2.6; at 2 a unit of investment the bound is 2 + 0.6 x (3 - 2)."""
    two = np.array([True, False, False, True, True])
    program = five_program({"cap": 0.6}, alpha=np.array([9.0, 2, 3, 9, 9]), current=np.zeros(5), no_buy=two)
    best = np.array([0, 0.4, 0.6, 0, 0])
    assert program.bound(Prices(invested=2.0), best).value == pytest.approx(2.6) == program.objective(best)
    assert program.bound(Prices(invested=2.5), best).value == pytest.approx(2.5 + 0.6 * 0.5)
    assert program.bound(Prices(), best).value == pytest.approx(0.6 * 2 + 0.6 * 3)


# ---- locks and caps: what `close` makes of them -------------------------------------------------------------------------------
A_ONLY = np.array([True, False, False, False, False])


@pytest.mark.parametrize("limits, held, locks, low, high", [
    ({"cap": 0.4}, 0.3, (), 0, 0.4),                                          # free
    ({"cap": 0.4}, 0.3, ("no_buy",), 0, 0.3),                                 # limit-up
    ({"cap": 0.4}, 0.3, ("no_sell",), 0.3, 0.4),                              # limit-down
    ({"cap": 0.4}, 0.3, ("no_buy", "no_sell"), 0.3, 0.3),                     # suspended
    ({"cap": 0.2}, 0.3, (), 0, 0.3),                                          # over its cap: sell only
    ({"cap": 0.2}, 0.3, ("no_sell",), 0.3, 0.3),                              # over its cap, and may not be sold
    ({"cap": 0.0}, 0.3, (), 0, 0),                                            # a cap of 0: to be sold
    ({"cap": 0.0}, 0.3, ("no_sell",), 0.3, 0.3),                              # a cap of 0, and may not be sold
    ({"active_weight": 0.1}, 0.05, (), 0.2, 0.4),                             # below the floor: to be bought
    ({"active_weight": 0.1}, 0.05, ("no_buy",), 0.05, 0.05),                  # as far as it may be
    ({"active_weight": 0.1}, 0.5, (), 0.2, 0.5),                              # over benchmark + width: sell only
    ({"active_weight": 0.1, "cap": 0.1}, 0.05, (), 0.1, 0.1),                 # the cap beats the floor
    ({"active_weight": 0.1, "cap": 0.1}, 0.0, ("no_buy",), 0, 0),
    ({"benchmark_multiple": 0.5}, 0.25, (), 0, 0.25),
    ({"benchmark_multiple": 0.0}, 0.25, (), 0, 0),
])
def test_bounds_of_one_stock(limits, held, locks, low, high):
    current = np.array([held, 0.7 - held, 0.1, 0.1, 0.1])
    program = five_program(limits, current=current, **{lock: A_ONLY for lock in locks})
    assert (program.low[0], program.high[0]) == (pytest.approx(low), pytest.approx(high))
    assert program.over[0] == (0 < program.limit[0] < held)


def test_a_book_locked_in_whole_stays_whatever_the_caps():
    every = np.ones(5, bool)
    program = five_program({"cap": 0.01}, current=BENCHMARK, no_buy=every, no_sell=every)
    np.testing.assert_array_equal(program.low, BENCHMARK)
    np.testing.assert_array_equal(program.high, BENCHMARK)


def test_a_factor_equal_for_all_is_left_out_only_under_full_investment():
    """Country moves the risk of a portfolio that holds cash, and no active risk of one that does not."""
    full, cash = five_program({"tracking_error": 0.05}), five_program({"tracking_error": 0.05, "investment": {"low": 0.9, "high": 1.0}})
    assert "country" not in full.names and "country" in cash.names
    risk = cash.case
    covariance = 252 * (risk.exposure @ risk.factor_cov @ risk.exposure.T + np.diag(risk.specific_var))
    d = np.array([-0.1, 0, 0, 0, 0])
    assert cash.active_risk(d) == pytest.approx(np.sqrt(d @ covariance @ d))


def test_groups_are_industries_or_none():
    case = five_program({}).case
    names, place = case.groups
    assert names == ["industry:x", "industry:y"] and place.tolist() == [0, 0, 1, 1, 1]
    outside = {**vars(case), "exposure": case.exposure * np.array([1, 1, 0, 1])}
    outside.pop("groups", None)
    assert Case(**outside).groups[1].tolist() == [0, 0, -1, -1, -1]
    both = {**outside, "exposure": np.column_stack([np.ones(5), np.ones(5), np.ones(5), SIZE])}
    assert Case(**both).groups is None
