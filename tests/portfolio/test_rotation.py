"""Rotation among ETFs: the arithmetic of scores, the pool, hysteresis by hand, nothing of the future, both engines alike, faults."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from enhanced_market import backtest
from small_market import market, start_qlib

from qlib_ext.check_portfolio import check_portfolio
from qlib_ext.demo.tables import write_tables
from qlib_ext.errors import ConfigError, DataError, ShapeError
from qlib_ext.portfolio.aggregate import aggregate_scores, one_per_index, ranks, rotate, zscores
from qlib_ext.portfolio.exchange import AShareExchange
from qlib_ext.portfolio.rotation import ETFRotationStrategy, EtfPool, check_options, lacking
from qlib_ext.store.ingest import ingest
from qlib_ext.store.schema import INDEX_NAMES

START, FIRST, LAST = "2015-12-21", "2016-05-03", "2016-10-28"       # enhanced_market trades from FIRST on


# ---- arithmetic ------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def baskets():
    """40 stocks, some not scored, and 7 baskets of them."""
    draw = np.random.default_rng(5)
    score, weights = draw.normal(size=40), np.where(draw.random((7, 40)) < 0.3, draw.random((7, 40)), 0)
    score[draw.random(40) < 0.1] = np.nan
    return score, weights / weights.sum(axis=1, keepdims=True)


def test_scores_are_those_of_a_plain_loop(baskets):
    score, weights = baskets
    found = aggregate_scores(score, weights)
    known = [one for one in score if one == one]
    mean = sum(known) / len(known)
    spread = (sum((one - mean) ** 2 for one in known) / len(known)) ** 0.5
    for e in range(len(weights)):
        inside = [n for n in range(len(score)) if weights[e, n] > 0 and score[n] == score[n]]
        covered = sum(weights[e, n] for n in inside)
        raw = sum(weights[e, n] * (score[n] - mean) / spread for n in inside) / covered
        names = 1 / sum((weights[e, n] / covered) ** 2 for n in inside)
        assert found.covered[e] == pytest.approx(covered) and found.names[e] == pytest.approx(names)
        if covered >= 0.8:
            assert found.raw[e] == pytest.approx(raw) and found.score[e] == pytest.approx(raw * (names / (names + 10)) ** 0.5)
        else:
            assert np.isnan(found.raw[e]) and np.isnan(found.score[e])
    assert (found.covered < 0.8).any() and (found.covered >= 0.8).any()


def test_a_shift_of_the_market_and_a_scale_leave_the_ranking(baskets):
    score, weights = baskets
    plain = aggregate_scores(score, weights)
    for other in (score + 3.0, score * 7.0 - 100.0):
        moved = aggregate_scores(other, weights)
        np.testing.assert_allclose(moved.score, plain.score, atol=1e-10)
        np.testing.assert_array_equal(ranks(moved.score), ranks(plain.score))
    assert not np.allclose(aggregate_scores(-score, weights).score, plain.score, equal_nan=True)


def test_an_etf_of_one_stock_inherits_its_score(baskets):
    score, _ = baskets
    stock = int(np.nanargmax(score))
    found = aggregate_scores(score, np.eye(len(score))[[stock]])
    assert found.raw[0] == zscores(score)[stock] and found.names[0] == 1
    assert found.score[0] == pytest.approx(found.raw[0] / np.sqrt(11))
    assert aggregate_scores(score, np.eye(len(score))[[stock]], breadth=0).score == found.raw


def test_coverage_counts_against_the_whole_basket():
    score = np.array([1.0, -1.0, np.nan])
    cash = aggregate_scores(score, np.array([[0.5, 0.29, 0.0], [0.5, 0.3, 0.2], [0.4, 0.4, 0.2 + 1e-9], [0.5, 0.5, np.nan]]))
    np.testing.assert_array_equal(np.isfinite(cash.score), [False, True, True, True])   # 21 % in cash are not covered either
    assert np.isnan(aggregate_scores(score, np.zeros((1, 3))).score[0])
    assert np.isnan(aggregate_scores(np.ones(3), np.full((1, 3), 1 / 3)).score[0])      # scores that do not differ rank nobody


def test_breadth_shrinks_the_narrow_more():
    score = np.r_[np.full(100, 1.0), np.full(100, -1.0)]
    weights = np.zeros((3, 200))
    weights[0, 0], weights[1, :10], weights[2, :90] = 1, 0.1, 1 / 90
    found = aggregate_scores(score, weights)
    np.testing.assert_allclose(found.raw, 1)
    np.testing.assert_allclose(found.score**2, [1 / 11, 10 / 20, 90 / 100])


@pytest.mark.parametrize("weights, error, words", [
    (np.ones((2, 3)), ShapeError, r"\[e, n\]"), (np.ones(2), ShapeError, "shape"),
    (np.array([[0.5, 0.5], [40.0, 60.0]]), DataError, "basket 1"), (np.array([[1.1, -0.1]]), DataError, "from -0.1")])
def test_baskets_that_cannot_be(weights, error, words):
    with pytest.raises(error, match=words):
        aggregate_scores(np.array([1.0, 2.0]), weights)


# ---- who is in the pool, who is held -----------------------------------------------------------------------------------------------
def test_one_etf_stands_for_an_index():
    liquid, index = np.array([True, True, True, False, True, True]), np.array(["a", "a", "b", "b", "c", "c"])
    amount = np.array([5.0, 9.0, 1.0, 99.0, 4.0, 4.0])
    pick = lambda *held: np.flatnonzero(one_per_index(liquid, amount, index, np.isin(np.arange(6), held))).tolist()  # noqa: E731
    assert pick() == [1, 2, 4]          # the more traded of a, the only liquid one of b, the first of two alike
    assert pick(0) == [0, 2, 4] and pick(3, 5) == [1, 2, 5]     # who is held stays, if liquid
    assert not one_per_index(np.zeros(6, bool), amount, index).any()


def test_ties_go_by_code():
    np.testing.assert_array_equal(ranks(np.array([1.0, 2.0, np.nan, 2.0, 1.0])), [3, 1, 0, 2, 4])
    np.testing.assert_array_equal(np.flatnonzero(rotate(np.ones(5), np.zeros(5, bool), 0.5, np.ones(5, bool), 3, 4, 1, 2)), [0, 1])


def test_hysteresis_by_hand():
    """Twelve ETFs a to l, threshold .5, entry to rank 6, exit behind rank 10."""
    everyone = np.ones(12, bool)

    def next_held(score: dict, held: str, threshold=0.5, can_buy=everyone):
        values = np.array([score.get(name, np.nan) for name in "abcdefghijkl"])
        found = rotate(values, np.isin(list("abcdefghijkl"), list(held)), threshold, can_buy)
        return "".join(np.array(list("abcdefghijkl"))[found])

    falling = {name: 1 - k / 10 for k, name in enumerate("abcdefghijkl")}       # a 1.0, f .5, g .4
    assert next_held(falling, "") == "abcdef"                                   # six from .5 up
    assert next_held(falling, "", threshold=0.85) == "ab"
    assert next_held(falling, "", threshold=2.0) == "ab" == next_held(falling, "", threshold=np.nan)    # filled up to two
    assert next_held(falling, "j") == "abcdej"                                  # rank 10 stays and keeps its place
    assert next_held(falling, "k") == "abcdef"                                  # rank 11 leaves
    assert next_held(falling, "ghij", threshold=2.0) == "ghij"                  # below the threshold, but ranked
    assert next_held(falling, "efghij") == "efghij"                             # full: nobody enters
    assert next_held({**falling, "g": 0.95}, "", threshold=0.45) == "abcdeg"    # rank, not only the threshold
    assert next_held({"a": 0.9}, "bc") == "a" and next_held({}, "bc") == ""     # without a score a holding leaves
    assert next_held(falling, "", can_buy=~np.isin(list("abcdefghijkl"), ["a", "c"])) == "bdef"         # passed over; g is not among six
    assert next_held(falling, "k", threshold=2.0, can_buy=~everyone) == "k"     # nothing else can be had: it stays


# ---- in a market -------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    """The small generated market with its ETFs."""
    folder, made = tmp_path_factory.mktemp("etfs"), market()
    ingest(write_tables(made, folder / "tables", etfs=True), folder / "store", generated=True,
           index_sizes=dict(zip(INDEX_NAMES, made.index_sizes)))
    return folder / "store"


@pytest.fixture(autouse=True)
def running(request):
    if "store" in request.fixturenames:
        start_qlib(request.getfixturevalue("store"))


@pytest.fixture(scope="module")
def scored(store) -> pd.DataFrame:
    """Scores of all stocks that last for weeks."""
    from qlib.data import D
    start_qlib(store)
    days = D.calendar(start_time=START, end_time=LAST)
    names = D.list_instruments(D.instruments("all"), start_time=START, end_time=LAST, as_list=True)
    draw, values = np.random.default_rng(3), np.zeros((len(days), len(names)))
    for t in range(len(days)):
        values[t] = 0.95 * values[t - 1] + draw.normal(size=len(names))
    index = pd.MultiIndex.from_product([days, names], names=["datetime", "instrument"])
    return pd.DataFrame({"score": values.ravel()}, index=index)


OPTIONS = {"enter_rank": 3, "exit_rank": 5, "max_holdings": 4}


@pytest.fixture
def strategy(store, scored):
    return lambda **options: ETFRotationStrategy(**{"signal": scored, **OPTIONS, **options})


@pytest.fixture(scope="module")
def exchange(store):
    start_qlib(store)
    return AShareExchange("2016-04-25", "2016-12-01", codes="etf", costs="dated")


def test_both_engines_give_the_same_fills(strategy, exchange):
    quick, slow = strategy(), strategy()
    fast = quick.simulate(exchange, FIRST, LAST, 1e7)
    report, positions = backtest(slow, exchange)
    for column in ("account", "total_turnover", "total_cost", "value", "cash"):
        np.testing.assert_allclose(report[column], fast.report[column], rtol=1e-9, atol=1e-4, err_msg=column)
    for t, day in enumerate(report.index):
        held = {code: amount for code, amount in zip(fast.quotes.instruments, fast.positions[t]) if amount > 0}
        assert positions[day].get_stock_amount_dict() == pytest.approx(held, rel=1e-9)
    decisions = slow.table("decisions")
    pd.testing.assert_frame_equal(decisions, quick.table("decisions"))
    pd.testing.assert_frame_equal(slow.table("ratings"), quick.table("ratings"))
    assert decisions["day"].nunique() > 4 and len(fast.fills) > 10
    lots = fast.fills["amount"] * 1.0
    assert (np.abs(lots % 100) < 1e-6).all()                            # factor 1, lots of 100
    value = fast.fills["amount"].abs() * fast.fills["price"]
    np.testing.assert_allclose(fast.fills["cost"], np.maximum(0.00025 * value, 5))      # no stamp duty, no transfer fee


def test_it_trades_only_when_the_set_changes(strategy, exchange):
    made = strategy()
    result = made.simulate(exchange, FIRST, LAST, 1e7)
    ratings, decisions = made.table("ratings"), made.table("decisions")
    kept = ratings[ratings["kept"]].groupby("day")["instrument"].apply(set)
    changed = [day for day, before in zip(kept.index, [None, *kept]) if kept[day] != before]
    assert len(kept) > 20 and sorted(decisions["day"].unique()) == changed and len(changed) < len(kept) - 3
    traded = result.report.index[result.report["turnover"] > 0]
    assert len(traded) == len(changed)                                  # no weight is put right in between
    assert ratings.groupby("day")["kept"].sum().between(2, 4).all()
    assert decisions.groupby("day")["weight"].sum().to_numpy() == pytest.approx(1)
    assert ratings.groupby("day")["index"].apply(lambda index: index.is_unique).all()


def test_the_pool_is_that_of_the_tables(store):
    """Liquidity, class and one ETF per index, from table rows alone."""
    table = pd.read_parquet(store / "tables" / "bars.parquet", columns=["date", "instrument", "amount"])
    about = pd.read_parquet(store / "tables" / "instruments.parquet").query("etf_class == 'sector'").set_index("instrument")
    amount = table[table["instrument"].isin(about.index)].pivot(index="date", columns="instrument", values="amount").astype(float)
    pool = EtfPool()
    for day in ("2015-02-02", "2016-03-25", "2016-03-28", "2016-04-11", "2016-11-30"):
        expected, until = set(), amount.loc[:day]
        for _, codes in about.groupby("tracked_index").groups.items():
            mean = {code: until[code].iloc[-5:].mean() for code in codes if until[code].iloc[-20:].notna().all()
                    and until[code].iloc[-5:].mean() > 2e7 and until[code].iloc[-20:].mean() > 1e7}
            expected |= {max(mean, key=mean.get)} if mean else set()
        found = pool.at(np.datetime64(day))
        assert set(pool.codes[one_per_index(found.liquid, found.amount, pool.tracked)]) == expected
        assert ("SH512007" in expected) == (day >= "2016-03-28") and "SH512008" not in expected and "SH510300" not in expected
    both = EtfPool(["sector", "broad"]).at(np.datetime64("2016-11-30")).liquid.sum()
    assert both == EtfPool(None).at(np.datetime64("2016-11-30")).liquid.sum() == found.liquid.sum() + 3
    assert EtfPool(min_amount_5=1e12).at(np.datetime64("2016-11-30")).liquid.sum() == 0


@pytest.mark.parametrize("held, other", [("SH512005", "SZ159905"), ("SZ159905", "SH512005")])
def test_a_held_etf_stands_for_its_index(strategy, scored, held, other):
    """Its twin, traded more on one of these days, neither joins it nor takes its place."""
    made = strategy(exit_rank=12, max_holdings=6)
    made.schedule.first, days = 0, np.array(["2016-05-06", "2016-06-17", "2016-07-29", "2016-09-02"], "datetime64[D]")
    for day in days:
        made.target(day, day + 3, scored["score"][pd.Timestamp(day)], pd.Series({held: 1.0}), None)
    mine = made.table("ratings").query("index == 'SECTOR05'")
    assert mine["instrument"].tolist() == [held] * 4 and mine["kept"].all()
    place = [made.pool.codes.tolist().index(code) for code in (held, other)]
    ahead = [np.diff(made.pool.at(day).amount[place])[0] > 0 for day in days]
    assert any(ahead)


def test_the_benchmark_is_the_pool_alike(store):
    """Of the pool known at the close before, on days on which it changes too."""
    pool = EtfPool()
    days = pool.days[(pool.days == pool.days[0]) | ((pool.days > np.datetime64("2016-03-15")) & (pool.days < np.datetime64("2016-05-31")))]
    found, changes = pool.benchmarks(days), 0
    assert list(found) == ["equal_weight"] and np.isnan(found["equal_weight"].iloc[0])
    bars = pd.read_parquet(store / "tables" / "bars.parquet", columns=["date", "instrument", "close"])
    closes = bars[bars["instrument"].isin(pool.codes)].pivot(index="date", columns="instrument", values="close")
    moved = closes.pct_change()
    for day in days[1:]:
        names, later = (pool.codes[one_per_index(one.liquid, one.amount, pool.tracked)]
                        for one in (pool.at(pool.days[pool.days.searchsorted(day) - 1]), pool.at(day)))
        changes += set(names) != set(later)
        assert found["equal_weight"][pd.Timestamp(day)] == pytest.approx(moved.loc[pd.Timestamp(day), names].mean(), abs=1e-6)
    assert changes > 5


def test_a_basket_counts_from_its_date_and_for_so_long(store):
    pool, e = EtfPool(max_basket_age=20), 0
    table = pd.read_parquet(store / "tables" / "etf_baskets.parquet").query("instrument == @pool.codes[@e]")
    dates = table["date"].drop_duplicates().to_numpy().astype("datetime64[D]")

    def laid(day):
        row = pool.weights(day)[0][e]
        return dict(zip(pool.stocks[row > 0], row[row > 0]))

    def members(date):
        return table[table["date"] == pd.Timestamp(date)].set_index("member")["weight"].to_dict()

    assert laid(dates[5]) == members(dates[5]) and laid(dates[5] - 10) == members(dates[4]) != members(dates[5])
    assert laid(dates[5] + 20) == members(dates[5]) and laid(dates[5] + 21) == {}
    assert pool.weights(dates[5] + 21)[1]["SH512002"] == str(dates[5])


def test_the_threshold_is_of_the_past_alone(strategy, scored, store):
    made, day = strategy(history=100, min_history=50), np.datetime64("2016-06-03")
    pool = made.pool
    t = pool.days.searchsorted(day)
    parts = []
    for past in pool.days[t - 100:t]:
        state = pool.at(past)
        score = aggregate_scores(scored["score"][pd.Timestamp(past)].reindex(pool.stocks).to_numpy(), pool.weights(past)[0]).score
        parts += score[one_per_index(state.liquid, state.amount, pool.tracked)].tolist()
    parts = [one for one in parts if one == one]          # an ETF just listed has no basket yet
    assert made.threshold(day) == pytest.approx(np.quantile(parts, 0.9)) and 800 < len(parts)
    assert np.isnan(strategy(min_history=250).threshold(day))


def linked(store: Path, out: Path) -> Path:
    """The store again: folders of stocks are links, tables, instruments and ETFs are copies."""
    (out / "features").mkdir(parents=True)
    for name in ("calendars", "instruments", "tables"):
        shutil.copytree(store / name, out / name)
    funds = {line.split("\t")[0].lower() for line in (store / "instruments" / "etf.txt").read_text().splitlines()}
    for folder in (store / "features").iterdir():
        if folder.name in funds:
            shutil.copytree(folder, out / "features" / folder.name)
        else:
            (out / "features" / folder.name).symlink_to(folder)
    return out


def corrupted(store: Path, out: Path, after: str) -> Path:
    """The store with baskets, prices and amounts of ETFs changed behind a day, some baskets gone."""
    draw = np.random.default_rng(9)
    linked(store, out)
    days = (out / "calendars" / "day.txt").read_text().split()
    for code in (line.split("\t")[0] for line in (out / "instruments" / "etf.txt").read_text().splitlines()):
        for field in ("close", "open", "amount", "volume", "limit_up", "limit_down"):
            file = out / "features" / code.lower() / f"{field}.day.bin"
            raw = np.fromfile(file, "<f4")
            future = slice(max(days.index(after) - int(raw[0]), -1) + 2, None)
            raw[future] *= draw.uniform(0.2, 3, len(raw[future])).astype("<f4")
            raw.tofile(file)
    file = out / "tables" / "etf_baskets.parquet"
    table = pd.read_parquet(file)
    late = (table["date"] > pd.Timestamp(after)).to_numpy()
    table.loc[late, "weight"] = draw.permutation(table.loc[late, "weight"].to_numpy()) * 0.2
    table[~late | (draw.random(len(table)) < 0.5)].to_parquet(file)
    return out


def test_decisions_see_nothing_of_what_comes_later(strategy, scored, store, tmp_path):
    """Baskets, prices, amounts and scores changed after t: decisions and ratings up to t are the same, bit for bit, later ones are not."""
    after = "2016-07-29"

    def run(signal):
        made = strategy(signal=signal)
        made.simulate(AShareExchange("2016-04-25", "2016-12-01", codes="etf"), FIRST, LAST, 1e7)
        return [made.table(name) for name in ("ratings", "decisions")]

    plain = run(scored)
    start_qlib(corrupted(store, tmp_path / "store", after))
    spoilt = scored.copy()
    spoilt.loc[spoilt.index.get_level_values(0) > after, "score"] *= -1
    for before, changed in zip(plain, run(spoilt)):
        early, same = (one[one["day"] <= after].reset_index(drop=True) for one in (before, changed))
        pd.testing.assert_frame_equal(early, same, check_exact=True)
        assert len(early) and not before[before["day"] > after].equals(changed[changed["day"] > after])


# ---- bad input ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def said(monkeypatch):
    found = []
    monkeypatch.setattr("qlib_ext.portfolio.rotation.logger.warning", found.append)
    return found


def edited(store: Path, out: Path, name: str, change) -> Path:
    """The store with a kept table replaced."""
    file = linked(store, out) / "tables" / f"{name}.parquet"
    change(pd.read_parquet(file)).to_parquet(file)
    start_qlib(out)
    return out


def test_etfs_without_a_basket_are_named_and_left_out(strategy, scored, store, exchange, tmp_path, said):
    edited(store, tmp_path / "old", "etf_baskets", lambda table: table[~(table["instrument"].isin(["SH512002", "SH512009"]) &
                                                                         (table["date"] > "2016-03-31"))
                                                                       & (table["instrument"] != "SH512011")])
    made = strategy()
    made.simulate(exchange, FIRST, LAST, 1e7)
    assert len(said) == 3 and f"{said}".count("SH512011 is left out: it has no basket yet (said once)") == 1
    assert any("2016-07-15: SH512002 is left out: its last basket is of 2016-03-31, older than 100 days" in one for one in said)
    rated = made.table("ratings").query("instrument in ['SH512002', 'SH512009', 'SH512011']")
    assert rated["score"].isna().groupby(rated["instrument"]).any().all() and not rated["kept"][rated["score"].isna()].any()
    few = scored[scored.index.get_level_values(1) < "SH600006"]
    with pytest.raises(DataError, match=r"none of the \d+ ETFs of the pool has a score \(SH512001: only \d+% of its basket of 2016-"):
        strategy(signal=few).simulate(exchange, FIRST, LAST, 1e7)


def test_weights_that_do_not_sum_are_refused_at_once(strategy, store, tmp_path):
    edited(store, tmp_path / "percent", "etf_baskets", lambda table: table.assign(weight=table["weight"] * 100))
    with pytest.raises(DataError, match=r"the basket of SH510300 on 2015-01-05 has weights from .* that sum to (99|100).*385 such baskets"):
        strategy()


def test_where_nothing_trades_enough_the_account_is_cash(strategy, exchange, said):
    made = strategy(min_amount_5=1e12)
    result = made.simulate(exchange, FIRST, LAST, 1e7)
    assert len(result.fills) == 0 and (result.report["cash"] == 1e7).all()
    assert len(said) == 1 and "no ETF of the pool trades more than 1e+12 CNY" in said[0] and "cash" in said[0]
    alone = strategy(min_amount_5=1.5e8)                        # one ETF or two: never more than half of the account in one
    alone.simulate(exchange, FIRST, LAST, 1e7)
    assert alone.table("decisions")["weight"].max() == 0.5 and alone.table("ratings").groupby("day").size().min() == 1


def test_scores_that_do_not_differ_leave_the_portfolio(strategy, scored, exchange, said):
    flat = scored.copy()
    flat.loc["2016-06-01":] = 1.0
    made = strategy(signal=flat)
    result = made.simulate(exchange, FIRST, LAST, 1e7)
    assert made.table("ratings")["day"].max() < "2016-06-01" and result.fills["datetime"].max() < pd.Timestamp("2016-06-04")
    assert all("do not differ" in one for one in said) and len(said) > 10
    with pytest.raises(DataError, match="do not differ on any day"):
        strategy(signal=scored * 0 + 1.0).simulate(exchange, FIRST, LAST, 1e7)


def test_a_store_without_etf_tables_is_refused_before_any_work(scored, store, tmp_path):
    bare = linked(store, tmp_path / "bare")
    for file in ("instruments/etf.txt", "tables/etf_baskets.parquet"):
        (bare / file).unlink()
    start_qlib(bare)
    with pytest.raises(ConfigError, match="no universe etf: ingest bars of ETFs.*no table etf_baskets"):
        ETFRotationStrategy(signal=scored)
    edited(store, tmp_path / "unclassed", "instruments", lambda table: table.drop(columns=["etf_class"]))
    with pytest.raises(ConfigError, match="no ETF of class sector: add etf_class"):
        ETFRotationStrategy(signal=scored)
    assert lacking(store) == [] and len(EtfPool(None).codes) == 16


class View:
    """What `check` knows of a store."""

    def __init__(self, path: Path):
        self.path, self.universes = path, ["all", "etf"]

    def missing_fields(self, names, codes):
        return []


def test_check_names_faults_before_training(store, tmp_path):
    def faults(path, codes="etf", **kwargs):
        strategy = {"class": "ETFRotationStrategy", "module_path": "qlib_ext.portfolio.rotation", "kwargs": {"signal": "<PRED>", **kwargs}}
        exchange = {"class": "AShareExchange", "module_path": "qlib_ext.portfolio.exchange", "kwargs": {"codes": codes}}
        found = []
        check_portfolio(lambda *fault: found.append(": ".join(fault)), print, "record",
                        {"strategy": strategy, "backtest": {"exchange_kwargs": {"exchange": exchange}}}, View(path), [])
        return found

    assert faults(store) == [] and faults(store, classes=None) == []
    assert "set codes: etf" in faults(store, codes="all")[0]
    assert "choose of ['sector', 'broad']" in faults(store, classes="sector")[0]
    assert "max_holdings=1" in faults(store, max_holdings=1)[0] and "rebalance" in faults(store, rebalance="daily")[0]
    bare = [one for one in faults(tmp_path)]
    assert len(bare) == 4 and "no universe etf: ingest" in bare[0]


@pytest.mark.parametrize("options, words", [
    ({"enter_rank": 0}, "enter_rank=0 must be a whole number"), ({"enter_rank": 6, "exit_rank": 5}, "must not be above exit_rank=5"),
    ({"quantile": 1.5}, "quantile=1.5 must be a number from 0 to 1"), ({"min_coverage": "much"}, "min_coverage='much'"),
    ({"breadth": -1}, "breadth=-1"), ({"history": 2.5}, "history=2.5"), ({"max_basket_age": True}, "max_basket_age=True")])
def test_options_that_nothing_can_be_rotated_by(options, words):
    with pytest.raises(ConfigError, match=words):
        check_options(**options)
