"""The disk cache behind the handlers: what it saves, what it adds, and that nothing stale comes out of it."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import qlib

from nasty_market import DAYS, PLAIN, build, same
from qlib_ext.data import array_loader
from qlib_ext.data.handler import Alpha158
from qlib_ext.store.append import append
from qlib_ext.store.ingest import ingest
from qlib_ext.store.schema import INDEX_NAMES, TABLES
from small_market import build_store, market, start_qlib

ROBUST = {"infer_processors": [{"class": "RobustZScoreNorm", "kwargs": {"fields_group": "feature"}}, {"class": "Fillna", "kwargs": {}}],
          "learn_processors": [], "fit_start_time": "2020-03-02", "fit_end_time": "2020-06-30"}


@pytest.fixture
def store(tmp_path) -> Path:
    start_qlib(build(tmp_path / "store"))
    return tmp_path / "store"


def load(instruments="some", end="2020-09-30", start="2020-02-03", **options) -> pd.DataFrame:
    return Alpha158(instruments, start, end, **{**PLAIN, **options})._infer


def test_a_second_load_computes_nothing_and_an_earlier_end_is_a_prefix(store, folder, computed):
    first = load()
    assert computed == [len(first)]
    same(load(), first)
    same(load(end="2020-07-15"), load(end="2020-07-15", cache=False))
    assert len(computed) == 2  # the one without the cache


def test_later_days_are_added(store, folder, computed):
    early = load(end="2020-06-30")
    late = load()
    assert computed == [len(early), len(late) - len(early)]
    same(late, load(cache=False))
    same(load(), late)
    same(load(end="2020-05-29"), late[:pd.Timestamp("2020-05-29")])
    assert len(computed) == 3


def shorten(store: Path, days: int) -> None:
    """The store as it was when its calendar had `days` days."""
    calendar = (store / "calendars" / "day.txt").read_text().splitlines()[:days]
    (store / "calendars" / "day.txt").write_text("\n".join(calendar) + "\n")
    for file in (store / "features").rglob("*.bin"):
        values = np.fromfile(file, "<f4")
        values[:max(days - int(values[0]), 0) + 1].tofile(file)
    for file in (store / "instruments").glob("*.txt"):
        rows = [line.split("\t") for line in file.read_text().splitlines()]
        file.write_text("".join(f"{code}\t{first}\t{min(last, calendar[-1])}\n" for code, first, last in rows if first <= calendar[-1]))


def test_a_store_that_grows_day_by_day(store, folder, computed, tmp_path):
    """Days are added to the store one by one: each load computes that day only, and ends where one computation of all days does."""
    whole = load(end=None, cache=False)
    computed.clear()
    grown = tmp_path / "grown"
    for days in (200, 201, 202, 215, 230):
        shutil.rmtree(grown, ignore_errors=True)
        shutil.copytree(store, grown)
        shorten(grown, days)
        start_qlib(grown)
        found = load(end=None)
        same(found[["feature"]], whole[["feature"]][:DAYS[days - 1]])
        assert found["label"][DAYS[days - 1]:].isna().all(axis=None)  # labels are never stored: they look ahead
    assert sum(computed) == len(whole) and len(computed) == 5


def test_an_append_keeps_what_was_computed(tmp_path, folder, computed):
    """Through `ingest` and `append`: new members, listings and suspensions included."""
    build_store(tmp_path)
    tables = {file.stem: pd.read_parquet(file) for file in (tmp_path / "tables").glob("*.parquet")}
    cut = pd.Timestamp("2016-09-30")

    def part(first, last):
        dates = {name: "announcement" if "announcement" in TABLES[name].dates else TABLES[name].dates[0] for name in tables}
        return {name: frame[(frame[dates[name]] > first) & (frame[dates[name]] <= last)].reset_index(drop=True)
                for name, frame in tables.items()}

    old, new = part(pd.Timestamp(0), cut), part(cut, pd.Timestamp("2100-01-01"))
    options = {"index_sizes": dict(zip(INDEX_NAMES, market().index_sizes))}
    place = ingest(old, tmp_path / "growing", **options)
    start_qlib(place)
    before = load("all", None, "2015-06-01")
    append({name: frame for name, frame in new.items() if len(frame)}, place)
    start_qlib(place)
    after = load("all", None, "2015-06-01")
    assert computed == [len(before), len(after) - len(before)] and len(after) > len(before)
    same(after, load("all", None, "2015-06-01", cache=False))


@pytest.mark.parametrize("change", ["old close", "membership", "other expressions", "other start", "other instruments", "formulas"])
def test_what_makes_a_new_computation(store, folder, computed, monkeypatch, change):
    load()
    options = {"other start": {"start": "2020-02-04"}, "other instruments": {"instruments": ["SH600000", "SH600001"]}}.get(change, {})
    if change == "old close":
        file = store / "features" / "sh600001" / "close.day.bin"
        values = np.fromfile(file, "<f4")
        values[10] *= 1.5  # before the first day asked for
        values.tofile(file)
    elif change == "membership":
        text = (store / "instruments" / "some.txt").read_text().splitlines()
        (store / "instruments" / "some.txt").write_text("\n".join(text[1:]) + "\n")
    elif change == "other expressions":
        monkeypatch.setattr(Alpha158, "get_feature_config", lambda self: (["$open/$close", "Mean($close,5)/$close"] * 6, list("abcdefghijkl")))
    elif change == "formulas":
        monkeypatch.setattr(array_loader, "_FORMULAS", "another version")
    start_qlib(store)
    found = load(**options)
    assert len(computed) == 2
    same(found, load(**options, cache=False))


def test_bars_after_the_stored_days_do_not_matter(store, folder, computed):
    load()
    for file in (store / "features").rglob("*.bin"):
        values = np.fromfile(file, "<f4")
        values[1 + max(200 - int(values[0]), 0):] = 12345
        values.tofile(file)
    start_qlib(store)
    load(end="2020-06-30")
    assert len(computed) == 1 and DAYS[200] > pd.Timestamp("2020-09-30")


def test_a_damaged_entry_is_computed_again(store, folder, computed, caplog):
    first = load()
    [values] = folder.rglob("values-*.f32")
    content = bytearray(values.read_bytes())
    content[len(content) // 2] ^= 4
    values.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        same(load(), first)
    assert len(computed) == 2 and "damaged" in caplog.text
    same(load(), first)
    assert len(computed) == 2


def test_processors_leave_the_stored_features_as_they_are(store, folder, computed):
    raw = load()
    processed = load(**ROBUST)
    same(load(**ROBUST), processed)
    same(load(**ROBUST, cache=False), processed)
    same(load(), raw)
    raw.iloc[:, 0] = 7.0  # a user writes into what was mapped
    assert not (load().iloc[:, 0] == 7.0).any()


def test_expressions_of_the_user_are_joined_and_not_stored(store, folder, computed):
    extra = {"MINE": "Std($close/$open, 7)", "TWO": "$change"}
    first, second = load(extra_fields=extra), load(extra_fields=extra)
    same(second, first)
    same(first, load(extra_fields=extra, cache=False))
    assert list(first["feature"].columns[-2:]) == ["MINE", "TWO"] and first[("feature", "MINE")].notna().mean() > 0.5
    stored = sum(file.stat().st_size for file in folder.rglob("values-*.f32"))
    assert stored == (len(first) + 1) * 158 * 4


@pytest.mark.parametrize("how", ["option", "environment"])
def test_switched_off(store, folder, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("QLIB_EXT_CACHE", "off")
    load(cache=how != "option")
    assert not folder.exists()


def test_a_folder_that_cannot_be_used_costs_a_warning(store, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLIB_EXT_CACHE", str(tmp_path / "file" / "cache"))
    with caplog.at_level(logging.WARNING):
        found = load()
    assert "QLIB_EXT_CACHE" in caplog.text
    same(found, load(cache=False))


def test_two_processes_at_once(store, folder, computed):
    script = ("import sys; from small_market import start_qlib; from qlib_ext.data.handler import Alpha158; start_qlib(sys.argv[1]);"
              "Alpha158('some', '2020-02-03', '2020-09-30', infer_processors=[], learn_processors=[])._infer.to_pickle(sys.argv[2])")
    outs = [folder.parent / f"out{k}" for k in range(2)]
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    running = [subprocess.Popen([sys.executable, "-c", script, str(store), str(out)], env=environment) for out in outs]
    assert [process.wait(120) for process in running] == [0, 0]
    same(pd.read_pickle(outs[0]), pd.read_pickle(outs[1]))
    same(load(), pd.read_pickle(outs[0]))
    assert not computed and len(list(folder.rglob("values-*.f32"))) == 1


FORKING = """
import sys
import pandas as pd, qlib
from qlib_ext.data.handler import Alpha158
if __name__ == "__main__":
    options = dict(instruments="some", start_time="2020-02-03", end_time="2020-09-30", infer_processors=[], learn_processors=[],
                   extra_fields={"MINE": "Std($close, 7)"})
    qlib.init(provider_uri=sys.argv[1], region="cn", kernels=2, expression_cache=None, dataset_cache=None, logging_level=30)
    first = Alpha158(**options)._infer
    pd.testing.assert_frame_equal(Alpha158(**options, cache=False)._infer, first, check_exact=True)
"""


def test_the_forking_workers_of_qlib_go_on_working(store, folder):
    """Our threads and compiled loops have run; Qlib then forks workers, one of which uses them too. In a process of its own: a fork is
    not safe beside the threads of whoever runs the tests."""
    environment = {**os.environ, "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", FORKING, str(store)], env=environment, check=True, timeout=120)


class Ahead(Alpha158):
    """A feature that looks ahead (Qlib allows it) beside one that does not."""

    def get_feature_config(self):
        return ["Mean($close,5)/$close", "Ref($close,-1)/$close"] * 6, list("abcdefghijkl")


def test_what_looks_ahead_is_not_stored(store, folder):
    Ahead("some", **PLAIN)
    assert not folder.exists()
