"""Fundamentals as published, against a reference that looks up each day by itself, straight from the definition."""

import time

import numpy as np
import pandas as pd
import pytest
from store_market import read_field

from qlib_ext.store import read_metadata
from qlib_ext.store.fundamentals import KnownReports, fundamental_fields, quarter_of
from qlib_ext.store.grid import Grid
from qlib_ext.store.ingest import ingest
from qlib_ext.store.tables import read_tables

FLOWS = ("net_profit", "sales", "operating_cash_flow")
BALANCES = ("equity", "total_assets", "total_debt", "long_term_debt", "preferred_equity")
FIELDS = ("report_age", *BALANCES, *(f"{name}_ttm" for name in FLOWS),
          *(f"{name}_y{back}" for name in ("eps", "sales") for back in range(5)))


def year_back(period: pd.Timestamp, years: int = 1) -> pd.Timestamp:
    return pd.Timestamp(year=period.year - years, month=period.month, day=period.day)


def reference(reports: pd.DataFrame, day: pd.Timestamp) -> dict:
    """Every field of one stock on one day: reports announced before it, of each period the last version that has a number."""
    known = reports[reports["announcement"] < day].sort_values("announcement")
    if known.empty:
        return {}
    version = {period: rows.ffill().iloc[-1] for period, rows in known.groupby("period_end")}
    latest = max(version)
    get = lambda period, name: version[period][name] if period in version else np.nan  # noqa: E731
    found = {"report_age": (day - latest).days, **{name: get(latest, name) for name in BALANCES}}
    year_end = pd.Timestamp(year=latest.year - 1, month=12, day=31)
    for name in FLOWS:
        ytd = get(latest, name)
        found[f"{name}_ttm"] = ytd if latest.month == 12 else ytd + get(year_end, name) - get(year_back(latest), name)
    annual = [period for period in version if period.month == 12]
    for back in range(5):
        period = year_back(max(annual), back) if annual else None
        found[f"eps_y{back}"], found[f"sales_y{back}"] = get(period, "eps"), get(period, "sales")
    return found


def random_reports(seed: int, stocks: int = 6, first: int = 2005, last: int = 2014) -> pd.DataFrame:
    """Reports with holes, restatements, late reports, several on one day, and numbers that are absent."""
    generator = np.random.default_rng(seed)
    rows = []
    for stock in range(stocks):
        for period in pd.date_range(f"{first}-03-31", f"{last}-12-31", freq="QE"):
            if generator.random() < 0.1:
                continue
            lag = int(generator.integers(1, 120)) if generator.random() < 0.9 else int(generator.integers(120, 900))
            announcements = {period + pd.Timedelta(days=lag)}
            while generator.random() < 0.25:
                announcements.add(max(announcements) + pd.Timedelta(days=int(generator.integers(1, 500))))
            rows += [(f"SH60000{stock}", period, day) for day in sorted(announcements)]
    frame = pd.DataFrame(rows, columns=["instrument", "period_end", "announcement"])
    for name in (*BALANCES, *FLOWS, "eps"):
        frame[name] = generator.normal(100, 50, len(frame)).round(2)
        frame.loc[generator.random(len(frame)) < 0.05, name] = np.nan
    return frame.sample(frac=1, random_state=seed, ignore_index=True)


def bars_of(codes, days) -> pd.DataFrame:
    frame = pd.DataFrame([(day, code) for code in codes for day in days], columns=["date", "instrument"])
    return frame.assign(open=1.0, high=1.0, low=1.0, close=1.0, volume=1.0, factor=1.0)


def laid(reports: pd.DataFrame, days: pd.DatetimeIndex, codes):
    """Fields of reports on every day; also the grid."""
    bars = bars_of(codes, days)
    tables = read_tables({"bars": bars, "fundamentals": reports}, required=("bars",))
    grid = Grid(tables["bars"], days.to_numpy().astype("datetime64[D]"))
    return fundamental_fields(tables["fundamentals"], grid)[0], grid


