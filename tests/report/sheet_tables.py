"""Tables of a factor report, a portfolio report and leak checks as the contract of the reports has them, from made-up figures."""

import numpy as np
import pandas as pd

from qlib_ext.report.leak_checks import CONVENTION, Verdict, checks_frame, judge_segment_end, judge_too_good
from qlib_ext.report.saved import Saved
from qlib_ext.report.table import Table

QUANTILES = [f"Q{number}" for number in range(1, 11)]
STYLES = ["size", "beta", "momentum", "residual_volatility", "nonlinear_size", "book_to_price", "liquidity", "earnings_yield", "growth",
          "leverage"]
INDUSTRIES = ["银行", "非银金融", "食品饮料", "电子", "计算机", "电力设备", "医药生物", "基础化工", "有色金属", "机械设备", "汽车", "房地产", "公用事业",
              "交通运输", "传媒"]
BENCHMARKS = ["price_index", "total_return", "equal_weight"]
DAYS_SHORT = 90
SPANS = ["Week", "Month to date", "Year to date", "Since inception"]


def days(count: int = 480, start: str = "2023-01-03") -> pd.DatetimeIndex:
    return pd.bdate_range(start, periods=count, name="datetime")


def quantile_daily(index: pd.DatetimeIndex, generator: np.random.Generator) -> pd.DataFrame:
    market = generator.normal(0.0001, 0.011, len(index))
    frame = pd.DataFrame({group: market + generator.normal((place - 4.5) * 1.4e-4, 0.002, len(index))
                          for place, group in enumerate(QUANTILES)}, index=index)
    frame["long_short"] = frame["Q10"] - frame["Q1"]
    frame["universe_equal"] = frame[QUANTILES].mean(axis=1)
    frame["universe_cap"] = market + generator.normal(-1e-4, 0.003, len(index))
    frame["index"] = market + generator.normal(-1e-4, 0.003, len(index))
    return frame


def _broker(index: list[str], generator: np.random.Generator) -> pd.DataFrame:
    columns = {"IC": 0.05, "RankIC": 0.06, "exp(-RankMAE)": 0.33, "long-short": 0.02, "excess (equal)": 0.01, "excess (cap)": 0.012,
               "excess (index)": 0.011, "top group return": 0.02}
    spread = {"IC": 0.06, "RankIC": 0.06, "exp(-RankMAE)": 0.01}
    frame = pd.DataFrame({name: generator.normal(mean, spread.get(name, 0.02), len(index)) for name, mean in columns.items()},
                         index=pd.Index(index, name="period"))
    frame.insert(0, "last day", pd.Timestamp("2024-11-05"))
    frame.insert(1, "days", 5)
    return frame


def periods(index: pd.DatetimeIndex) -> dict[str, list[str]]:
    """Labels of the weeks, months and years of an index."""
    weeks = [f"{end:%G-W%V}" for end in index.to_series().groupby(index.to_period("W")).last()]
    months = sorted({f"{day:%Y-%m}" for day in index})
    return {"by_week": weeks, "by_month": months, "by_year": sorted({f"{day:%Y}" for day in index})}


