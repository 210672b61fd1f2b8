"""ETFs of the demo market: they move no stock, follow their baskets, are known in time, and trade as the filters need it."""

import json

import numpy as np
import pandas as pd
import pytest

from qlib_ext.demo.build import build_demo, read_truth, truth_paths
from qlib_ext.demo.etfs import FUNDS, add_etfs, capped_weights, make_indices
from qlib_ext.demo.market import GENERATOR, make_market
from qlib_ext.demo.tables import make_tables, write_tables
from qlib_ext.market_rules import kind_of, limit_prices
from qlib_ext.store import read_table
from qlib_ext.store.checks import check_tables
from qlib_ext.store.tables import read_tables

CODES = [fund.code for fund in FUNDS]


@pytest.fixture(scope="module")
def funds(market, tables):
    """All tables of the market users get, with its ETFs."""
    return add_etfs(tables, market)


@pytest.fixture(scope="module")
def etf_bars(funds):
    bars = funds["bars"]
    return bars[bars["instrument"].isin(CODES)].assign(instrument=lambda frame: frame["instrument"].astype(str))


def test_stocks_do_not_notice(tables, funds):
    """Every table of the stocks is the same, bit for bit; ETFs are rows behind theirs."""
    for name, table in tables.items():
        part = funds[name].iloc[:len(table)][list(table)]
        assert name in ("bars", "instruments") or len(funds[name]) == len(table)
        for column in table:
            before, after = (frame[column].astype(str) if column == "instrument" else frame[column] for frame in (table, part))
            assert before.dtype == after.dtype
            pd.testing.assert_series_equal(before, after.set_axis(before.index))
            if before.dtype.kind == "f":
                assert before.to_numpy().tobytes() == after.to_numpy().tobytes(), (name, column)
    assert set(funds["bars"]["instrument"].iloc[len(tables["bars"]):]) == set(CODES)


def test_twelve_sectors_three_broad_ones_and_two_twins(funds):
    about = funds["instruments"].set_index("instrument").loc[CODES]
    assert (kind_of(CODES) == "etf").all() and (about["kind"] == "etf").all()
    assert about["etf_class"].value_counts().to_dict() == {"sector": 14, "broad": 3}
    tracked = about["tracked_index"].value_counts()
    assert len(tracked) == 15 and tracked[tracked > 1].index.tolist() == ["SECTOR01", "SECTOR05"]
    assert funds["instruments"].loc[funds["instruments"]["kind"] == "stock", "tracked_index"].isna().all()


def test_an_etf_earns_what_its_basket_earns(funds, tables, etf_bars):
    """From table rows alone: the last basket dated before a day, held without trading, gives the day's return to a few ticks."""
    stocks = tables["bars"].assign(instrument=tables["bars"]["instrument"].astype(str))
    adjusted = stocks.assign(price=stocks["close"] * stocks["factor"]).pivot(index="date", columns="instrument", values="price").ffill()
    for code in ("SH512003", "SH510300", "SH512012"):
        bars = etf_bars[etf_bars["instrument"] == code].set_index("date")
        baskets = funds["etf_baskets"][funds["etf_baskets"]["instrument"] == code].pivot(index="date", columns="member", values="weight")
        first = baskets.index[-6]
        ours, held = [], []
        for day in bars.index[bars.index > first]:
            date = baskets.index[baskets.index < day][-1]
            units = (baskets.loc[date] / adjusted.loc[date, baskets.columns]).fillna(0)
            before = adjusted.index[adjusted.index.get_loc(day) - 1]
            held.append(adjusted.loc[day, units.index] @ units / (adjusted.loc[before, units.index] @ units) - 1)
            ours.append(bars["close"].loc[day] / bars["close"].loc[before] - 1)
        difference = np.array(ours) - np.array(held)
        assert len(ours) > 90 and difference.std() < 1.5e-3 and np.corrcoef(ours, held)[0, 1] > 0.99
        assert -0.004 < difference.sum() < 0.001  # a fee of 0.6 % a year, and ends of the premium


def test_bars_keep_their_limits_and_ticks(etf_bars):
    for _, bars in etf_bars.groupby("instrument"):
        for name in ("open", "high", "low", "close"):
            high, low = limit_prices(bars["close"].shift().iloc[1:], 0.1, 0.1, 0.001)
            assert (bars[name].iloc[1:] <= high + 1e-9).all() and (bars[name].iloc[1:] >= low - 1e-9).all()
            np.testing.assert_allclose(bars[name] * 1000, np.round(bars[name] * 1000), atol=1e-6)
        assert (bars["high"] >= bars[["open", "close"]].max(axis=1)).all() and (bars["low"] <= bars[["open", "close"]].min(axis=1)).all()
        assert (bars["volume"] % 100 == 0).all() and (bars["volume"] > 0).all()


