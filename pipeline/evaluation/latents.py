"""Tests whether the latents of test images are standard normal, as maximum-likelihood training should make them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from pipeline.core.streams import generator

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
    projected, squared_radii, features = _projections(z), z.square().sum(1).cpu().numpy(), z.shape[1]
    variances = z.var(0, correction=0)
    return {
        **_distances(stats.norm.cdf(projected), stats.chi2(features).cdf(squared_radii)),
        "images": len(z),
        "mean": float(z.mean()),
        "variance": float(variances.mean()),
        "variance_min": float(variances.min()),
        "variance_max": float(variances.max()),
        "radius": float(squared_radii.mean()) / features,
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
    return _distances(np.concatenate(projected), np.concatenate(radii))


def _distances(projected: NDArray[np.float64], radii: NDArray[np.float64]) -> dict[str, float]:
    """The distances of projections (N, directions) and radii (N,), each passed through its distribution function."""
    # The exact probabilities, which nothing reads, would take about as long as the distances.
    tests = (stats.kstest(u, "uniform", method="asymp") for u in (*projected.T, radii))
    *distances, radius_distance = (float(test.statistic) for test in tests)
    return {
        "projection_distance": float(np.median(distances)),
        "projection_distance_max": max(distances),
        "radius_distance": radius_distance,
    }


def _projections(z: Tensor) -> NDArray[np.float64]:
    """Project latents (N, D) onto random directions, the same in every call; shape (N, directions)."""
    stream = generator("directions", seed=0)
    directions = torch.randn(z.shape[1], DIRECTIONS, generator=stream, dtype=torch.float64)
    projected: NDArray[np.float64] = (z @ (directions / directions.norm(dim=0)).to(z.device)).cpu().numpy()
    return projected
