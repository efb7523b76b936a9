"""The scores of trained models on the test set."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from lunet import ClassFlows, LUNet, NonFiniteError, poster_bits_per_pixel
from lunet.pixels import mean_bits, quantise
from pipeline.core.dataset import Dataset
from pipeline.core.params import Evaluate, Recipe
from pipeline.core.precision import arithmetic, networks_in
from pipeline.core.streams import generator
from pipeline.evaluation.bases import what_training_must_beat, with_fitted_bases
from pipeline.evaluation.latents import normality
from pipeline.evaluation.record import Way
from pipeline.evaluation.released_bits import batch_factor, released_code
from pipeline.evaluation.samples import (
    class_samples,
    draw_values,
    grid_of,
    interpolate,
    nearest_training_images,
    outside_cube,
)
from pipeline.evaluation.trained_run import Models, by_model


@torch.no_grad()
def evaluate(
    models: Models, dataset: Dataset, recipe: Recipe, settings: Evaluate, seed: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Evaluate trained models on the test set, and draw samples from them.

    With one model for each class, each test image is scored by the model of its class, as in the paper.

    Raises:
        NonFiniteError: If a latent, a reconstruction or a sample is not finite, or the mean likelihood impossible.

    Returns:
        The results, fields of an `Evaluation`, and arrays by name: ``bits``, the bits per dimension of each test image,
        NaN for those of a class without a model, and grids of images with shape (rows, columns, H, W), which are
        samples, their nearest training images, interpolations, and samples of each class from fitted bases. If a class
        has no model, the results are those of the other classes alone.
    """
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    scores = score_images(models, images, labels, recipe, settings, generator("test", seed))
    values = draw(models, dataset, settings, generator("samples", seed))
    drawn = [quantise(of_model).unflatten(1, (1, *images.shape[1:])) for of_model in values]
    samples = grid_of(drawn, settings)
    nearest = nearest_training_images(samples, dataset)

    def likelihood(rows: Tensor) -> dict[str, Any]:
        # The released programs print densities of logits.
        poster = None if recipe.margin is None else float(scores.printed[rows].double().mean())
        return {"images": len(rows), "bits_per_dim": summary(scores.bits[rows]), "poster_bits_per_pixel": poster}

    is_whole, results = not scores.bits.isnan().any(), dict[str, Any]()
    if is_whole:
        results["test"] = {**likelihood(torch.arange(len(images))), "bits_per_dim_by_draw": scores.by_draw.tolist()}
    results["per_class"] = {
        str(label): likelihood((labels == label).nonzero().flatten())
        for label in range(len(dataset.class_names))
        if is_whole or str(label) in models
    }
    nearest_images = dataset.train_images[nearest.numpy()]
    arrays = {"bits": scores.bits.numpy(), "samples": samples.numpy(), "nearest": nearest_images}
    if not is_whole:
        return results, arrays
    interpolations = interpolate(models, images, labels, settings, generator("interpolations", seed))
    arrays["interpolations"] = interpolations.numpy()
    results |= {
        "round_trip": round_trip(models, images, labels, settings, generator("round trip", seed)),
        "latents": normality(scores.latents),
        "reduced_precision": in_training_precision(models, images, labels, recipe, settings, seed),
        "interpolations": len(interpolations),
        "classification_accuracy": classification_accuracy(models, images, labels, settings, seed),
    }
    by_way: dict[Way, dict[str, Any]] = {}
    if recipe.classes == "each":
        by_way["standard_normal"] = class_samples(drawn, dataset)
    if recipe.margin is not None:
        results["outside_cube"] = outside_cube(values)
        fitted, samplers = with_fitted_bases(models, dataset, recipe, settings, seed, scores.latents, scores.first)
        results |= fitted
        noise = generator("class samples", seed)
        for way, of_classes in samplers.items():
            by_class = [sampler(settings.class_samples, noise).cpu() for sampler in of_classes]
            by_way[way] = class_samples(by_class, dataset)
            if way == "fitted" or "fitted" not in samplers:
                arrays["by_class"] = grid_of(by_class, settings).numpy()
    if all(isinstance(model.flow, LUNet) for model in models.values()):
        results |= what_training_must_beat(models, dataset, recipe, settings, seed)
    return {**results, "class_samples": by_way or None}, arrays


