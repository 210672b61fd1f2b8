"""Features of days and blocks against a plain loop over bars and trades, and their properties."""

import datetime
import math

import numpy as np
import polars as pl
import pytest

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors import intraday, intraday_features
from qlib_ext.factors.intraday_features import BLOCK_FEATURES, DAY_FEATURES, WHOLE_DAY_UNKNOWN, block_features, day_features
from qlib_ext.store.intraday import resample

DAYS = [datetime.date(2024, 1, 2), datetime.date(2024, 1, 3)]
STOCKS = ["SH600000", "SZ000001", "SZ300001"]
LOOSE = intraday.IntradayOptions(min_traded=0.0)
OF_TICKS = {name for name in DAY_FEATURES if name.startswith(("net_active_buy", "large_order"))}
OF_COUNTS = {name for name in (*DAY_FEATURES, *BLOCK_FEATURES) if name.startswith("trade_size")}
SPREADS = {"log_variance", "variance_share", "skew", "kurtosis", "down_share", "price_volume_corr", "trend", "log_illiquidity",
           "volume_concentration", "trade_size_falling"}


# ---- random days --------------------------------------------------------------------------------------------------------------
def random_day(rng, clean: bool) -> list[dict]:
    """1-minute bars of a stock-day; unless `clean` with minutes missing, without trades, and with unknown values."""
    rows, last = [], 10.0 + rng.random() * 20
    start = 0 if rng.random() < 0.5 else 1
    for minute in range(start, 241):
        if not clean and minute and rng.random() < 0.1:
            continue
        opened = round(last * math.exp(rng.normal(0, 5e-4)), 2)
        close = opened if minute == 0 else round(opened * math.exp(rng.normal(0, 1e-3)), 2)
        high, low = max(opened, close) + 0.01, min(opened, close) - 0.01
        volume = int(rng.integers(1, 500)) * 100
        row = dict(minute=minute, open=opened, high=high, low=low, close=close, volume=volume,
                   amount=volume * (opened + close) / 2, n_trades=int(rng.integers(1, 40)))
        kind = 1.0 if clean else rng.random()
        if kind < 0.25:
            price = None if not rows or kind < 0.03 else last
            row.update(open=price, high=price, low=price, close=price, volume=0, amount=0.0, n_trades=0)
        elif kind < 0.28:
            row["open"] = None
        elif kind < 0.281:
            row["amount"] = None
        rows.append(row)
        last = row["close"] or last
    return rows


def bars_of(days: dict) -> pl.LazyFrame:
    """Frame of {(date, stock): rows}."""
    rows = [dict(date=day, instrument=stock, **row) for (day, stock), found in sorted(days.items()) for row in found]
    schema = {"date": pl.Date, "instrument": pl.String, "minute": pl.Int16, **dict.fromkeys(("open", "high", "low", "close"), pl.Float64),
              "volume": pl.Int64, "amount": pl.Float64, "n_trades": pl.Int32}
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col("instrument").cast(pl.Categorical)).lazy()


def random_days(seed: int, clean: bool = False) -> dict:
    rng = np.random.default_rng(seed)
    return {(day, stock): random_day(rng, clean) for day in DAYS for stock in STOCKS}


def random_trades(seed: int) -> dict:
    """{(date, stock): trades}: auctions, unknown sides; the second stock's first day lacks an order number, the third stock has none."""
    rng, found = np.random.default_rng(seed), {}
    for day in DAYS:
        for stock in STOCKS[:2]:
            clock = np.sort(rng.integers(0, 14_400_000, 400))
            times = [33_900_000, *(34_200_000 + clock + np.where(clock >= 7_200_000, 5_400_000, 0)), 54_000_000]
            found[day, stock] = [dict(millisecond=int(ms), price=round(10 + rng.random(), 2), quantity=int(rng.integers(1, 90)) * 100,
                                      side=[1, -1, 0, None][rng.choice(4, p=[0.4, 0.4, 0.15, 0.05])],
                                      buy_order=int(rng.integers(1, 150)), sell_order=int(rng.integers(150, 300)) - 100, sequence=number)
                                 for number, ms in enumerate(times)]
    found[DAYS[0], STOCKS[1]][7]["sell_order"] = None
    return found


