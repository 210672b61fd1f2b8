"""Is it a store, and which one."""

import json
import shutil
from datetime import date

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store import check_files, check_store, fingerprint, read_metadata, read_table
from qlib_ext.store.append import append
from qlib_ext.store.ingest import ingest
from qlib_ext.store.metadata import combine, digest
from qlib_ext.store.schema import TABLES


def test_what_is_no_store_is_named(tmp_path, small_store):
    with pytest.raises(DataError, match="does not exist; make one with `python -m qlib_ext.store ingest"):
        check_store(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is an empty folder"):
        check_store(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        check_store(tmp_path / "file")
    shutil.copytree(small_store, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "features")
    (tmp_path / "half" / "calendars" / "day.txt").write_text("")
    with pytest.raises(DataError, match="lacks a calendar .*, features"):
        fingerprint(tmp_path / "half")


def test_broken_metadata(tmp_path, small_store):
    store = shutil.copytree(small_store, tmp_path / "store")
    file = store / "qlib_ext_store.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(DataError, match="has format 99"):
        read_metadata(store)
    file.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        fingerprint(store)
    for broken in ([1], None, "text", {"format": 2, "fingerprint": "x"}, {**content, "history": None, "spans": []}):
        if isinstance(broken, dict):
            broken.pop("history", None)
        file.write_text(json.dumps(broken))
        with pytest.raises(DataError, match="qlib_ext_store.json cannot be read .*; ingest the tables again"):
            read_metadata(store)


@pytest.mark.parametrize("key", ["vwap", "index_names", "index_sizes", "generated", "table_digests"])
def test_an_append_names_what_the_metadata_lack(tmp_path, small_store, tables, key):
    store = shutil.copytree(small_store, tmp_path / "store")
    file = store / "qlib_ext_store.json"
    content = json.loads(file.read_text())
    del content[key]
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"qlib_ext_store.json lacks \['{key}'\]; ingest all days again"):
        append(tables, store)


def test_the_fingerprint_is_the_hash_of_all_files(small_store):
    metadata = read_metadata(small_store)
    found = [path for path in small_store.rglob("*") if path.is_file()]
    files = {path.relative_to(small_store).as_posix(): digest(path.read_bytes()) for path in found}
    del files["qlib_ext_store.json"]
    tables = {name: files.pop(f"tables/{name}.parquet") for name in metadata["tables"]}
    codes = {number: entry["code"] for number, entry in metadata["industry_codes"].items()}
    assert combine(files, {"vwap": "typical", "industry_codes": codes}) == fingerprint(small_store) == metadata["fingerprint"]
    assert tables == metadata["table_digests"]
    assert metadata["history"] == [{"end": "2020-03-04", "fingerprint": fingerprint(small_store)}]
    assert metadata["units_checked"] and metadata["index_sizes"] == {"csi300": 300, "csi500": 500}
    check_files(small_store)


def test_kept_tables_enter_the_fingerprint(tables, small_store, tmp_path):
    """Also in any order of rows and whoever wrote their file."""
    terms = pd.DataFrame({"instrument": "SH110059", "date": pd.to_datetime(["2020-01-07", "2020-02-10"]), "stock": "SH600000",
                          "conversion_price": [9.1, 8.7]})  # fmt: skip
    found = set()
    for number, given in enumerate((terms, terms[::-1], terms[:1], terms.assign(conversion_price=[9.1, 8.8]))):
        store = ingest({**tables, "bond_terms": given}, tmp_path / str(number), index_names=("csi300", "csi500"))
        check_files(store)
        found.add(fingerprint(store))
    assert len(found) == 3 and fingerprint(small_store) not in found


@pytest.mark.parametrize("name", ["features/sz000001/open.day.bin", "instruments/csi300.txt", "tables/bars.parquet"])
def test_a_changed_file_is_noticed(tmp_path, small_store, name):
    store = shutil.copytree(small_store, tmp_path / "store")
    (store / name).write_bytes((store / name).read_bytes()[:-1] + b"?")
    what = "table bars" if "bars" in name else "calendars"
    with pytest.raises(DataError, match=f"was changed after it was published: {what}"):
        check_files(store)


def test_an_added_file_is_noticed(tmp_path, small_store):
    store = shutil.copytree(small_store, tmp_path / "store")
    shutil.copytree(store / "features" / "sz000001", store / "features" / "sz000009")
    with pytest.raises(DataError, match="was changed after it was published"):
        check_files(store)
    (store / "qlib_ext_store.json").unlink()
    with pytest.raises(DataError, match="does not record"):
        check_files(store)


def test_a_day_of_a_fingerprint(small_store):
    whole = fingerprint(small_store)
    days = ("2020-01-10", date(2020, 3, 4), np.datetime64("2019-01-01"), pd.Timestamp("2020-03-04"))
    assert {fingerprint(small_store, day) for day in days} == {whole}
    with pytest.raises(DataError, match="ends on 2020-03-04, before 2020-03-05"):
        fingerprint(small_store, until="2020-03-05")
    with pytest.raises(ConfigError, match="is no day"):
        fingerprint(small_store, until="march")


def test_kept_tables_as_they_were_known(small_store, tables):
    for name, frame in tables.items():
        kept = read_table(small_store, name)
        assert len(kept) == len(frame) and set(kept.columns) <= set(TABLES[name].columns), name
    day = pd.Timestamp("2020-01-14")
    reports = read_table(small_store, "fundamentals", until=day)
    assert len(reports) == (tables["fundamentals"]["announcement"] <= day).sum() and reports["announcement"].max() == day
    assert read_table(small_store, "bars", until="2020-01-14")["date"].max() == day
    spans = read_table(small_store, "membership", until=day)
    assert spans["start"].max() <= day and spans["end"].isna().sum() == 3 and spans["end"].max() <= day
    listed = read_table(small_store, "instruments", until="2019-06-27")
    assert "SH688001" not in set(listed["instrument"]) and listed["delist_date"].isna().all()
    with pytest.raises(DataError, match=r"keeps no table etf_baskets; it keeps \['bars'"):
        read_table(small_store, "etf_baskets")


def test_float_shares_that_look_ahead_were_not_known(small_store, tables):
    methods = read_table(small_store, "float_shares_monthly", until="2020-03-04")["method"]
    assert set(methods) == {"turnover", "ffill"} and len(methods) == len(tables["float_shares_monthly"]) - 2
    assert "snapshot_bfill" in set(read_table(small_store, "float_shares_monthly")["method"])


@pytest.mark.parametrize("name", ["../tables/bars", "/etc/hosts", "bars.parquet", "", "features"])
def test_only_tables_of_the_schema_are_read(small_store, name):
    with pytest.raises(ConfigError, match="unknown table .*; known are"):
        read_table(small_store, name)


def test_a_store_from_elsewhere_has_a_fingerprint(tmp_path, small_store):
    store = shutil.copytree(small_store, tmp_path / "store")
    (store / "qlib_ext_store.json").unlink()
    assert read_metadata(store) is None
    first = fingerprint(store)
    assert first == fingerprint(shutil.copytree(store, tmp_path / "copy"))
    with (store / "instruments" / "all.txt").open("a") as file:
        file.write("SZ300002\t2020-01-02\t2020-01-03\n")
    second = fingerprint(store)
    (store / "features" / "sz000001" / "open.day.bin").unlink()
    assert len({first, second, fingerprint(store)}) == 3


def test_doubtful_days_and_units_that_nothing_could_check_are_named(tables, tmp_path, caplog):
    for name in ("bars", "index_bars"):
        frame = tables[name]
        saturday = frame[frame["date"] == "2020-02-14"].assign(date=pd.Timestamp("2020-02-15"))
        frame = frame[~frame["date"].isin(pd.to_datetime(["2020-02-18", "2020-02-20"]))]
        tables[name] = pd.concat([frame, saturday]).sort_values(["instrument", "date"], ignore_index=True)
    ingest(tables, tmp_path / "first")
    assert "2 weekdays are missing in the calendar and no holiday explains them, first 2020-02-18; correct" in caplog.text
    assert "1 days of the calendar are on a weekend, first 2020-02-15" in caplog.text and "units" not in caplog.text
    tables["bars"] = tables["bars"].drop(columns=["amount", "turnover"]).assign(factor=1.0)
    del tables["dividends"]
    ingest(tables, tmp_path / "second")
    assert "units of volume, amount, turnover and prices could not be checked" in caplog.text


def test_a_sound_calendar_is_not_doubted(tables, tmp_path, caplog):
    ingest(tables, tmp_path / "store")
    assert "calendar" not in caplog.text and "units" not in caplog.text
