"""MAML and DoubleAdapt against plain restatements: autograd through the whole task, finite differences, and loops word for word."""
import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from online_panels import REACH, TASK, Tiny, model, online_panel, same, scores, weights
from qlib_ext.data.panel import Block
from qlib_ext.data.sampler import DaySampler
from qlib_ext.models.gru import GRU
from qlib_ext.models.master import MASTER
from qlib_ext.report.metrics import daily_ic
from qlib_ext.training.incremental import Learner, labelled
from qlib_ext.training.meta import Step
from qlib_ext.training.rule import fill, trainable

LR = 0.05


def started(rule: dict, net=Tiny, double=True, epochs=0, **options):
    """(rule, learner, sampler, task) of a model whose optimiser has taken two steps; nothing is random."""
    panel = online_panel()
    made = model({"task_length": TASK, "lr": LR, **rule}, net=net, epochs=epochs, **options).fit_panel(panel)
    made.net_.double() if double else None
    rule = made.rule
    if rule.adapters is not None and double:
        rule.adapters.double()
    groups = [{"params": list(trainable(made.net_).values())}, *rule.groups()]
    learner = Learner(made.net_, rule.adapters, made.trainer.make_optimizer(groups))
    draw = torch.Generator().manual_seed(0)
    for _ in range(2):
        for group in learner.optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)
        learner.optimizer.step()
    learner.optimizer.zero_grad(set_to_none=True)
    sampler = Doubled(panel.view((0, 80), training=True)) if double else DaySampler(panel.view((0, 80), training=True))
    return rule, learner, sampler, rule.split(REACH).task(30, 30 + TASK)


class Doubled(DaySampler):
    """Batches in float64."""

    def batch(self, day):
        found = super().batch(day)
        return replace(found, x=found.x.double(), y=found.y.double(), y_raw=found.y_raw.double(),
                       aux={name: value.double() for name, value in found.aux.items()})


def upper_gradient(rule, learner, sampler, task) -> list:
    """What the rule leaves in `grad` of weights and adapters, in one order."""
    learner.optimizer.zero_grad(set_to_none=True)
    rule.upper(learner, sampler, rule.lower(learner, sampler, task, LR), labelled(sampler, task.query), LR)
    every = [p for group in learner.optimizer.param_groups for p in group["params"]]
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in every]


def whole_task(rule, learner, sampler, task) -> torch.Tensor:
    """The query loss as one differentiable expression of weights and adapters, in the words of the method."""
    names, weights = zip(*trainable(learner.net).items())
    days, net, adapters = labelled(sampler, task.support), learner.net, learner.adapters

    def shown(x):
        return adapters["x"](x) if adapters is not None and rule.adapt_x else x

    def mse(prediction, y):
        known = torch.isfinite(y)
        return (prediction - y)[known].pow(2).mean()

    support = 0.0
    for day in days:
        batch = sampler.batch(int(day))
        x, y = fill(batch.x), batch.y[:, 0]
        known = torch.isfinite(y)
        y = torch.where(known, y, 0.0)
        target = adapters["y"](y, x) if adapters is not None and rule.adapt_y else y
        support = support + mse(net(shown(x)), torch.where(known, target, torch.nan)) / len(days)
    gradient = torch.autograd.grad(support, weights, create_graph=True)
    theta = {}
    for name, p, g in zip(names, weights, gradient):
        if rule.inner == "adam":
            state = learner.optimizer.state[p]
            count = float(state["step"]) + 1
            average, square = 0.9 * state["exp_avg"] + 0.1 * g, 0.999 * state["exp_avg_sq"] + 0.001 * g * g
            g = average / (1 - 0.9**count) / ((square / (1 - 0.999**count)).sqrt() + 1e-8)
        theta[name] = p - LR * g
    query, total = labelled(sampler, task.query), 0.0
    for day in query:
        batch = sampler.batch(int(day))
        x = fill(batch.x)
        output = torch.func.functional_call(net, theta, (shown(x),))
        if adapters is not None and rule.adapt_y:
            output = adapters["y"].inverse(output, x)
        total = total + mse(output, batch.y[:, 0]) / len(query)
    return total


def pull(rule, learner, sampler, task) -> torch.Tensor:
    """`alpha` times the mean squared change of the support's labels."""
    days, total = labelled(sampler, task.support), 0.0
    for day in days:
        batch = sampler.batch(int(day))
        y, known = batch.y[:, 0], torch.isfinite(batch.y[:, 0])
        change = learner.adapters["y"](torch.where(known, y, 0.0), fill(batch.x)) - y
        total = total + change[known].pow(2).mean() / len(days)
    return rule.alpha * total


