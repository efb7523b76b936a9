"""The model and images of a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lunet import ImageFlow, LUNet
from pipeline.core.params import Measure, Recipe, Training
from pipeline.measuring.stopwatch import Call, sample_times
from pipeline.training.models import build
from pipeline.training.objectives import loss_and_bits
from pipeline.training.optimisation import make_optimizer

SETTLING_ROWS = 4  # for each feature


@dataclass(frozen=True)
class Work:
    """The input of a measuring process: the recipe, images with shape (N, H, W), the device and the settings.

    ``grid`` contains the recipes of the whole grid.
    """

    recipe: Recipe
    images: Tensor
    device: torch.device
    settings: Measure
    grid: Sequence[Recipe] = ()

    def architecture(self) -> ImageFlow:
        """The untrained model on the CPU."""
        height, width = self.images.shape[1:]
        return build(self.recipe, (1, height, width))

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

    def batch(self, size: int) -> Tensor:
        """``size`` images on the device, repeated if there are fewer."""
        return self.images[torch.arange(size) % len(self.images)].to(self.device)

    def first_update(self, training: Training) -> Call:
        """``optimizer.step`` of a training, with the gradients of its first batch already computed."""
        model, batch = self.model().train(), self.batch(training.batch_size)
        optimizer, generator = make_optimizer(model, training), torch.Generator(self.device)
        loss_and_bits(model, batch, generator, training.objective, training.batch_size)[0].backward()
        if training.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip_norm)
        return optimizer.step

    def sample_times(self, call: Call) -> list[float]:
        """Milliseconds of each call, as the settings say; see `pipeline.measuring.stopwatch`."""
        settings = self.settings
        return sample_times(call, self.device, settings.warmup, settings.repetitions, settings.seconds)
