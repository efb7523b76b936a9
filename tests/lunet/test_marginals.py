from __future__ import annotations

import math

import pytest
import torch
from random_flows import CPU_DTYPES, correlated, seeded
from torch import Tensor

from lunet import Gaussian, LeakySoftplus, LearnedMonotone, LUNet
from lunet.marginals import POOL_POINTS, POOL_WEIGHT, fit_marginals, representatives

# Nats a feature that a chain of three bends may be short of a torn normal distribution; a normal one lacks 0.9, three
# bends at their best 0.17.
GAP = 0.3


def two_modes(rows: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated normal values torn apart at 0.5, and their log-densities, with shape (rows,); in float64."""
    mix = torch.linalg.cholesky(0.6 * torch.ones(features, features) + 0.4 * torch.eye(features)).double()
    normal = torch.randn(rows, features, generator=seeded(seed), dtype=torch.float64) @ mix.T
    truth = torch.distributions.MultivariateNormal(torch.zeros(features).double(), scale_tril=mix)
    return normal + torch.where(normal < 0.5, -2.0, 2.0), truth.log_prob(normal)


# Marginals


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@torch.no_grad()
def test_each_feature_is_fitted_nearly_as_it_is_distributed(dtype: torch.dtype) -> None:
    stretch = torch.tensor([1.0, 40.0, -0.1])
    x = (two_modes(20_000, 3)[0] * stretch + torch.tensor([0.0, -7.0, 300.0])).to(dtype)
    scales, shifts = fit_marginals(x, activation := LeakySoftplus(0.1), 3, seeded())
    z, log_slopes = scales[0] * x + shifts[0], scales.abs().log().sum(0)
    for scale, shift in zip(scales[1:], shifts[1:], strict=True):
        z, log_slope = activation(z)
        z, log_slopes = scale * z + shift, log_slopes + log_slope
    assert z.dtype == dtype
    found = (z.square() / 2 - log_slopes).mean(0) + math.log(2 * math.pi) / 2
    entropy = (1 + math.log(2 * math.pi)) / 2 + stretch.abs().log()
    assert (found - entropy).abs().max() < GAP
    assert (x.std(0).log() - stretch.abs().log() > 3 * GAP).all()  # what a normal distribution lacks


def test_a_fit_is_that_of_its_generator() -> None:
    x, _ = two_modes(500, 4)
    first, again = (fit_marginals(x, LeakySoftplus(0.1), 2, seeded(3)) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_points_keep_the_outermost_values_the_mean_and_what_other_features_take() -> None:
    x = torch.randn(5000, 2, generator=seeded(), dtype=torch.float64) + torch.tensor([0.0, -20.0])
    points, weights = representatives(x)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0).double())
    own, pooled = points[:-POOL_POINTS], points[-POOL_POINTS:]
    assert torch.equal(own.amin(0), x.amin(0))
    assert torch.equal(own.amax(0), x.amax(0))
    torch.testing.assert_close(weights[:-POOL_POINTS] @ own / (1 - POOL_WEIGHT), x.mean(0), rtol=1e-2, atol=1e-2)
    assert torch.equal(pooled[:, 0], pooled[:, 1])
    assert pooled.amin() < -20
    assert pooled.amax() > 0
    torch.testing.assert_close(weights[-POOL_POINTS:].sum(), torch.tensor(POOL_WEIGHT).double())


def test_a_value_that_a_feature_never_takes_keeps_a_density() -> None:
    x, _ = two_modes(4000, 3)
    x[:, 1] = torch.randn(4000, generator=seeded(7), dtype=torch.float64) - 8  # never near 3, where the others are
    row = torch.tensor([[-3.0, 3.0, -3.0]], dtype=torch.float64)
    assert LUNet(3, layers=4).double().copula_(x, seeded()).log_prob(row) > -30
    # A normal distribution at -8 has it eleven standard deviations away.
    assert Gaussian(3).double().fit_(x).log_prob(row) < -60


# The copula start


@torch.no_grad()
def test_a_copula_starts_far_above_the_gaussian_and_white() -> None:
    x, _ = two_modes(4000, 8)
    held_out, truth = two_modes(1000, 8, seed=5)
    flow = LUNet(8, layers=4).double().copula_(x, seeded(), ridge=0.0)
    gaussian = Gaussian(8).double().fit_(x)
    assert flow.log_prob(held_out).mean() > truth.mean() - 8 * GAP
    assert gaussian.log_prob(held_out).mean() < truth.mean() - 4
    z, _ = flow(x)
    torch.testing.assert_close(z.mean(0), torch.zeros(8).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(z.T.cov(correction=0), torch.eye(8).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(flow.inverse(z), x, rtol=0, atol=1e-8)


@torch.no_grad()
def test_only_the_last_layer_mixes_features() -> None:
    flow = LUNet(8, layers=3).copula_(two_modes(1000, 8)[0].float(), seeded())
    for layer in flow.layers[:-1]:
        assert torch.equal(layer.lu, layer.lu.diagonal().diag())
    assert (flow.layers[-1].lu != 0).all()


def test_a_ridge_shrinks_the_latents() -> None:
    x, _ = two_modes(1000, 8)
    spreads = [LUNet(8).double().copula_(x, seeded(), ridge=ridge)(x).z.var(0).mean() for ridge in (0.0, 0.1, 1.0)]
    assert spreads == sorted(spreads, reverse=True)


@pytest.mark.parametrize(
    "flow",
    [LUNet(4, layers=1), LUNet(4, activation=LearnedMonotone(4)), LUNet(4, leading=LearnedMonotone(4))],
    ids=["one layer", "learned", "leading"],
)
def test_a_flow_without_leaky_softpluses_between_layers_is_refused(flow: LUNet) -> None:
    with pytest.raises(ValueError, match="leaky softpluses between two layers or more; use whiten_"):
        flow.copula_(correlated(100, 4).float())


@pytest.mark.parametrize("value", [2.0, math.nan, math.inf])
def test_a_sample_without_spread_is_refused(value: float) -> None:
    x = torch.randn(20, 4)
    x[:, 1] = value
    with pytest.raises(ValueError, match="two different values or more, all of them finite"):
        LUNet(4).copula_(x)
