"""Risk snapshots on disk: a Parquet file a month, a row a day, replaced whole; and the folders Qlib's own strategy reads.

The file `2024-03.parquet` holds lists: exposures to styles, specific variances and residuals as float32, factor returns and
covariances as float64, instruments and factors as numbers of the names in the file's metadata (key `qlib_ext_risk`), beside
format and settings. What is read back is the float32 rounding of what was written. Pages and metadata carry checksums.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import zlib
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.risk.snapshot import COUNTRY, INDUSTRY, RiskDay, RiskSnapshot, style_names

logger = logging.getLogger(__name__)
FORMAT = 1
KEY, CHECK = b"qlib_ext_risk", b"qlib_ext_risk_crc32"
_LISTS = {"factors": pa.int16(), "instruments": pa.int32(), "industry": pa.int16(), "exposure": pa.float32(),
          "factor_cov": pa.float64(), "specific_var": pa.float32(), "factor_return": pa.float64(), "residual": pa.float32(),
          "estimation": pa.bool_()}
_SCHEMA = pa.schema([("date", pa.date32()), ("r_squared", pa.float64()),
                     *((name, pa.list_(kind)) for name, kind in _LISTS.items())])
_FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, pa.ArrowException)
_MONTH = re.compile(r"\d{4}-\d{2}\.parquet")
_ADVICE = "`python -m qlib_ext.risk build` makes it again"


class SnapshotStore:
    """A folder of risk days.

    Args:
        folder: need not exist yet.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()

    # ---- what is there ----------------------------------------------------------------------------------------------------
    def files(self) -> list[Path]:
        """Files of months, the oldest first."""
        return sorted(file for file in self.folder.glob("*.parquet") if _MONTH.fullmatch(file.name))

    @property
    def days(self) -> np.ndarray:
        """Days stored, datetime64[D] ascending; DataError for a file cut short or of another format (little of it is read)."""
        return _joined([_Month(file, ["date"]).days for file in self.files()])

    @property
    def sound_days(self) -> np.ndarray:
        """`days` without those of damaged files; reads all of every file."""
        return self.whole_days(thorough=True)

    def whole_days(self, thorough: bool = False) -> np.ndarray:
        """`days` without those of files that are cut short or of another format; with `thorough`, of files changed anywhere."""
        found = [_sound(file) if thorough else _sound(file, ["date"]) for file in self.files()]
        return _joined([month.days for month in found if month is not None])

    def damaged(self) -> list[Path]:
        """Files that cannot be read: cut short, changed, or of another format; reads all of every file."""
        return [file for file in self.files() if _sound(file) is None]

    @property
    def settings(self) -> dict:
        """What the snapshots were made with; empty for an empty folder."""
        return self._held() or {}

    def _held(self) -> dict | None:
        """Settings of the newest file that can be read; None without any."""
        return next((month.about["settings"] for file in reversed(self.files()) if (month := _sound(file, ["date"]))), None)

    # ---- reading ----------------------------------------------------------------------------------------------------------
    def read(self, day) -> RiskSnapshot:
        """The snapshot of a day.

        Raises:
            DataError: it is not stored, or its file is damaged.
        """
        return self.read_day(day).snapshot

    def read_day(self, day) -> RiskDay:
        """The snapshot of a day with its factor returns and residuals (as `read`)."""
        day = np.datetime64(pd.Timestamp(day), "D")
        file = self.folder / f"{day.astype('datetime64[M]')}.parquet"
        month = _Month(file) if file.is_file() else None
        if month is None or day not in month.days:
            raise DataError(f"no risk snapshot of {day} in {self.folder}: {self._span()}; `python -m qlib_ext.risk build` makes "
                            "the days of a store that are missing")
        return month.day(int(np.flatnonzero(month.days == day)[0]))

    def _span(self) -> str:
        days = self.whole_days()
        return f"it has {len(days)} days from {days[0]} to {days[-1]}" if len(days) else "it has none"

    def exposures(self, days: Sequence, instruments: Sequence[str],
                  factors: Sequence[str] | None = None) -> tuple[np.ndarray, list[str]]:
        """Exposures to styles, float32 ``[t, n, k]``, NaN where a day, an instrument or a style is absent; and the k names.

        Args:
            days: ``[t]``. instruments: ``[n]``. factors: styles; None: all there are on these days, in their order.

        Raises:
            DataError: a damaged file, or an instrument or a style that is named twice.
        """
        days, codes = np.asarray(days, "datetime64[D]"), np.asarray(instruments).astype(str)
        months = list(self._months(days, ["date", "factors", "instruments", "exposure"]))
        if factors is None:
            factors = list(dict.fromkeys(name for month in months for name in month.styles(days)))
        out = np.full((len(days), len(codes), len(factors)), np.nan, np.float32)
        for month in months:
            place, column = _place(month.about["codes"], codes), _place(month.about["factors"], factors)
            for row, t in month.rows(days):
                styles = [k for k in month.list("factors", row) if month.is_style[k]]
                stock = place[month.list("instruments", row)]
                values = month.list("exposure", row).reshape(len(stock), len(styles))
                for k, style in enumerate(styles):
                    if column[style] >= 0:
                        out[t, stock[stock >= 0], column[style]] = values[stock >= 0, k]
        return out, list(factors)

    def residuals(self, days: Sequence, instruments: Sequence[str]) -> np.ndarray:
        """Specific returns, float32 ``[t, n]``, NaN where unknown or absent (raises as `exposures`)."""
        days, codes = np.asarray(days, "datetime64[D]"), np.asarray(instruments).astype(str)
        out = np.full((len(days), len(codes)), np.nan, np.float32)
        for month in self._months(days, ["date", "instruments", "residual"]):
            place = _place(month.about["codes"], codes)
            for row, t in month.rows(days):
                stock = place[month.list("instruments", row)]
                out[t, stock[stock >= 0]] = month.list("residual", row)[stock >= 0]
        return out

    def industries(self, days: Sequence, instruments: Sequence[str]) -> np.ndarray:
        """Names of the industry factors that instruments are in, str ``[t, n]``, "" where none or unknown (raises as `exposures`)."""
        days, codes = np.asarray(days, "datetime64[D]"), np.asarray(instruments).astype(str)
        names, out = [""], np.zeros((len(days), len(codes)), np.int32)
        for month in self._months(days, ["date", "factors", "instruments", "industry"]):
            place = _place(month.about["codes"], codes)
            for row, t in month.rows(days):
                stock, industry, factors = place[month.list("instruments", row)], month.list("industry", row), month.list("factors", row)
                inside = (stock >= 0) & (industry >= 0)
                out[t, stock[inside]] = factors[industry[inside]] + len(names)
            names += [name if name.startswith(INDUSTRY) else "" for name in month.about["factors"]]
        return np.array(names)[out]

    def factor_returns(self, until=None) -> pd.DataFrame:
        """Factor returns of all days (up to one), float64 (day x factor), NaN where a factor is absent or was not estimated."""
        names, parts, days, last = {}, [], [], None if until is None else _day(until, [], 0)
        for file in self.files():
            if last is not None and file.stem > str(last.astype("datetime64[M]")):
                break
            month = _Month(file, ["date", "factors", "factor_return"])
            days.append(month.days if last is None else month.days[month.days <= last])
            for row in range(len(days[-1])):
                factors = [month.about["factors"][k] for k in month.list("factors", row)]
                parts.append(dict(zip(factors, month.list("factor_return", row))))
                names.update(dict.fromkeys(factors))
        table = np.full((len(parts), len(names)), np.nan)
        column = {name: k for k, name in enumerate(names)}
        for row, part in enumerate(parts):
            table[row, [column[name] for name in part]] = list(part.values())
        return pd.DataFrame(table, index=_joined(days), columns=list(names))

    def _months(self, days: np.ndarray, columns: list[str]) -> Iterator["_Month"]:
        wanted = {f"{month}.parquet" for month in np.unique(days.astype("datetime64[M]"))}
        for file in self.files():
            if file.name in wanted:
                yield _Month(file, columns)

    # ---- writing ----------------------------------------------------------------------------------------------------------
    def write(self, records: Iterable[RiskDay], settings: dict) -> None:
        """Add days, or replace them; a month is written as soon as a day of another one comes, each file whole or not at all.

        A damaged file of one of the months is replaced, with a warning. A second writer of the folder waits for the first.

        Args:
            records: consumed once. settings: JSON-able; the same for all days of a folder.

        Raises:
            ConfigError: the folder's settings are others. DataError: exposures that are neither styles, a country of ones, nor
                one-hot industries.
        """
        settings = json.loads(json.dumps(settings))
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(self.folder):
            for left in self.folder.glob(".*.parquet"):  # of a run that was killed
                left.unlink()
            self.check_settings(settings)
            for month, days in groupby(records, key=lambda day: str(day.snapshot.date.astype("datetime64[M]"))):
                self._write_month(self.folder / f"{month}.parquet", list(days), settings)

    def check_settings(self, settings: dict) -> None:
        """Raises ConfigError where the days of the folder were made with other settings."""
        held, settings = self._held(), json.loads(json.dumps(settings))
        if held is None or held == settings:
            return
        differ = sorted(name for name in {*held, *settings} if held.get(name, "absent") != settings.get(name, "absent"))
        here, given = ([one.get(name, "absent") for name in differ] for one in (held, settings))
        raise ConfigError(f"{self.folder} holds snapshots with other {', '.join(differ)}: {here} instead of {given}; name "
                          "another folder, or remove this one (build with --overwrite)")

    def _write_month(self, file: Path, days: list[RiskDay], settings: dict) -> None:
        kept = {}
        if file.is_file():
            try:
                month = _Month(file)
                kept = {month.days[row]: month.day(row) for row in range(len(month.days))}
            except DataError as error:
                logger.warning("replacing a month, of which only the days written now remain: %s", error)
        kept.update({day.snapshot.date: day for day in days})
        rows = [kept[day] for day in sorted(kept)]
        codes = np.unique(np.concatenate([day.snapshot.instruments for day in rows]))
        factors = list(dict.fromkeys(name for day in rows for name in day.snapshot.factors))
        number = {name: k for k, name in enumerate(factors)}
        table = pa.Table.from_pylist([_row(day, codes, number) for day in rows], schema=_SCHEMA)
        about = json.dumps({"format": FORMAT, "settings": settings, "codes": codes.tolist(), "factors": factors}).encode()
        aside = file.with_name(f".{os.getpid()}.{file.name}")
        try:
            table = table.replace_schema_metadata({KEY: about, CHECK: str(zlib.crc32(about)).encode()})
            pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
            with open(aside, "rb") as written:
                os.fsync(written.fileno())
            os.replace(aside, file)
        finally:
            aside.unlink(missing_ok=True)


