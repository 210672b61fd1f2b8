"""Segments on a calendar, and the embargo: no training label may touch a day of the segment that follows."""
import numpy as np
import pandas as pd
import pytest

from qlib_ext.data.segments import label_offset, segment_positions, trim_segments
from qlib_ext.errors import ConfigError

CALENDAR = np.array([d for d in pd.bdate_range("2020-01-02", "2020-06-30") if d.day not in (1, 6)], dtype="datetime64[D]")


@pytest.mark.usefixtures("small_market")
@pytest.mark.parametrize("expressions, offset", [
    (["Ref($close,-6)/Ref($close,-1)-1"], 6),
    (["Ref($close, -2)/$close - 1"], 2),
    (["$close"], 0), (["Ref($close, 3)"], 0), (["Mean($close, 5)"], 0),
    (["Ref(Ref($close,-2),-3)"], 5),
    (["Ref(Mean(Ref($close,-4), 3), -1)/$close"], 5),
    (["If(Gt($close, Ref($open, -7)), 1, 0)"], 7),
    (["Ref($close,-2)/Ref($close,-1)-1", "Ref($close,-11)/Ref($close,-1)-1", "$close"], 11),
])
def test_look_ahead_of_expressions(expressions, offset):
    assert label_offset(expressions) == offset


@pytest.mark.usefixtures("small_market")
@pytest.mark.parametrize("expression", ["Ref($close,-6", "Refff($close,-6)", "1 +", "Ref($close,-6) $open"])
def test_expression_that_cannot_be_parsed(expression):
    with pytest.raises(ConfigError, match="cannot be parsed"):
        label_offset(["$close", expression])


@pytest.mark.usefixtures("small_market")
@pytest.mark.parametrize("expression", ["Delta($close, -5)", "Ref($close, 1) + Delta($close, -3)"])
def test_windows_of_negative_length_hide_a_look_ahead(expression):
    with pytest.raises(ConfigError, match="Ref"):
        label_offset([expression])


def brute_positions(start, end):
    inside = [k for k, day in enumerate(CALENDAR) if np.datetime64(start) <= day <= np.datetime64(end)]
    return inside[0], inside[-1]


def test_positions_include_both_ends_and_take_any_form_of_date():
    pair = ("2020-02-01", "2020-03-10")
    expected = brute_positions(*pair)
    forms = [list(pair), pair, slice(*pair), [pd.Timestamp(pair[0]), pd.Timestamp(pair[1])],
             [pd.Timestamp(pair[0]).date(), np.datetime64(pair[1])], ["20200201", "2020-03-10 00:00:00"]]
    for form in forms:
        assert segment_positions({"a": form}, CALENDAR)["a"] == expected, form
    last = len(CALENDAR) - 1
    assert segment_positions({"a": [None, pair[1]]}, CALENDAR)["a"] == (0, expected[1])
    assert segment_positions({"a": [pair[0], None]}, CALENDAR)["a"] == (expected[0], last)
    assert segment_positions({"a": [None, None]}, CALENDAR)["a"] == (0, last)
    assert segment_positions({"a": ["2020-06-01", "2099-01-01"]}, CALENDAR)["a"][1] == last


@pytest.mark.parametrize("pair, said", [
    (["2020-03-01", "2020-02-01"], "empty.*2020-01-02.*2020-06-30"), (["2021-01-01", "2021-02-01"], "empty"),
    (["2019-01-01", "2019-12-31"], "empty"), (["2020-02-01", "2020-02-02"], "empty"),
    (["soon", "2020-02-01"], "not dates"), (["2020-02-31", "2020-03-01"], "not dates"), ("2020-02-01", "start, end"),
    (["2020-02-01"], "start, end"), (None, "start, end"), (5, "start, end"), ([{}, None], "not dates"),
    ([20200201, 20200301], "not dates"), ([float("nan"), "2020-03-01"], "not dates"),
])
def test_segments_that_cannot_be_used(pair, said):
    with pytest.raises(ConfigError, match=f"'odd'.*{said}"):
        segment_positions({"fine": ["2020-06-01", "2020-06-15"], "odd": pair}, CALENDAR)


