"""Tests of the fields that the files of all stages share."""

from __future__ import annotations

import pytest
from fake_results import ENVIRONMENT
from pydantic import ValidationError

from pipeline.core.record import StageRecord

RECORD = {"dataset": "mnist", "recipe": "lunet", "seed": 0, "status": "diverged", "environment": ENVIRONMENT}


def test_key_and_message() -> None:
    record = StageRecord.model_validate({**RECORD, "message": "the loss in /home/someone/data is NaN"})
    assert (str(record.key), record.message) == ("mnist-lunet-0", "the loss in <path> is NaN")


def test_an_unknown_status_is_refused() -> None:
    with pytest.raises(ValidationError):
        StageRecord.model_validate({**RECORD, "message": None, "status": "fine"})
