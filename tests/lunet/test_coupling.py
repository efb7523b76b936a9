from __future__ import annotations

import pytest
import torch
from random_flows import seeded
from torch import Tensor

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


# Coupling


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
def test_coupling_transforms_only_where_the_mask_is_zero(name: str) -> None:
    coupling, x = random_coupling(MASKS[name])
    mask = MASKS[name].double()
    x, affine_log_det = coupling.affine(x)
    unchanged = mask.expand_as(x).bool()
    s, t = (network(x * mask) for network in coupling.networks)
    s = coupling.bound * torch.tanh(s)
    y, log_det = coupling(coupling.affine.inverse(x))
    torch.testing.assert_close(y[unchanged], x[unchanged], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(y[~unchanged], (x * s.exp() + t)[~unchanged])
    torch.testing.assert_close(log_det, affine_log_det + ((1 - mask) * s).flatten(1).sum(1))
    assert ((log_det - affine_log_det - (mask * s).flatten(1).sum(1)).abs() > 0.05).all()


@torch.no_grad()
def test_coupling_bounds_its_log_scale() -> None:
    coupling, x = random_coupling(MASKS["halves"])
    log_scale, _ = coupling._log_scale_and_shift(1e3 * x)
    assert (log_scale.abs() <= coupling.bound.abs()).all()


@torch.no_grad()
def test_coupling_is_initialised_to_the_identity() -> None:
    x = torch.randn(2, 3, 4, 6, generator=seeded())
    y, log_det = Coupling(MASKS["checkerboard"], planes=8, blocks=2, shared=False)(x)
    assert torch.equal(y, x)
    assert torch.equal(log_det, torch.zeros(2))


# Parts


def test_network_treats_images_independently() -> None:
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
