"""The exchange with Chinese rules: what can be traded at which price, lots and costs, and Qlib's own strategies on it."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import qlib
import small_market
from qlib.backtest import backtest
from qlib.backtest.decision import Order, OrderDir
from qlib.backtest.exchange import Exchange
from qlib.backtest.position import InfPosition, Position
from qlib.contrib.strategy.order_generator import OrderGenWInteract
from qlib.contrib.strategy.signal_strategy import TopkDropoutStrategy, WeightStrategyBase
from qlib.data import D

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.portfolio.exchange import AShareExchange, read_costs


def write_store(folder, days, bars, universes=None):
    """`bars`: {code: {field: values over all days, NaN before the first bar}}; `universes`: {name: codes}, `all` without being asked."""
    for part in ("calendars", "instruments"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "calendars" / "day.txt").write_text("".join(f"{day:%Y-%m-%d}\n" for day in days))
    for name, codes in {"all": list(bars), **(universes or {})}.items():
        (folder / "instruments" / f"{name}.txt").write_text("".join(f"{code}\t{days[0]:%Y-%m-%d}\t{days[-1]:%Y-%m-%d}\n" for code in codes))
    for code, fields in bars.items():
        (folder / "features" / code.lower()).mkdir(parents=True, exist_ok=True)
        known = np.flatnonzero(np.isfinite(fields["close"]))
        for name, values in fields.items():
            part = np.asarray(values, float)[known[0]:known[-1] + 1]
            np.r_[known[0], part].astype("<f4").tofile(folder / "features" / code.lower() / f"{name}.day.bin")
    return folder


def start_qlib(folder):
    """Point Qlib at a store, in one process."""
    qlib.init(provider_uri=str(folder), region="cn", kernels=1, expression_cache=None, dataset_cache=None, logging_level=40)


DAYS = pd.bdate_range("2023-08-21", periods=15)                                          # the duty is halved on the sixth day


PRICES = ("open", "close", "vwap", "limit_up", "limit_down")


def flat(price: float, factor: float | np.ndarray = 1.0, **changes) -> dict:
    """A stock whose prices stand still; `changes`: field -> {position of the day: raw value}."""
    made = {name: np.full(len(DAYS), price) for name in ("open", "close", "vwap")}
    made.update(volume=np.full(len(DAYS), 1e6), factor=np.zeros(len(DAYS)) + factor, is_st=np.zeros(len(DAYS)))
    for name, values in changes.items():
        made[name] = np.full(len(DAYS), values) if np.isscalar(values) else made.get(name, np.full(len(DAYS), np.nan))
        for t, value in ({} if np.isscalar(values) else values).items():
            made[name][t] = value
    return {name: values * made["factor"] if name in PRICES else values for name, values in made.items()}


def exchange(folder, bars, **options) -> AShareExchange:
    start_qlib(write_store(folder, DAYS, bars, {"index": ["SH000300"]}))
    return AShareExchange(**options)


def tradable(made: AShareExchange, code: str, t: int) -> tuple[bool, bool]:
    """Whether Qlib's check lets it be bought, and sold."""
    span = DAYS[t], DAYS[t] + pd.Timedelta("23:59:59")
    return tuple(bool(made.is_stock_tradable(code, *span, side)) for side in (Order.BUY, Order.SELL))


def deal(made: AShareExchange, code: str, amount: float, t: int, side: int, position=None):
    """(dealt amount, value, cost) of an order."""
    order = Order(code, amount, side, DAYS[t], DAYS[t] + pd.Timedelta("23:59:59"))
    value, cost, price = made.deal_order(order, position=position)
    return order.deal_amount, value, cost


# ---- who can be traded ----------------------------------------------------------------------------------------------------------
LIMITS = [  # code, special treatment, highest price after 10.00, lowest price after that
    ("SH600000", 0, 11.0, 9.90), ("SH600001", 1, 10.5, 9.98), ("SZ300001", 0, 12.0, 9.60), ("SZ300002", 1, 12.0, 9.60),
    ("SH688001", 0, 12.0, 9.60), ("BJ830001", 0, 13.0, 9.10)]


