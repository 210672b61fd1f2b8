"""Prices of the demo market: determinism, limits, suspensions, ex-dates, special cases, stylised facts of real A-shares."""

import numpy as np
import pandas as pd
import pytest

from qlib_ext import market_rules
from qlib_ext.demo import noise
from qlib_ext.demo.counts import allowed_prices, special_cases
from qlib_ext.demo.market import make_market, trading_days
from qlib_ext.demo.membership import INDEX_NAMES
from qlib_ext.demo.tables import write_tables
from qlib_ext.errors import ConfigError
from qlib_ext.report.market_facts import market_facts

# Real A-shares, 2018-2024 (members of the three indices): what the demo market shall come near, at most by the factor 1.5.
REAL = {
    "tail index (Hill, top 5 %)": 3.215,
    "excess kurtosis": 3.882,
    "autocorrelation of absolute returns, lag 1": 0.2327,
    "autocorrelation of absolute returns, lag 5": 0.13,
    "autocorrelation of absolute returns, lag 20": 0.07591,
    "dispersion across stocks, a day": 0.02469,
    "mean pairwise correlation": 0.263,
    "volatility of the equal-weighted market, a year": 0.2343,
    "volatility of the median stock, a year": 0.459,
    "correlation of log cap and volatility": -0.3984,
    "turnover, mean": 2.383,
    "turnover, median": 1.244,
    "correlation of absolute return and log volume change": 0.3813,
    "closes at the upper limit, all": 0.01272,
    "closes at the lower limit, all": 0.004355,
    "closes at the upper limit, main": 0.01361,
    "closes at the lower limit, main": 0.004367,
    "closes at the upper limit, main, ST": 0.08914,
    "closes at the lower limit, main, ST": 0.07662,
    "suspended stock-days": 0.006752,
}


def test_size_and_codes(market, bars):
    assert 2400 <= len(market.days) <= 2460
    assert market.days[0] == np.datetime64("2015-01-05") and market.days[-1] == np.datetime64("2024-12-31")
    assert len(set(market.instruments)) == 440
    assert set(code[:4] for code in market.instruments) == {"SH60", "SZ00", "SZ30", "SH68"}
    first = bars.groupby("instrument")["date"].min()
    assert 35 <= (first > pd.Timestamp("2015-01-05")).sum() <= 55 and first.dt.year.nunique() == 10
    assert (first[first.index.str.startswith("SH68")] >= pd.Timestamp("2019-07-22")).all()
    assert not bars.duplicated(["instrument", "date"]).any()


def test_holidays_and_weekends_are_closed(market):
    days = pd.DatetimeIndex(market.days)
    assert (days.dayofweek < 5).all()
    assert not ((days.month == 10) & (days.day <= 7)).any()
    assert market.month_end.sum() == 120
    assert not len(market_rules.missing_trading_days(market.days))


def test_bars_are_consistent(bars):
    traded = bars["volume"] > 0
    assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()
    assert (bars["low"] > 0).all()
    cents = bars[["open", "high", "low", "close"]] * 100
    assert (abs(cents - cents.round()) < 1e-6).all().all()
    average = (bars["amount"].astype(float) / bars["volume"])[traded]
    assert (average >= bars.loc[traded, "low"] * (1 - 1e-5)).all() and (average <= bars.loc[traded, "high"] * (1 + 1e-5)).all()


def test_suspended_days_are_flat_rows(bars):
    halted = bars[bars["volume"] == 0]
    for column in ("open", "high", "low"):
        assert (halted[column] == halted["close"]).all()
    assert (halted["amount"] == 0).all() and (halted["turnover"] == 0).all()
    assert (halted["return"].dropna() == 0).all()


