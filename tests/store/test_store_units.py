"""Wrong units and adjusted prices are read off the numbers, for all instruments, for one, and for one year of one."""

import numpy as np
import pandas as pd
import pytest
from store_market import make_tables

from qlib_ext.errors import DataError
from qlib_ext.store.checks import check_tables
from qlib_ext.store.tables import read_tables
from qlib_ext.store.units import check_units

CODES = [f"SZ{number:06d}" for number in range(1, 13)]
FLOAT = 1e8
PRICES = ["open", "high", "low", "close"]
EVERY = CODES[0], None
ONE = CODES[4], 2019


def make_market(seed: int = 0) -> pd.DataFrame:
    """Twelve stocks over 2018-2020, each with three factor changes of 15 to 60 percent, one of 3; one row in twenty has a wild
    amount, one in ten none."""
    generator, days = np.random.default_rng(seed), pd.bdate_range("2018-01-02", "2020-12-31", freq="3B")
    frames = []
    for place, code in enumerate(CODES):
        factor, count = np.full(len(days), 1.0 + 0.5 * place), len(days)
        changes = generator.choice(np.arange(20, count - 20), 4, replace=False)
        for day, size in zip(changes, [1.03, *generator.uniform(1.15, 1.6, 3)]):
            factor[day:] *= size
        close = 20 * np.exp(np.cumsum(0.025 * generator.standard_normal(count))) / factor * factor[0]
        spread = generator.uniform(0.97, 1.03, (count, 2))
        frame = pd.DataFrame({"instrument": code, "date": days, "open": close * spread[:, 0], "close": close, "factor": factor})
        frame["high"], frame["low"] = close * 1.03, close * 0.97
        frame["volume"] = generator.integers(1, 50, count) * 100_000
        frame["turnover"] = (100 * frame["volume"] / FLOAT).round(2)
        wild = np.where(generator.random(count) < 0.05, 10 ** generator.uniform(-3, 3, count), 1)
        frame["amount"] = frame["volume"] * close * spread[:, 1] * wild
        frame.loc[generator.random(count) < 0.1, "amount"] = np.nan
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def where(bars, code, year):
    """The rows of all (no year), or of one stock's year; a year of 0 is the stock's whole history."""
    everyone = year is None
    return everyone | (bars["instrument"] == code) & ((bars["date"].dt.year == year) | (year == 0))


def multiplied(rows, **factors):
    bars = make_market()
    for name, by in factors.items():
        bars[name] = bars[name].astype(float)
        bars.loc[rows(bars), name] *= by
    return bars


