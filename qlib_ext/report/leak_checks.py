"""Leak checks: what each one measures, where its limit lies and what passes, on plain arrays and Series.

The limits are this project's choice. A check that passes has found nothing on its sample; it proves no more.
Axis letters: r row (day, stock), t day.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Mapping, Optional, Sequence

import numpy as np
import pandas as pd

from qlib_ext.errors import DataError
from qlib_ext.report.metrics import daily_ic, newey_west_t

CHECKS = ("segment_end", "shuffled_labels", "delayed_features", "future_corrupted", "too_good")
CONVENTION = ("passed: True, False, or empty where a check could not be run. IC: mean over days of the correlation of score and raw label; "
              "standard errors by Newey and West over the days on which labels overlap. A check that passes found nothing on its sample.")
ERRORS = 3.0
"""Standard errors by which a figure must differ to count."""
LARGEST_IC = 0.10
"""On labels over one to five days of A-shares, a higher test IC is a leak until the opposite is shown: with the leaks mended, published
figures of 0.14 and more fell to 0.03 to 0.05."""
SHORT_LABEL = 5
CHANCE_IC = 0.03
"""|IC| that a function of honest features without any sense in it may have: most features have some."""
SMALL_IC = 0.03
COLLAPSE, SUSPECT = 0.2, 0.5
"""Shares of its IC that a score keeps when it is one day older: below the first it fails, below the second there is a warning."""
LONGEST_CUT = 60
"""Days before the furthest cut of a segment: scoring them twice is what a check of one cut costs."""


@dataclass(frozen=True)
class Verdict:
    """`passed` None: not run, and `what` says why; `what`: what was done and seen; `sample`: on what; `warning`: passed, but look."""

    passed: Optional[bool]
    what: str
    sample: str = ""
    figure: float = float("nan")
    limit: float = float("nan")
    warning: bool = False


def checks_frame(verdicts: Mapping[str, Verdict]) -> pd.DataFrame:
    """A row a check: passed (True, False, NaN not run), figure, limit, what, sample."""
    rows = {name: {"passed": np.nan if v.passed is None else bool(v.passed), "figure": float(v.figure), "limit": float(v.limit),
                   "what": v.what, "sample": v.sample} for name, v in verdicts.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("check")
    return frame.astype({"passed": object})


# ---- shared -------------------------------------------------------------------------------------------------------------------
def daily_ics(table: pd.DataFrame, min_pairs: int, constant: float = float("nan")) -> pd.DataFrame:
    """IC of every column but "label" on every day.

    Args:
        table: rows on (datetime, instrument), NaN = unknown; only rows without NaN count, the same for all columns.
        min_pairs: days with fewer rows are left out.
        constant: what a day counts whose scores are all alike; NaN leaves it out.

    Raises:
        DataError: no day has so many.
    """
    table = table.astype(np.float64).dropna()
    day, days = pd.factorize(table.index.get_level_values("datetime"), sort=True)
    label, enough = table["label"].to_numpy(), np.bincount(day, minlength=len(days)) >= min_pairs
    values = {name: daily_ic(table[name].to_numpy(), label, day, min_pairs, len(days)) for name in table if name != "label"}
    found = pd.DataFrame(values, index=days)[enough].fillna(constant).dropna(how="all")
    if not len(found):
        raise DataError(f"no day has {min_pairs} stocks with a raw label and scores that differ")
    return found


def standard_error(daily: np.ndarray, lag: int) -> float:
    """Newey-West standard error of the mean of a daily series `[t]` (NaN left out); NaN with fewer than two days."""
    known = np.asarray(daily, dtype=np.float64)
    known = known[~np.isnan(known)]
    if known.size < 2 or known.max() == known.min():
        return float("nan")
    return 1.0 / newey_west_t(known - known.mean() + 1.0, min(lag, known.size - 1))


def label_days(expression: Optional[str]) -> Optional[int]:
    """Trading days over which a label is a return: 5 for ``Ref($close, -6) / Ref($close, -1) - 1``; None where it looks ahead nowhere."""
    ahead = [int(days) for days in re.findall(r"Ref\([^()]*,\s*-\s*(\d+)\s*\)", expression or "")]
    if not ahead:
        return None
    return max(ahead) - (min(ahead) if len(ahead) > 1 else 0) or None


def permutation(group: np.ndarray, known: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Positions `[r]` such that `values[positions]` is shuffled within each group among the known rows; the others stay.

    Args:
        group: `[r]` integers, e.g. days. known: `[r]` bool.
    """
    source, rows = np.arange(len(group)), np.flatnonzero(known)
    source[rows[np.argsort(group[rows], kind="stable")]] = rows[np.lexsort((draw.random(len(rows)), group[rows]))]
    return source


