"""Groups against pandas' qcut, held portfolios against a loop that counts shares, trading rules by hand, and no peeking."""
import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.report.quantile import STALE, group_means, held_portfolios, last_known, quantile_groups, turnover_a_year


def market(seed=0, days=60, stocks=40, blocked=0.1) -> dict:
    """Prices with suspensions, days at a limit, market values partly unknown, and scores that move slowly, partly unknown."""
    draw = np.random.default_rng(seed)
    entry = 10 * np.exp(np.cumsum(draw.normal(0, 0.02, (days, stocks)), axis=0))
    suspended = draw.random(entry.shape) < blocked
    suspended[20:40, 3] = True
    score = draw.normal(size=entry.shape).cumsum(axis=0)
    score[draw.random(entry.shape) < 0.1] = np.nan
    cap = np.exp(draw.normal(0, 1, stocks)) * entry
    cap[draw.random(entry.shape) < 0.05] = np.nan
    return {"score": score, "entry": np.where(suspended, np.nan, entry), "cap": cap,
            "buyable": ~suspended & (draw.random(entry.shape) > blocked), "sellable": ~suspended & (draw.random(entry.shape) > blocked)}


def held(parts: dict, quantiles=4, every=5):
    groups = quantile_groups(parts["score"], quantiles)
    formation = np.arange(len(groups)) % every == 2
    market_ = (parts[name] for name in ("entry", "buyable", "sellable", "cap"))
    return groups, formation, held_portfolios(groups, quantiles, formation, *market_)


# ---- groups -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count, quantiles", [(997, 10), (38, 5), (12, 10), (10, 10), (7, 2), (1000, 3)])
def test_groups_are_those_of_qcut_where_scores_differ(count, quantiles):
    draw = np.random.default_rng(count)
    score = draw.normal(size=(4, count + 6))
    score[:, draw.permutation(count + 6)[:6]] = np.nan
    found = quantile_groups(score, quantiles)
    for row, groups in zip(score, found):
        assert (groups[np.isnan(row)] == -1).all()
        np.testing.assert_array_equal(groups[~np.isnan(row)], pd.qcut(row[~np.isnan(row)], quantiles, labels=False))
        sizes = np.bincount(groups[groups >= 0], minlength=quantiles)
        assert sizes.sum() == count and sizes.max() - sizes.min() <= 1


def test_a_score_and_what_rises_with_it_have_the_same_groups():
    score = np.random.default_rng(1).normal(size=(5, 50)).round(1)
    found = quantile_groups(score, 10)
    np.testing.assert_array_equal(found, quantile_groups(np.exp(3 * score) - 7, 10))
    for row, groups in zip(score, found):
        for value in np.unique(row):
            assert len(np.unique(groups[row == value])) == 1, "equal scores stay together"
        assert (np.diff(groups[np.argsort(row, kind="stable")]) >= 0).all()


def test_days_without_groups():
    nan = np.nan
    score = np.array([[1.0, 1, 1, 1, 1, nan], [1, 2, 3, nan, nan, nan], [nan] * 6, [1, 2, 3, 4, 5, 6], [0.1, 0.1, 0.1, 0.1, 0.2, nan]])
    found = quantile_groups(score, 4)
    assert (found[:3] == -1).all() and found[3].tolist() == [0, 0, 1, 2, 3, 3]
    assert found[4].tolist() == [1, 1, 1, 1, 3, -1]
    assert (quantile_groups(score, 2, min_count=6)[[0, 1, 2, 4]] == -1).all()
    for bad in (1, 0, 2.0, True, "10", 1000):
        with pytest.raises(ConfigError, match="quantiles"):
            quantile_groups(score, bad)
    with pytest.raises(ShapeError):
        quantile_groups(score[0], 2)


def test_group_means_are_those_of_pandas():
    parts = market(2)
    groups, values = quantile_groups(parts["score"], 4), parts["entry"]
    frame = pd.DataFrame({"day": np.repeat(np.arange(60), 40), "group": groups.ravel(), "value": values.ravel()})
    expected = frame[frame["group"] >= 0].groupby(["day", "group"])["value"].mean().unstack()
    np.testing.assert_allclose(group_means(values, groups, 4), expected, rtol=1e-13)
    assert np.isnan(group_means(np.full((1, 3), np.nan), np.zeros((1, 3), int), 2)).all()
    with pytest.raises(ShapeError):
        group_means(values[:-1], groups, 4)


def test_last_known():
    nan = np.nan
    np.testing.assert_array_equal(last_known([[nan, 1.0], [2.0, nan], [nan, nan], [3.0, 4.0]]), [[nan, 1], [2, 1], [2, 1], [3, 4]])


