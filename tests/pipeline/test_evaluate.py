"""The evaluate stage on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from small_trainings import folder_with, stage
from trained_runs import write_run

from pipeline.core.params import load_params
from pipeline.evaluation.record import Evaluation


def test_an_evaluation_of_a_diverged_run_records_the_status(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    assert stage("pipeline.data", "--dataset", "mnist", "--out", "data/mnist", cwd=folder).returncode == 0
    run = folder / "runs/train/mnist-lunet-0"
    run.mkdir(parents=True)
    recipe_params = load_params(folder / "params.yaml").recipe("lunet").model_dump(mode="json")
    failed = {"status": "diverged", "message": "the loss is nan"}
    write_run(run, {}, recipe="lunet", recipe_params=recipe_params, **failed)
    finished = stage(
        "pipeline.evaluate", "--dataset", "mnist", "--recipe", "lunet", "--out", "runs/evaluate/x.json", cwd=folder
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads((folder / "runs/evaluate/x.json").read_text(encoding="utf-8"))
    assert {name: result[name] for name in failed} == failed
    assert set(result) == {*Evaluation.model_fields, "checksum"}
    assert result["test"] is None
    assert np.load(folder / "runs/samples/mnist-lunet-0/samples.npy").shape == (0, 4, 28, 28)
