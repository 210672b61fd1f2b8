"""The exchanges' rules: limits and prices worked by hand, the days around every change, closures against the real calendar."""

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_ext import market_rules
from qlib_ext.demo.market import trading_days
from qlib_ext.errors import DataError
from qlib_ext.market_rules import (board_of, holding_days, kind_of, limit_prices, lot_rule, missing_trading_days, price_limits,
                                   tick_size, trading_costs)

LONG_AGO = 1000


# ---- limits -------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("board, is_st, day, expected", [
    ("main", 0, "1996-12-13", np.inf), ("main", 0, "1996-12-16", 0.10), ("main", 0, "2026-07-06", 0.10),
    ("main", 1, "1998-04-21", 0.10), ("main", 1, "1998-04-22", 0.05), ("main", 1, "2026-07-03", 0.05),
    ("main", 1, "2026-07-06", 0.10),
    ("chinext", 0, "2020-08-21", 0.10), ("chinext", 0, "2020-08-24", 0.20),
    ("chinext", 1, "2020-08-21", 0.05), ("chinext", 1, "2020-08-24", 0.20),
    ("star", 0, "2019-07-22", 0.20), ("star", 1, "2024-01-02", 0.20),
    ("bse", 0, "2021-11-15", 0.30), ("bse", 1, "2024-01-02", 0.30),
])  # fmt: skip
def test_limits_around_every_change(board, is_st, day, expected):
    up, down = price_limits(board, is_st, LONG_AGO, day)
    assert up == down == expected


@pytest.mark.parametrize("board, day, free", [
    ("main", "2014-06-18", 1), ("main", "2022-03-01", 1), ("main", "2023-04-10", 5), ("main", "2024-03-01", 5),
    ("chinext", "2020-08-10", 1), ("chinext", "2020-08-24", 5), ("star", "2019-07-22", 5), ("bse", "2021-11-15", 1),
])  # fmt: skip
def test_days_without_limit_count_from_the_listing(board, day, free):
    """`day` is the day of listing: the days after it follow on weekdays."""
    days = np.busday_offset(np.datetime64(day), np.arange(8))
    up, down = price_limits(board, False, np.arange(8), days)
    assert np.isinf(up).sum() == free and np.isinf(up[:free]).all() and (np.isinf(up) == np.isinf(down)).all()


def test_a_listing_before_the_reform_keeps_its_limits_after_it():
    """Listed on 2020-08-20 and 2023-04-07: the third and the second day lie after the reforms, which free new listings only."""
    assert price_limits("chinext", 0, 2, "2020-08-24")[0] == 0.20
    assert price_limits("main", 0, 1, "2023-04-10")[0] == 0.10
    assert np.isinf(price_limits("main", 0, 1, "2023-04-11")[0])


def test_bonds_and_funds():
    bonds = price_limits("", 0, [0, 1, 5], "2022-08-01", "bond")
    np.testing.assert_array_equal(bonds, [[0.573, 0.2, 0.2], [0.433, 0.2, 0.2]])
    assert np.isinf(price_limits("", 0, [0, 9], "2022-07-29", "bond")).all()
    boards = board_of(["SH510300", "SH588000", "SZ159915", "SZ159949"], chinext_etfs=("SZ159915",))
    np.testing.assert_array_equal(price_limits(boards, 0, 0, "2024-01-02", "etf")[0], [0.1, 0.2, 0.2, 0.1])
    np.testing.assert_array_equal(price_limits(["star", "chinext"], 0, 9, "2020-08-21", "etf")[0], [0.2, 0.1])
    assert np.isinf(price_limits("", 0, LONG_AGO, "2024-01-02", "index")[0])


def test_limits_broadcast():
    """[t, 1] days, [n] boards, [t, n] flags and ages give what a loop over single cells gives."""
    days = np.array(["2019-08-01", "2020-08-24", "2023-04-12", "2026-07-06"], dtype="datetime64[D]")[:, None]
    boards = np.array(["main", "chinext", "star", "bse", "main"])
    random = np.random.default_rng(0)
    is_st, listed = random.choice([0.0, 1.0, -1.0, np.nan], (4, 5)), random.integers(0, 8, (4, 5))
    up, down = price_limits(boards, is_st, listed, days)
    assert up.shape == down.shape == (4, 5)
    for row in range(4):
        for column in range(5):
            one = price_limits(boards[column], is_st[row, column], listed[row, column], days[row, 0])
            assert (up[row, column], down[row, column]) == one


