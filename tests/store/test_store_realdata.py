"""The real tables: they pass the checks, and the store holds what they say."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from store_market import read_field

from qlib_ext.store import read_metadata
from qlib_ext.store.ingest import ingest

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def real_tables() -> Path:
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    folder = Path(os.environ.get("QLIB_EXT_REAL_DATA", beside)) / "ashare_daily"
    if not (folder / "bars.parquet").is_file():
        pytest.skip("the real tables are absent: set QLIB_EXT_REAL_DATA to the folder that holds ashare_daily")
    return folder


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
    np.testing.assert_allclose(frame.sum(axis=1), 1, atol=1e-5)
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
