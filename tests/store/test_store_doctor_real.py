"""The known defects of the real tables, found by the doctor in a store of them without being told."""

import pytest

from qlib_ext.store.doctor import examine
from qlib_ext.store.ingest import ingest

pytestmark = pytest.mark.realdata


@pytest.fixture(scope="module")
def report(real_data, tmp_path_factory):
    return examine(ingest(real_data / "ashare_daily", tmp_path_factory.mktemp("real") / "store"))


@pytest.mark.parametrize("kind, texts", [
    ("survivorship", ["next to no stock is ever delisted (2 of 287"]),
    ("too few members", ["csi1000 has fewer than 95 % of its 1000 members on ", "fewest on 2018-01-02: 880"]),
    ("members lack", ["csi1000 lacks on average", " in 2018", " in 2020", " in 2022", " in 2024", "delisted since"]),
    ("membership dates", ["csi1000: 13 of 13 half-yearly changes are late, by 9 to 14 trading days"]),
    ("membership dates", ["csi300: 13 of 13 half-yearly changes are late"]),
    ("membership dates", ["csi500: 13 of 13 half-yearly changes are late"]),
    ("coverage drop", ["amount thins out on board chinext: 99 % in 2022 to 29 % in 2023, 29 % in 2023 to 6 % in 2024"]),
    ("coverage drop", ["amount thins out on board star", "51 % in 2024"]),
    ("coverage drop", ["turnover thins out on board chinext: 98 % in 2019 to 62 % in 2020, 62 % in 2020 to 6 % in 2021"]),
    ("ST unknown", ["36 % in 2020, 89 % in 2021, 89 % in 2022, 89 % in 2023, 90 % in 2024"]),
    ("coverage drop", ["float_cap erodes on board chinext: 98 % in 2019 to 76 % in 2024"]),
    ("weights estimated", ["csi1000: weights are estimated on 100 %", "equal 2018-01-02 to 2018-01-31, float cap 2018-02-01 to",
                           "differ from the official weights of csi300 by 22 % of the index (135 dates)"]),
    ("weights estimated", ["csi300: weights drift with prices from 2024-10-08, the last official date"]),
    ("weights of ended members", ["csi500: weights sum to less than 1 on 1158 days, least 0.9992", "SH603056"]),
    ("no history", ["the calendar starts 2010-01-04, stock bars 2018-01-02"]),
    ("look-ahead rows", ["5653 of 216583 rows"]),
    ("malformed codes", ["1 in table membership"]),
    ("field absent", ["fields are not in the store: total_shares (for total_cap; float_shares stands in)"]),
    ("stocks that stop", ["2 stocks stop early", "SH603056 (2020-", "SZ002231 (2020-"]),
])
def test_a_known_defect_is_named(report, kind, texts):
    found = [one["text"] for one in report.warnings if one["kind"] == kind]
    assert any(all(text in said for text in texts) for said in found), found


def test_what_a_store_can_show_only_as_figures(report):
    """Shortfall of CSI1000 by date, no fundamentals, industries in force (other codes belong to stocks without bars)."""
    figures = {section.title: section.figures for section in report.sections}
    mean = figures["Members of indices"]["csi1000"]["mean"]
    assert [round(1000 - mean[year], -1) for year in (2018, 2020, 2022, 2024)] == [80, 40, 20, 10]
    assert figures["Fundamentals"] == {} and (figures["Industries"]["fewest"], figures["Industries"]["most"]) == (28, 31)
    assert figures["Industries"]["ever"] > 31
    assert figures["Index bars"]["SH000300"] == {"days_without": 0, "fields": ["volume"]}
    weights = figures["Index weights"]
    assert weights["csi300"]["sources"]["official"] > 0.99 and weights["csi1000"]["sources"]["official"] == 0
    assert 0.1 < weights["csi300"]["derived_vs_official"]["half_sum_mean"] < 0.3
    assert 0.01 < weights["csi300"]["return_over_index_bars"] < 0.04, "dividends, and the members that are gone"
    assert figures["Prices and units"]["amount_over_volume_times_close"] == pytest.approx(1, abs=0.01)


def test_no_alarm_where_the_tables_are_sound(report):
    kinds = {one["kind"] for one in report.warnings}
    assert not kinds & {"calendar hole", "weekend", "thin day", "units", "prices", "vwap", "weights do not sum to 1",
                        "damaged files", "too many members", "index incomplete", "industry count",
                        "no change of members", "days without weights"}
    largest = [section.figures for section in report.sections if section.title.startswith("Jumps")][0]
    assert largest["count"] <= 5
    assert largest["largest"][0][:2] == ["SZ000792", "2021-08-10"], "relisted after a year without trading"
