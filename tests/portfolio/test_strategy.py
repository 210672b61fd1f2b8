"""Index enhancement and top-k inside Qlib's loop and the fast engine: schedule, locks, certificates, nothing of the future."""
import copy
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from enhanced_market import FIRST, LAST, LIMITS, backtest, scores
from small_market import prepared, start_qlib

from qlib_ext.errors import ConfigError, DataError, InfeasibleError
from qlib_ext.portfolio.closes import Closes, index_scale
from qlib_ext.portfolio.exchange import AShareExchange
from qlib_ext.portfolio.strategy import EnhancedIndexingStrategy, IndexEnhancementStrategy, Schedule, TopKStrategy, week_of


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    store, risk = prepared(tmp_path_factory.getbasetemp() / "small_market")
    start_qlib(store)
    return store, risk


@pytest.fixture
def made(market):
    """A strategy with some keywords replaced, and the exchange."""
    store, risk = market

    def make(kind=IndexEnhancementStrategy, **options):
        usual = {"signal": scores(store)}
        if kind is IndexEnhancementStrategy:
            usual.update(index="csi1000", optimizer={"constraints": LIMITS}, snapshots=str(risk))
        return kind(**{**usual, **options})
    return make


@pytest.fixture(scope="module")
def exchange(market):
    return AShareExchange("2016-04-25", "2016-12-01", costs="dated")


STRATEGIES = {"enhanced": {}, "topk": {"kind": TopKStrategy, "topk": 100, "buffer": 0.5, "universe": "csi1000"},
              "next in rank": {"kind": TopKStrategy, "topk": 20, "out_of": 100, "replace_blocked": True},
              "every third day": {"rebalance": 3}, "part": {"risk_degree": 0.9}}


@pytest.mark.parametrize("name", STRATEGIES)
def test_fast_engine_is_qlibs_loop(made, exchange, name):
    fast = made(**STRATEGIES[name]).simulate(exchange, FIRST, LAST, 1e7)
    slow = made(**STRATEGIES[name])
    report, positions = backtest(slow, exchange)
    for column in ("account", "total_turnover", "total_cost", "value", "cash"):
        np.testing.assert_allclose(report[column], fast.report[column], rtol=1e-9, atol=1e-4, err_msg=column)
    np.testing.assert_allclose(report["return"], fast.report["return"], atol=1e-12)
    last = positions[report.index[-1]].get_stock_amount_dict()
    held = {code: amount for code, amount in zip(fast.quotes.instruments, fast.positions[-1]) if amount > 0}
    assert last == pytest.approx(held, rel=1e-9)
    assert len(fast.fills) > 50


def test_certificates_prove_every_rebalance(made, exchange):
    strategy = made()
    result = strategy.simulate(exchange, FIRST, LAST, 1e7)
    certificates, exposures, decisions = (strategy.table(name) for name in ("certificates", "exposures", "decisions"))
    days = pd.DatetimeIndex(certificates["trade_day"])
    assert len(certificates) == len({week_of(day) for day in result.quotes.days}) and days[0] == result.report.index[0]
    assert (certificates["violation"] <= 1e-8).all() and (certificates["gap"] <= 2e-6).all()
    assert certificates["invested"].to_numpy() == pytest.approx(1) and (certificates["turnover"][1:] <= 0.3 + 1e-8).all()
    strict = certificates.loc[certificates["status"] == "optimal", "day"]
    inside = exposures[exposures["day"].isin(strict) & np.isfinite(exposures["high"])]
    assert len(inside) and (inside["exposure"].abs() <= inside["high"] + 1e-8).all()
    assert (decisions["weight"] <= np.maximum(5 * decisions["benchmark"], decisions["current"]) + 1e-8).all()
    totals = decisions.groupby("day")[["weight", "benchmark"]].sum()
    assert totals.to_numpy() == pytest.approx(1)
    assert set(fills_on(result)) == set(days[[True] + [True] * (len(days) - 1)])
    assert json.loads(certificates["notes"][0])["scale"] == {"factor": 25.0, "of": []}


