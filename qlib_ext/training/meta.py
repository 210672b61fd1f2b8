"""Meta-learning over past tasks and online: MAML and DoubleAdapt (Zhao, Kong and Shen 2023, arXiv 2306.09862).

With f the network of weights phi, G the feature and H the label adapter, task k's lower level takes one step on its support,

    theta = phi - lr * u(g),     g = grad_phi mean_support L(f(G(x); phi), H(y))

u = identity (`sgd`), division by the root of the outer optimiser's second moments (`rms`), or Adam's direction with both its moments
(`adam`, as in the published code; nine tenths of it is the momentum of the outer steps: `along_gradient` in the report is near 0, and the
support hardly counts). It scores by
``H^-1(f(G(x); theta))``; the upper level is one optimiser step on the mean loss of the query days, for phi and the adapters. First
order takes d theta / d phi = 1. Second order adds the exact rest, ``- lr * d/d(phi, adapters) [g . (u'(g) o v)]`` with v the query's
gradient at theta, one support day at a time: memory does not grow with the length of the task.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qlib_ext.data.sampler import Batch, DaySampler
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.training.adapter import KINDS, FeatureAdapter, LabelAdapter
from qlib_ext.training.incremental import Learner, OnlineRule, Task, checked_step, flag, labelled, mean, positive
from qlib_ext.training.rule import day_loss, fill, forward, trainable

INNER = ("sgd", "rms", "adam")
STOCK = "stock"
"""The block that is adapted where a panel has several: exposures and the like stay what they are."""


@dataclass
class Step:
    """The lower level's step on a task.

    `theta` weights by name, leaves that take a gradient; `gradient` at phi; `seeds` of dropout on each support day (second order);
    `facts` the support's loss and the size of the step.
    """

    task: Task
    theta: dict[str, torch.Tensor]
    gradient: list[torch.Tensor]
    seeds: list[int]
    facts: dict


class MAMLRule(OnlineRule):
    """Learns weights from which one step on a task's support leads to good scores on its query days.

    Args:
        lr: of the lower level's step.
        inner: its direction: `sgd`, `rms` or `adam` (see the module).
        first_order: leave out second derivatives.
        pretrain_epochs: epochs of day by day supervised training; the tasks begin from the best of them.
        online: learning rates of the online phase that differ: `lr`, `lr_model` (phi; the trainer's lr in the fit), `lr_adapter`.
        task_length, support, update: see `OnlineRule`.

    Raises:
        ConfigError: a value that cannot work; `inner: adam` with an outer optimiser that has no moments; a task that is not longer than
            the look ahead of the label.
    """

    name = "maml"
    rates = ("lr", "lr_model")

    def __init__(self, loss, task_length: int = 20, support: int | None = None, update: str = "after_close", lr: float = 0.03,
                 inner: str = "sgd", first_order: bool = True, pretrain_epochs: int = 0, online: dict | None = None):
        super().__init__(loss, task_length, support, update)
        positive(self.name, zero=True, lr=lr)
        flag(self.name, first_order=first_order)
        positive(self.name, whole=True, zero=True, pretrain_epochs=pretrain_epochs)
        if inner not in INNER:
            raise ConfigError(f"rule {self.name!r}: inner {inner!r} is unknown; choose one of {list(INNER)}")
        if online is not None and not isinstance(online, dict):
            raise ConfigError(f"rule {self.name!r}: online={online!r} must name rates, e.g. online: {{lr: 0.001}}; it takes "
                              f"{list(self.rates)}")
        online = dict(online or {})
        if set(online) - set(self.rates):
            raise ConfigError(f"rule {self.name!r}: online does not take {sorted(set(online) - set(self.rates))}; it takes "
                              f"{list(self.rates)}")
        positive(self.name, zero=True, **{f"online.{key}": value for key, value in online.items()})
        self.lr, self.inner, self.first_order, self.pretrain_epochs, self.online = lr, inner, first_order, pretrain_epochs, online
        self.epoch: float | None = None
        self._adapted: tuple[Learner, Step] | None = None

    # ---- set-up -----------------------------------------------------------------------------------------------------------
    def check(self, reach, lengths):
        super().check(reach, lengths)
        gap = None if reach is None else self.split(reach).gap
        if gap is not None and self.task_length < gap:
            raise ConfigError(f"rule {self.name!r}: task_length={self.task_length} is not above the label horizon: a label is known "
                              f"{reach} trading days later ({self.update}), so that no query day of a task could be learnt before the next "
                              f"begins; the smallest that works is {gap}")
        needed = None if gap is None else self.support + gap - 1 + self.task_length
        if needed is not None and "train" in lengths and lengths["train"] < needed:
            raise ConfigError(f"rule {self.name!r}: the train segment has {lengths['train']} trading days, one task with its support takes "
                              f"{needed}: make the segment longer, or task_length or support shorter")

    def attach(self, trainer, make_net, panel):
        if trainer.epochs and self.pretrain_epochs >= trainer.epochs:
            raise ConfigError(f"rule {self.name!r}: pretrain_epochs={self.pretrain_epochs} leaves none of the trainer's {trainer.epochs} "
                              "epochs for tasks: fewer of these, or more of those")
        if self.inner != "sgd" and trainer.optimizer_class not in (torch.optim.Adam, torch.optim.AdamW):
            raise ConfigError(f"rule {self.name!r}: inner: {self.inner} takes the moments of the trainer's optimizer, and "
                              f"{trainer.optimizer_class.__name__} has none: choose optimizer: adam, or inner: sgd")
        super().attach(trainer, make_net, panel)

    def online_rates(self, learner):
        names = ("lr_model", "lr_adapter")
        for name, group in zip(names, learner.optimizer.param_groups if learner.optimizer else []):
            group["lr"] = self.online.get(name, self.trainer.lr if name == "lr_model" else group["lr"])

    # ---- training ---------------------------------------------------------------------------------------------------------
    @property
    def pretraining(self) -> bool:
        """Whether the epoch that `at` named trains day by day."""
        return self.epoch is not None and self.epoch < self.pretrain_epochs

    def at(self, epochs):
        super().at(epochs)
        self.epoch = epochs

    def units(self, panel):
        """First query days of the tasks inside the panel's span that have labels; its labelled days while pretraining."""
        days = super().units(panel)
        if self.pretraining:
            return days
        tasks = self.split(panel.label_reach).past(*panel.span)
        known = [all(((days >= first) & (days < last)).any() for first, last in (task.support, task.query)) for task in tasks]
        return np.array([task.query[0] for task, has_labels in zip(tasks, known) if has_labels], dtype=int)

    def first_epoch(self):
        return self.pretrain_epochs

    def unit_days(self):
        return 1 if self.pretraining else self.task_length

    def step(self, net, sampler, unit):
        if self.pretraining:
            return super().step(net, sampler, unit)
        task = self.split(sampler.panel.label_reach).task(int(unit), int(unit) + self.task_length)
        learner = Learner(net, self.adapters, self.optimizer)
        return self.upper(learner, sampler, self.lower(learner, sampler, task, self.lr), labelled(sampler, task.query),
                          self.lr)["query_loss"]

    # ---- the two levels ---------------------------------------------------------------------------------------------------
    def lower(self, learner: Learner, sampler: DaySampler, task: Task, lr: float) -> Step:
        """One step on the mean loss of the support; none where the support has no labels."""
        weights, days = trainable(learner.net), labelled(sampler, task.support)
        learner.net.train()
        gradient, losses = [torch.zeros_like(p) for p in weights.values()], []
        seeds = [] if self.first_order else torch.randint(2**62, (len(days),)).tolist()
        with nullcontext() if self.first_order else _twice_differentiable():
            for number, day in enumerate(days):
                if seeds:
                    torch.manual_seed(seeds[number])
                loss = self._support_loss(learner, sampler, int(day)) / len(days)
                losses.append(loss.item() * len(days))
                for total, part in zip(gradient, _gradient(loss, weights)):
                    total += part
        lr = lr if len(days) else 0.0
        theta = {name: (p.detach() - lr * self._direction(learner.optimizer, p, g)).requires_grad_()
                 for (name, p), g in zip(weights.items(), gradient)}
        moved = checked_step(self.name, sampler.panel, task, list(weights.values()), list(theta.values()), losses)
        change = torch.cat([(p.detach() - t.detach()).ravel() for p, t in zip(weights.values(), theta.values())])
        along = nn.functional.cosine_similarity(change, torch.cat([g.ravel() for g in gradient]), dim=0).item()
        return Step(task, theta, gradient, seeds, {"support_loss": mean(losses), "adaptation": moved, "along_gradient": along})

    def upper(self, learner: Learner, sampler: DaySampler, step: Step, days: np.ndarray, lr: float) -> dict:
        """Adds to `grad` of weights and adapters the gradient of the mean loss of query `days` at theta; returns the losses."""
        learner.net.train()
        losses = []
        for day in days:
            loss = day_loss(self.loss, sampler, int(day), lambda batch: self.output(learner, batch, step.theta)) / len(days)
            loss.backward()
            losses.append(loss.item() * len(days))
        arrived = [torch.zeros_like(p) if p.grad is None else p.grad for p in step.theta.values()]
        for parameter, gradient in zip(trainable(learner.net).values(), arrived):
            parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad + gradient
        if step.seeds and lr:
            self._second_order(learner, sampler, step, arrived, lr)
        for value in step.theta.values():
            value.grad = None
        return {"query_loss": mean(losses)}

    def _second_order(self, learner: Learner, sampler: DaySampler, step: Step, arrived: list[torch.Tensor], lr: float) -> None:
        weights, days = trainable(learner.net), labelled(sampler, step.task.support)
        turned = [self._turned(learner.optimizer, p, g, v) for p, g, v in zip(weights.values(), step.gradient, arrived)]
        with _twice_differentiable():
            for day, seed in zip(days, step.seeds):
                torch.manual_seed(seed)
                part = _gradient(self._support_loss(learner, sampler, int(day)) / len(days), weights, create_graph=True)
                product = sum((a * b).sum() for a, b in zip(part, turned))
                if product.requires_grad:
                    (-lr * product).backward()

    def _direction(self, optimizer, parameter, gradient) -> torch.Tensor:
        if self.inner == "sgd":
            return gradient
        group, state = optimizer.param_groups[0], optimizer.state.get(parameter, {})
        (first, second), count = group["betas"], float(state.get("step", 0)) + 1
        square = second * state.get("exp_avg_sq", 0.0) + (1 - second) * gradient.pow(2)
        scale = (square / (1 - second**count)).sqrt() + group["eps"]
        if self.inner == "rms":
            return gradient / scale
        return (first * state.get("exp_avg", 0.0) + (1 - first) * gradient) / (1 - first**count) / scale

    def _turned(self, optimizer, parameter, gradient, arrived) -> torch.Tensor:
        """``u'(g) o v``."""
        if self.inner == "sgd":
            return arrived
        gradient = gradient.detach().requires_grad_()
        with torch.enable_grad():
            return torch.autograd.grad(self._direction(optimizer, parameter, gradient), gradient, arrived)[0]

    # ---- what DoubleAdapt changes -------------------------------------------------------------------------------------------
    def _support_loss(self, learner: Learner, sampler: DaySampler, day: int) -> torch.Tensor:
        return day_loss(self.loss, sampler, day, lambda batch: forward(learner.net, batch))

    def output(self, learner: Learner, batch: Batch, theta: dict | None) -> torch.Tensor:
        """Scores with weights theta; None: phi."""
        return forward(learner.net, batch, theta)

    def to(self, device):
        super().to(device)
        self._adapted = None

    # ---- online -----------------------------------------------------------------------------------------------------------
    def learn(self, learner, sampler, task, previous):
        """The upper level on what has become known of the previous task."""
        day, split = task.query[0], self.split(sampler.panel.label_reach)
        days = labelled(sampler, split.known(previous, day)) if previous is not None else ()
        if not len(days) or learner.optimizer is None:
            return {}
        lr = self.online.get("lr", self.lr)
        if self._adapted is not None and self._adapted[0] is learner:
            step = self._adapted[1]
        else:  # a run that goes on
            torch.manual_seed(self.seed_of(sampler.panel, previous) + 1)
            step = self.lower(learner, sampler, previous, lr)
        torch.manual_seed(self.seed_of(sampler.panel, task))
        learner.optimizer.zero_grad(set_to_none=True)
        facts = self.upper(learner, sampler, step, days, lr)
        if not np.isfinite(facts["query_loss"]):
            raise DataError(f"rule {self.name!r}: the loss on the query days {sampler.panel.days[days[0]]} .. "
                            f"{sampler.panel.days[days[-1]]} of the task from {sampler.panel.days[previous.query[0]]} on is "
                            f"{facts['query_loss']}: a smaller lr")
        self.trainer.apply(learner.optimizer)
        return facts

    def scorer(self, learner, sampler, task):
        step = self.lower(learner, sampler, task, self.online.get("lr", self.lr))
        self._adapted = learner, step
        return lambda batch: self.output(learner, batch, step.theta), step.facts


class DoubleAdaptRule(MAMLRule):
    """MAML with adapters: features are brought to a common form before the network, labels too, and scores back.

    First order gives the label adapter no gradient through the lower level; as published it has instead

        [(L_query(phi) - L_query(theta)) / sigma + alpha] * mean over the support of (H(y) - y)^2,       the bracket detached

    (alpha alone in second order).

    Args:
        adapt_x, adapt_y: whether features, and labels, are adapted.
        adapter: kind of the feature adapter, `dense`, `group` or `element` (`FeatureAdapter`).
        heads, temperature, label_gate: of the adapters.
        adapter_scale: how far the adapters are from the identity at first; 1 = as published.
        lr_adapter: learning rate of the adapters.
        alpha, sigma: of the pull of H towards the identity.

    The other arguments are `MAMLRule`'s. `group` and the small `adapter_scale` are choices of this project (dense adapters have f * f *
    heads weights, and start far from the identity), as are `inner: sgd` and its `lr`; published are `dense`, 1, `adam` and 0.001. Labels
    that are ranks, and losses that do not see an affine change of a day's labels (IC), want `adapt_y: false`.
    """

    name = "doubleadapt"
    rates = ("lr", "lr_model", "lr_adapter")

    def __init__(self, loss, task_length: int = 20, support: int | None = None, update: str = "after_close", lr: float = 0.03,
                 inner: str = "sgd", first_order: bool = True, pretrain_epochs: int = 0, online: dict | None = None, adapt_x: bool = True,
                 adapt_y: bool = True, adapter: str = "group", heads: int = 8, temperature: float = 10.0, label_gate: str = "last",
                 adapter_scale: float = 0.01, lr_adapter: float = 1e-2, alpha: float = 0.5, sigma: float = 2.0):
        super().__init__(loss, task_length, support, update, lr, inner, first_order, pretrain_epochs, online)
        positive(self.name, whole=True, heads=heads)
        flag(self.name, adapt_x=adapt_x, adapt_y=adapt_y)
        if adapt_y and not getattr(loss, "scores", True):
            raise ConfigError(f"rule {self.name!r}: loss {loss.name!r} has no scores that labels could be compared with: adapt_y: false")
        positive(self.name, temperature=temperature, sigma=sigma)
        positive(self.name, zero=True, adapter_scale=adapter_scale, lr_adapter=lr_adapter, alpha=alpha)
        if adapter not in KINDS or label_gate not in ("last", "window"):
            raise ConfigError(f"rule {self.name!r}: adapter={adapter!r} must be one of {list(KINDS)}, label_gate={label_gate!r} one of "
                              "['last', 'window']")
        self.adapt_x, self.adapt_y, self.lr_adapter, self.alpha, self.sigma = adapt_x, adapt_y, lr_adapter, alpha, sigma
        self.options = dict(adapter=adapter, heads=heads, temperature=temperature, label_gate=label_gate, adapter_scale=adapter_scale)
        self.shape: dict | None = None

    # ---- set-up -----------------------------------------------------------------------------------------------------------
    def attach(self, trainer, make_net, panel):
        super().attach(trainer, make_net, panel)
        if panel is not None:
            if len(panel.blocks) > 1 and STOCK not in panel.blocks:
                raise ConfigError(f"rule {self.name!r} adapts the block {STOCK!r}, the panel has {sorted(panel.blocks)}: name it so")
            block = panel.blocks[STOCK] if STOCK in panel.blocks else next(iter(panel.blocks.values()))
            self._build({"columns": block.features, "window": block.steps})

    def _build(self, shape: dict) -> None:
        """Adapters for the columns and the window length of a panel."""
        self.shape, options = shape, self.options
        common = dict(heads=options["heads"], temperature=options["temperature"], scale=options["adapter_scale"])
        self.adapters = nn.ModuleDict()
        if self.adapt_x:
            self.adapters["x"] = FeatureAdapter(shape["columns"], options["adapter"], **common)
        if self.adapt_y:
            width = len(shape["columns"]) * (shape["window"] if options["label_gate"] == "window" else 1)
            self.adapters["y"] = LabelAdapter(width, options["label_gate"], **common)

    def groups_of(self, adapters):
        parameters = list(adapters.parameters()) if adapters is not None else []
        return [{"params": parameters, "lr": self.lr_adapter, "weight_decay": 0.0}] if parameters else []

    def state_dict(self):
        return {**super().state_dict(), "shape": self.shape}

    def load_state_dict(self, state):
        if self.adapters is None and state["shape"] is not None:
            self._build(state["shape"])
        super().load_state_dict(state)

    # ---- the two levels ---------------------------------------------------------------------------------------------------
    def _shown(self, learner: Learner, batch: Batch) -> Batch:
        """The batch with adapted features."""
        if not self.adapt_x:
            return batch
        x = fill(batch.x)
        return replace(batch, x={**x, STOCK: learner.adapters["x"](x[STOCK])} if isinstance(x, dict) else learner.adapters["x"](x))

    def _target(self, learner: Learner, batch: Batch) -> Batch:
        """The batch with adapted labels."""
        if not self.adapt_y:
            return batch
        known = torch.where(batch.mask, batch.y, torch.zeros_like(batch.y))
        return replace(batch, y=learner.adapters["y"](known, _features(batch)))

    def _support_loss(self, learner, sampler, day):
        return day_loss(self.loss, sampler, day, lambda batch: forward(learner.net, self._shown(learner, batch)),
                        lambda batch: self._target(learner, batch))

    def output(self, learner, batch, theta):
        output = forward(learner.net, self._shown(learner, batch), theta)
        return learner.adapters["y"].inverse(output, _features(batch)) if self.adapt_y else output

    def plain(self, net, batch):
        return self.output(Learner(net, self.adapters, None), batch, None)

    def upper(self, learner, sampler, step, days, lr):
        facts = super().upper(learner, sampler, step, days, lr)
        if not self.adapt_y:
            return facts
        weight = self.alpha
        if self.first_order:
            with torch.no_grad():
                before = mean([day_loss(self.loss, sampler, int(day), lambda batch: self.output(learner, batch, None)).item()
                               for day in days])
            weight += (before - facts["query_loss"]) / self.sigma
            facts["query_loss_before"] = before
        support = labelled(sampler, step.task.support)
        for day in support:
            batch = sampler.batch(int(day))
            change = (self._target(learner, batch).y - batch.y)[batch.mask]
            (weight * change.pow(2).mean() / len(support)).backward()
        return facts


def _features(batch: Batch) -> torch.Tensor:
    x = fill(batch.x)
    return x[STOCK] if isinstance(x, dict) else x


def _gradient(loss: torch.Tensor, weights: dict, create_graph: bool = False) -> list[torch.Tensor]:
    """The gradient of a loss, 0 where it does not depend on a weight."""
    found = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(weights.values(), found)]


@contextmanager
def _twice_differentiable():
    """Kernels that have a second derivative: plain attention, and recurrences outside of cuDNN."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield


