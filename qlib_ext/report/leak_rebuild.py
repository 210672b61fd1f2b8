"""A store whose daily bars, and blocks of intraday bars, after a day are noise, and a fresh process that builds a dataset on it and
scores it.

That process is ``python -m qlib_ext.report.leak_rebuild FOLDER``; the folder holds what to do (`JOB`, `MODEL`) and gets what came of it
(`RESULT`).
"""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterable, Optional

import numpy as np
import pandas as pd
import qlib
from qlib.config import C
from qlib.data.dataset.handler import DataHandlerLP
from qlib.utils import init_instance_by_config

from qlib_ext.data.array_loader import field_names
from qlib_ext.data.intraday import IntradayBlockLoader
from qlib_ext.data.universe import trading_calendar
from qlib_ext.errors import DataError
from qlib_ext.report.leak_checks import Rebuilt, changed, largest_difference
from qlib_ext.report.runs import first_column
from qlib_ext.signatures import keywords
from qlib_ext.workflow import class_nodes

BARS = ("open", "high", "low", "close", "vwap", "volume", "amount", "turnover", "change", "factor", "float_cap", "total_cap",
        "limit_up", "limit_down")
SPREAD = 0.3
"""Standard deviation of the logarithm of the random factors."""
JOB, MODEL, RESULT = "job.pkl", "model.pkl", "result.pkl"
_SUFFIX = ".day.bin"


# ---- the store ----------------------------------------------------------------------------------------------------------------
def corrupted_copy(store: Path, folder: Path, known: int, draw: np.random.Generator, fields: Iterable[str] = BARS) -> Path:
    """A copy of a store in which daily fields after a day are multiplied by random factors; all other files are links.

    Its metadata and the times of its files are the original's, so that what was made of days up to then still counts as made of it.

    Args:
        store: a Qlib store, which is only read.
        folder: where the copy goes; must not exist.
        known: calendar position of the last day that stays.
        fields: which, of stocks and indices alike.
    """
    wanted = {f"{field}{_SUFFIX}" for field in fields}
    for place, below, names in os.walk(store, followlinks=True):
        below.sort()  # the draws come in this order
        goal = folder / Path(place).relative_to(store)
        goal.mkdir(parents=True, exist_ok=True)
        for name in sorted(names):
            source = Path(place, name)
            if not (name in wanted and goal.parent.name == "features" and _write_noisy(source, goal / name, known, draw)):
                _link(source, goal / name)
    return folder


def _write_noisy(source: Path, goal: Path, known: int, draw: np.random.Generator) -> bool:
    """Write a field's file with noise behind the day; False where it holds no later day."""
    values = np.fromfile(source, "<f4")
    later = max(int(known + 1 - values[0]), 0) + 1 if len(values) else 0  # the first value is the position of the second
    if later >= len(values):
        return False
    values[later:] *= draw.lognormal(0.0, SPREAD, len(values) - later).astype(np.float32)
    values.tofile(goal)
    shutil.copystat(source, goal)
    return True


def _link(source: Path, goal: Path) -> None:
    source = source.resolve()
    try:
        os.link(source, goal)
    except OSError:  # another disk, or links are not allowed
        os.symlink(source, goal)


# ---- what is compared ---------------------------------------------------------------------------------------------------------
def inputs_of(dataset, day: pd.Timestamp) -> dict[str, pd.DataFrame]:
    """What a model reads of one day: a frame of each table, stocks x columns, and one row of each table of the day itself."""
    if not hasattr(dataset, "panel"):
        frame = dataset.handler.fetch(slice(day, day), col_set="feature", data_key=DataHandlerLP.DK_I)
        return {"": frame.reset_index(level="datetime", drop=True)}
    panel = dataset.panel()
    place = panel.position(day)
    stocks = np.flatnonzero(panel.rows[place] >= 0)
    rows, names = panel.rows[place, stocks], panel.instruments[stocks]
    columns = panel.meta.get("aux_columns", {})
    found = {"": pd.DataFrame(panel.blocks["stock"].values[rows], names, panel.blocks["stock"].columns)}
    found.update({name: pd.DataFrame(values[rows], names, columns.get(name)) for name, values in panel.stock_aux.items()})
    found.update({name: pd.DataFrame(values[[place]], ["all"], columns.get(name)) for name, values in panel.day_aux.items()})
    return found


def compare_inputs(here: dict[str, pd.DataFrame], there: dict[str, pd.DataFrame]) -> pd.Series:
    """Changed values of every column of all tables; columns of tables with a name begin with it."""
    parts = [changed(frame, there[name]).rename(lambda column, name=name: f"{name}: {column}" if name else str(column))
             for name, frame in here.items()]
    return pd.concat(parts)