def fills_on(result):
    return result.fills["datetime"].unique()


def test_decisions_are_made_at_the_close_and_traded_the_next_day(made, exchange):
    strategy = made()
    result = strategy.simulate(exchange, FIRST, LAST, 1e7)
    table, calendar = strategy.table("certificates"), Closes(None).days
    decided, traded = (table[name].to_numpy(dtype="datetime64[D]") for name in ("day", "trade_day"))
    assert (np.searchsorted(calendar, traded) - np.searchsorted(calendar, decided) == 1).all()
    assert all(week_of(a) < week_of(b) for a, b in zip(decided[1:], traded[1:]))
    held = result.weights()
    t = int(np.searchsorted(result.quotes.days, traded[5]))
    current = strategy.table("decisions").query("day == @table.day[5]").set_index("instrument")["current"]
    before = pd.Series(held[t - 1], index=result.quotes.instruments)
    assert current[current > 0].to_dict() == pytest.approx(before[before > 0].to_dict(), rel=1e-9)


def test_locks_are_those_of_the_close(made, exchange):
    """What was suspended keeps its weight, what closed at the upper limit is not bought, at the lower one not sold."""
    strategy = made(optimizer={"constraints": {"tracking_error": 0.03}})                  # close to the index: nearly all members are held
    strategy.simulate(exchange, FIRST, LAST, 1e7)
    from qlib.data import D
    fields, counts = D.features(D.instruments("all"), ["$close", "$limit_up", "$limit_down"], start_time=FIRST,
                                end_time=LAST), {"halted": 0, "no_buy": 0}
    for day, rows in strategy.table("decisions").groupby("day"):
        for name, weight, current in rows[["instrument", "weight", "current"]].itertuples(index=False):
            if pd.Timestamp(day) < pd.Timestamp(FIRST):
                continue
            close, up, down = fields.loc[(name, pd.Timestamp(day))] if (name, pd.Timestamp(day)) in fields.index else [np.nan] * 3
            if np.isnan(close):
                counts["halted"] += current > 0
                assert weight == pytest.approx(current, abs=1e-9)
            elif close >= up * 0.9999:
                counts["no_buy"] += 1
                assert weight <= current + 1e-9
            elif close <= down * 1.0001:
                assert weight >= current - 1e-9
    assert all(counts.values()), counts


def test_nothing_of_the_future_enters_a_decision(made, market, exchange, tmp_path):
    """Prices, limits, flags and weights after a day are corrupted: decisions up to the day stay the same to the last bit."""
    store, _ = market
    strategy = made()
    strategy.simulate(exchange, FIRST, LAST, 1e7)
    kept = strategy.table("decisions")
    spoilt = tmp_path / "store"
    shutil.copytree(store, spoilt)
    day = pd.Timestamp("2016-08-12")
    calendar = pd.DatetimeIndex((spoilt / "calendars" / "day.txt").read_text().split())
    draw, after = np.random.default_rng(0), int(calendar.searchsorted(day, side="right"))
    for file in (spoilt / "features").rglob("*.day.bin"):
        content = np.fromfile(file, "<f4")
        first = max(after - int(content[0]), 0) + 1
        if first < len(content) and file.name != "factor.day.bin":
            content[first:] *= draw.uniform(0.7, 1.3, len(content) - first).astype(np.float32)
            content.tofile(file)
    start_qlib(spoilt)
    try:
        again = made()
        again.simulate(AShareExchange("2016-04-25", "2016-12-01", costs="dated"), FIRST, LAST, 1e7)
        found = again.table("decisions")
    finally:
        start_qlib(store)
    past = lambda frame: frame[frame["day"] <= str(day.date())].reset_index(drop=True)  # noqa: E731
    pd.testing.assert_frame_equal(past(kept), past(found), check_exact=True)
    assert len(past(kept)) < len(kept) and not kept.equals(found)


