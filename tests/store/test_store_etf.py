"""ETFs in a store: their own universe, tracked index and baskets with dates, named faults, what the doctor says, real baskets."""

import numpy as np
import pandas as pd
import pytest
from store_market import business_days

from qlib_ext.errors import DataError
from qlib_ext.portfolio.aggregate import aggregate_scores
from qlib_ext.store import read_metadata, read_table
from qlib_ext.store.checks import check_tables
from qlib_ext.store.doctor import examine
from qlib_ext.store.ingest import ingest
from qlib_ext.store.tables import read_tables

BANKS, CHIPS, SPARE = "SH512800", "SH512480", "SZ159001"
DATES = pd.to_datetime(["2020-01-02", "2020-01-31"])


def with_etfs(tables: dict) -> dict:
    """Three ETFs on two indices, two baskets each."""
    days = business_days("2020-01-02", 45)
    bars = tables["bars"].query("instrument == 'SZ000001'").assign(is_st=0).dropna()
    etfs = [bars.assign(instrument=code, open=1.0, high=1.01, low=0.99, close=1.0, factor=1.0, amount=bars["volume"] * 1.0,
                        turnover=np.nan) for code in (BANKS, CHIPS, SPARE)]
    about = pd.DataFrame({"instrument": [BANKS, CHIPS, SPARE], "kind": "etf", "list_date": days[0], "delist_date": pd.NaT, "name": "fund",
                          "tracked_index": ["banks", "chips", "banks"], "etf_class": "sector"})
    baskets = [(code, date, member, weight) for code, members in ((BANKS, {"SH600000": 0.6, "SZ000001": 0.4}), (CHIPS, {"SH688001": 1.0}),
                                                                  (SPARE, {"SH600000": 0.6, "SZ000001": 0.4}))
               for date in DATES for member, weight in members.items()]
    return {**tables, "bars": pd.concat([tables["bars"], *etfs], ignore_index=True),
            "instruments": pd.concat([tables["instruments"], about], ignore_index=True),
            "etf_baskets": pd.DataFrame(baskets, columns=["instrument", "date", "member", "weight"])}


@pytest.fixture
def given(tables):
    return with_etfs(tables)


def test_etfs_are_a_universe_of_their_own_and_leave_stocks_alone(tables, given, tmp_path):
    plain, store = (ingest(one, tmp_path / name, index_names=("csi300", "csi500")) for name, one in (("plain", tables), ("etfs", given)))
    codes = {name: [line.split("\t")[0] for line in (store / "instruments" / f"{name}.txt").read_text().splitlines()]
             for name in ("all", "etf")}
    assert codes == {"all": ["SH600000", "SH688001", "SZ000001", "SZ300001"], "etf": [CHIPS, BANKS, SPARE]}
    for file in [*(plain / "features").rglob("*.bin"), *(plain / "instruments").glob("*.txt"), plain / "calendars" / "day.txt"]:
        assert (store / file.relative_to(plain)).read_bytes() == file.read_bytes(), file
    table = read_table(store, "instruments").set_index("instrument")
    assert table.loc[SPARE, ["tracked_index", "etf_class"]].tolist() == ["banks", "sector"]
    assert table.loc["SH600000", ["tracked_index", "etf_class"]].isna().all()
    assert len(read_table(store, "etf_baskets", until="2020-01-30")) == 5 and len(read_table(store, "etf_baskets")) == 10


def test_which_etfs_track_one_index_is_part_of_the_fingerprint(tables, given, tmp_path):
    prints = set()
    for name, index in (("a", "banks"), ("b", "banks of Shenzhen")):
        given["instruments"].loc[given["instruments"]["instrument"] == SPARE, "tracked_index"] = index
        prints.add(read_metadata(ingest(given, tmp_path / name))["fingerprint"])
    assert len(prints) == 2


@pytest.mark.parametrize("code, change, words", [
    (SPARE, {"etf_class": "theme"}, f"1 row with an etf_class that is none of sector, broad, first {SPARE}"),
    ("SH600000", {"tracked_index": "banks"}, "1 row with a tracked_index though it is no ETF, first SH600000"),
    ("SH600000", {"etf_class": "broad"}, "1 row with a etf_class though it is no ETF"),
    (SPARE, {"kind": "stock", "tracked_index": None, "etf_class": None},
     f"table etf_baskets: 1 instruments are no ETFs by table instruments, first {SPARE}"),
])
def test_faults_of_what_is_told_of_etfs(given, code, change, words):
    check_tables(read_tables(given), "typical")
    table = given["instruments"].astype(object).set_index("instrument")
    for name, value in change.items():
        table.loc[code, name] = value
    with pytest.raises(DataError, match=words):
        check_tables(read_tables({**given, "instruments": table.reset_index()}), "typical")


def etf_warnings(given, folder) -> dict:
    report = examine(ingest(given, folder, index_names=("csi300", "csi500")))
    section = next(one for one in report.sections if one.title == "ETFs and their baskets")
    return {one["kind"]: one["text"] for one in section.warnings}


