from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from round_trips import assert_images_come_back

from lunet import ImageFlow, LUNet, folding, load_flow
from pipeline.core.dataset import ARRAYS, Dataset, load_dataset
from pipeline.core.files import write_json
from pipeline.core.params import Evaluate, Measure, Params, Recipe, load_params, validate
from pipeline.data import describe, write_dataset
from pipeline.evaluation.samples import draw_samples
from pipeline.evaluation.scores import evaluate
from pipeline.measure import measure
from pipeline.measuring import memory
from pipeline.measuring.quantities import QUANTITIES
from pipeline.measuring.released import sample_as_released
from pipeline.measuring.work import Work
from pipeline.presets.merged import load_preset, preset_text, preset_values
from pipeline.results.conversion import converted
from pipeline.results.records import Likelihood
from pipeline.results.tables import CURVES
from pipeline.sources.published import FILES, fetch
from pipeline.train import train
from pipeline.training.fit import HISTORY, split, write_history
from pipeline.training.models import build, groups
from pipeline.training.optimisation import make_optimizer, make_schedule, optimise

CPU = torch.device("cpu")


@pytest.fixture
def values() -> Any:
    """The smoke preset, cut to a few steps."""
    values = preset_values("smoke")
    for name in ("lunet", "lunet_learned", "realnvp"):
        values["recipes"][name]["training"] |= {"epochs": 1, "batch_size": 32, "validations": 2}
    return values


@pytest.fixture
def params(values: Any) -> Params:
    return validate(values, "params.yaml")


@pytest.fixture
def dataset() -> Dataset:
    """Two classes of 8x8 images: a bright left half, and a bright right half."""
    random = np.random.default_rng(0)

    def images(count: int) -> tuple[Any, Any]:
        labels = np.arange(count, dtype=np.uint8) % 2
        shade = np.where((np.arange(8) < 4) == (labels[:, None, None] == 0), 200, 40) + np.zeros((count, 8, 8))
        return (shade + random.integers(-30, 30, shade.shape)).astype(np.uint8), labels

    (train_images, train_labels), (test_images, test_labels) = images(400), images(100)
    return Dataset("halves", "Halves", ("left", "right"), train_images, train_labels, test_images, test_labels, {})


def recipe_of(values: Any, name: str, **changes: Any) -> Recipe:
    values["recipes"][name] |= changes
    return validate(values, "params.yaml").recipe(name)


def test_the_history_is_what_the_tables_read() -> None:
    assert list(CURVES)[3:] == HISTORY


# Training


@pytest.mark.parametrize("name", ["lunet", "lunet_learned", "realnvp", "gaussian", "histogram"])
def test_a_run_saves_the_weights_that_did_best(params: Params, dataset: Dataset, tmp_path: Path, name: str) -> None:
    fits, parameters = train(dataset, params.recipe(name), 0, CPU, tmp_path, name)
    fit = fits["all"]
    assert fit.status == "complete"
    assert parameters["free"] > 0
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


def test_one_model_a_class_sees_its_class_alone(values: Any, dataset: Dataset, tmp_path: Path) -> None:
    recipe = recipe_of(values, "lunet", classes="each")
    assert groups(dataset, recipe) == {"0": 0, "1": 1}
    fits, _ = train(dataset, recipe, 0, CPU, tmp_path, "lunet")
    assert {key: fit.train_images + fit.holdout_images for key, fit in fits.items()} == {"0": 200, "1": 200}
    models = {key: load_flow(tmp_path / key) for key in fits}
    left, right = (model.sample(20, torch.Generator().manual_seed(0)).float() for model in models.values())
    assert left[..., :4].mean() > 150 > 90 > left[..., 4:].mean()
    assert right[..., 4:].mean() > 150 > 90 > right[..., :4].mean()


def test_a_run_that_diverges_is_a_status_and_saves_no_flow(values: Any, dataset: Dataset, tmp_path: Path) -> None:
    training = values["recipes"]["lunet"]["training"] | {"learning_rate": 1e6, "clip_norm": None, "epochs": 5}
    fits, _ = train(dataset, recipe_of(values, "lunet", training=training), 0, CPU, tmp_path, "lunet")
    assert fits["all"].status == "diverged"
    message = fits["all"].message or ""
    assert re.match(r"the loss is (nan|inf): the .*layer layers\.\d", message)
    assert re.search(
        r"; step \d+, learning rate .*, last finite loss .* bits/dim, largest gradient before it ", message
    )
    assert not (tmp_path / "all").exists()


