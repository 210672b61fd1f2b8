"""Losses by name: objects `(output, batch, earlier) -> scalar` that see one day and never an unlabelled stock.

Axis letters: n stock of the day, s labelled stock of the day, h label horizon.

Common contract of every loss here
----------------------------------
- `output` is `[n]` or `[n, h]`, `batch.y` is `[n, h]` and `batch.mask` is a bool `[n, h]` (True = labelled). Shapes are compared
  before anything is computed; nothing is ever broadcast (`[n] - [n, 1]` would silently train on all pairs).
- Stocks whose mask is False are left out by indexing, so their label (NaN included) and their output reach neither the value nor
  the gradient: the gradient at their output is exactly zero.
- With several horizons the loss is the mean over those horizons that have at least two labelled stocks.
- A day on which no horizon has two labelled stocks gives a zero that is attached to the graph (its gradient is zero everywhere),
  so a training step on such a day is harmless.
- Labels are used as they are given: normalise them per day before (`CSZScoreNorm` in the learning table).
- `earlier` is for losses that compare two days (`Loss.lag`); the others ignore it.
- The value does not depend on the order of the stocks. Half-precision outputs are lifted to float32 first.
"""

from __future__ import annotations

import inspect
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import torch
from torch import Tensor
from torch.nn import functional

from qlib_ext.errors import ConfigError, ShapeError
from qlib_ext.training.measure import MIN_LABELLED, VARIANCE_FLOOR, Loss, pearson, rank_average, rank_fraction, soft_rank
from qlib_ext.training.style_loss import StyleIC


class MSE(Loss):
    """Mean squared error over the labelled stocks of the day."""

    name = "mse"

    def day_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return (prediction - label).pow(2).mean()