def test_the_doctor_finds_what_is_planted(given, tmp_path):
    assert etf_warnings(given, tmp_path / "healthy") == {}
    baskets = given["etf_baskets"]
    planted = {
        "ETFs without baskets": ({"etf_baskets": baskets[baskets["instrument"] != CHIPS]}, f"1 of 3 ETFs have no basket: {CHIPS}"),
        "baskets do not sum to 1": ({"etf_baskets": baskets.assign(weight=baskets["weight"].where(baskets.index != 1, 0.2))},
                                    f"1 of 6 baskets sum to less than 0.9 or more than 1.02: {BANKS} on 2020-01-02 (0.800)"),
        "basket members without bars": ({"etf_baskets": baskets.replace({"member": {"SZ000001": "SZ000002"}})},
                                        f"1 members of baskets have no bars: SZ000002; at most 40.0 % of a basket ({BANKS} on 2020-01-02)"),
        "old baskets": ({"etf_baskets": baskets.replace({"date": {DATES[0]: DATES[0] - pd.Timedelta(days=100)}})},
                        f"3 ETFs go on for more than 100 days without a new basket: {CHIPS} 129 days after 2019-09-24"),
        "ETFs without an index": ({"instruments": given["instruments"].replace({"tracked_index": {"chips": None}})},
                                  f"1 ETFs have no tracked_index or no etf_class: {CHIPS}"),
    }
    for number, (kind, (tables, words)) in enumerate(planted.items()):
        found = etf_warnings({**given, **tables}, tmp_path / str(number))
        assert set(found) == {kind} and words in found[kind], found


# ---- real baskets ----------------------------------------------------------------------------------------------------------------
REAL = ("SH512880", "SH512010", "SZ159915")
DAY = "2020-12-31"  # the file names no day; members and weights fit the end of 2020


@pytest.mark.realdata
def test_real_baskets_through_our_ingestion(real_data, tmp_path):
    """Weights sum, codes are mapped, and the aggregate is that of a plain loop. One date: nothing is traded on it."""
    members = pd.read_parquet(real_data / "etf" / "etf_components_sample.parquet").query("etf in @REAL")
    bars = pd.read_parquet(real_data / "etf" / "etf_daily.parquet").query("adj == 'none'")
    bars = bars.astype({"symbol": str}).query("symbol in @REAL and '2020-09-01' <= date <= '2021-03-31'")
    daily = real_data / "ashare_daily"
    inside = [("instrument", "in", sorted(set(members["stock"]))), ("date", ">=", pd.Timestamp("2020-09-01")),
              ("date", "<=", pd.Timestamp("2021-03-31"))]
    stocks = pd.read_parquet(daily / "bars.parquet", filters=inside).astype({"instrument": str})
    traded = bars.rename(columns={"symbol": "instrument"}).assign(volume=bars["volume_lot"] * 100, factor=1.0)
    index = pd.read_parquet(daily / "index_bars.parquet", filters=inside[1:])
    vendor = members.assign(etf=members["etf"].str[2:] + "." + members["etf"].str[:2], stock=members["stock"].str[2:] + "."
                            + members["stock"].str[:2], weight=100 * members["weight"])
    mapping = {"etf_baskets": {"columns": {"instrument": "etf", "member": "stock"}, "code": "600000.SH", "scale": {"weight": 0.01},
                               "constants": {"date": pd.Timestamp(DAY)}}}
    store = ingest({"bars": pd.concat([stocks, traded], ignore_index=True), "index_bars": index, "etf_baskets": vendor,
                    "membership": pd.read_parquet(daily / "membership.parquet")}, tmp_path / "store", columns=mapping)
    kept = read_table(store, "etf_baskets", until=DAY)
    sums = kept.groupby("instrument")["weight"].agg(["sum", "size"])
    assert sums["size"].to_dict() == {"SH512010": 84, "SH512880": 50, "SZ159915": 100}
    assert sums["sum"].to_numpy() == pytest.approx(1, abs=1e-4)
    report = next(one for one in examine(store).sections if one.title.startswith("ETFs"))
    lost = kept[kept["member"].isin(report.figures["members_without_bars"])]
    print(f"{len(lost)} of {len(kept)} members without bars, {lost.groupby('instrument')['weight'].sum().round(3).to_dict()} of the weight")

    closes = stocks.assign(close=stocks["close"] * stocks["factor"]).pivot(index="date", columns="instrument", values="close")
    score = (closes.loc[DAY] / closes.iloc[closes.index.get_loc(DAY) - 20] - 1).dropna().astype(float)      # any will do
    weights = kept.pivot(index="instrument", columns="member", values="weight").reindex(columns=score.index)
    found = aggregate_scores(score.to_numpy(), weights.to_numpy())
    mean, spread = sum(score) / len(score), (sum((one - sum(score) / len(score)) ** 2 for one in score) / len(score)) ** 0.5
    for e, code in enumerate(weights.index):
        covered = total = squares = 0.0
        for member, weight in kept[kept["instrument"] == code][["member", "weight"]].itertuples(index=False):
            if member in score.index:
                covered, total = covered + weight, total + weight * (score[member] - mean) / spread
                squares += weight**2
        names = covered**2 / squares
        assert covered > 0.8 and found.covered[e] == pytest.approx(covered, rel=1e-12)
        assert found.score[e] == pytest.approx(total / covered * (names / (names + 10)) ** 0.5, rel=1e-9)
    assert (found.names < sums["size"].reindex(weights.index)).all()