def trades_of(days: dict) -> pl.LazyFrame:
    rows = [dict(date=day, instrument=stock, **row) for (day, stock), found in sorted(days.items()) for row in found]
    schema = {"date": pl.Date, "instrument": pl.Categorical, "millisecond": pl.Int32, "price": pl.Float64, "quantity": pl.Int64,
              "side": pl.Int8, "buy_order": pl.Int64, "sell_order": pl.Int64, "sequence": pl.Int64}
    return pl.DataFrame(rows, schema=schema).lazy()


# ---- the same, slowly ---------------------------------------------------------------------------------------------------------
def over(part, whole):
    return None if part is None or whole is None or not whole > 0 else part / whole


def ln(value):
    return None if value is None or not value > 0 else math.log(value)


def less(first, second):
    return None if first is None or second is None else first - second


def total(values):
    values = list(values)
    return None if any(value is None for value in values) else sum(values)


def with_returns(rows, own_open=False):
    """Session bars with their return `r`, None without one."""
    last, out = None, []
    for row in (one for one in rows if one["minute"] > 0):
        first = row["open"] if own_open or last is None else last
        r = math.log(row["close"] / first) if row["close"] and first else None
        last = row["close"] if r is not None else last
        out.append({**row, "r": r})
    return out


def slow_shape(bars, demean=True):
    priced = [bar for bar in bars if bar["r"] is not None]
    traded = [bar for bar in bars if bar["volume"] > 0]
    r, n = [bar["r"] for bar in priced], len(priced)
    mean = sum(r) / n if n and demean else 0.0
    moment = {k: sum((x - mean) ** k for x in r) for k in (2, 3, 4)}
    squares, amount = sum(x * x for x in r), total(bar["amount"] for bar in traded)
    count = total(bar["n_trades"] for bar in traded)
    falling = [bar for bar in traded if bar["r"] is not None and bar["r"] < 0]
    volume = sum(bar["volume"] for bar in traded)
    size = over(amount, count)
    falling_size = over(total(bar["amount"] for bar in falling), total(bar["n_trades"] for bar in falling))
    flat = moment[2] <= 1e-18 * squares
    found = {"log_variance": ln(squares), "down_share": over(sum(x * x for x in r if x < 0), squares),
             "trend": over(sum(r), sum(map(abs, r))), "log_illiquidity": ln(over(sum(map(abs, r)), amount)),
             "volume_concentration": over(sum(bar["volume"] ** 2 for bar in traded), volume**2),
             "trade_size_falling": over(falling_size, size)} if n >= 2 else {}
    found["skew"] = None if flat or n < 3 else math.sqrt(n) * moment[3] / moment[2] ** 1.5
    found["kurtosis"] = None if flat or n < 4 else n * moment[4] / moment[2] ** 2
    x, v = [math.log(bar["close"]) for bar in priced], [bar["volume"] for bar in priced]
    if n >= 3 and len(set(x)) > 1 and len(set(v)) > 1:
        found["price_volume_corr"] = float(np.corrcoef(x, v)[0, 1])
    return {**found, "return": sum(r) if n else None, "squares": squares if n >= 2 else None, "volume": volume, "amount": amount,
            "size": size, "vwap": over(amount, volume), "traded": traded}


