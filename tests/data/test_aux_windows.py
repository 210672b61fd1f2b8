"""Blocks of bars beside the daily features: names, windows, rows, packs, and what is refused before anything is loaded."""
import pickle

import numpy as np
import pytest

from qlib_ext.check_task import check_dataset_values, check_model
from qlib_ext.data.aux_values import window_sizes
from qlib_ext.data.dataset import PanelDatasetH
from qlib_ext.data.pack import load_panel, pack_panel
from qlib_ext.data.panel import Block, bar_features
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.models.agru import AGRU, MultiGranularity
from qlib_ext.models.ensemble import Ensemble, average_scores
from qlib_ext.models.gru import GRU
from small_market import SEGMENTS, start_qlib

BARS = 4


class BarLoader:
    """Bars of three features: value = 100 x day + 10 x bar + feature, plus the stock's number / 1000; the first stock is unknown."""

    per_stock, bars, asked = True, BARS, []

    def __init__(self, days_at_a_time=None, dark=False):
        self.days_at_a_time, self.dark = days_at_a_time, dark

    def column_names(self):
        return [f"{name}@{bar}" for bar in range(1, BARS + 1) for name in ("open", "high", "volume")]

    def load(self, days, instruments, partial=False):
        self.asked.append(len(days))
        number = np.arange(3)[None, :] + 10 * np.arange(1, BARS + 1)[:, None]
        day = (np.asarray(days) - np.datetime64("2015-01-01")).astype(int)
        stock = np.array([int(code[2:]) % 100 for code in instruments])
        values = 100.0 * day[:, None, None] + stock[None, :, None] / 1000 + number.reshape(1, 1, -1)
        values[:, 0] = np.nan
        return np.where(self.dark, np.nan, values), self.column_names()


def dataset(aux_windows, labels=1, **options) -> PanelDatasetH:
    returns = [f"Ref($close, -{h + 1}) / Ref($close, -1) - 1" for h in (5, 10)][:labels]
    handler = {"class": "FiveFeatures", "module_path": "small_market", "kwargs": {
        "instruments": "all", "start_time": "2015-03-02", "end_time": "2016-12-30", "label": returns,
        "learn_processors": [{"class": "CSZScoreNorm", "module_path": "qlib_ext.data.processor", "kwargs": {"fields_group": "label"}}]}}
    return PanelDatasetH(handler, SEGMENTS, universe="csi1000", window=5, aux={"m60": {"class": BarLoader, "kwargs": options}},
                         aux_windows=aux_windows)


@pytest.fixture(scope="module")
def whole(small_store):
    start_qlib(small_store)
    return dataset({"m60": {"window": 3}}, labels=2)


# ---- blocks ---------------------------------------------------------------------------------------------------------------------
def test_names_say_which_bar_a_column_is_of():
    assert bar_features(["a", "b@x"], 1) == ["a", "b@x"] and bar_features(["a@1", "b@1", "a@2", "b@2"], 2) == ["a", "b"]
    assert bar_features(["a@10:30", "a@11:30", "a@14:00", "a@15:00"], 4) == ["a"] and bar_features(["a@b@1", "a@b@2"], 2) == ["a@b"]
    for columns, bars in ((["a@1", "b@1", "a@2"], 2), (["a@1", "a@2", "b@1", "b@2"], 2), (["a", "b"], 2), (["a@1", "b@1"], 4), (["a@1"], 0),
                          (["a@1", "b@1", "b@2", "a@2"], 2), (["a@1", "b@2", "a@3", "b@4"], 2), (["a@1", "a@1"], 2), (["a"], 1.0), ([], 2)):
        with pytest.raises(ConfigError):
            bar_features(columns, bars)
    block = Block(np.full((3, 4), np.nan, np.float32), 5, ["a@1", "b@1", "a@2", "b@2"], bars=2)
    assert block.steps == 10 and block.features == ["a", "b"] and pickle.loads(pickle.dumps(block)).bars == 2


