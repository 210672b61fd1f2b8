"""Learning protocols side by side: the same panel, network and days, several seeds, paired tests.

    run="python scripts/incremental_evidence.py --store STORE --index csi300 --cache CACHE --out OUT"
    $run --model gru --choose --set doubleadapt.lr=0.01
    $run --model gru --seeds 0 1 2 --epochs 20
    $run --model lightgbm --protocols static rolling_retrain
    $run --report --baseline gru.static lightgbm.rolling_retrain --preset meta

A cell is one protocol with one seed: it is fitted on the shipped workflow's panel, scores the test segment, and leaves its scores
(Parquet) and a line of JSON in OUT; finished cells are skipped. With `--choose` cells are fitted on a panel from which the test years
are gone, and only validation figures are made. Whatever opens the test years is logged in OUT/test_openings.log.

A protocol is a rule of `qlib_ext.training.protocol` by name; settings come from a file (`{doubleadapt: {lr: 0.001}}`, JSON or YAML) and
`--set`. `--set fast.name=doubleadapt fast.lr=0.01` makes one with a name of its own, `model.` stands for the model of all
(`--set model.loss=mse`) or of one (`--set fast.model.trainer.lr=0.0001`).
LightGBM learns from the last day of each window of the same panel, whose features are scaled, clipped and filled.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Callable

import pandas as pd
from incremental_cells import ROLLING, STEP, blinded, digest, framed, keep_memory, learn_lightgbm, learn_torch, say, shipped_panel
from incremental_table import averaged, by_row, figures, heading, paired, read_cells, table, write_report

from qlib_ext.data.panel import Panel
from qlib_ext.errors import ConfigError, DataError, ExtError
from qlib_ext.report.metrics import REPORT_MIN_PAIRS
from qlib_ext.store.metadata import fingerprint

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
NAMES = {"master": "meta_master", "lightgbm": "gru"}
PROTOCOLS = ("static", "rolling_retrain", "incremental", "maml", "doubleadapt")
SHORT = {"epochs": "trainer.epochs", "patience": "trainer.patience", "days_per_epoch": "trainer.days_per_epoch", "lr": "trainer.lr",
         "hidden": "hidden_size", "layers": "num_layers", "d_model": "d_model", "dropout": "dropout"}


# ---- settings -----------------------------------------------------------------------------------------------------------------
def read_settings(file: str | None, changes: list[str]) -> dict[str, dict]:
    """Settings by protocol, those of a file with single ones changed (``a.b.c=value``, the value as YAML).

    Raises:
        ConfigError: no mapping, or a change without ``=``.
    """
    from ruamel.yaml import YAML
    yaml = YAML(typ="safe", pure=True)
    settings = yaml.load(Path(file).read_text(encoding="utf-8")) if file else {}
    if not isinstance(settings, dict) or not all(isinstance(one, dict) for one in settings.values()):
        raise ConfigError(f"settings {file}: give {{protocol: {{option: value}}}}")
    for change in changes:
        path, equals, value = change.partition("=")
        if not equals or "." not in path:
            raise ConfigError(f"--set {change!r}: write protocol.option=value, or model.option=value")
        put(settings, path, yaml.load(value))
    return settings


def put(settings: dict, path: str, value) -> None:
    """Set ``a.b.c`` inside nested dicts; a name that stands where options are to follow becomes ``{name: it}``."""
    *parts, last = path.split(".")
    for part in parts:
        if isinstance(settings.get(part), str):
            settings[part] = {"name": settings[part]}
        settings = settings.setdefault(part, {})
    settings[last] = value


def configured(section: dict, settings: dict, protocol: str, seed: int) -> dict:
    """The model section of a workflow with a protocol's rule and settings, and a seed.

    Args:
        section: class, module_path and kwargs. settings: see `read_settings`.
    """
    section, rule = copy.deepcopy(section), copy.deepcopy(settings.get(protocol, {}))
    for changes in (settings.get("model", {}), rule.pop("model", {})):
        for path, value in _leaves(changes):
            put(section["kwargs"], path, value)
    put(section["kwargs"], "trainer.seed", seed)
    section["kwargs"]["rule"] = {"name": protocol, **rule}
    return section


def _leaves(nested: dict, prefix: str = ""):
    for name, value in nested.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


# ---- cells --------------------------------------------------------------------------------------------------------------------
def run_cell(panel: Panel, learn, section: dict, out: Path, label: str, protocol: str, seed: int, choose: bool,
             min_pairs: int = REPORT_MIN_PAIRS) -> dict | None:
    """Makes a cell and writes it; None if it is there already.

    Raises:
        ConfigError: a finished cell of this name has another configuration.
    """
    config = {"label": label, "protocol": protocol, "model": section, "store": panel.meta.get("store"), "segments": {
        name: [str(panel.days[a]), str(panel.days[b - 1])] for name, (a, b) in panel.segments.items()}}
    key, own = f"{label}.{protocol}.s{seed}", digest(_what_decides(config))
    file = Path(out, "choose", f"{key}-{own}.json") if choose else Path(out, f"{key}.json")
    if file.is_file():
        if json.loads(file.read_text(encoding="utf-8"))["digest"] != own:
            raise ConfigError(f"{file} is of another configuration: give this one another --label, or another folder")
        say(f"{key}: there already")
        return None
    file.parent.mkdir(parents=True, exist_ok=True)
    if not choose:
        log_opening(out, key, config)
    started = time.perf_counter()
    facts, scored = learn(blinded(panel) if choose else panel, section, not choose)
    record = {"cell": key, "label": label, "protocol": protocol, "seed": seed, "digest": own, **facts,
              "seconds": time.perf_counter() - started}
    if not choose:
        frame = framed(panel, *scored)
        record["test"] = figures(frame, min_pairs)
        frame.to_parquet(file.with_suffix(".parquet"))
    record |= {"finished": now(), "configuration": config}
    aside = file.with_suffix(f".{os.getpid()}")
    aside.write_text(json.dumps(record, default=float) + "\n", encoding="utf-8")
    aside.replace(file)
    say(json.dumps({name: value for name, value in record.items() if name != "configuration"}, default=float))
    return record


def _what_decides(config: dict) -> dict:
    """The configuration without the seed, and without what results do not depend on."""
    config = copy.deepcopy(config)
    for name in ("seed", "threads", "progress", "device", "resume"):
        config["model"]["kwargs"]["trainer"].pop(name, None)
    return config


def log_opening(out: Path, what: str, config) -> None:
    """A line in the log of openings of the test years, and on the screen."""
    line = f"{now()}\ttest years opened: {what}\t{shlex.join(sys.argv)}\t{json.dumps(config, default=str)}\n"
    Path(out).mkdir(parents=True, exist_ok=True)
    with open(Path(out, "test_openings.log"), "a", encoding="utf-8") as file:
        file.write(line)
    say(line.strip())


def now() -> str:
    return datetime.now().isoformat(timespec="seconds")


def run(options) -> None:
    """Every protocol with every seed."""
    from qlib_ext.workflow import load_workflow
    name = options.workflow or f"{NAMES.get(options.model, options.model)}_{options.index}"
    panel = shipped_panel(WORKFLOWS / f"{name}.yaml", options.store, options.cache)
    if options.only_pack:
        return
    import torch
    torch.set_num_threads(options.threads)
    keep_memory()
    lightgbm = options.model == "lightgbm"
    section = load_workflow(WORKFLOWS / (f"baseline_lightgbm_{options.index}.yaml" if lightgbm else f"{name}.yaml"))["task"]["model"]
    short = {path: getattr(options, key) for key, path in SHORT.items() if getattr(options, key) is not None}
    if lightgbm and short:
        raise ConfigError(f"{sorted(short)} are no settings of LightGBM: use --set model.num_boost_round=.. and the like")
    section["kwargs"].setdefault("trainer", {}).update({"threads": options.threads, **({} if lightgbm else {"progress": False})})
    for path, value in short.items():
        put(section["kwargs"], path, value)
    settings = read_settings(options.settings, options.set)
    for protocol in options.protocols or ([*PROTOCOLS[:2]] if lightgbm else PROTOCOLS):
        if options.choose and settings.get(protocol, {}).get("name", protocol) == ROLLING:
            say(f"{protocol}: on the validation segment it is static, which is not fitted again")
            continue
        if settings.get(protocol, {}).get("name", protocol) == ROLLING and options.step:
            settings.setdefault(protocol, {}).setdefault("task_length", options.step)
        for seed in options.seeds:
            run_cell(panel, learn_lightgbm if lightgbm else learn_torch, configured(section, settings, protocol, seed), Path(options.out),
                     options.label or options.model, protocol, seed, options.choose)
    if options.choose:
        say(choices(options.out).to_string(float_format="{:.4f}".format))


def choices(out: str | Path) -> pd.DataFrame:
    """Validation figures of what `--choose` has fitted: mean over seeds for each configuration, best RankIC first."""
    records = [json.loads(file.read_text(encoding="utf-8")) for file in Path(out, "choose").glob("*.json")]
    frame = pd.DataFrame([{**record, "settings": json.dumps(_shown(record))} for record in records])
    columns = ["valid_rank_ic", "valid_ic", "valid_adaptation", "best_epoch", "seconds"]
    frame[columns] = frame.reindex(columns=columns).astype(float)
    groups = frame.groupby(["label", "protocol", "digest", "settings"])
    return groups[columns].mean().assign(spread=groups["valid_rank_ic"].std(), seeds=groups.size()).sort_values(
        "valid_rank_ic", ascending=False).reset_index()[["label", "protocol", "seeds", *columns, "spread", "settings"]]


def _shown(record: dict) -> dict:
    """What distinguishes configurations: the rule, the loss and the sizes of training."""
    options = _what_decides(record["configuration"])["model"]["kwargs"]
    return {**{name: value for name, value in options.items() if name != "trainer"}, **options["trainer"]}


# ---- report -------------------------------------------------------------------------------------------------------------------
def report(options) -> None:
    """Tables of a folder's cells, on the screen, as CSV and as text."""
    out = Path(options.out)
    rows = by_row(read_cells(out))
    log_opening(out, "report", {"rows": {name: [cells[0].record["digest"], len(cells)] for name, cells in rows.items()},
                                "preset": options.preset})
    baselines = options.baseline or [name for name in rows if name.endswith(".static")]
    main_table, tests = table(rows, options.min_pairs), paired(rows, baselines, options.min_pairs)
    notes = [heading(out, now(), main_table)]
    if options.store:
        notes += best_possible(options.store, rows, options.min_pairs)
        if options.preset:
            main_table = main_table.join(portfolios(rows, options))
    say(write_report(out, notes, main_table, tests))


