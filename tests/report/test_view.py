"""What reports read from a store: against Qlib's own reader and the exchange, point in time, and in stores that lack fields."""
import shutil

import numpy as np
import pandas as pd
import pytest
from report_market import FIRST, LAST, signal
from small_market import prepared, start_qlib

from qlib_ext.data.field_reader import FieldReader
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.view import check_scores, factor_view, index_prices, portfolio_view

OPTIONAL = ("factor", "limit_up", "limit_down", "float_cap", "total_cap", "industry", "vwap", "amount", "volume", "csi1000_weight")


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """(store, snapshots, scores, labels); Qlib runs on the store."""
    store, risk = prepared(tmp_path_factory.getbasetemp() / "small_market")
    start_qlib(store)
    predictions, labels = signal(store)
    return store, risk, check_scores(predictions, 30)[0], labels["LABEL0"]


@pytest.fixture
def other(market, tmp_path):
    """A copy of the store that a test may change; Qlib runs on it, and on the whole one again afterwards."""
    shutil.copytree(market[0], tmp_path / "store")
    start_qlib(tmp_path / "store")
    yield tmp_path / "store"
    start_qlib(market[0])


def idle(days) -> pd.DataFrame:
    """Qlib's daily report of an account that holds nothing."""
    return pd.DataFrame(0.0, index=pd.DatetimeIndex(days), columns=["return", "cost", "turnover", "bench"])


def grid(field: str, view) -> np.ndarray:
    """A field by Qlib's own reader, laid like the view."""
    from qlib.data import D
    frame = D.features(list(view.instruments), [field], start_time=view.days[0], end_time=view.days[-1]).iloc[:, 0]
    return frame.unstack(level="instrument").reindex(index=pd.DatetimeIndex(view.days), columns=view.instruments).to_numpy(dtype=float)


def test_a_signal_beside_its_market(market):
    store, risk, scores, labels = market
    view, notes = factor_view(scores, labels, "vwap", 20, "csi1000", True, str(risk), 5)
    last = scores.index.get_level_values(0).max()
    assert str(view.days[0]) == str(scores.index.get_level_values(0).min().date())
    assert (view.days > np.datetime64(last, "D")).sum() == 21 and notes == []
    for name, field in (("entry", "$vwap"), ("close", "$close")):
        np.testing.assert_array_equal(getattr(view, name), grid(field, view))
    cap = grid("$float_cap", view)
    np.testing.assert_array_equal(view.cap[np.isfinite(cap)], cap[np.isfinite(cap)])
    for values, column in ((view.score, scores), (view.label, labels)):
        expected = column.unstack().reindex(index=pd.DatetimeIndex(view.days), columns=view.instruments)
        np.testing.assert_array_equal(values, expected)
    from qlib.data import D
    index = D.features(["SH000852"], ["$vwap"], start_time=view.days[0], end_time=view.days[-1]).iloc[:, 0]
    np.testing.assert_array_equal(view.benchmark, index)
    numbers = grid("$industry", view)
    assert (view.industry[np.isnan(numbers)] == "").all() and len(np.unique(view.industry)) > 3
    assert all(len(np.unique(view.industry[numbers == one])) == 1 for one in np.unique(numbers[np.isfinite(numbers)]))
    assert set(view.board) >= {"main", "chinext"} and {"size", "beta", "momentum"} <= set(view.styles)


@pytest.mark.parametrize("entry", ["vwap", "open", "close"])
def test_tradable_is_what_the_exchange_says(market, entry):
    from qlib_ext.portfolio.exchange import AShareExchange
    view, _ = factor_view(market[2], None, entry, 1, None, False)
    quotes = AShareExchange(view.days[0], view.days[-1], list(view.instruments), entry).quotes
    assert np.array_equal(quotes.instruments, view.instruments) and np.array_equal(quotes.days, view.days)
    np.testing.assert_array_equal(view.buyable, quotes.can_buy)
    np.testing.assert_array_equal(view.sellable, quotes.can_sell)
    assert (view.buyable != view.sellable).any() or entry == "vwap"


