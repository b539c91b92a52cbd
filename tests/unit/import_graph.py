"""The import graph of the repository, read from the source: lazy imports count, imports for types alone do not."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("optune_core", "tasks", "flows")

Graph = dict[str, set[str]]
"""Module → modules that it imports, by dotted name; a package stands for its `__init__`."""


def module_files() -> dict[str, Path]:
    """Return the file of every module of PACKAGES, by dotted name."""
    files = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def import_graph() -> Graph:
    """Return which modules of PACKAGES import which."""
    files = module_files()
    return {name: set(_imports(name, path, files)) - {name} for name, path in files.items()}


def folders(graph: Graph) -> Graph:
    """Return the graph of the folders of `optune_core`, a loose module being a folder of its own."""
    found: Graph = {}
    for name, imported in graph.items():
        if (source := _room(name)) is not None:
            found.setdefault(source, set()).update({_room(each) for each in imported} - {source, None})  # type: ignore[arg-type]
    return found


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of more than one node (Tarjan 1972), each sorted."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for each in sorted(graph.get(node, ())):
            if each not in index:
                visit(each)
                low[node] = min(low[node], low[each])
            elif each in stack:
                low[node] = min(low[node], index[each])
        if low[node] == index[node]:
            component = [stack.pop()]
            while component[-1] != node:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def top_level_imports(name: str) -> set[str]:
    """Return the top-level packages that a module imports, lazily or not."""
    tree = ast.parse(module_files()[name].read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def _room(name: str) -> str | None:
    """The folder below `optune_core` that a module is in, or the loose module itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "optune_core" and len(parts) > 1 else None


def _imports(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module in files:
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in files else node.module
