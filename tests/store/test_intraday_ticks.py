"""Ingestion of trades and orders, and bars made of trades: hand-made days, planted faults, the real ticks against the daily bars."""

import datetime as dt

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.ticks import bars_from_trades, daily_from_bars, daily_from_trades
from qlib_ext.store import intraday_ingest
from qlib_ext.store.intraday import TABLES, IntradayFolder, session_minute
from qlib_ext.store.intraday_ingest import ingest_intraday

DAY = dt.date(2024, 1, 2)
MORNING, NOON, BACK, CLOSE = (1000 * 60 * minute for minute in (570, 690, 780, 900))
# code, milliseconds, price, quantity, side, buy order, sell order, kind, sequence
TRADES = [("SH600000", MORNING - 300_000, 10.00, 500, "N", 1, 2, "F", 1), ("SH600000", MORNING, 10.02, 100, "B", 9, 4, "F", 2),
          ("SH600000", MORNING + 59_990, 10.01, 200, "S", 3, 10, "F", 3), ("SH600000", MORNING + 60_000, 10.03, 300, "B", 12, 5, "F", 4),
          ("SH600000", NOON + 20, 10.05, 100, "B", 14, 6, "F", 5), ("SH600000", BACK, 9.99, 700, "S", 7, 15, "F", 6),
          ("SH600000", CLOSE + 800, 10.00, 900, "N", 17, 16, "F", 7), ("SZ000001", MORNING + 5, 12.34, 1200, "B", 21, 20, "F", 8),
          ("SZ000001", MORNING + 7, 0.0, 400, "S", 0, 22, "C", 9)]
COLUMNS = ("symbol", "ms", "price", "qty", "side", "buy_no", "sell_no", "kind", "seq")


def source(rows=TRADES) -> pl.DataFrame:
    frame = pl.DataFrame(rows, schema=COLUMNS, orient="row")
    return frame.with_columns(time=pl.lit(DAY).cast(pl.Datetime("ms")) + pl.duration(milliseconds="ms")).drop("ms")


def ingest(frame: pl.DataFrame, tmp_path, table="trades", **options):
    frame.write_parquet(tmp_path / "source.parquet")
    return ingest_intraday(tmp_path / "source.parquet", tmp_path / "out", table, **options)


def read(tmp_path, table="trades") -> pl.DataFrame:
    return IntradayFolder(tmp_path / "out").scan(table).with_columns(pl.col("instrument").cast(pl.String)).collect()


def faults(found) -> dict:
    return {(row["fault"], row["instrument"]): row["count"] for row in found.findings.iter_rows(named=True)}


def test_trades(tmp_path):
    found = ingest(source().sample(fraction=1, shuffle=True, seed=0), tmp_path)
    made = read(tmp_path)
    wanted = [(code, ms, price, quantity, {"B": 1, "S": -1, "N": 0}[side], buy, sell, sequence, DAY)
              for code, ms, price, quantity, side, buy, sell, kind, sequence in TRADES if kind == "F"]
    assert made.rows() == wanted and made.columns == [*TABLES["trades"], "date"]
    assert made.schema["side"] == pl.Int8 and made.schema["millisecond"] == pl.Int32
    assert faults(found) == {("cancels", "SZ000001"): 1}


def test_cents_words_and_clocks_give_the_same(tmp_path):
    ingest(source(), tmp_path)
    wanted = read(tmp_path)
    other = source().with_columns(
        date=pl.lit(20240102), price=(pl.col("price") * 100).round().cast(pl.Int32),
        side=pl.col("side").replace({"B": "bid", "S": "ask", "N": "-"}), kind=pl.col("kind").replace({"F": "0", "C": "4"}),
        time=pl.col("time").dt.strftime("%H%M%S%3f").cast(pl.Int64))
    (tmp_path / "b").mkdir()
    with pytest.raises(ConfigError, match=r"column side holds \['-', 'ask', 'bid'\], whose meaning is not known"):
        ingest(other, tmp_path / "b", price="cent")
    words = {"side": {"bid": "buy", "ask": "sell", "-": "none"}, "kind": {"0": "trade", "4": "cancel"}}
    ingest(other, tmp_path / "b", columns={"trades": words}, price="cent")
    assert_frame_equal(read(tmp_path / "b"), wanted, check_exact=True)


