"""Array processors: the universe, work in place, layouts of frames, settings, exposures read from a store."""

import pickle

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.data.handler import check_transform_proc
from qlib.data import D
from qlib.data.dataset.handler import DataHandlerLP
from qlib.data.dataset.loader import StaticDataLoader

from qlib_ext.data import processor as P
from qlib_ext.data import threads
from qlib_ext.data.cross_section import store_values
from qlib_ext.data.transform import cs_neutralize, cs_winsorize
from qlib_ext.errors import ConfigError, DataError, NotFittedError
from tiny_market_store import start_qlib, write_store

DAYS = pd.bdate_range("2021-01-04", periods=10)
STOCKS = [f"SH{600000 + i}" for i in range(40)]
SPAN = dict(fit_start_time="2021-01-06", fit_end_time="2021-01-12")
FITTED = ("RobustZScoreNorm", "ZScoreNorm", "MinMaxNorm")
DAILY = ("ProcessInf", "CSZFillna", "CSRankNorm", "CSZScoreNorm", "CSWinsorize")
# the small universe: the first 15 stocks, and five more that leave on the fifth day
MEMBER = np.array([[stock < 15 or stock < 20 and day < 5 for stock in range(40)] for day in range(10)])


def make(name, **options):
    return getattr(P, name)(**{**(SPAN if name in FITTED else {}), **options})


def all_processors(**options):
    return [make(name, **options) for name in (*FITTED, *DAILY, "Fillna", "TanhProcess")] + [
        P.CSWinsorize(method="mad", limits=1.5, **options), P.CSWinsorize(method="std", limits=1, **options),
        P.CSZScoreNorm(method="robust", **options),
        P.CSNeutralize(exposures=["$size", ("feature", "F0")], weight="$cap", **options)]


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("store"), np.random.default_rng(3)
    bars = {stock: {"industry": np.full(10, number % 4 + 1.0), "size": generator.normal(size=10),
                    "cap": generator.random(10) + 0.1} for number, stock in enumerate(STOCKS)}
    bars[STOCKS[7]]["industry"][3] = np.nan
    bars[STOCKS[8]]["size"][2:5] = np.nan
    bars[STOCKS[9]]["cap"][:] = np.nan
    small = [(s, "2021-01-04", "2021-01-31" if n < 15 else str(DAYS[4].date())) for n, s in enumerate(STOCKS[:20])]
    late = [(stock, "2021-01-14", "2021-01-31") for stock in STOCKS]
    write_store(folder, DAYS, bars, {"all": [(s, "2021-01-01", "2021-12-31") for s in STOCKS], "small": small, "late": late})
    start_qlib(folder)


def random_frame(dtype=np.float32, seed=0, width=20):
    generator = np.random.default_rng(seed)
    index = pd.MultiIndex.from_product([DAYS, STOCKS], names=["datetime", "instrument"])
    names = [("feature", f"F{i}") for i in range(width)] + [("label", "LABEL0")]
    values = generator.normal(size=(400, width + 1))
    values[generator.random(values.shape) < 0.1] = np.nan
    values[generator.random(values.shape) < 0.01] = np.inf
    values[:, 0] = generator.normal(size=400)
    return pd.DataFrame(values.astype(dtype), index, pd.MultiIndex.from_tuples(names))


def fitted(processor, frame):
    processor.fit(frame)
    return processor(frame)


def member_of(frame):
    day, stock = frame.index.codes
    return MEMBER[DAYS.get_indexer(frame.index.levels[0])[day], [STOCKS.index(code) for code in frame.index.levels[1][stock]]]


@pytest.mark.parametrize("number", range(len(all_processors())))
def test_a_universe_makes_the_numbers_and_others_are_treated_by_them(number):
    """Members get what they get where nobody else is there; others do not move them, yet change themselves."""
    frame = random_frame()
    processor, alone, free = (all_processors(**options)[number] for options in ({"universe": "small"}, {}, {}))
    member, result = member_of(frame), fitted(processor, frame)
    pd.testing.assert_frame_equal(result[member], fitted(alone, frame[member]), rtol=1e-5, atol=1e-6)
    if not isinstance(processor, (P.Fillna, P.TanhProcess)):
        moved = frame.copy()
        moved[~member] = moved[~member] * 3 + 5
        moved[("feature", "F0")] = frame[("feature", "F0")]
        pd.testing.assert_frame_equal(fitted(all_processors(universe="small")[number], moved)[member], result[member])
    outside, before = result[~member].to_numpy(), frame[~member].to_numpy()
    if isinstance(processor, (P.Fillna, P.TanhProcess)):
        pd.testing.assert_frame_equal(result[~member], frame[~member])
    else:
        assert (np.isfinite(outside) & (outside != before)).any()
    assert not result.equals(fitted(free, frame))