@pytest.mark.parametrize("given", [False, True])
def test_limits_by_board_side_and_moment(tmp_path, given):
    """Day 3 closes at the upper limit, day 4 opens at the lower one; a tick less blocks nothing. With and without limit fields."""
    bars = {}
    for code, special, high, low in LIMITS:
        fields = {"limit_up": {3: high}, "limit_down": {4: low}} if given else {}
        bars[code] = flat(10.0, 0.37, is_st=special, close={3: high, 4: low + 0.01}, open={4: low}, **fields)
        bars[code[:-1] + "9"] = flat(10.0, 0.37, is_st=special, close={3: high - 0.01}, open={4: low}, **fields)
    at_close = exchange(tmp_path, bars)
    at_open = AShareExchange(deal_price="$open")
    for code, *_ in LIMITS:
        assert tradable(at_close, code, 2) == tradable(at_open, code, 2) == (True, True)
        assert tradable(at_close, code, 3) == (False, True), code                           # sold at the upper limit
        assert tradable(at_open, code, 3) == (True, True), code                             # the close does not decide the open
        assert tradable(at_open, code, 4) == (True, False) and tradable(at_close, code, 4) == (True, True), code
        assert tradable(at_close, code[:-1] + "9", 3) == (True, True), code                 # one tick below
    assert not at_close.is_stock_tradable("SH600000", DAYS[3], DAYS[3])                     # without a side both are asked


def test_first_days_ex_days_and_other_kinds(tmp_path):
    after = {t: 20.0 for t in range(3, 15)}
    listed = {**{t: np.nan for t in range(2)}, **after, 7: 22.0}
    split = np.where(np.arange(15) < 5, 1.0, 1.25)
    bars = {"SZ000001": flat(10.0, close=listed), "SH510300": flat(4.0, close={3: 4.4, 5: 4.399, 6: 4.4}),
            "SH113001": flat(100.0, close={3: 119.0, 5: 120.0}), "SH000300": flat(4000.0, close={3: 6000.0}),
            "SH600000": flat(10.0, split, close={5: 8.8}), "SH600001": flat(10.0, split, close={5: 8.79}),
            "SH600002": flat(10.0, np.where(np.arange(15) < 5, 1.0, 10 / 5.0047), close={5: 5.5})}
    made = exchange(tmp_path, bars)
    assert "SH000300" not in made.quotes.instruments and made.codes == sorted(set(bars) - {"SH000300"})
    assert tradable(made, "SZ000001", 1) == (False, False)
    assert tradable(made, "SZ000001", 3) == (True, True)                                    # from 10 to 20 on the second of five free days
    assert tradable(made, "SZ000001", 7) == (False, True)                                   # 22 from 20 on the sixth
    assert [tradable(made, "SH510300", t)[0] for t in (3, 5, 6)] == [False, True, True]     # 4.399 from 4: a tick below
    assert [tradable(made, "SH113001", t)[0] for t in (3, 5)] == [True, False]
    assert tradable(made, "SH600000", 5) == (False, True) and tradable(made, "SH600001", 5) == (True, True)   # 8.80 from 8.00
    assert tradable(made, "SH600002", 5) == (False, True)                                   # 5.50 from 5.0047, which is 5.00
    assert made.get_amount_of_trade_unit(None, "SH113001", DAYS[3], DAYS[3]) == 10


