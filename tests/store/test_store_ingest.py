"""What an ingested store holds, against expectations computed here row by row."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from store_market import STOCKS, make_tables, read_field

from qlib_ext.store import check_store, fingerprint, read_metadata
from qlib_ext.store.ingest import ingest


def rows_of(code: str) -> pd.DataFrame:
    bars = make_tables()["bars"]
    return bars[bars["instrument"] == code].set_index("date")


def same(stored: pd.Series, expected: pd.Series) -> None:
    np.testing.assert_array_equal(stored.index, expected.index)
    np.testing.assert_allclose(stored.to_numpy(), expected.to_numpy(dtype=np.float64), rtol=2e-7, equal_nan=True)


@pytest.mark.parametrize("code", ["SH600000", "SH688001", "SZ000001"])
def test_traded_rows_are_adjusted(small_store, code):
    rows = rows_of(code)
    for name in ("open", "high", "low", "close"):
        same(read_field(small_store, code, name), rows[name] * rows["factor"])
    same(read_field(small_store, code, "volume"), rows["volume"] / rows["factor"])
    same(read_field(small_store, code, "amount"), rows["amount"])
    same(read_field(small_store, code, "turnover"), rows["turnover"])
    same(read_field(small_store, code, "vwap"), (rows["high"] + rows["low"] + rows["close"]) / 3 * rows["factor"])
    close = rows["close"] * rows["factor"]
    np.testing.assert_allclose(read_field(small_store, code, "change"), close / close.shift() - 1, atol=1e-7)


def test_suspended_days_are_nan_and_states_are_carried(small_store):
    code = "SZ300001"
    rows = rows_of(code)
    days = rows_of("SH600000").index
    suspended = days[[12, 13, 14, 20, 21]]
    for name in ("open", "high", "low", "close", "vwap", "volume", "amount", "turnover", "change"):
        stored = read_field(small_store, code, name)
        assert list(stored.index) == list(days)
        assert stored[suspended].isna().all(), name
        assert stored.drop(suspended).isna().sum() == (name == "change"), name
    close = (rows["close"] * rows["factor"])[rows["volume"] > 0]
    change = read_field(small_store, code, "change")
    assert change[days[15]] == pytest.approx(close[days[15]] / close[days[11]] - 1, abs=1e-6)
    assert change[days[22]] == pytest.approx(close[days[22]] / close[days[19]] - 1, abs=1e-6)
    for name in ("factor", "is_st"):
        assert read_field(small_store, code, name).notna().all()
    assert read_field(small_store, code, "factor")[days[20]] == np.float32(4.8)
    cap = read_field(small_store, code, "float_cap")
    assert cap[days[13]] == pytest.approx(rows["close"][days[11]] * 800e3, rel=1e-6)
    assert cap[days[21]] == pytest.approx(rows["close"][days[19]] * 840e3, rel=1e-6)  # 5 % bonus shares on day 15
    assert read_field(small_store, code, "csi300_weight")[days[20]] > 0


def test_status_and_unknown(small_store):
    days = rows_of("SH600000").index
    first = read_field(small_store, "SH600000", "is_st")
    assert first[days[5]] == 1 and first.drop(days[5]).eq(0).all()
    assert read_field(small_store, "SZ000001", "is_st")[days[25] :].isna().all()
    assert np.isnan(read_field(small_store, "SZ000001", "amount")[days[7]])


def test_float_shares_count_from_the_day_after_and_bfill_is_unknown(small_store):
    """20 % bonus shares of SH600000 and 5 % of SZ300001 go ex on 2020-01-23."""
    first = read_field(small_store, "SH600000", "float_shares")
    expected = np.select([first.index < "2020-01-23", first.index <= "2020-01-31"], [1000e3, 1200e3], 1100e3)
    same(first, pd.Series(expected, first.index))
    late = read_field(small_store, "SZ300001", "float_shares")
    assert late[:"2020-01-15"].isna().all() and (late["2020-01-16":"2020-01-22"] == 800e3).all()
    assert (late["2020-01-23":] == 840e3).all() and read_field(small_store, "SH688001", "float_shares").isna().all()
    same(read_field(small_store, "SH600000", "float_cap"), rows_of("SH600000")["close"] * expected)


def test_total_shares_and_cap(small_store):
    total = read_field(small_store, "SH600000", "total_shares")
    expected = np.where((total.index >= "2020-01-23") & (total.index <= "2020-01-31"), 1800e3, 1500e3)
    same(total, pd.Series(expected, total.index))
    same(read_field(small_store, "SH600000", "total_cap"), rows_of("SH600000")["close"] * expected)
    for field in ("total_shares", "total_cap"):
        assert read_field(small_store, "SZ300001", field).isna().all() and read_field(small_store, "SH688001", field).isna().all()


def split_market(day: int, resumes: int) -> dict:
    """SH600000 and SZ000001 always of one value; SH600000 trades again on day `resumes`, after a split in two on day `day`."""
    tables = make_tables()
    days = rows_of("SH600000").index
    bars = tables["bars"].query("instrument in ('SH600000', 'SZ000001')").copy()
    factor = np.where((bars["instrument"] == "SH600000") & (bars["date"] >= days[day]), 2.0, 1.0)
    bars = bars.assign(factor=factor, volume=1e4, is_st=0, **{name: 20 / factor for name in ("open", "high", "low", "close")})
    bars = bars.drop(columns=["amount", "turnover"])
    bars = bars[~((bars["instrument"] == "SH600000") & (bars["date"] >= days[day]) & (bars["date"] < days[resumes]))]
    ends = pd.to_datetime(["2019-12-31", "2020-01-31", "2019-12-31"])
    shares = pd.DataFrame({"month": ends, "instrument": ["SH600000", "SH600000", "SZ000001"], "float_shares": [1e6, 2e6, 1e6]})
    codes = {"instrument": ["SH600000", "SZ000001"]}
    span = {"start": pd.Timestamp("2019-01-01"), "end": pd.Timestamp("2020-12-31")}
    membership = pd.DataFrame({**codes, "index": "csi300", **span})
    paid = pd.DataFrame({"instrument": ["SH600000"], "ex_date": days[day], "cash": 0.0, "bonus": 1.0})
    return {"bars": bars, "index_bars": tables["index_bars"], "membership": membership, "float_shares_monthly": shares,
            "dividends": paid}  # fmt: skip


@pytest.mark.parametrize("day, resumes", [(10, 10), (10, 13), (20, 23), (22, 22)])
def test_a_split_leaves_caps_and_weights(tmp_path, day, resumes):
    """A split inside January, traded at once or suspended; one whose suspension lies across the value of 01-31, which counts the
    new shares already; one on the day after that value. The cap is 20 CNY x 1,000,000 on every day, the weight a half."""
    tables = split_market(day, resumes)
    if day == 22:
        tables["float_shares_monthly"].loc[1, "float_shares"] = 1e6
    days = rows_of("SH600000").index
    with_dividends = ingest(tables, tmp_path / "one", index_names=("csi300",))
    del tables["dividends"]
    if day == 20:  # without dividends a value counts the shares of the last day traded up to it: 2020-01-29
        tables["float_shares_monthly"].loc[1, "float_shares"] = 1e6
    without = ingest(tables, tmp_path / "two", index_names=("csi300",))
    for store in (with_dividends, without):
        np.testing.assert_allclose(read_field(store, "SH600000", "float_cap"), 2e7, rtol=1e-6)
        np.testing.assert_allclose(read_field(store, "SH600000", "csi300_weight"), 0.5, rtol=1e-6)
    grown = read_field(with_dividends, "SH600000", "float_shares")
    same(grown, pd.Series(np.where(grown.index < days[day], 1e6, 2e6), grown.index))
    published = read_field(without, "SH600000", "float_shares")
    assert (published[:"2020-01-31"] == 1e6).all() and published.iloc[-1] == (1e6 if day >= 20 else 2e6)


def test_dividends_lie_on_their_ex_dates(tables, tmp_path):
    days = rows_of("SH600000").index
    weekend = pd.Timestamp("2020-02-01")
    more = [("SH688001", days[3], 0.5, 0.0), ("SH600000", weekend, 0.3, 0.0), ("SZ999999", days[3], 0.5, 0.0),
            ("SZ300001", days[13], 0.25, 0.1), ("SZ300001", days[20], 0.0, 0.5),  # not listed, no trading day, no bars, suspended
            ("SZ000001", days[0], 0.1, 0.0), ("SH688001", days[10], 0.2, 0.3)]  # first days of the calendar and of a listing
    rows = pd.DataFrame(more, columns=["instrument", "ex_date", "cash", "bonus"])
    tables["dividends"] = pd.concat([tables["dividends"], rows], ignore_index=True)
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    for code in STOCKS:
        given = tables["dividends"].query("instrument == @code").set_index("ex_date")
        for field, column in (("cash_dividend", "cash"), ("bonus_shares", "bonus")):
            stored = read_field(store, code, field)
            expected = given[column].reindex(stored.index).fillna(0.0)
            same(stored, expected)
    assert read_field(store, "SZ300001", "bonus_shares")[days[[13, 15, 20]]].tolist() == [np.float32(0.1), np.float32(0.05), 0.5]
    counts = read_metadata(store)["counts"]
    assert counts["ex_dates"] == 7 and counts["ex_dates_left_out"] == 3


def test_industry_is_point_in_time(small_store):
    days = rows_of("SH600000").index
    assert (read_field(small_store, "SH600000", "industry") == 48).all()
    moved = read_field(small_store, "SZ000001", "industry")
    assert (moved[: days[9]] == 43).all() and (moved[days[10] :] == 49).all()
    ended = read_field(small_store, "SZ300001", "industry")
    assert (ended[: days[3]] == 27).all() and ended[days[4] :].isna().all()
    assert read_field(small_store, "SH688001", "industry").isna().all()
    assert read_metadata(small_store)["industry_codes"]["49"] == {"code": "49", "name": "finance"}


def test_other_industry_codes_are_numbered_by_first_start(tables, tmp_path):
    tables["industry"] = tables["industry"].replace({"l1_code": {"48": "B", "43": "P", "49": "F", "27": "07"}})
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    codes = {entry["code"]: int(number) for number, entry in read_metadata(store)["industry_codes"].items()}
    assert codes == {"07": 10_000_000, "B": 10_000_001, "P": 10_000_002, "F": 10_000_003}
    assert read_field(store, "SZ000001", "industry").iloc[-1] == 10_000_003


def test_vwap_by_amount(tables, tmp_path):
    store = ingest(tables, tmp_path / "store", vwap="amount", index_names=("csi300",))
    rows = rows_of("SZ000001")
    same(read_field(store, "SZ000001", "vwap"), rows["amount"] / rows["volume"] * rows["factor"])
    metadata = read_metadata(store)
    assert metadata["vwap"] == "amount" and metadata["counts"]["vwap_unknown_cells"] == 1
    assert metadata["counts"]["vwap_outside_low_high"] == 0
    tables["bars"].loc[[3, 4], "amount"] *= [1.021, 0.97]  # 1.022 x close above high, 0.971 x close below low
    other = ingest(tables, tmp_path / "other", vwap="amount", index_names=("csi300",))
    assert read_metadata(other)["counts"]["vwap_outside_low_high"] == 2


def test_indices_and_calendar(small_store):
    days = (small_store / "calendars" / "day.txt").read_text().split()
    assert days[0] == "2019-12-19" and len(days) == 55 and days == sorted(days)
    frame = make_tables()["index_bars"].query("instrument == 'SH000300'").set_index("date")
    for name in ("open", "high", "low", "close", "volume"):
        same(read_field(small_store, "SH000300", name), frame[name])
    assert (read_field(small_store, "SH000300", "factor") == 1).all()
    same(read_field(small_store, "SH000300", "vwap"), (frame["high"] + frame["low"] + frame["close"]) / 3)
    assert not (small_store / "features" / "sh000300" / "amount.day.bin").exists()


def test_instruments_files(small_store):
    read = lambda name: (small_store / "instruments" / f"{name}.txt").read_text().splitlines()  # noqa: E731
    days = rows_of("SH600000").index.strftime("%Y-%m-%d")
    assert read("all") == [f"{code}\t{days[10 if code == 'SH688001' else 0]}\t{days[-1]}" for code in STOCKS]
    indices = ["CSI300PR", "CSI300TR", "CSI500PR", "CSI500TR", "SH000300", "SH000852"]
    assert [line.split("\t")[0] for line in read("index")] == indices
    assert read("csi300")[:2] == ["SH600000\t2019-01-01\t2020-12-31", f"SZ000001\t2019-01-01\t{days[29]}"]
    assert read("csi300")[2:] == [f"SZ300001\t{days[18]}\t2020-12-31"]
    assert read("csi500")[1:] == [f"SZ000001\t{days[5]}\t{days[8]}", f"SZ000001\t{days[30]}\t2020-12-31"]
    counts = read_metadata(small_store)["counts"]["membership"]["csi300"]
    assert counts["spans_without_bars"] == 1 and counts["codes_without_bars"] == 1


def test_funds_and_bonds_have_bars_and_files_of_their_own(tables, tmp_path):
    """An ETF and a bond told by their codes, and one that only table instruments tells; none of them is among all stocks."""
    bars = tables["bars"]
    like = bars[bars["instrument"] == "SH600000"]
    codes = {"SH510300": "etf", "SH113050": "bond", "SH600900": "etf"}
    tables["bars"] = pd.concat([bars, *(like.assign(instrument=code) for code in codes)], ignore_index=True)
    told = pd.DataFrame({"instrument": ["SH600900"], "kind": "etf", "list_date": pd.Timestamp("2012-01-04")})
    tables["instruments"] = pd.concat([tables["instruments"], told], ignore_index=True)
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    read = lambda name: (store / "instruments" / f"{name}.txt").read_text().splitlines()  # noqa: E731
    assert [line.split("\t")[0] for line in read("all")] == STOCKS
    assert [line.split("\t")[0] for line in read("etf")] == ["SH510300", "SH600900"] and len(read("bond")) == 1
    assert read_metadata(store)["kinds"] == {"stock": 4, "index": 4, "etf": 2, "bond": 1}
    stock_fields = {file.name for file in (store / "features" / "sh600000").iterdir()}
    for code in codes:
        fields = {file.name for file in (store / "features" / code.lower()).iterdir()}
        left_out = {"industry", "float_shares", "float_cap", "csi300_weight", "equity", "cash_dividend", "report_age"}
        assert fields < stock_fields and not {f"{name}.day.bin" for name in left_out} & fields
        for field in ("open", "close", "volume", "amount", "turnover", "vwap", "change", "factor", "is_st"):
            pd.testing.assert_series_equal(read_field(store, code, field), read_field(store, "SH600000", field))
    limit = read_field(store, "SH510300", "limit_up") / read_field(store, "SH510300", "factor")
    thousandths = (limit * 1000).dropna().to_numpy(dtype=float)
    assert np.abs(thousandths - thousandths.round()).max() < 0.01 and (thousandths.round() % 10 != 0).any()


def test_what_stands_in_is_said(tables, tmp_path, caplog):
    """Unknown ST, a code of no known kind, ex-dates without a day, reports and the comparison of weights are in the log."""
    bars = tables["bars"]
    tables["bars"] = pd.concat([bars, bars[bars["instrument"] == "SH600000"].assign(instrument="SH900901")], ignore_index=True)
    more = pd.DataFrame({"instrument": ["SH600000"], "ex_date": pd.Timestamp("2020-02-01"), "cash": 0.1, "bonus": 0.0})
    tables["dividends"] = pd.concat([tables["dividends"], more], ignore_index=True)
    with caplog.at_level(logging.INFO, logger="qlib_ext.store"):
        store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    for text in ("1 codes of no known kind count as stocks", "special treatment is unknown on 12.3 %", "left out 1 of 4 ex-dates",
                 "reports: 15, 1 of them restated", "csi300: weights by float cap alone differ"):
        assert text in caplog.text, text
    assert "SH900901" in (store / "instruments" / "all.txt").read_text()
    assert read_field(store, "SH900901", "limit_up").isna().all()


def test_stocks_stop_at_their_last_bar(tables, tmp_path):
    days = rows_of("SH600000").index
    bars = tables["bars"]
    tables["bars"] = bars[(bars["instrument"] != "SZ000001") | (bars["date"] <= days[35])]
    store = ingest(tables, tmp_path / "store", index_names=("csi300", "csi500"))
    assert f"SZ000001\t{days[0]:%Y-%m-%d}\t{days[35]:%Y-%m-%d}" in (store / "instruments" / "all.txt").read_text()
    for file in (store / "features" / "sz000001").iterdir():
        assert read_field(store, "SZ000001", file.name.split(".")[0]).index[-1] == days[35]
    left = read_field(store, "SH688001", "csi500_weight")  # the other goes on at its last price and cap as long as it is a member
    assert left[days[35]] < 1 and left[days[36]] == pytest.approx(left[days[35]], rel=0.2) and left[days[36]] < 1
    assert read_metadata(store)["weights"]["csi500"]["member_days_after_last_bar"] == len(days) - 36


def test_touching_spans_are_merged_and_counted(tables, tmp_path):
    extra = pd.DataFrame({"instrument": "SZ000001", "index": "csi300", "start": pd.to_datetime(["2020-02-13", "2020-12-01"]),
                          "end": pd.to_datetime(["2020-11-30", "2020-12-31"])})  # fmt: skip
    tables["membership"] = pd.concat([tables["membership"], extra])
    store = ingest(tables, tmp_path / "store")
    assert "SZ000001\t2019-01-01\t2020-12-31" in (store / "instruments" / "csi300.txt").read_text()
    counts = read_metadata(store)["counts"]
    assert counts["membership"]["csi300"]["spans_merged"] == 2 and counts["indices_without_members"] == ["csi1000"]
    assert not (store / "instruments" / "csi1000.txt").exists()


def test_metadata(small_store):
    metadata = json.loads((small_store / "qlib_ext_store.json").read_text())
    files = {path.name.split(".")[0] for path in (small_store / "features" / "sz000001").iterdir()}
    assert files == set(metadata["fields"]) and metadata["generated"] is False and metadata["format"] == 2
    assert metadata["fields"]["amount"]["unit"] == "CNY" and metadata["fields"]["close"]["adjusted"] is True
    assert metadata["spans"]["calendar"] == ["2019-12-19", "2020-03-04", 55]
    assert metadata["counts"]["float_shares_look_ahead_rows_left_out"] == 2
    assert metadata["counts"]["float_shares_monthly_codes_without_bars"] == 1
    assert metadata["kinds"] == {"stock": 4, "index": 6}
    assert check_store(small_store) == small_store


def test_same_tables_same_fingerprint(tables, small_store, tmp_path):
    shuffled = {name: frame.copy() for name, frame in tables.items()}
    shuffled["bars"] = shuffled["bars"].sort_values(["date", "instrument"])  # date-major: the same rows
    shuffled["bars"]["instrument"] = shuffled["bars"]["instrument"].astype("category")
    again = ingest(shuffled, tmp_path / "again", index_names=("csi300", "csi500"))
    assert fingerprint(again) == fingerprint(small_store)
    tables["bars"].loc[30, "close"] *= 1.0001
    assert fingerprint(ingest(tables, tmp_path / "other", index_names=("csi300", "csi500"))) != fingerprint(small_store)


def test_folder_of_parquet_or_csv_equals_frames(tables, small_store, tmp_path):
    for name, frame in tables.items():
        if name in ("bars", "industry", "membership"):
            frame.to_csv(tmp_path / f"{name}.csv", index=False)
        else:
            frame.to_parquet(tmp_path / f"{name}.parquet")
    store = ingest(tmp_path, tmp_path / "store", index_names=("csi300", "csi500"))
    for file in small_store.rglob("*.bin"):
        other = store / file.relative_to(small_store)
        np.testing.assert_allclose(np.fromfile(other, "<f4"), np.fromfile(file, "<f4"), rtol=1e-6)
    assert read_metadata(store)["counts"] == read_metadata(small_store)["counts"]


def test_optional_tables_and_columns_may_be_absent(tables, tmp_path):
    needed = {name: tables[name] for name in ("bars", "index_bars", "membership")}
    needed["bars"] = needed["bars"].drop(columns=["amount", "turnover", "is_st"])
    store = ingest(needed, tmp_path / "store")
    fields = read_metadata(store)["fields"]
    assert not {"amount", "turnover", "is_st", "industry", "float_cap"} & set(fields)
    weights = read_field(store, "SH600000", "csi300_weight")
    days = rows_of("SH600000").index
    assert weights[days[0]] == 0.5 and weights[days[20]] == np.float32(1 / 3) and weights[days[30]] == 0.5
    assert {span["source"] for span in read_metadata(store)["weights"]["csi300"]["spans"]} == {"equal"}
