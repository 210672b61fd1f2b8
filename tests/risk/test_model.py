"""The risk model on a small store: building, resuming, what is refused, and where Qlib takes it."""
import shutil

import numpy as np
import pandas as pd
import pytest
import small_market
from qlib.contrib.model.gbdt import LGBModel
from qlib.data import D

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.risk import model as risk_model
from qlib_ext.risk.__main__ import main
from qlib_ext.risk.descriptor import STYLES
from qlib_ext.risk.market import MarketReader
from qlib_ext.risk.model import FactorRiskModel, RiskOptions, default_folder, load_styles, prepare_snapshots, write_exposures
from qlib_ext.risk.records import SnapshotRecord
from qlib_ext.risk.snapshot import style_names
from qlib_ext.store.snapshots import SnapshotStore

QUIET = {"progress": False}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = small_market.build_store(tmp_path_factory.mktemp("market"))
    small_market.start_qlib(path)
    return path


@pytest.fixture(scope="module")
def built(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("risk") / "snapshots"
    return prepare_snapshots(folder, **QUIET)


def copied(built, tmp_path) -> SnapshotStore:
    shutil.copytree(built.folder, tmp_path / "copy")
    return SnapshotStore(tmp_path / "copy")


def content(store: SnapshotStore) -> dict:
    """Everything of every day, to the bit."""
    found = {}
    for day in store.days:
        one = store.read_day(day)
        shot = one.snapshot
        found[str(day)] = [shot.factors, tuple(shot.instruments), *(part.tobytes() for part in (
            shot.exposure, shot.factor_cov, shot.specific_var, one.factor_return, one.residual, one.estimation)), one.r_squared]
    return found


def test_every_day_from_the_first_with_a_history(store, built):
    calendar = np.asarray(D.calendar(freq="day"), "datetime64[ns]").astype("datetime64[D]")
    assert len(built.days) == len(calendar) - 42 and built.days[-1] == calendar[-1]
    shot = built.read(calendar[-1])
    assert style_names(shot.factors) == list(STYLES)
    assert built.settings["styles"] == list(STYLES) and built.settings["cap"] == "total_cap"
    assert len(shot.instruments) > 70 and (np.sqrt(252 * np.diag(shot.factor_cov)) < 1).all()
    assert 0.1 < np.sqrt(252 * np.median(shot.specific_var)) < 0.8


@pytest.mark.parametrize("lost", [["2016-12"], ["2016-09", "2016-10", "2016-11", "2016-12"], ["2016-05"]])
def test_missing_months_come_back_to_the_bit(store, built, tmp_path, lost, monkeypatch):
    part = copied(built, tmp_path)
    for month in lost:
        (part.folder / f"{month}.parquet").unlink()
    written = []
    monkeypatch.setattr(SnapshotStore, "_write_month", lambda self, file, days, settings, real=SnapshotStore._write_month: (
        written.append(file.stem), real(self, file, days, settings)))
    again = prepare_snapshots(part.folder, **QUIET)
    assert written == lost                                                              # nothing else was written
    assert content(again) == content(built)


def test_a_truncated_last_file_is_named_and_made_again(store, built, tmp_path):
    part = copied(built, tmp_path)
    last = part.files()[-1]
    last.write_bytes(last.read_bytes()[:-200])
    with pytest.raises(DataError, match=f"{last.name} is damaged.*qlib_ext.risk build"):
        part.read(built.days[-1])
    assert content(prepare_snapshots(part.folder, **QUIET)) == content(built)


def test_an_interrupted_build_keeps_its_months_and_goes_on(store, built, tmp_path, monkeypatch):
    folder, real = tmp_path / "new", SnapshotStore._write_month

    def stop(self, file, days, settings):
        if file.stem == "2016-03":
            raise KeyboardInterrupt
        real(self, file, days, settings)

    monkeypatch.setattr(SnapshotStore, "_write_month", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_snapshots(folder, **QUIET)
    assert SnapshotStore(folder).files()[-1].stem == "2016-02"
    monkeypatch.setattr(SnapshotStore, "_write_month", real)
    assert content(prepare_snapshots(folder, **QUIET)) == content(built)


def test_work_in_pieces_is_the_same_to_the_bit(store, built, tmp_path, monkeypatch):
    monkeypatch.setattr(risk_model, "CELLS", 1)
    monkeypatch.setattr(risk_model, "LEAST_DAYS", 97)
    assert content(prepare_snapshots(tmp_path / "pieces", **QUIET)) == content(built)


def test_a_complete_folder_is_read_not_built(store, built, monkeypatch):
    monkeypatch.setattr(risk_model, "MarketReader", lambda *a: pytest.fail("read again"))
    assert prepare_snapshots(built.folder, **QUIET).folder == built.folder


def test_other_settings_and_another_past_are_refused(store, built, tmp_path):
    part = copied(built, tmp_path)
    with pytest.raises(ConfigError, match="other cap"):
        prepare_snapshots(part.folder, RiskOptions(cap="float_cap"), **QUIET)
    made_of = part.folder / risk_model.MADE_OF
    made_of.write_text(made_of.read_text().replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(DataError, match="another past.*overwrite"):
        prepare_snapshots(part.folder, **QUIET)
    (part.folder / "notes.txt").write_text("mine")
    made = prepare_snapshots(part.folder, RiskOptions(cap="float_cap"), overwrite=True, **QUIET)
    assert made.settings["cap"] == "float_cap" and len(made.days) == len(built.days)
    assert (part.folder / "notes.txt").read_text() == "mine"                             # nothing but snapshots is removed


def test_the_default_folder_is_made_anew_where_the_past_has_changed(store, built, tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path))
    folder = default_folder(RiskOptions().settings())
    shutil.copytree(built.folder, folder)
    said = []
    monkeypatch.setattr(risk_model.logger, "warning", said.append)
    assert prepare_snapshots(**QUIET).folder == folder and not said                       # the same past: read
    made_of = folder / risk_model.MADE_OF
    for change in (lambda: made_of.write_text("{}"), lambda: made_of.unlink()):
        change()
        SnapshotStore(folder).files()[0].unlink()
        assert content(prepare_snapshots(**QUIET)) == content(built)
        assert "another past" in said.pop() and not said


@pytest.mark.parametrize("options, error, words", [
    ({"styles": ["size", "vaule"]}, ConfigError, "vaule"), ({"cap": "free_float"}, ConfigError, "free_float"),
    ({"styles": ["size", "sue"]}, DataError, "sue"), ({"universe": "csi2000"}, ConfigError, "csi2000")])
def test_options_that_cannot_work_are_named(store, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        prepare_snapshots(tmp_path / "x", RiskOptions(**options), **QUIET)
    assert not (tmp_path / "x").exists() or not list((tmp_path / "x").glob("*.parquet"))
    for wrong in ({"covariance": {"half_life": 3}}, {"covariance": {"volatility_half_life": -1}}):
        with pytest.raises(ConfigError, match="half_life"):
            RiskOptions(**wrong)


def test_settings_name_the_default_folder(store, monkeypatch, tmp_path):
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path))
    one, two = (default_folder(RiskOptions(cap=cap).settings()) for cap in ("auto", "float_cap"))
    assert one != two and one.parent == tmp_path / "risk" and one == default_folder(RiskOptions(cap="total_cap").settings())


# ---- styles on demand -----------------------------------------------------------------------------------------------------------
def test_styles_on_demand_equal_those_of_the_snapshots_and_extras_are_there(store, built):
    frame, rows = load_styles(start_time="2016-06-01", end_time="2016-06-30")
    day = pd.Timestamp("2016-06-15")
    shot = built.read(day)
    known = style_names(shot.factors)
    mine = frame.xs(day, level="datetime").loc[shot.instruments, known].to_numpy()
    np.testing.assert_array_equal(mine, shot.exposure[:, [shot.factors.index(name) for name in known]].astype(np.float32))
    assert {"size_squared", "roe", "sue", "volatility_60", "bp"} <= set(frame.columns) and frame["sue"].notna().mean() > 0.5
    assert {row["year"] for row in rows} == {2016} and all(0 <= row["own"] <= 1 for row in rows)
    with pytest.raises(ConfigError, match="no stock has a bar"):
        load_styles(start_time="2030-01-01")


def test_earnings_surprises_are_those_of_the_reports_known(store):
    reader = MarketReader(extras=True)
    laid = reader.arrays(0, len(reader.calendar))
    surprise, day = laid.fields["earnings_surprise"], 400
    from qlib_ext.store import read_table
    reports = read_table(store, "fundamentals", until=reader.calendar[day - 1])          # announced up to the day before
    checked = 0
    for n, code in enumerate(laid.codes[:12]):
        own = reports[reports["instrument"] == code].sort_values("announcement").drop_duplicates("period_end", keep="last")
        profit = own.set_index("period_end")["net_profit"].sort_index()
        if len(profit) < 13:
            continue
        quarter = profit.where(profit.index.month == 3, profit - profit.shift(1)).iloc[-13:]
        change = (quarter - quarter.shift(4)).dropna()
        expected = (change.iloc[-1] - change.iloc[-9:-1].mean()) / change.iloc[-9:-1].std()
        assert surprise[day, n] == pytest.approx(expected, rel=1e-5)
        checked += 1
    assert checked > 5


# ---- Qlib -----------------------------------------------------------------------------------------------------------------------
def test_it_stands_where_qlib_takes_a_risk_model(store, built):
    codes = built.read(built.days[-1]).instruments[5:15].tolist()[::-1]
    prices = D.features(codes, ["$close"], start_time="2016-10-01", end_time=str(built.days[-1]))["$close"]
    shot = built.read(built.days[-1]).select(codes)
    for scale, option in ((1e4, True), (1.0, False)):
        model = FactorRiskModel(str(built.folder), scale_return=option)
        got = model.predict(prices)
        assert list(got.columns) == sorted(codes)
        np.testing.assert_allclose(got.to_numpy(), shot.covariance() * scale, rtol=1e-12)
        exposure, cov_b, var_u = model.predict(prices, return_decomposed_components=True)
        np.testing.assert_allclose(exposure @ cov_b @ exposure.T + np.diag(var_u), got.to_numpy(), rtol=1e-12)
    wide = prices.unstack(level="instrument")[codes]
    assert list(FactorRiskModel(str(built.folder)).predict(wide).columns) == codes       # the order that was asked for
    np.testing.assert_allclose(np.diag(FactorRiskModel(str(built.folder)).predict(wide, return_corr=True)), 1.0)
    with pytest.raises(DataError, match="SZ999999"):
        FactorRiskModel(str(built.folder)).predict(wide.rename(columns={codes[0]: "SZ999999"}))
    with pytest.raises(ConfigError, match="frame"):
        FactorRiskModel(str(built.folder)).predict(wide.to_numpy())


def test_exposures_from_elsewhere_become_snapshots(store, built, tmp_path):
    draw = np.random.default_rng(0)
    days, codes = built.days[:200], built.read(built.days[0]).instruments
    index = pd.MultiIndex.from_product([pd.DatetimeIndex(days.astype("datetime64[ns]")), codes], names=["datetime", "instrument"])
    frame = pd.DataFrame(draw.standard_normal((len(index), 3)).astype(np.float32), index=index, columns=["deep_00", "deep_01", "deep_02"])
    made = write_exposures(frame, tmp_path / "deep", **QUIET)
    shot = made.read(days[-1])
    assert shot.factors == ("country", "deep_00", "deep_01", "deep_02") and made.days[0] == days[42]
    np.testing.assert_array_equal(shot.exposure[:, 1:].astype(np.float32), frame.xs(pd.Timestamp(days[-1])).loc[shot.instruments])
    with pytest.raises(DataError, match="consecutive"):
        write_exposures(frame.drop(pd.Timestamp(days[100]), level=0), tmp_path / "gap", **QUIET)
    with pytest.raises(DataError, match="too few"):
        write_exposures(frame.loc[:pd.Timestamp(days[10])], tmp_path / "deep", **QUIET)
    assert len(SnapshotStore(tmp_path / "deep").days) == 200 - 42                        # what was there stays

    class Recorder:
        saved = {}

        def save_objects(self, artifact_path=None, **objects):
            self.saved.update(objects)

    class Deep:
        def exposures(self, dataset):
            return frame

    record = SnapshotRecord(Recorder(), Deep(), None, str(tmp_path / "record"))
    record.generate()
    assert Recorder.saved["risk_snapshots.pkl"]["folder"] == str(tmp_path / "record") and len(SnapshotStore(tmp_path / "record").days) > 100
    with pytest.raises(ConfigError, match="LGBModel has no exposures"):
        SnapshotRecord(Recorder(), LGBModel(), None, "x")


def test_command_line(store, built, tmp_path, capsys):
    assert main(["build", "--store", str(store), "--out", str(built.folder)]) == 0
    assert f"{len(built.days)} days" in capsys.readouterr().out
    assert main(["coverage", "--store", str(store)]) == 0
    assert "residual_volatility" in capsys.readouterr().out
    assert main(["export", "--snapshots", str(built.folder), "--out", str(tmp_path / "qlib"), "--start", "2016-12-28"]) == 0
    assert len(list((tmp_path / "qlib").iterdir())) == 3
    assert main(["build", "--store", str(tmp_path / "none")]) == 1 and "does not exist" in capsys.readouterr().err
    assert main(["build", "--store", str(store), "--covariance", "volatility_half_life=long"]) == 1
    assert "NAME=NUMBER" in capsys.readouterr().err
    small_market.start_qlib(store)


def test_snapshots_of_another_version_are_not_mixed_in(store, built, tmp_path, monkeypatch):
    part = copied(built, tmp_path)
    monkeypatch.setattr(risk_model, "source_digest", lambda files: "later")
    with pytest.raises(ConfigError, match="other formulas.*--overwrite"):
        prepare_snapshots(part.folder, **QUIET)
    assert default_folder(RiskOptions().settings()) != default_folder(built.settings)


def test_returns_come_from_closes_where_change_is_not_there(store, tmp_path):
    copy = tmp_path / "bare"
    shutil.copytree(store, copy)
    whole = MarketReader().arrays(100, 300)
    for file in (copy / "features").glob("*/change.day.bin"):
        file.unlink()
    small_market.start_qlib(copy)
    try:
        bare = MarketReader().arrays(100, 300)
    finally:
        small_market.start_qlib(store)
    np.testing.assert_array_equal(np.isnan(bare.fields["returns"]), np.isnan(whole.fields["returns"]))
    np.testing.assert_allclose(bare.fields["returns"], whole.fields["returns"], atol=2e-7)


def test_a_stretch_without_market_values_is_not_weighed_alike(store, monkeypatch):
    reader = MarketReader()
    for content in reader.reader.content.values():
        start, cap = content["total_cap"]
        content["total_cap"] = start + 60, cap[60:]
    early = reader.arrays(0, 50)
    assert np.isnan(early.cap).all() and not early.members.any()


# ---- what a store may be like -----------------------------------------------------------------------------------------------------
@pytest.fixture
def another(store, tmp_path):
    """A copy of the store, in use while the test runs."""
    copy = tmp_path / "another"
    shutil.copytree(store, copy)
    small_market.start_qlib(copy)
    yield copy
    small_market.start_qlib(store)


def rewrite(store, field: str, change, codes="*") -> None:
    """Change the values of a field's files, in place."""
    for file in sorted((store / "features").glob(f"{codes}/{field}.day.bin")):
        content = np.fromfile(file, "<f4")
        content[1:] = change(content[1:], int(content[0]))
        content.tofile(file)


def test_the_first_month_comes_back_too(store, built, tmp_path):
    part = copied(built, tmp_path)
    first = part.files()[0]
    first.write_bytes(first.read_bytes()[:-50])
    assert content(prepare_snapshots(part.folder, **QUIET)) == content(built)
    for file in part.files()[:3]:
        file.unlink()
    assert content(prepare_snapshots(part.folder, **QUIET)) == content(built)


def test_fields_that_come_or_go_are_other_settings(another, tmp_path):
    before = RiskOptions().settings()
    assert before["descriptors"]["earnings_yield"] == ["CETOP", "ETOP"] and "industry" in before["fields"]
    for field in ("industry", "operating_cash_flow_ttm"):
        for file in (another / "features").glob(f"*/{field}.day.bin"):
            file.unlink()
    after = RiskOptions().settings()
    assert after["styles"] == before["styles"] and after["descriptors"]["earnings_yield"] == ["ETOP"] and "industry" not in after["fields"]
    assert default_folder(after) != default_folder(before)


def test_a_style_unknown_on_a_day_leaves_later_builds_the_same(another, tmp_path):
    calendar = np.asarray(D.calendar(freq="day"), "datetime64[ns]").astype("datetime64[D]")
    hole = int(np.searchsorted(calendar, np.datetime64("2016-08-10")))
    rewrite(another, "equity", lambda values, start: np.where(np.arange(len(values)) + start == hole, np.nan, values))
    whole = prepare_snapshots(tmp_path / "whole", **QUIET)
    k = whole.read(calendar[hole]).factors.index("book_to_price")
    assert (whole.read(calendar[hole]).exposure[:, k] == 0).all() and np.isfinite(whole.read_day(calendar[hole]).factor_return[k])
    before = content(whole)
    for file in whole.files()[-3:]:
        file.unlink()
    assert content(prepare_snapshots(whole.folder, **QUIET)) == before


def test_a_day_without_any_bar_is_not_missing_for_ever(another, tmp_path, monkeypatch):
    (another / "qlib_ext_store.json").unlink()                                              # from elsewhere
    calendar = another / "calendars" / "day.txt"
    calendar.write_text(calendar.read_text().rstrip("\n") + "\n2017-01-02\n")              # the calendar runs past the last bar
    small_market.start_qlib(another)
    made = prepare_snapshots(tmp_path / "risk", **QUIET)
    assert made.days[-1] == np.datetime64("2016-12-30")
    monkeypatch.setattr(risk_model, "MarketReader", lambda *a: pytest.fail("read again"))
    prepare_snapshots(made.folder, **QUIET)


def test_one_stock_without_change_or_with_an_infinite_cap_spoils_nothing(another, built, tmp_path):
    day, codes = built.days[-1], built.read(built.days[-1]).instruments
    (another / "features" / codes[3].lower() / "change.day.bin").unlink()
    rewrite(another, "total_cap", lambda values, _: np.r_[values[:-1], np.inf].astype(np.float32), codes[7].lower())
    made = prepare_snapshots(tmp_path / "risk", **QUIET)
    one, before = made.read_day(day), built.read_day(day)
    assert one.snapshot.factors == before.snapshot.factors
    assert set(before.snapshot.instruments) - set(one.snapshot.instruments) == {codes[7]}  # no market value, no exposures
    place = one.snapshot.rows([codes[3]])[0]
    assert one.residual[place] == pytest.approx(before.residual[3], abs=1e-3)               # its returns come from its closes
    for file in (another / "features").glob("s*/change.day.bin"):
        if file.parent.name.upper() not in ("SH000300", "SH000905", "SH000852"):
            file.unlink()
    assert np.isfinite(MarketReader().arrays(100, 200).fields["returns"]).any()             # indices alone have a change


def test_values_go_with_the_whole_company_and_weights_with_the_float(store):
    reader = MarketReader(cap="float_cap")
    market = reader.arrays(300, 301)
    assert market.cap_field == "float_cap" and (market.fields["total_cap"] > 1.01 * market.cap).any()
    np.testing.assert_array_equal(market.fields["cap"], market.fields["total_cap"])
    assert "total_cap" not in MarketReader(cap="equal").arrays(300, 301).fields


def test_snapshots_of_another_store_are_not_taken(another, built, tmp_path, monkeypatch):
    rewrite(another, "close", lambda values, _: values * 2)
    (another / "qlib_ext_store.json").unlink()                                              # now it is from elsewhere
    small_market.start_qlib(another)
    with pytest.raises(DataError, match="another past"):
        FactorRiskModel(str(built.folder)).predict(pd.DataFrame(1.0, [pd.Timestamp(built.days[-1])], built.read(built.days[-1]).instruments))
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path))
    said = []
    monkeypatch.setattr(risk_model.logger, "warning", said.append)
    first = prepare_snapshots(**QUIET)
    assert prepare_snapshots(**QUIET).folder == first.folder and not said
    rewrite(another, "change", lambda values, _: values * 2)                                # same names, same sizes
    second = prepare_snapshots(**QUIET)
    assert "made anew" in said.pop() and not np.allclose(second.read(built.days[-1]).specific_var, built.read(built.days[-1]).specific_var,
                                                         rtol=0.5)


