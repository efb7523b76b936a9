"""The training of one model: validation, the best weights, and its failures."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_trainings import CPU, recipe_of

from lunet import ImageFlow, LUNet, load_flow
from pipeline.core.dataset import Dataset
from pipeline.core.params import Params
from pipeline.train import train
from pipeline.training.fit import split, validation_steps, write_history
from pipeline.training.optimisation import TrainingStep
from pipeline.training.record import DIAGNOSES, HISTORY


def test_a_run_that_diverges_is_a_status_and_saves_no_flow(smoke_values: Any, dataset: Dataset, tmp_path: Path) -> None:
    training = smoke_values["recipes"]["lunet"]["training"] | {"learning_rate": 1e6, "clip_norm": None, "epochs": 5}
    fits, _ = train(dataset, recipe_of(smoke_values, "lunet", training=training), 0, CPU, tmp_path, "lunet")
    assert fits["all"].status == "diverged"
    message = fits["all"].message or ""
    assert re.match(r"the loss is (nan|inf): the .*layer layers\.\d", message)
    assert re.search(r"; step \d+, learning rate .*, last finite loss .* bits/dim, norm of its gradient .*", message)
    assert not (tmp_path / "all").exists()


def test_weights_without_a_held_out_likelihood_are_a_divergence(
    params: Params, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruin(step: TrainingStep, _: torch.Tensor) -> None:
        with torch.no_grad():
            next(iter(step._model.parameters())).fill_(float("nan"))

    monkeypatch.setattr(TrainingStep, "optimise", ruin)
    fits, _ = train(dataset, params.recipe("lunet"), 0, CPU, tmp_path, "lunet")
    assert fits["all"].status == "diverged"
    assert "held-out images fail after step 2" in (fits["all"].message or "")


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError("no"), MemoryError()]
)
def test_running_out_of_memory_is_a_status(
    params: Params, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(TrainingStep, "optimise", fail)
    fits, _ = train(dataset, params.recipe("lunet"), 0, CPU, tmp_path, "lunet")
    assert (fits["all"].status, fits["all"].message) == ("out_of_memory", str(error) or "memory does not suffice")


@pytest.mark.parametrize(("most", "words"), [(63, "; a batch of 32 images would fit"), (0, "")])
def test_out_of_memory_is_reported_with_a_batch_that_fits(
    smoke_values: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, words: str
) -> None:
    def limited(_: TrainingStep, batch: torch.Tensor) -> None:
        if len(batch) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto do too much")

    monkeypatch.setattr(TrainingStep, "optimise", limited)
    training = smoke_values["recipes"]["lunet"]["training"] | {"batch_size": 64}
    fits, _ = train(dataset, recipe_of(smoke_values, "lunet", training=training), 0, CPU, tmp_path, "lunet")
    assert fits["all"].message == f"DefaultCPUAllocator: can't allocate memory: you tried{words}"


@pytest.mark.parametrize("name", ["lunet_released", "realnvp_released"])
def test_released_recipes_train_as_released(smoke_values: Any, dataset: Dataset, tmp_path: Path, name: str) -> None:
    smoke_values["recipes"][name]["training"] |= {"epochs": 4, "validations": 2}
    fits, _ = train(dataset, recipe_of(smoke_values, name), 0, CPU, tmp_path, name)
    fit = fits["all"]
    assert (fit.status, fit.train_images, fit.holdout_images) == ("complete", 400, 100)
    first, *_, last = (row["holdout_bits_per_dim"] for row in fit.history)
    assert first is not None
    assert last is not None
    assert last < first
    dtype = torch.float64 if name == "lunet_released" else torch.float32
    assert next(load_flow(tmp_path / "all").parameters()).dtype == dtype
    assert (fit.infinite_pixels is None) == (name == "lunet_released")


def test_a_held_out_likelihood_that_overflows_is_a_divergence(
    params: Params, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def far(flow: LUNet, x: torch.Tensor) -> None:
        with torch.no_grad():
            flow.layers[-1].bias.fill_(1e30)

    monkeypatch.setattr(LUNet, "standardise_", far)
    fits, _ = train(dataset, params.recipe("lunet"), 0, CPU, tmp_path, "lunet")
    assert fits["all"].status == "diverged"
    assert "held-out images fail after step 0" in (fits["all"].message or "")


def test_the_test_set_is_held_out_only_if_the_recipe_says_so(smoke_values: Any) -> None:
    images, test = torch.arange(100), torch.arange(100, 120)
    train_images, holdout = split(images, test, recipe_of(smoke_values, "lunet").training, seed=1)
    assert torch.equal(torch.cat([train_images, holdout]).sort().values, images)
    assert len(holdout) == 10
    train_images, holdout = split(images, test, recipe_of(smoke_values, "lunet_released").training, seed=1)
    assert torch.equal(train_images.sort().values, images)
    assert torch.equal(holdout, test)


@pytest.mark.parametrize(
    ("name", "steps"), [("lunet", [2, 12, 42, 100]), ("lunet_released", [25, 50, 75, 100])], ids=str
)
def test_validations_are_dense_at_first_but_for_released_recipes(
    smoke_values: Any, name: str, steps: list[int]
) -> None:
    smoke_values["recipes"][name]["training"]["validations"] = 4
    training = recipe_of(smoke_values, name).training
    assert training is not None
    assert sorted(validation_steps(training, 100)) == steps
    assert sorted(validation_steps(training, 1)) == [1]


def test_history_has_a_row_for_each_validation(params: Params, dataset: Dataset, tmp_path: Path) -> None:
    fits, _ = train(dataset, params.recipe("lunet"), 0, CPU, tmp_path / "flows", "lunet")
    write_history(tmp_path / "history.csv", fits)
    with (tmp_path / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [*HISTORY]
    assert [row["step"] for row in rows] == ["0", "2", "12"]
    assert [float(row["epoch"]) for row in rows] == [0, 0.1667, 1]


def test_the_first_the_best_and_the_last_row_of_the_history_tell_of_the_inverse(
    smoke_values: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bits = iter([5.0, 4.0, 1.0, 3.0, 2.0])
    monkeypatch.setattr("pipeline.training.fit.score", lambda *_: next(bits))
    training = smoke_values["recipes"]["lunet"]["training"] | {"validations": 4}
    fits, _ = train(dataset, recipe_of(smoke_values, "lunet", training=training), 0, CPU, tmp_path, "lunet")
    assert (fits["all"].best_step, fits["all"].steps) == (2, 12)
    for row in fits["all"].history:
        assert [row[name] is not None for name in DIAGNOSES] == [row["step"] in (0, 2, 12)] * 4
    model = load_flow(tmp_path / "all")
    assert isinstance(model, ImageFlow)
    best = model.flow.diagnostics(torch.zeros(1, model.flow.features)).layers
    assert fits["all"].history[2]["condition"] == pytest.approx(max(layer.condition for layer in best))
