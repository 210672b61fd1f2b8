"""Tables as other vendors write them give the same arrays through a column mapping; a wrong mapping is refused by name."""

import numpy as np
import pandas as pd
import pytest
from store_market import make_tables
from test_store_frames import assert_same

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.checks import check_tables
from qlib_ext.store.mapping import Mapped, read_mapping
from qlib_ext.store.tables import read_tables

TUSHARE = """
bars:
  file: daily.csv
  columns: {instrument: ts_code, date: trade_date, volume: vol, factor: adj_factor, turnover: turnover_rate}
  code: 000001.SZ
  scale: {volume: 100, amount: 1000}
index_bars:
  file: index_daily.csv
  columns: {instrument: ts_code, date: trade_date, volume: vol}
  code: 600000.SH
  scale: {volume: 100}
membership:
  columns: {instrument: con_code, index: index_code}
  code: 600000.SH
index_weights:
  file: index_weight.csv
  columns: {instrument: con_code, date: trade_date}
  code: 600000.SH
  constants: {index: csi300}
  unit: percent
float_shares_monthly:
  file: daily_basic.csv
  columns: {instrument: ts_code, month: trade_date, float_shares: float_share, total_shares: total_share}
  scale: {float_shares: 10000, total_shares: 10000}
  code: 600000.SH
fundamentals:
  columns: {instrument: ts_code, period_end: end_date, announcement: f_ann_date, sales: total_revenue, net_profit: n_income}
  code: 600000.SH
"""


def compact(days: pd.Series) -> pd.Series:
    return days.dt.strftime("%Y%m%d")


def behind(codes: pd.Series) -> pd.Series:
    """SH600000 as 600000.SH."""
    return codes.str[2:] + "." + codes.str[:2]


def write_tushare(folder) -> None:
    tables = make_tables()
    bars = tables["bars"].assign(ts_code=behind(tables["bars"]["instrument"]), trade_date=compact(tables["bars"]["date"]))
    bars["vol"], bars["amount"] = bars["volume"] / 100, bars["amount"] / 1000
    bars = bars.rename(columns={"factor": "adj_factor", "turnover": "turnover_rate"})
    bars.drop(columns=["instrument", "date", "volume"]).assign(pre_close=1.0).to_csv(folder / "daily.csv", index=False)
    index = tables["index_bars"].assign(vol=tables["index_bars"]["volume"] / 100)
    index["ts_code"], index["trade_date"] = behind(index["instrument"]), compact(index["date"])
    index.drop(columns=["instrument", "date", "volume"]).to_csv(folder / "index_daily.csv", index=False)
    members = tables["membership"].assign(con_code=behind(tables["membership"]["instrument"]))
    members["index_code"] = members["index"].map({"csi300": "000300.SH", "csi500": "000905.SH"})
    members.drop(columns=["instrument", "index"]).to_csv(folder / "membership.csv", index=False)
    weights = tables["index_weights"].assign(con_code=behind(tables["index_weights"]["instrument"]))
    weights["trade_date"] = compact(weights["date"])
    weights[["con_code", "trade_date", "weight"]].to_csv(folder / "index_weight.csv", index=False)
    shares = tables["float_shares_monthly"]
    basic = pd.DataFrame({"ts_code": behind(shares["instrument"]), "trade_date": compact(shares["month"]),
                          "method": shares["method"]})
    basic["float_share"], basic["total_share"] = shares["float_shares"] / 1e4, shares["total_shares"] / 1e4
    basic.to_csv(folder / "daily_basic.csv", index=False)
    reports = tables["fundamentals"].assign(ts_code=behind(tables["fundamentals"]["instrument"]))
    names = {"period_end": "end_date", "announcement": "f_ann_date", "sales": "total_revenue", "net_profit": "n_income"}
    reports.drop(columns="instrument").rename(columns=names).to_parquet(folder / "fundamentals.parquet")


def test_a_tushare_like_folder(tmp_path):
    write_tushare(tmp_path)
    (tmp_path / "map.yaml").write_text(TUSHARE)
    found, expected = read_tables(tmp_path, tmp_path / "map.yaml"), read_tables(make_tables())
    assert set(found) == set(expected) - {"industry", "dividends", "instruments"}
    for name, table in found.items():
        assert_same(table, expected[name], rtol=1e-12)
    assert found["index_weights"].unit == "percent"
    check_tables(found, "amount")