# ---- portfolios ---------------------------------------------------------------------------------------------------------------
def slow_portfolio(parts: dict, groups: np.ndarray, formation: np.ndarray, member, weigh) -> tuple:
    """Value and one-way turnover of one portfolio: shares in a dict, money, a loop over stocks."""
    price, shares, money = {}, {}, 1.0
    returns, turnover = np.full(len(groups), np.nan), np.full(len(groups), np.nan)
    before = None
    for t, row in enumerate(parts["entry"]):
        price.update({n: value for n, value in enumerate(row) if value == value})
        if shares:
            money = sum(count * price[n] for n, count in shares.items())
            returns[t] = money / before - 1
        if t and formation[t - 1] and (groups[t - 1] >= 0).any():
            target = {n: weigh(t - 1, n) for n in range(len(row)) if member(groups[t - 1, n]) and weigh(t - 1, n) > 0}
            can = {side: {n for n in price if parts[side][t, n] and row[n] == row[n]} for side in ("buyable", "sellable")}
            stay = {n for n in shares if n not in can["sellable"] or (n in target and n not in can["buyable"])}
            buy = {n: part for n, part in target.items() if n in can["buyable"] and n not in stay}
            free = money - sum(shares[n] * price[n] for n in stay)
            if buy and free > 1e-9 * money:
                after = {n: shares[n] for n in stay} | {n: free * part / sum(buy.values()) / price[n] for n, part in buy.items()}
                moved = sum(abs(after.get(n, 0) - shares.get(n, 0)) * price[n] for n in set(after) | set(shares))
            else:
                after, moved = shares, 0.0
            turnover[t] = 0.5 * moved / money if shares else np.nan
            shares = after
        before = money
    return returns, turnover


@pytest.mark.parametrize("seed", range(3))
def test_portfolios_are_those_of_a_loop_that_counts_shares(seed):
    parts = market(seed, blocked=(0.0, 0.1, 0.5)[seed])
    groups, formation, found = held(parts)
    cases = [(lambda g, q=q: g == q, lambda t, n: 1.0) for q in range(4)]
    cases += [(lambda g: g >= 0, lambda t, n: 1.0), (lambda g: g >= 0, lambda t, n: parts["cap"][t, n])]
    for place, (member, weigh) in enumerate(cases):
        returns, turnover = slow_portfolio(parts, groups, formation, member, weigh)
        np.testing.assert_allclose(found.returns[:, place], returns, atol=1e-12)
        np.testing.assert_allclose(found.turnover[:, place], turnover, atol=1e-12)
        assert np.isnan(returns[:4]).all() and np.isfinite(returns[5:]).all()


def test_rebalanced_daily_without_limits_a_group_earns_its_mean():
    parts = market(3, blocked=0.0)
    parts["entry"], free = last_known(parts["entry"]), np.ones((60, 40), bool)
    groups = quantile_groups(parts["score"], 4)
    found = held_portfolios(groups, 4, np.ones(60, bool), parts["entry"], free, free)
    change = parts["entry"][2:] / parts["entry"][1:-1] - 1
    np.testing.assert_allclose(found.returns[2:, :4], group_means(change, groups[:-2], 4), atol=1e-13)
    np.testing.assert_allclose(found.returns[2:, 4], group_means(change, np.where(groups[:-2] >= 0, 0, -1), 1)[:, 0], atol=1e-13)


def test_trading_rules_by_hand():
    """Four stocks, groups of two; the upper group is {2, 3}, then {1, 3}, traded on day 1 and day 3."""
    groups = np.array([[0, 0, 1, 1], [-1] * 4, [0, 1, 0, 1], [-1] * 4, [-1] * 4])
    entry = np.array([[10.0] * 4, [10.0] * 4, [10, 10, 20, 10], [10, 10, 20, 10], [10, 30, 30, 5]])
    formation, free = np.array([True, False, True, False, False]), np.ones((5, 4), bool)

    def top(buyable=free, sellable=free, entry=entry):
        found = held_portfolios(groups, 2, formation, entry, buyable, sellable)
        return found.returns[:, 1], found.turnover[:, 1], found.names[:, 1]

    returns, turnover, names = top()
    np.testing.assert_allclose(returns, [np.nan, np.nan, 0.5, 0.0, (3 + 0.5) / 2 - 1])
    np.testing.assert_allclose(turnover, [np.nan, np.nan, np.nan, 2 / 3, np.nan])
    assert names[1:].tolist() == [2, 2, 2, 2]
    cannot_sell = free.copy()
    cannot_sell[3, 2] = False                                  # stock 2 (2/3 of the value) stays, 1 and 3 share the third
    returns, turnover, names = top(sellable=cannot_sell)
    assert returns[4] == pytest.approx(2 / 3 * 0.5 + 1 / 6 * 2 - 1 / 6 * 0.5) and names[3] == 3
    assert turnover[3] == pytest.approx(1 / 6)
    cannot_buy = free.copy()
    cannot_buy[3, 1] = False                                   # stock 1 is left out, so all goes to stock 3
    assert top(buyable=cannot_buy)[0][4] == pytest.approx(-0.5)
    cannot_buy[3, 3] = False                                   # nothing can be bought: 2/3 of stock 2 and 1/3 of stock 3 are kept
    returns, turnover, _ = top(buyable=cannot_buy)
    assert returns[4] == pytest.approx(2 / 3 * 0.5 - 1 / 3 * 0.5) and turnover[3] == 0.0
    suspended = entry.copy()
    suspended[2:4, 2] = np.nan                                 # no return until it trades again, not sold meanwhile
    returns, _, names = top(entry=suspended)
    np.testing.assert_allclose(returns[2:], [0.0, 0.0, 0.5 * 2 + 0.25 * 2 - 0.25 * 0.5])
    first = free.copy()
    first[1] = False                                           # nothing bought on day 1: the portfolio begins on day 3
    returns, turnover, _ = top(buyable=first)
    assert np.isnan(returns[:4]).all() and returns[4] == pytest.approx(0.75) and np.isnan(turnover).all()


