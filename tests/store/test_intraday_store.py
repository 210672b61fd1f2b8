"""The intraday folder: the clock of a session, reading and writing days, coarser bars."""

import json
import threading

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store.intraday import (IntradayFolder, bar_end, bar_minutes, clock_time, describe, read_about, resample, session_minute,
                                     write_day)


def bars(code="SH600000", count=240, seed=0, quiet=0.0) -> pl.DataFrame:
    draw = np.random.default_rng(seed)
    close = np.round(10 + np.cumsum(draw.normal(0, 0.01, count)), 2)
    volume = np.where(draw.random(count) < quiet, 0, draw.integers(1, 50, count) * 100)
    still = volume == 0
    for k in np.flatnonzero(still):
        close[k] = close[k - 1] if k else np.nan
    high, low = (np.where(still, close, np.round(close + one * draw.integers(0, 3, count) / 100, 2)) for one in (1, -1))
    return pl.DataFrame({"instrument": [code] * count, "minute": np.arange(1, count + 1, dtype=np.int16), "open": close, "high": high,
                         "low": low, "close": close, "volume": volume, "amount": np.where(still, 0.0, close * volume)}).fill_nan(None)


def at(text: str) -> int:
    hours, minutes, seconds = text.split(":")
    return round(1000 * (3600 * int(hours) + 60 * int(minutes) + float(seconds)))


@pytest.mark.parametrize("clock, minute", [
    ("09:15:00", 0), ("09:25:00", 0), ("09:29:59.999", 0), ("09:30:00", 1), ("09:30:59.999", 1), ("09:31:00", 2), ("11:29:59.999", 120),
    ("11:30:00", 120), ("11:30:00.500", 120), ("12:59:59", 120), ("13:00:00", 121), ("14:56:59", 237), ("14:57:00", 238), ("14:59:59", 240),
    ("15:00:00", 240), ("15:00:01.060", 240), ("15:30:00", 240)])
def test_session_minute(clock, minute):
    assert session_minute(at(clock)) == minute
    assert pl.select(session_minute(pl.lit(at(clock), pl.Int32))).item() == minute


def test_clock_time_is_the_end_of_the_bar():
    assert [clock_time(minute) for minute in (0, 1, 120, 121, 240)] == ["09:25", "09:31", "11:30", "13:01", "15:00"]
    ends = pl.DataFrame({"m": [0, 1, 15, 16, 240]}).select(bar_end(pl.col("m"), 15)).to_series()
    assert ends.to_list() == [0, 15, 15, 30, 240]


def test_write_and_read(tmp_path):
    both = pl.concat([bars("SZ000001", seed=1), bars("SH600000", seed=2)])
    file = write_day(tmp_path, "bars_1min", "2024-01-02", both.sample(fraction=1, shuffle=True, seed=0))
    write_day(tmp_path, "bars_1min", "2024-01-03", bars("SH600000").with_columns(n_trades=pl.lit(3)))
    folder = IntradayFolder(tmp_path)
    assert folder.tables() == ["bars_1min"] and folder.days("bars_1min").astype(str).tolist() == ["2024-01-02", "2024-01-03"]
    assert "date" not in pl.read_parquet_schema(file) and [one.name for one in file.parent.iterdir()] == ["part.parquet"]
    made = folder.read("bars_1min", "2024-01-02").with_columns(pl.col("instrument").cast(pl.String))
    assert_frame_equal(made.drop("date"), both.sort("instrument", "minute"), check_exact=True)
    whole = folder.scan("bars_1min").collect()
    assert len(whole) == 720 and whole["n_trades"].null_count() == 480 and whole.schema["date"] == pl.Date


@pytest.mark.parametrize("change, message", [
    (lambda f: f.drop("high"), r"columns \['high'\] are missing"), (lambda f: f.with_columns(vwap=pl.lit(1.0)), r"\['vwap'\] are unknown"),
    (lambda f: f.with_columns(minute=pl.lit(70_000)), "conversion"), (lambda f: f.with_columns(open=pl.lit("x")), "conversion")])
