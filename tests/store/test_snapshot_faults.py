"""Snapshots on disk: what is read is what was written, whatever happens to the writer, the file or the names of factors."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.risk.snapshot import COUNTRY, INDUSTRY, RiskDay, RiskSnapshot, style_names
from qlib_ext.store import snapshots
from qlib_ext.store.snapshots import SnapshotStore, export_qlib

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"styles": ["size", "value"], "covariance": {"half_life": 90}}
NAMES = (COUNTRY, "size", "industry:bank", "value", "industry:steel")  # styles and industries mixed on purpose
OTHER_NAMES = ("industry:steel", COUNTRY, "industry:food", "beta", "size")  # another order, another industry, another style
DAYS = ["2024-02-28", "2024-02-29", "2024-03-01", "2024-03-04", "2024-04-01"]


def risk_day(day: str, names=NAMES, stocks: int = 12, seed: int = 0) -> RiskDay:
    """A day with unround values, stocks without an industry, residuals and a factor return that are NaN."""
    draw = np.random.default_rng([seed, int(np.datetime64(day, "D").astype(int))])
    codes = np.sort(draw.choice([f"SH6000{number:02}" for number in range(2 * stocks)], stocks, replace=False))
    exposure = draw.standard_normal((stocks, len(names)))
    industries = [k for k, name in enumerate(names) if name.startswith(INDUSTRY)]
    exposure[:, industries] = np.eye(len(industries) + 1)[np.arange(stocks) % (len(industries) + 1)][:, :len(industries)]
    if COUNTRY in names:
        exposure[:, names.index(COUNTRY)] = 1.0
    root = draw.standard_normal((len(names), len(names))) * 1e-2
    snapshot = RiskSnapshot(day, codes, names, exposure, root @ root.T, draw.uniform(1e-4, 1e-3, stocks))
    residual, returns = draw.standard_normal(stocks) * 0.02, draw.standard_normal(len(names)) * 0.01
    residual[::5], returns[-1] = np.nan, np.nan
    return RiskDay(snapshot, returns, residual, draw.uniform(), draw.uniform(size=stocks) > 0.3)


def content(day: RiskDay) -> list:
    """All of a day as it is stored, to the bit."""
    shot, single = day.snapshot, lambda values: values.astype(np.float32).astype(np.float64).tobytes()
    return [str(shot.date), shot.instruments.tolist(), shot.factors, single(shot.exposure), shot.factor_cov.tobytes(),
            single(shot.specific_var), day.factor_return.tobytes(), single(day.residual), day.estimation.tolist(),
            np.float64(day.r_squared).tobytes()]


def held(store: SnapshotStore) -> list:
    return [content(store.read_day(day)) for day in store.days]


def hidden(folder: Path) -> list:
    return sorted(file.name for file in folder.iterdir() if file.name.startswith(".") and file.name != ".lock")


@pytest.fixture(scope="module")
def days() -> list:
    """The last two with other factors than the first three: a month, March, with both."""
    return [risk_day(day, NAMES if place < 3 else OTHER_NAMES) for place, day in enumerate(DAYS)]


@pytest.fixture
def store(tmp_path, days) -> SnapshotStore:
    store = SnapshotStore(tmp_path / "snapshots")
    store.write(days, SETTINGS)
    return store


# ---- writing and reading -------------------------------------------------------------------------------------------------------
def test_what_was_written_comes_back_to_the_bit_of_float32(store, days):
    assert [file.name for file in store.files()] == ["2024-02.parquet", "2024-03.parquet", "2024-04.parquet"]
    assert store.days.dtype == "datetime64[D]" and store.days.astype(str).tolist() == DAYS
    assert store.settings == SETTINGS and store.damaged() == [] and (store.sound_days == store.days).all()
    assert held(store) == [content(day) for day in days]
    shot = store.read(pd.Timestamp("2024-03-04 15:00"))
    assert shot.factors == OTHER_NAMES and str(shot.date) == "2024-03-04"
    assert (shot.exposure != days[3].snapshot.exposure).any()  # float64 in, its float32 rounding out
    np.testing.assert_allclose(shot.exposure, days[3].snapshot.exposure, rtol=1e-7)


@pytest.mark.parametrize("names", [(COUNTRY,), ("beta", "size"), (COUNTRY, "industry:bank"), ("industry:bank", "beta")])
def test_factors_of_some_kinds_only(tmp_path, names):
    store, day = SnapshotStore(tmp_path), risk_day("2024-03-01", names)
    day = RiskDay(day.snapshot, day.factor_return, day.residual, np.nan, day.estimation)
    store.write([day], {})
    assert held(store) == [content(day)]
    assert store.exposures(["2024-03-01"], ["SH600000"])[1] == style_names(names)


def test_days_in_any_order_and_in_several_runs(tmp_path, days):
    store, later = SnapshotStore(tmp_path), risk_day(DAYS[2], seed=1)
    store.write([days[k] for k in (4, 2, 0, 3)], SETTINGS)
    store.write([days[1], later], SETTINGS)  # February gains a day, March has one replaced
    assert held(store) == [content(day) for day in [days[0], days[1], later, days[3], days[4]]]
    assert content(later) != content(days[2])


def test_a_month_is_written_when_a_day_of_another_one_comes(tmp_path, days):
    store = SnapshotStore(tmp_path)

    def records():
        yield from days[:3]
        assert [file.stem for file in store.files()] == ["2024-02"]
        yield from days[3:]
        assert [file.stem for file in store.files()] == ["2024-02", "2024-03"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(records(), SETTINGS)
    assert held(store) == [content(day) for day in days[:4]] and hidden(tmp_path) == []


def test_settings_of_a_folder_are_one(store, days):
    before = held(store)
    store.write([], {"covariance": {"half_life": 90}, "styles": ("size", "value")})  # the same in JSON
    with pytest.raises(ConfigError, match="other covariance: .*: 90.* instead of .*: 60.*another folder, or remove this one"):
        store.write(days, {**SETTINGS, "covariance": {"half_life": 60}})
    with pytest.raises(ConfigError, match="other universe"):
        store.write(days, {**SETTINGS, "universe": None})
    assert held(store) == before


def test_no_settings_are_settings_too(tmp_path, days):
    store = SnapshotStore(tmp_path)
    store.write(days[:1], {})
    with pytest.raises(ConfigError, match="other cap"):
        store.write(days[1:], {"cap": "float_cap"})


@pytest.mark.parametrize("column, row, value", [(0, 3, 0.5), (2, 1, 0.5), (2, slice(None), 1.0), (4, 0, -1.0)],
                         ids=["country", "half an industry", "two industries", "negative"])
def test_exposures_the_layout_cannot_hold_are_refused(store, column, row, value):
    day = risk_day("2024-03-05")
    day.snapshot.exposure[row, column] = value
    before = held(store)
    with pytest.raises(DataError, match="risk of 2024-03-05: a stock is in one industry or none"):
        store.write([day], SETTINGS)
    assert held(store) == before


# ---- interruptions -------------------------------------------------------------------------------------------------------------
def test_a_failure_before_the_rename_leaves_the_old_file(store, days, monkeypatch):
    before = held(store)

    def refuse(source, goal):
        assert Path(source).parent == store.folder and Path(source).name.startswith(f".{os.getpid()}.")
        raise OSError("no rename today")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(OSError, match="no rename today"):
            store.write([risk_day(DAYS[2], seed=1)], SETTINGS)
    assert held(store) == before and hidden(store.folder) == []


WRITER = f"""
import os, signal, sys
sys.path.insert(0, os.path.join("tests", "store"))
from {Path(__file__).stem} import SETTINGS, SnapshotStore, risk_day
folder, what, *days = sys.argv[1:]
if what == "killed":
    os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
