"""The record of the evaluate stage, `runs/evaluate/<key>.json`."""

from __future__ import annotations

from typing import Literal

from pydantic import FiniteFloat

from pipeline.core.params import Precision
from pipeline.core.record import Record, StageRecord

# Bases that samples of a class are drawn from: N(0, I), a Gaussian fitted to the latents of its training images, as in
# the released code, and the class's part of class Gaussians with shrinkage.
Way = Literal["standard_normal", "fitted", "class_gaussians"]


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
    """The largest error of the latents of images, and the shares of pixels that survive the way there and back.

    The shares are by class too if each class has a model.
    """

    images: int
    latent_max_error: FiniteFloat
    pixels_exact: FiniteFloat
    pixels_within_one: FiniteFloat
    pixels_exact_by_class: dict[str, FiniteFloat] | None = None


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


class BaseScores(Record):
    """The likelihood of test images with a base that was fitted to the latents of training images.

    ``shrinkage`` is the share of the pooled covariance in that of each class, chosen on held-out images.
    """

    bits_per_dim: FiniteFloat
    fitted_images: int
    shrinkage: FiniteFloat | None = None


class ClassSamples(Record):
    """Samples of each class, and for each class how many have a nearest training image of that class."""

    of_each: int
    right: list[int]


class OutsideCube(Record):
    """Samples from N(0, I) before rounding: the share of pixels outside 0 to 1, and the images wholly inside.

    ``bits_least`` and ``bits_most`` are the ends of an interval, or estimates, of what the mass outside costs, in bits
    per dimension; see `pipeline.evaluation.samples.outside_cube`.
    """

    samples: int
    pixels: FiniteFloat
    images_inside: int
    bits_least: FiniteFloat
    bits_most: FiniteFloat


class Evaluation(StageRecord):
    """`runs/evaluate/<key>.json`; until ``separate_noise``, test images could have the noise of training images.

    For an LU-Net, ``closed_form_bits_per_dim`` and ``identity_bits_per_dim`` are the likelihoods of a Gaussian with the
    same margin and classes, and of the untrained network. ``fitted_base_bits_per_dim`` and ``sample_class_accuracy``
    are of older runs, which have no ``bases`` and no ``class_samples``.
    """

    seed: int
    classes: Literal["all", "each"]
    separate_noise: bool = False
    draws: int
    test: Likelihood | None
    per_class: dict[str, Likelihood] | None
    round_trip: RoundTrip | None
    latents: Latents | None
    bases: dict[Literal["gaussian", "class_gaussians"], BaseScores] | None = None
    fitted_base_bits_per_dim: FiniteFloat | None = None
    fitted_latents: FittedLatents | None
    outside_cube: OutsideCube | None = None
    closed_form_bits_per_dim: FiniteFloat | None = None
    closed_form_by_class: dict[str, FiniteFloat] | None = None
    closed_form_ridges: list[FiniteFloat] | None = None
    identity_bits_per_dim: FiniteFloat | None = None
    identity_by_class: dict[str, FiniteFloat] | None = None
    reduced_precision: ReducedPrecision | None = None
    interpolations: int | None
    class_samples: dict[Way, ClassSamples] | None = None
    sample_class_accuracy: FiniteFloat | None = None
    classification_accuracy: FiniteFloat | None
    seconds: FiniteFloat | None = None
