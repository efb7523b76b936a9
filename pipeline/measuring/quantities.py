"""The measured quantities, times and memory of an architecture; each is a function of a `Work`.

Times include what a user's call includes: a flow's check that its results are finite, and the wait until a GPU is done.
Only the times of the released code's stopwatch leave out both.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lunet import Flow, ImageFlow, LUNet, triangular
from pipeline.core.environment import choose_device, describe_environment, keep_freed_memory, memory_errors
from pipeline.core.params import Params, Training
from pipeline.core.precision import arithmetic
from pipeline.measuring.memory import MIB, weigh
from pipeline.measuring.record import Determinant, Memory, Timing
from pipeline.measuring.released import time_released_density, time_released_optimizer, time_released_sampling
from pipeline.measuring.stopwatch import sample_times
from pipeline.measuring.work import Work
from pipeline.training.optimisation import TrainingStep, make_optimizer

# The paper's width, and beyond: a sum over 2,560 diagonal entries takes more than twice as long as a call without work.
WIDTHS = [256, 784, 2560, 3072, 4096, 6144, 8192]
DIAGONAL_ROUNDS, DENSE_ROUNDS = 30, 3
# No wider matrix is begun once it has taken so many times ``measure.seconds``.
DETERMINANT_SECONDS = 40


def take(quantity: str, params: Params, recipe: str, images: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    """Measure one of `QUANTITIES` for a recipe and uint8 images of shape (N, H, W).

    All is computed in strict float32, but for training steps, which set their own precision. What earlier quantities
    have left in memory is freed.

    Raises:
        MemoryError: If the memory of the device or of the machine did not suffice.
    """
    gc.collect()
    torch.cuda.empty_cache()
    keep_freed_memory()
    device = choose_device(params.device, params.preset)
    grid = [params.recipe(name) for name in params.grid.recipes]
    work = Work(params.recipe(recipe), torch.from_numpy(images), device, params.measure, grid)
    with memory_errors(), arithmetic():
        return QUANTITIES[quantity](work)


def about(work: Work) -> dict[str, Any]:
    """The fields of a `Measurement` that need no stopwatch."""
    model = work.architecture()  # a lack of memory on the device is met by the quantities that need it
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    numbers = {"sampling": stored}
    if work.recipe.training is not None:
        numbers["training"] = stored + numbers_in_training(model, work.recipe.training)
    itemsize = getattr(torch, work.recipe.dtype).itemsize
    return {
        "device": work.device.type,
        "image_shape": tuple(work.images.shape[1:]),
        "parameters": {"stored": stored, "free": model.flow.free_parameters()},
        "floors_mib": {phase: number * itemsize / MIB for phase, number in numbers.items()},
        "environment": describe_environment(work.device),
    }


def numbers_in_training(model: ImageFlow, training: Training) -> int:
    """How many numbers training keeps beside the model: gradients and the optimiser's state, without scalars."""
    optimizer = make_optimizer(model, training)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()  # which allocates the state
    state = [value for values in optimizer.state.values() for value in values.values()]
    tensors = [value for value in state if isinstance(value, torch.Tensor) and value.dim()]
    return sum(tensor.numel() for tensor in [*model.parameters(), *tensors])


def make_step(work: Work, training: Training) -> Callable[[], object]:
    """One whole optimisation step: preprocessing, forward, backward and update."""
    step = TrainingStep(work.model().train(), training, torch.Generator(work.device))
    return partial(step.take, work.batch(training.batch_size))


def time_step(work: Work, *, whole: bool) -> Timing | None:
    """Milliseconds of a whole optimisation step, or of ``optimizer.step()`` alone."""
    if (training := work.recipe.training) is None:
        return None
    samples = work.sample_times(make_step(work, training) if whole else work.first_update(training))
    return Timing(per="step", batch=training.batch_size, samples=samples, precision=training.precision)


@torch.no_grad()
def time_images(work: Work, *, sample: bool, large: bool) -> Timing:
    """Milliseconds per 8-bit image for sampling, or for the bits per dimension, preprocessing included."""
    size = work.settings.large_batch if large else 1
    model = work.settled() if large else work.model().eval()
    call = partial(model.sample, size) if sample else partial(model.bits_per_dim, work.batch(size))
    return Timing(per="image", batch=size, samples=[milliseconds / size for milliseconds in work.sample_times(call)])


def time_determinants(work: Work) -> Determinant | None:
    """Milliseconds for the log-determinant of L U, from U's diagonal, and of a dense matrix, by ``slogdet``.

    They do not depend on the recipe, so only the grid's first LU-Net has them. One CPU thread computes both: a sum over
    some thousand numbers gains nothing from a second one, and waits for it where the machine is busy.
    """
    lu_nets = [recipe for recipe in work.grid if issubclass(Flow.kinds[recipe.model.kind], LUNet)]
    if work.recipe not in lu_nets[:1]:
        return None

    def diagonal_times(matrix: Tensor) -> list[float]:
        call = partial(triangular.log_abs_det, matrix)
        return sample_times(call, work.device, work.settings.warmup, DIAGONAL_ROUNDS, work.settings.seconds)

    generator, begin = torch.Generator().manual_seed(0), time.perf_counter()
    widths, diagonal_ms, slogdet_ms = [], [], []
    with one_thread():
        call_ms = diagonal_times(torch.ones(1, 1, device=work.device))
        for width in WIDTHS:
            if time.perf_counter() - begin > DETERMINANT_SECONDS * work.settings.seconds:
                break
            matrix = torch.randn(width, width, generator=generator).to(work.device)
            widths.append(width)
            diagonal_ms.append(diagonal_times(matrix))
            dense = partial(torch.linalg.slogdet, matrix)
            slogdet_ms.append(sample_times(dense, work.device, 0, DENSE_ROUNDS, 0, DENSE_ROUNDS))
    return Determinant(widths=widths, diagonal_ms=diagonal_ms, slogdet_ms=slogdet_ms, call_ms=call_ms)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with a single CPU thread in the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def weigh_training(work: Work) -> Memory | None:
    """Peak memory of a process that takes optimisation steps."""
    if (training := work.recipe.training) is None:
        return None

    def steps() -> None:
        # Without a graph and a compiler, whose trials of algorithms take memory of their own.
        step = make_step(work, training.model_copy(update={"capture": False, "compile": False}))
        for _ in range(3):
            step()

    return weigh(steps, work.device)


def weigh_sampling(work: Work) -> Memory:
    """Peak memory of a process that samples the large batch."""
    draw = torch.no_grad()(lambda: work.model().eval().sample(work.settings.large_batch))
    return weigh(draw, work.device)


# By the field of the `Measurement` that the quantity fills.
QUANTITIES: dict[str, Callable[[Work], Any]] = {
    "about": about,
    "times.step": partial(time_step, whole=True),
    "times.optimizer_step": partial(time_step, whole=False),
    "times.density_small": partial(time_images, sample=False, large=False),
    "times.density_large": partial(time_images, sample=False, large=True),
    "times.sampling_small": partial(time_images, sample=True, large=False),
    "times.sampling_large": partial(time_images, sample=True, large=True),
    "times.released_optimizer_step": time_released_optimizer,
    "times.released_density": time_released_density,
    "times.released_sampling": time_released_sampling,
    "memory.training": weigh_training,
    "memory.sampling": weigh_sampling,
    "determinant": time_determinants,
}
