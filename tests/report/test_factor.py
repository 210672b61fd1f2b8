"""The factor report against scipy, statsmodels, pandas and alphalens, hand-worked cases, point in time, and bad input."""
import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.report import factor
from qlib_ext.report.factor import FactorOptions, FactorView, factor_report, forward_returns
from qlib_ext.report.factor_text import SENTENCES, TABLES, conventions
from qlib_ext.report.metrics import newey_west_t
from qlib_ext.report.neutral import industry_codes, neutral_score

OPTIONS = FactorOptions(quantiles=5, horizons=(1, 3, 5), min_count=10)
SMALL = {"quantiles": 5, "min_count": 10}


def make_view(seed=0, days=90, stocks=48, ahead=6, skill=1.0, **changes) -> FactorView:
    """Independent returns; scores move slowly and know something of the return over the horizon; a tenth of the days suspended."""
    draw = np.random.default_rng(seed)
    total, horizon = days + ahead, changes.get("horizon", 5)
    change = draw.normal(0, 0.02, (total, stocks))
    entry = 10 * np.exp(change.cumsum(axis=0))
    slow = pd.DataFrame(draw.normal(size=(total, stocks))).ewm(halflife=4).mean().to_numpy()
    score = slow / slow.std() + skill * np.nan_to_num(forward_returns(entry, horizon)) / 0.05
    suspended = draw.random(entry.shape) < 0.1
    score[draw.random(entry.shape) < 0.05] = np.nan
    score[days:] = np.nan
    parts = dict(days=pd.bdate_range("2023-11-01", periods=total).to_numpy(), score=score,
                 instruments=np.array([f"S{n}" for n in range(stocks)]),
                 entry=np.where(suspended, np.nan, entry), close=np.where(suspended, np.nan, entry * 1.01), buyable=~suspended,
                 sellable=~suspended & (draw.random(entry.shape) > 0.05), cap=np.exp(draw.normal(23, 1, stocks)) * entry,
                 board=np.array(["main", "main", "star"])[np.arange(stocks) % 3], styles={"size": draw.normal(size=entry.shape)},
                 industry=np.broadcast_to(np.array(["bank", "coal", "steel", ""], object)[np.arange(stocks) % 4], entry.shape),
                 benchmark=np.exp(draw.normal(0, 0.01, total).cumsum()), horizon=5)
    return FactorView(**{**parts, **changes})


def changed(view: FactorView, **changes) -> FactorView:
    """A view with some arrays replaced."""
    return dataclasses.replace(view, **changes)


@pytest.fixture(scope="module")
def view():
    return make_view()


@pytest.fixture(scope="module")
def report(view):
    return factor_report(view, OPTIONS)


# ---- what is in it ------------------------------------------------------------------------------------------------------------
def test_tables_and_conventions(view, report):
    assert list(report) == list(TABLES)
    for name, table in report.items():
        assert len(table.frame) and "{" not in table.convention and table.convention.endswith("."), name
        assert table.frame.columns.is_unique and table.frame.index.is_unique and table.frame.index.name
    assert "traded at the vwap of t+1" in report["summary"].convention and "overlap by 4 trading days" in report["daily"].convention
    assert "Left out" not in report["summary"].convention
    at_open = factor_report(changed(view, entry_name="open", horizon=1, label=view.entry), {**SMALL, "rebalance": 22})
    assert "the open of t+1" in at_open["summary"].convention and "do not overlap" in at_open["summary"].convention
    assert "the raw label of the run" in at_open["daily"].convention and "every 22nd trading day" in at_open["quantiles"].convention
    used = {sentence for names in TABLES.values() for sentence in names} | {"no label"}
    assert used == set(SENTENCES)
    assert "No portfolio was formed" in conventions(view, OPTIONS, False, ["x"], 20)["broker"]


