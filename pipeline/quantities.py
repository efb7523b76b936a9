"""What is measured of an architecture: times and memory, each quantity a function of the work to do."""

from __future__ import annotations

import gc
import importlib
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
from torch.utils.data import DataLoader, TensorDataset

from lunet import ImageFlow, LUNet, triangular
from pipeline.environment import choose_device, describe_environment, is_out_of_memory, keep_freed_memory
from pipeline.models import build
from pipeline.objectives import loss_and_bits
from pipeline.params import LearnedLUNetModel, LUNetModel, Measure, Params, Recipe
from pipeline.train import make_optimizer, optimise

MINIMUM_REPETITIONS = 5
SETTLING_ROWS = 4  # for each feature
WIDTHS = (64, 128, 256, 512, 1024)
# The released code's batch sizes, by which its stopwatch divides; its numbers of samples a call; the points to which it
# fits the inverse of the activation; and how many images a CPU is given in place of all, which would take minutes.
RELEASED_BATCH = {"lunet": 256, "realnvp": 128, "realnvp_released": 128}
RELEASED_SAMPLES = {"lunet": 100, "realnvp": 64, "realnvp_released": 64}
RELEASED_POINTS = (-1000, 1000.001, 0.001)
CPU_IMAGES = 1024
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

    @torch.no_grad()
    def settled(self) -> ImageFlow:
        """The untrained model in eval mode, after so many rows that an LU-Net has folded its layers."""
        model = self.model().eval()
        if isinstance(model.flow, LUNet):
            for rows in model.flow.sample(SETTLING_ROWS * model.flow.features).split(self.settings.large_batch):
                model.flow(rows)
        return model

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
    model, batch = work.settled() if large else work.model().eval(), work.batch(size)
    with torch.no_grad():
        samples = stopwatch(lambda: model.bits_per_dim(batch), work)
    return {"unit": "ms", "per": "image", "batch": size, "samples": [sample / size for sample in samples]}


def time_sampling(work: Work, *, large: bool) -> dict[str, Any]:
    """Milliseconds an image for drawing 8-bit images."""
    size = work.settings.large_batch if large else 1
    model = work.settled() if large else work.model().eval()
    with torch.no_grad():
        samples = stopwatch(lambda: model.sample(size), work)
    return {"unit": "ms", "per": "image", "batch": size, "samples": [sample / size for sample in samples]}


def time_released_optimizer(work: Work) -> dict[str, Any] | None:
    """What the released stopwatch calls a step: the first ``optimizer.step()`` alone, not waited for."""
    training = work.recipe.training
    if training is None or work.recipe.model.kind not in RELEASED_BATCH:
        return None
    model, batch = work.model().train(), work.batch(work.training_batch)
    optimizer = make_optimizer(model, training)
    generator = torch.Generator(work.device)
    loss_and_bits(model, batch, generator, training.objective, training.batch_size)[0].backward()
    if training.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
    return {"unit": "ms", "per": "step", "batch": len(batch), "samples": [_unsynchronised(optimizer.step)]}


def time_released_density(work: Work) -> dict[str, Any] | None:
    """What the released stopwatch calls the density of an image: a pass over all images over the *batch size*.

    The images are loaded one by one in this process and nothing waits for the device. A CPU is given the first
    `CPU_IMAGES`, and the time of all batches but the first, which is slow for once, is scaled to all images;
    ``images`` says how many were timed, ``of`` how many there are.
    """
    size = RELEASED_BATCH.get(work.recipe.model.kind)
    if size is None:
        return None
    model, total = work.model().eval(), len(work.images)
    count = total if work.device.type == "cuda" else min(total, CPU_IMAGES)
    batches = iter(DataLoader(TensorDataset(work.images[:count]), batch_size=size))

    def one_batch() -> None:
        (batch,) = next(batches)
        model.bits_per_dim(batch.to(work.device))

    def the_others() -> None:
        for _ in range(size, count, size):
            one_batch()

    with torch.no_grad():
        first, others = _unsynchronised(one_batch), _unsynchronised(the_others)
    passed = first + (others * (total - size) / (count - size) if count > size else 0)
    return {"unit": "ms", "per": "image", "batch": size, "samples": [passed / size], "images": count, "of": total}


