"""The handler of intraday inputs and the loader of blocks, on a tiny market with 15-minute bars."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
import qlib
from qlib.utils import init_instance_by_config
from tiny_intraday import CODES, DAYS, bars, build_folder, build_store, trades

from qlib_ext.data.intraday import IntradayBlockLoader, IntradayFeatures, intraday_fields
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.intraday_features import BLOCK_FEATURES
from qlib_ext.report.leak_rebuild import rebuild
from qlib_ext.store.intraday import write_day
from qlib_ext.store.intraday_build import build_intraday


def start_qlib(store: Path) -> None:
    qlib.init(provider_uri=str(store), region="cn", kernels=1, expression_cache=None, dataset_cache=None, logging_level=40)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A store of 30 days with fields of the last 25, and blocks of these days; Qlib is started on it."""
    place = tmp_path_factory.mktemp("blocks")
    store = build_store(place / "store")
    build_folder(place / "store.intraday", DAYS[5:])
    build_intraday(store, blocks=("day", 60))
    return place


@pytest.fixture
def store(place) -> Path:
    start_qlib(place / "store")
    return place / "store"


# ---- the handler --------------------------------------------------------------------------------------------------------------
def test_the_columns_are_the_stores_inputs(store):
    handler = IntradayFeatures(instruments="csi300", start_time="2020-01-02", end_time="2020-02-12", label={"horizons": [1, 5]},
                               factors=["hf_skew", "$hf_skew_orth"])
    frame = handler.fetch(col_set="feature")
    names = intraday_fields(store)
    assert list(frame.columns) == names + ["hf_skew", "hf_skew_orth"] and len(names) > 1
    assert list(handler.fetch(col_set="label").columns) == ["LABEL1D", "LABEL5D"]
    for name in (names[0], "hf_skew_orth"):
        raw = np.fromfile(store / "features" / CODES[1].lower() / f"{name}.day.bin", "<f4")[1:]
        np.testing.assert_array_equal(frame.xs(CODES[1], level="instrument")[name].to_numpy(np.float32), raw)
    assert frame.loc[:DAYS[4]].isna().all(axis=None) and frame.loc[DAYS[20]].notna().mean().max() == 1.0


def test_chosen_columns(store):
    names = intraday_fields(store)
    handler = IntradayFeatures("csi300", features=[names[1]], factors="all", init_data=False)
    assert handler.data_loader.fields["feature"][1] == [names[1], *intraday_fields(store, "hf_")]
    handler = IntradayFeatures("csi300", features=[], factors=["hf_skew"], init_data=False)
    assert handler.data_loader.fields["feature"] == (["$hf_skew"], ["hf_skew"])
    with pytest.raises(ConfigError, match="features 'hi_nothing' is no field of the store"):
        IntradayFeatures("csi300", features=["hi_nothing"], init_data=False)
    with pytest.raises(ConfigError, match="factors 'hf_skwe' is no field of the store.*hf_skew"):
        IntradayFeatures("csi300", factors=["hf_skwe"], init_data=False)
    with pytest.raises(ConfigError, match="price 'mid'"):
        IntradayFeatures("csi300", label={"price": "mid"}, init_data=False)


def test_a_store_without_fields(tmp_path):
    start_qlib(build_store(tmp_path / "store"))
    with pytest.raises(ConfigError, match=r"has no \$hi_... fields: run `python -m qlib_ext.store build-intraday"):
        IntradayFeatures("csi300", init_data=False)


# ---- blocks -------------------------------------------------------------------------------------------------------------------
def files(place: Path, minutes: int) -> Path:
    return next((place / "store.intraday" / "blocks").glob(f"{minutes}min-*"))


