"""From tables to a Qlib store."""

import logging
import time
from pathlib import Path
from typing import Sequence, Union

from qlib_ext.errors import ConfigError
from qlib_ext.store.checks import check_tables
from qlib_ext.store.content import Content
from qlib_ext.store.schema import INDEX_NAMES, VWAP_MODES
from qlib_ext.store.tables import TableSource, read_tables
from qlib_ext.store.writer import StoreLock, StoreWriter, check_goal

logger = logging.getLogger("qlib_ext.store")


def ingest(
    tables: TableSource,
    out: Union[str, Path],
    vwap: str = "typical",
    overwrite: bool = False,
    generated: bool = False,
    index_names: Sequence[str] = INDEX_NAMES,
) -> Path:
    """Turn tables of A-share data into a Qlib store, all or nothing, and return its folder.

    Arguments
    ---------
    tables : folder of `<table>.parquet` or `<table>.csv`, or DataFrames by table name (columns: `qlib_ext.store.schema.TABLES`)
    out : folder of the store; built beside it and renamed when complete
    vwap : 'typical', (high + low + close) / 3, or 'amount', amount / volume (NaN where the amount is unknown)
    overwrite : replace a store that is at `out`
    generated : recorded in the metadata: the data are made up
    index_names : indices whose members and weights are stored; those without members are reported and left out

    Raises
    ------
    ConfigError
        Unknown `vwap`, or no index name.
    DataError
        Tables missing or contradicting themselves (all faults at once), a store at `out` already, something at `out` that is no
        store, another ingestion writing there.
    """
    started = time.time()
    if vwap not in VWAP_MODES:
        raise ConfigError(f"unknown vwap {vwap!r}; valid are {list(VWAP_MODES)}")
    out = Path(out).expanduser().absolute()
    with StoreLock(out):
        check_goal(out, overwrite)
        data = read_tables(tables)
        check_tables(data, vwap)
        logger.info("tables read and checked: %s", ", ".join(f"{name} {len(table)} rows" for name, table in data.items()))
        content = Content(data, vwap, tuple(index_names))
        with StoreWriter(out) as writer:
            content.write(writer)
            metadata = content.metadata(generated)
            metadata["fingerprint"] = writer.publish(metadata, content.settings())
            _report(out, metadata, time.time() - started)
    return out


def _report(out: Path, metadata: dict, seconds: float) -> None:
    """Log what was stored, what was left out and from what the weights come."""
    counts, spans, info, warning = metadata["counts"], metadata["spans"], logger.info, logger.warning
    info("store %s: %d stocks, %d rows, %s..%s", out, counts["stocks"], counts["stock_rows"], *spans["stocks"])
    info("%d indices, %s..%s; fields %s", counts["indices"], *spans["index"], ", ".join(metadata["fields"]))
    info("suspended days %d (%d without a row)", counts["suspended_cells"], counts["cells_without_row"])
    if "vwap_outside_low_high" in counts:
        outside, unknown = counts["vwap_outside_low_high"], counts["vwap_unknown_cells"]
        warning("vwap by amount: outside [low, high] beyond rounding on %d stock-days (kept), unknown on %d", outside, unknown)
    for name, found in counts["membership"].items():
        about = metadata["weights"][name]
        info("%s: %d codes in %d spans", name, found["codes"], found["spans"])
        if found["spans_merged"]:
            warning("%s: %d spans touch or overlap the code's previous one and were merged", name, found["spans_merged"])
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
