"""The `aux` section of a dataset: its loaders, what they load, and the windows that are cut from it."""

from __future__ import annotations

import copy

import numpy as np
from qlib.utils import init_instance_by_config

from qlib_ext.errors import ConfigError, DataError, ExtError


def aux_loaders(aux: dict) -> dict:
    """The loaders of an `aux` section; they are made here and load later."""
    if not isinstance(aux, dict):
        raise ConfigError(f"aux={aux!r}: give name: {{class, module_path, kwargs}}")
    loaders = {}
    for name, config in aux.items():
        try:
            loaders[name] = init_instance_by_config(copy.deepcopy(config))
        except ExtError:
            raise
        except Exception as error:  # Qlib gives what the import or the call raised
            raise ConfigError(f"aux {name!r} cannot be made from {config!r}: {type(error).__name__}: {error}") from error
        if not callable(getattr(loaders[name], "load", None)):
            raise ConfigError(f"aux {name!r} is a {type(loaders[name]).__name__}, which has no load(days)")
        if callable(getattr(loaders[name], "check", None)):
            loaders[name].check()
    return loaders


def window_sizes(asked, loaders: dict, window: int) -> dict[str, dict]:
    """name -> ``{"window": days, "bars": bars a day}`` of what `aux_windows` asks for.

    Args:
        asked: list of names, or name -> ``{window, bars}``. loaders: by name. window: the dataset's.

    Raises:
        ConfigError: a name that is none of a loader of values per stock, an unknown key, sizes that are no whole numbers above 0.
    """
    if asked is not None and not isinstance(asked, (list, tuple, dict)):
        raise ConfigError(f"aux_windows={asked!r}: give a list of names of aux, or name: {{window: days, bars: bars a day}}")
    found = {}
    for name, size in (asked if isinstance(asked, dict) else dict.fromkeys(asked or ())).items():
        if not getattr(loaders.get(name), "per_stock", False) or name == "stock":
            raise ConfigError(f"aux_windows names {name!r}, which is no loader of values per stock in aux ({sorted(loaders)}): name one")
        size = {} if size is None else size
        if not isinstance(size, dict) or set(size) - {"window", "bars"}:
            raise ConfigError(f"aux_windows of {name!r} is {size!r}: give {{window: days, bars: bars a day}}")
        made = getattr(loaders[name], "bars", None)
        found[name] = {"window": window, "bars": made or 1, **{key: value for key, value in size.items() if value is not None}}
        wrong = {key: value for key, value in found[name].items() if type(value) is not int or value < 1}
        if wrong or (made is not None and found[name]["bars"] != made):
            raise ConfigError(f"aux_windows of {name!r}: {wrong or found[name]} must be whole numbers, at least 1"
                              + (f", and bars the {made} that {type(loaders[name]).__name__} makes" if made else ""))
    return found


def load_aux(loaders: dict, index) -> tuple[dict, dict, dict]:
    """Values per day ``[t, m]`` and per stock ``[r+1, k]`` in the rows of an index, float32, and the names of their columns.

    Args:
        loaders: by name. index: has ``days [t]``, ``instruments [n]``, and ``day [r]`` and ``stock [r]``, where each row stands.

    Raises:
        DataError: values of another shape, or infinite ones.
    """
    day_aux, stock_aux, columns = {}, {}, {}
    for name, loader in loaders.items():
        if getattr(loader, "per_stock", False):
            stock_aux[name], columns[name] = _load_per_stock(name, loader, index)
        else:
            day_aux[name], columns[name] = _loaded(name, loader, (len(index.days),), index.days)
    return day_aux, stock_aux, columns


def _load_per_stock(name: str, loader, index) -> tuple[np.ndarray, list[str]]:
    """Values ``[r+1, k]`` in the rows of an index and their names; as many days at a time as the loader asks for (`partial`:
    there may be nothing in them), all if it does not."""
    size, filled, columns = getattr(loader, "days_at_a_time", None) or len(index.days), None, None
    for first in range(0, len(index.days), size):
        days = index.days[first:first + size]
        part = {"partial": True} if size < len(index.days) else {}
        values, names = _loaded(name, loader, (len(days), len(index.instruments)), days, index.instruments, **part)
        if filled is None:
            filled, columns = np.full((len(index.day) + 1, len(names)), np.nan, np.float32), names
        if names != columns:
            raise DataError(f"aux {name!r}: {type(loader).__name__} names its columns otherwise from {days[0]} on")
        rows = np.flatnonzero((index.day >= first) & (index.day < first + size))
        filled[rows] = values[index.day[rows] - first, index.stock[rows]]
    if size < len(index.days) and not np.isfinite(filled).any():
        raise DataError(f"aux {name!r}: {type(loader).__name__} knows nothing of any stock from {index.days[0]} to {index.days[-1]}: make "
                        "its data for these days, or choose others")
    return filled, columns


def _loaded(name: str, loader, shape: tuple, *asked, **options) -> tuple[np.ndarray, list[str]]:
    values, names = loader.load(*asked, **options)
    values, names = np.asarray(values, np.float32), [str(column) for column in names]
    if values.shape != (*shape, len(names)) or np.isinf(values).any():
        raise DataError(f"aux {name!r}: {type(loader).__name__} gave {values.shape} for {(*shape, len(names))}, or infinite values")
    return values, names
