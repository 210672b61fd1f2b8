"""Rules that go on learning while time passes: the rolling task split, the online phase, and fine-tuning.

A task k has r query days, from its first query day q_k on, and a support: the days before whose labels are known when the task is
decided. The label of day t becomes known at the close of t + reach (`Panel.label_reach`). All of task k is decided at the close of
q_k, before which nothing after that close has been seen:

    support of k   the r days that end with q_k - gap          gap = reach, or reach + 1 to be finished before that close
    query of k     q_k .. q_k + r - 1
    known of k - 1 its query days up to q_k - gap

The online phase begins with the validation segment and runs through the test segment; its first task is cut so that a task begins with
the test segment. Days before it are scored by the weights of the fit. Dropout of a task depends on the seed and its date: scoring sets
torch's random state.
"""

from __future__ import annotations

import copy
import hashlib
import math
from dataclasses import dataclass, replace
from typing import Callable, Iterator

import numpy as np
import torch

from qlib_ext.data.panel import Panel
from qlib_ext.data.sampler import Batch, DaySampler
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.training.rule import SupervisedRule, forward, on_cpu, trainable

UPDATES = {"after_close": 0, "before_close": 1}
LARGEST_STEP = 1.0


@dataclass(frozen=True)
class Task:
    """Half-open spans of day positions: what a task learns from, and the days it scores."""

    support: tuple[int, int]
    query: tuple[int, int]


@dataclass(frozen=True)
class TaskSplit:
    """How days are cut into tasks.

    Args:
        length: query days of a task, r.
        support: support days of a task.
        gap: days from the last support day to the first query day.
    """

    length: int
    support: int
    gap: int

    def task(self, first: int, last: int) -> Task:
        """The task with the query days ``first .. last - 1``."""
        stop = first - self.gap + 1
        return Task((max(stop - self.support, 0), max(stop, 0)), (first, last))

    def past(self, first: int, last: int) -> list[Task]:
        """The tasks that lie wholly inside the span, supports side by side."""
        start = first + self.support + self.gap - 1
        return [self.task(day, day + self.length) for day in range(start, last - self.length + 1, self.length)]

    def online(self, first: int, last: int, border: int | None = None) -> list[Task]:
        """The tasks that score ``first .. last - 1``; with a `border` inside, one task begins there."""
        cut = first if border is None or border <= first else first + (border - first) % self.length
        starts = [first] * (cut > first) + list(range(cut, last, self.length))
        return [self.task(day, following) for day, following in zip(starts, [*starts[1:], starts[-1] + self.length])] if starts else []

    def known(self, task: Task, day: int) -> tuple[int, int]:
        """The query days of a task whose labels are known at the close of `day`."""
        return task.query[0], max(min(task.query[1], day - self.gap + 1), task.query[0])


@dataclass
class Learner:
    """What evolves online: the network, the rule's adapters and the optimiser of both."""

    net: torch.nn.Module
    adapters: torch.nn.Module | None
    optimizer: torch.optim.Optimizer | None

    def state(self) -> dict:
        """A copy of its state on the CPU."""
        parts = {"net": self.net, "adapters": self.adapters, "optimizer": self.optimizer}
        return {name: on_cpu(part.state_dict()) for name, part in parts.items() if part is not None}


