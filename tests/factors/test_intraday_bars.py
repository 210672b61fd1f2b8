"""The compiled loops of the factors of bars: the k-th largest, and what an unknown number costs."""

from datetime import date

import numpy as np
import polars as pl
import pytest

from qlib_ext.errors import DataError, ShapeError
from qlib_ext.factors.intraday import BAR_FACTORS, IntradayOptions, bar_values
from qlib_ext.factors.intraday_bars import _kth_largest, stock_days

def day() -> pl.DataFrame:
    random = np.random.default_rng(3)
    close = np.round(10 * np.exp(np.cumsum(random.normal(0, 1e-3, 240))), 2)
    volume = 100 * random.integers(1, 50, 240)
    return pl.DataFrame({"date": [date(2024, 5, 6)] * 240, "instrument": ["SH600000"] * 240,
                         "minute": pl.Series(range(1, 241), dtype=pl.Int16), "open": np.r_[10.0, close[:-1]], "close": close, "volume": volume, "amount": close * volume,
                         "n_trades": random.integers(1, 20, 240)})


def values(frame: pl.DataFrame) -> dict:
    return bar_values(frame.lazy(), IntradayOptions(proxy=True), BAR_FACTORS).collect().row(0, named=True)


def test_the_kth_largest_is_that_of_a_sort():
    random = np.random.default_rng(0)
    for count in (1, 2, 3, 4, 5, 17, 239, 240):
        for levels in (1, 2, 7, 1000):
            held = random.integers(0, levels, count).astype(float)
            for k in {0, count // 3, count - 1}:
                work = held.copy()
                assert _kth_largest(work, count, k) == np.sort(held)[::-1][k]
                assert (np.sort(work) == np.sort(held)).all()


@pytest.mark.parametrize("column, lost", [
    ("volume", {"hf_tail_share", "hf_outflow_share", "hf_push_up", "hf_push_up_proxy"}),
    ("amount", {"hf_outflow_share", "hf_push_up", "hf_outflow_share_proxy", "hf_push_up_proxy"}),
    ("n_trades", {"hf_outflow_share", "hf_push_up"}), ("open", set()), ("close", set())])
def test_an_unknown_number_costs_what_needs_it(column, lost):
    whole, frame = values(day()), day()
    found = values(frame.with_columns(pl.when(pl.col("minute") == 100).then(None).otherwise(column).alias(column)))
    assert {name for name in BAR_FACTORS if found[name] is None} == lost
    assert all(value is not None for value in whole.values()) and whole["bars_traded"] == 240
    assert found["bars_traded"] == (239 if column == "volume" else 240)


def test_equal_sizes_count_in_the_order_of_time():
    frame = day().with_columns(amount=pl.col("n_trades") * 1000.0)                           # every bar has 1000 a trade
    gains = (frame["close"] / frame["open"]).to_numpy()
    assert values(frame)["hf_push_up"] == pytest.approx(gains[:72].prod() - 1, rel=1e-9)
    one = frame.with_columns(amount=pl.when(pl.col("minute") == 200).then(pl.col("amount") * 2).otherwise("amount"))
    assert values(one)["hf_push_up"] == pytest.approx(gains[:71].prod() * gains[199] - 1, rel=1e-9)


def test_the_rows_of_stocks_days():
    frame = pl.concat([day(), day().with_columns(instrument=pl.lit("SH600001")), day().with_columns(date=pl.lit(date(2024, 5, 7)))])
    assert stock_days(frame, 1).tolist() == [0, 240, 480, 720]
    assert stock_days(frame.with_columns(pl.col("instrument").cast(pl.Categorical)), 1).tolist() == [0, 240, 480, 720]
    assert stock_days(frame.clear(), 1).tolist() == [0]
    with pytest.raises(ShapeError, match="minute"):
        stock_days(frame.with_columns(minute=pl.lit(None, pl.Int16)), 1)
    with pytest.raises(DataError, match="SH600001 on 2024-05-06: minute 1 is no end of a bar of 5"):
        stock_days(frame.slice(240), 5)


def test_an_empty_day_has_no_values():
    found = bar_values(day().clear().lazy()).collect()
    assert found.height == 0 and found.schema["hf_skew"] == pl.Float64 and found.schema["bars_traded"] == pl.Int16
