"""The market-state loader on tiny stores: values, fit span, failures that say what to do."""
import logging
import pickle

import numpy as np
import pandas as pd
import pytest

from qlib_ext.data.loader import MarketStateLoader
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.market_state import market_state, market_state_names
from tiny_market_store import start_qlib, write_store

DAYS = pd.bdate_range("2019-01-01", periods=300)
FIT = dict(fit_start_time="2019-04-01", fit_end_time="2019-12-31")
TWO = ("SH000300", "SH000905")


def index_bars(seed, length=300):
    generator = np.random.default_rng(seed)
    close = 3000 * np.exp(np.cumsum(generator.normal(0, 0.01, length)))
    return {"close": close.astype("f4"), "amount": np.exp(generator.normal(25, 0.3, length)).astype("f4"),
            "volume": np.exp(generator.normal(20, 0.5, length)).astype("f4")}


def make_store(folder, bars=None, calendar=DAYS, index_file=True):
    bars = {code: index_bars(i, len(calendar)) for i, code in enumerate(TWO)} if bars is None else bars
    universes = {"all": [("SH600000", "2019-01-01", "2030-01-01")]}
    if index_file:
        universes["index"] = [(code, "2019-01-01", "2030-01-01") for code in bars]
    write_store(folder, calendar, bars, universes)
    start_qlib(folder)
    return bars


def by_hand(bars, activity="amount"):
    """Raw columns of both indices, through pandas for the normalisation."""
    parts = [pd.DataFrame(market_state(bar["close"], bar[activity]), DAYS, market_state_names(code))
             for code, bar in bars.items()]
    return pd.concat(parts, axis=1)


def normalised(raw, clip=3.0):
    fit = raw.loc[FIT["fit_start_time"]:FIT["fit_end_time"]]
    median = fit.median()
    return ((raw - median) / (1.4826 * (fit - median).abs().median())).clip(-clip, clip).fillna(0.0)


def test_values_names_and_normalisation(tmp_path):
    bars = make_store(tmp_path)
    values, names = MarketStateLoader(TWO, **FIT).load(DAYS.to_numpy().astype("datetime64[D]"))
    raw = by_hand(bars)
    assert values.dtype == np.float32 and values.shape == (300, 42) and names == list(raw.columns)
    assert names[0] == "SH000300:return_1" and names[21] == "SH000905:return_1"
    np.testing.assert_allclose(values, normalised(raw), atol=2e-6)
    assert np.abs(values).max() == 3.0 and np.isfinite(values).all()
    assert (values[:60, names.index("SH000300:return_std_60")] == 0).all()
    tight, _ = MarketStateLoader(TWO, clip=1.0, **FIT).load(DAYS)
    np.testing.assert_allclose(tight, normalised(raw, 1.0), atol=2e-6)
    free, _ = MarketStateLoader(TWO, clip=None, **FIT).load(DAYS)
    assert np.abs(free).max() > 3.0


def test_raw_values_keep_nan_and_order_of_indices_is_that_of_the_argument(tmp_path):
    bars = make_store(tmp_path)
    values, names = MarketStateLoader(TWO[::-1], normalize=False).load(DAYS)
    np.testing.assert_allclose(values, by_hand(bars)[names], rtol=1e-5, atol=1e-7)
    assert names[0] == "SH000905:return_1" and np.isnan(values[0]).all()


def test_a_day_has_the_same_values_whatever_other_days_are_asked(tmp_path):
    make_store(tmp_path)
    loader = MarketStateLoader(TWO, **FIT)
    whole, _ = loader.load(DAYS)
    some = [250, 61, 299, 61]
    np.testing.assert_array_equal(loader.load(DAYS[some])[0], whole[some])
    np.testing.assert_array_equal(loader.load(DAYS[200:201])[0], whole[200:201])
    assert loader.load(DAYS[:0])[0].shape == (0, 42)
    again = pickle.loads(pickle.dumps(loader))
    np.testing.assert_array_equal(again.load(DAYS)[0], whole)


