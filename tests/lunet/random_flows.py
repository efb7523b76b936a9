"""Flows with random weights, far from the identity at which they start."""

from __future__ import annotations

import torch
from torch import Tensor

from lunet import Flow, Gaussian, Histogram, LearnedMonotone, LUNet, RealNVP, ReleasedRealNVP

CPU_DTYPES = [torch.float32, torch.float64]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_lu(features: int, seed: int = 0) -> Tensor:
    """Both triangles of a well-conditioned product, in float64; half of U's diagonal is negative."""
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
    """An LU-Net with learned activations that bend, the leading one over knots of its own for each feature."""
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


def randomise_(flow: RealNVP, seed: int = 0) -> RealNVP:
    """Move every parameter, the last layers of the networks included, which start at zero."""
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return flow.eval()


def random_realnvp(shape: tuple[int, int, int] = (1, 4, 4), *, shared: bool = False, seed: int = 0) -> RealNVP:
    torch.manual_seed(seed)
    return randomise_(RealNVP(shape, planes=4, blocks=1, shared=shared), seed)


def random_released(shape: tuple[int, int, int] = (1, 4, 4), seed: int = 0) -> RealNVP:
    """The released RealNVP, its running averages away from their start too."""
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
    """Multiply all that a flow has learnt."""
    for tensor in flow.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(factor)


def correlated(n: int, features: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Rows with a full covariance and a mean, skewed away from a Gaussian, with shape (n, features)."""
    generator = seeded(seed)
    noise = torch.randn(n, features, generator=generator, dtype=torch.float64)
    mix = torch.randn(features, features, generator=generator, dtype=torch.float64) / features**0.5
    return ((noise + 0.2 * noise.square()) @ (mix + torch.eye(features)) + 3.0).to(dtype)


def random_gaussian(features: int, seed: int = 0) -> Gaussian:
    return Gaussian(features).fit_(correlated(20 * features, features, seed, torch.float32)).eval()


def random_histogram(features: int, levels: int = 256, seed: int = 0) -> Histogram:
    values = torch.rand(2000, features, generator=seeded(seed)).pow(3)
    return Histogram(features, levels).fit_(values).eval()


def every_flow() -> dict[str, Flow]:
    """One flow of each kind, and the corners of their arguments, with random weights in float32."""
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
