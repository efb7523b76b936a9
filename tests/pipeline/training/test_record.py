"""The record of a training."""

from __future__ import annotations

from pipeline.training.record import HISTORY, Fit, Row


def test_the_history_is_not_part_of_the_file() -> None:
    row: Row = {name: 1 if name == "step" else 0.5 for name in HISTORY if name != "model"}
    fit = Fit(train_images=4, holdout_images=1, message="no room in /home/someone/runs", history=[row])
    assert fit.history == [row]
    assert isinstance(fit.history[0]["step"], int)
    assert "history" not in fit.model_dump(mode="json")
    assert fit.message == "no room in <path>"
