"""What `python -m qlib_ext.store build-intraday` made, for models: daily inputs as a handler, blocks of bars as an aux loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np
from qlib.config import C
from qlib.contrib.data.handler import _DEFAULT_LEARN_PROCESSORS, check_transform_proc
from qlib.data.dataset.handler import DataHandlerLP
from qlib.log import get_module_logger

from qlib_ext.data.handler import _FormulaHandler
from qlib_ext.data.threads import run
from qlib_ext.data.transform import cs_winsorize, cs_zscore
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.signatures import did_you_mean
from qlib_ext.store.metadata import read_metadata

logger = get_module_logger("qlib_ext.intraday")
LABEL = ["Ref($close, -6) / Ref($close, -1) - 1"], ["LABEL0"]
COMMAND = "python -m qlib_ext.store build-intraday"
DAY_MINUTES = 240
_DAYS_A_PIECE = 16


def intraday_fields(store: Union[str, Path], prefix: str = "hi_") -> List[str]:
    """Names of a store's intraday fields that begin with `prefix`, in the order in which they were made.

    Raises:
        ConfigError: the store has none.
    """
    about = (read_metadata(store) or {}).get("intraday") or {}
    found = [name for name in about.get("fields", ()) if name.startswith(prefix)]
    if not found:
        raise ConfigError(f"store {store} has no ${prefix}... fields: run `{COMMAND} {store}`, with a folder of intraday bars")
    return found


class _IntradayFields(DataHandlerLP):
    """Columns that are intraday fields, and the 5-day label."""

    def __init__(self, instruments="all", start_time=None, end_time=None, freq="day", infer_processors=(),
                 learn_processors=_DEFAULT_LEARN_PROCESSORS, fit_start_time=None, fit_end_time=None, process_type=DataHandlerLP.PTYPE_A,
                 filter_pipe=None, inst_processors=None, label=LABEL, features: Optional[Sequence[str]] = None,
                 factors: Union[str, Sequence[str]] = (), **kwargs):
        self.features, self.factors = features, factors
        columns = self._columns(C.dpm.get_data_uri("day")) if C.registered else []
        infer, learn = (check_transform_proc(list(one), fit_start_time, fit_end_time) for one in (infer_processors, learn_processors))
        loader = {"class": "QlibDataLoader", "kwargs": {
            "config": {"feature": ([f"${name}" for name in columns], columns), "label": label},
            "filter_pipe": filter_pipe, "freq": freq, "inst_processors": inst_processors}}
        super().__init__(instruments=instruments, start_time=start_time, end_time=end_time, data_loader=loader, infer_processors=infer,
                         learn_processors=learn, process_type=process_type, **kwargs)

    def _columns(self, store: Union[str, Path]) -> List[str]:
        inputs = intraday_fields(store, "hi_") if self.features is None else self._chosen(store, "features", "hi_", self.features)
        return [*inputs, *self._chosen(store, "factors", "hf_", self.factors)]

    def _chosen(self, store, key: str, prefix: str, wanted: Union[str, Iterable[str]]) -> List[str]:
        """Those of the store's fields that a keyword names."""
        if not wanted:
            return []
        known = intraday_fields(store, prefix)
        if wanted == "all":
            return known
        wanted = [str(name).lstrip("$") for name in ([wanted] if isinstance(wanted, str) else wanted)]
        for name in wanted:
            if name not in known:
                raise ConfigError(f"IntradayFeatures: {key} {name!r} is no field of the store{did_you_mean(name, known)}; it has {known}")
        return wanted


