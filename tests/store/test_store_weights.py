"""Index weights against a reference that goes day by day and stock by stock."""

import numpy as np
import pandas as pd
import pytest
from store_market import make_tables, read_field

from qlib_ext.errors import DataError
from qlib_ext.store import read_metadata
from qlib_ext.store import weights as weights_module
from qlib_ext.store.grid import Grid
from qlib_ext.store.indices import index_level
from qlib_ext.store.ingest import ingest
from qlib_ext.store.tables import read_tables

STOCKS = ["SH600000", "SH688001", "SZ000001", "SZ300001"]


def reference(store, tables, index_name: str) -> pd.DataFrame:
    """Weights by the written rule, in plain loops over days and members. [t, n]"""
    close = pd.DataFrame({code: read_field(store, code, "close").astype(float) for code in STOCKS}).ffill()
    cap = pd.DataFrame({code: read_field(store, code, "float_cap").astype(float) for code in STOCKS})
    official = tables["index_weights"][tables["index_weights"]["index"] == index_name]
    listed = {code: read_field(store, code, "factor").index for code in STOCKS}
    spans = tables["membership"][tables["membership"]["index"] == index_name]
    result = pd.DataFrame(index=close.index, columns=STOCKS, dtype=float)
    for day in close.index:
        inside = spans[(spans["start"] <= day) & (spans["end"] >= day)]["instrument"]
        members = [code for code in STOCKS if code in set(inside) and day in listed[code]]
        dates = official["date"][official["date"] < day]
        weights = {}
        if len(dates):
            date = dates.max()
            given = official[official["date"] == date].set_index("instrument")["weight"]
            for code in members:
                if code in given.index:
                    past = close[code][:date].dropna()
                    since = close[code][close.index > date].dropna()
                    base = past.iloc[-1] if len(past) else since.iloc[0]
                    weights[code] = given[code] / given.sum() * close[code][day] / base
        caps = {code: cap[code][day] for code in members}
        known = [value for value in caps.values() if np.isfinite(value)]
        both = [weights[code] / caps[code] for code in weights if np.isfinite(caps[code])]
        scale = np.median(both) if both else 1.0
        for code in members:
            if code not in weights:
                weights[code] = scale * (caps[code] if np.isfinite(caps[code]) else np.median(known)) if known else 1.0
        for code in members:
            result.loc[day, code] = weights[code] / sum(weights.values())
    return result


@pytest.mark.parametrize("index_name", ["csi300", "csi500"])
def test_weights_follow_the_rule(small_store, index_name):
    expected = reference(small_store, make_tables(), index_name)
    for code in STOCKS:
        stored = read_field(small_store, code, f"{index_name}_weight").reindex(expected.index)
        np.testing.assert_allclose(stored, expected[code], rtol=2e-6, equal_nan=True)


def test_weights_sum_to_one_and_belong_to_members(small_store):
    frame = pd.DataFrame({code: read_field(small_store, code, "csi300_weight") for code in STOCKS})
    np.testing.assert_allclose(frame.sum(axis=1), 1, atol=1e-6)
    days = frame.index
    assert frame["SH688001"].isna().all()
    assert frame["SZ300001"][: days[17]].isna().all() and frame["SZ300001"][days[18] :].notna().all()
    assert frame["SZ000001"][days[30] :].isna().all()


def test_official_weights_count_from_the_next_day_and_drift(small_store):
    """By hand: 60 and 30 of 100 (10 have no bars), so 2/3 and 1/3 on the first day; then 50, 25, 15 after day 24."""
    weight = {code: read_field(small_store, code, "csi300_weight") for code in STOCKS}
    close = {code: read_field(small_store, code, "close") for code in STOCKS}
    days = weight["SH600000"].index
    assert weight["SH600000"].iloc[0] == pytest.approx(2 / 3) and weight["SZ000001"].iloc[0] == pytest.approx(1 / 3)
    grown = [2 * close["SH600000"].iloc[9] / close["SH600000"].iloc[0], close["SZ000001"].iloc[9] / close["SZ000001"].iloc[0]]
    assert weight["SH600000"].iloc[9] == pytest.approx(grown[0] / sum(grown), rel=1e-5)
    ratio = weight["SZ300001"] / weight["SH600000"]
    grown = [close[code][days[25]] / close[code][days[24]] for code in ("SZ300001", "SH600000")]
    assert ratio[days[25]] == pytest.approx(15 / 50 * grown[0] / grown[1], rel=1e-5)
    assert ratio[days[24]] != pytest.approx(15 / 50, rel=1e-2)  # the date's own weights are not known on it


def test_sources_are_declared(small_store):
    weights = read_metadata(small_store)["weights"]
    assert weights["csi300"]["official_unit"] == "percent" and weights["csi300"]["unit"] == "fraction"
    assert weights["csi300"]["official_dates"] == 2 and weights["csi300"]["official_codes_without_bars"] == 1
    assert [span["source"] for span in weights["csi300"]["spans"]] == ["official"]
    assert weights["csi500"]["source"] == "float cap"
    assert [span["source"] for span in weights["csi500"]["spans"]] == ["none", "float_cap", "none", "equal", "float_cap"]


def test_fractions_give_the_same_weights(small_store, tables, tmp_path):
    tables["index_weights"]["weight"] /= 100
    store = ingest(tables, tmp_path / "store", index_names=("csi300", "csi500"))
    assert read_metadata(store)["weights"]["csi300"]["official_unit"] == "fraction"
    one, two = (read_field(place, "SZ300001", "csi300_weight") for place in (store, small_store))
    np.testing.assert_allclose(one, two, rtol=1e-6)


