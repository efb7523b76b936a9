"""The measured quantities: their names, the numbers of parameters, and lack of memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipeline.core.params import Params, validate
from pipeline.measuring.quantities import QUANTITIES, take

IMAGES = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)


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
