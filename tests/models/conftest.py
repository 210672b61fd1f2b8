"""The small market as a store, and a handler of its five features, for models around models."""

import pytest

from small_market import FiveFeatures, build_store, start_qlib


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return build_store(tmp_path_factory.getbasetemp() / "small_market")


@pytest.fixture(scope="module")
def loaded(store):
    """A handler of five features, loaded once."""
    start_qlib(store)
    scaled = {"class": "CSZScoreNorm", "module_path": "qlib_ext.data.processor", "kwargs": {"fields_group": "label"}}
    return FiveFeatures(instruments="all", start_time="2015-03-02", end_time="2016-12-30",
                        infer_processors=[{"class": "Fillna", "kwargs": {"fields_group": "feature"}}],
                        learn_processors=[{"class": "DropnaLabel"}, scaled])