def slow_day(rows, trades=(), **options):
    bars, auction = with_returns(rows, options.get("own_open", False)), [row for row in rows if row["volume"] > 0]
    demean = options.get("demean", True)
    day, volume, amount = slow_shape(bars, demean), sum(row["volume"] for row in auction), total(row["amount"] for row in auction)
    vwap, found = over(amount, volume), {name: day.get(name) for name in DAY_FEATURES if name in day}
    last = day["traded"][-1]["close"] if day["traded"] else None
    found.update(intraday_return=day["return"], vwap_deviation=ln(over(last, vwap)))
    for part, low, high in (("open", 1, 30), ("mid", 31, 210), ("tail", 211, 240)):
        own = slow_shape([bar for bar in bars if low <= bar["minute"] <= high], demean)
        found.update({f"variance_{part}": over(own["squares"], day["squares"]), f"return_{part}": own["return"],
                      f"down_share_{part}": own.get("down_share"), f"volume_{part}": over(own["volume"], volume),
                      f"vwap_{part}": ln(over(own["vwap"], vwap)), f"price_volume_corr_{part}": own.get("price_volume_corr"),
                      f"trade_size_{part}": over(own["size"], day["size"]), f"net_active_buy_{part}": slow_net(trades, low, high)})
    found["net_active_buy"] = slow_net(trades, 1, 240)
    found["large_order_share"], found["large_order_net"] = slow_orders(trades)
    return {name: found.get(name) for name in DAY_FEATURES}


def minute_of(millisecond):
    clock = millisecond // 60_000
    if clock < 9 * 60 + 30:
        return 0
    return min(clock - 9 * 60 - 30 + 1, 120) if clock < 13 * 60 else min(clock - 13 * 60 + 121, 240)


def slow_net(trades, low, high):
    buys = sales = 0.0
    for trade in trades:
        minute, side = minute_of(trade["millisecond"]), trade["side"]
        if not low <= minute <= high:
            continue
        if not side and 1 <= minute <= 237 and trade["buy_order"] is not None and trade["sell_order"] is not None:
            side = 1 if trade["buy_order"] > trade["sell_order"] else -1 if trade["buy_order"] < trade["sell_order"] else 0
        buys += trade["price"] * trade["quantity"] * (side == 1)
        sales += trade["price"] * trade["quantity"] * (side == -1)
    return over(buys - sales, buys + sales)


def slow_orders(trades):
    sizes = {}
    for trade in trades:
        for key in (("buy_order", trade["buy_order"]), ("sell_order", trade["sell_order"])):
            sizes[key] = sizes.get(key, 0.0) + trade["price"] * trade["quantity"]
    if not sizes or any(order is None for _, order in sizes):
        return None, None
    logs = [math.log(size) for size in sizes.values()]
    edge = math.exp(np.mean(logs) + np.std(logs))
    large = {key: size for key, size in sizes.items() if size > edge}
    whole = sum(sizes.values())
    net = sum(size if side == "buy_order" else -size for (side, _), size in large.items())
    return sum(large.values()) / whole, net / whole


def slow_blocks(rows, minutes, trades=()):
    """{minute: features}."""
    bars, traded, found = with_returns(rows), [row for row in rows if row["volume"] > 0], {}
    day, volume, amount = slow_shape(bars), sum(row["volume"] for row in traded), total(row["amount"] for row in traded)
    for end in range(minutes, 241, minutes):
        inside = [bar for bar in bars if end - minutes < bar["minute"] <= end]
        if not inside:
            continue
        own = slow_shape(inside)
        vwap, dealt = own["vwap"], own["traded"]
        prices = {"open": dealt[0]["open"], "close": dealt[-1]["close"], "low": min(bar["low"] for bar in dealt),
                  "high": max(bar["high"] for bar in dealt)} if dealt else {}
        one = {**own, **{name: ln(over(prices.get(name), vwap)) for name in ("open", "high", "low", "close")},
               "vwap": ln(over(vwap, over(amount, volume))), "volume_share": over(own["volume"], volume),
               "amount_share": over(own["amount"], amount), "variance_share": over(own["squares"], day["squares"]),
               "trade_size": over(own["size"], day["size"]), "net_active_buy": slow_net(trades, end - minutes + 1, end)}
        if minutes == 240:
            one.update(dict.fromkeys(WHOLE_DAY_UNKNOWN))
        found[end] = {name: one.get(name) for name in BLOCK_FEATURES}
    return found


