"""The evidence harness: what it learns from, what it must not see, its figures against pandas, and when it refuses."""
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_panels import small_panel

from qlib_ext.data.panel import Panel
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, DataError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import incremental_cells as cells  # noqa: E402
import incremental_evidence as evidence  # noqa: E402
import incremental_table as tables  # noqa: E402

lightgbm = pytest.importorskip("lightgbm")
GRU = {"class": "GRU", "module_path": "qlib_ext.models.gru", "kwargs": {
    "hidden_size": 3, "num_layers": 1, "trainer": {
        "epochs": 2, "lr": 0.01, "device": "cpu", "progress": False, "resume": False, "threads": 1}}}
TREES = {"class": "LGBModel", "module_path": "qlib.contrib.model.gbdt", "kwargs": {
    "loss": "mse", "num_boost_round": 6, "early_stopping_rounds": 3, "num_leaves": 4, "min_data_in_leaf": 3, "learning_rate": 0.3,
    "trainer": {"threads": 1}}}
SHORT_TASKS = {"incremental": {"task_length": 3}, "doubleadapt": {"task_length": 3, "heads": 2}, "rolling_retrain": {"task_length": 4}}


def panel(**changes) -> Panel:
    """Days 0-19 train, 22-31 valid, 34-43 test; the label of a day needs the close two days on."""
    return small_panel(days=44, **{"meta": {"embargo": 2}, "segments": {"train": (0, 20), "valid": (22, 32), "test": (34, 44)}, **changes})


def poisoned(whole: Panel, day: int) -> Panel:
    """Other features, labels and day values from a day on, other labels of the two days before."""
    draw = np.random.default_rng(9)
    values, labels = (whole.rows[first:][whole.rows[first:] >= 0] for first in (day, day - 2))

    def change(table, rows):
        table = table.copy()
        table[rows] = draw.standard_normal((len(rows), table.shape[1]))
        return table
    block = whole.blocks["stock"]
    market = whole.day_aux["market"].copy()
    market[day:] = draw.standard_normal(market[day:].shape)
    return replace(whole, blocks={"stock": replace(block, values=change(block.values, values))}, day_aux={"market": market},
                   **{name: change(getattr(whole, name), labels) for name in ("label", "label_eval", "label_raw")})


def same(one: Panel, other: Panel) -> bool:
    pairs = [(getattr(one, name), getattr(other, name)) for name in ("rows", "lookup", "universe", "label", "label_eval", "label_raw")]
    pairs += [(one.blocks["stock"].values, other.blocks["stock"].values), (one.day_aux["market"], other.day_aux["market"])]
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in pairs)


@pytest.mark.parametrize("missing_rows", ("nan", "ffill_bfill"))
def test_leaving_out_strangers_keeps_every_batch(missing_rows):
    whole = panel(missing_rows=missing_rows)
    whole.universe[:, [2, 5]] = False
    fewer = cells.members_only(whole)
    assert fewer.instruments.tolist() == [name for n, name in enumerate(whole.instruments) if n not in (2, 5)]
    assert len(fewer.label) < len(whole.label)
    for training in (False, True):
        ours, theirs = (DaySampler(replace(one, training=training)) for one in (fewer, whole))
        for day in whole.scored_days():
            a, b = ours.batch(day), theirs.batch(day)
            assert fewer.instruments[a.stocks].tolist() == whole.instruments[b.stocks].tolist()
            for name in ("x", "y", "y_raw"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))


def test_a_blinded_panel_depends_on_nothing_later():
    whole = panel()
    assert same(cells.blinded(whole), cells.blinded(poisoned(whole, 34)))
    assert not same(cells.blinded(whole), cells.blinded(poisoned(whole, 33)))             # the last day before the test is known
    assert not same(whole, poisoned(whole, 34))
    assert len(cells.blinded(whole).view("test").scored_days()) == 0


@pytest.mark.parametrize("protocol", ("static", "incremental", "doubleadapt"))
def test_choosing_sees_what_the_run_sees_and_no_test_day(tmp_path, protocol):
    section = evidence.configured(GRU, SHORT_TASKS, protocol, 1)

    def run(whole, out, choose):
        return evidence.run_cell(whole, cells.learn_torch, section, tmp_path / out, "gru", protocol, 1, choose, 2)
    chosen, other = (run(whole, f"c{n}", True) for n, whole in enumerate((panel(), poisoned(panel(), 34))))
    whole = run(panel(), "r", False)
    for name in ("valid_ic", "valid_rank_ic", "best_epoch"):
        assert chosen[name] == other[name] == whole[name]
    assert "test" not in chosen and not list(tmp_path.glob("c0/*.parquet")) and not (tmp_path / "c0" / "test_openings.log").exists()
    assert (tmp_path / "r" / "test_openings.log").read_text().count("test years opened") == 1
    assert (whole["adaptation"] or 0) > 0 if protocol != "static" else whole["adaptation"] is None