class OnlineRule(SupervisedRule):
    """Learns the training segment day by day, then learns each task's support before it scores the task.

    Args:
        loss: see `Rule`.
        task_length: query days of a task, r.
        support: support days of a task; None: as many.
        update: `after_close` (a task learns at the close of its first query day), or `before_close` (it must be ready before).

    Raises:
        ConfigError: a value that cannot work.
    """

    name = ""
    adapters: torch.nn.Module | None = None

    def __init__(self, loss, task_length: int = 20, support: int | None = None, update: str = "after_close"):
        super().__init__(loss)
        positive(self.name, whole=True, task_length=task_length, **({} if support is None else {"support": support}))
        if update not in UPDATES:
            raise ConfigError(f"rule {self.name!r}: update {update!r} is unknown; choose one of {list(UPDATES)}")
        self.task_length, self.support, self.update = task_length, support or task_length, update
        self.start: dict | None = None
        self.report: list[dict] = []
        self.begun: dict | None = None

    # ---- what a child gives -----------------------------------------------------------------------------------------------
    def learn(self, learner: Learner, sampler: DaySampler, task: Task, previous: Task | None) -> dict:
        """Changes the learner at the close of the task's first query day; returns numbers for the report.

        `sampler` gives training labels; days of `task.support`, and of `split.known(previous, ...)`, are all that may be asked of it.
        """
        raise NotImplementedError

    def scorer(self, learner: Learner, sampler: DaySampler, task: Task) -> tuple[Callable[[Batch], torch.Tensor], dict]:
        """What scores the task's days after `learn`, and numbers for the report."""
        return lambda batch: forward(learner.net, batch), {}

    def online_rates(self, learner: Learner) -> None:
        """Sets the learning rates of the online phase."""

    # ---- set-up -----------------------------------------------------------------------------------------------------------
    def split(self, reach: int) -> TaskSplit:
        """The split for labels that are known `reach` days later."""
        return TaskSplit(self.task_length, self.support, reach + UPDATES[self.update])

    def check(self, reach, lengths):
        if "test" in lengths and lengths["test"] < self.task_length:
            raise ConfigError(f"rule {self.name!r}: the test segment has {lengths['test']} trading days, a task {self.task_length}: make "
                              "the segment longer or task_length shorter")

    def attach(self, trainer, make_net, panel):
        super().attach(trainer, make_net, panel)
        if panel is None:
            return
        if "valid" in panel.segments and panel.segments["valid"][0] < panel.segments.get("train", (0, 0))[1]:
            raise ConfigError(f"rule {self.name!r}: valid begins before train ends, and the online phase begins with it: give valid days "
                              "after train, or leave it out")
        gap = self.split(panel.label_reach).gap
        first, shift = (panel.segments["valid"][0], 0) if "valid" in panel.segments else (panel.segments["train"][1] - 1, gap)
        border = panel.segments.get("test")
        self.start = {"day": str(panel.days[first]), "shift": shift, "border": border and str(panel.days[border[0]])}

    def finish(self, net, panel, folder):
        self.report, self.begun = [], None      # what validation left

    def _learner(self, net) -> Learner:
        """A copy of the network, the adapters and the optimiser."""
        net, adapters = copy.deepcopy(net), copy.deepcopy(self.adapters)
        groups = [{"params": list(trainable(net).values())}, *self.groups_of(adapters)]
        optimizer = self.trainer.make_optimizer(groups) if groups[0]["params"] else None
        state = self.optimizer_state if self.optimizer is None else self.optimizer.state_dict()
        if state is not None and optimizer is not None:
            optimizer.load_state_dict(copy.deepcopy(state))
        learner = Learner(net, adapters, optimizer)
        self.online_rates(learner)
        return learner

    def groups_of(self, adapters: torch.nn.Module | None) -> list[dict]:
        """Parameter groups of adapters."""
        return []

    def groups(self):
        return self.groups_of(self.adapters)

    # ---- the online phase -------------------------------------------------------------------------------------------------
    def predict(self, net, sampler):
        """Scores of every day: up to the online phase by the weights as they are, then task by task.

        A state that goes on (`TorchModel.load_online`) has learnt what followed the days before it: they are left out, with a line.

        Raises:
            ConfigError: no day is asked for but such.
            DataError: the panel lacks days that the online phase learns from; a step that diverges, with its task and date.
        """
        panel, self.report, self.begun = sampler.panel, [], None
        first, last = panel.span
        early = panel.days[last - 1] < np.datetime64(self.start["day"])
        start = last if early else panel.position(self.start["day"]) + self.start["shift"]
        if self.start.get("running") and first < start:
            if last <= start or early:
                raise ConfigError(f"the online state has learnt what followed {panel.days[first]}: it scores from {self.start['day']} on; "
                                  "use the fitted model for days before")
            print(f"going on from {self.start['day']}: the days before, from {panel.days[first]} on, were scored by the run that left the "
                  "state, and are left out", flush=True)
            first = start
        for day in panel.view((first, min(max(start, first), last))).scored_days():
            yield self._scored(net, sampler, day, lambda batch: self.plain(net, batch))
        if last > start:
            yield from self._online(net, sampler, start)

    def plain(self, net, batch: Batch) -> torch.Tensor:
        """Scores without adaptation."""
        return forward(net, batch)

    def _scored(self, net, sampler, day, score) -> tuple[Batch, torch.Tensor]:
        net.eval()
        batch = sampler.batch(day)
        with torch.no_grad():
            return batch, score(batch)

    def _online(self, net, sampler, start) -> Iterator[tuple[Batch, torch.Tensor]]:
        panel = sampler.panel
        learnt = DaySampler(replace(panel, span=(0, len(panel.days)), training=True), sampler.device, beside=sampler)
        split, border = self.split(panel.label_reach), self.start["border"]
        border = panel.position(border) if border and panel.days[start] < np.datetime64(border) <= panel.days[-1] else None
        scored, learner, previous = set(panel.scored_days().tolist()), self._learner(net), None
        if self.start.get("running"):
            previous = self._resumed(learnt, split, start)
        for task in split.online(start, panel.span[1], border):
            seed = self.seed_of(panel, task)
            if task.query[1] >= panel.span[1]:
                self.begun = {"learner": learner.state(), "day": str(panel.days[task.query[0]]), "border": self.start["border"],
                              "previous": previous and [str(panel.days[k]) for k in (previous.query[0], previous.query[1] - 1)],
                              "digest": days_digest(panel, *self._seen(panel, previous, task))}
            torch.manual_seed(seed)
            facts = self.learn(learner, learnt, task, previous)
            torch.manual_seed(seed + 1)
            score, more = self.scorer(learner, learnt, task)
            days = [day for day in range(*task.query) if day in scored]
            self.report.append({"date": str(panel.days[task.query[0]]), "days": len(days), **facts, **more})
            for day in days:
                batch, output = self._scored(learner.net, sampler, day, score)
                if not torch.isfinite(output).all():
                    raise DataError(f"rule {self.name!r}: scores of {panel.days[day]}, in the task from {panel.days[task.query[0]]} on, "
                                    "are not finite: infinite features, or steps that diverge (a smaller lr)")
                yield batch, output
            previous = task

    def _seen(self, panel: Panel, previous: Task | None, task: Task) -> tuple[int, int]:
        """The days that a task and the one before learn from, windows included."""
        back = max(block.window for block in panel.blocks.values()) - 1 + (self.loss.lag or 0)
        return max((previous or task).support[0] - back, 0), task.support[1]

    def seed_of(self, panel: Panel, task: Task) -> int:
        """What dropout of a task depends on: the trainer's seed and the date, so that a resumed run is the same."""
        return self.trainer.seed * 1_000_003 + 2 * int(panel.days[task.query[0]].astype("datetime64[D]").astype(np.int64))

    def _resumed(self, learnt: DaySampler, split: TaskSplit, start: int) -> Task | None:
        """The task before the one that is begun again, after a look at whether the data are those the state has learnt from."""
        panel, previous = learnt.panel, self.start["previous"]
        previous = previous and split.task(panel.position(previous[0]), panel.position(previous[1]) + 1)
        task = split.task(start, start + 1)
        first, last = self._seen(panel, previous, task)
        if days_digest(panel, first, last) != self.start["digest"]:
            raise DataError(f"the data of {panel.days[first]} .. {panel.days[last - 1]} are not those the online state has learnt from: "
                            "continue on the same store with days appended, or fit anew")
        return previous

    def figures(self):
        """Means over the tasks that scored a day: `adaptation` and `along_gradient`."""
        rows = [row for row in self.report if row["days"]]
        return {name: mean([row[name] for row in rows]) for name in ("adaptation", "along_gradient") if rows and name in rows[0]}

    # ---- state ------------------------------------------------------------------------------------------------------------
    def to(self, device):
        if self.adapters is not None:
            self.adapters.to(device)

    def state_dict(self):
        state = self.optimizer_state if self.optimizer is None else None       # the trainer keeps that of a fit that is running
        return {"adapters": None if self.adapters is None else self.adapters.state_dict(), "optimizer": state, "start": self.start}

    def load_state_dict(self, state):
        if self.adapters is not None:
            self.adapters.load_state_dict(state["adapters"])
        self.optimizer_state, self.start = copy.deepcopy(state["optimizer"]), state["start"]

    def continue_from(self, begun: dict) -> dict:
        """Take up the online phase where another run left it; returns the state of the network.

        Args:
            begun: `OnlineRule.begun` of that run.
        """
        learner = begun["learner"]
        self.start = {"day": begun["day"], "shift": 0, "running": True, **{k: begun[k] for k in ("border", "previous", "digest")}}
        if self.adapters is not None:
            self.adapters.load_state_dict(learner["adapters"])
        self.optimizer_state = learner.get("optimizer")
        return learner["net"]