class _Month:
    """Some columns of a file; raises DataError where it is damaged."""

    def __init__(self, file: Path, columns: Sequence[str] = _SCHEMA.names):
        self.file, self._lists = file, {}
        with _damage(file):
            table = pq.read_table(file, columns=list(columns), use_threads=False, page_checksum_verification=True)
            self.about = json.loads(text := table.schema.metadata[KEY])
            if int(table.schema.metadata.get(CHECK, zlib.crc32(text))) != zlib.crc32(text):
                raise ValueError("metadata changed")
            if self.about["format"] != FORMAT:
                raise ValueError(f"format {self.about['format']}")
            if lost := [name for name in ("settings", "codes", "factors") if name not in self.about]:
                raise ValueError(f"without {', '.join(lost)}")
            self.days, self.table = table.column("date").to_numpy().astype("datetime64[D]"), table.combine_chunks()
            months = set(self.days.astype("datetime64[M]").astype(str).tolist())
            if months != {file.stem} or (self.days[1:] <= self.days[:-1]).any():
                raise ValueError(f"rows of {sorted(months)}, or not one a day")
            styles = set(style_names(self.about["factors"]))
            self.is_style = np.array([name in styles for name in self.about["factors"]], bool)
            self._check_lists()

    def _check_lists(self) -> None:
        """Of the columns that were read: as many values as a day has instruments and factors, numbers that have a name."""
        for name, key in (("instruments", "codes"), ("factors", "factors")):
            numbers = self._column(name)[1] if name in self.table.column_names else np.empty(0)
            if numbers.min(initial=0) < 0 or numbers.max(initial=-1) >= len(self.about[key]):
                raise ValueError(f"{name} without a name")
        size = {name: np.diff(self._column(name)[0]) for name in self.table.column_names if name in _LISTS}
        n, k = size.get("instruments"), size.get("factors")
        due = {} if n is None else dict.fromkeys(("industry", "specific_var", "residual", "estimation"), n)
        due.update({} if k is None else {"factor_return": k, "factor_cov": k * k})
        if "exposure" in size:
            due["exposure"] = n * [int(self.is_style[self.list("factors", row)].sum()) for row in range(len(self.days))]
        if wrong := [name for name in size if name in due and (size[name] != due[name]).any()]:
            raise ValueError(f"too few or too many values of {', '.join(wrong)}")

    def _column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Offsets of the rows, and the values, of a list column."""
        if name not in self._lists:
            column = self.table.column(name).chunk(0)
            if column.null_count or column.values.null_count:
                raise ValueError(f"{name} without values")
            self._lists[name] = column.offsets.to_numpy(), column.values.to_numpy(zero_copy_only=False)
        return self._lists[name]

    def list(self, name: str, row: int) -> np.ndarray:
        """One day's values of a list column."""
        offsets, values = self._column(name)
        return values[offsets[row]:offsets[row + 1]]

    def rows(self, days: np.ndarray) -> list[tuple[int, int]]:
        """(row, place in `days`) of the days that both have; `days` in any order."""
        row_of = {day: row for row, day in enumerate(self.days)}
        return [(row_of[day], t) for t, day in enumerate(days) if day in row_of]

    def styles(self, days: np.ndarray) -> list[str]:
        """Styles that there are on some days."""
        numbers = (k for row, _ in self.rows(days) for k in self.list("factors", row) if self.is_style[k])
        return [self.about["factors"][k] for k in dict.fromkeys(numbers)]

    def day(self, row: int) -> RiskDay:
        """Everything of one day."""
        with _damage(self.file):
            return self._day(row)

    def _day(self, row: int) -> RiskDay:
        numbers = self.list("factors", row)
        names = [self.about["factors"][k] for k in numbers]
        codes = np.array(self.about["codes"])[self.list("instruments", row)]
        exposure = np.zeros((len(codes), len(names)))
        if COUNTRY in names:
            exposure[:, names.index(COUNTRY)] = 1.0
        styles = np.flatnonzero(self.is_style[numbers])
        exposure[:, styles] = self.list("exposure", row).reshape(len(codes), len(styles))
        industry = self.list("industry", row)
        inside = np.flatnonzero(industry >= 0)
        exposure[inside, industry[inside]] = 1.0
        factor_cov = self.list("factor_cov", row).reshape(len(names), len(names))
        snapshot = RiskSnapshot(self.days[row], codes, tuple(names), exposure, factor_cov, self.list("specific_var", row))
        return RiskDay(snapshot, self.list("factor_return", row), self.list("residual", row),
                       self.table.column("r_squared")[row].as_py(), self.list("estimation", row))


