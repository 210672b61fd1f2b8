"""The demo market: tables in the shape of real ones, determinism, consistency, a planted signal of the promised strength."""

import json

import numpy as np
import pandas as pd
import pytest

from qlib_ext.demo import signal
from qlib_ext.demo.build import build_demo, read_truth, truth_paths
from qlib_ext.demo.market import make_market, trading_days
from qlib_ext.demo.membership import INDEX_NAMES
from qlib_ext.demo.tables import make_tables, write_tables
from qlib_ext.demo.truth import best_ic, truth_table
from qlib_ext.errors import ConfigError, DataError

SMALL = {"stocks": 90, "start": "2015-01-05", "end": "2016-12-30", "index_sizes": (12, 20, 40)}
COLUMNS = {
    "bars": {"date": "M", "instrument": "O", "open": "f", "high": "f", "low": "f", "close": "f", "volume": "i", "amount": "f",
             "turnover": "f", "factor": "f", "is_st": "i"},
    "index_bars": {"date": "M", "instrument": "O", "open": "f", "high": "f", "low": "f", "close": "f", "volume": "f", "name": "O",
                   "change_pct": "f"},
    "membership": {"instrument": "O", "index": "O", "start": "M", "end": "M", "has_bars": "b"},
    "index_weights": {"date": "M", "index": "O", "instrument": "O", "weight": "f"},
    "industry": {"instrument": "O", "start": "M", "end": "M", "sw_code": "O", "l1_code": "O", "l1_name": "O", "l2": "O",
                 "l3": "O", "l1_latest": "O", "in_sw2021_table": "b", "updated": "O"},
    "float_shares_monthly": {"month": "M", "instrument": "O", "float_shares": "f", "method": "O"},
}


@pytest.fixture(scope="module")
def market():
    """The market users get."""
    return make_market(0)


@pytest.fixture(scope="module")
def tables(market):
    return make_tables(market)


@pytest.fixture(scope="module")
def small():
    return make_market(5, **SMALL)


@pytest.fixture(scope="module")
def bars(tables):
    """Bars by stock and day with the traded flag and the adjusted return of table columns alone."""
    frame = tables["bars"].assign(instrument=lambda table: table["instrument"].astype(str))
    frame["adjusted"] = frame["close"].astype(float) * frame["factor"].astype(float)
    frame["return"] = frame.groupby("instrument")["adjusted"].pct_change()
    frame["raw_return"] = frame["close"].astype(float).groupby(frame["instrument"]).pct_change()
    frame["step"] = frame["factor"].astype(float).groupby(frame["instrument"]).pct_change()
    return frame


def test_columns_and_types_are_those_of_the_real_tables(tables):
    assert list(tables) == list(COLUMNS)
    for name, columns in COLUMNS.items():
        assert list(tables[name].columns) == list(columns), name
        for column, kind in columns.items():
            found = tables[name][column].dtype
            assert (found.kind if kind != "O" else "O") == kind, (name, column, found)
        assert not tables[name].drop(columns="change_pct", errors="ignore").isna().any().any(), name


def test_size_and_codes(market, bars):
    assert 2400 <= len(market.days) <= 2460
    assert market.days[0] == np.datetime64("2015-01-05") and market.days[-1] == np.datetime64("2024-12-31")
    assert len(set(market.instruments)) == 400
    assert set(code[:4] for code in market.instruments) == {"SH60", "SZ00", "SZ30", "SH68"}
    first = bars.groupby("instrument")["date"].min()
    assert 20 <= (first > pd.Timestamp("2015-01-05")).sum() <= 40
    assert (first[first.index.str.startswith("SH68")] >= pd.Timestamp("2019-07-22")).all()
    assert not bars.duplicated(["instrument", "date"]).any()
    assert bars.groupby("instrument")["date"].is_monotonic_increasing.all()


def test_holidays_and_weekends_are_closed(market):
    days = pd.DatetimeIndex(market.days)
    assert (days.dayofweek < 5).all()
    assert not ((days.month == 10) & (days.day <= 7)).any()
    assert market.month_end.sum() == 120


