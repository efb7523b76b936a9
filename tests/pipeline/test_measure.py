"""The measure stage takes every quantity that applies to a recipe."""

from __future__ import annotations

import pytest

from pipeline.core.dataset import Dataset
from pipeline.core.params import Measure, Params
from pipeline.measure import measure


@pytest.mark.parametrize("name", ["lunet", "gaussian"])
def test_every_quantity_that_applies_is_measured(params: Params, dataset: Dataset, name: str) -> None:
    settings = Measure(repetitions=5, seconds=0.05, warmup=1, large_batch=20)
    result = measure(params.model_copy(update={"measure": settings}), name, dataset.train_images[:20])
    assert result["status"] == "complete"
    stepped = name == "lunet"
    assert (result["times"]["step"] is not None) == (result["times"]["optimizer_step"] is not None) == stepped
    assert (result["memory"]["training"] is not None) == (result["determinant"] is not None) == stepped
    for quantity in ("density_small", "density_large", "sampling_small", "sampling_large"):
        assert len(result["times"][quantity]["samples"]) >= 5
        assert min(result["times"][quantity]["samples"]) > 0
    assert result["times"]["density_large"]["batch"] == 20
    released = {key: time for key, time in result["times"].items() if key.startswith("released")}
    assert len(released) == 3
    assert all((time is not None) == stepped for time in released.values())
    weighed = result["memory"]["sampling"]
    assert weighed["process_peak_mib"] >= weighed["process_start_mib"] > 10
