"""Units of the bars, read off the numbers: volume in lots, amounts in thousands, prices that are adjusted already.

Amount / volume is a price, and it must be the row's own: amount / volume / close is 1 but for the day's movement. A power of
ten instead is a unit; 1 / factor is an adjusted price. Where no amount is known, volume / float shares must be the turnover. At a
factor change, unadjusted prices jump against the factor and adjusted ones do not. Single rows may be wrong in any source, so a
fault needs more than half of the rows of an instrument's year; or, for a few days given to append or wrong in the middle of a
table, of a day's rows over all instruments.
"""

from typing import List, NamedTuple, Optional, Tuple

import numpy as np

from qlib_ext.store.tables import Table

MIN_ROWS = 10  # of an instrument's year, or of a day
NEAR_AMOUNT, NEAR_TURNOVER = np.log10(1.05), np.log10(1.5)  # how near a ratio must be to what it is taken for
FACTOR_APART = np.log10(1.15)  # factors nearer to 1 tell nothing
FACTOR_CHANGE = 0.02  # changes of the factor that count
DAILY_MOVE = 0.05  # spread of a stock's return on the day of a factor change, set wide
EVIDENCE = 10.0  # log-likelihood by which "adjusted" must beat "unadjusted"

_BY_AMOUNT = {
    2: ("volume in lots of 100", "scale: {volume: 100}"),
    1: ("volume in lots of 10 (bonds)", "scale: {volume: 10}"),
    -1: ("volume in lots of 100 and amount in thousand CNY", "scale: {volume: 100, amount: 1000}"),
    -2: ("volume in lots of 100 and amount in ten thousand CNY (or prices in 0.01 CNY)", "scale: {volume: 100, amount: 10000}"),
    -3: ("amount in thousand CNY", "scale: {amount: 1000}"),
    -4: ("amount in ten thousand CNY", "scale: {amount: 10000}"),
}
_BY_TURNOVER = {
    -2: ("volume in lots of 100", "scale: {volume: 100}"),
    -1: ("volume in lots of 10", "scale: {volume: 10}"),
    2: ("turnover as a fraction", "scale: {turnover: 100}"),
    4: ("float shares in ten thousand", "float_shares_monthly: scale: {float_shares: 10000}"),
    -4: ("volume in ten thousand shares", "scale: {volume: 10000}"),
}
_BY_TURNOVER_ALONE = {  # where the amount says that volume is right
    -2: ("turnover in 0.01 percent", "scale: {turnover: 0.01}"),
    2: _BY_TURNOVER[2],
    4: _BY_TURNOVER[4],
}


class _Rows(NamedTuple):
    """Traded rows in the order of instrument and day; `group` numbers the instruments' years, or the days."""

    table: Table
    group: np.ndarray
    first: np.ndarray  # first row of each group
    by_day: bool = False

    def count(self, groups: np.ndarray) -> int:
        """How many instruments the groups of a mask belong to."""
        return len(np.unique(self.table.code[self.first[groups]]))

    def named(self, groups: np.ndarray) -> str:
        """The same in words, with the first instrument and year; or the days."""
        row = self.first[np.argmax(groups)]
        if self.by_day:
            day = self.table.dates["date"][row]
            return f"most instruments on {groups.sum()} of {len(groups)} days, first {day} ({self.table.instrument(row)})"
        year, total = self.table.dates["date"][row].astype("datetime64[Y]"), len(np.unique(self.table.code))
        return f"{self.count(groups)} of {total} instruments, first {self.table.instrument(row)} in {year}"

    def share(self, rows: np.ndarray) -> np.ndarray:
        """How many of each group's rows fulfil a condition. [groups]"""
        return np.bincount(self.group[rows], minlength=len(self.first))


def check_units(bars: Table, float_shares: Optional[Table] = None) -> Tuple[List[str], dict]:
    """Faults of the units of `bars`, and how many instruments each check could judge (the metadata's `units_checked`).

    `bars` must have passed the other checks: finite positive prices on traded rows, dates ascending within an instrument.
    """
    rows = _rows(bars)
    if rows is None:
        return [], {"amount": 0, "turnover": 0, "factor_changes": 0}
    amount_ratio, turnover_ratio = _amount_ratio(rows), _turnover_ratio(rows, float_shares)
    faults, checked = _judge(rows, amount_ratio, turnover_ratio)
    return faults or _judge(_days(rows), amount_ratio, turnover_ratio)[0], checked


