"""Rolling retraining: a new network every so many days of the test."""

from __future__ import annotations

import copy
import math
from pathlib import Path

from qlib_ext.data.panel import Panel
from qlib_ext.errors import ConfigError
from qlib_ext.training.incremental import OnlineRule, positive
from qlib_ext.training.rule import SupervisedRule
from qlib_ext.training.split import KINDS, rolling_segments


class RollingRetrainRule(SupervisedRule):
    """A new network from the first weights every `task_length` days of the test segment, on segments that have moved along.

    The first task's network is the one of the fit. The others are trained at the end of the fit (on the panel's test segment), or when
    a day of theirs is first scored, with the trainer's settings and seed.

    Args:
        task_length: trading days between two trainings.
        window: `expanding` (training keeps its first day) or `sliding`.

    Raises:
        ConfigError: a value that cannot work.
    """

    name = "rolling_retrain"

    def __init__(self, loss, task_length: int = 60, window: str = "expanding"):
        super().__init__(loss)
        positive(self.name, whole=True, task_length=task_length)
        if window not in KINDS:
            raise ConfigError(f"rule {self.name!r}: window {window!r} is unknown; choose one of {list(KINDS)}")
        self.task_length, self.window = task_length, window
        self.spans: dict[str, tuple[str, str]] = {}
        self.nets: dict[int, dict] = {}

    check = OnlineRule.check

    def attach(self, trainer, make_net, panel):
        super().attach(trainer, make_net, panel)
        if panel is not None:
            if "test" not in panel.segments:
                raise ConfigError(f"rule {self.name!r} counts its trainings from the first day of the test: give the dataset a segment "
                                  "test")
            self.nets = {}
            self.spans = {name: (str(panel.days[first]), str(panel.days[last - 1])) for name, (first, last) in panel.segments.items()}

    def _segments(self, panel: Panel, last: int) -> list[dict]:
        """Segments of every task up to the day before `last`."""
        spans = {name: (panel.position(first), panel.position(end) + 1) for name, (first, end) in self.spans.items()
                 if name in ("train", "valid")}
        first = panel.position(self.spans["test"][0])
        tasks = max(math.ceil((last - first) / self.task_length), 1)
        return rolling_segments({**spans, "test": (first, first + tasks * self.task_length)}, self.task_length, self.window)

    def finish(self, net, panel, folder):
        if "test" in panel.segments:
            self._train(panel, panel.segments["test"][1], folder)

    def _train(self, panel: Panel, last: int, folder: Path | None = None) -> None:
        """Networks of the tasks up to the day before `last` that are not there yet."""
        tasks = self._segments(panel, last)
        for number, spans in enumerate(tasks):
            if number == 0 or number in self.nets:
                continue
            days = {name: f"{panel.days[a]} .. {panel.days[b - 1]}" for name, (a, b) in spans.items() if name != "test"}
            print(f"rolling retrain, task {number + 1} of {len(tasks)}: {days}", flush=True)
            fresh = self.make_net()
            self.trainer.fit(fresh, SupervisedRule(self.loss), panel.view(spans["train"], training=True),
                             panel.view(spans["valid"]) if "valid" in spans else None,
                             folder and Path(folder, f"task_{number}.pt"), keep_state=folder is not None)
            self.nets[number] = {name: value.cpu() for name, value in fresh.state_dict().items()}

    def predict(self, net, sampler):
        """Scores of every day, by the network of its task."""
        panel = sampler.panel
        first, last = panel.span
        border = panel.position(self.spans["test"][0]) if "test" in self.spans and self.spans["test"][0] <= str(panel.days[-1]) else last
        if border + self.task_length >= last:
            yield from super().predict(net, sampler)
            return
        if any(number not in self.nets for number in range(1, -(-(last - border) // self.task_length))):
            self._train(panel, last)
        starts = [first, *(day for day in range(border + self.task_length, last, self.task_length) if day > first)]
        for start, stop in zip(starts, [*starts[1:], last]):
            number = max((start - border) // self.task_length, 0)
            used = net
            if number:
                used = copy.deepcopy(net)
                used.load_state_dict(self.nets[number])
            view = copy.copy(sampler)
            view.panel = panel.view((start, stop))
            yield from super().predict(used, view)

    def state_dict(self):
        return {"spans": self.spans, "nets": self.nets}

    def load_state_dict(self, state):
        self.spans, self.nets = dict(state["spans"]), dict(state["nets"])
