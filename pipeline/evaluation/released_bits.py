"""From the figures that the released programs print to bits per pixel of the 8-bit image, computed from the data.

Both programs leave out the logit's Jacobian. Its mean, in bits a pixel, is a property of images and margin alone, so it
turns any printed figure into an honest one, whatever the model.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.special import xlogy

from pipeline.core.dataset import Bytes, Dataset
from pipeline.core.params import RealNVPModel, Recipe, ReleasedRealNVPModel

Code = Literal["lunet", "realnvp"]
Margin = tuple[float, float]

MARGINS: dict[Code, Margin] = {"lunet": (5e-6, 5e-6), "realnvp": (0.05, 0.0)}
# Images in a batch of the released RealNVP's evaluation.
BATCH = 128


def logit_bits(images: Bytes, margin: Margin) -> float:
    r"""The mean of :math:`\log_2 |d \text{logit} / d v|` over pixels and, exactly, over the dequantisation noise.

    Args:
        images: 8-bit images, with any shape.
        margin: What the logit keeps clear of 0 and of 1.
    """
    low, high = margin
    scale = 1 - low - high
    edges = np.arange(257) / 256
    bits = (math.log(scale) - _mean_log(low + scale * edges) - _mean_log(high + scale * (1 - edges))) / math.log(2)
    return float(np.bincount(images.ravel(), minlength=256) @ bits / images.size)


def released_code(recipe: Recipe) -> Code:
    """The program whose accounting a recipe's printed figure follows: LU-Net's for all but the RealNVPs."""
    return "realnvp" if isinstance(recipe.model, RealNVPModel | ReleasedRealNVPModel) else "lunet"


def batch_factor(images: int) -> float:
    """What the released RealNVP's mean multiplies a likelihood by: it divides a short last batch by the full size."""
    return images / (BATCH * math.ceil(images / BATCH))


def to_bits_per_dim(printed: float, code: Code, logit: float, factor: float = 1.0) -> float:
    """Bits per pixel of the 8-bit image from a printed figure.

    Args:
        printed: What the program prints.
        code: Which program.
        logit: The data's `logit_bits` for the program's margin.
        factor: The `batch_factor` of the test images, for RealNVP's.
    """
    density = printed + 0.5 if code == "lunet" else (printed - math.log2(255)) / factor
    return density + 8 - logit


def poster_in_bits(dataset: Dataset, code: Code, printed: float) -> dict[str, float]:
    """What a figure of the poster would be in bits per pixel if it had been printed for a data set.

    Returns:
        The mean of the logit's Jacobian under ``logit_bits``, and the figure's ``least`` and ``most``, which differ for
        RealNVP by the batch factors of the classes.
    """
    logit = logit_bits(dataset.test_images, MARGINS[code])
    factors = [batch_factor(int(n)) for n in np.bincount(dataset.test_labels) if n]
    values = [to_bits_per_dim(printed, code, logit, factor) for factor in factors]
    return {"logit_bits": logit, "least": min(values), "most": max(values)}


def _mean_log(edges: np.ndarray[tuple[int], np.dtype[np.float64]]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The mean of the logarithm between neighbouring edges."""
    return np.diff(xlogy(edges, edges) - edges) / np.diff(edges)
