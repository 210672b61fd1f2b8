"""AGRU against its equations step by step, its ablations, one block of several, and several in one network."""
import itertools

import numpy as np
import pytest
import torch

from qlib_ext.data.panel import Block
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.models.agru import AGRU, AGRUNet, MultiGranularity
from qlib_ext.training.rule import forward
from slow_recurrences import elu, gru_states, linear, softmax
from small_panels import QUIET, small_panel

N, L, F, H = 5, 6, 3, 4
OPTIONS = {"hidden_size": 4, "units": 5, "trainer": {**QUIET, "epochs": 1, "resume": False}}


def built(seed=4, **options) -> AGRUNet:
    torch.manual_seed(seed)
    return AGRUNet(**{"d_feat": F, "hidden_size": H, "units": 5, **options}).double().eval()


def windows(seed=0, n=N, length=L, width=F) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, length, width)))


def slow_reader(reader, x: np.ndarray) -> np.ndarray:
    h, both = gru_states(reader.recurrence, x), reader.recurrence.bidirectional
    ends = [h[:, -1]]
    if both:
        back = gru_states(reader.recurrence, x, "l0_reverse")
        ends.append(back[:, 0])
        h = np.concatenate([h, back], axis=-1)
    if reader.pooling is None:
        return np.concatenate(ends, axis=1)
    pooled = []
    for i in range(len(h)):
        steps = range(len(h[i]))
        weight = softmax(np.array([linear(reader.pooling.weigh, np.tanh(linear(reader.pooling.state, h[i, t])))[0] for t in steps]))
        pooled.append(sum(weight[t] * h[i, t] for t in steps))
    return np.concatenate([np.stack(pooled), *ends], axis=1)


@pytest.mark.parametrize("bidirectional, attention", itertools.product([True, False], repeat=2))
def test_it_is_its_formulas(bidirectional, attention):
    net, x = built(bidirectional=bidirectional, attention=attention), windows()
    z = elu(linear(net.hidden, slow_reader(net.readers[0], x.numpy())))
    with torch.no_grad():
        np.testing.assert_allclose(net(x), linear(net.head, z)[:, 0], atol=1e-10)
    assert net.hidden.in_features == H * (2 if bidirectional else 1) * (2 if attention else 1)


def test_several_blocks_have_recurrences_of_their_own_in_the_order_named():
    net = built(d_feat={"stock": F, "m60": 2})
    x = {"m60": windows(1, length=9, width=2), "stock": windows(), "unread": windows()}
    r = np.concatenate([slow_reader(reader, x[name].numpy()) for name, reader in zip(("stock", "m60"), net.readers)], axis=1)
    with torch.no_grad():
        np.testing.assert_allclose(net(x), linear(net.head, elu(linear(net.hidden, r)))[:, 0], atol=1e-10)


def test_the_published_sizes_are_the_defaults():
    net, model = AGRUNet(20), AGRU()
    assert (net.readers[0].recurrence.hidden_size, net.hidden.in_features, net.hidden.out_features) == (32, 128, 32)
    assert net.readers[0].recurrence.bidirectional and net.readers[0].pooling is not None and net.factors == 0
    assert model.rule.loss.name == "ic" and model.net_options["output"] == "score"


# ---- blocks ---------------------------------------------------------------------------------------------------------------------
def panel_of_blocks(**options):
    """Daily features, and two bars a day of two features, the second of which, in the day's last bar, is the label's signal."""
    panel = small_panel(days=30, stocks=20, holes=0.05, **options)
    draw = np.random.default_rng(1)
    bars = draw.standard_normal((len(panel.label), 4)).astype(np.float32)
    bars[:, 3] = panel.blocks["stock"].values[:, 0]
    bars[-1] = np.nan
    panel.blocks["stock"].values[:-1] = draw.standard_normal((len(bars) - 1, 3))
    panel.stock_aux["m60"] = bars
    panel.blocks["m60"] = Block(bars, 2, ["a@1", "b@1", "a@2", "b@2"], bars=2)
    return panel


