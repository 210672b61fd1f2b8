"""Reports as published: what is known of a stock's fundamentals after each announcement, and the daily fields made of it."""

from typing import Dict, Optional, Tuple

import numpy as np

from qlib_ext.store.grid import Grid
from qlib_ext.store.schema import BALANCES, FISCAL_YEARS, FLOWS
from qlib_ext.store.tables import Table

ONE_DAY = np.timedelta64(1, "D")


def quarter_of(day: np.ndarray) -> np.ndarray:
    """Quarter a day lies in, counted from year 0: 4 x year + 0..3. Annual reports are those with remainder 3."""
    month = day.astype("datetime64[M]").astype(np.int64)  # since 1970-01
    return 4 * 1970 + month // 3


class KnownReports:
    """What is known after each announcement of a table of reports, restated and late ones included.

    Events are the table's rows in order of stock, announcement and period. A period is named by its `quarter_of`; of several
    versions of it the last announced that has a number counts for that number, from its own announcement on. Anything over past
    quarters can be asked for by `row` or `value`: a single quarter's sales are `value("sales", q) - value("sales", q - 1)`
    unless q % 4 == 0.

    Attributes
    ----------
    stock : int [e], position in `codes`, -1 for a code that is not in it
    announcement : datetime64[D] [e]
    latest : int [e], quarter of the latest period known; a late report of an earlier period does not change it
    latest_annual : int [e], the latest period of an annual report known, -1 for none
    """

    def __init__(self, table: Table, codes: np.ndarray):
        order = np.lexsort((table.dates["period_end"], table.dates["announcement"], table.code))
        self.table = table = table.take(order)
        self.stock, self.announcement = table.with_codes(codes), table.dates["announcement"]
        quarter, code = quarter_of(table.dates["period_end"]), table.code
        self._width = int(quarter.max()) + 2
        self._code, count = code, len(code)
        self.latest = np.maximum.accumulate(code * self._width + quarter) - code * self._width
        annual = np.where(quarter % 4 == 3, quarter, -1) + 1
        self.latest_annual = np.maximum.accumulate(code * self._width + annual) - code * self._width - 1
        key = (code * self._width + quarter) * count + np.arange(count)
        self._row = np.argsort(key)
        self._key = key[self._row]

    def __len__(self) -> int:
        return len(self._code)

    def row(self, quarter: np.ndarray, name: Optional[str] = None) -> np.ndarray:
        """Row of `table` with the last version known, after each event, of the period asked for with it (the last that has the
        number `name`); -1 if none is. int [e]"""
        has = slice(None) if name is None else ~np.isnan(self.table.numbers[name][self._row])
        key, rows = np.append(-1, self._key[has]), np.append(-1, self._row[has])
        period = self._code * self._width + quarter
        place = np.searchsorted(key, period * len(self) + np.arange(len(self)), side="right") - 1
        return np.where((quarter >= 0) & (key[place] // len(self) == period), rows[place], -1)

    def value(self, name: str, quarter: np.ndarray) -> np.ndarray:
        """A number of the period's last version known that has it; NaN if none does. float64 [e]"""
        return np.append(self.table.numbers[name], np.nan)[self.row(quarter, name)]

    def trailing(self, name: str) -> np.ndarray:
        """A year-to-date flow over the four quarters to the latest period: its own value if that is an annual report, else
        + the year before - the same quarters of the year before; NaN where a piece is missing. float64 [e]"""
        latest, own = self.latest, self.value(name, self.latest)
        before = self.value(name, latest - latest % 4 - 1) - self.value(name, latest - 4)
        return np.where(latest % 4 == 3, own, own + before)

    def annual(self, name: str, years_back: int) -> np.ndarray:
        """A number of the annual report so many years before the latest one known. float64 [e]"""
        return self.value(name, self.latest_annual - 4 * years_back)


def fundamental_fields(table: Table, grid: Grid) -> Tuple[Dict[str, np.ndarray], Dict[str, int]]:
    """Daily fields, float32 [c], of the reports known; only those whose column the table has.

    A report counts from the first trading day after its announcement. Units CNY, `eps_y*` CNY per share, `report_age` calendar
    days; NaN before a stock's first report and where no version of the report has the number.
    """
    known = KnownReports(table, grid.codes)
    event = grid.latest_event(known.stock, np.searchsorted(grid.calendar, known.announcement, side="right"))
    lay = lambda values: np.append(values, np.nan)[event].astype(np.float32)  # noqa: E731
    period_end = known.table.dates["period_end"][known.row(known.latest)]
    age = (grid.calendar[grid.day] - np.append(period_end, np.datetime64("NaT"))[event]) / ONE_DAY
    fields = {"report_age": age.astype(np.float32)}
    columns = table.numbers
    fields.update({name: lay(known.value(name, known.latest)) for name in BALANCES if name in columns})
    fields.update({f"{name}_ttm": lay(known.trailing(name)) for name in FLOWS if name in columns})
    for name in ("eps", "sales"):
        if name in columns:
            fields.update({f"{name}_y{back}": lay(known.annual(name, back)) for back in range(FISCAL_YEARS)})
    return fields, _counts(known, grid)


def _counts(known: KnownReports, grid: Grid) -> Dict[str, int]:
    """Reports, restated versions, first versions published after a later period's, stocks without any."""
    period, code = quarter_of(known.table.dates["period_end"]), known.table.code
    first = np.unique(np.stack([code, period]), axis=1, return_index=True)[1]
    return {"reports": len(known), "reports_restated": len(known) - len(first),
            "reports_late": int(np.count_nonzero(period[first] < known.latest[first])),
            "stocks_without_reports": int(len(grid.codes) - len(np.unique(known.stock[known.stock >= 0])))}
