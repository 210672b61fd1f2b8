"""Rules: what one training step consumes and how scores are made. The loop itself (trainer.py) never changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Callable, Iterator

import numpy as np
import torch
from torch.func import functional_call

from qlib_ext.data.panel import Panel
from qlib_ext.data.sampler import Batch, DaySampler
from qlib_ext.errors import ConfigError, ShapeError


class Rule:
    """One way to learn from a panel.

    A rule may own modules (adapters) and state of its own; the trainer optimises `groups()` beside the network's parameters,
    saves `state_dict()` with each epoch, and validates as the rule predicts.

    Attributes:
        optimizer: the optimiser of the fit that is running, else None; `optimizer_state`: where it ended, on the CPU.
        trainer, make_net: set by `attach`.
    """

    optimizer: torch.optim.Optimizer | None = None
    optimizer_state: dict | None = None
    trainer = None

    def __init__(self, loss):
        self.loss = loss

    def attach(self, trainer, make_net, panel: Panel | None) -> None:
        """Called by the model before a fit, and after it was opened from a file (`panel` is None then).

        Args:
            trainer: whose optimiser, clipping and seed are used outside of its loop too.
            make_net: makes a network with the initial weights of the seed.
            panel: everything that was loaded.
        """
        self.trainer, self.make_net = trainer, make_net

    def check(self, reach: int | None, lengths: dict[str, int]) -> None:
        """What cannot work is said before anything is loaded.

        Args:
            reach: trading days from t to the last close that the label of t needs; None: not known.
            lengths: trading days of each segment.

        Raises:
            ConfigError: it cannot.
        """

    def at(self, epochs: float | None) -> None:
        """How many epochs are done, fractions included; None: training is over, or validation runs."""
        self.loss.at(epochs)

    def units(self, panel: Panel) -> np.ndarray:
        """What one step of the epoch that `at` named consumes, e.g. day positions ``[u]``."""
        raise NotImplementedError

    def unit_days(self) -> int:
        """Days in a unit of the epoch that `at` named."""
        return 1

    def first_epoch(self) -> int:
        """The epoch from which patience counts; it begins from the best weights so far."""
        return 0

    def step(self, net: torch.nn.Module, sampler: DaySampler, unit) -> float:
        """Adds the gradient of one unit's loss to the parameters' `grad`; returns the loss."""
        raise NotImplementedError

    def predict(self, net: torch.nn.Module, sampler: DaySampler) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Yields (batch, output) for every scored day of the sampler's panel, in order of time, without gradients."""
        raise NotImplementedError

    def finish(self, net: torch.nn.Module, panel: Panel, folder: Path | None) -> None:
        """What is to be done once the fit is over; `folder` keeps unfinished work."""

    def figures(self) -> dict[str, float]:
        """Numbers of the last `predict`, for the epoch's row."""
        return {}

    def groups(self) -> list[dict]:
        """Parameter groups of the rule itself, as a torch optimiser takes them."""
        return []

    def to(self, device: torch.device) -> None:
        """Moves what the rule owns."""

    def state_dict(self) -> dict:
        """What a resumed fit needs beside the network."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict()`."""


class SupervisedRule(Rule):
    """One labelled day a step: loss of the network's output on the day against the day's labels. The weights stay what they are."""

    def units(self, panel):
        """Positions of the labelled days, ``[u]``."""
        return panel.labelled_days()

    def step(self, net, sampler, unit):
        """Gradient of the loss on day ``unit``."""
        loss = day_loss(self.loss, sampler, unit, lambda batch: forward(net, batch))
        loss.backward()
        return loss.item()

    def predict(self, net, sampler):
        """Scores of every day, whatever other days are scored."""
        net.eval()
        for day in sampler.panel.scored_days():
            batch = sampler.batch(day)
            with torch.no_grad():
                output = forward(net, batch)
            yield batch, output


def day_loss(loss, sampler: DaySampler, day: int, output_of: Callable[[Batch], torch.Tensor],
             target: Callable[[Batch], Batch] | None = None) -> torch.Tensor:
    """The loss of a day, of the day and the one `loss.lag` days before where the loss compares them.

    Args:
        output_of: the network's output on a batch; the earlier one carries no gradient unless ``loss.unfreeze``.
        target: the batch whose labels are learnt, where they are not the day's own.
    """
    batch, earlier = sampler.batch(day), None
    if loss.lag and day >= loss.lag and len(sampler.panel.stocks(day - loss.lag)):
        before = sampler.batch(day - loss.lag)
        with torch.set_grad_enabled(loss.unfreeze and torch.is_grad_enabled()):
            earlier = output_of(before), before
    return loss(output_of(batch), batch if target is None else target(batch), earlier)


def forward(net: torch.nn.Module, batch: Batch, weights: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
    """The network on one day: NaN inputs become 0 (the median after robust scaling), aux entries the network names are passed.

    A network with an attribute `aux_unknown` gets its aux entries with their NaN.

    Args:
        weights: parameters by name that stand in for the network's own.

    Returns:
        ``[n]`` scores, or ``[n, k]``.

    Raises:
        ShapeError: the output does not have one row a stock.
        ConfigError: the panel lacks an aux entry the network needs.
    """
    wanted = getattr(net, "aux", ())
    missing = [name for name in wanted if name not in batch.aux]
    if missing:
        raise ConfigError(f"{type(net).__name__} needs aux {missing}, the dataset gives {sorted(batch.aux)}: "
                          "name it under the dataset's `aux:`")
    call = net if weights is None else partial(_with_weights, net, weights)
    shown = (lambda value: value) if getattr(net, "aux_unknown", False) else fill
    output = call(fill(batch.x), **{name: shown(batch.aux[name]) for name in wanted})
    if output.shape[:1] != (len(batch.stocks),):
        raise ShapeError(f"{type(net).__name__} returned {tuple(output.shape)} for {len(batch.stocks)} stocks")
    return output


def trainable(net: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The parameters that learn, by name."""
    return {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}


def on_cpu(state):
    """A copy of nested containers of tensors, on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu().clone()
    if isinstance(state, dict):
        return type(state)((key, on_cpu(value)) for key, value in state.items())
    return [on_cpu(value) for value in state] if isinstance(state, list) else state


def _with_weights(net, weights, x, **aux):
    return functional_call(net, weights, (x,), aux)


def fill(x):
    """Inputs with 0 for NaN; a dict of them for several blocks."""
    if isinstance(x, dict):
        return {name: fill(value) for name, value in x.items()}
    return torch.where(torch.isnan(x), torch.zeros((), dtype=x.dtype, device=x.device), x)
