"""Tables of the demo market: shapes of real ones, actions that agree with factors, members, indices, reports."""

import numpy as np
import pandas as pd
import pytest

from qlib_ext.demo.fundamentals import fundamentals_table
from qlib_ext.demo.market import make_market
from qlib_ext.demo.membership import INDEX_NAMES
from qlib_ext.demo.tables import make_tables
from qlib_ext.store.ingest import ingest
from qlib_ext.store.schema import TABLES

COLUMNS = {
    "bars": {"date": "M", "instrument": "O", "open": "f", "high": "f", "low": "f", "close": "f", "volume": "i", "amount": "f",
             "turnover": "f", "factor": "f", "is_st": "i"},
    "index_bars": {"date": "M", "instrument": "O", "open": "f", "high": "f", "low": "f", "close": "f", "volume": "f",
                   "amount": "f", "name": "O", "change_pct": "f"},
    "membership": {"instrument": "O", "index": "O", "start": "M", "end": "M", "has_bars": "b"},
    "index_weights": {"date": "M", "index": "O", "instrument": "O", "weight": "f"},
    "industry": {"instrument": "O", "start": "M", "end": "M", "sw_code": "O", "l1_code": "O", "l1_name": "O", "l2": "O",
                 "l3": "O", "l1_latest": "O", "in_sw2021_table": "b", "updated": "O"},
    "float_shares_monthly": {"month": "M", "instrument": "O", "float_shares": "f", "total_shares": "f", "method": "O"},
    "fundamentals": {"instrument": "O", "period_end": "M", "announcement": "M", "equity": "f", "total_assets": "f",
                     "total_debt": "f", "long_term_debt": "f", "preferred_equity": "f", "net_profit": "f", "sales": "f",
                     "operating_cash_flow": "f", "eps": "f"},
    "dividends": {"instrument": "O", "ex_date": "M", "cash": "f", "bonus": "f"},
    "instruments": {"instrument": "O", "kind": "O", "list_date": "M", "delist_date": "M", "name": "O"},
}


@pytest.fixture(scope="module")
def reports(tables):
    """First published versions."""
    return tables["fundamentals"].drop_duplicates(["instrument", "period_end"], keep="first")


def test_columns_and_types_are_those_of_the_real_tables(tables):
    assert list(tables) == list(COLUMNS)
    for name, columns in COLUMNS.items():
        assert list(tables[name].columns) == list(columns), name
        assert set(TABLES[name].required_columns) <= set(columns)
        for column, kind in columns.items():
            found = tables[name][column].dtype
            assert (found.kind if kind != "O" else "O") == kind, (name, column, found)
        assert not tables[name].drop(columns=["change_pct", "delist_date"], errors="ignore").isna().any().any(), name


def test_dividends_agree_with_the_factor(bars, tables):
    """Factor jump = last close / ex-right price, on ex-dates and on no other day."""
    joined = bars.merge(tables["dividends"], left_on=["instrument", "date"], right_on=["instrument", "ex_date"], how="left")
    ex_date = joined["ex_date"].notna()
    assert ex_date.sum() == len(tables["dividends"]) > 2000
    ex_right = (joined["last_close"] - joined["cash"].fillna(0)) / (1 + joined["bonus"].fillna(0))
    np.testing.assert_allclose(1 + joined["step"].fillna(0), (joined["last_close"] / ex_right).fillna(1), rtol=1e-12)
    assert (joined.loc[ex_date, "volume"] > 0).all()
    assert abs(joined.loc[ex_date, "return"].std() / bars["return"].std() - 1) < 0.2


