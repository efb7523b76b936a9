"""Failures of a training step: non-finite losses and gradients, and lack of memory."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from lunet import ImageFlow, LUNet, RealNVP, ReleasedRealNVP
from pipeline.core.params import Params, Training
from pipeline.training.divergence import batch_that_fits, describe_failure
from pipeline.training.optimisation import TrainingStep

IMAGES = torch.randint(256, (6, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[None, 1.0], ids=["unclipped", "clipped"])
def training(params: Params, request: pytest.FixtureRequest) -> Training:
    training = params.recipe("lunet").training
    assert training is not None
    return training.model_copy(update={"clip_norm": request.param, "batch_size": len(IMAGES)})


def models() -> dict[str, ImageFlow]:
    torch.manual_seed(0)
    flows = {
        "lunet": LUNet(16, 3),
        "realnvp": RealNVP((1, 4, 4), (1, 1, 1), 2, 1),
        "realnvp_released": ReleasedRealNVP((1, 4, 4), (1, 1, 1), 2),
    }
    return {name: ImageFlow(flow, (1, 4, 4)).train() for name, flow in flows.items()}


def failure(model: ImageFlow, training: Training, spoil: Any) -> str:
    """The description of a step that fails after a good one, which changes no parameter."""
    generator = torch.Generator().manual_seed(0)
    step = TrainingStep(model, training, generator)
    step.take(IMAGES)
    spoil(model.flow)
    before, noise = copy.deepcopy(model.state_dict()), generator.get_state()
    for _ in range(3):
        step.take(IMAGES)
    assert step.read()[:2] == (True, 1)
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    return describe_failure(model, IMAGES, generator.set_state(noise), training)


@pytest.mark.parametrize(
    ("name", "parameter", "layer"),
    [
        ("lunet", "layers.1.bias", "layers.1.activation"),
        ("realnvp", "squeezed.0.affine.shift", "squeezed.0.affine"),
        ("realnvp_released", "squeezed.0.shift", "squeezed.0.norm"),
    ],
)
def test_the_first_layer_with_a_non_finite_value_is_named(
    name: str, parameter: str, layer: str, training: Training
) -> None:
    def spoil(flow: torch.nn.Module) -> None:
        with torch.no_grad():
            flow.get_parameter(parameter).fill_(torch.inf)

    message = failure(models()[name], training, spoil)
    assert message.startswith("the loss is ")
    assert message.endswith(f": the layer {layer} is the first with a value that is not finite")


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("realnvp", "full.0.affine"),
        ("realnvp", "squeezed.0.affine"),
        ("realnvp", "final.0.affine"),
        ("realnvp_released", "squeezed.0"),
    ],
)
def test_the_first_non_finite_gradient_is_named(name: str, layer: str, training: Training) -> None:
    def spoil(flow: torch.nn.Module) -> None:
        flow.get_parameter(f"{layer}.shift").register_hook(lambda gradient: gradient * torch.inf)

    message = failure(models()[name], training, spoil)
    assert message == f"the gradient of shift in the layer {layer} is the first that is not finite"


def test_a_gradient_whose_norm_overflows_is_a_failure(training: Training) -> None:
    def spoil(flow: torch.nn.Module) -> None:
        flow.get_parameter("layers.1.bias").register_hook(lambda gradient: gradient * 1e25)

    assert failure(models()["lunet"], training, spoil) == "the norm of the gradient is not finite"


def test_a_failure_that_does_not_happen_again_is_told_as_that(training: Training) -> None:
    message = describe_failure(models()["lunet"], IMAGES, torch.Generator().manual_seed(0), training)
    assert message.endswith("but is when the step is taken again without graph and compiler")


def test_a_parameter_of_the_flow_itself_has_no_layer(training: Training) -> None:
    class Shifted(LUNet, kind="shifted-of-this-test"):
        def __init__(self) -> None:
            super().__init__(16, 2)
            self.shift = torch.nn.Parameter(torch.zeros(16))

        def _forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super()._forward(x + self.shift)

    def spoil(flow: torch.nn.Module) -> None:
        flow.get_parameter("shift").register_hook(lambda gradient: gradient * torch.inf)

    message = failure(ImageFlow(Shifted(), (1, 4, 4)).train(), training, spoil)
    assert message == "the gradient of shift is the first that is not finite"


def limited(most: int) -> Any:
    def step(batch: Tensor) -> Tensor:
        if len(batch) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return torch.zeros(())

    return step


@pytest.mark.parametrize(("most", "size"), [(5, 3), (3, 3), (2, 1), (1, 1), (0, None)])
def test_halving_finds_a_batch_that_fits(most: int, size: int | None) -> None:
    assert batch_that_fits(limited(most), IMAGES) == size


def test_other_errors_are_not_mistaken_for_lack_of_memory() -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        batch_that_fits(fail, IMAGES)