class IntradayFeatures(_FormulaHandler, _IntradayFields):
    """The daily inputs that `build-intraday` made of intraday bars (and trades), as they are; NaN where unknown.

    Keywords are those of `qlib_ext.data.handler.Alpha158`, and two more.

    Args:
        features: which of the store's `$hi_` fields; None = all, in their order. An empty list: none.
        factors: which of its `$hf_` fields besides, e.g. ``[hf_skew, hf_skew_orth]``, or ``all``.

    Raises:
        ConfigError: the store has no such fields; the message says what to run.
    """

    def at_store(self, store: Union[str, Path]) -> None:
        """Take the columns of a store while Qlib is not initialised, as `qlib_ext.check` does; raises as the constructor."""
        columns = self._columns(store)
        extra = [(one, name) for one, name in zip(*self.data_loader.fields["feature"]) if one != f"${name}"]
        self.data_loader.fields["feature"] = ([*(f"${name}" for name in columns), *(one for one, _ in extra)],
                                              [*columns, *(name for _, name in extra)])


class IntradayBlockLoader:
    """Intraday bars of each stock and day as one row of columns ``<feature>@<bar>``, all of bar 1 first; NaN unknown.

    With `zscore` each column of a day is clipped to its median +- 3 x 1.4826 MAD (`winsorize_rows`) and scaled to mean 0 and standard
    deviation 1, over all stocks that the day's file has; columns without spread are NaN.

    Args:
        folder: of the intraday tables; None = ``<store>.intraday`` beside the store in use.
        minutes: of a bar, or ``day``: as `build-intraday --blocks` was told.
        key: of the blocks where the folder has several (made with different options); None = the only one.
        zscore: whether the columns are normalised.

    Attributes:
        bars: bars a day.
        days_at_a_time: how many days a dataset loads at once, so that memory holds the rows it keeps and little more.

    Raises:
        ConfigError: minutes that do not divide a day; another `zscore` than true or false. DataError (`check`): no such blocks.
    """

    per_stock = True
    days_at_a_time = 250

    def __init__(self, folder: Optional[str] = None, minutes: Union[int, str] = "day", key: Optional[str] = None,
                 zscore: bool = True) -> None:
        number = DAY_MINUTES if minutes == "day" else minutes
        if type(number) is not int or number < 1 or DAY_MINUTES % number:
            raise ConfigError(f"IntradayBlockLoader: minutes={minutes!r} must be day, or whole minutes that divide {DAY_MINUTES}")
        if not isinstance(zscore, bool):
            raise ConfigError(f"IntradayBlockLoader: zscore={zscore!r} must be true or false")
        self.folder, self.minutes, self.key, self.zscore, self.store = folder, number, key, zscore, None
        self.bars = DAY_MINUTES // number

    def check(self) -> None:
        """The blocks are there.

        Raises:
            DataError: no intraday folder, no blocks of these minutes, several and no key. ConfigError: Qlib is not initialised, and
                no folder is named.
        """
        self.column_names()

    def at_store(self, store: Union[str, Path]) -> None:
        """`check` beside a store while Qlib is not initialised, as `qlib_ext.check` does."""
        self.store = str(store)
        self.check()

    def column_names(self) -> List[str]:
        """Names of the columns that `load` will give; raises as `check`."""
        return self._names(self._about(self.place()))

    def load(self, days: Sequence, instruments: Sequence[str], partial: bool = False) -> Tuple[np.ndarray, List[str]]:
        """float32 `[t, n, bars x features]` of `days [t]` and `instruments [n]`, and the names of the columns.

        Args:
            partial: the days are part of those asked for, so there may be nothing in them.

        Raises:
            DataError: as `check`; a file that cannot be read; blocks of bars that were ingested again since (where the bars are no
                longer there, blocks are taken as they are); and, but for `partial`, blocks of none of the days or instruments.
        """
        place = self.place()
        about = self._about(place)
        names, trades = self._names(about), bool(about.get("trades"))
        days = np.asarray(days, dtype="datetime64[D]")
        files = [place / f"date={day}" / "part.parquet" for day in days]
        dark = [number for number, file in enumerate(files) if not file.is_file()]
        if len(dark) == len(days) and not partial:
            raise DataError(f"no blocks in {place} on any of {len(days)} days ({days.min()} to {days.max()}): run `{COMMAND}` for these "
                            "days, or choose others")
        order = np.argsort(np.asarray(instruments, dtype=str))
        codes = np.asarray(instruments, dtype=str)[order]
        values = np.full((len(days), len(codes), len(names)), np.nan, np.float32)
        lit = np.setdiff1d(np.arange(len(days)), dark)
        from qlib_ext.store.intraday_days import is_outdated
        old = [str(days[t]) for t in lit if is_outdated(files[t], place.parents[1], trades)]
        if old:
            raise DataError(f"the blocks in {place} of {len(old)} days, first {old[0]}, were made of bars or trades that were ingested "
                            f"again since: run `{COMMAND}` again")
        found = run(lambda part: sum(self._fill(files[t], names, codes, order, values[t]) for t in part),
                    [lit[first:first + _DAYS_A_PIECE] for first in range(0, len(lit), _DAYS_A_PIECE)])
        if not sum(found) and not partial:
            raise DataError(f"the blocks in {place} have none of {len(codes)} instruments on {len(lit)} days: they are of other stocks")
        if dark:
            logger.warning(f"no blocks on {len(dark)} of {len(days)} days ({days[dark[0]]} to {days[dark[-1]]}): they are unknown there")
        return values, names

    def _fill(self, file: Path, names: List[str], codes: np.ndarray, order: np.ndarray, out: np.ndarray) -> int:
        """Fill the rows of one day ``out [n, k]``; how many."""
        import polars as pl
        try:
            frame = pl.read_parquet(file, columns=["instrument", *names], hive_partitioning=False)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise DataError(f"{file} cannot be read ({error}): remove it and run `{COMMAND}` again") from error
        table = np.ascontiguousarray(frame.select(names).cast(pl.Float32).to_numpy(), np.float32)
        table[~np.isfinite(table)] = np.nan
        if self.zscore and len(table):
            day = np.zeros(len(table), np.int64)
            table = cs_zscore(cs_winsorize(table, day, "mad", 3.0), day)
        stocks = frame["instrument"].to_numpy().astype(str)
        place = np.minimum(np.searchsorted(codes, stocks), len(codes) - 1)
        row = np.flatnonzero(codes[place] == stocks)
        out[order[place[row]]] = table[row]
        return len(row)

    # ---- where ------------------------------------------------------------------------------------------------------------
    def place(self) -> Path:
        """The folder of the blocks; raises as `check`."""
        if self.folder is None and self.store is None and not C.registered:
            raise ConfigError("IntradayBlockLoader: name the folder of the intraday tables, or initialise Qlib first")
        root = self.folder or f"{str(self.store or C.dpm.get_data_uri('day')).rstrip('/')}.intraday"
        root = Path(root).expanduser()
        wanted = f"{self.minutes}min-{self.key or '*'}"
        found = sorted(path for path in (root / "blocks").glob(wanted) if path.is_dir())
        advice = f"run `{COMMAND} STORE --intraday {root} --blocks {'day' if self.minutes == DAY_MINUTES else self.minutes}`"
        if not found:
            there = sorted(path.name for path in (root / "blocks").glob("*"))
            raise DataError(f"intraday folder {root} has no blocks {wanted}, it has {there}: {advice}")
        if len(found) > 1:
            keys = [path.name.partition("-")[2] for path in found]
            raise DataError(f"intraday folder {root} has blocks of {self.minutes} minutes made with different options: name one of the "
                            f"keys {keys} (what they are, about.json in each says)")
        return found[0]

    def _names(self, about: dict) -> List[str]:
        return [f"{name}@{bar}" for bar in range(1, self.bars + 1) for name in about["features"]]

    def _about(self, place: Path) -> dict:
        """What the blocks in a folder are."""
        try:
            about = json.loads((place / "about.json").read_text(encoding="utf-8"))
            list(about["features"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{place}/about.json cannot be read ({type(error).__name__}): run `{COMMAND}` with these blocks "
                            "again") from error
        return about
