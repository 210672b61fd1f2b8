"""Who may import what, how long and how alike files are, and that the project names no machine."""

import ast
import re
import subprocess
import sys
from fnmatch import fnmatch
from itertools import combinations
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted((ROOT / "qlib_ext").rglob("*.py"))}

# The first layer with a pattern that fits holds the module.
PURE = ["errors", "jit", "signatures", "market_rules", "factors.*", "data.transform", "data.columns", "training.loss", "training.measure",
        "training.style_loss",
        "models.layers", "risk.weighted", "risk.descriptor", "risk.style", "risk.regression", "risk.covariance", "risk.estimate",
        "risk.snapshot", "risk.quality", "report.metrics", "report.paired", "report.market_facts",
        "report.periods", "report.quantile", "report.neutral", "report.factor", "report.factor_view", "report.factor_text",
        "report.leak_checks",
        "report.table", "report.portfolio", "report.cells", "report.words", "report.sentences", "portfolio.constraint",
        "portfolio.program", "portfolio.preset",
        "portfolio.case", "portfolio.conic", "portfolio.solver", "portfolio.rounding", "portfolio.optimizer",
        "portfolio.enhanced_indexing", "portfolio.engine", "portfolio.aggregate"]
ADAPTERS = ["data.dataset", "data.aux_values", "data.processor", "data.arrays", "data.cross_section", "data.handler", "data.array_loader",
            "data.field_reader", "data.table", "data.cache", "data.threads", "data.loader", "data.winner_loader", "data.style_loader",
            "data.price_volume", "data.intraday", "data.segments",
            "data.leaks", "data.universe", "models.base", "models.keeping", "models.member", "models.rolling", "models.ensemble",
            "risk.market", "risk.model", "risk.records", "risk.__main__",
            "portfolio.strategy", "portfolio.closes", "portfolio.signal", "portfolio.rotation", "portfolio.exchange", "portfolio.records",
            "portfolio.__main__", "report.plots", "report.records", "report.saved", "report.view", "report.tearsheet",
            "report.leak_record", "report.leak_rebuild", "report.leak_variants",
            "report.drawing", "report.page", "report.sheet_record", "report.__main__",
            "report.compare", "report.choice", "report.runs", "report.weekly", "store.*", "demo.*", "scale.*", "home", "check*", "workflow",
            "tracking", "packing",
            "__main__"]
TORCH = ["data.panel", "data.sampler", "data.window", "data.pack", "training.*", "models.*"]
LAYERS = {"pure": PURE, "adapters": ADAPTERS, "torch": TORCH}

FOR_ALL = {"qlib_ext.risk.snapshot", "qlib_ext.report.metrics", "qlib_ext.market_rules"}
FILE_MODULES = {"pathlib", "os", "io", "tempfile", "shutil"}
APART = ("models", "risk", "portfolio", "report")


def layer(name: str) -> str | None:
    """pure, adapters, torch, `light` for an `__init__`; None for a module no pattern knows."""
    short = name.removeprefix("qlib_ext.")
    if name == "qlib_ext" or short.endswith("__init__"):
        return "light"
    return next((kind for kind, patterns in LAYERS.items() if any(fnmatch(short, pattern) for pattern in patterns)), None)