def test_weights_in_no_unit_are_refused(tables, tmp_path):
    tables["index_weights"].loc[0, "weight"] = 20.0
    with pytest.raises(DataError, match="csi300 sum to 60 on 2019-12-31; every date must sum to 1"):
        ingest(tables, tmp_path / "store")


def test_official_weights_with_unknown_caps(tables, tmp_path):
    """Without any float cap, a member without an official weight takes the median official one."""
    del tables["float_shares_monthly"]
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    frame = pd.DataFrame({code: read_field(store, code, "csi300_weight") for code in STOCKS})
    day = frame.index[19]
    official = frame.loc[day, ["SH600000", "SZ000001"]]
    assert frame.loc[day, "SZ300001"] == pytest.approx(official.median(), rel=1e-6) and frame.loc[day].sum() == pytest.approx(1)


def test_derived_weights_are_compared_with_official_ones(small_store, tables, tmp_path):
    """At each official date inside the bars: weights of a store without official ones, against the official ones, by pandas."""
    about = read_metadata(small_store)["weights"]
    found = about["csi300"]["derived_vs_official"]
    assert "derived_vs_official" not in about["csi500"]
    official = tables.pop("index_weights")
    store = ingest(tables, tmp_path / "store", index_names=("csi300",))
    derived = pd.DataFrame({code: read_field(store, code, "csi300_weight").astype(float) for code in STOCKS})
    rows = []
    for date, given in official.groupby("date"):
        if date < derived.index[0]:
            continue
        theirs = given.set_index("instrument")["weight"].reindex(STOCKS)
        theirs /= theirs.sum()
        mine = derived.loc[date]
        gap = (mine.fillna(0) - theirs.fillna(0)).abs()
        both = pd.concat([mine, theirs], axis=1).dropna()
        rows.append((gap.sum() / 2, gap.max(), both.corr().iloc[0, 1], len(both)))
    assert len(rows) == found["dates"] == 1
    expected = [rows[0][0], rows[0][0], rows[0][1], rows[0][2]]
    measured = [found[name] for name in ("half_sum_mean", "half_sum_max", "largest", "correlation")]
    np.testing.assert_allclose(measured, expected, rtol=1e-5)
    assert found["members"] == [rows[0][3]] * 2 and rows[0][0] > 0.01


def test_no_difference_where_official_weights_are_those_of_float_cap(small_store, tables, tmp_path):
    """Official weights made of float caps: the comparison is zero."""
    date = tables["index_weights"]["date"].max()
    tables["index_weights"] = tables["index_weights"].query("date == @date and instrument != 'SH600999'").copy()
    cap = pd.Series({code: read_field(small_store, code, "float_cap")[date] for code in STOCKS})
    share = cap[tables["index_weights"]["instrument"]].to_numpy(dtype=float)
    tables["index_weights"]["weight"] = share / share.sum()
    found = read_metadata(ingest(tables, tmp_path / "store", index_names=("csi300",)))["weights"]["csi300"]["derived_vs_official"]
    assert found["half_sum_max"] < 1e-7 and found["correlation"] == pytest.approx(1)


def test_stocks_that_join_later_leave_earlier_weights_bit_by_bit(monkeypatch):
    """60 stocks, later 40 more among them: sums of floats depend on their order, which must not show in any bit."""
    generator = np.random.default_rng(3)
    codes = np.array([f"SH60{place:04d}" for place in range(100)])
    days = pd.bdate_range("2020-01-02", periods=30)
    price = np.exp(generator.normal(3, 1, 100) + 0.02 * generator.standard_normal((30, 100)).cumsum(axis=0))
    late = generator.random(100) < 0.4

    def computed(kept: np.ndarray):
        """Weights of the first 20 days [20, early stocks] and the index made of them [20]; `kept [t, n]`: bars there are."""
        day, stock = np.nonzero(kept)
        bars = pd.DataFrame({"date": days[day], "instrument": codes[stock], "close": price[kept]})
        bars = bars.assign(open=1.0, high=1.0, low=1.0, volume=1.0, factor=1.0)
        grid = Grid(read_tables({"bars": bars}, required=())["bars"], days.to_numpy().astype("datetime64[D]"))
        close = price[grid.day, np.searchsorted(codes, grid.codes)[grid.stock]]
        spans = {code: [(grid.calendar[0], grid.calendar[-1])] for code in grid.codes.tolist()}
        whole = grid.open_ended()
        cap = whole.carry(whole.expand(1e6 * close))
        cells = weights_module.index_weights("csi300", spans, None, grid, close, cap).cells
        level = index_level(grid, cells, np.sin(1e6 * close) / 50).level
        return grid.to_days(cells, np.flatnonzero(np.isin(grid.codes, codes[~late])), 0, 19), level[:19]

    few, many = np.zeros((30, 100), dtype=bool), np.ones((30, 100), dtype=bool)
    few[:20, ~late], many[:20, late] = True, False

    def alike() -> bool:
        return all(np.array_equal(one, two) for one, two in zip(computed(few), computed(many)))

    assert alike()
    plain = lambda weight: weight / np.nansum(weight, axis=1, keepdims=True)  # noqa: E731
    monkeypatch.setattr(weights_module, "_normalised", plain)
    assert not alike()
