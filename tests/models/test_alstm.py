"""ALSTM against Qlib's network, its placements of styles, and Meta_RiskControl with its defaults."""
import numpy as np
import pytest
import torch
from qlib.contrib.model.pytorch_alstm_ts import ALSTMModel

from qlib_ext.data.panel import Block
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.alstm import ALSTM, ALSTMNet, MetaRiskControl
from qlib_ext.training.incremental import Learner
from small_panels import QUIET, small_panel

STYLES = ["size", "beta"]
OURS = {"net.fc_in": "embed", "rnn": "recurrence", "att_net.att_fc_in": "attention.0", "att_net.att_fc_out": "attention.3",
        "fc_out": "head"}


def qlibs(net: ALSTMNet, rnn_type: str, width: int, layers: int = 2, dropout: float = 0.0) -> ALSTMModel:
    """Qlib's network with the weights of ours."""
    theirs = ALSTMModel(d_feat=width, hidden_size=12, num_layers=layers, dropout=dropout, rnn_type=rnn_type)
    ours = net.state_dict()
    theirs.load_state_dict({name: ours[next(f"{new}{name[len(old):]}" for old, new in OURS.items() if name.startswith(old))]
                            for name in theirs.state_dict()})
    return theirs


@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
def test_it_is_qlibs_network(rnn_type):
    torch.manual_seed(3)
    net, x = ALSTMNet(5, hidden_size=12, rnn_type=rnn_type), torch.randn(9, 7, 5)
    theirs = qlibs(net, rnn_type, 5)
    torch.testing.assert_close(net(x), theirs(x), rtol=0, atol=1e-6)
    assert sum(p.numel() for p in net.parameters()) == sum(p.numel() for p in theirs.parameters())
    for one in (net, theirs):
        one(x).pow(2).sum().backward()
    torch.testing.assert_close(net.embed.weight.grad, theirs.net.fc_in.weight.grad, rtol=0, atol=1e-6)
    moved = ALSTMNet(5, hidden_size=12, rnn_type=rnn_type)
    assert (moved(x) - theirs(x)).abs().max() > 1e-3, "other weights give the same scores: nothing was shown"


@pytest.mark.parametrize("rnn_type", ["lstm", "gru"])
def test_dropout_stands_where_qlib_has_it(rnn_type):
    net, x = ALSTMNet(5, hidden_size=12, rnn_type=rnn_type, dropout=0.4).train(), torch.randn(9, 7, 5)
    theirs, found = qlibs(net, rnn_type, 5, dropout=0.4).train(), []
    for one in (net, theirs):
        torch.manual_seed(8)
        found.append(one(x))
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_styles_in_the_sequence_stand_beside_the_features():
    torch.manual_seed(1)
    net = ALSTMNet(5, 2, hidden_size=12, style_input="sequence")
    stock, style = torch.randn(9, 7, 5), torch.randn(9, 7, 2)
    torch.testing.assert_close(net({"stock": stock, "style": style}), qlibs(net, "lstm", 7)(torch.cat([stock, style], dim=-1)),
                               rtol=0, atol=1e-6)


def test_styles_at_the_head_allow_an_exact_offset():
    net, x, style = ALSTMNet(5, 2, hidden_size=12, style_input="head"), torch.randn(9, 7, 5), torch.randn(9, 2)
    with torch.no_grad():
        before = net(x, style=style)
        net.head.weight[0, -2:] -= torch.tensor([0.5, -2.0])
        torch.testing.assert_close(net(x, style=style), before - style @ torch.tensor([0.5, -2.0]))
        torch.testing.assert_close(net({"stock": x, "other": style}, style=style), net(x, style=style))


@pytest.mark.parametrize("make, said", [
    (lambda: ALSTMNet(5, rnn_type="rnn"), "rnn_type"), (lambda: ALSTMNet(5, style_input="tail"), "style_input"),
    (lambda: ALSTMNet(5, hidden_size=1), "hidden_size"), (lambda: ALSTM(hidden=3), "valid keywords"),
    (lambda: MetaRiskControl(rule="none"), "rule"), (lambda: MetaRiskControl(loss={"name": "style_ic", "lam": 1}), "takes")])
def test_wrong_options_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("placement, x, style", [
    ("none", (9, 7, 4), None), ("none", (9, 35), None), ("sequence", (9, 7, 5), None), ("head", (9, 7, 5), None),
    ("head", (9, 7, 5), (9, 3)), ("head", (9, 7, 5), (2,))])
