"""A panel for rules that learn online, and models small enough for many fits."""
from functools import cache

import numpy as np
import torch
from torch import nn

from qlib_ext.data.panel import Panel
from qlib_ext.models.base import TorchModel
from small_panels import QUIET, small_panel

REACH = 3
TASK = 5
RULES = {
    "incremental": {"name": "incremental", "task_length": TASK},
    "maml": {"name": "maml", "task_length": TASK, "first_order": False},
    "doubleadapt": {"name": "doubleadapt", "task_length": TASK, "adapter_scale": 1.0},
    "before_close": {"name": "doubleadapt", "task_length": TASK, "update": "before_close", "support": 7, "first_order": False,
                     "adapter": "dense", "label_gate": "window", "pretrain_epochs": 1},
}


def online_panel(**changes) -> Panel:
    """80 days whose labels are known three days later."""
    return small_panel(**{"days": 80, "stocks": 14, "segments": {"train": (0, 40), "valid": (43, 55), "test": (58, 80)},
                          "meta": {"embargo": REACH}, **changes})


class TinyNet(nn.Module):
    """One hidden layer on the last day and the mean of the window."""

    def __init__(self, d_feat, hidden_size=4, dropout=0.1):
        super().__init__()
        self.hidden, self.drop, self.head = nn.Linear(2 * d_feat, hidden_size), nn.Dropout(dropout), nn.Linear(hidden_size, 1)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.hidden(torch.cat([x[:, -1], x.mean(dim=1)], dim=1))))).squeeze(-1)


class Tiny(TorchModel):
    net_class = TinyNet

    def __init__(self, d_feat=None, hidden_size=4, dropout=0.1, **options):
        super().__init__(dict(d_feat=d_feat, hidden_size=hidden_size, dropout=dropout), **options)


def model(rule, net=Tiny, epochs=2, trainer=None, **options):
    """A small model under a rule."""
    return net(**options, rule=rule, trainer={**QUIET, "epochs": epochs, "resume": False, "lr": 3e-3, **(trainer or {})})


@cache
def fitted(name: str) -> TorchModel:
    """`RULES[name]` on `online_panel()`; scoring does not change it."""
    return model(RULES[name]).fit_panel(online_panel())


def scores(model_, panel: Panel, first: int, last: int) -> np.ndarray:
    """``[t, n]`` scores of some days, NaN elsewhere."""
    days, stocks, values = model_.predict_panel(panel.view((first, last)))
    grid = np.full(panel.rows.shape, np.nan, np.float32)
    grid[days, stocks] = values
    return grid


def same(first: np.ndarray, second: np.ndarray) -> bool:
    return first.tobytes() == second.tobytes()


def weights(model_) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model_.net_.parameters()])


torch.set_num_threads(1)
