"""`python -m qlib_ext.demo --out STORE`: generate the demo market and write it as a Qlib store."""

import argparse
import logging
import sys

from qlib_ext.errors import ExtError

INTRADAY = {"stocks": "stocks", "from": "first", "to": "last", "tick_stocks": "tick_stocks", "tick_days": "tick_days"}
"""Option `--intraday-<name>` -> attribute of `intraday.IntradayPart`."""


def seed(text: str) -> int:
    """A whole number, 0 or above, from the command line."""
    if int(text) < 0:
        raise ValueError
    return int(text)


def _add_intraday(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("intraday data")
    group.add_argument("--intraday", nargs="?", const="", metavar="DIR",
                       help="write minute bars, trades and orders of part of the market too (default folder <out>.intraday)")
    group.add_argument("--intraday-stocks", type=int, metavar="N", help="stocks with minute bars (default 100)")
    group.add_argument("--intraday-from", metavar="DATE", help="first day of minute bars (default 2022-01-01)")
    group.add_argument("--intraday-to", metavar="DATE", help="last day of minute bars (default the market's)")
    group.add_argument("--intraday-tick-stocks", type=int, metavar="N", help="stocks with trades and orders (default 8)")
    group.add_argument("--intraday-tick-days", type=int, metavar="N", help="last days with trades and orders (default 60)")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status (0, 1 with the error's sentence on stderr, 130 when interrupted)."""
    parser = argparse.ArgumentParser(prog="python -m qlib_ext.demo", description=__doc__)
    parser.add_argument("--out", required=True, help="folder of the store to make")
    parser.add_argument("--seed", type=seed, default=0, help="seed of all draws, 0 or above (default 0)")
    parser.add_argument("--overwrite", action="store_true", help="replace a demo store that is already there")
    switches = parser.add_mutually_exclusive_group()
    switches.add_argument("--drift", action="store_true", help="the pay-offs rotate among the signal's parts over the years")
    switches.add_argument("--null", action="store_true", help="a market without any signal")
    switches.add_argument("--size-groups", action="store_true", help="the groups that share a signal are bands of size")
    _add_intraday(parser)
    options = parser.parse_args(arguments)
    given = {name: getattr(options, f"intraday_{name}") for name in INTRADAY if getattr(options, f"intraday_{name}") is not None}
    if given and options.intraday is None:
        parser.error(f"--intraday-{next(iter(given)).replace('_', '-')} needs --intraday")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        from qlib_ext.demo.build import build_demo  # its imports take seconds

        common = {name: getattr(options, name) for name in ("seed", "overwrite", "drift", "null", "size_groups")}
        if options.intraday is None:
            build_demo(options.out, **common)
        else:
            from qlib_ext.demo.intraday import IntradayPart, build_intraday

            part = IntradayPart(**{INTRADAY[name]: value for name, value in given.items()})
            build_demo(options.out, **common)
            build_intraday(options.out, options.intraday or None, part, **common)
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        places = f"store {options.out}" + (f" or intraday folder {options.intraday}" if options.intraday else "")
        print(f"{places} cannot be written ({error.strerror or error}): give another --out or --intraday", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what was begun is made again by the same command", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
