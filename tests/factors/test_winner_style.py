"""The style of recent winners against a slow loop in pandas, its laws, and what it does with gaps, ties and limits."""
import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.factors.winner_style import MIN_STOCKS, STATISTICS, WINDOWS, winner_style, winner_style_names

T, N = 90, 60


def market(seed=0, days=T, stocks=N, factors=10):
    """Closes with gaps, late listings and equal prices, exposures with holes, stocks that are not eligible or locked."""
    draw = np.random.default_rng(seed)
    close = 10 * np.exp(np.cumsum(draw.normal(0, 0.02, (days, stocks)), axis=0))
    close[draw.random(close.shape) < 0.08] = np.nan
    close[:, :6] = np.round(close[:, :6], 0)                # returns that tie
    close[:40, 6] = close[30:55, 7] = np.nan                # listed late, suspended long
    close[50, 8] = 0.0
    exposure = draw.normal(size=(days, stocks, factors)).astype(np.float32)
    exposure[draw.random((days, stocks)) < 0.05] = np.nan
    exposure[draw.random(exposure.shape) < 0.02] = np.nan
    locked = draw.random((days, stocks)) < 0.05
    locked[20:50, 9] = True
    return close, exposure, draw.random((days, stocks)) < 0.9, locked


def group_weights(returns, size):
    """Average over all orders of tied stocks: shares of the places."""
    weight = pd.Series(0.0, returns.index)
    for _, tied in returns.groupby(returns, sort=True):
        weight[tied.index] = min(1.0, max(size, 0) / len(tied))
        size -= len(tied)
    return weight


def one_day(close, exposure, eligible, locked, day, window, quantile):
    """Statistics `[3, k]` of a day, as methods.md 1.4 words them."""
    history = pd.DataFrame(close[:day + 1]).where(lambda table: table > 0)
    last, start = history.ffill().iloc[-1], history.iloc[:-window].ffill().iloc[-1]
    traded = history.iloc[-window:].notna()
    free = traded & ~pd.DataFrame(locked[:day + 1], index=history.index).iloc[-window:]
    style = pd.DataFrame(exposure[day - window].astype(float))
    chosen = (pd.Series(eligible[day]) & start.notna() & (traded.mean() >= 0.8 - 1e-12) & free.any() & style.notna().any(axis=1))
    returns, style = (last / start - 1)[chosen], style[chosen]
    result = np.full((3, style.shape[1]), np.nan)
    if chosen.sum() < MIN_STOCKS:
        return result
    style = (style - style.mean()) / style.std(ddof=0)
    style.loc[:, style.notna().sum() < MIN_STOCKS] = np.nan
    size = int(np.ceil(round(quantile * len(returns), 9)))
    for row, sign in ((0, -1), (1, 1)):
        weight = group_weights(sign * returns, size)
        for k in style:
            known = style[k].notna()
            w, z = weight[known], style[k][known]
            if w.sum() > 0:
                result[row, k] = np.average(z, weights=w)
                if row == 0:
                    result[2, k] = np.sqrt(np.average((z - result[0, k]) ** 2, weights=w))
    return result


@pytest.mark.parametrize("quantile", [0.1, 0.3])
def test_equals_a_slow_loop(quantile):
    data = market()
    windows = (3, 5, 20)
    found = winner_style(*data, windows=windows, quantile=quantile).reshape(T, 3, 3, 10)
    for place, window in enumerate(windows):
        assert np.isnan(found[:window, place]).all() and np.isfinite(found[40:, place]).all()
        for day in range(window, T, 4):
            np.testing.assert_allclose(found[day, place], one_day(*data, day, window, quantile), atol=1e-9)


def test_ties_are_shared():
    """Eight of 30 stocks tie for the last two of three places: each counts a quarter."""
    close = np.full((6, 30), 10.0)
    close[5] = 9.0 - 0.01 * np.arange(30)
    close[5, 4], close[5, 10:18] = 12.0, 11.0
    exposure = np.random.default_rng(0).normal(size=(6, 30, 2))
    style = (exposure[0] - exposure[0].mean(axis=0)) / exposure[0].std(axis=0)
    weight = np.zeros(30)
    weight[4], weight[10:18] = 1, 2 / 8
    mean = weight @ style / 3
    expected = [mean, style[-3:].mean(axis=0), np.sqrt(weight @ (style - mean) ** 2 / 3)]
    found = winner_style(close, exposure, np.ones((6, 30), bool), windows=(5,))
    np.testing.assert_allclose(found[5], np.concatenate(expected), atol=1e-12)
    close[5] = 10.0                                         # all tie: the groups are the universe
    np.testing.assert_allclose(winner_style(close, exposure, close > 0, windows=(5,))[5], [0, 0, 0, 0, 1, 1], atol=1e-12)