def draw(models: Models, dataset: Dataset, settings: Evaluate, noise: torch.Generator) -> list[Tensor]:
    """Samples of each model before rounding: as many as of all classes, and as the grid of samples needs."""
    count = -(-settings.class_samples * len(dataset.class_names) // len(models))
    shown = settings.sample_columns * (settings.sample_rows if len(models) == 1 else 1)
    return [draw_values(model, max(count, shown), noise) for model in models.values()]


class Scores(NamedTuple):
    """The scores of N test images.

    Attributes:
        bits: Bits per dimension, a mean over the draws, with shape (N,); NaN for images of a class without a model.
        printed: What the released programs would print for each, with shape (N,).
        by_draw: The mean bits per dimension of each draw, a sum over the scored images divided by N.
        latents: The latents in the first draw, with shape (N, D); not set for images of a class without a model.
        first: The bits per dimension in the first draw, with shape (N,).
    """

    bits: Tensor
    printed: Tensor
    by_draw: Tensor
    latents: Tensor
    first: Tensor


def score_images(
    models: Models, images: Tensor, labels: Tensor, recipe: Recipe, settings: Evaluate, noise: torch.Generator
) -> Scores:
    """Score each image by the model of its class.

    Raises:
        NonFiniteError: If an image has no finite likelihood.
    """
    bits, released, first = torch.full((len(images),), torch.nan), torch.zeros(len(images)), torch.zeros(len(images))
    latents = torch.empty(len(images), images[0].numel(), dtype=next(iter(models.values())).dtype)
    by_draw = torch.zeros(settings.draws, dtype=torch.float64)
    failures = 0
    for model, (rows,) in by_model(models, labels):
        bits[rows] = 0.0
        printed = partial(
            poster_bits_per_pixel,
            features=model.flow.features,
            code=released_code(recipe),
            batch_factor=batch_factor(len(rows)),
        )
        for part in rows.split(settings.batch_size):
            batch = images[part].to(model.device)
            for draw in range(settings.draws):
                scores = model.score(batch, noise)
                batch_bits = scores.bits.cpu()
                if draw == 0:
                    latents[part], first[part] = scores.latents.cpu(), batch_bits.to(first.dtype)
                bits[part] += batch_bits / settings.draws
                by_draw[draw] += batch_bits.double().sum() / len(images)
                released[part] += printed(scores.log_prob).cpu() / settings.draws
        failures += int((~bits[rows].isfinite()).sum())
    if failures:
        raise NonFiniteError(f"{failures} test images have no finite likelihood")
    return Scores(bits, released, by_draw, latents, first)


def summary(bits: Tensor) -> dict[str, float]:
    """Mean, median, standard deviation, extremes and tail of the bits per dimension of images, with shape (N,)."""
    values = bits.double()
    worst = values.sort(descending=True).values[: max(1, len(values) // 100)]
    return {
        "mean": mean_bits(bits),
        "median": float(values.median()),
        "std": float(values.std(correction=0)),
        "min": float(values.min()),
        "max": float(values.max()),
        "worst_percent_share": float(worst.sum() / values.sum()),
    }


def round_trip(
    models: Models, images: Tensor, labels: Tensor, settings: Evaluate, noise: torch.Generator
) -> dict[str, Any]:
    """The errors of reconstructing the first images from their latents, in latent space and in 8-bit pixels."""
    images, labels = images[: settings.round_trip_images], labels[: settings.round_trip_images]
    largest, off = 0.0, torch.empty(len(images), images[0].numel(), dtype=torch.int32)
    for model, (rows,) in by_model(models, labels):
        for part in rows.split(settings.batch_size):
            z = model.score(images[part].to(model.device), noise).latents
            reconstruction = model.flow.inverse(z)
            z_again, _ = model.flow(reconstruction)
            largest = max(largest, float((z_again - z).abs().max()))
            restored = model.postprocess(reconstruction).cpu().flatten(1).int()
            off[part] = (restored - images[part].flatten(1).int()).abs()
    exact = (off == 0).double()
    by_class = {str(label): float(exact[labels == label].mean()) for label in labels.unique().tolist()}
    return {
        "images": len(images),
        "latent_max_error": largest,
        "pixels_exact": float(exact.mean()),
        "pixels_within_one": float((off <= 1).double().mean()),
        "pixels_exact_by_class": None if "all" in models else by_class,
    }


def in_training_precision(
    models: Models, images: Tensor, labels: Tensor, recipe: Recipe, settings: Evaluate, seed: int
) -> dict[str, Any] | None:
    """How scores in the precision of a training differ from those in float32, for the images of the round trip.

    Both have the same noise. None for a training in float32, or without steps.
    """
    if recipe.training is None or (precision := recipe.training.precision) == "float32":
        return None
    images, labels = images[: settings.round_trip_images], labels[: settings.round_trip_images]
    changes, noise = [], generator("precision", seed)
    for model, (rows,) in by_model(models, labels):
        for part in rows.split(settings.batch_size):
            batch, state = images[part].to(model.device), noise.get_state()
            exact = model.score(batch, noise).bits
            with arithmetic(precision), networks_in(precision, model.device):
                changes.append((model.score(batch, noise.set_state(state)).bits - exact).double().cpu())
    change = torch.cat(changes)
    return {
        "precision": precision,
        "images": len(change),
        "mean_change": float(change.mean()),
        "largest_change": float(change.abs().max()),
    }


def classification_accuracy(
    models: Models, images: Tensor, labels: Tensor, settings: Evaluate, seed: int
) -> float | None:
    """The share of test images that Bayes' rule with equal class priors assigns to their class; None for one model."""
    if "all" in models:
        return None
    classifier, noise = ClassFlows(models), generator("classification", seed)
    names = torch.tensor([int(name) for name in classifier.names])
    predicted = [
        names[classifier.classify(batch.to(classifier.device), generator=noise).cpu()]
        for batch in images.split(settings.batch_size)
    ]
    return float((torch.cat(predicted) == labels).double().mean())