def test_without_market_values_that_universe_is_unknown():
    parts = market(4)
    groups, formation, found = held(parts)
    again = held_portfolios(groups, 4, formation, parts["entry"], parts["buyable"], parts["sellable"])
    assert np.isnan(again.returns[:, 5]).all() and np.array_equal(again.returns[:, :5], found.returns[:, :5], equal_nan=True)
    with pytest.raises(ShapeError, match="formation"):
        held_portfolios(groups, 4, formation[:-1], parts["entry"], parts["buyable"], parts["sellable"])


def test_turnover_a_year():
    nan = np.nan
    assert turnover_a_year(np.array([nan, 0.5, nan, 0.3]), np.array([nan, 0.1, 0.1, 0.1])) == pytest.approx(0.8 * 252 / 3)
    assert np.isnan(turnover_a_year(np.array([nan, nan]), np.array([nan, 0.1])))


# ---- point in time ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("day", [8, 23, 41])
def test_what_happens_later_changes_nothing_earlier(day):
    parts = market(5)
    groups, _, found = held(parts)
    changed = {name: values.copy() for name, values in parts.items()}
    draw = np.random.default_rng(day)
    changed["entry"][day + 1:] *= np.exp(draw.normal(0, 1, changed["entry"][day + 1:].shape))
    changed["score"][day + 1:] = draw.normal(size=changed["score"][day + 1:].shape)
    changed["cap"][day + 1:] = 1.0
    changed["buyable"][day + 1:], changed["sellable"][day + 1:] = True, False
    later_groups, _, later = held(changed)
    np.testing.assert_array_equal(groups[:day + 1], later_groups[:day + 1])
    for before, after in zip(found, later):
        np.testing.assert_array_equal(before[:day + 1], after[:day + 1])
    assert not np.array_equal(found.returns[day + 1:], later.returns[day + 1:], equal_nan=True)


def earns_from_the_past(returns: np.ndarray) -> bool:
    """Whether the top group of a score that is the return just earned beats the bottom group: on independent returns it cannot."""
    spread = (returns[:, 3] - returns[:, 0])
    spread = spread[~np.isnan(spread)]
    return abs(spread.mean()) / spread.std() * np.sqrt(len(spread)) > 4


def test_a_score_used_for_the_return_before_it_is_caught():
    draw = np.random.default_rng(6)
    change = draw.normal(0, 0.02, (400, 40))
    entry, free, every = 10 * np.exp(change.cumsum(axis=0)), np.ones((400, 40), bool), np.ones(400, bool)
    groups = quantile_groups(change, 4)                        # the score of t is the return from t-1 to t
    assert not earns_from_the_past(held_portfolios(groups, 4, every, entry, free, free).returns)
    for days in (1, 2):                                        # planted: scores used one day early (return from t to t+1), and two
        early = np.roll(groups, -days, axis=0)
        assert earns_from_the_past(held_portfolios(early, 4, every, entry, free, free).returns) == (days == 2)


def test_a_delisted_name_is_sold_at_its_last_price():
    """A group of 20 names, 10 of which stop trading: once they count as delisted the group moves as its live names do."""
    draw = np.random.default_rng(4)
    entry = 10 * np.exp(np.cumsum(draw.normal(0, 0.02, (200, 20)), axis=0))
    entry[40:, :10] = np.nan
    groups = np.zeros((200, 20), dtype=int)
    groups[40:, :10] = -1
    everyone = np.ones(entry.shape, dtype=bool)
    made = held_portfolios(groups, 1, np.arange(200) % 5 == 0, entry, everyone, everyone)
    assert (made.names[6:40, 0] == 20).all() and made.names[40 + STALE - 10, 0] == 20 and (made.names[40 + STALE + 6:, 0] == 10).all()
    live = entry[110:, 10:]
    beta = np.polyfit((live[1:] / live[:-1] - 1).mean(axis=1), made.returns[111:, 0], 1)[0]
    assert beta == pytest.approx(1.0, abs=0.05)
    assert np.isnan(made.names[0, 0])                                                # nothing is held before the first purchase
