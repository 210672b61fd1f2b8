"""The ten high-frequency factors: closed forms, plain loops, the properties that define them, and what is refused."""

import math
from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.intraday import (BAR_FACTORS, FACTORS, NEEDS, PROXIES, SIGNS, TRADE_FACTORS, IntradayOptions, bar_values, order_sizes,
                                       thresholds, trade_values, without_auction)
from qlib_ext.factors.session import clock_time, session_minute
from slow_intraday import slow_bars, slow_minute, slow_trades

DAY = date(2024, 5, 6)
UP, DOWN = 1.002, 0.999
HIGH_ORDERS = 10_000


def frame(rows, instrument="SH600000", day=DAY) -> pl.DataFrame:
    kinds = {"minute": pl.Int16, "open": pl.Float64, "high": pl.Float64, "low": pl.Float64, "close": pl.Float64, "volume": pl.Int64,
             "amount": pl.Float64, "n_trades": pl.Int32}
    made = pl.DataFrame(rows, schema={name: kind for name, kind in kinds.items() if rows and name in rows[0]})
    return made.select(pl.lit(day).alias("date"), pl.lit(instrument).alias("instrument"), pl.all())


def values(bars: pl.DataFrame, names=None, **options) -> dict:
    return bar_values(bars.lazy(), IntradayOptions(**options), names).collect().row(0, named=True)


def steps(moves, amount=None, trades=None) -> list[dict]:
    """Bars that move by factors, each from the close before; 100 shares a bar."""
    price, rows = 10.0, []
    for k, move in enumerate(moves):
        close = price * move
        rows.append({"minute": k + 1, "open": price, "high": max(price, close), "low": min(price, close), "close": close, "volume": 100,
                     "amount": 1000.0 if amount is None else amount[k], "n_trades": 1 if trades is None else trades[k]})
        price = close
    return rows


def falling(k: int) -> bool:
    return k % 4 == 3


# ---- closed forms ---------------------------------------------------------------------------------------------------------------
def test_a_day_of_two_steps_has_closed_forms():
    """180 bars up, 60 down: a fourth of them, each with twice the amount of the others in one trade."""
    moves = [DOWN if falling(k) else UP for k in range(240)]
    found = values(frame(steps(moves, [2000.0 if falling(k) else 1000.0 for k in range(240)])))
    u, d = math.log(UP), math.log(DOWN)
    assert found["hf_skew"] == pytest.approx((1 - 2 * 0.75) / math.sqrt(0.75 * 0.25), abs=1e-9)
    assert found["hf_down_share"] == pytest.approx(60 * d * d / (60 * d * d + 180 * u * u), abs=1e-12)
    ups = sum(not falling(k) for k in range(30, 240))
    assert found["hf_improved_reversal"] == pytest.approx(ups * u + (210 - ups) * d, abs=1e-12)
    assert found["hf_tail_share"] == 30 / 240
    assert found["hf_outflow_share"] == pytest.approx(2 / 1.25, abs=1e-12)
    assert found["hf_push_up"] == pytest.approx(DOWN**60 * UP**12 - 1, abs=1e-12)          # all falls, and the twelve first of the rises
    assert found["bars_traded"] == 240


