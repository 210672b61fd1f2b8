"""In place of Qlib's optimiser: the same call, the same optimum where Qlib's finds one, an error where Qlib's returns what it was given."""
import cvxpy
import numpy as np
import pytest
from qlib.contrib.strategy.optimizer.enhanced_indexing import EnhancedIndexingOptimizer as Qlibs

from qlib_ext.errors import ConfigError, DataError, InfeasibleError
from qlib_ext.portfolio.enhanced_indexing import EnhancedIndexingOptimizer


@pytest.fixture
def qlibs(monkeypatch):
    """Qlib's text with a solver that cvxpy still brings."""
    monkeypatch.setattr(cvxpy, "ECOS", cvxpy.CLARABEL)
    return Qlibs


def problem(seed: int, n: int = 40, k: int = 6) -> dict:
    draw = np.random.default_rng(seed)
    root = draw.normal(size=(k, k)) / 50
    wb, w0 = (draw.dirichlet(np.ones(n)) for _ in range(2))
    return {"r": draw.normal(size=n), "F": draw.normal(size=(n, k)), "cov_b": root @ root.T, "var_u": draw.uniform(1e-4, 9e-4, n),
            "w0": 0.7 * wb + 0.3 * w0, "wb": wb}


def value(given: dict, w: np.ndarray, lamb: float) -> float:
    """Qlib's objective, its scaled returns."""
    r = given["r"] / given["r"].std() * np.sqrt(np.mean(np.diag(given["F"] @ given["cov_b"] @ given["F"].T) + given["var_u"]))
    d = w - given["wb"]
    v = d @ given["F"]
    return d @ r - lamb * (v @ given["cov_b"] @ v + given["var_u"] @ d**2)


OPTIONS = [{}, {"lamb": 20.0, "delta": 0.6, "b_dev": 0.03}, {"delta": 0.4, "b_dev": None}, {"f_dev": 0.05, "delta": 1.0, "b_dev": 0.05},
           {"f_dev": np.linspace(0.02, 0.2, 6), "delta": 2.0, "b_dev": 0.05}, {"lamb": 0.0, "b_dev": 0.02}]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_is_qlibs(qlibs, seed, options):
    given = problem(seed)
    given["w0"] = np.clip(given["w0"], given["wb"] - 0.009, given["wb"] + 0.009)      # no drift over b_dev, which ours may keep
    given["w0"] /= max(given["w0"].sum(), 1.0)
    lamb = options.get("lamb", 1)
    theirs = qlibs(epsilon=0, solver_kwargs={"tol_gap_rel": 1e-10, "tol_gap_abs": 1e-10}, **options)(**given)
    ours = EnhancedIndexingOptimizer(epsilon=0, **options)(**given)
    assert value(given, ours, lamb) >= value(given, theirs, lamb) - 1e-7
    d = ours - given["wb"]
    assert ours.sum() == pytest.approx(1) and ours.min() >= 0
    assert np.abs(ours - given["w0"]).sum() <= options.get("delta", 0.2) + 1e-7
    assert options.get("b_dev", 0.01) is None or np.abs(d).max() <= options.get("b_dev", 0.01) + 1e-8
    assert "f_dev" not in options or (np.abs(d @ given["F"]) <= options["f_dev"] + 1e-8).all()


def test_masks_hold_and_sell(qlibs):
    given = problem(1)
    hold, sell = np.arange(40) < 3, np.arange(40) == 5
    hold[5] = True                                                                     # selling goes before
    ours = EnhancedIndexingOptimizer(delta=1.0, b_dev=0.2, epsilon=0)(**given, mfh=hold, mfs=sell)
    theirs = qlibs(delta=1.0, b_dev=0.2, epsilon=0)(**given, mfh=hold, mfs=sell)
    np.testing.assert_allclose(ours[:3], given["w0"][:3], atol=1e-9)
    assert ours[5] == 0
    assert value(given, ours, 1) >= value(given, theirs, 1) - 1e-7


def test_small_weights_are_cut_without_breaking_limits():
    given = problem(2)
    w = EnhancedIndexingOptimizer(delta=1.0, b_dev=0.05, epsilon=5e-3)(**given)
    assert ((w == 0) | (w >= 5e-3 - 1e-12)).all() and w.sum() == pytest.approx(1)
    assert np.abs(w - given["wb"]).max() <= 0.05 + 1e-8 and np.abs(w - given["w0"]).sum() <= 1 + 1e-8


def test_an_empty_book_and_columns():
    given = problem(3)
    given["w0"] = np.zeros(40)
    w = EnhancedIndexingOptimizer()(**given)
    assert w.sum() == pytest.approx(1) and np.abs(w - given["wb"]).max() <= 0.01 + 1e-8
    columns = {name: one[:, None] if one.ndim == 1 else one for name, one in given.items()}
    np.testing.assert_array_equal(EnhancedIndexingOptimizer()(**columns), w)


def test_what_qlib_answers_with_the_old_weights_is_an_error(qlibs):
    given = problem(4)
    given["w0"] = np.r_[1.0, np.zeros(39)]
    impossible = {"b_dev": 0.01, "delta": 0.01}
    assert np.abs(qlibs(**impossible)(**given) - given["w0"]).sum() > 0.01, "Qlib drops the turnover limit in silence"
    with pytest.raises(InfeasibleError, match="turnover"):
        EnhancedIndexingOptimizer(**impossible)(**given, mfs=np.arange(40) == 0)
    with pytest.raises(ConfigError, match="active_weight"):
        EnhancedIndexingOptimizer(b_dev=-0.1)
    with pytest.raises(DataError, match="all expected returns are equal"):
        EnhancedIndexingOptimizer()(**{**given, "r": np.ones(40)})
