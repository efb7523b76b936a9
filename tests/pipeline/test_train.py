"""The train stage: each model of a recipe, and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import CPU, folder_with, recipe_of, stage

from lunet import load_flow
from pipeline.core.dataset import Dataset
from pipeline.core.params import Params
from pipeline.train import finished_models, outcome, train
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.models import groups
from pipeline.training.optimisation import TrainingStep
from pipeline.training.record import Fit


@pytest.mark.parametrize("name", ["lunet", "lunet_learned", "realnvp", "gaussian", "histogram"])
def test_a_run_saves_the_best_weights(params: Params, dataset: Dataset, tmp_path: Path, name: str) -> None:
    fits, parameters = train(dataset, params.recipe(name), 0, CPU, tmp_path, name)
    fit = fits["all"]
    assert fit.status == "complete"
    assert 0 < parameters.free <= parameters.stored
    assert load_flow(tmp_path / "all").flow.features == 64
    if params.recipe(name).training is None:
        assert fit.history == []
        assert fit.train_images == 400
        return
    assert (fit.train_images, fit.holdout_images) == (360, 40)
    held = [point["holdout_bits_per_dim"] for point in fit.history]
    assert fit.best_holdout_bits_per_dim == min(held, key=lambda value: value or 0)
    assert fit.history[0]["train_bits_per_dim"] is None
    assert held[-1] is not None
    assert held[0] is not None
    assert held[-1] < held[0] - 0.1


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    params: Params, dataset: Dataset, tmp_path: Path
) -> None:
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        train(dataset, params.recipe("lunet"), seed, CPU, tmp_path / folder, "lunet")
    first, same, other = ((tmp_path / folder / "all/weights.safetensors").read_bytes() for folder in "abc")
    assert first == same
    assert first != other


def test_a_model_per_class_is_trained_only_on_its_class(smoke_values: Any, dataset: Dataset, tmp_path: Path) -> None:
    recipe = recipe_of(smoke_values, "lunet", classes="each")
    assert groups(dataset, recipe) == {"0": 0, "1": 1}
    fits, _ = train(dataset, recipe, 0, CPU, tmp_path, "lunet")
    assert {key: fit.train_images + fit.holdout_images for key, fit in fits.items()} == {"0": 200, "1": 200}
    models = {key: load_flow(tmp_path / key) for key in fits}
    left, right = (model.sample(20, torch.Generator().manual_seed(0)).float() for model in models.values())
    assert left[..., :4].mean() > 150 > 90 > left[..., 4:].mean()
    assert right[..., 4:].mean() > 150 > 90 > right[..., :4].mean()


def test_the_other_classes_are_trained_after_one_diverges(
    smoke_values: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, optimise = 0, TrainingStep.optimise

    def spoil(step: TrainingStep, batch: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            with torch.no_grad():
                step._model.flow.get_parameter("layers.1.bias").fill_(torch.inf)
        optimise(step, batch)

    monkeypatch.setattr(TrainingStep, "optimise", spoil)
    fits, _ = train(dataset, recipe_of(smoke_values, "lunet", classes="each"), 0, CPU, tmp_path, "lunet")
    assert {key: fit.status for key, fit in fits.items()} == {"0": "diverged", "1": "complete"}
    assert (fits["0"].message or "").startswith("class 0: the loss is ")
    assert "the layer layers.1.activation is the first with a value that is not finite; step 3, learning rate" in (
        fits["0"].message or ""
    )
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (
            ("slope: 0.1\n      start", "slope: 1.5\n      start"),
            ("--recipe", "lunet"),
            ["recipes.lunet.model", "slope is 1.5"],
        ),
        (("preset: smoke", "preset: smoke"), ("--recipe", "glow"), ["'glow'", "lunet, lunet_learned"]),
        (("preset: smoke", "preset: paper"), ("--recipe", "lunet"), ["CUDA GPU", "python -m pipeline.preset laptop"]),
        (("device: cpu", "device: cuda"), ("--recipe", "lunet"), ["device: cuda", "auto or cpu"]),
        (("preset: smoke", "preset: smoke"), ("--recipe", "lunet"), ["dataset.json", "missing"]),
    ],
)
def test_a_mistake_ends_a_stage_with_one_message(
    tmp_path: Path, change: tuple[str, str], arguments: tuple[str, ...], words: list[str]
) -> None:
    folder = folder_with(tmp_path, change=change)
    finished = stage("pipeline.train", "--dataset", "mnist", *arguments, "--out", "runs/x", cwd=folder)
    assert finished.returncode == 1
    assert finished.stderr.startswith("error: ")
    assert "Traceback" not in finished.stderr
    for word in words:
        assert word in finished.stderr
    assert [path.name for path in folder.iterdir()] == ["params.yaml"]


def test_a_mistyped_out_folder_deletes_nothing(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "runs/train/mnist-lunet-0").mkdir(parents=True)
    finished = stage("pipeline.train", "--dataset", "mnist", "--recipe", "lunet", "--out", "runs/train", cwd=folder)
    assert finished.returncode == 1
    assert "holds something else" in finished.stderr
    assert (folder / "runs/train/mnist-lunet-0").is_dir()


# Partial runs


def test_a_run_of_some_classes_is_partial_and_of_all_classes_what_they_are() -> None:
    complete = Fit(train_images=9, holdout_images=1)
    failed = Fit(train_images=9, holdout_images=1, status="diverged", message="class 1: the loss is nan")
    assert outcome({"0": complete, "1": complete}, ["0", "1"]) == ("complete", None)
    assert outcome({"0": complete, "1": failed}, ["0", "1"]) == ("diverged", "class 1: the loss is nan")
    assert outcome({"0": complete}, ["0", "1"]) == ("partial", "1 of 2 classes trained")
    message = "1 of 3 classes trained; class 1: the loss is nan"
    assert outcome({"0": complete, "1": failed}, ["0", "1", "2"]) == ("partial", message)


def test_models_are_finished_whose_checkpoint_has_a_fit(tmp_path: Path) -> None:
    assert finished_models(tmp_path, ["0", "1", "2"]) == []
    Checkpoint(tmp_path / "0.pt").write({"epochs": 1.0, "trainer": {}}, "begun")
    Checkpoint(tmp_path / "2.pt").write({"epochs": 3.0, "fit": {}}, "trained")
    assert finished_models(tmp_path, ["0", "1", "2"]) == ["2"]


def test_only_the_chosen_classes_are_trained(smoke_values: Any, dataset: Dataset, tmp_path: Path) -> None:
    recipe = recipe_of(smoke_values, "gaussian", classes="each")
    fits, parameters = train(dataset, recipe, 0, CPU, tmp_path, "gaussian", chosen=["1"])
    assert [*fits] == ["1"]
    assert parameters.stored > 0