def _judge(rows: _Rows, ratio: np.ndarray, turnover_ratio: np.ndarray) -> Tuple[List[str], dict]:
    """Faults of the groups of `rows` and how many instruments were judged; ratios [r] as log10."""
    log_factor = np.log10(rows.table.numbers["factor"])
    known, apart = rows.share(np.isfinite(ratio)), np.abs(log_factor) > FACTOR_APART
    told = rows.share(np.isfinite(ratio) & apart) if rows.by_day else known  # on one day many factors are 1 and tell nothing
    adjusted = _majority(rows, apart & (np.abs(ratio + log_factor) < NEAR_AMOUNT), told)  # prices adjusted, volume as traded
    shrunk = _majority(rows, apart & (np.abs(ratio - log_factor) < NEAR_AMOUNT), told)  # volume adjusted, prices as traded
    power = _power(ratio, NEAR_AMOUNT)
    unit = _majority(rows, power != 0, known)
    suspect = unit | shrunk  # by the amount: what turnover shows there is the same fault
    either = unit & (adjusted | shrunk)  # the factor is near a power of ten: they are what the others are
    for mask in (adjusted, shrunk) if 2 * either.sum() <= unit.sum() else (unit,):
        mask &= ~either
    faults = _unit_faults(rows, power, unit, known, _BY_AMOUNT, "amount / volume / close")
    if shrunk.any():
        faults.append(f"table bars: amount / volume / close is the factor instead of 1 for {rows.named(shrunk)}: volume looks "
                      "adjusted (divided by the factor) and prices do not; give the shares traded")  # fmt: skip
    telling = (told >= MIN_ROWS) & (rows.share(apart) > 0)
    none = np.zeros(len(rows.table.codes), dtype=bool)
    by_change, judged = (none, none) if rows.by_day else _adjusted_at_changes(rows)
    faults += _price_faults(rows, adjusted, telling, by_change, judged)
    power, counted = _power(turnover_ratio, NEAR_TURNOVER), rows.share(np.isfinite(turnover_ratio))
    unit = _majority(rows, power != 0, counted) & ~suspect
    for these, causes in ((known < MIN_ROWS, _BY_TURNOVER), (known >= MIN_ROWS, _BY_TURNOVER_ALONE)):
        faults += _unit_faults(rows, power, unit & these, counted, causes, "100 x volume / float_shares / turnover")
    return faults, {"amount": rows.count(known >= MIN_ROWS), "turnover": rows.count(counted >= MIN_ROWS),
                    "factor_changes": int(judged.sum())}  # fmt: skip


def _rows(bars: Table) -> Optional[_Rows]:
    traded = np.flatnonzero(bars.numbers["volume"] > 0)
    if not len(traded):
        return None
    code = bars.code[traded]
    if (code[1:] < code[:-1]).any():
        traded = traded[np.argsort(code, kind="stable")]
    table = bars.take(traded)
    year = table.dates["date"].astype("datetime64[Y]").astype(np.int64)
    starts = np.append(True, (table.code[1:] != table.code[:-1]) | (year[1:] != year[:-1]))
    return _Rows(table, np.cumsum(starts) - 1, np.flatnonzero(starts))


def _days(rows: _Rows) -> _Rows:
    """The same rows, grouped by day."""
    day = rows.table.dates["date"].astype(np.int64)
    day -= day.min()
    group = (np.cumsum(np.bincount(day) > 0) - 1)[day]
    first = np.empty(group.max() + 1, dtype=np.int64)
    first[group[::-1]] = np.arange(len(group))[::-1]
    return _Rows(rows.table, group, first, by_day=True)


def _amount_ratio(rows: _Rows) -> np.ndarray:
    """log10 of amount / volume / close; NaN where the amount is unknown. [r]"""
    numbers = rows.table.numbers
    amount = numbers.get("amount", np.full(len(rows.table), np.nan))
    return np.log10(np.where(amount > 0, amount, np.nan) / numbers["volume"] / numbers["close"])


def _power(ratio: np.ndarray, near: float) -> np.ndarray:
    """The power of ten a ratio is near; 0 where it is near none. [r]"""
    power = np.rint(ratio)
    return np.where(np.abs(ratio - power) < near, power, 0)


