"""How this package compiles its loops."""

from __future__ import annotations

from typing import Callable

from numba import njit


def compiled(function: Callable) -> Callable:
    """numba's `njit`: other threads run meanwhile, division by zero gives inf or NaN, and the machine code is kept on disk.

    The code lies beside the source, else in the user's cache folder, and is made once per installation; where neither can be written
    it is made in every process.
    """
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for it
        return njit(**options)(function)
