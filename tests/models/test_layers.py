"""Layers against plain formulas."""

import numpy as np
import pytest
import torch

from qlib_ext.errors import ConfigError
from qlib_ext.models.layers import Dropout, EncoderBlock, FeatureGate, PositionCode, SelfAttention, TemporalPooling, random_keep


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_gate_sums_to_the_number_of_features(beta):
    torch.manual_seed(0)
    gate = FeatureGate(7, 13, beta).double()
    market = 3 * random(20, 7)
    assert gate(market).shape == (20, 13) and gate(market[0]).shape == (13,)
    torch.testing.assert_close(gate(market).sum(dim=-1), torch.full((20,), 13.0, dtype=torch.float64))
    assert (gate(market) > 0).all()


def test_gate_by_temperature():
    """A hot gate leaves the features alone, a cold one keeps the single feature of the largest logit."""
    torch.manual_seed(0)
    market = random(7)
    hot, cold = FeatureGate(7, 13, 1e9).double(), FeatureGate(7, 13, 1e-6).double()
    torch.testing.assert_close(hot(market), torch.ones(13, dtype=torch.float64), atol=1e-7, rtol=0)
    one = torch.zeros(13, dtype=torch.float64)
    one[cold.linear(market).argmax()] = 13
    torch.testing.assert_close(cold(market), one)


@pytest.mark.parametrize("beta", [0, -1.0, float("nan")])
def test_gate_refuses_a_temperature_that_is_not_positive(beta):
    with pytest.raises(ConfigError, match="beta"):
        FeatureGate(7, 13, beta)


@pytest.mark.parametrize("width", [6, 7])
def test_position_code(width):
    code = PositionCode(width)(torch.zeros(1, 9, width))[0]
    for lag in range(9):
        for column in range(width):
            angle = lag / 10000 ** (2 * (column // 2) / width)
            assert code[lag, column] == pytest.approx(np.sin(angle) if column % 2 == 0 else np.cos(angle), abs=1e-5)


def plain_attention(x, query, key, value, heads, scale):
    """Loops over batch, head and position."""
    b, s, d = x.shape
    width, result = d // heads, np.zeros_like(x)
    for item in range(b):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            q, k, v = (x[item] @ weight.T[:, part] for weight in (query, key, value))
            for position in range(s):
                score = np.array([q[position] @ k[other] * scale for other in range(s)])
                weight = np.exp(score - score.max())
                result[item, position, part] = (weight / weight.sum()) @ v
    return result


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_against_loops(heads, scaled, fused):
    torch.manual_seed(1)
    layer = SelfAttention(8, heads, dropout=0.5, scaled=scaled, fused=fused).double().eval()
    x = random(3, 5, 8, seed=2)
    weights = [part.weight.detach().numpy() for part in (layer.query, layer.key, layer.value)]
    expected = plain_attention(x.numpy(), *weights, heads, (8 / heads) ** -0.5 if scaled else 1.0)
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_drops_in_training_only(fused):
    torch.manual_seed(1)
    layer = SelfAttention(8, 2, dropout=0.5, fused=fused)
    x = random(3, 5, 8).float()
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_attention_has_a_second_derivative_unless_fused():
    torch.manual_seed(1)
    layer = SelfAttention(8, 2, dropout=0.0)
    x = random(2, 4, 8).float().requires_grad_()
    first, = torch.autograd.grad(layer(x).pow(2).sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.pow(2).sum(), x)
    assert torch.isfinite(second).all() and second.abs().sum() > 0


def test_heads_must_divide_the_width():
    with pytest.raises(ConfigError, match="d_model=10 .* heads, 4"):
        SelfAttention(10, 4, 0.0)
    with pytest.raises(ConfigError, match="d_model=10"):
        EncoderBlock(10, 4, 0.0)


def test_pooling_is_a_mean_weighted_by_likeness_to_the_last_lag():
    torch.manual_seed(3)
    layer, z = TemporalPooling(4).double(), random(3, 6, 4, seed=4)
    h = (z @ layer.linear.weight.T).detach().numpy()
    expected = np.zeros((3, 4))
    for stock in range(3):
        score = np.array([h[stock, lag] @ h[stock, -1] for lag in range(6)])
        weight = np.exp(score - score.max()) / np.exp(score - score.max()).sum()
        expected[stock] = sum(weight[lag] * z[stock, lag].numpy() for lag in range(6))
    np.testing.assert_allclose(layer(z).detach().numpy(), expected, atol=1e-12)
    same = z[:, :1].expand(3, 6, 4)
    torch.testing.assert_close(layer(same), same[:, 0])


@pytest.mark.parametrize("dropout", (0.1, 0.25, 0.5, 0.9))
def test_fast_dropout_keeps_with_the_stated_probability_and_independently(dropout):
    torch.manual_seed(3)
    keep, probability = random_keep(torch.Size((1000, 801)), dropout)
    assert abs(probability - (1 - dropout)) <= 2**-17
    bound = 5 * (dropout * (1 - dropout) / keep.numel()) ** 0.5
    assert abs(keep.double().mean().item() - probability) < bound
    flat = keep.double().flatten() - probability
    for lag in (1, 2, 3, 4, 8, 801):  # elements that share a 64-bit draw are independent too
        assert abs((flat[lag:] * flat[:-lag]).mean().item()) < 5 * dropout * (1 - dropout) / keep.numel() ** 0.5


def test_dropout_scales_what_it_keeps_and_follows_the_seed():
    layer, x = Dropout(0.3), torch.ones(200, 300, requires_grad=True)
    torch.manual_seed(1)
    first = layer(x)
    torch.manual_seed(1)
    second = layer(x)
    assert torch.equal(first, second) and not torch.equal(first, layer(x))
    assert set(first.unique().tolist()) == {0.0, first.max().item()} and abs(first.mean().item() - 1) < 0.01
    first.sum().backward()
    assert torch.equal(x.grad, first.detach())
    assert torch.equal(layer.eval()(x), x)


def test_attention_dropout_has_the_expected_mean():
    torch.manual_seed(0)
    attention = SelfAttention(8, 2, 0.5)
    x = torch.randn(3, 6, 8)
    expected = attention.eval()(x)
    attention.train()
    mean = torch.stack([attention(x) for _ in range(4000)]).mean(0)
    assert (mean - expected).abs().max() < 0.05


@pytest.mark.parametrize("dropout", (-0.1, 1.0))
def test_dropout_out_of_range(dropout):
    with pytest.raises(ConfigError, match="dropout"):
        Dropout(dropout)
