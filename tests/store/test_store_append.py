"""New days for a store: the same bytes as one ingestion of all days, and everything published stays."""

import json
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
from store_market import business_days, make_tables, read_field

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store import check_files, fingerprint, read_metadata, read_table
from qlib_ext.store.append import append
from qlib_ext.store.ingest import ingest
from qlib_ext.store.schema import TABLES

NAMES = ("csi300", "csi500")
DAYS = business_days("2020-01-02", 45)
SPANS = ("membership", "industry", "instruments")


def part(tables: dict, first, last) -> dict:
    """The rows that become known on the days first..last."""
    frames = {}
    for name, frame in tables.items():
        dates = TABLES[name].dates
        day = frame["announcement" if "announcement" in dates else dates[0]]
        rows = frame[(day >= first) & (day <= last)]
        if len(rows):
            frames[name] = rows.reset_index(drop=True)
    return frames


def split(tables: dict, last) -> tuple:
    return part(tables, pd.Timestamp(0), last), part(tables, last + pd.Timedelta(days=1), pd.Timestamp("2100-01-01"))


def contents(store) -> dict:
    """Every file but the metadata and the kept tables."""
    files = (file for folder in ("calendars", "instruments", "features") for file in (store / folder).rglob("*"))
    return {file.relative_to(store).as_posix(): file.read_bytes() for file in files if file.is_file()}


@pytest.fixture
def grown(tables, tmp_path):
    """A store of the first 30 days, and the tables of the other 15."""
    old, new = split(tables, DAYS[29])
    return ingest(old, tmp_path / "store", index_names=NAMES), new


@pytest.mark.parametrize("cuts", [[29], [10], [14, 29], list(range(25, 45))])
def test_appends_equal_one_ingestion(tables, small_store, tmp_path, cuts):
    bounds = [DAYS[cut] for cut in cuts] + [pd.Timestamp("2100-01-01")]
    store = ingest(part(tables, pd.Timestamp(0), bounds[0]), tmp_path / "store", index_names=NAMES)
    ends = [bounds[0]]
    for first, last in zip(bounds, bounds[1:]):
        rows = part(tables, first + pd.Timedelta(days=1), last)
        if not len(rows):
            continue
        before = contents(store)
        append(rows, store)
        after = contents(store)
        for name, old in before.items():
            assert after[name].startswith(old) or name.startswith("instruments"), name
        ends.append(last)
    assert contents(store) == contents(small_store)
    assert fingerprint(store) == fingerprint(small_store)
    check_files(store)
    metadata, whole = read_metadata(store), read_metadata(small_store)
    assert [entry["end"] for entry in metadata["history"]][:-1] == [str(end.date()) for end in ends[:-1]]
    for name in whole:
        if name not in ("history", "created_by"):
            assert metadata[name] == whole[name], name
    for name in whole["tables"]:
        pd.testing.assert_frame_equal(read_table(store, name), read_table(small_store, name))


def test_a_fingerprint_until_a_day_survives_appends(grown):
    store, new = grown
    first = fingerprint(store)
    append(new, store)
    assert fingerprint(store) != first
    assert fingerprint(store, until=DAYS[29]) == fingerprint(store, "2020-01-20") == first
    assert fingerprint(store, until=DAYS[30]) == fingerprint(store)
    with pytest.raises(DataError, match="ends on 2020-03-04, before 2020-03-05"):
        fingerprint(store, "2020-03-05")


def test_settings_are_those_of_the_store(tables, tmp_path):
    old, new = split(tables, DAYS[29])
    chosen = {"vwap": "amount", "index_names": ("csi500",), "index_sizes": {"csi500": 2}, "generated": True}
    append(new, ingest(old, tmp_path / "store", **chosen))
    ingest(tables, tmp_path / "whole", **chosen)
    first, second = read_metadata(tmp_path / "store"), read_metadata(tmp_path / "whole")
    assert first["index_sizes"] == {"csi500": 2} and first["generated"] is True and first["vwap"] == "amount"
    assert {**first, "history": 0} == {**second, "history": 0}
    for sizes in ({"csi300": 2}, {"csi500": 0}, {"csi500": 1.5}):
        with pytest.raises(ConfigError, match="give whole numbers of members for indices among"):
            ingest(tables, tmp_path / "wrong", index_names=("csi500",), index_sizes=sizes)