def test_raw_blocks_are_the_files(place, store):
    loader = IntradayBlockLoader(minutes=60, zscore=False)
    loader.check()
    codes = np.array(["SH999999", *CODES[::-1]])
    values, names = loader.load(DAYS[3:9].to_numpy(), codes)
    assert values.shape == (6, 25, 4 * len(BLOCK_FEATURES)) and values.dtype == np.float32 and loader.bars == 4
    assert names == loader.column_names() == [f"{name}@{bar}" for bar in (1, 2, 3, 4) for name in BLOCK_FEATURES]
    assert np.isnan(values[:2]).all() and np.isnan(values[:, 0]).all()
    for t, day in ((2, DAYS[5]), (5, DAYS[8])):
        frame = pl.read_parquet(files(place, 60) / f"date={day.date()}" / "part.parquet").to_pandas().set_index("instrument")
        np.testing.assert_array_equal(values[t, 1:], frame.loc[codes[1:], names].to_numpy(np.float32))


def test_normalised_blocks(place, store):
    """Clipped and scaled by all stocks of the day, whichever are asked for; against a plain loop."""
    values, names = IntradayBlockLoader(folder=f"{store}.intraday", minutes="day").load(DAYS[10:12].to_numpy(), CODES)
    frame = pl.read_parquet(files(place, 240) / f"date={DAYS[11].date()}" / "part.parquet").to_pandas().set_index("instrument")
    checked = 0
    for k, name in enumerate(names):
        x = frame.loc[CODES, name].to_numpy(float)
        if np.isfinite(x).sum() < 2 or np.nanmax(x) == np.nanmin(x):
            assert np.isnan(values[1, :, k]).all()
            continue
        median = np.nanmedian(x)
        reach = 3 * 1.4826 * np.nanmedian(np.abs(x - median))
        x = np.clip(x, median - reach, median + reach)
        if np.nanmax(x) > np.nanmin(x):
            np.testing.assert_allclose(values[1, :, k], (x - np.nanmean(x)) / np.nanstd(x, ddof=1), atol=2e-4)
            checked += 1
    assert checked >= 2
    some = IntradayBlockLoader(minutes="day").load(DAYS[11:12].to_numpy(), CODES[4:7])[0]
    np.testing.assert_array_equal(some[0], values[1, 4:7])
    again = pickle.loads(pickle.dumps(IntradayBlockLoader(minutes="day"))).load(DAYS[11:12].to_numpy(), CODES[4:7])[0]
    np.testing.assert_array_equal(some, again)


def test_blocks_of_a_day_do_not_depend_on_other_days(place, store):
    loader = IntradayBlockLoader(minutes=60)
    whole, part = loader.load(DAYS[5:].to_numpy(), CODES)[0], loader.load(DAYS[12:13].to_numpy(), CODES)[0]
    np.testing.assert_array_equal(whole[7], part[0])


def test_blocks_follow_bars_that_are_ingested_again(tmp_path):
    """A build that does not name them computes them again, of the days that changed."""
    store, folder = build_store(tmp_path / "store", DAYS[:6]), build_folder(tmp_path / "store.intraday", DAYS[:6])
    build_intraday(store, factors=["hf_skew"], blocks=(60,))
    loader = IntradayBlockLoader(str(folder), 60, zscore=False)
    before = loader.load(DAYS[:6].to_numpy(), CODES)[0]
    frame = bars(DAYS[2]).with_columns(close=pl.col("open") * 1.01, high=pl.max_horizontal("high", pl.col("open") * 1.01))
    write_day(folder, "bars_15min", np.datetime64(DAYS[2], "D"), frame)
    with pytest.raises(DataError, match=rf"of 1 days, first {DAYS[2]:%Y-%m-%d}, were made of bars or trades that were ingested again"):
        loader.load(DAYS[:6].to_numpy(), CODES)
    build_intraday(store, factors=["hf_skew"])
    after = loader.load(DAYS[:6].to_numpy(), CODES)[0]
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(after[others], before[others])
    assert np.nanmax(np.abs(after[2] - before[2])) > 1e-3
    shutil.rmtree(folder / "bars_15min")                      # whoever keeps the blocks alone has nothing to compare with
    np.testing.assert_array_equal(loader.load(DAYS[:6].to_numpy(), CODES)[0], after)


