"""Feature files of a Qlib store (`features/<code>/<field>.day.bin`): which are there, and which are damaged."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterable

import numpy as np

from qlib_ext.errors import DataError

PRICED = ("close", "volume", "factor")
"""Fields without which an instrument's row means nothing: a damaged file of one of these is an error."""
_ITEM = 4


def feature_file(features: str | Path, code: str, field: str) -> str:
    """Where a daily field of an instrument lies; `features`: that folder of the store."""
    return f"{features}/{str(code).lower()}/{field.lower()}.day.bin"


def has_values(features: Path, code: str, field: str) -> bool:
    """Whether the file of a field holds its start position and at least one value."""
    try:
        return os.stat(feature_file(features, code, field)).st_size >= 2 * _ITEM
    except OSError:
        return False


def read_field(file: str, days: int) -> tuple[int, np.ndarray] | None:
    """Calendar position of the first value and the float32 values of a feature file; None where there is no file, or nothing in it.

    Raises:
        DataError: the file is cut short, or reaches beyond the calendar's `days`.
    """
    try:
        with open(file, "rb") as opened:
            content = opened.read()
    except FileNotFoundError:
        return None
    if len(content) <= _ITEM:
        return None
    values = np.frombuffer(content[:len(content) // _ITEM * _ITEM], "<f4")
    if len(content) % _ITEM or not _fits(values[0], len(values) - 1, days):
        raise DataError(f"{'/'.join(file.split('/')[-3:])} is damaged (cut short, or not on the calendar): write it anew "
                        "(`python -m qlib_ext.store doctor` lists such files), or, if the store has grown, call qlib.init again")
    return int(values[0]), values[1:]


def _fits(start: np.floating, count: int, days: int) -> bool:
    return bool(0 <= start <= days - count and start == int(start))


def damage(features: Path, codes: Iterable[str], days: int) -> str:
    """What to say of codes whose close, volume or factor is there but cannot be what it should be; empty where all are sound.

    A file holds float32: the calendar position of its first value (`days` positions in all), then one value a day.
    """
    codes = [code for code in codes if any(_is_damaged(feature_file(features, code, field), days) for field in PRICED)]
    return f"close, volume or factor of {first_few(codes)} is damaged (cut short, or not on the calendar)" if codes else ""


def _is_damaged(file: str, days: int) -> bool:
    try:
        with open(file, "rb", buffering=0) as opened:
            count, rest = divmod(os.fstat(opened.fileno()).st_size, _ITEM)
            start = np.frombuffer(opened.read(_ITEM).ljust(_ITEM, b"\0"), "<f4")
    except FileNotFoundError:
        return False
    return count < 2 or rest != 0 or not _fits(start[0], count - 1, days)


def first_few(codes: list[str]) -> str:
    """The first codes of a list, and how many there are."""
    return ", ".join(codes[:5]) + (f" and {len(codes) - 5} others" if len(codes) > 5 else "")