def test_daily_figures_are_those_of_scipy(view, report):
    daily, label = report["daily"].frame, forward_returns(view.entry, 5)
    assert len(daily) == 90 and daily.index[0] == pd.Timestamp("2023-11-01")
    for t in (0, 40, 89):
        known = ~np.isnan(view.score[t]) & ~np.isnan(label[t])
        left, right = view.score[t, known], label[t, known]
        u, v = (stats.zscore(stats.rankdata(side)) for side in (left, right))
        expected = [stats.pearsonr(left, right)[0], stats.spearmanr(left, right)[0], np.exp(-np.abs(u - v).mean()), known.sum()]
        np.testing.assert_allclose(daily.iloc[t, :4].astype(float), expected, atol=1e-12)
        if t:
            both = ~np.isnan(view.score[t]) & ~np.isnan(view.score[t - 1])
            assert daily["autocorrelation"].iloc[t] == pytest.approx(stats.spearmanr(view.score[t, both], view.score[t - 1, both])[0])
    label_view = changed(view, label=label)
    pd.testing.assert_frame_equal(factor_report(label_view, OPTIONS)["daily"].frame, daily)


def test_summary_by_hand(view, report):
    summary, daily = report["summary"].frame["value"], report["daily"].frame
    for name, column in (("IC", "ic"), ("RankIC", "rank_ic")):
        values = daily[column]
        ratio = values.mean() / values.std()
        expected = [values.mean(), ratio, ratio * np.sqrt(252 / 5), newey_west_t(values, 5), (values > 0).mean()]
        np.testing.assert_allclose(summary[[name, f"{name}IR", f"{name}IR annualised", f"{name} t", f"{name} win rate"]], expected)
    scored, priced = ~np.isnan(view.score[:90]), ~np.isnan(view.close[:90])
    assert summary["coverage"] == pytest.approx(((scored & priced).sum(axis=1) / priced.sum(axis=1)).mean())
    assert summary["autocorrelation of ranks"] == pytest.approx(daily["autocorrelation"].mean()) and summary["days"] == 90
    returns = report["quantile_daily"].frame.dropna()
    growth = np.prod((1 + returns["Q5"]) / (1 + returns["universe_cap"])) ** (252 / len(returns)) - 1
    assert summary["long-only excess a year (cap)"] == pytest.approx(growth)
    assert summary["long-short a year"] == pytest.approx(np.prod(1 + returns["Q5"] - returns["Q1"]) ** (252 / len(returns)) - 1)


def test_the_t_of_overlapping_labels_is_that_of_statsmodels(report):
    regression = pytest.importorskip("statsmodels.regression.linear_model")
    daily = report["daily"].frame["ic"].to_numpy()
    fitted = regression.OLS(daily, np.ones(len(daily))).fit(cov_type="HAC", cov_kwds={"maxlags": 5, "use_correction": False})
    assert report["summary"].frame.loc["IC t", "value"] == pytest.approx(fitted.tvalues[0], rel=1e-10)


def test_decay_and_thinned_days(view, report):
    decay, thinned, daily = (report[name].frame for name in ("decay", "non_overlapping", "daily"))
    shown = ["IC", "ICIR", "IC t", "RankIC", "RankICIR", "RankIC t"]
    np.testing.assert_allclose(decay.loc[5, shown], report["summary"].frame.loc[shown, "value"])
    assert list(decay.index) == [1, 3, 5] and decay.loc[5, "RankIC"] > decay.loc[1, "RankIC"] > 0
    assert list(thinned.index) == [f"offset {k}" for k in range(1, 6)] + ["week ends"]
    every = daily["rank_ic"].iloc[2::5]
    assert thinned.loc["offset 3", "RankIC"] == pytest.approx(every.mean()) and thinned.loc["offset 3", "n"] == len(every) == 18
    assert thinned.loc["offset 3", "RankIC t"] == pytest.approx(stats.ttest_1samp(every, 0).statistic)
    assert thinned.loc["offset 3", "RankICIR annualised"] == pytest.approx(every.mean() / every.std() * np.sqrt(252 / 5))
    fridays = daily["ic"][daily.index.day_of_week == 4]
    assert thinned.loc["week ends", "IC"] == pytest.approx(fridays.mean())
    assert thinned.loc["week ends", "ICIR annualised"] == pytest.approx(fridays.mean() / fridays.std() * np.sqrt(52))
    longer = factor_report(changed(view, label=forward_returns(view.entry, 5), horizon=7), OPTIONS)["non_overlapping"]
    assert longer.frame.loc["week ends", "IC"] == pytest.approx(fridays.iloc[::2].mean()) and "every 2nd week" in longer.convention
    assert longer.frame.loc["week ends", "ICIR annualised"] == pytest.approx(fridays[::2].mean() / fridays[::2].std() * np.sqrt(26))


