"""Units of the bars, read off the numbers: volume in lots, amounts in thousands, prices that are adjusted already.

Amount / volume is a price, and it must be the row's own: amount / volume / close is 1 but for the day's movement. A power of ten
instead is a unit; 1 / factor is an adjusted price. Where no amount is known, volume / float shares must be the turnover. At a factor
change, unadjusted prices jump against the factor and adjusted ones do not. Single rows may be wrong in any source, so a fault needs
more than half of the rows of an instrument's year.
"""

from typing import List, NamedTuple, Optional, Tuple

import numpy as np

from qlib_ext.store.tables import Table

MIN_ROWS = 10  # of an instrument's year
NEAR_AMOUNT, NEAR_TURNOVER = np.log10(1.1), np.log10(1.5)  # how near a ratio must be to what it is taken for
FACTOR_APART = np.log10(1.3)  # factors nearer to 1 tell nothing
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


class _Rows(NamedTuple):
    """Traded rows in the order of instrument and day; `group` numbers the instrument's years."""

    table: Table
    group: np.ndarray
    first: np.ndarray  # first row of each group

    def named(self, groups: np.ndarray) -> str:
        """How many instruments the groups belong to, and the first with its year."""
        rows = self.first[groups]
        year = self.table.dates["date"][rows[0]].astype("datetime64[Y]")
        count = len(np.unique(self.table.code[rows]))
        return f"{count} of {len(np.unique(self.table.code))} instruments, first {self.table.instrument(rows[0])} in {year}"

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
    numbers = rows.table.numbers
    with np.errstate(divide="ignore", invalid="ignore"):
        amount = numbers.get("amount", np.full(len(rows.table), np.nan))
        ratio = np.where(amount > 0, np.log10(amount / numbers["volume"] / numbers["close"]), np.nan)
    log_factor = np.log10(numbers["factor"])
    power = np.rint(ratio)
    unit = (np.abs(ratio - power) < NEAR_AMOUNT) & (power != 0)
    apart = np.abs(log_factor) > FACTOR_APART
    known = rows.share(np.isfinite(ratio))
    prices = apart & (np.abs(ratio + log_factor) < NEAR_AMOUNT)  # adjusted prices, volume and amount as traded
    volumes = apart & (np.abs(ratio - log_factor) < NEAR_AMOUNT)  # volume / factor, prices as traded
    adjusted, shrunk = (_majority(rows, these, known) for these in (prices, volumes))
    faults = _unit_faults(rows, np.where(unit, power, 0), known, adjusted | shrunk, _BY_AMOUNT, "amount / volume / close")
    faults += _volume_faults(rows, shrunk & ~adjusted)
    by_change, judged = _adjusted_at_changes(rows)
    faults += _price_faults(rows, adjusted, known, by_change, judged)
    by_turnover = known < MIN_ROWS
    turnover_ratio = _turnover_ratio(rows, float_shares, by_turnover)
    power = np.where(np.abs(turnover_ratio - np.rint(turnover_ratio)) < NEAR_TURNOVER, np.rint(turnover_ratio), 0)
    counted = rows.share(np.isfinite(turnover_ratio))
    none = np.zeros(len(known), dtype=bool)
    faults += _unit_faults(rows, power, counted, none, _BY_TURNOVER, "100 x volume / float_shares / turnover")
    judge = lambda groups: int(len(np.unique(rows.table.code[rows.first[groups]])))  # noqa: E731
    return faults, {"amount": judge(known >= MIN_ROWS), "turnover": judge(counted >= MIN_ROWS), "factor_changes": int(judged.sum())}


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


