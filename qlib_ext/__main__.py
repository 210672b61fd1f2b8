"""`python -m qlib_ext COMMAND`: `check` looks a workflow over before it runs, `pack` writes its panel to one file."""

import sys

USAGE = """usage: python -m qlib_ext check WORKFLOW.yaml [...]
       python -m qlib_ext pack WORKFLOW.yaml PACK [--float16] [--shards]
other commands: python -m qlib_ext.store, python -m qlib_ext.demo, python -m qlib_ext.training"""


def main(arguments: list[str] | None = None) -> int:
    """Hand the arguments to a command; returns its exit status, 130 when it is interrupted."""
    try:
        return _command(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _command(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] == "check":
        from qlib_ext.check import main as command
    elif arguments[0] == "pack":
        from qlib_ext.packing import main as command
    else:
        print(f"unknown command {arguments[0]!r}\n{USAGE}", file=sys.stderr)
        return 2
    return command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
