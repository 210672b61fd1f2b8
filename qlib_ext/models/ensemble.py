"""Several fits around any Qlib model, seeds or whole configurations, and the average of their scores."""

from __future__ import annotations

import copy
import re

import pandas as pd
from qlib.model.base import Model

from qlib_ext.errors import ConfigError, DataError, NotFittedError
from qlib_ext.models.keeping import active_recorder, kept_folder
from qlib_ext.models.member import as_scores, fit_key, fit_member, logger, model_class, recorded_as
from qlib_ext.models.rolling import RollingRetrain
from qlib_ext.signatures import keywords

AVERAGES = ("rank", "z")
_SEED_NAMES = ("seed", "random_state", "random_seed")
_SEED_OF_LIBRARY = {"LGBModel": "seed", "DEnsembleModel": "seed", "XGBModel": "seed", "CatBoostModel": "random_seed"}
"""Qlib's models that hand their keywords on to a library."""


class Ensemble(Model):
    """The mean of members' scores, made comparable day by day first.

    The score of a stock is the mean over members of its rank or z-score among the stocks of the day that every member scores
    (`average_scores`). Members that are finished when a fit is interrupted are used again. In an active recorder, the scores of each
    member on the test segment go to ``members/pred_<name>.pkl``, its metrics and files to ``<name>.*`` and ``members/<name>/``.

    Args:
        model: class, module_path and kwargs of any Qlib model, also of `RollingRetrain`; one member a seed, named ``seed_<seed>``.
        seeds: whole numbers; a seed that the kwargs already have is replaced.
        members: instead of model and seeds: configurations by name, or a list of them, named ``<position>_<class>``; any of them may be
            an `Ensemble` itself (of seeds, say).
        average: ``rank`` or ``z``.
        seed_key: where the model takes its seed, dots between levels of its kwargs; None finds it (``trainer.seed`` of this
            package's models, else ``seed``, ``random_state`` or ``random_seed``).

    Learned: `models_`, name -> model.

    Raises:
        ConfigError: neither or both of model and members; no seeds, or the same member twice; unknown average; a model that cannot be
            made, or that takes no seed.
    """

    def __init__(self, model: dict | None = None, seeds: list[int] | None = None, members: list[dict] | dict[str, dict] | None = None,
                 average: str = "rank", seed_key: str | None = None):
        if average not in AVERAGES:
            raise ConfigError(f"average={average!r} is unknown; choose one of {AVERAGES}")
        if (model is None) == (members is None) or (members is not None and (seeds is not None or seed_key is not None)):
            raise ConfigError("Ensemble takes either model and seeds, or members")
        if members is None:
            self.members = _seeded(model, seeds, seed_key)
        else:
            self.members = _listed(members)
        self.average = average

    def fit(self, dataset, reweighter=None) -> "Ensemble":
        """Fit every member on the dataset."""
        models = {}
        with kept_folder("ensembles", fit_key(dataset, list(self.members.values()), list(self.members))) as folder:
            for number, (name, config) in enumerate(self.members.items(), 1):
                print(f"member {number} of {len(self.members)}: {name}", flush=True)
                models[name] = fit_member(config, dataset, reweighter, name, "members", folder)
        self.models_ = models
        return self

    def predict(self, dataset, segment="test") -> pd.Series:
        """Averaged scores of a segment.

        Returns:
            Series ``score`` on (datetime, instrument), sorted; only stocks that every member scores on the day.

        Raises:
            NotFittedError: before `fit`. DataError: members score different days.
        """
        if not hasattr(self, "models_"):
            raise NotFittedError("Ensemble has no members yet: call fit, or load a fitted one")
        scores = {}
        for name, model in self.models_.items():
            with recorded_as(name, "members"):  # some of Qlib's models take no segment
                prediction = model.predict(dataset) if isinstance(segment, str) and segment == "test" else model.predict(dataset, segment)
            scores[name] = as_scores(prediction, name)
        if isinstance(segment, str) and segment == "test":
            _record(scores)
        return average_scores(_common(scores), self.average)