def test_a_cell_is_made_once_and_its_figures_equal_pandas(tmp_path):
    section = evidence.configured(GRU, {}, "static", 0)

    def run(**changes):
        return evidence.run_cell(panel(), cells.learn_torch, {**section, **changes}, tmp_path, "gru", "static", 0, False, 4)
    record = run()
    frame = pd.read_parquet(tmp_path / "gru.static.s0.parquet")
    days = frame.dropna().groupby(level="datetime").filter(lambda day: len(day) >= 4).groupby(level="datetime")
    for name, method in (("IC", "pearson"), ("RankIC", "spearman")):
        expected = days.apply(lambda day: day["score"].astype(float).corr(day["label"].astype(float), method=method))
        assert record["test"][name] == pytest.approx(expected.mean()) and record["test"]["days"] == len(expected)
        assert record["test"]["ICIR" if name == "IC" else "RankICIR"] == pytest.approx(expected.mean() / expected.std())
    assert json.loads((tmp_path / "gru.static.s0.json").read_text())["test"] == record["test"]
    assert run() is None                                              # nothing is fitted again
    assert (tmp_path / "test_openings.log").read_text().count("\n") == 1
    with pytest.raises(ConfigError, match="another configuration"):
        run(kwargs={**section["kwargs"], "hidden_size": 4})


def boosted_by_hand(whole: Panel, train, valid, test) -> np.ndarray:
    def rows(span, label):
        row = [whole.rows[t, n] for t in range(*span) for n in range(len(whole.instruments)) if whole.universe[t, n]]
        row = [r for r in row if r >= 0 and np.isfinite(label[r, 0])]
        return whole.blocks["stock"].values[row], label[row, 0]
    options = {"objective": "mse", "verbosity": -1, "num_leaves": 4, "min_data_in_leaf": 3, "learning_rate": 0.3, "seed": 3,
               "num_threads": 1}
    booster = lightgbm.train(options, lightgbm.Dataset(*rows(train, whole.label)), 6, callbacks=[lightgbm.early_stopping(3, verbose=False)],
                             valid_sets=[lightgbm.Dataset(*rows(valid, whole.label_eval))])
    return booster.predict(rows(test, np.zeros_like(whole.label))[0])


def test_lightgbm_rolls_as_one_fits_by_hand(tmp_path):
    scores = {}
    for protocol in ("static", "rolling_retrain"):
        section = evidence.configured(TREES, SHORT_TASKS, protocol, 3)
        record = evidence.run_cell(panel(), cells.learn_lightgbm, section, tmp_path, "trees", protocol, 3, False, 2)
        scores[protocol] = pd.read_parquet(tmp_path / f"trees.{protocol}.s3.parquet")["score"]
    assert record["tasks"] == 3 and scores["static"].index.equals(scores["rolling_retrain"].index)
    days = scores["static"].index.get_level_values("datetime")
    borders = pd.DatetimeIndex(panel().days[[34, 38, 42]].astype("datetime64[ns]"))
    np.testing.assert_array_equal(*(one[days < borders[1]] for one in scores.values()))
    np.testing.assert_allclose(scores["static"], boosted_by_hand(panel(), (0, 20), (22, 32), (34, 44)), rtol=1e-6)
    np.testing.assert_allclose(scores["rolling_retrain"][days >= borders[2]], boosted_by_hand(panel(), (0, 28), (30, 40), (42, 44)),
                               rtol=1e-6)
    with pytest.raises(ConfigError, match="static, or rolling_retrain"):
        cells.learn_lightgbm(panel(), evidence.configured(TREES, {}, "maml", 0), False)


def test_settings_and_their_changes(tmp_path):
    (tmp_path / "s.yaml").write_text("doubleadapt: {lr: 1e-3, heads: 4}\nmodel: {trainer: {lr: 0.1}}\n")
    settings = evidence.read_settings(tmp_path / "s.yaml", ["doubleadapt.heads=2", "fast.name=doubleadapt", "fast.model.trainer.lr=0.5",
                                                            "fast.online.lr=1e-2", "model.loss.form=label"])
    section = {"class": "MASTER", "kwargs": {"loss": "weighted_mse", "trainer": {"epochs": 3, "lr": 0.2}}}
    plain, fast = (evidence.configured(section, settings, name, 7)["kwargs"] for name in ("doubleadapt", "fast"))
    assert plain == {"loss": {"name": "weighted_mse", "form": "label"}, "trainer": {"epochs": 3, "lr": 0.1, "seed": 7},
                     "rule": {"name": "doubleadapt", "lr": 0.001, "heads": 2}}
    assert fast["trainer"]["lr"] == 0.5 and fast["rule"] == {"name": "doubleadapt", "online": {"lr": 0.01}}
    assert section["kwargs"]["loss"] == "weighted_mse"
    with pytest.raises(ConfigError, match="--set 'lr'"):
        evidence.read_settings(None, ["lr"])


