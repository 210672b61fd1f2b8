"""Column mapping: how another vendor names files and columns, spells codes and scales numbers.

A YAML file (or a dict of the same shape), one entry per table whose names or units differ:

    bars:
      file: daily.csv                    # default <table>.parquet or <table>.csv
      columns: {instrument: ts_code, date: trade_date, volume: vol}   # our name: the vendor's; others keep their name
      code: 600000.SH                    # the vendor's spelling of codes, by an example
      scale: {volume: 100, amount: 1000} # lots of 100 to shares, thousand CNY to CNY
    index_weights:
      constants: {index: csi300}         # one value for all rows
      unit: percent                      # or fraction; refused when the sums say otherwise
"""

import re
from dataclasses import dataclass, field
from datetime import date
from numbers import Real
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np
import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from qlib_ext.errors import ConfigError
from qlib_ext.signatures import did_you_mean
from qlib_ext.store.schema import INDEX_CODES, TABLES

CODE_COLUMNS = ("instrument", "member", "stock")
UNITS = ("percent", "fraction")
_KEYS = ("file", "columns", "scale", "code", "unit", "constants")
_EXAMPLES = ("SH600000", "sh600000", "SH.600000", "sh.600000", "600000.SH", "600000.sh", "600000.XSHG")
_OTHER_INDEX_CODES = {"SZ399300": "csi300", "SZ399905": "csi500"}  # the same indices as Shenzhen numbers them
_CAPITALS = {"SH": "SH", "SZ": "SZ", "BJ": "BJ"}
_SMALL = {"sh": "SH", "sz": "SZ", "bj": "BJ"}
_MARKETS = {"XSHG": "SH", "XSHE": "SZ", "BJSE": "BJ"}
_SPELLINGS = [(re.compile(pattern.replace("EXCHANGE", f"(?P<exchange>{'|'.join(names)})")), names)
              for names in (_CAPITALS, _SMALL, _MARKETS)
              for pattern in (r"EXCHANGE\.?(?P<number>\d{6})", r"(?P<number>\d{6})\.EXCHANGE")]  # fmt: skip


@dataclass
class Mapped:
    """The mapping of one table; empty: everything as the schema has it."""

    name: str
    file: Optional[str] = None
    columns: Dict[str, str] = field(default_factory=dict)
    scale: Dict[str, float] = field(default_factory=dict)
    code: Optional[str] = None
    unit: Optional[str] = None
    constants: Dict[str, Any] = field(default_factory=dict)

    def vendor(self, column: str) -> str:
        """The vendor's name of a column."""
        return self.columns.get(column, column)

    def absent(self, available: Sequence[str]) -> List[str]:
        """A fault for every mapped column the vendor's table does not have, and every scaled one that is not there."""
        faults = [f"table {self.name}: the column mapping takes {ours} from {theirs!r}, which the table lacks"
                  f"{did_you_mean(theirs, available)}; it has {list(available)}"
                  for ours, theirs in self.columns.items() if theirs not in available]  # fmt: skip
        return faults + [f"table {self.name}: the column mapping scales {column}, which the table lacks; correct the mapping"
                         for column in self.scale if column not in self.columns and column not in available]  # fmt: skip

    def to_codes(self, column: pd.Series) -> pd.Series:
        """Codes as SH600000; what is not spelled like the example stays as it is (and is refused by the checks)."""
        if self.code is None:
            return column
        pattern, exchanges = _spelling(self.code)
        categories = column.astype("category")
        new = [exchanges[found["exchange"]] + found["number"] if (found := pattern.fullmatch(str(value))) else str(value)
               for value in categories.cat.categories]  # fmt: skip
        return pd.Series(np.append(np.array(new, dtype=object), None)[categories.cat.codes], index=column.index)

    def to_texts(self, column: str, values: pd.Series) -> pd.Series:
        """Texts with codes converted; a known index's code becomes its name."""
        if self.code is not None and column in CODE_COLUMNS:
            return self.to_codes(values)
        if self.code is not None and column == "index":
            return self.to_codes(values).replace({**{code: name for name, code in INDEX_CODES.items()}, **_OTHER_INDEX_CODES})
        return values


def standard_code(text: str) -> Optional[str]:
    """A code in any known spelling as SH600000; None for what is spelled like none."""
    return next((names[found["exchange"]] + found["number"] for pattern, names in _SPELLINGS if (found := pattern.fullmatch(text))), None)


