"""The supervised rule: which days it uses, what the network sees, how scores come out."""
import numpy as np
import pytest
import torch
from torch import nn

from qlib_ext.data.panel import Block
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.training.loss import make_loss
from qlib_ext.training.protocol import RULES, make_rule
from qlib_ext.training.rule import Rule, SupervisedRule, forward
from small_panels import small_panel


class Spy(nn.Module):
    """Remembers what it was given; scores are a weighted sum of the last day."""

    def __init__(self, aux=(), columns=None):
        super().__init__()
        self.aux, self.columns, self.seen = aux, columns, []
        self.weight = nn.Parameter(torch.tensor([1.0, -0.5, 0.25]))

    def forward(self, x, **aux):
        self.seen.append((x, aux, self.training))
        last = (x["stock"] if isinstance(x, dict) else x)[:, -1]
        return last @ self.weight if self.columns is None else last[:, :self.columns]


def rule():
    return SupervisedRule(make_loss("mse"))


def test_units_are_the_labelled_days():
    panel = small_panel(unlabelled=0.75, seed=5)
    for training in (True, False):
        view = panel.view("train", training)
        assert rule().units(view).tolist() == view.labelled_days().tolist()


def test_step_is_the_loss_of_the_labelled_stocks():
    panel = small_panel().view("train", training=True)
    net, day = Spy(), int(panel.labelled_days()[3])
    loss = rule().step(net, DaySampler(panel), day)
    rows = panel.rows[day, panel.stocks(day)]
    x, y = panel.blocks["stock"].values[rows], panel.label[rows, 0]
    known = np.isfinite(y)
    expected = np.mean((x @ np.array([1, -0.5, 0.25]) - y)[known] ** 2)
    assert 0 < known.sum() < len(known) and loss == pytest.approx(expected, rel=1e-5)
    assert net.weight.grad.abs().sum() > 0


def test_every_scored_day_in_order_without_gradients():
    panel = small_panel().view("test")
    net = Spy().train()
    found = list(rule().predict(net, DaySampler(panel)))
    assert [batch.day for batch, _ in found] == panel.scored_days().tolist()
    assert not any(training for _, _, training in net.seen)
    for batch, output in found:
        assert output.shape == (len(batch.stocks),) and not output.requires_grad
    silent = small_panel()
    for table in (silent.label, silent.label_eval, silent.label_raw):
        table[:] = np.nan
    other = list(rule().predict(Spy(), DaySampler(silent.view("test"))))
    assert all(torch.equal(one, two) for (_, one), (_, two) in zip(found, other)), "scores must not read labels"


def test_unknown_inputs_become_zero_and_nothing_else_changes():
    panel = small_panel(holes=0.4)
    panel.blocks["stock"].values[::5, 1] = np.nan
    panel.day_aux["market"][7, 0] = np.nan
    net, batch = Spy(aux=("market",)), DaySampler(panel).batch(7)
    before = batch.x.clone()
    forward(net, batch)
    x, aux, _ = net.seen[0]
    np.testing.assert_array_equal(x.numpy(), np.where(np.isnan(before), 0, before))
    np.testing.assert_array_equal(aux["market"].numpy(), [0, panel.day_aux["market"][7, 1]])
    assert torch.isnan(before).any() and torch.equal(torch.isnan(batch.x), torch.isnan(before)), "the batch itself is left alone"


def test_several_blocks_and_only_the_aux_a_network_names():
    panel = small_panel()
    values = panel.blocks["stock"].values
    panel.blocks["bars"] = Block(np.where(values > 1, np.nan, values), 2, ["A", "B", "C"])
    net = Spy()
    forward(net, DaySampler(panel).batch(9))
    x, aux, _ = net.seen[0]
    assert set(x) == {"stock", "bars"} and aux == {} and not any(torch.isnan(value).any() for value in x.values())


def test_what_a_network_needs_and_gives():
    batch = DaySampler(small_panel()).batch(9)
    with pytest.raises(ConfigError, match=r"Spy needs aux \['style'\].*market.*aux"):
        forward(Spy(aux=("market", "style")), batch)
    assert forward(Spy(columns=2), batch).shape == (len(batch.stocks), 2)

    class Short(Spy):
        def forward(self, x, **aux):
            return super().forward(x)[:-1]

    with pytest.raises(ShapeError, match=f"Short returned.*{len(batch.stocks)} stocks"):
        forward(Short(), batch)


def test_rules_by_name():
    assert isinstance(make_rule("supervised", make_loss("mse")), SupervisedRule)
    assert type(make_rule("static", None)) is SupervisedRule
    for spec, said in (("mamml", f"'mamml'.*{sorted(RULES)[0]}"), ({"task_length": 5}, "key 'name'"), (None, "key 'name'"),
                       ({"name": "maml", "lrr": 1}, r"\['lrr'\].*task_length.*inner"), ({"name": "static", "lr": 1}, "no options")):
        with pytest.raises(ConfigError, match=said):
            make_rule(spec, None)
    bare = Rule(None)
    assert bare.groups() == [] and bare.figures() == {} and bare.unit_days() == 1 and bare.state_dict() == {} and bare.load_state_dict({}) is None
    for call in (bare.units, lambda p: bare.step(None, p, 0), lambda p: bare.predict(None, p)):
        with pytest.raises(NotImplementedError):
            call(None)
