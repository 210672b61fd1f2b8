"""Style exposures and trends from snapshots, point in time, and their way through dataset, sampler, pack and `check`."""
import logging
import pickle

import numpy as np
import pandas as pd
import pytest

from qlib_ext.check_task import check_dataset_values, check_model
from qlib_ext.data import style_loader
from qlib_ext.data.dataset import PanelDatasetH
from qlib_ext.data.pack import load_panel, pack_panel
from qlib_ext.data.sampler import DaySampler
from qlib_ext.data.style_loader import StyleLoader, StyleTrendLoader, style_trend
from qlib_ext.data.winner_loader import JoinedLoader
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.models.alstm import MetaRiskControl
from qlib_ext.models.master import MASTER
from qlib_ext.risk.snapshot import COUNTRY, RiskDay, RiskSnapshot
from qlib_ext.store.snapshots import SnapshotStore
from small_market import SEGMENTS

STYLES = ("size", "beta", "momentum")
CODES = [f"SH6000{n:02d}" for n in range(12)]
DAYS = pd.bdate_range("2015-03-02", "2016-12-30").to_numpy().astype("datetime64[D]")
KNOWN = DAYS[300]
MODULE = {"module_path": "qlib_ext.data.style_loader"}


def write_snapshots(folder, codes=CODES, days=DAYS, changed_after=DAYS[-1]):
    """Three styles of nearly all stocks; what follows a day can be another past."""
    def records():
        for day in days:
            draw = np.random.default_rng([int(day > changed_after), int(day.astype(int))])
            known = [code for code in codes if draw.random() < 0.9]
            exposure = np.column_stack([np.ones(len(known)), draw.normal(size=(len(known), 3))]).astype(np.float32)
            snapshot = RiskSnapshot(day, known, (COUNTRY, *STYLES), exposure, np.eye(4) * 1e-4, np.full(len(known), 1e-4))
            returns = 0.01 * draw.standard_t(3, size=4)
            returns[3] = np.nan if draw.random() < 0.1 else returns[3]
            yield RiskDay(snapshot, returns, np.zeros(len(known)), 0.5, np.ones(len(known), bool))

    SnapshotStore(folder).write(records(), {"styles": list(STYLES)})
    return str(folder)


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    return write_snapshots(tmp_path_factory.mktemp("risk") / "true")


@pytest.fixture(scope="module")
def corrupted(tmp_path_factory):
    """Another past after `KNOWN`."""
    return write_snapshots(tmp_path_factory.mktemp("risk") / "corrupted", changed_after=KNOWN)


# ---- values ---------------------------------------------------------------------------------------------------------------------
def test_exposures_are_those_of_the_snapshots(snapshots, caplog):
    days, codes = DAYS[[5, 100, 7]], [CODES[3], "SH699999", CODES[0]]
    values, names = StyleLoader(snapshots=snapshots).load(days, codes)
    assert values.dtype == np.float32 and names == list(STYLES) and not caplog.records
    for t, day in enumerate(days):
        shot = SnapshotStore(snapshots).read(day)
        for n, code in enumerate(codes):
            row = shot.rows([code])[0]
            expected = shot.exposure[row, 1:] if row >= 0 else [np.nan] * 3
            np.testing.assert_array_equal(values[t, n], np.float32(expected))
    chosen, names = StyleLoader(["momentum", "size"], snapshots).load(days, codes)
    assert names == ["momentum", "size"]
    np.testing.assert_array_equal(chosen, values[:, :, [2, 0]])


def test_days_without_exposures_are_unknown_and_told(snapshots, caplog):
    early = np.array(["2015-02-26", "2015-02-27"], "datetime64[D]")
    with caplog.at_level(logging.WARNING):
        values, _ = StyleLoader(snapshots=snapshots).load(np.r_[early, DAYS[:2]], CODES)
    assert np.isnan(values[:2]).all() and np.isfinite(values[2:]).any()
    assert "no exposures on 2 of 4 days (2015-02-26 to 2015-02-27)" in caplog.text
    with pytest.raises(DataError, match="know none of 12 instruments on any of 2 days"):
        StyleLoader(snapshots=snapshots).load(early, CODES)


