"""A workflow file as `qrun` reads it: rendered with the environment, laid over its base file; and the classes it names."""

from __future__ import annotations

import io
import logging
import os
import re
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterator, Optional

from jinja2 import TemplateError
from qlib.cli.run import render_template
from qlib.utils.data import update_config
from qlib.utils.mod import get_module_by_module_path, split_module_path
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from qlib_ext.errors import ConfigError
from qlib_ext.signatures import did_you_mean

RECORDS = "qlib.workflow.record_temp"
PROCESSORS = "qlib.data.dataset.processor"
LOADERS = "qlib.data.dataset.loader"
_DEFAULT_MODULE = {"record": RECORDS, "infer_processors": PROCESSORS, "learn_processors": PROCESSORS,
                   "shared_processors": PROCESSORS,
                   "inst_processors": PROCESSORS, "data_loader": LOADERS}


@dataclass
class Node:
    """One `class` / `module_path` / `kwargs` entry of a workflow."""

    where: str
    entry: dict
    default_module: Optional[str] = None
    role: str = ""
    kwargs: dict = field(default_factory=dict)

    def resolve(self):
        """The class, found as Qlib finds it.

        Raises
        ------
        ConfigError : no module is named, it cannot be imported, or has no such class.
        """
        name, default = self.entry["class"], self.entry.get("module_path", self.default_module)
        prefix, short = split_module_path(name)
        path = prefix or default
        if not path:
            raise ConfigError(f"class {name!r} has no module_path; add the module that holds it")
        try:
            module = get_module_by_module_path(path)
        except ImportError as error:
            raise ConfigError(f"module {path!r} cannot be imported ({error}); correct module_path or install it") from error
        if not hasattr(module, short):
            raise ConfigError(f"module {path!r} has no {short!r}{did_you_mean(short, dir(module))}; correct class or module_path")
        return getattr(module, short)


def load_workflow(path: str | Path) -> dict:
    """The merged configuration of a workflow file, exactly as `qrun` makes it.

    Raises
    ------
    ConfigError : the file or its base file is missing, or is no valid template, YAML or mapping.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"workflow file {path} does not exist; give the path of a YAML file")
    try:
        with quiet():
            text = render_template(str(path))
    except TemplateError as error:
        raise ConfigError(f"{path} is not a valid template ({error}); correct the {{{{ ... }}}} expression") from error
    config = _parse(text, path)
    base = config.get("BASE_CONFIG_PATH")
    if not base:
        return config
    for candidate in (Path(base), path.absolute().parent / base):
        if candidate.exists():
            return update_config(_parse(candidate.read_text(), candidate), config)
    raise ConfigError(f"{path}: base file {base!r} is neither in the current folder nor beside the workflow; "
                      "correct BASE_CONFIG_PATH")


def _parse(text: str, path: Path) -> dict:
    try:
        config = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{path} holds {type(config).__name__} instead of a mapping; see workflows/ for examples")
    return config


def class_nodes(config: dict) -> Iterator[Node]:
    """Every entry with a `class`, outermost first."""
    for section in ("qlib_init", "task"):
        yield from _walk(config.get(section), section, None, "")


def _walk(value, where: str, default_module: Optional[str], role: str) -> Iterator[Node]:
    if isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            yield from _walk(item, f"{where}[{number}]", default_module, role)
    elif isinstance(value, dict):
        if isinstance(value.get("class"), str):
            kwargs = value.get("kwargs") or {}
            yield Node(where, value, default_module, role, kwargs if isinstance(kwargs, dict) else {})
        for key, item in value.items():
            named = key if key != "kwargs" else role
            yield from _walk(item, f"{where}.{key}", _DEFAULT_MODULE.get(key), named)


def values(config, where: str = "") -> Iterator[tuple[str, object]]:
    """(place, value) of every scalar in a configuration."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from values(value, f"{where}.{key}" if where else str(key))
    elif isinstance(config, (list, tuple)):
        for number, value in enumerate(config):
            yield from values(value, f"{where}[{number}]")
    else:
        yield where, config


@contextmanager
def quiet():
    """No log lines below errors and nothing printed, whatever gets imported inside."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def environment_variable_of(path: str | Path, key: str) -> Optional[str]:
    """The environment variable that the workflow file puts in the value of `key`, if it is not set (None otherwise)."""
    match = re.search(rf"^\s*(?:- )?{re.escape(key)}:.*?{{{{\s*(\w+)", Path(path).read_text(), re.MULTILINE)
    return match.group(1) if match and not os.environ.get(match.group(1)) else None
