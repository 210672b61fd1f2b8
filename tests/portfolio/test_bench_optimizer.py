"""The problems of `scripts/bench/optimizer.py` are as described, its baseline solves them, and its measures see faults."""

import itertools
import sys
from dataclasses import replace
from pathlib import Path

import cvxpy as cp
import numpy as np
import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"
MODULES = ("optimizer", "optimizer_instances", "optimizer_peers")


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(BENCH))
    try:
        import optimizer
        import optimizer_peers  # noqa: F401
        yield optimizer
    finally:
        sys.path.remove(str(BENCH))
        for name in MODULES:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def made(bench):
    return list(bench.weeks(10, 300))


def covariance(one) -> np.ndarray:
    return 252 * (one.exposure @ one.factor_cov @ one.exposure.T + np.diag(one.specific_var))


def broken(one, w: np.ndarray) -> set[str]:
    """Constraints that weights break by more than 1e-7, written as the problem reads, stock by stock."""
    found, d = set(), w - one.benchmark
    for i, weight in enumerate(w):
        cap, held = min(0.03, max(5 * one.benchmark[i], one.floor)), one.current[i]
        found |= {"upper"} if weight > max(cap, held) + 1e-7 or one.no_buy[i] and weight > held + 1e-7 else set()
        found |= {"lower"} if weight < (held if one.no_sell[i] else 0) - 1e-7 else set()
    found |= {"budget"} if abs(sum(w) - 1) > 1e-7 else set()
    found |= {"turnover"} if sum(abs(w - one.current)) > 2 * one.turnover + 1e-7 else set()
    found |= {"tracking error"} if np.sqrt(d @ covariance(one) @ d) > one.tracking_error + 1e-7 else set()
    found |= {"members"} if sum(w[one.members]) < one.member_share - 1e-7 else set()
    found |= {"style"} if max(abs(one.exposure[:, k] @ d) for k in range(10)) > one.style + 1e-7 else set()
    return found | ({"industry"} if max(abs(one.exposure[:, k] @ d) for k in range(10, 40)) > one.industry + 1e-7 else set())


def by_cvxpy(one) -> float:
    """The objective of the problem as one reads it: full covariance, absolute trades."""
    w = cp.Variable(len(one.alpha))
    d, trade = w - one.benchmark, w - one.current
    cap = np.minimum(0.03, np.maximum(5 * one.benchmark, one.floor))
    limits = [cp.sum(w) == 1, w >= 0, w <= np.maximum(cap, one.current), cp.abs(one.exposure[:, :10].T @ d) <= 0.5,
              cp.abs(one.exposure[:, 10:].T @ d) <= 0.02, cp.norm(np.linalg.cholesky(covariance(one)).T @ d) <= one.tracking_error]
    limits += [trade[one.no_buy] <= 0] if one.no_buy.any() else []
    limits += [trade[one.no_sell] >= 0] if one.no_sell.any() else []
    limits += [cp.norm1(trade) <= 2 * one.turnover] if np.isfinite(one.turnover) else []
    limits += [cp.sum(w[one.members]) >= one.member_share]
    gain = one.alpha @ w - 0.001 * cp.sum(cp.pos(trade)) - 0.001 * cp.sum(cp.pos(-trade))
    return cp.Problem(cp.Maximize(gain), limits).solve(solver=cp.CLARABEL, tol_gap_abs=1e-9, tol_gap_rel=1e-9, tol_feas=1e-9)


def test_instances_are_as_described(made):
    for one in made:
        style, industry = one.exposure[:, :10], one.exposure[:, 10:]
        assert one.benchmark.sum() == pytest.approx(1) and one.current.sum() == pytest.approx(1)
        assert one.benchmark.min() > 0 and one.current.min() >= 0
        np.testing.assert_allclose([style.mean(axis=0), style.std(axis=0)], [np.zeros(10), np.ones(10)], atol=1e-12)
        assert set(np.unique(industry)) == {0.0, 1.0} and (industry.sum(axis=1) == 1).all()
        np.testing.assert_allclose(one.cap, [min(0.03, max(5 * weight, 0.002)) for weight in one.benchmark])
        assert np.linalg.eigvalsh(one.factor_cov).min() > 0
        assert 0.2 < np.sqrt(252 * one.specific_var).min() and np.sqrt(252 * one.specific_var).max() < 0.55
        assert one.turnover == (0.15 if one.week else np.inf) and one.cost == 0.001 and one.member_share == 0
    suspended = np.mean([(one.no_buy & one.no_sell).mean() for one in made])
    limit_up, limit_down = (np.mean([(first & ~second).mean() for first, second in pairs]) for pairs in
                            ([(one.no_buy, one.no_sell) for one in made], [(one.no_sell, one.no_buy) for one in made]))
    assert all(0.005 < share < 0.016 for share in (suspended, limit_up, limit_down))
    for name in ("alpha", "exposure", "specific_var", "benchmark", "current"):
        assert all((getattr(one, name) != getattr(two, name)).any() for one, two in itertools.pairwise(made))


