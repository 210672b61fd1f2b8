"""Limit prices of a store against the exchange's formula, computed row by row."""

from decimal import ROUND_HALF_UP, Decimal

import numpy as np
import pandas as pd
import pytest
from store_market import business_days, make_tables, read_field

from qlib_ext.store import read_metadata
from qlib_ext.store.ingest import ingest


def rounded(value: float) -> float:
    """To the cent, half up, in decimals."""
    return float(Decimal(str(round(value, 9))).quantize(Decimal("0.01"), ROUND_HALF_UP))


def reference(rows: pd.DataFrame, days: pd.DatetimeIndex, fraction) -> pd.DataFrame:
    """Limits of one stock, day by day: last traded close x its factor / the day's, rounded, x (1 +- fraction), rounded."""
    result, last, factor = {}, None, None
    for day in days:
        row = rows.loc[day] if day in rows.index else None
        factor = row["factor"] if row is not None else factor
        if last is not None:
            base = rounded(last[0] * last[1] / factor)
            result[day] = [rounded(base * (1 + sign * fraction(day, row))) * factor for sign in (1, -1)]
        if row is not None and row["volume"] > 0:
            last = round(row["close"], 3), row["factor"]  # to a tick of ETFs, as the store does
    return pd.DataFrame.from_dict(result, orient="index", columns=["limit_up", "limit_down"]).reindex(days)


def cents(tables: dict) -> dict:
    """Prices in whole cents, as on an exchange."""
    tables["bars"][["open", "high", "low", "close"]] = tables["bars"][["open", "high", "low", "close"]].round(2)
    return tables


def own_rows(tables: dict, code: str) -> pd.DataFrame:
    return tables["bars"].query("instrument == @code").set_index("date")


def assert_limits(store, code: str, expected: pd.DataFrame) -> None:
    for name in expected:
        stored = read_field(store, code, name)
        np.testing.assert_allclose(stored, expected[name].reindex(stored.index), rtol=2e-7, err_msg=f"{code} {name}")


def test_limits_by_board_special_treatment_ex_date_and_suspension(tmp_path):
    tables = cents(make_tables())
    days = own_rows(tables, "SH600000").index
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    for code in ("SH600000", "SZ000001", "SZ300001"):  # 5 % on the ST day; SZ300001 is suspended, with rows and without
        def fraction(day, row):
            return 0.05 if row is not None and row["is_st"] == 1 else 0.1
        expected = reference(own_rows(tables, code), days, fraction)
        assert_limits(store, code, expected)
    counts = read_metadata(store)["counts"]
    unknown = int((tables["bars"]["is_st"] == -1).sum())
    assert counts["limit_st_unknown_cells"] == unknown > 0
    assert counts["limit_cells"] == 3 * (len(days) - 1) + 35 - 5


def test_listings_have_no_limits_at_first(tmp_path):
    """SH688001 lists on day 10 of the calendar: five days of STAR without limits, with table instruments and without."""
    tables = cents(make_tables())
    rows = own_rows(tables, "SH688001")
    expected = reference(rows, rows.index, lambda day, row: 0.2)
    expected.iloc[:5] = np.nan
    store = ingest(tables, tmp_path / "with", index_names=("csi300",))
    assert_limits(store, "SH688001", expected)
    del tables["instruments"]
    assert_limits(ingest(tables, tmp_path / "without", index_names=("csi300",)), "SH688001", expected)


@pytest.mark.parametrize("listed, free", [("2019-12-31", 3), ("2019-12-20", 0), ("2020-01-02", 5), (None, 1)])
def test_a_listing_before_the_bars(tmp_path, listed, free):
    """A STAR stock with bars from the first day on: days without limits left of the five by its listing; without table
    instruments it counts as listed long ago (the first day has no earlier close)."""
    tables = cents(make_tables())
    tables["bars"] = tables["bars"].replace({"instrument": {"SH600000": "SH688002"}})
    if listed:
        row = pd.DataFrame({"instrument": ["SH688002"], "kind": "stock", "list_date": pd.Timestamp(listed)})
        tables["instruments"] = pd.concat([tables["instruments"], row], ignore_index=True)
    else:
        del tables["instruments"]
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    assert np.flatnonzero(read_field(store, "SH688002", "limit_up").notna())[0] == max(free, 1)


