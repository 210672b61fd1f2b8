"""The market users get and a small one, each made once for all tests of this folder."""

import numpy as np
import pandas as pd
import pytest

from qlib_ext.demo.market import make_market
from qlib_ext.demo.tables import make_tables

SMALL = {"stocks": 90, "start": "2015-01-05", "end": "2016-12-30", "index_sizes": (12, 20, 40)}


@pytest.fixture(scope="session")
def market():
    """The market users get."""
    return make_market(0)


@pytest.fixture(scope="session")
def tables(market):
    return make_tables(market)


@pytest.fixture(scope="session")
def small_options():
    return dict(SMALL)


@pytest.fixture(scope="session")
def small():
    return make_market(5, **SMALL)


@pytest.fixture(scope="session")
def bars(tables):
    """Bars by stock and day with adjusted and raw returns of table columns alone."""
    frame = tables["bars"].assign(instrument=lambda table: table["instrument"].astype(str))
    frame["adjusted"] = frame["close"] * frame["factor"]
    grouped = frame.groupby("instrument")
    frame["last_close"] = grouped["close"].shift()
    frame["return"] = frame["adjusted"] / grouped["adjusted"].shift() - 1
    frame["step"] = frame["factor"] / grouped["factor"].shift() - 1
    frame["row"] = grouped.cumcount()
    frame["early"] = grouped["date"].transform("min") == pd.Timestamp(np.datetime64("2015-01-05"))
    return frame
