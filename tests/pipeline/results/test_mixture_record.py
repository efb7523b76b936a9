"""The record of the mixture stage: it reads what it writes, and no number that is not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from fake_results import SMALL, Project, parameters
from pydantic import ValidationError

from pipeline.core.files import read_json
from pipeline.results.mixture_record import Interval, Mixture


def test_a_file_is_read_and_written_without_a_change(tmp_path: Path) -> None:
    values = read_json(Project(tmp_path, parameters(**SMALL)).runs / "mixture.json")
    written = json.dumps(Mixture.model_validate(values).model_dump(mode="json"))
    assert written == json.dumps(values)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValidationError):
        Interval(mean=value, ci_low=None, ci_high=None, n=1)