def factor_tables(count: int = 480, seed: int = 0) -> dict[str, Table]:
    generator, index = np.random.default_rng(seed), days(count)
    daily = pd.DataFrame({"ic": generator.normal(0.05, 0.1, count), "rank_ic": generator.normal(0.06, 0.09, count),
                          "exp_rank_mae": generator.normal(0.33, 0.01, count), "count": generator.integers(900, 1000, count),
                          "autocorrelation": 0.86 + generator.normal(0, 0.03, count)}, index=index)
    ic = ["IC", "ICIR", "IC t", "RankIC", "RankICIR", "RankIC t"]
    summary = pd.DataFrame({"value": [0.0512, 0.5111, 8.114, 4.337, 0.6912, 0.0623, 0.6927, 0.3312, 0.4412, 0.1231, 0.1511, np.nan, 28.41,
                                      0.8601, 0.9911, float(count)],
                            "note": "per day, not annualised"},
                           index=["IC", "ICIR", "ICIR annualised", "IC t", "IC win rate", "RankIC", "RankICIR", "exp(-RankMAE)",
                                  "long-short a year", "long-only excess a year (equal)", "long-only excess a year (cap)",
                                  "long-only excess a year (index)", "turnover of the top group a year", "autocorrelation of ranks",
                                  "coverage", "days"])
    tables = {"summary": summary, "broker": _broker(SPANS, generator)}
    tables |= {name: _broker(labels, generator) for name, labels in periods(index).items()}
    tables["decay"] = pd.DataFrame(generator.normal(0.05, 0.01, (4, 7)), index=pd.Index([1, 5, 10, 20], name="horizon"),
                                   columns=[*ic, "exp(-RankMAE)"])
    tables["non_overlapping"] = pd.DataFrame({"IC": 0.05, "ICIR": 0.6, "n": 96}, index=["offset 1", "offset 2", "week ends"])
    tables["quantiles"] = pd.DataFrame({"return a year": np.linspace(-0.15, 0.28, 10), "excess a year": np.linspace(-0.2, 0.2, 10),
                                        "volatility": 0.21, "mean forward return": np.linspace(-0.002, 0.004, 10), "names": 98.0,
                                        "turnover a year": 28.0}, index=QUANTILES)
    tables["by_board"] = pd.DataFrame({"IC": [0.05, 0.04, np.nan], "RankIC": [0.06, 0.05, np.nan], "days": [480, 480, 0],
                                       "names": [600.5, 300.2, 9.0]}, index=["main", "chinext", "star"])
    tables["style_exposure"] = pd.DataFrame({"mean": generator.normal(0, 0.15, 10), "std": 0.1, "t": generator.normal(0, 5, 10),
                                             "top group": generator.normal(0, 0.4, 10)}, index=STYLES)
    tables["industry_exposure"] = pd.DataFrame({"mean z-score": generator.normal(0, 0.2, 15), "top group": generator.normal(0, 0.02, 15)},
                                               index=INDUSTRIES)
    tables["neutral"] = pd.DataFrame(np.abs(generator.normal(0.05, 0.01, (4, 6))), index=["raw", "industry", "industry+cap", "styles"],
                                     columns=ic)
    tables["daily"], tables["quantile_daily"] = daily, quantile_daily(index, generator)
    return {name: Table(frame, f"Left out: {name}.") for name, frame in tables.items()}