@pytest.mark.parametrize("one, two", [
    (["2020-01-02", "2020-03-10"], ["2020-03-10", "2020-04-01"]), (["2020-01-02", "2020-05-10"], ["2020-03-10", "2020-04-01"]),
    (["2020-03-10", "2020-04-01"], ["2020-01-02", None]), (["2020-03-10", "2020-04-01"], ["2020-03-10", "2020-04-01"]),
])
def test_segments_that_share_a_day(one, two):
    with pytest.raises(ConfigError, match="overlap from 2020-03-10"):
        segment_positions({"train": one, "other": ["2020-06-01", None], "valid": two}, CALENDAR)


def test_neighbours_do_not_overlap():
    segment_positions({"train": ["2020-01-02", "2020-03-10"], "valid": ["2020-03-11", "2020-04-01"]}, CALENDAR)


@pytest.mark.parametrize("offset", [0, 1, 6, 15])
@pytest.mark.parametrize("segments", [
    {"train": ["2020-01-02", "2020-03-10"], "valid": ["2020-03-11", "2020-04-20"], "test": ["2020-04-21", None]},
    {"train": ["2020-01-02", "2020-03-10"], "valid": ["2020-03-16", "2020-04-20"], "test": ["2020-06-01", None]},
    {"valid": ["2020-01-02", "2020-02-15"], "train": ["2020-02-16", "2020-04-20"], "test": ["2020-04-21", None]},
    {"train": ["2020-01-02", "2020-03-10"], "test": ["2020-03-11", None]},
])
def test_no_label_of_train_or_valid_touches_a_later_segment(segments, offset):
    """Day by day over the calendar; and not a day more is cut than needed."""
    before = segment_positions(segments, CALENDAR)
    after = trim_segments(before, offset, CALENDAR)
    owner = {k: name for name, (first, last) in before.items() for k in range(first, last + 1)}
    for name in ("train", "valid"):
        if name not in after:
            continue
        first, last = before[name]
        later = {other for other, (start, _) in before.items() if start > last}
        allowed = [day for day in range(first, last + 1)
                   if not any(owner.get(touched) in later for touched in range(day, day + offset + 1))]
        assert after[name] == (first, allowed[-1]) and len(allowed) == allowed[-1] - first + 1
    assert after["test"] == before["test"]
    assert before == segment_positions(segments, CALENDAR), "the input is left alone"


def test_embargo_that_leaves_nothing():
    positions = segment_positions({"train": ["2020-03-02", "2020-03-10"], "test": ["2020-03-11", None]}, CALENDAR)
    days = positions["train"][1] - positions["train"][0] + 1
    assert trim_segments(positions, days - 1, CALENDAR)["train"] == (positions["train"][0],) * 2
    with pytest.raises(ConfigError, match=f"'train' has {days} trading days, the embargo of {days} leaves none"):
        trim_segments(positions, days, CALENDAR)


def test_labels_past_the_data():
    """An error in train and valid, which names the last good day; in test they are NaN later on."""
    for name in ("train", "valid"):
        good = str(CALENDAR[-7])
        trim_segments(segment_positions({name: ["2020-01-02", good]}, CALENDAR), 6, CALENDAR)
        with pytest.raises(ConfigError, match=f"{name!r} reach 6 trading days past.*end on 2020-06-30: end it on {good}"):
            trim_segments(segment_positions({name: ["2020-01-02", str(CALENDAR[-6])]}, CALENDAR), 6, CALENDAR)
    whole = segment_positions({"test": ["2020-01-02", None]}, CALENDAR)
    assert trim_segments(whole, 6, CALENDAR) == whole
