"""Samples, their nearest training images, and interpolations between test images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_flows import SETTINGS, flow, seeded
from torch import Tensor

from lunet import NonFiniteError
from lunet.pixels import quantise
from pipeline.core.dataset import Dataset
from pipeline.core.params import Params
from pipeline.evaluation.samples import (
    class_samples,
    different_pairs,
    draw_values,
    grid_of,
    interpolate,
    nearest_training_images,
    outside_cube,
    spherical,
)
from pipeline.training.models import build


def test_samples_are_the_first_ones_in_rows_and_columns(params: Params) -> None:
    rows, columns = params.evaluate.sample_rows, params.evaluate.sample_columns
    samples = torch.arange(1000)[:, None, None, None]
    grid = grid_of([samples], params.evaluate)
    assert grid.shape == (rows, columns, 1, 1)
    assert torch.equal(grid.flatten(), torch.arange(rows * columns))
    assert grid_of([samples, samples + 5, samples + 9], params.evaluate)[:, :2].flatten().tolist() == [
        0,
        1,
        5,
        6,
        9,
        10,
    ]


@torch.no_grad()
def test_values_are_the_samples_before_rounding(params: Params) -> None:
    model = build(params.recipe("lunet"), (1, 8, 8)).eval()
    values = draw_values(model, 30, seeded())
    assert torch.equal(quantise(values).unflatten(1, (1, 8, 8)), model.sample(30, seeded()))


def test_what_lies_outside_the_cube_has_a_cost_within_its_bounds() -> None:
    values = torch.rand(200, 50, generator=seeded())
    inside = outside_cube([values])
    assert (inside["samples"], inside["pixels"], inside["images_inside"], inside["bits_least"]) == (200, 0, 200, 0)
    assert inside["bits_most"] == pytest.approx(math.log2(1 / 0.05 ** (1 / 200)) / 50)
    values[:150, 0] = 1.5  # three of four samples leave: a cost of log2(4) bits over 50 pixels
    told = outside_cube([values])
    assert (told["pixels"], told["images_inside"]) == (pytest.approx(0.015), 50)
    assert 0.8 * 2 / 50 < told["bits_least"] < 2 / 50 < told["bits_most"] < 1.2 * 2 / 50
    values[:150] = 1.5  # all pixels together, which costs no more
    assert outside_cube([values])["bits_most"] == told["bits_most"]


def test_a_model_without_a_sample_inside_has_a_bound_and_an_estimate() -> None:
    values = torch.rand(200, 50, generator=seeded())
    values[torch.arange(200), torch.arange(200) % 50] = -1.0  # a pixel each
    told = outside_cube([values])
    # The mass inside is below 1.5 %, by the rule of three; each pixel leaves in 2 % of the samples.
    assert told["bits_least"] == pytest.approx(math.log2(200 / 3) / 50, rel=0.01)
    assert told["bits_most"] == told["bits_least"] > -math.log2(0.98)
    values[torch.rand(200, 50, generator=seeded(1)) < 0.3] = 2.0
    assert outside_cube([values])["bits_most"] == pytest.approx(-math.log2(0.7 * 0.98), rel=0.05)
    both = outside_cube([values, torch.rand(200, 50, generator=seeded())])
    assert both["bits_least"] == pytest.approx(math.log2(200 / 3) / 100, rel=0.01)


def test_the_nearest_training_image_is_the_one_of_the_smallest_distance(two_classes: Dataset) -> None:
    samples = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 5, 4, 4), dtype=np.uint8))
    nearest = nearest_training_images(samples, two_classes)
    assert nearest.shape == (2, 5)
    for row in range(2):
        for column in range(5):
            off = two_classes.train_images.astype(int) - samples[row, column].numpy().astype(int)
            assert int(nearest[row, column]) == int((off**2).sum((1, 2)).argmin())


def test_a_training_image_is_nearest_to_itself_and_has_its_class(two_classes: Dataset) -> None:
    dark, bright = (torch.from_numpy(two_classes.train_images[label:10:2])[:, None] for label in range(2))
    assert nearest_training_images(dark[:, 0], two_classes).tolist() == [0, 2, 4, 6, 8]
    assert class_samples([dark, bright], two_classes) == {"of_each": 5, "right": [5, 5]}
    assert class_samples([bright, dark], two_classes)["right"] == [0, 0]
    assert class_samples([dark, torch.cat([dark[:3], bright[:2]])], two_classes)["right"] == [5, 2]


def test_pairs_are_the_first_of_different_classes() -> None:
    labels = torch.tensor([3, 3, 1, 2, 2, 1, 0, 0, 5, 6, 6])
    assert different_pairs(labels, 9) == [2, 4, 8]
    assert different_pairs(labels, 2) == [2, 4]


def test_a_spherical_path_has_equal_angles_and_linear_lengths() -> None:
    start, end = torch.tensor([2.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    way = spherical(start, end, 5)
    angles = torch.atan2(way[:, 1], way[:, 0])
    torch.testing.assert_close(angles, torch.linspace(0, math.pi / 2, 5))
    torch.testing.assert_close(way.norm(dim=1), torch.tensor([2.0, 2.5, 3.0, 3.5, 4.0]))
    assert torch.equal(way[0], start)
    assert torch.equal(way[-1], end)
    # Halfway a straight line would be shorter than either end.
    ends = torch.randn(2, 784, generator=seeded())
    assert spherical(ends[0], ends[1], 3)[1].norm() == pytest.approx(28, rel=0.05)
    assert ends.mean(0).norm() < 21


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_a_spherical_path_between_parallel_latents_is_straight(factor: float) -> None:
    start = torch.tensor([1.0, 2.0])
    way = spherical(start, factor * start, 3)
    assert way.isfinite().all()
    torch.testing.assert_close(way[1], (1 + factor) / 2 * start)


def test_interpolations_begin_and_end_with_the_test_images(two_classes: Dataset) -> None:
    images, labels = (
        torch.from_numpy(two_classes.test_images),
        torch.from_numpy(two_classes.test_labels),
    )
    interpolations = interpolate({"all": flow()}, images, labels, SETTINGS, seeded())
    assert interpolations.shape == (5, 5, 4, 4)
    assert torch.equal(interpolations[:, 0], images[0:10:2])
    assert torch.equal(interpolations[:, -1], images[1:11:2])
    assert not torch.equal(interpolations[:, 2], interpolations[:, 0])


def test_with_one_model_for_each_class_that_of_the_first_image_is_used(two_classes: Dataset) -> None:
    images, labels = (
        torch.from_numpy(two_classes.test_images),
        torch.from_numpy(two_classes.test_labels),
    )
    dark, bright = flow(1), flow(2)
    interpolations = interpolate({"0": dark, "1": bright}, images, labels, SETTINGS, seeded())
    assert torch.equal(interpolations, interpolate({"all": dark}, images, labels, SETTINGS, seeded()))
    assert not torch.equal(interpolations, interpolate({"all": bright}, images, labels, SETTINGS, seeded()))


def test_an_interpolation_that_is_not_finite_is_left_out(two_classes: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = (
        torch.from_numpy(two_classes.test_images),
        torch.from_numpy(two_classes.test_labels),
    )
    model = flow()
    whole, inverse, calls = interpolate({"all": model}, images, labels, SETTINGS, seeded()), model.flow.inverse, []

    def fails_once(z: Tensor) -> Tensor:
        calls.append(z)
        if len(calls) == 2:
            raise NonFiniteError("too far")
        return inverse(z)

    monkeypatch.setattr(model.flow, "inverse", fails_once)
    assert torch.equal(interpolate({"all": model}, images, labels, SETTINGS, seeded()), whole[[0, 2, 3, 4]])
