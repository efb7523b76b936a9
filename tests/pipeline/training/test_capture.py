"""A captured training step does what the step itself does, to the last bit."""

from __future__ import annotations

import copy
import signal
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from replayed import install
from small_trainings import CPU, recipe_of
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from lunet import ImageFlow, RealNVP
from pipeline.core.console import StoppedError, StopRequest, UserError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Recipe
from pipeline.train import train
from pipeline.training import capture
from pipeline.training.checkpoints import Checkpoint
from pipeline.training.models import build
from pipeline.training.objectives import loss_and_bits
from pipeline.training.optimisation import TrainingStep

IMAGES = torch.randint(256, (20, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RECIPES = ("lunet", "lunet_learned", "realnvp", "lunet_released", "realnvp_released")


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures on the CPU, by recordings."""
    install(monkeypatch)


def captured(values: Any, name: str, **changes: Any) -> Recipe:
    # A graph reads its rate as a float32 number, which this one is.
    rate = {"learning_rate": 2**-10, "schedule": "constant", "warmup": None, "halve_every": None}
    training = values["recipes"][name]["training"] | rate | {"capture": True} | changes
    return recipe_of(values, name, training=training)


def step_of(recipe: Recipe) -> tuple[ImageFlow, TrainingStep]:
    torch.manual_seed(0)
    model = build(recipe, (1, 8, 8)).train()
    assert recipe.training is not None
    noise, pixels = (torch.Generator().manual_seed(seed) for seed in range(2))
    return model, TrainingStep(model, recipe.training, noise, pixels)


def take_all(step: TrainingStep) -> None:
    """Steps on full and on short batches, at changing rates."""
    for number, size in enumerate([8, 8, 4, 8, 4, 8]):
        step.take(IMAGES[number : number + size], factor=2**-number)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("name", RECIPES)
def test_a_captured_step_is_the_step_itself(smoke_values: Any, name: str) -> None:
    outcomes = []
    for capture_it in (False, True):
        model, step = step_of(captured(smoke_values, name, capture=capture_it, batch_size=8))
        assert step.captures == capture_it
        take_all(step)
        outcomes.append((model.state_dict(), step.read(), step.state()["optimizer"]["state"]))
    assert outcomes[0][1].completed == 6
    torch.testing.assert_close(*outcomes, rtol=0, atol=0)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("capture_it", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_a_step_that_fails_changes_nothing_from_then_on(
    smoke_values: Any, monkeypatch: pytest.MonkeyPatch, name: str, *, capture_it: bool
) -> None:
    def spoilt(model: ImageFlow, batch: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        loss, bits = loss_and_bits(model, batch, *arguments)
        # A batch that begins with a white image has no finite loss.
        is_white = (batch[0] == 255).all()
        return loss.masked_fill(is_white, torch.nan), bits.masked_fill(is_white, torch.nan)

    monkeypatch.setattr("pipeline.training.optimisation.loss_and_bits", spoilt)
    model, step = step_of(captured(smoke_values, name, capture=capture_it, batch_size=8))
    step.take(IMAGES[:8])
    before = copy.deepcopy((model.state_dict(), step.state()["optimizer"]["state"], step.read()[1:]))
    images = IMAGES.clone()
    images[0] = 255
    step.take(images[:8])
    step.take(IMAGES[:4])  # the first of its size: captured after the failure
    take_all(step)
    after = model.state_dict(), step.state()["optimizer"]["state"], step.read()[1:]
    assert step.read().failed
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.usefixtures("replayed")
def test_what_is_tried_out_changes_nothing(smoke_values: Any) -> None:
    model, step = step_of(captured(smoke_values, "realnvp", batch_size=8))
    take_all(step)
    before = copy.deepcopy(model.state_dict())
    step.try_out(IMAGES[:4])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("name", RECIPES)
def test_a_captured_training_is_the_training_itself(
    smoke_values: Any, dataset: Dataset, tmp_path: Path, name: str
) -> None:
    fits = {}
    for capture_it in (False, True):
        recipe = captured(smoke_values, name, capture=capture_it, batch_size=48, epochs=1)
        fit = train(dataset, recipe, 0, CPU, tmp_path / str(capture_it), name)[0]["all"]
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in fit.history]
        fits[capture_it] = (fit.status, fit.best_step, fit.infinite_pixels, rows)
    assert fits[True] == fits[False]
    assert fits[True][0] == "complete"
    files = [(tmp_path / str(it) / "all/weights.safetensors").read_bytes() for it in (False, True)]
    assert files[0] == files[1]


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("name", RECIPES)
def test_a_captured_training_resumes_exactly(smoke_values: Any, dataset: Dataset, tmp_path: Path, name: str) -> None:
    recipe, request = captured(smoke_values, name, batch_size=48, epochs=1), StopRequest()
    train(dataset, recipe, 0, CPU, tmp_path / "whole", name)
    request.signal = signal.SIGTERM

    def checkpoint(seconds: float, request: StopRequest | None = None) -> Callable[[str], Checkpoint]:
        return lambda model: Checkpoint(tmp_path / f"{model}.pt", seconds, request)

    for _ in range(3):
        with pytest.raises(StoppedError):
            train(dataset, recipe, 0, CPU, tmp_path / "resumed", name, checkpoint(0, request))
    train(dataset, recipe, 0, CPU, tmp_path / "resumed", name, checkpoint(1e6))
    files = [(tmp_path / run / "all/weights.safetensors").read_bytes() for run in ("whole", "resumed")]
    assert files[0] == files[1]


@pytest.mark.usefixtures("replayed")
def test_a_failure_of_a_captured_step_names_step_layer_and_rate(
    smoke_values: Any, dataset: Dataset, tmp_path: Path
) -> None:
    messages = []
    for capture_it in (False, True):
        recipe = captured(smoke_values, "lunet", capture=capture_it, learning_rate=1e6, clip_norm=None, epochs=5)
        messages.append(train(dataset, recipe, 0, CPU, tmp_path / str(capture_it), "lunet")[0]["all"].message)
    assert messages[0] == messages[1]
    assert "; step " in (messages[0] or "")


def spoilt(model: ImageFlow, spoil: Any) -> None:
    original = model.flow._forward

    def forward(x: Tensor) -> Any:
        spoil(model.flow, x)
        return original(x)

    model.flow._forward = forward  # type: ignore[method-assign]


def read_a_value(_: Any, x: Tensor) -> None:
    float(x.sum())


def replace_a_buffer(flow: Any, _: Tensor) -> None:
    flow.average = flow.average + 1


@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (read_a_value, "operation not permitted when stream is capturing"),
        (replace_a_buffer, "flow.average is replaced in each step, and not changed in place"),
    ],
)
def test_a_flow_that_cannot_be_captured_is_refused_with_what_to_do(smoke_values: Any, spoil: Any, reason: str) -> None:
    recipe = captured(smoke_values, "realnvp")
    assert recipe.training is not None
    model = build(recipe, (1, 8, 8)).train()
    assert isinstance(model.flow, RealNVP)
    model.flow.register_buffer("average", torch.zeros(1))
    spoilt(model, spoil)
    step = TrainingStep(model, recipe.training, torch.Generator())
    with pytest.raises(UserError, match=f"a training step cannot be captured, {reason}; set training.capture: false"):
        step.take(IMAGES)


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_networks_are_compiled_once_for_all_classes_and_for_full_batches_alone(
    smoke_values: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter, compiled = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(capture, "runs_graphs", lambda _: True)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(compiled, backend=counter))
    torch.compiler.reset()
    files = []
    for compile_it in (False, True):
        recipe = captured(smoke_values, "realnvp", capture=False, compile=compile_it, batch_size=48)
        recipe = recipe.model_copy(update={"classes": "each"})
        assert 180 % 48 != 0
        fits, _ = train(dataset, recipe, 0, CPU, tmp_path / str(compile_it), "realnvp")
        assert [fit.status for fit in fits.values()] == ["complete"] * 2
        files.append([(tmp_path / str(compile_it) / name / "weights.safetensors").read_bytes() for name in fits])
    assert files[0] == files[1]
    # One compilation for each shape of a network: before and after the squeeze, and at the end.
    assert counter.frame_count == 3


@pytest.mark.parametrize(("wanted", "mode", "expected"), [(True, 0, True), (False, 0, False), (True, 2, False)])
def test_algorithms_are_timed_for_full_batches_unless_they_must_not_vary(
    monkeypatch: pytest.MonkeyPatch, *, wanted: bool, mode: int, expected: bool
) -> None:
    monkeypatch.setattr(torch, "get_deterministic_debug_mode", lambda: mode)
    with capture.fastest_convolutions(wanted=wanted):
        assert torch.backends.cudnn.benchmark == expected
    assert not torch.backends.cudnn.benchmark


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_networks_that_cannot_be_compiled_are_refused_with_what_to_do(
    smoke_values: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler is here")

    compiled = nn.Module.compile
    monkeypatch.setattr(capture, "runs_graphs", lambda _: True)
    monkeypatch.setattr(nn.Module, "compile", partialmethod(compiled, backend=fail))
    torch.compiler.reset()
    _, step = step_of(captured(smoke_values, "realnvp", capture=False, compile=True, batch_size=8))
    with pytest.raises(UserError, match=r"cannot be compiled, .*no compiler is here.*; set training\.compile: false"):
        step.take(IMAGES[:8])
    step.take(IMAGES[:4])
    assert step.read().completed == 1


def test_nothing_is_captured_on_a_cpu(smoke_values: Any) -> None:
    _, step = step_of(captured(smoke_values, "lunet"))
    assert not step.captures
    assert not capture.runs_graphs(CPU)


# On a GPU

gpu = pytest.mark.cuda


def gpu_step(recipe: Recipe) -> tuple[ImageFlow, TrainingStep, torch.Generator]:
    torch.manual_seed(0)
    model = build(recipe, (1, 8, 8)).to("cuda").train()
    assert recipe.training is not None
    noise, pixels = (torch.Generator("cuda").manual_seed(seed) for seed in range(2))
    return model, TrainingStep(model, recipe.training, noise, pixels), noise


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in RECIPES])
def test_a_graph_draws_the_noise_of_the_step_itself(smoke_values: Any, name: str) -> None:
    losses, states = [], []
    for capture_it in (False, True):
        _, step, noise = gpu_step(captured(smoke_values, name, capture=capture_it, batch_size=8))
        assert step.captures == capture_it
        bits = []
        for size in (8, 4, 8, 8, 4):
            step.take(IMAGES[:size].cuda(), factor=0.0)
            bits.append(step.read().last_bits)
        losses.append(bits)
        states.append(noise.get_state())
    assert len(set(losses[0])) == 5
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert torch.equal(*states)


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in RECIPES])
def test_a_graph_takes_the_steps_themselves_and_waits_for_nothing(smoke_values: Any, name: str) -> None:
    outcomes = []
    for capture_it in (False, True):
        model, step, _ = gpu_step(captured(smoke_values, name, capture=capture_it, batch_size=8))
        images = IMAGES.cuda()
        step.take(images[:8])
        step.take(images[:4])
        torch.cuda.set_sync_debug_mode("error")
        try:
            for number in range(4):
                step.take(images[number : number + 8], factor=2**-number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        totals = step.read()
        assert (totals.failed, totals.completed) == (False, 6)
        outcomes.append((model.state_dict(), torch.tensor(totals[2:])))
    torch.testing.assert_close(*outcomes, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", [pytest.param(name, marks=gpu) for name in ("float32", "tf32", "bfloat16")])
def test_compiled_networks_in_a_graph_are_close_to_the_step_itself(smoke_values: Any, precision: str) -> None:
    torch.compiler.reset()  # or a third precision exceeds the compiler's limit of versions of a function
    totals = []
    for changes in ({"capture": False}, {"precision": precision, "compile": True}):
        _, step, _ = gpu_step(captured(smoke_values, "realnvp", batch_size=8, **changes))
        for number in range(5):
            step.take(IMAGES[number : number + 8].cuda())
        totals.append(step.read())
    assert totals[1].completed == 5
    assert totals[1].bits == pytest.approx(totals[0].bits, rel=1e-2 if precision == "bfloat16" else 1e-3)


@pytest.mark.parametrize("name", [pytest.param(name, marks=gpu) for name in ("lunet", "realnvp_released")])
def test_a_failure_in_a_graph_names_step_layer_and_rate(
    smoke_values: Any, dataset: Dataset, tmp_path: Path, name: str
) -> None:
    changes = {"learning_rate": 1e6, "clip_norm": None, "epochs": 2, "batch_size": 64}
    fits, _ = train(dataset, captured(smoke_values, name, **changes), 0, torch.device("cuda"), tmp_path, name)
    assert fits["all"].status == "diverged"
    assert "the first" in (fits["all"].message or "")
    assert "; step 2, learning rate 1e+06, last finite loss" in (fits["all"].message or "")
