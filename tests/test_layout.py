"""The layout of the tree: runnable modules on top, layers below, imports in one direction, and mirrored tests."""

from __future__ import annotations

import importlib
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from import_graph import FILES, IMPORTS, MODULES, PACKAGES, ROOT, reachable

from pipeline.core.params import read_yaml

STAGES = {name: stage.get("do", stage) for name, stage in read_yaml(ROOT / "dvc.yaml")["stages"].items()}
COMMANDS = {"preset", "compare", "use", "sweep", "run", "publish"}
# Layers of `pipeline`, each of which imports only those after it; "." has the runnable modules. The runner is above the
# page, whose YAML it writes.
LAYERS = (".", "presets", "runner", "page", "results", "measuring", "evaluation", "training", "sources", "core")


def layer(path: Path) -> str:
    """The layer of a module of `pipeline`."""
    return path.parent.relative_to("pipeline").as_posix()


def test_imports_have_no_cycles() -> None:
    assert len([*TopologicalSorter(IMPORTS).static_order()]) == len(MODULES)


def test_every_folder_is_a_layer() -> None:
    assert {layer(path) for path in MODULES if path.parts[0] == "pipeline"} == set(LAYERS)


@pytest.mark.parametrize("module", sorted(path for path in MODULES if path.parts[0] == "pipeline"), ids=str)
def test_imports_point_down(module: Path) -> None:
    allowed = LAYERS[LAYERS.index(layer(module)) :]
    upwards = [other for other in IMPORTS[module] if other.parts[0] == "pipeline" and layer(other) not in allowed]
    outside = [other for other in IMPORTS[module] if other.parts[0] not in ("pipeline", "lunet")]
    assert (upwards, outside) == ([], [])


def test_the_library_imports_nothing_else_of_the_project() -> None:
    outside = {
        (path, other)
        for path in MODULES
        if path.parts[0] == "lunet"
        for other in IMPORTS[path]
        if other.parts[0] != "lunet"
    }
    assert outside == set()


def test_top_level_modules_are_stages_and_commands() -> None:
    top = {path.stem: path for path in MODULES if path.parent == Path("pipeline")}
    assert set(top) == {*STAGES, *COMMANDS}
    assert len(top) <= 16
    for path in top.values():
        assert (ROOT / path).read_text().rstrip().endswith('if __name__ == "__main__":\n    exit_with(main)')


@pytest.mark.parametrize(
    "module", sorted(path for path in MODULES if path.parent in (Path("pipeline"), Path("tools"))), ids=str
)
def test_help_of_every_command_prints_its_usage(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = ".".join(module.with_suffix("").parts)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [module.name, "--help"])
    with pytest.raises(SystemExit) as caught:
        importlib.import_module(name).main()
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m {name} [-h]")


def test_packages_of_the_pipeline_are_empty() -> None:
    assert [path for path in (ROOT / "pipeline").rglob("__init__.py") if path.read_text()] == []


@pytest.mark.parametrize("stage", STAGES)
def test_every_import_of_a_stage_is_a_dependency(stage: str) -> None:
    listed = {dep for dep in STAGES[stage]["deps"] if "${" not in dep}
    missing = {
        path.as_posix()
        for path in reachable(Path("pipeline", f"{stage}.py"))
        if not listed & {path.as_posix(), *(parent.as_posix() for parent in path.parents)}
    }
    assert missing == set()


@pytest.mark.parametrize("stage", STAGES)
def test_every_dependency_on_code_is_imported(stage: str) -> None:
    needed = {file.as_posix() for path in reachable(Path("pipeline", f"{stage}.py")) for file in (path, *path.parents)}
    listed = {dep for dep in STAGES[stage]["deps"] if dep.partition("/")[0] in PACKAGES}
    assert listed <= needed


@pytest.mark.parametrize("stage", ["collect", "report"])
def test_collect_and_report_do_not_import_torch(stage: str) -> None:
    code = f"import sys, pipeline.{stage}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_no_file_has_more_than_400_lines() -> None:
    lengths = {path.as_posix(): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}


@pytest.mark.parametrize("module", sorted(path for path in MODULES if path.name != "__init__.py"), ids=str)
def test_every_module_has_its_test(module: Path) -> None:
    assert Path("tests", *module.parent.parts, f"test_{module.name}") in FILES
