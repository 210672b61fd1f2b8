"""Laws of every score model, on every `TorchModel` found in `qlib_ext.models`; each law is shown to catch a planted violation.

Risk networks, whose output is factors, are held to the laws as far as they apply.

A law is a function of ``make(**keywords) -> TorchModel`` that raises AssertionError where the model breaks it
(or ShapeError, where the package itself refuses the output).
"""

import copy
import importlib
import inspect
import os
import pickle
import pkgutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qlib_ext.models
from qlib_ext.data.panel import Block, Panel
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, NotFittedError, ShapeError
from qlib_ext.models.agru import MultiGranularity
from qlib_ext.models.base import TorchModel
from qlib_ext.training.rule import forward

DAYS, STOCKS, FEATURES, MARKET, WINDOW, STYLES = 24, 14, 5, 4, 6, ["size", "beta", "momentum"]
BAR_FEATURES = 3                     # of each of the two bars of a day of the block m60
ONE, TWO, EMPTY = 9, 10, 11          # days on which one stock, two stocks, nobody is in the universe

LIGHT = {"name": "style_ic", "lam_dev": 0.02, "lam_mom": 0.02}      # at full weight it keeps a label that leans on styles from being fitted

# Small sizes by class name; a class that is not named here is tested with its defaults.
SMALL = {
    "MASTER": {"published": {"d_model": 16}, "scaled": {"d_model": 16, "scaled_attention": True},
               "fused": {"d_model": 16, "fused_attention": True}, "ungated": {"d_model": 16, "d_market": 0}},
    "GRU": {"small": {"hidden_size": 12}, "online": {"hidden_size": 12, "rule": {"name": "incremental", "task_length": 2}}},
    "ALSTM": {"lstm": {"hidden_size": 12}, "gru": {"hidden_size": 12, "rnn_type": "gru", "num_layers": 1}},
    "MetaRiskControl": {"sequence": {"hidden_size": 12, "rule": "supervised", "loss": LIGHT},
                        "head": {"hidden_size": 12, "rule": "supervised", "loss": LIGHT, "style_input": "head", "num_layers": 1}},
    "DecompGRU": {"cap": {"hidden_size": 12, "days": 3, "groups": 3},
                  "industry": {"hidden_size": 12, "ts": "window", "cs": "industry", "loss": "weighted_mse"}},
    "DeepRisk": {"small": {"factors": 4, "hidden_size": 8, "heads": 2},
                 "few_neighbours": {"factors": 2, "hidden_size": 8, "max_neighbours": 6}},
    "GRUNN": {"batch_norm": {"hidden_size": 12, "batch_norm": True}},
    "ResAttnLSTM": {"time": {"hidden_size": 8, "num_layers": 1}, "features": {"hidden_size": 8, "num_layers": 1, "attention": "features"}},
    "AGRU": {"bars": {"hidden_size": 6, "units": 8, "block": "m60"},
             "orthogonal": {"hidden_size": 6, "units": 2, "orthogonal": True, "weights": "learned", "controls": ["style"]}},
    "MultiGranularity": {"joint": {"hidden_size": 6, "units": 8},
                         "factors": {"hidden_size": 6, "units": 2, "orthogonal": True, "loss": "factor_ic", "controls": ["industry"]}},
}


# ---- the synthetic market -----------------------------------------------------------------------------------------------------
def make_panel(seed: int = 0, missing_rows: str = "nan", holes: bool = True) -> Panel:
    """Random features with NaN, absent rows, unlabelled stocks, a changing universe; segments train, valid, test."""
    draw = np.random.default_rng(seed)
    rows = np.full((DAYS, STOCKS), -1, np.int32)
    present = draw.random((DAYS, STOCKS)) > (0.15 if holes else 0)
    rows[present] = draw.permutation(np.count_nonzero(present)).astype(np.int32)
    r = np.count_nonzero(present)
    values = draw.standard_normal((r + 1, FEATURES)).astype(np.float32)
    label = (0.02 * draw.standard_normal((r + 1, 1)) + 0.01 * values[:, :1]).astype(np.float32)
    if holes:
        values[draw.random(values.shape) < 0.1] = np.nan
        label[draw.random(r + 1) < 0.1] = np.nan
    style = draw.standard_normal((r + 1, len(STYLES))).astype(np.float32)
    groups = {name: np.random.default_rng(seed + 1).integers(least, 5, (r + 1, 1)).astype(np.float32)
              for name, least in (("cap", 1), ("industry", 0))}
    bars = np.random.default_rng(seed + 2).standard_normal((r + 1, 2 * BAR_FEATURES)).astype(np.float32)
    for table in (values, label, style, bars, *groups.values()):
        table[-1] = np.nan
    universe = draw.random((DAYS, STOCKS)) < (0.9 if holes else 2)
    for day, count in ((ONE, 1), (TWO, 2), (EMPTY, 0)):
        universe[day] = False
        universe[day, np.flatnonzero(present[day])[:count]] = True
    return Panel(blocks={"stock": Block(values, WINDOW, [f"F{k}" for k in range(FEATURES)])}, rows=rows,
                 days=np.arange(DAYS) + np.datetime64("2020-01-01"),
                 instruments=np.array([f"SH60{k:04d}" for k in range(STOCKS)]),
                 universe=universe, label=label, label_eval=label, label_raw=label, label_names=["LABEL0"],
                 day_aux={"market": draw.standard_normal((DAYS, MARKET)).astype(np.float32)}, missing_rows=missing_rows,
                 stock_aux={"style": style, "m60": bars, **groups}, meta={"aux_columns": {"style": STYLES}, "embargo": 2},
                 segments={"train": (0, 14), "valid": (14, 18), "test": (18, DAYS)})