def test_halts_unknown_prices_and_a_day_locked_all_day(tmp_path):
    bars = {"SH600000": flat(10.0, close={3: np.nan, 4: np.nan}, vwap={2: np.nan, 3: np.nan, 4: np.nan}),
            "SH600001": flat(10.0, volume={3: 0.0}, close={4: 11.0}, vwap={4: 10.9, 5: 12.1}, open={4: 11.0})}
    made = exchange(tmp_path, bars, deal_price="vwap")
    assert [tradable(made, "SH600000", t) for t in (1, 2, 3)] == [(True, True), (False, False), (False, False)]
    assert made.check_stock_suspended("SH600000", DAYS[3], DAYS[3]) and not made.check_stock_suspended("SH600000", DAYS[2], DAYS[2])
    for t in (2, 4):
        assert made.get_deal_price("SH600000", DAYS[t], DAYS[t], OrderDir.BUY) == 10.0      # the last close, for the account's value
    assert [tradable(made, "SH600001", t) for t in (3, 4, 5)] == [(False, False), (True, True), (False, True)]
    assert made.calculate_amount_position_value({"SH600000": 100, "SH600001": 100}, DAYS[3], DAYS[3]) == 2000
    assert deal(made, "SH600000", 100, 3, Order.BUY) == (0.0, 0.0, 0.0)
    assert made.is_stock_tradable("SH999999", DAYS[3], DAYS[3]) is False and made.get_factor("SH999999", DAYS[3], DAYS[3]) is None


def test_slippage_ends_at_the_limit(tmp_path):
    bars = {"SH600000": flat(10.0, 2.0, open={2: 10.95, 4: 9.05}), "SH600001": flat(10.0, 2.0)}
    made = exchange(tmp_path, bars, deal_price="open", slippage=0.01)
    cells = ("SH600000", 2), ("SH600000", 4), ("SH600001", 2)
    buy, sell = ([made.get_deal_price(code, DAYS[t], DAYS[t], side) / 2 for code, t in cells] for side in (OrderDir.BUY, OrderDir.SELL))
    assert buy == pytest.approx([11.0, 9.1405, 10.1]) and sell == pytest.approx([10.8405, 9.0, 9.9])
    assert made.quote.get_data("SH600000", DAYS[2], DAYS[2], "$open") == pytest.approx(21.9)      # the field is what it was


# ---- lots, cash, costs ------------------------------------------------------------------------------------------------------------
def test_orders_are_rounded_to_the_lots_of_the_board(tmp_path):
    made = exchange(tmp_path, {code: flat(10.0, 0.5) for code in ("SH600000", "SH688001", "BJ830001", "SZ300001")})
    for code, shares, dealt in (("SH600000", 299, 200), ("SZ300001", 99, 0), ("SH688001", 199, 0), ("SH688001", 250.5, 250),
                                ("BJ830001", 150, 150)):
        assert deal(made, code, shares / 0.5, 3, Order.BUY)[0] * 0.5 == pytest.approx(dealt), code
        assert made.round_amount_by_trade_unit(shares / 0.5, 0.5, code, DAYS[3], DAYS[3]) * 0.5 == pytest.approx(dealt)
    assert made.round_amount_by_trade_unit(123.4, 0.5) == 123.4                             # no stock: dealing rounds
    book = Position(cash=1e4, position_dict={"SH600000": {"amount": 274.0, "price": 5.0}})
    assert deal(made, "SH600000", 274.0, 3, Order.SELL, book)[0] == 274.0                   # 137 shares: all of it
    book = Position(cash=1e4, position_dict={"SH600000": {"amount": 274.0, "price": 5.0}})
    assert deal(made, "SH600000", 260.0, 3, Order.SELL, book)[0] == 200.0 and book.get_stock_amount("SH600000") == 74.0
    book = Position(cash=1e4, position_dict={"SH600000": {"amount": 200.0, "price": 5.0}})
    assert deal(made, "SH600000", 900.0, 3, Order.SELL, book)[0] == 200.0                   # no more than is held
    assert deal(made, "SH600000", 900.0, 3, Order.SELL, InfPosition())[0] == 800.0