@pytest.mark.parametrize("seed", range(3))
def test_fields_follow_the_definition_on_random_reports(seed):
    reports = random_reports(seed)
    codes = sorted(reports["instrument"].unique())
    days = pd.bdate_range("2010-11-01", "2012-06-29")
    fields, grid = laid(reports, days, codes)
    assert set(fields) == set(FIELDS)
    cells, expected = [], []
    for code, rows in reports.groupby("instrument"):
        for cell in np.flatnonzero(grid.codes[grid.stock] == code):
            day = days[grid.day[cell]]
            news = (day - rows["announcement"]).dt.days.between(0, 4).any()
            if news or grid.day[cell] % 20 == 0:  # else nothing is published since the day before
                cells.append(cell)
                expected.append(reference(rows, day))
    assert len(cells) > 250
    expected = pd.DataFrame(expected, columns=list(fields), dtype=float)
    for name, values in fields.items():
        np.testing.assert_allclose(values[cells], expected[name], rtol=3e-6, atol=1e-4, err_msg=name)
    unknown = {name: np.isnan(values).mean() for name, values in fields.items()}
    assert 0 < unknown["sales_ttm"] < 0.7 and 0 < unknown["eps_y4"] < 1


def test_a_report_counts_from_the_day_after_and_the_latest_period_wins(small_store):
    """SH600000: third quarter on 2019-10-30, restated on 2020-01-14, the year on 2020-01-30 (all by hand, 10,000 CNY)."""
    profit = read_field(small_store, "SH600000", "net_profit_ttm") / 1e4
    assert (profit[:"2020-01-14"] == 75 + 90 - 66).all() and (profit["2020-01-15":"2020-01-30"] == 70 + 90 - 66).all()
    assert (profit["2020-01-31":] == 100).all()
    equity = read_field(small_store, "SH600000", "equity") / 1e4
    assert (equity[:"2020-01-14"] == 64).all() and (equity["2020-01-15":"2020-01-30"] == 63).all()
    age = read_field(small_store, "SH600000", "report_age")
    assert age["2020-01-02"] == 94 and age["2020-01-30"] == 122 and age["2020-01-31"] == 31
    eps = [read_field(small_store, "SH600000", f"eps_y{back}") for back in range(5)]
    np.testing.assert_allclose([one["2020-01-30"] for one in eps], [0.15, 0.14, 0.12, 0.11, 0.10], rtol=1e-6)
    np.testing.assert_allclose([one["2020-01-31"] for one in eps], [0.17, 0.15, 0.14, 0.12, 0.11], rtol=1e-6)


def test_late_weekend_and_absent_reports(small_store):
    """SZ000001: third quarter of 2019 on 2020-01-20, the year on Saturday 2020-02-01, hence from Monday the 3rd."""
    sales = read_field(small_store, "SZ000001", "sales_ttm") / 1e4
    assert (sales[:"2020-01-20"] == 950).all() and (sales["2020-01-21":"2020-01-31"] == 690 + 950 - 700).all()
    assert (sales["2020-02-03":] == 940).all()
    one = read_field(small_store, "SZ300001", "total_debt")
    assert one.isna().all() and read_field(small_store, "SZ300001", "equity").notna().all()
    assert read_field(small_store, "SH688001", "report_age").isna().all()
    counts = read_metadata(small_store)["counts"]
    assert counts["reports"] == 15 and counts["reports_restated"] == 1 and counts["stocks_without_reports"] == 1


def test_an_old_period_announced_late_fills_its_place_only():
    columns = ["instrument", "period_end", "announcement", "sales"]
    rows = [("SH600000", "2018-12-31", "2019-04-01", 100.0), ("SH600000", "2019-06-30", "2019-08-01", 70.0),
            ("SH600000", "2018-06-30", "2019-09-02", 40.0), ("SH600000", "2017-12-31", "2019-10-08", 90.0)]
    reports = pd.DataFrame(rows, columns=columns).assign(period_end=lambda f: pd.to_datetime(f["period_end"]),
                                                         announcement=lambda f: pd.to_datetime(f["announcement"]))
    days = pd.bdate_range("2019-07-31", "2019-10-10")
    fields, _ = laid(reports, days, ["SH600000"])
    at = lambda name, day: fields[name][days.get_loc(day)]  # noqa: E731
    assert at("sales_ttm", "2019-08-01") == 100 and np.isnan(at("sales_ttm", "2019-08-02"))
    assert np.isnan(at("sales_ttm", "2019-09-02")) and at("sales_ttm", "2019-09-03") == 70 + 100 - 40
    assert at("report_age", "2019-09-03") == 65
    assert np.isnan(at("sales_y1", "2019-10-08")) and at("sales_y1", "2019-10-09") == 90 and at("sales_y0", "2019-10-09") == 100
    assert set(fields) == {"report_age", "sales_ttm"} | {f"sales_y{back}" for back in range(5)}


