"""DecompGRU against a GRU of its size and against itself without each de-mean module: same panel, several seeds, paired tests.

    run="python scripts/decomp_gru_evidence.py --store STORE --cache CACHE --out OUT --window 60"
    $run --variants full no_time no_stocks plain gru --losses ic weighted_mse --seeds 0 1 2 --epochs 15 --days-per-epoch 194
    $run --report

A cell is one variant with one loss and one seed, fitted on the panel of `decomp_gru_top200.yaml`; it scores the test segment and leaves
its scores (Parquet) and a line of JSON in OUT. Finished cells are skipped, an unfinished fit goes on where it was. With `--choose` the
test years are gone and only validation figures are made. What opens the test years is logged in OUT/test_openings.log.

    full       both modules                  plain     neither: two stacked GRUs
    no_time    without the one in time       gru       the GRU of this package, hidden size alike
    no_stocks  without the one across stocks gru_wide  the same with as many parameters as `full`
    window     mean of the window as trend   market    all stocks as one group

`--report` makes tables (text, CSV, figures.json), with `integrated`, the mean of both losses' z-scores, where both are there.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
from pathlib import Path

from incremental_cells import keep_memory, learn_torch, say, shipped_panel
from incremental_evidence import WORKFLOWS, best_possible, carry_out, choices, log_opening, now, run_cell
from incremental_table import Cell, averaged, by_row, heading, paired, read_cells, table, write_report

from qlib_ext.errors import ConfigError
from qlib_ext.report.metrics import REPORT_MIN_PAIRS

WORKFLOW = WORKFLOWS / "decomp_gru_top200.yaml"
LOSSES = ("ic", "weighted_mse")
VARIANTS = {"full": {}, "no_time": {"ts": "none"}, "no_stocks": {"cs": "none"}, "plain": {"ts": "none", "cs": "none"},
            "window": {"ts": "window"}, "market": {"cs": "market"}, "gru": None, "gru_wide": None}
TRAINER = ("epochs", "patience", "days_per_epoch", "lr")


def configured(section: dict, variant: str, seed: int, trainer: dict, hidden: int | None = None) -> dict:
    """The model section of a variant, from that of the workflow with the loss wanted.

    Raises:
        ConfigError: an unknown variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant {variant!r} is unknown; choose from {list(VARIANTS)}")
    section = copy.deepcopy(section)
    options = section["kwargs"]
    options["hidden_size"] = hidden or options["hidden_size"]
    options["trainer"].update(trainer, seed=seed, progress=False)
    if VARIANTS[variant] is not None:
        options.update(VARIANTS[variant])
        return section
    size = options["hidden_size"] if variant == "gru" else wide_size(options["hidden_size"])
    return {"class": "GRU", "module_path": "qlib_ext.models.gru",
            "kwargs": {"hidden_size": size, "num_layers": 2, **{name: options[name] for name in ("loss", "trainer")}}}


def wide_size(hidden: int, features: int = 6) -> int:
    """Hidden size of the two-layer GRU whose number of parameters is nearest to that of the whole DecompGRU."""
    from qlib_ext.models.decomp_gru import DecompGRUNet
    from qlib_ext.models.gru import GRUNet
    count = lambda net: sum(p.numel() for p in net.parameters())  # noqa: E731
    wanted = count(DecompGRUNet(features, hidden))
    return min(range(hidden, 2 * hidden + 1), key=lambda size: abs(count(GRUNet(features, size)) - wanted))


def run(options) -> None:
    """Every variant with every loss and seed, one seed of all before the next."""
    from qlib_ext.workflow import load_workflow
    os.environ["QLIB_EXT_WINDOW"] = str(options.window)
    panel = shipped_panel(WORKFLOW, options.store, options.cache)
    if options.only_pack:
        return
    import torch
    torch.set_num_threads(options.threads)
    keep_memory()
    members = load_workflow(WORKFLOW)["task"]["model"]["kwargs"]["members"]
    trainer = {name: getattr(options, name) for name in TRAINER if getattr(options, name) is not None} | {"threads": options.threads}
    for seed in options.seeds:
        for loss in options.losses:
            for variant in options.variants:
                section = configured(members[loss]["kwargs"]["model"], variant, seed, trainer, options.hidden)
                section["kwargs"]["rule"] = "supervised"
                run_cell(panel, learn_torch, section, Path(options.out), loss, variant, seed, options.choose, options.min_pairs)
    if options.choose:
        say(choices(options.out).to_string(float_format="{:.4f}".format))


def integrated(cells: list[Cell]) -> list[Cell]:
    """For each variant and seed that has both losses, the mean of their z-scores as a cell of its own."""
    named = {(cell.record["label"], cell.record["protocol"], cell.record["seed"]): cell for cell in cells}
    made = []
    for (label, variant, seed), cell in named.items():
        other = named.get((LOSSES[1], variant, seed))
        if label == LOSSES[0] and other is not None:
            record = {**cell.record, "label": "integrated", "cell": f"integrated.{variant}.s{seed}",
                      "digest": cell.record["digest"] + other.record["digest"], "seconds": cell.record["seconds"] + other.record["seconds"],
                      **dict.fromkeys(("valid_ic", "valid_rank_ic", "best_epoch"))}
            made.append(Cell(record, averaged([cell.scores, other.scores])))
    return made


def report(options) -> None:
    """Tables of a folder's cells, on the screen, as text, CSV and JSON."""
    out = Path(options.out)
    cells = read_cells(out)
    rows = by_row([*cells, *integrated(cells)])
    log_opening(out, "report", {name: [members[0].record["digest"], len(members)] for name, members in rows.items()})
    figures = table(rows, options.min_pairs)
    tests = paired(rows, rows, options.min_pairs)
    alike = [less.split(".")[0] == row.split(".")[0] and (row.endswith(".full") or less.endswith(".plain")) for less, row in tests.index]
    tests = tests[alike]
    notes = [heading(out, now(), figures)]
    notes += best_possible(options.store, rows, options.min_pairs) if options.store else []
    say(write_report(out, notes, figures, tests))


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder of the cells of one store and window")
    parser.add_argument("--store", default=os.environ.get("QLIB_DATA"), help="default QLIB_DATA")
    parser.add_argument("--cache", help="folder of packed panels")
    parser.add_argument("--window", type=int, default=60)
    parser.add_argument("--only-pack", action="store_true", help="make the panel and stop")
    parser.add_argument("--variants", nargs="+", default=["full", "no_time", "no_stocks", "plain", "gru"], choices=list(VARIANTS))
    parser.add_argument("--losses", nargs="+", default=["ic"], choices=LOSSES)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--choose", action="store_true", help="validation figures only, with the test years gone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--hidden", type=int, help="hidden size (default: the workflow's)")
    for name, kind in dict(zip(TRAINER, (int, int, int, float))).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--report", action="store_true", help="tables of the cells in --out")
    parser.add_argument("--min-pairs", type=int, default=REPORT_MIN_PAIRS)
    options = parser.parse_args(arguments)
    return carry_out(options, run, report)


if __name__ == "__main__":
    sys.exit(main())
