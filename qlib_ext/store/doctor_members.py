"""What the doctor finds in members, weights, industries and in who is missing. Arrays are [n, t] as in `doctor_bars`."""

from typing import Optional

import numpy as np
import pandas as pd

from qlib_ext.store.findings import Section, named, percent
from qlib_ext.store.reading import NOT_INDICES, StoreFiles
from qlib_ext.store.schema import INDEX_CODES, INDEX_SIZES

SHORT, COMPLETE = 0.95, 0.995
INDUSTRIES = (28, 31)
ENDED_DAYS = np.timedelta64(60, "D")
SLICE = 0.2
DRIFT_DAYS = np.timedelta64(60, "D")
ESTIMATED = 0.01
USUAL_RATE, TOO_FEW = 0.005, 0.4
RULE_SINCE = np.datetime64("2014-01-01")  # before, CSI's lists changed on the first trading day of January and July
WINDOW = (-25, 40)
WEIGHT_TOLERANCE = 1e-4
YEAR = 244


def index_names(store: StoreFiles) -> list:
    """Universes that are indices."""
    return [name for name in store.universes if name not in NOT_INDICES]


def members(store: StoreFiles) -> Section:
    """Members that have bars, per index and day, against the expected count."""
    section, rows = Section("Members of indices"), []
    sizes = {**INDEX_SIZES, **store.metadata.get("index_sizes", {})}
    listed = dict(zip(store.codes, store.listed))
    for name in INDEX_SIZES:
        if name not in store.universes:
            section.warn("no members", f"there is no instruments file of {name}: workflows on it are refused")
    for name in index_names(store):
        codes = sorted(set(store.spans(name)["code"]))
        absent = [code for code in codes if code not in listed]
        there = [code for code in codes if code in listed]
        count = (store.membership(name, there) & np.array([listed[code] for code in there])).sum(axis=0) if there else \
            np.zeros(len(store.days), int)
        _count_members(section, store, name, count, sizes.get(name), rows)
        section.figures[name]["codes_without_bars"] = absent
        if absent:
            section.warn("members without bars", f"{len(absent)} codes of {name} have no bars in the store: {named(absent)}")
    years = [str(year) for year in np.unique(store.years)]
    section.table(["mean members", "expected", "fewest", "most", *years], rows)
    for name, about in store.metadata.get("counts", {}).get("membership", {}).items():
        if about.get("codes_without_bars"):
            section.notes.append(f"{name}: ingest left out {about['codes_without_bars']} codes without bars "
                                 f"({about['spans_without_bars']} spans)")
    return section


def _count_members(section: Section, store: StoreFiles, name: str, count: np.ndarray, size: Optional[int], rows: list) -> None:
    mean = {int(year): float(count[store.years == year].mean()) for year in np.unique(store.years)}
    worst = int(count.argmin())
    section.figures[name] = {"expected": size, "fewest": int(count.min()), "fewest_on": str(store.days[worst]),
                             "most": int(count.max()), "mean": mean}
    rows.append([name, size or "?", int(count.min()), int(count.max()), *(f"{value:.1f}" for value in mean.values())])
    if not size:
        return
    short = np.flatnonzero(count < SHORT * size)
    section.figures[name]["short_days"] = len(short)
    if len(short):
        section.warn("too few members", f"{name} has fewer than 95 % of its {size} members on {len(short)} days "
                     f"({store.days[short[0]]} to {store.days[short[-1]]}), fewest on {store.days[worst]}: {count[worst]}")
    lacking = {year: size - value for year, value in mean.items() if value < COMPLETE * size}
    if lacking:
        section.warn("members lack", f"{name} lacks on average " + ", ".join(f"{gone:.0f} members in {year}" for year, gone in
                     lacking.items()) + (": the list is incomplete, or the store a slice of the market" if max(lacking.values())
                     > SLICE * size else ": usually names that were delisted since, so that results are flattered"))
    if count.max() > size:
        most = int(count.argmax())
        section.warn("too many members", f"{name} has more than {size} members on {int((count > size).sum())} days, most on "
                     f"{store.days[most]}: {count[most]}")


