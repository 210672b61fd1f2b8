"""Layers shared by several networks."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from qlib_ext.errors import ConfigError, ShapeError


def random_keep(shape: torch.Size, dropout: float) -> tuple[torch.Tensor, float]:
    """A CPU mask that keeps each element with probability 1 - dropout (in steps of 1/256 where that is exact, else of 2^-16).

    Torch draws one generator step an element; here one 64-bit draw serves four or eight, which makes training with attention
    dropout on the CPU about a third faster. Depends on torch's global seed.

    Returns:
        bool tensor of `shape`, and the exact probability of keeping.
    """
    bits, dtype = (8, torch.int8) if float(dropout * 256).is_integer() else (16, torch.int16)
    dropped = round(dropout * 2**bits)
    count = math.prod(shape)
    draws = torch.empty(-(-count * bits // 64), dtype=torch.int64).random_(-2**63, None)
    keep = draws.view(dtype)[:count].view(shape) >= dropped - 2 ** (bits - 1)
    return keep, 1 - dropped / 2**bits


class Dropout(nn.Module):
    """`nn.Dropout`, faster on the CPU (see `random_keep`)."""

    def __init__(self, dropout: float):
        super().__init__()
        if not 0 <= dropout < 1:
            raise ConfigError(f"dropout={dropout} must lie in [0, 1)")
        self.dropout = dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.dropout == 0:
            return x
        if x.device.type != "cpu":
            return functional.dropout(x, self.dropout)
        keep, probability = random_keep(x.shape, self.dropout)
        return torch.where(keep, x, 0.0) / probability


class FeatureGate(nn.Module):
    """Rescales features by the state of the market: ``a(m) = F * softmax((W m + b) / beta)``, so that ``sum a = F``.

    ``forward(market [..., m]) -> [..., F]``. A large `beta` leaves the features as they are, a small one keeps a single one.
    Source: Li et al., MASTER, AAAI 2024.
    """

    def __init__(self, d_market: int, d_feat: int, beta: float):
        super().__init__()
        if not beta > 0:
            raise ConfigError(f"the gate's temperature beta={beta} must be positive")
        self.linear = nn.Linear(d_market, d_feat)
        self.beta = beta

    def forward(self, market: torch.Tensor) -> torch.Tensor:
        return self.linear.out_features * torch.softmax(self.linear(market) / self.beta, dim=-1)


class PositionCode(nn.Module):
    """Adds the fixed sine and cosine code of the lag: ``[n, l, d] -> [n, l, d]``, l up to `length`."""

    def __init__(self, d_model: int, length: int = 100):
        super().__init__()
        position = torch.arange(length, dtype=torch.float32)[:, None]
        angle = position * torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * (-math.log(10000.0) / d_model))
        code = torch.zeros(length, d_model)
        code[:, 0::2] = torch.sin(angle)
        code[:, 1::2] = torch.cos(angle)[:, :d_model // 2]
        self.register_buffer("code", code)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[1] > len(self.code):
            raise ShapeError(f"windows of {x.shape[1]} days, but the position code reaches {len(self.code)}: use a shorter window")
        return x + self.code[:x.shape[1]]


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second axis, ``[b, s, d] -> [b, s, d]``, without bias or output projection.

    Args:
        d_model: d, divisible by `heads`.
        heads: number of heads.
        dropout: on the attention weights.
        scaled: divide the scores by sqrt(d / heads).
        fused: use torch's fused kernel (same numbers up to rounding; no second derivative).
    """

    def __init__(self, d_model: int, heads: int, dropout: float, scaled: bool = True, fused: bool = False):
        super().__init__()
        if d_model % heads:
            raise ConfigError(f"d_model={d_model} must be divisible by the number of heads, {heads}")
        self.heads, self.fused, self.dropout = heads, fused, Dropout(dropout)
        self.scale = (d_model // heads) ** -0.5 if scaled else 1.0
        self.query = nn.Linear(d_model, d_model, bias=False)
        self.key = nn.Linear(d_model, d_model, bias=False)
        self.value = nn.Linear(d_model, d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = (self._split(layer(x)) for layer in (self.query, self.key, self.value))
        if self.fused:
            dropout = self.dropout.dropout if self.training else 0.0
            mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        else:
            mixed = self._mix(torch.softmax(query * self.scale @ key.transpose(-2, -1), dim=-1), value)
        return mixed.transpose(1, 2).reshape(x.shape)

    def _mix(self, weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """``dropout(weight) @ value``; on the CPU the division by the probability of keeping waits for the smaller product."""
        if not self.training or self.dropout.dropout == 0 or weight.device.type != "cpu":
            return self.dropout(weight) @ value
        keep, probability = random_keep(weight.shape, self.dropout.dropout)
        return torch.where(keep, weight, 0.0) @ value / probability

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        b, s, d = x.shape
        return x.reshape(b, s, self.heads, d // self.heads).transpose(1, 2)


class EncoderBlock(nn.Module):
    """LayerNorm, self-attention, residual on the normed input, LayerNorm, two-layer ReLU network with residual: ``[b, s, d]``."""

    def __init__(self, d_model: int, heads: int, dropout: float, scaled: bool = True, fused: bool = False):
        super().__init__()
        self.norm_in = nn.LayerNorm(d_model)
        self.attention = SelfAttention(d_model, heads, dropout, scaled, fused)
        self.norm_out = nn.LayerNorm(d_model)
        self.feed = nn.Sequential(nn.Linear(d_model, d_model), nn.ReLU(), Dropout(dropout), nn.Linear(d_model, d_model), Dropout(dropout))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm_in(x)
        x = self.norm_out(x + self.attention(x))
        return x + self.feed(x)


class TemporalPooling(nn.Module):
    """Weights the lags by their likeness to the last one: ``h = W z``, ``softmax_l(h_l . h_last)``; ``[n, l, d] -> [n, d]``."""

    def __init__(self, d_model: int):
        super().__init__()
        self.linear = nn.Linear(d_model, d_model, bias=False)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        h = self.linear(z)
        weight = torch.softmax((h @ h[:, -1, :, None]).squeeze(-1), dim=1)
        return (weight[:, None, :] @ z).squeeze(1)


class AdditivePooling(nn.Module):
    """Attention over l: ``a = softmax_l(v' tanh(W h_l + U q))``, ``c = sum_l a_l h_l``; ``[n, l, h] (and q [n, h]) -> [n, h]``.

    Args:
        width: h.
        hidden: length of v.
        query: whether there is a q; without one the weights depend on h_l alone.
    """

    def __init__(self, width: int, hidden: int, query: bool = False):
        super().__init__()
        self.state = nn.Linear(width, hidden, bias=False)
        self.query = nn.Linear(width, hidden, bias=False) if query else None
        self.weigh = nn.Linear(hidden, 1, bias=False)

    def forward(self, h: torch.Tensor, q: torch.Tensor | None = None) -> torch.Tensor:
        seen = self.state(h) if self.query is None else self.state(h) + self.query(q)[:, None]
        weight = torch.softmax(self.weigh(torch.tanh(seen)), dim=1)                                 # [n, l, 1]
        return (weight * h).sum(dim=1)


class StockNorm(nn.BatchNorm1d):
    """Batch normalisation over the stocks of a day, ``[n, h] -> [n, h]``; its running statistics are used where a day has one stock.

    In evaluation they always are: a score then does not depend on which other stocks are scored.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) < 2:
            return functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class ScoreHead(nn.Module):
    """NN(units): ``s = ELU(W1 r + b1)``, ``score = w2' norm(s) + b2``; ``[n, h] -> [n, 1]``.

    Args:
        width: h. units: length of s. batch_norm: whether s is normalised (`StockNorm`). dropout: on r.
    """

    def __init__(self, width: int, units: int, batch_norm: bool = False, dropout: float = 0.0):
        super().__init__()
        self.dropout, self.hidden = Dropout(dropout), nn.Linear(width, units)
        self.norm = StockNorm(units) if batch_norm else nn.Identity()
        self.out = nn.Linear(units, 1)

    def forward(self, r: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(functional.elu(self.hidden(self.dropout(r)))))