def largest_difference(whole: pd.Series, part: pd.Series) -> float:
    """Largest |difference| of two scores on (datetime, instrument), over the largest |score|; infinite where only one knows a pair."""
    whole, part = whole.dropna(), part.dropna()
    if not whole.index.sort_values().equals(part.index.sort_values()):
        return float("inf")
    if not len(whole):
        return 0.0
    left, right = whole.sort_index().to_numpy(np.float64), part.sort_index().to_numpy(np.float64)
    if np.array_equal(left, right):
        return 0.0
    with np.errstate(invalid="ignore"):
        found = float(np.abs(left - right).max() / max(np.abs(left).max(), np.abs(right).max()))
    return found if np.isfinite(found) else float("inf")                             # infinite scores, not all the same


def first_few(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _shown(value: float) -> str:
    return f"{value:.4f}"


# ---- the end of a segment -----------------------------------------------------------------------------------------------------
def cut_points(days: int, cuts: int, draw: np.random.Generator, longest: int = LONGEST_CUT) -> list[int]:
    """Numbers of days after which a segment of `days` days is made to end, ascending, 3 to `longest`; fewer where it is short."""
    possible = np.arange(3, min(days - 1, longest) + 1)
    return sorted(draw.choice(possible, min(cuts, len(possible)), replace=False).tolist()) if len(possible) else []


def judge_segment_end(differences: Mapping[str, float], tolerance: float, sample: str) -> Verdict:
    """Passes where no difference (comparison -> `largest_difference`) exceeds the tolerance."""
    worst = max(differences, key=differences.get)
    figure = differences[worst]
    if figure <= tolerance:
        alike = "bit-equal" if figure == 0 else f"the same within {figure:.1e} of the largest score"
        return Verdict(True, f"Scores of the first days are {alike} when the test segment ends earlier.", sample, figure, tolerance)
    seen = "other stocks are scored" if np.isinf(figure) else f"scores change by up to {figure:.1e} of the largest score"
    return Verdict(False, f"Scores of a day depend on later days being there: {seen} ({worst}). Look for statistics or batches that run "
                   "over the whole segment.", sample, figure, tolerance)


# ---- shuffled labels ----------------------------------------------------------------------------------------------------------
def judge_shuffled(daily: Mapping[str, np.ndarray], lag: int, sample: str) -> Verdict:
    """Passes where every |mean IC| (name -> daily IC) is within ``CHANCE_IC + 3 standard errors``; the worst is shown."""
    figures = {name: (abs(float(np.nanmean(values))), float(CHANCE_IC + ERRORS * np.nan_to_num(standard_error(values, lag))))
               for name, values in daily.items()}
    worst = max(figures, key=lambda name: figures[name][0] - figures[name][1])
    figure, limit = figures[worst]
    if figure <= limit:
        return Verdict(True, f"The model, trained anew on labels shuffled within each day, does not predict: |IC| {_shown(figure)} with "
                       f"{worst}, limit {CHANCE_IC} + 3 standard errors.", sample, figure, limit)
    return Verdict(False, f"Trained on labels shuffled within each day, which teach nothing, the model predicts all the same: |IC| "
                   f"{_shown(figure)} with {worst}. Labels reach the scores on another way: look at features, and at what predict reads.",
                   sample, figure, limit)


# ---- delayed inputs -----------------------------------------------------------------------------------------------------------
def delayed(score: pd.Series, days: np.ndarray, delay: int) -> pd.Series:
    """Every score `delay` trading days later: what the model would say on a day with all that it reads as old as that.

    Args:
        score: on (datetime, instrument). days: the trading days, datetime64[D], ascending; scores of its last days fall away.
    """
    known = score.index.get_level_values("datetime").to_numpy().astype("datetime64[D]")
    place = np.searchsorted(days, known) + delay
    kept = place < len(days)
    later = pd.DatetimeIndex(days[place[kept]].astype("datetime64[ns]"))
    index = pd.MultiIndex.from_arrays([later, score.index.get_level_values("instrument")[kept]], names=["datetime", "instrument"])
    return pd.Series(score.to_numpy()[kept], index=index, name=score.name)


def judge_delayed(daily: Sequence[np.ndarray], lag: int, days: Optional[int], sample: str) -> Verdict:
    """Fails where the IC collapses with inputs one day older.

    A label over h days shares h - 1 of them with that of the day before, so that a forecast of its span keeps most of its IC with inputs
    one day old; what a look at the next bar tells is lost whole. Fails where IC_0 > max(0.03, 3 standard errors), IC_1 < 0.2 IC_0 and the
    daily difference is more than 3 standard errors above 0; warns where IC_1 < 0.5 IC_0. Labels over one day share none: an honest
    forecast of tomorrow may be worth nothing a day later, so IC_0 must be above 0.10 to fail.

    Args:
        daily: daily IC `[t]` with inputs of the day, one day older and so on, on the same days.
        days: h; None = unknown, taken as several.
    """
    now, then = np.asarray(daily[0]), np.asarray(daily[1])
    mean = [float(np.nanmean(values)) for values in daily]
    short = days == 1
    least = max(LARGEST_IC if short else SMALL_IC, ERRORS * np.nan_to_num(standard_error(now, lag)))
    limit, figure = COLLAPSE, mean[1] / mean[0] if mean[0] else float("nan")
    said = f"IC with inputs of the day, {', '.join(_days_older(k) for k in range(1, len(mean)))}: {', '.join(map(_shown, mean))}"
    if mean[0] <= least:
        return Verdict(True, f"{said}; too small (limit {_shown(least)}) for a collapse to say anything.", sample, figure, limit)
    lost = float(np.nanmean(now - then)) > ERRORS * np.nan_to_num(standard_error(now - then, lag))
    if figure < COLLAPSE and lost:
        return Verdict(False, f"{said}: it collapses with inputs one day older, as if it came from the next day's bar. Look for features "
                       "that look ahead by a day.", sample, figure, limit)
    if figure < (COLLAPSE if short else SUSPECT):
        return Verdict(True, f"{said}: it fades fast; look whether some input is known only later.", sample, figure, limit, True)
    return Verdict(True, f"{said}: it fades as forecasts do.", sample, figure, limit)


def _days_older(count: int) -> str:
    return f"{count} day{'s' * (count > 1)} older"


# ---- a corrupted future -------------------------------------------------------------------------------------------------------
def changed(before: pd.DataFrame, after: pd.DataFrame) -> pd.Series:
    """Number of values of each column that are not the same (NaN is the same as NaN); rows that only one has count whole."""
    rows, columns = before.index.union(after.index), before.columns.union(after.columns, sort=False)
    left, right = (frame.reindex(index=rows, columns=columns).to_numpy() for frame in (before, after))
    other = ~((left == right) | (pd.isna(left) & pd.isna(right)))
    other |= ~(rows.isin(before.index) & rows.isin(after.index))[:, None]
    return pd.Series(other.sum(axis=0), index=columns)


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild gave, whose daily bars after a day t are noise.

    `inputs`: column -> changed values among the `values` compared, of days up to t; `later`: changed values of days after it;
    `score_difference`: `largest_difference` of the `scores` of all test days up to t.
    """

    day: str
    inputs: pd.Series
    values: int
    later: int
    score_difference: float
    scores: int


def judge_corrupted(found: Sequence[Rebuilt], tolerance: float, sample: str) -> Verdict:
    """Passes where no input up to t changed, and no score by more than the tolerance; the figure is the larger of the share of inputs and
    the difference of scores. Not run where the noise reached no input after t either: then nothing was put to the test."""
    leaks = pd.concat([one.inputs for one in found]).groupby(level=0, sort=False).sum()
    names = [str(name) for name in leaks.index[leaks > 0]]
    figure = max(max(one.inputs.sum() / max(one.values, 1), one.score_difference) for one in found)
    if names or figure > tolerance:
        what = f"the inputs {first_few(names)}" if names else "the scores"
        return Verdict(False, f"With the daily bars after a day t changed at random, {what} of days up to t change: they know the future.",
                       sample, figure, tolerance)
    blind = [one.day for one in found if not one.later]
    if blind:
        return Verdict(None, f"not run: noise in the daily bars after {', '.join(blind)} reached no input of the days after it; inputs "
                       "are not made of the store's daily bars", sample)
    return Verdict(True, f"With the daily bars after a day t changed at random and all inputs made anew, inputs and scores of days up to "
                   f"t stay; {sum(one.later for one in found)} input values of later days change.", sample, figure, tolerance)


# ---- too good -----------------------------------------------------------------------------------------------------------------
def judge_too_good(daily: np.ndarray, lag: int, days: Optional[int], sample: str, best: Optional[float] = None) -> Verdict:
    """Fails where |IC| exceeds 0.10 on a label over at most 5 days; on a generated market where it exceeds the best possible one.

    Args:
        daily: daily IC `[t]`.
        days: days of the label; None = unknown, taken as at most 5.
        best: IC of the true expectation on the same pairs; 0 for a market without signal, whose limit is 3 standard errors.
    """
    figure = abs(float(np.nanmean(daily)))
    if best is None and days is not None and days > SHORT_LABEL:
        return Verdict(None, f"not run: there is no common limit for labels over {days} days (IC {_shown(figure)})", sample, figure)
    if best is None:
        limit, against = LARGEST_IC, f"{LARGEST_IC:.2f}, more than labels over {days or 'one to five'} days of A-shares allow"
    elif best == 0:
        limit, against = ERRORS * standard_error(daily, lag), "3 standard errors, on a generated market without any signal"
    else:
        limit, against = best, "that of the true expectation on the same pairs of this generated market"
    if figure <= limit:
        return Verdict(True, f"|IC| on the test is {_shown(figure)}, not above {_shown(limit)} ({against}).", sample, figure, limit)
    return Verdict(False, f"|IC| on the test is {_shown(figure)}, above {_shown(limit)} ({against}): a leak until the opposite is shown.",
                   sample, figure, limit)
