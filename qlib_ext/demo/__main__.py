"""`python -m qlib_ext.demo --out STORE`: generate the demo market and write it as a Qlib store."""

import argparse
import logging
import sys

from qlib_ext.errors import ExtError


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status (0, or 1 with the error's sentence on stderr)."""
    parser = argparse.ArgumentParser(prog="python -m qlib_ext.demo", description=__doc__)
    parser.add_argument("--out", required=True, help="folder of the store to make")
    parser.add_argument("--seed", type=int, default=0, help="seed of all draws (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a demo store that is already there")
    switches = parser.add_mutually_exclusive_group()
    switches.add_argument("--drift", action="store_true", help="the pay-offs rotate among the signal's parts over the years")
    switches.add_argument("--null", action="store_true", help="a market without any signal")
    options = parser.parse_args(arguments)
    from qlib_ext.demo.build import build_demo

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        build_demo(options.out, seed=options.seed, overwrite=options.overwrite, drift=options.drift, null=options.null)
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
