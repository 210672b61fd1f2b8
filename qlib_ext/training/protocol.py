"""The rules a configuration can name."""

from __future__ import annotations

import inspect
from typing import Mapping

from qlib_ext.errors import ConfigError
from qlib_ext.training.incremental import IncrementalRule
from qlib_ext.training.meta import DoubleAdaptRule, MAMLRule
from qlib_ext.training.retrain import RollingRetrainRule
from qlib_ext.training.rule import Rule, SupervisedRule

RULES = {"supervised": SupervisedRule, "static": SupervisedRule,
         **{kind.name: kind for kind in (RollingRetrainRule, IncrementalRule, MAMLRule, DoubleAdaptRule)}}


def make_rule(spec: str | Mapping, loss) -> Rule:
    """A rule from its name, or from ``{"name": ..., option: value}``.

    Raises:
        ConfigError: unknown name or option (the valid ones are listed), or a value that cannot work.
    """
    spec = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise ConfigError(f"a rule is a name or a mapping with the key 'name', got {spec!r}; names: {sorted(RULES)}")
    if spec["name"] not in RULES:
        raise ConfigError(f"rule {spec['name']!r} is unknown; choose one of {sorted(RULES)}")
    kind, options = RULES[spec["name"]], {key: value for key, value in spec.items() if key != "name"}
    valid = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "loss")]
    unknown = sorted(set(options) - set(valid), key=str)
    if unknown:
        raise ConfigError(f"rule {spec['name']!r} does not take {unknown}; it takes {valid or 'no options'}")
    return kind(loss, **options)
