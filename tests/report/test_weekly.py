"""The weekly table against an independent pandas calculation; nothing later than its day, signs, fields, bad input, and the command."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient
from small_market import start_qlib

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors.intraday_options import FACTORS
from qlib_ext.report import __main__ as command
from qlib_ext.report import weekly
from qlib_ext.report.words import both, known

DAYS = pd.bdate_range("2023-11-01", "2024-06-28").difference(pd.bdate_range("2024-02-08", "2024-02-16"))
CODES = [f"SH60{number:04d}" for number in range(50)]
AS_OF = pd.Timestamp("2024-06-19")                                       # a Wednesday
PERIODS = ("Week", "Month to date", "Year to date", "Since inception")


def prices() -> pd.DataFrame:
    draw = np.random.default_rng(5)
    return pd.DataFrame(10 * np.exp(np.cumsum(draw.normal(0, 0.02, (len(DAYS), len(CODES))), axis=0)), DAYS, CODES)


def planted(price: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Factors that know a little of the next days: skewness foretells falls, in three variants; the downside share rises, as a mean."""
    draw = np.random.default_rng(6)
    known_part = (price.shift(-6) / price.shift(-1) - 1).fillna(0.0) / 0.05
    noisy = lambda sign: (sign * known_part + draw.normal(size=price.shape)).astype(np.float32)  # noqa: E731
    found = {"hf_skew": noisy(-1), "hf_skew_orth": noisy(-1), "hf_skew_1d": noisy(-1), "hf_down_share": noisy(1)}
    found["hf_skew_orth"] = found["hf_skew_orth"].mask(draw.random(price.shape) < 0.1)
    found["hf_down_share"].iloc[:, :5] = np.nan                          # stocks that are never scored
    return found


def write_store(root, price: pd.DataFrame, fields: dict[str, pd.DataFrame]):
    for part in ("calendars", "instruments"):
        (root / part).mkdir(parents=True)
    (root / "calendars" / "day.txt").write_text("".join(f"{day:%Y-%m-%d}\n" for day in DAYS))
    for name, codes in (("all", CODES), ("csi500", CODES[:40]), ("few", CODES[:12])):
        (root / "instruments" / f"{name}.txt").write_text("".join(f"{code}\t2023-11-01\t2024-06-28\n" for code in codes))
    ones = pd.DataFrame(1.0, price.index, price.columns)
    for code in CODES:
        folder = root / "features" / code.lower()
        folder.mkdir(parents=True)
        for name, values in {"close": price * 1.01, "vwap": price, "volume": 1e6 * ones, "factor": ones, **fields}.items():
            np.r_[0.0, values[code]].astype("<f4").tofile(folder / f"{name}.day.bin")
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("weekly") / "store", prices(), planted(prices()))


@pytest.fixture
def market(store):
    start_qlib(store)
    return store


def by_hand(score: pd.DataFrame, price: pd.DataFrame, last: pd.Timestamp) -> pd.Series:
    """Figures of a score by day and stock, with pandas and plain loops, from rows up to `last` only."""
    score, price = score.loc[:last], price.loc[:last]
    label = price.shift(-6) / price.shift(-1) - 1
    ic = score.corrwith(label, axis=1).shift(6)
    z = lambda frame: (ranks := frame.where(score.notna() & label.notna()).rank(axis=1)).sub(ranks.mean(axis=1), axis=0).div(  # noqa: E731
        ranks.std(axis=1, ddof=0), axis=0)
    mae = np.exp(-(z(score) - z(label)).abs().mean(axis=1, skipna=True)).where(label.notna().any(axis=1)).shift(6)
    held, returns = {}, {}
    for today, tomorrow in zip(score.index[:-1], score.index[1:]):
        growth = price.loc[tomorrow] / price.loc[today]
        returns[tomorrow] = {name: float((stocks * growth).sum() - 1) for name, stocks in held.items()}
        held = {name: stocks * growth / (stocks * growth).sum() for name, stocks in held.items()}
        if today.isocalendar()[:2] != tomorrow.isocalendar()[:2]:
            values = score.loc[today].dropna()
            tenth = pd.qcut(values, 10, labels=False)
            held = {name: pd.Series(1 / len(part), part) for name, part in
                    {"top": tenth.index[tenth == 9], "bottom": tenth.index[tenth == 0], "all": tenth.index}.items()}
    daily = pd.DataFrame(returns).T
    starts = {"Week": last - pd.Timedelta(days=last.weekday()), "Month to date": last.replace(day=1),
              "Year to date": last.replace(month=1, day=1), "Since inception": score.index[0]}
    found = {}
    for period, start in starts.items():
        part = daily.loc[start:].dropna()
        growth = (1 + part).prod()
        found |= {("IC", period): ic.loc[start:].mean(), ("exp(-RankMAE)", period): mae.loc[start:].mean(),
                  ("long-short", period): (1 + part["top"] - part["bottom"]).prod() - 1,
                  ("long-only excess", period): growth["top"] - growth["all"]}
    return pd.Series(found)


