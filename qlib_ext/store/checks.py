"""Named faults of the input tables, found before any long work."""

from typing import Dict, List

import numpy as np
import pandas as pd

from qlib_ext.errors import DataError
from qlib_ext.store.schema import CODE_PATTERN, PRICE_TOLERANCE, PRICES
from qlib_ext.store.tables import Table


def check_tables(tables: Dict[str, Table], vwap: str) -> None:
    """Refuse tables that contradict themselves.

    Every fault names the table, how many rows have it, the first instrument and date, and what to do; all faults of all tables
    come in one error.

    Raises
    ------
    DataError
        Malformed codes, missing dates, duplicate rows, dates unsorted within an instrument, prices that are not positive on a
        traded row, high below low, open or close outside [low, high] by more than rounding, negative volume or amount,
        non-positive factor, spans that end before they start, weights whose daily sum is neither 1 nor 100.
    """
    faults: List[str] = []
    first_bar = tables["bars"].dates["date"].min()
    for table in tables.values():
        found = _Faults(table)
        _check_keys(table, found, first_bar)
        if not found.faults:  # rows without code or date cannot be ordered
            _CHECKS[table.name](table, found)
        faults += found.faults
    both = sorted(set(tables["bars"].codes) & set(tables["index_bars"].codes))
    if both:
        faults.append(
            f"tables bars and index_bars share {len(both)} codes, first {both[0]}: a code is either a stock or an index; drop one"
        )
    if vwap == "amount" and "amount" not in tables["bars"].numbers:
        faults.append("table bars has no column amount, which vwap 'amount' needs: give the column or choose vwap 'typical'")
    if faults:
        raise DataError("the tables cannot be ingested:\n  " + "\n  ".join(faults))


class _Faults:
    """Collects the faults of one table."""

    def __init__(self, table: Table):
        self.table = table
        self.faults = list(table.broken)

    def add(self, rows: np.ndarray, what: str, advice: str) -> None:
        """Note a fault of the rows where the mask is true, if any."""
        count = int(np.count_nonzero(rows))
        if not count:
            return
        table, row = self.table, int(np.argmax(rows))
        day = next(iter(table.dates.values()))[row]
        text = f"table {table.name}: {count} row{'s' * (count > 1)} with {what}, first {table.instrument(row)} on {day}"
        if "index" in table.texts:
            text += f" ({table.texts['index'][row]})"
        self.faults.append(f"{text}; {advice}")


def malformed_rows(table: Table) -> np.ndarray:
    """Rows whose code is not written as an exchange code. bool [r]"""
    matches = pd.Series(table.codes, dtype=str).str.fullmatch(CODE_PATTERN).to_numpy(dtype=bool)
    return np.append(~matches, False)[table.code]


def _check_keys(table: Table, found: _Faults, first_bar: np.datetime64) -> None:
    found.add(table.code < 0, "a missing instrument", "give the code or drop the rows")
    malformed = malformed_rows(table)
    if table.name not in ("bars", "index_bars"):  # rows over before the first stock bar play no part
        malformed &= ~(list(table.dates.values())[-1] < first_bar)
    found.add(malformed, "a malformed code", "write codes as SH600000, SZ000001 or BJ430047 (capitals, six digits)")
    for name, days in table.dates.items():
        found.add(np.isnat(days), f"a missing or unreadable {name}", "write it as YYYY-MM-DD")
    for name in table.texts:
        if name in ("index", "l1_code"):
            found.add(np.equal(table.texts[name], None), f"a missing {name}", "give it or drop the rows")


def _check_unique(table: Table, found: _Faults, date: str, group: str = None) -> None:
    """No two rows of one instrument (and group) on one date."""
    columns = {"code": table.code, "date": table.dates[date].astype(np.int64)}
    if group is not None:
        columns["group"] = pd.factorize(table.texts[group])[0]
    repeated = pd.DataFrame(columns).duplicated().to_numpy()
    found.add(repeated, f"an instrument and {date} already given", "keep one row each")


def _check_order(table: Table, found: _Faults) -> None:
    """Dates ascend within each instrument (instruments may come in any order or mixed)."""
    order = np.argsort(table.code, kind="stable")
    code, days = table.code[order], table.dates["date"][order]
    back = np.zeros(len(table), dtype=bool)
    back[order[1:]] = (code[1:] == code[:-1]) & (days[1:] < days[:-1])
    found.add(back, "a date before the instrument's previous row", "sort the table by date within each instrument")