@contextmanager
def _damage(file: Path):
    """What goes wrong inside names the file."""
    try:
        yield
    except _FAULTS as error:
        raise DataError(f"{file} is damaged ({type(error).__name__}: {' '.join(str(error).split())[:120]}): {_ADVICE}") from error


def _sound(file: Path, columns: Sequence[str] = _SCHEMA.names) -> _Month | None:
    """Some columns of a file; None where it is damaged."""
    try:
        return _Month(file, columns)
    except DataError:
        return None


def _row(day: RiskDay, codes: np.ndarray, number: dict[str, int]) -> dict:
    """A day as a row; industries become the position of the one a stock is in."""
    shot = day.snapshot
    names = list(shot.factors)
    industries = [k for k, name in enumerate(names) if name.startswith(INDUSTRY)]
    styles = [names.index(name) for name in style_names(names)]
    inside = shot.exposure[:, industries]
    one_hot = ((inside == 0) | (inside == 1)).all() and (inside.sum(axis=1) <= 1).all()
    if not one_hot or (COUNTRY in names and not (shot.exposure[:, names.index(COUNTRY)] == 1).all()):
        raise DataError(f"risk of {shot.date}: a stock is in one industry or none (exposure 1 or 0), and its exposure to the "
                        "country is 1; name other factors as styles")
    industry = np.where(inside.any(axis=1), np.append(industries, -1)[inside.argmax(axis=1)] if industries else -1, -1)
    return {"date": shot.date.astype(object), "r_squared": float(day.r_squared), "factors": [number[name] for name in names],
            "instruments": np.searchsorted(codes, shot.instruments), "industry": industry,
            "exposure": shot.exposure[:, styles].astype(np.float32).ravel(), "factor_cov": shot.factor_cov.ravel(),
            "specific_var": shot.specific_var.astype(np.float32), "factor_return": day.factor_return,
            "residual": day.residual.astype(np.float32), "estimation": day.estimation}


