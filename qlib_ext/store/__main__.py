"""Command line of the store: `python -m qlib_ext.store ingest --tables DIR --out STORE`."""

import argparse
import logging
import signal
import sys
from typing import List, Optional

from qlib_ext.errors import ExtError
from qlib_ext.store.schema import INDEX_NAMES, VWAP_MODES


def main(arguments: Optional[List[str]] = None) -> int:
    """Run the command line; 0 when done, 1 after a named error (its sentence goes to standard error)."""
    parser = argparse.ArgumentParser(prog="python -m qlib_ext.store", description="Make a Qlib store.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("ingest", help="turn a folder of tables (Parquet or CSV) into a Qlib store")
    command.add_argument("--tables", required=True, help="folder holding bars, index_bars, membership and optional tables")
    command.add_argument("--out", required=True, help="folder of the store to make")
    command.add_argument("--vwap", default=VWAP_MODES[0], choices=VWAP_MODES,
                         help="typical: (high + low + close) / 3; amount: amount / volume (default: %(default)s)")
    command.add_argument("--overwrite", action="store_true", help="replace a store that is there already")
    command.add_argument("--indices", nargs="+", default=list(INDEX_NAMES), metavar="NAME",
                         help="indices of table membership to store (default: %(default)s)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _terminated)  # so that the half-built folder is removed
    from qlib_ext.store.ingest import ingest  # imports Qlib: only once the arguments are right

    try:
        out = ingest(options.tables, options.out, vwap=options.vwap, overwrite=options.overwrite, index_names=options.indices)
    except ExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no store was written", file=sys.stderr)
        return 130
    print(out)
    return 0


def _terminated(number, frame):
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