def test_there_are_120_columns_and_none_is_constant():
    close, exposure, eligible, locked = market(1)
    found = winner_style(close, exposure, eligible, locked)
    names = winner_style_names([f"f{k}" for k in range(10)])
    assert found.shape == (T, 120) == (T, len(names)) and found.dtype == np.float64 and len(set(names)) == 120
    assert (found[70:].std(axis=0) > 0.01).all()
    for k in (1, 7):
        assert winner_style(close, exposure[:, :, :k], eligible, locked).shape == (T, 12 * k)
    assert names[0] == "winner_mean_5:f0" and names[10] == "loser_mean_5:f0" and names[30:32] == ["winner_mean_10:f0",
                                                                                                 "winner_mean_10:f1"]
    table = pd.DataFrame(found, columns=names)              # one column alone is the one of that name
    for window, statistic, k in ((5, "winner_mean", 3), (60, "winner_std", 9), (20, "loser_mean", 0)):
        alone = winner_style(close, exposure, eligible, locked, (window,), (statistic,))[:, k]
        np.testing.assert_allclose(table[f"{statistic}_{window}:f{k}"], alone, rtol=1e-12)


def test_later_days_change_nothing():
    data = market(2)
    whole = winner_style(*data)
    for day in (61, 75, 88):
        draw = np.random.default_rng(day)
        close, exposure, eligible, locked = (array.copy() for array in data)
        close[day + 1:] *= draw.lognormal(0, 1, close[day + 1:].shape)
        close[day + 1:, ::7] = np.nan
        exposure[day + 1:] = draw.normal(size=exposure[day + 1:].shape)
        eligible[day + 1:], locked[day + 1:] = ~eligible[day + 1:], ~locked[day + 1:]
        changed = winner_style(close, exposure, eligible, locked)
        assert changed[:day + 1].tobytes() == whole[:day + 1].tobytes()
        assert not np.array_equal(changed[day + 1], whole[day + 1])
        short = winner_style(*(array[:day + 1] for array in data))
        assert short.tobytes() == whole[:day + 1].tobytes()
        close[day] *= draw.lognormal(0, 1, N)               # the same check notices a change on the day
        assert not np.array_equal(winner_style(close, exposure, eligible, locked)[day], whole[day])
        exposure = data[1].copy()                           # exposures inside the window, up to the day itself, are not used
        exposure[day - 4:] = draw.normal(size=exposure[day - 4:].shape)
        assert winner_style(data[0], exposure, *data[2:])[day].tobytes() == whole[day].tobytes()
        exposure[day - 5] = draw.normal(size=exposure[day - 5].shape)
        assert not np.array_equal(winner_style(data[0], exposure, *data[2:])[day], whole[day])


def test_the_order_of_stocks_and_stocks_outside_change_nothing():
    data = market(3)
    whole = winner_style(*data)
    order = np.random.default_rng(0).permutation(N)
    np.testing.assert_allclose(winner_style(*(array[:, order] for array in data)), whole, atol=1e-12)
    close, exposure, eligible, locked = (np.insert(array, [3, 30, N], array[:, :1], axis=1) for array in data)
    eligible[:, [3, 31]], close[:, -1] = False, np.nan      # a newcomer of tomorrow
    assert winner_style(close, exposure, eligible, locked).tobytes() == whole.tobytes()
    eligible[:, 3] = True
    assert not np.array_equal(winner_style(close, exposure, eligible, locked)[-1], whole[-1])


def test_units_of_prices_and_exposures_do_not_matter():
    close, exposure, eligible, locked = market(4)
    whole = winner_style(close, exposure, eligible, locked)
    scaled = winner_style(close * 2.0 ** (np.arange(N) % 7 - 3), exposure * 3.0 + 7.0, eligible, locked)
    np.testing.assert_allclose(scaled, whole, atol=2e-5)    # exposures are float32


def test_returns_that_are_a_style_show_that_style_only():
    stocks, factors, day = 1000, 10, 30
    draw = np.random.default_rng(4)
    columns = np.column_stack([np.ones(stocks), draw.normal(size=(stocks, factors))])
    style = np.linalg.qr(columns)[0][:, 1:] * np.sqrt(stocks)        # orthogonal, mean 0, deviation 1
    exposure = np.broadcast_to(style, (day + 1, stocks, factors))
    for k in (0, 6):
        close = 10 * (1 + np.outer(np.arange(day + 1), 0.002 * style[:, k] / 10) + 0.001 * np.arange(day + 1)[:, None])
        found = winner_style(close, exposure, np.ones(close.shape, bool), windows=(5, 10, 20))[day].reshape(3, 3, factors)
        assert (found[:, 0, k] > 1.5).all() and (found[:, 1, k] < -1.5).all() and (found[:, 2, k] < 0.6).all()
        others = np.delete(found, k, axis=2)
        assert np.abs(others[:, :2]).max() < 3 / np.sqrt(0.1 * stocks)
        assert np.abs(others[:, 2] - 1).max() < 0.3         # winners of style k are as spread as anybody in the others