def test_faults_of_trades(tmp_path):
    planted = [(MORNING + 1, 10.0, 100, "S", 9, 30), (MORNING + 2, 10.0, 100, "", 0, 31), (MORNING + 3, 10.0, 100, "B", 9, 31),
               (MORNING - 301_000, 10.0, 100, "N", 9, 32), (CLOSE + 360_000, 10.0, 100, "N", 9, 33), (MORNING + 4, 10.0, 0, "B", 9, 34),
               (MORNING + 4, 0.0, 100, "B", 9, 35)]
    rows = [*TRADES, TRADES[1], *(("SH600000", clock, price, quantity, side, buy, 4, "F", sequence)
                                  for clock, price, quantity, side, buy, sequence in planted)]
    found = ingest(source(rows), tmp_path)
    assert faults(found) == {("cancels", "SZ000001"): 1, ("repeated_rows", "SH600000"): 1, ("side_against_orders", "SH600000"): 1,
                             ("no_side", "SH600000"): 1, ("no_order_number", "SH600000"): 1, ("same_sequence", "SH600000"): 1,
                             ("out_of_session", "SH600000"): 2, ("impossible", "SH600000"): 2}
    made = read(tmp_path)
    assert len(made) == 8 + 3 and made.filter(pl.col("sequence") == 31)["buy_order"].to_list() == [None, 9]


def test_trades_without_sides_numbers_kinds_and_sequence(tmp_path):
    rows = [*TRADES, TRADES[1]]  # two trades of a millisecond may be alike
    found = ingest(source(rows).drop("side", "buy_no", "sell_no", "kind", "seq"), tmp_path)
    made = read(tmp_path)
    assert len(made) == 9 and (made["side"] == 0).all() and made["buy_order"].is_null().all()
    assert made.filter(pl.col("instrument") == "SH600000")["sequence"].to_list() == list(range(8))
    assert faults(found) == {("cancels", "SZ000001"): 1, ("no_order_number", "SH600000"): 8, ("no_order_number", "SZ000001"): 1,
                             ("no_side", "SH600000"): 6, ("no_side", "SZ000001"): 1}  # the auctions' trades have no side


@pytest.mark.parametrize("numbered", [True, False])
def test_a_long_day_is_written_by_instruments(tmp_path, monkeypatch, numbered):
    draw = np.random.default_rng(1)
    codes = [f"{place}{number:06d}" for place, number in (("SZ", 1), ("SZ", 300750), ("SH", 600000), ("SH", 688001), ("SH", 600519))]
    clock = draw.integers(MORNING, NOON, 4000).tolist()
    rows = [(str(draw.choice(codes)), clock[k], 10 + k % 7 / 100, 100, "B", 9, 4, "F", k) for k in range(4000)]
    other = pl.format("{}.{}", pl.col("symbol").str.tail(6), pl.col("symbol").str.head(2))  # an instrument in two spellings
    frame = source(rows).with_columns(qty=pl.when(pl.col("seq") % 7 == 0).then(0).otherwise("qty"),
                                      symbol=pl.when(pl.col("seq") % 2 == 0).then(other).otherwise("symbol"))
    frame = frame.sample(fraction=1, shuffle=True, seed=2)
    frame = frame if numbered else frame.drop("seq", "buy_no", "sell_no")
    (tmp_path / "b").mkdir()
    whole = ingest(frame, tmp_path)
    monkeypatch.setattr(intraday_ingest, "LONG_DAY", 700)
    monkeypatch.setattr(intraday_ingest, "PIECE_ROWS", 300)
    calls, real = [], intraday_ingest.clean_ticks
    monkeypatch.setattr(intraday_ingest, "clean_ticks", lambda part, *rest: calls.append(part["instrument"].unique()) or real(part, *rest))
    parts = ingest(frame, tmp_path / "b")
    assert len(calls) > 3 and pl.concat(calls).is_unique().all()  # an instrument is never in two parts
    assert_frame_equal(read(tmp_path / "b"), read(tmp_path), check_exact=True)
    assert faults(parts) == faults(whole) and parts.rows == whole.rows == 4000 - 572
    assert sorted(one.name for one in (tmp_path / "b" / "out").iterdir()) == [
        ".ingest-trades.lock", ".lock", "intraday.json", "reports", "trades"]


