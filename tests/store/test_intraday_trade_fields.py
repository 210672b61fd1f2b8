"""Factors of trades as fields of a store: thresholds, price limits, auctions; what is left out, and what is said of it."""

import logging
import shutil
from unittest import mock

import numpy as np
import polars as pl
from intraday_results import TABLE, fields, results, series
from tiny_intraday import CODES, DAYS, bars, build_folder, build_store, trades

from qlib_ext.store import check_files, intraday_days, read_metadata
from qlib_ext.store.intraday import describe, write_day
from qlib_ext.store.intraday_build import build_intraday


def test_large_orders_are_measured_by_the_days_before(tmp_path):
    """Thresholds of order sizes of some past days, by hand; a past day that changes changes them; whole pieces or small ones. Bars at a
    price limit of the store are left out of active buying, whose sides mean nothing there, not of large orders."""
    store, folder = build_store(tmp_path / "store"), build_folder(tmp_path / "store.intraday", DAYS[:9])
    ticks = {day: trades(day) for day in DAYS[:9]}
    for day, frame in ticks.items():
        write_day(folder, "trades", np.datetime64(day, "D"), frame)
    options, names = {"min_threshold_days": 3, "threshold_days": 4, "proxy": True}, ["hf_large_buy_share", "hf_buy_intention_share_proxy"]
    with mock.patch.object(intraday_days, "PIECE_ROWS", 150):
        build_intraday(store, factors=names, options=options)
    code, sizes, locked = CODES[2], {}, 0
    mine = {day: frame.filter(pl.col("instrument") == code).to_pandas() for day, frame in ticks.items()}
    for day, frame in mine.items():
        money = frame["price"] * frame["quantity"]
        sizes[day] = [money.groupby(frame[side]).sum() for side in ("buy_order", "sell_order")]
    found, active = (series(store, code, f"{name}_1d") for name in names)
    assert np.isnan(found[:3]).all() and np.isnan(found[9:]).all()
    for t in range(3, 9):
        logs = np.log(np.concatenate([part for day in DAYS[max(t - 4, 0):t] for part in sizes[day]]))
        edge = np.exp(logs.mean() + logs.std())
        frame = mine[DAYS[t]]
        up, down = (series(store, code, name)[t] for name in ("limit_up", "limit_down"))   # the factor is 1
        open_bars = bars(DAYS[t]).filter((pl.col("instrument").cast(str) == code) & (pl.col("minute") <= 30)).to_pandas()
        free = open_bars[~((open_bars["low"] >= up - 0.005) | (open_bars["high"] <= down + 0.005))]
        locked += 2 - len(free)
        money, minute = frame["price"] * frame["quantity"], frame["millisecond"] // 900_000 * 15 - 555
        large = [frame[side].map(size) > edge for side, size in zip(("buy_order", "sell_order"), sizes[DAYS[t]])]
        net = (money * (large[0].astype(int) - large[1]) * minute.isin(open_bars["minute"])).sum()
        np.testing.assert_allclose(found[t], net / open_bars["amount"].sum(), rtol=1e-5)
        net = (money * frame["side"] * minute.isin(free["minute"])).sum()
        np.testing.assert_allclose(active[t], net / free["amount"].sum() if len(free) else np.nan, rtol=1e-5)
    assert 0 < locked < 12
    before, values = results(store), fields(store)
    write_day(folder, "trades", np.datetime64(DAYS[4], "D"), trades(DAYS[4], count=90))
    build_intraday(store, factors=names, options=options)
    changed = [name for name, time in results(store).items() if before[name] != time]
    assert sorted(changed) == [str(day.date()) for day in DAYS[4:9]] and fields(store) != values
    assert read_metadata(store)["intraday"]["limits"] is True


def test_thresholds_count_trading_days_not_those_of_the_folder(tmp_path):
    """Days that the folder lacks are days all the same: what lies more of them back than the option says decides nothing."""
    found = {}
    for name, days in (("all", DAYS[:12]), ("hole", DAYS[:3].append(DAYS[9:12]))):
        store, folder = build_store(tmp_path / name), build_folder(tmp_path / f"{name}.intraday", DAYS[:12])
        for day in days:
            write_day(folder, "trades", np.datetime64(day, "D"), trades(day))
        for day in DAYS[:12].difference(days):
            shutil.rmtree(folder / TABLE / f"date={day.date()}")
        build_intraday(store, factors=["hf_large_buy_share"], options={"min_threshold_days": 2, "threshold_days": 4})
        found[name] = series(store, CODES[2], "hf_large_buy_share_1d")
    assert np.isfinite(found["all"][9:12]).all() and np.isnan(found["hole"][9:11]).all(), "three days of the folder, none of the last four"
    assert np.isfinite(found["hole"][11]) and found["hole"][11] != found["all"][11]


