"""Rules: what one training step consumes and how scores are made. The loop itself (trainer.py) never changes."""

from __future__ import annotations

from typing import Iterator

import numpy as np
import torch

from qlib_ext.data.panel import Panel
from qlib_ext.data.sampler import Batch, DaySampler
from qlib_ext.errors import ConfigError, ShapeError


class Rule:
    """One way to learn from a panel.

    A rule may own parameters (adapters) and state of its own; the trainer optimises `parameters()` beside the network's,
    saves `state_dict()` with each epoch, and evaluates on a copy of the state.
    """

    def __init__(self, loss):
        self.loss = loss

    def units(self, panel: Panel) -> np.ndarray:
        """What one step consumes, e.g. day positions ``[u]``."""
        raise NotImplementedError

    def step(self, net: torch.nn.Module, sampler: DaySampler, unit) -> torch.Tensor:
        """The scalar loss of one unit, attached to the graph."""
        raise NotImplementedError

    def predict(self, net: torch.nn.Module, sampler: DaySampler) -> Iterator[tuple[Batch, torch.Tensor]]:
        """Yields (batch, output) for every scored day of the sampler's panel, in order of time, without gradients."""
        raise NotImplementedError

    def parameters(self) -> list[torch.nn.Parameter]:
        """Parameters of the rule itself."""
        return []

    def state_dict(self) -> dict:
        """What a resumed fit needs beside the network."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore `state_dict()`."""


class SupervisedRule(Rule):
    """One labelled day a step: loss of the network's output on the day against the day's labels."""

    def units(self, panel: Panel) -> np.ndarray:
        """Positions of the labelled days, ``[u]``."""
        return panel.labelled_days()

    def step(self, net, sampler, unit):
        """Loss on day ``unit``."""
        batch = sampler.batch(unit)
        return self.loss(forward(net, batch), batch)

    def predict(self, net, sampler):
        """Scores of every day, whatever other days are scored."""
        net.eval()
        for day in sampler.panel.scored_days():
            batch = sampler.batch(day)
            with torch.no_grad():
                output = forward(net, batch)
            yield batch, output


RULES = {"supervised": SupervisedRule}


def make_rule(name: str, loss) -> Rule:
    """A rule by name.

    Raises:
        ConfigError: unknown name (valid ones are listed).
    """
    if name not in RULES:
        raise ConfigError(f"rule {name!r} is unknown; choose one of {sorted(RULES)}")
    return RULES[name](loss)


def forward(net: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The network on one day: NaN inputs become 0 (the median after robust scaling), aux entries the network names are passed.

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
    output = net(_fill(batch.x), **{name: _fill(batch.aux[name]) for name in wanted})
    if output.shape[:1] != (len(batch.stocks),):
        raise ShapeError(f"{type(net).__name__} returned {tuple(output.shape)} for {len(batch.stocks)} stocks")
    return output


def one_score(output: torch.Tensor, horizon: int | None) -> torch.Tensor:
    """One number a stock ``[n]`` from an output ``[n]`` or ``[n, h]``: the horizon the loss learns, or the mean of all it learns."""
    if output.ndim == 1:
        return output
    return output[:, horizon] if horizon is not None and output.shape[1] > 1 else output.mean(dim=1)


def _fill(x):
    if isinstance(x, dict):
        return {name: _fill(value) for name, value in x.items()}
    return torch.where(torch.isnan(x), torch.zeros((), dtype=x.dtype, device=x.device), x)