def test_outsiders_are_scaled_with_the_members_numbers():
    frame, member = random_frame(np.float64), member_of(random_frame())
    inside = frame.mask(~np.repeat(member[:, None], frame.shape[1], 1))
    finite = inside.replace([np.inf, -np.inf], np.nan).groupby("datetime")
    by_mean = frame.fillna(inside.groupby("datetime").transform("mean"))
    pd.testing.assert_frame_equal(P.CSZFillna(universe="small")(frame), by_mean)
    infinite = np.isinf(frame)
    pd.testing.assert_frame_equal(P.ProcessInf(universe="small")(frame), frame.mask(infinite, finite.transform("mean")))
    assert (infinite[~member].any(axis=None)) and infinite[member].any(axis=None)


def test_rank_of_an_outsider_is_its_place_among_the_members():
    index = pd.MultiIndex.from_product([DAYS[:1], STOCKS[10:24]], names=["datetime", "instrument"])
    values = np.array([1, 2, 2, 4, np.nan, np.inf, 6, 6, 6, 10, 0, 2, 5, np.nan])  # members: the first ten
    frame = pd.DataFrame(values, index, pd.MultiIndex.from_tuples([("feature", "F")]))
    expected = np.array([1, 2.5, 2.5, 4, np.nan, 9, 6, 6, 6, 8, 0.5, 2.5, 4.5, np.nan])
    result = P.CSRankNorm(universe="small")(frame).to_numpy()[:, 0]
    np.testing.assert_allclose(result, (expected / 9 - 0.5) * 3.46, rtol=1e-12)


def test_dropna_label_drops_outsiders_too():
    frame = random_frame()
    expected = frame[frame["label"].notna().to_numpy().all(axis=1) & member_of(frame)]
    pd.testing.assert_frame_equal(P.DropnaLabel(universe="small")(frame), expected)
    assert not P.DropnaLabel().is_for_infer() and P.DropnaLabel().readonly()


@pytest.mark.parametrize("number", range(len(all_processors())))
def test_arrays_in_place_on_any_number_of_threads(number, monkeypatch):
    """`apply_arrays` writes into the arrays it is given, into no other group, and gives what the frame call gives."""
    frame = random_frame()
    names = {"feature": frame["feature"].columns.tolist(), "label": ["LABEL0"]}
    for count in ("1", "3"):
        monkeypatch.setenv("QLIB_EXT_THREADS", count)
        processor, other = (all_processors(fields_group="feature")[number] for _ in range(2))
        expected = fitted(other, frame)
        arrays = {group: np.ascontiguousarray(frame[group].to_numpy(copy=True)) for group in ("feature", "label")}
        kept, label = dict(arrays), arrays["label"].copy()
        processor.fit_arrays(arrays, frame.index, names)
        processor.apply_arrays(arrays, frame.index, names)
        assert all(arrays[group] is kept[group] for group in kept) and processor.groups(["feature", "label"]) == ["feature"]
        np.testing.assert_array_equal(arrays["label"], label)
        np.testing.assert_array_equal(arrays["feature"], expected["feature"].to_numpy())


