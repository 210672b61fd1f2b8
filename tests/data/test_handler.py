"""Our handlers against Qlib's own: the same tables, less memory, and raw labels that survive `drop_raw`."""
import pandas as pd
import pytest
from qlib.data.dataset.handler import DataHandlerLP

from qlib_ext.data import handler as ours
from qlib_ext.data.processor import DropExtremeLabel
from small_market import LABEL, FiveFeatures, LeanFiveFeatures

KEYS = (DataHandlerLP.DK_I, DataHandlerLP.DK_L, DataHandlerLP.DK_R)
SPAN = {"instruments": "csi500", "start_time": "2015-06-01", "end_time": "2016-03-31"}
INFER = [{"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature", "fit_start_time": "2015-06-01",
                                                  "fit_end_time": "2015-12-31", "clip_outlier": True}},
         {"class": "Fillna", "kwargs": {"fields_group": "feature"}}]
LEARN = {"none": [], "dropna": [{"class": "DropnaLabel"}],
         "two": [{"class": "DropnaLabel"}, {"class": "CSRankNorm", "kwargs": {"fields_group": "label"}}],
         "feature": [{"class": "DropnaProcessor", "kwargs": {"fields_group": "feature"}}]}


@pytest.mark.usefixtures("small_market")
@pytest.mark.parametrize("process_type", ["append", "independent"])
@pytest.mark.parametrize("learn", sorted(LEARN))
def test_every_table_equals_that_of_qlibs_handler(learn, process_type):
    options = {**SPAN, "infer_processors": INFER, "learn_processors": LEARN[learn], "process_type": process_type}
    plain = FiveFeatures(**options)
    for drop_raw in (False, True):
        lean = LeanFiveFeatures(**options, drop_raw=drop_raw)
        for key in KEYS:
            for columns in ("label", "feature", ["feature", "label"], DataHandlerLP.CS_ALL, DataHandlerLP.CS_RAW):
                if key == DataHandlerLP.DK_R and drop_raw and columns != "label":
                    with pytest.raises(AttributeError, match="drop_raw"):
                        lean.fetch(col_set=columns, data_key=key)
                    continue
                span = slice("2015-11-01", "2016-02-01")
                expected, found = (h.fetch(span, col_set=columns, data_key=key) for h in (plain, lean))
                pd.testing.assert_frame_equal(found, expected, obj=f"{key} {columns}")
            if key != DataHandlerLP.DK_R:
                assert lean.get_cols(data_key=key) == plain.get_cols(data_key=key)
        assert plain.learn_processors != [] or learn == "none"
        assert [type(p) for p in lean.learn_processors] == [type(p) for p in plain.learn_processors]


@pytest.mark.usefixtures("small_market")
def test_fetched_frames_are_the_callers_own():
    lean = LeanFiveFeatures(**SPAN, learn_processors=LEARN["two"], drop_raw=True)
    before = {key: lean.fetch(col_set="label", data_key=key).copy() for key in KEYS}
    for key in KEYS:
        frame = lean.fetch(col_set="label", data_key=key)
        frame.iloc[:, 0] = 7.0
    for key in KEYS:
        pd.testing.assert_frame_equal(lean.fetch(col_set="label", data_key=key), before[key])


@pytest.mark.usefixtures("small_market")
@pytest.mark.parametrize("drop_raw", [False, True])
def test_released_features_leave_the_labels(drop_raw):
    lean = LeanFiveFeatures(**SPAN, learn_processors=LEARN["two"], drop_raw=drop_raw)
    before = {key: lean.label_frame(key).copy() for key in (DataHandlerLP.DK_R, DataHandlerLP.DK_L)}
    lean.release_features()
    for key, frame in before.items():
        pd.testing.assert_frame_equal(lean.label_frame(key), frame)
    held = [value for value in vars(lean).values() if isinstance(value, pd.DataFrame)]
    assert all(set(frame.columns.get_level_values(0)) <= {"label", "LABEL0"} for frame in held)
    for frame in held:
        values = frame.to_numpy()
        owner = values if values.base is None else values.base
        assert owner.nbytes == values.nbytes, "a label column must not keep a whole table alive"


