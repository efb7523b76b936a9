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
