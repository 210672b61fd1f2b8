"""From tables to a Qlib store."""

import logging
import time
from pathlib import Path
from typing import Dict, Optional, Sequence, Union

import numpy as np
from tqdm import tqdm

import qlib_ext
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store import fields as build
from qlib_ext.store.checks import check_tables, malformed_rows
from qlib_ext.store.grid import Grid
from qlib_ext.store.metadata import FORMAT
from qlib_ext.store.schema import INDEX_NAMES, VWAP_MODES, describe_fields
from qlib_ext.store.tables import Table, TableSource, read_tables
from qlib_ext.store.weights import index_weights, membership_spans
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
        content = _Content(data, vwap, tuple(index_names))
        with StoreWriter(out) as writer:
            content.write(writer)
            metadata = content.metadata(generated)
            metadata["fingerprint"] = writer.publish(metadata, content.settings())
            _report(out, metadata, time.time() - started)
    return out


class _Content:
    """Everything a store holds, computed but not written."""

    def __init__(self, data: Dict[str, Table], vwap: str, index_names: Sequence[str]):
        self.vwap = vwap
        bars, index_bars = data["bars"], data["index_bars"]
        self.calendar = np.unique(np.concatenate([bars.dates["date"], index_bars.dates["date"]]))
        self.grid, self.index_grid = Grid(bars, self.calendar), Grid(index_bars, self.calendar)
        self.index_fields = build.index_fields(index_bars, self.index_grid)
        if "amount" in self.index_fields and not np.isfinite(self.index_fields["amount"]).any():
            del self.index_fields["amount"]
        malformed = {name: int(malformed_rows(table).sum()) for name, table in data.items()}
        prices = build.stock_fields(bars, self.grid, vwap)
        self.fields = prices.fields
        self.counts: dict = {"stock_rows": len(bars), "stocks": len(bars.codes), "index_rows": len(index_bars),
                             "indices": len(index_bars.codes), **prices.counts,
                             "malformed_codes_of_the_past": {name: count for name, count in malformed.items() if count}}
        float_cap = self._float_fields(data.get("float_shares_monthly"), prices.raw_close)
        self._industry(data.get("industry"))
        self._indices(data, index_names, prices.close, float_cap)

    def _float_fields(self, table: Optional[Table], raw_close: np.ndarray) -> np.ndarray:
        shares, counts = build.float_shares(table, self.grid)
        self.counts.update(counts)
        float_cap = shares * raw_close
        if table is not None:
            self.fields["float_shares"], self.fields["float_cap"] = shares.astype(np.float32), float_cap.astype(np.float32)
            self._count_without_bars(table)
        return float_cap

    def _industry(self, table: Optional[Table]) -> None:
        self.industry_codes: Dict[str, dict] = {}
        if table is not None:
            codes, self.industry_codes, counts = build.industry(table, self.grid)
            self.fields["industry"] = codes.astype(np.float32)
            self.counts.update(counts)
            self._count_without_bars(table)

    def _count_without_bars(self, table: Table) -> None:
        self.counts[f"{table.name}_codes_without_bars"] = int((~np.isin(table.codes, self.grid.codes)).sum())

    def _indices(self, data: Dict[str, Table], index_names, close: np.ndarray, float_cap: np.ndarray) -> None:
        table = data["membership"]
        membership = membership_spans(table, self.grid.codes, index_names)
        if not membership.spans:
            raise DataError(
                f"table membership: no span of {list(index_names)} belongs to a code with bars; it names the indices "
                f"{sorted(set(table.texts['index']))}: correct the index names or the codes"
            )
        self.spans = membership.spans
        self.counts["membership"] = membership.counts
        self.counts["indices_without_members"] = [name for name in index_names if name not in membership.spans]
        others = ~np.isin(table.texts["index"].astype(str), list(index_names))
        self.counts["membership_rows_of_other_indices"] = int(others.sum())
        self.weights = {}
        if "index_weights" in data:
            others = ~np.isin(data["index_weights"].texts["index"].astype(str), list(index_names))
            self.counts["index_weights_rows_of_other_indices"] = int(others.sum())
        for name, spans in membership.spans.items():
            weights = index_weights(name, spans, data.get("index_weights"), self.grid, close, float_cap)
            self.fields[f"{name}_weight"] = weights.cells.astype(np.float32)
            self.weights[name] = weights.about

    def write(self, writer: StoreWriter) -> None:
        """Write calendar, instruments and features."""
        writer.calendar(self.calendar)
        for name, grid in (("all", self.grid), ("index", self.index_grid)):
            ends = grid.start + grid.length - 1
            days = zip(grid.codes, self.calendar[grid.start], self.calendar[ends])
            writer.instruments(name, {str(code): [(start, end)] for code, start, end in days})
        for name, spans in self.spans.items():
            writer.instruments(name, spans)
        total = len(self.grid.codes) + len(self.index_grid.codes)
        with tqdm(total=total, desc="writing", unit=" instruments", mininterval=1) as bar:
            for grid, fields in ((self.grid, self.fields), (self.index_grid, self.index_fields)):
                for code, start, offset, length in zip(grid.codes, grid.start, grid.offset, grid.length):
                    cells = slice(offset, offset + length)
                    writer.features(str(code), int(start), {name: values[cells] for name, values in fields.items()})
                    bar.update()

    def settings(self) -> dict:
        """What gives the stored numbers their meaning; enters the fingerprint."""
        return {"vwap": self.vwap, "industry_codes": {number: entry["code"] for number, entry in self.industry_codes.items()}}

    def metadata(self, generated: bool) -> dict:
        """The content of the metadata file, without the fingerprint."""
        first, last = self.grid.start.min(), (self.grid.start + self.grid.length).max() - 1
        index_first = self.index_grid.start.min()
        index_last = (self.index_grid.start + self.index_grid.length).max() - 1
        return {
            "format": FORMAT,
            "fingerprint": None,
            "created_by": f"qlib_ext {qlib_ext.__version__}",
            "generated": bool(generated),
            "vwap": self.vwap,
            "fields": describe_fields(self.fields, self.vwap),
            "index_fields": sorted(self.index_fields),
            "spans": {
                "calendar": [str(self.calendar[0]), str(self.calendar[-1]), len(self.calendar)],
                "stocks": [str(self.calendar[first]), str(self.calendar[last])],
                "index": [str(self.calendar[index_first]), str(self.calendar[index_last])],
            },
            "weights": self.weights,
            "industry_codes": self.industry_codes,
            "counts": self.counts,
        }


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
