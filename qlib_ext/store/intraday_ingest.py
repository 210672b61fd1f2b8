"""Ingestion of minute bars, trades and orders: from a vendor's files into the intraday folder, day by day, checked and resumable."""

from __future__ import annotations

import fcntl
import logging
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Mapping, Optional, Sequence, Union

import numpy as np
import polars as pl
from tqdm import tqdm

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.intraday import BAR_MINUTES, check_table, day_file, describe, folder_lock, read_about, write_day, write_parquet
from qlib_ext.store.intraday_checks import (FINDINGS, ROWS, DailyBars, DayStocks, Findings, against_daily, clean_ticks, report_absent,
                                            session_bars)
from qlib_ext.store.intraday_mapping import (COLUMNS, WORDS, Vendor, collect, deciding, find_files, open_source, read_vendor,
                                             stamps_of, unreadable, with_instrument, word_table)
from qlib_ext.store.intraday_units import check_tick_units, middle_prices, settle, stamp_told
from qlib_ext.store.metadata import as_day

logger = logging.getLogger("qlib_ext.store")
PIECE_ROWS = 2_000_000
"""Rows of a source that are held at a time; of a longer source whose files hold many days each, pieces are kept on disk by day."""
LONG_DAY = 4_000_000
"""A day of more trades or orders is checked and written some instruments at a time."""
SAMPLE_FILES, SAMPLE_DAYS = 40, 5
_SAVE_EVERY = 10
_MOST_FAULTS = 10
"""So many days that are refused stop an ingestion, as the first day of a new table does."""
_STAMPED = ("stamp", "price", "volume", "amount", "opening_auction")


@dataclass(frozen=True)
class Ingested:
    """What an ingestion did.

    Attributes:
        folder, table: where the rows are. days: how many were written. kept: how many were there already. rows: written.
        empty: days without a row that can be used, which were not. findings: date, instrument, fault, count, detail of both.
    """

    folder: Path
    table: str
    days: int
    kept: int
    rows: int
    empty: int
    findings: pl.DataFrame

    def text(self) -> str:
        """The summary that is printed."""
        lines = [f"{self.folder}/{self.table}: {self.days} days written ({self.rows} rows), {self.kept} were there already"
                 + (f", {self.empty} have no row that can be used" if self.empty else "")]
        if not len(self.findings):
            return lines[0] + "; the checks found nothing"
        firsts = pl.col("date", "instrument", "detail").first()
        table = self.findings.group_by("fault").agg(pl.len().alias("days"), pl.col("count").sum(), firsts)
        lines.append(f"{'fault':24} {'stock-days':>10} {'rows':>10}  the first one")
        lines += [f"{row['fault']:24} {row['days']:>10} {row['count']:>10}  {row['date']} {row['instrument']} {row['detail']}".rstrip()
                  for row in table.sort("fault").iter_rows(named=True)]
        return "\n".join([*lines, f"all of them: {report_file(self.folder, self.table)}"])


def report_file(folder: Union[str, Path], table: str) -> Path:
    """What the checks of a table found: date, instrument, fault, count, detail; `rows_written` is a day's last line, not a fault."""
    return Path(folder) / "reports" / f"{table}.parquet"


