"""Batches: one date each, unlabelled stocks kept, the same bits whatever else is sampled; the order of an epoch."""
import numpy as np
import pytest
import torch

from qlib_ext.data.panel import Block
from qlib_ext.data.sampler import DaySampler, epoch_order
from qlib_ext.errors import DataError
from small_panels import small_panel


def test_a_batch_holds_one_date_and_its_own_stocks():
    """Every row of a batch is traced back to its (day, stock): features carry the date and the code they belong to."""
    panel = small_panel()
    values = np.full((len(panel.label), 2), np.nan, np.float32)
    for (day, stock), row in np.ndenumerate(panel.rows):
        if row >= 0:
            values[row] = day, stock
    panel.blocks["stock"] = Block(values, 3, ["day", "stock"])
    sampler = DaySampler(panel)
    for day in panel.scored_days():
        batch = sampler.batch(day)
        assert batch.day == day and batch.date == panel.days[day]
        assert (batch.x[:, -1, 0] == day).all(), "rows of another date"
        assert batch.x[:, -1, 1].tolist() == batch.stocks.tolist()
        for lag in range(3):
            seen = batch.x[:, lag, 0]
            assert set(seen[~torch.isnan(seen)].tolist()) <= {day - 2 + lag}


def test_labels_masks_and_raw_labels_of_each_stock():
    panel = small_panel(horizons=2)
    panel.label[::3, 1] = np.nan
    for training, label in ((True, panel.label), (False, panel.label_eval)):
        view = panel.view("train", training)
        sampler, unlabelled = DaySampler(view), 0
        for day in view.scored_days():
            batch = sampler.batch(day)
            assert batch.stocks.tolist() == panel.stocks(day).tolist()
            rows = [panel.rows[day, n] for n in batch.stocks]
            np.testing.assert_array_equal(batch.y.numpy(), label[rows])
            np.testing.assert_array_equal(batch.y_raw.numpy(), panel.label_raw[rows])
            assert batch.mask.dtype == torch.bool and torch.equal(batch.mask, ~torch.isnan(batch.y))
            assert batch.mask.shape == (len(rows), 2)
            unlabelled += int((~batch.mask).all(dim=1).sum())
        assert unlabelled > 0, "unlabelled stocks must stay in the batch"


def test_aux_of_the_day_and_of_each_stock():
    panel = small_panel()
    style = np.arange(2.0 * len(panel.label)).reshape(-1, 2).astype(np.float32)
    style[-1] = np.nan
    panel.stock_aux["style"] = style
    batch = DaySampler(panel).batch(7)
    assert set(batch.aux) == {"market", "style"}
    np.testing.assert_array_equal(batch.aux["market"].numpy(), panel.day_aux["market"][7])
    np.testing.assert_array_equal(batch.aux["style"].numpy(), style[panel.rows[7, batch.stocks]])


def test_aux_that_nobody_asks_for_is_not_gathered(monkeypatch):
    panel, asked, real = small_panel(), [], DaySampler._put
    panel.stock_aux["style"] = np.ones((len(panel.label), 2), np.float32)
    monkeypatch.setattr(DaySampler, "_put", lambda self, array: asked.append(id(array)) or real(self, array))
    sampler = DaySampler(panel)
    batch = sampler.batch(7)
    assert id(panel.stock_aux["style"]) not in asked and id(panel.day_aux["market"]) not in asked
    assert batch.aux["style"] is batch.aux["style"] and asked.count(id(panel.stock_aux["style"])) == 1
    assert DaySampler(panel, beside=sampler)._tables is sampler._tables
    with pytest.raises(KeyError):
        batch.aux["size"]


@pytest.mark.parametrize("missing_rows", ["nan", "ffill_bfill"])
def test_a_day_has_the_same_bits_in_every_view(missing_rows):
    panel = small_panel(missing_rows=missing_rows)
    for day in (18, 20, 23):
        views = [panel, panel.view("valid"), panel.view((day, day + 1)), panel.view((0, day + 1)), panel.view((day, 30))]
        batches = [DaySampler(view).batch(day) for view in views]
        assert all(day in view.scored_days() for view in views)
        for other in batches[1:]:
            for name in ("x", "y", "y_raw"):
                one, two = getattr(batches[0], name).numpy(), getattr(other, name).numpy()
                assert one.tobytes() == two.tobytes(), name
            assert batches[0].stocks.tolist() == other.stocks.tolist()


