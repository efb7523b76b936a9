"""Flows with random weights, far from the identity, and samples of data."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from lunet import Flow, Gaussian, Histogram, LearnedMonotone, LUNet, RealNVP, ReleasedRealNVP

CPU_DTYPES = [torch.float32, torch.float64]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_lu(features: int, seed: int = 0) -> Tensor:
    """Both triangles of a well-conditioned product, in float64; about half of U's diagonal is negative."""
    generator = seeded(seed)
    lu = torch.randn(features, features, generator=generator, dtype=torch.float64) * 0.4 / features**0.5
    size = 0.5 + 1.5 * torch.rand(features, generator=generator, dtype=torch.float64)
    sign = torch.randint(0, 2, (features,), generator=generator) * 2 - 1
    return lu - lu.diagonal().diag() + (size * sign).diag()


def random_lu_net(features: int, layers: int = 4, slope: float = 0.1, seed: int = 0) -> LUNet:
    flow = LUNet(features, layers, slope)
    with torch.no_grad():
        for index, layer in enumerate(flow.layers):
            layer.lu.copy_(random_lu(features, seed + index))
            layer.bias.copy_(torch.randn(features, generator=seeded(seed + index)))
    return flow.eval()


def random_learned(features: int, layers: int = 3, bins: int = 6, seed: int = 0) -> LUNet:
    """An LU-Net with bent splines; the knots of the leading one differ between features."""
    flow = LUNet(
        features, layers, activation=LearnedMonotone(features, bins), leading=LearnedMonotone(features, 2 * bins)
    )
    assert isinstance(flow.leading, LearnedMonotone)
    generator = seeded(seed)
    with torch.no_grad():
        for index, layer in enumerate(flow.layers):
            layer.lu.copy_(random_lu(features, seed + index))
        for name, parameter in flow.named_parameters():
            if not name.endswith("lu"):
                parameter.add_(0.7 * torch.randn(parameter.shape, generator=generator))
        flow.leading.left.sub_(torch.rand(features, 1, generator=generator))
        flow.leading.width.mul_(0.5 + torch.rand(features, 1, generator=generator))
        flow.leading.anchor.copy_(torch.randint(0, 2 * bins, (features, 1), generator=generator))
    return flow.eval()


def random_spline(features: int, bins: int = 12) -> LearnedMonotone:
    """A spline far from the identity, whose knots and anchor differ between features."""
    leading = random_learned(features, layers=1, bins=bins // 2).leading
    assert isinstance(leading, LearnedMonotone)
    return leading


def randomise_(flow: RealNVP, seed: int = 0) -> RealNVP:
    """Move every parameter, including the networks' last layers, which are initialised to zero."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return flow.eval()


def random_realnvp(shape: tuple[int, int, int] = (1, 4, 4), *, shared: bool = False, seed: int = 0) -> RealNVP:
    torch.manual_seed(seed)
    return randomise_(RealNVP(shape, planes=4, blocks=1, networks="shared" if shared else "separate"), seed)


def random_released(shape: tuple[int, int, int] = (1, 4, 4), seed: int = 0) -> RealNVP:
    """The released RealNVP with random parameters and running averages."""
    torch.manual_seed(seed)
    flow = ReleasedRealNVP(shape, planes=4)
    generator = seeded(seed)
    with torch.no_grad():
        for buffer in flow.buffers():
            if buffer.ndim == 1:
                buffer.add_(torch.rand(buffer.shape, generator=generator))
    return randomise_(flow, seed)


@torch.no_grad()
def scale_(flow: Flow, factor: float) -> None:
    """Multiply all parameters and buffers of a flow."""
    for tensor in flow.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(factor)


def correlated(n: int, features: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Skewed rows with a full covariance and a mean that is not zero, with shape (n, features)."""
    generator = seeded(seed)
    noise = torch.randn(n, features, generator=generator, dtype=torch.float64)
    mix = torch.randn(features, features, generator=generator, dtype=torch.float64) / features**0.5
    return ((noise + 0.2 * noise.square()) @ (mix + torch.eye(features)) + 3.0).to(dtype)


def two_modes(n: int, features: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated normal rows, split at 0.5 into two modes, and their log-densities, with shape (n,); in float64."""
    factor = torch.linalg.cholesky(0.6 * torch.ones(features, features) + 0.4 * torch.eye(features)).double()
    normal = torch.randn(n, features, generator=seeded(seed), dtype=torch.float64) @ factor.T
    distribution = torch.distributions.MultivariateNormal(torch.zeros(features).double(), scale_tril=factor)
    return normal + torch.where(normal < 0.5, -2.0, 2.0), distribution.log_prob(normal)


def random_gaussian(features: int, seed: int = 0) -> Gaussian:
    return Gaussian(features).fit_(correlated(20 * features, features, seed, torch.float32)).eval()


def random_histogram(features: int, levels: int = 256, seed: int = 0) -> Histogram:
    values = torch.rand(2000, features, generator=seeded(seed)).pow(3)
    return Histogram(features, levels).fit_(values).eval()


def every_flow() -> dict[str, Flow]:
    """One flow of each kind, and the edge cases of their arguments, with random weights in float32."""
    return {
        "lunet": random_lu_net(5),
        "lunet-one-feature": random_lu_net(1, layers=3),
        "lunet-one-layer": random_lu_net(6, layers=1),
        "lunet-steep": random_lu_net(4, layers=3, slope=0.01),
        "lunet-flat": random_lu_net(4, layers=3, slope=0.9),
        "lunet-learned": random_learned(5),
        "lunet-learned-one-feature": random_learned(1, bins=2),
        "realnvp": random_realnvp(),
        "realnvp-shared": random_realnvp(shared=True),
        "realnvp-colour": random_realnvp((2, 2, 4)),
        "realnvp-released": random_released(),
        "gaussian": random_gaussian(5),
        "histogram": random_histogram(4, levels=16),
        "histogram-256": random_histogram(3),
    }


def small_flows() -> dict[str, Flow]:
    """A small flow of each kind with random weights in float32, for tests that take long."""
    torch.manual_seed(0)
    return {
        "lunet": random_lu_net(4, layers=2),
        "lunet-learned": random_learned(4, layers=2),
        "realnvp": randomise_(RealNVP((1, 4, 4), (1, 1, 1), planes=2, blocks=1, networks="shared")),
        "gaussian": random_gaussian(4),
        "histogram": random_histogram(4, levels=8),
    }


def copy_with_rows(flow: Flow, dtype: torch.dtype = torch.float32) -> tuple[Flow, Tensor]:
    """A copy of a flow, and rows at which it has density."""
    flow = copy.deepcopy(flow).to(dtype)
    draw = torch.rand if isinstance(flow, Histogram) else torch.randn
    return flow, draw(6, flow.features, generator=seeded(1), dtype=torch.float64).to(dtype)
