"""A value stored for a day uses nothing published after its close: source tables corrupted after a day leave it as it was."""

import numpy as np
import pandas as pd
import pytest
from store_market import make_tables, read_field
from test_store_append import contents, split

from qlib_ext.store import content, fields
from qlib_ext.store.append import append
from qlib_ext.store.ingest import ingest
from qlib_ext.store.tables import read_tables

INDICES = ("csi300", "csi500")
CUT = pd.Timestamp("2020-01-28")  # inside a month; official weights and float shares are dated just after it


LATER = CUT + pd.Timedelta(days=1)
# Table -> (date, whether a row of the cut's own day counts only after it, numbers).
DATED = {
    "bars": ("date", False, ["open", "high", "low", "close", "volume", "amount", "turnover", "factor"]),
    "index_bars": ("date", False, ["open", "high", "low", "close", "volume"]),
    "float_shares_monthly": ("month", True, ["float_shares", "total_shares"]),
    "fundamentals": ("announcement", True, ["equity", "net_profit", "sales", "operating_cash_flow", "eps", "total_assets"]),
    "dividends": ("ex_date", False, ["cash", "bonus"]),
}


def tables_with_news() -> dict:
    """The small market, with news on the cut's own day or just after it in every table."""
    tables = make_tables()
    for name, column, first in (("index_weights", "date", "2020-01-01"), ("float_shares_monthly", "month", "2020-01-31")):
        dates = tables[name][column]
        tables[name][column] = dates.where(dates < first, CUT)
    changed = tables["industry"]["start"] > "2019-01-01"
    tables["industry"].loc[changed, "start"] = LATER
    tables["industry"].loc[changed.shift(-1, fill_value=False), "end"] = CUT
    announced, moved = tables["fundamentals"]["announcement"], CUT - pd.Timestamp("2020-01-14")
    tables["fundamentals"]["announcement"] = announced.where(announced < "2020-01-14", announced + moved)
    paid = tables["dividends"]
    tables["dividends"] = pd.concat([paid, paid.assign(ex_date=LATER)], ignore_index=True)
    return tables


def corrupt(tables: dict) -> dict:
    """Change everything that is known after the cut only, in every table."""
    for name, (column, own_day, numbers) in DATED.items():
        table = tables[name]
        after = (table[column] >= CUT) if own_day else (table[column] > CUT)
        assert after.any()
        table[numbers] = table[numbers].astype(float)
        table.loc[after, numbers] *= 3.7
    table = tables["index_weights"]
    after = table["date"] >= CUT
    table.loc[after, "weight"] = table.loc[after, "weight"].to_numpy()[::-1]
    end = pd.Timestamp("2099-12-31")
    restated = tables["fundamentals"].query("instrument == 'SH600000'").iloc[[5]].assign(announcement=CUT, equity=1.0, sales=2.0)
    rows = {
        "float_shares_monthly": {"month": LATER, "instrument": "SH688001", "float_shares": 7.0, "total_shares": 8.0},
        "industry": {"instrument": "SH688001", "start": LATER, "end": end, "l1_code": "new"},
        "membership": {"instrument": "SH688001", "index": "csi300", "start": LATER, "end": end},
        "dividends": {"instrument": "SH688001", "ex_date": LATER, "cash": 1.0, "bonus": 0.5},
        "fundamentals": restated.iloc[0].to_dict(),
    }
    for name, row in rows.items():
        tables[name] = pd.concat([tables[name], pd.DataFrame([row])], ignore_index=True)
    moved = (tables["industry"]["start"] > CUT) & (tables["industry"]["l1_code"] != "new")
    tables["industry"].loc[moved, "l1_code"] = "77"
    tables["membership"].loc[tables["membership"]["end"].between(CUT, "2020-06-30"), "end"] = CUT
    tables["instruments"]["delist_date"] = tables["instruments"]["delist_date"].fillna(pd.Timestamp("2020-04-01"))
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


CHANGED = {"close", "volume", "factor", "change", "vwap", "limit_up", "limit_down", "float_shares", "float_cap", "total_shares",
           "total_cap", "industry", "csi300_weight", "csi500_weight", "cash_dividend", "bonus_shares", "equity", "net_profit_ttm",
           "sales_ttm", "eps_y0", "sales_y1"}  # fmt: skip


def test_the_future_changes_nothing_before_it(tmp_path):
    clean = ingest(tables_with_news(), tmp_path / "clean", index_names=INDICES)
    corrupted = ingest(corrupt(tables_with_news()), tmp_path / "corrupted", index_names=INDICES)
    after = differences(clean, corrupted, after=LATER)
    assert differences(clean, corrupted, until=CUT) == set() and CHANGED <= after, CHANGED - after
    codes = {file.name for file in (clean / "features").iterdir()}
    assert {"csi300tr", "csi300pr", "csi500tr"} <= codes == {file.name for file in (corrupted / "features").iterdir()}
    for code in ("CSI300TR", "CSI300PR"):
        one, two = (read_field(store, code, "close") for store in (clean, corrupted))
        assert one[:CUT].equals(two[:CUT]) and not one[LATER:].equals(two[LATER:])


