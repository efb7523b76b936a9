"""The evaluate stage on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from small_trainings import folder_with, stage

from pipeline.core.files import write_json
from pipeline.core.params import load_params


def test_an_evaluation_of_a_diverged_run_records_the_status(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    assert stage("pipeline.data", "--dataset", "mnist", "--out", "data/mnist", cwd=folder).returncode == 0
    run = folder / "runs/train/mnist-lunet-0"
    run.mkdir(parents=True)
    recipe_params = load_params(folder / "params.yaml").recipe("lunet").model_dump(mode="json")
    names = {"dataset": "mnist", "recipe": "lunet", "seed": 0, "recipe_params": recipe_params}
    write_json(run / "run.json", {**names, "status": "diverged", "message": "the loss is nan"})
    finished = stage(
        "pipeline.evaluate", "--dataset", "mnist", "--recipe", "lunet", "--out", "runs/evaluate/x.json", cwd=folder
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads((folder / "runs/evaluate/x.json").read_text(encoding="utf-8"))
    assert (result["status"], result["test"]) == ("diverged", None)
    assert np.load(folder / "runs/samples/mnist-lunet-0/samples.npy").shape == (0, 4, 28, 28)
