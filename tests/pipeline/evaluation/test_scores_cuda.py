"""Every recipe of the paper preset is evaluated on a GPU: on a pretend one, which counts waits, and on a real one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from paper_recipes import CASES, CUDA, RECIPES, halves, small_params
from pretend_tensors import Counts
from small_trainings import CPU

from lunet import ImageFlow
from pipeline.core.dataset import Dataset
from pipeline.evaluation.scores import evaluate
from pipeline.training.models import build, groups, initialise_

# How often the host may wait for the GPU in each batch of the test set, with two draws of noise and one model. Beside
# the pass over the test set, a Gaussian and the untrained network are scored if the model is an LU-Net.
WAITS_OF_BATCH = {
    "lunet": 20, "lunet_learned": 20, "realnvp": 12, "lunet_released": 20, "realnvp_released": 12, "gaussian": 12,
    "histogram": 16,
}  # fmt: skip
BATCH = 16


def models(name: str, classes: str, device: torch.device, dataset: Dataset) -> dict[str, ImageFlow]:
    """The untrained models of a recipe, initialised on a device."""
    recipe = small_params(classes).recipe(name)
    torch.manual_seed(0)
    built = {}
    for model, label in groups(dataset, recipe).items():
        images = dataset.train_images if label is None else dataset.train_images[dataset.train_labels == label]
        built[model] = build(recipe, (1, 8, 8)).to(device).eval()
        noise = torch.Generator(device).manual_seed(0)
        initialise_(built[model], recipe, torch.from_numpy(images).to(device), noise)
    return built


def evaluated(name: str, classes: str, device: torch.device, dataset: Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    params = small_params(classes)
    return evaluate(models(name, classes, device, dataset), dataset, params.recipe(name), params.evaluate, 0)


def numbers(results: dict[str, Any]) -> dict[str, float]:
    """The results beside the test set's that this recipe has."""
    names = ("closed_form_bits_per_dim", "identity_bits_per_dim", "classification_accuracy", "interpolations")
    return {name: results[name] for name in names if results.get(name) is not None}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_an_evaluation_gives_what_it_gives_on_the_cpu(name: str, classes: str) -> None:
    (expected, expected_grids), (results, grids) = (evaluated(name, classes, where, halves()) for where in (CPU, CUDA))
    assert results.keys() == expected.keys()
    assert results["test"]["bits_per_dim"] == pytest.approx(expected["test"]["bits_per_dim"], rel=1e-5)
    assert results["round_trip"]["pixels_exact"] == expected["round_trip"]["pixels_exact"]
    assert numbers(results) == pytest.approx(numbers(expected), rel=1e-5)
    assert grids.keys() == expected_grids.keys()
    np.testing.assert_allclose(grids.pop("bits"), expected_grids.pop("bits"), rtol=1e-5)
    assert all(np.array_equal(grids[key], expected_grids[key]) for key in grids)


@pytest.mark.parametrize("name", RECIPES)
def test_the_host_waits_a_bounded_number_of_times(gpu: Counts, name: str) -> None:
    params, trained = small_params(), models(name, "all", CUDA, halves())

    def waits(images: int) -> Counter[str]:
        with gpu.of_block() as block:
            evaluate(trained, halves(test=images), params.recipe(name), params.evaluate, 0)
        return block.waits

    # Both have more images than the round trip and the interpolations take.
    of_batch = waits(3 * BATCH) - waits(2 * BATCH)
    assert of_batch.total() <= WAITS_OF_BATCH[name], of_batch


@pytest.mark.cuda
@pytest.mark.usefixtures("quick_marginals")
@pytest.mark.parametrize(("name", "classes"), CASES)
def test_a_real_gpu_evaluates_every_recipe(name: str, classes: str) -> None:
    (expected, _), (results, _) = (evaluated(name, classes, where, halves()) for where in (CPU, CUDA))
    # The noise is the same, but a model initialised with the noise of a GPU is another.
    assert results["test"]["bits_per_dim"]["mean"] == pytest.approx(expected["test"]["bits_per_dim"]["mean"], abs=0.5)
