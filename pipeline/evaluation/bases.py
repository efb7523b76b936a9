"""Bases fitted to the latents of training images, what they score and sample, and what LU-Net's training must beat."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lunet import ClassGaussians, Flow, Gaussian, ImageFlow, LUNet, pixel_bits, standard_normal_log_prob
from lunet.whitening import covariance_of
from pipeline.core.dataset import Dataset
from pipeline.core.holdout import split_indices
from pipeline.core.params import Evaluate, Recipe
from pipeline.core.streams import generator
from pipeline.evaluation.latents import fitted_normality
from pipeline.evaluation.record import Way
from pipeline.evaluation.samples import Sampler
from pipeline.evaluation.trained_run import Models

SHRINKAGES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0)
HELDOUT_SHARE = 0.04  # of the images of a model whose training holds out none
HELDOUT_IMAGES = 1000  # on which a shrinkage or a ridge is chosen


class Part(NamedTuple):
    """The images of one model: of its class, or of all classes."""

    name: str
    model: ImageFlow
    training: Tensor
    heldout: Tensor
    labels: Tensor
    test: Tensor
    rows: Tensor

    @property
    def is_whole(self) -> bool:
        """Whether the model is one for all classes."""
        return self.name == "all"


def parts(models: Models, dataset: Dataset, recipe: Recipe, seed: int) -> Iterator[Part]:
    """The images of each model: its test images, and its training images in two parts, for fits and for choices.

    The second part are the images that the training of a model held out. A training that held out none, or the test
    set, has used them all; then both parts are among its training images. ``labels`` are those of the first part,
    ``rows`` the indices of the test images.
    """
    images, labels = torch.from_numpy(dataset.train_images), torch.from_numpy(dataset.train_labels)
    test, test_labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    share = HELDOUT_SHARE if recipe.training is None else recipe.training.holdout
    for name, model in models.items():
        own = torch.arange(len(labels)) if name == "all" else (labels == int(name)).nonzero().flatten()
        rows = torch.arange(len(test)) if name == "all" else (test_labels == int(name)).nonzero().flatten()
        split = split_indices(len(own), HELDOUT_SHARE if share == "test" else share, seed, name)
        training, heldout = own[split.training], own[split.heldout][:HELDOUT_IMAGES]
        yield Part(name, model, images[training], images[heldout], labels[training], test[rows], rows)


def latents_of(model: ImageFlow, images: Tensor, batch_size: int, noise: torch.Generator) -> Tensor:
    """The latents of uint8 images (N, H, W), in float64."""
    batches = [model.score(batch.to(model.device), noise).latents for batch in images.split(batch_size)]
    return torch.cat(batches).double()


class Fits(NamedTuple):
    """The bases that were fitted to the latents of one model; those that too few latents determine are missing.

    Attributes:
        images: The number of latents.
        bases: The bases by name.
        shrinkage: The shrinkage of the class Gaussians.
        of_class: A Gaussian for each class, fitted to its latents alone.
    """

    images: int
    bases: dict[str, Gaussian | ClassGaussians]
    shrinkage: float | None
    of_class: list[Gaussian]


def fit_bases(part: Part, classes: int, settings: Evaluate, noise: torch.Generator) -> Fits:
    """Fit bases to the latents of a model's training images, in float64.

    One Gaussian is fitted to all latents; to those of one model for all classes also class Gaussians, whose shrinkage
    is chosen on the second part of the images, and a Gaussian for each class.
    """
    images, labels = part.training[: settings.base_images], part.labels[: settings.base_images]
    z = latents_of(part.model, images, settings.batch_size, noise)
    labels = labels.to(z.device)
    bases: dict[str, Gaussian | ClassGaussians] = {}
    shrinkage, of_class = None, list[Gaussian]()
    with suppress(ValueError):
        bases["gaussian"] = fitted_gaussian(z)
    if not part.is_whole:
        return Fits(len(z), bases, None, [base for base in bases.values() if isinstance(base, Gaussian)])
    mixture = ClassGaussians(z.shape[1], classes).to(z)
    with suppress(ValueError):
        heldout = latents_of(part.model, part.heldout, settings.batch_size, noise)
        shrinkage = mixture.fit_(z, labels, heldout, SHRINKAGES)
        bases["class_gaussians"] = mixture
    with suppress(ValueError):
        of_class = [fitted_gaussian(z[labels == label]) for label in range(classes)]
    return Fits(len(z), bases, shrinkage, of_class)


def fitted_gaussian(z: Tensor) -> Gaussian:
    """A Gaussian fitted to latents (N, D); raises a `ValueError` if they are too few to determine its covariance."""
    if len(z) <= z.shape[1]:
        raise ValueError(f"{len(z)} latents do not determine a covariance of {z.shape[1]} features")
    return Gaussian(z.shape[1]).to(z).fit_(z)


def with_fitted_bases(
    models: Models, dataset: Dataset, recipe: Recipe, settings: Evaluate, seed: int, latents: Tensor, bits: Tensor
) -> tuple[dict[str, Any], dict[Way, list[Sampler]]]:
    """Score the test images with bases that are fitted to the latents of training images.

    Args:
        models: The trained models.
        dataset: The data set.
        recipe: The recipe of the models, which have a logit.
        settings: The settings of the evaluation.
        seed: The seed of the training.
        latents: The latents of all test images in one draw of the noise, with shape (N, D).
        bits: Their bits per dimension in that draw, with shape (N,).

    Returns:
        The fields ``bases`` and ``fitted_latents`` of an `Evaluation`, without those that a model lacks, and samplers
        of each class by their base: a Gaussian fitted to its latents alone, from which the released code samples, or
        that of the class Gaussians.
    """
    noise, found = generator("base fit", seed), list[tuple[Part, Fits]]()
    scored = {name: torch.empty_like(bits) for name in ("gaussian", "class_gaussians")}
    standardised, samplers = list[tuple[Tensor, int]](), defaultdict[Way, list[Sampler]](list)
    nats_per_bit = latents.shape[1] * math.log(2)
    for part in parts(models, dataset, recipe, seed):
        fits = fit_bases(part, len(dataset.class_names), settings, noise)
        test = latents[part.rows].to(part.model.device, torch.float64)
        for name, base in fits.bases.items():
            gain = (base.log_prob(test) - standard_normal_log_prob(test)) / nats_per_bit
            scored[name][part.rows] = bits[part.rows] - gain.cpu().to(bits.dtype)
            if isinstance(base, Gaussian):
                standardised.append((base(test).z, fits.images))
            else:
                samplers["class_gaussians"] += [sampler(part.model, base[c]) for c in range(len(dataset.class_names))]
        samplers["fitted"] += [sampler(part.model, gaussian) for gaussian in fits.of_class]
        found.append((part, fits))
    results = {
        name: {
            "bits_per_dim": float(of_images.double().mean()),
            "fitted_images": sum(fits.images for _, fits in found),
            "shrinkage": found[0][1].shrinkage if name == "class_gaussians" else None,
        }
        for name, of_images in scored.items()
        if all(name in fits.bases for _, fits in found)
    }
    latents_found = {"fitted_latents": fitted_normality(standardised)} if "gaussian" in results else {}
    whole = {way: of_way for way, of_way in samplers.items() if len(of_way) == len(dataset.class_names)}
    return {"bases": results or None, **latents_found}, whole


def sampler(model: ImageFlow, base: Flow) -> Sampler:
    """Draws images from a model whose latents are draws from a base, in the model's precision."""
    base = copy.deepcopy(base).to(model.dtype)
    return lambda n, noise: model.sample(n, noise, base=base)