def faults(bars, float_shares=FLOAT, **mapping):
    tables = make_tables()
    shares = pd.DataFrame({"instrument": CODES, "month": "2017-12-31", "float_shares": float_shares})
    others = {name: tables[name] for name in ("index_bars", "membership")}
    data = read_tables({"bars": bars, "float_shares_monthly": shares, **others}, {"bars": mapping} if mapping else None)
    return check_units(data["bars"], data["float_shares_monthly"])[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_clean_market_passes(seed):
    bars = make_market(seed)
    assert faults(bars) == []
    assert faults(bars.drop(columns="amount")) == []
    assert faults(bars.drop(columns=["amount", "turnover"])) == []
    assert faults(bars.sort_values(["date", "instrument"])) == []


@pytest.mark.parametrize("divide, near, repair", [
    ({"volume": 100}, "near 100 instead of 1", {"volume": 100}),
    ({"amount": 1000}, "near 0.001 instead of 1", {"amount": 1000}),
    ({"amount": 10000}, "near 0.0001 instead of 1", {"amount": 10000}),
    ({"volume": 100, "amount": 1000}, "near 0.1 instead of 1", {"volume": 100, "amount": 1000}),
    ({"volume": 100, "amount": 10000}, "near 0.01 instead of 1", {"volume": 100, "amount": 10000}),
    ({"volume": 10}, "near 10 instead of 1", {"volume": 10}),
])
@pytest.mark.parametrize("which, named", [
    ((CODES[0], None), "12 of 12 instruments, first SZ000001 in 2018"),
    ((CODES[4], 0), "1 of 12 instruments, first SZ000005 in 2018"),
    ((CODES[4], 2019), "1 of 12 instruments, first SZ000005 in 2019"),
])
def test_units_by_amount(divide, near, repair, which, named):
    bars = multiplied(lambda bars: where(bars, *which), **{name: 1 / by for name, by in divide.items()})
    found = faults(bars)
    entry = "`scale: {" + ", ".join(f"{name}: {by}" for name, by in repair.items()) + "}`"
    assert len(found) == 1 and near in found[0] and named in found[0] and entry in found[0], found
    assert ("in the column mapping" in found[0]) == (which[1] is None)
    if which[1] is None:
        assert faults(bars, scale=repair) == []


@pytest.mark.parametrize("divide, shares, words", [
    ({"volume": 100}, FLOAT, ["near 0.01 instead of 1", "volume in lots of 100", "scale: {volume: 100}"]),
    ({"turnover": 100}, FLOAT, ["near 100 instead of 1", "turnover as a fraction", "scale: {turnover: 100}"]),
    ({}, FLOAT / 10000, ["near 10000 instead of 1", "float_shares_monthly: scale: {float_shares: 10000}"]),
])
def test_units_by_turnover_where_no_amount_is_known(divide, shares, words):
    bars = multiplied(lambda bars: where(bars, *EVERY), **{name: 1 / by for name, by in divide.items()}).drop(columns="amount")
    found = faults(bars, shares)
    assert len(found) == 1 and "100 x volume / float_shares / turnover" in found[0] and "12 of 12" in found[0], found
    assert all(word in found[0] for word in words), found


def test_lots_of_one_year_without_amount():
    bars = multiplied(lambda bars: where(bars, *ONE), volume=0.01)
    bars.loc[where(bars, *ONE), "amount"] = np.nan
    found = faults(bars)
    assert len(found) == 1 and "1 of 12 instruments, first SZ000005 in 2019: volume in lots of 100" in found[0]


def adjust(which, prices=True, volume=False, latest=False) -> pd.DataFrame:
    """Prices x factor (over the last factor: as charts show them), volume / factor, on some rows."""
    bars = make_market()
    last = bars.groupby("instrument")["factor"].transform("last") if latest else 1.0
    factor = (bars["factor"] / last).where(where(bars, *which), 1.0)
    if prices:
        bars[PRICES] = bars[PRICES].mul(factor, axis=0)
    if volume:
        bars["volume"] = bars["volume"] / factor
    return bars


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize("latest", [False, True])
def test_adjusted_prices_of_all(volume, latest):
    for bars in (adjust(EVERY, volume=volume, latest=latest), adjust(EVERY, volume=volume, latest=latest).drop(columns="amount")):
        found = faults(bars.drop(columns="turnover"))
        assert len(found) == 1 and "prices look adjusted already for 12 of 12 instruments, first SZ000001" in found[0], found
        assert "give unadjusted prices, or factor 1" in found[0]
    bars["factor"] = 1.0
    assert faults(bars.drop(columns="turnover")) == []


@pytest.mark.parametrize("volume", [False, True])
@pytest.mark.parametrize("latest", [False, True])
def test_adjusted_prices_of_one(volume, latest):
    found = faults(adjust((CODES[4], 0), volume=volume, latest=latest))
    words = "mixed adjusted and raw prices: they look adjusted already for 1 of 12 instruments, first SZ000005 in 2018"
    assert len(found) == 1 and words in found[0], found


def test_adjusted_prices_of_one_year():
    found = faults(adjust(ONE))
    assert len(found) == 1 and "mixed adjusted and raw prices" in found[0] and "first SZ000005 in 2019" in found[0], found


def test_adjusted_volume_with_raw_prices():
    found = faults(adjust(EVERY, prices=False, volume=True))
    assert len(found) == 1 and "is the factor instead of 1 for 12 of 12 instruments" in found[0], found


def test_a_factor_of_one_hundred_is_no_lot():
    """One stock's factor is a hundred: what it shows is told by what the others show."""
    bars = make_market()
    rows = bars["instrument"] == CODES[4]
    bars.loc[rows, "factor"] = 100.0
    assert faults(bars) == []
    in_lots = bars.assign(volume=bars["volume"] / 100)
    assert len(faults(in_lots)) == 1 and "12 of 12 instruments" in faults(in_lots)[0]
    shrunk = bars.assign(volume=bars["volume"] / bars["factor"])
    assert len(faults(shrunk)) == 1 and "12 of 12 instruments" in faults(shrunk)[0] and "adjusted" in faults(shrunk)[0]


def test_one_wrong_factor_is_no_adjusted_stock():
    """A factor dated thirty days late: the close jumps without it, and does not where it stands."""
    bars = make_market()
    rows = np.flatnonzero(bars["instrument"] == CODES[4])
    factor = bars.loc[rows, "factor"].to_numpy().copy()
    change = np.flatnonzero(np.abs(np.diff(np.log(factor))) > 0.1)[0] + 1
    factor[change : change + 10] = factor[change - 1]
    bars.loc[rows, "factor"] = factor
    assert faults(bars) == []


def test_one_change_each_tells_when_most_agree():
    """Without amounts and with one big change for each stock: adjusted when all look so, not when one does."""
    bars = make_market().drop(columns=["amount", "turnover"])
    raw = bars[bars["date"] < "2018-02-20"].copy()
    later = raw["date"] >= "2018-02-01"
    raw["factor"] = np.where(later, 1.6, 1.0)
    flat = 20 * np.exp(0.001 * np.arange(len(raw)))
    raw[PRICES] = np.column_stack([flat] * 4) / raw[["factor"]].to_numpy()
    assert faults(raw) == []
    adjusted = raw.assign(**{name: raw[name] * raw["factor"] for name in PRICES})
    assert "12 of 12 instruments" in faults(adjusted)[0]
    one = raw["instrument"] == CODES[4]
    assert faults(adjusted.where(one, raw)) == []


def test_rows_by_date_are_judged_as_well():
    bars = multiplied(lambda bars: where(bars, *ONE), volume=0.01).sort_values(["date", "instrument"])
    found = faults(bars)
    assert len(found) == 1 and "1 of 12 instruments, first SZ000005 in 2019" in found[0]
    assert faults(adjust((CODES[4], 0)).sort_values("date")) == faults(adjust((CODES[4], 0)))


def test_a_stock_without_float_shares_is_not_judged_by_another_ones():
    bars = make_market().drop(columns="amount")
    bars.loc[bars["instrument"] == CODES[4], "volume"] *= 100
    shares = np.full(len(CODES), FLOAT)
    assert "first SZ000005 in 2018" in faults(bars, shares)[0]
    tables = make_tables()
    known = pd.DataFrame({"instrument": CODES, "month": "2017-12-31", "float_shares": FLOAT}).drop(index=4)
    data = read_tables({**tables, "bars": bars, "float_shares_monthly": known})
    assert check_units(data["bars"], data["float_shares_monthly"]) == ([], {"amount": 0, "turnover": 11, "factor_changes": 12})


def test_the_checks_of_all_tables_ask_for_the_units():
    tables = make_tables()
    judged = check_tables(read_tables(tables), "typical")
    assert judged == {"amount": 4, "turnover": 4, "factor_changes": 0}
    tables["bars"]["volume"] = tables["bars"]["volume"] / 100
    with pytest.raises(DataError, match="near 100 instead of 1 for 4 of 4 instruments, first SH600000 in 2020: volume in lots"):
        check_tables(read_tables(tables), "typical")


def last_days(bars, count=1):
    """What a short append brings: the last days."""
    days = np.sort(bars["date"].unique())[-count:]
    return bars[bars["date"].isin(days)]


@pytest.mark.parametrize("divide, repair", [({"volume": 100}, "{volume: 100}"), ({"amount": 1000}, "{amount: 1000}")])
@pytest.mark.parametrize("count", [1, 4])
def test_units_of_a_short_append(divide, repair, count):
    short = last_days(make_market().dropna(), count)
    assert faults(make_market()) == [] and faults(short.assign(amount=short["volume"] * short["close"])) == []
    short = short.assign(amount=short["volume"] * short["close"])
    wrong = short.assign(**{name: short[name] / by for name, by in divide.items()})
    assert faults(wrong) and repair in faults(wrong)[0] and f"{count} of {count} days, first 20" in faults(wrong)[0]


def test_one_wrong_day_of_a_long_table():
    bars = make_market()
    bars["amount"] = bars["volume"] * bars["close"]
    day = np.sort(bars["date"].unique())[100]
    wrong = bars.assign(volume=bars["volume"].where(bars["date"] != day, bars["volume"] / 100))
    found = faults(wrong)
    assert len(found) == 1 and f"first {str(day)[:10]}" in found[0] and "volume in lots of 100" in found[0], found


def test_adjusted_prices_of_a_short_append():
    short = last_days(make_market())
    short = short.assign(amount=short["volume"] * short["close"])
    wrong = short.assign(**{name: short[name] * short["factor"] for name in PRICES})
    found = faults(wrong)
    assert len(found) == 1 and "prices look adjusted already for most instruments on 1 of 1 days" in found[0], found


@pytest.mark.parametrize("turnover, shares, words", [
    (100, FLOAT, "scale: {turnover: 100}"), (1, FLOAT / 10000, "float_shares_monthly: scale: {float_shares: 10000}")])
def test_turnover_is_judged_where_amounts_are_known_too(turnover, shares, words):
    bars = make_market().assign(turnover=lambda frame: frame["turnover"] / turnover)
    found = faults(bars, shares)
    assert len(found) == 1 and words in found[0] and "12 of 12" in found[0], found