def test_a_baostock_like_set_of_frames():
    """sh.600000, percent turnover as `turn`, `isST`; everything else as we call it."""
    tables = make_tables()
    for name in ("bars", "index_bars", "membership"):
        frame = tables[name].rename(columns={"instrument": "code", "turnover": "turn", "is_st": "isST"})
        tables[name] = frame.assign(code=frame["code"].str[:2].str.lower() + "." + frame["code"].str[2:])
    mapping = {name: {"columns": {"instrument": "code"}, "code": "sh.600000"} for name in ("bars", "index_bars", "membership")}
    mapping["bars"]["columns"].update(turnover="turn", is_st="isST")
    found, expected = read_tables(tables, mapping), read_tables(make_tables())
    for name, table in found.items():
        assert_same(table, expected[name])


@pytest.mark.parametrize("example, spelt", [
    ("600000.SH", ["600000.SH", "000001.SZ", "430047.BJ"]), ("sh.600000", ["sh.600000", "sz.000001", "bj.430047"]),
    ("SH.600000", ["SH.600000", "SZ.000001", "BJ.430047"]), ("000001.XSHE", ["600000.XSHG", "000001.XSHE", "430047.BJSE"]),
    ("sz000001", ["sh600000", "sz000001", "bj430047"]), ("SH600000", ["SH600000", "SZ000001", "BJ430047"]),
    ("600000.sh", ["600000.sh", "000001.sz", "430047.bj"]),
])
def test_spellings_of_codes(example, spelt):
    found = Mapped("bars", code=example).to_codes(pd.Series([*spelt, None, "odd"]))
    assert found[:3].tolist() == ["SH600000", "SZ000001", "BJ430047"] and pd.isna(found[3]) and found[4] == "odd"


def test_codes_of_indices():
    codes = pd.Series(["000300.SH", "399300.SZ", "000905.SH", "399905.SZ", "000852.SH"])
    found = Mapped("membership", code="600000.SH").to_texts("index", codes)
    assert found.tolist() == ["csi300", "csi300", "csi500", "csi500", "csi1000"]


def test_codes_that_are_not_spelled_like_the_example_are_refused():
    mapping = {"bars": {"code": "600000.SH"}}
    tables = make_tables()
    tables["bars"]["instrument"] = tables["bars"]["instrument"].str.lower()
    with pytest.raises(DataError, match="rows with a malformed code, first sh600000 .*column mapping"):
        check_tables(read_tables(tables, mapping), "typical")


def test_members_and_underlying_stocks_are_codes_too():
    tables = make_tables()
    tables["etf_baskets"] = pd.DataFrame(
        {"instrument": ["510300.SH"], "date": "2020-01-02", "member": ["000001.SZ"], "weight": 10})  # fmt: skip
    mapping = {"etf_baskets": {"code": "600000.SH", "scale": {"weight": 0.01}}}
    table = read_tables(tables, mapping)["etf_baskets"]
    assert table.instrument(0) == "SH510300" and table.texts["member"].tolist() == ["SZ000001"]
    assert table.numbers["weight"] == [0.1]


@pytest.mark.parametrize("mapping, words", [
    ({"barz": {}}, "unknown table 'barz' (did you mean 'bars'?)"),
    ({"bars": "daily.csv"}, "table bars: an entry is a mapping"),
    ({"bars": {"colums": {}}}, "table bars: unknown key 'colums' (did you mean 'columns'?)"),
    ({"bars": {"columns": ["vol"]}}, "columns must be a mapping by our column names"),
    ({"bars": {"columns": {"volumes": "vol"}}}, "columns: unknown column 'volumes' (did you mean 'volume'?)"),
    ({"bars": {"columns": {"volume": 3}}}, "volume must be the vendor's name of a column, not 3"),
    ({"bars": {"scale": {"vol": 100}}}, "scale: unknown column 'vol'"),
    ({"bars": {"scale": {"volume": 0}}}, "scale of volume must be a positive number, not 0"),
    ({"bars": {"scale": {"volume": "100"}}}, "scale of volume must be a positive number, not '100'"),
    ({"bars": {"scale": {"volume": float("nan")}}}, "scale of volume must be a positive number"),
    ({"bars": {"scale": {"volume": True}}}, "scale of volume must be a positive number"),
    ({"bars": {"scale": {"date": 10}}}, "scale of date: the column holds no numbers"),
    ({"bars": {"code": "600000"}}, "code '600000' is no known spelling; give a code as the vendor writes it, like SH600000"),
    ({"bars": {"code": 600000}}, "code 600000 is no known spelling"),
    ({"bars": {"unit": "percent"}}, "only index_weights has a unit"),
    ({"index_weights": {"unit": "lots"}}, "unit 'lots'"),
    ({"index_weights": {"constants": {"idx": "csi300"}}}, "constants: unknown column 'idx'"),
    ({"index_weights": {"constants": {"index": "csi300"}, "columns": {"index": "code"}}}, "a constant and a vendor's column"),
    ({"bars": {"file": 3}}, "file must be a file's name"),
    ({"bars": {"columns": []}}, "columns must be a mapping by our column names"),
    ({"index_weights": {"constants": {"index": ["csi300"]}}}, "constants: index must be one text or number, not ['csi300']"),
    ([], "a column mapping is a YAML file or a mapping"),
    ("absent.yaml", "absent.yaml does not exist"),
])
def test_wrong_mappings(mapping, words):
    with pytest.raises(ConfigError) as caught:
        read_mapping(mapping)
    assert words in str(caught.value)


