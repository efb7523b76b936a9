"""Calls of the runner in the process of the test."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from workshop import Workshop, write_yaml

from pipeline.core.console import StopRequest
from pipeline.core.params import read_yaml
from pipeline.results.reading import CellStatus
from pipeline.run import Runner
from pipeline.runner.archive import unpack
from pipeline.runner.plan import Budget

ALL = [
    "measure mnist-lunet",
    "measure mnist-realnvp",
    "train mnist-lunet-0",
    "evaluate mnist-lunet-0",
    "train mnist-realnvp-0",
    "evaluate mnist-realnvp-0",
]


class Clock:
    """A clock that stands still until a stage hangs, and then jumps ahead."""

    def __init__(self, jump: float = math.inf) -> None:
        self.jump = jump

    def __call__(self) -> float:
        return self.jump if Path("hanging").exists() else 0.0


def work(limit: float = math.inf, out: str | None = None, jump: float = math.inf, **options: Any) -> int:
    """Run the runner once in this process, and return what it returns; a stage that hangs moves the clock to a time."""
    Path("runs").mkdir(exist_ok=True)
    budget = Budget(limit, Clock(jump), begin=0.0)
    return Runner(Path("params.yaml"), budget, StopRequest(), Path(out) if out else None, **options).run()


def without_report(workshop: Workshop) -> None:
    """Skip collect and report, which take seconds and are not under test."""
    graph = read_yaml(workshop.folder / "dvc.yaml")
    graph["stages"]["collect"]["cmd"] = graph["stages"]["report"]["cmd"] = "python -c pass"
    write_yaml(workshop.folder / "dvc.yaml", graph)


def cells_in(archive: str, folder: Path) -> dict[str, CellStatus]:
    """The status of each cell in an archive, which is unpacked to a folder and checked."""
    return {f"{cell.stage} {cell.key}": cell for cell in unpack(Path(archive), folder).cells}