def test_unknown_special_treatment_counts_as_none():
    np.testing.assert_array_equal(price_limits("main", [np.nan, -1, 0, 1], LONG_AGO, "2022-01-04")[0], [0.1, 0.1, 0.1, 0.05])


# ---- limit prices -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("reference, limit, high, low", [
    (7.45, 0.10, 8.20, 6.71),  # 8.195, 6.705: both round up
    (10.00, 0.10, 11.00, 9.00), (3.33, 0.05, 3.50, 3.16),  # 3.4965, 3.1635
    (1.15, 0.10, 1.27, 1.04),  # 1.265, 1.035
    (2.25, 0.20, 2.70, 1.80), (33.35, 0.30, 43.36, 23.35),  # 43.355, 23.345
    (1725.55, 0.10, 1898.11, 1553.00),  # 1898.105, 1552.995
    (0.04, 0.05, 0.05, 0.03),  # at least one tick
    (0.01, 0.10, 0.02, 0.01),  # no lower than one tick
])  # fmt: skip
def test_limit_prices_by_hand(reference, limit, high, low):
    got = limit_prices(reference, limit, limit)
    assert (float(got[0]), float(got[1])) == (high, low)


@pytest.mark.parametrize("limit", ["0.05", "0.1", "0.2", "0.3"])
def test_limit_prices_are_the_decimal_ones(limit):
    """Every price from 0.50 to 60.00 CNY against decimal arithmetic; plain rounding of floats gets hundreds of them wrong."""
    cents = np.arange(50, 6001)
    high, low = limit_prices(cents / 100, float(limit), float(limit))
    exact = [[float((Decimal(int(cent)) / 100 * (1 + sign * Decimal(limit))).quantize(Decimal("0.01"), ROUND_HALF_UP))
              for cent in cents] for sign in (1, -1)]  # fmt: skip
    np.testing.assert_array_equal(high, exact[0])
    np.testing.assert_array_equal(low, exact[1])
    if limit in ("0.1", "0.3"):
        assert (np.round(cents / 100 * (1 + float(limit)), 2) != exact[0]).sum() > 100


def test_limit_prices_of_other_ticks_and_unknowns():
    high, low = limit_prices([1.2345, 1.2344], 0.1, 0.1, tick=0.001)  # the reference itself becomes 1.235, 1.234
    np.testing.assert_array_equal([high, low], [[1.359, 1.357], [1.112, 1.111]])
    high, low = limit_prices([np.nan, 10.0, 100.0], [0.1, np.inf, 0.573], [0.1, np.inf, 0.433])
    np.testing.assert_array_equal([high, low], [[np.nan, np.nan, 157.3], [np.nan, np.nan, 56.7]])
    ticks = tick_size(["stock", "etf", "bond"], "2024-01-02")
    np.testing.assert_array_equal(ticks, [0.01, 0.001, 0.001])
    np.testing.assert_array_equal(limit_prices(3.337, 0.1, 0.1, ticks)[0], [3.67, 3.671, 3.671])


# ---- codes, lots, costs -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("code, board, kind", [
    ("SH600000", "main", "stock"), ("SH605599", "main", "stock"), ("SZ000001", "main", "stock"), ("SZ001979", "main", "stock"),
    ("SZ002001", "main", "stock"), ("SZ003816", "main", "stock"), ("SZ300750", "chinext", "stock"),
    ("SZ301001", "chinext", "stock"),
    ("SH688981", "star", "stock"), ("SH689009", "star", "stock"), ("BJ430047", "bse", "stock"), ("BJ835185", "bse", "stock"),
    ("BJ920002", "bse", "stock"), ("BJ899050", "", "index"), ("SH000300", "", "index"), ("SZ399006", "", "index"),
    ("SH510300", "", "etf"), ("SH588000", "star", "etf"), ("SZ159915", "", "etf"), ("SH113050", "", "bond"),
    ("SZ127045", "", "bond"),
    ("SH900901", "", ""), ("SZ200011", "", ""), ("SH508000", "", ""), ("600000", "", ""), ("SH60000", "", ""), ("", "", ""),
])  # fmt: skip
def test_board_and_kind_by_code(code, board, kind):
    assert board_of(code) == board and kind_of(code) == kind


