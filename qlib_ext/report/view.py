"""What a report looks at, read from the Qlib store in use: prices, groups and risk beside a signal, weights and risk beside a portfolio."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Mapping, Optional

import numpy as np
import pandas as pd
from qlib.config import C
from qlib.log import get_module_logger
from qlib.utils import get_callable_kwargs, init_instance_by_config

from qlib_ext.data.field_reader import FieldReader
from qlib_ext.data.universe import index_levels, member_spans, trading_calendar, universe_grid, universe_mask
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.market_rules import board_of, kind_of, tick_size
from qlib_ext.report.factor_view import FactorView
from qlib_ext.report.portfolio import PortfolioView
from qlib_ext.store.feature_files import feature_file, first_few, has_values, read_field
from qlib_ext.store.metadata import read_metadata
from qlib_ext.store.schema import INDEX_CODES
from qlib_ext.store.snapshots import SnapshotStore

logger = get_module_logger("qlib_ext.report")
ENTRIES = ("vwap", "open", "close")
CAPS = ("float_cap", "total_cap")
STYLES = (True, False, "auto")
NOTABLE = 0.01
"""Weight of an index without exposures from which on a report says so."""
Notes = list[str]


# ---- a signal -------------------------------------------------------------------------------------------------------------------
def check_scores(scores: pd.Series | pd.DataFrame, min_count: int, universe: Optional[str] = None) -> tuple[pd.Series, Notes]:
    """Scores on (datetime, instrument), finite ones of a universe's members of the day only; and what is odd about them.

    Raises:
        DataError: no (day, stock) index, a pair twice, days that are no trading days, no day with `min_count` scores, or scores alike on
            every day. ConfigError: unknown universe.
    """
    column = scores.iloc[:, 0] if isinstance(scores, pd.DataFrame) else scores
    if index_levels(column.index) == [1, 0]:
        column = column.swaplevel()
    column = column.rename_axis(["datetime", "instrument"]).astype(np.float64).replace([np.inf, -np.inf], np.nan).dropna()
    if column.index.has_duplicates:
        raise DataError(f"the predictions hold {column.index[column.index.duplicated()][0]} twice: give one score a (day, stock)")
    if universe is not None:
        column = column[universe_mask(column.index, universe)]
    counts = column.groupby(level=0).size()
    if not len(counts) or counts.max() < min_count:
        where = "" if universe is None else f" of universe {universe}"
        raise DataError(f"the predictions score at most {counts.max() if len(counts) else 0} stocks{where} on a day, and a day needs "
                        f"{min_count}: predict more stocks, or lower min_count")
    calendar, days = trading_calendar(), counts.index.to_numpy().astype("datetime64[D]")
    strange = np.setdiff1d(days, calendar)
    if len(strange):
        raise DataError(f"{len(strange)} days of the predictions are no trading days of the store "
                        f"({first_few(strange.astype(str).tolist())}), which runs from {calendar[0]} to {calendar[-1]}: use the "
                        "store the run was made on")
    return column, _oddities(column, counts, np.setdiff1d(calendar[(calendar > days[0]) & (calendar < days[-1])], days), min_count)


def _oddities(column: pd.Series, counts: pd.Series, gaps: np.ndarray, min_count: int) -> Notes:
    spread = column.groupby(level=0).agg(np.ptp)[counts >= min_count]
    if (spread == 0).all():
        raise DataError("the scores of a day are all alike, on every day: nothing can be ranked; look at the model's training")
    notes = []
    for days, what in ((gaps, "without any prediction between the first and the last"),
                       (counts.index[counts < min_count], f"with fewer than {min_count} scores (no IC)"),
                       (spread.index[spread == 0], "on which all scores are alike (no IC)")):
        if len(days):
            names = pd.DatetimeIndex(days).strftime("%Y-%m-%d").tolist()
            notes.append(f"{len(days)} trading day{'s' * (len(days) > 1)} {what}: {first_few(names)}")
    return notes


def factor_view(scores: pd.Series, label: Optional[pd.Series] = None, entry: str = "vwap", ahead: int = 20, index: Optional[str] = None,
                styles: bool | str = "auto", snapshots: Optional[str] = None, horizon: int = 5) -> tuple[FactorView, Notes]:
    """A signal beside the prices, groups and risk of its stocks, from the first day scored to `ahead` + 1 days after the last.

    Args:
        scores: as `check_scores` gives them. label: raw labels on the same index, NaN unknown.
        entry: price that is traded at: vwap, open or close.
        index: universe name (``csi300``) or code of the index to hold the signal against; None: none.
        styles: True makes risk snapshots where days are missing, auto takes those there are. snapshots: their folder; None: the store's.
        horizon: trading days the label covers.

    Raises:
        ConfigError: an unknown entry, or an index or a price that the store lacks. DataError: none of the stocks has a bar.
    """
    if entry not in ENTRIES:
        raise ConfigError(f"entry={entry!r}: choose one of {list(ENTRIES)}")
    days, codes = _span(scores, ahead), np.unique(scores.index.get_level_values(1).to_numpy().astype(str))
    features = Path(C.dpm.get_data_uri("day")) / "features"
    entries = [name for name in ENTRIES if any(has_values(features, code, name) for code in codes)]
    if not entries:
        raise DataError(f"none of the {len(codes)} stocks scored ({first_few(codes.tolist())}) has a bar in the store: use the store the "
                        "run was made on")
    if entry not in entries:
        raise ConfigError(f"the store has no field {entry}: choose another entry of {entries}")
    benchmark, notes = index_prices(index, entry, days)
    reader = FieldReader({code: [] for code in codes}, days[0], days[-1],
                         list(dict.fromkeys(["close", entry, "volume", "factor", "limit_up", "limit_down", "industry", *CAPS])))
    quotes, said = _quotes(reader, codes, entry, days)
    view = FactorView(days=days, instruments=codes, score=_grid(scores, days, codes), entry_name=entry, horizon=horizon,
                      label=None if label is None else _grid(label, days, codes), benchmark=benchmark, board=board_of(np.char.upper(codes)),
                      industry=_industry(reader, codes) if _has(reader, "industry") else None, **quotes,
                      styles=_styles(styles, snapshots, days, codes, said))
    return view, notes + said


def _span(scores: pd.Series, ahead: int) -> np.ndarray:
    calendar, scored = trading_calendar(), scores.index.levels[0].to_numpy()[np.unique(scores.index.codes[0])].astype("datetime64[D]")
    return calendar[np.searchsorted(calendar, scored.min()):np.searchsorted(calendar, scored.max()) + ahead + 2]


def _grid(column: pd.Series, days: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """A series on (datetime, instrument) as ``[t, n]``; NaN where it has nothing, what it has besides is left out."""
    (day, stock), laid = column.index.levels, np.full((len(days), len(codes)), np.nan)
    t, n = _places(days, day.to_numpy().astype("datetime64[D]")), _places(codes, stock.to_numpy().astype(str))
    t, n = t[column.index.codes[0]], n[column.index.codes[1]]
    inside = (t >= 0) & (n >= 0)
    laid[t[inside], n[inside]] = column.to_numpy(dtype=float)[inside]
    return laid


def _places(ordered: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Position of each of `wanted` in ascending values; -1 where absent."""
    if not len(ordered):
        return np.full(len(wanted), -1)
    place = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
    return np.where(ordered[place] == wanted, place, -1)


