"""Snapshots on disk: round trip, months whole or not at all, damage, and the folders of Qlib's own strategy."""
import json
import multiprocessing
import os

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from qlib.contrib.strategy import EnhancedIndexingStrategy

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.risk.snapshot import COUNTRY, RiskDay, RiskSnapshot
from qlib_ext.store.snapshots import KEY, SnapshotStore, export_qlib

SETTINGS = {"cap": "float_cap", "styles": ["size", "beta"]}


def risk_day(day: str, codes=("SH600000", "SH600001", "SZ000001"), factors=(COUNTRY, "industry:10", "industry:20", "size", "beta"),
             seed=None) -> RiskDay:
    draw = np.random.default_rng(abs(hash(day)) % 2**32 if seed is None else seed)
    n, k, styles = len(codes), len(factors), sum(not name.startswith(("industry", COUNTRY)) for name in factors)
    exposure = np.zeros((n, k))
    exposure[:, 0] = 1
    exposure[np.arange(n - 1), 1 + draw.integers(0, k - 1 - styles, n - 1)] = 1        # the last stock is in no industry
    exposure[:, k - styles:] = draw.standard_normal((n, styles)).astype(np.float32)
    root = draw.standard_normal((k, k)) / 100
    shot = RiskSnapshot(np.datetime64(day), np.array(codes), factors, exposure, root @ root.T, draw.uniform(1e-4, 9e-4, n).astype(np.float32))
    residual = draw.normal(0, 0.02, n).astype(np.float32)
    residual[0] = np.nan
    returns = draw.normal(0, 0.01, k)
    returns[1] = np.nan
    return RiskDay(shot, returns, residual, 0.3, draw.random(n) < 0.7)


DAYS = ["2024-02-27", "2024-02-28", "2024-03-01", "2024-03-04", "2024-04-01"]


@pytest.fixture
def store(tmp_path):
    made = SnapshotStore(tmp_path / "risk")
    made.write(map(risk_day, DAYS), SETTINGS)
    return made


def same(a: RiskDay, b: RiskDay) -> bool:
    left, right = a.snapshot, b.snapshot
    parts = [(getattr(left, name), getattr(right, name)) for name in ("exposure", "factor_cov", "specific_var")]
    parts += [(getattr(a, name), getattr(b, name)) for name in ("factor_return", "residual", "estimation")]
    return (left.date == right.date and left.factors == right.factors and (left.instruments == right.instruments).all()
            and all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in parts) and a.r_squared == b.r_squared)


def test_what_is_written_is_read(store):
    assert [file.name for file in store.files()] == ["2024-02.parquet", "2024-03.parquet", "2024-04.parquet"]
    assert store.days.astype(str).tolist() == DAYS and store.settings == SETTINGS and store.damaged() == []
    for day in DAYS:
        assert same(store.read_day(day), risk_day(day))
    assert store.read(pd.Timestamp("2024-03-01")).date == np.datetime64("2024-03-01")
    assert not [name for name in os.listdir(store.folder) if name.startswith(".") and name != ".lock"]


def test_days_are_added_and_replaced_in_any_order(store):
    store.write([risk_day("2024-03-05"), risk_day("2024-03-01", seed=99), risk_day("2024-02-29")], SETTINGS)
    assert store.days.astype(str).tolist() == sorted([*DAYS, "2024-03-05", "2024-02-29"])
    assert same(store.read_day("2024-03-01"), risk_day("2024-03-01", seed=99)) and same(store.read_day("2024-03-04"), risk_day("2024-03-04"))


def test_days_that_are_not_there_are_named(store, tmp_path):
    for day in ("2024-03-02", "2025-01-01"):
        with pytest.raises(DataError, match=f"no risk snapshot of {day}.*5 days from 2024-02-27 to 2024-04-01.*qlib_ext.risk build"):
            store.read(day)
    empty = SnapshotStore(tmp_path / "none")
    assert len(empty.days) == 0 and empty.settings == {} and not (tmp_path / "none").exists()
    with pytest.raises(DataError, match="it has none"):
        empty.read("2024-03-01")


def test_exposures_returns_and_residuals_of_many_days(store):
    store.write([risk_day("2024-05-06", codes=("SH600001", "SZ300001"), factors=(COUNTRY, "industry:20", "beta", "value"))], SETTINGS)
    days = ["2024-05-06", "2024-03-01", "2024-03-03"]
    codes = ["SZ000001", "SH600001", "SH999999"]
    values, names = store.exposures(days, codes)
    assert values.dtype == np.float32 and values.shape == (3, 3, 3) and names == ["size", "beta", "value"]
    first, second = store.read(days[0]), store.read(days[1])
    assert values[0, 1, 1] == np.float32(first.exposure[0, 2]) and values[0, 1, 2] == np.float32(first.exposure[0, 3])
    assert np.isnan(values[0, 1, 0]) and np.isnan(values[0, 0]).all()                     # no size that day; no such stock that day
    np.testing.assert_array_equal(values[1, :2, :2], second.exposure[[2, 1]][:, 3:].astype(np.float32))
    assert np.isnan(values[1, :, 2]).all() and np.isnan(values[2]).all() and np.isnan(values[:, 2]).all()
    ordered, names = store.exposures(days, codes, ["beta", "size"])
    np.testing.assert_array_equal(ordered, values[:, :, [1, 0]])
    np.testing.assert_array_equal(store.residuals(days, codes)[1], store.read_day(days[1]).residual[[2, 1]].tolist() + [np.nan])
    returns = store.factor_returns()
    assert returns.index.astype(str).tolist() == [*DAYS, "2024-05-06"] and set(returns) == {COUNTRY, "industry:10", "industry:20", "size",
                                                                                           "beta", "value"}
    np.testing.assert_array_equal(returns.iloc[-1][[COUNTRY, "industry:20", "beta", "value"]], store.read_day(days[0]).factor_return)
    assert returns.iloc[0].isna().sum() == 2 and store.factor_returns(until="2024-03-01").index[-1] == np.datetime64("2024-03-01")


