"""Two properties of every map and edge case: the inverse undoes it, and the log-determinant is that of autograd."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, Protocol

import pytest
import torch
from random_flows import (
    CPU_DTYPES,
    random_gaussian,
    random_histogram,
    random_learned,
    random_lu,
    random_lu_net,
    random_realnvp,
    random_released,
    random_spline,
    seeded,
)
from torch import Tensor, nn

from lunet import Activation, Flow, LeakySoftplus, LearnedMonotone, LULayer, LUNet, triangular
from lunet.pixels import inverse_logit, logit

WIDTHS = [1, 2, 7, 64, 784]


class Invertible(Protocol):
    """A module with both directions."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def inverse(self, y: Tensor) -> Tensor: ...

    def to(self, dtype: torch.dtype) -> Invertible: ...


class Map(NamedTuple):
    """A module, arguments, and the factor by which its inverse may amplify rounding errors.

    The factor is infinite if it depends on the argument; then only the round trip of latents is tested.
    """

    module: Invertible
    arguments: Tensor
    condition: float = 100.0


class Logit(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = logit(x, 1e-6, 0.05)
        return y, log_slope.sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return inverse_logit(y, 1e-6, 0.05)


class Elementwise(nn.Module):
    """An activation as a map with log-determinants."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.activation(x)
        return y, log_slope.sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return self.activation.inverse(y)


def real_rows(features: int, n: int = 12) -> Tensor:
    """Standard normal rows, rows with ten times the standard deviation, and tails up to 1e4 of both signs."""
    x = torch.randn(n, features, generator=seeded(5), dtype=torch.float64)
    x[n // 3 : 2 * n // 3] *= 10
    x[-2] = 1e4 * torch.linspace(-1, 1, features, dtype=torch.float64) if features > 1 else -1e4
    x[-1] = 1e4
    return x


def unit_rows(features: int, n: int = 12) -> Tensor:
    """Rows strictly between 0 and 1."""
    return 0.001 + 0.998 * torch.rand(n, features, generator=seeded(5), dtype=torch.float64)


def layer(features: int, activation: Activation | None, *, tiny: bool = False) -> LULayer:
    lu = random_lu(features)
    if tiny:
        lu.diagonal()[[0, features // 2]] *= -1e-4
    module = LULayer(features, activation)
    with torch.no_grad():
        module.lu.copy_(lu)
        if not tiny:  # the inverse would amplify its rounding error
            module.bias.normal_(generator=seeded(6))
    return module


def steep(features: int) -> Map:
    module = layer(features, None, tiny=True)
    lower, upper = triangular.unpack(module.lu.detach().double())
    return Map(module, real_rows(features), float(10 * torch.linalg.cond(lower) * torch.linalg.cond(upper)))


@cache
@torch.enable_grad()
def train(features: int) -> tuple[LUNet, Tensor]:
    """An LU-Net with both kinds of activation, trained for some steps on skewed data, and some of the data."""
    generator = seeded(7)
    x = torch.randn(400, features, generator=generator).exp() @ random_lu(features).float()
    flow = LUNet(features, 3, activation=LeakySoftplus(0.2), leading=LearnedMonotone(features, 8)).standardise_(x)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.01 if features < 100 else 0.0005)
    for _ in range(20):
        optimizer.zero_grad()
        (-flow.log_prob(x).mean() / features).backward()
        optimizer.step()
    return flow.eval(), x[:12].double()


def trained(features: int) -> Map:
    flow, x = train(features)
    return Map(copy.deepcopy(flow), x, math.inf)


MAPS: dict[str, Callable[[int], Map]] = {
    "logit": lambda D: Map(Logit(), unit_rows(D), 2000.0),
    "leaky softplus": lambda D: Map(Elementwise(LeakySoftplus(0.1)), real_rows(D)),
    "leaky softplus, steep": lambda D: Map(Elementwise(LeakySoftplus(0.001)), real_rows(D), 2000.0),
    "spline": lambda D: Map(Elementwise(random_spline(D)), real_rows(D)),
    "LU": lambda D: Map(layer(D, None), real_rows(D)),
    "LU, tiny and negative diagonal": steep,
    "LU layer": lambda D: Map(layer(D, LeakySoftplus(0.1)), real_rows(D)),
    "LU-Net": lambda D: Map(random_lu_net(D), real_rows(D), 5000.0),
    "LU-Net, learned": lambda D: Map(random_learned(D), real_rows(D), 1000.0),
    "LU-Net, trained": trained,
    "Gaussian": lambda D: Map(random_gaussian(D), real_rows(D), 1000.0),
    "histogram": lambda D: Map(random_histogram(D, levels=16), unit_rows(D), 2000.0),
    "RealNVP": lambda D: Map(random_realnvp((1, 28, 28) if D == 784 else (1, 8, 8)), real_rows(D) / 1000, 1000.0),
    # The instance normalisation in its networks amplifies nearly constant inputs.
    "RealNVP, released": lambda D: Map(
        random_released((1, 28, 28) if D == 784 else (1, 8, 8)), real_rows(D) / 1000, math.inf
    ),
}
CASES = [
    pytest.param(make, features, id=f"{name} {features}")
    for name, make in MAPS.items()
    for features in WIDTHS
    if not name.startswith("RealNVP") or features >= 64
]


@pytest.mark.parametrize("dtype", CPU_DTYPES, ids=str)
@pytest.mark.parametrize(("make", "features"), CASES)
@torch.no_grad()
def test_inverse_undoes_forward(make: Callable[[int], Map], features: int, dtype: torch.dtype) -> None:
    case = make(features)
    module, x = case.module.to(dtype), case.arguments.to(dtype)
    y, _ = module(x)
    assert not torch.equal(y, x)
    reconstructed = module.inverse(y)
    unit = torch.finfo(dtype).eps * features**0.5
    # Relative to the largest value of each row, as a linear map spreads the error of one feature over all.
    assert ((reconstructed - x).abs().amax(1) / (1 + x.abs().amax(1))).max() <= case.condition * unit
    latents, _ = module(reconstructed)
    # Whatever the condition, the inverse solves the equation up to rounding.
    assert ((latents - y).abs().amax(1) / (1 + y.abs().amax(1) + reconstructed.abs().amax(1))).max() <= 100 * unit


def jacobian_at(module: Invertible, row: Tensor) -> Tensor:
    """The Jacobian at one row, from forward passes of copies of the row."""
    gradients: list[Tensor] = []
    for cotangents in torch.eye(len(row), dtype=row.dtype).split(112):
        x = row.repeat(len(cotangents), 1).requires_grad_()
        gradients += torch.autograd.grad((cotangents * module(x)[0]).sum(), x)
    return torch.cat(gradients)


@pytest.mark.parametrize(("make", "features"), CASES)
def test_log_det_is_that_of_the_jacobian(make: Callable[[int], Map], features: int) -> None:
    case = make(features)
    module, x = case.module.to(torch.float64), case.arguments
    rows = x[:: len(x) if features > 64 else 3]
    if isinstance(module, Flow):
        module.eval()
    for row in rows:
        expected = torch.linalg.slogdet(jacobian_at(module, row)).logabsdet
        torch.testing.assert_close(module(row[None])[1][0], expected, rtol=1e-9, atol=1e-9)
