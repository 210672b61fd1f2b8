"""How this package compiles its loops."""

from __future__ import annotations

import hashlib
import pkgutil
from typing import Callable, Sequence

from numba import njit

FORMULAS = ("jit.py", "factors/rolling.py", "factors/alpha158.py")
KERNELS = (*FORMULAS, "factors/intraday_bars.py", "data/columns.py", "data/cache.py", "risk/weighted.py", "risk/regression.py",
           "portfolio/engine.py")
"""All files with compiled functions; a function may call those of another file."""


def source_digest(files: Sequence[str]) -> str | None:
    """Hash of some source files of this package, None where they are not there (an installation without sources)."""
    try:
        return hashlib.blake2b(b"".join(pkgutil.get_data("qlib_ext", name) or b"" for name in files), digest_size=16).hexdigest()
    except OSError:
        return None


_DIGEST = source_digest(KERNELS)


def compiled(function: Callable) -> Callable:
    """numba's `njit`: other threads run meanwhile, division by zero gives inf or NaN, and the machine code is kept on disk.

    The code lies beside the source, else in the user's cache folder, and is made once per installation; where neither can be written
    it is made in every process. numba itself only notices changes of the file that a function stands in, and would go on with old
    code of functions that it calls: here any change in `KERNELS` makes all of them anew.
    """
    options = {"nogil": True, "error_model": "numpy"}
    if _DIGEST is None:
        return njit(**options)(function)
    try:
        made = njit(cache=True, **options)(function)
        file = made._cache._cache_file
        file._source_stamp = (file._source_stamp, _DIGEST)
        return made
    except (RuntimeError, AttributeError):  # no folder for it, or a numba that keeps it otherwise
        return njit(**options)(function)