def test_write_refuses(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write_day(tmp_path, "bars_1min", "2024-01-02", change(bars()))
    assert not list(tmp_path.rglob("*parquet*"))


def test_read_refuses(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        IntradayFolder(tmp_path / "none")
    with pytest.raises(DataError, match="holds no intraday table"):
        IntradayFolder(tmp_path)
    file = write_day(tmp_path, "bars_1min", "2024-01-02", bars())
    folder = IntradayFolder(tmp_path)
    with pytest.raises(ConfigError, match="'bars_2min' is unknown"):
        folder.days("bars_2min")
    with pytest.raises(DataError, match="table trades has no day"):
        folder.scan("trades")
    with pytest.raises(DataError, match="has no day from 2025-01-01"):
        folder.scan("bars_1min", "2025-01-01")
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="date=2024-01-02/part.parquet cannot be read .* ingest the day again"):
        folder.scan("bars_1min")
    bars().drop("high").write_parquet(file)
    with pytest.raises(DataError, match=r"lacks the columns \['high'\]"):
        folder.scan("bars_1min")


def test_descriptions(tmp_path):
    def put(table):
        describe(tmp_path, table, {"price": table})

    threads = [threading.Thread(target=put, args=(table,)) for table in ("trades", "orders", "bars_1min", "bars_15min") for _ in range(5)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert {table: about["price"] for table, about in read_about(tmp_path)["tables"].items()} == {
        table: table for table in ("trades", "orders", "bars_1min", "bars_15min")}
    (tmp_path / "intraday.json").write_text(json.dumps({"format": 99, "tables": {}}))
    with pytest.raises(DataError, match="format 99"):
        read_about(tmp_path)
    (tmp_path / "intraday.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        read_about(tmp_path)


# ---- coarser bars -------------------------------------------------------------------------------------------------------------
def plain(frame: pl.DataFrame, minutes: int) -> list:
    """Coarse bars by a loop: prices of the minutes somebody traded in, else the last close."""
    made = {}
    for row in frame.rows(named=True):
        made.setdefault(max(-(-row["minute"] // minutes) * minutes, minutes), []).append(row)
    rows = []
    for end, parts in made.items():
        traded = [one for one in parts if one["volume"] > 0]
        last = next((one["close"] for one in reversed(parts) if one["close"] is not None), None)
        prices = [traded[0]["open"], max(one["high"] for one in traded), min(one["low"] for one in traded)] if traded else [last] * 3
        rows.append((end, *prices, last, sum(one["volume"] for one in parts), sum(one["amount"] for one in parts)))
    return rows


@pytest.mark.parametrize("minutes", [5, 15, 30, 60])
@pytest.mark.parametrize("quiet", [0.0, 0.8])
def test_resample_equals_a_plain_loop(minutes, quiet):
    frame = pl.concat([bars(count=1).with_columns(minute=pl.lit(0, pl.Int16)), bars(quiet=quiet, seed=7)])
    dated = frame.with_columns(date=pl.date(2024, 1, 2)).lazy()
    made = resample(dated, minutes).drop("date", "instrument").collect()
    for row, wanted in zip(made.rows(), plain(frame, minutes), strict=True):
        assert row[:6] == wanted[:6] and row[6] == pytest.approx(wanted[6])
    fine = dated.filter(pl.col("minute") > 0)
    assert_frame_equal(resample(dated, minutes, auction="drop").collect(), resample(fine, minutes).collect())
    kept = resample(dated, minutes, auction="keep").collect()
    assert kept["minute"][0] == 0 and len(kept) == 240 // minutes + 1
    if minutes == 60:
        assert_frame_equal(resample(resample(dated, 15), 60).collect(), resample(dated, 60).collect())


def test_resample_keeps_unknown_amounts_unknown():
    frame = bars().with_columns(date=pl.date(2024, 1, 2), amount=pl.lit(None, pl.Float64), n_trades=pl.lit(2, pl.Int32)).lazy()
    made = resample(frame, 60).collect()
    assert made["amount"].is_null().all() and made["n_trades"].to_list() == [120] * 4
    with pytest.raises(ConfigError, match="minutes=7"):
        resample(frame, 7)
    assert bar_minutes("bars_15min") == 15
    with pytest.raises(ConfigError, match="is no table of bars"):
        bar_minutes("trades")
