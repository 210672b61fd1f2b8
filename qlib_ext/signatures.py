"""Which keywords a callable really takes, following `**kwargs` up to the base classes.

Many classes end in `**kwargs`. Some hand it on to their base, some take names out of it, some keep it whole, some drop it without
a word; a misspelt keyword is only harmless in the third case. Reading the constructor's source tells these apart.
"""

import ast
import difflib
import inspect
import re
import textwrap
from dataclasses import dataclass, field
from typing import Callable, Iterable, Optional


@dataclass
class Keywords:
    """Keywords of a callable: all `names`, those that are `required`, and whether any other name is taken too (`anything`)."""

    names: set = field(default_factory=set)
    required: set = field(default_factory=set)
    anything: bool = False

    def unknown(self, given: Iterable[str]) -> list[str]:
        """Those of `given` that are not taken."""
        return [] if self.anything else sorted(set(given) - self.names)

    def missing(self, given: Iterable[str]) -> list[str]:
        """Required ones that are not `given`."""
        return sorted(self.required - set(given))


@dataclass
class _Use:
    """What a method does with its `**kwargs`: names taken out, kept whole, handed to the base class or to other methods."""

    taken: set = field(default_factory=set)
    kept: bool = False
    forwarded: bool = False
    passed_positional: int = 0
    passed_names: set = field(default_factory=set)
    methods: set = field(default_factory=set)


def keywords(target: Callable) -> Keywords:
    """The keywords of a function, or of a class by its constructors along the method resolution order.

    A name counts when the constructor has it, takes it out of `**kwargs` (`kwargs.pop("name")`), or hands `**kwargs` to a base
    constructor (or a method of its own) that has it and is not given it already. `**kwargs` that is used in another way makes the
    class take anything; one that is never used, or only to refuse, does not.
    """
    if not inspect.isclass(target):
        return _direct(inspect.signature(target).parameters.values(), target_is_open=True)
    return _of_method(target, "__init__")


def _of_method(owner: type, method: str) -> Keywords:
    """Keywords of one method of a class, followed along the method resolution order."""
    found = Keywords()
    given_positional, given_names = 0, set()
    for depth, function in enumerate(vars(base)[method] for base in owner.__mro__ if base is not object and method in vars(base)):
        parameters = list(inspect.signature(function).parameters.values())[1:]
        own = _direct(parameters[given_positional:], target_is_open=False)
        found.required |= own.required - given_names - (found.names if depth else set())
        found.names |= own.names - given_names
        variable = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        if variable is None:
            return found
        use = _use_of(function, variable)
        if use is None:
            found.anything = True
            return found
        found.names |= use.taken
        found.anything |= use.kept
        for name in use.methods:
            other = _of_method(owner, name)
            found.names |= other.names
            found.anything |= other.anything
        if not use.forwarded:
            return found
        given_positional, given_names = use.passed_positional, use.passed_names
    return found


def _direct(parameters, target_is_open: bool) -> Keywords:
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Keywords({p.name for p in named}, {p.name for p in named if p.default is p.empty},
                    target_is_open and any(p.kind is p.VAR_KEYWORD for p in parameters))


def _use_of(constructor: Callable, variable: str) -> Optional[_Use]:
    """Read the method's source; None where there is none."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(constructor)))
    except (OSError, TypeError, SyntaxError, IndentationError):
        return None
    use = _Use()
    explained: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and _is(node.test, variable) and isinstance(node.body[-1], ast.Raise):
            explained |= {id(inner) for inner in ast.walk(node)}
        elif isinstance(node, ast.Call):
            _read_call(node, variable, constructor.__name__, use, explained)
        elif isinstance(node, ast.Subscript) and _is(node.value, variable) and isinstance(node.slice, ast.Constant):
            use.taken.add(node.slice.value)
            explained.add(id(node.value))
        elif isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
            explained |= {id(c) for c in node.comparators if _is(c, variable)}
    rest = [n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == variable and id(n) not in explained]
    use.kept = bool(rest)
    return use


def _is(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name


def _read_call(node: ast.Call, variable: str, method: str, use: _Use, explained: set) -> None:
    """Recognise `kwargs.pop("x")`, `super().__init__(..., **kwargs)` and `self.method(**kwargs)`."""
    function = node.func
    if not isinstance(function, ast.Attribute):
        return
    spread = [k.value for k in node.keywords if k.arg is None and _is(k.value, variable)]
    if _is(function.value, variable) and function.attr in ("pop", "get", "setdefault") and node.args:
        if isinstance(node.args[0], ast.Constant):
            use.taken.add(node.args[0].value)
            explained.add(id(function.value))
    elif spread and _is(function.value, "self"):
        use.methods.add(function.attr)
        explained |= {id(value) for value in spread}
    elif spread and function.attr == method:
        through_super = isinstance(function.value, ast.Call) and _is(function.value.func, "super")
        use.forwarded = True
        given = sum(not isinstance(argument, ast.Starred) for argument in node.args)
        use.passed_positional = given - (0 if through_super else 1)
        use.passed_names = {k.arg for k in node.keywords if k.arg is not None}
        explained |= {id(value) for value in spread}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def library_names(found) -> set:
    """Parameter names behind a `**kwargs` that goes to a library as it is (LightGBM); empty where unknown."""
    if getattr(found, "__name__", "") not in ("LGBModel", "DEnsembleModel"):
        return set()
    try:
        from lightgbm.basic import _ConfigAliases
        aliases = _ConfigAliases._get_all_param_aliases()
        return set(aliases) | {alias for names in aliases.values() for alias in names}
    except (ImportError, AttributeError):
        return set()


def wrong_numbers(target: Callable, given: dict) -> dict[str, str]:
    """Of the values `given`, those that must be numbers and are not: name -> "whole number" or "number".

    What must be a number is read from the parameter's default or annotation, or from a docstring line ``name : int``, in the
    constructors along the method resolution order. None and values of other kinds (a dictionary, say) are left alone.
    """
    functions = [vars(base)["__init__"] for base in target.__mro__ if base is not object and "__init__" in vars(base)] \
        if inspect.isclass(target) else [target]
    wrong = {}
    for name, value in given.items():
        kind = next((kind for kind in (_number_kind(function, name) for function in functions) if kind), None)
        if kind and isinstance(value, str):
            wrong[name] = "whole number" if kind is int else "number"
        elif kind is int and isinstance(value, float) and not value.is_integer():
            wrong[name] = "whole number"
    return wrong


def _number_kind(function: Callable, name: str) -> Optional[type]:
    """int or float where one parameter of a function must be that, else None."""
    try:
        parameter = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):
        return None
    if parameter is None:
        return None
    if type(parameter.default) in (int, float):
        return type(parameter.default)
    if parameter.annotation in (int, float, "int", "float"):
        return {"int": int, "float": float}.get(parameter.annotation, parameter.annotation)
    described = re.search(rf"^\s*{re.escape(name)}\s*:\s*(int|float)\b", function.__doc__ or "", re.MULTILINE)
    return {"int": int, "float": float}[described.group(1)] if described else None
