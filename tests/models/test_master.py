"""MASTER against a plain numpy forward pass with ramp weights, its sizes, options and checkpoints."""

import pickle

import numpy as np
import pytest
import torch

from qlib_ext.data.panel import Block, Panel
from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.models.base import read_checkpoint
from qlib_ext.models.master import MASTER, MASTERNet

FEATURES, MARKET, WIDTH, LAGS, STOCKS = 6, 3, 8, 5, 7
QUIET = {"epochs": 0, "device": "cpu", "progress": False, "resume": False}


def ramp(*shape, step=0.37, size=0.4):
    """Numbers without a random generator: `size * sin(step * (1, 2, ...))`."""
    return size * np.sin(step * np.arange(1, np.prod(shape) + 1)).reshape(shape)


def ramp_net(**options) -> MASTERNet:
    """A small network in float64 whose k-th tensor is a ramp of its own step."""
    options = {"d_feat": FEATURES, "d_market": MARKET, "d_model": WIDTH, "temporal_heads": 4, "stock_heads": 2, **options}
    net = MASTERNet(**options).double().eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(sorted(net.named_parameters())):
            values = ramp(*parameter.shape, step=0.31 + 0.07 * number)
            parameter.copy_(torch.from_numpy(values + ("norm" in name and "weight" in name)))
    return net


def ramp_inputs():
    return torch.from_numpy(ramp(STOCKS, LAGS, FEATURES, step=0.83, size=2.0)), torch.from_numpy(ramp(MARKET, step=1.7, size=3.0))


# ---- the formulas, in numpy ---------------------------------------------------------------------------------------------------
def softmax(values, axis=-1):
    exponential = np.exp(values - values.max(axis=axis, keepdims=True))
    return exponential / exponential.sum(axis=axis, keepdims=True)


def layer_norm(x, weight, bias):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * weight + bias


def encoder(x, w, name, heads, scale):
    """Norm, attention without bias or output projection, residual on the normed input, norm, ReLU network with residual."""
    x = layer_norm(x, w[f"{name}.norm_in.weight"], w[f"{name}.norm_in.bias"])
    width, mixed = x.shape[-1] // heads, np.zeros_like(x)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        q, k, v = ((x @ w[f"{name}.attention.{which}.weight"].T)[..., part] for which in ("query", "key", "value"))
        mixed[..., part] = softmax(scale * np.einsum("bsd,btd->bst", q, k)) @ v
    x = layer_norm(x + mixed, w[f"{name}.norm_out.weight"], w[f"{name}.norm_out.bias"])
    inner = np.maximum(x @ w[f"{name}.feed.0.weight"].T + w[f"{name}.feed.0.bias"], 0)
    return x + inner @ w[f"{name}.feed.3.weight"].T + w[f"{name}.feed.3.bias"]


