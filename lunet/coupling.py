"""Affine couplings and the networks inside them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import relu


class AffineCoupling(nn.Module, ABC):
    r"""A map built on :math:`y = m x + (1 - m) (x e^s + t)`, where :math:`s` and :math:`t` depend on :math:`m x` alone.

    Args:
        mask: The mask :math:`m`, 1 where a value passes unchanged, 0 where it is transformed, with shape
            :math:`(C, H, W)` or :math:`(C, 1, 1)`.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, C, H, W)`, and the log-determinants, with shape :math:`(N,)`."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, C, H, W)`."""

    @abstractmethod
    def conditioners(self) -> Sequence[nn.Module]:
        """The networks of the log-scale and the shift."""

    @abstractmethod
    def _log_scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The log-scale s and the shift t, both zero where the mask is 1."""


class Coupling(AffineCoupling):
    r"""An affine map of each channel, then :math:`y = m x + (1 - m) (x e^s + t)`, with :math:`s, t` networks.

    The log-scale is bounded, :math:`s = c \tanh(\cdot)` with a learned :math:`c` for each channel. It is initialised to
    zero, and so is :math:`t`, so that the coupling is the identity at first.

    Cost: two convolutional networks in either direction, or one if they are shared.

    Args:
        mask: 1 where a value passes unchanged, 0 where it is transformed, with shape :math:`(C, H, W)` or
            :math:`(C, 1, 1)`.
        planes: Channels inside the networks.
        blocks: Residual blocks of the networks.
        shared: Whether one network gives both :math:`s` and :math:`t`.
    """

    def __init__(self, mask: Tensor, planes: int, blocks: int, *, shared: bool) -> None:
        super().__init__(mask)
        channels = mask.shape[0]
        self.affine = ChannelAffine(channels)
        self.bound = nn.Parameter(torch.ones(channels, 1, 1))
        outputs = [2 * channels] if shared else [channels, channels]
        self.networks = nn.ModuleList(ResNet(channels, count, planes, blocks) for count in outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, C, H, W)`, and the log-determinants, with shape :math:`(N,)`."""
        x, affine_log_det = self.affine(x)
        log_scale, shift = self._log_scale_and_shift(x)
        return x * log_scale.exp() + shift, affine_log_det + log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, C, H, W)`."""
        log_scale, shift = self._log_scale_and_shift(y)
        return self.affine.inverse((y - shift) * (-log_scale).exp())

    def standardise_(self, x: Tensor) -> None:
        """Set the affine map so that each channel of a sample has mean 0 and variance 1 after it."""
        self.affine.standardise_(x)

    def conditioners(self) -> Sequence[nn.Module]:
        """The networks of the log-scale and of the shift, or the one of both."""
        return [*self.networks]

    def _log_scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        unchanged, transformed = x * self.mask, 1 - self.mask
        # Under autocast the networks compute in another dtype, the map itself in that of x.
        outputs = torch.cat([network(unchanged) for network in self.networks], dim=1).to(x.dtype)
        raw_scale, shift = outputs.chunk(2, dim=1)
        return transformed * self.bound * torch.tanh(raw_scale), transformed * shift


class ChannelAffine(nn.Module):
    r"""The affine map :math:`y = x e^a + b` with one :math:`a` and one :math:`b` for each channel.

    Args:
        channels: The number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.shift = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, C, H, W)`, and the log-determinant, a scalar."""
        return x * self.log_scale.exp() + self.shift, self.log_scale.sum() * x.shape[2] * x.shape[3]

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, C, H, W)`."""
        return (y - self.shift) * (-self.log_scale).exp()

    @torch.no_grad()
    def standardise_(self, x: Tensor) -> None:
        """Set the map so that each channel of a sample with shape :math:`(N, C, H, W)` gets mean 0 and variance 1."""
        std, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True)
        self.log_scale.copy_(-std[0].log())
        self.shift.copy_(-(mean / std)[0])


class ResNet(nn.Module):
    """A convolution, residual blocks, and a convolution that is initialised to zero.

    Args:
        channels: Channels of the input.
        outputs: Channels of the output.
        planes: Channels in between.
        blocks: The number of residual blocks.
    """

    def __init__(self, channels: int, outputs: int, planes: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, planes, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(planes) for _ in range(blocks)))
        self.last = nn.Conv2d(planes, outputs, 3, padding=1)
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        r"""The output, with shape :math:`(N, \text{outputs}, H, W)`."""
        return self.last(relu(self.blocks(self.first(x))))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection, each after instance normalisation and a ReLU.

    Args:
        planes: The number of channels.
    """

    def __init__(self, planes: int) -> None:
        super().__init__()
        # Group normalisation with one channel per group is instance normalisation with a faster kernel.
        self.norms = nn.ModuleList(nn.GroupNorm(planes, planes) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(planes, planes, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        r"""The block's output, with the shape :math:`(N, P, H, W)` of its input."""
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(relu(norm(h)))
        return x + h


def checkerboard(channels: int, height: int, width: int, *, first: bool) -> Tensor:
    r"""A checkerboard mask with shape :math:`(C, H, W)`; ``first`` says whether the top left value is 1."""
    parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    return (parity == (0 if first else 1)).float().expand(channels, height, width).clone()


def channel_halves(channels: int, *, first: bool) -> Tensor:
    r"""A mask with shape :math:`(C, 1, 1)` that is 1 for the first or for the second half of the channels."""
    return ((torch.arange(channels) < channels // 2) == first).float()[:, None, None]