# ---- both processes -----------------------------------------------------------------------------------------------------------
def rebuild(config: dict, model: Any, dataset, scores: pd.Series, known: pd.Timestamp, before: list, after: list, seed: int,
            timeout: Optional[float] = None) -> Rebuilt:
    """Corrupt the store behind a day t of the test, build the dataset anew in a fresh process, score it, and compare.

    Args:
        config: of the dataset. model: fitted; it is pickled. dataset: as it was built on the store in use.
        scores: what the model said on the test, on (datetime, instrument).
        known: t. before, after: days up to t, and later ones, whose inputs are compared; the rebuilt test ends on the last of these.
        timeout: seconds that the process may take.

    Raises:
        DataError: the process failed, with its last words.
    """
    store = Path(C.dpm.get_data_uri("day")).expanduser().resolve()
    with tempfile.TemporaryDirectory(prefix="qlib_ext-leak-") as made:
        place = int(np.searchsorted(trading_calendar(), np.datetime64(known, "D")))
        copied = corrupted_copy(store, Path(made, "store"), place, np.random.default_rng(seed), _fields(dataset))
        config = _with_snapshots(_ending(config, max(after)), dataset)
        config = _with_blocks(config, Path(made), known, np.random.default_rng(seed))
        job = {"store": str(copied), "dataset": config, "threads": _torch_threads(),
               "days": [*before, *after],
               "start": {"region": C["region"], "kernels": C.get_kernels("day"), "custom_ops": C["custom_ops"]}}
        Path(made, JOB).write_bytes(pickle.dumps(job))
        Path(made, MODEL).write_bytes(pickle.dumps(model))
        _run(made, timeout)
        result = pickle.loads(Path(made, RESULT).read_bytes())
    here = {day: inputs_of(dataset, day) for day in job["days"]}
    told = {day: compare_inputs(here[day], result["inputs"][day]) for day in job["days"]}
    mine, theirs = (one[one.index.get_level_values("datetime") <= known] for one in (scores, result["scores"]))
    return Rebuilt(day=f"{known:%Y-%m-%d}", inputs=pd.concat([told[day] for day in before]).groupby(level=0, sort=False).sum(),
                   values=sum(frame.size for day in before for frame in here[day].values()),
                   later=sum(int(told[day].sum()) for day in after), score_difference=largest_difference(mine, theirs), scores=len(mine))


def _fields(dataset) -> set[str]:
    """The daily bars, and what else the features name, but codes."""
    groups = getattr(getattr(dataset.handler, "data_loader", None), "fields", None)
    groups = groups.values() if isinstance(groups, dict) else [groups] if groups else []
    named = field_names(one for expressions, _ in groups for one in expressions)
    return {*BARS, *named} - {"industry", "is_st"}


def _ending(config: dict, last: pd.Timestamp) -> dict:
    """The dataset's configuration with a test segment that ends on a day."""
    config = copy.deepcopy(config)
    segments = config["kwargs"]["segments"]
    segments["test"] = [segments["test"][0], f"{last:%Y-%m-%d}"]
    return config


def _with_snapshots(config: dict, dataset) -> dict:
    """Loaders that take the default risk snapshots are given those of the store in use: a copy of it has none."""
    nodes = [node for node in class_nodes({"task": {"dataset": config}}) if ".aux" in node.where]
    needy = [node for node in nodes if "snapshots" in keywords(node.resolve()).names and node.kwargs.get("snapshots") is None]
    loaders = list(getattr(dataset, "aux", {}).values())
    loaders += [part for loader in loaders for part in getattr(loader, "parts", ())]
    for loader in loaders if needy else ():
        if getattr(loader, "snapshots", "") is None:
            folder = str(loader._opened().folder)
            for node in needy:
                node.entry["kwargs"] = {**node.kwargs, "snapshots": folder}
            break
    return config


def _with_blocks(config: dict, folder: Path, known: pd.Timestamp, draw: np.random.Generator) -> dict:
    """Loaders of intraday blocks are given copies of them in a folder: files of days up to `known` are links, later ones noise."""
    for number, node in enumerate(class_nodes({"task": {"dataset": config}})):
        kind = node.resolve() if ".aux" in node.where else None
        if isinstance(kind, type) and issubclass(kind, IntradayBlockLoader):
            source = kind(**node.kwargs).place()
            root = folder / f"intraday{number}"
            goal = root / "blocks" / source.name
            goal.mkdir(parents=True)
            _link(source / "about.json", goal / "about.json")
            for file in sorted(source.glob("date=*/part.parquet")):
                copied = goal / file.parent.name / file.name
                copied.parent.mkdir()
                if pd.Timestamp(file.parent.name.removeprefix("date=")) > known:
                    _noisy_block(file, copied, draw)
                else:
                    _link(file, copied)
            node.entry["kwargs"] = {**node.kwargs, "folder": str(root)}
    return config


def _noisy_block(file: Path, goal: Path, draw: np.random.Generator) -> None:
    """A block of a day with noise in the place of its values; what is unknown stays so."""
    import polars as pl
    frame = pl.read_parquet(file, hive_partitioning=False)
    columns = [name for name in frame.columns if name != "instrument"]
    noise = pl.DataFrame(draw.standard_normal((frame.height, len(columns)), np.float32), schema=columns)
    frame.with_columns(noise.get_column(name) + 0 * pl.col(name) for name in columns).write_parquet(goal)


def _torch_threads() -> Optional[int]:
    return sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None


def _run(folder: str, timeout: Optional[float]) -> None:
    """The fresh process: without the disk cache of features, which would give it the true ones and take its own for true."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = {**os.environ, "QLIB_EXT_CACHE": "off", "PYTHONPATH": path}
    command = [sys.executable, "-m", __name__, folder]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"the rebuild took more than {timeout:g} seconds: raise timeout, or choose fewer days") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise DataError(f"the dataset could not be built anew in a fresh process ({lines[-1]})")


def main(folder: str) -> None:
    """What the fresh process does."""
    job = pickle.loads(Path(folder, JOB).read_bytes())
    qlib.init(provider_uri=job["store"], expression_cache=None, dataset_cache=None, logging_level=40, **job["start"])
    dataset = init_instance_by_config(job["dataset"])
    model = pickle.loads(Path(folder, MODEL).read_bytes())
    if job["threads"] is not None and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(job["threads"])
    inputs = {day: inputs_of(dataset, day) for day in job["days"]}
    result = {"scores": first_column(model.predict(dataset)), "inputs": inputs}
    aside = Path(folder, f".{RESULT}")
    aside.write_bytes(pickle.dumps(result))
    aside.replace(Path(folder, RESULT))


if __name__ == "__main__":
    main(sys.argv[1])
