"""Which module of the project imports which."""

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
    """The project's own file behind a dotted name."""
    place = Path(*name.split("."))
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path in MODULES), None)


def imports_of(path: Path) -> Iterator[Path]:
    """The project's own modules that a module imports, inside functions too."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        found: list[Path | None] = []
        if isinstance(node, ast.Import):
            found = [module_of(alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [module_of(f"{node.module}.{alias.name}") or module_of(node.module) for alias in node.names]
        yield from filter(None, found)


IMPORTS = {path: {other for other in imports_of(path) if other != path} for path in MODULES}


def reachable(module: Path) -> set[Path]:
    """A module and all that it imports, directly or not."""
    found, queue = set(), [module]
    while queue:
        path = queue.pop()
        if path not in found:
            found.add(path)
            queue += IMPORTS[path]
    return found
