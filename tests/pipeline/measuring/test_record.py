"""Tests that measured times are positive, and that there is one at least."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from pipeline.measuring.record import Timing


@pytest.mark.parametrize("samples", [[], [0.0], [-1.0], [1.0, math.nan]])
def test_times_are_positive_and_at_least_one(samples: list[float]) -> None:
    with pytest.raises(ValidationError):
        Timing.model_validate({"unit": "ms", "per": "step", "batch": 1, "samples": samples})


def test_samples_of_a_further_process_come_after_those_of_earlier_ones() -> None:
    first, second, third = (Timing(per="step", batch=1, samples=samples) for samples in ([3.0, 1.0], [2.0], [5.0, 4.0]))
    timing = third.after(second.after(first.after(None)))
    assert timing.samples == [3.0, 1.0, 2.0, 5.0, 4.0]
    assert timing.process == [1, 1, 2, 3, 3]


def test_an_older_record_has_no_processes_and_a_damaged_one_is_refused() -> None:
    values = {"per": "step", "batch": 1, "samples": [1.0, 2.0]}
    assert Timing.model_validate(values).process is None
    with pytest.raises(ValidationError, match="has 2 samples and 1 numbers of processes"):
        Timing.model_validate({**values, "process": [1]})