def imports(source: str, top_only: bool = False) -> set[str]:
    """Full names a source imports (`from a import b` gives a and a.b); `top_only` skips what functions and `try` import."""
    nodes, found = ast.parse(source).body if top_only else ast.walk(ast.parse(source)), set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def faults(name: str, source: str) -> list[str]:
    """What a module does that its layer may not."""
    kind, found = layer(name), imports(source)
    roots, found_faults = {module.split(".")[0] for module in found}, []
    if kind is None:
        return [f"{name} belongs to no layer: add it to one in this test"]
    if kind == "pure":
        found_faults += [f"{name} is pure and imports {root}" for root in sorted(roots & FILE_MODULES | roots & {"qlib"})]
        found_faults += [f"{name} is pure and opens a file" for node in ast.walk(ast.parse(source))
                         if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"]
    if kind == "torch":
        other = {module.split(".")[0] for module in imports(source, top_only=True)}
        other -= set(sys.stdlib_module_names) | {"torch", "numpy", "qlib_ext"}
        found_faults += [f"{name} imports {root}: torch and numpy only" for root in sorted(other)]
        found_faults += [f"{name} imports qlib" for _ in roots & {"qlib"}]
    if kind in ("pure", "torch"):
        below = {"pure", "light"} if kind == "pure" else {"pure", "torch", "light"}
        allowed = {"qlib_ext.models.base"} if kind == "torch" else set()
        found_faults += [f"{name} ({kind}) imports {module} ({layer(module)})" for module in sorted(found & set(FILES) - allowed)
                         if layer(module) not in below]
    folder = name.split(".")[1] if name.count(".") > 1 else ""
    if folder in APART:
        found_faults += [f"{name} imports {module}" for module in sorted(found & set(FILES) - FOR_ALL)
                         if module.split(".")[1] in set(APART) - {folder}]
    if kind == "light":
        extra = [node.lineno for node in ast.parse(source).body if not _is_light(node, folder)]
        found_faults += [f"{name} line {line}: an __init__ holds a docstring, and names of its own folder" for line in extra]
    return found_faults


def _is_light(node: ast.stmt, folder: str) -> bool:
    text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    constant = isinstance(node, ast.Assign) and isinstance(node.value, (ast.Constant, ast.List))
    own = isinstance(node, ast.ImportFrom) and bool(folder) and str(node.module).startswith(f"qlib_ext.{folder}.")
    return text or constant or own


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_module_keeps_to_its_layer(name):
    assert not faults(name, FILES[name].read_text())


@pytest.mark.parametrize("name, source", [
    ("qlib_ext.factors.winner", "from qlib.data import D"), ("qlib_ext.factors.winner", "open('x')"),
    ("qlib_ext.data.transform", "from pathlib import Path"), ("qlib_ext.factors.winner", "from qlib_ext.data.loader import x"),
    ("qlib_ext.models.gru", "import pandas as pd"), ("qlib_ext.training.trainer", "def f():\n    import qlib"),
    ("qlib_ext.data.panel", "from tqdm import tqdm"),
    ("qlib_ext.training.rule", "from qlib_ext.data.dataset import PanelDatasetH"),
    ("qlib_ext.models.gru", "from qlib_ext.report.compare import x"),
    ("qlib_ext.models.gru", "from qlib_ext.report import compare"),
    ("qlib_ext.utils.helpers", ""), ("qlib_ext.data.__init__", "import pandas"), ("qlib_ext.data.__init__", "print(1)"),
])
def test_a_planted_fault_is_found(name, source):
    assert faults(name, source)


def test_bare_training_box():
    """Torch modules, and the pure ones they use, import where qlib, pandas and tqdm are not installed."""
    names = [name for name in FILES if layer(name) == "torch" or name in ("qlib_ext.models.base", "qlib_ext.training.loss")]
    script = ("import importlib, sys\nfor name in ('qlib', 'pandas', 'tqdm', 'mlflow', 'scipy'): sys.modules[name] = None\n"
              f"for name in {names}: importlib.import_module(name)\n")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "qlib_ext.training.__main__" in names and "qlib_ext.models.master" in names


# ---- likeness, length, machines -----------------------------------------------------------------------------------------------
def statements(source: str) -> set[str]:
    """The statements of a source without docstrings, imports and what is shorter than a thought."""
    found, apart = set(), (ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef)
    for node in ast.walk(ast.parse(source)):
        text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and not text and not isinstance(node, apart):
            found.add(ast.unparse(node).split("\n")[0])
    return {line for line in found if len(line) > 20}


def likeness(first: str, second: str) -> float:
    """Share of the smaller source's statements that the other has too."""
    first, second = statements(first), statements(second)
    return len(first & second) / max(min(len(first), len(second)), 1)


def test_model_files_do_not_repeat_each_other():
    sources = {name: path.read_text() for name, path in FILES.items() if name.startswith("qlib_ext.models.")}
    sources.pop("qlib_ext.models.__init__")
    alike = {pair: likeness(sources[pair[0]], sources[pair[1]]) for pair in combinations(sources, 2)}
    assert max(alike.values()) < 0.2, {pair: round(value, 2) for pair, value in alike.items() if value >= 0.2}
    twin = sources["qlib_ext.models.gru"].replace("GRU", "LSTM").replace("recurrence", "memory")
    assert likeness(sources["qlib_ext.models.gru"], twin) > 0.2


def test_no_file_is_too_long():
    long = {name: count for name, path in FILES.items() if (count := len(path.read_text().splitlines())) > 600}
    assert not long


def test_no_machine_path_or_registry_in_tracked_files():
    words = ["/wo" "rk/", "/tm" "p/", "/ro" "ot/", "index" "-url", "find" "-links", "extra" "-index"]
    pattern = re.compile("|".join(rf"(?<![\w.\-~}}$]){re.escape(word)}" if word[0] == "/" else re.escape(word) for word in words))
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.is_file() and b"\0" not in path.read_bytes()[:1000]:
            found += [f"{name}:{number}: {line.strip()}" for number, line in enumerate(path.read_text().splitlines(), 1)
                      if pattern.search(line)]
    assert not found, "\n".join(found)
    for planted in ('open("/tm' 'p/x")', "cd /wo" "rk/main", "--extra" "-index-u" "rl https://example.org"):
        assert pattern.search(planted)