@pytest.mark.parametrize("inner", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["maml", "doubleadapt"])
def test_second_order_is_autograd_through_the_whole_task(name, inner):
    more = {"adapter_scale": 1.0, "adapter": "dense"} if name == "doubleadapt" else {}
    rule, learner, sampler, task = started({"name": name, "inner": inner, "first_order": False, **more}, dropout=0.0)
    every = [p for group in learner.optimizer.param_groups for p in group["params"]]
    loss = whole_task(rule, learner, sampler, task)
    if name == "doubleadapt":
        loss = loss + pull(rule, learner, sampler, task)
    expected = torch.autograd.grad(loss, every, allow_unused=True)
    for p, found, right in zip(every, upper_gradient(rule, learner, sampler, task), expected):
        torch.testing.assert_close(found, torch.zeros_like(p) if right is None else right, rtol=1e-8, atol=1e-11)
    assert len(every) == (4 if name == "maml" else 4 + 7)


def test_second_order_is_a_finite_difference():
    rule, learner, sampler, task = started({"name": "maml", "inner": "adam", "first_order": False}, dropout=0.0)
    found = upper_gradient(rule, learner, sampler, task)
    with torch.no_grad():
        for p, gradient in zip(learner.net.parameters(), found):
            for place in (0, p.numel() - 1):
                values = []
                for step in (1e-5, -2e-5):
                    p.view(-1)[place] += step
                    with torch.enable_grad():
                        values.append(whole_task(rule, learner, sampler, task).item())
                p.view(-1)[place] += 1e-5
                assert (values[0] - values[1]) / 2e-5 == pytest.approx(gradient.view(-1)[place].item(), rel=1e-5, abs=1e-8)


def test_first_order_leaves_out_what_grows_with_the_rate():
    gaps = []
    for lr in (1e-3, 1e-4):
        grads = []
        for first_order in (True, False):
            rule, learner, sampler, task = started({"name": "maml", "inner": "sgd", "first_order": first_order}, dropout=0.0)
            learner.optimizer.zero_grad(set_to_none=True)
            rule.upper(learner, sampler, rule.lower(learner, sampler, task, lr), labelled(sampler, task.query), lr)
            grads.append(torch.cat([p.grad.ravel() for p in learner.net.parameters()]))
        gaps.append((grads[0] - grads[1]).norm().item())
    assert gaps[0] > 1e-6 and gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)


def test_dropout_of_the_second_pass_is_that_of_the_first():
    """The gradient at phi is recomputed for its derivative: with the same masks it is the same gradient."""
    rule, learner, sampler, task = started({"name": "maml", "inner": "sgd", "first_order": False}, dropout=0.5)
    step = rule.lower(learner, sampler, task, LR)
    again = [torch.zeros_like(p) for p in learner.net.parameters()]
    for day, seed in zip(labelled(sampler, task.support), step.seeds):
        torch.manual_seed(seed)
        loss = rule._support_loss(learner, sampler, int(day)) / len(labelled(sampler, task.support))
        again = [a + g for a, g in zip(again, torch.autograd.grad(loss, list(learner.net.parameters())))]
    for one, two in zip(step.gradient, again):
        torch.testing.assert_close(one, two)


def test_doubleadapts_first_order_step_word_for_word():
    rule, learner, sampler, task = started({"name": "doubleadapt", "inner": "sgd", "adapter": "dense", "adapter_scale": 1.0}, dropout=0.0)
    step = rule.lower(learner, sampler, task, LR)
    adapters, net = learner.adapters, learner.net
    query, support = labelled(sampler, task.query), labelled(sampler, task.support)

    def query_loss(theta):
        total = 0.0
        for day in query:
            batch = sampler.batch(int(day))
            x, known = fill(batch.x), batch.mask[:, 0]
            output = adapters["y"].inverse(torch.func.functional_call(net, theta, (adapters["x"](x),)), x)
            total = total + functional.mse_loss(output[known], batch.y[known, 0]) / len(query)
        return total

    theta = {name: value.detach().requires_grad_() for name, value in step.theta.items()}
    at_theta, at_phi = query_loss(theta), query_loss(dict(trainable(net)))
    weight = (at_phi - at_theta).item() / rule.sigma + rule.alpha
    loss = at_theta + weight * pull(rule, learner, sampler, task) / rule.alpha
    expected = torch.autograd.grad(loss, [*theta.values(), *adapters.parameters()], allow_unused=True)
    assert weight != pytest.approx(rule.alpha, rel=1e-3) and len(support) > 2
    for found, right in zip(upper_gradient(rule, learner, sampler, task), expected):
        torch.testing.assert_close(found, torch.zeros_like(found) if right is None else right, rtol=1e-9, atol=1e-12)


