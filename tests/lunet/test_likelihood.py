from __future__ import annotations

import math

import pytest
import torch
from random_flows import random_learned, random_lu_net, seeded

from lunet import ImageFlow, LUNet, pixel_bits, poster_bits_per_pixel, poster_nll, standard_normal_log_prob

# The paper's loss


@pytest.mark.parametrize(("features", "layers"), [(1, 2), (7, 1), (7, 4), (784, 4)])
def test_poster_loss_is_the_negative_log_likelihood(features: int, layers: int) -> None:
    flow = random_lu_net(features, layers).double()
    x = 2 * torch.randn(5, features, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(poster_nll(flow, x), -flow.log_prob(x).sum(), rtol=1e-12, atol=0)


def test_poster_loss_counts_a_leading_activation() -> None:
    flow = random_learned(6).double()
    x = 2 * torch.randn(5, 6, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(poster_nll(flow, x), -flow.log_prob(x).sum(), rtol=1e-12, atol=0)


def test_poster_loss_has_the_same_gradient() -> None:
    flow = random_lu_net(6, 3).double()
    x = torch.randn(9, 6, generator=seeded(), dtype=torch.float64)
    parameters = list(flow.parameters())
    loss = torch.autograd.grad(poster_nll(flow, x), parameters)
    likelihood = torch.autograd.grad(-flow.log_prob(x).sum(), parameters)
    torch.testing.assert_close(loss, likelihood, rtol=1e-10, atol=1e-10)


def test_poster_loss_of_the_identity_is_the_standard_normal() -> None:
    x = torch.randn(9, 6, generator=seeded())
    torch.testing.assert_close(poster_nll(LUNet(6, layers=1), x), -standard_normal_log_prob(x).sum())


def test_standard_normal_log_prob() -> None:
    z = torch.randn(9, 6, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(standard_normal_log_prob(z), torch.distributions.Normal(0, 1).log_prob(z).sum(1))


# Bits per pixel


@pytest.mark.parametrize(("density", "bits"), [(1.0, 8.0), (256.0, 0.0), (2.0, 7.0), (0.5, 9.0)])
def test_pixel_bits_of_a_constant_density(density: float, bits: float) -> None:
    log_prob = torch.tensor([784 * math.log(density)], dtype=torch.float64)
    torch.testing.assert_close(pixel_bits(log_prob, 784), torch.tensor([bits], dtype=torch.float64))


# The poster's two currencies


def currencies(margin: float | tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-densities of logits, honest bits per pixel, and E, the mean log2-slope of the logit, of random images."""
    images = torch.randint(0, 256, (20, 1, 4, 4), generator=seeded(), dtype=torch.uint8)
    flow = ImageFlow(random_lu_net(16).double(), (1, 4, 4), margin)
    logits, log_det = flow.preprocess(images, seeded(3))
    return flow.flow.log_prob(logits), flow.bits_per_dim(images, generator=seeded(3)), log_det / (16 * math.log(2))


@pytest.mark.parametrize("margin", [1e-6, 5e-6, (0.05, 0.0)], ids=str)
def test_lu_net_prints_half_a_bit_too_little_and_no_jacobian(margin: float | tuple[float, float]) -> None:
    log_prob, honest, E = currencies(margin)
    printed = poster_bits_per_pixel(log_prob, 16, code="lunet")
    torch.testing.assert_close(honest, printed + 0.5 + 8 - E, rtol=1e-12, atol=0)


@pytest.mark.parametrize("factor", [1.0, 10_000 / (79 * 128), 0.95])
def test_realnvp_prints_another_constant_and_a_short_batch(factor: float) -> None:
    log_prob, honest, E = currencies((0.05, 0.0))
    printed = poster_bits_per_pixel(log_prob, 16, code="realnvp", batch_factor=factor)
    torch.testing.assert_close(honest, (printed - math.log2(255)) / factor + 8 - E, rtol=1e-12, atol=0)


def test_the_constants_of_the_released_codes() -> None:
    z = torch.zeros(1, 784, dtype=torch.float64)
    log_prob = standard_normal_log_prob(z)
    lunet = poster_bits_per_pixel(log_prob, 784, code="lunet").item()
    assert lunet == pytest.approx(0.5 * math.log2(math.pi))  # ln pi in place of ln 2 pi
    realnvp = poster_bits_per_pixel(log_prob, 784, code="realnvp").item()
    assert realnvp == pytest.approx(0.5 * math.log2(2 * math.pi) + 7.9944, abs=1e-4)


def test_another_code_is_refused() -> None:
    with pytest.raises(ValueError, match="code is 'glow'"):
        poster_bits_per_pixel(torch.zeros(1), 4, code="glow")  # type: ignore[arg-type]
