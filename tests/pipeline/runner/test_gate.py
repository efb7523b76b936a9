"""The gate: each way to compute a training step is timed and compared with eager float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import CPU, recipe_of

from pipeline.core.dataset import Dataset
from pipeline.core.params import Recipe
from pipeline.runner import gate as gate_module
from pipeline.runner.gate import REFERENCE, VARIANTS, cuda_tests, steps_of, trials
from pipeline.runner.plan import Trial
from pipeline.training.fit import Trainer, split
from pipeline.training.models import build


@pytest.fixture
def recipe(smoke_values: Any) -> Recipe:
    return recipe_of(smoke_values, "realnvp", classes="each")


def test_all_variants_are_tried_and_exact_enough_on_a_cpu(recipe: Recipe, dataset: Dataset) -> None:
    tried = [*trials(recipe, dataset, CPU)]
    assert [trial.settings for trial in tried] == [trial.settings for trial in (REFERENCE, *VARIANTS)]
    assert [trial.error for trial in tried] == [None] * 6
    assert all(trial.step_ms and trial.step_ms > 0 for trial in tried)
    off = [trial.gradient_error or 0.0 for trial in tried]
    # On a CPU, only bfloat16 computes otherwise than the reference.
    assert off[:3] == [0, 0, 0]
    assert all(1e-5 < error < 0.1 for error in off[3:])


def test_a_variant_that_fails_or_is_inexact_is_recorded_and_the_others_are_tried(
    recipe: Recipe, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients = {"float32": 1.0, "tf32": 1.02, "bfloat16": 1.02}

    def measured(_recipe: Recipe, _images: Any, _device: Any, variant: Trial) -> tuple[float, torch.Tensor]:
        if variant.compile or variant.precision not in gradients:
            raise RuntimeError("no compiler\nwas found")
        return 1.0, torch.full((4,), gradients[variant.precision])

    monkeypatch.setattr(gate_module, "measure", measured)
    tried = [*trials(recipe, dataset, CPU)]
    assert tried[2].error == "its gradient is off by 0.02; at most 0.01 is allowed"
    assert tried[3].error is None
    assert [trial.error for trial in tried[4:]] == ["RuntimeError: no compiler"] * 2
    assert len([*trials(recipe, dataset, CPU, (REFERENCE,))]) == 1
    gradients.pop("float32")
    assert [*trials(recipe, dataset, CPU)][2].error == "there is no reference to compare its gradient with"


def test_the_steps_are_those_that_the_trainer_takes(recipe: Recipe, dataset: Dataset) -> None:
    assert recipe.training is not None
    total = 0
    for label in (0, 1):
        images = torch.from_numpy(dataset.train_images[dataset.train_labels == label])
        model = build(recipe, (1, 8, 8))
        total += Trainer(model, recipe, *split(images, images, recipe.training, 0), 0, "x", "x").steps
    assert steps_of(dataset, recipe, recipe.training) == total > 1


def test_the_tests_on_the_gpu_are_found_by_their_mark_and_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test_x.py"
    assert cuda_tests(path, 10) == "there are none"
    mark = "import pytest\npytestmark = pytest.mark.cuda\n"
    path.write_text(f"{mark}def test_x():\n    assert False\n")
    monkeypatch.chdir(tmp_path)
    assert cuda_tests(path, 60).startswith("exit status 1: ")
    path.write_text(f"{mark}import time\ntime.sleep(60)\n")
    assert cuda_tests(path, 1) == "stopped after 1 s"


def test_the_tests_of_the_gate_are_there() -> None:
    text = (Path(__file__).parents[3] / gate_module.TESTS).read_text(encoding="utf-8")
    assert "pytest.mark.cuda" in text
    assert "_compiled_" in text


def test_every_parameter_has_a_gradient_to_compare(recipe: Recipe, dataset: Dataset) -> None:
    _, gradient = gate_module.measure(recipe, torch.from_numpy(dataset.train_images), CPU, REFERENCE)
    sizes = [parameter.numel() for parameter in build(recipe, (1, 8, 8)).parameters()]
    assert all(part.any() for part in gradient.split(sizes))