def _majority(rows: _Rows, these: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Groups with enough known rows of which more than half are `these`. bool [groups]"""
    return (known >= MIN_ROWS) & (2 * rows.share(these) > known)


def _unit_faults(rows: _Rows, power, known, left_out, causes: dict, what: str) -> List[str]:
    """A fault for each power of ten that most rows of some instrument's year show; `left_out` groups have another explanation."""
    faults = []
    for exponent, (cause, repair) in causes.items():
        groups = np.flatnonzero(_majority(rows, power == exponent, known) & ~left_out)
        if len(groups):
            whole = len(groups) > 0.9 * np.count_nonzero(known >= MIN_ROWS)
            step = f"write `{repair}` in the column mapping" if whole else f"correct those rows (for the whole table: `{repair}`)"
            faults.append(f"table bars: {what} is near {10.0**exponent:g} instead of 1 for {rows.named(groups)}: {cause}; {step}")
    return faults


def _volume_faults(rows: _Rows, shrunk: np.ndarray) -> List[str]:
    groups = np.flatnonzero(shrunk)
    if not len(groups):
        return []
    return [f"table bars: amount / volume / close is the factor instead of 1 for {rows.named(groups)}: volume looks adjusted "
            "(divided by the factor) and prices do not; give the shares traded"]  # fmt: skip


def _price_faults(rows: _Rows, adjusted: np.ndarray, known: np.ndarray, by_change: np.ndarray, judged: np.ndarray) -> List[str]:
    """Adjusted prices: `adjusted` by amount [groups], `by_change` at factor changes [codes], `judged` the codes with such changes."""
    code = rows.table.code[rows.first]
    groups = np.flatnonzero(adjusted | by_change[code])
    if not len(groups):
        return []
    log_factor = np.abs(np.log10(rows.table.numbers["factor"])) > FACTOR_APART
    telling = judged[code] | ((known >= MIN_ROWS) & (2 * rows.share(log_factor) > rows.share(np.ones(len(rows.group), dtype=bool))))
    evidence = (f"{rows.named(groups)} (by amount / volume {len(np.unique(code[adjusted]))}, by closes that do not jump where the "
                f"factor does {int(by_change.sum())})")
    if len(groups) > 0.8 * np.count_nonzero(telling):
        return [f"table bars: prices look adjusted already for {evidence}: give unadjusted prices, or factor 1 if there are none"]
    return [f"table bars: mixed adjusted and raw prices: they look adjusted already for {evidence}, and raw for others; give "
            "unadjusted prices for all"]  # fmt: skip


def _adjusted_at_changes(rows: _Rows) -> Tuple[np.ndarray, np.ndarray]:
    """Codes whose closes do not jump at their factor changes, and codes with changes that tell. bool [codes], bool [codes]

    The log-return r at a change f of the log factor is taken as noise around 0 (adjusted) or around -f (unadjusted); one code needs
    two changes that speak for "adjusted", because a single factor is often dated wrongly, unless most codes are alike.
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
    alike = 2 * adjusted.sum() > judged.sum()
    return adjusted & ((votes > 1) | alike), judged


def _turnover_ratio(rows: _Rows, float_shares: Optional[Table], groups: np.ndarray) -> np.ndarray:
    """log10 of 100 x volume / float shares / turnover on the rows of some groups; NaN where one of them is unknown."""
    table, ratio = rows.table, np.full(len(rows.table), np.nan)
    if float_shares is None or "turnover" not in table.numbers:
        return ratio
    wanted = np.flatnonzero(groups[rows.group] & (table.numbers["turnover"] > 0))
    shares = float_shares.take(np.flatnonzero(float_shares.with_codes(table.codes) >= 0))
    key = lambda code, days: code * 10**7 + days.astype(np.int64)  # noqa: E731
    keys = key(shares.with_codes(table.codes), shares.dates["month"])
    order = np.argsort(keys, kind="stable")
    place = np.searchsorted(keys[order], key(table.code[wanted], table.dates["date"][wanted])) - 1  # the last month before the day
    inside = (place >= 0) & (len(order) > 0)
    wanted, source = wanted[inside], order[place[inside]]
    same = shares.with_codes(table.codes)[source] == table.code[wanted]
    wanted, source = wanted[same], source[same]
    held = shares.numbers["float_shares"][source]
    ratio[wanted] = np.log10(100 * table.numbers["volume"][wanted] / held / table.numbers["turnover"][wanted])
    return ratio
