"""Bad tables are refused with their name, the instrument, the date, the count and the next step, before anything is written."""

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.__main__ import main
from qlib_ext.store.ingest import ingest


def refuse(tables, tmp_path, *words, **options) -> str:
    """The message of the refusal; nothing is left on disk."""
    with pytest.raises(DataError) as caught:
        ingest(tables, tmp_path / "place" / "store", **options)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    assert list((tmp_path / "place").iterdir()) == []
    return message


def put(row: int, **values):
    """A change of one row of the bars."""

    def change(tables):
        bars = tables["bars"]
        for name, value in values.items():
            bars[name] = bars[name].astype(object if isinstance(value, str) else float) if name != "date" else bars[name]
            bars.loc[row, name] = value
        if "instrument" in values:
            bars["instrument"] = bars["instrument"].astype(str)

    return change


@pytest.mark.parametrize(
    "change, words",
    [
        (put(3, close=-1.0), ["table bars: 1 row with a negative or zero close, first SH600000 on 2020-01-07", "correct the"]),
        (put(3, open=0.0), ["1 row with a negative or zero open"]),
        (put(3, low=np.nan), ["1 row with a missing or infinite low though traded"]),
        (put(3, high=1.0), ["1 row with high below low, first SH600000 on 2020-01-07"]),
        (put(3, close=500.0), ["close outside [low, high] by more than 0.001"]),
        (put(3, factor=0.0), ["1 row with a missing or non-positive factor"]),
        (put(3, factor=np.nan), ["1 row with a missing or non-positive factor"]),
        (put(3, volume=-5.0), ["1 row with a negative volume"]),
        (put(3, volume=np.nan), ["1 row with a missing or infinite volume", "0 if the day was suspended"]),
        (put(3, amount=-5.0), ["1 row with a negative or infinite amount"]),
        (put(3, is_st=2), ["an is_st that is none of 1, 0, -1"]),
        (put(3, instrument="600000.SH"), ["1 row with a malformed code, first 600000.SH on 2020-01-07", "SH600000"]),
        (put(3, instrument="sh600000"), ["1 row with a malformed code, first sh600000"]),
        (put(3, date=pd.NaT), ["1 row with a missing or unreadable date"]),
        (put(3, date=pd.Timestamp("2020-01-06")), ["1 row with an instrument and date already given, first SH600000 on 2020"]),
        (put(3, date=pd.Timestamp("2020-01-03 15:00")), ["1 values of column date carry a time of day"]),
        (put(3, close="cheap"), ["1 rows hold text that is no number in column close"]),
    ],
)
def test_faults_of_bars(tables, tmp_path, change, words):
    change(tables)
    refuse(tables, tmp_path, *words)


def test_unsorted_dates(tables, tmp_path):
    bars = tables["bars"]
    bars.loc[[3, 4]] = bars.loc[[4, 3]].to_numpy()
    tables["bars"] = bars.infer_objects()
    words = "1 row with a date before the instrument's previous row, first SH600000 on 2020-01-07"
    refuse(tables, tmp_path, words, "sort the table")


def test_all_faults_come_at_once(tables, tmp_path):
    put(3, close=-1.0)(tables)
    put(50, volume=-1.0)(tables)
    tables["index_bars"].loc[2, "high"] = 1.0
    tables["membership"].loc[1, "end"] = pd.Timestamp("2018-01-01")
    tables["float_shares_monthly"].loc[0, "float_shares"] = 0
    message = refuse(tables, tmp_path, "negative or zero close", "negative volume", "SH688001")
    assert "table index_bars: 1 row with high below low" in message
    assert "table membership: 1 row with an end before the start, first SZ000001 on 2019-01-01 (csi300)" in message
    assert "table float_shares_monthly: 1 row with float_shares missing or not positive" in message


@pytest.mark.parametrize(
    "name, column", [("float_shares_monthly", "month"), ("industry", "start"), ("index_weights", "date"), ("index_bars", "date")]
)
def test_duplicates_of_other_tables(tables, tmp_path, name, column):
    tables[name] = pd.concat([tables[name], tables[name].iloc[[1]]])
    refuse(tables, tmp_path, f"table {name}: 1 row with an instrument and {column} already given")


def test_missing_tables_columns_and_rows(tables, tmp_path):
    tables["bars"] = tables["bars"].drop(columns=["factor", "volume"])
    tables["index_bars"] = tables["index_bars"].iloc[:0]
    del tables["membership"]
    tables["minutes"] = tables["bars"]
    words = ["table bars lacks the columns ['volume', 'factor']", "table index_bars has no rows", "table membership is missing"]
    refuse(tables, tmp_path, *words, "unknown tables ['minutes']")


def test_folders(tables, tmp_path):
    refuse(tmp_path / "nowhere", tmp_path, "does not exist; give a folder holding bars.parquet")
    (tmp_path / "tables").mkdir()
    refuse(tmp_path / "tables", tmp_path, "table bars is missing", "table index_bars is missing", "table membership is missing")
    tables["bars"].to_parquet(tmp_path / "tables" / "bars.parquet")
    tables["bars"].to_csv(tmp_path / "tables" / "bars.csv")
    (tmp_path / "tables" / "membership.parquet").write_text("no parquet")
    refuse(tmp_path / "tables", tmp_path, "table bars is there twice", "table membership cannot be read")


def test_malformed_codes_outside_the_bars(tables, tmp_path):
    span = {"start": pd.Timestamp("2005-01-01"), "end": pd.Timestamp("2006-01-01")}
    odd = pd.DataFrame({"instrument": ["SHT00018"], "index": "csi300", **span})
    tables["membership"] = pd.concat([tables["membership"], odd])
    ingest(tables, tmp_path / "store")  # over before the first bar: plays no part
    tables["membership"]["end"] = tables["membership"]["end"].max()
    refuse(tables, tmp_path, "table membership: 1 row with a malformed code, first SHT00018")


def test_a_code_cannot_be_stock_and_index(tables, tmp_path):
    tables["index_bars"]["instrument"] = tables["index_bars"]["instrument"].replace("SH000300", "SH600000")
    refuse(tables, tmp_path, "tables bars and index_bars share 1 codes, first SH600000")


def test_prices_of_suspended_rows_may_be_empty(tables, tmp_path):
    suspended = tables["bars"]["volume"] == 0
    tables["bars"].loc[suspended, ["open", "high", "low", "close"]] = [np.nan, 0, 0, 0]
    ingest(tables, tmp_path / "store")


def test_members_must_have_bars(tables, tmp_path):
    words = "no span of ['sse50'] belongs to a code with bars; it names the indices ['csi300', 'csi500']"
    refuse(tables, tmp_path, words, index_names=["sse50"])


def test_vwap_modes(tables, tmp_path):
    with pytest.raises(ConfigError, match="unknown vwap 'median'; valid are"):
        ingest(tables, tmp_path / "store", vwap="median")
    tables["bars"] = tables["bars"].drop(columns="amount")
    refuse(tables, tmp_path, "table bars has no column amount, which vwap 'amount' needs", vwap="amount")


def test_command_line(tables, tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    for name, frame in tables.items():
        frame.to_parquet(tmp_path / "tables" / f"{name}.parquet")
    arguments = ["ingest", "--tables", str(tmp_path / "tables"), "--out", str(tmp_path / "store")]
    assert main(arguments) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "store")
    assert main(arguments) == 1
    assert "error: there is a store at" in capsys.readouterr().err
    assert main([*arguments, "--overwrite", "--vwap", "amount", "--indices", "csi300"]) == 0
    with pytest.raises(SystemExit):
        main([*arguments, "--vwap", "median"])
