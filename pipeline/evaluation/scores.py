"""The scores of trained models on the test set."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from lunet import (
    ClassFlows,
    ImageFlow,
    NonFiniteError,
    pixel_bits,
    poster_bits_per_pixel,
    standard_normal_log_prob,
)
from pipeline.core.dataset import Bytes, Dataset
from pipeline.core.params import Evaluate, Recipe
from pipeline.evaluation.latents import FittedBase, SingularBaseError, fitted_normality, normality
from pipeline.evaluation.released_bits import batch_factor, released_code
from pipeline.evaluation.samples import class_accuracy, draw_samples, interpolate, nearest_training_images
from pipeline.training.models import START_IMAGES

RESULTS = (
    "test",
    "per_class",
    "round_trip",
    "latents",
    "fitted_base_bits_per_dim",
    "fitted_latents",
    "interpolations",
    "sample_class_accuracy",
    "classification_accuracy",
)


@torch.no_grad()
def evaluate(
    models: dict[str, ImageFlow], dataset: Dataset, recipe: Recipe, settings: Evaluate, seed: int
) -> tuple[dict[str, Any], dict[str, Bytes]]:
    """Everything that is said of trained models on the test set, and the samples drawn from them.

    With one model a class, each test image is scored by the model of its own class, as in the paper.

    Raises:
        NonFiniteError: If an image has no finite latent or no finite way back, or a sample leaves the numbers' range.

    Returns:
        The fields `RESULTS`, and grids of images with shape (rows, columns, H, W): samples, the nearest training image
        of each, interpolations, and for an LU-Net also samples from a Gaussian fitted to its training latents.
    """
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    bits, released, latents = torch.zeros(len(images)), torch.zeros(len(images)), []
    by_draw = torch.zeros(settings.draws, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for _, rows, model in _by_model(models, labels):
        device = next(iter(model.state_dict().values())).device
        for part in rows.split(settings.batch_size):
            batch = images[part].to(device)
            for draw in range(settings.draws):
                y, log_slope = model.preprocess(batch, generator)
                z, log_det = model.flow(y)
                log_prob = standard_normal_log_prob(z) + log_det
                if draw == 0:
                    latents.append(z.cpu())
                own = pixel_bits(log_prob + log_slope, y.shape[1]).cpu()
                bits[part] += own / settings.draws
                by_draw[draw] += own.double().sum() / len(images)
                released[part] += released_figure(recipe, log_prob, y.shape[1], rows) / settings.draws
    if not bits.isfinite().all():
        raise NonFiniteError(f"{int((~bits.isfinite()).sum())} test images have no finite likelihood")
    samples = draw_samples(models, settings, seed)
    nearest = nearest_training_images(samples, dataset)
    between = interpolate(models, images, labels, settings)

    def likelihood(of: Tensor) -> dict[str, Any]:
        printed = None if recipe.model.kind == "histogram" else float(released[of].double().mean())
        return {"images": int(of.sum()), "bits_per_dim": summary(bits[of]), "poster_bits_per_pixel": printed}

    results = {
        "test": {
            **likelihood(torch.ones_like(labels, dtype=torch.bool)),
            "bits_per_dim_by_draw": by_draw.tolist(),
        },
        "per_class": {str(label): likelihood(labels == label) for label in range(len(dataset.class_names))},
        "round_trip": round_trip(models, images, labels, settings),
        "latents": normality(torch.cat(latents)),
        "fitted_base_bits_per_dim": None,
        "fitted_latents": None,
        "interpolations": len(between),
        "sample_class_accuracy": class_accuracy(nearest, dataset) if recipe.classes == "each" else None,
        "classification_accuracy": (
            classification_accuracy(models, images, labels, settings) if recipe.classes == "each" else None
        ),
    }
    nearest_images = dataset.train_images[nearest.numpy()]
    grids = {"samples": samples.numpy(), "nearest": nearest_images, "interpolations": between.numpy()}
    if recipe.model.kind == "lunet":
        with contextlib.suppress(SingularBaseError):
            fitted, grids["fitted_base"] = from_fitted_bases(models, dataset, settings, seed)
            results |= fitted
    return results, grids


def released_figure(recipe: Recipe, log_prob: Tensor, features: int, rows: Tensor) -> Tensor:
    """What the released code would print for these images, in its own currency."""
    if released_code(recipe) == "lunet":
        return poster_bits_per_pixel(log_prob, features, code="lunet").cpu()
    factor = batch_factor(len(rows))
    return poster_bits_per_pixel(log_prob, features, code="realnvp", batch_factor=factor).cpu()


def summary(bits: Tensor) -> dict[str, float]:
    """Mean, median, spread and tail of the bits per dimension of images, with shape (N,)."""
    values = bits.double()
    worst = values.sort(descending=True).values[: max(1, len(values) // 100)]
    return {
        "mean": float(values.mean()),
        "median": float(values.median()),
        "std": float(values.std(correction=0)),
        "min": float(values.min()),
        "max": float(values.max()),
        "worst_percent_share": float(worst.sum() / values.sum()),
    }


def round_trip(models: dict[str, ImageFlow], images: Tensor, labels: Tensor, settings: Evaluate) -> dict[str, float]:
    """How exactly the first images come back from their latents, in latent space and in 8-bit pixels."""
    images, labels = images[: settings.round_trip_images], labels[: settings.round_trip_images]
    largest, exact, within_one = 0.0, 0, 0
    for _, rows, model in _by_model(models, labels):
        device = next(iter(model.state_dict().values())).device
        for part in rows.split(settings.batch_size):
            y, _ = model.preprocess(images[part].to(device), torch.Generator(device).manual_seed(0))
            z, _ = model.flow(y)
            back = model.flow.inverse(z)
            again, _ = model.flow(back)
            largest = max(largest, float((again - z).abs().max()))
            off = (model.postprocess(back).cpu().flatten().int() - images[part].flatten().int()).abs()
            exact, within_one = exact + int((off == 0).sum()), within_one + int((off <= 1).sum())
    return {
        "images": len(images),
        "latent_max_error": largest,
        "pixels_exact": exact / images.numel(),
        "pixels_within_one": within_one / images.numel(),
    }


def from_fitted_bases(
    models: dict[str, ImageFlow], dataset: Dataset, settings: Evaluate, seed: int
) -> tuple[dict[str, Any], Bytes]:
    """How well test images and their latents agree with each model's `FittedBase`, and samples from these bases.

    Raises:
        SingularBaseError: If a model has no such base.

    Returns:
        The fields ``fitted_base_bits_per_dim``, a mean over the test images, and ``fitted_latents``, and the samples.
    """
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    train_images, train_labels = torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels)
    bases, bits, latents = {}, [], []
    for key, rows, model in _by_model(models, labels):
        own = train_images if key == "all" else train_images[train_labels == int(key)]
        bases[key] = FittedBase(model, own[:START_IMAGES], settings.batch_size)
        scored, standardised = bases[key].score(images[rows])
        bits.append(scored)
        latents.append((standardised, bases[key].images))
    fitted = {
        "fitted_base_bits_per_dim": float(torch.cat(bits).mean()),
        "fitted_latents": fitted_normality(latents),
    }
    return fitted, draw_samples(bases, settings, seed).numpy()


def classification_accuracy(models: dict[str, ImageFlow], images: Tensor, labels: Tensor, settings: Evaluate) -> float:
    """The share of test images that Bayes' rule, with all classes alike, gives to their own class."""
    classifier = ClassFlows(models)
    device = next(iter(classifier.state_dict().values())).device
    generator = torch.Generator(device).manual_seed(0)
    names = torch.tensor([int(name) for name in classifier.names])
    found = [
        names[classifier.classify(batch.to(device), generator=generator).cpu()]
        for batch in images.split(settings.batch_size)
    ]
    return float((torch.cat(found) == labels).double().mean())


def _by_model(models: dict[str, ImageFlow], labels: Tensor) -> Iterator[tuple[str, Tensor, ImageFlow]]:
    """Each model with its name and the indices of the images it answers for."""
    for key, model in models.items():
        rows = torch.arange(len(labels)) if key == "all" else (labels == int(key)).nonzero().flatten()
        if len(rows):
            yield key, rows, model
