"""The orthogonal layer: its properties, its gradient where eigenvalues are equal, and the loss on each factor."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.models.orthogonal import FLOOR, InverseRoot, OrthogonalHead, control_columns, orthogonalize
from qlib_ext.training.loss import make_loss

DOUBLE = torch.float64


def draws(n=200, m=8, p=3, seed=0, dtype=DOUBLE):
    """Factors that lean on each other and on the controls, of very different size."""
    draw = torch.Generator().manual_seed(seed)
    controls = torch.randn(n, p, generator=draw, dtype=DOUBLE)
    mixed = torch.randn(n, m, generator=draw, dtype=DOUBLE) @ torch.randn(m, m, generator=draw, dtype=DOUBLE)
    return (3 * mixed + controls @ torch.randn(p, m, generator=draw, dtype=DOUBLE) + 7).to(dtype), controls.to(dtype)


def turn(m, seed=3):
    return torch.linalg.qr(torch.randn(m, m, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE))[0]


# ---- properties -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_factors_are_orthogonal_to_each_other_to_the_controls_and_to_the_constant(dtype):
    factors, controls = draws(dtype=dtype)
    made = orthogonalize(factors, controls)
    assert made.dtype == dtype
    made = made.to(DOUBLE)
    assert (made.T @ made / len(made) - torch.eye(8, dtype=DOUBLE)).abs().max() < 1e-5
    assert (controls.to(DOUBLE).T @ made / len(made)).abs().max() < 1e-5 and made.mean(dim=0).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1e-10, 1e-6, 1.0, 1e10])
def test_the_unit_of_a_control_does_not_matter(scale):
    factors, controls = draws()
    made = orthogonalize(factors, scale * (controls + 5))
    torch.testing.assert_close(made, orthogonalize(factors, controls + 5), atol=1e-9, rtol=0)
    alike = torch.cat([controls + 5, torch.full((len(controls), 1), 0.1 * scale, dtype=DOUBLE)], dim=1)
    torch.testing.assert_close(orthogonalize(factors, alike), orthogonalize(factors, controls + 5), atol=1e-9, rtol=0)


def test_it_is_least_squares_and_the_nearest_orthogonal_factors():
    """Residuals of numpy's lstsq; of all orthogonal bases of their span the polar factor (from an SVD) is the nearest."""
    factors, controls = (one.numpy() for one in draws())
    design = np.c_[np.ones(len(factors)), controls]
    rest = factors - design @ np.linalg.lstsq(design, factors, rcond=None)[0]
    left, _, right = np.linalg.svd(rest, full_matrices=False)
    made = orthogonalize(torch.from_numpy(factors), torch.from_numpy(controls))
    np.testing.assert_allclose(made, np.sqrt(len(factors)) * left @ right, atol=1e-4)
    other = np.sqrt(len(factors)) * left
    assert np.abs(made.numpy() - rest).sum() < np.abs(other - rest).sum()


def test_turned_factors_turn_the_result_and_order_and_scale_do_not_matter():
    factors, controls = draws()
    made, q, order = orthogonalize(factors, controls), turn(8), torch.randperm(200)
    torch.testing.assert_close(orthogonalize(factors @ q, controls), made @ q, rtol=0, atol=1e-9)
    torch.testing.assert_close(orthogonalize(factors[order], controls[order]), made[order], rtol=0, atol=1e-9)
    torch.testing.assert_close(orthogonalize(1e-3 * factors + 5, controls), made, rtol=0, atol=1e-9)
    torch.testing.assert_close(orthogonalize(factors, 1e4 * controls - 9), made, rtol=0, atol=1e-9)
    torch.testing.assert_close(orthogonalize(factors, torch.cat([controls, controls], dim=1)), made, rtol=0, atol=1e-5)


