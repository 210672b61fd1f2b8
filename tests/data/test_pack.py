"""Packed panels: equal after the round trip, damage is named, training needs torch and numpy alone."""
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import qlib_ext
from qlib_ext.data import pack
from qlib_ext.data.pack import load_panel, pack_panel
from qlib_ext.data.panel import Block
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.models.gru import GRU
from small_panels import QUIET, small_panel

ROOT = Path(qlib_ext.__file__).resolve().parents[1]
SHARD = 2048 / 2**20


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path / "home"))


def assert_equal(one, two, features=np.testing.assert_array_equal):
    for name in ("rows", "days", "instruments", "universe", "label", "label_eval", "label_raw"):
        first, second = getattr(one, name), getattr(two, name)
        assert first.dtype == second.dtype and first.shape == second.shape, name
        assert first.tobytes() == second.tobytes(), name
    for name in ("label_names", "segments", "missing_rows", "meta", "span", "training"):
        assert getattr(one, name) == getattr(two, name), name
    assert list(one.blocks) == list(two.blocks)
    for name, block in one.blocks.items():
        other = two.blocks[name]
        features(block.values, other.values)
        assert (block.window, block.columns, block.transform) == (other.window, other.columns, other.transform)
    for name in ("day_aux", "stock_aux"):
        first, second = getattr(one, name), getattr(two, name)
        assert list(first) == list(second)
        assert all(first[key].tobytes() == second[key].tobytes() for key in first)


def rich_panel(**changes):
    """Two blocks, one of them with a transform, two horizons, values per stock."""
    panel = small_panel(horizons=2, missing_rows="ffill_bfill", **changes)
    count = len(panel.label)
    style = np.arange(3.0 * count, dtype=np.float32).reshape(-1, 3)
    style[-1] = np.nan
    panel.stock_aux["style"] = style
    panel.blocks["bars"] = Block(np.r_[style[:-1], style[-1:]], 2, ["a", "b", "c"], torch.nn.functional.relu)
    return panel


@pytest.mark.parametrize("shard", [None, SHARD])
def test_round_trip(tmp_path, shard):
    panel = rich_panel()
    files = pack_panel(panel, tmp_path / "deep" / "panel.pack", shard_mib=shard)
    assert sorted(files) == sorted((tmp_path / "deep").iterdir()), "nothing else is left there"
    assert_equal(panel, load_panel(tmp_path / "deep" / "panel.pack"))
    if shard:
        assert len(files) > 3 and all(file.stat().st_size <= 2048 for file in files)


def test_float16_halves_the_features_and_rounds_them_alone(tmp_path):
    panel = small_panel(days=120, features=40)
    (whole,), (half,) = pack_panel(panel, tmp_path / "a"), pack_panel(panel, tmp_path / "b", "float16")
    values = panel.blocks["stock"].values
    assert whole.stat().st_size - half.stat().st_size >= values.nbytes // 2
    back = load_panel(tmp_path / "b")
    assert back.blocks["stock"].values.dtype == np.float16
    assert_equal(panel, back, lambda one, two: np.testing.assert_allclose(two.astype(np.float32), one, rtol=2**-11, atol=1e-7))
    values[0, 0] = 70_000
    with pytest.raises(DataError, match="'stock'.*65504.*float32"):
        pack_panel(panel, tmp_path / "c", "float16")
    assert not (tmp_path / "c").exists()


