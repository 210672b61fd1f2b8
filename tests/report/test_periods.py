"""Calendar windows and compounding against pandas, hand-worked cases, identities; drawdowns against a slow loop and quantstats."""
import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.report.metrics import excess_figures
from qlib_ext.report.periods import (annual_excess, annual_return, annual_volatility, broker_windows, calendar_windows, drawdowns,
                                     period_excess, period_means, period_returns, rebalance_days, trading_days, underwater, wealth,
                                     week_ends, win_rate, window_dates)


def market(seed=0, start="2019-11-20", count=320) -> pd.Series:
    """Daily returns on trading days with holidays: whole weeks and single days are missing."""
    days = pd.bdate_range(start, periods=count + 25)
    draw = np.random.default_rng(seed)
    kept = np.sort(draw.permutation(len(days))[:count])
    kept = kept[(kept < 40) | (kept > 48)]
    return pd.Series(draw.normal(0.0005, 0.015, len(kept)), days[kept])


# ---- windows ------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("period, rule", [("week", "W-SUN"), ("month", "ME"), ("year", "YE")])
def test_windows_and_their_returns_are_those_of_pandas(period, rule):
    returns = market()
    windows = calendar_windows(returns.index, period)
    expected = (1 + returns).resample(rule).prod()[returns.resample(rule).count() > 0] - 1
    np.testing.assert_allclose(period_returns(returns, windows), expected, atol=1e-14)
    np.testing.assert_allclose(period_means(returns, windows), returns.resample(rule).mean().dropna(), atol=1e-16)
    form = {"week": "%G-W%V", "month": "%Y-%m", "year": "%Y"}[period]
    assert [window.label for window in windows] == list(expected.index.strftime(form))
    frame = window_dates(returns.index, windows)
    assert frame["days"].sum() == len(returns) and list(frame.index) == [window.label for window in windows]
    assert (frame["last day"].to_numpy() == returns.index.to_series().resample(rule).max().dropna().to_numpy()).all()
    assert (frame["first day"].to_numpy() == returns.index.to_series().resample(rule).min().dropna().to_numpy()).all()


def test_compounding_weeks_is_compounding_days():
    returns = market(1)
    total = np.prod(1 + returns) - 1
    for period in ("week", "month", "year"):
        assert np.prod(1 + period_returns(returns, calendar_windows(returns.index, period))) - 1 == pytest.approx(total, abs=1e-13)
    assert period_returns(returns, broker_windows(returns.index))[-1] == pytest.approx(total, abs=1e-14)


def test_broker_windows_by_hand():
    """2024-12-30 is a Monday: the week reaches into the new year, month and year begin on 2025-01-02."""
    days = np.array(["2024-12-26", "2024-12-27", "2024-12-30", "2024-12-31", "2025-01-02", "2025-01-03"], "datetime64[D]")
    returns = np.array([0.5, 0.25, 0.1, 0.2, -0.5, 1.0])
    windows = broker_windows(days)
    assert [window.label for window in windows] == ["Week", "Month to date", "Year to date", "Since inception"]
    np.testing.assert_allclose(period_returns(returns, windows), [1.1 * 1.2 * 0.5 * 2 - 1, 0.0, 0.0, 1.5 * 1.25 * 1.32 - 1])
    assert [window.label for window in calendar_windows(days, "week")] == ["2024-W52", "2025-W01"]
    np.testing.assert_array_equal(week_ends(days), [False, True, False, False, False, False])
    sunday = calendar_windows(["2024-01-05", "2024-01-07", "2024-01-08"], "week")
    assert [tuple(window) for window in sunday] == [("2024-W01", 0, 2), ("2024-W02", 2, 3)]


def test_week_ends_look_at_the_next_trading_day_only():
    returns = market(2)
    found = week_ends(returns.index)
    weeks = returns.index.to_period("W")
    assert (found[:-1] == (weeks[1:] != weeks[:-1])).all() and not found[-1]
    for cut in (50, 51, 52, 53, 54, 55):
        np.testing.assert_array_equal(week_ends(returns.index[:cut])[:-1], found[:cut - 1])


def test_rebalance_days():
    days = pd.bdate_range("2024-01-01", periods=12)
    assert np.flatnonzero(rebalance_days(days, 5, first=2)).tolist() == [2, 7]
    assert np.flatnonzero(rebalance_days(days, "week")).tolist() == [4, 9]
    assert rebalance_days(days, 1).all()
    for bad in ("monthly", 0, -1, 2.5, True, None):
        with pytest.raises(ConfigError, match="week"):
            rebalance_days(days, bad)


