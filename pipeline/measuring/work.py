"""The model and images of a measurement, and the stopwatch."""

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
    """The input of a measuring process: the recipe, images with shape (N, H, W), the device and the settings."""

    recipe: Recipe
    images: Tensor
    device: torch.device
    settings: Measure

    def model(self) -> ImageFlow:
        """The untrained model on the device; times and memory do not depend on its weights."""
        torch.manual_seed(0)
        return self.architecture().to(self.device)

    @torch.no_grad()
    def settled(self) -> ImageFlow:
        """The untrained model in eval mode, after enough rows for an LU-Net to fold its layers."""
        model = self.model().eval()
        if isinstance(model.flow, LUNet):
            for rows in model.flow.sample(SETTLING_ROWS * model.flow.features).split(self.settings.large_batch):
                model.flow(rows)
        return model

    def architecture(self) -> ImageFlow:
        """The untrained model on the CPU."""
        height, width = self.images.shape[1:]
        return build(self.recipe, (1, height, width))

    def batch(self, size: int) -> Tensor:
        """``size`` images on the device, repeated if there are fewer."""
        return self.images[torch.arange(size) % len(self.images)].to(self.device)

    @property
    def training_batch(self) -> int:
        """The batch size of the recipe's training; 0 for models fitted in closed form."""
        return 0 if self.recipe.training is None else self.recipe.training.batch_size


def stopwatch(function: Callable[[], object], work: Work) -> Samples:
    """Milliseconds of each call after the warm-up; the device is synchronised before each reading of the clock.

    Stops early once ``settings.seconds`` have passed and `MINIMUM_REPETITIONS` are done.
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
    """Milliseconds until the first call returns, without waiting for a GPU to finish."""
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished; no effect on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
