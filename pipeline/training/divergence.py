"""Failures of a training step, non-finite numbers or too little memory: location and description."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lunet import ImageFlow
from pipeline.core.environment import memory_errors
from pipeline.core.params import Training
from pipeline.core.precision import arithmetic, networks_in
from pipeline.training.objectives import loss_and_bits


class DivergedError(Exception):
    """A training whose numbers are no longer finite."""


def describe_failure(model: ImageFlow, batch: Tensor, generator: torch.Generator, training: Training) -> str:
    """Describe what is not finite in a step that failed, and in which layer first, by taking it again.

    Args:
        model: The model, with its weights from before the step.
        batch: The images of the step, uint8, with shape (N, H, W).
        generator: The generator, in its state before the step.
        training: The settings of the training.
    """
    layers: list[str] = []
    parameters: list[str] = []

    def check_output(name: str, _module: nn.Module, _inputs: object, output: Any) -> None:
        parts = output if isinstance(output, tuple) else (output,)
        if not all(part.isfinite().all() for part in parts if isinstance(part, Tensor)):
            layers.append(name)

    def check_gradient(name: str, parameter: Tensor) -> None:
        if parameter.grad is not None and not parameter.grad.isfinite().all():
            parameters.append(name)

    handles = [
        *(m.register_forward_hook(partial(check_output, name)) for name, m in model.flow.named_modules() if name),
        *(p.register_post_accumulate_grad_hook(partial(check_gradient, n)) for n, p in model.flow.named_parameters()),
    ]
    model.zero_grad()
    with arithmetic(training.precision):
        with networks_in(training.precision, batch.device):
            loss, bits = loss_and_bits(model, batch, generator, training.objective, training.batch_size)
        loss.backward()
    mean = float(bits.detach())
    norm = get_total_norm([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    for handle in handles:
        handle.remove()
    if layers:
        return f"the loss is {mean}: the layer {layers[0]} is the first with a value that is not finite"
    reason = "" if math.isfinite(mean) else f"the loss is {mean}: "
    if not parameters and math.isfinite(mean) and norm.isfinite():
        return "the loss or its gradient is not finite, but is when the step is taken again without graph and compiler"
    if not parameters:
        return f"{reason}the norm of the gradient is not finite"
    layer, _, weight = parameters[0].rpartition(".")
    place = f" in the layer {layer}" if layer else ""
    return f"{reason}the gradient of {weight}{place} is the first that is not finite"


def batch_that_fits(step: Callable[[Tensor], object], batch: Tensor) -> int | None:
    """The largest half, quarter, and so on of a batch whose step fits in memory; None if none fits."""
    size = len(batch) // 2
    while size:
        if batch.is_cuda:
            torch.cuda.empty_cache()
        try:
            with memory_errors():
                step(batch[:size])
        except MemoryError:
            size //= 2
        else:
            return size
    return None
