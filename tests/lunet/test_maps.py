"""Every map and every corner of it, under two properties: it can be undone, and its log-determinant is autodiff's."""

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
    seeded,
)
from torch import Tensor, nn

from lunet import Activation, Flow, LeakySoftplus, LearnedMonotone, LULayer, LUNet, triangular
from lunet.pixels import inverse_logit, logit

WIDTHS = [1, 2, 7, 64, 784]


class Reversible(Protocol):
    """What has both directions."""

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]: ...

    def inverse(self, y: Tensor) -> Tensor: ...

    def to(self, dtype: torch.dtype) -> Reversible: ...


class Map(NamedTuple):
    """A module with both directions, where its arguments lie, and by how much its inverse may magnify a rounding error.

    Where that depends on the argument it is infinite, and only the way from latents and back to them is judged.
    """

    module: Reversible
    arguments: Tensor
    condition: float = 100.0


class Logit(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = logit(x, 1e-6, 0.05)
        return y, log_slope.sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return inverse_logit(y, 1e-6, 0.05)


class Elementwise(nn.Module):
    """An activation as a map of its own."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.activation(x)
        return y, log_slope.sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        return self.activation.inverse(y)


def line(features: int, n: int = 12) -> Tensor:
    """Rows of standard normal values, of ten times as wide ones, and of tails up to 1e4 of either sign."""
    x = torch.randn(n, features, generator=seeded(5), dtype=torch.float64)
    x[n // 3 : 2 * n // 3] *= 10
    x[-2] = 1e4 * torch.linspace(-1, 1, features, dtype=torch.float64) if features > 1 else -1e4
    x[-1] = 1e4
    return x


def middle(features: int, n: int = 12) -> Tensor:
    """Rows strictly between 0 and 1."""
    return 0.001 + 0.998 * torch.rand(n, features, generator=seeded(5), dtype=torch.float64)


def bent(features: int) -> LearnedMonotone:
    leading = random_learned(features, layers=1).leading
    assert isinstance(leading, LearnedMonotone)
    return leading


def layer(features: int, activation: Activation | None, *, tiny: bool = False) -> LULayer:
    lu = random_lu(features)
    if tiny:
        lu.diagonal()[[0, features // 2]] *= -1e-4
    made = LULayer(features, activation)
    with torch.no_grad():
        made.lu.copy_(lu)
        if not tiny:  # what is added is lost where the inverse magnifies it
            made.bias.normal_(generator=seeded(6))
    return made


def steep(features: int) -> Map:
    made = layer(features, None, tiny=True)
    lower, upper = triangular.unpack(made.lu.detach().double())
    return Map(made, line(features), float(10 * torch.linalg.cond(lower) * torch.linalg.cond(upper)))


@cache
@torch.enable_grad()
def descended(features: int) -> tuple[LUNet, Tensor]:
    """A whole LU-Net after some steps on skewed data, both kinds of activation in it; and some of the data."""
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
    flow, x = descended(features)
    return Map(copy.deepcopy(flow), x, math.inf)


MAPS: dict[str, Callable[[int], Map]] = {
    "logit": lambda D: Map(Logit(), middle(D), 2000.0),
    "leaky softplus": lambda D: Map(Elementwise(LeakySoftplus(0.1)), line(D)),
    "leaky softplus, steep": lambda D: Map(Elementwise(LeakySoftplus(0.001)), line(D), 2000.0),
    "spline": lambda D: Map(Elementwise(bent(D)), line(D)),
    "LU": lambda D: Map(layer(D, None), line(D)),
    "LU, tiny and negative diagonal": steep,
    "LU layer": lambda D: Map(layer(D, LeakySoftplus(0.1)), line(D)),
    "LU-Net": lambda D: Map(random_lu_net(D), line(D), 5000.0),
    "LU-Net, learned": lambda D: Map(random_learned(D), line(D), 1000.0),
    "LU-Net, trained": trained,
    "Gaussian": lambda D: Map(random_gaussian(D), line(D), 1000.0),
    "histogram": lambda D: Map(random_histogram(D, levels=16), middle(D), 2000.0),
    "RealNVP": lambda D: Map(random_realnvp((1, 28, 28) if D == 784 else (1, 8, 8)), line(D) / 1000, 1000.0),
    # The instance norms of its networks magnify what is nearly constant.
    "RealNVP, released": lambda D: Map(
        random_released((1, 28, 28) if D == 784 else (1, 8, 8)), line(D) / 1000, math.inf
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
    found = make(features)
    module, x = found.module.to(dtype), found.arguments.to(dtype)
    y, _ = module(x)
    assert not torch.equal(y, x)
    back = module.inverse(y)
    unit = torch.finfo(dtype).eps * features**0.5
    # Of each row, relative to its largest value: a linear map spreads the error of one feature over all.
    assert ((back - x).abs().amax(1) / (1 + x.abs().amax(1))).max() <= found.condition * unit
    again, _ = module(back)
    # Whatever the condition, what was found solves the equation up to rounding.
    assert ((again - y).abs().amax(1) / (1 + y.abs().amax(1) + back.abs().amax(1))).max() <= 100 * unit


def jacobian_at(module: Reversible, row: Tensor) -> Tensor:
    """The derivatives at one row, from passes of as many copies of it as there are features."""
    found: list[Tensor] = []
    for chosen in torch.eye(len(row), dtype=row.dtype).split(112):
        x = row.repeat(len(chosen), 1).requires_grad_()
        found += torch.autograd.grad((chosen * module(x)[0]).sum(), x)
    return torch.cat(found)


@pytest.mark.parametrize(("make", "features"), CASES)
def test_log_det_is_that_of_the_jacobian(make: Callable[[int], Map], features: int) -> None:
    found = make(features)
    module, x = found.module.to(torch.float64), found.arguments
    rows = x[:: len(x) if features > 64 else 3]
    if isinstance(module, Flow):
        module.eval()
    for row in rows:
        expected = torch.linalg.slogdet(jacobian_at(module, row)).logabsdet
        torch.testing.assert_close(module(row[None])[1][0], expected, rtol=1e-9, atol=1e-9)
