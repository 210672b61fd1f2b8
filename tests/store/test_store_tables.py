"""Bad tables are refused with their name, the instrument, the date, the count and the next step, before anything is written."""

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.__main__ import main
from qlib_ext.store.checks import check_tables
from qlib_ext.store.ingest import ingest
from qlib_ext.store.tables import read_tables


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


LIMITS = {"limit_up": 1000.0, "limit_down": 0.01}


@pytest.mark.parametrize("values, words", [
    ({"limit_up": 0.0}, "1 row with a limit_up that is no positive price, first SH600000 on 2020-01-07"),
    ({"limit_down": np.inf}, "1 row with a limit_down that is no positive price"),
    ({"limit_up": 5.0}, "1 row with a close beyond limit_up, first SH600000 on 2020-01-07"),
    ({"limit_down": 500.0}, "1 row with a close beyond limit_down"),
    ({"limit_up": 0.5, "limit_down": 0.6}, "1 row with limit_up below limit_down"),
])
def test_limit_prices_hold_the_close(tables, values, words):
    tables["bars"] = tables["bars"].assign(**LIMITS)
    tables["bars"].loc[[5, 8], ["limit_up", "limit_down"]] = np.nan  # no limit, or unknown
    check_tables(read_tables(tables), "typical")
    tables["bars"].loc[3, list(values)] = list(values.values())
    with pytest.raises(DataError, match=words):
        check_tables(read_tables(tables), "typical")


BASKET = {"instrument": "SH510300", "date": "2020-01-02", "member": ["SH600000", "SZ000001"], "weight": [0.6, 0.4]}
TERMS = {"instrument": ["SH110059"] * 2, "date": ["2019-01-02", "2020-01-02"], "stock": "SH600000", "conversion_price": 15.0,
         "maturity": "2025-10-28", "size": 5e10}  # fmt: skip
HOLDINGS = {"instrument": ["SH600000", "SZ000001"], "period_end": "2019-12-31", "announcement": "2020-01-22", "fund": "000011",
            "weight": [0.08, 0.1]}  # fmt: skip
GIVEN = {"etf_baskets": BASKET, "bond_terms": TERMS, "fund_holdings": HOLDINGS}
EARLY = pd.Timestamp("2001-01-01")


@pytest.mark.parametrize("name, change, words", [
    ("fundamentals", {"announcement": EARLY}, "an announcement before the end of its period, first SH600000 on 2015-12-31"),
    ("fundamentals", {"period_end": pd.Timestamp("2014-12-30")}, "not the last day of a quarter, first SH600000 on 2014-12-30"),
    ("fundamentals", {"period_end": pd.Timestamp("2014-11-30")}, "a period_end that is not the last day of a quarter"),
    ("fundamentals", {"equity": np.inf}, "1 row with an infinite equity"),
    ("fundamentals", {"announcement": None}, "1 row with a missing or unreadable announcement"),
    ("dividends", {"cash": -0.1}, "1 row with a missing or negative cash, first SZ000001 on 2020-01-23"),
    ("dividends", {"bonus": np.nan}, "1 row with a missing or negative bonus"),
    ("dividends", {"cash": 0.0, "bonus": 0.0}, "1 row with neither cash nor bonus"),
    ("instruments", {"kind": "fund"}, "1 row with a kind that is none of stock, index, etf, bond, first SH688001"),
    ("instruments", {"kind": None}, "1 row with a missing kind"),
    ("instruments", {"delist_date": EARLY}, "1 row with a delist_date before the list_date, first SH688001"),
    ("instruments", {"delist_date": "soon"}, "1 rows hold no readable date in column delist_date"),
    ("instruments", {"instrument": "600000"}, "1 row with a malformed code, first 600000"),
    ("etf_baskets", {"weight": -0.1}, r"1 row with a missing or negative weight, first SH510300 on 2020-01-02 \(SZ000001\)"),
    ("etf_baskets", {"weight": 40.0}, r"2 rows with weights of one date that sum to more than 1.*scale: \{weight: 0.01\}"),
    ("etf_baskets", {"member": "000001"}, "1 row with a malformed member"),
    ("etf_baskets", {"member": None}, "1 row with a missing member"),
    ("etf_baskets", {"member": "SH600000"}, "1 row with an instrument and date already given"),
    ("bond_terms", {"date": "2019-01-02"}, "1 row with an instrument and date already given"),
    ("bond_terms", {"conversion_price": 0.0}, "1 row with a conversion_price missing or not positive"),
    ("bond_terms", {"size": -1.0}, "1 row with a negative or infinite size"),
    ("bond_terms", {"maturity": "2001-01-01"}, "1 row with a maturity before the date"),
    ("bond_terms", {"stock": "600000.SH"}, "1 row with a malformed stock"),
    ("fund_holdings", {"announcement": "2019-12-30"}, r"announcement before the end of its period, first SZ000001 .*\(000011\)"),
    ("fund_holdings", {"instrument": "SH600000"}, "an instrument and period_end and announcement already given"),
    ("fund_holdings", {"weight": 10.0}, "2 rows with weights of one date that sum to more than 1"),
    ("float_shares_monthly", {"total_shares": 1000e3}, "fewer total_shares than float_shares, first SH600000 on 2020-01-31"),
    ("float_shares_monthly", {"total_shares": -1.0}, "1 row with total_shares that are not positive"),
])
def test_faults_of_the_other_tables(tables, name, change, words):
    tables.update({kept: pd.DataFrame(columns) for kept, columns in GIVEN.items()})
    check_tables(read_tables(tables), "typical")
    table = tables[name].reset_index(drop=True).astype(object)
    table.loc[1, list(change)] = list(change.values())
    with pytest.raises(DataError, match=words):
        check_tables(read_tables({**tables, name: table}), "typical")


