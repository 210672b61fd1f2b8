"""`python -m qlib_ext COMMAND`: `check` looks a workflow over before it runs."""

import sys

USAGE = "usage: python -m qlib_ext check WORKFLOW.yaml [...]   (other commands: python -m qlib_ext.store, python -m qlib_ext.demo)"


def main(arguments: list[str] | None = None) -> int:
    """Hand the arguments to a command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if arguments[0] != "check":
        print(f"unknown command {arguments[0]!r}\n{USAGE}", file=sys.stderr)
        return 2
    from qlib_ext.check import main as check
    return check(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
