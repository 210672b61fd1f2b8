"""MASTER: market-guided stock transformer (Li et al., AAAI 2024, arXiv 2312.15235; repository SJTU-DMTai/MASTER)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.models.base import TorchModel, read_checkpoint
from qlib_ext.models.layers import EncoderBlock, FeatureGate, PositionCode, TemporalPooling


class MASTERNet(nn.Module):
    """Gate by the market, attention over time within each stock, attention over stocks within each day, pooling over time.

    ``forward(x [n, l, f], market [m]) -> [n]``; equivariant in the order of stocks. No NaN in `x` or `market`.

    Args:
        d_feat: f, stock features.
        d_market: m, market columns; 0 builds the network without a gate.
        d_model: width.
        temporal_heads, stock_heads: heads of the two attentions.
        dropout: in both attentions and their feed-forward parts.
        beta: temperature of the gate (published: 5 on CSI300, 2 on CSI800).
        scaled_attention: divide the scores of the attention over time by sqrt(d / heads); the published network does not.
        fused_attention: torch's fused kernels (memory linear in stocks; no second derivative).

    Raises:
        ConfigError: sizes that do not fit each other.
        ShapeError: inputs of another width.
    """

    aux = ("market",)

    def __init__(self, d_feat: int, d_market: int, d_model: int = 256, temporal_heads: int = 4, stock_heads: int = 2,
                 dropout: float = 0.5, beta: float = 5.0, scaled_attention: bool = False, fused_attention: bool = False):
        super().__init__()
        self.d_feat, self.d_market = d_feat, d_market
        self.gate = FeatureGate(d_market, d_feat, beta) if d_market else None
        self.aux = ("market",) if d_market else ()
        self.embed = nn.Linear(d_feat, d_model)
        self.position = PositionCode(d_model)
        self.temporal = EncoderBlock(d_model, temporal_heads, dropout, scaled_attention, fused_attention)
        self.stock = EncoderBlock(d_model, stock_heads, dropout, True, fused_attention)
        self.pool = TemporalPooling(d_model)
        self.head = nn.Linear(d_model, 1)

    def forward(self, x: torch.Tensor, market: torch.Tensor | None = None) -> torch.Tensor:
        if x.ndim != 3 or x.shape[-1] != self.d_feat:
            raise ShapeError(f"MASTER was built for x [n, l, {self.d_feat}], got {tuple(x.shape)}")
        if self.gate is not None:
            if market is None or market.shape != (self.d_market,):
                raise ShapeError(f"MASTER was built for market [{self.d_market}], got "
                                 f"{None if market is None else tuple(market.shape)}")
            x = x * self.gate(market)
        z = self.temporal(self.position(self.embed(x)))          # [n, l, d], mixed over l
        z = self.stock(z.transpose(0, 1)).transpose(0, 1)        # [n, l, d], mixed over n
        return self.head(self.pool(z)).squeeze(-1)

    @classmethod
    def from_published(cls, path: str | Path, beta: float = 5.0, temporal_heads: int = 4, stock_heads: int = 2,
                       dropout: float = 0.5) -> "MASTERNet":
        """The network of a state dict published by MASTER's authors, in evaluation mode; sizes are read from the tensors.

        Args:
            path: file written with ``torch.save(state_dict)``.
            beta, temporal_heads, stock_heads: not in the file; defaults are those of the CSI300 checkpoint (beta 2 on CSI800).

        Raises:
            DataError: no such file, or not such a state dict (missing, unexpected and misshapen tensors are named).
        """
        state = published_state(path)
        d_feat, d_market = state["gate.linear.weight"].shape
        net = cls(d_feat, d_market, state["embed.weight"].shape[0], temporal_heads, stock_heads, dropout, beta)
        load_weights(path, net, state)
        return net.eval()


def _published_names() -> list[tuple[str, str]]:
    """(name in the authors' state dict, name here)."""
    pairs = [("feature_gate.trans", "gate.linear", True), ("layers.0", "embed", True), ("layers.5", "head", True),
             ("layers.4.trans", "pool.linear", False)]
    for number, block in (("2", "temporal"), ("3", "stock")):
        pairs += [(f"layers.{number}.{old}", f"{block}.{new}", bias) for old, new, bias in (
            ("qtrans", "attention.query", False), ("ktrans", "attention.key", False), ("vtrans", "attention.value", False),
            ("norm1", "norm_in", True), ("norm2", "norm_out", True), ("ffn.0", "feed.0", True), ("ffn.3", "feed.3", True))]
    names = [("layers.1.pe", "position.code")]
    for old, new, bias in pairs:
        names += [(f"{old}.{part}", f"{new}.{part}") for part in (("weight", "bias") if bias else ("weight",))]
    return names


_PUBLISHED = _published_names()


def published_state(path: str | Path) -> dict[str, torch.Tensor]:
    """A state dict of MASTER's authors under the names of `MASTERNet`.

    Raises:
        DataError: tensors are missing, or there are others (both are named).
    """
    published, names = read_checkpoint(path), dict(_PUBLISHED)
    for what, found in (("missing", set(names) - set(published)), ("unexpected", set(published) - set(names))):
        if found:
            raise DataError(f"{path}: not a published MASTER state dict; tensors {what}: {sorted(found)[:5]}"
                            f"{' ...' if len(found) > 5 else ''}")
    for name in ("feature_gate.trans.weight", "layers.0.weight"):
        if published[name].ndim != 2:
            raise DataError(f"{path}: not a published MASTER state dict; {name} has shape {tuple(published[name].shape)}")
    return {new: published[old] for old, new in names.items()}


def load_weights(path: str | Path, net: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Put published weights into a network.

    Raises:
        DataError: a tensor has another shape (both shapes are named).
    """
    old_names = {new: old for old, new in _PUBLISHED}
    wrong = [f"{old_names[name]} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
             for name, value in net.state_dict().items() if state[name].shape != value.shape]
    if wrong:
        raise DataError(f"{path}: tensors of another shape than MASTER's: {'; '.join(wrong[:5])}")
    net.load_state_dict(state)


class MASTER(TorchModel):
    """MASTER as a Qlib model: `MASTERNet` plus loss, rule and trainer of `TorchModel`; the market width follows the dataset.

    Args:
        d_feat, d_market: widths to insist on; None takes the dataset's. ``d_market: 0`` leaves out the gate, and needs no market.
        checkpoint: a state dict published by the authors, or a file written by `TorchModel.save`.

    The other arguments are `MASTERNet`'s and `TorchModel`'s.
    """

    net_class = MASTERNet

    def __init__(self, d_feat: int | None = None, d_market: int | None = None, d_model: int = 256, temporal_heads: int = 4,
                 stock_heads: int = 2, dropout: float = 0.5, beta: float = 5.0, scaled_attention: bool = False,
                 fused_attention: bool = False, **options):
        super().__init__(dict(d_feat=d_feat, d_market=d_market, d_model=d_model, temporal_heads=temporal_heads,
                              stock_heads=stock_heads, dropout=dropout, beta=beta, scaled_attention=scaled_attention,
                              fused_attention=fused_attention), **options)

    def sizes(self, panel) -> dict[str, int]:
        """d_feat and d_market of a panel; a model without gate asks for no market."""
        if self.net_options["d_market"] == 0:
            return {"d_feat": panel.n_features, "d_market": 0}
        market = panel.day_aux.get("market")
        if market is None:
            raise ConfigError("MASTER needs the market's state: give the dataset "
                              "`aux: {market: {class: MarketStateLoader, ...}}`")
        return {"d_feat": panel.n_features, "d_market": market.shape[1]}

    def load_net(self, path: str | Path, sizes: dict[str, int]) -> nn.Module:
        """Also reads the authors' state dicts.

        Raises:
            ConfigError: `d_model` is not the checkpoint's.
        """
        if "feature_gate.trans.weight" not in read_checkpoint(path):
            return super().load_net(path, sizes)
        state = published_state(path)
        d_feat, d_market = state["gate.linear.weight"].shape
        self.check_sizes(path, {"d_feat": d_feat, "d_market": d_market}, sizes)
        if state["embed.weight"].shape[0] != self.net_options["d_model"]:
            raise ConfigError(f"checkpoint {path} has d_model {state['embed.weight'].shape[0]}, the model was asked for "
                              f"{self.net_options['d_model']}: give the checkpoint's")
        net = self.build_net(sizes)
        load_weights(path, net, state)
        return net
