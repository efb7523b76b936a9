"""The optimisation step, the optimisers, and the schedules of their learning rates."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from lunet import ImageFlow, LUNet
from pipeline.core.console import UserError
from pipeline.core.environment import memory_errors
from pipeline.core.params import Training
from pipeline.core.precision import arithmetic, networks_in
from pipeline.training import capture
from pipeline.training.objectives import infinite_pixels, loss_and_bits

# The optimisers by the name in a recipe, in their fused form.
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True, capturable=True),
    "sgd": partial(torch.optim.SGD, fused=True, momentum=0.9),
}
# The one-cycle schedule, as torch's OneCycleLR: the first rate is this part of the highest, the last this of the first.
FIRST_RATE, LAST_RATE = 1 / 25, 1e-4


class Totals(NamedTuple):
    """What the steps of a training have left on the device.

    Attributes:
        failed: Whether a step failed; from then on, no step has changed anything.
        completed: The number of steps completed before.
        bits: The sum over these steps of the batches' mean bits per dimension.
        infinite_pixels: See `pipeline.training.objectives.infinite_pixels`.
        last_bits: The last of these means.
        last_norm: The norm of the gradient in the last completed step, before clipping.
    """

    failed: bool
    completed: int
    bits: float
    infinite_pixels: int
    last_bits: float
    last_norm: float


class TrainingStep:
    """The optimisation step of a training, whatever takes it: the trainer, the stopwatch, or the check of a GPU.

    A step computes the loss and its gradient, clips the gradient, and updates the parameters, unless the likelihood or
    the gradient is not finite: such a step and all later ones change neither parameters nor persistent buffers. Nothing
    waits for a GPU until `read`. If the training asks for it, a GPU captures the step once for each size of batch, and
    replays it; and the model's `lunet.Flow.conditioners` are compiled, which is worthwhile for full batches only.

    Args:
        model: The model, in train mode and on its device.
        training: The settings of the training.
        noise: The source of the dequantisation noise.
        pixels: The source of the noise of the released RealNVP's preprocessing, if its infinite pixels are counted.

    Attributes:
        captures: Whether steps are captured.
        compiles: Whether networks are compiled.
        setup_seconds: The seconds that captures have taken, with the compilation before the first.
    """

    def __init__(
        self, model: ImageFlow, training: Training, noise: torch.Generator, pixels: torch.Generator | None = None
    ) -> None:
        device = model.device
        self._model, self._training, self._noise, self._pixels = model, training, noise, pixels
        persistent = model.state_dict()
        self._buffers = [buffer for name, buffer in model.named_buffers() if name in persistent]
        self.captures = training.capture and capture.runs_graphs(device)
        self.compiles = training.compile and capture.runs_graphs(device)
        self.setup_seconds = 0.0
        self._optimizer = make_optimizer(model, training)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        if self.captures:  # a graph reads the rate from the device
            for group in self._optimizer.param_groups:
                group["lr"] = torch.tensor(group["lr"], device=device)
        # 1 once a step has failed; a fused optimiser skips its update then.
        self._failed = torch.zeros((), device=device)
        self._optimizer.found_inf = self._failed  # type: ignore[attr-defined]
        self._completed, self._infinite_pixels, self._bits = (torch.zeros_like(self._failed).double() for _ in range(3))
        self._last = torch.full((2,), math.nan, dtype=torch.float64, device=device)
        self._graphs = capture.Graphs([noise] if pixels is None else [noise, pixels]) if self.captures else None
        self._functions: dict[int, capture.Function] = {}
        if self.compiles:
            for network in model.flow.conditioners():
                network.compile(fullgraph=True, dynamic=False)

    def take(self, batch: Tensor, factor: float = 1.0) -> None:
        """Take a step without a wait for the device.

        Args:
            batch: Images, uint8, with shape (N, H, W).
            factor: The factor on the learning rates, from `rate_factor`.

        Raises:
            UserError: If the step is to be captured and cannot be.
        """
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            if self._graphs is None:
                group["lr"] = rate * factor
            else:
                group["lr"].fill_(rate * factor)
        if self._graphs is None:
            self.optimise(batch)
            return
        if len(batch) not in self._functions:
            begin = time.perf_counter()
            self._functions[len(batch)] = self._capture(self._graphs, batch.clone())
            self.setup_seconds += time.perf_counter() - begin
        self._functions[len(batch)](batch)

    def try_out(self, batch: Tensor) -> None:
        """Take a step that changes nothing, and that no step follows, to see whether memory suffices for it."""
        self._functions, self._graphs = {}, None
        self._failed.fill_(1)
        self.optimise(batch)

    def optimise(self, batch: Tensor) -> None:
        """The step itself, at the present learning rates; what a graph captures."""
        model, training, device = self._model, self._training, self._model.device
        buffers = [(buffer, buffer.clone()) for buffer in self._buffers]
        self._optimizer.zero_grad(set_to_none=True)
        with arithmetic(training.precision), self._networks(full=len(batch) == training.batch_size):
            with networks_in(training.precision, device):
                loss, bits = loss_and_bits(model, batch, self._noise, training.objective, training.batch_size)
            loss.backward()
        if training.clip_norm is None:
            norm = get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        else:
            norm = clip_grad_norm_(model.parameters(), training.clip_norm)
        last = torch.stack([bits.detach(), norm]).double()
        self._failed.copy_(torch.maximum(self._failed, (~last.sum().isfinite()).float()))
        self._optimizer.step()
        skipped = self._failed != 0
        for buffer, before in buffers:
            buffer.copy_(torch.where(skipped, before, buffer))
        self._completed += ~skipped
        self._bits += last[0].masked_fill(skipped, 0)
        self._last.copy_(torch.where(skipped, self._last, last))
        if self._pixels is not None:
            self._infinite_pixels += infinite_pixels(batch, self._pixels).masked_fill(skipped, 0)

    def read(self) -> Totals:
        """What the steps so far have left on the device; waits until they are done."""
        numbers = [self._failed.double(), self._completed, self._bits, self._infinite_pixels]
        failed, completed, bits, pixels, *last = torch.cat([torch.stack(numbers), self._last]).tolist()
        return Totals(bool(failed), int(completed), bits, int(pixels), *last)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Compute in the block without compiled networks: they are compiled for training and its full batches only."""
        if self.compiles:
            with torch.compiler.set_stance("force_eager"):
                yield
        else:
            yield

    @contextmanager
    def _networks(self, *, full: bool) -> Iterator[None]:
        """Compute in the block with compiled networks if they are to be and the batch is a full one."""
        if not full:
            with self.eager():
                yield
            return
        try:
            yield
        except Exception as error:
            # By name, since the compiler, whose import takes seconds, has not been imported if it is not used.
            if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                reason = " ".join(str(error).split())[:300]
                raise UserError(f"the networks cannot be compiled, {reason}; set training.compile: false") from error
            raise

    def state(self) -> dict[str, Any]:
        """The tensors and plain values that `restore` takes."""
        return {"optimizer": self._optimizer.state_dict(), "totals": self._totals()}

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state` returned, before any step; the caller restores the model and the generators."""
        self._optimizer.load_state_dict(saved["optimizer"])
        for tensor, value in zip(self._totals(), saved["totals"], strict=True):
            tensor.copy_(value)

    def _totals(self) -> list[Tensor]:
        return [self._failed, self._completed, self._bits, self._infinite_pixels, self._last]

    def _capture(self, graphs: capture.Graphs, batch: Tensor) -> capture.Function:
        """The step as a CUDA graph for batches of one size."""
        failed, is_first = self._failed.clone(), not self._optimizer.state
        places = self._places()
        with memory_errors(), capture.fastest_convolutions(wanted=len(batch) == self._training.batch_size):
            self._failed.fill_(1)  # so that the first calls update nothing
            graphs.warm_up(self.optimise, batch)
            self._failed.copy_(failed)
            if is_first:
                for value in (value for values in self._optimizer.state.values() for value in values.values()):
                    value.zero_()
            if moved := [name for name, place in self._places().items() if place != places[name]]:
                raise _refusal(f"{moved[0]} is replaced in each step, and not changed in place")
            try:
                with memory_errors():
                    return graphs.capture(self.optimise, batch)
            except RuntimeError as error:
                raise _refusal((str(error).splitlines() or [type(error).__name__])[0]) from error

    def _places(self) -> dict[str, int]:
        """The addresses of parameters and buffers."""
        tensors = (*self._model.named_parameters(), *self._model.named_buffers())
        return {name: tensor.data_ptr() for name, tensor in tensors}


def _refusal(reason: str) -> UserError:
    return UserError(f"a training step cannot be captured, {reason}; set training.capture: false")


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


def rate_factor(training: Training, step: int, steps: int, per_epoch: int) -> float:
    """The factor on the learning rates in a step, counted from 0, of ``steps``; an epoch has ``per_epoch`` of them."""
    if training.halve_every is not None:
        return float(0.5 ** (step // max(1, round(training.halve_every * per_epoch))))
    if training.warmup is None:
        return 1.0
    # The rise takes at least one step; the fall ends one step after the last.
    peak = max(1.0, training.warmup * (steps + 1) - 1)
    start, end, share = FIRST_RATE, 1.0, step / peak
    if step > peak:
        start, end, share = 1.0, FIRST_RATE * LAST_RATE, (step - peak) / (steps - peak)
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
