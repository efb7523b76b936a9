"""Calls of the runner in the process of the test."""

from __future__ import annotations

from pathlib import Path

from workshop import Workshop, write_yaml

from pipeline.core.console import StopRequest
from pipeline.core.params import read_yaml
from pipeline.run import Runner


def work(deadline: float = float("inf"), archive: str | None = None) -> int:
    """Run the runner once in this process, and return what it returns."""
    Path("runs").mkdir(exist_ok=True)
    return Runner(Path("params.yaml"), deadline, StopRequest()).run(Path(archive) if archive else None)


def without_report(workshop: Workshop) -> None:
    """Skip collect and report, which take seconds and are not under test."""
    graph = read_yaml(workshop.folder / "dvc.yaml")
    graph["stages"]["collect"]["cmd"] = graph["stages"]["report"]["cmd"] = "python -c pass"
    write_yaml(workshop.folder / "dvc.yaml", graph)
