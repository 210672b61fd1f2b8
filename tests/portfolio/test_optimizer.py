"""Five stocks worked by hand: each limit, lock, rung of the ladder and note; what is refused; what the certificate holds."""
import json
import re

import numpy as np
import pandas as pd
import pytest
from optimizer_cases import ALPHA, BENCHMARK, NAMES, SIZE, SPECIFIC, faults, five, five_risk, hostile

from qlib_ext.errors import ConfigError, DataError, InfeasibleError, ShapeError
from qlib_ext.portfolio.optimizer import IndexEnhancer
from qlib_ext.risk.snapshot import RiskSnapshot

EVERY, NONE = np.ones(5, bool), np.zeros(5, bool)
AWAY = np.array([0.6, 0.4, 0, 0, 0])


def only(*names: str) -> np.ndarray:
    return np.isin(NAMES, names)


def weights(*args, **kwargs) -> np.ndarray:
    solution = five(*args, **kwargs)
    assert solution.status == "optimal" and solution.violation <= 1e-8 and solution.gap <= 2e-6 and not solution.relaxed
    return solution.weights


# ---- limits and locks ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("limits, expected", [
    ({}, [0, 0, 0, 0, 1]),
    ({"cap": 0.4}, [0, 0, 0.2, 0.4, 0.4]),
    ({"benchmark_multiple": 2}, [0, 0.1, 0.4, 0.3, 0.2]),
    ({"benchmark_multiple": {"multiple": 2, "floor": 0.3}}, [0, 0, 0.4, 0.3, 0.3]),
    ({"active_weight": 0.1}, [0.2, 0.15, 0.2, 0.25, 0.2]),
    ({"industry": 0.05}, [0, 0.5, 0, 0, 0.5]),
    ({"industry": {"x": 0.05}}, [0, 0.5, 0, 0, 0.5]),
    ({"industry": {"default": 0.05, "x": 0.01, "y": 0.05}}, [0, 0.54, 0, 0, 0.46]),
    ({"cap": 0.4, "industry": 0.05}, [0.1, 0.4, 0, 0.1, 0.4]),
])
def test_each_limit_without_a_book(limits, expected):
    np.testing.assert_allclose(weights(limits), expected, atol=1e-9)


@pytest.mark.parametrize("limits, inputs, expected", [
    ({"turnover": 0.1}, {}, [0.2, 0.25, 0.2, 0.15, 0.2]),
    ({"turnover": 0.1}, {"no_buy": only("E")}, [0.2, 0.25, 0.2, 0.25, 0.1]),                              # limit-up
    ({"turnover": 0.1}, {"no_sell": only("A")}, [0.3, 0.15, 0.2, 0.15, 0.2]),                             # limit-down
    ({"turnover": 0.1}, {"no_buy": only("A", "E"), "no_sell": only("A", "E")}, [0.3, 0.15, 0.2, 0.25, 0.1]),    # suspended
    ({"turnover": 0.1}, {"no_buy": only("A")}, [0.2, 0.25, 0.2, 0.15, 0.2]),                              # a blacklisted name is sold
    ({"turnover": 0.1}, {"no_sell": only("E")}, [0.2, 0.25, 0.2, 0.15, 0.2]),                             # what may not be sold is bought
    ({"turnover": 0.4, "cap": 0.4}, {"sell_all": only("A")}, [0, 0.15, 0.2, 0.25, 0.4]),
    ({"turnover": 0.4, "cap": 0.4}, {"sell_all": only("A"), "no_sell": only("A")}, [0.3, 0, 0.05, 0.25, 0.4]),
    ({"turnover": 0.0}, {}, [0.3, 0.25, 0.2, 0.15, 0.1]),
    ({}, {"no_buy": EVERY, "no_sell": EVERY}, [0.3, 0.25, 0.2, 0.15, 0.1]),
    ({"cap": 0.1}, {"no_sell": EVERY}, [0.3, 0.25, 0.2, 0.15, 0.1]),                                      # locks over caps
    ({"cap": 0.25, "turnover": 0.02}, {}, [0.28, 0.25, 0.2, 0.15, 0.12]),                                 # A is over its cap: it may stay
    ({"cap": 0.25, "turnover": 0.02}, {"alpha": -ALPHA}, [0.3, 0.25, 0.22, 0.15, 0.08]),                  # and is not bought
    ({"investment": {"low": 0.9, "high": 1.0}}, {"alpha": -ALPHA}, [0.9, 0, 0, 0, 0]),
    ({"investment": {"low": 0.9, "high": 1.0}, "turnover": 0.1}, {}, [0.2, 0.25, 0.2, 0.15, 0.2]),
    ({"member_share": 0.7}, {"members": only("A", "B")}, [0, 0.7, 0, 0, 0.3]),
])
def test_locks_and_trades_from_the_benchmark(limits, inputs, expected):
    np.testing.assert_allclose(weights(limits, **{"current": BENCHMARK, **inputs}), expected, atol=1e-8)


