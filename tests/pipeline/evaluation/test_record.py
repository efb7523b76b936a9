"""Tests that the record of an evaluation has finite numbers only, and ignores keys that it does not know."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from pipeline.evaluation.record import Spread

SPREAD = {"mean": 1.5, "median": 1.4, "std": 0.2, "min": 1.0, "max": 3.0, "worst_percent_share": 0.02}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "much"])
def test_a_number_is_finite(value: object) -> None:
    assert Spread.model_validate(SPREAD | {"more": "is left aside"}).mean == 1.5
    with pytest.raises(ValidationError):
        Spread.model_validate(SPREAD | {"mean": value})
