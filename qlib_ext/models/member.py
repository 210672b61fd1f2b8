"""What rolling retraining and ensembles share: models made from configurations, each kept and recorded under its own name."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator, Optional

import numpy as np
import pandas as pd
import qlib
from qlib.config import C
from qlib.data.dataset.handler import DataHandlerLP
from qlib.log import get_module_logger
from qlib.utils import init_instance_by_config

import qlib_ext
from qlib_ext.data.segments import segment_positions
from qlib_ext.data.universe import trading_calendar
from qlib_ext.errors import ConfigError, DataError
from qlib_ext.models.keeping import active_experiment, code_files
from qlib_ext.signatures import did_you_mean, keywords
from qlib_ext.store.metadata import fingerprint
from qlib_ext.workflow import class_nodes

SAMPLED_DAYS = 40
"""Days of a dataset that are read to tell it from another."""

logger = get_module_logger("qlib_ext.models")


def model_class(config: dict, owner: str) -> type:
    """The class a model's configuration names, whose keywords (those of everything nested in it, too) are known.

    Classes of this package are built once, for their constructors validate; others only when they are fitted.

    Raises:
        ConfigError: no such configuration, unknown class or keyword, or a value that a constructor of this package refuses.
    """
    if not isinstance(config, dict) or not isinstance(config.get("class"), str) or set(config) - {"class", "module_path", "kwargs"}:
        raise ConfigError(f"{owner}: {config!r} is no model; give class, module_path and kwargs")
    nodes = [(node, node.resolve()) for node in class_nodes({"task": {"model": config}})]
    for node, found in nodes:
        taken = keywords(found)
        for name in taken.unknown(node.kwargs):
            raise ConfigError(f"{owner}: {found.__name__} does not take {name!r}{did_you_mean(name, taken.names)}; "
                              f"it takes {sorted(taken.names)}")
    if nodes[0][1].__module__.startswith("qlib_ext."):
        make_model(config)
    return nodes[0][1]


def make_model(config: dict):
    """A fresh model; the configuration stays as it is."""
    return init_instance_by_config(copy.deepcopy(config))


def fit_member(config: dict, dataset, reweighter, name: str, group: str, folder: Optional[Path]):
    """A fitted model: the one an interrupted fit left in `folder`, else a fresh one, which is then left there.

    What the first fit recorded of a model that is used again stays in the recorder of the interrupted run.
    A file that cannot be read is named in a warning, and the model is fitted anew.
    """
    file = None if folder is None else folder / f"{name}.pkl"
    if file is not None and file.exists():
        try:
            model = pickle.loads(file.read_bytes())
            print(f"{name}: taken from an interrupted fit", flush=True)
            return model
        except Exception as error:
            logger.warning(f"{file} cannot be read ({type(error).__name__}: {error}): {name} is fitted anew")
    model = make_model(config)
    with recorded_as(name, group):
        model.fit(dataset) if reweighter is None else model.fit(dataset, reweighter=reweighter)
    if file is not None:
        aside = file.with_name(f".{file.name}.{os.getpid()}")
        aside.write_bytes(pickle.dumps(model))
        aside.replace(file)
    return model


# ---- what an interrupted fit leaves -------------------------------------------------------------------------------------------
def fit_key(dataset, configs: list[dict], *options) -> str:
    """Hex digest of what decides a fit: configurations, code, store, and the dataset's options and values.

    Of the values some 40 days are read, all features and labels of both tables; of a panel without frames or with aux: `Panel.digest`.
    """
    content = [configs, options, qlib_ext.__version__, qlib.__version__, fingerprint(C.dpm.get_data_uri("day")),
               [f"{type(part).__module__}.{type(part).__qualname__}" for part in (dataset, dataset.handler)], dataset.segments,
               {name: value for name, value in vars(dataset).items() if isinstance(value, (str, int, float, bool, type(None)))}]
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=16)
    for file in code_files(node.resolve() for config in configs for node in class_nodes({"task": {"model": config}})):
        digest.update(file.read_bytes())
    for part in _sample(dataset):
        digest.update(part)
    return digest.hexdigest()


def _sample(dataset) -> Iterator[bytes]:
    if hasattr(dataset, "panel") and (dataset.aux or not dataset.keep_frames):
        yield dataset.panel().digest().encode()
        return
    calendar = trading_calendar()
    spans = list(segment_positions(dataset.segments, calendar).values())
    days = np.linspace(min(first for first, _ in spans), max(last for _, last in spans), SAMPLED_DAYS).astype(int)
    for day in pd.DatetimeIndex(calendar[np.unique(days)]):
        for table in (DataHandlerLP.DK_I, DataHandlerLP.DK_L):
            frame = dataset.handler.fetch(slice(day, day), col_set=DataHandlerLP.CS_ALL, data_key=table)
            yield str(list(frame.columns)).encode() + pd.util.hash_pandas_object(frame).to_numpy().tobytes()


# ---- the recorder -------------------------------------------------------------------------------------------------------------
class _NamedRecorder:
    """A recorder in which metrics begin with a name and files lie in a folder of that name."""

    def __init__(self, recorder, name: str, group: str):
        self.recorder, self.name, self.group = recorder, name, group

    def __getattr__(self, attribute: str):
        return getattr(self.recorder, attribute)

    def log_metrics(self, step=None, **values):
        self.recorder.log_metrics(step=step, **{f"{self.name}.{name}": value for name, value in values.items()})

    def log_params(self, **values):
        self.recorder.log_params(**{f"{self.name}.{name}": value for name, value in values.items()})

    def save_objects(self, local_path=None, artifact_path=None, **objects):
        place = "/".join(filter(None, [self.group, self.name, artifact_path]))
        self.recorder.save_objects(local_path=local_path, artifact_path=place, **objects)


@contextmanager
def recorded_as(name: str, group: str) -> Iterator[None]:
    """Whatever is recorded inside goes to metrics ``name.*`` and to files under ``group/name``, so that members do not mix."""
    experiment = active_experiment()
    recorder = None if experiment is None else experiment.active_recorder
    if recorder is None:
        yield
        return
    experiment.active_recorder = _NamedRecorder(recorder, name, group)
    try:
        yield
    finally:
        experiment.active_recorder = recorder


def as_scores(prediction, name: str) -> pd.Series:
    """A model's prediction as a Series ``score`` on (datetime, instrument), sorted; NaN stays NaN.

    Raises:
        DataError: a (day, stock) twice, or an infinite score.
    """
    scores = prediction.iloc[:, 0] if isinstance(prediction, pd.DataFrame) else prediction
    if scores.index.names[0] == "instrument":
        scores = scores.swaplevel()
    scores = scores.rename("score").rename_axis(["datetime", "instrument"]).sort_index()
    if scores.index.has_duplicates or np.isinf(scores.to_numpy()).any():
        where = scores.index[scores.index.duplicated() | np.isinf(scores.to_numpy())][0]
        raise DataError(f"{name}: the score of {where[1]} on {where[0]:%Y-%m-%d} is infinite or given twice")
    return scores
