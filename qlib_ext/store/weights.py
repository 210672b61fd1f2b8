"""Index membership and index weights per day."""

import math
from typing import Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from qlib_ext.store.checks import weight_unit
from qlib_ext.store.grid import Grid
from qlib_ext.store.tables import Table

ONE_DAY = np.timedelta64(1, "D")
_SOURCES = ("none", "official", "float_cap", "equal")


class Membership(NamedTuple):
    """`spans` index -> code -> list of (start, end inclusive), codes with bars only; `counts` what was merged and left out."""

    spans: Dict[str, Dict[str, List[Tuple[np.datetime64, np.datetime64]]]]
    counts: Dict[str, dict]


def membership_spans(table: Table, codes: np.ndarray, index_names) -> Membership:
    """Membership spans of the wanted indices; spans of one code that touch are merged (`check_tables` refuses overlaps)."""
    spans: Dict[str, dict] = {}
    counts: Dict[str, dict] = {}
    stock = table.with_codes(codes)
    for index_name in index_names:
        rows = np.flatnonzero(table.texts["index"] == index_name)
        left_out = rows[stock[rows] < 0]
        if len(rows) == len(left_out):
            continue
        rows = rows[stock[rows] >= 0]
        rows = rows[np.lexsort((table.dates["start"][rows], stock[rows]))]
        by_code: Dict[str, list] = {}
        merged = 0
        for row in rows:
            held = by_code.setdefault(str(codes[stock[row]]), [])
            start, end = table.dates["start"][row], table.dates["end"][row]
            if held and start <= held[-1][1] + ONE_DAY:
                held[-1] = (held[-1][0], max(held[-1][1], end))
                merged += 1
            else:
                held.append((start, end))
        spans[index_name] = by_code
        counts[index_name] = {
            "spans": sum(len(held) for held in by_code.values()),
            "codes": len(by_code),
            "spans_merged": merged,
            "spans_without_bars": len(left_out),
            "codes_without_bars": len(np.unique(table.code[left_out])),
        }
    return Membership(spans, counts)


class IndexWeights(NamedTuple):
    """`cells` float64 [c], fraction of 1 per day, NaN for non-members; `about` for the metadata."""

    cells: np.ndarray
    about: dict


def index_weights(
    index_name: str,
    spans: Dict[str, list],
    official: Optional[Table],
    grid: Grid,
    close: np.ndarray,
    float_cap: np.ndarray,
) -> IndexWeights:
    """Weights of an index's members on every day, known after its close.

    Official weights of date d count from the first trading day after d and drift with the adjusted close until the next official
    date counts, however late that is: w_i(t) = w_i(d) close_i(t) / close_i(d) (a stock without a close by d drifts from its first
    one after d). A member without one is estimated as float cap x the day's median of w / float cap over members that have both;
    without official weights w = float cap. A member of unknown float cap takes the median float cap of the day's members (without
    any known cap: the median official weight, or equal weights). Then each day is divided by its sum over the members that have
    had a bar by then: one without a row goes on with its last close and cap, for on the day nobody knows whether it will come
    back. If it does not, it has no cells any more and the others' weights sum to less than 1 until its membership ends.

    Arguments: `spans` code -> (start, end inclusive); `close` adjusted [c] and `float_cap` on the cells of `grid.open_ended()`,
    both carried through suspensions.
    """
    stocks = np.searchsorted(grid.codes, sorted(spans))
    first, last = int(grid.start.min()), int((grid.start + grid.length).max()) - 1
    member = _members(spans, stocks, grid, first, last)
    price = _carried(grid.to_days(close, stocks, first, last))
    cap = grid.open_ended().to_days(float_cap, stocks, first, last)
    given = _official(index_name, official, stocks, grid, price, first)
    weight, about = np.where(member, given.weight, np.nan), given.about
    cap[~member] = np.nan
    from_official, has_cap = np.isfinite(weight), np.isfinite(cap)
    weight = _normalised(np.where(from_official, weight, np.where(member, _estimate(weight, cap), np.nan)))
    if given.dates:
        by_cap = _normalised(np.where(member, _estimate(np.full(cap.shape, np.nan), cap), np.nan))
        about["derived_vs_official"] = _compare(given.dates, by_cap, price)
    source = np.select([~member.any(axis=1), from_official.any(axis=1), has_cap.any(axis=1)], [0, 1, 2], 3)
    about.update(
        unit="fraction",
        source="official, drifting between dates" if from_official.any() else "float cap",
        spans=_runs(source, grid.calendar[first : last + 1]),
        member_days=int(member.sum()),
        member_days_official=int(from_official.sum()),
        member_days_float_cap=int((member & ~from_official & has_cap).sum()),
        member_days_float_cap_unknown=int((member & ~from_official & ~has_cap).sum()),
    )
    days = np.arange(first, last + 1)[:, None]
    has_cell = (days >= grid.start[stocks]) & (days < (grid.start + grid.length)[stocks])
    about["member_days_after_last_bar"] = int((member & ~has_cell).sum())
    return IndexWeights(grid.from_days(weight, stocks, first, has_cell & member & np.isfinite(weight)), about)