def fit(kind, panel, epochs=8, **options):
    trainer = {**QUIET, "epochs": epochs, "lr": 0.02, "resume": False}
    return kind(**{**OPTIONS, "trainer": trainer, **options}).fit_panel(panel)


def best(model) -> float:
    return max(row["valid_rank_ic"] for row in model.history_.epochs)


def test_it_reads_one_block_and_the_joint_model_all(monkeypatch):
    panel, gathered = panel_of_blocks(), []
    gather = DaySampler._gather
    monkeypatch.setattr(DaySampler, "_gather", lambda self, name, *rest: gathered.append(name) or gather(self, name, *rest))
    bars = fit(AGRU, panel, block="m60")
    bars.predict_panel(panel.view("test"))
    assert set(gathered) == {"m60"} and bars.sizes_ == {"d_feat": 2} and best(bars) > 0.4
    gathered.clear()
    daily = fit(AGRU, panel, block="stock")
    assert set(gathered) == {"stock"} and daily.sizes_ == {"d_feat": 3} and best(daily) < best(bars) - 0.2, "the signal is in the bars"
    joint = fit(MultiGranularity, panel)
    assert joint.sizes_ == {"d_feat": {"stock": 3, "m60": 2}} and best(joint) > 0.4
    turned = fit(MultiGranularity, panel, epochs=0, block=["stock", "m60"])
    assert list(turned.sizes_["d_feat"]) == ["m60", "stock"], "a checkpoint does not depend on the order in a configuration"
    with pytest.raises(ConfigError, match="one by name"):
        fit(AGRU, panel)
    with pytest.raises(ConfigError, match=r"block \['m30'\] is not in this panel; it has \['m60', 'stock'\]"):
        fit(MultiGranularity, panel, block=["m60", "m30"])


def test_bars_of_a_day_follow_each_other_and_nothing_lies_behind_the_day():
    panel = panel_of_blocks()
    model = fit(AGRU, panel, epochs=0, block="m60")
    sampler = DaySampler(panel.of("m60"))
    batch = sampler.batch(12)
    stock = next(k for k in range(len(batch.stocks)) if panel.rows[11, batch.stocks[k]] >= 0)
    days = panel.blocks["m60"].values[panel.rows[[11, 12], batch.stocks[stock]]]
    np.testing.assert_array_equal(batch.x[stock], days.reshape(4, 2))                     # [day 11 bar 1, bar 2, day 12 bar 1, bar 2]
    before = forward(model.net_, batch)
    later = panel.rows[13:]
    panel.blocks["m60"].values[later[later >= 0]] = 1e6
    assert torch.equal(forward(model.net_, sampler.batch(12)), before)
    panel.blocks["m60"].values[panel.rows[12, batch.stocks[stock]], 2:] += 1              # the last bar of the day itself is seen
    assert not torch.equal(forward(model.net_, sampler.batch(12)), before)


@pytest.mark.parametrize("horizon", [0, 1])
def test_each_label_has_a_model_of_its_own(horizon):
    """Two labels, of which one is the other turned round."""
    panel = panel_of_blocks(horizons=2)
    for label in (panel.label, panel.label_eval, panel.label_raw):
        label[:, 1] = -label[:, 0]
    model = fit(AGRU, panel, block="m60", loss={"name": "ic", "horizon": horizon})
    score, signal = model.predict_panel(panel.view("test"))[2], []
    for day in panel.view("test").scored_days():
        signal.append(panel.blocks["m60"].values[panel.rows[day, panel.stocks(day)], 3])
    assert np.corrcoef(score, np.concatenate(signal))[0, 1] * (1, -1)[horizon] > 0.4 and best(model) > 0.4
    with pytest.raises(ShapeError, match="choose one with `horizon`"):
        fit(AGRU, panel, epochs=1, block="m60")


