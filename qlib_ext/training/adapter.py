"""Adapters of DoubleAdapt: small modules that bring features and labels of different times to one distribution."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.nn import functional

from qlib_ext.errors import ConfigError, ShapeError

KINDS = ("dense", "group", "element")
_BARS, _PRICES = ("KMID", "KLEN", "KUP", "KLOW", "KSFT"), ("OPEN", "HIGH", "LOW", "CLOSE", "VWAP")


def feature_groups(columns: list[str]) -> list[int]:
    """The group of each feature ``[f]``: names without their trailing digits, so `MA5` and `MA60` share one.

    In Alpha158 the nine shapes of the bar are one group, and its four prices of the day another.
    """
    families = [re.sub(r"\d+$", "", name) for name in columns]
    if "KMID" in families:
        families = ["bar" if name in _BARS else "price" if name in _PRICES else name for name in families]
    order = {name: number for number, name in enumerate(dict.fromkeys(families))}
    return [order[name] for name in families]


def soft_choice(x: torch.Tensor, prototypes: torch.Tensor, temperature: float) -> torch.Tensor:
    """``softmax_j(cos(x, p_j) / temperature)``: ``[..., f]`` and ``[j, f]`` give ``[..., j]``."""
    closeness = functional.normalize(x, dim=-1) @ functional.normalize(prototypes, dim=-1).T
    return torch.softmax(closeness / temperature, dim=-1)


class FeatureAdapter(nn.Module):
    """``G(x) = x + sum_j s_j(x) (W_j x + b_j)`` with ``s = soft_choice``, on each time step: ``[n, l, f] -> [n, l, f]``.

    Args:
        columns: names of the f features.
        kind: `dense` (W_j is a matrix ``[f, f]``, as published), `group` (one factor and one shift a feature group and head) or
            `element` (one a feature and head).
        heads, temperature: number of j, and how even their choice is.
        scale: of the initial W and b, 1 = as published (uniform within 1 / sqrt(f)), 0 = identity.

    Raises:
        ConfigError: unknown kind. ShapeError: x of another width.

    Source: Zhao, Kong and Shen 2023 (DoubleAdapt, arXiv 2306.09862); the lighter kinds are suggested by its authors.
    """

    def __init__(self, columns: list[str], kind: str = "dense", heads: int = 8, temperature: float = 10.0, scale: float = 1.0):
        super().__init__()
        if kind not in KINDS:
            raise ConfigError(f"feature adapter {kind!r} is unknown; choose one of {list(KINDS)}")
        self.kind, self.temperature, f = kind, temperature, len(columns)
        groups = torch.tensor(feature_groups(columns) if kind == "group" else range(f))
        width, bound = int(groups.max()) + 1, scale * f ** -0.5
        self.register_buffer("groups", groups)
        self.prototypes = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(heads, f), a=5 ** 0.5))
        shape = (heads, f, f) if kind == "dense" else (heads, width)
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(heads, width).uniform_(-bound, bound))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 3 or x.shape[-1] != len(self.groups):
            raise ShapeError(f"the feature adapter was built for x [n, l, {len(self.groups)}], got {tuple(x.shape)}")
        choice = soft_choice(x, self.prototypes, self.temperature)                                  # [n, l, j]
        shift = choice @ self.bias.index_select(1, self.groups)
        if self.kind == "dense":
            for head, matrix in enumerate(self.weight):
                shift = shift + choice[..., head, None] * (x @ matrix.T)
            return x + shift
        return x + x * (choice @ self.weight.index_select(1, self.groups)) + shift


class LabelAdapter(nn.Module):
    """``H(y) = sum_j s_j (g_j y + b_j)`` and ``inverse(v) = sum_j s_j (v - b_j) / g_j``, with s chosen by the features.

    ``s = soft_choice(U x)`` of the window (flattened) or its last day, U x in R^32. The inverse is a mixture of inverses: it undoes H
    exactly only where one head is chosen or all are alike, as published.

    Args:
        width: length of what chooses: f, or l * f with `gate` ``window``.
        gate: `last` (last day of the window) or `window`.
        heads, temperature, hidden: number of j, how even the choice is, and the width of U x.
        scale: of the initial g - 1 and b; 1 = as published (g uniform in [.75, 1.25], b = 1/8), 0 = identity.

    Raises:
        ConfigError: unknown gate. ShapeError: x of another width.
    """

    def __init__(self, width: int, gate: str = "last", heads: int = 8, temperature: float = 10.0, hidden: int = 32, scale: float = 1.0):
        super().__init__()
        if gate not in ("last", "window"):
            raise ConfigError(f"label_gate {gate!r} is unknown; choose 'last' or 'window'")
        self.gate, self.temperature = gate, temperature
        self.project = nn.Linear(width, hidden, bias=False)
        self.prototypes = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(heads, hidden), a=5 ** 0.5))
        self.factor = nn.Parameter(1 + scale * torch.empty(heads).uniform_(-0.25, 0.25))
        self.shift = nn.Parameter(scale * torch.full((heads,), 0.125))

    def choice(self, x: torch.Tensor) -> torch.Tensor:
        """``[n, j]`` of windows ``x [n, l, f]``."""
        seen = x[:, -1] if self.gate == "last" else x.flatten(1)
        if seen.shape[-1] != self.project.in_features:
            raise ShapeError(f"the label adapter was built for {self.project.in_features} inputs a stock, got {seen.shape[-1]}")
        return soft_choice(self.project(seen), self.prototypes, self.temperature)

    def forward(self, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """H of labels ``y [n]`` or ``[n, h]``."""
        choice = self.choice(x)
        return _scaled(y, choice @ self.factor, choice @ self.shift)

    def inverse(self, v: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The inverse of outputs ``v [n]`` or ``[n, h]``."""
        choice = self.choice(x)
        return _scaled(v, choice @ (1 / self.factor), choice @ (-self.shift / self.factor))


def _scaled(values: torch.Tensor, factor: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    return values * factor + shift if values.ndim == 1 else values * factor[:, None] + shift[:, None]
