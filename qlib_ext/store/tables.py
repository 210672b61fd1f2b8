"""Reading the input tables: Parquet or CSV files of a folder, or DataFrames, into plain arrays."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Union

import numpy as np
import pandas as pd
import pyarrow.parquet

from qlib_ext.errors import DataError
from qlib_ext.store.schema import TABLES, TableSpec

TableSource = Union[str, Path, Mapping[str, pd.DataFrame]]
_EXTENSIONS = (".parquet", ".csv")


@dataclass
class Table:
    """One table as arrays: `codes [c]` sorted unique instrument codes, `code [r]` the row's position in them (-1: missing),
    `dates` name -> datetime64[D] [r], `numbers` name -> float64 [r] (NaN: unknown), `texts` name -> object [r].
    `broken` lists faults met while converting (see `qlib_ext.store.checks`)."""

    name: str
    codes: np.ndarray
    code: np.ndarray
    dates: Dict[str, np.ndarray]
    numbers: Dict[str, np.ndarray]
    texts: Dict[str, np.ndarray]
    broken: List[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.code)

    def instrument(self, row: int) -> str:
        """Code of a row as text."""
        return str(self.codes[self.code[row]]) if self.code[row] >= 0 else "(missing)"

    def take(self, rows: np.ndarray) -> "Table":
        """The table restricted to (or reordered by) `rows`."""
        pick = lambda columns: {name: values[rows] for name, values in columns.items()}  # noqa: E731
        return Table(self.name, self.codes, self.code[rows], pick(self.dates), pick(self.numbers), pick(self.texts))

    def with_codes(self, codes: np.ndarray) -> np.ndarray:
        """Position of each row's instrument in another sorted array of codes; -1 where it is not in it. [r]"""
        place = np.searchsorted(codes, self.codes)
        found = np.isin(self.codes, codes)
        mapped = np.append(np.where(found, place, -1), -1)
        return mapped[self.code]


def read_tables(source: TableSource) -> Dict[str, Table]:
    """Read every table of `qlib_ext.store.schema.TABLES` that is there.

    `source` is a folder holding `<table>.parquet` or `<table>.csv`, or a mapping of DataFrames by table name.

    Raises
    ------
    DataError
        Folder or required table missing, a table without rows, a column missing, a table given twice; all named at once.
    """
    faults: List[str] = []
    frames: Dict[str, pd.DataFrame] = {}
    if isinstance(source, Mapping):
        unknown = sorted(set(source) - set(TABLES))
        if unknown:
            faults.append(f"unknown tables {unknown}; known are {list(TABLES)}")
        pieces = {name: source[name] for name in TABLES if source.get(name) is not None}
    else:
        folder = Path(source).expanduser()
        if not folder.is_dir():
            raise DataError(f"table folder {folder} does not exist; give a folder holding bars.parquet (or .csv) and the others")
        pieces = {name: path for name in TABLES if (path := _find_file(folder, name, faults)) is not None}
    for name, spec in TABLES.items():
        if name not in pieces:
            if spec.required:
                faults.append(f"table {name} is missing; it needs the columns {list(spec.required_columns)}")
            continue
        frame = _read_frame(name, pieces[name], spec, faults)
        if frame is not None:
            frames[name] = frame
    if faults:
        raise DataError("the tables cannot be ingested:\n  " + "\n  ".join(faults))
    tables = {}
    for name in list(frames):
        tables[name] = _to_table(name, frames.pop(name), TABLES[name])
    return tables


def _find_file(folder: Path, name: str, faults: List[str]) -> Optional[Path]:
    found = [folder / (name + extension) for extension in _EXTENSIONS if (folder / (name + extension)).is_file()]
    if len(found) > 1:
        faults.append(f"table {name} is there twice, as {found[0].name} and {found[1].name}; keep one of them")
    return found[0] if found else None


def _read_frame(name: str, piece, spec: TableSpec, faults: List[str]) -> Optional[pd.DataFrame]:
    """The wanted columns of one table, or None after noting why it cannot be used."""
    try:
        available, read = _open(piece)
        missing = [column for column in spec.required_columns if column not in available]
        frame = None if missing else read([column for column in spec.columns if column in available])
    except Exception as error:  # a broken file can fail in many ways; the reader's own words say how
        faults.append(f"table {name} cannot be read ({type(error).__name__}: {error}); write it again")
        return None
    if missing:
        faults.append(f"table {name} lacks the columns {missing}; it has {available}")
        return None
    if len(frame) == 0:
        faults.append(f"table {name} has no rows; give its rows" + ("" if spec.required else ", or leave the table out"))
        return None
    return frame


def _open(piece: Union[pd.DataFrame, Path]):
    """Column names of a table, and a function that reads some of them."""
    if isinstance(piece, pd.DataFrame):
        return list(piece.columns), lambda columns: piece[columns]
    if piece.suffix == ".parquet":
        return pyarrow.parquet.read_schema(piece).names, lambda columns: pd.read_parquet(piece, columns=columns)
    texts = {name: str for name in ("instrument", "index", "l1_code", "l1_name", "method", "date", "start", "end", "month")}
    return list(pd.read_csv(piece, nrows=0).columns), lambda columns: pd.read_csv(piece, usecols=columns, dtype=texts)


def _to_table(name: str, frame: pd.DataFrame, spec: TableSpec) -> Table:
    broken: List[str] = []
    codes, code = _factorize(frame["instrument"])
    table = Table(name, codes, code, {}, {}, {}, broken)
    for column in spec.dates:
        table.dates[column] = _to_days(name, column, frame[column], broken)
    for column in spec.numbers + spec.optional_numbers:
        if column in frame:
            numbers = pd.to_numeric(frame[column], errors="coerce")
            bad = int((numbers.isna() & frame[column].notna()).sum()) if numbers.dtype != frame[column].dtype else 0
            if bad:
                broken.append(f"table {name}: {bad} rows hold text that is no number in column {column}; correct them")
            table.numbers[column] = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    for column in spec.texts + spec.optional_texts:
        if column in frame:
            table.texts[column] = frame[column].astype(object).where(frame[column].notna(), None).to_numpy(dtype=object)
    return table


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
    if pd.api.types.is_integer_dtype(column):
        column = column.astype(str)
    if not pd.api.types.is_datetime64_any_dtype(column):
        text = column.astype(str)
        compact = text.str.fullmatch(r"\d{8}").all()
        column = pd.to_datetime(text, format="%Y%m%d" if compact else None, errors="coerce")
    column = column.dt.tz_localize(None)
    days = column.to_numpy().astype("datetime64[D]")
    with_time = int((column.to_numpy() != days)[~np.isnat(days)].sum())
    if with_time:
        broken.append(f"table {table}: {with_time} values of column {name} carry a time of day; give plain dates")
    return days