@pytest.mark.parametrize("number", range(len(all_processors())))
def test_rows_in_any_order_and_frames_of_any_layout(number):
    frame = random_frame()
    expected = fitted(all_processors(fields_group="feature")[number], frame)
    mixed = frame.iloc[np.random.default_rng(1).permutation(len(frame))]
    pieces = frame.copy()
    pieces.isetitem(3, frame.iloc[:, 3].to_numpy(copy=True))
    pieces = pieces.iloc[:, [*range(9), 20, *range(9, 20)]]
    row_major = pd.DataFrame(np.ascontiguousarray(frame.to_numpy()), frame.index, frame.columns, copy=False)
    swapped = frame.swaplevel().sort_index()
    results = [fitted(all_processors(fields_group="feature")[number], one) for one in (mixed, pieces, row_major, swapped)]
    assert [result.index.equals(one.index) for result, one in zip(results, (mixed, pieces, row_major, swapped))] == [True] * 4
    results[1], results[3] = results[1][frame.columns], results[3].swaplevel()
    for result in results:
        pd.testing.assert_frame_equal(result.sort_index(), expected, rtol=1e-5, atol=1e-6)
    shared = np.shares_memory(results[2][("label", "LABEL0")].to_numpy(), row_major[("label", "LABEL0")].to_numpy())
    assert shared and expected.dtypes.eq(np.float32).all()
    assert len(fitted(all_processors(fields_group="feature")[3], frame[:0])) == 0


def test_learned_numbers_come_from_the_fit_span_and_members_and_survive_a_pickle():
    frame = random_frame()
    inside = frame.loc["2021-01-06":"2021-01-12"]
    for name in FITTED:
        processor = make(name, fields_group="feature", universe="small")
        with pytest.raises(NotFittedError, match=name):
            processor(frame)
        processor.fit(frame)
        expected = make(name, fields_group="feature")
        expected.fit(inside[member_of(inside)])
        learned = [key for key in vars(processor) if key.endswith(("_train", "_val"))]
        assert len(learned) == 2
        for key in learned:
            np.testing.assert_array_equal(getattr(processor, key), getattr(expected, key))
        assert processor.cols.tolist() == frame.columns[:20].tolist()
        pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(processor))(frame), processor(frame))
        some = frame[[("feature", "F5"), ("feature", "F2"), ("label", "LABEL0")]]  # by name, whatever their order
        pd.testing.assert_frame_equal(processor(some), processor(frame)[some.columns])
        with pytest.raises(DataError, match="NEW"):
            processor(frame.rename(columns={"F3": "NEW"}))
        processor.config(fit_start_time="2021-01-04", dump_all=False)
        assert processor.fit_start_time == "2021-01-04"
        with pytest.raises(DataError, match="'late'"):
            make(name, universe="late").fit(frame)
        with pytest.raises(DataError, match="no row between 2031"):
            make(name, fit_start_time="2031-01-01", fit_end_time=None).fit(frame)


def test_wrong_settings():
    frame = random_frame()
    for processor in (*all_processors(fields_group="features"), P.DropnaLabel("features")):
        with pytest.raises(ConfigError, match="feature.*label"):
            fitted(processor, frame)
    for processor in (*all_processors(universe="csi7"), P.DropnaLabel(universe="csi7")):
        with pytest.raises(ConfigError, match="csi7.*small"):
            fitted(processor, frame)
    for make_wrong in (lambda: P.CSWinsorize(method="rank"), lambda: P.CSWinsorize(limits=0.5),
                       lambda: P.CSWinsorize(limits=-0.1), lambda: P.CSWinsorize(method="mad", limits=0),
                       lambda: P.CSWinsorize(method="std", limits="3"),
                       lambda: P.CSWinsorize(method="std", limits=np.nan), lambda: P.Fillna(fill_value="0"),
                       lambda: P.CSNeutralize(exposures="$size"), lambda: P.CSNeutralize(exposures=[3]),
                       lambda: P.CSNeutralize(industry=3), lambda: P.CSNeutralize(weight=1.0)):
        with pytest.raises(ConfigError):
            make_wrong()


def test_in_a_handler_by_name_with_the_fit_span_injected():
    frame = random_frame()
    steps = [{"class": name, "module_path": "qlib_ext.data.processor", "kwargs": {"fields_group": "feature"}}
             for name in ("ProcessInf", "CSWinsorize", *FITTED, "Fillna")]
    steps = check_transform_proc(steps, *SPAN.values())
    assert [set(SPAN) <= set(step["kwargs"]) for step in steps] == [False, False, True, True, True, False]
    handler = DataHandlerLP(data_loader=StaticDataLoader(frame), infer_processors=steps)
    expected = frame
    for step in steps:
        expected = fitted(getattr(P, step["class"])(**step["kwargs"]), expected)
    pd.testing.assert_frame_equal(handler.fetch(data_key="infer", col_set="__raw"), expected)
    assert not expected["feature"].isna().any(axis=None)