# ---- point in time --------------------------------------------------------------------------------------------------------------
def corrupt(store, day) -> None:
    """Triple every value of every stock after a day, whatever the field."""
    calendar = np.loadtxt(store / "calendars" / "day.txt", dtype="datetime64[D]")
    after = int(np.searchsorted(calendar, day, side="right"))
    for file in (store / "features").glob("s*/*.bin"):
        values = np.fromfile(file, "<f4")
        values[1 + max(after - int(values[0]), 0):] *= 3
        values.tofile(file)


def views(market):
    _, risk, scores, labels = market
    view, _ = factor_view(scores, labels, "vwap", 20, "csi1000", False)
    days = view.days[10:40]
    return view, portfolio_view(idle(days), {}, None, None, "csi1000", False)[0]


def same_until(before, after, t: int) -> None:
    """All that a group formed at place t of the days rests on, and what it rests on in a portfolio."""
    for name in ("score", "entry", "close", "buyable", "sellable", "cap", "industry"):
        np.testing.assert_array_equal(getattr(before[0], name)[:t + 1], getattr(after[0], name)[:t + 1], err_msg=name)
    np.testing.assert_array_equal(before[0].benchmark[:t + 1], after[0].benchmark[:t + 1])
    row = int(np.searchsorted(before[1].closes, before[0].days[t])) + 1
    np.testing.assert_array_equal(before[1].bench[:row], after[1].bench[:row])


def test_what_comes_later_changes_nothing_before(market, other, monkeypatch):
    before, t = views(market), 25
    corrupt(other, before[0].days[t])
    start_qlib(other)
    after = views(market)
    same_until(before, after, t)
    with pytest.raises(AssertionError):
        same_until(before, after, t + 1)
    lay = FieldReader.lay
    monkeypatch.setattr(FieldReader, "lay", lambda self, name, codes, back=0, carried=False: lay(self, name, codes, back - 1, carried))
    with pytest.raises(AssertionError):                                # a reader that is a day ahead is caught
        same_until(before, views(market), t)


def test_exposures_are_those_of_the_snapshot_of_the_day(market):
    from qlib_ext.store.snapshots import SnapshotStore
    store, risk, scores, labels = market
    view, _ = factor_view(scores, None, "close", 1, None, "auto", str(risk))
    shot = SnapshotStore(risk).read(view.days[30])
    rows = shot.rows(view.instruments)
    for name in ("size", "beta"):
        expected = np.where(rows >= 0, shot.exposure[rows, shot.factors.index(name)], np.nan)
        np.testing.assert_array_equal(view.styles[name][30], expected)
    book, _ = portfolio_view(idle(view.days[30:33]), {}, None, None, "csi1000", True, str(risk))
    assert book.closes[1] == view.days[30]
    rows = shot.rows(book.instruments)
    inside = [k for k, name in enumerate(shot.factors) if name.startswith("industry:")]
    named = [shot.factors[inside[int(shot.exposure[row, inside].argmax())]] if row >= 0 and shot.exposure[row, inside].any() else ""
             for row in rows]
    assert list(book.industry[1]) == named and any(named)
    day = SnapshotStore(risk).read_day(view.days[31])
    np.testing.assert_allclose(book.factor_returns.iloc[1][list(day.snapshot.factors)], day.factor_return)
    np.testing.assert_array_equal(book.residual[1], np.where(day.snapshot.rows(book.instruments) >= 0,
                                                             day.residual[day.snapshot.rows(book.instruments)], np.nan))


# ---- what a store lacks ---------------------------------------------------------------------------------------------------------
def test_a_store_with_bars_only(market, other):
    for name in OPTIONAL:
        for file in (other / "features").glob(f"*/{name}.day.bin"):
            file.unlink()
    (other / "qlib_ext_store.json").unlink()
    start_qlib(other)
    scores = market[2]
    with pytest.raises(ConfigError, match=r"no field vwap: choose another entry of \['open', 'close'\]"):
        factor_view(scores, styles=False)
    view, notes = factor_view(scores, None, "open", 1, "SH000852", "auto", str(other.parent / "nothing"))
    assert view.industry is None and np.isnan(view.cap).all() and not view.styles and np.isfinite(view.benchmark).all()
    np.testing.assert_array_equal(view.buyable, np.isfinite(view.entry))
    said = " ".join(notes)
    assert all(word in said for word in ("no volume", "no price limits", "no market values", "no styles"))
    with pytest.raises(ConfigError, match=r"'SH000016' has no bars .*\['SH000300', 'SH000905', 'SH000852'\]"):
        factor_view(scores, None, "open", 1, "SH000016", False)
    book, notes = portfolio_view(idle(view.days[5:8]), {}, None, None, "csi1000", False)
    assert "no field csi1000_weight" in " ".join(notes) and "benchmarks.pkl" in " ".join(notes)
    assert len(np.unique(book.bench[2][book.bench[2] > 0])) == 1 and book.bench[2].sum() == pytest.approx(1)