def test_codes_keep_their_shape():
    codes = np.array([["SH600000", "SH688001", "SZ300001"], ["BJ430047", "SH000300", "SH600000"]])
    np.testing.assert_array_equal(board_of(codes), [["main", "star", "chinext"], ["bse", "", "main"]])
    assert kind_of(np.array([], dtype=str)).shape == (0,)


def test_lots_and_settlement():
    minimum, step = lot_rule(["main", "chinext", "star", "bse"], "stock", "2024-01-02")
    np.testing.assert_array_equal([minimum, step], [[100, 100, 200, 100], [100, 100, 1, 1]])
    minimum, step = lot_rule(["star", ""], ["etf", "bond"], "2024-01-02")
    np.testing.assert_array_equal([minimum, step], [[100, 10], [100, 10]])
    np.testing.assert_array_equal(holding_days(["stock", "etf", "bond"], "2024-01-02"), [1, 1, 0])


@pytest.mark.parametrize("day, buy, sell", [
    ("2007-05-29", 0.001, 0.001), ("2007-05-30", 0.003, 0.003), ("2008-04-24", 0.001, 0.001), ("2008-09-18", 0.001, 0.001),
    ("2008-09-19", 0.0, 0.001), ("2023-08-25", 0.0, 0.001), ("2023-08-28", 0.0, 0.0005),
])  # fmt: skip
def test_stamp_duty_around_every_change(day, buy, sell):
    np.testing.assert_array_equal(trading_costs(["buy", "sell"], day, "main")["stamp_duty"], [buy, sell])


def test_fees_by_day_board_and_kind():
    days = np.array(["2022-04-28", "2022-04-29", "2023-08-28"], dtype="datetime64[D]")
    costs = trading_costs("sell", days, "star")
    np.testing.assert_allclose(costs["transfer_fee"], [2e-5, 1e-5, 1e-5])
    np.testing.assert_allclose(costs["handling_fee"], [4.87e-5, 4.87e-5, 3.41e-5])
    np.testing.assert_allclose(costs["regulatory_fee"], 2e-5)
    for day, fee in (("2022-11-30", 5e-4), ("2023-08-25", 2.5e-4), ("2023-08-28", 1.25e-4)):
        assert trading_costs("buy", day, "bse")["handling_fee"] == fee
    for kind in ("etf", "bond"):
        costs = trading_costs("sell", "2024-01-02", "", kind)
        assert costs["handling_fee"] > 0 and costs["stamp_duty"] == costs["transfer_fee"] == costs["regulatory_fee"] == 0
    day = np.datetime64("2024-01-02")
    assert {values.shape for values in trading_costs("buy", np.full((4, 1), day), ["main", "bse"]).values()} == {(4, 2)}
    # 10,000 CNY sold in 2024: 5.00 duty, 0.10 transfer, 0.341 handling, 0.20 regulatory
    assert 1e4 * sum(trading_costs("sell", day, "main").values()) == pytest.approx(5.641)


@pytest.mark.parametrize("call, words", [
    (lambda: price_limits("moon", 0, 9, "2024-01-02"), "board of a stock 'moon'"),
    (lambda: price_limits("", 0, 9, "2024-01-02"), "board of a stock ''"),
    (lambda: price_limits("main", 0, 9, "2024-01-02", "share"), "kind 'share'"),
    (lambda: lot_rule("", "index", "2024-01-02"), "kind to trade 'index'"),
    (lambda: tick_size("index", "2024-01-02"), "kind to trade 'index'"),
    (lambda: trading_costs("hold", "2024-01-02", "main"), "side 'hold'"),
    (lambda: trading_costs("buy", "2005-01-21", "main"), "2005-01-21 are not known"),
])  # fmt: skip
def test_unknown_names_and_days_are_refused(call, words):
    with pytest.raises(DataError, match=words):
        call()


def test_every_rule_is_dated_in_order_and_has_a_source():
    tables = [value for name, value in vars(market_rules).items() if name.isupper() and isinstance(value, dict)]
    every = [rules if isinstance(rules, tuple) else (rules,) for table in tables for rules in table.values()
             if isinstance(rules, market_rules.Rule) or isinstance(rules[0], market_rules.Rule)]  # fmt: skip
    assert len(every) > 30
    for rules in every:
        starts = [np.datetime64(rule.start) for rule in rules]
        assert starts == sorted(set(starts)) and all(rule.source and rule.value >= 0 for rule in rules)


