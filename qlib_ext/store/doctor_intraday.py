"""What the doctor says of the fields of `build-intraday`: of which days and how they were made, and how many values they have."""

import numpy as np

from qlib_ext.store.findings import Section, named, percent
from qlib_ext.store.metadata import is_intraday
from qlib_ext.store.reading import StoreFiles

LEAST_SHARE = 0.5


def intraday(store: StoreFiles) -> Section:
    """Days, options and regressors of the intraday fields, and the share of traded stock-days of those days with a value."""
    section, about = Section("Intraday fields"), store.metadata.get("intraday")
    found = [name for name in store.fields if is_intraday(name)]
    if about is None:
        section.lines.append("the store has no intraday fields (`build-intraday` adds them)" if not found else
                             f"{len(found)} fields named as intraday ones, without a word in the metadata")
        return section
    first, last, count = about["days"]
    section.figures = {"days": about["days"], "options": about["options"], "regressors": about["regressors"]}
    section.lines.append(f"{count} days, {first}..{last}, of table {about['table']}; means over {about['days_mean']} days; {len(found)} "
                         f"fields, {sum(name.startswith('hi_') for name in found)} of them inputs (hi_)")
    section.lines.append("orthogonalised on " + (", ".join(f"{name} ({days} days)" for name, days in about["regressors"].items()) or
                                                 "a constant: the store has no industry, cap or prices"))
    for name, why in about.get("left_out", {}).items():
        section.notes.append(f"{name} is not there: {why}")
    inside = (store.days >= np.datetime64(first)) & (store.days <= np.datetime64(last))
    cells = store.traded & inside
    share = {name: float((np.isfinite(store.panel(name)) & cells).sum() / max(cells.sum(), 1)) for name in found}
    section.figures["known"] = share
    section.table(["field", "% known"], [[name, percent(value)] for name, value in share.items() if name.startswith("hf_")])
    thin = [f"{name} ({percent(value)} %)" for name, value in share.items() if value < LEAST_SHARE]
    if thin:
        section.notes.append(f"fewer than half of the traded stock-days of these days have {named(thin)}")
    lacks = sorted(set(about["fields"]) - set(found))
    if lacks:
        section.warn("intraday fields", f"no stock has {named(lacks)} any more")
    behind = int((store.calendar > np.datetime64(last)).sum())
    if behind:
        section.warn("intraday fields", f"they end on {last}, {behind} days before the calendar: what is built on them is unknown there")
    return section