def test_bonus_shares_leave_the_cap_continuous(market):
    split = np.nan_to_num(market.bonus)[1:] > 0
    assert split.sum() > 50
    for name in ("float_shares", "total_shares"):
        shares = getattr(market, name)
        growth = (shares[1:] / shares[:-1])[split]
        assert (growth > 1 + market.bonus[1:][split] - 1e-6).all()
    np.testing.assert_allclose(growth, 1 + market.bonus[1:][split], rtol=1e-6)  # total shares: nothing but the bonus
    assert (market.total_shares >= market.float_shares)[market.listed].all()
    unlocked = (market.float_shares[1:] > market.float_shares[:-1]) & ~split
    assert unlocked.sum() > 200 and (market.total_shares[1:] == market.total_shares[:-1])[unlocked].all()


@pytest.fixture(scope="module")
def daily_shares(market, tables):
    """Monthly shares carried forward and grown by the bonus shares since, by stock and day; also the true ones."""
    monthly = tables["float_shares_monthly"].sort_values("month").rename(columns={"month": "date"})
    monthly["date"] = (monthly["date"] + pd.Timedelta(days=1)).astype("datetime64[ms]")
    stock, day = np.nonzero(market.listed.T)
    daily = pd.DataFrame({"date": market.days[day].astype("datetime64[ms]"), "instrument": np.array(market.instruments)[stock],
                          "true": market.float_shares[day, stock], "true_total": market.total_shares[day, stock]})
    joined = pd.merge_asof(daily.sort_values("date", kind="stable"), monthly, on="date", by="instrument")
    given = tables["dividends"].set_index(["instrument", "ex_date"])["bonus"].rename_axis(["instrument", "date"])
    ratio = 1 + joined.join(given, on=["instrument", "date"])["bonus"].fillna(0.0)
    growth = ratio.groupby([joined["instrument"], joined["date"].dt.to_period("M")]).cumprod()
    joined[["float_shares", "total_shares"]] = joined[["float_shares", "total_shares"]].mul(growth, axis=0)
    return joined


def test_monthly_shares_and_bonus_shares_give_the_daily_ones(daily_shares):
    np.testing.assert_allclose(daily_shares["float_shares"], daily_shares["true"], rtol=1e-7)
    np.testing.assert_allclose(daily_shares["total_shares"], daily_shares["true_total"], rtol=1e-7)


def test_a_store_has_the_true_shares_and_caps(small, tmp_path):
    """Every field file against the market, bonus shares and unlocked ones included."""
    sizes = dict(zip(INDEX_NAMES, small.index_sizes, strict=True))
    store = ingest(make_tables(small), tmp_path / "store", generated=True, index_sizes=sizes)
    split = np.nan_to_num(small.bonus) > 0
    assert split.sum() > 5
    for stock in np.flatnonzero(small.listed.any(axis=0)):
        held = small.listed[:, stock]
        for name in ("float", "total"):
            shares = getattr(small, f"{name}_shares")[held, stock]
            for field, true in ((f"{name}_shares", shares), (f"{name}_cap", shares * small.close[held, stock])):
                raw = np.fromfile(store / "features" / small.instruments[stock].lower() / f"{field}.day.bin", dtype="<f4")
                np.testing.assert_allclose(raw[1:], true, rtol=1e-6, err_msg=f"{small.instruments[stock]} {field}")


def test_membership_counts_every_day_and_disjoint(market, tables):
    count = np.zeros((len(INDEX_NAMES), len(market.days)), dtype=int)
    seen = np.zeros((len(market.days), len(market.instruments)), dtype=int)
    for row in tables["membership"].itertuples():
        held = (market.days >= np.datetime64(row.start, "D")) & (market.days <= np.datetime64(row.end, "D"))
        count[INDEX_NAMES.index(row.index)] += held
        seen[held, market.instruments.index(row.instrument)] += 1
    assert (count.T == [60, 100, 200]).all()
    assert seen.max() == 1 and market.listed[seen == 1].all()
    last = tables["bars"].groupby("instrument", observed=True)["date"].max()
    left = {market.days[market.days > day.to_datetime64()][0] for day in last if day < last.max()}
    starts = pd.DatetimeIndex(tables["membership"]["start"].unique())
    renewed = {day for day in starts if day.to_datetime64().astype("datetime64[D]") not in left}
    assert len(renewed) == 21 and {day.month for day in renewed - {starts.min()}} == {6, 12}


