"""`python -m qlib_ext pack WORKFLOW PACK`: the panel of a workflow in one file (or shards), for a machine without Qlib and store."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import qlib
from qlib.utils import init_instance_by_config

from qlib_ext.data.pack import SHARD_MIB, pack_panel
from qlib_ext.errors import ConfigError, ExtError
from qlib_ext.workflow import load_workflow


def pack_workflow(workflow: str | Path, pack: str | Path, float16: bool = False, shard_mib: float | None = None) -> list[Path]:
    """Build the dataset of a workflow and pack its panel; the model section goes to ``<pack>.json``.

    Returns:
        Every file written.

    Raises:
        ConfigError: the workflow's dataset makes no panel (only `PanelDatasetH` does).
    """
    config = load_workflow(workflow)
    task = config["task"]
    if not str(task["dataset"].get("class", "")).endswith("PanelDatasetH"):
        raise ConfigError(f"{workflow}: its dataset is a {task['dataset'].get('class')}; only a PanelDatasetH can be packed")
    qlib.init(**{key: value for key, value in config["qlib_init"].items() if key != "exp_manager"})
    dataset = task["dataset"]
    dataset["kwargs"]["keep_frames"] = False
    files = pack_panel(init_instance_by_config(dataset).panel(), pack, "float16" if float16 else "float32", shard_mib)
    model = Path(f"{pack}.json")
    model.write_text(json.dumps(task["model"], indent=2, default=str), encoding="utf-8")
    return [*files, model]


def main(arguments: list[str]) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m qlib_ext pack", description=__doc__)
    parser.add_argument("workflow", help="a workflow whose dataset is a PanelDatasetH")
    parser.add_argument("pack", help="the file to write; the model section goes to PACK.json")
    parser.add_argument("--float16", action="store_true", help="half the size, feature values rounded to 11 bits")
    parser.add_argument("--shards", action="store_true", help=f"cut into files PACK.000 ... of at most {SHARD_MIB} MiB")
    parser.add_argument("--shard-mib", type=float, help="another shard size")
    options = parser.parse_args(arguments)
    size = options.shard_mib or (SHARD_MIB if options.shards else None)
    try:
        files = pack_workflow(options.workflow, options.pack, options.float16, size)
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    total = sum(file.stat().st_size for file in files)
    print(f"wrote {len(files)} files, {total / 2**20:.0f} MiB: {files[0]} .. {files[-1]}")
    print(f"train it with: python -m qlib_ext.training {options.pack} {options.pack}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
