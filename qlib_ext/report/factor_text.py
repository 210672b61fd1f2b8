"""The sentences under the tables of a factor report: how its figures are defined."""

from __future__ import annotations

from typing import Dict, Sequence, Tuple

from qlib_ext.report.factor_view import FactorOptions, FactorView

SENTENCES: Dict[str, str] = {
    "entry": "The score of day t is known at its close and traded at the {entry} of t+1.",
    "label": "Label: the raw label of the run, over {horizon_days}, so labels of neighbouring days {overlap}.",
    "no label": "Label: the return from the {entry} of t+1 to that of t+1+{horizon}, so labels of neighbouring days {overlap}.",
    "daily": "Days with fewer than {min_count} pairs do not count; autocorrelation is the rank correlation of the scores with those of "
             "the trading day before.",
    "per day": "ICIR is per day, not annualised; t is Newey-West with lag {horizon}.",
    "decay": "Returns run from the {entry} of t+1 to that of t+1+horizon; every day counts, so longer horizons overlap: ICIR is per day, "
             "not annualised, and t is Newey-West with lag = horizon.",
    "thinned": "Only days whose labels do not overlap: every {horizon_th}trading day from the k-th scored day on (offset k), and the last"
               " trading day of every {weeks_th}week (a holiday can make two of these labels share days); annualised: times the root of "
               "the number of such days a year; t takes them as independent.",
    "held": "Groups of equal weight by the score of {when}, bought at the {entry} of the next day and held; a day's return runs from the "
            "{entry} of the day before to its own; before cost.",
    "not formed": "No portfolio was formed: no such day has groups.",
    "universes": "Q{quantiles} has the highest scores, equal scores stay together; long_short is the day's Q{quantiles} less Q1; "
                 "universes hold all scored stocks under the same rules, with equal weights or those of the market value.",
    "not tradable": "A stock that cannot be bought at the entry is left out and the other targets share its part; one that cannot be sold"
                    " keeps its weight, and so does one held already that cannot be bought; weights drift between rebalances, and a stock"
                    " without a price keeps its last one, at which it is sold once it has had none for 60 days.",
    "a year": "Compounded, {days_a_year} days a year; excess is the growth of the ratio of net values to the equal-weighted universe; "
              "turnover is one-way, without the first purchase.",
    "forward": "Mean forward return: mean label of groups formed every day, mean over days (labels {overlap}).",
    "to date": "All windows end on the last scored day.",
    "windows": "Compounded within the window, not annualised, weeks from last trading day to last trading day; excess is the return of "
               "Q{quantiles} less that of the universe or index (as quoted: without the dividends that prices of stocks carry); "
               "long-short compounds daily differences; IC, RankIC and exp(-RankMAE) are means over the days of the scores.",
    "part": "Ranked within the part, which needs {min_count} pairs a day.",
    "cap groups": "Groups of equal numbers of scored stocks by the market value of the day; ranked within the group, which needs "
                  "{min_count} pairs a day.",
    "style": "Daily correlation of the score's rank with the style: mean, standard deviation, Newey-West t (lag {exposure_lag}); top "
             "group: mean style of the day's Q{quantiles} less that of all scored stocks, mean over days.",
    "industry": "Mean z-score (within the day) of the industry's stocks; top group: the industry's share of the stocks of the day's "
                "Q{quantiles} less its share of all scored ones; means over days, stocks of unknown industry left out.",
    "neutral": "Residuals of a least squares regression of the day's scores on a constant and industry dummies, the log of market value, "
               "or all styles; stocks that lack one, and days that these explain wholly, are left out of the row.",
    "left out": "Left out: {left_out}.",
}
"""Name -> sentence."""

_LABEL, _HELD = ("entry", "label"), ("held", "not formed")
_WINDOWS = ("windows", *_HELD, "label", "left out")
TABLES: Dict[str, Tuple[str, ...]] = {
    "summary": (*_LABEL, *_HELD, "left out"),
    "daily": (*_LABEL, "daily"),
    "decay": ("decay",),
    "non_overlapping": (*_LABEL, "thinned"),
    "quantile_daily": (*_HELD, "universes", "not tradable", "left out"),
    "quantiles": (*_HELD, "a year", "forward"),
    "broker": ("to date", *_WINDOWS),
    **{f"by_{period}": _WINDOWS for period in ("week", "month", "year")},
    "by_board": ("part", *_LABEL, "per day"),
    "by_cap": ("cap groups", *_LABEL, "per day"),
    "style_exposure": ("style",),
    "industry_exposure": ("industry",),
    "neutral": ("neutral", *_LABEL, "per day"),
}
"""Table -> its sentences, in order; those that do not hold are dropped (`conventions`)."""


def conventions(view: FactorView, options: FactorOptions, formed: bool, left_out: Sequence[str], exposure_lag: int) -> Dict[str, str]:
    """What stands under each table.

    Args:
        formed: whether a portfolio was formed. left_out: what the report lacks, and why. exposure_lag: lag of the t of exposures.
    """
    horizon, count = view.horizon, options.rebalance
    values = {"entry": view.entry_name, "horizon": horizon, "horizon_days": _days(horizon), "horizon_th": _nth(horizon),
              "overlap": "do not overlap" if horizon == 1 else f"overlap by {_days(horizon - 1)}", "weeks_th": _nth(weeks_between(horizon)),
              "when": "the last trading day of each week" if count == "week" else f"every {_nth(int(count))}trading day",
              "min_count": options.min_count, "quantiles": options.quantiles, "days_a_year": options.days_a_year,
              "exposure_lag": exposure_lag, "left_out": "; ".join(left_out)}
    dropped = (["not formed"] if formed else []) + ([] if left_out else ["left out"])
    labelled = {"label": "label" if view.label is not None else "no label"}
    return {table: " ".join(SENTENCES[labelled.get(name, name)].format(**values) for name in names if name not in dropped)
            for table, names in TABLES.items()}


def weeks_between(horizon: int) -> int:
    """Weeks after which the label of a week's last day no longer overlaps that of a later week's."""
    return -(-horizon // 5)


def _days(count: int) -> str:
    return f"{count} trading day{'s' * (count != 1)}"


def _nth(count: int) -> str:
    """"" for 1, "2nd ", "3rd ", "5th ", "21st " in front of a noun."""
    if count == 1:
        return ""
    ending = "th" if 10 < count % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(count % 10, "th")
    return f"{count}{ending} "