@pytest.mark.parametrize("damage", ["cut", "text", "format", "foreign"])
def test_a_damaged_file_is_named_and_replaced(store, damage):
    last = store.files()[-1]
    if damage == "cut":
        last.write_bytes(last.read_bytes()[:-100])
    elif damage == "text":
        last.write_text("nothing")
    else:
        table = pq.read_table(last)
        about = {**json.loads(table.schema.metadata[KEY]), "format": 99}
        pq.write_table(table.replace_schema_metadata({KEY: json.dumps(about)} if damage == "format" else {}), last)
    assert store.damaged() == [last] and store.sound_days.astype(str).tolist() == DAYS[:-1]
    for read in (lambda: store.days, lambda: store.read("2024-04-01"), lambda: store.exposures(DAYS, ["SH600000"])):
        with pytest.raises(DataError, match="2024-04.parquet is damaged.*qlib_ext.risk build"):
            read()
    store.write([risk_day("2024-04-01")], SETTINGS)
    assert store.damaged() == [] and same(store.read_day("2024-04-01"), risk_day("2024-04-01"))


def test_a_kill_before_the_exchange_leaves_the_old_file(store, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            store.write([risk_day("2024-04-02")], SETTINGS)
    assert store.days.astype(str).tolist() == DAYS
    left = store.folder / ".123.2024-04.parquet"                                          # of a process that was killed
    left.write_bytes(b"half")
    assert store.days.astype(str).tolist() == DAYS
    store.write([risk_day("2024-04-02")], SETTINGS)
    assert not left.exists() and len(store.days) == 6


def test_an_interrupted_write_keeps_the_months_that_were_finished(store):
    def days():
        yield risk_day("2024-05-06")
        yield risk_day("2024-05-07")
        yield risk_day("2024-06-03")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        store.write(days(), SETTINGS)
    assert store.days.astype(str).tolist() == [*DAYS, "2024-05-06", "2024-05-07"]


def test_other_settings_are_refused(store):
    with pytest.raises(ConfigError, match="other cap.*float_cap.*total_cap.*--overwrite"):
        store.write([risk_day("2024-04-02")], {**SETTINGS, "cap": "total_cap"})
    assert len(store.days) == 5


@pytest.mark.parametrize("wrong", ["half", "two", "country"])
def test_exposures_of_another_kind_are_refused(store, wrong):
    day = risk_day("2024-04-02")
    exposure = day.snapshot.exposure.copy()
    exposure[0, {"half": 1, "two": slice(1, 3), "country": 0}[wrong]] = {"half": 0.5, "two": 1, "country": 2}[wrong]
    shot = RiskSnapshot(day.snapshot.date, day.snapshot.instruments, day.snapshot.factors, exposure, day.snapshot.factor_cov,
                        day.snapshot.specific_var)
    with pytest.raises(DataError, match="one industry or none"):
        store.write([RiskDay(shot, day.factor_return, day.residual, 0.1, day.estimation)], SETTINGS)


def _writer(folder, days):
    SnapshotStore(folder).write(map(risk_day, days), SETTINGS)


def test_two_writers_do_not_mix(tmp_path):
    days = [f"2024-05-{day:02d}" for day in range(1, 29)]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_writer, args=(tmp_path / "risk", days[part::2])) for part in (0, 1)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
        assert worker.exitcode == 0
    assert SnapshotStore(tmp_path / "risk").days.astype(str).tolist() == days


def test_qlibs_own_strategy_reads_the_folders(store, tmp_path):
    assert export_qlib(store, tmp_path / "qlib", start="2024-03-01") == 3
    assert sorted(os.listdir(tmp_path / "qlib")) == ["20240301", "20240304", "20240401"]
    strategy = EnhancedIndexingStrategy.__new__(EnhancedIndexingStrategy)
    strategy.riskmodel_root, strategy._riskdata_cache = str(tmp_path / "qlib"), {}
    for name, file in {"factor_exp": "factor_exp.pkl", "factor_cov": "factor_cov.pkl", "specific_risk": "specific_risk.pkl",
                       "blacklist": "blacklist.pkl"}.items():
        setattr(strategy, f"{name}_path", file)
    exposure, cov_b, risk, universe, blacklist = strategy.get_risk_data(pd.Timestamp("2024-03-04"))
    shot = store.read("2024-03-04")
    assert universe == shot.instruments.tolist() and blacklist == []
    np.testing.assert_allclose(exposure @ cov_b @ exposure.T + np.diag(risk**2), shot.covariance() * 1e4, rtol=1e-9)
    export_qlib(store, tmp_path / "qlib", end="2024-02-27", scale_return=False)
    one = pd.read_pickle(tmp_path / "qlib" / "20240227" / "specific_risk.pkl")
    np.testing.assert_allclose(one**2, store.read("2024-02-27").specific_var)
    with pytest.raises(DataError, match="no snapshots from 2030"):
        export_qlib(store, tmp_path / "qlib", start="2030-01-01")
    assert not [name for name in os.listdir(tmp_path / "qlib") if name.startswith(".")]
