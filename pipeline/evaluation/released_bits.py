"""Converts the figures that the released programs print to bits per pixel of the 8-bit image.

Both programs omit the Jacobian of the logit. Its mean, in bits per pixel, depends only on the images and the margin, so
the conversion is the same for every model.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.special import xlogy

from pipeline.core.dataset import Bytes, Dataset
from pipeline.core.params import Recipe

Code = Literal["lunet", "realnvp"]
Margin = tuple[float, float]

MARGINS: dict[Code, Margin] = {"lunet": (5e-6, 5e-6), "realnvp": (0.05, 0.0)}
# The batch size of the released RealNVP's evaluation.
BATCH = 128


def logit_bits(images: Bytes, margin: Margin) -> float:
    r"""The mean of :math:`\log_2 |d \text{logit} / d v|` over pixels and, exactly, over dequantisation noise.

    Args:
        images: 8-bit images, with any shape.
        margin: The distances that the logit's argument keeps from 0 and from 1.
    """
    low, high = margin
    scale = 1 - low - high
    edges = np.arange(257) / 256
    ends = np.stack([low + scale * edges, high + scale * (1 - edges)])
    mean_log_p, mean_log_q = np.diff(xlogy(ends, ends) - ends) / np.diff(ends)
    bits = (math.log(scale) - mean_log_p - mean_log_q) / math.log(2)
    return float(np.bincount(images.ravel(), minlength=256) @ bits / images.size)


def released_code(recipe: Recipe) -> Code:
    """The program whose accounting a recipe's printed figure follows: RealNVP's for RealNVPs, else LU-Net's."""
    return "realnvp" if recipe.model.kind.startswith("realnvp") else "lunet"


def batch_factor(images: int) -> float:
    """The factor on a likelihood in the released RealNVP's mean, which divides a short last batch by the full size."""
    return images / (BATCH * math.ceil(images / BATCH))


def to_bits_per_dim(printed: float, code: Code, logit: float, factor: float = 1.0) -> float:
    """Convert a printed figure to bits per pixel of the 8-bit image.

    Args:
        printed: The figure that the program prints.
        code: The program.
        logit: The data's `logit_bits` for the program's margin.
        factor: The `batch_factor` of the test images; for RealNVP only.
    """
    density = printed + 0.5 if code == "lunet" else (printed - math.log2(255)) / factor
    return density + 8 - logit


def poster_in_bits(dataset: Dataset, code: Code, printed: float) -> dict[str, float]:
    """Convert a figure of the poster to bits per pixel, as if the program had printed it for this data set.

    Returns:
        ``logit_bits``, the mean of the logit's Jacobian, and the ``least`` and ``most`` that the figure means, which
        differ for RealNVP since its classes have different batch factors.
    """
    logit = logit_bits(dataset.test_images, MARGINS[code])
    factors = [batch_factor(int(n)) for n in np.bincount(dataset.test_labels) if n]
    values = [to_bits_per_dim(printed, code, logit, factor) for factor in factors]
    return {"logit_bits": logit, "least": min(values), "most": max(values)}
