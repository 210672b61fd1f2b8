"""What the doctor finds in the bars: coverage, calendar, jumps, limits, vwap, stale prices, units, ST, fundamentals.

Every function takes a `StoreFiles` and gives a `Section`. Arrays are [n, t]: stocks x days from the first stock bar on.
"""

import numpy as np

from qlib_ext.market_rules import missing_trading_days, price_limits
from qlib_ext.store.findings import Section, named, percent, year_span
from qlib_ext.store.metadata import is_intraday
from qlib_ext.store.reading import StoreFiles
from qlib_ext.store.schema import AMOUNT_TOLERANCE, FIELDS, INDEX_CODES, PRICE_TOLERANCE, field as field_of

DROP, COMPLETE = 0.20, 0.99
LEAST_CELLS = 200
JUMP_TOLERANCE = 0.01
TICK = 0.01
STALE_DAYS = 20
YEAR = 244
REPORT_DAYS = 270
STALE_SHARE = 0.05
ST_UNKNOWN = 0.10
OLD = 10_000
CONSEQUENCES = {
    **dict.fromkeys(("open", "high", "low", "volume"), "every model needs it"),
    "factor": "nobody can say whether prices are adjusted; our handlers refuse the store, Qlib's exchange trades in fractions",
    "change": "Qlib's exchange would let every order pass the price limits; `check` refuses a back-test",
    "vwap": "Alpha158's VWAP0 and labels by vwap cannot be computed; VWAP0 would be 0 on every row"}


def coverage(store: StoreFiles) -> Section:
    """Share of traded stock-days with a value, by field, year and board."""
    section = Section("Coverage")
    traded = store.by_year(store.traded)
    boards = [board for board in np.unique(store.boards) if board]
    rows = {board: store.boards == board for board in boards} or {"stocks": np.ones(len(store.codes), bool)}
    total = {(board, year): int(count[mine].sum()) for board, mine in rows.items() for year, count in traded.items()}
    complete, partly = [], []
    for field in store.fields:
        if field.endswith("_weight") or is_intraday(field):  # they have sections of their own
            continue
        known = store.by_year(np.isfinite(store.panel(field)) & store.traded)
        share = {board: {year: known[year][mine].sum() / total[board, year] if total[board, year] else float("nan")
                         for year in traded} for board, mine in rows.items()}
        everyone = {year: known[year].sum() / max(traded[year].sum(), 1) for year in traded}
        section.figures[field] = {"all": everyone, **share}
        if field != "is_st":  # has a section of its own
            _drops(section, field, share, total, list(traded))
        if min(value for one in share.values() for value in one.values() if np.isfinite(value)) >= COMPLETE:
            complete.append(field)
            continue
        partly.append([field, "all"] + [percent(everyone[year]) for year in traded])
        spread = [board for board in share if any(abs(share[board][year] - everyone[year]) > 0.05 for year in traded)]
        partly += [["", board] + [percent(share[board][year]) for year in traded] for board in spread]
    section.lines.append("percent of traded stock-days with a value; complete: " + (", ".join(complete) or "none"))
    section.table(["field", "board", *map(str, traded)], partly)
    _absent(section, store)
    return section


def _drops(section: Section, field: str, share: dict, total: dict, years: list) -> None:
    """Warn of a board whose share falls by more than 20 points, and of one that has no value at all."""
    enough = {key for key, cells in total.items() if cells >= LEAST_CELLS}
    dropped = {board: [year for before, year in zip(years, years[1:]) if {(board, before), (board, year)} <= enough
                       and one[before] - one[year] > DROP] for board, one in share.items()}
    for board, fallen in dropped.items():
        if fallen:
            what = ", ".join(f"{percent(share[board][year - 1])} % in {year - 1} to {percent(share[board][year])} % in {year}"
                             for year in fallen)
            section.warn("coverage drop", f"{field} thins out on board {board}: {what}; what is built on it changes its meaning "
                         "for this board there")
        else:
            _erosion(section, field, board, {year: share[board][year] for year in years if (board, year) in enough})
    asked = [board for board in share if any((board, year) in enough for year in years)]
    empty = [board for board in asked if not any(share[board][year] > 0 for year in years)]
    if empty and len(empty) < len(asked):
        span = year_span([year for year in years if any((board, year) in enough for board in empty)])
        section.warn("board without a field", f"{field} is absent on board {named(empty)} ({span}), other boards have it")


def _erosion(section: Section, field: str, board: str, share: dict) -> None:
    """Warn of a share that falls slowly: year by year less than 20 points, but more below the best year before."""
    years = list(share)
    best = {year: max(years[:k + 1], key=share.get) for k, year in enumerate(years)}
    worst = max(years, key=lambda year: share[best[year]] - share[year], default=None)
    if years and share[best[worst]] - share[worst] > DROP:
        section.warn("coverage drop", f"{field} erodes on board {board}: {percent(share[best[worst]])} % in {best[worst]} to "
                     f"{percent(share[worst])} % in {worst}; what is built on it changes its meaning for this board")


