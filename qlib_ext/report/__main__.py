"""`python -m qlib_ext.report --recorder ID`: the tear sheet of a run from its saved reports; `--compare ID ID ...`: runs side by side;
`--weekly`: the brokers' weekly table of factors and runs."""

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
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--recorder", metavar="ID", nargs="+",
                       help="recorder id, its first letters, or an experiment's name for its latest run; several with --weekly")
    which.add_argument("--compare", metavar="ID", nargs="+", help="two or more of them, side by side")
    parser.add_argument("--experiment", metavar="NAME", help="look for the recorder in this experiment only")
    parser.add_argument("--uri", help="tracking uri; default sqlite:///QLIB_EXT_HOME/tracking.db")
    parser.add_argument("--out", metavar="FILE", help="default: tearsheet_<first 8 of the id>.html (comparison.html) in this folder; "
                        "the weekly table is printed, and written there where named (.html, .csv, .md, .txt)")
    parser.add_argument("--language", choices=("en", "zh", "both"), default="both")
    parser.add_argument("--png", metavar="FOLDER", help="write the plots there too (not with --compare)")
    _add_weekly(parser)
    options = parser.parse_args(arguments)
    if not (options.recorder or options.compare or options.weekly):
        parser.error("give --recorder, --compare or --weekly")
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
    if options.weekly:
        return _weekly(options)
    if options.recorder and len(options.recorder) > 1:
        raise ConfigError(f"--recorder {' '.join(options.recorder)}: one at a time; --compare shows several, and --weekly takes several")
    if options.compare and (options.png or len(options.compare) < 2):
        raise ConfigError("--png goes with --recorder" if options.png else "--compare needs two runs or more; --recorder shows one")
    runs = Runs(options.uri)
    chosen = _find_all(runs, options.compare or options.recorder, options.experiment)
    reports = [saved_reports(Artefacts(runs, run)) for run in chosen]
    if options.compare:
        page = compare_sheet(list(zip(_names(runs, chosen), reports)), options.language)
        return [write(page, Path(options.out or "comparison.html"))]
    path = write(tear_sheet(reports[0], options.language), Path(options.out or f"tearsheet_{chosen[0].info.run_id[:8]}.html"))
    return [path, *(_plots(reports[0], Path(options.png), write_plots) if options.png else [])]


def _add_weekly(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("weekly table", "IC, exp(-RankMAE), long-short and long-only excess of the week, the month and the "
                                      "year to date; the long side is the highest tenth")
    group.add_argument("--weekly", action="store_true", help="make it, of --fields and of every --recorder (neither: the ten factors)")
    group.add_argument("--fields", nargs="+", metavar="FIELD",
                       help="hf (the ten intraday factors), names of factors, or fields and expressions of Qlib, such as '$hf_skew_1d'")
    group.add_argument("--variant", default="orth", choices=("orth", "mean", "day"),
                       help="of a factor: orthogonalised (default; the mean where the store lacks it), mean of some days, the day's value")
    group.add_argument("--raw-sign", action="store_true", help="leave factors whose low values are good as they are")
    group.add_argument("--as-of", metavar="DATE", help="day of the table; default: the last day that all rows score")
    group.add_argument("--from", dest="first", metavar="DATE", help="scores from this day on; default: all")
    group.add_argument("--universe", help="members of this universe only; default: all stocks that are scored")
    group.add_argument("--horizon", type=int, default=5, help="trading days of the returns under IC and exp(-RankMAE); default 5")
    group.add_argument("--entry", default="vwap", help="price traded at: vwap (default), open or close")
    group.add_argument("--min-count", type=int, default=30, help="stocks a day needs; default 30")
    group.add_argument("--store", help="default QLIB_DATA, else the demo market")


def _weekly(options: argparse.Namespace) -> list[Path]:
    """Print the weekly table; the path of the file, if one was named."""
    import qlib
    from qlib_ext.demo.truth import STATEMENT
    from qlib_ext.home import named_store
    from qlib_ext.report import weekly
    from qlib_ext.report.runs import Runs
    from qlib_ext.store.metadata import check_store, read_metadata
    kind = Path(options.out).suffix.lstrip(".") if options.out else "txt"
    if options.compare or options.png or kind not in weekly.KINDS:
        raise ConfigError(f"--weekly goes with --recorder and --fields, and writes {['.' + one for one in weekly.KINDS]}")
    if options.out:
        _in_a_folder(Path(options.out))
    store = check_store(named_store(options.store))
    qlib.init(provider_uri=str(store), region="cn", kernels=1, expression_cache=None, dataset_cache=None, logging_level=30)
    runs = Runs(options.uri) if options.recorder else None
    chosen = _find_all(runs, options.recorder or [], options.experiment)
    fields, notes = weekly.choose_fields(options.fields or ([] if chosen else ["hf"]), options.variant)
    scores = weekly.field_scores(fields, options.first, None, options.universe) if fields else {}
    signs = {} if options.raw_sign else {name: weekly.sign_of(field) for name, field in zip(scores, fields)}
    named = dict(zip(_names(runs, chosen, scores), chosen))
    scores |= {name: weekly.run_scores(runs, run, options.first) for name, run in named.items()}
    grouped = list(scores)[:len(fields)] if not options.fields or "hf" in options.fields else []
    table = weekly.weekly_table(scores, options.as_of, options.horizon, options.entry, options.universe, options.min_count, signs, grouped)
    table.notes.extend([*notes, *weekly.other_stores(runs, named, store)])
    if (read_metadata(store) or {}).get("generated"):
        table = table._replace(convention=f"{table.convention} {STATEMENT}")
    print(weekly.write_weekly(table, "txt", options.language))
    return [write(weekly.write_weekly(table, kind, options.language), Path(options.out))] if options.out else []


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


def _find_all(runs, names: list[str], experiment: str | None) -> list:
    """Runs as `find` finds them.

    Raises:
        ConfigError: one is named twice.
    """
    chosen = [find(runs, name, experiment) for name in names]
    if len({run.info.run_id for run in chosen}) < len(chosen):
        raise ConfigError(f"{' '.join(names)}: one run is named twice")
    return chosen


def _names(runs, chosen: list, taken=()) -> list[str]:
    """Names of runs: that of the experiment where it is there once and not `taken`, else with the id's first letters."""
    names = [runs.experiment_of(run) for run in chosen]
    return [f"{name} {run.info.run_id[:8]}" if name in taken or names.count(name) > 1 else name for name, run in zip(names, chosen)]


def write(page: str, path: Path) -> Path:
    """Write a page aside, then put it in its place.

    Raises:
        DataError: the folder is not there, or the path is one.
    """
    _in_a_folder(path)
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


def _in_a_folder(path: Path) -> None:
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise DataError(f"{path}: name a file in a folder that exists")


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
