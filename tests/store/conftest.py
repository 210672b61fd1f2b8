"""Fixtures of the store tests."""

import pytest
from store_market import make_tables


@pytest.fixture
def tables() -> dict:
    return make_tables()


@pytest.fixture(scope="session")
def small_store(tmp_path_factory):
    from qlib_ext.store.ingest import ingest

    return ingest(make_tables(), tmp_path_factory.mktemp("small") / "store", index_names=("csi300", "csi500"))
