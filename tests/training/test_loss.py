"""Losses: closed forms, libraries, invariances, and the silence of unlabelled stocks."""
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.training.loss import LOSSES, Loss, MSE, WeightedMSE, make_loss, rank_average, rank_fraction, soft_rank

torch.set_num_threads(1)
SPECS = ["mse", "weighted_mse", "ic", "rank_ic", "ccc", "huber"] + [
    {"name": "weighted_mse", "form": form} for form in ("step", "linear", "prediction")
] + [{"name": "weighted_mse", "form": "prediction", "half_life": 0.5}]


def day(label, mask=None):
    label = torch.as_tensor(label, dtype=torch.float64)
    label = label[:, None] if label.dim() == 1 else label
    mask = ~torch.isnan(label) if mask is None else torch.as_tensor(mask).reshape(label.shape)
    return SimpleNamespace(y=label, mask=mask)


def numbers(count, seed=0):
    generator = np.random.default_rng(seed)
    label = generator.normal(size=count)
    return torch.tensor(0.3 * label + generator.normal(size=count)), torch.tensor(label)


def reference(spec, prediction, label):
    """Each loss once more in numpy and scipy."""
    name, form = (spec, None) if isinstance(spec, str) else (spec["name"], spec.get("form"))
    error = prediction - label
    if name == "mse":
        return np.mean(error ** 2)
    if name == "huber":
        return np.mean(np.where(abs(error) <= 1, error ** 2 / 2, abs(error) - 0.5))
    if name == "ic":
        return -stats.pearsonr(prediction, label)[0]
    if name == "ccc":
        total = prediction.var() + label.var() + (prediction.mean() - label.mean()) ** 2
        return 1 - 2 * np.mean((prediction - prediction.mean()) * (label - label.mean())) / total
    if name == "rank_ic":
        z = (prediction - prediction.mean()) / prediction.std()
        soft = np.array([sum(1 / (1 + np.exp(-(a - b) / 0.1)) for b in z) for a in z])
        return -np.corrcoef(soft, stats.rankdata(label))[0, 1]
    p = (stats.rankdata(label) - 1) / (len(label) - 1)
    q = (stats.rankdata(prediction) - 1) / (len(label) - 1)
    weight = {None: 2 ** (-(1 - p) / 0.5), "step": 1 + 2 * (p >= 0.8), "linear": p,
              "prediction": 1 + 2 / (1 + np.exp(-(q - 0.8) / 0.05))}[form]
    if isinstance(spec, dict) and "half_life" in spec:
        weight = weight * 2 ** (-(1 - p) / 0.5)
    return np.sum(weight * error ** 2) / np.sum(weight)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_value_equals_the_formula(spec):
    prediction, label = numbers(57)
    value = make_loss(spec)(prediction, day(label))
    assert value.shape == ()
    assert float(value) == pytest.approx(reference(spec, prediction.numpy(), label.numpy()), abs=1e-9)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_permutation_of_stocks_changes_nothing(spec):
    prediction, label = numbers(40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(3))
    loss = make_loss(spec)
    assert float(loss(prediction[order], day(label[order]))) == pytest.approx(float(loss(prediction, day(label))), abs=1e-12)


