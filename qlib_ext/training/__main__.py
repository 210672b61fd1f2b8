"""``python -m qlib_ext.training PACK CONFIG [--out MODEL]``: train a packed panel where only torch and numpy are installed.

CONFIG is a JSON file with the ``model`` section of a workflow: ``{"class": "MASTER", "module_path": "qlib_ext.models.master",
"kwargs": {...}}`` (a YAML file works too where PyYAML is installed). ``python -m qlib_ext pack WORKFLOW PACK`` writes both. The result
loads back with ``checkpoint: MODEL`` and ``trainer: {epochs: 0}`` in a workflow.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

from qlib_ext.data.pack import load_panel
from qlib_ext.errors import ConfigError, ExtError


def read_config(path: str | Path) -> dict:
    """The model section of a JSON or YAML file.

    Raises:
        ConfigError: absent, unreadable, or without class and module_path.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"config {path} does not exist; `python -m qlib_ext pack` writes one")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix in (".yaml", ".yml"):
            import yaml
            try:
                config = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ValueError(" ".join(str(error).split())) from error
        else:
            config = json.loads(text)
    except ImportError as error:
        raise ConfigError(f"{path} is YAML and PyYAML is not installed here: give a JSON file") from error
    except ValueError as error:
        raise ConfigError(f"config {path} cannot be read: {error}") from error
    for key in ("task", "model"):
        config = config.get(key, config) if isinstance(config, dict) else config
    if not isinstance(config, dict) or not {"class", "module_path"} <= set(config):
        raise ConfigError(f"config {path} needs the keys class and module_path (and kwargs)")
    return config


def build_model(config: dict):
    """The model a configuration names (a `TorchModel`).

    Raises:
        ConfigError: no such module or class, not a model of this package's kind, or keywords it refuses.
    """
    try:
        kind = getattr(importlib.import_module(config["module_path"]), config["class"])
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model {config['module_path']}.{config['class']} cannot be imported: {error}") from error
    if not hasattr(kind, "fit_panel"):
        raise ConfigError(f"{config['module_path']}.{config['class']} is no model that trains on a panel (a `TorchModel`)")
    options = config.get("kwargs") or {}
    if not isinstance(options, dict):
        raise ConfigError(f"kwargs of {config['class']} are {options!r}: give name: value pairs")
    return kind(**options)


def main(arguments: list[str] | None = None) -> int:
    """Train and save; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m qlib_ext.training", description="Train a packed panel (torch and numpy only).")
    parser.add_argument("pack", help="a packed panel, or the common name of its shards")
    parser.add_argument("config", help="JSON with class, module_path and kwargs of the model")
    parser.add_argument("--out", help="where the weights go (default: PACK.model.pt)")
    options = parser.parse_args(arguments)
    try:
        model = build_model(read_config(options.config))
        model.fit_panel(load_panel(options.pack))
        out = Path(options.out or f"{options.pack}.model.pt")
        model.save(out)
    except ExtError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    best = model.history_.best_epoch
    print(f"saved {out}; kept epoch {None if best is None else best + 1} of {len(model.history_.epochs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