def _absent(section: Section, store: StoreFiles) -> None:
    for field, consequence in CONSEQUENCES.items():
        if field not in store.fields:
            section.warn("field absent", f"no stock has ${field}: {consequence}")
    absent = [field for field in FIELDS if field not in store.fields and field not in CONSEQUENCES]
    groups = {}  # fields of one need and one stand-in are named together
    for name in absent:
        groups.setdefault((field_of(name).needed_by, field_of(name).stand_in.split(":")[0]), []).append(name)
    if groups:
        section.warn("field absent", f"{len(absent)} fields are not in the store: " + "; ".join(
            f"{', '.join(names)} (for {needed}; {'nothing' if other == 'none' else other} stands in)"
            for (needed, other), names in groups.items()))


def calendar(store: StoreFiles) -> Section:
    """Holes of the calendar, weekends, days on which fewer than half of the listed stocks trade; suspensions by year."""
    section, days = Section("Calendar and suspensions"), store.calendar
    missing = np.asarray(missing_trading_days(days), dtype="datetime64[D]")
    weekends = days[(days.astype(int) + 3) % 7 >= 5]
    listed, trading = store.listed.sum(axis=0), store.traded.sum(axis=0)
    thin = (listed > 0) & (trading < 0.5 * listed)
    section.figures = {"first": str(days[0]), "last": str(days[-1]), "days": len(days), "first_stock_day": str(store.days[0]),
                       "missing": [str(day) for day in missing], "weekends": [str(day) for day in weekends],
                       "thin": [str(day) for day in store.days[thin]]}
    section.lines.append(f"{days[0]} to {days[-1]}, {len(days)} days; stocks from {store.days[0]}")
    if store.first > YEAR:
        section.warn("no history", f"the calendar starts {days[0]}, stock bars {store.days[0]}: before, there is no history of "
                     f"stocks for windows or training ({store.first} days)")
    if len(missing):
        section.warn("calendar hole", f"{len(missing)} weekdays are missing that no known holiday explains: {named(missing)}")
    if len(weekends):
        section.warn("weekend", f"{len(weekends)} days of the calendar are Saturdays or Sundays: {named(weekends)}")
    if thin.any():
        at = np.flatnonzero(thin)
        section.warn("thin day", f"on {len(at)} days fewer than half of the listed stocks trade: " + named(
            f"{store.days[k]} ({trading[k]} of {listed[k]})" for k in at))
    yearly = {year: (int((count > 0).sum()), count.sum()) for year, count in store.by_year(store.traded).items()}
    span = {year: count.sum() for year, count in store.by_year(store.listed).items()}
    section.figures["suspended"] = {year: float(1 - cells / span[year]) for year, (_, cells) in yearly.items()}
    section.table(["year", "stocks traded", "% of listed days without a trade"],
                  [[year, stocks, f"{100 * section.figures['suspended'][year]:.2f}"] for year, (stocks, _) in yearly.items()])
    return section


def jumps(store: StoreFiles) -> Section:
    """Adjusted moves from close to close beyond what the day's price limit allows."""
    section, (stock, day, move) = Section("Jumps that no factor explains"), _moves(store)
    factor = store.panel("factor")[stock, day] if "factor" in store.fields else np.ones(len(stock))
    before = store.close[stock, store.previous[stock, day]] / factor  # CNY, in today's units
    up, down = price_limits(store.boards[stock], _special(store)[stock, day], _listed_days(store)[stock, day], store.days[day])
    slack = JUMP_TOLERANCE + (TICK / before if "factor" in store.fields else 0)
    beyond = (move > up + slack) | (move < -(down + slack))
    found = np.flatnonzero(beyond & (store.boards[stock] != ""))
    found = found[np.argsort(-np.abs(move[found]))]
    section.figures = {"count": len(found), "stocks": len(np.unique(stock[found])),
                       "largest": [[store.codes[stock[k]], str(store.days[day[k]]), float(move[k])] for k in found[:20]]}
    section.lines.append(f"{len(found)} moves beyond the limit of board, ST and date plus 1 point (days without limits left out)")
    if len(found):
        years = year_span(set(store.years[day[found]].tolist()))
        section.warn("jump", f"{len(found)} moves of {section.figures['stocks']} stocks ({years}) exceed the day's price limit: "
                     "a missing or wrong factor, a bad price, or the first day after a relisting: "
                     + named([f"{store.codes[stock[k]]} {store.days[day[k]]} {100 * move[k]:+.1f} %" for k in found]))
    return section


