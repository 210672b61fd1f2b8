"""The real tables: half a year of index enhancement keeps its bands, and its certificates are what snapshots and closes say."""
import numpy as np
import pandas as pd
import pytest
import qlib

from qlib_ext.portfolio.exchange import AShareExchange
from qlib_ext.portfolio.strategy import IndexEnhancementStrategy
from qlib_ext.risk.model import open_snapshots, prepare_snapshots
from qlib_ext.store.ingest import ingest

pytestmark = pytest.mark.realdata
FIRST, LAST = "2023-01-04", "2023-06-30"


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory):
    """Snapshots of a store of the real tables, which Qlib is started on."""
    folder = tmp_path_factory.mktemp("real")
    store = ingest(real_data / "ashare_daily", folder / "store")
    qlib.init(provider_uri=str(store), region="cn", kernels=1, expression_cache=None, dataset_cache=None, logging_level=30)
    prepare_snapshots(folder / "risk", progress=False)
    return folder / "risk"


@pytest.mark.parametrize("preset, index, least", [("dl_em", "csi1000", 900), ("meta", "csi300", 250), ("ai_wide", "csi500", 450)])
def test_half_a_year(real, preset, index, least):
    from qlib.data import D
    days = pd.DatetimeIndex(D.calendar(start_time="2022-12-30", end_time=LAST))
    codes = D.list_instruments(D.instruments(index), start_time=FIRST, end_time=LAST, as_list=True)
    draw = np.random.default_rng(5)
    scores = pd.Series(draw.normal(size=len(days) * len(codes)), pd.MultiIndex.from_product([days, codes], names=["datetime", "instrument"]))
    strategy = IndexEnhancementStrategy(signal=scores, index=index, snapshots=str(real), optimizer={"preset": preset, "missing_styles": "drop"})
    result = strategy.simulate(AShareExchange("2022-12-01", "2023-07-31", costs="dated"), FIRST, LAST)
    certificates, exposures, decisions = (strategy.table(name) for name in ("certificates", "exposures", "decisions"))
    assert len(certificates) >= 24 and (certificates["violation"] <= 1e-8).all() and (certificates["gap"] <= 2e-6).all()
    strict = exposures[exposures["day"].isin(certificates.loc[certificates["status"] == "optimal", "day"])]
    assert (strict["exposure"].between(strict["low"] - 1e-8, strict["high"] + 1e-8)).all()
    store = open_snapshots(real)
    for day, rows in decisions.groupby("day"):
        assert (rows["benchmark"] > 0).sum() >= least
        risk = store.read(day)
        place = risk.rows(rows["instrument"])
        active = (rows["weight"] - rows["benchmark"]).to_numpy()
        size = active[place >= 0] @ risk.exposure[place[place >= 0], risk.factors.index("size")]
        said = exposures[(exposures["day"] == day) & (exposures["column"] == "size")]["exposure"].iloc[0]
        assert size == pytest.approx(said, abs=1e-9)
    members = strategy.closes.benchmarks(result.report.index.to_numpy())["total_return"]
    realised = (result.report["return"] - members).std() * np.sqrt(252)
    assert 0.5 < realised / certificates["tracking_error"].mean() < 2.0
    change = D.features([f"{index.upper()}TR"], ["$change"], start_time=FIRST, end_time=LAST).droplevel(0)["$change"]
    np.testing.assert_allclose(members, change, atol=2e-5)     # the store's index leaves members whose bars have ended their part, at return 0
