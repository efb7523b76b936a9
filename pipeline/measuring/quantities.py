"""The measured quantities, times and memory of an architecture; each is a function of a `Work`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from lunet import triangular
from pipeline.core.environment import choose_device, describe_environment, is_out_of_memory, keep_freed_memory
from pipeline.core.params import LearnedLUNetModel, LUNetModel, Params
from pipeline.measuring.memory import weigh
from pipeline.measuring.released import time_released_density, time_released_optimizer, time_released_sampling
from pipeline.measuring.work import Work, stopwatch
from pipeline.training.optimisation import make_optimizer, optimise

WIDTHS = (64, 128, 256, 512, 1024)


def take(quantity: str, params: Params, recipe: str, images: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    """Measure one of `QUANTITIES` for a recipe and uint8 images of shape (N, H, W).

    Raises:
        MemoryError: If the memory of the device or of the machine did not suffice.
    """
    keep_freed_memory()
    work = Work(params.recipe(recipe), torch.from_numpy(images), choose_device(params), params.measure)
    try:
        return QUANTITIES[quantity](work)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(str(error).splitlines()[0]) from None


def about(work: Work) -> dict[str, Any]:
    """Device, environment, and the numbers of parameters."""
    model = work.architecture()
    stored = sum(tensor.numel() for tensor in model.state_dict().values())
    return {
        "device": work.device.type,
        "parameters": {"stored": stored, "free": model.flow.free_parameters()},
        "environment": describe_environment(work.device),
    }


def time_step(work: Work) -> dict[str, Any] | None:
    """Milliseconds of one whole optimisation step: preprocessing, forward, backward and update."""
    if work.recipe.training is None:
        return None
    model, batch = work.model().train(), work.batch(work.training_batch)
    training, generator = work.recipe.training, torch.Generator(work.device)
    optimizer = make_optimizer(model, training)
    samples = stopwatch(lambda: optimise(model, optimizer, batch, generator, training), work)
    return {"unit": "ms", "per": "step", "batch": len(batch), "samples": samples}


def time_optimizer(work: Work) -> dict[str, Any] | None:
    """Milliseconds of ``optimizer.step()`` alone, with gradients already computed."""
    if work.recipe.training is None:
        return None
    model, batch = work.model().train(), work.batch(work.training_batch)
    optimizer = make_optimizer(model, work.recipe.training)
    model.bits_per_dim(batch).mean().backward()
    return {"unit": "ms", "per": "step", "batch": len(batch), "samples": stopwatch(optimizer.step, work)}


def time_density(work: Work, *, large: bool) -> dict[str, Any]:
    """Milliseconds per image for the bits per dimension of 8-bit images, preprocessing included."""
    size = work.settings.large_batch if large else 1
    model, batch = work.settled() if large else work.model().eval(), work.batch(size)
    with torch.no_grad():
        samples = stopwatch(lambda: model.bits_per_dim(batch), work)
    return {"unit": "ms", "per": "image", "batch": size, "samples": [sample / size for sample in samples]}


def time_sampling(work: Work, *, large: bool) -> dict[str, Any]:
    """Milliseconds per image for sampling 8-bit images."""
    size = work.settings.large_batch if large else 1
    model = work.settled() if large else work.model().eval()
    with torch.no_grad():
        samples = stopwatch(lambda: model.sample(size), work)
    return {"unit": "ms", "per": "image", "batch": size, "samples": [sample / size for sample in samples]}


def time_determinants(work: Work) -> dict[str, Any] | None:
    """Milliseconds for the log-determinant of L U, from U's diagonal, and of a dense matrix, by ``slogdet``."""
    if not isinstance(work.recipe.model, LUNetModel | LearnedLUNetModel):
        return None
    diagonal_ms, slogdet_ms = [], []
    for width in WIDTHS:
        matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(0)).to(work.device)
        diagonal_ms.append(stopwatch(partial(triangular.log_abs_det, matrix), work))
        slogdet_ms.append(stopwatch(partial(torch.linalg.slogdet, matrix), work))
    return {"widths": list(WIDTHS), "diagonal_ms": diagonal_ms, "slogdet_ms": slogdet_ms}


def weigh_training(work: Work) -> dict[str, float | None] | None:
    """Peak memory of a process that takes optimisation steps."""
    if work.recipe.training is None:
        return None
    training = work.recipe.training

    def steps() -> None:
        model, batch = work.model().train(), work.batch(work.training_batch)
        optimizer, generator = make_optimizer(model, training), torch.Generator(work.device)
        for _ in range(3):
            optimise(model, optimizer, batch, generator, training)

    return weigh(steps, work.device)


def weigh_sampling(work: Work) -> dict[str, float | None]:
    """Peak memory of a process that samples the large batch."""

    def draw() -> None:
        with torch.no_grad():
            work.model().eval().sample(work.settings.large_batch)

    return weigh(draw, work.device)


QUANTITIES: dict[str, Callable[[Work], Any]] = {
    "about": about,
    "time_step": time_step,
    "time_optimizer_step": time_optimizer,
    "time_density_small": partial(time_density, large=False),
    "time_density_large": partial(time_density, large=True),
    "time_sampling_small": partial(time_sampling, large=False),
    "time_sampling_large": partial(time_sampling, large=True),
    "time_released_optimizer_step": time_released_optimizer,
    "time_released_density": time_released_density,
    "time_released_sampling": time_released_sampling,
    "weigh_training": weigh_training,
    "weigh_sampling": weigh_sampling,
    "time_determinants": time_determinants,
}