def test_windows_follow_from_the_daily_tables(report):
    daily, returns = report["daily"].frame, report["quantile_daily"].frame
    months = report["by_month"].frame
    assert list(months.index) == ["2023-11", "2023-12", "2024-01", "2024-02", "2024-03"] and months["days"].sum() == 90
    np.testing.assert_allclose(months["RankIC"], daily["rank_ic"].resample("ME").mean())
    compounded = (1 + returns).resample("ME").prod() - 1
    np.testing.assert_allclose(months["excess (equal)"], compounded["Q5"] - compounded["universe_equal"], atol=1e-14)
    np.testing.assert_allclose(months["excess (index)"], compounded["Q5"] - compounded["index"], atol=1e-14)
    np.testing.assert_allclose(months["long-short"], compounded["long_short"], atol=1e-14)
    broker, years = report["broker"].frame, report["by_year"].frame
    assert list(broker.index) == ["Week", "Month to date", "Year to date", "Since inception"]
    np.testing.assert_allclose(broker.loc["Year to date"].iloc[2:].astype(float), years.loc["2024"].iloc[2:].astype(float))
    total = np.prod(1 + returns["Q5"]) - 1
    assert broker.loc["Since inception", "top group return"] == pytest.approx(total)
    assert np.prod(1 + report["by_week"].frame["top group return"].dropna()) - 1 == pytest.approx(total)


def test_parts_are_reports_of_the_part(view, report):
    star = view.board == "star"
    names = ("instruments", "score", "entry", "close", "buyable", "sellable", "cap", "board")
    part = FactorView(**{name: getattr(view, name)[..., star] for name in names}, days=view.days, horizon=5)
    alone = factor_report(part, {"quantiles": 2, "min_count": 10})["neutral"].frame.loc["raw"]
    np.testing.assert_allclose(report["by_board"].frame.loc["star", ["IC", "ICIR", "RankIC", "names"]].astype(float),
                               alone[["IC", "ICIR", "RankIC", "names"]].astype(float))
    caps = report["by_cap"].frame
    assert list(caps.index) == ["small", "middle", "large"] and (caps["names"] < 48 / 3).all() and (caps["RankIC"] > 0).all()


def test_quantiles_table(view, report):
    table, returns = report["quantiles"].frame, report["quantile_daily"].frame
    assert list(table.index) == ["Q1", "Q2", "Q3", "Q4", "Q5", "long-short"]
    label, means = forward_returns(view.entry, 5), []
    for row, values in zip(view.score[:90], label):
        groups = pd.qcut(row[~np.isnan(row)], 5, labels=False)
        means.append(pd.Series(values[~np.isnan(row)]).groupby(groups).mean())
    np.testing.assert_allclose(table["mean forward return"].iloc[:5], pd.concat(means, axis=1).mean(axis=1))
    assert table["mean forward return"].iloc[:5].is_monotonic_increasing
    assert table.loc["Q2", "volatility"] == pytest.approx(returns["Q2"].std() * np.sqrt(252))
    forward = table["mean forward return"]
    assert forward["long-short"] == pytest.approx(forward["Q5"] - forward["Q1"])
    growth = np.prod((1 + returns["Q2"].dropna()) / (1 + returns["universe_equal"].dropna())) ** (252 / returns["Q2"].count()) - 1
    assert table.loc["Q2", "excess a year"] == pytest.approx(growth) and 2 < table.loc["Q2", "turnover a year"] < 52


