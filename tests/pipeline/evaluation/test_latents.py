"""Distances of latents from the standard normal, and the base fitted to training latents."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from lunet import Gaussian, ImageFlow, LUNet
from pipeline.evaluation.latents import SingularBaseError, fit_base, fitted_normality, normality, scores_by_batch


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


# The base fitted to training latents


def images(n: int = 400, seed: int = 0) -> Tensor:
    """4x4 images whose pixels depend on each other."""
    shade = torch.rand(n, 1, 1, generator=seeded(seed)) * 150
    return (shade + 60 * torch.rand(n, 4, 4, generator=seeded(seed + 1))).to(torch.uint8)


@pytest.fixture
def model() -> ImageFlow:
    return ImageFlow(LUNet(16, 2), (1, 4, 4)).eval()


def scored(model: ImageFlow, of: Tensor) -> tuple[Tensor, Tensor]:
    """Bits per pixel and latents of images under a model with a base that is fitted to `images`."""
    scores = [*scores_by_batch(model, of, 64, seeded(), fit_base(model, images(), 64, seeded()))]
    return torch.cat([score.bits for score in scores]), torch.cat([score.latents for score in scores])


@torch.no_grad()
def test_the_base_is_one_more_gaussian_layer(model: ImageFlow) -> None:
    # An LU-Net of one layer at the identity behind a fitted Gaussian is that Gaussian.
    identity = ImageFlow(LUNet(16, 1).double(), (1, 4, 4)).eval()
    bits, _ = scored(identity, images(seed=9))
    generator = seeded()
    y = torch.cat([identity.preprocess(batch, generator)[0] for batch in images().split(64)])
    gaussian = ImageFlow(Gaussian(16).double().fit_(y), (1, 4, 4)).eval()
    generator = seeded()
    expected = torch.cat([gaussian.bits_per_dim(batch, generator=generator) for batch in images(seed=9).split(64)])
    torch.testing.assert_close(bits, expected)


@torch.no_grad()
def test_a_fitted_base_scores_better_than_the_standard_normal(model: ImageFlow) -> None:
    bits, _ = scored(model, images(seed=9))
    assert bits.shape == (400,)
    assert bits.mean() < model.bits_per_dim(images(seed=9), generator=seeded()).mean() - 0.5


@torch.no_grad()
def test_samples_from_the_base_have_its_moments(model: ImageFlow) -> None:
    samples = model.sample(2000, seeded(), base=fit_base(model, images(), 64, seeded())).float()
    assert samples.shape == (2000, 1, 4, 4)
    assert samples.mean() == pytest.approx(float(images().float().mean()), rel=0.1)
    model_samples = model.sample(2000, seeded()).float()
    assert abs(model_samples.mean() - images().float().mean()) > 2 * abs(samples.mean() - images().float().mean())


def test_too_few_images_are_refused(model: ImageFlow) -> None:
    with pytest.raises(SingularBaseError, match="singular"):
        fit_base(model, images(5), 64, seeded())


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


@torch.no_grad()
def test_the_latents_of_the_fit_are_standardised(model: ImageFlow) -> None:
    _, z = scored(model, images())
    # They have mean 0 and covariance 1 exactly.
    torch.testing.assert_close(z.mean(0), torch.zeros(16, dtype=torch.float64), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.T @ z / len(z), torch.eye(16, dtype=torch.float64), atol=1e-3, rtol=0)
