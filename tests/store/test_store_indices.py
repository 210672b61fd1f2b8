"""Total-return and price versions of indices against a loop over days and members, and against what must hold for them."""

import logging

import numpy as np
import pandas as pd
import pytest
from store_market import STOCKS, make_tables, read_field

from qlib_ext.store import read_metadata
from qlib_ext.store.ingest import ingest

INDICES = ("csi300", "csi500")


def with_dividends() -> dict:
    """The small market with more ex-dates, one in a suspension, one for a bonus that the factor does not show."""
    tables = make_tables()
    days = tables["bars"].query("instrument == 'SH600000'")["date"].tolist()
    rows = pd.DataFrame([("SZ300001", days[13], 0.25, 0.1), ("SZ000001", days[27], 0.0, 0.05)],
                        columns=["instrument", "ex_date", "cash", "bonus"])  # fmt: skip
    tables["dividends"] = pd.concat([tables["dividends"], rows], ignore_index=True)
    return tables


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ingest(with_dividends(), tmp_path_factory.mktemp("indices") / "store", index_names=INDICES)


def reference(store, tables: dict, name: str, version: str) -> pd.Series:
    """Levels by the definition. A day after a day without weights has none, and the level goes on from the last one."""
    weight = pd.DataFrame({code: read_field(store, code, f"{name}_weight").astype(float) for code in STOCKS}).sort_index()
    rows = {code: tables["bars"].query("instrument == @code and volume > 0").set_index("date") for code in STOCKS}
    paid = tables["dividends"]
    level, levels = 1000.0, {}
    for before, day in zip(weight.index[:-1], weight.index[1:]):
        members = weight.loc[before].dropna()
        if members.empty:
            continue
        if not levels:
            levels[before] = level
        growth = 0.0
        for code, share in members.items():
            bars = rows[code]
            if day not in bars.index or not (bars.index < day).any():
                continue
            last, now = bars[bars.index < day].iloc[-1], bars.loc[day]
            since = paid[(paid["instrument"] == code) & (paid["ex_date"] > last.name) & (paid["ex_date"] <= day)]
            if version == "PR" and len(since):
                move = now["close"] * (1 + since["bonus"]).prod() / last["close"] - 1
            else:
                move = now["close"] * now["factor"] / (last["close"] * last["factor"]) - 1
            growth += share * move
        level *= 1 + growth
        levels[day] = level
    return pd.Series(levels)


@pytest.mark.parametrize("name", INDICES)
@pytest.mark.parametrize("version", ["TR", "PR"])
def test_levels_follow_the_definition(store, name, version):
    expected = reference(store, with_dividends(), name, version)
    stored = read_field(store, f"{name.upper()}{version}", "close")
    assert stored.index[0] == expected.index[0] and stored.iloc[0] == 1000
    np.testing.assert_allclose(stored, expected.reindex(stored.index), rtol=1e-6)
    assert stored.isna().any() == (name == "csi500")  # nobody is in it for some days
    known = stored.dropna().astype(float)
    change = read_field(store, f"{name.upper()}{version}", "change")
    np.testing.assert_allclose(change[known.index], known / known.shift() - 1, atol=3e-7)
    assert (read_field(store, f"{name.upper()}{version}", "factor") == 1).all()
    fields = {file.name.split(".")[0] for file in (store / "features" / f"{name}{version}".lower()).iterdir()}
    assert fields == {"close", "change", "factor"}


def test_cash_is_the_difference(small_store):
    """Everybody's ex-date is day 15 in the small market: there the versions part by the members' cash, before and after they
    move alike, but for SH600000, whose dividend is all bonus."""
    total, price = (read_field(small_store, f"CSI300{version}", "close").astype(float) for version in ("TR", "PR"))
    days = total.index
    gap = total.pct_change() - price.pct_change()
    assert gap.drop(days[15]).abs().max() < 1e-6
    paid = make_tables()["dividends"].set_index("instrument")["cash"]
    before = make_tables()["bars"].query("instrument == 'SZ000001'").set_index("date")["close"]
    weight = read_field(small_store, "SZ000001", "csi300_weight")
    factor = 3.8 / 3.5  # cash is paid on the old close, and counts again by what the day gained
    expected = weight[days[14]] * (factor - 1) * before[days[15]] / before[days[14]]
    assert gap[days[15]] == pytest.approx(expected, rel=1e-4) and paid["SZ000001"] > 0


def test_members_weights_and_returns_of_one_day_by_hand(small_store):
    level = read_field(small_store, "CSI300TR", "close")
    days = level.index
    expected = sum(read_field(small_store, code, "csi300_weight")[days[4]] * read_field(small_store, code, "change")[days[5]]
                   for code in ("SH600000", "SZ000001"))
    assert level[days[5]] / level[days[4]] - 1 == pytest.approx(expected, abs=2e-7)


def test_without_dividends_there_is_no_price_version(tables, tmp_path, caplog):
    del tables["dividends"]
    with caplog.at_level(logging.WARNING):
        store = ingest(tables, tmp_path / "store", index_names=INDICES)
    assert "no price versions" in caplog.text
    assert list(read_metadata(store)["indices"]) == ["CSI300TR", "CSI500TR"]
    assert not {"cash_dividend", "bonus_shares"} & set(read_metadata(store)["fields"])


def test_metadata_compare_with_the_bars_of_the_index(store):
    """Annual and tracking difference against SH000300 by pandas; csi500 has no bars of its index in the small market."""
    about = read_metadata(store)["indices"]
    assert set(about) == {"CSI300TR", "CSI300PR", "CSI500TR", "CSI500PR"} and "against" not in about["CSI500TR"]
    for code in ("CSI300TR", "CSI300PR"):
        mine, theirs = read_field(store, code, "close").astype(float), read_field(store, "SH000300", "close").astype(float)
        theirs = theirs.reindex(mine.index)
        years = (mine.index[-1] - mine.index[0]).days / 365.25
        growth = [(levels.iloc[-1] / levels.iloc[0]) ** (1 / years) - 1 for levels in (mine, theirs)]
        assert about[code]["annual_difference"] == pytest.approx(growth[0] - growth[1], abs=1e-5)
        daily = (mine.pct_change() - theirs.pct_change()).dropna()
        assert about[code]["tracking_difference"] == pytest.approx(daily.std(ddof=0), abs=1e-6)
        assert about[code]["against"] == "SH000300" and about[code]["base"] == 1000
