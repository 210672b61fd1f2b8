"""Every table reads the same from frames, Parquet and CSV, and comes back equal from its own frame."""

import numpy as np
import pandas as pd
import pytest
from store_market import make_tables

from qlib_ext.store.schema import TABLES
from qlib_ext.store.tables import Table, read_tables

KEPT = {
    "etf_baskets": [("SH510300", "2020-01-02", "SH600000", 0.6), ("SH510300", "2020-01-02", "SZ000001", 0.4)],
    "bond_terms": [("SH110059", "2020-01-02", "SH600000", 15.05, "2025-10-28", 5e10, "AAA"),
                   ("SH110059", "2019-11-15", "SH600000", 15.2, None, np.nan, None)],
    "fund_holdings": [("SZ000001", "2019-12-31", "2020-01-22", "F2", 0.08),
                      ("SH600000", "2019-12-31", "2020-01-22", "000011", 0.1)],
}
COLUMNS = {
    "etf_baskets": ["instrument", "date", "member", "weight"],
    "bond_terms": ["instrument", "date", "stock", "conversion_price", "maturity", "size", "rating"],
    "fund_holdings": ["instrument", "period_end", "announcement", "fund", "weight"],
}


def all_tables() -> dict:
    """Every table of the schema; limit prices in the bars."""
    tables = make_tables()
    tables["bars"]["limit_up"] = (tables["bars"]["close"] * 1.1).where(tables["bars"].index % 7 > 0)
    tables["bars"]["limit_down"] = tables["bars"]["close"] * 0.9
    for name, rows in KEPT.items():
        tables[name] = pd.DataFrame(rows, columns=COLUMNS[name])
    assert set(tables) == set(TABLES)
    return tables


def assert_same(one: Table, other: Table, rtol: float = 0) -> None:
    """Equal arrays, in the same order of rows; `one` may lack optional columns."""
    np.testing.assert_array_equal(one.codes, other.codes)
    np.testing.assert_array_equal(one.code, other.code)
    assert one.broken == other.broken == []
    for kind in ("dates", "numbers", "texts"):
        for name, values in getattr(one, kind).items():
            expected = getattr(other, kind)[name]
            assert values.dtype == expected.dtype
            if kind == "numbers":
                np.testing.assert_allclose(values, expected, rtol=rtol, atol=0)
            else:
                np.testing.assert_array_equal(values, expected)


def assert_all_same(one: dict, other: dict) -> None:
    assert set(one) == set(other)
    for name in one:
        assert_same(one[name], other[name])
        assert_same(other[name], one[name])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_files_equal_frames(tmp_path, kind):
    tables = all_tables()
    for name, frame in tables.items():
        path = tmp_path / f"{name}.{kind}"
        frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    assert_all_same(read_tables(tmp_path), read_tables(tables))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_comes_back_from_its_frame(tmp_path, kind):
    tables = read_tables(all_tables())
    for name, table in tables.items():
        frame = table.frame()
        assert list(frame.columns) == [column for column in ("instrument", *table.dates, *table.texts, *table.numbers)]
        frame.to_csv(tmp_path / f"{name}.csv", index=False) if kind == "csv" else frame.to_parquet(tmp_path / f"{name}.parquet")
    again = read_tables(tmp_path)
    assert_all_same(again, {name: table.sorted() for name, table in tables.items()})
    for name, table in again.items():
        pd.testing.assert_frame_equal(table.frame(), tables[name].frame())


def test_the_order_of_rows_does_not_matter():
    tables = all_tables()
    shuffled = {name: frame.sample(frac=1, random_state=3) for name, frame in tables.items()}
    one, other = read_tables(tables), read_tables(shuffled)
    for name in one:
        pd.testing.assert_frame_equal(one[name].frame(), other[name].frame())
        assert_same(one[name].sorted(), other[name].sorted())


def test_unknown_columns_are_dropped_and_optional_ones_may_be_absent():
    tables = all_tables()
    tables["bars"]["comment"] = "x"
    tables["bond_terms"] = tables["bond_terms"].drop(columns=["maturity", "rating"])
    found = read_tables(tables)
    assert "comment" not in found["bars"].frame()
    assert list(found["bond_terms"].frame().columns) == ["instrument", "date", "stock", "conversion_price", "size"]


def test_kinds_of_dates_and_texts():
    """Compact dates, numbers for dates with gaps, numbers for texts: the same as plain ones."""
    tables, plain = all_tables(), all_tables()
    tables["instruments"]["list_date"] = tables["instruments"]["list_date"].dt.strftime("%Y%m%d").astype(int)
    tables["instruments"]["delist_date"] = [np.nan, np.nan, np.nan, np.nan, 20190628.0]
    tables["industry"]["l1_code"] = tables["industry"]["l1_code"].astype(float)
    tables["membership"]["end"] = tables["membership"]["end"].dt.date
    assert_all_same(read_tables(tables), read_tables(plain))
    tables["instruments"]["delist_date"] = [None, None, None, None, "soon"]
    words = "table instruments: 1 rows hold no readable date in column delist_date; write it as YYYY-MM-DD"
    assert read_tables(tables)["instruments"].broken == [words]


def test_numbers_as_texts_lose_the_point_whatever_their_type():
    tables = all_tables()
    tables["industry"]["l1_code"] = tables["industry"]["l1_code"] + ".0"
    assert_all_same(read_tables(tables), read_tables(all_tables()))


@pytest.mark.parametrize("form, readable", [("%Y-%m-%d", True), ("%Y/%m/%d", True), ("%Y%m%d", True), ("%Y-%m-%d 00:00:00", True),
                                            ("%d/%m/%Y", False), ("%m/%d/%Y", False), ("%d-%m-%y", False)])  # fmt: skip
def test_only_dates_with_the_year_first_are_read(form, readable):
    tables = all_tables()
    tables["dividends"]["ex_date"] = tables["dividends"]["ex_date"].dt.strftime(form)
    found, expected = read_tables(tables)["dividends"], read_tables(all_tables())["dividends"]
    assert np.isnat(found.dates["ex_date"]).all() != readable
    if readable:
        assert_same(found, expected)
