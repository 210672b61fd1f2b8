"""GRUNN against its equations step by step; batch normalisation that leaves scores to each stock alone."""
import numpy as np
import pytest
import torch

from qlib_ext.data.panel import Block
from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.gru_nn import GRUNN, GRUNNNet
from qlib_ext.models.layers import StockNorm
from slow_recurrences import elu, gru_states, linear
from small_panels import QUIET, small_panel

N, L, F = 7, 6, 3


def built(seed=4, **options) -> GRUNNNet:
    torch.manual_seed(seed)
    return GRUNNNet(**{"d_feat": F, "hidden_size": 5, "units": 4, **options}).double().eval()


def windows(seed=0, n=N) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, L, F)))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_is_its_formulas(layers, batch_norm):
    net, x = built(num_layers=layers, batch_norm=batch_norm), windows()
    h = x.numpy()
    for layer in range(layers):
        h = gru_states(net.recurrence, h, f"l{layer}")
    s = elu(linear(net.head.hidden, h[:, -1]))
    if batch_norm:
        net.head.norm.running_mean.copy_(torch.linspace(-1, 1, 4, dtype=torch.float64))
        net.head.norm.running_var.copy_(torch.linspace(0.5, 2, 4, dtype=torch.float64))
        s = (s - np.linspace(-1, 1, 4)) / np.sqrt(np.linspace(0.5, 2, 4) + net.head.norm.eps)
    with torch.no_grad():
        np.testing.assert_allclose(net(x), linear(net.head.out, s)[:, 0], atol=1e-10)


def test_the_published_sizes_are_the_defaults():
    net, model = GRUNNNet(32), GRUNN()
    assert (net.recurrence.hidden_size, net.recurrence.num_layers, net.head.hidden.out_features, net.recurrence.dropout) == (50, 2, 10, 0.1)
    assert model.rule.loss.name == "ic" and not model.net_options["batch_norm"] and model.trainer.optimizer_class is torch.optim.Adam


def test_a_score_is_of_the_stock_alone_once_training_is_over():
    net, x = built(batch_norm=True, dropout=0.0), windows()
    net.train()
    alone = [net(x[k:k + 1]) for k in range(N)]                          # a day of one stock has no spread of its own
    assert all(torch.isfinite(one).all() for one in alone) and float(net.head.norm.running_mean.abs().max()) == 0.0
    together = net(x)
    assert float(net.head.norm.running_mean.abs().max()) > 0 and not torch.allclose(together[:3], net(x[:3]))
    net.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(x)[:3], net(x[:3]), rtol=0, atol=1e-12)


def test_training_normalises_over_the_day():
    norm, x = StockNorm(4).train(), torch.randn(50, 4) * 3 + 2
    made = norm(x)
    torch.testing.assert_close(made.mean(dim=0), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(made.var(dim=0, correction=0), torch.ones(4), rtol=0, atol=1e-4)


def test_dropout_is_for_training_only():
    net, x = built(dropout=0.5), windows()
    with torch.no_grad():
        assert torch.equal(net(x), net(x))
        net.train()
        assert not torch.equal(net(x), net(x))


def test_it_learns_a_signal_and_reads_the_block_it_is_told_to():
    panel = small_panel(days=36, stocks=40, horizons=2, segments={"train": (0, 24), "valid": (24, 30), "test": (30, 36)})
    panel.blocks["other"] = Block(panel.blocks["stock"].values[:, :1].copy(), 2, ["F0"])
    options = {"hidden_size": 8, "trainer": {**QUIET, "epochs": 6, "lr": 0.02, "resume": False}}
    for block, width in (("stock", 3), ("other", 1)):
        model = GRUNN(block=block, loss={"name": "ic", "horizon": 1}, **options).fit_panel(panel)
        assert model.sizes_ == {"d_feat": width} and max(row["valid_rank_ic"] for row in model.history_.epochs) > 0.5
    with pytest.raises(ConfigError, match="one by name"):
        GRUNN(loss={"name": "ic", "horizon": 1}, **options).fit_panel(panel)
    with pytest.raises(ConfigError, match="block \\['m60'\\] is not in this panel; it has \\['other', 'stock'\\]"):
        GRUNN(block="m60", **options).fit_panel(panel)


def test_what_it_refuses():
    for options in ({"hidden_size": 0}, {"units": 0}, {"num_layers": 0}):
        with pytest.raises(ConfigError):
            built(**options)
    with pytest.raises(ShapeError, match="x \\[n, l, 3\\]"):
        built()(windows()[..., :2])
    for block in (3, [], ["a", "a"]):
        with pytest.raises(ConfigError, match="block="):
            GRUNN(block=block)
