"""Qlib reads what was written, and would have written the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_store_fundamentals
import test_store_indices
import test_store_limits
import test_store_weights
import yaml
from store_market import STOCKS, business_days, make_tables, read_field

from qlib_ext.store.ingest import ingest

ROOT = Path(__file__).resolve().parents[2]
READER = """
import json, sys
from pathlib import Path
import numpy as np
import qlib
from qlib.data import D
from qlib.data.storage.file_storage import FileCalendarStorage, FileFeatureStorage

if __name__ == "__main__":
    store, other = sys.argv[1:]
    qlib.init(provider_uri=store, region="cn", kernels=1)
    result = {"instruments": {}, "calendar": [str(day)[:10] for day in D.calendar()]}
    for name in ("all", "csi300", "csi500", "index"):
        spans = D.list_instruments(D.instruments(name), as_list=False)
        result["instruments"][name] = {code: [[str(day)[:10] for day in span] for span in held] for code, held in spans.items()}
    frame = D.features(["SZ300001"], ["$close", "$vwap", "$volume", "Ref($close, 1)", "$csi300_weight"])
    result["days"] = [str(day)[:10] for day in frame.index.get_level_values("datetime")]
    result["values"] = frame.astype(float).to_numpy().tolist()
    members = D.features(D.instruments("csi300"), ["$csi300_weight"])
    result["sums"] = members.groupby(level="datetime")["$csi300_weight"].sum().tolist()
    result["index"] = D.features(["SH000300"], ["$close"])["$close"].astype(float).tolist()
    source = FileFeatureStorage("SZ300001", "close", "day")[:]
    FileFeatureStorage("SZ300001", "close", "day", provider_uri=other).write(source.to_numpy(), index=int(source.index[0]))
    FileCalendarStorage("day", False, provider_uri=other)._write_calendar(result["calendar"])
    for name in ("all", "index"):
        codes = D.list_instruments(D.instruments(name), as_list=True)
        files = [file for code in codes for file in (Path(store) / "features" / code.lower()).iterdir()]
        fields = sorted({file.name.split(".")[0] for file in files})
        table = D.features(codes, [f"${field}" for field in fields])
        table.columns = fields
        table.reset_index().to_parquet(Path(other) / f"{name}.parquet")
    print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def read_back(small_store, tmp_path_factory):
    """What a fresh process with Qlib on the store sees; it also writes two files again with Qlib's own storages."""
    other = tmp_path_factory.mktemp("other")
    for name in ("calendars", "instruments", "features/sz300001"):
        (other / name).mkdir(parents=True)
    (other / "calendars" / "day.txt").touch()
    script = other / "reader.py"
    script.write_text(READER)
    command = [sys.executable, str(script), str(small_store), str(other)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1]), other


def test_qlib_reads_the_store(read_back, small_store):
    result, _ = read_back
    assert result["calendar"] == (small_store / "calendars" / "day.txt").read_text().split()
    values = np.array(result["values"])
    close = read_field(small_store, "SZ300001", "close")
    assert result["days"] == [str(day)[:10] for day in close.index]
    np.testing.assert_array_equal(values[:, 0], close)
    np.testing.assert_array_equal(values[1:, 3], close[:-1])
    np.testing.assert_array_equal(values[:, 4], read_field(small_store, "SZ300001", "csi300_weight"))
    np.testing.assert_allclose(result["sums"], 1, atol=1e-6)
    expected = make_tables()["index_bars"].query("instrument == 'SH000300'")["close"]
    np.testing.assert_allclose(result["index"], expected, rtol=1e-6)


def test_qlib_reads_the_instruments(read_back):
    result, _ = read_back
    days = result["calendar"][10:]
    found = result["instruments"]
    assert sorted(found["all"]) == ["SH600000", "SH688001", "SZ000001", "SZ300001"]
    assert sorted(found["index"]) == ["CSI300PR", "CSI300TR", "CSI500PR", "CSI500TR", "SH000300", "SH000852"]
    assert found["csi300"]["SZ300001"] == [[days[18], days[-1]]]
    assert found["csi500"]["SZ000001"] == [[days[5], days[8]], [days[30], days[-1]]]