def _moves(store: StoreFiles):
    """Traded cells that moved by more than the tightest limit: stock, day, move."""
    before = np.take_along_axis(store.close, np.maximum(store.previous, 0), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        move = np.where(store.traded & (store.previous >= 0), store.close / before - 1, 0)
    stock, day = np.nonzero(np.abs(move) > 0.05)
    return stock, day, move[stock, day].astype(float)


def _special(store: StoreFiles) -> np.ndarray:
    """Known special treatment; unknown counts as none, whose limits are wider. bool [n, t]"""
    return store.panel("is_st") == 1 if "is_st" in store.fields else np.zeros(store.close.shape, dtype=bool)


def _listed_days(store: StoreFiles) -> np.ndarray:
    """Trading days since listing; stocks that trade in the store's first week are old. int [n, t]"""
    first = store.bounds[:, :1]
    return np.where(first < 5, OLD, np.maximum(np.arange(len(store.days)) - first, 0))


def limits(store: StoreFiles) -> Section:
    """Bars above limit_up or below limit_down by more than a tick: the reference price of an ex-date is known to a tick only."""
    section = Section("Bars against their price limits")
    if not {"limit_up", "limit_down", "high", "low"} <= set(store.fields):
        section.lines.append("the store has no limit prices")
        return section
    tick = TICK * (store.panel("factor") if "factor" in store.fields else 1)
    up, down = store.panel("limit_up"), store.panel("limit_down")
    high, low = store.panel("high"), store.panel("low")
    outside = store.traded & ((high > up + 1.1 * tick) | (low < down - 1.1 * tick))
    at_limit = store.traded & ((store.close >= up - 0.4 * tick) | (store.close <= down + 0.4 * tick))
    known = store.by_year(store.traded & np.isfinite(up))
    section.figures = {"outside": int(outside.sum()), "closes_at_limit": {
        year: float(count.sum() / max(known[year].sum(), 1)) for year, count in store.by_year(at_limit).items()}}
    section.table(["year", "% of closes at a limit"],
                  [[year, f"{100 * share:.2f}"] for year, share in section.figures["closes_at_limit"].items()])
    _warn_cells(section, "outside limits", store, outside, "bars reach beyond the day's limit prices")
    return section


def prices(store: StoreFiles) -> Section:
    """Prices that contradict each other, vwap outside the day's range, prices that stand still, units of volume and amount."""
    section, have = Section("Prices and units"), set(store.fields)
    if {"open", "high", "low"} <= have:
        high, low = store.panel("high"), store.panel("low")
        top, bottom = np.maximum(store.panel("open"), store.close), np.minimum(store.panel("open"), store.close)
        wrong = store.traded & ((high < top * (1 - PRICE_TOLERANCE)) | (low > bottom * (1 + PRICE_TOLERANCE)) | (low <= 0))
        section.figures["contradictions"] = int(wrong.sum())
        _warn_cells(section, "prices", store, wrong, "bars have open or close outside [low, high], or a price of 0 or less")
        if "vwap" in have:
            vwap = store.panel("vwap")
            wrong = store.traded & ((vwap > high * (1 + AMOUNT_TOLERANCE)) | (vwap < low * (1 - AMOUNT_TOLERANCE)))
            section.figures["vwap_outside"] = int(wrong.sum())
            _warn_cells(section, "vwap", store, wrong, "vwaps lie outside [low, high]")
        _stale(section, store, high == low)
        found = section.figures
        section.lines.append(f"{found['contradictions']} contradictions, {found.get('vwap_outside', 0)} vwaps outside the range, "
                             f"{len(found['stale'])} runs of stale prices")
    else:
        section.lines.append("the store lacks open, high or low: prices are not compared")
    if {"amount", "volume"} <= have:
        _units(section, store)
    else:
        section.lines.append("the store lacks amount or volume: units are unknown")
    return section


def _warn_cells(section: Section, kind: str, store: StoreFiles, wrong: np.ndarray, text: str) -> None:
    """One warning for all wrong cells: count, years, the stocks by name with their first day and count."""
    stock, day = np.nonzero(wrong)
    if len(stock):
        found, first, count = np.unique(stock, return_index=True, return_counts=True)
        names = [f"{store.codes[i]} {store.days[day[k]]}" + (f" and {n - 1} more" if n > 1 else "")
                 for i, k, n in zip(found, first, count)]
        years = year_span(set(store.years[day].tolist()))
        section.warn(kind, f"{len(stock)} {text} ({years}, {len(found)} stocks): {named(names)}")


def _stale(section: Section, store: StoreFiles, flat: np.ndarray) -> None:
    """More than 20 traded days in a row with one and the same price."""
    stock, day = np.nonzero(store.traded)  # stock by stock, in order of time
    close = store.close[stock, day]
    same = np.append(False, (stock[1:] == stock[:-1]) & (close[1:] == close[:-1])) & flat[stock, day]
    edges = np.flatnonzero(np.append(True, same[1:] != same[:-1])) if len(same) else np.empty(0, int)
    length = np.diff(np.append(edges, len(same)))
    found = [k for k in np.flatnonzero(length > STALE_DAYS) if same[edges[k]]]
    section.figures["stale"] = [[store.codes[stock[edges[k]]], str(store.days[day[edges[k]]]), int(length[k])] for k in found]
    if found:
        section.warn("stale prices", f"{len(found)} runs of more than {STALE_DAYS} traded days at one and the same price: "
                     + named([f"{code} from {start} ({count} days)" for code, start, count in section.figures["stale"]]))


def _units(section: Section, store: StoreFiles) -> None:
    """Median of amount / (volume x close): 1 where volume counts shares and amount CNY."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = store.panel("amount") / (store.panel("volume") * store.close)
    ratio[~store.traded] = np.nan
    median = float(np.nanmedian(ratio)) if np.isfinite(ratio).any() else float("nan")
    section.figures["amount_over_volume_times_close"] = median
    section.lines.append(f"median of amount / (volume x close): {median:.3g} (1: shares and CNY)")
    if np.isfinite(median) and not 0.8 < median < 1.25:
        guess = "volume in lots of 100" if 80 < median < 125 else "amount in thousands" if 0.0008 < median < 0.00125 else \
            "volume in lots of 100 and amount in thousands" if 0.08 < median < 0.125 else "an unknown unit"
        section.warn("units", f"amount / (volume x close) is {median:.3g}, not about 1: {guess}")


def special_treatment(store: StoreFiles) -> Section:
    """Share of listed stock-days on which special treatment is unknown."""
    section = Section("Special treatment (ST)")
    if "is_st" not in store.fields:
        section.lines.append("the store has no is_st: every stock counts as not ST, with the wider limits")
        return section
    unknown, listed = store.by_year(np.isnan(store.panel("is_st")) & store.listed), store.by_year(store.listed)
    share = {year: float(unknown[year].sum() / max(listed[year].sum(), 1)) for year in listed}
    section.figures["unknown"] = share
    section.table(["year", "% unknown"], [[year, percent(value)] for year, value in share.items()])
    bad = {year: value for year, value in share.items() if value > ST_UNKNOWN}
    if bad:
        section.warn("ST unknown", "is_st is unknown for " + ", ".join(f"{percent(v)} % in {y}" for y, v in bad.items())
                     + " of the stock-days: limits and universes take them as not ST")
    return section


def fundamentals(store: StoreFiles) -> Section:
    """Share of listed stock-days whose latest report ended more than 270 days ago or that have none."""
    section = Section("Fundamentals")
    if "report_age" not in store.fields:
        section.lines.append("the store has no fundamentals: styles that need them are left out")
        return section
    age, listed = store.panel("report_age"), store.by_year(store.listed)
    old, none = store.by_year((age > REPORT_DAYS) & store.listed), store.by_year(np.isnan(age) & store.listed)
    share = {year: [float(count[year].sum() / max(listed[year].sum(), 1)) for count in (old, none)] for year in listed}
    section.figures = {"stale": {y: s[0] for y, s in share.items()}, "unknown": {y: s[1] for y, s in share.items()}}
    section.table(["year", f"% older than {REPORT_DAYS} days", "% unknown"],
                  [[year, *(f"{100 * one:.1f}" for one in both)] for year, both in share.items()])
    bad = [f"{percent(s[0])} % in {year}" for year, s in share.items() if s[0] > STALE_SHARE]
    if bad:
        section.warn("stale fundamentals", f"the latest report ended more than {REPORT_DAYS} days ago for {', '.join(bad)} of "
                     "the stock-days: reports are missing or come late")
    return section


def index_bars(store: StoreFiles) -> Section:
    """Bars of the indices that markets and benchmarks are named after: present, complete, with amount or not."""
    section, rows = Section("Index bars"), []
    for name, code in INDEX_CODES.items():
        if code not in store.indices or not np.isfinite(store.panel("close", [code])).any():
            section.warn("index absent", f"no bars of {code} ({name}): it cannot be a benchmark, and the market state must name "
                         "other indices in `instruments` (its width follows)")
            continue
        close = np.isfinite(store.panel("close", [code])[0])
        holes = store.days[~close]
        has = [field for field in ("volume", "amount") if np.isfinite(store.panel(field, [code])).any()]
        section.figures[code] = {"days_without": len(holes), "fields": has}
        rows.append([code, name, len(holes), "yes" if "amount" in has else "no: volume stands in" if has else "no, nor volume"])
        if len(holes):
            section.warn("index incomplete", f"{code} has no close on {len(holes)} days of the stocks: {named(holes)}")
        if not has:
            section.warn("index without volume", f"{code} has neither amount nor volume: no market state from it")
    section.table(["index", "of", "days without", "amount"], rows)
    return section
