"""A value stored for a day uses nothing published after its close: source tables corrupted after a day leave it as it was."""

import numpy as np
import pandas as pd
import pytest
from store_market import make_tables, read_field

from qlib_ext.store import content as content_module
from qlib_ext.store import fields, weights
from qlib_ext.store.ingest import ingest

INDICES = ("csi300", "csi500")
CUT = pd.Timestamp("2020-01-28")  # inside a month; official weights and float shares are dated just after it


def tables_with_news() -> dict:
    """The small market, with news on the two business days after the cut in every table."""
    tables = make_tables()
    for name, column, first in (("index_weights", "date", "2020-01-01"), ("float_shares_monthly", "month", "2020-01-31")):
        dates = tables[name][column]
        tables[name][column] = dates.where(dates < first, CUT + pd.Timedelta(days=1))
    changed = tables["industry"]["start"] > "2019-01-01"
    tables["industry"].loc[changed, "start"] = CUT + pd.Timedelta(days=1)
    tables["industry"].loc[changed.shift(-1, fill_value=False), "end"] = CUT
    return tables


def corrupt(tables: dict) -> dict:
    """Change everything dated after the cut, in every table."""
    dated = {"bars": "date", "index_bars": "date", "index_weights": "date", "float_shares_monthly": "month"}
    scaled = ("open", "high", "low", "close", "volume", "amount", "turnover", "factor", "float_shares", "total_shares")
    for name, column in dated.items():
        table = tables[name]
        numbers = [number for number in scaled if number in table]
        table[numbers] = table[numbers].astype(float)
        table.loc[table[column] > CUT, numbers] *= 3.7
    table = tables["index_weights"]
    after = table["date"] > CUT
    table.loc[after, "weight"] = table.loc[after, "weight"].to_numpy()[::-1]
    later = CUT + pd.Timedelta(days=1)
    new_shares = pd.DataFrame({"month": [later + pd.Timedelta(days=1)], "instrument": "SH688001", "float_shares": 7.0})
    new_industry = pd.DataFrame({"instrument": ["SH688001"], "start": later, "end": pd.Timestamp("2099-12-31"), "l1_code": "new"})
    new_member = pd.DataFrame({"instrument": ["SH688001"], "index": "csi300", "start": later, "end": pd.Timestamp("2099-12-31")})
    for name, rows in (("float_shares_monthly", new_shares), ("industry", new_industry), ("membership", new_member)):
        tables[name] = pd.concat([tables[name], rows])
    moved = (tables["industry"]["start"] > CUT) & (tables["industry"]["l1_code"] != "new")
    tables["industry"].loc[moved, "l1_code"] = "77"
    return tables


def differences(one, two, until=None, after=None) -> set:
    """Fields that differ between two stores over a span."""
    found = set()
    for file in one.rglob("*.bin"):
        code, field = file.parent.name, file.name.split(".")[0]
        first, second = (read_field(store, code, field)[after:until].to_numpy() for store in (one, two))
        if not np.array_equal(first, second, equal_nan=True):
            found.add(field)
    return found


def compare(folder) -> set:
    """Fields in which a clean and a corrupted ingestion differ up to the cut."""
    clean = ingest(tables_with_news(), folder / "clean", index_names=INDICES)
    corrupted = ingest(corrupt(tables_with_news()), folder / "corrupted", index_names=INDICES)
    seen = differences(clean, corrupted, after=CUT + pd.Timedelta(days=1))
    assert {"close", "volume", "factor", "float_shares", "float_cap", "industry", "csi300_weight", "csi500_weight"} <= seen
    return differences(clean, corrupted, until=CUT)


def test_the_future_changes_nothing_before_it(tmp_path):
    assert compare(tmp_path) == set()


def early(function, column, place):
    """A planted leak: the table's dates are taken as two days earlier than they are."""

    def leaking(*arguments):
        arguments = list(arguments)
        if arguments[place] is not None:
            table = arguments[place]
            table = table.take(np.arange(len(table)))
            table.dates[column] = table.dates[column] - np.timedelta64(2, "D")
            arguments[place] = table
        return function(*arguments)

    return leaking


@pytest.mark.parametrize("leak", ["float_shares", "industry", "weights", "membership", "carry"])
def test_planted_leaks_are_caught(tmp_path, monkeypatch, leak):
    if leak == "float_shares":
        monkeypatch.setattr(fields, "float_shares", early(fields.float_shares, "month", 0))
        expected = "float_cap"
    elif leak == "industry":
        monkeypatch.setattr(fields, "industry", early(fields.industry, "start", 0))
        expected = "industry"
    elif leak == "weights":
        monkeypatch.setattr(content_module, "index_weights", early(weights.index_weights, "date", 2))
        expected = "csi300_weight"
    elif leak == "membership":
        monkeypatch.setattr(content_module, "membership_spans", early(weights.membership_spans, "start", 0))
        expected = "csi300_weight"
    else:
        monkeypatch.setattr(fields, "_change", lambda close, grid: np.append(close[1:] / close[:-1] - 1, 0).astype("f4"))
        expected = "change"
    assert expected in compare(tmp_path)