def test_tables_that_stay_as_they_are_may_be_left_out(grown, tables):
    store, new = grown
    append({name: new[name] for name in ("bars", "index_bars")}, store)
    assert (read_field(store, "SH600000", "industry") == 48).all()
    assert len(read_table(store, "membership")) == len(part(tables, pd.Timestamp(0), DAYS[29])["membership"])


def test_event_tables_may_be_given_in_full(grown, tables, small_store):
    store, new = grown
    append({**tables, "bars": new["bars"], "index_bars": new["index_bars"]}, store)
    assert contents(store) == contents(small_store)


def test_a_folder_with_a_mapping_and_without_membership(grown, small_store, tmp_path):
    store, new = grown
    (tmp_path / "new").mkdir()
    for name, frame in new.items():
        frame = frame.rename(columns={"volume": "vol"}) if name == "bars" else frame
        frame.to_csv(tmp_path / "new" / f"{name}.csv", index=False)
    mapping = {"bars": {"columns": {"volume": "vol"}}, "industry": {"columns": {"l1_code": "level"}}}
    append(tmp_path / "new", store, columns=mapping)
    assert fingerprint(store, DAYS[20]) != fingerprint(store)
    np.testing.assert_allclose(read_field(store, "SH600000", "volume"), read_field(small_store, "SH600000", "volume"))


def test_kept_tables_grow(tables, tmp_path):
    """Bond terms and ETF baskets: rows of the past again (one with a number that went through text), and new ones."""
    terms = pd.DataFrame({"instrument": "SH110059", "date": DAYS[[3, 20, 40]], "stock": "SH600000",
                          "conversion_price": [9.1, 8.7, 8.2], "maturity": [pd.NaT, pd.NaT, pd.Timestamp("2025-10-27")],
                          "rating": ["AAA", None, "AA"]})  # fmt: skip
    baskets = pd.DataFrame({"instrument": "SH510300", "date": DAYS[[3, 3, 40, 40]], "member": ["SH600000", "SZ000001"] * 2,
                            "weight": [0.6, 0.4, 0.7, 0.3]})  # fmt: skip
    tables = {**tables, "bond_terms": terms, "etf_baskets": baskets}
    old, new = split(tables, DAYS[29])
    store = ingest(old, tmp_path / "store", index_names=NAMES)
    again = {**new, "bond_terms": terms.assign(conversion_price=[9.1 * (1 + 1e-15), 8.7, 8.2]), "etf_baskets": baskets}
    with pytest.raises(DataError, match="column weight, first .* date 2020-01-07, member SZ000001: 0.4 stored, 0.3"):
        append({**again, "etf_baskets": baskets.assign(weight=[0.6, 0.3, 0.7, 0.3])}, store)
    first = fingerprint(store)
    append(again, store)
    assert fingerprint(store) == fingerprint(ingest(tables, tmp_path / "whole", index_names=NAMES))
    assert fingerprint(store, DAYS[29]) == first
    for name in ("bond_terms", "etf_baskets"):
        kept = read_table(store, name)
        pd.testing.assert_frame_equal(kept, tables[name][kept.columns].astype(kept.dtypes), check_exact=True)
        assert len(read_table(store, name, until=DAYS[29])) == 2
    assert read_table(store, "bond_terms", until=DAYS[25])["conversion_price"].tolist() == [9.1, 8.7]


def test_a_column_that_an_event_table_gets_is_known_of_its_stored_rows_too(tables, small_store, tmp_path):
    old, new = split(tables, DAYS[29])
    old["float_shares_monthly"] = old["float_shares_monthly"].drop(columns="total_shares")
    store = ingest(old, tmp_path / "store", index_names=NAMES)
    append({**new, "float_shares_monthly": tables["float_shares_monthly"]}, store)
    assert contents(store) == contents(small_store)
    pd.testing.assert_frame_equal(read_table(store, "float_shares_monthly"), read_table(small_store, "float_shares_monthly"))


def test_rows_given_again_with_32_bits_are_the_stored_ones(grown, tables, small_store):
    store, new = grown
    again = tables["fundamentals"].astype({"eps": "float32"})
    assert (again["eps"] != tables["fundamentals"]["eps"]).sum() > 10
    append({**new, "fundamentals": again}, store)
    assert read_table(store, "fundamentals").equals(read_table(small_store, "fundamentals"))
    assert contents(store) == contents(small_store)


