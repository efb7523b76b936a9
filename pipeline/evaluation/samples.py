"""Samples of a trained model, their nearest training images, and interpolations between test images."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from scipy.stats import beta
from torch import Tensor

from lunet import ImageFlow, NonFiniteError
from lunet.pixels import inverse_logit
from pipeline.core.dataset import Dataset
from pipeline.core.params import Evaluate
from pipeline.evaluation.trained_run import Models, model_for

INTERPOLATIONS = 5
NEAREST_BATCH = 1000  # samples whose distances from all training images are in memory together
Sampler = Callable[[int, torch.Generator], Tensor]


def draw_values(model: ImageFlow, n: int, noise: torch.Generator) -> Tensor:
    """``n`` samples of a model before they are rounded to 8 bits, in the order of pixels, with shape (n, D)."""
    y = model.flow.sample(n, noise)
    return (y if model.margin is None else inverse_logit(y, *model.margin)).cpu()


def grid_of(samples: Sequence[Tensor], settings: Evaluate) -> Tensor:
    """The first samples, unselected: a row for each of several models or classes, or rows of one; (R, C, H, W)."""
    columns = settings.sample_columns
    count = columns if len(samples) > 1 else settings.sample_rows * columns
    return torch.cat([images[:count] for images in samples]).flatten(0, 1).unflatten(0, (-1, columns))


def nearest_training_images(samples: Tensor, dataset: Dataset) -> Tensor:
    """Find the training image nearest to each sample, by the Euclidean distance between pixels.

    Args:
        samples: 8-bit images, with shape (..., H, W).
        dataset: The data set.

    Returns:
        Indices, with the leading shape of ``samples``.
    """
    train = torch.from_numpy(dataset.train_images).flatten(1).float()
    rows = samples.flatten(-2).flatten(0, -2).float().split(NEAREST_BATCH)
    return torch.cat([torch.cdist(part, train).argmin(1) for part in rows]).unflatten(0, samples.shape[:-2])


def class_samples(samples: Sequence[Tensor], dataset: Dataset) -> dict[str, Any]:
    """The fields of a `ClassSamples` for 8-bit images of each class, of shape (n, 1, H, W)."""
    labels = torch.from_numpy(dataset.train_labels)[nearest_training_images(torch.stack([*samples])[:, :, 0], dataset)]
    right = (labels == torch.arange(len(samples))[:, None]).sum(1)
    return {"of_each": labels.shape[1], "right": right.tolist()}


def outside_cube(values: Sequence[Tensor]) -> dict[str, Any]:
    r"""How much of each model's samples lies outside the values that images have, and what that costs.

    A density within the cube alone would be larger by :math:`1 / P`, with :math:`P` the mass inside, so the cost is
    :math:`-\log_2(P) / D`. ``bits_least`` and ``bits_most`` are those of Clopper and Pearson's bounds on :math:`P`,
    95 % each, from the number of samples wholly inside. Of a model without such a sample, ``bits_most`` is an estimate
    instead, by the shares of pixels inside: the cost if pixels left the cube independently.

    Args:
        values: The samples of each model before rounding, with shape (n, D); with several, costs are means over them.

    Returns:
        The fields of an `OutsideCube`.
    """
    least, most, whole, shares = list[float](), list[float](), list[int](), list[float]()
    for sample in values:
        n, features = sample.shape
        inside = (sample >= 0) & (sample <= 1)
        whole.append(int(inside.all(1).sum()))
        shares.append(1 - float(inside.double().mean()))
        largest = float(beta.ppf(0.95, whole[-1] + 1, n - whole[-1])) if whole[-1] < n else 1.0
        least.append(-math.log2(largest) / features)
        if whole[-1]:
            most.append(-math.log2(float(beta.ppf(0.05, whole[-1], n - whole[-1] + 1))) / features)
        else:
            by_pixel = inside.double().mean(0).clamp(min=0.5 / n)  # so that no pixel is thought to be always outside
            most.append(max(least[-1], -float(by_pixel.log2().sum()) / features))
    return {
        "samples": sum(map(len, values)),
        "pixels": sum(shares) / len(shares),
        "images_inside": sum(whole),
        "bits_least": sum(least) / len(least),
        "bits_most": sum(most) / len(most),
    }


def interpolate(models: Models, images: Tensor, labels: Tensor, settings: Evaluate, noise: torch.Generator) -> Tensor:
    """Interpolate in latent space between the first pairs of successive test images of different classes.

    With one model for each class, the model of the first image's class is used. Pairs with a latent or an image that is
    not finite are left out.

    Returns:
        8-bit images, with shape (pairs, sample_columns, H, W); each row starts and ends with a test image.
    """
    rows = [images.new_zeros((0, settings.sample_columns, *images.shape[1:]))]
    for index in different_pairs(labels, INTERPOLATIONS):
        model = model_for(models, int(labels[index]))
        with contextlib.suppress(NonFiniteError):
            pair = images[index : index + 2].to(model.device)
            z = model.score(pair, noise).latents
            path = spherical(z[0], z[1], settings.sample_columns)
            rows.append(model.postprocess(model.flow.inverse(path)).cpu().flatten(0, 1)[None])
    return torch.cat(rows)


def different_pairs(labels: Tensor, n: int) -> list[int]:
    """The first ``n`` even indices at which a label differs from the next one."""
    return [index for index in range(0, len(labels) - 1, 2) if labels[index] != labels[index + 1]][:n]


def spherical(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """Latents from ``start`` to ``end`` (D,), both included, with equal angles and linear lengths; shape (steps, D).

    Normal latents lie near a sphere of radius sqrt(D), which a straight line between them would leave.
    """
    share = torch.linspace(0, 1, steps, dtype=torch.float64, device=start.device)[:, None]
    ends = torch.stack([start, end]).double()
    lengths = ends.norm(dim=1, keepdim=True)
    first, second = ends / lengths
    angle = (first @ second).clamp(-1, 1).acos()
    path = (((1 - share) * angle).sin() * first + (share * angle).sin() * second) / angle.sin()
    path = path * ((1 - share) * lengths[0] + share * lengths[1])
    # The ends are exact, so that they decode to the images. With parallel latents, the path is a straight line.
    straight = (1 - share) * ends[0] + share * ends[1]
    exact = (share == 0) | (share == 1) | ~path.isfinite().all()
    return torch.where(exact, straight, path).to(start.dtype)
