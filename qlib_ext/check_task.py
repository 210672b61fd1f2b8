"""The part of `check` that holds the parts of a task against each other: expressions, processors, dataset, model."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from qlib_ext.check_data import StoreView, check_embargo
from qlib_ext.data.aux_values import window_sizes
from qlib_ext.data.leaks import feature_faults, processor_faults
from qlib_ext.data.loader import MarketStateLoader
from qlib_ext.data.panel import MISSING_ROWS, Block, Panel, bar_features
from qlib_ext.data.segments import label_offset, trim_segments
from qlib_ext.data.style_loader import StyleColumns
from qlib_ext.data.window import WINDOW_TRANSFORMS
from qlib_ext.data.winner_loader import JoinedLoader
from qlib_ext.errors import ConfigError, DataError, ExtError
from qlib_ext.factors.market_state import market_state_names


def expressions(handler, group: str) -> tuple[list[str], list[str]]:
    """Expressions and names of one group ("feature", "label") of a handler built on Qlib's loader; empty where unknown."""
    fields = getattr(getattr(handler, "data_loader", None), "fields", None)
    found = fields.get(group) if isinstance(fields, dict) else None
    return ([str(part) for part in found[0]], [str(part) for part in found[1]]) if found else ([], [])


@contextmanager
def expression_parser():
    """Qlib parses expressions inside, initialised or not; its own log of what it cannot parse is left out."""
    from qlib.config import C
    from qlib.data import ops
    from qlib.data.data import ExpressionD, LocalExpressionProvider
    before, disabled = vars(ExpressionD)["_provider"], logging.root.manager.disable
    if not C.registered:
        ops.register_all_ops(C)
    logging.disable(logging.CRITICAL)
    ExpressionD.register(LocalExpressionProvider())
    try:
        yield
    finally:
        ExpressionD.register(before)
        logging.disable(disabled)


# ---- handler against dataset ------------------------------------------------------------------------------------------------
def check_labels(add, place: str, handler, dataset: dict, segments: dict, store: StoreView, trims: bool) -> None:
    """The label's look ahead against the segments, and what processors do to labels; `trims`: the dataset is one of ours."""
    if trims:
        for fault in processor_faults(handler):
            add(f"{place}.handler.kwargs.{fault.where}", fault.what, fault.advice)
        if getattr(handler, "drop_raw", False) and not hasattr(handler, "label_frame"):
            add(f"{place}.handler.kwargs.drop_raw",
                f"{type(handler).__name__} drops its raw labels too, and evaluation needs them",
                "use the handlers of qlib_ext.data.handler, or drop_raw: false")
    labels, features = expressions(handler, "label")[0], expressions(handler, "feature")[0]
    embargo = dataset.get("embargo", "auto")
    with expression_parser():
        for fault in feature_faults(features):
            add(f"{place}.handler", fault.what, fault.advice)
        try:
            ahead = label_offset(labels) if labels else 0
        except ConfigError as error:
            text, _, advice = str(error).partition(": write ")
            add(f"{place}.handler.kwargs.label", text, f"write {advice}" if advice else "correct the expression")
            return
    if not labels and trims and embargo == "auto":
        add(f"{place}.embargo", "the label's look ahead cannot be read from this handler", "give the number of trading days")
    check_embargo(add, place, segments, ahead, store, trims, embargo)


def check_dataset_values(add, place: str, dataset: dict, loaders: dict) -> None:
    """Values that `PanelDatasetH` refuses; `loaders`: the aux loaders by name, None where one could not be made."""
    window, missing_rows = dataset.get("window", 8), dataset.get("missing_rows", "nan")
    if type(window) is not int or window < 1:
        add(f"{place}.window", f"{window!r} is no whole number of days, at least 1", "write 8")
    if missing_rows not in MISSING_ROWS:
        add(f"{place}.missing_rows", f"{missing_rows!r} is unknown", f"choose one of {', '.join(MISSING_ROWS)}")
    if dataset.get("window_transform") not in (None, *WINDOW_TRANSFORMS):
        add(f"{place}.window_transform", f"{dataset['window_transform']!r} is unknown", f"choose one of {', '.join(WINDOW_TRANSFORMS)}")
    per_stock = sorted(name for name, loader in loaders.items() if loader is None or getattr(loader, "per_stock", False))
    windows = dataset.get("aux_windows") or []
    wrong = [name for name in windows if name not in per_stock or name == "stock"] if isinstance(windows, (list, dict)) else [windows]
    if wrong:
        add(f"{place}.aux_windows", f"{wrong} are no aux entries of values per stock (those are {per_stock})", "list some of these")
        return
    try:
        _window_sizes(dataset, loaders)
    except ExtError as error:
        text, _, advice = str(error).partition(": give ")
        add(f"{place}.aux_windows", text, f"give {advice}" if advice else "correct the sizes")


