"""From tables to a Qlib store."""

import logging
import re
import time
from pathlib import Path
from typing import Dict, Mapping, NamedTuple, Optional, Sequence, Tuple, Type, Union

import numpy as np

from qlib_ext.errors import ConfigError
from qlib_ext.market_rules import missing_trading_days
from qlib_ext.store.checks import check_tables
from qlib_ext.store.content import Content
from qlib_ext.store.metadata import INTRADAY, METADATA_FILE, digest
from qlib_ext.store.schema import INDEX_NAMES, INDEX_SIZES, KINDS, TABLES, VWAP_MODES
from qlib_ext.store.tables import Table, TableSource, read_tables
from qlib_ext.store.writer import StoreLock, StoreWriter, check_goal

logger = logging.getLogger("qlib_ext.store")
_BLOCK = 4096  # bytes a disk sets aside at a time


class Settings(NamedTuple):
    """What the user chose for a store; an append takes it over."""

    vwap: str
    index_names: Tuple[str, ...]
    index_sizes: Dict[str, int]
    generated: bool


def ingest(
    tables: TableSource,
    out: Union[str, Path],
    vwap: str = "typical",
    overwrite: bool = False,
    generated: bool = False,
    index_names: Sequence[str] = INDEX_NAMES,
    columns: Union[str, Path, Mapping, None] = None,
    index_sizes: Optional[Mapping[str, int]] = None,
) -> Path:
    """Turn tables of A-share data into a Qlib store, all or nothing, and return its folder.

    Arguments
    ---------
    tables : folder of `<table>.parquet` or `<table>.csv`, or DataFrames by table name (columns: `qlib_ext.store.schema.TABLES`)
    out : folder of the store (links are followed); built beside it and put in its place when complete
    vwap : 'typical', (high + low + close) / 3, or 'amount', amount / volume (NaN where the amount is unknown)
    overwrite : replace a store that is at `out`
    generated : recorded in the metadata: the data are made up
    index_names : indices whose members and weights are stored; those without members are reported and left out
    columns : column-mapping file, or its content, for tables with a vendor's own names (see `read_tables`)
    index_sizes : expected members of an index where they are not 300, 500 and 1000 of csi300, csi500 and csi1000; recorded

    Raises
    ------
    ConfigError
        Unknown `vwap`; no index name, or one given twice, taken, or not of [a-z0-9_]; a size of an index that is not stored
        or not positive.
    DataError
        Tables missing or contradicting themselves (all faults at once), a store at `out` already, something at `out` that is no
        store, another ingestion writing there, too little room on the disk, no permission to write.
    """
    started = time.time()
    if vwap not in VWAP_MODES:
        raise ConfigError(f"unknown vwap {vwap!r}; valid are {list(VWAP_MODES)}")
    index_names = _checked_names(index_names)
    settings = Settings(vwap, index_names, _sizes(index_names, index_sizes or {}), bool(generated))
    with StoreLock(out) as lock:
        out = lock.out
        check_goal(out, overwrite)
        if out.is_dir() and (out / METADATA_FILE).is_file() and '"intraday"' in (out / METADATA_FILE).read_text(encoding="utf-8"):
            logger.warning("the intraday fields of the store that is replaced go with it: run `build-intraday` again")
        data = read_tables(tables, columns)
        publish_store(out, data, settings, started=started)
    return out


def _checked_names(index_names: Sequence[str]) -> Tuple[str, ...]:
    """Names of indices, which become names of files and fields."""
    if isinstance(index_names, str):
        raise ConfigError(f"index_names={index_names!r} is one text; give a list of names, [{index_names!r}]")
    names, taken = tuple(index_names), {"all", *KINDS}
    if not names:
        raise ConfigError("no index name; give at least one of table membership")
    wrong = [name for name in names if not isinstance(name, str) or not re.fullmatch("[a-z0-9_]+", name) or name in taken
             or name.startswith(INTRADAY)]
    if wrong:
        raise ConfigError(f"index names {wrong}: give names of a-z, 0-9 and _ other than {sorted(taken)} that do not begin with hf_ or "
                          "hi_, which are fields of build-intraday")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"index names {twice} are given more than once; give each of them once")
    return names


def _sizes(index_names: Sequence[str], given: Mapping[str, int]) -> Dict[str, int]:
    """Expected members of each index that has a known number."""
    faults = {name: size for name, size in given.items() if name not in index_names or size != int(size) or size < 1}
    if faults:
        raise ConfigError(f"index_sizes {faults}: give whole numbers of members for indices among {list(index_names)}")
    sizes = {**INDEX_SIZES, **given}
    return {name: int(sizes[name]) for name in index_names if name in sizes}