def assert_same(row: dict, expected: dict):
    for name, value in expected.items():
        assert (row[name] is None) == (value is None), (name, row[name], value)
        if value is not None:
            assert row[name] == pytest.approx(value, rel=1e-8, abs=1e-11), name


# ---- equal to the loop --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("clean", [False, True])
def test_a_day_equals_the_loop(clean):
    days, trades = random_days(1, clean), random_trades(2)
    found = day_features(bars_of(days), trades_of(trades), LOOSE).collect()
    assert found.columns == ["date", "instrument", *DAY_FEATURES] and len(DAY_FEATURES) == 32 and found.height == 6
    assert set(found.dtypes[2:]) == {pl.Float64} and found["instrument"].dtype == pl.Categorical
    for row in found.iter_rows(named=True):
        key = row["date"], row["instrument"]
        assert_same(row, slow_day(days[key], trades.get(key, ())))
    filled = {name for name in DAY_FEATURES if found[name].null_count() < found.height}
    assert filled == set(DAY_FEATURES)
    assert found.filter(pl.col("large_order_net").is_null()).height == 3  # a number is missing, and the stock without trades twice


@pytest.mark.parametrize("minutes, clean", [(30, False), (60, False), (60, True), (240, False), (1, False)])
def test_blocks_equal_the_loop(minutes, clean):
    days, trades = random_days(3, clean), random_trades(4)
    found = block_features(bars_of(days), minutes, trades_of(trades), LOOSE).collect()
    assert found.columns == ["date", "instrument", "minute", *BLOCK_FEATURES] and found["minute"].dtype == pl.Int16
    expected = {key: slow_blocks(rows, minutes, trades.get(key, ())) for key, rows in days.items()}
    assert found.height == sum(map(len, expected.values()))
    for row in found.iter_rows(named=True):
        assert_same(row, expected[row["date"], row["instrument"]][row["minute"]])
    known = {name for name in BLOCK_FEATURES if found[name].null_count() < found.height}
    assert set(BLOCK_FEATURES) - known == (SPREADS if minutes == 1 else set(WHOLE_DAY_UNKNOWN) if minutes == 240 else set())


def test_options():
    days = random_days(5)
    options = intraday.IntradayOptions(min_traded=0.0, returns="bar", demean=False)
    for row in day_features(bars_of(days), options=options).collect().iter_rows(named=True):
        assert_same(row, slow_day(days[row["date"], row["instrument"]], own_open=True, demean=False))
    trades, outside = random_trades(6), intraday.IntradayOptions(min_traded=0.0, closing_auction="outside")
    early = {key: [row for row in rows if row["minute"] <= 237] for key, rows in days.items()}
    early_trades = {key: [row for row in rows if minute_of(row["millisecond"]) <= 237] for key, rows in trades.items()}
    for row in day_features(bars_of(days), trades_of(trades), outside).collect().iter_rows(named=True):
        key = row["date"], row["instrument"]
        assert_same(row, slow_day(early[key], early_trades.get(key, ())))


def test_a_day_that_hardly_traded_is_unknown():
    days, key = random_days(7, clean=True), (DAYS[0], STOCKS[0])
    for one, least in ((key, 59), ((DAYS[1], STOCKS[1]), 60)):  # a quarter of the bars is enough
        for row in days[one]:
            if row["minute"] > least:
                row.update(volume=0, amount=0.0, n_trades=0)
    for made in (day_features(bars_of(days)), block_features(bars_of(days), 60)):
        found = made.collect()
        poor = (pl.col("date") == key[0]) & (pl.col("instrument") == key[1])
        features = pl.all().exclude("date", "instrument", "minute")
        assert set(found.filter(poor).select(features.is_null().all()).row(0)) == {True}
        assert found.filter(~poor)["log_variance"].null_count() == 0
        assert found.height == (6 if "minute" not in found.columns else 24)