# ---- what a market does -------------------------------------------------------------------------------------------------------
def test_listings_delistings_and_stocks_that_come_back(tables, tmp_path, caplog):
    """SH605001 lists after the cut, SH688001 stops before it, SZ000009 has no rows around it and returns."""
    bars = tables["bars"]
    copy = bars[bars["instrument"] == "SH600000"]
    listed = copy[copy["date"] > DAYS[32]].assign(instrument="SH605001")
    away = copy[(copy["date"] < DAYS[25]) | (copy["date"] > DAYS[35])].assign(instrument="SZ000009")
    bars = bars[(bars["instrument"] != "SH688001") | (bars["date"] < DAYS[28])]
    tables["bars"] = pd.concat([bars, listed, away], ignore_index=True)
    old, new = split(tables, DAYS[29])
    store, whole = ingest(old, tmp_path / "store", index_names=NAMES), ingest(tables, tmp_path / "whole", index_names=NAMES)
    with caplog.at_level(logging.INFO):
        append(new, store)
    assert contents(store) == contents(whole) and fingerprint(store) == fingerprint(whole)
    assert "appended 15 days, 2020-02-13..2020-03-04" in caplog.text
    assert "1 instruments are new, first SH605001" in caplog.text and "1 instruments have no row after 2020-02-12" in caplog.text
    assert read_field(store, "SZ000009", "close")[DAYS[25] : DAYS[35]].isna().all()


def test_an_end_of_a_span_can_be_set(grown):
    store, new = grown
    leaves = pd.DataFrame({"instrument": ["SH600000"], "index": "csi300", "start": "2019-01-01", "end": [DAYS[40]]})
    new["membership"] = pd.concat([new["membership"], leaves.assign(start=pd.to_datetime(leaves["start"]))], ignore_index=True)
    append(new, store)
    assert f"SH600000\t2019-01-01\t{DAYS[40]:%Y-%m-%d}" in (store / "instruments" / "csi300.txt").read_text()
    assert read_field(store, "SH600000", "csi300_weight")[DAYS[41] :].isna().all()


def test_a_field_may_appear(tables, tmp_path, caplog):
    old, new = split(tables, DAYS[29])
    late = ("industry", "is_st")
    store = ingest({name: frame.drop(columns="is_st", errors="ignore") for name, frame in old.items() if name not in late},
                   tmp_path / "store", index_names=NAMES)  # fmt: skip
    before = contents(store)
    with caplog.at_level(logging.INFO):
        append({**new, "industry": tables["industry"]}, store)
    assert {"industry", "is_st"} <= set(read_metadata(store)["fields"])
    assert "field industry is new" in caplog.text and "field is_st is new" in caplog.text
    assert read_field(store, "SZ000001", "is_st")[: DAYS[29]].isna().all()
    assert all(contents(store)[name].startswith(old) for name, old in before.items() if name.startswith("features"))


# ---- what is refused ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def refuses(grown):
    """A function that appends, expects the named error, and an untouched store."""
    store, new = grown
    before = {file: file.read_bytes() for file in store.rglob("*") if file.is_file()}

    def check(match: str, tables=None):
        with pytest.raises(DataError, match=match):
            append(new if tables is None else tables, store)
        assert {file: file.read_bytes() for file in store.rglob("*") if file.is_file()} == before
        assert [path.name for path in store.parent.iterdir() if path.name.startswith(".")] == []

    return check


def test_days_the_store_has(refuses, tables, grown):
    refuses("table bars: 108 rows on or before 2020-02-12, the store's last day, first SH600000 on 2020-01-02; give", tables)
    old, _ = split(tables, DAYS[29])
    refuses("nothing new: the tables hold no day after 2020-02-12", old)


@pytest.mark.parametrize("lacks, has, at", [("bars", "index_bars", 30), ("bars", "index_bars", 38), ("index_bars", "bars", 44)])
def test_days_that_one_table_lacks(refuses, grown, lacks, has, at):
    _, new = grown
    new[lacks] = new[lacks][~new[lacks]["date"].isin(DAYS[at : at + 2])]
    count = len(DAYS[at : at + 2])
    refuses(f"table {lacks} lacks {count} days that table {has} has, first {DAYS[at]:%Y-%m-%d}; give the same days in both")


@pytest.mark.parametrize("at", [30, 37])
def test_days_without_half_the_market(refuses, grown, at):
    """The first new day is compared with the store's last one; a day of rows without volume counts as little as one without."""
    _, new = grown
    bars, day = new["bars"], (new["bars"]["date"] == DAYS[at]) & (new["bars"]["instrument"] != "SZ000001")
    match = f"half of the instruments trade .* first on {DAYS[at]:%Y-%m-%d}: 1 of the 4 of {DAYS[at - 1]:%Y-%m-%d}; suspended"
    refuses(match, {**new, "bars": bars[~day]})
    refuses(match, {**new, "bars": bars.assign(volume=bars["volume"].where(~day, 0))})


