"""GRU over the window, one score from its last state."""

from __future__ import annotations

import torch
from torch import nn

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.base import TorchModel


class GRUNet(nn.Module):
    """``forward(x [n, l, f]) -> [n]``: gated recurrent units over l, a linear layer on the last state. No NaN in `x`.

    Args:
        d_feat: f.
        hidden_size, num_layers: of the recurrence.
        dropout: between layers.

    Raises:
        ShapeError: x of another width.
    """

    def __init__(self, d_feat: int, hidden_size: int = 64, num_layers: int = 2, dropout: float = 0.0):
        super().__init__()
        if hidden_size < 1 or num_layers < 1:
            raise ConfigError(f"hidden_size={hidden_size} and num_layers={num_layers} must be positive")
        self.d_feat = d_feat
        self.recurrence = nn.GRU(d_feat, hidden_size, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 3 or x.shape[-1] != self.d_feat:
            raise ShapeError(f"GRU was built for x [n, l, {self.d_feat}], got {tuple(x.shape)}")
        return self.head(self.recurrence(x)[0][:, -1]).squeeze(-1)


class GRU(TorchModel):
    """`GRUNet` as a Qlib model; further keywords are `TorchModel`'s."""

    net_class = GRUNet

    def __init__(self, d_feat: int | None = None, hidden_size: int = 64, num_layers: int = 2, dropout: float = 0.0, **options):
        super().__init__(dict(d_feat=d_feat, hidden_size=hidden_size, num_layers=num_layers, dropout=dropout), **options)