class IncrementalRule(OnlineRule):
    """Fine-tuning: the trained network takes one optimiser step on each support day of each task, and stays as it becomes.

    Args:
        lr: learning rate online; None: the trainer's (a tenth of it was better on every market tried).
        passes: times that each support is gone through.
        task_length, support, update: see `OnlineRule`.
    """

    name = "incremental"

    def __init__(self, loss, task_length: int = 20, support: int | None = None, update: str = "after_close", lr: float | None = None,
                 passes: int = 1):
        super().__init__(loss, task_length, support, update)
        positive(self.name, whole=True, passes=passes)
        positive(self.name, zero=True, **({} if lr is None else {"lr": lr}))
        self.lr, self.passes = lr, passes

    def online_rates(self, learner):
        for group in learner.optimizer.param_groups if learner.optimizer else []:
            group["lr"] = self.trainer.lr if self.lr is None else self.lr

    def learn(self, learner, sampler, task, previous):
        before, losses = [p.detach().clone() for p in learner.net.parameters()], []
        first = task.support[0] if previous is None else max(task.support[0], previous.support[1])        # each day is learnt once
        for _ in range(self.passes):
            for day in labelled(sampler, (first, max(first, task.support[1]))):
                learner.net.train()
                learner.optimizer.zero_grad(set_to_none=True)
                losses.append(super().step(learner.net, sampler, int(day)))
                self.trainer.apply(learner.optimizer)
        return {"support_loss": mean(losses), "adaptation": checked_step(self.name, sampler.panel, task, before,
                                                                        list(learner.net.parameters()), losses)}


