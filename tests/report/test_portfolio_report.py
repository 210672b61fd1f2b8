"""The portfolio report: figures against Qlib's and hand-worked ones, and an attribution that adds up, against a slow loop."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.report import portfolio
from qlib_ext.report.portfolio import PortfolioOptions, PortfolioView, active_parts, excess_summary, linked, portfolio_report

T, N, STYLES = 130, 14, ("size", "beta")
DAYS = pd.bdate_range("2023-11-06", periods=T + 1)
EXTRA = 0.0002
"""Earned a day by trading, beside what was held."""


def view(seed: int = 0) -> PortfolioView:
    """A market that follows its risk model: stock 0 is not in it, stock 1 is suspended on some days, style beta absent on the first."""
    draw = np.random.default_rng(seed)
    style = draw.normal(size=(T + 1, N, 2))
    style[:, 0] = np.nan
    style[0, :, 1] = np.nan
    industry = draw.choice(["industry:1", "industry:2", "industry:3"], (T + 1, N))
    factors = pd.DataFrame(draw.normal(0, 0.01, (T, 6)), index=DAYS[1:], columns=["country", *np.unique(industry), *STYLES])
    factors.iloc[0, -1] = np.nan
    residual = draw.normal(0, 0.02, (T, N))
    residual[:, 0] = np.nan
    residual[::9, 1] = np.nan
    returns = draw.normal(0, 0.02, (T, N))
    for t in range(T):
        for n in range(N):
            if np.isfinite(residual[t, n]):
                row = factors.iloc[t]
                styled = np.nansum(style[t, n] * row[list(STYLES)].to_numpy())
                returns[t, n] = row["country"] + row[industry[t, n]] + styled + residual[t, n]
    returns[::9, 1] = 0.0
    held, bench = (draw.dirichlet(np.ones(N), T + 1) for _ in range(2))
    held[0] = 0.0
    cost = np.where(np.arange(T) % 5 == 0, 0.001, 0.0)
    gross = (held[:-1] * returns).sum(axis=1) + EXTRA
    total = (bench[:-1] * returns).sum(axis=1)
    daily = pd.DataFrame({"gross": gross, "net": gross - cost, "cost": cost, "turnover": 10 * cost, "price_index": total - 1e-4,
                          "total_return": total, "equal_weight": returns.mean(axis=1)}, index=DAYS[1:])
    view.returns = returns
    codes = np.array([f"SH{600000 + n}" for n in range(N)])
    return PortfolioView(daily, DAYS.to_numpy().astype("datetime64[D]"), codes, held, bench, STYLES, style, industry, factors, residual)


# ---- figures --------------------------------------------------------------------------------------------------------------------
def test_figures_are_those_of_qlib_and_of_pandas():
    from qlib.contrib.evaluate import risk_analysis
    daily = view().daily
    found = excess_summary(daily, "total_return", 238)
    net, bench = daily["net"], daily["total_return"]
    qlib = risk_analysis(net, freq="day", mode="product")["risk"]
    assert found["return a year"] == pytest.approx(qlib["annualized_return"])
    ratio = (1 + net) / (1 + bench) - 1
    theirs = risk_analysis(ratio, freq="day", mode="product")["risk"]
    assert found["excess a year (geometric)"] == pytest.approx(theirs["annualized_return"])
    plain = risk_analysis(net - bench, freq="day", mode="sum")["risk"]
    assert found["IR of daily differences"] == pytest.approx(plain["information_ratio"])
    assert found["tracking error"] == pytest.approx(plain["std"] * np.sqrt(238))
    assert found["IR"] == pytest.approx(theirs["annualized_return"] / plain["std"] / np.sqrt(238))
    values = np.r_[1.0, (1 + ratio).cumprod()]
    assert found["excess max drawdown"] == pytest.approx((values / np.maximum.accumulate(values) - 1).min())
    assert found["Calmar"] == pytest.approx(theirs["annualized_return"] / -found["excess max drawdown"])
    weekly = pd.DataFrame({"net": net, "bench": bench}).add(1).groupby(pd.Grouper(freq="W")).prod()
    assert found["weekly win rate"] == pytest.approx((weekly["net"] > weekly["bench"]).mean())
    assert found["turnover a year"] == pytest.approx(daily["turnover"].sum() / 2 * 238 / T)
    assert found["cost a year"] == pytest.approx(daily["cost"].sum() * 238 / T)


def test_a_portfolio_that_is_its_benchmark_earns_nothing():
    daily = view().daily.assign(cost=0.0)
    daily["gross"] = daily["net"] = daily["total_return"]
    found = excess_summary(daily, "total_return")
    zeros = ["excess a year (geometric)", "excess a year (difference)", "excess a year before cost", "tracking error",
             "excess max drawdown", "weekly win rate"]
    assert all(found[name] == 0 for name in zeros)
    assert np.isnan(found["IR"]) and np.isnan(found["Calmar"]) and np.isnan(found["IR of daily differences"])
    tables = portfolio_report(replace(view(), daily=daily))
    assert (tables["by_month"].frame["excess over total_return"] == 0).all() and (tables["by_week"].frame["excess drawdown"] == 0).all()
    assert tables["attribution"].frame.loc["total", ["return", "sum", "a year"]].abs().max() == 0


def test_constant_active_return_and_doubled_active_return():
    daily = view().daily
    constant = excess_summary(daily.assign(net=daily["total_return"] + 0.001), "total_return")
    assert constant["tracking error"] == 0 and np.isnan(constant["IR"]) and np.isnan(constant["IR of daily differences"])
    once = excess_summary(daily, "total_return")
    twice = excess_summary(daily.assign(net=2 * daily["net"] - daily["total_return"]), "total_return")
    assert twice["tracking error"] == pytest.approx(2 * once["tracking error"])
    assert twice["IR of daily differences"] == pytest.approx(once["IR of daily differences"])
    rising = excess_summary(daily.assign(net=0.001), "total_return")
    assert rising["max drawdown"] == 0


def test_a_hand_worked_case():
    days = pd.DatetimeIndex(["2024-01-30", "2024-01-31", "2024-02-01", "2024-02-02", "2024-02-05"])
    net = [0.10, -0.50, 0.20, 0.0, 1.0]
    daily = pd.DataFrame({"gross": net, "net": net, "cost": 0.0, "turnover": 0.0, "price_index": [0.0, -0.5, 0.0, 0.25, 0.0]}, index=days)
    made = portfolio_report(PortfolioView(daily, np.r_[np.datetime64("2024-01-29"), days.to_numpy().astype("datetime64[D]")],
                                          np.array(["SH600000"]), np.zeros((6, 1))))
    assert "attribution" not in made and "certificates" not in made and list(made["summary"].frame) == ["price_index"]
    months = made["by_month"].frame
    assert list(months.index) == ["2024-01", "2024-02"]
    assert months["return"].tolist() == pytest.approx([1.1 * 0.5 - 1, 1.2 * 2 - 1])
    assert months["excess over price_index"].tolist() == pytest.approx([0.55 - 0.5, 2.4 - 1.25])
    assert months["excess drawdown"].tolist() == pytest.approx([0.0, 1 / 1.25 - 1])
    broker = made["broker"].frame["return"]
    assert broker.loc[["Week", "Month to date", "Year to date", "Since inception"]].tolist() == pytest.approx([1.0, 1.4, 0.32, 0.32])
    falls = made["drawdowns"].frame
    first = falls.loc[("net value", 1)]
    assert first["depth"] == pytest.approx(-0.5) and (first["start"], first["trough"], first["end"]) == (days[0], days[1], days[4])
    relative = falls.loc[("excess over price_index", 1)]
    assert relative["depth"] == pytest.approx(-0.2) and relative["trough"] == days[3] and relative["end"] == days[4]
    exposure = made["exposure"].frame
    assert list(exposure) == ["names", "invested"]


def test_periods_compound_to_the_whole():
    made = portfolio_report(view())
    daily = made["daily"].frame
    for period in ("by_week", "by_month", "by_year"):
        for column, whole in (("return", "net"), ("total_return", "total_return")):
            assert (1 + made[period].frame[column]).prod() == pytest.approx((1 + daily[whole]).prod())
    assert made["broker"].frame.loc["Since inception", "excess over equal_weight"] == pytest.approx(
        (1 + daily["net"]).prod() - (1 + daily["equal_weight"]).prod())


# ---- attribution ----------------------------------------------------------------------------------------------------------------
def slow_parts(one: PortfolioView, t: int) -> dict:
    """Stock by stock."""
    found, factors = dict.fromkeys((*STYLES, "industries", "country", "selection"), 0.0), one.factor_returns.iloc[t]
    for n in range(N):
        if not np.isfinite(one.residual[t, n]) or not np.isfinite(one.style[t, n, 0]):
            continue
        active = one.held[t, n] - one.bench[t, n]
        for k, name in enumerate(STYLES):
            if np.isfinite(factors[name]) and np.isfinite(one.style[t, n, k]):
                found[name] += active * one.style[t, n, k] * factors[name]
        found["industries"] += active * factors[one.industry[t, n]]
        found["country"] += active * factors["country"]
        found["selection"] += active * one.residual[t, n]
    return found


def test_attribution_is_that_of_a_slow_loop_and_adds_up():
    one = view()
    parts = active_parts(one)
    for t in (0, 1, 9, 60, T - 1):
        for name, value in slow_parts(one, t).items():
            assert parts[name].iloc[t] == pytest.approx(value, abs=1e-15), (t, name)
    np.testing.assert_allclose(parts.drop(columns="total").sum(axis=1), parts["total"], atol=1e-16)
    np.testing.assert_allclose(parts["total"], one.daily["net"] - one.daily["total_return"], atol=0)
    outside = ((one.held - one.bench)[:-1, 0] * view.returns[:, 0])                       # the stock that the model does not know
    np.testing.assert_allclose(parts["other"], EXTRA + outside, atol=1e-15)


def test_linked_parts_add_to_the_compounded_difference():
    one = view()
    made = portfolio_report(one)
    frame, daily = made["attribution"].frame, one.daily
    whole = (1 + daily["net"]).prod() - (1 + daily["total_return"]).prod()
    assert frame.loc["total", "return"] == pytest.approx(whole)
    assert frame["return"].drop("total").sum() == pytest.approx(whole)
    assert frame["sum"].drop("total").sum() == pytest.approx(frame.loc["total", "sum"])
    assert frame.loc["total", "sum"] == pytest.approx((daily["net"] - daily["total_return"]).sum())
    assert list(frame.index) == [*STYLES, "industries", "country", "selection", "cost", "other", "total"]
    t = frame.loc["selection", "sum"] / T / (active_parts(one)["selection"].std() / np.sqrt(T))
    assert frame.loc["selection", "t"] == pytest.approx(t)
    once = linked(pd.DataFrame({"total": [0.1]}), np.array([0.2]), np.array([0.1]))
    assert once["total"] == pytest.approx(0.1)
    day = made["attribution_daily"].frame
    np.testing.assert_allclose(day.drop(columns="total").sum(axis=1), day["total"], atol=1e-16)


def test_a_planted_style_bet_is_found():
    """Weights that lean on one style, residuals and other factors of nothing: all that is earned is that style's."""
    one = view()
    lean = np.where(one.style[:, :, 0] > 0, 1.0, 0.0)
    held = np.nan_to_num(lean / lean.sum(axis=1, keepdims=True))
    factors = one.factor_returns * 0
    factors["size"] = 0.002
    made = active_parts(replace(one, held=held, bench=np.full((T + 1, N), 1 / N), factor_returns=factors, residual=one.residual * 0))
    assert made["size"].sum() > 0.1 and made[["beta", "industries", "country", "selection"]].abs().to_numpy().max() == 0


