"""The rule from weights to trades and the daily back-test: hand-worked cases, laws on random markets, and what is refused."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import DataError, ShapeError
from qlib_ext.portfolio.engine import Quotes, plan_trades, round_lots, sale_amount, simulate

EACH_LOTS, EACH_SALE = np.vectorize(round_lots), np.vectorize(sale_amount)
FREE = {"commission": (0.0, 0.0), "minimum_commission": 0.0}


def quotes(price, **changes) -> Quotes:
    """Days of `price [t, n]`, dealt at the close without cost, main-board lots."""
    price = np.atleast_2d(np.asarray(price, float))
    known = np.isfinite(price)
    made = dict(days=np.datetime64("2024-01-01") + np.arange(len(price)), instruments=[f"SH{600000 + n}" for n in range(price.shape[1])],
                close=price, buy_price=price, sell_price=price, factor=np.ones(price.shape), can_buy=known, can_sell=known,
                lot_minimum=100, lot_step=100, **FREE)
    return Quotes(**{**made, **changes})


def plan(market, weight, amount, cash, last=None):
    last = np.full(len(weight), np.nan) if last is None else np.array(last, float)
    return plan_trades(np.array(weight, float), np.array(amount, float), cash, market, 0, last)


# ---- lots -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("shares, minimum, step, expected", [
    (99.99, 100, 100, 0), (100, 100, 100, 100), (299.9, 100, 100, 200), (199, 200, 1, 0), (200, 200, 1, 200), (250.7, 200, 1, 250),
    (150.2, 100, 1, 150), (0, 100, 100, 0), (300 - 1e-9, 100, 100, 300), (300 - 1e-3, 100, 100, 200)])
def test_lots_of_the_boards(shares, minimum, step, expected):
    for factor in (1.0, 0.37, 41.3):
        assert round_lots(shares / factor, factor, minimum, step) * factor == pytest.approx(expected, abs=1e-9)


def test_rounding_twice_is_rounding_once():
    draw = np.random.default_rng(0)
    factor, amount = np.exp(draw.normal(0, 2, 20000)), np.exp(draw.normal(7, 3, 20000))
    minimum, step = np.array([(100, 100), (200, 1), (100, 1)])[draw.integers(0, 3, 20000)].T
    once = EACH_LOTS(amount, factor, minimum, step)
    assert (once <= amount * (1 + 1e-7)).all() and (once[amount * factor > 200] > 0).all()
    np.testing.assert_allclose(EACH_LOTS(once, factor, minimum, step), once, rtol=1e-12)
    sold = EACH_SALE(amount * 0.7, amount, factor, minimum, step)
    np.testing.assert_allclose(EACH_SALE(sold, amount, factor, minimum, step), sold, rtol=1e-12)


def test_odd_lots_leave_only_whole():
    market = quotes([[10.0, 10.0, 10.0]], lot_minimum=[100, 200, 100], lot_step=[100, 1, 100])
    held = [137, 137, 1037]
    np.testing.assert_array_equal(plan(market, [0, 0, 0], held, 0), [-137, -137, -1037])
    kept = [60 / 1311, 60 / 1311, 500 / 1311]                                             # of 13,110 CNY: 60, 60 and 500 shares stay
    np.testing.assert_array_equal(plan(market, kept, held, 0), [0, 0, -500])              # 77 is no lot, 537 rounds to 500
    small = plan(market, [0, 0, 1e-9], [0, 0, 1037], 0)
    np.testing.assert_array_equal(small, [0, 0, -1037])                                    # nearly nothing: Qlib would forget the rest


# ---- who cannot be traded -----------------------------------------------------------------------------------------------------------
def test_sides_are_apart_and_the_weight_of_the_untradable_stays_cash():
    price = [[10.0, 10.0, 10.0, np.nan]]
    held, last = [1000, 1000, 0, 1000], [10, 10, 10, 10]
    market = quotes(price, can_buy=[[False, True, True, False]], can_sell=[[True, False, True, False]])
    sold = plan(market, [0, 0, 0.5, 0], held, 10000, last)                                # V = 40,000
    np.testing.assert_array_equal(sold, [-1000, 0, 2000, 0])                              # limit-up is sold, limit-down held, halted held
    bought = plan(market, [0.5, 0.4, 0, 0.1], held, 10000, last)
    np.testing.assert_array_equal(bought, [0, 600, 0, 0])                                  # 1,000 missing of the first go nowhere
    one = plan(quotes([[10.0, 20.0, 5.0]], can_buy=[[True, False, True]]), [0.3, 0.3, 0.4], [0, 0, 0], 1e6)
    two = plan(quotes([[10.0, 20.0, 5.0]]), [0.3, 0.0, 0.4], [0, 0, 0], 1e6)
    np.testing.assert_array_equal(one, two)


def test_halted_positions_count_at_their_last_price():
    market = quotes([[np.nan, 10.0]])
    assert plan(market, [0.0, 0.5], [1000, 0], 20000, [10.0, 9.0])[1] == 1500             # half of 30,000
    with pytest.raises(DataError, match="SH600000 held, but no price"):
        plan(market, [0.0, 0.5], [1000, 0], 20000)


# ---- cash -------------------------------------------------------------------------------------------------------------------------
def test_purchases_share_what_cash_there_is():
    market = quotes([[10.0, 10.0, 20.0]], can_sell=[[False, True, True]])
    trade = plan(market, [0, 0.5, 0.5], [8000, 0, 0], 20000)                              # V = 100,000, 80,000 of it blocked
    np.testing.assert_array_equal(trade, [0, 1000, 500])                                  # 20,000 for 100,000 wanted: a fifth of each
    dear = quotes([[10.0, 10.0, 1000.0]], can_sell=[[False, True, True]])
    np.testing.assert_array_equal(plan(dear, [0, 0.5, 0.5], [8000, 0, 0], 20000), [0, 2000, 0])   # 50 shares of the last are no lot


def test_a_sale_that_costs_more_than_it_brings_needs_cash():
    market = quotes([[1.0, 10.0]], commission=(0.001, 0.001), minimum_commission=5.0)
    assert plan(market, [0.0, 0.9], [3, 1000], 0.0)[0] == 0
    assert plan(market, [0.0, 0.9], [3, 1000], 2.0)[0] == -3
    assert (plan(market, [0.0, 0.9], [0, 0], -1.0) == 0).all()


def test_costs_by_hand():
    market = quotes([[10.0, 10.0]] * 2, commission=(0.001, 0.002), minimum_commission=5.0, duty_buy=0.0001, duty_sell=[[0.001], [0.0005]])
    targets = np.array([[0.5, 0.02], [0.0, 0.0]])
    made = simulate(market, lambda t, weight, value: targets[t], 1e5)
    # costs of 55 + 5.2 leave 99,939.8: half of it is 4,900 shares, a fiftieth 100
    assert made.fills["amount"].tolist() == [4900, 100, -4900, -100] and made.fills["value"].tolist() == [49000, 1000] * 2
    np.testing.assert_allclose(made.fills["cost"], [49 + 4.9, 5 + 0.1, 98 + 24.5, 5 + 0.5], rtol=1e-12)
    assert made.report["cash"].tolist() == pytest.approx([49941.0, 99813.0]) and (made.positions[1] == 0).all()


# ---- laws ---------------------------------------------------------------------------------------------------------------------------
def random_market(draw, days=40, stocks=25) -> Quotes:
    """Boards of three kinds, halts, closed sides, ex-dates; purchases dearer than sales."""
    close = np.exp(draw.normal(2.5, 0.7, stocks) + draw.normal(0, 0.03, (days, stocks)).cumsum(axis=0))
    close[draw.random(close.shape) < 0.05] = np.nan
    factor = np.exp(draw.normal(0, 1, stocks) + (0.1 * (draw.random(close.shape) < 0.03)).cumsum(axis=0))
    minimum, step = np.array([(100, 100), (200, 1), (100, 1)])[draw.integers(0, 3, stocks)].T
    known = np.isfinite(close)
    return quotes(close, factor=factor, buy_price=close * 1.002, sell_price=close * 0.999, lot_minimum=minimum, lot_step=step,
                  can_buy=known & (draw.random(close.shape) < 0.9), can_sell=known & (draw.random(close.shape) < 0.9),
                  commission=(0.0005, 0.0015), minimum_commission=5.0, duty_sell=np.where(np.arange(days) < 20, 0.001, 0.0005)[:, None])


def random_target(draw, stocks: int) -> np.ndarray:
    weight = draw.exponential(size=stocks) * (draw.random(stocks) < 0.5)
    return weight / max(weight.sum(), 1e-9) * draw.choice([0.5, 0.9, 1.0])


@pytest.mark.parametrize("seed, cash", [(0, 3e4), (1, 3e5), (2, 1e7), (3, 1e9)])
def test_laws_of_every_day(seed, cash):
    draw = np.random.default_rng(seed)
    market, asked = random_market(draw), {}

    def decide(t, weight, value):
        if draw.random() < 0.2:
            return None
        asked[t] = weight, value, random_target(draw, len(weight))
        return asked[t][2]

    made = simulate(market, decide, cash)
    report, held, last = made.report, made.positions, market.last_close
    assert (report["cash"] >= 0).all() and len(made.fills) > 50
    np.testing.assert_allclose(report["account"], report["cash"] + np.nansum(held * last, axis=1), rtol=1e-12)
    before = np.vstack([np.zeros(held.shape[1]), held[:-1]])
    trade = held - before
    assert not (trade > 0)[~market.can_buy].any() and not (trade < 0)[~market.can_sell].any()
    idle = [t for t in range(len(held)) if t not in asked]
    assert idle and (trade[idle] == 0).all()
    cost = made.fills.groupby("datetime")["cost"].sum().reindex(report.index, fill_value=0).to_numpy()
    earned = np.nansum(before[1:] * (last[1:] - last[:-1]), axis=1)                        # of what was held overnight
    price = np.where(trade > 0, market.buy_price, market.sell_price)
    earned += np.nansum(trade[1:] * (last[1:] - price[1:]), axis=1)                        # of what was dealt that day
    account = report["account"].to_numpy()
    np.testing.assert_allclose(np.diff(account), earned - cost[1:], atol=1e-8 * cash)
    for t, (weight, value, target) in asked.items():
        if t:
            assert value == account[t - 1]
            np.testing.assert_allclose(weight, np.where(before[t] > 0, before[t] * last[t - 1], 0) / value, rtol=1e-12)
        worth = np.where(np.isnan(market.sell_price[t]), last[t - 1] if t else np.nan, market.sell_price[t])
        total = report["cash"].iloc[t - 1] * (t > 0) + cash * (t == 0) + np.nansum(before[t] * worth)
        bought = trade[t] > 0
        assert ((before[t] * worth + trade[t] * market.buy_price[t])[bought] <= (target * total)[bought] * (1 + 1e-7)).all()
        assert (held[t][(target == 0) & market.can_sell[t]] == 0).all()
        real = trade[t] * market.factor[t]
        lots = real[bought] - market.lot_minimum[t][bought]
        np.testing.assert_allclose(lots / market.lot_step[t][bought], np.round(lots / market.lot_step[t][bought]), atol=1e-5)
        assert (lots > -1e-5).all()


def test_scaled_purchases_have_one_ratio():
    """Between the ratio that just gave a name its lots and the one that would give it one more, there is one for all names."""
    draw, scaled = np.random.default_rng(5), 0
    for _ in range(200):
        market = random_market(draw, days=1)
        known = np.isfinite(market.close[0])
        held = np.where(known, draw.exponential(size=25) * 1e4, 0) * (draw.random(25) < 0.6)
        market = replace(market, can_sell=market.can_sell & (draw.random(25) < 0.3), can_buy=known[None], duty_sell=0.0, **FREE)
        weight = random_target(draw, 25)
        trade = plan(market, weight, held, 1e5, np.full(25, 10.0))
        worth = held * np.where(known, market.sell_price[0], 10.0)
        wanted = (weight * (1e5 + worth.sum()) - worth) / market.buy_price[0]
        sold = np.minimum(trade, 0)
        budget = 1e5 - (np.where(known, sold * market.sell_price[0], 0)).sum()
        bought = trade > 0
        whole = np.where(bought, EACH_LOTS(np.where(bought, wanted, 0), market.factor[0], market.lot_minimum[0], market.lot_step[0]), 0)
        if not bought.any() or np.where(bought, whole * market.buy_price[0], 0).sum() < budget:
            continue
        scaled += 1
        step = (market.lot_step[0] / market.factor[0])[bought]
        low, high = trade[bought] / wanted[bought], (trade[bought] + step) / wanted[bought]
        assert low.max() <= high.min() + 1e-9
        assert (trade[bought] * market.buy_price[0][bought]).sum() <= budget
    assert scaled > 30


# ---- report ---------------------------------------------------------------------------------------------------------------------
def test_the_report_of_two_days_by_hand():
    market = quotes([[10.0, 5.0], [11.0, np.nan], [12.0, 6.0]], commission=(0.001, 0.001))
    targets = [np.array([0.5, 0.3]), None, np.array([0.0, 0.3])]
    made = simulate(market, lambda t, weight, value: targets[t], 1e5, bench=[0.0, 0.01, 0.02])
    # day 1: 4,900 at 10 and 5,900 at 5; day 2: +4,900; day 3: +4,900 on A, +5,900 on B, A is sold, B lowered
    report = made.report
    assert list(report.columns) == ["account", "return", "total_turnover", "turnover", "total_cost", "cost", "value", "cash", "bench"]
    assert report.index.name == "datetime" and report.index[1] == pd.Timestamp("2024-01-02")
    spent, paid = 49000 + 29500, 78.5
    assert report["cash"].iloc[0] == pytest.approx(1e5 - spent - paid) and report["value"].iloc[0] == spent
    assert report["account"].tolist()[:2] == pytest.approx([1e5 - paid, 1e5 - paid + 4900])
    assert report["return"].tolist()[:2] == pytest.approx([0, 4900 / (1e5 - paid)])
    assert report["turnover"].tolist()[:2] == pytest.approx([spent / 1e5, 0]) and report["cost"].iloc[0] == pytest.approx(paid / 1e5)
    third, before = made.fills[made.fills["datetime"] == "2024-01-03"], report["account"].iloc[1]
    assert report["return"].iloc[2] == pytest.approx((4900 + 5900) / before)
    assert report["total_turnover"].iloc[2] == pytest.approx(spent + third["value"].sum()) and report["bench"].tolist() == [0, 0.01, 0.02]
    weights = made.weights()
    assert weights[1] == pytest.approx([53900 / before, 29500 / before]) and weights[2, 0] == 0


# ---- what is refused ---------------------------------------------------------------------------------------------------------------
def test_quotes_that_cannot_be_are_refused():
    good = quotes([[10.0, np.nan], [11.0, 12.0]])
    np.testing.assert_array_equal(good.last_close, [[10, np.nan], [11, 12]])
    assert good.between("2024-01-02", "2024-02-01").close.tolist() == [[11, 12]]
    with pytest.raises(DataError, match="they run from 2024-01-01 to 2024-01-02"):
        good.between("2023-01-01", "2023-12-31")
    for changes, error, words in [
            ({"close": np.ones((3, 2))}, ShapeError, "close"), ({"lot_step": np.ones(5)}, ShapeError, "lot_step"),
            ({"can_buy": True}, DataError, "SH600001 on 2024-01-01"), ({"factor": np.nan}, DataError, "factor nan"),
            ({"sell_price": -good.close}, DataError, "price -10"), ({"lot_minimum": 0}, DataError, "lot_minimum"),
            ({"instruments": ["SH600001", "SH600000"]}, DataError, "ascending"), ({"commission": (0.1,)}, DataError, "pair"),
            ({"days": good.days[[0, 0]]}, DataError, "days"), ({"duty_sell": -0.1}, DataError, "duty_sell")]:
        with pytest.raises(error, match=words):
            replace(good, **changes)


@pytest.mark.parametrize("weight, error, words", [
    ([0.5, np.nan], DataError, "SH600001 are NaN"), ([-0.1, 0.5], DataError, "SH600000 are NaN or negative"),
    ([0.7, 0.5], DataError, "sum to 1.2"), ([0.5], ShapeError, "weight")])
def test_targets_that_cannot_be_are_refused(weight, error, words):
    market = quotes([[10.0, 10.0]])
    with pytest.raises(error, match=words):
        simulate(market, lambda t, held, value: np.array(weight), 1e5)
    with pytest.raises(ShapeError, match="amount"):
        plan(market, [0.5, 0.5], [1.0], 1e5, [1, 1])


def test_back_tests_without_cash_or_with_another_bench_are_refused():
    market = quotes([[10.0, 10.0]])
    for cash in (0, -1, np.nan):
        with pytest.raises(DataError, match="positive"):
            simulate(market, lambda *_: None, cash)
    with pytest.raises(ShapeError, match="bench"):
        simulate(market, lambda *_: None, 1e5, bench=[0.0, 0.0])
    made = simulate(market, lambda *_: None, 1e5)
    assert made.report["account"].tolist() == [1e5] and made.fills.empty and list(made.fills.columns) == [
        "datetime", "instrument", "amount", "price", "value", "cost"]
