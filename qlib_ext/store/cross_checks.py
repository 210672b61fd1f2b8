"""Tables held against the bars: listings, and dividends against the jumps of the factor."""

from typing import Dict, List

import numpy as np

from qlib_ext.store.tables import Table

PER_SHARES = 10.0  # Chinese announcements give dividends per 10 shares
NEAR = 0.01  # of two factor ratios
MIN_EX_DATES = 3


def cross_faults(tables: Dict[str, Table]) -> List[str]:
    """Faults of tables `instruments` and `dividends` beside sorted, faultless bars."""
    bars, faults = tables["bars"], []
    if "instruments" in tables:
        faults += _listing_faults(bars, tables["instruments"])
    if "dividends" in tables:
        order = np.lexsort((bars.dates["date"], bars.code))
        faults += _dividend_faults(bars.take(order), tables["dividends"])
    return faults


def _listing_faults(bars: Table, instruments: Table) -> List[str]:
    """Bars outside the listing."""
    faults, days = [], bars.dates["date"]
    for name, outside in (("list_date", np.less), ("delist_date", np.greater)):
        if name not in instruments.dates:
            continue
        edges = np.full(len(bars.codes) + 1, np.datetime64("NaT"), dtype="datetime64[D]")
        place = instruments.with_codes(bars.codes)
        edges[place[place >= 0]] = instruments.dates[name][place >= 0]
        wrong = outside(days, edges[bars.code])  # false where the edge is not known
        if wrong.any():
            row, word = int(np.argmax(wrong)), "before" if name == "list_date" else "after"
            faults.append(f"table bars: {int(wrong.sum())} rows {word} the {name} of table instruments, first "
                          f"{bars.instrument(row)} on {days[row]} ({edges[bars.code[row]]}); correct the date or drop the rows")
    return faults


def _dividend_faults(bars: Table, dividends: Table) -> List[str]:
    """Dividends per 10 shares: the jumps of the factor on ex-dates fit a tenth of what is given.

    The factor jumps by close x (1 + bonus) / (close - cash) of the last close before the ex-date. Judged are ex-dates on which
    this and the same with a tenth of cash and bonus are clearly apart; of at least three, more than half must fit the tenth.
    """
    stock, ex_date = dividends.with_codes(bars.codes), dividends.dates["ex_date"]
    days = bars.dates["date"].astype(np.int64)
    width = int(days.max()) + 2
    key = bars.code * width + days
    after = np.searchsorted(key, stock * width + np.minimum(ex_date.astype(np.int64), width - 1))
    before, after = after - 1, np.minimum(after, len(key) - 1)
    inside = (stock >= 0) & (before >= 0) & (bars.code[before] == stock) & (bars.code[after] == stock)
    close, factor = bars.numbers["close"][before], bars.numbers["factor"]
    with np.errstate(divide="ignore", invalid="ignore"):
        seen = np.log(factor[after] / factor[before])
        given, tenth = (np.log(close * (1 + dividends.numbers["bonus"] / part) / (close - dividends.numbers["cash"] / part))
                        for part in (1.0, PER_SHARES))  # fmt: skip
    wide = np.where(np.isfinite(given), given, np.inf)  # cash above the close
    judged = inside & np.isfinite(seen) & np.isfinite(tenth) & (wide - tenth > 2 * NEAR)
    fits = judged & (np.abs(seen - tenth) < NEAR)
    if judged.sum() < MIN_EX_DATES or 2 * fits.sum() <= judged.sum():
        return []
    row = int(np.argmax(fits))
    return [f"table dividends: on {int(fits.sum())} of {int(judged.sum())} ex-dates the factor jumps by a tenth of what cash and "
            f"bonus say, first {dividends.instrument(row)} on {ex_date[row]}: they are given per 10 shares; give them per share "
            "(column mapping: `dividends: {scale: {cash: 0.1, bonus: 0.1}}`)"]  # fmt: skip
