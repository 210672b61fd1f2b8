"""Everything a store holds, computed from the tables and not yet written."""

from typing import Dict, Optional, Sequence

import numpy as np
from tqdm import tqdm

import qlib_ext
from qlib_ext.errors import DataError
from qlib_ext.store import fields as build
from qlib_ext.store.checks import malformed_rows
from qlib_ext.store.grid import Grid
from qlib_ext.store.metadata import FORMAT
from qlib_ext.store.schema import describe_fields
from qlib_ext.store.tables import Table
from qlib_ext.store.weights import index_weights, membership_spans
from qlib_ext.store.writer import StoreWriter


class Content:
    """Calendar, instruments, fields and metadata of a store."""

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
