"""Reading the input tables: Parquet or CSV files of a folder, or DataFrames, into plain arrays."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Union

import numpy as np
import pandas as pd
import pyarrow.parquet

from qlib_ext.errors import DataError
from qlib_ext.store.mapping import Mapped, read_mapping
from qlib_ext.store.schema import TABLES

TableSource = Union[str, Path, Mapping[str, pd.DataFrame]]
_EXTENSIONS = (".parquet", ".csv")
_DAY = r"^(\d{4})([-/]?)(\d{2})\2(\d{2})(?!\d)"  # the year first


@dataclass
class Table:
    """One table as arrays: `codes [c]` sorted unique instrument codes, `code [r]` the row's position in them (-1: missing),
    `dates` name -> datetime64[D] [r], `numbers` name -> float64 [r] (NaN: unknown), `texts` name -> object [r].
    `unit` is what a column mapping declares (index weights only). `broken` lists faults met while converting (see
    `qlib_ext.store.checks`)."""

    name: str
    codes: np.ndarray
    code: np.ndarray
    dates: Dict[str, np.ndarray]
    numbers: Dict[str, np.ndarray]
    texts: Dict[str, np.ndarray]
    unit: Optional[str] = None
    broken: List[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.code)

    def instrument(self, row: int) -> str:
        """Code of a row as text."""
        return str(self.codes[self.code[row]]) if self.code[row] >= 0 else "(missing)"

    def take(self, rows: np.ndarray) -> "Table":
        """The table restricted to (or reordered by) `rows`."""
        pick = lambda columns: {name: values[rows] for name, values in columns.items()}  # noqa: E731
        return Table(self.name, self.codes, self.code[rows], pick(self.dates), pick(self.numbers), pick(self.texts), self.unit)

    def sorted(self) -> "Table":
        """The table in its one order of rows: by instrument, dates, then texts."""
        texts = [pd.factorize(values, sort=True)[0] for values in self.texts.values()]
        keys = [self.code, *(days.astype(np.int64) for days in self.dates.values()), *texts]
        return self.take(np.lexsort(keys[::-1]))

    def frame(self) -> pd.DataFrame:
        """The table in its one order of rows, with the column names of the schema; read back, it gives an equal table."""
        table = self.sorted()
        columns = {"instrument": np.append(table.codes, None)[table.code]}
        columns.update({name: days.astype("datetime64[ms]") for name, days in table.dates.items()})
        columns.update(table.texts)
        columns.update(table.numbers)
        return pd.DataFrame(columns)

    def with_codes(self, codes: np.ndarray) -> np.ndarray:
        """Position of each row's instrument in another sorted array of codes; -1 where it is not in it. [r]"""
        place = np.searchsorted(codes, self.codes)
        found = np.isin(self.codes, codes)
        mapped = np.append(np.where(found, place, -1), -1)
        return mapped[self.code]


def read_tables(source: TableSource, columns: Union[str, Path, Mapping, None] = None,
                required: Optional[Sequence[str]] = None) -> Dict[str, Table]:  # fmt: skip
    """Read every table of `qlib_ext.store.schema.TABLES` that is there.

    `source` is a folder holding `<table>.parquet` or `<table>.csv`, or a mapping of DataFrames by table name; `columns` says how
    another vendor names files and columns (see `qlib_ext.store.mapping`). `required` names the tables that must be there, default
    those of the schema and those of the mapping.

    Raises
    ------
    ConfigError
        The column mapping is wrong.
    DataError
        Folder or required table missing, a table without rows, a column missing, a table given twice; all named at once.
    """
    faults: List[str] = []
    mapping = read_mapping(columns)
    mapped = {name: mapping.get(name, Mapped(name)) for name in TABLES}
    if isinstance(source, Mapping):
        unknown = sorted(set(source) - set(TABLES))
        if unknown:
            faults.append(f"unknown tables {unknown}; known are {list(TABLES)}")
        pieces = {name: source[name] for name in TABLES if source.get(name) is not None}
    else:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise DataError(f"table folder {folder} does not exist; give a folder holding bars.parquet (or .csv) and the others")
        files = {name: _find_file(folder, name, mapped[name].file, faults) for name in TABLES}
        pieces = {name: file for name, file in files.items() if file is not None}
    opened: Dict[str, Callable[[], pd.DataFrame]] = {}
    for name, spec in TABLES.items():
        if name in pieces:
            opened[name] = _open(name, pieces[name], mapped[name], faults)
        elif name in required if required is not None else spec.required or name in mapping:
            file = f" (the column mapping names the file {mapped[name].file}, .csv or .parquet)" if mapped[name].file else ""
            needs = f"it needs the columns {list(spec.required_columns)}"
            advice = needs if spec.required else "give it, or leave it out of the mapping"
            faults.append(f"table {name} is missing{file}; {advice}")
    if faults:
        raise DataError("the tables cannot be ingested:\n  " + "\n  ".join(faults))
    return {name: _to_table(name, read(), mapped[name]) for name, read in opened.items()}