def _carried(dense: np.ndarray) -> np.ndarray:
    """Each NaN replaced by the last value above it. [t, n]"""
    source = np.maximum.accumulate(np.where(np.isnan(dense), 0, np.arange(len(dense))[:, None]), axis=0)
    return np.take_along_axis(dense, source, axis=0)


def _normalised(weight: np.ndarray) -> np.ndarray:
    """Rows divided by their sums, which are exact: stocks that join later leave earlier rows bit by bit as they are. [t, n]"""
    total = np.array([math.fsum(row[np.isfinite(row)].tolist()) for row in weight])[:, None]
    return weight / np.where(total > 0, total, np.nan)


def _estimate(weight: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """Weights from float caps, in the scale of the official ones of the day if there are any. [t, n]"""
    official = np.isfinite(weight).any(axis=1)
    scale = np.where(official, _median(weight / cap), 1.0)  # NaN where no member has both
    estimate = np.where(np.isfinite(cap), cap, _median(cap)[:, None]) * scale[:, None]
    fallback = np.where(official, _median(weight), 1.0)
    return np.where(np.isfinite(estimate), estimate, fallback[:, None])


def _members(spans, stocks, grid: Grid, first: int, last: int) -> np.ndarray:
    """Who is a member on which day, from its first bar on. bool [t, n]"""
    member = np.zeros((last - first + 1, len(stocks)), dtype=bool)
    for column, (stock, code) in enumerate(zip(stocks, sorted(spans))):
        for start, end in spans[code]:
            begin = max(np.searchsorted(grid.calendar, start, side="left"), grid.start[stock])
            stop = np.searchsorted(grid.calendar, end, side="right")
            member[max(begin - first, 0) : max(stop - first, 0), column] = True
    return member


class _Official(NamedTuple):
    """Official weights: `weight [t, n]` drifted to every day they count for, not normalised; `dates` (place of the last trading
    day up to a date, weights of that date [n], NaN if not in it) of those inside the days; `about` for the metadata."""

    weight: np.ndarray
    dates: List[Tuple[int, np.ndarray]]
    about: dict


def _official(index_name: str, official: Optional[Table], stocks, grid: Grid, price: np.ndarray, first: int) -> _Official:
    weight = np.full(price.shape, np.nan)
    rows = np.empty(0, dtype=np.int64) if official is None else np.flatnonzero(official.texts["index"] == index_name)
    if len(rows) == 0:
        return _Official(weight, [], {"official_dates": 0})
    table = official.take(rows[np.lexsort((official.code[rows], official.dates["date"][rows]))])
    dates, at = np.unique(table.dates["date"], return_inverse=True)
    sums = np.bincount(at, weights=table.numbers["weight"])
    fraction = table.numbers["weight"] / sums[at]
    known = np.searchsorted(grid.calendar, dates, side="right")  # first trading day on which the date's weights are known
    begin = np.clip(known - first, 0, len(price))
    stop = np.append(begin[1:], len(price))
    column = np.full(len(grid.codes) + 1, -1, dtype=np.int64)
    column[stocks] = np.arange(len(stocks))
    place = column[table.with_codes(grid.codes)]
    used, inside = [], []
    for k in range(len(dates)):
        mine = (at == k) & (place >= 0)
        given = np.full(len(stocks), np.nan)
        given[place[mine]] = fraction[mine]
        if known[k] > first and dates[k] <= grid.calendar[first + len(price) - 1]:
            inside.append((known[k] - 1 - first, given))
        if begin[k] < stop[k]:
            used.append(str(dates[k]))
            days = slice(begin[k], stop[k])
            base = price[known[k] - 1 - first] if known[k] > first else np.full(len(stocks), np.nan)
            later = price[days][np.isfinite(price[days]).argmax(axis=0), np.arange(len(stocks))]
            weight[days] = given * price[days] / np.where(np.isfinite(base), base, later)
    about = {"official_unit": weight_unit(sums), "official_dates": len(used)}
    if used:
        about.update(official_first=used[0], official_last=used[-1])
    about["official_codes_without_bars"] = len(np.unique(table.code[table.with_codes(grid.codes) < 0]))
    return _Official(weight, inside, about)


def _compare(dates: List[Tuple[int, np.ndarray]], by_cap: np.ndarray, price: np.ndarray) -> dict:
    """Weights by float cap alone against the official ones of stocks with bars, at the closes of the official dates.

    `half_sum`: half the sum of absolute differences over all members of either (mean and largest of the dates); `largest`
    difference of one member; mean of the dates' `correlation` over the members of both, whose number is `members`.
    """
    found = []
    for day, given in dates:
        theirs = np.where(np.isfinite(price[day]), given, np.nan)
        theirs, mine = theirs / np.nansum(theirs), by_cap[day]
        both = np.isfinite(mine) & np.isfinite(theirs)
        if both.any():
            difference = np.abs(np.nan_to_num(mine) - np.nan_to_num(theirs))
            varies = both.sum() > 1 and np.ptp(mine[both]) > 0 and np.ptp(theirs[both]) > 0
            correlation = np.corrcoef(mine[both], theirs[both])[0, 1] if varies else np.nan
            found.append((difference.sum() / 2, difference.max(), correlation, both.sum()))
    if not found:
        return {"dates": 0}
    half, largest, correlation, members = (np.array(values, dtype=float) for values in zip(*found))
    known = correlation[np.isfinite(correlation)]
    return {"dates": len(found), "half_sum_mean": float(half.mean()), "half_sum_max": float(half.max()),
            "largest": float(largest.max()), "correlation": float(known.mean()) if len(known) else None,
            "members": [int(members.min()), int(members.max())]}


def _median(values: np.ndarray) -> np.ndarray:
    """Median of the finite values of each row; NaN for rows without any. [t]"""
    ordered = np.sort(values, axis=1)  # NaN last
    count = np.isfinite(ordered).sum(axis=1)
    rows = np.arange(len(ordered))
    low, high = ordered[rows, np.maximum(count - 1, 0) // 2], ordered[rows, count // 2]
    return np.where(count > 0, np.where(count % 2 == 1, low, (low + high) / 2), np.nan)


def _runs(source: np.ndarray, days: np.ndarray) -> List[dict]:
    """Runs of equal source as spans of days."""
    edges = np.flatnonzero(np.append(True, source[1:] != source[:-1]))
    stops = np.append(edges[1:], len(source)) - 1
    return [{"start": str(days[a]), "end": str(days[b]), "source": _SOURCES[source[a]]} for a, b in zip(edges, stops)]
