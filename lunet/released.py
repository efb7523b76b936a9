"""What only the replication needs: the released RealNVP, the paper's loss term by term, and the released figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import instance_norm, relu

from lunet import triangular
from lunet.coupling import AffineCoupling, checkerboard
from lunet.lu_net import LUNet
from lunet.realnvp import RealNVP, Shape


def poster_nll(flow: LUNet, x: Tensor) -> Tensor:
    r"""The paper's training loss of a batch in nats, term by term as on the poster.

    .. math::
        \frac{N D}{2} \ln 2 \pi + \frac{1}{2} \sum_n \sum_d f_d(x_n)^2
        - \sum_n \sum_m \sum_d \ln \phi_m'((L_m U_m x_n)_d + b_{m, d}) - N \sum_m \sum_d \ln |u_{m, dd}|

    It equals ``-flow.log_prob(x).sum()``. A leading activation, which the paper does not have, adds its log-slopes.

    Args:
        flow: The LU-Net.
        x: Data, with shape :math:`(N, D)`.

    Returns:
        The loss, a scalar.

    References:
        LU-Net: Invertible Neural Networks Based on Matrix Factorization (Chan, Penquitt and Gottschalk, 2023),
        https://arxiv.org/abs/2302.10524
    """
    n, features = x.shape
    constant = 0.5 * n * features * math.log(2 * math.pi)
    log_slopes, log_diagonals = x.new_zeros(()), x.new_zeros(())
    if flow.leading is not None:
        x, log_slope = flow.leading(x)
        log_slopes = log_slope.sum()
    for layer in flow.layers:
        x = triangular.multiply(layer.lu, x) + layer.bias
        log_diagonals = log_diagonals + layer.lu.diagonal().abs().log().sum()
        if layer.activation is not None:
            x, log_slope = layer.activation(x)
            log_slopes = log_slopes + log_slope.sum()
    return constant + 0.5 * x.square().sum() - log_slopes - n * log_diagonals


def poster_bits_per_pixel(
    log_prob: Tensor, features: int, *, code: Literal["lunet", "realnvp"], batch_factor: float = 1.0
) -> Tensor:
    r"""The figure that the released code would print for these images, which is not bits per pixel.

    Both programs omit the logit's Jacobian. LU-Net's has :math:`\ln \pi` in place of :math:`\ln 2 \pi`, which is half a
    bit per pixel too low. RealNVP's adds :math:`\log_2 255` and divides a short last batch by the full batch size.
    Compare these figures with the poster's, never with `pixel_bits`.

    Args:
        log_prob: The flow's log-densities in nats of the *logits*, with shape :math:`(N,)`.
        features: The number :math:`D` of pixels.
        code: Which of the two programs.
        batch_factor: For RealNVP, the number of images divided by (number of batches x batch size).

    Returns:
        The figures, with shape :math:`(N,)`.

    Raises:
        ValueError: If ``code`` is another.

    References:
        https://github.com/spenquitt/LU-Net-Invertible-Neural-Networks (February 2023)
    """
    if code not in ("lunet", "realnvp"):
        raise ValueError(f"code is {code!r}; it is 'lunet' or 'realnvp'")
    bits = -log_prob / (features * math.log(2))
    return bits - 0.5 if code == "lunet" else bits * batch_factor + math.log2(255)


class ReleasedRealNVP(RealNVP, kind="realnvp_released"):
    r"""The RealNVP that was released with the LU-Net paper, batch statistics included.

    A batch normalisation follows each coupling. It uses running averages, which in training mode include the batch and
    let its gradient through. So the two modes give different scores, and in training mode the rows of a batch depend on
    each other.

    Args:
        shape: Channels, height and width of an image; height and width are even.
        couplings: The numbers of couplings at full resolution, after the squeeze, and at the end.
        planes: Channels inside the networks, doubled at the end.

    References:
        https://github.com/spenquitt/LU-Net-Invertible-Neural-Networks (February 2023)
    """

    starts: ClassVar[Mapping[str, int | None]] = {}

    def __init__(
        self, shape: Shape = (1, 28, 28), couplings: tuple[int, int, int] = (3, 3, 2), planes: int = 64
    ) -> None:
        super().__init__(shape, couplings, planes)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {"shape": list(self.shape), "couplings": self.options["couplings"], "planes": self.options["planes"]}

    def standardise_(self, x: Tensor) -> Self:
        """Raise `TypeError`: the released RealNVP is not initialised from data; its averages follow the batches."""
        del x
        raise TypeError("the released RealNVP has no start from data; its running averages follow the batches")

    def scale_penalty(self) -> Tensor:
        r"""The sum of the squared scales of all log-scales, a scalar, which the released loss weights by 5e-5."""
        couplings = cast("list[ReleasedCoupling]", [*self.full, *self.squeezed, *self.final])
        return torch.stack([coupling.log_scale.square().sum() for coupling in couplings]).sum()

    def _coupling(self, mask: Tensor, shape: Shape, planes: int) -> AffineCoupling:
        return ReleasedCoupling(mask, shape, planes)

    def _checkerboard(self, shape: Shape, *, first: bool) -> Tensor:
        # The released parity counts channels too: neighbouring channels have opposite boards.
        board = checkerboard(*shape, first=first)
        board[1::2] = 1 - board[1::2]
        return board

    def _factor_out(self, h: Tensor) -> tuple[Tensor, Tensor]:
        remaining, factored = h.chunk(2, dim=1)
        return factored, remaining

    def _factor_in(self, factored: Tensor, remaining: Tensor) -> Tensor:
        return torch.cat([remaining, factored], dim=1)


class ReleasedCoupling(AffineCoupling):
    r"""The coupling :math:`y = m x + (1 - m) (x e^s + t)`, then a batch normalisation.

    :math:`s = a \tanh(f(m x))` and :math:`t = c\, g(m x) + d` have separate networks :math:`f` and :math:`g`; the
    learned :math:`a, c, d` have an entry for each value and start at zero.

    Args:
        mask: 1 where a value passes unchanged, 0 where it is transformed, with shape :math:`(C, H, W)` or
            :math:`(C, 1, 1)`.
        shape: Channels, height and width.
        planes: Channels inside the networks.
    """

    def __init__(self, mask: Tensor, shape: Shape, planes: int) -> None:
        super().__init__(mask)
        self.log_scale_network, self.shift_network = (_network(shape[0], planes) for _ in range(2))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.shift_scale = nn.Parameter(torch.zeros(shape))
        self.shift = nn.Parameter(torch.zeros(shape))
        self.norm = RunningNorm(shape[0])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        r"""The values, with shape :math:`(N, C, H, W)`, and the log-determinants, with shape :math:`(N,)`."""
        log_scale, shift = self._log_scale_and_shift(x)
        y, norm_log_det = self.norm(x * log_scale.exp() + shift)
        return y, norm_log_det + log_scale.flatten(1).sum(1)

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, C, H, W)`, under the current running averages."""
        h = self.norm.inverse(y)
        log_scale, shift = self._log_scale_and_shift(h)
        return (h - shift) * (-log_scale).exp()

    def _log_scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        unchanged, transformed = x * self.mask, 1 - self.mask
        raw_scale, raw_shift = (network(unchanged).to(x.dtype) for network in self.conditioners())
        log_scale, shift = self.log_scale * torch.tanh(raw_scale), self.shift_scale * raw_shift + self.shift
        return transformed * log_scale, transformed * shift

    def conditioners(self) -> Sequence[nn.Module]:
        """The networks of the log-scale and of the shift."""
        return [self.log_scale_network, self.shift_network]


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
            # In place, so that a CUDA graph of a training step updates them too.
            self.mean.copy_(mean.detach())
            self.variance.copy_(variance.detach())
        variance = variance + self.EPSILON
        log_det = -0.5 * variance.log().sum() * x.shape[2] * x.shape[3]
        return (x - mean[:, None, None]) * variance.rsqrt()[:, None, None], log_det

    def inverse(self, y: Tensor) -> Tensor:
        r"""The arguments, with shape :math:`(N, C, H, W)`."""
        return y * (self.variance + self.EPSILON).sqrt()[:, None, None] + self.mean[:, None, None]


class _Block(nn.Module):
    """Two 3x3 convolutions with instance normalisation, a ReLU between them and one after the skip connection."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(planes, planes, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.convolutions
        return relu(x + instance_norm(second(relu(instance_norm(first(x))))))


def _network(channels: int, planes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, planes, 3, padding=1, bias=False),
        _Block(planes),
        _Block(planes),
        nn.Conv2d(planes, channels, 3, padding=1, bias=False),
    )