def panel_for(make, **options) -> Panel:
    """`make_panel`, with windows of styles or bars for a model that reads them, and no day of too few stocks for an orthogonal layer."""
    panel, model = make_panel(**options), make()
    if model.net_options.get("style_input") == "sequence":
        panel.blocks["style"] = Block(panel.stock_aux["style"], WINDOW, STYLES)
    if model.options["block"] == "m60" or isinstance(model, MultiGranularity):
        panel.blocks["m60"] = Block(panel.stock_aux["m60"], 3, [f"B{k}@{bar}" for bar in (1, 2) for k in range(BAR_FEATURES)], bars=2)
    if model.net_options.get("orthogonal"):
        panel.universe |= (np.arange(DAYS) != EMPTY)[:, None]
    return panel


def whole(panel: Panel) -> Panel:
    """The view on all days."""
    return panel.view((0, DAYS))


def fitted(make, panel: Panel, epochs: int = 0, seed: int = 0, **trainer) -> TorchModel:
    """The model after `epochs` epochs (0: initial weights)."""
    trainer = {"epochs": epochs, "lr": 3e-3, "seed": seed, "device": "cpu", "progress": False, "resume": False, **trainer}
    return make(trainer=trainer).fit_panel(panel)


def scores(model: TorchModel, panel: Panel) -> np.ndarray:
    """`[t, n]` scores of a view (of factors: a sum of them, each weighing otherwise), NaN where nobody is scored."""
    days, stocks, values = model.predict_panel(panel)
    grid = np.full(panel.rows.shape, np.nan, np.float32)
    grid[days, stocks] = values if values.ndim == 1 else (values * np.arange(1, values.shape[1] + 1, dtype=np.float32)).sum(axis=1)
    return grid