def best_possible(store: str, rows: dict, min_pairs: int) -> list[str]:
    """What must be said of a generated market: the figures of its true expected labels on the pairs scored.

    Raises:
        DataError: the cells were made of another store.
    """
    from qlib_ext.demo.build import read_truth, truth_paths
    scores = next(iter(rows.values()))[0]
    if scores.record["configuration"]["store"] != fingerprint(store):
        raise DataError(f"{scores.record['cell']} was not made of {store} as it is now: name its store")
    truth = read_truth(store)
    if truth is None:
        return []
    if truth["switches"]["null"]:
        return [f"generated market without any signal: best possible IC 0. {truth['statement']}"]
    expected = pd.read_parquet(truth_paths(store)[1]).set_index(["date", "instrument"])["expected"]
    expected.index = expected.index.set_levels(expected.index.levels[1].astype(str), level=1)
    best = figures(scores.scores.assign(score=expected.reindex(scores.scores.index).to_numpy()), min_pairs)
    return [f"generated market, best possible: IC {best['IC']:.4f}, RankIC {best['RankIC']:.4f}. {truth['statement']}"]


def portfolios(rows: dict, options) -> pd.DataFrame:
    """What index enhancement makes of each row's averaged scores after cost, over the total-return index (`over price`: over the price
    index, which flatters; `not optimal`: rebalances relaxed or left out); with `--each-seed` mean and spread over seeds too."""
    import qlib
    qlib.init(provider_uri=options.store, region="cn", logging_level=logging.ERROR)
    from qlib_ext.portfolio.closes import Closes
    from qlib_ext.portfolio.exchange import AShareExchange
    from qlib_ext.portfolio.records import daily_returns, index_returns, over_benchmarks
    from qlib_ext.portfolio.strategy import IndexEnhancementStrategy
    from qlib_ext.store.schema import INDEX_CODES
    closes, exchange = Closes(options.index), AShareExchange(options.span[0], None)
    bench = index_returns(INDEX_CODES[options.index], *options.span)

    def held(scores: pd.DataFrame) -> dict:
        strategy = IndexEnhancementStrategy(signal=scores["score"], index=options.index, snapshots=options.snapshots, infeasible="hold",
                                            optimizer={"preset": options.preset, "missing_styles": options.missing_styles})
        traded = strategy.simulate(exchange, *options.span, 1e8, bench).report
        found = over_benchmarks(daily_returns(traded, closes))
        total = found.loc["total_return"]
        return {"excess": total["excess a year"], "IR": total["IR"], "drawdown": total["drawdown"], "TE": total["tracking error"],
                "over price": found.loc["price_index", "excess a year"], "turnover": traded["turnover"].sum() / 2 * 252 / len(traded),
                "not optimal": int((strategy.table("certificates")["status"] != "optimal").sum())}

    lines = {}
    for name, cells in rows.items():
        lines[name] = held(averaged([cell.scores for cell in cells]))
        if options.each_seed:
            own = pd.DataFrame([held(cell.scores) for cell in cells])
            lines[name] |= {f"{key} {what}": getattr(own[key], how)() for key in ("excess", "IR") for what, how in (("mean", "mean"), (
                "std", "std"))}
        say(f"{name}, preset {options.preset}: {json.dumps(lines[name])}")
    return pd.DataFrame.from_dict(lines, orient="index")


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the cells of one store and universe")
    parser.add_argument("--store", help="default QLIB_DATA")
    parser.add_argument("--index", default="csi300")
    parser.add_argument("--model", default="gru", help="gru, master, lightgbm, or the beginning of a workflow's name")
    parser.add_argument("--workflow",
                        help="workflow (without .yaml) whose panel is taken, and whose model but for LightGBM; default: by model and index")
    parser.add_argument("--label", help="name of the model in tables (default: --model)")
    parser.add_argument("--cache", help="folder of packed panels")
    parser.add_argument("--only-pack", action="store_true", help="make the panel and stop")
    parser.add_argument("--protocols", nargs="+", help=f"default {' '.join(PROTOCOLS)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--choose", action="store_true", help="validation figures only, with the test years gone")
    parser.add_argument("--settings", help="JSON or YAML file")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="PROTOCOL.OPTION=VALUE")
    parser.add_argument("--step", type=int, help=f"task_length of {ROLLING} (default {STEP})")
    parser.add_argument("--threads", type=int, default=1)
    for name, kind in {"epochs": int, "patience": int, "days_per_epoch": int, "lr": float, "hidden": int, "layers": int, "d_model": int,
                       "dropout": float}.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--report", action="store_true", help="tables of the cells in --out")
    parser.add_argument("--baseline", nargs="+", help="rows that all others are compared with (default: every static one)")
    parser.add_argument("--preset", help="hold portfolios by this preset of the optimiser (meta, dl_em); needs --store")
    parser.add_argument("--snapshots", help="folder of risk snapshots (default: the store's, made where days are missing)")
    parser.add_argument("--missing-styles", default="drop")
    parser.add_argument("--each-seed", action="store_true", help="portfolios of every seed's scores too")
    parser.add_argument("--span", nargs=2, default=["2023-01-01", "2024-12-27"], help="of the back-test")
    parser.add_argument("--min-pairs", type=int, default=REPORT_MIN_PAIRS)
    options = parser.parse_args(arguments)
    options.store = options.store or os.environ.get("QLIB_DATA")
    return carry_out(options, run, report)


def carry_out(options, run: Callable, report: Callable) -> int:
    """Cells, or with ``--report`` their tables; the exit status, an error's sentence on stderr."""
    try:
        if not options.report and not (options.store and options.cache):
            raise ConfigError("give --store and --cache")
        report(options) if options.report else run(options)
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
