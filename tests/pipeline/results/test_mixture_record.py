"""Tests that the record of the mixture experiment has finite numbers and four corners."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fake_results import SMALL, Project, parameters
from pydantic import ValidationError

from pipeline.core.files import read_json
from pipeline.results.mixture_record import Mixture


@pytest.mark.parametrize("change", [{"entropy": math.nan}, {"box": [0.0, 1.0]}, {"points": [[1.0, math.inf]]}])
def test_nonsense_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    values = read_json(Project(tmp_path, parameters(**SMALL)).runs / "mixture.json")
    assert Mixture.model_validate(values | {"more": "is ignored"}).entropy == 1.0052
    with pytest.raises(ValidationError):
        Mixture.model_validate(values | change)