def test_trades_that_came_after_the_blocks_are_not_passed_over(tmp_path):
    store, folder = build_store(tmp_path / "store", DAYS[:4]), build_folder(tmp_path / "store.intraday", DAYS[:4])
    write_day(folder, "trades", np.datetime64(DAYS[0], "D"), trades(DAYS[0]))
    build_intraday(store, factors=["hf_skew"], blocks=(60,))
    loader = IntradayBlockLoader(str(folder), 60)
    loader.load(DAYS[:4].to_numpy(), CODES)
    write_day(folder, "trades", np.datetime64(DAYS[2], "D"), trades(DAYS[2]))
    with pytest.raises(DataError, match=rf"of 1 days, first {DAYS[2]:%Y-%m-%d}, were made of bars or trades"):
        loader.load(DAYS[:4].to_numpy(), CODES)
    build_intraday(store, factors=["hf_skew"])
    loader.load(DAYS[:4].to_numpy(), CODES)


def test_what_blocks_refuse(place, store, tmp_path):
    for minutes in (7, 0, True, "hour", 60.0):
        with pytest.raises(ConfigError, match="minutes="):
            IntradayBlockLoader(minutes=minutes)
    with pytest.raises(ConfigError, match="zscore=1"):
        IntradayBlockLoader(zscore=1)
    with pytest.raises(DataError, match=r"has no blocks 30min-\*, it has .*--blocks 30"):
        IntradayBlockLoader(minutes=30).check()
    with pytest.raises(DataError, match="no blocks in .* on any of 2 days"):
        IntradayBlockLoader(minutes=60).load(DAYS[:2].to_numpy(), CODES)
    with pytest.raises(DataError, match="none of 1 instruments on 2 days"):
        IntradayBlockLoader(minutes=60).load(DAYS[8:10].to_numpy(), ["SZ000001"])
    values, names = IntradayBlockLoader(minutes=60).load(DAYS[:2].to_numpy(), CODES, partial=True)
    assert values.shape == (2, len(CODES), len(names)) and np.isnan(values).all()
    folder = tmp_path / "copy"
    shutil.copytree(files(place, 60), folder / "blocks" / "60min-aa")
    shutil.copytree(files(place, 60), folder / "blocks" / "60min-bb")
    with pytest.raises(DataError, match=r"name one of the keys \['aa', 'bb'\]"):
        IntradayBlockLoader(str(folder), 60).check()
    loader = IntradayBlockLoader(str(folder), 60, key="aa")
    loader.check()
    file = folder / "blocks" / "60min-aa" / f"date={DAYS[8].date()}" / "part.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="part.parquet cannot be read"):
        loader.load(DAYS[8:10].to_numpy(), CODES)
    (folder / "blocks" / "60min-aa" / "about.json").write_text(json.dumps({}))
    with pytest.raises(DataError, match="about.json cannot be read"):
        loader.check()


def test_check_takes_the_columns_from_the_store(place, store, tmp_path):
    """Without Qlib: columns and blocks of the store that a workflow names, and what to run where it has none."""
    import yaml

    from qlib_ext.check import check_workflow
    spans = {"train": ["2020-01-10", "2020-01-20"], "valid": ["2020-01-21", "2020-01-28"], "test": ["2020-01-29", "2020-02-05"]}
    module = {"module_path": "qlib_ext.data.intraday"}
    config = {"qlib_init": {"provider_uri": str(store), "region": "cn", "exp_manager": {
                  "class": "SqliteExpManager", "module_path": "qlib_ext.tracking", "kwargs": {"uri": f"sqlite:///{tmp_path}/t.db"}}},
              "task": {"model": {"class": "GRU", "module_path": "qlib_ext.models.gru", "kwargs": {}},
                       "dataset": {"class": "PanelDatasetH", "module_path": "qlib_ext.data.dataset", "kwargs": {
                           "segments": spans, "aux": {"hours": {"class": "IntradayBlockLoader", **module, "kwargs": {"minutes": 60}}},
                           "handler": {"class": "IntradayFeatures", **module, "kwargs": {
                               "instruments": "csi300", "start_time": "2020-01-02", "end_time": "2020-02-12", "label": {"horizons": 1}}}}},
                       "record": [{"class": "SignalRecord", "module_path": "qlib.workflow.record_temp", "kwargs": {
                           "model": "<MODEL>", "dataset": "<DATASET>"}}]}}
    file = tmp_path / "workflow.yaml"

    def faults(folder: Path) -> list:
        config["qlib_init"]["provider_uri"] = str(folder)
        file.write_text(yaml.safe_dump(config))
        qlib.config.C.registered, before = False, qlib.config.C.registered
        try:
            return [str(fault) for fault in check_workflow(file)]
        finally:
            qlib.config.C.registered = before

    assert faults(store) == []
    config["task"]["dataset"]["kwargs"]["aux"]["hours"]["kwargs"]["minutes"] = 30
    assert [("blocks 30min" in one, "build-intraday" in one) for one in faults(store)] == [(True, True)]
    bare = faults(build_store(tmp_path / "bare"))
    assert any("dataset.kwargs.handler.kwargs" in one and "run `python -m qlib_ext.store build-intraday" in one for one in bare)
    assert any("aux.hours.kwargs" in one and "has no blocks" in one for one in bare)


