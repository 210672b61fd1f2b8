"""Groups of runs that differ in their seeds: mean and spread of their figures, and paired tests of their daily correlations.

Axis letters: s run (seed) of a group, t day.
"""

from __future__ import annotations

from typing import Mapping, Sequence

import numpy as np
import pandas as pd

from qlib_ext.errors import ShapeError
from qlib_ext.report.metrics import daily_ic, daily_rank_ic, newey_west_t

PAIRED = ("IC", "RankIC")


def daily_correlations(table: pd.DataFrame, name: str, min_pairs: int) -> pd.DataFrame:
    """IC and RankIC of one score column on every day.

    Args:
        table: rows on (datetime, instrument), columns "label" and scores, all finite.
        min_pairs: days with fewer pairs are NaN, and so are days with a constant score or label.

    Returns:
        Frame by day, columns ``IC`` and ``RankIC``.
    """
    day, days = pd.factorize(table.index.get_level_values("datetime"), sort=True)
    score, label = table[name].to_numpy(), table["label"].to_numpy()
    values = (daily_ic(score, label, day, min_pairs), daily_rank_ic(score, label, day, min_pairs))
    return pd.DataFrame(dict(zip(PAIRED, values)), index=days)


def group_figures(figures: pd.DataFrame, groups: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Mean and standard deviation (ddof 1) over the runs of each group.

    Args:
        figures: a row a run, a column a figure, NaN where a run does not have it.
        groups: group -> names of its runs.

    Returns:
        A row a group: ``runs`` (how many), and for each figure its mean and ``<figure> std``. A figure that some run of the group
        lacks is NaN; so is the deviation of a single run.
    """
    rows = {}
    for group, names in groups.items():
        part = figures.loc[list(names)]
        rows[group] = {"runs": len(part)}
        for name in figures.columns:
            rows[group][name] = part[name].mean(skipna=False)
            rows[group][f"{name} std"] = part[name].std(ddof=1, skipna=False)
    return pd.DataFrame.from_dict(rows, orient="index")


def paired_difference(group: np.ndarray, base: np.ndarray, lag: int) -> dict[str, float]:
    """Mean over days of (daily figure of the group - that of the base), and its Newey-West t; both are means over runs first.

    Args:
        group, base: ``[s, t]`` daily figures on the same days; a day counts where no run of either is NaN.
        lag: of the autocovariances; labels that overlap for d days need d - 1 or more.

    Returns:
        ``difference``, ``t`` (NaN for a constant difference or fewer than two days), ``days``.

    Raises:
        ShapeError: other days. DataError: a lag that is negative, or not below the number of days.
    """
    group, base = np.atleast_2d(np.asarray(group, float)), np.atleast_2d(np.asarray(base, float))
    if group.shape[1] != base.shape[1]:
        raise ShapeError(f"group [s, t] {group.shape} and base {base.shape} must have the same days")
    difference = group.mean(axis=0) - base.mean(axis=0)
    known = difference[~np.isnan(difference)]
    return {"difference": float(known.mean()) if len(known) else float("nan"), "t": newey_west_t(known, lag), "days": len(known)}


def paired_table(daily: Mapping[str, pd.DataFrame], groups: Mapping[str, Sequence[str]], baseline: str, lag: int) -> pd.DataFrame:
    """`paired_difference` of every other group against the baseline.

    Args:
        daily: run -> `daily_correlations`, all on the same days.
        groups: group -> names of its runs.
        baseline: one of the groups.

    Returns:
        A row a group: ``IC difference``, ``IC t``, ``RankIC difference``, ``RankIC t``, ``paired days``.

    Raises:
        DataError: see `paired_difference`.
    """
    rows = {}
    for group in groups:
        if group == baseline:
            continue
        rows[group] = {}
        for name in PAIRED:
            mine, other = (np.stack([daily[run][name].to_numpy() for run in groups[one]]) for one in (group, baseline))
            found = paired_difference(mine, other, lag)
            rows[group].update({f"{name} difference": found["difference"], f"{name} t": found["t"], "paired days": found["days"]})
    columns = [f"{name} {what}" for name in PAIRED for what in ("difference", "t")] + ["paired days"]
    return pd.DataFrame.from_dict(rows, orient="index").reindex(columns=columns)
