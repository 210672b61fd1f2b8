"""Ingestion of minute bars and ticks: every shape of the same day gives the same rows, and each planted fault is found."""

import datetime as dt
import fcntl

import polars as pl
import pytest
import tiny_intraday
from polars.testing import assert_frame_equal

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store import intraday_ingest
from qlib_ext.store.__main__ import main
from qlib_ext.store.intraday import IntradayFolder, read_about
from qlib_ext.store.intraday_ingest import ingest_intraday, report_file

DAYS = [dt.date(2024, 1, 2), dt.date(2024, 1, 3)]
CODES = ["SH600000", "SZ000001", "SZ300750"]
BAR = ("open", "high", "low", "close", "volume", "amount")


def end_clock(minute: int) -> int:
    """Minutes since midnight at a bar's end."""
    return 570 + minute if minute <= 120 else 780 + minute - 120


def market(days=DAYS, codes=CODES) -> list[dict]:
    """Bars with the opening auction apart, prices in cents and volumes in lots: every unit holds them exactly."""
    rows, state = [], 12345
    for day in days:
        for code in codes:
            cents = 1000 + 100 * codes.index(code)
            for minute in range(241):
                state = (1103515245 * state + 12345) % 2**31
                step, lots = state // 7 % 7 - 3, 1 + state // 11 % 50
                close = cents + step
                low, high = min(cents, close) - 1, max(cents, close) + 1
                if minute == 0:
                    low = high = cents = close
                rows.append({"date": day, "code": code, "minute": minute, "open": cents, "high": high, "low": low, "close": close,
                             "volume": lots, "amount": lots * (low + high) // 2})  # cents x lots = yuan
                cents = close
    return rows


def expected(rows: list[dict], auction: str = "apart") -> pl.DataFrame:
    """What the folder must hold, by a plain loop."""
    made: dict = {}
    for row in sorted(rows, key=lambda row: (row["date"], row["code"], row["minute"])):
        key = (row["date"], row["code"], max(row["minute"], 1 if auction == "inside" else 0))
        one = [row[name] / 100 for name in BAR[:4]] + [row["volume"] * 100, float(row["amount"])]
        if key in made:
            old = made[key]
            one = [old[0], max(old[1], one[1]), min(old[2], one[2]), one[3], old[4] + one[4], old[5] + one[5]]
        made[key] = one
    columns = {"instrument": [key[1] for key in made], "minute": [key[2] for key in made]}
    columns |= {name: [one[place] for one in made.values()] for place, name in enumerate(BAR)}
    return pl.DataFrame(columns, schema_overrides={"minute": pl.Int16}).with_columns(date=pl.Series([key[0] for key in made]))


def vendor(rows: list[dict], stamp="end", price="yuan", volume="shares", amount="yuan", auction="apart") -> pl.DataFrame:
    """Rows as a vendor writes them; the auction at 09:25, or inside the first bar."""
    frame = expected(rows, auction)
    clock = [end_clock(minute) - (stamp == "start") if minute else 565 for minute in frame["minute"]]
    moments = [dt.datetime.combine(day, dt.time(minute // 60, minute % 60)) for day, minute in zip(frame["date"], clock, strict=True)]
    unit = {"yuan": 1, "cent": 100, "mil": 10_000}[price]
    whole = {} if unit == 1 else {name: (pl.col(name) * unit).round().cast(pl.Int32) for name in BAR[:4]}
    return frame.with_columns(volume=pl.col("volume") // (100 if volume == "lots" else 1), datetime=pl.Series(moments), **whole,
                              amount=pl.col("amount") / {"yuan": 1, "thousand": 1000, "wan": 10_000}[amount]).drop("minute", "date")


def read(folder) -> pl.DataFrame:
    return IntradayFolder(folder).scan("bars_1min").with_columns(pl.col("instrument").cast(pl.String)).collect()


def faults(found) -> dict:
    return {(row["fault"], row["instrument"]): row["count"] for row in found.findings.iter_rows(named=True)}


@pytest.fixture(scope="module")
def rows():
    return market()


def save(frame: pl.DataFrame, path):
    frame.write_csv(path) if path.suffix == ".csv" else frame.write_parquet(path)
    return path


# ---- shapes -------------------------------------------------------------------------------------------------------------------
def split_close(frame: pl.DataFrame) -> pl.DataFrame:
    """The last bar of start stamps as two: 14:59, and the closing auction at 15:00."""
    last = frame["datetime"].dt.time() == dt.time(14, 59)
    first = frame.filter(last).with_columns(volume=pl.lit(50, pl.Int64), amount=pl.lit(7.0), close="open")
    second = frame.filter(last).with_columns(pl.col("datetime").dt.offset_by("1m"), volume=pl.col("volume") - 50,
                                             amount=pl.col("amount") - 7.0, open="close", high="close", low="close")
    return pl.concat([frame.filter(~last), first, second])


def quiet_before_the_close(frame: pl.DataFrame) -> pl.DataFrame:
    """The last bar of start stamps at 15:00, beside a quiet one of 14:59 at a stale price."""
    last = frame["datetime"].dt.time() == dt.time(14, 59)
    quiet = frame.filter(last).with_columns(*(pl.lit(1.0).alias(name) for name in BAR[:4]), volume=pl.lit(0, pl.Int64), amount=pl.lit(0.0))
    return pl.concat([frame.filter(~last), quiet, frame.filter(last).with_columns(pl.col("datetime").dt.offset_by("1m"))])


def clocks(frame: pl.DataFrame, date: str, time: str, numbers=True) -> pl.DataFrame:
    made = frame.with_columns(date=pl.col("datetime").dt.strftime(date), time=pl.col("datetime").dt.strftime(time)).drop("datetime")
    return made.with_columns(pl.col("date", "time").cast(pl.Int64)) if numbers else made


SHAPES = {
    "end": (dict(), None, {}),
    "start": (dict(stamp="start"), None, {}),
    "start, 242 bars": (dict(stamp="start"), split_close, {}),
    "start, quiet 14:59": (dict(stamp="start"), quiet_before_the_close, {}),
    "end, auction at 09:30": (dict(), lambda f: f.with_columns(pl.when(pl.col("datetime").dt.time() == dt.time(9, 25)).then(
        pl.col("datetime").dt.offset_by("5m")).otherwise("datetime").alias("datetime")), {}),
    "cents": (dict(price="cent"), None, dict(price="cent")),
    "0.0001 yuan": (dict(price="mil"), None, dict(price="mil")),
    "lots": (dict(volume="lots"), None, {}),
    "lots, cents, thousand": (dict(volume="lots", price="cent", amount="thousand"), None, dict(price="cent")),
    "wan": (dict(amount="wan"), None, {}),
    "single precision": (dict(), lambda f: f.with_columns(pl.col(BAR[:4]).cast(pl.Float32)), {}),
    "UTC": (dict(), lambda f: f.with_columns(pl.col("datetime").dt.replace_time_zone("Asia/Shanghai").dt.convert_time_zone("UTC")), {}),
    "date and HHMM": (dict(), lambda f: clocks(f, "%Y%m%d", "%H%M"), {}),
    "date and HHMMSSmmm": (dict(), lambda f: clocks(f, "%Y%m%d", "%H%M%S000"), {}),
    "date and H:MM": (dict(), lambda f: clocks(f, "%Y/%-m/%-d", "%-H:%M", False), {}),
    "date and time": (dict(), lambda f: f.with_columns(date=pl.col("datetime").dt.date(), time=pl.col("datetime").dt.time()).drop(
        "datetime"), {}),
    "14 digits": (dict(), lambda f: f.with_columns(pl.col("datetime").dt.strftime("%Y%m%d%H%M%S").cast(pl.Int64)), {}),
    "text": (dict(), lambda f: f.with_columns(pl.col("datetime").dt.strftime("%Y-%m-%d %H:%M:%S.000")), {}),
    "shuffled": (dict(), lambda f: f.sample(fraction=1, shuffle=True, seed=1), {}),
    "zero bar at 13:00": (dict(), lambda f: pl.concat([f, f.filter(pl.col("datetime").dt.time() == dt.time(11, 30)).with_columns(
        pl.col("datetime").dt.offset_by("90m"), volume=pl.lit(0, pl.Int64), amount=pl.lit(0.0))]), {}),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_give_equal_frames(rows, tmp_path, shape):
    how, change, options = SHAPES[shape]
    frame = vendor(rows, **how).rename({"instrument": "symbol"})
    file = save(frame if change is None else change(frame), tmp_path / "source.parquet")
    found = ingest_intraday(file, tmp_path / "out", "bars", **options)
    assert_frame_equal(read(tmp_path / "out"), expected(rows), check_exact=True)
    assert not len(found.findings) and (found.days, found.kept, found.rows) == (2, 0, len(rows))
    about = IntradayFolder(tmp_path / "out").settings("bars_1min")
    assert about["stamp"] == how.get("stamp", "end") and about["price"] == how.get("price", "yuan") and not about["generated"]
    assert (about["volume"], about["amount"], about["opening_auction"]) == (how.get("volume", "shares"), how.get("amount", "yuan"), "apart")


@pytest.mark.parametrize("stamp", ["end", "start"])
def test_auction_inside(rows, tmp_path, stamp):
    file = save(vendor(rows, stamp=stamp, auction="inside"), tmp_path / "source.parquet")
    ingest_intraday(file, tmp_path / "out", "bars", stamp=stamp, opening_auction="inside")
    assert_frame_equal(read(tmp_path / "out"), expected(rows, "inside"), check_exact=True)
    with pytest.raises(ConfigError, match="opening_auction=apart cannot be"):
        ingest_intraday(file, tmp_path / "other", "bars", opening_auction="apart")


@pytest.mark.parametrize("spelling", ["{n}.{E}", "{e}{n}", "{e}.{n}", "{n}.{X}"])
def test_codes(rows, tmp_path, spelling):
    names = {code: spelling.format(n=code[2:], E=code[:2], e=code[:2].lower(), X={"SH": "XSHG", "SZ": "XSHE"}[code[:2]]) for code in CODES}
    file = save(vendor(rows).with_columns(pl.col("instrument").replace(names).alias("ts_code")).drop("instrument"), tmp_path / "source.csv")
    ingest_intraday(file, tmp_path / "out", "bars")
    assert_frame_equal(read(tmp_path / "out"), expected(rows), check_exact=True)


def test_bare_numbers_need_an_exchange(rows, tmp_path):
    frame = vendor(rows).with_columns(code=pl.col("instrument").str.slice(2).cast(pl.Int32), place=pl.col("instrument").str.head(2))
    file = save(frame.drop("instrument"), tmp_path / "source.parquet")
    with pytest.raises(ConfigError, match="do not say their exchange"):
        ingest_intraday(file, tmp_path / "out", "bars")
    ingest_intraday(file, tmp_path / "out", "bars", columns={"bars": {"columns": {"exchange": "place"}}})
    assert_frame_equal(read(tmp_path / "out"), expected(rows), check_exact=True)


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_one_file_a_stock_and_one_a_day(rows, tmp_path, ending):
    frame = vendor(rows)
    (tmp_path / "stocks").mkdir()
    for (code,), part in frame.partition_by("instrument", as_dict=True).items():
        save(part.drop("instrument"), tmp_path / "stocks" / f"{code[2:]}.{code[:2]}{ending}")
    ingest_intraday(tmp_path / "stocks", tmp_path / "a", "bars")
    timed = frame.with_columns(date=pl.col("datetime").dt.date(), time=pl.col("datetime").dt.time()).drop("datetime")
    for (day,), part in timed.partition_by("date", as_dict=True).items():
        (tmp_path / "days" / f"{day:%Y%m%d}").mkdir(parents=True)
        save(part.drop("date"), tmp_path / "days" / f"{day:%Y%m%d}" / f"all{ending}")
    ingest_intraday(tmp_path / "days", tmp_path / "b", "bars")
    for folder in ("a", "b"):
        assert_frame_equal(read(tmp_path / folder), expected(rows), check_exact=True)


def test_long_sources_go_through_pieces(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(intraday_ingest, "PIECE_ROWS", 100)
    (tmp_path / "stocks").mkdir()
    for (code,), part in vendor(rows).partition_by("instrument", as_dict=True).items():
        save(part, tmp_path / "stocks" / f"{code}.csv")
    ingest_intraday(tmp_path / "stocks", tmp_path / "out", "bars")
    assert_frame_equal(read(tmp_path / "out"), expected(rows), check_exact=True)
    assert not (tmp_path / "out" / ".pieces-bars_1min").exists()


@pytest.mark.parametrize("minutes", [15, 60])
@pytest.mark.parametrize("stamp", ["end", "start"])
def test_coarse_bars(rows, tmp_path, minutes, stamp):
    coarse = []
    for row in rows:  # the auction inside the first bar
        end = max(-(-row["minute"] // minutes) * minutes, minutes)
        if coarse and (coarse[-1]["date"], coarse[-1]["code"], coarse[-1]["minute"]) == (row["date"], row["code"], end):
            old = coarse[-1]
            old |= {"high": max(old["high"], row["high"]), "low": min(old["low"], row["low"]), "close": row["close"],
                    "volume": old["volume"] + row["volume"], "amount": old["amount"] + row["amount"]}
        else:
            coarse.append(row | {"minute": end})
    frame = vendor(coarse)
    file = save(frame.with_columns(pl.col("datetime").dt.offset_by(f"-{minutes if stamp == 'start' else 0}m")), tmp_path / "a.parquet")
    found = ingest_intraday(file, tmp_path / "out", "bars", minutes=minutes)
    assert not len(found.findings)
    made = IntradayFolder(tmp_path / "out").scan(f"bars_{minutes}min").with_columns(pl.col("instrument").cast(pl.String)).collect()
    assert_frame_equal(made, expected(coarse), check_exact=True)


# ---- resuming, settings -------------------------------------------------------------------------------------------------------
def test_resumes_and_keeps_its_settings(rows, tmp_path, monkeypatch):
    file, out = save(vendor(rows), tmp_path / "source.parquet"), tmp_path / "out"
    real = intraday_ingest.write_day

    def dies(folder, table, day, frame):
        if day == DAYS[1]:
            raise KeyboardInterrupt
        return real(folder, table, day, frame)

    monkeypatch.setattr(intraday_ingest, "write_day", dies)
    with pytest.raises(KeyboardInterrupt):
        ingest_intraday(file, out, "bars")
    monkeypatch.setattr(intraday_ingest, "write_day", real)
    first = IntradayFolder(out).path_of("bars_1min", "2024-01-02")
    before = first.stat().st_mtime_ns
    found = ingest_intraday(file, out, "bars")
    assert (found.days, found.kept) == (1, 1) and first.stat().st_mtime_ns == before
    assert_frame_equal(read(out), expected(rows), check_exact=True)
    assert pl.read_parquet(report_file(out, "bars_1min"))["count"].to_list() == [723, 723]
    assert ingest_intraday(file, out, "bars", overwrite=True).days == 2


def test_other_settings_are_refused(rows, tmp_path):
    out = tmp_path / "out"
    ingest_intraday(save(vendor(rows), tmp_path / "a.parquet"), out, "bars")
    cents = save(vendor(rows, price="cent"), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match="made with other settings .*price 'yuan' there, 'cent' now"):
        ingest_intraday(cents, out, "bars", price="cent")
    with pytest.raises(ConfigError, match="made with other settings"):  # 2024-01-03 would stay
        ingest_intraday(cents, out, "bars", price="cent", overwrite=True, last="2024-01-02")
    ingest_intraday(cents, out, "bars", price="cent", overwrite=True)
    assert read_about(out)["tables"]["bars_1min"]["price"] == "cent"
    assert_frame_equal(read(out), expected(rows), check_exact=True)


def test_one_at_a_time(rows, tmp_path):
    file, out = save(vendor(rows), tmp_path / "a.parquet"), tmp_path / "out"
    out.mkdir()
    with open(out / ".ingest-bars_1min.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another ingestion of bars_1min is at work"):
            ingest_intraday(file, out, "bars")
    assert ingest_intraday(file, out, "bars", first="2024-01-03").days == 1


# ---- what is asked, what is contradicted --------------------------------------------------------------------------------------
@pytest.mark.parametrize("how, options, message", [
    (dict(price="cent"), {}, "whole numbers"),
    (dict(price="cent"), dict(price="yuan"), "price=yuan cannot be: all prices are whole"),
    (dict(price="cent"), dict(price="mil", volume="shares"), "cannot be with price mil"),
    (dict(), dict(price="cent"), "have fractions"),
    (dict(), dict(stamp="start"), "stamp=start cannot be: a bar is stamped 11:30"),
    (dict(stamp="start"), dict(stamp="end"), "stamp=end cannot be: a bar is stamped 13:00"),
    (dict(), dict(volume="lots"), "it can be with: price yuan, volume shares, amount yuan"),
    (dict(volume="lots"), dict(volume="shares", amount="yuan"), "cannot be with"),
    (dict(), dict(minutes=5), "1 minutes apart, not 5"),
    (dict(), dict(opening_auction="inside"), "opening_auction=inside cannot be"),
])
def test_contradictions(rows, tmp_path, how, options, message):
    with pytest.raises(ConfigError, match=message):
        ingest_intraday(save(vendor(rows, **how), tmp_path / "a.parquet"), tmp_path / "out", "bars", **options)
    assert not (tmp_path / "out" / "intraday.json").exists()


def test_what_cannot_be_told_is_asked(rows, tmp_path):
    frame = vendor(rows)
    with pytest.raises(ConfigError, match="without amounts .* --volume"):
        ingest_intraday(save(frame.drop("amount"), tmp_path / "a.parquet"), tmp_path / "out", "bars")
    ingest_intraday(tmp_path / "a.parquet", tmp_path / "out", "bars", volume="shares")
    assert read(tmp_path / "out")["amount"].null_count() == len(rows)
    times = frame["datetime"].dt.time()
    few = frame.filter(times.is_between(dt.time(10, 0), dt.time(10, 30)))
    with pytest.raises(ConfigError, match="starts or ends: give --stamp"):
        ingest_intraday(save(few, tmp_path / "b.parquet"), tmp_path / "other", "bars")


def test_stamps_that_change_between_days(rows, tmp_path):
    mixed = pl.concat([vendor(rows).filter(pl.col("datetime").dt.date() == DAYS[0]),
                       vendor(rows, stamp="start").filter(pl.col("datetime").dt.date() == DAYS[1])])
    with pytest.raises(DataError, match="2024-01-03 are stamped at their start, those before at their end"):
        ingest_intraday(save(mixed, tmp_path / "a.parquet"), tmp_path / "out", "bars")


@pytest.mark.parametrize("mapping, message", [
    ({"bar": {}}, "unknown table 'bar'"), ({"bars": {"column": {}}}, "unknown key 'column'"),
    ({"bars": {"columns": {"opn": "open"}}}, "unknown column 'opn'"), ({"bars": {"price": "dollar"}}, "price='dollar' must be one of"),
    ({"bars": {"price": "mil"}}, "price is 'mil' in the column mapping and 'cent' beside it"),
    ({"bars": {"columns": {"open": "a"}, "constants": {"open": 1}}}, "a constant and a vendor's column"),
])
def test_bad_mappings(rows, tmp_path, mapping, message):
    with pytest.raises(ConfigError, match=message):
        ingest_intraday(save(vendor(rows), tmp_path / "a.parquet"), tmp_path / "out", "bars", columns=mapping, price="cent")


# ---- bad files and rows -------------------------------------------------------------------------------------------------------
def test_bad_files(rows, tmp_path):
    file = save(vendor(rows), tmp_path / "a.parquet")
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(file.read_bytes()[:2000])
    for source, message in [(cut, "cut.parquet cannot be read"), (tmp_path / "no.parquet", "is no folder and no file"),
                            (save(vendor(rows).drop("high"), tmp_path / "b.parquet"), r"no columns for \['high'\]"),
                            (save(vendor(rows).drop("datetime"), tmp_path / "c.parquet"), "no column holds the time"),
                            (save(vendor(rows).with_columns(symbol="instrument", code="instrument").drop("instrument"),
                                  tmp_path / "d.parquet"), r"instrument may be any of \['symbol', 'code'\]"),
                            (save(vendor(rows).with_columns(pl.lit("x").alias("high")), tmp_path / "e.csv"), "e.csv cannot be read"),
                            (save(vendor(rows).with_columns(datetime=pl.lit("noon")), tmp_path / "f.csv"), "no date that can be read")]:
        with pytest.raises((ConfigError, DataError), match=message):
            ingest_intraday(source, tmp_path / "out", "bars")
    with pytest.raises(DataError, match="holds no row from 2025"):
        ingest_intraday(file, tmp_path / "out", "bars", first="2025-01-01")
    for day in ("January", "NaT", "2024"):
        with pytest.raises(ConfigError, match=f"--from '{day}' is no day"):
            ingest_intraday(file, tmp_path / "out", "bars", first=day)


def at(clock: str, code: str = "SH600000") -> pl.Expr:
    hours, minutes = map(int, clock.split(":"))
    return (pl.col("datetime") == dt.datetime(2024, 1, 2, hours, minutes)) & (pl.col("instrument") == code)


def moved(frame: pl.DataFrame, clock: str, by: str) -> pl.DataFrame:
    return pl.concat([frame, frame.filter(at(clock)).with_columns(pl.col("datetime").dt.offset_by(by))])


def changed(frame: pl.DataFrame, clock: str, **columns) -> pl.DataFrame:
    return frame.with_columns(pl.when(at(clock)).then(value).otherwise(name).alias(name) for name, value in columns.items())


PLANTED = {
    "missing_bars": (lambda f: f.filter(~at("10:00")), 1, {30}),
    "repeated_rows": (lambda f: pl.concat([f, f.filter(at("10:00"))]), 1, set()),
    "duplicate_minutes": (lambda f: pl.concat([f, f.filter(at("10:00")).with_columns(pl.col("volume") + 1)]), 2, set(range(241))),
    "out_of_session": (lambda f: moved(moved(f, "11:30", "30m"), "15:00", "5m"), 2, set()),
    "off_grid": (lambda f: moved(f, "10:00", "30s"), 1, set()),
    "impossible": (lambda f: changed(changed(f, "10:00", low=99.0), "10:05", volume=-100), 2, {30, 35}),
    "amount_outside_prices": (lambda f: changed(f, "10:00", amount=2 * pl.col("amount")), 1, None),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults(rows, tmp_path, fault):
    plant, count, lost = PLANTED[fault]
    found = ingest_intraday(save(plant(vendor(rows)), tmp_path / "a.parquet"), tmp_path / "out", "bars")
    assert faults(found)[fault, "SH600000"] == count
    assert {name for name, _ in faults(found)} <= {fault, "missing_bars"} and {code for _, code in faults(found)} == {"SH600000"}
    if lost is not None:  # the rest is as it was
        hit = (pl.col("date") == DAYS[0]) & (pl.col("instrument") == "SH600000") & pl.col("minute").is_in(sorted(lost))
        assert_frame_equal(read(tmp_path / "out"), expected(rows).filter(~hit), check_exact=True)
    saved = pl.read_parquet(report_file(tmp_path / "out", "bars_1min"))
    assert_frame_equal(saved.filter(pl.col("fault") != "rows_written"), found.findings)
    assert fault in found.text()


def test_quiet_days_and_a_day_at_its_limit(rows, tmp_path):
    day = pl.col("datetime").dt.date() == DAYS[0]
    quiet, limit = day & (pl.col("instrument") == "SH600000"), day & (pl.col("instrument") == "SZ000001")
    frame = vendor(rows).with_columns(
        *(pl.when(quiet).then(0.0).when(limit).then(9.9).otherwise(name).alias(name) for name in BAR[:4]),
        volume=pl.when(quiet).then(0).otherwise("volume"),
        amount=pl.when(quiet).then(0.0).when(limit).then(9.9 * pl.col("volume")).otherwise("amount"))
    found = ingest_intraday(save(frame, tmp_path / "a.parquet"), tmp_path / "out", "bars")
    assert faults(found) == {("suspended", "SH600000"): 241}
    made = read(tmp_path / "out").filter(pl.col("date") == DAYS[0])
    assert made.filter(pl.col("instrument") == "SH600000").select(pl.col(BAR[:4]).is_null().all()).row(0) == (True,) * 4
    assert made.filter(pl.col("instrument") == "SZ000001").select((pl.col(BAR[:4]) == 9.9).all()).row(0) == (True,) * 4


def test_quiet_bars_are_flat_at_the_last_close(rows, tmp_path):
    frame = changed(vendor(rows), "10:00", volume=0, amount=0.0, **dict.fromkeys(BAR[:4], 0.0))
    assert not len(ingest_intraday(save(frame, tmp_path / "a.parquet"), tmp_path / "out", "bars").findings)
    made = read(tmp_path / "out").filter((pl.col("date") == DAYS[0]) & (pl.col("instrument") == "SH600000"))
    before, quiet = made.filter(pl.col("minute").is_in([29, 30])).rows(named=True)
    assert [quiet[name] for name in BAR] == [before["close"]] * 4 + [0, 0.0]


def test_unknown_codes_are_left_out(rows, tmp_path):
    frame = vendor(rows).with_columns(pl.col("instrument").replace("SZ300750", "INDEX_1"))
    found = ingest_intraday(save(frame, tmp_path / "a.parquet"), tmp_path / "out", "bars")
    assert faults(found) == {("unknown_code", "INDEX_1"): 241}
    assert_frame_equal(read(tmp_path / "out"), expected(rows).filter(pl.col("instrument") != "SZ300750"), check_exact=True)


# ---- against the daily bars of a store ----------------------------------------------------------------------------------------
def test_against_daily_bars(tmp_path):
    store, day = tiny_intraday.build_store(tmp_path / "store"), tiny_intraday.DAYS[5]
    daily = tiny_intraday.tables()["bars"].query("date == @day")
    rows = [{"datetime": day + dt.timedelta(minutes=end), "instrument": one.instrument, "open": one.open if first else one.close,
             "high": one.high if first else one.close, "low": one.low if first else one.close, "close": one.close,
             "volume": one.volume - 300 if first else 100} for one in daily.itertuples()
            for first, end in ((True, 630), (False, 690), (False, 840), (False, 900))]
    frame = pl.DataFrame(rows)
    options = dict(table="bars", minutes=60, volume="shares", store=store)
    assert not len(ingest_intraday(save(frame, tmp_path / "a.parquet"), tmp_path / "a", **options).findings)
    codes, first = daily["instrument"].tolist(), pl.col("datetime") == day + dt.timedelta(minutes=630)
    one, two = (pl.col("instrument") == code for code in codes[:2])
    frame = frame.with_columns(pl.when(one & first).then(pl.col("volume") + 60).otherwise("volume").alias("volume"),
                               pl.when(one).then(pl.col("high") * 1.02).otherwise("high").alias("high"),
                               pl.when(two & first).then(pl.col("low")).otherwise("open").alias("open"),
                               pl.col("instrument").replace(codes[2], "SH688999")).filter(pl.col("instrument") != codes[3])
    found = ingest_intraday(save(frame, tmp_path / "b.parquet"), tmp_path / "b", **options)
    assert faults(found) == {("volume_differs", codes[0]): 1, ("high_differs", codes[0]): 1, ("open_differs", codes[1]): 1,
                             ("not_in_store", "SH688999"): 1, ("no_bars", ""): 2}
    assert found.findings.filter(pl.col("fault") == "no_bars")["detail"].item() == f"{codes[2]}, {codes[3]}"


def test_command_line(rows, tmp_path, capsys):
    (tmp_path / "map.yaml").write_text("bars:\n  columns: {instrument: who}\n  where: {kept: [1]}\n  price: cent\n")
    frame = vendor(rows, price="cent").rename({"instrument": "who"}).with_columns(kept=pl.lit(1))
    file = save(pl.concat([frame, frame.with_columns(kept=pl.lit(0))]), tmp_path / "a.parquet")
    arguments = ["ingest-intraday", "--source", str(file), "--out", str(tmp_path / "out"), "--table", "bars"]
    assert main([*arguments, "--columns", str(tmp_path / "map.yaml"), "--from", "2024-01-03"]) == 0
    assert "1 days written (723 rows), 0 were there already; the checks found nothing" in capsys.readouterr().out
    assert_frame_equal(read(tmp_path / "out"), expected(rows).filter(pl.col("date") == DAYS[1]), check_exact=True)
    assert main(arguments) == 1 and "no column holds the codes" in capsys.readouterr().err