@pytest.mark.usefixtures("small_market")
@pytest.mark.parametrize("dump_all", [False, True])
def test_a_pickled_handler_loads_again(dump_all):
    import pickle
    lean = LeanFiveFeatures(**SPAN, infer_processors=INFER, learn_processors=[DropExtremeLabel()], drop_raw=True)
    expected = {key: lean.label_frame(key).copy() for key in (DataHandlerLP.DK_R, DataHandlerLP.DK_L)}
    features = lean.fetch(col_set="feature").copy()
    lean.config(dump_all=dump_all)
    back = pickle.loads(pickle.dumps(lean))
    assert hasattr(back, "_infer") == dump_all
    if not dump_all:
        back.setup_data(init_type=DataHandlerLP.IT_LS)
    for key, frame in expected.items():
        pd.testing.assert_frame_equal(back.label_frame(key), frame)
    pd.testing.assert_frame_equal(back.fetch(col_set="feature"), features)


@pytest.mark.usefixtures("small_market")
def test_labels_that_were_never_loaded_are_named():
    lean = LeanFiveFeatures(**SPAN, drop_raw=True, init_data=False)
    with pytest.raises(AttributeError, match="setup_data"):
        lean.label_frame(DataHandlerLP.DK_R)


@pytest.mark.usefixtures("small_market")
@pytest.mark.parametrize("name", ["Alpha158", "Alpha158vwap", "Alpha360", "Alpha360vwap"])
def test_each_handler_is_qlibs_with_the_mixin(name):
    from qlib.contrib.data import handler as theirs
    options = {**SPAN, "init_data": False, "fit_start_time": "2015-06-01", "fit_end_time": "2015-12-31"}
    one, two = getattr(ours, name)(**options), getattr(theirs, name)(**options)
    assert one.data_loader.fields == two.data_loader.fields
    assert issubclass(type(one), (ours.LeanHandler, getattr(theirs, name)))
    assert getattr(ours, name)(label=([LABEL], ["L"]), **options).data_loader.fields["label"] == ([LABEL], ["L"])


def absent(features, labels, missing, needs=()):
    groups = {"feature": (features, [f"F{k}" for k in range(len(features))]), "label": (labels, ["LABEL0"] if labels else [])}
    return ours.absent_fields(groups, lambda names: [name for name in names if name in missing], needs, ["mine"])


@pytest.mark.parametrize("features, labels, missing, refused, empty", [
    (["$close / $open", "$vwap / $close"], ["Ref($close, -1)"], {"vwap"}, {}, {"vwap": ["F1"]}),
    (["$close", "$VWAP"], [], {"vwap"}, {}, {"vwap": ["F1"]}),
    (["$close", "$vwap"], ["Ref($vwap, -1)"], {"vwap"}, {"vwap": ["F1", "LABEL0"]}, {}),
    (["$close", "$open"], [], {"open"}, {"open": ["F1"]}, {}),
    (["$turnover", "$amount"], [], {"turnover", "amount"}, {"turnover": ["F0"], "amount": ["F1"]}, {}),  # nothing would be left
    (["$close", "$clsoe"], [], {"clsoe"}, {"clsoe": ["F1"]}, {}),
    (["$close", "$csi300_weight"], [], {"csi300_weight"}, {}, {"csi300_weight": ["F1"]}),
    (["$close", "$mine_weight"], [], {"mine_weight"}, {}, {"mine_weight": ["F1"]}),  # a universe of the store
    (["$close", "$csi3000_weight"], [], {"csi3000_weight"}, {"csi3000_weight": ["F1"]}, {}),
    (["$close", "P($$roe_q)"], [], {"roe_q", "factor"}, {}, {}),  # point-in-time fields have files of their own
])
def test_what_is_refused_and_what_is_warned_of(features, labels, missing, refused, empty):
    assert absent(features, labels, missing) == (refused, empty)
    assert absent(["$close"], [], {"factor"}, ["factor"]) == ({"factor": []}, {})
