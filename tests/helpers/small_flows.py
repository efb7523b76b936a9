"""Small flows with random weights."""

from __future__ import annotations

import torch

from lunet import ImageFlow, LUNet
from pipeline.core.params import Evaluate

SETTINGS = Evaluate(draws=3, batch_size=16, sample_rows=2, sample_columns=5, round_trip_images=10)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def flow(seed: int = 0) -> ImageFlow:
    """A flow of 4x4 images that is not the identity."""
    torch.manual_seed(seed)
    lunet = LUNet(16, 3)
    with torch.no_grad():
        for layer in lunet.layers:
            layer.lu.add_(0.1 * torch.randn(16, 16))
            layer.bias.add_(0.3 * torch.randn(16))
    return ImageFlow(lunet, (1, 4, 4)).eval()