def publish_store(out: Path, data: Dict[str, Table], settings: Settings, history: Sequence[dict] = (),
                  writer_type: Type[StoreWriter] = StoreWriter, started: float = 0.0) -> dict:  # fmt: skip
    """Check tables, compute everything, and put the store at `out`; returns its metadata. Use inside a `StoreLock`.

    `history`: entries of the earlier states of the store; `started`: when the caller began, for the log.
    """
    units_checked = check_tables(data, settings.vwap)
    logger.info("tables read and checked: %s", ", ".join(f"{name} {len(table)} rows" for name, table in data.items()))
    content = Content(data, settings.vwap, settings.index_names)
    with writer_type(out, _size_on_disk(content, data)) as writer:
        for name, table in data.items():
            writer.table(name, table.frame())
        content.write(writer)
        metadata = content.metadata(settings.generated)
        metadata.update(index_names=list(settings.index_names), index_sizes=settings.index_sizes, units_checked=units_checked,
                        tables={name: len(table) for name, table in data.items()})  # fmt: skip
        metadata = writer.publish(metadata, {**content.settings(), **_kept_settings(data)}, history)
        _warn_of_days(content.calendar)
        _report(out, metadata, time.time() - started)
    return metadata


def _kept_settings(data: Dict[str, Table]) -> dict:
    """Hashes of the rows of tables of which no field is made, for the fingerprint: their files' bytes vary with the writer."""
    kept = {name: digest(table.frame().to_csv(index=False).encode()) for name, table in data.items() if TABLES[name].kept}
    tracked = data["instruments"].texts.get("tracked_index", ()) if "instruments" in data else ()
    if any(tracked):  # which ETFs stand for one index
        columns = ["instrument", "tracked_index", "etf_class"]
        kept["instruments"] = digest(data["instruments"].frame().reindex(columns=columns).to_csv(index=False).encode())
    return {"kept_tables": kept} if kept else {}


def _warn_of_days(calendar: np.ndarray) -> None:
    """Log days that look lost and days on which no exchange opens."""
    for days, what in ((missing_trading_days(calendar), "weekdays are missing in the calendar and no holiday explains them"),
                       (calendar[~np.is_busday(calendar)], "days of the calendar are on a weekend")):  # fmt: skip
        if len(days):
            logger.warning("%d %s, first %s; correct the dates of bars and index_bars", len(days), what, days[0])


def _size_on_disk(content: Content, data: Dict[str, Table]) -> int:
    """About how many bytes the store takes: 4 a cell, half a block a file, 2 a value of the compressed tables."""
    parts = ((content.grid, content.fields), (content.other_grid, content.other_fields),
             (content.index_grid, content.index_fields))  # fmt: skip
    grids = [(grid, len(fields)) for grid, fields in parts if grid is not None]
    files, cells = sum(len(grid.codes) * count for grid, count in grids), sum(grid.size * count for grid, count in grids)
    return 4 * cells + files * _BLOCK // 2 + sum(2 * len(table) * len(TABLES[name].columns) for name, table in data.items())


def _report(out: Path, metadata: dict, seconds: float) -> None:
    """Log what was stored, what was left out and from what the weights come."""
    counts, spans, info, warning = metadata["counts"], metadata["spans"], logger.info, logger.warning
    info("store %s: %d stocks, %d rows, %s..%s", out, counts["stocks"], counts["stock_rows"], *spans["stocks"])
    info("%d indices, %s..%s; fields %s", counts["indices"], *spans["index"], ", ".join(metadata["fields"]))
    info("suspended days %d (%d without a row)", counts["suspended_cells"], counts["cells_without_row"])
    if not any(metadata["units_checked"].values()):
        warning("units of volume, amount, turnover and prices could not be checked: too few rows with amount, turnover and float "
                "shares, or factor changes; make sure of them (see the schema)")  # fmt: skip
    if "vwap_outside_low_high" in counts:
        outside, unknown = counts["vwap_outside_low_high"], counts["vwap_unknown_cells"]
        warning("vwap by amount: outside [low, high] beyond rounding on %d stock-days (kept), unknown on %d", outside, unknown)
    for name, found in counts["membership"].items():
        about = metadata["weights"][name]
        info("%s: %d codes in %d spans", name, found["codes"], found["spans"])
        if found["spans_merged"]:
            warning("%s: %d spans touch the code's previous one and were merged", name, found["spans_merged"])
        if found["spans_without_bars"]:
            left_out = found["spans_without_bars"], found["codes_without_bars"]
            warning("%s: left out %d spans of %d codes without bars", name, *left_out)
        info("%s weights: %s; of %d member days %d official, %d by float cap, %d of unknown float cap", name, about["source"],
             about["member_days"], about["member_days_official"], about["member_days_float_cap"],
             about["member_days_float_cap_unknown"])  # fmt: skip
    for name in counts["indices_without_members"]:
        warning("index %s has no members with bars in table membership: no instruments file and no weights", name)
    for name in ("membership", "index_weights"):
        others = counts.get(f"{name}_rows_of_other_indices")
        if others:
            warning("table %s: %d rows of other indices left out", name, others)
    for name, count in counts["malformed_codes_of_the_past"].items():
        warning("table %s: %d rows that end before the first stock bar have malformed codes and were left out", name, count)
    if counts.get("industry_overlaps_cut"):
        warning("table industry: %d spans reach into the stock's next one and were cut there", counts["industry_overlaps_cut"])
    info("fingerprint %s, %.1f seconds", metadata["fingerprint"], seconds)