def official_days(days: np.ndarray) -> np.ndarray:
    """Positions of the first trading day from the Monday after the second Friday of June and December on, by CSI's rule."""
    months = np.unique(days.astype("datetime64[M]"))
    months = months[np.isin(months.astype(int) % 12 + 1, (6, 12))].astype("datetime64[D]")
    friday = months + (4 - (months.astype(int) + 3) % 7) % 7 + 7
    monday = friday + 3
    return np.searchsorted(days, monday[(monday >= max(days[0], RULE_SINCE)) & (monday <= days[-1])])


def rebalances(store: StoreFiles) -> Section:
    """Days on which the lists change against the official ones: trading days late (+) or early (-)."""
    section, rows = Section("Days on which index lists change"), []
    due = [k for k in official_days(store.days) if 0 < k + WINDOW[0] and k + WINDOW[1] < len(store.days)]
    for name in [name for name in index_names(store) if name in INDEX_CODES]:
        spans = store.spans(name)
        starts = spans["start"].to_numpy().astype("datetime64[D]")
        starts = np.searchsorted(store.days, starts[(starts > store.days[0]) & (starts <= store.days[-1])])
        late, unchanged = {}, []
        for k in due:
            near = starts[(starts >= k + WINDOW[0]) & (starts <= k + WINDOW[1])]
            if len(near) < 2:
                unchanged.append(str(store.days[k]))
                continue
            day, count = np.unique(near, return_counts=True)
            late[str(store.days[k])] = int(day[count.argmax()] - k)
        section.figures[name] = {"late": late, "unchanged": unchanged}
        off = [value for value in late.values() if value]
        rows.append([name, len(due), len(off), len(unchanged), f"{min(off)} to {max(off)}" if off else "-"])
        if off:
            word = "late" if min(off) > 0 else "early: a look-ahead" if max(off) < 0 else "early and late: partly a look-ahead"
            section.warn("membership dates", f"{name}: {len(off)} of {len(due)} half-yearly changes are {word}, by {min(off)} to "
                         f"{max(off)} trading days (median {np.median(off):.0f}) against the Monday after the second Friday of "
                         "June and December")
        if unchanged:
            section.warn("no change of members", f"{name} has no new members around {named(unchanged)}: a list is missing")
    if not rows:
        section.lines.append(f"none of {', '.join(INDEX_CODES)} is in the store")
    section.table(["index", "due", "not on the day", "no change", "trading days late"], rows)
    return section


def weights(store: StoreFiles) -> Section:
    """Weights sum to 1 over members; days without; from what they come; members' return against the index bars."""
    section, rows = Section("Index weights"), []
    for name in index_names(store):
        if f"{name}_weight" not in store.fields:
            section.warn("no weights", f"there are no weights of {name}: benchmarks and portfolios relative to it need estimates")
            continue
        codes = sorted(set(store.spans(name)["code"]) & set(store.codes))
        weight = store.panel(f"{name}_weight", codes)
        total, member = np.nansum(weight, axis=1 - 1), store.membership(name, codes)
        there = member.any(axis=0)
        without = there & ~np.isfinite(weight).any(axis=0)
        last = store.bounds[np.searchsorted(store.codes, codes), 1][:, None]
        ended = member & (np.arange(len(store.days)) > last)
        short = there & ended.any(axis=0) & (total < 1 - WEIGHT_TOLERANCE)
        if short.any():
            gone = [code for code, some in zip(codes, ended.any(axis=1)) if some]
            section.warn("weights of ended members", f"{name}: weights sum to less than 1 on {int(short.sum())} days, least "
                         f"{total[short].min():.4f}, because bars of {len(gone)} members end before their membership: "
                         f"{named(gone)}")
        wrong = there & ~without & ~short & (np.abs(total - 1) > WEIGHT_TOLERANCE)
        about = store.metadata.get("weights", {}).get(name, {})
        cells = max(about.get("member_days", 0), 1)
        sources = {key: about.get(f"member_days_{key}", 0) / cells for key in ("official", "float_cap", "float_cap_unknown")}
        gap, error = _against_bars(store, name, codes, weight)
        section.figures[name] = {"days_wrong_sum": int(wrong.sum()), "days_without": int(without.sum()), "sources": sources,
                                 "return_over_index_bars": gap, "tracking_error": error,
                                 "derived_vs_official": about.get("derived_vs_official")}
        rows.append([name, int(wrong.sum()), int(without.sum()), *(percent(sources[key]) if about else "?" for key in sources),
                     *("-" if value is None else f"{100 * value:+.2f}" for value in (gap, error))])
        _warn_weights(section, store, name, total, wrong, without)
        _estimated(section, store, name, about, sources)
        if np.isfinite(weight[~member]).any():
            count = int(np.isfinite(weight[~member]).sum())
            section.warn("weights of non-members", f"{name} has weights on {count} stock-days of non-members")
    section.table(["index", "sum not 1", "no weights", "% official", "% float cap", "% cap unknown", "% a year", "tracking"],
                  rows)
    section.lines.append("days whose sum is not 1 or without weights; member-days by source; members' return minus that of the "
                         "index bars: % a year, deviation of it" if rows else "the store has no weights")
    for code, about in store.metadata.get("indices", {}).items():
        section.figures[code] = about
        if "against" in about:
            yearly, daily = 100 * about["annual_difference"], 100 * about["tracking_difference"]
            section.lines.append(f"{code}, made of the members, against {about['against']}: {yearly:+.2f} % a year, daily "
                                 f"differences of {daily:.3f} %")
    if rows:
        section.notes.append("index bars are price indices as a rule, adjusted stock prices carry dividends: an excess return "
                             "over them is flattered by the dividends, one to two points a year (column `% a year`)")
    return section