@pytest.mark.parametrize("filler", [float("nan"), 1e6, float("inf")])
@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_unlabelled_stocks_touch_neither_value_nor_gradient(spec, filler):
    prediction, label = numbers(30)
    loss = make_loss(spec)
    alone = prediction.clone().requires_grad_()
    expected = loss(alone, day(label))
    expected.backward()
    expected = expected.detach()
    wide = torch.cat([prediction, torch.tensor([50.0, -80.0, float("inf")], dtype=torch.float64)]).requires_grad_()
    labels = torch.cat([label, torch.full((3,), filler, dtype=torch.float64)])
    mask = torch.arange(33) < 30
    value = loss(wide, day(labels, mask))
    value.backward()
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(wide.grad[:30], alone.grad, rtol=1e-12, atol=1e-15)
    assert torch.equal(wide.grad[30:], torch.zeros(3, dtype=torch.float64))
    assert (alone.grad != 0).sum() >= 29  # the linear weight gives the worst stock no gradient


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("labelled", [0, 1])
def test_a_day_without_two_labelled_stocks_is_an_attached_zero(spec, labelled):
    prediction = torch.tensor([0.5, float("nan"), 2.0], requires_grad=True)
    label = torch.full((3,), float("nan"))
    label[:labelled] = 1.0
    value = make_loss(spec)(prediction, day(label))
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(prediction.grad, torch.zeros(3))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_several_horizons_are_averaged_and_thin_ones_left_out(spec):
    first, label = numbers(25, 1)
    second, other = numbers(25, 2)
    other[4] = float("nan")
    loss, output = make_loss(spec), torch.stack([first, second, first], dim=1)
    labels = torch.stack([label, other, torch.full((25,), float("nan"), dtype=torch.float64)], dim=1)
    keep = torch.arange(25) != 4
    mean = (loss(first, day(label)) + loss(second[keep], day(other[keep]))) / 2
    assert float(loss(output, day(labels))) == pytest.approx(float(mean), abs=1e-12)
    keywords = {"name": spec} if isinstance(spec, str) else spec
    chosen = make_loss({**keywords, "horizon": 1})
    for given in (output, second, second[:, None]):
        assert float(chosen(given, day(labels))) == pytest.approx(float(loss(second[keep], day(other[keep]))), abs=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("case", ["constant prediction", "constant label", "both", "two stocks", "ties"])
def test_degenerate_days_stay_finite(spec, case):
    prediction, label = numbers(2 if case == "two stocks" else 12)
    if case in ("constant prediction", "both"):
        prediction = torch.full_like(prediction, 0.3)
    if case in ("constant label", "both"):
        label = torch.full_like(label, 0.3)
    if case == "ties":
        prediction, label = prediction.round(), label.round()
    prediction = prediction.clone().requires_grad_()
    value = make_loss(spec)(prediction, day(label))
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(prediction.grad).all()


# the weight of form "prediction" is detached on purpose, a numerical derivative would see it: it has its own test below
@pytest.mark.parametrize("spec", SPECS[:-2], ids=str)
def test_gradient_agrees_with_finite_differences(spec):
    prediction, label = numbers(9)
    batch, loss = day(label), make_loss(spec)
    assert torch.autograd.gradcheck(lambda p: loss(p, batch), (prediction.requires_grad_(),))


def test_prediction_weights_carry_no_gradient():
    prediction, label = numbers(20)
    loss = make_loss({"name": "weighted_mse", "form": "prediction"})
    weight = loss.weights(prediction.requires_grad_(), label)
    assert not weight.requires_grad
    loss(prediction, day(label)).backward()
    by_hand = 2 * weight * (prediction.detach() - label) / weight.sum()
    torch.testing.assert_close(prediction.grad, by_hand)


def test_exponential_weights_best_to_worst_is_exactly_four():
    _, label = numbers(101)
    weight = WeightedMSE().weights(label, label)
    assert float(weight[label.argmax()] / weight[label.argmin()]) == 4.0
    assert (weight[torch.argsort(label)].diff() > 0).all()


def test_exponential_with_endless_half_life_is_mse():
    prediction, label = numbers(80)
    for half_life in (float("inf"), 1e9):
        value = make_loss({"name": "weighted_mse", "half_life": half_life})(prediction, day(label))
        assert float(value) == pytest.approx(float(MSE()(prediction, day(label))), abs=1e-7)
    assert abs(float(WeightedMSE()(prediction, day(label)) - MSE()(prediction, day(label)))) > 1e-3


@pytest.mark.parametrize("form", ["exponential", "step", "linear"])
def test_label_weights_survive_monotone_transforms(form):
    prediction, label = numbers(60)
    loss = WeightedMSE(form=form)
    torch.testing.assert_close(loss.weights(prediction, label), loss.weights(prediction, torch.exp(3 * label) - 7))


def test_step_counts_the_top_quantile():
    label = torch.arange(101, dtype=torch.float64)
    weight = WeightedMSE(form="step", kappa=2, quantile=0.2).weights(label, label)
    assert int((weight == 3).sum()) == 21 and int((weight == 1).sum()) == 80


def test_weighted_mse_finds_more_winners_where_losers_are_noisy():
    """Noise sits in the losers of a nonlinear relation a line cannot follow: the weighted fit follows the winners."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(4000, 2, generator=generator, dtype=torch.float64)
    label = features[:, 0].clamp(min=0) * 1.5 + (features[:, 1] - 2.0 * features[:, 0]).clamp(max=0) * 1.5
    label = label + 0.1 * torch.randn(4000, generator=generator, dtype=torch.float64) * (1 + 10 * (label < 0))
    label = (label - label.mean()) / label.std()
    batch, hits = day(label), {}
    best = set(label.topk(400).indices.tolist())
    for name in ("mse", "weighted_mse"):
        coefficients = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([coefficients], max_iter=100, line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            value = make_loss(name)(features @ coefficients[:2] + coefficients[2], batch)
            value.backward()
            return value

        optimizer.step(closure)
        hits[name] = len(best & set((features @ coefficients[:2].detach()).topk(400).indices.tolist()))
    assert hits["weighted_mse"] > hits["mse"]


def test_soft_ranks_become_ranks_with_ties_and_rank_ic_spearman():
    prediction, label = numbers(300)
    prediction[10:20], label[5:9] = prediction[3], label[2]
    torch.testing.assert_close(soft_rank(prediction, 1e-9), torch.tensor(stats.rankdata(prediction.numpy())))
    spearman = stats.spearmanr(prediction, label)[0]
    distance = [abs(float(make_loss({"name": "rank_ic", "temperature": t})(prediction, day(label))) + spearman)
                for t in (1.0, 0.1, 1e-9)]
    assert distance[0] > distance[1] > distance[2] and distance[2] < 1e-9


def test_scale_of_the_prediction_does_not_matter_to_correlations():
    prediction, label = numbers(50)
    for name in ("ic", "rank_ic"):
        loss = make_loss(name)
        assert float(loss(1e-3 * prediction + 5, day(label))) == pytest.approx(float(loss(prediction, day(label))), abs=1e-5)
        assert float(loss(prediction, day(1e-6 * label))) == pytest.approx(float(loss(prediction, day(label))), abs=1e-12)


def test_perfect_predictions():
    _, label = numbers(50)
    expected = {"mse": 0, "weighted_mse": 0, "huber": 0, "ccc": 0, "ic": -1}
    for name, value in expected.items():
        assert float(make_loss(name)(label, day(label))) == pytest.approx(value, abs=1e-9)
    assert float(make_loss("ccc")(2 * label, day(label))) > 0.1 and float(make_loss("ic")(2 * label, day(label))) < -0.999


def test_ranks_equal_scipy():
    values = torch.tensor([3.0, 1.0, 3.0, -2.0, 3.0, 1.0])
    np.testing.assert_array_equal(rank_average(values).numpy(), stats.rankdata(values.numpy()))
    assert rank_fraction(torch.tensor([5.0, 1.0, 3.0])).tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_half_precision_is_lifted(spec):
    prediction, label = numbers(64)
    batch = SimpleNamespace(y=label.float()[:, None], mask=torch.ones(64, 1, dtype=torch.bool))
    value = make_loss(spec)(prediction.half(), batch)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(make_loss(spec)(prediction, day(label))), abs=5e-3)


@pytest.mark.parametrize("output, label, mask", [
    ((5,), (5,), (5,)), ((5, 1), (5, 2), (5, 2)), ((5,), (5, 2), (5, 2)), ((4,), (5, 1), (5, 1)), ((5, 1, 1), (5, 1), (5, 1)),
    ((1, 5), (5, 1), (5, 1)), ((5,), (5, 1), (5,)), ((), (5, 1), (5, 1)),
])
@pytest.mark.parametrize("name", sorted(name for name, kind in LOSSES.items() if kind.scores and name != "factor_ic"))
def test_shapes_that_do_not_fit_are_refused(name, output, label, mask):
    batch = SimpleNamespace(y=torch.zeros(label), mask=torch.ones(mask, dtype=torch.bool))
    with pytest.raises(ShapeError) as caught:
        make_loss(name)(torch.zeros(output), batch)
    assert str(tuple(output)) in str(caught.value) and str(tuple(label)) in str(caught.value)


def test_mask_must_be_bool_and_horizon_must_exist():
    with pytest.raises(ShapeError, match="bool"):
        MSE()(torch.zeros(5), SimpleNamespace(y=torch.zeros(5, 1), mask=torch.ones(5, 1)))
    with pytest.raises(ShapeError, match="horizon 2"):
        MSE(horizon=2)(torch.zeros(5), day(torch.zeros(5, 2)))


@pytest.mark.parametrize("spec, listed", [
    ("mae", "huber"), ({"name": "huber", "beta": 1}, "delta"), ({"name": "weighted_mse", "half": 1}, "half_life"),
    ({"name": "weighted_mse", "form": "cubic"}, "exponential"), ({"name": "weighted_mse", "form": "linear", "kappa": 1}, "takes"),
    ({"name": "weighted_mse", "half_life": 0}, "above 0"), ({"name": "weighted_mse", "half_life": None}, "above 0"),
    ({"name": "weighted_mse", "form": "step", "quantile": 2}, "between"), ({"name": "rank_ic", "temperature": -1}, "above 0"),
    ({"name": "mse", "horizon": -1}, "horizon"), ({"delta": 1}, "names"), (None, "names"), (3, "names"),
])
def test_wrong_specifications_name_the_valid_ones(spec, listed):
    with pytest.raises(ConfigError, match=listed):
        make_loss(spec)


def test_every_loss_has_its_name_is_picklable_and_passes_through():
    prediction, label = numbers(20)
    for name, kind in LOSSES.items():
        loss = make_loss(name)
        assert isinstance(loss, kind) and isinstance(loss, Loss) and loss.name == name and make_loss(loss) is loss
        again, batch = pickle.loads(pickle.dumps(loss)), day(label)
        batch.aux = {"style": label[:, None]}
        output = prediction if kind.scores and name != "factor_ic" else torch.stack([prediction, prediction**2], dim=1)
        assert float(again(output, batch)) == float(loss(output, batch))
