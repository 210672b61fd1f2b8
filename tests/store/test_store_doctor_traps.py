"""The doctor's findings that need a store of their own: a slice of a market, what was left out, estimates, slow changes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from foreign import write_foreign_store
from healthy_market import CODES, DAYS, SIZES, day, edit, make_tables, put

from qlib_ext.store import doctor_bars, doctor_members
from qlib_ext.store.doctor import examine
from qlib_ext.store.ingest import ingest
from qlib_ext.store.reading import StoreFiles

STAR = [code for code in CODES if code.startswith("SH688")]
YEARS = DAYS.year


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    return ingest(make_tables(), tmp_path_factory.mktemp("healthy") / "store", index_sizes=SIZES)


@pytest.fixture
def star(healthy, tmp_path):
    """The 50 stocks of STAR alone, a copy to be damaged: the index members are gone."""
    shutil.copytree(healthy, tmp_path / "star", ignore=shutil.ignore_patterns("sz30*", "sh60*"))
    return tmp_path / "star"


def kinds_of(store) -> dict:
    found = {}
    for one in examine(store).warnings:
        found.setdefault(one["kind"], []).append(one["text"])
    return found


def change_metadata(store, change) -> None:
    file = store / "qlib_ext_store.json"
    about = json.loads(file.read_text())
    change(about)
    file.write_text(json.dumps(about))


def test_a_slice_of_a_market_is_no_effect_of_delistings(star):
    said = kinds_of(star)["members lack"]
    assert any(one.startswith("csi500") and one.endswith("the list is incomplete, or the store a slice of the market")
               for one in said)
    assert not any("delisted" in one for one in said)


def test_the_first_days_of_a_new_stock_have_no_limit(star):
    """STAR has none on the first five days of a listing; who trades in the store's first week is no new stock."""
    edit(star, "SH688010", ("close", "volume"), put(slice(0, 400), np.nan))
    for code in ("SH688010", "SH688001"):
        edit(star, code, ("open", "high", "low", "close"), put(slice(402, None), lambda v: 1.5 * v))
    found = doctor_bars.jumps(StoreFiles(star)).figures
    assert [one[:2] for one in found["largest"]] == [["SH688001", f"{DAYS[402]:%Y-%m-%d}"]]


def test_a_delisting_years_later_explains_no_stop(star):
    file = star / "tables" / "instruments.parquet"
    table = pd.read_parquet(file).set_index("instrument")
    for code, delisted in (("SH688002", "2019-03-15"), ("SH688003", "2020-12-01")):
        for one in (star / "features" / code.lower()).iterdir():
            one.write_bytes(one.read_bytes()[:4 * (1 + day("2019-03-01"))])
        table.loc[code, "delist_date"] = pd.Timestamp(delisted)
    table.reset_index().to_parquet(file)
    section = doctor_members.survivors(StoreFiles(star))
    assert set(section.figures["stops"]) == {"SH688002", "SH688003", "SH688045"}
    assert [one["text"] for one in section.warnings] == [
        "1 stocks stop early (last trade) without a delisting on record: SH688003 (2019-02-28)"]


def test_too_few_industries_are_named(star):
    assert not doctor_members.industries(StoreFiles(star)).warnings
    for code in STAR:
        edit(star, code, "industry", put(slice(100, 110), 11))
    [warning] = doctor_members.industries(StoreFiles(star)).warnings
    assert "1 to 1 industries are in force on 10 days" in warning["text"]


def test_untraded_cells_say_nothing_of_units(star):
    """Amounts in thousands, and on two days of three no volume though there is an amount."""
    for code in STAR:
        edit(star, code, "amount", lambda v: np.where(np.isfinite(v), v / 1000, 1.0))
        edit(star, code, "volume", put(np.arange(len(DAYS)) % 3 > 0, 0))
    section = doctor_bars.prices(StoreFiles(star))
    assert section.figures["amount_over_volume_times_close"] == pytest.approx(0.001, rel=0.01)
    assert "units" in {one["kind"] for one in section.warnings}


def test_slow_erosion_of_coverage_is_named(star):
    for place, code in enumerate(STAR):
        edit(star, code, "turnover", put((YEARS == 2019) & (place < 7) | (YEARS == 2020) & (place < 14), np.nan))
    [said] = kinds_of(star)["coverage drop"]
    assert said.startswith("turnover erodes on board star: 100 % in 2018 to 7")


def test_estimated_weights_are_named(star):
    def change(about):
        about["weights"]["csi300"].update(official_last="2020-10-01",
                                          derived_vs_official={"dates": 36, "half_sum_mean": 0.22})
        about["weights"]["csi500"] = {
            "member_days": 1000, "member_days_official": 0, "member_days_float_cap": 950, "member_days_float_cap_unknown": 50,
            "spans": [{"start": "2018-06-01", "end": "2018-06-29", "source": "equal"},
                      {"start": "2018-07-02", "end": "2020-12-31", "source": "float_cap"}]}

    change_metadata(star, change)
    for_300, for_500 = sorted(kinds_of(star)["weights estimated"])
    assert for_300 == "csi300: weights drift with prices from 2020-10-01, the last official date, to 2020-12-31"
    assert "on 100 % of the member-days" in for_500 and "equal 2018-06-01 to 2018-06-29, float cap 2018-07-02 to" in for_500
    assert "5 % have no known float cap: the median" in for_500
    assert "differ from the official weights of csi300 by 22 % of the index (36 dates)" in for_500
    change_metadata(star, lambda about: about.update(generated=True))
    assert "weights estimated" not in kinds_of(star)


def test_what_the_ingest_left_out_and_a_calendar_without_stocks_are_named(star):
    def change(about):
        about["counts"].update(float_shares_look_ahead_rows_left_out=7, malformed_codes_of_the_past={"membership": 1})

    change_metadata(star, change)
    for code in STAR:
        edit(star, code, "close", put(slice(0, 245), np.nan))
    found = kinds_of(star)
    assert found["look-ahead rows"][0].startswith("7 of 241 rows of table float_shares_monthly look ahead")
    assert found["malformed codes"] == ["codes that are no codes, of the past, were left out: 1 in table membership"]
    assert found["no history"][0].startswith(f"the calendar starts 2018-06-01, stock bars {DAYS[245]:%Y-%m-%d}: before")


def test_absent_fields_are_one_warning(star):
    for field in ("is_st", "industry", "limit_up", "limit_down", "amount", "equity"):
        for code in STAR:
            (star / "features" / code.lower() / f"{field}.day.bin").unlink()
    [said] = kinds_of(star)["field absent"]
    assert said.startswith("6 fields are not in the store: amount (for market state, intraday checks; volume (market state) ")
    assert "limit_up, limit_down (for exchange, optimiser; by market_rules" in said
    assert "industry (for risk model, portfolios; nothing stands in)" in said and "equity (" in said and "is_st (" in said


def test_no_section_is_empty(tmp_path):
    """The barest store: closes of one universe that is no index."""
    found = examine(write_foreign_store(tmp_path / "bare", fields=["close"], universes=(), indices=()))
    assert all(one.lines or one.notes or one.warnings for one in found.sections)
    assert "none of csi300, csi500, csi1000 is in the store" in found.text() and "units are unknown" in found.text()
