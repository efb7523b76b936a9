"""The loss of a training step: the negative log-likelihood, or the loss of the released code."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lunet import Flow, ImageFlow, LUNet, ReleasedRealNVP, triangular

# The flows with a released objective.
RELEASED: tuple[type[Flow], ...] = (LUNet, ReleasedRealNVP)
# The released code's weight of ln |diag U| in training, and of the squared scales of RealNVP's log-scales.
DIAGONAL_WEIGHT = 100
SCALE_PENALTY = 5e-5


def loss_and_bits(
    model: ImageFlow,
    images: Tensor,
    generator: torch.Generator,
    objective: Literal["likelihood", "released"],
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """The loss of a batch to be differentiated, and its mean bits per dimension.

    Args:
        model: The model.
        images: The batch, uint8, with shape (N, H, W).
        generator: The source of the dequantisation noise.
        objective: ``likelihood`` for mean bits per dimension; ``released`` for the released code's loss, which is for
            LU-Net a sum over the batch, without ln phi', and for RealNVP a mean with a penalty.
        batch_size: The size of a full batch; the released mean divides the sum over a smaller last batch by it too.
    """
    scores = model.score(images, generator)
    bits = scores.bits.mean()
    if objective == "likelihood":
        return bits, bits
    if isinstance(model.flow, ReleasedRealNVP):
        penalty = SCALE_PENALTY * model.flow.scale_penalty() / batch_size
        return -scores.log_prob.sum() / batch_size + penalty, bits
    if isinstance(model.flow, LUNet):
        diagonals = torch.stack([triangular.log_abs_det(layer.lu) for layer in model.flow.layers])
        z = scores.latents
        return 0.5 * z.square().sum() - DIAGONAL_WEIGHT * len(z) * diagonals.sum(), bits
    raise TypeError(f"a {type(model.flow).__name__} has no released objective")


def infinite_pixels(images: Tensor, generator: torch.Generator) -> Tensor:
    """How many pixels of a batch the released RealNVP's preprocessing would have made infinite.

    It adds noise below 1 in float32, where 255 plus the largest such numbers rounds to 256. The logit is then infinite,
    and one such pixel makes every weight NaN.
    """
    noise = torch.rand(images.shape, generator=generator, device=images.device)
    return ((images + noise) == 256).sum()