def test_the_trend_is_the_z_score_of_what_a_style_earned(snapshots):
    values, names = StyleTrendLoader(snapshots=snapshots, window=20).load(DAYS)
    assert values.shape == (len(DAYS), 3) and names == list(STYLES) and values.dtype == np.float32
    returns = SnapshotStore(snapshots).factor_returns()
    for k, style in enumerate(STYLES):
        one, summed = returns[style].to_numpy(), []
        for t in range(len(DAYS)):
            window = one[max(t - 19, 0):t + 1]
            known = window[np.isfinite(window)]
            summed.append(known.sum() if len(known) >= 10 else np.nan)
            past = np.array(summed)[np.isfinite(summed)]
            expected = (summed[-1] - past.mean()) / past.std() if len(past) >= 60 and np.isfinite(summed[-1]) else np.nan
            assert values[t, k] == pytest.approx(expected, abs=1e-4, nan_ok=True), (style, t)
    assert np.isnan(values[:60]).all() and np.isfinite(values[100:]).all() and np.abs(values[100:]).max() > 1.5
    np.testing.assert_array_equal(StyleTrendLoader(["momentum", "size"], snapshots).load(DAYS[[50, 200]])[0], values[[50, 200]][:, [2, 0]])
    assert np.isnan(StyleTrendLoader(snapshots=snapshots).load(np.array(["2014-01-06"], "datetime64[D]"))[0]).all()


def point_in_time(first: str, second: str) -> None:
    """Nothing up to `KNOWN` differs between two pasts that part there, and everything after it does."""
    until = DAYS <= KNOWN
    for values in (lambda folder: StyleLoader(snapshots=folder).load(DAYS, CODES)[0].reshape(len(DAYS), -1),
                   lambda folder: StyleTrendLoader(snapshots=folder, window=5).load(DAYS)[0]):
        one, two = values(first), values(second)
        assert one[until].tobytes() == two[until].tobytes()
        assert (np.nan_to_num(one[~until]) != np.nan_to_num(two[~until])).any(axis=1).all()


def test_nothing_known_later_is_used(snapshots, corrupted):
    point_in_time(snapshots, corrupted)


@pytest.mark.parametrize("leak", ["whole past", "tomorrow's returns", "tomorrow's exposures"])
def test_a_planted_leak_is_caught(snapshots, corrupted, monkeypatch, leak):
    if leak == "whole past":
        z_score = lambda summed: (summed - summed.mean()) / summed.std()  # noqa: E731
        monkeypatch.setattr(style_loader, "style_trend", lambda returns, window: z_score(returns.rolling(window).sum()))
    elif leak == "tomorrow's returns":
        monkeypatch.setattr(style_loader, "style_trend", lambda returns, window: style_trend(returns.shift(-1), window))
    else:
        real = SnapshotStore.exposures
        monkeypatch.setattr(SnapshotStore, "exposures", lambda self, days, *rest: real(self, np.r_[days[1:], days[-1:]], *rest))
    with pytest.raises(AssertionError):
        point_in_time(snapshots, corrupted)


@pytest.mark.parametrize("make, error, said", [
    (lambda folder: StyleLoader([]), ConfigError, "different names"), (lambda folder: StyleLoader("size"), ConfigError, "different names"),
    (lambda folder: StyleLoader(["size", "size"]), ConfigError, "different names"),
    (lambda folder: StyleTrendLoader(window=0), ConfigError, "window=0"),
    (lambda folder: StyleTrendLoader(window=2.0), ConfigError, "window=2.0"),
    (lambda folder: StyleLoader(["value"], folder).check(), DataError, r"have no \['value'\], they have"),
    (lambda folder: StyleTrendLoader(["value"], folder).load(DAYS), DataError, r"have no \['value'\]"),
    (lambda folder: StyleLoader(snapshots=f"{folder}/nowhere").check(), DataError, "holds no risk snapshots"),
    (lambda folder: JoinedLoader([StyleLoader()]), ConfigError, "no load")])