def made_cells(folder: Path, noise: dict[str, float], seeds=(0, 1)) -> None:
    """Cells whose score is the label, buried in noise."""
    index = pd.MultiIndex.from_product([pd.bdate_range("2023-01-02", periods=40), list("abcdefgh")], names=["datetime", "instrument"])
    draw = np.random.default_rng(0)
    label = draw.standard_normal(len(index)).astype(np.float32)
    folder.mkdir(exist_ok=True)
    for name, strength in noise.items():
        for seed in seeds:
            key = f"gru.{name}.s{seed}"
            score = label + strength * draw.standard_normal(len(index))
            pd.DataFrame({"score": score.astype(np.float32), "label": label}, index=index).to_parquet(folder / f"{key}.parquet")
            (folder / f"{key}.json").write_text(json.dumps({
                "cell": key, "label": "gru", "protocol": name, "seed": seed, "digest": name, "valid_ic": 0.1, "valid_rank_ic": 0.1 + seed,
                "adaptation": None if name == "static" else 0.5, "best_epoch": 1, "seconds": 2.0, "configuration": {"store": "none"}}))


def test_report_against_pandas(tmp_path, capsys):
    made_cells(tmp_path, {"static": 3.0, "maml": 1.0})
    assert evidence.main(["--report", "--out", str(tmp_path), "--min-pairs", "3"]) == 0
    table, tests = pd.read_csv(tmp_path / "table.csv", index_col=0), pd.read_csv(tmp_path / "paired.csv")
    names = ("static.s0", "static.s1", "maml.s0", "maml.s1")
    daily = {name: pd.read_parquet(tmp_path / f"gru.{name}.parquet").astype(float).groupby(level="datetime").apply(
        lambda day: day["score"].corr(day["label"])) for name in names}
    own = pd.Series({key: one.mean() for key, one in daily.items()})
    assert table.loc["gru.maml", "IC"] == pytest.approx(own[["maml.s0", "maml.s1"]].mean())
    assert table.loc["gru.maml", "IC std"] == pytest.approx(own[["maml.s0", "maml.s1"]].std())
    assert table.loc["gru.maml", ["valid rank ic", "adaptation", "seeds", "days"]].tolist() == pytest.approx([0.6, 0.5, 2, 40])
    assert np.isnan(table.loc["gru.static", "adaptation"])
    difference = (daily["maml.s0"] + daily["maml.s1"] - daily["static.s0"] - daily["static.s1"]) / 2
    (row,) = tests.to_dict("records")
    assert (row["less"], row["row"]) == ("gru.static", "gru.maml") and row["IC difference"] == pytest.approx(difference.mean())
    assert row["IC t"] > 3 and "gru.maml" in (tmp_path / "report.txt").read_text()
    assert "test years opened: report" in (tmp_path / "test_openings.log").read_text()
    assert evidence.main(["--report", "--out", str(tmp_path), "--baseline", "gru.none"]) == 1
    assert "baseline ['gru.none'] is not there" in capsys.readouterr().err


def test_cells_that_do_not_belong_together(tmp_path):
    with pytest.raises(DataError, match="no finished cell"):
        tables.read_cells(tmp_path)
    made_cells(tmp_path, {"static": 1.0})
    frame = pd.read_parquet(tmp_path / "gru.static.s1.parquet")
    frame.assign(label=-frame["label"]).to_parquet(tmp_path / "gru.static.s1.parquet")
    with pytest.raises(DataError, match="the same labels"):
        tables.read_cells(tmp_path)
    frame.to_parquet(tmp_path / "gru.static.s1.parquet")
    found = tables.read_cells(tmp_path)
    found[1].record["digest"] = "other"
    with pytest.raises(DataError, match="one configuration"):
        tables.by_row(found)


def test_averaged_scores_weigh_seeds_alike(tmp_path):
    made_cells(tmp_path, {"static": 2.0})
    one, other = (cell.scores for cell in tables.read_cells(tmp_path))
    mean = tables.averaged([one, other])
    scaled = tables.averaged([one, other.assign(score=1000 * other["score"] + 5)])
    np.testing.assert_allclose(mean["score"], scaled["score"], atol=1e-5)
    flat = tables.averaged([one, other.assign(score=1.0)])           # a constant day says nothing
    assert np.isfinite(flat["score"]).all() and tables.figures(flat, 3) == pytest.approx(tables.figures(one, 3), abs=1e-6)
