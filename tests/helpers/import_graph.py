"""The graph of imports between the project's modules."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("lunet", "pipeline", "benchmarks", "tools")
FILES = {
    path.relative_to(ROOT)
    for folder in (*PACKAGES, "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".yaml", ".html", ".css", ".js")
}
MODULES = {path for path in FILES if path.suffix == ".py" and path.parts[0] in PACKAGES}
MODULES -= {path for path in MODULES if path.name == "__init__.py" and not (ROOT / path).read_text()}


def module_of(name: str) -> Path | None:
    """The file of a dotted module name, if the project contains it."""
    stem = Path(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path in MODULES), None)


def imports_of(path: Path) -> Iterator[Path]:
    """The project's modules that a module imports, also inside functions."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        modules: list[Path | None] = []
        if isinstance(node, ast.Import):
            modules = [module_of(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules = [module_of(f"{node.module}.{alias.name}") or module_of(node.module) for alias in node.names]
        yield from filter(None, modules)


IMPORTS = {path: {other for other in imports_of(path) if other != path} for path in MODULES}


def reachable(module: Path) -> set[Path]:
    """A module and all modules that it imports, directly or indirectly."""
    modules, queue = set(), [module]
    while queue:
        path = queue.pop()
        if path not in modules:
            modules.add(path)
            queue += IMPORTS[path]
    return modules
