"""DecompGRU against plain loops: its averages, its groups, what passes between stocks, and the stacked GRU it is without its blocks."""
import numpy as np
import pytest
import torch
from torch import nn

from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.decomp_gru import DecompGRU, DecompGRUNet, demean, moving_average, quantile_group
from qlib_ext.training.rule import forward
from slow_recurrences import gru_states
from small_panels import QUIET, small_panel

N, L, F, H = 13, 9, 6, 5


def windows(seed=0, n=N, absent=0.2) -> torch.Tensor:
    """Inputs with steps without a bar (all 0), in float64."""
    draw = np.random.default_rng(seed)
    x = draw.standard_normal((n, L, F))
    x[draw.random((n, L)) < absent] = 0
    return torch.from_numpy(x)


def built(**options) -> DecompGRUNet:
    torch.manual_seed(4)
    return DecompGRUNet(**{"d_feat": F, "hidden_size": H, "days": 3, "groups": 4, **options}).double().eval()


def caps(seed=1, n=N) -> torch.Tensor:
    """Log market values of n stocks, two of them equal, the last two unknown."""
    value = torch.from_numpy(np.random.default_rng(seed).normal(22, 1, (n, 1)))
    value[3] = value[1]
    value[-2:] = 0
    return value


def group_of(value: np.ndarray, groups: int) -> list[int]:
    """Groups by counting the smaller ones, one stock after the other."""
    known = [v for v in value if v != 0]
    return [groups if v == 0 else sum(w < v for w in known) * groups // len(known) for v in value]


# ---- blocks -------------------------------------------------------------------------------------------------------------------
def test_moving_average_is_a_loop_that_looks_back_only():
    x = windows()
    for days in (1, 3, 20):
        padded = np.concatenate([np.repeat(x[:, :1].numpy(), days - 1, axis=1), x.numpy()], axis=1)
        slow = np.stack([padded[:, step:step + days].mean(axis=1) for step in range(L)], axis=1)
        np.testing.assert_allclose(moving_average(x, days), slow, atol=1e-12)
    later = x.clone()
    later[:, 5:] += 7
    assert torch.equal(moving_average(later, 3)[:, :5], moving_average(x, 3)[:, :5])
    assert not torch.equal(moving_average(later, 3)[:, 5:], moving_average(x, 3)[:, 5:])


def test_groups_are_of_equal_number_and_do_not_depend_on_the_order():
    value = torch.from_numpy(np.random.default_rng(2).lognormal(22, 1, 400))
    assert torch.bincount(quantile_group(value, 20)).tolist() == [20] * 20
    assert quantile_group(value, 20)[value.argmax()] == 19 and quantile_group(value, 20)[value.argmin()] == 0
    value = caps()[:, 0]
    assert quantile_group(value, 4).tolist() == group_of(value.numpy(), 4)
    assert quantile_group(value, 4)[3] == quantile_group(value, 4)[1] and quantile_group(value, 4)[-2:].tolist() == [4, 4]
    order = torch.randperm(N)
    assert torch.equal(quantile_group(value[order], 4), quantile_group(value, 4)[order])
    assert quantile_group(torch.zeros(3), 4).tolist() == [4, 4, 4] and quantile_group(torch.ones(1), 4).tolist() == [0]


def slow_demean(h, group, known):
    out = h.copy()
    for i in range(h.shape[0]):
        for step in range(h.shape[1]):
            members = [j for j in range(len(h)) if group[j] == group[i]]
            counted = [j for j in members if known[j, step]] or members
            out[i, step] -= sum(h[j, step] for j in counted) / len(counted)
    return out


def demeaned(seed=3):
    draw = np.random.default_rng(seed)
    h, group, known = draw.standard_normal((N, L, H)), draw.integers(0, 4, N), draw.random((N, L)) < 0.7
    known[group == 2, 4] = False                            # nobody of a group at a step
    members = nn.functional.one_hot(torch.from_numpy(group), 5).bool()
    return torch.from_numpy(h), group, torch.from_numpy(known), members


def test_demean_is_a_loop_and_sums_to_zero_in_every_group_and_step():
    h, group, known, members = demeaned()
    found = demean(h, members, known)
    np.testing.assert_allclose(found, slow_demean(h.numpy(), group, known.numpy()), atol=1e-12)
    for g in np.unique(group):
        for step in range(L):
            counted = torch.from_numpy(group == g) & known[:, step]
            counted = counted if counted.any() else torch.from_numpy(group == g)
            assert found[counted, step].sum(dim=0).abs().max() < 1e-12
    assert found.abs().max() > 0.5
    single = demean(h, torch.ones(N, 1, dtype=torch.bool), known)
    np.testing.assert_allclose(single, slow_demean(h.numpy(), np.zeros(N, int), known.numpy()), atol=1e-12)


def test_what_a_group_shares_goes():
    h, group, known, members = demeaned()
    shared = torch.randn(5, L, H, dtype=h.dtype)
    np.testing.assert_allclose(demean(h + shared[torch.from_numpy(group)], members, known), demean(h, members, known), atol=1e-12)
    own = h.clone()
    own[0] += 1
    assert (demean(own, members, known) - demean(h, members, known)).abs().max() > 0.1


# ---- network ------------------------------------------------------------------------------------------------------------------
def slow(net: DecompGRUNet, x: torch.Tensor, group) -> np.ndarray:
    """The score of each stock from the formulas of the docstring, with loops over stocks and steps."""
    x = x.numpy()
    trend = {"none": None, "window": np.repeat(x.mean(axis=1, keepdims=True), L, axis=1), "average": np.stack(
        [np.stack([x[:, max(s - back, 0)] for back in range(net.days)]).mean(axis=0) for s in range(L)], axis=1)}[net.ts]
    h = gru_states(net.first, x if trend is None else np.concatenate([x, x - trend], axis=-1))
    if group is not None:
        h = np.concatenate([h, slow_demean(h, group, (x != 0).any(axis=-1))], axis=-1)
    last = gru_states(net.second, h)[:, -1]
    centred = last - last.mean(axis=1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + net.norm.eps)
    return (normed * net.norm.weight.detach().numpy() + net.norm.bias.detach().numpy()) @ net.head.weight[0].detach().numpy() \
        + net.head.bias.item()


@pytest.mark.parametrize("ts", ["average", "window", "none"])
@pytest.mark.parametrize("cs", ["cap", "industry", "market", "none"])
def test_it_is_its_formulas(ts, cs):
    net, x, cap = built(ts=ts, cs=cs), windows(), caps()
    industry = torch.from_numpy(np.random.default_rng(5).choice([0.0, 3, 4, 12], (N, 1)))
    group = {"cap": group_of(cap[:, 0].numpy(), 4), "industry": industry[:, 0].tolist(), "market": [0] * N, "none": None}[cs]
    with torch.no_grad():
        found = net(x, **{name: {"cap": cap, "industry": industry}[name] for name in net.aux})
    np.testing.assert_allclose(found, slow(net, x, None if group is None else np.array(group)), atol=1e-10)
    assert net.aux == ((cs,) if cs in ("cap", "industry") else ()) and found.std() > 1e-3


def test_without_its_blocks_it_is_a_gru_of_two_layers():
    net, x = built(ts="none", cs="none"), windows()
    stacked = nn.GRU(F, H, 2, batch_first=True).double()
    stacked.load_state_dict({name.replace("l0", f"l{layer}"): value for layer, part in enumerate((net.first, net.second))
                             for name, value in part.state_dict().items()})
    with torch.no_grad():
        torch.testing.assert_close(net(x), net.head(net.norm(stacked(x)[0][:, -1]))[:, 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("ts", ["average", "window", "none"])
def test_stocks_meet_in_group_means_only(ts):
    """Another stock's bars change a score if it is of the same group, and not at all without groups, or from another one."""
    x, other, industry = windows(absent=0), windows(absent=0), torch.tensor([[1.0]] * 6 + [[2.0]] * 7)
    other[0] = torch.randn(L, F)
    for cs, changed in (("none", [0]), ("industry", range(6)), ("market", range(N))):
        net = built(ts=ts, cs=cs)
        with torch.no_grad():
            before, after = (net(one, **{name: industry for name in net.aux}) for one in (x, other))
        assert np.flatnonzero((before - after).abs() > 1e-9).tolist() == list(changed), cs
    with torch.no_grad():
        net = built(ts=ts, cs="cap", groups=N)                          # everybody alone: the mean is the stock itself
        alone = [net(one, cap=torch.arange(1.0, N + 1)[:, None]) for one in (x, other)]
    torch.testing.assert_close(alone[0][1:], alone[1][1:], rtol=0, atol=1e-12)


def test_who_has_no_bar_counts_in_no_mean():
    x = windows(absent=0)
    x[4] = 0                                                            # a stock without any bar
    net, without = built(cs="market"), torch.arange(N) != 4
    with torch.no_grad():
        torch.testing.assert_close(net(x)[without], net(x[without]), rtol=0, atol=1e-12)
        x[4, 6:] = 1                                                    # it has some: it counts at those steps
        assert (net(x)[without] - net(x[without])).abs().min() > 1e-9
    assert torch.isfinite(net(torch.zeros(2, L, F).double())).all()


def test_few_stocks_and_second_derivatives():
    net, x, cap = built(), windows(), caps()
    for n in (1, 2):
        assert net(x[:n], cap=cap[:n]).shape == (n,)
    weights = list(net.parameters())
    gradient = torch.autograd.grad(net(x, cap=cap).pow(2).sum(), weights, create_graph=True)
    second = torch.autograd.grad(sum(g.pow(2).sum() for g in gradient), weights)
    assert all(torch.isfinite(one).all() and one.abs().sum() > 0 for one in second[:4])


def test_what_it_refuses():
    for options in ({"ts": "centred"}, {"cs": "style"}, {"days": 0}, {"groups": 0}, {"hidden_size": 0}):
        with pytest.raises(ConfigError):
            built(**options)
    with pytest.raises(ShapeError, match="x \\[n, l, 6\\]"):
        built()(windows()[..., :5], cap=caps())
    for cap in (None, caps()[:, 0], caps()[:4]):
        with pytest.raises(ShapeError, match="by cap"):
            built()(windows(), cap=cap)


def test_the_model_asks_for_its_groups():
    panel = small_panel(features=3, days=24)
    panel.segments = {"train": (0, 14), "valid": (14, 20), "test": (20, 24)}
    options = {"hidden_size": 4, "days": 3, "groups": 3, "trainer": {**QUIET, "epochs": 1, "resume": False}}
    with pytest.raises(ConfigError, match="needs aux \\['cap'\\]"):
        DecompGRU(**options).fit_panel(panel)
    panel.stock_aux["cap"] = np.r_[np.random.default_rng(0).normal(22, 1, len(panel.label) - 1), np.nan].astype(np.float32)[:, None]
    model = DecompGRU(**options).fit_panel(panel)
    assert model.rule.loss.name == "ic" and model.run_card_["parameters"] == sum(p.numel() for p in model.net_.parameters())
    assert forward(model.net_, DaySampler(panel).batch(21)).shape == (len(panel.stocks(21)),)
    assert DecompGRU(loss="weighted_mse", cs="market", **{**options, "groups": 20}).fit_panel(panel).rule.loss.name == "weighted_mse"