def test_all_faults_of_a_mapping_come_at_once():
    with pytest.raises(ConfigError) as caught:
        read_mapping({"barz": {}, "bars": {"code": "x", "scale": {"volume": -1}}, "industry": {"unit": "percent"}})
    assert len(str(caught.value).splitlines()) == 5


@pytest.mark.parametrize("text, words", [("bars: [", "is no YAML"), ("- bars", "holds no entry per table"), ("", "no entry")])
def test_files_that_are_no_mapping(tmp_path, text, words):
    (tmp_path / "map.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_mapping(tmp_path / "map.yaml")


def test_what_the_vendor_lacks_is_named_before_anything_is_read(tmp_path, monkeypatch):
    write_tushare(tmp_path)
    text = TUSHARE.replace("volume: vol, factor", "volume: vold, factor").replace("file: index_daily.csv", "file: index.csv")
    (tmp_path / "map.yaml").write_text(text.replace("scale: {float_shares: 10000,", "scale: {"))
    monkeypatch.setattr(pd, "read_parquet", lambda *_, **__: pytest.fail("read before the columns were checked"))
    with pytest.raises(DataError) as caught:
        read_tables(tmp_path, tmp_path / "map.yaml")
    message = str(caught.value)
    assert "table bars: the column mapping takes volume from 'vold', which the table lacks (did you mean 'vol'?)" in message
    assert "table index_bars is missing (the column mapping names the file index.csv, .csv or .parquet)" in message
    assert len(message.splitlines()) == 3


def test_scaled_columns_and_mapped_tables_must_be_there():
    tables = make_tables()
    tables["bars"] = tables["bars"].drop(columns="amount")
    with pytest.raises(DataError) as caught:
        read_tables(tables, {"bars": {"scale": {"amount": 1000}}, "etf_baskets": {"code": "600000.SH"}})
    assert "the column mapping scales amount, which the table lacks" in str(caught.value)
    assert "table etf_baskets is missing; give it, or leave it out of the mapping" in str(caught.value)


def test_a_mapping_of_more_tables_than_needed(tmp_path):
    """New days for a store: only the named tables must be there, whatever the mapping has."""
    mapping = {"industry": {"file": "sw.csv"}, "bars": {"file": "daily.parquet"}}
    make_tables()["index_bars"].to_parquet(tmp_path / "index_bars.parquet")
    assert set(read_tables(tmp_path, mapping, required=["index_bars"])) == {"index_bars"}
    with pytest.raises(DataError, match=r"table bars is missing \(the column mapping names the file daily.parquet"):
        read_tables(tmp_path, mapping, required=["bars"])


def test_a_declared_unit_must_fit_the_sums():
    tables = make_tables()
    check_tables(read_tables(tables, {"index_weights": {"unit": "percent"}}), "typical")
    with pytest.raises(DataError, match="declared as fraction, but the weights of csi300 sum to 100, which is percent"):
        check_tables(read_tables(tables, {"index_weights": {"unit": "fraction"}}), "typical")
    scaled = read_tables(tables, {"index_weights": {"unit": "fraction", "scale": {"weight": 0.01}}})
    check_tables(scaled, "typical")
    np.testing.assert_allclose(scaled["index_weights"].numbers["weight"] * 100, tables["index_weights"]["weight"])