def test_members_returns_are_the_stores_total_return_index(made, market):
    from qlib.data import D
    closes = made().closes
    days = closes.days[(closes.days >= np.datetime64(FIRST)) & (closes.days <= np.datetime64(LAST))]
    found = closes.benchmarks(days)
    index = D.features(["CSI1000TR"], ["$change"], start_time=FIRST, end_time=LAST).droplevel(0)["$change"]
    np.testing.assert_allclose(found["total_return"], index, atol=2e-6)
    returns = D.features(D.instruments("all"), ["$change", "Ref($csi1000_weight, 1)"], start_time=FIRST, end_time=LAST)
    held = returns[returns.iloc[:, 1] > 0]["$change"].fillna(0.0).groupby("datetime").mean()
    np.testing.assert_allclose(found["equal_weight"], held, atol=1e-6)


def test_caps_grow_on_a_store_with_small_indices(made, exchange):
    assert index_scale("csi1000") == 25 and index_scale("all") == 1
    strategy = made(optimizer={"constraints": {"cap": 0.01, "industry": 0.5}}, scale=None)
    strategy.simulate(exchange, FIRST, "2016-05-20", 1e7)
    assert strategy.table("decisions")["weight"].max() == pytest.approx(0.25, abs=1e-6)
    assert json.loads(strategy.table("certificates")["notes"][0])["scale"] == {"factor": 25.0, "of": ["cap"]}


def test_an_impossible_rebalance_raises_or_holds(made, exchange):
    impossible = {"optimizer": {"constraints": {"cap": 0.3, "member_share": 1.0, "industry": 0.0, "style": {"size": 0.0, "beta": 0.0},
                                                "tracking_error": 1e-5}, "ladder": None}}
    with pytest.raises(InfeasibleError, match="no weights keep all of"):
        made(**impossible, blacklist=Closes("csi1000").codes[::2].tolist()).simulate(exchange, FIRST, LAST, 1e7)
    strategy = made(**impossible, blacklist=Closes("csi1000").codes[::2].tolist(), infeasible="hold")
    result = strategy.simulate(exchange, FIRST, "2016-05-20", 1e7)
    assert (strategy.table("certificates")["status"] == "infeasible").all() and (result.report["turnover"] == 0).all()


def test_blacklist_and_special_treatment_are_not_bought(made, exchange):
    plain = made()
    plain.simulate(exchange, FIRST, "2016-06-30", 1e7)
    bought = plain.table("decisions").query("weight > 0")["instrument"].value_counts().index[:5].tolist()
    strategy = made(blacklist=bought)
    strategy.simulate(exchange, FIRST, "2016-06-30", 1e7)
    assert not strategy.table("decisions").query("instrument in @bought and weight > 0").shape[0]
    closes, freely = Closes(None), Closes(None, buy_special=True)
    special = closes.special
    t = np.flatnonzero(special.any(axis=1))[0]
    assert closes.at(closes.days[t]).no_buy[special[t]].all()
    assert (closes.at(closes.days[t]).no_buy & ~freely.at(closes.days[t]).no_buy).any()


def test_new_listings_are_not_bought_for_sixty_days(market):
    closes, freely = Closes(None), Closes(None, listed_days=0)
    begin = np.array([np.flatnonzero(closes.close[:, n] > 0)[0] for n in range(len(closes.codes))])
    new = np.flatnonzero((begin > 0) & (begin < len(closes.days) - 61))
    assert len(new)
    for n in new:
        assert closes.at(closes.days[begin[n] + 59]).no_buy[n] and closes.young[begin[n]:begin[n] + 60,
                                                                                n].all() and not closes.young[begin[n] + 60, n]
    assert not freely.young.any() and not closes.young[:, begin == 0].any()


def test_top_k_keeps_what_is_within_the_buffer(made, exchange, market):
    strategy = made(TopKStrategy, topk=250, buffer=1.0, universe="csi1000")              # 10 of 40: the index is 25 times smaller
    assert strategy.topk == 10
    strategy.simulate(exchange, FIRST, LAST, 1e7)
    table, before, stayed = strategy.table("decisions"), None, 0
    for day, rows in table.groupby("day"):
        ranked = scores(market[0]).loc[day, "score"].dropna().sort_values(ascending=False)
        inside = member_codes(day)
        members = [code for code in ranked.index if code in inside]
        now = set(rows["instrument"])
        assert rows["weight"].sum() == pytest.approx(1) and len(now) == 10
        if before is not None:
            movable = {code for code in before if code in members[:20]}
            assert movable <= now or len(movable) > 10
            stayed += len(movable)
        before = now
    assert stayed > 10


