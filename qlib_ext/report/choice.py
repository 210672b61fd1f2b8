"""Which runs a command line asks for, and which of them belong together."""

from __future__ import annotations

from typing import Mapping

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.runs import Run, Runs

DEFAULT_LAG = 5


def row_names(runs: Runs, chosen: list) -> Mapping[str, object]:
    """Row names: the experiment, with the beginning of the recorder id where that is not enough."""
    experiments = [runs.experiment_of(run) for run in chosen]
    return {name if experiments.count(name) == 1 else f"{name} {run.info.run_id[:8]}": run for name,
            run in zip(experiments, chosen)}


def choose(runs: Runs, options) -> list:
    """The runs asked for, each once; without any asked for, the latest complete one of each experiment.

    Raises:
        ConfigError: no such run or experiment. DataError: no finished run.
    """
    chosen = [runs.named(name) for name in [*options.run, *(one for names in _named_groups(options).values() for one in names)]]
    for name in options.experiment or []:
        chosen += runs.finished(name)
    if options.last:
        chosen += runs.finished()[:1]
    if not is_strict(options):
        latest = {}
        for run in runs.finished():
            if run.info.experiment_id not in latest and runs.complete(run):
                latest[run.info.experiment_id] = run
        chosen = list(latest.values())
    if not chosen:
        raise DataError(f"{runs.uri} has no finished run with predictions: run a workflow first")
    return list({run.info.run_id: run for run in chosen}.values())


def is_strict(options) -> bool:
    """Whether runs were asked for: they are then compared in one table, and what cannot be compared is an error."""
    return bool(options.run or options.experiment or options.last or options.group)


def _named_groups(options) -> dict[str, list[str]]:
    """Group -> runs, as the command line names them.

    Raises:
        ConfigError: not NAME=run1,run2, a name or a run given twice.
    """
    groups: dict[str, list[str]] = {}
    for text in options.group or []:
        name, _, given = text.partition("=")
        found = given.split(",")
        if not name or not all(found) or name in groups or len(set(found)) < len(found):
            raise ConfigError(f"--group {text!r}: give NAME=run1,run2,... with each name and run once")
        groups[name] = found
    return groups


def seed_groups(runs: Runs, options, chosen: Mapping[str, object]) -> dict[str, list[str]]:
    """Group -> row names: the groups named, and the other rows by experiment.

    Raises:
        ConfigError: a run twice in a group, or a group with the name of an experiment whose runs are not in it.
    """
    row_of, groups = {run.info.run_id: name for name, run in chosen.items()}, {}
    for group, names in _named_groups(options).items():
        groups[group] = [row_of[runs.named(name).info.run_id] for name in names]
        if len(set(groups[group])) < len(names):
            raise ConfigError(f"--group {group}: a run is in it twice, which would narrow its spread")
    named, grouped = set(groups), {row for rows in groups.values() for row in rows}
    for row, run in chosen.items():
        experiment = runs.experiment_of(run)
        if row not in grouped:
            if experiment in named:
                raise ConfigError(f"--group {experiment} is also the experiment of {row}, which is not in it: choose another name")
            groups.setdefault(experiment, []).append(row)
    return groups


def add_members(runs: Runs, chosen: Mapping[str, object], loaded: dict[str, Run], groups: dict[str, list[str]]) -> dict[str, object]:
    """The rows with the members of ensembles added to them, to what is loaded and to the groups.

    Raises:
        ConfigError: no run has members.
    """
    rows = dict(chosen)
    for name, run in chosen.items():
        for member, score in runs.members(run).items():
            row = f"{name}:{member}"
            rows[row], loaded[row] = run, Run(row, score, loaded[name].label)
            groups.setdefault(f"{name}:members", []).append(row)
    if len(rows) == len(chosen):
        raise ConfigError(f"--members: none of {list(chosen)} kept members; run an Ensemble, whose recorder has members/pred_*.pkl")
    return rows


def lag_of(runs: Runs, options, chosen: Mapping[str, object]) -> int:
    """The lag asked for, else the days over which labels overlap, else (no run names its label, or in words unknown here) the default."""
    if options.lag is not None:
        return options.lag
    labels = sorted({label for label in map(runs.label_expression, chosen.values()) if label is not None})
    if not labels:
        return DEFAULT_LAG
    from qlib_ext.check_task import expression_parser
    from qlib_ext.data.segments import label_offset
    with expression_parser():
        try:
            return max(label_offset(labels) - 1, 0)  # bought at the next close: a look ahead of 6 days is a return over 5
        except ConfigError:
            return DEFAULT_LAG


def headings_of(runs: Runs, chosen: Mapping[str, object], loaded: Mapping[str, Run]) -> dict[str, list[str]]:
    """Names of runs that can share a table: heading (universe, first and last scored day) -> names."""
    groups = {}
    for name, run in chosen.items():
        days = loaded[name].score.index.get_level_values("datetime")
        span = f"{days.min():%Y-%m-%d} to {days.max():%Y-%m-%d}" if len(days) else "no days"
        groups.setdefault(f"{runs.universe(run)}, {span}", []).append(name)
    return dict(sorted(groups.items()))