def test_directions_without_variance_stay_small_and_nothing_is_blown_up():
    factors, _ = draws(m=4)
    twice = torch.cat([factors, factors[:, :1] + 1e-9 * torch.randn(200, 1, dtype=DOUBLE)], dim=1)
    values = torch.linalg.eigvalsh(orthogonalize(twice).T @ orthogonalize(twice) / 200)
    assert values[0] < 1e-3 and (values[1:] - 1).abs().max() < 1e-6
    same = torch.zeros(50, 3, dtype=DOUBLE, requires_grad=True)
    made = orthogonalize(same + 2)
    made.sum().backward()
    assert float(made.detach().abs().max()) == 0 and torch.isfinite(same.grad).all()


def test_groups_become_columns():
    code = torch.tensor([0.0, 5, 5, 2, 0, 2, 2])[:, None]
    columns = control_columns([("style", torch.ones(7, 2)), ("industry", code)])
    assert columns.shape == (7, 4) and columns[:, 2:].tolist() == [[0, 0], [0, 1], [0, 1], [1, 0], [0, 0], [1, 0], [1, 0]]
    assert control_columns([]) is None
    unknown = control_columns([("industry", torch.tensor([1.0, torch.nan, 0, torch.nan, 1])[:, None])])
    assert unknown.tolist() == [[0, 1], [0, 0], [1, 0], [0, 0], [0, 1]]
    factors, _ = draws(n=90)
    industry = torch.arange(90)[:, None].to(DOUBLE) % 4
    head = OrthogonalHead(8, controls=["industry"], factors=True)
    made = head(factors, {"industry": industry})
    for group in range(4):
        assert made[industry[:, 0] == group].mean(dim=0).abs().max() < 1e-5
    score = OrthogonalHead(8, controls=["industry"])(factors, {"industry": industry})
    torch.testing.assert_close(score, made.mean(dim=1))


def test_an_unknown_control_counts_as_the_mean():
    """And not as 0, which is far from any market value."""
    factors, controls = draws()
    size = 22 + controls[:, :1]
    known = torch.arange(200) % 10 > 0
    mean = torch.where(known[:, None], size, size[known].mean())
    made = orthogonalize(factors, torch.where(known[:, None], size, torch.nan))
    torch.testing.assert_close(made, orthogonalize(factors, mean), rtol=0, atol=1e-6)
    assert (made - orthogonalize(factors, torch.where(known[:, None], size, 0.0))).abs().max() > 0.1
    assert torch.equal(orthogonalize(factors, torch.full_like(size, torch.nan)), orthogonalize(factors, torch.ones_like(size)))


def test_a_day_of_too_few_stocks_is_an_error():
    for n, ok in ((12, False), (13, True)):
        factors, controls = draws(n=n)
        if ok:
            assert orthogonalize(factors, controls).shape == (13, 8)
        else:
            with pytest.raises(DataError, match="8 factors orthogonal to 3 controls and a constant need a day of more than 12.*has 12"):
                orthogonalize(factors, controls)
    for wrong in ((factors[0], None), (factors, controls[:5]), (factors, controls[:, 0])):
        with pytest.raises(ShapeError, match="orthogonalize takes"):
            orthogonalize(*wrong)


# ---- gradients --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("values", [(1, 2, 3, 4), (2, 2, 2, 2), (1, 1, 1 + 1e-12, 3), (1, 1 + 1e-7, 2, 2 + 1e-7), (1e-3, 1e-3, 1, 1),
                                    (1e-7, 1, 2, 3), (1e-7, 1e-7, 1, 1)])
def test_the_gradient_is_that_of_finite_differences_whatever_the_eigenvalues(values):
    q = turn(4)
    matrix = ((q * torch.tensor(values, dtype=DOUBLE)) @ q.T).requires_grad_()
    symmetric = lambda s: InverseRoot.apply((s + s.T) / 2, FLOOR)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, matrix, eps=1e-8 if min(values) < 1e-2 else 1e-6, atol=1e-3, rtol=1e-3)


