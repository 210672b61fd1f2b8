"""The 21 columns against pandas rolling windows, their causality, and the authors' published columns."""
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ShapeError
from qlib_ext.factors.market_state import STATE_SIZE, market_state, market_state_names


@pytest.fixture
def bars():
    generator = np.random.default_rng(0)
    close = 3000 * np.exp(np.cumsum(generator.normal(0, 0.012, 300)))
    return close, 1e11 * np.exp(generator.normal(0, 0.4, 300))


def by_pandas(close, amount):
    close, amount = pd.Series(close), pd.Series(amount)
    daily = close / close.shift(1) - 1
    columns = [daily]
    for window in (5, 10, 20, 30, 60):
        columns += [daily.rolling(window).mean(), daily.rolling(window).std(),
                    amount.rolling(window).mean() / amount, amount.rolling(window).std() / amount]
    return pd.concat(columns, axis=1).to_numpy()


def test_equals_pandas(bars):
    result = market_state(*bars)
    expected = by_pandas(*bars)
    assert result.shape == (300, STATE_SIZE) == (300, 21)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(expected))
    scale = np.nanmax(np.abs(expected), axis=0)
    assert np.nanmax(np.abs(result - expected) / scale) < 1e-10
    assert np.isnan(result[:60]).any(axis=1).all() and np.isfinite(result[60:]).all()


def test_names_follow_the_columns(bars):
    names = market_state_names("SH000300")
    assert len(set(names)) == 21 and names[:5] == [f"SH000300:{n}" for n in (
        "return_1", "return_mean_5", "return_std_5", "amount_mean_5", "amount_std_5")] and names[-1] == "SH000300:amount_std_60"
    close, amount = bars
    state = pd.DataFrame(market_state(close, amount), columns=names)
    daily = close[1:] / close[:-1] - 1
    assert state["SH000300:return_mean_30"].iloc[-1] == pytest.approx(daily[-30:].mean())
    assert state["SH000300:return_std_20"].iloc[-1] == pytest.approx(daily[-20:].std(ddof=1))
    assert state["SH000300:amount_mean_10"].iloc[-1] == pytest.approx(amount[-10:].mean() / amount[-1])
    assert state["SH000300:amount_std_60"].iloc[-1] == pytest.approx(amount[-60:].std(ddof=1) / amount[-1])


@pytest.mark.parametrize("day", [61, 150, 298])
def test_no_look_ahead_and_no_dependence_on_later_days(bars, day):
    close, amount = bars
    result = market_state(close, amount)
    wrong_close, wrong_amount = close.copy(), amount.copy()
    wrong_close[day + 1:], wrong_amount[day + 1:] = 1.0, np.nan
    np.testing.assert_array_equal(market_state(wrong_close, wrong_amount)[:day + 1], result[:day + 1])
    np.testing.assert_array_equal(market_state(close[:day + 1], amount[:day + 1]), result[:day + 1])
    wrong_close[day] = 1.0  # the same check notices a change at the day itself
    assert not np.array_equal(market_state(wrong_close, amount)[day], result[day])


def test_values_need_sixty_days_back_only(bars):
    close, amount = bars
    np.testing.assert_array_equal(market_state(close[100:], amount[100:])[60:], market_state(close, amount)[160:])


def test_missing_and_worthless_days(bars):
    close, amount = bars
    whole = market_state(close, amount)
    for hole in (np.nan, 0.0, -1.0):
        broken = amount.copy()
        broken[100] = hole
        result = market_state(close, broken)
        assert np.isnan(result[100, 3::4]).all() and np.isnan(result[100:105, 3]).all()
        np.testing.assert_array_equal(result[105:, 3:5], whole[105:, 3:5])
        np.testing.assert_array_equal(result[:, 1::4], whole[:, 1::4])
        assert not np.isinf(result).any()
    broken = close.copy()
    broken[100] = np.nan
    result = market_state(broken, amount)
    assert np.isnan(result[100:106, 1]).all() and np.isfinite(result[106, 1])  # the return of day 101 is lost as well


def test_units_and_inputs(bars):
    close, amount = bars
    result, copies = market_state(close, amount), (close.copy(), amount.copy())
    np.testing.assert_allclose(market_state(close * 7, amount * 1e-6), result, rtol=1e-9, atol=1e-14)
    np.testing.assert_array_equal(close, copies[0])
    np.testing.assert_array_equal(amount, copies[1])
    assert market_state([], []).shape == (0, 21) and np.isnan(market_state([1.0], [1.0])[0, :]).all()
    for wrong in ((close, amount[1:]), (close[:, None], amount[:, None])):
        with pytest.raises(ShapeError):
            market_state(*wrong)


def test_a_long_calm_after_a_crash_stays_exact():
    close = np.r_[1e8, np.full(200, 1.0) * (1 + 1e-6) ** np.arange(200)]
    state = market_state(close, np.full(201, 1.0))
    np.testing.assert_allclose(state[70:, 1], 1e-6, rtol=1e-6)  # a running sum would keep rounding left by the crash
    assert (state[70:, 2] < 1e-14).all() and (state[70:, 4] == 0).all()


REAL = Path(os.environ.get("QLIB_EXT_REAL_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@pytest.mark.skipif(not (REAL / "master").is_dir(), reason="the real data (QLIB_EXT_REAL_DATA) are not here")
def test_published_columns_are_these_up_to_their_normalisation():
    """CSI300 return columns: an affine map carries ours onto the authors' (both unclipped) to rounding."""
    theirs = pd.read_parquet(REAL / "master" / "market_information.parquet").drop_duplicates("datetime").set_index("datetime")
    bars = pd.read_parquet(REAL / "ashare_daily" / "index_bars.parquet").query("instrument == 'SH000300'")
    bars = bars.set_index("date").sort_index()
    ours = pd.DataFrame(market_state(bars["close"], bars["volume"]), index=bars.index)
    days = ours.dropna().index.intersection(theirs.index)
    for position in range(21):
        left, right = ours.loc[days, position].to_numpy(), theirs.loc[days].iloc[:, position].to_numpy()
        inside = np.abs(right) < 2.99
        correlation = np.corrcoef(left[inside], right[inside])[0, 1]
        is_amount = position > 0 and (position - 1) % 4 >= 2
        assert correlation > (0.92 if is_amount else 0.99999), (position, correlation)  # volume stands in for amount here