def test_top_k_does_not_add_to_what_may_not_be_bought(made, exchange, market):
    plain = made(TopKStrategy, topk=20)
    plain.simulate(exchange, FIRST, LAST, 1e7)
    table = plain.table("decisions")
    first = table["day"].iloc[0]
    code = table.query("day == @first")["instrument"].iloc[0]
    held = pd.Series({code: 0.02})
    day, after = (np.datetime64(one) for one in (first, table["day"].unique()[1]))
    strategy = made(TopKStrategy, topk=20, blacklist=[code])
    weights = strategy.target(day, after, plain.signal.get_signal(pd.Timestamp(first), pd.Timestamp(first)), held, exchange)
    assert weights[code] == pytest.approx(0.02) and weights.sum() == pytest.approx(1) and len(weights) == 20
    assert weights.drop(code).to_numpy() == pytest.approx(0.98 / 19)
    free = made(TopKStrategy, topk=20).target(day, after, plain.signal.get_signal(pd.Timestamp(first), pd.Timestamp(first)), held, exchange)
    assert free.to_numpy() == pytest.approx(1 / 20)


def blocking(exchange, day: np.datetime64, buy=(), sell=()):
    """The exchange on which some stocks cannot be bought, others not be sold, on a day."""
    made = copy.copy(exchange)
    quotes, t = exchange.quotes, int(np.searchsorted(exchange.quotes.days, day))
    can = {"can_buy": quotes.can_buy.copy(), "can_sell": quotes.can_sell.copy()}
    for name, codes in (("can_buy", buy), ("can_sell", sell)):
        can[name][t, np.isin(quotes.instruments, list(codes))] = False
    made.quotes = replace(quotes, **can)
    return made


def test_the_next_in_rank_stands_in_for_whom_the_day_of_trading_blocks(made, exchange, market):
    day, after = np.datetime64("2016-06-03"), np.datetime64("2016-06-06")
    score = scores(market[0]).loc[str(day), "score"].dropna()

    def target(held, exchange, **options):
        return made(TopKStrategy, topk=20, **options).target(day, after, score, pd.Series(held, dtype=float), exchange)
    free = target({}, exchange, replace_blocked=True)
    best = score[free.index].sort_values().index
    blocked = blocking(exchange, after, buy=best[-3:], sell=["SH600001"])
    found = target({"SH600001": 0.05}, blocked, replace_blocked=True)
    assert len(found) == 20 and not set(best[-3:]) & set(found.index) and set(best[:-3]) <= set(found.index)
    assert found["SH600001"] == pytest.approx(0.05) and found.drop("SH600001").to_numpy() == pytest.approx(0.95 / 19)
    new = set(found.index) - set(free.index) - {"SH600001"}
    assert len(new) == 2 and score[list(new)].max() < score[best[0]]                       # those that follow in rank
    assert set(best) <= set(target({}, blocked).index), "without the option only the close decides"
    order = score.sort_values(ascending=False).index
    free = made(TopKStrategy, topk=400, replace_blocked=True).target(day, after, score, pd.Series(dtype=float), exchange).index
    line = [code for code in order if code in free]                                         # those that can be bought, in their order
    hole, held = blocking(exchange, after, buy=[line[0]]), {line[1]: 0.5, line[2]: 0.5}
    stands = made(TopKStrategy, topk=2, replace_blocked=True).target(day, after, score, pd.Series(held), hole)
    assert set(stands.index) == {line[1], line[2]}, "the next in rank is kept where it is held"
    with pytest.raises(ConfigError, match="AShareExchange"):
        target({}, None, replace_blocked=True)