def dataset_of_blocks(loader: str = "IntradayBlockLoader", module: str = "qlib_ext.data.intraday") -> dict:
    day = [str(one.date()) for one in DAYS]
    handler = {"class": "IntradayFeatures", "module_path": "qlib_ext.data.intraday",
               "kwargs": {"instruments": "csi300", "start_time": day[5], "end_time": day[-1], "label": {"horizons": [1]}}}
    return {"class": "PanelDatasetH", "module_path": "qlib_ext.data.dataset", "kwargs": {
        "handler": handler, "window": 3, "aux_windows": ["hours"],
        "segments": {"train": [day[8], day[16]], "valid": [day[17], day[21]], "test": [day[22], day[26]]},
        "aux": {"hours": {"class": loader, "module_path": module, "kwargs": {"minutes": 60}}}}}


def test_blocks_in_a_dataset(store):
    """Windows of the blocks stand beside the features of a panel."""
    dataset = init_instance_by_config(dataset_of_blocks())
    panel = dataset.panel()
    values = IntradayBlockLoader(minutes=60).load(panel.days, panel.instruments)[0]
    row = panel.rows[9, 4]
    np.testing.assert_array_equal(panel.blocks["hours"].values[row], values[9, 4])
    assert pd.Timestamp(panel.days[0]) == DAYS[5]


class TomorrowsBlocks(IntradayBlockLoader):
    """A leak: each day shows the bars of the next."""

    def load(self, days, instruments, partial=False):
        values, names = super().load(days, instruments, partial)
        return np.roll(values, -1, axis=0), names


class MeanOfBlocks:
    """Scores are means of the day's bars."""

    def predict(self, dataset, segment="test"):
        panel = dataset.panel()
        first, last = panel.segments[segment]
        day, stock = np.nonzero(panel.rows[first:last] >= 0)
        values = np.nan_to_num(panel.blocks["hours"].values[panel.rows[first:last][day, stock]]).mean(axis=1)
        return pd.Series(values, pd.MultiIndex.from_arrays([panel.days[first:last][day], panel.instruments[stock]],
                                                           names=["datetime", "instrument"]))


@pytest.mark.parametrize("loader, module", [("IntradayBlockLoader", "qlib_ext.data.intraday"), ("TomorrowsBlocks", __name__)])
def test_the_rebuild_with_noise_behind_a_day_sees_blocks(store, loader, module):
    config, model = dataset_of_blocks(loader, module), MeanOfBlocks()
    dataset = init_instance_by_config(config)
    made = rebuild(config, model, dataset, model.predict(dataset), DAYS[23], [DAYS[22], DAYS[23]], [DAYS[24]], seed=1)
    changed = made.inputs[[name.startswith("hours: ") for name in made.inputs.index]].sum()
    assert made.later > 0
    if loader == "TomorrowsBlocks":
        assert changed > 0 and made.score_difference > 0.01
    else:
        assert changed == 0 and made.score_difference == 0