def test_a_delisted_member_is_replaced_on_the_next_day(market):
    days, stocks = np.nonzero(market.listed[:-1] & ~market.listed[1:] & (market.member[:-1] >= 0))
    assert len(days)
    for day, stock in zip(days, stocks, strict=True):
        before, after = market.member[day], market.member[day + 1]
        assert after[stock] == -1
        moved = np.flatnonzero((before != after) & (np.arange(len(before)) != stock))
        if day + 1 not in np.flatnonzero((market.member[1:] != market.member[:-1]).sum(axis=1) > 10) + 1:
            assert (after[moved] < np.where(before[moved] < 0, 9, before[moved])).all()  # everyone moves up


def test_members_are_ranked_by_the_caps_of_the_months_before(market):
    cap = np.where(market.listed, market.close * market.float_shares, np.nan)
    begin = int(np.searchsorted(market.days, np.datetime64("2019-06-17")))
    assert (market.member[begin] != market.member[begin - 1]).any() and market.days[begin - 1] == np.datetime64("2019-06-14")
    known = market.days < np.datetime64("2019-06-01")
    window = cap[known][-120:, :390]
    mean = np.nansum(window, axis=0) / np.maximum(np.isfinite(window).sum(axis=0), 1)
    member = market.member[begin, :390]
    for index in (0, 1):
        assert mean[member == index].min() > mean[member == index + 1].max()
    assert not (market.is_st[begin - 1] & (market.member[begin] >= 0)).any()


def test_index_bars_are_price_indices_of_the_members(market, tables, bars, daily_shares):
    """Recomputed from bars, members, monthly shares and dividends by pandas."""
    close = bars.pivot(index="date", columns="instrument", values="close")
    bonus = tables["dividends"].pivot(index="ex_date", columns="instrument", values="bonus")
    bonus = bonus.reindex(index=close.index, columns=close.columns).fillna(0.0)
    shares = daily_shares.pivot(index="date", columns="instrument", values="float_shares")[close.columns]
    assert not shares.isna().where(close.notna(), False).any().any()
    wide = tables["index_bars"].pivot(index="date", columns="instrument", values="close").astype(float)
    for code, name in (("SH000300", "csi300"), ("SH000905", "csi500"), ("SH000852", "csi1000")):
        member = pd.DataFrame(False, index=close.index, columns=close.columns)
        for row in tables["membership"].query("index == @name").itertuples():
            member.loc[row.start : row.end, row.instrument] = True
        held = shares.where(member)
        growth = (held * close).sum(axis=1) / (held * close.shift() / (1 + bonus)).sum(axis=1)
        np.testing.assert_allclose(wide[code].pct_change().iloc[1:], growth.iloc[1:] - 1, atol=3e-7)
    index = tables["index_bars"]
    assert (index["low"] <= index[["open", "close"]].min(axis=1)).all() and (index["high"] >= index["open"]).all()


def test_index_weights_are_percent_of_float_cap(market, tables):
    total = tables["index_weights"].groupby("date")["weight"].agg(["sum", "size"])
    assert (abs(total["sum"] - 100) < 0.01).all() and (total["size"] == 60).all() and len(total) == 121


def test_instruments_say_when_they_come_and_go(tables):
    table = tables["instruments"].set_index("instrument")
    dates = tables["bars"].groupby("instrument", observed=True)["date"].agg(["min", "max"])
    late = dates["min"] > pd.Timestamp("2015-01-05")
    assert (table["list_date"] <= dates["min"]).all() and (table.loc[late, "list_date"] == dates.loc[late, "min"]).all()
    gone = table["delist_date"].notna()
    assert (table.loc[gone, "delist_date"] == dates.loc[gone, "max"]).all()
    assert (dates.loc[~gone, "max"] == pd.Timestamp("2024-12-31")).all()


