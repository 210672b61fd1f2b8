"""Rolling retraining around any Qlib model: a fresh fit for every stretch of the test segment."""

from __future__ import annotations

import numpy as np
import pandas as pd
from qlib.model.base import Model

from qlib_ext.data.dataset import _label_offset_of
from qlib_ext.data.segments import embargo_days, is_embargo, segment_positions, trim_segments
from qlib_ext.data.universe import trading_calendar
from qlib_ext.errors import ConfigError, NotFittedError
from qlib_ext.models.keeping import kept_folder
from qlib_ext.models.member import as_scores, fit_key, fit_member, logger, model_class, recorded_as
from qlib_ext.training.split import rolling_segments

SEGMENTS = ("train", "valid", "test")


class RollingRetrain(Model):
    """A model that is fitted again every `step` trading days of the test segment, on train and valid moved on by as much.

    The model of a task never sees a label that needs a price of the task's first test day or later: segments are moved as they are
    (`rolling_segments`), and a dataset that does not trim by the label's look ahead, as Qlib's, is trimmed here first. The model of
    the first task is the plain model, bit for bit. All tasks share the dataset's handler and panel. Statistics of processors stay
    those of the handler, fitted before the first test.

    Finished tasks are kept until the fit ends; a fit that was interrupted goes on behind them.

    Args:
        model: class, module_path and kwargs of any Qlib model.
        step: trading days in a task.
        window: ``expanding`` keeps the first day of train, ``sliding`` moves it too.
        embargo: ``auto`` = the label's look ahead; a number of trading days may only be larger, or stand in where the handler's
            label cannot be read. A `PanelDatasetH` brings its own.

    Learned: `models_`; `tasks_`, for each the first and last day of its segments.

    Raises:
        ConfigError: a value that cannot work, or a model that cannot be made.
    """

    def __init__(self, model: dict, step: int = 60, window: str = "expanding", embargo: str | int = "auto"):
        rolling_segments({"train": (0, 1), "test": (1, 2 + (step if type(step) is int else 0))}, step, window)
        if not is_embargo(embargo):
            raise ConfigError(f"embargo={embargo!r}: 'auto' or a number of trading days")
        model_class(model, "RollingRetrain's model")
        self.model, self.step, self.window, self.embargo = model, step, window, embargo

    def fit(self, dataset, reweighter=None) -> "RollingRetrain":
        """Fit the model of every task.

        Raises:
            ConfigError: no train or test segment, a test shorter than one task, an embargo that is unknown or too short.
        """
        tasks = self.tasks(dataset)
        models, key = [], fit_key(dataset, [self.model], tasks)
        with kept_folder("rolling", key) as folder:
            for number, task in enumerate(tasks):
                print(f"task {number + 1} of {len(tasks)}: " + ", ".join(f"{name} {task[name][0]} to {task[name][1]}" for name in task),
                      flush=True)
                first, last = segment_positions({"test": task["test"]}, trading_calendar())["test"]
                short = last - first + 1 < self.step         # a model that learns online may ask for a whole task of its own
                own = with_segments(dataset, {name: pair for name, pair in task.items() if name != "test" or not short})
                models.append(fit_member(self.model, own, reweighter, _name(number), "tasks", folder))
                _share_panel(own, dataset)
        self.models_, self.tasks_ = models, tasks
        return self

    def predict(self, dataset, segment="test") -> pd.Series:
        """Scores of a segment (a name, or a pair of dates), each day's by the task it belongs to.

        Days before the first task's test are scored by its model, days after the last task's by the last one.

        Returns:
            Series ``score`` on (datetime, instrument), sorted; stocks and days as the model scores them.

        Raises:
            NotFittedError: before `fit`. ConfigError: unknown segment.
        """
        if not hasattr(self, "models_"):
            raise NotFittedError("RollingRetrain has no models yet: call fit, or load a fitted one")
        if isinstance(segment, str) and segment not in dataset.segments:
            raise ConfigError(f"segment {segment!r} is not in the dataset; it has {sorted(dataset.segments)}")
        calendar = trading_calendar()
        pair = dataset.segments[segment] if isinstance(segment, str) else segment
        first, last = segment_positions({"asked for": pair}, calendar)["asked for"]
        starts = np.searchsorted(calendar, np.array([task["test"][0] for task in self.tasks_[1:]], "datetime64[D]"))
        edges = np.clip([first, *starts, last + 1], first, last + 1)
        parts = []
        for number, (begin, end) in enumerate(zip(edges[:-1], edges[1:])):
            if begin < end:
                own = with_segments(dataset, {"test": (str(calendar[begin]), str(calendar[end - 1]))})
                with recorded_as(_name(number), "tasks"):  # some of Qlib's models know no other segment than their dataset's test
                    parts.append(as_scores(self.models_[number].predict(own), _name(number)))
        return pd.concat(parts).sort_index()

    def tasks(self, dataset) -> list[dict[str, tuple[str, str]]]:
        """First and last day (YYYY-MM-DD) of every task's segments.

        Raises:
            ConfigError: see `fit`.
        """
        calendar = trading_calendar()
        positions = segment_positions({name: dataset.segments[name] for name in SEGMENTS if name in dataset.segments}, calendar)
        trimmed = trim_segments(positions, self._offset(dataset), calendar)
        for name in trimmed:
            cut = positions[name][1] - trimmed[name][1]
            if cut:
                logger.info(f"segment {name} ends {cut} trading days earlier, on {calendar[trimmed[name][1]]}: its labels would see "
                               "the days that follow")
        spans = {name: (first, last + 1) for name, (first, last) in trimmed.items()}
        return [{name: (str(calendar[first]), str(calendar[last - 1])) for name, (first, last) in task.items()}
                for task in rolling_segments(spans, self.step, self.window)]

    def _offset(self, dataset) -> int:
        """Trading days that a label looks ahead."""
        needed = dataset.offset if hasattr(dataset, "asked_segments") else _label_offset_of(dataset.handler)
        return embargo_days(self.embargo, needed, dataset.handler, "RollingRetrain")


def with_segments(dataset, segments: dict):
    """The dataset with other segments; handler and panel are shared."""
    own = object.__new__(type(dataset))
    vars(own).update(vars(dataset))  # copy.copy would leave out the panel: Qlib's objects drop what begins with _
    own.config(segments=segments)
    return own


def _share_panel(own, dataset) -> None:
    """Give the dataset the panel that a task has just made from the same frames, for the tasks to come."""
    if getattr(own, "_panel", None) is not None and getattr(dataset, "_panel", None) is None:
        dataset._panel = own._panel
        dataset.config(segments=dataset.asked_segments)


def _name(number: int) -> str:
    return f"task_{number:02d}"