# ---- closures -----------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real_tables(real_data) -> Path:
    return real_data / "ashare_daily"


@pytest.fixture(scope="module")
def real_days(real_tables) -> np.ndarray:
    frame = pd.read_parquet(real_tables / "index_bars.parquet", columns=["instrument", "date"])
    return np.sort(frame.loc[frame["instrument"] == "SH000300", "date"].to_numpy("datetime64[D]"))


def lonely(days: np.ndarray) -> np.ndarray:
    """Places of days with a traded weekday on either side."""
    gaps = np.busday_count(days[:-1], days[1:])
    return np.flatnonzero((gaps[:-1] == 1) & (gaps[1:] == 1)) + 1


def check_calendar(days: np.ndarray, single_days: np.ndarray) -> None:
    assert missing_trading_days(days).size == 0
    assert missing_trading_days(days[::-1]).size == 0
    for place in single_days:
        assert missing_trading_days(np.delete(days, place)).size, f"the loss of {days[place]} went unnoticed"


def test_the_generated_calendar_has_no_gap_and_a_lost_day_is_found():
    days = trading_days("2015-01-05", "2016-12-30")[0]
    check_calendar(trading_days()[0], [])
    ordinary = [place for place in lonely(days) if days[place].astype(object).month in (3, 7, 8, 11)]
    check_calendar(days, ordinary[::2])
    for place in ordinary[::20]:
        np.testing.assert_array_equal(missing_trading_days(np.delete(days, place)), days[[place]])


@pytest.mark.realdata
def test_the_real_calendar_has_no_gap_and_a_lost_day_is_found(real_days):
    """Lost days beside a holiday cannot be told from it: the test takes those between two trading days."""
    found = lonely(real_days)
    assert len(found) > 3000
    check_calendar(real_days, found[::29])


def test_lost_weeks_and_long_holidays():
    days = trading_days("2015-01-05", "2016-12-30")[0]
    week = np.arange(np.datetime64("2015-07-13"), np.datetime64("2015-07-18"))
    np.testing.assert_array_equal(missing_trading_days(np.setdiff1d(days, week)), week)
    after = np.arange(np.datetime64("2015-10-08"), np.datetime64("2015-10-17"))  # National Day cannot last two weeks
    lost = missing_trading_days(np.setdiff1d(days, after))
    assert np.isin(after[np.is_busday(after)], lost).all()
    gap = missing_trading_days(["2016-03-01", "2016-03-04"])  # an append that skips two days
    np.testing.assert_array_equal(gap, np.array(["2016-03-02", "2016-03-03"], dtype="datetime64[D]"))
    assert missing_trading_days(["2019-09-30", "2019-10-08"]).size == 0  # the real holiday of that year
    assert missing_trading_days([]).size == missing_trading_days(["2020-01-02"]).size == 0


# ---- the real market ----------------------------------------------------------------------------------------------------------
@pytest.mark.realdata
def test_real_closes_lie_within_the_limits_and_often_on_them(real_tables):
    """Millions of closes on three boards over every change from 2018 to 2024; the few outside are relistings and new capital."""
    columns = ["instrument", "date", "close", "factor", "volume", "is_st"]
    bars = pd.read_parquet(real_tables / "bars.parquet", columns=columns).astype({"instrument": str})
    bars = bars[bars["volume"] > 0].sort_values(["instrument", "date"])
    stock = bars.groupby("instrument")
    reference = (bars["close"] * bars["factor"]).groupby(bars["instrument"]).shift() / bars["factor"]
    new = stock["date"].transform("min") > bars["date"].min()
    age = np.where(new, stock.cumcount(), LONG_AGO)
    up, down = price_limits(board_of(bars["instrument"]), bars["is_st"], age, bars["date"].to_numpy())
    high, low = limit_prices(reference, up, down)
    close = bars["close"].to_numpy(float)
    assert np.isfinite(high).sum() > 4_000_000
    assert ((close > high + 0.005) | (close < low - 0.005)).sum() <= 5
    assert (np.abs(close - high) < 0.005).sum() > 50_000
