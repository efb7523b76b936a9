from __future__ import annotations

import math

import pytest
import torch
from random_flows import CPU_DTYPES, seeded, two_modes

from lunet import LeakySoftplus
from lunet.marginals import POOL_POINTS, POOL_WEIGHT, fit_marginals, representatives

# Nats per feature by which a chain of three activations may fall short of the true density of two modes; a normal
# distribution falls short by 0.9, the best chain by 0.17.
GAP = 0.3


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@torch.no_grad()
def test_density_is_close_to_the_true_one(dtype: torch.dtype) -> None:
    stretch = torch.tensor([1.0, 40.0, -0.1])
    x = (two_modes(20_000, 3)[0] * stretch + torch.tensor([0.0, -7.0, 300.0])).to(dtype)
    scales, shifts = fit_marginals(x, activation := LeakySoftplus(0.1), 3, seeded())
    z, log_slopes = scales[0] * x + shifts[0], scales.abs().log().sum(0)
    for scale, shift in zip(scales[1:], shifts[1:], strict=True):
        z, log_slope = activation(z)
        z, log_slopes = scale * z + shift, log_slopes + log_slope
    assert z.dtype == dtype
    cross_entropy = (z.square() / 2 - log_slopes).mean(0) + math.log(2 * math.pi) / 2
    entropy = (1 + math.log(2 * math.pi)) / 2 + stretch.abs().log()
    assert (cross_entropy - entropy).abs().max() < GAP
    assert (x.std(0).log() - stretch.abs().log() > 3 * GAP).all()  # the gap of a normal distribution


def test_fit_depends_only_on_its_generator() -> None:
    x, _ = two_modes(500, 4)
    first, second = (fit_marginals(x, LeakySoftplus(0.1), 2, seeded(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_representatives_include_extremes_mean_and_pool() -> None:
    x = torch.randn(5000, 2, generator=seeded(), dtype=torch.float64) + torch.tensor([0.0, -20.0])
    points, weights = representatives(x)
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0).double())
    feature_points, pool = points[:-POOL_POINTS], points[-POOL_POINTS:]
    assert torch.equal(feature_points.amin(0), x.amin(0))
    assert torch.equal(feature_points.amax(0), x.amax(0))
    torch.testing.assert_close(
        weights[:-POOL_POINTS] @ feature_points / (1 - POOL_WEIGHT), x.mean(0), rtol=1e-2, atol=1e-2
    )
    assert torch.equal(pool[:, 0], pool[:, 1])
    assert pool.amin() < -20
    assert pool.amax() > 0
    torch.testing.assert_close(weights[-POOL_POINTS:].sum(), torch.tensor(POOL_WEIGHT).double())
