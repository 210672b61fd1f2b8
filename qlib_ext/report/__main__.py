"""`python -m qlib_ext.report --recorder ID`: the tear sheet of a run from its saved reports; `--compare ID ID ...`: runs side by side."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from qlib_ext.errors import ConfigError, DataError, ExtError

MOST_RUNS = 5000
HINT = "give the recorder id or its first letters (at least six), or an experiment's name for its latest finished run"


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0, or 1 with the error's sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m qlib_ext.report", description="Make the tear sheet of a run, or of runs side by side.")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--recorder", metavar="ID", help="recorder id, its first letters, or an experiment's name for its latest run")
    which.add_argument("--compare", metavar="ID", nargs="+", help="two or more of them, side by side")
    parser.add_argument("--experiment", metavar="NAME", help="look for the recorder in this experiment only")
    parser.add_argument("--uri", help="tracking uri; default sqlite:///QLIB_EXT_HOME/tracking.db")
    parser.add_argument("--out", metavar="FILE", help="default: tearsheet_<first 8 of the id>.html (comparison.html) in this folder")
    parser.add_argument("--language", choices=("en", "zh", "both"), default="both")
    parser.add_argument("--png", metavar="FOLDER", help="write the plots there too (not with --compare)")
    options = parser.parse_args(arguments)
    try:
        for path in _make(options):
            print(path)
        return 0
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"{type(error).__name__}: {error.filename or options.out}: {error.strerror or error}", file=sys.stderr)
    return 1


def _make(options: argparse.Namespace) -> list[Path]:
    """Write what was asked for; the paths."""
    from qlib_ext.report.runs import Runs
    from qlib_ext.report.saved import Artefacts
    from qlib_ext.report.sheet_record import saved_reports, write_plots
    from qlib_ext.report.tearsheet import compare_sheet, tear_sheet
    if options.compare and (options.png or len(options.compare) < 2):
        raise ConfigError("--png goes with --recorder" if options.png else "--compare needs two runs or more; --recorder shows one")
    runs = Runs(options.uri)
    chosen = [find(runs, name, options.experiment) for name in options.compare or [options.recorder]]
    if len({run.info.run_id for run in chosen}) < len(chosen):
        raise ConfigError(f"{options.compare}: one run is named twice")
    reports = [saved_reports(Artefacts(runs, run)) for run in chosen]
    if options.compare:
        page = compare_sheet(list(zip(_names(runs, chosen), reports)), options.language)
        return [write(page, Path(options.out or "comparison.html"))]
    path = write(tear_sheet(reports[0], options.language), Path(options.out or f"tearsheet_{chosen[0].info.run_id[:8]}.html"))
    return [path, *(_plots(reports[0], Path(options.png), write_plots) if options.png else [])]


def find(runs, name: str, experiment: str | None = None):
    """A run by its id or the first letters of it, or the latest finished one of an experiment.

    Raises:
        ConfigError: no such run, or several whose ids begin alike. DataError: an experiment without a finished run.
    """
    if experiment is not None and experiment not in runs.experiments.values():
        raise ConfigError(f"no experiment {experiment!r} in {runs.uri}; it has {sorted(runs.experiments.values())}")
    if name in runs.experiments.values() and experiment in (None, name):
        return runs.named(name)
    places = [number for number, title in runs.experiments.items() if experiment in (None, title)]
    every = runs.client.search_runs(places, max_results=MOST_RUNS) if len(name) > 5 else []
    found = [run for run in every if run.info.run_id.startswith(name.lower())]
    if len(found) != 1:
        which = f"{len(found)} runs begin with {name!r}" if found else f"no run {name!r}"
        raise ConfigError(f"{which} in {runs.uri}" + (f", experiment {experiment}" if experiment else "") + f": {HINT}")
    return found[0]


def _names(runs, chosen: list) -> list[str]:
    """Names of runs: that of the experiment where it is there once, else with the id's first letters."""
    names = [runs.experiment_of(run) for run in chosen]
    return [name if names.count(name) == 1 else f"{name} {run.info.run_id[:8]}" for name, run in zip(names, chosen)]


def write(page: str, path: Path) -> Path:
    """Write a page aside, then put it in its place.

    Raises:
        DataError: the folder is not there, or the path is one.
    """
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise DataError(f"{path}: name a file in a folder that exists")
    handle, aside = tempfile.mkstemp(dir=path.absolute().parent, prefix=f".{path.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(page)
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    return path


def _plots(reports, folder: Path, write_plots) -> list[Path]:
    """Plots drawn aside, then each put in its place."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".plots.") as made:
        paths = []
        for one in write_plots(reports, Path(made)):
            path = folder / one.relative_to(made)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(str(one), path)
            paths.append(path)
    return paths


if __name__ == "__main__":
    sys.exit(main())