# ---- properties ---------------------------------------------------------------------------------------------------------------
def test_perfect_reversed_and_random_scores():
    random = factor_report(make_view(1, days=120, stocks=200, skill=0.0))
    assert abs(random["summary"].frame.loc["RankIC t", "value"]) < 4
    assert random["summary"].frame.loc["exp(-RankMAE)", "value"] == pytest.approx(0.3151, abs=0.01)
    view = make_view(1, days=120, stocks=200)
    label = np.where(np.isnan(view.score), np.nan, forward_returns(view.entry, 5))
    perfect, turned = (factor_report(changed(view, score=sign * label))["summary"].frame["value"] for sign in (1, -1))
    assert perfect["RankIC"] == 1.0 and perfect["exp(-RankMAE)"] == 1.0 and turned["RankIC"] == -1.0
    assert turned["exp(-RankMAE)"] == pytest.approx(np.exp(-np.sqrt(3)), abs=2e-3)
    assert perfect["long-only excess a year (equal)"] > 1 and turned["long-only excess a year (equal)"] < -0.5


def test_what_rises_with_the_score_has_the_same_ranks(view, report):
    again = factor_report(changed(view, score=np.exp(view.score / 3) - 2), OPTIONS)
    for name in ("quantile_daily", "by_week", "quantiles"):
        pd.testing.assert_frame_equal(*(one[name].frame.drop(columns="IC", errors="ignore") for one in (again, report)))
    np.testing.assert_allclose(again["daily"].frame["rank_ic"], report["daily"].frame["rank_ic"])


def test_the_neutral_rows_are_figures_of_residuals(view, report):
    rows = report["neutral"].frame
    assert list(rows.index) == ["raw", "industry", "industry+cap", "styles"]
    rest = neutral_score(view.score, [np.log(view.cap)], industry_codes(view.industry)[0])
    alone = factor_report(changed(view, score=rest), OPTIONS)["neutral"].frame.loc["raw"]
    np.testing.assert_allclose(rows.loc["industry+cap"].astype(float), alone.astype(float))
    assert rows.loc["industry", "names"] < rows.loc["raw", "names"]
    leaning = factor_report(changed(view, score=view.score * 0 + np.log(view.cap)), OPTIONS)
    assert np.isnan(leaning["neutral"].frame.loc["industry+cap", "RankIC"]) and leaning["neutral"].frame.loc["industry+cap", "days"] == 0


def test_alphalens_agrees():
    """Its information coefficient is Spearman's, and it enters at the price of the score's day."""
    performance = pytest.importorskip("alphalens.performance")
    from alphalens import utils
    view = make_view(2, days=60, stocks=150, ahead=8)
    entry = pd.DataFrame(np.where(np.isnan(view.entry), view.close / 1.01, view.entry), pd.DatetimeIndex(view.days), view.instruments)
    entry = entry.ffill().bfill()
    view = changed(view, entry=entry.to_numpy(), close=entry.to_numpy())
    score = pd.DataFrame(view.score, entry.index, view.instruments).rename_axis(index="date", columns="asset").stack().dropna()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = utils.get_clean_factor_and_forward_returns(score, entry.shift(-1).iloc[:-1], quantiles=5, periods=(1, 5), filter_zscore=None)
        theirs = performance.factor_information_coefficient(data)
        means = performance.mean_return_by_quantile(data, by_date=True, demeaned=False)[0]["5D"].unstack(level=0)
    found = factor_report(view, {**SMALL, "horizons": (1, 5)})
    np.testing.assert_allclose(found["daily"].frame["rank_ic"], theirs["5D"], atol=1e-10)
    np.testing.assert_allclose(found["decay"].frame["RankIC"], theirs.mean(), atol=1e-10)
    np.testing.assert_allclose(found["quantiles"].frame["mean forward return"].iloc[:5], means.mean(), atol=1e-10)


