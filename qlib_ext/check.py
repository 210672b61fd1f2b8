"""`python -m qlib_ext check WORKFLOW.yaml ...`: find everything wrong with a workflow before anything long starts.

The file is read as `qrun` reads it, every class is looked up, every keyword held against the constructors, fields, universes,
dates and paths against the store. Nothing is loaded, trained or tracked, Qlib is not initialised. All faults are listed at once.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from qlib_ext.check_portfolio import check_portfolio
from qlib_ext.errors import ConfigError, DataError, ExtError
from qlib_ext.signatures import Keywords, did_you_mean, keywords, library_names, wrong_numbers
from qlib_ext.workflow import Node, class_nodes, environment_variable_of, load_workflow, quiet, values

PLACEHOLDERS = ("<MODEL>", "<DATASET>", "<PRED>")
PATH_KEYS = ("checkpoint", "path")
INJECTED = {"record": {"recorder", "model", "dataset"}}
PROCESSOR_KEYS = {"infer_processors", "learn_processors", "shared_processors"}
NOT_BUILT = ("record", "dataset", "handler", "strategy", "executor", "exchange", "signal")
FIT_SPAN = {"fit_start_time", "fit_end_time"}


@dataclass(frozen=True)
class Fault:
    """Something that would fail, or quietly do another thing than asked."""

    where: str
    what: str
    advice: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}; {self.advice}"


def check_workflow(path: str | Path) -> list[Fault]:
    """All faults of a workflow file; an empty list when it can run."""
    return examine_workflow(path)[0]


def examine_workflow(path: str | Path, store: str | Path | None = None) -> tuple[list[Fault], list[Fault]]:
    """Faults, with which a workflow cannot run, and warnings, with which it runs on less than it asks for.

    `store`: check against this store, as `QLIB_DATA` and as `provider_uri`, whatever the file names.
    """
    from qlib_ext.check_data import no_loading
    with mock.patch.dict(os.environ, {} if store is None else {"QLIB_DATA": str(store)}):
        try:
            config = load_workflow(path)
        except ConfigError as error:
            text, _, advice = str(error).partition("; ")
            return [Fault("file", text, advice or "correct the file")], []
        if store is not None and isinstance(config.get("qlib_init"), dict):
            config["qlib_init"]["provider_uri"] = str(store)
        with _search_path(config, path), quiet(), no_loading():
            checker = _Checker(config, Path(path))
            return checker.run(), checker.warnings


class _Checker:
    """One pass over one configuration."""

    def __init__(self, config: dict, path: Path):
        self.config, self.path, self.faults, self.warnings = config, path, [], []
        self.classes: dict[str, type] = {}
        self.built: dict[str, object] = {}
        self.broken: set[str] = set()
        self.nodes = list(class_nodes(config))
        self.store = None

    def add(self, where: str, what: str, advice: str) -> None:
        fault = Fault(where, " ".join(what.split()), " ".join(advice.split()))
        if fault not in self.faults:
            self.faults.append(fault)

    def warn(self, where: str, what: str, advice: str) -> None:
        self.warnings.append(Fault(where, what, advice))

    def run(self) -> list[Fault]:
        self._outline()
        self._values()
        self._tracking()
        self._open_store()
        for node in self.nodes:
            self._node(node)
        for node in filter(self._is_joined, reversed(self.nodes)):  # after its parts, whose faults are named where they stand
            if not any(f"{where}.".startswith(f"{node.where}.") for where in self.broken):
                self._build(node, self.classes[node.where])
        if self.store is not None:
            self._against_store()
        return self.faults

    # ---- the file itself ------------------------------------------------------------------------------------------------
    def _outline(self) -> None:
        task = self.config.get("task")
        options = self.config.get("qlib_init")
        if not isinstance(options, dict):
            self.add("qlib_init", "missing", "give provider_uri, region and exp_manager")
        else:
            from qlib.config import MODE_CONF, _default_config
            known = {*_default_config, *MODE_CONF["client"], "region", "default_conf", "skip_if_reg", "clear_mem_cache",
                     "custom_ops"}
            for name in sorted(set(options) - known):
                self.add(f"qlib_init.{name}", f"Qlib does not know {name!r}{did_you_mean(name, known)} and ignores it",
                         "correct the name")
        if not isinstance(task, dict):
            self.add("task", "missing", "give model, dataset and record")
            return
        for part in ("model", "dataset"):
            if not isinstance(task.get(part), dict) or "class" not in task[part]:
                self.add(f"task.{part}", "missing or without a class", "give class, module_path and kwargs")
        if not task.get("record"):
            self.add("task.record", "no records: nothing would be kept of the predictions", "list at least SignalRecord")

    def _values(self) -> None:
        """Empty strings, unfilled variables, unknown placeholders, paths that do not exist."""
        for where, value in values(self.config):
            key = re.sub(r"\[\d+\]$", "", where).rsplit(".", 1)[-1]
            if value == "" or value is None:
                variable = environment_variable_of(self.path, key)
                if value == "":
                    advice = f"set the environment variable {variable}" if variable else "fill it or take the line out"
                    self.add(where, "empty", advice)
                elif variable and not re.search(rf"^\s*{re.escape(key)}:.*default\(", self.path.read_text(), re.MULTILINE):
                    self.add(where, f"the environment variable {variable} is not set", f"set {variable}")
            elif isinstance(value, str):
                if re.fullmatch(r"<[A-Z_]+>", value) and value not in PLACEHOLDERS:
                    self.add(where, f"unknown placeholder {value}{did_you_mean(value, PLACEHOLDERS)}",
                             f"Qlib fills {', '.join(PLACEHOLDERS)}")
                elif key in PATH_KEYS and where.startswith("task.") and not Path(value).expanduser().exists():
                    self.add(where, f"there is no file {value}", "correct the path")

    def _tracking(self) -> None:
        """Current MLflow refuses file stores, and sqlite does not make folders."""
        manager = (self.config.get("qlib_init") or {}).get("exp_manager")
        place = "qlib_init.exp_manager"
        uri = ((manager or {}).get("kwargs") or {}).get("uri") if isinstance(manager, dict) else None
        if manager is None or str(uri or "").startswith(("file:", "mlruns", "/", "./")):
            import mlflow
            refuses = tuple(int(part) for part in re.findall(r"\d+", mlflow.__version__)[:2]) >= (3, 13)
            if refuses and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() != "true":
                self.add(place, f"MLflow {mlflow.__version__} refuses to track into a folder of files, Qlib's default",
                         "use qlib_ext.tracking.SqliteExpManager with uri sqlite:///~/.qlib_ext/tracking.db")
        elif str(uri).startswith("sqlite:///") and manager.get("class") == "MLflowExpManager":
            folder = Path(str(uri)[len("sqlite:///"):]).parent
            if not folder.is_dir():
                self.add(place, f"folder {folder} of the tracking database does not exist (sqlite neither makes it nor knows ~)",
                         "make it, or use qlib_ext.tracking.SqliteExpManager")

    def _open_store(self) -> None:
        from qlib_ext.check_data import StoreView
        from qlib_ext.store.metadata import check_store
        options = self.config.get("qlib_init") or {}
        uri = options.get("provider_uri")
        uri = uri.get("day") if isinstance(uri, dict) else uri
        if not uri:
            self.add("qlib_init.provider_uri", "no store is named", "give the folder of a Qlib store")
            return
        try:
            self.store = StoreView(check_store(uri))
            self.store.calendar
        except (ExtError, OSError, ValueError) as error:
            self.store = None
            text, _, advice = str(error).partition("; ")
            self.add("qlib_init.provider_uri", text, advice or "name the folder of a Qlib store")

    # ---- classes and keywords -------------------------------------------------------------------------------------------
    def _node(self, node: Node) -> None:
        try:
            found = node.resolve()
        except ConfigError as error:
            text, _, advice = str(error).partition("; ")
            self.broken.add(node.where)
            self.add(node.where, text, advice or "correct it")
            return
        except Exception as error:
            self.broken.add(node.where)
            self.add(node.where, f"importing {node.entry['class']!r} failed ({type(error).__name__}: {error})",
                     "repair what it needs")
            return
        self.classes[node.where] = found
        if node.entry.get("kwargs") is not None and not isinstance(node.entry["kwargs"], dict):
            self.add(f"{node.where}.kwargs", f"{node.entry['kwargs']!r} is no mapping", "write kwargs as `name: value` lines")
        self._keywords(f"{node.where}.kwargs", found, keywords(found), node.kwargs, self._injected(node), node.where)
        if node.role == "strategy":
            self._numbers(f"{node.where}.kwargs", found, node.kwargs)
        if _is_record(found) and isinstance(node.kwargs.get("config"), dict):
            self._port_analysis(node.where, node.kwargs["config"])
        if node.where not in self.broken and self._is_built_here(node, found) and not self._is_joined(node):
            self._build(node, found)

    def _injected(self, node: Node) -> set:
        if node.role.endswith("_processors"):
            return FIT_SPAN
        return INJECTED.get(node.role, set())

    def _keywords(self, where: str, found, taken: Keywords, given: dict, injected: set, owner: str = "") -> None:
        known = taken.names - injected
        if taken.anything:
            extra = library_names(found)
            taken = Keywords(taken.names | extra, taken.required, not extra)
        for name in taken.unknown(given):
            self.broken.add(owner)
            self.add(f"{where}.{name}", f"{_name(found)} does not take {name!r}{did_you_mean(name, taken.names)}",
                     f"it takes {', '.join(sorted(known)) or 'no keywords'}")
        for name in taken.missing(set(given) | injected):
            self.broken.add(owner)
            self.add(where, f"{_name(found)} needs {name!r}", "add it")

    def _numbers(self, where: str, found, given: dict) -> None:
        """Numbers that Qlib takes as they come and trips over after training."""
        for name, kind in wrong_numbers(found, given).items():
            self.add(f"{where}.{name}", f"{given[name]!r} is no {kind}", f"write a {kind}")

    def _port_analysis(self, where: str, config: dict) -> None:
        """The back-test's keywords go to two functions and to the exchange."""
        from qlib.backtest import backtest, get_exchange
        from qlib.backtest.exchange import Exchange
        place = f"{where}.kwargs.config"
        for name in {"strategy", "backtest"} - set(config):
            self.add(place, f"{name!r} is missing", "give strategy and backtest")
        options = config.get("backtest") or {}
        self._keywords(f"{place}.backtest", backtest, keywords(backtest), options,
                       {"strategy", "executor", "start_time", "end_time"})
        taken = Keywords(keywords(get_exchange).names | keywords(Exchange).names, set(), False)
        exchange = options.get("exchange_kwargs") or {}
        self._keywords(f"{place}.backtest.exchange_kwargs", Exchange, taken, exchange, set())
        self._numbers(f"{place}.backtest", backtest, options)
        self._numbers(f"{place}.backtest.exchange_kwargs", Exchange, exchange)

    @staticmethod
    def _is_built_here(node: Node, found) -> bool:
        """Our constructors validate; datasets load and trackers write, so they are not called."""
        ours = getattr(found, "__module__", "").startswith("qlib_ext.")
        return ours and node.where.startswith("task.") and node.role not in NOT_BUILT

    def _is_joined(self, node: Node) -> bool:
        return (self._is_built_here(node, self.classes.get(node.where))
                and any(other.where.startswith(f"{node.where}.") for other in self.nodes))

    def _build(self, node: Node, found):
        kwargs = copy.deepcopy(node.kwargs)
        if node.role.endswith("_processors"):  # handlers hand their fit span on
            span = next((n.kwargs for n in self.nodes if n.role == "handler" and node.where.startswith(n.where)), {})
            kwargs = {**{key: span[key] for key in FIT_SPAN & keywords(found).names & set(span)}, **kwargs}
        if any(isinstance(value, str) and value in PLACEHOLDERS for _, value in values(kwargs)):
            return None
        from qlib.config import QlibConfig
        try:
            with mock.patch.object(QlibConfig, "registered", False):          # the store in use, if any, is not the one checked
                self.built[node.where] = found(**kwargs)
        except Exception as error:
            text, _, advice = str(error).partition("; ")
            self.broken.add(node.where)
            self.add(f"{node.where}.kwargs", f"{_name(found)} refuses this ({type(error).__name__}: {text})",
                     advice or "correct the value")
        return self.built.get(node.where)

    # ---- store ----------------------------------------------------------------------------------------------------------
    def _against_store(self) -> None:
        from qlib_ext import check_data as data
        task = self.config.get("task") or {}
        dataset = (task.get("dataset") or {}).get("kwargs") or {}
        place = "task.dataset.kwargs"
        segments = data.read_segments(self.add, f"{place}.segments", dataset.get("segments"), self.store)
        handler = self._handler(place)
        self._at_store()
        codes = self._universes(segments)
        data.check_market_states(self.add, self.warn, self.built, self.store)
        data.check_winner_styles(self.add, self.warn, self.built, self.store, segments)
        if handler is not None and codes:
            data.check_fields(self.add, self.warn, f"{place}.handler", handler, self.store, codes)
        if isinstance(dataset.get("handler"), dict):
            data.check_handler_dates(self.add, f"{place}.handler.kwargs", dataset["handler"].get("kwargs") or {}, segments)
        for node in self.nodes:
            if FIT_SPAN & set(node.kwargs):
                data.check_fit_span(self.add, f"{node.where}.kwargs", node.kwargs, segments)
            config = node.kwargs.get("config")
            if _is_record(self.classes.get(node.where)) and isinstance(config, dict) and isinstance(config.get("backtest"), dict):
                data.check_backtest(self.add, f"{node.where}.kwargs.config.backtest", config["backtest"], self.store, segments,
                                    codes)
                check_portfolio(self.add, self.warn, f"{node.where}.kwargs.config", config, self.store, codes,
                                node.kwargs.get("engine", "qlib"))
        self._embargo(handler, dataset, segments, place)

    def _at_store(self) -> None:
        """Parts whose columns are in the store, or beside it, take them from there."""
        for where, part in list(self.built.items()):
            try:
                getattr(part, "at_store", lambda store: None)(self.store.path)
            except ExtError as error:
                text, _, advice = str(error).partition(": ")
                self.add(f"{where}.kwargs", text, advice)
                del self.built[where]

    def _handler(self, place: str):
        """The handler, built without loading; None where that failed. Processors with faults of their own are left out."""
        node = next((n for n in self.nodes if n.where == f"{place}.handler"), None)
        if node is None or node.where in self.broken:
            return None
        prefix = f"{node.where}.kwargs."
        spoilt = {re.split(r"[.\[]", where[len(prefix):])[0] for where in self.broken if where.startswith(prefix)}
        if not spoilt <= PROCESSOR_KEYS:
            return None
        kwargs = {**node.kwargs, **{key: [] for key in spoilt}}
        return self._build(Node(node.where, node.entry, node.default_module, node.role, kwargs), self.classes[node.where])

    def _universes(self, segments: dict) -> list[str]:
        """Check every universe that is named (market states, which clip, apart); answers the codes of the handler's."""
        from qlib_ext.check_data import check_universe
        codes = None
        for node in self.nodes:
            for key in ("universe", "instruments"):
                if key in node.kwargs and node.where.startswith("task.") and not hasattr(self.built.get(node.where), "clip"):
                    check_universe(self.add, self.warn, f"{node.where}.kwargs.{key}", node.kwargs[key], self.store, segments)
            if node.role == "handler":
                name = node.kwargs.get("instruments")
                name = name.get("market") if isinstance(name, dict) else name
                if isinstance(name, (list, tuple)):
                    codes = [str(code) for code in name]
                elif isinstance(name, str) and name.lower() in self.store.universes:
                    with suppress(DataError):  # check_universe says why
                        codes = sorted(set(self.store.spans(name)["code"]))
        if not codes:
            codes = sorted(folder.name for folder in (self.store.path / "features").iterdir())
        return codes

    def _embargo(self, handler, dataset: dict, segments: dict, place: str) -> None:
        from qlib_ext import check_task as task
        from qlib_ext.check_data import check_embargo
        trims = hasattr(self.classes.get("task.dataset"), "panel")
        aux = dataset.get("aux") if isinstance(dataset.get("aux"), dict) else {}
        loaders = {name: self.built.get(f"{place}.aux.{name}") for name in aux}
        if trims:
            task.check_dataset_values(self.add, place, dataset, loaders)
        if handler is None:
            check_embargo(self.add, place, segments, 0, self.store, True, "auto")  # what the label needs is not known
        else:
            task.check_labels(self.add, place, handler, dataset, segments, self.store, trims)
        for where, model in self.built.items():
            if where.startswith("task.model") and hasattr(model, "build_net"):
                task.check_model(self.add, f"{where}.kwargs", model, handler, dataset, loaders, trims)
                task.check_rule(self.add, f"{where}.kwargs", model, handler, dataset, segments, self.store)


