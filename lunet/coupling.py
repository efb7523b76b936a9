"""Affine couplings and the networks inside them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import instance_norm, relu


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut, each after instance normalisation and a rectifier.

    Args:
        planes: The number of channels.
    """

    def __init__(self, planes: int) -> None:
        super().__init__()
        # One group a channel is instance normalisation, by a faster kernel.
        self.norms = nn.ModuleList(nn.GroupNorm(planes, planes) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(planes, planes, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        r"""The block's output, with the shape :math:`(N, P, H, W)` of its input."""
        h = x
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            h = convolution(relu(norm(h)))
        return x + h


class ResNet(nn.Module):
    """A convolution, residual blocks, and a convolution that starts at zero.

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


class Coupling(nn.Module):
    r"""An affine per channel, then :math:`y = m x + (1 - m) (x e^s + t)` with :math:`s, t` networks of :math:`m x`.

    The log-scale is bounded, :math:`s = c \tanh(\cdot)` with a learned :math:`c` per channel, and starts at zero
    together with :math:`t`, so that the coupling starts at the identity.

    Cost: two convolutional networks (one, when they are shared) in both directions.

    Args:
        mask: 1 where a value is kept, 0 where it is changed, with shape :math:`(C, H, W)` or :math:`(C, 1, 1)`.
        planes: Channels inside the networks.
        blocks: Residual blocks of the networks.
        shared: Whether one network gives both :math:`s` and :math:`t`.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, planes: int, blocks: int, *, shared: bool) -> None:
        super().__init__()
        channels = mask.shape[0]
        self.register_buffer("mask", mask, persistent=False)
        self.affine = ChannelAffine(channels)
        self.bound = nn.Parameter(torch.ones(channels, 1, 1))
        outputs = [2 * channels] if shared else [channels, channels]
        self.networks = nn.ModuleList(ResNet(channels, count, planes, blocks) for count in outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, C, H, W)`, and the log-determinants, with shape :math:`(N,)`."""
        x, affine_log_det = self.affine(x)
        log_scale, shift = self._scale_and_shift(x)
        return x * log_scale.exp() + shift, affine_log_det + log_scale.flatten(1).sum(1)

    def standardise_(self, x: Tensor) -> None:
        """Start where the coupling's affine gives a sample mean 0 and variance 1 in each channel."""
        self.affine.standardise_(x)

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, C, H, W)`."""
        log_scale, shift = self._scale_and_shift(y)
        return self.affine.inverse((y - shift) * (-log_scale).exp())

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log-scale and shift, zero where the mask keeps the value; they depend on kept values alone."""
        kept = x * self.mask
        outputs = torch.cat([network(kept) for network in self.networks], dim=1)
        raw_scale, shift = outputs.chunk(2, dim=1)
        changed = 1 - self.mask
        return changed * self.bound * torch.tanh(raw_scale), changed * shift


class ChannelAffine(nn.Module):
    r"""The affine map :math:`y = x e^a + b` with one :math:`a` and :math:`b` for each channel.

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
        """Start where a sample with shape :math:`(N, C, H, W)` gets mean 0 and variance 1 in each channel."""
        std, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True)
        self.log_scale.copy_(-std[0].log())
        self.shift.copy_(-(mean / std)[0])


class ReleasedCoupling(nn.Module):
    r"""A coupling as released with the LU-Net paper: :math:`y = m x + (1 - m) (x e^s + t)`, then batch normalisation.

    :math:`s = a \tanh(\cdot)` and :math:`t = c (\cdot) + d` have networks of their own; :math:`a, c, d` are learned for
    each value and start at zero.

    Args:
        mask: 1 where a value is kept, 0 where it is changed, with shape :math:`(C, H, W)` or :math:`(C, 1, 1)`.
        shape: Channels, height and width.
        planes: Channels inside the networks.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, shape: tuple[int, int, int], planes: int) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.log_scale_network, self.shift_network = (_released_network(shape[0], planes) for _ in range(2))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.shift_scale = nn.Parameter(torch.zeros(shape))
        self.shift = nn.Parameter(torch.zeros(shape))
        self.norm = RunningNorm(shape[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, C, H, W)`, and the log-determinants, with shape :math:`(N,)`."""
        log_scale, shift = self._scale_and_shift(x)
        y, log_det = self.norm(x * log_scale.exp() + shift)
        return y, log_det + log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, C, H, W)`, by the running averages as they stand."""
        h = self.norm.inverse(y)
        log_scale, shift = self._scale_and_shift(h)
        return (h - shift) * (-log_scale).exp()

    def _scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, changed = x * self.mask, 1 - self.mask
        log_scale = self.log_scale * torch.tanh(self.log_scale_network(kept))
        return changed * log_scale, changed * (self.shift_scale * self.shift_network(kept) + self.shift)


class RunningNorm(nn.Module):
    r"""Batch normalisation by running averages that include the batch, and let its gradient through.

    Args:
        channels: The number of channels.
    """

    MOMENTUM = 0.005
    EPSILON = 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.variance: Tensor
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, C, H, W)`, and the log-determinant, a scalar."""
        mean, variance = self.mean, self.variance
        if self.training:
            batch_variance, batch_mean = torch.var_mean(x, dim=(0, 2, 3))
            mean, variance = mean.lerp(batch_mean, self.MOMENTUM), variance.lerp(batch_variance, self.MOMENTUM)
            self.mean, self.variance = mean.detach(), variance.detach()
        spread = variance + self.EPSILON
        log_det = -0.5 * spread.log().sum() * x.shape[2] * x.shape[3]
        return (x - mean[:, None, None]) * spread.rsqrt()[:, None, None], log_det

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, C, H, W)`."""
        return y * (self.variance + self.EPSILON).sqrt()[:, None, None] + self.mean[:, None, None]


class _ReleasedBlock(nn.Module):
    """Two 3x3 convolutions with instance normalisation, a rectifier between them and one after the shortcut."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(planes, planes, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.convolutions
        return relu(x + instance_norm(second(relu(instance_norm(first(x))))))


def _released_network(channels: int, planes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, planes, 3, padding=1, bias=False),
        _ReleasedBlock(planes),
        _ReleasedBlock(planes),
        nn.Conv2d(planes, channels, 3, padding=1, bias=False),
    )


def checkerboard(channels: int, height: int, width: int, *, first: bool) -> Tensor:
    r"""A checkerboard mask with shape :math:`(C, H, W)`; ``first`` says whether the top left value is kept."""
    parity = (torch.arange(height)[:, None] + torch.arange(width)) % 2
    return (parity == (0 if first else 1)).float().expand(channels, height, width).clone()


def channel_halves(channels: int, *, first: bool) -> Tensor:
    r"""A mask with shape :math:`(C, 1, 1)` that keeps the first or the second half of the channels."""
    return ((torch.arange(channels) < channels // 2) == first).float()[:, None, None]
