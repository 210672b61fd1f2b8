"""Seconds of one training epoch, as ratios inside one run: our panel, the same steps on gathered tensors, Qlib's sampler and loader.

    python scripts/bench/epoch.py [--stocks 1000] [--days 40] [--window 8] [--rounds 5] [--threads 1]

The three run the same network, loss and optimiser over the same (day, stock) samples, interleaved; the medians of the rounds are
compared. Qlib's loop is its own `TSDataSampler` behind a `DataLoader` with batches as large as a day (it cannot batch by day).
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import pandas as pd
import torch
from qlib.data.dataset import TSDataSampler
from torch.utils.data import DataLoader

from qlib_ext.data.panel import Block, Panel
from qlib_ext.data.sampler import DaySampler
from qlib_ext.models.gru import GRUNet
from qlib_ext.models.master import MASTERNet
from qlib_ext.training.loss import make_loss
from qlib_ext.training.rule import SupervisedRule, forward
from qlib_ext.training.trainer import Trainer, _Run


def make_data(stocks: int, days: int, window: int, features: int = 158, market: int = 63):
    """A panel without holes, and the same rows as Qlib's sampler wants them."""
    rng = np.random.default_rng(0)
    total = days + window - 1
    values = rng.standard_normal((total * stocks + 1, features), dtype=np.float32)
    values[-1] = np.nan
    label = rng.standard_normal((total * stocks + 1, 1), dtype=np.float32)
    rows = np.arange(total * stocks, dtype=np.int32).reshape(total, stocks)
    calendar = np.datetime64("2020-01-01") + np.arange(total)
    names = np.array([f"SH{600000 + k}" for k in range(stocks)])
    panel = Panel({"stock": Block(values, window, [f"f{k}" for k in range(features)])}, rows, calendar, names,
                  np.ones((total, stocks), bool), label, label, label, ["y"],
                  {"market": rng.standard_normal((total, market), dtype=np.float32)}, span=(window - 1, total), training=True)
    index = pd.MultiIndex.from_product([pd.DatetimeIndex(calendar), names], names=["datetime", "instrument"])
    frame = pd.DataFrame(np.concatenate([values[:-1], label[:-1]], axis=1), index=index)
    return panel, frame


def main() -> None:
    """Run and print one line a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("stocks", 1000), ("days", 40), ("window", 8), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    panel, frame = make_data(options.stocks, options.days, options.window)
    first = panel.days[panel.span[0]]
    ts = TSDataSampler(frame, pd.Timestamp(first), pd.Timestamp(panel.days[-1]), step_len=options.window)
    for title, net in (("GRU 64x2", GRUNet(158)), ("MASTER D=64", MASTERNet(158, 63, 64)), ("MASTER D=256", MASTERNet(158, 63, 256))):
        report(title, net, panel, ts, options)


def report(title: str, net: torch.nn.Module, panel: Panel, ts: TSDataSampler, options) -> None:
    rule, trainer = SupervisedRule(make_loss("mse")), Trainer(lr=1e-4, epochs=1, progress=False, resume=False)
    sampler = DaySampler(panel)
    units = rule.units(panel)
    run = _Run(trainer, net, rule, torch.device("cpu"), None)
    gathered = [sampler.batch(day) for day in units]
    market = gathered[0].aux["market"]
    loader = DataLoader(ts, batch_size=options.stocks, shuffle=True)

    def step(loss):
        run.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        run.optimizer.step()
        return loss.item()

    def ours():
        trainer._train_epoch(net, rule, run, sampler, units, 0)

    def bare():
        for batch in gathered:
            step(rule.loss(forward(net, batch), batch))

    def qlib():
        for data in loader:
            x, y = data[:, :, :-1].float(), data[:, -1, -1].float()
            output = net(x, market) if getattr(net, "aux", ()) else net(x)
            step(((output - y) ** 2).mean())

    seconds = {name: [] for name in ("ours", "bare", "qlib")}
    bare()
    for _ in range(options.rounds):
        for name, function in (("bare", bare), ("ours", ours), ("qlib", qlib)):
            net.train()
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    spread = {name: f"{min(values):.2f}..{max(values):.2f}" for name, values in seconds.items()}
    print(f"{title}: ours / gathered tensors = {median['ours'] / median['bare']:.3f}   ours / Qlib's loop = "
          f"{median['ours'] / median['qlib']:.3f}   (seconds {spread}; {options.days} days x {options.stocks} stocks, "
          f"{options.threads} thread(s), {options.rounds} rounds)", flush=True)


if __name__ == "__main__":
    main()