# ---- figures --------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("field, sign", [("hf_skew_orth", -1), ("hf_down_share", 1)])
def test_every_figure_is_that_of_pandas(market, field, sign):
    scores = weekly.field_scores([f"${field}"])
    table = weekly.weekly_table(scores, str(AS_OF.date()), signs={field: sign})
    row, expected = table.frame.loc[field], by_hand(sign * planted(prices())[field], prices(), AS_OF)
    assert table.day == np.datetime64(AS_OF.date()) and set(expected.index) == {one for one in row.index if one[0]}
    np.testing.assert_allclose(row[expected.index].astype(float), expected, rtol=1e-4, atol=2e-6)     # the store holds float32
    assert row[("", "names")] == planted(prices())[field].loc[AS_OF].notna().sum() and row[("", "sign")] == sign
    assert row[("IC", "Since inception")] > 0.1, "the planted effect is there, with the sign that makes it positive"


def test_nothing_later_than_the_day_is_used(store, tmp_path):
    """Prices and factors after the day at random: the table stays bit for bit; those of the day at random: it does not."""
    draw, tables = np.random.default_rng(9), []
    for place, last in (("later", AS_OF), ("same", AS_OF - pd.Timedelta(days=1))):
        changed = [prices(), *planted(prices()).values()]
        for frame in changed:
            frame[frame.index > last] *= np.exp(draw.normal(0, 0.3, (int((frame.index > last).sum()), 1)) * np.arange(50))
        start_qlib(write_store(tmp_path / place, changed[0], dict(zip(planted(prices()), changed[1:]))))
        tables.append(weekly.weekly_table(weekly.field_scores(["$hf_skew_orth"]), str(AS_OF.date())).frame)
    start_qlib(store)
    true = weekly.weekly_table(weekly.field_scores(["$hf_skew_orth"]), str(AS_OF.date())).frame
    pd.testing.assert_frame_equal(tables[0], true, check_exact=True)
    different = true.columns[(tables[1] != true).any()]
    assert {("IC", "Week"), ("long-short", "Week"), ("long-only excess", "Since inception")} <= set(different)
    assert weekly.weekly_table(weekly.field_scores(["$hf_skew_orth"], last=str(AS_OF.date()))).frame.equals(true), "the last day scored"


def test_a_sign_turns_ic_and_long_short_around(market):
    scores = weekly.field_scores(["$hf_down_share"])
    plain, turned = (weekly.weekly_table(scores, "2024-06-28", signs={"hf_down_share": sign}).frame.iloc[0] for sign in (1, -1))
    for period in PERIODS:
        assert turned[("IC", period)] == pytest.approx(-plain[("IC", period)]) and plain[("IC", period)] > 0
    assert (1 + plain[("long-short", "Week")] > 1) != (1 + turned[("long-short", "Week")] > 1)
    assert turned[("exp(-RankMAE)", "Week")] < 0.3151 < plain[("exp(-RankMAE)", "Week")]


def test_universe_horizon_and_weekends(market):
    scores = weekly.field_scores(["$hf_down_share"], universe="csi500")
    table = weekly.weekly_table(scores, "2024-06-23", horizon=1, universe="csi500")                   # a Sunday
    assert table.day == np.datetime64("2024-06-21") and table.frame[("", "names")].item() == 35
    label = (prices().shift(-2) / prices().shift(-1) - 1)[CODES[:40]]
    daily = planted(prices())["hf_down_share"][CODES[:40]].corrwith(label, axis=1).shift(2)
    assert table.frame[("IC", "Week")].item() == pytest.approx(daily.loc["2024-06-17":"2024-06-21"].mean(), rel=1e-4)
    assert "over 1 trading day from" in table.convention


