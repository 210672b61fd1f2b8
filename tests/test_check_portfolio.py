"""`check` on portfolios: what would fail after training is said before it."""
import copy

import pytest
from small_market import build_store

from qlib_ext.check_data import StoreView
from qlib_ext.check_portfolio import check_portfolio

CONFIG = {
    "strategy": {"class": "IndexEnhancementStrategy", "module_path": "qlib_ext.portfolio.strategy",
                 "kwargs": {"signal": "<PRED>", "index": "csi1000", "optimizer": {"preset": "ai_strict"}}},
    "backtest": {"exchange_kwargs": {"exchange": {"class": "AShareExchange", "module_path": "qlib_ext.portfolio.exchange",
                                                  "kwargs": {"deal_price": "close", "costs": "dated"}}}}}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return StoreView(build_store(tmp_path_factory.getbasetemp() / "small_market"))


def said(store, strategy: dict | None = None, exchange: dict | None = None, drop: tuple = ()) -> tuple[list, list]:
    """Faults and warnings of the config with keywords replaced; `drop`: fields the store is said to lack."""
    config = copy.deepcopy(CONFIG)
    config["strategy"]["kwargs"].update(strategy or {})
    config["backtest"]["exchange_kwargs"]["exchange"]["kwargs"].update(exchange or {})
    faults, warnings = [], []
    real = store.missing_fields

    class Lacking:
        path, universes = store.path, store.universes

        @staticmethod
        def missing_fields(fields, codes):
            return sorted(set(real(fields, codes)) | set(fields) & set(drop))
    check_portfolio(lambda *one: faults.append(": ".join(one)), lambda *one: warnings.append(": ".join(one)), "record", config, Lacking,
                    list(store.spans("all")["code"]))
    return faults, warnings


def test_a_sound_portfolio_has_no_faults(store):
    assert said(store) == ([], [])


@pytest.mark.parametrize("strategy, exchange, words", [
    ({"rebalance": "weekly"}, {}, "rebalance"), ({"index": "csi9"}, {}, "csi9"), ({"optimizer": {"preset": "ai_strickt"}}, {}, "did you mean ai_strict"),
    ({"optimizer": {"constraints": {"capp": 0.1}}}, {}, "did you mean cap"), ({"optimizer": {"constraints": {"cap": -1}}}, {}, "cap"),
    ({"optimizer": {"ladder": [{"cap": 2}]}}, {}, "cannot be relaxed"), ({"optimizer": "meta"}, {}, "no mapping"), ({"optimizer": {"presett": 1}}, {}, "presett"),
    ({"optimizer": {"constraints": {"style": {"siez": 0.1}}}}, {}, "siez"), ({}, {"costs": "cheap"}, "cheap"), ({}, {"deal_price": "opem"}, "opem"),
    ({}, {"deal_price": ["open", "vwapp"]}, "vwapp")])
def test_each_fault_is_named(store, strategy, exchange, words):
    faults, _ = said(store, strategy, exchange)
    assert len(faults) == 1 and words in faults[0]


def test_styles_that_the_fields_do_not_allow(store):
    faults, _ = said(store, drop=("net_profit_ttm",))
    assert len(faults) == 1 and "bands on roe" in faults[0]
    assert said(store, {"optimizer": {"preset": "ai_strict", "missing_styles": "drop"}}, drop=("net_profit_ttm",)) == ([], [])
    folder = store.path.parent
    (folder / "2016-05.parquet").touch()
    assert said(store, {"snapshots": str(folder)}, drop=("net_profit_ttm",)) == ([], [])
    assert "holds no snapshots" in said(store, {"snapshots": "somewhere"})[0][0]
    assert "no field industry" in said(store, {"optimizer": {"preset": "meta"}}, drop=("industry",))[0][0]
    assert "csi1000_weight" in said(store, drop=("csi1000_weight",))[1][0]


def test_an_unknown_engine(store):
    faults = []
    check_portfolio(lambda *one: faults.append(": ".join(one)), print, "record.kwargs.config", CONFIG, store, list(store.spans("all")["code"]), "fats")
    assert faults == ["record.kwargs: engine 'fats' is unknown: choose one of ['qlib', 'fast']"]


def test_strategies_of_others_are_left_alone(store):
    faults = []
    check_portfolio(faults.append, faults.append, "record", {"strategy": {"class": "TopkDropoutStrategy", "module_path": "qlib.contrib.strategy",
                                                                         "kwargs": {"topk": 50}}, "backtest": {}}, store, [])
    assert not faults
