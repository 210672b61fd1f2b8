"""What the doctor finds in ETFs: who has baskets, what they sum to, how old they get, whose members have no bars."""

from typing import Optional

import numpy as np
import pandas as pd

from qlib_ext.store.findings import Section, named
from qlib_ext.store.reading import StoreFiles
from qlib_ext.store.schema import BASKET_DAYS

SUMS = (0.9, 1.02)  # a part in cash is usual


def etfs(store: StoreFiles) -> Section:
    """ETFs, the indices they track, and their baskets: sums, ages, members without bars."""
    section = Section("ETFs and their baskets")
    spans = store.spans("etf") if "etf" in store.universes else pd.DataFrame(columns=["code", "start", "end"])
    section.figures = {"etfs": int(spans["code"].nunique())}
    if not len(spans):
        section.lines.append("no ETFs")
        return section
    _indices(section, store, spans)
    baskets = _kept(store, "etf_baskets")
    if baskets is None:
        section.notes.append("the store keeps no table etf_baskets: ETF rotation is refused")
        return section
    baskets["date"] = baskets["date"].to_numpy().astype("datetime64[D]")
    absent = sorted(set(spans["code"]) - set(baskets["instrument"]))
    section.figures["without_baskets"] = absent
    if absent:
        section.warn("ETFs without baskets", f"{len(absent)} of {spans['code'].nunique()} ETFs have no basket: {named(absent)}")
    _sums(section, baskets)
    _ages(section, store, spans, baskets)
    _members(section, store, baskets)
    return section


def _kept(store: StoreFiles, name: str) -> Optional[pd.DataFrame]:
    file = store.path / "tables" / f"{name}.parquet"
    return pd.read_parquet(file) if file.is_file() else None


def _indices(section: Section, store: StoreFiles, spans: pd.DataFrame) -> None:
    """How many indices the ETFs track, and which of them say none."""
    codes = sorted(set(spans["code"]))
    table = _kept(store, "instruments")
    about = pd.DataFrame(index=codes) if table is None else table.set_index("instrument").reindex(codes)
    about = about.reindex(columns=["tracked_index", "etf_class"]).fillna("")
    tracked = about["tracked_index"][about["tracked_index"] != ""]
    section.figures["indices"] = int(tracked.nunique())
    section.lines.append(f"{len(codes)} ETFs on {tracked.nunique()} indices; "
                         + ", ".join(f"{(about['etf_class'] == name).sum()} {name or 'of no class'}" for name in ("sector", "broad", "")))
    silent = about.index[(about == "").any(axis=1)].tolist()
    if silent and len(silent) < len(codes):  # where no ETF has them nobody meant to rotate
        section.warn("ETFs without an index", f"{len(silent)} ETFs have no tracked_index or no etf_class: {named(silent)}; without "
                     "an index each stands for one of its own, without a class it is in no pool of a class")
    elif silent:
        section.notes.append("no ETF has both tracked_index and etf_class: ETF rotation by class is refused")


def _sums(section: Section, baskets: pd.DataFrame) -> None:
    """Baskets whose weights sum to something else than 1."""
    sums = baskets.groupby(["instrument", "date"])["weight"].sum()
    section.figures["sums"] = {"baskets": len(sums), "least": float(sums.min()), "most": float(sums.max())}
    section.lines.append(f"{len(sums)} baskets of {baskets['instrument'].nunique()} ETFs, {baskets['date'].min():%Y-%m-%d} to "
                         f"{baskets['date'].max():%Y-%m-%d}, weights sum to {sums.min():.3f} to {sums.max():.3f}")
    off = sums[(sums < SUMS[0]) | (sums > SUMS[1])]
    if len(off):
        first = [f"{code} on {date:%Y-%m-%d} ({total:.3f})" for (code, date), total in off.items()]
        section.warn("baskets do not sum to 1", f"weights of {len(off)} of {len(sums)} baskets sum to less than {SUMS[0]} or more "
                     f"than {SUMS[1]}: {named(first)}")


def _ages(section: Section, store: StoreFiles, spans: pd.DataFrame, baskets: pd.DataFrame) -> None:
    """ETFs that go on for longer than `BASKET_DAYS` after a basket without another one."""
    dates, old = baskets.drop_duplicates(["instrument", "date"]).groupby("instrument")["date"], {}
    ends = spans.groupby("code")["end"].max()
    for code, days in dates:
        if code in ends:
            days = np.append(np.sort(days.to_numpy()), ends[code].to_numpy()).astype("datetime64[D]")
            gaps = np.diff(days).astype(int)
            if gaps.max() > BASKET_DAYS:
                old[code] = (str(days[gaps.argmax()]), int(gaps.max()))
    section.figures["old"] = {code: {"date": date, "days": days} for code, (date, days) in old.items()}
    if old:
        section.warn("old baskets", f"{len(old)} ETFs go on for more than {BASKET_DAYS} days without a new basket: "
                     + named(f"{code} {days} days after {date}" for code, (date, days) in old.items()))


def _members(section: Section, store: StoreFiles, baskets: pd.DataFrame) -> None:
    """Members that are no stocks of the store, and the largest part of a basket they make."""
    lost = baskets[~baskets["member"].isin(store.codes)]
    codes = sorted(set(lost["member"]))
    section.figures["members_without_bars"] = codes
    if codes:
        parts = lost.groupby(["instrument", "date"])["weight"].sum()
        code, date = parts.idxmax()
        section.warn("basket members without bars", f"{len(codes)} members of baskets have no bars: {named(codes)}; at most "
                     f"{100 * parts.max():.1f} % of a basket ({code} on {date:%Y-%m-%d})")
