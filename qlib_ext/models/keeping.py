"""What a fit keeps: the state of one that was interrupted, checkpoints, and what goes to Qlib's recorder."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
import torch

from qlib_ext.errors import DataError
from qlib_ext.home import home


def write_aside(path: Path, content: dict) -> None:
    """Saves tensors and what holds them, replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, aside)
    aside.replace(path)


def read_checkpoint(path: str | Path) -> dict:
    """What a checkpoint file holds, on the CPU.

    Raises:
        DataError: absent, unreadable, or something else than a dict (of tensors, or what `TorchModel.save` writes).
    """
    if not Path(path).is_file():
        raise DataError(f"checkpoint {path} does not exist; give the path of a saved state dict")
    try:
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"checkpoint {path} cannot be read as a state dict ({type(error).__name__}: {error})") from error
    if not isinstance(stored, dict):
        raise DataError(f"checkpoint {path} holds a {type(stored).__name__}, not a state dict")
    return stored


def code_files(kinds: Iterable[type]) -> list[Path]:
    """The files that hold some classes and their bases, and everything here that trains: what decides a fit beside its options."""
    modules = {base.__module__ for kind in kinds for base in kind.__mro__} - {"builtins"}
    found = {getattr(sys.modules.get(name), "__file__", None) for name in modules} - {None}
    ours = Path(__file__).parents[1]
    return sorted({Path(file) for file in found} | {file for name in ("models", "training", "data") for file in (ours / name).glob("*.py")})


@contextmanager
def kept_folder(kind: str, key: str) -> Iterator[Path | None]:
    """The folder ``home()/kind/key`` of what an interrupted fit leaves, gone when the fit ends well.

    It is locked: a second fit of the same key, which runs at the same time, gets None and keeps nothing.
    """
    folder = home() / kind / key
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print(f"the same fit is running in another process ({folder}): this one will not be resumable", file=sys.stderr)
            yield None
            return
        yield folder
        shutil.rmtree(folder, ignore_errors=True)  # with what a killed fit may have left half-written


def active_experiment():
    """Qlib's running experiment, or None."""
    if "qlib" not in sys.modules:
        return None
    from qlib.workflow import R
    try:
        return R.exp_manager.active_experiment
    except AttributeError:  # Qlib was imported but not initialised
        return None


def active_recorder():
    """The running Qlib recorder, or None."""
    experiment = active_experiment()
    return experiment.active_recorder if experiment is not None else None


def epoch_logger(recorder):
    def log(epoch: int, row: dict) -> None:
        print(f"epoch {epoch + 1}: " + "  ".join(f"{name} {value:.4f}" for name, value in row.items()), flush=True)
        if recorder is not None:
            recorder.log_metrics(step=epoch, **{name: value for name, value in row.items() if np.isfinite(value)})
    return log


def save_card(recorder, model) -> None:
    if recorder is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        card, net = Path(folder, "run_card.json"), Path(folder, "net.pt")
        card.write_text(json.dumps(model.run_card_, indent=2, default=repr))
        model.save(net)
        for file in (card, net):
            recorder.save_objects(local_path=str(file))


def keep_online(recorder, model) -> None:
    """The online state and a row for each task, beside the predictions."""
    report = getattr(model.rule, "report", None)
    if recorder is None or not report or model.rule.begun["day"] < getattr(model, "kept_until_", ""):
        return
    model.kept_until_ = model.rule.begun["day"]       # scoring an earlier segment later leaves the state alone
    columns = list(dict.fromkeys(name for row in report for name in row))
    with tempfile.TemporaryDirectory() as folder:
        state, table = Path(folder, "online_state.pt"), Path(folder, "online_tasks.csv")
        model.save_online(state)
        table.write_text("\n".join([",".join(columns), *(",".join(str(row.get(name, "")) for name in columns) for row in report)]) + "\n")
        for file in (state, table):
            recorder.save_objects(local_path=str(file))
    recorder.log_metrics(**{f"online_{name}": value for name, value in model.rule.figures().items() if np.isfinite(value)})
