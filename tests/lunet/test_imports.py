"""The modules of lunet import each other in one direction, and only at their top level."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import lunet

MODULES = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in Path(lunet.__path__[0]).glob("*.py")}


def imported(node: ast.AST) -> set[str]:
    """The modules of lunet that a statement imports."""
    if isinstance(node, ast.ImportFrom) and node.module == "lunet":
        return {alias.name for alias in node.names}
    names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    return {name.split(".")[1] for name in names if name.startswith("lunet.")}


def test_imports_have_no_cycle() -> None:
    graph = {name: set().union(*map(imported, tree.body)) for name, tree in MODULES.items()}
    assert graph["lu_net"] >= {"base", "lu_layer", "starts"}
    order = list(TopologicalSorter(graph).static_order())
    assert order[-1] == "__init__"


def test_imports_are_at_the_top_level() -> None:
    for name, tree in MODULES.items():
        nested = {node for node in ast.walk(tree) if imported(node)} - set(tree.body)
        assert not nested, name