def ticks(buys, sells, resting=10**6) -> pl.DataFrame:
    """One active buy and one active sell of given amounts (price 10) in each of the minutes, by orders of their own; each trades with as
    many resting orders of an amount as it takes."""
    rows, number = [], 0
    for k, both in enumerate(zip(buys, sells)):
        for side, amount in zip((1, -1), both):
            for part in range(-(-amount // resting)):
                active, passive, number = HIGH_ORDERS + 2 * k + (side < 0), number + 1, number + 1
                rows.append((34_200_001 + 60_000 * k, 10.0, min(amount - part * resting, resting) // 10, side,
                             *((active, passive) if side > 0 else (passive, active))))
    made = pl.DataFrame(rows, schema={"millisecond": pl.Int32, "price": pl.Float64, "quantity": pl.Int64, "side": pl.Int8,
                                      "buy_order": pl.Int64, "sell_order": pl.Int64}, orient="row")
    return made.select(pl.lit(DAY).alias("date"), pl.lit("SH600000").alias("instrument"), pl.all(), sequence=pl.int_range(pl.len()))


def placed(amounts, side) -> list[tuple]:
    return [(34_200_000 + 60_000 * k + 5, 10.0, amount // 10, side, 50_000 + k, 1) for k, amount in enumerate(amounts)]


def orders_of(rows) -> pl.DataFrame:
    made = pl.DataFrame(rows, schema={"millisecond": pl.Int32, "price": pl.Float64, "quantity": pl.Int64, "side": pl.Int8,
                                      "order": pl.Int64, "kind": pl.Int8}, orient="row")
    return made.select(pl.lit(DAY).alias("date"), pl.lit("SH600000").alias("instrument"), pl.all(), sequence=pl.int_range(pl.len()))


def edge(value, instrument="SH600000") -> pl.DataFrame:
    return pl.DataFrame({"instrument": [instrument], "threshold": [value], "trade_threshold": [value]})


def of_trades(trades, orders, bars, threshold=15_000.0, names=None, limits=None, **options) -> dict:
    given = None if threshold is None else edge(threshold)
    found = trade_values(trades.lazy(), None if orders is None else orders.lazy(), bars.lazy(), given, IntradayOptions(**options), names,
                         limits).collect(engine="in-memory")
    return found.row(0, named=True)


def test_trades_and_orders_have_closed_forms():
    """Minute k: active buys of 2000 + 1000 (k odd), active sells of 1000; new buy orders of 500, of which a fifth is cancelled."""
    buys = [3000 if k % 2 else 2000 for k in range(30)]
    trades, bars, new = ticks(buys, [1000] * 30, 1000), frame(steps([UP] * 240)), placed([500] * 30, 1)
    orders = orders_of(new + [(time, price, 10, side, order, -1) for time, price, _, side, order, _ in new])
    found = of_trades(trades, orders, bars, 2500.0)
    assert found["hf_buy_intention_share"] == pytest.approx(sum(bought - 1000 + 500 for bought in buys) / 30_000)
    assert found["hf_buy_intention_intensity"] == pytest.approx(2000 / 500)                 # 1500 and 2500 in turn
    assert found["hf_large_buy_share"] == pytest.approx(15 * 3000 / 30_000)                  # only the buys of 3000 are large
    assert found["hf_large_buy_intensity"] == pytest.approx(1500 / 1500)
    minus = of_trades(trades, orders, bars, 2500.0, buy_intention_sign=-1)
    assert minus["hf_buy_intention_share"] == pytest.approx(sum(bought - 1000 - 500 for bought in buys) / 30_000)
    taken_off = of_trades(trades, orders, bars, 2500.0, cancels=True)
    assert taken_off["hf_buy_intention_share"] == pytest.approx(sum(bought - 1000 + 400 for bought in buys) / 30_000)


def test_an_order_is_as_large_as_all_its_trades():
    """A buyer's order of 30 trades of 1000 after the open, and 40 more at noon."""
    trades, bars = ticks([1000] * 30, [1000] * 30), frame(steps([UP] * 240))
    one = trades.with_columns(buy_order=pl.when(pl.col("side") > 0).then(7).otherwise("buy_order"))
    noon = pl.concat([one] + [one.head(1).with_columns(millisecond=pl.lit(46_800_500 + k, pl.Int32)) for k in range(40)])
    assert of_trades(one, None, bars, 29_999.0)["hf_large_buy_share"] == pytest.approx(1.0)
    assert of_trades(one, None, bars, 30_000.0)["hf_large_buy_share"] == 0.0               # not above the threshold
    assert of_trades(noon, None, bars, 69_999.0)["hf_large_buy_share"] == pytest.approx(1.0)
    assert of_trades(noon, None, bars, 69_999.0, order_size="observed")["hf_large_buy_share"] == 0.0


def test_thresholds_pool_past_days_and_leave_the_day_out():
    random = np.random.default_rng(4)
    days = [DAY + timedelta(days=k) for k in range(7)]
    sizes, amounts = [], {}
    for day in days:
        buys, sells = ((random.integers(10, 900, 30) * 10).tolist() for _ in range(2))
        trades = ticks(buys, sells).with_columns(date=pl.lit(day))
        amounts[day] = [x for x in buys + sells for _ in range(2)]                          # each trade is a buyer's and a seller's order
        sizes.append(order_sizes(trades.lazy()).collect())
    sizes = pl.concat(sizes)
    options = IntradayOptions(threshold_days=5, min_threshold_days=3)
    logs = np.log([x for day in days[1:6] for x in amounts[day]])
    found = thresholds(sizes, days[6], options)
    assert found["threshold"][0] == pytest.approx(math.exp(logs.mean() + logs.std()))
    assert found["trade_threshold"][0] == pytest.approx(math.exp(logs.mean() + logs.std()))
    without = thresholds(sizes.filter(pl.col("date") < days[6]), days[6], options)
    assert found.equals(without)
    assert thresholds(sizes, days[2], options)["threshold"][0] is None and thresholds(sizes, days[3], options)["threshold"][0] is not None
    plain = np.array([x for day in days[1:6] for x in amounts[day]], float)
    flat = IntradayOptions(threshold_days=5, min_threshold_days=3, large_scale="plain", large_deviations=2.0)
    raw = pl.concat([order_sizes(ticks(amounts[day][:60:2], amounts[day][60::2]).with_columns(date=pl.lit(day)).lazy(), flat).collect()
                     for day in days])
    assert thresholds(raw, days[6], flat)["threshold"][0] == pytest.approx(plain.mean() + 2 * plain.std())


# ---- against plain loops ----------------------------------------------------------------------------------------------------------
def random_day(seed: int, bar: int = 1) -> list[dict]:
    """Bars with missing ones, idle ones, some unknown, an auction in some days."""
    random = np.random.default_rng(seed)
    price, rows = float(random.uniform(3, 40)), []
    if seed % 2:
        rows.append({"minute": 0, "open": price, "close": price, "volume": 5000, "amount": 5000 * price, "n_trades": 9})
    for minute in range(bar, 241, bar):
        kind = random.random()
        if kind < 0.05:
            continue
        opened = round(price * math.exp(random.normal(0, 4e-4)), 2)
        close = round(opened * math.exp(random.normal(0, 2e-3)), 2)
        trades = int(random.integers(1, 40))
        volume = int(100 * random.integers(1, 9) * trades)
        row = {"minute": minute, "open": opened, "close": close, "volume": volume, "amount": volume * (opened + close) / 2, "n_trades": trades}
        if kind < 0.15:
            row |= {"open": price, "close": price, "volume": 0, "amount": 0.0, "n_trades": 0}
        elif kind < 0.17:
            row |= {"open": None, "close": None, "volume": 0, "amount": 0.0, "n_trades": 0}
        rows.append(row)
        price = row["close"] or price
    return rows


@pytest.mark.parametrize("options", [
    {}, {"returns": "bar"}, {"demean": False, "push_share": 0.1}, {"closing_auction": "outside", "tail_minutes": 60, "open_minutes": 60},
    {"bar_minutes": 15}, {"bar_minutes": 5, "push_share": 1.0}])
def test_bars_equal_a_loop(options):
    options = IntradayOptions(proxy=True, **options)
    days = {f"SH60{seed:04d}": random_day(seed, options.bar_minutes) for seed in range(24)}
    days["SH600003"] = days["SH600003"][:20]                                                # too few bars
    days["SH600005"][12]["n_trades"] = None
    found = bar_values(pl.concat([frame(rows, code) for code, rows in days.items()]).lazy(), options, BAR_FACTORS).collect()
    assert found["instrument"].to_list() == list(days)
    compared = 0
    for row in found.iter_rows(named=True):
        expected = slow_bars(days[row["instrument"]], options)
        for name in BAR_FACTORS:
            assert row[name] == (pytest.approx(expected[name], rel=1e-9, abs=1e-12) if name in expected else None), (row["instrument"], name)
        compared += len(expected)
    assert compared > 23 * 6 * 0.8


def random_ticks(seed: int) -> tuple[list, list]:
    random = np.random.default_rng(seed)
    trades = [{"millisecond": int(t), "price": round(float(random.uniform(9, 11)), 2), "quantity": int(100 * random.integers(1, 50)),
               "side": int(random.integers(-1, 2)), "buy_order": int(random.integers(1, 90)), "sell_order": int(random.integers(90, 180)),
               "sequence": k} for k, t in enumerate(np.sort(random.integers(33_900_000, 54_000_000, 600)))]
    orders = [{"millisecond": int(t), "price": None if random.random() < 0.1 else round(float(random.uniform(9, 11)), 2),
               "quantity": int(100 * random.integers(1, 50)), "side": int(random.choice([-1, 1])), "order": k,
               "kind": int(random.choice([-1, 1], p=[0.3, 0.7])), "sequence": k}
              for k, t in enumerate(np.sort(random.integers(33_900_000, 54_000_000, 800)))]
    return trades, orders


@pytest.mark.parametrize("options", [{}, {"buy_intention_sign": -1, "order_size": "observed"}, {"cancels": False, "open_minutes": 60},
                                     {"bar_minutes": 5}])
def test_trades_equal_a_loop(options):
    options = IntradayOptions(min_threshold_days=1, **options)
    kinds = {"price": pl.Float64, "side": pl.Int8, "kind": pl.Int8, "millisecond": pl.Int32, "buy_order": pl.Int64, "sell_order": pl.Int64}
    stocks = {f"SZ00{seed:04d}": (*random_ticks(seed), random_day(seed, options.bar_minutes)) for seed in range(6)}
    stocks["SZ000002"][0][5]["buy_order"] = None                                            # an order number is missing
    put = lambda code, rows: pl.DataFrame(rows, schema_overrides={k: v for k, v in kinds.items() if k in rows[0]}).select(  # noqa: E731
        pl.lit(DAY).alias("date"), pl.lit(code).alias("instrument"), pl.all())
    trades, orders = (pl.concat([put(code, one[k]) for code, one in stocks.items() if k == 0 or code != "SZ000004"]) for k in (0, 1))
    bars = pl.concat([frame(one[2], code) for code, one in stocks.items()])
    edges = pl.DataFrame({"instrument": list(stocks)[1:], "threshold": [20_000.0 * k for k in range(2, 7)]})
    found = trade_values(trades.lazy(), orders.lazy(), bars.lazy(), edges, options).collect()
    assert sorted(found["instrument"]) == sorted(stocks)
    nothing = set()
    for row in found.iter_rows(named=True):
        code = row["instrument"]
        threshold = dict(edges.iter_rows()).get(code)
        expected = slow_trades(stocks[code][0], None if code == "SZ000004" else stocks[code][1], stocks[code][2], threshold, options)
        for name in FACTORS[2:6]:
            assert row[name] == (pytest.approx(expected[name], rel=1e-9) if name in expected else None), (code, name)
            nothing |= {(code, name)} if name not in expected else set()
    assert {("SZ000000", "hf_large_buy_share"), ("SZ000002", "hf_large_buy_share"), ("SZ000004", "hf_buy_intention_share")} <= nothing
    assert len(nothing) <= 8


def test_the_clock_equals_a_loop():
    times = [33_900_000, 34_199_999, 34_200_000, 34_259_999, 34_260_000, 41_399_999, 41_400_000, 43_000_000, 46_799_999, 46_800_000,
             46_860_000, 53_820_000, 53_999_999, 54_000_000, 54_002_000]
    found = pl.DataFrame({"t": times}).select(session_minute(pl.col("t"))).to_series().to_list()
    assert found == [slow_minute(t) for t in times] == [session_minute(t) for t in times]
    assert [clock_time(minute) for minute in (0, 1, 120, 121, 240)] == ["09:25", "09:31", "11:30", "13:01", "15:00"]


# ---- properties -------------------------------------------------------------------------------------------------------------------
def scaled(bars: pl.DataFrame, by: float) -> pl.DataFrame:
    return bars.with_columns(pl.col("amount") * by)


def test_amounts_in_another_unit_change_nothing():
    bars = frame(random_day(2))
    names = ["hf_tail_share", "hf_outflow_share", "hf_push_up"]
    assert values(scaled(bars, 1000.0), names) == pytest.approx(values(bars, names))
    trades, orders = (pl.DataFrame(rows, schema_overrides={"price": pl.Float64}).select(
        pl.lit(DAY).alias("date"), pl.lit("SH600000").alias("instrument"), pl.all()) for rows in random_ticks(1))
    grown = [one.with_columns(pl.col("quantity") * 10) for one in (trades, orders)]
    more = scaled(bars, 10.0).with_columns(pl.col("volume") * 10)
    assert of_trades(*grown, more, 150_000.0) == pytest.approx(of_trades(trades, orders, bars, 15_000.0))


def test_returns_with_the_other_sign():
    random = np.random.default_rng(0)
    moves = np.exp(random.standard_t(4, 240) * 1e-3)
    one, other = (values(frame(steps(m)), ["hf_skew", "hf_down_share"]) for m in (moves, 1 / moves))
    assert other["hf_skew"] == pytest.approx(-one["hf_skew"], rel=1e-9)
    assert other["hf_down_share"] == pytest.approx(1 - one["hf_down_share"], rel=1e-9)


def test_bars_in_another_order():
    random = np.random.default_rng(1)
    moves, trades = np.exp(random.standard_t(4, 240) * 1e-3), random.integers(1, 99, 240).tolist()
    amount = [float(x) for x in random.integers(1000, 99_000, 240)]
    order = random.permutation(240)
    one = frame(steps(moves, amount, trades)).with_columns(volume=pl.Series(random.integers(100, 900, 240)))
    other = frame(steps(moves[order], [amount[k] for k in order], [trades[k] for k in order])).with_columns(volume=one["volume"].gather(order))
    a, b = values(one), values(other)
    for name in ("hf_skew", "hf_down_share", "hf_outflow_share", "hf_push_up"):
        assert a[name] == pytest.approx(b[name], rel=1e-6), name
    for name in ("hf_improved_reversal", "hf_tail_share"):
        assert a[name] != pytest.approx(b[name], rel=1e-3), name


def test_the_reversal_is_that_of_closes_less_nights_and_first_half_hours():
    days, total, last = [], 0.0, None
    for k in range(5):
        rows = steps(np.exp(np.random.default_rng(k).normal(0, 1e-3, 240)))
        rows = [row | {name: row[name] * 1.01**k for name in ("open", "high", "low", "close")} for row in rows]
        days.append(rows)
        total += math.log(rows[-1]["close"] / (last or rows[0]["open"]))
        last = rows[-1]["close"]
    nights = sum(math.log(b[0]["open"] / a[-1]["close"]) for a, b in zip(days, days[1:]))
    openings = sum(math.log(rows[29]["close"] / rows[0]["open"]) for rows in days)
    found = sum(values(frame(rows))["hf_improved_reversal"] for rows in days)
    assert found == pytest.approx(total - nights - openings, abs=1e-12)


def test_a_day_knows_nothing_of_other_days_and_stocks():
    first, second = frame(random_day(2)), frame(random_day(4), day=DAY + timedelta(days=1))
    other = frame(random_day(6), "SH600001")
    both = bar_values(pl.concat([first, other, second]).lazy()).collect()
    alone = bar_values(first.lazy()).collect()
    assert both.filter((pl.col("date") == DAY) & (pl.col("instrument") == "SH600000")).equals(alone)
    assert both.height == 3


# ---- nothing for nothing ------------------------------------------------------------------------------------------------------------
def test_denominators_of_zero_give_null():
    still = values(frame(steps([1.0] * 240)))
    assert still["hf_skew"] is None and still["hf_down_share"] is None and still["hf_outflow_share"] is None
    assert still["hf_improved_reversal"] == 0 and still["hf_push_up"] == 0 and still["hf_tail_share"] == 0.125
    same = values(frame(steps([UP] * 240)))
    assert same["hf_skew"] is None and same["hf_down_share"] == 0                            # returns that are all alike have no skew
    idle = values(frame([row | {"volume": 0, "amount": 0.0, "n_trades": 0} for row in steps([1.0] * 240)]))
    assert idle["bars_traded"] == 0 and all(idle[name] is None for name in FACTORS if name in idle)


def test_a_day_needs_a_quarter_of_its_bars():
    rows = steps([UP if k % 2 else DOWN for k in range(240)])
    idle = [row | {"volume": 0, "amount": 0.0, "n_trades": 0} for row in rows]
    assert values(frame(rows[:60] + idle[60:]))["hf_skew"] is not None
    assert values(frame(rows[:59] + idle[59:]))["hf_skew"] is None
    assert values(frame(rows[:59] + idle[59:]), min_traded=0.0)["hf_skew"] is not None
    coarse = [row | {"minute": 15 * row["minute"]} for row in rows[:16]]
    assert values(frame(coarse[:4]), ["hf_skew"], bar_minutes=15)["hf_skew"] is not None
    assert values(frame(coarse[:3]), ["hf_skew"], bar_minutes=15)["hf_skew"] is None


def test_a_missing_bar_costs_what_needs_it():
    rows = steps([UP if k % 2 else DOWN for k in range(240)])
    for gone, lost in ((29, True), (239, True), (100, False)):
        found = values(frame(rows[:gone] + rows[gone + 1:]))
        assert (found["hf_tail_share"] is None) == (gone == 239)
        assert (found["hf_improved_reversal"] is None) == lost and found["hf_skew"] is not None and found["bars_traded"] == 239


def test_sides_and_orders_that_lack():
    bars, trades = frame(steps([UP] * 240)), ticks([2000] * 30, [1000] * 30)
    orders = orders_of(placed([500] * 30, 1))
    blank = trades.with_columns(side=pl.lit(0, pl.Int8))
    assert of_trades(blank, orders, bars) == of_trades(trades, orders, bars)                 # from the order numbers
    unnumbered = blank.with_columns(buy_order=pl.lit(None, pl.Int64))
    found = of_trades(unnumbered, orders, bars)
    assert all(found[name] is None for name in FACTORS[2:6])
    elsewhere = orders.with_columns(instrument=pl.lit("SH600001"))
    assert of_trades(trades, elsewhere, bars)["hf_buy_intention_share"] is None              # no silent proxy
    assert of_trades(trades, orders, bars, None)["hf_buy_intention_share"] == pytest.approx(30 * 1500 / 30_000)
    nobody = orders.with_columns(side=pl.lit(0, pl.Int8))
    assert of_trades(trades, nobody, bars)["hf_buy_intention_share"] is None
    few = unnumbered.with_columns(side=pl.when(pl.col("sequence") == 0).then(pl.lit(1, pl.Int8)).otherwise("side"))
    assert of_trades(few, None, bars, None, ["hf_buy_intention_share_proxy"], proxy=True)["hf_buy_intention_share_proxy"] is None
    unknown = bars.with_columns(amount=pl.when(pl.col("minute") != 7).then("amount"))
    assert of_trades(trades, orders, unknown)["hf_buy_intention_share"] is None
    silent = frame([row | {"volume": 0, "amount": 0.0} for row in steps([1.0] * 240)])
    assert trade_values(trades.lazy(), None, silent.lazy(), edge(1.0)).collect().height == 0       # too few bars traded
    assert of_trades(trades, None, silent, min_traded=0.0)["hf_large_buy_share"] is None           # nothing to divide by


def test_minutes_without_a_bar_are_minutes_without_trades():
    """Trades in every third minute: it does not matter whether the vendor ships bars of the others."""
    trades = ticks([2000 + 100 * k for k in range(30)], [1000] * 30, 1000).filter((pl.col("millisecond") // 60_000) % 3 == 0)
    traded = [k for k in range(240) if (k + 34_200_000 // 60_000) % 3 == 0]
    rows = [row if k in traded else row | {"volume": 0, "amount": 0.0, "n_trades": 0} for k, row in enumerate(steps([1.0] * 240))]
    whole, sparse = (of_trades(trades, None, frame(one), 2500.0) for one in (rows, [rows[k] for k in traded]))
    assert whole["hf_large_buy_intensity"] is not None
    assert all(sparse[name] == pytest.approx(whole[name], rel=1e-12) for name in ("hf_large_buy_share", "hf_large_buy_intensity"))


def test_orders_that_are_all_alike_are_not_large():
    options, day = IntradayOptions(threshold_days=3, min_threshold_days=3), DAY + timedelta(days=3)
    for price in np.random.default_rng(0).uniform(2, 90, 60).round(2):
        trades = ticks([1000] * 30, [1000] * 30).with_columns(price=pl.lit(float(price)))
        sizes = pl.concat([order_sizes(trades.with_columns(date=pl.lit(DAY + timedelta(days=k))).lazy(), options).collect() for k in range(3)])
        found = trade_values(trades.lazy(), None, frame(steps([UP] * 240)).lazy(), thresholds(sizes, day, options), options).collect()
        assert found["hf_large_buy_share"][0] == 0


def test_minutes_at_a_price_limit_are_left_out():
    rows = steps([1.0] * 30 + [UP] * 210)
    bars, trades = frame(rows), ticks([2000] * 10 + [4000] * 20, [1000] * 30)
    limits = pl.DataFrame({"date": [DAY], "instrument": ["SH600000"], "limit_up": [10.0], "limit_down": [8.0]})
    names, orders = ["hf_buy_intention_share"], orders_of(placed([500] * 30, 1))
    assert of_trades(trades, orders, bars, None, names, limits)["hf_buy_intention_share"] is None
    moved = frame([row | {"low": 9.5} if row["minute"] > 10 else row for row in rows])
    assert of_trades(trades, orders, moved, limits=limits, names=names)["hf_buy_intention_share"] == pytest.approx(20 * 3500 / 20_000)
    assert of_trades(trades, orders, moved, names=names)["hf_buy_intention_share"] == pytest.approx((20 * 3500 + 10 * 1500) / 30_000)
    large, parts = list(FACTORS[4:6]), ticks([2000] * 10 + [4000] * 20, [1000] * 30, 1000)           # who is large is known without sides
    alone = of_trades(parts, None, bars, 1500.0, large)
    assert of_trades(parts, None, bars, 1500.0, large, limits) == alone and alone["hf_large_buy_share"] == pytest.approx(100_000 / 30_000)
    proxies = of_trades(trades, None, moved, 1500.0, ["hf_large_buy_share_proxy"], limits, proxy=True)
    assert proxies["hf_large_buy_share_proxy"] == pytest.approx(20 * 4000 / 20_000), "large trades go by their sides"


def test_an_auction_inside_the_first_bar_is_taken_off():
    """Whether the first bar holds the opening auction or not, and the trades have it or not: what bars with it apart give."""
    rows = [row | {"volume": 300} for row in steps([UP] * 240, [3000.0] * 240)]
    trades, orders = ticks([2000] * 30, [1000] * 30), orders_of(placed([500] * 30, 1))
    auction = trades.head(1).with_columns(millisecond=pl.lit(33_900_000, pl.Int32), quantity=pl.lit(700, pl.Int64),
                                          sequence=-pl.col("sequence") - 1)
    merged = [rows[0] | {"amount": 10_000.0, "volume": 1000}, *rows[1:]]
    apart = of_trades(trades, orders, frame(rows))
    assert of_trades(trades, orders, frame(merged))["hf_buy_intention_share"] == pytest.approx(apart["hf_buy_intention_share"] * 90 / 97)
    for bars in (rows, merged):
        for ticked in (trades, pl.concat([auction, trades])):
            split = without_auction(frame(bars).lazy(), ticked.lazy(), 1).collect()
            assert split["amount"].to_list() == [3000.0] * 240 and split["volume"].to_list() == [300] * 240
            found = of_trades(ticked, orders, split)
            known = [name for name in FACTORS[2:6] if apart[name] is not None]
            assert [found[name] for name in known] == pytest.approx([apart[name] for name in known], rel=1e-12) and len(known) > 1
    other = without_auction(frame(merged).lazy(), trades.with_columns(instrument=pl.lit("SH600001")).lazy(), 1).collect()
    assert other["amount"][0] == 10_000.0, "without trades nothing is known"
    alone = without_auction(frame(merged).lazy(), auction.lazy(), 1).collect()
    assert alone["amount"][0] == 0 == alone["volume"][0]


def test_proxies_have_names_of_their_own():
    bars, trades = frame(steps([UP if k % 2 else DOWN for k in range(240)])).drop("n_trades"), ticks([3000] * 30, [1000] * 30)
    assert set(values(bars)) == {"date", "instrument", "bars_traded", *(name for name in FACTORS if NEEDS[name] == ("bars",))}
    with pytest.raises(DataError, match="n_trades.*hf_outflow_share_proxy"):
        values(bars, ["hf_outflow_share"])
    with pytest.raises(ConfigError, match="proxy: true"):
        values(bars, ["hf_outflow_share_proxy"])
    assert values(bars, ["hf_outflow_share_proxy"], proxy=True)["hf_outflow_share_proxy"] == 0.5
    found = of_trades(trades, None, bars, 2000.0, [name for name in TRADE_FACTORS if name in PROXIES], proxy=True)
    assert found["hf_buy_intention_share_proxy"] == pytest.approx(2.0) and found["hf_large_buy_share_proxy"] == pytest.approx(3.0)
    assert not set(PROXIES) & set(FACTORS) and set(SIGNS) == set(FACTORS)


def test_the_other_reading_of_the_downside():
    moves = [DOWN if falling(k) else UP for k in range(240)]
    r = np.log(moves)
    assert values(frame(steps(moves)), downside="deviation")["hf_down_share"] == pytest.approx(r[r < 0].std() / r.std(), abs=1e-6)


# ---- refusals -----------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("wrong", [
    {"bar_minutes": 7}, {"open_minutes": 20, "bar_minutes": 15}, {"tail_minutes": 0}, {"returns": "open"}, {"downside": "count"},
    {"push_share": 0.0}, {"min_traded": 2.0}, {"buy_intention_sign": 0}, {"threshold_days": 3}, {"min_threshold_days": 0},
    {"closing_auction": "outside", "bar_minutes": 15}, {"demean": "yes"}, {"large_scale": "square"}, {"order_size": "week"},
    {"min_traded": "abc"}, {"min_traded": True}, {"push_share": "abc"}, {"large_deviations": "abc"}, {"large_deviations": float("nan")},
    {"open_minutes": 200, "tail_minutes": 100}, {"closing_auction": "outside", "tail_minutes": 3}, {"open_minutes": 30, "bar_minutes": 60}])
def test_options_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        IntradayOptions(**wrong)


def test_rows_that_cannot_be():
    rows = steps([UP] * 240)
    with pytest.raises(DataError, match="SH600000 on 2024-05-06: minute 5 stands twice"):
        values(frame(rows[:5] + rows[4:]))
    with pytest.raises(DataError, match="minute 4 is out of order"):
        values(frame(rows[:3] + [rows[4], rows[3]] + rows[5:]))
    with pytest.raises(DataError, match="minute 7 is no end of a bar of 5 minutes"):
        values(frame([row | {"minute": 5 * row["minute"]} for row in rows[:9]] + [rows[6] | {"minute": 247}]).with_columns(
            minute=pl.when(pl.col("minute") == 5).then(pl.lit(7, pl.Int16)).otherwise("minute")), bar_minutes=5)
    with pytest.raises(DataError, match="minute 241 is no end"):
        values(frame(rows + [rows[-1] | {"minute": 241}]))
    with pytest.raises(DataError, match="do not stand together"):
        values(pl.concat([frame(rows[:9]), frame(rows, "SH600001"), frame(rows[9:])]))
    with pytest.raises(DataError, match="lack the columns"):
        values(frame(rows).drop("volume"))
    with pytest.raises(ConfigError, match="hf_skw"):
        values(frame(rows), ["hf_skw"])
    with pytest.raises(DataError, match="need orders"):
        of_trades(ticks([1000] * 30, [1000] * 30), None, frame(rows), None, ["hf_buy_intention_share"])
    with pytest.raises(DataError, match="thresholds of large orders"):
        of_trades(ticks([1000] * 30, [1000] * 30), None, frame(rows), None, ["hf_large_buy_share"])
    assert bar_values(frame(rows).clear().lazy()).collect().height == 0


# ---- real ticks ---------------------------------------------------------------------------------------------------------------------
@pytest.mark.realdata
def test_the_real_ticks_equal_a_loop(real_data):
    clock = lambda: ((pl.col("time").dt.hour().cast(pl.Int64) * 3600 + pl.col("time").dt.minute().cast(pl.Int64) * 60
                      + pl.col("time").dt.second()) * 1000  # noqa: E731
                     + pl.col("time").dt.millisecond()).cast(pl.Int32)
    sides, common = {"B": 1, "S": -1, "N": 0}, [pl.col("time").dt.date().alias("date"), pl.col("symbol").cast(pl.String).alias("instrument")]
    money = pl.col("price").cast(pl.Float64).round(2)
    side = pl.col("side").cast(pl.String).replace_strict(sides, return_dtype=pl.Int8)
    trades = pl.read_parquet(real_data / "minute" / "l2_trades.parquet").filter(pl.col("kind") == "F").select(
        *common, millisecond=clock(), price=money, quantity=pl.col("qty").cast(pl.Int64), side=side, buy_order=pl.col("buy_no").cast(pl.Int64),
        sell_order=pl.col("sell_no").cast(pl.Int64), sequence="seq").sort("instrument", "date", "millisecond", "sequence")
    orders = pl.read_parquet(real_data / "minute" / "l2_orders.parquet").select(
        *common, millisecond=clock(), price=money, quantity=pl.col("qty").cast(pl.Int64), side=side,
        kind=pl.when(pl.col("kind").cast(pl.String) == "A").then(1).otherwise(-1).cast(pl.Int8), order="order_no", sequence="seq")
    bars = trades.with_columns(minute=session_minute(pl.col("millisecond"))).group_by("instrument", "date", "minute", maintain_order=True).agg(
        open=pl.col("price").first(), close=pl.col("price").last(), volume=pl.col("quantity").sum(),
        amount=(pl.col("price") * pl.col("quantity")).sum(), n_trades=pl.len().cast(pl.Int32))
    options = IntradayOptions(min_threshold_days=1)
    edges = thresholds(order_sizes(trades.lazy()).collect(), date(2030, 1, 1), options)
    found = bar_values(bars.lazy(), options).collect().join(
        trade_values(trades.lazy(), orders.lazy(), bars.lazy(), edges, options).collect(), on=["date", "instrument"])
    assert found.height == 4
    known = 0
    for row in found.iter_rows(named=True):
        own = [one.filter((pl.col("date") == row["date"]) & (pl.col("instrument") == row["instrument"])).to_dicts() for one in
               (trades, orders, bars)]
        threshold = edges.filter(pl.col("instrument") == row["instrument"])["threshold"][0]
        expected = slow_bars(own[2], options) | slow_trades(*own, threshold, options)
        for name in FACTORS:
            assert row[name] == (pytest.approx(expected[name], rel=1e-9) if name in expected else None), (row["instrument"], name)
        known += len([name for name in FACTORS if name in expected])
    assert known >= 4 * 7 + 2                                                               # orders are known of one stock