def test_suspension_locks_and_late_listing():
    """One stock soars; whether it counts decides whether the winners' mean shows its exposure of 100."""
    def counts(spoil, window=10):
        close, eligible, locked = np.full((41, 30), 10.0), np.ones((41, 30), bool), np.zeros((41, 30), bool)
        close += 0.001 * np.arange(30)
        close[31:, 0] *= np.linspace(1.1, 2.0, 10)
        exposure = np.random.default_rng(0).normal(size=(41, 30, 1))
        exposure[:, 0] = 100.0
        spoil(close, exposure, eligible, locked)
        return winner_style(close, exposure, eligible, locked, windows=(window,))[40, 0] > 1

    def put(which, rows, value):
        def spoil(*arrays):
            arrays[which][rows, 0] = value
        return spoil

    close, exposure, eligible, locked = range(4)
    assert counts(put(close, slice(0, 0), 0))
    assert counts(put(close, [32, 35], np.nan)) and not counts(put(close, [32, 35, 36], np.nan))   # 8 and 7 of 10 days
    assert counts(put(close, [39, 40], np.nan))                                                     # the last close counts
    assert counts(put(close, slice(20, 31), np.nan)) and not counts(put(close, slice(0, 31), np.nan))
    assert counts(put(locked, slice(32, 41), True)) and not counts(put(locked, slice(31, 41), True))
    assert counts(put(eligible, slice(0, 40), False)) and not counts(put(eligible, 40, False))
    assert not counts(put(exposure, 30, np.nan)) and counts(put(exposure, slice(31, 41), np.nan))

    def traded_days_all_locked(close, exposure, eligible, locked):
        close[35, 0], locked[31:41, 0], locked[35, 0] = np.nan, True, False
    assert not counts(traded_days_all_locked)


def test_few_stocks_and_flat_factors_are_unknown():
    close, exposure, eligible, _ = market(5, stocks=39, factors=3)
    close = np.nan_to_num(np.where(close > 0, close, np.nan), nan=9.0)
    exposure = np.nan_to_num(exposure).astype(np.float64)
    exposure[:, :, 1] = 0.1
    assert exposure[0, :, 1].copy().std() > 0               # constant, but for rounding
    exposure[:, MIN_STOCKS - 1:, 2] = np.nan
    found = winner_style(close, exposure, np.ones(close.shape, bool), windows=(5,)).reshape(T, 3, 3)[5:]
    assert np.isfinite(found[:, :, 0]).all() and np.isnan(found[:, :, 1:]).all()
    eligible[:] = np.arange(39) < MIN_STOCKS - 1
    assert np.isnan(winner_style(close, exposure, eligible, windows=(5,))).all()
    eligible[:, MIN_STOCKS - 1] = True
    assert np.isfinite(winner_style(close, exposure, eligible, windows=(5,)).reshape(T, 3, 3)[5:, :, 0]).all()


def test_inputs_stay_and_empty_ones_are_fine():
    data = market(6)
    copies = [array.copy() for array in data]
    winner_style(*data)
    for array, copy in zip(data, copies):
        np.testing.assert_array_equal(array, copy)
    assert winner_style(np.empty((0, 5)), np.empty((0, 5, 2)), np.empty((0, 5), bool)).shape == (0, 24)
    assert np.isnan(winner_style(np.empty((9, 0)), np.empty((9, 0, 2)), np.empty((9, 0), bool))).all()


@pytest.mark.parametrize("options, said", [
    ({"windows": ()}, "windows"), ({"windows": (0,)}, "windows"), ({"windows": (5.0,)}, "windows"),
    ({"windows": (5, 5)}, "twice"),
    ({"statistics": ()}, "statistics"), ({"statistics": ("median",)}, "'winner_mean', 'loser_mean', 'winner_std'"),
    ({"quantile": 0}, "quantile"), ({"quantile": 0.6}, "quantile"), ({"quantile": "a"}, "quantile"),
    ({"quantile": True}, "quantile")])
def test_wrong_options(options, said):
    with pytest.raises(ConfigError, match=said):
        winner_style(*market(7, days=60), **options)


def test_shapes_are_checked():
    close, exposure, eligible, locked = market(7, days=60)
    for wrong in ((close[1:], exposure, eligible, locked), (close, exposure[..., 0], eligible, locked),
                  (close, exposure, eligible[:, 1:], locked), (close, exposure, eligible, locked[1:]),
                  (close[0], exposure, eligible)):
        with pytest.raises(ShapeError, match="need"):
            winner_style(*wrong)
    assert WINDOWS == (5, 10, 20, 60) and len(STATISTICS) == 3