def _name(found) -> str:
    return getattr(found, "__name__", str(found))


def _is_record(found) -> bool:
    from qlib.workflow.record_temp import PortAnaRecord
    return isinstance(found, type) and issubclass(found, PortAnaRecord)


@contextmanager
def _search_path(config: dict, path):
    """The `sys` section, as `qrun` applies it, undone afterwards."""
    from qlib.cli.run import sys_config
    before = list(sys.path)
    try:
        if isinstance(config.get("sys"), dict):
            sys_config(config, path)
        yield
    finally:
        sys.path[:] = before


def main(arguments: list[str] | None = None) -> int:
    """Command line; 0 when every workflow (or store) is fine, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="python -m qlib_ext check",
                                     description="Find everything wrong with workflows before they run.")
    parser.add_argument("workflow", nargs="*", help="workflow YAML files")
    parser.add_argument("--store", help="check the workflows against this store; without any, only whether it is a Qlib store")
    options = parser.parse_args(arguments)
    if options.store is None and not options.workflow:
        parser.error("name a workflow file, or --store FOLDER")
    status = 0
    if options.store is not None:
        status |= _report_store(options.store)
    for path in options.workflow:
        if _is_base(path):
            print(f"{path}: only a base for workflows (no model, no records), not checked")
            continue
        faults, warnings = examine_workflow(path, options.store)
        for line in [*faults, *(f"warning: {one}" for one in warnings)]:
            print(line)
        status |= bool(faults)
        print(f"{path}: {f'{len(faults)} fault' + 's' * (len(faults) != 1) if faults else 'OK'}")
    return int(status)


def _is_base(path: str) -> bool:
    """Whether a file names neither model nor records: other files lay themselves over it."""
    try:
        task = load_workflow(path).get("task")
    except ConfigError:
        return False
    return isinstance(task, dict) and not task.get("model") and not task.get("record")


def _report_store(path: str) -> int:
    from qlib_ext.store.metadata import check_store
    try:
        print(f"{check_store(path)}: a Qlib store")
        return 0
    except DataError as error:
        print(f"--store: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