def test_autograd_through_eigh_fails_where_this_does_not():
    """The reason for a gradient of its own: the identity has equal eigenvalues only."""
    matrix = torch.eye(4, dtype=DOUBLE, requires_grad=True)
    values, vectors = torch.linalg.eigh(matrix)
    ((vectors * values.rsqrt()) @ vectors.T)[0].sum().backward()
    assert not torch.isfinite(matrix.grad).all()
    matrix.grad = None
    InverseRoot.apply(matrix, FLOOR)[0].sum().backward()
    torch.testing.assert_close(matrix.grad[0, 0], torch.tensor(-0.5, dtype=DOUBLE))                 # d s^(-1/2) / ds at 1


def test_the_gradient_of_the_whole_layer():
    factors, controls = draws(n=20, m=3, p=2)
    assert torch.autograd.gradcheck(lambda f: orthogonalize(f, controls), factors.requires_grad_())
    white = orthogonalize(factors.detach()).requires_grad_()                                        # all eigenvalues are 1
    assert torch.autograd.gradcheck(orthogonalize, white)


def test_steps_of_gradient_descent_stay_finite_from_equal_factors_on():
    torch.manual_seed(0)
    x = torch.randn(300, 6)
    y = x[:, :1] + torch.randn(300, 1)
    net, loss = torch.nn.Linear(6, 4), make_loss("factor_ic")
    with torch.no_grad():
        net.weight[:] = net.weight[:1]
    batch = SimpleNamespace(y=y, mask=torch.ones(300, 1, dtype=torch.bool))
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=0.05), []
    for _ in range(60):
        optimizer.zero_grad()
        losses.append(loss(orthogonalize(net(x)), batch))
        losses[-1].backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in net.parameters()) and float(losses[-1].detach()) < float(losses[0].detach()) - 0.05


# ---- loss -------------------------------------------------------------------------------------------------------------------------
def day(n=40, m=3, h=2, seed=0):
    draw = torch.Generator().manual_seed(seed)
    output, y = torch.randn(n, m, generator=draw, dtype=DOUBLE), torch.randn(n, h, generator=draw, dtype=DOUBLE)
    y[torch.rand(n, h, generator=draw) < 0.3] = torch.nan
    return output, SimpleNamespace(y=y, mask=torch.isfinite(y))


@pytest.mark.parametrize("horizon", [None, 0, 1])
def test_factor_ic_is_the_mean_of_correlations(horizon):
    output, batch = day()
    loss, columns = make_loss({"name": "factor_ic", "horizon": horizon}), range(2) if horizon is None else [horizon]
    expected = [np.corrcoef(output[batch.mask[:, h], j], batch.y[batch.mask[:, h], h])[0, 1] for h in columns for j in range(3)]
    np.testing.assert_allclose(loss(output, batch), -np.mean(expected), atol=1e-9)
    torch.testing.assert_close(loss.score(output), output.mean(dim=1))
    output.requires_grad_()
    loss(output, batch).backward()
    unlabelled = ~(batch.mask.any(dim=1) if horizon is None else batch.mask[:, horizon])
    assert unlabelled.any() and not output.grad[unlabelled].any() and output.grad[~unlabelled].abs().min() > 0


def test_factor_ic_of_days_without_labels_or_of_other_shapes():
    output, batch = day()
    loss = make_loss("factor_ic")
    batch.mask[:] = False
    output.requires_grad_()
    loss(output, batch).backward()
    assert float(loss(output, batch).detach()) == 0 and not output.grad.any()
    for wrong, other, said in ((output[:, 0], batch, "must be factors"), (output[:5], batch, "must be factors"),
                               (output, SimpleNamespace(y=batch.y, mask=batch.mask[:, :1]), "must be factors")):
        with pytest.raises(ShapeError, match=said):
            loss(wrong, other)
    with pytest.raises(ShapeError, match="horizon 2 is not among"):
        make_loss({"name": "factor_ic", "horizon": 2})(output, batch)


def test_what_the_head_refuses():
    for options in ({"weights": "best"}, {"controls": ["a", "a"]}, {"weights": "learned", "factors": True}):
        with pytest.raises(ConfigError):
            OrthogonalHead(4, **options)