@pytest.mark.parametrize("missing_rows", ["nan", "ffill_bfill"])
def test_later_days_do_not_reach_a_batch(missing_rows):
    """Cut everything after the day off the tables: the batch keeps its bits."""
    panel = small_panel(missing_rows=missing_rows, holes=0.4)
    for day in (0, 9, 21):
        later = panel.rows[day + 1:]
        for table in (panel.blocks["stock"].values, panel.label, panel.label_raw):
            assert np.isnan(table[-1]).all()
        cut = panel.rows.copy()
        cut[day + 1:] = np.where(later >= 0, 0, -1)                 # other rows, and others present
        cut[day + 1:, ::2] = -1
        shorter = small_panel(missing_rows=missing_rows, holes=0.4, rows=cut)
        one, two = DaySampler(panel).batch(day), DaySampler(shorter).batch(day)
        assert one.x.numpy().tobytes() == two.x.numpy().tobytes()


def test_float16_tables_come_out_as_float32():
    panel = small_panel()
    panel.blocks["stock"].values = panel.blocks["stock"].values.astype(np.float16)
    assert DaySampler(panel).batch(5).x.dtype == torch.float32


def test_tables_are_shared_and_not_written():
    panel = small_panel()
    before = panel.blocks["stock"].values.copy()
    sampler = DaySampler(panel)
    sampler.batch(5).x.fill_(7)
    np.testing.assert_array_equal(panel.blocks["stock"].values, before)
    panel.blocks["stock"].values[panel.rows[5, panel.stocks(5)[0]]] = 3
    assert (sampler.batch(5).x[0, -1] == 3).all(), "on the CPU the table is not copied"


def test_a_day_without_stocks_is_named():
    universe = np.ones((30, 12), bool)
    universe[4] = False
    with pytest.raises(DataError, match="2020-01-05.*scored_days"):
        DaySampler(small_panel(universe=universe)).batch(4)


def test_epoch_order_follows_from_seed_and_epoch_alone():
    units = np.arange(100, 160)
    order = epoch_order(units, seed=3, epoch=5)
    np.random.seed(1)
    torch.manual_seed(1)
    np.testing.assert_array_equal(order, epoch_order(units, 3, 5))
    assert sorted(order) == units.tolist() and order.tolist() != units.tolist()
    assert epoch_order(units, 3, 6).tolist() != order.tolist() and epoch_order(units, 4, 5).tolist() != order.tolist()
    subset = epoch_order(units, 3, 5, count=10)
    assert len(set(subset)) == 10 and set(subset) <= set(units)
    assert set(subset) != set(epoch_order(units, 3, 6, count=10)), "each epoch draws its own days"
    assert sorted(epoch_order(units, 3, 5, count=1000)) == units.tolist()
    seen = set().union(*(epoch_order(units, 0, epoch, count=10).tolist() for epoch in range(60)))
    assert seen == set(units.tolist()), "over the epochs every day is drawn"


def test_two_views_share_their_tables_on_a_device(monkeypatch):
    """Training and validation of one panel hold the feature table once (on a GPU that is its largest allocation)."""
    copied = []
    original = torch.Tensor.to

    def to(self, *arguments, **options):
        copied.append(self.shape)
        return original(self, *arguments, **options)

    panel = small_panel()
    monkeypatch.setattr(torch.Tensor, "to", to)
    first = DaySampler(panel.view("train", training=True))
    before = len(copied)
    second = DaySampler(panel.view("valid"), beside=first)
    assert before == 3 and copied[before:] == [panel.label_eval.shape], "three tables, no aux; then a label"
    monkeypatch.undo()
    alone = DaySampler(panel.view("valid"))
    for name in ("x", "y", "y_raw"):
        assert getattr(second.batch(20), name).numpy().tobytes() == getattr(alone.batch(20), name).numpy().tobytes()
    assert any(not torch.equal(first.batch(day).mask, second.batch(day).mask) for day in range(18, 24)), "each has its own labels"
