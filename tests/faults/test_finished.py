"""The option ``--finished`` writes the classes that a killed training has finished."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from trainings import CONTEXT, Cell, Fault, work

from pipeline.core.files import read_json

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.name != "posix", reason="processes are forked and killed as POSIX systems do"),
]


def test_the_finished_classes_are_written_and_the_training_goes_on(tmp_path: Path) -> None:
    cell = Cell(tmp_path, "lunet", {"classes": "each", "epochs": 2})
    # A class takes eight steps: the kill comes in class 1.
    assert cell.train(Fault("pipeline.training.optimisation.TrainingStep.take", 11)) == -signal.SIGKILL, cell.log
    checkpoints = {path: path.read_bytes() for path in (tmp_path / ".checkpoints").glob("*/*.pt")}
    options = ["--dataset", "mnist", "--recipe", cell.recipe, "--seed", str(cell.seed), "--out", cell.out, "--finished"]
    process = CONTEXT.Process(target=work, args=(cell.folder, ["train", *options], cell.folder / "log", ()))
    process.start()
    process.join()
    assert process.exitcode == 0
    run = read_json(tmp_path / cell.out / "run.json")
    assert (run["status"], run["message"], [*run["models"]]) == ("partial", "1 of 2 classes trained", ["0"])
    assert [path.name for path in (tmp_path / cell.out / "flows").iterdir()] == ["0"]
    assert {path: path.read_bytes() for path in (tmp_path / ".checkpoints").glob("*/*.pt")} == checkpoints
    assert cell.train() == 0, cell.log
    whole = read_json(tmp_path / cell.out / "run.json")
    assert (whole["status"], [*whole["models"]]) == ("complete", ["0", "1"])
    assert whole["models"]["0"] == run["models"]["0"]