def what_training_must_beat(
    models: Models, dataset: Dataset, recipe: Recipe, settings: Evaluate, seed: int
) -> dict[str, Any]:
    """The test bits/dim of a Gaussian and of the untrained LU-Net, each with the margin and the classes of the recipe.

    The Gaussian is fitted in closed form to the logits of the training images; the ridge on its covariance is chosen on
    the second part of the images. The LU-Net is at the identity.

    Returns:
        The fields ``closed_form_bits_per_dim`` and ``identity_bits_per_dim`` of an `Evaluation`, both ``_by_class``
        too if each class has a model, and ``closed_form_ridges``, the chosen ones.
    """
    streams = {name: generator(name, seed) for name in ("closed form", "base test", "identity")}
    means: dict[str, dict[str, float]] = {"closed_form_bits_per_dim": {}, "identity_bits_per_dim": {}}
    ridges, weights = set[float](), []
    for part in parts(models, dataset, recipe, seed):
        flow, shape = part.model.flow, part.model.shape
        assert isinstance(flow, LUNet)
        untrained = ImageFlow(type(flow)(**flow.config()), shape, part.model.margin).to(flow.device, flow.dtype).eval()
        y, heldout = (
            logits(part.model, images, settings.batch_size, streams["closed form"])[0]
            for images in (part.training, part.heldout)
        )
        gaussian, ridge = closed_form_gaussian(y, heldout)
        test, log_slope = logits(part.model, part.test, settings.batch_size, streams["base test"])
        closed_form = pixel_bits(gaussian.log_prob(test) + log_slope, flow.features)
        identity = [
            untrained.score(batch.to(flow.device), streams["identity"]).bits.double()
            for batch in part.test.split(settings.batch_size)
        ]
        means["closed_form_bits_per_dim"][part.name] = float(closed_form.mean())
        means["identity_bits_per_dim"][part.name] = float(torch.cat(identity).mean())
        ridges.add(ridge)
        weights.append(len(part.test))
    results: dict[str, Any] = {"closed_form_ridges": sorted(ridges)}
    for name, by_class in means.items():
        results[name] = float(np.average([*by_class.values()], weights=weights))
        results[f"{name.removesuffix('_bits_per_dim')}_by_class"] = by_class if recipe.classes == "each" else None
    return results


def logits(model: ImageFlow, images: Tensor, batch_size: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """The flow's inputs for uint8 images (N, H, W), with shape (N, D), and their log-slopes (N,), in float64."""
    batches = [model.preprocess(batch.to(model.device), noise) for batch in images.split(batch_size)]
    y, log_slope = (torch.cat(tensors).double() for tensors in zip(*batches, strict=True))
    return y, log_slope


def closed_form_gaussian(y: Tensor, heldout: Tensor) -> tuple[Gaussian, float]:
    """A Gaussian fitted to a sample (N, D) with the ridge that gives other rows the highest density; and the ridge."""
    mean, covariance = covariance_of(y)
    gaussian, scores = Gaussian(y.shape[1]).to(y), dict[float, float]()
    identity = torch.eye(y.shape[1]).to(y)
    for ridge in RIDGES:
        with suppress(ValueError):
            scores[ridge] = float(gaussian.set_(mean, covariance + ridge * identity).log_prob(heldout).mean())
    best = max(scores, key=lambda ridge: scores[ridge])
    return gaussian.set_(mean, covariance + best * identity), best