def test_faults_are_named(snapshots, make, error, said):
    with pytest.raises(error, match=said):
        make(snapshots)


def test_widths_and_pickles(snapshots):
    assert StyleLoader().width() is None and StyleLoader(["a", "b"]).width() == 2 and StyleLoader(snapshots=snapshots).width() == 3
    again = pickle.loads(pickle.dumps(StyleLoader(["beta"], snapshots)))
    assert again.styles == ["beta"] and again.load(DAYS[:2], CODES)[0].shape == (2, 12, 1)


# ---- through the dataset --------------------------------------------------------------------------------------------------------
def aux_of(folder, **options):
    return {"style": {"class": "StyleLoader", **MODULE, "kwargs": {"snapshots": folder, **options}},
            "style_trend": {"class": "StyleTrendLoader", **MODULE, "kwargs": {"snapshots": folder, **options}}}


def dataset(aux, **options) -> PanelDatasetH:
    handler = {"class": "LeanFiveFeatures", "module_path": "small_market",
               "kwargs": {"instruments": "all", "start_time": "2015-03-02", "end_time": "2016-12-30"}}
    return PanelDatasetH(handler, SEGMENTS, universe="csi1000", window=5, aux=aux, **options)


@pytest.fixture(scope="module")
def whole(small_store, tmp_path_factory):
    """(dataset, folder of its snapshots)."""
    from qlib_ext.data.universe import member_spans
    from small_market import start_qlib
    start_qlib(small_store)
    folder = write_snapshots(tmp_path_factory.mktemp("risk") / "small", sorted(member_spans("csi1000")))
    return dataset(aux_of(folder), aux_windows=["style"]), folder


def test_the_panel_holds_exposures_by_row_and_as_windows(whole):
    panel, store = whole[0].panel(), SnapshotStore(whole[1])
    assert list(panel.blocks) == ["stock", "style"] and list(panel.stock_aux) == ["style"] and list(panel.day_aux) == ["style_trend"]
    assert panel.blocks["style"].values is panel.stock_aux["style"], "windows are no copy"
    assert panel.blocks["style"].columns == list(STYLES) and panel.blocks["style"].window == 5
    assert panel.meta["aux_columns"] == {"style": list(STYLES), "style_trend": list(STYLES)}
    sampler, seen = DaySampler(panel), 0
    for day in (40, 200, panel.scored_days()[-1]):
        batch = sampler.batch(day)
        codes = panel.instruments[batch.stocks]
        for lag in range(5):
            expected = store.exposures(panel.days[[day - 4 + lag]], codes, STYLES)[0][0]
            present = panel.rows[day - 4 + lag, batch.stocks] >= 0
            np.testing.assert_array_equal(batch.x["style"][present, lag].numpy(), expected[present])
            seen += np.isfinite(expected[present]).sum()
        np.testing.assert_array_equal(batch.aux["style"].numpy(), batch.x["style"][:, -1].numpy())
        assert batch.columns["style"] == list(STYLES) and batch.aux["style_trend"].shape == (3,)
    assert seen > 300


