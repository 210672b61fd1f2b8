"""The panel: its windows against a plain dictionary look-up, its checks, its views."""
import numpy as np
import pytest
import torch

from qlib_ext.data.panel import Block, Panel, window_lookup
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, DataError, ShapeError
from small_panels import small_panel


def plain_window(panel: Panel, day: int, stock: int, window: int) -> np.ndarray:
    """`[l, f]` by looking every (day, stock) up in a dictionary; written from the documentation of `missing_rows`."""
    block = panel.blocks["stock"].values
    known = {(t, n): block[row] for (t, n), row in np.ndenumerate(panel.rows) if row >= 0}
    empty = np.full(block.shape[1], np.nan, np.float32)
    result = []
    for t in range(day - window + 1, day + 1):
        if (t, stock) in known:
            result.append(known[t, stock])
        elif panel.missing_rows == "nan":
            result.append(empty)
        else:
            earlier = [s for s in range(len(panel.days)) if s < t and (s, stock) in known]
            later = [s for s in range(len(panel.days)) if s > t and (s, stock) in known]
            result.append(known[earlier[-1], stock] if earlier else known[later[0], stock] if later else empty)
    return np.array(result)


@pytest.mark.parametrize("missing_rows", ["nan", "ffill_bfill"])
@pytest.mark.parametrize("window", [1, 4, 45])
def test_every_window_is_what_a_dictionary_gives(missing_rows, window):
    panel = small_panel(missing_rows=missing_rows, window=window, holes=0.3)
    sampler = DaySampler(panel)
    assert (panel.rows[:10, 0] < 0).all() and (panel.rows[0] >= 0).any()       # a late listing, and scores on the first day
    for day in panel.scored_days():
        batch = sampler.batch(day)
        expected = np.stack([plain_window(panel, day, stock, window) for stock in batch.stocks])
        assert batch.x.shape == (len(batch.stocks), window, 3) and batch.x.dtype == torch.float32
        np.testing.assert_array_equal(batch.x.numpy(), expected, err_msg=f"day {day}")


def test_windows_of_any_stock_also_of_absent_ones():
    panel = small_panel(missing_rows="ffill_bfill")
    everybody = np.arange(12)
    found = panel.blocks["stock"].values[panel.window_rows(3, everybody, 6)]
    np.testing.assert_array_equal(found, np.stack([plain_window(panel, 3, n, 6) for n in everybody]))


@pytest.mark.parametrize("missing_rows", ["nan", "ffill_bfill"])
def test_stock_without_any_row_shows_nan(missing_rows):
    rows = np.array([[0, -1], [1, -1], [2, -1]], np.int32)
    assert (window_lookup(rows, 3, missing_rows)[:, 1] == 3).all()
    panel = toy(rows, missing_rows)
    assert np.isnan(panel.blocks["stock"].values[panel.window_rows(2, np.array([1]), 5)]).all()


@pytest.mark.parametrize("missing_rows", ["nan", "ffill_bfill"])
def test_no_row_later_than_the_scored_day(missing_rows):
    panel = small_panel(missing_rows=missing_rows, holes=0.5, seed=3)
    day_of = np.full(len(panel.label), -1)
    for (day, _), row in np.ndenumerate(panel.rows):
        if row >= 0:
            day_of[row] = day
    for day in panel.scored_days():
        assert day_of[panel.window_rows(day, panel.stocks(day), 8)].max() <= day


def toy(rows, missing_rows="nan", **changes) -> Panel:
    count, (t, n) = int((rows >= 0).sum()), rows.shape
    values = np.vstack([np.arange(2.0 * count).reshape(count, 2), [[np.nan, np.nan]]]).astype(np.float32)
    label = np.vstack([np.arange(1.0 * count)[:, None], [[np.nan]]]).astype(np.float32)
    options = dict(blocks={"stock": Block(values, 2, ["A", "B"])}, rows=rows, days=np.datetime64("2020-01-01") + np.arange(t),
                   instruments=np.array([f"S{k}" for k in range(n)]), universe=np.ones((t, n), bool), label=label,
                   label_eval=label, label_raw=label, label_names=["L"], missing_rows=missing_rows)
    return Panel(**{**options, **changes})


ROWS = np.array([[0, 1], [2, -1], [3, 4]], np.int32)


def test_several_blocks_each_with_its_window_and_transform():
    fast = np.vstack([np.arange(5.0 * 12).reshape(5, 12), np.full((1, 12), np.nan)]).astype(np.float32)
    stock = np.vstack([np.arange(10.0).reshape(5, 2), np.full((1, 2), np.nan)]).astype(np.float32)
    panel = toy(ROWS, blocks={"stock": Block(stock, 3, ["A", "B"]),
                              "intraday": Block(fast, 2, [f"bar{m}_{f}" for m in range(4) for f in range(3)], bars_by_features)})
    batch = DaySampler(panel).batch(2)
    assert set(batch.x) == {"stock", "intraday"} and batch.x["stock"].shape == (2, 3, 2)
    assert batch.x["intraday"].shape == (2, 2, 4, 3)
    np.testing.assert_array_equal(batch.x["intraday"][0, 1].numpy(), fast[3].reshape(4, 3))
    np.testing.assert_array_equal(batch.x["intraday"][1, 0].numpy(), np.full((4, 3), np.nan))
    np.testing.assert_array_equal(batch.x["stock"][0].numpy(), stock[[0, 2, 3]])
    with pytest.raises(ConfigError, match="intraday.*stock"):
        panel.n_features