def same_bits(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape == second.shape and first.tobytes() == second.tobytes()


# ---- the laws -----------------------------------------------------------------------------------------------------------------
def one_score_a_stock(make):
    panel = panel_for(make)
    model = fitted(make, panel)
    sampler = DaySampler(panel.of(model.options["block"]))
    for day in (ONE, TWO, 20):
        batch = sampler.batch(day)
        with torch.no_grad():
            shape = tuple(forward(model.net_, batch).shape)
        factors = model.net_options["units"] if model.net_options.get("output") == "factors" else model.net_options.get("factors")
        assert shape == (len(batch.stocks),) + (() if factors is None else (factors,)), f"{shape} for {len(batch.stocks)} stocks"
    few = set() if model.net_options.get("orthogonal") else {1, 2}
    assert few < {len(panel.stocks(day)) for day in panel.scored_days()}
    found = scores(model, whole(panel))
    assert np.array_equal(np.isfinite(found), panel.universe & (panel.rows >= 0)), "not one score for every stock of the universe"


def order_of_stocks(make):
    panel = panel_for(make)
    net = copy.deepcopy(fitted(make, panel, epochs=1).net_).double()
    batch = DaySampler(panel.of(make().options["block"])).batch(20)
    order = torch.from_numpy(np.random.default_rng(1).permutation(len(batch.stocks)))
    outputs = []
    for chosen in (torch.arange(len(order)), order):
        turned = copy.copy(batch)
        blocks = {name: value[chosen].double() for name, value in (batch.x if isinstance(batch.x, dict) else {"stock": batch.x}).items()}
        turned.x, turned.stocks = blocks if len(blocks) > 1 else blocks["stock"], batch.stocks[chosen.numpy()]
        turned.aux = {name: (value if value.ndim == 1 else value[chosen]).double() for name, value in batch.aux.items()}
        with torch.no_grad():
            outputs.append(forward(net, turned))
    assert torch.allclose(outputs[0][order], outputs[1], rtol=0, atol=1e-10), "the scores depend on the order of the stocks"
    assert outputs[0].std() > 1e-6, "all stocks have the same score: nothing was shown"


def no_look_ahead(make):
    for missing_rows in ("nan", "ffill_bfill"):
        panel = panel_for(make, missing_rows=missing_rows)
        model = fitted(make, panel, epochs=1)
        before = scores(model, whole(panel))
        for day in (8, 18, 21):
            changed = copy.deepcopy(panel)
            later = panel.rows[day + 1:]
            later = later[later >= 0]
            draw = np.random.default_rng(day)
            changed.blocks["stock"].values[later] = 5 * draw.standard_normal((len(later), FEATURES))
            for name in ("style", "m60"):
                values = changed.stock_aux[name]
                values[later] = 5 * draw.standard_normal((len(later), values.shape[1]))
            for name in ("cap", "industry"):
                changed.stock_aux[name][later] = draw.integers(0, 5, (len(later), 1))
            for labels in (changed.label, changed.label_eval, changed.label_raw):
                labels[later] = draw.standard_normal((len(later), 1))
            changed.day_aux["market"][day + 1:] = draw.standard_normal((DAYS - day - 1, MARKET))
            changed.universe[day + 1:] = draw.random((DAYS - day - 1, STOCKS)) < (2 if model.net_options.get("orthogonal") else 0.5)
            after = scores(model, whole(changed))
            assert same_bits(before[:day + 1], after[:day + 1]), f"scores up to day {day} depend on later rows ({missing_rows})"
            assert not same_bits(before[day + 1:], after[day + 1:]), "nothing was changed: nothing was shown"


def other_days(make):
    panel = panel_for(make)
    model = fitted(make, panel, epochs=1)
    together = scores(model, whole(panel))
    for view in ((0, 12), (5, DAYS), (18, 19), (20, 21)):
        apart = scores(model, panel.view(view))[view[0]:view[1]]
        assert same_bits(together[view[0]:view[1]], apart), f"scores depend on the span that is scored ({view})"
    for day in (20, 8, 15):          # out of order, one by one, after other days
        assert same_bits(together[day], scores(model, panel.view((day, day + 1)))[day]), f"day {day} depends on other days"


def unknown_inputs(make):
    panel = panel_for(make)
    model = fitted(make, panel)
    dark = copy.deepcopy(panel)
    for values in (dark.blocks["stock"].values, *dark.stock_aux.values()):
        values[dark.rows[dark.rows[:, 0] >= 0, 0]] = np.nan   # a stock of which nothing is known
        values[:, 1:2] = np.nan                               # a feature, or a style, nobody has
    dark.day_aux["market"][20] = np.nan
    dark.day_aux["market"][:, 2] = np.nan
    found = scores(model, whole(dark))
    assert np.array_equal(np.isfinite(found), dark.universe & (dark.rows >= 0)), "NaN reached a score"
    fitted(make, dark, epochs=1)                              # and never the weights: a loss that is not finite is an error


def same_seed(make):
    panel = panel_for(make)
    weights = []
    for noise, seed in ((1, 3), (2, 3), (2, 4)):
        torch.manual_seed(noise)
        np.random.seed(noise)
        model = fitted(make, panel, epochs=2, seed=seed)
        weights.append(np.concatenate([p.detach().numpy().ravel() for p in model.net_.parameters()]))
    assert same_bits(weights[0], weights[1]), "the same seed gave other weights"
    assert not same_bits(weights[1], weights[2]), "another seed gave the same weights"


def pickle_round_trip(make):
    panel = panel_for(make)
    model = fitted(make, panel, epochs=1)
    torch.manual_seed(99)
    copied = pickle.loads(pickle.dumps(model))
    assert same_bits(scores(model, whole(panel)), scores(copied, whole(panel))), "the unpickled model scores differently"
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "net.pt"))
        loaded = fitted(lambda **more: make(checkpoint=str(Path(folder, "net.pt")), **more), panel, seed=7)
    offline = panel.view("train") if hasattr(model.rule, "begun") else whole(panel)      # an optimiser is no part of a weights file
    assert same_bits(scores(model, offline), scores(loaded, offline)), "the saved weights score differently"
    assert copied.net_options == model.net_options and copied.options == model.options and not copied.net_.training
    with pytest.raises(NotFittedError):
        pickle.loads(pickle.dumps(make())).predict_panel(panel)


