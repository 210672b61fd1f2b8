"""What leak checks change: a dataset whose test ends earlier or whose labels are shuffled, a model with less to do, and a run that keeps
nothing."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Iterator

import numpy as np
import pandas as pd
from qlib.data.dataset.handler import DataHandlerLP
from qlib.workflow import R

from qlib_ext.errors import DataError
from qlib_ext.report.leak_checks import permutation
from qlib_ext.report.runs import first_column
from qlib_ext.workflow import Node, quiet

SMALL = {"n_epochs": "epochs", "num_boost_round": 50, "max_steps": 200}
"""Options of Qlib's models that are made smaller for a retraining; `epochs`: as many as a retraining may have."""


# ---- variants of a dataset ----------------------------------------------------------------------------------------------------
def with_test_end(dataset, last: pd.Timestamp):
    """The dataset with a test segment that ends on a day; handler and panel are shared."""
    own = object.__new__(type(dataset))
    vars(own).update(vars(dataset))  # copy.copy would leave out what begins with _
    segments = dict(getattr(dataset, "asked_segments", dataset.segments))
    span = segments["test"]
    first = span.start if isinstance(span, slice) else span[0]
    own.config(segments={**segments, "test": (first, last)})
    return own


def with_shuffled_labels(dataset, seed: int):
    """The dataset with labels shuffled within each day among the stocks that have one, wherever they are asked for; features are shared.

    Raises:
        DataError: a dataset without handler.
    """
    handler = getattr(dataset, "handler", None)
    if not callable(getattr(handler, "fetch", None)):
        raise DataError(f"{type(dataset).__name__} has no handler whose labels could be shuffled")
    kind = type(handler)

    def fetch(self, *arguments, **options):
        group = options.get("col_set", arguments[2] if len(arguments) > 2 else None)
        return shuffled_frame(kind.fetch(self, *arguments, **options), group, seed)

    own, other = object.__new__(type(dataset)), object.__new__(type(kind.__name__, (kind,), {"fetch": fetch}))
    vars(other).update(vars(handler))
    vars(own).update(vars(dataset))
    own.handler = other
    if hasattr(dataset, "panel"):
        own._panel = shuffled_panel(dataset.panel(), seed)
    return own


def shuffled_frame(frame: pd.DataFrame, group: Any, seed: int) -> pd.DataFrame:
    """A handler's frame with its label columns shuffled; `group`: the columns that were asked for."""
    if isinstance(frame.columns, pd.MultiIndex):
        places = [k for k, column in enumerate(frame.columns) if column[0] == "label"]
    else:
        places = list(range(frame.shape[1])) if group == "label" else []
    if not places:
        return frame
    day, shown = pd.factorize(frame.index.get_level_values("datetime"))[0], frame.copy(deep=False)
    for number, place in enumerate(places):
        values = frame.iloc[:, place].to_numpy()
        source = permutation(day, ~pd.isna(values), np.random.default_rng([seed, number]))
        shown.isetitem(place, values[source])
    return shown


def shuffled_panel(panel, seed: int):
    """A panel with its labels shuffled within each day, apart in its universe and outside."""
    day, stock = np.nonzero(panel.rows >= 0)
    group = np.full(len(panel.label), -1)
    group[panel.rows[day, stock]] = 2 * day + panel.universe[day, stock]
    labels = {}
    for name in ("label", "label_eval", "label_raw"):
        labels[name] = getattr(panel, name).copy()
        for number, column in enumerate(labels[name].T):  # columns are views
            column[:] = column[permutation(group, np.isfinite(column), np.random.default_rng([seed, number]))]
    return replace(panel, **labels)


def shown_labels(dataset, last: pd.Timestamp) -> dict[str, pd.Series]:
    """The test labels that a model could read off a dataset, by where they lie."""
    span = dataset.segments["test"]
    first, found = pd.Timestamp(span.start if isinstance(span, slice) else span[0]), {}
    for key in (DataHandlerLP.DK_R, DataHandlerLP.DK_I, DataHandlerLP.DK_L):
        try:
            frame = dataset.handler.fetch(slice(first, last), col_set="label", data_key=key)
            found[f"the shuffled labels of table {key}"] = first_column(frame)
        except (AttributeError, KeyError, TypeError, ValueError):  # dropped, or a handler without such a table
            continue
    if hasattr(dataset, "panel"):
        panel = dataset.panel((first, last))
        day, stock = np.nonzero(panel.rows[slice(*panel.span)] >= 0)
        day += panel.span[0]
        index = pd.MultiIndex.from_arrays([pd.DatetimeIndex(panel.days[day].astype("datetime64[ns]")), panel.instruments[stock]],
                                          names=["datetime", "instrument"])
        found["the shuffled labels of the panel"] = pd.Series(panel.label_raw[panel.rows[day, stock], 0], index=index)
    return {name: label for name, label in found.items() if label.notna().any()}


