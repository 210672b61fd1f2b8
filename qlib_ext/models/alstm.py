"""ALSTM: recurrence with attention over the window (Qin et al. 2017, as in Qlib), with style exposures as inputs if asked for."""

from __future__ import annotations

import torch
from torch import nn

from qlib_ext.data.panel import Panel
from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.base import TorchModel

RECURRENCES = {"lstm": nn.LSTM, "gru": nn.GRU}
STYLE_INPUTS = ("none", "sequence", "head")


class ALSTMNet(nn.Module):
    """``forward(x, style) -> [n]``: ``h = RNN(tanh(W x))``, ``c = sum_l softmax_l(v' tanh(A h_l)) h_l``, ``score = w'[h_last; c] + b``.

    ``x`` is ``[n, l, f]``, or a dict with the block ``stock [n, l, f]``. With `style_input` ``sequence`` it needs the block
    ``style [n, l, k]`` too, whose columns stand beside the features of each day; with ``head`` the last layer sees ``style [n, k]``,
    the exposures of the day, beside h and c, which lets it subtract a style exactly. No NaN.

    Args:
        d_feat: f.
        d_style: k; 0 with ``none``.
        hidden_size, num_layers: of the recurrence.
        dropout: between its layers and in the attention.
        rnn_type: `lstm` or `gru`.
        style_input: `none`, `sequence` or `head`.

    Raises:
        ConfigError: an option that is not known, sizes that are too small.
        ShapeError: inputs of another width.
    """

    def __init__(self, d_feat: int, d_style: int = 0, hidden_size: int = 64, num_layers: int = 2, dropout: float = 0.0,
                 rnn_type: str = "lstm", style_input: str = "none"):
        super().__init__()
        if rnn_type not in RECURRENCES or style_input not in STYLE_INPUTS:
            raise ConfigError(f"rnn_type={rnn_type!r} must be one of {list(RECURRENCES)}, style_input={style_input!r} one of "
                              f"{list(STYLE_INPUTS)}")
        if hidden_size < 2 or num_layers < 1:
            raise ConfigError(f"hidden_size={hidden_size} must be at least 2 and num_layers={num_layers} at least 1")
        self.d_feat, self.d_style, self.style_input = d_feat, d_style, style_input
        self.aux = ("style",) if style_input == "head" else ()
        self.embed = nn.Linear(d_feat + (d_style if style_input == "sequence" else 0), hidden_size)
        self.recurrence = RECURRENCES[rnn_type](hidden_size, hidden_size, num_layers, batch_first=True,
                                                dropout=dropout if num_layers > 1 else 0.0)
        self.attention = nn.Sequential(nn.Linear(hidden_size, hidden_size // 2), nn.Dropout(dropout), nn.Tanh(),
                                       nn.Linear(hidden_size // 2, 1, bias=False))
        self.head = nn.Linear(2 * hidden_size + (d_style if style_input == "head" else 0), 1)

    def forward(self, x: torch.Tensor | dict[str, torch.Tensor], style: torch.Tensor | None = None) -> torch.Tensor:
        h = self.recurrence(torch.tanh(self.embed(self._inputs(x))))[0]                  # [n, l, h]
        weight = torch.softmax(self.attention(h), dim=1)                                 # [n, l, 1]
        seen = [h[:, -1], (weight * h).sum(dim=1)]
        if self.style_input == "head":
            if style is None or style.shape != (len(h), self.d_style):
                raise ShapeError(f"ALSTM was built for style [n, {self.d_style}], got {None if style is None else tuple(style.shape)}")
            seen.append(style)
        return self.head(torch.cat(seen, dim=1)).squeeze(-1)

    def _inputs(self, x) -> torch.Tensor:
        """``[n, l, f]``, with styles ``[n, l, f + k]``."""
        blocks = x if isinstance(x, dict) else {"stock": x}
        widths = {"stock": self.d_feat, **({"style": self.d_style} if self.style_input == "sequence" else {})}
        for name, width in widths.items():
            found = blocks.get(name)
            if found is None or found.ndim != 3 or found.shape[-1] != width:
                raise ShapeError(f"ALSTM was built for {name} [n, l, {width}], got {None if found is None else tuple(found.shape)}")
        return torch.cat([blocks[name] for name in widths], dim=-1) if len(widths) > 1 else blocks["stock"]


class ALSTM(TorchModel):
    """`ALSTMNet` as a Qlib model; widths follow the dataset, further keywords are `TorchModel`'s."""

    net_class = ALSTMNet

    def __init__(self, d_feat: int | None = None, d_style: int | None = None, hidden_size: int = 64, num_layers: int = 2,
                 dropout: float = 0.0, rnn_type: str = "lstm", style_input: str = "none", **options):
        super().__init__(dict(d_feat=d_feat, d_style=d_style, hidden_size=hidden_size, num_layers=num_layers, dropout=dropout,
                              rnn_type=rnn_type, style_input=style_input), **options)

    def sizes(self, panel: Panel) -> dict[str, int]:
        """Features, and styles where they are an input.

        Raises:
            ConfigError: styles are an input and the dataset does not give them.
        """
        placement, k = self.net_options["style_input"], 0
        if placement != "none":
            given = panel.stock_aux if placement == "head" else panel.blocks
            if "style" not in given:
                more = ", and aux_windows: [style]" if placement == "sequence" else ""
                raise ConfigError(f"{type(self).__name__} with style_input: {placement} needs style exposures: use the dataset's aux: "
                                  f"{{style: {{class: StyleLoader, module_path: qlib_ext.data.style_loader}}}}{more}")
            k = given["style"].shape[1] if placement == "head" else len(given["style"].columns)
        return {"d_feat": panel.of("stock").n_features, "d_style": k}


class MetaRiskControl(ALSTM):
    """ALSTM that sees style exposures and pays for leaning on them (`StyleIC`), and goes on learning online.

    It keeps the epoch with the smallest validation loss, penalty included: by RankIC it would keep one from before the penalty.
    The keywords are `ALSTM`'s and `TorchModel`'s; `rule` is DoubleAdapt, which has no label adapter here unless it is asked for, because
    a correlation does not see an affine change of the day's labels. Exposures are never adapted.

    The parts are the broker report's; their forms and all values are this project's choice. One-hot industries at the head are not built.
    """

    def __init__(self, style_input: str = "sequence", loss="style_ic", rule=None, trainer: dict | None = None, **options):
        rule = "doubleadapt" if rule is None else rule
        named = {"name": rule} if isinstance(rule, str) else rule
        if isinstance(named, dict) and named.get("name") == "doubleadapt":
            rule = {"adapt_y": False, **named}
        super().__init__(style_input=style_input, loss=loss, rule=rule, trainer={"metric": "loss", **(trainer or {})}, **options)
