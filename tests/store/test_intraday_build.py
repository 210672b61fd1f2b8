"""Intraday fields of a store: right values, nothing of the future, only missing days, all or nothing, kept by appends."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import polars as pl
import pytest
import tiny_intraday
from intraday_results import TABLE, fields, results, series
from store_market import read_field
from tiny_intraday import CODES, DAYS, bars, build_folder, build_store, trades

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.store import check_files, fingerprint, intraday_days, read_metadata
from qlib_ext.store.__main__ import main
from qlib_ext.store.append import append
from qlib_ext.store.doctor import examine
from qlib_ext.store.ingest import ingest
from qlib_ext.store.intraday import write_day
from qlib_ext.store.intraday_build import build_intraday, plan_days, read_options
from qlib_ext.store.intraday_days import pieces
from qlib_ext.store.intraday_fields import IntradayWriter

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, time
from qlib_ext.store import intraday_days
from qlib_ext.store.intraday_build import build_intraday
original = intraday_days.DayWork.compute
def slow(self, task):
    original(self, task)
    print("done", flush=True)
    time.sleep(float(sys.argv[2]))
intraday_days.DayWork.compute = slow
if __name__ == "__main__":
    build_intraday(sys.argv[1])
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A store of all days with its fields, and blocks of a day and of 60 minutes; not to be changed."""
    place = tmp_path_factory.mktemp("intraday")
    store = build_store(place / "store")
    build_folder(place / "store.intraday")
    return build_intraday(store, blocks=("day", 60))


@pytest.fixture
def copy(whole, tmp_path) -> Path:
    """A copy of that store and its intraday folder, times of files kept."""
    shutil.copytree(whole, tmp_path / "store")
    shutil.copytree(f"{whole}.intraday", tmp_path / "store.intraday")
    return tmp_path / "store"


# ---- values -------------------------------------------------------------------------------------------------------------------
def test_a_factor_by_hand(whole):
    """Tail share of volume from the bars themselves, its mean over five days of which three are known."""
    share = {}
    for day in DAYS:
        frame = bars(day).to_pandas()
        share[day] = frame[frame["minute"] > 210].groupby("instrument", observed=True)["volume"].sum() / frame.groupby(
            "instrument", observed=True)["volume"].sum()
    share = pd.DataFrame(share).T
    for code in (CODES[0], CODES[3]):                       # the second lists on day 12: what was before is not in its files
        found = series(whole, code, "hf_tail_share_1d")
        first = 12 if code == CODES[3] else 0
        np.testing.assert_allclose(found[first:], share[code].to_numpy()[first:], rtol=1e-6)
        mean = series(whole, code, "hf_tail_share")
        for t in range(max(first, 2), len(DAYS)):
            np.testing.assert_allclose(mean[t], share[code].iloc[max(t - 4, 0):t + 1].mean(), rtol=1e-6)
        assert np.isnan(mean[:2]).all()


def test_what_is_orthogonal(whole):
    """No correlation with size, no industry means, on a day on which all is known."""
    values = np.array([series(whole, code, "hf_skew_orth")[28] for code in CODES])
    cap = np.log([series(whole, code, "float_cap")[28] for code in CODES])
    assert np.isfinite(values).sum() >= 20
    known, industry = np.isfinite(values), np.arange(len(CODES)) % 3
    assert all(abs(values[known & (industry == k)].mean()) < 1e-5 for k in range(3))
    reach = 3 * 1.4826 * np.median(np.abs(cap - np.median(cap)))
    clipped = np.clip(cap, np.median(cap) - reach, np.median(cap) + reach)
    assert abs(np.corrcoef(values[known], clipped[known])[0, 1]) < 1e-5


