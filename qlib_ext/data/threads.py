"""Threads over pieces of arrays: for numpy and compiled code, which give the interpreter free while they work."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterable, List

from qlib_ext.errors import ConfigError

VARIABLE = "QLIB_EXT_THREADS"


def thread_count() -> int:
    """Number of threads to use: the environment variable QLIB_EXT_THREADS, else the processors this process may run on.

    Raises:
        ConfigError: the variable is not a whole number from 1 on.
    """
    said = os.environ.get(VARIABLE, "").strip()
    if not said:
        return len(os.sched_getaffinity(0))
    if not said.isdecimal() or int(said) < 1:
        raise ConfigError(f"{VARIABLE} must be a whole number from 1 on, got {said!r}: correct it, or unset it to use all "
                          "processors")
    return int(said)


def run(function: Callable[[Any], Any], pieces: Iterable) -> List:
    """`[function(piece) for piece in pieces]`, on `thread_count()` threads that end with the call (so that forking stays safe).

    Raises:
        The first error of `function`; pieces not begun by then are dropped. ConfigError: as `thread_count`.
    """
    pieces = list(pieces)
    workers = min(thread_count(), len(pieces))
    if workers <= 1:
        return [function(piece) for piece in pieces]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, pieces))
