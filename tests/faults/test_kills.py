"""A training that is killed at any point, and started again, ends as if nothing had happened."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trainings import Cell, Fault

pytestmark = pytest.mark.faults

MODELS = ["lunet", "realnvp"]
POINTS = {
    "before the first step": Fault("pipeline.train.optimise", 1),
    "in the middle of an epoch": Fault("pipeline.train.optimise", 5),
    "before a look at the held-out images": Fault("pipeline.train.score", 2),
    "after the last step": Fault("pipeline.train.optimise", 8, after=True),
    "with a checkpoint half written": Fault("torch.save", 4, after=True),
    "with a checkpoint not yet on the disk": Fault("os.fsync", 7),
    "before a checkpoint gets its name": Fault("pathlib.Path.replace", 4),
    "after a checkpoint has got its name": Fault("pathlib.Path.replace", 4, after=True),
    "with the last checkpoint written": Fault("pathlib.Path.replace", 9, after=True),
    "before a flow is written": Fault("pipeline.train.save_flow", 1),
    "before the run gets its name": Fault("pathlib.Path.replace", 10),
    "before the checkpoints are removed": Fault("pathlib.Path.replace", 10, after=True),
}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """The outcome of a training that nothing disturbs."""
    known: dict[str, Any] = {}

    def outcome(recipe: str, **changes: Any) -> Any:
        name = f"{recipe} {changes}"
        if name not in known:
            cell = Cell(tmp_path_factory.mktemp("undisturbed"), recipe, changes)
            assert cell.train() == 0, cell.log
            known[name] = cell.outcome()
        return known[name]

    return outcome


@pytest.mark.parametrize("recipe", MODELS)
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(tmp_path: Path, undisturbed: Callable[..., Any], recipe: str, point: str) -> None:
    cell = Cell(tmp_path, recipe)
    assert cell.train(POINTS[point]) == -signal.SIGKILL, cell.log
    assert cell.train() == 0, cell.log
    assert cell.outcome() == undisturbed(recipe)
    assert cell.checkpoints() == []
    assert [path.name for path in (tmp_path / "runs/train").iterdir()] == ["mnist"]