def test_windows_are_bars_one_after_the_other(whole):
    panel, seen = whole.panel(), 0
    block = panel.blocks["m60"]
    assert (block.window, block.bars, block.steps, block.features) == (3, 4, 12, ["open", "high", "volume"])
    assert panel.blocks["stock"].window == 5
    assert block.values is panel.stock_aux["m60"] and panel.meta["aux_windows"] == {"m60": {"window": 3, "bars": 4}}
    sampler = DaySampler(panel)
    for day in (40, 200, panel.scored_days()[-1]):
        batch = sampler.batch(day)
        assert batch.x["m60"].shape == (len(batch.stocks), 12, 3) and batch.x["stock"].shape[1:] == (5, 5)
        for n, stock in enumerate(batch.stocks):
            for lag in range(3):
                known = panel.rows[day - 2 + lag, stock] >= 0 and stock > 0
                number = (panel.days[day - 2 + lag] - np.datetime64("2015-01-01")).astype(int)
                for bar in range(4):
                    expected = 100 * number + 10 * (bar + 1) + np.arange(3) + int(panel.instruments[stock][2:]) % 100 / 1000
                    found = batch.x["m60"][n, 4 * lag + bar].numpy()
                    np.testing.assert_allclose(found, expected if known else np.full(3, np.nan), rtol=1e-6)
                    seen += known
    assert seen > 200


def test_what_is_loaded_in_parts_is_the_same(whole):
    BarLoader.asked.clear()
    parts = dataset({"m60": {"window": 3}}, labels=2, days_at_a_time=50).panel()
    assert max(BarLoader.asked) == 50 and len(BarLoader.asked) == -(-len(parts.days) // 50)
    assert parts.blocks["m60"].values.tobytes() == whole.panel().blocks["m60"].values.tobytes()
    with pytest.raises(DataError, match="aux 'm60': BarLoader knows nothing of any stock from 2015"):
        dataset({"m60": None}, days_at_a_time=50, dark=True).panel()


def test_a_pack_keeps_the_bars(whole, tmp_path):
    panel = whole.panel()
    pack_panel(panel, tmp_path / "p")
    packed = load_panel(tmp_path / "p")
    assert packed.blocks["m60"].bars == 4 and packed.digest() == panel.digest() and packed.blocks["stock"].bars == 1
    one, two = DaySampler(panel).batch(100), DaySampler(packed).batch(100)
    assert all(one.x[name].numpy().tobytes() == two.x[name].numpy().tobytes() for name in one.x)
    other = dataset({"m60": {"window": 4}}, labels=2).panel()
    assert other.digest() != panel.digest()


def test_a_list_keeps_its_meaning_and_sizes_have_defaults():
    plain = type("Styles", (), {"per_stock": True})()
    loaders = {"style": plain, "m60": BarLoader(), "market": object()}
    assert window_sizes(["style"], loaders, 8) == {"style": {"window": 8, "bars": 1}} and window_sizes(None, loaders, 8) == {}
    assert window_sizes({"m60": {"window": 20, "bars": 4}, "style": None}, loaders, 8) == {"m60": {"window": 20, "bars": 4},
                                                                                         "style": {"window": 8, "bars": 1}}
    for asked, said in (({"m60": {"window": 0}}, "at least 1"), ({"m60": {"window": 2.0}}, "at least 1"),
                        ({"m60": {"days": 3}}, "give {window"), ({"m60": {"bars": 8}}, "bars the 4 that BarLoader makes"), ({"market": {}}, "'market', which is no loader"),
                        ({"stock": {}}, "'stock', which"), ("m60", "give a list"), ({"m60": 20}, "give {window"),
                        ([3], "3, which is no loader")):
        with pytest.raises(ConfigError, match=said):
            window_sizes(asked, loaders, 8)


def test_wrong_bars_are_an_error(small_market):
    class Wrong(BarLoader):
        bars = None
    handler, aux = dataset({"m60": None}).handler, {"m60": {"class": Wrong}}
    with pytest.raises(ConfigError, match=r"12 columns \(\['open@1', 'high@1', 'volume@1'\] ...\) are not 3 bars"):
        PanelDatasetH(handler, SEGMENTS, window=5, aux=aux, aux_windows={"m60": {"bars": 3}}).panel()


# ---- models on it ---------------------------------------------------------------------------------------------------------------
def member(block, horizon, seed=0):
    return {"class": "AGRU", "module_path": "qlib_ext.models.agru", "kwargs": {
        "block": block, "hidden_size": 3, "units": 4, "loss": {"name": "ic", "horizon": horizon},
        "trainer": {"epochs": 1, "days_per_epoch": 4, "device": "cpu", "progress": False, "seed": seed}}}


def test_granularities_and_labels_averaged(whole, monkeypatch, tmp_path):
    """Half the model of one label, half that of the other, each the mean of granularities."""
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path))
    of_label = {f"label_{horizon}": {"class": "Ensemble", "module_path": "qlib_ext.models.ensemble", "kwargs": {
        "average": "z", "members": {name: member(name, horizon) for name in ("stock", "m60")}}} for horizon in (0, 1)}
    model = Ensemble(members=of_label, average="z").fit(whole)
    score = model.predict(whole)
    parts = {name: part.predict(whole) for name, part in model.models_.items()}
    frame = score.to_frame("score").drop(columns="score").assign(**parts)
    np.testing.assert_allclose(score, average_scores(frame, "z"), atol=1e-12)
    inner = model.models_["label_1"].models_
    assert inner["stock"].sizes_ == {"d_feat": 5} and inner["m60"].sizes_ == {"d_feat": 3} and inner["m60"].rule.loss.horizon == 1
    assert np.isfinite(score).all() and len(score) == len(parts["label_0"]) and abs(parts["label_0"].corr(parts["label_1"])) < 0.999


