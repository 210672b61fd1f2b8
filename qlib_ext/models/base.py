"""The one adapter between torch networks and Qlib. Imports without Qlib or pandas too: a packed panel trains on a bare machine."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from qlib_ext import __version__
from qlib_ext.data.panel import Panel
from qlib_ext.data.sampler import DaySampler
from qlib_ext.errors import ConfigError, DataError, NotFittedError, ShapeError
from qlib_ext.models.keeping import (active_recorder, code_files, epoch_logger, keep_online, kept_folder, read_checkpoint, save_card,
                                     write_aside)
from qlib_ext.training.loss import make_loss
from qlib_ext.training.protocol import make_rule
from qlib_ext.training.trainer import History, Trainer, pick_device

try:
    from qlib.model.base import Model
except ImportError:  # a bare training box
    class Model:
        """Stands in for Qlib's base class where Qlib is not installed."""


OFFLINE = ("progress", "threads", "resume", "device", "epochs", "patience", "days_per_epoch", "metric")
"""Options of the trainer that the online phase does not know."""


def check_keywords(owner: str, given: dict, target) -> None:
    """Refuse keywords that `target` does not take.

    Raises:
        ConfigError: names the unknown keywords and lists the valid ones.
    """
    valid = [name for name, p in inspect.signature(target).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and name != "self"]
    unknown = sorted(set(given) - set(valid))
    if unknown:
        raise ConfigError(f"{owner} does not take {unknown}; valid keywords: {sorted(valid)}")