def test_purchases_end_with_the_cash(tmp_path):
    made = exchange(tmp_path, {"SH600000": flat(10.0)})
    for cash, dealt in ((1005.0, 100), (1004.9, 0), (20010.0, 2000), (20009.9, 1900), (4.0, 0), (-1.0, 0)):
        book = Position(cash=cash)
        amount, value, cost = deal(made, "SH600000", 5000, 3, Order.BUY, book)
        assert amount == dealt and book.get_cash() == pytest.approx(cash - value - cost)
    book = Position(cash=1.0, position_dict={"SH600000": {"amount": 0.3, "price": 10.0}})
    assert deal(made, "SH600000", 0.3, 3, Order.SELL, book)[0] == 0                         # 3 CNY against a commission of 5


def test_costs_are_those_of_the_day(tmp_path):
    bars = {"SH600000": flat(10.0), "SH510300": flat(4.0)}
    made = exchange(tmp_path, bars, costs="dated")
    before, after, large = 4, 5, 100_000                                                    # Friday and Monday, 2023-08-28
    assert DAYS[after] == pd.Timestamp("2023-08-28")
    for t, duty in ((before, 0.001), (after, 0.0005)):
        assert deal(made, "SH600000", large, t, Order.SELL)[2] == pytest.approx(1e6 * (0.00025 + duty + 0.00001))
        assert deal(made, "SH600000", large, t, Order.BUY)[2] == pytest.approx(1e6 * (0.00025 + 0.00001))
        assert deal(made, "SH600000", 100, t, Order.SELL)[2] == pytest.approx(5 + 1000 * (duty + 0.00001))
        assert deal(made, "SH510300", large, t, Order.SELL)[2] == pytest.approx(4e5 * 0.00025)          # funds pay none
    assert made.min_cost == 5 and 0.00025 < made.open_cost < made.close_cost < 0.0013
    for costs, buy, sell in (("broker", 0.0005, 0.0015), ({"commission": [0.001, 0.002]}, 0.001, 0.002),
                             ({"commission": 0.0003}, 0.0003, 0.0003)):
        other = AShareExchange(costs=costs)
        paid = [deal(other, "SH600000", large, before, side)[2] for side in (Order.BUY, Order.SELL)]
        assert paid == pytest.approx([1e6 * buy, 1e6 * sell])
        assert (other.open_cost, other.close_cost) == (buy, sell)


@pytest.mark.parametrize("costs, words", [
    ("brokers", r"\['broker', 'dated'\]"), ({"commision": 0.001}, "commission"), ({"commission": 2}, "below 0.1"), (None, "mapping"),
    ({"commission": [0.1]}, "pair"), ({"commission": 0, "minimum": -1}, "minimum"), ({"commission": 0, "duty": 1}, "duty")])
def test_costs_that_cannot_be_are_refused(costs, words):
    with pytest.raises(ConfigError, match=words):
        read_costs(costs)


# ---- what it reads ------------------------------------------------------------------------------------------------------------------
def test_options_and_stores_that_cannot_work_are_refused(tmp_path, monkeypatch):
    exchange(tmp_path, {"SH600000": flat(10.0), "SH000300": flat(4000.0)})
    for options, error, words in (({"freq": "1min"}, ConfigError, "daily"), ({"slippage": 0.5}, ConfigError, "slippage"),
                                  ({"deal_price": "twap"}, DataError, "no field twap"), ({"deal_price": ["open"]}, ConfigError, "pair"),
                                  ({"codes": "csi300"}, ConfigError, "csi300"), ({"codes": ["SH000300"]}, DataError, "SH000300"),
                                  ({"codes": ["SH600009"]}, DataError, "has a bar"),
                                  ({"start_time": "2030-01-01"}, DataError, "no member from 2030-01-01")):
        with pytest.raises(error, match=words):
            AShareExchange(**options)
    made = AShareExchange(start_time=DAYS[2], end_time=DAYS[5])
    assert len(made.quotes.days) == 4
    with pytest.raises(DataError, match="widen"):
        made.round_amount_by_trade_unit(100, 1.0, "SH600000", DAYS[9], DAYS[9])
    with pytest.raises(ConfigError, match="no field .high"):
        made.quote.get_data("SH600000", DAYS[3], DAYS[3], "$high")


