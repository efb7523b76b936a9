"""Tests whether the latents of test images are standard normal, as maximum-likelihood training should make them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from lunet import Gaussian, ImageFlow, pixel_bits, standard_normal_log_prob

DIRECTIONS = 200
CONFIDENCE = 0.95
# The levels of the quantiles that the report draws.
LEVELS = (0.001, 0.01, *np.arange(0.05, 1, 0.05).round(2).tolist(), 0.99, 0.999)


def normality(z: Tensor) -> dict[str, Any]:
    r"""Measure in three ways how far latents are from independent standard normal ones.

    The three are each feature's moments; the projections onto 200 random directions, each of which should be standard
    normal; and the squared radii :math:`|z|^2`, which should follow a chi-squared distribution with :math:`D` degrees
    of freedom. The distance between distributions is that of Kolmogorov and Smirnov, the largest difference between the
    distribution functions.

    Args:
        z: Latents, with shape :math:`(N, D)`.

    Returns:
        ``mean``, ``variance``, ``variance_min`` and ``variance_max`` of the features; ``projection_distance`` and
        ``projection_distance_max``, the median and the largest over the directions; ``radius``, the mean of
        :math:`|z|^2 / D`, and ``radius_distance``; ``critical_distance``, which such a distance exceeds with
        probability 5 % if latents are standard normal, and ``critical_distance_max``, the same for the largest over the
        directions; and the ``projection_quantiles`` of all projections together at the ``levels``.
    """
    z = z.double()
    features = z.shape[1]
    projected, radii = _projections(z), z.square().sum(1).cpu().numpy()
    distances = [float(stats.kstest(column, stats.norm.cdf).statistic) for column in projected.T]
    variances = z.var(0, correction=0)
    return {
        "images": len(z),
        "mean": float(z.mean()),
        "variance": float(variances.mean()),
        "variance_min": float(variances.min()),
        "variance_max": float(variances.max()),
        "projection_distance": float(np.median(distances)),
        "projection_distance_max": max(distances),
        "radius": float(radii.mean()) / features,
        "radius_distance": float(stats.kstest(radii, stats.chi2(features).cdf).statistic),
        "critical_distance": float(stats.kstwo.ppf(CONFIDENCE, len(z))),
        # Random directions in many dimensions are nearly orthogonal, so their distances are nearly independent.
        "critical_distance_max": float(stats.kstwo.ppf(CONFIDENCE ** (1 / DIRECTIONS), len(z))),
        "levels": list(LEVELS),
        "projection_quantiles": np.quantile(projected, LEVELS).tolist(),
    }


def fitted_normality(parts: Sequence[tuple[Tensor, int]]) -> dict[str, float]:
    r"""Measure how far latents are from the Gaussian that was fitted to :math:`n` others and standardised them.

    They are compared with the exact distribution of a normal latent outside the fit: its projections follow
    :math:`\sqrt{(n + 1) / (n - D)}` times Student's t with :math:`n - D` degrees of freedom, its squared radius
    :math:`D (n + 1) / (n - D)` times the F distribution with :math:`D` and :math:`n - D` (Hotelling's :math:`T^2`).
    For large :math:`n` these are the distributions in `normality`, whose critical distances apply here too.

    Args:
        parts: For each model its standardised latents, with shape :math:`(N, D)`, and its :math:`n`, above :math:`D`.

    Returns:
        ``projection_distance`` and ``projection_distance_max``, the median and the largest over 200 directions, and
        ``radius_distance``, each over the latents of all models together.
    """
    projected, radii = [], []
    for z, n in parts:
        features, freedom = z.shape[1], n - z.shape[1]
        scale = (n + 1) / freedom
        projected.append(stats.t(freedom, scale=scale**0.5).cdf(_projections(z.double())))
        radii.append(stats.f(features, freedom, scale=features * scale).cdf(z.double().square().sum(1).cpu().numpy()))
    distances = [float(stats.kstest(column, "uniform").statistic) for column in np.concatenate(projected).T]
    return {
        "projection_distance": float(np.median(distances)),
        "projection_distance_max": max(distances),
        "radius_distance": float(stats.kstest(np.concatenate(radii), "uniform").statistic),
    }


def _projections(z: Tensor) -> NDArray[np.float64]:
    """Project latents (N, D) onto random directions, the same in every call; shape (N, directions)."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.randn(z.shape[1], DIRECTIONS, generator=generator, dtype=torch.float64)
    projected: NDArray[np.float64] = (z @ (directions / directions.norm(dim=0)).to(z.device)).cpu().numpy()
    return projected


class SingularBaseError(Exception):
    """The latents of the training images have a singular covariance, for example because there are too few images."""


class FittedBase:
    """A flow with a Gaussian base fitted to its training latents, as in the released LU-Net code.

    Args:
        model: The trained model, whose device is used.
        images: uint8 training images, with shape (N, H, W), more than there are pixels.
        batch_size: Images a batch.

    Attributes:
        images: The number of images in the fit.

    Raises:
        SingularBaseError: If the latents have a singular covariance.
    """

    def __init__(self, model: ImageFlow, images: Tensor, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._device = next(iter(model.state_dict().values())).device
        self.images = len(images)
        latents = torch.cat([z for z, _ in self._latents(images)])
        try:
            self._base = Gaussian(model.flow.features).to(self._device, torch.float64).fit_(latents).eval()
        except ValueError as error:
            raise SingularBaseError(str(error)) from None

    def bits_per_dim(self, images: Tensor) -> Tensor:
        """Bits per dimension of uint8 images (N, H, W), with shape (N,)."""
        return self.score(images)[0]

    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Bits per dimension of uint8 images (N, H, W), with shape (N,), and their standardised latents.

        The latents, with shape (N, D), are standardised by the mean and the covariance of the Gaussian.
        """
        bits, standardised = [], []
        for z, log_det in self._latents(images):
            latents, base_log_det = self._base(z)
            bits.append(pixel_bits(standard_normal_log_prob(latents) + base_log_det + log_det, z.shape[1]).cpu())
            standardised.append(latents.cpu())
        return torch.cat(bits), torch.cat(standardised)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        r"""``n`` 8-bit images, with shape :math:`(n, C, H, W)`."""
        dtype = next(iter(self._model.parameters())).dtype
        return self._model.postprocess(self._model.flow.inverse(self._base.sample(n, generator).to(dtype)))

    def _latents(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of latents in float64, each with the log-determinant of the map from pixel values to latents."""
        generator = torch.Generator(self._device).manual_seed(0)
        for batch in images.split(self._batch_size):
            y, log_slope = self._model.preprocess(batch.to(self._device), generator)
            z, log_det = self._model.flow(y)
            yield z.double(), (log_det + log_slope).double()