def test_a_book_is_the_last_optimum_moved_by_returns(bench, made):
    for one, following in itertools.pairwise(made):
        weights = bench.solve_direct(one).weights
        kept = weights > 2e-6
        growth = following.current[kept] / weights[kept] / (following.benchmark / one.benchmark)[kept]
        np.testing.assert_allclose(growth, growth[0], rtol=1e-9)
        assert np.array_equal(following.current > 0, weights >= 1e-6)


def test_the_same_seed_gives_the_same_weeks(bench, made):
    again = list(bench.weeks(2, 300))[1]
    assert all(np.array_equal(getattr(again, name), getattr(made[1], name)) for name in ("alpha", "current", "no_buy", "exposure"))
    assert not np.array_equal(list(bench.weeks(1, 300, seed=1))[0].alpha, made[0].alpha)


def test_a_large_market_has_members(bench):
    one = list(bench.weeks(2, 5000))[1]
    assert one.members.sum() == 1000 and one.member_share == 0.8 and one.floor == 0.005
    assert (one.benchmark[one.members] > 0).all() and not one.benchmark[~one.members].any() and (one.cap[~one.members] == 0.005).all()
    assert one.current[one.members].sum() > 0.79


def test_the_baseline_keeps_every_constraint(bench, made):
    turnover, tracking = [], []
    for one in made:
        found = bench.solve_direct(one)
        assert found.status == "Solved" and broken(one, found.weights) == set() and found.seconds > 0
        turnover.append(abs(np.abs(found.weights - one.current).sum() - 0.3) < 1e-5)
        tracking.append(one.active_risk(found.weights) > 0.05 * 0.999)
    assert all(turnover[1:]) and not all(tracking)
    for one in bench.weeks(4, 300, tracking_error=0.03):
        weights = bench.solve_direct(one).weights
        d = weights - one.benchmark
        assert broken(one, weights) == set() and np.sqrt(d @ covariance(one) @ d) == pytest.approx(0.03, rel=1e-4)


