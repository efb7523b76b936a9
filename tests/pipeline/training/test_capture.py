"""A captured training step does what the step itself does, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from replayed import ReplayedGraphs
from small_trainings import CPU, recipe_of
from torch import Tensor

from lunet import ImageFlow, RealNVP
from pipeline.core.console import UserError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Recipe
from pipeline.train import train
from pipeline.training import capture
from pipeline.training.models import build
from pipeline.training.optimisation import TrainingStep

IMAGES = torch.randint(256, (20, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
RECIPES = ("lunet", "lunet_learned", "realnvp", "lunet_released", "realnvp_released")


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Captures on the CPU, by recordings."""
    monkeypatch.setattr(capture, "can_capture", lambda _: True)
    monkeypatch.setattr(capture, "Graphs", ReplayedGraphs)


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
@pytest.mark.parametrize("name", RECIPES)
def test_a_captured_step_that_fails_changes_nothing_from_then_on(smoke_values: Any, name: str) -> None:
    model, step = step_of(captured(smoke_values, name, batch_size=8))
    step.take(IMAGES[:8])
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] = torch.nan
    before = {key: value.clone() for key, value in model.state_dict().items()}
    take_all(step)
    assert step.read()[:2] == (True, 1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0, equal_nan=True)


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


def test_nothing_is_captured_on_a_cpu(smoke_values: Any) -> None:
    _, step = step_of(captured(smoke_values, "lunet"))
    assert not step.captures
    assert not capture.can_capture(CPU)