@pytest.mark.parametrize("name", ["features/sz300001/close.day.bin", "calendars/day.txt"])
def test_qlib_would_have_written_the_same_bytes(read_back, small_store, name):
    _, other = read_back
    assert (other / name).read_bytes() == (small_store / name).read_bytes()


# ---- every field against the tables -------------------------------------------------------------------------------------------
def bar_fields(rows: pd.DataFrame, days: pd.DatetimeIndex) -> pd.DataFrame:
    """Fields of one stock's bars by pandas; `rows` by day."""
    rows = rows.reindex(days)
    traded, factor = rows["volume"] > 0, rows["factor"].ffill()
    found = rows[["open", "high", "low", "close"]].mul(factor, axis=0)
    found["volume"], found["amount"], found["turnover"] = rows["volume"] / factor, rows["amount"], rows["turnover"]
    found["vwap"] = (rows["high"] + rows["low"] + rows["close"]) / 3 * factor
    found["change"] = found["close"][traded].pct_change()
    found[~traded] = np.nan
    status = rows["is_st"].ffill()
    found["factor"], found["is_st"] = factor, status.where(status >= 0)
    return found


def known_fields(tables: dict, code: str, raw_close: pd.Series) -> pd.DataFrame:
    """Fields of one stock from the other tables, each day looked up by itself; `raw_close` carried through suspensions."""
    own = {name: table[table["instrument"] == code] for name, table in tables.items()}
    shares = own["float_shares_monthly"].query("method != 'snapshot_bfill'").sort_values("month")
    rows = []
    for day, close in raw_close.items():
        found = {**dict.fromkeys(test_store_fundamentals.FIELDS, np.nan),
                 **test_store_fundamentals.reference(own["fundamentals"], day)}  # fmt: skip
        before = shares[shares["month"] < day]
        for kind in ("float", "total"):
            values = before.dropna(subset=f"{kind}_shares")
            since = values["month"].max()
            bonus = own["dividends"].query("@since < ex_date <= @day")["bonus"]
            found[f"{kind}_shares"] = values[f"{kind}_shares"].iloc[-1] * (1 + bonus).prod() if len(values) else np.nan
            found[f"{kind}_cap"] = found[f"{kind}_shares"] * close
        spans = own["industry"].query("start <= @day <= end")
        found["industry"] = float(spans["l1_code"].iloc[0]) if len(spans) else np.nan
        paid = own["dividends"].query("ex_date == @day")
        found["cash_dividend"], found["bonus_shares"] = paid["cash"].sum(), paid["bonus"].sum()
        rows.append(found)
    return pd.DataFrame(rows, index=raw_close.index)


def read_table(read_back, name: str, code: str) -> pd.DataFrame:
    table = pd.read_parquet(read_back[1] / f"{name}.parquet")
    return table[table["instrument"] == code].set_index("datetime").drop(columns="instrument")


@pytest.mark.parametrize("code", STOCKS)
def test_every_field_of_a_stock_equals_the_tables(read_back, small_store, code):
    tables, stored = make_tables(), read_table(read_back, "all", code)
    rows = tables["bars"].query("instrument == @code").set_index("date")
    raw_close = rows["close"].where(rows["volume"] > 0).reindex(stored.index).ffill()
    expected = bar_fields(rows, stored.index).join(known_fields(tables, code, raw_close))
    fraction = 0.2 if code == "SH688001" else 0.1
    limits = test_store_limits.reference(
        rows, stored.index, lambda day, row: 0.05 if row is not None and row["is_st"] == 1 else fraction)
    if code == "SH688001":
        limits.iloc[:5] = np.nan  # it lists inside the calendar
    expected = expected.join(limits)
    for name in ("csi300", "csi500"):
        expected[f"{name}_weight"] = test_store_weights.reference(small_store, tables, name)[code].reindex(stored.index)
    assert set(expected) == set(stored)
    for field in stored:
        wanted = expected[field].to_numpy(dtype=float)
        atol = 1e-7 if field == "change" else 0
        np.testing.assert_allclose(stored[field], wanted, rtol=3e-6, atol=atol, err_msg=f"{code} {field}")