def test_units_of_ticks_are_asked(tmp_path):
    frame = source().with_columns((pl.col("qty") // 100).alias("qty"))
    with pytest.raises(ConfigError, match="multiples of 100, which does not tell their unit"):
        ingest(frame, tmp_path)
    ingest(frame, tmp_path, volume="lots")
    assert read(tmp_path)["quantity"].to_list() == [row[3] for row in TRADES if row[7] == "F"]
    with pytest.raises(ConfigError, match="volume=lots cannot be"):
        ingest(source(), tmp_path, volume="lots", overwrite=True)
    with pytest.raises(ConfigError, match=r"\['stamp'\] are of bars only"):
        ingest(source(), tmp_path, stamp="end")


@pytest.mark.parametrize("table", ["trades", "orders"])
@pytest.mark.parametrize("unit, change, message", [
    ("yuan", lambda f: f.with_columns((pl.col("price") * 100).round()), "all prices are whole numbers"),
    ("yuan", lambda f: f.with_columns((pl.col("price") * 100).round()).filter(pl.col("seq") % 20 == 0), "are [0-9.]* times those"),
    ("yuan", lambda f: f.with_columns(pl.col("qty") // 100), "volume=shares cannot be: 0 % of the quantities"),
    ("cent", lambda f: f.with_columns(pl.col("price") / 100), "prices such as 9.01 have fractions"),
    ("cent", lambda f: f.with_columns(pl.col("price") * 100), "prices are 100 times those"),
    ("mil", lambda f: f.with_columns((pl.col("price") / 100).round()), "half of the prices would be below 0.10005 yuan"),
])
def test_units_of_ticks_that_change_on_a_later_day(tmp_path, table, unit, change, message):
    one = pl.DataFrame({"symbol": "SH600000", "seq": range(200)}).with_columns(
        price=(901 + pl.col("seq")) / 100, qty=100 + pl.col("seq") % 30 * 100, side=pl.lit("B"), order_no=pl.col("seq") + 1)
    if unit != "yuan":
        one = one.with_columns((pl.col("price") * {"cent": 100, "mil": 10_000}[unit]).round())
    days = [one, one, change(one)]
    moment = pl.lit(DAY).cast(pl.Datetime("ms")) + pl.duration(seconds="seq", hours=10)
    days = [part.with_columns(time=moment + pl.duration(days=day)) for day, part in enumerate(days)]
    options = {} if unit == "yuan" else {"price": unit}
    with pytest.raises(DataError, match=f"2024-01-04 is in other units than the table.*price {unit}, volume shares.*{message}.*--out"):
        ingest(pl.concat(days, how="vertical_relaxed"), tmp_path, table, **options)
    assert IntradayFolder(tmp_path / "out").days(table).astype(str).tolist() == ["2024-01-02", "2024-01-03"]
    with pytest.raises((ConfigError, DataError)):  # a run of the day alone is held against the folder
        ingest(days[2], tmp_path, table, **options)
    changed = days[1].with_columns(pl.col("time").dt.offset_by("1d"))
    assert ingest(changed, tmp_path, table, **options).days == 1


def test_orders(tmp_path):
    rows = [("SH600000", MORNING - 900_000, 10.0, 100, "B", 1, "A", 1), ("SH600000", MORNING, 0.0, 200, "S", 2, "A", 2),
            ("SH600000", MORNING + 5, 10.0, 100, "B", 1, "D", 3), ("SH600000", MORNING - 1_000_000, 10.0, 100, "B", 5, "A", 4)]
    frame = pl.DataFrame(rows, schema=("symbol", "ms", "price", "qty", "side", "order_no", "kind", "seq"), orient="row")
    frame = frame.with_columns(time=pl.lit(DAY).cast(pl.Datetime("ms")) + pl.duration(milliseconds="ms")).drop("ms")
    found = ingest(frame, tmp_path, "orders", price="yuan")
    assert read(tmp_path, "orders").rows() == [
        ("SH600000", MORNING - 900_000, 10.0, 100, 1, 1, 1, 1, DAY), ("SH600000", MORNING, None, 200, -1, 2, 1, 2, DAY),
        ("SH600000", MORNING + 5, 10.0, 100, 1, 1, -1, 3, DAY)]
    assert faults(found) == {("out_of_session", "SH600000"): 1}


# ---- bars of trades -----------------------------------------------------------------------------------------------------------
def plain_bars(trades: list[dict]) -> dict:
    """(instrument, minute) -> open, high, low, close, volume, amount, n_trades, by a loop."""
    made: dict = {}
    for one in sorted(trades, key=lambda row: (row["instrument"], row["millisecond"], row["sequence"])):
        key, price, quantity = (one["instrument"], session_minute(one["millisecond"])), one["price"], one["quantity"]
        old = made.get(key, [price, price, price, price, 0, 0.0, 0])
        made[key] = [old[0], max(old[1], price), min(old[2], price), price, old[4] + quantity, old[5] + price * quantity, old[6] + 1]
    return made


def random_trades(count=3000) -> pl.DataFrame:
    draw = np.random.default_rng(4)
    clock = np.where(draw.random(count) < 0.5, draw.integers(MORNING - 300_000, NOON + 999, count), draw.integers(BACK, CLOSE + 900, count))
    return pl.DataFrame({"date": [DAY] * count, "instrument": draw.choice(["SH600000", "SZ000001"], count), "millisecond": clock,
                         "price": draw.integers(900, 1100, count) / 100, "quantity": draw.integers(1, 50, count) * 100,
                         "sequence": np.arange(count)})  # fmt: skip


def test_bars_from_trades_equal_a_plain_loop():
    trades = random_trades()
    made = bars_from_trades(trades.lazy(), fill=False).collect()
    wanted = plain_bars(trades.rows(named=True))
    assert len(made) == len(wanted)
    for row in made.rows(named=True):
        np.testing.assert_allclose([row[name] for name in made.columns[3:]], wanted[row["instrument"], row["minute"]], rtol=1e-12)


def test_quiet_minutes_of_trades_are_flat():
    trades = random_trades(60).filter(pl.col("millisecond") >= MORNING + 600_000)  # both stocks begin quiet
    made, sparse = bars_from_trades(trades.lazy()).collect(), bars_from_trades(trades.lazy(), fill=False).collect()
    assert len(made) == 480 and made["minute"].unique().to_list() == list(range(1, 241))
    assert_frame_equal(made.filter(pl.col("n_trades") > 0), sparse, check_exact=True)
    for (_,), part in made.partition_by("instrument", as_dict=True).items():
        last = None
        for row in part.rows(named=True):
            if not row["n_trades"]:
                assert [row[name] for name in made.columns[3:]] == [last] * 4 + [0, 0.0, 0]
            last = row["close"]


def test_daily_bars_of_trades_and_of_their_bars_agree():
    trades = random_trades()
    one = daily_from_trades(trades.lazy()).collect()
    assert_frame_equal(daily_from_bars(bars_from_trades(trades.lazy())).collect(), one.drop("n_trades"))
    assert one["n_trades"].sum() == len(trades)


# ---- the real ticks -----------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def real_folder(real_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ticks")
    found = ingest_intraday(real_data / "minute" / "l2_trades.parquet", folder, "trades")
    assert faults(found) == {("cancels", "SZ000001"): 32_996}  # no side against its order numbers, no number missing
    assert not len(ingest_intraday(real_data / "minute" / "l2_orders.parquet", folder, "orders").findings)
    return IntradayFolder(folder)


@pytest.mark.realdata
def test_real_trades_rebuild_the_daily_bars(real_data, real_folder):
    trades = real_folder.scan("trades").with_columns(pl.col("instrument").cast(pl.String))
    bars = pl.scan_parquet(real_data / "ashare_daily" / "bars.parquet")
    bars = bars.with_columns(pl.col("date").cast(pl.Date), pl.col("instrument").cast(pl.String))
    made = daily_from_trades(trades).join(bars, on=["date", "instrument"], suffix="_daily").collect()
    assert len(made) == 4
    whole = made.filter(pl.col("date") == dt.date(2023, 2, 1))
    assert len(whole) == 3
    for name in ("open", "high", "low", "close", "volume", "amount"):  # the daily table is single precision, its amount of 16 bits
        np.testing.assert_allclose(whole[name], whole[f"{name}_daily"], rtol=2**-16 if name == "amount" else 1e-7)
    # 2020-01-02, SH600000: the file has neither auction, which 2.2 % of the volume, the open and the close came from
    part = made.filter(pl.col("date") == dt.date(2020, 1, 2)).row(0, named=True)
    assert (part["high"], part["low"]) == (12.64, 12.45) and round(part["volume"] / part["volume_daily"], 3) == 0.978
    continuous = pl.col("millisecond").is_between(MORNING, 897 * 60_000).all()
    assert trades.filter(pl.col("date") == dt.date(2020, 1, 2)).select(continuous).collect().item()


@pytest.mark.realdata
def test_real_trades_make_the_known_minute_bars(real_data, real_folder):
    trades = real_folder.scan("trades").with_columns(pl.col("instrument").cast(pl.String))
    inside = trades.with_columns(pl.col("millisecond").clip(lower_bound=MORNING))  # the opening auction lies in bar 1 there
    made = bars_from_trades(inside, fill=False)
    clock = pl.col("datetime").dt.hour().cast(pl.Int32) * 60 + pl.col("datetime").dt.minute()
    known = pl.scan_parquet(real_data / "minute" / "bars_1min_samples.parquet").filter(pl.col("src") == "l2_trades").select(
        pl.col("datetime").dt.date().alias("date"), instrument="symbol", minute=session_minute((clock - 1) * 60_000),
        **{name: pl.col(name).cast(pl.Float64) for name in ("open", "high", "low", "close", "volume", "amount", "n_trades")})
    both = made.join(known, on=["date", "instrument", "minute"], how="inner", suffix="_known").collect()
    assert len(both) == len(made.collect()) == 475 + 238 + 238
    for name in ("open", "high", "low", "close", "volume", "amount", "n_trades"):
        np.testing.assert_allclose(both[name], both[f"{name}_known"], rtol=2e-7 if name != "amount" else 1e-5, err_msg=name)


@pytest.mark.realdata
def test_real_fifteen_minute_bars(real_data, tmp_path):
    columns = {"bars": {"columns": {name: f"{name}_c" for name in ("open", "high", "low", "close")}}}
    file = real_data / "minute" / "ashare_15min.parquet"
    with pytest.raises(ConfigError, match="whole numbers, which may be cents"):
        ingest_intraday(file, tmp_path / "out", "bars", minutes=15, columns=columns)
    found = ingest_intraday(file, tmp_path / "out", "bars", minutes=15, columns=columns, price="cent", last="2025-03-31")
    about = IntradayFolder(tmp_path / "out").settings("bars_15min")
    assert (about["stamp"], about["volume"], about["opening_auction"]) == ("end", "shares", "inside")
    raw = pl.scan_parquet(file).filter(pl.col("datetime") < dt.datetime(2025, 4, 1)).select(pl.len(), pl.col("volume").sum()).collect()
    bars = IntradayFolder(tmp_path / "out").scan("bars_15min")
    assert bars.select(pl.len(), pl.col("volume").sum()).collect().row(0) == raw.row(0) and found.rows == raw["len"][0]
    assert bars.group_by("date", "instrument").len().select((pl.col("len") == 16).all()).collect().item()
    assert set(found.findings["fault"]) <= {"amount_outside_prices"}
