"""The small market for the tests of the data adapters."""
import pytest

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
