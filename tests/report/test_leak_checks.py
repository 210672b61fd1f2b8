"""The rules of the leak checks on made-up scores: honest ones pass, planted leaks do not, and figures equal slow ones."""
import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import DataError
from qlib_ext.report import leak_checks as rules
from qlib_ext.report.leak_checks import Rebuilt, Verdict
from qlib_ext.report.metrics import newey_west_t

DAYS = np.arange("2020-01-01", "2021-03-01", dtype="datetime64[D]")
STOCKS = [f"SH60{k:04d}" for k in range(40)]


def frame(values: np.ndarray) -> pd.Series:
    """`[t, n]` as a Series on (datetime, instrument)."""
    days = pd.DatetimeIndex(DAYS[:len(values)].astype("datetime64[ns]"))
    index = pd.MultiIndex.from_product([days, STOCKS], names=["datetime", "instrument"])
    return pd.Series(values.ravel(), index=index)


@pytest.fixture(scope="module")
def returns():
    """Close-to-close returns `[t, n]`: a drift that lives for weeks, and noise."""
    draw, drift = np.random.default_rng(0), np.zeros((len(DAYS) + 10, len(STOCKS)))
    for day in range(1, len(drift)):
        drift[day] = 0.95 * drift[day - 1] + draw.normal(0, 0.3, len(STOCKS))
    return drift, 0.02 * draw.standard_normal(drift.shape) + 0.005 * drift


def forward(values: np.ndarray, first: int, last: int) -> np.ndarray:
    """Sum of the rows t + first .. t + last for each t `[t, n]`."""
    return sum(values[k:k + len(DAYS)] for k in range(first, last + 1))


def delays(score: np.ndarray, label: np.ndarray) -> list[np.ndarray]:
    table = pd.concat({"label": frame(label), **{str(k): rules.delayed(frame(score), DAYS, k) for k in range(3)}}, axis=1)
    return [column for column in rules.daily_ics(table, 10).to_numpy().T]


# ---- shared ----------
def test_label_days():
    for text, days in {"Ref($close, -6) / Ref($close, -1) - 1": 5, "Ref($close,-2)/Ref($close,-1)-1": 1, "Ref($close, -5)/$close - 1": 5,
                       "Ref($vwap, -11)/Ref($vwap, -1) - 1": 10, "$close/Ref($close, 5)": None, None: None}.items():
        assert rules.label_days(text) == days


def test_shuffles_stay_within_the_day_and_among_the_known():
    draw = np.random.default_rng(1)
    day, values = draw.integers(0, 6, 300), draw.standard_normal(300)
    known = draw.random(300) < 0.8
    source = rules.permutation(day, known, draw)
    assert np.array_equal(np.sort(source), np.arange(300)) and np.array_equal(day[source], day)
    assert np.array_equal(source[~known], np.flatnonzero(~known)) and (source[known] != np.flatnonzero(known)).mean() > 0.9
    assert np.array_equal(values[source][day == 3][known[day == 3]].sum(), values[source][(day == 3) & known].sum())
    other = rules.permutation(day, known, np.random.default_rng(2))
    assert not np.array_equal(source, other)


def test_standard_error_is_that_of_the_t():
    daily = np.random.default_rng(3).normal(0.05, 0.1, 200)
    daily[7] = np.nan
    assert rules.standard_error(daily, 4) == pytest.approx(np.nanmean(daily) / newey_west_t(daily, 4), rel=1e-9)
    assert np.isnan(rules.standard_error([0.1], 4)) and np.isnan(rules.standard_error([0.1, 0.1], 4))


def test_daily_ics_take_the_same_rows_for_all():
    draw = np.random.default_rng(4)
    table = pd.concat({name: frame(draw.standard_normal((len(DAYS), 40))) for name in ("label", "a")}, axis=1)
    table["b"] = table["a"].where(draw.random(len(table)) < 0.5)
    table.loc[table.index[:40], ["a", "b"]] = 1.0                           # a day of scores that are all alike
    found = rules.daily_ics(table, 10)
    day = table.dropna().loc[table.index[40 * 9][0]]
    assert found["a"].iloc[8] == pytest.approx(np.corrcoef(day["a"], day["label"])[0, 1]) and found["a"].equals(found["b"])
    counted = rules.daily_ics(table, 10, constant=0.0)
    assert len(found) == len(DAYS) - 1 and counted["a"].iloc[0] == 0 and len(counted) == len(DAYS)
    with pytest.raises(DataError, match="no day has 41"):
        rules.daily_ics(table, 41)