def test_a_row_that_begins_inside_a_period_says_so(market):
    table = weekly.weekly_table(weekly.field_scores(["$hf_skew"], "2024-03-01") | weekly.field_scores(["$hf_down_share"]))
    assert [f"{day:%Y-%m-%d}" for day in table.frame[("", "first day")]] == ["2024-03-01", "2023-11-01"]
    late = table.frame.loc["hf_skew"]
    assert late[("IC", "Year to date")] == late[("IC", "Since inception")] and np.isfinite(late[("long-short", "Year to date")])


# ---- fields -----------------------------------------------------------------------------------------------------------------------
def test_which_variant_of_a_factor(market):
    assert weekly.choose_fields(["hf_skew", "hf_down_share"])[0] == ["$hf_skew_orth", "$hf_down_share"]
    assert weekly.choose_fields(["hf_skew"], "mean")[0] == ["$hf_skew"] and weekly.choose_fields(["hf_skew"], "day")[0] == ["$hf_skew_1d"]
    chosen, notes = weekly.choose_fields(["hf"])
    assert chosen == ["$hf_skew_orth", "$hf_down_share"] and len(notes) == 1 and all(name in notes[0] for name in FACTORS[2:])
    assert weekly.choose_fields(["$hf_skew", "Mean($hf_skew_1d, 3)", "vwap", "vwap"])[0] == ["$hf_skew", "Mean($hf_skew_1d, 3)", "$vwap"]
    signs = {"$hf_skew": -1, "$hf_skew_orth": -1, "$hf_push_up_proxy_1d": -1, "$hf_down_share_orth": 1, "$vwap": 1, "Mean($hf_skew, 3)": 1}
    assert {field: weekly.sign_of(field) for field in signs} == signs


def test_capitals_name_the_same_fields(market):
    wanted = ["HF_Skew", "$HF_SKEW", "Mean($HF_Skew_1D, 3)", " VWAP "]
    assert weekly.choose_fields(wanted)[0] == ["$hf_skew_orth", "$hf_skew", "Mean($hf_skew_1d, 3)", "$vwap"]
    assert weekly.choose_fields(["HF"]) == weekly.choose_fields(["hf"]) and weekly.sign_of("$HF_SKEW_ORTH") == -1


@pytest.mark.parametrize("field, said", [
    ("Ref($close, -5)/Ref($close, -1) - 1", "looks 5 trading days ahead"), ("Mean(Ref($vwap, -1), 3)", "looks 1 trading day ahead"),
    ("If($hf_skew > 0, $hf_skew, Ref($close, -2))", "looks 2"), ("Delta($close, -5)", "negative length"),
    ("Mean($close", "cannot be parsed")])
def test_fields_that_look_ahead(market, field, said):
    with pytest.raises(ConfigError, match=said):
        weekly.field_scores(["$hf_skew", field])
    assert "Ref($close, 5)" in weekly.field_scores(["Ref($close, 5)"])


@pytest.mark.parametrize("wanted, variant, said", [
    (["hf_push_up"], "orth", "no field hf_push_up_orth.*hf_down_share.*build-intraday"),
    (["hf_skewness"], "orth", "no field hf_skewness.*did you mean.*hf_skew"), (["hf"], "weekly", "one of"),
    (["hf_down_share"], "day", "hf_down_share_1d"), (["Mean($hf_skw, 3)"], "orth", "no field hf_skw")])
def test_fields_that_are_not_there(market, wanted, variant, said):
    with pytest.raises(ConfigError, match=said):
        weekly.choose_fields(wanted, variant)


def test_a_store_without_factors_says_what_to_run(market, tmp_path):
    start_qlib(write_store(tmp_path / "bare", prices(), {}))
    with pytest.raises(ConfigError, match="no intraday factors: run `python -m qlib_ext.store build-intraday"):
        weekly.choose_fields(["hf"])
    start_qlib(market)