def test_inputs_of_another_shape_are_refused(placement, x, style):
    net = ALSTMNet(5, 0 if placement == "none" else 2, hidden_size=4, style_input=placement)
    with pytest.raises(ShapeError, match="ALSTM was built for"):
        net(torch.zeros(x), style=None if style is None else torch.zeros(style))


# ---- as Qlib models -------------------------------------------------------------------------------------------------------------
def style_panel(windows=True, aux=True, **changes):
    """A small panel with two styles."""
    panel = small_panel(days=70, features=2, **{"segments": {"train": (0, 36), "valid": (40, 50), "test": (54, 70)}, **changes})
    style = np.random.default_rng(5).normal(size=(len(panel.label), 2)).astype(np.float32)
    style[-1] = np.nan
    panel.meta.update(embargo=3, aux_columns={"style": STYLES} if aux else {})
    panel.stock_aux.update({"style": style} if aux else {})
    panel.blocks.update({"style": Block(style, 4, STYLES)} if windows else {})
    return panel


def options(**more):
    return {"hidden_size": 6, "num_layers": 1, "trainer": {**QUIET, "epochs": 1, "resume": False}, **more}


def test_what_the_dataset_lacks_is_said():
    with pytest.raises(ConfigError, match=r"sequence needs style exposures: .*StyleLoader.* aux_windows: \[style\]"):
        MetaRiskControl(**options(rule="static")).fit_panel(style_panel(windows=False))
    with pytest.raises(ConfigError, match="head needs style exposures: .*StyleLoader"):
        MetaRiskControl(**options(rule="static", style_input="head")).fit_panel(style_panel(windows=False, aux=False))
    with pytest.raises(ConfigError, match="needs the aux entry 'style'"):
        ALSTM(**options(loss="style_ic")).fit_panel(style_panel(windows=False, aux=False))
    with pytest.raises(ShapeError, match="d_style=3, the dataset gives 2"):
        MetaRiskControl(**options(rule="static", d_style=3)).fit_panel(style_panel())


def test_widths_follow_the_dataset():
    assert ALSTM(**options()).fit_panel(style_panel()).sizes_ == {"d_feat": 2, "d_style": 0}
    model = MetaRiskControl(**options(rule="static", style_input="head")).fit_panel(style_panel(windows=False))
    assert model.sizes_ == {"d_feat": 2, "d_style": 2} and model.net_.head.in_features == 14
    assert model.trainer.metric == "loss" and model.rule.loss.name == "style_ic" and model.net_options["rnn_type"] == "lstm"


def test_the_defaults_learn_online_and_never_adapt_exposures():
    """DoubleAdapt over tasks of five days; the adapters are made to change everything they may."""
    rule = {"name": "doubleadapt", "adapt_y": False, "task_length": 5, "adapter_scale": 1.0}
    assert MetaRiskControl().options["rule"] == {"name": "doubleadapt", "adapt_y": False}
    panel = style_panel()
    model = MetaRiskControl(**options(rule=rule)).fit_panel(panel)
    batch = DaySampler(panel).batch(60)
    shown = model.rule._shown(Learner(model.net_, model.rule.adapters, None), batch)
    assert not torch.equal(shown.x["stock"].nan_to_num(), batch.x["stock"].nan_to_num())
    assert torch.equal(shown.x["style"], batch.x["style"].nan_to_num()) and shown.aux["style"] is batch.aux["style"]
    days, stocks, scores = model.predict_panel(panel.view("test"))
    assert np.isfinite(scores).all() and len(model.rule.report) == 7          # three tasks of the validation, four of the test


def test_second_order_steps_work_with_the_penalty_and_pairs_of_days():
    rule = {"name": "maml", "task_length": 5, "first_order": False, "lr": 0.05, "inner": "sgd"}
    loss = {"name": "style_ic", "unfreeze": True, "warm_up": 0}
    model = MetaRiskControl(**options(rule=rule, loss=loss)).fit_panel(style_panel())
    assert np.isfinite(model.history_.epochs[0]["train_loss"]) and model.rule.loss.lag == 5


def test_validation_pays_the_whole_penalty_from_the_first_epoch_on():
    """Raw labels are those of the loss times a number: loss and IC differ by the penalty alone."""
    loss = {"name": "style_ic", "lam_dev": 50, "weights": [1, 1], "warm_up": 100}
    model = MetaRiskControl(**options(rule="static", loss=loss, trainer={**QUIET, "epochs": 4, "lr": 0.02, "resume": False}))
    rows = model.fit_panel(style_panel()).history_.epochs
    assert all(row["valid_loss"] + row["valid_ic"] > 0.1 for row in rows)
    assert model.history_.best_epoch == int(np.argmin([row["valid_loss"] for row in rows]))