def test_a_table_says_what_was_not_run():
    found = rules.checks_frame({"a": Verdict(True, "x"), "b": Verdict(False, "y", "s", 2.0, 1.0), "c": Verdict(None, "not run: z")})
    assert list(found.columns) == ["passed", "figure", "limit", "what", "sample"] and found.index.name == "check"
    assert found["passed"].tolist()[:2] == [True, False] and np.isnan(found.loc["c", "passed"]) and found.loc["b", "figure"] == 2.0


# ---- segment_end ----------
def test_scores_that_know_the_whole_segment():
    draw = np.random.default_rng(5)
    whole = frame(draw.standard_normal((60, 40)))
    same = rules.judge_segment_end({"a": rules.largest_difference(whole, whole.sample(frac=1, random_state=0))}, 1e-6, "")
    assert same.passed and same.figure == 0 and "bit-equal" in same.what
    last = pd.Timestamp(DAYS[50])
    normal = lambda part: (part - part.mean()) / part.std()  # noqa: E731
    part = whole[whole.index.get_level_values(0) <= last]
    found = rules.largest_difference(normal(whole)[:len(part)], normal(part))
    judged = rules.judge_segment_end({"one": 0.0, "the other": found}, 1e-6, "")
    assert judged.passed is False and "(the other)" in judged.what and judged.figure == found
    one_less = rules.largest_difference(normal(whole)[:59 * 40], normal(whole[:59 * 40]))
    assert one_less > 1e-5, "one day of sixty shows"
    assert rules.largest_difference(whole, whole * (1 + 1e-7)) == pytest.approx(1e-7, rel=1e-2)
    assert rules.judge_segment_end({"a": 5e-7}, 1e-6, "").what.startswith("Scores of the first days are the same within 5.0e-07")
    absent = rules.largest_difference(whole, whole[1:])
    assert np.isinf(absent) and "other stocks" in rules.judge_segment_end({"a": absent}, 1e-6, "").what


def test_cut_points():
    for days, count in ((3, 0), (4, 1), (6, 3), (500, 3)):
        found = rules.cut_points(days, 3, np.random.default_rng(0))
        assert len(found) == len(set(found)) == count and all(3 <= k < days and k <= 60 for k in found) and found == sorted(found)


# ---- shuffled_labels ----------
def test_a_prediction_from_shuffled_labels(returns):
    drift, price = returns
    label, draw = forward(price, 2, 6), np.random.default_rng(6)
    noise = draw.standard_normal(label.shape)
    table = pd.concat({"label": frame(label), "noise": frame(noise), "leak": frame(noise - 10 * label)}, axis=1)
    daily = {name: column.to_numpy() for name, column in rules.daily_ics(table, 10).items()}
    assert rules.judge_shuffled({"noise": daily["noise"]}, 4, "").passed
    found = rules.judge_shuffled(daily, 4, "")
    assert found.passed is False and found.figure > 0.15 and found.limit < 0.07, "of either sign"
    assert "with leak" in found.what, "the worst is shown"
    assert rules.judge_shuffled({"constant": np.zeros(100)}, 4, "").passed, "a constant predicts nothing"


# ---- delayed_features ----------
def test_delayed_scores_are_those_of_the_days_before():
    score = frame(np.random.default_rng(7).standard_normal((20, 40)))
    later = rules.delayed(score, DAYS[:20], 2)
    assert later.loc[(pd.Timestamp(DAYS[9]), STOCKS[3])] == score.loc[(pd.Timestamp(DAYS[7]), STOCKS[3])] and len(later) == 18 * 40
    assert rules.delayed(score, DAYS[:20], 0).equals(score)
    sparse = DAYS[[0, 2, 3]]                                                # a calendar with a hole
    assert rules.delayed(score[:40], sparse, 1).index[0][0] == pd.Timestamp(sparse[1])


