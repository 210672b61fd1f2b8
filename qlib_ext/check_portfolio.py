"""What `check` says of our strategies and exchange: constraints, schedules, costs and prices, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

from qlib_ext.errors import ConfigError

STRATEGIES = ("IndexEnhancementStrategy", "TopKStrategy")


def check_portfolio(add: Callable, warn: Callable, where: str, config: dict, store, codes: list[str], engine: str = "qlib") -> None:
    """Faults of the `strategy` and the exchange of a back-test's config; others than ours are left alone.

    Args:
        add, warn: take (place, what, advice). store: a `StoreView`. codes: instruments to look for fields in. engine: the record's.
    """
    from qlib_ext.portfolio.records import ENGINES
    from qlib_ext.portfolio.strategy import Schedule
    if engine not in ENGINES:
        add(where.removesuffix(".config"), f"engine {engine!r} is unknown", f"choose one of {list(ENGINES)}")
    strategy = config.get("strategy") or {}
    kwargs = strategy.get("kwargs") or {}
    if strategy.get("module_path") == "qlib_ext.portfolio.strategy" and strategy.get("class") in STRATEGIES:
        place = f"{where}.strategy.kwargs"
        _tried(add, f"{place}.rebalance", lambda: Schedule(kwargs.get("rebalance", "week")))
        for key in ("index", "universe"):
            name = kwargs.get(key)
            if name is not None and (not isinstance(name, str) or name.lower() not in store.universes):
                add(f"{place}.{key}", f"universe {name!r} is not in the store", f"choose one of {store.universes}")
        if strategy["class"] == "IndexEnhancementStrategy":
            _check_optimizer(add, warn, place, kwargs, store, codes)
    exchange = ((config.get("backtest") or {}).get("exchange_kwargs") or {}).get("exchange")
    if strategy.get("module_path") == "qlib_ext.portfolio.rotation":
        _check_rotation(add, where, kwargs, exchange, store)
    if isinstance(exchange, dict) and exchange.get("module_path") == "qlib_ext.portfolio.exchange":
        _check_exchange(add, f"{where}.backtest.exchange_kwargs.exchange.kwargs", exchange.get("kwargs") or {}, store, codes)


def _check_optimizer(add: Callable, warn: Callable, place: str, kwargs: dict, store, codes: list[str]) -> None:
    from qlib_ext.portfolio.optimizer import IndexEnhancer
    options = kwargs.get("optimizer")
    if not isinstance(options, dict):
        add(f"{place}.optimizer", f"{options!r} is no mapping", "write optimizer: {preset: meta}")
        return
    enhancer = _tried(add, f"{place}.optimizer", lambda: IndexEnhancer(**options))
    index, snapshots = kwargs.get("index"), kwargs.get("snapshots")
    if snapshots is not None and not any(Path(str(snapshots)).expanduser().glob("*.parquet")):
        add(f"{place}.snapshots", f"folder {snapshots} holds no snapshots", "make them with `python -m qlib_ext.risk build`, or leave "
                                                                            "the line out")
    if isinstance(index, str) and store.missing_fields({f"{index.lower()}_weight"}, codes):
        warn(place, f"the store has no field {index}_weight: members weigh alike in the benchmark", "ingest index weights or float caps")
    if enhancer is not None and enhancer.missing_styles == "error" and kwargs.get("snapshots") is None:
        _check_styles(add, f"{place}.optimizer", enhancer.style_names(), store, codes)
        if any(one.name == "industry" for one in enhancer.constraints) and store.missing_fields({"industry"}, codes):
            add(f"{place}.optimizer", "bands on industries, and the store has no field industry",
                "ingest table industry, or set missing_styles: drop")


def _check_styles(add: Callable, place: str, names: list[str], store, codes: list[str]) -> None:
    """Bands need styles that the store's fields allow."""
    from qlib_ext.risk.market import FIELDS, at_hand
    from qlib_ext.risk.style import possible
    fields = sorted(set(FIELDS) - set(store.missing_fields(set(FIELDS), codes)))
    inputs = at_hand(fields, "auto" if {"total_cap", "float_cap"} & set(fields) else "equal")
    if (store.path / "tables" / "fundamentals.parquet").is_file():
        inputs.append("earnings_surprise")
    found = _tried(add, place, lambda: possible(inputs, names))
    if found is not None and found[1]:
        add(place, f"bands on {', '.join(sorted(found[1]))}, which the store's fields do not allow",
            "ingest what they need (`python -m qlib_ext.risk coverage` says it), or set missing_styles: drop")


def _check_rotation(add: Callable, where: str, kwargs: dict, exchange, store) -> None:
    """A store with ETFs, their baskets and indices, and an exchange that trades them."""
    from qlib_ext.portfolio.rotation import CLASSES, check_options, lacking
    from qlib_ext.portfolio.strategy import Schedule
    place = f"{where}.strategy.kwargs"
    _tried(add, f"{place}.rebalance", lambda: Schedule(kwargs.get("rebalance", "week")))
    _tried(add, place, lambda: check_options(**kwargs))
    for fault in lacking(store.path, kwargs.get("classes", CLASSES)):
        add(place, *fault.split(": ", 1))
    codes = (exchange.get("kwargs") or {}).get("codes", "all") if isinstance(exchange, dict) else "all"
    if codes == "all":
        add(f"{where}.backtest.exchange_kwargs", "the exchange trades stocks only, the rotation ETFs", "set codes: etf")


def _check_exchange(add: Callable, place: str, kwargs: dict, store, codes: list[str]) -> None:
    from qlib_ext.portfolio.exchange import read_costs
    _tried(add, f"{place}.costs", lambda: read_costs(kwargs.get("costs", "broker")))
    prices = kwargs.get("deal_price", "close")
    prices = {str(one).removeprefix("$") for one in (prices if isinstance(prices, (list, tuple)) else [prices])}
    for name in store.missing_fields(prices | {"close"}, codes):
        add(f"{place}.deal_price", f"the back-test needs field {name!r}, the store has none", "ingest the store with it")


def _tried(add: Callable, place: str, make: Callable):
    """What `make` gives; its error is a fault, and then None."""
    try:
        return make()
    except (ConfigError, TypeError) as error:
        text, _, advice = str(error).partition(": choose")
        add(place, text, f"choose{advice}" if advice else "correct it")
        return None