def test_blocked_names_do_not_leave_cash(made, exchange, market):
    """Who cannot be bought on the day of trading leaves a hole, unless the next in rank stands in."""
    best = scores(market[0])["score"].unstack().rank(axis=1, ascending=False) <= 5
    spoilt = exchange
    for decided, traded in zip(exchange.quotes.days[:-1], exchange.quotes.days[1:]):
        if week_of(decided) != week_of(traded) and pd.Timestamp(decided) in best.index:
            spoilt = blocking(spoilt, traded, buy=best.columns[best.loc[decided]])
    cash = {option: made(TopKStrategy, topk=20, replace_blocked=option).simulate(spoilt, FIRST, "2016-06-30", 1e8).report["cash"].mean()
            for option in (True, False)}
    assert cash[True] < 0.03e8 and cash[False] > 0.1e8


def test_top_k_of_a_smaller_market(made, exchange):
    """A share of the candidates: 20 of 100 are 16 of some 80; a market as large as meant, or larger, has them all."""
    strategy = made(TopKStrategy, topk=20, out_of=100)
    strategy.simulate(exchange, FIRST, "2016-06-30", 1e7)
    counts = strategy.table("decisions").groupby("day").size()
    assert counts.between(14, 18).all()
    large = made(TopKStrategy, topk=20, out_of=40)
    large.simulate(exchange, FIRST, "2016-06-30", 1e7)
    assert (large.table("decisions").groupby("day").size() == 20).all()


def member_codes(day: str) -> set:
    from qlib_ext.data.universe import member_spans
    return {code for code, spans in member_spans("csi1000").items() if any(a <= pd.Timestamp(day) <= b for a, b in spans)}


def test_a_backtest_cannot_start_on_the_stores_first_day(made, market):
    first = str(Closes(None).days[0])
    exchange = AShareExchange(None, "2015-03-01")
    with pytest.raises(DataError, match="the first day of the store"):
        made().simulate(exchange, first, "2015-02-10")
    from qlib.backtest import backtest as run
    executor = {"class": "SimulatorExecutor", "module_path": "qlib.backtest.executor", "kwargs": {"time_per_step": "day"}}
    with pytest.raises(DataError, match="the first day of the store"):
        run(start_time=first, end_time="2015-02-10", strategy=made(), executor=executor, benchmark="SH000852",
            exchange_kwargs={"exchange": exchange})


def test_what_is_wanted_needs_quotes(made):
    with pytest.raises(DataError, match="widen its codes"):
        made().simulate(AShareExchange("2016-04-25", "2016-12-01", codes="csi300"), FIRST, LAST)


def test_the_exchange_must_cover_the_backtest(made):
    short = AShareExchange("2016-06-01", "2016-09-30")
    for start, end in ((FIRST, "2016-08-31"), ("2016-07-01", LAST)):
        with pytest.raises(DataError, match="leave start_time and end_time of the exchange out"):
            made().simulate(short, start, end)
    with pytest.raises(DataError, match="the exchange has no quotes of 2016-05-0"):
        backtest(made(), short)


@pytest.mark.parametrize("kind", [{}, {"kind": TopKStrategy, "topk": 10}])
def test_a_backtest_without_a_decision_is_an_error(made, market, exchange, kind):
    late = scores(market[0]).loc["2016-10-01":]
    for options in ({"signal": late}, {"rebalance": ["2020-01-01"]}):
        with pytest.raises(DataError, match="nothing was decided"):
            made(**kind, **options).simulate(exchange, FIRST, "2016-06-30")
    with pytest.raises(DataError, match="nothing was decided"):
        backtest(made(**kind, signal=late), exchange, "2016-05-20")


def test_holdings_without_bars_are_said(made, market, monkeypatch):
    strategy, said = made(), []
    monkeypatch.setattr("qlib_ext.portfolio.strategy.logger.warning", said.append)
    close = strategy.closes.at(strategy.closes.days[330])
    close.stale[:] = False
    close.stale[3] = True
    current = np.zeros(len(close.codes))
    current[2:4] = 0.01
    expected = {"without_bars": {str(close.codes[3]): 0.01}}
    assert strategy.note_stale(close, current) == strategy.note_stale(close, current) == expected
    assert len(said) == 1 and "no bar for 60 trading days" in said[0]