# ---- what rules share -------------------------------------------------------------------------------------------------------
def positive(name: str, whole: bool = False, zero: bool = False, **values) -> None:
    """Raises ConfigError unless each value is a number above 0 (or 0 where that is allowed), whole where asked."""
    for key, value in values.items():
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not (number and (value > 0 or (zero and value == 0))):
            raise ConfigError(f"rule {name!r}: {key}={value!r} must be {'a whole number' if whole else 'a number'}, "
                              f"{'not negative' if zero else 'positive'}")


def flag(name: str, **values) -> None:
    """Raises ConfigError unless each value is true or false."""
    for key, value in values.items():
        if not isinstance(value, bool):
            raise ConfigError(f"rule {name!r}: {key}={value!r} must be true or false")


def labelled(sampler: DaySampler, span: tuple[int, int]) -> np.ndarray:
    """The days of a span that have training labels."""
    return sampler.panel.view(span, training=True).labelled_days()


def mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")


def checked_step(name: str, panel: Panel, task: Task, before: list, after: list, losses: list[float]) -> float:
    """``|after - before| / |before|`` over all weights.

    Raises:
        DataError: a loss or weight that is not finite, or weights that moved by more than their own size.
    """
    with torch.no_grad():
        moved = math.sqrt(sum(float((a - b).double().pow(2).sum()) for a, b in zip(after, before)))
        size = math.sqrt(sum(float(b.double().pow(2).sum()) for b in before))
    step = moved / size if size else 0.0
    if not np.isfinite(losses).all() or not step <= LARGEST_STEP:
        raise DataError(f"rule {name!r}: the step of the task that scores {panel.days[task.query[0]]} onwards diverges (support "
                        f"{panel.days[task.support[0]]} .. {panel.days[task.support[1] - 1]}, loss {mean(losses):.4g}, weights moved by "
                        f"{step:.3g} of their size): a smaller lr")
    return step


def days_digest(panel: Panel, first: int, last: int) -> str:
    """Hex digest of universe, labels, day values and what windows show of the days ``first .. last - 1``."""
    digest = hashlib.blake2b(digest_size=16)
    parts = [panel.label, *panel.stock_aux.values(), *(block.values for block in panel.blocks.values())]
    stocks = np.flatnonzero(panel.universe[first:last].any(axis=0))
    for day in range(first, last):
        rows = panel.lookup[day, stocks]
        digest.update(panel.universe[day, stocks].tobytes() + (panel.rows[day, stocks] >= 0).tobytes())
        digest.update(f"{panel.days[day]} {'|'.join(panel.instruments[stocks])}".encode())
        for part in [*(part[rows] for part in parts), *(values[day] for values in panel.day_aux.values())]:
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()