def test_the_metadata_the_doctor_and_the_schema_know_them(whole, capsys):
    about = read_metadata(whole)["intraday"]
    assert about["days"] == ["2020-01-02", "2020-02-12", 30] and about["days_mean"] == 5 and about["table"] == TABLE
    assert about["regressors"].keys() == {"ln_cap", "reversal", "turnover", "volatility", "industry"}
    assert set(about["fields"]) == {file.split("/")[-1][:-len(".day.bin")] for file in fields(whole)}
    assert "n_trades" in about["left_out"]["hf_push_up"] and about["fields"]["hf_skew_orth"]["unit"] == "1"
    check_files(whole)
    report = examine(whole)
    section = next(one for one in report.sections if one.title == "Intraday fields")
    assert "30 days, 2020-01-02..2020-02-12, of table bars_15min" in section.lines[0] and not section.warnings
    assert section.figures["known"]["hf_skew_1d"] == 1.0
    assert not any("hf_" in str(one.figures) or "hi_" in str(one.figures) for one in report.sections if one.title == "Coverage")
    assert main(["schema"]) == 0
    page = capsys.readouterr().out
    assert "`hf_<factor>_orth`" in page and "`hi_<feature>`" in page


def test_qlib_reads_them(whole):
    """D.features, expressions on them, and LightGBM on a handler of Qlib."""
    import qlib
    from qlib.contrib.model.gbdt import LGBModel
    from qlib.data import D
    from qlib.data.dataset import DatasetH
    from qlib.data.dataset.handler import DataHandlerLP
    from qlib.data.dataset.loader import QlibDataLoader
    qlib.init(provider_uri=str(whole), region="cn", kernels=1, expression_cache=None, dataset_cache=None, logging_level=40)
    frame = D.features([CODES[0], CODES[3]], ["$hf_skew_1d", "Mean($hf_skew_1d, 20)", "$hi_" + first_input(whole)], freq="day")
    raw = read_field(whole, CODES[0], "hf_skew_1d")
    np.testing.assert_array_equal(frame.xs(CODES[0])["$hf_skew_1d"], raw)
    np.testing.assert_allclose(frame.xs(CODES[0])["Mean($hf_skew_1d, 20)"], raw.astype(float).rolling(20, min_periods=1).mean(), rtol=1e-5)
    loader = QlibDataLoader({"feature": (["$hf_skew", "$hf_skew_orth"], ["SKEW", "ORTH"]), "label": (["Ref($close,-2)/$close-1"], ["L"])})
    data = DatasetH(DataHandlerLP("all", "2020-01-02", "2020-02-12", data_loader=loader),
                    {"train": ("2020-01-08", "2020-01-28"), "valid": ("2020-01-29", "2020-02-05"), "test": ("2020-02-06", "2020-02-10")})
    model = LGBModel(loss="mse", num_leaves=4, min_data_in_leaf=5)
    with mock.patch("qlib.contrib.model.gbdt.R"):           # it would log to a tracking database
        model.fit(data, num_boost_round=3, verbose_eval=0)
    assert np.isfinite(model.predict(data)).all()


def first_input(store: Path) -> str:
    return next(name for name in read_metadata(store)["intraday"]["fields"] if name.startswith("hi_"))[3:]


