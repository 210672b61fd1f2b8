"""What losses share: ranks and correlations of a day as tensors, and the class all losses descend from (its contract: `loss.py`)."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from qlib_ext.errors import ConfigError, ShapeError

MIN_LABELLED = 2
"""Labelled stocks a day needs before it contributes to a loss."""

VARIANCE_FLOOR = 1e-12
"""Keeps gradients finite where all predictions are the same."""


def rank_average(values: Tensor) -> Tensor:
    """Ranks 1..s of a vector `[s]`, ties at their average rank; no gradient, no NaN allowed in the input."""
    _, inverse, counts = torch.unique(values.detach(), sorted=True, return_inverse=True, return_counts=True)
    last = torch.cumsum(counts, dim=0)
    dtype = values.dtype if values.is_floating_point() else torch.float32
    middle = last.to(dtype) - (counts.to(dtype) - 1) / 2
    return middle[inverse]


def rank_fraction(values: Tensor) -> Tensor:
    """`p_i = (rank_i - 1) / (s - 1)` in [0, 1] of a vector `[s]`, s >= 2; 1 for the largest, ties share their average."""
    return (rank_average(values) - 1) / (values.shape[0] - 1)


def z_score(values: Tensor) -> Tensor:
    """`(v - mean) / sqrt(variance + 1e-12)` of a vector `[s]`: zeros, with a finite gradient, where it is constant."""
    deviation = values - values.mean()
    return deviation / (deviation.pow(2).mean() + VARIANCE_FLOOR).sqrt()


def pearson(prediction: Tensor, label: Tensor) -> Tensor:
    """Pearson correlation of two vectors `[s]`, differentiable in `prediction`; 0 where either is constant.

    The variance of the prediction carries a floor of 1e-12, which keeps the gradient finite at a constant prediction.
    """
    centred = label - label.mean()
    if bool(label.max() == label.min()):
        return prediction[:0].sum()
    centred = centred / centred.pow(2).mean().sqrt()
    return (z_score(prediction) * centred).mean()


def soft_rank(prediction: Tensor, temperature: float) -> Tensor:
    """Differentiable ranks `r_i = 1/2 + sum_j sigmoid((z_i - z_j) / temperature)` of a vector `[s]`, z its z-score.

    The z-score makes the temperature independent of the scale of the prediction. As the temperature goes to zero the soft ranks
    go to the average-tie ranks. Memory grows with s squared.

    Source: pairwise sigmoid approximation of ranks, Qin, Liu and Li 2010 (a general approximation framework for ranking
    measures).
    """
    standard = z_score(prediction)
    return torch.sigmoid((standard[:, None] - standard[None, :]) / temperature).sum(dim=1) + 0.5


class Loss:
    """Base of all losses; a child gives `name` and `day_loss`.

    Args:
        horizon: column of the label to learn; None learns all of them, column by column of the output.

    Attributes:
        scores: whether the output is a score, which validation may correlate with labels.
        aux: entries of `batch.aux` that the loss reads.
        lag: trading days between two days that the loss compares, see `earlier`; None: it looks at one day.
        unfreeze: whether the earlier day's output shall carry a gradient.

    Raises:
        ConfigError: when `horizon` is not None or an integer from 0 on.
    """

    name = ""
    scores = True
    aux: Tuple[str, ...] = ()
    lag: Optional[int] = None
    unfreeze = False

    def __init__(self, horizon: Optional[int] = None) -> None:
        if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 0):
            raise ConfigError(f"loss {self.name!r}: horizon must be None or an integer from 0 on, got {horizon!r}")
        self.horizon = horizon

    def at(self, epochs: Optional[float]) -> None:
        """How many epochs of training are done, fractions included; None: validation, or training is over."""

    def day_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Loss of one day and one horizon: `prediction [s]`, `label [s]`, both complete, s >= 2; a scalar."""
        raise NotImplementedError

    def __call__(self, output: Tensor, batch: Any, earlier: Optional[Tuple[Tensor, Any]] = None) -> Tensor:
        """The loss of a day.

        Args:
            output: scores `[n]` or `[n, h]`.
            batch: has `y [n, h]` (NaN where unlabelled) and `mask [n, h]` (bool).
            earlier: output (of the same parameters) and batch of the day `lag` trading days before; None where there is none.

        Raises:
            ShapeError: when the shapes do not fit, or `output [n]` meets several horizons and no `horizon` was chosen.
        """
        output, label, mask = self.columns(output, batch.y, batch.mask)
        if output.dtype in (torch.float16, torch.bfloat16):
            output = output.float()
        parts = []
        for column in range(label.shape[1]):
            chosen = torch.nonzero(mask[:, column]).squeeze(1)
            if chosen.shape[0] >= MIN_LABELLED:
                prediction = output[:, column].index_select(0, chosen)
                parts.append(self.day_loss(prediction, label[:, column].index_select(0, chosen).to(prediction.dtype)))
        if not parts:
            return output[:0].sum()
        return parts[0] if len(parts) == 1 else torch.stack(parts).mean()

    def columns(self, output: Tensor, label: Tensor, mask: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """Bring output, label and mask to one shape `[n, columns]`, or say why they do not fit."""
        said = f"loss {self.name!r}: output {tuple(output.shape)}, label {tuple(label.shape)}, mask {tuple(mask.shape)}"
        if label.dim() != 2 or mask.shape != label.shape or mask.dtype != torch.bool:
            raise ShapeError(f"{said} ({mask.dtype}): label must be [n, h] and mask a bool [n, h]")
        if output.dim() not in (1, 2) or output.shape[0] != label.shape[0]:
            raise ShapeError(f"{said}: output must be [n] or [n, h] with the same stocks as the label")
        if output.dim() == 1:
            output = output[:, None]
        if self.horizon is None:
            if output.shape[1] != label.shape[1]:
                raise ShapeError(f"{said}: the output has {output.shape[1]} column(s), the label {label.shape[1]}; "
                                 "give the network one output per horizon or choose one with `horizon`")
            return output, label, mask
        if self.horizon >= label.shape[1]:
            raise ShapeError(f"{said}: horizon {self.horizon} is not among the {label.shape[1]} label column(s)")
        one = slice(self.horizon, self.horizon + 1)
        if output.shape[1] not in (1, label.shape[1]):
            raise ShapeError(f"{said}: with `horizon` the output must have 1 or {label.shape[1]} columns")
        return (output if output.shape[1] == 1 else output[:, one]), label[:, one], mask[:, one]

    def score(self, output: Tensor) -> Tensor:
        """One number a stock `[n]` from an output `[n]` or `[n, h]`: the horizon that is learnt, or the mean of all that are."""
        if output.dim() == 1:
            return output
        return output[:, self.horizon] if self.horizon is not None and output.shape[1] > 1 else output.mean(dim=1)

    def _positive(self, zero: bool = False, **values: float) -> None:
        for key, value in values.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not (value > 0 or (zero and value == 0)):
                raise ConfigError(f"loss {self.name!r}: {key} must be a number {'from 0 on' if zero else 'above 0'}, got {value!r}")

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value!r}" for key, value in sorted(vars(self).items()))
        return f"{type(self).__name__}({inner})"
