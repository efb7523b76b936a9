"""The parts for the replication; the contract of a flow is tested in `test_flows`."""

from __future__ import annotations

import math

import pytest
import torch
from random_flows import random_learned, random_lu_net, random_released, seeded
from torch import Tensor

from lunet import ImageFlow, LUNet, ReleasedRealNVP, poster_bits_per_pixel, poster_nll, standard_normal_log_prob
from lunet.released import RunningNorm

# The paper's loss


@pytest.mark.parametrize(("features", "layers"), [(1, 2), (7, 1), (7, 4), (784, 4)])
def test_poster_loss_is_the_negative_log_likelihood(features: int, layers: int) -> None:
    flow = random_lu_net(features, layers).double()
    x = 2 * torch.randn(5, features, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(poster_nll(flow, x), -flow.log_prob(x).sum(), rtol=1e-12, atol=0)


def test_poster_loss_includes_a_leading_activation() -> None:
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


# The released figures


def likelihoods_of_random_images(margin: float | tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-densities of logits, bits per pixel, and E, the mean log2-slope of the logit, of random images."""
    images = torch.randint(0, 256, (20, 1, 4, 4), generator=seeded(), dtype=torch.uint8)
    flow = ImageFlow(random_lu_net(16).double(), (1, 4, 4), margin)
    logits, log_det = flow.preprocess(images, seeded(3))
    return flow.flow.log_prob(logits), flow.bits_per_dim(images, generator=seeded(3)), log_det / (16 * math.log(2))


@pytest.mark.parametrize("margin", [1e-6, 5e-6, (0.05, 0.0)], ids=str)
def test_lu_net_figure_is_half_a_bit_low_and_without_the_jacobian(margin: float | tuple[float, float]) -> None:
    log_prob, bits, E = likelihoods_of_random_images(margin)
    printed = poster_bits_per_pixel(log_prob, 16, code="lunet")
    torch.testing.assert_close(bits, printed + 0.5 + 8 - E, rtol=1e-12, atol=0)


@pytest.mark.parametrize("factor", [1.0, 10_000 / (79 * 128), 0.95])
def test_realnvp_figure_has_another_constant_and_batch_factor(factor: float) -> None:
    log_prob, bits, E = likelihoods_of_random_images((0.05, 0.0))
    printed = poster_bits_per_pixel(log_prob, 16, code="realnvp", batch_factor=factor)
    torch.testing.assert_close(bits, (printed - math.log2(255)) / factor + 8 - E, rtol=1e-12, atol=0)


def test_constants_of_the_released_codes() -> None:
    z = torch.zeros(1, 784, dtype=torch.float64)
    log_prob = standard_normal_log_prob(z)
    lunet = poster_bits_per_pixel(log_prob, 784, code="lunet").item()
    assert lunet == pytest.approx(0.5 * math.log2(math.pi))  # ln pi instead of ln 2 pi
    realnvp = poster_bits_per_pixel(log_prob, 784, code="realnvp").item()
    assert realnvp == pytest.approx(0.5 * math.log2(2 * math.pi) + 7.9944, abs=1e-4)


def test_unknown_code_raises() -> None:
    with pytest.raises(ValueError, match="code is 'glow'"):
        poster_bits_per_pixel(torch.zeros(1), 4, code="glow")  # type: ignore[arg-type]


# The released RealNVP


def test_number_of_parameters_is_that_of_the_released_code() -> None:
    assert ReleasedRealNVP((1, 28, 28), (3, 3, 2), 64).free_parameters() == 4_198_224


@torch.no_grad()
def test_realnvp_is_initialised_to_the_identity_up_to_epsilon() -> None:
    flow = ReleasedRealNVP((1, 4, 4), planes=4).double().eval()
    x = torch.randn(3, 16, generator=seeded(), dtype=torch.float64)
    z, log_det = flow(x)
    torch.testing.assert_close(z.sort().values, x.sort().values, rtol=1e-4, atol=0)
    torch.testing.assert_close(log_det, torch.full((3,), -norm_log_scales(16, 6, 2), dtype=torch.float64))


def norm_log_scales(features: int, early: int, late: int) -> float:
    """The log-scale of eight normalisations by 1 + 1e-5, the late ones of half of the features."""
    return (
        0.5 * torch.log1p(torch.tensor(RunningNorm.EPSILON, dtype=torch.float64)).item() * features * (early + late / 2)
    )


def test_masks_and_halves_are_those_of_the_released_code() -> None:
    flow = random_released((1, 4, 4)).double()
    assert flow.full[0].mask[0, 0].tolist() == [1, 0, 1, 0]
    assert flow.full[1].mask[0, 0].tolist() == [0, 1, 0, 1]
    # Parity counts channels too.
    assert flow.final[0].mask[:, 0].tolist() == [[1, 0], [0, 1]]
    assert flow.final[1].mask[:, 0].tolist() == [[0, 1], [1, 0]]
    assert [coupling.mask.flatten().tolist() for coupling in flow.squeezed] == [
        [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]
    ]  # fmt: skip
    # The last of these transforms the second half of the channels, which is then factored out.
    x = torch.randn(3, 16, generator=seeded(), dtype=torch.float64)
    before = flow(x).z
    with torch.no_grad():
        flow.squeezed[2].get_parameter("shift").add_(0.5)
    after = flow(x).z
    assert torch.equal(after[:, 8:], before[:, 8:])
    assert not torch.isclose(after[:, :8], before[:, :8]).any()


def test_standardise_raises() -> None:
    with pytest.raises(TypeError, match="no start from data"):
        ReleasedRealNVP((1, 4, 4), planes=2).standardise_(torch.randn(5, 16))


def test_scale_penalty_is_the_sum_of_squared_scales() -> None:
    flow = random_released()
    expected = sum(
        float(p.detach().square().sum()) for name, p in flow.named_parameters() if name.endswith(".log_scale")
    )
    assert isinstance(flow, ReleasedRealNVP)
    assert flow.scale_penalty().item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


# Running averages


def test_running_averages_include_the_batch_and_its_gradient() -> None:
    norm = RunningNorm(2).double()
    x = (3 + 2 * torch.randn(5, 2, 4, 4, generator=seeded(), dtype=torch.float64)).requires_grad_()
    y, log_det = norm(x)
    mean = 0.005 * x.mean((0, 2, 3))
    variance = 0.995 + 0.005 * x.var((0, 2, 3)) + 1e-5
    torch.testing.assert_close(y, (x - mean[:, None, None]) / variance.sqrt()[:, None, None])
    torch.testing.assert_close(log_det, -0.5 * 16 * variance.log().sum())
    torch.testing.assert_close(norm.mean, mean.detach())
    weights = torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((y * weights).sum() + log_det, x)
    expected = (x - mean[:, None, None]) / variance.sqrt()[:, None, None]
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum() - 0.5 * 16 * variance.log().sum(), x)
    torch.testing.assert_close(gradient, expected_gradient)


@torch.no_grad()
def test_running_averages_converge_and_are_fixed_in_eval_mode() -> None:
    norm = RunningNorm(1).double()
    x = 3 + 2 * torch.randn(2000, 1, 2, 2, generator=seeded(), dtype=torch.float64)
    for _ in range(3000):
        norm(x)
    norm.eval()
    before = norm.mean.clone(), norm.variance.clone()
    y, _ = norm(x)
    assert abs(y.mean()) < 1e-5
    assert abs(y.std() - 1) < 1e-4
    assert torch.equal(norm.mean, before[0])
    assert torch.equal(norm.variance, before[1])