@pytest.mark.parametrize("with_dividends", [True, False])
def test_members_without_rows_change_no_weights_when_they_come_back(tmp_path, with_dividends):
    """SH600000 has no row from the end of January on, when new shares count, nor on an ex-date after it; the store ends there."""
    tables = make_tables()
    del tables["index_weights"]
    tables["float_shares_monthly"].loc[1, ["float_shares", "total_shares"]] = 2.5e6
    bonus = pd.DataFrame({"instrument": ["SH600000"], "ex_date": pd.Timestamp("2020-02-04"), "cash": 0.0, "bonus": 0.3})
    tables["dividends"] = pd.concat([tables["dividends"], bonus], ignore_index=True)
    if not with_dividends:
        del tables["dividends"]
    gap = (tables["bars"]["instrument"] == "SH600000") & tables["bars"]["date"].between("2020-01-31", "2020-02-06")
    tables["bars"] = tables["bars"][~gap].reset_index(drop=True)
    old, new = split(tables, pd.Timestamp("2020-02-05"))
    full, store = (ingest(one, tmp_path / name, index_names=("csi300",)) for name, one in (("full", tables), ("cut", old)))
    whole, cut = contents(full), contents(store)
    fields = [name for name in cut if name.endswith(".bin")]
    assert fields and not [name for name in fields if not whole[name].startswith(cut[name])]
    weight, one = (read_field(full, code, "csi300_weight") for code in ("SH600000", "SZ000001"))
    assert weight["2020-02-03"] / one["2020-02-03"] > 1.9 * weight["2020-01-30"] / one["2020-01-30"]  # the new shares count
    append(new, store)
    assert contents(store) == whole


def changed_table(function, place, change):
    """A planted leak: the function gets its table changed by `change(table)`."""

    def leaking(*arguments):
        arguments = list(arguments)
        if arguments[place] is not None:
            arguments[place] = arguments[place].take(np.arange(len(arguments[place])))
            change(arguments[place])
        return function(*arguments)

    return leaking


def early(column, days=2):
    """The table's dates are taken as some days earlier than they are."""

    def change(table):
        table.dates[column] = table.dates[column] - np.timedelta64(days, "D")

    return change


def by_period_end(table) -> None:
    table.dates["announcement"] = table.dates["period_end"]


def restated_at_once(table) -> None:
    """Every version of a report has the numbers of the last one."""
    for row in range(len(table)):
        same = np.flatnonzero((table.code == table.code[row]) & (table.dates["period_end"] == table.dates["period_end"][row]))
        last = same[np.argmax(table.dates["announcement"][same])]
        if table.dates["announcement"][row] < table.dates["announcement"][last]:
            for values in table.numbers.values():
                values[row] = values[last]


def shifted(function, place, days):
    """A planted leak: the function gets cells of some days later."""

    def leaking(*arguments):
        arguments = list(arguments)
        arguments[place] = np.append(arguments[place][days:], arguments[place][-days:])
        return function(*arguments)

    return leaking


def later_closes(function):
    """A planted leak: limits are computed from the closes of two days later."""

    def leaking(bars, grid, kinds, prices, instruments):
        close, raw_close = (np.append(cells[2:], cells[-2:]) for cells in (prices.close, prices.raw_close))
        return function(bars, grid, kinds, prices._replace(close=close, raw_close=raw_close), instruments)

    return leaking


LEAKS = {
    "float_shares": (content, "share_fields", lambda f: changed_table(f, 0, early("month", 1)), "float_cap"),
    "industry": (fields, "industry", lambda f: changed_table(f, 0, early("start")), "industry"),
    "weights": (content, "index_weights", lambda f: changed_table(f, 2, early("date", 1)), "csi300_weight"),
    "membership": (content, "membership_spans", lambda f: changed_table(f, 0, early("start")), "csi300_weight"),
    "change": (fields, "_change", lambda f: lambda close, grid: np.append(close[1:] / close[:-1] - 1, 0).astype("f4"), "change"),
    "announcement day": (content, "fundamental_fields", lambda f: changed_table(f, 0, early("announcement", 1)), "equity"),
    "period end": (content, "fundamental_fields", lambda f: changed_table(f, 0, by_period_end), "net_profit_ttm"),
    "restated at once": (content, "fundamental_fields", lambda f: changed_table(f, 0, restated_at_once), "equity"),
    "shares of an ex-date": (content, "share_fields", lambda f: changed_table(f, 3, early("ex_date", 1)), "float_shares"),
    "ex-date": (fields, "dividends", lambda f: changed_table(f, 0, early("ex_date", 1)), "cash_dividend"),
    "limits of the close after": (content, "limit_fields", later_closes, "limit_up"),
    "returns of the day after": (content, "index_level", lambda f: shifted(f, 2, 1), "CSI300TR"),
}


def computed(tables: dict) -> dict:
    """Fields of stocks, and levels of derived indices, as computed for a store, up to the cut."""
    found = content.Content(read_tables(tables), "typical", INDICES)
    until = found.calendar <= np.datetime64(CUT, "D")
    values = {name: cells[until[found.grid.day]] for name, cells in found.fields.items()}
    values.update({code: one.level[until[one.start :]] for code, one in found.derived.items()})
    return values


@pytest.mark.parametrize("leak", LEAKS)
def test_planted_leaks_are_caught(monkeypatch, leak):
    module, name, plant, expected = LEAKS[leak]
    clean, corrupted = computed(tables_with_news()), computed(corrupt(tables_with_news()))
    assert all(np.array_equal(clean[field], corrupted[field], equal_nan=True) for field in clean)
    monkeypatch.setattr(module, name, plant(getattr(module, name)))
    clean, corrupted = computed(tables_with_news()), computed(corrupt(tables_with_news()))
    assert not np.array_equal(clean[expected], corrupted[expected], equal_nan=True)