def portfolio_tables(count: int = 480, seed: int = 1) -> dict[str, Table]:
    generator, index = np.random.default_rng(seed), days(count)
    market = generator.normal(1e-4, 0.011, count)
    daily = pd.DataFrame({"gross": market + generator.normal(6e-4, 0.004, count)}, index=index)
    daily["turnover"] = np.where(np.arange(count) % 5 == 0, 0.3, 0.0)
    daily["cost"] = daily["turnover"] * 0.0015
    daily.insert(1, "net", daily["gross"] - daily["cost"])
    daily["price_index"], daily["total_return"] = market, market + 8e-5
    daily["equal_weight"] = market + generator.normal(1e-4, 0.003, count)
    figures = ["return a year", "benchmark a year", "excess a year (geometric)", "excess a year (difference)", "tracking error", "IR",
               "IR of daily differences", "max drawdown", "excess max drawdown", "Calmar", "weekly win rate", "turnover a year",
               "cost a year", "days"]
    summary = pd.DataFrame({name: [0.221, 0.043, 0.1712, 0.178, 0.0841, 2.035, 1.98, -0.1511, -0.0623, 2.75, 0.61, 15.2, 0.0228, count]
                            for name in BENCHMARKS}, index=figures, dtype=float)
    tables = {"summary": summary, "broker": _periods(SPANS, generator)}
    tables |= {name: _periods(labels, generator) for name, labels in periods(index).items()}
    rows = [{"of": of, "rank": i + 1, "start": index[min(i, count - 1)], "trough": index[min(i + 20, count - 1)],
             "end": pd.NaT if i == 4 else index[min(i + 60, count - 1)], "depth": -0.15 + 0.02 * i, "days": 40}
            for of in ("net value", "excess over total_return") for i in range(5)]
    tables["drawdowns"] = pd.DataFrame(rows).set_index(["of", "rank"])
    walk = np.cumsum(generator.normal(0, 0.02, (count, 10)), axis=0)
    tables["exposure"] = pd.DataFrame(np.clip(walk, -0.5, 0.5), index=index, columns=STYLES)
    tables["exposure"]["industry deviation"] = np.abs(generator.normal(0.08, 0.01, count))
    tables["exposure"]["names"], tables["exposure"]["invested"] = 90, np.where(np.arange(count) > 0, 0.97, 0.0)
    parts = [*STYLES, "industries", "country", "selection", "cost", "residual", "total"]
    earned = {"return": generator.normal(0.01, 0.03, len(parts)), "a year": generator.normal(0.01, 0.02, len(parts)),
              "t": generator.normal(0, 2, len(parts))}
    tables["attribution"] = pd.DataFrame(earned, index=parts)
    tables["attribution_daily"] = pd.DataFrame(generator.normal(1e-4, 1e-3, (count, 5)), index=index,
                                               columns=["styles", "industries", "selection", "cost", "other"])
    tables["certificates"] = pd.DataFrame({"value": [96.0, 95.0, 0.0, 2.2e-16, 0.0412]},
                                          index=["rebalances", "status: optimal", "relaxed: none", "largest gap",
                                                 "forecast tracking error, mean"])
    tables["daily"] = daily
    return {name: Table(frame, f"Turnover is one-way. After cost, to {name}.") for name, frame in tables.items()}


def _periods(labels: list[str], generator: np.random.Generator) -> pd.DataFrame:
    names = ["return", *BENCHMARKS, *(f"excess over {name}" for name in BENCHMARKS)]
    frame = pd.DataFrame(generator.normal(0.005, 0.025, (len(labels), len(names))), index=pd.Index(labels, name="period"), columns=names)
    frame["excess drawdown"] = -np.abs(generator.normal(0, 0.01, len(labels)))
    return frame


def leak_tables() -> dict[str, Table]:
    found = {"segment_end": judge_segment_end({"3 days": 0.0}, 1e-6, "test ends after 3 of 480 days, and after one day less"),
             "shuffled_labels": Verdict(None, "not run: 3 scored days are too few"),
             "too_good": judge_too_good(np.array([0.12, 0.15, 0.13]), 5, 5, "3 test days")}
    return {"checks": Table(checks_frame(found), CONVENTION)}


def facts(**other) -> dict:
    return {"experiment": "meta_master_csi300", "recorder": "0123456789abcdef0123456789abcdef", "model": "MASTER", "universe": "csi300",
            "index": "SH000300", "label": "Ref($close, -6) / Ref($close, -1) - 1", "segments": {"test": ["2023-01-03", "2024-11-05"]},
            "generated": True, "best_possible_ic": 0.11, "best_possible_ics": {"csi300": 0.11}, "store": "cn_data",
            "versions": {"qlib_ext": "0.1", "pyqlib": "0.9.7"}, "notes": ["the store has no volume: a day with prices counts as traded"],
            **other}


def reports(count: int = 480, **about) -> list[Saved]:
    """A factor report, a portfolio report and leak checks of one run."""
    return [Saved("factor", factor_tables(count), facts(**about), "factor_report"),
            Saved("portfolio", portfolio_tables(count), facts(**about), "portfolio_report"),
            Saved("leaks", leak_tables(), facts(**about), "leak_check")]
