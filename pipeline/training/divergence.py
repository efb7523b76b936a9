"""Failures of a training step, non-finite numbers or too little memory: detection, location and description."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lunet import ImageFlow
from pipeline.core.environment import is_out_of_memory

Buffer = tuple[nn.Module, str, Tensor]  # its module, its name, and its values
RECENT_LOSSES = 50  # losses; more than fit.py computes between two checks of their mean


class DivergedError(Exception):
    """A training whose numbers are no longer finite."""


class GradientError(Exception):
    """A gradient that is not finite; ``parameter`` is the parameter nearest to the loss with such a gradient."""

    def __init__(self, parameter: str) -> None:
        super().__init__(parameter)
        self.parameter = parameter


class DivergenceGuard:
    """Guards the training steps in a `with` block: no step is taken with a gradient that is not finite.

    A `DivergedError` in the block gains the step, the learning rate and the last finite values in its message.

    Cost: one pass over the gradients and one synchronisation with a GPU in each step.

    Args:
        model: The model.
        optimizer: The optimizer of its parameters.
        generator: The source of each step's noise.
        done: The number of steps taken before.
    """

    def __init__(
        self, model: ImageFlow, optimizer: torch.optim.Optimizer, generator: torch.Generator, done: int = 0
    ) -> None:
        self._model, self._optimizer, self._generator, self._step = model, optimizer, generator, done
        self._rate = 0.0
        self._gradient_norms: dict[str, Tensor] = {}
        self._largest: Tensor | None = None
        self._losses: deque[Tensor] = deque(maxlen=RECENT_LOSSES)
        self._handles: list[RemovableHandle] = []
        self._with_buffers = [module for module in model.modules() if [*module.buffers(recurse=False)]]

    def __enter__(self) -> Self:
        self._handles.append(self._optimizer.register_step_pre_hook(self._check_gradients))
        for name, parameter in self._model.named_parameters():
            # Before the gradients are clipped, since clipping spreads a non-finite value to all of them.
            self._handles.append(parameter.register_post_accumulate_grad_hook(partial(self._measure_gradient, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if isinstance(error, DivergedError):
            raise DivergedError(f"{error}; {self._describe_step()}") from None

    def take(self, step: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """Take one step on a batch and return its loss.

        Raises:
            DivergedError: If the loss or a gradient is not finite; parameters and buffers are as before the step.
            MemoryError: If memory does not suffice; the message names a batch size that fits, if any does.
        """
        self._step, self._rate = self._step + 1, float(self._optimizer.param_groups[0]["lr"])
        random_state, buffers = self._generator.get_state(), self._buffers()
        try:
            self._losses.append(step(batch))
            return self._losses[-1]
        except GradientError as error:
            self._generator.set_state(random_state)
            _restore_buffers(buffers)
            message = describe_failure(self._model, batch, self._generator, error.parameter)
            _restore_buffers(buffers)
            raise DivergedError(message) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).splitlines()[0]
        # Here the error no longer keeps the tensors of the failed step alive.
        size = batch_that_fits(step, batch)
        raise MemoryError(f"{message}; a batch of {size} images would fit" if size else message)

    def _buffers(self) -> list[Buffer]:
        """The model's buffers, not copied, since a flow replaces them by new tensors (its running averages)."""
        return [
            (module, name, buffer)
            for module in self._with_buffers
            for name, buffer in module.named_buffers(recurse=False)
        ]

    def _describe_step(self) -> str:
        finite = [loss for loss in map(float, self._losses) if math.isfinite(loss)]
        return (
            f"step {self._step}, learning rate {self._rate:.3g}"
            + (f", last finite loss {finite[-1]:.4f} bits/dim" if finite else "")
            + (f", largest gradient before it {float(self._largest):.3g}" if self._largest is not None else "")
        )

    def _measure_gradient(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            # Ten times as fast on a CPU as a maximum norm, and it propagates NaN too.
            low, high = parameter.grad.aminmax()
            self._gradient_norms[name] = torch.maximum(-low, high)

    def _check_gradients(self, *_: object) -> None:
        norms, self._gradient_norms = self._gradient_norms, {}
        if not norms:
            return
        largest = torch.stack([*norms.values()]).amax()
        if not largest.isfinite():
            raise GradientError(next(name for name, norm in norms.items() if not norm.isfinite()))
        self._largest = largest


def _restore_buffers(buffers: list[Buffer]) -> None:
    for module, name, buffer in buffers:
        setattr(module, name, buffer)


def describe_failure(model: ImageFlow, batch: Tensor, generator: torch.Generator, parameter: str) -> str:
    """Describe what is not finite on a batch, and in which layer first.

    Args:
        model: The model, with its weights and buffers from before the step; its running averages are updated again.
        batch: The images of the step, uint8, with shape (N, H, W).
        generator: The generator, in its state before the step.
        parameter: The parameter whose gradient is not finite.
    """
    failed: list[str] = []

    def check_output(name: str, _module: nn.Module, _inputs: object, output: Any) -> None:
        if not all(part.isfinite().all() for part in (output if isinstance(output, tuple) else (output,))):
            failed.append(name)

    modules = [(name, module) for name, module in model.flow.named_modules() if name]
    handles = [module.register_forward_hook(partial(check_output, name)) for name, module in modules]
    with torch.no_grad():
        loss = float(model.bits_per_dim(batch, generator=generator).mean())
    for handle in handles:
        handle.remove()
    if failed:
        return f"the loss is {loss}: the layer {failed[0]} is the first with a value that is not finite"
    layer, _, weight = parameter.removeprefix("flow.").rpartition(".")
    reason = "" if math.isfinite(loss) else f"the loss is {loss}: "
    return f"{reason}the gradient of {weight} in the layer {layer} is the first that is not finite"


def batch_that_fits(step: Callable[[Tensor], object], batch: Tensor) -> int | None:
    """The largest half, quarter, and so on of a batch whose step fits in memory; None if none fits."""
    size = len(batch) // 2
    while size:
        if batch.is_cuda:
            torch.cuda.empty_cache()
        try:
            step(batch[:size])
        except GradientError:
            return size  # its memory sufficed
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
        else:
            return size
    return None
