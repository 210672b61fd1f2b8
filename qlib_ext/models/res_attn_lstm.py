"""Residual-attention LSTM(48,2)+NN(10): what attention finds in the window is added to the last state."""

from __future__ import annotations

import torch
from torch import nn

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.base import TorchModel
from qlib_ext.models.layers import AdditivePooling, ScoreHead, SelfAttention

ATTENTIONS = ("time", "features", "none")
TOKEN = 8
"""Length of the token that stands for a feature."""


class FeatureAttention(nn.Module):
    """``SelfAttn(LayerNorm(x))`` over the features of each step, ``[n, l, f] -> [n, l, f]``.

    A feature's token is its normed value times a vector of its own plus another; features look at each other, and each becomes one
    number again. Memory grows with n l f^2.

    Args:
        d_feat: f. dropout: on the attention. zero: begin with an output of 0.
    """

    def __init__(self, d_feat: int, dropout: float, zero: bool):
        super().__init__()
        self.norm = nn.LayerNorm(d_feat)
        self.scale, self.shift = (nn.Parameter(torch.randn(d_feat, TOKEN) * TOKEN ** -0.5) for _ in range(2))
        self.attention = SelfAttention(TOKEN, 1, dropout)
        self.out = nn.Linear(TOKEN, 1, bias=False)
        if zero:
            nn.init.zeros_(self.out.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        token = self.norm(x)[..., None] * self.scale + self.shift                                   # [n, l, f, token]
        return self.out(self.attention(token.flatten(0, 1))).view(x.shape)


class ResAttnLSTMNet(nn.Module):
    """``forward(x [n, l, f]) -> [n]``, no NaN in `x`. With H the states of an LSTM over x and T the last step:

        time       a_t = softmax_t(v' tanh(W h_t + U h_T)),   c = sum_t a_t h_t,   r = LayerNorm(h_T + W_o c)
        features   H of x + SelfAttn(LayerNorm(x)),  attention over the features of each step,   r = LayerNorm(h_T)
        none       r = LayerNorm(h_T)
        score    = w2' ELU(W1 r + b1) + b2

    What is added begins at 0 (W_o, and the output of SelfAttn): the start is a plain LSTM, the same as `none`. Without `residual`
    r = LayerNorm(W_o c), or H is that of SelfAttn(LayerNorm(x)) alone, and nothing begins at 0.

    Args:
        d_feat: f.
        hidden_size, num_layers: of the recurrence.
        units: length of the last layer.
        attention: `time`, `features` or `none`.
        residual: whether what attention finds is added, or replaces.
        dropout: between the layers of the recurrence, on r, and on the weights of attention over features.

    Raises:
        ConfigError: an option that is not known, sizes that are too small, no residual without attention. ShapeError: x of another width.
    """

    def __init__(self, d_feat: int, hidden_size: int = 48, num_layers: int = 2, units: int = 10, attention: str = "time",
                 residual: bool = True, dropout: float = 0.1):
        super().__init__()
        if attention not in ATTENTIONS or min(hidden_size, num_layers, units) < 1:
            raise ConfigError(f"attention={attention!r} must be one of {list(ATTENTIONS)}, and hidden_size={hidden_size}, "
                              f"num_layers={num_layers} and units={units} positive")
        if attention == "none" and not residual:
            raise ConfigError("residual: false leaves the result of attention alone, and attention: none has none: choose time or features")
        self.d_feat, self.attention, self.residual = d_feat, attention, residual
        self.features = FeatureAttention(d_feat, dropout, zero=residual) if attention == "features" else None
        self.recurrence = nn.LSTM(d_feat, hidden_size, num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0)
        if attention == "time":
            self.pooling, self.mix = AdditivePooling(hidden_size, hidden_size, query=True), nn.Linear(hidden_size, hidden_size, bias=False)
            if residual:
                nn.init.zeros_(self.mix.weight)
        self.norm, self.head = nn.LayerNorm(hidden_size), ScoreHead(hidden_size, units, dropout=dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 3 or x.shape[-1] != self.d_feat:
            raise ShapeError(f"ResAttnLSTM was built for x [n, l, {self.d_feat}], got {tuple(x.shape)}")
        if self.features is not None:
            x = x + self.features(x) if self.residual else self.features(x)
        h = self.recurrence(x)[0]                                                                   # [n, l, h]
        r = h[:, -1]
        if self.attention == "time":
            found = self.mix(self.pooling(h, r))
            r = r + found if self.residual else found
        return self.head(self.norm(r)).squeeze(-1)


class ResAttnLSTM(TorchModel):
    """`ResAttnLSTMNet` as a Qlib model, with -IC as its loss; further keywords are `TorchModel`'s.

    "Residual attention" and the sizes "LSTM(48,2)+NN(10)" are the broker's; no equation is public. Both readings of it, `time` (the
    default) and `features`, are this project's choice.
    """

    net_class = ResAttnLSTMNet

    def __init__(self, d_feat: int | None = None, hidden_size: int = 48, num_layers: int = 2, units: int = 10, attention: str = "time",
                 residual: bool = True, dropout: float = 0.1, loss="ic", **options):
        super().__init__(dict(d_feat=d_feat, hidden_size=hidden_size, num_layers=num_layers, units=units, attention=attention,
                              residual=residual, dropout=dropout), loss=loss, **options)