def test_a_pack_carries_them_once(whole, tmp_path):
    panel = whole[0].panel()
    both = pack_panel(panel, tmp_path / "both")[0].stat().st_size
    packed = load_panel(tmp_path / "both")
    assert packed.blocks["style"].values is packed.stock_aux["style"] and packed.meta["aux_columns"] == panel.meta["aux_columns"]
    for day in (40, 300):
        one, two = DaySampler(panel).batch(day), DaySampler(packed).batch(day)
        assert all(one.x[name].numpy().tobytes() == two.x[name].numpy().tobytes() for name in one.x)
        assert all(one.aux[name].numpy().tobytes() == two.aux[name].numpy().tobytes() for name in one.aux) and one.columns == two.columns
    del panel.blocks["style"]
    try:
        alone = pack_panel(panel, tmp_path / "alone")[0].stat().st_size
        assert load_panel(tmp_path / "alone").stock_aux["style"].tobytes() == panel.stock_aux["style"].tobytes()
    finally:
        panel.blocks["style"] = packed.blocks["style"]
    assert abs(both - alone) < 5000 < panel.stock_aux["style"].nbytes


def test_a_model_trains_on_it(whole, monkeypatch, tmp_path):
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path))
    model = MetaRiskControl(hidden_size=4, num_layers=1, rule="static", loss={"name": "style_ic", "momentum": "trend"},
                            trainer={"epochs": 1, "days_per_epoch": 4, "device": "cpu", "progress": False}).fit(whole[0])
    assert model.sizes_ == {"d_feat": 5, "d_style": 3} and np.isfinite(model.predict(whole[0])).all()


@pytest.mark.parametrize("name", ["market", "style_trend", "stock", 3])
def test_windows_are_of_values_per_stock(small_market, snapshots, name):
    with pytest.raises(ConfigError, match="aux_windows names"):
        dataset(aux_of(snapshots), aux_windows=[name])


def test_values_of_another_shape_are_refused(whole, small_market, monkeypatch):
    monkeypatch.setattr(StyleLoader, "load", lambda self, days, instruments: (np.zeros((len(days), 3), np.float32), list(STYLES)))
    with pytest.raises(DataError, match="aux 'style': StyleLoader gave"):
        dataset(aux_of(whole[1])).panel()


# ---- through check --------------------------------------------------------------------------------------------------------------
def said_by_check(model, folder, given=("style",), **options):
    """What `check` says of a model and a dataset with some of the two loaders."""
    found, loaders = [], {"style": StyleLoader(snapshots=folder), "style_trend": StyleTrendLoader(snapshots=folder)}
    loaders = {name: loaders[name] for name in given}
    add = lambda where, what, advice: found.append(f"{where}: {what}; {advice}")  # noqa: E731
    check_dataset_values(add, "dataset", options, loaders)
    check_model(add, "task.model.kwargs", model, None, options, loaders, True)
    return found


def test_check_knows_what_a_model_needs(snapshots):
    control, head = MetaRiskControl(), MetaRiskControl(style_input="head")
    assert said_by_check(control, snapshots, aux_windows=["style"]) == [] == said_by_check(head, snapshots)
    trend = MetaRiskControl(loss={"name": "style_ic", "momentum": "trend"})
    assert said_by_check(trend, snapshots, ("style", "style_trend"), aux_windows=["style"]) == []
    for model, given, options, words in (
            (control, ("style",), {}, "aux_windows: [style]"), (control, (), {}, "use the dataset's aux: {style: {class: StyleLoader"),
            (head, (), {}, "use the dataset's aux: {style: {class: StyleLoader"),
            (MASTER(d_market=0, loss="style_ic"), (), {}, "loss 'style_ic' needs aux ['style']"),
            (trend, ("style",), {"aux_windows": ["style"]}, "loss 'style_ic' needs aux ['style_trend']")):
        found = said_by_check(model, snapshots, given, **options)
        assert len(found) == 1 and words in found[0], found
    found = said_by_check(control, snapshots, aux_windows=["style", "market"])
    assert len(found) == 1 and "['market'] are no aux entries of values per stock (those are ['style'])" in found[0]
    found = said_by_check(control, f"{snapshots}/nowhere", aux_windows=["style"])
    assert len(found) == 1 and "task.dataset.kwargs.aux.style.kwargs.snapshots: " in found[0] and "holds no risk snapshots" in found[0]