@pytest.mark.parametrize("rule", [{"name": "doubleadapt", "task_length": 3}, {"name": "incremental", "task_length": 3},
                                  {"name": "maml", "task_length": 3, "first_order": False, "inner": "sgd", "lr": 0.05}])
def test_it_learns_online_on_a_block(rule):
    """Adapters have the width of a bar, and second-order steps work."""
    panel = panel_of_blocks()
    panel.meta["embargo"] = 2
    model = fit(AGRU, panel, epochs=1, block="m60", rule=rule)
    assert np.isfinite(model.predict_panel(panel.view("test"))[2]).all() and len(model.rule.report) > 1


# ---- the orthogonal layer ---------------------------------------------------------------------------------------------------------
def orthogonal_panel():
    panel = panel_of_blocks(unlabelled=0.4)
    panel.universe[:] = True
    style = np.random.default_rng(5).standard_normal((len(panel.label), 2)).astype(np.float32)
    style[::7, 1] = style[-1] = np.nan
    panel.stock_aux["style"] = style
    return panel


@pytest.mark.parametrize("loss, weights", [("factor_ic", "equal"), ("ic", "equal"), ("ic", "learned")])
def test_factors_of_a_day_are_orthogonal_to_each_other_and_to_what_is_given(loss, weights):
    panel = orthogonal_panel()
    model = fit(AGRU, panel, block="m60", orthogonal=True, loss=loss, weights=weights, controls=["style"], units=3)
    batch = DaySampler(panel.of("m60")).batch(25)
    with torch.no_grad():
        made = forward(model.net_, batch)
        model.net_.head.factors = True
        factors = forward(model.net_, batch).double()
    n = len(factors)
    torch.testing.assert_close(factors.T @ factors / n, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-5)
    style = batch.aux["style"].double()
    style = torch.where(torch.isnan(style), style.nanmean(dim=0), style)                    # unknown exposures count as the mean
    assert float((factors.T @ style / n).abs().max()) < 1e-5 and float(factors.sum(dim=0).abs().max()) < 1e-4
    if loss == "factor_ic":
        assert torch.equal(made.double(), factors)
        made = made.mean(dim=1)                                             # what is scored
        np.testing.assert_array_equal(model.predict_panel(panel.view((25, 26)))[2], made)
    elif weights == "equal":
        torch.testing.assert_close(made, factors.float().mean(dim=1))
    assert made.shape == (n,) and best(model) > 0.3


def test_what_it_refuses():
    for options in ({"hidden_size": 0}, {"units": 0}, {"controls": ["style"]}, {"weights": "learned"}, {"loss": "factor_ic"},
                    {"orthogonal": True, "weights": "mine"}, {"orthogonal": True, "controls": ["a", "a"]},
                    {"orthogonal": True, "controls": "style"},
                    {"orthogonal": True, "loss": "factor_ic", "weights": "learned"}):
        with pytest.raises(ConfigError):
            AGRU(**{**OPTIONS, **options}).build_net({"d_feat": 3})
    with pytest.raises(ShapeError, match=r"x \[n, l, 3\]"):
        built()(windows()[..., :2])
    with pytest.raises(ShapeError, match=r"m60 \[n, l, 2\], got None"):
        built(d_feat={"stock": F, "m60": 2})({"stock": windows()})
    panel = orthogonal_panel()
    with pytest.raises(ConfigError, match=r"needs aux \['size'\]"):
        fit(AGRU, panel, block="m60", orthogonal=True, controls=["size"], units=3)
    with pytest.raises(ConfigError, match="control 'market' has the same values for all stocks of a day"):
        fit(AGRU, panel, block="m60", orthogonal=True, controls=["market"], units=3)
    with pytest.raises(DataError, match=r"16 factors orthogonal to 2 controls and a constant need a day of more than 19 stocks"):
        fit(AGRU, panel, block="m60", orthogonal=True, controls=["style"], units=16)