def test_an_estimation_universe_of_nobody_and_a_folder_of_other_things_are_named(another, tmp_path):
    (another / "instruments" / "nobody.txt").write_text("SH999999\t2015-01-05\t2016-12-30\n")
    with pytest.raises(DataError, match="estimation universe nobody"):
        prepare_snapshots(tmp_path / "risk", RiskOptions(universe="nobody"), **QUIET)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    index = pd.MultiIndex.from_tuples([(pd.Timestamp("2016-01-04"), "SH600001")], names=["datetime", "instrument"])
    with pytest.raises(ConfigError, match="thesis.txt"):
        write_exposures(pd.DataFrame({"deep_00": [1.0]}, index=index), tmp_path / "notes", **QUIET)
    with pytest.raises(ConfigError, match="specific_shrinkage"):
        RiskOptions(covariance={"specific_shrinkage": float("nan")})


def test_the_return_over_a_long_suspension_is_no_daily_one(another, built, tmp_path):
    """A stock comes back after 60 days 150 % higher: its industry's return and its beta do not notice, its momentum does later."""
    code = built.read("2016-06-01").instruments[10]
    calendar = np.asarray(D.calendar(freq="day"), "datetime64[ns]").astype("datetime64[D]")
    back = int(np.searchsorted(calendar, np.datetime64("2016-08-10")))

    def halted(values, start):
        values[back - 60 - start:back - start] = np.nan
        values[back - start] = 1.5
        return values

    rewrite(another, "change", halted, code.lower())
    market = MarketReader().arrays(back - 100, back + 5)
    n = market.codes.tolist().index(code)
    assert market.fields["returns"][100, n] == np.float32(1.5) and np.isnan(market.fields["daily_returns"][100, n])
    assert np.isfinite(market.fields["daily_returns"][101, n])
    made = prepare_snapshots(tmp_path / "risk", **QUIET)
    day, before = made.read_day(calendar[back]), built.read_day(calendar[back])
    np.testing.assert_allclose(day.factor_return, before.factor_return, atol=0.004)
    assert np.isnan(day.residual[day.snapshot.rows([code])[0]])
