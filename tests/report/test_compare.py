"""Comparison of runs: identical pairs in every row, hand-computed portfolio figures, and what is refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import DataError
from qlib_ext.report import compare as module
from qlib_ext.report.compare import Origin, Run, common_pairs, compare, format_table, generated_statement, portfolio_figures

DAYS = pd.bdate_range("2023-01-02", periods=6)
STOCKS = [f"SH6000{i:02d}" for i in range(12)]
INDEX = pd.MultiIndex.from_product([DAYS, STOCKS], names=["datetime", "instrument"])


def make_run(name: str, seed: int, index=INDEX, label=None) -> Run:
    generator = np.random.default_rng(seed)
    score = pd.Series(generator.normal(size=len(INDEX)), INDEX).reindex(index)
    return Run(name, score, (LABEL if label is None else label).reindex(index))


LABEL = pd.Series(np.random.default_rng(0).normal(0, 0.02, len(INDEX)), INDEX)


def test_rows_rest_on_the_identical_set_of_day_stock_label():
    a, b, c = make_run("a", 1), make_run("b", 2, INDEX.drop([(DAYS[0], STOCKS[0])])), make_run("c", 3)
    c.score.iloc[5] = np.nan
    c.label.iloc[7] = np.nan
    table, dropped = common_pairs([a, b, c])
    expected = INDEX.drop([INDEX[0], INDEX[5], INDEX[7]])
    assert table.index.equals(expected)
    assert np.isfinite(table).all().all()
    assert list(table.columns) == ["label", "a", "b", "c"]
    pd.testing.assert_series_equal(table["label"], LABEL.reindex(expected), check_names=False)
    for run in (a, b, c):
        pd.testing.assert_series_equal(table[run.name], run.score.reindex(expected), check_names=False)
    assert dropped == {"a": 3, "b": 2, "c": 1}


def test_a_missing_stock_in_one_run_shrinks_all_rows():
    short = INDEX[INDEX.get_level_values("instrument") != STOCKS[3]]
    full = compare([make_run("a", 1), make_run("b", 2)], min_pairs=2)
    less = compare([make_run("a", 1), make_run("b", 2, short)], min_pairs=2)
    assert full["pairs"].tolist() == [72, 72] and less["pairs"].tolist() == [66, 66]
    alone = compare([make_run("a", 1, short)], min_pairs=2)
    assert less.loc["a", "IC"] == alone.loc["a", "IC"] != full.loc["a", "IC"]
    assert less["dropped"].tolist() == [6, 0]


def test_row_order_and_level_order_do_not_matter():
    a = make_run("a", 1)
    shuffled = Run("b", a.score.sample(frac=1, random_state=0), a.label.sample(frac=1, random_state=1))
    table = compare([a, shuffled], min_pairs=2)
    assert table.loc["a", "IC"] == pytest.approx(table.loc["b", "IC"], abs=1e-15)


def test_signal_figures_are_those_of_pandas():
    run = make_run("a", 1)
    row = compare([run], min_pairs=2).loc["a"]
    frame = pd.DataFrame({"score": run.score, "label": run.label})
    for name, method in (("IC", "pearson"), ("RankIC", "spearman")):
        daily = frame.groupby(level="datetime").apply(lambda day: day["score"].corr(day["label"], method=method))
        assert row[name] == pytest.approx(daily.mean(), abs=1e-12)
        assert row[name.replace("IC", "ICIR")] == pytest.approx(daily.mean() / daily.std(), abs=1e-10)
    assert row["days"] == 6


def test_universe_keeps_members_of_the_day_only():
    members = pd.DataFrame({"code": [STOCKS[0], STOCKS[1], STOCKS[1]], "start": [DAYS[0], DAYS[0], DAYS[4]],
                            "end": [DAYS[5], DAYS[1], DAYS[4]]})
    table, _ = common_pairs([make_run("a", 1)], members)
    assert len(table) == 6 + 2 + 1
    assert (DAYS[2], STOCKS[1]) not in table.index and (DAYS[4], STOCKS[1]) in table.index


def test_other_raw_labels_are_refused_with_the_largest_difference():
    other = LABEL.copy()
    other.iloc[10] += 0.01
    with pytest.raises(DataError, match=rf"'a' and 'b' differ by up to 0.01 \({STOCKS[10]} on 2023-01-02\)"):
        compare([make_run("a", 1), make_run("b", 2, label=other)])


def test_rounding_of_labels_is_no_difference():
    compare([make_run("a", 1), make_run("b", 2, label=LABEL.astype(np.float32))])


def test_nothing_in_common_and_repeated_pairs_are_refused():
    with pytest.raises(DataError, match="no .day, stock. is common"):
        compare([make_run("a", 1, INDEX[:12]), make_run("b", 2, INDEX[12:])])
    twice = make_run("a", 1)
    twice.score = pd.concat([twice.score, twice.score.iloc[:1]])
    with pytest.raises(DataError, match="occurs twice"):
        compare([twice])


def report(returns, bench, cost=0.0, turnover=0.1):
    return pd.DataFrame({"return": returns, "bench": bench, "cost": cost, "turnover": turnover}, index=DAYS[:len(returns)])


def test_portfolio_figures_by_hand():
    figures = portfolio_figures(report([0.10, -0.05, 0.02], [0.0, 0.0, 0.0], cost=[0.0, 0.01, 0.0]))
    wealth = np.array([1.10, 1.10 * 0.94, 1.10 * 0.94 * 1.02])
    assert figures["excess a year"] == pytest.approx(wealth[-1] ** (252 / 3) - 1)
    assert figures["drawdown"] == pytest.approx(0.94 - 1)
    excess = np.array([0.10, -0.06, 0.02])
    assert figures["IR"] == pytest.approx(excess.mean() / excess.std(ddof=1) * np.sqrt(252))
    assert figures["turnover"] == pytest.approx(0.1)


def test_a_fall_on_the_first_day_is_a_drawdown():
    assert portfolio_figures(report([-0.2, 0.1], [0.0, 0.0]))["drawdown"] == pytest.approx(-0.2)


def test_portfolios_are_compared_on_common_days():
    a, b = make_run("a", 1), make_run("b", 2)
    a.report, b.report = report([0.01] * 6, [0.0] * 6), report([0.01] * 3, [0.0] * 3)
    table = compare([a, b], min_pairs=2)
    assert table.loc["a", "excess a year"] == table.loc["b", "excess a year"]
    assert "-" in format_table(compare([make_run("a", 1)], min_pairs=2))


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """A tracking database with two finished runs of one experiment, one of another, and an unfinished one."""
    from mlflow.tracking import MlflowClient

    tmp_path = tmp_path_factory.mktemp("tracking")
    uri = f"sqlite:///{tmp_path}/tracking.db"
    client = MlflowClient(tracking_uri=uri)
    identifiers = []
    wanted = [("master", "FINISHED"), ("master", "FINISHED"), ("gru", "FINISHED"), ("gru", "FAILED")]
    places = {name: client.create_experiment(name, artifact_location=str(tmp_path / "artifacts" / name)) for name in ("master",
                                                                                                                      "gru")}
    for number, (experiment, status) in enumerate(wanted):
        place = places[experiment]
        run = client.create_run(place, start_time=1_700_000_000_000 + number)
        folder = tmp_path / "frames"
        folder.mkdir(exist_ok=True)
        frames = make_run("x", number)
        frames.score.to_frame("score").to_pickle(folder / "pred.pkl")
        frames.label.to_frame("LABEL0").to_pickle(folder / "label.pkl")
        client.log_artifacts(run.info.run_id, str(folder))
        client.set_terminated(run.info.run_id, status)
        identifiers.append(run.info.run_id)
    return uri, identifiers


def test_command_line_picks_runs_and_prints_where_they_lie(tracked, tmp_path, capsys):
    uri, identifiers = tracked
    assert module.main(["--uri", uri, "--min-pairs", "2", "--csv", str(tmp_path / "table.csv")]) == 0
    out = capsys.readouterr().out
    assert identifiers[1] in out and identifiers[2] in out and identifiers[0] not in out and identifiers[3] not in out
    assert "same 72 pairs" in out and f"{uri[len('sqlite:///'):-len('tracking.db')]}artifacts" in out
    assert pd.read_csv(tmp_path / "table.csv", index_col="run")["pairs"].tolist() == [72, 72]

    assert module.main(["--uri", uri, "--min-pairs", "2", "--experiment", "master"]) == 0
    out = capsys.readouterr().out
    assert f"master {identifiers[0][:8]}" in out and f"master {identifiers[1][:8]}" in out

    assert module.main(["--uri", uri, "--min-pairs", "2", identifiers[0], "gru"]) == 0
    assert identifiers[0] in capsys.readouterr().out

    assert module.main(["--uri", uri, "--min-pairs", "2", "--last"]) == 0
    assert identifiers[2] in capsys.readouterr().out


def test_command_line_says_what_is_missing(tracked, tmp_path, capsys):
    uri, _ = tracked
    assert module.main(["--uri", uri, "mastr"]) == 1
    assert "no experiment 'mastr'" in capsys.readouterr().err
    assert module.main(["--uri", f"sqlite:///{tmp_path}/none.db"]) == 1
    assert "there is no tracking database" in capsys.readouterr().err and not (tmp_path / "none.db").exists()


def add_run(client, folder, place, status="FINISHED", index=INDEX, seed=1, label=LABEL, card=None, task=None):
    """A run with predictions, labels and, where given, run card and task."""
    run = client.create_run(place)
    folder = folder / run.info.run_id
    folder.mkdir(parents=True)
    frames = make_run("x", seed, index, label)
    frames.score.to_frame("score").to_pickle(folder / "pred.pkl")
    if label is not None:
        frames.label.to_frame("LABEL0").to_pickle(folder / "label.pkl")
    if card is not None:
        (folder / "run_card.json").write_text(json.dumps(card))
    if task is not None:
        pd.to_pickle(task, folder / "task")
    client.log_artifacts(run.info.run_id, str(folder))
    client.set_terminated(run.info.run_id, status)
    return run.info.run_id


@pytest.fixture(scope="module")
def several_runs(tmp_path_factory):
    """Runs of several universes and two spans, from cards and tasks, with a failed one."""
    from mlflow.tracking import MlflowClient

    tmp_path = tmp_path_factory.mktemp("several")
    uri = f"sqlite:///{tmp_path}/tracking.db"
    client = MlflowClient(tracking_uri=uri)

    def experiment(name):
        return client.create_experiment(name, artifact_location=str(tmp_path / "artifacts" / name))

    def task(**kwargs):
        return {"dataset": {"kwargs": {"handler": {"kwargs": kwargs}}}}

    small = INDEX[INDEX.get_level_values("instrument") < STOCKS[6]]
    master, short = experiment("master"), INDEX[INDEX.get_level_values("datetime") < DAYS[3]]
    add_run(client, tmp_path, master, card={"panel": {"universe": "csi1000"}})
    broken = add_run(client, tmp_path, master, "FAILED", card={"panel": {"universe": "csi1000"}})
    add_run(client, tmp_path, experiment("gru"), seed=2, task=task(instruments="csi1000"))
    add_run(client, tmp_path, experiment("lightgbm"), seed=3, index=small, task=task(instruments={"market": "csi300"}))
    add_run(client, tmp_path, experiment("early"), seed=4, index=short, task=task(instruments=["SH600000", "SH600001"]))
    place = experiment("bare")
    add_run(client, tmp_path, place, seed=5, card={"panel": {"universe": None}}, task=task(instruments="csi1000"))
    return tmp_path, broken


@pytest.fixture
def several(several_runs, tmp_path):
    """A copy of the database to add runs to."""
    from mlflow.tracking import MlflowClient

    folder, broken = several_runs
    shutil.copy(folder / "tracking.db", tmp_path / "tracking.db")
    uri = f"sqlite:///{tmp_path}/tracking.db"
    return uri, MlflowClient(tracking_uri=uri), tmp_path, broken


def test_runs_of_several_universes_and_spans_get_a_table_each(several, tmp_path, capsys):
    uri, _, _, broken = several
    assert module.main(["--uri", uri, "--min-pairs", "2", "--csv", str(tmp_path / "table.csv")]) == 0
    out = capsys.readouterr().out
    headings = [line[3:] for line in out.splitlines() if line.startswith("== ")]
    assert headings == ["2 listed instruments, 2023-01-02 to 2023-01-04", "csi1000, 2023-01-02 to 2023-01-09",
                        "csi300, 2023-01-02 to 2023-01-09"]
    assert f"skipped: 1 of master (failed): {broken[:8]}" in out
    table = pd.read_csv(tmp_path / "table.csv", index_col="run")
    assert table["pairs"].to_dict() == {"early": 36, "master": 72, "gru": 72, "bare": 72, "lightgbm": 36}
    # named runs are compared as they are, on what they share
    assert module.main(["--uri", uri, "--min-pairs", "2", "master", "lightgbm"]) == 0
    assert "same 36 pairs" in capsys.readouterr().out


def test_a_group_that_cannot_be_compared_does_not_hide_the_others(several, capsys):
    uri, client, folder, _ = several
    place = client.create_experiment("other", artifact_location=str(folder / "artifacts" / "other"))
    add_run(client, folder, place, index=INDEX, label=LABEL + 0.01, card={"panel": {"universe": "csi1000"}})
    assert module.main(["--uri", uri, "--min-pairs", "2"]) == 1
    done = capsys.readouterr()
    assert "DataError in csi1000, 2023-01-02 to 2023-01-09: raw labels of" in done.err and "lightgbm" in done.out
    assert module.main(["--uri", uri, "--min-pairs", "2", "other", "master"]) == 1
    done = capsys.readouterr()
    assert "raw labels of 'other' and 'master' differ" in done.err and not done.out


def test_finished_runs_without_predictions_are_skipped(several, capsys):
    uri, client, folder, _ = several
    place = client.get_experiment_by_name("gru").experiment_id
    run = client.create_run(place)
    client.set_terminated(run.info.run_id, "FINISHED")
    assert module.main(["--uri", uri, "--min-pairs", "2"]) == 0
    assert f"skipped: 1 of gru (no predictions or raw labels): {run.info.run_id[:8]}" in capsys.readouterr().out


METADATA = {"format": 1, "fingerprint": "f", "generated": True, "spans": {"calendar": ["2023-01-03", "2023-01-03", 1]}}


@pytest.fixture
def generated(tmp_path):
    """A generated store with its truth: the expected return of every pair is its label, half of it noise."""
    store = tmp_path / "market"
    for name in ("calendars", "instruments", "features/sh600000"):
        (store / name).mkdir(parents=True)
    (store / "calendars" / "day.txt").write_text("2023-01-03\n")
    (store / "instruments" / "all.txt").write_text("SH600000\t2023-01-03\t2023-01-03\n")
    (store / "qlib_ext_store.json").write_text(json.dumps(METADATA))
    noise = np.random.default_rng(3).standard_normal(len(LABEL))
    expected = (LABEL + LABEL.std() * noise).rename("expected")
    expected.rename_axis(["date", "instrument"]).reset_index().to_parquet(tmp_path / "market.truth.parquet")
    truth = {"store_fingerprint": "f", "statement": "Prices are made up."}
    (tmp_path / "market.truth.json").write_text(json.dumps(truth))
    return store, expected


def statement(store, table=None, min_pairs=2, fingerprint="f", generated=None, best=None) -> str:
    table = common_pairs([make_run("a", 1)])[0] if table is None else table
    return "\n".join(generated_statement({"a": Origin(store, fingerprint, generated, best)}, table, min_pairs))


def test_a_generated_market_is_named_with_the_best_possible_figures(generated):
    store, expected = generated
    table, _ = common_pairs([make_run("a", 1)])
    best = table.assign(best=expected).groupby("datetime").apply(lambda day: day["best"].corr(day["label"])).mean()
    for fingerprint, recorded in (("f", True), ("f", None), (None, None)):
        line = statement(store, table, fingerprint=fingerprint, generated=recorded)
        assert f"IC {best:.4f}" in line and "Prices are made up." in line and str(store) in line
    assert "no day has 500 pairs" in statement(store, table, 500, generated=True)
    both = {"a": Origin(store, "f", True, None), "b": Origin(store, None, None, None)}
    assert len(generated_statement(both, table, 2)) == 1


def test_a_generated_market_that_is_gone_or_replaced_is_named_all_the_same(generated, tmp_path):
    store, _ = generated
    for place, fingerprint in ((tmp_path / "gone", "f"), (store, "older")):
        line = statement(place, fingerprint=fingerprint, generated=True, best={"csi1000": 0.1})
        assert 'best possible IC over all years {"csi1000": 0.1}' in line and "generated" in line
        assert "not known" in statement(place, fingerprint=fingerprint)
    metadata = json.loads((store / "qlib_ext_store.json").read_text())
    (store / "qlib_ext_store.json").write_text(json.dumps({**metadata, "generated": False}))
    assert "generated" in statement(store, fingerprint="older", generated=True)
    assert statement(store) == "" and statement(tmp_path / "gone", generated=False) == ""


def test_a_market_without_signal_says_so(generated):
    store, _ = generated
    truth = json.loads((store.parent / "market.truth.json").read_text())
    (store.parent / "market.truth.json").write_text(json.dumps({**truth, "switches": {"null": True}}))
    assert "no signal at all: best possible IC 0" in statement(store, generated=True)


def test_the_command_line_names_a_generated_store(tracked, generated, tmp_path, capsys):
    from mlflow.tracking import MlflowClient

    uri, identifiers = tracked
    (tmp_path / "add").mkdir()
    pd.to_pickle({"qlib_init": {"provider_uri": {"day": str(generated[0])}}}, tmp_path / "add" / "config")
    MlflowClient(tracking_uri=uri).log_artifact(identifiers[2], str(tmp_path / "add" / "config"))
    assert module.main(["--uri", uri, "--min-pairs", "2", identifiers[2], "--csv", str(tmp_path / "table.csv")]) == 0
    assert "Generated market" in capsys.readouterr().out
    assert "best possible" in pd.read_csv(tmp_path / "table.csv")["data"][0]
    assert module.main(["--uri", uri, "--min-pairs", "2", identifiers[0]]) == 0
    assert "Whether the data of master were generated is not known" in capsys.readouterr().out
