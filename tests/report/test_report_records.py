"""The records in a recorder: beside Qlib's own, by hand and as `qrun` calls them, with what is missing named."""
import json

import numpy as np
import pandas as pd
import pytest
from report_market import FIRST, LAST, manager, signal
from small_market import prepared, LABEL, start_qlib

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.report.records import FactorReportRecord, PortfolioReportRecord, _horizon
from qlib_ext.report.saved import Artefacts, load

TASK = {"model": {"class": "LGBModel", "module_path": "qlib.contrib.model.gbdt"},
        "dataset": {"class": "DatasetH", "kwargs": {
            "handler": {"class": "Alpha158", "kwargs": {"instruments": "csi1000", "label": [[LABEL], ["LABEL0"]]}},
            "segments": {"test": ("2016-07-20", LAST)}}},
        "record": [{"class": "PortfolioRecord", "kwargs": {"config": {"backtest": {"benchmark": "SH000852"}}}}]}


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    """(snapshots, predictions, labels); Qlib runs on the store and tracks runs."""
    store, risk = prepared(tmp_path_factory.getbasetemp() / "small_market")
    start_qlib(store, exp_manager=manager(f"sqlite:///{tmp_path_factory.mktemp('tracking')}/tracking.db"))
    return (risk, *signal(store))


@pytest.fixture(scope="module")
def recorder(market):
    """A run with predictions, raw labels, Qlib's own signal analysis and a back-test."""
    from qlib.workflow import R
    from qlib.workflow.record_temp import SigAnaRecord

    from qlib_ext.portfolio.records import PortfolioRecord
    risk, predictions, labels = market
    with R.start(experiment_name="reported"):
        R.save_objects(task=TASK, **{"pred.pkl": predictions, "label.pkl": labels})
        found = R.get_recorder()
        SigAnaRecord(found).generate()
        PortfolioRecord(found, backtest("TopKStrategy", universe="csi1000", topk=10), engine="fast").generate()
    return R.get_recorder(recorder_id=found.id, experiment_name="reported")


def backtest(strategy: str, **kwargs) -> dict:
    from qlib_ext.portfolio.records import backtest_config
    config = {"class": strategy, "module_path": "qlib_ext.portfolio.strategy", "kwargs": {"signal": "<PRED>", **kwargs}}
    return backtest_config(config, FIRST, LAST, "SH000852", {"start_time": "2016-07-20"}, 1e7)


def test_factor_report_beside_qlibs_own_analysis(market, recorder, capsys):
    before = recorder.list_metrics()
    FactorReportRecord(recorder, snapshots=str(market[0]), horizons=[1, 5], quantiles=5).generate()
    saved, printed = load(Artefacts(recorder), "factor_report"), capsys.readouterr().out
    value = saved.tables["summary"].frame["value"]
    ic, rank = (recorder.load_object(f"sig_analysis/{name}.pkl") for name in ("ic", "ric"))
    assert value["IC"] == pytest.approx(ic.mean(), abs=1e-7) and value["RankIC"] == pytest.approx(rank.mean(), abs=1e-7)
    assert value["ICIR"] == pytest.approx(ic.mean() / ic.std(), abs=1e-5)
    after = recorder.list_metrics()
    assert {name: after[name] for name in before} == before, "Qlib's own metrics stay"
    assert after["factor_report.Rank IC"] == value["RankIC"] and after["factor_report.exp-RankMAE"] == value["exp(-RankMAE)"]
    assert all(name.startswith("factor_report.") for name in set(after) - set(before))
    assert list(saved.tables["decay"].frame.index) == [1, 5] and "Q5" in saved.tables["quantiles"].frame.index
    assert "style_exposure" in saved.tables and "neutral" in saved.tables
    assert "since inception" in printed.lower() and saved.tables["summary"].convention in printed


def test_facts_say_what_the_run_is(market, recorder):
    FactorReportRecord(recorder, styles=False, entry="open").generate()
    facts = load(Artefacts(recorder), "factor_report").facts
    assert (facts["experiment"], facts["recorder"], facts["model"]) == ("reported", recorder.id, "LGBModel")
    assert (facts["universe"], facts["index"], facts["label"], facts["entry"]) == ("csi1000", "SH000852", LABEL, "open")
    assert facts["segments"] == {"test": ["2016-07-20", LAST]} and facts["scored"] == ["2016-07-20", LAST]
    assert facts["generated"] is True and facts["versions"]["pandas"] == pd.__version__ and facts["notes"] == []
    assert facts["industry_names"] and json.dumps(facts)
    assert facts["statement"].startswith("Generated market") and "nothing on what anybody would earn" in facts["statement"]