# ---- properties ---------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("scaled", ["price", "quantity"])
def test_scale_is_in_no_feature_but_a_logarithm(scaled):
    days, trades, factor = random_days(8), random_trades(9), 3
    columns = ["open", "high", "low", "close"] if scaled == "price" else ["volume"]
    bars, ticks = bars_of(days), trades_of(trades)
    larger = bars.with_columns(pl.col(*columns, "amount") * factor)
    more = ticks.with_columns(pl.col(scaled) * factor)
    for make in (lambda b, t: day_features(b, t, LOOSE), lambda b, t: block_features(b, 60, t, LOOSE)):
        before, after = make(bars, ticks).collect(), make(larger, more).collect()
        for name in before.columns:
            if before[name].dtype == pl.Float64:
                shift = math.log(factor) if name == "log_illiquidity" else 0.0
                np.testing.assert_allclose(after[name].to_numpy() + shift, before[name].to_numpy(), rtol=1e-7, atol=1e-9, err_msg=name)


def test_nothing_comes_from_other_days_or_stocks():
    days, trades, key = random_days(10), random_trades(11), (DAYS[1], STOCKS[0])
    alone = {key: days[key]}, {key: trades[key]}
    for make in (lambda b, t: day_features(bars_of(b), trades_of(t), LOOSE),
                 lambda b, t: block_features(bars_of(b), 30, trades_of(t), LOOSE)):
        found = make(days, trades).filter((pl.col("date") == key[0]) & (pl.col("instrument") == key[1])).collect()
        expected = make(*alone).collect()
        ticks = [name for name in found.columns if name in OF_TICKS]  # the last bit of a sum of trades depends on where they lie
        assert found.height > 0 and found.drop(ticks).equals(expected.drop(ticks))
        for name in ticks:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, atol=1e-15)


def test_a_block_knows_the_later_day_only_where_it_compares():
    days = random_days(12, clean=True)
    change = dict(close=1.1, volume=2, amount=3, n_trades=4)
    later = {key: [{**row, **{name: row[name] * by for name, by in change.items()}} if row["minute"] > 120 else row for row in rows]
             for key, rows in days.items()}
    first, second = (block_features(bars_of(one), 60).filter(pl.col("minute") <= 120).collect() for one in (days, later))
    assert {name for name in BLOCK_FEATURES if not first[name].equals(second[name])} == set(WHOLE_DAY_UNKNOWN)


def test_parts_make_the_day():
    found = day_features(bars_of(random_days(13, clean=True))).collect()
    blocks = block_features(bars_of(random_days(13, clean=True)), 30).collect()
    whole = blocks.group_by("date", "instrument", maintain_order=True).agg(
        pl.col("return").sum(), pl.col("variance_share").sum(), pl.col("variance_share").first().alias("first"),
        pl.col("volume_share").last().alias("last"))
    np.testing.assert_allclose(whole["return"], found["intraday_return"], rtol=1e-10)
    np.testing.assert_allclose(whole["variance_share"], 1.0, rtol=1e-10)
    np.testing.assert_allclose(whole["first"], found["variance_open"], rtol=1e-10)
    np.testing.assert_allclose(whole["last"], found["volume_tail"], rtol=1e-10)


def test_a_night_is_in_no_return():
    days = random_days(14, clean=True)
    moved = {key: [{**row, **{name: row[name] * 1.5 for name in ("open", "high", "low", "close", "amount")}} for row in rows]
             if key[0] == DAYS[1] else rows for key, rows in days.items()}
    first, second = (day_features(bars_of(one)).collect() for one in (days, moved))
    np.testing.assert_allclose(first["intraday_return"], second["intraday_return"], rtol=1e-9)


