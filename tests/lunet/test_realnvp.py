from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from random_flows import random_realnvp, randomise_, seeded

from lunet import RealNVP

# Architecture


def resnet_size(channels: int, outputs: int, planes: int, blocks: int) -> int:
    first, last = 9 * channels * planes + planes, 9 * planes * outputs + outputs
    return first + blocks * 2 * (2 * planes + 9 * planes**2) + last


@pytest.mark.parametrize("shared", [False, True], ids=["two-networks", "one-network"])
@pytest.mark.parametrize(("planes", "blocks"), [(4, 1), (16, 1), (8, 3)])
def test_number_of_parameters(planes: int, blocks: int, shared: bool) -> None:
    def coupling(channels: int, width: int) -> int:
        outputs = [2 * channels] if shared else [channels, channels]
        return sum(resnet_size(channels, count, width, blocks) for count in outputs) + 3 * channels

    flow = RealNVP((1, 8, 8), (3, 2, 4), planes, blocks, networks="shared" if shared else "separate")
    assert flow.free_parameters() == 3 * coupling(1, planes) + 2 * coupling(4, planes) + 4 * coupling(2, 2 * planes)


def test_the_paper_size() -> None:
    flow = RealNVP(shape=(1, 28, 28), planes=64)
    assert [len(flow.full), len(flow.squeezed), len(flow.final)] == [3, 3, 2]
    assert flow.features == 784
    # The released code has 4,198,224: its scales and shifts differ, and its convolutions have no biases.
    assert flow.free_parameters() == 4_193_375


def test_masks_alternate() -> None:
    flow = RealNVP((1, 4, 4), (3, 3, 3), planes=4)
    for stage in (flow.full, flow.squeezed, flow.final):
        for coupling, following in pairwise(stage):
            assert torch.equal(coupling.mask + following.mask, torch.ones_like(coupling.mask))


def test_every_coupling_is_used() -> None:
    flow = random_realnvp((1, 6, 6))
    flow.log_prob(torch.randn(4, 36, generator=seeded())).sum().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-5, name


def test_half_of_the_values_are_factored_out() -> None:
    flow = random_realnvp((1, 6, 6))
    x = torch.randn(4, 36, generator=seeded())
    before = flow(x).z
    with torch.no_grad():
        for parameter in flow.final.parameters():  # type: ignore[attr-defined]
            parameter.add_(0.3)
    after = flow(x).z
    assert torch.equal(after[:, :18], before[:, :18])
    assert not torch.isclose(after[:, 18:], before[:, 18:]).any()


@torch.no_grad()
def test_every_latent_depends_on_several_values() -> None:
    torch.manual_seed(0)
    flow = randomise_(RealNVP((1, 4, 4), planes=4, blocks=1)).double()
    x = torch.randn(16, generator=seeded(), dtype=torch.float64)
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None]).z[0], x)
    assert ((jacobian.abs() > 1e-8).sum(1) > 1).all()


# Invertibility


@pytest.mark.parametrize("couplings", [(1, 0, 0), (0, 2, 0), (0, 0, 3), (3, 3, 2)], ids=str)
@torch.no_grad()
def test_each_stage_alone_is_invertible(couplings: tuple[int, int, int]) -> None:
    flow = randomise_(RealNVP((2, 4, 6), couplings, planes=4, blocks=1)).double()
    x = torch.randn(3, 48, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(flow.inverse(flow(x).z), x, rtol=1e-10, atol=1e-10)


# Initialisation


@torch.no_grad()
def test_standardise_gives_mean_0_and_variance_1() -> None:
    x = 4 + 3 * torch.randn(300, 36, generator=seeded(), dtype=torch.float64)
    flow = RealNVP((1, 6, 6), planes=4).double().standardise_(x)
    z, _ = flow(x)
    for half in z.chunk(2, dim=1):
        assert abs(half.mean()) < 1e-10
        assert abs(half.std() - 1) < 1e-4


@pytest.mark.parametrize("value", [2.0, torch.nan])
def test_standardise_on_constant_or_missing_values_raises(value: float) -> None:
    with pytest.raises(ValueError, match=r"full\.0\.affine\.log_scale has values that are not finite"):
        RealNVP((1, 4, 4), planes=4).standardise_(torch.full((5, 16), value))


# Errors


@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 4, 7), (3, 2, 2)])
def test_shape_that_cannot_be_squeezed_raises(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="even height and width"):
        RealNVP(shape)
