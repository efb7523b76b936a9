"""The training objectives: bits per dimension, the released losses, and infinite pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lunet import Gaussian, ImageFlow, LUNet, ReleasedRealNVP
from pipeline.training.objectives import infinite_pixels, loss_and_bits


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def images(n: int = 6) -> Tensor:
    return torch.randint(256, (n, 4, 4), generator=seeded(), dtype=torch.uint8)


def lu_net() -> ImageFlow:
    return ImageFlow(LUNet(16, 3).uniform_(seeded()), (1, 4, 4), 5e-6).double()


def real_nvp() -> ImageFlow:
    torch.manual_seed(0)
    flow = ReleasedRealNVP((1, 4, 4), (1, 1, 1), planes=2).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return ImageFlow(flow, (1, 4, 4), (0.05, 0.0)).eval()


@pytest.mark.parametrize("model", [lu_net(), real_nvp()], ids=["lunet", "realnvp"])
def test_bits_are_those_of_the_model_whatever_is_differentiated(model: ImageFlow) -> None:
    expected = model.bits_per_dim(images(), generator=seeded()).mean()
    loss, bits = loss_and_bits(model, images(), seeded(), "likelihood", 6)
    assert torch.equal(loss, bits)
    torch.testing.assert_close(bits, expected)
    released, bits = loss_and_bits(model, images(), seeded(), "released", 6)
    torch.testing.assert_close(bits, expected)
    assert abs(released - bits) > 1


def test_released_gradient_of_lu_net_leaves_out_the_slopes_and_weighs_the_diagonals() -> None:
    model = lu_net()
    flow = model.flow
    assert isinstance(flow, LUNet)
    parameters = list(flow.parameters())
    loss, _ = loss_and_bits(model, images(), seeded(), "released", 6)
    gradients = torch.autograd.grad(loss, parameters)
    # The poster's loss, written with dense triangular matrices.
    h, _ = model.preprocess(images(), seeded())
    expected = torch.tensor(0.5 * 6 * 16 * math.log(math.pi), dtype=torch.float64)
    for layer in flow.layers:
        h = h @ layer.lu.triu().T @ (layer.lu.tril(-1) + torch.eye(16)).T + layer.bias
        expected = expected - 100 * 6 * layer.lu.diagonal().abs().log().sum()
        if layer.activation is not None:
            expected = expected - torch.log(0.1 + 0.9 * torch.sigmoid(h.detach())).sum()
            h = 0.1 * h + 0.9 * torch.nn.functional.softplus(h)
    expected = expected + 0.5 * h.square().sum()
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, parameters), rtol=1e-8, atol=1e-8)


def test_released_loss_of_realnvp_divides_by_a_full_batch() -> None:
    model = real_nvp()
    flow = model.flow
    assert isinstance(flow, ReleasedRealNVP)
    y, _ = model.preprocess(images(), seeded())
    expected = (-flow.log_prob(y).sum() + 5e-5 * flow.scale_penalty()) / 8
    torch.testing.assert_close(loss_and_bits(model, images(), seeded(), "released", 8)[0], expected)


def test_a_model_that_was_not_released_is_refused() -> None:
    model = ImageFlow(Gaussian(16), (1, 4, 4))
    with pytest.raises(TypeError, match="a Gaussian has no released objective"):
        loss_and_bits(model, images(), seeded(), "released", 6)


def test_only_white_pixels_become_infinite() -> None:
    pixels = torch.full((4096, 1024), 255, dtype=torch.uint8)
    # One in 2 ** 17 of 2 ** 22 pixels: 32, give or take 6.
    assert 8 <= int(infinite_pixels(pixels, seeded())) <= 56
    assert int(infinite_pixels(pixels - 1, seeded())) == 0
