"""The intraday models against their own ablations: same panel, several seeds, paired tests.

    run="python scripts/intraday_evidence.py --system multi_granularity --store STORE --cache CACHE --out OUT"
    $run --seeds 0 1 2 --epochs 10 --days-per-epoch 120                      # every variant of the system
    $run --task-length 40 --bare                          # walk forward, on a store of `intraday_market.py`
    $run --report

STORE has its intraday folder beside it, and `build-intraday --blocks 60 30` has been run; the dates are those of the workflow and its
variables (QLIB_EXT_TRAIN and others). `--bare` is for a store that knows nothing but bars: inputs are not neutralised, and labels that
reach across a jump which no price limit allows are left out. A cell is one variant with one seed, fitted
on the panel of the system's workflow; it scores the test segment and leaves its scores (Parquet) and a line of JSON in OUT. Finished
cells are skipped. With `--task-length` a network is trained anew every so many days of the test segment. `--report` makes tables (text,
CSV, figures.json); for multi_granularity with `members`, the mean of the z-scores of the single granularities of a seed.

    gru_nn             gru_nn (two layers, NN(10)), one_layer, gru (no NN(10))
    res_attn_lstm      full, features (attention over features), no_attention, no_residual
    multi_granularity  day, 60, 30 (one granularity each), joint, and of one granularity (--ablate): one_direction, no_attention
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from incremental_cells import keep_memory, learn_torch, say, shipped_panel
from incremental_evidence import WORKFLOWS, carry_out, log_opening, now, run_cell
from incremental_table import Cell, averaged, by_row, heading, paired, read_cells, table, write_report
from intraday_market import jumps

from qlib_ext.data.panel import Panel
from qlib_ext.errors import ConfigError
from qlib_ext.report.metrics import REPORT_MIN_PAIRS

GRU_NN, LSTM, AGRU = (("GRUNN", "gru_nn"), ("ResAttnLSTM", "res_attn_lstm"), ("AGRU", "agru"))
MEMBERS = ("day", "60", "30")
SYSTEMS = {
    "gru_nn": {"gru_nn": (GRU_NN, {}), "one_layer": (GRU_NN, {"num_layers": 1}),
               "gru": (("GRU", "gru"), {"hidden_size": 50, "num_layers": 2, "dropout": 0.1})},
    "res_attn_lstm": {"full": (LSTM, {}), "features": (LSTM, {"attention": "features"}), "no_attention": (LSTM, {"attention": "none"}),
                      "no_residual": (LSTM, {"residual": False})},
    "multi_granularity": {**{name: (AGRU, {"block": name}) for name in MEMBERS},
                          "joint": (("MultiGranularity", "agru"), {"block": list(MEMBERS)})},
}
ABLATIONS = {"one_direction": {"bidirectional": False}, "no_attention": {"attention": False}}
TRAINER = ("epochs", "patience", "days_per_epoch", "lr")


def variants(system: str, ablate: str = "60") -> dict[str, tuple[tuple[str, str], dict]]:
    """Class and module, and options, of every variant of a system; its ablations are those of one granularity."""
    found = dict(SYSTEMS[system])
    if system == "multi_granularity":
        found |= {f"{ablate}_{name}": (AGRU, {"block": ablate, **options}) for name, options in ABLATIONS.items()}
    return found


def section(system: str, variant: str, ablate: str, blocks: dict[str, str], trainer: dict, seed: int, rule) -> dict:
    """The model section of a variant; `blocks` gives the panel's names of the granularities.

    Raises:
        ConfigError: an unknown variant, or a granularity that the panel lacks.
    """
    known = variants(system, ablate)
    if variant not in known:
        raise ConfigError(f"variant {variant!r} is unknown; {system} has {list(known)}")
    (kind, module), options = known[variant]
    options = copy.deepcopy(options)
    if system == "multi_granularity":
        wanted = [options["block"]] if isinstance(options["block"], str) else options["block"]
        lacks = [name for name in wanted if name not in blocks]
        if lacks:
            raise ConfigError(f"{variant}: the panel has no granularity {lacks}, it has {blocks}: run build-intraday with these blocks")
        named = [blocks[name] for name in wanted]
        options["block"] = named[0] if isinstance(options["block"], str) else named
    return {"class": kind, "module_path": f"qlib_ext.models.{module}",
            "kwargs": {"loss": "ic", **options, "rule": rule, "trainer": {**trainer, "seed": seed, "progress": False}}}


def granularities(panel: Panel) -> dict[str, str]:
    """Names of the panel's blocks by their bars: day, 60, 30 ..."""
    return {"day" if block.bars == 1 else str(240 // block.bars): name for name, block in panel.blocks.items()}


def not_neutralised(dataset: dict) -> None:
    """Takes the processors that need industries and caps out of a dataset's configuration."""
    options = dataset["kwargs"]["handler"]["kwargs"]
    options["infer_processors"] = [one for one in options["infer_processors"] if one["class"] != "CSNeutralize"]


def without_jumps(panel: Panel, store: str) -> Panel:
    """The panel without labels that reach across a jump no price limit allows (`intraday_market.jumps`): they would be a price
    adjustment's, not a return."""
    import qlib
    from qlib.data import D
    qlib.init(provider_uri=str(store), region="cn", logging_level=40)
    frame = D.features([str(code) for code in panel.instruments], ["$close / $factor", "$open / $factor"], panel.days[0], panel.days[-1])
    wide = [frame[name].unstack("instrument").reindex(index=panel.days.astype("datetime64[ns]"), columns=panel.instruments).to_numpy()
            for name in frame.columns]
    jumped = np.cumsum(jumps(*wide), axis=0)
    reach = panel.label_reach
    ahead = np.minimum(np.arange(len(panel.days)) + np.array([[1], [reach]]), len(panel.days) - 1)
    crossed = (jumped[ahead[1]] > jumped[ahead[0]]) & (panel.rows >= 0)                           # from the next close to the last one
    rows, labels = panel.rows[crossed], {}
    for name in ("label", "label_eval", "label_raw"):
        labels[name] = getattr(panel, name).copy()
        labels[name][rows] = np.nan
    say(f"{crossed.sum()} labels reach across one of {int(jumped[-1].sum())} jumps and are left out")
    return replace(panel, **labels)


def trained_as(model: dict) -> dict:
    """The trainer of the first model within a model section."""
    if "trainer" in model.get("kwargs", {}):
        return dict(model["kwargs"]["trainer"])
    inner = model["kwargs"].get("model") or next(iter(model["kwargs"]["members"].values()))
    return trained_as(inner)


def run(options) -> None:
    """Every variant with every seed, one seed of all before the next."""
    from qlib_ext.workflow import load_workflow
    workflow = WORKFLOWS / f"{options.system}_all.yaml"
    panel = shipped_panel(workflow, options.store, options.cache, not_neutralised if options.bare else None)
    if options.bare:
        panel = without_jumps(panel, options.store)
    import torch
    torch.set_num_threads(options.threads)
    keep_memory()
    trainer = trained_as(load_workflow(workflow)["task"]["model"]) | {"threads": options.threads}
    trainer |= {name: getattr(options, name) for name in TRAINER if getattr(options, name) is not None}
    rule = {"name": "rolling_retrain", "task_length": options.task_length} if options.task_length else "supervised"
    blocks = granularities(panel)
    for seed in options.seeds:
        for variant in options.variants or variants(options.system, options.ablate):
            made = section(options.system, variant, options.ablate, blocks, trainer, seed, rule)
            run_cell(panel, learn_torch, made, Path(options.out), options.system, variant, seed, False, options.min_pairs)


def members(cells: list[Cell]) -> list[Cell]:
    """For each seed that has every single granularity, the mean of their z-scores as a cell of its own."""
    named = {(cell.record["protocol"], cell.record["seed"]): cell for cell in cells if cell.record["label"] == "multi_granularity"}
    made = []
    for seed in sorted({seed for _, seed in named}):
        own = [named[name, seed] for name in MEMBERS if (name, seed) in named]
        if len(own) == len(MEMBERS):
            record = {**own[0].record, "protocol": "members", "cell": f"multi_granularity.members.s{seed}",
                      "digest": "".join(cell.record["digest"] for cell in own), "seconds": sum(cell.record["seconds"] for cell in own),
                      **dict.fromkeys(("valid_ic", "valid_rank_ic", "best_epoch"))}
            made.append(Cell(record, averaged([cell.scores for cell in own])))
    return made


def report(options) -> None:
    """Tables of a folder's cells, on the screen, as text, CSV and JSON."""
    out = Path(options.out)
    cells = read_cells(out)
    rows = by_row([*cells, *members(cells)])
    log_opening(out, "report", {name: [own[0].record["digest"], len(own)] for name, own in rows.items()})
    figures, tests = table(rows, options.min_pairs), paired(rows, rows, options.min_pairs)
    tests = tests[[less.split(".")[0] == row.split(".")[0] for less, row in tests.index]]
    notes = [heading(out, now(), figures)]
    say(write_report(out, notes, figures, tests))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=list(SYSTEMS), help="whose variants")
    parser.add_argument("--out", required=True, help="folder of the cells of one store")
    parser.add_argument("--store", default=os.environ.get("QLIB_DATA"), help="default QLIB_DATA")
    parser.add_argument("--cache", help="folder of packed panels")
    parser.add_argument("--variants", nargs="+", help="default: all of the system")
    parser.add_argument("--ablate", default="60", choices=MEMBERS, help="granularity that the ablations of AGRU use")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--task-length", type=int, help="train anew every so many test days")
    parser.add_argument("--bare", action="store_true", help="the store has bars alone: no neutralised inputs, no labels across jumps")
    parser.add_argument("--threads", type=int, default=1)
    for name, kind in dict(zip(TRAINER, (int, int, int, float))).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--report", action="store_true", help="tables of the cells in --out")
    parser.add_argument("--min-pairs", type=int, default=REPORT_MIN_PAIRS)
    options = parser.parse_args(arguments)
    if not options.report and not options.system:
        parser.error("name a --system")
    return carry_out(options, run, report)


if __name__ == "__main__":
    sys.exit(main())