@pytest.mark.parametrize("name", ["fundamentals", "dividends", "instruments"])
def test_rows_given_twice(tables, name):
    tables[name] = pd.concat([tables[name], tables[name].iloc[[1]]])
    with pytest.raises(DataError, match=f"table {name}: 1 row with an instrument.* already given"):
        check_tables(read_tables(tables), "typical")


def test_reports_without_any_value(tables):
    tables["fundamentals"] = tables["fundamentals"][["instrument", "period_end", "announcement"]]
    with pytest.raises(DataError, match="table fundamentals has no column of values; give some of .'equity'"):
        check_tables(read_tables(tables), "typical")


@pytest.mark.parametrize("start, end", [("2020-02-12", "2020-02-20"), ("2019-06-01", "2019-06-30"), ("2018-01-01", "2021-01-01")])
def test_overlapping_membership(tables, start, end):
    """SZ000001 is in csi300 until 2020-02-12: a span that shares a day with that is refused, one that touches it is fine."""
    span = {"instrument": ["SZ000001"], "index": "csi300", "start": pd.Timestamp("2020-02-13"), "end": pd.Timestamp("2020-02-20")}
    touching = pd.concat([tables["membership"], pd.DataFrame(span)])
    check_tables(read_tables({**tables, "membership": touching}), "typical")
    span.update(start=pd.Timestamp(start), end=pd.Timestamp(end))
    tables["membership"] = pd.concat([tables["membership"], pd.DataFrame(span)])
    with pytest.raises(DataError) as caught:
        check_tables(read_tables(tables), "typical")
    message = str(caught.value)
    assert "1 span of a code overlapping another of its spans in the same index, first SZ000001 in csi300" in message
    assert f"{start}..{end}" in message and "2019-01-01..2020-02-12" in message


def test_overlaps_against_a_slow_loop(tables):
    """The number of spans that share a day with an earlier one of the same code and index, over random spans."""
    generator = np.random.default_rng(5)
    for _ in range(20):
        starts = pd.Timestamp("2020-01-01") + pd.to_timedelta(generator.integers(0, 200, 12), unit="D")
        ends = starts + pd.to_timedelta(generator.integers(0, 25, 12), unit="D")
        codes = generator.choice(["SH600000", "SZ000001"], 12)
        indices = generator.choice(["csi300", "csi500"], 12)
        spans = pd.DataFrame({"instrument": codes, "index": indices, "start": starts, "end": ends})
        count = 0
        for _, held in spans.groupby(["instrument", "index"]):
            held = held.sort_values(["start", "end"])
            count += sum((held["end"].iloc[:place] >= held["start"].iloc[place]).any() for place in range(len(held)))
        data = read_tables({**tables, "membership": spans})
        if count:
            with pytest.raises(DataError, match=f"table membership: {count} span"):
                check_tables(data, "typical")
        else:
            check_tables(data, "typical")


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


def test_kinds_fit_the_tables_of_the_bars(tables):
    index = pd.DataFrame({"instrument": ["SH000300"], "kind": "index", "list_date": pd.Timestamp("2005-04-08")})
    tables["instruments"] = pd.concat([tables["instruments"], index])
    check_tables(read_tables(tables), "typical")
    tables["instruments"]["kind"] = ["index", "stock", "stock", "etf", "stock", "stock"]
    with pytest.raises(DataError) as caught:
        check_tables(read_tables(tables), "typical")
    assert "kind of 1 codes does not fit table bars, which has their bars, first SH600000" in str(caught.value)
    assert "kind of 1 codes does not fit table index_bars, which has their bars, first SH000300" in str(caught.value)


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


def test_columns_given_twice(tables, tmp_path):
    tables["bars"] = pd.concat([tables["bars"], tables["bars"][["close"]]], axis=1)
    refuse(tables, tmp_path, "table bars has the columns ['close'] more than once; keep one of each")


def test_index_bars_have_no_suspended_days(tables, tmp_path):
    tables["index_bars"].loc[2, "close"] = np.nan
    message = refuse(tables, tmp_path, "table index_bars: 1 row with a missing or infinite close")
    assert "volume 0" not in message
