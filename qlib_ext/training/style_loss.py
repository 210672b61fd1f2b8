"""The loss of Meta_RiskControl: correlation with the label, less a price for the styles that the scores lean on."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.training.measure import MIN_LABELLED, VARIANCE_FLOOR, Loss, pearson, z_score

STYLE, TREND = "style", "style_trend"
USUAL_WEIGHTS = {"size": 2.0, "residual_volatility": 2.0}
"""Styles that weigh more where no weights are given: the widest unintended bets in A-shares."""


class StyleIC(Loss):
    """`-IC + s * (lam_dev * deviation + lam_mom * momentum)` of a day, s rising from 0 to 1 over the first `warm_up` epochs.

    With q the z-scores of the day's n scores (unlabelled stocks too) and S `[n, k]` the exposures, each column of mean 0 and standard
    deviation 1 over the stocks that have one and 0 for the others:

        e = S'q / n                     exposures of the scores: correlations with each style        (`exposure: score`)
        e = S'(softmax(q / T) - 1/n)    exposures of what is bought, in standard deviations          (`exposure: portfolio`)
        deviation = sum_k c_k max(|e_k| - tol, 0)^2
        momentum  = sum_k c_k (e_k - e_k of `lag` trading days before)^2                             (`momentum: change`)
                  = max(sum_k e_k m_k, 0)^2, m the trend of style returns                            (`momentum: trend`)

    IC looks at labelled stocks, e at all: what is held need not be labelled. The momentum of `change` is left out where there is no
    earlier day. Several horizons: the mean over those that have two labelled stocks.

    Args:
        lam_dev, lam_mom: weights of the two penalties.
        tol: exposure that is free.
        momentum, exposure: see above.
        temperature: T, small for a portfolio of few stocks.
        weights: c, by name of style or column by column; None: 2 for size and residual volatility, else 1.
        warm_up: epochs; 0: full penalty from the start.
        lag: trading days of `change`, the gap between two rebalances.
        unfreeze: whether the earlier day has a gradient too.
        horizon: see `Loss`.

    Raises:
        ConfigError: a value out of range, an unknown `momentum` or `exposure`; in a call: no exposures in `batch.aux`, a style in
            `weights` that they do not have.
        ShapeError: in a call: weights or trend that are not `[k]`.

    The idea (outputs times exposures in a loss on IC, style deviation, style momentum) is that of the broker's report, which gives no
    formula: both readings of style momentum, the forms of e, and all values are this project's choice.
    """

    name = "style_ic"

    def __init__(self, lam_dev: float = 1.0, tol: float = 0.05, lam_mom: float = 0.5, momentum: str = "change", exposure: str = "score",
                 temperature: float = 0.3, weights: Union[Mapping[str, float], Sequence[float], None] = None, warm_up: float = 3.0,
                 lag: int = 5, unfreeze: bool = False, horizon: Optional[int] = None) -> None:
        super().__init__(horizon)
        self._positive(zero=True, lam_dev=lam_dev, tol=tol, lam_mom=lam_mom, warm_up=warm_up)
        self._positive(temperature=temperature, lag=lag)
        for key, value, known in (("momentum", momentum, ("change", "trend")), ("exposure", exposure, ("score", "portfolio"))):
            if value not in known:
                raise ConfigError(f"loss {self.name!r}: {key} must be one of {known}, got {value!r}")
        if not isinstance(lag, int):
            raise ConfigError(f"loss {self.name!r}: lag must be a number of trading days, got {lag!r}")
        if weights is not None:
            weights = dict(weights) if isinstance(weights, Mapping) else list(weights)
            named = weights if isinstance(weights, dict) else dict(enumerate(weights))
            self._positive(zero=True, **{f"weights[{key}]": value for key, value in named.items()})
        self.lam_dev, self.tol, self.lam_mom, self.momentum = float(lam_dev), float(tol), float(lam_mom), momentum
        self.exposure, self.temperature, self.weights, self.warm_up = exposure, float(temperature), weights, float(warm_up)
        self.unfreeze, self.strength = bool(unfreeze), 1.0
        self.aux = () if not (lam_dev or lam_mom) else (STYLE, TREND) if lam_mom and momentum == "trend" else (STYLE,)
        self.lag = lag if lam_mom and momentum == "change" else None

    def at(self, epochs: Optional[float]) -> None:
        self.strength = 1.0 if epochs is None or not self.warm_up else min(epochs / self.warm_up, 1.0)

    def day_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return -pearson(prediction, label)

    def __call__(self, output: Tensor, batch: Any, earlier: Optional[Tuple[Tensor, Any]] = None) -> Tensor:
        loss = super().__call__(output, batch)
        if not self.aux:
            return loss
        style = self._entry(batch, STYLE)
        now = [self.exposures(score, style) for score in self._learnt(output, batch, batch.mask)]
        if not now or not self.strength:
            return loss
        weights = self._weights(batch, style)
        parts = [self.lam_dev * (weights * torch.relu(e.abs() - self.tol).pow(2)).sum() for e in now]
        if TREND in self.aux:
            trend = self._trend(batch, style)
            parts += [self.lam_mom * torch.relu((e * trend).sum()).pow(2) for e in now]
        elif self.lag and earlier is not None:
            before = [self.exposures(score, self._entry(earlier[1], STYLE)) for score in self._learnt(*earlier, batch.mask)]
            parts += [self.lam_mom * (weights * (e - past).pow(2)).sum() for e, past in zip(now, before)]
        return loss + self.strength / len(now) * torch.stack(parts).sum()

    def exposures(self, score: Tensor, style: Tensor) -> Tensor:
        """e `[k]` of scores `[n]` (those that are not finite are left out) with exposures `[n, k]` (NaN unknown)."""
        there = torch.nonzero(torch.isfinite(score)).squeeze(1)
        score, style = score.index_select(0, there), standardized(style.index_select(0, there).to(score.dtype))
        if not len(there):
            return torch.zeros_like(style[:0].sum(dim=0))
        q = z_score(score)
        held = q / len(there) if self.exposure == "score" else torch.softmax(q / self.temperature, dim=0) - 1 / len(there)
        return style.T @ held

    def _learnt(self, output: Tensor, batch: Any, labelled: Tensor) -> List[Tensor]:
        """Columns of an output that are learnt on the day whose labels are `labelled [n, h]`."""
        columns, _, _ = self.columns(output, batch.y, batch.mask)
        enough = labelled.sum(dim=0) >= MIN_LABELLED
        enough = enough if self.horizon is None else enough[self.horizon:self.horizon + 1]
        columns = columns.float() if columns.dtype in (torch.float16, torch.bfloat16) else columns
        return [columns[:, k] for k in range(columns.shape[1]) if enough[k]]

    def _entry(self, batch: Any, name: str) -> Tensor:
        found = getattr(batch, "aux", {}).get(name)
        if found is None:
            loader = {STYLE: "StyleLoader", TREND: "StyleTrendLoader"}[name]
            raise ConfigError(f"loss {self.name!r} needs the aux entry {name!r}: give the dataset `aux: {{{name}: {{class: {loader}, "
                              "module_path: qlib_ext.data.style_loader}}`, or lam_dev: 0 and lam_mom: 0")
        return found

    def _weights(self, batch: Any, style: Tensor) -> Tensor:
        k, names = style.shape[1], getattr(batch, "columns", {}).get(STYLE)
        given = self.weights
        if isinstance(given, dict):
            unknown = sorted(set(given) - set(names or ()))
            if unknown:
                raise ConfigError(f"loss {self.name!r}: weights name {unknown}, the styles are {names}")
        if given is None or isinstance(given, dict):
            by_name = USUAL_WEIGHTS if given is None else given
            given = [by_name.get(name, 1.0) for name in names or [""] * k]
        if len(given) != k:
            raise ShapeError(f"loss {self.name!r}: {len(given)} weights for {k} styles")
        return torch.tensor(given, dtype=style.dtype, device=style.device)

    def _trend(self, batch: Any, style: Tensor) -> Tensor:
        trend, columns = self._entry(batch, TREND), getattr(batch, "columns", {})
        if trend.shape != style.shape[1:] or columns.get(TREND) != columns.get(STYLE):
            raise ShapeError(f"loss {self.name!r}: the trend is of {columns.get(TREND, tuple(trend.shape))}, the exposures of "
                             f"{columns.get(STYLE, tuple(style.shape))}: give both loaders the same styles")
        return torch.nan_to_num(trend)


def standardized(style: Tensor) -> Tensor:
    """Columns of `[n, k]` with mean 0 and standard deviation 1 over the stocks known; 0 where unknown (NaN), or where all are alike."""
    known = torch.isfinite(style)
    count = known.sum(dim=0).clamp_min(1)
    values = torch.where(known, style, torch.zeros_like(style))
    values = torch.where(known, values - values.sum(dim=0) / count, torch.zeros_like(values))
    variance = values.pow(2).sum(dim=0) / count
    return torch.where(variance > VARIANCE_FLOOR, values / (variance + VARIANCE_FLOOR).sqrt(), torch.zeros_like(values))
