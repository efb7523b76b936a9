"""What is measured of an architecture: times and memory, each quantity a function of the work to do."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import pynvml
import torch
from torch import Tensor

from lunet import ImageFlow, triangular
from pipeline.environment import choose_device, describe_environment, is_out_of_memory, keep_freed_memory
from pipeline.models import build
from pipeline.params import LearnedLUNetModel, LUNetModel, Measure, Params, Recipe
from pipeline.train import make_optimizer, optimise

MINIMUM_REPETITIONS = 5
WIDTHS = (64, 128, 256, 512, 1024)
Samples = list[float]


@dataclass(frozen=True)
class Work:
    """What a measuring process is given: the architecture, images with shape (N, H, W), the device and the settings."""

    recipe: Recipe
    images: Tensor
    device: torch.device
    settings: Measure

    def model(self) -> ImageFlow:
        """The untrained model on the device; times and memory do not depend on what it has learnt."""
        torch.manual_seed(0)
        return self.architecture().to(self.device)

    def architecture(self) -> ImageFlow:
        """The untrained model, still in the machine's memory."""
        height, width = self.images.shape[1:]
        return build(self.recipe, (1, height, width))

    def batch(self, size: int) -> Tensor:
        """``size`` images on the device."""
        return self.images[torch.arange(size) % len(self.images)].to(self.device)

    @property
    def training_batch(self) -> int:
        """The batch size of the recipe's training; 0 where nothing is trained by steps."""
        return 0 if self.recipe.training is None else self.recipe.training.batch_size


def take(quantity: str, params: Params, recipe: str, images: np.ndarray[Any, np.dtype[np.uint8]]) -> Any:
    """Take one of `QUANTITIES`, or ``about``, for a recipe and uint8 images of shape (N, H, W).

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
    """Milliseconds of ``optimizer.step()`` alone, with gradients at hand."""
    if work.recipe.training is None:
        return None
    model, batch = work.model().train(), work.batch(work.training_batch)
    optimizer = make_optimizer(model, work.recipe.training)
    model.bits_per_dim(batch).mean().backward()
    return {"unit": "ms", "per": "step", "batch": len(batch), "samples": stopwatch(optimizer.step, work)}


def time_density(work: Work, *, large: bool) -> dict[str, Any]:
    """Milliseconds an image for the bits per dimension of 8-bit images, preprocessing included."""
    size = work.settings.large_batch if large else 1
    model, batch = work.model().eval(), work.batch(size)
    with torch.no_grad():
        samples = stopwatch(lambda: model.bits_per_dim(batch), work)
    return {"unit": "ms", "per": "image", "batch": size, "samples": [sample / size for sample in samples]}


def time_sampling(work: Work, *, large: bool) -> dict[str, Any]:
    """Milliseconds an image for drawing 8-bit images."""
    size = work.settings.large_batch if large else 1
    model = work.model().eval()
    with torch.no_grad():
        samples = stopwatch(lambda: model.sample(size), work)
    return {"unit": "ms", "per": "image", "batch": size, "samples": [sample / size for sample in samples]}


def time_determinants(work: Work) -> dict[str, Any] | None:
    """Milliseconds of the log-determinant of L U, from U's diagonal, and of a dense matrix, by ``slogdet``."""
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
    """Peak memory of a process that draws the large batch."""

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
    "weigh_training": weigh_training,
    "weigh_sampling": weigh_sampling,
    "time_determinants": time_determinants,
}


def stopwatch(function: Callable[[], object], work: Work) -> Samples:
    """Milliseconds of each call, after the warm-up; the device has finished before each reading of the clock.

    Stops early once ``settings.seconds`` have passed and the least number of repetitions is done.
    """
    for _ in range(work.settings.warmup):
        function()
    _synchronize(work.device)
    samples: Samples = []
    gc.disable()
    begin = time.perf_counter()
    while len(samples) < work.settings.repetitions:
        start = time.perf_counter()
        function()
        _synchronize(work.device)
        end = time.perf_counter()
        samples.append(1000 * (end - start))
        if len(samples) >= MINIMUM_REPETITIONS and end - begin > work.settings.seconds:
            break
    gc.enable()
    return samples


def weigh(function: Callable[[], None], device: torch.device) -> dict[str, float | None]:
    """MiB of the process before and at its peak, and on a GPU what the allocator and the driver saw."""
    start = psutil.Process().memory_info().rss / 2**20
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    function()
    _synchronize(device)
    on_gpu = device.type == "cuda"
    return {
        "process_start_mib": round(start, 2),
        "process_peak_mib": round(_process_peak_mib(), 2),
        "allocated_peak_mib": torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else None,
        "reserved_peak_mib": torch.cuda.max_memory_reserved(device) / 2**20 if on_gpu else None,
        "gpu_process_mib": _gpu_process_mib(device) if on_gpu else None,
    }


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _process_peak_mib() -> float:
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _gpu_process_mib(device: torch.device) -> float | None:
    """What the driver books for this process, its context included; ``None`` where it does not tell processes apart."""
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        booked = {process.pid: process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
        used = booked.get(os.getpid())
        return None if used is None else used / 2**20
    except pynvml.NVMLError:
        return None