def _spelling(example: str):
    """Pattern and exchange names of the spelling of an example, or None."""
    return next(((pattern, names) for pattern, names in _SPELLINGS if pattern.fullmatch(example)), None)


def read_mapping(columns: Union[str, Path, Mapping, None]) -> Dict[str, Mapped]:
    """Read and check a column mapping: table name -> `Mapped`; empty for None.

    Raises
    ------
    ConfigError
        The file is absent or no YAML mapping; unknown table, key or column; a scale that is no positive number or of a column
        that holds no numbers; a code in no known spelling; a unit of another table; all named at once.
    """
    if columns is None:
        return {}
    if not isinstance(columns, (str, Path, Mapping)):
        raise ConfigError(f"a column mapping is a YAML file or a mapping with one entry per table, not {columns!r}")
    given = columns if isinstance(columns, Mapping) else _load(Path(columns).expanduser())
    faults: List[str] = []
    for name, entry in given.items():
        if name not in TABLES:
            faults.append(f"unknown table {name!r}{did_you_mean(name, TABLES)}; known are {list(TABLES)}")
        elif not isinstance(entry, Mapping):
            faults.append(f"table {name}: an entry is a mapping with keys of {list(_KEYS)}")
        else:
            faults += [f"table {name}: {fault}" for fault in _faults(name, entry)]
    if faults:
        raise ConfigError("the column mapping cannot be used:\n  " + "\n  ".join(faults))
    return {name: Mapped(name, **{key: value for key, value in entry.items() if value is not None})
            for name, entry in given.items()}  # fmt: skip


def _load(path: Path) -> dict:
    if not path.is_file():
        raise ConfigError(f"column mapping {path} does not exist; give a YAML file with one entry per table")
    try:
        given = YAML(typ="safe").load(path.read_text())
    except (YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"column mapping {path} is no YAML: {error}") from error
    if not isinstance(given, Mapping):
        raise ConfigError(f"column mapping {path} holds no entry per table; write e.g. 'bars: {{columns: {{volume: vol}}}}'")
    return given


def _faults(name: str, entry: Mapping) -> List[str]:
    """What is wrong with the entry of one table."""
    spec, faults = TABLES[name], []
    numbers = spec.numbers + spec.optional_numbers
    faults += [f"unknown key {key!r}{did_you_mean(key, _KEYS)}; known are {list(_KEYS)}" for key in entry if key not in _KEYS]
    parts = {key: {} if entry.get(key) is None else entry[key] for key in ("columns", "scale", "constants")}
    for key, part in parts.items():
        if not isinstance(part, Mapping):
            return faults + [f"{key} must be a mapping by our column names, not {part!r}"]
        faults += [f"{key}: unknown column {column!r}{did_you_mean(column, spec.columns)}; the table has {list(spec.columns)}"
                   for column in part if column not in spec.columns]  # fmt: skip
    faults += [f"columns: {column} must be the vendor's name of a column, not {vendor!r}"
               for column, vendor in parts["columns"].items() if not isinstance(vendor, str)]  # fmt: skip
    faults += [f"constants: {column} must be one text or number, not {value!r}"
               for column, value in parts["constants"].items() if not isinstance(value, (str, Real, date))]  # fmt: skip
    twice = [column for column in parts["constants"] if column in parts["columns"]]
    faults += [f"{column} has a constant and a vendor's column; keep one" for column in twice]
    for column, scale in parts["scale"].items():
        if isinstance(scale, bool) or not isinstance(scale, Real) or not 0 < scale < float("inf"):
            faults.append(f"scale of {column} must be a positive number, not {scale!r}")
        elif column in spec.columns and column not in numbers:
            faults.append(f"scale of {column}: the column holds no numbers; scaled can be {list(numbers)}")
    code, unit = entry.get("code"), entry.get("unit")
    if code is not None and not _spelling(str(code)):
        faults.append(f"code {code!r} is no known spelling; give a code as the vendor writes it, like {', '.join(_EXAMPLES)}")
    if unit is not None and (name != "index_weights" or unit not in UNITS):
        faults.append(f"unit {unit!r}: only index_weights has a unit, one of {list(UNITS)}; use scale for other columns")
    if entry.get("file") is not None and not isinstance(entry["file"], str):
        faults.append(f"file must be a file's name in the table folder, not {entry['file']!r}")
    return faults
