"""`python -m qlib_ext.demo --out STORE`: generate the demo market and write it as a Qlib store."""

import argparse
import logging
import sys

from qlib_ext.errors import ExtError


def seed(text: str) -> int:
    """A whole number, 0 or above, from the command line."""
    if int(text) < 0:
        raise ValueError
    return int(text)


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
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        from qlib_ext.demo.build import build_demo  # its imports take seconds

        build_demo(options.out, seed=options.seed, overwrite=options.overwrite, drift=options.drift, null=options.null,
                   size_groups=options.size_groups)
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"store {options.out} cannot be written ({error.strerror or error}): give another --out", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no demo store was finished", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