def test_portfolio_report_of_our_back_test(market, recorder, capsys):
    PortfolioReportRecord(recorder, snapshots=str(market[0])).generate()
    saved, printed = load(Artefacts(recorder), "portfolio_report"), capsys.readouterr().out
    benchmarks = recorder.load_object("portfolio_analysis/benchmarks.pkl")
    analysis = recorder.load_object("portfolio_analysis/benchmark_analysis.pkl")
    summary = saved.tables["summary"].frame
    for ours, theirs in (("excess a year (geometric)", "excess a year"), ("tracking error", "tracking error"),
                         ("IR of daily differences", "IR"), ("excess max drawdown", "drawdown"),
                         ("excess a year before cost", "excess a year before cost")):
        figures = summary.loc[ours, analysis.index].astype(float), analysis[theirs].astype(float)
        np.testing.assert_allclose(*figures, rtol=1e-9, err_msg=ours)
    daily = saved.tables["daily"].frame
    np.testing.assert_allclose(daily[benchmarks.columns], benchmarks)
    parts = saved.tables["attribution_daily"].frame
    np.testing.assert_allclose(parts.drop(columns="total").sum(axis=1), benchmarks["net"] - benchmarks["total_return"], atol=1e-15)
    assert saved.facts["index"] == "csi1000" and saved.facts["span"] == [FIRST, LAST]
    logged = recorder.list_metrics()["portfolio_report.total_return.tracking_error"]
    assert logged == pytest.approx(summary.loc["tracking error", "total_return"])
    assert "attribution" in saved.tables and "Carino" in printed
    exposure = saved.tables["exposure"].frame
    position = recorder.load_object("portfolio_analysis/positions_normal_1day.pkl")[exposure.index[-1]]
    assert exposure["names"].iloc[-1] == len(position.get_stock_list())
    assert exposure["invested"].iloc[-1] == pytest.approx(sum(position.get_stock_weight_dict().values()))


def test_what_is_held_explains_what_was_earned(market, recorder):
    """On days without trades, active weights times returns is the active return: other is what the risk model does not know."""
    from qlib_ext.report.portfolio import active_parts
    from qlib_ext.report.view import portfolio_view
    report, positions, benchmarks = (recorder.load_object(f"portfolio_analysis/{name}.pkl")
                                     for name in ("report_normal_1day", "positions_normal_1day", "benchmarks"))
    view, _ = portfolio_view(report, positions, benchmarks, None, "csi1000", True, str(market[0]))
    from qlib.data import D
    close = D.features(list(view.instruments), ["$close"], start_time=view.closes[0], end_time=view.closes[-1])["$close"]
    close = close.unstack(level="instrument").reindex(columns=view.instruments).ffill().to_numpy(dtype=float)
    returns, parts = np.nan_to_num(close[1:] / close[:-1] - 1), active_parts(view)
    known = np.isfinite(view.residual) & np.isfinite(view.style[:-1]).all(axis=2)
    outside = np.where(known, 0.0, (view.held - view.bench)[:-1] * returns).sum(axis=1)
    quiet = (report["turnover"] == 0).to_numpy()
    assert quiet.sum() > 20
    np.testing.assert_allclose(parts["other"].to_numpy()[quiet], outside[quiet], atol=1e-6)


def test_qlibs_own_back_test_has_one_benchmark(market, recorder):
    from qlib.workflow import R
    from qlib.workflow.record_temp import PortAnaRecord
    config = backtest("x")
    config["strategy"] = {"class": "TopkDropoutStrategy", "module_path": "qlib.contrib.strategy",
                          "kwargs": {"signal": "<PRED>", "topk": 8, "n_drop": 2}}
    config["backtest"] |= {"exchange_kwargs": {"deal_price": "close", "limit_threshold": 0.095}, "end_time": "2016-08-12"}
    with R.start(experiment_name="plain"):
        R.save_objects(**{"pred.pkl": market[1], "label.pkl": market[2]})
        found = R.get_recorder()
        PortAnaRecord(found, config).generate()
        PortfolioReportRecord(found, styles=False).generate()
    saved = load(Artefacts(found), "portfolio_report")
    assert list(saved.tables["summary"].frame) == ["price_index"] and "attribution" not in saved.tables
    unknown, alone = saved.facts["notes"]
    assert "index of the strategy is not known" in unknown and "only the back-test's own benchmark" in alone
    assert saved.facts["model"] is None and saved.facts["universe"] is None
    PortfolioReportRecord(found, index="csi1000", snapshots=str(market[0])).generate()
    assert "over price_index" in load(Artefacts(found), "portfolio_report").tables["attribution"].convention


