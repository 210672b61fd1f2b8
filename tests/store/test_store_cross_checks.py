"""Tables held against the bars."""

import pandas as pd
import pytest
from store_market import make_tables

from qlib_ext.demo.market import make_market
from qlib_ext.demo.tables import make_tables as make_demo
from qlib_ext.errors import DataError
from qlib_ext.store.checks import check_tables
from qlib_ext.store.tables import read_tables


@pytest.fixture(scope="module")
def demo():
    return make_demo(make_market(seed=8, stocks=90, end="2016-12-30", index_sizes=(12, 20, 40)))


def check(tables):
    return check_tables(read_tables(tables), "typical")


def test_faultless_tables_pass(demo):
    check(demo)
    check(make_tables())


@pytest.mark.parametrize("factor", [10.0, 30.0])
def test_dividends_per_ten_shares(demo, factor):
    """Three times that is no unit anybody uses: nothing is said of it."""
    dividends = demo["dividends"].assign(cash=demo["dividends"]["cash"] * factor, bonus=demo["dividends"]["bonus"] * factor)
    if factor != 10.0:
        check({**demo, "dividends": dividends})
        return
    with pytest.raises(DataError, match=r"table dividends: on \d+ of \d+ ex-dates .* per 10 shares; .*scale: .cash: 0.1, bonus"):
        check({**demo, "dividends": dividends})


@pytest.mark.parametrize("column, word, shift", [("list_date", "before", 20), ("delist_date", "after", -20)])
def test_bars_outside_the_listing(column, word, shift):
    tables = make_tables()
    bars = tables["bars"].query("instrument == 'SH688001'")["date"]
    edge = bars.iloc[3] if shift > 0 else bars.iloc[-3]
    tables["instruments"].loc[tables["instruments"]["instrument"] == "SH688001", column] = pd.Timestamp(edge)
    count = 3 if shift > 0 else 2
    with pytest.raises(DataError, match=f"table bars: {count} rows {word} the {column} of table instruments, first SH688001 on"):
        check(tables)