def labels_differ(dataset, shuffled) -> bool:
    """Whether most labels that the shuffled dataset gives for the training are others."""
    span = dataset.segments["train"]
    chosen = slice(*span) if not isinstance(span, slice) else span
    if hasattr(dataset, "panel"):
        true, other = (one.panel().label for one in (dataset, shuffled))
        known = np.isfinite(true)
        return bool(known.any() and (true[known] != other[known]).mean() > 0.5)
    true, other = (one.handler.fetch(chosen, col_set="label", data_key=DataHandlerLP.DK_L).to_numpy() for one in (dataset, shuffled))
    known = ~pd.isna(true)
    return bool(known.any() and (true[known] != other[known]).mean() > 0.5)


# ---- a model with less to do ---------------------------------------------------------------------------------------------------
def smaller_model(config: dict, epochs: int, days_per_epoch: int, options: dict) -> dict:
    """A model's configuration with less to do, and without weights of earlier fits; of a wrapper (rolling, ensemble) one model of it.

    Args:
        config: class, module_path and kwargs. epochs, days_per_epoch: of this package's models; epochs of Qlib's networks too.
        options: further keywords, laid over the model's own.
    """
    kwargs = dict(config.get("kwargs") or {})
    members = kwargs.get("members") or []
    inner = kwargs.get("model") or next(iter(members.values() if isinstance(members, dict) else members), None)
    if isinstance(inner, dict) and "class" in inner:
        return smaller_model(inner, epochs, days_per_epoch, options)
    for name, size in SMALL.items():
        if name in kwargs:
            kwargs[name] = min(kwargs[name], epochs if size == "epochs" else size)
    if hasattr(Node("model", config).resolve(), "net_class"):
        kwargs = {name: value for name, value in kwargs.items() if name not in ("checkpoint", "online_state")}
        trainer = dict(kwargs.get("trainer") or {})
        trainer.update(epochs=epochs, patience=None, resume=False, progress=False,
                       days_per_epoch=min(days_per_epoch, trainer.get("days_per_epoch") or days_per_epoch))
        kwargs.update(trainer=trainer, rule=_brief(kwargs.get("rule", "supervised"), epochs))
    return {**config, "kwargs": _laid_over(kwargs, options)}


def sizes_of(config: dict) -> str:
    """The sizes of a training in words."""
    sizes = {**config["kwargs"], **(config["kwargs"].get("trainer") or {})}
    return ", ".join(f"{name} {sizes[name]}" for name in ("epochs", "days_per_epoch", *SMALL) if name in sizes) or "its own sizes"


def _brief(rule, epochs: int):
    """A rule that fits a short training: no fit for each stretch of the test, tasks in the last epoch at least."""
    name = rule.get("name") if isinstance(rule, dict) else rule
    if name == "rolling_retrain":
        return "static"
    if isinstance(rule, dict) and "pretrain_epochs" in rule:
        return {**rule, "pretrain_epochs": min(rule["pretrain_epochs"], epochs - 1)}
    return rule


def _laid_over(below: dict, above: dict) -> dict:
    """Two nested mappings as one; the second counts."""
    both = dict(below)
    for name, value in above.items():
        both[name] = _laid_over(both[name], value) if isinstance(value, dict) and isinstance(both.get(name), dict) else value
    return both


# ---- a run that keeps nothing ----------------------------------------------------------------------------------------------
class _Nothing:
    """Stands in for the running experiment and for its recorder, and keeps nothing."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *arguments, **options: self

    @property
    def active_recorder(self):
        return self

    @active_recorder.setter
    def active_recorder(self, other) -> None:
        """Names that members of ensembles put before theirs do not matter here."""


@contextmanager
def unrecorded() -> Iterator[None]:
    """Whatever is recorded or printed inside is not kept."""
    manager = R.exp_manager
    before, manager.active_experiment = manager.active_experiment, _Nothing()
    try:
        with quiet():
            yield
    finally:
        manager.active_experiment = before