def test_industries_move_but_rarely(tables):
    spans = tables["industry"].groupby("instrument").size()
    assert tables["industry"]["l1_code"].nunique() == 31 and 5 <= (spans > 1).sum() <= 44


def test_reports_come_after_their_period_and_inside_the_legal_window(tables, reports):
    table = tables["fundamentals"]
    assert (table["announcement"] > table["period_end"]).all()
    assert table["period_end"].dt.strftime("%m-%d").isin(["03-31", "06-30", "09-30", "12-31"]).all()
    list_date = tables["instruments"].set_index("instrument")["list_date"].loc[reports["instrument"]].to_numpy()
    usual = reports[reports["announcement"] > list_date]
    month, year = usual["period_end"].dt.month, usual["period_end"].dt.year
    limit = month.map({3: "04-30", 6: "08-31", 9: "10-31", 12: "04-30"})
    deadline = pd.to_datetime((year + (month == 12)).astype(str) + "-" + limit)
    late = usual["announcement"] > deadline
    assert 0 < late.mean() < 0.02 and (usual["announcement"] - deadline).max() < pd.Timedelta(days=70)
    assert not table.duplicated(["instrument", "period_end", "announcement"]).any()
    versions = table.groupby(["instrument", "period_end"]).size()
    assert 0 < (versions > 1).mean() < 0.03 and versions.max() == 2
    assert (table["announcement"] <= pd.Timestamp("2024-12-31")).all()


def test_first_quarter_reports_do_not_precede_the_annual_ones(reports):
    wide = reports.pivot(index="instrument", columns="period_end", values="announcement")
    for year in range(2011, 2024):
        assert not (wide[f"{year + 1}-03-31"] < wide[f"{year}-12-31"]).any()


def test_flows_are_year_to_date_and_balances_add_up(reports):
    frame = reports.sort_values(["instrument", "period_end"])
    year = frame["period_end"].dt.year
    sales = frame["sales"].groupby([frame["instrument"], year]).diff()
    assert (sales.dropna() > 0).all()  # cumulative: quarterly sales are positive
    first = frame["period_end"].dt.month == 3
    assert frame.loc[first, "sales"].median() < 0.35 * frame.loc[frame["period_end"].dt.month == 12, "sales"].median()
    assert (frame["total_assets"] >= frame["equity"] + frame["total_debt"]).all()
    assert (frame["equity"] > frame["preferred_equity"]).all()
    assert (frame["total_debt"] >= frame["long_term_debt"]).all() and (frame["preferred_equity"] > 0).any()
    assert (np.sign(frame["eps"]) * np.sign(frame["net_profit"]) >= 0).all() and 0.03 < (frame["net_profit"] < 0).mean() < 0.2


def test_book_to_price_tells_the_latent_value_exposure(market, reports):
    """Cheap companies by the latent exposure, which the value premium pays, are those of high book to price as published."""
    correlations = []
    for day in range(300, len(market.days), 400):
        known = reports[reports["announcement"] <= market.days[day]].groupby("instrument").last()
        stocks = np.flatnonzero(market.listed[day] & np.isin(market.instruments, known.index))
        equity = known["equity"].loc[np.array(market.instruments)[stocks]].to_numpy()
        book = np.log(equity / (market.close * market.total_shares)[day, stocks])
        correlations.append(np.corrcoef(book, market.states["exposure"]["value"][day, stocks])[0, 1])
    assert min(correlations) > 0.3 and np.mean(correlations) > 0.45


def test_a_report_is_the_same_in_a_longer_market(small, small_options):
    short = fundamentals_table(make_market(5, **{**small_options, "end": "2016-05-18"}))
    long = fundamentals_table(small)
    known = long[long["announcement"] <= pd.Timestamp("2016-05-18")].reset_index(drop=True)
    pd.testing.assert_frame_equal(short, known)