def test_bad_days_and_periods_are_named():
    for bad in ([], ["2024-01-02", "2024-01-02"], ["2024-01-03", "2024-01-02"], ["NaT"], [["2024-01-02"]]):
        with pytest.raises(DataError, match="days"):
            trading_days(np.array(bad, "datetime64[D]"))
    with pytest.raises(ConfigError, match="'week', 'month', 'year'"):
        calendar_windows(["2024-01-02"], "quarter")


# ---- returns ------------------------------------------------------------------------------------------------------------------
def test_unknown_days_are_left_out_of_both_sides():
    nan, windows = np.nan, calendar_windows(["2024-01-01", "2024-01-02", "2024-01-03", "2024-01-08", "2024-01-15"], "week")
    returns, benchmark = np.array([0.1, nan, 0.3, nan, 0.2]), np.array([0.05, 0.5, nan, 0.1, 0.1])
    np.testing.assert_allclose(period_returns(returns, windows), [1.1 * 1.3 - 1, nan, 0.2])
    np.testing.assert_allclose(period_excess(returns, benchmark, windows), [0.1 - 0.05, nan, 0.1])
    np.testing.assert_allclose(period_means(np.c_[returns, benchmark], windows), [[0.2, 0.275], [nan, 0.1], [0.2, 0.1]])
    both = period_returns(np.c_[returns, benchmark], windows)
    np.testing.assert_allclose(both[:, 0], period_returns(returns, windows))
    np.testing.assert_allclose(wealth(returns), [1.1, 1.1, 1.43, 1.43, 1.716])
    assert win_rate([0.1, nan, -0.1, 0.0]) == pytest.approx(1 / 3) and np.isnan(win_rate([nan]))
    with pytest.raises(ShapeError):
        period_excess(returns, benchmark[:-1], windows)


def test_an_excess_is_a_difference_of_compounded_returns():
    """Up 10 % then down 10 % against 5 % a day: -1 % less 10.25 %; compounded daily differences would give another figure."""
    windows = calendar_windows(["2024-01-02", "2024-01-03"], "week")
    assert period_excess([0.1, -0.1], [0.05, 0.05], windows)[0] == pytest.approx(-0.01 - 0.1025)
    assert period_excess([0.1, -0.1], [0.1, -0.1], windows)[0] == 0.0


def test_annual_figures_by_hand():
    returns, nan = np.full(126, 0.001), np.nan
    assert annual_return(returns) == pytest.approx(1.001 ** 252 - 1) and annual_return(np.r_[returns, nan]) == annual_return(returns)
    assert annual_return(returns, 52) == pytest.approx(1.001 ** 52 - 1)
    assert annual_return([0.5, -1.0]) == annual_return([0.5, -1.5]) == -1.0 and np.isnan(annual_return([nan]))
    assert annual_volatility(returns) == 0.0
    mixed = market(3)
    assert annual_volatility(mixed) == pytest.approx(mixed.std() * np.sqrt(252)) and np.isnan(annual_volatility([0.1]))
    other = market(4).to_numpy()[:len(mixed)]
    expected = (np.prod(1 + mixed.to_numpy()[:len(other)]) / np.prod(1 + other)) ** (252 / len(other)) - 1
    assert annual_excess(mixed.to_numpy()[:len(other)], other) == pytest.approx(expected)
    with pytest.raises(ShapeError):
        annual_return(np.zeros((3, 2)))


def test_portfolio_identities():
    """Equal to the benchmark: all zero. A constant difference: no error, no ratio. Twice the difference: twice the error, one IR."""
    bench = market(5).to_numpy()
    active = np.random.default_rng(6).normal(0.0005, 0.004, len(bench))
    same = excess_figures(bench, bench)
    assert same["excess a year"] == same["drawdown"] == same["tracking error"] == 0.0 and np.isnan(same["IR"])
    constant = excess_figures(bench + 0.001, bench)
    assert constant["tracking error"] == 0.0 and np.isnan(constant["IR"]) and constant["excess a year"] > 0.2
    once, twice = excess_figures(bench + active, bench), excess_figures(bench + 2 * active, bench)
    assert twice["tracking error"] == pytest.approx(2 * once["tracking error"]) and twice["IR"] == pytest.approx(once["IR"])
    assert annual_excess(bench + active, bench) == pytest.approx(once["excess a year"])


