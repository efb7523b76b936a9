"""Every quantity is measured on a GPU, for every recipe of the paper preset: on a pretend one, and on a real one."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from paper_recipes import RECIPES, halves, small_params
from pretend_tensors import Counts

from pipeline.measuring import quantities, released
from pipeline.measuring.quantities import QUANTITIES, take

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
    elif quantity == "time_determinants":
        assert (value is not None) == kind.startswith("lunet")
    elif quantity in ("time_step", "time_optimizer_step", "weigh_training") and training is None:
        assert value is None
    elif quantity.startswith("time_released"):
        assert (value is not None) == (kind in released.RELEASED_BATCH)
    elif quantity.startswith("time"):
        assert min(value.samples) > 0
    else:
        assert value.allocated_peak_mib > 0
        assert value.reserved_peak_mib >= value.allocated_peak_mib


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
            take(f"time_{quantity}", params, name, IMAGES[:8])
        return block.waits

    of_call = waits(2) - waits(1)
    assert of_call.total() <= WAITS_OF_CALL[quantity], of_call


@pytest.mark.cuda
@pytest.mark.parametrize(("name", "quantity"), ALL)
def test_a_real_gpu_measures_every_quantity(name: str, quantity: str) -> None:
    check(name, quantity)