def test_an_honest_forecast_of_five_days_lasts(returns):
    drift, price = returns
    found = rules.judge_delayed(delays(drift[:len(DAYS)], forward(price, 2, 6)), 4, 5, "")
    assert found.passed and not found.warning and found.figure > 0.8 and "fades as forecasts do" in found.what


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_look_at_the_next_bar_collapses(returns, noise):
    """The label begins with the return from t+1 to t+2: with inputs a day old, the leaked return is over before the label begins."""
    leaked = returns[1][2:2 + len(DAYS)] + noise * np.random.default_rng(8).standard_normal((len(DAYS), 40))
    label = forward(returns[1] - 0.005 * returns[0], 2, 6)
    found = rules.judge_delayed(delays(leaked, label), 4, 5, "")
    assert found.passed is False and found.figure < 0.2 and "next day's bar" in found.what


def test_one_day_labels_may_lose_all(returns):
    """A forecast of tomorrow alone is worth nothing a day later: suspect, a failure only where it is too good besides."""
    label = returns[1][2:2 + len(DAYS)] - 0.005 * returns[0][2:2 + len(DAYS)]
    honest = label + 0.25 * np.random.default_rng(9).standard_normal(label.shape)
    found = rules.judge_delayed(delays(honest, label), 0, 1, "")
    assert found.passed and "too small" in found.what
    assert rules.judge_delayed(delays(honest, label), 0, 2, "").passed is False
    much = label + 0.05 * np.random.default_rng(9).standard_normal(label.shape)
    assert rules.judge_delayed(delays(much, label), 0, 1, "").passed is False


def test_what_is_too_small_or_fades_fast(returns):
    noise = np.random.default_rng(10).standard_normal((len(DAYS), 40))
    assert "too small" in rules.judge_delayed(delays(noise, forward(returns[1], 2, 6)), 4, 5, "").what
    fast = rules.judge_delayed([np.tile([0.05, 0.07], 50), np.tile([0.01, 0.03], 50)], 4, 5, "")
    assert fast.passed and fast.warning and "fades fast" in fast.what


# ---- future_corrupted ----------
def test_changed_counts_bits():
    before = pd.DataFrame({"a": [1.0, np.nan, 3.0], "b": [1.0, 2.0, 3.0]}, index=list("xyz"))
    assert rules.changed(before, before.copy()).sum() == 0
    after = before.copy()
    after.loc["x", "b"] = np.nextafter(1.0, 2)
    after.loc["y", "a"] = 0.0
    assert rules.changed(before, after).to_dict() == {"a": 1, "b": 1}
    assert rules.changed(before, before.drop(index="y")).to_dict() == {"a": 1, "b": 1}, "a row that is gone counts whole"


def rebuilt(changed: int = 0, later: int = 9, difference: float = 0.0) -> Rebuilt:
    return Rebuilt("2020-02-03", pd.Series({"KMID": 0, "LEAK": changed}), 100, later, difference, 50)


def test_what_knows_the_future():
    assert rules.judge_corrupted([rebuilt(), rebuilt()], 1e-6, "").passed
    found = rules.judge_corrupted([rebuilt(), rebuilt(changed=30)], 1e-6, "")
    assert found.passed is False and found.figure == 0.3 and "the inputs LEAK of days up to t" in found.what
    assert "the scores of days up to t" in rules.judge_corrupted([rebuilt(difference=0.1)], 1e-6, "").what
    blind = rules.judge_corrupted([rebuilt(), rebuilt(later=0)], 1e-6, "")
    assert blind.passed is None and "not run" in blind.what, "noise that reaches nothing shows nothing"
    assert rules.judge_corrupted([rebuilt(later=0, difference=0.1)], 1e-6, "").passed is False


# ---- too_good ----------
@pytest.mark.parametrize("ic, days, best, passed", [
    (0.09, 5, None, True), (0.11, 5, None, False), (-0.11, 1, None, False), (0.11, None, None, False), (0.2, 10, None, None),
    (0.07, 5, 0.08, True), (0.09, 5, 0.08, False), (0.09, 10, 0.08, False), (0.005, 5, 0.0, True), (0.09, 5, 0.0, False)])
def test_too_good(ic, days, best, passed):
    draw = np.random.default_rng(11).normal(0, 0.1, 300)
    found = rules.judge_too_good(draw - draw.mean() + ic, 4, days, "", best)
    assert found.passed is passed and found.figure == pytest.approx(abs(ic))
