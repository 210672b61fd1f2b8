"""Comparison of runs: identical pairs in every row, hand-computed portfolio figures, and what is refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import DataError
from qlib_ext.report import compare as module
from qlib_ext.report.compare import Origin, Run, Runs, common_pairs, compare, format_table, generated_statement, portfolio_figures

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


# ---- groups of seeds ----------
LABELLED = {"panel": {"universe": "csi300", "label": ["Ref($close,-3)/Ref($close,-1)-1"]}}


@pytest.fixture(scope="module")
def seed_runs(several_runs, tmp_path_factory):
    """Two experiments of three and two seeds, the first with reports, and an ensemble with its members, beside `several_runs`."""
    from mlflow.tracking import MlflowClient

    folder, made = tmp_path_factory.mktemp("seeds"), {}
    shutil.copy(several_runs[0] / "tracking.db", folder / "tracking.db")
    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/tracking.db")
    for name, numbers in (("net", (1, 2, 3)), ("tree", (4, 5)), ("both", (6,))):
        place = client.create_experiment(name, artifact_location=str(folder / "artifacts" / name))
        made[name] = [add_run(client, folder, place, seed=number, card=LABELLED) for number in numbers]
    extra = folder / "extra"
    (extra / "members").mkdir(parents=True)
    for number in (7, 8):
        make_run("x", number).score.to_frame("score").to_pickle(extra / "members" / f"pred_seed_{number}.pkl")
    client.log_artifacts(made["both"][0], str(extra))
    for number, identifier in enumerate(made["net"]):
        (folder / str(number) / "portfolio_analysis").mkdir(parents=True)
        report([0.001 * number, 0.002, 0.0, 0.001, 0.003, 0.001], [0.0] * 6).to_pickle(
            folder / str(number) / "portfolio_analysis" / "report_normal_1day.pkl")
        client.log_artifacts(identifier, str(folder / str(number)))
    return folder, made


@pytest.fixture
def seeds(seed_runs, tmp_path):
    """A copy of that database to add runs to, its runs, and an empty folder."""
    shutil.copy(seed_runs[0] / "tracking.db", tmp_path / "tracking.db")
    return f"sqlite:///{tmp_path}/tracking.db", seed_runs[1], tmp_path


def daily(seed: int, method: str = "pearson") -> np.ndarray:
    frame = pd.DataFrame({"score": make_run("x", seed).score, "label": LABEL})
    return frame.groupby(level="datetime").apply(lambda day: day["score"].corr(day["label"], method=method)).to_numpy()


def run_module(uri, *arguments) -> int:
    return module.main(["--uri", uri, "--min-pairs", "2", *arguments])


def test_runs_of_an_experiment_are_a_group_and_are_tested_against_a_baseline(seeds, capsys):
    uri, made, folder = seeds
    assert run_module(uri, "--experiment", "net", "--experiment", "tree", "--baseline", "tree", "--csv", str(folder / "table.csv")) == 0
    out = capsys.readouterr().out
    assert "lag 2" in out and "mean +- standard deviation" in out
    table = pd.read_csv(folder / "table_groups.csv", index_col="group")
    assert table["runs"].to_dict() == {"net": 3, "tree": 2}
    means = [daily(seed).mean() for seed in (1, 2, 3)]
    assert table.loc["net", "IC"] == pytest.approx(np.mean(means)) and table.loc["net", "IC std"] == pytest.approx(np.std(means, ddof=1))
    assert f"{np.mean(means):.4f} +- {np.std(means, ddof=1):.4f}" in out
    from qlib_ext.report.metrics import newey_west_t
    for kind, method in (("IC", "pearson"), ("RankIC", "spearman")):
        mine, base = (np.mean([daily(seed, method) for seed in group], axis=0) for group in ((1, 2, 3), (4, 5)))
        difference = mine - base
        assert table.loc["net", f"{kind} difference"] == pytest.approx(difference.mean())
        assert table.loc["net", f"{kind} t"] == pytest.approx(newey_west_t(difference, 2)) and table.loc["net", "paired days"] == 6
    assert np.isnan(table.loc["tree", "IC t"]) and table.loc["net", "IR"] > 0 and np.isnan(table.loc["tree", "IR"])
    assert len(pd.read_csv(folder / "table.csv")) == 5
    assert run_module(uri, "--experiment", "net", "tree", "--baseline", "tree", "--lag", "1") == 0
    assert "lag 1" in capsys.readouterr().out
    assert run_module(uri, "net", "tree") == 0
    assert "Groups" not in capsys.readouterr().out, "single runs as before"


def test_groups_by_name_and_members_of_an_ensemble(seeds, capsys):
    uri, made, folder = seeds
    csv = str(folder / "named.csv")
    few = f"few={made['net'][0]},{made['net'][2]}"
    assert run_module(uri, "--group", few, "--group", "base=tree", "--baseline", "base", "--csv", csv) == 0
    table = pd.read_csv(folder / "named_groups.csv", index_col="group")
    assert table["runs"].to_dict() == {"few": 2, "base": 1}
    assert table.loc["few", "IC"] == pytest.approx((daily(1).mean() + daily(3).mean()) / 2)
    capsys.readouterr()
    assert run_module(uri, "both", "--members", "--baseline", "both:members", "--csv", csv) == 0
    out = capsys.readouterr().out
    table = pd.read_csv(folder / "named_groups.csv", index_col="group")
    assert table["runs"].to_dict() == {"both": 1, "both:members": 2}
    assert table.loc["both:members", "IC"] == pytest.approx((daily(7).mean() + daily(8).mean()) / 2)
    assert table.loc["both", "IC difference"] == pytest.approx((daily(6) - (daily(7) + daily(8)) / 2).mean())
    assert "both:seed_7" in out and out.count("tracking database") == 1
    # without runs asked for, groups stay under the heading of their universe
    assert run_module(uri, "--baseline", "net") == 0
    out = capsys.readouterr().out
    assert out.count("Groups") == out.count("Differences") == 1


def test_a_seed_run_twice_is_named(seeds, capsys):
    uri, made, folder = seeds
    from mlflow.tracking import MlflowClient
    client = MlflowClient(tracking_uri=uri)
    add_run(client, folder, client.get_experiment_by_name("tree").experiment_id, seed=4, card=LABELLED)
    assert run_module(uri, "--experiment", "tree") == 0
    assert "scores as an earlier run of the group does" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, said", [
    (["net", "--baseline", "trees"], "--baseline 'trees' is not among the groups ['net']"),
    (["--group", "net"], "--group 'net': give NAME=run1,run2"), (["--group", "a=net,net"], "each name and run once"),
    (["--group", "a=net", "--group", "a=tree"], "each name and run once"), (["--group", "a=nets"], "no experiment 'nets'"),
    (["--group", "a=net,{net}"], "a run is in it twice"),
    (["--experiment", "net", "--group", "net={net}"], "is also the experiment of net"),
    (["net", "--members"], "none of ['net'] kept members"), (["net", "tree", "--baseline", "net", "--lag", "9"], "lag 9"),
])
def test_groups_that_cannot_be(seeds, capsys, arguments, said):
    uri, made, _ = seeds
    latest = Runs(uri).named("net").info.run_id
    assert run_module(uri, *(text.format(net=latest) for text in arguments)) == 1
    assert said in capsys.readouterr().err


def test_the_label_is_read_from_the_card_or_the_task(seeds):
    from mlflow.tracking import MlflowClient
    uri, made, folder = seeds
    client, runs = MlflowClient(tracking_uri=uri), Runs(uri)
    place = client.create_experiment("labels", artifact_location=str(folder / "artifacts" / "labels"))
    for label in ([["Ref($close,-2)/$close-1", "other"], ["A", "B"]], ["Ref($close,-2)/$close-1"], "Ref($close,-2)/$close-1"):
        task = {"dataset": {"kwargs": {"handler": {"kwargs": {"label": label}}}}}
        assert runs.label_expression(runs.named(add_run(client, folder, place, task=task))) == "Ref($close,-2)/$close-1"
    mapped = {"dataset": {"kwargs": {"handler": {"kwargs": {"label": {"price": "vwap", "horizons": [5, 10]}}}}}}
    assert runs.label_expression(runs.named(add_run(client, folder, place, task=mapped))) == "Ref($vwap, -6) / Ref($vwap, -1) - 1"
    assert runs.label_expression(runs.named(add_run(client, folder, place, task={"dataset": {}}))) is None
    assert runs.label_expression(runs.named(made["net"][0])) == LABELLED["panel"]["label"][0]
