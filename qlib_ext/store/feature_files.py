"""Feature files of a Qlib store (`features/<code>/<field>.day.bin`): which are there, and which are damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Iterable

import numpy as np

PRICED = ("close", "volume", "factor")
"""Fields without which an instrument's row means nothing: a damaged file of one of these is an error."""
_ITEM = 4


def feature_file(features: Path, code: str, field: str) -> Path:
    """Where a daily field of an instrument lies; `features`: that folder of the store."""
    return features / str(code).lower() / f"{field.lower()}.day.bin"


def has_values(features: Path, code: str, field: str) -> bool:
    """Whether the file of a field holds its start position and at least one value."""
    try:
        return feature_file(features, code, field).stat().st_size >= 2 * _ITEM
    except OSError:
        return False


def damage(features: Path, codes: Iterable[str], days: int) -> str:
    """What to say of codes whose close, volume or factor is there but cannot be what it should be; empty where all are sound.

    A file holds float32: the calendar position of its first value (`days` positions in all), then one value a day.
    """
    codes = [code for code in codes if any(_is_damaged(feature_file(features, code, field), days) for field in PRICED)]
    return f"close, volume or factor of {first_few(codes)} is damaged (cut short, or not on the calendar)" if codes else ""


def _is_damaged(file: Path, days: int) -> bool:
    if not file.is_file():
        return False
    count, rest = divmod(file.stat().st_size, _ITEM)
    start = np.fromfile(file, dtype="<f4", count=1)
    return count < 2 or rest != 0 or not (0 <= start[0] <= days - (count - 1) and start[0] == int(start[0]))


def first_few(codes: list[str]) -> str:
    """The first codes of a list, and how many there are."""
    return ", ".join(codes[:5]) + (f" and {len(codes) - 5} others" if len(codes) > 5 else "")
