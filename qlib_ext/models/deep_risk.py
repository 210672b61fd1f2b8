"""Deep Risk Model: latent risk factors learned by a network (Lin, Zhou, Liu, Bian 2021, arXiv 2107.05201)."""

from __future__ import annotations

import torch
from torch import nn

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.base import TorchModel, _panel_of

AT_A_TIME = 512
"""Stocks whose weights on all others are held at once: memory grows with the stocks, not with their square."""


class NeighbourAverage(nn.Module):
    """What a stock's neighbours show: one layer of graph attention over the stocks of the day, ``[n, l, h] -> [n, l, h]``.

    Each head weighs all stocks by the scaled dot product of queries and keys made of the windows' means; the result is the mean
    over heads. In training neighbours are at most `max_neighbours` random ones. On the CPU torch's fused kernel wants values as
    wide as keys, else it holds all pairs; as the heads share their values, mixing the weights first is also the shorter sum.
    """

    def __init__(self, width: int, heads: int, max_neighbours: int):
        super().__init__()
        self.heads, self.max_neighbours = heads, max_neighbours
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, length, width = x.shape
        chosen = torch.arange(n, device=x.device)
        if self.training and n > self.max_neighbours:
            chosen = torch.randperm(n, device=x.device)[:self.max_neighbours]
        mean = x.mean(dim=1)
        query = self.query(mean).reshape(n, self.heads, -1).transpose(0, 1) * (width // self.heads) ** -0.5    # [heads, n, d]
        key = self.key(mean[chosen]).reshape(len(chosen), self.heads, -1).permute(1, 2, 0)                     # [heads, d, m]
        value = x[chosen].reshape(len(chosen), length * width)
        seen = [torch.softmax(part @ key, dim=-1).mean(dim=0) @ value for part in query.split(AT_A_TIME, dim=1)]
        return torch.cat(seen).reshape(n, length, width)


class DeepRiskNet(nn.Module):
    """``forward(x [n, l, f]) -> [n, k]``: exposures of the day's stocks to k factors, each of mean 0 and variance 1 over them.

    The first half reads each stock alone (GRU over the window); the second reads what is left of a stock after the average of its
    neighbours. Equivariant in the order of stocks. A factor on which all stocks agree, as on a day of one stock, is 0. No NaN in `x`.

    Args:
        d_feat: f.
        factors: k, even.
        hidden_size, num_layers: of both recurrences.
        heads: of the attention; they divide `hidden_size`.
        dropout: between the layers of the recurrences.
        max_neighbours: stocks that a stock looks at in training.

    Raises:
        ConfigError: sizes that do not fit each other. ShapeError: x of another width.
    """

    def __init__(self, d_feat: int, factors: int = 10, hidden_size: int = 32, num_layers: int = 2, heads: int = 4,
                 dropout: float = 0.0, max_neighbours: int = 1500):
        super().__init__()
        if factors < 2 or factors % 2 or hidden_size % heads or max_neighbours < 1:
            raise ConfigError(f"factors={factors} must be even, heads={heads} divide hidden_size={hidden_size}, and "
                              f"max_neighbours={max_neighbours} be positive")
        self.d_feat = d_feat
        options = dict(num_layers=num_layers, batch_first=True, dropout=dropout if num_layers > 1 else 0.0)
        self.embed = nn.Linear(d_feat, hidden_size)
        self.neighbours = NeighbourAverage(hidden_size, heads, max_neighbours)
        self.own, self.rest = nn.GRU(hidden_size, hidden_size, **options), nn.GRU(hidden_size, hidden_size, **options)
        self.own_head, self.rest_head = nn.Linear(hidden_size, factors // 2), nn.Linear(hidden_size, factors // 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 3 or x.shape[-1] != self.d_feat:
            raise ShapeError(f"DeepRisk was built for x [n, l, {self.d_feat}], got {tuple(x.shape)}")
        z = self.embed(x)
        own = self.own_head(self.own(z)[0][:, -1])
        rest = self.rest_head(self.rest(z - self.neighbours(z))[0][:, -1])
        exposure = torch.cat([own, rest], dim=1)
        exposure = exposure - exposure.mean(dim=0)
        return exposure / (exposure.pow(2).mean(dim=0) + 1e-12).sqrt()


class DeepRisk(TorchModel):
    """`DeepRiskNet` as a Qlib model; further keywords are `TorchModel`'s. It makes exposures, not scores.

    Train it on the returns of each of the next days (``Ref($close,-h)/Ref($close,-h+1)-1``, h = 1 .. 20): what explains them for long
    is stable. Signs and order of the factors are known up to the seed only: keep one fit for the whole of a back-test's segment.

    Raises:
        ConfigError: a validation metric other than ``loss``; an option that is not known.
    """

    net_class = DeepRiskNet

    def __init__(self, d_feat: int | None = None, factors: int = 10, hidden_size: int = 32, num_layers: int = 2, heads: int = 4,
                 dropout: float = 0.0, max_neighbours: int = 1500, loss="explained_variance", trainer: dict | None = None, **options):
        trainer = {"metric": "loss", **(trainer or {})}
        super().__init__(dict(d_feat=d_feat, factors=factors, hidden_size=hidden_size, num_layers=num_layers, heads=heads,
                              dropout=dropout, max_neighbours=max_neighbours), loss=loss, trainer=trainer, **options)
        if self.rule.loss.scores or trainer["metric"] != "loss":
            raise ConfigError(f"DeepRisk learns risk factors: loss explained_variance and metric loss, not {loss!r} and "
                              f"{trainer['metric']!r}")

    def exposures(self, dataset, segment=None):
        """Exposures of a segment (a name, or a pair of dates), of all days of the dataset where it is None.

        Returns:
            float32 frame by (datetime, instrument), sorted, columns ``deep_00`` ...; a row for every stock of the universe with a row.

        Raises:
            NotFittedError: before `fit`. ShapeError: the dataset's widths are not those of the fit.
            ConfigError: another kind of dataset.
        """
        import pandas as pd

        panel = _panel_of(dataset, segment)
        days, stocks, values = self.predict_panel(panel)
        index = pd.MultiIndex.from_arrays([pd.DatetimeIndex(panel.days[days].astype("datetime64[ns]")), panel.instruments[stocks]],
                                          names=["datetime", "instrument"])
        return pd.DataFrame(values, index=index, columns=[f"deep_{k:02d}" for k in range(values.shape[1])]).sort_index()

    def predict(self, dataset, segment="test"):
        """Raises ConfigError: there is no score."""
        raise ConfigError("DeepRisk makes exposures, not scores: ask `exposures(dataset)`, or give the workflow the record "
                          "qlib_ext.risk.records.SnapshotRecord instead of SignalRecord")
