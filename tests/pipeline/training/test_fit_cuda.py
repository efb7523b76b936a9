"""Every recipe of the paper preset is trained on a GPU: on a pretend one, which counts waits, and on a real one."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path

import pytest
import torch
from paper_recipes import CASES, CUDA, RECIPES, halves, small_recipe
from pretend_tensors import Counts
from small_trainings import CPU

from lunet import load_flow
from pipeline.core.console import StoppedError, StopRequest
from pipeline.core.params import Recipe
from pipeline.train import train
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.fit import fit
from pipeline.training.models import build
from pipeline.training.record import Fit

# How often the host may wait for the GPU between one reading of the steps' results and the next, and in one validation.
WAITS_OF_STEPS = 1
WAITS_OF_VALIDATION = 2
TRAINED = [name for name in RECIPES if small_recipe(name).training]


def curve(fit: Fit) -> list[float]:
    return [row["holdout_bits_per_dim"] for row in fit.history]


@pytest.mark.parametrize(("name", "classes"), CASES)
def test_a_training_gives_what_it_gives_on_the_cpu(gpu: Counts, name: str, classes: str, tmp_path: Path) -> None:
    recipe, dataset = small_recipe(name, classes, precision="float32"), halves()
    expected, _ = train(dataset, recipe, 0, CPU, tmp_path / "cpu", name)
    assert not gpu.operations
    fits, _ = train(dataset, recipe, 0, CUDA, tmp_path / "gpu", name)
    for model, trained in fits.items():
        assert trained.status == "complete"
        assert curve(trained) == pytest.approx(curve(expected[model]), rel=1e-5)
        weights, expected_weights = (load_flow(tmp_path / device / model).state_dict() for device in ("gpu", "cpu"))
        torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", TRAINED)
def test_a_training_resumes_from_its_checkpoint(name: str, tmp_path: Path) -> None:
    recipe, request = small_recipe(name), StopRequest()
    whole = train_one(recipe, Checkpoint())
    request.signal = signal.SIGTERM
    with pytest.raises(StoppedError, match="after step 1 of"):
        train_one(recipe, Checkpoint(tmp_path / "all.pt", 0, request))
    resumed = train_one(recipe, Checkpoint(tmp_path / "all.pt"))
    assert resumed.steps == whole.steps
    assert curve(resumed) == curve(whole)


def train_one(recipe: Recipe, checkpoint: Checkpoint, images: int = 160) -> Fit:
    torch.manual_seed(0)
    dataset = halves(train=images)
    parts = torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.test_images)
    return fit(build(recipe, (1, 8, 8)), recipe, *parts, CUDA, 0, "one", checkpoint)


@pytest.mark.parametrize("name", TRAINED)
def test_the_host_rarely_waits(gpu: Counts, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("pipeline.training.fit.READ_EVERY", {"cuda": 4})  # the steps are slow here

    def waits(steps: int, validations: int) -> Counter[str]:
        recipe = small_recipe(name, epochs=steps, batch_size=1000, validations=validations)
        with gpu.of_block() as block:
            assert train_one(recipe, Checkpoint()).steps == steps
        return block.waits

    once = waits(4, 1)
    in_steps, in_validation = waits(8, 1) - once, waits(4, 2) - once
    assert 0 < in_steps.total() <= WAITS_OF_STEPS, in_steps
    assert 0 < in_validation.total() <= WAITS_OF_VALIDATION, in_validation


@pytest.mark.cuda
@pytest.mark.usefixtures("quick_marginals")
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_a_real_gpu_trains_every_recipe(name: str, classes: str, tmp_path: Path) -> None:
    recipe, dataset = small_recipe(name, classes, capture=True), halves()
    fits, _ = train(dataset, recipe, 0, CUDA, tmp_path, name)
    for model, trained in fits.items():
        assert trained.status == "complete"
        load_flow(tmp_path / model, CUDA)  # which checks that it is invertible
