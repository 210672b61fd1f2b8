"""The deep risk network: its exposures, what it recovers, and that it keeps to its day."""
import pickle

import numpy as np
import pytest
import torch
from small_panels import QUIET, small_panel
from torch.utils._python_dispatch import TorchDispatchMode

from qlib_ext.data.panel import Block, Panel
from qlib_ext.errors import ConfigError, NotFittedError, ShapeError
from qlib_ext.models.deep_risk import DeepRisk, DeepRiskNet

SMALL = {"factors": 4, "hidden_size": 8, "num_layers": 1, "heads": 2}


def net(seed=0, **options) -> DeepRiskNet:
    torch.manual_seed(seed)
    return DeepRiskNet(3, **{**SMALL, **options}).eval()


def inputs(n=20, seed=0) -> torch.Tensor:
    return torch.randn(n, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_exposures_have_mean_0_and_variance_1_over_the_day():
    with torch.no_grad():
        out = net().double()(inputs())
        assert out.shape == (20, 4)
        np.testing.assert_allclose(out.mean(dim=0), 0, atol=1e-12)
        np.testing.assert_allclose(out.pow(2).mean(dim=0), 1, rtol=1e-6)
        assert (net().double()(inputs(1)) == 0).all() and torch.isfinite(net().double()(inputs(2))).all()


def test_the_order_of_stocks_does_not_matter_and_neighbours_do():
    model, x = net().double(), inputs()
    order = torch.randperm(20)
    with torch.no_grad():
        np.testing.assert_allclose(model(x[order]), model(x)[order], atol=1e-10)
        changed = x.clone()
        changed[0] += 3.0
        moved = (model(changed)[1:] - model(x)[1:]).abs()
        raw = model.own_head(model.own(model.embed(changed))[0][:, -1])[1:] - model.own_head(model.own(model.embed(x))[0][:, -1])[1:]
        assert moved[:, 2:].max() > 1e-4 and (raw == 0).all()                    # the second half sees neighbours, the first none


def test_neighbours_are_an_average_taken_away():
    model, x = net().double(), inputs()
    with torch.no_grad():
        z = model.embed(x)
        mean = z.mean(dim=1)
        expected = torch.zeros_like(z)
        query, key = model.neighbours.query(mean), model.neighbours.key(mean)
        for head in range(2):
            part = slice(4 * head, 4 * head + 4)
            weight = torch.softmax(query[:, part] @ key[:, part].T / 2.0, dim=1)
            expected += torch.einsum("nm,mlh->nlh", weight, z) / 2
        np.testing.assert_allclose(model.neighbours(z), expected, atol=1e-12)
        same = x[:1].expand(20, -1, -1)
        np.testing.assert_allclose(model.neighbours(model.embed(same)), model.embed(same), atol=1e-12)   # alike: nothing is left


def test_the_second_half_reads_what_is_left_of_a_stock():
    model, x = net().double(), inputs()
    with torch.no_grad():
        z = model.embed(x)
        own, rest = (head(gru(given)[0][:, -1]) for head, gru, given in ((model.own_head, model.own, z),
                                                                        (model.rest_head, model.rest, z - model.neighbours(z))))
        raw = torch.cat([own, rest], dim=1)
        np.testing.assert_allclose(model(x), (raw - raw.mean(dim=0)) / raw.std(dim=0, correction=0), atol=1e-6)
        shared = torch.randn(1, 5, 3, dtype=torch.float64)
        alike = shared + 1e-3 * torch.randn(20, 5, 3, dtype=torch.float64)      # a move of all stocks alike is taken away:
        moved = alike + 2.0
        left = [m - model.neighbours(m) for m in (model.embed(alike), model.embed(moved))]
        np.testing.assert_allclose(left[0], left[1], atol=1e-4)


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that was made."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else [made]:
            self.size = max(self.size, tensor.numel() if isinstance(tensor, torch.Tensor) else 0)
        return made


def test_memory_does_not_grow_with_the_square_of_stocks():
    n, model = 3000, net()
    x = torch.randn(n, 2, 8)
    with torch.no_grad():
        with Largest() as largest:
            model.neighbours(x)
        with Largest() as whole:
            torch.nn.functional.scaled_dot_product_attention(*(torch.randn(1, 2, n, d) for d in (4, 4, 16)))
    assert largest.size < n * n / 2 < 2 * n * n <= whole.size       # what torch does with values wider than keys


def test_training_looks_at_a_limited_number_of_neighbours():
    model, x = net(max_neighbours=5).double(), inputs()
    whole = model.neighbours(model.embed(x))
    model.train()
    torch.manual_seed(1)
    first, second = model.neighbours(model.embed(x)), model.neighbours(model.embed(x))
    assert not torch.allclose(first, second) and not torch.allclose(first, whole)
    assert torch.allclose(net(max_neighbours=20).double().train().neighbours(model.embed(x)), whole)


def panel_of_returns(days=90, stocks=60, horizons=3, seed=0, fast=False) -> tuple[Panel, np.ndarray]:
    """Returns of three factors whose exposures show, under noise, in the features; and the exposures [t, n, 3].

    `fast`: a third of the features tells exposures that change every day and explain only the next one.
    """
    draw = np.random.default_rng(seed)
    slow = np.broadcast_to(draw.standard_normal((1, stocks, 3)), (days, stocks, 3)).copy()
    quick = draw.standard_normal((days, stocks, 1))
    exposure = np.concatenate([slow, quick], axis=2) if fast else slow
    f = 0.02 * draw.standard_normal((days + horizons, exposure.shape[2]))
    r = days * stocks
    rows = np.arange(r, dtype=np.int32).reshape(days, stocks)
    values = np.full((r + 1, exposure.shape[2] + 1), np.nan, np.float32)
    values[:-1, :-1] = (exposure + 0.1 * draw.standard_normal(exposure.shape)).reshape(r, -1)
    values[:-1, -1] = draw.standard_normal(r)
    label = np.full((r + 1, horizons), np.nan, np.float32)
    for h in range(horizons):
        seen = exposure.copy()
        if fast:
            seen[:, :, 3] = np.roll(exposure[:, :, 3], -h, axis=0) * (1 if h else 2)      # tomorrow's belongs to tomorrow's exposure
        label[:-1, h] = (np.einsum("tnk,tk->tn", seen, f[1 + h:1 + h + days]) + 0.01 * draw.standard_normal((days, stocks))).ravel()
    panel = Panel(blocks={"stock": Block(values, 4, [f"F{k}" for k in range(values.shape[1])])}, rows=rows,
                  days=np.datetime64("2020-01-01") + np.arange(days), instruments=np.array([f"SH60{k:04d}" for k in range(stocks)]),
                  universe=np.ones((days, stocks), bool), label=label, label_eval=label, label_raw=label,
                  label_names=[f"LABEL{h}" for h in range(horizons)], segments={"train": (0, 60), "valid": (60, 75), "test": (75, days)})
    return panel, exposure


class Dataset:
    def __init__(self, panel):
        self._panel = panel

    def panel(self, segment=None):
        return self._panel if segment is None else self._panel.view(segment)


def fitted(panel, epochs=12, **options) -> DeepRisk:
    trainer = {**QUIET, "epochs": epochs, "lr": 5e-3, "resume": False, **options.pop("trainer", {})}
    return DeepRisk(**{**SMALL, **options}, trainer=trainer).fit_panel(panel)


def test_a_planted_factor_space_is_recovered():
    panel, exposure = panel_of_returns()
    model = fitted(panel, epochs=25, hidden_size=16)
    frame = model.exposures(Dataset(panel), "test")
    day = frame.index.get_level_values(0)[-1]
    learnt, true = frame.xs(day).to_numpy(np.float64), exposure[-1] - exposure[-1].mean(axis=0)
    angle = lambda a, b: np.degrees(np.arccos(np.clip(np.linalg.svd(np.linalg.qr(a)[0].T @ np.linalg.qr(b)[0])[1], -1, 1)))  # noqa: E731
    assert angle(true, learnt).max() < 10
    start = fitted(panel, epochs=0, hidden_size=16).exposures(Dataset(panel), "test").xs(day).to_numpy(np.float64)
    assert angle(true, start).max() > 20                                          # it was learnt


def autocorrelation(frame) -> float:
    wide = frame.unstack(level="instrument")
    return float(np.mean([np.abs(np.corrcoef(wide[name].iloc[t], wide[name].iloc[t + 1])[0, 1]) for name in frame.columns
                          for t in range(len(wide) - 1)]))


@pytest.mark.slow
def test_more_horizons_make_more_stable_exposures():
    panel, _ = panel_of_returns(horizons=6, fast=True)
    one = Panel(**{**{name: getattr(panel, name) for name in ("blocks", "rows", "days", "instruments", "universe", "segments")},
                   "label": panel.label[:, :1], "label_eval": panel.label[:, :1], "label_raw": panel.label[:, :1], "label_names": ["LABEL0"]})
    many, single = (autocorrelation(fitted(p, factors=2).exposures(Dataset(p), "test")) for p in (panel, one))
    assert many > single + 0.05


def test_exposures_are_a_frame_of_all_stocks_of_the_universe():
    panel = small_panel(horizons=3)
    model = fitted(panel, epochs=1)
    frame = model.exposures(Dataset(panel))
    assert list(frame.columns) == ["deep_00", "deep_01", "deep_02", "deep_03"] and frame.index.is_monotonic_increasing
    assert len(frame) == (panel.universe & (panel.rows >= 0)).sum() and frame.notna().all(axis=None)
    turned = small_panel(horizons=3, instruments=panel.instruments[::-1].copy())    # a panel need not be in order of names
    other = model.exposures(Dataset(turned))
    assert other.index.is_monotonic_increasing and len(other) == len(frame)
    code = dict(zip(panel.instruments, turned.instruments))
    np.testing.assert_array_equal(other.loc[[(day, code[name]) for day, name in frame.index]], frame)
    part = model.exposures(Dataset(panel), "test")
    np.testing.assert_array_equal(part, frame.loc[part.index])                     # whatever other days are asked for
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.exposures(Dataset(panel)), frame)
    np.testing.assert_array_equal(fitted(panel, epochs=1).exposures(Dataset(panel)), frame)               # same seed
    assert not np.array_equal(fitted(panel, epochs=1, trainer={"seed": 1}).exposures(Dataset(panel)), frame)
    assert set(model.history_.epochs[0]) == {"train_loss", "valid_loss", "seconds"}