@pytest.mark.parametrize("steps, known", [(0.0, {}), (1e-3, {"down_share": 0.0, "trend": 1.0, "return": 0.24})])
def test_prices_that_stand_or_rise_evenly(steps, known):
    rows = [dict(minute=m, open=10 * math.exp(steps * (m - 1)), high=10 * math.exp(steps * m), low=10 * math.exp(steps * (m - 1)),
                 close=10 * math.exp(steps * m), volume=100, amount=1000.0, n_trades=2) for m in range(1, 241)]
    day = day_features(bars_of({(DAYS[0], STOCKS[0]): rows})).collect().row(0, named=True)
    block = block_features(bars_of({(DAYS[0], STOCKS[0]): rows}), 240).collect().row(0, named=True)
    for row in (day, block):
        assert row["skew"] is row["kurtosis"] is row["price_volume_corr"] is row["trade_size_falling"] is None
        assert row["down_share"] == known.get("down_share") and row["volume_concentration"] == pytest.approx(1 / 240)
    assert block["trend"] == pytest.approx(known["trend"]) if known else block["trend"] is None
    assert block["return"] == pytest.approx(known.get("return", 0.0)) and (day["log_variance"] is None) == (not known)
    assert day["trade_size_open"] == 1.0 and day["volume_tail"] == pytest.approx(1 / 8)


def test_prices_of_a_block_are_of_bars_that_traded():
    rows = [dict(minute=m, open=10.0, high=10.2, low=9.9, close=10.1, volume=100, amount=1000.0, n_trades=2) for m in range(1, 241)]
    for row in rows:
        if row["minute"] in (61, 62, 119, 120):
            price = 11.0 if row["minute"] < 100 else 9.0
            row.update(dict.fromkeys(("open", "high", "low", "close"), price), volume=0, amount=0.0, n_trades=0)
    found = block_features(bars_of({(DAYS[0], STOCKS[0]): rows}), 60).filter(pl.col("minute") == 120).collect().row(0, named=True)
    assert [math.exp(found[name]) for name in ("open", "high", "low", "close")] == pytest.approx([1.0, 1.02, 0.99, 1.01])
    assert found["return"] == pytest.approx(math.log(9.0 / 10.1))


@pytest.mark.parametrize("bar, left_out, unknown", [
    (15, 0, set()), (15, 1, {"kurtosis"}), (30, 0, {"skew", "kurtosis", "price_volume_corr"}), (30, 1, SPREADS)])
def test_blocks_of_few_bars(bar, left_out, unknown):
    bars = resample(bars_of(random_days(22, clean=True)), bar, auction="drop").filter(pl.col("minute") % 60 >= left_out)
    found = block_features(bars, 60, options=intraday.IntradayOptions(bar_minutes=bar)).collect()
    assert {name for name in BLOCK_FEATURES if found[name].null_count() == found.height} == unknown | {"net_active_buy"}


