"""The command line that trains a pack: what it reads, what it says, what it leaves (the bare machine is in test_pack)."""
import json
import re

import pytest
import torch

from qlib_ext.data.pack import pack_panel
from qlib_ext.errors import ConfigError
from qlib_ext.models.gru import GRU
from qlib_ext.training.__main__ import build_model, main, read_config
from small_panels import QUIET, small_panel

MODEL = {"class": "GRU", "module_path": "qlib_ext.models.gru",
         "kwargs": {"hidden_size": 4, "trainer": {**QUIET, "epochs": 2, "lr": 0.01}}}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("QLIB_EXT_HOME", str(tmp_path / "home"))


@pytest.fixture
def pack(tmp_path):
    return pack_panel(small_panel(), tmp_path / "panel.pack")[0]


def written(tmp_path, content, name="model.json"):
    file = tmp_path / name
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.mark.parametrize("content", [MODEL, {"model": MODEL}, {"task": {"model": MODEL, "dataset": {}}, "qlib_init": {}}])
def test_a_model_section_or_a_whole_workflow(tmp_path, content):
    assert read_config(written(tmp_path, content)) == MODEL


def test_yaml_where_it_can_be_read(tmp_path):
    text = "class: GRU\nmodule_path: qlib_ext.models.gru\nkwargs:\n  hidden_size: 4\n"
    assert read_config(written(tmp_path, text, "model.yaml"))["kwargs"] == {"hidden_size": 4}


@pytest.mark.parametrize("name, content, said", [
    ("a.json", "{", "cannot be read"), ("a.yaml", "a: [", "cannot be read"), ("a.yaml", "a:\n\t- b", "cannot be read"),
    ("a.json", "[1]", "class and module_path"), ("a.json", '{"class": "GRU"}', "class and module_path"),
    ("a.yaml", "", "class and module_path"),
    ("a.json", '{"task": [1]}', "class and module_path"),
])
def test_configurations_that_cannot_be_read(tmp_path, name, content, said):
    with pytest.raises(ConfigError, match=f"{name}.*{said}"):
        read_config(written(tmp_path, content, name))
    with pytest.raises(ConfigError, match="absent.json does not exist"):
        read_config(tmp_path / "absent.json")


@pytest.mark.parametrize("changes, said", [
    ({"module_path": "qlib_ext.models.gruu"}, "qlib_ext.models.gruu.GRU cannot be imported"), ({"class": "GRUU"}, "GRUU"),
    ({"class": "GRUNet"}, "GRUNet is no model"), ({"kwargs": {"hidden": 3}}, "does not take"), ({"kwargs": [3]}, "kwargs"),
])
def test_models_that_cannot_be_built(changes, said):
    with pytest.raises(ConfigError, match=said):
        build_model({**MODEL, **changes})
    assert isinstance(build_model({**MODEL, "kwargs": None}), GRU)
    assert isinstance(build_model({"class": "GRU", "module_path": "qlib_ext.models.gru"}), GRU)


def test_it_trains_and_says_where_the_weights_are(tmp_path, pack, capsys):
    assert main([str(pack), str(written(tmp_path, MODEL))]) == 0
    told = capsys.readouterr().out
    assert f"saved {pack}.model.pt; kept epoch" in told and "of 2" in told
    stored = torch.load(f"{pack}.model.pt", weights_only=True)
    expected = GRU(**MODEL["kwargs"]).fit_panel(small_panel()).net_.state_dict()
    assert all(torch.equal(stored["weights"][name], value) for name, value in expected.items())
    assert main([str(pack), str(written(tmp_path, MODEL)), "--out", str(tmp_path / "a" / "b.pt")]) == 0
    assert (tmp_path / "a" / "b.pt").is_file()


def test_faults_are_one_sentence_and_status_1(tmp_path, pack, capsys):
    config = written(tmp_path, MODEL)
    wide = written(tmp_path, {**MODEL, "kwargs": {"d_feat": 158}}, "wide.json")
    for arguments, said in (([str(tmp_path / "no.pack"), str(config)], "DataError: .*no.pack"),
                            ([str(pack), str(tmp_path / "no.json")], "ConfigError: .*no.json"),
                            ([str(config), str(config)], "DataError: .*model.json"),
                            ([str(pack), str(wide)], "ShapeError: .*158.*3")):
        assert main(arguments) == 1
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert re.match(said, error), error
    with pytest.raises(SystemExit):
        main([])