# ---- point in time ------------------------------------------------------------------------------------------------------------
def test_nothing_of_the_future(whole, tmp_path):
    """Intraday days and daily tables are other ones after day 19: all fields are bit-equal up to it, and others after it."""
    last = DAYS[19]
    tables = tiny_intraday.tables()
    late = tables["bars"]["date"] > last
    draw = np.random.default_rng(0)
    factor = draw.uniform(0.5, 2, late.sum())
    for name in ("open", "high", "low", "close"):
        tables["bars"].loc[late, name] *= factor
    tables["bars"].loc[late, "volume"] *= draw.integers(1, 9, late.sum())
    tables["industry"].loc[0, "end"] = last
    from qlib_ext.store.ingest import ingest
    store = ingest(tables, tmp_path / "store", index_names=tiny_intraday.INDEX)
    for day in DAYS:
        frame = bars(day)
        if day > last:
            frame = frame.with_columns(close=pl.col("open") * 1.01, high=pl.col("open") * 1.02,
                                       volume=pl.col("volume") // 2 + pl.col("minute"))
        write_day(tmp_path / "store.intraday", TABLE, np.datetime64(day, "D"), frame)
    build_intraday(store)
    before, after = fields(whole), fields(store)
    assert before.keys() == after.keys() and len(before) > 100
    changed = set()
    for name in before:
        old, new = (np.frombuffer(part[name], "<u4") for part in (before, after))
        kept = 1 + 20 - int(np.frombuffer(before[name], "<f4")[0])
        np.testing.assert_array_equal(old[:kept], new[:kept], err_msg=name)
        if not np.array_equal(old, new):
            changed.add(name.split("/")[-1][:-len(".day.bin")])
    assert {"hf_skew_1d", "hf_skew", "hf_skew_orth", "hi_" + first_input(whole)} <= changed


# ---- only what lacks ----------------------------------------------------------------------------------------------------------
def test_only_missing_days_are_computed(copy, caplog):
    before, values = results(copy), fields(copy)
    caplog.set_level(logging.INFO, "qlib_ext.store")
    build_intraday(copy)
    assert results(copy) == before and fields(copy) == values and "0 of them to be computed" in caplog.text
    day = np.datetime64(DAYS[7], "D")
    frame = bars(DAYS[7]).with_columns(volume=pl.col("volume") + pl.col("minute"))
    write_day(Path(f"{copy}.intraday"), TABLE, day, frame)
    first = fingerprint(copy)
    build_intraday(copy)
    after = results(copy)
    assert [name for name in before if after[name] != before[name]] == [str(day)]
    assert fingerprint(copy) != first and "values that the store had of earlier days are different now" in caplog.text
    assert series(copy, CODES[0], "hf_tail_share_1d")[7] != np.frombuffer(values[f"features/{CODES[0].lower()}/hf_tail_share_1d.day.bin"],
                                                                       "<f4")[8]
    check_files(copy)


def other_bars(store: Path, day: pd.Timestamp) -> None:
    """Ingest a day again, with other volumes."""
    frame = bars(day).with_columns(volume=pl.col("volume") + pl.col("minute"))
    write_day(Path(f"{store}.intraday"), TABLE, np.datetime64(day, "D"), frame)


def test_days_ingested_again_outside_the_span_are_computed_too(copy, caplog):
    """--from leaves no day with values of bars that are no more, and no block; days that no run has made stay unmade."""
    other_bars(copy, DAYS[4])
    for gone in Path(f"{copy}.intraday").glob(f"*/*/date={DAYS[6].date()}"):
        if gone.parent.parent.name in ("daily", "blocks"):
            shutil.rmtree(gone)
    before = results(copy)
    build_intraday(copy, first=DAYS[20])
    after = results(copy)
    assert [name for name in before if after[name] != before[name]] == [str(DAYS[4].date())] and str(DAYS[6].date()) not in after
    assert f"1 other days, first {DAYS[4].date()}, are computed again too" in caplog.text
    frame = bars(DAYS[4]).to_pandas().assign(volume=lambda part: part["volume"] + part["minute"])
    mine = frame[frame["instrument"] == CODES[0]]
    share = mine.loc[mine["minute"] > 210, "volume"].sum() / mine["volume"].sum()
    found = series(copy, CODES[0], "hf_tail_share_1d")
    np.testing.assert_allclose(found[4], share, rtol=1e-6)
    assert np.isnan(found[6]) and read_metadata(copy)["intraday"]["days"][2] == 29
    digest = read_metadata(copy)["intraday"]["folder_digest"]
    build_intraday(copy)
    assert read_metadata(copy)["intraday"]["folder_digest"] != digest and len(results(copy)) == 30


def test_a_plain_build_keeps_blocks_up_to_date(copy, caplog):
    """Without --blocks: those of the same options follow the bars, those of other options are named and stay."""
    def times() -> dict:
        return {file: file.stat().st_mtime_ns for file in copy.parent.glob("store.intraday/blocks/*/date=*/*.parquet")}

    before = times()
    other_bars(copy, DAYS[7])
    build_intraday(copy)
    after = times()
    changed = [place for place in before if before[place] != after[place]]
    assert len(changed) == 2 and {place.parent.name for place in changed} == {f"date={DAYS[7].date()}"}
    assert "stay as they are" not in caplog.text
    build_intraday(copy, options={"tail_minutes": 45}, last=DAYS[3])
    assert times() == after and "were made with other options, tables or formulas and stay as they are" in caplog.text


def test_what_a_day_lacks_is_unknown_on_it(tmp_path, caplog):
    """The number of trades stands in the bars of all days but the last, orders' numbers on the first days: factors of both are made."""
    store, folder = build_store(tmp_path / "store"), tmp_path / "store.intraday"
    for day in DAYS[:8]:
        frame = bars(day)
        if day != DAYS[7]:
            frame = frame.with_columns(n_trades=(pl.col("volume") // 50 + 1).cast(pl.Int32))
        write_day(folder, TABLE, np.datetime64(day, "D"), frame)
        ticks = trades(day)
        if day >= DAYS[6]:
            ticks = ticks.with_columns(pl.lit(None, pl.Int64).alias(name) for name in ("buy_order", "sell_order"))
        write_day(folder, "trades", np.datetime64(day, "D"), ticks)
    build_intraday(store, factors=["hf_push_up", "hf_large_buy_share"], options={"min_threshold_days": 1})
    push, large = (np.array([series(store, code, f"{name}_1d") for code in CODES[:3]]) for name in ("hf_push_up", "hf_large_buy_share"))
    assert np.isfinite(push[:, :7]).any() and np.isnan(push[:, 7:]).all()
    assert np.isfinite(large[:, 1:6]).any() and np.isnan(large[:, 6:]).all()
    assert f"1 of 8 days have no n_trades, first {DAYS[7].date()}: unknown on them are hf_push_up" in caplog.text


def test_fields_that_go_are_named(copy, caplog):
    build_intraday(copy)
    assert "are gone" not in caplog.text
    build_intraday(copy, factors=["hf_skew"])
    words = next(record.getMessage() for record in caplog.records if "are gone" in record.getMessage())
    assert "hf_tail_share_1d, hf_tail_share, hf_tail_share_orth" in words and "hf_skew" not in words and "hi_" not in words


def test_a_store_that_changes_while_days_are_computed(copy, monkeypatch):
    """Ingested again: refused, nothing written; days appended: done as ever."""
    from qlib_ext.store import intraday_build
    original = intraday_build.compute_days

    def build(change) -> None:
        def compute(*arguments):
            original(*arguments)
            change()
        monkeypatch.setattr(intraday_build, "compute_days", compute)
        build_intraday(copy)

    other = build_store(copy.parent / "other", DAYS[1:])
    shutil.rmtree(copy)
    build_store(copy, DAYS[:20])

    def replace() -> None:
        shutil.rmtree(copy)
        shutil.copytree(other, copy)

    build(lambda: append(new_tables(), copy))
    assert read_metadata(copy)["intraday"]["days"] == [str(DAYS[0].date()), str(DAYS[19].date()), 20]
    with pytest.raises(DataError, match="was ingested again while days were computed, and has another calendar"):
        build(replace)
    assert not fields(copy)


def test_bars_that_change_while_days_are_computed(copy, monkeypatch, caplog):
    from qlib_ext.store import intraday_build
    original = intraday_build.compute_days

    def compute(*arguments):
        original(*arguments)
        other_bars(copy, DAYS[9])
    monkeypatch.setattr(intraday_build, "compute_days", compute)
    build_intraday(copy)
    assert f"the tables of 1 days, first {DAYS[9].date()}, were ingested again while" in caplog.text
    assert np.isnan(series(copy, CODES[0], "hf_tail_share_1d")[9]) and read_metadata(copy)["intraday"]["days"][2] == 29


def test_days_are_added_as_they_come(tmp_path, whole):
    """--from and --to compute part of the days; the fields hold all that were ever computed; the end is as if made at once."""
    store, folder = build_store(tmp_path / "store"), build_folder(tmp_path / "store.intraday")
    build_intraday(store, first=DAYS[5], last="2020-01-20")
    assert sorted(results(store)) == [str(day.date()) for day in DAYS[5:13]]
    found = series(store, CODES[0], "hf_skew")
    assert np.isnan(found[:7]).all() and np.isfinite(found[7:13]).all() and np.isnan(found[13:]).all()
    build_intraday(store, last=DAYS[4])
    assert len(results(store)) == 13
    build_intraday(store, folder)
    assert fields(store) == fields(whole) and fingerprint(store) == fingerprint(whole)


def test_a_day_in_pieces_is_the_same_day(tmp_path):
    """Tables of a day are cut between instruments, also where one table lacks some of them."""
    first, second = bars(DAYS[0]), bars(DAYS[0], CODES[5:9])
    tables = {"bars": first.lazy(), "trades": second.lazy()}
    assert len(list(pieces(tables, rows=10**6))) == 1
    found = [{name: frame.collect() for name, frame in piece.items()} for piece in pieces(tables, rows=70)]
    assert len(found) > 5
    for name, frame in (("bars", first), ("trades", second)):
        assert pl.concat([piece[name] for piece in found]).equals(frame)
    for piece in found:
        codes = [set(piece[name]["instrument"].cast(str)) for name in ("bars", "trades")]
        assert codes[1] <= codes[0] and sum(len(frame) for frame in piece.values()) <= 70 + 32
    with pytest.raises(DataError, match="bars is not ordered by instrument"):
        list(pieces({"bars": pl.concat([first, first]).lazy()}, rows=70))


@pytest.mark.slow
def test_several_processes_make_the_same(copy):
    for part in Path(f"{copy}.intraday").glob("daily/*/date=*"):
        shutil.rmtree(part)
    before = fields(copy)
    build_intraday(copy, workers=2)
    assert fields(copy) == before and len(results(copy)) == 30


def test_other_options_are_other_results(copy):
    before = results(copy)
    assert read_options(None, 15) == read_options(read_metadata(copy)["intraday"]["options"], 15)
    build_intraday(copy, factors=["hf_skew"], mean=3)
    assert len(list(Path(f"{copy}.intraday").glob("daily/*"))) == 2 and before.items() <= {**results(copy), **before}.items()
    names = set(read_metadata(copy)["intraday"]["fields"])
    assert {"hf_skew_1d", "hf_skew", "hf_skew_orth"} == {name for name in names if name.startswith("hf_")}
    assert not list(copy.glob("features/*/hf_tail*")) and read_metadata(copy)["intraday"]["days_mean"] == 3
    check_files(copy)


# ---- interruptions ------------------------------------------------------------------------------------------------------------
def start(store: Path, pause: float, tmp_path: Path) -> subprocess.Popen:
    script = tmp_path / "slow_build.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    return subprocess.Popen([sys.executable, str(script), str(store), str(pause)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, env=environment)


def test_a_killed_run_goes_on_where_it_was(tmp_path, whole):
    store = build_store(tmp_path / "store")
    build_folder(tmp_path / "store.intraday")
    first = fingerprint(store)
    process = start(store, 0.05, tmp_path)
    assert [process.stdout.readline() for _ in range(4)] == ["done\n"] * 4
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    done = results(store)
    assert 4 <= len(done) < 30 and fingerprint(store) == first and not fields(store)
    build_intraday(store)
    assert done.items() <= results(store).items()
    assert fields(store) == fields(whole)


def test_the_same_days_by_two_processes_at_once(tmp_path, whole):
    store = build_store(tmp_path / "store")
    folder = build_folder(tmp_path / "store.intraday")
    process = start(store, 0.01, tmp_path)
    assert process.stdout.readline() == "done\n"
    work = intraday_days.DayWork(plan_days(store))
    for task in work.tasks(["daily"], list(work.days[TABLE])):
        work.compute(task)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 0, error
    assert not list(folder.glob("daily/*/date=*/.*")) and len(results(store)) == 30
    build_intraday(store)
    assert fields(store) == fields(whole)


def test_an_error_midway_keeps_the_store(copy, monkeypatch):
    before, first, calls = fields(copy), fingerprint(copy), []
    original = IntradayWriter.field

    def fail(self, *arguments):
        calls.append(1)
        if len(calls) > 30:
            raise OSError(28, "No space left on device")
        original(self, *arguments)

    monkeypatch.setattr(IntradayWriter, "field", fail)
    with pytest.raises(DataError, match="no space left on the device"):
        build_intraday(copy, mean=3)
    assert fields(copy) == before and fingerprint(copy) == first
    assert sorted(path.name for path in copy.parent.iterdir()) == ["store", "store.intraday"]
    check_files(copy)


def test_bars_that_cannot_be_are_named(tmp_path):
    store, folder = build_store(tmp_path / "store"), build_folder(tmp_path / "store.intraday", DAYS[:4])
    frame = bars(DAYS[1])
    write_day(folder, TABLE, np.datetime64(DAYS[1], "D"), pl.concat([frame, frame.head(1)]))
    with pytest.raises(DataError, match=rf"{DAYS[1].date()}: .*part.parquet cannot be used .*minute 15 stands twice"):
        build_intraday(store)
    assert len(results(store)) == 3


def test_a_damaged_day_is_named_and_the_others_are_done(tmp_path):
    store, folder = build_store(tmp_path / "store"), build_folder(tmp_path / "store.intraday", DAYS[:6])
    file = folder / TABLE / f"date={DAYS[2].date()}" / "part.parquet"
    whole_file = file.read_bytes()
    file.write_bytes(whole_file[:len(whole_file) // 2])
    with pytest.raises(DataError, match=rf"1 days cannot be computed; the others are done:\s+{DAYS[2].date()}: .*part.parquet") as error:
        build_intraday(store)
    assert "ingest the day again" in str(error.value) and len(results(store)) == 5 and not fields(store)
    file.write_bytes(whole_file)
    build_intraday(store)
    assert len(results(store)) == 6 and fields(store)


# ---- appends ------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def grown(tmp_path):
    """A store of 20 days with fields, then with ten more days of bars."""
    store = build_store(tmp_path / "store", DAYS[:20])
    build_folder(tmp_path / "store.intraday", DAYS[:20])
    build_intraday(store)
    return store


def new_tables() -> dict:
    tables = tiny_intraday.tables(DAYS[20:])
    return {name: tables[name] for name in ("bars", "index_bars")}


def test_an_append_keeps_the_fields_and_a_build_fills_them(grown, whole):
    before, first, until = fields(grown), fingerprint(grown), fingerprint(grown, DAYS[19])
    append(new_tables(), grown)
    after = fields(grown)
    assert after.keys() == before.keys() and fingerprint(grown) != first and fingerprint(grown, DAYS[19]) == until
    for name, old in before.items():
        new = after[name]
        assert new.startswith(old) and len(new) == len(old) + 40 and np.isnan(np.frombuffer(new[len(old):], "<f4")).all()
    check_files(grown)
    warnings = next(one for one in examine(grown).sections if one.title == "Intraday fields").warnings
    assert "they end on 2020-01-29, 10 days before the calendar" in warnings[0]["text"]
    build_folder(Path(f"{grown}.intraday"), DAYS[20:])
    build_intraday(grown)
    final = fields(grown)
    assert all(final[name].startswith(old) for name, old in before.items())
    assert final == fields(whole) and fingerprint(grown, DAYS[19]) == until


def test_an_append_refuses_fields_that_were_changed(grown):
    file = grown / "features" / CODES[0].lower() / "hf_skew.day.bin"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(DataError, match="was changed after it was published: fields of build-intraday"):
        check_files(grown)
    with pytest.raises(DataError, match="intraday fields of store .* were changed .*; nothing was appended"):
        append(new_tables(), grown)
    (grown / "features" / CODES[0].lower() / "hf_of_mine.day.bin").write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="not written by this package, first .*hf_of_mine"):
        append(new_tables(), grown)


# ---- what is refused ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("arguments, error, words", [
    ({"factors": ["hf_skw"]}, ConfigError, "unknown factor 'hf_skw'.*hf_skew"),
    ({"factors": ["hf_skew", "hf_push_up"]}, DataError, "hf_push_up needs the number of trades of each bar"),
    ({"options": {"nonsense": 1}}, ConfigError, "unknown option 'nonsense'"),
    ({"options": "nowhere.yaml"}, ConfigError, "options file nowhere.yaml cannot be read"),
    ({"options": [1]}, ConfigError, "name: value"),
    ({"options": {"bar_minutes": 5}}, ConfigError, "bar_minutes=5, but the table has bars of 15 minutes"),
    ({"factors": ["hf_push_up_proxy"]}, ConfigError, "proxy: true"),
    ({"blocks": [50]}, ConfigError, "blocks: 50 must be day, or minutes that divide"),
    ({"blocks": [10]}, ConfigError, "multiple of the bars' 15"),
    ({"blocks": ["week"]}, ConfigError, "'week'"),
    ({"table": "bars_1min"}, DataError, "no table 'bars_1min', it has"),
    ({"first": "2020-02-01", "last": "2020-01-05"}, ConfigError, "swap"),
    ({"first": "2021-01-01", "last": "2021-02-01"}, DataError, "no day in common"),
    ({"first": "soon", "factors": ["hf_skw"]}, ConfigError, "--from 'soon' is no day"),
    ({"last": "2020-13-01"}, ConfigError, "--to '2020-13-01' is no day"),
    ({"first": "2020-03-02"}, ConfigError, "bars_15min of intraday folder .* ends on 2020-02-12, before --from 2020-03-02"),
    ({"last": "2019-03-01"}, ConfigError, "begins on 2020-01-02, after --to 2019-03-01"),
    ({"mean": 0}, ConfigError, "days=0"),
    ({"workers": 0}, ConfigError, "workers=0"),
    ({"folder": "nowhere"}, DataError, "nowhere")])
def test_bad_arguments(whole, arguments, error, words):
    before = results(whole)
    with pytest.raises(error, match=words):
        build_intraday(whole, **arguments)
    assert results(whole) == before


def test_nothing_in_common(tmp_path, whole):
    for day in DAYS[:2]:
        write_day(tmp_path / "one", TABLE, np.datetime64(day, "D"), bars(day, ["SZ000001", "SZ000002"]))
    with pytest.raises(DataError, match=r"no stock in common: the intraday folder has \['SZ000001', 'SZ000002'\]"):
        build_intraday(whole, tmp_path / "one")
    build_folder(tmp_path / "two", pd.bdate_range("2019-01-07", periods=3))
    with pytest.raises(DataError, match="no day in common: table bars_15min .* runs from 2019-01-07 to 2019-01-09"):
        build_intraday(whole, tmp_path / "two")


def test_a_store_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"nothing(?!\.intraday)"):
        build_intraday(tmp_path / "nothing")


def test_a_store_of_somebody_else(copy):
    (copy / "qlib_ext_store.json").unlink()
    with pytest.raises(DataError, match="was not made by this version of qlib_ext"):
        build_intraday(copy)


def test_what_else_begins_with_these_letters_stays(copy):
    """A universe of the user's stays as it is; a field of that name stops the command."""
    universe = copy / "instruments" / "hi_tech.txt"
    universe.write_text((copy / "instruments" / "all.txt").read_text())
    build_intraday(copy, factors=["hf_skew"])
    assert universe.read_text() == (copy / "instruments" / "all.txt").read_text()
    mine = copy / "features" / CODES[0].lower() / "hf_of_mine.day.bin"
    mine.write_bytes((mine.parent / "close.day.bin").read_bytes())
    with pytest.raises(DataError, match=r"has the fields \['hf_of_mine'\], which build-intraday did not make"):
        build_intraday(copy, factors=["hf_skew"])
    assert mine.is_file()
    with pytest.raises(ConfigError, match="do not begin with hf_ or hi_"):
        ingest(tiny_intraday.tables(), copy.with_name("other"), index_names=["hi_div"])


@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_damaged_day_wherever_it_is(copy, place):
    for folder in (copy.with_name("store.intraday") / "daily").iterdir():
        shutil.rmtree(folder)
    days = DAYS[:7]
    (copy.with_name("store.intraday") / TABLE / f"date={days[place].date()}" / "part.parquet").write_bytes(b"xx")
    with pytest.raises(DataError, match="1 days cannot be computed; the others are done"):
        build_intraday(copy, first=days[0], last=days[-1], workers=1)
    assert len(results(copy)) == 6


def test_the_command_line(tmp_path, capsys):
    store = build_store(tmp_path / "store")
    build_folder(tmp_path / "minutes", DAYS[:8])
    (tmp_path / "options.yaml").write_text("{}\n")
    given = ["build-intraday", str(store), "--intraday", str(tmp_path / "minutes"), "--from", "2020-01-03", "--to", "2020-01-10",
             "--factors", "hf_skew", "--options", str(tmp_path / "options.yaml"), "--days-mean", "3", "--workers", "1", "--blocks", "60"]
    assert main(given) == 0
    assert capsys.readouterr().out.strip() == str(store)
    about = read_metadata(store)["intraday"]
    assert about["days"] == ["2020-01-03", "2020-01-10", 6] and about["days_mean"] == 3
    blocks = next((tmp_path / "minutes" / "blocks").glob("60min-*"))
    assert json.loads((blocks / "about.json").read_text())["bars"] == 4 and len(list(blocks.glob("date=*"))) == 6
    assert main(["build-intraday", str(store), "--intraday", str(tmp_path / "minutes"), "--factors", "hf_none"]) == 1
    assert "unknown factor 'hf_none'" in capsys.readouterr().err
