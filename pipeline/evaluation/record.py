"""The record of the evaluate stage, `runs/evaluate/<key>.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import FiniteFloat

from pipeline.core.params import Precision
from pipeline.core.record import Record, StageRecord


class Spread(Record):
    """Bits per dimension over some images."""

    mean: FiniteFloat
    median: FiniteFloat
    std: FiniteFloat
    min: FiniteFloat
    max: FiniteFloat
    worst_percent_share: FiniteFloat


class Likelihood(Record):
    """The likelihood of the images of one class or of all; for all, also the mean of each dequantisation draw."""

    images: int
    bits_per_dim: Spread
    poster_bits_per_pixel: FiniteFloat | None = None
    bits_per_dim_by_draw: list[FiniteFloat] | None = None


class RoundTrip(Record):
    """The largest error of the latents of images, and the shares of pixels that survive the way there and back."""

    images: int
    latent_max_error: FiniteFloat
    pixels_exact: FiniteFloat
    pixels_within_one: FiniteFloat


class Latents(Record):
    """The figures of `pipeline.evaluation.latents.normality` for the latents of test images."""

    images: int
    mean: FiniteFloat
    variance: FiniteFloat
    variance_min: FiniteFloat
    variance_max: FiniteFloat
    projection_distance: FiniteFloat
    projection_distance_max: FiniteFloat
    radius: FiniteFloat
    radius_distance: FiniteFloat
    critical_distance: FiniteFloat
    critical_distance_max: FiniteFloat
    levels: list[FiniteFloat]
    projection_quantiles: list[FiniteFloat]


class FittedLatents(Record):
    """The figures of `pipeline.evaluation.latents.fitted_normality` for the latents of test images."""

    projection_distance: FiniteFloat
    projection_distance_max: FiniteFloat
    radius_distance: FiniteFloat


class ReducedPrecision(Record):
    """What the arithmetic of a training does to the bits per dimension of images: its shift, and the largest change."""

    precision: Precision
    images: int
    mean_change: FiniteFloat
    largest_change: FiniteFloat


class Evaluation(StageRecord):
    """`runs/evaluate/<key>.json`; until ``separate_noise``, test images could have the noise of training images."""

    seed: int
    classes: Literal["all", "each"]
    separate_noise: bool = False
    draws: int
    test: Likelihood | None
    per_class: dict[str, Likelihood] | None
    round_trip: RoundTrip | None
    latents: Latents | None
    fitted_base_bits_per_dim: FiniteFloat | None
    fitted_latents: FittedLatents | None
    reduced_precision: ReducedPrecision | None = None
    interpolations: int | None
    sample_class_accuracy: FiniteFloat | None
    classification_accuracy: FiniteFloat | None
    seconds: FiniteFloat | None = None