def average_scores(table: pd.DataFrame, average: str) -> pd.Series:
    """Mean over the columns of per-day ranks or z-scores.

    ``rank``: ``(r - 1) / (n - 1)``, r the average-tie rank among the n rows of the day, in [0, 1]; 0.5 where n = 1.
    ``z``: ``(s - mean) / std`` with the standard deviation divided by n; 0 on a day without differences.

    Args:
        table: finite scores on (datetime, instrument), a column a member.

    Returns:
        float64 Series ``score`` on the table's index.
    """
    table = table.astype("float64")
    days = table.groupby(level="datetime")
    if average == "rank":
        others = days.transform("size") - 1
        standard = (days.rank() - 1).div(others.where(others > 0), axis=0).fillna(0.5)
    else:
        differs = days.transform("max") > days.transform("min")
        standard = ((table - days.transform("mean")) / days.transform("std", ddof=0)).where(differs, 0.0)
    return standard.mean(axis=1).rename("score")


def _seeded(model: dict, seeds, key: str | None) -> dict[str, dict]:
    """name -> configuration, one a seed."""
    if not isinstance(seeds, (list, tuple)) or not seeds or any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ConfigError(f"seeds={seeds!r}: give a list of whole numbers, not negative")
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds={seeds!r} name a seed twice: that member would count double")
    key = key or _seed_key(model)
    members = {}
    for seed in seeds:
        config = copy.deepcopy(model)
        place, *inner = "kwargs", *key.split(".")
        level = config
        for part in (place, *inner[:-1]):
            level[part] = level.get(part) or {}
            level = level[part]
            if not isinstance(level, dict):
                raise ConfigError(f"seed_key={key!r}: {part!r} of the model is {level!r}, which holds no keywords")
        level[inner[-1]] = seed
        model_class(config, f"Ensemble's model with seed_key {key!r}")
        members[f"seed_{seed}"] = config
    return members


def _seed_key(model: dict) -> str:
    """Where a model takes its seed, dots between levels of its kwargs.

    Raises:
        ConfigError: it cannot be found.
    """
    found = model_class(model, "Ensemble's model")
    if issubclass(found, RollingRetrain):
        return f"model.kwargs.{_seed_key(model['kwargs']['model'])}"
    if hasattr(found, "net_class"):
        return "trainer.seed"
    known = keywords(found).names
    key = next((name for name in _SEED_NAMES if name in known), _SEED_OF_LIBRARY.get(found.__name__))
    if key is None:
        raise ConfigError(f"where {found.__name__} takes its seed is not known (its keywords: {sorted(known)}): give seed_key")
    return key


def _listed(members) -> dict[str, dict]:
    """name -> configuration of members that were given whole."""
    if not isinstance(members, (list, tuple, dict)) or not members:
        raise ConfigError(f"members={members!r}: give a list of models, each with class, module_path and kwargs, or name: model")
    named = list(members.items() if isinstance(members, dict) else enumerate(members))
    for number, (name, config) in enumerate(named):
        if not re.fullmatch(r"[\w-]+", str(name)):
            raise ConfigError(f"members: {name!r} names files and metrics: use letters, digits, _ and -")
        model_class(config, f"Ensemble's member {name}")
        if config in [other for _, other in named[:number]]:
            raise ConfigError(f"member {name} of the ensemble is the same as an earlier one: it would count double")
    return {str(name) if isinstance(members, dict) else f"{name}_{config['class'].rsplit('.', 1)[-1]}": config for name, config in named}


def _common(scores: dict[str, pd.Series]) -> pd.DataFrame:
    """The members' scores on the pairs that all of them score.

    Raises:
        DataError: they score different days.
    """
    first, most = next(iter(scores)), max(len(series) for series in scores.values())
    scores = {name: series.dropna() for name, series in scores.items()}
    days = {name: set(series.index.get_level_values("datetime")) for name, series in scores.items()}
    for name in scores:
        other = sorted(days[name] ^ days[first])
        if other:
            raise DataError(f"members {first!r} and {name!r} score different days, {len(other)} of them, first {other[0]:%Y-%m-%d}: "
                            "an average needs the same days from all")
    table = pd.concat(scores, axis=1, join="inner").sort_index()
    if len(table) < most:
        logger.warning(f"{most - len(table)} of {most} (day, stock) pairs are left out: not every member scores them")
    for name in list(scores)[1:]:
        if table[name].equals(table[first]):
            logger.warning(f"members {first!r} and {name!r} give the same scores: what sets them apart has no effect on this model")
    return table


def _record(scores: dict[str, pd.Series]) -> None:
    recorder = active_recorder()
    if recorder is not None:
        frames = {f"pred_{name}.pkl": series.to_frame() for name, series in scores.items()}
        recorder.save_objects(artifact_path="members", **frames)
