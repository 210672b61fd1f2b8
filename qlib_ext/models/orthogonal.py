"""Factors made orthogonal to each other and to given exposures, on each day by itself."""

from __future__ import annotations

from typing import Sequence

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.training.style_loss import standardized

RIDGE = 1e-4
FLOOR = 1e-4
ALIKE = 1e-12
"""Distance from the mean, over the largest value, up to which values of a control count as all alike."""
NOTHING = 1e-12
"""Variance up to which factors count as all the same."""
GROUPS = ("industry",)
"""Controls that are codes of groups."""
WEIGHTS = ("equal", "learned")


class InverseRoot(torch.autograd.Function):
    """``S^(-1/2) = Q diag(max(lambda, floor))^(-1/2) Q'`` of a symmetric ``[m, m]``, floor = `share` of the mean eigenvalue.

    Its gradient never divides by a difference of eigenvalues, as that of `eigh` does: with mu = max(lambda, floor)

        dR = Q (K * (Q' dS Q)) Q',    K_ij = -1 / (sqrt(mu_i mu_j) (sqrt(mu_i) + sqrt(mu_j))) * (mu_i - mu_j) / (lambda_i - lambda_j)

    the last quotient being 1 for two equal eigenvalues above the floor and 0 below. There is no second derivative.
    """

    @staticmethod
    def forward(ctx, matrix: torch.Tensor, share: float) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        floor = (share * values.mean()).clamp_min(NOTHING)
        lifted = torch.maximum(values, floor)
        ctx.save_for_backward(values, vectors, lifted)
        ctx.share = share if floor > NOTHING else 0.0
        return (vectors * lifted.rsqrt()) @ vectors.T

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        values, vectors, lifted = ctx.saved_tensors
        inner = vectors.T @ (gradient + gradient.T) @ vectors / 2
        root, apart = lifted.sqrt(), values[:, None] - values[None, :]
        below = values < lifted
        close = apart.abs() <= 1e-9 * values.abs().max()
        quotient = torch.where(close, (~below).to(inner.dtype)[:, None].expand_as(apart),
                               (lifted[:, None] - lifted[None, :]) / torch.where(close, 1.0, apart))
        slope = -quotient / (root[:, None] * root[None, :] * (root[:, None] + root[None, :]))
        through = vectors @ (slope * inner) @ vectors.T
        of_floor = (inner.diagonal() * -0.5 * lifted ** -1.5 * below).sum() * ctx.share / len(values)    # the floor follows the mean
        return through + of_floor * torch.eye(len(values), dtype=values.dtype, device=values.device), None


def orthogonalize(factors: torch.Tensor, controls: torch.Tensor | None = None) -> torch.Tensor:
    """Factors of mean 0 and variance 1 over the day's stocks, uncorrelated with each other and with the controls.

        F1 = F - C (C'C + 1e-4 I)^-1 C'F         C: the controls with mean 0 and standard deviation 1 (0 if they do not differ)
        result = F1 (F1'F1 / n)^(-1/2)           F, and so all of it, centred

    Of all orthogonal factors with the same span these are nearest to F1: no factor comes first, and turned factors give the result
    turned. In directions in which F1 has less than 1e-4 of its mean variance the result has less than variance 1, where dividing would
    show noise alone. Every stock counts, labelled or not. In float64, whatever the input.

    Args:
        factors: ``[n, m]``. controls: ``[n, p]``, NaN where unknown: such a value counts as the mean of the others.

    Returns:
        ``[n, m]`` in the type of `factors`.

    Raises:
        DataError: n is not above m + p + 1 (the constant counts). ShapeError: inputs of other shapes.
    """
    if factors.ndim != 2 or (controls is not None and (controls.ndim != 2 or len(controls) != len(factors))):
        raise ShapeError(f"orthogonalize takes factors [n, m] and controls [n, p], got {tuple(factors.shape)} and "
                         f"{None if controls is None else tuple(controls.shape)}")
    (n, m), p = factors.shape, 0 if controls is None else controls.shape[1]
    if n <= m + p + 1:
        raise DataError(f"{m} factors orthogonal to {p} controls and a constant need a day of more than {m + p + 1} stocks, this one has "
                        f"{n}: fewer units or controls, or a wider universe")
    place = torch.device("cpu") if factors.device.type == "mps" else factors.device                 # mps knows no float64
    rest = factors.to(place, torch.float64)
    rest = rest - rest.mean(dim=0)
    if p:
        c = standardized(_unit(controls.to(place, torch.float64)))
        square = c.T @ c + RIDGE * torch.eye(p, dtype=c.dtype, device=place)
        rest = rest - c @ torch.linalg.solve(square, c.T @ rest)
        rest = rest - rest.mean(dim=0)
    return (rest @ InverseRoot.apply(rest.T @ rest / n, FLOOR)).to(factors.device, factors.dtype)


