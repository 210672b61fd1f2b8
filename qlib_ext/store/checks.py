"""Named faults of the input tables, found before any long work."""

from typing import Dict, List, Optional

import numpy as np
import pandas as pd

from qlib_ext.errors import DataError
from qlib_ext.store.cross_checks import cross_faults
from qlib_ext.store.schema import CODE_PATTERN, ETF_CLASSES, KINDS, PRICE_TOLERANCE, PRICES, TABLES
from qlib_ext.store.tables import Table
from qlib_ext.store.units import check_units

SHARES_TOLERANCE = 0.01  # float shares are often estimated as volume / turnover, known to two decimals
_OF_THE_PAST = ("membership", "index_weights", "industry", "float_shares_monthly")


def check_tables(tables: Dict[str, Table], vwap: str) -> dict:
    """Refuse tables that contradict themselves, and say how far the units of the bars could be checked (`units_checked`).

    Every fault names the table, how many rows have it, the first instrument and date, and what to do; all faults of all tables
    come in one error.

    Raises
    ------
    DataError
        Malformed codes, missing dates, duplicate rows, dates unsorted within an instrument, prices that are not positive on a
        traded row, high below low, open or close outside [low, high] by more than rounding, negative volume or amount,
        non-positive factor, spans that end before they start, members of an index twice on a day, weights whose sums are neither
        1 nor 100 or not in the declared unit, reports announced before their period ends, limit prices that do not hold the
        close, volume in lots, amounts in thousands, prices that are adjusted already (see `qlib_ext.store.units`), bars outside
        the listing, dividends per 10 shares.
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
    faults += _kind_faults(tables)
    if vwap == "amount" and "amount" not in tables["bars"].numbers:
        faults.append("table bars has no column amount, which vwap 'amount' needs: give the column or choose vwap 'typical'")
    units_checked = {}
    if not any(fault.startswith(("table bars:", "table float_shares_monthly:")) for fault in faults):
        unit_faults, units_checked = check_units(tables["bars"], tables.get("float_shares_monthly"))
        faults += unit_faults
    if not any(fault.startswith(("table bars:", "table instruments:", "table dividends:")) for fault in faults):
        faults += cross_faults(tables)
    if faults:
        raise DataError("the tables cannot be ingested:\n  " + "\n  ".join(faults))
    return units_checked


def _kind_faults(tables: Dict[str, Table]) -> List[str]:
    """Codes whose kind says index though their bars are not in index_bars, or the other way round."""
    if "instruments" not in tables:
        return []
    table, faults = tables["instruments"], []
    is_index = np.array([kind == "index" for kind in table.texts["kind"]], dtype=bool)
    for name, wrong in (("bars", is_index), ("index_bars", ~is_index)):
        codes = np.intersect1d(table.codes[table.code[wrong & (table.code >= 0)]], tables[name].codes)
        if len(codes):
            faults.append(f"table instruments: the kind of {len(codes)} codes does not fit table {name}, which has their bars, "
                          f"first {codes[0]}; correct the kind (index in index_bars, the others in bars)")  # fmt: skip
    if "etf_baskets" in tables:
        no_fund = np.array([kind != "etf" for kind in table.texts["kind"]], dtype=bool)
        codes = np.intersect1d(table.codes[table.code[no_fund & (table.code >= 0)]], tables["etf_baskets"].codes)
        if len(codes):
            faults.append(f"table etf_baskets: {len(codes)} instruments are no ETFs by table instruments, first {codes[0]}; correct "
                          "the kind, or give the basket of an ETF (its members are in column member)")  # fmt: skip
    return faults


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
        text += "".join(f" ({table.texts[name][row]})" for name in ("index", "member", "fund") if name in table.texts)
        self.faults.append(f"{text}; {advice}")


def malformed_rows(table: Table) -> np.ndarray:
    """Rows whose code is not written as an exchange code. bool [r]"""
    matches = pd.Series(table.codes, dtype=str).str.fullmatch(CODE_PATTERN).to_numpy(dtype=bool)
    return np.append(~matches, False)[table.code]


def _check_keys(table: Table, found: _Faults, first_bar: np.datetime64) -> None:
    found.add(table.code < 0, "a missing instrument", "give the code or drop the rows")
    malformed = malformed_rows(table)
    if table.name in _OF_THE_PAST:  # rows over before the first stock bar play no part
        malformed &= ~(list(table.dates.values())[-1] < first_bar)
    found.add(malformed, "a malformed code", "write codes as SH600000, SZ000001 or BJ430047 (capitals, six digits), "
              "or name the vendor's spelling in the column mapping (`code: 600000.SH`)")
    for name in TABLES[table.name].dates:
        found.add(np.isnat(table.dates[name]), f"a missing or unreadable {name}", "write it as YYYY-MM-DD")
    for name in TABLES[table.name].texts:
        found.add(np.equal(table.texts[name], None), f"a missing {name}", "give it or drop the rows")
        if name in ("member", "stock"):
            fits = pd.Series([value or "" for value in table.texts[name]], dtype=str).str.fullmatch(CODE_PATTERN)
            found.add(~fits.to_numpy(dtype=bool), f"a malformed {name}", "write codes as SH600000, SZ000001 or BJ430047")


def _check_unique(table: Table, found: _Faults, *names: str) -> None:
    """No two rows of one instrument that agree in all columns of `names` (dates or texts)."""
    columns = {"code": table.code, **{name: table.dates[name].astype(np.int64) for name in names if name in table.dates}}
    columns.update({name: pd.factorize(table.texts[name])[0] for name in names if name in table.texts})
    repeated = pd.DataFrame(columns).duplicated().to_numpy()
    dates = [name for name in names if name in table.dates]
    found.add(repeated, " and ".join(["an instrument", *dates]) + " already given", "keep one row each")


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
        advice = "correct the price" + (", or give volume 0 if the day was suspended" if table.name == "bars" else "")
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
    _check_limits(table, found, volume > 0)


def _check_limits(table: Table, found: _Faults, traded: np.ndarray) -> None:
    """Limit prices, where given, are positive and hold the close between them."""
    close, limits = table.numbers["close"], {name: table.numbers.get(name) for name in ("limit_up", "limit_down")}
    for name, limit in limits.items():
        if limit is not None:
            wrong = (limit <= 0) | np.isinf(limit)
            found.add(wrong, f"a {name} that is no positive price", "correct it, or leave it empty where there is no limit")
            beyond = limit > close * (1 + PRICE_TOLERANCE) if name == "limit_down" else limit < close * (1 - PRICE_TOLERANCE)
            found.add(traded & beyond & ~wrong, f"a close beyond {name}", "give the day's limits, unadjusted like the prices")
    if limits["limit_up"] is not None and limits["limit_down"] is not None:
        found.add(limits["limit_up"] < limits["limit_down"], "limit_up below limit_down", "correct them (are they exchanged?)")


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
    """A code is in an index once on a day; spans that touch (one ends the day before the next starts) are fine."""
    _check_span(table, found)
    if found.faults:
        return
    index, names = pd.factorize(table.texts["index"])
    start, end = table.dates["start"], table.dates["end"]
    order = np.lexsort((end, start, table.code, index))
    both = index[order].astype(np.int64) * (len(table.codes) + 1) + table.code[order]
    latest = pd.Series(end[order].astype(np.int64)).groupby(both).cummax().to_numpy()
    again = np.flatnonzero((both[1:] == both[:-1]) & (start[order][1:].astype(np.int64) <= latest[:-1]))
    if len(again):
        row = order[again[0] + 1]
        earlier = order[: again[0] + 1]
        other = earlier[(both[: again[0] + 1] == both[again[0]]) & (end[earlier] >= start[row])][0]
        found.faults.append(
            f"table membership: {len(again)} span{'s' * (len(again) > 1)} of a code overlapping another of its spans in the same "
            f"index, first {table.instrument(row)} in {names[index[row]]}: {start[other]}..{end[other]} and "
            f"{start[row]}..{end[row]}; keep one of them or cut it (both days of a span are inclusive)")  # fmt: skip


def _check_industry(table: Table, found: _Faults) -> None:
    _check_span(table, found)
    _check_unique(table, found, "start")


def _check_float_shares(table: Table, found: _Faults) -> None:
    _check_unique(table, found, "month")
    shares, total = table.numbers["float_shares"], table.numbers.get("total_shares")
    found.add(~(np.isfinite(shares) & (shares > 0)), "float_shares missing or not positive", "correct it or drop the row")
    if total is not None:
        wrong = (total <= 0) | np.isinf(total)
        found.add(wrong, "total_shares that are not positive", "correct it, or leave it empty if unknown")
        fewer = (total > 0) & (total < shares * (1 - SHARES_TOLERANCE))
        found.add(fewer, "fewer total_shares than float_shares", "correct them (are they in one unit?)")


def _check_index_weights(table: Table, found: _Faults) -> None:
    _check_unique(table, found, "date", "index")
    weight = table.numbers["weight"]
    found.add(~(np.isfinite(weight) & (weight >= 0)), "a missing or negative weight", "correct it or drop the row")
    if found.faults:
        return
    sums = pd.Series(weight).groupby([table.texts["index"], table.dates["date"].astype("datetime64[s]")]).sum()
    for name, part in sums.groupby(level=0):
        unit = weight_unit(part.to_numpy())
        if unit is not None and table.unit not in (None, unit):
            found.faults.append(
                f"table index_weights: declared as {table.unit}, but the weights of {name} sum to {part.iloc[0]:g}, which is "
                f"{unit}: write `unit: {unit}` in the column mapping, or correct the weights")  # fmt: skip
        if unit is None:
            share = (part / 100 - 1).abs() if part.median() > 10 else (part - 1).abs()
            day = share.idxmax()[1]
            total = part.loc[(name, day)]
            found.faults.append(
                f"table index_weights: the weights of {name} sum to {total:g} on {day:%Y-%m-%d}; every date must sum "
                "to 1 (fractions) or every date to 100 (percent), within 2 percent: give all members, in one unit"
            )


def weight_unit(sums: np.ndarray) -> Optional[str]:
    """Unit of index weights from their sums per date: 'fraction', 'percent', or None when they fit neither."""
    if np.all(np.abs(sums - 1) <= 0.02):
        return "fraction"
    return "percent" if np.all(np.abs(sums / 100 - 1) <= 0.02) else None


def _check_fundamentals(table: Table, found: _Faults) -> None:
    period_end, announcement = table.dates["period_end"], table.dates["announcement"]
    _check_unique(table, found, "period_end", "announcement")
    found.add(announcement < period_end, "an announcement before the end of its period", "give the day of publication")
    month = period_end.astype("datetime64[M]")
    last_day = (month + 1).astype("datetime64[D]") - 1
    quarter = (month.astype(np.int64) % 3 == 2) & (period_end == last_day)
    advice = "give 31 March, 30 June, 30 September or 31 December"
    found.add(~quarter, "a period_end that is not the last day of a quarter", advice)
    if not table.numbers:
        values = list(TABLES["fundamentals"].optional_numbers)
        found.faults.append(f"table fundamentals has no column of values; give some of {values}")
    for name, values in table.numbers.items():
        found.add(np.isinf(values), f"an infinite {name}", "correct it, or leave it empty if unknown")


def _check_dividends(table: Table, found: _Faults) -> None:
    _check_unique(table, found, "ex_date")
    cash, bonus = table.numbers["cash"], table.numbers["bonus"]
    for name, values in (("cash", cash), ("bonus", bonus)):
        found.add(~(np.isfinite(values) & (values >= 0)), f"a missing or negative {name}", "give 0 if there was none")
    found.add((cash == 0) & (bonus == 0), "neither cash nor bonus", "drop the row")


def _check_instruments(table: Table, found: _Faults) -> None:
    _check_unique(table, found)
    known = pd.Series(table.texts["kind"]).isin(KINDS).to_numpy()
    found.add(~known, f"a kind that is none of {', '.join(KINDS)}", "correct it")
    no_fund, unknown = ~np.equal(table.texts["kind"], "etf"), [None, ""]
    for name in ("tracked_index", "etf_class"):
        if name in table.texts:
            given = ~pd.Series(table.texts[name], dtype=object).isin(unknown).to_numpy()
            found.add(given & no_fund, f"a {name} though it is no ETF", "correct the kind, or leave it empty")
    if "etf_class" in table.texts:
        wrong = ~pd.Series(table.texts["etf_class"], dtype=object).isin([*ETF_CLASSES, *unknown]).to_numpy()
        found.add(wrong, f"an etf_class that is none of {', '.join(ETF_CLASSES)}", "correct it, or leave it empty")
    if "delist_date" in table.dates:
        gone = table.dates["delist_date"] < table.dates["list_date"]
        found.add(gone, "a delist_date before the list_date", "correct it, or leave it empty if the instrument is listed")


def _check_weights_of(table: Table, found: _Faults, date: str, *group: np.ndarray) -> None:
    """Weights are fractions: none is negative or missing, no group (a basket, a report) sums to more than 1 but for rounding."""
    weight = table.numbers["weight"]
    found.add(~(np.isfinite(weight) & (weight >= 0)), "a missing or negative weight", "correct it or drop the row")
    keys = pd.DataFrame({"date": table.dates[date], **{str(number): values for number, values in enumerate(group)}})
    sums = pd.Series(weight).groupby([keys[name] for name in keys], dropna=False).transform("sum").to_numpy()
    found.add(sums > 1.05, "weights of one date that sum to more than 1", "give fractions (scale: {weight: 0.01} for percent)")


def _check_etf_baskets(table: Table, found: _Faults) -> None:
    _check_unique(table, found, "date", "member")
    _check_weights_of(table, found, "date", table.code)


def _check_bond_terms(table: Table, found: _Faults) -> None:
    _check_unique(table, found, "date")
    price = table.numbers["conversion_price"]
    found.add(~(np.isfinite(price) & (price > 0)), "a conversion_price missing or not positive", "correct it or drop the row")
    _check_not_negative(table, found, ("size",))
    if "maturity" in table.dates:
        found.add(table.dates["maturity"] < table.dates["date"], "a maturity before the date", "correct it or drop the row")


def _check_fund_holdings(table: Table, found: _Faults) -> None:
    _check_unique(table, found, "period_end", "announcement", "fund")
    early = table.dates["announcement"] < table.dates["period_end"]
    found.add(early, "an announcement before the end of its period", "give the day of publication")
    _check_weights_of(table, found, "announcement", table.dates["period_end"], pd.factorize(table.texts["fund"])[0])


_CHECKS = {
    "bars": _check_bars,
    "index_bars": _check_index_bars,
    "membership": _check_membership,
    "index_weights": _check_index_weights,
    "industry": _check_industry,
    "float_shares_monthly": _check_float_shares,
    "fundamentals": _check_fundamentals,
    "dividends": _check_dividends,
    "instruments": _check_instruments,
    "etf_baskets": _check_etf_baskets,
    "bond_terms": _check_bond_terms,
    "fund_holdings": _check_fund_holdings,
}
