"""Tests that the schemas of the stages' files refuse invalid numbers and remove paths from messages."""

from __future__ import annotations

import math

import pytest
from pydantic import ValidationError

from pipeline.results.records import Spread, Timing, Unfinished

SPREAD = {"mean": 1.5, "median": 1.4, "std": 0.2, "min": 1.0, "max": 3.0, "worst_percent_share": 0.02}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None, "much"])
def test_a_number_is_finite(value: object) -> None:
    assert Spread.model_validate(SPREAD | {"more": "is left aside"}).mean == 1.5
    with pytest.raises(ValidationError):
        Spread.model_validate(SPREAD | {"mean": value})


@pytest.mark.parametrize("samples", [[], [0.0], [-1.0], [1.0, math.nan]])
def test_times_are_positive_and_at_least_one(samples: list[float]) -> None:
    with pytest.raises(ValidationError):
        Timing.model_validate({"unit": "ms", "per": "step", "batch": 1, "samples": samples})


def test_messages_lose_the_paths_of_the_machine() -> None:
    names = {"stage": "train", "dataset": "mnist", "recipe": "lunet", "seed": 0, "status": "failed"}
    cell = Unfinished.model_validate({**names, "message": "no room in /home/someone/runs"})
    assert cell.message == "no room in <path>"
    assert str(cell.key) == "mnist-lunet-0"