def test_half_of_a_market_may_be_suspended(grown):
    store, new = grown
    bars = new["bars"]
    away = bars["instrument"].isin(["SH688001", "SZ300001"]) & (bars["date"] > DAYS[33])
    append({**new, "bars": bars[~away]}, store)
    assert len(read_table(store, "bars").query("date == @DAYS[40]")) == 2


def test_days_left_out(refuses, grown):
    _, new = grown
    for name in ("bars", "index_bars"):
        new[name] = new[name][~new[name]["date"].isin(DAYS[[36, 38]])]
    refuses("2 trading days are left out between 2020-02-12, the store's last day, and 2020-03-04, first 2020-02-21")


def test_the_new_days_are_checked_like_any(refuses, grown):
    _, new = grown
    new["bars"].loc[3, "close"] = -1.0
    refuses("a negative or zero close")


def test_a_table_of_days_is_needed(refuses, grown):
    _, new = grown
    refuses("table bars is missing", {name: new[name] for name in new if name != "bars"})


def test_a_column_left_out(refuses, grown):
    _, new = grown
    new["bars"] = new["bars"].drop(columns=["amount", "is_st"])
    refuses(r"table bars lacks the columns \['amount', 'is_st'\], which the store has")


def test_a_row_that_contradicts_a_stored_one(refuses, grown, tables):
    _, new = grown
    changed = tables["float_shares_monthly"].copy()
    changed.loc[0, "float_shares"] = 1_000_500.0
    new["float_shares_monthly"] = changed
    refuses("1 rows change the past in column float_shares, first instrument SH600000, month 2019-12-31: 1000000.0 stored, 100")


def test_a_new_row_of_the_past(refuses, grown):
    _, new = grown
    new["float_shares_monthly"] = pd.DataFrame({"month": [DAYS[3]], "instrument": "SH600000", "float_shares": 1_050_000.0,
                                                "total_shares": 1_500_000.0, "method": "turnover"})  # fmt: skip
    refuses("up to 2020-02-12, its last day, first: float_shares of SH600000 on 2020-01-08: 1000000 stored, 1050000 now")


def test_rows_of_kept_tables_that_were_known_before(tables, tmp_path):
    """By announcement, else by date: rows on the store's last day are late, later ones are new, stored ones may come again."""
    terms = pd.DataFrame({"instrument": "SH110059", "date": DAYS[[3, 29, 30]], "stock": "SH600000",
                          "conversion_price": [9.1, 8.7, 8.2]})  # fmt: skip
    funds = pd.DataFrame({"instrument": "SH600000", "fund": "000011", "period_end": pd.Timestamp("2019-09-30"),
                          "announcement": DAYS[[2, 29, 30]], "weight": [0.01, 0.02, 0.03]})  # fmt: skip
    tables = {**tables, "bond_terms": terms[:1], "fund_holdings": funds[:1]}
    old, new = split(tables, DAYS[29])
    store = ingest(old, tmp_path / "store", index_names=NAMES)
    before = contents(store), read_metadata(store)
    with pytest.raises(DataError) as caught:
        append({**new, "bond_terms": terms, "fund_holdings": funds}, store)
    where = "1 rows that the store lacks and that were known on 2020-02-12, its last day, first"
    assert f"table bond_terms: {where} instrument SH110059, date 2020-02-12; leave" in str(caught.value)
    where += " instrument SH600000, period_end 2019-09-30, announcement 2020-02-12, fund 000011; leave"
    assert f"table fund_holdings: {where}" in str(caught.value)
    assert (contents(store), read_metadata(store)) == before
    append({**new, "bond_terms": terms[[True, False, True]], "fund_holdings": funds[[True, False, True]]}, store)
    assert len(read_table(store, "bond_terms")) == len(read_table(store, "fund_holdings")) == 2


def test_a_span_that_begins_within_a_stored_one(refuses, grown, tables):
    _, new = grown
    spans = tables["membership"]
    later = spans[spans["instrument"] == "SH600000"].assign(start=DAYS[40])
    refuses("1 spans begin within a stored one .* SH600000 in csi300: 2019-01-01..2020-12-31 is stored, one from 2020-02-27 on "
            "is given; give the stored span again with its end too", {**new, "membership": later})  # fmt: skip


