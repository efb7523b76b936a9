"""One optimisation step, the optimiser and its learning-rate schedule."""

from __future__ import annotations

import torch
from torch import Tensor

from lunet import ImageFlow, LUNet
from pipeline.core.params import Training
from pipeline.training.objectives import loss_and_bits

SGD_MOMENTUM = 0.9


def optimise(
    model: ImageFlow,
    optimizer: torch.optim.Optimizer,
    batch: Tensor,
    generator: torch.Generator,
    training: Training,
) -> Tensor:
    """Take one optimisation step on uint8 images; returns the mean bits per dimension, still on its device."""
    loss, bits = loss_and_bits(model, batch, generator, training.objective, training.batch_size)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if training.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    optimizer.step()
    return bits.detach()


def make_optimizer(model: ImageFlow, training: Training) -> torch.optim.Optimizer:
    """The optimiser of a training, in its fused form.

    The first group contains an LU-Net's triangular matrices, the second its elementwise parameters, with a separate
    learning rate; other models have one group.
    """
    triangles = [layer.lu for layer in model.flow.layers] if isinstance(model.flow, LUNet) else []
    elementwise = [p for p in model.parameters() if not any(p is triangle for triangle in triangles)]
    rates = (training.learning_rate, training.elementwise_rate or training.learning_rate)
    groups = [
        {"params": parameters, "lr": rate}
        for parameters, rate in zip((triangles, elementwise), rates, strict=True)
        if parameters
    ]
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=SGD_MOMENTUM, fused=True)
    return torch.optim.Adam(groups, fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, training: Training, steps: int, per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule of ``steps`` steps; an epoch has ``per_epoch`` of them."""
    if training.halve_every is not None:
        interval = max(1, round(training.halve_every * per_epoch))
        return torch.optim.lr_scheduler.StepLR(optimizer, interval, gamma=0.5)
    if training.warmup is None:
        return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    # One step too many, since the schedule also advances after the last step; and a rise of at least one step, since
    # torch divides by its length.
    rise = max(training.warmup, 2 / (steps + 1))
    peaks = [group["lr"] for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, peaks, total_steps=steps + 1, pct_start=min(rise, 1.0), cycle_momentum=False
    )