def test_still_adapters_are_plain_maml():
    """Identity adapters that do not learn: DoubleAdapt scores as MAML does."""
    panel, common = online_panel(), {"task_length": TASK, "lr": 1e-3}
    plain = model({"name": "maml", **common}, dropout=0.0).fit_panel(panel)
    still = model({"name": "doubleadapt", "adapter_scale": 0.0, "lr_adapter": 0.0, **common}, dropout=0.0).fit_panel(panel)
    moving = model({"name": "doubleadapt", "adapter_scale": 0.0, "lr_adapter": 0.01, **common}, dropout=0.0).fit_panel(panel)
    one, two, three = (scores(made, panel, 0, 80) for made in (plain, still, moving))
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)
    assert np.nanmax(np.abs(one - three)) > 1e-3


@pytest.mark.parametrize("name", ["maml", "doubleadapt"])
def test_rate_zero_is_supervised_training_on_the_queries(name):
    panel = online_panel()
    still = {"adapter_scale": 0.0, "lr_adapter": 0.0} if name == "doubleadapt" else {}
    made = model({"name": name, "task_length": TASK, "lr": 0.0, **still}, dropout=0.0, epochs=3,
                 trainer={"patience": None}).fit_panel(panel)
    net = Tiny(dropout=0.0, rule="static", trainer={"epochs": 0, "device": "cpu", "progress": False}).fit_panel(panel).net_
    start, history = copy.deepcopy(net), []
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    sampler = DaySampler(panel.view("train", training=True))
    tasks = [task for task in made.rule.split(REACH).past(0, 40)]
    for epoch in range(3):
        for number in np.random.default_rng([0, epoch]).permutation(len(tasks)):
            optimizer.zero_grad()
            days = labelled(sampler, tasks[number].query)
            for day in days:
                batch = sampler.batch(int(day))
                known = batch.mask[:, 0]
                (functional.mse_loss(net(fill(batch.x))[known], batch.y[known, 0]) / len(days)).backward()
            optimizer.step()
        history.append(copy.deepcopy(net))
    kept = history[made.history_.best_epoch]
    np.testing.assert_allclose(weights(made), np.concatenate([p.detach().numpy().ravel() for p in kept.parameters()]), rtol=1e-4, atol=1e-6)
    assert not np.allclose(weights(made), np.concatenate([p.detach().numpy().ravel() for p in start.parameters()]), atol=1e-3)


class LSTMNet(nn.Module):
    def __init__(self, d_feat):
        super().__init__()
        self.recurrence, self.head = nn.LSTM(d_feat, 5, batch_first=True), nn.Linear(5, 1)

    def forward(self, x):
        return self.head(self.recurrence(x)[0][:, -1]).squeeze(-1)


class LSTM(Tiny):
    net_class = LSTMNet

    def __init__(self, d_feat=None, **options):
        super(Tiny, self).__init__(dict(d_feat=d_feat), **options)


@pytest.mark.parametrize("net, options", [
    (GRU, {"hidden_size": 5, "num_layers": 2, "dropout": 0.0}), (LSTM, {}),
    (MASTER, {"d_model": 8, "temporal_heads": 2, "dropout": 0.0}), (MASTER, {"d_model": 8, "temporal_heads": 2, "dropout": 0.0,
                                                                             "fused_attention": True}),
], ids=["GRU", "LSTM", "MASTER", "MASTER-fused"])
def test_second_order_of_real_networks(net, options):
    rule, learner, sampler, task = started({"name": "maml", "inner": "sgd", "first_order": False}, net=net, **options)
    found = upper_gradient(rule, learner, sampler, task)
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=torch.Generator().manual_seed(1)) for p in learner.net.parameters()]

    def query_loss():
        step = rule.lower(learner, sampler, task, LR)
        learner.optimizer.zero_grad(set_to_none=True)
        return rule.upper(learner, sampler, Step(task, step.theta, step.gradient, [], {}), labelled(sampler, task.query), LR)["query_loss"]

    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            for p, d in zip(learner.net.parameters(), direction):
                p += step * d
            with torch.enable_grad():
                values.append(query_loss())
    slope = (values[0] - values[1]) / 2e-5
    assert slope == pytest.approx(sum((g * d).sum().item() for g, d in zip(found, direction)), rel=1e-5) and abs(slope) > 1e-3