def ingest_intraday(source: Union[str, Path, Sequence[Union[str, Path]]], out: Union[str, Path], table: str, minutes: int = 1,
                    columns: Union[str, Path, Mapping, None] = None, stamp: Optional[str] = None, price: Optional[str] = None,
                    volume: Optional[str] = None, amount: Optional[str] = None, opening_auction: Optional[str] = None,
                    store: Union[str, Path, None] = None, overwrite: bool = False, first: Optional[str] = None,
                    last: Optional[str] = None) -> Ingested:
    """Read a vendor's files, check each stock-day, and write them into an intraday folder, one file a day.

    Days that are there already are left as they are, so an interrupted ingestion goes on where it was, and new days are added by naming
    the new files. Only the rows of one day (and `PIECE_ROWS` of the source) are held at a time.

    Args:
        source: Parquet or CSV files, or a folder of them: by stock, by day, or all in one.
        out: the intraday folder, made if need be. table: bars, trades or orders. minutes: of the bars.
        columns: how the vendor names things (see `intraday_mapping`): a YAML file or a mapping of its shape.
        stamp: start or end: which end of a bar its stamp is. price: yuan, cent or mil (0.0001 yuan). volume: shares or lots (of 100).
        amount: yuan, thousand or wan (10,000). opening_auction: apart or inside the first bar. None: told from the data, if they tell.
        store: a Qlib store, whose daily bars the days are held against.
        overwrite: write the source's days again. first, last: days to take, both in it.

    Raises:
        ConfigError: unknown options; stamps or units that the data contradict or do not tell; settings other than those the folder
            was made with.
        DataError: no file, a file that cannot be read or lacks columns, no row in the span, no row that can be used, days that are there
            but made of other stocks, days in other units or on another clock than those before (the first day of a new table, or ten
            days, stop it; else the others are done), or another ingestion of the table at work.
    """
    if table not in COLUMNS:
        raise ConfigError(f"table={table!r} must be one of {list(COLUMNS)}")
    if minutes not in BAR_MINUTES or (table != "bars" and minutes != 1):
        raise ConfigError(f"minutes={minutes!r} must be one of {BAR_MINUTES}, and is of bars only")
    units = dict(zip(_STAMPED, (stamp, price, volume, amount, opening_auction)))
    if table != "bars" and (odd := [name for name in ("stamp", "amount", "opening_auction") if units[name] is not None]):
        raise ConfigError(f"{odd} are of bars only; leave them out for {table}")
    vendor = read_vendor(table, columns, units)
    span = [None if day is None else np.datetime64(as_day(day, flag)) for flag, day in (("--from", first), ("--to", last))]
    name = check_table(f"bars_{minutes}min" if table == "bars" else table)
    out = Path(out).expanduser()
    files, daily = find_files(source, without=out), None if store is None else DailyBars(store)
    with _only_one(out, name):
        return _Ingestion(files, out, name, minutes, vendor, daily).run(span, overwrite)