def _has(reader: FieldReader, name: str) -> bool:
    return any(name in fields for fields in reader.content.values())


def _quotes(reader: FieldReader, codes: np.ndarray, entry: str, days: np.ndarray) -> tuple[dict, Notes]:
    """Prices, who can be traded at the entry, and market values; and what the store does not tell."""
    lay, notes = lambda name, **options: reader.lay(name, codes, **options), []  # noqa: E731
    close, price = lay("close"), lay(entry)
    traded = (close > 0) & (price > 0)
    if _has(reader, "volume"):
        traded &= lay("volume") != 0
    else:
        notes.append("the store has no volume: a day with prices counts as traded")
    close, price = np.where(close > 0, close, np.nan), np.where(traded, price, np.nan)
    factor = lay("factor", carried=True) if _has(reader, "factor") else 1.0
    half = 0.5 * tick_size(kind_of(np.char.upper(codes))[None], days[:, None]) * factor                # half a tick: at the limit
    if not (_has(reader, "limit_up") and _has(reader, "limit_down")):
        notes.append("the store has no price limits: stocks locked at their limit count as traded")
    cap_field = next((name for name in CAPS if _has(reader, name)), None)
    if cap_field != CAPS[0]:
        notes.append("the store has no market values: nothing is weighted by them" if cap_field is None else
                     f"the store has no float_cap: {cap_field} weighs instead")
    cap = np.full(close.shape, np.nan) if cap_field is None else lay(cap_field, carried=True)
    return {"entry": price, "close": close, "buyable": traded & ~(price >= lay("limit_up") - half),
            "sellable": traded & ~(price <= lay("limit_down") + half), "cap": cap}, notes