def test_a_store_without_factor_and_volume_and_members_who_leave(tmp_path, monkeypatch):
    bars = {"SH600000": flat(10.0), "SH600001": flat(10.0, close={3: 11.0})}
    for fields in bars.values():
        del fields["factor"], fields["volume"], fields["is_st"]
    said = []
    monkeypatch.setattr("qlib_ext.portfolio.exchange.logger.warning", said.append)
    write_store(tmp_path, DAYS, bars)
    (tmp_path / "instruments" / "few.txt").write_text(f"SH600001\t{DAYS[0]:%Y-%m-%d}\t{DAYS[2]:%Y-%m-%d}\n")
    start_qlib(tmp_path)
    made = AShareExchange(codes="few")
    assert "no field factor" in said[0] and made.codes == ["SH600001"]
    assert tradable(made, "SH600001", 3) == (False, True) and tradable(made, "SH600001", 9) == (True, True)   # it left on day 2
    assert deal(made, "SH600001", 250, 9, Order.BUY)[0] == 200 and np.isnan(made.get_volume("SH600001", DAYS[3], DAYS[3]))


def test_factors_reach_over_halts_and_before_the_span(tmp_path):
    gone = {t: np.nan for t in range(3, 9)}
    bars = {"SH600000": flat(10.0, np.where(np.isin(np.arange(15), list(gone)), np.nan, 1.5)), "SH600001": flat(10.0)}
    exchange(tmp_path, bars)
    made = AShareExchange(start_time=DAYS[5])
    assert (made.quotes.factor[:, 0] == 1.5).all() and np.isnan(made.quotes.last_close[0, 0])
    assert tradable(made, "SH600000", 6) == (False, False) and tradable(made, "SH600000", 9) == (True, True)
    bars["SH600000"]["close"][9] = 16.5                                                     # 11.00 after six days of halt
    write_store(tmp_path, DAYS, bars)
    start_qlib(tmp_path)
    assert tradable(AShareExchange(start_time=DAYS[5]), "SH600000", 9) == (False, True)


# ---- Qlib on it ---------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    return small_market.build_store(tmp_path_factory.mktemp("market"))


def test_quotes_are_those_qlib_reads(generated):
    small_market.start_qlib(generated)
    made = AShareExchange(start_time="2016-01-01", end_time="2016-06-30", deal_price="open")
    frame = D.features(made.codes, ["$close", "$open", "$factor", "$volume"], "2016-01-01", "2016-06-30")
    for name, values in (("$close", made.quotes.close), ("$open", made.quotes.buy_price), ("$volume", made.quote.fields["$volume"])):
        np.testing.assert_array_equal(frame[name].unstack("instrument").reindex(columns=made.codes).to_numpy(), values.astype(np.float32))
    qlibs = Exchange(start_time="2016-01-01", end_time="2016-06-30", codes=made.codes, deal_price="open", limit_threshold=None)
    days, draw, compared = D.calendar("2016-01-01", "2016-06-30"), np.random.default_rng(0), 0
    for _ in range(300):
        code, t, length = draw.choice(made.codes), draw.integers(0, 100), draw.integers(0, 5)
        span = days[t], days[t + length] + pd.Timedelta("23:59:59")
        for field, method in (("$close", "ts_data_last"), ("$volume", "sum"), ("$open", "mean"), ("$close", None),
                              ("$factor", "ts_data_last")):
            ours, theirs = made.quote.get_data(code, *span, field, method), qlibs.quote.get_data(code, *span, field, method)
            assert (ours is None) == (theirs is None) or field == "$factor"
            if ours is not None and theirs is not None and (field != "$factor" or np.isfinite(np.asarray(theirs, float)).all()):
                values = [np.asarray(getattr(one, "data", one), float) for one in (ours, theirs)]
                np.testing.assert_allclose(*values, rtol=1e-6)
                compared += 1
        assert made.check_stock_suspended(code, *span) == qlibs.check_stock_suspended(code, *span)
    assert compared > 1000