def plain_forward(net, x, market, beta=5.0, temporal_heads=4, stock_heads=2, temporal_scale=1.0):
    """Scores `[n]` by the equations of the paper and the published choices, in numpy."""
    w = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    x, width = x.numpy(), w["embed.weight"].shape[0]
    if market is not None:
        x = x * x.shape[-1] * softmax((w["gate.linear.weight"] @ market.numpy() + w["gate.linear.bias"]) / beta)
    z = x @ w["embed.weight"].T + w["embed.bias"]
    for lag in range(z.shape[1]):
        for pair in range(width // 2):
            angle = lag / 10000 ** (2 * pair / width)
            z[:, lag, 2 * pair] += np.sin(angle)
            z[:, lag, 2 * pair + 1] += np.cos(angle)
    z = encoder(z, w, "temporal", temporal_heads, temporal_scale)
    z = encoder(z.transpose(1, 0, 2), w, "stock", stock_heads, (width / stock_heads) ** -0.5).transpose(1, 0, 2)
    h = z @ w["pool.linear.weight"].T
    weight = softmax(np.einsum("nld,nd->nl", h, h[:, -1]), axis=1)
    return np.einsum("nl,nld->nd", weight, z) @ w["head.weight"][0] + w["head.bias"][0]


# ---- the network --------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("market, count", [(63, 775_041), (183, 794_001)])
def test_number_of_parameters(market, count):
    assert sum(p.numel() for p in MASTERNet(158, market, 256).parameters()) == count


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_ramp_weights_against_plain_numpy(scaled, fused):
    net, (x, market) = ramp_net(scaled_attention=scaled, fused_attention=fused), ramp_inputs()
    expected = plain_forward(net, x, market, temporal_scale=(WIDTH / 4) ** -0.5 if scaled else 1.0)
    found = net(x, market).detach().numpy()
    assert found.shape == (STOCKS,) and np.std(expected) > 1e-2
    np.testing.assert_allclose(found, expected, atol=1e-6)      # the position code is held in float32


FROZEN = [0.0547139, 0.44916941, 0.45821601, 0.42102777, 0.36673319, 0.34589166, 0.34643455]


def test_ramp_weights_against_frozen_numbers():
    """What the numpy forward above gave once: the two cannot drift together."""
    net, (x, market) = ramp_net(), ramp_inputs()
    np.testing.assert_allclose(net(x, market).detach().numpy(), FROZEN, atol=1e-6)


@pytest.mark.parametrize("option, other", [({"beta": 1.0}, {"beta": 1.0}), ({"temporal_heads": 2}, {"temporal_heads": 2}),
                                           ({"stock_heads": 4}, {"stock_heads": 4})])
def test_options_reach_the_formula(option, other):
    net, (x, market) = ramp_net(**option), ramp_inputs()
    expected = plain_forward(net, x, market, **other)
    np.testing.assert_allclose(net(x, market).detach().numpy(), expected, atol=1e-6)
    assert np.abs(expected - plain_forward(net, x, market)).max() > 1e-4


def test_scaled_attention_differs_by_the_scale_alone():
    """Dividing the queries' weights by sqrt(d / heads) turns the published network into the scaled one."""
    published, scaled, (x, market) = ramp_net(), ramp_net(scaled_attention=True), ramp_inputs()
    assert (published(x, market) - scaled(x, market)).abs().max() > 1e-4
    with torch.no_grad():
        published.temporal.attention.query.weight /= (WIDTH / 4) ** 0.5
    torch.testing.assert_close(published(x, market), scaled(x, market), atol=1e-12, rtol=0)


@pytest.mark.parametrize("scaled", [False, True])
def test_fused_attention_gives_the_same_scores_and_gradients(scaled):
    torch.manual_seed(0)
    explicit = MASTERNet(20, 5, 32, scaled_attention=scaled).eval()
    fused = MASTERNet(20, 5, 32, scaled_attention=scaled, fused_attention=True).eval()
    fused.load_state_dict(explicit.state_dict())
    x, market = torch.randn(60, 8, 20), torch.randn(5)
    torch.testing.assert_close(explicit(x, market), fused(x, market), atol=1e-5, rtol=0)
    for net in (explicit, fused):
        net(x, market).pow(2).sum().backward()
    for (name, first), (_, second) in zip(explicit.named_parameters(), fused.named_parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, atol=1e-4, rtol=1e-3, msg=name)


@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_gate_sums_to_the_features_and_vanishes_when_hot(beta):
    net, (x, _) = ramp_net(beta=beta), ramp_inputs()
    for market in torch.from_numpy(ramp(10, MARKET, step=2.1, size=30.0)):
        assert net.gate(market).sum().item() == pytest.approx(FEATURES)
    hot, bare = ramp_net(beta=1e12), ramp_net(d_market=0)
    bare.load_state_dict({name: value for name, value in hot.state_dict().items() if not name.startswith("gate.")})
    torch.testing.assert_close(hot(x, market), bare(x), atol=1e-9, rtol=0)


def test_without_a_market():
    net, (x, _) = ramp_net(d_market=0), ramp_inputs()
    assert net.gate is None and net.aux == ()
    np.testing.assert_allclose(net(x).detach().numpy(), plain_forward(net, x, None), atol=1e-6)


@pytest.mark.parametrize("options", [{"temporal_heads": 3}, {"stock_heads": 5}, {"beta": 0.0}])
def test_sizes_that_do_not_fit(options):
    with pytest.raises(ConfigError, match="heads|beta"):
        ramp_net(**options)


@pytest.mark.parametrize("x, market", [((7, 5, 9), 3), ((5, 6), 3), ((7, 5, 6), 4), ((7, 5, 6), None)])
def test_inputs_of_another_width(x, market):
    with pytest.raises(ShapeError, match="MASTER was built for"):
        ramp_net()(torch.zeros(x, dtype=torch.float64), None if market is None else torch.zeros(market, dtype=torch.float64))


# ---- checkpoints --------------------------------------------------------------------------------------------------------------
PUBLISHED = {"feature_gate.trans": "gate.linear", "layers.0": "embed", "layers.4.trans": "pool.linear", "layers.5": "head"}
for number, block in (("2", "temporal"), ("3", "stock")):
    PUBLISHED.update({f"layers.{number}.{old}": f"{block}.{new}" for old, new in (
        ("qtrans", "attention.query"), ("ktrans", "attention.key"), ("vtrans", "attention.value"), ("norm1", "norm_in"),
        ("norm2", "norm_out"), ("ffn.0", "feed.0"), ("ffn.3", "feed.3"))})


def published_state(net: MASTERNet) -> dict[str, torch.Tensor]:
    """A state dict with the authors' names."""
    state = {"layers.1.pe": net.position.code}
    for theirs, ours in PUBLISHED.items():
        state.update({f"{theirs}{name[len(ours):]}": value for name, value in net.state_dict().items()
                      if name.rsplit(".", 1)[0] == ours})
    assert len(state) == len(net.state_dict())
    return {name: value.float().clone() for name, value in state.items()}


def test_from_published_reads_every_tensor(tmp_path):
    net, (x, market) = ramp_net(stock_heads=1, temporal_heads=2, beta=2.0).float(), ramp_inputs()
    torch.save(published_state(net), tmp_path / "published.pt")
    found = MASTERNet.from_published(tmp_path / "published.pt", beta=2.0, temporal_heads=2, stock_heads=1)
    assert not found.training and found.d_feat == FEATURES and found.d_market == MARKET
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in found.state_dict().items())
    assert torch.equal(found(x.float(), market.float()), net(x.float(), market.float()))


