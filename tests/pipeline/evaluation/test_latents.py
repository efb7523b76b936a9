"""Distances of latents from the standard normal, and from a Gaussian fitted to others."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lunet import Gaussian
from pipeline.evaluation.latents import fitted_normality, normality


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(n: int = 4000, features: int = 30) -> Tensor:
    return torch.randn(n, features, generator=seeded(), dtype=torch.float64)


# Distances from the standard normal


def test_standard_normal_latents_pass_every_check() -> None:
    distances = normality(normal())
    assert abs(distances["mean"]) < 0.01
    assert distances["variance_min"] < 1 < distances["variance_max"]
    assert distances["projection_distance"] < distances["critical_distance"]
    assert distances["radius_distance"] < distances["critical_distance"]
    assert distances["radius"] == pytest.approx(1, abs=0.01)
    expected = stats.norm.ppf(distances["levels"])
    assert np.abs(np.array(distances["projection_quantiles"]) - expected)[2:-2].max() < 0.02


def test_the_largest_of_many_distances_has_its_own_critical_value() -> None:
    distances = [normality(torch.randn(500, 784, generator=seeded(seed), dtype=torch.float64)) for seed in range(20)]
    # Each exceeds its critical value with probability 5 %: at most four times in 20 with a probability of 0.997.
    assert sum(row["projection_distance_max"] > row["critical_distance_max"] for row in distances) <= 4
    assert sum(row["radius_distance"] > row["critical_distance"] for row in distances) <= 4
    assert sum(row["projection_distance_max"] > row["critical_distance"] for row in distances) >= 19


def test_a_wider_normal_fails_by_its_known_distance() -> None:
    distances = normality(1.5 * normal())
    x = np.linspace(-5, 5, 10_001)
    exact = np.abs(stats.norm.cdf(x) - stats.norm.cdf(x / 1.5)).max()
    assert distances["projection_distance"] == pytest.approx(exact, abs=0.02)
    assert distances["variance"] == pytest.approx(2.25, rel=0.02)
    squared = stats.chi2(30)
    at = np.linspace(0, 150, 10_001)
    assert distances["radius_distance"] == pytest.approx(
        np.abs(squared.cdf(at) - squared.cdf(at / 2.25)).max(), abs=0.02
    )


def test_dependence_between_standard_normal_features_is_detected() -> None:
    shared = torch.randn(4000, 1, generator=seeded(1), dtype=torch.float64)
    distances = normality((normal() + 2 * shared) / 5**0.5)
    assert distances["variance_max"] < 1.1
    assert distances["projection_distance"] > 3 * distances["critical_distance"]
    assert distances["radius_distance"] > 10 * distances["critical_distance"]


def test_critical_distance_is_that_of_the_sample_size() -> None:
    assert normality(normal(1000, 3))["critical_distance"] == pytest.approx(1.358 / 1000**0.5, rel=0.01)


# Latents against the fitted base


def standardised(z: Tensor, fitted_to: Tensor) -> Tensor:
    """Latents, standardised by a Gaussian fitted to other latents."""
    return Gaussian(z.shape[1]).double().fit_(fitted_to).eval()(z).z


@pytest.mark.parametrize("n", [15, 60, 1000])
def test_normal_latents_agree_with_a_base_fitted_to_few_or_many(n: int) -> None:
    """Each latent has a separate fit, since the distributions are over fits; small fits stretch the latents."""
    generator = seeded(n)
    fits = torch.randn(1000, n, 10, generator=generator, dtype=torch.float64)
    new = torch.randn(1000, 1, 10, generator=generator, dtype=torch.float64)
    z = torch.cat([standardised(one, fit) for one, fit in zip(new, fits, strict=True)])
    distances, critical = fitted_normality([(z, n)]), float(stats.kstwo.ppf(0.99, 1000))
    assert distances["radius_distance"] < critical
    assert distances["projection_distance"] < critical
    assert (normality(z)["radius_distance"] > 2 * critical) == (n <= 60)
    halves = [(z[:400], n), (z[400:], n)]
    assert fitted_normality(halves) == pytest.approx(distances)


def test_a_base_of_many_latents_gives_the_distances_from_the_standard_normal() -> None:
    z = 1.1 * normal()
    distances, plain = fitted_normality([(z, 10**7)]), normality(z)
    for name in distances:
        assert distances[name] == pytest.approx(plain[name], abs=2e-5)


def test_latents_that_no_gaussian_fits_are_far_from_the_fitted_one() -> None:
    heavy = normal(8000) * torch.rand(8000, 1, generator=seeded(5), dtype=torch.float64).mul(2)
    z = standardised(heavy[:4000], heavy[4000:])
    distances = fitted_normality([(z, 4000)])
    critical = normality(z)["critical_distance"]
    assert distances["radius_distance"] > 10 * critical
    assert distances["projection_distance"] > critical
    # While those of a normal are near, whatever mean and covariance it has.
    mixing = torch.randn(30, 30, generator=seeded(6), dtype=torch.float64)
    skewed = normal(8000) @ mixing + 5
    near = fitted_normality([(standardised(skewed[:4000], skewed[4000:]), 4000)])
    assert near["projection_distance"] < critical
    assert near["radius_distance"] < 2 * critical
