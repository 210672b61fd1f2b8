"""The loop: against a loop written by hand, early stopping, resume to the same bits, named faults."""
import copy

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from qlib_ext.data.sampler import DaySampler, epoch_order
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.training import trainer as module
from qlib_ext.training.loss import make_loss
from qlib_ext.training.rule import SupervisedRule
from qlib_ext.training.trainer import METRICS, History, Trainer, evaluate, pick_device
from small_panels import QUIET, small_panel


class Net(nn.Module):
    """Linear, with dropout: a resumed fit must draw the same masks."""

    def __init__(self, seed=0, dropout=0.3):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(12, generator=generator) * 0.1)
        self.bias = nn.Parameter(torch.zeros(1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x):
        return self.dropout(x.reshape(len(x), -1)) @ self.weight + self.bias


class Watched(SupervisedRule):
    """Counts its steps, and breaks off at one of them."""

    def __init__(self, stop_at=None):
        super().__init__(make_loss("mse"))
        self.stop_at, self.days = stop_at, []

    def step(self, net, sampler, unit):
        self.days.append(int(unit))
        if len(self.days) == self.stop_at:
            raise InterruptedError("the power is gone")
        return super().step(net, sampler, unit)


def fit(net=None, rule=None, panel=None, valid=True, state_file=None, on_epoch=None, **options):
    panel = panel or small_panel()
    net = net or Net()
    history = Trainer(**{**QUIET, "epochs": 4, "lr": 0.02, "patience": None, **options}).fit(
        net, rule or Watched(), panel.view("train", training=True), panel.view("valid") if valid else None, state_file, on_epoch)
    return net, history


def weights(net) -> bytes:
    return b"".join(value.detach().numpy().tobytes() for value in net.state_dict().values())


def rows(history: History) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history.epochs]


# ---- the loop ----------
def test_it_is_the_loop_one_would_write_by_hand():
    panel = small_panel()
    net, history = fit(valid=False, epochs=3, seed=7, weight_decay=0.01, clip_value=0.05, optimizer="AdamW")
    other = Net()
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.02, weight_decay=0.01)
    train = panel.view("train", training=True)
    for epoch in range(3):
        torch.manual_seed(7 * 1_000_003 + epoch)
        losses = []
        for day in epoch_order(train.labelled_days(), 7, epoch):
            batch = DaySampler(train).batch(day)
            known = batch.mask[:, 0]
            loss = (other(torch.nan_to_num(batch.x))[known] - batch.y[known, 0]).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            for parameter in other.parameters():
                parameter.grad.clamp_(-0.05, 0.05)
            optimizer.step()
            losses.append(loss.item())
        assert history.epochs[epoch]["train_loss"] == pytest.approx(np.mean(losses), rel=1e-6)
    np.testing.assert_allclose(net.weight.detach(), other.weight.detach(), rtol=1e-5, atol=1e-7)
    assert history.best_epoch == 2 and not history.stopped_early


