"""What a handler must not do, as faults that `check` lists and `PanelDatasetH` raises: processors on the wrong side, features
that look ahead."""

from __future__ import annotations

from typing import Iterator, NamedTuple

from qlib_ext.data.segments import label_offset
from qlib_ext.errors import ConfigError


class Fault(NamedTuple):
    """`where` in the handler's keywords, what is wrong there, and what to do."""

    where: str
    what: str
    advice: str


def processor_faults(handler) -> Iterator[Fault]:
    """Learn processors touch labels only (training and inference see the same features), the others features only."""
    for number, processor in enumerate(getattr(handler, "learn_processors", [])):
        group = getattr(processor, "fields_group", None)
        if group not in ("label", ["label"]):                # Qlib's CSZScoreNorm makes a list of it when it is applied
            yield Fault(f"learn_processors[{number}]",
                        f"{type(processor).__name__} (fields_group {group!r}) touches features, which must be the same in training "
                        "and inference", "give it fields_group: label, or move it to infer_processors")
    for key in ("shared_processors", "infer_processors"):
        for number, processor in enumerate(getattr(handler, key, [])):
            everything = None if type(processor).__name__ == "ProcessInf" else "feature"
            groups = getattr(processor, "fields_group", everything)
            groups = "feature" if groups is None and type(processor).__name__ == "TanhProcess" else groups  # it spares LABEL columns
            if groups is None or "label" in (groups if isinstance(groups, (list, tuple)) else [groups]):
                yield Fault(f"{key}[{number}]",
                            f"{type(processor).__name__} touches labels (fields_group {groups!r}), work of learn processors",
                            "give it fields_group: feature" if hasattr(processor, "fields_group") else "take it out")


def feature_faults(features: list[str]) -> Iterator[Fault]:
    """A feature (a Qlib expression) of day t may use what is known on day t. Qlib must be able to parse expressions."""
    for expression in features:
        try:
            ahead = label_offset([expression], "feature")
        except ConfigError as error:
            text, _, advice = str(error).partition(": write ")
            yield Fault("", text, f"write {advice}" if advice else "correct the expression")
            continue
        if ahead > 0:
            yield Fault("", f"feature {expression!r} looks {ahead} trading days ahead: a leak",
                        "use positive offsets in features")


def refuse(faults: Iterator[Fault]) -> None:
    """Raise all faults at once, if any.

    Raises:
        ConfigError: one sentence for each fault.
    """
    sentences = [f"{fault.where}{': ' * bool(fault.where)}{fault.what}: {fault.advice}" for fault in faults]
    if sentences:
        raise ConfigError("; ".join(sentences))
