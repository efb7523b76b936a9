"""The measure stage takes every quantity that applies to a recipe."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import pytest
from import_graph import ROOT

from pipeline.core.cell import Key
from pipeline.core.console import UserError
from pipeline.core.dataset import Dataset
from pipeline.core.params import Measure, Params
from pipeline.measure import apart, measure, seconds_of_children
from pipeline.measuring.quantities import take
from pipeline.measuring.record import COLD, PEAKS, WARM, Memory, Timing


@pytest.mark.parametrize("name", ["lunet", "gaussian"])
def test_every_quantity_that_applies_is_measured(params: Params, dataset: Dataset, name: str) -> None:
    settings = Measure(processes=2, repetitions=5, seconds=0.01, warmup=1, large_batch=20)
    params = params.model_copy(update={"measure": settings})
    measured = measure(params, Key("mnist", name), dataset.train_images[:20])
    assert (str(measured.key), measured.status, measured.device) == (f"mnist-{name}", "complete", "cpu")
    assert measured.image_shape == (8, 8)
    times, memory = measured.times, measured.memory
    assert times is not None
    assert memory is not None
    assert (list(times), list(memory)) == ([*WARM, *COLD], list(PEAKS))
    stepped = name == "lunet"
    applying = {"step", "optimizer_step", *COLD}
    images = {f"{work}_{size}" for work in ("density", "sampling") for size in ("small", "large")}
    assert {quantity for quantity, timing in times.items() if timing} == images | (applying if stepped else set())
    precisions = {timing.precision for timing in times.values() if timing and timing.per == "step"}
    assert precisions == ({"float32"} if stepped else set())
    assert (memory["training"] is not None) == (measured.determinant is not None) == stepped
    for quantity in images:
        timing = times[quantity]
        assert timing is not None
        assert timing.process == [1] * 5 + [2] * 5
        assert timing.batch == (20 if quantity.endswith("large") else 1)
    weighed = memory["sampling"]
    assert weighed is not None
    assert weighed.process_peak_mib >= weighed.process_start_mib > 10
    assert measured.floors_mib is not None
    assert set(measured.floors_mib) == ({"training", "sampling"} if stepped else {"sampling"})


@pytest.mark.parametrize(
    ("failing", "times", "memory"),
    [
        ("times.density_small", {"step", "optimizer_step"}, set()),
        ("times.released_density", {*WARM, "released_optimizer_step"}, set()),
        ("memory.sampling", {*WARM, *COLD}, {"training"}),
    ],
)
def test_a_lack_of_memory_is_a_status_that_keeps_what_was_measured(
    params: Params, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, failing: str, times: set[str], memory: set[str]
) -> None:
    def apart(quantities: list[str], *work: Any) -> Iterator[Any]:
        for quantity in quantities:
            if quantity == failing:
                raise MemoryError("no 9 GiB for /home/someone/images")
            time, peak = Timing(per="step", batch=1, samples=[1.0]), Memory(process_start_mib=1, process_peak_mib=2)
            made_up = {"times": time, "memory": peak, "determinant": None}
            yield take(quantity, *work) if quantity == "about" else made_up[quantity.partition(".")[0]]

    monkeypatch.setattr("pipeline.measure.apart", apart)
    measured = measure(params, Key("mnist", "lunet"), dataset.train_images[:20])
    assert (measured.status, measured.message) == ("out_of_memory", "no 9 GiB for <path>")
    assert {name for name, timing in (measured.times or {}).items() if timing} == times
    assert {name for name, peak in (measured.memory or {}).items() if peak} == memory


def test_the_times_of_each_process_are_kept_when_memory_is_lacking_later(
    params: Params, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Counter[str]()

    def apart(quantities: list[str], *work: Any) -> Iterator[Any]:
        for quantity in quantities:
            seen[quantity] += 1
            if (quantity, seen[quantity]) == ("times.density_large", 3):
                raise MemoryError("no 9 GiB")
            timing = Timing(per="step", batch=1, samples=[seen[quantity], 9.0])
            yield take(quantity, *work) if quantity == "about" else timing if quantity.startswith("times.") else None

    monkeypatch.setattr("pipeline.measure.apart", apart)
    params = params.model_copy(update={"measure": params.measure.model_copy(update={"processes": 3})})
    times = measure(params, Key("mnist", "lunet"), dataset.train_images[:20]).times
    kept = {name: times[name] for name in ("step", "density_large", "released_sampling")} if times else {}
    assert {name: timing and (timing.samples, timing.process) for name, timing in kept.items()} == {
        "step": ([1, 9, 2, 9, 3, 9], [1, 1, 2, 2, 3, 3]),
        "density_large": ([1, 9, 2, 9], [1, 1, 2, 2]),
        "released_sampling": ([1, 9], None),
    }


def test_the_server_s_children_are_the_stage_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    children = [
        SimpleNamespace(cpu_times=lambda: (1.0, 2.0, 30.0, 4.0, 99.0)),
        SimpleNamespace(cpu_times=lambda: (0.5,)),
    ]
    monkeypatch.setattr("pipeline.measure.psutil.Process", lambda: SimpleNamespace(children=lambda: children))
    assert seconds_of_children() == 37.5


def test_quantities_share_a_process_until_it_fails(params: Params, dataset: Dataset) -> None:
    outcomes = apart(["about", "times.density_small", "nonsense"], params, "gaussian", dataset.train_images[:20])
    assert next(outcomes)["image_shape"] == (8, 8)
    assert next(outcomes).batch == 1
    with pytest.raises(KeyError, match="nonsense"):
        next(outcomes)


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGKILL), MemoryError, "took second was killed"),
        (lambda: os._exit(3), UserError, "took second ended with exit status 3"),
    ],
)
def test_a_process_that_ends_early_names_the_quantity(
    monkeypatch: pytest.MonkeyPatch, end: Callable[[], None], error: type[Exception], message: str
) -> None:
    def send(sender: Connection, _: list[str]) -> None:
        sender.send(1)
        end()

    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr(forking, "set_forkserver_preload", lambda _: None)
    monkeypatch.setattr("pipeline.measure.multiprocessing.get_context", lambda _: forking)
    monkeypatch.setattr("pipeline.measure.send", send)
    outcomes = apart(["first", "second"])
    assert next(outcomes) == 1
    with pytest.raises(error, match=message):
        next(outcomes)


def test_the_stage_s_own_process_imports_no_torch() -> None:
    code = "import sys, pipeline.measure; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