def _warn_weights(section: Section, store: StoreFiles, name: str, total, wrong, without) -> None:
    if wrong.any():
        worst = int(np.where(wrong, np.abs(total - 1), -1).argmax())
        section.warn("weights do not sum to 1", f"{name}: on {int(wrong.sum())} days, worst {store.days[worst]}: "
                     f"{total[worst]:.4f}")
    if without.any():
        days = store.days[without]
        section.warn("days without weights", f"{name}: {len(days)} days with members have no weight: {named(days)}")


def _estimated(section: Section, store: StoreFiles, name: str, about: dict, sources: dict) -> None:
    """Weights that are not official, by the metadata: when, from what, how far such estimates are from official ones."""
    spans = [f"{span['source'].replace('_', ' ')} {span['start']} to {span['end']}" for span in about.get("spans", ())
             if span["source"] in ("float_cap", "equal")]
    last, said = about.get("official_last"), []
    if about and sources["official"] < 1 - ESTIMATED:
        said.append(f"are estimated on {percent(1 - sources['official'])} % of the member-days (days without any official one: "
                    f"{', '.join(spans) or 'none'})")
        if sources["float_cap_unknown"]:
            said.append(f"{percent(sources['float_cap_unknown'])} % have no known float cap: the median of the day's members "
                        "stands in, equal weights where no member has one")
        for other, found in ((other, one.get("derived_vs_official") or {}) for other, one in store.metadata["weights"].items()):
            if found.get("dates"):
                said.append(f"estimates by float cap differ from the official weights of {other} by "
                            f"{100 * found['half_sum_mean']:.0f} % of the index ({found['dates']} dates)")
    if last and store.days[-1] - np.datetime64(last) > DRIFT_DAYS:
        said.append(f"drift with prices from {last}, the last official date, to {store.days[-1]}")
    if said and store.metadata.get("generated"):
        section.notes.append(f"{name}: weights {'; '.join(said)}")
    elif said:
        section.warn("weights estimated", f"{name}: weights {'; '.join(said)}")


def _against_bars(store: StoreFiles, name: str, codes: list, weight: np.ndarray):
    """Yearly mean and deviation of the members' weighted adjusted return minus that of the index bars; None without either."""
    code = INDEX_CODES.get(name)
    if code not in store.indices:
        return None, None
    at = np.searchsorted(store.codes, codes)
    previous = store.previous[at]
    close = np.take_along_axis(store.close[at], np.maximum(previous, 0), axis=1)
    move = np.where(store.traded[at] & (previous >= 0), store.close[at] / close - 1, 0)
    index = store.panel("close", [code])[0].astype(float)
    gap = np.nansum(weight[:, :-1] * move[:, 1:], axis=0) - (index[1:] / index[:-1] - 1)
    gap = gap[np.isfinite(gap) & np.isfinite(weight).any(axis=0)[:-1]]
    return (float(gap.mean() * YEAR), float(gap.std() * YEAR**0.5)) if len(gap) > 1 else (None, None)


