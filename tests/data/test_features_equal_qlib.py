"""Alpha158 and Alpha360 against Qlib's own operators, every cell of every column; what may differ is said by a rule on the inputs.

The rule: pandas carries one running variance through a series, whose rounding error grows with the square of the largest value seen
before, so a window whose own variance is tiny beside that is wrong there. Such cells are held against exact fractions.
"""

from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from qlib.contrib.data import handler as theirs
from qlib.data import D

from nasty_market import KINDS, PLAIN
from qlib_ext.data import handler as ours
from small_market import build_store
from tiny_market_store import start_qlib

NAMES = ("Alpha158", "Alpha158vwap", "Alpha360", "Alpha360vwap")
WINDOWS = (5, 10, 20, 30, 60)
RELATIVE, ABSOLUTE = 1e-5, 1e-6


def wrong(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Cells that are not within the tolerance; NaN equals NaN only, infinity the same infinity."""
    found, expected = found.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        near = np.abs(found - expected) <= np.maximum(ABSOLUTE, RELATIVE * np.abs(expected))
    return ~(near | (found == expected) | (np.isnan(found) & np.isnan(expected)))


def both(name: str, **options) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The raw tables of this package's handler and of Qlib's, on the same rows and columns."""
    found, expected = (getattr(module, name)(**options, **PLAIN)._data for module in (ours, theirs))
    pd.testing.assert_index_equal(found.index, expected.index)
    pd.testing.assert_index_equal(found.columns, expected.columns)
    assert (found.dtypes == np.float32).all()
    return found, expected


def deviating_series(code: str) -> dict[str, pd.Series]:
    """What the formulas take deviations of, as Qlib computes it in float32."""
    bars = D.features([code], ["$close", "$volume", "Abs($close/Ref($close,1)-1)*$volume"]).loc[code]
    return dict(zip(("STD", "VSTD", "WVMA"), (bars.iloc[:, k] for k in range(3))))


def carried(values: pd.Series, window: int) -> pd.Series:
    """Days on which a carried variance may be wrong by more than the tolerance."""
    table = np.lib.stride_tricks.sliding_window_view(np.r_[np.full(window - 1, np.nan), values.to_numpy(np.float64)], window)
    table = np.where(np.isfinite(table), table, np.nan)
    count = np.isfinite(table).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nansum(table, axis=1) / count
        variance = np.nansum((table - mean[:, None]) ** 2, axis=1) / (count - 1)
    peak = np.maximum.accumulate(np.nan_to_num(np.abs(values.to_numpy(np.float64)), posinf=0))
    return pd.Series((count > 1) & (4e-16 * peak ** 2 > RELATIVE * variance), values.index)


def exact_deviation(values: np.ndarray) -> float:
    """Sample standard deviation of float32 values in rational arithmetic, rounded once."""
    known = [Fraction(float(x)) for x in values if np.isfinite(x)]
    mean = sum(known) / len(known)
    variance = sum((x - mean) ** 2 for x in known) / (len(known) - 1)
    with localcontext() as context:
        context.prec = 60
        return float((Decimal(variance.numerator) / Decimal(variance.denominator)).sqrt())


def exact_cell(name: str, window: int, values: pd.Series, day) -> float:
    """A deviation formula of the table in exact arithmetic up to its last division."""
    place = values.index.get_loc(day)
    part = values.to_numpy()[max(place - window + 1, 0):place + 1]
    if name != "WVMA":
        return exact_deviation(part)
    known = part[np.isfinite(part)].astype(np.float64)
    return exact_deviation(part) / (known.sum() / len(known) + 1e-12)


def check_by_rule(found: pd.DataFrame, expected: pd.DataFrame, sample: int = 40) -> dict[str, int]:
    """Every wrong cell is a deviation where the rule says so, and there exact arithmetic is on our side; wrong cells by column."""
    counts = {}
    for column in expected.columns:
        bad = wrong(found[column].to_numpy(), expected[column].to_numpy())
        if not bad.any():
            continue
        counts[column[1]] = int(bad.sum())
        name, window = column[1].rstrip("0123456789"), int(column[1][len(column[1].rstrip("0123456789")):])
        assert name in ("STD", "VSTD", "WVMA"), f"{column}: {found[column][bad].head()} but Qlib {expected[column][bad].head()}"
        cells = expected.index[bad]
        for code in cells.get_level_values("instrument").unique():
            values = deviating_series(code)[name]
            allowed, days = carried(values, window), cells[cells.get_level_values("instrument") == code].get_level_values("datetime")
            assert allowed[days].all(), f"{column} of {code} on {days[~allowed[days].to_numpy()][:3]}"
            for day in days[:: max(len(days) // sample, 1)]:
                exact, under = exact_cell(name, window, values, day), 1.0
                if name == "STD":
                    under = float(values[day])
                elif name == "VSTD":
                    under = float(np.float32(values[day]) + np.float32(1e-12))
                value = np.float64(found.loc[(day, code), column])
                assert abs(value - exact / under) <= max(ABSOLUTE, RELATIVE * abs(exact / under)), f"{column} {code} {day}"
    return counts


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name == "Alpha360vwap" else name for name in NAMES])
@pytest.mark.parametrize("start", [None, "2020-08-03"])
def test_every_cell_on_a_nasty_market(nasty, name, start):
    """All columns of all handlers on gaps, ties, constant prices, zero and huge volumes, penny prices and short histories."""
    start_qlib(nasty)
    found, expected = both(name, instruments="all", start_time=start)
    counts = check_by_rule(found, expected)
    assert (name == "Alpha158" and start is None) <= (sum(counts.values()) > 100)  # the market does provoke Qlib's rounding
    codes = [f"SH{600000 + k}" for k in range(2 * len(KINDS)) if KINDS[k % len(KINDS)] not in ("burst", "ticks")]
    usual = found.index.get_level_values("instrument").isin(codes)
    assert not any(wrong(found[c][usual].to_numpy(), expected[c][usual].to_numpy()).any() for c in expected.columns)


def test_the_rule_spares_ordinary_series(nasty):
    start_qlib(nasty)
    flagged = {name: np.mean([carried(values, window).mean() for window in WINDOWS]) for name, values in
               deviating_series("SH600000").items()}
    assert max(flagged.values()) == 0.0
    assert carried(deviating_series("SH600007")["VSTD"], 20).mean() > 0.3  # after the burst


@pytest.mark.parametrize("formula", ["Mean($close,5)/$close", "IdxMax($high,20)/20", "Corr($close,Log($volume+1),10)", "Rank($close,5)"])
def test_the_comparison_catches_a_shifted_formula(nasty, formula):
    """The formula of the day before in its place is found to be wrong."""
    start_qlib(nasty)
    options = {"instruments": ["SH600000", "SH600008"]}
    handler = theirs.Alpha158(**options, init_data=False, **PLAIN)
    names = dict(zip(*reversed(handler.data_loader.fields["feature"])))
    column = next(name for name, text in names.items() if text.replace(" ", "") == formula)
    found, expected = both("Alpha158", **options)
    assert not wrong(found[("feature", column)].to_numpy(), expected[("feature", column)].to_numpy()).any()
    shifted = D.features(options["instruments"], [f"Ref({formula}, 1)"]).swaplevel().sort_index().iloc[:, 0]
    assert wrong(found[("feature", column)].to_numpy(), shifted.to_numpy()).mean() > 0.5


def check_shares(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """The bar for markets: 99.99 % of all cells and 99.9 % of each column within the tolerance, NaN in the same places."""
    share = {c: wrong(found[c].to_numpy(), expected[c].to_numpy()).mean() for c in expected.columns}
    assert np.mean(list(share.values())) <= 1e-4 and max(share.values()) <= 1e-3, {c: s for c, s in share.items() if s > 0}
    assert all((found[c].isna() == expected[c].isna()).all() for c in expected.columns)


@pytest.mark.parametrize("name", ["Alpha158", pytest.param("Alpha360vwap", marks=pytest.mark.slow)])
def test_a_generated_market(tmp_path_factory, name):
    start_qlib(build_store(tmp_path_factory.getbasetemp() / "small_market"))
    found, expected = both(name, instruments="csi300", start_time="2015-06-01")
    check_by_rule(found, expected)
    check_shares(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_demo_market(demo_store, name):
    start_qlib(demo_store)
    found, expected = both(name, instruments="csi300")
    check_by_rule(found, expected)
    check_shares(found, expected)


@pytest.mark.realdata
@pytest.mark.parametrize("name", NAMES)
def test_real_data(real_store, name):
    """A hundred members of CSI1000, all years."""
    start_qlib(real_store)
    codes = sorted(D.list_instruments(D.instruments("csi1000"), as_list=True))[::20]
    found, expected = both(name, instruments=codes)
    check_by_rule(found, expected)
    check_shares(found, expected)