def test_costs_stop_trades_that_do_not_pay():
    """From D to E gains 1, from A to E 4: at 1.75 for each side only what gains more than 3.5 is done."""
    book = np.array([0.2, 0.2, 0.2, 0.2, 0.2])
    dear = five({}, {"cost_aversion": 1.0}, current=book, cost=(1.75, 1.75))
    np.testing.assert_allclose(dear.weights, [0, 0.2, 0.2, 0.2, 0.4], atol=1e-8)
    assert dear.cost == pytest.approx(0.2 * 3.5) and dear.objective == pytest.approx(ALPHA @ dear.weights - 0.7)
    sells = five({}, {"cost_aversion": 1.0}, current=book, cost=(0.0, np.array([9.0, 0, 9, 9, 9])))
    np.testing.assert_allclose(sells.weights, [0.2, 0, 0.2, 0.2, 0.4], atol=1e-8)


def test_the_best_for_a_tracking_error_is_the_closed_form():
    """``d`` in the direction of ``S^-1 (mu - m 1)``, m so that it sums to 0, as long as the limit."""
    solution = five({"tracking_error": 0.02})
    risk = five_risk()
    inverse = np.linalg.inv(risk.covariance())
    m = inverse.sum(axis=0) @ ALPHA / inverse.sum()
    d = inverse @ (ALPHA - m)
    d *= 0.02 / np.sqrt(252 * risk.variance(d))
    np.testing.assert_allclose(solution.weights, BENCHMARK + d, atol=1e-6)
    assert solution.tracking_error == pytest.approx(0.02, abs=1e-8) and set(solution.active) == {"tracking_error"}


def test_risk_aversion_is_the_closed_form():
    inverse, ones = np.linalg.inv(2 * 30.0 * 252 * five_risk().covariance()), np.ones(5)
    d = inverse @ (ALPHA - ones * (inverse.sum(axis=0) @ ALPHA / inverse.sum()))
    np.testing.assert_allclose(weights({}, {"risk_aversion": 30.0}), BENCHMARK + d, atol=1e-6)


def test_a_style_band_binds_and_has_its_price():
    """alpha = 3 - size: one unit of exposure less is worth 1."""
    solution = five({"style": {"size": 0.2}})
    exposure, low, high, price = solution.exposures.loc["size"]
    assert (exposure, low, high) == (pytest.approx(-0.2), -0.2, 0.2) and abs(price) == pytest.approx(1.0)
    assert solution.objective == pytest.approx(3 - (SIZE @ BENCHMARK - 0.2)) and solution.active == {"size": pytest.approx(1.0)}
    assert np.isinf(solution.exposures.loc["country", "high"]) and solution.exposures.loc["country", "exposure"] == pytest.approx(0)


def test_scale_widens_the_caps_and_says_so():
    solution = five({"cap": 0.4, "turnover": 1.0}, scale=1.25)
    np.testing.assert_allclose(solution.weights, [0, 0, 0, 0.5, 0.5], atol=1e-9)
    assert solution.notes["scale"] == {"factor": 1.25, "of": ["cap"]} and "scale" not in five({"cap": 0.4}).notes