def test_what_is_traded_lets_the_filters_bite(etf_bars):
    """Of 20 million a day over 5 days: some always pass, one never, some now and then; the more traded twin changes."""
    mean = etf_bars.pivot(index="date", columns="instrument", values="amount").rolling(5).mean()
    passed = (mean > 2e7).sum() / mean.notna().sum()
    assert passed["SH510300"] == 1 and passed["SH512008"] == 0 and ((0.2 < passed) & (passed < 0.8)).sum() >= 2
    ahead = (mean["SH512005"] > mean["SZ159905"])[4:].mean()
    assert 0.2 < ahead < 0.8
    listed = etf_bars.groupby("instrument")["date"].min()
    assert (listed > pd.Timestamp("2015-01-05")).sum() == 2 and listed["SH512012"] == pd.Timestamp("2023-05-08")


def test_baskets_are_monthly_capped_and_begin_with_the_listing(funds, market):
    baskets = funds["etf_baskets"]
    for fund in FUNDS:
        mine = baskets[baskets["instrument"] == fund.code]
        assert mine["date"].min() >= pd.Timestamp(max(fund.listing, "2015-01-05"))
        sums, most = (getattr(mine.groupby("date")["weight"], name)() for name in ("sum", "max"))
        assert sums.to_numpy() == pytest.approx(1, abs=3e-4) and most.max() <= (0.15 if fund.kind == "sector" else 0.10) + 1e-5
    dates = baskets["date"].drop_duplicates().to_numpy().astype("datetime64[D]")
    assert set(dates) == set(market.days[market.month_end]) | {market.days[0]}
    twins = [baskets[baskets["instrument"] == code].drop(columns="instrument").reset_index(drop=True) for code in ("SH512005", "SZ159905")]
    pd.testing.assert_frame_equal(*twins)


def test_a_basket_is_made_of_what_is_known_at_its_date(small, small_options):
    """The market up to a day gives the same baskets and bars up to that day."""
    short = make_market(5, **{**small_options, "end": "2016-05-31"})
    long, short = (add_etfs(make_tables(one), one) for one in (small, short))
    last = pd.Timestamp("2016-05-30")
    for name in ("etf_baskets", "bars"):
        before, after = (one[name][(one[name]["date"] <= last) & one[name]["instrument"].isin(CODES)].reset_index(drop=True)
                         for one in (short, long))
        pd.testing.assert_frame_equal(before.astype({"instrument": str}), after.astype({"instrument": str}))
    assert (after["instrument"] == "SH512007").any()  # listed in March 2016


def test_capped_weights():
    np.testing.assert_allclose(capped_weights(np.array([8.0, 1, 1, 1, 1]), 0.4), [0.4, 0.15, 0.15, 0.15, 0.15])
    np.testing.assert_allclose(capped_weights(np.array([5.0, 3.0, 2.0]), 0.1), 1 / 3)
    np.testing.assert_allclose(capped_weights(np.array([60.0, 35, 3, 2]), 0.36), [0.36, 0.36, 0.168, 0.112])  # the second follows


def test_tables_pass_the_checks_of_a_store(small):
    check_tables(read_tables(add_etfs(make_tables(small), small)), "typical")
    assert len(make_indices(small)) == 15


@pytest.fixture
def small_markets(small_options, monkeypatch):
    monkeypatch.setattr("qlib_ext.demo.build.make_market", lambda seed, **switches: make_market(seed, **small_options, **switches))


def test_a_demo_store_has_etfs_and_an_older_one_is_replaced(small_markets, small, tmp_path, caplog):
    store = build_demo(tmp_path / "store", seed=5)
    assert set(read_table(store, "etf_baskets")["instrument"]) == set(CODES) - {"SH512012"}
    assert len((store / "instruments" / "etf.txt").read_text().splitlines()) == len(CODES) - 1
    file = truth_paths(store)[0]
    file.write_text(json.dumps({**json.loads(file.read_text()), "generator": 3, "switches": {"drift": False, "null": False}}))
    with caplog.at_level("WARNING", logger="qlib_ext.demo"):
        assert build_demo(store, seed=5) == store
    assert "generator version 3" in caplog.text and read_truth(store)["generator"] == GENERATOR



def test_without_etfs_the_files_are_those_of_stocks(small, tmp_path):
    assert not (write_tables(small, tmp_path / "plain") / "etf_baskets.parquet").exists()
    with_etfs = write_tables(small, tmp_path / "etfs", etfs=True)
    assert (with_etfs / "etf_baskets.parquet").exists()
    for file in (tmp_path / "plain").iterdir():
        if file.stem not in ("bars", "instruments"):
            assert file.read_bytes() == (with_etfs / file.name).read_bytes()