def test_bars_with_the_auction_inside(tmp_path, caplog):
    """Factors of trades are those of bars that have it apart."""
    day, made = np.datetime64(DAYS[0], "D"), {}
    auction = trades(DAYS[0], count=6).with_columns(millisecond=pl.lit(33_900_000, pl.Int64)).with_columns(
        sequence=pl.int_range(pl.len()).over("instrument"))
    later = trades(DAYS[0]).with_columns(pl.col("sequence") + 6)
    money = auction.group_by("instrument").agg(volume=pl.col("quantity").sum(), amount=(pl.col("price") * pl.col("quantity")).sum())
    own = later.filter(pl.col("millisecond") < 35_100_000).group_by("instrument").agg(
        volume=pl.col("quantity").sum(), amount=(pl.col("price") * pl.col("quantity")).sum())

    def first_bar(frame: pl.DataFrame, sums: pl.DataFrame, keep: bool) -> pl.DataFrame:
        """The first bars of the day with sums in place of, or beside, their volume and amount."""
        frame = frame.with_columns(pl.col("instrument").cast(str)).join(sums, on="instrument", how="left", suffix="_more")
        known = (pl.col("minute") == 15) & pl.col("volume_more").is_not_null()
        names = ("volume", "amount")
        made = [pl.when(known).then(pl.col(f"{one}_more") + keep * pl.col(one)).otherwise(one).alias(one) for one in names]
        return frame.with_columns(made).drop("volume_more", "amount_more").with_columns(pl.col("instrument").cast(pl.Categorical))

    apart = first_bar(bars(DAYS[0]), own, False)
    inside = first_bar(apart, money, True)
    for name, table, setting in (("apart", apart, "apart"), ("inside", inside, "inside"), ("absent", apart, "inside"),
                                 ("unsaid", inside, None)):
        store, folder = build_store(tmp_path / name), tmp_path / f"{name}.intraday"
        write_day(folder, TABLE, day, table)
        write_day(folder, "trades", day, pl.concat([auction, later]).sort("instrument", "millisecond", "sequence"))
        describe(folder, TABLE, {"opening_auction": setting} if setting else {})
        with caplog.at_level(logging.WARNING, "qlib_ext.store"):
            caplog.clear()
            build_intraday(store, factors=["hf_buy_intention_share_proxy"], options={"proxy": True})
        assert ("hold the opening auction inside the first one" in caplog.text) == (setting == "inside")
        assert read_metadata(store)["intraday"]["auction_inside"] is (setting == "inside")
        made[name] = np.array([series(store, code, "hf_buy_intention_share_proxy_1d")[0] for code in CODES[:6]])
    np.testing.assert_allclose(made["inside"], made["apart"], rtol=1e-6)
    np.testing.assert_allclose(made["absent"], made["apart"], rtol=1e-6)
    assert np.isfinite(made["apart"]).any() and not np.allclose(made["unsaid"], made["apart"], rtol=1e-3, equal_nan=True)


def test_fields_without_a_value_are_left_out_and_said(tmp_path, caplog):
    """Three stocks with trades are too few beside industries and regressors; three days too few for a mean of five that asks for four."""
    store, folder = build_store(tmp_path / "store"), build_folder(tmp_path / "store.intraday", DAYS[:6])
    for day in DAYS[:6]:
        write_day(folder, "trades", np.datetime64(day, "D"), trades(day, CODES[:3]))
    names, endings = ["hf_skew", "hf_large_buy_share"], ("_1d", "", "_orth")
    for days, lost, why in ((1, ["_orth"], "no day has enough stocks with a value beside industries and regressors: hf_large_buy_share_o"),
                            (4, ["", "_orth"], "2 fields are left out, since no stock has a value on enough of 5 trading days in a row")):
        with caplog.at_level(logging.WARNING, "qlib_ext.store"):
            caplog.clear()
            build_intraday(store, factors=names, options={"min_threshold_days": days})
        about = read_metadata(store)["intraday"]
        assert [f"hf_large_buy_share{one}" in about["left_out"] for one in endings] == [one in lost for one in endings]
        assert why in caplog.text and "hf_large_buy_share_1d" in about["fields"] and "hf_skew_orth" in about["fields"]
        assert bool(list(store.glob("features/*/hf_large_buy_share.day.bin"))) == (days == 1)
    assert about["regressors"]["industry"] == 4, "days on which something was orthogonalised"
    check_files(store)


def test_instruments_that_the_store_lacks_are_named(tmp_path, caplog):
    store, folder = build_store(tmp_path / "store"), tmp_path / "store.intraday"
    for day in DAYS[:2]:
        write_day(folder, TABLE, np.datetime64(day, "D"), bars(day, [*CODES, "SH601001", "SZ000001"]))
    with caplog.at_level(logging.WARNING, "qlib_ext.store"):
        build_intraday(store, factors=["hf_skew"])
    assert "2 instruments of the intraday folder are no stocks of the store and have no fields: SH601001, SZ000001" in caplog.text
