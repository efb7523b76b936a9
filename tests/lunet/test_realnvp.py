from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from random_flows import random_realnvp, randomise_, seeded
from torch import Tensor

from lunet import RealNVP
from lunet.coupling import ChannelAffine, Coupling, ResNet, channel_halves, checkerboard

MASKS = {
    "checkerboard": checkerboard(3, 4, 6, first=True),
    "checkerboard-last": checkerboard(3, 4, 6, first=False),
    "odd-checkerboard": checkerboard(1, 3, 5, first=True),
    "halves": channel_halves(4, first=True),
    "odd-halves": channel_halves(3, first=False),
}


def random_coupling(mask: Tensor, *, shared: bool = False) -> tuple[Coupling, Tensor]:
    torch.manual_seed(0)
    coupling = Coupling(mask, planes=4, blocks=1, shared=shared).double()
    with torch.no_grad():
        for parameter in coupling.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(1)))
    size = mask.shape if mask.shape[1] > 1 else (len(mask), 3, 4)
    return coupling, torch.randn(2, *size, generator=seeded(2), dtype=torch.float64)


# Masks


def test_checkerboard_alternates_from_the_top_left() -> None:
    mask = checkerboard(2, 3, 4, first=True)
    assert mask.shape == (2, 3, 4)
    assert mask[1].tolist() == [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    assert torch.equal(checkerboard(2, 3, 4, first=False), 1 - mask)


def test_channel_halves_are_complementary() -> None:
    assert channel_halves(4, first=True).flatten().tolist() == [1, 1, 0, 0]
    assert torch.equal(channel_halves(4, first=False), 1 - channel_halves(4, first=True))


# One coupling


@pytest.mark.parametrize("shared", [False, True], ids=["two-networks", "one-network"])
@pytest.mark.parametrize("name", MASKS)
@torch.no_grad()
def test_coupling_round_trip(name: str, shared: bool) -> None:
    coupling, x = random_coupling(MASKS[name], shared=shared)
    y, _ = coupling(x)
    torch.testing.assert_close(coupling.inverse(y), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MASKS)
def test_coupling_log_det(name: str) -> None:
    coupling, x = random_coupling(MASKS[name])
    for row, log_det in zip(x, coupling(x)[1], strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda v: coupling(v[None])[0], row)
        expected = torch.linalg.slogdet(jacobian.reshape(row.numel(), row.numel())).logabsdet
        torch.testing.assert_close(log_det, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", MASKS)
@torch.no_grad()
def test_coupling_changes_what_the_mask_leaves_and_counts_only_that(name: str) -> None:
    coupling, x = random_coupling(MASKS[name])
    mask = MASKS[name].double()
    x, affine_log_det = coupling.affine(x)
    kept = mask.expand_as(x).bool()
    s, t = (network(x * mask) for network in coupling.networks)
    s = coupling.bound * torch.tanh(s)
    y, log_det = coupling(coupling.affine.inverse(x))
    torch.testing.assert_close(y[kept], x[kept], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(y[~kept], (x * s.exp() + t)[~kept])
    torch.testing.assert_close(log_det, affine_log_det + ((1 - mask) * s).flatten(1).sum(1))
    assert ((log_det - affine_log_det - (mask * s).flatten(1).sum(1)).abs() > 0.05).all()


@torch.no_grad()
def test_coupling_bounds_its_log_scale() -> None:
    coupling, x = random_coupling(MASKS["halves"])
    log_scale, _ = coupling._log_scale_and_shift(1e3 * x)
    assert (log_scale.abs() <= coupling.bound.abs()).all()


@torch.no_grad()
def test_coupling_starts_at_the_identity() -> None:
    x = torch.randn(2, 3, 4, 6, generator=seeded())
    y, log_det = Coupling(MASKS["checkerboard"], planes=8, blocks=2, shared=False)(x)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(2))


def test_network_treats_images_one_by_one() -> None:
    torch.manual_seed(0)
    network = ResNet(2, 3, planes=4, blocks=2)
    torch.nn.init.normal_(network.last.weight)
    x = torch.randn(3, 2, 4, 6, generator=seeded())
    assert network(x).shape == (3, 3, 4, 6)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))