def gradient_everywhere(make):
    panel = panel_for(make)
    net, draw = fitted(make, panel).net_.train(), torch.Generator().manual_seed(5)
    sampler = DaySampler(panel.of(make().options["block"]))
    with torch.no_grad():
        for parameter in net.parameters():          # a layer that begins at 0 lets nothing through to those before it
            parameter += 0.05 * torch.randn(parameter.shape, generator=draw)
    for day in panel.scored_days():
        output = forward(net, sampler.batch(day))
        (output * torch.randn(output.shape, generator=draw)).sum().backward()
    dead = [name for name, p in net.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.abs().sum() > 0)]
    assert not dead, f"no gradient reaches {dead}"
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.requires_grad)


def overfits_one_day(make):
    panel = panel_for(make, holes=False)
    panel.segments = {"train": (20, 21)}
    taken = inspect.signature(type(make()).__init__).parameters
    quiet = {name: value for name, value in (("dropout", 0.0), ("controls", [])) if name in taken}   # controls take their part of a label
    panel.label = panel.label_eval = panel.label / np.nanstd(panel.label)
    model = fitted(lambda **more: make(**quiet, **more), panel, epochs=150, lr=1e-2, clip_norm=1.0)
    losses = [row["train_loss"] for row in model.history_.epochs]
    score = scores(model, panel.view("train"))[20]
    fit = np.corrcoef(score, panel.label_raw[panel.rows[20], 0])[0, 1] if model.rule.loss.scores else 1.0
    assert fit > 0.95 and losses[-1] < 0.1 * losses[0], f"correlation {fit:.2f}, loss {losses[0]:.3f} -> {losses[-1]:.3f}"


def unknown_keywords(make):
    for keywords in ({"no_such_keyword": 1}, {"trainer": {"no_such_keyword": 1}}):
        try:
            make(**keywords)
        except ConfigError as error:
            assert "no_such_keyword" in str(error) and "valid keywords" in str(error), str(error)
        else:
            raise AssertionError(f"{keywords} was accepted")


LAWS = [one_score_a_stock, order_of_stocks, no_look_ahead, other_days, unknown_inputs, same_seed, pickle_round_trip,
        gradient_everywhere, overfits_one_day, unknown_keywords]


# ---- every model --------------------------------------------------------------------------------------------------------------
def discover() -> list[type[TorchModel]]:
    """Every concrete `TorchModel` of the package, in order of name."""
    for module in pkgutil.iter_modules(qlib_ext.models.__path__, "qlib_ext.models."):
        importlib.import_module(module.name)
    found, waiting = set(), [TorchModel]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        if kind.__module__.startswith("qlib_ext.models.") and hasattr(kind, "net_class"):
            found.add(kind)
    return sorted(found, key=lambda kind: kind.__name__)


def variants() -> list:
    return [pytest.param(kind, keywords, id=f"{kind.__name__}-{name}") for kind in discover()
            for name, keywords in SMALL.get(kind.__name__, {"default": {}}).items()]


def test_discovery_finds_the_models():
    names = {kind.__name__ for kind in discover()}
    assert {"MASTER", "GRU", "DeepRisk", "ALSTM", "MetaRiskControl", "DecompGRU"} <= names
    assert {"GRUNN", "ResAttnLSTM", "AGRU", "MultiGranularity"} <= names
    assert set(SMALL) <= names, "SMALL names a class that is gone"


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("kind, keywords", variants())
def test_law(kind, keywords, law):
    law(lambda **more: kind(**{**keywords, **more}))


# ---- planted violations -------------------------------------------------------------------------------------------------------
class PlainNet(nn.Module):
    """A sound network: one hidden layer on the last lag; the planted ones below change one thing each."""

    def __init__(self, d_feat: int, dropout: float = 0.0):
        super().__init__()
        self.hidden, self.head = nn.Linear(d_feat, 24), nn.Linear(24, 1)

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x[:, -1]))).squeeze(-1)


class Plain(TorchModel):
    net_class = PlainNet

    def __init__(self, d_feat=None, dropout=0.0, **options):
        super().__init__(dict(d_feat=d_feat, dropout=dropout), **options)


class SqueezesAllNet(PlainNet):
    """A single stock becomes a number without an axis."""

    def forward(self, x):
        return super().forward(x).squeeze()


class ColumnNet(PlainNet):
    """`[n, 1]`, which broadcasts against `[n]`."""

    def forward(self, x):
        return super().forward(x)[:, None]


