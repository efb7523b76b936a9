"""The round trip that every trained flow must pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from lunet import load_flow


def assert_images_come_back(flow: Path, images: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Assert that a trained flow restores images, in both precisions."""
    model, pixels = load_flow(flow), torch.from_numpy(images)
    single, double = model.diagnostics(pixels), model.double().diagnostics(pixels)
    assert single.pixels_exact >= 0.9999
    assert single.pixels_within_one == 1
    assert single.latent_error < 1e-4
    assert double.pixels_exact == 1
    assert double.latent_error < 1e-11