def test_bars_are_consistent(bars):
    traded = bars["volume"] > 0
    assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()
    assert (bars["low"] > 0).all()
    cents = bars[["open", "high", "low", "close"]].astype(float) * 100
    assert (abs(cents - cents.round()) < 1e-2).all().all()
    average = (bars["amount"].astype(float) / bars["volume"])[traded]
    assert (average >= bars.loc[traded, "low"] - 1e-3).all() and (average <= bars.loc[traded, "high"] * (1 + 1e-5)).all()
    assert bars["return"].abs().max() <= 0.1 + 1e-5
    assert 0.3 < bars.loc[traded, "turnover"].median() < 4
    assert 0 < bars["is_st"].mean() < 0.02


def test_suspended_days_are_flat_rows(bars):
    halted = bars[bars["volume"] == 0]
    assert 0.002 < len(halted) / len(bars) < 0.01
    for column in ("open", "high", "low"):
        assert (halted[column] == halted["close"]).all()
    assert (halted["amount"] == 0).all() and (halted["turnover"] == 0).all()
    assert (halted["return"].dropna() == 0).all()


def test_factor_steps_leave_adjusted_returns_continuous(bars):
    stepped = bars[bars["step"].abs() > 1e-6]
    assert len(stepped) > 2000 and (stepped["volume"] > 0).all() and (stepped["step"] > 0).all()
    assert (stepped["raw_return"] < -0.2).sum() > 50
    assert stepped["return"].abs().max() <= 0.1 + 1e-5
    other = bars.loc[(bars["volume"] > 0) & (bars["step"].abs() <= 1e-6), "return"]
    assert abs(stepped["return"].std() / other.std() - 1) < 0.15


def test_bonus_shares_leave_the_float_cap_continuous(market):
    cap = market.close * market.float_shares
    change = cap[1:] / cap[:-1] - 1
    split = market.factor[1:] > 1.2 * market.factor[:-1]
    assert split.sum() > 50
    assert np.nanmin(change[split]) > -0.12
    days = pd.DatetimeIndex(market.days[1:])
    assert (days.day[split.any(axis=1)] <= 11).all()


def test_carrying_the_monthly_float_shares_forward_gives_the_daily_ones(market, tables):
    monthly = tables["float_shares_monthly"].sort_values("month").rename(columns={"month": "date"})
    monthly["date"] = (monthly["date"] + pd.Timedelta(days=1)).astype("datetime64[ms]")
    stock, day = np.nonzero(market.listed.T)
    daily = pd.DataFrame({"date": market.days[day].astype("datetime64[ms]"), "instrument": np.array(market.instruments)[stock],
                          "true": market.float_shares[day, stock]}).sort_values("date", kind="stable")
    joined = pd.merge_asof(daily, monthly, on="date", by="instrument")
    assert (joined["true"] == joined["float_shares"]).all()


def test_membership_counts_every_day_and_disjoint(market, tables):
    count = np.zeros((len(INDEX_NAMES), len(market.days)), dtype=int)
    seen = np.zeros((len(market.days), len(market.instruments)), dtype=int)
    for row in tables["membership"].itertuples():
        held = (market.days >= np.datetime64(row.start, "D")) & (market.days <= np.datetime64(row.end, "D"))
        count[INDEX_NAMES.index(row.index)] += held
        seen[held, market.instruments.index(row.instrument)] += 1
    assert (count.T == [60, 100, 200]).all()
    assert seen.max() == 1 and market.listed[seen == 1].all()
    starts = pd.DatetimeIndex(tables["membership"]["start"].unique())
    assert set(starts[starts > starts.min()].month) == {6, 12} and len(starts) == 21


def test_members_are_ranked_by_the_caps_of_the_months_before(market):
    cap = market.close * market.float_shares
    begin = int(np.searchsorted(market.days, np.datetime64("2019-06-17")))
    assert (market.member[begin] != market.member[begin - 1]).any() and market.days[begin - 1] == np.datetime64("2019-06-14")
    known = market.days < np.datetime64("2019-06-01")
    mean = np.nanmean(np.where(market.listed, cap, np.nan)[known][-120:, :370], axis=0)
    member = market.member[begin, :370]
    for index in (0, 1):
        assert mean[member == index].min() > mean[member == index + 1].max()


