"""ResAttnLSTM against its equations step by step; where its additions are 0 it is the plain LSTM, exactly."""
import numpy as np
import pytest
import torch

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.res_attn_lstm import ResAttnLSTM, ResAttnLSTMNet
from slow_recurrences import elu, layer_norm, linear, lstm_states, softmax
from small_panels import QUIET, small_panel

N, L, F, H = 5, 6, 4, 5


def built(seed=4, **options) -> ResAttnLSTMNet:
    torch.manual_seed(seed)
    return ResAttnLSTMNet(**{"d_feat": F, "hidden_size": H, "units": 4, **options}).double().eval()


def shaken(net):
    """Every weight moved: what begins at 0 counts."""
    draw = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype)
    return net


def windows(seed=0, n=N) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, L, F)))


def features_seen(part, x: np.ndarray) -> np.ndarray:
    """SelfAttn(LayerNorm(x)), stock by stock, step by step, feature by feature."""
    scale, shift = part.scale.detach().numpy(), part.shift.detach().numpy()
    normed, found = layer_norm(part.norm, x), np.zeros_like(x)
    for i in range(len(x)):
        for step in range(x.shape[1]):
            tokens = np.stack([normed[i, step, k] * scale[k] + shift[k] for k in range(F)])
            query, key, value = (linear(getattr(part.attention, name), tokens) for name in ("query", "key", "value"))
            for k in range(F):
                weight = softmax(np.array([query[k] @ key[j] for j in range(F)]) / np.sqrt(len(query[k])))
                found[i, step, k] = linear(part.out, sum(weight[j] * value[j] for j in range(F)))[0]
    return found


def slow(net, x: torch.Tensor) -> np.ndarray:
    x = x.numpy()
    if net.features is not None:
        found = features_seen(net.features, x)
        x = x + found if net.residual else found
    h = x
    for layer in range(net.recurrence.num_layers):
        h = lstm_states(net.recurrence, h, f"l{layer}")
    r = h[:, -1]
    if net.attention == "time":
        pool, mixed = net.pooling, []
        for i in range(len(h)):
            weight = softmax(np.array([linear(pool.weigh, np.tanh(linear(pool.state, h[i, t]) + linear(pool.query, h[i, -1])))[0]
                                       for t in range(L)]))
            mixed.append(linear(net.mix, sum(weight[t] * h[i, t] for t in range(L))))
        r = r + np.stack(mixed) if net.residual else np.stack(mixed)
    return linear(net.head.out, elu(linear(net.head.hidden, layer_norm(net.norm, r))))[:, 0]


@pytest.mark.parametrize("attention, residual", [("time", True), ("time", False), ("features", True), ("features", False), ("none", True)])
def test_it_is_its_formulas(attention, residual):
    net, x = shaken(built(attention=attention, residual=residual, num_layers=2)), windows()
    with torch.no_grad():
        found = net(x)
    np.testing.assert_allclose(found, slow(net, x), atol=1e-10)
    assert found.std() > 1e-4


@pytest.mark.parametrize("attention", ["time", "features"])
def test_it_begins_as_a_plain_lstm_exactly(attention):
    net, plain, x = built(attention=attention), built(attention="none"), windows()
    missing = plain.load_state_dict({name: value for name, value in net.state_dict().items() if name in plain.state_dict()})
    assert not missing.missing_keys
    with torch.no_grad():
        assert torch.equal(net(x), plain(x))
        assert (shaken(net)(x) - shaken(plain)(x)).abs().min() > 1e-6
    alone = built(attention=attention, residual=False)
    assert all(float(p.detach().abs().max()) > 0 for name, p in alone.named_parameters() if "mix" in name or "features.out" in name)


def test_training_moves_what_begins_at_zero():
    panel = small_panel(days=30, stocks=15)
    for attention, name in (("time", "mix.weight"), ("features", "features.out.weight")):
        model = ResAttnLSTM(hidden_size=6, attention=attention, trainer={**QUIET, "epochs": 2, "resume": False}).fit_panel(panel)
        assert float(model.net_.state_dict()[name].abs().max()) > 1e-4, attention


def test_attention_looks_at_the_whole_window():
    """Switched off, only the LSTM's memory reaches back; with the recurrence cut, only attention does."""
    for attention, reaches in (("time", True), ("none", False)):
        net, x = shaken(built(attention=attention, num_layers=1)), windows()
        with torch.no_grad():
            net.recurrence.weight_hh_l0.zero_()
            net.recurrence.bias_ih_l0[H:2 * H] = net.recurrence.bias_hh_l0[H:2 * H] = -1e4         # the forget gate: no memory
            earlier = x.clone()
            earlier[:, 1] += 1
            assert bool((net(x) - net(earlier)).abs().max() > 1e-6) is reaches, attention


def test_the_published_sizes_are_the_defaults():
    net, model = ResAttnLSTMNet(20), ResAttnLSTM()
    assert (net.recurrence.hidden_size, net.recurrence.num_layers, net.head.hidden.out_features) == (48, 2, 10)
    assert net.attention == "time" and net.residual and model.rule.loss.name == "ic"


def test_what_it_refuses():
    for options in ({"attention": "stocks"}, {"hidden_size": 0}, {"units": 0}, {"attention": "none", "residual": False}):
        with pytest.raises(ConfigError):
            built(**options)
    with pytest.raises(ShapeError, match="x \\[n, l, 4\\]"):
        built()(windows()[..., :2])
