"""Tasks that roll through the test segment, as half-open pairs of day positions; numpy only, no dates."""

from __future__ import annotations

from qlib_ext.errors import ConfigError

KINDS = ("sliding", "expanding")

Span = tuple[int, int]


def rolling_segments(segments: dict[str, Span], step: int, kind: str) -> list[dict[str, Span]]:
    """One dict of segments for every `step` days of the test segment, ``[first, last)`` each.

    Task j tests on ``[test.first + j step, min(test.first + (j + 1) step, test.last))``; its train and valid are the given ones moved
    j step days on, so every gap between segments (the embargo of the label) is kept. The last task may be shorter.

    Args:
        segments: ``train``, ``test`` and, optionally, ``valid``; train and valid already end an embargo before what follows.
        step: days in a task.
        kind: ``sliding`` moves the first day of train too, ``expanding`` keeps it.

    Raises:
        ConfigError: train or test missing, another segment, an empty one, or one that does not end before the test; step below 1;
            unknown kind; a test shorter than one task.
    """
    if kind not in KINDS:
        raise ConfigError(f"window {kind!r} is unknown; choose one of {KINDS}")
    if type(step) is not int or step < 1:
        raise ConfigError(f"step={step!r} must be a whole number of trading days, at least 1")
    missing, other = sorted({"train", "test"} - set(segments)), sorted(set(segments) - {"train", "valid", "test"})
    if missing or other:
        raise ConfigError(f"rolling needs the segments train, test and perhaps valid: missing {missing}, not known {other}")
    for name, (first, last) in segments.items():
        if first >= last or (name != "test" and last > segments["test"][0]):
            raise ConfigError(f"segment {name!r} [{first}, {last}) is empty or does not end before the test {segments['test']}")
    begin, end = segments["test"]
    if end - begin < step:
        raise ConfigError(f"the test segment has {end - begin} trading days, one task has {step}: make the test longer or step smaller")
    tasks = []
    for shift in range(0, end - begin, step):
        task = {name: (first + shift, last + shift) for name, (first, last) in segments.items() if name != "test"}
        if kind == "expanding":
            task["train"] = (segments["train"][0], task["train"][1])
        tasks.append({**task, "test": (begin + shift, min(begin + shift + step, end))})
    return tasks
