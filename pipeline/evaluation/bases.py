"""Bases fitted to the latents of training images, what they score and sample, and what LU-Net's training must beat."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

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

SHRINKAGES = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
HELDOUT_SHARE = 0.04  # of a model whose training holds out none
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
    """For each model the training images that its training did not hold out, those it did, and its test images.

    ``labels`` are those of the training images, ``rows`` the indices of the test images.
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


def with_fitted_bases(
    models: Models, dataset: Dataset, recipe: Recipe, settings: Evaluate, seed: int, latents: Tensor, bits: Tensor
) -> tuple[dict[str, Any], dict[Way, list[Sampler]]]:
    """Fit bases to the latents of training images, and score the test images with them.

    One Gaussian is fitted to each model's latents; to those of one model for all classes also class Gaussians, whose
    shrinkage is chosen on held-out images. Where latents are too few for a covariance there is no base.

    Args:
        models: The trained models.
        dataset: The data set.
        recipe: The recipe of the models, which have a logit.
        settings: The settings of the evaluation.
        seed: The seed of the training.
        latents: The latents of all test images in one draw of the noise, with shape (N, D).
        bits: Their bits per dimension in that draw, with shape (N,).

    Returns:
        The fields ``bases`` and ``fitted_latents`` of an `Evaluation`, and samplers of each class by their base: a
        Gaussian fitted to its latents alone, from which the released code samples, or that of the class Gaussians.
    """
    noise, samplers = generator("base fit", seed), defaultdict[Way, list[Sampler]](list)
    scored: dict[str, Tensor] = {"gaussian": torch.empty_like(bits), "class_gaussians": torch.empty_like(bits)}
    fitted, about = list[tuple[Tensor, int]](), dict[str, dict[str, Any]]()
    nats_per_bit = latents.shape[1] * math.log(2)
    try:
        for part in parts(models, dataset, recipe, seed):
            images, labels = part.training[: settings.base_images], part.labels[: settings.base_images]
            z = latents_of(part.model, images, settings.batch_size, noise)
            test = latents[part.rows].to(z)
            standard_normal = standard_normal_log_prob(test)
            gaussian = Gaussian(z.shape[1]).to(z).fit_(z)
            bases: dict[str, Gaussian | ClassGaussians] = {"gaussian": gaussian}
            about["gaussian"] = {"fitted_images": len(z) + about.get("gaussian", {}).get("fitted_images", 0)}
            fitted.append((gaussian(test).z, len(z)))
            if part.is_whole:
                bases["class_gaussians"] = classes = ClassGaussians(z.shape[1], len(dataset.class_names)).to(z)
                heldout = latents_of(part.model, part.heldout, settings.batch_size, noise)
                shrinkage = classes.fit_(z, labels.to(z.device), heldout, SHRINKAGES)
                about["class_gaussians"] = {"fitted_images": len(z), "shrinkage": shrinkage}
            for name, base in bases.items():
                gain = (base.log_prob(test) - standard_normal) / nats_per_bit
                scored[name][part.rows] = bits[part.rows] - gain.cpu().to(bits.dtype)
            if part.is_whole:
                rows = [labels == label for label in range(len(dataset.class_names))]
                samplers["fitted"] = [sampler(part.model, Gaussian(z.shape[1]).to(z).fit_(z[of])) for of in rows]
                samplers["class_gaussians"] = [sampler(part.model, classes[label]) for label in range(len(rows))]
            else:
                samplers["fitted"].append(sampler(part.model, gaussian))
    except ValueError:
        return {}, {}
    results = {name: {"bits_per_dim": float(scored[name].double().mean()), **values} for name, values in about.items()}
    return {"bases": results, "fitted_latents": fitted_normality(fitted)}, samplers


def sampler(model: ImageFlow, base: Flow) -> Sampler:
    """Draws images from a model whose latents are draws from a base, in the model's precision."""
    base = base.to(model.dtype)
    return lambda n, noise: model.sample(n, noise, base=base)


def what_training_must_beat(
    models: Models, dataset: Dataset, recipe: Recipe, settings: Evaluate, seed: int
) -> dict[str, float]:
    """The test bits/dim of a Gaussian and of the untrained LU-Net, each with the margin and the classes of the recipe.

    The Gaussian is fitted in closed form to the logits of the training images; the ridge on its covariance is chosen on
    the held-out images. The LU-Net is at the identity.

    Returns:
        The fields ``closed_form_bits_per_dim`` and ``identity_bits_per_dim`` of an `Evaluation`.
    """
    streams = {name: generator(name, seed) for name in ("closed form", "base test", "identity")}
    closed_form, identity = list[Tensor](), list[Tensor]()
    for part in parts(models, dataset, recipe, seed):
        flow, shape = part.model.flow, part.model.shape
        assert isinstance(flow, LUNet)
        untrained = ImageFlow(type(flow)(**flow.config()), shape, part.model.margin).to(flow.device, flow.dtype).eval()
        y, heldout = (
            logits(part.model, images, settings.batch_size, streams["closed form"])[0]
            for images in (part.training, part.heldout)
        )
        gaussian = closed_form_gaussian(y, heldout)
        test, log_slope = logits(part.model, part.test, settings.batch_size, streams["base test"])
        closed_form.append(pixel_bits(gaussian.log_prob(test) + log_slope, flow.features).cpu())
        identity += [
            untrained.score(batch.to(flow.device), streams["identity"]).bits.double().cpu()
            for batch in part.test.split(settings.batch_size)
        ]
    means = {"closed_form_bits_per_dim": closed_form, "identity_bits_per_dim": identity}
    return {name: float(torch.cat(values).mean()) for name, values in means.items()}


def logits(model: ImageFlow, images: Tensor, batch_size: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
    """The flow's inputs for uint8 images (N, H, W), with shape (N, D), and their log-slopes (N,), in float64."""
    batches = [model.preprocess(batch.to(model.device), noise) for batch in images.split(batch_size)]
    y, log_slope = (torch.cat(tensors).double() for tensors in zip(*batches, strict=True))
    return y, log_slope


def closed_form_gaussian(y: Tensor, heldout: Tensor) -> Gaussian:
    """A Gaussian fitted to a sample (N, D), with that ridge which gives held-out rows the highest density."""
    mean, covariance = covariance_of(y)
    gaussian, scores = Gaussian(y.shape[1]).to(y), dict[float, float]()
    identity = torch.eye(y.shape[1]).to(y)
    for ridge in RIDGES:
        scores[ridge] = float(gaussian.set_(mean, covariance + ridge * identity).log_prob(heldout).mean())
    return gaussian.set_(mean, covariance + max(scores, key=lambda ridge: scores[ridge]) * identity)
