"""DoubleAdapt's adapters against a plain restatement of their equations."""
import numpy as np
import pytest
import torch
from qlib.contrib.data.loader import Alpha158DL

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.training.adapter import FeatureAdapter, LabelAdapter, feature_groups

N, L, F, HEADS = 7, 3, 6, 4
COLUMNS = ["KMID", "KLEN2", "MA5", "MA60", "OPEN0", "CLOSE0"]


def softmax_of_cosines(x, prototypes, temperature):
    """Word for word: softmax_j(cos(x, p_j) / temperature)."""
    close = np.array([x @ p / (np.linalg.norm(x) * np.linalg.norm(p)) for p in prototypes]) / temperature
    return np.exp(close) / np.exp(close).sum()


@pytest.mark.parametrize("kind", ["dense", "group", "element"])
def test_features_word_for_word(kind):
    torch.manual_seed(0)
    adapter = FeatureAdapter(COLUMNS, kind, HEADS, temperature=0.7).double()
    x = torch.randn(N, L, F, dtype=torch.float64)
    with torch.no_grad():
        found = adapter(x).numpy()
    prototypes, weight, bias = (p.detach().numpy() for p in (adapter.prototypes, adapter.weight, adapter.bias))
    group = {"group": [0, 0, 1, 1, 2, 2], "element": list(range(F)), "dense": list(range(F))}[kind]
    for n in range(N):
        for lag in range(L):
            row = x[n, lag].numpy()
            choice = softmax_of_cosines(row, prototypes, 0.7)
            expected = row.copy()
            for head in range(HEADS):
                matrix = weight[head] if kind == "dense" else np.diag(weight[head][group])
                expected += choice[head] * (matrix @ row + bias[head][group])
            np.testing.assert_allclose(found[n, lag], expected, rtol=1e-12)


@pytest.mark.parametrize("gate, width", [("last", F), ("window", L * F)])
def test_labels_word_for_word(gate, width):
    torch.manual_seed(1)
    adapter = LabelAdapter(width, gate, HEADS, temperature=0.5, hidden=5).double()
    x, y = torch.randn(N, L, F, dtype=torch.float64), torch.randn(N, 2, dtype=torch.float64)
    with torch.no_grad():
        there, back, one = adapter(y, x).numpy(), adapter.inverse(y, x).numpy(), adapter(y[:, 0], x).numpy()
    prototypes, factor, shift = (p.detach().numpy() for p in (adapter.prototypes, adapter.factor, adapter.shift))
    for n in range(N):
        seen = x[n, -1].numpy() if gate == "last" else x[n].numpy().ravel()
        choice = softmax_of_cosines(adapter.project.weight.detach().numpy() @ seen, prototypes, 0.5)
        label = y[n].numpy()
        np.testing.assert_allclose(there[n], sum(s * (g * label + b) for s, g, b in zip(choice, factor, shift)), rtol=1e-12)
        np.testing.assert_allclose(back[n], sum(s * (label - b) / g for s, g, b in zip(choice, factor, shift)), rtol=1e-12)
    np.testing.assert_allclose(one, there[:, 0])


def test_one_head_has_an_exact_inverse_and_several_have_not():
    torch.manual_seed(2)
    x, y = torch.randn(50, L, F), torch.randn(50)
    one, several = LabelAdapter(F, heads=1), LabelAdapter(F, heads=8, temperature=0.1)
    assert (one.inverse(one(y, x), x) - y).abs().max() < 1e-6
    assert (several.inverse(several(y, x), x) - y).abs().max() > 1e-4


def test_scale_zero_is_the_identity_and_one_is_as_published():
    torch.manual_seed(3)
    x, y = torch.randn(N, L, F), torch.randn(N)
    for kind in ("dense", "group", "element"):
        assert torch.equal(FeatureAdapter(COLUMNS, kind, scale=0.0)(x), x)
        assert not torch.equal(FeatureAdapter(COLUMNS, kind)(x), x)
    still, published = LabelAdapter(F, scale=0.0), LabelAdapter(F, heads=500)
    assert torch.allclose(still(y, x), y, atol=1e-6) and torch.allclose(still.inverse(y, x), y, atol=1e-6)
    assert 0.75 <= published.factor.min() < 0.78 and 1.22 < published.factor.max() <= 1.25 and torch.all(published.shift == 0.125)


def test_unknown_features_of_a_stock_give_no_nan():
    x = torch.zeros(2, L, F)
    for module in (FeatureAdapter(COLUMNS), LabelAdapter(F)):
        output = module(x) if isinstance(module, FeatureAdapter) else module(torch.ones(2), x)
        output.sum().backward()
        assert torch.isfinite(output).all() and all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_groups_of_alpha158():
    names = Alpha158DL.get_feature_config({"kbar": {}, "price": {"windows": [0], "feature": ["OPEN", "HIGH", "LOW", "VWAP"]},
                                           "rolling": {}})[1]
    groups = np.array(feature_groups(names))
    sizes = np.bincount(groups)
    assert sizes[0] == 9 and sizes[1] == 4 and set(sizes[2:]) == {5} and len(sizes) == 31
    assert feature_groups(["CLOSE59", "OPEN59", "CLOSE0"]) == [0, 1, 0]


def test_bad_input():
    with pytest.raises(ConfigError, match="'matrix'.*dense"):
        FeatureAdapter(COLUMNS, "matrix")
    with pytest.raises(ConfigError, match="'first'.*last"):
        LabelAdapter(F, "first")
    with pytest.raises(ShapeError, match=r"\[n, l, 6\].*5"):
        FeatureAdapter(COLUMNS)(torch.zeros(2, L, 5))
    with pytest.raises(ShapeError, match="6 inputs.*18"):
        adapter = LabelAdapter(F)
        adapter.gate = "window"
        adapter(torch.zeros(2), torch.zeros(2, L, F))