def test_validation_metrics_against_scipy():
    panel = small_panel()
    panel.label_eval[::3] *= -0.3                         # the loss takes these, IC and RankIC the raw ones
    net, history = fit(panel=panel, epochs=2)
    kept = history.epochs[history.best_epoch]
    valid = panel.view("valid")
    pearson, spearman, losses = [], [], []
    for day in valid.scored_days():
        batch = DaySampler(valid).batch(day)
        score = net.eval()(torch.nan_to_num(batch.x)).detach().double().numpy()
        raw, label = batch.y_raw[:, 0].double().numpy(), batch.y[:, 0].numpy()
        known = np.isfinite(raw)
        pearson.append(np.corrcoef(score[known], raw[known])[0, 1])
        spearman.append(stats.spearmanr(score[known], raw[known]).statistic)
        losses.append(np.mean((score - label)[np.isfinite(label)] ** 2))
    assert kept["valid_ic"] == pytest.approx(np.mean(pearson), abs=1e-6)
    assert kept["valid_rank_ic"] == pytest.approx(np.mean(spearman), abs=1e-9)
    assert kept["valid_loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert kept["valid_rank_ic"] == max(row["valid_rank_ic"] for row in history.epochs)


def test_evaluation_without_labels_is_nan():
    panel = small_panel()
    panel.label_eval[:] = panel.label_raw[:] = np.nan
    assert all(np.isnan(value) for value in evaluate(Net(), Watched(), DaySampler(panel.view("valid"))).values())


def test_same_seed_same_weights_and_another_seed_others():
    torch.manual_seed(1)
    one, _ = fit(seed=3)
    torch.manual_seed(2)
    two, _ = fit(seed=3)
    three, _ = fit(seed=4)
    assert weights(one) == weights(two) != weights(three)


def test_days_per_epoch_draws_other_days_each_epoch():
    rule = Watched()
    fit(rule=rule, days_per_epoch=5, epochs=3)
    epochs = [rule.days[k:k + 5] for k in range(0, 15, 5)]
    assert len(rule.days) == 15 and all(len(set(days)) == 5 for days in epochs) and len({tuple(sorted(d)) for d in epochs}) > 1
    rule = Watched()
    fit(rule=rule, epochs=2)
    assert sorted(rule.days[:len(rule.days) // 2]) == small_panel().view("train", training=True).labelled_days().tolist()


@pytest.mark.parametrize("option, measure", [("clip_value", lambda step: step.abs().max()),
                                             ("clip_norm", lambda step: step.norm())])
def test_clipped_gradients(option, measure):
    """With plain SGD and rate 1 a step is the gradient itself."""
    panel = small_panel()
    panel.segments["train"] = (9, 10)

    def step(**options):
        net = Net(dropout=0.0)
        before = torch.cat([net.weight, net.bias]).detach()
        fit(net, panel=panel, valid=False, epochs=1, optimizer="sgd", lr=1.0, **options)
        return torch.cat([net.weight, net.bias]).detach() - before

    free, clipped = step(), step(**{option: 0.02})
    assert measure(free) > 0.05 and measure(clipped) == pytest.approx(0.02, rel=1e-3)
    assert ((free * clipped) >= 0).all()


def test_no_epochs_leave_the_weights():
    panel = small_panel()
    panel.label[:] = np.nan
    net, history = fit(panel=panel, epochs=0)
    assert weights(net) == weights(Net()) and history.epochs == [] and history.best_epoch is None


# ---- early stopping ----------
SCRIPTED = {"rank_ic": [0.01, 0.05, 0.02, np.nan, 0.05, 0.04], "ic": [0.01, 0.05, 0.02, np.nan, 0.05, 0.04],
            "loss": [3.0, 1.0, 2.0, np.nan, 1.0, 4.0]}


def scripted(monkeypatch, name, values):
    told = iter(values)
    others = {"valid_loss": 9.0, "valid_ic": -1.0, "valid_rank_ic": -1.0}
    monkeypatch.setattr(module, "evaluate", lambda *a: {**others, f"valid_{name}": next(told)})


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_weights_of_the_best_epoch_are_kept(monkeypatch, name):
    scripted(monkeypatch, name, SCRIPTED[name])
    seen, net = [], Net()
    _, history = fit(net, epochs=40, patience=4, metric=name, on_epoch=lambda epoch, row: seen.append((epoch, weights(net))))
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3, 4, 5] and len({w for _, w in seen}) == 6
    assert history.best_epoch == 1 and history.stopped_early and len(history.epochs) == 6
    assert weights(net) == seen[1][1], "not the last ones, and the first of equals"


def test_patience_counts_from_the_last_improvement(monkeypatch):
    scripted(monkeypatch, "rank_ic", [0.1, 0.0, 0.2, 0.0, 0.0, 0.0])
    _, history = fit(epochs=6, patience=2)
    assert len(history.epochs) == 5 and history.best_epoch == 2 and history.stopped_early
    scripted(monkeypatch, "rank_ic", [0.1, 0.0, 0.0])
    _, history = fit(epochs=3, patience=None)
    assert len(history.epochs) == 3 and history.best_epoch == 0 and not history.stopped_early


def test_a_metric_that_is_never_known_keeps_the_first_epoch(monkeypatch):
    scripted(monkeypatch, "rank_ic", [np.nan] * 3)
    seen, net = [], Net()
    _, history = fit(net, epochs=3, on_epoch=lambda *a: seen.append(weights(net)))
    assert history.best_epoch == 0 and weights(net) == seen[0]
    scripted(monkeypatch, "rank_ic", [np.nan, -0.5, np.nan])
    assert fit(epochs=3)[1].best_epoch == 1, "a bad value is better than none"


# ---- resume ----------
@pytest.mark.parametrize("options", [{}, {"days_per_epoch": 6}, {"optimizer": "sgd", "metric": "loss"},
                                     {"patience": 2, "epochs": 12}],
                         ids=["all", "subset", "sgd", "patience"])
@pytest.mark.parametrize("stop_at", [3, 20, 33])
def test_an_interrupted_fit_ends_in_the_same_bits(tmp_path, options, stop_at):
    state = tmp_path / "fits" / "state.pt"
    options = {"epochs": 6, "seed": 2, **options}
    whole, expected = fit(**options)
    with pytest.raises(InterruptedError):
        fit(rule=Watched(stop_at), state_file=state, **options)
    a_day = len(fit(rule=(counted := Watched()), epochs=1, **{k: v for k, v in options.items() if k != "epochs"})[1].epochs)
    finished = (stop_at - 1) // (len(counted.days) // a_day)
    assert state.exists() == (finished > 0)
    rule, told = Watched(), []
    net, history = fit(rule=rule, state_file=state, on_epoch=lambda epoch, row: told.append((epoch, row)), **options)
    assert weights(net) == weights(whole) and rows(history) == rows(expected)
    assert (history.best_epoch, history.stopped_early) == (expected.best_epoch, expected.stopped_early)
    assert history.resumed_from == finished and len(rule.days) == (len(history.epochs) - finished) * len(counted.days)
    assert [epoch for epoch, _ in told] == list(range(len(history.epochs))), "a recorder gets those before the break too"
    assert not state.exists() and list(state.parent.iterdir()) == []


def test_the_comparison_of_resumed_weights_can_fail(tmp_path, monkeypatch):
    state = tmp_path / "state.pt"
    whole, _ = fit()
    with pytest.raises(InterruptedError):
        fit(rule=Watched(20), state_file=state)
    content = torch.load(state, weights_only=False)
    content["optimizer"]["state"][0]["exp_avg"] *= 1.001
    torch.save(content, state)
    assert weights(fit(state_file=state)[0]) != weights(whole)


def test_the_best_epoch_may_lie_before_the_interruption(tmp_path, monkeypatch):
    values, seen, net = [0.1, 0.3, 0.2, 0.0, 0.25], [], Net()
    scripted(monkeypatch, "rank_ic", values)
    with pytest.raises(InterruptedError):
        fit(rule=Watched(stop_at=60), state_file=tmp_path / "s", epochs=5, on_epoch=lambda *a: seen.append(a))
    assert len(seen) == 3
    scripted(monkeypatch, "rank_ic", values[3:])
    _, history = fit(net, state_file=tmp_path / "s", epochs=5)
    assert history.best_epoch == 1 and [row["valid_rank_ic"] for row in history.epochs] == values
    scripted(monkeypatch, "rank_ic", values)
    whole, _ = fit(epochs=5)
    assert weights(net) == weights(whole)


def test_a_fit_that_stopped_between_its_last_epoch_and_its_end(tmp_path):
    state = tmp_path / "state.pt"

    def stop(epoch, row):
        if epoch == 3:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fit(state_file=state, on_epoch=stop)
    rule = Watched()
    net, history = fit(rule=rule, state_file=state)
    assert rule.days == [] and weights(net) == weights(fit()[0]) and history.resumed_from == 4 and not state.exists()


def test_without_resume_no_state_is_kept_or_read(tmp_path):
    state = tmp_path / "state.pt"
    with pytest.raises(InterruptedError):
        fit(rule=Watched(20), state_file=state, resume=False)
    assert not state.exists()
    state.write_bytes(b"something else")
    fit(state_file=state, resume=False)
    assert state.read_bytes() == b"something else"


@pytest.mark.parametrize("content", [b"", b"no state", b"PK\x03\x04"])
def test_a_state_that_cannot_be_read(tmp_path, content):
    state = tmp_path / "state.pt"
    state.write_bytes(content)
    with pytest.raises(DataError, match="state.pt.*delete it"):
        fit(state_file=state)


def test_the_state_is_replaced_whole(tmp_path, monkeypatch):
    state = tmp_path / "state.pt"
    with pytest.raises(InterruptedError):
        fit(rule=Watched(20), state_file=state)
    before = state.read_bytes()

    def full(content, file):
        file.write_bytes(b"half")
        raise OSError("full")

    monkeypatch.setattr(module.torch, "save", full)
    with pytest.raises(OSError, match="full"):
        fit(state_file=state)
    assert state.read_bytes() == before


def test_state_of_a_rule_travels_with_the_fit(tmp_path):
    class Adapting(Watched):
        def __init__(self, stop_at=None):
            super().__init__(stop_at)
            self.scale = nn.Parameter(torch.ones(1))

        def step(self, net, sampler, unit):
            self.scale.grad = 2 * self.scale.detach()
            return super().step(net, sampler, unit)

        def groups(self):
            return [{"params": [self.scale], "lr": 0.1}]

        def state_dict(self):
            return {"scale": self.scale.detach().clone()}

        def load_state_dict(self, state):
            self.scale.data.copy_(state["scale"])

    whole, rule = Adapting(), Adapting()
    net, history = fit(rule=whole, epochs=5)
    assert whole.scale.item() != 1
    with pytest.raises(InterruptedError):
        fit(rule=Adapting(stop_at=40), state_file=tmp_path / "s", epochs=5)
    other, _ = fit(rule=rule, state_file=tmp_path / "s", epochs=5)
    assert weights(other) == weights(net) and rule.scale.item() == whole.scale.item()


# ---- faults ----------
@pytest.mark.parametrize("options, said", [
    ({"optimizer": "adamm"}, "'adamm'.*adam.*sgd"), ({"optimizer": 5}, "optimizer 5.*adamw"),
    ({"optimizer": "lbfgs"}, "'lbfgs'.*adam"),
    ({"metric": "sharpe"}, "'sharpe'.*ic.*loss.*rank_ic"), ({"device": "gpu"}, "'gpu'.*cuda:k"),
    ({"device": "cuda:99"}, "cuda:99"),
    ({"device": "meta"}, "'meta'"), ({"device": None}, "None"), ({"lr": 0}, "lr=0"), ({"lr": "1e-3"}, "lr='1e-3'"),
    ({"lr": float("nan")}, "lr=nan"), ({"epochs": -1}, "epochs=-1"), ({"epochs": 2.5}, "epochs=2.5"),
    ({"epochs": None}, "epochs=None"),
    ({"patience": 0}, "patience=0"), ({"patience": 1.5}, "patience=1.5"), ({"clip_value": -1}, "clip_value=-1"),
    ({"clip_norm": 0}, "clip_norm=0"),
    ({"days_per_epoch": 0}, "days_per_epoch=0"), ({"days_per_epoch": 10.0}, "days_per_epoch=10.0"), ({"threads": 0}, "threads=0"),
    ({"weight_decay": -0.1}, "weight_decay=-0.1"), ({"weight_decay": "0"}, "weight_decay='0'"), ({"seed": -1}, "seed=-1"),
    ({"seed": "x"}, "seed='x'"), ({"seed": None}, "seed=None"), ({"lr": True}, "lr=True"),
])
def test_options_that_cannot_work(options, said):
    with pytest.raises(ConfigError, match=said):
        Trainer(**options)


def test_every_optimizer_that_is_offered_trains():
    with pytest.raises(ConfigError) as told:
        Trainer(optimizer="?")
    names = eval(str(told.value).split("one of ")[1])
    assert {"adam", "adamw", "sgd", "rmsprop", "nadam"} <= set(names)
    for name in names:
        try:
            net, _ = fit(optimizer=name, epochs=1, days_per_epoch=2, weight_decay=0.01)
        except ConfigError as error:
            assert name == "muon" and "muon" in str(error)  # it wants matrices, and says so
        else:
            assert weights(net) != weights(Net()), name


def test_devices():
    assert pick_device("cpu").type == "cpu" and pick_device("auto").type in ("cpu", "cuda", "mps")


def test_a_loss_that_is_not_finite_is_named_with_its_date():
    panel = small_panel()
    day = int(panel.view("train", training=True).labelled_days()[4])
    values = panel.blocks["stock"].values
    values[panel.rows[day, panel.stocks(day)]] = np.inf
    panel.blocks["stock"].window = 1
    net = Net()
    net.weight = nn.Parameter(torch.randn(3))
    with pytest.raises(DataError, match=f"(inf|nan) in epoch 0 at {panel.days[day]}"):
        fit(net, panel=panel)


def test_spans_without_labels_are_named():
    panel = small_panel()
    panel.label[panel.rows[:18][panel.rows[:18] >= 0]] = np.nan
    with pytest.raises(DataError, match="training span 2020-01-01 .. 2020-01-18"):
        fit(panel=panel)
    panel = small_panel()
    panel.label_eval[panel.rows[18:24][panel.rows[18:24] >= 0]] = np.nan
    with pytest.raises(DataError, match="validation span 2020-01-19 .. 2020-01-24"):
        fit(panel=panel)
    fit(panel=panel, valid=False)
    with pytest.raises(DataError, match="empty"):
        panel = small_panel()
        panel.segments["train"] = (3, 3)
        fit(panel=panel)


def test_training_leaves_the_panel_alone():
    panel = small_panel()
    before = copy.deepcopy(panel)
    fit(panel=panel)
    assert panel.digest() == before.digest()
    np.testing.assert_array_equal(panel.blocks["stock"].values, before.blocks["stock"].values)