def test_days_without_benchmark_are_left_out():
    one = view()
    daily = one.daily.copy()
    daily.iloc[:3, daily.columns.get_loc("total_return")] = np.nan
    made = portfolio_report(replace(one, daily=daily))
    assert made["summary"].frame.loc["days"].to_dict() == {"price_index": T, "total_return": T - 3, "equal_weight": T}
    assert len(made["attribution_daily"].frame) == T - 3
    without = replace(one, daily=one.daily.assign(total_return=np.nan))
    assert without.main == "equal_weight" and "total_return" not in portfolio_report(without)["summary"].frame


def test_exposure_of_a_day():
    one = view()
    frame = portfolio_report(one)["exposure"].frame
    t = 40
    active = one.held[t + 1] - one.bench[t + 1]
    assert frame["beta"].iloc[t] == pytest.approx(np.nansum(active * one.style[t + 1, :, 1]))
    by_industry = pd.Series(active).groupby(one.industry[t + 1]).sum().abs().sum()
    assert frame["industry deviation"].iloc[t] == pytest.approx(by_industry)
    assert frame["active share"].iloc[t] == pytest.approx(np.abs(active).sum() / 2)
    assert frame["names"].iloc[t] == N and frame["invested"].iloc[t] == pytest.approx(1)


def test_certificates_in_short():
    rows = pd.DataFrame({"status": ["optimal", "relaxed", "optimal"], "relaxed": ["{}", '{"turnover": 2, "style:size": 1.5}', "{}"],
                         "active": ['{"industry:1": 0.1, "industry:2": 0.2}', "{}", None], "violation": [0.0, 1e-9, 0.0],
                         "tracking_error": [0.04, 0.06, np.nan]})
    value = portfolio_report(replace(view(), certificates=rows))["certificates"].frame["value"]
    assert value["rebalances"] == 3 and value["status: optimal"] == 2 and value["relaxed: turnover"] == value["relaxed: style"] == 1
    assert value["binding: industry"] == 1 and value["largest violation of a constraint"] == 1e-9
    assert value["forecast tracking error, mean"] == pytest.approx(0.05) and "turnover of a rebalance, mean" not in value


