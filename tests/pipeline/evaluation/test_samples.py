"""Samples, their nearest training images, and interpolations between test images."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_flows import SETTINGS, flow, seeded
from torch import Tensor

from lunet import NonFiniteError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Params
from pipeline.evaluation.samples import (
    class_accuracy,
    different_pairs,
    draw_samples,
    interpolate,
    nearest_training_images,
    spherical,
)
from pipeline.training.models import build


def test_samples_are_the_first_ones_in_rows_and_columns(params: Params) -> None:
    model = build(params.recipe("lunet"), (1, 8, 8)).eval()
    samples = draw_samples([model.sample], params.evaluate, seeded())
    assert samples.shape == (params.evaluate.sample_rows, params.evaluate.sample_columns, 8, 8)
    first = model.sample(samples.shape[0] * samples.shape[1], seeded())
    assert torch.equal(samples.flatten(0, 1), first[:, 0])


def test_the_nearest_training_image_is_the_one_of_the_smallest_distance(two_classes: Dataset) -> None:
    samples = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 5, 1, 4, 4), dtype=np.uint8))
    nearest = nearest_training_images(samples, two_classes)
    assert nearest.shape == (2, 5)
    for row in range(2):
        for column in range(5):
            off = two_classes.train_images.astype(int) - samples[row, column, 0].numpy().astype(int)
            assert int(nearest[row, column]) == int((off**2).sum((1, 2)).argmin())


def test_a_training_image_is_nearest_to_itself_and_has_its_class(two_classes: Dataset) -> None:
    samples = torch.from_numpy(np.stack([two_classes.train_images[0:10:2], two_classes.train_images[1:11:2]]))[
        :, :, None
    ]
    nearest = nearest_training_images(samples, two_classes)
    assert nearest.tolist() == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]
    assert class_accuracy(nearest, two_classes) == 1
    assert class_accuracy(nearest.flip(0), two_classes) == 0
    assert class_accuracy(torch.tensor([[0, 1], [1, 3]]), two_classes) == 0.75


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
