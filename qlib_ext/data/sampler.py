"""One day per batch: the Batch and the object that gathers it (numpy and torch only)."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from qlib_ext.data.panel import Panel
from qlib_ext.errors import DataError


@dataclass
class Batch:
    """One trading day.

    ``x`` ``[n, l, f]`` (or a dict of blocks when the panel has several; l counts days times bars), ``y`` ``[n, h]`` labels for the loss
    (NaN = none),
    ``mask`` ``[n, h]`` bool = finite label, ``y_raw`` ``[n, h]`` raw labels, ``day`` position, ``date`` datetime64[D],
    ``stocks`` ``[n]`` positions in the panel's instruments, ``aux`` name -> ``[m]`` (per day) or ``[n, k]`` (per stock), gathered when it
    is asked for.
    Stocks without a label stay in it. ``columns`` names the columns of aux entries, where the panel knows them.
    """

    x: torch.Tensor | dict[str, torch.Tensor]
    y: torch.Tensor
    mask: torch.Tensor
    y_raw: torch.Tensor
    day: int
    date: np.datetime64
    stocks: np.ndarray
    aux: dict[str, torch.Tensor] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)


class _OnDemand(UserDict):
    """A dict whose values are made, by functions without arguments, when they are first asked for."""

    def __getitem__(self, name):
        if callable(self.data[name]):
            self.data[name] = self.data[name]()
        return self.data[name]


class DaySampler:
    """Gathers the batch of any day of a panel on a device.

    Args:
        panel: the panel (or a view of it).
        device: where the tables are held and batches come out; on a GPU a table is copied there once, those of aux when they are asked for.
        beside: a sampler of another view of the same panel on the same device, whose tables are used again.
    """

    def __init__(self, panel: Panel, device: str | torch.device = "cpu", beside: DaySampler | None = None):
        self.panel = panel
        self.device = torch.device(device)
        shared = beside is not None and beside.device == self.device
        self._tables: dict[int, tuple[np.ndarray, torch.Tensor]] = beside._tables if shared else {}
        self._values = {name: self._put(block.values) for name, block in panel.blocks.items()}
        self._label = self._put(panel.label if panel.training else panel.label_eval)
        self._raw = self._put(panel.label_raw)

    def _put(self, array: np.ndarray) -> torch.Tensor:
        """The array on the device (shared on the CPU); float16 tables of a packed panel become float32 when gathered."""
        if id(array) not in self._tables:  # the array is held beside its copy, so that its id stays its own
            self._tables[id(array)] = array, torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self.device)
        return self._tables[id(array)][1]

    def batch(self, day: int) -> Batch:
        """The batch of day position ``day``.

        Raises:
            DataError: nobody can be scored that day.
        """
        panel = self.panel
        stocks = panel.stocks(day)
        if len(stocks) == 0:
            raise DataError(f"{panel.days[day]}: no stock of the universe has a row; ask `scored_days()` for the days to use")
        x = {name: self._gather(name, day, stocks) for name in panel.blocks}
        row = torch.from_numpy(panel.rows[day, stocks].astype(np.int64)).to(self.device)
        y = self._label.index_select(0, row)
        aux = _OnDemand({name: partial(self._aux_of, values, day) for name, values in panel.day_aux.items()})
        aux.update({name: partial(self._aux_of, values, row) for name, values in panel.stock_aux.items()})
        return Batch(x=x if len(x) > 1 else next(iter(x.values())), y=y, mask=torch.isfinite(y), y_raw=self._raw.index_select(0, row),
                     day=int(day), date=panel.days[day], stocks=stocks, aux=aux, columns=panel.meta.get("aux_columns", {}))

    def _aux_of(self, values: np.ndarray, place: int | torch.Tensor) -> torch.Tensor:
        table = self._put(values)
        return table.index_select(0, place).float() if torch.is_tensor(place) else table[place]

    def _gather(self, name: str, day: int, stocks: np.ndarray) -> torch.Tensor:
        block = self.panel.blocks[name]
        index = torch.from_numpy(np.ascontiguousarray(self.panel.window_rows(day, stocks, block.window))).to(self.device)
        x = self._values[name].index_select(0, index.reshape(-1)).float()
        x = x.reshape(len(stocks), block.steps, -1)                                     # bars of a day follow each other
        return block.transform(x) if block.transform else x


def epoch_order(units: np.ndarray, seed: int, epoch: int, count: int | None = None) -> np.ndarray:
    """The units of one epoch in random order, all or a random subset; depends on (seed, epoch) alone, so a fit can resume."""
    order = np.random.default_rng([seed, epoch]).permutation(len(units))
    return units[order[:count]]
