"""The training loop: epochs over units, early stopping, resume. It knows neither Qlib nor any particular network."""

from __future__ import annotations

import copy
import inspect
import numbers
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from qlib_ext.data.panel import Panel
from qlib_ext.data.sampler import DaySampler, epoch_order
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.metrics import ic, rank_ic
from qlib_ext.training.rule import Rule, on_cpu, trainable

METRICS = {"rank_ic": 1.0, "ic": 1.0, "loss": -1.0}


@dataclass
class History:
    """What happened: one dict an epoch (``train_loss, valid_loss, valid_ic, valid_rank_ic, seconds``), and the epoch kept."""

    epochs: list[dict] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False
    resumed_from: int = 0


class Trainer:
    """Fits a network with a rule.

    Args:
        optimizer: name of a `torch.optim` class that takes lr and weight_decay, any case (``adam``, ``adamw``, ``sgd`` ...).
        lr, weight_decay: passed to it.
        epochs: at most this many; 0 keeps the weights as they are.
        patience: stop after this many epochs without a better validation metric, not counting those in which a rule pretrains; None
            never stops.
        metric: ``rank_ic`` or ``ic`` (mean over validation days, against raw labels, larger is better) or ``loss``.
        clip_value, clip_norm: clip each gradient element, or the global norm; None = off.
        seed: of initial weights (the caller's), order of days and dropout. Same seed and machine, same result.
        device: ``auto`` (cuda, else mps, else cpu), ``cpu``, ``cuda:k``, ``mps``.
        days_per_epoch: a random subset of this many days each epoch (of tasks with about as many days, where the rule learns from
            tasks); None = all.
        progress: show a bar.
        threads: torch CPU threads; None leaves them.
        resume: keep the state of the last epoch on disk until the fit ends, and go on from it.

    Raises:
        ConfigError: a value that cannot work.
    """

    def __init__(self, optimizer: str = "adam", lr: float = 1e-3, weight_decay: float = 0.0, epochs: int = 40,
                 patience: int | None = 8, metric: str = "rank_ic", clip_value: float | None = None,
                 clip_norm: float | None = None, seed: int = 0, device: str = "auto", days_per_epoch: int | None = None,
                 progress: bool = True, threads: int | None = None, resume: bool = True):
        self.optimizer_class = _optimizer_class(optimizer)
        if metric not in METRICS:
            raise ConfigError(f"trainer metric {metric!r} is unknown; choose one of {sorted(METRICS)}")
        for name, value in {"clip_value": clip_value, "clip_norm": clip_norm}.items():
            _check_number(name, value, numbers.Real, optional=True)
        for name, value in {"days_per_epoch": days_per_epoch, "patience": patience, "threads": threads}.items():
            _check_number(name, value, numbers.Integral, optional=True)
        _check_number("lr", lr, numbers.Real)
        _check_number("weight_decay", weight_decay, numbers.Real, zero=True)
        for name, value in {"epochs": epochs, "seed": seed}.items():
            _check_number(name, value, numbers.Integral, zero=True)
        self.lr, self.weight_decay, self.epochs, self.patience, self.metric = lr, weight_decay, epochs, patience, metric
        self.clip_value, self.clip_norm, self.seed, self.device_name = clip_value, clip_norm, int(seed), device
        self.days_per_epoch, self.progress, self.threads, self.resume = days_per_epoch, progress, threads, resume
        pick_device(device)

    def fit(self, net: torch.nn.Module, rule: Rule, train: Panel, valid: Panel | None = None, state_file: Path | None = None,
            on_epoch: Callable[[int, dict], None] | None = None, keep_state: bool = False) -> History:
        """Train `net` in place; afterwards it holds the weights of the best epoch (of the last one without `valid`).

        Args:
            net: moved to the device.
            train, valid: views; the training view must have been made with ``training=True``.
            state_file: where the state of the last finished epoch is kept until the fit ends; a state found there is resumed.
            keep_state: leave the file behind: the same fit, called again, is over at once.
            on_epoch: called as ``on_epoch(epoch, metrics)`` after every epoch, e.g. to log into a recorder; a resumed fit calls it
                for the epochs before the interruption too.

        Raises:
            DataError: no labelled training day, no labelled validation day, or a loss that is not finite (with its date).
            ConfigError: a metric that the output of the loss does not have.
        """
        if not rule.loss.scores and self.metric != "loss":
            raise ConfigError(f"trainer metric {self.metric!r} needs a score, loss {rule.loss.name!r} has none: set metric: loss")
        if self.threads:
            torch.set_num_threads(self.threads)
        device = pick_device(self.device_name)
        net.to(device)
        rule.to(device)
        if self.epochs and len(train.labelled_days()) == 0:
            raise DataError(f"no labelled day in the training span {_span(train)}; check label, universe and segments")
        if self.epochs and valid is not None and len(valid.labelled_days()) == 0:
            raise DataError(f"no labelled day in the validation span {_span(valid)}; check label, universe and segments")
        run = _Run(self, net, rule, device, state_file)
        sampler = DaySampler(train, device)
        valid_sampler = None if valid is None else DaySampler(valid, device, beside=sampler)
        first = run.resume()
        for epoch, row in enumerate(run.history.epochs):
            if on_epoch is not None:
                on_epoch(epoch, row)
        for epoch in range(first, self.epochs):
            if run.exhausted():
                break
            if epoch and epoch == rule.first_epoch():
                run.back_to_best()
            started = time.perf_counter()
            torch.manual_seed(self.seed * 1_000_003 + epoch)  # dropout depends on (seed, epoch) alone: a resumed fit is the same
            row = {"train_loss": self._train_epoch(net, rule, run, sampler, epoch)}
            rule.at(None)
            if valid is not None:
                row.update(evaluate(net, rule, valid_sampler))
            row["seconds"] = time.perf_counter() - started
            run.finish_epoch(epoch, row, valid is not None)
            if on_epoch is not None:
                on_epoch(epoch, row)
        return run.finish(keep_state)

    def _train_epoch(self, net, rule, run, sampler, epoch) -> float:
        total = 0.0
        rule.at(epoch)
        count = None if self.days_per_epoch is None else max(self.days_per_epoch // rule.unit_days(), 1)
        order = epoch_order(rule.units(sampler.panel), self.seed, epoch, count)
        if len(order) == 0:
            raise DataError(f"nothing to learn from in epoch {epoch}: no unit of the rule in the training span {_span(sampler.panel)} "
                            "has labels")
        for number, unit in enumerate(_bar(order, f"epoch {epoch + 1}/{self.epochs}", self.progress)):
            rule.at(epoch + number / len(order))
            net.train()
            run.optimizer.zero_grad(set_to_none=True)
            value = rule.step(net, sampler, unit)
            if not np.isfinite(value):
                raise DataError(f"training loss is {value} in epoch {epoch} at {_unit_name(sampler.panel, unit)}: look for "
                                "infinite features or a learning rate that is too high")
            self.apply(run.optimizer)
            total += value
        return total / len(order)

    def make_optimizer(self, groups: list[dict]) -> torch.optim.Optimizer:
        """The configured optimiser over groups of parameters.

        Raises:
            ConfigError: it refuses them, or its options.
        """
        try:
            return self.optimizer_class(groups, lr=self.lr, weight_decay=self.weight_decay)
        except ValueError as error:  # Muon, for one, takes matrices only
            raise ConfigError(f"optimizer {self.optimizer_class.__name__.lower()!r} refuses this network or its options: {error}") \
                from error

    def apply(self, optimizer: torch.optim.Optimizer) -> None:
        """Clips the gradients that are there and steps."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if self.clip_value:
            torch.nn.utils.clip_grad_value_(parameters, self.clip_value)
        if self.clip_norm:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        optimizer.step()


class _Run:
    """The state of one fit: optimiser, best weights, history, and its copy on disk."""

    def __init__(self, trainer: Trainer, net, rule, device, state_file: Path | None):
        self.trainer, self.net, self.rule, self.device = trainer, net, rule, device
        self.state_file = Path(state_file) if state_file is not None and trainer.resume else None
        groups = [{"params": list(trainable(net).values())}, *rule.groups()]
        self.optimizer = trainer.make_optimizer(groups) if groups[0]["params"] else None
        rule.optimizer = self.optimizer
        self.history, self.best, self.best_value = History(), None, -np.inf

    def resume(self) -> int:
        """The first epoch to run: 0, or the one after the state on disk."""
        if self.state_file is None or not self.state_file.exists():
            return 0
        try:
            state = torch.load(self.state_file, map_location=self.device, weights_only=False)
            self.net.load_state_dict(state["net"])
            self.rule.load_state_dict(state["rule"])
            self.optimizer.load_state_dict(state["optimizer"])
        except Exception as error:
            raise DataError(f"{self.state_file}: the state of an interrupted fit cannot be read ({error}); delete it to start anew") \
                from error
        self.best, self.best_value, self.history = state["best"], state["best_value"], History(**state["history"])
        self.history.resumed_from = state["epoch"] + 1
        return state["epoch"] + 1

    def exhausted(self) -> bool:
        """Whether patience has run out."""
        patience, best = self.trainer.patience, self.history.best_epoch
        ran = len(self.history.epochs)
        worse = ran - 1 - max(best or 0, self.rule.first_epoch() - 1)
        self.history.stopped_early = patience is not None and best is not None and worse >= patience
        return self.history.stopped_early

    def back_to_best(self) -> None:
        """Weights and optimiser as they were after the best epoch."""
        if self.best is not None:
            net, rule, optimizer = copy.deepcopy(self.best)
            self.net.load_state_dict(net)
            self.rule.load_state_dict(rule)
            self.optimizer.load_state_dict(optimizer)

    def finish_epoch(self, epoch: int, row: dict, validated: bool) -> None:
        self.history.epochs.append(row)
        if validated:
            name = self.trainer.metric
            value = METRICS[name] * row[f"valid_{name}"]
            if value > self.best_value or self.best is None:
                self.best_value, self.history.best_epoch = (value if np.isfinite(value) else -np.inf), epoch
                self.best = copy.deepcopy((self.net.state_dict(), self.rule.state_dict(), self.optimizer and self.optimizer.state_dict()))
        if self.state_file is not None:
            state = {"epoch": epoch, "net": self.net.state_dict(), "rule": self.rule.state_dict(), "best": self.best,
                     "optimizer": self.optimizer.state_dict(), "best_value": self.best_value, "history": vars(self.history)}
            self.state_file.parent.mkdir(parents=True, exist_ok=True)
            aside = self.state_file.with_name(f".{self.state_file.name}.{os.getpid()}")
            torch.save(state, aside)
            aside.replace(self.state_file)

    def finish(self, keep_state: bool) -> History:
        net, rule = self.best[:2] if self.best else (self.net.state_dict(), copy.deepcopy(self.rule.state_dict()))
        self.net.load_state_dict(net)
        self.rule.load_state_dict(rule)
        self.rule.optimizer_state = self.best[2] if self.best else self.optimizer and self.optimizer.state_dict()
        self.rule.optimizer_state, self.rule.optimizer = on_cpu(self.rule.optimizer_state), None
        if self.best is None and self.history.epochs:
            self.history.best_epoch = len(self.history.epochs) - 1
        if self.state_file is not None and not keep_state:
            self.state_file.unlink(missing_ok=True)
        return self.history


def evaluate(net: torch.nn.Module, rule: Rule, sampler: DaySampler) -> dict[str, float]:
    """Mean over days of the loss (evaluation labels), and of IC and RankIC of the score (raw labels), NaN without any; the rule's
    own figures.

    A loss whose output is no score (`Loss.scores`) has no IC. The raw label is that of the horizon the loss learns; a loss that
    learns all of them has the mean over horizons.
    """
    horizon = getattr(rule.loss, "horizon", None)
    losses, ics, rank_ics, pairs = [], [], [], {}
    for batch, output in rule.predict(net, sampler):
        earlier = None
        if rule.loss.lag:
            earlier, pairs[batch.day] = pairs.pop(batch.day - rule.loss.lag, None), (output, batch)
        if int(batch.mask.sum()) >= 2:
            losses.append(float(rule.loss(output, batch, earlier)))
        if not rule.loss.scores:
            continue
        score = rule.loss.score(output).cpu().double().numpy()
        raw = batch.y_raw.cpu().double().numpy()
        for column in range(raw.shape[1]) if horizon is None else (horizon,):
            ics.append(ic(score, raw[:, column]))
            rank_ics.append(rank_ic(score, raw[:, column]))
    found = {"valid_loss": _mean(losses), **rule.figures()}
    return {**found, "valid_ic": _mean(ics), "valid_rank_ic": _mean(rank_ics)} if rule.loss.scores else found


def pick_device(name: str) -> torch.device:
    """The torch device of ``auto | cpu | cuda | cuda:k | mps``.

    Raises:
        ConfigError: unknown name, or a device this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device {name!r} is unknown; choose auto, cpu, cuda:k or mps") from error
    available = {"cpu": True, "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
                 "mps": torch.backends.mps.is_available()}
    if not available.get(device.type, False):
        raise ConfigError(f"device {name!r} is not available on this machine; use device: auto")
    return device


def _optimizer_class(name: str):
    known = {key.lower(): value for key, value in vars(torch.optim).items()
             if isinstance(value, type) and issubclass(value, torch.optim.Optimizer)
             and {"lr", "weight_decay"} <= set(inspect.signature(value).parameters)}
    if str(name).lower() not in known:
        raise ConfigError(f"optimizer {name!r} is unknown; choose one of {sorted(known)}")
    return known[name.lower()]


def _check_number(name: str, value, kind: type, zero: bool = False, optional: bool = False) -> None:
    """Raises ConfigError unless `value` is a positive number of the kind (or zero, or None where that is allowed)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not (value > 0 or (zero and value == 0)):
        whole = "a whole number" if kind is numbers.Integral else "a number"
        raise ConfigError(f"trainer {name}={value!r} must be {whole}, {'not negative' if zero else 'positive'}"
                          f"{' (or null)' if optional else ''}")


def _mean(values: list) -> float:
    values = np.asarray(values, dtype=float)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _span(panel: Panel) -> str:
    return f"{panel.days[panel.span[0]]} .. {panel.days[panel.span[1] - 1]}" if panel.span[1] > panel.span[0] else "(empty)"


def _unit_name(panel: Panel, unit) -> str:
    return str(panel.days[unit]) if np.isscalar(unit) or np.ndim(unit) == 0 else str(unit)


def _bar(items, title: str, show: bool):
    if not show:
        return items
    try:
        from tqdm.auto import tqdm
    except ImportError:  # a bare training box
        print(title, flush=True)
        return items
    return tqdm(items, desc=title, leave=False, mininterval=1.0)