def test_from_published_names_missing_tensors(tmp_path):
    state = published_state(ramp_net())
    del state["layers.3.qtrans.weight"], state["layers.5.bias"]
    torch.save(state, tmp_path / "part.pt")
    with pytest.raises(DataError, match=r"part\.pt.*missing.*layers\.3\.qtrans\.weight.*layers\.5\.bias"):
        MASTERNet.from_published(tmp_path / "part.pt")


def test_from_published_names_unexpected_tensors(tmp_path):
    torch.save({**published_state(ramp_net()), "layers.9.weight": torch.zeros(2)}, tmp_path / "more.pt")
    with pytest.raises(DataError, match=r"layers\.9\.weight"):
        MASTERNet.from_published(tmp_path / "more.pt")


def test_from_published_names_tensors_of_another_shape(tmp_path):
    torch.save({**published_state(ramp_net()), "layers.3.qtrans.weight": torch.zeros(3, 3)}, tmp_path / "odd.pt")
    with pytest.raises(DataError, match=r"layers\.3\.qtrans\.weight"):
        MASTERNet.from_published(tmp_path / "odd.pt")


def test_read_checkpoint_refuses_other_files(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_checkpoint(tmp_path / "nothing.pt")
    (tmp_path / "text.pt").write_text("not a state dict")
    with pytest.raises(DataError, match="cannot be read"):
        read_checkpoint(tmp_path / "text.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(DataError, match="list"):
        read_checkpoint(tmp_path / "list.pt")


# ---- the Qlib model -----------------------------------------------------------------------------------------------------------
def small_panel(features=FEATURES, market=MARKET) -> Panel:
    """Five days of seven stocks; `market` 0 leaves the market out."""
    days = 5
    values = np.full((days * STOCKS + 1, features), np.nan, np.float32)
    values[:-1] = ramp(days * STOCKS, features)
    label = np.full((len(values), 1), np.nan, np.float32)
    label[:-1] = ramp(days * STOCKS, 1, step=1.3)
    return Panel(blocks={"stock": Block(values, 3, [str(k) for k in range(features)])},
                 rows=np.arange(days * STOCKS, dtype=np.int32).reshape(days, STOCKS),
                 days=np.datetime64("2020-01-01") + np.arange(days),
                 instruments=np.array([f"SH60000{k}" for k in range(STOCKS)]), universe=np.ones((days, STOCKS), bool),
                 label=label,
                 label_eval=label, label_raw=label, label_names=["LABEL0"],
                 day_aux={"market": ramp(days, market).astype(np.float32)} if market else {}, segments={"train": (0, 4)})


def test_model_takes_its_widths_from_the_panel():
    model = MASTER(d_model=WIDTH, trainer=QUIET).fit_panel(small_panel())
    assert model.sizes_ == {"d_feat": FEATURES, "d_market": MARKET}
    assert model.net_.d_feat == FEATURES and model.net_.d_market == MARKET
    with pytest.raises(ShapeError, match="d_feat=4.* 6"):
        MASTER(d_feat=4, d_model=WIDTH, trainer=QUIET).fit_panel(small_panel())


def test_model_without_a_market_in_the_dataset():
    with pytest.raises(ConfigError, match="aux"):
        MASTER(d_model=WIDTH, trainer=QUIET).fit_panel(small_panel(market=0))
    model = MASTER(d_market=0, d_model=WIDTH, trainer=QUIET).fit_panel(small_panel(market=0))
    assert model.net_.gate is None and np.isfinite(model.predict_panel(small_panel(market=0))[2]).all()


def test_model_from_a_published_checkpoint(tmp_path):
    net = ramp_net().float()
    torch.save(published_state(net), tmp_path / "published.pt")
    model = MASTER(d_model=WIDTH, checkpoint=str(tmp_path / "published.pt"), trainer=QUIET)
    panel = small_panel()
    days, stocks, values = model.fit_panel(panel).predict_panel(panel.view((3, 4)))
    x = torch.from_numpy(panel.blocks["stock"].values[panel.rows[1:4]].transpose(1, 0, 2))
    with torch.no_grad():
        expected = net(x, torch.from_numpy(panel.day_aux["market"][3]))
    assert np.array_equal(stocks, np.arange(STOCKS)) and set(days) == {3}
    np.testing.assert_allclose(values, expected.numpy(), atol=1e-6)


def test_checkpoint_of_another_number_of_features(tmp_path):
    torch.save(published_state(ramp_net()), tmp_path / "published.pt")
    model = MASTER(d_model=WIDTH, checkpoint=str(tmp_path / "published.pt"), trainer=QUIET)
    with pytest.raises(ShapeError, match="d_feat: checkpoint 6, dataset 4"):
        model.fit_panel(small_panel(features=4))
    with pytest.raises(ShapeError, match="d_market: checkpoint 3, dataset 2"):
        model.fit_panel(small_panel(market=2))


def test_checkpoint_of_another_width(tmp_path):
    """The model says d_model 16, the file holds 8: the run card must not say what is not true."""
    torch.save(published_state(ramp_net()), tmp_path / "published.pt")
    with pytest.raises((ConfigError, ShapeError), match="d_model.*8"):
        MASTER(d_model=16, checkpoint=str(tmp_path / "published.pt"), trainer=QUIET).fit_panel(small_panel())


@pytest.mark.parametrize("options", [{}, {"fused_attention": True}, {"scaled_attention": True}, {"beta": 2.0}])
def test_a_published_checkpoint_keeps_the_options_and_pickles(tmp_path, options):
    net = ramp_net(**options).float()
    torch.save(published_state(net), tmp_path / "published.pt")
    model = MASTER(d_model=WIDTH, checkpoint=str(tmp_path / "published.pt"), trainer=QUIET, **options).fit_panel(small_panel())
    x, market = (values.float() for values in ramp_inputs())
    torch.testing.assert_close(model.net_(x, market), net(x, market), atol=0, rtol=0)
    (tmp_path / "published.pt").unlink()
    copied = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copied.predict_panel(small_panel())[2], model.predict_panel(small_panel())[2])
