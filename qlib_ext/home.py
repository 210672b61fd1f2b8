"""Where this package keeps what it makes: demo store, tracking database, artefacts, unfinished fits, computed features."""

from __future__ import annotations

import os
from pathlib import Path


def home() -> Path:
    """``~/.qlib_ext``, or what QLIB_EXT_HOME names."""
    return Path(os.environ.get("QLIB_EXT_HOME") or "~/.qlib_ext").expanduser()


def named_store(name: str | None = None) -> str:
    """The store a command line names, else the one of QLIB_DATA, else the demo market."""
    return name or os.environ.get("QLIB_DATA") or f"{home()}/demo/cn_data"
