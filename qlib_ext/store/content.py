"""Everything a store holds, computed from the tables and not yet written."""

import logging
from dataclasses import replace
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

import qlib_ext
from qlib_ext.errors import DataError
from qlib_ext.market_rules import kind_of
from qlib_ext.store import fields as build
from qlib_ext.store.checks import malformed_rows
from qlib_ext.store.fundamentals import fundamental_fields
from qlib_ext.store.grid import Grid
from qlib_ext.store.indices import Derived, against_bars, index_level, member_returns
from qlib_ext.store.limits import limit_fields
from qlib_ext.store.metadata import FORMAT
from qlib_ext.store.schema import INDEX_CODES, KINDS, describe_fields
from qlib_ext.store.shares import share_fields
from qlib_ext.store.tables import Table
from qlib_ext.store.weights import index_weights, membership_spans
from qlib_ext.store.writer import StoreWriter

logger = logging.getLogger("qlib_ext.store")


class Content:
    """Calendar, instruments, fields and metadata of a store.

    `grid` and `fields` are those of stocks, `other_grid` and `other_fields` those of ETFs, bonds and indices in table bars (None
    without any), which have the fields of bars only; `index_grid` and `index_fields` those of index bars, `derived` code -> the
    indices made of members.
    """

    def __init__(self, data: Dict[str, Table], vwap: str, index_names: Sequence[str]):
        self.vwap, self.data = vwap, data
        bars, index_bars = data["bars"], data["index_bars"]
        self.calendar = np.unique(np.concatenate([bars.dates["date"], index_bars.dates["date"]]))
        self.index_grid = Grid(index_bars, self.calendar)
        self.index_fields = build.index_fields(index_bars, self.index_grid)
        if "amount" in self.index_fields and not np.isfinite(self.index_fields["amount"]).any():
            del self.index_fields["amount"]
        malformed = {name: int(malformed_rows(table).sum()) for name, table in data.items()}
        kinds, unknown = instrument_kinds(bars.codes, data.get("instruments"))
        self.kinds = dict(zip(bars.codes.tolist(), kinds.tolist()))
        stocks = kinds == "stock"
        if not stocks.any():
            raise DataError("table bars holds no stock; give stocks' bars, or correct `kind` in table instruments")
        stock_bars = with_only(bars, stocks)
        self.grid, prices, self.fields = self._bar_fields(stock_bars)
        self.counts: dict = {"stock_rows": len(stock_bars), "stocks": int(stocks.sum()), "index_rows": len(index_bars),
                             "indices": len(index_bars.codes), **prices.counts, "codes_of_unknown_kind": unknown,
                             "malformed_codes_of_the_past": {name: count for name, count in malformed.items() if count}}
        self.other_grid, self.other_fields = None, {}
        if not stocks.all():
            self.other_grid, _, self.other_fields = self._bar_fields(with_only(bars, ~stocks))
        float_cap = self._share_fields(prices)
        self._industry(data.get("industry"))
        self._reports(data.get("fundamentals"))
        self._indices(data, index_names, prices, float_cap)
        self._log()

    def _bar_fields(self, bars: Table):
        """Grid, prices and fields of some instruments of table bars."""
        grid = Grid(bars, self.calendar)
        prices = build.stock_fields(bars, grid, self.vwap)
        kinds = np.array([self.kinds[code] for code in grid.codes.tolist()])
        limits = limit_fields(bars, grid, kinds, prices, self.data.get("instruments"))
        prices.counts.update(limits.counts)
        return grid, prices, {**prices.fields, **limits.fields}

    def _share_fields(self, prices: build.StockFields) -> np.ndarray:
        """Shares and caps; returns the float cap on the cells of `grid.open_ended()`, NaN where unknown."""
        table = self.data.get("float_shares_monthly")
        if table is None:
            return np.full(self.grid.open_ended().size, np.nan)
        found = share_fields(table, self.grid, prices, self.data.get("dividends"))
        self.fields.update(found.fields)
        self.counts.update(float_shares_rows=len(table), **found.counts)
        self._count_without_bars(table)
        return found.float_cap

    def _reports(self, table: Optional[Table]) -> None:
        if table is not None:
            fields, counts = fundamental_fields(table, self.grid)
            self.fields.update(fields)
            self.counts.update(counts)
            self._count_without_bars(table)

    def _industry(self, table: Optional[Table]) -> None:
        self.industry_codes: Dict[str, dict] = {}
        if table is not None:
            codes, self.industry_codes, counts = build.industry(table, self.grid)
            self.fields["industry"] = codes.astype(np.float32)
            self.counts.update(counts)
            self._count_without_bars(table)

    def _count_without_bars(self, table: Table) -> None:
        self.counts[f"{table.name}_codes_without_bars"] = int((~np.isin(table.codes, self.grid.codes)).sum())

    def _indices(self, data: Dict[str, Table], index_names, prices: build.StockFields, float_cap: np.ndarray) -> None:
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
        self.weights: Dict[str, dict] = {}
        returns = self._returns(data.get("dividends"), prices)
        self.derived: Dict[str, Derived] = {}
        self.about_derived: Dict[str, dict] = {}
        if "index_weights" in data:
            others = ~np.isin(data["index_weights"].texts["index"].astype(str), list(index_names))
            self.counts["index_weights_rows_of_other_indices"] = int(others.sum())
        for name, spans in membership.spans.items():
            weights = index_weights(name, spans, data.get("index_weights"), self.grid, prices.close, float_cap)
            self.fields[f"{name}_weight"] = weights.cells.astype(np.float32)
            self.weights[name] = weights.about
            for version, values in returns.items():
                self._derive(name, version, index_level(self.grid, weights.cells, values))

    def _returns(self, table: Optional[Table], prices: build.StockFields) -> Dict[str, np.ndarray]:
        """Daily returns of members [c] by version of an index: TR, and PR where dividends are known; lays the dividends."""
        dividends = None
        if table is None:
            logger.warning("no table dividends: total-return versions of the indices only (TR), no price versions (PR)")
        else:
            dividends = build.dividends(table, self.grid)
            self.fields["cash_dividend"] = dividends.cash.astype(np.float32)
            self.fields["bonus_shares"] = dividends.bonus.astype(np.float32)
            self.counts.update(dividends.counts)
        return member_returns(self.grid, prices.close, prices.raw_close, prices.traded, dividends)

    def _derive(self, name: str, version: str, derived: Optional[Derived]) -> None:
        """Keep one derived index and what it is beside the official bars."""
        if derived is None:
            return
        code = f"{name.upper()}{version}"
        place = np.flatnonzero(self.index_grid.codes == INDEX_CODES.get(name))
        days = np.arange(derived.start, derived.start + len(derived.level))
        closes = self.index_grid.to_days(self.index_fields["close"], place, days[0], days[-1])[:, 0] if len(place) else None
        self.derived[code] = derived
        self.about_derived[code] = about = against_bars(name, derived, self.calendar[days], closes)
        if "against" in about:
            logger.info("%s against %s, %s..%s: %+.2f points a year, daily differences of %.3f points", code, about["against"],
                        *about["compared"][:2], 100 * about["annual_difference"], 100 * about["tracking_difference"])  # fmt: skip

    def _log(self) -> None:
        """Say what was made of the tables and what had to stand in."""
        counts, info, warning = self.counts, logger.info, logger.warning
        if counts["codes_of_unknown_kind"]:
            warning("table bars: %d codes of no known kind count as stocks without price limits; give them in table instruments, "
                    "or drop them", counts["codes_of_unknown_kind"])  # fmt: skip
        if counts.get("limit_st_unknown_cells"):
            share = 100 * counts["limit_st_unknown_cells"] / counts["limit_cells"]
            warning("limit prices: special treatment is unknown on %.1f %% of the stock-days, which take the wider limits", share)
        if "reports" in counts:
            info("reports: %d, %d of them restated, %d published after a later period's; %d stocks have none", counts["reports"],
                 counts["reports_restated"], counts["reports_late"], counts["stocks_without_reports"])  # fmt: skip
        if counts.get("ex_dates_left_out"):
            warning("table dividends: left out %d of %d ex-dates, on which the stock has no day in the bars",
                    counts["ex_dates_left_out"], counts["ex_dates_left_out"] + counts["ex_dates"])  # fmt: skip
        for name, about in self.weights.items():
            found = about.get("derived_vs_official", {"dates": 0})
            if found["dates"]:
                info("%s: weights by float cap alone differ from the official ones by %.1f %% of the index (half the sum of "
                     "differences, mean of %d dates, at most %.1f %%), for one member by at most %.2f %%", name, 100 *
                     found["half_sum_mean"], found["dates"], 100 * found["half_sum_max"], 100 * found["largest"])  # fmt: skip

    def instruments(self) -> Dict[str, dict]:
        """Instruments files: name -> code -> list of (start, end inclusive)."""
        files: Dict[str, dict] = {"all": {}, "index": {}}
        kinds = {**self.kinds, **dict.fromkeys(self.index_grid.codes.tolist(), "index")}
        for grid in filter(None, (self.grid, self.other_grid, self.index_grid)):
            ends = grid.start + grid.length - 1
            for code, start, end in zip(grid.codes.tolist(), self.calendar[grid.start], self.calendar[ends]):
                kind = kinds[code]
                files.setdefault("all" if kind == "stock" else kind, {})[code] = [(start, end)]
        for code, derived in self.derived.items():
            files["index"][code] = [(self.calendar[derived.start], self.calendar[derived.start + len(derived.level) - 1])]
        return {**files, **self.spans}

    def write(self, writer: StoreWriter) -> None:
        """Write calendar, instruments and features."""
        writer.calendar(self.calendar)
        files = self.instruments()
        for name, spans in files.items():
            writer.instruments(name, spans)
        grids = [(self.grid, self.fields), (self.index_grid, self.index_fields)]
        if self.other_grid is not None:
            grids.append((self.other_grid, self.other_fields))
        with tqdm(total=sum(len(grid.codes) for grid, _ in grids), desc="writing", unit=" instruments", mininterval=1) as bar:
            for grid, fields in grids:
                for code, start, offset, length in zip(grid.codes, grid.start, grid.offset, grid.length):
                    cells = slice(offset, offset + length)
                    writer.features(str(code), int(start), {name: values[cells] for name, values in fields.items()})
                    bar.update()
        for code, derived in self.derived.items():
            writer.features(code, derived.start, derived.fields())

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
            "kinds": self._kind_counts(),
            "weights": self.weights,
            "indices": self.about_derived,
            "industry_codes": self.industry_codes,
            "counts": self.counts,
        }

    def _kind_counts(self) -> Dict[str, int]:
        kinds = list(self.kinds.values()) + ["index"] * (len(self.index_grid.codes) + len(self.derived))
        return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


def instrument_kinds(codes: np.ndarray, instruments: Optional[Table]) -> Tuple[np.ndarray, int]:
    """Kind of each code by table `instruments`, else by how it is written; what neither tells counts as a stock, and how many."""
    kinds = kind_of(codes)
    if instruments is not None:
        place = instruments.with_codes(codes)
        kinds[place[place >= 0]] = instruments.texts["kind"][place >= 0].astype(str)
    return np.where(kinds == "", "stock", kinds), int((kinds == "").sum())


def with_only(table: Table, wanted: np.ndarray) -> Table:
    """The rows of some codes of a table, `wanted [c]`; the others are no codes of it any more."""
    part = table.take(np.flatnonzero(wanted[table.code]))
    return replace(part, codes=table.codes[wanted], code=(np.cumsum(wanted) - 1)[part.code])