def _industry(reader: FieldReader, codes: np.ndarray) -> np.ndarray:
    """Industry codes as text ``[t, n]``, "" unknown."""
    numbers, known = reader.lay("industry", codes), _industry_table()
    found, place = np.unique(np.where(np.isfinite(numbers), numbers, -1.0), return_inverse=True)
    names = ["" if number < 0 else str((known.get(f"{number:.0f}") or {}).get("code", f"{number:.0f}")) for number in found]
    return np.array(names, dtype=str)[place.reshape(numbers.shape)]


def _industry_table() -> dict[str, dict]:
    """Number in the field -> code and name of an industry, as the store says; empty where it does not."""
    return (read_metadata(Path(C.dpm.get_data_uri("day"))) or {}).get("industry_codes") or {}


def industry_names() -> dict[str, str]:
    """Names of industry codes, where the store has any."""
    return {entry["code"]: entry["name"] for entry in _industry_table().values() if entry.get("name")}


# ---- an index -------------------------------------------------------------------------------------------------------------------
def index_code(index: str) -> str:
    """Code of an index, from a universe name such as csi300 or the code itself."""
    return INDEX_CODES.get(str(index).lower(), str(index))


def index_prices(index: Optional[str], entry: str, days: np.ndarray) -> tuple[Optional[np.ndarray], Notes]:
    """Prices of an index at the entry ``[t]``, NaN unknown; its closes, and a note, where it has no such price.

    Raises:
        ConfigError: the store has no bars of the index on these days; those it has are named.
    """
    if index is None:
        return None, []
    features, calendar, code = Path(C.dpm.get_data_uri("day")) / "features", trading_calendar(), index_code(index)
    for name in dict.fromkeys([entry, "close"]):
        found = read_field(feature_file(features, code, name), len(calendar))
        if found is None:
            continue
        laid = np.full(len(calendar), np.nan)
        laid[found[0]:found[0] + len(found[1])] = np.where(found[1] > 0, found[1], np.nan)
        laid = laid[np.searchsorted(calendar, days)]
        if np.isfinite(laid).any():
            return laid, [] if name == entry else [f"{code} has no {entry} in the store: its closes stand in"]
    has = [known for known in INDEX_CODES.values() if has_values(features, known, "close")]
    raise ConfigError(f"index {index!r} has no bars from {days[0]} to {days[-1]} in the store (it has those of {has or 'no index'}): "
                      "ingest them, name another index, or null for none")


# ---- risk -----------------------------------------------------------------------------------------------------------------------
def risk_store(styles: bool | str, snapshots: Optional[str], notes: Notes) -> Optional[SnapshotStore]:
    """Risk snapshots (made through Qlib: reports and risk do not know each other); None, and a note, where there are none.

    Raises:
        ConfigError: `styles` is neither true, false nor auto.
    """
    if styles not in STYLES:
        raise ConfigError(f"styles={styles!r}: choose one of {list(STYLES)}")
    module, folder = "qlib_ext.risk.model", snapshots
    try:
        if styles is False:
            return None
        if styles == "auto" and snapshots is None:
            settings = init_instance_by_config({"class": "RiskOptions", "module_path": module}).settings()
            folder = str(get_callable_kwargs({"class": "default_folder", "module_path": module})[0](settings))
        if styles == "auto" and not SnapshotStore(folder).files():
            notes.append("no styles: there are no risk snapshots of the store yet (styles: true makes them, as "
                         "`python -m qlib_ext.risk build` does)")
            return None
        return init_instance_by_config({"class": "RiskDays", "module_path": module, "kwargs": {"snapshots": folder}}).store
    except DataError as error:
        if styles is True:
            raise
        notes.append(f"no styles: {error}")
        return None


def _styles(styles: bool | str, snapshots: Optional[str], days: np.ndarray, codes: np.ndarray, notes: Notes) -> dict[str, np.ndarray]:
    store = risk_store(styles, snapshots, notes)
    if store is None:
        return {}
    values, names = store.exposures(days, codes)
    known = np.isfinite(values).any(axis=(1, 2))
    if not known.all():
        notes.append(f"styles are known on {known.sum()} of {len(days)} days: the risk snapshots in {store.folder.name} lack the others")
    return {name: values[:, :, k] for k, name in enumerate(names)} if known.any() else {}


