"""The measure stage takes every quantity that applies to a recipe."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from import_graph import ROOT

from pipeline.core.cell import Key
from pipeline.core.dataset import Dataset
from pipeline.core.params import Measure, Params
from pipeline.measure import measure
from pipeline.measuring.quantities import MEMORY, TIMES, take
from pipeline.measuring.record import Timing


@pytest.mark.parametrize("name", ["lunet", "gaussian"])
def test_every_quantity_that_applies_is_measured(params: Params, dataset: Dataset, name: str) -> None:
    settings = Measure(repetitions=5, seconds=0.05, warmup=1, large_batch=20)
    params = params.model_copy(update={"measure": settings})
    measured = measure(params, Key("mnist", name), dataset.train_images[:20])
    assert (str(measured.key), measured.status, measured.device) == (f"mnist-{name}", "complete", "cpu")
    times, memory = measured.times, measured.memory
    assert times is not None
    assert memory is not None
    assert (list(times), list(memory)) == (list(TIMES), list(MEMORY))
    stepped = name == "lunet"
    applying = {"step", "optimizer_step"} | {quantity for quantity in TIMES if quantity.startswith("released")}
    images = {f"{work}_{size}" for work in ("density", "sampling") for size in ("small", "large")}
    assert {quantity for quantity, timing in times.items() if timing} == images | (applying if stepped else set())
    assert (memory["training"] is not None) == (measured.determinant is not None) == stepped
    for quantity in images:
        timing = times[quantity]
        assert timing is not None
        assert len(timing.samples) >= 5
        assert timing.batch == (20 if quantity.endswith("large") else 1)
    weighed = memory["sampling"]
    assert weighed is not None
    assert weighed.process_peak_mib >= weighed.process_start_mib > 10
    assert measured.floors_mib is not None
    assert set(measured.floors_mib) == ({"training", "sampling"} if stepped else {"sampling"})


def test_a_lack_of_memory_is_a_status_that_keeps_what_was_measured(
    params: Params, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(quantity: str, *work: Any) -> Any:
        if quantity == "time_density_small":
            raise MemoryError("no 9 GiB for /home/someone/images")
        return take(quantity, *work) if quantity == "about" else Timing(per="step", batch=1, samples=[1.0])

    monkeypatch.setattr("pipeline.measure.apart", apart)
    measured = measure(params, Key("mnist", "lunet"), dataset.train_images[:20])
    assert (measured.status, measured.message) == ("out_of_memory", "no 9 GiB for <path>")
    assert {name for name, timing in (measured.times or {}).items() if timing} == {"step", "optimizer_step"}
    assert set((measured.memory or {}).values()) == {None}


def test_the_stage_s_own_process_imports_no_torch() -> None:
    code = "import sys, pipeline.measure; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
