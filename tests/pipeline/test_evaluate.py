"""What the evaluate stage shows beside likelihoods: nearest training images, interpolations, and single draws."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lunet import ImageFlow, LUNet, NonFiniteError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Evaluate, Recipe
from pipeline.evaluation.samples import class_accuracy, different_pairs, interpolate, nearest_training_images, spherical
from pipeline.evaluation.scores import evaluate
from pipeline.presets.merged import load_preset

SETTINGS = Evaluate(draws=3, batch_size=16, sample_rows=2, sample_columns=5, round_trip_images=10)


@pytest.fixture
def dataset() -> Dataset:
    """Two classes of 4x4 images, dark and bright, in turn."""
    random = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.uint8) % 2
    images = (100 * labels[:, None, None] + random.integers(20, 90, (60, 4, 4))).astype(np.uint8)
    return Dataset("two", "Two", ("dark", "bright"), images[:40], labels[:40], images[40:], labels[40:], {})


def flow(seed: int = 0) -> ImageFlow:
    """A flow that is not the identity."""
    torch.manual_seed(seed)
    own = LUNet(16, 3)
    with torch.no_grad():
        for layer in own.layers:
            layer.lu.add_(0.1 * torch.randn(16, 16))
            layer.bias.add_(0.3 * torch.randn(16))
    return ImageFlow(own, (1, 4, 4)).eval()


def recipe(classes: Any = "all") -> Recipe:
    own = load_preset("smoke").recipe("lunet")
    return own.model_copy(update={"classes": classes})


# Nearest training images


def test_the_nearest_training_image_is_the_one_of_the_smallest_distance(dataset: Dataset) -> None:
    samples = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 5, 1, 4, 4), dtype=np.uint8))
    nearest = nearest_training_images(samples, dataset)
    assert nearest.shape == (2, 5)
    for row in range(2):
        for column in range(5):
            off = dataset.train_images.astype(int) - samples[row, column, 0].numpy().astype(int)
            assert int(nearest[row, column]) == int((off**2).sum((1, 2)).argmin())


def test_a_training_image_is_nearest_to_itself_and_has_its_class(dataset: Dataset) -> None:
    samples = torch.from_numpy(np.stack([dataset.train_images[0:10:2], dataset.train_images[1:11:2]]))[:, :, None]
    nearest = nearest_training_images(samples, dataset)
    assert nearest.tolist() == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert class_accuracy(nearest, dataset) == 1
    assert class_accuracy(nearest.flip(0), dataset) == 0
    assert class_accuracy(torch.tensor([[0, 1], [1, 3]]), dataset) == 0.75


# Interpolations


def test_pairs_are_the_first_that_differ_and_none_is_chosen() -> None:
    labels = torch.tensor([3, 3, 1, 2, 2, 1, 0, 0, 5, 6, 6])
    assert different_pairs(labels, 9) == [2, 4, 8]
    assert different_pairs(labels, 2) == [2, 4]


def test_a_spherical_way_has_equal_angles_and_lengths_in_between() -> None:
    start, end = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    way = spherical(start, end, 5)
    angles = torch.atan2(way[:, 1], way[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 5))
    torch.testing.assert_close(way.norm(dim=1), torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0]))
    assert torch.equal(way[0], start)
    assert torch.equal(way[-1], end)
    # Halfway a straight line would be shorter than either end.
    ends = torch.randn(2, 784, generator=torch.Generator().manual_seed(0))
    assert spherical(ends[0], ends[1], 3)[1].norm() == pytest.approx(28, rel=0.05)
    assert ends.mean(0).norm() < 21


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_a_spherical_way_without_an_angle_is_straight(factor: float) -> None:
    start = torch.tensor([1.0, 2.0])
    way = spherical(start, factor * start, 3)
    assert way.isfinite().all()
    torch.testing.assert_close(way[1], (1 + factor) / 2 * start)


def test_interpolations_begin_and_end_with_the_test_images(dataset: Dataset) -> None:
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    found = interpolate({"all": flow()}, images, labels, SETTINGS)
    assert found.shape == (5, 5, 4, 4)
    assert torch.equal(found[:, 0], images[0:10:2])
    assert torch.equal(found[:, -1], images[1:11:2])
    assert not torch.equal(found[:, 2], found[:, 0])


def test_with_a_model_a_class_the_first_image_s_is_used(dataset: Dataset) -> None:
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    dark, bright = flow(1), flow(2)
    found = interpolate({"0": dark, "1": bright}, images, labels, SETTINGS)
    assert torch.equal(found, interpolate({"all": dark}, images, labels, SETTINGS))
    assert not torch.equal(found, interpolate({"all": bright}, images, labels, SETTINGS))


def test_a_way_that_leaves_the_numbers_is_left_out(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    model = flow()
    whole, inverse, calls = interpolate({"all": model}, images, labels, SETTINGS), model.flow.inverse, []

    def fails_once(z: Tensor) -> Tensor:
        calls.append(z)
        if len(calls) == 2:
            raise NonFiniteError("too far")
        return inverse(z)

    monkeypatch.setattr(model.flow, "inverse", fails_once)
    assert torch.equal(interpolate({"all": model}, images, labels, SETTINGS), whole[[0, 2, 3, 4]])


# All of it


def test_each_draw_has_its_mean_and_their_mean_is_the_whole(dataset: Dataset) -> None:
    found, _ = evaluate({"all": flow()}, dataset, recipe(), SETTINGS, 0)
    by_draw = found["test"]["bits_per_dim_by_draw"]
    assert len(by_draw) == len(set(by_draw)) == 3
    assert np.mean(by_draw) == pytest.approx(found["test"]["bits_per_dim"]["mean"], abs=1e-5)
    # Each is what a single draw would have given of 20 images.
    assert max(by_draw) - min(by_draw) < 0.5
    classes = replace(dataset, class_names=("dark", "bright"))
    each, _ = evaluate({"0": flow(), "1": flow()}, classes, recipe("each"), SETTINGS, 0)
    assert np.mean(each["test"]["bits_per_dim_by_draw"]) == pytest.approx(
        each["test"]["bits_per_dim"]["mean"], abs=1e-5
    )


def test_the_grids_stand_beside_the_samples(dataset: Dataset) -> None:
    found, grids = evaluate({"all": flow()}, dataset, recipe(), SETTINGS, 0)
    assert set(grids) == {"samples", "nearest", "interpolations", "fitted_base"}
    assert grids["samples"].shape == grids["nearest"].shape == (2, 5, 4, 4)
    assert found["interpolations"] == len(grids["interpolations"]) == 5
    assert all(grid.dtype == np.uint8 for grid in grids.values())
    train = {image.tobytes() for image in dataset.train_images}
    assert {image.tobytes() for row in grids["nearest"] for image in row} <= train
    assert set(found["fitted_latents"]) == {"projection_distance", "projection_distance_max", "radius_distance"}