@pytest.mark.parametrize("listed, free", [("2019-12-31", 3), ("2019-12-30", 2), ("2019-12-26", 1)])
def test_a_listing_before_the_calendar(tmp_path, listed, free):
    """As above, but no calendar holds the listing: the weekdays from it to the first day count."""
    tables = cents(make_tables())
    tables["bars"] = tables["bars"].replace({"instrument": {"SH600000": "SH688002"}})
    tables["index_bars"] = tables["index_bars"].query("date >= '2020-01-02'")
    row = pd.DataFrame({"instrument": ["SH688002"], "kind": "stock", "list_date": pd.Timestamp(listed)})
    tables["instruments"] = pd.concat([tables["instruments"], row], ignore_index=True)
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    assert np.flatnonzero(read_field(store, "SH688002", "limit_up").notna())[0] == free


def test_chinext_limits_change_on_their_day(tmp_path):
    tables = cents(make_tables())
    old, new = business_days("2020-01-02", 45), business_days("2020-07-30", 45)
    moved = dict(zip(old, new))
    tables["bars"]["date"] = tables["bars"]["date"].map(moved)
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    rows = own_rows(tables, "SZ300001")
    assert_limits(store, "SZ300001", reference(rows, new, lambda day, row: 0.2 if day >= pd.Timestamp("2020-08-24") else 0.1))


def test_given_limits_are_taken_as_they_are(tmp_path):
    tables = cents(make_tables())
    bars = tables["bars"]
    bars["limit_up"], bars["limit_down"] = bars["high"] + 1, (bars["low"] - 1).where(bars.index % 7 > 0)
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    for code in ("SH600000", "SZ300001"):
        rows = own_rows(tables, code)
        assert_limits(store, code, rows[["limit_up", "limit_down"]].mul(rows["factor"], axis=0))
    assert "limit_cells" not in read_metadata(store)["counts"]
    computed = reference(own_rows(tables, "SH600000"), own_rows(tables, "SH600000").index,
                         lambda day, row: 0.05 if row["is_st"] == 1 else 0.1)  # fmt: skip
    del bars["limit_down"]
    store = ingest(tables, tmp_path / "half", index_names=("csi300",))
    rows = own_rows(tables, "SH600000")
    assert_limits(store, "SH600000", computed[["limit_down"]].assign(limit_up=rows["limit_up"] * rows["factor"]))


def test_a_half_tick_is_rounded_up_though_the_tables_hold_24_bits(tmp_path):
    """106.71 / 2 = 53.355 is 53.36, and 10 % above it 58.70: neither the close nor the factor can be held exactly."""
    tables = cents(make_tables())
    day = tables["bars"].query("instrument == 'SH600000'")["date"].iloc[20]
    mine, later = tables["bars"]["instrument"] == "SH600000", tables["bars"]["date"] >= day
    last = mine & (tables["bars"]["date"] == tables["bars"].loc[mine & ~later, "date"].max())
    tables["bars"].loc[last, ["open", "high", "low", "close", "amount"]] = [106.71] * 4 + [None]
    old = np.float32(1.4142135)
    tables["bars"].loc[mine, "factor"] = np.where(later[mine], np.nextafter(2 * old, np.float32(9)), old)
    for column in ("open", "high", "low", "close", "factor"):
        tables["bars"][column] = tables["bars"][column].astype(np.float32)
    after = mine & later
    tables["bars"].loc[after, ["open", "high", "low", "close"]] = np.float32(53.4)
    tables["bars"].loc[after, "amount"] = None
    del tables["dividends"]
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    raw = read_field(store, "SH600000", "limit_up")[day] / read_field(store, "SH600000", "factor")[day]
    assert round(float(raw), 2) == 58.70
