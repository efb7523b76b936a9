"""Whether latents of test images are standard normal, as a flow trained by maximum likelihood should make them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from lunet import Gaussian, ImageFlow, pixel_bits, standard_normal_log_prob

DIRECTIONS = 200
CONFIDENCE = 0.95
# Where the quantiles are taken that the report draws.
LEVELS = (0.001, 0.01, *np.arange(0.05, 1, 0.05).round(2).tolist(), 0.99, 0.999)


def normality(z: Tensor) -> dict[str, Any]:
    r"""How far latents are from independent standard normal ones, seen in three ways.

    Each feature's moments; the projections onto 200 random directions, each of which would be standard normal; and the
    squared radii :math:`|z|^2`, which would follow a chi-squared distribution with :math:`D` degrees of freedom. The
    distance of distributions is Kolmogorov and Smirnov's, the largest difference of distribution functions.

    Args:
        z: Latents, with shape :math:`(N, D)`.

    Returns:
        ``mean``, ``variance``, ``variance_min`` and ``variance_max`` of the features; ``projection_distance`` and
        ``projection_distance_max``, the median and the largest over the directions; ``radius``, the mean of
        :math:`|z|^2 / D`, and ``radius_distance``; ``critical_distance``, which a standard normal sample of this size
        exceeds once in 20 times; and the ``projection_quantiles`` of all projections together at the ``levels``.
    """
    z = z.double()
    features = z.shape[1]
    directions = torch.randn(features, DIRECTIONS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    projected = (z @ (directions / directions.norm(dim=0)).to(z.device)).cpu().numpy()
    radii = z.square().sum(1).cpu().numpy()
    distances = [float(stats.kstest(column, stats.norm.cdf).statistic) for column in projected.T]
    variances = z.var(0, correction=0)
    return {
        "images": len(z),
        "mean": float(z.mean()),
        "variance": float(variances.mean()),
        "variance_min": float(variances.min()),
        "variance_max": float(variances.max()),
        "projection_distance": float(np.median(distances)),
        "projection_distance_max": max(distances),
        "radius": float(radii.mean()) / features,
        "radius_distance": float(stats.kstest(radii, stats.chi2(features).cdf).statistic),
        "critical_distance": float(stats.kstwo.ppf(CONFIDENCE, len(z))),
        "levels": list(LEVELS),
        "projection_quantiles": np.quantile(projected, LEVELS).tolist(),
    }


class FittedBase:
    """A flow whose latents are drawn from the Gaussian of its training latents, as the released LU-Net code draws them.

    Args:
        model: The trained model, whose device is used.
        images: uint8 training images, with shape (N, H, W), more than there are pixels.
        batch_size: Images a batch.

    Raises:
        ValueError: If the latents have a singular covariance.
    """

    def __init__(self, model: ImageFlow, images: Tensor, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._device = next(iter(model.state_dict().values())).device
        latents = torch.cat([z for z, _ in self._latents(images)])
        self._base = Gaussian(model.flow.features).to(self._device, torch.float64).fit_(latents).eval()

    def score(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Bits per dimension of uint8 images, with shape (N,), and their latents whitened by the base, (N, D)."""
        whitened, bits = [], []
        for z, log_det in self._latents(images):
            white, base_log_det = self._base(z)
            log_prob = standard_normal_log_prob(white) + base_log_det + log_det
            whitened.append(white.cpu())
            bits.append(pixel_bits(log_prob, z.shape[1]).cpu())
        return torch.cat(bits), torch.cat(whitened)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        r"""``n`` 8-bit images, with shape :math:`(n, C, H, W)`."""
        dtype = next(iter(self._model.parameters())).dtype
        return self._model.postprocess(self._model.flow.inverse(self._base.sample(n, generator).to(dtype)))

    def _latents(self, images: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of latents in float64, and the log-determinants of all that leads to them from pixel values."""
        generator = torch.Generator(self._device).manual_seed(0)
        for batch in images.split(self._batch_size):
            y, log_slope = self._model.preprocess(batch.to(self._device), generator)
            z, log_det = self._model.flow(y)
            yield z.double(), (log_det + log_slope).double()