class TorchModel(Model):
    """A network as a Qlib model.

    Every subclass names its `net_class`, takes the network's options as flat keywords and hands the rest to this class:

    Args:
        net_options: the network's keywords; sizes that are None follow the dataset.
        loss: name, or ``{name: ..., option: value}`` (`qlib_ext.training.loss`).
        rule: how it learns, by name or as ``{name: ..., option: value}`` (`qlib_ext.training.protocol`): ``static``
            (= ``supervised``), ``rolling_retrain``, ``incremental``, ``maml``, ``doubleadapt``.
        trainer: options of `qlib_ext.training.trainer.Trainer`.
        checkpoint: weights to start from; with ``trainer: {epochs: 0}`` they are used as they are.
        block: name of the dataset's block that it reads, or a list of names; only these are gathered. None: all there are. ``stock`` are
            the handler's features, the others have the names of `aux_windows`.
        online_state: file that `save_online` wrote, e.g. ``online_state.pt`` of an earlier run's recorder: nothing is fitted, the online
            phase goes on from there (`load_online`).

    NaN in the inputs become 0 before the network: 0 is the median after `RobustZScoreNorm`. A score is made for every stock of the
    dataset's universe with a row on the day, labelled or not. Learned: `net_`, `history_`, `sizes_`. A pickle holds options and a
    state dict, so that it opens in later versions.

    Raises:
        ConfigError: unknown keyword (the valid ones are listed), loss, rule, trainer option.
        ShapeError: the dataset's widths are not those asked for, or not the checkpoint's.
    """

    net_class: type[torch.nn.Module]

    def __init__(self, net_options: dict, loss="mse", rule="supervised", trainer: dict | None = None,
                 checkpoint: str | None = None, online_state: str | None = None, block: str | list[str] | None = None, **unknown):
        super().__init__()
        if unknown:
            own = [set(inspect.signature(kind.__init__).parameters) for kind in type(self).__mro__ if issubclass(kind, TorchModel)]
            valid = set().union(*own) - {"self", "net_options", "options", "unknown"}
            raise ConfigError(f"{type(self).__name__} does not take {sorted(unknown)}; valid keywords: {sorted(valid)}")
        self.net_options = dict(net_options)
        if not (block is None or isinstance(block, str) or (isinstance(block, list) and block and len(set(block)) == len(block))):
            raise ConfigError(f"block={block!r}: give the name of a block of the dataset, or a list of different names")
        self.options = {"loss": loss, "rule": rule, "trainer": dict(trainer or {}), "checkpoint": checkpoint, "online_state": online_state,
                        "block": block}
        check_keywords(f"{type(self).__name__}'s trainer", self.options["trainer"], Trainer.__init__)
        self.trainer = Trainer(**self.options["trainer"])
        self.rule = make_rule(rule, make_loss(loss))
        self.rule.attach(self.trainer, None, None)

    # ---- what a subclass may override -------------------------------------------------------------------------------------
    def sizes(self, panel: Panel) -> dict[str, int]:
        """The network sizes that a panel decides, e.g. ``{"d_feat": 158}``."""
        return {"d_feat": panel.n_features}

    def load_net(self, path: str | Path, sizes: dict[str, int]) -> torch.nn.Module:
        """A network with the weights of a file written by `save`.

        Raises:
            DataError, ShapeError, ConfigError: no such checkpoint; other widths; other options than this model's.
        """
        stored = read_checkpoint(path)
        if not {"class", "net_options", "sizes", "weights"} <= set(stored):
            raise DataError(f"checkpoint {path} was not written by TorchModel.save (nor is it a published one this model knows)")
        if stored["class"] != type(self).__name__:
            raise ConfigError(f"{path} holds a {stored['class']}, this model is a {type(self).__name__}")
        self.check_sizes(path, stored["sizes"], sizes)
        other = {k: (v, self.net_options.get(k)) for k, v in stored["net_options"].items()
                 if k not in sizes and self.net_options.get(k) != v and k != "dropout"}
        if other:
            raise ConfigError(f"{path} holds a {stored['class']}; options that differ (its, this model's): {other}")
        net = self.build_net(sizes)
        net.load_state_dict(stored["weights"])
        return net

    # ---- building ---------------------------------------------------------------------------------------------------------
    def build_net(self, sizes: dict[str, int]) -> torch.nn.Module:
        """A fresh network; sizes asked for in the options must agree with the panel's.

        Raises:
            ShapeError: they do not.
        """
        for name, value in sizes.items():
            asked = self.net_options.get(name)
            if asked is not None and asked != value:
                raise ShapeError(f"{type(self).__name__} was asked for {name}={asked}, the dataset gives {value}")
        return self.net_class(**{**self.net_options, **sizes})

    @staticmethod
    def check_sizes(path, stored: dict[str, int], wanted: dict[str, int]) -> None:
        """Raises ShapeError unless a checkpoint's widths are the dataset's."""
        wrong = [f"{name}: checkpoint {stored[name]}, dataset {wanted[name]}" for name in wanted if stored.get(name) != wanted[name]]
        if wrong:
            raise ShapeError(f"checkpoint {path} does not fit the dataset ({'; '.join(wrong)}): use the features it was trained on")

    # ---- fitting ----------------------------------------------------------------------------------------------------------
    def fit(self, dataset, reweighter=None) -> "TorchModel":
        """Fit on a `PanelDatasetH` with the segments ``train`` and, for early stopping, ``valid``.

        Raises:
            ConfigError: another kind of dataset, or a reweighter (weights belong into the loss).
        """
        if reweighter is not None:
            raise ConfigError("reweighter is not supported: choose a weighted loss, e.g. loss: {name: weighted_mse}")
        return self.fit_panel(_panel_of(dataset))

    def fit_panel(self, panel: Panel) -> "TorchModel":
        """`fit` on a panel (see there)."""
        if self.options["online_state"]:
            return self.load_online(self.options["online_state"], panel)
        panel = panel.of(self.options["block"])
        if "train" not in panel.segments:
            raise ConfigError(f"no segment 'train' in {sorted(panel.segments)}")
        started = time.perf_counter()
        train = panel.view("train", training=True)
        valid = panel.view("valid") if "valid" in panel.segments else None
        sizes = self.sizes(panel)
        make_net = self._net_maker(sizes)
        net = make_net()
        self.rule.check(panel.meta.get("embargo"), {name: last - first for name, (first, last) in panel.segments.items()})
        self.rule.attach(self.trainer, make_net, panel)
        recorder = active_recorder()
        resumable = self.trainer.resume and self.trainer.epochs
        with kept_folder("fits", self._fit_key(panel, net)) if resumable else nullcontext() as folder:
            history = self.trainer.fit(net, self.rule, train, valid, folder and folder / "state.pt", epoch_logger(recorder),
                                       keep_state=True)
            self.rule.finish(net, panel, folder)
        self.rule.to(torch.device("cpu"))
        self.net_, self.sizes_, self.history_, self.trained_on_ = net.cpu().eval(), sizes, history, _facts_of(panel)
        self.run_card_ = self._run_card(panel, time.perf_counter() - started)
        save_card(recorder, self)
        return self

    def _net_maker(self, sizes: dict[str, int]):
        """Makes networks with the weights a fit begins with."""
        def make_net() -> torch.nn.Module:
            torch.manual_seed(self.trainer.seed)
            checkpoint = self.options["checkpoint"]
            return self.load_net(checkpoint, sizes) if checkpoint else self.build_net(sizes)
        return make_net

    def _fit_key(self, panel: Panel, net) -> str:
        options = {key: value for key, value in self.options["trainer"].items() if key not in ("progress", "threads", "resume")}
        kinds = [type(self), self.net_class, type(self.rule), type(self.rule.loss)]
        content = [[f"{kind.__module__}.{kind.__qualname__}" for kind in kinds], __version__, torch.__version__, self.net_options,
                   {**self.options, "trainer": options}, panel.meta, panel.segments]
        digest = hashlib.blake2b(json.dumps(content, sort_keys=True, default=repr).encode(), digest_size=16)
        digest.update(panel.digest().encode())
        for file in code_files(kinds):
            digest.update(file.read_bytes())
        for name, weight in sorted(net.state_dict().items()):  # the start: seed, or checkpoint
            digest.update(name.encode() + weight.cpu().numpy().tobytes())
        return digest.hexdigest()

    def _run_card(self, panel: Panel, seconds: float) -> dict:
        versions = {"python": platform.python_version(), "qlib_ext": __version__, "torch": torch.__version__, "numpy": np.__version__}
        for name in ("qlib", "pandas"):
            if name in sys.modules:
                versions[name] = getattr(sys.modules[name], "__version__", "unknown")
        spans = {name: [str(panel.days[a]), str(panel.days[b - 1])] for name, (a, b) in panel.segments.items()}
        return {"model": type(self).__name__, "net_options": self.net_options, "sizes": self.sizes_, "options": self.options,
                "parameters": sum(p.numel() for p in self.net_.parameters()), "versions": versions, "seed": self.trainer.seed,
                "spans": spans, "panel": panel.meta, "best_epoch": self.history_.best_epoch, "epochs_run": len(self.history_.epochs),
                "resumed_from": self.history_.resumed_from, "seconds": round(seconds, 2), "threads": torch.get_num_threads()}

    # ---- scoring ----------------------------------------------------------------------------------------------------------
    def predict_panel(self, panel: Panel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores of a view: day positions ``[p]``, stock positions ``[p]``, scores ``[p]`` float32, in order of (day, stock).

        A model whose loss has no scores gives its outputs ``[p, k]`` instead.

        Raises:
            NotFittedError: before `fit`.
            ShapeError: the panel's widths are not those of the fit.
            ConfigError: the device of the configuration is not on this machine.
            What the rule raises (`OnlineRule.predict`).
        """
        if not hasattr(self, "net_"):
            raise NotFittedError(f"{type(self).__name__} has no weights yet: call fit, or load a saved model")
        panel = panel.of(self.options["block"])
        self.check_sizes("in memory", self.sizes_, self.sizes(panel))
        device = pick_device(self.trainer.device_name)
        net = self.net_.to(device)
        self.rule.to(device)
        days, stocks, scores = [], [], []
        try:
            for batch, output in self.rule.predict(net, DaySampler(panel, device)):
                days.append(np.full(len(batch.stocks), batch.day))
                stocks.append(batch.stocks)
                scores.append((self.rule.loss.score(output) if self.rule.loss.scores else output).cpu().numpy())
        finally:
            self.net_ = net.cpu()
            self.rule.to(torch.device("cpu"))
        if not days:
            return np.empty(0, int), np.empty(0, int), np.empty(0, np.float32)
        return np.concatenate(days), np.concatenate(stocks), np.concatenate(scores)

    def predict(self, dataset, segment="test"):
        """Scores of a segment (a name, or a (start, end) pair of dates).

        Returns:
            Series ``score`` indexed by (datetime, instrument), sorted; one value for every stock of the universe with a row.
        """
        import pandas as pd

        panel = _panel_of(dataset, segment)
        days, stocks, scores = self.predict_panel(panel)
        keep_online(active_recorder(), self)
        index = pd.MultiIndex.from_arrays([pd.DatetimeIndex(panel.days[days].astype("datetime64[ns]")), panel.instruments[stocks]],
                                          names=["datetime", "instrument"])
        return pd.Series(scores, index=index, name="score").sort_index()

    # ---- keeping ----------------------------------------------------------------------------------------------------------
    def __getstate__(self) -> dict:
        state = {"net_options": self.net_options, "options": self.options}
        if hasattr(self, "net_"):
            weights = {name: value.cpu().numpy() for name, value in self.net_.state_dict().items()}
            state.update(sizes=self.sizes_, weights=weights, rule=self.rule.state_dict(), history=vars(self.history_),
                         run_card=self.run_card_, trained_on=self.trained_on_)
        return state

    def __setstate__(self, state: dict) -> None:
        options, device = state["options"], state["options"]["trainer"].get("device", "auto")
        try:
            pick_device(device)
        except ConfigError:  # trained on a GPU, opened on a machine without it
            print(f"{type(self).__name__} was made for device {device!r}, which is not here: device auto", file=sys.stderr)
            options = {**options, "trainer": {**options["trainer"], "device": "auto"}}
        TorchModel.__init__(self, state["net_options"], **options)
        if "weights" in state:
            self.sizes_, self.run_card_, self.trained_on_ = state["sizes"], state["run_card"], state.get("trained_on", {})
            self.history_ = History(**state["history"])
            self.net_ = self.build_net(self.sizes_)
            weights = {name: torch.from_numpy(np.array(value)) for name, value in state["weights"].items()}
            self.net_.load_state_dict(weights)
            self.net_.eval()
            self.rule.attach(self.trainer, self._net_maker(self.sizes_), None)
            self.rule.load_state_dict(state["rule"])

    def save(self, path: str | Path) -> None:
        """State dict, sizes and options in one file (readable with ``torch.load(weights_only=True)``), replaced atomically.

        Raises:
            NotFittedError: before `fit`.
        """
        if not hasattr(self, "net_"):
            raise NotFittedError(f"{type(self).__name__} has nothing to save before fit")
        write_aside(Path(path), {"class": type(self).__name__, "net_options": self.net_options, "sizes": self.sizes_,
                                  "weights": self.net_.state_dict(), "run_card": json.dumps(self.run_card_, default=repr)})

    # ---- going on ---------------------------------------------------------------------------------------------------------
    def save_online(self, path: str | Path) -> None:
        """Where the online phase of the last `predict` stands: weights, adapters, optimiser and last task in one file.

        Raises:
            NotFittedError: nothing was scored online.
        """
        begun = getattr(self.rule, "begun", None)
        if not hasattr(self, "net_") or begun is None:
            raise NotFittedError(f"{type(self).__name__} has scored nothing online: fit with an online rule and predict first")
        write_aside(Path(path), {"made_by": self._online_facts(), "sizes": self.sizes_, "begun": begun})

    def load_online(self, path: str | Path, panel: Panel) -> "TorchModel":
        """Goes on from a file of `save_online`: days from its last task on are scored as one run over all days would score them.

        Args:
            panel: the same data with days appended; it must hold the supports of the last two tasks and their windows, and the segment
                train or valid that the rule knows its place by.

        Raises:
            DataError: no such file, or data that differ. ConfigError: a rule that does not learn online; a file made with another
                configuration (what differs is named). ShapeError: other widths.
        """
        if not hasattr(self.rule, "continue_from"):
            raise ConfigError(f"rule {self.options['rule']!r} has no online state: choose incremental, maml or doubleadapt")
        panel = panel.of(self.options["block"])
        stored = read_checkpoint(path)
        if not {"made_by", "sizes", "begun"} <= set(stored):
            raise DataError(f"{path} was not written by save_online")
        self.trained_on_ = _facts_of(panel)
        mine, theirs = self._online_facts(), stored["made_by"]
        differ = [f"{key}: {theirs.get(key)} there, {mine.get(key)} here" for key in sorted({*mine, *theirs})
                  if mine.get(key) != theirs.get(key)]
        if differ:
            raise ConfigError(f"the online state {path} was made with another configuration ({'; '.join(differ)}): use the same, or fit "
                              "anew")
        self.sizes_ = self.sizes(panel)
        self.check_sizes(path, stored["sizes"], self.sizes_)
        self.rule.attach(self.trainer, self._net_maker(self.sizes_), panel)
        self.net_ = self.build_net(self.sizes_)
        self.net_.load_state_dict(self.rule.continue_from(stored["begun"]))
        self.net_.eval()
        self.history_ = History()
        self.run_card_ = self._run_card(panel, 0.0)
        save_card(active_recorder(), self)
        return self

    def _online_facts(self) -> dict[str, str]:
        """What must not change between two runs that make one."""
        trainer = {k: v for k, v in self.options["trainer"].items() if k not in OFFLINE}
        facts = {"model": type(self).__name__, "net_options": self.net_options, "loss": self.options["loss"], "rule": self.options["rule"],
                 "trainer": trainer, **self.trained_on_}
        return {name: json.dumps(value, sort_keys=True, default=repr) for name, value in facts.items()}


def _facts_of(panel: Panel) -> dict:
    """Columns and settings of a panel that its days do not change."""
    settings = {name: value for name, value in panel.meta.items() if name not in ("store", "loaded")}
    return {"columns": {name: list(block.columns) for name, block in panel.blocks.items()},
            "windows": {name: block.window if block.bars == 1 else [block.window, block.bars] for name, block in panel.blocks.items()},
            "missing_rows": panel.missing_rows, **settings}


def _panel_of(dataset, segment=None) -> Panel:
    if not hasattr(dataset, "panel"):
        raise ConfigError(f"{type(dataset).__name__} has no panel: use qlib_ext.data.dataset.PanelDatasetH")
    return dataset.panel() if segment is None else dataset.panel(segment)