def test_limits_found_by_the_rules_are_those_of_the_store(generated, monkeypatch):
    small_market.start_qlib(generated)
    given = AShareExchange().quotes
    has = AShareExchange.__init__.__globals__["Bars"].has
    monkeypatch.setattr("qlib_ext.portfolio.exchange.Bars.has", lambda bars, name: has(bars, name) & ("limit" not in name))
    found = AShareExchange().quotes
    assert (np.isfinite(given.close) & ~given.can_buy).sum() > 200
    np.testing.assert_array_equal(given.can_buy, found.can_buy)
    np.testing.assert_array_equal(given.can_sell, found.can_sell)
    np.testing.assert_array_equal(given.buy_price, found.buy_price)


class EqualWeights(WeightStrategyBase):
    """Half of the account in the ten best of a day."""

    def generate_target_weight_position(self, score, current, trade_start_time, trade_end_time):
        return {code: 0.05 for code in score.sort_values().index[-10:]}


@pytest.mark.parametrize("kind", ["topk", "weights", "weights without prices"])
def test_qlibs_strategies_trade_on_it(generated, kind):
    small_market.start_qlib(generated)
    span = "2016-03-01", "2016-05-31"
    known = AShareExchange(*span).quotes
    draw = np.random.default_rng(0)
    index = pd.MultiIndex.from_product([D.calendar("2016-02-22", span[1]), known.instruments], names=["datetime", "instrument"])
    signal = pd.Series(draw.normal(size=len(index)), index=index, name="score")
    made = {"topk": lambda: TopkDropoutStrategy(signal=signal, topk=10, n_drop=3, forbid_all_trade_at_limit=False),
            "weights": lambda: EqualWeights(signal=signal, order_generator_cls_or_obj=OrderGenWInteract),
            "weights without prices": lambda: EqualWeights(signal=signal)}[kind]()
    executor = {"class": "SimulatorExecutor", "module_path": "qlib.backtest.executor",
                "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True}}
    configured = {"class": "AShareExchange", "module_path": "qlib_ext.portfolio.exchange",
                  "kwargs": {"deal_price": "open", "costs": "dated"}}
    found, indicators = backtest(*span, made, executor, benchmark="SH000300", account=1e7, exchange_kwargs={"exchange": configured})
    report, positions = found["1day"]
    quotes = AShareExchange(deal_price="open", costs="dated").quotes
    rows, fills = {day: t for t, day in enumerate(quotes.days)}, 0
    for day, told in indicators["1day"][1].order_indicator_his.items():
        t = rows[np.datetime64(day, "D")]
        for code, amount in told.get_index_data("deal_amount").to_dict().items():
            n = int(np.searchsorted(quotes.instruments, code))
            if amount:
                assert (quotes.can_buy if amount > 0 else quotes.can_sell)[t, n]
                fills += 1
            if amount > 0:
                shares = amount * quotes.factor[t, n]
                assert shares / 100 == pytest.approx(round(shares / 100), abs=1e-6)
    assert fills > 40 and report["account"].notna().all() and (report["cash"] > 0).all() and (report["total_cost"].iloc[-1] > 1000)


def test_the_lots_of_a_copy_with_another_board_are_other_lots(tmp_path):
    """The check above sees a market whose lots are not those of the board."""
    made = exchange(tmp_path, {"SH688001": flat(10.0)})
    assert deal(made, "SH688001", 333, 3, Order.BUY)[0] == 333
    made.quotes = replace(made.quotes, lot_step=100, lot_minimum=100)
    assert deal(made, "SH688001", 333, 3, Order.BUY)[0] == 300
