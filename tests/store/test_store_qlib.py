"""Qlib reads what was written, and would have written the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from store_market import make_tables, read_field

ROOT = Path(__file__).resolve().parents[2]
READER = """
import json, sys
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
    assert sorted(found["index"]) == ["SH000300", "SH000852"]
    assert found["csi300"]["SZ300001"] == [[days[18], days[-1]]]
    assert found["csi500"]["SZ000001"] == [[days[5], days[8]], [days[30], days[-1]]]


@pytest.mark.parametrize("name", ["features/sz300001/close.day.bin", "calendars/day.txt"])
def test_qlib_would_have_written_the_same_bytes(read_back, small_store, name):
    _, other = read_back
    assert (other / name).read_bytes() == (small_store / name).read_bytes()
