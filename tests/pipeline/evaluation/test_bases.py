"""Bases fitted to training latents, and what LU-Net's training must beat."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from small_flows import seeded
from torch import Tensor

from lunet import Gaussian, ImageFlow, LUNet, pixel_bits
from pipeline.core.dataset import Dataset
from pipeline.core.params import Evaluate, Recipe
from pipeline.core.streams import generator
from pipeline.evaluation import bases
from pipeline.evaluation.bases import (
    RIDGES,
    Part,
    closed_form_gaussian,
    latents_of,
    parts,
    what_training_must_beat,
    with_fitted_bases,
)
from pipeline.evaluation.record import Way
from pipeline.evaluation.samples import Sampler, class_samples
from pipeline.evaluation.scores import score_images
from pipeline.presets.merged import load_preset

SETTINGS = load_preset("smoke").evaluate


def recipe(classes: str = "all", name: str = "lunet") -> Recipe:
    return load_preset("smoke").recipe(name).model_copy(update={"classes": classes})


@pytest.fixture(scope="module")
def shades() -> Dataset:
    """4x4 images of two classes: pixels depend on each other, in one class otherwise than in the other."""

    def images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        noise = np.random.default_rng(seed)
        labels = (np.arange(n) % 2).astype(np.uint8)
        patterns = np.stack([np.ones(16), np.linspace(-1, 1, 16)])[labels].reshape(n, 4, 4)
        values = 120 + noise.uniform(0, 110, (n, 1, 1)) * patterns + noise.uniform(0, 20, (n, 4, 4))
        return values.clip(0, 255).astype(np.uint8), labels

    train, test = images(1200, 0), images(400, 1)
    return Dataset("shades", "Shades", ("flat", "ramp"), *train, *test, {})


@pytest.fixture
def identity() -> ImageFlow:
    return ImageFlow(LUNet(16, 1).double(), (1, 4, 4)).eval()


def fitted(
    models: dict[str, ImageFlow], dataset: Dataset, settings: Evaluate = SETTINGS
) -> tuple[dict[str, Any], dict[Way, list[Sampler]], Tensor]:
    of_models = recipe("all" if "all" in models else "each")
    images, labels = torch.from_numpy(dataset.test_images), torch.from_numpy(dataset.test_labels)
    with torch.no_grad():
        scores = score_images(models, images, labels, of_models, settings, generator("test", 0))
        results = with_fitted_bases(models, dataset, of_models, settings, 0, scores.latents, scores.first)
    return *results, scores.bits


def test_parts_keep_training_and_held_out_images_apart(shades: Dataset, identity: ImageFlow) -> None:
    (whole,) = parts({"all": identity}, shades, recipe(), 0)
    assert (len(whole.training), len(whole.heldout), len(whole.test)) == (1080, 120, 400)
    assert whole.is_whole
    flat, ramp = parts({"0": identity, "1": identity}, shades, recipe("each"), 0)
    assert (flat.labels.unique().tolist(), ramp.labels.unique().tolist()) == ([0], [1])
    assert torch.equal(ramp.test, torch.from_numpy(shades.test_images)[ramp.rows])
    for part in (whole, flat, ramp):
        held = {image.numpy().tobytes() for image in part.heldout}
        assert not held & {image.numpy().tobytes() for image in part.training}


@torch.no_grad()
def test_a_fitted_base_behind_the_identity_is_the_gaussian(shades: Dataset, identity: ImageFlow) -> None:
    results, _, _ = fitted({"all": identity}, shades)
    assert results["bases"]["gaussian"]["fitted_images"] == 1080
    part: Part
    (part,) = parts({"all": identity}, shades, recipe(), 0)
    z = latents_of(identity, part.training, SETTINGS.batch_size, generator("base fit", 0))
    gaussian = Gaussian(16).double().fit_(z)
    y, log_slope = identity.preprocess(part.test, generator("test", 0))
    expected = pixel_bits(gaussian.log_prob(y) + log_slope, 16).mean()
    assert results["bases"]["gaussian"]["bits_per_dim"] == pytest.approx(float(expected), rel=1e-6)


def test_class_gaussians_score_better_and_give_samples_of_each_class(shades: Dataset, identity: ImageFlow) -> None:
    results, samplers, bits = fitted({"all": identity}, shades)
    gaussian, classes = results["bases"]["gaussian"], results["bases"]["class_gaussians"]
    assert classes["bits_per_dim"] < gaussian["bits_per_dim"] - 0.02 < float(bits.mean()) - 0.5
    assert classes["shrinkage"] < 0.5  # the classes differ
    assert {*samplers} == {"fitted", "class_gaussians"}
    for of_classes in samplers.values():
        samples = [sampler(100, seeded()) for sampler in of_classes]
        assert min(class_samples(samples, shades)["right"]) >= 80
        assert max(class_samples(samples[::-1], shades)["right"]) <= 20


def test_with_a_model_a_class_each_has_its_gaussian(shades: Dataset, identity: ImageFlow) -> None:
    results, samplers, _ = fitted({"0": identity, "1": identity}, shades)
    assert set(results["bases"]) == {"gaussian"}
    assert results["bases"]["gaussian"]["fitted_images"] == 1080
    assert results["bases"]["gaussian"]["shrinkage"] is None
    assert {*samplers} == {"fitted"}
    assert min(class_samples([sampler(100, seeded()) for sampler in samplers["fitted"]], shades)["right"]) >= 80


def test_so_many_latents_are_fitted_as_the_settings_say(shades: Dataset, identity: ImageFlow) -> None:
    few, _, _ = fitted({"all": identity}, shades, SETTINGS.model_copy(update={"base_images": 300}))
    assert few["bases"]["gaussian"]["fitted_images"] == 300


@pytest.mark.parametrize("models", [["all"], ["0", "1"]], ids=str)
def test_too_few_latents_have_no_base(shades: Dataset, identity: ImageFlow, models: list[str]) -> None:
    few = SETTINGS.model_copy(update={"base_images": 10})
    results, samplers, _ = fitted(dict.fromkeys(models, identity), shades, few)
    assert (results, samplers) == ({"bases": None}, {})


def test_a_class_with_few_latents_takes_no_other_base_away(shades: Dataset, identity: ImageFlow) -> None:
    # Ten images of the second class.
    rows = np.flatnonzero((shades.train_labels == 0) | (np.cumsum(shades.train_labels) <= 10))
    small = replace(shades, train_images=shades.train_images[rows], train_labels=shades.train_labels[rows])
    results, samplers, _ = fitted({"all": identity}, small)
    assert set(results) == {"bases", "fitted_latents"}
    assert set(results["bases"]) == {"gaussian", "class_gaussians"}
    assert results["bases"]["class_gaussians"]["shrinkage"] > 0
    assert {way: len(of_way) for way, of_way in samplers.items()} == {"class_gaussians": 2}


@torch.no_grad()
def test_samples_of_a_class_are_those_of_the_gaussian_of_its_latents_alone(
    shades: Dataset, identity: ImageFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "SHRINKAGES", (0.5,))
    _, samplers, _ = fitted({"all": identity}, shades)
    (part,) = parts({"all": identity}, shades, recipe(), 0)
    z = latents_of(identity, part.training, SETTINGS.batch_size, generator("base fit", 0))
    alone = Gaussian(16).double().fit_(z[part.labels == 1])
    expected = identity.sample(20, seeded(4), base=alone)
    assert torch.equal(samplers["fitted"][1](20, seeded(4)), expected)
    assert not torch.equal(samplers["class_gaussians"][1](20, seeded(4)), expected)


@torch.no_grad()
@pytest.mark.parametrize("classes", ["all", "each"])
def test_training_must_beat_a_gaussian_and_the_identity(shades: Dataset, identity: ImageFlow, classes: str) -> None:
    names = {"all": ["all"], "each": ["0", "1"]}[classes]
    flow = LUNet(16, 2).double()
    torch.nn.init.normal_(flow.layers[0].bias, generator=seeded())  # what is trained plays no part
    trained = ImageFlow(flow, (1, 4, 4), margin=0.01).eval()
    beat = what_training_must_beat(dict.fromkeys(names, trained), shades, recipe(classes), SETTINGS, 0)
    closed_form = identity_bits = 0.0
    for part in parts(dict.fromkeys(names, trained), shades, recipe(classes), 0):
        y = trained.preprocess(part.training, seeded(7))[0]
        test, log_slope = trained.preprocess(part.test, seeded(8))
        share = len(part.test) / 400
        closed_form += share * float(pixel_bits(Gaussian(16).double().fit_(y).log_prob(test) + log_slope, 16).mean())
        untrained = ImageFlow(LUNet(16, 2).double(), (1, 4, 4), margin=0.01).eval()
        identity_bits += share * float(untrained.bits_per_dim(part.test, generator=seeded(9)).mean())
    # By other noise; ridges are small beside these variances.
    assert beat["closed_form_bits_per_dim"] == pytest.approx(closed_form, abs=0.03)
    assert beat["identity_bits_per_dim"] == pytest.approx(identity_bits, abs=0.03)
    assert beat["closed_form_bits_per_dim"] < beat["identity_bits_per_dim"] - 0.5
    assert set(beat["closed_form_ridges"]) <= {*RIDGES}
    for name in ("closed_form", "identity"):
        by_class = beat[f"{name}_by_class"]
        assert (by_class is None) == (classes == "all")
        # The classes have as many test images as each other.
        assert by_class is None or np.mean([*by_class.values()]) == pytest.approx(beat[f"{name}_bits_per_dim"])


@torch.no_grad()
def test_the_ridge_is_chosen_on_held_out_rows() -> None:
    y = torch.randn(40, 30, generator=seeded(), dtype=torch.float64)  # few for 30 features
    heldout = torch.randn(500, 30, generator=seeded(1), dtype=torch.float64)
    chosen, ridge = closed_form_gaussian(y, heldout)
    assert 0.01 <= ridge <= 1
    plain = Gaussian(30, ridge=1e-4).double().fit_(y)
    assert chosen.log_prob(heldout).mean() > plain.log_prob(heldout).mean() + 5
    many = torch.randn(20_000, 30, generator=seeded(2), dtype=torch.float64)
    assert math.isclose(
        float(closed_form_gaussian(many, heldout)[0].log_prob(heldout).mean()),
        float(Gaussian(30).double().fit_(many).log_prob(heldout).mean()),
        abs_tol=0.02,
    )