def test_shards_missing_damaged_or_out_of_order(tmp_path):
    def fresh():
        return pack_panel(small_panel(), tmp_path / "p", shard_mib=SHARD)

    files = fresh()
    assert len(files) >= 4
    files[1].unlink()
    with pytest.raises(DataError, match="missing"):
        load_panel(tmp_path / "p")
    files = fresh()
    files[-1].unlink()
    with pytest.raises(DataError, match=f"{len(files) - 1} shards of {len(files)}"):
        load_panel(tmp_path / "p")
    files = fresh()
    files[0].unlink()
    with pytest.raises(DataError):
        load_panel(tmp_path / "p")
    files = fresh()
    content = bytearray(files[2].read_bytes())
    content[200] ^= 1
    files[2].write_bytes(content)
    with pytest.raises(DataError, match=r"p\.002.*damaged"):
        load_panel(tmp_path / "p")
    files = fresh()
    files[2].write_bytes(files[2].read_bytes()[:1000])
    with pytest.raises(DataError, match=r"p\.002"):
        load_panel(tmp_path / "p")
    files = fresh()
    one, two = files[1].read_bytes(), files[2].read_bytes()
    files[1].write_bytes(two)
    files[2].write_bytes(one)
    with pytest.raises(DataError, match="damaged"):
        load_panel(tmp_path / "p")
    changed = small_panel()
    changed.blocks["stock"].values += 1
    changed.label_raw[:-1] += 1
    other = pack_panel(changed, tmp_path / "q", shard_mib=SHARD)
    files = fresh()
    assert len(other) == len(files)
    first = next(k for k, (one, two) in enumerate(zip(files, other)) if one.read_bytes() != two.read_bytes())
    files[first].write_bytes(other[first].read_bytes())
    with pytest.raises(DataError, match="damaged"):
        load_panel(tmp_path / "p")
    fresh()
    load_panel(tmp_path / "p")


@pytest.mark.parametrize("make", [
    lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"no panel at all"),
    lambda path: np.save(open(path, "wb"), np.arange(3)), lambda path: np.savez(open(path, "wb"), a=np.arange(3)),
    lambda path: torch.save({"a": 1}, path), lambda path: path.write_bytes(b"PK\x03\x04 cut off"), lambda path: path.mkdir(),
    lambda path: None,
], ids=["empty", "text", "npy", "npz", "torch", "zip", "folder", "absent"])
def test_what_is_no_pack(tmp_path, make):
    make(tmp_path / "p")
    with pytest.raises(DataError, match="p"):
        load_panel(tmp_path / "p")


