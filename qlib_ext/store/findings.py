"""What the parts of the doctor hand back: figures, readable lines, notes and warnings under one title."""

from dataclasses import dataclass, field
from typing import Dict, Iterable, List, Sequence

import numpy as np

ADVICE = {
    "damaged files": "write these files again, or ingest again",
    "folders not lower case": "rename them to lower case",
    "indices among stocks": "give the dataset a `universe`, or the handler the members of an index",
    "spelling of codes": "write all instruments files in one case",
    "look-ahead rows": "supply values as they were known in time, or take the field as unknown there",
    "malformed codes": "correct the codes in the table and ingest again, if their stocks matter",
    "no members": "ingest table membership with this index, or use another universe",
    "too few members": "supply bars of the missing members, or begin the test later",
    "members lack": "supply bars of the missing members, or say beside the results that they lack",
    "too many members": "correct spans of membership that end too late",
    "members without bars": "supply their bars",
    "membership dates": "correct the spans of table membership by the published changes, never by results",
    "no change of members": "supply the missing list",
    "no weights": "ingest table index_weights, or float_shares_monthly to estimate them",
    "weights estimated": "supply official weights (table index_weights), or take what is built on these as approximate",
    "weights do not sum to 1": "correct the weights of these days",
    "weights of ended members": "end the spans of table membership with the listing, or supply the later bars",
    "days without weights": "supply weights, or leave these days out",
    "weights of non-members": "make weights and membership of one source",
    "index absent": "supply its bars, or name other indices",
    "index incomplete": "supply the missing bars",
    "index without volume": "supply its volumes, or name other indices",
    "no history": "start training and its windows after the first stock bars",
    "calendar hole": "supply the bars of these days, and ingest again",
    "weekend": "remove these days",
    "thin day": "supply the missing bars, or leave these days out",
    "jump": "check factors and prices of these days at the source; a relisting is no return anyone could earn",
    "outside limits": "check the prices and ST flags of these days at the source",
    "prices": "correct these bars at the source",
    "vwap": "compute it again (--vwap typical), or check the unit of amount and volume",
    "stale prices": "mark these days as suspended (volume 0)",
    "units": "convert to shares and CNY and ingest again (--columns takes scales)",
    "ST unknown": "supply is_st for these years, or begin and end the test where it is known",
    "stale fundamentals": "supply the missing reports",
    "industry count": "supply the spans of the missing industries, or end those of the old classification",
    "survivorship": "add the bars of delisted stocks, or say beside every result that it is flattered",
    "stocks that stop": "supply their later bars, or their delist_date in table instruments",
    "ETFs without baskets": "ingest their baskets in table etf_baskets; ETF rotation leaves them out until then",
    "baskets do not sum to 1": "give all members of these baskets, as fractions",
    "basket members without bars": "supply the bars of these members, or know that ETFs with less than 80 % covered are left out",
    "old baskets": "supply later baskets; ETF rotation leaves an ETF out while its last basket is too old",
    "ETFs without an index": "give tracked_index and etf_class in table instruments",
    "coverage drop": "leave the field out of models for this board, or end the test before the drop",
    "board without a field": "leave the field out of models for this board, or supply it",
    "intraday fields": "run `python -m qlib_ext.store build-intraday` again",
    "field absent": "supply the columns or tables they are made of if you use what needs them"}


@dataclass
class Section:
    """One part of a report: `figures` for machines, `lines` for people, `notes`, and `warnings` as {kind, text, advice}."""

    title: str
    figures: dict = field(default_factory=dict)
    lines: List[str] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)
    warnings: List[Dict[str, str]] = field(default_factory=list)

    def warn(self, kind: str, text: str) -> None:
        """Add a warning; `kind` is a key of `ADVICE`, the text says what, where, and what follows."""
        self.warnings.append({"kind": kind, "text": text, "advice": ADVICE[kind]})

    def table(self, header: Sequence[str], rows: Sequence[Sequence]) -> None:
        """Add rows as aligned columns, one item of `lines`; nothing where there are no rows."""
        if not rows:
            return
        cells = [[str(cell) for cell in row] for row in [header, *rows]]
        widths = [max(len(row[k]) for row in cells) for k in range(len(header))]
        self.lines.append("\n".join("  ".join([row[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]) for row in cells))


def percent(share: float) -> str:
    """A share as whole percent, `-` where it is unknown; never 100 unless nothing lacks, never 0 unless nothing is there."""
    if not np.isfinite(share):
        return "-"
    return str(100 if share >= 1 else min(max(round(100 * share), 1), 99) if share > 0 else 0)


def named(items: Iterable, most: int = 5) -> str:
    """The first few of a list, and how many others there are."""
    items = [str(item) for item in items]
    return ", ".join(items[:most]) + (f" and {len(items) - most} others" if len(items) > most else "")


def year_span(years: Sequence[int]) -> str:
    """Years in order, runs joined: 2018-2020, 2023."""
    years, runs = sorted(int(year) for year in years), []
    for year in years:
        if runs and year == runs[-1][1] + 1:
            runs[-1][1] = year
        else:
            runs.append([year, year])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