# ---- point in time ------------------------------------------------------------------------------------------------------------
def skill_from(view: FactorView) -> float:
    """RankIC t of a report."""
    return factor_report(view, OPTIONS)["summary"].frame.loc["RankIC t", "value"]


def test_a_return_before_the_entry_is_no_skill(monkeypatch):
    """On independent returns a score made of the returns up to the entry of t+1 knows nothing; a planted peek at them is caught."""
    view = make_view(3, days=150, horizon=1, ahead=3)
    entry = pd.DataFrame(view.entry).ffill().bfill().to_numpy()
    change = np.vstack([np.zeros(entry.shape[1]), entry[1:] / entry[:-1] - 1])
    shifted = {days: np.where(np.isnan(view.score), np.nan, np.roll(change, -days, axis=0)) for days in (0, 1, 2)}
    of = {days: changed(view, entry=entry, score=score) for days, score in shifted.items()}
    assert abs(skill_from(of[0])) < 4 and abs(skill_from(of[1])) < 4 and skill_from(of[2]) > 100
    monkeypatch.setattr(factor, "forward_returns", lambda prices, horizon: np.where(np.isnan(prices), np.nan, change))
    assert skill_from(of[0]) > 100, "the planted fault: the score of t against the return from t-1 to t"


def test_later_prices_change_nothing_earlier(view, report):
    day, draw = 50, np.random.default_rng(9)
    later = {name: getattr(view, name).copy() for name in ("entry", "close", "score", "cap", "benchmark")}
    for values in later.values():
        values[day + 1:] *= np.exp(draw.normal(size=values[day + 1:].shape))
    again = factor_report(changed(view, **later), OPTIONS)
    pd.testing.assert_frame_equal(again["quantile_daily"].frame.iloc[:day + 1], report["quantile_daily"].frame.iloc[:day + 1])
    known = day - 5                                             # labels of 5 days from the entry of t+1 on are known by then
    pd.testing.assert_frame_equal(again["daily"].frame.iloc[:known], report["daily"].frame.iloc[:known])
    assert not again["quantile_daily"].frame.iloc[day + 1:].equals(report["quantile_daily"].frame.iloc[day + 1:])


# ---- what is missing, what is bad ---------------------------------------------------------------------------------------------
def test_absent_inputs_are_left_out_and_said(view):
    bare = changed(view, benchmark=None, industry=None, styles={}, cap=np.full(view.cap.shape, np.nan), board=np.full(48, ""))
    found = factor_report(bare, OPTIONS)
    assert not {"by_board", "by_cap", "style_exposure", "industry_exposure"} & set(found) and list(found["neutral"].frame.index) == ["raw"]
    assert not {"index", "universe_cap"} & set(found["quantile_daily"].frame)
    assert not {"excess (index)", "excess (cap)"} & (set(found["broker"].frame) | set(found["by_week"].frame))
    lacking = "neutral to industry+cap (no industry and no cap)"
    for word in ("index", "market value", "by_board", "style_exposure", "industry_exposure", lacking):
        assert word in found["summary"].convention, word
    assert "no benchmark price" in found["broker"].convention
    assert found["summary"].frame.loc["long-only excess a year (index)", "note"] == "no benchmark price"


def test_missing_days_are_counted(view):
    score = view.score.copy()
    score[[10, 11, 30]] = np.nan                                # 2023-11-15, 16, and 2023-12-13
    score[:3] = np.nan
    score[42] = np.nan                                          # a Friday, on which the portfolios would change
    found = factor_report(changed(view, score=score), OPTIONS)
    summary = found["summary"].frame
    assert summary.loc["days without a score", "value"] == 4 and "87 trading days" in summary.loc["days without a score", "note"]
    assert summary.loc["rebalances without groups", "value"] == 1 and summary.loc["days", "value"] == 83
    assert found["daily"].frame.index[0] == pd.Timestamp("2023-11-06") and found["daily"].frame["ic"].isna().sum() == 4
    assert found["quantile_daily"].frame["Q1"].iloc[6:].notna().all()


