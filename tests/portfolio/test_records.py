"""The record: three benchmarks, certificates in the recorder, several portfolios in one recorder, both engines alike."""
import numpy as np
import pandas as pd
import pytest
from enhanced_market import FIRST, LAST, LIMITS, scores
from small_market import prepared, start_qlib

from qlib_ext.errors import ConfigError
from qlib_ext.portfolio.__main__ import main
from qlib_ext.portfolio.records import PortfolioRecord, backtest_config
from qlib_ext.report.metrics import excess_figures


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """(uri, store, snapshots, recorder id) of a run with predictions."""
    from qlib.workflow import R
    store, risk = prepared(tmp_path_factory.getbasetemp() / "small_market")
    uri = f"sqlite:///{tmp_path_factory.mktemp('tracking')}/tracking.db"
    start_qlib(store, exp_manager=manager(uri))
    predictions = scores(store)
    with R.start(experiment_name="scored"):
        R.save_objects(**{"pred.pkl": predictions})                        # labels are not needed
        name = R.get_recorder().id
    return uri, store, risk, name


def manager(uri: str) -> dict:
    return {"class": "SqliteExpManager", "module_path": "qlib_ext.tracking", "kwargs": {"uri": uri, "default_exp_name": "Experiment"}}


def strategy(risk, **options) -> dict:
    kwargs = {"signal": "<PRED>", "index": "csi1000", "snapshots": str(risk), "optimizer": {"constraints": LIMITS}, **options}
    return {"class": "IndexEnhancementStrategy", "module_path": "qlib_ext.portfolio.strategy", "kwargs": kwargs}


def recorded(tracked, engine: str, name: str, config: dict | None = None):
    from qlib.workflow import R
    recorder = R.get_recorder(recorder_id=tracked[3], experiment_name="scored")
    config = config or backtest_config(strategy(tracked[2]), FIRST, LAST, "SH000852", {"start_time": "2016-04-25"}, 1e7)
    PortfolioRecord(recorder, config, engine=engine, name=name).generate()
    return recorder, lambda file: recorder.load_object(f"portfolio_analysis/{name}/{file}")


def test_both_engines_leave_the_same(tracked, capsys):
    recorder, slow = recorded(tracked, "qlib", "slow")
    _, fast = recorded(tracked, "fast", "fast")
    ours, theirs = fast("report_normal_1day.pkl"), slow("report_normal_1day.pkl")
    assert set(ours) == set(theirs)
    for column in ours:
        np.testing.assert_allclose(ours[column], theirs[column], rtol=1e-9, atol=1e-6, err_msg=column)
    pd.testing.assert_frame_equal(fast("port_analysis_1day.pkl"), slow("port_analysis_1day.pkl"), rtol=1e-6, atol=1e-9)
    day = ours.index[-1]
    mine, their = (load("positions_normal_1day.pkl")[day] for load in (fast, slow))
    assert mine.get_stock_amount_dict() == pytest.approx(their.get_stock_amount_dict(), rel=1e-9)
    assert mine.get_stock_weight_dict() == pytest.approx(their.get_stock_weight_dict(), rel=1e-9)
    kept = {file for file in recorder.list_artifacts("portfolio_analysis/fast")}
    assert {f"portfolio_analysis/fast/{name}.parquet" for name in ("certificates", "exposures", "decisions")} <= kept
    assert "total_return" in capsys.readouterr().out


def test_without_dates_all_days_scored_are_traded(tracked):
    reports = []
    for engine in ("qlib", "fast"):
        config = backtest_config(strategy(tracked[2]), None, None, "SH000852", {"start_time": None}, 1e7)
        _, load = recorded(tracked, engine, f"all {engine}", config)
        reports.append(load("report_normal_1day.pkl"))
    assert str(reports[0].index[0].date()) == "2016-04-25" and str(reports[0].index[-1].date()) == "2016-10-31"
    np.testing.assert_allclose(reports[0]["account"], reports[1]["account"], rtol=1e-9)


