"""The scores of trained models on the test set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from round_trips import assert_images_come_back
from small_flows import SETTINGS, flow, seeded
from small_trainings import CPU, recipe_of
from torch import Tensor

from lunet import ImageFlow, ImageScores, load_flow
from lunet.pixels import ImpossibleLikelihoodError
from pipeline.core.dataset import ARRAYS, Dataset, load_dataset
from pipeline.core.params import Evaluate, Params, Recipe, validate
from pipeline.core.streams import generator
from pipeline.data import describe, write_dataset
from pipeline.evaluation.scores import evaluate
from pipeline.presets.merged import load_preset
from pipeline.sources.published import FILES, fetch
from pipeline.train import train
from pipeline.training.models import build, groups


def gaussians(values: Any, dataset: Dataset, folder: Path) -> tuple[Recipe, Evaluate, dict[str, ImageFlow]]:
    """A recipe of one Gaussian a class, the settings of its evaluation, and its trained models."""
    recipe = recipe_of(values, "gaussian", classes="each")
    train(dataset, recipe, 0, CPU, folder, "gaussian")
    models: dict[str, ImageFlow] = {key: load_flow(folder / key) for key in ("0", "1")}
    return recipe, validate(values, "params.yaml").evaluate, models


def test_evaluation_scores_each_image_by_the_model_of_its_class(
    smoke_values: Any, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, settings, models = gaussians(smoke_values, dataset, tmp_path)
    right, _ = evaluate(models, dataset, recipe, settings, 0)
    swapped, _ = evaluate({"0": models["1"], "1": models["0"]}, dataset, recipe, settings, 0)
    assert right["test"]["bits_per_dim"]["mean"] < swapped["test"]["bits_per_dim"]["mean"] - 1
    assert right["class_samples"]["standard_normal"] == {"of_each": 10, "right": [10, 10]}
    assert swapped["class_samples"]["standard_normal"]["right"] == [0, 0]
    assert right["class_samples"]["fitted"]["right"] == [10, 10]
    assert (right["classification_accuracy"], swapped["classification_accuracy"]) == (1, 0)
    assert right["per_class"]["0"]["images"] == 50
    assert right["round_trip"]["pixels_exact"] == 1
    assert right["round_trip"]["pixels_exact_by_class"] == {"0": 1, "1": 1}
    assert right["latents"]["images"] == 100


def test_classes_without_a_model_are_left_out_and_change_nothing_else(
    smoke_values: Any, dataset: Dataset, tmp_path: Path
) -> None:
    recipe, settings, models = gaussians(smoke_values, dataset, tmp_path)
    whole, all_arrays = evaluate(models, dataset, recipe, settings, 0)
    partial, arrays = evaluate({"0": models["0"]}, dataset, recipe, settings, 0)
    assert partial == {"per_class": {"0": whole["per_class"]["0"]}}
    assert set(arrays) == {"bits", "samples", "nearest"}
    scored = dataset.test_labels == 0
    assert np.array_equal(arrays["bits"][scored], all_arrays["bits"][scored])
    assert np.isnan(arrays["bits"][~scored]).all()
    assert np.isfinite(all_arrays["bits"]).all()


def test_one_draw_is_an_unbiased_estimate_of_several(smoke_values: Any, dataset: Dataset, tmp_path: Path) -> None:
    recipe = validate(smoke_values, "params.yaml").recipe("gaussian")
    train(dataset, recipe, 0, CPU, tmp_path, "gaussian")
    models = {"all": load_flow(tmp_path / "all")}
    means = []
    for draws in (1, 20):
        smoke_values["evaluate"]["draws"] = draws
        result, _ = evaluate(models, dataset, recipe, validate(smoke_values, "params.yaml").evaluate, 0)
        means.append(result["test"]["bits_per_dim"]["mean"])
    assert means[0] == pytest.approx(means[1], abs=0.003)
    assert means[0] != means[1]


@pytest.mark.parametrize("name", ["lunet", "gaussian", "realnvp"])
def test_the_noise_of_the_test_images_is_any_other(params: Params, tmp_path: Path, name: str) -> None:
    # Black images are nothing but noise, which these models learn by heart: only noise of its own scores them rightly.
    black, labels = np.zeros((60, 8, 8), np.uint8), np.zeros(60, np.uint8)
    dataset = Dataset("black", "Black", ("black",), black, labels, black[:40], labels[:40], {})
    fits, _ = train(dataset, params.recipe(name), 0, CPU, tmp_path, name)
    model = load_flow(tmp_path / "all")
    result, _ = evaluate({"all": model}, dataset, params.recipe(name), params.evaluate, 0)
    images = torch.from_numpy(dataset.test_images)
    others = torch.stack([model.bits_per_dim(images, generator=seeded(seed)).mean() for seed in range(20)])
    assert abs(result["test"]["bits_per_dim"]["mean"] - others.mean()) < 4 * others.std()
    holdout = fits["all"].best_holdout_bits_per_dim
    assert holdout is None or holdout > 0


def test_an_impossible_mean_is_an_error(params: Params, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_good(images: Tensor, *_: object, **__: object) -> ImageScores:
        return ImageScores(torch.zeros(len(images), 64), torch.zeros(len(images)), torch.full((len(images),), -0.01))

    model = build(params.recipe("lunet"), (1, 8, 8)).eval()
    monkeypatch.setattr(model, "score", too_good)
    with pytest.raises(ImpossibleLikelihoodError, match=r"the mean of 100 images is -0\.0100 bits per pixel"):
        evaluate({"all": model}, dataset, params.recipe("lunet"), params.evaluate, 0)


def test_the_released_figure_follows_from_the_honest_one(params: Params, dataset: Dataset, tmp_path: Path) -> None:
    recipe = params.recipe("gaussian")
    train(dataset, recipe, 0, CPU, tmp_path, "gaussian")
    model = load_flow(tmp_path / "all")
    result, _ = evaluate({"all": model}, dataset, recipe, params.evaluate, 0)
    images = torch.from_numpy(dataset.test_images)
    _, log_slope = model.preprocess(images, generator("test", 0))
    slope_bits = float(log_slope.mean()) / (64 * np.log(2))
    honest, released = result["test"]["bits_per_dim"]["mean"], result["test"]["poster_bits_per_pixel"]
    assert honest - released == pytest.approx(8.5 - slope_bits, abs=1e-4)


def test_a_trained_lu_net_reconstructs_images(tmp_path: Path) -> None:
    """`test_dvc` checks the LU-Net without learned activations, trained by the whole pipeline."""
    params = load_preset("smoke")
    files, _ = fetch("mnist", params.data.mnist)
    arrays = {array: files[file] for array, file in zip(ARRAYS, FILES, strict=True)}
    write_dataset(tmp_path / "mnist", arrays, describe("mnist", "MNIST", "", "0123456789", arrays, subset=True))
    dataset = load_dataset(tmp_path / "mnist")
    fits, _ = train(dataset, params.recipe("lunet_learned"), 0, CPU, tmp_path / "flows", "lunet_learned")
    assert fits["all"].best_epoch
    assert_images_come_back(tmp_path / "flows/all", dataset.test_images)


@pytest.mark.parametrize(("train_images", "has_base"), [(400, True), (100, False)])
def test_an_lu_net_is_also_scored_with_the_base_of_its_training_latents(
    smoke_values: Any, dataset: Dataset, tmp_path: Path, train_images: int, has_base: bool
) -> None:
    dataset = replace(
        dataset,
        train_images=dataset.train_images[:train_images],
        train_labels=dataset.train_labels[:train_images],
    )
    recipe = recipe_of(smoke_values, "lunet", classes="each")
    train(dataset, recipe, 0, CPU, tmp_path, "lunet")
    models = {key: load_flow(tmp_path / key) for key in groups(dataset, recipe)}
    results, grids = evaluate(models, dataset, recipe, Evaluate.model_validate(smoke_values["evaluate"]), 0)
    assert (results["bases"] is not None, "by_class" in grids) == (has_base, has_base)
    assert set(results["class_samples"]) == ({"standard_normal", "fitted"} if has_base else {"standard_normal"})
    if has_base:
        assert grids["by_class"].shape == grids["samples"].shape == (2, 4, 8, 8)
        assert not np.array_equal(grids["by_class"], grids["samples"])
        assert set(results["bases"]) == {"gaussian"}
        assert results["bases"]["gaussian"]["bits_per_dim"] < results["test"]["bits_per_dim"]["mean"] + 0.5


def recipe(classes: Any = "all") -> Recipe:
    lunet = load_preset("smoke").recipe("lunet")
    return lunet.model_copy(update={"classes": classes})


def test_each_draw_has_its_mean_and_their_mean_is_the_score(two_classes: Dataset) -> None:
    results, _ = evaluate({"all": flow()}, two_classes, recipe(), SETTINGS, 0)
    by_draw = results["test"]["bits_per_dim_by_draw"]
    assert len(by_draw) == len(set(by_draw)) == 3
    assert np.mean(by_draw) == pytest.approx(results["test"]["bits_per_dim"]["mean"], abs=1e-5)
    # Each is what a single draw would have given of 20 images.
    assert max(by_draw) - min(by_draw) < 0.5
    classes = replace(two_classes, class_names=("dark", "bright"))
    each, _ = evaluate({"0": flow(), "1": flow()}, classes, recipe("each"), SETTINGS, 0)
    assert np.mean(each["test"]["bits_per_dim_by_draw"]) == pytest.approx(
        each["test"]["bits_per_dim"]["mean"], abs=1e-5
    )


def test_the_grids_contain_samples_neighbours_and_interpolations(two_classes: Dataset) -> None:
    results, grids = evaluate({"all": flow()}, two_classes, recipe(), SETTINGS, 0)
    bits = grids.pop("bits")
    assert bits.shape == (len(two_classes.test_images),)
    assert bits.mean() == pytest.approx(results["test"]["bits_per_dim"]["mean"])
    assert set(grids) == {"samples", "nearest", "interpolations", "by_class"}
    assert grids["by_class"].shape == (2, 5, 4, 4)
    assert grids["samples"].shape == grids["nearest"].shape == (2, 5, 4, 4)
    assert results["interpolations"] == len(grids["interpolations"]) == 5
    assert all(grid.dtype == np.uint8 for grid in grids.values())
    train = {image.tobytes() for image in two_classes.train_images}
    assert {image.tobytes() for row in grids["nearest"] for image in row} <= train
    assert set(results["fitted_latents"]) == {"projection_distance", "projection_distance_max", "radius_distance"}


def test_scores_are_in_float32_and_the_change_by_the_training_s_precision_is_told(smoke_values: Any) -> None:
    images = np.random.default_rng(0).integers(256, size=(30, 8, 8), dtype=np.uint8)
    labels = np.arange(30, dtype=np.uint8) % 2
    dataset = Dataset("noise", "Noise", ("0", "1"), images, labels, images[:20], labels[:20], {})
    settings = Evaluate.model_validate(smoke_values["evaluate"] | {"round_trip_images": 15})
    results = {}
    for precision in ("float32", "bfloat16"):
        training = smoke_values["recipes"]["realnvp"]["training"] | {"precision": precision}
        recipe = recipe_of(smoke_values, "realnvp", training=training)
        torch.manual_seed(0)
        model = build(recipe, (1, 8, 8)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1, generator=seeded())
        results[precision], _ = evaluate({"all": model}, dataset, recipe, settings, 0)
    assert results["float32"].pop("reduced_precision") is None
    reduced = results["bfloat16"].pop("reduced_precision")
    assert (reduced["precision"], reduced["images"]) == ("bfloat16", 15)
    assert 1e-6 < abs(reduced["mean_change"]) < reduced["largest_change"] < 0.1
    assert results["float32"]["test"] == results["bfloat16"]["test"]
