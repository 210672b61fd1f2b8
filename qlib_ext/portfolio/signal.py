"""Signals for strategies: a day's scores by stock, from predictions, a recorder, or several of them blended."""

from __future__ import annotations

from typing import Any, Mapping, Sequence

import numpy as np
import pandas as pd
from qlib.backtest.signal import Signal, create_signal_from
from qlib.workflow import R

from qlib_ext.data.universe import index_levels
from qlib_ext.errors import ConfigError, DataError

NORMALIZED = {"zscore": lambda scores: (scores - scores.mean()) / scores.std(ddof=0) if scores.std(ddof=0) > 0 else scores * 0.0,
              "rank": lambda scores: scores.rank(pct=True) - 0.5, "none": lambda scores: scores}
"""How a part of a blend is brought to the others' scale, over a day's stocks."""


class DailySignal(Signal):
    """Predictions split by day once.

    Args:
        scores: series (or frame, its first column) by (datetime, instrument) in any order; NaN = no score.

    Raises:
        DataError: not such an index, or a (day, stock) twice.
    """

    def __init__(self, scores: pd.Series | pd.DataFrame):
        scores = scores.iloc[:, 0] if isinstance(scores, pd.DataFrame) else scores
        day, stock = index_levels(scores.index)
        if scores.index.has_duplicates:
            raise DataError(f"the signal scores {scores.index[scores.index.duplicated()][0]} twice: make the predictions again")
        values = scores.dropna()
        days, codes = values.index.get_level_values(day), values.index.get_level_values(stock).astype(str)
        flat = pd.Series(values.to_numpy(dtype=float), index=codes)
        self.by_day = {pd.Timestamp(one): flat.iloc[place].sort_index() for one,
                       place in pd.Series(days).groupby(np.asarray(days)).indices.items()}
        self.days = np.array(sorted(self.by_day), dtype="datetime64[ns]")

    def get_signal(self, start_time, end_time) -> pd.Series | None:
        """Scores of the last day from `start_time` to `end_time` that has any, by instrument; None without one."""
        place = int(np.searchsorted(self.days, np.datetime64(pd.Timestamp(end_time), "ns"), side="right")) - 1
        if place < 0 or self.days[place] < np.datetime64(pd.Timestamp(start_time).floor("D"), "ns"):
            return None
        return self.by_day[pd.Timestamp(self.days[place])]


class RecorderSignal(DailySignal):
    """The predictions of a recorder, by default of the latest finished one of an experiment.

    Raises:
        ConfigError: no such experiment or recorder. DataError: it has no predictions.
    """

    def __init__(self, experiment: str, recorder: str | None = None):
        super().__init__(find_recorder(experiment, recorder)[1])


class BlendedSignal(DailySignal):
    """Weighted mean of normalised scores, over the stocks and days that every part scores.

    Args:
        parts: each ``{experiment, recorder: null, weight: 1}`` or ``{signal: <PRED>, weight: 1}``.
        normalize: ``zscore`` or ``rank`` over a day's stocks, or ``none``.

    Raises:
        ConfigError: parts that are none, unknown keys, weights that are not finite or sum to 0. DataError: no day is common to all.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]], normalize: str = "zscore"):
        if normalize not in NORMALIZED:
            raise ConfigError(f"normalize={normalize!r}: choose one of {list(NORMALIZED)}")
        if not isinstance(parts, (list, tuple)) or not parts:
            raise ConfigError("BlendedSignal needs a list of parts: {experiment: .., weight: ..} or {signal: <PRED>, weight: ..}")
        weights = np.array([_weight(part) for part in parts])
        if weights.sum() == 0:
            raise ConfigError(f"BlendedSignal: weights {weights.tolist()} sum to 0")
        signals = [_part(part) for part in parts]
        days = sorted(set.intersection(*(set(one.by_day) for one in signals)))
        if not days:
            raise DataError("BlendedSignal: no day is scored by every part: give predictions of the same test segment")
        blended = {}
        for day in days:
            scores = pd.concat([one.by_day[day] for one in signals], axis=1, join="inner")
            blended[day] = sum(weight * NORMALIZED[normalize](scores.iloc[:, k]) for k, weight in enumerate(weights / weights.sum()))
        super().__init__(pd.concat(blended, names=["datetime", "instrument"]))


def _weight(part: Mapping[str, Any]) -> float:
    known = {"experiment", "recorder", "signal", "weight"}
    if not isinstance(part, Mapping) or set(part) - known or ("experiment" in part) == ("signal" in part):
        raise ConfigError(f"BlendedSignal: part {part if isinstance(part, str) else list(part)!r} must have experiment (and recorder) or "
                          "signal, and may have weight")
    weight = part.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not np.isfinite(weight):
        raise ConfigError(f"BlendedSignal: weight {weight!r} is no number")
    return float(weight)


def _part(part: Mapping[str, Any]) -> DailySignal:
    if "experiment" in part:
        return RecorderSignal(part["experiment"], part.get("recorder"))
    signal = make_signal(part["signal"])
    if not isinstance(signal, DailySignal):
        raise ConfigError(f"BlendedSignal: {type(signal).__name__} cannot be blended: give predictions, or an experiment")
    return signal


def make_signal(signal) -> Signal:
    """What Qlib takes as a signal, predictions split by day.

    Raises:
        ConfigError: a placeholder that nobody filled.
    """
    if isinstance(signal, str) and signal.startswith("<"):
        raise ConfigError(f"signal {signal} was not filled in: use the strategy inside PortAnaRecord or PortfolioRecord, or give "
                          "predictions")
    made = DailySignal(signal) if isinstance(signal, (pd.Series, pd.DataFrame)) else create_signal_from(signal)
    cached = getattr(made, "signal_cache", None)
    return DailySignal(cached) if isinstance(cached, (pd.Series, pd.DataFrame)) else made


def find_recorder(experiment: str, recorder: str | None = None) -> tuple[str, pd.DataFrame]:
    """A recorder's id and its `pred.pkl`; without an id the latest finished one that has it.

    Raises:
        ConfigError: no such experiment or recorder. DataError: it has no predictions.
    """
    known = R.list_experiments()
    if experiment not in known:
        raise ConfigError(f"experiment {experiment!r} is not there; it has {sorted(known)}: run its workflow first, or correct the name")
    runs = R.list_recorders(experiment_name=experiment)
    if recorder is not None and recorder not in runs:
        raise ConfigError(f"experiment {experiment!r} has no recorder {recorder!r}; it has {sorted(runs)[:5]}")
    finished = sorted((one for one in runs.values() if one.status == "FINISHED"), key=lambda one: str(one.start_time), reverse=True)
    for one in [runs[recorder]] if recorder is not None else finished:
        if "pred.pkl" in one.list_artifacts():
            return one.id, one.load_object("pred.pkl")
    raise DataError(f"experiment {experiment!r} has no finished recorder with predictions: run its workflow to the end")