def test_figures_over_three_benchmarks(tracked):
    recorder, load = recorded(tracked, "fast", "figures")
    frame, table = load("benchmarks.pkl"), load("benchmark_analysis.pkl")
    assert list(table.index) == ["price_index", "total_return", "equal_weight"] and not frame.isna().any().any()
    for name in table.index:
        expected = excess_figures(frame["net"], frame[name])
        assert table.loc[name, list(expected)].to_dict() == pytest.approx(expected)
        wealth = ((1 + frame["net"]).prod() / (1 + frame[name]).prod()) ** (252 / len(frame)) - 1
        assert table.loc[name, "excess a year"] == pytest.approx(wealth)
    assert (table["excess a year before cost"] > table["excess a year"]).all()
    metrics = recorder.list_metrics()
    assert metrics["figures.total_return.excess_a_year"] == pytest.approx(table.loc["total_return", "excess a year"])
    assert not [name for name in metrics if name.startswith("1day.")], "each portfolio's metrics carry its name"
    analysis = load("port_analysis_1day.pkl").loc[("excess_return_with_cost", "annualized_return"), "risk"]
    assert metrics["figures.1day.excess_return_with_cost.annualized_return"] == pytest.approx(analysis)


def test_one_command_makes_several_portfolios(tracked, capsys):
    from qlib.workflow import R
    uri, store, risk, name = tracked
    assert main(["scored", "--index", "csi300", "csi1000", "--preset", "ai_wide", "--store", str(store), "--uri", uri, "--snapshots",
                 str(risk),
                 "--start", FIRST, "--end", "2016-06-30"]) == 0
    recorder = R.get_recorder(recorder_id=name, experiment_name="scored")
    for index in ("csi300", "csi1000"):
        report = recorder.load_object(f"portfolio_analysis/{index}/report_normal_1day.pkl")
        assert report["turnover"].sum() > 0.5 and str(report.index[-1].date()) == "2016-06-30"
    assert "csi300 over three benchmarks" in capsys.readouterr().out
    assert main(["scored", "--index", "csi500", "csi300", "--preset", "ai_strict", "--store", str(store), "--uri", uri, "--snapshots", str(risk),
                 "--start", FIRST, "--end", "2016-05-20", "--deal-price", "closed"]) == 1
    said = capsys.readouterr().err
    assert "csi500: DataError" in said and "csi300: DataError" in said, "one that fails does not stop the others"
    assert main(["scored", "--store", str(store), "--uri", uri, "--recorder", "0" * 32]) == 1
    assert "ConfigError: experiment 'scored' has no recorder" in capsys.readouterr().err


def test_qlibs_strategies_and_exchange_run_too(tracked):
    config = backtest_config({"class": "TopkDropoutStrategy", "module_path": "qlib.contrib.strategy",
                              "kwargs": {"signal": "<PRED>", "topk": 10, "n_drop": 2}}, FIRST, "2016-06-30", "SH000852")
    config["backtest"]["exchange_kwargs"] = {"deal_price": "close", "limit_threshold": 0.095, "open_cost": 0.0005, "close_cost": 0.0015,
                                             "min_cost": 5}
    _, load = recorded(tracked, "qlib", "topk", config)
    assert list(load("benchmark_analysis.pkl").index) == ["price_index"]
    with pytest.raises(ConfigError, match="engine: fast runs strategies"):
        recorded(tracked, "fast", "topk2", config)


def test_wrong_options_are_named(tracked):
    with pytest.raises(ConfigError, match="engine='quick'"):
        recorded(tracked, "quick", "x")
    plain = backtest_config(strategy(tracked[2]), FIRST, LAST, "SH000852")
    del plain["backtest"]["exchange_kwargs"]["exchange"]
    with pytest.raises(ConfigError, match="AShareExchange"):
        recorded(tracked, "fast", "x", plain)
    with pytest.raises(ConfigError, match="SH999999"):
        recorded(tracked, "fast", "x", backtest_config(strategy(tracked[2]), FIRST, LAST, "SH999999"))


def test_tables_are_kept_when_a_rebalance_fails(tracked):
    from qlib.workflow import R

    from qlib_ext.errors import InfeasibleError
    tight = strategy(tracked[2], optimizer={"constraints": {"cap": 0.3, "member_share": 1.0, "industry": 0.0, "tracking_error": 1e-6},
                                            "ladder": None},
                     blacklist=[f"SH60{n:04d}" for n in range(60)])
    with pytest.raises(InfeasibleError):
        recorded(tracked, "fast", "failed", backtest_config(tight, FIRST, LAST, "SH000852", {"start_time": "2016-04-25"}))
    recorder = R.get_recorder(recorder_id=tracked[3], experiment_name="scored")
    kept = pd.read_parquet(recorder.client.download_artifacts(recorder.id, "portfolio_analysis/failed/certificates.parquet"))
    assert kept["status"].iloc[-1] == "infeasible"