@pytest.mark.parametrize("options, error, said", [
    ({"as_of": "2022-01-04"}, DataError, "runs from 2023-11-01 to 2024-06-28"), ({"as_of": "2024-07-31"}, DataError, "outside the store"),
    ({"as_of": "soon"}, ConfigError, "as of 'soon' is no day"), ({"as_of": pd.NaT}, ConfigError, "no day"),
    ({"universe": "few"}, DataError, "hf_skew.*needs 30"),
    ({"universe": "csi2"}, ConfigError, "not in the store"), ({"entry": "noon"}, ConfigError, "choose one of"),
    ({"horizon": 0}, ConfigError, "horizon")])
def test_what_cannot_be_made(market, options, error, said):
    with pytest.raises(error, match=said):
        weekly.weekly_table(weekly.field_scores(["$hf_skew"]), **options)


def test_scores_that_lack_the_day(market):
    old = weekly.field_scores(["$hf_skew"], last="2024-05-31")["hf_skew"].rename(None)
    both_rows = {"old": old, **weekly.field_scores(["$hf_down_share"])}
    with pytest.raises(DataError, match="old: no stock is scored on 2024-06-28.*to 2024-05-31"):
        weekly.weekly_table(both_rows, "2024-06-28")
    assert weekly.weekly_table(both_rows).day == np.datetime64("2024-05-31"), "by default the last day that all rows score"
    with pytest.raises(DataError, match="old: no value on any day"):
        weekly.weekly_table({"old": old[:0]})
    left = weekly.weekly_table({"old": old[:0], "few": old[old.index.get_level_values(1) < CODES[20]], "all": old}, optional=["old", "few"])
    assert list(left.frame.index) == ["all"] and [note[:13] for note in left.notes if "left out" in note] == [
        "left out: old", "left out: few"]
    late = weekly.weekly_table(both_rows, optional=["old"])
    assert late.day == np.datetime64("2024-06-28") and any(
        "left out: old: no stock is scored on 2024-06-28" in note for note in late.notes)
    with pytest.raises(DataError, match="no value"):
        weekly.weekly_table({"old": old[:0]}, optional=["old"])
    with pytest.raises(ConfigError, match="at least one"):
        weekly.weekly_table({})


# ---- printed ----------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A tracking database with three runs: predictions of most stocks, none, and predictions in an experiment named like a field."""
    from qlib.workflow.recorder import MLflowRecorder
    folder = tmp_path_factory.mktemp("tracking")
    uri = f"sqlite:///{folder}/tracking.db"
    client, made = MlflowClient(tracking_uri=uri), {}
    for name in ("beta", "bare", "hf_down_share"):
        run = client.create_run(client.create_experiment(name, artifact_location=str(folder / name)))
        Path(run.info.artifact_uri).mkdir(parents=True)
        made[name] = MLflowRecorder(run.info.experiment_id, uri, mlflow_run=run)
        client.set_terminated(run.info.run_id)
    score = -planted(prices())["hf_skew"].loc["2024-01-02":"2024-06-27"].stack().rename_axis(["datetime", "instrument"]).to_frame("score")
    for name in ("beta", "hf_down_share"):
        made[name].save_objects(**{"pred.pkl": score})
    return uri, made["beta"].id, made["bare"].id


def test_the_command_prints_and_writes(store, database, tmp_path, monkeypatch, capsys):
    uri, run, _ = database
    monkeypatch.chdir(tmp_path)
    given = ["--weekly", "--fields", "hf", "--recorder", run[:8], "--uri", uri, "--store", str(store)]
    for name in ("t.csv", "t.html"):
        assert command.main([*given, "--out", name]) == 0
    printed = capsys.readouterr().out
    assert "hf_skew_orth" in printed and "2024-06-27" in printed and printed.strip().endswith("t.html")
    table = pd.read_csv("t.csv", index_col="score")
    assert list(table.index) == ["hf_skew_orth", "hf_down_share", "beta"] and list(table["Sign"]) == [-1, 1, 1]
    expected = by_hand(-planted(prices())["hf_skew"].loc["2024-01-02":], prices().loc["2024-01-02":], pd.Timestamp("2024-06-27"))
    columns = [" ".join(both(part)[0] for part in column) for column in expected.index]
    np.testing.assert_allclose(table.loc["beta", columns].astype(float), expected, rtol=1e-4, atol=2e-6)
    page = (tmp_path / "t.html").read_text(encoding="utf-8")
    assert all(word in page for word in ("hf_skew_orth × −1<", "日内偏度", "Intraday skewness", "多空", ">beta<br>")) and "贝塔" not in page
    assert len(re.findall(r"<td>", page)) == 3 * len(expected) and sorted(path.name for path in tmp_path.iterdir()) == [
        "t.csv", "t.html"]


