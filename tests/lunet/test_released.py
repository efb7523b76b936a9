"""What is particular to the released RealNVP; what every flow promises is tested with the others."""

from __future__ import annotations

import pytest
import torch
from random_flows import random_released, seeded

from lunet import LUNet, ReleasedRealNVP
from lunet.released import RunningNorm

# Architecture


def test_it_has_as_many_parameters_as_the_released_one() -> None:
    assert ReleasedRealNVP((1, 28, 28), (3, 3, 2), 64).free_parameters() == 4_198_224


@torch.no_grad()
def test_it_starts_at_the_identity_but_for_the_averages_rounding_guard() -> None:
    flow = ReleasedRealNVP((1, 4, 4), planes=4).double().eval()
    x = torch.randn(3, 16, generator=seeded(), dtype=torch.float64)
    z, log_det = flow(x)
    torch.testing.assert_close(z.sort().values, x.sort().values, rtol=1e-4, atol=0)
    torch.testing.assert_close(log_det, torch.full((3,), -log_scales(16, 6, 2), dtype=torch.float64))


def test_masks_and_halves_are_those_of_the_released_code() -> None:
    flow = random_released((1, 4, 4)).double()
    assert flow.full[0].mask[0, 0].tolist() == [1, 0, 1, 0]
    assert flow.full[1].mask[0, 0].tolist() == [0, 1, 0, 1]
    # Parity counts channels too, where there are two.
    assert flow.final[0].mask[:, 0].tolist() == [[1, 0], [0, 1]]
    assert flow.final[1].mask[:, 0].tolist() == [[0, 1], [1, 0]]
    assert [coupling.mask.flatten().tolist() for coupling in flow.squeezed] == [
        [1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]
    ]  # fmt: skip
    # The last of these changes the second half of the channels, which then goes to the latent; the first half stays.
    x = torch.randn(3, 16, generator=seeded(), dtype=torch.float64)
    before = flow(x).z
    with torch.no_grad():
        flow.squeezed[2].get_parameter("shift").add_(0.5)
    after = flow(x).z
    assert torch.equal(after[:, 8:], before[:, 8:])
    assert not torch.isclose(after[:, :8], before[:, :8]).any()


def test_there_is_no_start_from_data() -> None:
    with pytest.raises(TypeError, match="no start from data"):
        ReleasedRealNVP((1, 4, 4), planes=2).standardise_(torch.randn(5, 16))


def log_scales(features: int, early: int, late: int) -> float:
    """What eight normalisations by 1 + 1e-5 add up to; the last ones see half of the features."""
    return (
        0.5 * torch.log1p(torch.tensor(RunningNorm.EPSILON, dtype=torch.float64)).item() * features * (early + late / 2)
    )


def test_the_penalty_is_the_sum_of_squared_scales() -> None:
    flow = random_released()
    expected = sum(
        float(p.detach().square().sum()) for name, p in flow.named_parameters() if name.endswith(".log_scale")
    )
    assert isinstance(flow, ReleasedRealNVP)
    assert flow.scale_penalty().item() == pytest.approx(expected, rel=1e-5)
    assert expected > 0.1


# Running averages


def test_running_averages_include_the_batch_and_carry_its_gradient() -> None:
    norm = RunningNorm(2).double()
    x = (3 + 2 * torch.randn(5, 2, 4, 4, generator=seeded(), dtype=torch.float64)).requires_grad_()
    y, log_det = norm(x)
    mean = 0.005 * x.mean((0, 2, 3))
    spread = 0.995 + 0.005 * x.var((0, 2, 3)) + 1e-5
    torch.testing.assert_close(y, (x - mean[:, None, None]) / spread.sqrt()[:, None, None])
    torch.testing.assert_close(log_det, -0.5 * 16 * spread.log().sum())
    torch.testing.assert_close(norm.mean, mean.detach())
    weights = torch.randn(x.shape, generator=seeded(1), dtype=torch.float64)
    (found,) = torch.autograd.grad((y * weights).sum() + log_det, x)
    expected = (x - mean[:, None, None]) / spread.sqrt()[:, None, None]
    (gradient,) = torch.autograd.grad((expected * weights).sum() - 0.5 * 16 * spread.log().sum(), x)
    torch.testing.assert_close(found, gradient)


@torch.no_grad()
def test_running_averages_converge_and_rest_in_eval_mode() -> None:
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


# The start of the released LU-Net


@torch.no_grad()
def test_uniform_fills_all_that_a_layer_has() -> None:
    flow, again = (LUNet(100, 2).uniform_(seeded()) for _ in range(2))
    for layer, other in zip(flow.layers, again.layers, strict=True):
        for values in (layer.lu, layer.bias):
            assert values.abs().max() <= 0.1
            assert values.max() > 0.08
            assert values.min() < -0.08
        assert torch.equal(layer.lu, other.lu)
