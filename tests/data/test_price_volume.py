"""Raw bars in windows: the transforms against plain loops, the handler and the loaders against Qlib, and what they refuse."""
import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from qlib.data import D

from qlib_ext.check_task import check_dataset_values
from qlib_ext.data import price_volume as module
from qlib_ext.data.dataset import PanelDatasetH
from qlib_ext.data.field_reader import FieldReader
from qlib_ext.data.pack import load_panel, pack_panel
from qlib_ext.data.price_volume import IndustryLoader, MarketCapLoader, PriceVolume
from qlib_ext.data.sampler import DaySampler
from qlib_ext.data.window import PRICE_VOLUME, WINDOW_TRANSFORMS, price_volume, price_volume_zscore, window_transform
from qlib_ext.errors import ConfigError, DataError, ShapeError
from small_market import SEGMENTS
from small_panels import small_panel

SPAN = ("2015-01-05", "2016-12-30")
MODULE = {"module_path": "qlib_ext.data.price_volume"}
HANDLER = {"class": "PriceVolume", **MODULE, "kwargs": {"instruments": "all", "start_time": SPAN[0], "end_time": SPAN[1],
                                                        "learn_processors": []}}


def bars(seed=0, n=17, length=12) -> np.ndarray:
    """Windows of prices and volumes: suspended days, one stock suspended on the last day, one dark, one that was never traded."""
    draw = np.random.default_rng(seed)
    close = 10 * np.exp(np.cumsum(draw.normal(0, 0.05, (n, length)), axis=1)) * draw.lognormal(0, 1, (n, 1))
    x = np.stack([*(close * np.exp(draw.normal(0, 0.01, (n, length))) for _ in range(3)), close, close,
                  draw.lognormal(14, 1.5, (n, length))], axis=-1)
    x[draw.random((n, length)) < 0.1] = np.nan
    x[1, -1], x[2], x[3, :, 5] = np.nan, np.nan, 0
    x[4, 0, 0], x[5, -1, 3] = 1e6, 0                        # wrong prices
    return x.astype(np.float32)


def slow(x: np.ndarray) -> np.ndarray:
    out = np.full(x.shape, np.nan)
    for i, window in enumerate(x.astype(float)):
        closes, volumes = [row[3] for row in window if np.isfinite(row[3])], [row[5] for row in window if np.isfinite(row[5])]
        for step, row in enumerate(window):
            for k, value in enumerate(row):
                unit = (sum(volumes) / len(volumes) if volumes else 0) if k == 5 else closes[-1] if closes else 0
                if np.isfinite(value) and unit > 0:
                    out[i, step, k] = min(max(value / unit - 1, -3), 3)
    return out


def slow_zscore(x: np.ndarray) -> np.ndarray:
    x = slow(x)
    for step in range(x.shape[1]):
        for k in range(x.shape[2]):
            known = np.isfinite(x[:, step, k])
            value = x[known, step, k]
            std = value.std() if len(value) else 0
            x[known, step, k] = np.clip((value - value.mean()) / std, -3, 3) if std > 1e-6 else 0
    return x


# ---- transforms ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("made, loop", [(price_volume, slow), (price_volume_zscore, slow_zscore)])
def test_a_transform_is_its_loop(made, loop):
    x = bars()
    given = torch.from_numpy(x.copy())
    found = made(given).numpy()
    np.testing.assert_allclose(found, loop(x), atol=2e-5)
    assert np.array_equal(given.numpy(), x, equal_nan=True), "the input was changed"
    assert np.isnan(found[2]).all() and np.isnan(found[3, :, 5]).all() and np.isfinite(found[1, -2]).all()
    assert np.isnan(found[5, :, :5]).all(), "prices over a close of 0"
    assert np.nanmax(np.abs(found)) == 3
    steps = x[:, -1, 3] > 0
    assert (found[steps, -1, 3] == 0).all(), "the last close is the unit"
    order = torch.randperm(len(x))
    torch.testing.assert_close(made(given[order]), made(given)[order], rtol=0, atol=1e-5, equal_nan=True)