def test_wrong_input_is_named():
    one = view()
    with pytest.raises(DataError, match="cost"):
        replace(one, daily=one.daily.drop(columns="cost"))
    with pytest.raises(DataError, match="all days"):
        replace(one, daily=one.daily.iloc[:0])
    with pytest.raises(ShapeError, match="held"):
        replace(one, held=one.held[1:])
    with pytest.raises(ShapeError, match="factor_returns"):
        replace(one, factor_returns=one.factor_returns.iloc[1:])
    with pytest.raises(ConfigError, match="drawdown_rows=0"):
        PortfolioOptions(drawdown_rows=0)
    assert set(portfolio.BENCHMARKS) == {"price_index", "total_return", "equal_weight"}


def test_without_any_benchmark_the_portfolio_stands_alone():
    one = view()
    bare = replace(one, daily=one.daily.drop(columns=["total_return", "equal_weight"]).assign(price_index=np.nan))
    tables = portfolio_report(bare)
    assert bare.main is None and "attribution" not in tables and "Benchmarks: none" in tables["daily"].convention
    summary, full = tables["summary"].frame["none"], portfolio_report(one)["summary"].frame["total_return"]
    assert summary["max drawdown"] == full["max drawdown"] and summary["return a year"] == full["return a year"]
    assert "excess a year (geometric)" not in summary and not any("excess" in column for column in tables["by_month"].frame)
    assert set(tables["drawdowns"].frame.index.get_level_values("of")) == {"net value"}


def test_the_fairest_benchmark_is_the_main_one():
    """An ETF rotation has its pool (equal_weight) beside an index that Qlib asks for."""
    one = view()
    assert one.main == "total_return" and replace(one, daily=one.daily.drop(columns="total_return")).main == "equal_weight"
