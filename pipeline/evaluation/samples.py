"""Samples of a trained model, their nearest training images, and interpolations between test images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lunet import NonFiniteError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Evaluate
from pipeline.evaluation.trained_run import Models, model_for

INTERPOLATIONS = 5
Sampler = Callable[[int, torch.Generator], Tensor]


def draw_samples(samplers: Sequence[Sampler], settings: Evaluate, generator: torch.Generator) -> Tensor:
    """The first samples of each model, unselected: one row for each class, or rows of one model; shape (R, C, H, W)."""
    columns = settings.sample_columns
    count = columns if len(samplers) > 1 else settings.sample_rows * columns
    samples = torch.cat([sample(count, generator).cpu() for sample in samplers])
    return samples.flatten(0, 1).unflatten(0, (-1, columns))


def nearest_training_images(samples: Tensor, dataset: Dataset) -> Tensor:
    """Find the training image nearest to each sample, by the Euclidean distance between pixels.

    Args:
        samples: 8-bit images, with shape (R, C, H, W).
        dataset: The data set.

    Returns:
        Indices, with shape (R, C).
    """
    train = torch.from_numpy(dataset.train_images).flatten(1).float()
    nearest = torch.cdist(samples.flatten(0, 1).flatten(1).float(), train).argmin(1)
    return nearest.unflatten(0, samples.shape[:2])


def class_accuracy(nearest: Tensor, dataset: Dataset) -> float:
    """The share of samples whose nearest training image, an index in ``nearest`` (R, C), has the class of their row."""
    labels = torch.from_numpy(dataset.train_labels)[nearest]
    return float((labels == torch.arange(len(nearest))[:, None]).double().mean())


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