def _check_prices(table: Table, found: _Faults, traded: np.ndarray) -> None:
    numbers = table.numbers
    for name in PRICES:
        price = numbers[name]
        advice = "correct the price, or give volume 0 if the day was suspended"
        found.add((traded & ~np.isfinite(price)) | np.isinf(price), f"a missing or infinite {name} though traded", advice)
        found.add((price < 0) | (traded & (price == 0)), f"a negative or zero {name}", advice)
    high, low = numbers["high"], numbers["low"]
    found.add(traded & (high < low), "high below low", "correct the prices")
    for name in ("open", "close"):
        price = numbers[name]
        outside = (price > high * (1 + PRICE_TOLERANCE)) | (price < low * (1 - PRICE_TOLERANCE))
        what = f"{name} outside [low, high] by more than {PRICE_TOLERANCE:g} of it"
        found.add(traded & outside & (high >= low), what, "correct the prices")


def _check_bars(table: Table, found: _Faults) -> None:
    numbers = table.numbers
    volume = numbers["volume"]
    _check_unique(table, found, "date")
    _check_order(table, found)
    found.add(~np.isfinite(volume), "a missing or infinite volume", "give the shares traded, 0 if the day was suspended")
    found.add(volume < 0, "a negative volume", "give the shares traded, 0 if the day was suspended")
    _check_prices(table, found, volume > 0)
    usable = np.isfinite(numbers["factor"]) & (numbers["factor"] > 0)
    found.add(~usable, "a missing or non-positive factor", "give the adjustment factor, 1 if the stock never paid anything")
    _check_not_negative(table, found, ("amount", "turnover"))
    if "is_st" in numbers:
        known = np.isin(numbers["is_st"], (-1.0, 0.0, 1.0)) | np.isnan(numbers["is_st"])
        found.add(~known, "an is_st that is none of 1, 0, -1 (unknown)", "correct it")


def _check_index_bars(table: Table, found: _Faults) -> None:
    _check_unique(table, found, "date")
    _check_order(table, found)
    _check_prices(table, found, np.ones(len(table), dtype=bool))
    _check_not_negative(table, found, ("volume", "amount"))


def _check_not_negative(table: Table, found: _Faults, names) -> None:
    for name in names:
        if name in table.numbers:
            values = table.numbers[name]
            wrong = (values < 0) | np.isinf(values)
            found.add(wrong, f"a negative or infinite {name}", "correct it, or leave it empty if unknown")


def _check_span(table: Table, found: _Faults) -> None:
    found.add(table.dates["end"] < table.dates["start"], "an end before the start", "correct the span (the end is its last day)")


def _check_membership(table: Table, found: _Faults) -> None:
    _check_span(table, found)


def _check_industry(table: Table, found: _Faults) -> None:
    _check_span(table, found)
    _check_unique(table, found, "start")


def _check_float_shares(table: Table, found: _Faults) -> None:
    _check_unique(table, found, "month")
    shares = table.numbers["float_shares"]
    found.add(~(np.isfinite(shares) & (shares > 0)), "float_shares missing or not positive", "correct it or drop the row")


def _check_index_weights(table: Table, found: _Faults) -> None:
    _check_unique(table, found, "date", "index")
    weight = table.numbers["weight"]
    found.add(~(np.isfinite(weight) & (weight >= 0)), "a missing or negative weight", "correct it or drop the row")
    if found.faults:
        return
    sums = pd.Series(weight).groupby([table.texts["index"], table.dates["date"].astype("datetime64[s]")]).sum()
    for name, part in sums.groupby(level=0):
        if weight_unit(part.to_numpy()) is None:
            share = (part / 100 - 1).abs() if part.median() > 10 else (part - 1).abs()
            day = share.idxmax()[1]
            total = part.loc[(name, day)]
            found.faults.append(
                f"table index_weights: the weights of {name} sum to {total:g} on {day:%Y-%m-%d}; every date must sum "
                "to 1 (fractions) or every date to 100 (percent), within 2 percent: give all members, in one unit"
            )


def weight_unit(sums: np.ndarray) -> str:
    """Unit of index weights from their sums per date: 'fraction', 'percent', or None when they fit neither."""
    if np.all(np.abs(sums - 1) <= 0.02):
        return "fraction"
    return "percent" if np.all(np.abs(sums / 100 - 1) <= 0.02) else None


_CHECKS = {
    "bars": _check_bars,
    "index_bars": _check_index_bars,
    "membership": _check_membership,
    "index_weights": _check_index_weights,
    "industry": _check_industry,
    "float_shares_monthly": _check_float_shares,
}
