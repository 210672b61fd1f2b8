"""Stylised facts against samples whose values are known, and against slow pandas or numpy."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from qlib_ext.errors import DataError, ShapeError
from qlib_ext.report import market_facts as facts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("market_facts_script", ROOT / "scripts" / "market_facts.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def returns() -> np.ndarray:
    """[t, n] with a common part, fat tails and holes."""
    random = np.random.default_rng(3)
    values = 0.01 * random.standard_normal((600, 1)) + 0.02 * random.standard_t(4, (600, 30)) * (1 + np.arange(30) / 30)
    values[random.random(values.shape) < 0.05] = np.nan
    values[:200, 3] = np.nan
    return values


def test_tail_index_of_known_tails():
    random = np.random.default_rng(0)
    assert facts.tail_index(random.standard_t(3, (2000, 400)), 0.002) == pytest.approx(3.0, abs=0.25)
    assert facts.tail_index(random.standard_normal((2000, 100))) > 5
    sample = random.standard_t(3, (500, 5))
    ordered = np.sort(np.abs((sample - sample.mean(axis=0)) / sample.std(axis=0)).ravel())[::-1]
    assert facts.tail_index(sample) == pytest.approx(1 / np.mean([np.log(ordered[place] / ordered[125]) for place in range(125)]))


def test_moments_and_dispersion(returns):
    frame = pd.DataFrame(returns)
    z = ((frame - frame.mean()) / frame.std(ddof=0)).to_numpy()
    assert facts.excess_kurtosis(returns) == pytest.approx(np.nanmean(z**4) - 3)
    assert facts.dispersion(returns) == pytest.approx(frame.std(axis=1, ddof=1).mean())
    assert facts.market_volatility(returns) == pytest.approx(frame.mean(axis=1).std(ddof=1) * np.sqrt(252))
    np.testing.assert_allclose(facts.stock_volatility(returns), frame.std(ddof=1) * np.sqrt(252))
    assert abs(facts.excess_kurtosis(np.random.default_rng(1).standard_normal((2000, 50)))) < 0.1


def test_autocorrelation_of_moves(returns):
    frame = pd.DataFrame(returns).abs()
    for lag in (1, 5):
        expected = frame.apply(lambda column: column.corr(column.shift(lag))).mean()
        assert facts.absolute_autocorrelation(returns, lag) == pytest.approx(expected)
    calm, noise = np.repeat([1.0, 3.0] * 10, 100)[:, None], np.random.default_rng(2).standard_normal((2000, 20))
    assert facts.absolute_autocorrelation(calm * noise, 20) > 0.1 > 0.02 > abs(facts.absolute_autocorrelation(noise, 20))


def test_pairwise_correlation_equals_all_pairs(returns):
    whole = returns[200:][:, np.arange(30) != 3]
    whole = whole[np.isfinite(whole).all(axis=1)]
    whole = np.vstack([whole] * 4)[:400]
    pairs = np.corrcoef(whole.T)[np.triu_indices(whole.shape[1], 1)]
    assert facts.mean_pairwise_correlation(whole) == pytest.approx(pairs.mean(), abs=1e-12)
    frame = pd.DataFrame(returns).corr().to_numpy()[np.triu_indices(30, 1)]
    assert facts.mean_pairwise_correlation(returns) == pytest.approx(frame.mean(), abs=0.005)  # holes: close, not equal


def test_volume_and_moves(returns):
    volume = np.exp(np.random.default_rng(4).standard_normal(returns.shape) + 20 * np.abs(np.nan_to_num(returns)))
    volume[5, 5] = 0.0
    change = pd.DataFrame(volume).replace(0.0, np.nan).transform(np.log).diff()
    expected = pd.DataFrame(returns).abs().corrwith(change).mean()
    assert facts.volume_and_moves(returns, volume) == pytest.approx(expected)
    assert expected > 0.2


def test_limit_hits_by_hand():
    close = np.array([[11.0, 10.99, np.nan, 9.0, 50.0]])
    up, down = np.array([[11.0, 11.0, 11.0, 11.0, np.nan]]), np.array([[9.0, 9.0, 9.0, 9.0, np.nan]])
    assert facts.limit_hits(close, up, down) == (1 / 3, 1 / 3)
    assert facts.limit_hits((close * 1.7).astype(np.float32), up * np.float32(1.7), down * np.float32(1.7)) == (1 / 3, 1 / 3)
    assert np.isnan(facts.limit_hits(close * np.nan, up, down)).all()


def market(days: int = 300) -> dict:
    """Four stocks of three boards; stock 0 closes at its limit every third day, stock 1 is suspended on the first 30 days."""
    random = np.random.default_rng(5)
    arrays = {name: random.uniform(0.5, 1.5, (days, 4)) for name in ("volume", "turnover", "float_cap")}
    arrays["returns"] = 0.02 * random.standard_normal((days, 4))
    arrays["close"] = np.full((days, 4), 10.0)
    arrays["close"][:30, 1] = arrays["returns"][:30, 1] = np.nan
    arrays["limit_up"], arrays["limit_down"] = np.full((days, 4), 11.0), np.full((days, 4), 9.0)
    arrays["close"][::3, 0] = 11.0
    arrays["is_st"] = np.tile([0.0, 1.0, np.nan, 0.0], (days, 1))
    arrays["listed"] = np.ones((days, 4), dtype=bool)
    return {**arrays, "board": np.array(["main", "main", "chinext", "star"])}


def test_facts_of_a_whole_market():
    arrays = market()
    found = facts.market_facts(arrays)
    assert found["suspended stock-days"] == pytest.approx(30 / 1200)
    assert found["closes at the upper limit, main"] == pytest.approx(1 / 3) and found["closes at the upper limit, chinext"] == 0
    assert found["closes at the upper limit, all"] == pytest.approx(100 / 1170) and found["closes at the lower limit, all"] == 0
    assert np.isnan(found["closes at the upper limit, bse"]) and found["closes at the upper limit, main, ST"] == 0
    assert found["turnover, mean"] == pytest.approx(arrays["turnover"].mean())
    arrays["limit_up"][100, 3], arrays["returns"][100, 3] = np.nan, 5.0  # a day without a limit does not count
    assert facts.market_facts(arrays)["excess kurtosis"] < 1


def test_bad_arrays_are_named():
    arrays = market()
    with pytest.raises(DataError, match="float_cap"):
        facts.market_facts({name: values for name, values in arrays.items() if name != "float_cap"})
    with pytest.raises(ShapeError, match="one shape"):
        facts.market_facts({**arrays, "volume": arrays["volume"][1:]})
    with pytest.raises(ShapeError, match="days x stocks"):
        facts.dispersion(np.zeros(3))


def test_script_reads_stores_with_and_without_limits(script, tmp_path, capsys):
    """Limits from the rules (store a) and the same ones as stored fields (store b) give the same column."""
    days = np.arange(np.datetime64("2020-01-01"), np.datetime64("2021-06-30"))
    days = days[np.is_busday(days)]
    random = np.random.default_rng(6)
    for name in "ab":
        (tmp_path / name / "calendars").mkdir(parents=True)
        (tmp_path / name / "instruments").mkdir()
        (tmp_path / name / "calendars" / "day.txt").write_text("\n".join(map(str, days)))
        (tmp_path / name / "instruments" / "all.txt").write_text("".join(f"{c}\t{days[0]}\t{days[-1]}\n" for c in CODES))
    for code in CODES:
        for field, values in bars(random, len(days)).items():
            for name in "ab" if not field.startswith("limit") else "b":
                (tmp_path / name / "features" / code.lower()).mkdir(parents=True, exist_ok=True)
                np.hstack([0, values]).astype("<f4").tofile(tmp_path / name / "features" / code.lower() / f"{field}.day.bin")
    assert script.main([str(tmp_path / "a"), str(tmp_path / "b"), "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 20 and lines[1] == "|---|---:|---:|"
    for line in lines[2:]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1] == cells[2], line
    hits = [line for line in lines if "upper limit, main |" in line][0]
    assert float(hits.split("|")[2]) > 0.01
    assert script.main([str(tmp_path / "a"), "--start", "2031-01-01"]) == 1
    assert "no day from 2031-01-01" in capsys.readouterr().err


CODES = ("SH600001", "SZ000002")


def bars(random: np.random.Generator, days: int) -> dict:
    """Fields of one main-board stock that stops at its limits, with one bonus issue; limits worked out one by one."""
    close, factor, up, down = [10.0], [1.0], [np.nan], [np.nan]
    for day in range(1, days):
        factor.append(2.0 if day >= 100 else 1.0)
        reference = round(close[-1] * factor[-2] / factor[-1] * 100 + 1e-6) / 100
        up.append(np.floor(reference * 110 + 0.5 + 1e-6) / 100)
        down.append(np.floor(reference * 90 + 0.5 + 1e-6) / 100)
        close.append(min(max(round(reference * (1 + 0.05 * random.standard_normal()), 2), down[-1]), up[-1]))
    close, factor, up, down = map(np.array, (close, factor, up, down))
    adjusted = close * factor
    return {"close": adjusted, "factor": factor, "change": np.hstack([np.nan, adjusted[1:] / adjusted[:-1] - 1]),
            "volume": random.uniform(1e6, 2e6, days) / factor, "float_shares": np.full(days, 1e8), "float_cap": close * 1e8,
            "limit_up": up * factor, "limit_down": down * factor}  # fmt: skip
