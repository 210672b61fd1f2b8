"""Traps of ingesting intraday tables: runs that are killed, folders that grow, units that change, clocks and codings of vendors."""

import datetime as dt
import logging

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store import intraday_ingest
from qlib_ext.store.intraday import IntradayFolder, read_about
from qlib_ext.store.intraday_ingest import ingest_intraday, report_file

DAYS = [dt.date(2024, 1, day) for day in (2, 3, 4)]
PRICES = ("open", "high", "low", "close")


def bars(days=DAYS, codes=("SH600000", "SZ000001"), add: int = 0) -> pl.DataFrame:
    """Minute bars at their ends, no auction apart: prices in yuan, volume in shares; `add` lots more in every bar."""
    rows = []
    for day in days:
        for code in codes:
            for minute in range(1, 241):
                clock = 570 + minute if minute <= 120 else 660 + minute
                cents, lots = 1500 + minute % 7 + int(code[-1]), 1 + minute % 5 + add
                prices = cents / 100, (cents + 1) / 100, (cents - 1) / 100, cents / 100
                rows.append((code, dt.datetime.combine(day, dt.time(clock // 60, clock % 60)), *prices, lots * 100, float(cents * lots)))
    return pl.DataFrame(rows, orient="row", schema=["instrument", "datetime", *PRICES, "volume", "amount"])


def read(folder) -> pl.DataFrame:
    return IntradayFolder(folder).scan("bars_1min").with_columns(pl.col("instrument").cast(pl.String)).collect()


def ingest(frame: pl.DataFrame, place, name: str = "a.parquet", **options):
    frame.write_csv(place / name) if name.endswith("csv") else frame.write_parquet(place / name)
    return ingest_intraday(place / name, place / "out", "bars", **options)


def killed_on(monkeypatch, day):
    """Writing a day of this number kills the run."""
    real = intraday_ingest.write_day

    def dies(folder, table, at, frame):
        if at == day:
            raise KeyboardInterrupt
        return real(folder, table, at, frame)

    monkeypatch.setattr(intraday_ingest, "write_day", dies)


@pytest.mark.parametrize("lots", [False, True])
def test_a_killed_overwrite_goes_on_without_days_of_the_old_source(tmp_path, monkeypatch, lots):
    ingest(bars(), tmp_path)
    new = bars(add=3)
    new = new.with_columns(pl.col("volume") // 100) if lots else new  # other settings than the folder's
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        killed_on(patch, DAYS[1])
        ingest(new, tmp_path, overwrite=True)
    if lots:
        assert IntradayFolder(tmp_path / "out").days("bars_1min").astype(str).tolist() == ["2024-01-02"]  # no day in the units of before
    found = ingest(new, tmp_path)
    assert (found.days, found.kept) == (2, 1)
    assert read(tmp_path / "out")["volume"].sum() == bars(add=3)["volume"].sum()


def test_a_source_with_more_rows_than_before_is_told(tmp_path, caplog):
    ingest(bars(), tmp_path)
    with caplog.at_level(logging.WARNING, "qlib_ext.store"):
        assert ingest(bars(), tmp_path).kept == 3 and not caplog.records
        ingest(bars().filter(pl.col("datetime").dt.hour() > 9), tmp_path)
    assert "3 days are left as they are but were made of other rows (480 of 2024-01-02, the source has 422)" in caplog.text


def test_other_stocks_of_days_that_are_there(tmp_path):
    ingest(bars(codes=("SH600004",)), tmp_path)
    report, out = report_file(tmp_path / "out", "bars_1min"), tmp_path / "out"
    spelled = bars(codes=("SH600004",)).with_columns(instrument=pl.lit("600004.SH"))
    assert ingest(spelled, tmp_path).kept == 3  # the same one
    with pytest.raises(DataError, match="3 days of .* made of other stocks than the source has .the first: 2024-01-02.*--overwrite"):
        ingest(bars(codes=("SH600019",)), tmp_path)
    assert ingest(bars(DAYS[2:] + [dt.date(2024, 1, 5)], ("SH600019",)), tmp_path, first="2024-01-05").days == 1
    for code in ("SH600004", "SH600019"):
        bars(codes=(code,)).write_parquet(tmp_path / f"{code}.parquet")
    files = [tmp_path / "SH600004.parquet", tmp_path / "SH600019.parquet"]
    assert ingest_intraday(files, out, "bars", overwrite=True).days == 3
    assert ingest_intraday(files, out, "bars").kept == 3 and read(out)["instrument"].unique().sort().to_list() == ["SH600004", "SH600019"]
    old = pl.read_parquet(report).with_columns(pl.col("detail").str.split(" ").list.first())  # as it was written before
    old.write_parquet(report)
    assert ingest(bars(codes=("SH600019",)), tmp_path).kept == 3


def test_a_renamed_column_extends_the_folder(tmp_path):
    ingest(bars(DAYS[:1]).rename({"open": "o"}), tmp_path, columns={"bars": {"columns": {"open": "o"}}})
    found = ingest(bars(DAYS[1:2]).rename({"open": "first"}), tmp_path, columns={"bars": {"columns": {"open": "first"}}})
    out = tmp_path / "out"
    assert found.days == 1 and read_about(out)["tables"]["bars_1min"]["mapping"]["columns"] == {"open": "first"}
    names = ["instrument", *PRICES, "volume", "amount"]
    assert_frame_equal(read(out).select(names), bars(DAYS[:2]).select(names), check_exact=True)
    with pytest.raises(ConfigError, match="made with other settings .*mapping .*'where'"):
        ingest(bars(DAYS[2:]), tmp_path, columns={"bars": {"where": {"instrument": "SH600000"}}})


@pytest.mark.parametrize("change", [
    lambda f: f.with_columns(pl.col("datetime").dt.strftime("%Y-%m-%dT%H:%M:%S+08:00")),
    lambda f: f.with_columns(date=pl.col("datetime").dt.strftime("%Y%m%d").cast(pl.Float64),
                             time=pl.col("datetime").dt.strftime("%H%M%S000").cast(pl.Float64)).drop("datetime"),
    lambda f: f.with_columns(pl.col("datetime").dt.strftime("%Y%m%d%H%M%S").cast(pl.Float64)),
    lambda f: pl.concat([f, f.filter(pl.col("datetime").dt.time() == dt.time(9, 31)).with_columns(
        pl.col("datetime").dt.offset_by("-1m"), volume=pl.lit(0, pl.Int64), amount=pl.lit(0.0))]),
], ids=["offset", "fractional clocks", "fractional moment", "empty bar of 09:30"])
def test_clocks(tmp_path, change):
    ingest(bars(), tmp_path)
    made = read(tmp_path / "out")
    (tmp_path / "other").mkdir()
    assert not len(ingest(change(bars()), tmp_path / "other").findings)
    assert_frame_equal(read(tmp_path / "other" / "out"), made, check_exact=True)


def test_two_bars_of_the_auction_are_not_summed(tmp_path):
    first = bars().filter((pl.col("datetime") == dt.datetime(2024, 1, 2, 9, 31)) & (pl.col("instrument") == "SH600000"))
    twice = [first.with_columns(pl.col("datetime").dt.replace(hour=9, minute=minute)) for minute in (20, 25)]
    found = ingest(pl.concat([bars(), *twice]), tmp_path).findings.filter(pl.col("fault") != "auction_not_apart")
    assert found.select("fault", "instrument", "count", "detail").rows() == [("duplicate_minutes", "SH600000", 2, "09:20:00")]
    assert read(tmp_path / "out").filter(pl.col("date") == DAYS[0])["instrument"].unique().to_list() == ["SZ000001"]


@pytest.mark.parametrize("scale, ratio", [({"volume": 0.01}, "100"), ({"amount": 0.001}, "0.001"), (dict.fromkeys(PRICES, 1.5), "0.6667")])
def test_units_that_change_on_a_later_day(tmp_path, scale, ratio):
    later = pl.col("datetime").dt.date() == DAYS[2]
    frame = bars().with_columns(pl.when(later).then(pl.col(name) * part).otherwise(name).alias(name) for name, part in scale.items())
    with pytest.raises(DataError, match=f"amount / volume is {ratio} times the price on 2024-01-04"):
        ingest(frame, tmp_path)
    assert IntradayFolder(tmp_path / "out").days("bars_1min").astype(str).tolist() == ["2024-01-02", "2024-01-03"]


@pytest.mark.parametrize("truth, said, message", [(100, "mil", "half of the prices would be below 0.15"),
                                                  (10_000, "cent", "cannot be with price cent")])
def test_a_wrong_unit_of_whole_prices(tmp_path, truth, said, message):
    whole = bars().with_columns((pl.col(PRICES) * truth).round().cast(pl.Int64))
    with pytest.raises(ConfigError, match=message):
        ingest(whole, tmp_path, price=said)
    assert ingest(whole, tmp_path, price={100: "cent", 10_000: "mil"}[truth]).days == 3


def test_another_coding(tmp_path):
    frame = bars().rename({"instrument": "\u4ee3\u7801", "open": "\u5f00\u76d8"})
    (tmp_path / "gbk.csv").write_bytes(frame.write_csv().encode("gb18030"))
    (tmp_path / "utf8.csv").write_bytes(frame.write_csv().encode("utf-8"))
    columns = {"bars": {"columns": {"instrument": "\u4ee3\u7801", "open": "\u5f00\u76d8"}}}
    with pytest.raises(DataError, match="gbk.csv is no UTF-8 text: convert it first"):
        ingest_intraday(tmp_path / "gbk.csv", tmp_path / "out", "bars", columns=columns)
    assert ingest_intraday(tmp_path / "utf8.csv", tmp_path / "out", "bars", columns=columns).rows == len(frame)


def test_a_folder_inside_its_source(tmp_path):
    out = tmp_path / "in" / "out"
    (tmp_path / "in").mkdir()
    bars().write_parquet(tmp_path / "in" / "a.parquet")
    assert ingest_intraday(tmp_path / "in", out, "bars").days == 3
    found = ingest_intraday(tmp_path / "in", out, "bars", overwrite=True)  # not its own files again
    assert (found.days, found.rows) == (3, len(bars()))


@pytest.mark.parametrize("name, value, fault", [("high", float("inf"), "impossible"), ("volume", float("inf"), "impossible"),
                                                ("volume", 1e30, "impossible"), ("amount", float("inf"), None)])
def test_numbers_without_end(tmp_path, name, value, fault):
    first = pl.int_range(pl.len()) == 0
    found = ingest(bars().with_columns(pl.when(first).then(value).otherwise(pl.col(name)).alias(name)), tmp_path).findings
    assert ("impossible" in found["fault"].to_list()) == (fault is not None)
    made = read(tmp_path / "out").row(0, named=True)
    assert made["minute"] == 2 if fault else (made["minute"], made["amount"]) == (1, None)


def test_stamps_that_are_no_text(tmp_path):
    first = pl.int_range(pl.len()) < 2
    text = bars().with_columns(date=pl.col("datetime").dt.strftime("%Y-%m-%d"),
                               time=pl.when(~first).then(pl.col("datetime").dt.strftime("%H:%M"))).drop("datetime")
    found = ingest(text, tmp_path).findings
    assert found.filter(pl.col("fault") == "no_time").select("instrument", "count").rows() == [("SH600000", 2)]
    assert len(read(tmp_path / "out")) == len(bars()) - 2


# ---- sources that cannot be used ----------------------------------------------------------------------------------------------
def stamps(frame: pl.DataFrame, how: str) -> pl.DataFrame:
    return frame.with_columns(pl.col("datetime").dt.strftime(how))


@pytest.mark.parametrize("change, message", [
    (lambda f: stamps(f, "%Y-%m-%d %I:%M:%S %p"), "no time of day can be read in datetime .'2024-01-02 09:31:00 AM'"),
    (lambda f: stamps(f, "%Y-%m-%d"), "no time of day can be read in datetime .'2024-01-02'"),
    (lambda f: f.with_columns(pl.col("datetime").dt.truncate("1d")), "no time of day can be read in datetime .'2024-01-02 00:00:00'"),
    (lambda f: stamps(f, "%Y-%m-%d %I:%M:%S"), "240 of 480 traded rows of 2024-01-02 lie outside the session .*12 hours.* 01:01:00 of"),
    (lambda f: f.with_columns(pl.col("datetime").dt.offset_by("1s")), "480 of 480 traded rows of 2024-01-02 lie between .*09:31:01"),
    (lambda f: f.with_columns(pl.col("datetime").dt.offset_by("-8h")), "outside the session of 09:15 to 15:00"),
    (lambda f: f.with_columns(high=pl.col("low") - 1), "no row that can be used on any of its 3 days.*impossible: 1440 rows, .*2024-01-02"),
], ids=["AM and PM", "date only", "midnight", "12 hours", "a second late", "UTC", "prices"])
def test_no_row_is_taken_of_what_cannot_be(tmp_path, change, message):
    """Refused at its first day; days that are there stay, also where they were to be written again."""
    with pytest.raises((ConfigError, DataError), match=message):
        ingest(change(bars()), tmp_path)
    assert not [path for path in (tmp_path / "out").rglob("*") if not path.name.startswith(".")]
    ingest(bars(), tmp_path)
    before, report = read(tmp_path / "out"), report_file(tmp_path / "out", "bars_1min").read_bytes()
    with pytest.raises((ConfigError, DataError), match=message):
        ingest(change(bars()), tmp_path, "b.parquet", overwrite=True)
    assert_frame_equal(read(tmp_path / "out"), before, check_exact=True)
    assert report_file(tmp_path / "out", "bars_1min").read_bytes() == report


def test_a_day_without_a_row_that_can_be_used(tmp_path):
    """It is told, has no file, and is tried again; its old file goes where it is written again."""
    bad = pl.col("datetime").dt.date() == DAYS[0]
    spoilt = bars().with_columns(high=pl.when(bad).then("low").otherwise("high"))
    for overwrite in (False, True):
        found = ingest(spoilt, tmp_path, overwrite=overwrite)
        assert (found.days, found.kept, found.empty) == (2, 0, 1) and "1 have no row that can be used" in found.text()
        assert IntradayFolder(tmp_path / "out").days("bars_1min").astype(str).tolist() == ["2024-01-03", "2024-01-04"]
        found = ingest(spoilt, tmp_path)
        assert (found.days, found.kept, found.empty) == (0, 2, 1)
        report = pl.read_parquet(report_file(tmp_path / "out", "bars_1min"))
        assert report.filter(pl.col("fault") == "impossible")["count"].sum() == 480
        assert ingest(bars(), tmp_path).days == 1
    with pytest.raises(DataError, match="any of its 1 days"):  # the folder's other days do not help
        ingest(spoilt.filter(bad).with_columns(pl.col("datetime").dt.offset_by("3d")), tmp_path, "later.parquet")


def test_a_day_on_another_clock_does_not_stop_the_others(tmp_path):
    """The bad day is refused and tried again, also where it is the first that lacks; ten of them stop the run."""
    bad = pl.col("datetime").dt.date() == DAYS[1]
    moved = bars().with_columns(pl.when(bad).then(pl.col("datetime").dt.offset_by("-8h")).otherwise("datetime").alias("datetime"))
    fault, done = "480 of 480 traded rows of 2024-01-03 lie outside", ["2024-01-02", "2024-01-04"]
    with pytest.raises(DataError, match=f"1 days are refused, the others are done .*\n.*{fault}"):
        ingest(moved, tmp_path)
    with pytest.raises(DataError, match=f"^{fault}"):
        ingest(moved, tmp_path)
    assert IntradayFolder(tmp_path / "out").days("bars_1min").astype(str).tolist() == done
    grown = pl.concat([moved, bars([dt.date(2024, 1, 5)])])
    with pytest.raises(DataError, match=f"1 days are refused, the others are done .*\n.*{fault}"):
        ingest(grown, tmp_path)
    assert IntradayFolder(tmp_path / "out").days("bars_1min").astype(str).tolist() == [*done, "2024-01-05"]
    assert ingest(bars(), tmp_path).days == 1
    days = [dt.date(2024, 2, day) for day in range(1, 15)]
    late = pl.when(pl.col("datetime").dt.date() > days[0]).then(pl.col("datetime").dt.offset_by("1s")).otherwise("datetime")
    with pytest.raises(DataError, match="10 days are refused, later ones were not tried") as raised:
        ingest(bars(days).with_columns(late.alias("datetime")), tmp_path, "later.parquet")
    assert str(raised.value).count("traded rows of") == 10


def test_a_stock_that_was_suspended_all_along_has_no_clock(tmp_path):
    """A row a day without volume, stamped by its date."""
    for code in ("SH600000", "SZ000001"):
        frame = bars(codes=(code,))
        if code == "SZ000001":
            frame = frame.group_by(pl.col("datetime").dt.truncate("1d"), maintain_order=True).agg(pl.exclude("datetime").first())
            frame = frame.with_columns(volume=pl.lit(0, pl.Int64), amount=pl.lit(0.0))
        frame.write_csv(tmp_path / f"{code}.csv")
    found = ingest_intraday([tmp_path / f"{code}.csv" for code in ("SH600000", "SZ000001")], tmp_path / "out", "bars")
    assert found.days == 3 and found.rows == 720
    assert ("out_of_session", "SZ000001") in set(found.findings.select("fault", "instrument").rows())


def test_an_auction_that_is_apart_no_more(tmp_path):
    opening = bars().filter(pl.col("datetime").dt.time() == dt.time(9, 31)).with_columns(pl.col("datetime").dt.replace(minute=25))
    apart = pl.concat([bars(), opening])
    assert not len(ingest(apart, tmp_path).findings)
    one_without = apart.filter(~((pl.col("datetime").dt.time() == dt.time(9, 25)) & (pl.col("instrument") == "SH600000")))
    assert not len(ingest(one_without, tmp_path, overwrite=True).findings), "a stock may have no trade in the auction"
    found = ingest(pl.concat([apart.filter(pl.col("datetime").dt.date() != DAYS[2]), bars(DAYS[2:])]), tmp_path, overwrite=True).findings
    assert found.select("date", "instrument", "fault", "count").rows() == [(DAYS[2], "", "auction_not_apart", 2)]


def test_some_rows_out_of_session_are_no_other_clock(tmp_path):
    late = bars(codes=("SH688001",)).filter(pl.col("datetime").dt.hour() == 14).with_columns(pl.col("datetime").dt.offset_by("66m"))
    found = ingest(pl.concat([bars(codes=("SH688001",)), late.filter(pl.col("datetime").dt.minute() <= 30)]), tmp_path)
    assert set(found.findings["fault"]) == {"out_of_session"} and found.rows == 720


# ---- words where numbers belong, codes ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
@pytest.mark.parametrize("word", ["2,200", "abc"])
def test_words_for_numbers(tmp_path, name, word):
    with pytest.raises(DataError, match=f"{name} cannot be read .*{word}.* write plain numbers there"):
        ingest(bars().with_columns(volume=pl.lit(word)), tmp_path, name)


@pytest.mark.parametrize("constants, message", [
    ({"volume": "abc"}, "volume must be a number, not 'abc'"), ({"amount": True}, "amount must be a number"),
    ({"n_trades": float("nan")}, "n_trades must be a number"), ({"time": "10:00"}, "time cannot be one for all rows")])
def test_constants(tmp_path, constants, message):
    with pytest.raises(ConfigError, match=f"constants: {message}"):
        ingest(bars().drop("volume"), tmp_path, columns={"bars": {"constants": constants}})


@pytest.mark.parametrize("fractional, name", [(False, "a.parquet"), (True, "a.csv"), (True, "a.parquet")])
def test_spellings_of_codes(tmp_path, fractional, name):
    code = pl.col("instrument")
    small = code.replace({"SH600000": "600000.xshg", "SZ000001": "000001.Xshe"})
    frame = bars().with_columns(exchange=code.str.head(2), instrument=code.str.tail(6).cast(pl.Float64) if fractional else small)
    assert not len(ingest(frame if fractional else frame.drop("exchange"), tmp_path, name).findings)
    assert read(tmp_path / "out")["instrument"].unique().sort().to_list() == ["SH600000", "SZ000001"]


def test_fractional_codes_need_an_exchange_too(tmp_path):
    with pytest.raises(ConfigError, match="do not say their exchange"):
        ingest(bars().with_columns(pl.col("instrument").str.tail(6).cast(pl.Float64)), tmp_path)