def test_constant_days_count_as_none(view):
    score = view.score.copy()
    score[:80] = 0.3
    found = factor_report(changed(view, score=score), OPTIONS)
    assert found["summary"].frame.loc["days", "value"] == 10 and found["daily"].frame["rank_ic"].iloc[:80].isna().all()


@pytest.mark.parametrize("change, error, said", [
    (lambda v: {"score": np.full(v.score.shape, 0.1)}, DataError, "the same for all stocks on every day"),
    (lambda v: {"score": np.full(v.score.shape, np.nan)}, DataError, "no stock is scored"),
    (lambda v: {"score": np.where(np.arange(48) == 3, v.score, np.nan)}, DataError, "at most one stock is scored a day"),
    (lambda v: {"score": np.where(np.arange(48) < 4, v.score, np.nan)}, DataError,
     "at most 4 stocks are scored.*quantiles=5 and min_count=10 lower"),
    (lambda v: {"label": np.full(v.score.shape, np.nan)}, DataError, "no scored stock has a label"),
    (lambda v: {"horizon": 96}, DataError, "let the days run on"),
    (lambda v: {"horizon": 0}, ConfigError, "horizon"),
    (lambda v: {"entry": -v.entry}, DataError, "entry.*not above 0"),
    (lambda v: {"benchmark": v.benchmark[:-1]}, ShapeError, "benchmark"),
    (lambda v: {"cap": v.cap[:, 1:]}, ShapeError, "cap"),
    (lambda v: {"buyable": v.buyable.astype(int)}, ShapeError, "buyable must be bool"),
    (lambda v: {"styles": {"size": v.cap[0]}}, ShapeError, "style size"),
    (lambda v: {"days": v.days[::-1]}, DataError, "later than the one before"),
])
def test_bad_views_are_named(view, change, error, said):
    with pytest.raises(error, match=said):
        factor_report(changed(view, **change(view)), OPTIONS)


@pytest.mark.parametrize("options, said", [
    ({"quantile": 5}, "'quantile'.*quantiles"), ({"quantiles": 1}, "quantiles"), ({"horizons": 5}, "list"), ({"horizons": [0]}, "horizons"),
    ({"rebalance": "month"}, "week"), ({"neutral": ["beta"]}, "industry.*cap.*styles"), ({"neutral": "cap"}, "list"),
    ({"neutral": ["cap+cap"]}, "cap"), ({"min_count": 2.5}, "min_count"), ("weekly", "mapping"),
])
def test_bad_options_are_named(view, options, said):
    with pytest.raises(ConfigError, match=said):
        factor_report(view, options)


def test_nothing_leaks_a_warning():
    """Two scored days, one of them constant; stocks that never trade; a horizon beyond the data; tied scores; unknown groups."""
    view = make_view(4, days=12, stocks=24)
    score, entry = np.where(np.arange(18)[:, None] < 2, np.round(view.score), np.nan), view.entry.copy()
    score[1] = 1.0
    entry[:, :5] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        poor = changed(view, score=score, entry=entry, styles={"size": np.full(entry.shape, np.nan)})
        found = factor_report(poor, {**SMALL, "horizons": (1, 60)})
        for rebalance in (1, 5, "week"):
            factor_report(changed(view, entry=entry), {**SMALL, "rebalance": rebalance, "quantiles": 8})
    assert np.isnan(found["decay"].frame.loc[60, "IC"]) and found["decay"].frame.loc[60, "days"] == 0
    assert "No portfolio was formed" in found["quantiles"].convention and found["quantile_daily"].frame.isna().all().all()