def _majority(rows: _Rows, these: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Groups with enough known rows of which more than half are `these`. bool [groups]"""
    return (known >= MIN_ROWS) & (2 * rows.share(these) > known)


def _unit_faults(rows: _Rows, power, unit, known, causes: dict, what: str) -> List[str]:
    """A fault for each power of ten that most rows of some of the groups `unit` show."""
    faults = []
    for exponent, (cause, repair) in causes.items():
        groups = unit & _majority(rows, power == exponent, known)
        if groups.any():
            whole = groups.sum() > 0.9 * np.count_nonzero(known >= MIN_ROWS)
            step = f"write `{repair}` in the column mapping" if whole else f"correct those rows (for the whole table: `{repair}`)"
            faults.append(f"table bars: {what} is near {10.0**exponent:g} instead of 1 for {rows.named(groups)}: {cause}; {step}")
    return faults


def _price_faults(rows: _Rows, adjusted, telling, by_change, judged) -> List[str]:
    """Adjusted prices, by amount (`adjusted`, of the groups that are `telling`) or at factor changes (`by_change`, of the codes
    that are `judged`)."""
    code = rows.table.code[rows.first]
    groups = adjusted | (by_change[code] & ~np.isin(code, code[adjusted]))
    if not groups.any():
        return []
    found = (f"look adjusted already for {rows.named(groups)} (by amount / volume {rows.count(adjusted)}, by closes that do not "
             f"jump where the factor does {int(by_change.sum())})")  # fmt: skip
    if adjusted.sum() > 0.8 * telling.sum() or by_change.sum() > 0.8 * judged.sum():
        return [f"table bars: prices {found}: give unadjusted prices, or factor 1 if there are none"]
    return [f"table bars: mixed adjusted and raw prices: they {found}, and raw for others; give unadjusted prices for all"]


def _adjusted_at_changes(rows: _Rows) -> Tuple[np.ndarray, np.ndarray]:
    """Codes whose closes do not jump at their factor changes, and codes with changes that tell. bool [codes], bool [codes]

    The log-return r at a change f of the log factor is taken as noise around 0 (adjusted) or around -f (unadjusted); one code
    needs two changes that speak for "adjusted", because a single factor is often dated wrongly, unless most codes are alike.
    """
    code, close, factor = rows.table.code, np.log(rows.table.numbers["close"]), np.log(rows.table.numbers["factor"])
    change, move = np.diff(factor), np.diff(close)
    likely = np.minimum(np.abs(move), np.abs(move + change)) < 5 * DAILY_MOVE  # others, as after a long suspension, tell nothing
    at = np.flatnonzero((code[1:] == code[:-1]) & (np.abs(change) > FACTOR_CHANGE) & likely)
    for_adjusted = (2 * move[at] * change[at] + change[at] ** 2) / (2 * DAILY_MOVE**2)
    count = len(rows.table.codes)
    evidence = np.bincount(code[at], weights=for_adjusted, minlength=count)
    votes = np.bincount(code[at][for_adjusted > 0], minlength=count)
    judged, adjusted = np.abs(evidence) > EVIDENCE, evidence > EVIDENCE
    alike = adjusted.sum() > max(2, judged.sum() / 2)
    return adjusted & ((votes > 1) | alike), judged


def _turnover_ratio(rows: _Rows, float_shares: Optional[Table]) -> np.ndarray:
    """log10 of 100 x volume / float shares / turnover; NaN where one of them is unknown."""
    table, ratio = rows.table, np.full(len(rows.table), np.nan)
    if float_shares is None or "turnover" not in table.numbers:
        return ratio
    wanted = np.flatnonzero(table.numbers["turnover"] > 0)
    shares = float_shares.take(np.flatnonzero(float_shares.with_codes(table.codes) >= 0))
    key = lambda code, days: code * 10**7 + days.astype(np.int64)  # noqa: E731
    keys = key(shares.with_codes(table.codes), shares.dates["month"])
    order = np.argsort(keys, kind="stable")
    place = np.searchsorted(keys[order], key(table.code[wanted], table.dates["date"][wanted])) - 1  # last month before the day
    inside = (place >= 0) & (len(order) > 0)
    wanted, source = wanted[inside], order[place[inside]]
    same = shares.with_codes(table.codes)[source] == table.code[wanted]
    wanted, source = wanted[same], source[same]
    held = shares.numbers["float_shares"][source]
    ratio[wanted] = np.log10(100 * table.numbers["volume"][wanted] / held / table.numbers["turnover"][wanted])
    return ratio