def locked(one):
    """A week with locks of each kind, stocks over their caps that can and cannot be sold, cash in the book, and members."""
    n = len(one.alpha)
    current = one.current * 0.97
    places = np.argsort(-current)[:6]
    current[places[0]] = current[places[2]] = 0.035
    no_buy, no_sell, members = np.zeros((3, n), dtype=bool)
    no_buy[places[[1, 2, 3]]] = no_sell[places[[2, 4]]] = members[: n // 2] = True
    no_buy[np.argmin(current)] = True
    current *= 0.97 / current.sum()
    free = by_cvxpy(replace(one, current=current, no_buy=no_buy, no_sell=no_sell, members=members, member_share=0.0))
    share = one.benchmark[members].sum() + 0.02
    return replace(one, current=current, no_buy=no_buy, no_sell=no_sell, members=members, member_share=share), free


def test_the_baseline_is_the_optimum(bench):
    made = list(bench.weeks(3, 60))
    bound, free = locked(made[2])
    for one in [*made, bound]:
        found = bench.solve_direct(one, 1e-9)
        assert found.status == "Solved" and broken(one, found.weights) == set()
        assert found.objective == pytest.approx(by_cvxpy(one), rel=1e-5)
    assert found.objective < free - 1e-6, "the planted limits must matter"
    assert (found.weights[bound.no_sell] > bound.current[bound.no_sell] - 1e-8).all()


@pytest.mark.parametrize("name", ["budget", "lower", "upper", "style", "industry", "turnover", "tracking error", "members"])
def test_a_planted_violation_is_reported(bench, made, name):
    """One limit moves by 0.3 of what it bounds, or one weight moves: that constraint is named, with its amount."""
    one = made[3]
    best = bench.solve_direct(one, 1e-9)
    assert bench.quality(one, best.weights, best.objective)[:2] == (0, pytest.approx(0, abs=1e-9))
    active, risk, half = np.abs(one.exposure.T @ (best.weights - one.benchmark)), one.active_risk(best.weights), np.arange(300) < 150
    limits, expected = {"style": ({"style": 0.7 * active[:10].max()}, 0.3 * active[:10].max()),
                        "industry": ({"industry": 0.7 * active[10:].max()}, 0.3 * active[10:].max()),
                        "turnover": ({"turnover": 0.105}, 0.09), "tracking error": ({"tracking_error": 0.7 * risk}, 0.3 * risk),
                        "members": ({"members": half, "member_share": best.weights[half].sum() + 0.2}, 0.2)}.get(name, ({}, 0.001))
    faulty, weights = replace(one, **limits), best.weights.copy()
    place = {"lower": weights.argmin(), "upper": (weights - one.upper).argmax(), "budget": (one.upper - weights).argmax()}.get(name, 0)
    weights[place] += {"lower": -0.001, "upper": 0.001, "budget": 0.001}.get(name, 0.0)
    amounts = faulty.violations(weights)
    assert amounts[name] == pytest.approx(expected, abs=2e-6) and name in broken(faulty, weights)
    gap, worst, of = bench.quality(faulty, weights, best.objective)
    assert worst == max(amounts.values()) >= amounts[name] and amounts[of] == worst and np.isfinite(gap)


def test_a_worse_objective_is_a_gap(bench, made):
    one = made[1]
    best = bench.solve_direct(one)
    worse = 0.9 * best.weights + 0.1 * one.current
    assert bench.quality(one, worse, best.objective)[0] == pytest.approx(1 - one.objective(worse) / best.objective) and \
        bench.quality(one, worse, best.objective)[0] > 0.01
    for wrong in (best.weights[:-1], np.full(300, np.nan)):
        with pytest.raises(ValueError, match="week 1"):
            bench.quality(one, wrong, best.objective)


class Timed:
    """A method that takes its own seconds on a clock of the test, and may fail in a week."""

    leaves_out = ""

    def __init__(self, bench, clock: list, seconds: dict, order: list, name: str, fails: int = -1):
        self.bench, self.clock, self.seconds, self.order, self.name, self.fails = bench, clock, seconds, order, name, fails

    def prepare(self, one):
        self.clock[0] += 100
        return one

    def solve(self, one):
        self.order.append(self.name)
        self.clock[0] += self.seconds[one.week]
        if one.week == self.fails:
            raise ValueError("planted")
        return self.bench.solve_direct(one).weights


def test_the_race_compares_weeks_and_keeps_week_0_apart(bench, made, capsys):
    clock, order = [0.0], []
    slow = {0: 50.0, 1: 1.0, 2: 10.0, 3: 4.0}
    half = {0: 500.0, 1: 0.5, 2: 6.0, 3: 1.6}                                          # ratios 0.5, 0.6, 0.4 after week 0
    methods = {bench.BASELINE: Timed(bench, clock, slow, order, "baseline"), bench.OURS: Timed(bench, clock, half, order, "ours"),
               "other": Timed(bench, clock, slow, order, "other", fails=2)}
    records = bench.race(made[:4], methods, lambda: clock[0])
    assert order[:9] == ["baseline", "ours", "other", "ours", "other", "baseline", "other", "baseline", "ours"]
    ours = [record for record in records if record.method == bench.OURS]
    assert [record.ratio for record in ours] == pytest.approx([10, 0.5, 0.6, 0.4])
    lines = {line.split()[0]: line for line in bench.table(records, methods, 0.45)}
    assert lines["ours"].split()[1] == "0.500" and lines["ours"].endswith("bar 0.45: MISSED") and " 500000.0 " in lines["ours"]
    assert bench.table(records, methods, 0.55)[2].endswith("bar 0.55: kept")
    assert lines["other"].endswith("2, 1 failed") and "other, week 2: ValueError: planted" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["cvxpy-dpp", "cvxpy-rebuilt"])
def test_cvxpy_peers_solve_the_same_problem(bench, name):
    made = list(bench.weeks(3, 60))
    made[2] = locked(made[2])[0] if name == "cvxpy-rebuilt" else made[2]
    peer = sys.modules["optimizer_peers"].PEERS[name](made)
    for one in made:
        weights = peer.solve(peer.prepare(one))
        assert broken(one, weights) == set()
        assert one.objective(weights) == pytest.approx(bench.solve_direct(one, 1e-9).objective, rel=1e-5)


def test_a_peer_without_its_package_or_too_slow_is_said(bench, made, monkeypatch):
    peers = sys.modules["optimizer_peers"]
    monkeypatch.setattr(peers.Skfolio, "package", "no_such_package")
    monkeypatch.setattr(peers.Cvxportfolio, "package", "cvxpy")
    monkeypatch.setattr(peers.Cvxportfolio, "largest", 299)
    runs, lines = peers.chosen(["skfolio", "cvxportfolio", "cvxpy-dpp"], made)
    assert list(runs) == ["cvxpy-dpp"] and "no_such_package is not installed" in lines[0] and "up to 299 stocks" in lines[1]


@pytest.mark.parametrize("limit", [0.05, 0.03])
def test_ours_solves_the_same_problem(bench, limit):
    methods = {bench.BASELINE: bench.Baseline(), bench.OURS: bench.Ours()}
    records = [record for record in bench.race(list(bench.weeks(3, 300, tracking_error=limit)), methods) if record.method == bench.OURS]
    assert [record.week for record in records] == [0, 1, 2]
    assert all(abs(record.gap) < 2e-6 and record.violation < 1e-7 for record in records)