def outside_limits(bars: pd.DataFrame) -> pd.Series:
    """Rows with a price outside the limits, by a rule written here: 10 %, ST 5 %, STAR and ChiNext since 2020-08-24 20 %."""
    code, day = bars["instrument"], bars["date"]
    star, chinext = code.str.startswith("SH68"), code.str.startswith("SZ30")
    wide = star | (chinext & (day >= "2020-08-24"))
    limit = np.where(wide, 20, np.where(bars["is_st"] == 1, 5, 10))
    free = np.where(star | (chinext & (day >= "2020-08-24")) | (day >= "2023-04-10"), bars["row"] < 5, bars["row"] < 1)
    limited = bars["last_close"].notna() & ~(free & ~bars["early"])
    reference = np.floor(bars["last_close"] / (1 + bars["step"]) * 100 + 0.5 + 1e-6)
    high = np.maximum(np.floor((reference * (100 + limit) + 50) / 100), reference + 1)
    low = np.maximum(np.minimum(np.floor((reference * (100 - limit) + 50) / 100), reference - 1), 1)
    return limited & ((bars["high"] * 100 > high + 1e-6) | (bars["low"] * 100 < low - 1e-6))


def test_no_price_leaves_the_limits(bars, market):
    # Stocks listed within five days before a change of the free days: the days follow the rule of their listing day.
    assert not outside_limits(bars).any()
    raised = bars.copy()
    row = int(np.flatnonzero((bars["last_close"] > 0) & bars["early"] & (bars["volume"] > 0))[100])
    raised.loc[row, "high"] = raised.loc[row, "last_close"] * 1.3
    assert outside_limits(raised).sum() == 1
    high, low = allowed_prices(market)
    for name in ("open", "high", "low", "close"):
        price = getattr(market, name)
        known = market.trading & np.isfinite(high)
        assert (price <= high + 1e-9)[known].all() and (price >= low - 1e-9)[known].all()


def test_days_far_beyond_a_limit_have_one_price(market):
    high, low = allowed_prices(market)
    at_limit = market.trading & ((market.close == high) | (market.close == low)) & ~market.is_st
    locked = at_limit & (market.high == market.low)
    assert 0.07 < locked.sum() / at_limit.sum() < 0.25  # 0.11 of real limit days


@pytest.mark.parametrize("center, width, limit", [(0.0, 0.03, 0.1), (0.02, 0.05, 0.05), (-0.06, 0.04, 0.1), (0.1, 0.08, 0.2)])
def test_limits_keep_the_conditional_mean(center, width, limit):
    """Against a simulation; a plain cut moves the mean, which shows that the test can see it."""
    generator, count = np.random.default_rng(4), 1_000_000
    shocks = noise.own_shocks(generator.standard_normal(count), generator.standard_normal(count), generator.random(count))
    assert shocks.mean() == pytest.approx(0, abs=0.004) and shocks.var() == pytest.approx(1, abs=0.01)
    full = [np.full(count, value) for value in (center, width, limit, limit)]
    returns, _ = noise.limited_returns(full[0], full[1], shocks, *full[2:])
    error = returns.std() / np.sqrt(count)
    assert abs(returns.mean() - center) < 4 * error and abs(returns).max() <= limit
    plain = np.clip(center + width * shocks, -limit, limit)
    assert abs(plain.mean() - center) > 4 * error


def test_special_cases_happen(market):
    for seed in range(3):
        counts = special_cases(market if seed == 0 else make_market(seed))
        assert all(count > 0 for count in counts.values()), (seed, counts)
        assert 8 <= counts["delistings"] <= 30 and counts["listings"] == 45


def test_delisted_stocks_end_and_mostly_after_special_treatment(market, bars):
    last = bars.groupby("instrument")["date"].max()
    gone = last[last < last.max()].index
    cheap = bars[bars["instrument"].isin(gone)].groupby("instrument").tail(20).groupby("instrument")["close"].max() < 1.0
    special = bars.groupby("instrument")["is_st"].last().loc[gone] == 1
    assert len(gone) == special_cases(market)["delistings"] and (special | cheap).mean() > 0.6