def test_no_day_sees_another():
    panel = small_panel(horizons=2)
    model = fitted(panel, epochs=0)
    frame = model.exposures(Dataset(panel))
    later = panel.blocks["stock"].values.copy()
    later[np.unique(panel.rows[21:][panel.rows[21:] >= 0])] = 5.0
    changed = small_panel(horizons=2, blocks={"stock": Block(later, 4, panel.blocks["stock"].columns)})
    other = model.exposures(Dataset(changed))
    day = frame.index.get_level_values(0) <= np.datetime64(panel.days[20])
    np.testing.assert_array_equal(other[day], frame[day])
    assert not np.array_equal(other[~day], frame[~day])


def test_what_it_is_not_for_is_refused():
    panel = small_panel(horizons=2)
    with pytest.raises(ConfigError, match="SnapshotRecord"):
        fitted(panel, epochs=0).predict(Dataset(panel))
    for wrong, words in (({"loss": "mse"}, "risk factors"), ({"trainer": {"metric": "rank_ic"}}, "risk factors"), ({"width": 3}, "width"),
                         ({"loss": {"name": "explained_variance", "penalty": -1}}, "penalty")):
        with pytest.raises(ConfigError, match=words):
            DeepRisk(**wrong)
    for wrong in ({"factors": 5}, {"heads": 3}, {"max_neighbours": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            net(**wrong)
    with pytest.raises(ShapeError):
        net()(torch.zeros(4, 5, 2))
    with pytest.raises(NotFittedError):
        DeepRisk().exposures(Dataset(panel))
    with pytest.raises(ConfigError, match="PanelDatasetH"):
        fitted(panel, epochs=0).exposures(object())
    from qlib_ext.models.gru import GRU
    for segments in (panel.segments, {"train": (0, 18)}):
        with pytest.raises(ConfigError, match="metric: loss"):
            GRU(loss="explained_variance", trainer={**QUIET, "epochs": 1}).fit_panel(small_panel(horizons=2, segments=segments))
