"""Trades and orders of several days together: each day for itself, whatever the others hold."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest

from qlib_ext.factors.intraday import FACTORS, IntradayOptions, order_sizes, thresholds, trade_values
from qlib_ext.factors.ticks import bars_from_trades

DAY, NAMES, STOCKS = date(2024, 5, 6), list(FACTORS[2:6]), ("SH600000", "SH600001")


def ticks(seed: int, stock: str, day: date) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Few order numbers, the same on every day and for every stock, as exchanges give them anew each day."""
    random, count = np.random.default_rng(seed), 400
    time = pl.Series(np.sort(random.integers(34_200_000, 54_000_000, count)), dtype=pl.Int32)
    common = {"millisecond": time, "price": np.round(random.uniform(9, 11, count), 2), "quantity": 100 * random.integers(1, 50, count)}
    side = pl.Series(random.choice([-1, 1], count), dtype=pl.Int8)
    keys = [pl.lit(day).alias("date"), pl.lit(stock).alias("instrument")]
    trades = pl.DataFrame({**common, "side": side, "buy_order": random.integers(1, 60, count),
                           "sell_order": random.integers(60, 120, count), "sequence": range(count)})
    orders = pl.DataFrame({**common, "side": side, "order": range(count), "kind": pl.Series([1] * count, dtype=pl.Int8)})
    return trades.select(*keys, pl.all()), orders.select(*keys, pl.all())


def found(trades: pl.DataFrame, orders: pl.DataFrame, **options) -> pl.DataFrame:
    edges = pl.DataFrame({"instrument": STOCKS, "threshold": [30_000.0, 40_000.0] if options else [160_000.0, 180_000.0]})
    made = trade_values(trades.lazy(), orders.lazy(), bars_from_trades(trades.lazy()), edges, IntradayOptions(**options), NAMES)
    return made.collect(engine="in-memory")


@pytest.mark.parametrize("options", [{}, {"order_size": "observed"}])
@pytest.mark.parametrize("kind", [pl.String, pl.Categorical])
def test_days_and_stocks_together_are_as_each_alone(options, kind):
    parts = [[one.with_columns(pl.col("instrument").cast(kind)) for one in ticks(10 * k + n, stock, DAY + timedelta(days=k))]
             for k in range(3) for n, stock in enumerate(STOCKS)]
    together = found(*(pl.concat(one) for one in zip(*parts)), **options)
    assert together.height == 6 and together.null_count().sum_horizontal().item() == 0
    for place, part in enumerate(parts):
        alone = found(*part, **options)
        for name in NAMES:
            assert together[name][place] == pytest.approx(alone[name][0], rel=1e-12), name
    sizes = order_sizes(pl.concat([part[0] for part in parts]).lazy()).collect().sort("date", "instrument")
    for place, part in enumerate(parts):
        assert sizes.row(place) == pytest.approx(order_sizes(part[0].lazy()).collect().row(0))


def test_later_days_change_nothing():
    parts = [ticks(k, "SH600000", DAY + timedelta(days=k)) for k in range(4)]
    trades, orders = (pl.concat(one) for one in zip(*parts))
    late = pl.col("date") > DAY + timedelta(days=1)
    wrong = trades.with_columns(price=pl.when(late).then(pl.col("price") * 7).otherwise("price"))
    spoilt = orders.with_columns(side=pl.when(late).then(-pl.col("side")).otherwise("side"))
    options = IntradayOptions(min_threshold_days=2)
    assert not found(wrong, spoilt)[2:].equals(found(trades, orders)[2:])
    assert found(wrong, spoilt)[:2].equals(found(trades, orders)[:2])
    edges = [thresholds(order_sizes(one.lazy()).collect(engine="in-memory"), DAY + timedelta(days=2), options) for one in (trades, wrong)]
    assert edges[0].equals(edges[1]) and edges[0]["threshold"][0] > 0