def test_a_file_cut_short(tmp_path):
    file, = pack_panel(small_panel(), tmp_path / "p")
    whole = file.read_bytes()
    for size in (len(whole) // 3, len(whole) - 10):
        file.write_bytes(whole[:size])
        with pytest.raises(DataError, match="pack it again"):
            load_panel(file)


@pytest.mark.parametrize("shard", [None, SHARD])
@pytest.mark.parametrize("old_shard", [None, SHARD])
def test_an_interrupted_write_leaves_the_old_pack(tmp_path, monkeypatch, shard, old_shard):
    old = small_panel()
    pack_panel(old, tmp_path / "p", shard_mib=old_shard)

    def interrupted(file, **arrays):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(pack.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pack_panel(small_panel(seed=1), tmp_path / "p", shard_mib=shard)
    monkeypatch.undo()
    assert_equal(old, load_panel(tmp_path / "p"))

    hash_calls = []

    def out_of_space(body, digest_size):
        hash_calls.append(len(body))
        if len(hash_calls) == 3:
            raise OSError("no space left on device")
        return original(body, digest_size=digest_size)

    if shard:
        original = pack.hashlib.blake2b
        monkeypatch.setattr(pack.hashlib, "blake2b", out_of_space)
        with pytest.raises(OSError, match="no space"):
            pack_panel(small_panel(seed=1), tmp_path / "p", shard_mib=shard)
        monkeypatch.undo()
        assert_equal(old, load_panel(tmp_path / "p"))
    assert not [file for file in tmp_path.glob(".p*")], "leftovers"
    pack_panel(small_panel(seed=1), tmp_path / "p", shard_mib=shard)
    assert_equal(small_panel(seed=1), load_panel(tmp_path / "p"))


def test_packing_again_in_another_number_of_files(tmp_path):
    for shard in (SHARD, None, 3 * SHARD, SHARD, 3 * SHARD):
        files = pack_panel(small_panel(), tmp_path / "p", shard_mib=shard)
        assert sorted(files) == sorted(tmp_path.glob("p*"))
        assert_equal(small_panel(), load_panel(tmp_path / "p"))


def test_leftovers_of_a_killed_process_go_and_those_of_a_running_one_stay(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True).stdout.strip()
    (tmp_path / f".p.writing-{gone}").write_bytes(b"x")
    (tmp_path / f".p.writing-{os.getppid()}").write_bytes(b"x")
    pack_panel(small_panel(), tmp_path / "p")
    assert [file.name for file in tmp_path.glob(".p*")] == [f".p.writing-{os.getppid()}"]


def test_refusals(tmp_path):
    panel = small_panel()
    for options, said in (({"dtype": "int8"}, "'int8'.*float16"), ({"shard_mib": 0}, "positive"), ({"shard_mib": -1}, "positive"),
                          ({"shard_mib": 1e-5}, "shard_mib"), ({"shard_mib": 45 / 2**20}, "shard_mib.*1000")):
        with pytest.raises(ConfigError, match=said):
            pack_panel(panel, tmp_path / "p", **options)
    panel.blocks["stock"].transform = lambda x: x
    with pytest.raises(ConfigError, match="'stock'.*importable by name"):
        pack_panel(panel, tmp_path / "p")
    assert not list(tmp_path.iterdir())


def test_a_later_format_is_named(tmp_path, monkeypatch):
    pack_panel(small_panel(), tmp_path / "p")
    monkeypatch.setattr(pack, "FORMATS", (0,))
    with pytest.raises(DataError, match=r"format 1.*reads \(0,\)"):
        load_panel(tmp_path / "p")


# ---- training on it ------------------------------------------------------------------------------------------------------------
OPTIONS = {"hidden_size": 6, "trainer": {**QUIET, "epochs": 2, "lr": 0.01, "seed": 4}}


def same_weights(one, two):
    one, two = one.net_.state_dict(), two.net_.state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


def test_training_on_the_pack_gives_the_same_bits(tmp_path):
    panel = small_panel()
    pack_panel(panel, tmp_path / "p", shard_mib=SHARD)
    direct, packed = GRU(**OPTIONS).fit_panel(panel), GRU(**OPTIONS).fit_panel(load_panel(tmp_path / "p"))
    assert same_weights(direct, packed)
    panel.label[::2] += 0.5
    assert not same_weights(direct, GRU(**OPTIONS).fit_panel(panel)), "the comparison can fail"
    pack_panel(small_panel(), tmp_path / "h", "float16")
    half = GRU(**OPTIONS).fit_panel(load_panel(tmp_path / "h"))
    one, two = (model.predict_panel(small_panel().view("test"))[2] for model in (direct, half))
    assert 0 < np.abs(one - two).max() < 0.01


BLOCKER = '''
import sys
from importlib.machinery import PathFinder
class Bare(PathFinder):
    absent = {"qlib", "pandas", "scipy", "pyarrow", "tqdm", "mlflow", "yaml", "ruamel", "lightgbm", "sklearn",
              "matplotlib", "jinja2"}
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in cls.absent else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
'''


def bare_python(tmp_path, *arguments):
    """Python with nothing but torch and numpy beside this project."""
    site = tmp_path / "site"
    site.mkdir(exist_ok=True)
    (site / "sitecustomize.py").write_text(BLOCKER)
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)


def test_training_where_only_torch_and_numpy_are(tmp_path):
    done = bare_python(tmp_path, "-c", "import pandas")
    assert done.returncode == 1 and "No module named 'pandas'" in done.stderr, "the blocker must block"
    panel = small_panel()
    pack_panel(panel, tmp_path / "p", shard_mib=SHARD)
    config = {"class": "GRU", "module_path": "qlib_ext.models.gru",
              "kwargs": {**OPTIONS, "trainer": {**OPTIONS["trainer"], "progress": True, "threads": 1}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    done = bare_python(tmp_path, "-m", "qlib_ext.training", "p", "config.json", "--out", "out/model.pt")
    assert done.returncode == 0, done.stderr
    assert "saved out/model.pt; kept epoch" in done.stdout
    here = GRU(**OPTIONS).fit_panel(panel)
    options = {**OPTIONS, "trainer": {**QUIET, "epochs": 0}, "checkpoint": str(tmp_path / "out" / "model.pt")}
    loaded = GRU(**options).fit_panel(panel)
    assert same_weights(here, loaded)
    for one, two in zip(here.predict_panel(panel.view("test")), loaded.predict_panel(panel.view("test"))):
        np.testing.assert_array_equal(one, two)