def test_a_class_that_diverges_is_a_status_and_the_other_classes_go_on(
    values: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def spoil(model: ImageFlow, *arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            with torch.no_grad():
                model.flow.get_parameter("layers.1.bias").fill_(torch.inf)
        return optimise(model, *arguments)

    monkeypatch.setattr("pipeline.training.fit.optimise", spoil)
    fits, _ = train(dataset, recipe_of(values, "lunet", classes="each"), 0, CPU, tmp_path, "lunet")
    assert {key: fit.status for key, fit in fits.items()} == {"0": "diverged", "1": "complete"}
    assert (fits["0"].message or "").startswith("class 0: the loss is ")
    assert "the layer layers.1.activation is the first with a value that is not finite; step 3, learning rate" in (
        fits["0"].message or ""
    )
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_weights_without_a_held_out_likelihood_are_a_divergence(
    params: Params, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ruin(model: ImageFlow, optimizer: torch.optim.Optimizer, *_: object) -> torch.Tensor:
        optimizer.step()
        with torch.no_grad():
            next(iter(model.parameters())).fill_(float("nan"))
        return torch.zeros(())

    monkeypatch.setattr("pipeline.training.fit.optimise", ruin)
    fits, _ = train(dataset, params.recipe("lunet"), 0, CPU, tmp_path, "lunet")
    assert fits["all"].status == "diverged"
    assert "held-out images fail after step 6" in (fits["all"].message or "")


@pytest.mark.parametrize("error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryError("full")])
def test_running_out_of_memory_is_a_status(
    params: Params, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("pipeline.training.fit.optimise", fail)
    fits, _ = train(dataset, params.recipe("lunet"), 0, CPU, tmp_path, "lunet")
    assert (fits["all"].status, fits["all"].message) == ("out_of_memory", str(error))


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 1000])
@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.5, 0.9])
def test_the_schedule_rises_and_falls_for_any_length(params: Params, steps: int, warmup: float) -> None:
    training = params.recipe("lunet").training
    assert training is not None
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    schedule = make_schedule(optimizer, training.model_copy(update={"warmup": warmup}), steps, per_epoch=10)
    rates = []
    for _ in range(steps):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    assert all(0 < rate <= training.learning_rate * (1 + 1e-9) for rate in rates)
    if steps == 1000:
        assert rates.index(max(rates)) == pytest.approx(warmup * steps, abs=2)
        assert max(rates) == pytest.approx(training.learning_rate, rel=1e-3)


def test_halving_halves_the_rate_after_whole_epochs(values: Any) -> None:
    training = recipe_of(values, "lunet_released").training
    assert training is not None
    optimizer = make_optimizer(ImageFlow(LUNet(4), (1, 2, 2)), training)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.defaults["momentum"] == 0.9
    schedule = make_schedule(optimizer, training, steps=70, per_epoch=10)
    rates = []
    for _ in range(70):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    assert rates == [0.6] * 30 + [0.3] * 30 + [0.15] * 10


def test_triangles_and_what_acts_on_one_feature_have_rates_of_their_own(values: Any) -> None:
    values["recipes"]["lunet_learned"]["training"] |= {"learning_rate": 0.001, "elementwise_rate": 0.05}
    recipe = recipe_of(values, "lunet_learned")
    assert recipe.training is not None
    model = build(recipe, (1, 2, 2))
    optimizer = make_optimizer(model, recipe.training)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (0.001 if name.endswith(".lu") else 0.05), name
    make_schedule(optimizer, recipe.training, steps=100, per_epoch=10)
    first = [group["lr"] for group in optimizer.param_groups]
    assert first[1] == pytest.approx(50 * first[0])
    without = recipe.training.model_copy(update={"elementwise_rate": None})
    assert {group["lr"] for group in make_optimizer(model, without).param_groups} == {0.001}


@pytest.mark.parametrize("name", ["lunet_released", "realnvp_released"])
def test_released_recipes_train_as_released(values: Any, dataset: Dataset, tmp_path: Path, name: str) -> None:
    values["recipes"][name]["training"] |= {"epochs": 4, "validations": 2}
    fits, _ = train(dataset, recipe_of(values, name), 0, CPU, tmp_path, name)
    fit = fits["all"]
    assert (fit.status, fit.train_images, fit.holdout_images) == ("complete", 400, 100)
    first, *_, last = (row["holdout_bits_per_dim"] for row in fit.history)
    assert first is not None
    assert last is not None
    assert last < first
    dtype = torch.float64 if name == "lunet_released" else torch.float32
    assert next(load_flow(tmp_path / "all").parameters()).dtype == dtype
    assert (fit.infinite_pixels is None) == (name == "lunet_released")


def test_the_test_set_is_looked_at_where_the_recipe_says_so_alone(values: Any) -> None:
    images, test = torch.arange(100), torch.arange(100, 120)
    own, chosen_on = split(images, test, recipe_of(values, "lunet").training, seed=1)
    assert torch.equal(torch.cat([own, chosen_on]).sort().values, images)
    assert len(chosen_on) == 10
    own, chosen_on = split(images, test, recipe_of(values, "lunet_released").training, seed=1)
    assert torch.equal(own.sort().values, images)
    assert torch.equal(chosen_on, test)


def test_history_is_a_table_with_a_row_for_each_look(params: Params, dataset: Dataset, tmp_path: Path) -> None:
    fits, _ = train(dataset, params.recipe("lunet"), 0, CPU, tmp_path / "flows", "lunet")
    write_history(tmp_path / "history.csv", fits)
    with (tmp_path / "history.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == HISTORY
    assert [row["step"] for row in rows] == ["0", "6", "12"]
    assert [float(row["epoch"]) for row in rows] == [0, 0.5, 1]


# Evaluation


def test_evaluation_scores_each_image_by_the_model_of_its_class(values: Any, dataset: Dataset, tmp_path: Path) -> None:
    recipe = recipe_of(values, "gaussian", classes="each")
    settings = validate(values, "params.yaml").evaluate
    train(dataset, recipe, 0, CPU, tmp_path, "gaussian")
    models = {key: load_flow(tmp_path / key) for key in ("0", "1")}
    right, _ = evaluate(models, dataset, recipe, settings, 0)
    swapped, _ = evaluate({"0": models["1"], "1": models["0"]}, dataset, recipe, settings, 0)
    assert right["test"]["bits_per_dim"]["mean"] < swapped["test"]["bits_per_dim"]["mean"] - 1
    assert right["sample_class_accuracy"] == 1
    assert swapped["sample_class_accuracy"] == 0
    assert (right["classification_accuracy"], swapped["classification_accuracy"]) == (1, 0)
    assert right["per_class"]["0"]["images"] == 50
    assert right["round_trip"]["pixels_exact"] == 1
    assert right["latents"]["images"] == 100


def test_one_draw_is_an_unbiased_estimate_of_several(values: Any, dataset: Dataset, tmp_path: Path) -> None:
    recipe = validate(values, "params.yaml").recipe("gaussian")
    train(dataset, recipe, 0, CPU, tmp_path, "gaussian")
    models = {"all": load_flow(tmp_path / "all")}
    means = []
    for draws in (1, 20):
        values["evaluate"]["draws"] = draws
        result, _ = evaluate(models, dataset, recipe, validate(values, "params.yaml").evaluate, 0)
        means.append(result["test"]["bits_per_dim"]["mean"])
    assert means[0] == pytest.approx(means[1], abs=0.003)
    assert means[0] != means[1]


def test_the_released_figure_follows_from_the_honest_one(params: Params, dataset: Dataset, tmp_path: Path) -> None:
    recipe = params.recipe("gaussian")
    train(dataset, recipe, 0, CPU, tmp_path, "gaussian")
    model = load_flow(tmp_path / "all")
    result, _ = evaluate({"all": model}, dataset, recipe, params.evaluate, 0)
    images = torch.from_numpy(dataset.test_images)
    _, log_slope = model.preprocess(images, torch.Generator().manual_seed(0))
    slope_bits = float(log_slope.mean()) / (64 * np.log(2))
    honest, released = result["test"]["bits_per_dim"]["mean"], result["test"]["poster_bits_per_pixel"]
    assert honest - released == pytest.approx(8.5 - slope_bits, abs=1e-4)


@pytest.mark.parametrize("name", ["lunet", "realnvp", "lunet_released", "realnvp_released"])
@pytest.mark.parametrize("classes", ["all", "each"])
def test_a_printed_figure_converts_to_the_honest_one(
    values: Any, dataset: Dataset, tmp_path: Path, name: str, classes: str
) -> None:
    recipe = recipe_of(values, name, classes=classes)
    train(dataset, recipe, 0, CPU, tmp_path, name)
    models = {key: load_flow(tmp_path / key) for key in groups(dataset, recipe)}
    settings = values["evaluate"] | {"draws": 100, "sample_rows": 1, "sample_columns": 1}
    found, _ = evaluate(models, dataset, recipe, Evaluate.model_validate(settings), 0)
    per_class = {label: Likelihood.model_validate(own) for label, own in found["per_class"].items()}
    assert len(per_class) == 2
    # What is left is the noise of the logit's slopes: 100 draws of 6,400 pixels.
    assert converted(per_class, recipe, dataset) == pytest.approx(found["test"]["bits_per_dim"]["mean"], abs=0.003)
    assert found["test"]["poster_bits_per_pixel"] != pytest.approx(found["test"]["bits_per_dim"]["mean"], abs=0.3)


def test_images_come_back_through_a_trained_net(tmp_path: Path) -> None:
    """The one without learned activations is looked at where the whole pipeline has trained it, in `test_dvc`."""
    params = load_preset("smoke")
    files, _ = fetch("mnist", params.data.mnist)
    arrays = {array: files[file] for array, file in zip(ARRAYS, FILES, strict=True)}
    write_dataset(tmp_path / "mnist", arrays, describe("mnist", arrays, subset=True))
    dataset = load_dataset(tmp_path / "mnist")
    fits, _ = train(dataset, params.recipe("lunet_learned"), 0, CPU, tmp_path / "flows", "lunet_learned")
    assert fits["all"].best_epoch
    assert_images_come_back(tmp_path / "flows/all", dataset.test_images)


@pytest.mark.parametrize(("train_images", "has_base"), [(400, True), (100, False)])
def test_an_lu_net_is_also_seen_with_the_base_of_its_training_latents(
    values: Any, dataset: Dataset, tmp_path: Path, train_images: int, has_base: bool
) -> None:
    dataset = replace(
        dataset,
        train_images=dataset.train_images[:train_images],
        train_labels=dataset.train_labels[:train_images],
    )
    recipe = recipe_of(values, "lunet", classes="each")
    train(dataset, recipe, 0, CPU, tmp_path, "lunet")
    models = {key: load_flow(tmp_path / key) for key in groups(dataset, recipe)}
    found, grids = evaluate(models, dataset, recipe, Evaluate.model_validate(values["evaluate"]), 0)
    assert (found["fitted_base_bits_per_dim"] is not None) == has_base
    assert ("fitted_base" in grids) == has_base
    if has_base:
        assert grids["fitted_base"].shape == grids["samples"].shape == (2, 4, 8, 8)
        assert not np.array_equal(grids["fitted_base"], grids["samples"])
        assert found["fitted_base_bits_per_dim"] < found["test"]["bits_per_dim"]["mean"] + 0.5


def test_samples_are_the_first_ones_in_rows_and_columns(params: Params) -> None:
    model = build(params.recipe("lunet"), (1, 8, 8)).eval()
    samples = draw_samples({"all": model}, params.evaluate, 0)
    assert samples.shape == (params.evaluate.sample_rows, params.evaluate.sample_columns, 8, 8)
    first = model.sample(samples.shape[0] * samples.shape[1], torch.Generator().manual_seed(0))
    assert torch.equal(samples.flatten(0, 1), first[:, 0])


# Measurement


@pytest.mark.parametrize("name", ["lunet", "gaussian"])
def test_every_quantity_that_applies_is_measured(params: Params, dataset: Dataset, name: str) -> None:
    settings = Measure(repetitions=5, seconds=0.05, warmup=1, large_batch=20)
    result = measure(params.model_copy(update={"measure": settings}), name, dataset.train_images[:20])
    assert result["status"] == "complete"
    stepped = name == "lunet"
    assert (result["times"]["step"] is not None) == (result["times"]["optimizer_step"] is not None) == stepped
    assert (result["memory"]["training"] is not None) == (result["determinant"] is not None) == stepped
    for quantity in ("density_small", "density_large", "sampling_small", "sampling_large"):
        assert len(result["times"][quantity]["samples"]) >= 5
        assert min(result["times"][quantity]["samples"]) > 0
    assert result["times"]["density_large"]["batch"] == 20
    released = {key: time for key, time in result["times"].items() if key.startswith("released")}
    assert len(released) == 3
    assert all((time is not None) == stepped for time in released.values())
    weighed = result["memory"]["sampling"]
    assert weighed["process_peak_mib"] >= weighed["process_start_mib"] > 10


@pytest.mark.parametrize("name", ["lunet", "lunet_learned"])
def test_a_trained_lu_net_can_fold_its_inverses(values: Any, dataset: Dataset, tmp_path: Path, name: str) -> None:
    if name == "lunet":
        values["recipes"]["lunet"]["model"]["start"] = "copula"
    train(dataset, recipe_of(values, name), 0, CPU, tmp_path, name)
    flow = load_flow(tmp_path / "all").flow
    assert isinstance(flow, LUNet)
    assert all(folding.inverse(layer.lu) is not None for layer in flow.layers)


def released_work(values: Any, name: str, monkeypatch: pytest.MonkeyPatch, images: int) -> Work:
    """What a measuring process is given, and a clock that moves on by one second whenever it is read."""
    readings = iter(range(1000))
    monkeypatch.setattr("pipeline.measuring.work.time.perf_counter", lambda: next(readings))
    params = validate(values, "params.yaml")
    pixels = torch.arange(images * 64).remainder(251).to(torch.uint8).reshape(images, 8, 8)
    return Work(params.recipe(name), pixels, CPU, params.measure)


@pytest.mark.parametrize(("name", "size"), [("lunet", 256), ("realnvp", 128)])
def test_the_released_density_is_a_pass_over_the_batch_size(
    values: Any, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    seen: list[int] = []
    bits_per_dim = ImageFlow.bits_per_dim

    def counted(self: ImageFlow, images: torch.Tensor, **options: Any) -> torch.Tensor:
        seen.append(len(images))
        return bits_per_dim(self, images, **options)

    monkeypatch.setattr(ImageFlow, "bits_per_dim", counted)
    monkeypatch.setattr("pipeline.measuring.released.CPU_IMAGES", 300)
    found = QUANTITIES["time_released_density"](released_work(values, name, monkeypatch, 1500))
    assert seen == ([256, 44] if name == "lunet" else [128, 128, 44])
    # The clock has said one second for the first batch and one for the others of 300 images, and there are 1,500.
    assert found["samples"] == [pytest.approx((1000 + 1000 * (1500 - size) / (300 - size)) / size)]
    assert (found["batch"], found["images"], found["of"]) == (size, 300, 1500)


@pytest.mark.parametrize(("name", "count"), [("lunet", 100), ("realnvp", 64)])
def test_the_released_sampling_is_one_call_over_its_images(
    values: Any, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    monkeypatch.setattr("pipeline.measuring.released.RELEASED_POINTS", (-1000, 1000.5, 0.5))
    found = QUANTITIES["time_released_sampling"](released_work(values, name, monkeypatch, 8))
    assert found["samples"] == [1000 / count]
    assert found["batch"] == count


def test_the_released_step_is_the_first_update_alone(values: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr("torch.optim.Adam.step", lambda self: steps.append("step"))
    monkeypatch.setattr("torch.optim.SGD.step", lambda self: steps.append("step"))
    found = QUANTITIES["time_released_optimizer_step"](released_work(values, "lunet", monkeypatch, 32))
    assert steps == ["step"]
    assert (found["samples"], found["batch"]) == ([1000.0], 32)


@pytest.mark.parametrize("quantity", ["optimizer_step", "density", "sampling"])
@pytest.mark.parametrize("name", ["lunet_learned", "gaussian", "histogram"])
def test_the_released_stopwatch_knows_the_paper_s_models_alone(
    values: Any, monkeypatch: pytest.MonkeyPatch, name: str, quantity: str
) -> None:
    assert QUANTITIES[f"time_released_{quantity}"](released_work(values, name, monkeypatch, 8)) is None


def test_the_released_way_of_sampling_inverts_the_flow() -> None:
    torch.manual_seed(0)
    flow = LUNet(6, 4).double()
    with torch.no_grad():
        for layer in flow.layers:
            layer.lu.add_(0.1 * torch.randn(6, 6))
            # Far below, the inverse leaves the points to which the splines are fitted.
            layer.bias.sub_(2)
        torch.manual_seed(1)
        samples = sample_as_released(flow, 50)
        torch.manual_seed(1)
        latents = torch.randn(50, 6, dtype=torch.float64)
        # Cubic splines at a step of 0.001.
        torch.testing.assert_close(samples, flow.inverse(latents), rtol=1e-7, atol=1e-7)


class FakeDriver:
    """What NVML says: which processes it tells apart, how many GPUs there are, and how much is in use, in MiB."""

    NVMLError = OSError

    def __init__(self, processes: dict[int, int], gpus: int, used: int) -> None:
        self.nvmlInit = lambda: None
        self.nvmlDeviceGetHandleByUUID = self.nvmlDeviceGetHandleByIndex = lambda _: None
        self.nvmlDeviceGetComputeRunningProcesses = lambda _: [
            SimpleNamespace(pid=pid, usedGpuMemory=mib * 2**20) for pid, mib in processes.items()
        ]
        self.nvmlDeviceGetCount = lambda: gpus
        self.nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=used * 2**20)


@pytest.mark.parametrize(
    ("processes", "gpus", "before", "expected"),
    [
        ({os.getpid(): 700, 1: 5}, 1, 100.0, 700),
        ({1: 650}, 1, 100.0, 800),
        ({}, 1, 100.0, 800),
        ({}, 2, None, None),
        ({}, 1, 900.0, None),
    ],
)
def test_a_process_s_memory_on_a_gpu_is_the_driver_s_or_the_growth_of_the_only_gpu(
    monkeypatch: pytest.MonkeyPatch, processes: dict[int, int], gpus: int, before: float | None, expected: float | None
) -> None:
    monkeypatch.setattr(memory, "pynvml", FakeDriver(processes, gpus, 900))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="u"))
    assert memory._gpu_process_mib(torch.device("cuda"), before) == expected


# The command line: one clear message, no traceback, nothing half-written


def stage(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-m", *arguments]
    environment = {**os.environ, "PYTHONPATH": root, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def folder_with(tmp_path: Path, **changes: Any) -> Path:
    text = preset_text("smoke")
    for before, after in changes.values():
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("change", "arguments", "words"),
    [
        (("slope: 0.1", "slope: 1.5"), ("--recipe", "lunet"), ["recipes.lunet.model.slope", "1.5", "less than 1"]),
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


def test_data_of_another_name_are_refused(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    assert stage("pipeline.data", "--dataset", "mnist", "--out", "data/mnist", cwd=folder).returncode == 0
    arguments = ("--dataset", "fashion_mnist", "--data", "data/mnist", "--recipe", "gaussian", "--out", "runs/x")
    finished = stage("pipeline.train", *arguments, cwd=folder)
    assert finished.returncode == 1
    assert "holds the data set mnist, not fashion_mnist" in finished.stderr


def test_an_evaluation_of_a_diverged_run_says_so_and_goes_on(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    assert stage("pipeline.data", "--dataset", "mnist", "--out", "data/mnist", cwd=folder).returncode == 0
    run = folder / "runs/train/mnist-lunet-0"
    run.mkdir(parents=True)
    recipe_params = load_params(folder / "params.yaml").recipe("lunet").model_dump(mode="json")
    names = {"dataset": "mnist", "recipe": "lunet", "seed": 0, "recipe_params": recipe_params}
    write_json(run / "run.json", {**names, "status": "diverged", "message": "the loss is nan"})
    finished = stage(
        "pipeline.evaluate", "--dataset", "mnist", "--recipe", "lunet", "--out", "runs/evaluate/x.json", cwd=folder
    )
    assert finished.returncode == 0, finished.stderr
    result = json.loads((folder / "runs/evaluate/x.json").read_text(encoding="utf-8"))
    assert (result["status"], result["test"]) == ("diverged", None)
    assert np.load(folder / "runs/samples/mnist-lunet-0/samples.npy").shape == (0, 4, 28, 28)
