from __future__ import annotations

import math

import pytest
import torch
from random_flows import correlated, random_histogram, seeded

from lunet import Gaussian, Histogram, standard_normal_log_prob

# Gaussian


@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_gaussian_agrees_with_the_multivariate_normal(ridge: float) -> None:
    x = correlated(900, 12)
    covariance = x.T.cov(correction=0) + ridge * torch.eye(12, dtype=torch.float64)
    reference = torch.distributions.MultivariateNormal(x.mean(0), covariance)
    flow = Gaussian(12, ridge).double().fit_(x).eval()
    held_out = correlated(50, 12, seed=7)
    torch.testing.assert_close(flow.log_prob(held_out), reference.log_prob(held_out), rtol=1e-10, atol=1e-10)


def test_gaussian_is_fitted_in_several_chunks() -> None:
    x = correlated(10_000, 5)
    flow = Gaussian(5).double().fit_(x)
    covariance = torch.linalg.inv(flow.whitening.T @ flow.whitening)
    torch.testing.assert_close(covariance, x.T.cov(correction=0), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(flow.mean, x.mean(0))


@torch.no_grad()
def test_gaussian_samples_have_mean_and_covariance_of_the_data() -> None:
    x = correlated(2000, 4)
    draws = Gaussian(4).double().fit_(x).eval().sample(100_000, seeded())
    torch.testing.assert_close(draws.mean(0), x.mean(0), rtol=0, atol=0.03)
    torch.testing.assert_close(draws.T.cov(), x.T.cov(), rtol=0.03, atol=0.03)


def test_gaussian_maximises_the_likelihood() -> None:
    x = correlated(2000, 6)
    flow = Gaussian(6).double().fit_(x)
    best = flow.log_prob(x).mean()
    for seed in range(5):
        flow.fit_(correlated(2000, 6) * (1 + 0.02 * torch.randn(6, generator=seeded(seed))))
        assert flow.log_prob(x).mean() < best


def test_gaussian_free_parameters() -> None:
    assert Gaussian(784).free_parameters() == 784 + 784 * 785 // 2


def test_gaussian_of_a_singular_sample_raises_without_a_ridge() -> None:
    x = correlated(200, 5)
    x[:, 3] = x[:, 0]
    with pytest.raises(ValueError, match="covariance of 200 rows is singular in feature 3; add a ridge"):
        Gaussian(5).double().fit_(x)
    assert Gaussian(5, ridge=1e-3).double().fit_(x).log_prob(x).isfinite().all()


def test_gaussian_of_missing_values_raises() -> None:
    x = correlated(50, 3)
    x[4, 2] = math.nan
    with pytest.raises(ValueError, match="x has values that are not finite"):
        Gaussian(3).double().fit_(x)


def test_gaussian_that_is_not_invertible_raises() -> None:
    flow = Gaussian(3).eval()
    flow.whitening[1, 1] = 0
    with pytest.raises(ValueError, match="whitening is singular: entry 1"):
        flow.sample(2)
    flow.whitening[1, 1] = math.inf
    with pytest.raises(ValueError, match="whitening has values that are not finite"):
        flow.log_prob(torch.zeros(1, 3))


# Histogram


def test_histogram_counts_its_bins_and_adds_the_pseudocount() -> None:
    x = torch.tensor([[0.0], [0.24], [0.25], [0.5], [0.99], [1.0]])
    flow = Histogram(1, levels=4, pseudocount=0.5).fit_(x)
    torch.testing.assert_close(flow.probability, torch.tensor([[2.5, 1.5, 1.5, 2.5]]) / 8)
    torch.testing.assert_close(flow.log_prob(x).exp(), torch.tensor([2.5, 2.5, 1.5, 1.5, 2.5, 2.5]) / 2)


def test_histogram_is_fitted_in_several_chunks() -> None:
    values = torch.rand(10_000, 2, generator=seeded(), dtype=torch.float64)
    flow = Histogram(2, levels=8).double().fit_(values)
    counts = torch.stack([column.histc(8, 0, 1) for column in values.T])
    torch.testing.assert_close(flow.probability, (counts + 1) / 10_008)


def test_histogram_bins_8_bit_pixels_by_their_level() -> None:
    levels = torch.arange(256)[:, None]
    flow = Histogram(1)
    for noise in (2**-16, 0.5, 1 - 2**-16):
        assert torch.equal(flow._bins((levels + noise) / 256), levels)


@pytest.mark.parametrize("levels", [2, 10, 256])
def test_histogram_density_integrates_to_one(levels: int) -> None:
    flow = random_histogram(1, levels).double()
    grid = (torch.arange(levels * 4, dtype=torch.float64)[:, None] + 0.5) / (levels * 4)
    assert flow.log_prob(grid).exp().mean().item() == pytest.approx(1, abs=1e-6)
    assert not torch.allclose(flow.log_prob(grid), torch.zeros(()).double())


@torch.no_grad()
def test_histogram_samples_follow_its_bins() -> None:
    flow = random_histogram(2, levels=8)
    draws = flow.sample(200_000, seeded())
    shares = torch.stack([column.histc(8, 0, 1) for column in draws.T]) / len(draws)
    torch.testing.assert_close(shares, flow.probability, rtol=0, atol=0.005)
    bins = draws * 8
    torch.testing.assert_close((bins - bins.floor()).mean(0), torch.full((2,), 0.5), rtol=0, atol=0.005)
    assert abs(draws.T.corrcoef()[0, 1]) < 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_histogram_density_agrees_with_its_latents(dtype: torch.dtype) -> None:
    flow = random_histogram(3).to(dtype)
    x = torch.rand(500, 3, generator=seeded(1), dtype=dtype)
    z, log_det = flow(x)
    by_latent = standard_normal_log_prob(z) + log_det
    torch.testing.assert_close(flow.log_prob(x), by_latent, rtol=0, atol=1e5 * torch.finfo(dtype).eps ** 0.9)


def test_histogram_keeps_the_digits_of_both_tails() -> None:
    weights = torch.full((1, 256), 1e-12, dtype=torch.float64)
    weights[0, 127:129] = 0.5
    flow = Histogram(1).double().eval()
    flow.probability.copy_(weights / weights.sum())
    lower = torch.tensor([[2**-20], [2**-9], [0.125], [0.4375], [0.498]], dtype=torch.float64)
    x = torch.cat([lower, 1 - lower.flip(0)])
    z, _ = flow(x)
    assert z[0] < -8
    torch.testing.assert_close(z, -z.flip(0), rtol=1e-11, atol=0)
    torch.testing.assert_close(flow.inverse(z), x, rtol=0, atol=1e-9)


def test_histogram_latents_are_standard_normal() -> None:
    levels, noise = torch.rand(2, 50_000, 1, generator=seeded(), dtype=torch.float64)
    values = ((levels.pow(3) * 64).floor() + noise) / 64
    z, _ = Histogram(1, levels=64).double().fit_(values).eval()(values)
    assert abs(z.mean()) < 0.01
    assert abs(z.std() - 1) < 0.01


def test_histogram_free_parameters() -> None:
    assert Histogram(784).free_parameters() == 784 * 255


@pytest.mark.parametrize("value", [-0.001, 1.001, math.nan, math.inf])
def test_histogram_of_values_outside_raises(value: float) -> None:
    x = torch.tensor([[0.5, value]])
    for call in (Histogram(2).fit_, Histogram(2).log_prob, Histogram(2).eval()):
        with pytest.raises(ValueError, match=r"outside 0 to 1|not finite"):
            call(x)


@pytest.mark.parametrize("pseudocount", [0.0, -1.0])
def test_histogram_without_pseudocount_raises(pseudocount: float) -> None:
    with pytest.raises(ValueError, match=f"pseudocount is {pseudocount}"):
        Histogram(2, pseudocount=pseudocount)
