"""The optimiser, its groups of parameters, and the learning-rate schedules."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from small_trainings import recipe_of
from torch.optim import lr_scheduler
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.core.params import Training
from pipeline.presets.merged import load_preset
from pipeline.training.models import build
from pipeline.training.optimisation import TrainingStep, make_optimizer, rate_factor


def training_of(values: Any, name: str, **changes: Any) -> Training:
    training = recipe_of(values, name).training
    assert training is not None
    return training.model_copy(update=changes)


# Schedules


def torch_rates(schedule: Any, steps: int) -> list[float]:
    """The learning rates of torch's schedule for an optimiser with the rate 1, and that after the last step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, rates = schedule(optimizer), []
    for _ in range(steps + 1):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 1000])
@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.5, 0.9])
def test_one_cycle_is_that_of_torch(smoke_values: Any, steps: int, warmup: float) -> None:
    training = training_of(smoke_values, "lunet", warmup=warmup)
    rates = [rate_factor(training, step, steps, per_epoch=10) for step in range(steps + 1)]

    # One step more than are taken, so that the last rate is not zero; and a rise of at least one step.
    rise = min(1.0, max(warmup, 2 / (steps + 1)))
    cycle = partial(lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=steps + 1, cycle_momentum=False)
    assert rates[:-1] == pytest.approx(torch_rates(partial(cycle, pct_start=rise), steps - 1))
    assert steps == 1 or rates[-1] < rates[-2]
    assert all(0 < rate <= 1 for rate in rates)


def test_halving_halves_the_rate_after_whole_epochs(smoke_values: Any) -> None:
    training = training_of(smoke_values, "lunet_released")
    assert training.halve_every == 3
    rates = [rate_factor(training, step, 70, per_epoch=10) for step in range(71)]
    assert rates == torch_rates(lambda optimizer: lr_scheduler.StepLR(optimizer, 30, gamma=0.5), 70)
    assert rates == [1] * 30 + [0.5] * 30 + [0.25] * 11


def test_a_constant_rate_is_constant(smoke_values: Any) -> None:
    training = training_of(smoke_values, "lunet", schedule="constant", warmup=None)
    assert [rate_factor(training, step, 5, per_epoch=2) for step in range(5)] == [1] * 5


def test_triangular_and_elementwise_parameters_have_separate_rates(smoke_values: Any) -> None:
    smoke_values["recipes"]["lunet_learned"]["training"] |= {"learning_rate": 0.001, "elementwise_rate": 0.05}
    recipe = recipe_of(smoke_values, "lunet_learned")
    assert recipe.training is not None
    model = build(recipe, (1, 2, 2))
    optimizer = make_optimizer(model, recipe.training)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(rates) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert rates[id(parameter)] == (0.001 if name.endswith(".lu") else 0.05), name
    without = recipe.training.model_copy(update={"elementwise_rate": None})
    assert {group["lr"] for group in make_optimizer(model, without).param_groups} == {0.001}


# Operations

# Those that only look at memory in another way, or rename it for autograd; a GPU does nothing for them.
VIEWS = {
    "_unsafe_view", "detach", "diagonal", "expand", "permute", "select", "slice", "split", "squeeze", "transpose",
    "unsqueeze", "view",
}  # fmt: skip


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts = Counter[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counts[str(function).split(".")[1]] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "most"), [("realnvp", 1100), ("lunet", 450)])
def test_a_step_of_the_paper_s_size_takes_few_operations_and_reads_no_value(name: str, most: int) -> None:
    recipe = load_preset("paper").recipe(name)
    assert recipe.training is not None
    model = build(recipe, (1, 28, 28)).train()
    step = TrainingStep(model, recipe.training.model_copy(update={"precision": "float32"}), torch.Generator())
    images = torch.randint(256, (2, 28, 28), dtype=torch.uint8)
    step.take(images)
    with Operations() as operations:
        step.take(images)
    assert most / 3 < sum(count for name, count in operations.counts.items() if name not in VIEWS) <= most
    assert not {"_local_scalar_dense", "nonzero", "equal", "is_nonzero"} & operations.counts.keys()