def test_later_bars_change_nothing_after_the_fit_span(tmp_path):
    bars = make_store(tmp_path / "first")
    loader = MarketStateLoader(TWO, **FIT)
    last = int(DAYS.searchsorted(pd.Timestamp(FIT["fit_end_time"])))
    whole, _ = loader.load(DAYS)
    corrupt = {code: {field: np.r_[v[:last + 1], 1 + 5 * v[last + 1:]] for field, v in one.items()} for code, one in bars.items()}
    make_store(tmp_path / "second", corrupt)
    changed, _ = loader.load(DAYS)
    np.testing.assert_array_equal(changed[:last + 1], whole[:last + 1])
    assert not np.array_equal(changed[last + 1], whole[last + 1])
    # the same check notices statistics fitted on more than the fit span
    leaking = MarketStateLoader(TWO, fit_start_time="2019-04-01", fit_end_time=DAYS[-1])
    changed, _ = leaking.load(DAYS)
    make_store(tmp_path / "third", bars)
    assert not np.array_equal(changed[:last + 1], leaking.load(DAYS)[0][:last + 1])


@pytest.mark.parametrize("absence", ["no file", "all nan"])
def test_volume_stands_in_for_amount_with_a_warning(tmp_path, caplog, absence):
    bars = {code: index_bars(i) for i, code in enumerate(TWO)}
    if absence == "no file":
        del bars["SH000905"]["amount"]
    else:
        bars["SH000905"]["amount"] = np.full(300, np.nan)
    make_store(tmp_path, bars)
    with caplog.at_level(logging.WARNING):
        values, names = MarketStateLoader(TWO, normalize=False).load(DAYS[100:])
    warned = [record.getMessage() for record in caplog.records if "$volume" in record.getMessage()]
    assert len(warned) == 1 and "SH000905" in warned[0] and "SH000300" not in warned[0]
    with_volume = market_state(bars["SH000905"]["close"], bars["SH000905"]["volume"])
    np.testing.assert_allclose(values[:, 21:], with_volume[100:], rtol=1e-5, atol=1e-7)


def test_full_amount_gives_no_warning_and_unknown_days_give_one(tmp_path, caplog):
    make_store(tmp_path)
    with caplog.at_level(logging.WARNING):
        MarketStateLoader(TWO, **FIT).load(DAYS[60:])
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        MarketStateLoader(TWO, **FIT).load(DAYS[50:])
    assert "10 of 250 days" in caplog.records[0].getMessage()


def test_short_or_late_index_is_named(tmp_path):
    bars = {code: index_bars(i) for i, code in enumerate(TWO)}
    bars["SH000905"]["close"][:280] = np.nan
    make_store(tmp_path, bars)
    with pytest.raises(DataError, match="SH000905:return_1.*another span"):
        MarketStateLoader(TWO, **FIT).load(DAYS)


@pytest.mark.parametrize("index_file", [True, False])
def test_missing_index_names_those_of_the_store(tmp_path, index_file):
    make_store(tmp_path, index_file=index_file)
    with pytest.raises(DataError, match=r"\['SH000852'\].*\['SH000300', 'SH000905'\]"):
        MarketStateLoader(**FIT).load(DAYS)


def test_days_outside_the_calendar(tmp_path):
    make_store(tmp_path)
    with pytest.raises(DataError, match="2 of 3 days.*2019-01-05"):
        MarketStateLoader(TWO, **FIT).load(np.array(["2031-01-01", "2019-01-05", "2019-01-07"], dtype="datetime64[D]"))


@pytest.mark.parametrize("keywords, said", [
    ({}, "fit_start_time"), ({"fit_start_time": "2019-01-01"}, "fit_end_time"), ({"path": "x.parquet"}, "normalize"),
    ({"path": "x.parquet", "normalize": True}, "fit_start_time"), ({"instruments": [], "normalize": False}, "instruments"),
    ({"instruments": ["SH000300"] * 2, "normalize": False}, "different"), ({"clip": 0, **FIT}, "clip"),
    ({"fit_start_time": "2020-01-01", "fit_end_time": "2019-01-01"}, "empty"),
])
def test_wrong_settings(keywords, said):
    with pytest.raises(ConfigError, match=said):
        MarketStateLoader(**keywords)


