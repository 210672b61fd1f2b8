"""Tables of `incremental_evidence.py`: what each protocol's scores are worth over seeds, and paired tests. No Qlib, no store."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Mapping

import pandas as pd

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.metrics import REPORT_MIN_PAIRS, summarize
from qlib_ext.report.paired import daily_correlations, group_figures, paired_table

FIGURES = ("IC", "ICIR", "RankIC", "RankICIR")
LAG = 5
"""Of Newey and West: the label spans five days."""


@dataclass
class Cell:
    """One protocol with one seed: `record` is its line of JSON, `scores` has `score` and the raw `label` by (datetime, instrument)."""

    record: dict
    scores: pd.DataFrame

    @property
    def row(self) -> str:
        """The table's row it belongs to."""
        return f"{self.record['label']}.{self.record['protocol']}"


def read_cells(folder: str | Path) -> list[Cell]:
    """The finished cells of a folder, in order of their names.

    Raises:
        DataError: none, or cells that do not score the same pairs with the same raw labels.
    """
    records = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(Path(folder).glob("*.json"))
               if file.with_suffix(".parquet").is_file()]                # figures.json of an earlier report is no cell
    cells = [Cell(record, pd.read_parquet(Path(folder, f"{record['cell']}.parquet"))) for record in records]
    if not cells:
        raise DataError(f"{folder} has no finished cell: run protocols into it first")
    first = cells[0]
    for cell in cells[1:]:
        if not cell.scores.index.equals(first.scores.index) or not cell.scores["label"].equals(first.scores["label"]):
            raise DataError(f"{cell.record['cell']} and {first.record['cell']} do not score the same stocks on the same days with the same "
                            "labels: give every store and universe a folder of its own")
    return cells


def figures(frame: pd.DataFrame, min_pairs: int = REPORT_MIN_PAIRS) -> dict[str, float]:
    """`FIGURES` of a frame of scores, and the days that count (those with `min_pairs` labelled stocks)."""
    per_day = daily_correlations(frame, "score", min_pairs)
    plain, rank = summarize(per_day["IC"]), summarize(per_day["RankIC"])
    return {"IC": plain["mean"], "ICIR": plain["icir"], "RankIC": rank["mean"], "RankICIR": rank["icir"], "days": plain["n"]}


def averaged(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """One frame whose score is the mean over seeds of the scores, z-scored over each day's stocks."""
    total = 0.0
    for frame in frames:
        by_day = frame["score"].groupby(level="datetime")
        spread = by_day.transform("std", ddof=0)
        total = total + ((frame["score"] - by_day.transform("mean")) / spread.where(spread > 0, 1.0)).to_numpy()
    return frames[0].assign(score=total / len(frames))


def by_row(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells of each row of the table, a seed each.

    Raises:
        DataError: a row with a seed twice, or with different configurations.
    """
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.row, []).append(cell)
    for name, members in rows.items():
        seeds = [cell.record["seed"] for cell in members]
        if len(set(seeds)) != len(seeds) or len({cell.record["digest"] for cell in members}) > 1:
            raise DataError(f"{name}: seeds {seeds} are not runs of one configuration, a seed each: use another --label or --out")
    return rows


def table(rows: Mapping[str, list[Cell]], min_pairs: int = REPORT_MIN_PAIRS) -> pd.DataFrame:
    """A row for each protocol: mean and standard deviation over seeds (ddof 1) of `FIGURES`, those of the averaged score, and means of
    the validation figures, of the norm of the adaptation (NaN: it has none), of the best epoch and of seconds."""
    groups = {name: [cell.record["cell"] for cell in cells] for name, cells in rows.items()}
    own = {cell.record["cell"]: figures(cell.scores, min_pairs) for cells in rows.values() for cell in cells}
    found = group_figures(pd.DataFrame.from_dict(own, orient="index")[list(FIGURES)], groups).rename(columns={"runs": "seeds"})
    for name, cells in rows.items():
        together = figures(averaged([cell.scores for cell in cells]), min_pairs)
        records = pd.DataFrame([cell.record for cell in cells])
        line = {"IC averaged": together["IC"], "RankIC averaged": together["RankIC"], "days": together["days"], **{
            key.replace("_", " "): pd.to_numeric(records[key], errors="coerce").mean()
            for key in ("valid_ic", "valid_rank_ic", "adaptation", "best_epoch", "seconds")}}
        found.loc[name, list(line)] = list(line.values())
    return found


def paired(rows: Mapping[str, list[Cell]], baselines: Iterable[str], min_pairs: int = REPORT_MIN_PAIRS, lag: int = LAG) -> pd.DataFrame:
    """Every row less each baseline: the mean daily difference of IC and RankIC, both averaged over seeds, with Newey-West t.

    Raises:
        ConfigError: a baseline that is no row.
    """
    unknown = sorted(set(baselines) - set(rows))
    if unknown:
        raise ConfigError(f"baseline {unknown} is not there; the rows are {sorted(rows)}")
    groups = {name: [cell.record["cell"] for cell in cells] for name, cells in rows.items()}
    per_day = {cell.record["cell"]: daily_correlations(cell.scores, "score", min_pairs) for cells in rows.values() for cell in cells}
    return pd.concat({name: paired_table(per_day, groups, name, lag) for name in baselines}, names=["less", "row"])


def write_report(out: str | Path, notes: list[str], figures: pd.DataFrame, tests: pd.DataFrame) -> str:
    """The text of a report; beside it in `out` as report.txt, table.csv, paired.csv and figures.json."""
    text = "\n".join([*notes, "", as_text(figures), "", f"paired, daily, averaged over seeds; t of Newey and West, lag {LAG}:",
                      as_text(tests)])
    content = {"notes": notes, "table": figures.to_dict("index"), "paired": tests.reset_index().to_dict("records")}
    bodies = {"report.txt": text + "\n", "figures.json": json.dumps(content, default=float, indent=1) + "\n",
              "table.csv": figures.to_csv(), "paired.csv": tests.to_csv()}
    for name, body in bodies.items():
        aside = Path(out, f".{name}.{os.getpid()}")
        aside.write_text(body, encoding="utf-8")
        aside.replace(Path(out, name))
    return text


def heading(out: str | Path, when: str, figures: pd.DataFrame) -> str:
    """The first line of a report."""
    days = int(figures["days"].max())
    return f"{Path(out).name}, {when}: {days} test days; mean and spread over seeds; averaged: of the seeds' mean score"


def as_text(frame: pd.DataFrame) -> str:
    """The table as text: four decimals, two where that is enough."""
    coarse = {name: "{:.2f}".format for name in frame if name.endswith(" t") or name.startswith(("IR", "ICIR", "RankICIR"))}
    whole = {name: "{:.0f}".format for name in frame if name in ("seeds", "days", "seconds")}
    return frame.to_string(formatters={**coarse, **whole}, float_format="{:.4f}".format, na_rep="-")
