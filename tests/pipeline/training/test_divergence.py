"""Failures of a training step: non-finite losses and gradients, and lack of memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lunet import ImageFlow, LUNet, RealNVP, ReleasedRealNVP
from pipeline.training.divergence import DivergedError, DivergenceGuard, batch_that_fits

IMAGES = torch.randint(256, (6, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Training:
    """A few guarded steps of a model."""

    def __init__(self, model: ImageFlow, clip_norm: float | None = None) -> None:
        self.model, self.clip_norm = model, clip_norm
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.0125)
        self.generator = torch.Generator().manual_seed(0)
        self.losses: list[Tensor] = []
        self.before: dict[str, Tensor] = {}

    def step(self, batch: Tensor) -> Tensor:
        loss = self.model.bits_per_dim(batch, generator=self.generator).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_norm)
        self.optimizer.step()
        self.losses.append(loss.detach())
        return loss.detach()


def models() -> dict[str, ImageFlow]:
    torch.manual_seed(0)
    flows = {
        "lunet": LUNet(16, 3),
        "realnvp": RealNVP((1, 4, 4), (1, 1, 1), 2, 1),
        "realnvp_released": ReleasedRealNVP((1, 4, 4), (1, 1, 1), 2),
    }
    return {name: ImageFlow(flow, (1, 4, 4)).train() for name, flow in flows.items()}


def two_steps(training: Training, spoil: Any) -> None:
    """Take one normal step, and one after the model was spoilt."""
    with DivergenceGuard(training.model, training.optimizer, training.generator) as watch:
        watch.take(training.step, IMAGES)
        spoil(training.model.flow)
        training.before = {key: value.clone() for key, value in training.model.state_dict().items()}
        watch.take(training.step, IMAGES)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize(
    ("name", "parameter", "layer"),
    [
        ("lunet", "layers.1.bias", "layers.1.activation"),
        ("realnvp", "squeezed.0.affine.shift", "squeezed.0.affine"),
        ("realnvp_released", "squeezed.0.shift", "squeezed.0.norm"),
    ],
)
def test_a_non_finite_loss_is_reported_with_its_layer_and_takes_no_step(
    name: str, parameter: str, layer: str, clip_norm: float | None
) -> None:
    training = Training(models()[name], clip_norm)

    def spoil(flow: torch.nn.Module) -> None:
        with torch.no_grad():
            flow.get_parameter(parameter).fill_(torch.inf)

    with pytest.raises(DivergedError) as caught:
        two_steps(training, spoil)
    message = str(caught.value)
    assert "the loss is " in message
    assert f"the layer {layer} is the first with a value that is not finite" in message
    assert f"; step 2, learning rate 0.0125, last finite loss {float(training.losses[0]):.4f} bits/dim" in message
    assert ", largest gradient before it " in message
    for key, value in training.model.state_dict().items():
        assert torch.equal(value, training.before[key])


@pytest.mark.parametrize("clip_norm", [None, 1.0])
@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("realnvp", "full.0.affine"),
        ("realnvp", "squeezed.0.affine"),
        ("realnvp", "final.0.affine"),
        ("realnvp_released", "squeezed.0"),
    ],
)
def test_a_non_finite_gradient_is_reported_with_its_layer_and_takes_no_step(
    name: str, layer: str, clip_norm: float | None
) -> None:
    training = Training(models()[name], clip_norm)

    def spoil(flow: torch.nn.Module) -> None:
        flow.get_parameter(f"{layer}.shift").register_hook(lambda gradient: gradient * torch.inf)

    with pytest.raises(DivergedError) as caught:
        two_steps(training, spoil)
    assert f"the gradient of shift in the layer {layer} is the first that is not finite; step 2" in str(caught.value)
    for key, value in training.model.state_dict().items():
        assert torch.equal(value, training.before[key])


@pytest.mark.parametrize("name", ["lunet", "realnvp", "realnvp_released"])
def test_the_guard_changes_no_step(name: str) -> None:
    plain, watched = Training(models()[name]), Training(models()[name])
    with DivergenceGuard(watched.model, watched.optimizer, watched.generator) as watch:
        for _ in range(3):
            assert torch.equal(plain.step(IMAGES), watch.take(watched.step, IMAGES))
    # The guard leaves no hooks.
    with torch.no_grad():
        next(watched.model.parameters()).fill_(torch.nan)
    assert watched.step(IMAGES).isnan()


def limited(most: int) -> Any:
    def step(batch: Tensor) -> Tensor:
        if len(batch) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
        return torch.zeros(())

    return step


@pytest.mark.parametrize(("most", "size"), [(5, 3), (3, 3), (2, 1), (1, 1), (0, None)])
def test_halving_finds_a_batch_that_fits(most: int, size: int | None) -> None:
    assert batch_that_fits(limited(most), IMAGES) == size


@pytest.mark.parametrize(("most", "words"), [(3, "; a batch of 3 images would fit"), (0, "")])
def test_out_of_memory_is_reported_with_a_batch_that_fits(most: int, words: str) -> None:
    training = Training(models()["lunet"])
    with (
        DivergenceGuard(training.model, training.optimizer, training.generator) as watch,
        pytest.raises(MemoryError) as caught,
    ):
        watch.take(limited(most), IMAGES)
    assert str(caught.value) == f"DefaultCPUAllocator: can't allocate memory: you tried{words}"


def test_other_errors_are_not_mistaken_for_lack_of_memory() -> None:
    def fail(_: Tensor) -> Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        batch_that_fits(fail, IMAGES)