# ---- as qrun calls them, and what is wrong --------------------------------------------------------------------------------------
def test_qlibs_trainer_makes_them(recorder):
    from qlib.utils import init_instance_by_config
    for name, kwargs in (("FactorReportRecord", {"quantiles": 5}), ("PortfolioReportRecord", {"drawdown_rows": 3})):
        config = {"class": name, "module_path": "qlib_ext.report.records", "kwargs": kwargs}
        made = init_instance_by_config(config, recorder=recorder, try_kwargs={"model": 1, "dataset": 2})
        made.check(include_self=True)
        config["kwargs"] = {"quantile": 5}
        with pytest.raises(ConfigError, match=rf"{name} does not take \['quantile'\]; valid keywords: .*styles"):
            init_instance_by_config(config, recorder=recorder, try_kwargs={"model": 1, "dataset": 2})


def test_the_check_of_workflows_knows_their_keywords():
    from qlib_ext.signatures import keywords
    for record in (FactorReportRecord, PortfolioReportRecord):
        assert keywords(record).unknown(["model", "dataset", "recorder", "styles", "style"]) == ["style"]


def test_wrong_options_are_named_at_once(recorder):
    for kwargs, words in (({"entry": "twap"}, "entry='twap'"), ({"styles": "yes"}, "styles='yes'"), ({"universe": "csi9"}, "csi9"),
                          ({"quantiles": 1}, "quantiles"), ({"horizon": 0}, "horizon=0"), ({"rebalance": "month"}, "rebalance")):
        with pytest.raises(ConfigError, match=words):
            FactorReportRecord(recorder, **kwargs)
    with pytest.raises(ConfigError, match="csi9"):
        PortfolioReportRecord(recorder, index="csi9")
    with pytest.raises(ConfigError, match="'SH000016' has no bars"):
        FactorReportRecord(recorder, index="SH000016", styles=False).generate()


def test_what_a_recorder_lacks_is_named(market, recorder):
    from qlib.workflow import R

    from qlib_ext.portfolio.records import PortfolioRecord
    with R.start(experiment_name="empty"):
        empty = R.get_recorder()
        with pytest.raises(DataError, match="has no pred.pkl: put SignalRecord before FactorReportRecord"):
            FactorReportRecord(empty).generate()
        with pytest.raises(DataError, match="no daily back-test in portfolio_analysis: put PortfolioRecord"):
            PortfolioReportRecord(empty).generate()
        R.save_objects(**{"pred.pkl": market[1].groupby(level=0).head(1)})
        with pytest.raises(DataError, match="at most 1 stocks"):
            FactorReportRecord(empty).generate()
        R.save_objects(**{"pred.pkl": market[1], "label.pkl": market[2] * np.nan})
        FactorReportRecord(empty, styles=False).generate()
        notes = load(Artefacts(empty), "factor_report").facts["notes"]
        assert [word for note in notes for word in ("no index", "no raw labels", "label of the run is not known") if word in note]
        assert len(notes) == 3
    PortfolioRecord(recorder, backtest("TopKStrategy", universe="csi1000", topk=5), engine="fast", name="five").generate()
    with pytest.raises(DataError, match=r"portfolio_analysis/six \(named ones: \['portfolio_analysis/five'\]\)"):
        PortfolioReportRecord(recorder, name="six").generate()
    PortfolioReportRecord(recorder, name="five", styles=False).generate()
    assert "portfolio_report/five" in Artefacts(recorder).reports()
    assert any(name.startswith("portfolio_report.five.total_return.") for name in recorder.list_metrics())
    Artefacts(recorder).path("portfolio_analysis/five/report_normal_1day.pkl").write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be read"):
        PortfolioReportRecord(recorder, name="five").generate()


@pytest.mark.parametrize("label, days", [("Ref($close, -6) / Ref($close, -1) - 1", 5), ("Ref($close,-5)/$close-1", 5),
                                         ("Ref($close,-20)/$close-1", 20), ("Ref($close,-6)/Ref($close,-3)-1", 3)])
def test_days_of_a_label(market, label, days):
    assert _horizon(label) == (days, [])
