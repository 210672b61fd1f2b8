"""The evidence of DecompGRU: variants that differ in one thing, sizes alike, both losses as one score, tables against pandas."""
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_panels import small_panel

from qlib_ext.errors import ConfigError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))
import decomp_gru_evidence as evidence  # noqa: E402
import incremental_cells as cells  # noqa: E402
import incremental_table as tables  # noqa: E402

SECTION = {"class": "DecompGRU", "module_path": "qlib_ext.models.decomp_gru", "kwargs": {
    "hidden_size": 4, "ts": "average", "days": 2, "cs": "cap", "groups": 3, "loss": "ic",
    "trainer": {"lr": 0.01, "epochs": 1, "device": "cpu", "resume": False}}}


def test_variants_differ_in_their_modules_alone(tmp_path):
    sections = {name: evidence.configured(SECTION, name, 3, {"epochs": 2, "threads": 1}) for name in evidence.VARIANTS}
    full = sections["full"]["kwargs"]
    for name, changed in {"no_time": {"ts"}, "no_stocks": {"cs"}, "plain": {"ts", "cs"}, "window": {"ts"}, "market": {"cs"}}.items():
        assert {key for key, value in sections[name]["kwargs"].items() if full[key] != value} == changed
    assert full["trainer"] == {"lr": 0.01, "epochs": 2, "device": "cpu", "resume": False, "threads": 1, "seed": 3, "progress": False}
    assert sections["gru"] == {"class": "GRU", "module_path": "qlib_ext.models.gru", "kwargs": {
        "hidden_size": 4, "num_layers": 2, "loss": "ic", "trainer": full["trainer"]}}
    assert evidence.configured(SECTION, "full", 0, {}, hidden=9)["kwargs"]["hidden_size"] == 9 and SECTION["kwargs"]["hidden_size"] == 4
    with pytest.raises(ConfigError, match="variant 'half' is unknown"):
        evidence.configured(SECTION, "half", 0, {})
    panel = small_panel(days=44, features=6, meta={"embargo": 2}, segments={"train": (0, 20), "valid": (22, 32), "test": (34, 44)})
    panel.stock_aux["cap"] = np.r_[np.random.default_rng(0).normal(22, 1, len(panel.label) - 1), np.nan].astype(np.float32)[:, None]
    parameters = {}
    for name in ("full", "plain", "gru", "gru_wide"):
        record = evidence.run_cell(panel, cells.learn_torch, sections[name], tmp_path, "ic", name, 3, False, 2)
        parameters[name] = record["parameters"]
    assert parameters["plain"] - parameters["gru"] == 8, "the norm before the last layer"
    assert parameters["gru"] < parameters["full"] and abs(parameters["gru_wide"] / parameters["full"] - 1) < 0.15
    assert len({pd.read_parquet(file)["score"].sum() for file in tmp_path.glob("*.parquet")}) == 4


def made_cells(folder: Path, noise: dict[str, float], seeds=(0, 1)) -> None:
    """Cells of both losses whose score is the label, buried in noise."""
    index = pd.MultiIndex.from_product([pd.bdate_range("2023-01-02", periods=40), list("abcdefgh")], names=["datetime", "instrument"])
    draw = np.random.default_rng(0)
    label = draw.standard_normal(len(index)).astype(np.float32)
    for name, strength in noise.items():
        for seed in seeds:
            for loss in evidence.LOSSES:
                key, score = f"{loss}.{name}.s{seed}", label + strength * draw.standard_normal(len(index))
                pd.DataFrame({"score": score.astype(np.float32), "label": label}, index=index).to_parquet(folder / f"{key}.parquet")
                (folder / f"{key}.json").write_text(json.dumps({
                    "cell": key, "label": loss, "protocol": name, "seed": seed, "digest": f"{loss}{name}", "valid_ic": 0.1,
                    "valid_rank_ic": 0.2, "adaptation": None, "best_epoch": 1, "seconds": 2.0, "configuration": {"store": "none"}}))


def test_both_losses_as_one_score_and_tables_against_pandas(tmp_path, capsys):
    made_cells(tmp_path, {"full": 1.0, "plain": 3.0, "gru": 3.0})
    for _ in range(2):                                                       # what a report leaves is no cell of the next
        assert evidence.main(["--report", "--out", str(tmp_path), "--min-pairs", "3", "--store", ""]) == 0
    content = json.loads((tmp_path / "figures.json").read_text())
    assert len(content["table"]) == 9 and "ic.full" in (tmp_path / "report.txt").read_text()
    daily = {}
    for name in ("full", "plain"):
        for seed in (0, 1):
            parts = [pd.read_parquet(tmp_path / f"{loss}.{name}.s{seed}.parquet").astype(float) for loss in evidence.LOSSES]
            z = [one["score"].groupby(level="datetime").transform(lambda day: (day - day.mean()) / day.std(ddof=0)) for one in parts]
            daily[name, seed] = parts[0].assign(score=z[0] + z[1]).groupby(level="datetime").apply(
                lambda day: day["score"].corr(day["label"]))
    found = content["table"]["integrated.full"]
    assert found["IC"] == pytest.approx(np.mean([daily["full", seed].mean() for seed in (0, 1)]))
    assert found["IC"] > content["table"]["ic.full"]["IC"] and found["seconds"] == 4
    tests = {(row["less"], row["row"]): row for row in content["paired"]}
    difference = (daily["full", 0] + daily["full", 1] - daily["plain", 0] - daily["plain", 1]) / 2
    assert tests["integrated.plain", "integrated.full"]["IC difference"] == pytest.approx(difference.mean())
    assert tests["ic.plain", "ic.gru"] and ("ic.gru", "ic.plain") not in tests and ("ic.plain", "weighted_mse.full") not in tests
    assert "test years opened: report" in (tmp_path / "test_openings.log").read_text()
    assert tables.by_row(evidence.integrated([])) == {}
    assert evidence.main(["--out", str(tmp_path), "--store", "s"]) == 1 and "give --store and --cache" in capsys.readouterr().err