@pytest.mark.parametrize("code", ["SH000300", "SH000852", "CSI300TR", "CSI300PR", "CSI500TR", "CSI500PR"])
def test_every_field_of_an_index_equals_the_tables(read_back, small_store, code):
    tables, stored = make_tables(), read_table(read_back, "index", code)
    if code.startswith("CSI"):
        level = test_store_indices.reference(small_store, tables, code[:-2].lower(), code[-2:])
        expected = level.reindex(stored.index).to_frame("close")
    else:
        expected = tables["index_bars"].query("instrument == @code").set_index("date").drop(columns="instrument")
        expected["vwap"] = expected[["high", "low", "close"]].mean(axis=1)
    known = expected["close"].dropna()
    expected["change"], expected["factor"] = known / known.shift() - 1, 1.0
    stored = stored.dropna(axis=1, how="all")
    assert set(expected) == set(stored)
    for field in stored:
        np.testing.assert_allclose(stored[field], expected[field], rtol=1e-6, atol=3e-7, err_msg=f"{code} {field}")


# ---- Qlib's own parts on a store ----------------------------------------------------------------------------------------------
RUNNER = """
import json, sys
import numpy as np, pandas as pd
import qlib
from qlib.backtest import backtest
from qlib.backtest.exchange import Exchange
from qlib.contrib.data.handler import Alpha158
from qlib.contrib.model.gbdt import LGBModel
from qlib.data import D
from qlib.data.dataset import DatasetH
from qlib.utils import init_instance_by_config
from qlib.workflow import R

if __name__ == "__main__":
    store, config = sys.argv[1], json.loads(sys.argv[2])
    segments, options, trade = config["segments"], config["model"], config["trade"]
    qlib.init(provider_uri=store, region="cn", kernels=1, logging_level=40,
              exp_manager={"class": "SqliteExpManager", "module_path": "qlib_ext.tracking",
                           "kwargs": {"uri": f"sqlite:///{config['home']}/t.db", "default_exp_name": "x"}})
    first, last = segments["train"][0], segments["test"][1]
    handler = Alpha158(instruments="all", start_time=first, end_time=last, fit_start_time=first,
                       fit_end_time=segments["train"][1], infer_processors=[])
    dataset = DatasetH(handler, {name: tuple(span) for name, span in segments.items()})
    model = LGBModel(**options)
    with R.start(experiment_name="x"):
        model.fit(dataset, verbose_eval=0)
    score = model.predict(dataset)
    features = dataset.prepare("test", col_set="feature")
    result = {"features": list(features.shape), "known": float(features.notna().mean().min()), "scored": int(score.notna().sum()),
              "varies": float(score.groupby(level="datetime").std().median())}
    limits = ("$high >= $limit_up - 0.001 * $factor", "$low <= $limit_down + 0.001 * $factor")
    strategy = {"class": "TopkDropoutStrategy", "module_path": "qlib.contrib.strategy",
                "kwargs": {"signal": score, "topk": 10, "n_drop": 2}}
    executor = {"class": "SimulatorExecutor", "module_path": "qlib.backtest.executor",
                "kwargs": {"time_per_step": "day", "generate_portfolio_metrics": True}}
    for name, threshold in (("plain", 0.095), ("limits", limits)):
        exchange = {"freq": "day", "deal_price": "close", "limit_threshold": threshold}
        report = backtest(start_time=segments["test"][0], end_time=trade, strategy=strategy, executor=executor, account=1e8,
                          benchmark="SH000300", exchange_kwargs=exchange)[0]["1day"][0]
        result[name] = [len(report), float(report["turnover"].sum()), float(report["account"].iloc[-1])]
        result["bench"] = report["bench"].tolist()
    exchange = Exchange(freq="day", start_time=segments["test"][0], end_time=last, codes="all", deal_price="close",
                        limit_threshold=limits)
    quote = exchange.quote_df
    result["blocked"] = [int(quote["limit_buy"].sum()), int(quote["limit_sell"].sum()), int(quote["$close"].isna().sum())]
    hit = D.features(D.instruments("all"), ["$high", "$limit_up", "$close", "$low", "$limit_down", "$factor"],
                     segments["test"][0], last)
    suspended = hit["$close"].isna()
    at_limit = (hit["$high"] >= hit["$limit_up"] - 0.001 * hit["$factor"],
                hit["$low"] <= hit["$limit_down"] + 0.001 * hit["$factor"])
    result["expected"] = [*(int((at | suspended).sum()) for at in at_limit), int(suspended.sum())]
    print(json.dumps(result))
"""