def test_alpha_is_cut_at_three_deviations():
    """One stock of 40 far above: standardised, it counts as 3; its 9 against the others' would buy less of the second."""
    rng = np.random.default_rng(0)
    alpha = np.append(rng.standard_normal(39), 1e6)
    names = [f"S{i:02d}" for i in range(40)]
    risk = RiskSnapshot(np.datetime64("2024-01-05"), names, ("country",), np.ones((40, 1)), np.zeros((1, 1)), np.ones(40) / 1e4)
    solution = IndexEnhancer(constraints={"cap": 0.5}).solve(alpha, risk, np.full(40, 1 / 40))
    z = (alpha - alpha.mean()) / alpha.std()
    assert z[-1] > 3 and solution.objective == pytest.approx(0.5 * 3 + 0.5 * np.sort(z)[-2], abs=1e-5)


# ---- the ladder -----------------------------------------------------------------------------------------------------------------
def moved(first: str, second: str, weight: float) -> np.ndarray:
    return BENCHMARK + weight * only(first) - weight * only(second)


LOCKED = {"no_buy": EVERY, "no_sell": EVERY}


@pytest.mark.parametrize("limits, book, relaxed, slack", [
    ({"style": {"size": 0.1}}, moved("A", "E", 0.0325), {"style": 1.5}, {"size": 0.03}),
    ({"style": {"size": 0.1}}, moved("A", "E", 0.0425), {"style": 2.0}, {"size": 0.07}),
    ({"industry": 0.01}, moved("B", "C", 0.013), {"industry": 1.5}, {"industry:x": 0.003, "industry:y": 0.003}),
    ({"industry": 0.01}, moved("B", "C", 0.018), {"industry": 2.0}, {"industry:x": 0.008, "industry:y": 0.008}),
    ({"style": {"size": 0.1}, "industry": 0.1, "turnover": 0.3}, moved("A", "E", 0.0325), {"style": 1.5}, {"size": 0.03}),
    ({"style": {"size": 9.0}, "industry": 0.01, "turnover": 0.3, "tracking_error": 0.5}, moved("B", "C", 0.013), {"industry": 1.5},
     {"industry:x": 0.003, "industry:y": 0.003}),
])
def test_rungs_of_style_and_industry_relax_only_what_is_needed(limits, book, relaxed, slack):
    solution = five(limits, current=book, **LOCKED)
    assert (solution.status, solution.relaxed) == ("relaxed", relaxed)
    assert solution.slack == pytest.approx(slack, abs=1e-7) and solution.violation <= 1e-8
    np.testing.assert_allclose(solution.weights, book, atol=1e-9)


def test_the_rung_of_tracking_error():
    book = moved("A", "B", 0.1)
    d = book - BENCHMARK
    risk = float(np.sqrt(252 * five_risk().variance(d)))
    solution = five({"tracking_error": risk / 1.2, "style": {"size": 9.0}, "industry": 0.5}, current=book, **LOCKED)
    assert solution.relaxed == {"tracking_error": 1.25} and solution.slack == {"tracking_error": pytest.approx(risk - risk / 1.2, abs=1e-7)}
    with pytest.raises(InfeasibleError, match="keep all of: tracking_error, .*tried up to"):
        five({"tracking_error": risk / 1.3}, current=book, **LOCKED)


def test_two_families_are_relaxed_where_both_are_needed():
    book = moved("A", "E", 0.0325)                            # size 0.13, and 0.0325 from industry y to x
    solution = five({"style": {"size": 0.1}, "industry": 0.025, "turnover": 0.2}, current=book, **LOCKED)
    assert solution.relaxed.keys() == {"style", "industry"}
    assert solution.relaxed["industry"] == 1.5 and solution.relaxed["style"] in (1.5, 2.0)
    assert solution.slack.keys() == {"size", "industry:x", "industry:y"}


def test_turnover_is_relaxed_as_little_as_needed():
    """From size 1.6 to 0.5 takes 1.1 / 4 = 0.275 of A to E; a hundredth more is left to the alpha."""
    solution = five({"style": {"size": 0.0}, "turnover": 0.05}, current=AWAY)
    assert solution.relaxed == {"turnover": pytest.approx(0.275 * 1.01)}
    assert solution.turnover <= 0.275 * 1.01 + 1e-8 and solution.slack == {"turnover": pytest.approx(solution.turnover - 0.05, abs=1e-8)}
    assert abs(SIZE @ (solution.weights - BENCHMARK)) < 1e-8