def industries(store: StoreFiles) -> Section:
    """Number of industries in force per day."""
    section = Section("Industries")
    if "industry" not in store.fields:
        section.lines.append("the store has no industries: risk model and portfolios need them")
        return section
    values = store.panel("industry")
    values[~store.listed] = np.nan
    codes, number = np.unique(values, return_inverse=True)  # NaN is the last code
    known = np.isfinite(codes)
    there = np.zeros((len(store.days), len(codes)), dtype=bool)
    there[np.broadcast_to(np.arange(len(store.days)), values.shape), number.reshape(values.shape)] = True
    count = there[:, known].sum(axis=1)
    section.figures = {"fewest": int(count.min()), "most": int(count.max()), "expected": INDUSTRIES[1], "ever": int(known.sum())}
    section.lines.append(f"{count.min()} to {count.max()} industries in force per day, {known.sum()} codes in all (the "
                         f"classification has {INDUSTRIES[1]} since 2021, 28 before)")
    wrong = (count < INDUSTRIES[0]) | (count > INDUSTRIES[1])
    if wrong.any():
        days = store.days[wrong]
        section.warn("industry count", f"{count[wrong].min()} to {count[wrong].max()} industries are in force on {len(days)} "
                     f"days ({days[0]} to {days[-1]}), the classification has {INDUSTRIES[1]}: take those in force on the day")
    elif known.sum() > count.max():
        section.notes.append(f"the classification changed: {known.sum()} codes in all, take those in force on the day")
    return section


def survivors(store: StoreFiles) -> Section:
    """Stocks whose bars end early: as many as a market delists, or none (the store holds survivors only), and which by name."""
    section, bounds = Section("Survivors and stocks that stop"), store.bounds
    trading = bounds[:, 1] >= 0
    last = store.days[np.where(trading, bounds[:, 1], 0)]
    ended = np.flatnonzero(trading & (last < store.days[-1] - ENDED_DAYS))
    stock_years = float((bounds[trading, 1] - bounds[trading, 0] + 1).sum() / YEAR)
    rate = len(ended) / max(stock_years, 1e-9)
    delisted = _delisted(store)
    unexplained = [k for k in ended if delisted is not None and not (
        store.codes[k] in delisted and delisted[store.codes[k]] - last[k] < 2 * ENDED_DAYS)]
    stops = [f"{store.codes[k]} ({last[k]})" for k in ended]
    section.figures = {"stocks": int(trading.sum()), "ended": len(ended), "rate_a_year": rate,
                       "stops": {store.codes[k]: str(last[k]) for k in ended}, "delisting_dates_known": delisted is not None}
    section.lines.append(f"{len(ended)} of {int(trading.sum())} stocks end more than 60 days before {store.days[-1]}: "
                         f"{100 * rate:.2f} % a year (a real market delists about 0.5 to 1 %)")
    too_few = USUAL_RATE * stock_years >= 3 and rate < TOO_FEW * USUAL_RATE
    if too_few:
        section.warn("survivorship", f"next to no stock is ever delisted ({len(ended)} of {int(trading.sum())} in "
                     f"{stock_years:.0f} stock-years): the store holds today's survivors, results on it are flattered")
    wrong = [f"{store.codes[k]} ({last[k]})" for k in unexplained] if delisted is not None else stops if too_few else []
    if wrong:
        section.warn("stocks that stop", f"{len(wrong)} stocks stop early (last trade) without a delisting on record: "
                     f"{named(wrong, 20)}")
    elif stops:
        section.notes.append(f"stocks that end early: {named(stops, 10)}")
    return section


def _delisted(store: StoreFiles) -> Optional[dict]:
    """Last days by the kept table `instruments`; None where the store has none."""
    file = store.path / "tables" / "instruments.parquet"
    if not file.is_file():
        return None
    table = pd.read_parquet(file)
    if "delist_date" not in table:
        return None
    table = table[table["delist_date"].notna()]
    return dict(zip(table["instrument"], table["delist_date"].to_numpy().astype("datetime64[D]")))
