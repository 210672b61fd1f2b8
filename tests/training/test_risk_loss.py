"""Explained variance and variance inflation against numpy's least squares, closed forms and finite differences."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.training.loss import make_loss


def batch(y, mask=None):
    y = torch.as_tensor(y)
    return SimpleNamespace(y=y, mask=torch.isfinite(y) if mask is None else mask)


def explained_only(**options):
    return make_loss({"name": "explained_variance", "penalty": 0.0, **options})


@pytest.fixture
def day():
    draw = np.random.default_rng(0)
    factors = draw.standard_normal((80, 4))
    y = factors[:, :3] @ draw.standard_normal((3, 6)) + draw.standard_normal((80, 6))
    y[draw.random(y.shape) < 0.1] = np.nan
    return factors, y


def test_equals_one_minus_r_squared_of_least_squares(day):
    factors, y = day
    expected = []
    for h in range(6):
        ok = np.isfinite(y[:, h])
        x = np.c_[np.ones(ok.sum()), factors[ok]]
        left = y[ok, h] - x @ np.linalg.lstsq(x, y[ok, h])[0]
        expected.append((left**2).sum() / ((y[ok, h] - y[ok, h].mean()) ** 2).sum())
    assert float(explained_only()(torch.as_tensor(factors), batch(y))) == pytest.approx(np.mean(expected), abs=1e-7)


def test_mixing_the_factors_changes_the_inflation_and_not_what_is_explained(day):
    factors, y = day
    mixing = np.random.default_rng(1).standard_normal((4, 4)) + 3 * np.eye(4)
    mixed = factors @ mixing
    free, priced = explained_only(), make_loss("explained_variance")
    assert float(free(torch.as_tensor(mixed), batch(y))) == pytest.approx(float(free(torch.as_tensor(factors), batch(y))), abs=1e-5)
    inflation = [float(priced(torch.as_tensor(f), batch(y)) - free(torch.as_tensor(f), batch(y))) for f in (factors, mixed)]
    assert abs(inflation[0] - inflation[1]) > 1e-3


def test_inflation_has_its_floor_at_orthogonal_factors():
    draw = np.random.default_rng(2)
    orthogonal = np.linalg.qr(draw.standard_normal((60, 5)))[0] * np.sqrt(60)                # columns of mean square 1
    y = batch(draw.standard_normal((60, 2)))
    part = lambda f: float(make_loss("explained_variance")(torch.as_tensor(f), y) - explained_only()(torch.as_tensor(f), y))  # noqa: E731
    assert part(orthogonal) == pytest.approx(0.01, rel=1e-4)
    tilted = orthogonal.copy()
    tilted[:, 1] = (orthogonal[:, 0] + orthogonal[:, 1]) / np.sqrt(2)                        # correlation .71: inflation 2 for both
    assert part(tilted) == pytest.approx(0.01 * (2 + 2 + 3) / 5, rel=1e-3)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_what_is_left_lies_between_nothing_and_everything(kind):
    draw = np.random.default_rng(5)
    for stocks, scale in ((8, 1e-4), (30, 1.0), (400, 1e4)):
        for _ in range(20):
            factors = draw.standard_normal((stocks, 6))
            factors[:, 5] = factors[:, 0] + 1e-4 * factors[:, 5]                                  # nearly the same as another
            y = scale * draw.standard_normal((stocks, 1))
            left = float(explained_only()(torch.as_tensor(factors.astype(kind)), batch(y.astype(kind))))
            assert 0 <= left <= 1 + 1e-5, (stocks, scale, left)


def test_perfect_and_useless_factors():
    draw = np.random.default_rng(3)
    factors = draw.standard_normal((50, 3))
    assert float(explained_only()(torch.as_tensor(factors), batch(factors @ draw.standard_normal((3, 4))))) == pytest.approx(0, abs=1e-6)
    assert 0.7 < float(explained_only()(torch.as_tensor(factors), batch(draw.standard_normal((50, 40))))) <= 1
    assert float(explained_only()(torch.as_tensor(factors), batch(np.ones((50, 2))))) == 0     # returns without spread


def test_gradient_equals_finite_differences(day):
    factors, y = day
    x = torch.as_tensor(factors[:20]).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: make_loss({"name": "explained_variance", "penalty": 0.3})(f, batch(y[:20])), (x,), atol=1e-6)


def test_unlabelled_stocks_do_not_matter_to_what_is_explained(day):
    factors, y = day
    y[:10] = np.nan
    changed = factors.copy()
    changed[:10] = 9.0
    assert float(explained_only()(torch.as_tensor(changed), batch(y))) == float(explained_only()(torch.as_tensor(factors), batch(y)))


def test_too_few_stocks_give_an_attached_zero_and_collinear_factors_a_number(day):
    factors, y = day
    few = torch.as_tensor(factors[:5]).requires_grad_()
    value = make_loss("explained_variance")(few, batch(y[:5]))
    value.backward()
    assert value.item() == 0 and (few.grad == 0).all()
    enough = explained_only()(torch.as_tensor(factors[:6]), batch(np.arange(6.0)[:, None] ** 2))
    assert 0 < float(enough) <= 1                                                      # k + 2 = 6 stocks are enough
    twins = torch.as_tensor(np.c_[factors[:, :3], factors[:, 0]], dtype=torch.float32).requires_grad_()
    value = make_loss("explained_variance")(twins, batch(y.astype(np.float32)))
    value.backward()
    assert np.isfinite(float(value)) and torch.isfinite(twins.grad).all()
    half = make_loss("explained_variance")(torch.as_tensor(factors, dtype=torch.bfloat16), batch(y))
    assert half.dtype == torch.float32 and np.isfinite(float(half))


def test_shapes_and_options_are_checked(day):
    factors, y = day
    for output, given in ((torch.zeros(80), batch(y)), (torch.zeros(79, 4), batch(y)), (torch.as_tensor(factors), batch(y[:, 0])),
                          (torch.as_tensor(factors), batch(y, torch.ones(80, 6)))):
        with pytest.raises(ShapeError, match="explained_variance"):
            make_loss("explained_variance")(output, given)
    for wrong in ({"penalty": -1}, {"penalty": True}, {"horizon": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            make_loss({"name": "explained_variance", **wrong})
