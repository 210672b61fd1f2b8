#!/usr/bin/env python
"""Runs side by side on the identical set of (day, stock, raw label): `python scripts/compare.py --help`."""

import sys

from qlib_ext.report.compare import main

if __name__ == "__main__":
    sys.exit(main())
