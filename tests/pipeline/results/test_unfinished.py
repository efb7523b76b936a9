"""Tests of the cells that have no figures yet."""

from __future__ import annotations

from pipeline.results.unfinished import Unfinished


def test_messages_lose_the_paths_of_the_machine() -> None:
    names = {"stage": "train", "dataset": "mnist", "recipe": "lunet", "seed": 0, "status": "failed"}
    cell = Unfinished.model_validate({**names, "message": "no room in /home/someone/runs"})
    assert cell.message == "no room in <path>"
    assert str(cell.key) == "mnist-lunet-0"
