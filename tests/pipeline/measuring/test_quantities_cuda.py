"""Every quantity is measured on a GPU, for every recipe of the paper preset: on a pretend one, and on a real one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from paper_recipes import RECIPES, halves, small_params
from pretend_tensors import Counts

from pipeline.measuring import quantities, released
from pipeline.measuring.quantities import QUANTITIES, take
from pipeline.measuring.stopwatch import Call, Milliseconds

# How often the host may wait for the GPU in one call between two readings of the stopwatch, which waits itself.
WAITS_OF_CALL = {
    "step": 0, "optimizer_step": 0, "density_small": 2, "density_large": 2, "sampling_small": 1, "sampling_large": 1
}  # fmt: skip
ALL = [*((name, quantity) for name in RECIPES for quantity in QUANTITIES)]
IMAGES = halves().train_images


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantities, "WIDTHS", [4])
    monkeypatch.setattr(released, "RELEASED_POINTS", (-1000, 1000.5, 0.5))


def check(name: str, quantity: str) -> None:
    """A quantity is measured, with positive times and memory, or does not apply to the recipe."""
    value: Any = take(quantity, small_params(), name, IMAGES)
    recipe = small_params().recipe(name)
    kind, training = recipe.model.kind, recipe.training
    if quantity == "about":
        assert value["environment"].device == value["device"] == "cuda"
    elif quantity == "determinant":
        assert (value is not None) == (name == "lunet")  # the first LU-Net of the grid
    elif quantity in ("times.step", "times.optimizer_step", "memory.training") and training is None:
        assert value is None
    elif quantity.startswith("times.released"):
        assert (value is not None) == (kind in released.RELEASED_BATCH)
    elif quantity.startswith("times"):
        assert min(value.samples) > 0
    else:
        assert value.allocated_peak_mib > 0
        assert value.reserved_peak_mib >= value.allocated_peak_mib
        assert value.gpu_process_source


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("name", "quantity"), ALL)
def test_every_quantity_is_measured(name: str, quantity: str) -> None:
    check(name, quantity)


@pytest.mark.parametrize("quantity", WAITS_OF_CALL)
@pytest.mark.parametrize("name", [name for name in RECIPES if small_params().recipe(name).training])
def test_a_timed_call_rarely_waits(gpu: Counts, name: str, quantity: str) -> None:
    def waits(calls: int) -> Counter[str]:
        params = small_params(warmup=calls)
        with gpu.of_block() as block:
            take(f"times.{quantity}", params, name, IMAGES[:8])
        return block.waits

    of_call = waits(2) - waits(1)
    assert of_call.total() <= WAITS_OF_CALL[quantity], of_call


@pytest.mark.parametrize("quantity", ["released_optimizer_step", "released_density", "released_sampling"])
@pytest.mark.parametrize("name", released.RELEASED_BATCH)
def test_the_released_stopwatch_waits_only_for_copies_that_the_released_code_makes(
    gpu: Counts, monkeypatch: pytest.MonkeyPatch, name: str, quantity: str
) -> None:
    blocks = []

    def watched(call: Call, device: None) -> Milliseconds:
        with gpu.of_block() as block:
            call()
        blocks.append(block)
        return Milliseconds(1.0, 1.0)

    monkeypatch.setattr(released, "clock", watched)
    take(f"times.{quantity}", small_params(), name, IMAGES[:8])
    waits = sum((block.waits for block in blocks), Counter())
    assert blocks
    # The images, in one batch; and LU-Net's latents, to the CPU and back for each of three activations.
    copies = {"released_density": 1, "released_sampling": 6 if name == "lunet" else 0}.get(quantity, 0)
    assert waits.total() == copies, waits
    assert all(place.startswith("pipeline/measuring/released.py") for place in waits)


@pytest.mark.cuda
@pytest.mark.parametrize(("name", "quantity"), ALL)
def test_a_real_gpu_measures_every_quantity(name: str, quantity: str) -> None:
    check(name, quantity)
