"""The small market for the tests of the data adapters."""
from pathlib import Path

import pytest

from nasty_market import build
from qlib_ext.data import array_loader, field_reader
from qlib_ext.demo.build import build_demo
from qlib_ext.store.ingest import ingest
from small_market import build_store, start_qlib


@pytest.fixture(scope="session")
def small_store(tmp_path_factory):
    """Folder of the store (Qlib is not started)."""
    return build_store(tmp_path_factory.getbasetemp() / "small_market")


@pytest.fixture
def small_market(small_store):
    """Qlib started on the store: `qlib.init` is global, other tests point it elsewhere."""
    start_qlib(small_store)
    return small_store


@pytest.fixture(scope="session")
def real_store(real_data, tmp_path_factory):
    """The real tables as a store."""
    return ingest(real_data / "ashare_daily", tmp_path_factory.mktemp("real") / "store")


@pytest.fixture(scope="session")
def demo_store(tmp_path_factory):
    """The demo market as users get it."""
    return build_demo(tmp_path_factory.mktemp("demo") / "store")


@pytest.fixture(scope="session")
def nasty(tmp_path_factory) -> Path:
    """The store of `nasty_market` (Qlib is not started); nobody writes into it."""
    return build(tmp_path_factory.mktemp("nasty"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder that is the feature cache."""
    monkeypatch.setenv("QLIB_EXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """Rows of the feature tables that were computed, in order."""
    rows, compute = [], array_loader._computed

    def counting(plan, reader, wanted, width):
        if width > 10:
            rows.append(wanted.count)
        return compute(plan, reader, wanted, width)
    monkeypatch.setattr(array_loader, "_computed", counting)
    return rows


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """Warnings of the loader, which Qlib's loggers keep from pytest."""
    texts = []
    for module in (array_loader, field_reader):
        monkeypatch.setattr(module.logger, "warning", texts.append)
    return texts