def test_a_turnover_of_nothing_is_relaxed_too():
    """A cap of 0 for what is held must be sold, which a turnover of 0 forbids: the ladder finds the least that it takes."""
    found = five({"turnover": 0.0}, current=BENCHMARK, sell_all=np.array([True, False, False, False, False]))
    assert found.status == "relaxed" and found.weights[0] == 0
    assert found.relaxed["turnover"] == pytest.approx(max(1.01 * BENCHMARK[0], BENCHMARK[0] + 1e-3)) and found.violation <= 1e-8


def test_turnover_is_not_relaxed_where_style_alone_helps():
    solution = five({"style": {"size": 0.1}, "turnover": 0.3}, current=moved("A", "E", 0.0325), **LOCKED)
    assert solution.relaxed == {"style": 1.5} and solution.turnover == pytest.approx(0, abs=1e-12)


def test_a_ladder_of_ones_own():
    limits, book = {"style": {"size": 0.1}}, moved("A", "E", 0.1)
    assert five(limits, {"ladder": [{"style": 5.0}]}, current=book, **LOCKED).relaxed == {"style": 5.0}
    with pytest.raises(InfeasibleError, match="keep all of: size"):
        five(limits, current=book, **LOCKED)
    two = [{"turnover": 2.0}, {"style": 5.0}]
    assert five({**limits, "turnover": 0.01}, {"ladder": two}, current=book, **LOCKED).relaxed == {"style": 5.0}


@pytest.mark.parametrize("limits, inputs", [
    ({"cap": 0.1}, {}), ({"benchmark_multiple": 0.5}, {}), ({"investment": 0.5}, {"current": AWAY, "no_sell": EVERY}),
    ({"cap": 0.1, "turnover": 0.01, "style": {"size": 0.1}}, {}),
])
def test_caps_locks_and_investment_never_relax(limits, inputs):
    if "investment" in limits:
        limits = {"investment": {"low": 0.5, "high": 0.9}}
    with pytest.raises(InfeasibleError, match="investment .* cannot be had"):
        five(limits, **inputs)


def named(error: InfeasibleError) -> list[str]:
    return re.search(r"keep all of: (.*?), with locks", str(error)).group(1).split(", ")


def part(limits: dict, names: list[str]) -> dict:
    """Limits that never relax, and those of some names."""
    single = ("turnover", "tracking_error", "member_share")
    kept = {name: value for name, value in limits.items() if name in names or name not in ("style", "industry", *single)}
    industries = {name: limits["industry"] for name in names if name.startswith("industry:")}
    styles = {name: width for name, width in limits.get("style", {}).items() if name in names}
    return {**kept, **({"industry": industries} if industries else {}), **({"style": styles} if styles else {})}


def feasible(made, names: list[str]) -> bool:
    try:
        return faults.answer(hostile.Instance("", part(made.limits, names), made.inputs, made.risk, {"ladder": None})).status == "optimal"
    except InfeasibleError:
        return False


def test_infeasible_names_a_set_that_conflicts_and_no_more():
    """Random problems with limits cut: the set alone has no weights, without any one of it there are some."""
    seen = []
    for number in range(60):
        made = hostile.no_ladder(np.random.default_rng(number))
        try:
            faults.answer(made)
        except InfeasibleError as error:
            if "keep all of" in str(error) and "caps, locks" not in str(error):
                seen.append(named(error))
                assert not feasible(made, seen[-1]), (number, seen[-1])
                for name in seen[-1]:
                    assert feasible(made, [one for one in seen[-1] if one != name]), (number, name, seen[-1])
        if len(seen) == 12:
            break
    assert len(seen) == 12 and {len(one) for one in seen} >= {1, 2}