@contextmanager
def _only_one(out: Path, table: str) -> Iterator[None]:
    """Nobody else ingests the table; what a killed ingestion kept aside is removed."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / f".ingest-{table}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DataError(f"{out}: another ingestion of {table} is at work; wait for it") from error
        shutil.rmtree(_aside(out, table), ignore_errors=True)
        yield


def _aside(out: Path, table: str) -> Path:
    return out / f".pieces-{table}"


class _Ingestion:
    """One run: files [f], the table they go to, and how they are written."""

    def __init__(self, files: list[Path], out: Path, table: str, minutes: int, vendor: Vendor, daily: Optional[DailyBars]):
        self.files, self.out, self.table, self.minutes, self.vendor, self.daily = files, out, table, minutes, vendor, daily
        self.words: dict[str, set] = {column: set() for column in WORDS[vendor.kind]}
        self.stocks = DayStocks()

    def run(self, span: list, overwrite: bool) -> Ingested:
        spans = self._look(*span)
        days = spans["day"].unique().sort().to_list()
        self.means = {column: word_table(self.vendor.kind, column, sorted(words, key=str), self.vendor)
                      for column, words in self.words.items()}
        old = self._report()
        done = set(old.filter(pl.col("fault") == ROWS)["date"].to_list())
        done = set() if overwrite else {day for day in done if day_file(self.out, self.table, day).is_file()}
        self.source_rows = dict(spans.group_by("day").agg(pl.col("rows").sum()).iter_rows())
        self._hold_against(old.filter((pl.col("fault") == ROWS) & pl.col("date").is_in(days) & pl.col("date").is_in(sorted(done))))
        self.settings = self._settle(spans, days, overwrite)
        todo = [day for day in days if day not in done]
        self.before = self._prices_before(todo, done)
        self.old, self.begun, self.empty = old.filter(~pl.col("date").is_in(todo)), False, []
        findings, rows, faults = [], 0, []
        most = _MOST_FAULTS if any((self.out / self.table).glob("date=*/part.parquet")) else 1
        try:
            with tqdm(total=len(todo), desc=f"ingesting {self.table}", unit=" days", mininterval=1) as bar:
                for day, frame in self._frames(spans.filter(pl.col("day").is_in(todo))):
                    try:
                        findings.append(self._write(day, frame))
                    except DataError as error:
                        faults.append(str(error))
                        if len(faults) == (_MOST_FAULTS if self.begun else most):
                            break
                        continue
                    rows += findings[-1].filter(pl.col("fault") == ROWS)["count"].sum()
                    if self.begun and len(findings) % _SAVE_EVERY == 0:
                        self._save(findings)
                    bar.update()
            if faults and not rows:
                raise DataError("\n  ".join(faults))
            if todo and not rows and len(todo) == len(days):
                raise DataError(_unusable(pl.concat(findings), len(todo)))
            if todo:
                self._begin()
            if faults:
                rest = "later ones were not tried" if len(faults) == _MOST_FAULTS else "the others are done"
                raise DataError(f"{len(faults)} days are refused, {rest} (--from, --to take some):\n  " + "\n  ".join(faults))
        finally:
            shutil.rmtree(_aside(self.out, self.table), ignore_errors=True)
            if self.begun:
                self._save(findings)
        found = pl.concat(findings).filter(pl.col("fault") != ROWS) if findings else pl.DataFrame(schema=FINDINGS)
        return Ingested(self.out, self.table, len(todo) - len(self.empty), len(days) - len(todo), rows, len(self.empty), found)

    def _begin(self) -> None:
        """Make the folder ready for the first day that has rows; until then it is left as it was."""
        if not self.begun:
            self.begun = True
            self._save([])  # a run that is killed must not leave days of another source that say they are done
            if self.changed:
                shutil.rmtree(self.out / self.table)
            for day in self.empty:
                day_file(self.out, self.table, day).unlink(missing_ok=True)
            describe(self.out, self.table, self.settings)

    # ---- what the source holds ------------------------------------------------------------------------------------------------
    def _look(self, first, last) -> pl.DataFrame:
        """Rows of each file on each day: file (position), day, rows; the words of sides and kinds are collected."""
        parts = []
        quiet = len(self.files) < 2
        for place, file in enumerate(tqdm(self.files, desc="looking at files", unit=" files", mininterval=1, disable=quiet)):
            frame = open_source(file, self.vendor)
            words = [pl.col(column).unique().implode() for column in self.words]
            traded = pl.col("volume" if self.vendor.kind == "bars" else "quantity") > 0
            counts = {"rows": pl.len(), "traded": traded.sum(), "timed": (traded & (pl.col("clock") > 0)).sum()}
            frame = frame.group_by("day", "code", "exchange").agg(*words, **{name: one.cast(pl.Int64) for name, one in counts.items()})
            made = collect(file, frame, streaming=True)
            if lost := made.filter(pl.col("day").is_null())["rows"].sum():
                raise DataError(f"{file}: {lost} rows have no date that can be read; write it as 2024-01-02 or 20240102")
            if made["timed"].sum() * 2 < made["traded"].sum():
                raise DataError(f"{file}: no time of day can be read in {stamps_of(file, self.vendor)}: write it as 09:31:00, with 24 "
                                "hours")
            for column, known in self.words.items():
                known.update(made[column].explode().unique().to_list())
            made = with_instrument(made).group_by("day").agg(pl.col("rows").sum(), "instrument")
            self.stocks.add(made)
            parts.append(made.select(pl.lit(place).alias("file"), "day", "rows"))
        spans = pl.concat(parts)
        if first is not None:
            spans = spans.filter(pl.col("day") >= first.item())
        if last is not None:
            spans = spans.filter(pl.col("day") <= last.item())
        if not len(spans):
            raise DataError(f"the source holds no row from {first or 'the first day'} to {last or 'the last'} ({len(self.files)} files)")
        return spans

    def _hold_against(self, done: pl.DataFrame) -> None:
        """Hold days that are left as they are against the source: the same instruments, and as many rows, or it is said."""
        made = [(day, *then.split()) for day, then in done.select("date", "detail").iter_rows() if then]
        if others := sorted(day for day, _, *digest in made if digest and digest[0] != self.stocks.digest(day)):
            raise DataError(f"{len(others)} days of {self.out}/{self.table} are there already but were made of other stocks than the "
                            f"source has (the first: {others[0]}), and a day's stocks are ingested together: name all their files and "
                            "give --overwrite, or take the days that are not there yet (--from, --to)")
        odd = [(day, then) for day, then, *_ in made if int(then) != self.source_rows[day]]
        if odd:
            day, then = odd[0]
            logger.warning("%d days are left as they are but were made of other rows (%s of %s, the source has %d): to write them again, "
                           "name all their files and give --overwrite", len(odd), then, day, self.source_rows[day])

    def _settle(self, spans: pl.DataFrame, days: list, overwrite: bool) -> dict:
        """Settings of the table, told from the first day and held against those the folder was made with."""
        kept = sorted(one.parent.name[5:] for one in (self.out / self.table).glob("date=*/part.parquet"))
        there = read_about(self.out).get("tables", {}).get(self.table, {}) if kept else {}
        if there.get("generated"):
            raise ConfigError(f"{self.out} holds generated bars or ticks: give --out another folder")
        alone = set(kept) <= {str(day) for day in days}
        known = {} if overwrite and alone else {name: there.get(name) for name in _STAMPED}
        found = settle(self._sample(spans, days), self.vendor, self.minutes, known)
        about = {"bar_minutes": self.minutes, "closing_auction": "in the last bar"} if self.vendor.kind == "bars" else {}
        made = {"generated": False, "source": "ingest-intraday", **found, **about, "mapping": self.vendor.about()}
        odd = [f"{name} {there[name]!r} there, {now!r} now" for name, now in made.items()
               if name in there and deciding(there[name]) != deciding(now)]
        self.changed = bool(odd)
        if odd and not (overwrite and alone):
            raise ConfigError(f"{self.out}/{self.table} was made with other settings ({'; '.join(odd)}): give the same, another --out, or "
                              "all of its days with --overwrite")
        return made

    def _sample(self, spans: pl.DataFrame, days: list) -> pl.DataFrame:
        """The first day that has known codes; of ticks its first rows are enough."""
        most = None if self.vendor.kind == "bars" else PIECE_ROWS // SAMPLE_FILES
        for day in days[:SAMPLE_DAYS]:
            places = spans.filter(pl.col("day") == day)["file"].unique().sort().to_list()
            chosen = [places[k] for k in np.unique(np.linspace(0, len(places) - 1, SAMPLE_FILES).astype(int))]
            sample = with_instrument(pl.concat([self._read(place, [day], most) for place in chosen]))
            if sample["instrument"].count():
                return sample.filter(pl.col("instrument").is_not_null())
        raise DataError(f"no code of the source's first days is one of a stock, such as {sample['code'][0]!r}: write them as SH600000, "
                        "600000.SH ..., map a column exchange, or take other rows (`where` in the column mapping)")

    def _read(self, place: int, days: list, most: Optional[int] = None) -> pl.DataFrame:
        frame = open_source(self.files[place], self.vendor).filter(pl.col("day").is_in(days))
        return collect(self.files[place], frame if most is None else frame.head(most))

    # ---- from files to days ---------------------------------------------------------------------------------------------------
    def _frames(self, spans: pl.DataFrame) -> Iterator[tuple]:
        """(day, parts of its rows) in order; files that share days are read together, through pieces on disk where they are long."""
        for places, days, rows in _groups(spans):
            if (rows <= PIECE_ROWS or len(days) == 1) and not any(map(self._is_long, days)):
                frames = pl.concat([self._read(place, days) for place in places]).partition_by("day", as_dict=True, maintain_order=True)
                yield from ((day, iter([frames.pop((day,))])) for day in days)
                continue
            self._spill(places, days)
            for day in days:
                folder = _aside(self.out, self.table) / str(day)
                files = sorted(folder.glob("*.parquet"))
                yield day, self._by_instrument(files) if self._is_long(day) else iter([pl.concat(map(pl.read_parquet, files))])
                shutil.rmtree(folder)

    def _is_long(self, day) -> bool:
        return self.vendor.kind != "bars" and self.source_rows[day] > LONG_DAY

    def _by_instrument(self, files: list[Path]) -> Iterator[pl.DataFrame]:
        """The rows of a long day, some instruments at a time, in their order."""
        key, whole = ["code", "exchange"], pl.scan_parquet(files)
        counts = with_instrument(whole.group_by(key).len().collect(engine="streaming")).sort("instrument", "code")
        counts = counts.with_columns(part=pl.col("len").cum_sum() // LONG_DAY).with_columns(pl.col("part").min().over("instrument"))
        for codes in counts.partition_by("part", maintain_order=True):
            some = whole.filter(pl.col("code").is_in(codes["code"].unique().to_list())).collect()
            yield some.join(codes.select(key), on=key, how="semi", nulls_equal=True)

    def _spill(self, places: list[int], days: list) -> None:
        """Write the rows of files aside by day, `PIECE_ROWS` at a time."""
        held, count, piece = [], 0, 0
        with tqdm(total=len(places), desc="sorting by day", unit=" files", mininterval=1) as bar:
            for place in places:
                for frame in self._pieces(place, days):
                    held.append(frame)
                    count += len(frame)
                    if count >= PIECE_ROWS:
                        self._put(held, piece)
                        held, count, piece = [], 0, piece + 1
                bar.update()
        if held:
            self._put(held, piece)

    def _pieces(self, place: int, days: list) -> Iterator[pl.DataFrame]:
        """The rows of a file, at most `PIECE_ROWS` at a time; a long CSV file is made Parquet first."""
        frame, file = open_source(self.files[place], self.vendor), self.files[place]
        total = int(collect(file, frame.select(pl.len()), streaming=True).item())
        if total <= PIECE_ROWS:
            yield self._read(place, days)
            return
        aside = _aside(self.out, self.table) / "whole.parquet"
        aside.parent.mkdir(parents=True, exist_ok=True)
        try:
            frame.sink_parquet(aside)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise unreadable(file, error) from error
        for start in range(0, total, PIECE_ROWS):
            yield pl.scan_parquet(aside).slice(start, PIECE_ROWS).filter(pl.col("day").is_in(days)).collect()
        aside.unlink()

    def _put(self, held: list[pl.DataFrame], piece: int) -> None:
        for (day,), frame in pl.concat(held).partition_by("day", as_dict=True, maintain_order=True).items():
            folder = _aside(self.out, self.table) / str(day)
            folder.mkdir(parents=True, exist_ok=True)
            frame.write_parquet(folder / f"{piece:06d}.parquet", compression="lz4")

    # ---- a day ----------------------------------------------------------------------------------------------------------------
    def _write(self, day, parts: Iterator[pl.DataFrame]) -> pl.DataFrame:
        """Check a day and write it; what was found."""
        found, seen, rows = Findings(day), set(), 0
        daily = None if self.daily is None else self.daily.frame(day)
        aside, files = _aside(self.out, self.table) / "made", []
        for part in parts:
            made = self._checked(day, with_instrument(part), found)
            if self.daily is not None and self.vendor.kind != "orders":
                against_daily(made, daily, day, found)
                seen |= set(made["instrument"].unique())
            rows += len(made)
            if len(made):
                self._begin()
                files.append(write_day(aside / str(len(files)) if self._is_long(day) else self.out, self.table, day, made))
        if seen:
            report_absent(seen, daily, found)
        file = day_file(self.out, self.table, day)
        if files and files != [file]:
            write_parquet(file, pl.scan_parquet(files, hive_partitioning=False), self.table)
            shutil.rmtree(aside)
        elif not files:
            self.empty.append(day)
            if self.begun:
                file.unlink(missing_ok=True)
        detail = f"{self.source_rows[day]} {self.stocks.digest(day)}"
        found.add_counts(ROWS, pl.DataFrame({"instrument": [""], "count": [rows], "detail": [detail]}))
        return found.frame()

    def _checked(self, day, frame: pl.DataFrame, found: Findings) -> pl.DataFrame:
        if self.vendor.kind != "bars":
            check_tick_units(frame, self.settings, self.before, day)
            return clean_ticks(frame, self.vendor.kind, self.settings, self.means, found)
        if (told := stamp_told(frame)) not in (None, self.settings["stamp"]):
            raise DataError(f"the bars of {day} are stamped at their {told}, those before at their {self.settings['stamp']}: "
                            "ingest them apart, or correct the source")
        return session_bars(frame, self.minutes, self.settings, found)

    def _prices_before(self, todo: list, done: set) -> dict[str, float]:
        """Median prices of the last day that is there before those to do, of trades and orders."""
        last = max((day for day in done if todo and day < todo[0]), default=None)
        if self.vendor.kind == "bars" or last is None:
            return {}
        return middle_prices(pl.scan_parquet(day_file(self.out, self.table, last), hive_partitioning=False))

    def _report(self) -> pl.DataFrame:
        file = report_file(self.out, self.table)
        try:
            return pl.read_parquet(file).cast(FINDINGS) if file.is_file() else pl.DataFrame(schema=FINDINGS)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise DataError(f"{file} cannot be read ({type(error).__name__}): delete it, its days are then ingested again") from error

    def _save(self, findings: list[pl.DataFrame]) -> None:
        with folder_lock(self.out):
            write_parquet(report_file(self.out, self.table), pl.concat([self.old, *findings]).sort("date", maintain_order=True).lazy())


def _unusable(findings: pl.DataFrame, days: int) -> str:
    """What is said of a source without a row that can be used."""
    firsts = pl.col("date", "instrument", "detail").first()
    faults = findings.filter(pl.col("fault") != ROWS).group_by("fault", maintain_order=True).agg(pl.col("count").sum(), firsts)
    said = [f"{row['fault']}: {row['count']} rows, the first {row['date']} {row['instrument']} {row['detail']}".rstrip()
            for row in faults.sort("count", descending=True).head(3).iter_rows(named=True)]
    return f"the source has no row that can be used on any of its {days} days, so nothing was written: {'; '.join(said)}"


def _groups(spans: pl.DataFrame) -> list[tuple[list[int], list, int]]:
    """Files that share days, directly or through others: (files, days, rows), by their first day."""
    root: dict = {}

    def find(one):
        while root.setdefault(one, one) != one:
            root[one] = one = root[root[one]]
        return one

    for file, day in spans.select("file", "day").iter_rows():
        root[find(("file", file))] = find(("day", day))
    groups: dict = {}
    for file, day, rows in spans.select("file", "day", "rows").iter_rows():
        files, days, _ = group = groups.setdefault(find(("day", day)), [set(), set(), 0])
        files.add(file)
        days.add(day)
        group[2] += rows
    return sorted(((sorted(files), sorted(days), rows) for files, days, rows in groups.values()), key=lambda group: group[1][0])
