"""Rolling tasks: they part the test segment, keep every gap, and say what cannot be rolled."""
import pytest

from qlib_ext.errors import ConfigError
from qlib_ext.training.split import rolling_segments

SEGMENTS = {"train": (10, 60), "valid": (66, 80), "test": (86, 120)}


def test_tasks_by_hand():
    assert rolling_segments(SEGMENTS, 15, "expanding") == [
        {"train": (10, 60), "valid": (66, 80), "test": (86, 101)},
        {"train": (10, 75), "valid": (81, 95), "test": (101, 116)},
        {"train": (10, 90), "valid": (96, 110), "test": (116, 120)}]
    assert rolling_segments({"train": (0, 5), "test": (5, 7)}, 1, "sliding") == [
        {"train": (0, 5), "test": (5, 6)}, {"train": (1, 6), "test": (6, 7)}]


@pytest.mark.parametrize("kind", ["sliding", "expanding"])
@pytest.mark.parametrize("step", [1, 7, 17, 33, 34])
@pytest.mark.parametrize("valid", [True, False])
def test_every_day_is_tested_once_and_gaps_are_kept(kind, step, valid):
    given = {name: span for name, span in SEGMENTS.items() if valid or name != "valid"}
    tasks = rolling_segments(given, step, kind)
    tested = [day for task in tasks for day in range(*task["test"])]
    assert tested == list(range(86, 120)), "no day twice, none left out, in order"
    for number, task in enumerate(tasks):
        assert set(task) == set(given) and task["test"][0] == 86 + number * step
        for name in set(given) - {"test"}:
            assert task["test"][0] - task[name][1] == 86 - given[name][1], "the embargo stays"
            length = task[name][1] - task[name][0]
            grown = number * step if (name, kind) == ("train", "expanding") else 0
            assert length == given[name][1] - given[name][0] + grown
    assert tasks[0] == {**given, "test": (86, 86 + step)}


@pytest.mark.parametrize("segments, step, kind, said", [
    (SEGMENTS, 35, "sliding", "the test segment has 34 trading days, one task has 35"),
    (SEGMENTS, 0, "sliding", "step=0"), (SEGMENTS, 2.0, "sliding", "step=2.0"), (SEGMENTS, True, "sliding", "step=True"),
    (SEGMENTS, 5, "rolling", "window 'rolling' is unknown"),
    ({"test": (5, 9)}, 1, "sliding", r"missing \['train'\]"), ({"train": (0, 5)}, 1, "sliding", r"missing \['test'\]"),
    ({**SEGMENTS, "extra": (1, 2)}, 5, "sliding", r"not known \['extra'\]"),
    ({**SEGMENTS, "valid": (66, 87)}, 5, "sliding", "'valid'.*does not end before the test"),
    ({**SEGMENTS, "train": (60, 60)}, 5, "sliding", "'train'.*is empty"),
])
def test_what_cannot_be_rolled_is_named(segments, step, kind, said):
    with pytest.raises(ConfigError, match=said):
        rolling_segments(segments, step, kind)