def test_an_index_in_capitals_is_the_same(made, exchange):
    plain, capitals = made(), made(index="CSI1000")
    for strategy in (plain, capitals):
        strategy.simulate(exchange, FIRST, "2016-06-15")
    pd.testing.assert_frame_equal(plain.table("decisions"), capitals.table("decisions"))


def test_locks_without_limit_fields_are_those_of_the_rules(made, market, tmp_path):
    """A folder without limit prices locks the same stocks: the market's rules stand in."""
    store, _ = market
    with_fields = Closes("csi1000")
    bare = tmp_path / "bare"
    shutil.copytree(store, bare)
    for file in [*(bare / "features").rglob("limit_*.day.bin"), *(bare / "features").rglob("csi1000_weight.day.bin")]:
        file.unlink()
    start_qlib(bare)
    try:
        by_rules = Closes("csi1000")
    finally:
        start_qlib(store)
    assert with_fields.at_upper.sum() > 20
    np.testing.assert_array_equal(with_fields.at_upper, by_rules.at_upper)
    np.testing.assert_array_equal(with_fields.at_lower, by_rules.at_lower)
    assert by_rules.source == "equal weights of csi1000" and by_rules.at(by_rules.days[300]).benchmark.max() == pytest.approx(1 / 40)


def test_qlibs_own_record_finds_the_certificates_in_the_recorder(market, tmp_path):
    """`PortAnaRecord` knows nothing of them: the strategy puts them into the recorder that is active."""
    from qlib.workflow import R
    from qlib.workflow.record_temp import PortAnaRecord

    from qlib_ext.portfolio.records import backtest_config
    store, risk = market
    manager = {"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
               "kwargs": {"uri": f"sqlite:///{tmp_path}/tracking.db", "default_exp_name": "Experiment"}}
    start_qlib(store, exp_manager=manager)
    kwargs = {"signal": "<PRED>", "index": "csi1000", "snapshots": str(risk), "optimizer": {"constraints": LIMITS}}
    strategy = {"class": "IndexEnhancementStrategy", "module_path": "qlib_ext.portfolio.strategy", "kwargs": kwargs}
    with R.start(experiment_name="plain"):
        R.save_objects(**{"pred.pkl": scores(store), "label.pkl": scores(store)})
        recorder = R.get_recorder()
        PortAnaRecord(recorder, backtest_config(strategy, FIRST, "2016-05-31", "SH000852", {"start_time": "2016-04-25"}, 1e7)).generate()
    kept = {name.split("/")[-1] for name in recorder.list_artifacts("portfolio_analysis")}
    assert {"certificates.parquet", "exposures.parquet", "decisions.parquet", "report_normal_1day.pkl"} <= kept
    table = pd.read_parquet(recorder.client.download_artifacts(recorder.id, "portfolio_analysis/certificates.parquet"))
    assert len(table) == 5 and (table["violation"] <= 1e-8).all()


def test_qlibs_own_exchange_serves_too(made, market):
    from qlib.backtest.exchange import Exchange
    exchange = Exchange(start_time="2016-04-25", end_time="2016-12-01", codes="all", deal_price="close", limit_threshold=0.095,
                        open_cost=0.0005,
                        close_cost=0.0015, min_cost=5)
    strategy = made()
    report, positions = backtest(strategy, exchange)
    assert (report["cash"] > 0).all() and report["value"].iloc[5] / report["account"].iloc[5] > 0.95
    assert len(strategy.table("certificates")) == len({week_of(np.datetime64(day, "D")) for day in report.index})


