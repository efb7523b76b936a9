r"""Between 8-bit pixels and the real line: dequantisation and logit with their log-determinants, and bits per pixel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lunet.base import NonFiniteError

LEVELS = 256
ROUNDING = 1e-3  # bits per pixel, above the rounding of a density of 784 pixels in float32
# The number of equal cells whose midpoints are the values of the noise.
CELLS = {torch.float32: 2.0**15, torch.float64: 2.0**44}


def dequantise(images: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None) -> Tensor:
    r"""The values :math:`(x + u) / 256` with uniform noise :math:`u` strictly between 0 and 1.

    The noise is drawn from the midpoints of :math:`2^{15}` equal cells (:math:`2^{44}` in float64), so that
    :math:`x + u` is exact and never rounds to an integer, in particular neither to 0 nor to 256.

    Args:
        images: 8-bit images, with any shape.
        dtype: torch.float32 or torch.float64.
        generator: The random generator of the noise.

    Returns:
        Values strictly between 0 and 1, with the shape of ``images``.

    Raises:
        TypeError: If ``dtype`` is another.
    """
    if dtype not in CELLS:
        raise TypeError(f"dtype is {dtype}; pixels are dequantised in torch.float32 or torch.float64")
    cells = CELLS[dtype]
    device = images.device if generator is None else generator.device
    noise = torch.rand(images.shape, generator=generator, dtype=dtype, device=device).to(images.device)
    noise = noise.mul_(cells).floor_().add_(0.5).div_(cells)
    return noise.add_(images).div_(LEVELS)


def quantise(values: Tensor) -> Tensor:
    """The 8-bit pixels of values between 0 and 1; a value outside becomes the nearest pixel, 0 or 255."""
    return (values * LEVELS).floor().clamp(0, LEVELS - 1).to(torch.uint8)


def logit(values: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    r"""The logits of :math:`p = \text{low} + (1 - \text{low} - \text{high}) v` and the log-slopes :math:`\ln dy / dv`.

    Args:
        values: Values :math:`v` strictly between 0 and 1, with any shape.
        low: The smallest :math:`p`.
        high: The distance of the largest :math:`p` from 1.

    Returns:
        The logits :math:`y` and the log-slopes, each with the shape of ``values``.
    """
    scale = values.new_full((), 1 - low - high)  # filled on the device: a copy to a GPU would wait, and forbid a graph
    log_p = (low + scale * values).log()
    log_q = (high + scale * (1 - values)).log()
    return log_p - log_q, scale.log() - log_p - log_q


def inverse_logit(logits: Tensor, low: float, high: float) -> Tensor:
    """The values of logits, with the same shape; they may lie outside 0 to 1 by about the margins."""
    return (torch.sigmoid(logits) - low) / (1 - low - high)


def pixel_bits(log_prob: Tensor, features: int) -> Tensor:
    r"""Bits per pixel of 8-bit images, :math:`8 - \log_2 p(v) / D`.

    Args:
        log_prob: Log-densities in nats of pixel values :math:`v` between 0 and 1, with shape :math:`(N,)`.
        features: The number :math:`D` of pixels.

    Returns:
        Bits per pixel, with shape :math:`(N,)`.
    """
    return 8 - log_prob / (features * math.log(2))


class ImpossibleLikelihoodError(NonFiniteError):
    """Raised for a mean likelihood of 8-bit images that no density has."""


def mean_bits(bits: Tensor) -> float:
    r"""The mean of the bits per pixel of 8-bit images, with shape :math:`(N,)`, checked to be possible.

    The mean over the noise bounds the length of a code. A density falls below 0 by the rounding of its numbers, and
    further only if it was fitted to the very noise with which it is scored.

    Raises:
        NonFiniteError: If the mean is not finite.
        ImpossibleLikelihoodError: If it is below 0 by more than rounding.
    """
    mean = float(bits.double().mean())
    if not math.isfinite(mean):
        raise NonFiniteError(f"the mean of {len(bits)} images is {mean} bits per pixel")
    if mean < -ROUNDING:
        raise ImpossibleLikelihoodError(
            f"the mean of {len(bits)} images is {mean:.4f} bits per pixel; below 0 no code for 8-bit images is possible"
        )
    return mean