class CountsStocksNet(PlainNet):
    """The place in the batch is an input."""

    def forward(self, x):
        return super().forward(x) + 0.1 * torch.arange(len(x), dtype=x.dtype)


class KnowsTheEnd(Plain):
    """Scores relative to the mean of the whole table."""

    def predict_panel(self, panel):
        days, stocks, values = super().predict_panel(panel)
        return days, stocks, values - np.nanmean(panel.blocks["stock"].values)


class ReadsTomorrow(Plain):
    """The window is one day too late."""

    def predict_panel(self, panel):
        later = copy.copy(panel)
        later.lookup = np.concatenate([panel.lookup[1:], panel.lookup[-1:]])
        return super().predict_panel(later)


class RemembersNet(PlainNet):
    """A running mean over the days it has seen."""

    def __init__(self, d_feat, dropout=0.0):
        super().__init__(d_feat)
        self.register_buffer("memory", torch.zeros(d_feat))

    def forward(self, x):
        self.memory = 0.5 * self.memory.to(x) + 0.5 * x.detach()[:, -1].mean(dim=0)
        return super().forward(x - self.memory)


class SpanZScore(Plain):
    """Scores standardised over the span that is scored."""

    def predict_panel(self, panel):
        days, stocks, values = super().predict_panel(panel)
        return days, stocks, values - values.mean()


class DividesByNothingNet(PlainNet):
    """Standardises each stock's window, and a window of unknowns has no spread."""

    def forward(self, x):
        return super().forward((x - x.mean(dim=1, keepdim=True)) / x.std(dim=1, keepdim=True))


class UnseededNet(PlainNet):
    """Initial weights from the system's entropy."""

    def __init__(self, d_feat, dropout=0.0):
        super().__init__(d_feat)
        with torch.no_grad():
            self.head.bias += int.from_bytes(os.urandom(4), "little") / 2**32


class ForgottenNet(PlainNet):
    """Something drawn at the start that the state dict does not hold."""

    def __init__(self, d_feat, dropout=0.0):
        super().__init__(d_feat)
        self.direction = torch.randn(d_feat)

    def forward(self, x):
        return super().forward(x) + x[:, -1] @ self.direction.to(x)


class UnusedNet(PlainNet):
    """A layer nobody calls."""

    def __init__(self, d_feat, dropout=0.0):
        super().__init__(d_feat)
        self.spare = nn.Linear(d_feat, 1)


class DetachedNet(PlainNet):
    """The gradient stops at the head."""

    def forward(self, x):
        return self.head(torch.tanh(self.hidden(x[:, -1])).detach()).squeeze(-1)


class SeesTheMeanNet(PlainNet):
    """Nearly all stocks look the same."""

    def forward(self, x):
        return super().forward(x.mean(dim=(0, 1), keepdim=True).expand_as(x))


class TakesAnything(Plain):
    def __init__(self, d_feat=None, dropout=0.0, loss="mse", rule="supervised", trainer=None, checkpoint=None, **ignored):
        super().__init__(d_feat, dropout, loss=loss, rule=rule, trainer=trainer, checkpoint=checkpoint)


def planted(net: type[nn.Module]):
    """`Plain` with another network, under a name of this module, so that it pickles."""
    kind = type(f"Planted{net.__name__}", (Plain,), {"net_class": net, "__module__": __name__})
    globals()[kind.__name__] = kind
    return kind


PLANTED = [
    (one_score_a_stock, planted(SqueezesAllNet)), (one_score_a_stock, planted(ColumnNet)),
    (order_of_stocks, planted(CountsStocksNet)), (no_look_ahead, KnowsTheEnd), (no_look_ahead, ReadsTomorrow),
    (other_days, planted(RemembersNet)), (other_days, SpanZScore), (unknown_inputs, planted(DividesByNothingNet)),
    (same_seed, planted(UnseededNet)), (pickle_round_trip, planted(ForgottenNet)), (gradient_everywhere, planted(UnusedNet)),
    (gradient_everywhere, planted(DetachedNet)), (overfits_one_day, planted(SeesTheMeanNet)), (unknown_keywords, TakesAnything),
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_a_sound_model_passes(law):
    law(Plain)


@pytest.mark.parametrize("law, kind", PLANTED, ids=lambda value: value.__name__)
def test_a_planted_violation_is_caught(law, kind):
    with pytest.raises((AssertionError, ShapeError)):
        law(kind)


def test_every_law_has_a_planted_violation():
    assert {law for law, _ in PLANTED} == set(LAWS)
