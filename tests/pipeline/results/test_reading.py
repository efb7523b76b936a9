"""Tests that missing, damaged and outdated files of the stages are refused, with the command that mends them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_results import SMALL, Project, parameters

from pipeline.core.console import UserError
from pipeline.results.reading import CellStatus, read_results, read_samples


@pytest.fixture
def small(tmp_path: Path) -> Project:
    return Project(tmp_path, parameters(**SMALL))


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("train/mnist-realnvp-0/run.json", "pipeline.train --dataset mnist --recipe realnvp --seed 0"),
        ("train/mnist-realnvp-0/history.csv", "pipeline.train --dataset mnist --recipe realnvp --seed 0"),
        ("evaluate/mnist-realnvp-0.json", "pipeline.evaluate --dataset mnist --recipe realnvp --seed 0"),
        ("samples/mnist-realnvp-0/samples.npy", "pipeline.evaluate --dataset mnist --recipe realnvp --seed 0"),
        ("measure/mnist-realnvp.json", "pipeline.measure --dataset mnist --recipe realnvp"),
    ],
)
def test_a_missing_cell_is_named_with_its_command(small: Project, missing: str, command: str) -> None:
    (small.runs / missing).unlink()
    with pytest.raises(UserError, match="missing") as error:
        small.collect()
    assert missing in str(error.value)
    assert command in str(error.value)


def test_a_measurement_of_its_own_comes_before_one_of_images_of_the_same_size(tmp_path: Path) -> None:
    project = Project(tmp_path, parameters(measure__datasets=["mnist", "fashion_mnist"]))
    results = project.read()
    assert [results.measured(name, "lunet").dataset for name in results.datasets] == ["mnist", "fashion_mnist"]  # type: ignore[union-attr]
    left_out = CellStatus(stage="measure", dataset="fashion_mnist", recipe="lunet", status="missing", message=None)
    results = read_results(results.params, project.data, project.runs, [left_out])
    assert [results.measured(name, "lunet").dataset for name in results.datasets] == ["mnist", "mnist"]  # type: ignore[union-attr]


@pytest.mark.parametrize("shape", [[14, 28], None])
def test_a_measurement_stands_for_no_data_set_of_another_size(tmp_path: Path, shape: list[int] | None) -> None:
    project = Project(tmp_path, parameters(grid__recipes=["lunet"]))
    project.change("measure/mnist-lunet.json", image_shape=shape)
    results = project.read()
    assert results.measured("mnist", "lunet") is results.measurements[0]
    assert results.measured("fashion_mnist", "lunet") is None


@pytest.mark.parametrize(
    ("path", "changes", "place"),
    [
        ("evaluate/mnist-lunet-0.json", {"test__bits_per_dim__mean": math.nan}, "test.bits_per_dim.mean: is nan"),
        ("evaluate/mnist-lunet-0.json", {"per_class__1__bits_per_dim__max": math.inf}, "per_class.1"),
        ("measure/mnist-lunet.json", {"times__step__samples": [1.0, math.nan]}, "times.step.samples.1: is nan"),
        ("measure/mnist-lunet.json", {"times__step__samples": [0.0]}, "times.step.samples.0"),
        ("train/mnist-lunet-0/run.json", {"status": "fine"}, "status: is 'fine'"),
    ],
)
def test_nan_and_nonsense_are_refused(small: Project, path: str, changes: dict[str, Any], place: str) -> None:
    small.change(path, **changes)
    with pytest.raises(UserError) as error:
        small.read()
    assert path in str(error.value)
    assert place in str(error.value)


def test_a_run_with_other_parameters_is_refused(small: Project) -> None:
    small.change("train/mnist-lunet-0/run.json", recipe_params__training__epochs=99.0)
    with pytest.raises(UserError, match=r"other parameters than recipes\.lunet"):
        small.read()


def test_settings_that_older_trainings_lacked_are_as_their_defaults_say(small: Project) -> None:
    path = small.runs / "train/mnist-lunet-0/run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    del record["recipe_params"]["training"]["precision"]
    path.write_text(json.dumps(record), encoding="utf-8")
    assert small.read().cells[0].run.recipe_params == record["recipe_params"]
    small.change("train/mnist-lunet-0/run.json", recipe_params__training__precision="bfloat16")
    with pytest.raises(UserError, match=r"other parameters than recipes\.lunet"):
        small.read()


@pytest.mark.parametrize(
    ("path", "stage"), [("train/mnist-lunet-0/run.json", "train"), ("evaluate/mnist-lunet-0.json", "evaluate")]
)
def test_a_file_about_another_cell_is_refused(small: Project, path: str, stage: str) -> None:
    small.change(path, seed=5)
    with pytest.raises(UserError, match=f"is about mnist-lunet-5 and not mnist-lunet-0.*{stage} --dataset mnist"):
        small.read()


def test_samples_that_are_no_grid_are_refused(small: Project) -> None:
    cell = small.read().cells[0]
    assert read_samples(cell).shape == (3, 4, 28, 28)
    np.save(cell.samples, np.zeros((3, 28, 28), dtype=np.uint8))
    with pytest.raises(UserError, match=r"samples\.npy should be a grid.*pipeline\.evaluate"):
        read_samples(cell)


def test_messages_lose_the_paths_of_the_machine() -> None:
    names = {"stage": "train", "dataset": "mnist", "recipe": "lunet", "seed": 0, "status": "failed"}
    cell = CellStatus.model_validate({**names, "message": "no room in /home/someone/runs"})
    assert cell.message == "no room in <path>"
    assert str(cell.key) == "mnist-lunet-0"
