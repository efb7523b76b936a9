"""Builds and initialises the models of a recipe."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lunet import Flow, Gaussian, Histogram, ImageFlow, LearnedMonotone, LUNet, RealNVP, ReleasedRealNVP
from pipeline.core.console import UserError
from pipeline.core.dataset import Dataset
from pipeline.core.params import (
    GaussianModel,
    HistogramModel,
    LearnedLUNetModel,
    LUNetModel,
    RealNVPModel,
    Recipe,
    ReleasedRealNVPModel,
)

Shape = tuple[int, int, int]
# Training images for a model's initialisation, the first of a random order; enough for a covariance of 784 pixels.
START_IMAGES = 20_000


def build(recipe: Recipe, shape: Shape) -> ImageFlow:
    """An untrained model of the recipe's architecture for images with shape (channels, height, width).

    Raises:
        UserError: If the architecture cannot take images of that size.
    """
    try:
        flow = _build_flow(recipe, shape)
    except ValueError as error:
        raise UserError(
            f"a {recipe.model.kind} cannot take images of {shape[2]}x{shape[1]} pixels: {error}; take the recipe or "
            "the data set out of the grid, or give images of another size"
        ) from None
    return ImageFlow(flow, shape, recipe.margin).to(getattr(torch, recipe.dtype))


def initialise_(model: ImageFlow, recipe: Recipe, images: Tensor, generator: torch.Generator) -> None:
    """Initialise a model from data before any step; a model in closed form needs no other training.

    Args:
        model: The untrained model.
        recipe: Its recipe.
        images: The training images, uint8, with shape (N, H, W).
        generator: The source of the dequantisation noise.

    Raises:
        UserError: If the images cannot determine the model, for example a covariance from too few of them.
    """
    try:
        _initialise(model, recipe, images, generator)
    except ValueError as error:
        raise UserError(f"a {recipe.model.kind} cannot be started from {len(images)} images: {error}") from None


def _initialise(model: ImageFlow, recipe: Recipe, images: Tensor, generator: torch.Generator) -> None:
    match recipe.model, model.flow:
        case LUNetModel(start="uniform"), LUNet() as flow:
            flow.uniform_(generator)
        case LUNetModel(start="copula"), LUNet() as flow:
            flow.copula_(model.preprocess(images[:START_IMAGES], generator)[0], generator)
        case LUNetModel(start=kind) | LearnedLUNetModel(start=kind), LUNet() as flow if kind != "identity":
            sample = model.preprocess(images[:START_IMAGES], generator)[0]
            _ = flow.whiten_(sample) if kind == "whiten" else flow.standardise_(sample)
        case RealNVPModel(), RealNVP() as flow:
            flow.standardise_(model.preprocess(images[:1024], generator)[0])
        case GaussianModel() | HistogramModel(), Gaussian() | Histogram() as flow:
            flow.fit_(model.preprocess(images, generator)[0])


def groups(dataset: Dataset, recipe: Recipe) -> dict[str, int | None]:
    """The names of a recipe's models, with the class of each: one model for all classes (None), or one per class."""
    if recipe.classes == "all":
        return {"all": None}
    return {str(label): label for label in range(len(dataset.class_names))}


def _build_flow(recipe: Recipe, shape: Shape) -> Flow:
    features = math.prod(shape)
    match recipe.model:
        case LUNetModel(layers=layers, slope=slope):
            return LUNet(features, layers, slope)
        case LearnedLUNetModel(layers=layers, bins=bins, leading_bins=leading_bins):
            activation, leading = LearnedMonotone(features, bins), LearnedMonotone(features, leading_bins)
            return LUNet(features, layers, activation=activation, leading=leading)
        case RealNVPModel() as model:
            full, squeezed, final = model.couplings
            shared = model.networks == "shared"
            return RealNVP(shape, (full, squeezed, final), model.planes, model.blocks, shared=shared)
        case ReleasedRealNVPModel(couplings=couplings, planes=planes):
            full, squeezed, final = couplings
            return ReleasedRealNVP(shape, (full, squeezed, final), planes)
        case GaussianModel(ridge=ridge):
            return Gaussian(features, ridge)
        case HistogramModel(pseudocount=pseudocount):
            return Histogram(features, pseudocount=pseudocount)