def test_adjusted_bars_give_what_raw_ones_give():
    """A factor that is the same on all days changes nothing."""
    x = bars()
    factor = np.float32(2.0) ** np.arange(len(x))[:, None]
    adjusted = x.copy()
    adjusted[..., :5] *= factor[..., None]
    adjusted[..., 5] /= factor
    torch.testing.assert_close(price_volume(torch.from_numpy(adjusted)), price_volume(torch.from_numpy(x)), rtol=0, atol=1e-5,
                               equal_nan=True)


def test_one_stock_is_its_own_mean():
    found = price_volume_zscore(torch.from_numpy(bars()[:1]))
    assert (found[torch.isfinite(found)] == 0).all() and torch.isfinite(found).any()


def test_names_and_widths():
    assert window_transform(None) is None and window_transform("price_volume", PRICE_VOLUME) is price_volume
    for made in WINDOW_TRANSFORMS.values():
        with pytest.raises(ShapeError, match="n, l, 6"):
            made(torch.zeros(3, 4, 5))
        assert pickle.loads(pickle.dumps(made)) is made
    with pytest.raises(ConfigError, match="choose one of"):
        window_transform("zscore")
    with pytest.raises(ConfigError, match="use PriceVolume"):
        window_transform("price_volume", PRICE_VOLUME[::-1])
    faults = []
    check_dataset_values(lambda *fault: faults.append(fault), "task.dataset.kwargs", {"window_transform": "zscore"}, {})
    assert len(faults) == 1 and faults[0][0] == "task.dataset.kwargs.window_transform"


def test_a_window_knows_nothing_later():
    draw = np.random.default_rng(3)
    panel = small_panel(days=30, features=6, window=5)
    block = panel.blocks["stock"]
    block.values[:-1] = np.exp(draw.normal(2, 0.3, block.values[:-1].shape))
    block.transform = price_volume_zscore
    later = copy.deepcopy(panel)
    rows = panel.rows[21:]
    later.blocks["stock"].values[rows[rows >= 0]] *= 5
    for day in (4, 20, 21):
        one, other = (DaySampler(made).batch(day).x for made in (panel, later))
        assert torch.equal(one.nan_to_num(9), other.nan_to_num(9)) == (day < 21)


# ---- handler and dataset ------------------------------------------------------------------------------------------------------
def test_the_handler_gives_the_fields_as_qlib_does(small_market):
    handler = PriceVolume(instruments="all", start_time=SPAN[0], end_time=SPAN[1], label={"price": "close", "horizons": [5, 10]})
    frame = handler.fetch(col_set="feature")
    expected = D.features(D.instruments("all"), [f"${name.lower()}" for name in PRICE_VOLUME], *SPAN).swaplevel().sort_index()
    assert list(frame.columns) == list(PRICE_VOLUME) and frame.index.equals(expected.index)
    np.testing.assert_array_equal(frame.to_numpy(), expected.to_numpy(np.float32))
    assert list(handler.fetch(col_set="label").columns) == ["LABEL5D", "LABEL10D"]
    assert frame.isna().any().all(), "nobody was suspended: nothing was shown"


def test_windows_are_cut_and_transformed_also_from_a_pack(small_market, tmp_path):
    aux = {"cap": {"class": "MarketCapLoader", **MODULE}, "industry": {"class": "IndustryLoader", **MODULE}}
    dataset = PanelDatasetH(HANDLER, SEGMENTS, window=60, aux=aux, window_transform="price_volume_zscore")
    panel = dataset.panel()
    assert panel.meta["window_transform"] == "price_volume_zscore" and panel.stock_aux["cap"].shape == (len(panel.label), 1)
    pack_panel(panel, tmp_path / "panel.npz")
    day = panel.position("2016-03-01")
    batch, again = (DaySampler(made).batch(day) for made in (panel, load_panel(tmp_path / "panel.npz")))
    values = panel.blocks["stock"].values[panel.window_rows(day, batch.stocks, 60)]
    np.testing.assert_allclose(batch.x.numpy(), slow_zscore(values), atol=1e-4)
    assert torch.equal(batch.x.nan_to_num(9), again.x.nan_to_num(9)) and torch.equal(batch.aux["cap"], again.aux["cap"])
    assert 0.9 < np.isfinite(batch.x).double().mean() < 1


