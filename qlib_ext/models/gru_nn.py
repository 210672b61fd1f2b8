"""GRU(50,2)+NN(10): two recurrent layers of 50 over daily features, ten units, one score."""

from __future__ import annotations

from qlib_ext.errors import ConfigError
from qlib_ext.models.base import TorchModel
from qlib_ext.models.gru import GRUNet
from qlib_ext.models.layers import ScoreHead


class GRUNNNet(GRUNet):
    """``forward(x [n, l, f]) -> [n]``: ``r = GRU(x)_last``, ``s = ELU(W1 r + b1)``, ``score = w2' s + b2``. No NaN in `x`.

    Args:
        d_feat: f.
        hidden_size, num_layers: of the recurrence.
        units: length of s.
        batch_norm: normalise s: over the day's stocks in training, by running statistics afterwards.
        dropout: between the layers of the recurrence and on r.

    Raises:
        ConfigError: sizes that are too small. ShapeError: x of another width.
    """

    def __init__(self, d_feat: int, hidden_size: int = 50, num_layers: int = 2, units: int = 10, batch_norm: bool = False,
                 dropout: float = 0.1):
        super().__init__(d_feat, hidden_size, num_layers, dropout)
        if units < 1:
            raise ConfigError(f"units={units} must be positive")
        self.head = ScoreHead(hidden_size, units, batch_norm, dropout)


class GRUNN(TorchModel):
    """`GRUNNNet` as a Qlib model, with -IC as its loss; further keywords are `TorchModel`'s.

    The sizes "GRU(50,2)+NN(10)" are the broker's. The activation, dropout, loss and everything else is this project's choice, as is the
    reading of NN(10) as ten units before one score: public summaries do not say.
    """

    net_class = GRUNNNet

    def __init__(self, d_feat: int | None = None, hidden_size: int = 50, num_layers: int = 2, units: int = 10, batch_norm: bool = False,
                 dropout: float = 0.1, loss="ic", **options):
        super().__init__(dict(d_feat=d_feat, hidden_size=hidden_size, num_layers=num_layers, units=units, batch_norm=batch_norm,
                              dropout=dropout), loss=loss, **options)