def _window_sizes(dataset: dict, loaders: dict) -> dict[str, dict]:
    """`window_sizes` of a dataset's options without the names that are wrong; a loader that could not be made counts as one per stock."""
    window = dataset.get("window", 8)
    known = {name: SimpleNamespace(per_stock=True) if loader is None else loader for name, loader in loaders.items()}
    asked = dataset.get("aux_windows") or {}
    asked = asked if isinstance(asked, dict) else dict.fromkeys(asked if isinstance(asked, list) else ())
    asked = {name: size for name, size in asked.items() if getattr(known.get(name), "per_stock", False) and name != "stock"}
    sizes = window_sizes(asked, known, window if type(window) is int and window > 0 else 1)
    for name, size in sizes.items():
        if callable(getattr(known[name], "column_names", None)):
            bar_features(known[name].column_names(), size["bars"])
    return sizes


# ---- model against dataset --------------------------------------------------------------------------------------------------
def feature_count(handler) -> int | None:
    """Features that reach the model; None where a processor or the loader does not let it be read."""
    names = expressions(handler, "feature")[1]
    for key in ("shared_processors", "infer_processors"):
        for processor in getattr(handler, key, []):
            if type(processor).__name__ == "FilterCol" and processor.fields_group == "feature":
                names = [name for name in names if name in processor.col_list]
            elif type(processor).__name__ == "DropCol":
                names = [name for name in names if name not in processor.col_list]
            elif not type(processor).__module__.startswith(("qlib.", "qlib_ext.")):
                return None
    return len(names) or None


def market_width(add, where: str, loader) -> int | None:
    """Columns a loader will give, from the schema alone where they are ready; None where that cannot be said without loading."""
    if isinstance(loader, JoinedLoader):
        widths = [market_width(add, f"{where}.parts[{number}].kwargs", part) for number, part in enumerate(loader.parts)]
        return None if None in widths else sum(widths)
    if isinstance(loader, StyleColumns):
        return _style_width(add, where, loader)
    if callable(getattr(loader, "column_names", None)):  # what it will name its columns, said without loading
        try:
            return len(loader.column_names())
        except ExtError as error:
            text, _, advice = str(error).partition(": ")
            add(where, text, advice or "correct it")
            return None
    if not isinstance(loader, MarketStateLoader):  # how many styles there are, the snapshots say
        return None
    if loader.path is None:
        return len(loader.instruments) * len(market_state_names("SH000300"))
    path = Path(loader.path).expanduser()
    if not path.is_file():
        return None
    import pyarrow
    from pyarrow import parquet
    try:
        schema = parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError) as error:
        add(f"{where}.path", f"{path.name} is no Parquet file ({error})", "name the file of market columns")
        return None
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    columns = [field for field in schema if field.name not in index and field.name.lower() not in ("date", "datetime")]
    words = [f.name for f in columns if not (pyarrow.types.is_integer(f.type) or pyarrow.types.is_floating(f.type))]
    if words or not columns:
        add(f"{where}.path", f"{path.name} must hold numeric columns besides the day; not numeric: {words[:5]}",
            "correct the file")
        return None
    return len(columns)


def _style_width(add, where: str, loader: StyleColumns) -> int | None:
    try:
        loader.check()
    except DataError as error:
        text, _, advice = str(error).removeprefix("styles: ").rpartition(": ")
        add(f"{where}.snapshots", text, advice)
        return None
    return loader.width()


def check_model(add, where: str, model, handler, dataset: dict, loaders: dict, has_panel: bool) -> None:
    """The network of a `TorchModel` is built (or read from its checkpoint) for the dataset's widths, and asked for two scores.

    `loaders`: the aux loaders by name, None where one could not be made.
    """
    if not has_panel:
        add("task.dataset", f"{type(model).__name__} needs a dataset with panels", "use qlib_ext.data.dataset.PanelDatasetH")
        return
    features = None if handler is None else feature_count(handler)
    checkpoint = model.options["checkpoint"]
    widths = {name: market_width(add, f"task.dataset.kwargs.aux.{name}.kwargs", loader) for name, loader in loaders.items()}
    if features is None or None in widths.values() or (checkpoint and not Path(checkpoint).expanduser().is_file()):
        features = features or 1  # what does not depend on widths can be said all the same
        checkpoint, known = None, False
    else:
        known = True
    labels = 0 if handler is None else len(expressions(handler, "label")[0])
    panel = _bare_panel(dataset, features, {name: width or 1 for name, width in widths.items()}, loaders, labels or 1)
    try:
        _try_network(model, panel, checkpoint, known, labels)
    except Exception as error:
        text, _, advice = str(error).partition(": use ")
        add(where, f"{type(model).__name__} refuses this dataset ({type(error).__name__}: {text})",
            f"use {advice}" if advice else "make model, checkpoint and dataset fit")


