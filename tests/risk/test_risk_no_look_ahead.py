"""Snapshots and winner styles of day t use nothing after its close: the tables are corrupted after t, ingested again, and everything
is built anew in a fresh process; a planted leak is caught.

Run as a script it is that process: ``python test_risk_no_look_ahead.py STORE OUT LEAK`` writes hashes of every day to OUT.json.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
KNOWN = "2016-06-15"
FIT = ("2016-01-04", "2016-05-31")


def build(store: str, out: str, leak: str) -> None:
    """Hashes of every day's snapshot, of what it taught, and of the columns made of the exposures."""
    import qlib

    from qlib_ext.data.winner_loader import WinnerStyleLoader
    from qlib_ext.risk import estimate, market
    from qlib_ext.risk.model import prepare_snapshots

    if leak == "market":                                                   # tomorrow's market return under today's date
        today = market.MarketArrays.market
        market.MarketArrays.market = lambda self: np.append(today(self)[1:], np.nan)
    elif leak == "exposure":                                               # the day's own caps weigh its regression
        real = estimate.Exposed.__post_init__
        estimate.Exposed.__post_init__ = lambda self: (setattr(self, "cap", np.roll(self.cap, -1, axis=0)), real(self))[1]
    qlib.init(provider_uri=store, region="cn", kernels=1, logging_level=30)
    made = prepare_snapshots(f"{out}.risk", progress=False)
    found = {"snapshot": {}, "learnt": {}, "winners": {}}
    for day in made.days:
        one = made.read_day(day)
        shot = one.snapshot
        parts = {"snapshot": (shot.instruments, shot.exposure, shot.factor_cov, shot.specific_var),
                 "learnt": (one.factor_return, one.residual, one.estimation, np.array(one.r_squared))}
        for kind, arrays in parts.items():
            found[kind][str(day)] = hashlib.blake2b(repr(shot.factors).encode() + b"".join(a.tobytes() for a in arrays)).hexdigest()
    values, names = WinnerStyleLoader(*FIT, snapshots=f"{out}.risk").load(made.days)
    assert values.shape[1] == 120 == len(set(names))
    found["winners"] = {str(day): row.tobytes().hex() for day, row in zip(made.days, values)}
    Path(f"{out}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stores of the true tables and of those corrupted after `KNOWN`."""
    sys.path.insert(0, str(ROOT / "tests"))
    from small_market import market
    from test_no_look_ahead import corrupt

    from qlib_ext.demo.tables import make_tables
    from qlib_ext.store.ingest import ingest

    made = tmp_path_factory.mktemp("stores")
    tables = make_tables(market())
    for name, content in (("true", tables), ("corrupted", corrupt(tables, KNOWN))):
        ingest(content, made / name, generated=True)
    return made


def hashes(folder: Path, name: str, leak: str = "none") -> dict:
    out = folder / f"{name}_{leak}"
    done = subprocess.run([sys.executable, __file__, str(folder / name), str(out), leak], capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "QLIB_EXT_HOME": str(folder / "home")})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(Path(f"{out}.json").read_text())


def test_nothing_up_to_t_changes_and_everything_after_does(folder):
    true, corrupted = hashes(folder, "true"), hashes(folder, "corrupted")
    for kind in ("snapshot", "learnt", "winners"):
        days = sorted(true[kind])
        assert days == sorted(corrupted[kind]) and days[0] < KNOWN < days[-1]
        differ = [day for day in days if true[kind][day] != corrupted[kind][day]]
        assert differ and min(differ) > KNOWN, (kind, differ[:3])
        assert set(day for day in days if day > KNOWN) == set(differ), kind


@pytest.mark.parametrize("leak", ["market", pytest.param("exposure", marks=pytest.mark.slow)])
def test_a_planted_leak_is_caught(folder, leak):
    true, corrupted = hashes(folder, "true", leak), hashes(folder, "corrupted", leak)
    assert any(true["snapshot"][day] != corrupted["snapshot"][day] for day in true["snapshot"] if day <= KNOWN)


if __name__ == "__main__":
    build(*sys.argv[1:])
