"""The small market for the tests of the data adapters."""
import pytest

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
