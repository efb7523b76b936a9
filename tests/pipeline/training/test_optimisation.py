"""The optimiser, its groups of parameters, and the learning-rate schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_trainings import recipe_of

from lunet import ImageFlow, LUNet
from pipeline.core.params import Params
from pipeline.training.models import build
from pipeline.training.optimisation import make_optimizer, make_schedule


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


def test_halving_halves_the_rate_after_whole_epochs(smoke_values: Any) -> None:
    training = recipe_of(smoke_values, "lunet_released").training
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
    make_schedule(optimizer, recipe.training, steps=100, per_epoch=10)
    first = [group["lr"] for group in optimizer.param_groups]
    assert first[1] == pytest.approx(50 * first[0])
    without = recipe.training.model_copy(update={"elementwise_rate": None})
    assert {group["lr"] for group in make_optimizer(model, without).param_groups} == {0.001}