class WeightedMSE(Loss):
    """`sum_i w_i (prediction_i - label_i)^2 / sum_i w_i`, heavier where winners are: four forms of the weight.

    With `p_i = (rank(y_i) - 1) / (s - 1)` in [0, 1] over the day's labelled stocks (average ties):

    ============= ============================================================ ===========================================
    form          w_i                                                          options (defaults)
    ============= ============================================================ ===========================================
    exponential   `2^{-(1 - p_i) / half_life}`                                 half_life=0.5 (the best weighs 4 x the worst)
    step          `1 + kappa * 1[p_i >= 1 - quantile]`                         kappa=2, quantile=0.2
    linear        `p_i` (the worst weighs nothing)
    prediction    `1 + kappa * sigmoid((phat_i - threshold) / width)`,         kappa=2, threshold=0.8, width=0.05,
                  phat = p of the detached prediction, times the exponential   half_life=None
                  weight of the label when `half_life` is given
    ============= ============================================================ ===========================================

    The weights depend on the label through its ranks only. A label-dependent weight moves the minimiser to `E[w y|x] / E[w|x]`,
    above `E[y|x]`, and most for the stocks with the widest outcomes: the score drifts towards volatility. "prediction" weighs by the
    score alone and leaves the minimiser where it is; the workflows but DecompGRU's use it (README). Large `half_life` gives the
    plain MSE.

    Args:
        form: one of the four.
        horizon: see `Loss`.
        options: of the form, see the table.

    Raises:
        ConfigError: unknown form, or an option that the form does not have.

    Source: the text of the report gives no formula; "exponential" is this project's choice for it.
    """

    name = "weighted_mse"
    forms: Dict[str, Dict[str, Optional[float]]] = {
        "exponential": {"half_life": 0.5},
        "step": {"kappa": 2.0, "quantile": 0.2},
        "linear": {},
        "prediction": {"kappa": 2.0, "threshold": 0.8, "width": 0.05, "half_life": None},
    }

    def __init__(self, form: str = "exponential", horizon: Optional[int] = None, **options: Optional[float]) -> None:
        super().__init__(horizon)
        if form not in self.forms:
            raise ConfigError(f"loss 'weighted_mse': unknown form {form!r}; the forms are {sorted(self.forms)}")
        unknown = sorted(set(options) - set(self.forms[form]))
        if unknown:
            raise ConfigError(f"loss 'weighted_mse': form {form!r} does not know {unknown}; "
                              f"it takes {sorted(self.forms[form])} besides 'form' and 'horizon'")
        self.form = form
        self.options = {**self.forms[form], **options}
        self._positive(**{key: value for key, value in self.options.items()
                          if key in ("width", "kappa") or (key == "half_life" and (value is not None or form == "exponential"))})
        for key in ("quantile", "threshold"):
            value = self.options.get(key, 0.5)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
                raise ConfigError(f"loss 'weighted_mse': {key} must be a number between 0 and 1, got {value!r}")

    def weights(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Weights `[s]` of complete `prediction [s]` and `label [s]`; they carry no gradient."""
        position, options = rank_fraction(label), self.options
        if self.form == "step":
            # the tolerance keeps a stock that lies exactly on the border inside, whatever the rounding of 1 - quantile
            return 1 + options["kappa"] * (position >= 1 - options["quantile"] - 1e-6).to(position.dtype)
        if self.form == "linear":
            return position
        weight = torch.ones_like(position)
        if self.form == "prediction":
            closeness = (rank_fraction(prediction) - options["threshold"]) / options["width"]
            weight = 1 + options["kappa"] * torch.sigmoid(closeness)
        if options["half_life"] is not None:
            weight = weight * torch.exp2(-(1 - position) / options["half_life"])
        return weight

    def day_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        weight = self.weights(prediction, label)
        return (weight * (prediction - label).pow(2)).sum() / weight.sum()


class IC(Loss):
    """Negative Pearson correlation of prediction and label over the day; 0 where the label or the prediction is constant."""

    name = "ic"

    def day_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return -pearson(prediction, label)


class FactorIC(Loss):
    """Negative Pearson correlation of each factor of the day with the label, the mean over factors.

    The output is `[n, m]`, m factors for any number of labels; several labels: the mean over those learnt that have two labelled
    stocks. The score is the mean of the factors. For factors that are orthogonal to each other (`OrthogonalHead`): others would all
    learn the same.
    """

    name = "factor_ic"

    def columns(self, output: Tensor, label: Tensor, mask: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        said = f"loss {self.name!r}: output {tuple(output.shape)}, label {tuple(label.shape)}, mask {tuple(mask.shape)}"
        if output.dim() != 2 or label.dim() != 2 or mask.shape != label.shape or len(output) != len(label) or mask.dtype != torch.bool:
            raise ShapeError(f"{said}: output must be factors [n, m], label [n, h] and mask a bool [n, h]")
        if self.horizon is not None and self.horizon >= label.shape[1]:
            raise ShapeError(f"{said}: horizon {self.horizon} is not among the {label.shape[1]} label column(s)")
        one = slice(None) if self.horizon is None else slice(self.horizon, self.horizon + 1)
        return output, label[:, one], mask[:, one]

    def __call__(self, output: Tensor, batch: Any, earlier: Optional[Tuple[Tensor, Any]] = None) -> Tensor:
        output, label, mask = self.columns(output, batch.y, batch.mask)
        output = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        parts = []
        for column in range(label.shape[1]):
            chosen = torch.nonzero(mask[:, column]).squeeze(1)
            if len(chosen) >= MIN_LABELLED:
                factors, y = output.index_select(0, chosen), label[:, column].index_select(0, chosen)
                parts.append(-torch.stack([pearson(factor, y.to(factor.dtype)) for factor in factors.unbind(dim=1)]).mean())
        return torch.stack(parts).mean() if parts else output[:0].sum()

    def score(self, output: Tensor) -> Tensor:
        return output.mean(dim=1)


class RankIC(Loss):
    """Negative Pearson correlation of soft ranks of the prediction (`soft_rank`) with the average-tie ranks of the label.

    It goes to the negative Spearman correlation as `temperature` goes to 0; small temperatures have gradients only between
    neighbours.

    Args:
        temperature: in units of the day's standard deviation of the prediction.
        horizon: see `Loss`.
    """

    name = "rank_ic"

    def __init__(self, temperature: float = 0.1, horizon: Optional[int] = None) -> None:
        super().__init__(horizon)
        self._positive(temperature=temperature)
        self.temperature = float(temperature)

    def day_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return -pearson(soft_rank(prediction, self.temperature), rank_average(label))


class CCC(Loss):
    """One minus the concordance correlation, `1 - 2 cov / (var_p + var_y + (mean_p - mean_y)^2)`, moments divided by s.

    Zero only where prediction and label agree in value; 1 where the prediction is constant. A day on which both are the same
    constant gives 1. Source: Lin 1989.
    """

    name = "ccc"

    def day_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        deviation, centred = prediction - prediction.mean(), label - label.mean()
        covariance = (deviation * centred).mean()
        distance = deviation.pow(2).mean() + centred.pow(2).mean() + (prediction.mean() - label.mean()).pow(2)
        return 1 - 2 * covariance / (distance + VARIANCE_FLOOR)


class Huber(Loss):
    """Mean over the day of `e^2 / 2` where `|e| <= delta`, else `delta (|e| - delta / 2)`."""

    name = "huber"

    def __init__(self, delta: float = 1.0, horizon: Optional[int] = None) -> None:
        super().__init__(horizon)
        self._positive(delta=delta)
        self.delta = float(delta)

    def day_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return functional.huber_loss(prediction, label, delta=self.delta)


class ExplainedVariance(Loss):
    """What risk factors leave of the returns of several days, plus a price for factors that repeat each other.

        mean over h of (1 - R2 of y_h on F)  +  penalty * tr((F'F)^-1) n / k

    Each R2 is of ordinary least squares with a constant over the stocks labelled for h; the second part is the mean variance inflation
    of the factors, `penalty` for columns of variance 1 that are orthogonal, and more for others. Both systems carry a ridge of 1e-5 n.
    Unlike other losses, this second part sees every stock of the day: unlabelled ones have a gradient through it.

    Args:
        penalty: weight of the variance inflation.

    Source: Lin, Zhou, Liu and Bian 2021 (Deep Risk Model, arXiv 2107.05201). The output is `[n, k]`, k factors for any number of labels.
    """

    name, scores, ridge = "explained_variance", False, 1e-5

    def __init__(self, penalty: float = 0.01) -> None:
        super().__init__(None)
        self._positive(zero=True, penalty=penalty)
        self.penalty = float(penalty)

    def __call__(self, output: Tensor, batch: Any, earlier: Optional[Tuple[Tensor, Any]] = None) -> Tensor:
        """The loss of a day: `output [n, k]`, `batch.y [n, h]`, `batch.mask [n, h]`; horizons of fewer than k + 2 stocks are left out."""
        label, mask = batch.y, batch.mask
        if output.dim() != 2 or label.dim() != 2 or mask.shape != label.shape or len(output) != len(label) or mask.dtype != torch.bool:
            raise ShapeError(f"loss {self.name!r}: output {tuple(output.shape)}, label {tuple(label.shape)}, mask {tuple(mask.shape)}: "
                             "output must be [n, k], label [n, h] and mask a bool [n, h]")
        factors = output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
        n, k = factors.shape
        enough = mask.sum(dim=0) >= k + 2
        if not bool(enough.any()):
            return output[:0].sum()
        return self._unexplained(factors, label[:, enough].to(factors.dtype), mask[:, enough]) + self.penalty * self._inflation(factors)

    def _unexplained(self, factors: Tensor, label: Tensor, mask: Tensor) -> Tensor:
        weight = mask.to(factors.dtype)
        count = weight.sum(dim=0)                                                                   # [h]
        y = torch.where(mask, label, torch.zeros_like(label))
        y = (y - y.sum(dim=0) / count) * weight
        centre = torch.einsum("nk,nh->hk", factors, weight) / count[:, None]
        squared = torch.einsum("nk,nh,nl->hkl", factors, weight, factors) - count[:, None, None] * centre[:, :, None] * centre[:, None, :]
        mixed = torch.einsum("nk,nh->hk", factors, y)
        coefficient = torch.cholesky_solve(mixed[:, :, None], self._factor(squared, count))[:, :, 0]
        total = y.pow(2).sum(dim=0)
        explained = (2 * (coefficient * mixed).sum(dim=1) - torch.einsum("hk,hkl,hl->h", coefficient, squared, coefficient))
        return (1 - explained / total.clamp_min(torch.finfo(total.dtype).tiny))[total > 0].mean() if bool((total > 0).any()) else total.sum()

    def _inflation(self, factors: Tensor) -> Tensor:
        n, k = factors.shape
        count = torch.full((), float(n), dtype=factors.dtype, device=factors.device)
        lower = self._factor(factors.T @ factors, count)
        inverse = torch.linalg.solve_triangular(lower, torch.eye(k, dtype=factors.dtype, device=factors.device), upper=False)
        return inverse.pow(2).sum() * n / k                                                         # tr((L L')^-1) = |L^-1|^2

    def _factor(self, squared: Tensor, count: Tensor) -> Tensor:
        eye = torch.eye(squared.shape[-1], dtype=squared.dtype, device=squared.device)
        return torch.linalg.cholesky(squared + self.ridge * count[..., None, None] * eye)


LOSSES = {kind.name: kind for kind in (MSE, WeightedMSE, IC, RankIC, CCC, Huber, FactorIC, ExplainedVariance, StyleIC)}
"""The losses a configuration can name."""


def _valid_keywords(kind: type) -> list:
    names = [p.name for p in inspect.signature(kind.__init__).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    names = [name for name in names if name != "self"]
    if kind is WeightedMSE:
        names += sorted({key for options in WeightedMSE.forms.values() for key in options})
    return names


def make_loss(spec: Union[str, Mapping[str, Any], Loss]) -> Loss:
    """A loss from its name, from `{"name": ..., keyword: value}`, or a `Loss` returned as it is.

    Raises:
        ConfigError: unknown name or keyword (the valid ones are listed), or a value out of range.
    """
    if isinstance(spec, Loss):
        return spec
    if isinstance(spec, str):
        spec = {"name": spec}
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise ConfigError(f"a loss is a name or a mapping with the key 'name', got {spec!r}; names: {sorted(LOSSES)}")
    keywords = {key: value for key, value in spec.items() if key != "name"}
    if spec["name"] not in LOSSES:
        raise ConfigError(f"unknown loss {spec['name']!r}; the losses are {sorted(LOSSES)}")
    kind = LOSSES[spec["name"]]
    valid = _valid_keywords(kind)
    unknown = sorted(set(keywords) - set(valid), key=str)
    if unknown:
        raise ConfigError(f"loss {kind.name!r} does not know {unknown}; it takes {valid}")
    return kind(**keywords)
