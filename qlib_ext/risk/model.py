"""The risk model of the Qlib store in use: snapshots of every day, and Qlib's `RiskModel` on them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Iterator, Sequence

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.log import get_module_logger
from qlib.model.riskmodel import RiskModel
from tqdm import tqdm

from qlib_ext.data.threads import run
from qlib_ext.data.universe import trading_calendar
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.home import home
from qlib_ext.jit import source_digest
from qlib_ext.risk.covariance import CovarianceOptions
from qlib_ext.risk.descriptor import EXTRA_STYLES, LONGEST, STYLES
from qlib_ext.risk.estimate import Exposed, History, Regressions, days_kept, regressions, risk_days
from qlib_ext.risk.market import MarketArrays, MarketReader, at_hand, choose_cap, store_fields
from qlib_ext.risk.snapshot import RiskDay, RiskSnapshot
from qlib_ext.risk.style import coverage, possible, style_exposures
from qlib_ext.store.metadata import fingerprint, read_metadata
from qlib_ext.store.snapshots import SnapshotStore

logger = get_module_logger("qlib_ext.risk")
MADE_OF = "store.json"
FORMULAS = tuple(f"risk/{name}.py" for name in ("weighted", "descriptor", "style", "regression", "covariance", "estimate", "market",
                                                  "model", "snapshot")) + ("data/field_reader.py",)
"""Files whose change makes other snapshots: days of two versions are not mixed."""
OPTIONAL = ("total_cap", "float_shares", "turnover", "industry", "is_st", "preferred_equity")
"""Fields that change exposures or the estimation universe where a store has them, besides those of the descriptors."""
CELLS, LEAST_DAYS = 8_000_000, 250
"""Stock-days that are worked on at a time, but so many days at least: each piece looks `LONGEST` days back."""


@dataclass(frozen=True)
class RiskOptions:
    """What a risk model is.

    Args:
        styles: those of CNE5 to use; None: all that the store's fields allow (which is recorded).
        cap: `auto`, `equal`, `total_cap` or `float_cap` (`qlib_ext.risk.market.choose_cap`).
        universe: estimation universe; None: all stocks listed for 120 days that are not in special treatment.
        covariance: options of `CovarianceOptions`.

    Raises:
        ConfigError: an unknown option of the covariance, or a value out of range.
    """

    styles: Sequence[str] | None = None
    cap: str = "auto"
    universe: str | None = None
    covariance: dict = field(default_factory=dict)

    def __post_init__(self):
        unknown = sorted(set(self.covariance) - set(CovarianceOptions.__dataclass_fields__))
        if unknown:
            raise ConfigError(f"covariance does not take {unknown}; it takes {sorted(CovarianceOptions.__dataclass_fields__)}")
        CovarianceOptions(**self.covariance)

    def settings(self) -> dict:
        """What snapshots are recorded under: styles and cap as the store in use allows them.

        Raises:
            ConfigError: an unknown style. DataError: no style can be had, or those asked for cannot.
        """
        fields = store_fields()
        cap = choose_cap(self.cap, fields)
        found, missing = possible(at_hand(fields, cap), self.styles)
        if self.styles is not None and missing:
            raise DataError(f"the store does not allow the styles {sorted(missing)}: {missing}")
        if not found:
            raise DataError(f"the store allows no style: {missing}")
        return {"styles": list(found), "descriptors": {style: [one.name for one in parts] for style, parts in found.items()},
                "missing": missing, "cap": cap, "universe": self.universe, "fields": [name for name in OPTIONAL if name in fields],
                "formulas": source_digest(FORMULAS),
                "covariance": asdict(CovarianceOptions(**self.covariance))}


def default_folder(settings: dict) -> Path:
    """Where snapshots of the store in use with some settings are kept: `risk/...` in QLIB_EXT_HOME."""
    store = Path(C.dpm.get_data_uri("day")).expanduser().resolve()
    digest = hashlib.blake2b(json.dumps([str(store), settings], sort_keys=True).encode(), digest_size=6).hexdigest()
    return home() / "risk" / f"{store.name}-{digest}"


def prepare_snapshots(folder: str | Path | None = None, options: RiskOptions = RiskOptions(), progress: bool = True,
                      overwrite: bool = False, thorough: bool = False) -> SnapshotStore:
    """Snapshots of all days of the Qlib store in use; those that are missing are made.

    Args:
        folder: where they are kept; None: `default_folder`.
        overwrite: begin anew. The default folder is begun anew by itself, with a warning, where the store's past has changed (a store
            from elsewhere: where the name, the size or the time of a file has).
        thorough: read every stored file whole, to make those anew whose contents have changed.

    Raises:
        ConfigError: the folder was made with other settings. DataError: the store's past is not the one that the folder was made
            of, or fields are missing.
    """
    settings = options.settings()
    named, folder = folder is not None, default_folder(settings) if folder is None else Path(folder).expanduser()
    store, calendar = SnapshotStore(folder), trading_calendar()
    if not overwrite and not _of_the_same_past(folder):
        said = f"the snapshots in {folder} were made of another past than that of store {C.dpm.get_data_uri('day')}"
        if named:
            raise DataError(f"{said}: make them anew with `python -m qlib_ext.risk build --overwrite`, or name another folder")
        logger.warning(f"{said}: they are made anew")
        overwrite = True
    if overwrite:
        _clear(store)
    store.check_settings(settings)
    stored, never = np.searchsorted(calendar, store.whole_days(thorough)), np.searchsorted(calendar, _never_made(folder))
    missing = np.setdiff1d(np.arange(len(calendar)), np.union1d(stored, never))
    if len(stored) and not len(missing):
        return store
    builder = _Builder(store, settings, calendar, stored, missing)
    _record_past(folder, str(calendar[-1]))
    store.write(tqdm(builder.days(), total=len(missing), desc="risk snapshots", disable=not progress, mininterval=1.0), settings)
    if not store.files():
        raise DataError(f"no day of the store has a history of {builder.options.least} days to forecast from")
    left = np.setdiff1d(missing, builder.made)
    _record_past(folder, str(calendar[-1]), calendar[np.union1d(left, never)])
    return store


def open_snapshots(folder: str | Path) -> SnapshotStore:
    """Snapshots of a named folder, which is only read.

    Raises:
        DataError: they were made of another past than that of the Qlib store in use.
    """
    store = SnapshotStore(folder)
    if (store.folder / MADE_OF).is_file() and not _of_the_same_past(store.folder):
        raise DataError(f"the snapshots in {store.folder} were made of another past than that of store {C.dpm.get_data_uri('day')}: make them "
                        "anew, or name another folder")
    return store


def _past(until: str) -> str:
    """What the days of the store up to one rest on. A store from elsewhere has no history: its files' names, sizes and times."""
    uri = C.dpm.get_data_uri("day")
    if read_metadata(uri) is not None:
        return fingerprint(uri, until=until)
    digest = hashlib.blake2b(fingerprint(uri).encode(), digest_size=16)
    for folder in sorted(os.scandir(Path(uri) / "features"), key=lambda entry: entry.name):
        files = sorted(os.scandir(folder), key=lambda entry: entry.name) if folder.is_dir() else []
        digest.update("".join(f"{folder.name}/{file.name} {file.stat().st_mtime_ns}\n" for file in files).encode())
    return digest.hexdigest()


