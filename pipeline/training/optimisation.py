"""One optimisation step, the optimisers and their learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR, StepLR

from lunet import ImageFlow, LUNet
from pipeline.core.params import Training
from pipeline.training.objectives import loss_and_bits

# The optimisers by the name in a recipe, in their fused form.
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "sgd": partial(torch.optim.SGD, fused=True, momentum=0.9),
}


class Step(NamedTuple):
    """The mean bits per dimension before an update, and the norm of its gradient before clipping, on their device."""

    bits: Tensor
    gradient_norm: Tensor


class NonFiniteStepError(Exception):
    """Raised for a step whose likelihood or gradient is not finite."""


def optimise(
    model: ImageFlow,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    generator: torch.Generator,
    training: Training,
) -> Step:
    """Take one optimisation step on uint8 images of shape (N, H, W).

    Cost: a forward and a backward pass, the update, and one synchronisation with a GPU.

    Raises:
        NonFiniteStepError: If the likelihood or the gradient is not finite; parameters are then unchanged.
    """
    optimizer.zero_grad(set_to_none=True)
    loss, bits = loss_and_bits(model, batch, generator, training.objective, training.batch_size)
    loss.backward()
    if training.clip_norm is None:
        gradient_norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    else:
        gradient_norm = clip_grad_norm_(model.parameters(), training.clip_norm)
    if not (bits.isfinite() & gradient_norm.isfinite()):
        raise NonFiniteStepError
    optimizer.step()
    return Step(bits.detach(), gradient_norm)


def make_optimizer(model: ImageFlow, training: Training) -> torch.optim.Optimizer:
    """The optimiser of a training.

    The first group contains an LU-Net's triangular matrices, the second its elementwise parameters, with a separate
    learning rate; other models have one group.
    """
    triangles = [layer.lu for layer in model.flow.layers] if isinstance(model.flow, LUNet) else []
    elementwise = [p for p in model.parameters() if not any(p is triangle for triangle in triangles)]
    rates = (training.learning_rate, training.elementwise_rate or training.learning_rate)
    groups: list[dict[str, Any]] = [
        {"params": parameters, "lr": rate}
        for parameters, rate in zip((triangles, elementwise), rates, strict=True)
        if parameters
    ]
    return OPTIMIZERS[training.optimizer](groups)


def make_schedule(optimizer: torch.optim.Optimizer, training: Training, steps: int, per_epoch: int) -> LRScheduler:
    """The learning-rate schedule of ``steps`` steps; an epoch has ``per_epoch`` of them."""
    if training.halve_every is not None:
        return StepLR(optimizer, max(1, round(training.halve_every * per_epoch)), gamma=0.5)
    if training.warmup is None:
        return ConstantLR(optimizer, factor=1.0)
    # One step too many, since the schedule also advances after the last step; and a rise of at least one step, since
    # torch divides by its length.
    rise = max(training.warmup, 2 / (steps + 1))
    peaks = [group["lr"] for group in optimizer.param_groups]
    return OneCycleLR(optimizer, peaks, total_steps=steps + 1, pct_start=min(rise, 1.0), cycle_momentum=False)
