"""Universe membership read from a tiny store."""
import numpy as np
import pandas as pd
import pytest

from qlib_ext.data.universe import list_universes, member_spans, read_spans, universe_grid, universe_mask
from qlib_ext.errors import ConfigError, DataError
from tiny_market_store import start_qlib, write_store

DAYS = pd.bdate_range("2020-01-01", periods=10)


@pytest.fixture(autouse=True)
def store(tmp_path):
    day = [f"{d:%Y-%m-%d}" for d in DAYS]
    members = [("SH600000", day[0], day[9]), ("SH600001", day[2], day[4]), ("SH600001", day[7], day[8])]
    write_store(tmp_path, DAYS, {}, {"all": [(f"SH60000{i}", day[0], day[9]) for i in range(4)], "csi300": members})
    start_qlib(tmp_path)


def test_grid_follows_the_spans_both_ends_included():
    stocks = ["SH600003", "SH600001", "SH600000"]
    grid = universe_grid(DAYS, stocks, "csi300")
    assert grid.dtype == bool and grid.shape == (10, 3)
    assert not grid[:, 0].any() and grid[:, 2].all()
    assert np.flatnonzero(grid[:, 1]).tolist() == [2, 3, 4, 7, 8]
    backwards = universe_grid(np.array(DAYS[::-1], dtype="datetime64[D]"), stocks, "csi300")
    np.testing.assert_array_equal(backwards, grid[::-1])
    assert universe_grid(DAYS, stocks, "all").all()


def test_mask_is_the_grid_row_by_row_in_any_order_and_level_order():
    stocks = [f"SH60000{i}" for i in range(4)]
    index = pd.MultiIndex.from_product([DAYS, stocks], names=["datetime", "instrument"])
    index = index[np.random.default_rng(0).permutation(len(index))[:25]]  # unused levels, any order
    grid = pd.DataFrame(universe_grid(DAYS, stocks, "csi300"), index=DAYS, columns=stocks)
    expected = [grid.loc[day, stock] for day, stock in index]
    assert universe_mask(index, "csi300").tolist() == expected
    assert universe_mask(index.swaplevel(), "csi300").tolist() == expected
    assert universe_mask(index[:0], "csi300").shape == (0,)


def test_unknown_universe_names_those_of_the_store():
    assert list_universes() == ["all", "csi300"]
    for wrong in ("csi9", None, ["csi300"]):
        with pytest.raises(ConfigError, match="'all', 'csi300'"):
            universe_grid(DAYS, ["SH600000"], wrong)


@pytest.mark.parametrize("line", ["SH600001,2020-01-01,2020-01-09", "SH600001 2020-01-01 2020-01-09", "SH600001\t2020-01-01",
                                  "SH600001\tsoon\t2020-01-09"])
def test_a_malformed_file_is_named_with_its_line(tmp_path, line):
    (tmp_path / "instruments" / "csi300.txt").write_text(f"SH600000\t2020-01-01\t2020-01-09\n\n{line}\n")
    start_qlib(tmp_path)
    with pytest.raises(DataError, match=r"instruments/csi300.txt, line 3: 'SH600001.* is not code, first day and last day"):
        universe_grid(DAYS, ["SH600000"], "csi300")


def test_spans_of_a_file_in_either_way_of_writing_days(tmp_path):
    file = tmp_path / "instruments" / "x.txt"
    file.write_text("sh600000\t2020-01-01\t2020-01-09 00:00:00\textra\nNA\t20200102\t2020-01-03\n")
    assert read_spans(file).astype(str).values.tolist() == [
        ["sh600000", "2020-01-01", "2020-01-09"], ["NA", "2020-01-02", "2020-01-03"]]
    file.write_text("")
    assert len(read_spans(file)) == 0 and read_spans(file)["start"].dtype.kind == "M"


def test_an_empty_universe_is_refused(tmp_path):
    (tmp_path / "instruments" / "csi300.txt").write_text("")
    start_qlib(tmp_path)
    for ask in (member_spans, lambda name: universe_grid(DAYS, [], name)):
        with pytest.raises(DataError, match="universe 'csi300' has no members in the store"):
            ask("csi300")


def test_wrong_index_is_refused():
    with pytest.raises(DataError, match="datetime, instrument"):
        universe_mask(pd.Index(["SH600000"]), "csi300")
    hole = pd.MultiIndex.from_tuples([(pd.NaT, "SH600000"), (DAYS[0], "SH600000")], names=["datetime", "instrument"])
    with pytest.raises(DataError, match="without a day"):
        universe_mask(hole, "csi300")


def test_without_qlib_it_says_what_to_call(monkeypatch):
    from qlib.config import C

    monkeypatch.setitem(C.__dict__, "_registered", False)
    with pytest.raises(ConfigError, match="qlib.init"):
        list_universes()
