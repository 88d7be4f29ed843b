"""What the source may look like: who imports whom, and how long a file is."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "fxquant").rglob("*.py"))

# What each room may import of ours, besides itself. What is not listed is the front door.
MAY_IMPORT = {
    "errors": set(),
    "graph": {"errors"},
    "quant": {"errors"},
    "pipeline": {"graph", "quant", "errors"},
    "capture": {"graph", "errors"},
    "passes": {"pipeline", "graph", "quant", "errors"},
    "backends": {"pipeline", "graph", "quant", "errors", "report", "artifact"},
    "report": {"pipeline", "graph", "quant", "errors"},
}
EXTRAS = ("timm", "torchvision", "sklearn", "matplotlib", "PIL")

# Hides packages as if they were not installed.
IMPORT_WITHOUT_EXTRAS = """
import sys
from importlib.machinery import PathFinder

hidden = set(sys.argv[1:])

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in hidden:
            return None
        return PathFinder.find_spec(name, path, target)

sys.meta_path[:] = [Finder if finder is PathFinder else finder for finder in sys.meta_path]
import fxquant
assert not hidden & set(sys.modules)
"""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCES}


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def import_nodes(node: ast.AST, *, with_types: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yields every import under `node`, those inside functions too."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node
    if isinstance(node, ast.If) and is_type_checking(node.test) and not with_types:
        children: list[ast.AST] = list(node.orelse)
    else:
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from import_nodes(child, with_types=with_types)


def targets(node: ast.Import | ast.ImportFrom, module: str, *, is_package: bool) -> Iterator[str]:
    """Yields the absolute name of each module that an import names."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        base = ".".join([*parts, base] if base else parts)
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in MODULES else base


@cache
def imports_of(path: Path, *, with_types: bool) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    is_package = path.name == "__init__.py"
    name = module_name(path)
    nodes = import_nodes(tree, with_types=with_types)
    return frozenset(t for node in nodes for t in targets(node, name, is_package=is_package))


def room_of(module: str) -> str:
    """The part after `fxquant.`; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def is_ours(module: str) -> bool:
    return module.partition(".")[0] == "fxquant"


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_room_imports_only_what_it_may(room: str) -> None:
    allowed = MAY_IMPORT[room] | {room}
    wrong = [
        f"{module} imports {target}"
        for module, path in MODULES.items()
        if room_of(module) == room
        for target in sorted(imports_of(path, with_types=True))
        if is_ours(target) and room_of(target) not in allowed
    ]
    assert wrong == []


def test_modules_have_no_import_cycle() -> None:
    graph = nx.DiGraph()
    for module, path in MODULES.items():
        for target in imports_of(path, with_types=False):
            if is_ours(target):
                graph.add_edge(module, target)
    assert [sorted(part) for part in nx.strongly_connected_components(graph) if len(part) > 1] == []


def test_root_links_are_not_imported() -> None:
    paths = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py"))]
    wrong = [
        path.relative_to(ROOT).as_posix()
        for path in paths
        for target in imports_of(path, with_types=True)
        if target.partition(".")[0] in {"passes", "backends"}
    ]
    assert wrong == []


def test_no_module_is_named_utils() -> None:
    assert [name for name in MODULES if name.rpartition(".")[2] in {"util", "utils"}] == []


def test_core_imports_without_the_extras() -> None:
    command = [sys.executable, "-c", IMPORT_WITHOUT_EXTRAS, *EXTRAS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_source_files_are_short() -> None:
    lengths = {
        module: len(path.read_text(encoding="utf-8").splitlines())
        for module, path in MODULES.items()
        if path.name != "__init__.py"
    }
    assert {module: length for module, length in lengths.items() if length > 420} == {}
    assert statistics.median(lengths.values()) <= 150
