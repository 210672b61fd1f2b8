"""Command line of the store: `python -m qlib_ext.store ingest | ingest-intraday | build-intraday | doctor | schema`."""

import argparse
import logging
import os
import signal
import sys
from typing import List, Optional

from qlib_ext.errors import ConfigError, ExtError
from qlib_ext.store.intraday_mapping import UNITS
from qlib_ext.store.schema import INDEX_NAMES, VWAP_MODES, schema_page


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line; 0 when done, 1 after a named error (its sentence goes to standard error).

    `doctor` gives 0 with warnings too, and 1 when a workflow named with --for cannot run on the store or the folder is none.
    """
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        status = {"ingest": _ingest, "doctor": _doctor, "schema": _schema,
                  "build-intraday": _build_intraday, "ingest-intraday": _ingest_intraday}[options.command](options)
        sys.stdout.flush()
        return status
    except ExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # who reads our output has read enough; Python must not try to write the rest at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        print(f"error: {error.filename or 'a file'} cannot be read or written ({error.strerror or error}); check the path, its "
              "permissions and the free space", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        kept = "the store is as it was, days that are done stay" if options.command.endswith("-intraday") else "nothing was written"
        print(f"interrupted; {kept}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qlib_ext.store", description="Make, extend and examine Qlib stores.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("ingest", help="turn a folder of tables (Parquet or CSV) into a Qlib store, or add days to one")
    command.add_argument("--tables", required=True, help="folder holding bars, index_bars, membership and optional tables")
    command.add_argument("--out", required=True, help="folder of the store to make, or to append to")
    command.add_argument("--append", action="store_true", help="the tables hold new days for the store at --out")
    command.add_argument("--columns", metavar="MAP.yaml", help="names of tables and columns in the files where they are not ours")
    command.add_argument("--vwap", choices=VWAP_MODES,
                         help="typical: (high + low + close) / 3 (the default); amount: amount / volume")
    command.add_argument("--overwrite", action="store_true", help="replace a store that is there already")
    command.add_argument("--indices", nargs="+", metavar="NAME",
                         help=f"indices of table membership to store (default: {' '.join(INDEX_NAMES)})")
    _intraday_parser(commands.add_parser("ingest-intraday", help="check minute bars, trades or orders and write them by day"))
    _build_parser(commands.add_parser("build-intraday", help="compute intraday factors and inputs of networks into a store"))
    command = commands.add_parser("doctor", help="say what is in a Qlib folder, what lacks and what cannot be right")
    command.add_argument("store", help="folder of a Qlib store, made by this package or elsewhere")
    command.add_argument("--for", dest="workflows", action="append", default=[], metavar="WORKFLOW.yaml",
                         help="also say whether this workflow can run on the store, exit status 1 if not (may be repeated)")
    command.add_argument("--json", action="store_true", help="print the report as JSON")
    commands.add_parser("schema", help="print the tables and fields of a store as Markdown")
    return parser


def _ingest(options: argparse.Namespace) -> int:
    given = {"vwap": options.vwap, "index_names": options.indices, "overwrite": options.overwrite}
    given = {name: value for name, value in given.items() if value}
    if options.append and given:
        flags = ", ".join({"index_names": "--indices"}.get(name, f"--{name}") for name in given)
        raise ConfigError(f"--append takes no {flags}: a store is extended as it was made; leave it out, or ingest again")
    signal.signal(signal.SIGTERM, _terminated)  # so that the half-built folder is removed
    if options.append:
        from qlib_ext.store.append import append  # imports what computes fields: only once the arguments are right
        out = append(options.tables, options.out, columns=options.columns)
    else:
        from qlib_ext.store.ingest import ingest
        out = ingest(options.tables, options.out, columns=options.columns, **given)
    print(out)
    return 0


def _intraday_parser(command: argparse.ArgumentParser) -> None:
    command.add_argument("--source", required=True, nargs="+", metavar="FILE", help="Parquet or CSV files, or folders of them")
    command.add_argument("--out", required=True, metavar="DIR", help="intraday folder to make or add days to (usually STORE.intraday)")
    command.add_argument("--table", required=True, choices=("bars", "trades", "orders"))
    command.add_argument("--minutes", type=int, default=1, choices=(1, 5, 15, 30, 60), help="minutes of a bar (default: 1)")
    command.add_argument("--columns", metavar="MAP.yaml", help="the vendor's names, words and units (see the README)")
    for name, words in (("stamp", "which end of a bar its stamp is"), ("price", "mil: 0.0001 yuan"), ("volume", "lots: of 100 shares"),
                        ("amount", "thousand yuan, wan: 10,000 yuan"), ("opening-auction", "a bar apart, or inside the first one")):
        command.add_argument(f"--{name}", choices=UNITS[name.replace("-", "_")], help=f"{words} (default: told from the data, or asked)")
    command.add_argument("--store", help="a Qlib store whose daily bars the days are held against")
    command.add_argument("--overwrite", action="store_true", help="write days again that are there already")
    command.add_argument("--from", dest="first", metavar="DAY", help="first day to take")
    command.add_argument("--to", dest="last", metavar="DAY", help="last day to take")


def _ingest_intraday(options: argparse.Namespace) -> int:
    from qlib_ext.store.intraday_ingest import ingest_intraday
    signal.signal(signal.SIGTERM, _terminated)
    given = {name: value for name, value in vars(options).items() if name != "command"}
    print(ingest_intraday(**given).text())
    return 0


def _build_parser(command: argparse.ArgumentParser) -> None:
    command.add_argument("store", help="folder of the Qlib store that gets the fields")
    command.add_argument("--intraday", metavar="DIR", help="folder of the intraday tables (default: STORE.intraday)")
    command.add_argument("--from", dest="first", metavar="DAY", help="first day to compute (default: the first one there is)")
    command.add_argument("--to", dest="last", metavar="DAY", help="last day to compute")
    command.add_argument("--factors", nargs="+", metavar="NAME",
                         help="factors to make (default: all that the tables allow); fields of other factors that the store has go")
    command.add_argument("--options", metavar="FILE.yaml", help="options of the formulas where they are not the default ones")
    command.add_argument("--days-mean", type=int, default=5, metavar="T", help="trading days of the mean (default: 5)")
    command.add_argument("--table", metavar="NAME", help="table of bars (default: that of the shortest bars)")
    command.add_argument("--blocks", nargs="+", default=[], metavar="MINUTES", help="bars of blocks for networks: day, 60, 30 ...")
    command.add_argument("--workers", type=int, metavar="N",
                         help="processes (default: one for each 16 days, at most as many as processors)")


def _build_intraday(options: argparse.Namespace) -> int:
    from qlib_ext.store.intraday_build import build_intraday
    signal.signal(signal.SIGTERM, _terminated)
    print(build_intraday(options.store, options.intraday, options.first, options.last, options.factors, options.options,
                         options.days_mean, options.workers, options.blocks, options.table))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from qlib_ext.store.doctor import examine
    report = examine(options.store, options.workflows, progress=True)
    print(report.json() if options.json else report.text())
    return 0 if report.can_run else 1


def _schema(options: argparse.Namespace) -> int:
    print(schema_page(), end="")
    return 0


def _terminated(number, frame):
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