def check_rule(add, where: str, model, handler, dataset: dict, segments: dict, store: StoreView) -> None:
    """The rule's tasks against the label's look ahead and the length of the segments; the online state to go on from."""
    state = model.options["online_state"]
    if state and not Path(state).expanduser().is_file():
        add(f"{where}.online_state", f"there is no file {state}", "name online_state.pt of the run to go on from, or leave it out")
    reach = dataset.get("embargo", "auto")
    with expression_parser():
        try:
            labels = expressions(handler, "label")[0] if handler is not None else []
            reach = label_offset(labels) if reach == "auto" and labels else reach if type(reach) is int else None
            spans = {name: store.positions(pair) for name, pair in segments.items()}
            spans = spans if reach is None else trim_segments(spans, reach, store.calendar)
        except ConfigError:  # said elsewhere
            return
    try:
        model.rule.check(reach, {name: last - first + 1 for name, (first, last) in spans.items()})
    except ConfigError as error:
        text, _, advice = str(error).rpartition(": make ")
        add(f"{where}.rule", text or str(error), f"make {advice}" if text else "choose a longer task_length")


def _bare_panel(dataset: dict, features: int, widths: dict[str, int], loaders: dict, labels: int) -> Panel:
    """A panel of one day without stocks, with the dataset's blocks and aux entries."""
    window = dataset.get("window", 8)
    window = window if type(window) is int and window > 0 else 1
    empty = lambda width: np.full((1, width), np.nan, np.float32)  # noqa: E731
    try:
        sizes = _window_sizes(dataset, loaders)
    except ExtError:  # said elsewhere: the sizes that are usual
        sizes = _window_sizes({**dataset, "aux_windows": list(dataset["aux_windows"])}, loaders)
    stock_aux = {name: empty(width) for name, width in widths.items() if name in sizes or getattr(loaders[name], "per_stock", False)}
    blocks = {"stock": Block(empty(features), window, [""] * features)}
    for name, size in sizes.items():
        width, bars = -(-widths[name] // size["bars"]), size["bars"]
        names = [f"f{k}@{bar}" for bar in range(bars) for k in range(width)]
        blocks[name] = Block(empty(width * bars), size["window"], names, bars=bars)
        stock_aux[name] = blocks[name].values
    label = empty(labels)
    return Panel(blocks=blocks, rows=np.empty((1, 0), np.int32), days=np.array(["2000-01-03"], "datetime64[D]"),
                 instruments=np.empty(0, str), universe=np.empty((1, 0), bool), label=label, label_eval=label, label_raw=label,
                 label_names=[f"LABEL{k}" for k in range(labels)], stock_aux=stock_aux,
                 day_aux={name: empty(width) for name, width in widths.items() if name not in stock_aux})


def _try_network(model, panel: Panel, checkpoint, known: bool, labels: int) -> None:
    import torch
    panel = panel.of(model.options["block"])
    sizes = model.sizes(panel)
    if not known:  # only the options that are the network's own
        sizes = {name: model.net_options.get(name) if model.net_options.get(name) is not None else size
                 for name, size in sizes.items()}
    net = model.load_net(checkpoint, sizes) if checkpoint else model.build_net(sizes)
    wanted, given = getattr(net, "aux", ()), {**panel.day_aux, **panel.stock_aux}
    for needy, names in (("the network", wanted), (f"loss {model.rule.loss.name!r}", model.rule.loss.aux)):
        missing = [name for name in names if name not in given]
        if missing:
            raise ConfigError(f"{needy} needs aux {missing}, the dataset gives {sorted(given)}: use the dataset's `aux:`")
    if known:
        count = 2 + getattr(net, "factors", 0) + sum(given[name].shape[1] for name in wanted)     # stocks that an orthogonal layer asks for
        shape = {name: (count,) if name in panel.stock_aux else () for name in wanted}
        aux = {name: torch.zeros(*shape[name], given[name].shape[1]) for name in wanted}
        x = {name: torch.zeros(count, block.steps, len(block.features)) for name, block in panel.blocks.items()}
        with torch.no_grad():
            output = net.eval()(x if len(x) > 1 else next(iter(x.values())), **aux)
        if labels and model.rule.loss.scores:
            model.rule.loss.columns(output, torch.zeros(count, labels), torch.ones(count, labels, dtype=torch.bool))