def _place(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Position in `wanted` of each name; -1 where it is not wanted."""
    position = {name: k for k, name in enumerate(wanted)}
    if len(position) < len(wanted):
        raise DataError(f"{len(wanted) - len(position)} of {len(wanted)} instruments or styles are named twice: name each once")
    return np.array([position.get(name, -1) for name in names], dtype=np.int64)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(parts) if parts else np.empty(0, "datetime64[D]")


@contextmanager
def _locked(folder: Path):
    """One writer at a time; a second one waits."""
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def export_qlib(store: SnapshotStore, out: str | Path, start=None, end=None, scale_return: bool = True) -> int:
    """Write the folders that Qlib's `EnhancedIndexingStrategy` reads as `riskmodel_root`: one a day, each whole or not at all.

    ``YYYYMMDD/factor_exp.pkl`` (instrument x factor), ``factor_cov.pkl`` (factor x factor), ``specific_risk.pkl`` (standard
    deviations by instrument).

    Args:
        start, end: first and last day; None: the store's. scale_return: returns in percent, as Qlib's estimators have them.

    Returns:
        number of days.

    Raises:
        DataError: no day between start and end, or a damaged file.
    """
    days, out = store.days, Path(out).expanduser()
    chosen = days[(days >= _day(start, days, 0)) & (days <= _day(end, days, -1))] if len(days) else days
    if not len(chosen):
        raise DataError(f"no snapshots from {start} to {end} in {store.folder}: {store._span()}")
    scale = 100.0 if scale_return else 1.0
    out.mkdir(parents=True, exist_ok=True)
    for day in chosen:
        shot, name = store.read(day), str(day).replace("-", "")
        aside, factors = out / f".{name}.{os.getpid()}", list(shot.factors)
        try:
            aside.mkdir(exist_ok=True)
            pd.DataFrame(shot.exposure, shot.instruments, factors).to_pickle(aside / "factor_exp.pkl")
            pd.DataFrame(shot.factor_cov * scale**2, factors, factors).to_pickle(aside / "factor_cov.pkl")
            pd.Series(np.sqrt(shot.specific_var) * scale, shot.instruments).to_pickle(aside / "specific_risk.pkl")
            shutil.rmtree(out / name, ignore_errors=True)
            aside.replace(out / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return len(chosen)


def _day(day, days: np.ndarray, edge: int) -> np.datetime64:
    return days[edge] if day is None else np.datetime64(pd.Timestamp(day), "D")
