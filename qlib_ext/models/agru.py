"""AGRU: a recurrence that reads its window in both directions, with attention; of one granularity, or of several in one network."""

from __future__ import annotations

from typing import Mapping

import torch
from torch import nn
from torch.nn import functional

from qlib_ext.data.panel import Panel
from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.base import TorchModel
from qlib_ext.models.layers import AdditivePooling, Dropout
from qlib_ext.models.orthogonal import OrthogonalHead
from qlib_ext.training.loss import FactorIC


class AttentiveGRU(nn.Module):
    """``[n, l, f] -> [n, width]``: what a GRU, and one that reads the same window backwards, make of it.

        h_t = [hf_t; hb_t],   a = softmax_t(v' tanh(W h_t)),   r = [sum_t a_t h_t; hf_last; hb_first]

    Reading backwards sees nothing beyond the window's last step. Without `bidirectional` there is no hb, without `attention` no sum.
    """

    def __init__(self, d_feat: int, hidden_size: int, bidirectional: bool, attention: bool):
        super().__init__()
        self.d_feat, self.hidden_size = d_feat, hidden_size
        states = hidden_size * (2 if bidirectional else 1)
        self.recurrence = nn.GRU(d_feat, hidden_size, batch_first=True, bidirectional=bidirectional)
        self.pooling = AdditivePooling(states, hidden_size) if attention else None
        self.width = states * (2 if attention else 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.recurrence(x)[0]                                                                   # [n, l, states]
        ends = torch.cat([h[:, -1, :self.hidden_size], h[:, 0, self.hidden_size:]], dim=1)
        return ends if self.pooling is None else torch.cat([self.pooling(h), ends], dim=1)


class AGRUNet(nn.Module):
    """``forward(x, **controls) -> [n]``: ``z = ELU(W [r_1; r_2; ...] + b)``, ``score = w'z + b``, r of `AttentiveGRU`. No NaN.

    ``x`` is ``[n, l, f]``, or a dict of blocks, each read by a recurrence of its own (l may differ). With `orthogonal` z are factors,
    and the score is their sum after `OrthogonalHead`: it then depends on which stocks the day has.

    Args:
        d_feat: f, or f by block, in the order in which they stand in W.
        hidden_size: of each recurrence and direction.
        bidirectional, attention: see `AttentiveGRU`.
        units: length of z.
        orthogonal: whether z are made orthogonal.
        weights, controls: of `OrthogonalHead`.
        output: `score`, or `factors` ``[n, units]``, for a loss that looks at each of them.
        dropout: on [r_1; r_2; ...].

    Raises:
        ConfigError: options that do not fit each other, sizes that are too small. ShapeError: inputs of another width.
        DataError: a day of too few stocks for `orthogonal`.
    """

    def __init__(self, d_feat: int | Mapping[str, int], hidden_size: int = 32, bidirectional: bool = True, attention: bool = True,
                 units: int = 32, orthogonal: bool = False, weights: str = "equal", controls: list[str] | None = None,
                 output: str = "score", dropout: float = 0.1):
        super().__init__()
        if min(hidden_size, units) < 1:
            raise ConfigError(f"hidden_size={hidden_size} and units={units} must be positive")
        if not orthogonal and (controls or weights != "equal" or output != "score"):
            raise ConfigError(f"controls={controls}, weights={weights!r} and a loss on factors belong to an orthogonal layer: set "
                              "orthogonal: true")
        self.d_feat = {"": d_feat} if isinstance(d_feat, int) else dict(d_feat)
        self.readers = nn.ModuleList(AttentiveGRU(f, hidden_size, bidirectional, attention) for f in self.d_feat.values())
        self.dropout, self.hidden = Dropout(dropout), nn.Linear(sum(reader.width for reader in self.readers), units)
        self.aux, self.aux_unknown, self.factors = tuple(controls or ()), True, units if orthogonal else 0
        self.head = OrthogonalHead(units, weights, self.aux, output == "factors") if orthogonal else nn.Linear(units, 1)

    def forward(self, x: torch.Tensor | dict[str, torch.Tensor], **controls: torch.Tensor) -> torch.Tensor:
        blocks = x if isinstance(x, dict) else {next(iter(self.d_feat)): x}
        for name, width in self.d_feat.items():
            found = blocks.get(name)
            if found is None or found.ndim != 3 or found.shape[-1] != width:
                raise ShapeError(f"AGRU was built for {name or 'x'} [n, l, {width}], got {None if found is None else tuple(found.shape)}")
        r = torch.cat([reader(blocks[name]) for name, reader in zip(self.d_feat, self.readers)], dim=1)
        z = functional.elu(self.hidden(self.dropout(r)))
        return self.head(z, controls) if self.factors else self.head(z).squeeze(-1)


class AGRU(TorchModel):
    """`AGRUNet` on one block as a Qlib model, with -IC as its loss; further keywords are `TorchModel`'s.

    Of a dataset with several blocks it reads the one that `block` names, and no other is gathered. The average of such models, one a
    granularity, is an `Ensemble` (``average: z``). With ``loss: factor_ic`` each factor of the orthogonal layer learns the label.

    Attention, both directions, granularities, the average of models of one, labels of 5 and 10 days, and the 32 orthogonal factors are
    told in public summaries of the broker's reports. Sizes, forms and windows are this project's choice.
    """

    net_class = AGRUNet

    def __init__(self, d_feat: int | None = None, hidden_size: int = 32, bidirectional: bool = True, attention: bool = True,
                 units: int = 32, orthogonal: bool = False, weights: str = "equal", controls: list[str] | None = None,
                 dropout: float = 0.1, loss="ic", **options):
        if isinstance(controls, str):
            raise ConfigError(f"controls={controls!r} must be a list of aux entries: [{controls}]")
        super().__init__(dict(d_feat=d_feat, hidden_size=hidden_size, bidirectional=bidirectional, attention=attention, units=units,
                              orthogonal=orthogonal, weights=weights, controls=list(controls or []), dropout=dropout), loss=loss, **options)
        self.net_options["output"] = "factors" if isinstance(self.rule.loss, FactorIC) else "score"


class MultiGranularity(AGRU):
    """`AGRUNet` on several blocks at once, a recurrence each, trained as one network; the keywords are `AGRU`'s.

    `block` lists the blocks; None takes all of the dataset. They are joined in the order of their names.
    """

    def sizes(self, panel: Panel) -> dict[str, dict[str, int]]:
        """Features of each block."""
        return {"d_feat": {name: len(panel.blocks[name].features) for name in sorted(panel.blocks)}}