def test_infeasible_says_day_set_and_what_to_do():
    with pytest.raises(InfeasibleError) as caught:
        five({"style": {"size": 0.0}, "turnover": 0.05, "industry": 0.5, "tracking_error": 0.9}, {"ladder": None}, current=AWAY)
    assert sorted(named(caught.value)) == ["size", "turnover"]
    assert "2024-01-05" in str(caught.value) and "Widen one of them" in str(caught.value)


# ---- least sizes -----------------------------------------------------------------------------------------------------------------
def test_a_small_position_is_filled_up_or_sold():
    plain = five({"cap": 0.48})
    np.testing.assert_allclose(plain.weights, [0, 0, 0.04, 0.48, 0.48], atol=1e-9)
    filled = five({"cap": 0.48, "minimum_position": 0.08})      # without C the caps would leave 0.04 in cash
    np.testing.assert_allclose(filled.weights, [0, 0, 0.08, 0.44, 0.48], atol=1e-8)
    assert filled.gap == pytest.approx((plain.objective - filled.objective) / filled.objective, rel=1e-4)
    sold = five({"cap": 0.48, "minimum_position": 0.08, "investment": {"low": 0.9, "high": 1.0}})
    assert ((sold.weights == 0) | (sold.weights >= 0.08 - 1e-9)).all() and "smaller_than_minimum" not in sold.notes


def test_a_small_trade_is_left_out():
    """E up to its cap by 0.08; D would be by 0.03, less than the least trade."""
    limits = {"cap": 0.18, "turnover": 0.12}
    np.testing.assert_allclose(five(limits, current=BENCHMARK).weights, [0.19, 0.25, 0.2, 0.18, 0.18], atol=1e-8)
    solution = five({**limits, "minimum_trade": 0.05}, current=BENCHMARK)
    np.testing.assert_allclose(solution.weights, [0.22, 0.25, 0.2, 0.15, 0.18], atol=1e-8)
    assert solution.weights[3] == BENCHMARK[3]


def test_a_locked_small_position_stays():
    book = np.array([0.4, 0.3, 0.15, 0.14, 0.01])
    solution = five({"minimum_position": 0.05, "cap": 0.5}, current=book, no_buy=only("E"), no_sell=only("E"))
    assert solution.weights[4] == 0.01 and (solution.weights[:4][solution.weights[:4] > 0] >= 0.05 - 1e-9).all()


@pytest.mark.parametrize("number", range(12))
def test_least_sizes_keep_all_other_limits(number):
    made = hostile.minimum(np.random.default_rng(number))
    solution = faults.answer(made)
    assert faults.fault(made, solution) == ""
    trade, free = abs(solution.weights - solution.current), ~(made.inputs["no_buy"] & made.inputs["no_sell"])
    small = (solution.weights > 0) & (solution.weights < made.limits["minimum_position"] - 1e-9)
    short = (trade > 0) & (trade < made.limits.get("minimum_trade", 0) - 1e-9) & (solution.weights > 0)
    assert ((small | short) & free).sum() <= solution.notes.get("smaller_than_minimum", 0)


# ---- notes and alignment ----------------------------------------------------------------------------------------------------------
def test_a_stock_without_alpha_is_not_bought_and_noted():
    solution = five({"turnover": 0.1}, current=BENCHMARK, alpha=np.array([1.0, 2, 3, 4, np.nan]))
    np.testing.assert_allclose(solution.weights, [0.2, 0.25, 0.2, 0.25, 0.1], atol=1e-8)
    assert solution.notes["without_alpha"] == {"stocks": 1, "benchmark": pytest.approx(0.1)}
    assert solution.objective == pytest.approx(solution.weights @ [1, 2, 3, 4, 2.5])          # the mean stands in


def by_name(values, names=NAMES) -> pd.Series:
    return pd.Series(np.asarray(values), names)


