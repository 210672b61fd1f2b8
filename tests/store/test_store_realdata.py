"""The real tables: they pass the checks, and the store holds what they say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from store_market import read_field

from qlib_ext.market_rules import board_of
from qlib_ext.store import read_metadata
from qlib_ext.store.content import Content
from qlib_ext.store.ingest import ingest
from qlib_ext.store.schema import INDEX_CODES, INDEX_NAMES
from qlib_ext.store.tables import read_tables

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def real_tables(real_data) -> Path:
    return real_data / "ashare_daily"


@pytest.fixture(scope="module")
def real_store(real_tables, tmp_path_factory) -> Path:
    return ingest(real_tables, tmp_path_factory.mktemp("real") / "store")


def weights(store: Path, index_name: str) -> pd.DataFrame:
    """Stored weights of all codes of an index. [t, n]"""
    lines = (store / "instruments" / f"{index_name}.txt").read_text().splitlines()
    codes = sorted({line.split("\t")[0] for line in lines})
    return pd.DataFrame({code: read_field(store, code, f"{index_name}_weight") for code in codes})


def test_counts(real_store):
    metadata = read_metadata(real_store)
    counts = metadata["counts"]
    assert counts["stock_rows"] > 4_300_000 and counts["stocks"] > 2_800 and counts["indices"] == 8
    assert metadata["spans"]["calendar"][:2] == ["2010-01-04", "2024-12-31"]
    assert metadata["spans"]["stocks"] == ["2018-01-02", "2024-12-31"]
    assert metadata["weights"]["csi300"]["official_unit"] == "percent"


@pytest.mark.parametrize("index_name, members", [("csi300", 300), ("csi500", 500), ("csi1000", 1000)])
def test_members_and_weights_per_day(real_store, index_name, members):
    frame = weights(real_store, index_name)
    count = frame.notna().sum(axis=1)
    assert count.max() <= members and count.min() >= 0.9 * members
    assert count["2024-03-01"] >= 0.988 * members
    gone = read_metadata(real_store)["weights"][index_name]["member_days_after_last_bar"]  # their weight is missing in the sums
    assert (frame.sum(axis=1) < 1 + 1e-5).all() and (frame.sum(axis=1) > (0.999 if gone else 1 - 1e-5)).all()
    assert frame.min().min() > 0


def test_drifted_weights_meet_the_next_official_ones(real_tables, real_store):
    """On 2022-03-31 the stored weights come from 2022-03-01: they must lie near the official ones of that very day."""
    official = pd.read_parquet(real_tables / "index_weights.parquet")
    rows = (official["index"] == "csi300") & (official["date"] == pd.Timestamp("2022-03-31"))
    official = official[rows].set_index("instrument")["weight"]
    stored = weights(real_store, "csi300").loc["2022-03-31"].dropna()
    both = official.reindex(stored.index)
    assert both.notna().all() and (stored - both / both.sum()).abs().sum() < 0.01


def test_spot_values(real_tables, real_store):
    bars = pd.read_parquet(real_tables / "bars.parquet", filters=[("instrument", "in", ["SH600519", "SZ300750"])])
    for code, rows in bars.groupby("instrument", observed=True):
        rows = rows[rows["volume"] > 0].set_index("date")
        for name in ("open", "high", "low", "close"):
            stored = read_field(real_store, code, name).dropna()
            np.testing.assert_allclose(stored, rows[name].astype(float) * rows["factor"], rtol=1e-6)
        volume = rows["volume"] / rows["factor"].astype(float)
        np.testing.assert_allclose(read_field(real_store, code, "volume").dropna(), volume, rtol=1e-6)
        assert read_field(real_store, code, "change").abs().max() < 0.45
    cap = read_field(real_store, "SH600519", "float_cap")
    assert cap[:"2018-01-31"].isna().all() and 8e11 < cap["2018-03-01"] < 1.1e12


@pytest.fixture(scope="module")
def content(real_tables) -> Content:
    """What a store of the real tables holds, with the official weights of all three indices of one day.

    The file of 2020-10 names no day: its CSI300 weights are those of the official table of 2020-09-30, digit by digit.
    """
    tables = {file.stem: pd.read_parquet(file) for file in real_tables.glob("*.parquet") if file.stem != "valuation_csi300"}
    given = pd.read_parquet(real_tables.parent / "etf" / "index_weights_202010.parquet")
    official = tables["index_weights"]
    of_day = official[official["date"] == "2020-09-30"].set_index("instrument")["weight"]
    csi300 = given[given["index_code"] == "000300"].set_index("stock")["weight_pct"]
    np.testing.assert_allclose(csi300.sort_index(), of_day.reindex(csi300.index).sort_index(), atol=5e-5)
    given = given.rename(columns={"stock": "instrument", "weight_pct": "weight"}).assign(date=pd.Timestamp("2020-09-30"))
    given["index"] = given["index_code"].map({INDEX_CODES[name][2:]: name for name in ("csi500", "csi1000")})
    tables["index_weights"] = pd.concat([official, given.dropna(subset="index")[list(official)]], ignore_index=True)
    return Content(read_tables(tables), "typical", INDEX_NAMES)


@pytest.mark.parametrize("name, dates, half", [("csi300", 135, 0.30), ("csi500", 1, 0.16), ("csi1000", 1, 0.15)])
def test_derived_weights_against_official_ones(content, name, dates, half):
    found = content.weights[name]["derived_vs_official"]
    print(name, found)
    assert found["dates"] == dates and found["half_sum_max"] < half and found["correlation"] > 0.7
    assert found["members"][0] > 0.92 * {"csi300": 300, "csi500": 500, "csi1000": 1000}[name]


def test_members_reproduce_the_index_in_february_2024(content):
    """No CSI300 member went ex in that month: the total-return version and the official price index grow alike to 0.03 %."""
    derived, place = content.derived["CSI300TR"], np.flatnonzero(content.index_grid.codes == "SH000300")
    first, last = np.searchsorted(content.calendar, np.array(["2024-01-31", "2024-02-29"], dtype="datetime64[D]"))
    mine = derived.level[last - derived.start] / derived.level[first - derived.start]
    closes = content.index_grid.to_days(content.index_fields["close"], place, first, last)[:, 0]
    print(mine - 1, closes[-1] / closes[0] - 1)
    assert abs(mine - closes[-1] / closes[0]) < 3e-4


def test_derived_indices_beside_the_official_ones(content):
    """Total return exceeds the price index by about its dividends; daily differences are small."""
    for name, most in (("CSI300TR", 5e-4), ("CSI500TR", 2e-3), ("CSI1000TR", 2e-3)):
        about = content.about_derived[name]
        print(name, about)
        assert 0.01 < about["annual_difference"] < 0.04 and about["tracking_difference"] < most


def test_bars_lie_within_the_limits_by_the_rules(content):
    """Half a tick of slack. Left are days of relisting after long suspensions and a few wrong bars of the source."""
    fields, grid = content.fields, content.grid
    factor, cell = fields["factor"].astype(float), np.isfinite(fields["limit_up"]) & np.isfinite(fields["close"])
    outside = cell & ((fields["high"] / factor > fields["limit_up"] / factor + 0.005)
                      | (fields["low"] / factor < fields["limit_down"] / factor - 0.005))  # fmt: skip
    boards, years = board_of(grid.codes)[grid.stock], grid.calendar[grid.day].astype("datetime64[Y]")
    table = pd.DataFrame({"board": boards, "year": years, "traded": cell, "outside": outside})
    print(table.groupby(["board", "year"]).sum())
    assert set(boards) == {"main", "chinext", "star"} and cell.sum() > 4_300_000 and outside.sum() <= 10
    at_limit = cell & (np.abs(fields["close"] / factor - fields["limit_up"] / factor) < 0.002)
    assert 0.005 < at_limit.sum() / cell.sum() < 0.03