def test_qlibs_enhanced_indexing_with_our_optimiser(market, exchange, tmp_path):
    from qlib_ext.store.snapshots import SnapshotStore, export_qlib
    store, risk = market
    export_qlib(SnapshotStore(risk), tmp_path / "root")
    strategy = EnhancedIndexingStrategy(signal=scores(store), riskmodel_root=str(tmp_path / "root"), market="csi1000",
                                        optimizer_kwargs={"delta": 0.4, "b_dev": 0.05, "lamb": 1})
    report, positions = backtest(strategy, exchange, "2016-05-16")
    assert report["turnover"].iloc[1:].max() > 0.01 and len(positions[report.index[-1]].get_stock_list()) > 5


def test_schedule():
    days = pd.bdate_range("2024-01-01", "2024-02-09").to_numpy().astype("datetime64[D]")
    due = lambda rebalance: run(Schedule(rebalance), days)  # noqa: E731
    assert [str(day) for day in due("week")] == ["2024-01-01", "2024-01-05", "2024-01-12", "2024-01-19", "2024-01-26", "2024-02-02"]
    assert due(10) == [days[0], days[10], days[20]]
    assert [str(day) for day in due(["2024-01-13", "2024-02-01", "2030-01-01"])] == ["2024-01-12", "2024-02-01"]
    for wrong in ("weekly", 0, True, [], ["someday"]):
        with pytest.raises(ConfigError, match="rebalance"):
            Schedule(wrong)


def run(schedule: Schedule, days: np.ndarray) -> list:
    found = []
    for step, (decided, traded) in enumerate(zip(days[:-1], days[1:])):
        if schedule.due(step, decided, traded):
            found.append(decided)
            schedule.started(step)
    return found


@pytest.mark.parametrize("options, error, words", [
    ({"index": "csi9"}, ConfigError, "csi9"), ({"optimizer": {"presett": "meta"}}, ConfigError, "presett"),
    ({"optimizer": {"preset": "metta"}}, ConfigError, "did you mean meta"), ({"rebalance": "daily"}, ConfigError, "rebalance"),
    ({"signal": "<PRED>"}, ConfigError, "not filled"), ({"risk_degree": 1.2}, ConfigError, "risk_degree"),
    ({"infeasible": "ignore"}, ConfigError, "infeasible"), ({"blacklist": "SH600000"}, ConfigError, "list of codes"),
    ({"kind": TopKStrategy, "topk": 5, "out_of": 4}, ConfigError, "at least topk=5"),
    ({"kind": TopKStrategy, "topk": 5, "out_of": 9, "universe": "csi1000"}, ConfigError, "both scale"),
    ({"kind": TopKStrategy, "topk": 5, "blacklist": "SH600000"}, ConfigError, "list of codes"),
])
def test_wrong_keywords_are_refused(made, options, error, words):
    with pytest.raises(error, match=words):
        made(**options)


def test_a_signal_of_other_stocks_is_refused(made, market, exchange):
    few = scores(market[0])
    few = few[few.index.get_level_values(1) < "SH600010"]
    with pytest.raises(DataError, match="the signal scores"):
        made(signal=few).simulate(exchange, FIRST, LAST, 1e7)


def test_a_style_the_store_lacks_is_an_error_or_listed(made, exchange):
    options = {"constraints": {**LIMITS, "style": {"size": 0.5, "no_such_style": 0.5}}}
    with pytest.raises(DataError, match="no_such_style"):
        made(optimizer=options).simulate(exchange, FIRST, LAST, 1e7)
    strategy = made(optimizer={**options, "missing_styles": "drop"})
    strategy.simulate(exchange, FIRST, "2016-05-20", 1e7)
    assert json.loads(strategy.table("certificates")["notes"][0])["missing_styles"] == ["no_such_style"]


def test_extras_of_the_risk_model_are_bounded(made, exchange):
    strategy = made(optimizer={"constraints": {"benchmark_multiple": 8, "style": {"size": 0.3, "size_squared": 0.05,
                                                                                  "volatility_60": 0.2}}})
    strategy.simulate(exchange, FIRST, "2016-06-30", 1e7)
    table = strategy.table("exposures").query("column == 'size_squared' or column == 'volatility_60'")
    assert len(table) and (table["exposure"].abs() <= table["high"] + 1e-8).all() and table["price"].abs().max() > 1e-6
