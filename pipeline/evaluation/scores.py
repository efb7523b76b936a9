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
    """Evaluate trained models on the test set, and draw samples from them.

    With one model for each class, each test image is scored by the model of its class, as in the paper.

    Raises:
        NonFiniteError: If a latent, a reconstruction or a sample is not finite.

    Returns:
        The fields `RESULTS`, and grids of images with shape (rows, columns, H, W): samples, their nearest training
        images, interpolations, and for an LU-Net also samples from a Gaussian fitted to its training latents.
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
                batch_bits = pixel_bits(log_prob + log_slope, y.shape[1]).cpu()
                bits[part] += batch_bits / settings.draws
                by_draw[draw] += batch_bits.double().sum() / len(images)
                released[part] += released_figure(recipe, log_prob, y.shape[1], rows) / settings.draws
    if not bits.isfinite().all():
        raise NonFiniteError(f"{int((~bits.isfinite()).sum())} test images have no finite likelihood")
    samples = draw_samples(models, settings, seed)
    nearest = nearest_training_images(samples, dataset)
    interpolations = interpolate(models, images, labels, settings)

    def likelihood(mask: Tensor) -> dict[str, Any]:
        printed = None if recipe.model.kind == "histogram" else float(released[mask].double().mean())
        return {"images": int(mask.sum()), "bits_per_dim": summary(bits[mask]), "poster_bits_per_pixel": printed}

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
        "interpolations": len(interpolations),
        "sample_class_accuracy": class_accuracy(nearest, dataset) if recipe.classes == "each" else None,
        "classification_accuracy": (
            classification_accuracy(models, images, labels, settings) if recipe.classes == "each" else None
        ),
    }
    nearest_images = dataset.train_images[nearest.numpy()]
    grids = {"samples": samples.numpy(), "nearest": nearest_images, "interpolations": interpolations.numpy()}
    if recipe.model.kind == "lunet":
        with contextlib.suppress(SingularBaseError):
            fitted, grids["fitted_base"] = from_fitted_bases(models, dataset, settings, seed)
            results |= fitted
    return results, grids


def released_figure(recipe: Recipe, log_prob: Tensor, features: int, rows: Tensor) -> Tensor:
    """The figure that the released code would print for these images."""
    if released_code(recipe) == "lunet":
        return poster_bits_per_pixel(log_prob, features, code="lunet").cpu()
    factor = batch_factor(len(rows))
    return poster_bits_per_pixel(log_prob, features, code="realnvp", batch_factor=factor).cpu()


def summary(bits: Tensor) -> dict[str, float]:
    """Mean, median, standard deviation, extremes and tail of the bits per dimension of images, with shape (N,)."""
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
    """The errors of reconstructing the first images from their latents, in latent space and in 8-bit pixels."""
    images, labels = images[: settings.round_trip_images], labels[: settings.round_trip_images]
    largest, exact, within_one = 0.0, 0, 0
    for _, rows, model in _by_model(models, labels):
        device = next(iter(model.state_dict().values())).device
        for part in rows.split(settings.batch_size):
            y, _ = model.preprocess(images[part].to(device), torch.Generator(device).manual_seed(0))
            z, _ = model.flow(y)
            reconstruction = model.flow.inverse(z)
            z_again, _ = model.flow(reconstruction)
            largest = max(largest, float((z_again - z).abs().max()))
            off = (model.postprocess(reconstruction).cpu().flatten().int() - images[part].flatten().int()).abs()
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
    """Score test images and their latents under each model's `FittedBase`, and draw samples from these bases.

    Raises:
        SingularBaseError: If the latents of a model's training images have a singular covariance.

    Returns:
        The fields ``fitted_base_bits_per_dim``, a mean over the test images, and ``fitted_latents``, and the samples.
    """
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    train_images, train_labels = torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels)
    bases, bits, latents = {}, [], []
    for key, rows, model in _by_model(models, labels):
        model_images = train_images if key == "all" else train_images[train_labels == int(key)]
        bases[key] = FittedBase(model, model_images[:START_IMAGES], settings.batch_size)
        scored, standardised = bases[key].score(images[rows])
        bits.append(scored)
        latents.append((standardised, bases[key].images))
    fitted = {
        "fitted_base_bits_per_dim": float(torch.cat(bits).mean()),
        "fitted_latents": fitted_normality(latents),
    }
    return fitted, draw_samples(bases, settings, seed).numpy()


def classification_accuracy(models: dict[str, ImageFlow], images: Tensor, labels: Tensor, settings: Evaluate) -> float:
    """The share of test images that Bayes' rule with equal class priors assigns to their class."""
    classifier = ClassFlows(models)
    device = next(iter(classifier.state_dict().values())).device
    generator = torch.Generator(device).manual_seed(0)
    names = torch.tensor([int(name) for name in classifier.names])
    predicted = [
        names[classifier.classify(batch.to(device), generator=generator).cpu()]
        for batch in images.split(settings.batch_size)
    ]
    return float((torch.cat(predicted) == labels).double().mean())


def _by_model(models: dict[str, ImageFlow], labels: Tensor) -> Iterator[tuple[str, Tensor, ImageFlow]]:
    """Each model with its name and the indices of the images that it scores."""
    for key, model in models.items():
        rows = torch.arange(len(labels)) if key == "all" else (labels == int(key)).nonzero().flatten()
        if len(rows):
            yield key, rows, model
