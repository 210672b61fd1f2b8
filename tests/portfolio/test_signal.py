"""Signals by day: what Qlib's own gives, blends by hand, predictions out of recorders."""
import numpy as np
import pandas as pd
import pytest
from qlib.backtest.signal import SignalWCache
from small_market import build_store, start_qlib

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.portfolio.signal import BlendedSignal, DailySignal, RecorderSignal, find_recorder, make_signal

DAYS = pd.to_datetime(["2024-01-05", "2024-01-08", "2024-01-09"])


def scores(seed: int, codes: str = "ABCDE") -> pd.DataFrame:
    index = pd.MultiIndex.from_product([DAYS, list(codes)], names=["datetime", "instrument"])
    values = np.random.default_rng(seed).normal(size=len(index))
    values[1] = np.nan
    return pd.DataFrame({"score": values}, index=index)


@pytest.mark.parametrize("shape", ["frame", "series", "other order"])
def test_a_day_is_what_qlibs_signal_gives(shape):
    given = scores(0)
    given = {"frame": given, "series": given["score"], "other order": given.swaplevel().sort_index()}[shape]
    ours, theirs = DailySignal(given), SignalWCache(given)
    for start, end in [(DAYS[0], DAYS[0]), (DAYS[1], DAYS[1] + pd.Timedelta(hours=23)), (DAYS[0], DAYS[2])]:
        expected = theirs.get_signal(start, end)
        expected = (expected.iloc[:, 0] if isinstance(expected, pd.DataFrame) else expected).dropna()
        assert ours.get_signal(start, end).to_dict() == pytest.approx(expected.to_dict())
    assert ours.get_signal(DAYS[0] - pd.Timedelta(days=3), DAYS[0] - pd.Timedelta(days=1)) is None
    assert ours.get_signal(DAYS[2] + pd.Timedelta(days=1), DAYS[2] + pd.Timedelta(days=2)) is None


def test_a_blend_by_hand():
    first, second = scores(0), scores(1, "BCDEF")
    blend = BlendedSignal([{"signal": first, "weight": 3}, {"signal": second["score"], "weight": 1}])
    for day in DAYS:
        a, b = first.loc[day, "score"].dropna(), second.loc[day, "score"].dropna()
        both = a.index.intersection(b.index)
        a, b = a[both], b[both]
        expected = 0.75 * (a - a.mean()) / a.std(ddof=0) + 0.25 * (b - b.mean()) / b.std(ddof=0)
        assert blend.get_signal(day, day).to_dict() == pytest.approx(expected.to_dict())
    ranks = BlendedSignal([{"signal": first}], normalize="rank").get_signal(DAYS[2], DAYS[2])
    assert ranks.sort_values().tolist() == pytest.approx([-0.3, -0.1, 0.1, 0.3, 0.5])


def test_a_constant_part_adds_nothing():
    flat = scores(1).assign(score=2.0)
    blend = BlendedSignal([{"signal": scores(0)}, {"signal": flat}])
    alone = BlendedSignal([{"signal": scores(0)}]).get_signal(DAYS[1], DAYS[1])
    assert blend.get_signal(DAYS[1], DAYS[1]).to_dict() == pytest.approx((alone / 2).to_dict())


@pytest.mark.parametrize("parts, words", [
    ([], "list of parts"), ([{"weight": 1}], "must have experiment"), ([{"signal": 1, "experiment": "x"}], "must have experiment"),
    ([{"signal": "<PRED>", "weigth": 1}], "must have experiment"), ([{"signal": "<PRED>"}], "not filled"),
    ([{"signal": scores(0), "weight": "1"}], "no number"),
    ([{"signal": scores(0), "weight": 1}, {"signal": scores(1), "weight": -1}], "sum to 0")])
def test_wrong_parts_are_named(parts, words):
    with pytest.raises(ConfigError, match=words):
        BlendedSignal(parts)


def test_faults_of_predictions_are_named():
    twice = pd.concat([scores(0), scores(0)])
    with pytest.raises(DataError, match="twice"):
        DailySignal(twice)
    with pytest.raises(DataError, match="indexed by"):
        DailySignal(scores(0).reset_index(drop=True))
    other = scores(1)
    other.index = other.index.set_levels(DAYS + pd.Timedelta(days=100), level=0)
    with pytest.raises(DataError, match="no day is scored by every part"):
        BlendedSignal([{"signal": scores(0)}, {"signal": other}])
    with pytest.raises(ConfigError, match="normalize"):
        BlendedSignal([{"signal": scores(0)}], normalize="z")


def test_predictions_of_recorders(tmp_path, tmp_path_factory):
    from qlib.workflow import R
    store = build_store(tmp_path_factory.getbasetemp() / "small_market")
    start_qlib(store, exp_manager={"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
                                   "kwargs": {"uri": f"sqlite:///{tmp_path}/tracking.db", "default_exp_name": "Experiment"}})
    names = []
    for seed in (0, 1):
        with R.start(experiment_name="scored"):
            R.save_objects(**{"pred.pkl": scores(seed)})
            names.append(R.get_recorder().id)
    known = names[0]
    with R.start(experiment_name="empty"):
        pass
    latest = RecorderSignal("scored").get_signal(DAYS[1], DAYS[1])
    assert latest.to_dict() == pytest.approx(scores(1).loc[DAYS[1], "score"].to_dict())
    first = find_recorder("scored", known)
    assert first[0] == known and first[1].equals(scores(0))
    blend = BlendedSignal([{"experiment": "scored", "recorder": known}, {"experiment": "scored"}])
    assert len(blend.get_signal(DAYS[1], DAYS[1])) == 5
    assert isinstance(make_signal({"class": "RecorderSignal", "module_path": "qlib_ext.portfolio.signal",
                                   "kwargs": {"experiment": "scored"}}), DailySignal)
    with pytest.raises(ConfigError, match="it has"):
        RecorderSignal("scoredd")
    with pytest.raises(ConfigError, match="no recorder"):
        RecorderSignal("scored", "0" * 32)
    with pytest.raises(DataError, match="no finished recorder with predictions"):
        RecorderSignal("empty")
