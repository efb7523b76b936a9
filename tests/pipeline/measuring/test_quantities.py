"""The measured quantities: the processes that take them, their precision, parameters, and lack of memory."""

from __future__ import annotations

import pkgutil
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.core.params import Params, validate
from pipeline.measure import processes
from pipeline.measuring import quantities
from pipeline.measuring.quantities import QUANTITIES, take
from pipeline.measuring.record import WARM, Determinant, Timing

IMAGES = np.arange(4 * 64, dtype=np.uint8).reshape(4, 8, 8)


@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_the_stage_takes_warm_times_in_each_process_and_all_else_once(count: int) -> None:
    turns = processes(count)
    taken = Counter(quantity for quantities in turns for quantity in quantities)
    warm = {f"times.{name}" for name in WARM}
    assert taken == {quantity: count if quantity in warm else 1 for quantity in QUANTITIES}
    assert [quantities for quantities in turns if len(quantities) > 1] == [turns[0], *[turns[-1]] * (count - 1)]


def test_the_processes_of_warm_times_are_apart() -> None:
    warm = [number for number, quantities in enumerate(processes(3)) if "times.step" in quantities]
    assert (warm[0], warm[-1]) == (0, len(processes(3)) - 1)
    assert min(later - earlier for earlier, later in pairwise(warm)) > 2


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


# The determinant


@pytest.fixture
def matrices(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """The calls that are timed: the function, the width, and the threads; each takes a second by a fake clock."""
    seen: list[tuple[str, int, int]] = []

    def take_times(call: Any, _: torch.device, __: int, most: int, *___: Any) -> list[float]:
        (matrix,) = call.args
        seen.append((call.func.__name__, len(matrix), torch.get_num_threads()))
        return [1.0] * most

    monkeypatch.setattr(quantities, "sample_times", take_times)
    monkeypatch.setattr(quantities, "WIDTHS", [2, 3, 5])
    monkeypatch.setattr(quantities, "time", SimpleNamespace(perf_counter=lambda: float(len(seen))))
    return seen


def determinant(values: Any, recipe: str, *, seconds: float = 1.0) -> Determinant | None:
    """The determinant's times in a grid of LU-Nets that has none first."""
    values["grid"]["recipes"] = ["gaussian", "lunet_learned", "lunet"]
    values["measure"]["seconds"] = seconds
    measured: Determinant | None = take("determinant", validate(values, "params.yaml"), recipe, IMAGES)
    return measured


def test_a_determinant_is_timed_by_one_thread_after_a_call_without_work(
    smoke_values: Any, matrices: list[tuple[str, int, int]]
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measured = determinant(smoke_values, "lunet_learned")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert measured is not None
    assert matrices[0] == ("log_abs_det", 1, 1)
    assert matrices[1:3] == [("log_abs_det", 2, 1), ("linalg_slogdet", 2, 1)]
    assert measured.widths == [2, 3, 5]
    assert measured.call_ms is not None
    assert [*map(len, [measured.call_ms, *measured.diagonal_ms, *measured.slogdet_ms])] == [30] * 4 + [3] * 3


@pytest.mark.usefixtures("matrices")
@pytest.mark.parametrize("recipe", ["gaussian", "lunet", "realnvp"])
def test_only_the_first_lu_net_of_the_grid_has_the_determinant(smoke_values: Any, recipe: str) -> None:
    assert determinant(smoke_values, recipe) is None


@pytest.mark.usefixtures("matrices")
def test_no_wider_matrix_is_begun_when_the_time_is_over(smoke_values: Any) -> None:
    # The first width begins after one second by the fake clock, the second after three, and the third after five.
    measured = determinant(smoke_values, "lunet_learned", seconds=3.5 / quantities.DETERMINANT_SECONDS)
    assert measured is not None
    assert measured.widths == [2, 3]


@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("can't allocate memory\nmore")])
def test_a_lack_of_memory_is_one_error(params: Params, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(_: Any) -> None:
        raise error

    monkeypatch.setitem(QUANTITIES, "about", fail)
    with pytest.raises(MemoryError, match=f"^{str(error).splitlines()[0]}$"):
        take("about", params, "lunet", IMAGES)
