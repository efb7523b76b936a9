"""The work that is measured, and the stopwatch."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lunet import ImageFlow, LUNet
from pipeline.core.params import Measure, Recipe
from pipeline.training.models import build

MINIMUM_REPETITIONS = 5
SETTLING_ROWS = 4  # for each feature
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


def stopwatch(function: Callable[[], object], work: Work) -> Samples:
    """Milliseconds of each call, after the warm-up; the device has finished before each reading of the clock.

    Stops early once ``settings.seconds`` have passed and the least number of repetitions is done.
    """
    for _ in range(work.settings.warmup):
        function()
    synchronize(work.device)
    samples: Samples = []
    gc.disable()
    begin = time.perf_counter()
    while len(samples) < work.settings.repetitions:
        start = time.perf_counter()
        function()
        synchronize(work.device)
        end = time.perf_counter()
        samples.append(1000 * (end - start))
        if len(samples) >= MINIMUM_REPETITIONS and end - begin > work.settings.seconds:
            break
    gc.enable()
    return samples


def unsynchronised(function: Callable[[], object]) -> float:
    """Milliseconds until a single call returns, its first one; what a GPU is still doing then is not waited for."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
