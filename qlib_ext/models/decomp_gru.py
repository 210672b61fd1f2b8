"""DecompGRU: two recurrences over raw bars with two de-mean blocks, one in time before the first, one across stocks between them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.base import TorchModel
from qlib_ext.models.layers import Dropout

IN_TIME = ("average", "window", "none")
ACROSS_STOCKS = ("cap", "industry", "market", "none")


class DecompGRUNet(nn.Module):
    """``forward(x [n, l, f], cap [n, 1] or industry [n, 1]) -> [n]``, no NaN in `x`.

        season   = x - trend(x)                                  in time
        H1       = GRU_1([x; season])                            every step
        Hc_{i,s} = H1_{i,s} - mean_{j in g(i)} H1_{j,s}          across stocks, at every step
        score    = w' LayerNorm(GRU_2([H1; Hc])_last) + b

    A step whose inputs are all exactly 0 is one without a bar (unknown inputs become 0 before a network): it counts in no group mean;
    where nobody of a group has a bar, all count, as all do behind an adapter of the features, which changes zeros. The groups g are those
    of the day scored, also at the steps before it. A block that is switched off leaves its part of the input out: without both this is a
    GRU of two layers.

    Args:
        d_feat: f.
        hidden_size: of both recurrences.
        ts: trend in time: ``average`` of the `days` steps up to each one (before the window begins its first step is repeated),
            ``window`` (mean of the window, one for all its steps) or ``none``.
        days: steps of the moving average.
        cs: groups: ``cap`` (`groups` of equal number by `cap`, equal values in one group), ``industry`` (each value of `industry`),
            ``market`` (all stocks) or ``none``. Stocks with the value 0, which stands for unknown, are a group of their own.
        groups: number of cap groups.
        dropout: on the input of the second recurrence.

    Raises:
        ConfigError: an option that is not known, sizes that are too small. ShapeError: inputs of another width.

    Source: the public summaries of the report name the two de-mean modules, the six fields and the 20 groups by market value; forms,
    order and sizes of the rest are this project's choice.
    """

    def __init__(self, d_feat: int, hidden_size: int = 64, ts: str = "average", days: int = 20, cs: str = "cap", groups: int = 20,
                 dropout: float = 0.0):
        super().__init__()
        if ts not in IN_TIME or cs not in ACROSS_STOCKS:
            raise ConfigError(f"ts={ts!r} must be one of {list(IN_TIME)}, cs={cs!r} one of {list(ACROSS_STOCKS)}")
        if min(hidden_size, days, groups) < 1:
            raise ConfigError(f"hidden_size={hidden_size}, days={days} and groups={groups} must be positive")
        self.d_feat, self.ts, self.days, self.cs, self.groups = d_feat, ts, days, cs, groups
        self.aux = (cs,) if cs in ("cap", "industry") else ()
        self.first = nn.GRU(d_feat * (1 if ts == "none" else 2), hidden_size, batch_first=True)
        self.second = nn.GRU(hidden_size * (1 if cs == "none" else 2), hidden_size, batch_first=True)
        self.dropout, self.norm, self.head = Dropout(dropout), nn.LayerNorm(hidden_size), nn.Linear(hidden_size, 1)

    def forward(self, x: torch.Tensor, cap: torch.Tensor | None = None, industry: torch.Tensor | None = None) -> torch.Tensor:
        if x.ndim != 3 or x.shape[-1] != self.d_feat:
            raise ShapeError(f"DecompGRU was built for x [n, l, {self.d_feat}], got {tuple(x.shape)}")
        h = self.first(self._with_season(x))[0]                                                     # [n, l, h]
        if self.cs != "none":
            h = torch.cat([h, demean(h, self._members(len(x), cap, industry, x.device), (x != 0).any(dim=-1))], dim=-1)
        return self.head(self.norm(self.second(self.dropout(h))[0][:, -1])).squeeze(-1)

    def _with_season(self, x: torch.Tensor) -> torch.Tensor:
        if self.ts == "none":
            return x
        trend = x.mean(dim=1, keepdim=True) if self.ts == "window" else moving_average(x, self.days)
        return torch.cat([x, x - trend], dim=-1)

    def _members(self, n: int, cap, industry, device) -> torch.Tensor:
        """``[n, g]`` bool, which group each stock is in."""
        if self.cs == "market":
            return torch.ones(n, 1, dtype=torch.bool, device=device)
        value = cap if self.cs == "cap" else industry
        if value is None or value.shape != (n, 1):
            raise ShapeError(f"DecompGRU groups stocks by {self.cs} [{n}, 1], got {None if value is None else tuple(value.shape)}")
        group = quantile_group(value[:, 0], self.groups) if self.cs == "cap" else torch.unique(value[:, 0], return_inverse=True)[1]
        return functional.one_hot(group).bool()


def moving_average(x: torch.Tensor, days: int) -> torch.Tensor:
    """Mean of each step and the `days` - 1 before it, ``[n, l, f] -> [n, l, f]``; what would lie before the window is its first step."""
    padded = torch.cat([x[:, :1].expand(-1, days - 1, -1), x], dim=1)
    return functional.avg_pool1d(padded.transpose(1, 2), days, stride=1).transpose(1, 2)


def quantile_group(value: torch.Tensor, groups: int) -> torch.Tensor:
    """``floor(groups x rank / count)`` ``[n]``, rank = stocks with a smaller value; `groups` where the value is 0, which is unknown."""
    known = value != 0
    ordered = torch.where(known, value, torch.inf).sort()[0]
    rank = torch.searchsorted(ordered, value.contiguous())
    return torch.where(known, rank * groups // known.sum().clamp(min=1), groups)


def demean(h: torch.Tensor, members: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """`h` less its mean over the stocks of the group that are known at the step, all stocks where none of them is.

    Two products with the matrix of members, which need no atomic sums on a GPU.

    Args:
        h: ``[n, l, k]``. members: ``[n, g]`` bool, one group a stock. known: ``[n, l]`` bool.
    """
    members, known = members.to(h.dtype), known.to(h.dtype)
    alone = members @ (members.T @ known) == 0                                                      # [n, l]
    weight = torch.where(alone, 1.0, known)
    count = (members.T @ weight).clamp(min=1)                                                       # [g, l]
    total = (members.T @ (h * weight[..., None]).flatten(1)).unflatten(1, h.shape[1:])              # [g, l, k]
    return h - (members @ (total / count[..., None]).flatten(1)).view_as(h)


class DecompGRU(TorchModel):
    """`DecompGRUNet` as a Qlib model, with -IC as its loss; further keywords are `TorchModel`'s.

    Groups need an aux entry of their name: ``aux: {cap: {class: MarketCapLoader, module_path: qlib_ext.data.price_volume}}``, for
    industries `IndustryLoader`.
    """

    net_class = DecompGRUNet

    def __init__(self, d_feat: int | None = None, hidden_size: int = 64, ts: str = "average", days: int = 20, cs: str = "cap",
                 groups: int = 20, dropout: float = 0.0, loss="ic", **options):
        super().__init__(dict(d_feat=d_feat, hidden_size=hidden_size, ts=ts, days=days, cs=cs, groups=groups, dropout=dropout), loss=loss,
                         **options)