@torch.no_grad()
def test_affine_standardises_each_channel() -> None:
    x = 5 + 3 * torch.randn(200, 2, 3, 4, generator=seeded(), dtype=torch.float64)
    affine = ChannelAffine(2).double()
    affine.standardise_(x)
    y, log_det = affine(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(y.std((0, 2, 3)), torch.ones(2).double())
    torch.testing.assert_close(log_det, -12 * x.std((0, 2, 3)).log().sum())
    torch.testing.assert_close(affine.inverse(y), x)


# The whole flow


def resnet_size(channels: int, outputs: int, planes: int, blocks: int) -> int:
    first, last = 9 * channels * planes + planes, 9 * planes * outputs + outputs
    return first + blocks * 2 * (2 * planes + 9 * planes**2) + last


@pytest.mark.parametrize("shared", [False, True], ids=["two-networks", "one-network"])
@pytest.mark.parametrize(("planes", "blocks"), [(4, 1), (16, 1), (8, 3)])
def test_parameters_grow_as_the_architecture_says(planes: int, blocks: int, shared: bool) -> None:
    def coupling(channels: int, width: int) -> int:
        outputs = [2 * channels] if shared else [channels, channels]
        return sum(resnet_size(channels, count, width, blocks) for count in outputs) + 3 * channels

    flow = RealNVP((1, 8, 8), (3, 2, 4), planes, blocks, shared=shared)
    assert flow.free_parameters() == 3 * coupling(1, planes) + 2 * coupling(4, planes) + 4 * coupling(2, 2 * planes)


def test_the_paper_sized_network() -> None:
    flow = RealNVP(shape=(1, 28, 28), planes=64)
    assert [len(flow.full), len(flow.squeezed), len(flow.final)] == [3, 3, 2]
    assert flow.features == 784
    # The released code has 4,198,224: its scales and shifts differ, and its convolutions have no biases.
    assert flow.free_parameters() == 4_193_375


@pytest.mark.parametrize("couplings", [(1, 0, 0), (0, 2, 0), (0, 0, 3), (3, 3, 2)], ids=str)
@torch.no_grad()
def test_every_stage_alone(couplings: tuple[int, int, int]) -> None:
    flow = randomise_(RealNVP((2, 4, 6), couplings, planes=4, blocks=1)).double()
    x = torch.randn(3, 48, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(flow.inverse(flow(x).z), x, rtol=1e-10, atol=1e-10)


def test_couplings_take_turns() -> None:
    flow = RealNVP((1, 4, 4), (3, 3, 3), planes=4)
    for stage in (flow.full, flow.squeezed, flow.final):
        for one, next_one in pairwise(stage):
            assert torch.equal(one.mask + next_one.mask, torch.ones_like(one.mask))


def test_no_coupling_is_skipped() -> None:
    flow = random_realnvp((1, 6, 6))
    flow.log_prob(torch.randn(4, 36, generator=seeded())).sum().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-5, name


def test_half_the_values_leave_after_the_channel_couplings() -> None:
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
def test_every_value_is_transformed_given_others() -> None:
    torch.manual_seed(0)
    flow = randomise_(RealNVP((1, 4, 4), planes=4, blocks=1)).double()
    x = torch.randn(16, generator=seeded(), dtype=torch.float64)
    with torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(lambda v: flow(v[None]).z[0], x)
    assert ((jacobian.abs() > 1e-8).sum(1) > 1).all()


@torch.no_grad()
def test_standardise_starts_with_mean_0_and_variance_1() -> None:
    x = 4 + 3 * torch.randn(300, 36, generator=seeded(), dtype=torch.float64)
    flow = RealNVP((1, 6, 6), planes=4).double().standardise_(x)
    z, _ = flow(x)
    for half in z.chunk(2, dim=1):
        assert abs(half.mean()) < 1e-10
        assert abs(half.std() - 1) < 1e-4


@pytest.mark.parametrize("value", [2.0, torch.nan])
def test_standardise_refuses_constant_and_missing_values(value: float) -> None:
    with pytest.raises(ValueError, match=r"full\.0\.affine\.log_scale has values that are not finite"):
        RealNVP((1, 4, 4), planes=4).standardise_(torch.full((5, 16), value))


# Errors


@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 4, 7), (3, 2, 2)])
def test_a_shape_without_a_squeeze_is_refused(shape: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="even height and width"):
        RealNVP(shape)
