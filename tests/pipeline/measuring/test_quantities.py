"""The measured quantities: the processes that take them, their precision, parameters, and lack of memory."""

from __future__ import annotations

import pkgutil
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.params import Params, validate
from pipeline.measure import PROCESSES
from pipeline.measuring.quantities import QUANTITIES, take
from pipeline.measuring.record import Timing

IMAGES = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)


def test_the_stage_takes_every_quantity_once() -> None:
    assert sorted(quantity for quantities in PROCESSES for quantity in quantities) == sorted(QUANTITIES)


@pytest.mark.parametrize(
    ("quantity", "place", "precision"),
    [
        ("times.step", "pipeline.training.optimisation.loss_and_bits", "high"),
        ("memory.training", "pipeline.training.optimisation.loss_and_bits", "high"),
        ("times.density_small", "lunet.image_flow.ImageFlow.bits_per_dim", "highest"),
        ("times.released_sampling", "lunet.image_flow.ImageFlow.sample", "highest"),
        ("memory.sampling", "lunet.image_flow.ImageFlow.sample", "highest"),
    ],
)
def test_steps_have_the_training_s_precision_and_all_else_is_strict_float32(
    smoke_values: Any, monkeypatch: pytest.MonkeyPatch, quantity: str, place: str, precision: str
) -> None:
    smoke_values["recipes"]["realnvp"]["training"]["precision"] = "tf32"
    used = set()
    function = pkgutil.resolve_name(place)

    def watched(*arguments: Any, **options: Any) -> Any:
        used.add(torch.get_float32_matmul_precision())
        return function(*arguments, **options)

    monkeypatch.setattr(place, watched)
    measured = take(quantity, validate(smoke_values, "params.yaml"), "realnvp", IMAGES)
    assert used == {precision}
    if isinstance(measured, Timing):
        assert measured.precision == ("tf32" if quantity == "times.step" else None)


def test_the_parameters_are_counted(params: Params) -> None:
    counts = take("about", params, "lunet", IMAGES)["parameters"]
    # Four layers of both triangles and a bias.
    assert counts == {"stored": 4 * (64 * 64 + 64), "free": 4 * (64 * 64 + 64)}


@pytest.mark.parametrize(
    ("name", "optimizer", "dtype", "state", "width"),
    [
        ("lunet", "adam", "float32", 2, 4),
        ("lunet_learned", "sgd", "float32", 1, 4),
        ("realnvp", "adam", "float64", 2, 8),
    ],
)
def test_the_floors_of_memory_count_parameters_gradients_and_the_optimiser_s_state(
    smoke_values: Any, name: str, optimizer: str, dtype: str, state: int, width: int
) -> None:
    smoke_values["recipes"][name]["training"]["optimizer"] = optimizer
    smoke_values["recipes"][name]["dtype"] = dtype
    known = take("about", validate(smoke_values, "params.yaml"), name, IMAGES)
    stored, free = known["parameters"]["stored"], known["parameters"]["free"]
    assert known["floors_mib"] == {
        "sampling": stored * width / 2**20,
        "training": (stored + free * (1 + state)) * width / 2**20,
    }


def test_a_model_in_closed_form_has_no_floor_in_training(params: Params) -> None:
    known = take("about", params, "gaussian", IMAGES)
    assert known["floors_mib"] == {"sampling": known["parameters"]["stored"] * 4 / 2**20}


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("can't allocate memory\nmore")])
def test_a_lack_of_memory_is_one_error(params: Params, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setitem(QUANTITIES, "about", fail)
    with pytest.raises(MemoryError, match=f"^{str(error).splitlines()[0]}$"):
        take("about", params, "lunet", IMAGES)
