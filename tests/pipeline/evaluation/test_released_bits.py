"""Conversion of the figures that the released programs print to bits per pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lunet import pixels
from pipeline.core.dataset import Dataset
from pipeline.evaluation.released_bits import MARGINS, batch_factor, logit_bits, poster_in_bits, to_bits_per_dim


@pytest.mark.parametrize("margin", [(5e-6, 5e-6), (0.05, 0.0), (1e-6, 1e-6)], ids=str)
@pytest.mark.parametrize("level", [0, 1, 100, 254, 255])
def test_logit_bits_are_the_mean_over_the_noise(margin: tuple[float, float], level: int) -> None:
    noise = (torch.arange(2**20, dtype=torch.float64) + 0.5) / 2**20
    _, log_slope = pixels.logit((level + noise) / 256, *margin)
    expected = float(log_slope.mean()) / math.log(2)
    assert logit_bits(np.full((2, 2), level, dtype=np.uint8), margin) == pytest.approx(expected, abs=2e-5)


def test_logit_bits_weigh_levels_by_their_frequency() -> None:
    margin = (0.05, 0.0)
    black, white = (logit_bits(np.full(4, level, dtype=np.uint8), margin) for level in (0, 255))
    mixed = np.array([0, 0, 0, 255], dtype=np.uint8)
    assert logit_bits(mixed, margin) == pytest.approx(0.75 * black + 0.25 * white, rel=1e-12)


@pytest.mark.parametrize(("images", "factor"), [(128, 1.0), (1000, 1000 / 1024), (129, 129 / 256), (1, 1 / 128)])
def test_a_short_last_batch_lowers_the_mean(images: int, factor: float) -> None:
    assert batch_factor(images) == pytest.approx(factor)


def test_uniform_noise_under_a_uniform_model_costs_eight_bits_in_both_currencies() -> None:
    # A uniform density of the pixel is one of the logit that has the inverse of its slope: printed = E + constants.
    images = np.arange(256, dtype=np.uint8)
    for code, constant in (("lunet", -0.5), ("realnvp", math.log2(255))):
        logit = logit_bits(images, MARGINS[code])  # type: ignore[index]
        assert to_bits_per_dim(logit + constant, code, logit) == pytest.approx(8)  # type: ignore[arg-type]


def test_the_poster_s_figure_has_a_range_if_classes_have_different_factors() -> None:
    labels = np.array([0] * 128 + [1] * 100, dtype=np.uint8)
    images = np.zeros((228, 2, 2), dtype=np.uint8)
    dataset = Dataset("d", "D", ("a", "b"), images, labels, images, labels, {})
    converted = poster_in_bits(dataset, "realnvp", 5.6819)
    density = 5.6819 - math.log2(255)
    assert converted["most"] == pytest.approx(density + 8 - converted["logit_bits"])
    assert converted["least"] == pytest.approx(density / (100 / 128) + 8 - converted["logit_bits"])
    lunet = poster_in_bits(dataset, "lunet", 3.2424)
    assert lunet["least"] == lunet["most"] == pytest.approx(3.2424 + 8.5 - lunet["logit_bits"])