def test_a_dataset_refuses_before_it_loads(small_market, monkeypatch):
    monkeypatch.setattr(PriceVolume, "setup_data", lambda *_, **__: pytest.fail("data were loaded"))
    for options, said in (({"window_transform": "zscore"}, "choose one of"),
                          ({"window_transform": "price_volume", "handler": {**HANDLER, "class": "Alpha158", "module_path":
                                                                            "qlib_ext.data.handler"}}, "use PriceVolume"),
                          ({"aux": {"cap": {"class": "MarketCapLoader", **MODULE, "kwargs": {"by": "size"}}}}, "by='size'")):
        with pytest.raises(ConfigError, match=said):
            PanelDatasetH(**{"handler": HANDLER, "segments": SEGMENTS, **options})


# ---- groups -------------------------------------------------------------------------------------------------------------------
def test_market_values_are_those_of_the_store(small_market, monkeypatch):
    days = np.array(D.calendar(freq="day"), "datetime64[D]")[[300, 40, 310]]
    codes = [*sorted(D.list_instruments(D.instruments("all"), as_list=True))[::5], "SH699999"]
    frame = D.features(codes[:-1], ["$float_cap", "$industry", "$close*$volume"], *SPAN).unstack(level=0)
    frame = frame.reindex(pd.DatetimeIndex(D.calendar(freq="day")))
    values, names = MarketCapLoader().load(days, codes)
    assert values.shape == (3, len(codes), 1) and values.dtype == np.float32 and names == ["log_cap"]
    np.testing.assert_allclose(values[:, :-1, 0], np.log(frame["$float_cap"].ffill().loc[days, codes[:-1]]), rtol=1e-6)
    assert np.isnan(values[:, -1]).all() and np.isfinite(values).mean() > 0.8
    np.testing.assert_array_equal(IndustryLoader().load(days, codes)[0][:, :-1, 0], frame["$industry"].ffill().loc[days, codes[:-1]] + 1)
    traded = np.log(frame["$close*$volume"].rolling(60, min_periods=20).mean().loc[days, codes[:-1]])
    np.testing.assert_allclose(MarketCapLoader("amount").load(days, codes)[0][:, :-1, 0], traded, rtol=1e-5)
    said, has_values = [], module.has_values
    monkeypatch.setattr(module.logger, "warning", said.append)
    monkeypatch.setattr(module, "has_values", lambda folder, code, field: "cap" not in field and has_values(folder, code, field))
    np.testing.assert_allclose(MarketCapLoader().load(days, codes)[0][:, :-1, 0], traded, rtol=1e-5)
    assert len(said) == 1 and "no market values" in said[0]
    with pytest.raises(DataError, match="no stock of the store has float_cap"):
        MarketCapLoader("float_cap").check()


def test_market_values_know_nothing_later(small_market):
    days = np.array(D.calendar(freq="day"), "datetime64[D]")
    codes = sorted(D.list_instruments(D.instruments("all"), as_list=True))[:9]
    for loader in (MarketCapLoader(), MarketCapLoader("amount"), IndustryLoader()):
        together, alone = loader.load(days, codes)[0], loader.load(days[:200], codes)[0]
        np.testing.assert_array_equal(together[:200], alone)


def test_a_suspended_stock_keeps_its_market_value(small_market):
    """Also in a store whose market values are NaN on such days."""
    code = sorted(D.list_instruments(D.instruments("all"), as_list=True))[0]
    reader = FieldReader({code: []}, None, None, ["float_cap"])
    first, values = reader.content[code]["float_cap"]
    holed = values.copy()
    holed[40:43] = np.nan
    reader.content[code]["float_cap"] = first, holed
    found = MarketCapLoader("float_cap")._values(reader, [code])[first + 39:first + 44, 0]
    np.testing.assert_allclose(found, np.log(values[[39, 39, 39, 39, 43]]))


def test_group_loaders_refuse(small_market):
    with pytest.raises(ConfigError, match="choose auto or one of"):
        MarketCapLoader("size")
    with pytest.raises(DataError, match="none of 1 instruments has float_cap"):
        MarketCapLoader("float_cap").load(["2016-03-01"], ["SH699999"])