def test_only_the_stock_block_is_adapted():
    panel = online_panel()
    style = Block(panel.blocks["stock"].values[:, :2].copy(), 4, ["size", "beta"])
    made = model({"name": "doubleadapt", "task_length": TASK, "adapter_scale": 1.0}).fit_panel(panel)
    two = replace(panel, blocks={**panel.blocks, "style": style})
    batch = DaySampler(two).batch(30)
    shown = made.rule._shown(Learner(made.net_, made.rule.adapters, None), batch)
    assert torch.equal(shown.x["style"], fill(batch.x["style"])) and not torch.equal(shown.x["stock"], fill(batch.x["stock"]))


def test_first_order_online_takes_up_what_it_adapted():
    """The step of the task before is not computed twice, and is the one a run that goes on would compute."""
    panel = online_panel()
    made = model({"name": "maml", "task_length": TASK}, dropout=0.2).fit_panel(panel)
    calls, lower = [], type(made.rule).lower
    made.rule.lower = lambda *args: calls.append(args[2].query[0]) or lower(made.rule, *args)
    before = scores(made, panel, 43, 80)
    assert calls == [43, *range(48, 80, TASK)]
    keep = made.rule.scorer

    def forget(*args):
        found = keep(*args)
        made.rule._adapted = None
        return found

    made.rule.scorer = forget
    assert same(scores(made, panel, 43, 80), before) and len(calls) > 2 * 8


def test_tasks_begin_from_the_best_pretrained_weights(tmp_path):
    panel, rule = online_panel(), {"name": "maml", "task_length": TASK, "pretrain_epochs": 6, "lr": 0.0}
    made = model(rule, epochs=8, trainer={"lr": 0.3, "patience": 1, "weight_decay": 0.01}).fit_panel(panel)      # a rate that spoils
    metric = [row["valid_rank_ic"] for row in made.history_.epochs]
    best = int(np.argmax(metric[:6]))
    assert best < 4 and len(metric) >= 7, "patience does not stop the pretraining"
    bare = replace(panel, segments={"train": panel.segments["train"]})           # without validation the last epoch is kept
    static = model("static", epochs=best + 1, trainer={"lr": 0.3, "weight_decay": 0.01}).fit_panel(bare)
    seen = {}

    class Spy(type(made.rule)):
        def step(self, net, sampler, unit):
            if not self.pretraining and not seen:
                seen.update({name: value.clone() for name, value in net.state_dict().items()})
            return super().step(net, sampler, unit)

    again = model(rule, epochs=8, trainer={"lr": 0.3, "patience": 1, "weight_decay": 0.01})
    again.rule.__class__ = Spy
    again.fit_panel(panel)
    for name, value in static.net_.state_dict().items():
        torch.testing.assert_close(seen[name], value)


@pytest.mark.slow
def test_a_feature_that_flips_its_sign_every_60_days():
    """Fine-tuning lags, one step of weights that were learnt for it does not; at a published rate hardly anything moves."""
    panel = online_panel(days=420, stocks=60, unlabelled=0.0, holes=0.05, segments={"train": (0, 240), "valid": (243, 300), "test": (303,
                                                                                                                                     420)})
    draw = np.random.default_rng(100)
    for day in range(420):
        rows = panel.rows[day][panel.rows[day] >= 0]
        y = 0.4 * (-1) ** (day // 60) * panel.blocks["stock"].values[rows, 0] + draw.standard_normal(len(rows))
        for table in (panel.label, panel.label_eval, panel.label_raw):
            table[rows, 0] = (y - y.mean()) / y.std()

    def test_ic(rule, epochs):
        made = model({"task_length": TASK, **rule} if rule else "static", dropout=0.0, hidden_size=8, epochs=epochs,
                     trainer={"patience": None, "lr": 5e-3}).fit_panel(panel)
        days, stocks, values = made.predict_panel(panel.view("test"))
        return daily_ic(values, panel.label_raw[panel.rows[days, stocks], 0], days,
                        day_count=420)[303:], made.rule.figures().get("adaptation")

    static, _ = test_ic(None, 10)
    tuned, _ = test_ic({"name": "incremental", "lr": 0.01}, 10)
    still, little = test_ic({"name": "doubleadapt", "inner": "adam", "lr": 1e-3}, 10)
    learnt, much = test_ic({"name": "doubleadapt", "inner": "sgd", "lr": 0.5, "first_order": False}, 25)
    figures = {name: round(float(np.nanmean(values)), 3) for name, values in (("static", static), ("incremental", tuned),
                                                                              ("published rate", still),
                                                                              ("doubleadapt", learnt))}
    print(figures, little, much)
    assert learnt.mean() > tuned.mean() + 0.1 and tuned.mean() > static.mean() + 0.05
    assert learnt[12:20].mean() > 0.15 > tuned[12:20].mean(), "twelve days after a flip"
    assert much > 20 * little and abs(still.mean()) < 0.1