def test_tanh_leaves_labels_alone_unless_told():
    frame = random_frame()
    assert P.TanhProcess()(frame)["label"].equals(frame["label"])
    np.testing.assert_array_equal(P.TanhProcess("label")(frame)["label"].to_numpy(), np.tanh(frame["label"].to_numpy() - 1))


@pytest.mark.parametrize("universe", (None, "small"))
def test_neutralize_is_the_pure_one_with_exposures_from_store_and_frame(universe):
    frame = random_frame(np.float64)
    stored = D.features(STOCKS, ["$industry", "$size", "Power($cap, 0.5)"], freq="day")
    stored = stored.swaplevel().reindex(frame.index).to_numpy(np.float64)
    assert np.isnan(stored).sum(axis=0).tolist() == [1, 3, 10]
    exposures = np.c_[stored[:, 1], frame[("feature", "F0")].to_numpy()]
    industry = np.where(np.isnan(stored[:, 0]), -1, np.nan_to_num(stored[:, 0])).astype(int)
    expected = cs_neutralize(frame.iloc[:, 1:].to_numpy(), frame.index.codes[0], exposures, industry, stored[:, 2],
                             member_of(frame) if universe else None)
    processor = P.CSNeutralize(exposures=["$size", ["feature", "F0"]], weight="Power($cap, 0.5)", universe=universe)
    order = np.random.default_rng(0).permutation(len(frame))
    np.testing.assert_allclose(processor(frame.iloc[order]).iloc[:, 1:].to_numpy(), expected[order], rtol=1e-9, atol=1e-9)
    only = P.CSNeutralize("label", exposures=["$size", ("feature", "F0")], weight="Power($cap, 0.5)", universe=universe)(frame)
    np.testing.assert_allclose(only["label"].to_numpy()[:, 0], expected[:, -1], rtol=1e-9, atol=1e-9)
    pd.testing.assert_frame_equal(only["feature"], frame["feature"])
    assert np.isfinite(expected).any(axis=1).sum() > 350
    some = (frame.index.codes[0] != 5) & (frame.index.codes[1] != 6)  # the store has a day and a stock that the frame has not
    gap = frame[some].set_axis(frame.index[some].remove_unused_levels())
    np.testing.assert_array_equal(store_values(gap.index, ["$size"])["$size"], stored[some, 1])
    assert len(store_values(gap.index[:0], ["$size"])["$size"]) == 0


@pytest.mark.parametrize("options, error, said", [
    ({"industry": "$nothing"}, DataError, "nothing"),
    ({"exposures": ["Ref($size, -1)"]}, ConfigError, "looks 1 trading days ahead"),
    ({"weight": "Power($cap"}, ConfigError, "cap"), ({"exposures": [("feature", "F99")]}, ConfigError, "F99"),
    ({"exposures": [("features", "F0")]}, ConfigError, "features")])
def test_neutralize_names_what_it_cannot_read(options, error, said):
    with pytest.raises(error, match=said):
        P.CSNeutralize(**options)(random_frame())


def test_winsorize_is_the_pure_one():
    frame = random_frame()
    for method, limits in (("quantile", 0.1), ("mad", 1.0), ("std", 1.0)):
        result = P.CSWinsorize("feature", "small", method, limits)(frame)["feature"].to_numpy()
        expected = cs_winsorize(frame["feature"].to_numpy(), frame.index.codes[0], method, limits, member_of(frame))
        np.testing.assert_array_equal(result, expected)


def test_threads(monkeypatch):
    assert threads.run(lambda x: x * x, range(5)) == [0, 1, 4, 9, 16] and threads.run(abs, []) == []
    for said in ("1", "3"):
        monkeypatch.setenv("QLIB_EXT_THREADS", said)
        assert threads.thread_count() == int(said)
        with pytest.raises(ZeroDivisionError):
            threads.run(lambda x: 1 / x, [1, 0, 2])
    for said in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("QLIB_EXT_THREADS", said)
        with pytest.raises(ConfigError, match="QLIB_EXT_THREADS"):
            threads.thread_count()
    monkeypatch.setenv("QLIB_EXT_THREADS", "")
    assert threads.thread_count() >= 1