def _unit(columns: torch.Tensor) -> torch.Tensor:
    """Columns ``[n, p]`` less their means, of size 1 whatever their units; 0 where all are alike, NaN stays NaN."""
    known = torch.isfinite(columns)
    rest = columns - torch.where(known, columns, 0.0).sum(dim=0) / known.sum(dim=0).clamp_min(1)
    size, large = (torch.where(known, one, 0.0).abs().amax(dim=0) for one in (rest, columns))
    return rest / torch.where(size > ALIKE * large, size, torch.inf)


class OrthogonalHead(nn.Module):
    """A score from orthogonal factors: ``sum_j w_j orthogonalize(F)_j``; ``F [n, m]`` and controls ``-> [n]``, or the factors themselves.

    A score depends on which stocks the day has: orthogonality is a property of the day's cross-section, in inference as in training.

    Args:
        units: m.
        weights: `equal` (w_j = 1/m) or `learned`.
        controls: names of the values per stock ``[n, k]`` to be orthogonal to, NaN unknown; `industry` is a code, others are numbers.
        factors: give the factors ``[n, m]``, for a loss that looks at each of them.

    Raises:
        ConfigError: unknown weights, controls named twice. DataError, ShapeError: see `orthogonalize`.
    """

    def __init__(self, units: int, weights: str = "equal", controls: Sequence[str] = (), factors: bool = False):
        super().__init__()
        if weights not in WEIGHTS or len(set(controls)) < len(controls):
            raise ConfigError(f"weights={weights!r} must be one of {list(WEIGHTS)}, controls={list(controls)} different names")
        if factors and weights == "learned":
            raise ConfigError("weights: learned has nothing to learn from a loss on each factor: choose loss ic, or weights: equal")
        self.controls, self.factors = tuple(controls), factors
        self.weigh = nn.Linear(units, 1, bias=False) if weights == "learned" else None

    def forward(self, factors: torch.Tensor, controls: dict[str, torch.Tensor]) -> torch.Tensor:
        made = orthogonalize(factors, control_columns([(name, controls[name]) for name in self.controls]))
        if self.factors:
            return made
        return made.mean(dim=1) if self.weigh is None else self.weigh(made).squeeze(-1)


def control_columns(controls: Sequence[tuple[str, torch.Tensor]]) -> torch.Tensor | None:
    """The columns of all controls side by side ``[n, p]``; None without controls.

    A code has a column of 0 and 1 for each of its groups but the first, which the others and the constant make up; those whose code is
    NaN are a group.

    Raises:
        ConfigError: a control that has one value a day, not one a stock.
    """
    columns = []
    for name, value in controls:
        if value.ndim != 2:
            raise ConfigError(f"control {name!r} has the same values for all stocks of a day: controls are aux entries per stock")
        if name in GROUPS:
            code = torch.unique(value[:, 0].nan_to_num(-1.0), return_inverse=True)[1]
            value = nn.functional.one_hot(code)[:, 1:].to(value.dtype)
        columns.append(value)
    return torch.cat(columns, dim=1) if columns else None