def _find_file(folder: Path, name: str, file: Optional[str], faults: List[str]) -> Optional[Path]:
    """The file of a table: the one the column mapping names, else the table's name with an extension; None if it is not there."""
    names = [name + extension for extension in _EXTENSIONS] if file is None else [file]
    found = [folder / one for one in names if (folder / one).is_file() and Path(one).suffix in _EXTENSIONS]
    if len(found) > 1:
        faults.append(f"table {name} is there twice, as {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def _open(name: str, piece, mapped: Mapped, faults: List[str]) -> Optional[Callable[[], pd.DataFrame]]:
    """A function that reads the wanted columns of one table, or None after noting why it cannot be used."""
    spec = TABLES[name]
    try:
        available, empty = _columns(piece)
    except Exception as error:  # a broken file can fail in many ways; the reader's own words say how
        faults.append(f"table {name} cannot be read ({type(error).__name__}: {error}); write it again")
        return None
    wanted = {column: mapped.vendor(column) for column in spec.columns if column not in mapped.constants}
    faults += mapped.absent(available)
    twice = sorted({str(column) for column in available if list(available).count(column) > 1})
    if twice:
        faults.append(f"table {name} has the columns {twice} more than once; keep one of each")
    missing = [column for column in spec.required_columns
               if column in wanted and column not in mapped.columns and column not in available]
    if missing:
        faults.append(f"table {name} lacks the columns {missing}; it has {available}")
    elif empty:
        faults.append(f"table {name} has no rows; give its rows" + ("" if spec.required else ", or leave the table out"))
    present = {column: vendor for column, vendor in wanted.items() if vendor in available}
    return lambda: _read(name, piece, present, mapped)


def _columns(piece: Union[pd.DataFrame, Path]):
    """Column names of a table, and whether it has no rows."""
    if isinstance(piece, pd.DataFrame):
        return list(piece.columns), len(piece) == 0
    if piece.suffix == ".parquet":
        about = pyarrow.parquet.ParquetFile(piece)
        return about.schema_arrow.names, about.metadata.num_rows == 0
    first = pd.read_csv(piece, nrows=1)
    return list(first.columns), len(first) == 0


def _read(name: str, piece, present: Dict[str, str], mapped: Mapped) -> pd.DataFrame:
    """Columns of a table under the names of the schema: `present` our name -> its name there."""
    wanted = list(dict.fromkeys(present.values()))
    try:
        if isinstance(piece, pd.DataFrame):
            frame = piece[wanted]
        elif piece.suffix == ".parquet":
            frame = pd.read_parquet(piece, columns=wanted)
        else:
            spec = TABLES[name]
            plain = {vendor: str for column, vendor in present.items() if column not in spec.numbers + spec.optional_numbers}
            frame = pd.read_csv(piece, usecols=wanted, dtype=plain, float_precision="round_trip")
    except Exception as error:
        raise DataError(f"table {name} cannot be read ({type(error).__name__}: {error}); write it again") from error
    frame = pd.DataFrame({column: frame[vendor] for column, vendor in present.items()})
    return frame.assign(**mapped.constants)


def _to_table(name: str, frame: pd.DataFrame, mapped: Mapped) -> Table:
    spec, broken = TABLES[name], []
    codes, code = _factorize(mapped.to_codes(frame["instrument"]))
    table = Table(name, codes, code, {}, {}, {}, mapped.unit, broken)
    for column in filter(frame.__contains__, spec.dates + spec.optional_dates):
        table.dates[column] = _to_days(name, column, frame[column], broken)
        unreadable = int((np.isnat(table.dates[column]) & frame[column].notna()).sum()) if column in spec.optional_dates else 0
        if unreadable:
            broken.append(f"table {name}: {unreadable} rows hold no readable date in column {column}; write it as YYYY-MM-DD")
    for column in filter(frame.__contains__, spec.numbers + spec.optional_numbers):
        numbers = pd.to_numeric(frame[column], errors="coerce")
        bad = int((numbers.isna() & frame[column].notna()).sum()) if numbers.dtype != frame[column].dtype else 0
        if bad:
            broken.append(f"table {name}: {bad} rows hold text that is no number in column {column}; correct them")
        table.numbers[column] = numbers.to_numpy(dtype=np.float64, na_value=np.nan) * mapped.scale.get(column, 1.0)
    for column in filter(frame.__contains__, spec.texts + spec.optional_texts):
        table.texts[column] = _to_texts(mapped.to_texts(column, frame[column]))
    return table


def _to_texts(column: pd.Series) -> np.ndarray:
    """Texts as str, None where missing; whole numbers without a decimal point ('48.0' is 48). object [r]"""
    place, values = pd.factorize(column)
    return np.array([*(re.sub(r"^(\d+)\.0+$", r"\1", str(value)) for value in values), None], dtype=object)[place]


def _factorize(column: pd.Series):
    """Sorted unique codes as str array and each row's position (-1 where missing)."""
    if not isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype("category")
    categories = np.asarray([str(value) for value in column.cat.categories])
    code = column.cat.codes.to_numpy().astype(np.int64)
    used = np.unique(code[code >= 0])
    codes, place = np.unique(categories[used], return_inverse=True) if len(used) else (np.empty(0, dtype=str), used)
    mapped = np.full(len(categories) + 1, -1, dtype=np.int64)
    mapped[used] = place
    return codes, mapped[code]


def _to_days(table: str, name: str, column: pd.Series, broken: List[str]) -> np.ndarray:
    """Days, NaT where missing or unreadable; times of day are noted in `broken`. datetime64[D] [r]"""
    place, values = pd.factorize(column)
    times = pd.Series(values)
    if not pd.api.types.is_datetime64_any_dtype(times):
        texts = pd.Series(_to_texts(times), dtype=str)
        clear = texts.where(texts.str.match(_DAY)).str.replace(_DAY, r"\1-\3-\4", regex=True)  # no guess: 03/04/2020 is two days
        times = pd.to_datetime(clear, format="ISO8601", errors="coerce")
    times = times.dt.tz_localize(None).to_numpy()
    days = times.astype("datetime64[D]")
    with_time = int(np.append((times != days) & ~np.isnat(days), False)[place].sum())
    if with_time:
        broken.append(f"table {table}: {with_time} values of column {name} carry a time of day; give plain dates")
    return np.append(days, np.datetime64("NaT"))[place]