def test_stylised_facts_of_real_shares(market):
    """Over the years of the real sample."""
    adjusted = market.close * market.factor
    returns = np.vstack([np.full((1, adjusted.shape[1]), np.nan), adjusted[1:] / adjusted[:-1] - 1])
    hide = np.where(market.trading, 1.0, np.nan)
    high, low = allowed_prices(market)
    arrays = {"returns": returns * hide, "close": market.close * hide, "limit_up": high, "limit_down": low,
              "volume": market.volume * hide, "turnover": 100 * market.volume * hide / market.float_shares,
              "float_cap": market.close * market.float_shares, "is_st": market.is_st, "listed": market.listed}  # fmt: skip
    since = market.days >= np.datetime64("2018-01-01")
    facts = market_facts({**{name: values[since] for name, values in arrays.items()}, "board": market.board})
    far = {name: (facts[name], real) for name, real in REAL.items() if not 1 / 1.5 < facts[name] / real < 1.5}
    assert not far
    # Fewer than real ones: the real sample's ChiNext and STAR stocks are more volatile than those of the main board.
    assert facts["closes at the upper limit, main"] > facts["closes at the upper limit, chinext"] > 0.003


def test_same_seed_same_bytes_other_seed_other_market(small, small_options, tmp_path):
    again, other = make_market(5, **small_options), make_market(6, **small_options)
    write_tables(small, tmp_path / "a")
    write_tables(again, tmp_path / "b")
    files = sorted((tmp_path / "a").iterdir())
    assert len(files) == 9
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert not np.array_equal(small.close, other.close, equal_nan=True)


@pytest.mark.parametrize("switches", [{}, {"drift": True}, {"size_groups": True}])
def test_a_shorter_market_is_the_beginning_of_the_longer_one(small_options, switches):
    """Nothing at t, the truth included, uses a draw after t."""
    long = make_market(5, **small_options, **switches)
    short = make_market(5, **{**small_options, "end": "2016-05-18"}, **switches)
    count = len(short.days)
    assert 300 < count < len(long.days)
    for name in ("open", "high", "low", "close", "volume", "amount", "factor", "cash", "bonus", "float_shares", "trading",
                 "listed", "float_shares_after", "total_shares_after", "member", "industry", "is_st", "listed_days", "expected",
                 "month_end"):  # fmt: skip
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[:count], err_msg=name)
    assert short.expected.tobytes() == long.expected[:count].tobytes()


def test_impossible_markets_are_refused():
    with pytest.raises(ConfigError, match="index members"):
        make_market(0, stocks=50, end="2015-03-31")
    with pytest.raises(ConfigError, match="one switch"):
        make_market(0, drift=True, null=True)
    with pytest.raises(ConfigError, match="before start"):
        trading_days("2016-01-04", "2015-01-04")
    with pytest.raises(ConfigError, match="no trading day"):
        trading_days("2015-10-01", "2015-10-02")


def test_members_are_listed_and_counted(market):
    for index, size in enumerate((60, 100, 200)):
        assert ((market.member == index).sum(axis=1) == size).all(), INDEX_NAMES[index]
    assert market.listed[market.member >= 0].all()


def test_size_groups_are_bands_of_first_cap_and_move_nothing_else(small, small_options):
    """With the switch the groups are equal bands of float cap at the start; companies and all other draws stay."""
    banded = make_market(5, **small_options, size_groups=True)
    cap, band = banded.static["price"] * banded.static["float_shares"], banded.static["group"]
    assert np.ptp(np.bincount(band)) <= 1 and len(np.unique(band)) == 12
    assert all(cap[band == k].max() <= cap[band == k + 1].min() for k in range(11))
    assert not np.array_equal(band, small.static["group"])
    np.testing.assert_array_equal(banded.states["pressure"], small.states["pressure"])
    np.testing.assert_array_equal(banded.static["float_shares"], small.static["float_shares"])
    assert np.nanvar(banded.parts["group"]) > 2.5 * np.nanvar(small.parts["group"])