def test_an_index_without_the_price_of_the_entry(market, other):
    (other / "features" / "sh000852" / "vwap.day.bin").unlink()
    days = np.unique(market[2].index.get_level_values(0)).astype("datetime64[D]")
    prices, notes = index_prices("csi1000", "vwap", days)
    assert "its closes stand in" in notes[0]
    np.testing.assert_array_equal(prices, index_prices("csi1000", "close", days)[0])
    assert index_prices(None, "vwap", days) == (None, [])


# ---- predictions ----------------------------------------------------------------------------------------------------------------
def test_odd_predictions_are_named_or_noted(market):
    scores, days = market[2].rename("score"), market[2].index.get_level_values(0).unique()
    assert check_scores(scores, 30)[1] == []
    constant = scores.where(scores.index.get_level_values(0) != days[3], 1.0)
    gap = constant[constant.index.get_level_values(0) != days[5]]
    few = gap[(gap.index.get_level_values(0) != days[7]) | (gap.groupby(level=0).cumcount() < 4)]
    column, notes = check_scores(few.to_frame(), 30)
    assert len(column) == len(few)
    for note, day, words in zip(notes, (days[5], days[7], days[3]), ("without any prediction", "fewer than 30", "all scores are alike")):
        assert note.startswith("1 trading day ") and words in note and f"{day:%Y-%m-%d}" in note
    with pytest.raises(DataError, match="all alike, on every day"):
        check_scores(scores * 0, 30)
    with pytest.raises(DataError, match="at most 1 stocks on a day, and a day needs 30"):
        check_scores(scores.groupby(level=0).head(1), 30)
    with pytest.raises(DataError, match="at most 0 stocks"):
        check_scores(scores * np.nan, 30)
    with pytest.raises(DataError, match="twice"):
        check_scores(pd.concat([scores, scores.iloc[:1]]), 30)
    weekend = scores.iloc[:60].rename(index={days[0]: pd.Timestamp("2016-07-23")}, level=0)
    with pytest.raises(DataError, match="no trading days of the store .2016-07-23"):
        check_scores(weekend, 30)
    with pytest.raises(DataError, match="index"):
        check_scores(scores.reset_index(drop=True), 30)
    swapped, _ = check_scores(scores.swaplevel(), 30)
    pd.testing.assert_series_equal(swapped.sort_index(), scores.sort_index())
    infinite, _ = check_scores(scores.where(np.arange(len(scores)) > 0, np.inf), 30)
    assert len(infinite) == len(scores) - 1


def test_only_members_of_a_universe(market):
    from qlib_ext.data.universe import universe_mask
    column, _ = check_scores(market[2], 10, "csi1000")
    assert len(column) < len(market[2]) and universe_mask(column.index, "csi1000").all()
    with pytest.raises(ConfigError, match="universe 'csi9' is not in the store"):
        check_scores(market[2], 10, "csi9")


def test_wrong_options_and_days_are_named(market):
    with pytest.raises(ConfigError, match="entry='twap'"):
        factor_view(market[2], entry="twap")
    with pytest.raises(ConfigError, match="styles='yes'"):
        factor_view(market[2], styles="yes")
    with pytest.raises(DataError, match="none of the 1 stocks"):
        factor_view(market[2].rename(index=lambda code: "SH699999", level=1).groupby(level=[0, 1]).first(), styles=False)
    with pytest.raises(DataError, match="not consecutive trading days"):
        portfolio_view(idle([FIRST, LAST]), {}, None, None, None, False)