def test_index_weights_are_percent_and_index_follows_members(market, tables):
    total = tables["index_weights"].groupby("date")["weight"].agg(["sum", "size"])
    assert (abs(total["sum"] - 100) < 0.01).all() and (total["size"] == 60).all()
    wide = tables["index_bars"].pivot(index="date", columns="instrument", values="close").astype(float)
    assert list(wide.columns) == ["SH000300", "SH000852", "SH000905"]
    growth = wide.pct_change().to_numpy()[1:]
    adjusted = market.close * market.factor
    cap = market.close * market.float_shares
    for column, index in (("SH000300", 0), ("SH000905", 1), ("SH000852", 2)):
        for day in (1, 700, 2000):
            stocks = np.flatnonzero(market.member[day] == index)
            if (market.float_shares[day] != market.float_shares[day - 1])[stocks].any():
                continue
            weight = cap[day - 1, stocks] / cap[day - 1, stocks].sum()
            expected = (weight * (adjusted[day] / adjusted[day - 1] - 1)[stocks]).sum()
            assert growth[day - 1, list(wide.columns).index(column)] == pytest.approx(expected, abs=2e-6)
    bars = tables["index_bars"]
    assert (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
    assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all()
    assert bars.groupby("instrument")["change_pct"].std().between(0.7, 1.8).all()


def test_returns_look_like_a_market(bars):
    returns = bars.loc[bars["volume"] > 0].pivot(index="date", columns="instrument", values="return")
    market_return = returns.mean(axis=1)
    own = returns.sub(market_return, axis=0)
    kurtosis = (own**4).stack().mean() / (own**2).stack().mean() ** 2
    assert kurtosis > 4
    assert market_return.abs().rolling(20).mean().autocorr(20) > 0.1
    assert 0.008 < market_return.std() < 0.016 and 0.015 < own.stack().std() < 0.03


def _ic_from_tables(bars, truth, spans):
    """Mean daily correlation by plain pandas from the bars table and the truth file alone."""
    close = bars["adjusted"].where(bars["volume"] > 0)
    wide = bars.assign(price=close).pivot(index="date", columns="instrument", values="price")
    label = wide.shift(-6) / wide.shift(-1) - 1
    truth = truth.assign(instrument=truth["instrument"].astype(str))
    expected = truth.pivot(index="date", columns="instrument", values="expected")
    expected = expected.where(wide.notna())
    if spans is not None:
        member = pd.DataFrame(False, index=wide.index, columns=wide.columns)
        for row in spans.itertuples():
            member.loc[row.start : row.end, row.instrument] = True
        label, expected = label.where(member), expected.where(member)
    return label, expected, expected.where(label.notna()).corrwith(label, axis=1)


@pytest.mark.parametrize("universe", ["all", "csi1000", "csi500"])
def test_best_possible_ic_is_as_promised(universe, market, tables, bars):
    spans = None if universe == "all" else tables["membership"].query("index == @universe")
    label, expected, daily = _ic_from_tables(bars, truth_table(market), spans)
    recorded = best_ic(market)[universe]
    years = daily.index.year
    assert daily.mean() == pytest.approx(recorded["total"], abs=1e-4)
    for first, last in ((2015, 2017), (2018, 2021), (2022, 2022), (2023, 2024)):
        assert 0.08 <= daily[(years >= first) & (years <= last)].mean() <= 0.12, (universe, first)
    # The truth is an expectation: the label regressed on it has slope one.
    known = label.notna() & expected.notna()
    first = expected.sub(expected.where(known).mean(axis=1), axis=0).where(known).stack()
    second = label.sub(label.where(known).mean(axis=1), axis=0).where(known).stack()
    assert (first * second).sum() / (first**2).sum() == pytest.approx(1.0, abs=0.08)


@pytest.mark.parametrize("seed", [1, 2])
def test_other_seeds_keep_the_strength(seed):
    result = best_ic(make_market(seed))
    assert 0.09 <= result["all"]["total"] <= 0.115 and 0.09 <= result["csi1000"]["total"] <= 0.115


def test_one_day_shows_the_signal_under_noise(market):
    """One day's lower and upper shadow says something on the expectation, far from all."""
    top, bottom = np.maximum(market.open, market.close), np.minimum(market.open, market.close)
    with np.errstate(divide="ignore", invalid="ignore"):
        tilt = ((bottom - market.low) - (market.high - top)) / (market.high - market.low)
    known = market.trading & np.isfinite(tilt)
    correlation = np.corrcoef(tilt[known], market.expected[known])[0, 1]
    assert 0.1 < correlation < 0.5


def test_expected_label_against_simulated_paths():
    """Monte Carlo from one fixed state: the mean of the summed drifts over the label days is the closed form."""
    draws = np.random.default_rng(3).standard_normal((6, 3, 400_000))
    start = {"s": 1.2, "v": -0.8, "h": 0.9}
    half_lives = {"s": signal.HALF_LIFE_S, "v": signal.HALF_LIFE_V, "h": signal.HALF_LIFE_H}
    paths = {}
    for position, name in enumerate("svh"):
        shocks = draws[:, position].copy()
        shocks[0] = start[name]
        paths[name] = signal.autoregress(shocks, half_lives[name])
    total = np.zeros(draws.shape[-1])
    for lag in signal.LABEL_LAGS:
        tilt = signal.STATE_TILT * np.tanh(paths["h"][lag])
        pressure, attention = paths["s"][lag], paths["v"][lag]
        total += signal.PAY_S * (1 + tilt) * pressure + signal.PAY_V * (1 - tilt) * attention
        total += signal.PAY_SV * pressure * attention
    one = np.ones((1, 1))
    closed = signal.expected_label(start["s"] * one, start["v"] * one, np.array([start["h"]]), np.array([0.02]))[0, 0]
    simulated = 5 * signal.MEAN_RETURN + 0.02 * total.mean()
    assert closed == pytest.approx(simulated, abs=5 * 0.02 * total.std() / np.sqrt(len(total)))


def test_same_seed_same_bytes_other_seed_other_market(small, tmp_path):
    again, other = make_market(5, **SMALL), make_market(6, **SMALL)
    write_tables(small, tmp_path / "a")
    write_tables(again, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert len(list((tmp_path / "a").iterdir())) == len(COLUMNS)
    assert not np.array_equal(small.close, other.close, equal_nan=True)


def test_a_shorter_market_is_the_beginning_of_the_longer_one(small):
    """Nothing at t, the truth included, uses a draw after t."""
    short = make_market(5, **{**SMALL, "end": "2016-05-18"})
    count = len(short.days)
    assert 300 < count < len(small.days)
    for name in ("open", "high", "low", "close", "volume", "amount", "factor", "float_shares", "float_shares_after", "trading",
                 "member", "industry", "is_st", "expected", "month_end"):
        np.testing.assert_array_equal(getattr(short, name), getattr(small, name)[:count], err_msg=name)
    assert short.expected.tobytes() == small.expected[:count].tobytes()


def test_impossible_markets_are_refused():
    with pytest.raises(ConfigError, match="index members"):
        make_market(0, stocks=50, end="2015-03-31")
    with pytest.raises(ConfigError, match="before start"):
        trading_days("2016-01-04", "2015-01-04")
    with pytest.raises(ConfigError, match="no trading day"):
        trading_days("2015-10-01", "2015-10-02")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A demo store built from the small market."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlib_ext.demo.build.make_market", lambda seed: make_market(seed, **SMALL))
        yield build_demo(tmp_path_factory.mktemp("demo") / "store", seed=5)


def test_build_writes_store_and_truth_and_skips_what_is_done(store, small, monkeypatch):
    summary = read_truth(store)
    assert summary["seed"] == 5 and "generated" in summary["statement"]
    assert json.loads((store / "qlib_ext_store.json").read_text())["generated"] is True
    truth = pd.read_parquet(truth_paths(store)[1])
    assert list(truth.columns) == ["date", "instrument", "expected"] and len(truth) == small.listed.sum()
    monkeypatch.setattr("qlib_ext.demo.build.make_market", lambda seed: pytest.fail("generated again"))
    assert build_demo(store, seed=5) == store
    with pytest.raises(DataError, match="overwrite"):
        build_demo(store, seed=6)
    assert sorted(path.name for path in store.parent.iterdir()) == ["store", "store.truth.json", "store.truth.parquet"]


def test_build_makes_an_unfinished_store_again_and_leaves_foreign_data_alone(store, monkeypatch):
    truth_paths(store)[0].unlink()
    assert read_truth(store) is None
    build_demo(store, seed=5)
    assert read_truth(store)["seed"] == 5
    metadata_file = store / "qlib_ext_store.json"
    text = metadata_file.read_text()
    metadata_file.write_text(text.replace('"generated": true', '"generated": false'))
    try:
        with pytest.raises(DataError, match="not generated"):
            build_demo(store, seed=5, overwrite=True)
    finally:
        metadata_file.write_text(text)
