"""Command line of the risk model: `python -m qlib_ext.risk build | coverage | export`."""

from __future__ import annotations

import argparse
import sys

import pandas as pd

from qlib_ext.errors import ExtError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 when done, 1 after a named error (its sentence goes to standard error)."""
    options = _parser().parse_args(arguments)
    try:
        return {"build": _build, "coverage": _coverage, "export": _export}[options.command](options)
    except ExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the months that were finished stay, the next build goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m qlib_ext.risk", description="Make and hand on snapshots of the risk model.")
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="make the snapshots of all days of a store that are missing, damaged months included")
    coverage = commands.add_parser("coverage", help="say which styles a store allows, and what share of the stocks has them each year")
    for command in (build, coverage):
        command.add_argument("--store", required=True, help="folder of the Qlib store")
        command.add_argument("--cap", default="auto", help="auto (total_cap, else float_cap, else equal), total_cap, float_cap or equal")
        command.add_argument("--universe", help="estimation universe (default: all stocks listed for 120 days, without ST)")
    build.add_argument("--out", help="folder of the snapshots (default: in QLIB_EXT_HOME, where workflows find them)")
    build.add_argument("--styles", nargs="+", metavar="STYLE", help="styles to use (default: all that the store allows)")
    build.add_argument("--covariance", nargs="+", default=[], metavar="NAME=VALUE", help="options of qlib_ext.risk.covariance")
    build.add_argument("--overwrite", action="store_true", help="begin anew")
    export = commands.add_parser("export", help="write the folders that Qlib's EnhancedIndexingStrategy reads")
    export.add_argument("--snapshots", required=True, help="folder of the snapshots")
    export.add_argument("--out", required=True, help="folder to write, one folder a day in it")
    export.add_argument("--start", help="first day")
    export.add_argument("--end", help="last day")
    export.add_argument("--fractions", action="store_true", help="variances of returns as fractions (default: in percent, as Qlib's)")
    return parser


def _start(store: str) -> None:
    import qlib

    from qlib_ext.store.metadata import check_store
    qlib.init(provider_uri=str(check_store(store)), region="cn", kernels=1, expression_cache=None, dataset_cache=None, logging_level=30)


def _build(options: argparse.Namespace) -> int:
    from qlib_ext.risk.model import RiskOptions, prepare_snapshots
    chosen = RiskOptions(options.styles, options.cap, options.universe, dict(_pair(text) for text in options.covariance))
    _start(options.store)
    store = prepare_snapshots(options.out, chosen, overwrite=options.overwrite, thorough=True)
    for style, reason in store.settings["missing"].items():
        print(f"no {style}: {reason}", file=sys.stderr)
    print(f"{store.folder}: {len(store.days)} days from {store.days[0]} to {store.days[-1]}, styles {', '.join(store.settings['styles'])}")
    return 0


def _pair(text: str) -> tuple[str, float | int | None]:
    """An option of the covariance, `volatility_half_life=60`; `none` for None."""
    from qlib_ext.errors import ConfigError
    name, _, value = text.partition("=")
    try:
        return name, None if value.lower() == "none" else int(value) if value.lstrip("-").isdecimal() else float(value)
    except ValueError as error:
        raise ConfigError(f"--covariance {text!r}: write NAME=NUMBER") from error


def _coverage(options: argparse.Namespace) -> int:
    from qlib_ext.risk.model import RiskOptions, load_styles
    _start(options.store)
    _, rows = load_styles(options=RiskOptions(cap=options.cap, universe=options.universe))
    table = pd.DataFrame(rows)
    print("share of the estimation universe with a style of its own (not filled from industry and size)")
    print(table.pivot(index=["style", "descriptors"], columns="year", values="own").to_string(float_format="%.3f"))
    return 0


def _export(options: argparse.Namespace) -> int:
    from qlib_ext.store.snapshots import SnapshotStore, export_qlib
    export_qlib(SnapshotStore(options.snapshots), options.out, options.start, options.end, scale_return=not options.fractions)
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