# ---- drawdowns ----------------------------------------------------------------------------------------------------------------
def slow_drawdowns(nav: pd.Series) -> list:
    """Every fall below the highest so far, with a loop."""
    found, high, high_day, current = [], 1.0, nav.index[0], None
    for place, (day, value) in enumerate(nav.items()):
        if value < high:
            if current is None:
                current = {"start": high_day, "place": place - 1, "depth": 0.0}
            if value / high - 1 < current["depth"]:
                current.update(depth=value / high - 1, trough=day)
        else:
            if current:
                found.append({**current, "end": day, "days": place - current["place"]})
            current, high, high_day = None, value, day
    if current:
        found.append({**current, "end": pd.NaT, "days": len(nav) - 1 - current["place"]})
    return sorted(found, key=lambda one: one["depth"])


@pytest.mark.parametrize("seed", [0, 1, 3, 5])
def test_drawdowns_are_those_of_a_slow_loop(seed):
    returns = market(seed) if seed else market(seed).where(lambda x: x.index != x.index[0], -0.05)
    nav = pd.Series(wealth(returns), returns.index)
    expected, found = slow_drawdowns(nav), drawdowns(nav, 100)
    assert len(found) == len(expected) > 0 and list(found.index) == list(range(1, len(found) + 1))
    for name in ("start", "trough", "end"):
        pd.testing.assert_index_equal(pd.DatetimeIndex(found[name]), pd.DatetimeIndex([one[name] for one in expected]), exact=False,
                                      check_names=False)
    np.testing.assert_allclose(found["depth"], [one["depth"] for one in expected])
    assert found["days"].tolist() == [one["days"] for one in expected]
    assert found["depth"].iloc[0] == underwater(nav).min() and drawdowns(nav, 2).equals(found.iloc[:2])


def test_drawdowns_by_hand():
    days = pd.bdate_range("2024-01-01", periods=7)
    found = drawdowns(pd.Series([0.9, 1.0, 1.2, 0.6, 0.9, 1.2, 1.19], days))
    assert found[["start", "trough", "end"]].to_numpy().tolist() == pd.DataFrame(
        [[days[2], days[3], days[5]], [days[0], days[0], days[1]], [days[5], days[6], pd.NaT]]).to_numpy().tolist()
    np.testing.assert_allclose(found["depth"], [-0.5, -0.1, 1.19 / 1.2 - 1])
    assert found["days"].tolist() == [3, 2, 1]


def test_what_only_rises_has_no_drawdown():
    days = pd.bdate_range("2024-01-01", periods=5)
    for nav in ([1.0, 1.1, 1.1, 1.2, 1.3], [1.0] * 5):
        found = drawdowns(pd.Series(nav, days))
        assert found.empty and list(found.columns) == ["start", "trough", "end", "depth", "days"] and not underwater(nav).any()
    with pytest.raises(DataError, match="NaN on 1 day"):
        drawdowns(pd.Series([1.0, np.nan], days[:2]))


def test_quantstats_agrees():
    """Its drawdown starts on the first day below the high and ends on the last one, ours run from high to high."""
    stats = pytest.importorskip("quantstats.stats")
    returns = market(7).mask(lambda x: x.index == x.index[0], 0.01)
    nav = pd.Series(wealth(returns), returns.index)
    series = stats.to_drawdown_series(returns)
    np.testing.assert_allclose(underwater(nav), series, atol=1e-12)
    details = stats.drawdown_details(series).sort_values("max drawdown").head(5)
    found = drawdowns(nav)
    np.testing.assert_allclose(found["depth"] * 100, details["max drawdown"], rtol=1e-9)
    assert found["trough"].dt.strftime("%Y-%m-%d").tolist() == pd.to_datetime(details["valley"]).dt.strftime("%Y-%m-%d").tolist()
    after = returns.index[returns.index.searchsorted(found["start"]) + 1]
    assert (pd.to_datetime(details["start"]).to_numpy() == after.to_numpy()).all()
    assert stats.comp(returns) == pytest.approx(period_returns(returns, broker_windows(returns.index))[-1])
    assert stats.volatility(returns, periods=252) == pytest.approx(annual_volatility(returns))
    assert stats.win_rate(returns) == pytest.approx(win_rate(returns))