# ---- a portfolio ----------------------------------------------------------------------------------------------------------------
def portfolio_view(report: pd.DataFrame, positions: Mapping[Any, Any], benchmarks: Optional[pd.DataFrame] = None,
                   certificates: Optional[pd.DataFrame] = None, index: Optional[str] = None, styles: bool | str = "auto",
                   snapshots: Optional[str] = None) -> tuple[PortfolioView, Notes]:
    """A back-test beside the weights of its benchmark and the risk of both.

    Args:
        report: Qlib's daily report (return before cost, cost, turnover, bench). positions: day -> Qlib's position at its close.
        benchmarks: daily returns of `PortfolioRecord`; None: the report's own benchmark is all there is.
        index: universe whose weights are the benchmark; None: no active weights.
        styles, snapshots: as `factor_view`.

    Raises:
        ConfigError: unknown index. DataError: days that the store does not have.
    """
    days, calendar, notes = report.index.to_numpy().astype("datetime64[D]"), trading_calendar(), []
    places = _places(calendar, days)
    if not len(days) or (places < 0).any() or (np.diff(places) != 1).any():
        raise DataError("the back-test's days are not consecutive trading days of the store, which runs from "
                        f"{calendar[0]} to {calendar[-1]}: use the store it was made on")
    closes = calendar[max(places[0] - 1, 0):places[-1] + 1]
    closes = closes if len(closes) > len(days) else np.r_[calendar[:1] - 1, closes]
    daily = pd.DataFrame({"gross": report["return"], "net": report["return"] - report["cost"], "cost": report["cost"],
                          "turnover": report["turnover"], "price_index": report["bench"].astype(float)})
    if benchmarks is not None:
        daily = daily.join(benchmarks[[name for name in ("total_return", "equal_weight") if name in benchmarks]])
    else:
        notes.append("only the back-test's own benchmark (price_index): this recorder has no benchmarks.pkl, which PortfolioRecord leaves")
    held = {np.datetime64(pd.Timestamp(day), "D"): position.get_stock_weight_dict() for day, position in positions.items()}
    spans = {} if index is None else member_spans(index)
    codes = np.array(sorted({str(code) for one in held.values() for code in one} | set(spans)), dtype=str)
    weights = np.zeros((len(closes), len(codes)))
    for t, day in enumerate(closes):
        names = list(held.get(day, ()))
        weights[t, _places(codes, np.array(names, dtype=str))] = [held[day][name] for name in names]
    bench = None if index is None else _index_weights(index, closes, codes, notes)
    used = (weights > 0).any(axis=0) | (False if bench is None else (bench > 0).any(axis=0))
    risk = _risk(risk_store(styles, snapshots, notes), closes, codes[used], notes)
    view = PortfolioView(daily=daily, closes=closes, instruments=codes[used], held=weights[:, used],
                         bench=None if bench is None else bench[:, used], certificates=certificates, **risk)
    if risk and bench is not None:
        lost = float((view.bench * ~np.isfinite(view.style).any(axis=2)).sum(axis=1).mean())
        if lost > NOTABLE:
            notes.append(f"the risk model does not know stocks with {lost:.1%} of the weight of {index} (mean of the days): what they "
                         "earned is in `other`")
    return view, notes


def _index_weights(index: str, closes: np.ndarray, codes: np.ndarray, notes: Notes) -> np.ndarray:
    """Weights of an index at closes ``[t, n]``, which add to 1; its members alike where the store has no weights."""
    name, first = f"{index.lower()}_weight", max(closes[0], trading_calendar()[0])
    reader = FieldReader({code: [] for code in codes}, first, closes[-1], [name])
    weights = np.nan_to_num(reader.lay(name, codes)) if reader.content else np.zeros((len(closes), len(codes)))
    weights = np.concatenate([np.zeros((len(closes) - len(weights), len(codes))), weights])
    if not weights.any():
        notes.append(f"the store has no field {name}: the members of {index} weigh alike in active weights")
        weights = universe_grid(closes, codes.tolist(), index).astype(float)
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)


def _risk(store: Optional[SnapshotStore], closes: np.ndarray, codes: np.ndarray, notes: Notes) -> dict[str, Any]:
    """Exposures at the closes, factor returns and residuals of the days after them."""
    if store is None:
        return {}
    style, names = store.exposures(closes, codes)
    returns = store.factor_returns(closes[-1]).reindex(closes[1:])
    missing = int(returns.isna().all(axis=1).sum())
    if missing == len(returns):
        notes.append(f"no exposures: the risk snapshots in {store.folder.name} hold none of the days")
        return {}
    if missing:
        notes.append(f"{missing} of {len(returns)} days have no risk snapshot: all they earned is in `other`")
    return {"style_names": tuple(names), "style": style, "industry": store.industries(closes, codes), "factor_returns": returns,
            "residual": store.residuals(closes[1:], codes)}