SEGMENTS = {"train": ["2015-03-16", "2015-08-31"], "valid": ["2015-09-01", "2015-10-30"], "test": ["2015-11-02", "2016-03-25"]}


def wide_tables(stocks: int = 40, count: int = 320) -> dict:
    """Main-board stocks in whole cents that often close at a limit of 10 percent, with suspensions."""
    generator, days = np.random.default_rng(11), business_days("2015-01-05", count)
    cents = np.empty((count, stocks), dtype=np.int64)
    cents[0] = 1500
    for day in range(1, count):
        up, down = (cents[day - 1] * 110 + 50) // 100, (cents[day - 1] * 90 + 50) // 100
        cents[day] = (cents[day - 1] * np.exp(0.04 * generator.standard_normal(stocks))).astype(np.int64).clip(down, up)
    codes = np.array([f"SH60{place:04d}" for place in range(stocks)])
    day, stock = (grid.ravel() for grid in np.meshgrid(np.arange(count), np.arange(stocks), indexing="ij"))
    close = cents.ravel() / 100
    prices = dict.fromkeys(("open", "high", "low", "close"), close)
    bars = pd.DataFrame({"date": days[day], "instrument": codes[stock], **prices,
                         "volume": generator.integers(1e6, 9e6, len(day)), "factor": 1.0})  # fmt: skip
    bars.loc[generator.random(len(bars)) < 0.02, "volume"] = 0
    level = 3000 * np.exp(0.01 * generator.standard_normal(count).cumsum())
    index_bars = pd.DataFrame({"date": days, "instrument": "SH000300", "open": level, "high": level, "low": level, "close": level,
                               "volume": 1e9})  # fmt: skip
    spans = pd.DataFrame({"instrument": codes, "index": "csi300", "start": days[0], "end": days[-1]})
    return {"bars": bars, "index_bars": index_bars, "membership": spans}


@pytest.mark.slow
def test_alpha158_exchange_and_the_baseline_run_on_a_store(tmp_path_factory):
    """Qlib's own handler, LightGBM with the options of the baseline workflow, strategy, exchange and back-test, unchanged."""
    folder = tmp_path_factory.mktemp("runs")
    text = (ROOT / "workflows" / "baseline_lightgbm_csi300.yaml").read_text()
    text = "\n".join(line for line in text.splitlines() if "{{" not in line)
    options = {**yaml.safe_load(text)["task"]["model"]["kwargs"], "num_boost_round": 10, "lambda_l1": 0.0, "lambda_l2": 1.0}
    store, segments = ingest(wide_tables(), folder / "store", index_names=("csi300",)), SEGMENTS
    config = {"segments": segments, "model": options, "trade": "2016-03-22", "home": str(folder)}
    script = folder / "runner.py"
    script.write_text(RUNNER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(store), json.dumps(config)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout.strip().splitlines()[-1])
    assert result["features"][1] == 158 and result["known"] > 0.9 and result["varies"] > 0
    assert result["scored"] == result["features"][0]
    for name in ("plain", "limits"):
        days, turnover, account = result[name]
        assert days > 95 and turnover > 1 and 5e7 < account < 2e8
    close = read_field(store, "SH000300", "close").astype(float)
    np.testing.assert_allclose(result["bench"], close.pct_change()[segments["test"][0] :][: len(result["bench"])], atol=1e-6)
    assert result["blocked"] == result["expected"] and min(result["blocked"]) > 0
