"""Is it a store, and which one."""

import json
import shutil

import pytest

from qlib_ext.errors import DataError
from qlib_ext.store import check_store, fingerprint, read_metadata
from qlib_ext.store.metadata import combine, digest


def test_what_is_no_store_is_named(tmp_path, small_store):
    with pytest.raises(DataError, match="does not exist; make one with `python -m qlib_ext.store ingest"):
        check_store(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="is an empty folder"):
        check_store(tmp_path / "empty")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="is a file"):
        check_store(tmp_path / "file")
    shutil.copytree(small_store, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "features")
    (tmp_path / "half" / "calendars" / "day.txt").write_text("")
    with pytest.raises(DataError, match="lacks a calendar .*, features"):
        fingerprint(tmp_path / "half")


def test_broken_metadata(tmp_path, small_store):
    store = shutil.copytree(small_store, tmp_path / "store")
    file = store / "qlib_ext_store.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "format": 99}))
    with pytest.raises(DataError, match="has format 99"):
        read_metadata(store)
    file.write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        fingerprint(store)


def test_the_fingerprint_is_the_hash_of_all_files(small_store):
    metadata = read_metadata(small_store)
    found = [path for path in small_store.rglob("*") if path.is_file()]
    files = {path.relative_to(small_store).as_posix(): digest(path.read_bytes()) for path in found}
    del files["qlib_ext_store.json"]
    codes = {number: entry["code"] for number, entry in metadata["industry_codes"].items()}
    assert combine(files, {"vwap": "typical", "industry_codes": codes}) == fingerprint(small_store) == metadata["fingerprint"]


def test_a_store_from_elsewhere_has_a_fingerprint(tmp_path, small_store):
    store = shutil.copytree(small_store, tmp_path / "store")
    (store / "qlib_ext_store.json").unlink()
    assert read_metadata(store) is None
    first = fingerprint(store)
    assert first == fingerprint(shutil.copytree(store, tmp_path / "copy"))
    with (store / "instruments" / "all.txt").open("a") as file:
        file.write("SZ300002\t2020-01-02\t2020-01-03\n")
    second = fingerprint(store)
    (store / "features" / "sz000001" / "open.day.bin").unlink()
    assert len({first, second, fingerprint(store)}) == 3