def _never_made(folder: Path) -> np.ndarray:
    """Days that a finished build could make no snapshot of: before the first bars, without a history, without any bar."""
    try:
        return np.array(json.loads((folder / MADE_OF).read_text()).get("never", []), "datetime64[D]")
    except (OSError, ValueError):
        return np.empty(0, "datetime64[D]")


def _of_the_same_past(folder: Path) -> bool:
    """Whether the store's past is the one that the snapshots of a folder were begun with (yes for an empty folder)."""
    file = folder / MADE_OF
    if not file.is_file():
        return not SnapshotStore(folder).files()
    try:
        made = json.loads(file.read_text())
        return made["fingerprint"] == _past(made["until"])
    except (ValueError, KeyError, TypeError, DataError):
        return False


def _record_past(folder: Path, until: str, never: np.ndarray | None = None) -> None:
    """Say what the snapshots rest on, before the first is made (what an interrupted build left is checked too) and at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{MADE_OF}.{os.getpid()}"
    never = _never_made(folder) if never is None else never
    aside.write_text(json.dumps({"until": until, "fingerprint": _past(until), "never": never.astype(str).tolist()}))
    aside.replace(folder / MADE_OF)


def _clear(store: SnapshotStore) -> None:
    """Remove the snapshots of a folder, and nothing else that may lie there."""
    for file in [*store.files(), store.folder / MADE_OF]:
        file.unlink(missing_ok=True)


# ---- building -------------------------------------------------------------------------------------------------------------------
class _Builder:
    """Makes the days that a folder lacks, the oldest first."""

    def __init__(self, store: SnapshotStore, settings: dict, calendar: np.ndarray, stored: np.ndarray, missing: np.ndarray):
        self.store, self.settings, self.calendar, self.stored, self.missing = store, settings, calendar, stored, missing
        self.options = CovarianceOptions(**settings["covariance"])
        self.reader = MarketReader(settings["cap"], settings["universe"])
        self.made: list[int] = []

    def days(self) -> Iterator[RiskDay]:
        """The missing days; on the first days of all, without a history, there is nothing to forecast with."""
        keep, history = days_kept(self.options), self._history()
        begin = self.reader.begin if history is None else int(self.missing[0])
        step = max(CELLS // len(self.reader.codes), LEAST_DAYS)
        for first in range(begin, len(self.calendar), step):
            stop = min(first + step, len(self.calendar))
            exposed, learnt = self._learn(first, stop)
            wanted = self.missing[(self.missing >= first) & (self.missing < stop)] - exposed.origin
            for day in risk_days(exposed, learnt, history, wanted, self.options):
                self.made.append(int(np.searchsorted(self.calendar, day.snapshot.date)))
                yield day
            history = History.first(exposed, learnt, keep) if history is None else history.extended(exposed, learnt, keep)

    def _learn(self, first: int, stop: int) -> tuple[Exposed, Regressions]:
        """Exposures of the places [first - 1, stop) and their regressions."""
        market = self.reader.arrays(first - 1 - LONGEST, stop)
        exposed = expose(market, self.settings["styles"], max(first - 1 - market.origin, 0))
        learnt = regressions(exposed)
        if not exposed.members.any():
            raise DataError(f"no stock belongs to the estimation universe {self.settings['universe'] or '(all)'!s} from {exposed.days[0]} to "
                            f"{exposed.days[-1]}: check the universe's codes (their case too), market values and is_st")
        _report(exposed, learnt)
        return exposed, learnt

    def _history(self) -> History | None:
        """What the stored days before the first missing one have taught, and the days before them, which are made again."""
        if not len(self.stored) or self.missing[0] < self.stored[0]:
            return None
        keep, first = days_kept(self.options), self.missing[0]
        exposed, learnt = self._learn(self.reader.begin, self.stored[0])
        early = History.first(exposed, learnt, keep)
        days = self.calendar[max(self.stored[0], first - keep):first]
        residual = pd.DataFrame(self.store.residuals(days, self.reader.codes), index=days, columns=self.reader.codes)
        returns = self.store.factor_returns(until=self.calendar[first - 1])
        return History(pd.concat([early.factor_return, returns]), pd.concat([early.residual, residual]).iloc[-keep:])


def _report(exposed: Exposed, learnt: Regressions) -> None:
    """Warn of days without factor returns, and of styles that are unknown on days after they were known."""
    if learnt.faults:
        day, reason = next(iter(learnt.faults.items()))
        logger.warning(f"no factor returns on {len(learnt.faults)} of {len(exposed.days)} days, the first {day}: {reason}")
    for style, there in zip(exposed.styles, exposed.there.T):
        lost = np.flatnonzero(~there & (np.maximum.accumulate(there) | ~there.any()))
        if len(lost) and len(there) > LONGEST:
            logger.warning(f"{style} is unknown on {len(lost)} of {len(there)} days, the first {exposed.days[lost[0]]}: constant, or fewer than "
                           "half of the estimation universe have it")


def expose(market: MarketArrays, styles: Sequence[str], first: int = 0) -> Exposed:
    """Exposures to some styles from row `first` on, rounded to float32, as they are stored."""
    fields = {**market.fields, "market": market.market()}
    made = style_exposures(fields, market.cap, market.members, market.industry, styles, market.origin, first, run)
    industry = None if market.industry is None else market.industry[first:]
    return Exposed(market.days[first:], market.origin + first, market.codes, made.names, made.values.astype(np.float32), industry,
                   market.cap[first:], market.members[first:], market.fields["daily_returns"][first:])


def load_styles(styles: Sequence[str] | None = None, start_time=None, end_time=None,
                options: RiskOptions = RiskOptions()) -> tuple[pd.DataFrame, list[dict]]:
    """Style exposures of the Qlib store in use, those of CNE5 and the extras (`size_squared`, `roe`, `sue`, `volatility_60`, `bp`).

    Args:
        styles: names; None: all that the store's fields allow. start_time, end_time: first and last day; None: the store's.

    Returns:
        float32 frame by (datetime, instrument), NaN unknown; rows of coverage (`qlib_ext.risk.style.coverage`).

    Raises:
        ConfigError: unknown names, or no trading day in the span. DataError: a style that was asked for cannot be had.
    """
    reader = MarketReader(options.cap, options.universe, extras=True)
    first = 0 if start_time is None else int(np.searchsorted(reader.calendar, np.datetime64(pd.Timestamp(start_time), "D")))
    stop = len(reader.calendar) if end_time is None else \
        int(np.searchsorted(reader.calendar, np.datetime64(pd.Timestamp(end_time), "D"), side="right"))
    if stop <= max(first, reader.begin):
        raise ConfigError(f"no stock has a bar from {start_time} to {end_time}: the store has them from "
                          f"{reader.calendar[reader.begin]} to {reader.calendar[-1]}")
    market = reader.arrays(first - LONGEST, stop)
    fields, lead = {**market.fields, "market": market.market()}, max(first - market.origin, 0)
    names = [*STYLES, *EXTRA_STYLES] if styles is None else list(styles)
    made = style_exposures(fields, market.cap, market.members, market.industry, names, market.origin, lead, run)
    if styles is not None and made.missing:
        raise DataError(f"the store does not allow the styles {sorted(made.missing)}: {made.missing}")
    day, stock = np.nonzero(np.isfinite(made.values).any(axis=2))
    index = pd.MultiIndex.from_arrays([pd.DatetimeIndex(market.days[lead:][day].astype("datetime64[ns]")), market.codes[stock]],
                                      names=["datetime", "instrument"])
    frame = pd.DataFrame(made.values[day, stock].astype(np.float32), index=index, columns=list(made.names))
    return frame, coverage(made, market.members[lead:], market.days[lead:])


def write_exposures(frame: pd.DataFrame, folder: str | Path, options: RiskOptions = RiskOptions(), progress: bool = True,
                    about: dict | None = None) -> SnapshotStore:
    """Snapshots of exposures that come from elsewhere (a deep risk model): country and these factors, no industries.

    Args:
        frame: by (datetime, instrument), a column for each factor, in cross-sectional standard deviations; NaN unknown. Its days must
            be consecutive trading days of the Qlib store in use.
        folder: a new one, or one of snapshots, which are replaced when all is done.
        about: where they come from, kept with the settings.

    Raises:
        ConfigError: the folder holds something else. DataError: no rows, days that lack in between, columns that are no numbers.
    """
    if not len(frame) or not all(kind.kind == "f" for kind in frame.dtypes):
        raise DataError(f"exposures must be a frame of floats by (datetime, instrument) with rows; got {frame.shape}, {set(frame.dtypes)}")
    calendar, folder = trading_calendar(), Path(folder).expanduser()
    others = [] if not folder.exists() else [name for name in os.listdir(folder) if not name.endswith(".parquet") and name not in (".lock", MADE_OF)]
    if others or (folder.exists() and not folder.is_dir()):
        raise ConfigError(f"{folder} holds something else than snapshots ({', '.join(sorted(others)[:3])}): name another folder")
    days = np.unique(frame.index.get_level_values(0).to_numpy().astype("datetime64[D]"))
    first, stop = np.searchsorted(calendar, days[0]), np.searchsorted(calendar, days[-1], side="right")
    differ = np.setxor1d(calendar[first:stop], days)
    if len(differ):
        raise DataError(f"exposures must come for consecutive trading days: {len(differ)} lack, or are no trading days, between {days[0]} "
                        f"and {days[-1]}, the first {differ[0]}")
    if frame.index.has_duplicates:
        raise DataError(f"exposures hold {int(frame.index.duplicated().sum())} (day, instrument) rows twice")
    market = MarketReader(options.cap, options.universe).arrays(first, stop)
    style = np.full((*market.cap.shape, frame.shape[1]), np.nan, np.float32)
    row = np.searchsorted(market.days, frame.index.get_level_values(0).to_numpy().astype("datetime64[D]"))
    names = frame.index.get_level_values(1).to_numpy().astype(str)
    place = np.minimum(np.searchsorted(market.codes, names), len(market.codes) - 1)
    known = (market.codes[place] == names) & (frame.index.get_level_values(0).to_numpy().astype("datetime64[D]") >= market.days[0])
    if not known.any():
        raise DataError(f"exposures name no stock of the store (theirs: {names[0]}, the store's: {market.codes[0]})")
    style[row[known], place[known]] = frame.to_numpy(np.float32)[known]
    flat = np.nanmax(style, axis=1, initial=-np.inf) <= np.nanmin(style, axis=1, initial=np.inf)         # a factor that is dead on a day
    style = np.where(flat[:, None], np.nan, style)
    exposed = Exposed(market.days, market.origin, market.codes, tuple(str(name) for name in frame.columns), style, None, market.cap,
                      market.members, market.fields["daily_returns"])
    covariance = CovarianceOptions(**options.covariance)
    settings = {"styles": list(exposed.styles), "missing": {}, "cap": market.cap_field, "universe": options.universe,
                "formulas": source_digest(FORMULAS), "covariance": asdict(covariance), "exposures": about or {}}
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        learnt = regressions(exposed)
        _report(exposed, learnt)
        made = risk_days(exposed, learnt, None, range(len(market.days)), covariance)
        SnapshotStore(aside).write(tqdm(made, total=len(market.days), desc="risk snapshots", disable=not progress, mininterval=1.0), settings)
        if not len(SnapshotStore(aside).days):
            raise DataError(f"{len(market.days)} days of exposures are too few to forecast from: {covariance.least} days of returns are needed")
        _record_past(aside, str(market.days[-1]))
        shutil.rmtree(folder, ignore_errors=True)
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return SnapshotStore(folder)


# ---- Qlib's RiskModel -----------------------------------------------------------------------------------------------------------
class FactorRiskModel(RiskModel):
    """Qlib's `RiskModel` whose covariance comes from snapshots instead of the returns it is given.

    ``predict(X)`` takes prices or returns as Qlib's estimators do (rows days, columns instruments, or a (datetime, instrument) series)
    and looks at nothing but their last day and their instruments.

    Args:
        snapshots: folder of a snapshot store; None: that of the Qlib store in use, made where it is missing.
        scale_return: variances of returns in percent, as Qlib's estimators give by default.
    """

    def __init__(self, snapshots: str | None = None, scale_return: bool = True):
        super().__init__(scale_return=scale_return)
        self.snapshots = snapshots

    def predict(self, X, return_corr: bool = False, is_price: bool = True, return_decomposed_components: bool = False):
        """The covariance (or correlation) frame, or ``(exposure, factor covariance, specific variances)``.

        Raises:
            DataError: no snapshot of the last day, or instruments that it does not know.
            ConfigError: X is no frame with days and instruments, or both options are asked for.
        """
        if return_corr and return_decomposed_components:
            raise ConfigError("ask either for the correlation or for the components")
        snapshot, columns = self._snapshot(X)
        rows, scale = snapshot.rows(columns), 1e4 if self.scale_return else 1.0
        if return_decomposed_components:
            return snapshot.exposure[rows], snapshot.factor_cov * scale, snapshot.specific_var[rows] * scale
        matrix = (snapshot.covariance() * scale)[np.ix_(rows, rows)]
        if return_corr:
            size = np.sqrt(np.diag(matrix))
            matrix = matrix / np.outer(size, size)
        return pd.DataFrame(matrix, index=columns, columns=columns)

    def _snapshot(self, X) -> tuple[RiskSnapshot, pd.Index]:
        if not isinstance(X, (pd.Series, pd.DataFrame)):
            raise ConfigError(f"FactorRiskModel needs days and instruments: give a frame, not a {type(X).__name__}")
        if isinstance(X.index, pd.MultiIndex):
            X = (X.iloc[:, 0] if isinstance(X, pd.DataFrame) else X).unstack(level="instrument")
        store = prepare_snapshots() if self.snapshots is None else open_snapshots(self.snapshots)
        return store.read(np.datetime64(pd.Timestamp(X.index.max()), "D")).select(X.columns), X.columns


class RiskDays:
    """The days of the risk model for a portfolio strategy, which asks by day.

    Args:
        snapshots: folder of a snapshot store; None: that of the Qlib store in use, made where days are missing.
    """

    def __init__(self, snapshots: str | None = None):
        self.store = prepare_snapshots() if snapshots is None else open_snapshots(snapshots)
        self._frames: dict[tuple[str, ...], dict[str, pd.Series]] = {}

    def read(self, day) -> RiskSnapshot:
        """Snapshot of a day. Raises DataError: there is none."""
        return self.store.read(np.datetime64(day, "D"))

    def extras(self, day, styles: Sequence[str], missing: str = "error") -> dict[str, pd.Series]:
        """Columns by instrument of those of `styles` that snapshots do not hold (`size_squared`, `roe`, `sue`, `volatility_60`, `bp`).

        Args:
            missing: `error`, or `drop` to leave out what the store's fields do not allow.

        Raises:
            DataError: a style that the store does not allow, with `error`.
        """
        wanted = tuple(name for name in styles if name in EXTRA_STYLES)
        if not wanted:
            return {}
        if wanted not in self._frames:
            self._frames[wanted] = self._load(wanted, missing)
        stamp = pd.Timestamp(np.datetime64(day, "D"))
        return {name: one.xs(stamp, level=0).astype(float) for name, one in self._frames[wanted].items() if stamp in one.index.levels[0]}

    def _load(self, names: tuple[str, ...], missing: str) -> dict[str, pd.Series]:
        """Styles on all days of the snapshots, at once or, where one cannot be had and `missing` is `drop`, those that can."""
        first, last = self.store.days[[0, -1]]
        try:
            frame = load_styles(names, first, last)[0]
            return {name: frame[name] for name in names}
        except DataError:
            if missing == "error":
                raise
            parts = [self._load((name,), missing) for name in names] if len(names) > 1 else []
            return {name: one for part in parts for name, one in part.items()}
