"""The option ``--reached`` prints the epochs of the checkpoints with which a stopped training would resume."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
from trainings import CONTEXT, Cell, Fault, work

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed as POSIX systems do"),
]


def reached(cell: Cell) -> dict[str, float]:
    """The epochs that ``--reached`` prints for each model."""
    options = ["--dataset", "mnist", "--recipe", cell.recipe, "--seed", str(cell.seed), "--out", cell.out, "--reached"]
    process = CONTEXT.Process(target=work, args=(cell.folder, ["train", *options], cell.folder / "reached", ()))
    process.start()
    process.join()
    (line,) = (cell.folder / "reached").read_text(encoding="utf-8").splitlines()
    epochs: dict[str, float] = json.loads(line)
    return epochs


def test_the_printed_epochs_are_those_of_the_checkpoints(tmp_path: Path) -> None:
    cell = Cell(tmp_path, "lunet", {"classes": "each", "epochs": 2})
    assert reached(cell) == {"0": 0.0, "1": 0.0}
    # An epoch has four steps, a class eight: the kill precedes the checkpoint of class 1's third step.
    assert cell.train(Fault("pipeline.training.optimisation.TrainingStep.take", 11)) == -signal.SIGKILL, cell.log
    assert reached(cell) == {"0": 2.0, "1": 0.5}
    cell.changes["learning_rate"] = 0.002
    cell.write_params()
    assert reached(cell) == {"0": 0.0, "1": 0.0}
