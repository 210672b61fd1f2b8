"""The loss of Meta_RiskControl: closed forms, invariances, pairs of days, and what it does to a market whose label leans on a style."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qlib_ext.data.panel import Block
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.models.alstm import MetaRiskControl
from qlib_ext.training.loss import make_loss
from qlib_ext.training.rule import day_loss
from qlib_ext.training.style_loss import standardized
from small_panels import QUIET, small_panel

NAMES = ["size", "beta", "residual_volatility"]
PLAIN = {"name": "style_ic", "lam_mom": 0, "weights": [1, 1, 1], "warm_up": 0}


def day(stocks=40, seed=0, unlabelled=0, unknown=0, horizons=1):
    """(scores, a batch with exposures to three styles, of which the score leans on the first)."""
    draw = np.random.default_rng(seed)
    style = draw.normal(size=(stocks, 3)) * [1, 3, 0.2] + [0, 5, 1]
    label = draw.normal(size=(stocks, horizons))
    score = 0.7 * style[:, 0] + 0.3 * label[:, 0] + 0.3 * draw.normal(size=stocks)
    label[:unlabelled], style[stocks - unknown:, 1] = np.nan, np.nan
    label, style = torch.tensor(label), torch.tensor(style)
    return torch.tensor(score), SimpleNamespace(y=label, mask=torch.isfinite(label), aux={"style": style}, columns={"style": NAMES})


def correlations(score, style):
    return np.array([np.corrcoef(score.detach().numpy(), column)[0, 1] for column in style.numpy().T])


def penalty(loss, *arguments):
    """What the loss adds to the plain IC."""
    return float(make_loss(loss)(*arguments)) - float(make_loss("ic")(*arguments[:2]))


# ---- closed forms ---------------------------------------------------------------------------------------------------------------
def test_exposures_are_correlations_and_the_price_is_their_square():
    score, batch = day()
    expected = correlations(score, batch.aux["style"])
    loss = make_loss(PLAIN)
    np.testing.assert_allclose(loss.exposures(score, batch.aux["style"]), expected, atol=1e-6)
    assert abs(expected[0]) > 0.5
    weights = np.array([2, 1, 2])                                           # by name, where no weights are given
    for options, price in (({}, 1 * np.maximum(abs(expected) - 0.05, 0)**2), ({"tol": 0.3}, np.maximum(abs(expected) - 0.3, 0)**2),
                           ({"lam_dev": 3}, 3 * np.maximum(abs(expected) - 0.05, 0)**2),
                           ({"weights": None}, weights * np.maximum(abs(expected) - 0.05, 0)**2),
                           ({"weights": {"size": 4}}, np.array([4, 1, 1]) * np.maximum(abs(expected) - 0.05, 0)**2),
                           ({"weights": [0, 0, 5]}, np.array([0, 0, 5]) * np.maximum(abs(expected) - 0.05, 0)**2)):
        assert penalty({**PLAIN, **options}, score, batch) == pytest.approx(price.sum(), abs=1e-9), options


def test_the_long_side_is_that_of_a_soft_portfolio():
    score, batch = day()
    z = ((score - score.mean()) / score.std(unbiased=False)).numpy()
    held = np.exp(z / 0.25) / np.exp(z / 0.25).sum() - 1 / len(z)
    style = batch.aux["style"].numpy()
    expected = ((style - style.mean(axis=0)) / style.std(axis=0)).T @ held
    options = {**PLAIN, "exposure": "portfolio", "temperature": 0.25}
    np.testing.assert_allclose(make_loss(options).exposures(score, batch.aux["style"]), expected, atol=1e-6)
    assert penalty(options, score, batch) == pytest.approx((np.maximum(abs(expected) - 0.05, 0)**2).sum(), abs=1e-9)
    assert expected[0] > 1 > correlations(score, batch.aux["style"])[0], "in standard deviations, not a correlation"


def test_change_of_exposure_and_alignment_with_the_trend():
    (score, batch), (before, earlier) = day(), day(seed=5, stocks=31)
    now, past = correlations(score, batch.aux["style"]), correlations(before, earlier.aux["style"])
    change = {"name": "style_ic", "lam_dev": 0, "lam_mom": 0.5, "weights": [1, 2, 3], "warm_up": 0}
    assert make_loss(change).lag == 5 and make_loss(PLAIN).lag is None
    assert penalty(change, score, batch, (before, earlier)) == pytest.approx(0.5 * ([1, 2, 3] * (now - past)**2).sum(), abs=1e-9)
    assert penalty(change, score, batch) == pytest.approx(0, abs=1e-12)     # the first days have no earlier one
    trend, loss = np.array([1.5, -0.2, np.nan]), {"name": "style_ic", "lam_dev": 0, "lam_mom": 2, "momentum": "trend", "warm_up": 0}
    for sign in (1, -1):
        batch.aux["style_trend"], batch.columns["style_trend"] = torch.tensor(sign * trend), NAMES
        aligned = sign * (now[:2] @ trend[:2])                              # an unknown trend is none
        assert penalty(loss, score, batch) == pytest.approx(2 * max(aligned, 0)**2, abs=1e-9)
    assert make_loss(loss).lag is None and make_loss(loss).aux == ("style", "style_trend")


def test_shift_and_scale_of_the_scores_do_not_matter():
    score, batch = day()
    for options in ({}, {"exposure": "portfolio"}):
        value = float(make_loss({**PLAIN, **options})(score, batch))
        for scale, shift in ((3.0, 7.0), (1e-3, 0.0)):
            assert float(make_loss({**PLAIN, **options})(scale * score + shift, batch)) == pytest.approx(value, abs=1e-5)
        assert abs(float(make_loss({**PLAIN, **options})(-score, batch)) - value) > 0.01


# ---- who counts -----------------------------------------------------------------------------------------------------------------
def test_stocks_without_a_label_count_in_the_exposure_alone():
    score, batch = day(unlabelled=15)
    labelled = SimpleNamespace(y=batch.y[15:], mask=batch.mask[15:])
    ic = float(make_loss("ic")(score[15:], labelled))
    expected = (np.maximum(abs(correlations(score, batch.aux["style"])) - 0.05, 0)**2).sum()
    assert float(make_loss(PLAIN)(score, batch)) == pytest.approx(ic + expected, abs=1e-9)
    score.requires_grad_()
    make_loss(PLAIN)(score, batch).backward()
    assert (score.grad[:15] != 0).all()


def test_order_of_stocks_and_unknown_exposures():
    score, batch = day(unknown=10)
    loss, order = make_loss(PLAIN), torch.randperm(40, generator=torch.Generator().manual_seed(2))
    turned = SimpleNamespace(y=batch.y[order], mask=batch.mask[order], aux={"style": batch.aux["style"][order]})
    assert float(loss(score[order], turned)) == pytest.approx(float(loss(score, batch)), abs=1e-12)
    values = standardized(batch.aux["style"]).numpy()
    known = batch.aux["style"].numpy()[:30, 1]
    np.testing.assert_allclose(values[:30, 1], (known - known.mean()) / known.std(), atol=1e-9)
    assert (values[30:, 1] == 0).all()
    flat = torch.full((6, 2), 3.0)
    flat[:, 1] = float("nan")
    assert torch.equal(standardized(flat), torch.zeros(6, 2))
    dark = SimpleNamespace(y=batch.y, mask=batch.mask, aux={"style": torch.full((40, 3), float("nan"))})
    assert float(loss(score, dark)) == pytest.approx(float(make_loss("ic")(score, dark)), abs=1e-12)


def test_scores_that_are_not_finite_are_left_out_of_the_exposure():
    score, batch = day(unlabelled=3)
    spoilt = score.clone()
    spoilt[:3] = torch.tensor([float("nan"), float("inf"), float("nan")])
    rest = SimpleNamespace(y=batch.y[3:], mask=batch.mask[3:], aux={"style": batch.aux["style"][3:]})
    assert float(make_loss(PLAIN)(spoilt, batch)) == pytest.approx(float(make_loss(PLAIN)(score[3:], rest)), abs=1e-12)


def test_days_without_labels_and_several_horizons():
    score, batch = day(unlabelled=40)
    score.requires_grad_()
    value = make_loss(PLAIN)(score, batch)
    value.backward()
    assert value.item() == 0 and not score.grad.any()
    score, batch = day(horizons=2)
    output = torch.stack([score, -score.roll(1)], dim=1)
    parts = [float(make_loss(PLAIN)(output[:, k], SimpleNamespace(y=batch.y[:, k:k + 1], mask=batch.mask[:, k:k + 1], aux=batch.aux)))
             for k in range(2)]
    assert float(make_loss(PLAIN)(output, batch)) == pytest.approx(np.mean(parts), abs=1e-12)
    assert float(make_loss({**PLAIN, "horizon": 1})(output, batch)) == pytest.approx(parts[1], abs=1e-12)


# ---- gradients ------------------------------------------------------------------------------------------------------------------
def test_without_penalties_it_is_the_ic_and_needs_no_exposures():
    score, batch = day()
    gradients = []
    for spec in ("ic", {"name": "style_ic", "lam_dev": 0, "lam_mom": 0}):
        leaf = score.clone().requires_grad_()
        make_loss(spec)(leaf, SimpleNamespace(y=batch.y, mask=batch.mask)).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("options", [{}, {"exposure": "portfolio"}])
def test_a_constant_score_has_a_finite_value_and_gradient(options):
    _, batch = day()
    score = torch.full((40,), 0.3, requires_grad=True)
    value = make_loss({**PLAIN, **options})(score, batch)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(score.grad).all()


@pytest.mark.parametrize("options", [{}, {"exposure": "portfolio"}, {"momentum": "trend"}])
def test_first_and_second_derivatives(options):
    (score, batch), (before, earlier) = day(stocks=9), day(stocks=7, seed=1)
    batch.aux["style_trend"] = torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64)
    batch.columns["style_trend"] = NAMES
    loss = make_loss({"name": "style_ic", "warm_up": 0, "unfreeze": True, **options})
    def value(p, past):
        return loss(p, batch, (past, earlier))
    arguments = (score.requires_grad_(), before.requires_grad_())
    assert torch.autograd.gradcheck(value, arguments) and torch.autograd.gradgradcheck(value, arguments)


def test_the_penalty_warms_up():
    score, batch = day()
    loss, ic = make_loss({**PLAIN, "warm_up": 4}), float(make_loss("ic")(score, batch))
    full = float(loss(score, batch)) - ic
    for epochs, share in ((0, 0), (1, 0.25), (2.5, 0.625), (4, 1), (9, 1), (None, 1)):
        loss.at(epochs)
        assert float(loss(score, batch)) - ic == pytest.approx(share * full, abs=1e-12), epochs


# ---- pairs of days --------------------------------------------------------------------------------------------------------------
def style_panel(**changes):
    """A small panel with three styles, their rows as any other."""
    panel = small_panel(**{"stocks": 20, **changes})
    style = np.random.default_rng(3).normal(size=(len(panel.label), 3)).astype(np.float32)
    style[-1] = np.nan
    panel.stock_aux["style"], panel.meta["aux_columns"] = style, {"style": NAMES}
    return panel


def exposure_of(panel, day, weight):
    """Correlations of a linear score with the styles of the day, from the tables."""
    rows = panel.rows[day, panel.stocks(day)]
    return correlations(torch.tensor(panel.blocks["stock"].values[rows] @ weight), torch.tensor(panel.stock_aux["style"][rows]))


def test_the_earlier_exposure_uses_the_styles_of_the_earlier_day():
    panel, weight, day = style_panel(holes=0.05), np.array([1.0, 0.5, -0.3], np.float32), 17
    loss = make_loss({"name": "style_ic", "lam_dev": 0, "lam_mom": 1, "weights": [1, 1, 1], "lag": 4, "warm_up": 0})

    def value(panel):
        return float(day_loss(loss, DaySampler(panel), day, lambda batch: batch.x[:, -1] @ torch.tensor(weight)))

    change = exposure_of(panel, day, weight) - exposure_of(panel, day - 4, weight)
    ic = float(day_loss(make_loss("ic"), DaySampler(panel), day, lambda batch: batch.x[:, -1] @ torch.tensor(weight)))
    assert value(panel) == pytest.approx(ic + (change**2).sum(), abs=1e-5) and (change**2).sum() > 0.05
    true = panel.stock_aux["style"].copy()
    for poisoned, same in ((set(range(30)) - {day, day - 4}, True), ({day - 4}, False), ({day}, False)):
        rows = panel.rows[sorted(poisoned)].ravel()
        panel.stock_aux["style"] = true.copy()
        panel.stock_aux["style"][rows[rows >= 0], 1] *= -3
        poison = value(panel)
        panel.stock_aux["style"] = true
        assert (poison == value(panel)) is same


def test_the_first_days_and_days_without_stocks_have_no_earlier_one():
    panel, seen = style_panel(), []
    panel.universe[10] = False
    loss = make_loss({"name": "style_ic", "lag": 4})

    class Spy:
        lag, unfreeze = 4, False

        def __call__(self, output, batch, earlier):
            seen.append(earlier)
            return loss(output, batch, earlier)
    for day in (3, 14, 20):
        day_loss(Spy(), DaySampler(panel), day, lambda batch: batch.x[:, -1, 0])
    assert seen[0] is None and seen[1] is None and seen[2][1].day == 16


@pytest.mark.parametrize("unfreeze", [False, True])
def test_the_earlier_day_carries_a_gradient_where_asked(unfreeze):
    panel, day = style_panel(holes=0), 17
    loss = make_loss({"name": "style_ic", "lam_dev": 0, "lam_mom": 1, "weights": [1, 1, 1], "warm_up": 0, "unfreeze": unfreeze})
    weight = torch.tensor([1.0, 0.5, -0.3], requires_grad=True)
    day_loss(loss, DaySampler(panel), day, lambda batch: batch.x[:, -1] @ weight).backward()
    past = torch.tensor(exposure_of(panel, day - 5, weight.detach().numpy()))

    def by_hand(values):
        batch = DaySampler(panel).batch(day)
        earlier = DaySampler(panel).batch(day - 5)
        score = batch.x[:, -1].double() @ values
        then = loss.exposures(earlier.x[:, -1].double() @ values, earlier.aux["style"]) if unfreeze else past
        change = loss.exposures(score, batch.aux["style"]) - then
        return (make_loss("ic")(score, batch) + (change**2).sum()).item()
    at, step = weight.detach().double(), 1e-5
    slopes = [(by_hand(at + step * e) - by_hand(at - step * e)) / (2 * step) for e in torch.eye(3, dtype=torch.float64)]
    np.testing.assert_allclose(weight.grad, slopes, atol=1e-4)


# ---- what it is for -------------------------------------------------------------------------------------------------------------
def leaning_panel(seed=0):
    """`label = 0.5 * first style + signal + noise`; the features show both, blurred. The signal comes as the second return value."""
    draw = np.random.default_rng(seed)
    panel = style_panel(days=10, stocks=100, holes=0, unlabelled=0, features=2, window=2, seed=seed)
    count = len(panel.label)
    signal = draw.normal(size=(count, 1)).astype(np.float32)
    style = panel.stock_aux["style"]
    values = np.hstack([style[:, :1], signal]) + 0.3 * draw.normal(size=(count, 2))
    values[-1] = np.nan
    panel.blocks = {"stock": Block(values.astype(np.float32), 2, ["leaning", "signal"]), "style": Block(style, 2, NAMES)}
    label = (0.5 * style[:, :1] + 0.4 * signal + 0.4 * draw.normal(size=(count, 1))).astype(np.float32)
    panel.label = panel.label_eval = panel.label_raw = label
    panel.segments, panel.universe[:] = {"train": (2, 10)}, True
    return panel, signal[:, 0]


def test_the_penalty_takes_the_style_out_and_leaves_the_signal():
    panel, signal = leaning_panel()
    found = {}
    for price in (0, 100):
        loss = {"name": "style_ic", "lam_dev": price, "lam_mom": 0, "weights": [1, 1, 1], "warm_up": 8}
        model = MetaRiskControl(hidden_size=8, num_layers=1, rnn_type="gru", rule="supervised", loss=loss,
                                trainer={**QUIET, "epochs": 30, "lr": 0.02, "resume": False}).fit_panel(panel)
        days, stocks, scores = model.predict_panel(panel)
        rows = panel.rows[days, stocks]
        parts = [(scores[days == day], panel.stock_aux["style"][rows[days == day], 0], signal[rows[days == day]]) for day in range(2, 10)]
        found[price] = [np.mean([np.corrcoef(score, other)[0, 1] for score, other in pairs])
                        for pairs in ([(s, style) for s, style, _ in parts], [(s, own) for s, _, own in parts])]
    assert found[0][0] > 0.5 and abs(found[100][0]) < 0.05 + 0.02, found
    assert found[100][1] > found[0][1], found


# ---- faults ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("options, said", [
    ({"momentum": "up"}, "momentum"), ({"exposure": "long"}, "exposure"), ({"lam_dev": -1}, "lam_dev"), ({"tol": -0.1}, "tol"),
    ({"temperature": 0}, "temperature"), ({"lag": 2.5}, "lag"), ({"lag": 0}, "lag"), ({"warm_up": -1}, "warm_up"),
    ({"weights": [1, -1]}, "weights"), ({"weights": {"size": "2"}}, "weights"), ({"lam": 1}, "takes"), ({"horizon": -1}, "horizon")])
def test_wrong_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        make_loss({"name": "style_ic", **options})


def test_what_a_batch_lacks_is_said():
    score, batch = day()
    with pytest.raises(ConfigError, match="StyleLoader"):
        make_loss("style_ic")(score, SimpleNamespace(y=batch.y, mask=batch.mask))
    with pytest.raises(ConfigError, match="StyleTrendLoader"):
        make_loss({"name": "style_ic", "momentum": "trend"})(score, batch)
    with pytest.raises(ConfigError, match=r"weights name \['sise'\]"):
        make_loss({"name": "style_ic", "weights": {"sise": 2}})(score, batch)
    with pytest.raises(ShapeError, match="2 weights for 3 styles"):
        make_loss({"name": "style_ic", "weights": [1, 2]})(score, batch)
    batch.aux["style_trend"], batch.columns["style_trend"] = torch.zeros(3, dtype=torch.float64), NAMES[::-1]
    with pytest.raises(ShapeError, match="same styles"):
        make_loss({"name": "style_ic", "momentum": "trend"})(score, batch)
