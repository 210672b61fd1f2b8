"""`python -m qlib_ext.store build-intraday STORE`: from intraday tables to daily fields of a store, and to the blocks of networks.

Two steps. First the values of each day of the intraday folder, where they lack (`qlib_ext.store.intraday_days`): in parallel, with
what is done kept if the run is stopped. Then all days together become fields of the store (`qlib_ext.store.intraday_panel`), all or
nothing: `$hf_<factor>_1d`, `$hf_<factor>`, `$hf_<factor>_orth`, `$hi_<feature>`. The value of a day uses that day and days before it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Mapping, Optional, Sequence, Union

import numpy as np
import polars as pl

from qlib_ext.errors import ConfigError, DataError
from qlib_ext.factors import intraday as formulas
from qlib_ext.factors.intraday_average import VALID_SHARE, days_mean
from qlib_ext.factors.intraday_features import BLOCK_FEATURES, DAY_FEATURES
from qlib_ext.signatures import did_you_mean
from qlib_ext.store.disk import real_path
from qlib_ext.store.intraday import SESSION, IntradayFolder, bar_minutes
from qlib_ext.store.intraday_days import DayPlan, DayWork, clear_stale, columns_of, write_text_aside
from qlib_ext.store.intraday_fields import IntradayWriter
from qlib_ext.store.intraday_panel import DayPanels, Market, read_limits, read_market, write_fields
from qlib_ext.store.intraday_pool import run_days
from qlib_ext.store.metadata import as_day, combine, is_intraday, read_metadata
from qlib_ext.store.reading import StoreFiles
from qlib_ext.store.writer import StoreLock

logger = logging.getLogger("qlib_ext.store")
ABOUT = "about.json"
_NEEDS = {**formulas.NEEDS, **formulas.PROXIES}
_BLOCK = 4096  # bytes a disk sets aside at a time
_SAMPLE = 16  # days whose trades are asked for numbers of orders


def build_intraday(
    store: Union[str, Path],
    folder: Union[str, Path, None] = None,
    first=None,
    last=None,
    factors: Optional[Sequence[str]] = None,
    options: Union[str, Path, Mapping, None] = None,
    mean: int = 5,
    workers: Optional[int] = 1,
    blocks: Sequence[Union[int, str]] = (),
    table: Optional[str] = None,
) -> Path:
    """Compute the intraday values of the days that lack them, write the fields into the store, and return its folder.

    Arguments
    ---------
    store : folder of a Qlib store that `ingest` made
    folder : of the intraday tables; default `<store>.intraday`
    first, last : days to compute, both included (YYYY-MM-DD text, date or time stamp); None = all. The fields hold all days that
        have ever been computed with these options; those whose tables were ingested again since are computed again.
    factors : of `qlib_ext.factors.intraday.FACTORS`; None = all that the tables allow, with a line on each of the others. Fields of
        other factors go.
    options : of the formulas (`IntradayOptions`), by name, or a YAML file of them
    mean : trading days over which `$hf_<factor>` is averaged
    workers : processes that compute days; 1 = this one, None = one for each 16 days, at most as many as processors
    blocks : minutes of the bars of blocks that are made for networks (240 or 'day', 60, 30 ...), beside those that the folder has
        with these options already
    table : of bars; default the one of the shortest bars

    Raises
    ------
    ConfigError
        An unknown factor or option, blocks that the bars do not divide, no trading day between `first` and `last`.
    DataError
        No store of this package, no intraday folder, nothing in common between the two; tables that a named factor needs lack; files
        of days that cannot be used (all are named, the other days are done); another writer at the store, or a store that was
        ingested again while days were computed.
    """
    started, out = time.time(), real_path(store)
    days_mean(np.empty((0, 0)), mean)  # says what is wrong with it
    if workers is not None and workers < 1:
        raise ConfigError(f"workers={workers}: give a number of processes, at least 1")
    span = _span(first, last)
    _check_store(out)
    _check_names(out)
    plan = plan_days(out, folder, factors, options, blocks, table)
    market = read_market(out, orthogonal=False)
    if plan.auction_inside:
        logger.warning("the bars of table %s hold the opening auction inside the first one: factors and features of bars contain it, those "
                       "of trades do not", plan.table)
    work = DayWork(plan, market.days, read_limits(out, market) if set(plan.names) & set(formulas.TRADE_FACTORS) else None)
    days = _common_days(work, market, *span)
    _check_stocks(work, market, days)
    table_days = work.days[plan.table]
    common = list(table_days[np.isin(table_days, market.days)])
    compute_days(work, days, workers, common)
    _warn_of_lacks(work, days)
    with StoreLock(out):
        _publish(out, work, market.days, common, mean)
    logger.info("store %s, %.1f seconds", out, time.time() - started)
    return out


def _publish(out: Path, work: DayWork, calendar: np.ndarray, days: Sequence[np.datetime64], mean: int) -> None:
    """Write the fields of those of the days that are made; `calendar` is the store's when they were computed."""
    market, plan = read_market(out), work.plan
    if not np.array_equal(market.days[:len(calendar)], calendar):
        raise DataError(f"store {out} was ingested again while days were computed, and has another calendar now; it is left as it is: "
                        "run build-intraday again (what is computed is kept)")
    made = work.made(days)
    stale = [day for day in days if day not in made and work.file("daily", day).is_file()]
    if stale:
        logger.warning("the tables of %d days, first %s, were ingested again while days were computed: they are unknown; run "
                       "build-intraday again", len(stale), stale[0])
    if not made:
        raise DataError(f"intraday folder {plan.folder} was changed while days were computed; store {out} is left as it is: run "
                        "build-intraday again")
    names, features = list(plan.names), [f"hi_{name}" for name in DAY_FEATURES]
    before = (read_metadata(out).get("intraday") or {}).get("fields", {})
    panels = DayPanels(work, market, list(made))
    needed = 4 * market.length.sum() * (3 * len(names) + len(features))
    with IntradayWriter(out, int(needed + len(market.codes) * (3 * len(names) + len(features)) * _BLOCK // 2)) as writer:
        about = write_fields(writer, panels, names, features, mean, VALID_SHARE)
        about["left_out"].update(plan.left_out)
        writer.publish_intraday({**about, **_about(work, made, mean)})
    _report(writer, about, list(made), [name for name in before if name not in about["fields"]])


def plan_days(store: Path, folder=None, factors=None, options=None, blocks=(), table=None) -> DayPlan:
    """What will be computed, checked against the tables of the intraday folder; arguments and errors as `build_intraday`."""
    place = Path(folder).expanduser().absolute() if folder is not None else store.with_name(store.name + ".intraday")
    source = IntradayFolder(place)
    table = _bars_table(source, table)
    options = read_options(options, bar_minutes(table))
    why = possible(source, table)
    names = _names(source, why, factors, options)
    plan = DayPlan(str(place), table, options, tuple(names), True, _blocks(blocks, bar_minutes(table)), trades="trades" in source.tables(),
                   orders="orders" in source.tables() and any("orders" in _NEEDS[name] for name in names),
                   auction_inside=source.settings(table).get("opening_auction") == "inside",
                   left_out=tuple((name, f"it needs {what}") for name, what in why.items() if what and name in formulas.FACTORS))
    return replace(plan, blocks=tuple(dict.fromkeys([*plan.blocks, *_blocks_there(place, plan.block_key)])))


def read_options(options: Union[str, Path, Mapping, None], minutes: int = 1) -> formulas.IntradayOptions:
    """Options of the formulas from a YAML file or a mapping, for bars of so many minutes.

    Raises
    ------
    ConfigError
        No such file, no mapping, an unknown option, a value that it cannot have, or other bars than there are.
    """
    if isinstance(options, (str, Path)):
        import yaml
        try:
            options = yaml.safe_load(Path(options).expanduser().read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"options file {options} cannot be read ({error}); give a YAML file of `name: value` lines") from error
    if not isinstance(options or {}, Mapping):
        raise ConfigError(f"options {options!r}: give `name: value` lines")
    known = [one.name for one in fields(formulas.IntradayOptions)]
    for name in options or {}:
        if name not in known:
            raise ConfigError(f"unknown option {name!r}{did_you_mean(str(name), known)}; options of the intraday formulas: {known}")
    if (options or {}).get("bar_minutes", minutes) != minutes:
        raise ConfigError(f"bar_minutes={options['bar_minutes']!r}, but the table has bars of {minutes} minutes: leave the line out, or "
                          "name another --table")
    return formulas.IntradayOptions(**{"bar_minutes": minutes, **(options or {})})


def possible(source: IntradayFolder, table: str) -> dict[str, str]:
    """Why each factor, or proxy of one, cannot be made of a folder's tables on any day, by name; "" for those that can.

    Numbers of orders are looked for on the first, the last and some other days.
    """
    have = {"bars", *set(source.tables()) & {"trades", "orders"}}
    if any("n_trades" in columns_of(source.path_of(table, day)) for day in source.days(table)[::-1]):
        have.add("n_trades")
    needs = dict(_NEEDS)
    if "trades" in have:
        days = source.days("trades")
        sample = days[np.unique(np.linspace(0, len(days) - 1, _SAMPLE).astype(int))]
        if any(_order_numbers(source.path_of("trades", day)) for day in sample[::-1]):
            have.add("order_numbers")
        needs.update({name: (*_NEEDS[name], "order_numbers") for name in formulas.LARGE_ORDER_FACTORS if name in formulas.FACTORS})
    words = {"n_trades": f"the number of trades of each bar (column n_trades of {table})", "trades": "table trades",
             "orders": "table orders", "order_numbers": "the numbers of the orders in table trades"}
    return {name: ", ".join(words.get(need, need) for need in parts if need not in have) for name, parts in needs.items()}


def _order_numbers(file: Path) -> bool:
    """Whether trades of a day have numbers of orders; not where the file cannot be read: it is named when its turn comes."""
    try:
        return bool(pl.scan_parquet(file).select(pl.col("buy_order").is_not_null().any()).collect().item())
    except (OSError, pl.exceptions.PolarsError):
        return False


# ---- checks before long work --------------------------------------------------------------------------------------------------
def _bars_table(source: IntradayFolder, table: Optional[str]) -> str:
    found = [name for name in source.tables() if name.startswith("bars_")]  # the shortest bars come first
    if not found:
        raise DataError(f"intraday folder {source.path} has no bars, it has {source.tables()}: ingest some with `python -m "
                        "qlib_ext.store ingest-intraday`")
    if table is not None and table not in found:
        raise DataError(f"intraday folder {source.path} has no table {table!r}, it has {found}")
    return table or found[0]


def _names(source: IntradayFolder, why: Mapping[str, str], factors: Optional[Sequence[str]],
           options: formulas.IntradayOptions) -> list[str]:
    """The factors to make: those that are asked for, or all that can be made, with proxies of the others where options allow them."""
    unknown = [name for name in factors or () if name not in _NEEDS]
    if unknown:
        raise ConfigError(f"unknown factor {unknown[0]!r}{did_you_mean(unknown[0], _NEEDS)}; factors: {list(_NEEDS)}")
    formulas.named(factors or [], tuple(_NEEDS), options)
    lacks = {name: why[name] for name in factors or formulas.FACTORS if why[name]}
    if factors and lacks:
        raise DataError(f"intraday folder {source.path} lacks what factors need: " + "; ".join(f"{name} needs {what}" for name, what in
                        lacks.items()) + ": ingest it, or leave these factors out")
    for name, what in lacks.items():
        logger.warning("factor %s is left out: it needs %s, which intraday folder %s lacks", name, what, source.path)
    wanted = factors or [name + ("_proxy" if why[name] and options.proxy else "") for name in formulas.FACTORS]
    return [name for name in _NEEDS if name in wanted and not why[name]]


def _blocks(blocks: Sequence[Union[int, str]], bar: int) -> tuple[int, ...]:
    """Minutes of blocks: whole bars, and a whole number of them a day."""
    found = []
    for block in blocks:
        minutes = SESSION if str(block) == "day" else int(block) if str(block).isdecimal() else 0
        if minutes < bar or minutes % bar or SESSION % minutes:
            raise ConfigError(f"blocks: {block!r} must be day, or minutes that divide the {SESSION} of a day and are a multiple of the "
                              f"bars' {bar}")
        found.append(minutes)
    return tuple(dict.fromkeys(found))


def _blocks_there(folder: Path, key: str) -> list[int]:
    """Minutes of the blocks that the folder has with a key: they are kept up to date too; a warning of those with other keys."""
    found = {path.name: path.name.partition("min-") for path in sorted((folder / "blocks").glob("*min-*")) if path.is_dir()}
    others = [name for name, (_, _, other) in found.items() if other != key]
    if others:
        logger.warning("the blocks %s of intraday folder %s were made with other options, tables or formulas and stay as they are",
                       ", ".join(others), folder)
    return sorted(int(minutes) for minutes, _, other in found.values() if other == key and minutes.isdecimal())


def _check_store(store: Path) -> None:
    metadata = read_metadata(store)
    if metadata is None or metadata["format"] < 2:
        raise DataError(f"store {store} was not made by this version of qlib_ext, which records what its files hold; ingest its tables "
                        "with `python -m qlib_ext.store ingest` first")


def _check_names(store: Path) -> None:
    """Names of fields that are kept for this command are those that it made."""
    made = (read_metadata(store).get("intraday") or {}).get("fields", {})
    foreign = [name for name in StoreFiles(store).fields if is_intraday(name) and name not in made]
    if foreign:
        raise DataError(f"store {store} has the fields {foreign[:5]}, which build-intraday did not make: names that begin with hf_ or hi_ "
                        "are kept for it, and it would remove them; give them other names")


def _span(first, last) -> list[Optional[np.datetime64]]:
    """The days --from and --to, None where they are not given."""
    found = [None if day is None else np.datetime64(as_day(day, flag)) for flag, day in (("--from", first), ("--to", last))]
    if None not in found and found[0] > found[1]:
        raise ConfigError(f"no day from {found[0]} to {found[1]}: swap --from and --to")
    return found


def _common_days(work: DayWork, market: Market, first: Optional[np.datetime64], last: Optional[np.datetime64]) -> list[np.datetime64]:
    """Days of the folder's bars on the store's calendar between the two days that are asked for."""
    days, table = work.days[work.plan.table], work.plan.table
    if not len(days):
        raise DataError(f"table {table} of intraday folder {work.plan.folder} has no day")
    low, high = days[0] if first is None else first, days[-1] if last is None else last
    if low > high:
        where = f"ends on {days[-1]}, before --from {low}" if last is None else f"begins on {days[0]}, after --to {high}"
        raise ConfigError(f"no day to compute: table {table} of intraday folder {work.plan.folder} {where}")
    inside = days[(days >= low) & (days <= high)]
    common = inside[np.isin(inside, market.days)]
    if not len(common):
        raise DataError(f"no day in common: table {table} of {work.plan.folder} runs from {days[0]} to {days[-1]} ({len(inside)} days from "
                        f"{low} to {high}), the store's calendar from {market.days[0]} to {market.days[-1]}")
    if len(common) < len(inside):
        logger.warning("%d days of table %s are not on the store's calendar and are left out, first %s", len(inside) - len(common), table,
                       np.setdiff1d(inside, common)[0])
    return list(common)


def _check_stocks(work: DayWork, market: Market, days: list[np.datetime64]) -> None:
    """Some stock of the store is in the folder, on the first, the middle or the last day."""
    sample = dict.fromkeys((days[0], days[len(days) // 2], days[-1]))
    found: set[str] = set()
    for day in sample:
        try:
            codes = work.folder.scan(work.plan.table, day, day).select(pl.col("instrument").cast(pl.String).unique()).collect()
        except (DataError, pl.exceptions.PolarsError):
            continue                                        # a damaged file is named when its turn comes
        found |= set(codes["instrument"].to_list())
    if found and not found & set(market.codes.tolist()):
        raise DataError(f"no stock in common: the intraday folder has {sorted(found)[:3]} ..., the store {market.codes[:3].tolist()} ...: "
                        "both must spell codes like SH600000")


# ---- the days -----------------------------------------------------------------------------------------------------------------
def compute_days(work: DayWork, days: Sequence[np.datetime64], workers: Optional[int] = 1,
                 others: Sequence[np.datetime64] = ()) -> None:
    """Compute what the days lack, and again what the `others` have of tables that were ingested again since.

    Raises
    ------
    DataError
        Files of some days cannot be used.
    """
    plan, faults = work.plan, []
    for kind, place in work.places.items():
        clear_stale(place)
        _write_about(work, kind, place)
    tasks = work.tasks([kind for kind in work.places if kind != "sizes"], days, others)
    again = sorted({task.day for task in tasks} - set(days))
    if plan.needs_thresholds:
        wanted = sorted({past for day in (*days, *again) for past in [*work.past(day), day] if past in work.days["trades"]})
        faults += run_days(plan, work.tasks(["sizes"], wanted), workers, "order sizes")
    logger.info("%d days, %s..%s, %d of them to be computed", len(days), days[0], days[-1], len(tasks) - len(again))
    if again:
        logger.warning("%d other days, first %s, are computed again too: their tables were ingested again since", len(again), again[0])
    if not faults:
        faults = run_days(plan, tasks, workers, "intraday days")
    if faults:
        raise DataError(f"{len(faults)} days cannot be computed; the others are done:\n  " + "\n  ".join(faults[:10]))


def _write_about(work: DayWork, kind: str, place: Path) -> None:
    """Say beside the results what they are."""
    plan = work.plan
    about = {"format": 1, "kind": kind, "version": formulas.VERSION, "table": plan.table, "options": asdict(plan.options),
             "trades": plan.trades, "orders": plan.orders}
    if kind == "daily":
        about["factors"] = list(plan.names)
    elif kind != "sizes":
        about.update(minutes=int(kind), bars=SESSION // int(kind), features=list(BLOCK_FEATURES))
    write_text_aside(place / ABOUT, json.dumps(about, indent=1, default=str))


def _warn_of_lacks(work: DayWork, days: Sequence[np.datetime64]) -> None:
    """Say on how many days factors stay unknown, since a table or column that they need lacks."""
    for need in ("trades", "orders", "n_trades"):
        names = [name for name in work.plan.names if need in _NEEDS[name]]
        dark = [day for day in days if not work.has(need, day)] if names else []
        if dark:
            logger.warning("%d of %d days have no %s, first %s: unknown on them are %s", len(dark), len(days), need, dark[0],
                           ", ".join(names))


def _about(work: DayWork, made: Mapping[np.datetime64, str], mean: int) -> dict:
    """What the store's metadata say of the fields, beside their names and regressors; `made`: days, and what they were made of."""
    plan, days = work.plan, [str(day) for day in made]
    sources = dict(zip(days, made.values()))
    return {"format": 1, "version": formulas.VERSION, "days": [days[0], days[-1], len(days)], "table": plan.table,
            "factors": list(plan.names), "auction_inside": plan.auction_inside, "limits": work.limits is not None,
            "options": asdict(plan.options), "days_mean": mean, "valid_share": VALID_SHARE, "key": plan.key,
            "folder": os.path.basename(plan.folder), "folder_digest": combine(sources, {})}


def _report(writer: IntradayWriter, about: dict, made: list, gone: list[str]) -> None:
    logger.info("%d intraday fields of %d days, %s..%s; orthogonalised on %s", len(about["fields"]), len(made), made[0], made[-1],
                ", ".join(f"{name} ({days} days)" for name, days in about["regressors"].items()) or "a constant")  # fmt: skip
    if writer.changed:
        logger.warning("%d values that the store had of earlier days are different now, first %s: the options, the formulas, the days "
                       "computed or the source files changed; what was computed from them is out of date", writer.changed,
                       writer.first_changed)
    if gone:
        logger.warning("%d fields that the store had are gone, since this run did not make them: %s", len(gone), ", ".join(gone))