def test_a_stock_without_risk_is_not_bought_and_noted():
    benchmark = by_name([0.3, 0.25, 0.2, 0.15, 0.05, 0.05], [*NAMES, "F"])
    solution = five({"tracking_error": 0.3}, alpha=by_name([1, 2, 3, 4, 5, 99.0], benchmark.index), benchmark=benchmark)
    assert solution.instruments.tolist() == [*NAMES, "F"] and solution.weights[5] == 0
    assert solution.notes["without_risk"] == {"stocks": 1, "benchmark": 0.05}
    d = solution.weights - benchmark.to_numpy()
    covariance = np.zeros((6, 6))
    covariance[:5, :5] = five_risk().covariance()
    covariance[5] = covariance[:, 5] = np.append(np.full(5, 1e-4), 1e-4 + np.quantile(SPECIFIC, 0.9))    # country alone, and its own risk
    assert solution.tracking_error == pytest.approx(np.sqrt(252 * d @ covariance @ d))
    with pytest.raises(DataError, match="does not know 1 stocks with 15.0% of the benchmark .*'F'"):
        five({}, alpha=by_name(ALPHA), benchmark=by_name([0.3, 0.2, 0.2, 0.1, 0.05, 0.15], [*NAMES, "F"]))


def test_a_benchmark_of_097_is_scaled_and_noted():
    solution, whole = (five({"active_weight": 0.1}, benchmark=BENCHMARK * part_of) for part_of in (0.97, 1.0))
    assert solution.notes["benchmark_sum"] == 0.97 and "benchmark_sum" not in whole.notes
    np.testing.assert_allclose(solution.weights, whole.weights, atol=1e-9)


def test_missing_styles_are_dropped_and_noted_or_refused():
    limits = {"style": {"size": 0.2, "roe": 0.3}}
    with pytest.raises(DataError, match="no style roe"):
        five(limits)
    solution = five(limits, {"missing_styles": "drop"})
    assert solution.notes["missing_styles"] == ["roe"] and solution.exposures.loc["size", "high"] == 0.2
    given = five(limits, extras={"roe": np.array([3.0, -3, 3, -3, 1])})
    assert given.exposures.loc["roe", "high"] == 0.3 and abs(given.exposures.loc["roe", "exposure"]) <= 0.3 + 1e-8


def test_stocks_over_their_caps_are_noted():
    solution = five({"cap": 0.25, "turnover": 0.02}, current=BENCHMARK)
    assert solution.notes["over_cap"] == {"A": pytest.approx(0.28)} and solution.notes["locked"] == 0
    assert "over_cap" not in five({"cap": 0.4}, current=BENCHMARK).notes
    locked = five({"turnover": 0.1}, current=BENCHMARK, no_buy=only("A", "E"), no_sell=only("A"))
    assert (locked.notes["locked"], locked.notes["no_buy"], locked.notes["no_sell"]) == (1, 2, 1)


def test_series_in_any_order_are_the_arrays():
    limits = {"cap": 0.35, "industry": 0.1, "turnover": 0.3, "tracking_error": 0.2, "style": {"roe": 0.5}}
    book, roe = np.array([0.2, 0.1, 0.3, 0, 0.4]), np.array([1.0, -1, 0.5, -0.5, 2])
    arrays = five(limits, current=book, no_buy=only("B"), no_sell=only("C"), extras={"roe": roe})
    mixed = [4, 1, 3, 0, 2]
    held = by_name(book).iloc[mixed][lambda one: one > 0]
    series = five(limits, alpha=by_name(ALPHA)[::-1], benchmark=by_name(BENCHMARK).iloc[mixed], current=held,
                  no_buy=by_name([True], ["B"]), no_sell=by_name([True, False], ["C", "A"]), extras={"roe": by_name(roe).iloc[mixed]})
    assert series.instruments.tolist() == NAMES
    np.testing.assert_array_equal(series.weights, arrays.weights)
    assert series.held == {name: weight for name, weight in zip(NAMES, arrays.weights) if weight > 0}


def test_names_are_those_held_scored_or_in_the_benchmark():
    risk = RiskSnapshot(np.datetime64("2024-01-05"), [*NAMES, "F", "G"], ("country",), np.ones((7, 1)), np.zeros((1, 1)), np.ones(7) / 1e4)
    scored, weighted, held = by_name([1.0, 2, 9], ["A", "B", "Z"]), by_name([0.5, 0.5], ["B", "C"]), by_name([0.2, 0.0], ["F", "G"])
    solution = IndexEnhancer().solve(scored, risk, weighted, held)
    assert solution.instruments.tolist() == ["A", "B", "C", "F"]       # Z has no exposures and no weight, G nothing


