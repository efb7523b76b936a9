"""What a training step may end with: numbers that are not finite, or no memory; found, placed and put into words."""

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

Buffer = tuple[nn.Module, str, Tensor]  # where it belongs, its name, and its values
REMEMBERED = 50  # losses; more than are taken between two looks at one


class DivergedError(Exception):
    """A training whose numbers are no longer finite."""


class GradientError(Exception):
    """A gradient that is not finite; ``parameter`` is the one nearest to the loss that has such a gradient."""

    def __init__(self, parameter: str) -> None:
        super().__init__(parameter)
        self.parameter = parameter


class DivergenceGuard:
    """Watches over the steps of a training while it lasts: none is taken with a gradient that is not finite.

    A `DivergedError` within is told with the step, the learning rate and the last finite values.

    Cost: one pass over the gradients a step; a GPU is waited for once a step.

    Args:
        model: The model.
        optimizer: The optimizer of its parameters.
        generator: Where the noise of a step comes from.
        done: How many steps were taken before.
    """

    def __init__(
        self, model: ImageFlow, optimizer: torch.optim.Optimizer, generator: torch.Generator, done: int = 0
    ) -> None:
        self._model, self._optimizer, self._generator, self._step = model, optimizer, generator, done
        self._rate = 0.0
        self._sizes: dict[str, Tensor] = {}
        self._largest: Tensor | None = None
        self._losses: deque[Tensor] = deque(maxlen=REMEMBERED)
        self._handles: list[RemovableHandle] = []
        self._with_buffers = [module for module in model.modules() if [*module.buffers(recurse=False)]]

    def __enter__(self) -> Self:
        self._handles.append(self._optimizer.register_step_pre_hook(self._check))
        for name, parameter in self._model.named_parameters():
            # Before the gradients are clipped, which spreads what is not finite to all of them.
            self._handles.append(parameter.register_post_accumulate_grad_hook(partial(self._look, name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        if isinstance(error, DivergedError):
            raise DivergedError(f"{error}; {self._situation()}") from None

    def take(self, step: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """Take one step on a batch and return its loss.

        Raises:
            DivergedError: If the loss or a gradient is not finite; parameters and buffers are those before the step.
            MemoryError: If memory does not suffice; the message says for what batch it would, where it would for one.
        """
        self._step, self._rate = self._step + 1, float(self._optimizer.param_groups[0]["lr"])
        random, buffers = self._generator.get_state(), self._buffers()
        try:
            self._losses.append(step(batch))
            return self._losses[-1]
        except GradientError as error:
            self._generator.set_state(random)
            _put_back(buffers)
            message = describe_failure(self._model, batch, self._generator, error.parameter)
            _put_back(buffers)
            raise DivergedError(message) from None
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).splitlines()[0]
        # Here the error has let go of the tensors of the step that failed.
        size = batch_that_fits(step, batch)
        raise MemoryError(f"{message}; a batch of {size} images would fit" if size else message)

    def _buffers(self) -> list[Buffer]:
        """The model's buffers; no copies, since a flow puts new tensors in their place (running averages do)."""
        return [
            (module, name, buffer)
            for module in self._with_buffers
            for name, buffer in module.named_buffers(recurse=False)
        ]

    def _situation(self) -> str:
        finite = [loss for loss in map(float, self._losses) if math.isfinite(loss)]
        return (
            f"step {self._step}, learning rate {self._rate:.3g}"
            + (f", last finite loss {finite[-1]:.4f} bits/dim" if finite else "")
            + (f", largest gradient before it {float(self._largest):.3g}" if self._largest is not None else "")
        )

    def _look(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            # Ten times as fast on a CPU as a maximum norm, and NaN comes through as well.
            low, high = parameter.grad.aminmax()
            self._sizes[name] = torch.maximum(-low, high)

    def _check(self, *_: object) -> None:
        sizes, self._sizes = self._sizes, {}
        if not sizes:
            return
        largest = torch.stack([*sizes.values()]).amax()
        if not largest.isfinite():
            raise GradientError(next(name for name, size in sizes.items() if not size.isfinite()))
        self._largest = largest


def _put_back(buffers: list[Buffer]) -> None:
    for module, name, buffer in buffers:
        setattr(module, name, buffer)


def describe_failure(model: ImageFlow, batch: Tensor, generator: torch.Generator, parameter: str) -> str:
    """What is not finite on a batch, and the first layer where it is so.

    Args:
        model: The model, with the weights and buffers it had before the step; running averages take the batch in again.
        batch: The images of the step, uint8, with shape (N, H, W).
        generator: The generator, in the state it had before the step.
        parameter: The parameter whose gradient is not finite.
    """
    failed: list[str] = []

    def look(name: str, _module: nn.Module, _inputs: object, output: Any) -> None:
        if not all(part.isfinite().all() for part in (output if isinstance(output, tuple) else (output,))):
            failed.append(name)

    handles = [module.register_forward_hook(partial(look, name)) for name, module in model.flow.named_modules() if name]
    with torch.no_grad():
        loss = float(model.bits_per_dim(batch, generator=generator).mean())
    for handle in handles:
        handle.remove()
    if failed:
        return f"the loss is {loss}: the layer {failed[0]} is the first with a value that is not finite"
    layer, _, own = parameter.removeprefix("flow.").rpartition(".")
    reason = "" if math.isfinite(loss) else f"the loss is {loss}: "
    return f"{reason}the gradient of {own} in the layer {layer} is the first that is not finite"


def batch_that_fits(step: Callable[[Tensor], object], batch: Tensor) -> int | None:
    """The largest half, quarter, and so on of a batch for which there is memory to take a step; None if none is."""
    size = len(batch) // 2
    while size:
        if batch.is_cuda:
            torch.cuda.empty_cache()
        try:
            step(batch[:size])
        except GradientError:
            return size  # there was memory for it
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            size //= 2
        else:
            return size
    return None