def records():
    for day in days:
        print(day, flush=True)
        if what == "slow":
            sys.stdin.readline()
        yield risk_day(day)
SnapshotStore(folder).write(records(), SETTINGS)
"""


def start_writer(folder: Path, what: str, *days: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), what, *days], cwd=ROOT, text=True, stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE)  # fmt: skip


def test_what_a_killed_writer_leaves_is_no_data_and_goes_with_the_next_write(store, days):
    before = held(store)
    writer = start_writer(store.folder, "killed", "2024-04-02")
    writer.communicate(timeout=60)
    assert writer.returncode == -signal.SIGKILL and len(hidden(store.folder)) == 1
    assert held(store) == before and store.damaged() == []
    store.write([risk_day("2024-04-03")], SETTINGS)
    assert hidden(store.folder) == [] and held(store) == [*before, content(risk_day("2024-04-03"))]


def test_a_second_writer_waits_for_the_first(tmp_path):
    first = start_writer(tmp_path, "slow", "2024-03-01", "2024-03-04")
    second = None
    try:
        assert first.stdout.readline() == "2024-03-01\n"  # it has the folder, and waits before its first day
        second = start_writer(tmp_path, "quick", "2024-03-05", "2024-03-06")
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(timeout=3)
        first.communicate("\n\n", timeout=60)
        assert second.communicate(timeout=60)[0] == "2024-03-05\n2024-03-06\n"
        assert (first.returncode, second.returncode) == (0, 0)
    finally:
        for writer in filter(None, (first, second)):
            writer.kill()
    names = ["2024-03-01", "2024-03-04", "2024-03-05", "2024-03-06"]
    assert held(SnapshotStore(tmp_path)) == [content(risk_day(day)) for day in names]


# ---- damage --------------------------------------------------------------------------------------------------------------------
def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-200])


def rewrite(file: Path, table=None, **about) -> None:
    table = pq.read_table(file) if table is None else table
    known = {**json.loads(table.schema.metadata[snapshots.KEY]), **about}
    pq.write_table(table.replace_schema_metadata({snapshots.KEY: json.dumps(known).encode()}), file)


HEADS = {"cut short": cut, "empty": lambda file: file.write_bytes(b""),
         "no Parquet": lambda file: file.write_text("date,size\n" * 99),
         "foreign Parquet": lambda file: pd.DataFrame({"date": [1]}).to_parquet(file),
         "another format": lambda file: rewrite(file, format=2), "no rows": lambda file: rewrite(file, pq.read_table(file)[:0]),
         "another month": lambda file: shutil.copy(file.with_name("2024-02.parquet"), file)}


def damaged_values(file: Path) -> None:
    data = bytearray(file.read_bytes())
    place = pq.ParquetFile(file).metadata.row_group(0).column(snapshots._SCHEMA.names.index("specific_var")).data_page_offset
    data[place + 60] ^= 1
    file.write_bytes(data)


BODIES = {"a flipped bit": damaged_values,
          "no residuals": lambda file: rewrite(file, pq.read_table(file).drop_columns(["residual"])),
          "too few names": lambda file: rewrite(file, codes=["SH600000"]),
          "values of another day": lambda file: rewrite(file, (table := pq.read_table(file)).set_column(
              table.column_names.index("exposure"), "exposure", table["exposure"].take([1, 0])))}


@pytest.mark.parametrize("damage", [*HEADS, *BODIES])
def test_a_damaged_file_is_named_and_made_again(store, days, damage, caplog):
    if damage == "values of another day":  # needs days of two lengths
        store.write([risk_day(DAYS[2], stocks=9)], SETTINGS)
    expected = [content(store.read_day(day)) for day in DAYS]
    file = store.folder / "2024-03.parquet"
    {**HEADS, **BODIES}[damage](file)
    words = r"2024-03\.parquet is damaged .*`python -m qlib_ext\.risk build` makes it again"
    with pytest.raises(DataError, match=words):
        store.read("2024-03-01")
    if damage in HEADS:
        with pytest.raises(DataError, match=words):
            store.days
    assert store.damaged() == [file] and store.sound_days.astype(str).tolist() == ["2024-02-28", "2024-02-29", "2024-04-01"]
    assert content(store.read_day("2024-04-01")) == expected[-1] and store.settings == SETTINGS  # the others still serve
    repaired = [risk_day(DAYS[2], stocks=9) if damage == "values of another day" else days[2], days[3]]
    with caplog.at_level(logging.WARNING, logger="qlib_ext.store.snapshots"):
        store.write(repaired, SETTINGS)
    assert "2024-03.parquet is damaged" in caplog.text
    assert store.damaged() == [] and held(store) == expected


def test_no_flipped_bit_gives_other_values(store):
    file = store.folder / "2024-03.parquet"
    whole, expected, caught = file.read_bytes(), content(store.read_day("2024-03-01")), 0
    for place in range(4, len(whole), 37):
        data = bytearray(whole)
        data[place] ^= 16
        file.write_bytes(data)
        try:
            assert content(store.read_day("2024-03-01")) == expected, place
        except DataError:
            caught += 1
            assert store.damaged() == [file], place
    assert caught > 30


def test_absent_days_are_named_with_what_there_is(store, tmp_path):
    for day in ("2024-03-02", "2023-01-01"):
        with pytest.raises(DataError, match=f"{day}.*5 days from 2024-02-28 to 2024-04-01.*python -m qlib_ext.risk build"):
            store.read(day)
    nothing = SnapshotStore(tmp_path / "nothing")
    assert len(nothing.days) == 0 and nothing.days.dtype == "datetime64[D]" and nothing.settings == {} and nothing.damaged() == []
    with pytest.raises(DataError, match="it has none"):
        nothing.read("2024-03-01")
    assert nothing.exposures(DAYS, ["SH600001"], ["size"])[0].shape == (5, 1, 1) and nothing.factor_returns().empty
    assert not nothing.folder.exists()


# ---- many days at once ---------------------------------------------------------------------------------------------------------
CODES = ["SZ000001", *(f"SH6000{number:02}" for number in (23, 4, 17, 0, 8, 11))]  # one unknown, not in order


def slow_exposures(days: list, wanted: list, styles: list) -> np.ndarray:
    """Stock by stock, from what was written."""
    known, out = {str(day.snapshot.date): day.snapshot for day in days}, np.full((len(wanted), len(CODES), len(styles)), np.nan)
    for t, day in enumerate(wanted):
        for n, code in enumerate(CODES):
            for k, style in enumerate(styles):
                shot = known.get(day)
                if shot is not None and code in shot.instruments.tolist() and style in shot.factors:
                    out[t, n, k] = shot.exposure[shot.instruments.tolist().index(code), shot.factors.index(style)]
    return out.astype(np.float32)


@pytest.mark.parametrize("wanted", [DAYS, ["2024-04-01", "2024-03-02", "2024-02-28", "2031-01-01"]])
@pytest.mark.parametrize("styles", [None, ["beta", "never", "size"], ["value"]])
def test_exposures_are_those_of_a_slow_loop(store, days, wanted, styles):
    got, names = store.exposures(wanted, CODES, styles)
    assert names == (["size", "value", "beta"] if styles is None else styles) and got.dtype == np.float32
    expected = slow_exposures(days, wanted, names)
    assert np.array_equal(got, expected, equal_nan=True) and np.isfinite(got).any() and np.isnan(got[:, 0]).all()


def test_styles_by_default_are_those_of_the_days(store):
    assert store.exposures(["2024-03-01"], CODES)[1] == ["size", "value"]  # 2024-03-04, in the same file, has beta too
    assert store.exposures(["2024-03-04"], CODES)[1] == ["beta", "size"]


def test_residuals_are_those_of_a_slow_loop(store, days):
    wanted = ["2024-03-04", "2024-03-02", "2024-02-29"]
    got, known = store.residuals(wanted, CODES), {str(day.snapshot.date): day for day in days}
    parts = {day: pd.Series(known[day].residual, known[day].snapshot.instruments) for day in (wanted[0], wanted[2])}
    expected = pd.DataFrame(parts).reindex(index=CODES, columns=wanted).T.to_numpy(np.float32)
    assert got.dtype == np.float32 and np.array_equal(got, expected, equal_nan=True) and np.isfinite(got).any()


@pytest.mark.parametrize("read", [lambda store: store.exposures(DAYS, ["SH600001"] * 2),
                                  lambda store: store.residuals(DAYS, CODES * 2),
                                  lambda store: store.exposures(DAYS, CODES, ["size", "size"])])
def test_a_name_given_twice_is_refused(store, read):
    with pytest.raises(DataError, match="named twice"):
        read(store)


def test_factor_returns_are_those_of_pandas(store, days):
    expected = pd.DataFrame({day.snapshot.date: pd.Series(day.factor_return, day.snapshot.factors) for day in days}).T
    got = store.factor_returns()
    assert got.columns.tolist() == [*NAMES, "industry:food", "beta"] and got.isna().any(axis=None)
    np.testing.assert_array_equal(got.index.to_numpy().astype("datetime64[D]").astype(str), DAYS)
    np.testing.assert_array_equal(got.to_numpy(), expected[got.columns].to_numpy(np.float64))
    np.testing.assert_array_equal(store.factor_returns(until="2024-03-01").to_numpy(), got.to_numpy()[:3, :5])


# ---- Qlib's strategy -----------------------------------------------------------------------------------------------------------
def test_qlibs_strategy_reads_the_exported_folders(store, tmp_path, monkeypatch):
    import cvxpy
    from qlib.contrib.strategy.signal_strategy import EnhancedIndexingStrategy
    out = tmp_path / "qlib"
    assert export_qlib(store, out, start="2024-02-29", end="2024-03-31") == 3
    assert sorted(path.name for path in out.iterdir()) == ["20240229", "20240301", "20240304"]
    assert export_qlib(store, out, end="2024-03-01") == 3  # folders that are there are replaced
    strategy = EnhancedIndexingStrategy(riskmodel_root=str(out), signal=pd.Series(dtype=float), optimizer_kwargs={"delta": 2.0})
    for day in ("2024-02-28", "2024-03-04"):
        exposure, factor_cov, risk, universe, blacklist = strategy.get_risk_data(pd.Timestamp(day))
        shot, (n, k) = store.read(day), exposure.shape
        assert universe == shot.instruments.tolist() and blacklist == [] and factor_cov.shape == (k, k) and risk.shape == (n,)
        covariance = exposure @ factor_cov @ exposure.T + np.diag(risk**2)
        np.testing.assert_allclose(covariance, shot.covariance() * 1e4, rtol=1e-12, atol=1e-12)
    assert strategy.get_risk_data(pd.Timestamp("2024-04-01")) is None
    monkeypatch.setattr(cvxpy, "ECOS", cvxpy.CLARABEL)  # what Qlib names, cvxpy no longer ships
    even = np.full(n, 1 / n)
    weight = strategy.optimizer(r=np.arange(n, dtype=float), F=exposure, cov_b=factor_cov, var_u=risk**2, w0=even, wb=even)
    assert weight.shape == (n,) and abs(weight.sum() - 1) < 1e-9 and np.abs(weight - even).max() > 1e-3


def test_the_export_in_fractions_and_its_failures(store, tmp_path, monkeypatch):
    out = tmp_path / "qlib"
    export_qlib(store, out, start="2024-04-01", scale_return=False)
    exposure, factor_cov, risk = (pd.read_pickle(out / "20240401" / f"{name}.pkl")
                                  for name in ("factor_exp", "factor_cov", "specific_risk"))  # fmt: skip
    covariance = exposure @ factor_cov @ exposure.T + np.diag(risk**2)
    np.testing.assert_allclose(covariance, store.read("2024-04-01").covariance(), rtol=1e-12, atol=1e-16)
    assert exposure.columns.tolist() == factor_cov.index.tolist() == list(OTHER_NAMES)
    with pytest.raises(DataError, match="no snapshots from 2025-01-01 to None.*5 days from 2024-02-28"):
        export_qlib(store, out, start="2025-01-01")
    file = out / "20240401" / "specific_risk.pkl"
    before = file.read_bytes()
    monkeypatch.setattr(pd.Series, "to_pickle", lambda *a: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_qlib(store, out, start="2024-04-01")
    assert [path.name for path in out.iterdir()] == ["20240401"] and file.read_bytes() == before