def bars_by_features(x):
    """An intraday block: `[n, l, 12] -> [n, l, 4 bars, 3 features]`."""
    return x.reshape(*x.shape[:2], 4, 3)


def test_view_shares_memory_and_limits_the_days_only():
    panel = small_panel()
    view = panel.view("valid", training=True)
    assert view.span == (18, 24) and view.training and not panel.training and panel.span == (0, 30)
    for name in ("rows", "label", "label_eval", "label_raw", "universe", "days", "lookup"):
        assert getattr(view, name) is getattr(panel, name), name
    assert view.blocks["stock"].values is panel.blocks["stock"].values
    assert set(view.scored_days()) <= set(range(18, 24))
    assert panel.view((2, 5)).view("test").span == (24, 30)
    with pytest.raises(ConfigError, match="'tset'.*test.*train.*valid"):
        panel.view("tset")


def test_scored_stocks_are_members_with_a_row_labelled_or_not():
    panel = small_panel(unlabelled=0.5)
    for day in range(30):
        expected = [n for n in range(12) if panel.universe[day, n] and panel.rows[day, n] >= 0]
        assert panel.stocks(day).tolist() == expected
    silent = small_panel(universe=np.zeros((30, 12), bool))
    assert len(silent.scored_days()) == 0 and len(silent.labelled_days()) == 0


def test_labelled_days_count_scored_stocks_with_the_label_of_the_view():
    panel = small_panel(unlabelled=0.75, seed=5)
    for training, label in ((True, panel.label), (False, panel.label_eval)):
        expected = [day for day in range(30)
                    if sum(bool(np.isfinite(label[panel.rows[day, n]]).any()) for n in panel.stocks(day)) >= 2]
        assert 0 < len(expected) < 30
        assert panel.view((0, 30), training).labelled_days().tolist() == expected
    assert not np.array_equal(panel.view((0, 30), True).labelled_days(), panel.view((0, 30), False).labelled_days())


def test_nbytes_counts_each_array_once():
    panel = toy(ROWS)
    arrays = [panel.blocks["stock"].values, panel.label, panel.rows, panel.lookup, panel.universe]
    assert panel.nbytes() == sum(a.nbytes for a in arrays)


def test_digest_follows_the_content():
    digest = small_panel().digest()
    assert digest == small_panel().digest() and len(digest) == 32
    assert small_panel(seed=1).digest() != digest and small_panel(missing_rows="ffill_bfill").digest() != digest
    assert small_panel(window=5).digest() != digest, "another window is another problem"
    for name in ("label", "label_eval", "label_raw"):
        changed = getattr(small_panel(), name).copy()
        changed[0] += 1
        assert small_panel(**{name: np.nan_to_num(changed)}).digest() != digest, name


@pytest.mark.parametrize("changes, error, said", [
    ({"missing_rows": "ffill"}, ConfigError, "'ffill'.*ffill_bfill"),
    ({"days": np.arange(4).astype("datetime64[D]")}, ShapeError, r"days \(4,\)"),
    ({"instruments": np.array(["a"])}, ShapeError, r"instruments \(1,\)"),
    ({"universe": np.ones((2, 3), bool)}, ShapeError, r"universe \(2, 3\)"),
    ({"label": np.full((4, 1), np.nan, np.float32)}, ShapeError, r"label \(4, 1\)"),
    ({"blocks": {"stock": Block(np.full((4, 1), np.nan, np.float32), 2, ["A"])}}, ShapeError, "block .stock. has 3 rows"),
    ({"label_raw": np.full((4, 1), np.nan, np.float32)}, ShapeError, "label_raw"),
    ({"label_eval": np.full((6, 2), np.nan, np.float32)}, ShapeError, "label_eval"),
    ({"rows": np.array([[0, 1], [2, -1], [3, 9]], np.int32)}, ShapeError, "row"),
    ({"day_aux": {"market": np.zeros((2, 1), np.float32)}}, ShapeError, "day_aux 'market'"),
    ({"stock_aux": {"style": np.zeros((5, 1), np.float32)}}, ShapeError, "stock_aux 'style'"),
])
def test_shapes_that_do_not_fit(changes, error, said):
    with pytest.raises(error, match=said):
        Panel(**{**vars(toy(ROWS)), "lookup": None, **changes})


@pytest.mark.parametrize("values, window, columns, error", [
    (np.zeros((3, 2), np.float32), 2, ["A"], ShapeError),
    (np.zeros(3, np.float32), 2, ["A"], ShapeError),
    (np.full((3, 1), np.nan, np.float32), 0, ["A"], ConfigError),
    (np.zeros((3, 1), np.float32), 2, ["A"], DataError),
    (np.zeros((0, 1), np.float32), 2, ["A"], DataError),
])
def test_block_checks(values, window, columns, error):
    with pytest.raises(error):
        Block(values, window, columns)