# ---- coarse bars, absent inputs -----------------------------------------------------------------------------------------------
def test_coarse_bars():
    fine = bars_of(random_days(15, clean=True))
    fifteen, sixty = (resample(fine, minutes, auction="drop") for minutes in (15, 60))
    options = {minutes: intraday.IntradayOptions(bar_minutes=minutes, open_minutes=max(minutes, 30), tail_minutes=max(minutes, 30))
               for minutes in (15, 60)}
    apart = fine.filter(pl.col("minute") > 0)
    first, second = day_features(apart).collect(), day_features(fifteen, options=options[15]).collect()
    for name in ("intraday_return", "return_open", "return_tail", "volume_open", "volume_tail", "vwap_deviation", "vwap_open",
                 "trade_size_tail"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert second["price_volume_corr_open"].null_count() == 6 and second["down_share_open"].null_count() == 0
    first, second = block_features(apart, 60).collect(), block_features(sixty, 60, options=options[60]).collect()
    for name in ("open", "high", "low", "close", "return", "vwap", "volume_share", "amount_share", "trade_size"):
        np.testing.assert_allclose(first[name], second[name], rtol=1e-9, atol=1e-12, err_msg=name)
    assert {name for name in BLOCK_FEATURES if second[name].null_count() == second.height} == SPREADS | {"net_active_buy"}


def test_what_lacks_an_input_is_null():
    bars, trades = bars_of(random_days(16, clean=True)), trades_of(random_trades(17))
    unsided = trades.with_columns(side=pl.lit(0, pl.Int8), buy_order=pl.lit(None, pl.Int64))
    for made, expected in ((day_features(bars.drop("n_trades")), OF_COUNTS | OF_TICKS), (day_features(bars, trades), set()),
                           (day_features(bars), OF_TICKS), (day_features(bars, unsided), OF_TICKS),
                           (day_features(bars, trades.head(0)), OF_TICKS), (block_features(bars, 60), {"net_active_buy"}),
                           (block_features(bars.drop("n_trades"), 60), OF_COUNTS | {"net_active_buy"})):
        found = made.collect()
        features = [name for name in found.columns if found[name].dtype == pl.Float64]
        assert {name for name in features if found[name].null_count() == found.height} == expected & set(features)
        assert found.height in (6, 24) and not any(found[name].is_nan().any() or found[name].is_infinite().any() for name in features)


def test_no_rows():
    bars = bars_of(random_days(18, clean=True)).head(0)
    assert day_features(bars, trades_of(random_trades(1))).collect().shape == (0, 34)
    assert block_features(bars, 60).collect().shape == (0, 3 + len(BLOCK_FEATURES))
    auctions = bars_of({(day, stock): [{**row, "minute": 0} for row in rows[-1:]] for (day, stock), rows in random_days(18, True).items()})
    assert set(day_features(auctions, options=LOOSE).select(DAY_FEATURES).collect().null_count().row(0)) == {6}
    assert block_features(auctions, 60, options=LOOSE).collect().height == 0


def test_pieces_change_nothing(monkeypatch):
    bars = bars_of(random_days(19))
    whole = day_features(bars, options=LOOSE).collect(), block_features(bars, 30, options=LOOSE).collect()
    monkeypatch.setattr(intraday_features, "_PIECE_ROWS", 300)
    assert whole[0].equals(day_features(bars, options=LOOSE).collect())
    assert whole[1].equals(block_features(bars, 30, options=LOOSE).collect())


def test_a_query_on_the_result_changes_no_value():
    bars = bars_of(random_days(19))
    day, blocks = day_features(bars, options=LOOSE), block_features(bars, 60, options=LOOSE)
    late, one = pl.col("minute") > 60, pl.col("instrument") == STOCKS[1]
    assert blocks.filter(late & one).select("volume_share", "return").collect().equals(
        blocks.collect().filter(late & one).select("volume_share", "return"))
    assert day.tail(2).collect().equals(day.collect().tail(2)) and day.filter(one).collect().equals(day.collect().filter(one))


def test_bad_input():
    bars, trades = bars_of(random_days(20, clean=True)), trades_of(random_trades(21))
    for minutes in (0, 7, 480, "60", 60.0):
        with pytest.raises(ConfigError, match="of a block must be whole bars"):
            block_features(bars, minutes)
    with pytest.raises(ConfigError, match="whole bars of 15 minutes"):
        block_features(bars, 5, options=intraday.IntradayOptions(bar_minutes=15))
    with pytest.raises(DataError, match="bars lack the columns .'high'."):
        block_features(bars.drop("high"), 60)
    with pytest.raises(DataError, match="trades lack the columns .'side'."):
        day_features(bars, trades.drop("side"))
    twice = pl.concat([bars, bars]).sort("date", "instrument", "minute")
    with pytest.raises((DataError, pl.exceptions.ComputeError), match="stands twice"):
        day_features(twice).collect()