def test_a_run_named_like_a_field_has_a_row_of_its_own(store, database, tmp_path, capsys):
    given = ["--weekly", "--fields", "hf", "--uri", database[0], "--store", str(store), "--out", str(tmp_path / "t.csv")]
    assert command.main([*given, "--recorder", "beta", "hf_down_share"]) == 0
    names = pd.read_csv(tmp_path / "t.csv")["score"].tolist()
    assert names[:3] == ["hf_skew_orth", "hf_down_share", "beta"] and re.fullmatch("hf_down_share [0-9a-f]{8}", names[3])
    assert command.main([*given, "--recorder", "beta", "beta"]) == 1 and "one run is named twice" in capsys.readouterr().err


def test_raw_signs_chinese_and_markdown(market, tmp_path, capsys):
    given = ["--weekly", "--fields", "hf_skew", "--store", str(market), "--as-of", "2024-06-28", "--language", "zh", "--raw-sign"]
    assert command.main([*given, "--out", str(tmp_path / "raw.csv")]) == 0 and "多空" in capsys.readouterr().out
    turned = weekly.weekly_table(weekly.field_scores(["$hf_skew_orth"]), "2024-06-28", signs={"hf_skew_orth": -1})
    raw, expected = pd.read_csv(tmp_path / "raw.csv").iloc[0], turned.frame.iloc[0][("IC", "Year to date")]
    assert raw["IC 今年以来"] == pytest.approx(-expected) and raw["IC 今年以来"] < 0 and raw["方向"] == 1
    lines = weekly.write_weekly(turned, "md", "zh").splitlines()
    assert {line.count("|") for line in lines[:3]} == {turned.frame.shape[1] + 2} and any("方向为−1者" in line for line in lines)
    with pytest.raises(ConfigError, match="html"):
        weekly.write_weekly(turned, "pdf")


def test_all_that_is_printed_has_chinese(market):
    table = weekly.weekly_table(weekly.field_scores(["$hf_skew"]), signs={"hf_skew": -1})
    names = {part for column in table.frame for part in column if part} | set(FACTORS)
    assert not [name for name in {*names, table.convention} if not known(name)]


@pytest.mark.parametrize("arguments, said", [
    (["--from", "hello"], "from 'hello' is no day"), (["--from", "NaT"], "no day"), (["--as-of", "nan"], "as of 'nan' is no day"),
    (["--recorder", "beta", "--from", "soon"], "from 'soon' is no day"), (["--fields", "Ref($close, -1)"], "ahead"),
    (["--fields", "hf_none"], "build-intraday"), (["--as-of", "2030-01-01", "--fields", "hf"], "outside the store"),
    (["--out", "x.pdf"], r"\.html"), (["--out", "nowhere/x.csv"], "folder that exists"), (["--universe", "few"], "needs 30"),
    (["--recorder", "BARE"], "no pred.pkl"), (["--recorder", "nosuchrun"], "no run"), (["--png", "x"], "--weekly goes with")])
def test_failures_are_one_line(store, database, tmp_path, monkeypatch, capsys, arguments, said):
    uri, _, bare = database
    monkeypatch.chdir(tmp_path)
    given = [bare if word == "BARE" else word for word in arguments]
    assert command.main(["--weekly", "--store", str(store), "--uri", uri, *given]) == 1
    told = capsys.readouterr()
    assert told.err.strip().count("\n") == 0 and re.search(said, told.err) and not list(tmp_path.iterdir())


def test_which_switches_go_together(database, capsys):
    uri, run, bare = database
    assert command.main(["--recorder", run, bare, "--uri", uri]) == 1 and "one at a time" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command.main(["--uri", uri])
