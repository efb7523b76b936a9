from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from random_flows import random_lu, random_lu_net, seeded
from torch import Tensor

from lunet import Gaussian, LeakySoftplus, LearnedMonotone, LULayer, LUNet

PAPER = (784, 4)


@pytest.fixture(scope="module")
def wide() -> LUNet:
    """The paper's network with random weights, in float64."""
    return random_lu_net(*PAPER).double()


def dense_jacobian(flow: LUNet, x: Tensor) -> Tensor:
    """The Jacobian at one row, the product of diag(phi') L U over the layers."""
    jacobian = torch.eye(flow.features, dtype=x.dtype)
    for layer in flow.layers:
        weight = (layer.lu.tril(-1) + torch.eye(flow.features, dtype=x.dtype)) @ layer.lu.triu()
        x, jacobian = weight @ x + layer.bias, weight @ jacobian
        if layer.activation is not None:
            assert isinstance(layer.activation, LeakySoftplus)
            slope = layer.activation.slope
            jacobian = (slope + (1 - slope) * torch.sigmoid(x))[:, None] * jacobian
            x = slope * x + (1 - slope) * torch.nn.functional.softplus(x)
    return jacobian


# The paper's network


def test_number_of_layers_and_parameters_is_that_of_the_paper() -> None:
    flow = LUNet(*PAPER)
    assert flow.free_parameters() == 2_461_760
    assert [layer.activation is None for layer in flow.layers] == [False, False, False, True]


@torch.no_grad()
def test_round_trip_at_784_features_in_float64(wide: LUNet) -> None:
    x = 3 * torch.randn(8, 784, generator=seeded(), dtype=torch.float64)
    z, _ = wide(x)
    assert (z - x).abs().mean() > 1
    torch.testing.assert_close(wide.inverse(z), x, rtol=0, atol=1e-10)
    torch.testing.assert_close(wide(wide.inverse(x)).z, x, rtol=0, atol=1e-10)


@torch.no_grad()
def test_round_trip_at_784_features_in_float32() -> None:
    flow = random_lu_net(*PAPER)
    x = 3 * torch.randn(8, 784, generator=seeded())
    torch.testing.assert_close(flow.inverse(flow(x).z), x, rtol=0, atol=2e-2)
    torch.testing.assert_close(flow(flow.inverse(x)).z, x, rtol=0, atol=1e-2)


@torch.no_grad()
def test_float32_agrees_with_float64_at_784_features(wide: LUNet) -> None:
    x = 3 * torch.randn(8, 784, generator=seeded())
    torch.testing.assert_close(random_lu_net(*PAPER).log_prob(x).double(), wide.log_prob(x.double()), rtol=1e-5, atol=0)


@torch.no_grad()
def test_log_det_at_784_features_is_that_of_the_dense_product(wide: LUNet) -> None:
    x = 3 * torch.randn(3, 784, generator=seeded(), dtype=torch.float64)
    for row, log_det in zip(x, wide(x).log_det, strict=True):
        expected = torch.linalg.slogdet(dense_jacobian(wide, row)).logabsdet
        torch.testing.assert_close(log_det, expected, rtol=1e-10, atol=0)


# Jacobian


@torch.no_grad()
def test_round_trip_does_not_detect_a_wrong_log_det() -> None:
    class Lossy(LULayer):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z, _ = super().forward(x)
            return z, x.new_zeros(len(x))

    flow = random_lu_net(6, layers=2).double()
    flow.layers[0].__class__ = Lossy
    x = torch.randn(1, 6, generator=seeded(), dtype=torch.float64)
    z, log_det = flow(x)
    torch.testing.assert_close(flow.inverse(z), x)
    assert abs(log_det[0] - torch.linalg.slogdet(dense_jacobian(flow, x[0])).logabsdet) > 0.1


def test_one_layer_is_initialised_to_the_identity() -> None:
    x = torch.randn(5, 7, generator=seeded())
    z, log_det = LUNet(7, layers=1)(x)
    assert torch.equal(z, x)
    assert torch.equal(log_det, torch.zeros(5))


# Parameters


def test_every_stored_parameter_is_free() -> None:
    flow = random_lu_net(12, layers=3)
    flow.log_prob(torch.randn(20, 12, generator=seeded())).sum().backward()
    for parameter in flow.parameters():
        assert parameter.grad is not None
        assert (parameter.grad != 0).all()


def test_each_layer_has_a_copy_of_the_activation() -> None:
    template = LearnedMonotone(4)
    flow = LUNet(4, 3, activation=template, leading=template)
    activations = [flow.leading, *(layer.activation for layer in flow.layers[:-1]), template]
    assert len({id(activation) for activation in activations}) == len(activations)
    assert flow.layers[-1].activation is None
    assert flow.free_parameters() == 3 * (16 + 4) + 3 * 4 * 17


def test_gradients_reach_latents_and_parameters_through_the_inverse() -> None:
    flow = random_lu_net(3, layers=3).double()
    z = torch.randn(4, 3, generator=seeded(), dtype=torch.float64, requires_grad=True)
    # gradcheck modifies the parameters in place, and so those of the flow.
    assert torch.autograd.gradcheck(lambda z, *_: flow.inverse(z), (z, *flow.parameters()))


def test_training_beats_the_gaussian_and_stays_invertible() -> None:
    def draw(seed: int) -> Tensor:
        sources = torch.randn(1000, 4, generator=seeded(seed), dtype=torch.float64)
        sources[:, :2] = sources[:, :2].exp()
        return sources @ (random_lu(4) + torch.ones(4, 4))

    x, test = draw(0), draw(1)
    flow = LUNet(4, layers=3).double().whiten_(x)
    optimizer = torch.optim.Adam(flow.parameters(), lr=0.03)
    for _ in range(100):
        optimizer.zero_grad()
        loss = -flow.log_prob(x).mean()
        loss.backward()
        optimizer.step()
    flow.eval()
    gaussian = Gaussian(4).double().fit_(x)
    assert flow.log_prob(test).mean() > gaussian.log_prob(test).mean() + 0.5
    torch.testing.assert_close(flow.inverse(flow(x).z), x, rtol=0, atol=1e-10)
    jacobian = torch.linalg.slogdet(dense_jacobian(flow, x[0])).logabsdet
    torch.testing.assert_close(flow(x[:1]).log_det[0], jacobian, rtol=1e-10, atol=1e-10)


# Errors


def test_zero_on_the_diagonal_raises_and_names_the_layer() -> None:
    flow = random_lu_net(4)
    with torch.no_grad():
        flow.layers[2].lu[1, 1] = 0
    message = r"layers\.2 is singular: entry 1 of U's diagonal is zero"
    with pytest.raises(ValueError, match=message):
        flow(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=message):
        flow.train().inverse(torch.zeros(1, 4))
    with pytest.raises(ValueError, match=message):
        flow.sample(2)


def test_parameter_that_is_not_finite_raises_and_is_named() -> None:
    flow = random_lu_net(4)
    with torch.no_grad():
        flow.layers[1].bias[3] = math.nan
    with pytest.raises(ValueError, match=r"layers\.1\.bias has values that are not finite"):
        flow.log_prob(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"features": 0}, "features is 0"), ({"features": 3, "layers": 0}, "layers is 0"),
     ({"features": 3, "slope": 1.5}, "slope is 1.5"),
     ({"features": 3, "slope": 0.1, "activation": LeakySoftplus()}, "slope and activation are both given")],
)  # fmt: skip
def test_bad_arguments_raise_and_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LUNet(**arguments)