def said_by_check(model, labels=1, **options):
    """What `check` says of a model and a dataset with bars."""
    from small_market import FiveFeatures
    found = []
    add = lambda where, what, advice: found.append(f"{where}: {what}; {advice}")  # noqa: E731
    handler = FiveFeatures(init_data=False, label=[f"Ref($close, -{h}) / $close" for h in range(2, 2 + labels)])
    loaders = {"m60": BarLoader()}
    check_dataset_values(add, "dataset", options, loaders)
    check_model(add, "task.model.kwargs", model, handler, options, loaders, True)
    return found


def test_check_knows_blocks_labels_and_the_orthogonal_layer(small_market):
    bars = {"aux_windows": {"m60": {"window": 3}}}
    second = {"name": "ic", "horizon": 1}
    for model, labels, options in ((AGRU(block="m60"), 1, bars), (AGRU(block="m60", d_feat=3, loss=second), 2, bars),
                                   (GRU(block="stock"), 1, bars), (MultiGranularity(), 1, bars), (GRU(), 1, {}),
                                   (MultiGranularity(loss=second, block=["m60", "stock"]), 2, bars),
                                   (MultiGranularity(orthogonal=True, loss="factor_ic", controls=["m60"]), 2, bars)):
        assert said_by_check(model, labels, **options) == [], model
    for model, labels, options, words in (
            (AGRU(block="m30"), 1, bars, "block ['m30'] is not in this panel; it has ['m60', 'stock']"),
            (AGRU(), 1, bars, "one by name (block: ... of the model)"),
            (AGRU(block="m60", d_feat=4), 1, bars, "d_feat=4, the dataset gives 3"),
            (AGRU(block="m60"), 2, bars, "choose one with `horizon`"),
            (AGRU(block="m60", loss=second), 1, bars, "horizon 1 is not among the 1"),
            (AGRU(block="m60", orthogonal=True, controls=["style"]), 1, bars, "the network needs aux ['style']"),
            (AGRU(block="m60"), 1, {"aux_windows": {"m60": {"bars": 3}}}, "dataset.aux_windows: aux_windows of 'm60'"),
            (AGRU(block="m60"), 1, {"aux_windows": {"m60": {"window": 0}}}, "at least 1"),
            (GRU(), 1, {"aux_windows": {"m30": {}}}, "['m30'] are no aux entries of values per stock (those are ['m60'])")):
        found = said_by_check(model, labels, **options)
        assert len(found) == 1 and words in found[0], (words, found)