@pytest.fixture
def ready(tmp_path):
    table = pd.DataFrame(np.random.default_rng(9).normal(size=(50, 3)), DAYS[:50], ["b", "a", "c"])

    def write(frame, name="market.parquet"):
        frame.to_parquet(tmp_path / name)
        return str(tmp_path / name)

    return table, write


@pytest.mark.parametrize("where", ["index", "date", "datetime", "text"])
def test_ready_columns_are_taken_as_they_are(ready, where):
    table, write = ready
    frame = table.sample(frac=1, random_state=0)
    if where == "text":
        frame = frame.assign(date=frame.index.strftime("%Y-%m-%d")).reset_index(drop=True)
    elif where != "index":
        frame = frame.rename_axis(where).reset_index()
    frame = pd.concat([frame, frame[3:5]])  # exact repetitions are harmless
    values, names = MarketStateLoader(path=write(frame), normalize=False).load(DAYS[10:20][::-1])
    assert names == ["b", "a", "c"] and values.dtype == np.float32
    np.testing.assert_array_equal(values, table.iloc[10:20][::-1].to_numpy(np.float32))


def test_ready_columns_can_be_normalised(ready):
    table, write = ready
    table.iloc[30, 1] = np.nan
    loader = MarketStateLoader(path=write(table), normalize=True, fit_start_time=DAYS[5], fit_end_time=DAYS[24])
    median = table[5:25].median()
    expected = ((table - median) / (1.4826 * (table[5:25] - median).abs().median())).clip(-3, 3).fillna(0)
    np.testing.assert_allclose(loader.load(DAYS[:50])[0], expected, atol=1e-6)


def test_ready_file_faults(ready, tmp_path):
    table, write = ready
    load = dict(normalize=False)
    with pytest.raises(DataError, match="no file"):
        MarketStateLoader(path=str(tmp_path / "absent.parquet"), **load).load(DAYS[:2])
    with pytest.raises(DataError, match=f"3 of 10 days are absent from the file market.parquet.*first is {DAYS[50]:%Y-%m-%d}"):
        MarketStateLoader(path=write(table), **load).load(DAYS[43:53])
    for frame in (table.reset_index(drop=True), table.set_index("a"), table.rename(index={DAYS[3]: pd.NaT}), table[:0]):
        with pytest.raises(DataError, match="needs a day in every row"):
            MarketStateLoader(path=write(frame), **load).load(DAYS[:2])
    with pytest.raises(DataError, match="numeric.*'name'"):
        MarketStateLoader(path=write(table.assign(name="x")), **load).load(DAYS[:2])
    with pytest.raises(DataError, match=f"different rows for 1 days, the first is {DAYS[7]:%Y-%m-%d}"):
        MarketStateLoader(path=write(pd.concat([table, table[7:8] + 1])), **load).load(DAYS[:2])
    holed = table.copy()
    holed.iloc[4, 2] = np.nan
    loader = MarketStateLoader(path=write(holed), **load)
    assert loader.load(DAYS[5:8])[0].shape == (3, 3)
    with pytest.raises(DataError, match=f"'c' on {DAYS[4]:%Y-%m-%d}"):
        loader.load(DAYS[:8])


def test_an_index_without_amount_and_volume_is_refused(tmp_path):
    bars = {code: index_bars(i) for i, code in enumerate(TWO)}
    bars[TWO[1]] = {"close": bars[TWO[1]]["close"]}
    make_store(tmp_path, bars)
    with pytest.raises(DataError, match=r"\['SH000905'\] have neither \$amount nor \$volume"):
        MarketStateLoader(TWO, **FIT).check()
    MarketStateLoader(TWO[:1], **FIT).check()