@pytest.mark.parametrize("place", ["notes/x.txt", "calendars/day_future.txt", "features/README", "features/sz000001/mine.day.bin",
                                   "features/sz000009/close.day.bin", "instruments/mine.txt", "tables/more.csv"])  # fmt: skip
def test_files_of_somebody_else(grown, place):
    store, _ = grown
    (store / place).parent.mkdir(exist_ok=True)
    (store / place).write_text("words")
    named = place.split("/")[0] if "notes" in place else place.replace("/close.day.bin", "")
    with pytest.raises(DataError, match=rf"1 files or folders not written by this package, first \['{named}'\]: an append would"):
        append(grown[1], store)
    assert (store / place).read_text() == "words"


def test_an_index_that_is_left_out(refuses, grown):
    _, new = grown
    new["index_bars"] = new["index_bars"].query("instrument != 'SH000852' or date < @DAYS[33]")
    refuses(f"1 indices of the store lack bars on new days, first SH000852 on {DAYS[33]:%Y-%m-%d}")


def test_a_span_that_changes_the_past(refuses, grown, tables):
    _, new = grown
    spans = tables["membership"]
    first = spans[(spans["instrument"] == "SH600000")].assign(end=DAYS[20])
    refuses("SH600000 would be in csi300 until 2020-01-30, not 2020-12-31", {**new, "membership": first})
    other = first.assign(instrument="SH688001", start=DAYS[12], end=DAYS[14])
    refuses("SH688001 would join csi300 on 2020-01-20", {**new, "membership": other})


def test_a_table_given_for_the_first_time_that_changes_the_past(tables, tmp_path):
    old, new = split(tables, DAYS[29])
    del old["float_shares_monthly"]
    store = ingest(old, tmp_path / "store", index_names=NAMES)
    with pytest.raises(DataError, match="csi300_weight of SH600000 on 2020-01-28: 0.43883[0-9]{4} stored, 0.[0-9]{9} now"):
        append({**new, "float_shares_monthly": tables["float_shares_monthly"]}, store)


def test_fields_that_would_vanish(refuses, grown, tables):
    _, new = grown
    kinds = tables["instruments"].assign(kind="etf").query("instrument == 'SZ300001'")
    new["instruments"] = kinds
    refuses("SZ300001 would leave all from 2020-01-02 on(?s:.*)would be gone, first features/sz300001/")


def test_a_member_that_comes_back_after_days_without_rows(tables, tmp_path):
    """Whether it comes back is nothing the others' weights know of: on its days away they are the same with and without it."""
    bars, tables["membership"].loc[1, "end"] = tables["bars"], DAYS[44]
    away = (bars["instrument"] == "SZ000001") & bars["date"].between(DAYS[25], DAYS[35])
    tables["bars"] = bars[~away]
    old, new = split(tables, DAYS[29])
    store, whole = ingest(old, tmp_path / "store", index_names=NAMES), ingest(tables, tmp_path / "whole", index_names=NAMES)
    before = read_field(store, "SH600000", "csi300_weight")
    assert before[DAYS[29]] < 1 and "SZ000001" in (store / "instruments" / "csi300.txt").read_text()
    append(new, store)
    assert contents(store) == contents(whole) and fingerprint(store) == fingerprint(whole)
    assert read_field(store, "SH600000", "csi300_weight")[: DAYS[29]].equals(before)
    both = before + read_field(store, "SZ000001", "csi300_weight")
    assert both[: DAYS[17]].sub(1).abs().max() < 1e-6  # two members until then


def test_a_store_that_cannot_be_continued(grown, tmp_path):
    store, new = grown
    older = shutil.copytree(store, tmp_path / "older")
    metadata = json.loads((older / "qlib_ext_store.json").read_text())
    del metadata["history"]
    (older / "qlib_ext_store.json").write_text(json.dumps({**metadata, "format": 1}))
    assert fingerprint(older, "2020-01-10") == fingerprint(store)
    with pytest.raises(DataError, match="has format 1, which keeps no tables"):
        append(new, older)
    (older / "qlib_ext_store.json").unlink()
    with pytest.raises(DataError, match="was not made by qlib_ext"):
        append(new, older)
    with pytest.raises(DataError, match="does not exist"):
        append(new, tmp_path / "nowhere" / "store")
    assert not (tmp_path / "nowhere").exists()
    make_tables()["bars"].to_parquet(store / "tables" / "bars.parquet")
    with pytest.raises(DataError, match="bars.parquet is missing or was changed after the store was published"):
        append(new, store)
