"""What one online task costs over plain fine-tuning, as a ratio inside one run, and the memory of second order.

    python scripts/bench/online_step.py [--stocks 300] [--length 20] [--rounds 5] [--memory]

A task of plain fine-tuning (`incremental`) is one optimiser step on each of its support days. A task of MAML or DoubleAdapt is one step on
the support and one on the query days that became known. Both score the task's days. Rounds are interleaved; medians are compared.
With `--memory`, peak memory over the start of a second-order gradient, each in a process of its own: ours (one support day at a time)
and autograd through the whole task.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import torch
from epoch import make_data

from qlib_ext.data.panel import Panel
from qlib_ext.data.sampler import DaySampler
from qlib_ext.models.base import TorchModel
from qlib_ext.models.gru import GRU
from qlib_ext.models.master import MASTER
from qlib_ext.training.incremental import labelled
from qlib_ext.training.rule import day_loss, forward, trainable

REACH = 6
NETWORKS = {"GRU 64x2": (GRU, {}), "MASTER D=64": (MASTER, {"d_model": 64, "dropout": 0.0, "fused_attention": True})}
RULES = {"incremental": {"name": "incremental"}, "maml": {"name": "maml"}, "doubleadapt group": {"name": "doubleadapt"},
         "doubleadapt element": {"name": "doubleadapt", "adapter": "element"}, "doubleadapt dense": {"name": "doubleadapt",
                                                                                                     "adapter": "dense"},
         "maml second order": {"name": "maml", "first_order": False}}


def panel_of(stocks: int, length: int, tasks: int) -> Panel:
    """Random features; the test segment holds so many tasks."""
    panel, _ = make_data(stocks, 40 + 2 * length + REACH + tasks * length, 8)
    train = 8 + length + 20
    return replace(panel, segments={"train": (8, train + length), "test": (len(panel.days) - tasks * length, len(panel.days))},
                   span=None, training=False, meta={"embargo": REACH})


def started(network: str, rule: dict, panel: Panel, length: int, epochs: int = 1) -> TorchModel:
    """A model whose optimiser has its moments: a fit of two days or one task; with no epoch, one that has done nothing yet."""
    kind, options = NETWORKS[network]
    return kind(**options, rule={**rule, "task_length": length},
                trainer={"epochs": epochs, "days_per_epoch": 2, "device": "cpu", "progress": False, "resume": False}).fit_panel(panel)


def times(options) -> None:
    """Seconds a task, and ratios."""
    panel = panel_of(options.stocks, options.length, 4)
    for network in NETWORKS:
        models = {name: started(network, rule, panel, options.length) for name, rule in RULES.items()}
        found = {name: [] for name in models}
        for _ in range(options.rounds):
            for name, model in models.items():
                begun = time.perf_counter()
                model.predict_panel(panel.view("test"))
                found[name].append((time.perf_counter() - begun) / len(model.rule.report))
        plain = statistics.median(found["incremental"])
        print(f"{network}, {options.stocks} stocks, tasks of {options.length} days:")
        for name, seconds in found.items():
            print(f"    {name:22s} {statistics.median(seconds):7.3f} s a task   {statistics.median(seconds) / plain:5.2f} x fine-tuning")


def memory(network: str, way: str, stocks: int, length: int) -> None:
    """Prints MiB over the start at the peak of one second-order gradient."""
    torch.set_num_threads(1)
    panel = panel_of(stocks, length, 2)
    model = started(network, {"name": "maml", "first_order": False, "inner": "sgd"}, panel, length, epochs=0)
    rule, net, sampler = model.rule, model.net_, DaySampler(panel.view((0, len(panel.days)), training=True))
    task = rule.split(REACH).past(*panel.segments["train"])[0] if way == "ours" else rule.split(REACH).past(8, len(panel.days))[0]
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if way == "ours":
        from qlib_ext.training.incremental import Learner
        learner = Learner(net, None, None)
        rule.upper(learner, sampler, rule.lower(learner, sampler, task, 1e-3), labelled(sampler, task.query), 1e-3)
    else:
        net.train()
        weights = trainable(net)

        def mean_loss(span, theta=None):
            days = labelled(sampler, span)
            return sum(day_loss(rule.loss, sampler, int(day), lambda batch: forward(net, batch, theta)) for day in days) / len(days)

        from torch.nn.attention import SDPBackend, sdpa_kernel
        with sdpa_kernel(SDPBackend.MATH):
            gradient = torch.autograd.grad(mean_loss(task.support), list(weights.values()), create_graph=True)
            mean_loss(task.query, {name: p - 1e-3 * g for (name, p), g in zip(weights.items(), gradient)}).backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) / 1024)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("stocks", 300), ("length", 20), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("NETWORK", "WAY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.one:
        memory(*options.one, options.stocks, options.length)
    elif options.memory:
        for network in NETWORKS:
            for length in (10, 20, 40):
                peak = [float(subprocess.run([sys.executable, __file__, "--one", network, way, "--stocks", str(options.stocks),
                                              "--length", str(length)],
                                             capture_output=True, text=True, check=True).stdout.split()[-1]) for way in ("ours",
                                                                                                                         "autograd")]
                print(f"{network}, {options.stocks} stocks, tasks of {length:2d} days: ours {peak[0]:6.0f} MiB, autograd through the "
                      f"task {peak[1]:6.0f} MiB")
    else:
        times(options)


if __name__ == "__main__":
    main()
