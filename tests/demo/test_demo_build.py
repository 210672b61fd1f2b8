"""The demo market as a store: the truth beside it, switches, what is left alone and what is made again."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_ext.demo.__main__ import main
from qlib_ext.demo.build import best_ic_text, build_demo, read_truth, truth_paths
from qlib_ext.demo.market import GENERATOR, make_market
from qlib_ext.demo.signal import PARTS
from qlib_ext.errors import DataError


@pytest.fixture(scope="module", autouse=True)
def small_markets(small_options):
    """What build_demo makes in these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qlib_ext.demo.build.make_market", lambda seed, **switches: make_market(seed, **small_options, **switches))
        yield


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build_demo(tmp_path_factory.mktemp("demo") / "store", seed=5)


def no_market(*arguments, **options):
    pytest.fail("generated again")


def test_build_writes_store_and_truth(store, small):
    summary = read_truth(store)
    assert summary["seed"] == 5 and summary["generator"] == GENERATOR == 4 and "generated" in summary["statement"]
    assert summary["switches"] == {"drift": False, "null": False, "size_groups": False} and list(summary["parts"]) == list(PARTS)
    assert summary["index_sizes"] == {"csi300": 12, "csi500": 20, "csi1000": 40} and "special_cases" in summary
    metadata = json.loads((store / "qlib_ext_store.json").read_text())
    assert metadata["generated"] is True and metadata["index_sizes"] == summary["index_sizes"]
    truth = pd.read_parquet(truth_paths(store)[1])
    assert list(truth.columns) == ["date", "instrument", "expected"] and len(truth) == small.listed.sum()
    assert truth["expected"].dtype == np.float64
    assert sorted(path.name for path in store.parent.iterdir()) == ["store", "store.truth.json", "store.truth.parquet"]


def test_a_finished_store_is_left_and_another_one_is_not_mistaken_for_it(store, monkeypatch):
    monkeypatch.setattr("qlib_ext.demo.build.make_market", no_market)
    assert build_demo(store, seed=5) == store
    with pytest.raises(DataError, match="has seed 5, switches none .* asked are 6, none .* --overwrite"):
        build_demo(store, seed=6)
    with pytest.raises(DataError, match="asked are 5, null .* --overwrite"):
        build_demo(store, seed=5, null=True)
    with pytest.raises(DataError, match="asked are 5, drift"):
        build_demo(store, seed=5, drift=True)


def test_the_best_possible_ic_in_words(store, tmp_path, caplog):
    words = best_ic_text(read_truth(store))
    totals = {name: values["total"] for name, values in read_truth(store)["best_possible_ic"].items()}
    assert words == "best possible IC: " + ", ".join(f"{name} {total:.4f}" for name, total in totals.items()) and "all 0." in words
    with caplog.at_level("INFO", logger="qlib_ext.demo"):
        null = build_demo(tmp_path / "null", seed=5, null=True)
    assert f"{null}: no signal: best possible IC 0. This market" in caplog.text


def test_prices_in_the_store_are_those_of_the_market(store, small):
    stock = int(np.argmax(small.listed[0]))
    values = np.fromfile(store / "features" / small.instruments[stock].lower() / "close.day.bin", dtype="<f4")
    np.testing.assert_allclose(values[1:], small.adjusted_close()[int(values[0]) :, stock][: len(values) - 1], rtol=1e-6)


def test_a_store_of_an_older_generator_is_replaced_and_it_says_so(store, caplog):
    truth_file = truth_paths(store)[0]
    old = json.loads(truth_file.read_text()) | {"generator": 1, "seed": 3}
    old.pop("switches")
    truth_file.write_text(json.dumps(old))
    with caplog.at_level("WARNING", logger="qlib_ext.demo"):
        build_demo(store, seed=5)
    assert "generator version 1" in caplog.text and "replaced" in caplog.text
    assert read_truth(store)["generator"] == GENERATOR and read_truth(store)["seed"] == 5


def test_build_makes_an_unfinished_store_again_and_leaves_foreign_data_alone(store):
    truth_paths(store)[0].unlink()
    assert read_truth(store) is None
    build_demo(store, seed=5)
    assert read_truth(store)["seed"] == 5
    metadata_file = store / "qlib_ext_store.json"
    text = metadata_file.read_text()
    metadata_file.write_text(text.replace('"generated": true', '"generated": false'))
    try:
        with pytest.raises(DataError, match="not generated"):
            build_demo(store, seed=5, overwrite=True)
    finally:
        metadata_file.write_text(text)


def test_command_line_knows_the_switches(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "null"), "--seed", "5", "--null"]) == 0
    summary = read_truth(tmp_path / "null")
    assert summary["switches"] == {"drift": False, "null": True, "size_groups": False}
    assert all(value is None for values in summary["best_possible_ic"].values() for value in values.values())
    assert main(["--out", str(tmp_path / "null"), "--seed", "5"]) == 1
    assert "switches null" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path / "both"), "--null", "--drift"])


@pytest.mark.parametrize("seed", ["-1", "one"])
def test_a_seed_that_is_none_is_refused(tmp_path, capsys, seed):
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "store"), "--seed", seed])
    assert f"argument --seed: invalid seed value: '{seed}'" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_named_before_the_market_is_made(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("qlib_ext.demo.build.make_market", no_market)
    (tmp_path / "file").write_text("")
    for out in ("/proc/x", tmp_path / "file" / "store"):
        assert main(["--out", str(out)]) == 1
        assert f"store {out} cannot be written (" in capsys.readouterr().err


def test_interrupting_leaves_no_traceback_and_no_folder(tmp_path, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("qlib_ext.demo.build.make_market", interrupted)
    assert main(["--out", str(tmp_path / "store")]) == 130
    assert "interrupted" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_market_facts_of_a_demo_store_tell_its_best_possible_ic(store, capsys, monkeypatch):
    file = Path(__file__).resolve().parents[2] / "scripts" / "market_facts.py"
    spec = importlib.util.spec_from_file_location("market_facts_of_demo", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "read_store", lambda *arguments: {})
    monkeypatch.setattr(script, "market_facts", lambda market: {"fact": 1.0})
    assert script.main([str(store)]) == 0
    assert capsys.readouterr().out.endswith(f"\n\n{store} (generated): {best_ic_text(read_truth(store))}\n")
    with pytest.raises(SystemExit, match="2"):
        script.main([str(store), "--start", "foo"])
    assert "argument --start: invalid day value: 'foo'" in capsys.readouterr().err