def test_a_correction_of_one_number_leaves_the_others_known():
    """Equity and earnings per share of 2018, the latter corrected in June by a row without equity."""
    rows = [("SH600000", "2018-12-31", "2019-04-01", 100.0, 0.5), ("SH600000", "2018-12-31", "2019-06-03", np.nan, 0.4)]
    reports = pd.DataFrame(rows, columns=["instrument", "period_end", "announcement", "equity", "eps"])
    reports[["period_end", "announcement"]] = reports[["period_end", "announcement"]].apply(pd.to_datetime)
    days = pd.bdate_range("2019-06-03", "2019-06-05")
    fields, _ = laid(reports, days, ["SH600000"])
    np.testing.assert_array_equal(fields["equity"], [100, 100, 100])
    np.testing.assert_array_equal(fields["eps_y0"], np.float32([0.5, 0.4, 0.4]))


def test_past_quarters_can_be_asked_for():
    """A single quarter's sales, as growth formulas over past quarters need them, against a lookup by hand."""
    reports = random_reports(5, stocks=2)
    table = read_tables({"fundamentals": reports}, required=())["fundamentals"]
    known = KnownReports(table, table.codes)
    for lag in (0, 1, 6):
        quarter = known.latest - lag
        ytd, before = known.value("sales", quarter), known.value("sales", quarter - 1)
        single = np.where(quarter % 4 == 0, ytd, ytd - before)
        for event in range(len(known)):
            code, today = known.table.instrument(event), known.announcement[event]
            rows = reports[(reports["instrument"] == code) & (reports["announcement"] <= pd.Timestamp(today))]
            own = (quarter_of(rows["period_end"].to_numpy()), rows["announcement"].to_numpy(), rows["sales"].to_numpy())
            held = {q: sales for q, _, sales in sorted(zip(*own), key=lambda row: row[:2]) if not np.isnan(sales)}
            if event + 1 < len(known) and known.announcement[event + 1] == today and known.stock[event + 1] == known.stock[event]:
                continue  # more is announced on the same day
            q = quarter[event]
            expected = held.get(q, np.nan) - (0 if q % 4 == 0 else held.get(q - 1, np.nan))
            np.testing.assert_allclose(single[event], expected)


def test_many_reports_take_seconds():
    codes = [f"SH60{place:04d}" for place in range(2000)]
    periods = pd.date_range("1999-03-31", periods=100, freq="QE")
    reports = pd.DataFrame([(code, period) for code in codes for period in periods], columns=["instrument", "period_end"])
    reports["announcement"] = reports["period_end"] + pd.to_timedelta(np.arange(len(reports)) % 90 + 1, unit="D")
    reports = reports.assign(**{name: 1.0 for name in (*BALANCES, *FLOWS, "eps")})
    days = pd.bdate_range("2020-01-01", periods=20)
    tables = read_tables({"bars": bars_of(codes, days), "fundamentals": reports}, required=("bars",))
    grid = Grid(tables["bars"], days.to_numpy().astype("datetime64[D]"))
    started = time.perf_counter()
    fundamental_fields(tables["fundamentals"], grid)
    assert len(reports) == 200_000 and time.perf_counter() - started < 10


def test_fields_exist_by_column(tables, tmp_path):
    tables["fundamentals"] = tables["fundamentals"][["instrument", "period_end", "announcement", "equity"]]
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    stored = {file.name.split(".")[0] for file in (store / "features" / "sh600000").iterdir()}
    assert {"report_age", "equity"} <= stored and not any(name.endswith("_ttm") or "_y0" in name for name in stored)