# ---- what is refused ------------------------------------------------------------------------------------------------------------
def put(values: np.ndarray, value: float) -> np.ndarray:
    return np.append(values[:-1], value)


@pytest.mark.parametrize("inputs, error, says", [
    ({"alpha": put(ALPHA, np.inf)}, DataError, "infinite"),
    ({"alpha": np.full(5, np.nan)}, DataError, "unknown for all"),
    ({"alpha": ALPHA[:4]}, ShapeError, "alpha has shape"),
    ({"alpha": ALPHA[:, None]}, ShapeError, "alpha has shape"),
    ({"alpha": pd.Series([1.0, 2, 3], ["A", "B", "A"])}, DataError, "alpha names A twice"),
    ({"alpha": by_name(ALPHA), "current": by_name([0.5, 0.5], ["C", "C"])}, DataError, "current names C twice"),
    ({"benchmark": put(BENCHMARK, -0.1)}, DataError, "benchmark weights hold .* 1 below 0"),
    ({"benchmark": put(BENCHMARK, np.nan)}, DataError, "benchmark weights hold 1 that are not finite"),
    ({"benchmark": BENCHMARK * 0.8}, DataError, "sum to 0.8000"),
    ({"benchmark": BENCHMARK * 100}, DataError, "sum to 100.0000"),
    ({"current": put(BENCHMARK, -0.1)}, DataError, "current weights hold"),
    ({"current": put(BENCHMARK, np.inf)}, DataError, "current weights hold"),
    ({"current": BENCHMARK * 1.5}, DataError, "current weights sum to 1.5000"),
    ({"cost": (-0.1, 0.0)}, DataError, "cost holds values below 0"),
    ({"cost": (0.0, np.nan)}, DataError, "cost of selling"),
    ({"extras": {"roe": np.array([1.0, np.nan, np.nan, np.nan, 1])}}, DataError, "roe is unknown for most"),
    ({"scale": 0.5}, ConfigError, "scale must be"),
    ({"scale": np.nan}, ConfigError, "scale must be"),
])
def test_unusable_input_is_refused_by_name(inputs, error, says):
    with pytest.raises(error, match=says):
        five({"turnover": 0.1}, **inputs)


# ---- the certificate ------------------------------------------------------------------------------------------------------------
def test_the_certificate_is_one_row_of_what_was_done():
    limits = {"turnover": 0.1, "tracking_error": 0.5, "minimum_position": 0.01}
    solution = five(limits, {"cost_aversion": 1.0}, current=BENCHMARK, cost=(0.001, 0.002))
    row = json.loads(json.dumps(solution.certificate()))
    assert (row["day"], row["status"], row["solver"], row["names"]) == ("2024-01-05", "optimal", "clarabel", 5)
    assert row["invested"] == pytest.approx(1) and row["turnover"] == pytest.approx(0.1) and row["cost"] == pytest.approx(0.1 * 0.003)
    assert row["tracking_error"] == pytest.approx(np.sqrt(252 * five_risk().variance(solution.weights - BENCHMARK)))
    assert row["objective"] == pytest.approx(ALPHA @ solution.weights - 0.0003) and row["gap"] <= 2e-6 and row["violation"] <= 1e-8
    assert row["member_share"] == pytest.approx(1) and json.loads(row["active"]) == {"turnover": pytest.approx(4 - 0.003, rel=1e-4)}
    assert {key: json.loads(row[key]) for key in ("relaxed", "slack")} == {"relaxed": {}, "slack": {}}
    assert set(json.loads(row["notes"])) == {"locked", "no_buy", "no_sell"}


def test_the_certificate_of_a_relaxed_solve_names_it():
    row = five({"style": {"size": 0.1}}, current=moved("A", "E", 0.0325), **LOCKED).certificate()
    assert row["status"] == "relaxed" and json.loads(row["relaxed"]) == {"style": 1.5}
    assert json.loads(row["slack"]) == {"size": pytest.approx(0.03)}