def time_released_sampling(work: Work) -> dict[str, Any] | None:
    """What the released stopwatch calls the sampling of an image: the first call, not waited for, over its images.

    LU-Net's activations are inverted on the CPU, each by a spline that is fitted anew, and its matrices by a general
    solver; see `sample_as_released`. Its layers are standardised before: finding values among the spline's points takes
    the longer the farther apart they lie, and without it they lie farther apart than in a trained net.
    """
    count = RELEASED_SAMPLES.get(work.recipe.model.kind)
    if count is None:
        return None
    model = work.model().eval()
    importlib.import_module("scipy.interpolate")  # no part of the call
    with torch.no_grad():
        if isinstance(model.flow, LUNet):
            model.flow.standardise_(model.preprocess(work.batch(len(work.images)))[0])
            sample = _unsynchronised(partial(sample_as_released, model.flow, count))
        else:
            sample = _unsynchronised(partial(model.sample, count))
    return {"unit": "ms", "per": "image", "batch": count, "samples": [sample / count]}


def sample_as_released(flow: LUNet, count: int) -> Tensor:
    """Samples of an LU-Net with leaky softplus, of shape (count, D), found in the way of the released code.

    Cost: for each activation a spline through 2,000,001 points, about a second.
    """
    from scipy.interpolate import splev, splrep  # here, so that it adds nothing to the memory of other quantities

    weights = flow.layers[0].lu
    x = torch.randn(count, flow.features, dtype=weights.dtype, device=weights.device)
    for layer in reversed(flow.layers):
        if layer.activation is not None:
            arguments = np.arange(*RELEASED_POINTS)
            spline = splrep(layer.activation(torch.from_numpy(arguments))[0].numpy(), arguments, s=0)
            x = torch.from_numpy(splev(x.cpu().numpy(), spline)).to(x)
        lower, upper = triangular.unpack(layer.lu)
        x = torch.linalg.solve(upper, torch.linalg.solve(lower, (x - layer.bias).T)).T
    return x


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
    "time_released_optimizer_step": time_released_optimizer,
    "time_released_density": time_released_density,
    "time_released_sampling": time_released_sampling,
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


def _unsynchronised(function: Callable[[], object]) -> float:
    """Milliseconds until a single call returns, its first one; what a GPU is still doing then is not waited for."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def weigh(function: Callable[[], None], device: torch.device) -> dict[str, float | None]:
    """MiB of the process before and at its peak, and on a GPU what the allocator and the driver saw."""
    start = psutil.Process().memory_info().rss / 2**20
    used = _gpu_used_mib() if device.type == "cuda" else None
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
        "gpu_process_mib": _gpu_process_mib(device, used) if on_gpu else None,
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


def _gpu_process_mib(device: torch.device, used_before: float | None) -> float | None:
    """What the driver books for this process, its context included.

    Within a container the driver often does not tell processes apart; then it is what the use of the machine's only
    GPU has grown by, which is the same as long as nothing else runs there. None where neither is known.
    """
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        booked = {process.pid: process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    except pynvml.NVMLError:
        booked = {}
    if (own := booked.get(os.getpid())) is not None:
        return float(own) / 2**20
    used = _gpu_used_mib()
    return None if used is None or used_before is None or used <= used_before else used - used_before


def _gpu_used_mib() -> float | None:
    """What is in use of the memory of the machine's only GPU; None where there are several, or the driver is mute."""
    try:
        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() != 1:
            return None
        return float(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used) / 2**20
    except pynvml.NVMLError:
        return None
